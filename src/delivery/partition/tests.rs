//! Tests the state machine against a naive model: a log, retry topics and endpoints in memory, random interleavings of
//! all events, and the crate's invariants as assertions. A crash drops the machine at any step, with everything
//! uncommitted, and restores it from the last snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::Partition;
use super::effect::{Attempt, Effect, Effects, Outcome, Question};
use super::env::{Endpoint, Env, Rules, Standing, Subscriptions, Terms, Unavailable};
use super::event::{AttemptEnd, Event, Found, Incoming, LaneId, LookAhead, UnderWay};
use super::lane::{Limits, QUEUE_COMMANDS, Rate};
use crate::model::breaker_rules::BreakerRules;
use crate::model::command::{Cause, Command, tests::sample};
use crate::model::dead_letter::Reason;
use crate::model::outcome::{Class, Response};
use crate::model::subscription::{Order, Subscription, parse};
use crate::model::tiers::Tiers;
use crate::model::units::{EpochMs, Offset, Position};
use crate::model::window::{Format, METADATA_LIMIT, Place, Snapshot, Window};

const SUBSCRIPTIONS: usize = 4;
const SUBJECTS: usize = 3;
/// Requests in flight over all lanes.
const CAP: usize = 6;
const SCHEDULE: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// An endpoint of the model: only its subscription.
#[derive(Clone, Debug)]
struct Peer(Arc<Subscription>);

impl Endpoint for Peer {
    fn subscription(&self) -> &Arc<Subscription> {
        &self.0
    }

    fn schedule(&self) -> &[Duration] {
        &SCHEDULE
    }
}

/// The subscriptions of the model.
#[derive(Default)]
struct Listed {
    all: HashMap<String, Arc<Subscription>>,
    /// Those whose only record is invalid.
    invalid: HashSet<String>,
    version: u64,
}

impl Listed {
    fn put(&mut self, number: usize, order: Order, state: &str) {
        self.put_for(number, &format!("owner{number}"), order, state);
    }

    fn put_for(&mut self, number: usize, subscriber: &str, order: Order, state: &str) {
        let id = format!("s{number}");
        let order = match order {
            Order::None => "none",
            Order::PerSubject => "per_subject",
            Order::Strict => "strict",
        };
        let record = serde_json::json!({
            "id": id, "subscriber": subscriber, "events": ["a"], "url": "https://example.com/",
            "order": order, "state": state,
        });
        let text = record.to_string();
        let parsed = parse(Some(id.as_bytes()), text.as_bytes()).unwrap();
        self.invalid.remove(&id);
        self.all.insert(id, Arc::new(parsed));
        self.version += 1;
    }

    fn remove(&mut self, number: usize) {
        self.all.remove(&format!("s{number}"));
        self.invalid.remove(&format!("s{number}"));
        self.version += 1;
    }

    /// As after a restart with an invalid record.
    fn spoil(&mut self, number: usize) {
        self.remove(number);
        self.invalid.insert(format!("s{number}"));
    }
}

impl Subscriptions for Listed {
    type Endpoint = Peer;

    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, id: &str, subscriber: &str) -> Result<Arc<Subscription>, Unavailable> {
        if self.invalid.contains(id) {
            return Err(Unavailable::Invalid);
        }
        let subscription = self.all.get(id).ok_or(Unavailable::Missing)?;
        if *subscription.subscriber != *subscriber {
            return Err(Unavailable::Foreign(subscription.subscriber.clone()));
        }
        Ok(Arc::clone(subscription))
    }

    fn terms(&self, subscription: &Arc<Subscription>, _: Option<&Peer>) -> Terms<Peer> {
        let standing = match subscription.state {
            crate::model::subscription::State::Active => {
                Standing::Open(Peer(Arc::clone(subscription)))
            }
            crate::model::subscription::State::Paused => Standing::Waiting,
            crate::model::subscription::State::Disabled => Standing::Disabled,
        };
        Terms {
            standing,
            limits: Limits {
                max_in_flight: 3,
                rate: (&*subscription.id == "s3").then_some(Rate {
                    per_second: 2.0,
                    burst: 2.0,
                }),
                breaker: BreakerRules {
                    failures: 4,
                    rate: 0.5,
                    window: Duration::from_secs(30),
                    volume: 10,
                    probe: Duration::from_secs(1),
                    max_probe: Duration::from_secs(8),
                },
            },
            order: subscription.order,
            valid_for: None,
        }
    }
}

