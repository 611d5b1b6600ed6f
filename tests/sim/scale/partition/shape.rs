//! What is played of a partition, and what was seen.

use std::time::Duration;

use hookstream::delivery::partition::env::Amount;

/// Microseconds since the begin.
pub type Us = u64;

pub const SECOND: Us = 1_000_000;

/// A partition, its subscriptions and its load.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    /// Commands a second, evenly in time.
    pub rate: f64,
    pub subscriptions: usize,
    /// The share of subscription k is 1/k^skew; 0 is the same for all.
    pub skew: f64,
    pub body: usize,
    /// Response times are log-normal: the median in ms, and the sigma of the logarithm.
    pub latency: (f64, f64),
    /// Requests in flight of the worker.
    pub requests: usize,
    /// What the partition may hold in memory.
    pub share: Amount,
    /// From the begin of a transaction until its end is known.
    pub transaction: Us,
    /// Records a second that release moves for this partition, and the time of one of its transactions.
    pub release: (f64, Us),
    /// Endpoints that are down: every so many-th subscription, between these times.
    pub outage: Option<Outage>,
    /// One subscription that gets many commands at once.
    pub whale: Option<Whale>,
    /// The end of the load.
    pub until: Us,
}

#[derive(Clone, Copy, Debug)]
pub struct Outage {
    pub every: usize,
    pub from: Us,
    pub to: Us,
    pub manner: Manner,
}

/// What endpoints do that are down.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// One half refuses connections, the other does not respond until the timeout.
    RefuseOrHang,
    /// A status.
    Status(u16),
}

#[derive(Clone, Copy, Debug)]
pub struct Whale {
    pub commands: u32,
    pub at: Us,
    pub max_in_flight: u32,
    /// The median of its response times, ms.
    pub latency: f64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub commands: u64,
    pub delivered: u64,
    pub dead: u64,
    pub attempts: u64,
    pub failed: u64,
    pub parked: u64,
    /// Records written: to tiers by delivery, to tiers by release, to commands by release; of them for what was down or is
    /// the whale.
    pub to_tier: u64,
    pub hops: u64,
    pub released: u64,
    /// Commands of subscriptions that were down, or of the whale.
    pub affected: u64,
    /// From the return, or from the whale's begin, until all of its commands from before are delivered; ms.
    pub settled: Option<Us>,
    /// From the event to the delivery, of the others: before, during, after; ms.
    pub healthy: [Quantiles; 3],
    /// The longest time for which intake waited.
    pub stalled: Duration,
    /// The longest time for which the partition was paused for lack of memory.
    pub paused: Us,
    /// Of the commit metadata, characters.
    pub window: usize,
    pub span: u64,
    /// Bytes, as the counting allocator has them.
    pub machine: usize,
    pub commands_bytes: usize,
    /// The machine before the fault, and when all was settled.
    pub machine_before: usize,
    pub machine_after: usize,
    /// The most records that waited in the tiers, in `webhook-commands`, and the most that release moved in a second.
    pub in_tiers: usize,
    pub unread: usize,
    pub moves: u64,
    pub look_aheads: u64,
    /// How long attempts in flight would have lasted, at many moments; ms.
    pub drains: Vec<i64>,
    pub drains_in_outage: Vec<i64>,
    /// Events that the machine handled.
    pub events: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Seen {
    pub fn appends(&self) -> u64 {
        self.to_tier + self.hops + self.released
    }

    /// A number that differs when anything of a run does.
    pub fn digest(&self) -> String {
        format!(
            "{} {} {} {} {} {} {} {:?} {:?} {} {} {}",
            self.commands,
            self.delivered,
            self.attempts,
            self.parked,
            self.to_tier,
            self.hops,
            self.released,
            self.settled,
            self.healthy,
            self.window,
            self.machine,
            self.events
        )
    }
}
