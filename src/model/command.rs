//! A command: deliver one event to one subscription. And its record in Kafka.
//!
//! The value of the record is the exact body that will be POSTed; all else travels in headers, so that
//! delivery never parses the body, and every copy (retry, dead letter, replay) is byte-identical
//! (**Stable identity**). Header names are an interface: see `schemas/command-headers.schema.json`.
//! Pure: headers go out through a visitor and come in through an iterator, so no Kafka type is needed here.

use bytes::Bytes;
use thiserror::Error;

use crate::model::trace_context::trace_id;
use crate::model::units::EpochMs;

/// Header names, in the order in which they are written.
pub mod header {
    /// Version of the record's format: see [`VERSION`].
    pub const VERSION: &str = "hs-version";
    /// Deterministic id of this webhook.
    pub const WEBHOOK_ID: &str = "webhook-id";
    /// The subscription's id.
    pub const SUBSCRIPTION: &str = "hs-subscription";
    /// The event's id.
    pub const EVENT_ID: &str = "hs-event-id";
    /// The event's type.
    pub const EVENT_TYPE: &str = "hs-event-type";
    /// The event's time, RFC 3339.
    pub const EVENT_TIME: &str = "hs-event-time";
    /// The event's subject.
    pub const SUBJECT: &str = "hs-subject";
    /// Media type of the body.
    pub const CONTENT_TYPE: &str = "hs-content-type";
    /// Attempts made so far.
    pub const ATTEMPT: &str = "hs-attempt";
    /// Not before, epoch milliseconds.
    pub const DUE: &str = "hs-due";
    /// First command of this webhook, epoch milliseconds.
    pub const ENQUEUED: &str = "hs-enqueued";
    /// When the record of the event was written, epoch milliseconds.
    pub const RECORDED: &str = "hs-recorded";
    /// The latest replay of this webhook, epoch milliseconds: its age counts from there.
    pub const REPLAYED: &str = "hs-replayed";
    /// Why this copy was written.
    pub const CAUSE: &str = "hs-cause";
    /// First failed attempt, epoch milliseconds.
    pub const FIRST_FAILURE: &str = "hs-first-failure";
    /// Last failed attempt, epoch milliseconds.
    pub const LAST_FAILURE: &str = "hs-last-failure";
    /// Status of the last failed attempt, if there was a response.
    pub const STATUS: &str = "hs-status";
    /// One sentence about the last failed attempt.
    pub const ERROR: &str = "hs-error";
    /// Place among the commands of its subject: its offset when it was first taken; only with an order.
    pub const SEQUENCE: &str = "hs-sequence";
    /// The id of the Kafka cluster that an offset beside it is of: of [`SEQUENCE`], or of a fact's letter.
    pub const CLUSTER: &str = "hs-cluster";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
}

/// Version of the headers of commands, dead letters and facts. A partition stops at a record of a later one, with an alert:
/// what this program does not know might change what the rest means. Records without the header are of version 1 too.
pub const VERSION: u32 = 1;

/// [`VERSION`] as it stands in the header.
pub const VERSION_TEXT: &str = "1";

/// What a record's version header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatVersion {
    /// This program reads it.
    Known,
    /// Written by a newer program, with this version.
    Newer(u32),
    /// Not a version, or of no program that exists.
    Unreadable,
}

impl FormatVersion {
    /// Reads the header; without one, or with a null one, a record is of version 1.
    #[must_use]
    pub fn of(header: Option<&[u8]>) -> Self {
        let Some(value) = header.filter(|value| *value != VERSION_TEXT.as_bytes()) else {
            return Self::Known;
        };
        // As a program writes it: digits only, without a sign, zeros in front or spaces.
        let is_number = value.iter().all(u8::is_ascii_digit) && value.first() != Some(&b'0');
        let number = std::str::from_utf8(value).ok().filter(|_| is_number);
        match number.and_then(|text| text.parse().ok()) {
            Some(version) if version > VERSION => Self::Newer(version),
            _ => Self::Unreadable,
        }
    }
}

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