/// Committed state, which survives a crash.
struct Durable {
    /// `webhook-commands`; `None` is an offset without a record.
    log: Vec<Option<Command>>,
    /// The retry topics: waiting commands with their tiers.
    tiers: Vec<(usize, Box<Command>)>,
    dead: BTreeMap<Box<str>, usize>,
    snapshot: Snapshot,
}

/// A command of the model, by its webhook id.
#[derive(Default)]
struct Known {
    delivered: usize,
    /// Ended attempts, as far as outcomes were kept.
    sent: bool,
}

struct Sim {
    durable: Durable,
    listed: Listed,
    machine: Partition<Peer>,
    effects: Effects<Peer>,
    random: fastrand::Rng,
    now: Instant,
    wall: EpochMs,
    /// The next offset to deliver to the machine.
    read_to: usize,
    ready: VecDeque<LaneId>,
    timers: BTreeSet<Instant>,
    in_flight: Vec<Attempt<Peer>>,
    /// Lanes with an open response body.
    bodies: Vec<LaneId>,
    outcomes: Vec<(Option<Offset>, Outcome)>,
    questions: Vec<Question>,
    /// Bytes that the machine holds, as its shell counts them.
    load: usize,
    known: BTreeMap<Box<str>, Known>,
    crashed: bool,
    paused: bool,
    drained: bool,
    next_id: usize,
    /// Whether there is memory for more than a lane's usual queue.
    has_spare: bool,
}

fn place() -> Place {
    Place::new("cluster", "webhook-commands", 0)
}

fn rules() -> Arc<Rules> {
    let tiers = [5, 30, 60].map(Duration::from_secs).to_vec();
    Arc::new(Rules {
        cluster: "cluster".into(),
        tiers: Tiers::new(tiers).unwrap(),
    })
}

impl Sim {
    fn new(seed: u64, orders: [Order; SUBSCRIPTIONS]) -> Self {
        let mut listed = Listed::default();
        for (number, order) in orders.into_iter().enumerate() {
            listed.put(number, order, "active");
        }
        let window = Window::new(Position(0));
        let snapshot = window.snapshot(place(), Format::V2);
        Self {
            durable: Durable {
                log: Vec::new(),
                tiers: Vec::new(),
                dead: BTreeMap::new(),
                snapshot,
            },
            listed,
            machine: Partition::new(rules(), window),
            effects: Effects::default(),
            random: fastrand::Rng::with_seed(seed),
            now: crate::edge::clock::instant(),
            wall: EpochMs(1_700_000_000_000),
            read_to: 0,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            in_flight: Vec::new(),
            bodies: Vec::new(),
            outcomes: Vec::new(),
            questions: Vec::new(),
            load: 0,
            known: BTreeMap::new(),
            crashed: false,
            paused: false,
            drained: false,
            next_id: 0,
            has_spare: true,
        }
    }

    fn produce(&mut self, subscription: usize, subject: Option<usize>) {
        let id: Box<str> = format!("msg_{}", self.next_id).into();
        self.next_id += 1;
        self.known.insert(id.clone(), Known::default());
        let command = Command {
            webhook_id: id,
            subscriber: format!("owner{subscription}").into(),
            subscription: format!("s{subscription}").into(),
            subject: subject.map(|subject| format!("subject{subject}").into()),
            attempt: 0,
            due: None,
            enqueued: self.wall,
            cause: Cause::New,
            first_failure: None,
            sequence: None,
            cluster: None,
            body: Bytes::from_static(b"{}"),
            ..sample()
        };
        self.durable.log.push(Some(command));
    }

