//! What a run is made of, all chosen by its seed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::aims::{self, Aim, aim, aimed, aimed_apart};
use super::endpoints::{Behaviour, Endpoint};
use crate::kafka::Node;
use crate::kafka::cluster::Kind;
use crate::kafka::log::Ms;

/// The roles of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Roles {
    /// As `hookstream run`.
    All,
    /// Fan-out only.
    Fanout,
    /// Delivery only.
    Deliver,
    /// Release only.
    Release,
}

/// A subscription.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sub {
    /// Its id.
    pub id: String,
    /// Its owner.
    pub subscriber: String,
    /// Its endpoint's host.
    #[serde(with = "shared")]
    pub host: Arc<str>,
    /// The type pattern of its events.
    pub events: &'static str,
    /// `order` is `per_subject`, or `strict`.
    pub ordered: bool,
    /// `order` is `strict`.
    pub strict: bool,
    /// The retry schedule, ms.
    pub schedule: Vec<u64>,
    /// The timeout of an attempt, ms.
    pub timeout: u64,
    /// Attempts at a time.
    pub max_in_flight: u32,
    /// Requests per second.
    pub rate: Option<u32>,
    /// Its endpoint always behaves.
    pub control: bool,
    /// It exists from the beginning to the end.
    pub lasting: bool,
}

/// Shared text in a file.
pub mod shared {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(from).map(Arc::from)
    }
}

impl Sub {
    /// Whether it wants events of this type.
    pub fn wants(&self, kind: &str) -> bool {
        match self.events.strip_suffix(".*") {
            Some(prefix) => kind.starts_with(prefix),
            None => self.events == "**" || self.events == kind,
        }
    }
}

/// An event to publish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    pub kind: &'static str,
    pub subject: String,
}

/// What operators and platforms do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Act {
    /// Publishes events.
    Publish(Vec<Event>),
    /// Applies a subscription, active or paused.
    Apply { sub: usize, paused: bool },
    /// Deletes a subscription.
    Delete(usize),
    /// Deletes a subscription and makes it again for another subscriber, at [`MOVED`].
    Move(usize),
    /// Gives a subscription a new secret, beside the one before for a while.
    Rotate(usize),
    /// Replays all open dead letters; the operator's program is killed after a while.
    Replay(Option<Ms>),
    /// A replica dies, and starts again after a while.
    Kill(usize, Ms),
    /// A replica does nothing for a while.
    Freeze(usize, Ms),
    /// A replica stops in an orderly way and starts again at once.
    Restart(usize),
    /// All replicas do, one after the other.
    Roll,
    /// One replica more.
    ScaleUp(Roles),
    /// The replica stops, and does not start again.
    ScaleDown(usize),
    /// A replica does not reach a broker for a while.
    Cut(usize, Node, Ms),
    /// A replica reaches no endpoint for a while.
    CutEgress(usize, Ms),
    /// A broker dies and starts again after a while.
    KillBroker(Node, Ms),
    /// A broker stops in an orderly way and starts again after a while.
    StopBroker(Node, Ms),
    /// A partition of the topic of this number gets another leader.
    MoveLeader(usize, i32),
    /// The coordinator of a group or transactional id moves.
    MoveCoordinator(Kind, &'static str),
    /// The wall clock of a replica is wrong by so much from now on.
    Clock(usize, Ms),
    /// So many of 10,000 requests are lost, not answered, slow, for a while.
    Weather(u32, u32, u32, Ms),
    /// The next commit of positions of a replica arrives late.
    LateCommit(usize, Ms),
    /// The next commit of positions of a replica's fan-out arrives late.
    LatePosition(usize, Ms),
    /// Brokers refuse the next batches of a replica's fan-out, and take those behind them.
    Refuse(usize, u32),
    /// The next end of a transaction of a replica's release arrives late: meanwhile it hides what others have written.
    LateEnd(usize, Ms),
    /// A process that is gone has left a transaction open in all retry topics: for a while it hides what others have written.
    Hide(Ms),
    /// Delivery does not reach the brokers for a while, and then the commands of a partition are deleted: those that it has
    /// not read are lost, those that it holds are not.
    Gap(i32, Ms),
}

impl Act {
    /// Whether the platform does it, and not a tenant, an operator or a publisher.
    pub fn is_fault(&self) -> bool {
        !matches!(
            self,
            Self::Publish(_)
                | Self::Apply { .. }
                | Self::Delete(_)
                | Self::Move(_)
                | Self::Rotate(_)
                | Self::Replay(_)
        )
    }

