//! The README is true and short: its tour runs as shown and prints what is shown.

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

/// The output of the tour as the README shows it: the lines of the blocks that follow the scripts.
fn printed(text: &str) -> impl Iterator<Item = &str> {
    let scripts = text.split("<!-- tour -->\n```sh\n").skip(1);
    let behind = scripts.filter_map(|rest| rest.split_once("```").map(|(_, rest)| rest));
    let blocks = behind.filter_map(|rest| rest.strip_prefix("\n\n```\n"));
    blocks.flat_map(|rest| rest.split("```").next().unwrap().lines())
}

/// A line without its times and signatures, which differ in each run.
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
    assert!(
        script.lines().count() > 20,
        "the tour is incomplete:\n{script}"
    );
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_hookstream"))
        .parent()
        .unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    // Nothing that the tour starts outlives it, even if it fails.
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
    let output: Vec<String> = out.lines().chain(err.lines()).map(lasting).collect();
    let mut compared = 0;
    for line in printed(&text) {
        // An ellipsis stands for the rest of a line.
        let (start, is_cut) = match line.split_once('…') {
            Some((start, _)) => (start, true),
            None => (line, false),
        };
        let start = lasting(start);
        let matches = |line: &String| *line == start || is_cut && line.starts_with(&start);
        assert!(
            output.iter().any(matches),
            "{line:?} is not printed:\n{out}\n{err}"
        );
        compared += 1;
    }
    assert!(compared > 25, "the README shows {compared} lines of output");
}

#[test]
fn the_readme_is_short_and_links_every_document() {
    let text = readme();
    let lines = text.lines().count();
    assert!(lines <= 250, "{lines} lines: move details to docs/");
    let docs = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
    for file in docs {
        let name = file.unwrap().file_name().into_string().unwrap();
        let link = format!("](docs/{name})");
        assert!(text.contains(&link), "the README does not link {name}");
    }
}
