//! Groups and transactions, at their coordinators.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Cluster, Kind, SEATS, Seat, Timer};
use crate::kafka::group::{Group, Join, Phase};
use crate::kafka::log::{Fetched, Ms, Producer};
use crate::kafka::transaction::{Init, Stage, Transaction};
use crate::kafka::{Code, Node, Token, Tp};

/// Who commits: a member of a group at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: Arc<str>,
    /// The member's id; empty for none.
    pub member: Arc<str>,
    /// Its generation; -1 for none.
    pub generation: i32,
}

/// An offset to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The partition.
    pub tp: Tp,
    /// The next offset to read.
    pub position: i64,
    /// Text that is kept with it.
    pub metadata: Arc<str>,
}

/// A committed offset and its metadata, if there is one.
pub type Committed = Option<(i64, Arc<str>)>;

/// Java's hash of a string, as a positive number.
fn hash(text: &str) -> i32 {
    let units = text.encode_utf16();
    let hash = units.fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    hash & i32::MAX
}

impl Cluster {
    pub(super) fn seat_number(&self, key: &str) -> i32 {
        hash(key) % SEATS
    }

    pub(super) fn seat(&self, kind: Kind, key: &str) -> &Seat {
        &self.seats[&(kind, hash(key) % SEATS)]
    }

    /// The broker that coordinates a group or a transactional id.
    ///
    /// # Errors
    /// `COORDINATOR_NOT_AVAILABLE`.
    pub fn coordinator(&self, kind: Kind, key: &str) -> Result<Node, Code> {
        let leader = self.seat(kind, key).leader;
        leader.ok_or(Code::CoordinatorNotAvailable)
    }

    fn coordinates(&self, now: Ms, node: Node, kind: Kind, key: &str) -> Result<(), Code> {
        let seat = self.seat(kind, key);
        if seat.leader != Some(node) {
            return Err(Code::NotCoordinator);
        }
        if now < seat.ready {
            return Err(Code::CoordinatorLoadInProgress);
        }
        Ok(())
    }

    fn group(&mut self, now: Ms, name: &Arc<str>) -> &mut Group {
        let new = || Group::new(now);
        self.groups.entry(Arc::clone(name)).or_insert_with(new)
    }

    /// Starts the timer for a group's next deadline.
    pub(super) fn watch_group(&mut self, name: &Arc<str>) {
        let deadline = self.groups.get(name).and_then(Group::deadline);
        let Some(deadline) = deadline else { return };
        let set = self.group_timers.get(name);
        if set.is_none_or(|&at| at > deadline) {
            self.group_timers.insert(Arc::clone(name), deadline);
            self.start(deadline, Timer::Group(Arc::clone(name)));
        }
    }

    pub(super) fn tick_group(&mut self, now: Ms, name: &Arc<str>) {
        self.group_timers.remove(name);
        let seat = self.seat(Kind::Group, name);
        if seat.leader.is_none_or(|leader| !self.is_up(leader)) {
            // Nobody evicts anybody; the next coordinator begins anew.
            return;
        }
        if let Some(group) = self.groups.get_mut(name) {
            group.tick(now, &mut self.finished);
        }
        self.watch_group(name);
    }

    /// A member joins. The inner error is the id to join with, for `MEMBER_ID_REQUIRED`.
    ///
    /// # Errors
    /// Those of the coordinator and of the group; `INVALID_SESSION_TIMEOUT`.
    pub fn join(
        &mut self,
        now: Ms,
        node: Node,
        name: &Arc<str>,
        client: &str,
        join: Join,
    ) -> Result<Token, (Code, Option<Arc<str>>)> {
        let refuse = |code| (code, None);
        self.coordinates(now, node, Kind::Group, name)
            .map_err(refuse)?;
        let (least, most) = self.settings.session;
        if join.session < least || join.session > most {
            return Err(refuse(Code::InvalidSessionTimeout));
        }
        let token = self.token();
        self.group(now, name);
        if let Some(group) = self.groups.get_mut(name) {
            let joined = group.join(now, client, join, token, &mut self.finished);
            self.watch_group(name);
            joined?;
        }
        Ok(token)
    }

    /// A member asks for its partitions.
    ///
    /// # Errors
    /// Those of the coordinator and of the group.
    pub fn sync(
        &mut self,
        now: Ms,
        node: Node,
        who: &Membership,
        all: Option<Vec<(Arc<str>, Vec<Tp>)>>,
    ) -> Result<Token, Code> {
        self.coordinates(now, node, Kind::Group, &who.group)?;
        let token = self.token();
        let group = self.groups.get_mut(&who.group);
        let group = group.ok_or(Code::UnknownMemberId)?;
        let finished = &mut self.finished;
        group.sync(now, &who.member, who.generation, all, token, finished)?;
        self.watch_group(&who.group);
        Ok(token)
    }

