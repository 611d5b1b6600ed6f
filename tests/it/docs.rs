//! The documents agree with the program: settings, metrics, retentions, alerts, times, links, paths and the arithmetic of
//! sizing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hookstream::config::{Layers, Machine, Settings, Source};
use hookstream::edge::kafka::topics as admin;
use hookstream::edge::kafka::topics::{Rule, TopicSpec};
use hookstream::model::backoff::JITTER;
use hookstream::model::expiry::default_max_age;
use hookstream::model::tiers::{Head, Tiers};
use hookstream::model::units::EpochMs;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// What stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
fn section<'a>(text: &'a str, name: &str) -> &'a str {
    let (_, rest) = text
        .split_once(&format!("<!-- {name}:begin -->\n"))
        .unwrap();
    rest.split_once(&format!("<!-- {name}:end -->")).unwrap().0
}

/// The cells of a table's rows, without its head.
fn rows(table: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let cells = line.trim().trim_matches('|').split(" | ");
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    let lines = table.lines().filter(|line| line.starts_with('|'));
    lines.skip(2).map(cells).collect()
}

/// The default settings, with the log of attempts.
fn settings() -> Settings {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "kafka:9092");
    layers.give("attempt-log", Source::Flag, "true");
    let machine = Machine {
        host_name: "test".to_owned(),
        cores: 2,
    };
    Settings::check(&layers, &machine).unwrap()
}

// ---- reference.md ----

/// The section `name` of the reference is this text; `UPDATE_REFERENCE` writes it there.
#[track_caller]
fn assert_generated(name: &str, current: &str) {
    const FILE: &str = "docs/reference.md";
    let text = text(FILE);
    let known = section(&text, name);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        let marked = |inner: &str| format!("<!-- {name}:begin -->\n{inner}<!-- {name}:end -->");
        let renewed = text.replace(&marked(known), &marked(current));
        std::fs::write(Path::new(ROOT).join(FILE), renewed).unwrap();
        return;
    }
    assert_eq!(
        known, current,
        "UPDATE_REFERENCE=1 cargo test --test it the_reference_of_{name} renews it"
    );
}

#[test]
fn the_reference_of_settings_is_the_programs() {
    assert_generated("settings", &hookstream::config::reference());
}

/// The users with whose permissions each role and the commands are run (tests/deploy/acls_test.go).
#[test]
fn the_reference_of_permissions_is_what_is_tested() {
    let users = text("deploy/kubernetes/components/strimzi/users.yaml");
    let mut table =
        "| role or command | resource | names and operations |\n|---|---|---|\n".to_owned();
    for document in users.split("\n---\n") {
        let user: serde_json::Value = serde_saphyr::from_str(document).unwrap();
        let name = user["metadata"]["name"].as_str().unwrap();
        let who = match name.strip_prefix("hookstream-").unwrap() {
            "operator" => "all other commands, together",
            "topics" => "`topics create`",
            role => &format!("`{role}`"),
        };
        let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for acl in user["spec"]["authorization"]["acls"].as_array().unwrap() {
            let resource = &acl["resource"];
            let operations = acl["operations"].as_array().unwrap();
            let operations: Vec<_> = operations.iter().map(|one| one.as_str().unwrap()).collect();
            let star = if resource["patternType"] == "prefix" {
                "*"
            } else {
                ""
            };
            let place = match resource["name"].as_str() {
                Some(name) => format!("`{name}{star}` "),
                None => String::new(),
            };
            by_kind
                .entry(resource["type"].as_str().unwrap())
                .or_default()
                .push(format!("{place}{}", operations.join(", ")));
        }
        for (kind, all) in by_kind {
            table += &format!("| {who} | {kind} | {} |\n", all.join("; "));
        }
    }
    assert!(table.lines().count() > 15, "{table}");
    assert_generated("permissions", &table);
}

#[test]
fn every_metric_is_explained() {
    let golden = include_str!("../data/metrics.golden");
    let reference = text("docs/reference.md");
    for name in golden.lines().filter_map(|line| line.split(' ').next()) {
        assert!(
            reference.contains(&format!("`{name}")),
            "{name} is not in docs/reference.md"
        );
    }
}

// ---- operations.md ----

