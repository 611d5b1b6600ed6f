//! Nothing lost, doubled or held up while a real cluster moves: three replicas of each role on Kubernetes, as
//! `deploy/kubernetes` has them, under the checker of the fault test.
//!
//! `make test-k8s` starts the cluster, builds the images of two versions and runs this; `STEPS=roll,broker` picks steps.
//! Kafka, the generator and the endpoints run on this machine. The report is printed and kept in `target/k8s/report.md`.

// As in `tests/it`: a test that cannot go on should stop where it stands. Not all that the fault test has is used here.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    dead_code,
    missing_docs,
    unreachable_pub
)]

#[path = "../it"]
mod it {
    pub mod support;
}

#[path = "../chaos/checker.rs"]
mod checker;
#[path = "../chaos/history.rs"]
mod history;
#[path = "../chaos/reading.rs"]
mod reading;
#[path = "../chaos/tenants.rs"]
#[allow(dead_code, reason = "only the chaos test has bad tenants")]
mod tenants;
#[path = "../chaos/traffic.rs"]
mod traffic;
#[path = "../chaos/truth.rs"]
mod truth;

mod cluster;
mod pauses;
mod report;
mod scenario;
mod step;

/// A variable that `scripts/k8s/test` sets.
fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run make test-k8s"))
}

#[test]
fn nothing_is_lost_or_doubled_while_the_cluster_moves() {
    let report = scenario::run(&scenario::Plan {
        address: required("HOST_ADDRESS").parse().unwrap(),
        old_image: required("OLD_IMAGE"),
        new_image: required("NEW_IMAGE"),
        rate: 20,
        steps: step::chosen(&std::env::var("STEPS").unwrap_or_default()),
    });
    println!("{report}");
    report.write();
    assert!(report.is_clean(), "see the report above");
}
