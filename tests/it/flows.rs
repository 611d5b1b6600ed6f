//! From an event to its end, on a real Kafka: delivered, retried, parked, given up, replayed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloudevents::{EventBuilder, EventBuilderV10};
use ed25519_dalek::{Signature, SigningKey, Verifier};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use crate::scene::{
    LATER, SCHEDULE, body, dead_letters, event, put, start, subscription, wait_for_dead_letters,
    wait_for_records, wait_until_done, with, world,
};
use crate::support::{Answer, Isolation, Receiver, SOON, Seen, eventually, eventually_true};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// What the independent implementation of Standard Webhooks says to a request.
pub fn verified(seen: &Seen, secret: &str) -> Result<(), standardwebhooks::WebhookError> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in &seen.headers {
        let name: http::HeaderName = name.parse().unwrap();
        headers.append(name, value.parse().unwrap());
    }
    standardwebhooks::Webhook::new(secret)
        .unwrap()
        .verify(&seen.body, &headers)
}

#[test]
fn only_matching_subscriptions_get_the_event_whole_and_signed() {
    let world = world("matching");
    let receiver = Receiver::good();
    let signed = |id: &str, patterns: &[&str], fields: Value| {
        let url = receiver.url(&format!("/{id}"));
        with(
            with(
                subscription(id, &url, patterns),
                json!({"secrets": [SECRET]}),
            ),
            fields,
        )
    };
    put(
        &world,
        &[
            signed("exact", &["order.created"], json!({})),
            signed("segment", &["order.*"], json!({})),
            signed("all", &["**"], json!({})),
            signed("other", &["invoice.*"], json!({})),
            signed(
                "filtered",
                &["order.**"],
                json!({"filter": {"data.total": [{"numeric": [">=", 100]}], "data.country": ["DE", "FR"]}}),
            ),
        ],
    );
    let process = start(&world, &[]);
    // Odd white space and numbers: the producer's own bytes must arrive.
    let events = [
        (
            "1",
            "order.created",
            r#"{"total": 100.0,  "country":"DE"}"#,
            "exact segment all filtered",
        ),
        (
            "2",
            "order.created",
            r#"{"total":99.99,"country":"DE"}"#,
            "exact segment all",
        ),
        (
            "3",
            "order.paid",
            r#"{"total":1e3,"country":"IT"}"#,
            "segment all",
        ),
        (
            "4",
            "order.line.added",
            r#"{"total":250,"country":"FR","name":"Gr\u00fc\u00dfe 🎈"}"#,
            "all filtered",
        ),
        ("5", "refund", "null", "all"),
    ];
    world.produce_events(
        events
            .iter()
            .map(|(id, kind, data, _)| ("key", event(id, kind, data))),
    );
    wait_until_done(&world);

    let mut expected = BTreeSet::new();
    for (_, kind, data, wanted) in &events {
        for id in wanted.split(' ') {
            expected.insert((format!("/{id}"), body(kind, data)));
        }
    }
    let seen = receiver.seen();
    let got: BTreeSet<(String, String)> = seen
        .iter()
        .map(|one| {
            (
                one.path.clone(),
                String::from_utf8(one.body.to_vec()).unwrap(),
            )
        })
        .collect();
    assert_eq!(got, expected);
    assert_eq!(
        seen.len(),
        expected.len(),
        "each subscription gets each event once"
    );
    let ids: BTreeSet<&str> = seen.iter().map(|one| one.webhook_id()).collect();
    assert_eq!(ids.len(), seen.len(), "each webhook has an id of its own");
    for one in &seen {
        verified(one, SECRET).unwrap();
        assert!(
            verified(one, OTHER_SECRET).is_err(),
            "another secret verifies too"
        );
        assert_eq!(one.header("content-type"), Some("application/json"));
        assert_eq!(one.header("hookstream-attempt"), Some("1"));
        let agent = one.header("user-agent").unwrap();
        assert!(agent.starts_with("hookstream/"), "{agent}");
    }
    assert_eq!(
        process.metric(r#"hookstream_events_total{result="fanned_out"}"#),
        Some(5.0)
    );
    assert!(dead_letters(&world).is_empty());
}

#[test]
fn while_secrets_rotate_every_one_of_them_signs() {
    let world = world("rotation");
    let receiver = Receiver::good();
    let key = SigningKey::from_bytes(&[7; 32]);
    let pair = [key.to_bytes(), key.verifying_key().to_bytes()].concat();
    let asymmetric = format!("whsk_{}", STANDARD.encode(pair));
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/"), &["**"]),
            json!({"secrets": [OTHER_SECRET, SECRET, asymmetric]}),
        )],
    );
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", r#"{"n":1}"#));
    let seen = &receiver.wait_for(1, SOON)[0];
    verified(seen, SECRET).unwrap();
    verified(seen, OTHER_SECRET).unwrap();

    let signatures: Vec<&str> = seen
        .header("webhook-signature")
        .unwrap()
        .split(' ')
        .collect();
    assert_eq!(signatures.len(), 3, "{signatures:?}");
    assert!(
        signatures[0].starts_with("v1,") && signatures[1].starts_with("v1,"),
        "{signatures:?}"
    );
    let bytes = STANDARD
        .decode(signatures[2].strip_prefix("v1a,").unwrap())
        .unwrap();
    let timestamp = seen.header("webhook-timestamp").unwrap();
    let signed = [
        format!("{}.{timestamp}.", seen.webhook_id()).as_bytes(),
        &seen.body,
    ]
    .concat();
    key.verifying_key()
        .verify(&signed, &Signature::from_slice(&bytes).unwrap())
        .unwrap();
}

