//! Values that Confluent's serializers have written (tests/data/schema-registry), and hostile ones.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;

const LIMIT: usize = 1024 * 1024;

struct Recorded {
    name: String,
    definition: Definition,
    value: Vec<u8>,
    header: Option<Vec<u8>>,
    json: Value,
}

fn base64(value: &Value) -> Option<Vec<u8>> {
    value.as_str().map(|text| STANDARD.decode(text).unwrap())
}

/// What the records were written with.
fn recorded() -> Vec<Recorded> {
    let all: Value = serde_json::from_str(include_str!(
        "../../../tests/data/schema-registry/records.json"
    ))
    .unwrap();
    let responses = &all["responses"];
    let records = all["records"].as_array().unwrap().iter();
    let recorded = records.map(|record| {
        let answer = match &record["id"] {
            Value::String(guid) => &responses[format!("/schemas/guids/{guid}")],
            number => &responses[format!("/schemas/ids/{number}")],
        };
        let mut references = Vec::new();
        resolve(responses, answer, &mut references);
        Recorded {
            name: record["name"].as_str().unwrap().to_owned(),
            definition: Definition {
                language: Language::named(answer["schemaType"].as_str()).unwrap(),
                text: answer["schema"].as_str().unwrap().to_owned(),
                references,
            },
            value: base64(&record["value"]).unwrap(),
            header: base64(&record["header"]),
            json: record["json"].clone(),
        }
    });
    recorded.collect()
}

fn resolve(responses: &Value, answer: &Value, into: &mut Vec<Reference>) {
    for one in answer["references"].as_array().into_iter().flatten() {
        let subject = one["subject"].as_str().unwrap().replace('/', "%2F");
        let path = format!(
            "/subjects/{subject}/versions/{}?deleted=true",
            one["version"]
        );
        resolve(responses, &responses[&path], into);
        into.push(Reference {
            name: one["name"].as_str().unwrap().to_owned(),
            text: responses[&path]["schema"].as_str().unwrap().to_owned(),
        });
    }
}

fn is_built_in(language: Language) -> bool {
    cfg!(feature = "protobuf") || language != Language::Protobuf
}

fn text(schema: &Schema, framed: &Framed<'_>) -> Result<String, String> {
    let json = schema.decode(framed, LIMIT);
    let json = json.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(json.into_owned()).unwrap())
}

#[test]
fn values_of_foreign_serializers_become_the_documented_json() {
    let mut golden = String::new();
    for one in recorded() {
        if !is_built_in(one.definition.language) {
            continue;
        }
        let schema = Schema::compile(&one.definition).unwrap();
        let framed = recognise(&one.value, one.header.as_deref()).unwrap();
        let json = text(&schema, &framed).unwrap();
        let parsed: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed, one.json, "{}", one.name);
        // The same bytes whenever it is read.
        for _ in 0..20 {
            assert_eq!(text(&schema, &framed).unwrap(), json, "{}", one.name);
        }
        golden.push_str(&format!("{} {json}\n", one.name));
    }
    if !cfg!(feature = "protobuf") {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/schema-registry/json.golden");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &golden).unwrap();
    }
    assert_eq!(golden, std::fs::read_to_string(path).unwrap());
}

#[test]
fn a_value_that_is_cut_off_or_goes_on_is_refused() {
    for one in recorded() {
        if one.definition.language != Language::Avro {
            continue;
        }
        let schema = Schema::compile(&one.definition).unwrap();
        let framed = recognise(&one.value, one.header.as_deref()).unwrap();
        for end in 0..framed.rest.len() {
            let cut = Framed {
                rest: &framed.rest[..end],
                ..framed
            };
            assert!(text(&schema, &cut).is_err(), "{} {end}", one.name);
        }
        let longer = [framed.rest, b"!"].concat();
        let longer = Framed {
            rest: &longer,
            ..framed
        };
        let error = text(&schema, &longer).unwrap_err();
        assert_eq!(error, "1 bytes are left behind the end of the value");
    }
}

#[test]
fn no_bytes_end_the_process_or_exceed_the_limit() {
    let mut random = fastrand::Rng::with_seed(7);
    for one in recorded() {
        if !is_built_in(one.definition.language) || one.definition.language == Language::Json {
            continue;
        }
        let schema = Schema::compile(&one.definition).unwrap();
        for round in 0..2000 {
            let mut value = one.value.clone();
            for _ in 0..=round % 4 {
                let at = random.usize(0..value.len());
                value[at] = random.u8(..);
            }
            value.truncate(random.usize(0..=value.len()));
            if let Some(framed) = recognise(&value, one.header.as_deref())
                && let Ok(json) = schema.decode(&framed, 4096)
            {
                assert!(json.len() <= 4096);
                serde_json::from_slice::<Value>(&json).unwrap();
            }
        }
    }
}

