//! One partition in virtual time: the product's own state machine (`delivery::partition`), with a worker of its own, and
//! around it, simply: the records of `webhook-commands`, the retry tiers and release, commits, endpoints.
//!
//! A partition at scale is alike another one: what differs is its seed. So a few are played instead of a thousand.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use hookstream::config::Settings;
use hookstream::delivery::partition::Partition;
use hookstream::delivery::partition::deferral::{Collector, Found, Pass};
use hookstream::delivery::partition::effect::{Attempt, Effect, Effects, Outcome, Question};
use hookstream::delivery::partition::env::{Amount, Env, Memory, NoticeRules, ORDER_BYTES, Rules};
use hookstream::delivery::partition::event::{AttemptEnd, Event, Incoming, LaneId, LookAhead};
use hookstream::delivery::partition::fairness::{Others, Search};
use hookstream::delivery::partition::lane::Limits;
use hookstream::model::command::{Cause, Command, ContentType};
use hookstream::model::expiry::default_max_age;
use hookstream::model::outcome::{AttemptOutcome, Class, Response};
use hookstream::model::subscription::{Order, Subscription, parse};
use hookstream::model::units::{EpochMs, Offset, Position};
use hookstream::model::window::{Format, Window};

use super::memory::{Kind, live, within};

mod release;
mod shape;
mod table;

pub use shape::{Manner, Outage, Quantiles, SECOND, Seen, Shape, Us, Whale};
use table::{Peer, Record, Table, command, number};
pub use table::{cache, subscription};

const MS: Us = 1_000;
const EPOCH: i64 = 1_700_000_000_000;
/// As in the delivery role.
const TICK: Us = 100 * MS;
const TURN: usize = 512;
/// Where fan-out flushes a batch.
const BATCH: Us = 50 * MS;
/// A look-ahead: its client starts, and then reads so many records a second.
const LOOK_AHEAD: Us = 50 * MS;
const LOOK_AHEAD_RATE: u64 = 100_000;

enum Step {
    Arrivals,
    Ended(usize),
    Tick,
    Wake,
    /// The transaction with these outcomes has ended.
    Committed(Vec<Offset>, Vec<(usize, Record)>),
    Release,
    Released(Vec<(Option<usize>, Record)>),
    LookedAhead(Others),
    ReadAgain(Box<Found>),
    Whale,
}

struct Flight {
    end: AttemptEnd<Peer>,
    until: Us,
}

struct World<'a> {
    shape: &'a Shape,
    settings: &'a Settings,
    table: Table,
    machine: Partition<Peer>,
    effects: Effects<Peer>,
    random: fastrand::Rng,
    /// Of the load and the endpoints, apart from the machine's.
    chance: fastrand::Rng,
    base: Instant,
    now: Us,
    queue: BinaryHeap<Reverse<(Us, u64)>>,
    steps: HashMap<u64, Step>,
    next: u64,
    /// `webhook-commands` from what was read on, by offset.
    log: VecDeque<(i64, Record)>,
    end: i64,
    /// What lies from the committed position on, for look-aheads and to be read again.
    records: VecDeque<(i64, Record)>,
    tiers: Vec<VecDeque<(EpochMs, Record)>>,
    in_tiers: usize,
    paused_since: Option<Us>,
    bytes: usize,
    held: usize,
    ready: VecDeque<LaneId>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    in_flight: usize,
    outcomes: Vec<(Option<Offset>, Outcome)>,
    committing: bool,
    next_number: u32,
    owed: f64,
    /// The sums of the shares of subscriptions.
    shares: Vec<f64>,
    /// Of the commands that have to be delivered until all is settled, those that are not.
    outstanding: u64,
    settled_at: Option<Us>,
    latencies: [Histogram<u64>; 3],
    moved: (Us, u64),
    seen: Seen,
}

