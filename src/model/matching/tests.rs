//! The index against the naive search, and each kind of matcher by name.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::event::{RawEvent, read};
use crate::model::subscription::parse;
use crate::model::units::EpochMs;

fn subscription(id: &str, events: &Value, filter: &Value) -> Arc<Subscription> {
    let record = json!({"id": id, "subscriber": "s", "url": "https://a.example/", "events": events, "filter": filter});
    Arc::new(parse(None, record.to_string().as_bytes()).unwrap())
}

fn with_event<R>(payload: &Value, check: impl FnOnce(&Event<'_>) -> R) -> R {
    let text = payload.to_string();
    let raw = RawEvent {
        topic: "t",
        key: None,
        payload: Some(text.as_bytes()),
        headers: &[],
        timestamp: EpochMs(0),
    };
    check(&read(&raw, 1 << 20).unwrap())
}

fn indexed(index: &Index, event: &Event<'_>) -> Vec<String> {
    let mut found = Vec::new();
    index.matching(event, &mut found);
    let mut ids: Vec<_> = found
        .iter()
        .map(|subscription| subscription.id.to_string())
        .collect();
    ids.sort();
    ids
}

fn naive(index: &Index, event: &Event<'_>) -> Vec<String> {
    let wants = |s: &&Arc<Subscription>| {
        s.events
            .iter()
            .any(|pattern| pattern.matches(event.event_type()))
            && s.filter.matches(event)
    };
    let mut ids: Vec<_> = index
        .iter()
        .filter(wants)
        .map(|s| s.id.to_string())
        .collect();
    ids.sort();
    ids
}

#[track_caller]
fn case(filter: &Value, data: &Value, wanted: bool) {
    let mut index = Index::new();
    index.insert(subscription("one", &json!(["a"]), filter));
    let event = json!({"specversion": "1.0", "source": "/s", "id": "1", "type": "a", "subject": "o-7", "region": "eu", "level": 3, "data": data});
    with_event(&event, |event| {
        assert_eq!(
            index.iter().next().unwrap().filter.matches(event),
            wanted,
            "{filter} on {data}, naive"
        );
        assert_eq!(
            indexed(&index, event).len(),
            usize::from(wanted),
            "{filter} on {data}, index"
        );
    });
}

#[test]
fn exact_values_match_by_type_and_value() {
    case(&json!({"data.x": ["a"]}), &json!({"x": "a"}), true);
    case(&json!({"data.x": ["a", "b"]}), &json!({"x": "b"}), true);
    case(&json!({"data.x": ["a"]}), &json!({"x": "A"}), false);
    case(&json!({"data.x": [5]}), &json!({"x": 5.0}), true);
    case(&json!({"data.x": [5]}), &json!({"x": "5"}), false);
    case(
        &json!({"data.x": [9_007_199_254_740_993_u64]}),
        &json!({"x": 9_007_199_254_740_992_u64}),
        false,
    );
    case(&json!({"data.x": [true]}), &json!({"x": true}), true);
    case(&json!({"data.x": [true]}), &json!({"x": false}), false);
    case(&json!({"data.x": [null]}), &json!({"x": null}), true);
    case(&json!({"data.x": [null]}), &json!({}), false);
    case(&json!({"data": ["whole"]}), &json!("whole"), true);
    case(
        &json!({"data.x": ["a"], "data.y": ["b"]}),
        &json!({"x": "a", "y": "c"}),
        false,
    );
}

#[test]
fn attributes_and_extensions_match_like_data() {
    case(
        &json!({"type": ["a"], "source": ["/s"], "id": ["1"], "subject": [{"prefix": "o-"}]}),
        &json!(1),
        true,
    );
    case(
        &json!({"region": ["eu"], "level": [{"numeric": [">", 2]}]}),
        &json!(1),
        true,
    );
    case(&json!({"region": ["us"]}), &json!(1), false);
    case(&json!({"time": [{"exists": false}]}), &json!(1), true);
}

#[test]
fn any_element_of_an_array_suffices() {
    let data = json!({"items": [{"sku": "a"}, {"sku": ["b", "c"]}, 5], "none": []});
    case(&json!({"data.items.sku": ["c"]}), &data, true);
    case(&json!({"data.items.sku": ["d"]}), &data, false);
    case(&json!({"data.items": [5]}), &data, true);
    case(
        &json!({"data.items.sku": [{"anything-but": ["a", "b"]}]}),
        &data,
        true,
    );
    case(
        &json!({"data.items.sku": [{"anything-but": ["a", "b", "c"]}]}),
        &data,
        false,
    );
    case(&json!({"data.none": [{"exists": true}]}), &data, true);
    case(&json!({"data.none.x": [{"exists": true}]}), &data, false);
}

#[test]
fn prefixes_and_suffixes_match_strings_only() {
    case(
        &json!({"data.x": [{"prefix": "ab"}]}),
        &json!({"x": "abc"}),
        true,
    );
    case(
        &json!({"data.x": [{"prefix": "abcd"}]}),
        &json!({"x": "abc"}),
        false,
    );
    case(
        &json!({"data.x": [{"prefix": "é"}]}),
        &json!({"x": "éa"}),
        true,
    );
    case(
        &json!({"data.x": [{"prefix": "a"}]}),
        &json!({"x": "é"}),
        false,
    );
    case(
        &json!({"data.x": [{"suffix": "bc"}]}),
        &json!({"x": "abc"}),
        true,
    );
    case(
        &json!({"data.x": [{"suffix": "a"}]}),
        &json!({"x": "aé"}),
        false,
    );
    case(
        &json!({"data.x": [{"prefix": "5"}]}),
        &json!({"x": 5}),
        false,
    );
}

#[test]
fn anything_but_wants_a_value_that_is_there() {
    case(
        &json!({"data.x": [{"anything-but": "a"}]}),
        &json!({"x": "b"}),
        true,
    );
    case(
        &json!({"data.x": [{"anything-but": "a"}]}),
        &json!({"x": "a"}),
        false,
    );
    case(
        &json!({"data.x": [{"anything-but": ["a", 5]}]}),
        &json!({"x": 5}),
        false,
    );
    case(
        &json!({"data.x": [{"anything-but": "a"}]}),
        &json!({}),
        false,
    );
    case(
        &json!({"data.x": [{"anything-but": "a"}]}),
        &json!({"x": {}}),
        false,
    );
    case(
        &json!({"data.x": [{"anything-but": {"prefix": "ab"}}]}),
        &json!({"x": "abc"}),
        false,
    );
    case(
        &json!({"data.x": [{"anything-but": {"prefix": "ab"}}]}),
        &json!({"x": 7}),
        true,
    );
    case(
        &json!({"data.x": [{"anything-but": {"suffix": "c"}}]}),
        &json!({"x": "abd"}),
        true,
    );
}

#[test]
fn numbers_match_within_their_bounds() {
    let between = json!({"data.x": [{"numeric": [">=", 100, "<", 200]}]});
    for (x, wanted) in [
        (json!(100), true),
        (json!(199.9), true),
        (json!(200), false),
        (json!(99), false),
    ] {
        case(&between, &json!({ "x": x }), wanted);
    }
    case(
        &json!({"data.x": [{"numeric": [">", 100]}]}),
        &json!({"x": 100}),
        false,
    );
    case(
        &json!({"data.x": [{"numeric": ["<=", 100]}]}),
        &json!({"x": 100}),
        true,
    );
    case(
        &json!({"data.x": [{"numeric": ["<", 100]}]}),
        &json!({"x": 100}),
        false,
    );
    case(
        &json!({"data.x": [{"numeric": ["=", 0.5]}]}),
        &json!({"x": 5e-1}),
        true,
    );
    case(
        &json!({"data.x": [{"numeric": [">", -1e300, "<", 1e300]}]}),
        &json!({"x": 1e299}),
        true,
    );
    case(
        &json!({"data.x": [{"numeric": [">", 1e-300, "<", 2e-300]}]}),
        &json!({"x": 1.5e-300}),
        true,
    );
    case(
        &json!({"data.x": [{"numeric": [">", 1e300]}]}),
        &json!({"x": 5}),
        false,
    );
    case(
        &json!({"data.x": [{"numeric": [">", 1]}]}),
        &json!({"x": "5"}),
        false,
    );
}

#[test]
fn numbers_are_compared_by_value_however_they_are_written() {
    for (filter, number, wanted) in [
        ("0.1", "0.10", true),
        ("0.1", "1e-1", true),
        ("0.1", "0.1000000000000000000000000000000000", true),
        ("0.123456789012345", "0.12345678901234500000000000", true),
        ("0.1", "0.10000000000000002", false),
        ("0.30000000000000004", "0.30000000000000004", true),
        ("0.30000000000000004", "0.3", false),
        ("0", "-0", true),
        ("0", "-0.0", true),
        ("-0", "0", true),
        ("9007199254740993", "9007199254740993", true),
        ("9007199254740993", "9007199254740992", false),
        ("9007199254740992", "9007199254740993", false),
        ("18446744073709551615", "18446744073709551615", true),
        ("18446744073709551615", "18446744073709551616", false),
        ("-9223372036854775808", "-9223372036854775808", true),
        ("1e300", "1e400", false),
        (r#"{"numeric":[">",1e300]}"#, "1e400", true),
        (r#"{"numeric":["<",-1e300]}"#, "-1e400", true),
        (
            r#"{"numeric":[">",18446744073709551615]}"#,
            "18446744073709551616",
            true,
        ),
        (
            r#"{"numeric":["<",9007199254740993]}"#,
            "9007199254740992.5",
            true,
        ),
        (
            r#"{"numeric":[">=",0.1,"<=",0.2]}"#,
            "0.20000000000000000000",
            true,
        ),
    ] {
        let record = format!(
            r#"{{"id":"s","subscriber":"s","url":"https://a.example/","events":["a"],"filter":{{"data.x":[{filter}]}}}}"#
        );
        let mut index = Index::new();
        index.insert(Arc::new(parse(None, record.as_bytes()).unwrap()));
        let event = format!(r#"{{"id":"1","type":"a","data":{{"x":{number}}}}}"#);
        let raw = RawEvent {
            topic: "t",
            key: None,
            payload: Some(event.as_bytes()),
            headers: &[],
            timestamp: EpochMs(0),
        };
        let event = read(&raw, 1 << 20).unwrap();
        assert_eq!(
            indexed(&index, &event).len() == 1,
            wanted,
            "{filter} and {number}"
        );
        assert_eq!(
            naive(&index, &event).len() == 1,
            wanted,
            "{filter} and {number}"
        );
    }
}

#[test]
fn existence_is_about_the_path() {
    case(
        &json!({"data.x": [{"exists": true}]}),
        &json!({"x": null}),
        true,
    );
    case(
        &json!({"data.x": [{"exists": true}]}),
        &json!({"x": {"y": 1}}),
        true,
    );
    case(&json!({"data.x": [{"exists": true}]}), &json!({}), false);
    case(&json!({"data.x": [{"exists": false}]}), &json!({}), true);
    case(
        &json!({"data.x": [{"exists": false}]}),
        &json!({"x": 0}),
        false,
    );
    case(
        &json!({"data.x": ["a", {"exists": false}]}),
        &json!({}),
        true,
    );
    case(
        &json!({"data.x": ["a", {"exists": false}], "data.y": [1]}),
        &json!({"y": 1}),
        true,
    );
}

#[test]
fn a_subscription_with_several_patterns_is_found_once_and_by_id_order() {
    let mut index = Index::new();
    index.insert(subscription(
        "b",
        &json!(["a.*", "**", "a.b", "a.b"]),
        &json!({}),
    ));
    index.insert(subscription(
        "a",
        &json!(["**.b.**", "*.*"]),
        &json!({"data.x": [1, {"numeric": [">", 0]}]}),
    ));
    with_event(
        &json!({"id": "1", "type": "a.b", "data": {"x": [1, 2]}}),
        |event| {
            assert_eq!(indexed(&index, event), ["a", "b"]);
            index.insert(subscription("b", &json!(["c"]), &json!({})));
            assert_eq!(
                indexed(&index, event),
                ["a"],
                "the new record replaces the old one"
            );
            index.remove("a");
            index.remove("a");
            assert!(indexed(&index, event).is_empty());
            assert_eq!(
                (index.len(), index.get("b").map(|s| &*s.id)),
                (1, Some("b"))
            );
        },
    );
}

#[test]
fn an_emptied_index_holds_nothing() {
    let mut index = Index::new();
    for at in 0..50 {
        let filter = json!({"data.x.y": [at, {"prefix": "a"}, {"numeric": [">", at, "<", 99]}], "data.z": [{"suffix": "b"}]});
        index.insert(subscription(
            &at.to_string(),
            &json!(["a.*.**", "b"]),
            &filter,
        ));
    }
    for at in 0..50 {
        index.remove(&at.to_string());
    }
    assert!(index.is_empty());
    assert!(
        index.types.is_empty(),
        "patterns are left: {:?}",
        index.types
    );
    assert!(index.paths.is_empty(), "paths are left: {:?}", index.paths);
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "ab", "ba", "abc", "é"]).prop_map(str::to_owned)
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-3..4i32).prop_map(Value::from),
        (-6..7i32).prop_map(|n| json!(f64::from(n) / 2.0))
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        word().prop_map(Value::from),
        number(),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null)
    ]
}