#[test]
fn events_of_all_three_forms_arrive_in_both_formats() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let world = world("forms");
    let receiver = Receiver::good();
    put(
        &world,
        &[
            with(
                subscription("standard", &receiver.url("/standard"), &["**"]),
                json!({"headers": {"x-tenant": "acme", "authorization": "Bearer abc"}}),
            ),
            with(
                subscription("cloud", &receiver.url("/cloud"), &["**"]),
                json!({"format": "cloudevents"}),
            ),
        ],
    );
    let _process = start(&world, &[]);
    let structured = EventBuilderV10::new()
        .id("by-sdk")
        .source("urn:shop:1")
        .ty("order.structured")
        .subject("o-1")
        .extension("region", "eu")
        .data("application/json", json!({"n": 2}))
        .build()
        .unwrap();
    let structured = serde_json::to_string(&structured).unwrap();
    let binary = [
        ("ce_specversion", "1.0"),
        ("ce_id", "b-1"),
        ("ce_source", "urn:shop:1"),
        ("ce_type", "order.binary"),
        ("ce_time", "2026-07-01T12:00:00Z"),
        ("ce_traceparent", TRACE),
        ("content-type", "application/json"),
    ];
    world.produce_event(
        "k",
        &[("traceparent", TRACE)],
        event("p-1", "order.plain", r#"{"n":1}"#),
    );
    world.produce_event("k", &binary, r#"{"n":3}"#);
    world.produce_event(
        "k",
        &[("content-type", "application/cloudevents+json")],
        &structured,
    );
    // The SDK's Kafka binding writes this content type on structured events.
    let mislabelled = structured.replace("by-sdk", "by-sdk-2");
    world.produce_event("k", &[("content-type", "application/json")], &mislabelled);
    wait_until_done(&world);

    let bodies = |path: &str| -> Vec<Value> {
        let mut bodies: Vec<Value> = receiver
            .seen_at(path)
            .iter()
            .map(|seen| serde_json::from_slice(&seen.body).unwrap())
            .collect();
        bodies.sort_by_key(|body| (body["type"].to_string(), body["id"].to_string()));
        bodies
    };
    let kinds: Vec<(Value, Value)> = bodies("/standard")
        .into_iter()
        .map(|mut body| (body["type"].take(), body["data"]["n"].take()))
        .collect();
    assert_eq!(
        kinds,
        [
            (json!("order.binary"), json!(3)),
            (json!("order.plain"), json!(1)),
            (json!("order.structured"), json!(2)),
            (json!("order.structured"), json!(2)),
        ]
    );
    let cloud = bodies("/cloud");
    assert_eq!(
        cloud.iter().map(|body| &body["id"]).collect::<Vec<_>>(),
        ["b-1", "p-1", "by-sdk", "by-sdk-2"]
    );
    for body in &cloud {
        assert_eq!(body["specversion"], "1.0", "{body}");
        assert!(body["source"].is_string(), "{body}");
        // Another implementation must be able to read what we write.
        let read: cloudevents::Event = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(cloudevents::AttributesReader::id(&read), body["id"]);
    }
    assert_eq!(cloud[0]["source"], "urn:shop:1");
    assert_eq!(cloud[2]["region"], "eu");
    for seen in receiver.seen_at("/cloud") {
        assert_eq!(
            seen.header("content-type"),
            Some("application/cloudevents+json")
        );
        assert_eq!(seen.header("x-tenant"), None);
    }
    for seen in receiver.seen_at("/standard") {
        assert_eq!(seen.header("content-type"), Some("application/json"));
        assert_eq!(seen.header("x-tenant"), Some("acme"));
        assert_eq!(seen.header("authorization"), Some("Bearer abc"));
        let traced = !String::from_utf8_lossy(&seen.body).contains("order.structured");
        assert_eq!(seen.header("traceparent"), traced.then_some(TRACE));
    }
    let byte_for_byte = receiver
        .seen_at("/cloud")
        .iter()
        .any(|seen| seen.body == structured.as_bytes());
    assert!(
        byte_for_byte,
        "a structured event is passed on as it was written"
    );
}

#[test]
fn a_receiver_that_fails_three_times_gets_the_same_webhook_and_never_early() {
    let world = world("retries");
    let receiver = Receiver::start(|seen| match seen.attempt {
        1 => Answer::status(500),
        2 => Answer::reset(),
        3 => Answer::status(302).header("location", "/elsewhere"),
        _ => Answer::ok(),
    });
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/hook"), &["**"]),
            json!({"secrets": [SECRET]}),
        )],
    );
    let process = start(&world, &[]);
    world.produce_events(
        (0..5).map(|n| ("k", event(&n.to_string(), "order.created", &n.to_string()))),
    );
    wait_until_done(&world);

    let seen = receiver.seen();
    assert_eq!(
        seen.len(),
        20,
        "five webhooks of four attempts, and no redirect is followed"
    );
    let ids: BTreeSet<&str> = seen.iter().map(|one| one.webhook_id()).collect();
    for id in ids {
        let attempts: Vec<&Arc<Seen>> = seen.iter().filter(|one| one.webhook_id() == id).collect();
        let counted: Vec<_> = attempts
            .iter()
            .map(|one| one.header("hookstream-attempt").unwrap())
            .collect();
        assert_eq!(counted, ["1", "2", "3", "4"]);
        for (pair, delay) in attempts.windows(2).zip(SCHEDULE) {
            assert_eq!(pair[0].body, pair[1].body, "the body has changed");
            // 20 % of jitter, and both times are cut to a millisecond.
            let least = i64::try_from(delay.as_millis()).unwrap() * 8 / 10 - 1;
            let waited = pair[1].received - pair[0].received;
            assert!(
                waited >= least,
                "{waited} ms after a failure, {least} ms is the earliest"
            );
        }
        for one in attempts {
            verified(one, SECRET).unwrap();
        }
    }
    assert!(dead_letters(&world).is_empty());
    assert_eq!(
        process.metric(r#"hookstream_attempts_total{class="3xx",outcome="retry"}"#),
        Some(5.0)
    );
    assert_eq!(
        process.metric(r#"hookstream_attempts_total{class="2xx",outcome="delivered"}"#),
        Some(5.0)
    );
}

#[test]
fn an_endpoint_that_throttles_is_left_alone_as_long_as_it_asks_and_no_attempt_is_spent() {
    let world = world("retry-after");
    let receiver = Receiver::start(|seen| match (seen.path.as_str(), seen.attempt) {
        ("/busy", 1) if String::from_utf8_lossy(&seen.body).contains("first") => {
            Answer::status(429).header("retry-after", "2")
        }
        _ => Answer::ok(),
    });
    put(
        &world,
        &[
            subscription("busy", &receiver.url("/busy"), &["**"]),
            subscription("calm", &receiver.url("/calm"), &["**"]),
        ],
    );
    let process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", r#""first""#));
    eventually_true("the refusal is known", SOON, || {
        process.metric(r#"hookstream_attempts_total{class="4xx",outcome="throttled"}"#) == Some(1.0)
    });
    world.produce_event("k", &[], event("2", "order.created", r#""second""#));
    wait_until_done(&world);

    let at = |path: &str, text: &str| -> Vec<i64> {
        let of = receiver.seen_at(path);
        let of = of
            .iter()
            .filter(|seen| String::from_utf8_lossy(&seen.body).contains(text));
        of.map(|seen| seen.received).collect()
    };
    let first = at("/busy", "first");
    let second = at("/busy", "second");
    assert_eq!((first.len(), second.len()), (2, 1));
    assert!(
        first[1] - first[0] >= 1_999,
        "it was sent again after {} ms",
        first[1] - first[0]
    );
    assert!(
        second[0] - first[0] >= 1_999,
        "the next webhook came after {} ms",
        second[0] - first[0]
    );
    for seen in receiver.seen() {
        assert_eq!(seen.header("hookstream-attempt"), Some("1"));
    }
    let calm = at("/calm", "second");
    assert!(
        calm[0] < second[0],
        "a neighbour waited for the busy subscription"
    );
}

#[test]
fn a_refused_webhook_becomes_a_dead_letter_and_is_replayed_once() {
    let world = world("replay");
    let accepts = Arc::new(AtomicBool::new(false));
    let receiver = {
        let accepts = Arc::clone(&accepts);
        Receiver::start(move |_| {
            if accepts.load(Ordering::SeqCst) {
                Answer::ok()
            } else {
                Answer::status(400)
            }
        })
    };
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("e-1", "order.created", r#"{"n":1}"#));
    let letters = wait_for_dead_letters(&world, 1);
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!(letter["reason"], "permanent-status");
    assert_eq!(letter["status"], 400);
    assert_eq!(letter["attempts"], 1);
    assert_eq!(letter["event_id"], "e-1");
    assert_eq!(letter["state"], "open");

    accepts.store(true, Ordering::SeqCst);
    let replayed = world.run(&["replay", "--dead-letters", "--yes"], "");
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    let seen = receiver.wait_for(2, LATER);
    assert_eq!(seen[0].webhook_id(), seen[1].webhook_id());
    assert_eq!(seen[0].body, seen[1].body);
    assert_eq!(letter["webhook_id"], seen[0].webhook_id());

    let again = world.run(&["replay", "--dead-letters", "--yes"], "");
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stderr.contains("replayed 0"), "{}", again.stderr);
    wait_until_done(&world);
    assert_eq!(
        receiver.seen().len(),
        2,
        "a dead letter was replayed a second time"
    );
    assert!(dead_letters(&world).is_empty());
    let all = world.run(&["dead-letters", "list", "--all", "-o", "json"], "");
    let all: Value = serde_json::from_str(&all.stdout).unwrap();
    assert_eq!(all[0]["state"], "replayed");
}

#[test]
fn an_endpoint_that_is_gone_disables_its_subscription() {
    let world = world("gone");
    let receiver = Receiver::start(|_| Answer::status(410));
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/"), &["**"]),
            json!({"headers": {"x-tenant": "kept"}}),
        )],
    );
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    let letters = wait_for_dead_letters(&world, 1);
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["status"]),
        (&json!("gone"), &json!(410))
    );
    let shown = eventually("the subscription is disabled", SOON, || {
        let shown = world.run(&["subscriptions", "show", "acme", "-o", "json"], "");
        let shown: Value = serde_json::from_str(&shown.stdout).ok()?;
        (shown["state"] == "disabled").then_some(shown)
    });
    assert_eq!(
        shown["headers"]["x-tenant"], "kept",
        "its other fields are lost: {shown}"
    );

    // Its own record has to come back to it first; until then it may ask the endpoint once more.
    let disabled = |number: usize| {
        world.produce_event(
            "k",
            &[],
            event(&format!("later-{number}"), "order.created", "2"),
        );
        let letters = wait_for_dead_letters(&world, number + 2);
        letters.iter().any(|letter| letter["reason"] == "disabled")
    };
    let mut number = 0;
    eventually_true(
        "a later command is dead-lettered as disabled",
        LATER,
        || {
            number += 1;
            disabled(number - 1)
        },
    );
}

