//! Mappings over records that Debezium's and Spring's own classes made (tests/data/mapped-records), and over made-up ones.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::super::{Format, read};
use super::*;
use crate::model::units::EpochMs;

const LIMIT: usize = 1 << 20;
const ID: &str = "f0b5b5d4-2c0d-4c8e-9d3b-4d6f5b1f0a01";

/// A record of the files.
#[derive(Debug, Deserialize)]
struct Sample {
    name: String,
    topic: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
    value: Option<String>,
}

fn samples(kind: &str) -> Vec<Sample> {
    let text = match kind {
        "debezium" => include_str!("../../../../tests/data/mapped-records/debezium.json"),
        _ => include_str!("../../../../tests/data/mapped-records/spring.json"),
    };
    serde_json::from_str(text).unwrap()
}

impl Sample {
    fn with<T>(&self, use_it: impl FnOnce(RawEvent<'_>) -> T) -> T {
        let headers: Vec<(&str, &[u8])> = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        use_it(RawEvent {
            topic: &self.topic,
            key: self.key.as_deref().map(str::as_bytes),
            payload: self.value.as_deref().map(str::as_bytes),
            headers: &headers,
            timestamp: EpochMs(1_782_907_200_500),
        })
    }
}

/// A mapping from text as it is in the file: `field = value`, several values separated by `|`.
fn mapping(fields: &[&str]) -> Mapping {
    let each = fields.iter().map(|field| {
        let (name, values) = field.split_once(" = ").unwrap();
        let values = values.split('|').map(str::to_owned).collect();
        (name.to_owned(), values)
    });
    Mapping::read(&each.collect::<BTreeMap<_, _>>()).unwrap()
}

/// What an event is, for comparisons: id, type, source, subject, time and data.
fn facts(event: &Event<'_>) -> (String, String, String, String, String, Value) {
    let optional = |text: Option<&str>| text.unwrap_or("-").to_owned();
    (
        event.id().to_owned(),
        event.event_type().to_owned(),
        event.source().to_owned(),
        optional(event.subject()),
        optional(event.time()),
        event.data().clone(),
    )
}

#[track_caller]
fn sample_facts(
    sample: &Sample,
    mapping: &Mapping,
) -> (String, String, String, String, String, Value) {
    sample.with(|raw| {
        let event = read_mapped(&raw, mapping, LIMIT);
        let event = event.unwrap_or_else(|error| panic!("{}: {error}", sample.name));
        let again = read_mapped(&raw, mapping, LIMIT).unwrap();
        for format in [Format::Standard, Format::CloudEvents] {
            let body = event.body(format);
            assert_eq!(body, again.body(format), "{}", sample.name);
            let json: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["data"], *event.data(), "{}", sample.name);
        }
        facts(&event)
    })
}

#[test]
fn every_form_of_an_outbox_record_becomes_the_same_event() {
    let outbox = mapping(&["preset = debezium-outbox"]);
    let enveloped = mapping(&[
        "preset = debezium-outbox",
        "type = json:eventType",
        "time = json:time",
        "data = json:payload",
    ]);
    let timed = mapping(&[
        "preset = debezium-outbox",
        "time = header:time|header:created",
    ]);
    let payload = json!({"id": 42, "total": 19.9, "note": "für \"Zoë\""});
    let mut tried = 0;
    for sample in samples("debezium") {
        let Some(form) = sample.name.strip_prefix("outbox, ") else {
            continue;
        };
        let has_type = form.contains("type ") || form.contains("headers as JSON");
        let event_type = if has_type {
            "order.created"
        } else {
            "outbox.event.order"
        };
        let (mapping, time) = match form {
            _ if form.contains("envelope") => (&enveloped, "2026-07-01T12:00:00.25Z"),
            _ if form.contains("times") || form.contains("headers as JSON") => {
                (&timed, "2026-07-01T12:00:00.25Z")
            }
            _ => (&outbox, "-"),
        };
        let is_null = form.contains("null") || form.contains("empty payload");
        let expected = (
            ID.to_owned(),
            event_type.to_owned(),
            "outbox.event.order".to_owned(),
            "order-42".to_owned(),
            time.to_owned(),
            if is_null {
                Value::Null
            } else {
                payload.clone()
            },
        );
        assert_eq!(sample_facts(&sample, mapping), expected, "{form}");
        assert!(!sample.with(|raw| raw.is_skipped(Some(mapping))), "{form}");
        tried += 1;
    }
    assert_eq!(tried, 16);
}

