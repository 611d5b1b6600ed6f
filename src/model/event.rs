//! An event: read from a Kafka record once, and written as the exact body of a request.
//!
//! Three forms are recognised, in this order:
//!
//! | form | recognised by | source |
//! |---|---|---|
//! | CloudEvents 1.0, structured | header `content-type: application/cloudevents+json` | JSON event format 1.0.2 |
//! | CloudEvents 1.0, binary | header `ce_specversion`, `ce_id`, `ce_source` or `ce_type` | Kafka protocol binding 1.0.2 |
//! | CloudEvents 1.0, structured | an object with the member `specversion`, whatever the content type | at least one SDK writes `application/json` |
//! | plain | any other object | `schemas/event.schema.json` |
//!
//! A record without a value is a tombstone, unless it is a CloudEvent in binary mode: it deletes a key of a compacted
//! topic, and is no event.
//!
//! The records of a topic for which the operator has configured a mapping are read by that instead ([`Mapping`]).
//!
//! Whether an event is valid never depends on subscriptions: all of it that a filter or a body could touch is
//! parsed here, so a bad number deep in `data` is refused even when nobody looks at it. The reading is a pure
//! function of the record, so a record that is read twice gives the same bytes (**Stable identity**).
//! Strings and `data` are borrowed from the record; `data` keeps the producer's own bytes.

mod attributes;
mod body;
mod data;
mod decode;
mod error;
mod framing;
mod json;
mod lenient;
mod mapped;
mod mapping;
mod model;
mod places;
mod time;

pub use body::{Format, plain_webhook_id, rfc3339, webhook_id};
pub use decode::{RawEvent, read};
pub use error::{InvalidEvent, MAX_ATTRIBUTE_BYTES, MAX_DEPTH, MAX_TIME_BYTES};
pub use mapped::read_mapped;
pub use mapping::{FIELDS, Mapping, presets};
pub use model::{Attribute, Event};
pub use time::record_time;

#[cfg(test)]
mod tests;
