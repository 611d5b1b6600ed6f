//! A worker: one thread that owns some partitions and executes their decisions.
//!
//! A partition's state machine, attempts in flight and connections all live on one thread with a single-threaded
//! runtime. Nothing here is locked or shared, and events are handled one at a time: a message from the role's thread,
//! the end of an attempt, or a tick. The price is that a partition cannot use more than one core; scaling needs more
//! partitions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};
use tokio::task::AbortHandle;

use super::attempt_log::{AttemptFacts, Entry, Notes};
use super::messages::{Decided, Load, Message, WorkerState};
use super::metrics::DeliveryMetrics;
use super::notices::Lines;
use super::outage::PROBES;
use super::partition::Partition;
use super::partition::counts::AttemptCounts;
use super::partition::effect::{Attempt, Concluded, Effect, Effects, Outcome};
use super::partition::env::{Env, NoticeRules, ORDER_BYTES, Rules};
use super::partition::event::{Event, LaneId};
use super::request::Target;
use super::sending::{Ended, Finished, Owner, Sending, Ticket};
use super::shares::Crowded;
use super::terms::Directory;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::otlp::Tracer;
use crate::edge::port::Port;
use crate::model::attempt::Excerpt;
use crate::model::maps::FastMap as Map;
use crate::model::outcome::AttemptOutcome;
use crate::model::status::first_line;
use crate::model::units::Offset;
use crate::model::window::{Format, METADATA_LIMIT, Place};

mod ahead;
mod dispatch;
mod readers;
mod report;

use readers::Readers;

/// The interval of ticks, which handle changes that depend on time alone.
const TICK: Duration = Duration::from_millis(100);
/// The same while nothing waits.
const TICK_AT_REST: Duration = Duration::from_millis(500);

/// The dependencies of a worker.
pub(super) struct Surroundings<P: Port> {
    pub(super) port: P,
    pub(super) settings: Arc<Settings>,
    pub(super) cluster: ClusterId,
    /// Subscription lookups.
    pub(super) directory: Directory,
    pub(super) metrics: DeliveryMetrics,
    pub(super) tracer: Tracer,
    pub(super) client: P::Http,
    /// This worker's share of the replica's requests in flight.
    pub(super) max_in_flight: usize,
    /// The attempt log, if enabled.
    pub(super) notes: Option<Notes>,
    /// A sender to this worker, for its readers.
    pub(super) own: WeakUnboundedSender<Message>,
}