    /// A member is alive.
    ///
    /// # Errors
    /// Those of the coordinator and of the group.
    pub fn heartbeat(&mut self, now: Ms, node: Node, who: &Membership) -> Result<(), Code> {
        self.coordinates(now, node, Kind::Group, &who.group)?;
        let group = self.groups.get_mut(&who.group);
        let group = group.ok_or(Code::UnknownMemberId)?;
        group.heartbeat(now, &who.member, who.generation)
    }

    /// A member leaves.
    ///
    /// # Errors
    /// Those of the coordinator and of the group.
    pub fn leave(&mut self, now: Ms, node: Node, who: &Membership) -> Result<(), Code> {
        self.coordinates(now, node, Kind::Group, &who.group)?;
        let group = self.groups.get_mut(&who.group);
        let group = group.ok_or(Code::UnknownMemberId)?;
        let left = group.leave(now, &who.member, &mut self.finished);
        self.watch_group(&who.group);
        left
    }

    /// Commits offsets. Each has a result of its own: one with too much metadata is refused, the others are taken.
    ///
    /// # Errors
    /// Those of the coordinator and of the group.
    pub fn commit(
        &mut self,
        now: Ms,
        node: Node,
        who: &Membership,
        offsets: &[Offset],
    ) -> Result<Vec<Result<(), Code>>, Code> {
        self.coordinates(now, node, Kind::Group, &who.group)?;
        if who.generation >= 0 && !self.groups.contains_key(&who.group) {
            return Err(Code::IllegalGeneration);
        }
        let group = self.group(now, &who.group);
        group.check_commit(now, &who.member, who.generation)?;
        let each = offsets.iter();
        Ok(each
            .map(|offset| self.store(now, None, who, offset))
            .collect())
    }

    fn store(
        &mut self,
        now: Ms,
        producer: Option<i64>,
        who: &Membership,
        offset: &Offset,
    ) -> Result<(), Code> {
        self.partition(&offset.tp)?;
        if offset.metadata.len() > self.settings.metadata_limit {
            return Err(Code::OffsetMetadataTooLarge);
        }
        let offsets = &mut self.group(now, &who.group).offsets;
        let tp = offset.tp.clone();
        match producer {
            Some(id) => offsets.stage(now, id, tp, offset.position, &offset.metadata),
            None => offsets.commit(now, tp, offset.position, &offset.metadata),
        }
        Ok(())
    }

    /// The committed offsets of a group, whether or not it is known. With `stable`, those that a transaction holds are
    /// refused with `UNSTABLE_OFFSET_COMMIT`.
    ///
    /// # Errors
    /// Those of the coordinator.
    pub fn committed(
        &self,
        now: Ms,
        node: Node,
        group: &str,
        of: &[Tp],
        stable: bool,
    ) -> Result<Vec<Result<Committed, Code>>, Code> {
        self.coordinates(now, node, Kind::Group, group)?;
        let Some(group) = self.groups.get(group) else {
            return Ok(of.iter().map(|_| Ok(None)).collect());
        };
        let each = of.iter().map(|tp| {
            let stored = group.offsets.get(tp, stable)?;
            Ok(stored.map(|stored| (stored.position, Arc::clone(&stored.metadata))))
        });
        Ok(each.collect())
    }

    pub(super) fn expire_offsets(&mut self, now: Ms) {
        let before = now - self.settings.offsets_retention;
        self.groups.retain(|_, group| {
            let expired = group.empty_since().is_some_and(|since| since < before);
            !(expired && group.offsets.expire(before))
        });
    }

    /// A producer starts. Without a transactional id it only gets a producer id.
    ///
    /// # Errors
    /// Those of the coordinator; `INVALID_TRANSACTION_TIMEOUT`; `CONCURRENT_TRANSACTIONS` while a transaction of its
    /// predecessor is being ended.
    pub fn init_producer(
        &mut self,
        now: Ms,
        node: Node,
        id: Option<&Arc<str>>,
        timeout: Ms,
    ) -> Result<Producer, Code> {
        let fresh = i64::try_from(self.next()).unwrap_or(i64::MAX);
        let Some(id) = id else {
            return Ok(Producer {
                id: fresh,
                epoch: 0,
            });
        };
        self.coordinates(now, node, Kind::Transaction, id)?;
        if timeout > self.settings.longest_transaction {
            return Err(Code::InvalidTransactionTimeout);
        }
        let Some(known) = self.transactions.get_mut(id) else {
            let new = Transaction::new(fresh, timeout);
            let producer = new.producer();
            self.transactions.insert(Arc::clone(id), new);
            return Ok(producer);
        };
        match known.init(timeout, fresh)? {
            Init::Ready(producer) => Ok(producer),
            Init::Aborting => {
                self.end_soon(now, id);
                Err(Code::ConcurrentTransactions)
            }
        }
    }

