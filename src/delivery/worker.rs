//! A worker: one thread that owns some partitions' windows and lanes, and sends their commands.
//!
//! Everything of a partition, its lanes, its attempts in flight and its connections, lives on one thread with a
//! single-threaded runtime, so nothing here is locked or shared, and what happens is decided one event at a time:
//! a message from the Kafka thread, the end of an attempt, or a tick. The price is that one partition cannot use
//! more than one core; partitions are what scales.

mod conclusion;
mod ordering;
mod partition;
mod routing;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::crowd::Crowd;
use super::endpoint::{Destination, Target};
use super::journal::{Entry, Notes};
use super::lane::{Lane, Next, Permit, most_alone};
use super::metrics::DeliveryMetrics;
use super::order::Book;
use super::scan::{About, Answer, Question};
use super::systemic::{Health, LATELY};
use super::tally::Tally;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::egress::EgressPolicy;
use crate::edge::failpoint;
use crate::edge::http::HttpClient;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::subscription_cache::Table;
use crate::edge::otlp::{Open, Tracer};
use crate::model::attempt::Excerpt;
use crate::model::outcome::ParkReason;
use crate::model::outcome::{Told, Verdict, judge};
use crate::model::span;
use crate::model::subscription::Order as Ordering;
use crate::model::throttle::Throttle;
use crate::model::units::EpochMs;
use crate::model::window::{Place, Window};
use conclusion::{read, tell};
use partition::{Flight, Intake, Partition, Scan, Taken};
pub(super) use partition::{Incoming, Load, Outcome, PartitionState};
use routing::Routed;

/// How long the body of an answer that is already judged may take, so that its connection can be used again.
const DRAIN: Duration = Duration::from_secs(1);
/// How often what depends on time alone is looked at.
const TICK: Duration = Duration::from_millis(100);

/// From the Kafka thread.
pub(super) enum Order {
    /// Own this partition.
    Open {
        partition: i32,
        place: Place,
        window: Window,
        load: Arc<Load>,
    },
    /// These came in for it.
    Take(i32, Vec<Incoming>),
    /// Tell the state of all partitions; what is told of outcomes is forgotten here.
    Snapshot(Sender<WorkerState>),
    /// To a partition's question, as asked in this epoch.
    Answer(i32, u64, Answer),
    /// Send nothing, since the fault is ours.
    Pause,
    /// Send one command although paused.
    Probe,
    /// Go on; whether because there was an answer.
    Resume(bool),
    /// Start nothing more in these partitions, and say so when nothing is in flight any more.
    Stop(Vec<i32>, Sender<()>),
    /// Forget these partitions, and cut what is still in flight.
    Close(Vec<i32>),
}