#[test]
fn the_payload_of_an_outbox_record_keeps_its_own_bytes() {
    let outbox = mapping(&["preset = debezium-outbox"]);
    let samples = samples("debezium");
    let sample = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap();
    for name in [
        "outbox, JSON without schemas",
        "outbox, JSON with schemas",
        "outbox, strings",
    ] {
        let body = sample(name).with(|raw| {
            let event = read_mapped(&raw, &outbox, LIMIT).unwrap();
            String::from_utf8(event.body(Format::Standard)).unwrap()
        });
        assert_eq!(
            body,
            r#"{"type":"outbox.event.order","timestamp":"2026-07-01T12:00:00.500Z","data":{"id": 42, "total": 19.90, "note": "für \"Zoë\""}}"#,
            "{name}"
        );
    }
}

#[test]
fn without_a_mapping_such_records_are_no_events() {
    for sample in samples("debezium") {
        let is_event = sample.with(|raw| read(&raw, LIMIT).is_ok());
        assert_eq!(
            is_event,
            sample.name.contains("CloudEvent"),
            "{}",
            sample.name
        );
        if sample.name == "outbox, JSON without schemas" {
            let refused = sample.with(|raw| read(&raw, LIMIT).unwrap_err().to_string());
            assert!(refused.contains("the preset debezium-outbox"), "{refused}");
        }
    }
    for sample in samples("spring") {
        assert!(
            sample.with(|raw| read(&raw, LIMIT).is_err()),
            "{}",
            sample.name
        );
    }
}

#[test]
fn the_cloudevents_of_debezium_are_read_as_such_and_unwrapped() {
    let preset = mapping(&["preset = debezium-cloudevents"]);
    let mut tried = 0;
    for sample in samples("debezium") {
        let is_change = sample.name.starts_with("change as a CloudEvent");
        if !is_change && !sample.name.starts_with("outbox as a CloudEvent") {
            continue;
        }
        let (id, event_type, source, subject, time, data) = sample_facts(&sample, &preset);
        assert_eq!(
            (source.as_str(), subject.as_str(), time.as_str()),
            ("/debezium/postgresql/shop", "-", "2026-07-01T12:00:00.250Z")
        );
        if is_change {
            assert!(id.starts_with("name:shop;lsn:23456789;txId:733"), "{id}");
            assert_eq!(
                event_type,
                "io.debezium.connector.postgresql.DataChangeEvent"
            );
            assert_eq!(data["after"]["aggregateid"], "order-42", "{data}");
        } else {
            assert_eq!((id.as_str(), event_type.as_str()), (ID, "order.created"));
            assert_eq!(
                data,
                json!({"id": 42, "total": 19.9, "note": "für \"Zoë\""})
            );
        }
        sample.with(|raw| {
            let event = read_mapped(&raw, &preset, LIMIT).unwrap();
            let plain = read(&raw, LIMIT).unwrap();
            assert_eq!(event.identity(), plain.identity());
            assert_eq!(event.webhook_id("s"), plain.webhook_id("s"));
            // `iodebeziumtxId`, which CloudEvents does not allow.
            assert_eq!(event.left_out(), 1);
            let body: Value = serde_json::from_slice(&event.body(Format::CloudEvents)).unwrap();
            assert_eq!(body["iodebeziumop"], "c");
            assert_eq!(body.get("iodebeziumtxId"), None);
        });
        tried += 1;
    }
    assert_eq!(tried, 4);
}

