//! Dead letters as a log of facts: what was given up, and what an operator did about it.
//!
//! The topic never changes a record. A letter is a fact (`dead-lettered`), and so is what later settles it
//! (`replayed`, `discarded`); the open letters are the fold of both. Facts are told apart by the header `hs-fact`,
//! and a settling fact lies in its letter's own partition, so that one partition can be folded without the others.
//!
//! A settling fact names its letter by what the letter says: webhook id, subscription, attempts and last failure,
//! since a webhook id may be dead-lettered again after its replay. That holds on a mirrored cluster too, where the
//! letter has another offset. The coordinates beside it, and the cluster that they are of, are for people, and for
//! facts of hookstream 0.1.0, which have nothing else: those settle a letter only if its webhook id and subscription
//! agree. Pure: headers come and go as plain pairs, times are arguments.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::command::{VERSION, VERSION_TEXT, header, newer_version};
use crate::model::subscription::TypePattern;
use crate::model::units::{EpochMs, Offset};

/// Longest text of `hs-error`, bytes; the rest is cut at a character's border.
pub const MAX_ERROR_BYTES: usize = 1024;

/// The header that tells facts apart.
pub const FACT: &str = "hs-fact";

/// Headers that only a letter has. A replay drops them; `hs-first-failure` may also be the command's own.
const LETTER_ONLY: [&str; 6] = [
    FACT,
    "hs-reason",
    "hs-status",
    "hs-error",
    "hs-first-failure",
    "hs-last-failure",
];

/// Headers of the command that a replay writes anew.
const REWRITTEN: [&str; 3] = ["hs-attempt", "hs-due", "hs-cause"];

/// Why a command was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The endpoint answered with a status that no further attempt would change.
    PermanentStatus,
    /// The last attempt of the schedule failed.
    AttemptsExhausted,
    /// The endpoint answered 410.
    Gone,
    /// The subscription was disabled when the command came.
    Disabled,
    /// The egress guard refuses the endpoint.
    EgressDenied,
    /// There was no such subscription when the command came.
    SubscriptionMissing,
    /// The command would not fit the broker's message limit.
    TooLarge,
}

impl Reason {
    /// All, in the order of the contract.
    pub const ALL: [Self; 7] = [
        Self::PermanentStatus,
        Self::AttemptsExhausted,
        Self::Gone,
        Self::Disabled,
        Self::EgressDenied,
        Self::SubscriptionMissing,
        Self::TooLarge,
    ];

    /// The text of the header `hs-reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PermanentStatus => "permanent-status",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::Gone => "gone",
            Self::Disabled => "disabled",
            Self::EgressDenied => "egress-denied",
            Self::SubscriptionMissing => "subscription-missing",
            Self::TooLarge => "too-large",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|reason| reason.as_str()).collect();
                format!("{text:?} is not a reason; one of {}", known.join(", "))
            })
    }
}

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
    /// When the last attempt failed; the time of giving up when there was no attempt.
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

fn cut(text: &str) -> &str {
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
                format!("{text:?} is not a letter's place; write partition:offset, as in 3:1042")
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
            .ok_or_else(|| FactError::Value {
                header: FACT,
                value: text.to_owned(),
            })
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
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header's value cannot be read.
    #[error("header {header} has the unreadable value {value:?}")]
    Value {
        /// Its name.
        header: &'static str,
        /// Its value.
        value: String,
    },
    /// Of a later program.
    #[error("it has version {0}, and this program reads version {VERSION}: use the newer program")]
    Newer(String),
    /// The key is not there or not UTF-8.
    #[error("the key, a subscriber, is missing or not UTF-8")]
    Key,
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
        let version = text(headers, header::VERSION)?.map(str::as_bytes);
        if let Some(version) = newer_version(version) {
            return Err(FactError::Newer(version));
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
    value.parse().map_err(|_| FactError::Value {
        header: "hs-reason",
        value: value.to_owned(),
    })
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
        Err(_) => Err(FactError::Value {
            header: name,
            value: String::from_utf8_lossy(value).into_owned(),
        }),
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
        Err(_) => Err(FactError::Value {
            header: name,
            value: value.to_owned(),
        }),
    }
}

fn number<N: FromStr>(headers: &[(&str, &[u8])], name: &'static str) -> Result<N, FactError> {
    optional_number(headers, name)?.ok_or(FactError::Missing(name))
}

