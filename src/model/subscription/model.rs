//! A valid subscription.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use compact_str::CompactString;
use http::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auth::Auth;
use super::endpoint_url::EndpointUrl;
use super::filter::{Filter, TypePattern};
use super::source::{HeaderSource, SecretSource, SigningSecret};
use super::version::Version;
use crate::model::breaker_rules::BreakerOverrides;
use crate::model::event::Format;
use crate::model::units::EpochMs;

/// A pattern of a subscription that gets no events of its own: no event and no notice has a type like it.
pub const NO_EVENT: &str = "hookstream.replay.none";

/// A valid subscription.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its name, and the key of its record.
    pub id: CompactString,
    /// The subscriber that owns it: the partition key of its commands.
    pub subscriber: CompactString,
    /// The endpoint; the default where subscriptions are kept for matching and it need not consent.
    pub url: EndpointUrl,
    /// At least one pattern; any of them is enough.
    pub events: Arc<[TypePattern]>,
    /// The filter on the event's content.
    pub filter: Filter,
    /// All of them sign until they end, in this order; requests are not signed if there are none. One of them never ends.
    pub secrets: Box<[SigningSecret]>,
    /// The format of the body.
    pub format: Format,
    /// Whether commands are sent: as decided by operators and hookstream, or else as applied.
    pub state: State,
    /// Whether its endpoint must consent before it gets events.
    pub verify: bool,
    /// The records that it comes from.
    pub source: Source,
    /// The maximum number of requests in flight, 1 to 1,024.
    pub max_in_flight: u32,
    /// The rate limit of attempts: its own, or the lower one that its endpoint grants. Few have one.
    pub rate_limit: Option<Box<RateLimit>>,
    /// The order of delivery.
    pub order: Order,
    /// Settings that most subscriptions leave to the operator.
    pub overrides: BoxedOverrides,
}

impl Subscription {
    /// When it was last resumed, as far as that is known.
    #[must_use]
    pub fn resumed_at(&self) -> Option<EpochMs> {
        self.source.decided.as_ref()?.resumed_at
    }

    /// What its applied record says.
    pub(super) fn applied(&self) -> Terms {
        let decided = self.source.decided.as_ref();
        decided.map_or_else(|| self.terms(), |decided| decided.applied)
    }

    /// What is in force.
    pub(super) fn terms(&self) -> Terms {
        Terms {
            state: self.state,
            rate_limit: self.rate_limit.as_deref().copied(),
        }
    }

    /// The same, resumed at that time.
    #[cfg(test)]
    pub(crate) fn resumed(mut self, at: EpochMs) -> Self {
        let (terms, version) = (self.terms(), self.source.version().clone());
        self.decide(terms, version, Some(at));
        self
    }

    /// Puts in force what was decided.
    pub(super) fn decide(&mut self, terms: Terms, version: Version, resumed_at: Option<EpochMs>) {
        let applied = self.applied();
        let is_as_applied = terms == applied && version == self.source.applied;
        let decided = Decided {
            version,
            resumed_at,
            applied,
        };
        self.source.decided = (!is_as_applied || resumed_at.is_some()).then(|| Box::new(decided));
        self.state = terms.state;
        self.rate_limit = terms.rate_limit.map(Box::new);
    }

    /// The secrets that it uses: those that sign, those in its headers, the one that it authenticates with, then those of
    /// its connections.
    pub fn sources(&self) -> impl Iterator<Item = &SecretSource> {
        let in_headers = self.overrides.headers.iter();
        let in_headers = in_headers.filter_map(|(_, source)| source.reference());
        let authenticates = self.overrides.auth.iter().map(Auth::reference);
        let signing = self.secrets.iter().map(|secret| &secret.source);
        let all = signing.chain(in_headers).chain(authenticates);
        all.chain(self.overrides.tls.sources())
    }

    /// The texts of its [`sources`](Self::sources), by what they are for.
    #[must_use]
    pub fn sort<'t, T>(&self, texts: &'t [T]) -> Texts<'t, T> {
        let in_headers = self.overrides.headers.iter();
        let in_headers = in_headers.filter(|(_, source)| source.reference().is_some());
        let (signing, rest) = texts.split_at(self.secrets.len().min(texts.len()));
        let (headers, rest) = rest.split_at(in_headers.count().min(rest.len()));
        let mut rest = rest.iter();
        let mut next = |is_there: bool| if is_there { rest.next() } else { None };
        Texts {
            signing,
            headers,
            auth: next(self.overrides.auth.is_some()),
            ca: next(self.overrides.tls.ca.is_some()),
            certificate: next(self.overrides.tls.client.is_some()),
            key: next(self.overrides.tls.client.is_some()),
        }
    }
}

