//! Partitions that leave this replica, or all of them at its end. Their attempts in flight may still end, while the
//! replica goes on with the others; what has ended by the deadline is committed, and then they are given up, together
//! (see [`crate::edge::kafka::member`]).
//!
//! Pure, but for the channel on which workers report that nothing of a partition is in flight any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::edge::port::records::TopicPartition;

/// The time limit for the last commit, retries included.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Attempts are in flight, and the deadline has not passed.
    Wait,
    /// A commit, after which the partitions are given up. It is repeated while it fails.
    LastCommit {
        /// Partitions whose attempts in flight are cut by this.
        cut: usize,
    },
    /// The last commit has failed for too long: the partitions are given up without it.
    GiveUp,
}

/// Partitions that leave.
#[derive(Debug)]
pub(super) struct Drain {
    leaving: BTreeSet<i32>,
    /// Those of them with attempts in flight.
    busy: BTreeSet<i32>,
    /// What the group waits for.
    revoked: Option<Vec<TopicPartition>>,
    deadline: Instant,
    commit_until: Option<Instant>,
    /// Workers report here. A drain has its own channel, so that no report of an earlier one counts.
    idle: (UnboundedSender<i32>, UnboundedReceiver<i32>),
}

impl Drain {
    /// Of no partition yet; attempts may end until `deadline`.
    pub(super) fn new(deadline: Instant) -> Self {
        Self {
            leaving: BTreeSet::new(),
            busy: BTreeSet::new(),
            revoked: None,
            deadline,
            commit_until: None,
            idle: unbounded_channel(),
        }
    }

    /// Adds partitions, which are busy until they are reported to be idle.
    pub(super) fn add(&mut self, partitions: &[i32]) {
        self.leaving.extend(partitions);
        self.busy.extend(partitions);
        // Its snapshot has to tell of these too.
        self.commit_until = None;
    }

    /// The group waits for these partitions to be given up.
    pub(super) fn revoked(&mut self, partitions: &[TopicPartition]) {
        let revoked = self.revoked.get_or_insert_default();
        revoked.extend_from_slice(partitions);
    }

    /// These partitions are lost: nobody waits for them.
    pub(super) fn lost(&mut self, partitions: &[i32]) {
        for number in partitions {
            self.leaving.remove(number);
            self.busy.remove(number);
        }
        if let Some(revoked) = &mut self.revoked {
            revoked.retain(|at| !partitions.contains(&at.partition));
        }
        self.revoked.take_if(|revoked| revoked.is_empty());
    }

    /// All that was held of this partition is dropped, so no worker will report it: it is not waited for. Returns whether
    /// it is leaving; the group still waits for it then.
    pub(super) fn emptied(&mut self, number: i32) -> bool {
        self.busy.remove(&number);
        self.leaves(number)
    }

    /// Whether a partition is one of those that leave.
    pub(super) fn leaves(&self, number: i32) -> bool {
        self.leaving.contains(&number)
    }

    /// Attempts may end until `deadline` at least.
    pub(super) fn extend(&mut self, deadline: Instant) {
        self.deadline = self.deadline.max(deadline);
    }

    /// Where a worker reports each partition of which nothing is in flight any more.
    pub(super) fn idle(&self) -> UnboundedSender<i32> {
        self.idle.0.clone()
    }

