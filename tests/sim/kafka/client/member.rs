//! A member of a group, with the cooperative protocol: a task joins, assigns, and keeps the membership; the caller takes
//! and gives up partitions, as with the product's own member.
//!
//! A rebalance first revokes what leaves, and waits for the caller; then it assigns what has come, and waits again; then
//! the member joins once more if it had to give something up. Heartbeats go on all the time, unless the caller has not
//! polled for `max.poll.interval.ms`: then the member leaves. An evicted member loses all partitions at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BACKOFF, Class, Link, Trouble, is_lost, is_moving};
use crate::kafka::assignor::cooperative_sticky;
use crate::kafka::cluster::{Cluster, Committed, Kind, Membership, Offset};
use crate::kafka::group::{Join, Subscription};
use crate::kafka::log::Ms;
use crate::kafka::net::{Api, Net, lock};
use crate::kafka::{Code, Joined, Reply, Tp};

/// A member's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// `group.instance.id`.
    pub instance: Option<Arc<str>>,
    /// `session.timeout.ms`.
    pub session: Duration,
    /// `heartbeat.interval.ms`.
    pub heartbeat: Duration,
    /// `max.poll.interval.ms`, which is also the timeout of a rebalance.
    pub poll: Duration,
    /// `topic.metadata.refresh.interval.ms`.
    pub refresh: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: None,
            session: Duration::from_secs(20),
            heartbeat: Duration::from_millis(500),
            poll: Duration::from_secs(300),
            refresh: Duration::from_secs(20),
        }
    }
}

/// What the group asks of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// These are assigned; respond with [`Member::take`].
    Assigned(Vec<Tp>),
    /// These are revoked; respond with [`Member::give_up`].
    Revoked {
        /// Which.
        partitions: Vec<Tp>,
        /// Others may own them already.
        lost: bool,
    },
    /// A call to the coordinator failed, and is not repeated.
    Failed(Code),
}

#[derive(Default)]
struct State {
    member: Arc<str>,
    generation: i32,
    owned: BTreeSet<Tp>,
    events: VecDeque<Event>,
    /// The caller has not yet responded to the last event.
    awaited: bool,
    polled: Option<Instant>,
    left: bool,
    ended: bool,
    disturbed: bool,
    lost: bool,
}

/// A member of a group. Dropping it ends the membership without a word, as a crash does.
pub struct Member {
    task: Task,
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.task.state).left = true;
        lock(&self.task.state).ended = true;
        self.task.changed.notify_waiters();
    }
}

#[derive(Clone)]
struct Task {
    link: Link,
    group: Arc<str>,
    topics: Vec<Arc<str>>,
    config: Config,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// How a phase of the membership ended.
enum Next {
    Rejoin,
    /// Evicted: everything is lost.
    Lost,
    Left,
}

impl Member {
    /// Joins `group` for `topics`. Returns at once.
    pub fn join(net: &Net, name: &str, group: &str, topics: &[&str], config: Config) -> Self {
        let task = Task {
            link: Link::new(net, name),
            group: Arc::from(group),
            topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
            config,
            state: Arc::default(),
            changed: Arc::new(Notify::new()),
        };
        lock(&task.state).generation = -1;
        lock(&task.state).polled = Some(Instant::now());
        crate::kafka::net::spawn(task.clone().run());
        Self { task }
    }

    /// The next event, if there is one. Must be called often.
    pub fn poll(&self) -> Option<Event> {
        let mut state = lock(&self.task.state);
        state.polled = Some(Instant::now());
        state.events.pop_front()
    }

    /// Waits until there may be an event, for at most `timeout`.
    pub async fn wait(&self, timeout: Duration) {
        let changed = self.task.changed.notified();
        if lock(&self.task.state).events.is_empty() {
            tokio::time::timeout(timeout, changed).await.ok();
        }
    }

    /// Takes what was assigned.
    pub fn take(&self, partitions: &[Tp]) {
        let mut state = lock(&self.task.state);
        state.owned.extend(partitions.iter().cloned());
        state.awaited = false;
        drop(state);
        self.task.changed.notify_waiters();
    }

    /// Gives up what was revoked.
    pub fn give_up(&self, partitions: &[Tp]) {
        let mut state = lock(&self.task.state);
        for tp in partitions {
            state.owned.remove(tp);
        }
        state.lost = false;
        state.awaited = false;
        drop(state);
        self.task.changed.notify_waiters();
    }

    /// `session.timeout.ms`.
    pub fn session(&self) -> Duration {
        self.task.config.session
    }

    /// The membership now. After an eviction, one that any broker accepts from anybody.
    pub fn membership(&self) -> Membership {
        self.task.membership()
    }

    /// The partitions that were taken and not given up.
    pub fn owned(&self) -> Vec<Tp> {
        lock(&self.task.state).owned.iter().cloned().collect()
    }

