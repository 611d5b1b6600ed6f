//! The targets: each reads bytes as one kind of input, checks what must hold of the result, and returns what tells its
//! outcome from others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hookstream::config::{EgressSettings, HostPattern};
use hookstream::edge::egress::EgressPolicy;
use hookstream::edge::http::read_head;
use hookstream::model::attempt::{Excerpt, Mask};
use hookstream::model::command::Command;
use hookstream::model::dead_letter::{Coordinates, Fact};
use hookstream::model::envelope::{Keys, Owner, Sealed};
use hookstream::model::event::{
    Event, Format, InvalidEvent, Mapping, RawEvent, presets, read, read_mapped,
};
use hookstream::model::matching::Index;
use hookstream::model::retry_after;
use hookstream::model::schema::{Definition, Language, Schema, recognise};
use hookstream::model::status::{Status, first_line};
use hookstream::model::subscription::verification::{Handshake, judge_challenge, judge_handshake};
use hookstream::model::subscription::{
    Fold, Segment, Subscription, TopicRecord, TypePattern, fingerprinted, parse, redacted,
};
use hookstream::model::trace_context::TraceContext;
use hookstream::model::units::{EpochMs, Offset, Position};
use hookstream::model::window::{Format as WindowFormat, Place, Window};
use serde_json::Value;

