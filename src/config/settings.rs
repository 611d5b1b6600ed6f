//! Settings, checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::credentials::Credentials;
use super::files::Connection;
use crate::model::breaker_rules::BreakerRules;
use crate::model::tiers::Tiers;
use crate::model::units::format_duration;
use crate::model::window::Format as WindowFormat;

/// How the work of one event or attempt becomes visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Transactions: from event to command, and from attempt to retry or dead letter.
    ExactlyOnce,
    /// For brokers without transactions: a crash may write a command, retry or dead letter twice.
    AtLeastOnce,
}

/// Every setting, checked. Built once at start; see the table of settings for units, defaults and ranges.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bootstrap servers, `host:port`, comma separated.
    pub brokers: String,
    /// librdkafka properties given with `-X`, in order.
    pub properties: Vec<(String, String)>,
    /// What of the brokers and properties may change while the process runs; shared by all clones.
    pub credentials: Credentials,
    /// Names of all topics.
    pub topics: Topics,
    /// Prefix of all consumer groups.
    pub group_prefix: String,
    /// What a crash may do.
    pub guarantee: Guarantee,
    /// Unique and stable per replica; names the transactional ids.
    pub instance: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub http_listen: SocketAddr,
    /// Retry tiers.
    pub tiers: Tiers,
    /// Delays after the first, second, … failed attempt, before jitter.
    pub retry_schedule: Vec<Duration>,
    /// One deadline over connect, headers and body of an attempt.
    pub timeout: Duration,
    /// For attempts in flight at shutdown and revocation.
    pub drain_deadline: Duration,
    /// Whether each attempt is recorded in the log of attempts.
    pub attempt_log: bool,
    /// The format of the commit metadata that delivery writes.
    pub window_format: WindowFormat,
    /// How many subscribers get series of their own, by each rank.
    pub lag_top: usize,
    /// A call into the Kafka client that takes longer, though brokers answer, ends the process.
    pub hang_deadline: Duration,
    /// Where spans go, if anywhere.
    pub otlp: Option<OtlpSettings>,
    /// What endpoints may be reached.
    pub egress: EgressSettings,
    /// Further trusted certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Larger events are invalid, bytes.
    pub max_event_bytes: usize,
    /// Threads that send, each with its own connections; a partition belongs to one.
    pub workers: usize,
    /// Requests in flight per replica, over all subscriptions.
    pub max_in_flight: usize,
    /// Commands held in memory per replica, bytes.
    pub max_queued_bytes: usize,
    /// Commands held in memory per replica.
    pub max_queued_commands: usize,
    /// When to stop sending to an endpoint, where its subscription does not say.
    pub breaker: BreakerRules,
}

/// What the machine says: defaults that no table can hold.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub host_name: String,
    /// Its cores.
    pub cores: usize,
}

impl Settings {
    /// The same with another way to the brokers.
    #[must_use]
    pub fn with_connection(&self, connection: Connection) -> Self {
        Self {
            brokers: connection.brokers,
            properties: connection.properties.into_iter().collect(),
            ..self.clone()
        }
    }
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpSettings {
    /// The whole URL, without credentials.
    pub endpoint: String,
    /// Of the events that come without a trace, the share that begins one.
    pub sample: f64,
}

/// Egress rules as set by the operator.
#[derive(Clone, Debug, Default)]
pub struct EgressSettings {
    /// Plain `http` URLs are allowed too.
    pub allow_http: bool,
    /// Networks that are allowed although they are not public.
    pub allow_cidrs: Vec<IpNet>,
    /// Networks that are denied although they are public; wins over `allow_cidrs`.
    pub deny_cidrs: Vec<IpNet>,
    /// Ports that may be dialled; empty means any.
    pub ports: Vec<u16>,
}

/// Names of the topics that hookstream reads and writes.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Event topics.
    pub events: Vec<String>,
    /// Prefix of all own topics, with its separator, as in `webhook-`.
    pub prefix: String,
}

impl Topics {
    /// Compacted; key is the subscription's id.
    #[must_use]
    pub fn subscriptions(&self) -> String {
        format!("{}subscriptions", self.prefix)
    }
    /// Keyed by subscriber.
    #[must_use]
    pub fn commands(&self) -> String {
        format!("{}commands", self.prefix)
    }
    /// Of one tier.
    #[must_use]
    pub fn retry(&self, delay: Duration) -> String {
        format!("{}retry-{}", self.prefix, format_duration(delay))
    }
    /// The log of facts.
    #[must_use]
    pub fn dead_letters(&self) -> String {
        format!("{}dead-letters", self.prefix)
    }
    /// The log of attempts, if it is on.
    #[must_use]
    pub fn attempts(&self) -> String {
        format!("{}attempts", self.prefix)
    }
    /// Events that could not be read.
    #[must_use]
    pub fn invalid_events(&self) -> String {
        format!("{}invalid-events", self.prefix)
    }
}