/// Settings of one subscription. Where it has none, the operator's apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Additional request headers; never a reserved one.
    pub headers: Vec<(HeaderName, HeaderSource)>,
    /// How requests authenticate.
    pub auth: Option<Auth>,
    /// What its connections are made with.
    pub tls: TlsReferences,
    /// The timeout of one attempt, 100 ms to 60 s.
    pub timeout: Option<Duration>,
    /// At most 20 delays of 1 ms to 24 h.
    pub retry_schedule: Option<Vec<Duration>>,
    /// The maximum age of its commands, 1 s to 30 days.
    pub max_age: Option<Duration>,
    /// Overrides of the breaker settings.
    pub breaker: BreakerOverrides,
    /// Overrides of the default status rules.
    pub on_status: StatusRules,
}

/// Most subscriptions set none of these, and every replica holds all subscriptions in memory, so the settings are boxed:
/// without them, a subscription takes one pointer.
#[derive(Clone, Debug, Default)]
pub struct BoxedOverrides(Option<Box<Overrides>>);

impl From<Overrides> for BoxedOverrides {
    fn from(overrides: Overrides) -> Self {
        Self((overrides != Overrides::default()).then(|| Box::new(overrides)))
    }
}

impl Deref for BoxedOverrides {
    type Target = Overrides;

    fn deref(&self) -> &Overrides {
        static NONE: LazyLock<Overrides> = LazyLock::new(Overrides::default);
        self.0.as_deref().unwrap_or(&NONE)
    }
}

/// What an applied record says itself, and decisions and consents may override.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Terms {
    pub(super) state: State,
    pub(super) rate_limit: Option<RateLimit>,
}

/// What decisions, the consent of the endpoint and a resume have changed about an applied record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decided {
    /// The version of the subscription as it is.
    pub(super) version: Version,
    pub(super) resumed_at: Option<EpochMs>,
    /// State and rate limit as the record has them.
    pub(super) applied: Terms,
}

/// Where a subscription comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// The version of its applied record.
    pub applied: Version,
    /// The partition of its records: decisions are written there too, so that they keep their order.
    pub partition: Option<i32>,
    /// The timestamp of its applied record.
    pub timestamp: Option<EpochMs>,
    /// Boxed, since most have none; those with a consent or a pause do, and take some 50 bytes more than without the box.
    decided: Option<Box<Decided>>,
}

impl Source {
    /// Of an applied record on which nothing was decided.
    pub(super) fn new(
        applied: Version,
        partition: Option<i32>,
        timestamp: Option<EpochMs>,
    ) -> Self {
        Self {
            applied,
            partition,
            timestamp,
            decided: None,
        }
    }

    /// The version of the subscription as it is: the applied record, with the operator's decision on it.
    #[must_use]
    pub fn version(&self) -> &Version {
        let decided = self.decided.as_ref();
        decided.map_or(&self.applied, |decided| &decided.version)
    }

    /// Whether both are the same version in the same partition.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.applied == other.applied
            && self.version() == other.version()
            && self.partition == other.partition
    }
}

/// What a subscription's connections are made with, beyond the operator's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsReferences {
    /// Authorities to trust too, PEM.
    pub ca: Option<SecretSource>,
    /// The certificate and the key that it shows to servers that ask for one, PEM.
    pub client: Option<(SecretSource, SecretSource)>,
}

impl TlsReferences {
    fn sources(&self) -> impl Iterator<Item = &SecretSource> {
        let client = self.client.iter();
        let client = client.flat_map(|(certificate, key)| [certificate, key]);
        self.ca.iter().chain(client)
    }
}

/// The texts of a subscription's secrets, by what they are for.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'t, T> {
    /// They sign, in this order.
    pub signing: &'t [T],
    /// Of its headers, in their order.
    pub headers: &'t [T],
    /// Of `auth`.
    pub auth: Option<&'t T>,
    /// Authorities.
    pub ca: Option<&'t T>,
    /// A certificate.
    pub certificate: Option<&'t T>,
    /// Its key.
    pub key: Option<&'t T>,
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
    /// None are made, and older ones wait, until its endpoint consents. Never decided: it follows from the records.
    Pending,
}

impl State {
    /// The text in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
            Self::Pending => "pending",
        }
    }

    /// The state that was decided: a pending subscription is active, but for the consent of its endpoint.
    #[must_use]
    pub fn decided(self) -> Self {
        match self {
            Self::Pending => Self::Active,
            other => other,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The delivery order of the events of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Events may overtake each other.
    #[default]
    None,
    /// First attempts are made in order and never overlap; a failed one does not hold up the next event.
    PerSubject,
    /// An event is sent only after the event ahead of it is delivered or dead-lettered.
    Strict,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Attempts per second, 0.001 to 100,000.
    pub per_second: f64,
    /// Attempts at once after an idle period, 1 to 100,000.
    pub burst: u32,
}

/// What a status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusRule {
    /// Retry according to the schedule.
    Retry,
    /// Dead-letter at once, without a retry.
    DeadLetter,
    /// Treat as a 2xx.
    Delivered,
}

/// A subscription's own rules for response statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusRules {
    exact: BTreeMap<u16, StatusRule>,
    class: BTreeMap<u16, StatusRule>,
}

impl StatusRules {
    /// The rule for a status, or else for its class; `None` means the default rule.
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
