//! Brokers, topics and coordinators, and the timers that move them.
//!
//! Every request names the broker that it was sent to, which refuses what is not its own: `NOT_LEADER_OR_FOLLOWER`,
//! `NOT_COORDINATOR`. A broker that stops answers nothing; after [`Settings::fence_after`] the controller gives its
//! partitions and coordinators to others, without what was not replicated. Pure: the time is an argument, and all chance
//! comes from the seed.
//!
//! | module | requests |
//! |---|---|
//! | `admin` | topics: create, delete, add partitions, delete records, describe |
//! | `records` | append, fetch, ends |
//! | `coordination` | groups and transactions |
//! | `failures` | brokers that stop, start and move |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::group::{Group, Replies};
use super::log::{Log, Ms};
use super::transaction::Transaction;
use super::{Code, Node, Reply, Token, Tp};

mod admin;
mod coordination;
mod failures;
mod records;

pub use admin::{TopicConfig, TopicView};
pub use coordination::{Committed, Membership, Offset};
pub use records::Spec;

/// How the cluster behaves. Pairs are the shortest and the longest time, in ms.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number of brokers.
    pub brokers: Node,
    /// How long followers take to have a record.
    pub replication: (Ms, Ms),
    /// How long after the end of a transaction a marker is written.
    pub markers: (Ms, Ms),
    /// A broker that does not answer keeps its partitions for this long (`broker.session.timeout.ms`).
    pub fence_after: Ms,
    /// How long a broker that has started takes to be in sync again.
    pub catch_up: (Ms, Ms),
    /// How long a coordinator that has moved takes to load.
    pub load: (Ms, Ms),
    /// `offset.metadata.max.bytes`.
    pub metadata_limit: usize,
    /// `offsets.retention.minutes`.
    pub offsets_retention: Ms,
    /// `group.min.session.timeout.ms` and `group.max.session.timeout.ms`.
    pub session: (Ms, Ms),
    /// `transaction.max.timeout.ms`.
    pub longest_transaction: Ms,
    /// How often transactions are checked for their timeout.
    pub transaction_check: Ms,
    /// How often topics are checked for retention and compaction.
    pub log_check: Ms,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            brokers: 3,
            replication: (0, 3),
            markers: (0, 5),
            fence_after: 9_000,
            catch_up: (500, 3_000),
            load: (0, 500),
            metadata_limit: 4_096,
            offsets_retention: 7 * 24 * 3_600_000,
            session: (6_000, 1_800_000),
            longest_transaction: 900_000,
            transaction_check: 10_000,
            log_check: 300_000,
        }
    }
}

/// A partition.
#[derive(Debug)]
struct Partition {
    log: Log,
    replicas: Vec<Node>,
    in_sync: BTreeSet<Node>,
    leader: Option<Node>,
    /// Batches that wait until all in-sync replicas have them: by the last offset.
    waiting: BTreeMap<(i64, Token), super::log::Appended>,
    /// Clients that want to know of anything new.
    watchers: Vec<Token>,
}

/// A topic.
#[derive(Debug)]
struct Topic {
    id: u64,
    config: TopicConfig,
    partitions: Vec<Partition>,
}

/// The coordinator of some groups or transactional ids.
#[derive(Clone, Debug)]
struct Seat {
    replicas: Vec<Node>,
    leader: Option<Node>,
    /// Until then it loads.
    ready: Ms,
}

/// A coordinator's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Of groups.
    Group,
    /// Of transactional ids.
    Transaction,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Replicated(Tp, u64, i64),
    Markers(Arc<str>),
    Group(Arc<str>),
    Fence(Node, u64),
    InSync(Node, u64),
    Transactions,
    Logs,
    Offsets,
}

#[derive(Clone, Copy, Debug)]
struct Broker {
    up: bool,
    /// The controller has taken its partitions.
    fenced: bool,
    /// Counts starts and stops, so that an old timer is recognised.
    turn: u64,
}

/// How many partitions `__consumer_offsets` and `__transaction_state` have.
const SEATS: i32 = 50;

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    rng: fastrand::Rng,
    brokers: BTreeMap<Node, Broker>,
    topics: BTreeMap<Arc<str>, Topic>,
    groups: BTreeMap<Arc<str>, Group>,
    transactions: BTreeMap<Arc<str>, Transaction>,
    seats: BTreeMap<(Kind, i32), Seat>,
    timers: BTreeSet<(Ms, u64, Timer)>,
    /// The earliest timer of each group.
    group_timers: BTreeMap<Arc<str>, Ms>,
    finished: Replies,
    last: u64,
}

