//! What is played of a group, and what was seen.

use crate::kafka::log::Ms;

/// The group and its members.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    pub members: usize,
    pub partitions: i32,
    /// `session.timeout.ms`, `heartbeat.interval.ms`, `max.poll.interval.ms`.
    pub session: Ms,
    pub heartbeat: Ms,
    pub poll: Ms,
    /// A request and its response, from and to.
    pub round_trip: (Ms, Ms),
    /// The leader's assignment.
    pub assign: Ms,
    /// From the assignment to the first record: committed offsets, the first fetch.
    pub take: (Ms, Ms),
    /// How long the attempts of a partition that leaves are in flight, one of these for each; at most the deadline.
    pub drains: Vec<Ms>,
    pub drain_deadline: Ms,
    /// The last commit of a drain.
    pub last_commit: (Ms, Ms),
    /// From the exit of a process until its successor joins: scheduling, start, reading the subscriptions.
    pub restart: Ms,
    /// From there until the next one is stopped (`minReadySeconds`, readiness).
    pub settle: Ms,
}

/// What happens to the group.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// All members are replaced, so many at a time; each stops on SIGTERM.
    Roll { at_a_time: usize },
    /// Every third member dies, none returns; the coordinator too if it takes this long to move.
    Zone { coordinator: Option<Ms> },
    /// One member dies; it returns after the restart time, or not at all.
    Kill { returns: bool },
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// From the fault until everything is assigned evenly, read, and the group is stable.
    pub took: Ms,
    pub generations: i32,
    /// Each pause of a partition, ms, in ascending order.
    pub pauses: Vec<Ms>,
    /// The sum of the pauses of the partition that stood longest, and the most often that one stood.
    pub longest_sum: Ms,
    pub most_often: usize,
    /// The most partitions that stood at the same time.
    pub most_standing: usize,
    /// The largest number of partitions of a member at the end.
    pub most_owned: usize,
}

impl Seen {
    /// A quantile of the pauses.
    pub fn pause(&self, share: f64) -> Ms {
        let last = self.pauses.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.pauses.get(at).copied().unwrap_or(0)
    }
}