#[test]
fn a_webhook_whose_attempts_are_exhausted_becomes_a_dead_letter() {
    let world = world("exhausted");
    let receiver = Receiver::start(|_| Answer::status(500));
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/"), &["**"]),
            json!({"retry_schedule": ["100ms", "100ms"]}),
        )],
    );
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    let letters = wait_for_dead_letters(&world, 1);
    assert_eq!(letters[0]["reason"], "attempts-exhausted");
    assert_eq!(
        (&letters[0]["attempts"], &letters[0]["status"]),
        (&json!(3), &json!(500))
    );
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 3);
}

/// A dead endpoint: its commands end at their maximum age, whether they had an attempt or were parked by the open breaker.
/// A replay starts the age anew, so the webhook is delivered once the endpoint works.
#[test]
fn the_commands_of_a_dead_endpoint_expire_and_a_replay_gives_them_a_new_age() {
    let world = world("expired");
    let works = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&works);
    let receiver = Receiver::start(move |_| {
        Answer::status(if now.load(Ordering::Relaxed) {
            200
        } else {
            500
        })
    });
    let fields = json!({
        "max_age": "3s", "retry_schedule": ["1h"], "max_in_flight": 1,
        "breaker": {"failures": 2, "probe": "10m", "max_probe": "10m"},
    });
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/"), &["**"]),
            fields,
        )],
    );
    let process = start(&world, &[]);
    for number in 0..20 {
        let id = number.to_string();
        world.produce_event("k", &[], event(&id, "order.created", &id));
    }
    let letters = wait_for_dead_letters(&world, 20);
    let attempts = |letter: &Value| letter["attempts"].as_u64().unwrap();
    for letter in &letters {
        assert_eq!(letter["reason"], "expired", "{letter}");
        let error = letter["error"].as_str().unwrap();
        assert!(error.contains("the limit (max_age) is 3s"), "{error}");
        let told = match attempts(letter) {
            0 => "no attempt was made",
            _ => ": the endpoint responded 500",
        };
        assert!(error.ends_with(told), "{error}");
    }
    assert!(letters.iter().any(|letter| attempts(letter) == 0));
    assert!(letters.iter().any(|letter| attempts(letter) == 1));
    wait_until_done(&world);
    let deliveries = || {
        process
            .metric("hookstream_event_to_delivery_seconds_count")
            .unwrap_or_default()
    };
    assert_eq!(deliveries(), 0.0);
    works.store(true, Ordering::Relaxed);
    // Without the open breaker of before.
    let open = json!({"max_age": "1h", "breaker": {"failures": 0, "rate": 0, "probe": "10ms", "max_probe": "10ms"}});
    put(
        &world,
        &[with(
            subscription("acme", &receiver.url("/again"), &["**"]),
            open,
        )],
    );
    drop(process);
    let process = start(&world, &[]);
    let replay = ["replay", "--dead-letters", "--reason", "expired", "--yes"];
    let replayed = world.run(&replay, "");
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    receiver.wait_until("all are delivered", LATER, |seen| {
        seen.iter().filter(|seen| seen.path == "/again").count() == 20
    });
    wait_until_done(&world);
    let counted = process.metric("hookstream_event_to_delivery_seconds_count");
    assert_eq!(
        counted.unwrap_or_default(),
        0.0,
        "a replay is not the first delivery of its event"
    );
}

