//! The facts of the dead-letter topic and their records.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::reason::Reason;
use crate::model::command::{FormatVersion, VERSION, VERSION_TEXT, header};
use crate::model::units::{EpochMs, Offset};

/// Longest text of `hs-error`, bytes; the rest is cut at a character's border.
pub const MAX_ERROR_BYTES: usize = 1024;

/// The header that tells facts apart.
pub const FACT: &str = "hs-fact";

/// The header of an imported dead letter: the cluster and the place that it was exported from, `CLUSTER/PARTITION:OFFSET`.
pub const IMPORTED: &str = "hs-imported";

/// Headers that only a letter has. A replay drops them; those about failures may also be the command's own.
const LETTER_ONLY: [&str; 7] = [
    FACT,
    IMPORTED,
    "hs-reason",
    "hs-status",
    "hs-error",
    "hs-first-failure",
    "hs-last-failure",
];

/// Headers of the command that a replay writes anew.
const REWRITTEN: [&str; 4] = ["hs-attempt", "hs-due", "hs-cause", header::REPLAYED];

/// What delivery adds to a command that it gives up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterInfo {
    /// Why it was given up.
    pub reason: Reason,
    /// The last response's status, if there was a response.
    pub status: Option<u16>,
    /// One sentence about the last failure; never a secret. Cut at [`MAX_ERROR_BYTES`].
    pub error: String,
    /// When the first attempt failed; the time of giving up when there was no attempt.
    pub first_failure: EpochMs,
    /// When the last attempt failed; the time of giving up when that was not because of an attempt.
    pub last_failure: EpochMs,
}

impl DeadLetterInfo {
    /// The headers to append behind the command's own. Readers take the last of a repeated name.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (FACT, Kind::DeadLettered.as_str().to_owned()),
            ("hs-reason", self.reason.as_str().to_owned()),
        ];
        if let Some(status) = self.status {
            headers.push(("hs-status", status.to_string()));
        }
        headers.push(("hs-error", cut(&self.error).to_owned()));
        headers.push(("hs-first-failure", self.first_failure.to_string()));
        headers.push(("hs-last-failure", self.last_failure.to_string()));
        headers
    }
}

pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ERROR_BYTES)]
}

/// Where a letter lies in the dead-letter topic; its identity. Written `partition:offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Coordinates {
    /// The partition.
    pub partition: i32,
    /// The offset of the letter itself.
    pub offset: Offset,
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl FromStr for Coordinates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(partition, offset)| {
            Some(Self {
                partition: partition.parse().ok()?,
                offset: Offset(offset.parse().ok()?),
            })
        });
        parsed
            .filter(|at| at.partition >= 0 && at.offset.0 >= 0)
            .ok_or_else(|| {
                format!("{text:?} is not the position of a dead letter; must be partition:offset, such as 3:1042")
            })
    }
}

/// A command that was given up; its body and remaining headers stay in the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it lies.
    pub at: Coordinates,
    /// Who owns the subscription; the record's key.
    pub subscriber: String,
    /// The subscription's id.
    pub subscription: String,
    /// The same in all attempts and copies.
    pub webhook_id: String,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Attempts made.
    pub attempts: u32,
    /// When the first command of this webhook was written.
    pub enqueued: Option<EpochMs>,
    /// Why and when it was given up.
    pub info: DeadLetterInfo,
}

/// How a letter was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// Sent again as a new command.
    Replayed,
    /// Given up for good by an operator.
    Discarded,
}

/// What tells a letter from the others of its webhook, also on a mirrored cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    /// Attempts made.
    pub attempts: u32,
    /// When the last one failed; the time of giving up when there was no attempt.
    pub last_failure: EpochMs,
}

impl DeadLetter {
    /// What tells it from the others of its webhook.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            attempts: self.attempts,
            last_failure: self.info.last_failure,
        }
    }
}

/// The fact that a letter was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The letter, on the cluster where it was settled.
    pub letter: Coordinates,
    /// That cluster; missing in facts of hookstream 0.1.0.
    pub cluster: Option<String>,
    /// What tells the letter from the others of its webhook; missing in facts of hookstream 0.1.0.
    pub moment: Option<Moment>,
    /// What was done.
    pub how: Settlement,
    /// When.
    pub at: EpochMs,
    /// The letter's webhook id.
    pub webhook_id: String,
    /// The letter's subscription.
    pub subscription: String,
}

