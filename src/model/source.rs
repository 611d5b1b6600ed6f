//! Where a command comes from: the header `hs-source`, which fan-out writes on commands of cause `new`.
//!
//! Fan-out may write a command again: after a crash, or when two of its replicas believe that they own a partition of
//! the events. The header says which event and which subscription a command stands for, and which command the same
//! writer wrote before it from the same source to the same partition. So delivery recognises copies and notices what is
//! missing ([`super::coverage`]).
//!
//! The text has fields that are separated by dots:
//!
//! | field | what |
//! |---|---|
//! | version | 1 |
//! | cluster | hash of the id of the cluster that the event is on |
//! | topic | 16 bytes that stand for the event's topic |
//! | partition | of the event |
//! | epoch | random; begins anew whenever the order of the commands of a source may differ from before |
//! | leader epoch | of the event, -1 where it is not known |
//! | offset | of the event |
//! | subscription | hash of the subscription's id |
//! | previous | `start`, or three fields: how many leader epochs and offsets before this one, and hash of the subscription |
//!
//! Hashes and the epoch are URL-safe base64 without padding. One header has one text: what reads, writes the same.
//! Pure.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use crate::model::stable_hash::fnv1a;

/// The header's name.
pub const HEADER: &str = "hs-source";

/// The header's version. A partition stops at a record with a later one.
pub const VERSION: u32 = 1;

/// The longest header that is read, bytes; the longest that is written has 130.
pub const MAX_BYTES: usize = 160;

/// Bytes of the header's value that an error shows.
const SHOWN: usize = 100;

/// The metadata of a position that fan-out's first start commits: no command of a source was written before it.
pub const FIRST_START: &str = "first";

/// A partition of events, and one order of the commands that come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The hash of the cluster's id: see [`cluster_hash`].
    pub cluster: u64,
    /// The topic's id.
    pub topic: [u8; 16],
    /// The topic's partition.
    pub partition: u32,
    /// Random.
    pub epoch: u32,
}

/// The place of a command in its source. Places compare as their events and, within an event, as their commands are
/// written: a log that was cut off by an unclean election goes on with a later leader epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The leader epoch of the event's record, -1 where it is not known.
    pub leader_epoch: i32,
    /// The event's offset, at least 0.
    pub offset: i64,
    /// The hash of the subscription's id: see [`subscription_hash`].
    pub subscription: u64,
}

/// What a command's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The source.
    pub source: Source,
    /// The command.
    pub at: Point,
    /// The command that its writer wrote before it, from this source to this partition of the commands; `None` for the
    /// first one. Always before `at`.
    pub previous: Option<Point>,
}

/// Why a header is not valid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MarkError {
    /// Written by a newer program.
    #[error(
        "the header hs-source has version {0}, but this program supports only version {VERSION}"
    )]
    Newer(u32),
    /// Longer than any that is written.
    #[error("the header hs-source has {0} bytes; at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// A field is not what it must be.
    #[error("the field {field} of the header hs-source is {value:?}, which is not {wanted}")]
    Unreadable {
        /// The field.
        field: &'static str,
        /// Its value, at most 100 characters.
        value: String,
        /// What is expected.
        wanted: &'static str,
    },
    /// A field is missing.
    #[error("the header hs-source ends before its field {0}")]
    Missing(&'static str),
    /// There is something behind the last field.
    #[error("the header hs-source has {0:?} behind its last field")]
    Trailing(String),
}

/// The hash of a cluster's id.
#[must_use]
pub fn cluster_hash(id: &str) -> u64 {
    fnv1a(id.bytes())
}

/// The hash of a subscription's id. The commands of one event are written in ascending order of it, so no two
/// subscriptions may have the same one.
#[must_use]
pub fn subscription_hash(id: &str) -> u64 {
    fnv1a(id.bytes())
}