#[test]
fn a_field_of_ones_own_holds_for_cloudevents_too() {
    let own = mapping(&[
        "preset = debezium-cloudevents",
        "type = json:iodebeziumtable",
        "subject = json:data.after.aggregateid",
        "source = const:/shop",
        "data = json:data.after.payload",
    ]);
    let samples = samples("debezium");
    let change = samples
        .iter()
        .find(|sample| sample.name == "change as a CloudEvent")
        .unwrap();
    let (_, event_type, source, subject, _, data) = sample_facts(change, &own);
    assert_eq!(
        (event_type.as_str(), source.as_str(), subject.as_str()),
        ("outbox", "/shop", "order-42")
    );
    assert_eq!(data["total"], 19.9, "a payload in a string is unwrapped");
    let outbox = samples
        .iter()
        .find(|sample| sample.name == "outbox, strings");
    let refused = outbox
        .unwrap()
        .with(|raw| read_mapped(&raw, &own, LIMIT).unwrap_err());
    assert_eq!(refused.to_string(), "specversion is missing");
}

#[test]
fn what_spring_cloud_stream_sends_becomes_an_event() {
    let preset = mapping(&["preset = spring-cloud-stream"]);
    let order = json!({"id": "order-42", "total": 19.9, "placed": "2026-07-01T12:00:00.250Z"});
    let mut tried = 0;
    for sample in samples("spring") {
        if sample.name == "neither id nor type" {
            let refused = sample.with(|raw| read_mapped(&raw, &preset, LIMIT).unwrap_err());
            let refused = refused.to_string();
            assert!(
                refused.contains("header:eventId is absent; header:event-id is absent"),
                "{refused}"
            );
            continue;
        }
        let (id, event_type, source, subject, time, data) = sample_facts(&sample, &preset);
        let all = [id, event_type, source, subject, time];
        let expected = match sample.name.as_str() {
            "headers of an application" => [
                ID,
                "order.created",
                "orders",
                "order-42",
                "2026-07-01T12:00:00.250Z",
            ],
            "an id that is no string, in quotation marks" => {
                [ID, "order.created", "orders", "-", "-"]
            }
            "a string as payload" => ["7", "order.created", "orders", "-", "-"],
            "text" => ["e-1", "note.written", "orders", "-", "-"],
            "a CloudEvent" => [ID, "order.created", "/shop", "order-42", "-"],
            other => panic!("{other}"),
        };
        assert_eq!(all, expected, "{}", sample.name);
        let expected = match sample.name.as_str() {
            "text" => json!("für Zoë"),
            "a string as payload" => json!({"id": 42, "total": 19.9}),
            _ => order.clone(),
        };
        assert_eq!(data, expected, "{}", sample.name);
        tried += 1;
    }
    assert_eq!(tried, 5);
}

// ---- records that are made up ----

fn raw<'a>(
    key: Option<&'a str>,
    headers: &'a [(&'a str, &'a [u8])],
    value: Option<&'a str>,
) -> RawEvent<'a> {
    RawEvent {
        topic: "orders",
        key: key.map(str::as_bytes),
        payload: value.map(str::as_bytes),
        headers,
        timestamp: EpochMs(1_767_225_600_007),
    }
}

#[track_caller]
fn refusal(mapping: &Mapping, raw: &RawEvent<'_>) -> String {
    read_mapped(raw, mapping, LIMIT).unwrap_err().to_string()
}

