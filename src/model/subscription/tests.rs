//! The record: what is read, what is refused and how, what is never shown.

use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::model::event::Format;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn minimal() -> Value {
    json!({"id": "acme-orders", "subscriber": "acme", "url": "https://acme.example/hooks", "events": ["order.*"]})
}

fn with(field: &str, value: Value) -> Value {
    let mut record = minimal();
    record[field] = value;
    record
}

fn read(record: &Value) -> Result<Subscription, SubscriptionError> {
    parse(None, record.to_string().as_bytes())
}

fn problems(record: &Value) -> String {
    read(record)
        .expect_err(&record.to_string())
        .problems()
        .join("\n")
}

#[test]
fn the_example_of_the_schema_is_read_in_full() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert!(jsonschema::meta::is_valid(&schema));
    let example = schema["examples"][0].to_string();
    let read = parse(Some(b"acme-orders"), example.as_bytes()).unwrap();
    assert_eq!(
        (&*read.id, &*read.subscriber, read.url.as_str()),
        ("acme-orders", "acme", "https://acme.example/hooks")
    );
    assert!(read.events[0].matches("order.created"));
    assert_eq!(read.filter.conditions.len(), 2);
    assert_eq!(
        *read.secrets,
        [SigningSecret {
            source: SecretSource::Env("ACME_WEBHOOK_SECRET".into()),
            until: None,
        }]
    );
    assert_eq!(
        (read.format, read.state, read.max_in_flight),
        (Format::Standard, State::Active, 8)
    );
    assert_eq!(
        read.rate_limit.as_deref().copied(),
        Some(RateLimit {
            per_second: 50.0,
            burst: 50
        })
    );
    assert_eq!(read.overrides.timeout, Some(Duration::from_secs(15)));
    assert_eq!(
        read.overrides.retry_schedule,
        Some(vec![Duration::from_secs(5), Duration::from_secs(300)])
    );
    assert_eq!(read.overrides.headers[0].0.as_str(), "x-tenant");
}

#[test]
fn what_is_absent_has_its_default() {
    let read = read(&minimal()).unwrap();
    assert_eq!(
        (read.format, read.state, read.max_in_flight),
        (Format::Standard, State::Active, DEFAULT_MAX_IN_FLIGHT)
    );
    assert!(
        read.secrets.is_empty()
            && read.overrides.headers.is_empty()
            && read.filter.conditions.is_empty()
    );
    assert!(
        read.rate_limit.is_none()
            && read.overrides.timeout.is_none()
            && read.overrides.retry_schedule.is_none()
    );
    let limit = super::parse(
        None,
        with("rate_limit", json!({"per_second": 2.5}))
            .to_string()
            .as_bytes(),
    )
    .unwrap();
    assert_eq!(
        limit.rate_limit.as_deref().copied(),
        Some(RateLimit {
            per_second: 2.5,
            burst: 3
        })
    );
    assert_eq!(
        super::tests::read(&with("retry_schedule", json!([])))
            .unwrap()
            .overrides
            .retry_schedule,
        Some(vec![])
    );
}