    fn apply(&mut self, event: Event<Peer>) {
        let env = Env {
            now: self.now,
            wall: self.wall,
            has_spare: self.has_spare,
            subscriptions: &self.listed,
        };
        self.machine
            .apply(event, &env, &mut self.random, &mut self.effects);
        self.load -= std::mem::take(&mut self.effects.freed_bytes);
        self.effects.freed_commands = 0;
        for effect in std::mem::take(&mut self.effects.list) {
            match effect {
                Effect::Ready(lane) => self.ready.push_back(lane),
                Effect::Send(attempt) => self.sent(attempt),
                Effect::Write(offset, outcome) => self.outcomes.push((offset, outcome)),
                Effect::WakeAt(at) => drop(self.timers.insert(at)),
                Effect::LookAhead(question) => self.questions.push(question),
                Effect::Drained => self.drained = true,
                Effect::Parked(_) | Effect::Concluded(_) | Effect::Notice(_) => {}
            }
        }
        let each = self.outcomes.iter();
        let held: usize = each.filter_map(|(_, outcome)| outcome.weight()).sum();
        assert!(self.load >= held, "what is held for outcomes is counted");
    }

    fn sent(&mut self, attempt: Attempt<Peer>) {
        let command = &attempt.command;
        assert!(!self.paused, "nothing is sent during an outage");
        assert!(
            command.due.is_none_or(|due| due <= self.wall),
            "**Never early**: {} is due at {:?}, now is {}",
            command.webhook_id,
            command.due,
            self.wall
        );
        assert!(
            self.in_flight
                .iter()
                .all(|other| other.command.webhook_id != command.webhook_id),
            "**One lineage**: {} is in flight twice",
            command.webhook_id
        );
        let known = self.known.get_mut(&command.webhook_id).unwrap();
        assert!(
            self.crashed || known.delivered == 0,
            "{} was delivered and is sent again without a crash",
            command.webhook_id
        );
        self.check_order(&attempt);
        if let Some(known) = self.known.get_mut(&attempt.command.webhook_id) {
            known.sent = true;
        }
        self.in_flight.push(attempt);
        assert!(self.in_flight.len() <= CAP, "the cap on requests holds");
        let lane = self.in_flight.last().unwrap().lane;
        let same = self.in_flight.iter().filter(|one| one.lane == lane);
        assert!(same.count() <= 3, "a lane's limit holds");
    }

    /// With order, no command of a subject is sent before the one ahead of it is done (strict) or has had an attempt
    /// (per subject). The order is that of the first records in the log.
    fn check_order(&self, attempt: &Attempt<Peer>) {
        let order = attempt.endpoint.0.order;
        let (Some(subject), Some(sequence)) = (&attempt.command.subject, attempt.command.sequence)
        else {
            return;
        };
        if order == Order::None || (order == Order::PerSubject && attempt.command.attempt > 0) {
            return;
        }
        let ahead = self.durable.log.iter().enumerate().filter_map(|(at, one)| {
            let one = one.as_ref()?;
            let place = one.sequence.unwrap_or(at as i64);
            let same = one.subject.as_ref() == Some(subject)
                && one.subscription == attempt.command.subscription;
            (same && place < sequence).then_some(&one.webhook_id)
        });
        for id in ahead {
            let known = &self.known[id];
            let done = known.delivered > 0
                || self.durable.dead.contains_key(id)
                || self.is_given_up(id)
                || (order == Order::PerSubject && known.sent);
            assert!(
                done,
                "order: {} of {subject} is sent before {id}",
                attempt.command.webhook_id
            );
        }
    }

    fn is_given_up(&self, id: &str) -> bool {
        self.outcomes.iter().any(|(_, outcome)| match outcome {
            Outcome::DeadLetter(command, _) => &*command.webhook_id == id,
            _ => false,
        })
    }

