//! Reads the event that a record is by the mapping of its topic ([`Mapping`]).
//!
//! Linear in the record: each place reads the value at most once for each segment of its path, and the configuration
//! bounds both. What the mapping does not look at is not checked; data is, like that of any event.

use std::borrow::Cow;

use serde_json::Value;

use super::attributes::{checked_subject, checked_time, required};
use super::data::{self, Media};
use super::decode::{
    HTTP_PREFIX, KAFKA_PREFIX, RawEvent, check_size, header_traceparent, is_binary, is_structured,
    read_binary, read_structured_text,
};
use super::error::InvalidEvent;
use super::framing;
use super::json::{parse_data, raw_value};
use super::mapping::{CloudEvents, Mapping, Tombstone};
use super::model::{Event, Form, Payload};
use super::places::{Record, unwrapped};
use super::time::stated_time;

/// The prefixes of attributes under a mapping: Spring writes HTTP's, too.
const PREFIXES: &[&str] = &[KAFKA_PREFIX, HTTP_PREFIX];

/// Reads the event of a record whose topic has a mapping. Deterministic; `max_bytes` bounds the value.
///
/// # Errors
/// What makes the record unreadable, in one sentence; if something is not where the mapping says, with the places.
pub fn read_mapped<'a>(
    raw: &RawEvent<'a>,
    mapping: &Mapping,
    max_bytes: usize,
) -> Result<Event<'a>, InvalidEvent> {
    if raw.payload.is_none() && mapping.tombstone == Tombstone::Invalid {
        return Err(InvalidEvent::Tombstone);
    }
    let payload = raw.payload.unwrap_or_default();
    check_size(payload.len(), max_bytes)?;
    let media = content_type(raw.headers);
    let event = match cloudevent(raw, mapping, media.as_ref(), max_bytes) {
        Some(event) => event.and_then(|event| overridden(raw, mapping, event)),
        None => of_record(raw, mapping, media.as_ref()),
    };
    event.map_err(|error| match error {
        InvalidEvent::NotUtf8 { .. } | InvalidEvent::NotJson { .. } | InvalidEvent::Missing(_) => {
            framing::explain(error, payload, raw.headers).brief()
        }
        error => error.brief(),
    })
}

impl RawEvent<'_> {
    /// Whether the record is no event because it has no value; `mapping` is that of its topic, if it has one.
    #[must_use]
    pub fn is_skipped(&self, mapping: Option<&Mapping>) -> bool {
        if self.payload.is_some() {
            return false;
        }
        let Some(mapping) = mapping else {
            return !is_binary(self.headers, &[KAFKA_PREFIX]);
        };
        match mapping.tombstone {
            Tombstone::Invalid => false,
            Tombstone::Skip => {
                mapping.cloudevents == CloudEvents::Never || !is_binary(self.headers, PREFIXES)
            }
            Tombstone::Event(_) => {
                let record = Record::new(*self, None, mapping);
                let id = mapping.fields.id.as_ref();
                id.is_none_or(|places| record.text("id", places).is_err())
            }
        }
    }
}

/// The type of the value by its headers; Spring's spelling has no hyphen.
fn content_type(headers: &[(&str, &[u8])]) -> Option<Media> {
    let is_it = |name: &str| {
        name.eq_ignore_ascii_case("content-type") || name.eq_ignore_ascii_case("contenttype")
    };
    let (_, value) = headers.iter().find(|(name, _)| is_it(name))?;
    let text = String::from_utf8_lossy(value);
    Media::parse(text.trim().trim_matches('"'))
}

/// The event of a record that is a CloudEvent, if the mapping allows it to be one and it is.
fn cloudevent<'a>(
    raw: &RawEvent<'a>,
    mapping: &Mapping,
    media: Option<&Media>,
    max_bytes: usize,
) -> Option<Result<Event<'a>, InvalidEvent>> {
    if mapping.cloudevents == CloudEvents::Never {
        return None;
    }
    let structured = match media.map(|media| is_structured(&media.essence)) {
        Some(Err(error)) => return Some(Err(error)),
        Some(Ok(structured)) => structured,
        None => false,
    };
    if !structured && is_binary(raw.headers, PREFIXES) {
        let event = read_binary(raw, media.cloned(), max_bytes, PREFIXES);
        return Some(event.map(|event| with_type(event, media)));
    }
    if structured || mapping.cloudevents == CloudEvents::Always {
        return Some(read_structured_text(raw));
    }
    None
}

/// A CloudEvent in binary mode with the type of its data in an attribute, whose header Spring spells differently.
fn with_type<'a>(mut event: Event<'a>, media: Option<&Media>) -> Event<'a> {
    const NAME: &str = "datacontenttype";
    let place = event
        .extensions
        .binary_search_by(|(known, _)| (**known).cmp(NAME));
    if let (Err(place), Some(media)) = (place, media) {
        let value = Value::from(media.essence.as_str());
        event.extensions.insert(place, (NAME.into(), value));
    }
    event
}

