//! Plans that aim at what is too rare by chance.
//!
//! Those of [`Apart`] are chosen apart from everything else of a seed: all other seeds mean what they meant before these
//! were added.

use std::sync::Arc;

use hookstream::model::partitioner::{key_hash, partition};

use super::endpoints::{Behaviour, Endpoint};
use super::plan::{Act, Event, Plan, Roles, START, Sub, events};
use crate::kafka::log::Ms;

/// What is too rare by chance.
#[derive(Clone, Copy)]
pub enum Aim {
    /// A process with failed attempts under way is frozen until others own its partitions; when it wakes up, some requests
    /// are slow, so that it may write before it hears of that.
    Zombie,
    /// A transaction of release stays open in a retry topic while an ordered subscription with retries behind it moves to
    /// another process.
    Hidden,
    /// Partitions move in an orderly way while many attempts are under way.
    Moved,
    /// The first events of a partition are fanned out by a process that dies at once.
    First,
    /// Fan-out fails while it writes: batches are refused and those behind them are not, positions are committed late,
    /// processes die or are frozen with commands under way.
    Copies,
}

pub fn aim(rng: &mut fastrand::Rng) -> Option<Aim> {
    match rng.u32(0..20) {
        0 => Some(Aim::Zombie),
        1 => Some(Aim::Hidden),
        2 => Some(Aim::Moved),
        3 => Some(Aim::First),
        4 | 5 => Some(Aim::Copies),
        _ => None,
    }
}

pub fn aimed(
    rng: &mut fastrand::Rng,
    aim: Aim,
    length: Ms,
    subs: &mut [Sub],
    endpoints: &mut [Endpoint],
    acts: &mut Vec<(Ms, Act)>,
) {
    let at = START + rng.i64(2_000..length);
    // Nothing else that moves partitions or clocks.
    acts.retain(|(_, act)| !act.is_fault());
    let mut next = 2_000_000;
    let mut burst = |rng: &mut fastrand::Rng, when: std::ops::Range<Ms>| {
        let count = rng.usize(3..10);
        (rng.i64(when), Act::Publish(events(rng, count, &mut next)))
    };
    let until = match aim {
        Aim::Zombie => {
            let frozen = rng.i64(21_000..40_000);
            acts.push(burst(rng, at - 300..at - 5));
            acts.push((at, Act::Freeze(rng.usize(0..2), frozen)));
            let slow = Act::Weather(0, 0, rng.u32(1_000..6_000), 5_000);
            acts.push((at + frozen - 100, slow));
            at + frozen + 3_000
        }
        Aim::Hidden => {
            for replica in 0..2 {
                acts.push((at, Act::LateEnd(replica, rng.i64(3_000..4_900))));
            }
            // Retries of the first one hop between tiers, those of the others wait behind what they write.
            acts.push(burst(rng, at - 1_000..at - 600));
            for _ in 0..3 {
                acts.push(burst(rng, at + 2_200..at + 4_000));
            }
            let moved = at + rng.i64(3_000..4_800);
            acts.push((moved, Act::Restart(rng.usize(0..2))));
            for _ in 0..2 {
                acts.push(burst(rng, moved..moved + 1_500));
            }
            moved + rng.i64(3_000..6_000)
        }
        Aim::Moved => {
            for _ in 0..4 {
                acts.push(burst(rng, at - 600..at + 1_500));
            }
            acts.push((at, Act::ScaleUp(Roles::Deliver)));
            if rng.bool() {
                acts.push((at + rng.i64(0..2_000), Act::Restart(rng.usize(0..2))));
            }
            at
        }
        Aim::First => {
            let first = at - 200;
            acts.retain(|(when, act)| *when > at || !matches!(act, Act::Publish(_)));
            acts.push(burst(rng, first..first + 10));
            acts.push((first + rng.i64(5..130), Act::Kill(0, rng.i64(100..2_000))));
            if rng.bool() {
                acts.push((first + rng.i64(5..130), Act::Kill(1, rng.i64(100..2_000))));
            }
            at
        }
        Aim::Copies => {
            let mut until = at;
            for _ in 0..rng.usize(2..5) {
                let when = at + rng.i64(0..6_000);
                for _ in 0..rng.usize(1..4) {
                    acts.push(burst(rng, when - 20..when + 20));
                }
                for _ in 0..rng.usize(1..4) {
                    let replica = rng.usize(0..2);
                    let act = match rng.u32(0..8) {
                        0..=2 => Act::Refuse(replica, rng.u32(1..4)),
                        3 => Act::LatePosition(replica, rng.i64(100..13_000)),
                        4 | 5 => Act::Kill(replica, rng.i64(100..2_000)),
                        6 => Act::Freeze(replica, rng.i64(15_000..30_000)),
                        _ => Act::MoveLeader(4, rng.i32(0..2)),
                    };
                    acts.push((when + rng.i64(-10..60), act));
                }
                until = until.max(when);
            }
            until
        }
    };
    if matches!(aim, Aim::First | Aim::Copies) {
        return;
    }
    for (number, sub) in subs.iter_mut().enumerate().skip(1) {
        sub.events = "**";
        sub.strict = matches!(aim, Aim::Hidden);
        sub.ordered = sub.strict;
        sub.timeout = 8_000;
        if sub.strict {
            sub.subscriber = "tenant1".to_owned();
            sub.schedule[0] = if number == 1 { 4_000 } else { 1_000 };
        }
        (sub.rate, sub.max_in_flight) = (None, 8);
    }
    for endpoint in endpoints.iter_mut().skip(2) {
        let failing = Behaviour::Status(500, 100);
        match aim {
            Aim::Moved => (endpoint.phases, endpoint.latency) = (Vec::new(), (200, 900)),
            Aim::First | Aim::Copies => {}
            Aim::Zombie | Aim::Hidden => {
                endpoint.phases = vec![(at - 1_500, failing), (until, Behaviour::Well)];
            }
        }
    }
}