    fn take(&mut self, most: usize) {
        let mut incoming = Vec::new();
        while incoming.len() < most && self.read_to < self.durable.log.len() {
            let offset = Offset(self.read_to as i64);
            if let Some(command) = &self.durable.log[self.read_to] {
                let one = Incoming {
                    offset,
                    content: Ok(Box::new(command.clone())),
                };
                self.load += one.weight();
                incoming.push(one);
            }
            self.read_to += 1;
        }
        if !incoming.is_empty() {
            self.apply(Event::Taken(incoming));
        }
    }

    fn dispatch(&mut self) {
        // As in the worker; a lane may request another turn at once.
        let mut turns = 0;
        while !self.paused && self.in_flight.len() + self.bodies.len() < CAP && turns < 100 {
            let Some(lane) = self.ready.pop_front() else {
                return;
            };
            turns += 1;
            let spare = CAP - self.in_flight.len() - self.bodies.len();
            self.apply(Event::Turn { lane, spare });
        }
    }

    fn end(&mut self, pick: usize, response: Response, slot_follows: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let attempt = self.in_flight.swap_remove(pick % self.in_flight.len());
        if matches!(
            response,
            Response::Status {
                status: 200..=299,
                ..
            }
        ) {
            let known = self.known.get_mut(&attempt.command.webhook_id).unwrap();
            known.delivered += 1;
        }
        if slot_follows {
            self.bodies.push(attempt.lane);
        }
        self.apply(Event::Ended(AttemptEnd {
            lane: attempt.lane,
            offset: attempt.offset,
            command: attempt.command,
            endpoint: attempt.endpoint,
            permit: attempt.permit,
            response,
            error: None,
            slot_follows,
            keep_copy: false,
        }));
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.wall = self.wall + time;
        while let Some(first) = self.timers.first().copied().filter(|at| *at <= self.now) {
            self.timers.remove(&first);
            self.apply(Event::Timer);
        }
        self.apply(Event::Tick);
    }

    /// Commits outcomes and position in one transaction.
    fn commit(&mut self) {
        self.commit_some(usize::MAX);
    }

    /// Commits some of the outcomes with what belongs to them; the others cannot be written.
    fn commit_some(&mut self, which: usize) {
        let all = std::mem::take(&mut self.outcomes).into_iter().enumerate();
        let (written, refused): (Vec<_>, Vec<_>) =
            all.partition(|(number, _)| which & (1 << (number % 64)) != 0);
        self.outcomes = refused.into_iter().map(|(_, outcome)| outcome).collect();
        let offsets: Vec<Offset> = written
            .iter()
            .filter_map(|(_, (offset, _))| *offset)
            .collect();
        self.durable.snapshot = self.machine.snapshot_with(&offsets, place(), Format::V2);
        for (_, (_, outcome)) in written {
            self.load -= outcome.weight().unwrap_or(0);
            match outcome {
                Outcome::Tier(tier, command) => {
                    assert!(
                        command.due.is_some(),
                        "what waits in a tier is due some time"
                    );
                    self.durable.tiers.push((tier, command));
                }
                Outcome::DeadLetter(command, _) => {
                    *self.durable.dead.entry(command.webhook_id).or_default() += 1;
                }
                Outcome::Disable(decided_on) => {
                    // As in `commit.rs`: unless it has changed since.
                    let current = self.listed.all.get(&*decided_on.id);
                    if current.is_some_and(|current| Arc::ptr_eq(current, &decided_on)) {
                        let number = decided_on.id[1..].parse().unwrap();
                        self.listed.put(number, decided_on.order, "disabled");
                    }
                }
                Outcome::Invalid(_) => unreachable!("every record of the model can be read"),
            }
        }
        assert!(
            self.durable.snapshot.metadata.len() <= METADATA_LIMIT,
            "the window is always encodable"
        );
        self.apply(Event::Durable(offsets));
        assert!(
            self.machine.snapshot(place(), Format::V2).metadata.len() <= METADATA_LIMIT,
            "the window is always encodable, whatever cannot be written"
        );
    }