/// A CloudEvent with what the operator, not the preset, has mapped, and with its data unwrapped.
fn overridden<'a>(
    raw: &RawEvent<'a>,
    mapping: &Mapping,
    mut event: Event<'a>,
) -> Result<Event<'a>, InvalidEvent> {
    let own = &mapping.own;
    // In binary mode the value may be anything.
    let document = raw
        .payload
        .and_then(|value| std::str::from_utf8(value).ok());
    let document = document.and_then(|text| raw_value(text).ok());
    let record = Record::new(*raw, document.map(|value| value.get()), mapping);
    if let Some(places) = &own.id {
        event.id = required("id", record.text("id", places)?)?
            .into_owned()
            .into();
    }
    if let Some(places) = &own.event_type {
        let found = required("type", record.text("type", places)?)?;
        event.event_type = found.into_owned().into();
    }
    if let Some(places) = &own.source {
        let found = required("source", record.text("source", places)?)?;
        event.source = found.into_owned().into();
    }
    if let Some(places) = &own.subject {
        let found = checked_subject(record.text("subject", places)?)?;
        event.subject = found.map(|text| text.into_owned().into());
    }
    if let Some(places) = &own.time {
        let found = checked_time(record.text("time", places)?.map(stated_time))?;
        event.time = found.map(|text| text.into_owned().into());
    }
    if let Some(places) = &own.data {
        let (json, data) = record.data(places)?;
        (event.payload, event.data) = (Payload::Json(json.into_owned().into()), data);
    } else if let Payload::Json(json) = &event.payload
        && mapping.unwrap
        && let Some(inner) = unwrapped(json, "data")?
    {
        event.data = parse_data(&inner, Some(raw_value(&inner)?), 1)?.1;
        event.payload = Payload::Json(inner.into_owned().into());
    }
    Ok(event)
}

/// The event of a record that is no CloudEvent.
fn of_record<'a>(
    raw: &RawEvent<'a>,
    mapping: &Mapping,
    media: Option<&Media>,
) -> Result<Event<'a>, InvalidEvent> {
    let value = raw.payload.unwrap_or_default();
    if value.is_empty() {
        let record = Record::new(*raw, None, mapping);
        return plain(&record, mapping, Payload::Absent, Value::Null);
    }
    if let Some(media) = media.filter(|media| !media.is_json()) {
        return of_other_data(raw, mapping, value, media);
    }
    let text = std::str::from_utf8(value).map_err(|error| InvalidEvent::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let text = raw_value(text)?.get();
    let inner = if mapping.unwrap {
        unwrapped(text, "the value")?
    } else {
        None
    };
    match inner {
        Some(Cow::Owned(inner)) => Ok(owned(of_json(raw, mapping, &inner)?)),
        Some(Cow::Borrowed(inner)) => of_json(raw, mapping, inner),
        None => of_json(raw, mapping, text),
    }
}

fn of_json<'d>(
    raw: &RawEvent<'d>,
    mapping: &Mapping,
    document: &'d str,
) -> Result<Event<'d>, InvalidEvent> {
    let record = Record::new(*raw, Some(document), mapping);
    let (json, data) = match &mapping.fields.data {
        Some(places) => record.data(places)?,
        None => record.whole()?,
    };
    plain(&record, mapping, Payload::Json(json), data)
}

/// The event of a record whose value is not JSON, as a header says.
fn of_other_data<'a>(
    raw: &RawEvent<'a>,
    mapping: &Mapping,
    value: &'a [u8],
    media: &Media,
) -> Result<Event<'a>, InvalidEvent> {
    let record = Record::new(*raw, None, mapping);
    if let Some(places) = &mapping.fields.data
        && !places.has_value()
    {
        record.data(places)?;
    }
    let (payload, data) = data::of_bytes(value, Some(media));
    let mut event = plain(&record, mapping, payload, data)?;
    event.extensions = vec![("datacontenttype".into(), media.essence.as_str().into())];
    Ok(event)
}

/// An event with the attributes of a record.
fn plain<'d>(
    record: &Record<'d, '_>,
    mapping: &Mapping,
    payload: Payload<'d>,
    data: Value,
) -> Result<Event<'d>, InvalidEvent> {
    let (raw, fields) = (&record.raw, &mapping.fields);
    let text = |name, places: &Option<_>| match places {
        Some(places) => record.text(name, places),
        None => Ok(None),
    };
    let id = required("id", text("id", &fields.id)?)?;
    let event_type = match &mapping.tombstone {
        Tombstone::Event(Some(event_type)) if raw.payload.is_none() => {
            Some(event_type.clone().into())
        }
        _ => text("type", &fields.event_type)?,
    };
    let source = match &fields.source {
        Some(places) => record.text("source", places)?,
        None => Some(raw.topic.into()),
    };
    let time = text("time", &fields.time)?.map(stated_time);
    Ok(Event {
        id,
        source: required("source", source)?,
        event_type: required("type", event_type)?,
        time: checked_time(time)?,
        subject: checked_subject(text("subject", &fields.subject)?)?,
        traceparent: header_traceparent(raw.headers),
        received: raw.timestamp,
        payload,
        data,
        extensions: Vec::new(),
        form: Form::Plain,
        empty_subject: false,
    })
}

/// A plain event that borrows nothing.
fn owned(event: Event<'_>) -> Event<'static> {
    let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
    Event {
        id: own(event.id),
        source: own(event.source),
        event_type: own(event.event_type),
        time: event.time.map(own),
        subject: event.subject.map(own),
        traceparent: event.traceparent.map(own),
        received: event.received,
        payload: match event.payload {
            Payload::Absent => Payload::Absent,
            Payload::Json(json) => Payload::Json(own(json)),
            Payload::Text(text) => Payload::Text(text),
            Payload::Base64(text) => Payload::Base64(own(text)),
        },
        data: event.data,
        extensions: Vec::new(),
        form: Form::Plain,
        empty_subject: event.empty_subject,
    }
}

#[cfg(test)]
mod tests;
