//! The README is true: its tour is run, its reference is the program's, and its tables leave nothing out.

use std::process::Command;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

fn readme() -> String {
    std::fs::read_to_string(README).unwrap()
}

/// The blocks that follow a marker, as one script.
fn tour(text: &str) -> String {
    text.split("<!-- tour -->\n```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// What the README says that the tour prints: the lines of the blocks that follow the scripts.
fn printed(text: &str) -> impl Iterator<Item = &str> {
    let scripts = text.split("<!-- tour -->\n```sh\n").skip(1);
    let behind = scripts.filter_map(|rest| rest.split_once("```").map(|(_, rest)| rest));
    let blocks = behind.filter_map(|rest| rest.strip_prefix("\n\n```\n"));
    blocks.flat_map(|rest| rest.split("```").next().unwrap().lines())
}

/// A line without what is another one each time: times and signatures.
fn lasting(line: &str) -> String {
    let part = |part: &str| match part.parse::<jiff::Timestamp>() {
        Ok(_) => "TIME".to_owned(),
        Err(_) => part.to_owned(),
    };
    let name = line.split(": ").next().unwrap();
    if matches!(name.trim(), "webhook-timestamp" | "webhook-signature") {
        return name.to_owned();
    }
    let quoted: Vec<String> = line.split('"').map(part).collect();
    let quoted = quoted.join("\"");
    let words: Vec<String> = quoted.split(' ').map(part).collect();
    words.join(" ")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn the_tour_of_the_readme_runs_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    let ports = [free_port(), free_port()].map(|port| port.to_string());
    let text = readme()
        .replace("/tmp/", &format!("{place}/"))
        .replace("18080", &ports[0])
        .replace("19400", &ports[1]);
    let script = tour(&text);
    assert!(script.lines().count() > 20, "the tour is found:\n{script}");
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_hookstream"))
        .parent()
        .unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    // Whatever happens, nothing that the tour starts outlives it.
    let script = format!(
        "set -euo pipefail\ntrap 'jobs -p | xargs -r kill 2>/dev/null || true; scripts/kafka stop --dir {place}/hookstream-tour || true' EXIT\n{script}"
    );
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PATH", path)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let log = std::fs::read_to_string(folder.path().join("hookstream.log")).unwrap_or_default();
    assert!(
        output.status.success(),
        "{}\n{out}\n{err}\n{log}",
        output.status
    );
    let told: Vec<String> = out.lines().chain(err.lines()).map(lasting).collect();
    let mut compared = 0;
    for line in printed(&text) {
        // What is left out stands behind an ellipsis.
        let (start, is_cut) = match line.split_once('…') {
            Some((start, _)) => (start, true),
            None => (line, false),
        };
        let start = lasting(start);
        let is_it = |told: &String| *told == start || is_cut && told.starts_with(&start);
        assert!(
            told.iter().any(is_it),
            "{line:?} is not printed:\n{out}\n{err}"
        );
        compared += 1;
    }
    assert!(compared > 25, "the README shows {compared} lines of output");
}

#[test]
fn the_reference_of_settings_is_the_programs() {
    const BEGIN: &str = "<!-- settings:begin -->\n";
    const END: &str = "<!-- settings:end -->";
    let text = readme();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (reference, after) = rest.split_once(END).unwrap();
    let current = hookstream::config::reference();
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(README, format!("{before}{BEGIN}{current}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        reference, current,
        "UPDATE_README=1 cargo test the_reference_of_settings renews it"
    );
}

#[test]
fn every_metric_is_explained() {
    let golden = include_str!("../data/metrics.golden");
    let text = readme();
    for name in golden.lines().filter_map(|line| line.split(' ').next()) {
        assert!(
            text.contains(&format!("`{name}")),
            "{name} is not in the README"
        );
    }
}
