//! The simulated Kafka is believed as far as it agrees with a real one: the same scenarios are played on both, and what
//! the clients saw is compared, line by line.
//!
//! `step` is the vocabulary, `scenarios` what is compared, `real` plays it with librdkafka on `scripts/kafka`, `simulated`
//! with the clients of the simulation. The table of `docs/simulation.md` is generated from the scenarios
//! (`UPDATE_REFERENCE=1`).

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::it::support::Broker;
use scenarios::{Scenario, scenarios};
use step::play;

mod real;
mod scenarios;
mod simulated;
mod step;

/// The settings of the real broker that a scenario would otherwise have to wait for, or would hide.
const PROPERTIES: &str = "log.retention.check.interval.ms=300\nlog.cleaner.backoff.ms=300\n";

/// How many scenarios are played at a time.
const AT_A_TIME: usize = 8;

fn on_both(broker: &Broker, scenario: &Scenario) -> Result<(), String> {
    let real = play(
        &mut real::Real::new(&broker.address, scenario.name),
        scenario,
    );
    let simulated = simulate(scenario);
    if real == simulated {
        return Ok(());
    }
    let width = real
        .iter()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0);
    let lines = real.iter().zip(&simulated).map(|(real, simulated)| {
        let mark = if real == simulated { ' ' } else { '!' };
        format!("{mark} {real:width$}  | {simulated}")
    });
    let lines: Vec<_> = lines.collect();
    Err(format!(
        "{}: real | simulated\n{}",
        scenario.name,
        lines.join("\n")
    ))
}

fn simulate(scenario: &Scenario) -> Vec<String> {
    play(&mut simulated::Simulated::new(), scenario)
}

#[test]
fn clients_see_the_same_on_a_real_broker() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broker.properties");
    std::fs::write(&file, PROPERTIES).unwrap();
    let broker = Broker::with_options(&["--properties", file.to_str().unwrap()]);
    let only = std::env::var("SCENARIO").unwrap_or_default();
    let all = scenarios().into_iter();
    let mut all: Vec<_> = all
        .filter(|scenario| scenario.name.contains(&only))
        .collect();
    assert!(!all.is_empty(), "no scenario is called {only}");
    // The longest first.
    all.sort_by_key(|scenario| !scenario.is_slow);
    all.reverse();
    let (waiting, failed) = (Mutex::new(all), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop();
                    let Some(scenario) = next else { break };
                    if let Err(difference) = on_both(&broker, &scenario) {
                        failed.lock().unwrap().push(difference);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "\n{}", failed.join("\n\n"));
}

#[test]
fn a_scenario_is_played_the_same_way_each_time() {
    for scenario in scenarios() {
        assert_eq!(
            simulate(&scenario),
            simulate(&scenario),
            "{}",
            scenario.name
        );
    }
}

#[test]
fn the_documented_table_is_the_list_of_scenarios() {
    const BEGIN: &str = "<!-- scenarios: begin -->\n";
    const END: &str = "<!-- scenarios: end -->";
    let names: BTreeSet<_> = scenarios().iter().map(|scenario| scenario.name).collect();
    assert_eq!(names.len(), scenarios().len(), "names differ");
    let rows = scenarios().into_iter().flat_map(|scenario| {
        let name = scenario.name;
        let each = scenario.shows.iter();
        each.map(move |shown| format!("| {shown} | `{name}` |\n"))
            .collect::<Vec<_>>()
    });
    let table = format!(
        "| behaviour | scenario |\n|---|---|\n{}",
        rows.collect::<String>()
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/simulation.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (present, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        let text = format!("{before}{BEGIN}{table}{END}{after}");
        std::fs::write(path, text).unwrap();
        return;
    }
    assert_eq!(present, table, "run with UPDATE_REFERENCE=1");
}