impl Cause {
    /// Every cause, in the order of the metric's labels.
    pub const ALL: [Self; 4] = [Self::New, Self::Retry, Self::Parked, Self::Replay];

    /// As it stands in the header and in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Retry => "retry",
            Self::Parked => "parked",
            Self::Replay => "replay",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == text)
    }
}

/// What the receiver finds in `content-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// `application/json`: the `standard` format.
    Json,
    /// `application/cloudevents+json`: the `cloudevents` format.
    CloudEvents,
}

impl ContentType {
    /// The media type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Json, Self::CloudEvents]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// Longest error of a [`LastFailure`], bytes; the rest is cut at a character's border.
pub const MAX_LAST_ERROR_BYTES: usize = 256;

/// The last attempt of a command that failed or was throttled: a dead letter for another reason names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// When it ended.
    pub at: EpochMs,
    /// The status, if there was a response.
    pub status: Option<u16>,
    /// One sentence about it; never a secret. Cut at [`MAX_LAST_ERROR_BYTES`].
    pub error: Box<str>,
}

impl LastFailure {
    /// A failure that ended at `at`.
    #[must_use]
    pub fn new(at: EpochMs, status: Option<u16>, error: &str) -> Self {
        let error = error[..error.floor_char_boundary(MAX_LAST_ERROR_BYTES)].into();
        Self { at, status, error }
    }
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
    /// When the record of the event was written; missing in commands of hookstream 0.1.0.
    pub recorded: Option<EpochMs>,
    /// Why this copy was written.
    pub cause: Cause,
    /// W3C trace context of the event, or of its fan-out where that is traced.
    pub traceparent: Option<Box<str>>,
    /// When the first attempt failed, if one has.
    pub first_failure: Option<EpochMs>,
    /// The last attempt that failed or was throttled, if any; absent in commands of hookstream 0.1.0.
    pub last_failure: Option<Box<LastFailure>>,
    /// The latest replay by an operator, if any.
    pub replayed: Option<EpochMs>,
    /// Its place among the commands of its subject, where its subscription asks for order: its offset when it was
    /// first taken. Negative when that was on another cluster.
    pub sequence: Option<i64>,
    /// The Kafka cluster that the sequence is of; missing in commands of hookstream 0.1.0.
    pub cluster: Option<Box<str>>,
    /// The exact body of the request.
    pub body: Bytes,
}

/// All of a command but its key and body: what fan-out writes without owning any of it.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are those of `Command`")]
pub struct Envelope<'a> {
    pub webhook_id: &'a str,
    pub subscription: &'a str,
    pub event_id: &'a str,
    pub event_type: &'a str,
    pub event_time: Option<&'a str>,
    pub subject: Option<&'a str>,
    pub content_type: ContentType,
    pub attempt: u32,
    pub due: Option<EpochMs>,
    pub enqueued: EpochMs,
    pub recorded: Option<EpochMs>,
    pub cause: Cause,
    pub first_failure: Option<EpochMs>,
    pub last_failure: Option<&'a LastFailure>,
    pub replayed: Option<EpochMs>,
    pub sequence: Option<i64>,
    pub cluster: Option<&'a str>,
    pub traceparent: Option<&'a str>,
}