/// What else is too rare by chance.
#[derive(Clone, Copy)]
enum Apart {
    /// The transaction of a process that is gone hides retries of subjects that move to another process, which gets later
    /// events of them meanwhile.
    Behind,
    /// Partitions move in an orderly way, again and again, with slow attempts under way in all of them.
    Handed,
    /// Commands are deleted while delivery does not reach the brokers: some it has not read, and others it holds, since their
    /// subscription is slow.
    Gap,
    /// Fan-out dies before its positions are committed, and writes its commands again when others own both its partition and
    /// that of the commands, in which a slow subscription keeps the position far behind what is finished.
    Again,
    /// A process is frozen until another one has finished its work and has left: when it wakes up, its group is empty, and
    /// takes commits from anybody.
    Empty,
}

impl Apart {
    fn of(rng: &mut fastrand::Rng) -> Option<Self> {
        match rng.u32(0..16) {
            0 => Some(Self::Behind),
            1 => Some(Self::Handed),
            2 => Some(Self::Gap),
            3 => Some(Self::Again),
            4 => Some(Self::Empty),
            _ => None,
        }
    }
}

/// Whether the backlog is observed in the run of a seed: in one of four.
pub fn is_observed(seed: u64) -> bool {
    apart(seed, 0x1a6).u32(0..4) == 0
}

/// Chances of a seed that are apart from all others of it, and from those of other purposes.
fn apart(seed: u64, purpose: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ purpose)
}

