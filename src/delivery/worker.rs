//! A worker: one thread that owns some partitions' windows and lanes, and sends their commands.
//!
//! Everything of a partition, its lanes, its attempts in flight and its connections, lives on one thread with a
//! single-threaded runtime, so nothing here is locked or shared, and what happens is decided one event at a time:
//! a message from the Kafka thread, the end of an attempt, or a tick. The price is that one partition cannot use
//! more than one core; partitions are what scales.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use super::endpoint::{self, Destination, Target};
use super::lane::{Cause as Slowness, Full, Lane, Next};
use super::outcome::{Class, Told, Verdict, judge};
use super::window::{Snapshot, Window};
use crate::clock;
use crate::command::{Cause, Command};
use crate::config::Settings;
use crate::dead_letter::{DeadLetterInfo, Reason};
use crate::egress::EgressPolicy;
use crate::http::{Answer, FailureClass, HttpClient, Reply, Rest, RetryAfter};
use crate::kafka::InvalidRecord;
use crate::kafka::table::Table;
use crate::metrics::{AttemptOutcome, Metrics, ParkReason};
use crate::retry::schedule::next_delay;
use crate::retry::tier::LONGEST_PARK;
use crate::units::{EpochMs, Offset};

/// A command may come before the subscription that it is for: the two travel through different topics. Younger
/// than this, it waits for its subscription; older, its subscription is missing for good.
const SUBSCRIPTION_GRACE: Duration = Duration::from_secs(10);
/// What is due within this is waited for here; what is due later goes back to a tier.
const DUE_SOON: Duration = Duration::from_secs(2);
/// How long the body of an answer that is already judged may take, so that its connection can be used again.
const DRAIN: Duration = Duration::from_secs(1);
/// How often what depends on time alone is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What the Kafka thread has handed over and is not done: how full a partition's part of memory is.
#[derive(Debug, Default)]
pub(super) struct Load {
    bytes: AtomicUsize,
    commands: AtomicUsize,
}

impl Load {
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.commands.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }
}

/// A record on its way into a window.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) offset: Offset,
    pub(super) content: Result<Box<Command>, Box<InvalidRecord>>,
}

impl Incoming {
    pub(super) fn weight(&self) -> usize {
        match &self.content {
            Ok(command) => command.weight(),
            Err(record) => record.weight(),
        }
    }
}

/// What must become durable before the position passes its command.
#[derive(Debug)]
pub(super) enum Outcome {
    /// To the tier of this index.
    Tier(usize, Box<Command>),
    DeadLetter(Box<Command>, Box<DeadLetterInfo>),
    Invalid(Box<InvalidRecord>),
    /// Disable this subscription: its endpoint is gone.
    Disable(Box<str>),
}

/// A partition at one moment: with `outcomes` durable, `snapshot` may be committed.
#[derive(Debug)]
pub(super) struct PartitionState {
    pub(super) partition: i32,
    pub(super) snapshot: Snapshot,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) span: u64,
    /// How long the partition's intake has been waiting for room.
    pub(super) stalled: Duration,
    /// The age of the oldest attempt in flight.
    pub(super) oldest: Duration,
}

/// From the Kafka thread.
pub(super) enum Order {
    /// Own this partition.
    Open {
        partition: i32,
        window: Window,
        load: Arc<Load>,
    },
    /// These came in for it.
    Take(i32, Vec<Incoming>),
    /// Tell the state of all partitions; what is told of outcomes is forgotten here.
    Snapshot(Sender<Vec<PartitionState>>),
    /// Start nothing more in these partitions, and say so when nothing is in flight any more.
    Stop(Vec<i32>, Sender<()>),
    /// Forget these partitions, and cut what is still in flight.
    Close(Vec<i32>),
}