#[test]
fn attributes_come_from_wherever_the_mapping_says() {
    let mapping = mapping(&[
        "id = json:meta.ids.1",
        r"type = json:meta.event\.type",
        "source = const:/shop",
        "subject = key",
        "time = json:at",
        "data = json:order",
    ]);
    let value = r#" {"meta": {"ids": [1, 12345678901234567890123], "event.type": "order.created"}, "at": 1782907200250,
        "order": {"b": 1.50, "a":"\u00e9"}} "#;
    let raw = raw(Some("order-1"), &[], Some(value));
    let event = read_mapped(&raw, &mapping, LIMIT).unwrap();
    let (id, event_type, source, subject, time, _) = facts(&event);
    assert_eq!(
        [id, event_type, source, subject, time],
        [
            "12345678901234567890123",
            "order.created",
            "/shop",
            "order-1",
            "2026-07-01T12:00:00.25Z"
        ]
    );
    assert_eq!(
        String::from_utf8(event.body(Format::Standard)).unwrap(),
        r#"{"type":"order.created","timestamp":"2026-07-01T12:00:00.25Z","data":{"b": 1.50, "a":"\u00e9"}}"#
    );
    assert_eq!(
        event.webhook_id("s"),
        super::super::plain_webhook_id("/shop", "order.created", "12345678901234567890123", "s")
    );
}