/// Plays a shape until its load has ended and everything from before the return is delivered.
///
/// # Panics
/// When that is not so after a virtual day.
pub fn play(shape: &Shape, settings: &Settings) -> Seen {
    let mut world = World::new(shape, settings);
    world.at(0, Step::Arrivals);
    world.at(TICK, Step::Tick);
    world.at(TICK, Step::Release);
    if let Some(whale) = shape.whale {
        world.at(whale.at, Step::Whale);
    }
    while !world.is_over() {
        let Some(Reverse((at, number))) = world.queue.pop() else {
            break;
        };
        assert!(at < 86_400 * SECOND, "it does not settle: {:?}", world.seen);
        world.now = at;
        if let Some(step) = world.steps.remove(&number) {
            world.step(step);
            world.read();
            world.dispatch();
        }
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(shape: &'a Shape, settings: &'a Settings) -> Self {
        let count = shape.subscriptions + usize::from(shape.whale.is_some());
        let whale = |number| {
            let whale = shape.whale.filter(|_| number == shape.subscriptions);
            whale.map(|whale| whale.max_in_flight)
        };
        let all: Vec<_> = (0..count)
            .map(|number| Arc::new(subscription(number, whale(number))))
            .collect();
        let limits = all.iter().map(|subscription| Limits {
            max_in_flight: usize::try_from(subscription.max_in_flight).unwrap_or(1),
            rate: None,
            breaker: settings.breaker,
        });
        let limits = limits.collect();
        let mut sum = 0.0;
        let shares = (1..=shape.subscriptions).map(|rank| {
            sum += (rank as f64).powf(-shape.skew);
            sum
        });
        let shares = shares.collect();
        let rules = Rules {
            cluster: "cluster".into(),
            tiers: settings.tiers.clone(),
            order_bytes: ORDER_BYTES,
            defers: settings.window_format == Format::V4,
            notices: NoticeRules {
                after: settings.notice_after,
                disable_after: settings.disable_after,
            },
        };
        let machine = within(Kind::Machine, || {
            Partition::new(Arc::new(rules), Window::new(Position(0)))
        });
        let histogram = || Histogram::new_with_bounds(1, 100_000_000, 2).unwrap();
        Self {
            shape,
            settings,
            table: Table {
                all,
                limits,
                schedule: settings.retry_schedule.clone().into(),
                max_age: default_max_age(
                    &settings.retry_schedule,
                    settings.timeout,
                    settings.tiers.delays()[0],
                ),
            },
            machine,
            effects: Effects::default(),
            random: fastrand::Rng::with_seed(shape.seed),
            chance: fastrand::Rng::with_seed(shape.seed ^ 0x5eed),
            base: Instant::now(),
            now: 0,
            queue: BinaryHeap::new(),
            steps: HashMap::new(),
            next: 0,
            log: VecDeque::new(),
            end: 0,
            records: VecDeque::new(),
            tiers: vec![VecDeque::new(); settings.tiers.delays().len()],
            in_tiers: 0,
            paused_since: None,
            bytes: 0,
            held: 0,
            ready: VecDeque::new(),
            flights: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            outcomes: Vec::new(),
            committing: false,
            next_number: 0,
            owed: 0.0,
            shares,
            outstanding: 0,
            settled_at: None,
            latencies: [histogram(), histogram(), histogram()],
            moved: (0, 0),
            seen: Seen::default(),
        }
    }

    fn at(&mut self, time: Us, step: Step) {
        self.queue.push(Reverse((time, self.next)));
        self.steps.insert(self.next, step);
        self.next += 1;
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    fn wall(&self) -> EpochMs {
        self.wall_at(self.now)
    }

    fn wall_at(&self, at: Us) -> EpochMs {
        EpochMs(EPOCH + i64::try_from(at / MS).unwrap_or(0))
    }

    /// The begin and the end of what disturbs the partition.
    fn disturbance(&self) -> Option<(Us, Us)> {
        let outage = self.shape.outage.map(|outage| (outage.from, outage.to));
        outage.or(self.shape.whale.map(|whale| (whale.at, whale.at)))
    }

    fn is_affected(&self, subscription: u32) -> bool {
        let number = subscription as usize;
        let down = self.shape.outage.is_some_and(|outage| {
            number < self.shape.subscriptions && number % outage.every == outage.every / 2
        });
        down || number == self.shape.subscriptions
    }

    /// Whether this command is waited for: one of those that the disturbance delays.
    fn is_awaited(&self, record: &Record) -> bool {
        let Some((_, to)) = self.disturbance() else {
            return false;
        };
        self.is_affected(record.subscription) && record.enqueued <= self.wall_at(to)
    }

    fn is_over(&self) -> bool {
        let disturbed = self.disturbance().is_some();
        self.now >= self.shape.until && (!disturbed || self.settled_at.is_some())
    }

    // ---- the load --------------------------------------------------------------------------------

    fn step(&mut self, step: Step) {
        match step {
            Step::Arrivals => self.arrivals(),
            Step::Whale => self.whale(),
            Step::Ended(flight) => self.ended(flight),
            Step::Wake => self.apply(Event::Timer),
            Step::Tick => self.tick(),
            Step::Committed(offsets, records) => self.committed(offsets, records),
            Step::Release => self.release(),
            Step::Released(records) => self.released(records),
            Step::LookedAhead(found) => {
                self.apply(Event::LookedAhead(LookAhead::Others(found)));
            }
            Step::ReadAgain(found) => {
                let weights = found.commands.iter().map(|(_, command)| command.weight());
                self.bytes += weights.sum::<usize>();
                self.held += found.commands.len();
                self.apply(Event::LookedAhead(LookAhead::Again(found)));
            }
        }
    }

    fn fresh(&mut self, subscription: u32) -> Record {
        self.next_number += 1;
        Record {
            subscription,
            number: self.next_number,
            attempt: 0,
            cause: Cause::New,
            due: None,
            enqueued: self.wall(),
            first_failure: None,
        }
    }

    fn add(&mut self, record: Record) {
        self.seen.commands += 1;
        if self.is_affected(record.subscription) {
            self.seen.affected += 1;
        }
        if self.is_awaited(&record) {
            self.outstanding += 1;
        }
        self.append(record);
    }

    fn append(&mut self, record: Record) {
        self.log.push_back((self.end, record));
        self.records.push_back((self.end, record));
        self.end += 1;
    }

    fn arrivals(&mut self) {
        self.owed += self.shape.rate * BATCH as f64 / SECOND as f64;
        let total = self.shares.last().copied().unwrap_or(0.0);
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let at = self.chance.f64() * total;
            let chosen = self.shares.partition_point(|&sum| sum <= at);
            let record = self.fresh(u32::try_from(chosen).unwrap_or(0));
            self.add(record);
        }
        // The marker of the transaction.
        self.end += 1;
        self.at(self.now + BATCH, Step::Arrivals);
    }

    fn whale(&mut self) {
        let Some(whale) = self.shape.whale else {
            return;
        };
        let subscription = u32::try_from(self.shape.subscriptions).unwrap_or(0);
        for _ in 0..whale.commands {
            let record = self.fresh(subscription);
            self.add(record);
        }
        self.end += 1;
    }

    // ---- delivery --------------------------------------------------------------------------------

    /// What delivery holds.
    fn memory(&self) -> Amount {
        Amount {
            bytes: self.bytes,
            commands: self.held,
        }
    }

    /// Takes what may be read, as the role does.
    fn read(&mut self) {
        let share = self.shape.share;
        let free = Memory::left(self.memory(), share) != Memory::Short;
        if let Some(since) = self.paused_since {
            self.seen.paused = self.seen.paused.max(self.now - since);
            if !free {
                return;
            }
            self.paused_since = None;
        }
        while !self.log.is_empty() {
            if self.bytes > share.bytes || self.held > share.commands {
                self.paused_since = Some(self.now);
                return;
            }
            let count = self.log.len().min(TURN);
            let mut taken = Vec::with_capacity(count);
            for (offset, record) in self.log.drain(..count) {
                let body = self.shape.body;
                let command = within(Kind::Commands, || Box::new(command(&record, body)));
                self.bytes += command.weight();
                self.held += 1;
                taken.push(Incoming {
                    offset: Offset(offset),
                    content: Ok(command),
                    mark: None,
                });
            }
            self.apply(Event::Taken(taken));
            self.dispatch();
        }
    }

    fn apply(&mut self, event: Event<Peer>) {
        let env = Env {
            now: self.base + Duration::from_micros(self.now),
            wall: EpochMs(EPOCH + i64::try_from(self.now / MS).unwrap_or(0)),
            memory: Memory::left(self.memory(), self.shape.share),
            subscriptions: &self.table,
        };
        self.seen.events += 1;
        within(Kind::Machine, || {
            self.machine
                .apply(event, &env, &mut self.random, &mut self.effects);
        });
        self.bytes -= std::mem::take(&mut self.effects.freed_bytes);
        self.held -= std::mem::take(&mut self.effects.freed_commands);
        let mut list = std::mem::take(&mut self.effects.list);
        for effect in list.drain(..) {
            self.execute(effect);
        }
        self.effects.list = list;
    }

    fn execute(&mut self, effect: Effect<Peer>) {
        match effect {
            Effect::Ready(lane) => self.ready.push_back(lane),
            Effect::Send(attempt) => self.send(attempt),
            Effect::Write(offset, outcome) => self.outcomes.push((offset, outcome)),
            Effect::Parked(_) => self.seen.parked += 1,
            Effect::WakeAt(at) => {
                let at = at.saturating_duration_since(self.base).as_micros();
                // Rounded up: a timer is never early.
                let at = u64::try_from(at).unwrap_or(0) + 1;
                self.at(at.max(self.now), Step::Wake);
            }
            Effect::Concluded(concluded) => {
                self.seen.attempts += 1;
                if concluded.outcome != AttemptOutcome::Delivered {
                    self.seen.failed += 1;
                } else if let Some(command) = concluded.command {
                    self.delivered(&command);
                }
            }
            Effect::LookAhead(Question::Others(from, of)) => self.look_ahead(from, &of),
            Effect::ReadAgain(pass) => self.read_again(*pass),
            Effect::LookAhead(_) | Effect::Notice(_) | Effect::Drained => {}
        }
    }

    /// Reads to the end as of now; the result comes when it is read.
    fn look_ahead(&mut self, from: Offset, of: &HashSet<Box<str>>) {
        let first = self.records.partition_point(|&(offset, _)| offset < from.0);
        let (mut search, mut count, mut name) = (Search::new(from, of.clone()), 0, String::new());
        for (offset, record) in self.records.range(first..) {
            name.clear();
            // Writing to a string does not fail.
            write!(name, "s{}", record.subscription).ok();
            search.visit(Offset(*offset), Some(&name));
            count += 1;
            if search.is_done() {
                break;
            }
        }
        self.seen.look_aheads += 1;
        let at = self.now + LOOK_AHEAD + count * SECOND / LOOK_AHEAD_RATE;
        self.at(at, Step::LookedAhead(search.found()));
    }

    /// Reads a part again; the result comes when it is read.
    fn read_again(&mut self, pass: Pass) {
        let (from, body) = (pass.from, self.shape.body);
        let mut collector = Collector::new(pass, self.shape.share.of_a_pass());
        let first = self.records.partition_point(|&(offset, _)| offset < from);
        for (offset, record) in self.records.range(first..) {
            if collector.is_done() {
                break;
            }
            let name = format!("s{}", record.subscription);
            collector.visit(Offset(*offset), Some(&name), || {
                Some(within(Kind::Commands, || Box::new(command(record, body))))
            });
        }
        let found = collector.finish();
        self.seen.look_aheads += 1;
        let at = self.now + LOOK_AHEAD + found.records as u64 * SECOND / LOOK_AHEAD_RATE;
        self.at(at, Step::ReadAgain(Box::new(found)));
    }

    fn dispatch(&mut self) {
        while self.in_flight < self.shape.requests {
            let Some(lane) = self.ready.pop_front() else {
                return;
            };
            let spare = self.shape.requests - self.in_flight;
            self.apply(Event::Turn { lane, spare });
        }
    }

    fn send(&mut self, attempt: Attempt<Peer>) {
        let subscription = number(&attempt.command.subscription).unwrap_or(0);
        let affected = self.is_affected(u32::try_from(subscription).unwrap_or(0));
        let (took, response) = self.respond(subscription, affected);
        let heard = matches!(response, Response::Status { .. });
        let until = self.now + took;
        let flight = Flight {
            end: AttemptEnd {
                lane: attempt.lane,
                offset: attempt.offset,
                command: attempt.command,
                endpoint: attempt.endpoint,
                permit: attempt.permit,
                response,
                error: (!heard).then(|| Box::from("no response")),
                heard,
                slot_follows: false,
                keep_copy: false,
            },
            until,
        };
        self.in_flight += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.flights[place] = Some(flight);
                place
            }
            None => {
                self.flights.push(Some(flight));
                self.flights.len() - 1
            }
        };
        self.at(until, Step::Ended(place));
    }

    /// How long an attempt takes, and its end.
    fn respond(&mut self, subscription: usize, affected: bool) -> (Us, Response) {
        let (mut median, sigma) = self.shape.latency;
        if let Some(whale) = self.shape.whale
            && affected
        {
            median = whale.latency;
        }
        // Box and Muller.
        let (one, other) = (1.0 - self.chance.f64(), self.chance.f64());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
        let took = (median * (sigma * normal).exp() * MS as f64) as Us;
        let timeout = u64::try_from(self.settings.timeout.as_micros()).unwrap_or(u64::MAX);
        let status = |status| Response::Status {
            status,
            retry_after: None,
        };
        if let Some(outage) = self.shape.outage
            && affected
            && (outage.from..outage.to).contains(&self.now)
        {
            return match outage.manner {
                Manner::Status(code) => (took, status(code)),
                Manner::RefuseOrHang if (subscription / outage.every).is_multiple_of(2) => {
                    (took.min(20 * MS), Response::None(Class::Connect))
                }
                Manner::RefuseOrHang => (timeout, Response::None(Class::Timeout)),
            };
        }
        if took >= timeout {
            return (timeout, Response::None(Class::Timeout));
        }
        (took.max(200), status(200))
    }

    fn ended(&mut self, place: usize) {
        if let Some(flight) = self.flights[place].take() {
            self.free.push(place);
            self.in_flight -= 1;
            self.apply(Event::Ended(flight.end));
        }
    }

    fn delivered(&mut self, command: &Command) {
        self.seen.delivered += 1;
        let number = number(&command.subscription).unwrap_or(0);
        let number = u32::try_from(number).unwrap_or(0);
        if self.is_affected(number) {
            let awaited = self
                .disturbance()
                .is_some_and(|(_, to)| command.enqueued <= self.wall_at(to));
            if awaited {
                self.outstanding -= 1;
                self.settle_if_done();
            }
            return;
        }
        let phase = match (self.disturbance(), self.settled_at) {
            (Some((from, _)), _) if self.now < from => 0,
            (Some((_, to)), _) if self.now < to => 1,
            (Some(_), None) if self.shape.outage.is_none() => 1,
            (Some(_), _) => 2,
            (None, _) => 0,
        };
        let waited = self.wall().since(command.enqueued);
        let waited = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        self.latencies[phase].saturating_record(waited.max(1));
    }

    fn settle_if_done(&mut self) {
        let ended = self.disturbance().is_some_and(|(_, to)| self.now >= to);
        if ended && self.outstanding == 0 && self.settled_at.is_none() {
            self.settled_at = Some(self.now);
        }
    }

    // ---- what is seen ----------------------------------------------------------------------------

    fn observe(&mut self) {
        let seen = &mut self.seen;
        seen.machine = seen.machine.max(live(Kind::Machine));
        seen.commands_bytes = seen.commands_bytes.max(live(Kind::Commands));
        seen.unread = seen.unread.max(self.log.len());
        let now = self.base + Duration::from_micros(self.now);
        seen.stalled = seen.stalled.max(self.machine.stalled(now));
        let from = self.shape.outage.map(|outage| (outage.from, outage.to));
        if from.is_none_or(|(from, _)| self.now < from) && self.shape.whale.is_none() {
            seen.machine_before = live(Kind::Machine);
        }
        if self.now.is_multiple_of(SECOND) && seen.drains.len() < 5_000 && self.now > 10 * SECOND {
            let flights = self.flights.iter().flatten();
            let longest = flights.map(|flight| flight.until.saturating_sub(self.now));
            let longest = i64::try_from(longest.max().unwrap_or(0) / MS).unwrap_or(0);
            match from {
                Some((from, to)) if (from..to).contains(&self.now) => {
                    seen.drains_in_outage.push(longest);
                }
                _ => seen.drains.push(longest),
            }
        }
    }

    fn finish(mut self) -> Seen {
        self.seen.machine_after = live(Kind::Machine);
        self.seen.settled = self
            .disturbance()
            .and_then(|(_, to)| Some((self.settled_at? - to) / MS));
        for (seen, all) in self.seen.healthy.iter_mut().zip(&self.latencies) {
            *seen = Quantiles {
                p50: all.value_at_quantile(0.5),
                p99: all.value_at_quantile(0.99),
                max: all.max(),
            };
        }
        let Self { seen, machine, .. } = self;
        drop(machine);
        seen
    }
}
