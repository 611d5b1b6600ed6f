//! Records of hookstream's own topics: headers, commands, and invalid records.

use bytes::Bytes;
use rdkafka::bindings;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::types::RDKafkaRespErr;

use crate::edge::port::failure::BatchError;
use crate::edge::port::records::{Headers, RawHeader, Record, RecordView};
use crate::model::command::{Cause, Command, Envelope, InvalidCommand};
use crate::model::invalid_record::{Copy, Extent, InvalidRecord, name_text};
use crate::model::source::{self, Mark, MarkError};
use crate::model::units::{EpochMs, Offset};

/// The headers of a command's record.
#[must_use]
pub fn command_headers<H: Headers>(envelope: &Envelope<'_>) -> H {
    let mut headers = Some(H::with_capacity(16));
    envelope.each_header(|name, value| {
        headers = headers.take().map(|all| with_header(all, name, value))
    });
    headers.unwrap_or_default()
}

/// The whole of `message`, which is invalid because of `error`.
#[must_use]
pub fn invalid_record(message: &impl RecordView, error: String) -> InvalidRecord {
    InvalidRecord {
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: message
            .headers()
            .map(|(name, value)| (name_text(name), value.map(<[u8]>::to_vec)))
            .collect(),
        error,
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: Offset(message.offset()),
        extent: Extent::Whole,
    }
}

/// Writes the copy of `record` to `topic`, whole or as much of it as the client accepts: its extent then says how much.
/// When it becomes [`Extent::Nothing`], nothing is written.
///
/// # Errors
/// [`BatchError`], as `send` returns it, except for its refusal of a large record.
pub async fn send_invalid<H: Headers>(
    record: &mut InvalidRecord,
    topic: &str,
    tag: usize,
    mut send: impl AsyncFnMut(Record<'_, H>) -> Result<(), BatchError>,
) -> Result<(), BatchError> {
    while let Some(copy) = record.copy() {
        match send(copied(&copy, topic, tag)).await {
            Err(BatchError::TooLarge { at_once: true, .. }) => {
                record.extent = record.extent.smaller();
            }
            sent => return sent,
        }
    }
    Ok(())
}

/// The record that is written for a copy.
#[must_use]
pub fn copied<'a, H: Headers>(copy: &Copy<'a>, topic: &'a str, tag: usize) -> Record<'a, H> {
    let own = H::with_capacity(copy.headers.len() + copy.added.len());
    let each = copy.headers.iter();
    let own = each.fold(own, |all, (name, value)| all.and(name, value.as_deref()));
    let added = copy.added.iter();
    Record {
        topic,
        partition: None,
        key: copy.key,
        value: copy.value,
        headers: added.fold(own, |all, (name, value)| with_header(all, name, value)),
        tag,
    }
}

/// Logs that `record` was set aside. `suppressed` is how many before it were not logged.
pub fn log_set_aside(record: &InvalidRecord, suppressed: u64) {
    let kept = match record.extent {
        Extent::Whole => "whole",
        Extent::Head => "head",
        Extent::Coordinates => "coordinates",
        Extent::Nothing => {
            tracing::error!(
                topic = record.topic,
                partition = record.partition,
                offset = record.offset.0,
                suppressed,
                "record skipped, and not even its coordinates fit into the topic of invalid events, whose max.message.bytes is too small: {}",
                record.error,
            );
            return;
        }
    };
    tracing::warn!(
        topic = record.topic,
        partition = record.partition,
        offset = record.offset.0,
        kept,
        suppressed,
        "record set aside: {}",
        record.error,
    );
}

/// The headers of a message, in order. Headers whose names are not UTF-8 are left out: hookstream gives a meaning to none
/// of them.
pub fn each_header(message: &impl RecordView) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    message
        .headers()
        .filter_map(|(name, value)| std::str::from_utf8(name).ok().map(|name| (name, value)))
}

/// The headers of a message as plain pairs; a header without a value reads as empty.
#[must_use]
pub fn header_pairs(message: &impl RecordView) -> Vec<(&str, &[u8])> {
    each_header(message)
        .map(|(name, value)| (name, value.unwrap_or_default()))
        .collect()
}

impl RecordView for BorrowedMessage<'_> {
    fn topic(&self) -> &str {
        Message::topic(self)
    }

    fn partition(&self) -> i32 {
        Message::partition(self)
    }

    fn offset(&self) -> i64 {
        Message::offset(self)
    }

    #[allow(unsafe_code, reason = "rust-rdkafka has no call for it")]
    fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is valid for as long as it is borrowed.
        unsafe { bindings::rd_kafka_message_leader_epoch(self.ptr()) }
    }

    fn timestamp(&self) -> Option<EpochMs> {
        Message::timestamp(self).to_millis().map(EpochMs)
    }

    fn key(&self) -> Option<&[u8]> {
        Message::key(self)
    }

    fn payload(&self) -> Option<&[u8]> {
        Message::payload(self)
    }

    fn headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        raw_headers(self)
    }
}

