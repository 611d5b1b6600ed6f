//! What operators look at: rules that fire when they should, metrics that Prometheus takes, dashboards whose every query
//! has an answer.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{LATER, event, put, subscription, with};
use crate::skipped::have;
use crate::support::{Answer, Receiver, World, eventually, eventually_true};

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

/// A series or labels as Prometheus writes them, with two more labels.
fn of_installation(series: &str, namespace: &str) -> String {
    let both = format!(r#"namespace="{namespace}",job="hookstream""#);
    match series.split_once('{') {
        Some((name, rest)) => format!("{name}{{{both},{rest}"),
        None => format!("{series}{{{both}}}"),
    }
}

/// The tests of the rules, with each installation twice in one Prometheus: each alert fires for both, with the figures of one.
#[test]
fn two_installations_in_one_prometheus_do_not_mix() {
    let rules = std::fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap();
    for line in rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        for over in ["sum", "max", "min", "count", "avg", "group"] {
            for (at, _) in line.match_indices(&format!("{over}(")) {
                let is_word = line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
                assert!(is_word, "aggregated over all installations: {line}");
            }
        }
        for word in ["by (", "on("] {
            for (at, _) in line.match_indices(word) {
                let labels = &line[at + word.len()..];
                assert!(labels.starts_with("namespace, job"), "{line}");
            }
        }
    }
    if !have("promtool") {
        return;
    }
    let mut twice = yaml("prometheus/rules_test.yaml");
    twice["rule_files"] = json!([deploy("prometheus/rules.yaml")]);
    let mut fired = 0;
    for test in twice["tests"].as_array_mut().unwrap() {
        let series = test["input_series"].as_array().unwrap().clone();
        let is_told_apart = series
            .iter()
            .any(|one| one["series"].as_str().unwrap().contains("namespace="));
        if is_told_apart || series.is_empty() {
            continue;
        }
        let both = ["bank", "shop"].iter().flat_map(|namespace| {
            series.iter().map(move |one| {
                let name = of_installation(one["series"].as_str().unwrap(), namespace);
                json!({"series": name, "values": one["values"]})
            })
        });
        test["input_series"] = both.collect();
        for case in test["alert_rule_test"].as_array_mut().unwrap() {
            let expected = case["exp_alerts"].as_array().unwrap().clone();
            let both = ["bank", "shop"].iter().flat_map(|namespace| {
                expected.iter().map(move |alert| {
                    let mut alert = alert.clone();
                    alert["exp_labels"]["namespace"] = json!(namespace);
                    alert["exp_labels"]["job"] = json!("hookstream");
                    alert
                })
            });
            fired += expected.len();
            case["exp_alerts"] = both.collect();
        }
    }
    assert!(fired > 30, "{fired}");
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), twice.to_string()).unwrap();
    let promtool = &mut Command::new("promtool");
    check(promtool.args(["test", "rules"]).arg(file.path()), "").unwrap();
}

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(deploy(path)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn every_alert_says_what_it_is_is_tested_both_ways_and_has_a_section_in_the_runbook() {
    let rules = yaml("prometheus/rules.yaml");
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    let alerts: Vec<&Value> = rules
        .iter()
        .filter(|rule| rule["alert"].is_string())
        .collect();
    assert!(alerts.len() > 10);
    let files = [
        "prometheus/rules_test.yaml",
        "prometheus/rules_days_test.yaml",
    ]
    .map(yaml);
    let tests = files
        .iter()
        .flat_map(|file| file["tests"].as_array().unwrap());
    let cases: Vec<&Value> = tests
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
        .collect();
    let runbook = std::fs::read_to_string(deploy("../docs/runbook.md")).unwrap();
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        let fires: BTreeSet<bool> = cases
            .iter()
            .filter(|case| case["alertname"] == name)
            .map(|case| !case["exp_alerts"].as_array().unwrap().is_empty())
            .collect();
        assert_eq!(
            fires,
            BTreeSet::from([false, true]),
            "{name}, fires: tested"
        );
        let severity = alert["labels"]["severity"].as_str();
        assert!(
            matches!(severity, Some("critical" | "warning")),
            "{name}: {severity:?}"
        );
        let annotations = &alert["annotations"];
        assert!(annotations["summary"].is_string(), "{name}");
        let fired = cases.iter().filter(|case| case["alertname"] == name);
        for fired in fired.flat_map(|case| case["exp_alerts"].as_array().unwrap()) {
            let summary = fired["exp_annotations"]["summary"].as_str().unwrap();
            let whose = fired["exp_labels"]["subscriber"].as_str().unwrap_or("");
            assert!(
                summary.contains(whose),
                "{name} names the subscriber: {summary}"
            );
        }
        assert!(
            runbook.contains(&format!("\n## {name}\n")),
            "{name} has no section"
        );
        let link = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(annotations["runbook_url"], link, "{name}");
    }
}

