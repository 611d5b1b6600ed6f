//! Validated settings.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::credentials::Credentials;
use super::files::Connection;
use super::hosts::HostPattern;
use super::secrets::{Properties, SecretRef};
use crate::model::breaker_rules::BreakerRules;
use crate::model::event::Mapping;
use crate::model::secret_rules::SecretRules;
use crate::model::tiers::Tiers;
use crate::model::units::{EpochMs, format_duration};
use crate::model::window::Format as WindowFormat;

/// The delivery guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Transactions: from event to command, and from attempt to retry or dead letter.
    ExactlyOnce,
    /// For brokers without transactions: a crash may write a command, retry or dead letter twice.
    AtLeastOnce,
}

/// Where a group begins to read an event topic in which it has no positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// Behind all that can be read.
    #[default]
    Now,
    /// The first record.
    Earliest,
    /// The first record of this time or later, or else the end.
    Time(EpochMs),
}

impl fmt::Display for StartAt {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => to.write_str("now"),
            Self::Earliest => to.write_str("earliest"),
            Self::Time(at) => to.write_str(&at.rfc3339()),
        }
    }
}

/// All settings, validated. Built once at startup; see the table of settings for units, defaults and ranges.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bootstrap servers, `host:port`, comma-separated.
    pub brokers: String,
    /// librdkafka properties given with `-X`, in order.
    pub properties: Properties,
    /// The part of the connection settings that may change while the process runs; shared by all clones.
    pub credentials: Credentials,
    /// Names of all topics.
    pub topics: Topics,
    /// How records of event topics are read that are neither CloudEvents nor plain events; by topic.
    pub event_mappings: Arc<BTreeMap<String, Mapping>>,
    /// Where fan-out begins to read a topic at its first start, if it is given; else at [`StartAt::Now`].
    pub start_at: Option<StartAt>,
    /// Prefix of all consumer groups.
    pub group_prefix: String,
    /// What a crash may duplicate.
    pub guarantee: Guarantee,
    /// Unique and stable per replica; names the transactional ids.
    pub instance: String,
    /// Listen address of `/metrics`, `/livez` and `/readyz`.
    pub http_listen: SocketAddr,
    /// The file of tokens that the pages need, if they need one.
    pub http_token_file: Option<PathBuf>,
    /// Certificate and key of the pages, PEM.
    pub http_tls: Option<(PathBuf, PathBuf)>,
    /// Retry tiers.
    pub tiers: Tiers,
    /// Delays after the first, second, … failed attempt, before jitter.
    pub retry_schedule: Vec<Duration>,
    /// The maximum age of a command, if set; else it follows from the schedule.
    pub max_age: Option<Duration>,
    /// Timeout of a whole attempt: connect, headers and body.
    pub timeout: Duration,
    /// How long to wait for attempts in flight at shutdown and revocation.
    pub drain_deadline: Duration,
    /// Which secrets a subscription may name.
    pub secret_rules: SecretRules,
    /// The keys that encrypt the secrets in records of subscriptions, if there are any.
    pub kek_file: Option<PathBuf>,
    /// Whether each attempt is recorded in the attempt log.
    pub attempt_log: bool,
    /// The format of the commit metadata that delivery writes.
    pub window_format: WindowFormat,
    /// How many subscribers get their own metric series, per ranking.
    pub lag_top: usize,
    /// The process exits if a call into the Kafka client takes longer while brokers are reachable.
    pub hang_deadline: Duration,
    /// Where spans are exported to, if configured.
    pub otlp: Option<OtlpSettings>,
    /// Where the schemas of framed values are, if configured.
    pub schema_registry: Option<SchemaRegistrySettings>,
    /// Which endpoints may be reached.
    pub egress: EgressSettings,
    /// Additional trusted certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key that endpoints get that demand one, unless the subscription has its own, PEM.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Maximum size of an event, bytes; larger events are invalid.
    pub max_event_bytes: usize,
    /// Delivery threads, each with its own connections; each partition is assigned to one.
    pub workers: usize,
    /// Requests in flight per replica, over all subscriptions.
    pub max_in_flight: usize,
    /// Commands held in memory per replica, bytes.
    pub max_queued_bytes: usize,
    /// Commands held in memory per replica.
    pub max_queued_commands: usize,
    /// Circuit breaker rules for subscriptions that do not override them.
    pub breaker: BreakerRules,
    /// How long a breaker must be open before a notice says that the endpoint fails.
    pub notice_after: Duration,
    /// A subscription whose endpoint has failed for so long is disabled, if set.
    pub disable_after: Option<Duration>,
    /// The subscriber whose subscriptions get the notices about all subscribers, if set.
    pub operator_subscriber: Option<String>,
    /// Whether every endpoint must consent before it gets events.
    pub require_verification: bool,
    /// Who asks endpoints for consent.
    pub verification_origin: String,
}

