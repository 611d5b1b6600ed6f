//! What a lane knows about its endpoint, for operators and for the next owner of the partition: see [`Status`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::effect::{Effect, Outcome};
use super::env::{Endpoint, Standing, Subscriptions};
use super::event::LaneId;
use super::lane_status::{Due, LaneStatus};
use super::state::{LaneEntry, Partition, Step};
use crate::model::command::Command;
use crate::model::dead_letter::DeadLetterInfo;
use crate::model::notice::{Kind, Notice, is_about_notices, is_notice};
use crate::model::status::{EndpointState, News, Publishing, Refusal, Status, first_line};
use crate::model::subscription::{DisabledBecause, Subscription};
use crate::model::units::{EpochMs, Offset};

/// How often lanes are looked at for news.
const EVERY: Duration = Duration::from_secs(1);
/// Successes are written together, so often: otherwise each commit would have to write something.
const ROUND_MS: i64 = 10_000;
/// The most statuses that a partition writes at a time; the others follow, those written longest ago first.
const AT_ONCE: usize = 64;
/// The same when it leaves.
const LAST: usize = 1024;

impl<E> LaneEntry<E> {
    fn notice(&self, kind: Kind, detail: Option<&str>, wall: EpochMs) -> Notice {
        Notice {
            kind,
            subscription: (&*self.name).into(),
            subscriber: (&*self.subscriber).into(),
            at: wall,
            last_failure: self.status.last_failure.as_deref().cloned(),
            detail: detail.map(Into::into),
        }
    }

    /// The status as of now.
    fn status(&mut self, now: Instant, wall: EpochMs) -> Status {
        let until = self.lane.breaker_open_until(now);
        let state = match until {
            Some(_) => EndpointState::BreakerOpen,
            None if self.lane.is_paced() => EndpointState::Throttled,
            None => EndpointState::Active,
        };
        Status {
            subscription: (&*self.name).into(),
            subscriber: (&*self.subscriber).into(),
            at: wall,
            state,
            breaker_open_until: until.map(|at| wall + at.saturating_duration_since(now)),
            failing: self.status.failing,
            refused: self.status.refused,
            last_dead_letter: self.status.last_dead_letter,
            last_failure: self.status.last_failure.as_deref().cloned(),
            last_success: self.status.last_success,
            attempts: self.status.recent.sums(wall),
            must: false,
        }
    }
}