fn avro(schema: &Value) -> Result<Schema, Unusable> {
    Schema::compile(&Definition {
        language: Language::Avro,
        text: schema.to_string(),
        references: Vec::new(),
    })
}

/// The JSON of an Avro value, or the error.
fn read(schema: &Value, value: &[u8]) -> String {
    let framed = Framed {
        id: SchemaId::Number(1),
        path: None,
        rest: value,
    };
    text(&avro(schema).unwrap(), &framed).unwrap_or_else(|error| error)
}

#[test]
fn a_list_that_never_ends_stops_at_its_depth() {
    let list = json!({"type": "record", "name": "List", "fields": [{"name": "next", "type": ["null", "List"]}]});
    let deep = vec![2; 200_000];
    assert!(read(&list, &deep).ends_with("the value is nested deeper than 127 levels"));
    let endless = json!({"type": "record", "name": "A", "fields": [{"name": "a", "type": "A"}]});
    assert!(read(&endless, &[]).ends_with("the value is nested deeper than 127 levels"));
    assert_eq!(
        read(&list, &[2, 2, 0]),
        r#"{"next":{"next":{"next":null}}}"#
    );
}

#[test]
fn a_claim_of_many_items_without_bytes_ends_at_the_limit() {
    let many = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let too_large = "its JSON is larger than 1048576 bytes (--max-event-bytes)";
    let nulls = json!({"type": "array", "items": "null"});
    assert!(read(&nulls, &many).ends_with(too_large));
    let empty = json!({"type": "array", "items": {"type": "record", "name": "E", "fields": []}});
    assert!(read(&empty, &many).ends_with(too_large));
    // Two items, then a block with its size.
    assert_eq!(read(&nulls, &[4, 1, 0, 0]), "[null,null,null]");
}