impl Envelope<'_> {
    /// Calls `write` with every header of the command's record.
    pub fn each_header(&self, mut write: impl FnMut(&'static str, &str)) {
        write(header::VERSION, VERSION_TEXT);
        write(header::WEBHOOK_ID, self.webhook_id);
        write(header::SUBSCRIPTION, self.subscription);
        write(header::EVENT_ID, self.event_id);
        write(header::EVENT_TYPE, self.event_type);
        if let Some(time) = self.event_time {
            write(header::EVENT_TIME, time);
        }
        if let Some(subject) = self.subject {
            write(header::SUBJECT, subject);
        }
        write(header::CONTENT_TYPE, self.content_type.as_str());
        write(header::ATTEMPT, &self.attempt.to_string());
        if let Some(due) = self.due {
            write(header::DUE, &due.to_string());
        }
        write(header::ENQUEUED, &self.enqueued.to_string());
        if let Some(recorded) = self.recorded {
            write(header::RECORDED, &recorded.to_string());
        }
        write(header::CAUSE, self.cause.as_str());
        if let Some(replayed) = self.replayed {
            write(header::REPLAYED, &replayed.to_string());
        }
        if let Some(first) = self.first_failure {
            write(header::FIRST_FAILURE, &first.to_string());
        }
        if let Some(last) = self.last_failure {
            write(header::LAST_FAILURE, &last.at.to_string());
            if let Some(status) = last.status {
                write(header::STATUS, &status.to_string());
            }
            write(header::ERROR, &last.error);
        }
        if let Some(sequence) = self.sequence {
            write(header::SEQUENCE, &sequence.to_string());
            if let Some(cluster) = self.cluster {
                write(header::CLUSTER, cluster);
            }
        }
        if let Some(trace) = self.traceparent {
            write(header::TRACEPARENT, trace);
        }
    }
}

/// Why a record on `webhook-commands` or a tier is not a valid command.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidCommand {
    /// No key: no subscriber owns it.
    #[error("the record has no key, which must be the subscriber")]
    NoKey,
    /// No value: there is nothing to send.
    #[error("the record has no value, which must be the body to send")]
    NoBody,
    /// Written by a newer program.
    #[error("the record has version {0}, but this program supports only version {VERSION}")]
    Newer(u32),
    /// A header that every command has is missing.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A header that cannot be read.
    #[error("the header {name} is {value:?}, which is not {wanted}")]
    Unreadable {
        /// The header.
        name: &'static str,
        /// Its value, at most 100 characters.
        value: String,
        /// What is expected.
        wanted: &'static str,
    },
}