/// A kind of input.
pub struct Target {
    pub name: &'static str,
    pub seeds: &'static [&'static [u8]],
    pub run: fn(&[u8]) -> String,
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "event",
        seeds: &[
            b"\n{\"id\":\"1\",\"type\":\"order.created\",\"time\":\"2026-07-01T12:00:00Z\",\"subject\":\"s\",\"data\":{\"n\":1.50}}",
            b"content-type: application/cloudevents+json\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"a.b\",\"data\":[1,null]}",
            b"\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"a\",\"data_base64\":\"AAEC\",\"ext\":7}",
            b"ce_specversion: 1.0\nce_id: 1\nce_source: /s\nce_type: a.b\nce_ext: x\ncontent-type: application/json\n\n{\"a\":[]}",
            b"ce_specversion: 1.0\nce_id: 1\nce_source: /s\nce_type: a\ncontent-type: text/plain;charset=utf-8\n\nhello",
            b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\n{\"id\":\"1\",\"type\":\"a\"}",
        ],
        run: event,
    },
    Target {
        name: "mapping",
        seeds: &[
            b"\x00eventType: order.made\nid: 7\n\n{\"aggregateid\":\"7\",\"payload\":{\"a\":1}}",
            b"\x01\n{\"schema\":{},\"payload\":{\"before\":null,\"after\":{\"id\":1},\"op\":\"c\",\"source\":{\"ts_ms\":1}}}",
            b"\x02\n{\"orderId\":\"1\",\"kind\":\"made\",\"at\":1764230400000,\"body\":\"{\\\"x\\\":1}\"}",
            b"\x03ce-id: 1\nce-type: a\nce-source: /s\nce-specversion: 1.0\n\n{}",
        ],
        run: mapping,
    },
    Target {
        name: "subscription",
        seeds: &[
            br#"{"id":"a","subscriber":"acme","url":"https://acme.example/h?k=v","events":["order.*","**"],"secrets":["env:A","whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",{"secret":"file:/s","until":"2026-11-27T18:00:00Z"}]}"#,
            br#"{"id":"a","subscriber":"acme","url":"https://a.example/","events":["a"],"filter":{"data.total":[{"numeric":[">=",100]}],"data.c":["DE",{"prefix":"F"},{"anything-but":["x"]},{"exists":false}]},"headers":{"authorization":"Bearer env:T","x-a":"b"},"rate_limit":{"per_second":50,"burst":9}}"#,
            br#"{"id":"a","subscriber":"acme","url":"http://a.example:8443/","events":["a.**.b"],"auth":{"type":"oauth2","token_url":"https://t.example/","client_id":"c","client_secret":"env:S","scopes":["x"]},"retry_schedule":["5s","24h"],"timeout":"60s","max_age":"30days","order":"strict","on_status":{"409":"delivered","4xx":"retry"},"breaker":{"failures":0,"probe":"10ms"},"labels":{"a":"b"}}"#,
            br#"{"subscription":"a","version":"5f70bf18a086007016e948b04aed3b82","state":"paused","at":1764230400000}"#,
        ],
        run: subscription,
    },
    Target {
        name: "pattern",
        seeds: &[b"order.*\norder.created", b"**\na", b"a.**.b\na.x.y.b", b"*.*\na..b", b"a.**.**.*.c\na.c"],
        run: pattern,
    },
    Target {
        name: "filter",
        seeds: &[
            br#"{"events":["order.*","**.x"],"filter":{"data.total":[{"numeric":[">=",100,"<",1e3]}]},"event":{"id":"1","type":"order.x","data":{"total":100.0}}}"#,
            br#"{"events":["**"],"filter":{"data.a.b":["x",1,null,true,{"exists":true}],"subject":[{"suffix":"9"}]},"event":{"id":"1","type":"a","subject":"s9","data":{"a":[{"b":"x"},{"b":null}]}}}"#,
            br#"{"events":["a"],"filter":{"data.x\\.y":[{"anything-but":{"prefix":"t"}}],"type":[{"prefix":"a"}]},"event":{"id":"1","type":"a","data":{"x.y":"u"}}}"#,
        ],
        run: filter,
    },
    Target {
        name: "command",
        seeds: &[
            b"hs-version: 1\nwebhook-id: msg_1\nhs-subscription: a\nhs-event-id: 1\nhs-event-type: a.b\nhs-event-time: 2026-07-01T12:00:00Z\nhs-subject: s\nhs-content-type: application/json\nhs-attempt: 3\nhs-due: 1764230400000\nhs-enqueued: 1764230400000\nhs-cause: retry\nhs-sequence: 9\nhs-cluster: c\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\n{}",
            b"webhook-id: msg_1\nhs-subscription: a\nhs-event-id: 1\nhs-event-type: a\nhs-content-type: application/cloudevents+json\nhs-attempt: 0\nhs-enqueued: 1\nhs-cause: new\nhs-first-failure: 1\nhs-last-failure: 2\nhs-status: 500\nhs-error: no\n\n{}",
        ],
        run: command,
    },
    Target {
        name: "dead-letter",
        seeds: &[
            b"hs-fact: dead-lettered\nhs-version: 1\nwebhook-id: msg_1\nhs-subscription: a\nhs-event-id: 1\nhs-event-type: a\nhs-content-type: application/json\nhs-attempt: 8\nhs-enqueued: 1\nhs-cause: retry\nhs-reason: attempts-exhausted\nhs-status: 500\nhs-error: no\nhs-first-failure: 1\nhs-last-failure: 2\n\n{}",
            b"hs-fact: replayed\nwebhook-id: msg_1\nhs-subscription: a\nhs-letter: 0:7\nhs-cluster: c\nhs-at: 9\n\n",
            b"hs-fact: discarded\nwebhook-id: msg_1\nhs-letter: 3:1\n\n",
        ],
        run: dead_letter,
    },
    Target {
        name: "commit",
        seeds: &[b"", b"1", b"AQAAAAA=", b"hs1:AAAA"],
        run: commit,
    },
    Target {
        name: "retry-after",
        seeds: &[
            b"120", b"1.5", b"Wed, 21 Oct 2026 07:28:00 GMT", b"1795000000", b"1795000000000", b"5, 10", b"-1",
            b"18446744073709551615",
        ],
        run: wait,
    },
    Target {
        name: "consent",
        seeds: &[
            b"\xc8*\n120", b"\xc8events.example, other.example\n*", b"\xccevents.example\n0", b"\xc8\"T-1\"",
            b"\xc8{\"challenge\":\"T-1\"}", b"\xc8 T-1\r\n", b"\x90{\"challenge\":{}}",
        ],
        run: consent,
    },
    Target {
        name: "response",
        seeds: &[
            b"\x00HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            b"\x05HTTP/1.1 429 Too Many\r\nRetry-After: 5\r\nretry-after: 7\r\n\r\n",
            b"\x01HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n",
            b"\x03\r\nHTTP/1.0 503 x\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\n\n",
            b"\x02HTTP/1.1 103 Early\r\ncontent-length: 5\r\n\r\n",
        ],
        run: response,
    },
    Target {
        name: "egress",
        seeds: &[
            b"https://acme.example/hooks", b"https://127.0.0.1/", b"https://[::ffff:10.0.0.1]:8443/", b"https://0x7f.1/",
            b"https://2130706433/", b"http://a.example", b"https://a@b.example/", b"https://kubernetes.default.svc/",
            b"https://metadata.google.internal./", b"https://[fe80::1]/", b"https://\xe2\x91\xa0.example/", b"*.acme.example",
        ],
        run: egress,
    },
    Target {
        name: "encrypted",
        seeds: &[
            b"enc:v1:0011223344556677:AAAA", b"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n# x\nAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        ],
        run: encrypted,
    },
    Target {
        name: "status",
        seeds: &[
            br#"{"subscription":"a","subscriber":"acme","at":1764230400000,"version":1}"#,
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            br#"{"v":1,"subscription":"a","failing_since":null,"attempts":{"2xx":1}}"#,
        ],
        run: status,
    },
    Target {
        name: "avro",
        seeds: &[
            b"{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"long\"},{\"name\":\"b\",\"type\":[\"null\",\"string\"]}]}\n\n\x00\x00\x00\x00\x01\x02\x02\x04hi",
            b"{\"type\":\"array\",\"items\":\"null\"}\n\n\x00\x00\x00\x00\x01\xfe\xff\xff\xff\xff\x0f\x00",
            b"{\"type\":\"map\",\"values\":{\"type\":\"bytes\",\"logicalType\":\"decimal\",\"precision\":4,\"scale\":2}}\n\n\x00\x00\x00\x00\x01\x02\x02a\x04\x01\x02\x00",
        ],
        run: avro,
    },
];

