//! One consumer group at its coordinator: the classic protocol with its two phases, and the committed offsets.
//!
//! ```text
//! Empty ──join──► Preparing ──all have joined, or the rebalance timeout──► Completing ──the leader's sync──► Stable
//!   ▲                 ▲                                                        │                              │
//!   └──the last leaves┴───────────────── a member joins, leaves or expires ────┴──────────────────────────────┘
//! ```
//!
//! A generation begins when a join phase completes; what is sent with an older one is refused with `ILLEGAL_GENERATION`,
//! and what a member sends that was evicted with `UNKNOWN_MEMBER_ID`. New dynamic members need an id first (KIP-394);
//! static ones keep theirs by name (KIP-345). Who gets which partition is decided by the leader's client (`assignor`).
//!
//! A join or a sync waits here, by its token; responses are collected by the caller. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::log::Ms;
use super::{Code, Joined, Reply, Token, Tp};

pub mod offsets;

use offsets::Offsets;

/// What a member says about itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// The topics that it wants.
    pub topics: Vec<Arc<str>>,
    /// The partitions that it still owns (cooperative protocol).
    pub owned: Vec<Tp>,
    /// The generation in which it got them; older claims lose.
    pub generation: i32,
}

/// A join.
#[derive(Clone, Debug)]
pub struct Join {
    /// Empty for a new member.
    pub member: Arc<str>,
    /// The name of a static member.
    pub instance: Option<Arc<str>>,
    /// What it wants.
    pub subscription: Subscription,
    /// Without a heartbeat for this long it is evicted.
    pub session: Ms,
    /// How long a rebalance waits for this member to join again.
    pub rebalance: Ms,
}

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No members.
    Empty,
    /// Members are asked to join again, until this time.
    Preparing(Ms),
    /// The leader assigns.
    Completing,
    /// All know what they own.
    Stable,
}

#[derive(Debug)]
struct Member {
    instance: Option<Arc<str>>,
    subscription: Subscription,
    session: Ms,
    rebalance: Ms,
    assignment: Vec<Tp>,
    joining: Option<Token>,
    syncing: Option<Token>,
    expires: Ms,
}

/// A group.
#[derive(Debug)]
pub struct Group {
    phase: Phase,
    generation: i32,
    leader: Option<Arc<str>>,
    members: BTreeMap<Arc<str>, Member>,
    /// Ids given to members that have not joined with them yet, with the time when they expire.
    pending: BTreeMap<Arc<str>, Ms>,
    named: u64,
    /// Committed offsets.
    pub offsets: Offsets,
    empty_since: Ms,
}

/// Responses to requests that have waited.
pub type Replies = Vec<(Token, Reply)>;

impl Group {
    /// A group without members and offsets.
    pub fn new(now: Ms) -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            leader: None,
            members: BTreeMap::new(),
            pending: BTreeMap::new(),
            named: 0,
            offsets: Offsets::default(),
            empty_since: now,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The current generation.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// What each member was assigned in this generation.
    pub fn assignments(&self) -> impl Iterator<Item = (&Arc<str>, &[Tp])> {
        let each = self.members.iter();
        each.map(|(id, member)| (id, &*member.assignment))
    }

    /// Since when it has had no members.
    pub fn empty_since(&self) -> Option<Ms> {
        (self.phase == Phase::Empty).then_some(self.empty_since)
    }

    /// A member joins, or joins again. The response comes when the join phase completes.
    ///
    /// # Errors
    /// `MEMBER_ID_REQUIRED` with the id, as the inner error; `UNKNOWN_MEMBER_ID`, `FENCED_INSTANCE_ID`.
    pub fn join(
        &mut self,
        now: Ms,
        name: &str,
        join: Join,
        token: Token,
        replies: &mut Replies,
    ) -> Result<(), (Code, Option<Arc<str>>)> {
        if join.member.is_empty() {
            return self.join_new(now, name, join, token, replies);
        }
        if self.pending.remove(&join.member).is_some() {
            let id = Arc::clone(&join.member);
            self.add(now, id, join, token, replies);
            return Ok(());
        }
        let Some(member) = self.members.get_mut(&join.member) else {
            return Err((Code::UnknownMemberId, None));
        };
        if member.instance != join.instance {
            return Err((Code::FencedInstanceId, None));
        }
        let same = member.subscription == join.subscription;
        let leads = self.leader.as_ref() == Some(&join.member);
        member.subscription = join.subscription;
        member.session = join.session;
        member.rebalance = join.rebalance;
        member.expires = now + join.session;
        match self.phase {
            Phase::Completing if same => self.answer_join(&join.member, token, replies),
            Phase::Stable if same && !leads => self.answer_join(&join.member, token, replies),
            _ => {
                if let Some(old) = member.joining.replace(token) {
                    replies.push((old, Reply::Joined(Err(Code::RebalanceInProgress))));
                }
                self.prepare(now, replies);
            }
        }
        Ok(())
    }

