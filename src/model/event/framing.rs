//! Names what a value is that is not JSON text: framings and encodings that publishers use by mistake.

use super::error::InvalidEvent;
use super::json::{parse_members, parse_string};

/// A better error for a record that cannot be read, if its value is recognised.
pub(super) fn explain(
    error: InvalidEvent,
    payload: &[u8],
    headers: &[(&str, &[u8])],
) -> InvalidEvent {
    recognise(payload, headers).unwrap_or(error)
}

fn recognise(payload: &[u8], headers: &[(&str, &[u8])]) -> Option<InvalidEvent> {
    let framed = |what: String, way_out| Some(InvalidEvent::Framing { what, way_out });
    const PLAIN: &str = "publish the JSON text without it";
    match *payload {
        [0xef, 0xbb, 0xbf, ..] => return framed("a byte order mark".to_owned(), PLAIN),
        [0xfe, 0xff, ..] | [0xff, 0xfe, ..] | [0, b'{', 0, ..] | [b'{', 0, ..] => {
            return framed("text in UTF-16".to_owned(), "publish it in UTF-8");
        }
        [0x1f, 0x8b, ..] => return framed("gzip data".to_owned(), COMPRESSION),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return framed("zstd data".to_owned(), COMPRESSION),
        [0x04, 0x22, 0x4d, 0x18, ..] => return framed("LZ4 data".to_owned(), COMPRESSION),
        [0xac, 0xed, 0, 5, ..] => {
            return framed("a serialized Java object".to_owned(), "publish JSON");
        }
        [0, a, b, c, d, ..] => {
            let id = u32::from_be_bytes([a, b, c, d]);
            return framed(format!("the schema id {id} of a Schema Registry"), REGISTRY);
        }
        _ => {}
    }
    if headers.iter().any(|(name, _)| *name == "__value_schema_id") {
        return framed(
            "a value whose schema id is in the header __value_schema_id".to_owned(),
            REGISTRY,
        );
    }
    let text = std::str::from_utf8(payload).ok()?;
    if parse_string(text.trim()).is_some_and(|inner| parse_members(&inner).is_ok()) {
        return framed(
            "a JSON string that holds an object, as Debezium's outbox router writes".to_owned(),
            "configure an event mapping for the topic, such as the preset debezium-outbox",
        );
    }
    let members = parse_members(text).ok()?;
    let has = |name: &str| members.contains_key(name);
    if has("schema") && has("payload") {
        return framed(
            "an object with schema and payload, as Kafka Connect's JSON converter writes"
                .to_owned(),
            "set schemas.enable=false for its converter, or unwrap in an event mapping of the topic",
        );
    }
    if has("op") && has("source") && (has("before") || has("after")) {
        return framed(
            "a change event of Debezium".to_owned(),
            "publish events with its outbox router, or configure an event mapping for the topic",
        );
    }
    None
}

const COMPRESSION: &str = "leave compression to the producer's compression.type";
const REGISTRY: &str = "set --schema-registry, or publish JSON without that framing";