/// The headers of the command that replays a letter, from the letter's own headers.
///
/// Everything that fan-out wrote stays (webhook id, event, trace, first-enqueued time, also headers unknown to
/// this version), so identity is stable. The cause becomes `replay` and the due time goes. Attempts start at 0
/// again: an operator replays after mending the cause, and a letter that had exhausted its schedule would
/// otherwise be dead-lettered by the first hiccup. The invariant on attempt counts is about restarts and hops.
#[must_use]
pub fn replay_headers<'a>(letter: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, Cow<'a, [u8]>)> {
    let kept = letter
        .iter()
        .filter(|(name, _)| !LETTER_ONLY.contains(name) && !REWRITTEN.contains(name));
    let mut headers: Vec<_> = kept
        .map(|(name, value)| (*name, Cow::Borrowed(*value)))
        .collect();
    headers.push(("hs-attempt", Cow::Borrowed(b"0".as_slice())));
    headers.push(("hs-cause", Cow::Borrowed(b"replay".as_slice())));
    headers
}

/// What has become of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing yet: a replay would take it.
    Open,
    /// It was settled so, at that time.
    Settled(Settlement, EpochMs),
}

impl State {
    /// `open`, `replayed` or `discarded`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Settled(Settlement::Replayed, _) => "replayed",
            Self::Settled(Settlement::Discarded, _) => "discarded",
        }
    }
}

/// Makes keys of what letters and facts say of themselves. Seeded at random: nobody can choose ids that collide.
#[derive(Clone, Debug, Default)]
pub struct Identities(RandomState);

/// A letter's identity in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Its partition.
    pub partition: i32,
    key: u64,
}

impl Identities {
    /// The identity that letters and facts in `partition` have with this webhook id, subscription and moment.
    #[must_use]
    pub fn of(
        &self,
        partition: i32,
        webhook_id: &str,
        subscription: &str,
        moment: Moment,
    ) -> Identity {
        let key = self.0.hash_one((webhook_id, subscription, moment));
        Identity { partition, key }
    }

    /// A letter's identity.
    #[must_use]
    pub fn of_letter(&self, letter: &DeadLetter) -> Identity {
        self.of(
            letter.at.partition,
            &letter.webhook_id,
            &letter.subscription,
            letter.moment(),
        )
    }

    /// The webhook and the subscription alone.
    #[must_use]
    pub fn webhook(&self, webhook_id: &str, subscription: &str) -> u64 {
        self.0.hash_one((webhook_id, subscription))
    }
}

/// The fold of the facts: it holds what they say of settled letters only, about 50 bytes each, so that a first pass
/// over the topic is small however many letters are open; a second pass then asks for the state of each letter.
///
/// A fact settles every letter before it that says the same of itself. Two that do, to the millisecond, are copies of
/// one letter: a mirror writes some records twice when it was killed.
#[derive(Clone, Debug, Default)]
pub struct OpenLetters {
    identities: Identities,
    /// By the first fact, and where the last one lies.
    settled: HashMap<Identity, (Settlement, EpochMs, Offset)>,
    /// Facts that name their letters by coordinates only, each with the letter's webhook.
    by_place: HashMap<Coordinates, (u64, Settlement, EpochMs)>,
}

impl OpenLetters {
    /// Takes a settling fact, which lies at `place`. The first one for a letter counts.
    pub fn settle(&mut self, fact: &Settled, place: Coordinates) {
        let (webhook_id, subscription) = (&fact.webhook_id, &fact.subscription);
        let Some(moment) = fact.moment else {
            let webhook = self.identities.webhook(webhook_id, subscription);
            let settled = (webhook, fact.how, fact.at);
            self.by_place.entry(fact.letter).or_insert(settled);
            return;
        };
        let partition = place.partition;
        let identity = self
            .identities
            .of(partition, webhook_id, subscription, moment);
        let settled = (fact.how, fact.at, place.offset);
        let (_, _, last) = self.settled.entry(identity).or_insert(settled);
        *last = place.offset.max(*last);
    }

    /// What has become of a letter.
    #[must_use]
    pub fn state(&self, letter: &DeadLetter) -> State {
        let webhook = || {
            self.identities
                .webhook(&letter.webhook_id, &letter.subscription)
        };
        if let Some((of, how, at)) = self.by_place.get(&letter.at)
            && *of == webhook()
        {
            return State::Settled(*how, *at);
        }
        match self.settled.get(&self.identities.of_letter(letter)) {
            Some((how, at, last)) if letter.at.offset < *last => State::Settled(*how, *at),
            _ => State::Open,
        }
    }

    /// Whether a letter is open.
    #[must_use]
    pub fn is_open(&self, letter: &DeadLetter) -> bool {
        self.state(letter) == State::Open
    }
}