#[test]
fn the_config_map_has_every_dashboard() {
    let told = yaml("grafana/kustomization.yaml");
    let told = told["configMapGenerator"][0]["files"]
        .as_array()
        .unwrap()
        .clone();
    let told: BTreeSet<String> = told
        .iter()
        .map(|file| file.as_str().unwrap().to_owned())
        .collect();
    let files = std::fs::read_dir(deploy("grafana")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let dashboards = files.filter(|name| name.ends_with(".json"));
    assert_eq!(told, dashboards.collect());
}

#[test]
fn every_metric_of_an_alert_has_a_panel() {
    let metrics = |text: &str| -> BTreeSet<String> {
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let words = text
            .split(word)
            .filter(|word| word.starts_with("hookstream_"));
        let base = |word: &str| {
            let ends = ["_bucket", "_count", "_sum"];
            let cut = ends.iter().find_map(|end| word.strip_suffix(end));
            cut.unwrap_or(word).to_owned()
        };
        words.map(base).collect()
    };
    let rules = yaml("prometheus/rules.yaml");
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let asked: BTreeSet<String> = rules
        .flat_map(|rule| metrics(rule["expr"].as_str().unwrap()))
        .collect();
    assert!(asked.len() > 15, "{asked:?}");
    let shown: BTreeSet<String> = ["overview", "subscriber"]
        .iter()
        .flat_map(|name| queries(&dashboard(name)))
        .flat_map(|query| metrics(&query))
        .collect();
    let without: Vec<_> = asked.difference(&shown).collect();
    assert!(without.is_empty(), "alerts without a panel: {without:?}");
}

/// What Grafana's dashboard linter asks for, and that one dashboard leads to the other.
#[test]
fn the_dashboards_follow_the_rules_of_the_linter_and_lead_to_each_other() {
    for (name, other) in [("overview", "subscriber"), ("subscriber", "overview")] {
        let dashboard = dashboard(name);
        assert_eq!(dashboard["editable"], false, "{name}: it is provisioned");
        let url = format!("/d/hookstream-{other}");
        assert_eq!(dashboard["links"][0]["url"], url, "{name}");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let variable = |name: &str| variables.iter().find(|one| one["name"] == name).unwrap();
        assert_eq!(variable("datasource")["label"], "Data source");
        for (id, all) in [("namespace", ".*"), ("job", ".+"), ("instance", ".+")] {
            let one = variable(id);
            assert_eq!(one["allValue"], all, "{name}: {id}");
            assert!(
                one["multi"] == true && one["includeAll"] == true,
                "{name}: {one}"
            );
        }
        if name == "subscriber" {
            variable("subscriber");
        }
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {panel}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(defaults["thresholds"]["steps"].is_array(), "{panel}");
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                let selector = r#"{namespace=~"$namespace",job=~"$job",instance=~"$instance""#;
                let metrics = query.matches("hookstream_").count();
                assert_eq!(query.matches(selector).count(), metrics, "{query}");
                assert!(
                    !query.contains("rate(") || query.contains("[$__rate_interval]"),
                    "{query}"
                );
                assert!(target["legendFormat"].is_string(), "{query}");
            }
        }
    }
}