/// What a worker needs of its surroundings.
pub(super) struct Surroundings {
    pub(super) settings: Arc<Settings>,
    /// Whose offsets are the sequences of ordered commands.
    pub(super) cluster: ClusterId,
    pub(super) table: Arc<Table>,
    pub(super) metrics: DeliveryMetrics,
    pub(super) tracer: Tracer,
    pub(super) policy: Arc<EgressPolicy>,
    pub(super) client: HttpClient,
    /// This worker's share of the replica's requests in flight.
    pub(super) max_in_flight: usize,
    /// The log of attempts, while it is on.
    pub(super) notes: Option<Notes>,
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
                None => return worker.last_notes(),
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

/// Looked up several times for each delivery: seeded at random, and quicker than the standard library's.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What a worker tells at one moment.
#[derive(Debug)]
pub(super) struct WorkerState {
    pub(super) partitions: Vec<PartitionState>,
    pub(super) health: Health,
    /// By subscriber, which may stand there several times, since the last time.
    pub(super) attempts: Vec<(Arc<str>, Tally)>,
}

/// A pause because the fault is ours.
struct Pause {
    since: Instant,
    /// One may be sent.
    probe: bool,
    answered: bool,
}

struct LaneEntry {
    lane: Lane<Taken>,
    partition: i32,
    /// The subscription's id.
    name: Rc<str>,
    subscriber: Arc<str>,
    /// Its attempts since the last snapshot.
    tally: Tally,
    destination: Destination,
    /// The table's version at which `destination` was made, and when.
    version: u64,
    made: Instant,
    /// Whether it stands in the ready queue.
    ready: bool,
    /// When a timer will make it ready.
    timed: Option<Instant>,
    /// Attempts without an answer since the last one with one, and when an attempt last ended.
    silent: u32,
    last_end: Option<Instant>,
    /// Since when its breaker has been open.
    opened: Option<Instant>,
    order: Ordering,
    /// When the subscription asks for order.
    book: Option<Box<Book<Taken>>>,
}

impl LaneEntry {
    fn take_tally(&mut self) -> Option<(Arc<str>, Tally)> {
        let tally = self.tally.take()?;
        Some((Arc::clone(&self.subscriber), tally))
    }
}

/// The end of an attempt, or of its connection's use.
enum Ended {
    Attempt(AttemptEnd),
    /// The lane may send again: comes with the attempt's end, or later when the answer's body was still open. Of the
    /// body, what the log of attempts keeps of the attempt with this ticket.
    Slot(LaneId, Option<(Ticket, Excerpt)>),
    /// What was due soon is due, if its partition is still in this epoch.
    Due(Taken, u64),
}

/// Tells a worker's attempts apart.
type Ticket = u64;

struct AttemptEnd {
    lane: LaneId,
    ticket: Ticket,
    began: EpochMs,
    taken: Taken,
    /// As it was when the attempt began: by its rules the attempt is judged.
    target: Rc<Target>,
    permit: Permit,
    told: Told,
    /// When there was no answer.
    error: Option<Box<str>>,
    took: Duration,
    /// Whether a [`Ended::Slot`] follows.
    slot_follows: bool,
}

struct Worker {
    around: Surroundings,
    partitions: Map<i32, Partition>,
    lanes: Map<LaneId, LaneEntry>,
    next_lane: LaneId,
    ready: VecDeque<LaneId>,
    timers: BinaryHeap<Reverse<(Instant, LaneId)>>,
    in_flight: usize,
    ended: UnboundedSender<Ended>,
    epoch: u64,
    random: fastrand::Rng,
    pause: Option<Pause>,
    /// Dead letters in the log.
    told: Throttle,
    next_ticket: Ticket,
    /// Notes of attempts whose answer's body is still open: as many as have a slot at most.
    answering: Map<Ticket, Entry>,
    /// Attempts since the last snapshot of lanes that are gone.
    of_gone: Vec<(Arc<str>, Tally)>,
}

impl Worker {
    fn new(around: Surroundings, ended: UnboundedSender<Ended>) -> Self {
        Self {
            around,
            partitions: Map::default(),
            lanes: Map::default(),
            next_lane: 0,
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            in_flight: 0,
            ended,
            epoch: 0,
            random: fastrand::Rng::new(),
            pause: None,
            told: Throttle::new(Duration::from_secs(1)),
            next_ticket: 0,
            answering: Map::default(),
            of_gone: Vec::new(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open {
                partition,
                place,
                window,
                load,
            } => {
                self.close(partition);
                self.epoch += 1;
                self.partitions.insert(
                    partition,
                    Partition {
                        epoch: self.epoch,
                        place,
                        window,
                        load,
                        pending: VecDeque::new(),
                        first_is_taken: false,
                        stalled_since: None,
                        lanes: Map::default(),
                        in_flight: BTreeMap::new(),
                        outcomes: Vec::new(),
                        intake: Intake::Open,
                        scan: Scan::Unasked,
                        looked_again: None,
                        crowd: Crowd::default(),
                        questions: Vec::new(),
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
                if let Some(notes) = &mut self.around.notes {
                    notes.hand_over();
                }
                // A lane whose timer is due, or whose rate limit has a token again, waits for nothing but this turn.
                self.wake_timers();
                self.dispatch();
                let state = WorkerState {
                    partitions: self.states(),
                    health: self.health(),
                    attempts: self.attempts(),
                };
                // The Kafka thread waits for this; if it is gone, so is the process.
                reply.send(state).ok();
            }
            Order::Answer(number, epoch, answer) => {
                let partition = self.partitions.get_mut(&number);
                let Some(partition) = partition.filter(|partition| partition.epoch == epoch) else {
                    return;
                };
                match answer {
                    Answer::UnderWay(found) => self.under_way(number, found),
                    Answer::Others(last, end) => {
                        partition.crowd.learn(last, end);
                        self.admit(number);
                    }
                }
            }
            Order::Pause => {
                self.pause = Some(Pause {
                    since: clock::instant(),
                    probe: false,
                    answered: false,
                });
            }
            Order::Probe => {
                if let Some(pause) = &mut self.pause {
                    pause.probe = true;
                }
            }
            Order::Resume(answered) => self.resume(answered),
            Order::Stop(partitions, done) => self.stop(&partitions, &done),
            Order::Close(partitions) => partitions
                .into_iter()
                .for_each(|partition| self.close(partition)),
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
            // One that was followed by an earlier one has had its turn.
            if let Some(entry) = self.lanes.get_mut(&id)
                && entry.timed == Some(at)
            {
                entry.timed = None;
                self.make_ready(id);
            }
        }
    }

    /// Sends what may be sent, one command a lane in turn.
    fn dispatch(&mut self) {
        let now = clock::instant();
        while self.in_flight < self.around.max_in_flight
            && self.pause.as_ref().is_none_or(|pause| pause.probe)
        {
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
            let Destination::Open(target) = &entry.destination else {
                self.clear_lane(id);
                continue;
            };
            let target = Rc::clone(target);
            let spare = self.around.max_in_flight - self.in_flight;
            match entry.lane.next(spare, now) {
                Next::Send(taken, permit) => {
                    self.start(id, taken, target, permit);
                    if let Some(pause) = &mut self.pause {
                        pause.probe = false;
                    }
                    self.make_ready(id);
                }
                Next::At(at) if entry.timed.is_none_or(|timed| at < timed) => {
                    entry.timed = Some(at);
                    self.timers.push(Reverse((at, id)));
                }
                Next::At(_) => {}
                Next::Nothing => {}
            }
        }
    }

    fn start(&mut self, lane: LaneId, taken: Taken, target: Rc<Target>, permit: Permit) {
        let started = permit.began;
        let (number, offset) = (taken.partition, taken.offset);
        let client = self.around.client.clone();
        let ended = self.ended.clone();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let carried = taken.command.traceparent.as_deref();
        let span = self.around.tracer.of_command(carried);
        let task = tokio::task::spawn_local(async move {
            let own = span.as_ref().map(Open::traceparent);
            let traceparent = own.as_deref().or(taken.command.traceparent.as_deref());
            let began = clock::now();
            let request = target.request(&taken.command, traceparent, began);
            let deadline = tokio::time::Instant::from_std(started + target.timeout);
            let reply = client.post(request, deadline).await;
            let took = clock::instant() - started;
            let (told, error, rest) = tell(reply);
            if let Some(span) = span {
                let reply = span::Reply {
                    told,
                    error: error.as_deref(),
                    delivered: judge(told, &target.rules) == Verdict::Delivered,
                };
                let facts = span::attempt(&taken.command, &target.subscription.url, reply);
                span.end_after(took, facts);
            }
            let slot_follows = rest.is_some();
            let logged = target.log.is_some().then(|| Rc::clone(&target));
            let end = AttemptEnd {
                lane,
                ticket,
                began,
                taken,
                target,
                permit,
                told,
                error,
                took,
                slot_follows,
            };
            // The worker outlives its tasks, or nobody is left to be told.
            ended.send(Ended::Attempt(end)).ok();
            if let Some(rest) = rest {
                let deadline = deadline.min((clock::instant() + DRAIN).into());
                let excerpt = read(rest, deadline, logged).await;
                ended
                    .send(Ended::Slot(lane, excerpt.map(|excerpt| (ticket, excerpt))))
                    .ok();
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
            Ended::Attempt(end) => self.attempt_ended(end),
            Ended::Slot(lane, excerpt) => {
                if let Some((ticket, excerpt)) = excerpt {
                    self.complete_note(ticket, excerpt);
                }
                self.free_slot(lane);
            }
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
        failpoint::point("response.after");
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

    /// What time alone may have changed: a lane that was quick may hang by now, a subscription may be resumed.
    fn look_around(&mut self) {
        self.park_excess();
        // Those that found too few requests left for them.
        let waiting: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|(_, entry)| entry.lane.queued() > 0 && entry.timed.is_none())
            .map(|(&id, _)| id)
            .collect();
        waiting.into_iter().for_each(|id| self.make_ready(id));
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

    /// If the fault was ours, as an answer shows, what it did to breakers does not count.
    fn resume(&mut self, answered: bool) {
        self.pause = None;
        let now = clock::instant();
        let all: Vec<LaneId> = self.lanes.keys().copied().collect();
        for id in all {
            if let Some(entry) = self.lanes.get_mut(&id) {
                entry.silent = 0;
                entry.last_end = None;
                if answered {
                    entry.lane.probe_soon(now);
                }
            }
            self.make_ready(id);
        }
    }

    fn park_excess(&mut self) {
        let now = clock::instant();
        let mut excess = Vec::new();
        for entry in self.lanes.values_mut() {
            for taken in entry.lane.take_excess(now) {
                excess.push((taken, entry.lane.turn(now)));
            }
        }
        let wall = clock::now();
        for (taken, turn) in excess {
            self.park(taken, ParkReason::LaneFull, turn, wall);
        }
    }

    fn health(&self) -> Health {
        /// One attempt without an answer may be chance.
        const SILENT: u32 = 2;
        let now = clock::instant();
        let lately = |at: Instant| now.saturating_duration_since(at) < LATELY;
        // An endpoint that its breaker has known to be down for longer says nothing new.
        let active = self
            .lanes
            .values()
            .filter(|entry| entry.last_end.is_some_and(lately) && entry.opened.is_none_or(lately));
        let mut health = Health {
            answered: self.pause.as_ref().is_some_and(|pause| pause.answered),
            can_probe: self.in_flight > 0 || !self.ready.is_empty(),
            ..Health::default()
        };
        for entry in active {
            health.active += 1;
            health.failing += usize::from(entry.silent >= SILENT);
        }
        health
    }

    /// What was attempted since the last time.
    fn attempts(&mut self) -> Vec<(Arc<str>, Tally)> {
        let mut all = std::mem::take(&mut self.of_gone);
        all.extend(self.lanes.values_mut().filter_map(LaneEntry::take_tally));
        all
    }

    /// Has read ahead what has to be known.
    fn ask(&mut self) {
        let now = clock::instant();
        for (&number, partition) in &mut self.partitions {
            let mut about = Vec::new();
            if matches!(partition.scan, Scan::Wanted) {
                partition.scan = Scan::Running;
                about.push(About::UnderWay(partition.window.position()));
            }
            if let Some(first) = partition.pending.front()
                && let Some(from) = partition.crowd.ask(first.offset, now)
            {
                let lanes = partition.lanes.values().filter_map(|id| self.lanes.get(id));
                let full = lanes
                    .filter(|entry| entry.lane.is_backlogged())
                    .map(|entry| Box::from(&*entry.name))
                    .collect();
                about.push(About::Others(from, full));
            }
            partition
                .questions
                .extend(about.into_iter().map(|about| Question {
                    partition: number,
                    epoch: partition.epoch,
                    about,
                }));
        }
    }

    /// By partition, the queued commands that only the shortage of this worker holds up. What has come in and is not
    /// routed is none of them: a partition admits all that it was given before it reports, up to the first command that
    /// its own lane, or the window, has no room for.
    fn runnable(&self, now: Instant) -> Map<i32, usize> {
        let mut runnable = Map::default();
        if self.pause.is_some() {
            return runnable;
        }
        let most = most_alone(self.around.max_in_flight);
        for entry in self.lanes.values() {
            if entry.lane.queued() > 0 && matches!(entry.destination, Destination::Open(_)) {
                *runnable.entry(entry.partition).or_default() += entry.lane.runnable(most, now);
            }
        }
        runnable
    }

    fn states(&mut self) -> Vec<PartitionState> {
        self.ask();
        let now = clock::instant();
        let runnable = self.runnable(now);
        let format = self.around.settings.window_format;
        self.partitions
            .iter_mut()
            .map(|(&number, partition)| PartitionState {
                partition: number,
                snapshot: partition.window.snapshot(partition.place, format),
                outcomes: std::mem::take(&mut partition.outcomes),
                span: partition.window.span(),
                questions: std::mem::take(&mut partition.questions),
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
                runnable: runnable.get(&number).copied().unwrap_or_default(),
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
                for taken in entry.take_all() {
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
            if let Some(mut entry) = self.lanes.remove(id) {
                self.of_gone.extend(entry.take_tally());
                self.count_out(entry.lane.in_flight());
                self.show_breaker(&entry, false);
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
