//! A whole consumer group in virtual time: every member and every partition, with the group of the simulated Kafka and
//! its assignor. What the members do is what `kafka::client::member` and the delivery role do, without their tasks: they
//! join, give up what leaves after a drain, take what comes, and join again.
//!
//! How long a drain takes is an input: the model of a partition measures it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::kafka::assignor::cooperative_sticky;
use crate::kafka::group::{Group, Join, Phase, Replies, Subscription};
use crate::kafka::log::Ms;
use crate::kafka::{Code, Joined, Reply, Token, Tp};

mod shape;
mod state;

pub use shape::{Fault, Seen, Shape};
use state::{Event, Life, Member, State};

struct World<'a> {
    shape: &'a Shape,
    topic: Arc<str>,
    group: Group,
    members: Vec<Member>,
    events: BinaryHeap<Reverse<(Ms, u64)>>,
    waiting: HashMap<u64, Event>,
    next: u64,
    now: Ms,
    tokens: BTreeMap<Token, (usize, Life)>,
    next_token: u64,
    random: fastrand::Rng,
    /// Which member reads each partition, and since when nobody does.
    reader: Vec<Option<usize>>,
    standing: Vec<Option<Ms>>,
    sums: Vec<(Ms, usize)>,
    seen: Seen,
    /// No request is answered.
    coordinator_is_gone: bool,
    /// Members that still have to be replaced; the last one is next.
    to_roll: Vec<usize>,
    /// Stops and starts that are still to come.
    moving: usize,
    /// Partitions that nobody reads.
    idle: usize,
}

/// Plays a fault on a group that is at rest.
///
/// # Panics
/// When the group does not settle within a virtual day.
pub fn play(shape: &Shape, fault: Fault) -> Seen {
    let mut world = World::new(shape);
    for member in 0..shape.members {
        let at = world.random.i64(0..1000);
        world.moving += 1;
        world.at(at, Event::Start(member));
    }
    world.run_until_settled();
    world.forget_the_past();
    let began = world.now;
    world.begin(fault);
    world.run_until_settled();
    let now = world.now;
    world.finish(now - began)
}

impl<'a> World<'a> {
    fn new(shape: &'a Shape) -> Self {
        let partitions = usize::try_from(shape.partitions).unwrap_or(0);
        let member = || Member {
            life: 0,
            state: State::Off,
            id: Arc::from(""),
            generation: -1,
            owned: BTreeSet::new(),
            revoked: BTreeSet::new(),
            added: BTreeSet::new(),
            rejoin: false,
        };
        Self {
            shape,
            topic: Arc::from("webhook-commands"),
            group: Group::new(0),
            members: std::iter::repeat_with(member).take(shape.members).collect(),
            events: BinaryHeap::new(),
            waiting: HashMap::new(),
            next: 0,
            now: 0,
            tokens: BTreeMap::new(),
            next_token: 0,
            random: fastrand::Rng::with_seed(shape.seed),
            reader: vec![None; partitions],
            standing: vec![Some(0); partitions],
            sums: vec![(0, 0); partitions],
            seen: Seen::default(),
            coordinator_is_gone: false,
            to_roll: Vec::new(),
            moving: 0,
            idle: partitions,
        }
    }

    fn at(&mut self, time: Ms, event: Event) {
        self.events.push(Reverse((time, self.next)));
        self.waiting.insert(self.next, event);
        self.next += 1;
    }

    fn within(&mut self, (from, to): (Ms, Ms)) -> Ms {
        self.random.i64(from..=to)
    }

    /// A request arrives after half a round trip.
    fn way(&mut self) -> Ms {
        let (from, to) = self.shape.round_trip;
        (self.within((from, to)) + 1) / 2
    }

    fn send(&mut self, event: Event) {
        let at = self.now + self.way();
        self.at(at, event);
    }

