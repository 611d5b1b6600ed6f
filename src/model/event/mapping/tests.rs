//! What an operator may write, and what is refused with which words.

use super::*;

fn given(fields: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let own = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    let each = fields.iter();
    each.map(|(name, values)| ((*name).to_owned(), own(values)))
        .collect()
}

#[track_caller]
fn refused(fields: &[(&str, &[&str])]) -> String {
    Mapping::read(&given(fields)).unwrap_err().join("\n")
}

fn path(text: &str) -> Vec<String> {
    Path::parse("id", text).unwrap().segments
}

#[test]
fn every_preset_is_a_mapping() {
    assert_eq!(
        presets().collect::<Vec<_>>(),
        [
            "debezium-outbox",
            "debezium-cloudevents",
            "spring-cloud-stream"
        ]
    );
    for name in presets() {
        let mapping = Mapping::read(&given(&[("preset", &[name])])).unwrap();
        assert_eq!(mapping.own, Fields::default(), "{name}");
    }
}

#[test]
fn a_field_overrides_that_of_the_preset_and_leaves_the_others() {
    let preset = Mapping::read(&given(&[("preset", &["debezium-outbox"])])).unwrap();
    let own = Mapping::read(&given(&[
        ("preset", &["debezium-outbox"]),
        ("type", &["json:kind", "const:order.changed"]),
        ("subject", &["none"]),
        ("unwrap", &["false"]),
        ("tombstone", &["event:order.deleted"]),
    ]))
    .unwrap();
    let types = own.fields.event_type.unwrap();
    assert_eq!(types.list.len(), 2);
    assert!(!types.optional);
    let subject = own.fields.subject.unwrap();
    assert!(subject.list.is_empty() && subject.optional);
    assert_eq!(own.fields.id, preset.fields.id);
    assert!(!own.unwrap && preset.unwrap);
    assert_eq!(
        own.tombstone,
        Tombstone::Event(Some("order.deleted".to_owned()))
    );
}

#[test]
fn a_path_has_dots_between_its_segments_and_a_backslash_before_what_is_part_of_one() {
    assert_eq!(path("a"), ["a"]);
    assert_eq!(path("a.b.0"), ["a", "b", "0"]);
    assert_eq!(path(r"System\.State.x\[0\]\\"), ["System.State", r"x[0]\"]);
    assert_eq!(path("$schema"), ["$schema"]);
    assert_eq!(path(r"\/a"), ["/a"]);
    assert_eq!(path("für.Zoë"), ["für", "Zoë"]);
    for (wrong, reason) in [
        ("", "segment is empty"),
        ("a..b", "segment is empty"),
        ("a.", "segment is empty"),
        (r"a\", "ends with a backslash"),
        ("$.a", "no $"),
        ("$", "no $"),
        ("/a/b", "not slashes"),
        ("a[0]", "number of an item"),
        (&["a"; 17].join("."), "17 segments"),
    ] {
        let refused = Path::parse("id", wrong).unwrap_err();
        assert!(refused.contains(reason), "{wrong}: {refused}");
    }
    assert!(Path::parse("id", &["a"; MAX_PATH_SEGMENTS].join(".")).is_ok());
}

#[test]
fn what_is_wrong_is_named_with_the_way_out_all_at_once() {
    let both: [(&str, &[&str]); 2] = [("id", &["header:id"]), ("type", &["const:a"])];
    let with = |name: &'static str, values: &'static [&'static str]| {
        refused(&[both[0], both[1], (name, values)])
    };
    let all = refused(&[
        ("tpye", &["topic"]),
        ("preset", &["debezium"]),
        ("id", &["headers:id"]),
        ("tombstone", &["delete"]),
        ("unwrap", &["yes"]),
    ]);
    for part in [
        r#"unknown field "tpye"; must be one of preset, id, type, source, subject, time, data, unwrap, tombstone"#,
        r#"unknown preset "debezium"; must be one of debezium-outbox, debezium-cloudevents, spring-cloud-stream"#,
        r#"id is "headers:id"; must be header:NAME, key, json:PATH, const:TEXT or topic"#,
        r#"tombstone is "delete"; must be skip, invalid, event, or event:TYPE"#,
        r#"unwrap is "yes"; must be true or false"#,
    ] {
        assert!(all.contains(part), "{part} in {all}");
    }
    let missing = refused(&[("subject", &["key"])]);
    assert!(
        missing.contains("id is missing") && missing.contains("type is missing"),
        "{missing}"
    );
    for (name, values, reason) in [
        ("subject", &["value"][..], "is for data only"),
        ("subject", &["header:"], "must be header:NAME"),
        ("subject", &["none", "key"], "none must be the last place"),
        ("source", &["none"], "source cannot be none"),
        ("source", &["const:"], "the constant is empty"),
        ("source", &["const:a\u{7}"], "control character"),
        ("time", &["topic"], "must be header:NAME"),
        ("time", &["const:yesterday"], "RFC 3339"),
        ("data", &["header:x"], "must be value, or json:PATH"),
        ("data", &["json:"], "segment is empty"),
        ("data", &[], "has 0 places"),
        ("source", &["key"; 9], "has 9 places"),
        ("preset", &["debezium-outbox", "x"], "must have one value"),
        ("tombstone", &["event:"], "the constant is empty"),
    ] {
        let text = with(name, values);
        assert!(text.contains(reason), "{name} = {values:?}: {text}");
    }
    for same in ["const:1", "topic"] {
        let text = refused(&[("id", &[same]), ("type", &["const:a"])]);
        assert!(text.contains("the same id"), "{text}");
    }
    let long: &str = &format!("const:{}", "x".repeat(MAX_ATTRIBUTE_BYTES + 1));
    assert!(refused(&[both[0], ("type", &[long])]).contains("1025 bytes"));
}
