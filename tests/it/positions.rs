//! `positions show` and `set`.

use serde_json::Value;

use crate::scene::{LATER, event, put, start, subscription, wait_until_done, world};
use crate::support::{Receiver, World};

#[track_caller]
fn rows(world: &World, command: &[&str]) -> Vec<Value> {
    let output = world.run(&[command, &["-o", "json"]].concat(), "");
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[track_caller]
fn refused(world: &World, command: &[&str], code: i32, part: &str) {
    let output = world.run(command, "");
    assert_eq!(output.code, code, "{}", output.stderr);
    assert!(output.stderr.contains(part), "{}", output.stderr);
}

fn fanout(world: &World) -> Option<i64> {
    let committed = world.committed("fanout", &world.events);
    committed.first().map(|(_, position, _)| *position)
}

#[test]
fn positions_are_shown_and_set_only_while_the_group_has_no_members() {
    let world = world("positions-set");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let publish = |id: &str| world.produce_event(id, &[], event(id, "a", "{}"));
    let events = world.events.clone();
    for id in ["1", "2", "3"] {
        publish(id);
    }
    let set = |to| ["positions", "set", &events, "--to", to, "--yes"];

    let mut roles = start(&world, &[]);
    receiver.wait_for(3, LATER);
    wait_until_done(&world);
    refused(&world, &set("earliest"), 1, "has members");
    roles.sigterm();
    assert!(roles.wait_exit(LATER).success());
    let end = fanout(&world).unwrap();

    let shown = rows(&world, &["positions", "show"]);
    let of_events = shown.iter().find(|row| row["topic"] == *events).unwrap();
    assert_eq!(of_events["group"], format!("{}fanout", world.prefix));
    assert_eq!(
        (&of_events["position"], &of_events["behind"]),
        (&Value::from(end), &Value::from(0))
    );
    assert!(
        shown
            .iter()
            .any(|row| row["topic"] == world.topics.commands())
    );

    let elsewhere = ["positions", "set", "elsewhere", "--to", "now", "--yes"];
    refused(&world, &elsewhere, 2, "is read by no group");
    refused(&world, &set("99"), 2, "offset 99 is outside");
    let partition = format!("{events}:7");
    let none = ["positions", "set", &partition, "--to", "now", "--yes"];
    refused(&world, &none, 2, "has no partition 7");
    let unconfirmed = ["positions", "set", &events, "--to", "now"];
    refused(&world, &unconfirmed, 2, "--yes");
    let preview = rows(
        &world,
        &["positions", "set", &events, "--to", "earliest", "--dry-run"],
    );
    assert_eq!(preview[0]["repeated"], end);
    assert_eq!(fanout(&world), Some(end), "a preview commits nothing");

    // Skipped: the fourth event is behind the position.
    publish("4");
    let moved = rows(&world, &set("now"));
    assert_eq!(
        (&moved[0]["skipped"], &moved[0]["repeated"]),
        (&Value::from(1), &Value::from(0))
    );
    publish("5");
    let mut roles = start(&world, &[]);
    receiver.wait_for(4, LATER);
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 4, "the fourth event was skipped");
    roles.sigterm();
    assert!(roles.wait_exit(LATER).success());

    // Repeated, with the same ids.
    let moved = rows(&world, &set("0"));
    assert_eq!(moved[0]["before"], moved[0]["repeated"]);
    let _roles = start(&world, &[]);
    let seen = receiver.wait_for(9, LATER);
    let ids: std::collections::BTreeSet<&str> = seen.iter().map(|seen| seen.webhook_id()).collect();
    assert_eq!(ids.len(), 5, "five events, four of them twice");
}