#[test]
fn each_problem_names_its_field_and_what_is_allowed() {
    let cases = [
        (
            "id",
            json!("a b"),
            "id: \"a b\" must be 1 to 200 characters",
        ),
        ("subscriber", json!(""), "subscriber: \"\" must be"),
        (
            "url",
            json!("ftp://a.example"),
            "url: the scheme is \"ftp\", it must be https or http",
        ),
        ("url", json!("nonsense"), "url: is not a URL"),
        ("url", json!("https://a.example/#x"), "fragment"),
        ("url", json!(7), "url: "),
        ("events", json!([]), "events: [] has less than 1 item"),
        (
            "events",
            json!(["a.b*"]),
            "events.0: \"a.b*\": * and ** stand for whole segments",
        ),
        (
            "events",
            json!(["a..b"]),
            "events.0: \"a..b\": a segment between dots is empty",
        ),
        ("filter", json!({"total": "x"}), "filter"),
        (
            "filter",
            json!({"Total": [1]}),
            "filter: \"Total\": a path starts with data.",
        ),
        (
            "filter",
            json!({"data.x": [{"numeric": [">", 5, "<", 5]}]}),
            "no number lies within",
        ),
        (
            "filter",
            json!({"data.x": [{"numeric": [">", 5, ">=", 5]}]}),
            "two bounds on the same side",
        ),
        (
            "filter",
            json!({"data.x": [{"wildcard": "a*"}]}),
            "filter: \"data.x\": unknown matcher \"wildcard\"",
        ),
        (
            "filter",
            json!({"data..x": [1]}),
            "a segment of the path is empty",
        ),
        (
            "filter",
            json!({"data.x": [[1]]}),
            "filter: \"data.x\": a value is",
        ),
        (
            "filter",
            json!({"data.items[0].sku": [{"exists": false}]}),
            "filter: \"data.items[0].sku\": a path has no brackets",
        ),
        (
            "filter",
            json!({"specversion": ["1.0"]}),
            "filters do not see specversion",
        ),
        (
            "filter",
            json!({"subject": [42, {"numeric": [">", 1]}, null]}),
            "matches no event: subject is always a text",
        ),
        (
            "filter",
            json!({"type": [{"exists": false}]}),
            "every event has one",
        ),
        ("secrets", json!(["env:"]), "secrets.0: must be env:NAME"),
        (
            "secrets",
            json!(["whsk_AAAA"]),
            "secrets.0: has 3 bytes; whsec_ needs 24 to 64, whsk_ needs 32",
        ),
        (
            "secrets",
            json!([SECRET, format!("whsk_{}", "A".repeat(86))]),
            "secrets.1: (whsk_) holds a public key that is not the one of its seed",
        ),
        (
            "secrets",
            json!(["whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="]),
            "secrets.0: is a public key (whpk_)",
        ),
        (
            "secrets",
            json!(["whsec_not-base64"]),
            "secrets.0: is not standard base64",
        ),
        (
            "secrets",
            json!(["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]),
            "secrets.0: must be env:NAME",
        ),
        (
            "headers",
            json!({"authorization": "Bearer env:ACME-TOKEN"}),
            "headers: \"authorization\" looks like a reference",
        ),
        ("format", json!("xml"), "format: \"xml\" is not one of"),
        (
            "headers",
            json!({"Content-Type": "a"}),
            "headers: \"Content-Type\" is reserved",
        ),
        ("headers", json!({"webhook-x": "a"}), "reserved"),
        (
            "headers",
            json!({"a b": "a"}),
            "\"a b\" is not a header name",
        ),
        ("headers", json!({"x-a": "a", "X-A": "b"}), "twice"),
        (
            "headers",
            json!({"x-a": "line\nbreak"}),
            "characters other than",
        ),
        ("state", json!("off"), "state: \"off\" is not one of"),
        (
            "max_in_flight",
            json!(5000),
            "max_in_flight: 5000 is greater than the maximum of 1024",
        ),
        (
            "max_in_flight",
            json!(1.5),
            "max_in_flight: 1.5 is not of type \"integer\"",
        ),
        (
            "rate_limit",
            json!({"per_second": 0}),
            "rate_limit.per_second: 0 is less than the minimum of 0.001",
        ),
        (
            "timeout",
            json!("90s"),
            "timeout: \"90s\" is out of range; allowed are 100ms to 1m",
        ),
        ("timeout", json!("15"), "timeout: \"15\" is not a duration"),
        (
            "retry_schedule",
            json!(["5s", "2days"]),
            "retry_schedule.1: \"2days\" is out of range",
        ),
        ("order", json!("fifo"), "order: \"fifo\" is not one of"),
        ("breaker", json!({"probe": "11m"}), "breaker.probe: "),
        ("breaker", json!({"rate": 2}), "breaker.rate: "),
        ("breaker", json!({"colour": 2}), "breaker: "),
        ("on_status", json!({"600": "retry"}), "on_status: "),
        (
            "on_status",
            json!({"404": "ignore"}),
            "on_status.404: \"ignore\" is not one of",
        ),
        (
            "colour",
            json!(1),
            "unknown fields ('colour' was unexpected)",
        ),
    ];
    for (field, value, wanted) in cases {
        let got = problems(&with(field, value));
        assert!(
            got.contains(wanted),
            "{field}: wanted {wanted:?}, got {got:?}"
        );
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let record = json!({"id": "x y", "url": "ftp://a.example", "events": ["**x"], "timeout": "0s", "state": "on"});
    let Err(SubscriptionError::Invalid(list)) = read(&record) else {
        panic!("must be invalid")
    };
    for wanted in ["subscriber", "id", "url", "events.0", "timeout", "state"] {
        assert!(
            list.iter().any(|problem| problem.contains(wanted)),
            "{wanted} is not in {list:?}"
        );
    }
    assert!(matches!(
        parse(None, b"[]"),
        Err(SubscriptionError::NotJson(_))
    ));
    assert!(matches!(
        parse(None, b"{"),
        Err(SubscriptionError::NotJson(_))
    ));
    assert!(matches!(
        parse(None, &vec![b' '; MAX_RECORD_BYTES + 1]),
        Err(SubscriptionError::TooLarge(_))
    ));
}

#[test]
fn the_id_must_equal_the_key() {
    let record = minimal().to_string();
    let problem = parse(Some(b"other"), record.as_bytes())
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("differs from the record's key \"other\""),
        "{problem}"
    );
}

#[test]
fn secrets_are_never_shown() {
    let mut record = with(
        "secrets",
        json!([SECRET, "env:NAME", "file:/run/secrets/a"]),
    );
    record["headers"] = json!({"Authorization": "Bearer hush-hush", "x-tenant": "acme"});
    record["url"] = json!("https://a.example/?k=v");
    let read = read(&record).unwrap();
    assert_eq!(
        read.secrets[0].source,
        SecretSource::Literal(Redacted::new(SECRET))
    );
    let debug = format!("{read:?} {}", Redacted::new(SECRET));
    assert!(
        !debug.contains(&SECRET[6..]) && !debug.contains("hush-hush"),
        "{debug}"
    );
    let shown = redacted(record.to_string().as_bytes()).unwrap();
    assert_eq!(
        shown["secrets"],
        json!(["whsec_…(redacted)", "env:NAME", "file:/run/secrets/a"])
    );
    assert_eq!(
        shown["headers"],
        json!({"Authorization": "(redacted)", "x-tenant": "acme"})
    );
    assert_eq!(shown["url"], "https://a.example/?k=v");
}

#[test]
fn a_literal_secret_is_accepted_exactly_if_it_can_sign() {
    let seed = format!("whsk_{}=", "A".repeat(43));
    let unpadded = format!("whsec_{}", "A".repeat(34));
    for secret in [SECRET, &seed, seed.trim_end_matches('='), &unpadded] {
        let record = with("secrets", json!([secret]));
        assert!(read(&record).is_ok(), "{secret}: {:?}", read(&record));
    }
}

#[test]
fn references_in_headers_are_shown_and_credentials_are_not() {
    let record = with(
        "headers",
        json!({"authorization": "Bearer env:ACME_TOKEN", "x-api-key": "file:/run/key", "cookie": "Bearer hush",
               "x-token": "env:hush-hush"}),
    );
    let shown = redacted(record.to_string().as_bytes()).unwrap();
    assert_eq!(
        shown["headers"],
        json!({"authorization": "Bearer env:ACME_TOKEN", "x-api-key": "file:/run/key", "cookie": "(redacted)",
               "x-token": "(redacted)"})
    );
}

#[test]
fn no_problem_shows_a_secret() {
    let hidden = "hushhush";
    for (field, value) in [
        ("secrets", json!([format!("whsec_{hidden}")])),
        ("secrets", json!([format!("{hidden} !")])),
        ("secrets", json!({"a": hidden})),
        ("secrets", json!(hidden)),
        ("headers", json!({"authorization": [hidden]})),
        ("headers", json!({"authorization": format!("{hidden}\n")})),
        ("headers", json!(hidden)),
        ("url", json!(format!("https://user:{hidden}@a.example/"))),
        ("url", json!([hidden])),
    ] {
        let got = problems(&with(field, value));
        assert!(!got.contains(hidden), "{field}: {got}");
        assert!(got.contains(field), "{field}: {got}");
    }
    assert!(problems(&with("url", json!("https://@a.example/"))).contains("user name"));
}

#[test]
fn matchers_of_attributes_that_may_match_are_accepted() {
    for filter in [
        json!({"subject": [42, "42"]}),
        json!({"subject": [{"exists": false}]}),
        json!({"time": [{"exists": false}]}),
        json!({"type": [{"anything-but": 5}]}),
        json!({"priority": [5]}),
        json!({"datacontenttype": ["application/json"], "dataschema": [{"prefix": "urn:"}]}),
    ] {
        assert!(read(&with("filter", filter.clone())).is_ok(), "{filter}");
    }
}

#[test]
fn the_more_specific_status_rule_wins() {
    let rules = read(&with(
        "on_status",
        json!({"404": "retry", "4xx": "dead-letter", "302": "delivered"}),
    ))
    .unwrap();
    let rules = &rules.overrides.on_status;
    assert_eq!(rules.lookup(404), Some(StatusRule::Retry));
    assert_eq!(rules.lookup(418), Some(StatusRule::DeadLetter));
    assert_eq!(rules.lookup(302), Some(StatusRule::Delivered));
    assert_eq!(rules.lookup(500), None);
}

#[test]
fn type_patterns_match_whole_segments() {
    let cases = [
        ("order.created", "order.created", true),
        ("order.created", "order.created.v2", false),
        ("order.*", "order.created", true),
        ("order.*", "order", false),
        ("order.*", "order.created.v2", false),
        ("order.**", "order", true),
        ("order.**", "order.created.v2", true),
        ("order.**", "orders.created", false),
        ("**.failed", "failed", true),
        ("**.failed", "a.b.failed", true),
        ("a.**.z", "a.z", true),
        ("a.**.z", "a.b.c.z", true),
        ("a.**.z", "a.b.c", false),
        ("a.*.**", "a", false),
        ("a.*.**", "a.b", true),
        ("**", "anything.at.all", true),
        ("**.b.**.d", "a.b.b.c.d", true),
    ];
    for (pattern, event_type, wanted) in cases {
        assert_eq!(
            TypePattern::parse(pattern).unwrap().matches(event_type),
            wanted,
            "{pattern} on {event_type}"
        );
    }
}

#[test]
fn each_mistake_in_a_filter_is_reported_once() {
    let many: Map<String, Value> = (0..33)
        .map(|at| (format!("data.x{at}"), json!(["x"])))
        .collect();
    for (filter, expected) in [
        (
            json!({"data.a": [{"prefixx": "a"}], "data.b": "x", "data.ok": ["x"]}),
            2,
        ),
        (
            json!({"data.a": [{"numeric": [">"]}, "x", {"prefix": ""}, [], {"exists": 1}]}),
            4,
        ),
        (json!({"data/g~h": [{"exists": 1}, 5]}), 2),
        (json!({"5": [[1]]}), 1),
        (json!({"": "x"}), 2),
        (json!({"data.a": []}), 1),
        (json!(many), 1),
        (json!("x"), 1),
    ] {
        let problems = read(&with("filter", filter)).unwrap_err().problems();
        assert_eq!(problems.len(), expected, "{problems:#?}");
    }
    let of_several = problems(&with("filter", json!({"data.a": ["x", {"prefix": ""}]})));
    assert!(
        of_several.starts_with("filter: \"data.a\": matcher 2: prefix"),
        "{of_several}"
    );
}

proptest! {
    /// So what the schema says about it need not be reported too.
    #[test]
    fn the_parser_of_filters_refuses_what_the_schema_refuses(filter in filters()) {
        if !validate::validator().is_valid(&with("filter", filter.clone())) {
            prop_assert!(Filter::parse(filter.as_object().unwrap()).is_err(), "{filter}");
        }
    }
}

/// Objects that look like filters, and often are none.
fn filters() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        "[a-z>=<]{0,2}".prop_map(Value::from),
        Just(json!("x".repeat(1025))),
    ];
    let operand = prop_oneof![
        scalar.clone(),
        vec(scalar.clone(), 0..6).prop_map(Value::from),
        Just(json!({"prefix": "a"})),
        Just(json!({})),
    ];
    let name = prop_oneof![
        "prefix|suffix|anything-but|numeric|exists|other",
        "[a-z]{0,2}"
    ];
    let matcher = prop_oneof![
        operand.clone(),
        btree_map(name, operand, 0..3).prop_map(|members| json!(members)),
    ];
    let list = prop_oneof![
        9 => vec(matcher.clone(), 0..4).prop_map(Value::from), 1 => matcher.clone(),
        1 => Just(json!(vec!["x"; 65])),
    ];
    let path = prop_oneof!["data\\.[a-c]", "type|subject|[a-z5.\\[ ]{0,3}"];
    btree_map(path, list, 0..4).prop_map(|filter| json!(filter))
}

#[test]
fn all_allowed_values_are_listed() {
    for (given, text) in [
        (json!("off"), "\"off\""),
        (json!(5), "5"),
        (json!(null), "null"),
    ] {
        let expected =
            format!(r#"state: {text} is not one of "active", "paused", "disabled", "pending""#);
        assert!(
            problems(&with("state", given)).contains(&expected),
            "{expected}"
        );
    }
}