    /// Whether what processes hold in memory outlives it, and no other process takes their place.
    pub fn keeps_memory(&self) -> bool {
        !self.is_fault()
            || matches!(
                self,
                Self::MoveLeader(..)
                    | Self::MoveCoordinator(..)
                    | Self::Weather(..)
                    | Self::KillBroker(..)
                    | Self::StopBroker(..)
                    | Self::LateCommit(..)
                    | Self::LateEnd(..)
                    | Self::Hide(..)
                    | Self::LatePosition(..)
                    | Self::Refuse(..)
                    | Self::Gap(..)
            )
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What it has found, of a saved one.
    #[serde(default)]
    pub found: String,
    /// Of all chances of the run.
    pub seed: u64,
    /// Partitions of the commands, the tiers and the dead letters.
    pub partitions: i32,
    /// Partitions of the events.
    pub event_partitions: i32,
    /// Retry tiers.
    pub tiers: &'static str,
    pub subs: Vec<Sub>,
    pub endpoints: Vec<Endpoint>,
    pub replicas: Vec<Roles>,
    /// The positions of delivery were copied from another cluster, with metadata that is worth nothing here.
    pub mirrored: bool,
    /// Somebody watches the backlog.
    #[serde(default)]
    pub observed: bool,
    /// What happens when, ms since the beginning, in order.
    pub acts: Vec<(Ms, Act)>,
    /// When all faults end.
    pub quiet: Ms,
}

/// The types of events.
const KINDS: [&str; 3] = ["order.created", "order.paid", "user.created"];
/// The endpoint of a subscription that was moved to [`MOVER`].
pub const MOVED: &str = "moved.example.com";
/// Its new subscriber.
pub const MOVER: &str = "mover";
/// Traffic and faults begin here.
pub const START: Ms = 5_000;

impl Plan {
    /// The run of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        // Most are small, since most of what goes wrong needs little; some are large.
        let large = rng.u32(0..5) == 0;
        let length = rng.i64(if large { 20_000..45_000 } else { 4_000..16_000 });
        let quiet = START + length;
        let calm = rng.u32(0..5) == 0;
        let (mut subs, mut endpoints) = subs(&mut rng, quiet, large);
        let mut replicas = replicas(&mut rng, large);
        let mut acts = traffic(&mut rng, length, large);
        operators(&mut rng, &subs, length, &mut acts);
        replays(&mut rng, length, &mut acts);
        if !calm {
            // Where an order is kept, each subject with a deleted command takes a quarter of an hour.
            let ordered = subs.iter().any(|sub| sub.ordered);
            faults(
                &mut rng,
                replicas.len(),
                length,
                (large, ordered),
                &mut acts,
            );
        }
        let mut partitions = rng.i32(1..=if large { 4 } else { 2 });
        let aim = aim(&mut rng).filter(|_| !calm);
        if let Some(aim) = aim {
            partitions = if matches!(aim, Aim::Moved) { 4 } else { 2 };
            replicas = vec![Roles::All; 2];
            aimed(&mut rng, aim, length, &mut subs, &mut endpoints, &mut acts);
        }
        acts.sort_by_key(|(at, _)| *at);
        // Who is frozen for longer than a session lasts wakes up after its partitions have moved.
        let thawed = acts.iter().map(|(at, act)| match act {
            Act::Freeze(_, time) => at + time + 1_000,
            _ => 0,
        });
        let quiet = thawed.max().unwrap_or(0).max(quiet);
        let plan = Self {
            found: String::new(),
            seed,
            partitions,
            event_partitions: rng.i32(1..=if large { 3 } else { 2 }),
            tiers: match aim {
                Some(Aim::Hidden) => "1s,3s,10s",
                _ => ["1s,3s,10s", "500ms,5s", "2s,4s,8s,16s"][rng.usize(0..3)],
            },
            subs,
            endpoints,
            replicas,
            mirrored: rng.u32(0..8) == 0,
            observed: aims::is_observed(seed),
            acts,
            quiet,
        };
        match aim {
            None if !calm => aimed_apart(plan, length),
            _ => plan,
        }
    }

    /// As a file: JSON with a line for each act, endpoint and subscription.
    pub fn to_file(&self) -> String {
        let value = serde_json::to_value(self).unwrap();
        let mut file = String::from("{");
        let mut between = "\n";
        for (name, value) in value.as_object().unwrap() {
            write!(file, "{between}  \"{name}\": ").unwrap();
            between = ",\n";
            match value.as_array().filter(|list| !list.is_empty()) {
                None => write!(file, "{value}").unwrap(),
                Some(list) => {
                    let lines: Vec<_> = list.iter().map(|item| format!("    {item}")).collect();
                    write!(file, "[\n{}\n  ]", lines.join(",\n")).unwrap();
                }
            }
        }
        file + "\n}\n"
    }

