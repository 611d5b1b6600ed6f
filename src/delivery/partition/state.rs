//! The data of the state machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::Kind;
use super::counts::AttemptCounts;
use super::deferral::Deferrals;
use super::effect::{Effect, Effects, Notice, Outcome};
use super::env::{Endpoint, Env, Rules, Standing, Subscriptions};
use super::event::{Incoming, LaneId};
use super::fairness::Fairness;
use super::growth::Growth;
use super::health::{Held, Sides};
use super::lane::Lane;
use super::lane_status::LaneStatus;
use super::order::SubjectQueue;
use super::slow_lanes::SlowLanes;
use super::under_way::UnderWay;
use crate::model::command::Command;
use crate::model::coverage::Coverage;
use crate::model::expiry::Expiry;
pub(super) use crate::model::maps::FastMap as Map;
use crate::model::subscription::{Order, Subscription};
use crate::model::units::{EpochMs, Offset};
use crate::model::window::{Restored, Window};

/// A command whose offset is in the window.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) offset: Offset,
    pub(super) command: Box<Command>,
}

impl Taken {
    /// Gives the command its place in the order of its subject, on `cluster`.
    pub(super) fn place_in_order(&mut self, cluster: &str) {
        self.command.place_in_order(cluster, self.offset.0);
    }
}

/// A command that is due soon and waits in memory; earliest first.
#[derive(Debug)]
pub(super) struct DueSoon {
    pub(super) due: EpochMs,
    pub(super) taken: Taken,
}

impl PartialEq for DueSoon {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for DueSoon {}

impl PartialOrd for DueSoon {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DueSoon {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |one: &Self| (one.due, one.taken.offset);
        key(self).cmp(&key(other))
    }
}

/// Whether the partition starts commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intake {
    Open,
    /// Nothing more is started, but something is still in flight.
    Stopping,
    Stopped,
}

/// Whether the unfinished commands of ordered subscriptions are known.
#[derive(Debug)]
pub(super) enum Knowledge {
    /// No subscription is known to be ordered.
    NotNeeded,
    /// Requested at the next tick.
    Needed,
    /// Requested; the result is pending.
    Asked,
    /// The results for subscriptions that have no lane yet.
    Known(UnderWay),
}

/// A lane that has had commands and no backlog for this long keeps up with what it gets.
pub(super) const STEADY: Duration = Duration::from_secs(1);

/// A subscription's lane and its endpoint's state.
#[derive(Debug)]
pub(super) struct LaneEntry<E> {
    pub(super) lane: Lane<Taken>,
    /// The subscription id.
    pub(super) name: Rc<str>,
    pub(super) subscriber: Arc<str>,
    /// Attempts since the last report.
    pub(super) counts: AttemptCounts,
    /// What is known about the endpoint.
    pub(super) status: LaneStatus,
    pub(super) standing: Standing<E>,
    /// What `standing` and the lane's limits come from.
    pub(super) subscription: Arc<Subscription>,
    /// The version of the subscriptions in which `subscription` was current, and until when `standing` is valid.
    pub(super) version: u64,
    pub(super) valid_until: Option<Instant>,
    /// Whether a turn has been requested.
    pub(super) ready: bool,
    /// When a timer will request one.
    pub(super) timed: Option<Instant>,
    /// Consecutive attempts in which nothing came from the endpoint, when the last attempt ended, and when anything last
    /// came.
    pub(super) unanswered: u32,
    pub(super) last_end: Option<Instant>,
    /// When it was made, and when its last command came.
    pub(super) made: Instant,
    pub(super) last_used: Instant,
    pub(super) last_heard: Option<Instant>,
    /// Since when its commands have found it without a backlog.
    pub(super) keeps_up_since: Option<Instant>,
    /// Set while an egress outage holds the lane.
    pub(super) held: Option<Held>,
    /// Its endpoint's host, and its subscriber, as hashes.
    pub(super) sides: Sides,
    /// When the breaker opened.
    pub(super) opened: Option<Instant>,
    /// When its commands expire, and a lower bound of the times since when those that it holds have been waiting.
    pub(super) expiry: Expiry,
    pub(super) oldest: Option<EpochMs>,
    pub(super) order: Order,
    /// Set when the subscription asks for order.
    pub(super) subjects: Option<Box<SubjectQueue<Taken>>>,
}

impl<E> LaneEntry<E> {
    /// Takes note of whether a command has found the lane without a backlog. Returns whether that has been so for a while:
    /// at the begin of a backlog, every lane is empty.
    pub(super) fn keeps_up(&mut self, is_short: bool, now: Instant) -> bool {
        if !is_short {
            self.keeps_up_since = None;
            return false;
        }
        let since = *self.keeps_up_since.get_or_insert(now);
        now.saturating_duration_since(since) >= STEADY
    }

