//! A valid subscription.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use super::filter::{Filter, TypePattern};
use crate::model::breaker_rules::BreakerOverrides;
use crate::model::event::Format;

/// A valid subscription.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its name, and the key of its record.
    pub id: Box<str>,
    /// Who owns it: the partition key of its commands.
    pub subscriber: Box<str>,
    /// The endpoint; `http` or `https`, with a host, no user info, no fragment.
    pub url: Url,
    /// At least one; any of them suffices.
    pub events: Vec<TypePattern>,
    /// On the event's content.
    pub filter: Filter,
    /// All sign, in this order; none: requests are not signed.
    pub secrets: Vec<SecretSource>,
    /// Of the body.
    pub format: Format,
    /// Further request headers; never a reserved one. Those with a credential are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether commands are sent.
    pub state: State,
    /// Requests at the same time, 1 to 1,024.
    pub max_in_flight: u32,
    /// Over attempts.
    pub rate_limit: Option<RateLimit>,
    /// Of one attempt, 100 ms to 60 s; `None` is the operator's.
    pub timeout: Option<Duration>,
    /// At most 20 delays of 1 ms to 24 h; `None` is the operator's.
    pub retry_schedule: Option<Vec<Duration>>,
    /// Between events.
    pub order: Order,
    /// Where its breaker differs from the operator's.
    pub breaker: BreakerOverrides,
    /// Instead of the default rules.
    pub on_status: StatusRules,
}

/// What happens to a subscription's commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// They are sent.
    #[default]
    Active,
    /// They wait.
    Paused,
    /// They are dead-lettered with reason `disabled`.
    Disabled,
}

impl State {
    /// As in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The order that the events of one subject are delivered in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Events may overtake each other.
    #[default]
    None,
    /// First attempts are made in order and never overlap; one that failed does not hold up the next event.
    PerSubject,
    /// Nothing of an event is sent before the event ahead of it is delivered or a dead letter.
    Strict,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Attempts a second, 0.001 to 100,000.
    pub per_second: f64,
    /// Attempts at once after a quiet time, 1 to 100,000.
    pub burst: u32,
}

/// Where a signing secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the delivering process.
    Env(String),
    /// A file at an absolute path.
    File(PathBuf),
    /// In the record itself: `whsec_…` or `whsk_…`, valid base64 of an allowed length.
    Literal(Redacted),
}

/// A text that neither `Debug` nor `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(Box<str>);

impl Redacted {
    /// Keeps a text from being shown.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself: only for signing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What a status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusRule {
    /// Try again by the schedule.
    Retry,
    /// Never again: dead-letter it at once.
    DeadLetter,
    /// As good as a 2xx.
    Delivered,
}

/// A subscription's own rules for response statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusRules {
    exact: BTreeMap<u16, StatusRule>,
    class: BTreeMap<u16, StatusRule>,
}

impl StatusRules {
    /// The rule for a status, that of its class if it has none itself; `None` is the default rule.
    #[must_use]
    pub fn lookup(&self, status: u16) -> Option<StatusRule> {
        self.exact
            .get(&status)
            .or_else(|| self.class.get(&(status / 100)))
            .copied()
    }

    pub(super) fn read(map: &Map<String, Value>) -> Self {
        let mut rules = Self::default();
        for (key, value) in map {
            let Some(rule) = StatusRule::deserialize(value).ok() else {
                continue;
            };
            match (key.parse::<u16>(), key.as_bytes().first()) {
                (Ok(status), _) => rules.exact.insert(status, rule),
                (Err(_), Some(digit)) => rules
                    .class
                    .insert(u16::from(digit.saturating_sub(b'0')), rule),
                _ => None,
            };
        }
        rules
    }
}
