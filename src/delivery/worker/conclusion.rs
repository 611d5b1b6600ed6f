//! What an attempt came to, and what follows from it for its command, its lane and its subscription.

use std::sync::Arc;
use std::time::Duration;

use super::super::endpoint::Target;
use super::super::outcome::{Class, Told, Verdict, judge};
use super::partition::{Outcome, Taken};
use super::{AttemptEnd, LaneId, Worker};
use crate::clock;
use crate::command::Cause;
use crate::dead_letter::Reason;
use crate::http::{Answer, FailureClass, Reply, Rest, RetryAfter};
use crate::metrics::{AttemptOutcome, ParkReason};
use crate::retry::schedule::next_delay;
use crate::retry::tier::LONGEST_PARK;

impl Worker {
    /// Turns what an attempt told into an outcome.
    pub(super) fn conclude(&mut self, end: AttemptEnd) {
        let AttemptEnd {
            lane,
            mut taken,
            target,
            told,
            error,
            took,
            ..
        } = end;
        let (class, status) = match told {
            Told::Status { status, .. } => (Class::of_status(status), Some(status)),
            Told::Failed(class) => (class, None),
        };
        let metrics = self.around.metrics.clone();
        metrics.attempt_duration().observe(took.as_secs_f64());
        let verdict = judge(told, &target.rules);
        if verdict == Verdict::Delivered {
            metrics.attempts(AttemptOutcome::Delivered, class).inc();
            if taken.command.attempt == 0 {
                metrics
                    .event_to_delivery()
                    .observe(clock::now().since(taken.command.enqueued).as_secs_f64());
            }
            return self.settle(taken.partition, taken.offset, taken.command.weight(), None);
        }
        let now = clock::now();
        taken.command.attempt = taken.command.attempt.saturating_add(1);
        taken.command.first_failure.get_or_insert(now);
        tracing::debug!(
            webhook_id = %taken.command.webhook_id, subscription = %taken.command.subscription,
            attempt = taken.command.attempt, "attempt failed: {error}",
        );
        let reason = match verdict {
            Verdict::Delivered => return,
            Verdict::Retry {
                retry_after,
                silence,
            } => {
                if let Some(silence) = silence {
                    self.silence(lane, silence.min(LONGEST_PARK));
                }
                let chance = self.random.f64();
                if let Some(delay) =
                    next_delay(&target.schedule, taken.command.attempt, retry_after, chance)
                {
                    metrics.attempts(AttemptOutcome::Retry, class).inc();
                    taken.command.due = Some(now + delay);
                    taken.command.cause = Cause::Retry;
                    let tier = self.around.settings.tiers.for_rest(delay);
                    return self.move_to_tier(taken, tier);
                }
                Reason::AttemptsExhausted
            }
            Verdict::Permanent => Reason::PermanentStatus,
            Verdict::EgressDenied => Reason::EgressDenied,
            Verdict::Gone => {
                self.disable(&taken, &target);
                Reason::Gone
            }
        };
        metrics.attempts(AttemptOutcome::DeadLettered, class).inc();
        self.dead_letter(taken, reason, status, error);
    }

    /// The endpoint said that it is gone for good. Only the subscription that it said so of is disabled: not one
    /// that was changed since the attempt began.
    fn disable(&mut self, taken: &Taken, target: &Target) {
        let unchanged = self
            .around
            .table
            .get(&taken.command.subscription)
            .is_some_and(|current| Arc::ptr_eq(&current, &target.subscription));
        if unchanged && let Some(partition) = self.partitions.get_mut(&taken.partition) {
            tracing::warn!(subscription = %taken.command.subscription, "the endpoint answered 410 Gone: the subscription is disabled");
            partition
                .outcomes
                .push(Outcome::Disable(taken.command.subscription.clone()));
        }
    }

    /// Leaves an endpoint alone for as long as it asked; what would wait for longer than the lane's patience is parked.
    fn silence(&mut self, id: LaneId, length: Duration) {
        let now = clock::instant();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.lane.silence(now + length);
        if entry.lane.long_silence(now).is_none() {
            return;
        }
        let queue: Vec<_> = entry.lane.take_queue().collect();
        let wall = clock::now();
        for taken in queue {
            self.park(taken, ParkReason::Rate, Some(length), wall);
        }
    }
}

/// What a reply tells, in a sentence for operators, and the body that is still to come.
pub(super) fn tell(reply: Reply) -> (Told, String, Option<Rest>) {
    match reply {
        Reply::Answered(Answer {
            status,
            retry_after,
            rest,
        }) => {
            let retry_after = retry_after.map(|after| match after {
                RetryAfter::Seconds(seconds) => Duration::from_secs(seconds),
                RetryAfter::At(at) => at.since(clock::now()),
            });
            (
                Told::Status {
                    status,
                    retry_after,
                },
                format!("the endpoint answered {status}"),
                rest,
            )
        }
        Reply::Failed(failure) => {
            let class = match failure.class {
                FailureClass::Timeout => Class::Timeout,
                FailureClass::Connect => Class::Connect,
                FailureClass::Tls => Class::Tls,
                FailureClass::Egress => Class::Egress,
                FailureClass::Other => Class::Other,
            };
            (Told::Failed(class), failure.error, None)
        }
    }
}
