//! What operators look at: rules that fire when they should, metrics that Prometheus takes, dashboards whose every query
//! has an answer.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{LATER, event, put, subscription, with};
use crate::support::{Answer, Receiver, World, eventually, eventually_true};

/// Whether a tool is there; a test without it looks at nothing, and says so.
pub fn have(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        println!("{tool} is missing (scripts/prerequisites test installs it): NOT CHECKED");
    }
    found
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

/// Runs a tool to its end; what it wrote, if it failed.
fn check(command: &mut Command, stdin: &str) -> Result<(), String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, which scripts/prerequisites installs");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&told).into_owned())
}

#[test]
fn the_rules_are_sound_and_each_alert_fires_when_it_should() {
    if !have("promtool") {
        return;
    }
    let promtool = || Command::new("promtool");
    check(
        promtool()
            .args(["check", "rules"])
            .arg(deploy("prometheus/rules.yaml")),
        "",
    )
    .unwrap();
    check(
        promtool()
            .args(["test", "rules"])
            .arg(deploy("prometheus/rules_test.yaml"))
            .arg(deploy("prometheus/rules_days_test.yaml")),
        "",
    )
    .unwrap();
}

#[test]
fn every_alert_is_tested_and_has_a_section_in_the_runbook() {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let (rules, mut tests) = (
        read(deploy("prometheus/rules.yaml")),
        read(deploy("prometheus/rules_test.yaml")),
    );
    tests += &read(deploy("prometheus/rules_days_test.yaml"));
    let runbook = read(deploy("../docs/runbook.md"));
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(
            tests.contains(&format!("alertname: {alert}\n")),
            "{alert} has no test"
        );
        assert!(
            runbook.contains(&format!("\n## {alert}\n")),
            "{alert} has no section"
        );
        assert!(
            rules.contains(&format!(
                "runbook_url: docs/runbook.md#{}",
                alert.to_lowercase()
            )),
            "{alert} has no link"
        );
    }
}

/// A Prometheus that scrapes one port; ends when dropped.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn scrape(target: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: hookstream\n  static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus, which scripts/prerequisites installs");
        Self {
            child,
            port,
            _dir: dir,
        }
    }

    /// How many series a query returns now.
    fn series(&self, query: &str) -> Option<Result<usize, String>> {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let (_, body) =
            crate::support::http_get(self.port, &format!("/api/v1/query?query={query}")).ok()?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        Some(match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().map_or(0, Vec::len)),
            _ => Err(answer["error"].to_string()),
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Every query of a dashboard's panels, with the variables filled in.
fn queries(dashboard: &Value) -> BTreeSet<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| {
        assert!(
            panel["title"].is_string()
                && panel["description"]
                    .as_str()
                    .is_some_and(|text| text.len() > 5),
            "{panel}"
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{panel}"
        );
        panel["targets"].as_array().unwrap()
    });
    let filled = targets.map(|target| {
        let query = target["expr"].as_str().unwrap();
        [
            ("$job", ".*"),
            ("$instance", ".*"),
            ("$subscriber", "failing"),
            ("$__rate_interval", "30s"),
        ]
        .iter()
        .fold(query.to_owned(), |query, (name, value)| {
            query.replace(name, value)
        })
    });
    filled.collect()
}

#[test]
fn prometheus_takes_the_metrics_and_every_query_of_the_dashboards_has_an_answer() {
    if !have("promtool") || !have("prometheus") {
        return;
    }
    let mut world = World::new("observe");
    world.tiers = vec![Duration::from_secs(1), Duration::from_secs(3600)];
    // A breaker that opens, so that its series is there.
    world.flags = ["--breaker-failures=3", "--breaker-probe=10m"]
        .map(str::to_owned)
        .to_vec();
    world.create_topics(2);
    let receiver = Receiver::start(|seen| {
        Answer::status(match seen.path.as_str() {
            "/failing" => 500,
            "/refusing" => 400,
            _ => 200,
        })
    });
    let one = |id: &str| {
        let fields = json!({"retry_schedule": ["1s", "1h"]});
        with(
            subscription(id, &receiver.url(&format!("/{id}")), &["**"]),
            fields,
        )
    };
    put(&world, &[one("good"), one("failing"), one("refusing")]);
    let process = world.spawn("run", &[]);
    process.wait_ready();
    let prometheus = Prometheus::scrape(process.http_port());
    let produce = |from: usize| {
        let events = (from..from + 10).map(|number| {
            (
                format!("k{number}"),
                event(&format!("e{number}"), "a.b", "{}"),
            )
        });
        world.produce_events(events);
    };
    produce(0);
    receiver.wait_for(20, LATER);
    let (_, metrics) = process.get("/metrics");
    check(
        Command::new("promtool").args(["check", "metrics"]),
        &metrics,
    )
    .unwrap();
    let mut asked = 0;
    for name in ["overview", "subscriber"] {
        let text = std::fs::read_to_string(deploy(&format!("grafana/{name}.json"))).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for query in queries(&dashboard) {
            asked += 1;
            let mut from = asked * 1000;
            eventually_true(&format!("{name}: {query}"), LATER, || {
                from += 10;
                produce(from);
                match eventually("Prometheus answers", LATER, || prometheus.series(&query)) {
                    Ok(series) => series > 0,
                    Err(error) => panic!("{name}: {query}: {error}"),
                }
            });
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let Some(definition) = variable["definition"].as_str() else {
                continue;
            };
            let (metric, label) = definition
                .strip_prefix("label_values(")
                .unwrap()
                .trim_end_matches(')')
                .rsplit_once(", ")
                .unwrap();
            let query = format!("group by ({label}) ({})", metric.replace("$job", ".*"));
            let found =
                eventually("Prometheus answers", LATER, || prometheus.series(&query)).unwrap();
            assert!(found > 0, "{name}: {definition}");
        }
    }
    assert!(asked > 20, "{asked} queries");
}