impl Headers for OwnedHeaders {
    fn with_capacity(count: usize) -> Self {
        Self::new_with_capacity(count)
    }

    fn and(self, name: &str, value: Option<&[u8]>) -> Self {
        self.insert(Header { key: name, value })
    }
}

/// All headers of a message, in order. The binding's own call panics on a name that is not UTF-8, and on a list that the
/// client cannot parse; such a list reads as empty.
#[allow(
    unsafe_code,
    reason = "the safe call of rust-rdkafka panics on foreign headers"
)]
fn raw_headers<'a>(message: &'a BorrowedMessage<'_>) -> impl Iterator<Item = RawHeader<'a>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the message is valid for 'a, and owns the list, which the client parses once and does not change again.
    let error = unsafe { bindings::rd_kafka_message_headers(message.ptr(), &mut list) };
    let list = (error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(list);
    (0..).map_while(move |index| {
        let (mut name, mut value, mut length) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the list is valid for 'a, see above; behind its end the call returns an error.
        let error = unsafe {
            bindings::rd_kafka_header_get_all(list?, index, &mut name, &mut value, &mut length)
        };
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: without an error, the name ends with a NUL, and the value, if there is one, has `length` bytes; both
        // belong to the list.
        unsafe {
            let name = std::ffi::CStr::from_ptr(name).to_bytes();
            let value =
                (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), length));
            Some((name, value))
        }
    })
}

/// A record that a newer program wrote: its partition stops there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newer {
    /// The version found.
    pub version: u32,
}

/// Reads a command; the inner error is the whole record, for `webhook-invalid-events`.
///
/// # Errors
/// [`Newer`] for a record of a newer program.
pub fn read_command(
    message: &impl RecordView,
) -> Result<Result<Box<Command>, Box<InvalidRecord>>, Newer> {
    let body = message.payload().map(Bytes::copy_from_slice);
    let read = Command::from_record(message.key(), each_header(message), body);
    whole(message, read)
}

/// Reads a command and its source. A record that is no valid command may have one too; a command has one only if it is
/// new. A source that is not valid makes the record invalid.
///
/// # Errors
/// [`Newer`] for a record of a newer program.
#[allow(clippy::type_complexity, reason = "a command as above, and its source")]
pub fn read_marked(
    message: &impl RecordView,
) -> Result<(Result<Box<Command>, Box<InvalidRecord>>, Option<Mark>), Newer> {
    let body = message.payload().map(Bytes::copy_from_slice);
    let mut header = None;
    // In the same pass over the headers.
    let headers = each_header(message).inspect(|&(name, value)| {
        if name == source::HEADER {
            header = value;
        }
    });
    let read = Command::from_record(message.key(), headers, body);
    let content = whole(message, read)?;
    let is_new = content
        .as_ref()
        .is_ok_and(|command| command.cause == Cause::New);
    let Some(header) = header.filter(|_| is_new || content.is_err()) else {
        return Ok((content, None));
    };
    match Mark::parse(header) {
        Ok(mark) => Ok((content, Some(mark))),
        Err(MarkError::Newer(version)) => Err(Newer { version }),
        // Its first error is the one to report.
        Err(_) if content.is_err() => Ok((content, None)),
        Err(error) => Ok((
            Err(Box::new(invalid_record(message, error.to_string()))),
            None,
        )),
    }
}

fn whole(
    message: &impl RecordView,
    read: Result<Command, InvalidCommand>,
) -> Result<Result<Box<Command>, Box<InvalidRecord>>, Newer> {
    match read {
        Ok(command) => Ok(Ok(Box::new(command))),
        Err(InvalidCommand::Newer(version)) => Err(Newer { version }),
        Err(error) => Ok(Err(Box::new(invalid_record(message, error.to_string())))),
    }
}

/// Headers of text, in this order.
pub fn text_headers<N: AsRef<str>, V: AsRef<str>>(
    pairs: impl IntoIterator<Item = (N, V)>,
) -> OwnedHeaders {
    let none = OwnedHeaders::new();
    pairs.into_iter().fold(none, |all, (name, value)| {
        with_header(all, name.as_ref(), value.as_ref())
    })
}

/// Adds one text header.
#[must_use]
pub fn with_header<H: Headers>(headers: H, name: &str, value: &str) -> H {
    headers.and(name, Some(value.as_bytes()))
}