    fn join_new(
        &mut self,
        now: Ms,
        name: &str,
        join: Join,
        token: Token,
        replies: &mut Replies,
    ) -> Result<(), (Code, Option<Arc<str>>)> {
        self.named += 1;
        let label = join.instance.as_deref().unwrap_or(name);
        let id: Arc<str> = Arc::from(format!("{label}-{}", self.named));
        let Some(instance) = &join.instance else {
            self.pending.insert(Arc::clone(&id), now + join.session);
            return Err((Code::MemberIdRequired, Some(id)));
        };
        let known = self.members.iter();
        let mut known = known.filter(|(_, member)| member.instance.as_ref() == Some(instance));
        let Some(old) = known.next().map(|(id, _)| Arc::clone(id)) else {
            self.add(now, id, join, token, replies);
            return Ok(());
        };
        self.replace(now, &old, id, join, token, replies);
        Ok(())
    }

    /// A static member has restarted: it takes the place of its predecessor, without a rebalance where nothing changes.
    fn replace(
        &mut self,
        now: Ms,
        old: &Arc<str>,
        id: Arc<str>,
        join: Join,
        token: Token,
        replies: &mut Replies,
    ) {
        let Some(mut member) = self.members.remove(old) else {
            return;
        };
        let fenced = Code::FencedInstanceId;
        let waiting = member.joining.take();
        replies.extend(waiting.map(|token| (token, Reply::Joined(Err(fenced)))));
        let waiting = member.syncing.take();
        replies.extend(waiting.map(|token| (token, Reply::Synced(Err(fenced)))));
        let same = member.subscription.topics == join.subscription.topics;
        member.subscription = join.subscription;
        member.expires = now + join.session;
        if self.leader.as_ref() == Some(old) {
            self.leader = Some(Arc::clone(&id));
        }
        if self.phase == Phase::Stable && same {
            self.members.insert(Arc::clone(&id), member);
            let joined = Joined {
                member: id,
                generation: self.generation,
                // It must not assign: the group keeps its assignment (KIP-814).
                members: None,
            };
            replies.push((token, Reply::Joined(Ok(joined))));
            return;
        }
        member.joining = Some(token);
        self.members.insert(id, member);
        self.prepare(now, replies);
    }

    fn add(&mut self, now: Ms, id: Arc<str>, join: Join, token: Token, replies: &mut Replies) {
        let member = Member {
            instance: join.instance,
            subscription: join.subscription,
            session: join.session,
            rebalance: join.rebalance,
            assignment: Vec::new(),
            joining: Some(token),
            syncing: None,
            expires: now + join.session,
        };
        self.members.insert(id, member);
        self.prepare(now, replies);
    }

    /// Begins a join phase, if none is under way, and completes it when everybody has joined.
    fn prepare(&mut self, now: Ms, replies: &mut Replies) {
        if !matches!(self.phase, Phase::Preparing(_)) {
            for member in self.members.values_mut() {
                let waiting = member.syncing.take();
                let retry = Reply::Synced(Err(Code::RebalanceInProgress));
                replies.extend(waiting.map(|token| (token, retry)));
            }
            let longest = self.members.values().map(|member| member.rebalance).max();
            self.phase = Phase::Preparing(now + longest.unwrap_or(0));
        }
        self.complete_if_joined(now, replies);
    }

    fn complete_if_joined(&mut self, now: Ms, replies: &mut Replies) {
        let Phase::Preparing(until) = self.phase else {
            return;
        };
        let mut each = self.members.values();
        let joined = each.all(|member| member.joining.is_some()) && self.pending.is_empty();
        if joined || now >= until {
            self.complete(now, replies);
        }
    }