    /// From a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_file(file: String) -> Result<Self, serde_json::Error> {
        // Names are those of the program's constants, and live as long.
        serde_json::from_str(file.leak())
    }

    /// Whether only tenants misbehave.
    pub fn is_calm(&self) -> bool {
        // The transaction of a replay that is killed hides commands until it times out.
        let is_fault = |act: &Act| act.is_fault() || matches!(act, Act::Replay(Some(_)));
        !self.acts.iter().any(|(_, act)| is_fault(act))
    }

    /// Whether processes only stop, start and move in an orderly way.
    pub fn is_orderly(&self) -> bool {
        let is_orderly = |act: &Act| {
            !act.is_fault()
                || matches!(
                    act,
                    Act::Restart(_) | Act::Roll | Act::ScaleUp(_) | Act::ScaleDown(_)
                )
        };
        self.acts.iter().all(|(_, act)| is_orderly(act))
    }

    /// Whether subscriptions of this id are made again for another subscriber.
    pub fn moves(&self, id: &str) -> bool {
        let is_it = |act: &Act| matches!(act, Act::Move(sub) if self.subs[*sub].id == id);
        self.acts.iter().any(|(_, act)| is_it(act))
    }

    /// Whether brokers refuse commands of fan-out and take those behind them.
    pub fn leaves_gaps(&self) -> bool {
        let mut each = self.acts.iter();
        each.any(|(_, act)| matches!(act, Act::Refuse(..)))
    }

    /// Whether dead letters are replayed.
    pub fn replays(&self) -> bool {
        let mut each = self.acts.iter();
        each.any(|(_, act)| matches!(act, Act::Replay(_)))
    }

    /// Whether a process may be frozen for so long that others own its partitions when it wakes up.
    pub fn has_zombies(&self) -> bool {
        let is_long = |act: &Act| matches!(act, Act::Freeze(_, time) if *time > 15_000);
        self.acts.iter().any(|(_, act)| is_long(act))
    }

    /// Whether no process loses its memory or its partitions.
    pub fn keeps_memory(&self) -> bool {
        self.acts.iter().all(|(_, act)| act.keeps_memory())
    }

    /// Whether requests may be lost on their way, so that clients wait for them in vain.
    pub fn loses_requests(&self) -> bool {
        let loses = |act: &Act| {
            matches!(
                act,
                Act::Cut(..) | Act::Weather(..) | Act::KillBroker(..) | Act::Freeze(..)
            )
        };
        self.acts.iter().any(|(_, act)| loses(act))
    }

    /// Smaller plans, each without something, the ones without most first.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut size = self.acts.len();
        while size > 0 {
            for from in (0..self.acts.len()).step_by(size) {
                let mut plan = self.clone();
                let to = (from + size).min(plan.acts.len());
                plan.acts.drain(from..to);
                all.push(plan);
            }
            size /= 2;
        }
        for (at, (_, act)) in self.acts.iter().enumerate() {
            if let Act::Publish(events) = act
                && events.len() > 1
            {
                let half = events.len() / 2;
                for part in [&events[..half], &events[half..]] {
                    let mut plan = self.clone();
                    plan.acts[at].1 = Act::Publish(part.to_vec());
                    all.push(plan);
                }
            }
        }
        for at in 0..self.replicas.len() {
            let roles = self.replicas[at];
            let same = self.replicas.iter().filter(|other| **other == roles);
            if same.count() > 1 {
                let mut plan = self.clone();
                plan.replicas.remove(at);
                all.push(plan);
            }
        }
        for at in 0..self.endpoints.len() {
            for phase in 0..self.endpoints[at].phases.len() {
                let mut plan = self.clone();
                plan.endpoints[at].phases.remove(phase);
                all.push(plan);
            }
        }
        if self.mirrored {
            let mut plan = self.clone();
            plan.mirrored = false;
            all.push(plan);
        }
        all
    }

    /// How much longer than otherwise a subject may wait: for a command that was deleted unread, until the tiers are read
    /// again, which is 15 minutes after it was due, and not again within 15 minutes.
    pub fn patience(&self) -> Duration {
        let is_gap = |(_, act): &(Ms, Act)| matches!(act, Act::Gap(..));
        let ordered = self.subs.iter().any(|sub| sub.ordered);
        if ordered && self.acts.iter().any(is_gap) {
            Duration::from_secs(2_000)
        } else {
            Duration::ZERO
        }
    }

    /// The same with endpoints that all behave.
    pub fn without_bad_tenants(&self) -> Self {
        let mut plan = self.clone();
        for endpoint in &mut plan.endpoints {
            endpoint.phases.clear();
        }
        plan
    }
}

