//! What an operator does in an incident, on a real Kafka: looks at dead letters and sends one by hand, moves them, and
//! replays what was set aside.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::scene::{
    LATER, dead_letters, event, put, start, subscription, wait_for_dead_letters, wait_for_records,
    wait_until_done, with, world,
};
use crate::support::{Answer, Isolation, Output, Receiver, World, broker};

fn lines(output: &Output) -> Vec<Value> {
    assert_eq!(output.code, 0, "{}", output.stderr);
    let lines = output.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{}", output.stderr))
}

/// A world with `count` dead letters of the subscription `acme`, whose endpoint accepts from `accepts` on.
fn failed(name: &str, count: usize, fields: Value) -> (World, Receiver, Arc<AtomicBool>) {
    let world = world(name);
    let accepts = Arc::new(AtomicBool::new(false));
    let accepting = Arc::clone(&accepts);
    let receiver = Receiver::start(move |_| match accepting.load(Ordering::SeqCst) {
        true => Answer::ok(),
        false => Answer::status(400),
    });
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/"), &["**"]),
            fields,
        )],
    );
    let mut process = start(&world, &[]);
    let events = (0..count).map(|n| {
        (
            "k",
            event(&format!("e-{n}"), "order.created", "\"it's $5\""),
        )
    });
    world.produce_events(events);
    wait_for_dead_letters(&world, count);
    wait_until_done(&world);
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    (world, receiver, accepts)
}

#[test]
fn a_dead_letter_is_shown_with_a_script_that_sends_it_again() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let fields = json!({"secrets": [secret], "headers": {"x-api-key": "hidden"}});
    let (world, receiver, accepts) = failed("by-hand", 1, fields);
    let letters = dead_letters(&world);
    let place = letters[0]["place"].as_str().unwrap();
    let shown = world.run(&["dead-letters", "show", place, "-o", "json"], "");
    assert!(!shown.stdout.contains(secret) && !shown.stdout.contains("hidden"));
    let script = json_of(&shown)["curl"].as_str().unwrap().to_owned();
    let table = world.run(&["dead-letters", "show", place], "");
    assert!(table.stdout.contains(&script), "{}", table.stdout);

    accepts.store(true, Ordering::SeqCst);
    let sent = Command::new("sh")
        .args(["-ec", &script])
        .env("WEBHOOK_SECRET", secret)
        .env("HEADER_X_API_KEY", "hidden")
        .output()
        .unwrap();
    assert!(sent.status.success(), "{script}\n{sent:?}");
    let seen = receiver.seen();
    let (first, by_hand) = (&seen[0], &seen[1]);
    assert_eq!(
        (&by_hand.body, by_hand.webhook_id()),
        (&first.body, first.webhook_id())
    );
    let key = hookstream::delivery::signing::Signer::new([secret]).unwrap();
    let timestamp = by_hand.header("webhook-timestamp").unwrap();
    assert_eq!(
        by_hand.header("webhook-signature"),
        Some(
            key.sign(by_hand.webhook_id(), timestamp, &by_hand.body)
                .as_str()
        )
    );
    assert_eq!(by_hand.header("x-api-key"), Some("hidden"));
    assert_eq!(by_hand.header("content-type"), first.header("content-type"));

    let body = world.run(&["dead-letters", "show", place, "--body"], "");
    assert_eq!(body.stdout.as_bytes(), &first.body[..], "only the body");
}