    /// Commits the position alone: every outcome waits.
    fn commit_position(&mut self) {
        self.durable.snapshot = self.machine.snapshot(place(), Format::V2);
    }

    fn restored(&self) -> Window {
        let Snapshot { position, metadata } = &self.durable.snapshot;
        let (window, error) = Window::restore(*position, metadata, place());
        assert_eq!(error, None);
        window
    }

    /// **One lineage**, **Durable outcome**: an undelivered command is in exactly one place.
    fn check_lineage(&self) {
        let mut copies: BTreeMap<&str, usize> = BTreeMap::new();
        let mut window = self.restored();
        let from = self.durable.snapshot.position.0 as usize;
        for (offset, command) in self.durable.log.iter().enumerate().skip(from) {
            if let Some(command) = command
                && window.take(Offset(offset as i64))
            {
                *copies.entry(&command.webhook_id).or_default() += 1;
            }
        }
        for (_, command) in &self.durable.tiers {
            *copies.entry(&command.webhook_id).or_default() += 1;
        }
        for (id, count) in &self.durable.dead {
            *copies.entry(id).or_default() += count;
        }
        for (id, known) in &self.known {
            let count = copies.get(&**id).copied().unwrap_or(0);
            assert!(count <= 1, "{id} has {count} live copies");
            assert!(count == 1 || known.delivered > 0, "{id} is lost");
        }
    }

    /// Returns due commands to the log, by a clock that may be `ahead` of this machine's.
    fn release(&mut self, ahead: Duration) {
        let wall = self.wall + ahead;
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.durable.tiers)
            .into_iter()
            .partition(|(_, command)| command.due.is_none_or(|due| due <= wall));
        self.durable.tiers = rest;
        for (_, command) in due {
            self.durable.log.push(Some(*command));
            // A transaction marker.
            self.durable.log.push(None);
        }
    }

    fn answer(&mut self) {
        for question in std::mem::take(&mut self.questions) {
            let found = match question {
                Question::UnderWay(from) => LookAhead::UnderWay(self.under_way(from)),
                Question::Others(from, except) => {
                    let start = from.0 as usize;
                    let rest = self.durable.log.iter().enumerate().skip(start);
                    let others = rest.filter_map(|(at, one)| {
                        let other = !except.contains(&one.as_ref()?.subscription);
                        other.then_some(Offset(at as i64))
                    });
                    let end = Position(self.durable.log.len() as i64);
                    LookAhead::Others(others.max(), end)
                }
            };
            self.apply(Event::LookedAhead(found));
        }
    }

    fn under_way(&self, from: Position) -> UnderWay {
        let mut found = UnderWay::new();
        let mut note = |command: &Command, released| {
            if let (Some(subject), Some(sequence)) = (&command.subject, command.sequence) {
                found
                    .entry(command.subscription.clone())
                    .or_default()
                    .push(Found {
                        subject: subject.clone(),
                        sequence,
                        attempt: command.attempt,
                        due: command.due.unwrap_or(command.enqueued),
                        released,
                    });
            }
        };
        for (_, command) in &self.durable.tiers {
            note(command, None);
        }
        for (at, command) in self.durable.log.iter().enumerate().skip(from.0 as usize) {
            if let Some(command) = command {
                note(command, Some(Offset(at as i64)));
            }
        }
        found
    }

    /// A new owner starts at the last commit.
    fn reopen(&mut self) {
        self.machine = Partition::new(rules(), self.restored());
        self.read_to = self.durable.snapshot.position.0 as usize;
        self.ready.clear();
        self.timers.clear();
        self.in_flight.clear();
        self.bodies.clear();
        self.outcomes.clear();
        self.questions.clear();
        self.load = 0;
        self.drained = false;
    }

    /// A clean revocation: attempts in flight end, and everything is committed.
    fn hand_over(&mut self) {
        self.apply(Event::Stop);
        while !self.in_flight.is_empty() {
            self.end(0, ok(), false);
        }
        assert!(self.drained, "a stop without attempts in flight is drained");
        self.commit();
        self.check_lineage();
        assert_eq!(self.load, 0, "nothing is held after a stop and a commit");
        self.reopen();
    }

    /// All endpoints work and everything due happens: nothing is left in the end.
    fn settle(&mut self) {
        self.paused = false;
        self.apply(Event::Resumed { responded: true });
        for number in 0..SUBSCRIPTIONS {
            let order = self.listed.all.get(&format!("s{number}"));
            let order = order.map_or(Order::None, |subscription| subscription.order);
            self.listed.put(number, order, "active");
        }
        for _ in 0..5_000 {
            self.release(Duration::ZERO);
            self.take(64);
            self.answer();
            self.dispatch();
            while let Some(lane) = self.bodies.pop() {
                self.apply(Event::SlotFreed(lane));
            }
            while !self.in_flight.is_empty() {
                self.end(0, ok(), false);
            }
            self.dispatch();
            self.commit();
            let is_done = self.durable.tiers.is_empty()
                && self.read_to == self.durable.log.len()
                && self.in_flight.is_empty()
                && self.durable.snapshot.position.0 as usize
                    >= self.durable.log.len().saturating_sub(1)
                && self.load == 0;
            if is_done {
                break;
            }
            self.advance(Duration::from_millis(700));
        }
        self.check_lineage();
        for (id, known) in &self.known {
            assert!(
                known.delivered > 0 || self.durable.dead.contains_key(id),
                "{id} never comes to its end"
            );
        }
        assert_eq!(self.load, 0, "nothing is held when all is done");
    }
}