    /// Whether a command is to wait for a probe in the lane while its breaker is open. With order, none does: it would
    /// hold up those behind it in its subject, in memory.
    pub(super) fn keeps_probe(&mut self, taken: &Taken, now: Instant) -> bool {
        let kind = |taken: &Taken| Kind::of(&taken.command);
        self.subjects.is_none() && self.lane.keeps_probe(kind(taken), kind, now)
    }

    /// Takes all commands that wait for their turn in their subject.
    pub(super) fn take_waiting(&mut self) -> Vec<Taken> {
        self.subjects
            .as_mut()
            .map(|subjects| subjects.take_waiting())
            .unwrap_or_default()
    }

    /// Records that the lane holds a command that has been waiting since `since`.
    pub(super) fn holds(&mut self, since: EpochMs) {
        self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
    }

    /// Whether a command that the lane holds may have reached its maximum age; it may also have left the lane since.
    pub(super) fn may_expire(&self, wall: EpochMs) -> bool {
        self.oldest
            .is_some_and(|oldest| self.expiry.at(oldest) <= wall)
    }

    /// Takes all commands that are not in flight: queued ones, then those that wait for their turn.
    pub(super) fn take_all(&mut self) -> Vec<Taken> {
        let mut all: Vec<Taken> = self.lane.take_queue().collect();
        all.extend(self.take_waiting());
        all
    }
}

/// One ownership of a partition, from assignment to revocation.
#[derive(Debug)]
pub struct Partition<E> {
    pub(super) rules: Arc<Rules>,
    /// Offsets are open in it until their outcome is durable.
    pub(super) window: Window,
    /// Which commands of each source were seen.
    pub(super) coverage: Coverage,
    /// Offsets that have ended, and whose outcome is not durable yet.
    pub(super) unwritten: HashSet<i64>,
    /// Records that were read but not routed: their lane or the window has no room.
    pub(super) pending: VecDeque<Incoming>,
    /// Whether the first of `pending` is already in the window.
    pub(super) first_is_taken: bool,
    pub(super) stalled_since: Option<Instant>,
    pub(super) due_soon: BinaryHeap<Reverse<DueSoon>>,
    pub(super) lanes: Map<LaneId, LaneEntry<E>>,
    pub(super) by_subscription: Map<Rc<str>, LaneId>,
    pub(super) next_lane: LaneId,
    pub(super) timers: BinaryHeap<Reverse<(Instant, LaneId)>>,
    /// The earliest requested time that has not come.
    pub(super) wake_at: Option<Instant>,
    pub(super) in_flight: usize,
    pub(super) intake: Intake,
    pub(super) knowledge: Knowledge,
    /// Whether commands of unknown subscriptions were parked or ended since the last look-ahead.
    pub(super) has_strays: bool,
    /// The lanes with a subject queue: they share the memory for order.
    pub(super) ordered: usize,
    /// When the tiers were last read again for an overdue command.
    pub(super) looked_again: Option<Instant>,
    /// When they were last read again for a lane whose backlog is known only in part.
    pub(super) looked_further: Option<Instant>,
    pub(super) fairness: Fairness,
    pub(super) slow_lanes: SlowLanes,
    /// Commands that are read again when their lane has room.
    pub(super) deferrals: Deferrals,
    /// How fast records arrive.
    pub(super) growth: Growth,
    /// When to look for slow lanes that hold back the position, and for idle ones.
    pub(super) next_far: Option<Instant>,
    pub(super) next_idle: Option<Instant>,
    /// Whether lanes are forgotten soon, because there are many.
    pub(super) forgets_soon: bool,
    /// Attempts of lanes that no longer exist.
    pub(super) gone: Vec<(Arc<str>, AttemptCounts)>,
    /// Whether there is an egress outage, and whether a held lane heard from its endpoint during it.
    pub(super) outage: bool,
    pub(super) heard: bool,
    /// When to look for statuses to write, the number of the last round of successes, and the version of what former
    /// owners wrote.
    pub(super) next_statuses: Option<Instant>,
    pub(super) status_round: i64,
    pub(super) statuses_version: u64,
    /// The version of the subscriptions that all lanes know.
    pub(super) table_version: u64,
}

/// The environment of one event, and its effects.
pub(super) struct Step<'a, S: Subscriptions> {
    pub(super) env: &'a Env<'a, S>,
    pub(super) random: &'a mut fastrand::Rng,
    pub(super) effects: &'a mut Effects<S::Endpoint>,
}

impl<S: Subscriptions> Step<'_, S> {
    pub(super) fn push(&mut self, effect: Effect<S::Endpoint>) {
        self.effects.push(effect);
    }
}