#[test]
fn a_command_of_a_deleted_subscription_becomes_a_dead_letter() {
    let world = world("deleted");
    let receiver = Receiver::good();
    put(
        &world,
        &[subscription("stays", &receiver.url("/"), &["**"])],
    );
    let _process = start(&world, &[]);
    let long_ago = "1000";
    let headers = [
        ("webhook-id", "w-1"),
        ("hs-subscription", "deleted"),
        ("hs-event-id", "1"),
        ("hs-event-type", "order.created"),
        ("hs-event-time", "2026-07-01T12:00:00Z"),
        ("hs-content-type", "application/json"),
        ("hs-attempt", "2"),
        ("hs-enqueued", long_ago),
        ("hs-cause", "retry"),
    ];
    world.produce(
        &world.topics.commands(),
        [(Some("acme"), headers.to_vec(), Some(b"body".to_vec()))],
    );
    let letters = wait_for_dead_letters(&world, 1);
    assert_eq!(letters[0]["reason"], "subscription-missing");
    assert_eq!(
        (&letters[0]["webhook_id"], &letters[0]["attempts"]),
        (&json!("w-1"), &json!(2))
    );
    let record = &world.read_all(&world.topics.dead_letters(), Isolation::Committed)[0];
    assert_eq!(
        (record.key_text(), record.value.as_deref()),
        ("acme", Some(&b"body"[..]))
    );
    assert!(receiver.seen().is_empty());
}

