//! The faults: which there are, in which order a seed brings them, and how each is done to a running system.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use hookstream::edge::clock;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use crate::fleet::{Fleet, SESSION};
use crate::history::Injected;
use crate::it::support::{Broker, Process, Receiver, Weather, World};
use crate::origin::Origin;
use crate::report::print_logs;
use crate::tenants::{HANGING, Tenants};
use crate::traffic::{self, Generator, Progress};
use crate::truth::{Kind, SUBSCRIPTIONS};

/// The scaled roles.
pub const ROLES: [&str; 3] = ["fanout", "deliver", "release"];

/// Those that write transactions.
const TRANSACTIONAL: [&str; 2] = ["deliver", "release"];

/// Where a process can be made to die (`src/edge/failpoint.rs`), and in which roles it comes by there.
const POINTS: [(&str, &[&str]); 16] = [
    ("poll.before", &ROLES),
    ("poll.after", &ROLES),
    ("acknowledged.before", &TRANSACTIONAL),
    ("acknowledged.after", &TRANSACTIONAL),
    ("offsets-sent.before", &TRANSACTIONAL),
    ("offsets-sent.after", &TRANSACTIONAL),
    ("end-txn.before", &TRANSACTIONAL),
    ("end-txn.after", &TRANSACTIONAL),
    ("request.before", &["deliver"]),
    ("response-head.after", &["deliver"]),
    ("response.after", &["deliver"]),
    ("snapshot-commit.before", &["fanout", "deliver"]),
    ("snapshot-commit.after", &["fanout", "deliver"]),
    ("committed-read.before", &ROLES),
    ("committed-read.after", &ROLES),
    ("assigned.after", &ROLES),
];

/// What can go wrong, by the name under which `FAULTS` asks for it and the report counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    Kill,
    Point,
    Stop,
    LongStop,
    Rolling,
    Storm,
    Partitions,
    BrokerKill,
    BrokerRestart,
    RollingBrokers,
    AllDown,
    Slow,
    Loss,
    Cut,
    HalfOpen,
    NoBrokers,
    Dns,
    Subscriptions,
    Replay,
    Oversized,
    Garbage,
    OpenTransaction,
    ClosedPort,
    HangingTenant,
    OddSecrets,
    Gone,
    SilentZone,
    SharedOrigin,
    ManyConnections,
    Unwritable,
}