/// The plan, or what a few of them become. `length` is for how long there is traffic.
pub fn aimed_apart(plan: Plan, length: Ms) -> Plan {
    let mut rng = apart(plan.seed, 0xa13b);
    let Some(aim) = Apart::of(&mut rng) else {
        return plan;
    };
    let mut plan = plan;
    let at = START + rng.i64(2_000..length);
    // Nothing else happens but events and replays, and subscriptions stay.
    let stays = |act: &Act| matches!(act, Act::Publish(_) | Act::Replay(_));
    plan.acts.retain(|(_, act)| stays(act));
    plan.replicas = vec![Roles::All; 2];
    for (number, sub) in plan.subs.iter_mut().enumerate().skip(1) {
        sub.subscriber = format!("tenant{number}");
        sub.events = "**";
        (sub.ordered, sub.strict, sub.lasting) = (false, false, true);
        (sub.rate, sub.max_in_flight, sub.timeout) = (None, 8, 3_000);
    }
    // The first two are those of the moved and of the control group.
    for endpoint in plan.endpoints.iter_mut().skip(2) {
        endpoint.phases.clear();
    }
    let until = match aim {
        Apart::Behind => behind(&mut rng, at, &mut plan),
        Apart::Handed => handed(&mut rng, at, &mut plan),
        Apart::Gap => gap(&mut rng, at, &mut plan),
        Apart::Again => again(&mut rng, at, &mut plan),
        Apart::Empty => empty(&mut rng, at, &mut plan),
    };
    plan.quiet = plan.quiet.max(until);
    plan.acts.sort_by_key(|(at, _)| *at);
    plan
}

/// So many events in a span of time, each of its own number in the plan.
fn burst(
    rng: &mut fastrand::Rng,
    when: std::ops::Range<Ms>,
    count: std::ops::Range<usize>,
    plan: &mut Plan,
) {
    let mut next = 3_000_000 + plan.acts.len() * 100;
    let (at, count) = (rng.i64(when), rng.usize(count));
    plan.acts
        .push((at, Act::Publish(events(rng, count, &mut next))));
}

/// One subscription takes a while for each command, and so holds many.
fn slow_down(plan: &mut Plan) {
    plan.subs[1].max_in_flight = 1;
    plan.endpoints[2].latency = (500, 900);
}

/// The endpoints of all but the control group behave like this from then on.
fn behave(plan: &mut Plan, phases: &[(Ms, Behaviour)]) {
    for endpoint in plan.endpoints.iter_mut().skip(2) {
        endpoint.phases = phases.to_vec();
    }
}

fn behind(rng: &mut fastrand::Rng, at: Ms, plan: &mut Plan) -> Ms {
    plan.partitions = rng.i32(1..=2);
    for sub in plan.subs.iter_mut().skip(1) {
        (sub.ordered, sub.strict) = (true, true);
        sub.schedule[0] = [1_000, 2_000][rng.usize(0..2)];
    }
    let (hidden, moved) = (rng.i64(3_000..9_000), at + rng.i64(900..2_000));
    plan.acts.push((at, Act::Hide(hidden)));
    for _ in 0..2 {
        burst(rng, at + 100..at + 500, 3..10, plan);
    }
    plan.acts.push((moved, Act::Restart(0)));
    plan.acts
        .push((moved + rng.i64(300..1_500), Act::Restart(1)));
    for _ in 0..4 {
        burst(rng, moved + 50..moved + 2_500, 3..10, plan);
    }
    let failing = Behaviour::Status(500, 100);
    let well = moved + rng.i64(0..2_000);
    behave(plan, &[(at - 500, failing), (well, Behaviour::Well)]);
    at + hidden + 2_000
}