    fn transaction(&mut self, now: Ms, node: Node, id: &str) -> Result<&mut Transaction, Code> {
        self.coordinates(now, node, Kind::Transaction, id)?;
        let known = self.transactions.get_mut(id);
        known.ok_or(Code::InvalidProducerIdMapping)
    }

    /// Adds partitions to a transaction.
    ///
    /// # Errors
    /// Those of the coordinator and of the transaction; `UNKNOWN_TOPIC_OR_PARTITION`.
    pub fn add_to_transaction(
        &mut self,
        now: Ms,
        node: Node,
        id: &str,
        producer: Producer,
        partitions: &[Tp],
    ) -> Result<(), Code> {
        for tp in partitions {
            self.partition(tp)?;
        }
        let transaction = self.transaction(now, node, id)?;
        transaction.add(now, producer, partitions.iter().cloned())
    }

    /// Adds a group to a transaction.
    ///
    /// # Errors
    /// Those of the coordinator and of the transaction.
    pub fn add_group_to_transaction(
        &mut self,
        now: Ms,
        node: Node,
        id: &str,
        producer: Producer,
        group: &Arc<str>,
    ) -> Result<(), Code> {
        let transaction = self.transaction(now, node, id)?;
        transaction.add_group(now, producer, Arc::clone(group))
    }

    /// Commits offsets in a transaction, at the coordinator of the group (KIP-447).
    ///
    /// # Errors
    /// Those of the coordinator, the group and the transaction. The first offset that is refused refuses all that follow.
    pub fn commit_in_transaction(
        &mut self,
        now: Ms,
        node: Node,
        id: &str,
        producer: Producer,
        who: &Membership,
        offsets: &[Offset],
    ) -> Result<(), Code> {
        self.coordinates(now, node, Kind::Group, &who.group)?;
        let known = self.transactions.get(id);
        let known = known.ok_or(Code::InvalidProducerIdMapping)?;
        if known.producer() != producer {
            return Err(Code::InvalidProducerEpoch);
        }
        let open = matches!(known.stage(), Stage::Ongoing(_));
        if !open || !known.groups.contains(&who.group) {
            return Err(Code::InvalidTransactionalState);
        }
        if who.generation >= 0 && !self.groups.contains_key(&who.group) {
            return Err(Code::IllegalGeneration);
        }
        let group = self.group(now, &who.group);
        group.check_transaction(&who.member, who.generation)?;
        for offset in offsets {
            self.store(now, Some(producer.id), who, offset)?;
        }
        Ok(())
    }

    /// Ends a transaction. The response does not wait for the markers.
    ///
    /// # Errors
    /// Those of the coordinator and of the transaction.
    pub fn end_transaction(
        &mut self,
        now: Ms,
        node: Node,
        id: &Arc<str>,
        producer: Producer,
        commit: bool,
    ) -> Result<(), Code> {
        if self.transaction(now, node, id)?.end(producer, commit)? {
            self.end_soon(now, id);
        }
        Ok(())
    }

    fn end_soon(&mut self, now: Ms, id: &Arc<str>) {
        let delay = self.between(self.settings.markers);
        self.start(now + delay, Timer::Markers(Arc::clone(id)));
    }

    pub(super) fn expire_transactions(&mut self, now: Ms) {
        let ids: Vec<_> = self.transactions.keys().map(Arc::clone).collect();
        for id in ids {
            let seat = self.seat(Kind::Transaction, &id);
            let works = seat.leader.is_some_and(|node| self.is_up(node)) && seat.ready <= now;
            let transaction = self.transactions.get_mut(&id);
            if works && transaction.is_some_and(|transaction| transaction.expire(now)) {
                self.end_soon(now, &id);
            }
        }
    }