fn dashboard(name: &str) -> Value {
    let text = std::fs::read_to_string(deploy(&format!("grafana/{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
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
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: hookstream\n  static_configs: [{{targets: ['127.0.0.1:{target}'], labels: {{namespace: shop}}}}]\n"
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
    let filled = targets.map(|target| filled(target, "failing"));
    filled.collect()
}

fn filled(target: &Value, subscriber: &str) -> String {
    let query = target["expr"].as_str().unwrap();
    [
        ("$namespace", "shop"),
        ("$job", ".+"),
        ("$instance", ".+"),
        ("$subscriber", subscriber),
        ("$__rate_interval", "30s"),
    ]
    .iter()
    .fold(query.to_owned(), |query, (name, value)| {
        query.replace(name, value)
    })
}

/// Each replica of the lag role tells all; and one of them may show a subscriber that the other has among the rest.
#[test]
fn panels_count_two_replicas_of_the_lag_role_once_and_a_name_is_no_pattern() {
    if !have("promtool") {
        return;
    }
    let series = |metric: &str, more: &str, subscriber: &str, instance: &str, values: &str| {
        let labels = format!(
            r#"{more}subscriber="{subscriber}",instance="{instance}",namespace="shop",job="hookstream""#
        );
        json!({"series": format!("{metric}{{{labels}}}"), "values": values})
    };
    let lag = "hookstream_subscriber_lag";
    let dead = "hookstream_subscriber_dead_letters";
    let mut input = Vec::new();
    for replica in ["a", "b"] {
        let labels = format!(r#"instance="{replica}",namespace="shop",job="hookstream""#);
        let waiting = [("0", "5x20"), ("1", "7x20")];
        input.extend(waiting.map(|(partition, values)| {
            let whose = format!(r#"topic="orders",partition="{partition}""#);
            json!({"series": format!("hookstream_event_lag{{{whose},{labels}}}"), "values": values})
        }));
    }
    for (replica, second) in [("a", "a-b"), ("b", "corp")] {
        // The first grows by one a second.
        let shown = [("a.b", "0+60x20"), (second, "700x20"), ("_other", "9x20")];
        for (subscriber, values) in shown {
            input.push(series(
                lag,
                r#"state="ready","#,
                subscriber,
                replica,
                values,
            ));
            input.push(series(dead, "", subscriber, replica, values));
        }
    }
    let cases = [
        ("overview", "Pending commands", r#"{state="ready"}"#, 1309.0),
        ("overview", "Open dead letters", "{}", 1309.0),
        ("overview", "Pending", "{}", 1309.0),
        ("overview", "Events not fanned out", "{}", 12.0),
        (
            "overview",
            "Events waiting for fan-out",
            r#"{topic="orders"}"#,
            12.0,
        ),
        (
            "subscriber",
            "Pending commands",
            r#"{state="ready"}"#,
            600.0,
        ),
        ("subscriber", "Backlog change", "{}", 1.0),
        ("subscriber", "Open dead letters", "{}", 600.0),
    ];
    let cases = cases.map(|(name, title, labels, value)| {
        let dashboard = dashboard(name);
        let mut panels = dashboard["panels"].as_array().unwrap().iter();
        let panel = panels.find(|panel| panel["title"] == title).unwrap();
        let sample = json!({"labels": labels, "value": value});
        let query = filled(&panel["targets"][0], "a.b");
        json!({"expr": query, "eval_time": "10m", "exp_samples": [sample]})
    });
    let tests =
        json!({"tests": [{"interval": "1m", "input_series": input, "promql_expr_test": cases}]});
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), tests.to_string()).unwrap();
    let promtool = &mut Command::new("promtool");
    check(promtool.args(["test", "rules"]).arg(file.path()), "").unwrap();
}

#[test]
fn prometheus_takes_the_metrics_and_every_query_of_the_dashboards_has_an_answer() {
    if !have("promtool") || !have("prometheus") {
        return;
    }
    let mut world = World::new("observe");
    world.tiers = vec![Duration::from_secs(1), Duration::from_secs(3600)];
    // A breaker that opens, so that its series is there; spans and a log of attempts, so that theirs grow.
    let collector = Receiver::good();
    world.flags = [
        "--breaker-failures=3",
        "--breaker-probe=10m",
        "--attempt-log",
        "--trace-sample=1",
        &format!("--otlp-endpoint={}", collector.url("")),
    ]
    .map(str::to_owned)
    .to_vec();
    world.create_topics(2);
    world.create_topic(&world.topics.attempts(), 1, &[]);
    let receiver = Receiver::start(|seen| {
        Answer::status(match seen.path.as_str() {
            "/failing" => 500,
            "/refusing" => 400,
            _ => 200,
        })
    });
    // An estimate of the clock's skew takes three hosts whose responses have dates.
    let dated = [1, 2, 3].map(|host| {
        Receiver::start_at([127, 0, 0, host].into(), |_| {
            let now = httpdate::fmt_http_date(std::time::SystemTime::now());
            Answer::ok().header("date", &now)
        })
    });
    let one = |id: &str, url: String| {
        let fields = json!({"retry_schedule": ["1s", "1h"]});
        with(subscription(id, &url, &["**"]), fields)
    };
    let own = ["good", "failing", "refusing"].map(|id| one(id, receiver.url(&format!("/{id}"))));
    let dated_too = ["first", "second", "third"].iter().zip(&dated);
    let subscriptions: Vec<_> = dated_too
        .map(|(id, receiver)| one(id, receiver.url("/")))
        .chain(own)
        .collect();
    put(&world, &subscriptions);
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
    let mut asked = 0;
    for name in ["overview", "subscriber"] {
        let dashboard = dashboard(name);
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
            let query = format!(
                "group by ({label}) ({})",
                metric.replace("$job", ".+").replace("$namespace", "shop")
            );
            let found =
                eventually("Prometheus answers", LATER, || prometheus.series(&query)).unwrap();
            assert!(found > 0, "{name}: {definition}");
        }
    }
    assert!(asked > 20, "{asked} queries");
    for sample in [
        r#"hookstream_spans_total{result="exported"}"#,
        r#"hookstream_attempt_records_total{result="written"}"#,
    ] {
        eventually_true(sample, LATER, || process.metric(sample) > Some(0.0));
    }
}

#[test]
fn attempts_are_told_by_subscriber_and_class_and_one_that_begins_to_fail_gets_a_place() {
    let mut world = World::new("observe-classes");
    world.tiers = vec![Duration::from_secs(3600)];
    world.flags = vec!["--lag-top=2".to_owned()];
    world.create_topics(2);
    let receiver = Receiver::start(|seen| {
        Answer::status(match seen.path.as_str() {
            "/failing" => 500,
            "/refusing" => 400,
            _ => 200,
        })
    });
    let names = ["good", "failing", "refusing"];
    let subscriptions = names.map(|name| {
        with(
            subscription(name, &receiver.url(&format!("/{name}")), &[name]),
            json!({"retry_schedule": ["1h"]}),
        )
    });
    put(&world, &subscriptions);
    let process = world.spawn("run", &[]);
    process.wait_ready();
    let mut numbers = 0..;
    let mut produce = |event_type: &str, count: usize| {
        let numbers = numbers.by_ref().take(count);
        world.produce_events(numbers.map(|number| {
            (
                format!("k{number}"),
                event(&format!("e{number}"), event_type, "{}"),
            )
        }));
    };
    let told = |name: &str, class: &str| {
        process.metric(&format!(
            r#"hookstream_subscriber_attempts_total{{class="{class}",subscriber="{name}"}}"#
        ))
    };
    produce("good", 7);
    eventually_true("the healthy one's attempts", LATER, || {
        told("good", "2xx") == Some(7.0)
    });
    produce("failing", 3);
    eventually_true("the failing one's attempts", LATER, || {
        told("failing", "5xx") == Some(3.0)
    });
    assert_eq!(told("failing", "2xx"), Some(0.0));
    assert_eq!(told("good", "5xx"), Some(0.0));
    assert_eq!(told("good", "2xx"), Some(7.0));
    assert_eq!(told("_other", "2xx"), Some(0.0));
    produce("refusing", 1);
    eventually_true("the third, which fails, has a place", LATER, || {
        told("refusing", "4xx") == Some(1.0)
    });
    assert_eq!(told("good", "2xx"), None, "its place is taken");
    assert_eq!(told("failing", "5xx"), Some(3.0));
    produce("good", 5);
    eventually_true("the rest is summed up", LATER, || {
        told("_other", "2xx") == Some(5.0)
    });
    assert_eq!(receiver.seen().len(), 16, "each request is told once");
    let given_away = with(subscriptions[2].clone(), json!({"subscriber": "heir"}));
    world.delete_subscription("refusing");
    put(&world, &[given_away]);
    eventually_true("the heir's attempts, among the rest", LATER, || {
        produce("refusing", 1);
        told("_other", "4xx") > Some(0.0)
    });
}

#[test]
fn prometheus_takes_the_metrics_of_each_role() {
    if !have("promtool") {
        return;
    }
    let world = World::new("observe-roles");
    world.create_topics(2);
    let receiver = Receiver::start(|_| Answer::status(400));
    put(
        &world,
        &[subscription("acme", &receiver.url("/refuse"), &["**"])],
    );
    let roles = ["fanout", "deliver", "release", "lag"].map(|role| (role, world.spawn(role, &[])));
    roles.iter().for_each(|(_, process)| process.wait_ready());
    world.produce_event("k", &[], event("e", "a.b", "{}"));
    let (_, lag) = &roles[3];
    eventually_true("the lag role tells of a dead letter", LATER, || {
        lag.metric(r#"hookstream_subscriber_dead_letters{subscriber="acme"}"#) == Some(1.0)
    });
    for (role, process) in &roles {
        let (_, metrics) = process.get("/metrics");
        let told = check(
            Command::new("promtool").args(["check", "metrics"]),
            &metrics,
        );
        assert_eq!(told, Ok(()), "{role}");
        let ready = format!(r#"hookstream_role_ready{{role="{role}"}} 1"#);
        assert!(metrics.contains(&ready), "{role}");
    }
}