fn subs(rng: &mut fastrand::Rng, quiet: Ms, large: bool) -> (Vec<Sub>, Vec<Endpoint>) {
    let count = rng.usize(2..=if large { 6 } else { 3 });
    let (mut subs, mut endpoints) = (Vec::new(), Vec::new());
    endpoints.push(Endpoint {
        host: Arc::from(MOVED),
        phases: Vec::new(),
        latency: (1, 50),
    });
    for number in 0..count {
        let control = number == 0;
        let host: Arc<str> = Arc::from(format!("host{number}.example.com"));
        let phases = if control {
            Vec::new()
        } else {
            phases(rng, quiet)
        };
        let least = rng.u64(1..50);
        endpoints.push(Endpoint {
            host: Arc::clone(&host),
            phases,
            latency: (least, least + rng.u64(1..200)),
        });
        let steps = rng.usize(1..=4);
        let ordered = !control && rng.u32(0..5) < 2;
        subs.push(Sub {
            id: format!("s{number}"),
            subscriber: format!("tenant{}", if control { 0 } else { rng.usize(1..4) }),
            host,
            events: if control {
                "**"
            } else {
                ["**", "order.*", "user.created"][rng.usize(0..3)]
            },
            ordered,
            strict: ordered && rng.bool(),
            schedule: (0..steps)
                .map(|_| [1_000, 2_000, 4_000, 8_000][rng.usize(0..4)])
                .collect(),
            timeout: [1_000, 3_000, 8_000][rng.usize(0..3)],
            max_in_flight: if control { 16 } else { rng.u32(1..=8) },
            rate: (!control && rng.u32(0..4) == 0).then(|| rng.u32(2..=20)),
            control,
            lasting: control || rng.u32(0..5) > 0,
        });
    }
    (subs, endpoints)
}

fn phases(rng: &mut fastrand::Rng, quiet: Ms) -> Vec<(Ms, Behaviour)> {
    let count = rng.usize(0..=4);
    let mut phases: Vec<_> = (0..count)
        .map(|_| {
            let what = match rng.u32(0..10) {
                0..=2 => Behaviour::Well,
                3 => Behaviour::Status(500, rng.u32(10..=100)),
                4 => Behaviour::Status([400, 404, 503][rng.usize(0..3)], rng.u32(5..=60)),
                5 => Behaviour::Throttling(rng.u64(1..5)),
                6 => Behaviour::Hanging,
                7 => Behaviour::Refusing,
                8 => Behaviour::Slow(rng.u64(200..6_000)),
                _ => Behaviour::Status(410, rng.u32(20..=100)),
            };
            (rng.i64(0..quiet), what)
        })
        .collect();
    phases.sort_by_key(|(at, _)| *at);
    phases
}

fn replicas(rng: &mut fastrand::Rng, large: bool) -> Vec<Roles> {
    if !large || rng.bool() {
        return vec![Roles::All; rng.usize(1..=if large { 3 } else { 2 })];
    }
    let mut all = Vec::new();
    for (roles, most) in [(Roles::Fanout, 2), (Roles::Deliver, 3), (Roles::Release, 2)] {
        all.extend(std::iter::repeat_n(roles, rng.usize(1..=most)));
    }
    all
}

pub fn events(rng: &mut fastrand::Rng, count: usize, next: &mut usize) -> Vec<Event> {
    let each = (0..count).map(|_| {
        *next += 1;
        Event {
            id: format!("e{next}"),
            kind: KINDS[rng.usize(0..KINDS.len())],
            subject: format!("o{}", rng.u32(0..6)),
        }
    });
    each.collect()
}

fn traffic(rng: &mut fastrand::Rng, length: Ms, large: bool) -> Vec<(Ms, Act)> {
    let (mut acts, mut next) = (Vec::new(), 0);
    let bursts = if large {
        rng.usize(8..=30)
    } else {
        rng.usize(3..=10)
    };
    for _ in 0..bursts {
        let at = START + rng.i64(0..length);
        let count = match rng.u32(0..8) {
            0 if large => rng.usize(20..60),
            0 => rng.usize(5..20),
            _ => rng.usize(1..5),
        };
        acts.push((at, Act::Publish(events(rng, count, &mut next))));
    }
    acts
}