#[test]
fn what_is_not_there_is_an_invalid_event_that_names_every_place() {
    let by_json = mapping(&["id = json:a.b|header:id", "type = topic"]);
    for (value, headers, reason) in [
        ("{}", &[][..], "json:a.b is absent; header:id is absent"),
        ("[]", &[], "json:a.b is absent"),
        (r#"{"a":1}"#, &[], "json:a.b is absent"),
        (r#"{"a":{"b":null}}"#, &[], "json:a.b is null"),
        (r#"{"a":{"b":""}}"#, &[], "json:a.b is empty"),
        (r#"{"a":{"b":{}}}"#, &[], "json:a.b is an object"),
        (r#"{"a":{"b":[]}}"#, &[], "json:a.b is an array"),
        (r#"{"a":{"b":true}}"#, &[], "json:a.b is a boolean"),
        (r#"{"a":{"b":1,"b":2}}"#, &[], "json:a.b occurs twice"),
        (r#"{"a":"{\"b\":1}"}"#, &[], "json:a.b is absent"),
        ("{}", &[("id", &b""[..])], "header:id is empty"),
        ("{}", &[("id", b"\"\"")], "header:id is empty"),
        ("{}", &[("id", b"\xff")], "header:id is not text"),
        (
            "{}",
            &[("id", b"1"), ("id", b"2")],
            "header:id occurs twice",
        ),
        ("{}", &[("ID", b"1")], "header:id is absent"),
    ] {
        let text = refusal(&by_json, &raw(None, headers, Some(value)));
        assert!(
            text.starts_with("id is not where the event mapping of the topic looks for it: "),
            "{text}"
        );
        assert!(text.contains(reason), "{value} {headers:?}: {text}");
    }
    let same: [(&str, &[u8]); 2] = [("id", b"1"), ("id", b"1")];
    assert!(read_mapped(&raw(None, &same, Some("{}")), &by_json, LIMIT).is_ok());

    let by_key = mapping(&[
        "id = key",
        "type = json:t",
        "data = json:d",
        "time = json:at|none",
    ]);
    for (key, value, reason) in [
        (None, r#"{"t":"a","d":1}"#, "id is not where"),
        (
            Some("\0\0\0\0\0\0\0\u{7}"),
            r#"{"t":"a","d":1}"#,
            "key is not text",
        ),
        (Some("k"), r#"{"d":1}"#, "json:t is absent"),
        (
            Some("k"),
            r#"{"t":"a"}"#,
            "data is not where the event mapping",
        ),
        (Some("k"), r#"{"t":"a","d":1,"at":"noon"}"#, "RFC 3339"),
        (Some("k"), r#"{"t":"a\u0007","d":1}"#, "control character"),
        (Some("k"), r#"{"t":"a""#, "not a JSON event"),
        (Some("k"), "", "json:t is absent"),
    ] {
        let text = refusal(&by_key, &raw(key, &[], Some(value)));
        assert!(text.contains(reason), "{key:?} {value}: {text}");
    }
    let nothing = read_mapped(
        &raw(Some("k"), &[], Some(r#"{"t":"a","d":null}"#)),
        &by_key,
        LIMIT,
    )
    .map(|event| event.data().clone());
    assert_eq!(nothing.unwrap(), Value::Null, "null is there");
    let beyond_a_double = raw(Some("k"), &[], Some(r#"{"t":"a","d":1e999}"#));
    assert!(read_mapped(&beyond_a_double, &by_key, LIMIT).is_ok());
    let deep = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    let value = format!(r#"{{"t":"a","d":{deep}}}"#);
    assert!(refusal(&by_key, &raw(Some("k"), &[], Some(&value))).contains("deeper"));
    let small = read_mapped(&raw(Some("k"), &[], Some("{}  ")), &by_key, 3).unwrap_err();
    assert!(small.to_string().contains("--max-event-bytes"), "{small}");
}

#[test]
fn what_is_wrapped_is_unwrapped_once_and_only_if_configured() {
    let on = mapping(&["id = key", "type = json:kind|const:a", "unwrap = true"]);
    let off = mapping(&["id = key", "type = json:kind|const:a"]);
    for (value, unwrapped) in [
        (r#"{"kind":"b"}"#, r#"{"kind":"b"}"#),
        (r#""{\"kind\":\"b\"}""#, r#"{"kind":"b"}"#),
        (r#"" [1] ""#, "[1]"),
        (
            r#"{"schema":null,"payload":{"kind":"b"}}"#,
            r#"{"kind":"b"}"#,
        ),
        (
            r#"{"schema":{},"payload":"{\"kind\":\"b\"}"}"#,
            r#"{"kind":"b"}"#,
        ),
        (r#"{"payload":"{}","schema":{"type":"string"}}"#, "{}"),
        // Neither is what a converter writes.
        (
            r#"{"schema":"x","payload":1}"#,
            r#"{"schema":"x","payload":1}"#,
        ),
        (
            r#"{"schema":{},"payload":1,"more":2}"#,
            r#"{"schema":{},"payload":1,"more":2}"#,
        ),
        // Once: what is inside is data.
        (r#""\"{}\"""#, r#""{}""#),
        ("1", "1"),
    ] {
        let raw = raw(Some("k"), &[], Some(value));
        for (mapping, expected) in [(&on, unwrapped), (&off, value)] {
            let body = read_mapped(&raw, mapping, LIMIT)
                .unwrap()
                .body(Format::Standard);
            let body = String::from_utf8(body).unwrap();
            assert!(
                body.ends_with(&format!(r#","data":{expected}}}"#)),
                "{value}: {body}"
            );
        }
    }
    for broken in [
        r#""{\"kind\":""#,
        r#""hello""#,
        r#""""#,
        r#"{"schema":{},"payload":"{"}"#,
    ] {
        let raw = raw(Some("k"), &[], Some(broken));
        let text = refusal(&on, &raw);
        assert!(
            text.starts_with("the value is a JSON string that does not hold JSON")
                && text.contains("unwrap = false"),
            "{broken}: {text}"
        );
        assert!(read_mapped(&raw, &off, LIMIT).is_ok(), "{broken}");
    }
    let through = mapping(&["id = json:a.b.c", "type = const:a", "unwrap = true"]);
    let value = r#"{"a":"{\"b\":\"{\\\"c\\\":7}\"}"}"#;
    let raw = raw(None, &[], Some(value));
    assert_eq!(read_mapped(&raw, &through, LIMIT).unwrap().id(), "7");
}

#[test]
fn a_tombstone_is_what_the_mapping_says() {
    let headers: [(&str, &[u8]); 1] = [("id", b"1")];
    let with = |tombstone: &str| {
        mapping(&[
            "id = header:id",
            "type = header:type|const:order.changed",
            "subject = key",
            tombstone,
        ])
    };
    let tombstone = raw(Some("k"), &headers, None);
    let bare = raw(Some("k"), &[], None);
    let skip = with("tombstone = skip");
    assert!(tombstone.is_skipped(Some(&skip)) && bare.is_skipped(Some(&skip)));
    let invalid = with("tombstone = invalid");
    assert!(!tombstone.is_skipped(Some(&invalid)));
    assert!(refusal(&invalid, &tombstone).contains("tombstone"));
    for (setting, event_type) in [
        ("tombstone = event", "order.changed"),
        ("tombstone = event:order.deleted", "order.deleted"),
    ] {
        let event = with(setting);
        assert!(bare.is_skipped(Some(&event)), "one without the id");
        assert!(!tombstone.is_skipped(Some(&event)));
        let read = read_mapped(&tombstone, &event, LIMIT).unwrap();
        assert_eq!(
            (read.event_type(), read.subject(), read.data()),
            (event_type, Some("k"), &Value::Null)
        );
        let value = raw(Some("k"), &headers, Some("{}"));
        assert_eq!(
            read_mapped(&value, &event, LIMIT).unwrap().event_type(),
            "order.changed"
        );
    }
    // A CloudEvent without data is none.
    let headers: [(&str, &[u8]); 4] = [
        ("ce-specversion", b"1.0"),
        ("ce-id", b"1"),
        ("ce-source", b"/s"),
        ("ce-type", b"a"),
    ];
    let spring = mapping(&["preset = spring-cloud-stream"]);
    let event = raw(None, &headers, None);
    assert!(!event.is_skipped(Some(&spring)) && event.is_skipped(Some(&skip)));
    assert_eq!(read_mapped(&event, &spring, LIMIT).unwrap().id(), "1");
}

#[test]
fn data_may_be_text_and_bytes_by_the_content_type() {
    let mapping = mapping(&["id = header:id", "type = const:a"]);
    for (media, value, expected) in [
        (
            "application/xml; charset=utf-8",
            &b"<a/>"[..],
            r#""datacontenttype":"application/xml","data":"<a/>""#,
        ),
        (
            "application/octet-stream",
            b"\xff\0",
            r#""datacontenttype":"application/octet-stream","data_base64":"/wA=""#,
        ),
        ("\"application/vnd.a+json\"", b"[1]", r#""data":[1]"#),
    ] {
        for name in ["content-type", "contentType"] {
            let headers: [(&str, &[u8]); 2] = [("id", b"1"), (name, media.as_bytes())];
            let raw = RawEvent {
                payload: Some(value),
                ..raw(None, &headers, None)
            };
            let body = read_mapped(&raw, &mapping, LIMIT)
                .unwrap()
                .body(Format::CloudEvents);
            let body = String::from_utf8(body).unwrap();
            assert!(body.ends_with(&format!("{expected}}}")), "{media}: {body}");
        }
    }
}

#[test]
fn a_long_record_is_read_in_time_that_is_linear_in_it() {
    let mapping = mapping(&[
        "id = json:x.x.x.id|json:x.x.id|json:id",
        "type = json:items.9|const:a",
        "unwrap = true",
    ]);
    let value = |items: usize| {
        let inner = format!(
            r#"{{"items":[{}],"id":1}}"#,
            vec![r#""\\\"\\\"""#; items].join(",")
        );
        serde_json::to_string(&inner).unwrap()
    };
    let time = |items: usize| {
        let value = value(items);
        let raw = raw(None, &[], Some(&value));
        let run = || {
            let began = crate::edge::clock::instant();
            assert!(read_mapped(&raw, &mapping, usize::MAX).is_ok());
            began.elapsed()
        };
        (0..5).map(|_| run()).min().unwrap()
    };
    let (short, long) = (time(2_000), time(64_000));
    assert!(
        long < short * 32 * 8,
        "{long:?} for 32 times the bytes of {short:?}"
    );
}