impl Command {
    /// Its headers, borrowed.
    #[must_use]
    pub fn envelope(&self) -> Envelope<'_> {
        Envelope {
            webhook_id: &self.webhook_id,
            subscription: &self.subscription,
            event_id: &self.event_id,
            event_type: &self.event_type,
            event_time: self.event_time.as_deref(),
            subject: self.subject.as_deref(),
            content_type: self.content_type,
            attempt: self.attempt,
            due: self.due,
            enqueued: self.enqueued,
            recorded: self.recorded,
            cause: self.cause,
            first_failure: self.first_failure,
            last_failure: self.last_failure.as_deref(),
            replayed: self.replayed,
            sequence: self.sequence,
            cluster: self.cluster.as_deref(),
            traceparent: self.traceparent.as_deref(),
        }
    }

    /// Reads a command from its record. Headers that are not known are ignored; of a header that stands
    /// twice the last one counts.
    ///
    /// # Errors
    /// [`InvalidCommand`] names the first thing that is missing or unreadable.
    pub fn from_record<'a>(
        key: Option<&[u8]>,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        body: Option<Bytes>,
    ) -> Result<Self, InvalidCommand> {
        let raw = RawHeaders::collect(headers);
        match FormatVersion::of(raw.version) {
            FormatVersion::Known => {}
            FormatVersion::Newer(version) => return Err(InvalidCommand::Newer(version)),
            FormatVersion::Unreadable => {
                let value = raw.version.unwrap_or_default();
                return Err(unreadable(header::VERSION, value, "a version"));
            }
        }
        let key = key
            .filter(|key| !key.is_empty())
            .ok_or(InvalidCommand::NoKey)?;
        Ok(Self {
            subscriber: text("key", Some(key))?.ok_or(InvalidCommand::NoKey)?,
            webhook_id: required(header::WEBHOOK_ID, raw.webhook_id)?,
            subscription: required(header::SUBSCRIPTION, raw.subscription)?,
            event_id: required(header::EVENT_ID, raw.event_id)?,
            event_type: required(header::EVENT_TYPE, raw.event_type)?,
            event_time: text(header::EVENT_TIME, raw.event_time)?,
            subject: text(header::SUBJECT, raw.subject)?,
            content_type: word(
                header::CONTENT_TYPE,
                raw.content_type,
                ContentType::parse,
                "a known media type",
            )?,
            attempt: number(header::ATTEMPT, raw.attempt, "a count of attempts")?
                .ok_or(InvalidCommand::Missing(header::ATTEMPT))?,
            due: number(header::DUE, raw.due, EPOCH)?.map(EpochMs),
            enqueued: number(header::ENQUEUED, raw.enqueued, EPOCH)?
                .map(EpochMs)
                .ok_or(InvalidCommand::Missing(header::ENQUEUED))?,
            recorded: number(header::RECORDED, raw.recorded, EPOCH)?.map(EpochMs),
            cause: word(
                header::CAUSE,
                raw.cause,
                Cause::parse,
                "new, retry, parked or replay",
            )?,
            traceparent: text(header::TRACEPARENT, raw.traceparent)?,
            first_failure: number(header::FIRST_FAILURE, raw.first_failure, EPOCH)?.map(EpochMs),
            last_failure: raw.last_failure()?,
            replayed: number(header::REPLAYED, raw.replayed, EPOCH)?.map(EpochMs),
            sequence: number(header::SEQUENCE, raw.sequence, "an offset")?,
            cluster: text(header::CLUSTER, raw.cluster)?,
            body: body.ok_or(InvalidCommand::NoBody)?,
        })
    }

    /// Gives the command a sequence of `cluster`: the one that it has, or its `offset` there.
    ///
    /// Offsets of two clusters cannot be compared, but what comes from another one is older than everything that was
    /// first taken on this one: it goes before that, in the order that it had. The same holds at the next failover,
    /// so that what has been on three clusters stays in order too. A sequence that names no cluster counts as this
    /// one's.
    pub fn place_in_order(&mut self, cluster: &str, offset: i64) {
        let sequence = match (self.sequence, self.cluster.as_deref()) {
            (None, _) => offset,
            (Some(sequence), Some(other)) if other != cluster => {
                sequence.saturating_sub(CLUSTER_DISTANCE)
            }
            (Some(sequence), _) => sequence,
        };
        self.sequence = Some(sequence);
        if self.cluster.as_deref() != Some(cluster) {
            self.cluster = Some(cluster.into());
        }
    }

    /// Since when its event has been on its way: since the event's record was written, as far as that is known.
    #[must_use]
    pub fn published(&self) -> EpochMs {
        self.recorded.unwrap_or(self.enqueued)
    }

    /// When it began to wait for its delivery: when its webhook was first written, or last replayed. Its age counts
    /// from here.
    #[must_use]
    pub fn waits_since(&self) -> EpochMs {
        self.replayed.unwrap_or(self.enqueued)
    }

    /// The id of the trace that it belongs to, for the log.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        trace_id(self.traceparent.as_deref()?)
    }

    /// All of it but the body.
    #[must_use]
    pub fn without_body(&self) -> Box<Self> {
        Box::new(Self {
            body: Bytes::new(),
            ..self.clone()
        })
    }

    /// The approximate memory of this command, bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        /// Fixed fields, headers' allocations and the queue entry.
        const OVERHEAD: usize = 512;
        self.body.len() + OVERHEAD
    }
}

/// How far sequences of another cluster are moved, so that they are before offset 0: more than any partition has
/// offsets, and so little that it can be done eight times.
const CLUSTER_DISTANCE: i64 = 1 << 60;

const EPOCH: &str = "a time in milliseconds since 1970";

