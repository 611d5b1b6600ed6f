//! A command: deliver one event to one subscription. And its record in Kafka.
//!
//! The value of the record is the exact body that will be POSTed; all else travels in headers, so that
//! delivery never parses the body, and every copy (retry, dead letter, replay) is byte-identical
//! (**Stable identity**). Header names are an interface: see `schemas/command-headers.schema.json`.

use bytes::Bytes;

use crate::units::EpochMs;

/// Why this copy of the command was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// By fan-out, from an event.
    New,
    /// By release, for another attempt.
    Retry,
    /// By release, after it was parked: no attempt was spent.
    Parked,
    /// By an operator's replay.
    Replay,
}

/// What the receiver finds in `content-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// `application/json`: the `standard` format.
    Json,
    /// `application/cloudevents+json`: the `cloudevents` format.
    CloudEvents,
}

/// Deliver one event to one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The partition key: who owns the subscription.
    pub subscriber: Box<str>,
    /// Deterministic, from the event's source and id and the subscription's id.
    pub webhook_id: Box<str>,
    /// The subscription's id.
    pub subscription: Box<str>,
    /// The event's id.
    pub event_id: Box<str>,
    /// The event's type.
    pub event_type: Box<str>,
    /// The event's own time, RFC 3339, as it came.
    pub event_time: Option<Box<str>>,
    /// The event's subject.
    pub subject: Option<Box<str>>,
    /// Of the body.
    pub content_type: ContentType,
    /// Attempts made so far.
    pub attempt: u32,
    /// Not to be sent before; `None` is at once.
    pub due: Option<EpochMs>,
    /// When the first command of this webhook was written.
    pub enqueued: EpochMs,
    /// Why this copy was written.
    pub cause: Cause,
    /// W3C trace context of the event.
    pub traceparent: Option<Box<str>>,
    /// When the first attempt failed, if one has.
    pub first_failure: Option<EpochMs>,
    /// The exact body of the request.
    pub body: Bytes,
}