fn operators(rng: &mut fastrand::Rng, subs: &[Sub], length: Ms, acts: &mut Vec<(Ms, Act)>) {
    for (sub, it) in subs.iter().enumerate() {
        if it.control {
            continue;
        }
        if !it.lasting {
            let act = if rng.bool() {
                Act::Delete(sub)
            } else {
                Act::Move(sub)
            };
            acts.push((START + rng.i64(0..length), act));
        }
        for _ in 0..rng.usize(0..3) {
            let paused = rng.u32(0..3) == 0;
            acts.push((START + rng.i64(0..length), Act::Apply { sub, paused }));
        }
        if rng.u32(0..4) == 0 {
            acts.push((START + rng.i64(0..length), Act::Rotate(sub)));
        }
    }
}

/// Sometimes an operator replays, once or twice, and not always to the end.
fn replays(rng: &mut fastrand::Rng, length: Ms, acts: &mut Vec<(Ms, Act)>) {
    if rng.u32(0..3) > 0 {
        return;
    }
    for _ in 0..rng.usize(1..=2) {
        let killed = (rng.u32(0..3) == 0).then(|| rng.i64(5..300));
        acts.push((
            START + rng.i64(length / 2..length + 4_000),
            Act::Replay(killed),
        ));
    }
}

fn faults(
    rng: &mut fastrand::Rng,
    replicas: usize,
    length: Ms,
    (large, ordered): (bool, bool),
    acts: &mut Vec<(Ms, Act)>,
) {
    // Some seeds have one kind only, which shows what it does by itself.
    let only = rng.bool().then(|| rng.u32(0..KINDS_OF_FAULTS));
    for _ in 0..rng.usize(1..=if large { 8 } else { 4 }) {
        let at = START + rng.i64(0..length);
        let replica = rng.usize(0..replicas);
        let kind = only.unwrap_or_else(|| rng.u32(0..KINDS_OF_FAULTS));
        let act = fault(rng, kind, replica);
        if matches!(act, Act::Gap(..)) && !ordered {
            // With commands that delivery holds and cannot read again.
            let mut next = 1_000_000 + acts.len() * 100;
            let count = rng.usize(10..40);
            let all = events(rng, count, &mut next);
            acts.push((at - rng.i64(100..800), Act::Publish(all)));
        }
        if matches!(act, Act::Freeze(..)) {
            // With work under way.
            let mut next = 1_000_000 + acts.len() * 100;
            let count = rng.usize(1..6);
            let all = events(rng, count, &mut next);
            acts.push((at - rng.i64(0..400), Act::Publish(all)));
        }
        acts.push((at, act));
    }
}

const KINDS_OF_FAULTS: u32 = 18;

fn fault(rng: &mut fastrand::Rng, kind: u32, replica: usize) -> Act {
    let node = rng.i32(1..=3);
    match kind {
        0 | 1 => Act::Kill(replica, rng.i64(100..8_000)),
        2 => Act::Freeze(replica, rng.i64(500..40_000)),
        3 => Act::Restart(replica),
        4 => Act::Roll,
        5 => Act::ScaleUp(
            [Roles::All, Roles::Deliver, Roles::Fanout, Roles::Release][rng.usize(0..4)],
        ),
        6 => Act::ScaleDown(replica),
        7 => Act::Cut(replica, node, rng.i64(1_000..30_000)),
        8 => Act::CutEgress(replica, rng.i64(1_000..10_000)),
        9 => match rng.bool() {
            true => Act::KillBroker(node, rng.i64(1_000..20_000)),
            false => Act::StopBroker(node, rng.i64(1_000..20_000)),
        },
        10 => Act::MoveLeader(rng.usize(0..16), rng.i32(0..4)),
        11 => match rng.bool() {
            true => Act::MoveCoordinator(
                Kind::Group,
                ["fanout", "deliver", "release"][rng.usize(0..3)],
            ),
            false => Act::MoveCoordinator(
                Kind::Transaction,
                ["fanout", "deliver", "release"][rng.usize(0..3)],
            ),
        },
        12 => Act::Clock(replica, rng.i64(-20_000..20_000)),
        13 => Act::Weather(
            rng.u32(0..400),
            rng.u32(0..400),
            rng.u32(0..1_000),
            rng.i64(1_000..20_000),
        ),
        14 => Act::LateCommit(replica, rng.i64(100..20_000)),
        15 => Act::Gap(rng.i32(0..4), rng.i64(1_000..6_000)),
        16 => Act::LatePosition(replica, rng.i64(100..20_000)),
        _ => Act::Refuse(replica, rng.u32(1..6)),
    }
}
