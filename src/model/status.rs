//! What delivery knows about an endpoint: the value of its record in `webhook-status`, and when that is written. Pure.
//!
//! Delivery keeps it in memory for each lane, and writes it with the outcomes: at once when the state changes, otherwise
//! now and then ([`Publishing`]). It is for people: nothing is decided by it, except that the next owner of a partition
//! continues where this one stopped, so that a rollout neither forgets since when an endpoint fails nor repeats a notice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::outcome::Class;
use super::units::EpochMs;

/// The longest error of a [`Failure`], bytes; the rest is cut at a character's border.
pub const MAX_ERROR_BYTES: usize = 256;

/// How an endpoint is, as far as its attempts show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// It gets requests.
    #[default]
    Active,
    /// It asks for fewer requests, and gets fewer.
    Throttled,
    /// Its breaker is open: it gets only probes.
    BreakerOpen,
    /// Written by a newer program.
    #[serde(other)]
    Unknown,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it ended.
    pub at: EpochMs,
    /// Its class, as in the metrics.
    pub class: Box<str>,
    /// The status, if there was a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The first line of the response, or of the error; without secrets. At most [`MAX_ERROR_BYTES`].
    pub error: Box<str>,
    /// The webhook, for `hookstream trace`; empty if the failure was none of a webhook.
    #[serde(default)]
    pub webhook_id: Box<str>,
}

impl Failure {
    /// A failure with the first line of `error`.
    #[must_use]
    pub fn new(
        at: EpochMs,
        class: Class,
        status: Option<u16>,
        error: &str,
        webhook_id: &str,
    ) -> Self {
        Self {
            at,
            class: class.as_str().into(),
            status,
            error: first_line(error).into(),
            webhook_id: webhook_id.into(),
        }
    }
}

/// The first line of a text that is not blank, without control characters, at most [`MAX_ERROR_BYTES`] long.
#[must_use]
pub fn first_line(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(str::trim);
    let line = lines.into_iter().find(|line| !line.is_empty());
    let mut line: String = line.unwrap_or_default().replace(char::is_control, " ");
    line.truncate(line.floor_char_boundary(MAX_ERROR_BYTES));
    line
}

/// Since when an endpoint fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// When its breaker opened first; probes that fail do not change it.
    pub since: EpochMs,
    /// When a notice about it was written, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed: Option<EpochMs>,
}

/// Why a subscription cannot be served, though its endpoint may work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A secret cannot be read or used.
    Secret,
    /// The egress rules deny its endpoint.
    Egress,
    /// Written by a newer program.
    #[serde(other)]
    Unknown,
}

/// What is known about an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The subscription's id, and the key of the record.
    pub subscription: Box<str>,
    /// The subscriber that owns it.
    pub subscriber: Box<str>,
    /// When this was written.
    pub at: EpochMs,
    /// How it is.
    pub state: EndpointState,
    /// When the next probe is due, while the breaker is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_open_until: Option<EpochMs>,
    /// Since when it fails, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
    /// Why it cannot be served, if a notice said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// When the last command became a dead letter, some seconds old at most: a series of them ends after a while without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_dead_letter: Option<EpochMs>,
    /// The last failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
    /// When the last attempt succeeded; some seconds old at most while attempts succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<EpochMs>,
    /// Attempts of the five minutes before `at`, by class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attempts: BTreeMap<Box<str>, u64>,
    /// Whether this must become durable, unlike what is only for people.
    #[serde(skip)]
    pub must: bool,
}

impl Status {
    /// The value of its record.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of texts and numbers always serializes.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a record's value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(value: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(value).map_err(|error| error.to_string())
    }

    /// The attempts of the last five minutes at `now`: none once those before [`Status::at`] are older.
    #[must_use]
    pub fn recent_attempts(&self, now: EpochMs) -> BTreeMap<Box<str>, u64> {
        if now.since(self.at) < Recent::SPAN {
            self.attempts.clone()
        } else {
            BTreeMap::new()
        }
    }
}