impl Cluster {
    /// A cluster whose brokers run.
    pub fn new(settings: Settings, seed: u64, now: Ms) -> Self {
        let running = Broker {
            up: true,
            fenced: false,
            turn: 0,
        };
        let brokers = (1..=settings.brokers).map(|node| (node, running)).collect();
        let mut cluster = Self {
            rng: fastrand::Rng::with_seed(seed),
            brokers,
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            transactions: BTreeMap::new(),
            seats: BTreeMap::new(),
            timers: BTreeSet::new(),
            group_timers: BTreeMap::new(),
            finished: Vec::new(),
            last: 0,
            settings,
        };
        for kind in [Kind::Group, Kind::Transaction] {
            for number in 0..SEATS {
                let replicas = cluster.place(number, 3);
                let seat = Seat {
                    leader: replicas.first().copied(),
                    replicas,
                    ready: now,
                };
                cluster.seats.insert((kind, number), seat);
            }
        }
        cluster.start(
            now + cluster.settings.transaction_check,
            Timer::Transactions,
        );
        cluster.start(now + cluster.settings.log_check, Timer::Logs);
        cluster.start(now + OFFSETS_CHECK, Timer::Offsets);
        cluster
    }

    /// The brokers that get a partition, its first leader first.
    fn place(&self, number: i32, replication: usize) -> Vec<Node> {
        let count = self.settings.brokers;
        let each = (0..count).map(|at| (number + at) % count + 1);
        each.take(replication.max(1)).collect()
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn token(&mut self) -> Token {
        Token(self.next())
    }

    fn between(&mut self, (least, most): (Ms, Ms)) -> Ms {
        self.rng.i64(least..=most.max(least))
    }

    fn start(&mut self, at: Ms, timer: Timer) {
        let number = self.next();
        self.timers.insert((at, number, timer));
    }

    /// When [`Cluster::advance`] has something to do next.
    pub fn next_timer(&self) -> Option<Ms> {
        self.timers.first().map(|(at, _, _)| *at)
    }

    /// Runs the timers up to `now`.
    pub fn advance(&mut self, now: Ms) {
        while self.next_timer().is_some_and(|at| at <= now) {
            if let Some((at, _, timer)) = self.timers.pop_first() {
                self.run(at, timer);
            }
        }
    }

    fn run(&mut self, now: Ms, timer: Timer) {
        match timer {
            Timer::Replicated(tp, topic, offset) => self.replicated(&tp, topic, offset),
            Timer::Markers(id) => self.write_markers(now, &id),
            Timer::Group(name) => self.tick_group(now, &name),
            Timer::Fence(node, turn) => self.fence(now, node, turn),
            Timer::InSync(node, turn) => self.in_sync(now, node, turn),
            Timer::Transactions => {
                self.expire_transactions(now);
                self.start(now + self.settings.transaction_check, Timer::Transactions);
            }
            Timer::Logs => {
                self.clean_logs(now);
                self.start(now + self.settings.log_check, Timer::Logs);
            }
            Timer::Offsets => {
                self.expire_offsets(now);
                self.start(now + OFFSETS_CHECK, Timer::Offsets);
            }
        }
    }

    /// Responses that have become known since the last call, in order.
    pub fn finished(&mut self) -> Replies {
        std::mem::take(&mut self.finished)
    }

    /// Whether a broker answers requests.
    pub fn is_up(&self, node: Node) -> bool {
        self.brokers.get(&node).is_some_and(|broker| broker.up)
    }

    /// The brokers that answer requests.
    pub fn running(&self) -> Vec<Node> {
        let each = self.brokers.iter().filter(|(_, broker)| broker.up);
        each.map(|(node, _)| *node).collect()
    }

    fn partition(&self, tp: &Tp) -> Result<&Partition, Code> {
        let at = usize::try_from(tp.partition).ok();
        let topic = self.topics.get(&tp.topic).zip(at);
        let found = topic.and_then(|(topic, at)| topic.partitions.get(at));
        found.ok_or(Code::UnknownTopicOrPartition)
    }

    fn partition_mut(&mut self, tp: &Tp) -> Result<&mut Partition, Code> {
        let at = usize::try_from(tp.partition).ok();
        let topic = self.topics.get_mut(&tp.topic).zip(at);
        let found = topic.and_then(|(topic, at)| topic.partitions.get_mut(at));
        found.ok_or(Code::UnknownTopicOrPartition)
    }

    /// The partition, if `node` leads it.
    fn led(&self, node: Node, tp: &Tp) -> Result<&Partition, Code> {
        let partition = self.partition(tp)?;
        if partition.leader != Some(node) {
            return Err(Code::NotLeaderForPartition);
        }
        Ok(partition)
    }

    /// Something that readers see has moved.
    fn moved(&mut self, tp: &Tp) {
        let Ok(partition) = self.partition_mut(tp) else {
            return;
        };
        let watchers = std::mem::take(&mut partition.watchers);
        let each = watchers.into_iter();
        let all = each.map(|token| (token, Reply::Moved(tp.clone())));
        self.finished.extend(all);
    }
}

/// How often offsets of empty groups are checked (`offsets.retention.check.interval.ms`).
const OFFSETS_CHECK: Ms = 600_000;

#[cfg(test)]
mod tests;