/// What a worker needs of its surroundings.
pub(super) struct Surroundings {
    pub(super) settings: Arc<Settings>,
    pub(super) table: Arc<Table>,
    pub(super) metrics: Metrics,
    pub(super) policy: Arc<EgressPolicy>,
    pub(super) client: HttpClient,
    /// This worker's share of the replica's requests in flight.
    pub(super) max_in_flight: usize,
}

/// Runs until the other end of `orders` is dropped.
pub(super) async fn run(surroundings: Surroundings, mut orders: UnboundedReceiver<Order>) {
    let (ended_in, mut ended) = unbounded_channel();
    let mut worker = Worker::new(surroundings, ended_in);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let timer = worker.next_timer();
        tokio::select! {
            biased;
            Some(event) = ended.recv() => {
                worker.apply(event);
                // Whatever has ended meanwhile belongs to the same turn: one pass over the lanes serves all.
                while let Ok(event) = ended.try_recv() {
                    worker.apply(event);
                }
            }
            order = orders.recv() => match order {
                Some(order) => worker.obey(order),
                None => return,
            },
            () = sleep_until(timer), if timer.is_some() => {}
            _ = tick.tick() => worker.look_around(),
        }
        worker.wake_timers();
        worker.dispatch();
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

type LaneId = u64;

/// A command whose offset is in its partition's window.
#[derive(Debug)]
struct Taken {
    partition: i32,
    offset: Offset,
    command: Box<Command>,
}

struct LaneEntry {
    lane: Lane<Taken>,
    partition: i32,
    /// The subscription's id.
    name: Rc<str>,
    destination: Destination,
    /// The table's version at which `destination` was made, and when.
    version: u64,
    made: Instant,
    /// Whether it stands in the ready queue.
    ready: bool,
    /// Whether a timer will make it ready.
    timed: bool,
}

struct Flight {
    lane: LaneId,
    abort: AbortHandle,
    started: Instant,
}

/// Whether a partition's commands are started.
enum Intake {
    Open,
    /// No more; this is told when nothing is in flight.
    Stopping(Sender<()>),
    Stopped,
}

struct Partition {
    /// Tells one ownership of the partition from the next (**Owner only**).
    epoch: u64,
    window: Window,
    load: Arc<Load>,
    pending: VecDeque<Incoming>,
    /// Whether the first of `pending` is in the window already.
    first_is_taken: bool,
    stalled_since: Option<Instant>,
    lanes: HashMap<Rc<str>, LaneId>,
    in_flight: BTreeMap<Offset, Flight>,
    outcomes: Vec<Outcome>,
    intake: Intake,
}

impl Partition {
    fn finish(&mut self, offset: Offset, weight: usize) {
        let was_open = self.window.finish(offset);
        debug_assert!(was_open, "an offset ends once");
        self.load.sub(weight);
    }

    fn is_open(&self) -> bool {
        matches!(self.intake, Intake::Open)
    }

    fn stopped_if_idle(&mut self) {
        if self.in_flight.is_empty()
            && let Intake::Stopping(done) = &self.intake
        {
            // The Kafka thread may have given up waiting; then nobody needs to know.
            done.send(()).ok();
            self.intake = Intake::Stopped;
        }
    }
}

/// The end of an attempt, or of its connection's use.
enum Ended {
    Attempt(Box<AttemptEnd>),
    /// The lane may send again: comes with the attempt's end, or later when the answer's body was still open.
    Slot(LaneId),
    /// What was due soon is due, if its partition is still in this epoch.
    Due(Taken, u64),
}

struct AttemptEnd {
    lane: LaneId,
    taken: Taken,
    /// As it was when the attempt began: by its rules the attempt is judged.
    target: Rc<Target>,
    told: Told,
    error: String,
    took: Duration,
    /// Whether a [`Ended::Slot`] follows.
    slot_follows: bool,
}

/// What routing a command came to.
enum Routed {
    Done,
    /// Its lane is full for the moment.
    Wait(Taken),
}

struct Worker {
    around: Surroundings,
    partitions: HashMap<i32, Partition>,
    lanes: HashMap<LaneId, LaneEntry>,
    next_lane: LaneId,
    ready: VecDeque<LaneId>,
    timers: BinaryHeap<Reverse<(Instant, LaneId)>>,
    in_flight: usize,
    ended: UnboundedSender<Ended>,
    epoch: u64,
    random: fastrand::Rng,
}

impl Worker {
    fn new(around: Surroundings, ended: UnboundedSender<Ended>) -> Self {
        Self {
            around,
            partitions: HashMap::new(),
            lanes: HashMap::new(),
            next_lane: 0,
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            in_flight: 0,
            ended,
            epoch: 0,
            random: fastrand::Rng::new(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open {
                partition,
                window,
                load,
            } => {
                self.close(partition);
                self.epoch += 1;
                self.partitions.insert(
                    partition,
                    Partition {
                        epoch: self.epoch,
                        window,
                        load,
                        pending: VecDeque::new(),
                        first_is_taken: false,
                        stalled_since: None,
                        lanes: HashMap::new(),
                        in_flight: BTreeMap::new(),
                        outcomes: Vec::new(),
                        intake: Intake::Open,
                    },
                );
            }
            Order::Take(number, incoming) => {
                if let Some(partition) = self.partitions.get_mut(&number)
                    && partition.is_open()
                {
                    partition.pending.extend(incoming);
                    self.admit(number);
                }
            }
            Order::Snapshot(reply) => {
                let states = self.states();
                // The Kafka thread waits for this; if it is gone, so is the process.
                reply.send(states).ok();
            }
            Order::Stop(partitions, done) => self.stop(&partitions, &done),
            Order::Close(partitions) => partitions
                .into_iter()
                .for_each(|partition| self.close(partition)),
        }
    }

    /// Moves what is pending in a partition into its window and lanes, as far as there is room.
    fn admit(&mut self, number: i32) {
        loop {
            let Some(partition) = self.partitions.get_mut(&number) else {
                return;
            };
            let Some(first) = partition.pending.front() else {
                partition.stalled_since = None;
                return;
            };
            let offset = first.offset;
            if !partition.first_is_taken {
                if !partition.window.has_room(offset) {
                    partition.stalled_since.get_or_insert_with(clock::instant);
                    return;
                }
                partition.first_is_taken = partition.window.take(offset);
            }
            let Some(incoming) = partition.pending.pop_front() else {
                return;
            };
            let taken = std::mem::take(&mut partition.first_is_taken);
            partition.stalled_since = None;
            if !taken {
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
            if let Routed::Wait(taken) = waits
                && let Some(partition) = self.partitions.get_mut(&number)
            {
                partition.pending.push_front(Incoming {
                    offset,
                    content: Ok(taken.command),
                });
                partition.first_is_taken = true;
                partition.stalled_since.get_or_insert_with(clock::instant);
                return;
            }
        }
    }

    /// Where a command goes whose offset is in the window.
    fn route(&mut self, taken: Taken) -> Routed {
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
        if !matches!(entry.destination, Destination::Open(_)) {
            let closed = entry.destination.clone();
            self.turn_away(taken, &closed, now);
            return Routed::Done;
        }
        let instant = clock::instant();
        if let Some(until) = entry.lane.long_silence(instant) {
            self.park(taken, ParkReason::Rate, Some(until - instant), now);
            return Routed::Done;
        }
        let bytes = taken.command.weight();
        match entry.lane.offer(taken, bytes, instant) {
            Ok(()) => {
                self.make_ready(id);
                Routed::Done
            }
            Err((taken, Full::Quick)) => Routed::Wait(taken),
            Err((taken, Full::Slow(slowness))) => {
                let why = match slowness {
                    Slowness::Endpoint => ParkReason::LaneFull,
                    Slowness::Rate => ParkReason::Rate,
                };
                self.park(taken, why, None, now);
                Routed::Done
            }
        }
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
    fn park(&mut self, mut taken: Taken, why: ParkReason, rest: Option<Duration>, now: EpochMs) {
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

    fn move_to_tier(&mut self, taken: Taken, tier: usize) {
        let weight = taken.command.weight();
        self.settle(
            taken.partition,
            taken.offset,
            weight,
            Some(Outcome::Tier(tier, taken.command)),
        );
    }

    fn dead_letter(&mut self, taken: Taken, reason: Reason, status: Option<u16>, error: String) {
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
        tracing::warn!(
            webhook_id = %command.webhook_id, subscription = %command.subscription, subscriber = %command.subscriber,
            reason = reason.as_str(), attempts = command.attempt, "dead letter: {}", info.error,
        );
        let weight = command.weight();
        self.settle(
            partition,
            offset,
            weight,
            Some(Outcome::DeadLetter(command, Box::new(info))),
        );
    }

    /// Ends an offset, with what must be durable before the position passes it.
    fn settle(&mut self, number: i32, offset: Offset, weight: usize, outcome: Option<Outcome>) {
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.outcomes.extend(outcome);
            partition.finish(offset, weight);
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
        let lane = Lane::new(endpoint::limits(&found), clock::instant());
        let name: Rc<str> = Rc::from(subscription);
        partition.lanes.insert(Rc::clone(&name), id);
        self.lanes.insert(
            id,
            LaneEntry {
                lane,
                partition: number,
                name,
                destination,
                version,
                made: clock::instant(),
                ready: false,
                timed: false,
            },
        );
        Some(id)
    }

    /// Takes a changed subscription over into its lane; `false` when it does not exist any more.
    fn refresh(&mut self, id: LaneId) -> bool {
        let version = self.around.table.version();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return false;
        };
        let now = clock::instant();
        if entry.version == version && now - entry.made < entry.destination.holds_for() {
            return true;
        }
        entry.version = version;
        entry.made = now;
        let Some(subscription) = self.around.table.get(&entry.name) else {
            self.remove_lane(id);
            return false;
        };
        entry.destination =
            Destination::of(&subscription, &self.around.policy, &self.around.settings);
        entry
            .lane
            .set_limits(endpoint::limits(&subscription), clock::instant());
        if !matches!(entry.destination, Destination::Open(_)) {
            self.clear_lane(id);
        }
        true
    }

    /// Sends what a lane has queued where its destination, which takes none now, says.
    fn clear_lane(&mut self, id: LaneId) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let destination = entry.destination.clone();
        let queue: Vec<_> = entry.lane.take_queue().collect();
        let now = clock::now();
        for taken in queue {
            self.turn_away(taken, &destination, now);
        }
    }

    /// The subscription is deleted. Attempts in flight end as they may; what was queued has lost its way.
    fn remove_lane(&mut self, id: LaneId) {
        let Some(mut entry) = self.lanes.remove(&id) else {
            return;
        };
        self.count_out(entry.lane.in_flight());
        if let Some(partition) = self.partitions.get_mut(&entry.partition) {
            partition.lanes.remove(&entry.name);
        }
        let now = clock::now();
        for taken in entry.lane.take_queue().collect::<Vec<_>>() {
            self.subscription_missing(taken, now);
        }
    }

    fn make_ready(&mut self, id: LaneId) {
        if let Some(entry) = self.lanes.get_mut(&id)
            && !entry.ready
        {
            entry.ready = true;
            self.ready.push_back(id);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn wake_timers(&mut self) {
        let now = clock::instant();
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            if let Some(entry) = self.lanes.get_mut(&id) {
                entry.timed = false;
            }
            self.make_ready(id);
        }
    }

    /// Sends what may be sent, one command a lane in turn.
    fn dispatch(&mut self) {
        let now = clock::instant();
        while self.in_flight < self.around.max_in_flight {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            if let Some(entry) = self.lanes.get_mut(&id) {
                entry.ready = false;
            }
            if !self.refresh(id) {
                continue;
            }
            let Some(entry) = self.lanes.get_mut(&id) else {
                continue;
            };
            match entry.lane.next(now) {
                Next::Send(taken) => {
                    if let Destination::Open(target) = &entry.destination {
                        let target = Rc::clone(target);
                        self.start(id, taken, target, now);
                    }
                    self.make_ready(id);
                }
                Next::At(at) if !entry.timed => {
                    entry.timed = true;
                    self.timers.push(Reverse((at, id)));
                }
                Next::At(_) => {}
                Next::Nothing => {}
            }
        }
    }

    fn start(&mut self, lane: LaneId, taken: Taken, target: Rc<Target>, started: Instant) {
        let (number, offset) = (taken.partition, taken.offset);
        let client = self.around.client.clone();
        let ended = self.ended.clone();
        let task = tokio::task::spawn_local(async move {
            let request = target.request(&taken.command, clock::now());
            let deadline = tokio::time::Instant::from_std(started + target.timeout);
            let reply = client.post(request, deadline).await;
            let took = clock::instant() - started;
            let (told, error, rest) = tell(reply);
            let slot_follows = rest.is_some();
            let end = AttemptEnd {
                lane,
                taken,
                target,
                told,
                error,
                took,
                slot_follows,
            };
            // The worker outlives its tasks, or nobody is left to be told.
            ended.send(Ended::Attempt(Box::new(end))).ok();
            if let Some(rest) = rest {
                rest.drain(deadline.min((clock::instant() + DRAIN).into()))
                    .await;
                ended.send(Ended::Slot(lane)).ok();
            }
        });
        self.in_flight += 1;
        self.around.metrics.in_flight().inc();
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.in_flight.insert(
                offset,
                Flight {
                    lane,
                    abort: task.abort_handle(),
                    started,
                },
            );
        }
    }

    fn apply(&mut self, event: Ended) {
        match event {
            Ended::Attempt(end) => self.attempt_ended(*end),
            Ended::Slot(lane) => self.free_slot(lane),
            Ended::Due(taken, epoch) => {
                let ours = self
                    .partitions
                    .get(&taken.partition)
                    .is_some_and(|partition| partition.epoch == epoch && partition.is_open());
                if ours && let Routed::Wait(taken) = self.route(taken) {
                    self.park(taken, ParkReason::LaneFull, None, clock::now());
                }
            }
        }
    }

    fn free_slot(&mut self, id: LaneId) {
        // Of a lane that is gone, the slots went with it.
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.lane.ended(clock::instant());
        let number = entry.partition;
        self.count_out(1);
        self.make_ready(id);
        self.admit(number);
    }

    fn attempt_ended(&mut self, end: AttemptEnd) {
        let (lane, number, slot_follows) = (end.lane, end.taken.partition, end.slot_follows);
        let partition = self.partitions.get_mut(&number);
        let flight = partition.and_then(|partition| {
            let ours = partition
                .in_flight
                .get(&end.taken.offset)
                .is_some_and(|flight| flight.lane == lane);
            if ours {
                partition.in_flight.remove(&end.taken.offset)
            } else {
                None
            }
        });
        // Of a partition that was closed meanwhile there is no flight: its next owner does the work (**Owner only**).
        if flight.is_some() {
            self.conclude(end);
        }
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.stopped_if_idle();
        }
        if !slot_follows {
            self.free_slot(lane);
        }
    }

    /// Turns what an attempt told into an outcome.
    fn conclude(&mut self, end: AttemptEnd) {
        let AttemptEnd {
            lane,
            mut taken,
            target,
            told,
            error,
            took,
            ..
        } = end;
        let (class, status) = match told {
            Told::Status { status, .. } => (Class::of_status(status), Some(status)),
            Told::Failed(class) => (class, None),
        };
        let metrics = self.around.metrics.clone();
        metrics.attempt_duration().observe(took.as_secs_f64());
        let verdict = judge(told, &target.rules);
        if verdict == Verdict::Delivered {
            metrics.attempts(AttemptOutcome::Delivered, class).inc();
            if taken.command.attempt == 0 {
                metrics
                    .event_to_delivery()
                    .observe(clock::now().since(taken.command.enqueued).as_secs_f64());
            }
            return self.settle(taken.partition, taken.offset, taken.command.weight(), None);
        }
        let now = clock::now();
        taken.command.attempt = taken.command.attempt.saturating_add(1);
        taken.command.first_failure.get_or_insert(now);
        tracing::debug!(
            webhook_id = %taken.command.webhook_id, subscription = %taken.command.subscription,
            attempt = taken.command.attempt, "attempt failed: {error}",
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
        self.dead_letter(taken, reason, status, error);
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
            tracing::warn!(subscription = %taken.command.subscription, "the endpoint answered 410 Gone: the subscription is disabled");
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
        if entry.lane.long_silence(now).is_none() {
            return;
        }
        let queue: Vec<_> = entry.lane.take_queue().collect();
        let wall = clock::now();
        for taken in queue {
            self.park(taken, ParkReason::Rate, Some(length), wall);
        }
    }

    /// What time alone may have changed: a lane that was quick may hang by now, a subscription may be resumed.
    fn look_around(&mut self) {
        let waiting: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, partition)| !partition.pending.is_empty())
            .map(|(&number, _)| number)
            .collect();
        for number in waiting {
            self.admit(number);
        }
    }

    fn states(&mut self) -> Vec<PartitionState> {
        let now = clock::instant();
        let topic = self.around.settings.topics.commands();
        self.partitions
            .iter_mut()
            .map(|(&number, partition)| PartitionState {
                partition: number,
                snapshot: partition.window.snapshot(&topic, number),
                outcomes: std::mem::take(&mut partition.outcomes),
                span: partition.window.span(),
                stalled: partition
                    .stalled_since
                    .map(|since| now - since)
                    .unwrap_or_default(),
                oldest: partition
                    .in_flight
                    .values()
                    .map(|flight| now - flight.started)
                    .max()
                    .unwrap_or_default(),
            })
            .collect()
    }

    fn stop(&mut self, numbers: &[i32], done: &Sender<()>) {
        for number in numbers {
            let Some(partition) = self.partitions.get_mut(number) else {
                continue;
            };
            partition.intake = Intake::Stopping(done.clone());
            for incoming in partition.pending.drain(..) {
                partition.load.sub(incoming.weight());
            }
            partition.first_is_taken = false;
            for id in partition.lanes.values() {
                let Some(entry) = self.lanes.get_mut(id) else {
                    continue;
                };
                for taken in entry.lane.take_queue() {
                    partition.load.sub(taken.command.weight());
                }
            }
            partition.stopped_if_idle();
        }
    }

    fn close(&mut self, number: i32) {
        let Some(partition) = self.partitions.remove(&number) else {
            return;
        };
        for flight in partition.in_flight.values() {
            flight.abort.abort();
        }
        for id in partition.lanes.values() {
            if let Some(entry) = self.lanes.remove(id) {
                self.count_out(entry.lane.in_flight());
            }
        }
    }

    fn count_out(&mut self, slots: usize) {
        debug_assert!(
            self.in_flight >= slots,
            "every slot is counted in before it is counted out"
        );
        self.in_flight = self.in_flight.saturating_sub(slots);
        self.around
            .metrics
            .in_flight()
            .sub(i64::try_from(slots).unwrap_or(0));
    }
}

/// What a reply tells, in a sentence for operators, and the body that is still to come.
fn tell(reply: Reply) -> (Told, String, Option<Rest>) {
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
                format!("the endpoint answered {status}"),
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
            (Told::Failed(class), failure.error, None)
        }
    }
}