fn matcher() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => scalar(),
        1 => word().prop_map(|w| json!({ "prefix": w })),
        1 => word().prop_map(|w| json!({ "suffix": w })),
        1 => scalar().prop_map(|s| json!({ "anything-but": s })),
        1 => word().prop_map(|w| json!({"anything-but": {"prefix": w}})),
        1 => (prop::sample::select(vec![">", ">=", "<", "<=", "="]), number()).prop_map(|(o, n)| json!({"numeric": [o, n]})),
        1 => (-4..3i32, 1..4i32, any::<bool>()).prop_map(|(low, length, closed)| {
            json!({"numeric": [if closed { ">=" } else { ">" }, low, if closed { "<=" } else { "<" }, low + length]})
        }),
        1 => any::<bool>().prop_map(|b| json!({ "exists": b })),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "data", "data.x", "data.y", "data.x.y", "data.y.x", "type", "subject", "id",
    ])
    .prop_map(str::to_owned)
}

fn types(wild: bool) -> impl Strategy<Value = String> {
    let segments = if wild {
        vec!["a", "b", "*", "**"]
    } else {
        vec!["a", "b"]
    };
    prop::collection::vec(prop::sample::select(segments), 1..5)
        .prop_map(|segments| segments.join("."))
}

fn data() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(vec!["x", "y"]), inner, 0..3)
                .prop_map(|map| json!(map)),
        ]
    })
}

