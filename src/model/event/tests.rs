//! Every form, every refusal, and the exact bytes of the bodies.

use base64::Engine as _;
use serde_json::{Value, json};

use super::attributes::is_rfc3339;
use super::*;
use crate::model::units::EpochMs;

const LIMIT: usize = 1 << 20;
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn raw<'a>(payload: &'a str, headers: &'a [(&'a str, &'a [u8])]) -> RawEvent<'a> {
    RawEvent {
        topic: "order-events",
        key: None,
        payload: Some(payload.as_bytes()),
        headers,
        timestamp: EpochMs(1_767_225_600_007),
    }
}

fn refusal(payload: &str, headers: &[(&str, &[u8])]) -> String {
    read(&raw(payload, headers), LIMIT)
        .expect_err(payload)
        .to_string()
}

fn body(payload: &str, headers: &[(&str, &[u8])], format: Format) -> String {
    let raw = raw(payload, headers);
    let once = read(&raw, LIMIT).expect(payload).body(format);
    let again = read(&raw, LIMIT).expect(payload).body(format);
    assert_eq!(once, again, "the same record must give the same bytes");
    String::from_utf8(once).unwrap()
}

#[test]
fn a_plain_event_keeps_the_bytes_of_its_data() {
    let text = r#" {"id":"e\u0031","type":"order.created","subject":"o-7","time":"2026-07-01T12:00:00.250+02:00",
        "data":{"b": 1.50, "a":"\u00e9","n":12345678901234567890123}, "more":[1]} "#;
    let headers = [("traceparent", TRACE.as_bytes())];
    let raw = raw(text, &headers);
    let event = read(&raw, LIMIT).unwrap();
    assert_eq!(
        (event.id(), event.source(), event.event_type()),
        ("e1", "order-events", "order.created")
    );
    assert_eq!(
        (event.subject(), event.time()),
        (Some("o-7"), Some("2026-07-01T12:00:00.250+02:00"))
    );
    assert_eq!(event.traceparent(), Some(TRACE));
    assert_eq!(event.data()["a"], "é");
    assert_eq!(
        body(text, &[], Format::Standard),
        r#"{"type":"order.created","timestamp":"2026-07-01T12:00:00.250+02:00","data":{"b": 1.50, "a":"\u00e9","n":12345678901234567890123}}"#
    );
    assert_eq!(
        body(text, &[], Format::CloudEvents),
        r#"{"specversion":"1.0","id":"e1","source":"order-events","type":"order.created","time":"2026-07-01T12:00:00.250+02:00","subject":"o-7","data":{"b": 1.50, "a":"\u00e9","n":12345678901234567890123}}"#
    );
}