    fn complete(&mut self, now: Ms, replies: &mut Replies) {
        // Those that have not joined again are evicted; static ones stay until their session ends.
        self.members
            .retain(|_, member| member.joining.is_some() || member.instance.is_some());
        self.generation += 1;
        if self.members.is_empty() {
            self.become_empty(now);
            return;
        }
        let mut joined = self.members.iter();
        let joined = joined.find(|(_, member)| member.joining.is_some());
        let keeps = self.leader.as_ref().and_then(|id| self.members.get(id));
        if keeps.is_none_or(|member| member.joining.is_none()) {
            self.leader = joined.map(|(id, _)| Arc::clone(id));
        }
        self.phase = Phase::Completing;
        let waiting = self.members.iter_mut();
        let waiting: Vec<_> = waiting
            .filter_map(|(id, member)| {
                member.expires = now + member.session;
                let token = member.joining.take()?;
                Some((Arc::clone(id), token))
            })
            .collect();
        for (id, token) in waiting {
            self.answer_join(&id, token, replies);
        }
    }

    fn answer_join(&self, id: &Arc<str>, token: Token, replies: &mut Replies) {
        let members = (self.leader.as_ref() == Some(id)).then(|| {
            let each = self.members.iter();
            let each = each.map(|(id, member)| (Arc::clone(id), member.subscription.clone()));
            each.collect()
        });
        let joined = Joined {
            member: Arc::clone(id),
            generation: self.generation,
            members,
        };
        replies.push((token, Reply::Joined(Ok(joined))));
    }

    fn become_empty(&mut self, now: Ms) {
        self.phase = Phase::Empty;
        self.leader = None;
        self.empty_since = now;
    }

    /// A member asks for its assignment; the leader brings all of them.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER_ID`, `ILLEGAL_GENERATION`, `REBALANCE_IN_PROGRESS`.
    pub fn sync(
        &mut self,
        now: Ms,
        id: &str,
        generation: i32,
        assignments: Option<Vec<(Arc<str>, Vec<Tp>)>>,
        token: Token,
        replies: &mut Replies,
    ) -> Result<(), Code> {
        let leads = self.leader.as_deref() == Some(id);
        let member = self.members.get_mut(id).ok_or(Code::UnknownMemberId)?;
        if generation != self.generation {
            return Err(Code::IllegalGeneration);
        }
        member.expires = now + member.session;
        match self.phase {
            Phase::Empty => return Err(Code::UnknownMemberId),
            Phase::Preparing(_) => return Err(Code::RebalanceInProgress),
            Phase::Stable => {
                let assigned = member.assignment.clone();
                replies.push((token, Reply::Synced(Ok(assigned))));
            }
            Phase::Completing => {
                member.syncing = Some(token);
                if let Some(all) = assignments.filter(|_| leads) {
                    self.assign(now, all, replies);
                }
            }
        }
        Ok(())
    }