fn handed(rng: &mut fastrand::Rng, at: Ms, plan: &mut Plan) -> Ms {
    const COUNT: i32 = 4;
    plan.partitions = COUNT;
    // Each partition has work, whichever moves.
    plan.subs.truncate(2);
    plan.endpoints.truncate(3);
    for number in 0..COUNT {
        let (mut sub, mut endpoint) = (plan.subs[1].clone(), plan.endpoints[2].clone());
        if number > 0 {
            sub.id = format!("s{}", number + 1);
            sub.host = Arc::from(format!("host{}.example.com", number + 1));
            endpoint.host = Arc::clone(&sub.host);
        }
        sub.subscriber = subscriber_in(number, COUNT);
        sub.timeout = 8_000;
        endpoint.latency = (300, 1_500);
        if number == 0 {
            (plan.subs[1], plan.endpoints[2]) = (sub, endpoint);
        } else {
            plan.subs.push(sub);
            plan.endpoints.push(endpoint);
        }
    }
    for step in 0..8 {
        burst(rng, at + step * 500..at + step * 500 + 500, 3..10, plan);
    }
    let first = at + rng.i64(300..1_000);
    plan.acts.push((first, Act::ScaleUp(Roles::Deliver)));
    if rng.bool() {
        let second = first + rng.i64(1_500..2_500);
        plan.acts.push((second, Act::ScaleUp(Roles::Deliver)));
    }
    if rng.bool() {
        let replica = rng.usize(0..2);
        plan.acts
            .push((at + rng.i64(0..3_000), Act::Restart(replica)));
    }
    at + 6_000
}

/// A subscriber whose commands are in this partition.
fn subscriber_in(number: i32, of: i32) -> String {
    let mut each = (0..).map(|name| format!("tenant{name}"));
    let is_there = |name: &String| partition(key_hash(name.as_bytes()), of) == Some(number);
    each.find(is_there).unwrap()
}

fn gap(rng: &mut fastrand::Rng, at: Ms, plan: &mut Plan) -> Ms {
    plan.partitions = 1;
    plan.replicas = vec![Roles::All; rng.usize(1..=2)];
    // Some commands are held until delivery hears of the deletion: a request that was cut off takes 12 s.
    slow_down(plan);
    plan.acts.retain(|(_, act)| !matches!(act, Act::Publish(_)));
    let cut = rng.i64(1_500..5_000);
    burst(rng, at - 400..at, 40..60, plan);
    plan.acts.push((at, Act::Gap(0, cut)));
    // The way is cut a second later, and fan-out goes on meanwhile.
    for _ in 0..2 {
        burst(rng, at + 1_050..at + 1_000 + cut, 2..8, plan);
    }
    at + cut + 2_000
}

fn again(rng: &mut fastrand::Rng, at: Ms, plan: &mut Plan) -> Ms {
    (plan.partitions, plan.event_partitions) = (1, 1);
    let (fanout, deliver) = (Roles::Fanout, Roles::Deliver);
    plan.replicas = vec![fanout, fanout, deliver, deliver, Roles::Release];
    slow_down(plan);
    plan.acts.retain(|(_, act)| !matches!(act, Act::Publish(_)));
    burst(rng, at + 10..at + 50, 55..80, plan);
    for replica in 0..2 {
        plan.acts
            .push((at, Act::LatePosition(replica, rng.i64(13_000..60_000))));
        let killed = at + rng.i64(150..800);
        plan.acts
            .push((killed, Act::Kill(replica, rng.i64(100..2_000))));
    }
    for (replica, from) in [(2, 1_500), (3, 5_000)] {
        let moved = at + from + rng.i64(0..3_000);
        plan.acts.push((moved, Act::Restart(replica)));
    }
    at + 23_000
}

fn empty(rng: &mut fastrand::Rng, at: Ms, plan: &mut Plan) -> Ms {
    plan.partitions = [2, 4][rng.usize(0..2)];
    for (number, sub) in plan.subs.iter_mut().enumerate().skip(1) {
        let number = i32::try_from(number).unwrap_or(0);
        sub.subscriber = subscriber_in(number % plan.partitions, plan.partitions);
    }
    let thawed = at + rng.i64(24_000..30_000);
    for _ in 0..2 {
        burst(rng, at - 200..at - 5, 3..10, plan);
        burst(rng, at + 21_000..thawed - 2_000, 3..10, plan);
    }
    plan.acts.push((at, Act::Freeze(0, thawed - at)));
    plan.acts
        .push((thawed - rng.i64(300..1_500), Act::ScaleDown(1)));
    behave(plan, &[(at - 1_500, Behaviour::Status(404, 100))]);
    thawed + 2_000
}
