//! What an attempt came to, and what follows from it for its command, its lane and its subscription.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::breaker::{Change, Sign};
use super::super::endpoint::Target;
use super::super::journal::{AttemptFacts, Entry};
use super::super::lane::{Cause as Closed, Report};
use super::super::tally::Tally;
use super::partition::{Outcome, Taken};
use super::{AttemptEnd, LaneEntry, LaneId, Ticket, Worker};
use crate::edge::clock;
use crate::edge::http::{Answer, Drained, FailureClass, Reply, Rest, RetryAfter};
use crate::model::attempt::Excerpt;
use crate::model::backoff::next_delay;
use crate::model::command::{Cause, Command};
use crate::model::dead_letter::Reason;
use crate::model::outcome::{AttemptOutcome, ParkReason};
use crate::model::outcome::{Class, Told, Verdict, judge};
use crate::model::tiers::LONGEST_PARK;

/// What is noted of an attempt that failed: its command as it was, and why there was no answer.
type Failed = (AttemptFacts, Box<Command>, Option<Box<str>>);

impl Worker {
    /// Turns what an attempt told into an outcome.
    pub(super) fn conclude(&mut self, end: AttemptEnd) {
        let AttemptEnd {
            lane,
            ticket,
            began,
            mut taken,
            target,
            permit,
            told,
            error,
            took,
            slot_follows,
        } = end;
        let (class, status) = match told {
            Told::Status { status, .. } => (Class::of_status(status), Some(status)),
            Told::Failed(class) => (class, None),
        };
        let metrics = self.around.metrics.clone();
        metrics.attempt_duration().observe(took.as_secs_f64());
        let noted = target.log.as_ref().map(|logged| AttemptFacts {
            number: taken.command.attempt.saturating_add(1),
            began,
            took,
            url: Arc::clone(&logged.url),
            status,
            class,
        });
        let open = slot_follows.then_some(ticket);
        let verdict = judge(told, &target.rules);
        let report = Report {
            permit,
            sign: sign(verdict),
            answered: !matches!(told, Told::Failed(_)),
        };
        self.count(lane, &target, class, verdict != Verdict::Delivered);
        self.learn(lane, report, class);
        if verdict == Verdict::Delivered {
            metrics.attempts(AttemptOutcome::Delivered, class).inc();
            if taken.command.attempt == 0 {
                metrics
                    .event_to_delivery()
                    .observe(clock::now().since(taken.command.enqueued).as_secs_f64());
            }
            self.is_done(taken.partition, &taken.command);
            self.settle(taken.partition, taken.offset, taken.command.weight(), None);
            if let Some(noted) = noted {
                let outcome = AttemptOutcome::Delivered;
                self.note(open, Entry::new(noted, taken.command, outcome, None));
            }
            return;
        }
        let error = match (status, error) {
            (_, Some(error)) => error.into_string(),
            (Some(status), None) => format!("the endpoint answered {status}"),
            (None, None) => String::new(),
        };
        let noted = noted.map(|noted| {
            let why = noted.status.is_none().then(|| error.as_str().into());
            (noted, taken.command.without_body(), why)
        });
        let now = clock::now();
        taken.command.attempt = taken.command.attempt.saturating_add(1);
        taken.command.first_failure.get_or_insert(now);
        tracing::debug!(
            webhook_id = %taken.command.webhook_id, subscription = %taken.command.subscription,
            trace_id = taken.command.trace_id(), attempt = taken.command.attempt, "attempt failed: {error}",
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
                    self.note_failed(open, noted, AttemptOutcome::Retry);
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
        self.note_failed(open, noted, AttemptOutcome::DeadLettered);
        self.dead_letter(taken, reason, status, error);
    }

    fn count(&mut self, lane: LaneId, target: &Target, class: Class, failed: bool) {
        if let Some(entry) = self.lanes.get_mut(&lane) {
            entry.tally.count(class, failed);
            return;
        }
        // Its subscription was deleted meanwhile.
        let mut tally = Tally::default();
        tally.count(class, failed);
        let subscriber = Arc::from(&*target.subscription.subscriber);
        self.of_gone.push((subscriber, tally));
    }

    fn note_failed(
        &mut self,
        open: Option<Ticket>,
        noted: Option<Failed>,
        outcome: AttemptOutcome,
    ) {
        if let Some((ended, command, why)) = noted {
            self.note(open, Entry::new(ended, command, outcome, why));
        }
    }

    /// Notes an attempt; one whose answer's body is still `open` waits for that.
    fn note(&mut self, open: Option<Ticket>, entry: Entry) {
        match (open, &mut self.around.notes) {
            (Some(ticket), Some(_)) => drop(self.answering.insert(ticket, entry)),
            (None, Some(notes)) => notes.add(entry),
            (_, None) => {}
        }
    }

    /// Notes an attempt whose answer's body has ended.
    pub(super) fn complete_note(&mut self, ticket: Ticket, excerpt: Excerpt) {
        // Of an attempt that was cut meanwhile there is none.
        if let (Some(mut entry), Some(notes)) =
            (self.answering.remove(&ticket), &mut self.around.notes)
        {
            entry.excerpt = Some(excerpt);
            notes.add(entry);
        }
    }

    /// At the worker's end: bodies that are still open are not waited for.
    pub(super) fn last_notes(&mut self) {
        if let Some(notes) = &mut self.around.notes {
            self.answering
                .drain()
                .for_each(|(_, entry)| notes.add(entry));
            notes.hand_over();
        }
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
            tracing::warn!(
                webhook_id = %taken.command.webhook_id, subscription = %taken.command.subscription,
                trace_id = taken.command.trace_id(), "the endpoint answered 410 Gone: the subscription is disabled",
            );
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
        if let Some((Closed::Rate, _)) = entry.lane.closed(now) {
            self.park_queue(id, ParkReason::Rate, Some(length));
        }
    }

    /// Tells a lane what became of its attempt, and does what follows from that for its breaker.
    fn learn(&mut self, id: LaneId, report: Report, class: Class) {
        let now = clock::instant();
        let chance = self.random.f64();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.last_end = Some(now);
        if report.answered {
            entry.silent = 0;
            if let Some(pause) = &mut self.pause
                && report.permit.began >= pause.since
            {
                pause.answered = true;
            }
        } else if class != Class::Egress {
            entry.silent = entry.silent.saturating_add(1);
        }
        match entry.lane.learn(report, now, chance) {
            None => {}
            Some(Change::Closed) => {
                entry.opened = None;
                tracing::info!(subscription = %entry.name, subscriber = %entry.subscriber, "the breaker is closed: the endpoint works again");
                self.show_breaker_of(id, false);
                self.make_ready(id);
            }
            Some(Change::Opened(probe_at)) => {
                entry.opened.get_or_insert(now);
                let rest = probe_at.saturating_duration_since(now);
                tracing::warn!(
                    subscription = %entry.name, subscriber = %entry.subscriber, class = class.as_str(), probe_in = ?rest,
                    "the breaker is open: the endpoint fails, its commands are parked until the next probe",
                );
                self.show_breaker_of(id, true);
                self.park_queue(id, ParkReason::Breaker, Some(rest));
            }
        }
    }

    fn show_breaker_of(&self, id: LaneId, open: bool) {
        if let Some(entry) = self.lanes.get(&id) {
            self.show_breaker(entry, open);
        }
    }

    pub(super) fn show_breaker(&self, entry: &LaneEntry, open: bool) {
        self.around
            .metrics
            .breaker_open(&entry.subscriber, &entry.name, open);
    }

    /// Parks all that a lane has queued.
    pub(super) fn park_queue(&mut self, id: LaneId, why: ParkReason, rest: Option<Duration>) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let queue: Vec<_> = entry.lane.take_queue().collect();
        let now = clock::now();
        for taken in queue {
            self.park(taken, why, rest, now);
        }
    }
}

