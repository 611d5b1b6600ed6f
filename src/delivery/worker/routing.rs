//! Where a command goes when its partition has room for it: into its lane, back to a tier, or to the dead letters.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::endpoint::{self, Destination};
use super::super::lane::{Cause as Slowness, Full, Lane};
use super::super::tally::Tally;
use super::partition::{Incoming, Outcome, Taken};
use super::{Ended, LaneEntry, LaneId, Worker};
use crate::edge::clock;
use crate::model::command::{Cause, Command};
use crate::model::dead_letter::{DeadLetterInfo, Reason};
use crate::model::outcome::ParkReason;
use crate::model::tiers::LONGEST_PARK;
use crate::model::units::{EpochMs, Offset};

/// A command may come before the subscription that it is for: the two travel through different topics. Younger
/// than this, it waits for its subscription; older, its subscription is missing for good.
const SUBSCRIPTION_GRACE: Duration = Duration::from_secs(10);
/// What is due within this is waited for here; what is due later goes back to a tier.
const DUE_SOON: Duration = Duration::from_secs(2);

pub(super) fn reason(cause: Slowness) -> ParkReason {
    match cause {
        Slowness::Endpoint => ParkReason::LaneFull,
        Slowness::Rate => ParkReason::Rate,
        Slowness::Breaker => ParkReason::Breaker,
    }
}

/// What routing a command came to.
pub(super) enum Routed {
    Done,
    /// Its lane is full for the moment.
    Wait(Taken),
}

impl Worker {
    /// Moves what is pending in a partition into its window and lanes, as far as there is room.
    pub(super) fn admit(&mut self, number: i32) {
        loop {
            let Some(partition) = self.partitions.get_mut(&number) else {
                return;
            };
            let Some(first) = partition.pending.front() else {
                partition.stalled_since = None;
                partition.crowd.is_gone();
                return;
            };
            let offset = first.offset;
            if !partition.first_is_taken {
                if !partition.window.has_room(offset) {
                    if self.make_room(number) {
                        continue;
                    }
                    let Some(partition) = self.partitions.get_mut(&number) else {
                        return;
                    };
                    partition.stalled_since.get_or_insert_with(clock::instant);
                    return;
                }
                partition.first_is_taken = partition.window.take(offset);
            }
            let Some(incoming) = partition.pending.pop_front() else {
                return;
            };
            if !std::mem::take(&mut partition.first_is_taken) {
                partition.load.sub(incoming.weight());
                continue;
            }
            let waits = match incoming.content {
                Ok(command) => self.route(Taken {
                    partition: number,
                    offset,
                    command,
                }),
                Err(record) => {
                    let bytes = record.weight();
                    self.settle(number, offset, bytes, Some(Outcome::Invalid(record)));
                    Routed::Done
                }
            };
            let Some(partition) = self.partitions.get_mut(&number) else {
                return;
            };
            if let Routed::Wait(taken) = waits {
                partition.pending.push_front(Incoming {
                    offset,
                    content: Ok(taken.command),
                });
                partition.first_is_taken = true;
                partition.stalled_since.get_or_insert_with(clock::instant);
                return;
            }
            partition.stalled_since = None;
        }
    }

    /// Where a command goes whose offset is in the window.
    pub(super) fn route(&mut self, mut taken: Taken) -> Routed {
        let now = clock::now();
        if let Some(due) = taken.command.due.filter(|&due| due > now) {
            self.not_yet(taken, due.since(now));
            return Routed::Done;
        }
        let Some(id) = self.lane_of(taken.partition, &taken.command.subscription) else {
            self.subscription_missing(taken, now);
            return Routed::Done;
        };
        let Some(entry) = self.lanes.get_mut(&id) else {
            return Routed::Done;
        };
        if entry.book.is_some() {
            let cluster = self.around.cluster.as_str();
            taken.command.place_in_order(cluster, taken.offset.0);
        }
        if !matches!(entry.destination, Destination::Open(_)) {
            let closed = entry.destination.clone();
            self.turn_away(taken, &closed, now);
            return Routed::Done;
        }
        let Some(taken) = self.take_turn(id, taken, now) else {
            return Routed::Done;
        };
        let Some(entry) = self.lanes.get_mut(&id) else {
            return Routed::Done;
        };
        let instant = clock::instant();
        if let Some((cause, until)) = entry.lane.closed(instant) {
            self.park(taken, reason(cause), Some(until - instant), now);
            return Routed::Done;
        }
        let bytes = taken.command.weight();
        let spare = self
            .partitions
            .get(&taken.partition)
            .is_some_and(|partition| partition.load.has_spare());
        match entry.lane.offer(taken, bytes, spare, instant) {
            Ok(()) => {
                self.make_ready(id);
                Routed::Done
            }
            Err((taken, Full::Quick)) => {
                let crowd = self.partitions.get_mut(&taken.partition);
                if crowd.is_none_or(|partition| partition.crowd.waits(taken.offset, instant)) {
                    return Routed::Wait(taken);
                }
                let turn = entry.lane.turn(instant);
                self.park(taken, ParkReason::LaneFull, turn, now);
                Routed::Done
            }
            Err((taken, Full::Slow(cause))) => {
                let turn = entry.lane.turn(instant);
                self.park(taken, reason(cause), turn, now);
                Routed::Done
            }
        }
    }