/// Defaults that depend on the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The host name.
    pub host_name: String,
    /// The number of cores.
    pub cores: usize,
}

impl Settings {
    /// The retry topics, in the order of the tiers.
    #[must_use]
    pub fn retry_topics(&self) -> Vec<String> {
        let delays = self.tiers.delays().iter();
        delays.map(|&delay| self.topics.retry(delay)).collect()
    }

    /// The same settings with another connection.
    #[must_use]
    pub fn with_connection(&self, connection: Connection) -> Self {
        Self {
            brokers: connection.brokers,
            properties: connection.properties.into_iter().collect(),
            ..self.clone()
        }
    }
}

/// Span export.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpSettings {
    /// The full URL, without credentials.
    pub endpoint: String,
    /// Sampling ratio of events without a trace context.
    pub sample: f64,
}

/// A Schema Registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaRegistrySettings {
    /// The base URL, without credentials and without a slash at its end.
    pub url: String,
    /// How to authenticate, if at all.
    pub auth: Option<RegistryAuth>,
    /// Additional trusted certificate authorities, PEM; those of `Settings::ca_file` if unset.
    pub ca_file: Option<PathBuf>,
}

/// Authentication at a Schema Registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryAuth {
    /// HTTP Basic.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: SecretRef,
    },
    /// A bearer token.
    Bearer(SecretRef),
}

/// The operator's egress rules.
#[derive(Clone, Debug, Default)]
pub struct EgressSettings {
    /// Whether plain `http` URLs are allowed.
    pub allow_http: bool,
    /// Non-public networks that are allowed.
    pub allow_cidrs: Vec<IpNet>,
    /// Networks that are denied; takes precedence over `allow_cidrs`.
    pub deny_cidrs: Vec<IpNet>,
    /// Names that are allowed, whatever their addresses.
    pub allow_hosts: Vec<HostPattern>,
    /// Names that are denied; takes precedence over all that allows.
    pub deny_hosts: Vec<HostPattern>,
    /// Allowed ports; empty means any.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The proxy that all connections to endpoints go through.
    pub proxy: Option<Arc<ProxySettings>>,
}

/// A proxy for connections to endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Where it is: `http`, a host and a port.
    pub uri: http::Uri,
    /// The user, and where the password is.
    pub login: Option<(String, SecretRef)>,
    /// Whether it looks up the names of endpoints.
    pub looks_up: bool,
}

/// Names of the topics that hookstream reads and writes.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Event topics.
    pub events: Vec<String>,
    /// Prefix of hookstream's own topics, including the separator, such as `webhook-`.
    pub prefix: String,
}

impl Topics {
    /// Subscriptions; compacted, keyed by subscription id.
    #[must_use]
    pub fn subscriptions(&self) -> String {
        format!("{}subscriptions", self.prefix)
    }
    /// Commands; keyed by subscriber.
    #[must_use]
    pub fn commands(&self) -> String {
        format!("{}commands", self.prefix)
    }
    /// The retry topic of one tier.
    #[must_use]
    pub fn retry(&self, delay: Duration) -> String {
        format!("{}retry-{}", self.prefix, format_duration(delay))
    }
    /// Dead letters and the facts about them.
    #[must_use]
    pub fn dead_letters(&self) -> String {
        format!("{}dead-letters", self.prefix)
    }
    /// Notices about endpoints.
    #[must_use]
    pub fn notices(&self) -> String {
        format!("{}notices", self.prefix)
    }
    /// The topics that fan-out reads: the event topics, and the notices.
    #[must_use]
    pub fn fanned_out(&self) -> Vec<String> {
        let mut all = self.events.clone();
        all.push(self.notices());
        all
    }
    /// What delivery knows about endpoints.
    #[must_use]
    pub fn status(&self) -> String {
        format!("{}status", self.prefix)
    }
    /// The attempt log, if enabled.
    #[must_use]
    pub fn attempts(&self) -> String {
        format!("{}attempts", self.prefix)
    }
    /// Records that are not valid events.
    #[must_use]
    pub fn invalid_events(&self) -> String {
        format!("{}invalid-events", self.prefix)
    }
}
