//! The result of an attempt, and its consequences for the command, the lane and the subscription.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::{Change, Sign};
use super::counts::AttemptCounts;
use super::effect::{Concluded, Effect, Notice, Outcome};
use super::env::{Endpoint, Standing, Subscriptions};
use super::event::{AttemptEnd, LaneId};
use super::lane::{Report, Slowness};
use super::state::{Partition, Step, Taken};
use crate::model::backoff::next_delay;
use crate::model::command::Cause;
use crate::model::dead_letter::Reason;
use crate::model::outcome::{AttemptOutcome, Class, ParkReason, Response, Verdict, judge};
use crate::model::tiers::LONGEST_PARK;

impl<E: Endpoint> Partition<E> {
    /// Turns the end of an attempt into an outcome.
    pub(super) fn conclude<S: Subscriptions<Endpoint = E>>(
        &mut self,
        end: AttemptEnd<E>,
        step: &mut Step<'_, S>,
    ) {
        let AttemptEnd {
            lane,
            offset,
            command,
            endpoint,
            permit,
            response,
            error,
            slot_follows: _,
            keep_copy,
        } = end;
        let mut taken = Taken { offset, command };
        let (class, status) = match response {
            Response::Status { status, .. } => (Class::of_status(status), Some(status)),
            Response::None(class) => (class, None),
        };
        let verdict = judge(response, &endpoint.subscription().on_status);
        let report = Report {
            permit,
            sign: sign(verdict),
            responded: status.is_some(),
        };
        self.count(lane, &endpoint, class, verdict != Verdict::Delivered);
        self.learn(lane, report, class, step);
        if verdict == Verdict::Delivered {
            self.is_done(&taken.command, step);
            self.settle(offset, taken.command.weight(), None, step);
            return step.push(Effect::Concluded(Concluded {
                outcome: AttemptOutcome::Delivered,
                class,
                command: Some(taken.command),
                error: None,
            }));
        }
        let copy = keep_copy.then(|| taken.command.without_body());
        let concluded = |outcome, error: Option<Box<str>>| {
            Effect::Concluded(Concluded {
                outcome,
                class,
                command: copy,
                error,
            })
        };
        let now = step.env.wall;
        taken.command.attempt = taken.command.attempt.saturating_add(1);
        taken.command.first_failure.get_or_insert(now);
        let reason = match verdict {
            Verdict::Delivered => return,
            Verdict::Retry { .. } | Verdict::EgressDenied => {
                // What the URL itself says is denied before any attempt: this was denied after a lookup, whose next
                // result may be another.
                let (retry_after, hold_off, last) = match verdict {
                    Verdict::Retry {
                        retry_after,
                        hold_off,
                    } => (retry_after, hold_off, Reason::AttemptsExhausted),
                    _ => (None, None, Reason::EgressDenied),
                };
                if let Some(hold_off) = hold_off {
                    self.hold_off(lane, hold_off.min(LONGEST_PARK), step);
                }
                let jitter = step.random.f64();
                let attempts = taken.command.attempt;
                if let Some(delay) = next_delay(endpoint.schedule(), attempts, retry_after, jitter)
                {
                    step.push(concluded(AttemptOutcome::Retry, error));
                    taken.command.due = Some(now + delay);
                    taken.command.cause = Cause::Retry;
                    let tier = self.rules.tiers.for_rest(delay);
                    return self.leave(taken, tier, step);
                }
                last
            }
            Verdict::Permanent => Reason::PermanentStatus,
            Verdict::Gone => {
                self.disable(lane, &endpoint, step);
                Reason::Gone
            }
        };
        let text = match (status, &error) {
            (_, Some(error)) => error.to_string(),
            (Some(status), None) => format!("the endpoint responded {status}"),
            (None, None) => String::new(),
        };
        step.push(concluded(AttemptOutcome::DeadLettered, error));
        self.dead_letter(taken, reason, status, text, step);
    }

    fn count(&mut self, lane: LaneId, endpoint: &E, class: Class, failed: bool) {
        if let Some(entry) = self.lanes.get_mut(&lane) {
            return entry.counts.count(class, failed);
        }
        // The subscription was deleted during the attempt.
        let mut counts = AttemptCounts::default();
        counts.count(class, failed);
        let subscriber = Arc::from(&*endpoint.subscription().subscriber);
        self.gone.push((subscriber, counts));
    }

    /// The endpoint is permanently gone. Disables only the subscription version that the attempt used, not one that has
    /// changed since the attempt began.
    fn disable<S: Subscriptions<Endpoint = E>>(
        &mut self,
        lane: LaneId,
        endpoint: &E,
        step: &mut Step<'_, S>,
    ) {
        if !self.refresh(lane, step) {
            return;
        }
        let decided_on = endpoint.subscription();
        let unchanged = self.lanes.get(&lane).is_some_and(|entry| {
            let Standing::Open(current) = &entry.standing else {
                return false;
            };
            Arc::ptr_eq(current.subscription(), decided_on)
        });
        if unchanged {
            let outcome = Outcome::Disable(Arc::clone(decided_on));
            step.push(Effect::Write(None, outcome));
        }
    }

    /// Holds the lane off for as long as the endpoint asked. Commands that would wait longer than the lane's patience
    /// are parked.
    fn hold_off<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        length: Duration,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.lane.hold_off(now + length);
        if let Some((Slowness::Rate, _)) = entry.lane.closed(now) {
            self.park_queue(id, ParkReason::Rate, Some(length), step);
        }
    }

    /// Reports the end of an attempt to its lane, and handles a change of the breaker.
    fn learn<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        report: Report,
        class: Class,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        let jitter = step.random.f64();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.last_end = Some(now);
        if report.responded {
            entry.unanswered = 0;
        } else if class != Class::Egress {
            entry.unanswered = entry.unanswered.saturating_add(1);
        }
        let change = entry.lane.learn(report, now, jitter);
        let names = || (Rc::clone(&entry.name), Arc::clone(&entry.subscriber));
        match change {
            None => {}
            Some(Change::Closed) => {
                let (subscription, subscriber) = names();
                entry.opened = None;
                step.push(Effect::Notice(Notice::BreakerClosed {
                    subscription,
                    subscriber,
                }));
                self.make_ready(id, step);
            }
            Some(Change::Opened(probe_at)) => {
                let (subscription, subscriber) = names();
                entry.opened.get_or_insert(now);
                step.push(Effect::Notice(Notice::BreakerOpened {
                    subscription,
                    subscriber,
                    class,
                    probe_at,
                }));
                let rest = probe_at.saturating_duration_since(now);
                self.park_queue(id, ParkReason::Breaker, Some(rest), step);
            }
        }
    }
}

/// What a verdict says about the endpoint. An endpoint that sends `Retry-After` schedules its next attempt itself.
fn sign(verdict: Verdict) -> Sign {
    match verdict {
        Verdict::Delivered | Verdict::Permanent => Sign::Good,
        Verdict::Retry {
            hold_off: Some(_), ..
        }
        | Verdict::Gone
        | Verdict::EgressDenied => Sign::None,
        Verdict::Retry { hold_off: None, .. } => Sign::Bad,
    }
}