/// Lines of `name: value` up to an empty one, and what follows.
fn parts(input: &[u8]) -> (Vec<(&str, &[u8])>, &[u8]) {
    let mut headers = Vec::new();
    let mut rest = input;
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let at = line
            .iter()
            .position(|&byte| byte == b':')
            .unwrap_or(line.len());
        let value = line.get(at + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        headers.push((std::str::from_utf8(&line[..at]).unwrap_or("?"), value));
    }
    (headers, rest)
}

/// An outcome with a small number, which is told apart by letters (numbers in messages are not).
fn bucket(name: &str, count: usize) -> String {
    format!("{name} {}", "x".repeat(count))
}

/// A status, then what an endpoint responds to the handshake and to a challenge.
fn consent(input: &[u8]) -> String {
    const ORIGIN: &str = "events.example";
    let Some((&status, rest)) = input.split_first() else {
        return bucket("empty", 0);
    };
    let status = u16::from(status);
    let mut lines = rest.split(|&byte| byte == b'\n');
    let (origin, rate) = (lines.next(), lines.next());
    let handshake = judge_handshake(ORIGIN, status, origin, rate);
    match &handshake {
        Handshake::Allowed(consent) => {
            assert!((200..300).contains(&status) && consent.per_minute != Some(0));
            let limit = consent.rate_limit(None);
            assert!(limit.is_none_or(|limit| limit.per_second > 0.0 && limit.burst == 1));
        }
        Handshake::Denied(reason) | Handshake::Unknown(reason) => assert!(reason.len() < 200),
    }
    let met = judge_challenge("T-1", status, rest);
    assert!(met.is_err() || rest.windows(3).any(|part| part == b"T-1") || rest.contains(&b'\\'));
    let kind = match handshake {
        Handshake::Allowed(consent) => format!("allowed {}", consent.per_minute.is_some()),
        Handshake::Denied(_) => "denied".to_owned(),
        Handshake::Unknown(_) => "unknown".to_owned(),
    };
    bucket(&kind, usize::from(met.is_ok()))
}

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// Two halves at the first line end.
fn halves(input: &[u8]) -> (String, String) {
    let all = text(input);
    let (one, other) = all.split_once('\n').unwrap_or((&all, ""));
    (one.to_owned(), other.to_owned())
}

const MAX_EVENT: usize = 32 * 1024;