impl Fault {
    pub const ALL: [Self; 30] = [
        Self::Kill,
        Self::Point,
        Self::Stop,
        Self::LongStop,
        Self::Rolling,
        Self::Storm,
        Self::Partitions,
        Self::BrokerKill,
        Self::BrokerRestart,
        Self::RollingBrokers,
        Self::AllDown,
        Self::Slow,
        Self::Loss,
        Self::Cut,
        Self::HalfOpen,
        Self::NoBrokers,
        Self::Dns,
        Self::Subscriptions,
        Self::Replay,
        Self::Oversized,
        Self::Garbage,
        Self::OpenTransaction,
        Self::ClosedPort,
        Self::HangingTenant,
        Self::OddSecrets,
        Self::Gone,
        Self::SilentZone,
        Self::SharedOrigin,
        Self::ManyConnections,
        Self::Unwritable,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9 of a replica",
            Self::Point => "kill at a named point",
            Self::Stop => "SIGSTOP beyond the session",
            Self::LongStop => "SIGSTOP beyond the transaction",
            Self::Rolling => "rolling restart of replicas",
            Self::Storm => "storm of rebalances",
            Self::Partitions => "partitions added",
            Self::BrokerKill => "kill -9 of a broker",
            Self::BrokerRestart => "restart of a broker",
            Self::RollingBrokers => "rolling restart of brokers",
            Self::AllDown => "all brokers down for 30 s",
            Self::Slow => "slow network",
            Self::Loss => "lossy network",
            Self::Cut => "cut connections",
            Self::HalfOpen => "half-open connections",
            Self::NoBrokers => "metadata without brokers",
            Self::Dns => "DNS failing",
            Self::Subscriptions => "subscriptions changed",
            Self::Replay => "replay, killed midway",
            Self::Oversized => "event too large to be set aside whole",
            Self::Garbage => "garbage on hookstream's topics",
            Self::OpenTransaction => "open transaction of a publisher",
            Self::ClosedPort => "eight subscriptions to a closed port",
            Self::HangingTenant => "eight subscriptions that hang",
            Self::OddSecrets => "secret files that block or never end",
            Self::Gone => "410 while the URL is changed",
            Self::SilentZone => "hosts in a zone whose name server never responds",
            Self::SharedOrigin => "requests that hang on a shared HTTP/2 origin",
            Self::ManyConnections => "a tenant with many connections",
            Self::Unwritable => "retry topic below min ISR",
        }
    }

    /// As in `FAULTS=kill,point`: the name's words without spaces, or the variant's.
    pub fn is_named(self, word: &str) -> bool {
        format!("{self:?}").eq_ignore_ascii_case(word)
    }

    /// Whether brokers are away meanwhile.
    fn is_of_brokers(self) -> bool {
        matches!(
            self,
            Self::BrokerKill
                | Self::BrokerRestart
                | Self::RollingBrokers
                | Self::AllDown
                | Self::Unwritable
        )
    }

    /// Whether it may stop nothing beyond one tenant, record or topic.
    pub fn is_contained(self) -> bool {
        self.is_of_tenant() || self == Self::Unwritable
    }

    /// Whether it concerns one tenant, record or topic, so that nobody else may notice.
    pub fn is_of_tenant(self) -> bool {
        matches!(
            self,
            Self::Oversized
                | Self::Garbage
                | Self::OpenTransaction
                | Self::ClosedPort
                | Self::HangingTenant
                | Self::OddSecrets
                | Self::Gone
                | Self::SilentZone
                | Self::SharedOrigin
                | Self::ManyConnections
        )
    }

    /// How many of them a bag holds: long ones are rarer.
    fn weight(self) -> usize {
        match self {
            Self::Kill => 3,
            Self::Point => 5,
            Self::Partitions
            | Self::RollingBrokers
            | Self::AllDown
            | Self::LongStop
            | Self::Unwritable => 1,
            _ if self.is_of_tenant() => 1,
            _ => 2,
        }
    }

    /// Whether it takes so long that a short run leaves it out.
    fn is_long(self) -> bool {
        matches!(self, Self::RollingBrokers | Self::AllDown | Self::LongStop)
    }
}

/// Brings faults in an order that the seed decides: every kind comes before any comes more often than its weight.
pub struct Bag {
    kinds: Vec<Fault>,
    left: Vec<Fault>,
}

impl Bag {
    /// Of the kinds that are wanted; `short` leaves the long ones out.
    pub fn new(wanted: &dyn Fn(Fault) -> bool, short: bool) -> Self {
        let kinds = Fault::ALL
            .into_iter()
            .filter(|&kind| wanted(kind) && !(short && kind.is_long()));
        Self {
            kinds: kinds.collect(),
            left: Vec::new(),
        }
    }

    pub fn next(&mut self, rng: &mut Rng) -> Fault {
        if self.left.is_empty() {
            let mut more: Vec<Fault> = self
                .kinds
                .iter()
                .flat_map(|&kind| vec![kind; kind.weight() - 1])
                .collect();
            let mut each = self.kinds.clone();
            rng.shuffle(&mut more);
            rng.shuffle(&mut each);
            // Taken from the back: one of each kind first.
            self.left = more;
            self.left.append(&mut each);
        }
        self.left.pop().expect("FAULTS names at least one kind")
    }
}

/// What faults are done to.
pub struct Scene<'a> {
    pub broker: &'a Broker,
    pub world: &'a Arc<World>,
    pub receiver: &'a Receiver,
    pub origin: &'a Origin,
    pub fleet: &'a mut Fleet,
    /// Secrets so far; the number of the last one.
    pub secret: u32,
    pub partitions: usize,
    /// Replays that failed other than by being killed.
    pub failures: Vec<String>,
    pub generator: &'a Generator,
    pub tenants: &'a Tenants,
    pub progress: &'a Progress,
    /// Events a second.
    pub rate: u32,
    /// Whether this fault comes alone, so that what it breaks can be told from what others do.
    pub alone: bool,
    /// When all was well again, where a fault lasts for longer than what it breaks.
    pub recovered: Option<Instant>,
}