#[test]
fn an_endpoint_in_a_forbidden_network_gets_no_request() {
    let world = world("egress");
    let receiver = Receiver::good();
    let by_name = format!("http://localhost:{}/", receiver.port());
    // The address of a name may change, so each attempt asks again.
    let mut by_name = subscription("by-name", &by_name, &["**"]);
    by_name["retry_schedule"] = json!(["10ms"]);
    let by_address = subscription("by-address", &receiver.url("/"), &["**"]);
    put(&world, &[by_address, by_name]);
    let process = start(&world, &["--egress-deny-cidr", "127.0.0.0/8"]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    let letters = wait_for_dead_letters(&world, 2);
    for letter in &letters {
        assert_eq!(letter["reason"], "egress-denied", "{letter}");
    }
    wait_until_done(&world);
    assert!(receiver.seen().is_empty(), "a forbidden endpoint was asked");
    assert_eq!(
        process.metric(r#"hookstream_attempts_total{class="egress",outcome="dead_lettered"}"#),
        Some(1.0),
        "what is forbidden by its address alone is no attempt"
    );
    assert_eq!(
        process.metric(r#"hookstream_attempts_total{class="egress",outcome="retry"}"#),
        Some(1.0)
    );
}

#[test]
fn a_paused_subscription_waits_and_resumes() {
    let world = world("paused");
    let receiver = Receiver::good();
    put(
        &world,
        &[
            with(
                subscription("acme", &receiver.url("/acme"), &["**"]),
                json!({"state": "paused"}),
            ),
            subscription("active", &receiver.url("/active"), &["**"]),
        ],
    );
    let process = start(&world, &[]);
    world.produce_events(
        (0..3).map(|n| ("k", event(&n.to_string(), "order.created", &n.to_string()))),
    );
    let tier = world.topics.retry(world.tiers[0]);
    let parked = wait_for_records(&world, &tier, 6);
    for record in &parked {
        assert_eq!(
            (record.header("hs-cause"), record.header("hs-attempt")),
            (Some("parked"), Some("0")),
            "waiting costs no attempt"
        );
        assert_eq!(record.header("hs-subscription"), Some("acme"));
    }
    receiver.wait_until("the active one has its three", SOON, |seen| {
        seen.iter().filter(|one| one.path == "/active").count() == 3
    });
    assert!(
        receiver.seen_at("/acme").is_empty(),
        "a paused subscription got a request"
    );
    assert!(
        process
            .metric(r#"hookstream_parked_total{why="paused"}"#)
            .unwrap()
            >= 6.0
    );

    let resumed = world.run(&["subscriptions", "resume", "acme"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    wait_until_done(&world);
    let seen = receiver.seen_at("/acme");
    assert_eq!(seen.len(), 3);
    for one in &seen {
        assert_eq!(one.header("hookstream-attempt"), Some("1"));
    }
}

/// TLS in front of a receiver, with a certificate of its own for 127.0.0.1.
struct Tls {
    url: String,
    certificate: String,
    _runtime: tokio::runtime::Runtime,
}

impl Tls {
    fn before(receiver: &Receiver, path: &str) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("https://{}{path}", listener.local_addr().unwrap());
        let behind = ("127.0.0.1", receiver.port());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Whoever does not trust the certificate goes away here.
                    if let Ok(mut outer) = acceptor.accept(stream).await {
                        let mut inner = tokio::net::TcpStream::connect(behind).await.unwrap();
                        drop(tokio::io::copy_bidirectional(&mut outer, &mut inner).await);
                    }
                });
            }
        });
        Self {
            url,
            certificate: certified.cert.pem(),
            _runtime: runtime,
        }
    }
}