    /// The window has no room: of the lanes that are slow, what waits longest and is not on its way goes. `false` when
    /// there is none: then those that are quick will make room soon.
    fn make_room(&mut self, number: i32) -> bool {
        let now = clock::instant();
        let Some(partition) = self.partitions.get(&number) else {
            return false;
        };
        let lanes = partition
            .lanes
            .values()
            .filter_map(|id| Some((self.lanes.get(id)?, *id)));
        let oldest = lanes
            .filter(|(entry, _)| entry.lane.slow(now).is_some())
            .filter_map(|(entry, id)| Some((entry.lane.first()?.offset, id)))
            .min();
        let Some((_, id)) = oldest else {
            return false;
        };
        let rest = self
            .lanes
            .get_mut(&id)
            .and_then(|entry| entry.lane.turn(now));
        self.park_queue(id, ParkReason::LaneFull, rest);
        true
    }

    /// A released command that is not due by this machine's clock (**Never early**).
    fn not_yet(&mut self, taken: Taken, rest: Duration) {
        if rest <= DUE_SOON {
            let ended = self.ended.clone();
            let epoch = self
                .partitions
                .get(&taken.partition)
                .map_or(0, |partition| partition.epoch);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(rest).await;
                // The worker outlives its tasks, or nobody is left to be told.
                ended.send(Ended::Due(taken, epoch)).ok();
            });
            return;
        }
        let tier = self.around.settings.tiers.for_rest(rest);
        self.move_to_tier(taken, tier);
    }

    fn subscription_missing(&mut self, taken: Taken, now: EpochMs) {
        if now.since(taken.command.enqueued) < SUBSCRIPTION_GRACE {
            self.park(taken, ParkReason::Paused, None, now);
            return;
        }
        let error = format!(
            "the subscription {} does not exist",
            taken.command.subscription
        );
        self.dead_letter(taken, Reason::SubscriptionMissing, None, error);
    }

    /// A command whose subscription does not take any now.
    fn turn_away(&mut self, taken: Taken, from: &Destination, now: EpochMs) {
        match from {
            Destination::Open(_) | Destination::Waiting => {
                self.park(taken, ParkReason::Paused, None, now)
            }
            Destination::Disabled => {
                let error = format!(
                    "the subscription {} is disabled",
                    taken.command.subscription
                );
                self.dead_letter(taken, Reason::Disabled, None, error);
            }
            Destination::Denied(error) => {
                let error = error.to_string();
                self.dead_letter(taken, Reason::EgressDenied, None, error);
            }
        }
    }

    /// Moves a command to a tier without spending an attempt: for `rest`, or in proportion to its age.
    pub(super) fn park(
        &mut self,
        mut taken: Taken,
        why: ParkReason,
        rest: Option<Duration>,
        now: EpochMs,
    ) {
        let tiers = &self.around.settings.tiers;
        let rest = rest.map_or_else(
            || tiers.park_for(now.since(taken.command.enqueued)),
            |rest| rest.min(LONGEST_PARK),
        );
        let tier = tiers.for_rest(rest);
        taken.command.due = Some(now + rest);
        taken.command.cause = Cause::Parked;
        self.around.metrics.parked(why).inc();
        self.move_to_tier(taken, tier);
    }

    pub(super) fn move_to_tier(&mut self, taken: Taken, tier: usize) {
        self.went_away(&taken);
        self.write_to_tier(taken, tier);
    }

    /// The same for one whose order knows already.
    pub(super) fn write_to_tier(&mut self, taken: Taken, tier: usize) {
        let weight = taken.command.weight();
        self.settle(
            taken.partition,
            taken.offset,
            weight,
            Some(Outcome::Tier(tier, taken.command)),
        );
    }

    pub(super) fn dead_letter(
        &mut self,
        taken: Taken,
        reason: Reason,
        status: Option<u16>,
        error: String,
    ) {
        let now = clock::now();
        let Taken {
            partition,
            offset,
            command,
        } = taken;
        let first_failure = command.first_failure.unwrap_or(now);
        let info = DeadLetterInfo {
            reason,
            status,
            error,
            first_failure,
            last_failure: now,
        };
        self.tell_dead_letter(&command, &info);
        self.is_done(partition, &command);
        let weight = command.weight();
        self.settle(
            partition,
            offset,
            weight,
            Some(Outcome::DeadLetter(command, Box::new(info))),
        );
    }

    /// One line a second: an endpoint that refuses everything must not flood the log.
    fn tell_dead_letter(&mut self, command: &Command, info: &DeadLetterInfo) {
        let Some(untold) = self.told.pass(clock::instant()) else {
            return;
        };
        tracing::warn!(
            webhook_id = %command.webhook_id, subscription = %command.subscription, subscriber = %command.subscriber,
            trace_id = command.trace_id(), reason = info.reason.as_str(), attempts = command.attempt, untold, "dead letter: {}", info.error,
        );
    }

    /// Ends an offset, with what must be durable before the position passes it.
    pub(super) fn settle(
        &mut self,
        number: i32,
        offset: Offset,
        weight: usize,
        outcome: Option<Outcome>,
    ) {
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.finish(offset);
            match outcome {
                // It weighs until it is durable.
                Some(outcome) => partition.outcomes.push(outcome),
                None => partition.load.sub(weight),
            }
        }
    }

    /// The lane of a subscription, its destination up to date; `None` when the subscription does not exist.
    fn lane_of(&mut self, number: i32, subscription: &str) -> Option<LaneId> {
        let partition = self.partitions.get_mut(&number)?;
        if let Some(&id) = partition.lanes.get(subscription) {
            return self.refresh(id).then_some(id);
        }
        let version = self.around.table.version();
        let found = self.around.table.get(subscription)?;
        let destination = Destination::of(&found, &self.around.policy, &self.around.settings);
        let id = self.next_lane;
        self.next_lane += 1;
        let limits = endpoint::limits(&found, &self.around.settings);
        let lane = Lane::new(limits, clock::instant());
        let name: Rc<str> = Rc::from(subscription);
        partition.lanes.insert(Rc::clone(&name), id);
        self.lanes.insert(
            id,
            LaneEntry {
                lane,
                partition: number,
                name,
                subscriber: Arc::from(&*found.subscriber),
                tally: Tally::default(),
                destination,
                version,
                made: clock::instant(),
                ready: false,
                timed: None,
                silent: 0,
                last_end: None,
                opened: None,
                order: found.order,
                book: None,
            },
        );
        self.keep_order(id, found.order);
        Some(id)
    }

    /// Takes a changed subscription over into its lane; `false` when it does not exist any more.
    pub(super) fn refresh(&mut self, id: LaneId) -> bool {
        let version = self.around.table.version();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return false;
        };
        let holds = match entry.destination.holds_for() {
            Some(time) => clock::instant() - entry.made < time,
            None => true,
        };
        if entry.version == version && holds {
            return true;
        }
        entry.version = version;
        entry.made = clock::instant();
        let Some(subscription) = self.around.table.get(&entry.name) else {
            self.remove_lane(id);
            return false;
        };
        entry.destination =
            Destination::of(&subscription, &self.around.policy, &self.around.settings);
        let limits = endpoint::limits(&subscription, &self.around.settings);
        entry.lane.set_limits(limits, clock::instant());
        if *entry.subscriber != *subscription.subscriber {
            // What was attempted before was the other's, and so is the series of a breaker that is open.
            self.of_gone.extend(entry.take_tally());
            let metrics = &self.around.metrics;
            metrics.breaker_open(&entry.subscriber, &entry.name, false);
            entry.subscriber = Arc::from(&*subscription.subscriber);
            if entry.opened.is_some() {
                metrics.breaker_open(&entry.subscriber, &entry.name, true);
            }
        }
        let is_open = matches!(entry.destination, Destination::Open(_));
        self.keep_order(id, subscription.order);
        if !is_open {
            self.clear_lane(id);
        }
        true
    }

    /// Sends what a lane has queued where its destination, which takes none now, says.
    pub(super) fn clear_lane(&mut self, id: LaneId) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let destination = entry.destination.clone();
        let all = entry.take_all();
        let now = clock::now();
        for taken in all {
            self.turn_away(taken, &destination, now);
        }
    }

    /// The subscription is deleted. Attempts in flight end as they may; what was queued has lost its way.
    fn remove_lane(&mut self, id: LaneId) {
        let Some(mut entry) = self.lanes.remove(&id) else {
            return;
        };
        self.of_gone.extend(entry.take_tally());
        self.count_out(entry.lane.in_flight());
        self.show_breaker(&entry, false);
        if let Some(partition) = self.partitions.get_mut(&entry.partition) {
            partition.lanes.remove(&entry.name);
        }
        let now = clock::now();
        for taken in entry.take_all() {
            self.subscription_missing(taken, now);
        }
    }
}