/// What a verdict says of the endpoint. One that asks for silence tells itself when it wants the next attempt.
fn sign(verdict: Verdict) -> Sign {
    match verdict {
        Verdict::Delivered | Verdict::Permanent => Sign::Good,
        Verdict::Retry {
            silence: Some(_), ..
        }
        | Verdict::Gone
        | Verdict::EgressDenied => Sign::None,
        Verdict::Retry { silence: None, .. } => Sign::Bad,
    }
}

/// Reads the body of an answer to its end, so that its connection can be used again, and keeps its beginning for the log
/// of attempts when that is on.
pub(super) async fn read(
    rest: Rest,
    deadline: tokio::time::Instant,
    logged: Option<Rc<Target>>,
) -> Option<Excerpt> {
    let Some(shown) = logged.as_ref().and_then(|target| target.log.as_ref()) else {
        rest.drain(deadline).await;
        return None;
    };
    let (body, drained) = rest.read_snippet(deadline).await;
    Some(Excerpt::new(
        &body,
        drained == Drained::Complete,
        &shown.mask,
    ))
}

/// What a reply tells, why there was no answer, and the body that is still to come.
pub(super) fn tell(reply: Reply) -> (Told, Option<Box<str>>, Option<Rest>) {
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
                None,
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
            (Told::Failed(class), Some(failure.error.into()), None)
        }
    }
}