    fn assign(&mut self, now: Ms, all: Vec<(Arc<str>, Vec<Tp>)>, replies: &mut Replies) {
        for member in self.members.values_mut() {
            member.assignment.clear();
        }
        for (id, assigned) in all {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assigned;
            }
        }
        self.phase = Phase::Stable;
        for member in self.members.values_mut() {
            if let Some(token) = member.syncing.take() {
                member.expires = now + member.session;
                let assigned = member.assignment.clone();
                replies.push((token, Reply::Synced(Ok(assigned))));
            }
        }
    }

    /// A member is alive.
    ///
    /// # Errors
    /// `REBALANCE_IN_PROGRESS` asks it to join again; `UNKNOWN_MEMBER_ID`, `ILLEGAL_GENERATION`.
    pub fn heartbeat(&mut self, now: Ms, id: &str, generation: i32) -> Result<(), Code> {
        let member = self.members.get_mut(id).ok_or(Code::UnknownMemberId)?;
        if generation != self.generation {
            return Err(Code::IllegalGeneration);
        }
        member.expires = now + member.session;
        match self.phase {
            Phase::Empty => Err(Code::UnknownMemberId),
            Phase::Preparing(_) => Err(Code::RebalanceInProgress),
            Phase::Completing | Phase::Stable => Ok(()),
        }
    }

    /// A member leaves. Static members do not: they are waited for until their session ends.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER_ID`.
    pub fn leave(&mut self, now: Ms, id: &str, replies: &mut Replies) -> Result<(), Code> {
        if self.pending.remove(id).is_some() {
            self.complete_if_joined(now, replies);
            return Ok(());
        }
        if !self.members.contains_key(id) {
            return Err(Code::UnknownMemberId);
        }
        self.remove(now, id, replies);
        Ok(())
    }

    fn remove(&mut self, now: Ms, id: &str, replies: &mut Replies) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        let unknown = Code::UnknownMemberId;
        replies.extend(
            member
                .joining
                .map(|token| (token, Reply::Joined(Err(unknown)))),
        );
        replies.extend(
            member
                .syncing
                .map(|token| (token, Reply::Synced(Err(unknown)))),
        );
        if self.leader.as_deref() == Some(id) {
            self.leader = None;
        }
        if self.members.is_empty() && self.pending.is_empty() {
            self.generation += 1;
            self.become_empty(now);
        } else {
            self.prepare(now, replies);
        }
    }

    /// Evicts members whose session has ended, and completes a join phase that has waited long enough.
    pub fn tick(&mut self, now: Ms, replies: &mut Replies) {
        self.pending.retain(|_, expires| *expires > now);
        let expired = |member: &Member| {
            let waits = member.joining.is_some() || member.syncing.is_some();
            member.expires <= now && !waits
        };
        let each = self.members.iter().filter(|(_, member)| expired(member));
        let all: Vec<_> = each.map(|(id, _)| Arc::clone(id)).collect();
        for id in all {
            self.remove(now, &id, replies);
        }
        self.complete_if_joined(now, replies);
    }

    /// When [`Group::tick`] has something to do next.
    pub fn deadline(&self) -> Option<Ms> {
        let sessions = self.members.values();
        let sessions = sessions
            .filter(|member| member.joining.is_none() && member.syncing.is_none())
            .map(|member| member.expires);
        let phase = match self.phase {
            Phase::Preparing(until) => Some(until),
            _ => None,
        };
        let pending = self.pending.values().copied();
        sessions.chain(pending).chain(phase).min()
    }

    /// Another broker has become the coordinator: requests that have waited are lost, and sessions begin anew.
    pub fn moved(&mut self, now: Ms, replies: &mut Replies) {
        let lost = Code::NotCoordinator;
        for member in self.members.values_mut() {
            let waiting = member.joining.take();
            replies.extend(waiting.map(|token| (token, Reply::Joined(Err(lost)))));
            let waiting = member.syncing.take();
            replies.extend(waiting.map(|token| (token, Reply::Synced(Err(lost)))));
            member.expires = now + member.session;
        }
        self.pending.clear();
        match self.phase {
            // Only a completed generation was written down; the members have to join again.
            Phase::Preparing(_) | Phase::Completing => {
                self.phase = Phase::Stable;
                if self.members.is_empty() {
                    self.become_empty(now);
                } else {
                    self.prepare(now, replies);
                }
            }
            Phase::Empty | Phase::Stable => {}
        }
    }

    /// Checks who commits outside a transaction.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER_ID`, `ILLEGAL_GENERATION`, `REBALANCE_IN_PROGRESS`.
    pub fn check_commit(&mut self, now: Ms, id: &str, generation: i32) -> Result<(), Code> {
        // A committer without a group: while the group has members, it is none of them.
        if generation < 0 && self.phase == Phase::Empty {
            return Ok(());
        }
        let member = self.members.get_mut(id).ok_or(Code::UnknownMemberId)?;
        if generation != self.generation {
            return Err(Code::IllegalGeneration);
        }
        member.expires = now + member.session;
        if self.phase == Phase::Completing {
            return Err(Code::RebalanceInProgress);
        }
        Ok(())
    }

    /// Checks who commits in a transaction (KIP-447): an empty generation is accepted from anybody.
    ///
    /// # Errors
    /// `UNKNOWN_MEMBER_ID`, `ILLEGAL_GENERATION`.
    pub fn check_transaction(&self, id: &str, generation: i32) -> Result<(), Code> {
        if generation < 0 && id.is_empty() {
            return Ok(());
        }
        if !self.members.contains_key(id) {
            return Err(Code::UnknownMemberId);
        }
        if generation != self.generation {
            return Err(Code::IllegalGeneration);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
