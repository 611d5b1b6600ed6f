//! Simulates one endpoint behind a partition, in virtual time: what it receives, when, and how often.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::delivery::partition::effect::{Concluded, Notice};
use crate::delivery::partition::fairness::Others;
use crate::model::outcome::AttemptOutcome;
use crate::model::status::Status;
use crate::model::tiers::Head;

mod notices;
mod parking;
mod statuses;
mod throttling;
mod until_probe;

const TICK: Duration = Duration::from_millis(100);
/// Requests in flight of the whole replica.
const REPLICA: usize = 1024;
/// From a decision to the record in its tier.
const APPEND: Duration = Duration::from_millis(200);
/// Records per poll.
const BATCH: usize = 500;

/// A request, as the endpoint sees it.
struct Seen<'a> {
    /// Since the begin of the simulation.
    at: Duration,
    event_type: &'a str,
    /// Requests with this webhook id so far, this one included.
    number: usize,
}

type Respond = Box<dyn FnMut(&Seen<'_>) -> (Duration, Response)>;

/// The only subscription.
struct Only {
    subscription: Arc<Subscription>,
    limits: Limits,
    /// What a former owner wrote.
    before: Option<Arc<Status>>,
    statuses: u64,
    version: u64,
    max_age: Duration,
    is_paused: bool,
}

impl Subscriptions for Only {
    type Endpoint = Peer;

    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, _: &str, _: &str) -> Result<Arc<Subscription>, Unavailable> {
        Ok(Arc::clone(&self.subscription))
    }

    fn status(&self, _: &str, _: &str) -> Option<Arc<Status>> {
        self.before.clone()
    }

    fn statuses_version(&self) -> u64 {
        self.statuses
    }

    fn terms(&self, _: &Arc<Subscription>, _: Option<&Peer>) -> Terms<Peer> {
        Terms {
            standing: if self.is_paused {
                Standing::Waiting
            } else {
                Standing::Open(Peer(Arc::clone(&self.subscription)))
            },
            limits: self.limits,
            order: self.subscription.order,
            max_age: self.max_age,
            resumed_at: None,
            valid_for: None,
        }
    }
}

/// A delivered webhook.
#[derive(Debug)]
struct Delivery {
    at: Duration,
    /// Since its event.
    took: Duration,
    subject: Option<Box<str>>,
    /// Its place among the events.
    number: usize,
    /// Attempts spent before.
    attempt: u32,
}

struct Virtual {
    only: Only,
    machine: Partition<Peer>,
    effects: Effects<Peer>,
    random: fastrand::Rng,
    begin: Instant,
    now: Instant,
    wall: EpochMs,
    respond: Respond,
    offset: i64,
    sequence: u64,
    /// Events that are still to come, by time.
    events: VecDeque<(Duration, Command)>,
    events_made: usize,
    tiers: Tiers,
    /// Commands in tiers, by the time at which release looks at them.
    looks: BinaryHeap<Reverse<(Instant, u64)>>,
    /// With their tier, and when they were appended to it.
    waiting: HashMap<u64, (usize, EpochMs, Command)>,
    /// `webhook-commands`.
    log: Vec<Command>,
    /// Records of it that were read again.
    read_again: usize,
    /// Records written to tiers, and from there.
    appends: usize,
    timers: BTreeSet<Instant>,
    next_tick: Instant,
    ready: VecDeque<LaneId>,
    ends: BinaryHeap<Reverse<(Instant, u64)>>,
    in_flight: HashMap<u64, (Attempt<Peer>, Response)>,
    requests: HashMap<Box<str>, usize>,
    delivered: Vec<Delivery>,
    outcomes: HashMap<&'static str, usize>,
    opened: usize,
    parked: usize,
    dead: usize,
    /// The age of the oldest dead letter when it was written.
    oldest_dead: Duration,
    statuses: Vec<(Duration, Status)>,
    notices: Vec<(Duration, crate::model::notice::Notice)>,
}

