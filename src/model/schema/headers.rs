//! Headers of records with framed values: what their content type says, and what it must say once the value is JSON.

use super::framing::SCHEMA_ID_HEADER;

const JSON: &[u8] = b"application/json";

/// Whether data of this content type may begin like a framing and be something else, such as an image. Avro, Protobuf and
/// JSON are what framed values are.
#[must_use]
pub fn is_foreign_content(content_type: &[u8]) -> bool {
    let essence = essence(content_type);
    let framed = ["avro", "proto", "json", "confluent", "schemaregistry"];
    !framed.iter().any(|part| essence.contains(part))
}

/// Adapts the headers of a record to the JSON that its value became: without the schema id, and with the content type of
/// JSON, unless they say that already.
pub fn adapt_headers(headers: &mut Vec<(&str, &[u8])>) {
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case(SCHEMA_ID_HEADER));
    for (name, value) in headers {
        let is_type = name.eq_ignore_ascii_case("content-type") || *name == "ce_datacontenttype";
        if is_type && !is_json(&essence(value)) {
            *value = JSON;
        }
    }
}

fn is_json(essence: &str) -> bool {
    essence.ends_with("/json")
        || essence.ends_with("+json")
        // A format of whole CloudEvents that is not supported must be refused by name.
        || essence.starts_with("application/cloudevents")
}

/// In lower case, without parameters.
fn essence(content_type: &[u8]) -> String {
    let text = String::from_utf8_lossy(content_type);
    let essence = text.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoded_values_have_the_content_type_of_json() {
        let mut headers: Vec<(&str, &[u8])> = vec![
            ("ce_id", b"1"),
            ("Content-Type", b"application/avro"),
            ("ce_datacontenttype", b"application/x-protobuf; a=b"),
            ("__value_schema_id", b"\x01"),
        ];
        adapt_headers(&mut headers);
        let expected: Vec<(&str, &[u8])> = vec![
            ("ce_id", b"1"),
            ("Content-Type", JSON),
            ("ce_datacontenttype", JSON),
        ];
        assert_eq!(headers, expected);
        for kept in [
            "application/json; charset=utf-8",
            "application/cloudevents+json",
            "application/vnd.acme+json",
            "application/cloudevents+avro",
        ] {
            let mut headers = vec![("content-type", kept.as_bytes())];
            adapt_headers(&mut headers);
            assert_eq!(headers, [("content-type", kept.as_bytes())]);
        }
    }

    #[test]
    fn an_image_is_not_a_framed_value() {
        assert!(is_foreign_content(b"image/x-icon"));
        assert!(is_foreign_content(b"application/octet-stream"));
        assert!(!is_foreign_content(b"application/*+avro"));
        assert!(!is_foreign_content(b"application/x-protobuf"));
        assert!(!is_foreign_content(b"application/JSON; charset=utf-8"));
    }
}
