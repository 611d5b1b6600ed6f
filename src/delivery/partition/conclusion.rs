//! The result of an attempt, and its consequences for the command, the lane and the subscription.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::{Change, Kind, Sign};
use super::counts::AttemptCounts;
use super::effect::{Concluded, Effect, Notice};
use super::env::{Endpoint, Standing, Subscriptions};
use super::event::{AttemptEnd, LaneId};
use super::lane::{End, Report, Slowness};
use super::parking::reason;
use super::state::{Intake, Partition, Step, Taken};
use crate::model::backoff::{RETRY_AFTER_CAP, next_delay};
use crate::model::command::{Cause, LastFailure};
use crate::model::dead_letter::Reason;
use crate::model::notice;
use crate::model::outcome::{AttemptOutcome, Class, ParkReason, Response, Verdict, judge};
use crate::model::status::{Failure, Refusal};
use crate::model::subscription::DisabledBecause;

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
            heard,
            slot_follows: _,
            keep_copy,
        } = end;
        let mut taken = Taken { offset, command };
        let (class, status) = (response.class(), response.status());
        let verdict = judge(response, &endpoint.subscription().overrides.on_status);
        let report = Report {
            permit,
            kind: Kind::of(&taken.command),
            sign: sign(verdict, response),
            end: match (verdict, response) {
                (Verdict::Throttled { retry_after }, _) => End::Throttled(retry_after),
                (_, Response::None(_)) => End::NoResponse,
                (_, Response::Status { .. } | Response::Unprocessed) => End::Responded,
            },
        };
        self.count(lane, &endpoint, class, verdict != Verdict::Delivered);
        let is_notice = notice::is_notice(&taken.command.event_type);
        self.learn(lane, report, class, is_notice, step);
        // Of what was not processed, the endpoint itself may have said so, or a proxy.
        if heard || matches!(response, Response::Status { .. }) {
            self.heard_from(lane, step);
        } else if class != Class::Egress {
            self.not_heard_from(lane, step);
        }
        if verdict == Verdict::Delivered {
            if let Some(entry) = self.lanes.get_mut(&lane) {
                entry.status.succeeded(step.env.wall);
            }
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
        let text = match (status, &error) {
            (_, Some(error)) => error.to_string(),
            (Some(status), None) => format!("the endpoint responded {status}"),
            (None, None) => String::new(),
        };
        if let Some(entry) = self.lanes.get_mut(&lane) {
            let failure = Failure::new(now, class, status, &text, &taken.command.webhook_id);
            entry.status.failed(failure, class, offset);
        }
        if verdict == Verdict::EgressDenied {
            self.refused(lane, Refusal::Egress, &text, step);
        }
        if let Verdict::Throttled { retry_after } = verdict {
            let last = LastFailure::new(now, status, &text);
            taken.command.last_failure = Some(Box::new(last));
            if let Some(limit) = self.has_expired(&taken.command, step) {
                step.push(concluded(AttemptOutcome::DeadLettered, error));
                return self.expire(taken, limit, step);
            }
            step.push(concluded(AttemptOutcome::Throttled, error));
            return self.send_again(lane, taken, retry_after, step);
        }
        taken.command.attempt = taken.command.attempt.saturating_add(1);
        taken.command.first_failure.get_or_insert(now);
        let reason = match verdict {
            Verdict::Delivered | Verdict::Throttled { .. } => return,
            Verdict::Retry { .. } | Verdict::EgressDenied => {
                // What the URL itself says is denied before any attempt: this was denied after a lookup, whose next
                // result may be another.
                let (retry_after, last) = match verdict {
                    Verdict::Retry { retry_after } => (retry_after, Reason::AttemptsExhausted),
                    _ => (None, Reason::EgressDenied),
                };
                let jitter = step.random.f64();
                let attempts = taken.command.attempt;
                if let Some(delay) = next_delay(endpoint.schedule(), attempts, retry_after, jitter)
                {
                    let last = LastFailure::new(now, status, &text);
                    taken.command.last_failure = Some(Box::new(last));
                    if let Some(limit) = self.has_expired(&taken.command, step) {
                        step.push(concluded(AttemptOutcome::DeadLettered, error));
                        return self.expire(taken, limit, step);
                    }
                    step.push(concluded(AttemptOutcome::Retry, error));
                    taken.command.cause = Cause::Retry;
                    return self.wait_in_tier(taken, now + delay, None, step);
                }
                last
            }
            Verdict::Permanent => Reason::PermanentStatus,
            Verdict::Gone => {
                self.disable(lane, &endpoint, step);
                Reason::Gone
            }
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
            self.disabled(lane, decided_on, DisabledBecause::Gone, step);
        }
    }

    /// Sends a throttled command that has not expired again, as the same attempt: it returns to the front of its lane, or waits in a tier
    /// with the lane's whole queue when the pause is longer than the lane's patience.
    fn send_again<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        taken: Taken,
        retry_after: Option<Duration>,
        step: &mut Step<'_, S>,
    ) {
        if self.intake != Intake::Open {
            // It stays unfinished: the next owner reads it again.
            return step.effects.free(taken.command.weight());
        }
        let is_known = self.lanes.contains_key(&id) && self.refresh(id, step);
        let Some(entry) = self.lanes.get_mut(&id).filter(|_| is_known) else {
            // The subscription was deleted during the attempt, and perhaps created again.
            if let Some(taken) = self.route(taken, step) {
                self.park(taken, ParkReason::LaneFull, None, step);
            }
            return;
        };
        if !matches!(entry.standing, Standing::Open(_)) {
            let (standing, expiry) = (entry.standing.clone(), entry.expiry);
            return self.turn_away(taken, &standing, expiry, step);
        }
        let now = step.env.now;
        let Some((cause, until)) = entry.lane.closed(now) else {
            let (offset, weight) = (taken.offset, taken.command.weight());
            let is_later = |other: &Taken| other.offset > offset;
            entry.holds(taken.command.waits_since());
            entry.lane.put_back(taken, weight, is_later);
            return self.make_ready(id, step);
        };
        if cause == Slowness::Breaker && entry.keeps_probe(&taken, now) {
            let weight = taken.command.weight();
            entry.holds(taken.command.waits_since());
            entry.lane.push(taken, weight, now);
            return self.make_ready(id, step);
        }
        let rest = until - now;
        let own = retry_after.unwrap_or_default().min(RETRY_AFTER_CAP);
        let (why, wall) = (reason(cause), step.env.wall);
        let time = self.time_of(&taken.command, why, Some(rest), wall);
        self.wait_in_tier(taken, wall + time.max(own), Some(why), step);
        if cause != Slowness::Breaker {
            self.park_queue(id, reason(cause), Some(rest), step);
        }
    }

    /// Reports the end of an attempt to its lane, and handles a change of the breaker.
    fn learn<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        report: Report,
        class: Class,
        is_notice: bool,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        let jitter = step.random.f64();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.last_end = Some(now);
        let change = entry.lane.learn(report, now, jitter);
        // Notices never cause notices: an endpoint does not fail because of them.
        if matches!(change, Some(Change::Opened(_))) && !is_notice {
            entry.status.opened(step.env.wall);
        }
        let works = report.sign == Sign::Good
            && entry.status.is_in_trouble()
            && entry.lane.breaker_open_until(now).is_none();
        let is_paced = entry.lane.is_paced();
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
                let was_open = entry.opened.is_some();
                entry.opened.get_or_insert(now);
                // Probes of a held lane fail every few seconds.
                if !was_open || entry.held.is_none() {
                    step.push(Effect::Notice(Notice::BreakerOpened {
                        subscription,
                        subscriber,
                        class,
                        probe_at,
                    }));
                }
                let rest = probe_at.saturating_duration_since(now);
                self.park_all_but_probes(id, rest, step);
            }
        }
        if works {
            self.works(id, step);
        }
        if is_paced {
            // A request on trial may have ended, and others may follow.
            self.make_ready(id, step);
        }
    }
}

/// What an attempt says about the endpoint. A 429 says nothing: the endpoint works, but not for this pace.
fn sign(verdict: Verdict, response: Response) -> Sign {
    match (verdict, response) {
        (Verdict::Delivered | Verdict::Permanent, _) => Sign::Good,
        (Verdict::Gone | Verdict::EgressDenied, _) => Sign::None,
        (_, Response::Status { status: 429, .. } | Response::Unprocessed) => Sign::None,
        (_, Response::None(Class::Connect | Class::Tls)) => Sign::Unreachable,
        (_, Response::Status { .. } | Response::None(_)) => Sign::Bad,
    }
}