/// Attempts by class in the last five minutes, in slices of half a minute.
#[derive(Clone, Debug)]
pub struct Recent {
    /// A ring; the newest slice is at `newest` modulo the number of slices.
    slices: [[u32; Class::ALL.len()]; Self::SLICES],
    newest: i64,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            slices: [[0; Class::ALL.len()]; Self::SLICES],
            newest: i64::MIN,
        }
    }
}

impl Recent {
    const SLICES: usize = 10;
    const SLICE: i64 = 30_000;
    /// What it covers.
    const SPAN: Duration = Duration::from_secs(300);

    /// Counts an attempt that ended at `now`.
    pub fn count(&mut self, class: Class, now: EpochMs) {
        let place = self.advance(now);
        let count = &mut self.slices[place][class as usize];
        *count = count.saturating_add(1);
    }

    /// The attempts by class, without classes that have none.
    pub fn sums(&mut self, now: EpochMs) -> BTreeMap<Box<str>, u64> {
        self.advance(now);
        let sum = |class: Class| {
            let slices = self.slices.iter();
            slices.map(|slice| u64::from(slice[class as usize])).sum()
        };
        let each = Class::ALL.into_iter().map(|class| (class, sum(class)));
        let some = each.filter(|(_, sum)| *sum > 0);
        some.map(|(class, sum): (Class, u64)| (class.as_str().into(), sum))
            .collect()
    }

    /// The place of the slice at `now`; a clock that was set back stays in the newest one.
    fn advance(&mut self, now: EpochMs) -> usize {
        let number = now.0.div_euclid(Self::SLICE).max(self.newest);
        let slices = i64::try_from(Self::SLICES).unwrap_or(i64::MAX);
        let place = |number: i64| usize::try_from(number.rem_euclid(slices)).unwrap_or(0);
        let gone = number.saturating_sub(self.newest).min(slices);
        for old in 0..gone {
            self.slices[place(number - old)] = [0; Class::ALL.len()];
        }
        self.newest = number;
        place(number)
    }
}

/// What has changed since a status was last written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Nothing.
    #[default]
    None,
    /// Attempts succeeded.
    Success,
    /// Attempts failed.
    Failure,
    /// The state changed, or an endpoint that worked failed.
    Change,
}

/// When a status is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publishing {
    news: News,
    last: Option<Instant>,
}

impl Publishing {
    /// Notes news; the most important one counts.
    pub fn note(&mut self, news: News) {
        self.news = self.news.max(news);
    }

    /// Whether it is to be written now. Successes are written together, in rounds: `round` says whether one is due.
    #[must_use]
    pub fn is_due(&self, round: bool, now: Instant) -> bool {
        /// While attempts fail in the same way.
        const FAILURES: Duration = Duration::from_secs(5);
        /// While the state changes to and fro.
        const CHANGES: Duration = Duration::from_secs(1);
        let since = |least: Duration| {
            self.last
                .is_none_or(|last| now.saturating_duration_since(last) >= least)
        };
        match self.news {
            News::None => false,
            News::Success => round,
            News::Failure => since(FAILURES),
            News::Change => since(CHANGES),
        }
    }

