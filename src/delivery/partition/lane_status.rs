//! What a lane knows about its endpoint.

use std::time::Duration;

use super::env::NoticeRules;
use crate::model::outcome::Class;
use crate::model::status::{Failing, Failure, News, Publishing, Recent, Refusal, Status};
use crate::model::units::{EpochMs, Offset};

/// A series of dead letters ends after so long without one.
const SERIES: Duration = Duration::from_secs(3600);

/// What a lane knows about its endpoint.
#[derive(Debug, Default)]
pub(super) struct LaneStatus {
    /// Whether the former owner's record was looked at and taken over, or is not needed any more.
    pub(super) is_own: bool,
    pub(super) failing: Option<Failing>,
    pub(super) last_failure: Option<Box<Failure>>,
    /// The offset of the command whose attempt that was.
    failed: Option<Offset>,
    pub(super) last_success: Option<EpochMs>,
    pub(super) refused: Option<Refusal>,
    pub(super) last_dead_letter: Option<EpochMs>,
    pub(super) recent: Recent,
    pub(super) publishing: Publishing,
}

impl LaneStatus {
    /// Continues what the former owner wrote, where this one does not know better.
    pub(super) fn take_over(&mut self, before: &Status) {
        if self.is_own {
            return;
        }
        self.is_own = true;
        self.failing = self.failing.or(before.failing);
        if self.last_failure.is_none() {
            self.last_failure = before.last_failure.clone().map(Box::new);
        }
        self.last_success = self.last_success.max(before.last_success);
        self.last_dead_letter = self.last_dead_letter.max(before.last_dead_letter);
        self.refused = self.refused.or(before.refused);
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&mut self, wall: EpochMs) {
        self.last_success = Some(wall);
        self.recent.count(Class::Success, wall);
        self.publishing.note(News::Success);
    }

    /// An attempt did not succeed; `offset` is that of its command.
    pub(super) fn failed(&mut self, failure: Failure, class: Class, offset: Offset) {
        self.recent.count(class, failure.at);
        let worked = self.last_failure.as_ref().is_none_or(|last| {
            *last.class != *failure.class || self.last_success.is_some_and(|at| at >= last.at)
        });
        let news = if worked { News::Change } else { News::Failure };
        self.publishing.note(news);
        self.failed = Some(offset);
        self.last_failure = Some(Box::new(failure));
    }

    /// The response to the attempt of the command at `offset` began with this line.
    pub(super) fn response(&mut self, offset: Offset, line: &str) {
        if let Some(failure) = self.last_failure.as_mut()
            && self.failed == Some(offset)
            && !line.is_empty()
        {
            failure.error = line.into();
            self.publishing.note(News::Failure);
        }
    }

    /// The breaker opened, or a probe failed.
    pub(super) fn opened(&mut self, wall: EpochMs) {
        self.is_own = true;
        let begins = Failing {
            since: wall,
            noticed: None,
        };
        self.failing.get_or_insert(begins);
        self.publishing.note(News::Change);
    }

    /// Whether the endpoint fails, or could not be served, as far as notices say.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.failing.is_some() || self.refused.is_some()
    }

    /// The endpoint works. Returns since when it failed, if it did.
    pub(super) fn works(&mut self) -> Option<Failing> {
        self.refused = None;
        let failed = self.failing.take();
        if failed.is_some() {
            self.is_own = true;
            self.publishing.note(News::Change);
        }
        failed
    }

    /// A command became a dead letter. Returns whether a series begins with it.
    pub(super) fn dead_letter(&mut self, wall: EpochMs) -> bool {
        let begins = !self.is_in_series(wall);
        self.last_dead_letter = Some(wall);
        self.publishing.note(News::Failure);
        begins
    }

    /// Whether another dead letter would belong to a series.
    pub(super) fn is_in_series(&self, wall: EpochMs) -> bool {
        let last = self.last_dead_letter;
        last.is_some_and(|last| wall.since(last) < SERIES)
    }

    /// Whether a notice that the endpoint fails is due, and whether its subscription is to be disabled.
    pub(super) fn is_due(&self, rules: &NoticeRules, wall: EpochMs) -> Option<Due> {
        let failing = self.failing?;
        let time = wall.since(failing.since);
        if rules.disable_after.is_some_and(|after| time >= after) {
            return Some(Due::Disable);
        }
        (failing.noticed.is_none() && time >= rules.after).then_some(Due::Notice)
    }
}

/// What is due about an endpoint that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Notice,
    Disable,
}