/// Runs until the sender of `messages` is dropped.
pub(super) async fn run<P: Port>(
    around: Surroundings<P>,
    mut messages: UnboundedReceiver<Message>,
) {
    let (ended_in, mut ended) = unbounded_channel();
    let mut worker = Worker::new(around, ended_in);
    let mut ticked = clock::instant();
    loop {
        let timer = worker.next_timer();
        let tick = ticked + worker.between_ticks();
        tokio::select! {
            biased;
            Some(event) = ended.recv() => {
                worker.ended(event);
                // Events that have arrived meanwhile belong to the same turn: one pass over the lanes serves all.
                while let Ok(event) = ended.try_recv() {
                    worker.ended(event);
                }
            }
            message = messages.recv() => match message {
                Some(message) => worker.obey(message),
                None => return worker.last_notes(),
            },
            () = sleep_until(timer), if timer.is_some() => {}
            () = tokio::time::sleep_until(tick.into()) => {
                worker.tick();
                ticked = clock::instant();
            }
        }
        worker.fire_timers();
        worker.dispatch();
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// An attempt in flight.
struct Flight {
    abort: AbortHandle,
    started: Instant,
}

/// A partition and its state in the shell.
struct Owned {
    epoch: u64,
    place: Place,
    machine: Partition<Rc<Target>>,
    load: Arc<Load>,
    in_flight: BTreeMap<Offset, Flight>,
    /// Requests in flight, and responses whose bodies are still open.
    slots: usize,
    /// Outcomes to write with the next commit.
    outcomes: Vec<Decided>,
    /// Gets the partition's number when nothing is in flight after a stop.
    drained: Option<UnboundedSender<i32>>,
}

struct Worker<P: Port> {
    around: Surroundings<P>,
    rules: Arc<Rules>,
    partitions: BTreeMap<i32, Owned>,
    /// Lanes that have something to send, in the order in which they asked.
    ready: VecDeque<(Owner, LaneId)>,
    /// Such lanes whose host or subscriber has its share of the requests.
    crowded: Crowded<(Owner, LaneId)>,
    timers: BinaryHeap<Reverse<(Instant, Owner)>>,
    /// Over all partitions: see [`Owned::slots`].
    in_flight: usize,
    ended: UnboundedSender<Ended>,
    epoch: u64,
    random: fastrand::Rng,
    /// Whether there is an egress outage.
    outage: bool,
    /// Limits log lines.
    lines: Lines,
    next_ticket: Ticket,
    /// Log entries of attempts whose response body is still open: at most one per slot.
    unfinished_notes: Map<Ticket, Entry>,
    /// Attempts of closed partitions since the last report.
    of_gone: Vec<(Arc<str>, AttemptCounts)>,
    /// Reusable buffer for the effects of an event.
    effects: Effects<Rc<Target>>,
    /// Characters that the broker keeps with a position.
    limit: usize,
    /// The result of the last applied attempt.
    concluded: Option<Concluded>,
    /// What reads for its partitions.
    readers: Readers,
}

impl<P: Port> Worker<P> {
    fn new(around: Surroundings<P>, ended: UnboundedSender<Ended>) -> Self {
        let rules = Rules {
            cluster: around.cluster.as_str().into(),
            tiers: around.settings.tiers.clone(),
            order_bytes: ORDER_BYTES,
            defers: around.settings.window_format == Format::V4,
            notices: NoticeRules {
                after: around.settings.notice_after,
                disable_after: around.settings.disable_after,
            },
        };
        let random = fastrand::Rng::with_seed(around.port.seed());
        Self {
            around,
            rules: Arc::new(rules),
            partitions: BTreeMap::new(),
            ready: VecDeque::new(),
            crowded: Crowded::default(),
            timers: BinaryHeap::new(),
            in_flight: 0,
            ended,
            epoch: 0,
            random,
            outage: false,
            lines: Lines::default(),
            next_ticket: 0,
            unfinished_notes: Map::default(),
            of_gone: Vec::new(),
            effects: Effects::default(),
            limit: METADATA_LIMIT,
            concluded: None,
            readers: Readers::default(),
        }
    }

    fn obey(&mut self, message: Message) {
        match message {
            Message::Open {
                partition,
                place,
                restored,
                load,
            } => {
                self.close(partition);
                self.epoch += 1;
                let mut machine = Partition::restore(Arc::clone(&self.rules), *restored);
                machine.set_limit(self.limit);
                let owned = Owned {
                    epoch: self.epoch,
                    place,
                    machine,
                    load,
                    in_flight: BTreeMap::new(),
                    slots: 0,
                    outcomes: Vec::new(),
                    drained: None,
                };
                self.partitions.insert(partition, owned);
                if self.outage {
                    self.apply(partition, Event::OutageBegan);
                }
            }
            Message::Take(number, incoming) => self.apply(number, Event::Taken(incoming)),
            Message::Snapshot(reply) => {
                if let Some(notes) = &mut self.around.notes {
                    notes.hand_over();
                }
                // A lane whose timer is due, or whose rate limit has a token again, needs only this turn.
                self.fire_timers();
                self.dispatch();
                let state = WorkerState {
                    partitions: self.states(),
                    health: self.health(),
                    attempts: self.attempts(),
                };
                // The role's thread waits for this; if it is gone, the process is ending. Without an answer it takes the
                // worker for panicked, and the readers are a part of it.
                if self.readers.have_all_survived() {
                    reply.send(state).ok();
                }
            }
            Message::SnapshotWith(offsets, reply) => {
                let format = self.around.settings.window_format;
                let each = offsets.into_iter().filter_map(|(number, offsets)| {
                    let owned = self.partitions.get(&number)?;
                    let machine = &owned.machine;
                    Some((number, machine.snapshot_with(&offsets, owned.place, format)))
                });
                reply.send(each.collect()).ok();
            }
            Message::Limit(characters) => {
                self.limit = characters;
                for owned in self.partitions.values_mut() {
                    owned.machine.set_limit(characters);
                }
            }
            Message::Passed(number, position) => self.apply(number, Event::Passed(position)),
            Message::Durable(number, offsets) => self.apply(number, Event::Durable(offsets)),
            Message::LookedAhead(partition, epoch, found) => {
                if self.owns(Owner { partition, epoch }) {
                    self.count_again(partition, &found);
                    self.apply(partition, Event::LookedAhead(found));
                }
            }
            Message::SecretRead => self.tick(),
            Message::OutageBegan => {
                self.outage = true;
                for number in self.numbers() {
                    self.apply(number, Event::OutageBegan);
                }
            }
            Message::Probe => self.probe(),
            Message::OutageEnded(heard) => {
                self.outage = false;
                for number in self.numbers() {
                    self.apply(number, Event::OutageEnded { heard });
                }
            }
            Message::Stop(partitions, done) => {
                for number in partitions {
                    if let Some(owned) = self.partitions.get_mut(&number) {
                        owned.drained = Some(done.clone());
                        self.apply(number, Event::Stop);
                    }
                }
            }
            Message::Close(list) => list.into_iter().for_each(|one| self.close(one)),
        }
    }

    /// How long the next tick may take to come.
    fn between_ticks(&self) -> Duration {
        let waits = |owned: &Owned| owned.load.commands() > 0 || owned.machine.span() > 0;
        if self.in_flight > 0 || self.outage || self.partitions.values().any(waits) {
            TICK
        } else {
            TICK_AT_REST
        }
    }

    fn numbers(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    fn owns(&self, owner: Owner) -> bool {
        self.partitions
            .get(&owner.partition)
            .is_some_and(|owned| owned.epoch == owner.epoch)
    }

    /// Applies an event to a partition and executes its effects.
    fn apply(&mut self, number: i32, event: Event<Rc<Target>>) {
        let Some(owned) = self.partitions.get_mut(&number) else {
            return;
        };
        let env = Env {
            now: clock::instant(),
            wall: clock::now(),
            memory: owned.load.left(),
            subscriptions: &self.around.directory,
        };
        let effects = &mut self.effects;
        owned.machine.apply(event, &env, &mut self.random, effects);
        if effects.freed_commands > 0 {
            owned.load.sub(effects.freed_commands, effects.freed_bytes);
            (effects.freed_commands, effects.freed_bytes) = (0, 0);
        }
        if effects.copies > 0 {
            let copies = std::mem::take(&mut effects.copies);
            self.around
                .metrics
                .duplicate_commands()
                .inc_by(copies as u64);
        }
        let deferred = std::mem::take(&mut effects.deferred);
        self.around.metrics.deferred().inc_by(deferred as u64);
        let owner = Owner {
            partition: number,
            epoch: owned.epoch,
        };
        let mut list = std::mem::take(&mut self.effects.list);
        for effect in list.drain(..) {
            self.execute(owner, effect);
        }
        self.effects.list = list;
    }

    fn execute(&mut self, owner: Owner, effect: Effect<Rc<Target>>) {
        match effect {
            Effect::Ready(lane) => self.ready.push_back((owner, lane)),
            Effect::Send(attempt) => self.send(owner, attempt),
            Effect::Write(offset, outcome) => self.write(owner.partition, offset, outcome),
            Effect::Parked(why) => self.around.metrics.parked(why).inc(),
            Effect::WakeAt(at) => self.timers.push(Reverse((at, owner))),
            Effect::LookAhead(question) => self.look_ahead(owner, question),
            Effect::ReadAgain(pass) => self.read_again(owner, pass),
            Effect::Notice(notice) => self.lines.notice(&self.around.metrics, notice),
            Effect::Drained => {
                let owned = self.partitions.get_mut(&owner.partition);
                if let Some(done) = owned.and_then(|owned| owned.drained.take()) {
                    // The role's thread may have stopped waiting.
                    done.send(owner.partition).ok();
                }
            }
            Effect::Concluded(concluded) => self.concluded = Some(concluded),
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn fire_timers(&mut self) {
        let now = clock::instant();
        while let Some(&Reverse((at, owner))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            if self.owns(owner) {
                self.apply(owner.partition, Event::Timer);
            }
        }
    }

    fn tick(&mut self) {
        self.lines.flush(&self.around.metrics, clock::instant());
        for number in self.numbers() {
            self.apply(number, Event::Tick);
        }
    }

    fn send(&mut self, owner: Owner, attempt: Attempt<Rc<Target>>) {
        let (offset, started) = (attempt.offset, attempt.permit.began);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let traceparent = attempt.command.traceparent.as_deref();
        let sending = Sending {
            owner,
            ticket,
            span: self.around.tracer.of_command(traceparent),
            held: attempt.endpoint.shared.hold(),
            attempt,
            client: self.around.client.clone(),
            ended: self.ended.clone(),
        };
        let abort = self.around.port.spawn_local(sending.run());
        self.in_flight += 1;
        self.around.metrics.in_flight().inc();
        if let Some(owned) = self.partitions.get_mut(&owner.partition) {
            owned.slots += 1;
            owned.in_flight.insert(offset, Flight { abort, started });
        }
    }

    fn ended(&mut self, event: Ended) {
        match event {
            Ended::Attempt(owner, finished) => {
                failpoint::point("response.after");
                // The next owner handles a partition that was closed meanwhile (**Owner only**).
                if self.owns(owner) {
                    self.attempt_ended(owner, *finished);
                }
            }
            Ended::Slot(owner, lane, body) => {
                if let Some(body) = body {
                    if let Some(offset) = body.failed
                        && self.owns(owner)
                    {
                        let line = first_line(&body.excerpt.text).into();
                        self.apply(owner.partition, Event::Responded(lane, offset, line));
                    }
                    self.complete_note(body.ticket, body.excerpt);
                }
                if self.owns(owner) {
                    self.free_slot(owner.partition);
                    self.apply(owner.partition, Event::SlotFreed(lane));
                }
            }
        }
    }

    fn attempt_ended(&mut self, owner: Owner, finished: Finished) {
        let Finished {
            end,
            ticket,
            began,
            took,
        } = finished;
        let metrics = &self.around.metrics;
        metrics.attempt_duration().observe(took.as_secs_f64());
        if let Some(owned) = self.partitions.get_mut(&owner.partition) {
            owned.in_flight.remove(&end.offset);
        }
        if !end.slot_follows {
            self.free_slot(owner.partition);
        }
        let shown = self.around.notes.as_ref().map(|_| &end.endpoint.shown);
        let facts = shown.map(|shown| AttemptFacts {
            number: end.command.attempt.saturating_add(1),
            began,
            took,
            url: Arc::clone(&shown.url),
            status: end.response.status(),
            class: end.response.class(),
        });
        let open = end.slot_follows.then_some(ticket);
        self.apply(owner.partition, Event::Ended(end));
        if let Some(concluded) = self.concluded.take() {
            self.note(open, facts, concluded);
        }
    }

    /// Counts an attempt's result, and adds it to the attempt log.
    fn note(&mut self, open: Option<Ticket>, facts: Option<AttemptFacts>, concluded: Concluded) {
        let Concluded {
            outcome,
            class,
            command,
            error,
        } = concluded;
        let metrics = &self.around.metrics;
        metrics.attempts(outcome, class).inc();
        let Some(command) = command else {
            return;
        };
        // Of a replay, the event is as old as its dead letter.
        let is_first = command.attempt == 0 && command.replayed.is_none();
        if outcome == AttemptOutcome::Delivered && is_first {
            let took = clock::now().since(command.published());
            metrics.event_to_delivery().observe(took.as_secs_f64());
        }
        let (Some(facts), Some(notes)) = (facts, &mut self.around.notes) else {
            return;
        };
        let entry = Entry::new(facts, command, outcome, error);
        match open {
            // An entry whose response body is still open waits for its end.
            Some(ticket) => drop(self.unfinished_notes.insert(ticket, entry)),
            None => notes.add(entry),
        }
    }

    /// Logs an attempt whose response body has ended.
    fn complete_note(&mut self, ticket: Ticket, excerpt: Excerpt) {
        // An attempt that was cut off meanwhile has no entry.
        if let (Some(mut entry), Some(notes)) = (
            self.unfinished_notes.remove(&ticket),
            &mut self.around.notes,
        ) {
            entry.excerpt = Some(excerpt);
            notes.add(entry);
        }
    }

    /// Logs the remaining entries at the worker's end, without waiting for open bodies.
    fn last_notes(&mut self) {
        if let Some(notes) = &mut self.around.notes {
            self.unfinished_notes
                .drain()
                .for_each(|(_, entry)| notes.add(entry));
            notes.hand_over();
        }
    }

    fn write(&mut self, number: i32, offset: Option<Offset>, outcome: Outcome) {
        self.lines.outcome(&outcome);
        if let Some(owned) = self.partitions.get_mut(&number) {
            let is_move = matches!(outcome, Outcome::Tier(..));
            owned.outcomes.push(Decided {
                offset,
                move_number: is_move.then(|| owned.load.add_move()),
                outcome,
            });
        }
    }

    /// Lets a few held lanes probe: those with the fewest probes, and of these the ones that were healthy last.
    fn probe(&mut self) {
        let mut can: Vec<_> = Vec::new();
        for (&number, owned) in &self.partitions {
            let lanes = owned.machine.can_probe();
            can.extend(lanes.map(|(lane, probes, heard)| (probes, Reverse(heard), number, lane)));
        }
        can.sort_unstable();
        for (_, _, number, lane) in can.into_iter().take(PROBES) {
            self.apply(number, Event::Probe(lane));
        }
    }

    fn close(&mut self, number: i32) {
        let Some(mut owned) = self.partitions.remove(&number) else {
            return;
        };
        for flight in owned.in_flight.values() {
            flight.abort.abort();
        }
        owned.machine.take_attempts(&mut self.of_gone);
        for (subscription, subscriber) in owned.machine.open_breakers() {
            let metrics = &self.around.metrics;
            metrics.breaker_open(subscriber, subscription, false);
        }
        self.count_out(owned.slots);
    }

    fn free_slot(&mut self, number: i32) {
        if let Some(owned) = self.partitions.get_mut(&number) {
            owned.slots -= 1;
            self.count_out(1);
        }
    }

    fn count_out(&mut self, slots: usize) {
        debug_assert!(
            self.in_flight >= slots,
            "every slot is counted in before it is counted out"
        );
        self.in_flight = self.in_flight.saturating_sub(slots);
        let slots = i64::try_from(slots).unwrap_or(0);
        self.around.metrics.in_flight().sub(slots);
    }
}
