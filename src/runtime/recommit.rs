//! Repeats commits that an earlier, delayed commit may overwrite.
//!
//! Pure.

use std::time::{Duration, Instant};

/// How long a commit without a response may still be on its way to the broker.
const UNDER_WAY: Duration = Duration::from_secs(120);
/// How often everything is committed again until then.
const AGAIN: Duration = Duration::from_secs(1);
/// A commit that takes longer may have been sent twice: the client repeats one without a response by itself.
const SLOW: Duration = Duration::from_secs(1);

/// After a broken connection a commit may reach the broker behind later ones and overwrite them: the broker cannot tell
/// which of two commits of one generation is the later one. If nothing moves after that, the next owner would repeat
/// finished work (**Durable outcome**, **One lineage**). So everything is committed again for a while, even unchanged. The
/// next owner's generation refuses what arrives later still; so the last commit of partitions that leave is complete, too.
/// What remains is a process that dies while such a commit is under way, or within a second after it has arrived. (To join
/// the group anew after each commit without a response would close that, at the price of a rebalance for each.)
#[derive(Debug, Default)]
pub struct Recommit {
    until: Option<Instant>,
    next: Option<Instant>,
}

impl Recommit {
    /// A commit may be under way behind later ones.
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + UNDER_WAY);
    }

    /// A commit succeeded, after this time.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        if took > SLOW {
            self.begin(now);
        }
    }

    /// Whether everything is to be committed again now.
    #[must_use]
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.until.is_none_or(|until| now > until) {
            *self = Self::default();
            return false;
        }
        let due = self.next.is_none_or(|next| now >= next);
        if due {
            self.next = Some(now + AGAIN);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::{AGAIN, Recommit, SLOW, UNDER_WAY};
    use std::time::Duration;

    #[test]
    fn after_a_disturbance_all_is_committed_again_each_second_for_two_minutes() {
        let began = crate::edge::clock::instant();
        let mut recommit = Recommit::default();
        assert!(!recommit.is_due(began), "nothing has happened");
        recommit.begin(began);
        assert!(recommit.is_due(began));
        assert!(!recommit.is_due(began + Duration::from_millis(100)));
        assert!(recommit.is_due(began + AGAIN));
        assert!(recommit.is_due(began + UNDER_WAY));
        assert!(!recommit.is_due(began + UNDER_WAY + AGAIN));
    }
    #[test]
    fn a_commit_that_may_have_been_sent_twice_is_a_disturbance() {
        let now = crate::edge::clock::instant();
        let mut recommit = Recommit::default();
        recommit.answered(SLOW, now);
        assert!(!recommit.is_due(now));
        recommit.answered(SLOW * 2, now);
        assert!(recommit.is_due(now));
    }
}