    /// Writes the markers that can be written; again after a while where a leader is missing.
    pub(super) fn write_markers(&mut self, now: Ms, id: &Arc<str>) {
        const AGAIN: Ms = 100;
        const REPLICATED: Ms = 5;
        let Some(transaction) = self.transactions.get(id) else {
            return;
        };
        let Stage::Ending { commit } = transaction.stage() else {
            return;
        };
        let producer = transaction.producer();
        let seat = self.seat(Kind::Transaction, id);
        let works = seat.leader.is_some_and(|node| self.is_up(node)) && seat.ready <= now;
        let mut partitions = transaction.partitions.clone();
        let mut groups = transaction.groups.clone();
        let mut written = transaction.written.clone();
        if works {
            partitions.retain(|tp| !self.write_marker(now, tp, producer, commit, &mut written));
            groups.retain(|group| !self.end_offsets(now, group, producer, commit));
        }
        let waits = partitions.iter().any(|tp| written.contains_key(tp));
        let done = partitions.is_empty() && groups.is_empty();
        if let Some(transaction) = self.transactions.get_mut(id) {
            transaction.partitions = partitions;
            transaction.groups = groups;
            transaction.written = written;
            if done {
                transaction.ended();
            }
        }
        if !done {
            let again = if waits { REPLICATED } else { AGAIN };
            self.start(now + again, Timer::Markers(Arc::clone(id)));
        }
    }

    /// Returns whether the marker is written and replicated, or need not be: a topic that is gone needs none.
    fn write_marker(
        &mut self,
        now: Ms,
        tp: &Tp,
        producer: Producer,
        commit: bool,
        written: &mut BTreeMap<Tp, i64>,
    ) -> bool {
        let Ok(partition) = self.partition(tp) else {
            return true;
        };
        let high = partition.log.bounds().high;
        if let Some(&offset) = written.get(tp) {
            if partition.log.has_marker(offset, producer) {
                return offset < high;
            }
            written.remove(tp);
        }
        let topic = &self.topics[&tp.topic];
        let (least, id) = (topic.config.min_in_sync, topic.id);
        let leads = partition.leader.is_some_and(|leader| self.is_up(leader));
        if !leads || partition.in_sync.len() < least {
            return false;
        }
        let alone = partition.replicas.len() == 1;
        let delay = if alone {
            0
        } else {
            self.between(self.settings.replication)
        };
        let Ok(partition) = self.partition_mut(tp) else {
            return true;
        };
        // Refused only if a newer epoch has written its own.
        let Ok(offset) = partition.log.mark(now, producer, commit) else {
            return true;
        };
        written.insert(tp.clone(), offset);
        if delay > 0 {
            let timer = Timer::Replicated(tp.clone(), id, offset + 1);
            self.start(now + delay, timer);
            return false;
        }
        self.replicated(tp, id, offset + 1);
        let partition = self.partition(tp);
        partition.is_ok_and(|partition| offset < partition.log.bounds().high)
    }

    fn end_offsets(&mut self, now: Ms, group: &Arc<str>, producer: Producer, commit: bool) -> bool {
        let seat = self.seat(Kind::Group, group);
        if !seat.leader.is_some_and(|node| self.is_up(node)) || seat.ready > now {
            return false;
        }
        if let Some(group) = self.groups.get_mut(group) {
            group.offsets.end(producer.id, commit);
        }
        true
    }

    /// A group's phase and generation, for checks of a whole run.
    pub fn group_phase(&self, name: &str) -> Option<(Phase, i32)> {
        let group = self.groups.get(name)?;
        Some((group.phase(), group.generation()))
    }

    /// Where a transactional id stands, for checks of a whole run.
    pub fn transaction_stage(&self, id: &str) -> Option<Stage> {
        Some(self.transactions.get(id)?.stage())
    }

    /// All members' partitions in all groups, for checks of a whole run.
    pub fn assignments(&self) -> impl Iterator<Item = (&Arc<str>, &Group)> {
        self.groups.iter()
    }

    /// What a group has committed for a partition, for checks of a whole run.
    ///
    /// # Errors
    /// `UNSTABLE_OFFSET_COMMIT` while a transaction holds one.
    pub fn position(&self, group: &str, tp: &Tp) -> Result<Option<(i64, Arc<str>)>, Code> {
        let Some(group) = self.groups.get(group) else {
            return Ok(None);
        };
        let found = group.offsets.get(tp, true)?;
        Ok(found.map(|found| (found.position, Arc::clone(&found.metadata))))
    }

    /// The records of a partition that readers of committed records see, whoever leads it: for checks of a whole run.
    pub fn peek(&self, tp: &Tp, from: i64) -> Option<Fetched> {
        let log = &self.partition(tp).ok()?.log;
        log.fetch(from.max(log.bounds().start), true, usize::MAX)
            .ok()
    }
}