#[test]
fn an_endpoint_is_trusted_by_the_authorities_of_the_operator_only() {
    let world = world("tls");
    let receiver = Receiver::good();
    let trusted = Tls::before(&receiver, "/trusted");
    let stranger = Tls::before(&receiver, "/stranger");
    let mut authorities = tempfile::NamedTempFile::new().unwrap();
    authorities
        .write_all(trusted.certificate.as_bytes())
        .unwrap();
    put(
        &world,
        &[
            subscription("trusted", &trusted.url, &["**"]),
            with(
                subscription("stranger", &stranger.url, &["**"]),
                json!({"retry_schedule": []}),
            ),
        ],
    );
    let process = start(&world, &["--ca-file", authorities.path().to_str().unwrap()]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    wait_until_done(&world);
    let paths: Vec<String> = receiver
        .seen()
        .iter()
        .map(|seen| seen.path.clone())
        .collect();
    assert_eq!(
        paths,
        ["/trusted"],
        "nothing may be sent to who cannot be trusted"
    );
    let letters = dead_letters(&world);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["subscription"], "stranger");
    assert_eq!(
        process.metric(r#"hookstream_attempts_total{class="tls",outcome="dead_lettered"}"#),
        Some(1.0)
    );
}

/// The URL of a server that answers a TLS handshake in plain text, until the tests end.
fn speaks_no_tls() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            drop(connection.read(&mut [0; 1024]));
            drop(connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    url
}

#[test]
fn an_endpoint_that_misbehaves_fails_the_attempt_with_its_class() {
    let world = world("misbehave");
    let receiver = Receiver::start(|seen| match (seen.path.as_str(), seen.attempt) {
        ("/garbage", 1) => Answer::garbage(),
        ("/half", 1) => Answer::half(),
        ("/close", 1) => Answer::close(),
        ("/hang", 1) => Answer::hang(),
        ("/endless", _) => Answer::endless(),
        _ => Answer::ok(),
    });
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let tls = speaks_no_tls();
    let once = json!({"retry_schedule": []});
    let mut subscriptions: Vec<Value> = ["garbage", "half", "close", "hang", "endless"]
        .iter()
        .map(|name| subscription(name, &receiver.url(&format!("/{name}")), &["**"]))
        .collect();
    subscriptions.push(with(subscription("nobody", &nobody, &["**"]), once.clone()));
    subscriptions.push(with(subscription("no-tls", &tls, &["**"]), once));
    put(&world, &subscriptions);
    let process = start(&world, &["--timeout", "2s"]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    wait_until_done(&world);

    let attempts = |class: &str, outcome: &str| {
        let sample = format!(r#"hookstream_attempts_total{{class="{class}",outcome="{outcome}"}}"#);
        process.metric(&sample).unwrap_or(0.0)
    };
    assert_eq!(attempts("other", "retry"), 3.0, "garbage, half, close");
    assert_eq!(attempts("timeout", "retry"), 1.0);
    assert_eq!(attempts("connect", "dead_lettered"), 1.0);
    assert_eq!(attempts("tls", "dead_lettered"), 1.0);
    assert_eq!(attempts("2xx", "delivered"), 5.0);
    for path in ["/garbage", "/half", "/close", "/hang"] {
        assert_eq!(
            receiver.seen_at(path).len(),
            2,
            "{path}: one failure, one retry"
        );
    }
    assert_eq!(
        receiver.seen_at("/endless").len(),
        1,
        "complete headers of a 200 are a delivery"
    );
    let mut given_up: Vec<String> = dead_letters(&world)
        .iter()
        .map(|letter| letter["subscription"].as_str().unwrap().to_owned())
        .collect();
    given_up.sort();
    assert_eq!(given_up, ["no-tls", "nobody"]);
}