impl<E: Endpoint> Partition<E> {
    /// Writes a notice about a lane's endpoint, with the status that says so. There is none about a subscription that gets
    /// nothing but notices.
    fn write_notice<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        kind: Kind,
        detail: Option<&str>,
        step: &mut Step<'_, S>,
    ) {
        let (now, wall) = (step.env.now, step.env.wall);
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if is_about_notices(&entry.subscription) {
            return;
        }
        let notice = Box::new(entry.notice(kind, detail, wall));
        entry.status.publishing.done(now);
        let status = Box::new(Status {
            must: true,
            ..entry.status(now, wall)
        });
        step.push(Effect::Write(None, Outcome::Notice(notice, status)));
    }

    /// A lane's endpoint works.
    pub(super) fn works<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let failed = self
            .lanes
            .get_mut(&id)
            .and_then(|entry| entry.status.works());
        if let Some(failing) = failed.filter(|failing| failing.noticed.is_some()) {
            self.write_notice(id, Kind::Recovered(failing), None, step);
        }
    }

    /// A lane's subscription, as it was in an attempt, is disabled.
    pub(super) fn disabled<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        decided_on: &Arc<Subscription>,
        because: DisabledBecause,
        step: &mut Step<'_, S>,
    ) {
        let wall = step.env.wall;
        let entry = self.lanes.get(&id);
        let entry = entry.filter(|entry| !is_about_notices(&entry.subscription));
        let notice = entry.map(|entry| Box::new(entry.notice(Kind::Disabled(because), None, wall)));
        let outcome = Outcome::Disable(Arc::clone(decided_on), because, notice);
        step.push(Effect::Write(None, outcome));
    }

    /// A lane's command became a dead letter.
    pub(super) fn dead_letter_series<S: Subscriptions<Endpoint = E>>(
        &mut self,
        command: &Command,
        info: &DeadLetterInfo,
        step: &mut Step<'_, S>,
    ) {
        let Some(&id) = self.by_subscription.get(&*command.subscription) else {
            return;
        };
        let wall = step.env.wall;
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        // Notices never cause notices.
        let is_notice = is_notice(&command.event_type);
        if *entry.subscriber == *command.subscriber && !is_notice && entry.status.dead_letter(wall)
        {
            let kind = Kind::DeadLettersBegun(info.reason.as_str());
            self.write_notice(id, kind, Some(&first_line(&info.error)), step);
        }
    }

    /// A lane's subscription cannot be served.
    pub(super) fn refused<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        why: Refusal,
        error: &str,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if entry.status.refused.replace(why) == Some(why) {
            return;
        }
        let kind = match why {
            Refusal::Secret => Kind::SecretUnreadable,
            Refusal::Egress | Refusal::Unknown => Kind::EgressDenied,
        };
        self.write_notice(id, kind, Some(&first_line(error)), step);
    }

    /// Writes a notice if a lane's subscription cannot be served.
    pub(super) fn notice_refusal<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get(&id) else {
            return;
        };
        let (why, error) = match &entry.standing {
            Standing::Unusable(error) => (Refusal::Secret, error.clone()),
            Standing::Denied(error) => (Refusal::Egress, error.clone()),
            _ => return,
        };
        self.refused(id, why, &error, step);
    }

    /// Writes the notices that are due about endpoints that fail, and disables what has failed for too long.
    fn write_due_notices<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        let wall = step.env.wall;
        let rules = self.rules.notices;
        let lanes = self.lanes.iter();
        let due = lanes.filter_map(|(&id, entry)| Some((id, entry.status.is_due(&rules, wall)?)));
        let due: Vec<(LaneId, Due)> = due.take(AT_ONCE).collect();
        for (id, due) in due {
            let Some(entry) = self.lanes.get_mut(&id) else {
                continue;
            };
            let Some(failing) = &mut entry.status.failing else {
                continue;
            };
            match due {
                Due::Notice => {
                    failing.noticed = Some(wall);
                    let kind = Kind::Failing(*failing);
                    self.write_notice(id, kind, None, step);
                }
                Due::Disable => {
                    // Once: it begins anew if the subscription is resumed and fails again.
                    entry.status.failing = None;
                    entry.status.publishing.note(News::Change);
                    let decided_on = Arc::clone(&entry.subscription);
                    self.disabled(id, &decided_on, DisabledBecause::Failing, step);
                }
            }
        }
    }

    /// What is known about a lane's endpoint that is new to this owner.
    pub(super) fn learn_statuses<S: Subscriptions<Endpoint = E>>(&mut self, step: &Step<'_, S>) {
        let version = step.env.subscriptions.statuses_version();
        if self.statuses_version == version {
            return;
        }
        self.statuses_version = version;
        let lanes = self.lanes.values_mut();
        for entry in lanes.filter(|entry| !entry.status.is_own) {
            if let Some(before) = step
                .env
                .subscriptions
                .status(&entry.name, &entry.subscriber)
            {
                entry.status.take_over(&before);
            }
        }
    }

    /// The response to a lane's attempt began with this line.
    pub(super) fn responded(&mut self, lane: LaneId, offset: Offset, line: &str) {
        if let Some(entry) = self.lanes.get_mut(&lane) {
            entry.status.response(offset, line);
        }
    }

    /// Writes the statuses that are due.
    pub(super) fn publish_statuses<S: Subscriptions<Endpoint = E>>(
        &mut self,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        if self.next_statuses.is_some_and(|next| now < next) {
            return;
        }
        self.next_statuses = Some(now + EVERY);
        self.write_due_notices(step);
        let number = step.env.wall.0.div_euclid(ROUND_MS);
        let round = number != self.status_round;
        let is_due = |publishing: &Publishing| publishing.is_due(round, now);
        // Those that were left over keep the round open.
        if self.write_statuses(is_due, AT_ONCE, step) {
            self.status_round = number;
        }
    }

    /// Writes what is new before the partition leaves.
    pub(super) fn last_statuses<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        self.write_statuses(|publishing| publishing.has_news(), LAST, step);
    }

    /// Writes at most `most` of the statuses that are due; returns whether these were all.
    fn write_statuses<S: Subscriptions<Endpoint = E>>(
        &mut self,
        is_due: impl Fn(&Publishing) -> bool,
        most: usize,
        step: &mut Step<'_, S>,
    ) -> bool {
        let lanes = self.lanes.iter();
        let due = lanes.filter(|(_, entry)| is_due(&entry.status.publishing));
        // Lanes that were never written wait from their beginning on: those that are forgotten and made again would
        // otherwise always be the first.
        let key = |entry: &LaneEntry<E>| {
            let publishing = &entry.status.publishing;
            let since = publishing.last().unwrap_or(entry.made);
            (publishing.news() != News::Change, since)
        };
        let mut due: Vec<_> = due.map(|(&id, entry)| (key(entry), id)).collect();
        let all = due.len() <= most;
        if !all {
            due.sort_unstable();
            due.truncate(most);
        }
        let (now, wall) = (step.env.now, step.env.wall);
        for (_, id) in due {
            if let Some(entry) = self.lanes.get_mut(&id) {
                entry.status.publishing.done(now);
                let status = Box::new(entry.status(now, wall));
                step.push(Effect::Write(None, Outcome::Status(status)));
            }
        }
        all
    }
}

/// A lane's knowledge when it begins.
pub(super) fn status_of<S: Subscriptions>(
    name: &str,
    subscriber: &Arc<str>,
    step: &Step<'_, S>,
) -> LaneStatus {
    let mut status = LaneStatus::default();
    if let Some(before) = step.env.subscriptions.status(name, subscriber) {
        status.take_over(&before);
    }
    status
}