impl<E: Endpoint> Partition<E> {
    /// Creates a partition whose finished offsets are those of `window`, and of whose sources nothing was seen.
    #[must_use]
    pub fn new(rules: Arc<Rules>, window: Window) -> Self {
        let coverage = Coverage::new(window.position());
        Self::restore(rules, Restored { window, coverage })
    }

    /// Creates a partition as its last owner committed it.
    #[must_use]
    pub fn restore(rules: Arc<Rules>, mut restored: Restored) -> Self {
        if rules.defers {
            restored.window.set_wide();
        }
        Self {
            rules,
            window: restored.window,
            coverage: restored.coverage,
            unwritten: HashSet::new(),
            pending: VecDeque::new(),
            first_is_taken: false,
            stalled_since: None,
            due_soon: BinaryHeap::new(),
            lanes: Map::default(),
            by_subscription: Map::default(),
            next_lane: 0,
            timers: BinaryHeap::new(),
            wake_at: None,
            in_flight: 0,
            intake: Intake::Open,
            knowledge: Knowledge::NotNeeded,
            has_strays: false,
            ordered: 0,
            looked_again: None,
            looked_further: None,
            fairness: Fairness::default(),
            slow_lanes: SlowLanes::default(),
            deferrals: Deferrals::default(),
            growth: Growth::default(),
            next_far: None,
            next_idle: None,
            forgets_soon: false,
            gone: Vec::new(),
            outage: false,
            heard: false,
            next_statuses: None,
            status_round: 0,
            statuses_version: 0,
            table_version: 0,
        }
    }

    /// The endpoint of a lane, while its commands are sent.
    #[must_use]
    pub fn endpoint(&self, lane: LaneId) -> Option<&E> {
        self.lanes.get(&lane)?.standing.endpoint()
    }

    /// Requests a turn for a lane that has something to send.
    pub(super) fn make_ready<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        if let Some(entry) = self.lanes.get_mut(&id)
            && !entry.ready
            && entry.lane.queued() > 0
        {
            entry.ready = true;
            step.push(Effect::Ready(id));
        }
    }

    /// Requests a timer, unless an earlier one is set.
    pub(super) fn wake_at<S: Subscriptions<Endpoint = E>>(
        &mut self,
        at: Instant,
        step: &mut Step<'_, S>,
    ) {
        if self.wake_at.is_none_or(|set| at < set) {
            self.wake_at = Some(at);
            step.push(Effect::WakeAt(at));
        }
    }

    /// Ends an offset. With an outcome, it stays open in the window until that is durable: the position does not pass
    /// an outcome that cannot be written, and what the window takes in always fits the commit's metadata.
    pub(super) fn settle<S: Subscriptions<Endpoint = E>>(
        &mut self,
        offset: Offset,
        weight: usize,
        outcome: Option<Outcome>,
        step: &mut Step<'_, S>,
    ) {
        match outcome {
            // It holds memory until it is durable.
            Some(outcome) => {
                let is_new = self.unwritten.insert(offset.0);
                debug_assert!(is_new, "an offset ends once");
                step.push(Effect::Write(Some(offset), outcome));
            }
            None => {
                let was_open = self.window.finish(offset);
                debug_assert!(was_open, "an offset ends once");
                step.effects.free(weight);
            }
        }
    }

    /// The outcomes of these offsets are durable.
    pub(super) fn durable<S: Subscriptions<Endpoint = E>>(
        &mut self,
        offsets: &[Offset],
        step: &mut Step<'_, S>,
    ) {
        for &offset in offsets {
            let was_unwritten = self.unwritten.remove(&offset.0);
            debug_assert!(was_unwritten, "an outcome becomes durable once");
            self.window.finish(offset);
        }
        if self.intake == Intake::Open {
            self.admit(step);
        }
    }

    pub(super) fn drained_if_idle<S: Subscriptions<Endpoint = E>>(
        &mut self,
        step: &mut Step<'_, S>,
    ) {
        if self.intake == Intake::Stopping && self.in_flight == 0 {
            self.intake = Intake::Stopped;
            step.push(Effect::Drained);
        }
    }

    /// Removes a lane: its attempts still count, and the metric series of its open breaker is removed.
    pub(super) fn forget_lane<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) -> Option<LaneEntry<E>> {
        let mut entry = self.lanes.remove(&id)?;
        self.by_subscription.remove(&entry.name);
        if let Some(counts) = entry.counts.take() {
            self.gone.push((Arc::clone(&entry.subscriber), counts));
        }
        if entry.subjects.is_some() {
            self.ordered -= 1;
        }
        if entry.opened.is_some() {
            step.push(Effect::Notice(Notice::BreakerForgotten {
                subscription: Rc::clone(&entry.name),
                subscriber: Arc::clone(&entry.subscriber),
            }));
        }
        Some(entry)
    }
}
