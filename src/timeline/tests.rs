//! Steps from records to text.

use std::sync::Arc;

use super::decode::{attempt, carries, holds, read};
use super::event::EventMatcher;
use super::step::{Detail, RecordView, Step, TopicKind, Webhook, coordinates, in_order};
use crate::model::command::{Cause, ContentType, Envelope};
use crate::model::dead_letter::Settlement;
use crate::model::event::{Mapping, webhook_id};
use crate::model::units::EpochMs;

fn headers_of(cause: Cause, attempt: u32, due: Option<i64>) -> Vec<(&'static str, Vec<u8>)> {
    let mut headers = Vec::new();
    let envelope = Envelope {
        webhook_id: "msg_1",
        subscription: "acme-orders",
        event_id: "e1",
        event_type: "order.created",
        event_time: None,
        subject: None,
        content_type: ContentType::Json,
        attempt,
        due: due.map(EpochMs),
        enqueued: EpochMs(1),
        cause,
        first_failure: None,
        last_failure: None,
        replayed: None,
        sequence: None,
        recorded: None,
        cluster: None,
        traceparent: None,
    };
    envelope.each_header(|name, value| headers.push((name, value.as_bytes().to_vec())));
    headers
}

fn step(kind: TopicKind, time: i64, headers: &[(&'static str, Vec<u8>)]) -> Step {
    let pairs: Vec<(&str, &[u8])> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_slice()))
        .collect();
    let raw = RecordView {
        topic: &Arc::from("t"),
        at: coordinates(0, time),
        time: EpochMs(time),
        key: Some(b"acme"),
        headers: &pairs,
        value: None,
    };
    read(kind, &raw)
}

fn summaries(steps: Vec<Step>) -> Vec<String> {
    in_order(steps)
        .iter()
        .map(|step| step.detail.summary(|at| format!("@{at}")))
        .collect()
}

#[test]
fn steps_are_ordered_by_time() {
    let listed = summaries(vec![
        step(
            TopicKind::Commands,
            900,
            &headers_of(Cause::Retry, 1, Some(800)),
        ),
        step(
            TopicKind::Tier,
            300,
            &headers_of(Cause::Retry, 1, Some(800)),
        ),
        step(
            TopicKind::Tier,
            600,
            &headers_of(Cause::Retry, 1, Some(800)),
        ),
        step(TopicKind::Commands, 100, &headers_of(Cause::New, 0, None)),
        step(
            TopicKind::Tier,
            950,
            &headers_of(Cause::Parked, 1, Some(2000)),
        ),
        step(
            TopicKind::Commands,
            2000,
            &headers_of(Cause::Parked, 1, Some(2000)),
        ),
    ]);
    assert_eq!(
        listed,
        [
            "new command",
            "retry 1 due @800",
            "moved on in the retry topics, due @800",
            "released for attempt 2",
            "parked until @2000",
            "released from parking for attempt 2",
        ]
    );
}

#[test]
fn among_records_of_the_same_time_the_cause_comes_first() {
    let settled = crate::model::dead_letter::Settled {
        letter: coordinates(3, 7),
        cluster: None,
        moment: None,
        how: Settlement::Replayed,
        at: EpochMs(5),
        webhook_id: "msg_1".to_owned(),
        subscription: "acme-orders".to_owned(),
    };
    let fact: Vec<_> = settled
        .headers()
        .into_iter()
        .map(|(name, value)| (name, value.into_bytes()))
        .collect();
    let steps = in_order(vec![
        step(TopicKind::Tier, 5, &headers_of(Cause::Retry, 1, Some(9))),
        step(TopicKind::Commands, 5, &headers_of(Cause::Replay, 0, None)),
        step(TopicKind::DeadLetters, 5, &fact),
    ]);
    let names: Vec<_> = steps.iter().map(|step| step.detail.name()).collect();
    assert_eq!(names, ["replayed", "replay", "retry"]);
    assert!(
        steps.iter().all(|step| step.event_id == "e1"),
        "a settling record gets its event id from the others"
    );
}