/// Stands for the id of a topic, which clients cannot ask for without the permission to describe it: a hash of its name.
/// A topic that is made again is told by its offsets, which come again, and by the group's position, which is gone.
#[must_use]
pub fn topic_of_name(name: &str) -> [u8; 16] {
    let twice = [fnv1a(name.bytes()), fnv1a(name.bytes().chain([0]))];
    let mut id = [0; 16];
    for (half, hash) in id.chunks_exact_mut(8).zip(twice) {
        half.copy_from_slice(&hash.to_be_bytes());
    }
    id
}

impl Source {
    /// The beginning of the header of every command of this source.
    #[must_use]
    pub fn prefix(&self) -> String {
        let mut text = String::with_capacity(MAX_BYTES);
        // A text takes everything.
        write!(text, "{VERSION}.").ok();
        URL_SAFE_NO_PAD.encode_string(self.cluster.to_be_bytes(), &mut text);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(self.topic, &mut text);
        write!(text, ".{}.", self.partition).ok();
        URL_SAFE_NO_PAD.encode_string(self.epoch.to_be_bytes(), &mut text);
        text.push('.');
        text
    }

    /// Reads a text that begins with a [`Source::prefix`]; returns what follows, too. `None` if there is no valid one.
    #[must_use]
    pub fn parse_prefix(text: &str) -> Option<(Self, &str)> {
        let mut fields = Fields(Some(text.as_bytes()));
        let source = fields.source().ok()?;
        let rest = std::str::from_utf8(fields.0?).ok()?;
        Some((source, rest))
    }

    /// The version of such a text, if it is a later one than this program knows.
    #[must_use]
    pub fn newer_version(text: &str) -> Option<u32> {
        match Fields(Some(text.as_bytes())).version() {
            Err(MarkError::Newer(version)) => Some(version),
            _ => None,
        }
    }
}