fn ok() -> Response {
    Response::Status {
        status: 200,
        retry_after: None,
    }
}

#[derive(Clone, Debug)]
enum Action {
    Produce(usize, Option<usize>),
    Hole,
    Take(usize),
    Dispatch,
    End(usize, u8, bool),
    FreeSlot,
    Advance(u64),
    Commit,
    CommitSome(usize),
    CommitPosition,
    Pass,
    Release(u64),
    Burst(usize),
    Answer,
    Crash,
    HandOver,
    Pause,
    Resume(bool),
    Change(usize, Order, &'static str),
    Delete(usize),
    /// Delete, and create again for another subscriber.
    Move(usize),
    Spoil(usize),
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        2 => Just(Order::None),
        1 => Just(Order::PerSubject),
        1 => Just(Order::Strict)
    ]
}

/// Actions while the subscriptions stay unchanged.
fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (0..SUBSCRIPTIONS, proptest::option::of(0..SUBJECTS)).prop_map(|(one, subject)| Action::Produce(one, subject)),
        1 => Just(Action::Hole),
        8 => (1..20_usize).prop_map(Action::Take),
        10 => Just(Action::Dispatch),
        14 => (any::<usize>(), 0..8_u8, any::<bool>()).prop_map(|(pick, how, slot)| Action::End(pick, how, slot)),
        6 => Just(Action::FreeSlot),
        8 => prop_oneof![1..500_u64, 500..5_000_u64, 5_000..100_000_u64].prop_map(Action::Advance),
        4 => Just(Action::Commit),
        3 => any::<usize>().prop_map(Action::CommitSome),
        2 => Just(Action::CommitPosition),
        2 => Just(Action::Pass),
        5 => prop::sample::select(vec![0, 0, 500, 1_500, 30_000]).prop_map(Action::Release),
        5 => Just(Action::Answer),
        2 => Just(Action::Crash),
        1 => Just(Action::HandOver),
        1 => Just(Action::Pause),
        2 => any::<bool>().prop_map(Action::Resume),
    ]
}

/// Actions that change the subscriptions. Without order, whose meaning during a change is undefined.
fn change() -> impl Strategy<Value = Action> {
    let states = vec!["active", "paused", "disabled"];
    let state = (0..SUBSCRIPTIONS, prop::sample::select(states));
    prop_oneof![
        30 => action(),
        1 => state.prop_map(|(one, state)| Action::Change(one, Order::None, state)),
        1 => (0..SUBSCRIPTIONS).prop_map(Action::Delete),
        1 => (0..SUBSCRIPTIONS).prop_map(Action::Move),
        1 => (0..SUBSCRIPTIONS).prop_map(Action::Spoil),
    ]
}