#[test]
fn the_retentions_of_the_operators_guide_are_those_of_topics_create() {
    let days = |spec: &TopicSpec| {
        let retention = spec.rules.iter().find(|(key, _)| *key == "retention.ms");
        match retention {
            Some((_, Rule::AtLeast(ms))) => format!("{} days", ms / 86_400_000),
            Some((_, Rule::AtFirst(ms))) => format!("{} days (yours to change)", ms / 86_400_000),
            _ => "until deleted (compacted)".to_owned(),
        }
    };
    let known: BTreeMap<String, String> = admin::topics(&settings())
        .iter()
        .filter(|spec| spec.own)
        .map(|spec| (spec.name.clone(), days(spec)))
        .collect();
    let guide = text("docs/operations.md");
    let told: BTreeMap<String, String> = rows(section(&guide, "retention"))
        .into_iter()
        .filter_map(|row| {
            let name = row[0].split('`').nth(1)?;
            Some((name.to_owned(), row[2].clone()))
        })
        .collect();
    assert_eq!(told, known);
}

#[test]
fn every_alert_has_an_objective_its_severity_and_a_section_in_the_runbook() {
    let rules = text("deploy/prometheus/rules.yaml");
    let alerts: BTreeSet<(String, String)> = rules
        .split("- alert: ")
        .skip(1)
        .map(|rule| {
            let name = rule.lines().next().unwrap().trim();
            let (_, severity) = rule.split_once("severity: ").unwrap();
            let severity = severity.split('}').next().unwrap();
            (name.to_owned(), severity.to_owned())
        })
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let guide = text("docs/operations.md");
    let told: BTreeSet<(String, String)> = rows(&guide)
        .into_iter()
        .filter(|row| row.len() == 4 && row[0].starts_with("Hookstream"))
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    assert_eq!(told, alerts);
    let runbook = text("docs/runbook.md");
    for (name, _) in alerts {
        assert!(runbook.contains(&format!("\n## {name}\n")), "{name}");
    }
}

#[test]
fn receivers_are_told_how_long_the_schedule_can_last() {
    let settings = settings();
    let attempts = settings.timeout * (settings.retry_schedule.len() as u32 + 1);
    // As late as the tiers permit: 5 s or a tenth.
    let late = |delay: Duration| delay + (delay / 10).max(Duration::from_secs(5));
    let jittered = settings
        .retry_schedule
        .iter()
        .map(|delay| delay.mul_f64(1.0 + JITTER));
    let scheduled: Duration = jittered.map(late).sum::<Duration>() + attempts;
    let default = default_max_age(
        &settings.retry_schedule,
        settings.timeout,
        settings.tiers.delays()[0],
    );
    assert_eq!(default, scheduled, "every attempt of the schedule is made");
    let half_hours = |time: Duration| time.as_secs().div_ceil(1800);
    assert_eq!(half_hours(scheduled), 2 * 36 + 1, "36 h 30 min");
    assert_eq!(
        scheduled.as_secs() / 60,
        36 * 60 + 26,
        "36 h 26 min and some"
    );
    let guide = text("docs/operations.md");
    for told in ["at most 36 h 30 min", "by default 36 h 30 min"] {
        assert!(guide.contains(told), "{told}");
    }
}

// ---- links ----

/// README, changelog and guides.
fn documents() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(Path::new(ROOT).join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .collect();
    for name in ["README.md", "CHANGELOG.md"] {
        files.push(Path::new(ROOT).join(name));
    }
    files
}