impl Settled {
    /// The fact that `letter` was settled at `at`, on `cluster`.
    #[must_use]
    pub fn new(letter: &DeadLetter, how: Settlement, at: EpochMs, cluster: &str) -> Self {
        Self {
            letter: letter.at,
            cluster: Some(cluster.to_owned()),
            moment: Some(letter.moment()),
            how,
            at,
            webhook_id: letter.webhook_id.clone(),
            subscription: letter.subscription.clone(),
        }
    }

    /// All headers of the fact's record; its key is the letter's, its value is empty, and it belongs in the
    /// letter's own partition.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let kind = match self.how {
            Settlement::Replayed => Kind::Replayed,
            Settlement::Discarded => Kind::Discarded,
        };
        let mut headers = vec![
            (header::VERSION, VERSION_TEXT.to_owned()),
            (FACT, kind.as_str().to_owned()),
            ("hs-letter-partition", self.letter.partition.to_string()),
            ("hs-letter-offset", self.letter.offset.to_string()),
            ("hs-at", self.at.to_string()),
            ("webhook-id", self.webhook_id.clone()),
            ("hs-subscription", self.subscription.clone()),
        ];
        if let Some(cluster) = &self.cluster {
            headers.push((header::CLUSTER, cluster.clone()));
        }
        if let Some(moment) = self.moment {
            headers.push(("hs-attempt", moment.attempts.to_string()));
            headers.push(("hs-last-failure", moment.last_failure.to_string()));
        }
        headers
    }
}

/// Which fact a record states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A letter.
    DeadLettered,
    /// A letter was sent again.
    Replayed,
    /// A letter was given up for good.
    Discarded,
}

impl Kind {
    /// The text of the header `hs-fact`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeadLettered => "dead-lettered",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        }
    }

    /// Reads only the kind: enough to skip a record without decoding it.
    ///
    /// # Errors
    /// The header is missing or unknown.
    pub fn of(headers: &[(&str, &[u8])]) -> Result<Self, FactError> {
        let text = required(headers, FACT)?;
        [Self::DeadLettered, Self::Replayed, Self::Discarded]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| FactError::value(FACT, text.as_bytes()))
    }
}

/// One record of the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A command was given up.
    DeadLettered(Box<DeadLetter>),
    /// A letter was settled.
    Settled(Settled),
}

/// Why a record of the dead-letter topic is no fact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// A required header is not there.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A header's value cannot be read.
    #[error("the header {header} has the invalid value {value:?}")]
    Value {
        /// Its name.
        header: &'static str,
        /// Its value, at most 100 characters.
        value: String,
    },
    /// Of a later program.
    #[error(
        "the record has version {0}, but this program supports only version {VERSION}; upgrade this program"
    )]
    Newer(u32),
    /// The key is not there or not UTF-8.
    #[error("the key, a subscriber, is missing or not UTF-8")]
    Key,
}

impl FactError {
    fn value(header: &'static str, value: &[u8]) -> Self {
        let value = String::from_utf8_lossy(value).chars().take(100).collect();
        Self::Value { header, value }
    }
}

