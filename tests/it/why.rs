//! Why a subscriber waits: what `lag`, `/lag` and `subscriptions` show, and that it survives a rollout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::lag::{lag, once};
use crate::scene::{LATER, event, put, start, subscription, with};
use crate::support::{Answer, Isolation, Process, Receiver, World, eventually, eventually_true};

fn of<'a>(figures: &'a Value, name: &str) -> &'a Value {
    let mut all = figures["subscribers"].as_array().unwrap().iter();
    all.find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

/// The figures of all subscribers, once something is read.
fn all(process: &Process) -> Option<Value> {
    let (status, body) = process.get("/lag?all=1");
    (status == 200).then(|| serde_json::from_str(&body).unwrap())
}

fn show(world: &World, id: &str) -> Value {
    let output = world.run(&["subscriptions", "show", id, "-o", "json"], "");
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

fn publish(world: &World, numbers: std::ops::Range<usize>) {
    world.produce_events(numbers.map(|number| {
        let payload = event(&format!("e{number}"), "a.b", "{}");
        (format!("k{number}"), payload)
    }));
}

#[test]
fn operators_see_why_and_since_when_also_after_a_rollout() {
    let mut world = World::new("why");
    world.flags.push("--breaker-failures=3".to_owned());
    world.create_topics(2);
    let receiver = Receiver::start(|seen| match seen.path.as_str() {
        "/broken" => Answer::status(503).body("upstream is down: hunter2hunter2\nstack trace"),
        _ => Answer::ok(),
    });
    let one = |id: &str, fields: Value| {
        let url = receiver.url(&format!("/{id}"));
        with(subscription(id, &url, &["a.*"]), fields)
    };
    put(
        &world,
        &[
            one(
                "broken",
                json!({"headers": {"authorization": "hunter2hunter2"}}),
            ),
            one("good", json!({})),
            one("idle", json!({"events": ["never"]})),
            one("off", json!({"events": ["never"], "state": "disabled"})),
        ],
    );
    let mut process = start(&world, &[]);
    let paused = world.run(&["subscriptions", "pause", "idle"], "");
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    publish(&world, 0..20);
    let figures = eventually("the endpoint fails", LATER, || {
        let figures = all(&process)?;
        let broken = of(&figures, "broken");
        let is_known = broken["last_failure"]["error"] == "upstream is down: ***";
        let good = of(&figures, "good")["last_success"].is_string();
        (broken["state"] == "breaker_open" && is_known && good).then_some(figures)
    });
    let broken = of(&figures, "broken");
    let failure = &broken["last_failure"];
    assert_eq!(
        (
            &failure["class"],
            &failure["status"],
            &failure["subscription"]
        ),
        (&json!("5xx"), &json!(503), &json!("broken"))
    );
    assert!(failure["at"].is_string(), "{failure}");
    let webhook_id = failure["webhook_id"].as_str().unwrap();
    let traced = world.run(&["trace", webhook_id], "");
    assert_eq!(traced.code, 0, "a sample to look at: {}", traced.stderr);
    assert_eq!(broken["last_success"], Value::Null);
    let subscription = &broken["subscriptions"][0];
    for field in [
        "state",
        "last_failure",
        "breaker_open_until",
        "failing_since",
    ] {
        assert_eq!(subscription[field], broken[field], "{field}");
    }
    assert!(subscription["breaker_open_until"].is_string());
    assert!(
        subscription["attempts"]["5xx"].as_u64() >= Some(3),
        "{subscription}"
    );
    let good = of(&figures, "good");
    assert_eq!(
        (&good["state"], &good["last_failure"]),
        (&json!("active"), &Value::Null)
    );
    // Nothing waits for them.
    let usual = lag(&process, "");
    assert_eq!(of(&usual, "idle")["state"], "paused");
    assert_eq!(of(&usual, "off")["state"], "disabled");
    assert_eq!(of(&usual, "off")["disabled_by"], "document");
    assert_eq!(of(&usual, "good"), &Value::Null);
    let (_, page) = process.get("/");
    assert!(page.contains("last_failure"), "the page shows it too");

    let same = |shown: &Value, of: &str| {
        assert_eq!(shown["state"], "breaker_open", "{of}");
        assert_eq!(shown["failing_since"], broken["failing_since"], "{of}");
        assert_eq!(shown["last_failure"]["error"], failure["error"], "{of}");
    };
    same(of(&once(&world), "broken"), "lag --once");
    same(&show(&world, "broken"), "subscriptions show");
    let table = world.run(&["lag", "--once"], "").stdout;
    let list = world.run(&["subscriptions", "list"], "").stdout;
    for text in [&table, &list] {
        assert!(text.contains("breaker open, probe "), "{text}");
        assert!(text.contains("503 upstream is down: ***"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(list.contains("paused"), "{list}");

    // The next owner knows all of it, and continues.
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    let process = start(&world, &[]);
    let before = eventually("it is shown again", LATER, || {
        let figures = all(&process)?;
        let good = of(&figures, "good")["last_success"].clone();
        (good.is_string() && !of(&figures, "broken").is_null()).then_some(figures)
    });
    same(of(&before, "broken"), "after a restart");
    publish(&world, 20..24);
    let newer = eventually("the new owner writes too", LATER, || {
        let figures = lag(&process, "?all=1");
        let at = |figures: &Value| of(figures, "broken")["last_failure"]["at"].clone();
        (at(&figures) != at(&before)).then_some(figures)
    });
    assert_eq!(
        of(&newer, "broken")["failing_since"],
        broken["failing_since"],
        "a rollout is no news"
    );
    eventually_true("its breaker opens again", LATER, || {
        of(&lag(&process, ""), "broken")["state"] == "breaker_open"
    });
    assert_eq!(
        of(&lag(&process, ""), "broken")["failing_since"],
        broken["failing_since"]
    );
}

/// The types of the notices that came to this path, each with the subscription that it is about.
fn notices(receiver: &Receiver, path: &str) -> Vec<(String, String)> {
    let seen = receiver.seen_at(path).into_iter();
    seen.map(|request| {
        let event: Value = serde_json::from_slice(&request.body).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["data"]["subscription"]))
    })
    .filter(|(event_type, _)| event_type.starts_with("hookstream."))
    .collect()
}

#[test]
fn notices_reach_those_who_may_see_them_and_a_probe_ends_the_trouble() {
    let mut world = World::new("notices");
    let flags = [
        "--breaker-failures=3",
        // The next probe would be in ten minutes.
        "--breaker-probe=10m",
        "--notice-after=1s",
        "--operator-subscriber=ops",
    ];
    world.flags.extend(flags.map(str::to_owned));
    world.create_topics(2);
    let fixed = Arc::new(AtomicBool::new(false));
    let receiver = {
        let fixed = Arc::clone(&fixed);
        Receiver::start(move |seen| match seen.path.as_str() {
            "/broken" if !fixed.load(Ordering::SeqCst) => Answer::status(503),
            _ => Answer::ok(),
        })
    };
    let one = |id: &str, subscriber: &str, events: &[&str]| {
        let url = receiver.url(&format!("/{id}"));
        with(
            subscription(id, &url, events),
            json!({"subscriber": subscriber, "labels": {"team": subscriber}}),
        )
    };
    put(
        &world,
        &[
            one("broken", "acme", &["a.*"]),
            one("own", "acme", &["hookstream.endpoint.*"]),
            one("chat", "ops", &["hookstream.**"]),
            one("others", "beta", &["hookstream.**"]),
            one("all", "acme", &["**"]),
        ],
    );
    let mut process = start(&world, &[]);
    publish(&world, 0..20);
    let failing = (
        "hookstream.endpoint.failing".to_owned(),
        "broken".to_owned(),
    );
    eventually_true("the operator and the subscriber hear of it", LATER, || {
        [notices(&receiver, "/chat"), notices(&receiver, "/own")]
            .iter()
            .all(|heard| *heard == [failing.clone()])
    });
    // A rollout repeats nothing.
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    let _process = start(&world, &[]);
    publish(&world, 20..30);
    eventually_true("the breaker is open again", LATER, || {
        show(&world, "broken")["state"] == "breaker_open" && receiver.seen_at("/all").len() >= 30
    });

    let refused = world.run(&["subscriptions", "probe", "nobody"], "");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    let refused = world.run(&["subscriptions", "probe", "-l", "team=nobody"], "");
    assert!(refused.stderr.contains("team=nobody"), "{}", refused.stderr);
    let usage = world.run(&["subscriptions", "probe"], "");
    assert_eq!(usage.code, 2, "{}", usage.stderr);
    fixed.store(true, Ordering::SeqCst);
    let before = receiver.seen_at("/broken").len();
    let probed = world.run(
        &["subscriptions", "probe", "-l", "team=acme", "-o", "json"],
        "",
    );
    assert_eq!(probed.code, 0, "{}", probed.stderr);
    let rows: Value = serde_json::from_str(&probed.stdout).unwrap();
    assert_eq!(
        rows.as_array().unwrap().len(),
        3,
        "those of the team: {rows}"
    );
    for row in rows.as_array().unwrap() {
        assert_eq!(row["result"], "probing");
        assert!(row["parked_back_by"].is_string(), "it says by when: {row}");
    }
    eventually_true("the endpoint is probed and works", LATER, || {
        receiver.seen_at("/broken").len() > before && show(&world, "broken")["state"] == "active"
    });
    let recovered = (
        "hookstream.endpoint.recovered".to_owned(),
        "broken".to_owned(),
    );
    eventually_true("both hear of that too", LATER, || {
        let expected = [failing.clone(), recovered.clone()];
        notices(&receiver, "/chat") == expected && notices(&receiver, "/own") == expected
    });
    assert_eq!(notices(&receiver, "/others"), [], "it is another's");
    assert_eq!(notices(&receiver, "/all"), [], "** does not match notices");
    let written = world.read_all(&world.topics.notices(), Isolation::Committed);
    assert_eq!(written.len(), 2, "each is written once");

    let paused = world.run(&["subscriptions", "pause", "--all"], "");
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    assert_eq!(show(&world, "chat")["state"], "paused");
    let paused = world.run(&["subscriptions", "probe", "chat"], "");
    assert_eq!(
        paused.code, 3,
        "a paused one is not probed: {}",
        paused.stderr
    );
    let resumed = world.run(&["subscriptions", "resume", "--all"], "");
    assert!(resumed.stderr.contains("are back by"), "{}", resumed.stderr);
}

/// A world with a subscription of the operator on all notices, which come to `/chat`.
fn world_of_notices(name: &str, flags: &[&str], others: &[Value], receiver: &Receiver) -> World {
    let mut world = World::new(name);
    world
        .flags
        .extend(flags.iter().map(|&flag| flag.to_owned()));
    world.flags.push("--operator-subscriber=ops".to_owned());
    world.create_topics(1);
    let chat = subscription("chat", &receiver.url("/chat"), &["hookstream.**"]);
    put(&world, &[with(chat, json!({"subscriber": "ops"}))]);
    put(&world, others);
    world
}

#[test]
fn an_unreadable_secret_and_a_denied_address_are_noticed_once() {
    let receiver = Receiver::good();
    let fine = receiver.url("/fine");
    let others = [
        with(
            subscription("unread", &fine, &["a.*"]),
            json!({"secrets": ["env:NOT_SET_ANYWHERE"]}),
        ),
        subscription("denied", "http://10.0.0.1/", &["a.*"]),
        subscription("fine", &fine, &["a.*"]),
    ];
    let world = world_of_notices("refusals", &[], &others, &receiver);
    let mut process = start(&world, &[]);
    publish(&world, 0..5);
    let expected = [
        ("hookstream.egress.denied".to_owned(), "denied".to_owned()),
        (
            "hookstream.secret.unreadable".to_owned(),
            "unread".to_owned(),
        ),
    ];
    let heard = || {
        let mut heard = notices(&receiver, "/chat");
        heard.retain(|(event_type, _)| !event_type.starts_with("hookstream.dead_letters."));
        heard.sort();
        heard
    };
    eventually_true("the operator hears of both", LATER, || heard() == expected);
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    let _process = start(&world, &[]);
    publish(&world, 5..10);
    eventually_true("the others go on", LATER, || {
        receiver.seen_at("/fine").len() >= 10
    });
    assert_eq!(heard(), expected, "a restart repeats nothing");
}

#[test]
fn an_endpoint_that_fails_for_long_is_disabled_and_noticed() {
    let receiver = Receiver::start(|seen| match seen.path.as_str() {
        "/broken" => Answer::status(503),
        _ => Answer::ok(),
    });
    let flags = [
        "--breaker-failures=3",
        "--breaker-probe=300ms",
        "--notice-after=1s",
        "--disable-after=1m",
    ];
    // So many that no command runs out of attempts before its subscription is disabled, whichever the probes take.
    let broken = with(
        subscription("broken", &receiver.url("/broken"), &["a.*"]),
        json!({"retry_schedule": vec!["1s"; 20]}),
    );
    let others = [broken];
    let world = world_of_notices("disable-after", &flags, &others, &receiver);
    let _process = start(&world, &[]);
    publish(&world, 0..10);
    let disabled = (
        "hookstream.endpoint.disabled".to_owned(),
        "broken".to_owned(),
    );
    eventually_true(
        "it is disabled, and the operator hears of it",
        3 * LATER,
        || {
            notices(&receiver, "/chat").contains(&disabled)
                && show(&world, "broken")["state"] == "disabled"
        },
    );
    assert_eq!(show(&world, "broken")["disabled_by"], "hookstream");
    let heard = notices(&receiver, "/chat");
    let of = |wanted: &str| {
        heard
            .iter()
            .filter(|(event_type, _)| event_type.ends_with(wanted))
            .count()
    };
    assert_eq!(
        (of("endpoint.failing"), of("endpoint.disabled")),
        (1, 1),
        "{heard:?}"
    );
    let letters = crate::scene::dead_letters(&world);
    assert!(
        letters.iter().all(|row| row["reason"] == "disabled"),
        "{letters:?}"
    );
}