    /// Whether there is anything to write.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news != News::None
    }

    /// What is to be written.
    #[must_use]
    pub fn news(&self) -> News {
        self.news
    }

    /// Whether there is anything to write but that attempts succeed.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.news > News::Success
    }

    /// When it was last written.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// It is written.
    pub fn done(&mut self, now: Instant) {
        *self = Self {
            news: News::None,
            last: Some(now),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    #[test]
    fn a_status_survives_its_record_and_what_is_newer_is_ignored() {
        let status = Status {
            subscription: "s".into(),
            subscriber: "acme".into(),
            at: EpochMs(7),
            state: EndpointState::BreakerOpen,
            breaker_open_until: Some(EpochMs(9)),
            failing: Some(Failing {
                since: EpochMs(1),
                noticed: None,
            }),
            last_failure: Some(Failure::new(
                EpochMs(6),
                Class::ServerError,
                Some(503),
                "down",
                "msg_1",
            )),
            refused: Some(Refusal::Egress),
            last_dead_letter: Some(EpochMs(3)),
            last_success: None,
            attempts: BTreeMap::from([("5xx".into(), 3)]),
            must: false,
        };
        assert_eq!(Status::read(&status.to_json()), Ok(status));
        let newer = br#"{"subscription":"s","subscriber":"a","at":1,"state":"melting","new":[1]}"#;
        let read = Status::read(newer).unwrap();
        assert_eq!(read.state, EndpointState::Unknown);
        assert!(Status::read(b"[]").is_err());
    }

    #[test]
    fn an_error_is_one_short_line() {
        assert_eq!(
            first_line("\r\n  <h1>Bad\tgateway</h1>\nmore"),
            "<h1>Bad gateway</h1>"
        );
        assert_eq!(first_line(" \n "), "");
        let long = "ö".repeat(MAX_ERROR_BYTES);
        assert_eq!(first_line(&long).len(), MAX_ERROR_BYTES);
        assert_eq!(first_line(&format!("x{long}")).len(), MAX_ERROR_BYTES - 1);
    }

    #[test]
    fn attempts_are_those_of_the_last_five_minutes() {
        let mut recent = Recent::default();
        let at = |minutes: i64| EpochMs(1_700_000_000_000 / 30_000 * 30_000 + minutes * MINUTE);
        let sums = |recent: &mut Recent, now| -> Vec<(String, u64)> {
            let sums = recent.sums(now).into_iter();
            sums.map(|(class, count)| (class.into(), count)).collect()
        };
        for minute in 0..8 {
            recent.count(Class::Success, at(minute));
            recent.count(Class::Timeout, at(minute));
            recent.count(Class::Timeout, at(minute));
        }
        let five = vec![("2xx".to_owned(), 5), ("timeout".to_owned(), 10)];
        assert_eq!(sums(&mut recent, at(7)), five);
        assert_eq!(sums(&mut recent, at(6)), five, "a clock that was set back");
        assert_eq!(
            sums(&mut recent, at(11)),
            [("2xx".to_owned(), 1), ("timeout".to_owned(), 2)]
        );
        assert_eq!(sums(&mut recent, at(100)), []);
        recent.count(Class::Tls, EpochMs(i64::MAX));
        assert_eq!(sums(&mut recent, at(0)), [("tls".to_owned(), 1)]);
    }

    #[test]
    fn what_was_written_long_ago_says_nothing_about_the_last_minutes() {
        let status = Status {
            at: EpochMs(0),
            attempts: BTreeMap::from([("5xx".into(), 3)]),
            ..Status::default()
        };
        assert_eq!(status.recent_attempts(EpochMs(299_999)).len(), 1);
        assert!(status.recent_attempts(EpochMs(300_000)).is_empty());
    }

    #[test]
    fn a_change_is_written_at_once_and_successes_in_rounds() {
        let now = crate::edge::clock::instant();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut publishing = Publishing::default();
        assert!(!publishing.is_due(true, now), "nothing happened");
        publishing.note(News::Success);
        assert!(!publishing.is_due(false, after(1_000)));
        assert!(publishing.is_due(true, now));
        publishing.note(News::Change);
        publishing.note(News::Failure);
        assert!(publishing.is_due(false, now), "the change counts");
        publishing.done(now);
        publishing.note(News::Failure);
        assert!(!publishing.is_due(true, after(4)));
        assert!(publishing.is_due(false, after(5)));
        publishing.note(News::Change);
        assert!(!publishing.is_due(false, now));
        assert!(publishing.is_due(false, after(1)));
    }
}