#[test]
fn a_record_matches_by_the_ids_in_its_headers_only() {
    let headers = headers_of(Cause::New, 0, None);
    let with = |id: &str| {
        let pairs = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_slice())));
        carries(id, pairs)
    };
    assert!(with("msg_1") && with("e1"));
    assert!(!with("acme-orders") && !with("msg_") && !with(""));
}

#[test]
fn an_attempt_is_found_by_either_id_in_its_value_and_by_no_other_text() {
    let value = |event: &str, body: &str| {
        serde_json::json!({
            "webhook_id": "msg_1", "subscription": "acme-orders", "subscriber": "acme", "event_id": event,
            "event_type": "order.created", "attempt": 1, "time": "2023-11-14T22:13:29.000Z", "duration_ms": 1.5,
            "url": "https://acme.example/", "status": 200, "class": "2xx", "outcome": "delivered", "body": body,
        })
        .to_string()
    };
    let find = |id: &str, value: &str| {
        let quoted = serde_json::Value::from(id).to_string();
        let value = Some(value.as_bytes());
        let raw = RecordView {
            topic: &Arc::from("webhook-attempts"),
            at: coordinates(0, 7),
            time: EpochMs(5),
            key: Some(b"acme"),
            headers: &[],
            value,
        };
        holds(&quoted, value).then(|| attempt(id, &raw)).flatten()
    };
    for (id, event) in [("msg_1", "e1"), ("e1", "e1"), ("a\"b\\\n", "a\"b\\\n")] {
        let step = find(id, &value(event, "")).unwrap();
        assert_eq!((&*step.event_id, step.detail.name()), (event, "attempt"));
        let webhook = step.webhook.unwrap();
        assert_eq!(
            (&*webhook.id, &*webhook.subscription),
            ("msg_1", "acme-orders")
        );
    }
    for id in ["msg_", "acme", "order.created", "e2", ""] {
        assert!(find(id, &value("e1", r#"you sent "e2""#)).is_none(), "{id}");
    }
    let later = r#"{"webhook_id":"msg_1","subscription":"acme-orders","attempt":"first"}"#;
    let step = find("msg_1", later).unwrap();
    assert_eq!(
        (step.detail.name(), &*step.webhook.unwrap().id),
        ("unreadable", "msg_1")
    );
    assert!(find("acme-orders", later).is_none(), "another webhook's");
}

#[test]
fn a_record_of_a_later_version_is_listed_as_unreadable() {
    let mut headers = headers_of(Cause::New, 0, None);
    headers[0].1 = b"2".to_vec();
    let step = step(TopicKind::Commands, 1, &headers);
    assert_eq!(step.detail.name(), "unreadable");
    assert!(
        step.detail
            .summary(|at| at.to_string())
            .contains("version 2"),
        "{:?}",
        step.detail
    );
}

fn event_step(matcher: &EventMatcher, value: &str) -> Option<Step> {
    let raw = RecordView {
        topic: &Arc::from("order-events"),
        at: coordinates(0, 0),
        time: EpochMs(0),
        key: None,
        headers: &[],
        value: Some(value.as_bytes()),
    };
    let step = matcher.event(&raw, None);
    assert!(
        step.is_none() || matcher.may_be(&raw, None),
        "the filter must not miss it"
    );
    step
}

#[test]
fn an_event_is_found_by_its_id_in_any_json_spelling() {
    let matcher = EventMatcher::of("e/1", &[]);
    for id in ["e/1", r"e\/1", r"e\u002f1"] {
        let event = format!(r#"{{"id":"{id}","type":"a.b"}}"#);
        assert_eq!(
            event_step(&matcher, &event).unwrap().event_id,
            "e/1",
            "{id}"
        );
    }
    for other in [
        r#"{"id":"e/11","type":"a.b"}"#,
        r#"{"id":"x","type":"e/1"}"#,
    ] {
        assert!(event_step(&matcher, other).is_none(), "{other}");
    }
}

#[test]
fn an_invalid_event_in_binary_mode_is_found_too() {
    let matcher = EventMatcher::of("e1", &[]);
    let found = |id: &str, value: Option<&[u8]>| {
        let headers: [(&str, &[u8]); 2] = [
            ("ce_id", id.as_bytes()),
            ("hookstream-error", b"ce_type is missing"),
        ];
        let raw = RecordView {
            topic: &Arc::from("webhook-invalid-events"),
            at: coordinates(0, 0),
            time: EpochMs(0),
            key: None,
            headers: &headers,
            value,
        };
        matcher.invalid(&raw)
    };
    for value in [None, Some(&b"{"[..]), Some(&b"\xff"[..])] {
        let step = found("e1", value).unwrap();
        let error = "ce_type is missing".to_owned();
        assert_eq!(
            (&*step.event_id, step.detail),
            ("e1", Detail::Invalid { error })
        );
        assert_eq!(found("e11", value), None);
    }
    assert!(found("x", Some(br#"{"id":"e1"}"#)).is_some());
}

#[test]
fn a_webhook_id_finds_its_own_event_and_not_that_of_another_source() {
    let id = webhook_id("/shop", "1", "acme-orders");
    let mut command = step(TopicKind::Commands, 1, &headers_of(Cause::New, 0, None));
    command.event_id = "1".to_owned();
    command.webhook = Some(Webhook {
        id: id.clone(),
        subscription: "acme-orders".to_owned(),
    });
    let matcher = EventMatcher::of(&id, &[command]);
    let event = |source: &str| {
        format!(r#"{{"specversion":"1.0","id":"1","source":"{source}","type":"a.b"}}"#)
    };
    assert!(event_step(&matcher, &event("/shop")).is_some());
    assert!(event_step(&matcher, &event("/other")).is_none());
}

#[test]
fn an_attempt_names_its_status_or_error() {
    let attempt = |status, error: Option<&str>| Detail::Attempt {
        number: 2,
        status,
        class: "5xx".to_owned(),
        outcome: "dead_lettered".to_owned(),
        duration_ms: 12.345,
        error: error.map(str::to_owned),
    };
    let summary = |detail: Detail| detail.summary(|at| at.to_string());
    assert_eq!(
        summary(attempt(Some(500), None)),
        "attempt 2: status 500 after 12 ms, dead-lettered"
    );
    assert_eq!(
        summary(attempt(None, Some("refused"))),
        "attempt 2: no response after 12 ms, dead-lettered: refused"
    );
}

#[test]
fn an_event_is_found_where_the_mapping_of_its_topic_has_its_id() {
    let mapping = |fields: &[(&str, &str)]| {
        let each = fields.iter();
        let given = each.map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]));
        Mapping::read(&given.collect()).unwrap()
    };
    let by_key = [("id", "key"), ("type", "const:a")];
    let by_value = [("id", "json:a.b"), ("type", "const:a"), ("unwrap", "true")];
    for (fields, key, header, value) in [
        (&[("preset", "debezium-outbox")][..], "k", "e1", r#""{}""#),
        (&[("preset", "debezium-outbox")], "k", "\"e1\"", "{}"),
        (&by_key, "e1", "x", "{}"),
        (&by_key, r#""\u00651""#, "x", "{}"),
        (&by_value, "k", "x", r#"{"a":"{\"b\":\"e1\"}"}"#),
    ] {
        let mapping = mapping(fields);
        let headers: [(&str, &[u8]); 1] = [("id", header.as_bytes())];
        let raw = RecordView {
            topic: &Arc::from("order-events"),
            at: coordinates(0, 0),
            time: EpochMs(0),
            key: Some(key.as_bytes()),
            headers: &headers,
            value: Some(value.as_bytes()),
        };
        let found = |id: &str, mapping| {
            let matcher = EventMatcher::of(id, &[]);
            let step = matcher.event(&raw, mapping);
            assert!(
                step.is_none() || matcher.may_be(&raw, mapping),
                "{key} {header}"
            );
            step.is_some()
        };
        assert!(found("e1", Some(&mapping)), "{key} {header} {value}");
        assert!(!found("e2", Some(&mapping)));
        assert!(!found("e1", None));
    }
}