#[test]
fn dead_letters_are_sorted_before_they_are_limited() {
    let (world, _receiver, _) = failed("sorted", 4, json!({}));
    let list = |flags: &[&str]| {
        let output = world.run(&[&["dead-letters", "list"], flags].concat(), "");
        assert_eq!(output.code, 0, "{}", output.stderr);
        output
    };
    let places = |flags: &[&str]| -> Vec<String> {
        let rows = json_of(&list(&[&["-o", "json"], flags].concat()));
        let rows = rows.as_array().unwrap().clone();
        rows.iter()
            .map(|row| row["place"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = places(&["--sort", "place"]);
    assert_eq!(all.len(), 4);
    let reversed: Vec<String> = all.iter().rev().cloned().collect();
    assert_eq!(places(&["--sort", "place", "--reverse"]), reversed);
    assert_eq!(
        places(&["--sort", "place", "--reverse", "--limit", "1"]),
        reversed[..1]
    );
    let table = list(&["--columns", "webhook_id,error", "--limit", "2"]);
    assert!(
        table.stdout.trim_start().starts_with("WEBHOOK ID"),
        "{}",
        table.stdout
    );
    assert!(
        table.stderr.contains("2 of 4 dead letters"),
        "{}",
        table.stderr
    );
    let wrong = world.run(&["dead-letters", "list", "--columns", "colour"], "");
    assert_eq!(wrong.code, 2);
}

#[test]
fn an_export_comes_back_once_and_is_sent_once() {
    let (world, receiver, accepts) = failed("round-trip", 3, json!({}));
    let export = world.run(&["dead-letters", "export"], "");
    let exported = lines(&export);
    assert_eq!(exported.len(), 3);
    // They come in the order of the responses.
    let before = dead_letters(&world);
    let origin = before.iter().find(|row| row["event_id"] == "e-0").unwrap();
    let origin = format!("another-cluster/{}", origin["place"].as_str().unwrap());
    let import = |text: &str, flags: &[&str]| {
        world.run(
            &[&["dead-letters", "import", "-f", "-", "-o", "json"], flags].concat(),
            text,
        )
    };
    // They are all there.
    let known = import(&export.stdout, &[]);
    assert_eq!(known.code, 0, "{}", known.stderr);
    assert_eq!(json_of(&known)["already_known"], 3);

    // One was replayed since.
    let one = world.run(&["replay", "--dead-letters", "--yes", "--limit", "1"], "");
    assert_eq!(one.code, 0, "{}", one.stderr);
    let known = import(&export.stdout, &[]);
    assert_eq!(
        json_of(&known)["already_known"],
        3,
        "what was replayed is not open again"
    );
    assert_eq!(dead_letters(&world).len(), 2);

    // Broken lines, and those of another cluster.
    let broken = import(&export.stdout.replace("webhook-id", "no-id"), &[]);
    assert_eq!(broken.code, 2, "{}", broken.stderr);
    assert!(
        broken.stderr.contains("line 1") && broken.stderr.contains("webhook-id"),
        "{}",
        broken.stderr
    );
    let foreign = export
        .stdout
        .replace(&world.cluster(), "another-cluster")
        .replace("e-", "f-")
        .replace("\"msg_", "\"msg_x");
    let refused = import(&foreign, &[]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("another-cluster"),
        "{}",
        refused.stderr
    );
    assert_eq!(dead_letters(&world).len(), 2, "nothing was written");
    let dry = import(&foreign, &["--from-other-cluster", "--dry-run"]);
    assert_eq!((dry.code, &json_of(&dry)["imported"]), (0, &json!(3)));
    assert_eq!(dead_letters(&world).len(), 2, "a dry run writes nothing");
    for imported in [3, 0] {
        let done = import(&foreign, &["--from-other-cluster"]);
        assert_eq!(
            (done.code, &json_of(&done)["imported"]),
            (0, &json!(imported)),
            "{}",
            done.stderr
        );
    }
    let letters = dead_letters(&world);
    assert_eq!(letters.len(), 5);
    let from = letters.iter().find(|row| row["event_id"] == "f-0").unwrap();
    let shown = json_of(&world.run(
        &[
            "dead-letters",
            "show",
            from["place"].as_str().unwrap(),
            "-o",
            "json",
        ],
        "",
    ));
    let header = |name: &str| {
        let headers = shown["headers"].as_array().unwrap();
        headers
            .iter()
            .find(|header| header["name"] == name)
            .map(|header| header["value"].clone())
    };
    assert_eq!(header("hs-imported"), Some(json!(origin)));
    assert_eq!(
        (&shown["attempts"], &shown["status"]),
        (&json!(1), &json!(400)),
        "its history is kept"
    );

    accepts.store(true, Ordering::SeqCst);
    let before = receiver.seen().len();
    let rest = world.run(&["replay", "--dead-letters", "--yes"], "");
    assert_eq!(rest.code, 0, "{}", rest.stderr);
    let _process = start(&world, &[]);
    wait_until_done(&world);
    let seen = receiver.seen();
    let ids: BTreeSet<&str> = seen[before..].iter().map(|one| one.webhook_id()).collect();
    assert_eq!((seen.len() - before, ids.len()), (6, 6), "each once");
}

#[test]
fn a_settled_dead_letter_is_imported_as_settled() {
    let (world, _receiver, _) = failed("settled", 2, json!({}));
    let discarded = world.run(&["dead-letters", "discard", "--yes", "--limit", "1"], "");
    assert_eq!(discarded.code, 0, "{}", discarded.stderr);
    let export = world.run(&["dead-letters", "export", "--all"], "");
    let states: BTreeSet<String> = lines(&export)
        .iter()
        .map(|line| line["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["discarded", "open"].map(str::to_owned).into());
    let target = world_of("settled-target");
    let import = ["dead-letters", "import", "-f", "-", "-o", "json"];
    let imported = target.run(&import, &export.stdout);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    let imported = json_of(&imported);
    assert_eq!(
        (&imported["imported"], &imported["imported_settled"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        dead_letters(&target).len(),
        1,
        "the discarded one is not open"
    );
}

fn world_of(name: &str) -> World {
    let world = World::on(broker(), name);
    world.create_topics(1);
    world
}

#[test]
fn what_was_set_aside_is_replayed_once_as_it_came() {
    let world = world("set-aside");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let process = start(&world, &[]);
    // The type is in another place than fan-out looks for it at first.
    world.produce_event(
        "k",
        &[("x", "1")],
        r#"{"id":"e-1","kind":"order.created","time":"2026-07-01T12:00:00Z","data":1}"#,
    );
    world.produce_event("k", &[], "no json");
    wait_for_records(&world, &world.topics.invalid_events(), 2);
    wait_until_done(&world);
    drop(process);

    let list = |flags: &[&str]| {
        lines(&world.run(
            &[&["invalid-events", "list", "-o", "jsonl"], flags].concat(),
            "",
        ))
    };
    assert_eq!(list(&[]).len(), 2);
    assert_eq!(
        list(&["--error-contains", "TYPE"]).len(),
        1,
        "{:?}",
        list(&[])
    );
    assert_eq!(list(&["--topic", "other"]).len(), 0);
    let typeless = &list(&["--error-contains", "type"])[0];
    assert_eq!(
        (&typeless["topic"], &typeless["state"]),
        (&json!(world.events), &json!("open"))
    );
    let place = typeless["place"].as_str().unwrap().to_owned();
    let shown = json_of(&world.run(&["invalid-events", "show", &place, "-o", "json"], ""));
    assert!(shown["value"].as_str().unwrap().contains("e-1"));
    assert_eq!(shown["headers"][0], json!({"name": "x", "value": "1"}));
    assert_eq!(world.run(&["invalid-events", "show", "0:99"], "").code, 1);

    let asked = world.run(&["invalid-events", "replay"], "");
    assert_eq!(asked.code, 2, "without a terminal it cannot ask");
    let dry = world.run(
        &[
            "invalid-events",
            "replay",
            &place,
            "--dry-run",
            "-o",
            "json",
        ],
        "",
    );
    assert_eq!(
        json_of(&dry),
        json!([{"topic": world.events, "records": 1}]),
        "{}",
        dry.stderr
    );
    assert_eq!(world.read_all(&world.events, Isolation::Committed).len(), 2);
    for count in [1, 0] {
        let done = world.run(
            &["invalid-events", "replay", &place, "--yes", "-o", "json"],
            "",
        );
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(
            done.stderr.contains(&format!("replayed {count} record")),
            "{}",
            done.stderr
        );
    }
    let events = world.read_all(&world.events, Isolation::Committed);
    assert_eq!(events.len(), 3, "once");
    assert_eq!(
        (&events[2].key, &events[2].value, &events[2].headers),
        (&events[0].key, &events[0].value, &events[0].headers),
        "as it came"
    );
    assert_eq!(list(&[]).len(), 1);
    assert_eq!(list(&["--all"]).len(), 2);
}

// ---- replays ---------------------------------------------------------------------------------------------------

#[test]
fn a_replay_to_another_endpoint_goes_through_deliver() {
    let fields = json!({"headers": {"authorization": "Bearer abcdef"}});
    let (world, receiver, _) = failed("elsewhere", 3, fields);
    let other = Receiver::good();
    let replay = |url: &str, flags: &[&str]| {
        let command = ["replay", "--dead-letters", "--to-endpoint", url];
        world.run(&[&command, flags].concat(), "")
    };
    let unnamed = replay(&other.url("/"), &["--yes"]);
    assert_eq!(
        unnamed.code, 2,
        "it says whose secrets sign: {}",
        unnamed.stderr
    );
    let denied = replay(
        "http://169.254.169.254/",
        &["--subscription", "acme", "--yes"],
    );
    assert_eq!(denied.code, 2, "{}", denied.stderr);
    assert!(
        denied.stderr.contains("169.254.169.254"),
        "{}",
        denied.stderr
    );
    let unknown = replay(&other.url("/"), &["--subscription", "nobody", "--yes"]);
    assert_eq!(unknown.code, 1, "{}", unknown.stderr);
    assert_eq!(dead_letters(&world).len(), 3, "nothing was replayed");

    let done = replay(&other.url("/moved"), &["--subscription", "acme", "--yes"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stderr.contains("subscriptions delete acme.to-"),
        "{}",
        done.stderr
    );
    assert!(dead_letters(&world).is_empty());
    let before = receiver.seen();
    let _process = start(&world, &[]);
    // It takes no events of its own.
    world.produce_event("k", &[], event("later", "order.created", "1"));
    wait_until_done(&world);
    let seen = other.seen_at("/moved");
    let ids = |seen: &[Arc<crate::support::Seen>]| -> BTreeSet<String> {
        seen.iter().map(|one| one.webhook_id().to_owned()).collect()
    };
    assert_eq!(seen.len(), 3, "each once");
    assert_eq!(ids(&seen), ids(&before), "the same webhooks");
    assert_eq!(seen[0].body, before[0].body);
    assert_eq!(
        seen[0].header("authorization"),
        None,
        "credentials stay with their endpoint"
    );
}

/// A world whose subscription `early` has got `count` events, and whose `late` one came after them.
fn published(name: &str, count: usize) -> (World, Receiver) {
    let world = world(name);
    let receiver = Receiver::good();
    put(
        &world,
        &[subscription("early", &receiver.url("/early"), &["order.*"])],
    );
    let process = start(&world, &[]);
    world.produce_events((0..count).map(|n| ("k", event(&format!("e-{n}"), "order.created", "1"))));
    world.produce_event("k", &[], "no json");
    world.produce_event("k", &[], event("other", "invoice.sent", "1"));
    receiver.wait_for(count, LATER);
    wait_until_done(&world);
    drop(process);
    put(
        &world,
        &[subscription("late", &receiver.url("/late"), &["order.*"])],
    );
    (world, receiver)
}

#[test]
fn events_of_a_time_range_are_sent_again_with_the_same_ids() {
    let (world, receiver) = published("range", 6);
    let replay = |flags: &[&str]| world.run(&[&["replay", "--from", "1h"], flags].concat(), "");
    assert_eq!(replay(&["--yes"]).code, 2, "it says to whom");
    assert_eq!(replay(&["--all", "--status", "500", "--yes"]).code, 2);
    assert_eq!(world.run(&["replay", "--yes"], "").code, 2);
    assert_eq!(replay(&["--subscription", "nobody", "--yes"]).code, 1);
    let dry = json_of(&replay(&["--all", "--dry-run", "-o", "json"]));
    assert_eq!(
        (&dry["webhooks"], &dry["events"], &dry["invalid"]),
        (&json!(12), &json!(7), &json!(1)),
        "{dry}"
    );
    let commands = || {
        let all = world.read_all(&world.topics.commands(), Isolation::Committed);
        let replayed = all
            .iter()
            .filter(|one| one.header("hs-cause") == Some("replay"));
        replayed
            .map(|one| one.header("webhook-id").unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(commands().is_empty(), "a preview writes nothing");
    let one = replay(&["--subscription", "early", "--event-id", "e-3", "--yes"]);
    assert_eq!((one.code, commands().len()), (0, 1), "{}", one.stderr);
    assert!(
        receiver
            .seen_at("/early")
            .iter()
            .any(|seen| seen.webhook_id() == commands()[0]),
        "the same id"
    );

    // Interrupted in the middle, then continued as it says.
    let mut arguments: Vec<String> = [
        "replay",
        "--from",
        "1h",
        "--subscription",
        "late",
        "--yes",
        "--rate",
        "2/s",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(world.args());
    let mut slow = crate::support::Process::spawn(&arguments);
    crate::support::eventually_true("it has begun", LATER, || commands().len() > 1);
    slow.signal("INT");
    assert_eq!(slow.wait_exit(LATER).code(), Some(130));
    let said = slow.stderr().join("\n");
    let after = |flag: &str| {
        let (_, rest) = said
            .split_once(&format!("{flag} "))
            .unwrap_or_else(|| panic!("{said}"));
        rest.split([' ', ';']).next().unwrap().to_owned()
    };
    let (from, to) = (after("--from"), after("--to"));
    let sent = commands().len() - 1;
    assert!((1..6).contains(&sent), "{sent} of 6");
    for rest in [6 - sent, 0] {
        let range = [
            "replay",
            "--from",
            &from,
            "--to",
            &to,
            "--subscription",
            "late",
            "--yes",
            "-o",
            "json",
        ];
        let done = world.run(&range, "");
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(json_of(&done)["webhooks"], json!(rest), "{}", done.stderr);
    }
    let ids: BTreeSet<String> = commands().into_iter().collect();
    assert_eq!((commands().len(), ids.len()), (7, 7), "each once");
    let _process = start(&world, &[]);
    wait_until_done(&world);
    assert_eq!(receiver.seen_at("/late").len(), 6);
}

#[test]
fn a_new_subscription_gets_the_events_from_before() {
    let (world, receiver) = published("backfill", 4);
    let document = subscription("new", &receiver.url("/new"), &["order.*"]).to_string();
    for sent in [4, 0] {
        let apply = [
            "subscriptions",
            "apply",
            "-f",
            "-",
            "--backfill-since",
            "7d",
        ];
        let applied = world.run(&apply, &document);
        assert_eq!(applied.code, 0, "{}", applied.stderr);
        let noted = if sent == 0 {
            "nothing to backfill".to_owned()
        } else {
            format!("{sent} webhooks")
        };
        assert!(applied.stderr.contains(&noted), "{}", applied.stderr);
    }
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("after", "order.created", "1"));
    wait_until_done(&world);
    assert_eq!(receiver.seen_at("/new").len(), 5);
}

// ---- publish and receive ---------------------------------------------------------------------------------------

#[test]
fn published_events_arrive_at_a_receiver_that_verifies_and_fails_on_demand() {
    let world = world("publish");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let receive = |flags: &[&str]| {
        let command = [
            "receive",
            "--listen",
            "127.0.0.1:0",
            "-o",
            "jsonl",
            "--secret",
            "env:THEIR_SECRET",
        ];
        let environment = [("THEIR_SECRET", secret)];
        let process =
            crate::support::Process::spawn_with(&[&command, flags].concat(), &environment);
        let line = process.wait_for_line("listening on", LATER);
        let url = line.split_whitespace().last().unwrap().to_owned();
        (process, url)
    };
    let (mut good, good_url) = receive(&["--fail", "1", "--count", "6"]);
    let (mut other, other_url) = receive(&["--count", "1"]);
    let signed = |id: &str, url: &str, secret: &str| {
        with(
            subscription(id, url, &["order.*"]),
            json!({"secrets": [secret]}),
        )
    };
    let wrong = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    put(
        &world,
        &[
            signed("good", &good_url, secret),
            signed("wrong", &other_url, wrong),
        ],
    );
    let _process = start(&world, &[]);
    let published = world.run(&["publish", "-n", "2", "-o", "json"], "");
    assert_eq!(published.code, 0, "{}", published.stderr);
    assert_eq!(json_of(&published).as_array().unwrap().len(), 2);
    let given = event("given-1", "order.created", "{\"n\":7}");
    let published = world.run(&["publish", "-f", "-"], &given);
    assert_eq!(published.code, 0, "{}", published.stderr);

    assert!(good.wait_exit(LATER).success());
    let requests: Vec<Value> = good
        .stdout()
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(requests.len(), 6, "{requests:?}");
    for request in &requests {
        assert_eq!(request["signature"], "valid");
        let expected = if request["attempt"] == 1 { 503 } else { 200 };
        assert_eq!(request["status"], expected, "{request}");
    }
    assert!(
        requests
            .iter()
            .any(|one| one["body"].as_str().unwrap().contains("{\"n\":7}"))
    );
    assert!(other.wait_exit(LATER).success());
    let refused: Value = serde_json::from_str(&other.stdout()[0]).unwrap();
    assert_eq!(
        (&refused["status"], &refused["signature"]),
        (&json!(401), &json!("no signature matches"))
    );

    let before = world.read_all(&world.events, Isolation::Committed).len();
    let broken = world.run(
        &["publish", "-f", "-"],
        &format!("{given}\n{{\"id\":\"x\"}}\n"),
    );
    assert_eq!(broken.code, 2, "{}", broken.stderr);
    assert!(
        broken.stderr.contains("line 2") && broken.stderr.contains("type"),
        "{}",
        broken.stderr
    );
    assert_eq!(
        world.read_all(&world.events, Isolation::Committed).len(),
        before,
        "all or nothing"
    );
    assert_eq!(world.run(&["publish", "--topic", "elsewhere"], "").code, 2);
    assert_eq!(world.run(&["publish", "-f", "/nowhere"], "").code, 2);
}

// ---- deleting --------------------------------------------------------------------------------------------------

#[test]
fn a_subscription_is_deleted_when_its_commands_are_done_or_with_them() {
    let world = world("delete");
    let accepts = Arc::new(AtomicBool::new(false));
    let accepting = Arc::clone(&accepts);
    let receiver = Receiver::start(move |_| match accepting.load(Ordering::SeqCst) {
        true => Answer::ok(),
        false => Answer::status(503),
    });
    let slow = json!({"retry_schedule": ["1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s"], "breaker": {"failures": 0}});
    let one = |id: &str| {
        with(
            subscription(id, &receiver.url(&format!("/{id}")), &["**"]),
            slow.clone(),
        )
    };
    let document = |fields: Value| with(one("dropped"), fields);
    put(
        &world,
        &[one("drained"), document(json!({"state": "paused"}))],
    );
    let _process = start(&world, &[]);
    world.produce_events((0..3).map(|n| ("k", event(&format!("e-{n}"), "order.created", "1"))));
    receiver.wait_for(3, LATER);

    let mut arguments: Vec<String> = ["subscriptions", "delete", "drained", "--drain"]
        .map(str::to_owned)
        .into();
    arguments.extend(world.args());
    let mut drain = crate::support::Process::spawn(&arguments);
    drain.wait_for_line("waiting for 3 commands", LATER);
    world.produce_event("k", &[], event("after", "order.created", "1"));
    accepts.store(true, Ordering::SeqCst);
    assert_eq!(
        drain.wait_exit(LATER).code(),
        Some(0),
        "{:?}",
        drain.stderr()
    );
    let delivered: BTreeSet<String> = receiver
        .seen_at("/drained")
        .iter()
        .map(|seen| seen.webhook_id().to_owned())
        .collect();
    assert_eq!(delivered.len(), 3, "no new events matched");
    assert!(dead_letters(&world).is_empty());
    assert_eq!(world.run(&["subscriptions", "show", "drained"], "").code, 1);

    let paused = world.run(&["subscriptions", "delete", "dropped", "--drain"], "");
    assert_eq!(paused.code, 1);
    assert!(
        paused.stderr.contains("paused") && paused.stderr.contains("--discard"),
        "{}",
        paused.stderr
    );
    let dropped = world.run(&["subscriptions", "delete", "dropped", "--discard"], "");
    assert_eq!(dropped.code, 0, "{}", dropped.stderr);
    assert!(
        dropped.stderr.contains("discarded 4 dead letters"),
        "{}",
        dropped.stderr
    );
    assert!(dead_letters(&world).is_empty() && receiver.seen_at("/dropped").is_empty());
}

#[test]
fn a_signed_sample_is_sent_and_shown_with_the_command_that_verifies_it() {
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let world = world("tested");
    let accepts = Arc::new(AtomicBool::new(true));
    let accepting = Arc::clone(&accepts);
    let receiver = Receiver::start(move |_| match accepting.load(Ordering::SeqCst) {
        true => Answer::ok().header("x-receiver", "r1").body("thanks"),
        false => Answer::status(422).body("no such order; token-s3cret"),
    });
    let own = json!({
        "secrets": [SECRET],
        "format": "cloudevents",
        "headers": {"x-tenant": "acme", "x-api-key": "token-s3cret"},
        "state": "paused",
    });
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/in"), &["order.*"]),
            own,
        )],
    );
    let sent = world.run(&["subscriptions", "test", "acme", "-o", "json"], "");
    assert_eq!(sent.code, 0, "{}", sent.stderr);
    let shown = json_of(&sent);
    assert_eq!(
        (&shown["response"]["status"], &shown["response"]["body"]),
        (&json!(200), &json!("thanks"))
    );
    assert_eq!(shown["response"]["headers"]["x-receiver"], "r1");
    assert_eq!(shown["request"]["headers"]["x-api-key"], "***");
    assert_eq!(shown["request"]["headers"]["x-tenant"], "acme");
    let [seen] = &receiver.seen()[..] else {
        panic!("one request, although it is paused")
    };
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(
        (&body["type"], &body["specversion"]),
        (&json!("order.test"), &json!("1.0"))
    );
    assert_eq!(
        seen.header("content-type"),
        Some("application/cloudevents+json")
    );
    assert_eq!(seen.header("x-api-key"), Some("token-s3cret"));
    let verified = Command::new("sh")
        .args(["-c", shown["verify"].as_str().unwrap()])
        .env("WEBHOOK_SECRET", SECRET)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&verified.stdout).trim(),
        seen.header("webhook-signature").unwrap()
    );

    accepts.store(false, Ordering::SeqCst);
    let arguments = ["subscriptions", "test", "acme", "--type", "order.paid"];
    let refused = world.run(
        &[&arguments[..], &["--data", r#"{"total":7}"#]].concat(),
        "",
    );
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("responded 422"),
        "{}",
        refused.stderr
    );
    for line in [
        "> webhook-signature: v1,",
        "< 422",
        "< no such order; ***",
        "# prints the signature",
    ] {
        assert!(refused.stdout.contains(line), "{line}: {}", refused.stdout);
    }
    let body: Value = serde_json::from_slice(&receiver.seen()[1].body).unwrap();
    assert_eq!(
        (&body["type"], &body["data"]["total"]),
        (&json!("order.paid"), &json!(7))
    );
    let all = format!(
        "{}{}{}{}",
        sent.stdout, sent.stderr, refused.stdout, refused.stderr
    );
    for secret in ["token-s3cret", "MfKQ9r8"] {
        assert!(!all.contains(secret), "{all}");
    }
    let unknown = world.run(&["subscriptions", "test", "nobody"], "");
    assert_eq!(unknown.code, 1, "{}", unknown.stderr);

    // Nobody is there; and where it may not go, nothing is sent.
    let gone = Receiver::good().url("/");
    put(&world, &[subscription("gone", &gone, &["**"])]);
    let failed = world.run(&["subscriptions", "test", "gone"], "");
    assert_eq!(failed.code, 1);
    assert!(failed.stderr.contains("no response"), "{}", failed.stderr);
    put(
        &world,
        &[subscription("inside", "https://10.0.0.1/", &["**"])],
    );
    let denied = world.run(&["subscriptions", "test", "inside"], "");
    assert_eq!(denied.code, 1);
    assert!(
        denied.stderr.contains("nothing was sent"),
        "{}",
        denied.stderr
    );
}
