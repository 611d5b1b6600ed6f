//! Records of hookstream's own topics: headers, commands, and invalid records.

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};

use super::error::Failure;
use crate::model::command::{Command, Envelope, InvalidCommand};
use crate::model::invalid_record::InvalidRecord;
use crate::model::units::Offset;

/// The headers of a command's record.
#[must_use]
pub fn command_headers(envelope: &Envelope<'_>) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new_with_capacity(15));
    envelope.each_header(|name, value| {
        headers = headers.take().map(|all| with_header(all, name, value))
    });
    headers.unwrap_or_default()
}

/// The whole of `message`, which is invalid because of `error`.
#[must_use]
pub fn invalid_record(message: &BorrowedMessage<'_>, error: String) -> InvalidRecord {
    InvalidRecord {
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: each_header(message)
            .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
            .collect(),
        error,
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: Offset(message.offset()),
    }
}

/// The headers of the record on the invalid-events topic.
#[must_use]
pub fn invalid_headers(record: &InvalidRecord) -> OwnedHeaders {
    let all = record.headers.iter().fold(
        OwnedHeaders::new_with_capacity(record.headers.len() + 4),
        |all, (name, value)| {
            all.insert(Header {
                key: name,
                value: value.as_deref(),
            })
        },
    );
    record
        .source_headers()
        .iter()
        .fold(all, |all, (name, value)| with_header(all, name, value))
}

/// The headers of a message, in order.
pub fn each_header<'a>(
    message: &'a BorrowedMessage<'_>,
) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> {
    let headers = message.headers();
    (0..headers.map_or(0, Headers::count)).filter_map(move |index| {
        headers.map(|headers| {
            let header = headers.get(index);
            (header.key, header.value)
        })
    })
}

/// Reads a command; the inner error is the whole record, for `webhook-invalid-events`.
///
/// # Errors
/// [`Failure::Newer`] for a record of a newer program.
pub fn read_command(
    message: &BorrowedMessage<'_>,
) -> Result<Result<Box<Command>, Box<InvalidRecord>>, Failure> {
    let body = message.payload().map(Bytes::copy_from_slice);
    match Command::from_record(message.key(), each_header(message), body) {
        Ok(command) => Ok(Ok(Box::new(command))),
        Err(InvalidCommand::Newer(version)) => Err(Failure::Newer {
            place: format!(
                "{} {}:{}",
                message.topic(),
                message.partition(),
                message.offset()
            ),
            version,
            known: crate::model::command::VERSION,
        }),
        Err(error) => Ok(Err(Box::new(invalid_record(message, error.to_string())))),
    }
}

/// Adds one text header.
#[must_use]
pub fn with_header(headers: OwnedHeaders, name: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header {
        key: name,
        value: Some(value),
    })
}