fn raw<'a>(headers: &'a [(&'a str, &'a [u8])], payload: &'a [u8]) -> RawEvent<'a> {
    RawEvent {
        topic: "orders",
        key: Some(b"k"),
        payload: Some(payload),
        headers,
        timestamp: EpochMs(1_764_230_400_000),
    }
}

/// What is sent of an event is JSON, and the same each time.
fn sent(event: &Event<'_>, again: &Event<'_>) -> String {
    for format in [Format::Standard, Format::CloudEvents] {
        let body = event.body(format);
        assert_eq!(body, again.body(format), "an event has one body");
        assert!(
            serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok(),
            "{}",
            text(&body)
        );
    }
    assert_eq!(event.webhook_id("s"), again.webhook_id("s"));
    let id = event.webhook_id("s");
    assert!(
        http::HeaderValue::from_str(&id).is_ok(),
        "{id:?} is a header"
    );
    assert!(!event.id().is_empty() && !event.event_type().is_empty());
    let count = event.attributes().count();
    bucket("event", count.min(20) * 4 + event.left_out().min(3))
}

/// An error is a sentence, whatever it quotes.
fn reason(error: &InvalidEvent) -> String {
    let text = error.to_string();
    assert!(text.len() <= 8 * 1024, "{} bytes", text.len());
    text
}

fn event(input: &[u8]) -> String {
    let (headers, payload) = parts(input);
    let raw = raw(&headers, payload);
    match (read(&raw, MAX_EVENT), read(&raw, MAX_EVENT)) {
        (Ok(event), Ok(again)) => sent(&event, &again),
        (Err(error), Err(again)) => {
            assert_eq!(error, again);
            reason(&error)
        }
        _ => panic!("the same record is read in two ways"),
    }
}

fn mappings() -> &'static [Mapping] {
    static MAPPINGS: OnceLock<Vec<Mapping>> = OnceLock::new();
    MAPPINGS.get_or_init(|| {
        let fields = |pairs: &[(&str, &str)]| -> BTreeMap<String, Vec<String>> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]))
                .collect()
        };
        let of_preset = presets().map(|name| Mapping::read(&fields(&[("preset", name)])));
        let own = Mapping::read(&fields(&[
            ("id", "value:orderId"),
            ("type", "value:kind"),
            ("time", "value:at"),
            ("subject", "key"),
            ("data", "value:body"),
            ("unwrap", "true"),
        ]));
        let all: Vec<Mapping> = of_preset.chain([own]).filter_map(Result::ok).collect();
        assert!(all.len() > 1, "there are mappings");
        all
    })
}

fn mapping(input: &[u8]) -> String {
    let Some((&which, rest)) = input.split_first() else {
        return "empty".to_owned();
    };
    let mapping = &mappings()[usize::from(which) % mappings().len()];
    let (headers, payload) = parts(rest);
    let raw = raw(&headers, payload);
    match (
        read_mapped(&raw, mapping, MAX_EVENT),
        read_mapped(&raw, mapping, MAX_EVENT),
    ) {
        (Ok(event), Ok(again)) => sent(&event, &again),
        (Err(error), Err(_)) => reason(&error),
        _ => panic!("the same record is read in two ways"),
    }
}

fn subscription(input: &[u8]) -> String {
    let parsed = parse(None, input);
    // Whatever is not refused as a whole can be shown, without its literal secrets.
    if let (Ok(known), Ok(shown), Ok(yaml)) = (&parsed, redacted(input), fingerprinted(input)) {
        let shown = format!("{shown}{yaml}");
        let debug = format!("{known:?}");
        for secret in known.secrets.iter().map(|secret| &secret.source) {
            if let hookstream::model::subscription::SecretSource::Literal(secret) = secret {
                let secret = secret.expose();
                assert!(!shown.contains(secret) && !debug.contains(secret));
            }
        }
        assert!(known.secrets.is_empty() || known.secrets.iter().any(|one| one.until.is_none()));
        let mut fold = Fold::default();
        let record = |key: &'static str, value| TopicRecord {
            key: Some(if key.is_empty() {
                known.id.as_bytes()
            } else {
                key.as_bytes()
            }),
            value: Some(value),
            ..TopicRecord::default()
        };
        drop(fold.take(&record("", input)));
        assert!(fold.get(&known.id).is_some());
    }
    let mut fold = Fold::default();
    for key in ["state/a", "disabled/a", "verified/a", "a"] {
        let record = TopicRecord {
            key: Some(key.as_bytes()),
            value: Some(input),
            ..TopicRecord::default()
        };
        drop(fold.take(&record));
    }
    match parsed {
        Ok(known) => bucket(
            "valid",
            known.secrets.len().min(4) * 5 + known.overrides.headers.len().min(4),
        ),
        Err(error) => {
            let problems = error.problems();
            bucket(&problems[0], problems.len().min(3))
        }
    }
}