fn response(how: u8) -> Response {
    let status = |status, retry_after| Response::Status {
        status,
        retry_after,
    };
    match how {
        0..=2 => ok(),
        3 => status(503, Some(Duration::from_secs(7))),
        4 => status(500, None),
        5 => Response::None(Class::Timeout),
        6 => status(400, None),
        _ => status(410, None),
    }
}

fn run(sim: &mut Sim, actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::Produce(subscription, subject) => sim.produce(subscription, subject),
            Action::Hole => sim.durable.log.push(None),
            Action::Take(most) => sim.take(most),
            Action::Dispatch => sim.dispatch(),
            Action::End(pick, how, slot) => sim.end(pick, response(how), slot),
            Action::FreeSlot => {
                if let Some(lane) = sim.bodies.pop() {
                    sim.apply(Event::SlotFreed(lane));
                }
            }
            Action::Advance(ms) => sim.advance(Duration::from_millis(ms)),
            Action::Commit => {
                sim.commit();
                sim.check_lineage();
            }
            Action::CommitSome(which) => {
                sim.commit_some(which);
                sim.check_lineage();
            }
            Action::CommitPosition => {
                sim.commit_position();
                sim.check_lineage();
            }
            Action::Pass => sim.apply(Event::Passed(Position(sim.read_to as i64))),
            Action::Release(ahead) => sim.release(Duration::from_millis(ahead)),
            Action::Burst(subscription) => {
                for _ in 0..=QUEUE_COMMANDS {
                    sim.produce(subscription, None);
                }
                sim.take(QUEUE_COMMANDS + 50);
            }
            Action::Answer => sim.answer(),
            Action::Crash => {
                sim.crashed = true;
                sim.reopen();
            }
            Action::HandOver => sim.hand_over(),
            Action::Pause => sim.paused = true,
            Action::Resume(responded) => {
                sim.paused = false;
                sim.apply(Event::Resumed { responded });
            }
            Action::Change(number, order, state) => sim.listed.put(number, order, state),
            Action::Delete(number) => sim.listed.remove(number),
            Action::Move(number) => sim.listed.put_for(number, "other", Order::None, "active"),
            Action::Spoil(number) => sim.listed.spoil(number),
        }
    }
    sim.settle();
}

