//! Which lanes of a partition are slow, while that is needed: a question to all of them.
//!
//! An event with many subscriptions makes a lane for each. So they are asked again only after a time in proportion to their
//! number; until then those that were found come in turn. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::event::LaneId;
use crate::model::units::Offset;

/// The time between two looks at all lanes, for each lane. To look at one takes some 50 ns.
const FOR_EACH: Duration = Duration::from_micros(1);

/// The slow lanes that the last look has found and that did not come since, by their first commands.
#[derive(Debug, Default)]
pub(super) struct SlowLanes {
    found: VecDeque<(Offset, LaneId)>,
    next_look: Option<Instant>,
}

impl SlowLanes {
    /// The next one that is as it was found, the one with the oldest first command first. `all` are the lanes that are
    /// slow now, with their first commands, of `count`; `first` is that of one lane, if it is slow.
    pub(super) fn next<I: Iterator<Item = (Offset, LaneId)>>(
        &mut self,
        now: Instant,
        count: usize,
        all: impl FnOnce() -> I,
        first: impl Fn(LaneId) -> Option<Offset>,
    ) -> Option<LaneId> {
        if self.next_look.is_none_or(|next| now >= next) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.next_look = Some(now + FOR_EACH * count);
            let mut found: Vec<_> = all().collect();
            found.sort_unstable();
            self.found = found.into();
        }
        while let Some((offset, id)) = self.found.pop_front() {
            if first(id) == Some(offset) {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn they_come_in_order_and_all_lanes_are_looked_at_again_only_after_a_while() {
        const COUNT: usize = 1000;
        let mut lanes: BTreeMap<LaneId, Offset> =
            (0..4).map(|id| (id, Offset(40 - id as i64))).collect();
        let mut slow = SlowLanes::default();
        let looks = Cell::new(0);
        let mut next = |lanes: &BTreeMap<LaneId, Offset>, now| {
            let all = || {
                looks.set(looks.get() + 1);
                lanes
                    .iter()
                    .map(|(&id, &first)| (first, id))
                    .collect::<Vec<_>>()
                    .into_iter()
            };
            slow.next(now, COUNT, all, |id| lanes.get(&id).copied())
        };
        let now = crate::edge::clock::instant();
        assert_eq!(next(&lanes, now), Some(3));
        // One has gone on, one is slow only now.
        lanes.insert(2, Offset(90));
        lanes.insert(7, Offset(1));
        assert_eq!(next(&lanes, now), Some(1));
        let later = now + FOR_EACH * 999;
        assert_eq!(next(&lanes, later), Some(0));
        assert_eq!(next(&lanes, later), None);
        assert_eq!(looks.get(), 1);
        let later = now + FOR_EACH * 1000;
        assert_eq!(
            next(&lanes, later),
            Some(7),
            "the one with the oldest command"
        );
        assert_eq!(looks.get(), 2);
    }
}