/// What a pattern says, without any cleverness.
fn matches(pattern: &[Segment], segments: &[&str]) -> bool {
    match (pattern.split_first(), segments.split_first()) {
        (None, None) => true,
        (Some((Segment::One, rest)), Some((_, others))) => matches(rest, others),
        (Some((Segment::Literal(own), rest)), Some((one, others))) => {
            **own == **one && matches(rest, others)
        }
        (Some((Segment::Any, rest)), _) => {
            (0..=segments.len()).any(|skip| matches(rest, &segments[skip..]))
        }
        _ => false,
    }
}

fn pattern(input: &[u8]) -> String {
    let (pattern, event_type) = halves(input);
    match TypePattern::parse(&pattern) {
        Ok(parsed) => {
            let found = parsed.matches(&event_type);
            let wild = pattern.matches("**").count();
            // The naive one is exponential.
            if wild <= 3 && event_type.len() <= 60 {
                let segments: Vec<&str> = event_type.split('.').collect();
                let expected = match &parsed {
                    TypePattern::Exact(text) => **text == *event_type,
                    TypePattern::Wildcard(pattern) => matches(pattern, &segments),
                };
                assert_eq!(found, expected, "{pattern} {event_type}");
            }
            bucket(&found.to_string(), wild.min(4))
        }
        Err(error) => error,
    }
}

fn filter(input: &[u8]) -> String {
    let Ok(Value::Object(mut given)) = serde_json::from_slice::<Value>(input) else {
        return "no object".to_owned();
    };
    let mut take = |name: &str| given.remove(name).unwrap_or_default();
    let (events, filter, event) = (take("events"), take("filter"), take("event"));
    let record = serde_json::json!({
        "id": "a", "subscriber": "a", "url": "https://a.example/", "events": events, "filter": filter,
    });
    let subscription: Subscription = match parse(None, record.to_string().as_bytes()) {
        Ok(subscription) => subscription,
        Err(error) => return error.problems().remove(0),
    };
    drop(subscription.filter.doubts().collect::<Vec<_>>());
    let payload = event.to_string();
    let raw = raw(&[], payload.as_bytes());
    let event = match read(&raw, MAX_EVENT) {
        Ok(event) => event,
        Err(error) => return format!("filter, {error}"),
    };
    let by_type = subscription
        .events
        .iter()
        .any(|one| one.matches(event.event_type()));
    let expected = by_type && subscription.filter.matches(&event);
    let mut index = Index::new();
    index.insert(Arc::new(subscription));
    let mut found = Vec::new();
    index.matching(&event, &mut found);
    assert_eq!(!found.is_empty(), expected, "the index equals a search");
    index.remove("a");
    index.matching(&event, &mut found);
    assert!(found.is_empty());
    format!("filter {expected}")
}

fn command(input: &[u8]) -> String {
    let (headers, body) = parts(input);
    let headers = headers.iter().map(|(name, value)| (*name, Some(*value)));
    let body = Some(Bytes::copy_from_slice(body));
    match Command::from_record(Some(b"acme"), headers, body) {
        Ok(mut command) => {
            // It is the cluster of the sequence.
            command.cluster = command.cluster.filter(|_| command.sequence.is_some());
            let mut written: Vec<(&str, Vec<u8>)> = Vec::new();
            command
                .envelope()
                .each_header(|name, value| written.push((name, value.into())));
            let again = written
                .iter()
                .map(|(name, value)| (*name, Some(value.as_slice())));
            let again = Command::from_record(Some(b"acme"), again, Some(command.body.clone()));
            assert_eq!(again.as_ref(), Ok(&command), "what is written is read");
            bucket("command", written.len())
        }
        Err(error) => error.to_string(),
    }
}