    fn begin(&mut self, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::Roll { at_a_time } => {
                // A StatefulSet begins with the last one.
                self.to_roll = (0..self.shape.members).collect();
                for _ in 0..at_a_time {
                    self.roll_next(now);
                }
            }
            Fault::Zone { coordinator } => {
                for member in (0..self.shape.members).step_by(3) {
                    self.kill(member);
                }
                if let Some(time) = coordinator {
                    self.coordinator_is_gone = true;
                    self.at(now + time, Event::CoordinatorBack);
                }
            }
            Fault::Kill { returns } => {
                self.kill(0);
                if returns {
                    self.moving += 1;
                    self.at(now + self.shape.restart, Event::Start(0));
                }
            }
        }
    }

    fn roll_next(&mut self, at: Ms) {
        if let Some(member) = self.to_roll.pop() {
            self.moving += 1;
            self.at(at, Event::Stop(member));
        }
    }

    fn forget_the_past(&mut self) {
        self.seen = Seen {
            generations: -self.group.generation(),
            ..Seen::default()
        };
        self.sums.fill((0, 0));
    }

    fn finish(mut self, took: Ms) -> Seen {
        self.seen.took = took;
        self.seen.generations += self.group.generation();
        self.seen.pauses.sort_unstable();
        let sums = self.sums.iter();
        self.seen.longest_sum = sums.map(|(sum, _)| *sum).max().unwrap_or(0);
        let often = self.sums.iter().map(|(_, times)| *times);
        self.seen.most_often = often.max().unwrap_or(0);
        let owned = self.members.iter().map(|member| member.owned.len());
        self.seen.most_owned = owned.max().unwrap_or(0);
        self.seen
    }

    fn is_settled(&self) -> bool {
        let idle = |member: &Member| matches!(member.state, State::Off | State::Stable);
        self.group.phase() == Phase::Stable
            && self.moving == 0
            && self.idle == 0
            && !self.coordinator_is_gone
            && self.members.iter().all(idle)
            && self.is_even()
    }

    /// What the group believes is so: no member has more than one partition more than another.
    fn is_even(&self) -> bool {
        let shares = || self.group.assignments().map(|(_, share)| share.len());
        let alive = self.members.iter();
        let alive = alive.filter(|member| member.state == State::Stable).count();
        shares().count() == alive && shares().max() <= shares().min().map(|least| least + 1)
    }

    fn run_until_settled(&mut self) {
        let until = self.now + 24 * 3_600_000;
        let mut replies = Replies::new();
        loop {
            // The group's own timers come between the events.
            let next = self.events.peek().map(|Reverse((at, _))| *at);
            let tick = self.group.deadline().filter(|_| !self.coordinator_is_gone);
            let at = match (next, tick) {
                (Some(next), Some(tick)) => next.min(tick.max(self.now)),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => panic!("nothing happens any more"),
            };
            self.now = at;
            assert!(at < until, "the group does not settle");
            if tick.is_some_and(|tick| tick <= at) {
                self.group.tick(at, &mut replies);
                self.deliver(&mut replies);
            }
            if next == Some(at)
                && let Some(Reverse((_, number))) = self.events.pop()
                && let Some(event) = self.waiting.remove(&number)
            {
                self.apply(event, &mut replies);
                self.deliver(&mut replies);
                if self.is_settled() {
                    return;
                }
            }
        }
    }

    fn deliver(&mut self, replies: &mut Replies) {
        for (token, reply) in replies.drain(..) {
            let at = self.now + self.way();
            self.at(at, Event::Replied(token, reply));
        }
    }

    fn token(&mut self, member: usize) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.tokens
            .insert(token, (member, self.members[member].life));
        token
    }

    fn is(&self, member: usize, life: Life) -> bool {
        self.members[member].life == life
    }

    fn apply(&mut self, event: Event, replies: &mut Replies) {
        match event {
            Event::Start(member) => {
                self.moving -= 1;
                self.start(member);
            }
            Event::Stop(member) => self.stop(member),
            Event::CoordinatorBack => {
                self.coordinator_is_gone = false;
                self.group.moved(self.now, replies);
            }
            Event::LeaveArrives(id) => {
                self.group.leave(self.now, &id, replies).ok();
            }
            Event::Replied(token, reply) => {
                if let Some((member, life)) = self.tokens.remove(&token)
                    && self.is(member, life)
                {
                    self.replied(member, reply);
                }
            }
            Event::Beat(member, life)
            | Event::BeatArrives(member, life, _)
            | Event::Beaten(member, life, _)
            | Event::JoinArrives(member, life)
            | Event::NeedsId(member, life, _)
            | Event::Refused(member, life, _)
            | Event::SyncArrives(member, life, ..)
            | Event::Drained(member, life)
            | Event::Taken(member, life)
                if !self.is(member, life) => {}
            Event::Beat(member, life) => {
                self.at(self.now + self.shape.heartbeat, Event::Beat(member, life));
                if matches!(
                    self.members[member].state,
                    State::Stable | State::Draining | State::Taking | State::Stopping
                ) {
                    let generation = self.members[member].generation;
                    self.send(Event::BeatArrives(member, life, generation));
                }
            }
            Event::BeatArrives(member, life, generation) => {
                if !self.coordinator_is_gone {
                    let id = Arc::clone(&self.members[member].id);
                    let result = self.group.heartbeat(self.now, &id, generation);
                    self.send(Event::Beaten(member, life, result));
                }
            }
            Event::Beaten(member, _, Err(Code::RebalanceInProgress)) => {
                // While partitions drain, the rebalance waits for this member.
                if self.members[member].state == State::Stable {
                    self.join(member);
                }
            }
            Event::Beaten(member, _, Err(Code::UnknownMemberId | Code::IllegalGeneration))
                if self.members[member].state != State::Stopping =>
            {
                self.lose(member);
            }
            Event::Beaten(..) => {}
            Event::JoinArrives(member, life) => self.join_arrives(member, life, replies),
            Event::NeedsId(member, _, id) => {
                self.members[member].id = id;
                self.join(member);
            }
            Event::Refused(member, _, code) => self.refused(member, code),
            Event::SyncArrives(member, life, generation, assignments) => {
                if self.coordinator_is_gone {
                    return self.refuse_later(member, life, Code::NotCoordinator);
                }
                let token = self.token(member);
                let id = Arc::clone(&self.members[member].id);
                let result =
                    self.group
                        .sync(self.now, &id, generation, assignments, token, replies);
                if let Err(code) = result {
                    self.tokens.remove(&token);
                    self.send(Event::Refused(member, life, code));
                }
            }
            Event::Drained(member, _) => self.drained(member),
            Event::Taken(member, _) => self.taken(member),
        }
    }

    /// Its time-out ends, or the connection breaks; the client tries again.
    fn refuse_later(&mut self, member: usize, life: Life, code: Code) {
        let at = self.now + 100;
        self.at(at, Event::Refused(member, life, code));
    }

    fn start(&mut self, member: usize) {
        let life = self.members[member].life;
        let phase = self.random.i64(0..self.shape.heartbeat);
        self.at(self.now + phase, Event::Beat(member, life));
        self.join(member);
    }

    fn join(&mut self, member: usize) {
        self.members[member].state = State::Joining;
        let life = self.members[member].life;
        self.send(Event::JoinArrives(member, life));
    }

    fn join_arrives(&mut self, member: usize, life: Life, replies: &mut Replies) {
        if self.coordinator_is_gone {
            return self.refuse_later(member, life, Code::NotCoordinator);
        }
        let token = self.token(member);
        let one = &self.members[member];
        let owned = one.owned.iter().map(|&partition| Tp {
            topic: Arc::clone(&self.topic),
            partition,
        });
        let join = Join {
            member: Arc::clone(&one.id),
            instance: None,
            subscription: Subscription {
                topics: vec![Arc::clone(&self.topic)],
                owned: owned.collect(),
                generation: one.generation,
            },
            session: self.shape.session,
            rebalance: self.shape.poll,
        };
        let name = format!("m{member}");
        if let Err((code, id)) = self.group.join(self.now, &name, join, token, replies) {
            self.tokens.remove(&token);
            match id {
                Some(id) => self.send(Event::NeedsId(member, life, id)),
                None => self.send(Event::Refused(member, life, code)),
            }
        }
    }

    fn refused(&mut self, member: usize, code: Code) {
        match code {
            Code::UnknownMemberId | Code::IllegalGeneration => self.lose(member),
            _ => self.join(member),
        }
    }

    fn replied(&mut self, member: usize, reply: Reply) {
        match reply {
            Reply::Joined(Ok(joined)) => self.joined(member, joined),
            Reply::Synced(Ok(assigned)) => {
                self.adopt(member, assigned.iter().map(|tp| tp.partition).collect());
            }
            Reply::Joined(Err(code)) | Reply::Synced(Err(code)) => self.refused(member, code),
            Reply::Appended(_) | Reply::Moved(_) => {}
        }
    }

    fn joined(&mut self, member: usize, joined: Joined) {
        let life = self.members[member].life;
        let generation = joined.generation;
        self.members[member].id = joined.member;
        self.members[member].generation = generation;
        let partitions = self.shape.partitions;
        let assignments = joined
            .members
            .map(|members| cooperative_sticky(&members, |_| partitions));
        let work = assignments.as_ref().map_or(0, |_| self.shape.assign);
        let at = self.now + work + self.way();
        self.at(
            at,
            Event::SyncArrives(member, life, generation, assignments),
        );
    }

    /// Revokes, then assigns, then joins again if something was revoked.
    fn adopt(&mut self, member: usize, assigned: BTreeSet<i32>) {
        let one = &mut self.members[member];
        one.revoked = one.owned.difference(&assigned).copied().collect();
        one.added = assigned.difference(&one.owned).copied().collect();
        one.rejoin = !one.revoked.is_empty();
        if !one.rejoin {
            return self.take(member);
        }
        one.state = State::Draining;
        let (life, leaving) = (one.life, one.revoked.clone());
        let at = self.now + self.drain(&leaving);
        self.at(at, Event::Drained(member, life));
    }

    /// Stops reading partitions; returns how long what is in flight takes.
    fn drain(&mut self, leaving: &BTreeSet<i32>) -> Ms {
        let mut longest = 0;
        for &partition in leaving {
            self.stands(partition);
            let one = self.random.usize(0..self.shape.drains.len().max(1));
            longest = longest.max(self.shape.drains.get(one).copied().unwrap_or(0));
        }
        longest.min(self.shape.drain_deadline) + self.within(self.shape.last_commit)
    }

    fn drained(&mut self, member: usize) {
        let one = &mut self.members[member];
        if one.state == State::Stopping {
            let id = Arc::clone(&one.id);
            one.owned.clear();
            self.end(member);
            self.send(Event::LeaveArrives(id));
            let at = self.now + self.shape.restart;
            self.at(at, Event::Start(member));
            // As a StatefulSet does: it waits until the pod is ready, not until it owns anything.
            return self.roll_next(at + self.shape.settle);
        }
        let revoked = std::mem::take(&mut one.revoked);
        one.owned.retain(|partition| !revoked.contains(partition));
        if one.added.is_empty() {
            self.join(member);
        } else {
            self.take(member);
        }
    }

    fn take(&mut self, member: usize) {
        let one = &mut self.members[member];
        one.state = State::Taking;
        let (life, nothing) = (one.life, one.added.is_empty());
        let time = if nothing {
            0
        } else {
            self.within(self.shape.take)
        };
        self.at(self.now + time, Event::Taken(member, life));
    }

    fn taken(&mut self, member: usize) {
        let added = std::mem::take(&mut self.members[member].added);
        for partition in added {
            self.members[member].owned.insert(partition);
            self.reads(partition, member);
        }
        if std::mem::take(&mut self.members[member].rejoin) {
            return self.join(member);
        }
        self.members[member].state = State::Stable;
    }

    fn stop(&mut self, member: usize) {
        // In the midst of a rebalance, the program first responds to it.
        if self.members[member].state != State::Stable {
            self.at(self.now + 50, Event::Stop(member));
            return;
        }
        let owned = self.members[member].owned.clone();
        self.members[member].state = State::Stopping;
        let time = self.drain(&owned);
        let life = self.members[member].life;
        self.at(self.now + time, Event::Drained(member, life));
    }

    fn kill(&mut self, member: usize) {
        for partition in std::mem::take(&mut self.members[member].owned) {
            self.stands(partition);
        }
        self.end(member);
    }

    /// The membership is over, and nothing that is under way for it counts.
    fn end(&mut self, member: usize) {
        let one = &mut self.members[member];
        one.life += 1;
        one.state = State::Off;
        one.id = Arc::from("");
        one.generation = -1;
        one.added.clear();
        one.revoked.clear();
        one.rejoin = false;
    }

    /// It was evicted: all partitions are lost, and it joins as a new member.
    fn lose(&mut self, member: usize) {
        for partition in std::mem::take(&mut self.members[member].owned) {
            if self.reader[index(partition)] == Some(member) {
                self.stands(partition);
            }
        }
        self.end(member);
        self.start(member);
    }

    fn stands(&mut self, partition: i32) {
        let at = index(partition);
        self.reader[at] = None;
        if self.standing[at].is_none() {
            self.standing[at] = Some(self.now);
            self.idle += 1;
            self.seen.most_standing = self.seen.most_standing.max(self.idle);
        }
    }

    fn reads(&mut self, partition: i32, member: usize) {
        let at = index(partition);
        let before = self.reader[at].replace(member);
        assert!(
            before.is_none_or(|before| before == member),
            "Owner only: partition {partition} is read by {before:?} and {member}"
        );
        if let Some(since) = self.standing[at].take() {
            self.idle -= 1;
            self.seen.pauses.push(self.now - since);
            self.sums[at].0 += self.now - since;
            self.sums[at].1 += 1;
        }
    }
}

fn index(partition: i32) -> usize {
    usize::try_from(partition).unwrap_or(0)
}