fn step() -> impl Strategy<Value = (u8, Option<(Vec<String>, Value)>)> {
    let condition =
        (path(), prop::collection::vec(matcher(), 1..4)).prop_map(|(path, mut list)| {
            // A condition on an attribute that no text meets is refused.
            if !path.starts_with("data") {
                list.push(json!("zz"));
            }
            (path, list)
        });
    let filter = prop::collection::vec(condition, 0..3).prop_map(|all| {
        all.into_iter()
            .collect::<std::collections::BTreeMap<_, _>>()
    });
    let wanted = (
        prop::collection::vec(types(true), 1..4),
        filter.prop_map(|map| json!(map)),
    );
    (0..20u8, prop::option::weighted(0.8, wanted))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_index_finds_what_the_naive_search_finds(
        steps in prop::collection::vec(step(), 1..40),
        events in prop::collection::vec((types(false), data(), prop::option::of(word())), 1..12),
    ) {
        let mut index = Index::new();
        for (at, (id, wanted)) in steps.iter().enumerate() {
            match wanted {
                Some((patterns, filter)) => index.insert(subscription(&id.to_string(), &json!(patterns), filter)),
                None => index.remove(&id.to_string()),
            }
            if at % 5 == 0 || at + 1 == steps.len() {
                for (event_type, data, subject) in &events {
                    let event = json!({"id": "a", "type": event_type, "subject": subject, "data": data});
                    with_event(&event, |event| assert_eq!(indexed(&index, event), naive(&index, event), "{event:?}"));
                }
            }
        }
    }
}