    /// Whether the partitions were lost, and not given up since (`assignment_lost`).
    pub fn has_lost(&self) -> bool {
        lock(&self.task.state).lost
    }

    /// Whether a request of this member was lost since the last call.
    pub fn was_disturbed(&self) -> bool {
        std::mem::take(&mut lock(&self.task.state).disturbed)
    }

    /// The connection, for other questions.
    pub fn link(&self) -> &Link {
        &self.task.link
    }

    /// Commits offsets; each has its result.
    ///
    /// # Errors
    /// The group's; [`Trouble::ambiguous`] when no response came.
    pub async fn commit(&self, offsets: &[Offset]) -> Result<Vec<Result<(), Code>>, Trouble> {
        let until = Instant::now() + self.task.link.timeout;
        loop {
            let (who, offsets) = (self.membership(), offsets.to_vec());
            let group = Arc::clone(&who.group);
            let commit = move |cluster: &mut Cluster, now: Ms, node| {
                cluster.commit(now, node, &who, &offsets)
            };
            let link = &self.task.link;
            let code = match link
                .coordinated(Kind::Group, &group, Api::Offsets, commit)
                .await
            {
                Ok(results) => return Ok(results),
                Err(code) => code,
            };
            lock(&self.task.state).disturbed |= is_lost(code);
            if !is_moving(code) || Instant::now() + BACKOFF >= until {
                return Err(Trouble {
                    ambiguous: is_lost(code),
                    ..Trouble::new(Class::Plain, code)
                });
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// The committed offsets of partitions. One that a transaction holds is waited for, until `timeout`.
    ///
    /// # Errors
    /// The coordinator's; `OPERATION_TIMED_OUT`.
    pub async fn committed(&self, of: &[Tp], timeout: Duration) -> Result<Vec<Committed>, Code> {
        committed(&self.task.link, &self.task.group, of, timeout).await
    }

    /// Leaves the group.
    pub async fn leave(self) {
        lock(&self.task.state).left = true;
        self.task.changed.notify_waiters();
        let patience = Duration::from_secs(5);
        let ended = async {
            loop {
                let changed = self.task.changed.notified();
                if lock(&self.task.state).ended {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, ended).await.ok();
    }
}

/// The committed offsets of a group, as a reader of committed records asks for them (KIP-447).
///
/// # Errors
/// The coordinator's; `OPERATION_TIMED_OUT` while a transaction holds one.
pub async fn committed(
    link: &Link,
    group: &Arc<str>,
    of: &[Tp],
    timeout: Duration,
) -> Result<Vec<Committed>, Code> {
    let until = Instant::now() + timeout;
    loop {
        let (name, wanted) = (Arc::clone(group), of.to_vec());
        let read = move |cluster: &mut Cluster, now: Ms, node| {
            let found = cluster.committed(now, node, &name, &wanted, true)?;
            found.into_iter().collect::<Result<Vec<_>, _>>()
        };
        let code = match link
            .coordinated(Kind::Group, group, Api::Offsets, read)
            .await
        {
            Ok(found) => return Ok(found),
            Err(code) => code,
        };
        if !is_moving(code) && code != Code::UnstableOffsetCommit {
            return Err(code);
        }
        if Instant::now() + BACKOFF >= until {
            tokio::time::sleep_until(until).await;
            return Err(Code::OperationTimedOut);
        }
        tokio::time::sleep(BACKOFF).await;
    }
}

impl Task {
    fn membership(&self) -> Membership {
        let state = lock(&self.state);
        Membership {
            group: Arc::clone(&self.group),
            member: Arc::clone(&state.member),
            generation: state.generation,
        }
    }

    fn has_left(&self) -> bool {
        lock(&self.state).left
    }

    /// Whether the caller has not polled for too long.
    fn is_late(&self) -> bool {
        let polled = lock(&self.state).polled;
        polled.is_some_and(|polled| polled.elapsed() >= self.config.poll)
    }

    async fn run(self) {
        while !self.has_left() {
            let next = match self.join().await {
                Ok(assigned) => match self.adopt(assigned).await {
                    Some(next) => next,
                    None => self.stay().await,
                },
                Err(next) => next,
            };
            match next {
                Next::Rejoin => {}
                Next::Lost => self.lose().await,
                Next::Left => break,
            }
            while self.is_late() && !self.has_left() {
                self.pause(self.config.heartbeat).await;
            }
        }
        let crashed = lock(&self.state).ended;
        if !crashed && self.config.instance.is_none() {
            self.say_goodbye().await;
        }
        lock(&self.state).ended = true;
        self.changed.notify_waiters();
    }

    async fn pause(&self, time: Duration) {
        let changed = self.changed.notified();
        tokio::time::timeout(time, changed).await.ok();
    }

    async fn told_to_leave(&self) {
        loop {
            let changed = self.changed.notified();
            if self.has_left() {
                return;
            }
            changed.await;
        }
    }

    async fn say_goodbye(&self) {
        let who = self.membership();
        if who.member.is_empty() {
            return;
        }
        let group = Arc::clone(&who.group);
        let leave = move |cluster: &mut Cluster, now: Ms, node| cluster.leave(now, node, &who);
        // The broker evicts a member that it does not hear from.
        self.link
            .coordinated(Kind::Group, &group, Api::Group, leave)
            .await
            .ok();
    }

    /// All partitions are lost, and so is the membership.
    async fn lose(&self) {
        {
            let mut state = lock(&self.state);
            if !state.member.is_empty() {
                self.link.net.note_evicted(&self.group);
            }
            state.member = Arc::from("");
            state.generation = -1;
            state.lost = !state.owned.is_empty();
            state
                .events
                .retain(|event| matches!(event, Event::Failed(_)));
            state.awaited = false;
        }
        let owned: Vec<_> = lock(&self.state).owned.iter().cloned().collect();
        if owned.is_empty() {
            return;
        }
        self.emit(Event::Revoked {
            partitions: owned,
            lost: true,
        });
        while lock(&self.state).awaited && !self.has_left() {
            self.pause(self.config.heartbeat).await;
        }
    }

    fn emit(&self, event: Event) {
        let mut state = lock(&self.state);
        state.awaited = !matches!(event, Event::Failed(_));
        state.events.push_back(event);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Joins the group, until it has an assignment.
    async fn join(&self) -> Result<Vec<Tp>, Next> {
        loop {
            if self.has_left() {
                return Err(Next::Left);
            }
            let code = match self.try_join().await {
                Ok(assigned) => return Ok(assigned),
                Err(code) => code,
            };
            match code {
                Code::MemberIdRequired | Code::RebalanceInProgress => continue,
                Code::UnknownMemberId | Code::IllegalGeneration => return Err(Next::Lost),
                Code::FencedInstanceId => {
                    self.emit(Event::Failed(code));
                    return Err(Next::Left);
                }
                code if is_moving(code) => {}
                code => self.emit(Event::Failed(code)),
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    async fn try_join(&self) -> Result<Vec<Tp>, Code> {
        let ms = |time: Duration| Ms::try_from(time.as_millis()).unwrap_or(Ms::MAX);
        let join = {
            let state = lock(&self.state);
            Join {
                member: Arc::clone(&state.member),
                instance: self.config.instance.clone(),
                subscription: Subscription {
                    topics: self.topics.clone(),
                    owned: state.owned.iter().cloned().collect(),
                    generation: state.generation,
                },
                session: ms(self.config.session),
                rebalance: ms(self.config.poll),
            }
        };
        let (group, name) = (Arc::clone(&self.group), Arc::clone(&self.link.name));
        let sent = move |cluster: &mut Cluster, now: Ms, node| match cluster
            .join(now, node, &group, &name, join)
        {
            Ok(token) => Ok(Ok((node, token))),
            Err((code, None)) => Err(code),
            Err((_, Some(id))) => Ok(Err(id)),
        };
        let kind = Kind::Group;
        let sent = self
            .link
            .coordinated(kind, &self.group, Api::Group, sent)
            .await?;
        let (node, token) = match sent {
            Ok(waiting) => waiting,
            Err(id) => {
                lock(&self.state).member = id;
                return Err(Code::MemberIdRequired);
            }
        };
        let patience = self.config.poll + Duration::from_secs(5);
        let reply = self.link.net.reply(node, token, patience).await?;
        let Reply::Joined(joined) = reply else {
            return Err(Code::Fail);
        };
        let joined = joined?;
        {
            let mut state = lock(&self.state);
            state.member = Arc::clone(&joined.member);
            state.generation = joined.generation;
        }
        self.sync(joined).await
    }

    async fn sync(&self, joined: Joined) -> Result<Vec<Tp>, Code> {
        let all = match &joined.members {
            Some(members) => Some(self.assign(members).await?),
            None => None,
        };
        let who = self.membership();
        let sync = move |cluster: &mut Cluster, now: Ms, node| {
            let token = cluster.sync(now, node, &who, all);
            token.map(|token| (node, token))
        };
        let kind = Kind::Group;
        let (node, token) = self
            .link
            .coordinated(kind, &self.group, Api::Group, sync)
            .await?;
        let reply = self
            .link
            .net
            .reply(node, token, self.config.session)
            .await?;
        let Reply::Synced(assigned) = reply else {
            return Err(Code::Fail);
        };
        assigned
    }

    /// Assigns as the leader. Topics that do not exist have no partitions. Without metadata the member joins again.
    ///
    /// # Errors
    /// Those of a lost response.
    async fn assign(
        &self,
        members: &[(Arc<str>, Subscription)],
    ) -> Result<Vec<(Arc<str>, Vec<Tp>)>, Code> {
        let topics: BTreeSet<_> = members
            .iter()
            .flat_map(|(_, wants)| &wants.topics)
            .collect();
        let mut counts = BTreeMap::new();
        for topic in topics {
            counts.insert(Arc::clone(topic), self.count(topic).await?);
        }
        let count = |topic: &Arc<str>| counts.get(topic).copied().unwrap_or(0);
        Ok(cooperative_sticky(members, count))
    }

    /// The number of partitions of a topic; 0 if there is none.
    ///
    /// # Errors
    /// Those of a lost response.
    async fn count(&self, topic: &Arc<str>) -> Result<i32, Code> {
        self.link.forget(topic);
        let view = self.link.topic(topic).await?;
        let count = view.map_or(0, |view| view.leaders.len());
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    /// Revokes, then assigns, then joins again if something was revoked.
    async fn adopt(&self, assigned: Vec<Tp>) -> Option<Next> {
        let owned = lock(&self.state).owned.clone();
        let assigned: BTreeSet<_> = assigned.into_iter().collect();
        let revoked: Vec<_> = owned.difference(&assigned).cloned().collect();
        let added: Vec<_> = assigned.difference(&owned).cloned().collect();
        let rejoin = !revoked.is_empty();
        if rejoin {
            self.emit(Event::Revoked {
                partitions: revoked,
                lost: false,
            });
            if let Some(next) = self.responded().await {
                return Some(next);
            }
        }
        if !rejoin || !added.is_empty() {
            self.emit(Event::Assigned(added));
            if let Some(next) = self.responded().await {
                return Some(next);
            }
        }
        rejoin.then_some(Next::Rejoin)
    }

    /// Waits until the caller has responded, and is alive meanwhile. `None` when it has.
    async fn responded(&self) -> Option<Next> {
        let mut beat = Instant::now() + self.config.heartbeat;
        while lock(&self.state).awaited {
            if self.has_left() {
                return Some(Next::Left);
            }
            let changed = self.changed.notified();
            if lock(&self.state).awaited {
                tokio::time::timeout_at(beat, changed).await.ok();
            }
            if Instant::now() >= beat {
                beat += self.config.heartbeat;
                if let Err(next @ (Next::Lost | Next::Left)) = self.beat().await {
                    return Some(next);
                }
            }
        }
        None
    }

    /// A member of the group, until the group rebalances.
    async fn stay(&self) -> Next {
        let mut heard = Instant::now();
        let mut refreshed = Instant::now();
        let mut counts = self.counts().await;
        loop {
            self.pause(self.config.heartbeat).await;
            if self.has_left() {
                return Next::Left;
            }
            match self.beat().await {
                Err(next) => return next,
                Ok(true) => heard = Instant::now(),
                Ok(false) => {}
            }
            if heard.elapsed() >= self.config.session {
                return Next::Lost;
            }
            if refreshed.elapsed() >= self.config.refresh {
                refreshed = Instant::now();
                let now = self.counts().await;
                if counts.is_some() && now.is_some() && now != counts {
                    return Next::Rejoin;
                }
                counts = now.or(counts);
            }
        }
    }

    /// The number of partitions of each topic, unless a response is lost.
    async fn counts(&self) -> Option<Vec<i32>> {
        let mut counts = Vec::new();
        for topic in &self.topics {
            counts.push(self.count(topic).await.ok()?);
        }
        Some(counts)
    }

    /// One heartbeat: whether the coordinator has responded.
    ///
    /// # Errors
    /// What the member has to do.
    async fn beat(&self) -> Result<bool, Next> {
        if self.is_late() {
            self.say_goodbye().await;
            return Err(Next::Lost);
        }
        let who = self.membership();
        let beat = move |cluster: &mut Cluster, now: Ms, node| cluster.heartbeat(now, node, &who);
        let kind = Kind::Group;
        let beat = self.link.coordinated(kind, &self.group, Api::Group, beat);
        // Whoever leaves says so at once, and not when a heartbeat that was lost is given up.
        let beat = tokio::select! {
            biased;
            beat = beat => beat,
            () = self.told_to_leave() => return Err(Next::Left),
        };
        let Err(code) = beat else {
            return Ok(true);
        };
        lock(&self.state).disturbed |= is_lost(code);
        match code {
            Code::RebalanceInProgress => Err(Next::Rejoin),
            Code::UnknownMemberId | Code::IllegalGeneration => Err(Next::Lost),
            Code::FencedInstanceId => {
                self.emit(Event::Failed(code));
                Err(Next::Left)
            }
            code => Ok(!is_lost(code)),
        }
    }
}