impl Mark {
    /// The header's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = self.source.prefix();
        write_place(&mut text, self.at, self.previous);
        text
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MarkError`] names the first field that is not valid.
    pub fn parse(header: &[u8]) -> Result<Self, MarkError> {
        if header.len() > MAX_BYTES {
            return Err(MarkError::TooLong(header.len()));
        }
        let mut fields = Fields(Some(header));
        let source = fields.source()?;
        let leader_epoch =
            fields.number("leader epoch", -1, i32::MAX.into(), "a leader epoch or -1")?;
        let offset = fields.number("offset", 0, i64::MAX, "an offset")?;
        let subscription = fields.bytes("subscription", "a hash")?;
        let at = Point {
            // In the range that was asked for.
            leader_epoch: i32::try_from(leader_epoch).unwrap_or(-1),
            offset,
            subscription: u64::from_be_bytes(subscription),
        };
        let previous = fields.previous(at)?;
        if let Some(rest) = fields.0 {
            return Err(MarkError::Trailing(shown(rest)));
        }
        Ok(Self {
            source,
            at,
            previous,
        })
    }

    /// Looks for the header among those of a record; of several the last one counts. `None` when there is none.
    ///
    /// # Errors
    /// As [`Mark::parse`].
    pub fn find<'a>(
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<Option<Self>, MarkError> {
        let of_source = headers.filter(|(name, _)| *name == HEADER);
        match of_source.last() {
            Some((_, Some(value))) => Self::parse(value).map(Some),
            Some((_, None)) | None => Ok(None),
        }
    }
}

/// Appends what follows the [`Source::prefix`] in the header of a command; `previous` is before `at`.
pub fn write_place(text: &mut String, at: Point, previous: Option<Point>) {
    // A text takes everything.
    write!(text, "{}.{}.", at.leader_epoch, at.offset).ok();
    URL_SAFE_NO_PAD.encode_string(at.subscription.to_be_bytes(), text);
    match previous {
        None => text.push_str(".start"),
        Some(previous) => {
            debug_assert!(previous < at, "commands of a source are written in order");
            let epochs = i64::from(at.leader_epoch) - i64::from(previous.leader_epoch);
            // Negative where a log was cut off in between.
            let offsets = at.offset - previous.offset;
            write!(text, ".{epochs}.{offsets}.").ok();
            URL_SAFE_NO_PAD.encode_string(previous.subscription.to_be_bytes(), text);
        }
    }
}

/// What is left of a header, behind the dot.
struct Fields<'a>(Option<&'a [u8]>);

impl<'a> Fields<'a> {
    fn next(&mut self, field: &'static str) -> Result<&'a [u8], MarkError> {
        let rest = self.0.take().ok_or(MarkError::Missing(field))?;
        match rest.iter().position(|&byte| byte == b'.') {
            None => Ok(rest),
            Some(at) => {
                self.0 = Some(&rest[at + 1..]);
                Ok(&rest[..at])
            }
        }
    }

    fn version(&mut self) -> Result<(), MarkError> {
        match self.number("version", 1, u32::MAX.into(), "a version")? {
            version if version == i64::from(VERSION) => Ok(()),
            newer => Err(MarkError::Newer(u32::try_from(newer).unwrap_or(u32::MAX))),
        }
    }

    fn source(&mut self) -> Result<Source, MarkError> {
        self.version()?;
        let cluster = self.bytes("cluster", "a hash")?;
        let topic = self.bytes("topic", "a topic id")?;
        let partition = self.number("partition", 0, i32::MAX.into(), "a partition")?;
        let epoch = self.bytes("epoch", "an epoch")?;
        Ok(Source {
            cluster: u64::from_be_bytes(cluster),
            topic,
            // In the range that was asked for.
            partition: u32::try_from(partition).unwrap_or(0),
            epoch: u32::from_be_bytes(epoch),
        })
    }

    /// A decimal number as a program writes it: without a plus sign or zeros in front.
    fn number(
        &mut self,
        field: &'static str,
        least: i64,
        most: i64,
        wanted: &'static str,
    ) -> Result<i64, MarkError> {
        let value = self.next(field)?;
        let digits = value.strip_prefix(b"-").unwrap_or(value);
        let is_plain = digits.iter().all(u8::is_ascii_digit)
            && (digits.first() != Some(&b'0') || value == b"0");
        let text = std::str::from_utf8(value).ok().filter(|_| is_plain);
        text.and_then(|text| text.parse().ok())
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| unreadable(field, value, wanted))
    }

    fn bytes<const N: usize>(
        &mut self,
        field: &'static str,
        wanted: &'static str,
    ) -> Result<[u8; N], MarkError> {
        let value = self.next(field)?;
        let mut bytes = [0; N];
        match URL_SAFE_NO_PAD.decode_slice(value, &mut bytes) {
            Ok(length) if length == N => Ok(bytes),
            _ => Err(unreadable(field, value, wanted)),
        }
    }

    fn previous(&mut self, at: Point) -> Result<Option<Point>, MarkError> {
        const FIELD: &str = "previous";
        const WANTED: &str = "start or a command before this one";
        let rest = self.0.ok_or(MarkError::Missing(FIELD))?;
        if rest == b"start" {
            self.0 = None;
            return Ok(None);
        }
        let wrong = || unreadable(FIELD, rest, WANTED);
        let epochs = self.number(FIELD, 0, i64::from(u32::MAX), WANTED)?;
        let offsets = self.number(FIELD, -i64::MAX, i64::MAX, WANTED)?;
        let subscription = self.bytes(FIELD, WANTED)?;
        let leader_epoch = i32::try_from(i64::from(at.leader_epoch) - epochs).ok();
        let previous = Point {
            leader_epoch: leader_epoch
                .filter(|&epoch| epoch >= -1)
                .ok_or_else(wrong)?,
            offset: at
                .offset
                .checked_sub(offsets)
                .filter(|&offset| offset >= 0)
                .ok_or_else(wrong)?,
            subscription: u64::from_be_bytes(subscription),
        };
        if previous >= at {
            return Err(wrong());
        }
        Ok(Some(previous))
    }
}

fn unreadable(field: &'static str, value: &[u8], wanted: &'static str) -> MarkError {
    MarkError::Unreadable {
        field,
        value: shown(value),
        wanted,
    }
}

fn shown(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().take(SHOWN).collect()
}

#[cfg(test)]
pub(crate) mod tests;
