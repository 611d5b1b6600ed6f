//! Headers of records with framed values: what their content type says, and what it must say once the value is JSON.

use super::framing::{Framed, SCHEMA_ID_HEADER, recognise};

const JSON: &[u8] = b"application/json";

/// Whether data of this content type may begin like a framing and be something else, such as an image. Avro, Protobuf and
/// JSON are what framed values are.
#[must_use]
fn is_foreign_content(content_type: &[u8]) -> bool {
    let essence = essence(content_type);
    let framed = ["avro", "proto", "json", "confluent", "schemaregistry"];
    !framed.iter().any(|part| essence.contains(part))
}

/// What the value of a record is framed with; `headers` returns all of its headers. `None` when it is not framed, or is
/// data of another kind that only begins like a framing.
pub fn framed<'a, I>(value: &'a [u8], headers: impl Fn() -> I) -> Option<Framed<'a>>
where
    I: Iterator<Item = (&'a str, Option<&'a [u8]>)>,
{
    let header = |wanted: &str| {
        headers().find_map(|(name, value)| value.filter(|_| name.eq_ignore_ascii_case(wanted)))
    };
    let in_header = header(SCHEMA_ID_HEADER);
    if in_header.is_none() && value.first() != Some(&0) {
        return None;
    }
    let framed = recognise(value, in_header)?;
    let is_other = in_header.is_none()
        && header("content-type").is_some_and(is_foreign_content)
        && headers().any(|(name, _)| name.starts_with("ce_"));
    (!is_other).then_some(framed)
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
    fn data_of_another_kind_is_not_framed() {
        let value = &[0, 0, 0, 0, 7, 1][..];
        let is_framed = |value, headers: &[(&'static str, &'static [u8])]| {
            let each = || headers.iter().map(|(name, value)| (*name, Some(*value)));
            framed(value, each).is_some()
        };
        assert!(is_framed(value, &[]));
        assert!(is_framed(value, &[("content-type", b"image/png")]));
        assert!(is_framed(
            value,
            &[("ce_id", b"1"), ("content-type", b"application/avro")]
        ));
        assert!(!is_framed(
            value,
            &[("ce_id", b"1"), ("Content-Type", b"image/png")]
        ));
        assert!(!is_framed(b"{}", &[]));
        let header: (&str, &[u8]) = (SCHEMA_ID_HEADER, &[0, 0, 0, 0, 7]);
        assert!(is_framed(
            b"{}",
            &[header, ("ce_id", b"1"), ("content-type", b"image/png")]
        ));
    }

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