    /// What is due at `now`.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        while let Ok(idle) = self.idle.1.try_recv() {
            self.busy.remove(&idle);
        }
        match self.commit_until {
            None if !self.busy.is_empty() && now < self.deadline => Step::Wait,
            None => {
                self.commit_until = Some(now + LAST_COMMIT);
                let cut = self.busy.len();
                Step::LastCommit { cut }
            }
            Some(until) if now < until => Step::LastCommit { cut: 0 },
            Some(_) => Step::GiveUp,
        }
    }

    /// The partitions that leave, and those of them that the group waits for, if it does.
    pub(super) fn end(self) -> (Vec<i32>, Option<Vec<TopicPartition>>) {
        (self.leaving.into_iter().collect(), self.revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(8);

    fn place(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: "a".into(),
            partition,
        }
    }

    #[test]
    fn the_last_commit_is_due_when_nothing_is_in_flight_any_more() {
        let now = crate::edge::clock::instant();
        let mut drain = Drain::new(now + DEADLINE);
        drain.add(&[1, 2]);
        assert_eq!(drain.step(now), Step::Wait);
        drain.idle().send(2).unwrap();
        drain.idle().send(7).unwrap();
        assert_eq!(drain.step(now), Step::Wait, "1 is busy");
        drain.idle().send(1).unwrap();
        assert_eq!(drain.step(now), Step::LastCommit { cut: 0 });
        let later = now + LAST_COMMIT;
        assert_eq!(
            drain.step(later - Duration::from_millis(1)),
            Step::LastCommit { cut: 0 },
            "it is repeated"
        );
        assert_eq!(drain.step(later), Step::GiveUp);
    }

    #[test]
    fn at_the_deadline_what_is_in_flight_is_cut_once() {
        let now = crate::edge::clock::instant();
        let mut drain = Drain::new(now + DEADLINE);
        drain.add(&[1, 2, 3]);
        drain.idle().send(3).unwrap();
        assert_eq!(drain.step(now), Step::Wait);
        let late = now + DEADLINE;
        assert_eq!(drain.step(late), Step::LastCommit { cut: 2 });
        assert_eq!(drain.step(late), Step::LastCommit { cut: 0 });
    }

    #[test]
    fn what_is_lost_is_neither_waited_for_nor_given_up_again() {
        let now = crate::edge::clock::instant();
        let mut drain = Drain::new(now + DEADLINE);
        let at = place(1);
        drain.add(&[1, 2]);
        drain.revoked(&[at]);
        drain.idle().send(2).unwrap();
        assert_eq!(drain.step(now), Step::Wait);
        drain.lost(&[1]);
        assert_eq!(drain.step(now), Step::LastCommit { cut: 0 });
        assert_eq!(drain.end(), (vec![2], None));
    }

    #[test]
    fn a_partition_that_starts_over_while_it_leaves_is_given_up_without_a_wait() {
        let now = crate::edge::clock::instant();
        let mut drain = Drain::new(now + DEADLINE);
        let at = place(1);
        drain.add(&[1]);
        drain.revoked(std::slice::from_ref(&at));
        assert_eq!(drain.step(now), Step::Wait);
        assert!(!drain.emptied(2), "it stays");
        assert!(drain.emptied(1));
        assert_eq!(drain.step(now), Step::LastCommit { cut: 0 });
        assert_eq!(drain.end(), (vec![1], Some(vec![at])));
    }

    #[test]
    fn without_partitions_the_group_gets_its_response_after_one_commit() {
        let now = crate::edge::clock::instant();
        let mut drain = Drain::new(now + DEADLINE);
        drain.revoked(&[]);
        assert_eq!(drain.step(now), Step::LastCommit { cut: 0 });
        assert_eq!(drain.end(), (vec![], Some(vec![])));
    }

    #[test]
    fn partitions_that_are_added_by_a_shutdown_get_their_own_time() {
        let now = crate::edge::clock::instant();
        let mut drain = Drain::new(now + DEADLINE);
        let at = place(1);
        drain.add(&[1]);
        drain.revoked(std::slice::from_ref(&at));
        drain.idle().send(1).unwrap();
        assert_eq!(drain.step(now), Step::LastCommit { cut: 0 });
        drain.extend(now + 2 * DEADLINE);
        drain.add(&[2]);
        assert_eq!(drain.step(now + DEADLINE), Step::Wait);
        drain.idle().send(2).unwrap();
        assert_eq!(drain.step(now), Step::LastCommit { cut: 0 });
        let (leaving, revoked) = drain.end();
        assert_eq!((leaving, revoked), (vec![1, 2], Some(vec![at])));
    }
}
