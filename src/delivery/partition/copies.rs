//! Copies of commands that fan-out has written again: recognised by their source, and finished at once.

use super::effect::{Effect, Notice};
use super::env::{Endpoint, Subscriptions};
use super::state::{Partition, Step};
use crate::model::coverage::Kind;
use crate::model::source::Mark;
use crate::model::units::Offset;

impl<E: Endpoint> Partition<E> {
    /// Whether the window can take a record, and the coverage what its header adds.
    pub(super) fn has_room(&mut self, offset: Offset, is_marked: bool) -> bool {
        if is_marked || !self.coverage.is_empty() {
            self.window.has_room_beside(offset, &self.coverage)
        } else {
            self.window.has_room(offset)
        }
    }

    /// Whether the next record of the log, with this header, is a copy of one seen before. Called once for each record,
    /// when it is taken: a second time it would be its own copy, and lost.
    pub(super) fn is_copy<S: Subscriptions<Endpoint = E>>(
        &mut self,
        offset: Offset,
        mark: Mark,
        step: &mut Step<'_, S>,
    ) -> bool {
        let answer = self.coverage.ask(offset, &mark);
        if answer.forgotten > 0 {
            step.push(Effect::Notice(Notice::SourcesForgotten(answer.forgotten)));
        }
        match answer.kind {
            Kind::Copy => return true,
            Kind::New => {}
            Kind::NewBehindHole => {
                step.push(Effect::Notice(Notice::Hole(offset, Box::new(mark))));
            }
        }
        false
    }
}