/// A secret as Standard Webhooks wants it: 24 bytes or more, in base64.
pub fn secret(number: u32) -> String {
    use base64::Engine as _;
    let bytes = format!("secret of the chaos test {number:08}");
    format!(
        "whsec_{}",
        base64::engine::general_purpose::STANDARD.encode(bytes)
    )
}

fn pause(rng: &mut Rng, milliseconds: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(rng.u64(milliseconds)));
}

/// Sets a retry topic's settings anew.
fn set_min_isr(world: &World, topic: &str, count: &str) {
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("message.timestamp.type", "LogAppendTime")
        .set("min.insync.replicas", count);
    let changed =
        crate::it::support::block_on(admin.alter_configs([&change], &AdminOptions::new()));
    changed.unwrap().into_iter().for_each(|result| {
        result.unwrap();
    });
}

impl Scene<'_> {
    /// Does it, and mends what it broke; what the program has to do is then its own affair.
    pub fn inject(&mut self, fault: Fault, rng: &mut Rng) -> Injected {
        let from = clock::now().0;
        let what = match fault {
            Fault::Kill => self.kill(rng),
            Fault::Point => self.point(rng),
            Fault::Stop => self.stop(rng, SESSION + Duration::from_secs(2)),
            Fault::LongStop => self.stop(rng, Duration::from_secs(16)),
            Fault::Rolling => self.rolling(rng),
            Fault::Storm => self.storm(rng),
            Fault::Partitions => self.add_partitions(),
            Fault::BrokerKill => self.broker(rng, true),
            Fault::BrokerRestart => self.broker(rng, false),
            Fault::RollingBrokers => self.rolling_brokers(),
            Fault::AllDown => self.all_down(),
            Fault::Slow => self.weather(rng, Weather::Slow(Duration::from_millis(40)), 3),
            Fault::Loss => self.weather(rng, Weather::Lossy(10), 5),
            Fault::Cut => self.weather(rng, Weather::Cut, 2),
            Fault::HalfOpen => self.weather(rng, Weather::HalfOpen, 1),
            Fault::NoBrokers => self.weather(rng, Weather::NoBrokers, 3),
            Fault::Dns => self.dns(rng),
            Fault::Subscriptions => self.subscriptions(rng),
            Fault::Replay => self.replay(rng),
            Fault::Oversized => self.tenants.oversized(self.world, rng),
            Fault::Garbage => self.tenants.garbage(self.world, rng),
            Fault::OpenTransaction => self.tenants.open_transaction(self.world, rng),
            Fault::ClosedPort => self.tenants.closed_port(self.world),
            Fault::HangingTenant => self
                .tenants
                .dead_endpoints(self.world, |_| self.receiver.url(HANGING)),
            Fault::SharedOrigin => self
                .tenants
                .dead_endpoints(self.world, |_| self.origin.url(HANGING)),
            Fault::SilentZone => self.tenants.silent_zone(self.world),
            Fault::ManyConnections => self.tenants.many_connections(self.world),
            Fault::OddSecrets => self.tenants.odd_secrets(self.world, self.receiver),
            Fault::Gone => self
                .tenants
                .gone(self.world, self.receiver, &mut self.failures),
            Fault::Unwritable => self.unwritable(rng),
        };
        Injected {
            what: format!("{}: {what}", fault.name()),
            of_brokers: fault.is_of_brokers(),
            of_tenant: false,
            from,
            until: clock::now().0,
        }
    }

    fn any(&self, rng: &mut Rng, role: &str) -> usize {
        let running = self.fleet.running(role);
        running[rng.usize(0..running.len())]
    }

    fn kill(&mut self, rng: &mut Rng) -> String {
        let role = ROLES[rng.usize(0..ROLES.len())];
        let at = self.any(rng, role);
        self.fleet.kill(at);
        role.to_owned()
    }

    /// The replica runs until it comes by the point; if it does not in time, that is said.
    fn point(&mut self, rng: &mut Rng) -> String {
        const PATIENCE: Duration = Duration::from_secs(20);
        let (point, roles) = POINTS[rng.usize(0..POINTS.len())];
        let role = roles[rng.usize(0..roles.len())];
        let at = self.any(rng, role);
        let nth = if point.starts_with("committed") || point.starts_with("assigned") {
            0
        } else {
            rng.u32(0..30)
        };
        self.fleet.arm(at, &format!("{point}={nth}*off->return"));
        self.fleet.expect_end(at);
        let deadline = Instant::now() + PATIENCE;
        while !self.fleet.has_ended(at) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let died = self.fleet.has_ended(at);
        if died {
            self.fleet.tend();
        } else {
            self.fleet.kill(at);
        }
        let how = if died { "" } else { " (not come by: killed)" };
        format!("{role} at {point} after {nth}{how}")
    }

    /// A replica whose look-ups of names fail at first; endpoints that are reached by a number are none of its affair.
    fn dns(&mut self, rng: &mut Rng) -> String {
        let at = self.any(rng, "deliver");
        let failing = rng.u32(5..60);
        self.fleet
            .arm(at, &format!("resolve={failing}*return->off"));
        format!("the first {failing} look-ups of a deliver")
    }

    fn stop(&mut self, rng: &mut Rng, length: Duration) -> String {
        let role = ROLES[rng.usize(0..ROLES.len())];
        let at = self.any(rng, role);
        self.fleet.signal(at, "STOP");
        std::thread::sleep(length);
        // Being away for so long may end it with a message; the supervisor starts it again.
        self.fleet.expect_end(at);
        self.fleet.signal(at, "CONT");
        format!("{role} for {length:?}")
    }

    fn rolling(&mut self, rng: &mut Rng) -> String {
        let role = ROLES[rng.usize(0..ROLES.len())];
        for at in self.fleet.running(role) {
            self.fleet.restart(at);
        }
        format!("all of {role}")
    }

    fn storm(&mut self, rng: &mut Rng) -> String {
        let before = self.fleet.count("deliver");
        for count in [1, 4, 2, 5, 1, before] {
            self.fleet.scale("deliver", count);
            pause(rng, 100..1500);
        }
        "deliver 1, 4, 2, 5, 1".to_owned()
    }

    fn add_partitions(&mut self) -> String {
        if self.partitions >= 8 {
            return "none: there are enough".to_owned();
        }
        self.partitions += 1;
        let admin: AdminClient<DefaultClientContext> = self.world.client_config().create().unwrap();
        let topics = [self.world.events.clone(), self.world.topics.commands()];
        for topic in &topics {
            let more = NewPartitions::new(topic, self.partitions);
            let made = crate::it::support::block_on(
                admin.create_partitions([&more], &AdminOptions::new()),
            );
            for result in made.unwrap() {
                result.unwrap();
            }
        }
        format!("{} of events and of commands", self.partitions)
    }

    fn broker(&mut self, rng: &mut Rng, hard: bool) -> String {
        let number = rng.u32(1..4).to_string();
        let stop: &[&str] = if hard {
            &["stop-broker", "--hard", &number]
        } else {
            &["stop-broker", &number]
        };
        let first = self.generator.next();
        self.broker.control(stop);
        if hard && self.alone {
            // The others take over while it is away. Not waited for for ever: whether all comes back is asked after its
            // restart.
            const PATIENCE: Duration = Duration::from_secs(30);
            let last = self.generator.next() + self.rate;
            self.recovered = self
                .fleet
                .tend_until_through(self.progress, first, last, PATIENCE);
        } else {
            pause(rng, 500..5000);
        }
        self.broker.control(&["start-broker", &number]);
        format!("number {number}")
    }

    /// The retry topic asks for all three replicas while one broker is away: what it holds cannot grow, and everything
    /// that needs no retry goes on.
    fn unwritable(&mut self, rng: &mut Rng) -> String {
        const PATIENCE: Duration = Duration::from_secs(60);
        let topic = self.world.topics.retry(self.world.tiers[0]);
        let number = rng.u32(1..4).to_string();
        set_min_isr(self.world, &topic, "3");
        self.broker.control(&["stop-broker", &number]);
        let first = self.generator.next();
        let last = first + 3 * self.rate;
        let through = self
            .fleet
            .tend_until_through(self.progress, first, last, PATIENCE);
        let missing = self.progress.missing(first, last).len();
        if through.is_none() {
            print_logs(self.fleet.logs());
        }
        self.broker.control(&["start-broker", &number]);
        set_min_isr(self.world, &topic, "2");
        if through.is_none() {
            self.failures.push(format!(
                "while {topic} could not be written, healthy endpoints had not accepted {missing} of {} events after {PATIENCE:?}",
                last - first,
            ));
        }
        format!("without broker {number}")
    }

    fn rolling_brokers(&mut self) -> String {
        for number in ["1", "2", "3"] {
            self.broker.control(&["restart-broker", number]);
            // As an operator does it: the next when all replicas are in sync again.
            std::thread::sleep(Duration::from_secs(3));
        }
        "one after the other".to_owned()
    }

    /// Hard, as by a loss of power: brokers that stop in order all at once leave partitions without a leader while they
    /// still run, and Kafka 4.1 to 4.4 then skip the ends of transactions (KAFKA-20734; the runbook, HangingTransaction).
    fn all_down(&mut self) -> String {
        let broker = self.broker;
        let each = |arguments: &[&str]| {
            std::thread::scope(|scope| {
                for number in ["1", "2", "3"] {
                    let arguments = [arguments, &[number]].concat();
                    scope.spawn(move || broker.control(&arguments));
                }
            });
        };
        each(&["stop-broker", "--hard"]);
        std::thread::sleep(Duration::from_secs(30));
        each(&["start-broker"]);
        "all three".to_owned()
    }

    fn weather(&mut self, rng: &mut Rng, weather: Weather, seconds: u64) -> String {
        let all = rng.bool();
        let one = rng.usize(0..self.broker.proxies.len());
        let chosen = self
            .broker
            .proxies
            .iter()
            .enumerate()
            .filter(|&(number, _)| all || number == one);
        let chosen: Vec<_> = chosen.map(|(_, proxy)| proxy).collect();
        chosen.iter().for_each(|proxy| proxy.set(weather));
        std::thread::sleep(Duration::from_secs(seconds));
        chosen.iter().for_each(|proxy| proxy.set(Weather::Clear));
        if all {
            "to all brokers".to_owned()
        } else {
            format!("to broker {}", one + 1)
        }
    }

    fn subscriptions(&mut self, rng: &mut Rng) -> String {
        let of = |kind: Kind| SUBSCRIPTIONS.iter().position(|one| *one == kind).unwrap();
        self.secret += 1;
        let (new, old) = (secret(self.secret), secret(0));
        let put = |number, secret: &str, state| {
            traffic::put(self.world, self.receiver, number, secret, state)
        };
        put(of(Kind::Rotated), &new, "active");
        put(of(Kind::Paused), &old, "paused");
        self.world
            .delete_subscription(&Kind::id(of(Kind::Volatile)));
        pause(rng, 500..4000);
        put(of(Kind::Paused), &old, "active");
        put(of(Kind::Volatile), &old, "active");
        "one rotated, one paused and resumed, one deleted and made again".to_owned()
    }

    fn replay(&mut self, rng: &mut Rng) -> String {
        let mut arguments: Vec<String> = [
            "replay",
            "--dead-letters",
            "--yes",
            "--reason",
            "permanent-status",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(self.world.args());
        let mut first = Process::spawn(&arguments);
        pause(rng, 100..2500);
        let killed = first.exited().is_none();
        if killed {
            first.sigkill();
        }
        let mut second = Process::spawn(&arguments);
        match second.exited_within(Duration::from_secs(90)) {
            Some(status) if status.success() => {}
            other => {
                let last = second.stderr().pop().unwrap_or_default();
                self.failures
                    .push(format!("a replay ended with {other:?}: {last}"));
            }
        }
        format!("the first killed: {killed}")
    }
}