impl Virtual {
    fn new(
        order: &str,
        max_in_flight: usize,
        respond: impl FnMut(&Seen<'_>) -> (Duration, Response) + 'static,
    ) -> Self {
        Self::with(undeferred(), order, max_in_flight, respond)
    }

    fn with(
        rules: Rules,
        order: &str,
        max_in_flight: usize,
        respond: impl FnMut(&Seen<'_>) -> (Duration, Response) + 'static,
    ) -> Self {
        let record = serde_json::json!({
            "id": "s0", "subscriber": "owner0", "events": ["**"], "url": "https://example.com/", "order": order,
        });
        let subscription = parse(Some(b"s0"), record.to_string().as_bytes()).unwrap();
        let now = crate::edge::clock::instant();
        Self {
            only: Only {
                subscription: Arc::new(subscription),
                limits: Limits {
                    max_in_flight,
                    rate: None,
                    breaker: crate::delivery::partition::breaker::tests::RULES,
                },
                before: None,
                statuses: 0,
                version: 0,
                max_age: DAY,
                is_paused: false,
            },
            tiers: rules.tiers.clone(),
            machine: Partition::new(Arc::new(rules), Window::new(Position(0))),
            effects: Effects::default(),
            random: fastrand::Rng::with_seed(1),
            begin: now,
            now,
            wall: EpochMs(1_700_000_000_000),
            respond: Box::new(respond),
            offset: 0,
            sequence: 0,
            events: VecDeque::new(),
            events_made: 0,
            looks: BinaryHeap::new(),
            waiting: HashMap::new(),
            log: Vec::new(),
            read_again: 0,
            appends: 0,
            timers: BTreeSet::new(),
            next_tick: now,
            ready: VecDeque::new(),
            ends: BinaryHeap::new(),
            in_flight: HashMap::new(),
            requests: HashMap::new(),
            delivered: Vec::new(),
            outcomes: HashMap::new(),
            opened: 0,
            parked: 0,
            dead: 0,
            oldest_dead: Duration::ZERO,
            statuses: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// An event of this type comes `at` this time.
    fn event(&mut self, at: Duration, event_type: &str, subject: Option<&str>) {
        let id: Box<str> = format!("{}", self.events_made).into();
        self.events_made += 1;
        let command = Command {
            webhook_id: id,
            subscriber: "owner0".into(),
            subscription: "s0".into(),
            event_type: event_type.into(),
            subject: subject.map(Into::into),
            attempt: 0,
            due: None,
            enqueued: self.wall + at,
            cause: Cause::New,
            first_failure: None,
            sequence: None,
            recorded: None,
            cluster: None,
            body: Bytes::from_static(b"{}"),
            ..sample()
        };
        self.events.push_back((at, command));
    }

    fn apply(&mut self, event: Event<Peer>) {
        let env = Env {
            now: self.now,
            wall: self.wall,
            memory: Memory::Plenty,
            subscriptions: &self.only,
        };
        self.machine
            .apply(event, &env, &mut self.random, &mut self.effects);
        let mut written = Vec::new();
        for effect in std::mem::take(&mut self.effects.list) {
            match effect {
                Effect::Ready(lane) => self.ready.push_back(lane),
                Effect::Send(attempt) => self.send(attempt),
                Effect::Write(offset, outcome) => {
                    match outcome {
                        Outcome::Tier(tier, command) => self.waits(tier, *command),
                        Outcome::DeadLetter(command, _) => {
                            self.dead += 1;
                            let age = self.wall.since(command.enqueued);
                            self.oldest_dead = self.oldest_dead.max(age);
                        }
                        Outcome::Status(status) => {
                            self.statuses.push((self.now - self.begin, *status));
                        }
                        Outcome::Notice(notice, status) => {
                            self.notices.push((self.now - self.begin, *notice));
                            self.statuses.push((self.now - self.begin, *status));
                        }
                        Outcome::Disable(_, _, notice) => {
                            let notice = notice.map(|notice| (self.now - self.begin, *notice));
                            self.notices.extend(notice);
                        }
                        Outcome::Invalid(_) | Outcome::Verification(..) => {}
                    }
                    written.extend(offset);
                }
                Effect::Drained => {}
                Effect::ReadAgain(pass) => self.read_again(*pass),
                Effect::WakeAt(at) => drop(self.timers.insert(at)),
                Effect::LookAhead(question) => {
                    let found = match question {
                        Question::UnderWay(_) => LookAhead::UnderWay(UnderWay::new(ORDER_BYTES)),
                        Question::Others(..) => LookAhead::Others(Others {
                            last: None,
                            seen_to: Position(self.offset),
                            more: false,
                        }),
                    };
                    self.apply(Event::LookedAhead(found));
                }
                Effect::Parked(_) => self.parked += 1,
                Effect::Concluded(Concluded { outcome, .. }) => {
                    *self.outcomes.entry(outcome.as_str()).or_default() += 1;
                }
                Effect::Notice(notice) => {
                    self.opened += usize::from(matches!(notice, Notice::BreakerOpened { .. }));
                }
            }
        }
        if !written.is_empty() {
            self.apply(Event::Durable(written));
        }
    }

    fn read_again(&mut self, pass: Pass) {
        let (from, to) = (pass.from, pass.to);
        let most = Amount {
            bytes: usize::MAX,
            commands: usize::MAX,
        };
        let mut collector = Collector::new(pass, most);
        for offset in from..to {
            if !collector.is_done() {
                let command = &self.log[offset as usize];
                let read = || Some(Box::new(command.clone()));
                collector.visit(Offset(offset), Some(&command.subscription), read);
            }
        }
        let found = collector.finish();
        self.read_again += found.records;
        self.apply(Event::LookedAhead(LookAhead::Again(Box::new(found))));
    }

    fn number(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn send(&mut self, attempt: Attempt<Peer>) {
        assert!(attempt.command.due.is_none_or(|due| due <= self.wall));
        let number = self.requests.entry(attempt.command.webhook_id.clone());
        let number = number.and_modify(|count| *count += 1).or_insert(1);
        let seen = Seen {
            at: self.now - self.begin,
            event_type: &attempt.command.event_type,
            number: *number,
        };
        let (takes, response) = (self.respond)(&seen);
        let number = self.number();
        self.ends.push(Reverse((self.now + takes, number)));
        self.in_flight.insert(number, (attempt, response));
    }

    fn waits(&mut self, tier: usize, command: Command) {
        self.appends += 1;
        let number = self.number();
        let appended = self.wall + APPEND;
        self.waiting.insert(number, (tier, appended, command));
        self.looks.push(Reverse((self.now, number)));
    }

    /// Takes commands out of the tiers that are due, at most a batch.
    fn release(&mut self) -> Vec<Command> {
        let mut batch = Vec::new();
        while let Some(&Reverse((at, number))) = self.looks.peek()
            && at <= self.now
            && batch.len() < BATCH
        {
            self.looks.pop();
            let (tier, appended, command) = self.waiting.remove(&number).unwrap();
            let due = command.due.expect("commands in tiers are due some time");
            match self.tiers.at_head(tier, appended, due, self.wall) {
                Head::Wait(until) => {
                    let again = self.now + until.since(self.wall);
                    self.looks.push(Reverse((again, number)));
                    self.waiting.insert(number, (tier, appended, command));
                }
                Head::Hop(next) => self.waits(next, command),
                Head::Due => {
                    self.appends += 1;
                    batch.push(command);
                }
            }
        }
        batch
    }

    fn take(&mut self, commands: Vec<Command>) {
        let mut incoming = Vec::new();
        for command in commands {
            self.log.push(command.clone());
            incoming.push(Incoming {
                offset: Offset(self.offset),
                content: Ok(Box::new(command)),
                mark: None,
            });
            self.offset += 1;
        }
        if !incoming.is_empty() {
            self.apply(Event::Taken(incoming));
        }
    }

    /// Runs until all webhooks are delivered or dead, at most until `end`.
    fn run(&mut self, end: Duration) {
        let end = self.begin + end;
        while self.delivered.len() + self.dead < self.events_made {
            let event = self.events.front().map(|(at, _)| self.begin + *at);
            let next = [
                Some(self.next_tick),
                event,
                self.ends.peek().map(|Reverse((at, _))| *at),
                self.timers.first().copied(),
            ];
            let next = next.into_iter().flatten().min().unwrap();
            if next > end {
                return;
            }
            if next > self.now {
                let millis = |at: Instant| (at - self.begin).as_millis() as i64;
                self.wall = EpochMs(self.wall.0 + millis(next) - millis(self.now));
                self.now = next;
            }
            self.step();
        }
    }

    fn step(&mut self) {
        while let Some(&Reverse((at, number))) = self.ends.peek()
            && at <= self.now
        {
            self.ends.pop();
            self.end(number);
        }
        while let Some(at) = self.timers.first().copied().filter(|at| *at <= self.now) {
            self.timers.remove(&at);
            self.apply(Event::Timer);
        }
        let mut batch = Vec::new();
        while let Some((at, _)) = self.events.front()
            && self.begin + *at <= self.now
            && batch.len() < BATCH
        {
            batch.extend(self.events.pop_front().map(|(_, command)| command));
        }
        self.take(batch);
        if self.next_tick <= self.now {
            self.next_tick = self.now + TICK;
            let batch = self.release();
            self.take(batch);
            self.apply(Event::Tick);
        }
        while self.in_flight.len() < REPLICA
            && let Some(lane) = self.ready.pop_front()
        {
            let spare = REPLICA - self.in_flight.len();
            self.apply(Event::Turn { lane, spare });
        }
    }

    fn end(&mut self, number: u64) {
        let (attempt, response) = self.in_flight.remove(&number).unwrap();
        let command = &attempt.command;
        if matches!(response.status(), Some(200..=299)) {
            self.delivered.push(Delivery {
                at: self.now - self.begin,
                took: self.wall.since(command.enqueued),
                subject: command.subject.clone(),
                number: command.webhook_id.parse().unwrap(),
                attempt: command.attempt,
            });
        }
        self.apply(Event::Ended(ended(attempt, response)));
    }

    fn outcome(&self, outcome: AttemptOutcome) -> usize {
        self.outcomes.get(outcome.as_str()).copied().unwrap_or(0)
    }

    fn last(&self) -> Duration {
        self.delivered.last().map(|one| one.at).unwrap_or_default()
    }
}

const QUICK: Duration = Duration::from_millis(5);

fn status(status: u16, retry_after: Option<u64>) -> Response {
    Response::Status {
        status,
        retry_after: retry_after.map(Duration::from_secs),
    }
}

#[test]
fn an_endpoint_that_says_503_to_all_opens_its_breaker_whatever_it_asks_for() {
    for response in [status(503, None), status(503, Some(1))] {
        let mut world = Virtual::new("none", 8, move |_| (QUICK, response));
        for _ in 0..1000 {
            world.event(Duration::ZERO, "order.created", None);
        }
        world.run(Duration::from_secs(120));
        assert!(world.opened > 0, "{response:?}");
        let requests: usize = world.requests.values().sum();
        assert!(requests < 40, "{response:?}: {requests} requests");
    }
}

/// Six of ten events are refused.
fn refuses(invoices: Response) -> impl FnMut(&Seen<'_>) -> (Duration, Response) {
    move |seen| {
        let refused = seen.event_type.starts_with("invoice");
        (QUICK, if refused { invoices } else { ok() })
    }
}

#[test]
fn one_event_type_that_is_refused_does_not_hold_up_the_others() {
    let refusals = [
        status(404, None),
        status(500, None),
        Response::None(Class::Other),
    ];
    for (pace, refusal) in [20, 1000, 5000]
        .into_iter()
        .flat_map(|pace| refusals.map(|refusal| (pace, refusal)))
    {
        let mut world = Virtual::new("none", 8, refuses(refusal));
        for number in 0..500 {
            let at = Duration::from_millis(number * pace);
            match number % 10 {
                0..6 => world.event(at, &format!("invoice.{}", number % 4), None),
                _ => world.event(at, "order.created", None),
            }
        }
        world.run(Duration::from_millis(500 * pace) + Duration::from_secs(20));
        let orders = world.delivered.iter();
        let slowest = orders.map(|one| one.took).max().unwrap();
        assert_eq!(world.delivered.len(), 200, "{pace} ms, {refusal:?}");
        assert!(
            slowest < Duration::from_secs(8),
            "{pace} ms, {refusal:?}: {slowest:?}"
        );
    }
}

#[test]
fn an_endpoint_that_fails_all_first_attempts_is_not_cut_off() {
    for (max_in_flight, count) in [(8, 10_000), (1, 1000)] {
        let mut world = Virtual::new("none", max_in_flight, |seen| {
            let fails = seen.number == 1;
            (QUICK, if fails { status(500, None) } else { ok() })
        });
        for _ in 0..count {
            world.event(Duration::ZERO, "order.created", None);
        }
        world.run(Duration::from_secs(3600));
        assert_eq!(world.delivered.len(), count);
        let last = world.last();
        assert!(last < Duration::from_secs(120), "{count} took {last:?}");
    }
}

#[test]
fn an_endpoint_that_is_down_costs_few_attempts_and_works_soon_after_it_is_up() {
    let up = Duration::from_secs(60);
    let refused = Response::None(Class::Connect);
    for down in [status(500, None), refused, Response::None(Class::Timeout)] {
        let mut world = Virtual::new("none", 8, move |seen| {
            let is_down = (Duration::from_secs(5)..up).contains(&seen.at);
            (QUICK, if is_down { down } else { ok() })
        });
        for number in 0..1000 {
            let event_type = format!("type{}", number % 3);
            world.event(Duration::from_millis(number * 60), &event_type, None);
        }
        world.run(Duration::from_secs(600));
        assert_eq!(world.delivered.len(), 1000);
        let spent = world.outcome(AttemptOutcome::Retry);
        // The moment after the last success, and probes.
        assert!(spent < 150, "{down:?}: {spent} attempts spent");
        assert!(
            world.last() < up + Duration::from_secs(60),
            "{:?}",
            world.last()
        );
    }
}

#[test]
fn a_few_quick_responses_do_not_starve_an_endpoint() {
    for max_in_flight in [1, 2, 8, 64] {
        let count = 500 * max_in_flight;
        let mut world = Virtual::new("none", max_in_flight, |seen| {
            let is_ping = seen.event_type == "ping";
            let takes = if is_ping { 5 } else { 200 };
            (Duration::from_millis(takes), ok())
        });
        for number in 0..count {
            let event_type = if number % 20 == 19 { "ping" } else { "order" };
            world.event(Duration::ZERO, event_type, None);
        }
        world.run(Duration::from_secs(3600));
        let rate = world.delivered.len() as f64 / world.last().as_secs_f64();
        let possible = max_in_flight as f64 / 0.2;
        assert!(rate > 0.8 * possible, "{rate} of {possible} per second");
    }
}

/// Without deferral, for the tests of what parks, waits and probes.
fn undeferred() -> Rules {
    Rules {
        defers: false,
        ..(*rules(ORDER_BYTES, TIERS)).clone()
    }
}