/// A document without its code blocks.
fn prose(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// The anchors that GitHub makes from the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut followed = 0;
    for file in documents() {
        for link in prose(&file).split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            assert!(target.exists(), "{}: {link}", file.display());
            if !anchor.is_empty() {
                let known = anchors(&prose(&target));
                assert!(known.contains(anchor), "{}: {link}", file.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 50, "{followed} links");
}

#[test]
fn every_file_that_the_documents_name_exists() {
    const FOLDERS: [&str; 6] = ["deploy", "docs", "schemas", "scripts", "src", "tests"];
    let mut found = 0;
    for file in documents() {
        for code in prose(&file).split('`').skip(1).step_by(2) {
            let path = code.split_whitespace().next().unwrap_or_default();
            let folder = path.split('/').next().unwrap();
            if !path.contains('/') || !FOLDERS.contains(&folder) {
                continue;
            }
            let exists = Path::new(ROOT).join(path).exists();
            assert!(exists, "{}: {path}", file.display());
            found += 1;
        }
    }
    assert!(found > 20, "{found} paths");
}

// ---- sizing.md ----

/// Numbers by name, from a table whose first column has the name in backticks.
struct Numbers(BTreeMap<String, f64>);

impl Numbers {
    fn read(table: &str, column: usize) -> Self {
        let each = rows(table).into_iter().map(|row| {
            let name = row[0].split('`').nth(1).unwrap().to_owned();
            let number = row[column].replace(',', "");
            let number = number
                .parse()
                .unwrap_or_else(|_| panic!("{name}: {number}"));
            (name, number)
        });
        Self(each.collect())
    }

    fn of(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name}"))
    }
}

/// Moves out of a tier until a retry that is due in `delay` is back among the commands.
fn moves(tiers: &Tiers, delay: Duration) -> u32 {
    let (mut now, due) = (EpochMs(0), EpochMs(0) + delay);
    let mut tier = tiers.for_rest(delay);
    let mut appended = now;
    let mut moves = 0;
    loop {
        match tiers.at_head(tier, appended, due, now) {
            Head::Wait(until) => now = until,
            Head::Due => return moves + 1,
            Head::Hop(next) => {
                (tier, appended) = (next, now);
                moves += 1;
            }
        }
    }
}

#[test]
fn the_moves_of_a_retry_are_those_of_the_tiers() {
    let settings = settings();
    let guide = text("docs/sizing.md");
    let told = rows(section(&guide, "moves"));
    let delays: BTreeSet<Duration> = settings.retry_schedule.iter().copied().collect();
    assert_eq!(told.len(), delays.len());
    for (row, delay) in told.iter().zip(delays) {
        // Over the whole jitter.
        let all: Vec<u32> = (0..=100)
            .map(|step| 1.0 - JITTER + 2.0 * JITTER * f64::from(step) / 100.0)
            .map(|factor| moves(&settings.tiers, delay.mul_f64(factor)))
            .collect();
        let mean = all.iter().sum::<u32>() as f64 / all.len() as f64;
        assert_eq!(row[0], hookstream::model::units::format_duration(delay));
        assert_eq!(row[1], format!("{mean:.1}"), "{}", row[0]);
    }
}

struct Sizing {
    constants: Numbers,
    inputs: Numbers,
}

/// A result: its name, how it is computed, its unit.
type Result = (&'static str, fn(&Sizing) -> f64, Unit);

enum Unit {
    Number,
    Cores,
    Mebibytes,
    Megabytes,
    Terabytes,
    Dollars,
}

impl Unit {
    fn show(&self, value: f64) -> String {
        match self {
            Self::Number => grouped(value.round()),
            Self::Cores if value < 0.01 => "< 0.01".to_owned(),
            Self::Cores if value < 10.0 => format!("{value:.2}"),
            Self::Cores => grouped(value.round()),
            Self::Mebibytes => format!("{} MiB", grouped(value.round())),
            Self::Megabytes if value < 10.0 => format!("{value:.2} MB/s"),
            Self::Megabytes => format!("{} MB/s", grouped(value.round())),
            Self::Terabytes if value < 10.0 => format!("{value:.2} TB"),
            Self::Terabytes => format!("{} TB", grouped(value.round())),
            Self::Dollars => format!("{} USD", grouped(value.round())),
        }
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// At least `least`, and a whole number.
fn whole(value: f64, least: f64) -> f64 {
    value.ceil().max(least)
}

impl Sizing {
    fn c(&self, name: &str) -> f64 {
        self.constants.of(name)
    }

    fn i(&self, name: &str) -> f64 {
        self.inputs.of(name)
    }

    fn commands(&self) -> f64 {
        self.i("R") * self.i("F")
    }

    fn retries(&self) -> f64 {
        self.commands() * self.i("retries")
    }

    fn requests(&self) -> f64 {
        self.commands() + self.retries()
    }

    fn in_flight(&self) -> f64 {
        self.requests() * self.i("L") / 1000.0
    }

    fn moves(&self) -> f64 {
        self.retries() * self.i("moves")
    }

    /// Records a second that hookstream writes.
    fn written(&self) -> f64 {
        self.commands() + self.retries() + self.moves()
    }

    fn record(&self) -> f64 {
        self.i("body") + self.c("record_overhead")
    }

    fn fanout_cores(&self) -> f64 {
        (self.i("R") * self.c("event_cpu") + self.commands() * self.c("command_cpu")) / 1e6
    }

    fn deliver_cores(&self) -> f64 {
        let sent = self.commands() * self.c("delivery_cpu") + self.retries() * self.c("retry_cpu");
        (sent + self.requests() * self.i("new connections") * self.c("connection_cpu")) / 1e6
    }

    fn release_cores(&self) -> f64 {
        self.moves() * self.c("move_cpu") / 1e6
    }

    fn lag_cores(&self) -> f64 {
        self.written() * self.c("lag_cpu") / 1e6
    }

    fn replicas(&self, cores: f64, each: f64, least: f64) -> f64 {
        whole(cores / (each * self.i("utilization")), least)
    }

    fn deliver_replicas(&self) -> f64 {
        let by_cores = self.replicas(self.deliver_cores(), self.i("workers"), 3.0);
        let by_requests = self.in_flight() / (self.i("max in flight") * self.i("utilization"));
        by_cores.max(whole(by_requests, 1.0))
    }

    fn partitions(&self) -> f64 {
        let by_rate = self.requests() / (self.c("partition_rate") * self.i("utilization"));
        let by_workers = self.deliver_replicas() * self.i("workers");
        let by_window = self.in_flight() / self.c("partition_in_flight");
        let needed = by_rate.max(by_workers).max(by_window) * self.i("spare partitions");
        12.0 * whole(needed / 12.0, 1.0)
    }

    fn deliver_memory(&self) -> f64 {
        let replicas = self.deliver_replicas();
        let subscriptions = self.i("S") * self.c("subscription_memory");
        let lanes = self.i("S") / replicas * self.c("lane_memory");
        let requests = self.in_flight() / replicas * self.c("request_memory");
        self.c("deliver_memory") + (subscriptions + lanes + requests) / 1024.0
    }

    fn fanout_memory(&self) -> f64 {
        self.c("fanout_memory") + self.i("S") * self.c("subscription_memory") / 1024.0
    }

    /// One lag replica reads all records of an installation.
    fn installations(&self) -> f64 {
        whole(
            self.written() / (self.c("lag_rate") * self.i("utilization")),
            1.0,
        )
    }

    /// Of all brokers.
    fn kafka_cores(&self) -> f64 {
        let written = self.i("R") * self.c("kafka_publish_cpu")
            + self.commands() * self.c("kafka_command_cpu")
            + self.retries() * self.c("kafka_retry_cpu")
            + self.moves() * self.c("kafka_move_cpu");
        let read = self.i("R") * self.c("kafka_event_cpu")
            + self.commands() * self.c("kafka_delivery_cpu")
            + 2.0 * self.written() * self.c("kafka_read_cpu");
        (written * self.c("replication_cpu") + read) / 1e6
    }

    /// Megabytes a second that producers send.
    fn ingress(&self) -> f64 {
        (self.i("R") * self.i("body") + self.written() * self.record()) / 1e6
    }

    fn replication(&self) -> f64 {
        self.ingress() * (self.i("copies") - 1.0)
    }

    /// Fan-out reads events; deliver and release together read each record once, each lag replica does too.
    fn egress(&self) -> f64 {
        (self.i("R") * self.i("body") + 3.0 * self.written() * self.record()) / 1e6
    }

    fn disk(&self) -> f64 {
        let day = 86_400.0;
        let own = self.written() * self.record() * self.i("days");
        own * day * self.i("copies") / 1e12
    }

    fn brokers(&self) -> f64 {
        let by_cores = self.kafka_cores() / (self.i("broker cores") * self.i("utilization"));
        let by_disk = self.disk() / (self.i("broker disk") * 0.7);
        whole(by_cores.max(by_disk), 3.0)
    }

    fn hookstream_cores(&self) -> f64 {
        self.fanout_cores() + self.deliver_cores() + self.release_cores() + 2.0 * self.lag_cores()
    }

    /// Dollars a month for cores at their utilization.
    fn hookstream_dollars(&self) -> f64 {
        let cores = self.hookstream_cores() / self.i("utilization");
        cores * 730.0 * self.i("USD per core hour")
    }

    /// For the brokers' cores and disks.
    fn broker_dollars(&self) -> f64 {
        let cores = self.i("broker cores") * 730.0 * self.i("USD per core hour");
        let disk = self.i("broker disk") * 1000.0 * self.i("USD per GB month");
        self.brokers() * (cores + disk)
    }

    /// For what crosses zones: all replication, and two thirds of the rest.
    fn traffic_dollars(&self) -> f64 {
        let clients = (self.ingress() + self.egress()) * 2.0 / 3.0;
        let gigabytes = (self.replication() + clients) / 1000.0 * 86_400.0 * 30.0;
        gigabytes * self.i("USD per GB between zones")
    }

    const RESULTS: [Result; 25] = [
        ("commands/s", Self::commands, Unit::Number),
        ("requests/s", Self::requests, Unit::Number),
        ("requests in flight", Self::in_flight, Unit::Number),
        ("moves/s out of retry topics", Self::moves, Unit::Number),
        (
            "records/s written by hookstream",
            Self::written,
            Unit::Number,
        ),
        (
            "partitions of `webhook-commands`",
            Self::partitions,
            Unit::Number,
        ),
        ("fanout: cores", Self::fanout_cores, Unit::Cores),
        (
            "fanout: replicas",
            |all| all.replicas(all.fanout_cores(), 1.0, 2.0),
            Unit::Number,
        ),
        (
            "fanout: memory of a replica",
            Self::fanout_memory,
            Unit::Mebibytes,
        ),
        ("deliver: cores", Self::deliver_cores, Unit::Cores),
        ("deliver: replicas", Self::deliver_replicas, Unit::Number),
        (
            "deliver: memory of a replica",
            Self::deliver_memory,
            Unit::Mebibytes,
        ),
        ("release: cores", Self::release_cores, Unit::Cores),
        (
            "release: replicas",
            |all| {
                whole(
                    all.moves() / (all.c("release_rate") * all.i("utilization")),
                    2.0,
                )
            },
            Unit::Number,
        ),
        ("lag: cores of each replica", Self::lag_cores, Unit::Cores),
        (
            "installations, each with its own prefixes",
            Self::installations,
            Unit::Number,
        ),
        (
            "Kafka: cores of all brokers",
            Self::kafka_cores,
            Unit::Cores,
        ),
        ("Kafka: from producers", Self::ingress, Unit::Megabytes),
        ("Kafka: between brokers", Self::replication, Unit::Megabytes),
        ("Kafka: to consumers", Self::egress, Unit::Megabytes),
        ("Kafka: disk of all brokers", Self::disk, Unit::Terabytes),
        ("Kafka: brokers", Self::brokers, Unit::Number),
        (
            "month: cores of hookstream",
            Self::hookstream_dollars,
            Unit::Dollars,
        ),
        (
            "month: cores and disks of Kafka",
            Self::broker_dollars,
            Unit::Dollars,
        ),
        (
            "month: traffic between zones",
            Self::traffic_dollars,
            Unit::Dollars,
        ),
    ];
}

/// The constants, those that the last run of the bench measured from its report.
fn measured(constants: &str) -> String {
    let report = Path::new(ROOT).join("target/bench/bench.json");
    let report = std::fs::read_to_string(report).unwrap_or_else(|_| "{}".to_owned());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let renewed = constants.lines().map(|line| {
        let mut cells: Vec<String> = line.split(" | ").map(str::to_owned).collect();
        let measure = cells.last().unwrap().trim_end_matches(" |").to_owned();
        if let Some(figure) = report[measure.as_str()]["figure"].as_f64() {
            cells[1] = match figure {
                many if many >= 1000.0 => grouped((many / 100.0).round() * 100.0),
                some if some >= 100.0 => format!("{some:.0}"),
                few if few >= 10.0 => format!("{few:.1}"),
                little => format!("{little:.2}"),
            };
            cells[4] = "this measure".to_owned();
        }
        cells.join(" | ") + "\n"
    });
    renewed.collect()
}

fn results(guide: &str) -> String {
    let examples: Vec<Sizing> = (1..=3)
        .map(|column| Sizing {
            constants: Numbers::read(section(guide, "constants"), 1),
            inputs: Numbers::read(section(guide, "inputs"), column),
        })
        .collect();
    let mut table = "| result | 100/s | 10,000/s | 1,000,000/s |\n|---|---|---|---|\n".to_owned();
    for (name, compute, unit) in &Sizing::RESULTS {
        let cells: Vec<String> = examples
            .iter()
            .map(|example| unit.show(compute(example)))
            .collect();
        table.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    table
}

#[test]
fn the_worked_examples_follow_from_the_measured_constants() {
    let mut guide = text("docs/sizing.md");
    if std::env::var_os("UPDATE_SIZING").is_some() {
        for (name, make) in [
            (
                "constants",
                (|guide| measured(section(guide, "constants"))) as fn(&str) -> String,
            ),
            ("rest", |guide| measured(section(guide, "rest"))),
            ("results", results),
        ] {
            let renewed = make(&guide);
            let begin = format!("<!-- {name}:begin -->\n");
            let (before, rest) = guide.split_once(&begin).unwrap();
            let (_, after) = rest.split_once(&format!("<!-- {name}:end -->")).unwrap();
            guide = format!("{before}{begin}{renewed}<!-- {name}:end -->{after}");
        }
        std::fs::write(Path::new(ROOT).join("docs/sizing.md"), guide).unwrap();
        return;
    }
    assert_eq!(
        section(&guide, "results"),
        results(&guide),
        "UPDATE_SIZING=1 cargo test --test it the_worked_examples renews it"
    );
}
