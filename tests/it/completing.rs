//! Shell completions, as a shell asks for them: names from Kafka, quickly, and silently where there is no answer.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::scene::{put, subscription, with, world};

/// What a bash that has sourced the script offers for the last of these words.
fn complete(words: &[&str], environment: &[(&str, &str)]) -> Output {
    const SCRIPT: &str = r#"
        source <(hookstream completions bash)
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
        _clap_complete_hookstream hookstream "${!#}" x
        printf '%s\n' "${COMPREPLY[@]}""#;
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_hookstream"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    Command::new("bash")
        .args(["-c", SCRIPT, "bash", "hookstream"])
        .args(words)
        .env("PATH", path)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn offered(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // That bash has no line to edit is the test's doing.
    assert!(
        stderr.lines().all(|line| line.contains("compopt")),
        "{stderr}"
    );
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_shell_completes_ids_of_subscriptions_and_names_of_subscribers() {
    let world = world("completing");
    let one = |id: &str, owner: &str| {
        let fields = serde_json::json!({"subscriber": owner});
        with(subscription(id, "https://example.com/", &["**"]), fields)
    };
    put(
        &world,
        &[
            one("acme-orders", "acme"),
            one("acme-bills", "acme"),
            one("beta-orders", "beta"),
        ],
    );
    // From the environment, as most have it.
    let args = world.args();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag).unwrap();
        args[at + 1].clone()
    };
    let (brokers, prefix) = (value("--brokers"), value("--topic-prefix"));
    let environment = [
        ("HOOKSTREAM_BROKERS", &*brokers),
        ("HOOKSTREAM_TOPIC_PREFIX", &*prefix),
    ];
    let completed = |words: &[&str]| offered(&complete(words, &environment));
    assert_eq!(
        completed(&["subscriptions", "show", "acme"]),
        ["acme-bills", "acme-orders"]
    );
    assert_eq!(
        completed(&["subscriptions", "pause", "acme-bills", "b"]),
        ["beta-orders"]
    );
    assert_eq!(
        completed(&["replay", "--dead-letters", "--subscriber", ""]),
        ["acme", "beta"]
    );
    assert_eq!(
        completed(&["dead-letters", "list", "--reason", "ex"]),
        ["expired"]
    );
    assert_eq!(completed(&["dead-letters", "exp"]), ["export"]);
    // From the line.
    let line = ["--brokers", &brokers, "--topic-prefix", &prefix];
    let line = [&line[..], &["subscriptions", "show", "beta"]].concat();
    assert_eq!(offered(&complete(&line, &[])), ["beta-orders"]);
}

#[test]
fn without_an_answer_a_shell_waits_a_second_and_sees_no_message() {
    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs = silent.local_addr().unwrap().to_string();
    for brokers in [&*hangs, "127.0.0.1:1", "", "no such host:x"] {
        let begun = Instant::now();
        let environment = [("HOOKSTREAM_BROKERS", brokers)];
        let output = complete(&["subscriptions", "show", "a"], &environment);
        let took = begun.elapsed();
        assert_eq!(offered(&output), [""], "{brokers}");
        // Two starts of a debug build beside a shell, and the second.
        assert!(took < Duration::from_secs(4), "{brokers}: {took:?}");
    }
    let begun = Instant::now();
    let environment = [("HOOKSTREAM_BROKERS", &*hangs)];
    let output = complete(&["subscriptions", "show", "--out"], &environment);
    assert_eq!(offered(&output), ["--output"], "a flag needs no broker");
    assert!(begun.elapsed() < Duration::from_secs(3));
}