proptest! {
    // Each case holds hundreds of commands.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_backlog_that_fills_its_lane_is_parked_and_comes_back(
        seed in any::<u64>(),
        before in proptest::collection::vec(action(), 0..30),
        bursts in proptest::collection::vec(0..SUBSCRIPTIONS, 1..3),
        after in proptest::collection::vec(action(), 0..60),
    ) {
        let bursts = bursts.into_iter().map(Action::Burst);
        let actions = before.into_iter().chain(bursts).chain(after).collect();
        let mut sim = Sim::new(seed, [Order::None, Order::None, Order::Strict, Order::None]);
        sim.has_spare = false;
        run(&mut sim, actions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_every_command_comes_to_one_end(
        seed in any::<u64>(),
        orders in [order(), order(), order(), order()],
        actions in proptest::collection::vec(action(), 0..120),
    ) {
        run(&mut Sim::new(seed, orders), actions);
    }

    #[test]
    fn subscriptions_that_change_lose_and_double_nothing(
        seed in any::<u64>(),
        actions in proptest::collection::vec(change(), 0..120),
    ) {
        run(&mut Sim::new(seed, [Order::None; SUBSCRIPTIONS]), actions);
    }
}

/// **Isolated**: one subscriber's backlog delays another only for the time it takes to find the other's commands behind
/// it.
#[test]
fn a_backlog_holds_nobody_behind_it_up_for_long() {
    let mut sim = Sim::new(7, [Order::None; SUBSCRIPTIONS]);
    sim.has_spare = false;
    for _ in 0..8_000 {
        sim.produce(0, None);
    }
    sim.produce(1, None);
    let waits: Box<str> = "msg_8000".into();
    let began = sim.now;
    while !sim.known[&waits].sent {
        sim.take(500);
        sim.answer();
        // The endpoint is fast: 600 requests per second.
        for _ in 0..4 {
            sim.dispatch();
            while !sim.in_flight.is_empty() {
                sim.end(0, ok(), false);
            }
        }
        sim.commit();
        sim.advance(Duration::from_millis(20));
        assert!(
            sim.now - began < Duration::from_secs(5),
            "a subscriber with one command waits behind another one's backlog"
        );
    }
}

/// What a lookup returns holds for one attempt.
#[test]
fn an_address_that_a_lookup_denies_costs_one_attempt_until_the_schedule_ends() {
    let mut sim = Sim::new(7, [Order::None; SUBSCRIPTIONS]);
    sim.produce(0, None);
    for attempt in 0..=SCHEDULE.len() {
        sim.take(10);
        sim.dispatch();
        assert_eq!(sim.in_flight.len(), 1, "attempt {attempt}");
        sim.end(0, Response::None(Class::Egress), false);
        match &sim.outcomes[..] {
            [(_, Outcome::Tier(..))] => {
                assert!(attempt < SCHEDULE.len(), "a fifth attempt follows")
            }
            [(_, Outcome::DeadLetter(_, info))] => {
                assert_eq!(attempt, SCHEDULE.len(), "dead after an early attempt");
                assert_eq!(info.reason, Reason::EgressDenied);
            }
            other => panic!("{other:?}"),
        }
        sim.commit();
        sim.advance(Duration::from_secs(120));
        sim.release(Duration::ZERO);
    }
    assert_eq!(sim.durable.dead.len(), 1);
}

/// Commands of a subscription that was created again for another subscriber are not sent to its endpoint.
#[test]
fn a_command_of_another_subscriber_becomes_a_dead_letter() {
    let mut sim = Sim::new(1, [Order::None; SUBSCRIPTIONS]);
    sim.produce(0, None);
    sim.produce(0, None);
    sim.take(1);
    sim.listed.put_for(0, "other", Order::None, "active");
    sim.take(1);
    sim.dispatch();
    assert!(
        sim.in_flight.is_empty(),
        "nothing is sent to another subscriber's endpoint"
    );
    let parked = |(_, outcome): &(_, Outcome)| matches!(outcome, Outcome::Tier(..));
    assert!(
        sim.outcomes.iter().all(parked),
        "a young command waits: {:?}",
        sim.outcomes
    );
    sim.commit();
    sim.advance(Duration::from_secs(15));
    sim.release(Duration::ZERO);
    sim.take(2);
    sim.dispatch();
    assert!(sim.in_flight.is_empty());
    assert_eq!(sim.outcomes.len(), 2);
    for (_, outcome) in &sim.outcomes {
        let Outcome::DeadLetter(_, info) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(info.reason, Reason::SubscriptionMissing);
        assert!(
            info.error.contains("other") && info.error.contains("owner0"),
            "{}",
            info.error
        );
    }
}

/// A subscription whose only record is invalid exists: its commands wait for a valid one.
#[test]
fn commands_of_an_unknown_subscription_wait() {
    let mut sim = Sim::new(1, [Order::None; SUBSCRIPTIONS]);
    sim.produce(0, None);
    sim.listed.spoil(0);
    sim.advance(Duration::from_secs(60));
    for _ in 0..5 {
        sim.take(4);
        sim.dispatch();
        sim.commit();
        sim.advance(Duration::from_secs(700));
        sim.release(Duration::ZERO);
    }
    assert!(sim.durable.dead.is_empty() && sim.in_flight.is_empty());
    sim.listed.put(0, Order::None, "active");
    sim.take(4);
    sim.dispatch();
    assert_eq!(sim.in_flight.len(), 1);
}
