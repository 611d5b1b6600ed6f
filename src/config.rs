//! Settings: as typed, then checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::retry::tier::Tiers;
use crate::units::format_duration;

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
    /// Commands held in memory per replica, bytes of their bodies.
    pub max_queued_bytes: usize,
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
    /// Events that could not be read.
    #[must_use]
    pub fn invalid_events(&self) -> String {
        format!("{}invalid-events", self.prefix)
    }
}