#[test]
fn an_event_without_time_or_data_gets_the_time_of_its_record_and_null() {
    let wanted = r#"{"type":"a\"b","timestamp":"2026-01-01T00:00:00.007Z","data":null}"#;
    assert_eq!(
        body(r#"{"id":"1","type":"a\"b"}"#, &[], Format::Standard),
        wanted
    );
    let nulls = r#"{"id":"1","type":"a\"b","time":null,"subject":null,"data":null}"#;
    assert_eq!(body(nulls, &[], Format::Standard), wanted);
    assert_eq!(
        read(&raw(r#"{"id":"1","type":"a","subject":""}"#, &[]), LIMIT)
            .unwrap()
            .subject(),
        None
    );
    assert_eq!(rfc3339(EpochMs(-1)), "1969-12-31T23:59:59.999Z");
    assert!(
        rfc3339(EpochMs(i64::MAX)).starts_with("9999-"),
        "an absurd record time must not fail"
    );
}

#[test]
fn a_structured_event_is_passed_on_byte_for_byte() {
    let text = format!(
        r#"{{ "specversion":"1.0","id":"1","source":"/shop","type":"a.b","region":"eu","level":3,"traceparent":"{TRACE}","data":{{"x":1}} }}"#
    );
    for headers in [
        &[(
            "Content-Type",
            &b"application/CloudEvents+json; charset=utf-8"[..],
        )][..],
        &[("content-type", b"application/json")],
        &[],
    ] {
        assert_eq!(body(&text, headers, Format::CloudEvents), text);
        let raw = raw(&text, headers);
        let event = read(&raw, LIMIT).unwrap();
        assert_eq!(
            (event.source(), event.traceparent()),
            ("/shop", Some(TRACE))
        );
        assert!(matches!(event.attribute("region"), Some(Attribute::Json(value)) if value == "eu"));
        assert!(
            matches!(event.attribute("level"), Some(Attribute::Json(value)) if *value == json!(3))
        );
        assert!(matches!(
            event.attribute("type"),
            Some(Attribute::Text("a.b"))
        ));
        assert!(event.attribute("nothing").is_none());
    }
    assert_eq!(
        body(&text, &[], Format::Standard),
        r#"{"type":"a.b","timestamp":"2026-01-01T00:00:00.007Z","data":{"x":1}}"#
    );
}

const BINARY: [(&str, &[u8]); 7] = [
    ("content-type", b"application/json"),
    ("ce_type", b"a.b"),
    ("ce_specversion", b"1.0"),
    ("ce_id", "\u{e9}%20".as_bytes()),
    ("ce_source", b"/shop"),
    ("ce_region", b"eu"),
    ("other", b"\xff"),
];

#[test]
fn a_binary_event_keeps_its_extensions() {
    // The data itself may look like an event: the headers decide.
    let data = r#" {"specversion":"9", "id":2} "#;
    assert_eq!(
        body(data, &BINARY, Format::CloudEvents),
        r#"{"specversion":"1.0","id":"é%20","source":"/shop","type":"a.b","datacontenttype":"application/json","region":"eu","data":{"specversion":"9", "id":2}}"#
    );
    let written = body(data, &BINARY, Format::CloudEvents);
    assert_eq!(
        body(&written, &[], Format::CloudEvents),
        written,
        "what is written can be read"
    );
}

#[test]
fn binary_refusals_name_the_header() {
    let with = |name, value| {
        let mut headers: Vec<(&str, &[u8])> = BINARY
            .into_iter()
            .filter(|(known, _)| *known != name)
            .collect();
        headers.push((name, value));
        refusal("{}", &headers)
    };
    assert!(with("ce_specversion", b"0.3").contains("\"0.3\", only CloudEvents 1.x"));
    assert!(with("ce_id", b"").contains("ce_id is empty"));
    assert!(with("ce_source", b"\xff").contains("\"ce_source\" is not UTF-8"));
    assert!(with("ce_data", b"1").contains("not a CloudEvents attribute"));
    assert!(with("ce_time", b"now").contains("RFC 3339"));
    assert!(with("ce_type", b"\"a.b\"").contains("\"ce_type\" is in quotation marks"));
    assert!(with("ce_time", b"\"2026-07-01T12:00:00Z\"").contains("quotation marks"));
    let twice = [&BINARY[..], &[("ce_id", b"2")]].concat();
    assert!(refusal("{}", &twice).contains("occurs twice"));
    assert!(refusal("{}", &BINARY[..4]).contains("ce_source is missing"));
    assert!(refusal("{}", &BINARY[3..4]).contains("ce_specversion is missing"));
    assert!(refusal("<a/>", &BINARY).contains("line 1 column 1"));
}

#[test]
fn every_refusal_says_what_is_wrong() {
    let nested = |levels| {
        format!(
            r#"{{"id":"1","type":"a","data":{}{}}}"#,
            "[".repeat(levels),
            "]".repeat(levels)
        )
    };
    assert!(read(&raw(&nested(MAX_DEPTH - 1), &[]), LIMIT).is_ok());
    let long = format!(r#"{{"id":"{}","type":"a"}}"#, "x".repeat(1025));
    let cases: &[(&str, &str)] = &[
        ("", "the value is empty"),
        ("[]", "expected an object"),
        ("nonsense", "line 1 column 2"),
        (r#"{"id":"1","type":"a""#, "EOF"),
        (r#"{"id":"1","id":"2","type":"a"}"#, "\"id\" occurs twice"),
        (r#"{"type":"a"}"#, "id is missing"),
        (r#"{"id":null,"type":"a"}"#, "id is missing"),
        (r#"{"id":"1"}"#, "type is missing"),
        (r#"{"id":"","type":"a"}"#, "id is empty"),
        (
            r#"{"id":7,"type":"a"}"#,
            "id is a number, it must be a string",
        ),
        (r#"{"id":"1","type":{}}"#, "type is an object"),
        (
            r#"{"id":"1","type":"a","subject":true}"#,
            "subject is a boolean",
        ),
        (
            r#"{"id":"1","type":"a\n"}"#,
            "type holds the control character U+000A",
        ),
        (r#"{"id":"1","type":"a","time":"2026-07-01"}"#, "RFC 3339"),
        (
            "{\"id\":\"1\",\"type\":\"a\",\n  \"data\":[1,\n\"\\q\"]}",
            "invalid escape at line 3",
        ),
        (
            "{\"id\":\"1\",\"type\":\"a\",\n  \"data\":[1e999,\"\\q\"]}",
            "invalid escape at line 2 column",
        ),
        (
            r#"{"id":"\ud800","type":"a"}"#,
            "hex escape at line 1 column",
        ),
        (
            r#"{"specversion":"1.0","id":"1","type":"a"}"#,
            "source is missing",
        ),
        (
            r#"{"specversion":"2.0","id":"1","source":"s","type":"a"}"#,
            "specversion is \"2.0\"",
        ),
        (
            r#"{"specversion":1.0,"id":"1","source":"s","type":"a"}"#,
            "specversion is a number",
        ),
        (
            r#"{"specversion":"1.0","id":"1","source":"s","type":"a","data_base64":"AA"}"#,
            "data_base64 is not base64",
        ),
        (
            r#"{"specversion":"1.0","id":"1","source":"s","type":"a","data":1,"data_base64":"AA=="}"#,
            "both present",
        ),
        (
            r#"{"specversion":"1.0","id":"1","source":"s","type":"a","datacontenttype":"application/avro","data":"?"}"#,
            "\"application/avro\" is neither JSON nor text",
        ),
        (
            r#"{"id":"1","type":"a","data_base64":"AA=="}"#,
            "a plain event has no data_base64",
        ),
        (
            r#"{"specversion":"1.0","id":"1","source":"s","type":"a","ext":1e999}"#,
            "number out of range",
        ),
        (&long, "id is 1025 bytes, the limit is 1024 bytes"),
        (&nested(MAX_DEPTH), "deeper"),
        (&nested(300), "recursion limit"),
    ];
    for (payload, wanted) in cases {
        let got = refusal(payload, &[]);
        assert!(got.contains(wanted), "{payload}: {got}");
    }
    let structured = [("content-type", &b"application/cloudevents+json"[..])];
    assert!(refusal(r#"{"id":"1","type":"a"}"#, &structured).contains("specversion is missing"));
    assert!(
        refusal(
            "[]",
            &[("content-type", b"application/cloudevents-batch+json")]
        )
        .contains("batch")
    );
    assert!(
        refusal("x", &[("content-type", b"application/cloudevents+avro")])
            .contains("not supported")
    );
}

#[test]
fn tombstones_bad_text_and_size_are_refused() {
    let tombstone = RawEvent {
        payload: None,
        ..raw("", &[])
    };
    assert!(tombstone.is_skipped(None));
    assert_eq!(read(&tombstone, LIMIT).unwrap_err(), InvalidEvent::NoValue);
    assert!(
        !raw("", &[]).is_skipped(None),
        "an empty value deletes nothing"
    );
    let headers: [(&str, &[u8]); 2] =
        [("traceparent", b"x"), ("content-type", b"application/json")];
    assert!(
        RawEvent {
            headers: &headers,
            ..tombstone
        }
        .is_skipped(None)
    );
    assert!(
        !RawEvent {
            headers: &BINARY,
            ..tombstone
        }
        .is_skipped(None)
    );
    let text = RawEvent {
        payload: Some(b"{\"id\":\"\xff\"}"),
        ..raw("", &[])
    };
    assert_eq!(
        read(&text, LIMIT).unwrap_err(),
        InvalidEvent::NotUtf8 { at: 7 }
    );
    let large = read(&raw(r#"{"id":"1","type":"a"}"#, &[]), 20).unwrap_err();
    assert_eq!(
        large,
        InvalidEvent::TooLarge {
            size: 21,
            limit: 20
        }
    );
    assert!(
        read(&raw("1", &BINARY), 30).is_err(),
        "the attributes of a binary event count"
    );
}

#[test]
fn a_malformed_trace_context_is_ignored() {
    for bad in [
        "",
        "00-0-0-01",
        &TRACE.to_uppercase(),
        &TRACE.replace("4bf9", "zzzz"),
        &format!("{TRACE}-1"),
    ] {
        let headers = [("traceparent", bad.as_bytes())];
        assert_eq!(
            read(&raw(r#"{"id":"1","type":"a"}"#, &headers), LIMIT)
                .unwrap()
                .traceparent(),
            None,
            "{bad}"
        );
    }
}

#[test]
fn times_are_rfc_3339() {
    for good in [
        "2024-02-29T23:59:60Z",
        "2026-07-01t12:00:00z",
        "2026-07-01T12:00:00.1-11:30",
    ] {
        assert!(is_rfc3339(good), "{good}");
    }
    let bad = "2023-02-29T00:00:00Z 2026-13-01T00:00:00Z 2026-07-01T24:00:00Z 2026-07-01T12:00:00 2026-07-01T12:00:00.Z \
               2026-07-01T12:00:00+0200 2026-07-01T12:00:00Z[UTC] 2026-07-01T12:00Z 2026-07-01T12:00:00+02:00x é";
    for bad in bad.split(' ').chain(["2026-07-01 12:00:00Z", ""]) {
        assert!(!is_rfc3339(bad), "{bad}");
    }
}

#[test]
fn a_webhook_id_never_changes() {
    assert_eq!(
        webhook_id("order-events", "evt-1", "acme-orders"),
        GOLDEN_ID
    );
    assert_ne!(
        webhook_id("a", "bc", "d"),
        webhook_id("ab", "c", "d"),
        "fields must not run together"
    );
    assert!(!GOLDEN_ID.contains('.'));
    let of = |text: &str| {
        read(&raw(text, &[]), LIMIT)
            .unwrap()
            .webhook_id("acme-orders")
    };
    let cloud = r#"{"specversion":"1.0","id":"evt-1","source":"order-events","type":"order.paid"}"#;
    assert_eq!(of(cloud), GOLDEN_ID);
    assert_eq!(of(&cloud.replace("paid", "created")), GOLDEN_ID);
    let plain = r#"{"id":"evt-1","type":"order.paid"}"#;
    assert_eq!(of(plain), GOLDEN_PLAIN_ID);
    assert_ne!(of(&plain.replace("paid", "created")), GOLDEN_PLAIN_ID);
}
/// Computed with another implementation (Python's hashlib).
const GOLDEN_ID: &str = "msg_mVQPllEe56yt9b9llT8M0XQAIqs";
const GOLDEN_PLAIN_ID: &str = "msg_nEwSHe0ICuhupoV1OWIy8JMXW0U";

#[test]
fn a_cloudevent_without_data_is_delivered_without() {
    let standard = r#"{"type":"a.b","timestamp":"2026-01-01T00:00:00.007Z","data":null}"#;
    let without_data = r#"{"specversion":"1.0","id":"é%20","source":"/shop","type":"a.b","datacontenttype":"application/json","region":"eu"}"#;
    for payload in [None, Some(&b""[..])] {
        let raw = RawEvent {
            payload,
            ..raw("", &BINARY)
        };
        let event = read(&raw, LIMIT).unwrap();
        assert_eq!(event.body(Format::Standard), standard.as_bytes());
        assert_eq!(event.body(Format::CloudEvents), without_data.as_bytes());
        assert!(event.data().is_null());
    }
    let structured = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"a.b"}"#;
    assert_eq!(body(structured, &[], Format::Standard), standard);
    assert_eq!(body(structured, &[], Format::CloudEvents), structured);
}

/// As in [`BINARY`], with another content type.
fn binary_of(media: &'static [u8]) -> Vec<(&'static str, &'static [u8])> {
    let others = BINARY.into_iter().skip(1);
    [("Content-Type", media)]
        .into_iter()
        .chain(others)
        .collect()
}

#[test]
fn data_need_not_be_json() {
    let text = |media: &'static [u8], value: &[u8]| {
        let headers = binary_of(media);
        let raw = RawEvent {
            payload: Some(value),
            ..raw("", &headers)
        };
        let event = read(&raw, LIMIT).unwrap();
        let of = |format| -> Value { serde_json::from_slice(&event.body(format)).unwrap() };
        let (standard, cloud) = (of(Format::Standard), of(Format::CloudEvents));
        assert_eq!(standard["data"], cloud["data"]);
        assert_eq!(standard["data_base64"], cloud["data_base64"]);
        assert_eq!(cloud["datacontenttype"].as_str().unwrap().as_bytes(), media);
        if standard["data_base64"].is_null() {
            assert_eq!(*event.data(), standard["data"], "filters see the text");
        } else {
            assert!(standard.get("data").is_none() && event.data().is_null());
        }
        standard
    };
    for media in [
        &b"text/plain; charset=utf-8"[..],
        b"TEXT/html",
        b"application/xml",
        b"application/soap+xml; charset=\"UTF-8\"",
        b"text/plain;charset=us-ascii",
    ] {
        let value = "<a x=\"1\">\u{e9}\n</a>";
        assert_eq!(text(media, value.as_bytes())["data"], value);
    }
    for (media, value) in [
        (&b"application/octet-stream"[..], &b"{}"[..]),
        (b"application/avro", b"\x00\x01\xff"),
        (b"image/png", b"\x89PNG"),
        (b"text/plain", b"\xff is not UTF-8"),
        (b"text/plain; charset=iso-8859-1", b"\xe9"),
    ] {
        let base64 = base64::engine::general_purpose::STANDARD.encode(value);
        assert_eq!(text(media, value)["data_base64"], base64);
    }
    assert_eq!(
        text(b"application/problem+json", b" [1 ]")["data"],
        json!([1])
    );
}

#[test]
fn a_structured_cloudevent_follows_the_same_rule() {
    let event = |members: &str| {
        format!(r#"{{"specversion":"1.0","id":"1","source":"/shop","type":"a.b",{members}}}"#)
    };
    let head = r#"{"type":"a.b","timestamp":"2026-01-01T00:00:00.007Z","#;
    for (members, wanted) in [
        (r#""data_base64":"AAH/""#, r#""data_base64":"AAH/"}"#),
        (
            r#""datacontenttype":"text/plain","data":"x""#,
            r#""data":"x"}"#,
        ),
        (
            r#""datacontenttype":"text/plain","data_base64":"eA==""#,
            r#""data":"x"}"#,
        ),
        (
            r#""datacontenttype":"application/avro","data_base64":"AAH/""#,
            r#""data_base64":"AAH/"}"#,
        ),
        (
            r#""datacontenttype":"application/avro","data":{"x":1}"#,
            r#""data":{"x":1}}"#,
        ),
        (r#""data":null,"data_base64":null"#, r#""data":null}"#),
    ] {
        let text = event(members);
        assert_eq!(
            body(&text, &[], Format::Standard),
            format!("{head}{wanted}")
        );
        assert_eq!(
            body(&text, &[], Format::CloudEvents),
            text,
            "an SDK accepts it as it is"
        );
    }
    let avro = event(r#""datacontenttype":"application/avro","data":"AAH/""#);
    assert_eq!(
        body(&avro, &[], Format::Standard),
        format!(r#"{head}"data_base64":"AAH/"}}"#)
    );
    assert_eq!(
        body(&avro, &[], Format::CloudEvents),
        event(r#""datacontenttype":"application/avro","data_base64":"AAH/""#)
    );
}

#[test]
fn what_cloudevents_does_not_allow_is_left_out_of_its_format() {
    let text = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"a.b","subject":"","My-Ext":"x","level":3,"ratio":0.5,"big":4294967296,"list":[1],"flag":true,"dataschema":"","data":{"x": 1}}"#;
    let structured = raw(text, &[]);
    let event = read(&structured, LIMIT).unwrap();
    assert_eq!(event.left_out(), 6);
    assert_eq!(
        body(text, &[], Format::CloudEvents),
        r#"{"specversion":"1.0","id":"1","source":"/shop","type":"a.b","flag":true,"level":3,"data":{"x": 1}}"#
    );
    let headers = [
        &BINARY[..],
        &[("ce_My-Ext", b"x"), ("ce_ID", b"2"), ("ce_subject", b"")],
    ]
    .concat();
    let with = raw("1", &headers);
    let event = read(&with, LIMIT).unwrap();
    assert_eq!(event.left_out(), 3);
    assert_eq!(
        body("1", &headers, Format::CloudEvents),
        body("1", &BINARY, Format::CloudEvents)
    );
    assert!(event.attribute("My-Ext").is_some(), "filters see it");
}

#[test]
fn attributes_in_the_spelling_of_another_binding_are_named() {
    let plain = r#"{"id":"1","type":"a"}"#;
    for name in [
        "ce-specversion",
        "ce-id",
        "CE_ID",
        "Ce_Type",
        "cloudEvents:id",
        "cloudEvents_type",
    ] {
        for payload in [plain, "{}", "x"] {
            let refusal = refusal(payload, &[(name, b"1.0")]);
            assert!(
                refusal.contains(name) && refusal.contains("\"ce_\""),
                "{refusal}"
            );
        }
    }
    assert!(read(&raw(plain, &[("ce-region", b"eu"), ("ceid", b"1")]), LIMIT).is_ok());
    let structured = r#"{"specversion":"1.0","id":"1","source":"s","type":"a"}"#;
    assert!(
        read(&raw(structured, &[("ce-id", b"1")]), LIMIT).is_ok(),
        "its attributes are inside"
    );
}

#[test]
fn framings_are_named() {
    for (payload, wanted) in [
        (
            &b"\x00\x00\x00\x00\x07{\"id\":\"1\"}"[..],
            "the schema id 7 of a Schema Registry",
        ),
        (
            b"\xef\xbb\xbf{\"id\":\"1\",\"type\":\"a\"}",
            "byte order mark",
        ),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b"\x00{\x00}", "UTF-16"),
        (b"{\x00}\x00", "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd"),
        (b"\xac\xed\x00\x05t", "serialized Java object"),
        (
            br#"{"schema":{"type":"struct"},"payload":{"id":"1"}}"#,
            "Kafka Connect",
        ),
        (
            br#"{"before":null,"after":{},"source":{},"op":"c"}"#,
            "Debezium",
        ),
    ] {
        let raw = RawEvent {
            payload: Some(payload),
            ..raw("", &[])
        };
        let error = read(&raw, LIMIT).unwrap_err().to_string();
        assert!(error.contains(wanted), "{payload:?}: {error}");
    }
    let headers: [(&str, &[u8]); 1] = [("__value_schema_id", b"\x01")];
    assert!(refusal("x", &headers).contains("__value_schema_id"));
    let framed = [&BINARY[..], &[]].concat();
    let value = RawEvent {
        payload: Some(b"\x00\x00\x00\x00\x07{}"),
        ..raw("", &framed)
    };
    assert!(
        read(&value, LIMIT)
            .unwrap_err()
            .to_string()
            .contains("schema id 7")
    );
}

#[test]
fn the_schema_and_the_code_agree() {
    let schema: Value =
        serde_json::from_str(include_str!("../../../schemas/event.schema.json")).unwrap();
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap();
    for kind in ["plain", "cloudevent"] {
        let example = &schema["$defs"][kind]["examples"][0];
        assert!(
            validator.is_valid(example) && read(&raw(&example.to_string(), &[]), LIMIT).is_ok(),
            "{example}"
        );
    }
    let time = |time: &str| json!({"id": "1", "type": "a", "time": time});
    let cloud = |name: &str, value: Value| {
        let mut event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "a"});
        event[name] = value;
        event
    };
    let samples = [
        json!({"id": "1", "type": "a"}),
        json!({"id": "1", "type": "a", "subject": null, "time": null, "data": 5, "more": {}}),
        json!({"id": "1", "type": "a", "subject": ""}),
        json!({"id": "1", "type": "a", "data_base64": "AA=="}),
        json!({"id": "1", "type": "a", "data": 5, "data_base64": "AA=="}),
        json!({"id": "1", "type": "a", "data_base64": null}),
        json!({"id": "1"}),
        json!({"id": "", "type": "a"}),
        json!({"id": 1, "type": "a"}),
        json!({"id": "1", "type": "a\u{7}"}),
        json!({"id": "1", "type": "a\u{85}"}),
        json!({"id": "x".repeat(1025), "type": "a"}),
        json!([]),
        time("2026-07-01T12:00:00Z"),
        time("2026-07-01 12:00:00Z"),
        time("soon"),
        cloud("ext", json!(1)),
        cloud("specversion", json!("1.1")),
        cloud("specversion", json!("0.3")),
        cloud("specversion", json!(1)),
        cloud("source", json!("")),
        cloud("source", Value::Null),
        cloud("data_base64", json!("AA==")),
        cloud("data_base64", json!(1)),
        cloud("data_base64", Value::Null),
        cloud("subject", json!(7)),
    ];
    for sample in samples {
        let read = read(&raw(&sample.to_string(), &[]), LIMIT).err();
        assert_eq!(
            validator.is_valid(&sample),
            read.is_none(),
            "{sample}: the code says {read:?}"
        );
    }
}

#[test]
fn data_that_no_double_or_string_holds_is_passed_on_as_it_is() {
    let data =
        r#"{"big":1e999,"small":-1E+400,"half":"a\ud800b","pair":"\ud83d\ude00","\udc00":1}"#;
    let plain = format!(r#"{{"id":"1","type":"a","data":{data}}}"#);
    let structured =
        format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"a","data":{data}}}"#);
    let header = |name, value: &'static str| (name, value.as_bytes());
    let binary = [
        header("ce_specversion", "1.0"),
        header("ce_id", "1"),
        header("ce_source", "s"),
        header("ce_type", "a"),
    ];
    let none: &[(&str, &[u8])] = &[];
    for (payload, headers) in [(&*plain, none), (&*structured, none), (data, &binary[..])] {
        let raw = RawEvent {
            topic: "t",
            key: None,
            payload: Some(payload.as_bytes()),
            headers,
            timestamp: EpochMs(0),
        };
        let event = read(&raw, 1 << 20).unwrap_or_else(|error| panic!("{payload}: {error}"));
        assert_eq!(event.data()["big"], f64::MAX);
        assert_eq!(event.data()["small"], f64::MIN);
        assert_eq!(event.data()["half"], "a\u{fffd}b");
        assert_eq!(event.data()["pair"], "\u{1f600}");
        for format in [Format::Standard, Format::CloudEvents] {
            let body = String::from_utf8(event.body(format)).unwrap();
            assert!(body.contains(data), "{body}");
        }
    }
}

#[test]
fn an_error_quotes_the_beginning_of_a_long_text() {
    let long = "é\u{1}".repeat(100_000);
    let media = format!("application/cloudevents-batch+{long}");
    let name = format!("ce_{long}");
    for headers in [
        &[("content-type", media.as_bytes())][..],
        &[("ce_specversion", b"1.0"), (&*name, b"\xff")],
    ] {
        let error = read(&raw("{}", headers), usize::MAX).unwrap_err();
        let shown = error.to_string();
        assert!(shown.len() < 4096, "{} bytes", shown.len());
        assert!(shown.contains('…'), "{shown}");
    }
}
