//! Commands that arrive while an open breaker waits for its next probe.
//!
//! Parking takes a tier or two, of which there are few: with the default ones, what arrives five minutes before a probe
//! comes back after ten. A command that a tier would return more than [`LATE`] after the probe waits in its partition
//! instead, as the commands of a whale do ([`super::deferral`]): without an append, until the probe has ended. Then it is
//! sent; or, if the probe has failed, parked with the others, as soon as the time until the next one is that of a tier.
//!
//! It holds back the position, behind which a new owner reads everything again. So commands wait like this only in a
//! partition that is expected to read few others meanwhile ([`MOST_SPAN`]). They are parked in a busier one, and when they
//! would expire before the probe; so are those of subscriptions with order, which would hold up others in memory.
//!
//! Pure.

use std::time::{Duration, Instant};

use super::deferral::{Deferred, Wanted, When};
use super::deferring::{Around, TO_PARK};
use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::state::{LaneEntry, Partition, Step, Taken};
use crate::model::outcome::ParkReason;
use crate::model::tiers::{LONGEST_PARK, Tiers};

/// How long after a probe a parked command may come back, if it could wait in its partition.
pub(super) const LATE: Duration = Duration::from_secs(90);
/// The most offsets that are expected behind a command until the probe: they are read again in a third of a second.
const MOST_SPAN: i64 = 32_768;
/// With more behind them than this, commands do not wait any longer.
const TOO_FAR: i64 = 2 * MOST_SPAN;
/// After a failed probe they do not wait any longer than this, whatever the tiers.
const TOO_LONG: Duration = Duration::from_secs(2 * LONGEST_PARK.as_secs());
/// The most subscriptions of a partition that wait, each of which costs a pass for each probe.
const MOST_WAITING: usize = 100;
/// The command with which a lane without a candidate probes.
const A_PROBE: Wanted = Wanted {
    commands: 1,
    when: When::Now,
};
const NONE: Wanted = Wanted {
    commands: 0,
    when: When::AfterProbe,
};

/// Whether the tiers return at about `rest` what is parked for so long.
fn fits(tiers: &Tiers, rest: Duration) -> bool {
    tiers.at_least(rest) <= rest + LATE
}

impl<E> LaneEntry<E> {
    /// When its open breaker probes next; not after `now` if a probe may start, or is in flight. `None` if its commands
    /// never wait for that in their partition.
    fn next_probe(&self, now: Instant) -> Option<Instant> {
        let may_wait = self.standing.accepts() && self.held.is_none() && self.subjects.is_none();
        may_wait.then(|| self.lane.breaker_open_until(now))?
    }

    /// What it would take of these commands while its breaker is open; `None` if it is not.
    pub(super) fn wants_until_probe(&self, of: &Deferred, around: &Around<'_>) -> Option<Wanted> {
        let now = around.now;
        let rest = self.next_probe(now)?.saturating_duration_since(now);
        if rest.is_zero() && self.lane.closed(now).is_some() {
            // The probe was throttled.
            return Some(TO_PARK);
        }
        if rest.is_zero() {
            let is_idle = self.lane.queued() == 0 && self.lane.in_flight() == 0;
            return Some(if is_idle { A_PROBE } else { NONE });
        }
        // Later in a wait, they have waited for longer than they still have to.
        let has_just_opened = rest >= self.lane.probe_wait() / 2;
        let is_late = of.waits_since.is_some_and(|since| now - since > TOO_LONG);
        let parks = has_just_opened && (is_late || fits(&around.rules.tiers, rest))
            || around.window_is_full
            || around.end.0 - of.from > TOO_FAR
            || of.expire.is_some_and(|end| end <= around.wall + rest);
        Some(if parks { TO_PARK } else { NONE })
    }
}

impl<E: Endpoint> Partition<E> {
    /// Lets a command wait in its partition for the next probe of its lane, in `rest`; returns it if it is to be parked.
    pub(super) fn wait_for_probe<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        taken: Taken,
        rest: Duration,
        step: &mut Step<'_, S>,
    ) -> Option<Taken> {
        let (now, wall) = (step.env.now, step.env.wall);
        let command = &taken.command;
        let lane = self.lanes.get(&id);
        let Some(lane) = lane.filter(|lane| lane.next_probe(now).is_some()) else {
            return Some(taken);
        };
        let ends = lane.expiry.at(command.waits_since());
        let parked_for = self.time_of(command, ParkReason::Breaker, Some(rest), wall);
        let expected = self.growth.within(rest);
        let first = self.deferrals.get(&lane.name).map(|of| of.from);
        let is_one_of_few = first.is_some() || self.deferrals.subscriptions() < MOST_WAITING;
        let waits = self.rules.defers
            // A command that was read again has already waited for its probe.
            && !self.deferrals.is_routing
            && is_one_of_few
            && parked_for > rest + LATE
            && ends > wall + rest
            && expected.is_some_and(|more| more <= MOST_SPAN)
            && first.is_none_or(|first| taken.offset.0 - first <= MOST_SPAN)
            && self.deferrals.has_room(taken.offset, command.weight())
            && self.window.may_rest(&self.coverage);
        if !waits {
            return Some(taken);
        }
        let name = command.subscription.clone();
        self.defer(taken, step);
        self.deferrals.wait_for_probe(&name, ends, now);
        None
    }
}
