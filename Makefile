# What to type. Each target first checks what it needs (scripts/prerequisites) and says what is missing.
# ARGS goes to the program: make demo ARGS='--duration 30s'

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build image test test-k8s check demo kafka bench bench-quick chaos sim sim-scale fuzz sbom dist

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the release binary, target/release/hookstream
	@scripts/prerequisites build
	cargo build --release --locked

image: ## the container image; ROOTFS=1 writes it as an OCI archive and needs no container tool and no registry; SIGN as for dist
	@$(if $(ROOTFS),$(if $(BIN),,scripts/prerequisites build;) scripts/prerequisites image)
	@IMAGE='$(IMAGE)' TAG='$(TAG)' BIN='$(BIN)' OUT='$(OUT)' SIGN='$(SIGN)' scripts/image $(if $(ROOTFS),rootfs,build)

sbom: ## the bill of materials of the binary, CycloneDX, to standard output
	@scripts/sbom

dist: ## what is published, to target/dist: binary, bill of materials, checksums; SIGN='gpg --armor --detach-sign FILE' signs each
	@$(if $(BIN),,scripts/prerequisites build)
	@BIN='$(BIN)' OUT='$(OUT)' SIGN='$(SIGN)' scripts/dist

test: export SKIPPED_CHECKS := $(CURDIR)/target/skipped-checks
test: ## every test, the ones on a real Kafka included
	@scripts/prerequisites test
	@scripts/skipped begin
	@scripts/kafka fetch
	@scripts/debezium fetch
	# Without it, the tests that need it are skipped, and listed at the end.
	-@scripts/schema-registry fetch
	# Most tests wait for Kafka most of the time: more of them than there are cores at a time.
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-8} scripts/failures cargo test --locked
	# One more build for all that needs a feature. In virtual time: the roles on another outside than Kafka, hyper and
	# threads; faults by the hundred (the same history twice, planted bugs, 2,000 seeds); the model of scale in small.
	scripts/failures cargo test $(FEATURED) -q --test port --test world --test scale
	RUST_TEST_THREADS=4 RUST_BACKTRACE=0 scripts/failures cargo test $(FEATURED) --test chaos -- --nocapture
	# What is in deploy/: after cargo test, which has made the program that reads the deployed settings.
	cd tests/deploy && test -z "$$(gofmt -l .)" && go vet . && go test -count=1 -timeout 30m .
	@scripts/skipped report

test-k8s: ## rolling updates, scaling, evictions and faults on a real Kubernetes, as root, 20 minutes; STEPS=roll,broker picks
	@STEPS='$(STEPS)' scripts/k8s/test

check: ## format, lints, documentation, licences and advisories, portability, layers
	@scripts/prerequisites check
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
	scripts/audit
	scripts/portable
	scripts/layers

demo: ## the whole story in a minute, with an embedded broker
	@scripts/prerequisites build
	cargo run --profile demo --locked -- demo $(ARGS)

kafka: ## a local real Kafka; prints its address and how to stop it
	@scripts/prerequisites test
	@scripts/kafka start $(ARGS)

bench: ## speed and isolation beside raw references, about half an hour; ARGS='deliver --runs 3' picks
	@scripts/prerequisites test
	@scripts/kafka fetch
	cargo bench --locked --bench suite -- $(ARGS)

bench-quick: ## the same in under three minutes after the build, less exact
	@$(MAKE) --no-print-directory bench ARGS='--quick $(ARGS)'

chaos: ## faults for as long as you like: SEED=7 MINUTES=60 RATE=100 FAULTS=kill,point GUARANTEE=at-least-once
	@scripts/prerequisites test
	@scripts/kafka fetch
	SEED=$(SEED) MINUTES=$(or $(MINUTES),60) RATE=$(or $(RATE),100) FAULTS=$(FAULTS) \
	  cargo test --release --locked --features failpoints --test chaos -- --nocapture --include-ignored \
	  $(if $(filter at-least-once,$(GUARANTEE)),at_least_once_loses_nothing_either,a_seeded_run_of_faults_breaks_no_invariant)

# What needs a feature, in one build for all of it: with the assertions of the product, and optimised, for many runs.
FEATURED := --locked --features simulation,failpoints --config tests/sim/profile.toml
sim: ## the whole system in virtual time: SEEDS=1000 runs so many, SEED=7 repeats one, shrinks it if it fails, with its timeline; PLAN=FILE plays a saved one; PLANT=all plants bugs
	@SEED=$(SEED) SEEDS=$(or $(SEEDS),200) FIRST=$(FIRST) $(if $(PLAN),PLAN=$(PLAN)) $(if $(PLANT),PLANT=$(PLANT)) \
	  cargo test -q $(FEATURED) --test world

fuzz: ## hostile input for all that reads what others wrote: SECONDS=60 or INPUTS=10000000 for each target, TARGET=event picks, SEED=7
	@SECONDS=$(if $(INPUTS),$(SECONDS),$(or $(SECONDS),60)) INPUTS=$(INPUTS) TARGET=$(TARGET) SEED=$(SEED) cargo test -q --locked --profile fuzz --test fuzz

sim-scale: ## 1,000,000 events/s in virtual time, the tables of docs/sizing.md; SCALE=calibrate: beside a real Kafka
	@SCALE=$(or $(SCALE),full) cargo test -q $(FEATURED) --test scale
