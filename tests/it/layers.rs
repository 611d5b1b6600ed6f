//! `scripts/layers`: the imports of the sources as they are, and faults planted in made-up ones.

use std::path::Path;
use std::process::Command;

/// Runs the check on sources of these files. Returns whether it passed, and what it printed.
fn check(files: &[(&str, &str)]) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    run(directory.path())
}

fn run(sources: &Path) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("scripts/layers"))
        .arg(sources)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

const SOUND: [(&str, &str); 5] = [
    (
        "lib.rs",
        "pub mod model;\npub mod edge;\npub mod delivery;\n",
    ),
    ("model.rs", "pub mod event;\npub mod units;\n"),
    ("model/event.rs", "use super::units::Offset;\n"),
    (
        "model/units.rs",
        "// use crate::edge::kafka;\nconst TEXT: &str = \"crate::edge\";\n#[cfg(test)]\nmod tests {\n    use crate::edge::kafka;\n}\n",
    ),
    (
        "edge/kafka.rs",
        "use crate::model::{event::Event, units::{self, Offset}};\n",
    ),
];

fn with(fault: (&str, &str)) -> (bool, String) {
    let files: Vec<_> = SOUND
        .into_iter()
        .filter(|(name, _)| *name != fault.0)
        .chain([fault])
        .collect();
    check(&files)
}

#[test]
fn the_sources_import_downwards_only() {
    let (passed, text) = run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(passed, "{text}");
    let (passed, text) = check(&SOUND);
    assert!(passed, "{text}");
}

#[test]
fn a_planted_import_that_goes_up_is_found_however_it_is_written() {
    for import in [
        "use crate::edge::kafka;",
        "use crate::{edge::kafka, model::event};",
        "use super::super::edge::kafka as other;",
        "fn f() { crate::edge::kafka::connect(); }",
        "type T = Vec<super::super::edge::kafka::Record>;",
    ] {
        let (passed, text) = with(("model/units.rs", import));
        assert!(!passed, "{import} was not found");
        assert!(
            text.contains("src/model/units.rs imports src/edge/kafka.rs, of a higher layer"),
            "{import}: {text}"
        );
    }
}

#[test]
fn a_planted_import_of_another_stage_is_found() {
    let (passed, text) = check(&[
        ("lag/top.rs", ""),
        ("delivery/shown.rs", "use crate::lag::top::Top;\n"),
    ]);
    assert!(!passed);
    assert!(
        text.contains("src/delivery/shown.rs imports src/lag/top.rs, of another stage"),
        "{text}"
    );
}

#[test]
fn a_planted_cycle_is_found_between_siblings_and_between_parent_and_child() {
    for fault in [
        ("model/units.rs", "use crate::model::event::Event;\n"),
        ("model/units.rs", "fn f(e: &super::event::Event) {}\n"),
    ] {
        let (passed, text) = with(fault);
        assert!(!passed, "{fault:?}");
        assert!(
            text.contains("import one another: src/model/event.rs, src/model/units.rs"),
            "{text}"
        );
    }
    let (passed, text) = check(&[
        ("delivery.rs", "mod lane;\nuse lane::Lane;\n"),
        ("delivery/lane.rs", "use super::worker::Worker;\n"),
        ("delivery/worker.rs", "use super::Shared;\n"),
    ]);
    assert!(!passed);
    assert!(
        text.contains("src/delivery.rs, src/delivery/lane.rs, src/delivery/worker.rs"),
        "{text}"
    );
}

#[test]
fn a_file_of_no_layer_and_an_edge_of_the_pure_layer_are_found() {
    let (passed, text) = check(&[("helpers.rs", "")]);
    assert!(
        !passed && text.contains("src/helpers.rs belongs to no layer"),
        "{text}"
    );
    let (passed, text) = with(("model/units.rs", "use rdkafka::Message;\n"));
    assert!(!passed && text.contains("uses the crate rdkafka"), "{text}");
}

#[test]
fn a_client_or_a_thread_beside_the_port_is_found_in_the_roles() {
    let port = ("edge/port.rs", "pub trait Port {}\n");
    let client = ("edge/kafka/member.rs", "");
    for (text, used) in [
        ("use rdkafka::Message;\n", "rdkafka"),
        ("use std::{sync::Arc, thread};\n", "std::thread"),
        ("fn f() { std::thread::yield_now(); }\n", "std::thread"),
        (
            "use crate::edge::{kafka::member::Member, port::Port};\n",
            "edge::kafka::member",
        ),
        (
            "fn f(_: &crate::edge::kafka::member::Member) {}\n",
            "edge::kafka::member",
        ),
    ] {
        let (passed, found) = check(&[port, client, ("retry/moving.rs", text)]);
        let expected = format!("src/retry/moving.rs uses {used}: go through edge::port");
        assert!(!passed && found.contains(&expected), "{text}: {found}");
    }
    let sound = "use crate::edge::port::Port;\n";
    let (passed, found) = check(&[port, client, ("retry/moving.rs", sound)]);
    assert!(passed, "{found}");
}

#[test]
fn a_file_that_is_too_long_is_found_and_its_tests_do_not_count() {
    let line = "const A: u8 = 0;\n";
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(900));
    let (passed, text) = check(&[("model.rs", &(line.repeat(600) + &tests))]);
    assert!(passed, "{text}");
    let (passed, text) = check(&[("model.rs", &line.repeat(601))]);
    assert!(!passed && text.contains("has 601 lines"), "{text}");
}