#[test]
fn types_that_the_records_do_not_have_are_read_too() {
    let logical = |below: Value, name: &str| {
        let mut schema = below;
        schema["logicalType"] = name.into();
        schema
    };
    let long = || json!({"type": "long"});
    let fixed = |size: usize| json!({"type": "fixed", "name": "F", "size": size});
    let twelve = [1, 0, 0, 0, 2, 0, 0, 0, 0xbc, 0x0b, 0, 0];
    let sixteen: Vec<u8> = (0..16).collect();
    let cases: [(Value, &[u8], &str); 14] = [
        (
            logical(long(), "timestamp-nanos"),
            &[2],
            r#""1970-01-01T00:00:00.000000001Z""#,
        ),
        (
            logical(long(), "local-timestamp-micros"),
            &[2],
            r#""1970-01-01T00:00:00.000001""#,
        ),
        (logical(fixed(12), "duration"), &twelve, r#""P1M2DT3.004S""#),
        (
            logical(fixed(16), "uuid"),
            &sixteen,
            r#""00010203-0405-0607-0809-0a0b0c0d0e0f""#,
        ),
        (
            logical(fixed(15), "uuid"),
            &sixteen[..15],
            r#""AAECAwQFBgcICQoLDA0O""#,
        ),
        (json!({"type": {"type": {"type": "int"}}}), &[3], "-2"),
        (
            json!("int"),
            &[0xff, 0xff, 0xff, 0xff, 0x1f],
            "a number has more than 32 bits",
        ),
        (json!("long"), &[0xff; 11], "a number has more than 64 bits"),
        (json!("boolean"), &[2], "a boolean is 2; must be 0 or 1"),
        (json!("string"), &[2, 0xff], "a string is not UTF-8"),
        (json!("bytes"), &[1], "a length is negative or too large"),
        (
            json!("bytes"),
            &[0xfe, 0xff, 0xff, 0xff, 0x0f],
            "the value ends too early",
        ),
        (
            json!(["null", "int"]),
            &[4],
            "branch 2 does not exist; the schema has 2",
        ),
        (
            json!({"type": "map", "values": "int"}),
            &[4, 2, b'a', 2, 2, b'a', 4, 0],
            "the key \"a\" occurs twice",
        ),
    ];
    for (schema, value, expected) in cases {
        assert_eq!(read(&schema, value), expected, "{schema}");
    }
}

#[test]
fn an_error_names_the_place() {
    let schema = json!({"type": "record", "name": "Event", "fields": [
        {"name": "data", "type": {"type": "array", "items": {"type": "map", "values":
            {"type": "long", "logicalType": "timestamp-millis"}}}}]});
    let latest = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let value = [&[2, 2, 2, b'k'][..], &latest, &[0, 0]].concat();
    assert_eq!(
        read(&schema, &value),
        "data.0.k: a time is not in the years 0000 to 9999"
    );
}

#[test]
fn names_are_found_by_namespace() {
    let schema = json!({"type": "record", "name": "a.b.Outer", "fields": [
        {"name": "x", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
        {"name": "y", "type": "E"},
        {"name": "z", "type": "a.b.E"},
        {"name": "w", "type": {"type": "record", "name": "In", "namespace": "c", "fields": [
            {"name": "v", "type": "a.b.E"}, {"name": "u", "type": ["null", "c.In"]}]}},
        {"name": "t", "type": "c.In"},
    ]});
    let nested = r#"{"v":"A","u":{"v":"B","u":null}}"#;
    assert_eq!(
        read(&schema, &[0, 2, 0, 2, 0, 0, 2, 2, 0]),
        format!(r#"{{"x":"A","y":"B","z":"A","w":{{"v":"B","u":null}},"t":{nested}}}"#)
    );
}

#[test]
fn a_schema_that_cannot_be_used_says_why() {
    let cases = [
        (
            json!("acme.Order"),
            r#"the type "acme.Order" is not defined, neither here nor in a reference"#,
        ),
        (
            json!({"type": "record", "name": "A"}),
            "a type or field has no fields",
        ),
        (json!(7), "7 is not a type"),
        (
            json!({"type": "fixed", "name": "A", "size": -1}),
            "size is not a number of bytes",
        ),
        (
            json!([{"type": "enum", "name": "A", "symbols": []}, {"type": "fixed", "name": "A", "size": 1}]),
            r#"the type "A" is defined twice"#,
        ),
        (
            json!({"type": "bytes", "logicalType": "decimal", "precision": 5000, "scale": 4000}),
            "the scale of a decimal is 4000, the limit is 1000",
        ),
    ];
    for (schema, expected) in cases {
        assert_eq!(avro(&schema).unwrap_err().to_string(), expected);
    }
    let other = Language::named(Some("XML")).unwrap_err();
    assert_eq!(
        other.to_string(),
        r#"its type is "XML"; must be AVRO, JSON or PROTOBUF"#
    );
    let deep = "[".repeat(5000);
    let definition = |text: String| Definition {
        language: Language::Avro,
        text,
        references: Vec::new(),
    };
    let error = Schema::compile(&definition(deep)).unwrap_err().to_string();
    assert!(
        error.starts_with("it is not JSON: recursion limit exceeded"),
        "{error}"
    );
    let long = Schema::compile(&definition(" ".repeat(MAX_SCHEMA_BYTES + 1)));
    assert!(matches!(long, Err(Unusable::TooLarge { .. })));
}

#[test]
fn a_framing_is_recognised_in_front_and_in_the_header() {
    let guid: Vec<u8> = [&[1][..], &[0xab; 16], &[0]].concat();
    let framed = recognise(b"{}", Some(&guid)).unwrap();
    assert_eq!(
        framed.id.to_string(),
        "abababab-abab-abab-abab-abababababab"
    );
    assert_eq!((framed.path, framed.rest), (Some(&[0][..]), &b"{}"[..]));
    let framed = recognise(&[0, 0, 0, 1, 2, 9], Some(b"no id")).unwrap();
    assert_eq!((framed.id, framed.rest), (SchemaId::Number(258), &[9][..]));
    assert_eq!(recognise(b"\0\0\0\x01", None), None);
    assert_eq!(recognise(&guid, None), None);
    assert_eq!(recognise(b"{}", None), None);
    assert_eq!(recognise(b"", None), None);
}

#[cfg(feature = "protobuf")]
mod protobuf {
    use super::*;

    fn proto(text: &str, references: &[(&str, &str)]) -> Result<Schema, String> {
        let references = references.iter().map(|(name, text)| Reference {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        });
        Schema::compile(&Definition {
            language: Language::Protobuf,
            text: text.to_owned(),
            references: references.collect(),
        })
        .map_err(|error| error.to_string())
    }

    fn read(schema: &Schema, path: &[u8], value: &[u8]) -> String {
        let framed = Framed {
            id: SchemaId::Number(1),
            path: Some(path),
            rest: value,
        };
        text(schema, &framed).unwrap_or_else(|error| error)
    }

    #[test]
    fn source_text_reads_as_the_compiled_file_does() {
        let common = include_str!("../../../tests/data/schema-registry/protos/common.proto");
        let order = include_str!("../../../tests/data/schema-registry/protos/order.proto");
        let schema = proto(order, &[("common.proto", common)]).unwrap();
        let mut read = 0;
        for one in recorded() {
            if one.name == "protobuf" || one.name == "protobuf-nested" {
                let framed = recognise(&one.value, None).unwrap();
                let json: Value = serde_json::from_str(&text(&schema, &framed).unwrap()).unwrap();
                assert_eq!(json, one.json, "{}", one.name);
                read += 1;
            }
        }
        assert_eq!(read, 2);
    }

    #[test]
    fn entries_of_maps_are_no_messages_that_a_path_counts() {
        let schema = proto(
            r#"syntax = "proto3"; message A { map<string, int32> m = 1; message B { int32 b = 1; } }"#,
            &[],
        )
        .unwrap();
        assert_eq!(read(&schema, &[4, 0, 0], &[8, 5]), r#"{"b":5}"#);
        assert_eq!(read(&schema, &[0], &[]), r#"{"m":{}}"#);
        assert_eq!(
            read(&schema, &[4, 0, 2], &[]),
            "message 1 does not exist; the schema has 1"
        );
        assert_eq!(
            read(&schema, &[1], &[]),
            "a length is negative or too large"
        );
        assert_eq!(read(&schema, &[], &[]), "the value ends too early");
    }

    #[test]
    fn nesting_is_bounded() {
        let schema = proto(r#"syntax = "proto3"; message A { A a = 1; }"#, &[]).unwrap();
        let mut value = Vec::new();
        for _ in 0..3000 {
            let mut outer = vec![0x0a];
            let mut size = value.len();
            while size >= 0x80 {
                outer.push(u8::try_from(size & 0x7f).unwrap() | 0x80);
                size >>= 7;
            }
            outer.push(u8::try_from(size).unwrap());
            outer.extend(&value);
            value = outer;
        }
        let error = read(&schema, &[0], &value);
        assert!(error.contains("recursion limit reached"), "{error}");
    }

    #[test]
    fn a_schema_that_cannot_be_used_says_why() {
        let error = proto("message {", &[]).unwrap_err();
        assert_eq!(error, "expected an identifier, but found '{'");
        let import = r#"syntax = "proto3"; import "b.proto";"#;
        let error = proto(import, &[("b.proto", "message {")]).unwrap_err();
        assert_eq!(
            error,
            r#"in "b.proto": expected an identifier, but found '{'"#
        );
        let import = r#"syntax = "proto3"; import "other.proto"; message A {}"#;
        let error = proto(import, &[]).unwrap_err();
        assert!(error.contains("other.proto"), "{error}");
        let cycle = r#"syntax = "proto3"; import "b.proto";"#;
        let error = proto(cycle, &[("b.proto", cycle)]).unwrap_err();
        assert!(error.contains("cycle"), "{error}");
    }

    #[test]
    fn an_enum_value_that_the_schema_does_not_name_is_its_number() {
        let schema = proto(
            r#"syntax = "proto3"; enum E { ZERO = 0; } message A { E e = 1; repeated E l = 2; }"#,
            &[],
        )
        .unwrap();
        assert_eq!(
            read(&schema, &[0], &[8, 9, 0x12, 2, 0, 3]),
            r#"{"e":9,"l":["ZERO",3]}"#
        );
    }

    #[test]
    fn files_that_clients_import_without_a_reference_are_known() {
        let text = include_str!("known_protos.txt");
        let names = text.lines().filter_map(|line| line.strip_prefix("=== "));
        let imports = names.map(|name| format!("import \"{name}\";"));
        let imports: Vec<_> = imports.collect();
        assert_eq!(imports.len(), 19);
        let source = format!(
            r#"syntax = "proto3"; {} message A {{ google.type.Money m = 1 [(confluent.field_meta).doc = "x"]; confluent.type.Decimal d = 2; }}"#,
            imports.concat()
        );
        let schema = proto(&source, &[]).unwrap();
        let value = [&[0x0a, 7, 0x0a, 3][..], b"SEK", &[0x10, 5]].concat();
        assert_eq!(
            read(&schema, &[0], &value),
            r#"{"m":{"currencyCode":"SEK","units":"5","nanos":0}}"#
        );
    }

    #[test]
    fn an_any_of_an_unknown_type_is_refused_by_name() {
        let schema = proto(
            r#"syntax = "proto3"; import "google/protobuf/any.proto"; message A { google.protobuf.Any any = 1; }"#,
            &[],
        )
        .unwrap();
        let value = [&[0x0a, 7, 0x0a, 5][..], b"x/a.B"].concat();
        assert_eq!(
            read(&schema, &[0], &value),
            r#"any: the type "a.B" is not defined in the schema"#
        );
        assert_eq!(read(&schema, &[0], &[0x0a, 0]), r#"{"any":{}}"#);
    }
}
