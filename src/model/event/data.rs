//! The data of a CloudEvent by its content type: JSON, text or bytes (CloudEvents JSON format 1.0.2, section 3.1).
//!
//! One rule for both modes: `application/json` and `+json` are JSON, `text/*` and XML are text when they are UTF-8, and
//! everything else is bytes.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::InvalidEvent;
use super::json::{not_json, parse_data};
use super::model::Payload;

/// A media type: the header `content-type` or the attribute `datacontenttype`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Media {
    /// In lower case, without parameters.
    pub(super) essence: String,
    /// Whether the parameter `charset` names another encoding than UTF-8.
    foreign_charset: bool,
}

impl Media {
    /// `None` when the text is empty.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let charset = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let is_charset = name.trim().eq_ignore_ascii_case("charset");
            is_charset.then(|| value.trim().trim_matches('"').to_ascii_lowercase())
        });
        let foreign_charset =
            charset.is_some_and(|charset| !matches!(&*charset, "utf-8" | "utf8" | "us-ascii"));
        (!essence.is_empty()).then_some(Self {
            essence,
            foreign_charset,
        })
    }

    pub(super) fn is_json(&self) -> bool {
        self.essence
            .split_once('/')
            .is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
    }

    fn is_text(&self) -> bool {
        let is_xml = |subtype: &str| subtype == "xml" || subtype.ends_with("+xml");
        !self.foreign_charset
            && self
                .essence
                .split_once('/')
                .is_some_and(|(kind, subtype)| kind == "text" || is_xml(subtype))
    }
}

/// Whether data of this type is JSON; without a type it is.
fn is_json(media: Option<&Media>) -> bool {
    media.is_none_or(Media::is_json)
}

/// The data of a CloudEvent in binary mode: the record's value.
///
/// # Errors
/// It should be JSON and is not.
pub(super) fn of_value<'a>(
    value: &'a [u8],
    media: Option<&Media>,
) -> Result<(Payload<'a>, Value), InvalidEvent> {
    if is_json(media) {
        let text = std::str::from_utf8(value).map_err(|error| InvalidEvent::NotUtf8 {
            at: error.valid_up_to(),
        })?;
        let whole: &'a RawValue =
            serde_json::from_str(text).map_err(|error| not_json(&error, "", 0))?;
        let (json, data) = parse_data(text, Some(whole), 1)?;
        return Ok((Payload::Json(json.into()), data));
    }
    Ok(of_bytes(value, media))
}

/// Data that is not JSON: text, or other bytes.
pub(super) fn of_bytes(bytes: &[u8], media: Option<&Media>) -> (Payload<'static>, Value) {
    let text = std::str::from_utf8(bytes).ok();
    match text.filter(|_| media.is_some_and(Media::is_text)) {
        Some(text) => {
            let data = Value::from(text);
            (Payload::Text(data.to_string()), data)
        }
        None => (Payload::Base64(STANDARD.encode(bytes).into()), Value::Null),
    }
}

/// The data of a structured CloudEvent: its member `data`.
///
/// # Errors
/// It is not JSON, or it is a string of a type that is neither JSON nor text, and not base64.
pub(super) fn of_member<'a>(
    text: &'a str,
    member: Option<&'a RawValue>,
    media: Option<&Media>,
) -> Result<(Payload<'a>, Value), InvalidEvent> {
    let Some(member) = member else {
        return Ok((Payload::Absent, Value::Null));
    };
    let (json, data) = parse_data(text, Some(member), 1)?;
    if let (Value::String(string), Some(media)) = (&data, media)
        && !media.is_json()
        && !media.is_text()
    {
        // Many encoders put base64 here rather than into `data_base64`.
        return match STANDARD.decode(string) {
            Ok(_) => Ok((Payload::Base64(Cow::Owned(string.clone())), Value::Null)),
            Err(_) => Err(InvalidEvent::DataNotText(media.essence.clone())),
        };
    }
    Ok((Payload::Json(json.into()), data))
}

/// The data of a structured CloudEvent: its member `data_base64`.
///
/// # Errors
/// It is not base64.
pub(super) fn of_base64<'a>(
    encoded: Cow<'a, str>,
    media: Option<&Media>,
) -> Result<(Payload<'a>, Value), InvalidEvent> {
    let bytes = STANDARD
        .decode(encoded.as_bytes())
        .map_err(|_| InvalidEvent::NotBase64)?;
    if media.is_some_and(Media::is_text)
        && let Ok(text) = String::from_utf8(bytes)
    {
        let data = Value::from(text);
        return Ok((Payload::Text(data.to_string()), data));
    }
    Ok((Payload::Base64(encoded), Value::Null))
}