/// The headers of one record, borrowed, by name: one pass over the record instead of one per header.
#[derive(Default)]
struct RawHeaders<'a> {
    version: Option<&'a [u8]>,
    webhook_id: Option<&'a [u8]>,
    subscription: Option<&'a [u8]>,
    event_id: Option<&'a [u8]>,
    event_type: Option<&'a [u8]>,
    event_time: Option<&'a [u8]>,
    subject: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    attempt: Option<&'a [u8]>,
    due: Option<&'a [u8]>,
    enqueued: Option<&'a [u8]>,
    recorded: Option<&'a [u8]>,
    cause: Option<&'a [u8]>,
    first_failure: Option<&'a [u8]>,
    last_failure: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    error: Option<&'a [u8]>,
    replayed: Option<&'a [u8]>,
    sequence: Option<&'a [u8]>,
    cluster: Option<&'a [u8]>,
    traceparent: Option<&'a [u8]>,
}

impl<'a> RawHeaders<'a> {
    fn collect(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Self {
        let mut raw = Self::default();
        for (name, value) in headers {
            let slot = match name {
                header::WEBHOOK_ID => &mut raw.webhook_id,
                header::SUBSCRIPTION => &mut raw.subscription,
                header::EVENT_ID => &mut raw.event_id,
                header::EVENT_TYPE => &mut raw.event_type,
                header::EVENT_TIME => &mut raw.event_time,
                header::SUBJECT => &mut raw.subject,
                header::CONTENT_TYPE => &mut raw.content_type,
                header::ATTEMPT => &mut raw.attempt,
                header::VERSION => &mut raw.version,
                header::DUE => &mut raw.due,
                header::ENQUEUED => &mut raw.enqueued,
                header::RECORDED => &mut raw.recorded,
                header::CAUSE => &mut raw.cause,
                header::FIRST_FAILURE => &mut raw.first_failure,
                header::LAST_FAILURE => &mut raw.last_failure,
                header::STATUS => &mut raw.status,
                header::ERROR => &mut raw.error,
                header::REPLAYED => &mut raw.replayed,
                header::SEQUENCE => &mut raw.sequence,
                header::CLUSTER => &mut raw.cluster,
                header::TRACEPARENT => &mut raw.traceparent,
                _ => continue,
            };
            *slot = value;
        }
        raw
    }

    /// Present when its time is.
    fn last_failure(&self) -> Result<Option<Box<LastFailure>>, InvalidCommand> {
        let Some(at) = number(header::LAST_FAILURE, self.last_failure, EPOCH)? else {
            return Ok(None);
        };
        let status = number(header::STATUS, self.status, "a status")?;
        let error = text(header::ERROR, self.error)?.unwrap_or_default();
        let failure = LastFailure::new(EpochMs(at), status, &error);
        Ok(Some(Box::new(failure)))
    }
}

fn unreadable(name: &'static str, value: &[u8], wanted: &'static str) -> InvalidCommand {
    let value = String::from_utf8_lossy(value).chars().take(100).collect();
    InvalidCommand::Unreadable {
        name,
        value,
        wanted,
    }
}

fn text(name: &'static str, value: Option<&[u8]>) -> Result<Option<Box<str>>, InvalidCommand> {
    value
        .map(|bytes| {
            std::str::from_utf8(bytes)
                .map(Box::from)
                .map_err(|_| unreadable(name, bytes, "UTF-8 text"))
        })
        .transpose()
}

fn required(name: &'static str, value: Option<&[u8]>) -> Result<Box<str>, InvalidCommand> {
    text(name, value)?
        .filter(|text| !text.is_empty())
        .ok_or(InvalidCommand::Missing(name))
}

fn number<N: std::str::FromStr>(
    name: &'static str,
    value: Option<&[u8]>,
    wanted: &'static str,
) -> Result<Option<N>, InvalidCommand> {
    value
        .map(|bytes| {
            std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| unreadable(name, bytes, wanted))
        })
        .transpose()
}

fn word<T>(
    name: &'static str,
    value: Option<&[u8]>,
    parse: impl Fn(&str) -> Option<T>,
    wanted: &'static str,
) -> Result<T, InvalidCommand> {
    let bytes = value.ok_or(InvalidCommand::Missing(name))?;
    std::str::from_utf8(bytes)
        .ok()
        .and_then(parse)
        .ok_or_else(|| unreadable(name, bytes, wanted))
}
#[cfg(test)]
pub(crate) mod tests;