fn dead_letter(input: &[u8]) -> String {
    let (headers, _) = parts(input);
    let at = Coordinates {
        partition: 1,
        offset: Offset(2),
    };
    match Fact::decode(at, Some(b"acme"), &headers) {
        Ok(Fact::DeadLettered(_)) => "letter".to_owned(),
        Ok(Fact::Settled(_)) => "settled".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Metadata as text, and metadata that the program wrote, damaged.
fn commit(input: &[u8]) -> String {
    let place = Place::new("cluster", "topic", 0);
    let (window, error) = Window::restore(Position(1000), &text(input), place);
    assert!(window.position().0 >= 1000, "nothing below the position");
    // Large ones now and then: each is written and read a dozen times.
    let offsets = if input.len().is_multiple_of(16) {
        4000
    } else {
        250
    };
    let mut own = Window::new(Position(1000));
    for (at, &byte) in input.iter().take(offsets).enumerate() {
        let offset = Offset(1000 + at as i64);
        if own.take(offset) && byte & 1 == 1 {
            own.finish(offset);
        }
    }
    let mut result = String::new();
    for format in [WindowFormat::V1, WindowFormat::V2] {
        let snapshot = own.snapshot(place, format);
        let (again, error) = Window::restore(snapshot.position, &snapshot.metadata, place);
        assert_eq!(error, None, "what was written is read");
        let reread = again.snapshot(place, format);
        assert_eq!(reread.position, snapshot.position);
        for (at, &byte) in input.iter().take(4).enumerate() {
            let mut damaged = snapshot.metadata.clone().into_bytes();
            if let Some(one) = damaged.get_mut(usize::from(byte) + at) {
                *one = b'A' + byte % 26;
            }
            let damaged = String::from_utf8(damaged).unwrap();
            let (window, error) = Window::restore(snapshot.position, &damaged, place);
            if damaged != snapshot.metadata && error.is_none() {
                assert_eq!(window.snapshot(place, format).position, snapshot.position);
            }
            result += &format!("{error:?}");
        }
    }
    format!("{error:?} {result}")
}

fn wait(input: &[u8]) -> String {
    let now = EpochMs(1_795_000_000_000);
    let values = input.split(|&byte| byte == b'\n');
    match retry_after::wait(values.clone(), now) {
        Some(wait) => {
            let longest = values.filter_map(|one| retry_after::wait([one].into_iter(), now));
            assert_eq!(longest.max(), Some(wait), "the longest counts");
            bucket(
                "wait",
                wait.as_secs().checked_ilog10().unwrap_or(0) as usize,
            )
        }
        None => "none".to_owned(),
    }
}

fn response(input: &[u8]) -> String {
    let Some((&step, bytes)) = input.split_first() else {
        return "empty".to_owned();
    };
    let whole = read_head([bytes].into_iter());
    let pieces = bytes.chunks(usize::from(step) % 17 + 1);
    let cut = read_head(pieces);
    assert_eq!(whole, cut, "however it arrives, it is the same response");
    let mask = Mask::new(["hunter2hunter2".into()]);
    let excerpt = Excerpt::new(bytes, step % 2 == 0, &mask);
    assert!(excerpt.text.len() <= 1024 && !excerpt.text.contains("hunter2hunter2"));
    let line = first_line(&excerpt.text);
    assert!(!line.contains('\n'));
    match whole {
        Some((status, values)) => {
            assert!(
                (100..=999).contains(&status) && values.len() <= 8,
                "{status}"
            );
            bucket("status", usize::from(status / 100) * 10 + values.len())
        }
        None => "none".to_owned(),
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            !(four.is_private()
                || four.is_loopback()
                || four.is_link_local()
                || four.is_unspecified()
                || four.is_multicast()
                || four.is_broadcast()
                || four.octets()[0] == 0)
        }
        IpAddr::V6(six) => {
            let inner = six.to_ipv4_mapped();
            inner.is_none_or(|four| is_public(IpAddr::V4(four)))
                && !(six.is_loopback()
                    || six.is_unspecified()
                    || six.is_multicast()
                    || six.is_unique_local()
                    || six.is_unicast_link_local())
        }
    }
}

fn egress(input: &[u8]) -> String {
    static POLICY: OnceLock<EgressPolicy> = OnceLock::new();
    let policy = POLICY.get_or_init(|| EgressPolicy::new(&EgressSettings::default()));
    let typed = text(input);
    if let Some(pattern) = HostPattern::parse(&typed) {
        assert!(!pattern.matches(""), "no name");
    }
    // Any 16 bytes are an address.
    let mut bytes = [0; 16];
    let count = input.len().min(16);
    bytes[..count].copy_from_slice(&input[..count]);
    let [a, b, c, d, ..] = bytes;
    let addresses: [IpAddr; 3] = [
        Ipv6Addr::from(bytes).into(),
        Ipv4Addr::new(a, b, c, d).into(),
        Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().into(),
    ];
    for address in addresses {
        if !is_public(address) {
            let checked = policy.check_addresses("acme.example", &[address]);
            assert!(checked.is_err(), "{address} is not public");
        }
    }
    match policy.parse_url(&typed) {
        Ok(url) => {
            assert_eq!(url.scheme(), "https");
            assert!(url.username().is_empty() && url.password().is_none());
            let is_denied = match url.host() {
                Some(url::Host::Ipv4(four)) => !is_public(four.into()),
                Some(url::Host::Ipv6(six)) => !is_public(six.into()),
                Some(url::Host::Domain(name)) => !name.trim_end_matches('.').contains('.'),
                None => true,
            };
            assert!(!is_denied, "{url}");
            // What is dialled is checked in another form.
            let uri: http::Uri = url.as_str().parse().unwrap_or_default();
            if uri.host().is_some() {
                assert!(policy.check_target(&uri).is_ok(), "{url}");
            }
            "allowed".to_owned()
        }
        Err(denied) => {
            let message = denied.to_string();
            message
                .split_once(": ")
                .map_or(message.clone(), |(_, rule)| rule.to_owned())
        }
    }
}

fn encrypted(input: &[u8]) -> String {
    let typed = text(input);
    let owner = Owner {
        subscriber: "acme",
        id: "a",
    };
    let sealed = Sealed::read(&typed);
    let keys = Keys::read(&typed);
    if let Ok(sealed) = &sealed {
        let again = Sealed::read(&sealed.to_string());
        assert_eq!(again.as_ref(), Ok(sealed));
        let keys = Keys::read("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
        assert!(keys.open(sealed, owner).is_err(), "nobody encrypted it");
    }
    if let Ok(keys) = &keys {
        let sealed = keys.seal("secret", owner, &[7; 56]).unwrap();
        assert_eq!(keys.open(&sealed, owner).as_deref(), Ok("secret"));
    }
    format!("{:?} {:?}", sealed.err(), keys.err())
}

fn status(input: &[u8]) -> String {
    let read = Status::read(input);
    if let Ok(status) = &read {
        let again = Status::read(&status.to_json());
        assert!(again.is_ok(), "what is written is read");
        drop(status.recent_attempts(EpochMs(1_795_000_000_000)));
    }
    let trace = TraceContext::parse(&text(input)).is_some();
    format!("{trace} {:?}", read.map(|_| ()))
}

fn avro(input: &[u8]) -> String {
    const MAX: usize = 64 * 1024;
    let at = input.windows(2).position(|two| two == b"\n\n");
    let (schema, value) = match at {
        Some(at) => (&input[..at], &input[at + 2..]),
        None => (input, &[][..]),
    };
    let definition = Definition {
        language: Language::Avro,
        text: text(schema),
        references: Vec::new(),
    };
    let schema = match Schema::compile(&definition) {
        Ok(schema) => schema,
        Err(error) => return error.to_string(),
    };
    let Some(framed) = recognise(value, None) else {
        return "not framed".to_owned();
    };
    match schema.decode(&framed, MAX) {
        Ok(json) => {
            assert!(json.len() <= MAX);
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_ok());
            "decoded".to_owned()
        }
        Err(error) => error.to_string(),
    }
}
