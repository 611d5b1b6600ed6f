//! Endpoints that must consent before they get events: deliver asks them, and nothing is made for them until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::lag::once;
use crate::scene::{LATER, event, put, start, subscription, wait_until_done, with, world};
use crate::schemas::{assert_valid, schema};
use crate::support::{
    Answer, Isolation, Output, Receiver, Seen, World, eventually, eventually_true,
};

const ORIGIN: &str = "events.shop.example";

fn apply(world: &World, subscriptions: &[Value], flags: &[&str]) -> Output {
    let input = Value::from(subscriptions.to_vec()).to_string();
    let output = world.run(
        &[&["subscriptions", "apply", "-f", "-"], flags].concat(),
        &input,
    );
    assert_eq!(output.code, 0, "{}", output.stderr);
    output
}

fn show(world: &World, id: &str) -> Value {
    let output = world.run(&["subscriptions", "show", id, "-o", "json"], "");
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[track_caller]
fn wait_for_state(world: &World, id: &str, state: &str) -> Value {
    eventually(&format!("{id} is {state}"), LATER, || {
        Some(show(world, id)).filter(|shown| shown["state"] == state)
    })
}

/// Waits until an endpoint was asked in vain.
#[track_caller]
fn wait_for_refusal(world: &World, id: &str) -> Value {
    eventually(&format!("{id} is refused"), LATER, || {
        let shown = show(world, id);
        let is_refused = shown["verification"]["result"] == "refused";
        (is_refused && shown["state"] == "pending").then_some(shown)
    })
}

fn publish(world: &World, id: &str) {
    world.produce_event("key", &[], event(id, "a.b", "{}"));
    wait_until_done(world);
}

/// The events that came to a path, by POST.
fn events_at(receiver: &Receiver, path: &str) -> usize {
    let seen = receiver.seen_at(path);
    let is_event =
        |seen: &&Arc<Seen>| seen.method == "POST" && !seen.webhook_id().starts_with("msg_verify_");
    seen.iter().filter(is_event).count()
}

/// Consents to the handshake, with a rate at `/slow`.
fn cloud_events(seen: &Seen) -> Answer {
    match (&*seen.method, &*seen.path) {
        ("OPTIONS", "/slow") => Answer::ok()
            .header("WebHook-Allowed-Origin", ORIGIN)
            .header("WebHook-Allowed-Rate", "60"),
        ("OPTIONS", _) => Answer::ok().header("WebHook-Allowed-Origin", "*"),
        _ => Answer::ok(),
    }
}

/// Sends a challenge back.
fn challenged(seen: &Seen) -> Answer {
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    match body["data"]["challenge"].as_str() {
        Some(token) => Answer::ok().body(json!({"challenge": token}).to_string()),
        None if seen.method == "OPTIONS" => Answer::status(405),
        None => Answer::ok(),
    }
}

#[test]
fn a_subscription_is_pending_until_its_endpoint_consents_and_gets_no_earlier_event() {
    let world = world("verify");
    let origin = ["--verification-origin", ORIGIN];
    let hooks = Receiver::start(cloud_events);
    let challenges = Receiver::start(challenged);
    let one = |id: &str, receiver: &Receiver| {
        let url = receiver.url(&format!("/{id}"));
        let own = json!({
            "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            "headers": {"authorization": "Bearer hush-hush-hush"},
        });
        with(subscription(id, &url, &["a.*"]), own)
    };
    let all = [
        one("slow", &hooks),
        one("quick", &hooks),
        one("asked", &challenges),
    ];
    let applied = apply(&world, &all, &["--verify"]);
    assert!(
        applied
            .stderr
            .contains("is pending until its endpoint consents"),
        "{}",
        applied.stderr
    );
    assert_eq!(show(&world, "slow")["state"], "pending");
    assert_eq!(show(&world, "slow")["verification"], Value::Null);

    // Without deliver nobody asks, and no command is made.
    let fanout = world.spawn("fanout", &[]);
    fanout.wait_ready();
    publish_to_fanout(&world, &fanout);
    assert!(
        world
            .read_all(&world.topics.commands(), Isolation::Committed)
            .is_empty()
    );
    drop(fanout);

    let process = start(&world, &origin);
    for id in ["slow", "quick", "asked"] {
        wait_for_state(&world, id, "active");
    }
    let handshakes = hooks.seen_at("/slow");
    let handshake = &handshakes[0];
    assert_eq!(handshake.method, "OPTIONS");
    assert_eq!(handshake.header("webhook-request-origin"), Some(ORIGIN));
    assert_eq!(
        handshake.header("authorization"),
        Some("Bearer hush-hush-hush")
    );
    assert_eq!(
        (
            handshake.webhook_id(),
            handshake.header("webhook-signature")
        ),
        ("", None)
    );
    let seen = challenges.seen();
    let challenge = seen.iter().find(|seen| seen.method == "POST").unwrap();
    assert!(
        challenge.header("webhook-signature").is_some(),
        "it is signed"
    );
    for (id, by) in [("slow", "handshake"), ("asked", "challenge")] {
        assert_eq!(show(&world, id)["verification"]["by"], by, "{id}");
    }
    assert_eq!(show(&world, "slow")["verification"]["per_minute"], 60);
    let records = world.read_all(&world.topics.subscriptions(), Isolation::Committed);
    let records: Vec<_> = records
        .iter()
        .filter(|record| record.key_text().starts_with("verified/"))
        .collect();
    assert_eq!(records.len(), 3, "each was asked once");
    for record in records {
        assert_valid(
            &schema("subscription-verification.schema.json"),
            &record.json(),
            "verification",
        );
    }

    for number in 0..4 {
        world.produce_event("key", &[], event(&format!("e{number}"), "a.b", "{}"));
    }
    wait_until_done(&world);
    for (receiver, path) in [
        (&hooks, "/slow"),
        (&hooks, "/quick"),
        (&challenges, "/asked"),
    ] {
        assert_eq!(
            events_at(receiver, path),
            4,
            "{path}: none from before its consent"
        );
    }
    // One request a second: the first is sent at once, three more come a second apart.
    let spread = |path: &str| {
        let seen = hooks.seen_at(path);
        let at: Vec<i64> = seen
            .iter()
            .filter(|seen| seen.method == "POST")
            .map(|seen| seen.received)
            .collect();
        at[at.len() - 1] - at[0]
    };
    assert!(
        spread("/slow") >= 2_500,
        "its rate limit: {} ms",
        spread("/slow")
    );
    assert!(
        spread("/quick") < spread("/slow"),
        "{} ms",
        spread("/quick")
    );
    assert_eq!(
        process.metric(r#"hookstream_verifications_total{result="verified"}"#),
        Some(3.0)
    );
    let log = process.stderr().join("\n");
    assert!(
        log.contains("the endpoint consents") && !log.contains("hush"),
        "{log}"
    );
}

/// Publishes an event, and waits until fan-out has read it.
fn publish_to_fanout(world: &World, fanout: &crate::support::Process) {
    world.produce_event("key", &[], event("early", "a.b", "{}"));
    eventually_true("fan-out has read it", LATER, || {
        fanout.metric(r#"hookstream_events_total{result="unmatched"}"#) >= Some(1.0)
    });
}

#[test]
fn an_endpoint_that_refuses_stays_pending_with_the_reason_and_is_asked_again() {
    let world = world("refused");
    let consents = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&consents);
    let receiver = Receiver::start(move |seen| {
        match (own.load(Ordering::Relaxed), &*seen.path) {
            (true, _) => cloud_events(seen),
            (false, "/other") if seen.method == "OPTIONS" => {
                Answer::ok().header("WebHook-Allowed-Origin", "somebody.else.example")
            }
            // Its own credentials come back, which nothing must show.
            (false, _) => Answer::status(404)
                .body(seen.header("authorization").unwrap_or_default().to_owned()),
        }
    });
    let credentials = json!({"headers": {"authorization": "hush-hush-hush"}});
    let one = |id: &str| {
        let url = receiver.url(&format!("/{id}"));
        with(subscription(id, &url, &["a.*"]), credentials.clone())
    };
    let process = start(&world, &[]);
    apply(&world, &[one("none"), one("other")], &["--verify"]);
    let none = wait_for_refusal(&world, "none");
    let reason = none["verification"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("OPTIONS: status 404") && reason.contains("challenge: status 404"),
        "{reason}"
    );
    let other = wait_for_refusal(&world, "other");
    let reason = other["verification"]["reason"].as_str().unwrap();
    assert!(reason.contains("WebHook-Allowed-Origin"), "{reason}");
    assert!(
        receiver
            .seen_at("/other")
            .iter()
            .all(|seen| seen.method == "OPTIONS"),
        "who says no is not challenged"
    );
    let figures = once(&world);
    let of_lag = figures["subscribers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "none");
    let of_lag = of_lag.unwrap_or_else(|| panic!("lag lists it: {figures}"));
    assert_eq!(
        (&of_lag["state"], &of_lag["verification"]["result"]),
        (&json!("pending"), &json!("refused"))
    );
    let listed = world.run(&["subscriptions", "list"], "");
    assert!(
        listed.stdout.contains("pending") && listed.stdout.contains("no consent"),
        "{}",
        listed.stdout
    );
    publish(&world, "e1");
    assert_eq!(events_at(&receiver, "/none"), 0);
    let resumed = world.run(&["subscriptions", "resume", "none"], "");
    assert!(
        resumed.stdout.contains("has not consented"),
        "{}",
        resumed.stdout
    );

    // At once, whenever its next turn would be.
    consents.store(true, Ordering::Relaxed);
    let probed = world.run(&["subscriptions", "probe", "none", "other"], "");
    assert_eq!(probed.code, 0, "{}", probed.stderr);
    wait_for_state(&world, "none", "active");
    wait_for_state(&world, "other", "active");
    publish(&world, "e2");
    assert_eq!(events_at(&receiver, "/none"), 1);

    let log = process.stderr().join("\n");
    for text in [&log, &listed.stdout, &none.to_string(), &other.to_string()] {
        assert!(!text.contains("hush"), "{text}");
    }
}

#[test]
fn a_changed_url_is_pending_again_also_when_it_is_applied_without_the_flag() {
    let world = world("changed");
    let receiver = Receiver::start(|seen| match &*seen.path {
        "/new" if seen.method == "OPTIONS" => Answer::status(404),
        "/new" => Answer::status(500),
        _ => cloud_events(seen),
    });
    let process = start(&world, &[]);
    let at = |path: &str, events: &str| subscription("s", &receiver.url(path), &[events]);
    apply(&world, &[at("/old", "a.*")], &["--verify"]);
    wait_for_state(&world, "s", "active");
    let asked = receiver.seen_at("/old").len();
    apply(&world, &[at("/old", "a.**")], &[]);
    assert_eq!(
        show(&world, "s")["state"],
        "active",
        "another pattern needs no new consent"
    );
    publish(&world, "e1");
    assert_eq!(
        receiver.seen_at("/old").len(),
        asked + 1,
        "it was not asked again"
    );

    let output = apply(&world, &[at("/new", "a.**")], &[]);
    assert!(output.stderr.contains("is pending"), "{}", output.stderr);
    wait_for_refusal(&world, "s");
    publish(&world, "e2");
    assert_eq!(events_at(&receiver, "/old"), 1);
    assert_eq!(events_at(&receiver, "/new"), 0);
    assert!(process.metric("hookstream_in_flight").is_some());

    let end = with(at("/new", "a.**"), json!({"verify": false}));
    apply(&world, &[end], &[]);
    assert_eq!(
        show(&world, "s")["state"],
        "active",
        "it says that it needs none"
    );
}

#[test]
fn an_endpoint_that_egress_denies_is_not_contacted_and_a_setting_asks_all() {
    let mut world = world("require");
    let receiver = Receiver::start(cloud_events);
    let denied = Receiver::start_at([127, 0, 0, 9].into(), cloud_events);
    world.flags = ["--require-verification", "--egress-deny-cidr=127.0.0.9/32"]
        .map(str::to_owned)
        .to_vec();
    // Written without the program, and without a word about consent.
    let one = |id: &str, receiver: &Receiver| {
        subscription(id, &receiver.url(&format!("/{id}")), &["a.*"])
    };
    put(&world, &[one("well", &receiver), one("denied", &denied)]);
    let _process = start(&world, &[]);
    wait_for_state(&world, "well", "active");
    let shown = wait_for_refusal(&world, "denied");
    let reason = shown["verification"]["reason"].as_str().unwrap();
    assert!(reason.contains("--egress-deny-cidr"), "{reason}");
    publish(&world, "e1");
    assert_eq!(events_at(&receiver, "/well"), 1);
    assert!(denied.seen().is_empty());
}