impl Fact {
    /// Reads a record of the dead-letter topic.
    ///
    /// # Errors
    /// The first header that is missing or unreadable.
    pub fn decode(
        at: Coordinates,
        key: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<Self, FactError> {
        let version = text(headers, header::VERSION)?;
        match FormatVersion::of(version.map(str::as_bytes)) {
            FormatVersion::Known => {}
            FormatVersion::Newer(version) => return Err(FactError::Newer(version)),
            FormatVersion::Unreadable => {
                return Err(FactError::value(
                    header::VERSION,
                    version.unwrap_or_default().as_bytes(),
                ));
            }
        }
        match Kind::of(headers)? {
            Kind::DeadLettered => Ok(Self::DeadLettered(Box::new(decode_letter(
                at, key, headers,
            )?))),
            Kind::Replayed => Ok(Self::Settled(decode_settled(
                Settlement::Replayed,
                headers,
            )?)),
            Kind::Discarded => Ok(Self::Settled(decode_settled(
                Settlement::Discarded,
                headers,
            )?)),
        }
    }
}

fn decode_letter(
    at: Coordinates,
    key: Option<&[u8]>,
    headers: &[(&str, &[u8])],
) -> Result<DeadLetter, FactError> {
    let subscriber = key
        .and_then(|key| std::str::from_utf8(key).ok())
        .ok_or(FactError::Key)?;
    Ok(DeadLetter {
        at,
        subscriber: subscriber.to_owned(),
        subscription: required(headers, "hs-subscription")?.to_owned(),
        webhook_id: required(headers, "webhook-id")?.to_owned(),
        event_id: required(headers, "hs-event-id")?.to_owned(),
        event_type: required(headers, "hs-event-type")?.to_owned(),
        attempts: number(headers, "hs-attempt")?,
        enqueued: optional_number(headers, "hs-enqueued")?.map(EpochMs),
        info: DeadLetterInfo {
            reason: reason(headers)?,
            status: optional_number(headers, "hs-status")?,
            error: text(headers, "hs-error")?.unwrap_or_default().to_owned(),
            first_failure: EpochMs(number(headers, "hs-first-failure")?),
            last_failure: EpochMs(number(headers, "hs-last-failure")?),
        },
    })
}

fn decode_settled(how: Settlement, headers: &[(&str, &[u8])]) -> Result<Settled, FactError> {
    let attempts = optional_number(headers, "hs-attempt")?;
    let last_failure = optional_number(headers, "hs-last-failure")?.map(EpochMs);
    let moment = attempts
        .zip(last_failure)
        .map(|(attempts, last_failure)| Moment {
            attempts,
            last_failure,
        });
    Ok(Settled {
        cluster: text(headers, header::CLUSTER)?.map(str::to_owned),
        moment,
        letter: Coordinates {
            partition: number(headers, "hs-letter-partition")?,
            offset: Offset(number(headers, "hs-letter-offset")?),
        },
        how,
        at: EpochMs(number(headers, "hs-at")?),
        webhook_id: required(headers, "webhook-id")?.to_owned(),
        subscription: required(headers, "hs-subscription")?.to_owned(),
    })
}

fn reason(headers: &[(&str, &[u8])]) -> Result<Reason, FactError> {
    let value = required(headers, "hs-reason")?;
    value
        .parse()
        .map_err(|_| FactError::value("hs-reason", value.as_bytes()))
}

fn text<'a>(
    headers: &[(&str, &'a [u8])],
    name: &'static str,
) -> Result<Option<&'a str>, FactError> {
    let Some((_, value)) = headers.iter().rev().find(|(header, _)| *header == name) else {
        return Ok(None);
    };
    match std::str::from_utf8(value) {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(FactError::value(name, value)),
    }
}

fn required<'a>(headers: &[(&str, &'a [u8])], name: &'static str) -> Result<&'a str, FactError> {
    text(headers, name)?.ok_or(FactError::Missing(name))
}

fn optional_number<N: FromStr>(
    headers: &[(&str, &[u8])],
    name: &'static str,
) -> Result<Option<N>, FactError> {
    let Some(value) = text(headers, name)? else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(FactError::value(name, value.as_bytes())),
    }
}

fn number<N: FromStr>(headers: &[(&str, &[u8])], name: &'static str) -> Result<N, FactError> {
    optional_number(headers, name)?.ok_or(FactError::Missing(name))
}

/// The headers of the command that replays a letter, from the letter's own headers.
///
/// Everything that fan-out wrote stays (webhook id, event, trace, first-enqueued time, also headers unknown to
/// this version), so identity is stable. The cause becomes `replay` and the due time goes. Attempts start at 0
/// again, and the age at `now`: an operator replays after fixing the cause, and a letter that had exhausted its
/// schedule or its age would otherwise be dead-lettered by the first failure, or at once. The invariant on attempt
/// counts is about restarts and hops.
#[must_use]
pub fn replay_headers<'a>(
    letter: &[(&'a str, &'a [u8])],
    now: EpochMs,
) -> Vec<(&'a str, Cow<'a, [u8]>)> {
    let kept = letter
        .iter()
        .filter(|(name, _)| !LETTER_ONLY.contains(name) && !REWRITTEN.contains(name));
    let mut headers: Vec<_> = kept
        .map(|(name, value)| (*name, Cow::Borrowed(*value)))
        .collect();
    headers.push(("hs-attempt", Cow::Borrowed(b"0".as_slice())));
    headers.push(("hs-cause", Cow::Borrowed(b"replay".as_slice())));
    let now = now.to_string().into_bytes();
    headers.push((header::REPLAYED, Cow::Owned(now)));
    headers
}
