//! `hookstream demo` as a newcomer runs it; its exit code shows whether every delivery was correct.

use std::time::Duration;

use crate::support::{Isolation, Output, Process, SOON, World, run_to_end};

fn assert_right(output: &Output) {
    assert_eq!(output.code, 0, "{}\n{}", output.stdout, output.stderr);
    for line in [
        "all orders sent",
        "strict is fixed",
        "ok  160 events became",
        "each with a valid signature",
        "flaky accepted 53 at the third attempt each: same webhook id, same body",
        "strict refused 54: dead letters, replayed after the fix, none left",
    ] {
        assert!(
            output.stdout.contains(line),
            "{line:?} is missing in\n{}",
            output.stdout
        );
    }
    assert_eq!(
        output.stderr, "",
        "the view is not to be drowned by the log"
    );
    let colours = output.stdout.contains('\u{1b}');
    assert!(!colours, "what is no terminal gets plain lines");
}

#[test]
fn the_demo_runs_with_nothing_installed() {
    let output = run_to_end(&["demo", "--duration", "8s"], "");
    assert_right(&output);
    assert!(output.stdout.contains("embedded in this process"));
    assert!(output.stdout.contains("The same on a real Kafka"));
}

#[test]
fn the_demo_runs_on_a_real_kafka() {
    let world = World::new("demo");
    let output = run_to_end(
        &[
            "demo",
            "--duration",
            "8s",
            "--brokers",
            &world.brokers,
            "--topic-prefix",
            &world.prefix,
        ],
        "",
    );
    assert_right(&output);
    assert!(output.stdout.contains("exactly-once"));
    assert!(
        output.stdout.contains("--delete --topic"),
        "it says how to clean up"
    );
    let facts = world.read_all(&world.topics.dead_letters(), Isolation::Committed);
    assert_eq!(
        facts.len(),
        2 * 54,
        "each dead letter is in Kafka, and that it was replayed"
    );
}

#[test]
fn an_interrupted_demo_shuts_down_in_order() {
    let mut demo = Process::spawn(&["demo", "--duration", "5m"]);
    crate::support::eventually_true("orders are sent", SOON, || {
        demo.stdout()
            .iter()
            .any(|line| line.contains("sending orders"))
    });
    demo.signal("INT");
    assert_eq!(demo.wait_exit(Duration::from_secs(15)).code(), Some(130));
}

#[test]
fn settings_unsupported_by_the_embedded_broker_are_refused() {
    for (flags, part) in [
        (["--guarantee", "exactly-once"], "support transactions"),
        (["--rate", "0"], "--rate"),
        (["--duration", "11m"], "1s to 10m"),
    ] {
        let output = run_to_end(&["demo", flags[0], flags[1]], "");
        assert_eq!(output.code, 2, "{flags:?}: {}", output.stderr);
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
    let output = run_to_end(&["demo", "--rate", "200", "--duration", "10m"], "");
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(output.stderr.contains("12000 events"), "{}", output.stderr);
}