/// Which letters an operator means; an absent part matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Exactly this subscriber.
    pub subscriber: Option<String>,
    /// Exactly this subscription.
    pub subscription: Option<String>,
    /// This event type, or a pattern as in a subscription: `*` one segment, `**` any number.
    pub event_type: Option<TypePattern>,
    /// Given up for this reason.
    pub reason: Option<Reason>,
    /// The last response had this status.
    pub status: Option<u16>,
    /// The last failure was at this time or later.
    pub since: Option<EpochMs>,
    /// The last failure was before this time.
    pub until: Option<EpochMs>,
}

impl Filter {
    /// Whether the filter takes this letter.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let DeadLetterInfo {
            reason,
            status,
            last_failure,
            ..
        } = &letter.info;
        self.subscriber
            .as_ref()
            .is_none_or(|wanted| *wanted == letter.subscriber)
            && self
                .subscription
                .as_ref()
                .is_none_or(|wanted| *wanted == letter.subscription)
            && self.reason.is_none_or(|wanted| wanted == *reason)
            && self.status.is_none_or(|wanted| Some(wanted) == *status)
            && self.since.is_none_or(|since| *last_failure >= since)
            && self.until.is_none_or(|until| *last_failure < until)
            && self
                .event_type
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&letter.event_type))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command_headers(attempt: u32) -> Vec<(&'static str, String)> {
        vec![
            ("webhook-id", "msg_1".to_owned()),
            ("hs-subscription", "acme-orders".to_owned()),
            ("hs-event-id", "e1".to_owned()),
            ("hs-event-type", "order.created".to_owned()),
            ("hs-attempt", attempt.to_string()),
            ("hs-due", "99".to_owned()),
            ("hs-enqueued", "7".to_owned()),
            ("hs-cause", "retry".to_owned()),
            ("hs-first-failure", "8".to_owned()),
            ("hs-of-tomorrow", "kept".to_owned()),
        ]
    }

    fn borrowed<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a [u8])> {
        headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect()
    }

    fn at(partition: i32, offset: i64) -> Coordinates {
        Coordinates {
            partition,
            offset: Offset(offset),
        }
    }

    fn info(reason: Reason) -> DeadLetterInfo {
        DeadLetterInfo {
            reason,
            status: Some(400),
            error: "status 400".to_owned(),
            first_failure: EpochMs(10),
            last_failure: EpochMs(20),
        }
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            at: at(3, 1042),
            subscriber: "acme".to_owned(),
            subscription: "acme-orders".to_owned(),
            webhook_id: "msg_1".to_owned(),
            event_id: "e1".to_owned(),
            event_type: "order.created".to_owned(),
            attempts: 2,
            enqueued: Some(EpochMs(7)),
            info: info(Reason::PermanentStatus),
        }
    }

    proptest! {
        #[test]
        fn a_letter_survives_its_headers(
            reason in prop::sample::select(Reason::ALL.to_vec()),
            status in prop::option::of(100_u16..600),
            error in ".{0,200}",
            first in 0_i64..1 << 45,
            last in 0_i64..1 << 45,
            attempts in any::<u32>(),
        ) {
            let info = DeadLetterInfo {
                reason, status, error, first_failure: EpochMs(first), last_failure: EpochMs(last),
            };
            let mut headers = command_headers(attempts);
            headers.extend(info.headers());
            let decoded = Fact::decode(at(3, 1042), Some(b"acme"), &borrowed(&headers)).unwrap();
            prop_assert_eq!(decoded, Fact::DeadLettered(Box::new(DeadLetter { info, attempts, ..letter() })));
        }

        #[test]
        fn a_settling_fact_survives_its_headers(
            partition in 0..i32::MAX, offset in 0..i64::MAX, when in 0_i64..1 << 45, replayed: bool,
        ) {
            let how = if replayed { Settlement::Replayed } else { Settlement::Discarded };
            let of = DeadLetter { at: at(partition, offset), ..letter() };
            let new = Settled::new(&of, how, EpochMs(when), "cluster-a");
            let old = Settled { cluster: None, moment: None, ..new.clone() };
            for fact in [new, old] {
                let decoded = Fact::decode(at(partition, 5), Some(b"acme"), &borrowed(&fact.headers())).unwrap();
                prop_assert_eq!(decoded, Fact::Settled(fact));
            }
        }

        /// A partition of letters and facts, then the same partition as a mirror holds it: other offsets, and some
        /// records twice. In both, exactly those letters are settled that were settled.
        #[test]
        fn the_fold_agrees_with_a_list_of_letters_that_are_struck_out_also_on_a_mirror(
            steps in prop::collection::vec((0_usize..40, any::<bool>(), any::<bool>(), 1_i64..4), 0..120),
            shift in -3_i64..50,
            by_place: bool,
        ) {
            let mut log: Vec<(i64, Result<DeadLetter, Settled>, bool)> = Vec::new();
            let mut letters: Vec<(DeadLetter, Option<Settlement>)> = Vec::new();
            let mut offset = 0;
            for (pick, is_letter, replayed, gap) in steps {
                offset += gap;
                if is_letter || letters.is_empty() {
                    // Few webhooks, so that each has several letters.
                    let mut new = DeadLetter { at: at(3, offset), webhook_id: format!("msg_{}", pick % 3), ..letter() };
                    new.info.last_failure = EpochMs(offset);
                    letters.push((new.clone(), None));
                    log.push((offset, Ok(new), replayed));
                    continue;
                }
                let pick = pick % letters.len();
                let (of, state) = &mut letters[pick];
                let how = if replayed { Settlement::Replayed } else { Settlement::Discarded };
                state.get_or_insert(how);
                let mut fact = Settled::new(of, how, EpochMs(1), "cluster-a");
                if by_place {
                    (fact.cluster, fact.moment) = (None, None);
                }
                log.push((offset, Err(fact), replayed));
            }
            let settled = |state: State| match state {
                State::Open => None,
                State::Settled(how, _) => Some(how),
            };
            let mut fold = OpenLetters::default();
            for (offset, record, _) in &log {
                if let Err(fact) = record {
                    fold.settle(fact, at(3, *offset));
                }
            }
            for (letter, state) in &letters {
                prop_assert_eq!(settled(fold.state(letter)), *state);
            }

            let mut fold = OpenLetters::default();
            let mut mirrored: Vec<DeadLetter> = Vec::new();
            let mut next = shift.max(0);
            for (_, record, twice) in log {
                for _ in 0..=u8::from(twice) {
                    match &record {
                        Ok(letter) => mirrored.push(DeadLetter { at: at(3, next), ..letter.clone() }),
                        Err(fact) => fold.settle(fact, at(3, next)),
                    }
                    next += 1;
                }
            }
            for letter in mirrored {
                let told = settled(fold.state(&letter));
                let (_, state) = letters.iter().find(|(one, _)| one.info == letter.info).unwrap();
                if by_place {
                    // Such a fact settles no letter of another webhook.
                    let of_it = letters.iter().filter(|(one, _)| one.webhook_id == letter.webhook_id);
                    prop_assert!(told.is_none() || of_it.into_iter().any(|(_, state)| state.is_some()));
                } else {
                    prop_assert_eq!(told, *state);
                }
            }
        }
    }

    #[test]
    fn a_letter_that_came_after_the_fact_is_open() {
        let mut fold = OpenLetters::default();
        let fact = Settled::new(&letter(), Settlement::Replayed, EpochMs(30), "cluster-a");
        fold.settle(&fact, at(3, 1050));
        let state = |offset| {
            let letter = DeadLetter {
                at: at(3, offset),
                ..letter()
            };
            fold.state(&letter)
        };
        let replayed = State::Settled(Settlement::Replayed, EpochMs(30));
        assert_eq!(state(1042), replayed);
        assert_eq!(state(7), replayed, "as a mirror holds it");
        assert_eq!(state(1051), State::Open);
        let mut again = letter();
        again.info.last_failure = EpochMs(99);
        assert!(fold.is_open(&again), "dead-lettered again");
    }

    #[test]
    fn a_replayed_command_is_the_letter_without_what_made_it_one() {
        let mut headers = command_headers(8);
        headers.extend(info(Reason::AttemptsExhausted).headers());
        let pairs = borrowed(&headers);
        let replayed: Vec<(&str, String)> = replay_headers(&pairs)
            .into_iter()
            .map(|(name, value)| (name, String::from_utf8(value.into_owned()).unwrap()))
            .collect();
        let expected = [
            ("webhook-id", "msg_1"),
            ("hs-subscription", "acme-orders"),
            ("hs-event-id", "e1"),
            ("hs-event-type", "order.created"),
            ("hs-enqueued", "7"),
            ("hs-of-tomorrow", "kept"),
            ("hs-attempt", "0"),
            ("hs-cause", "replay"),
        ];
        assert_eq!(
            replayed,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn an_error_is_cut_at_a_characters_border() {
        let long = DeadLetterInfo {
            error: "é".repeat(1000),
            ..info(Reason::Gone)
        };
        let headers = long.headers();
        let (_, error) = headers
            .iter()
            .find(|(name, _)| *name == "hs-error")
            .unwrap();
        assert_eq!(error.len(), MAX_ERROR_BYTES);
        assert_eq!(
            cut(&format!("x{}", "é".repeat(1000))).len(),
            MAX_ERROR_BYTES - 1
        );
    }

    #[test]
    fn a_foreign_record_is_refused_by_the_header_that_it_lacks() {
        assert_eq!(
            Fact::decode(at(0, 0), None, &[]),
            Err(FactError::Missing(FACT))
        );
        let unknown = Fact::decode(at(0, 0), None, &[(FACT, b"resurrected")]);
        assert_eq!(
            unknown,
            Err(FactError::Value {
                header: FACT,
                value: "resurrected".to_owned()
            })
        );
        let mut headers = command_headers(1);
        headers.extend(info(Reason::Gone).headers());
        assert_eq!(
            Fact::decode(at(0, 0), None, &borrowed(&headers)),
            Err(FactError::Key)
        );
    }

    #[test]
    fn every_part_of_a_filter_must_match() {
        let letter = letter();
        assert!(
            Filter::default().matches(&letter),
            "an empty filter takes every letter"
        );
        let all = Filter {
            subscriber: Some("acme".to_owned()),
            subscription: Some("acme-orders".to_owned()),
            event_type: TypePattern::parse("order.*").ok(),
            reason: Some(Reason::PermanentStatus),
            status: Some(400),
            since: Some(EpochMs(20)),
            until: Some(EpochMs(21)),
        };
        assert!(all.matches(&letter));
        let misses = [
            Filter {
                subscriber: Some("globex".to_owned()),
                ..all.clone()
            },
            Filter {
                subscription: Some("other".to_owned()),
                ..all.clone()
            },
            Filter {
                event_type: TypePattern::parse("order").ok(),
                ..all.clone()
            },
            Filter {
                reason: Some(Reason::Gone),
                ..all.clone()
            },
            Filter {
                status: Some(404),
                ..all.clone()
            },
            Filter {
                since: Some(EpochMs(21)),
                ..all.clone()
            },
            Filter {
                until: Some(EpochMs(20)),
                ..all
            },
        ];
        for miss in misses {
            assert!(!miss.matches(&letter), "{miss:?}");
        }
    }

    #[test]
    fn a_letters_place_is_written_as_it_is_read() {
        assert_eq!("3:1042".parse(), Ok(at(3, 1042)));
        assert_eq!(at(3, 1042).to_string(), "3:1042");
        for text in ["3", "3:", ":1", "-1:2", "3:-1", "msg_1", "a:b"] {
            assert!(text.parse::<Coordinates>().is_err(), "{text}");
        }
    }

    #[test]
    fn facts_keep_to_their_schemas() {
        let problems = |schema: &str, headers: &[(&'static str, String)]| {
            let schema = serde_json::from_str(schema).unwrap();
            let validator = jsonschema::validator_for(&schema).unwrap();
            let headers: HashMap<_, _> = headers.iter().cloned().collect();
            let headers = serde_json::to_value(headers).unwrap();
            validator
                .iter_errors(&headers)
                .map(|error| error.to_string())
                .collect::<Vec<_>>()
        };
        let letters = include_str!("../../schemas/dead-letter.schema.json");
        let facts = include_str!("../../schemas/fact.schema.json");
        for reason in Reason::ALL {
            let mut headers = command_headers(3);
            headers.extend(info(reason).headers());
            assert_eq!(
                problems(letters, &headers),
                Vec::<String>::new(),
                "{reason}"
            );
            assert_ne!(
                problems(facts, &headers),
                Vec::<String>::new(),
                "a letter settles nothing"
            );
        }
        for how in [Settlement::Replayed, Settlement::Discarded] {
            let mut fact = Settled::new(&letter(), how, EpochMs(5), "cluster-a");
            assert_eq!(problems(facts, &fact.headers()), Vec::<String>::new());
            (fact.cluster, fact.moment) = (None, None);
            assert_eq!(problems(facts, &fact.headers()), Vec::<String>::new());
        }
    }

    #[test]
    fn reasons_are_the_contracts() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        assert!(
            "lost"
                .parse::<Reason>()
                .unwrap_err()
                .contains("permanent-status")
        );
    }
}
