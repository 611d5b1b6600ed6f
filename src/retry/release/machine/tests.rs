//! The machine in a made-up world of logs, clocks, rebalances and failures, against what a naive reader expects.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::command::tests::sample;
use crate::model::command::{Cause, Command};
use crate::model::invalid_record::InvalidRecord;
use crate::model::units::{EpochMs, Offset};

const DELAYS: [u64; 3] = [4, 20, 100];
const PARTITIONS: i32 = 4;
/// What a command weighs beside its body.
const OVERHEAD: usize = 512;

fn limits() -> Limits {
    Limits {
        buffer_bytes: 30_000,
        least_buffer: 3000,
        batch_records: 8,
        batch_bytes: 5000,
        portion: 4,
        least_portion: 2,
        gather: Duration::from_millis(2),
        wait: Duration::from_millis(10),
    }
}

fn delay(tier: usize) -> i64 {
    i64::try_from(DELAYS[tier]).unwrap()
}

#[derive(Clone, Debug)]
struct Entry {
    id: usize,
    appended: i64,
    /// `None` for a record that is not a command.
    due: Option<i64>,
    bytes: usize,
    /// Whether the machine holds it as refused.
    refused: bool,
}

impl Entry {
    /// When the head of a tier must not wait any longer.
    fn may_leave(&self, tier: usize, now: i64) -> bool {
        let Some(due) = self.due.filter(|_| !self.refused) else {
            return true;
        };
        now >= self.appended + delay(tier) && (now >= due || due - now > delay(0) / 2)
    }

    fn weight(&self) -> usize {
        match self.held(0).content {
            Err(record) if self.refused => record.weight(),
            _ => self.bytes + OVERHEAD,
        }
    }

    fn held(&self, offset: i64) -> HeldRecord {
        let content = match self.due {
            Some(due) => Ok(Box::new(Command {
                webhook_id: self.id.to_string().into(),
                due: Some(EpochMs(due)),
                cause: Cause::ALL[1 + self.id % 2],
                subscriber: format!("s{}", self.id % 7).into(),
                body: vec![0; self.bytes].into(),
                ..sample()
            })),
            None => Err(Box::new(InvalidRecord {
                key: None,
                value: Some(vec![0; self.bytes]),
                headers: Vec::new(),
                error: self.id.to_string(),
                topic: String::new(),
                partition: 0,
                offset: Offset(offset),
                extent: Extent::Whole,
            })),
        };
        let content = match content {
            Ok(command) if self.refused => Err(Box::new(refused(&command, "", 0, Offset(offset)))),
            content => content,
        };
        HeldRecord {
            offset: Offset(offset),
            appended: EpochMs(self.appended),
            content,
        }
    }
}

/// One tier partition at the broker, and where its reader is.
#[derive(Debug, Default)]
struct Log {
    entries: Vec<Entry>,
    low: i64,
    committed: i64,
    /// Of the owner's client.
    next: i64,
    /// Of those before `next`, the offsets that the machine was given and that are not committed.
    held: Vec<i64>,
    paused: bool,
    /// Batches that left it out although its head might have left.
    left_out: usize,
}

impl Log {
    fn entry(&self, offset: i64) -> &Entry {
        &self.entries[usize::try_from(offset).unwrap()]
    }

    fn end(&self) -> i64 {
        i64::try_from(self.entries.len()).unwrap()
    }

    fn held_bytes(&self) -> usize {
        self.held
            .iter()
            .map(|&offset| self.entry(offset).weight())
            .sum()
    }

    fn head_may_leave(&self, tier: usize, now: i64) -> bool {
        let head = self.held.first();
        head.is_some_and(|&head| self.entry(head).may_leave(tier, now))
    }
}

#[derive(Debug)]
struct World {
    machine: Machine,
    start: Instant,
    now: i64,
    ids: usize,
    logs: BTreeMap<TierPartition, Log>,
    owned: BTreeSet<TierPartition>,
    /// What has reached `webhook-commands` or was set aside, and what retention deleted.
    done: BTreeMap<usize, &'static str>,
    gather_until: i64,
    /// Partitions that refuse writes.
    broken: BTreeSet<Target>,
    /// A batch with records for such a partition, which is not acknowledged.
    open: Option<Batch>,
}

impl World {
    fn new() -> Self {
        let start = crate::edge::clock::instant();
        let tiers = (0..DELAYS.len()).flat_map(|tier| {
            (0..PARTITIONS).map(move |partition| TierPartition { tier, partition })
        });
        Self {
            machine: machine(start),
            start,
            now: 0,
            ids: 0,
            logs: tiers.map(|at| (at, Log::default())).collect(),
            owned: BTreeSet::new(),
            done: BTreeMap::new(),
            gather_until: 0,
            broken: BTreeSet::new(),
            open: None,
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: EpochMs(self.now),
            steady: self.start + Duration::from_millis(u64::try_from(self.now).unwrap()),
        }
    }

    fn place(number: usize) -> TierPartition {
        let tier = number % DELAYS.len();
        let partition = i32::try_from(number / DELAYS.len()).unwrap() % PARTITIONS;
        TierPartition { tier, partition }
    }

    fn log(&mut self, at: TierPartition) -> &mut Log {
        self.logs.get_mut(&at).unwrap()
    }

    fn append(&mut self, at: TierPartition, entry: Entry) {
        self.log(at).entries.push(entry);
    }

    fn finish(&mut self, id: usize, how: &'static str) {
        let before = self.done.insert(id, how);
        assert_eq!(before, None, "record {id} was {how} after it was done");
    }

    /// Reading begins at the committed position, or at the first record that is still there.
    fn reset(&mut self, at: TierPartition) {
        let log = self.log(at);
        log.entries
            .iter_mut()
            .for_each(|entry| entry.refused = false);
        let (from, to) = (log.committed, log.committed.max(log.low));
        log.held.clear();
        log.next = to;
        log.left_out = 0;
        log.committed = to;
        self.lose(at, from, to);
    }

    fn lose(&mut self, at: TierPartition, from: i64, to: i64) {
        for offset in from..to {
            let id = self.log(at).entry(offset).id;
            // Once behind a gap, and again when reading starts before the gap.
            if self.done.get(&id) != Some(&"deleted") {
                self.finish(id, "deleted");
            }
        }
    }

    fn assign(&mut self, at: TierPartition) {
        if self.owned.insert(at) {
            self.log(at).paused = false;
            self.reset(at);
            self.machine.assigned([at].into_iter());
        }
    }

    /// The open batch is given up if it has records of the partition.
    fn give_up_open(&mut self, at: Option<TierPartition>) {
        let concerned = |batch: &mut Batch| {
            at.is_none_or(|at| batch.portions.iter().any(|portion| portion.from == at))
        };
        if let Some(batch) = self.open.take_if(concerned) {
            self.machine.gave_up(&batch);
        }
    }

    /// The delivery timeout of the open batch has passed.
    fn refuse_open(&mut self) {
        if let Some(batch) = self.open.take() {
            let by = self.refusing(&batch);
            self.machine.refused(&batch, &by, self.now().steady);
        }
    }

    /// The partitions that refuse records of a batch.
    fn refusing(&self, batch: &Batch) -> BTreeSet<Target> {
        let each = self.machine.moves(batch);
        let targets = each.map(|one| self.machine.target(&one.to));
        targets
            .filter(|target| self.broken.contains(target))
            .collect()
    }

    /// Whether a record for a partition that is known to refuse is at the head, or the head is in the open batch.
    fn is_held(&self, at: TierPartition) -> bool {
        let mut open = self.open.iter().flat_map(|batch| &batch.portions);
        if open.any(|portion| portion.from == at) {
            return true;
        }
        let log = &self.logs[&at];
        let Some(&head) = log.held.first() else {
            return false;
        };
        let record = log.entry(head).held(head);
        let to = record.destination(at.tier, &self.machine.tiers, EpochMs(self.now));
        to.is_some_and(|to| self.machine.holds(&to).is_some())
    }

    fn revoke(&mut self, at: TierPartition) {
        self.give_up_open(Some(at));
        if self.owned.remove(&at) {
            self.log(at).held.clear();
            self.machine.revoked([at].into_iter());
            // How often one may be left out depends on how many there are: from now on fewer.
            self.logs.values_mut().for_each(|log| log.left_out = 0);
        }
        assert!(!self.machine.takes(at));
    }

    /// A new process, which owns nothing yet.
    fn restart(&mut self) {
        self.machine = machine(self.now().steady);
        self.open = None;
        self.owned.clear();
        self.gather_until = self.now;
        self.logs.values_mut().for_each(|log| log.held.clear());
    }

    /// Another process owns the partition and moves due records of it.
    fn move_elsewhere(&mut self, at: TierPartition, records: usize) {
        if self.owned.contains(&at) {
            return;
        }
        self.reset(at);
        for _ in 0..records {
            let now = self.now;
            let log = self.log(at);
            let offset = log.committed;
            if offset == log.end() || !log.entry(offset).may_leave(at.tier, now) {
                return;
            }
            log.committed += 1;
            let id = log.entry(offset).id;
            self.finish(id, "moved by another process");
        }
    }

    fn poll(&mut self, at: TierPartition, records: usize) {
        for _ in 0..records {
            let owned = self.owned.contains(&at);
            let log = self.logs.get_mut(&at).unwrap();
            if log.next == log.end() || log.paused && owned {
                break;
            }
            let offset = log.next;
            if owned {
                log.next += 1;
                log.held.push(offset);
            }
            // Otherwise it is a record that the client still had of a partition that was given up.
            self.machine.take(at, log.entry(offset).held(offset));
        }
    }

    fn poll_all(&mut self, records: usize) {
        for number in 0..DELAYS.len() * 4 {
            self.poll(Self::place(number), records);
        }
    }

    fn flow(&mut self) {
        let share = (limits().buffer_bytes / self.owned.len().max(1)).max(limits().least_buffer);
        for (at, change) in self.machine.flow() {
            let log = self.log(at);
            assert_eq!(log.paused, change == Flow::Resume, "no change of {at:?}");
            log.paused = change == Flow::Pause;
        }
        for at in &self.owned {
            let log = &self.logs[at];
            let bytes = log.held_bytes();
            assert!(
                log.paused || bytes <= share,
                "{at:?} is read on with {bytes} bytes"
            );
            assert!(
                !log.paused || bytes >= share / 2,
                "{at:?} stays paused with {bytes} bytes"
            );
        }
    }

    /// Retention deletes records that were not polled yet, and what is before them.
    fn delete(&mut self, at: TierPartition, records: i64) {
        let log = self.log(at);
        let low = (log.next + records).min(log.end());
        if low <= log.next.max(log.low) {
            return;
        }
        let from = log.next;
        log.low = low;
        // The head that is held may be in the open batch: it moves as before.
        if self.owned.contains(&at) {
            self.log(at).next = low;
            self.lose(at, from, low);
            let end = Position(self.logs[&at].end());
            let lost = self.machine.gap(at, Position(from), Position(low), end);
            assert_eq!(lost, 0, "what is held moves as before");
        }
    }

    fn check_wait(&self) {
        let wait = i64::try_from(self.machine.wait(self.now()).as_millis()).unwrap();
        assert!(wait <= 10);
        let until = (self.now..self.now + wait).find(|&now| {
            let mut owned = self.owned.iter();
            now >= self.gather_until
                && owned.any(|&at| !self.is_held(at) && self.logs[&at].head_may_leave(at.tier, now))
        });
        assert_eq!(
            until, None,
            "a record may leave, and the machine waits for {wait} ms at {}",
            self.now
        );
    }

    /// One batch, which ends as `end` says; an ambiguous one is `visible` or not.
    fn move_due(&mut self, end: TransactionEnd, visible: bool) {
        self.check_wait();
        let waiting: Vec<TierPartition> = self
            .owned
            .iter()
            .copied()
            .filter(|&at| !self.is_held(at) && self.logs[&at].head_may_leave(at.tier, self.now))
            .collect();
        let Some(batch) = self.machine.next_batch(self.now()) else {
            assert!(
                waiting.is_empty() || self.now < self.gather_until,
                "{waiting:?} may leave"
            );
            return;
        };
        assert!(self.now >= self.gather_until, "a batch follows too soon");
        for one in self.machine.moves(&batch) {
            assert_eq!(
                self.machine.holds(&one.to),
                None,
                "a record for a partition that refuses is moved with others"
            );
        }
        if self.open.is_none() && !self.refusing(&batch).is_empty() {
            let moves = self.moves(&batch);
            self.check_bounds(&batch, &moves, waiting.len());
            self.open = Some(batch);
            return;
        }
        self.end_batch(batch, end, visible, waiting);
    }

    /// A probe of a partition that refuses writes, which ends at once.
    fn probe(&mut self) {
        let Some(batch) = self.machine.next_probe(self.now()) else {
            return;
        };
        assert_eq!(batch.records, 1);
        let by = self.refusing(&batch);
        if by.is_empty() {
            self.end_batch(batch, TransactionEnd::Committed, true, Vec::new());
        } else {
            self.machine.refused(&batch, &by, self.now().steady);
        }
    }

    fn end_batch(
        &mut self,
        batch: Batch,
        end: TransactionEnd,
        visible: bool,
        waiting: Vec<TierPartition>,
    ) {
        let refusing = self.refusing(&batch);
        if !refusing.is_empty() {
            self.machine.refused(&batch, &refusing, self.now().steady);
            return;
        }
        let moves: Vec<(TierPartition, i64, Option<usize>)> = self.moves(&batch);
        if batch.purpose == Purpose::Ordinary {
            self.check_bounds(&batch, &moves, waiting.len());
        }
        let committed = end == TransactionEnd::Committed || visible;
        if committed {
            for portion in &batch.portions {
                self.log(portion.from).committed = portion.position.0;
            }
            for &(at, offset, tier) in &moves {
                let entry = self.log(at).entry(offset).clone();
                match tier {
                    Some(tier) => {
                        let appended = self.now;
                        let to = Self::place(tier + DELAYS.len() * entry.id);
                        self.append(to, Entry { appended, ..entry });
                    }
                    None => self.finish(entry.id, "moved"),
                }
            }
        }
        let sources: BTreeSet<_> = batch.portions.iter().map(|portion| portion.from).collect();
        let searching = self.machine.search.is_some() && batch.purpose == Purpose::Ordinary;
        let next = self.machine.ended(&batch, end, self.now().steady);
        let too_large = matches!(end, TransactionEnd::TooLarge { .. });
        let at_once = too_large || searching && end == TransactionEnd::Committed;
        self.gather_until = self.now + if at_once { 0 } else { 2 };
        match end {
            TransactionEnd::Committed => {
                assert_eq!(next, Next::Continue);
                self.machine.recovered(&batch, self.now().steady);
                for portion in &batch.portions {
                    self.log(portion.from).held.drain(..portion.records);
                }
                for at in waiting {
                    let owned = self.owned.len();
                    let served = batch.portions.iter().any(|portion| portion.from == at);
                    let log = self.log(at);
                    log.left_out = if served { 0 } else { log.left_out + 1 };
                    assert!(log.left_out < owned, "{at:?} is never served");
                }
            }
            TransactionEnd::Fatal => {
                assert_eq!(next, Next::Stop);
                self.restart();
            }
            TransactionEnd::TooLarge { .. } => {
                if moves.len() > 1 {
                    return assert_eq!(next, Next::WriteLess);
                }
                let (at, offset, _) = moves[0];
                assert_eq!(next, Next::SetAside(at));
                self.machine.set_aside(at, "");
                let entry = &mut self.log(at).entries[usize::try_from(offset).unwrap()];
                entry.refused |= entry.due.is_some();
            }
            _ => {
                let Next::Ask(partitions) = next else {
                    panic!("{next:?} after {end:?}");
                };
                let asked: BTreeSet<_> = partitions.iter().copied().collect();
                assert_eq!(asked, sources, "what was in the batch is in doubt");
                for at in partitions {
                    let committed = self.logs[&at].committed;
                    self.machine.committed(at, Position(committed));
                    // Nothing is read again: what is held may be deleted by now.
                    self.log(at).held.retain(|&offset| offset >= committed);
                }
            }
        }
    }

    /// What the batch moves, each checked by itself: from where, its offset, and the tier that it goes to.
    fn moves(&self, batch: &Batch) -> Vec<(TierPartition, i64, Option<usize>)> {
        let mut moves = Vec::new();
        for one in self.machine.moves(batch) {
            let log = &self.logs[&one.from];
            let entry = log.entry(one.offset.0);
            let (id, to) = match one.to {
                Destination::Commands(command) => {
                    let due = entry.due.unwrap();
                    assert!(self.now >= due, "{entry:?} is early by {}", due - self.now);
                    (&*command.webhook_id, None)
                }
                Destination::Tier(tier, command) => {
                    let rest = entry.due.unwrap() - self.now;
                    let late = (rest as f64 / 20.0).max(delay(0) as f64 / 2.0);
                    let covers = (0..DELAYS.len())
                        .find(|&one| (0.0..=late).contains(&((delay(one) - rest) as f64)));
                    let fits = (0..DELAYS.len()).rfind(|&one| delay(one) <= rest);
                    assert_eq!(tier, covers.or(fits).unwrap_or(0), "{rest} ms are left");
                    (&*command.webhook_id, Some(tier))
                }
                Destination::Invalid(record) if entry.refused => {
                    let id = record.headers.iter().find(|(name, _)| name == "webhook-id");
                    let id = id.unwrap().1.as_deref().unwrap();
                    (std::str::from_utf8(id).unwrap(), None)
                }
                Destination::Invalid(record) => {
                    assert_eq!(entry.due, None);
                    (&*record.error, None)
                }
            };
            assert_eq!(id, entry.id.to_string());
            assert!(
                entry.due.is_none()
                    || entry.refused
                    || self.now >= entry.appended + delay(one.from.tier),
                "{entry:?} has not waited in {:?}",
                one.from
            );
            moves.push((one.from, one.offset.0, to));
        }
        moves
    }

    fn check_bounds(
        &self,
        batch: &Batch,
        moves: &[(TierPartition, i64, Option<usize>)],
        due: usize,
    ) {
        let limits = limits();
        let mut expected = Vec::new();
        let most = (limits.batch_records / due).clamp(limits.least_portion, limits.portion);
        for portion in &batch.portions {
            assert!(self.owned.contains(&portion.from), "it is not owned");
            assert!((1..=most).contains(&portion.records));
            let held = &self.logs[&portion.from].held[..portion.records];
            expected.extend(held.iter().map(|&offset| (portion.from, offset)));
            assert_eq!(portion.position, Position(held[held.len() - 1] + 1));
        }
        let moved = moves.iter().map(|&(at, offset, _)| (at, offset));
        assert!(
            moved.eq(expected),
            "records are moved in order from the head"
        );
        let bytes =
            |(at, offset, _): &(TierPartition, i64, _)| self.logs[at].entry(*offset).weight();
        let bytes: Vec<usize> = moves.iter().map(bytes).collect();
        assert_eq!(
            (batch.records, batch.bytes),
            (moves.len(), bytes.iter().sum())
        );
        assert!(!moves.is_empty() && moves.len() <= limits.batch_records);
        assert!(batch.bytes - bytes[bytes.len() - 1] < limits.batch_bytes);
        let hops = moves.iter().filter(|(_, _, tier)| tier.is_some()).count();
        let invalid = moves
            .iter()
            .map(|(at, offset, _)| self.logs[at].entry(*offset))
            .filter(|entry| entry.due.is_none() || entry.refused);
        let released = batch.released.iter().sum::<u64>() + batch.hops;
        assert_eq!(usize::try_from(batch.hops).unwrap(), hops);
        assert_eq!(
            usize::try_from(released).unwrap(),
            moves.len() - invalid.count()
        );
    }

    fn step(&mut self, (what, a, b): (u8, usize, usize)) {
        let at = Self::place(a);
        match what {
            0..=29 => {
                let entry = Entry {
                    id: self.ids,
                    appended: self.now,
                    due: (!b.is_multiple_of(17))
                        .then(|| self.now + i64::try_from(b % 300).unwrap()),
                    bytes: [0, 0, 40, 700, 6000][a % 5],
                    refused: false,
                };
                self.ids += 1;
                self.append(at, entry);
            }
            30..=44 => self.poll(at, 1 + b % 8),
            45..=59 => self.poll_all(8),
            60..=69 => self.now += i64::try_from(b % 30).unwrap(),
            70..=81 => self.move_due(TransactionEnd::Committed, true),
            82 => self.move_due(TransactionEnd::Aborted, false),
            83 => self.move_due(TransactionEnd::Fenced, false),
            84 => self.move_due(TransactionEnd::Ambiguous, b.is_multiple_of(2)),
            85 => self.move_due(TransactionEnd::Fatal, false),
            86 => self.move_due(TransactionEnd::TooLarge { tag: 0 }, false),
            87..=90 => self.assign(at),
            91 => (0..DELAYS.len() * 4).for_each(|number| self.assign(Self::place(number))),
            92 | 93 => self.revoke(at),
            94 => self.restart(),
            95 => self.delete(at, i64::try_from(b % 3).unwrap()),
            96..=99 => self.move_elsewhere(at, 1 + b % 3),
            100 => {
                let target = Target {
                    topic: a % (DELAYS.len() + 2),
                    partition: Some(i32::try_from(b).unwrap() % PARTITIONS),
                };
                self.broken.insert(target);
            }
            101 => drop(self.broken.pop_first()),
            102 => self.refuse_open(),
            _ => {
                self.now += 1000;
                self.probe();
            }
        }
        self.flow();
    }

    /// All that was appended arrives, once nothing fails any more.
    fn drain(&mut self) {
        for number in 0..DELAYS.len() * 4 {
            self.assign(Self::place(number));
        }
        self.broken.clear();
        self.refuse_open();
        self.now += 60_000;
        for _ in 0..10_000 {
            self.probe();
            if self.done.len() == self.ids {
                return;
            }
            self.now += i64::try_from(self.machine.wait(self.now()).as_millis()).unwrap();
            self.poll_all(3);
            self.flow();
            self.move_due(TransactionEnd::Committed, true);
        }
        panic!("lost: {} of {} are done", self.done.len(), self.ids);
    }
}

fn machine(now: Instant) -> Machine {
    let tiers = Tiers::new(DELAYS.map(Duration::from_millis).to_vec()).unwrap();
    let mut machine = Machine::new(tiers, limits(), now);
    for topic in 0..DELAYS.len() + 2 {
        machine.learn_count(topic, PARTITIONS);
    }
    machine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn each_record_moves_once_in_order_not_early_and_without_starving_others(
        steps in proptest::collection::vec((0..104_u8, 0..1000_usize, 0..1000_usize), 1..120),
    ) {
        let mut world = World::new();
        for number in 0..DELAYS.len() * 4 {
            world.assign(World::place(number));
        }
        steps.into_iter().for_each(|step| world.step(step));
        world.drain();
    }
}

#[test]
fn a_gap_behind_deleted_records_keeps_what_is_held_and_a_truncated_topic_does_not() {
    let now = crate::edge::clock::instant();
    let mut machine = machine(now);
    let at = TierPartition {
        tier: 0,
        partition: 0,
    };
    machine.assigned([at].into_iter());
    let entry = Entry {
        id: 0,
        appended: 0,
        due: Some(0),
        bytes: 0,
        refused: false,
    };
    machine.take(at, entry.held(5));
    assert_eq!(machine.gap(at, Position(6), Position(9), Position(9)), 0);
    let later = Now {
        wall: EpochMs(100),
        steady: now,
    };
    let batch = machine.next_batch(later).unwrap();
    assert_eq!(batch.portions[0].position, Position(6));
    let lost = machine.gap(at, Position(6), Position(0), Position(2));
    assert_eq!(lost, 1, "it is not in the new topic");
    assert!(machine.next_batch(later).is_none());
}

#[test]
fn a_record_that_is_refused_for_its_size_is_found_and_set_aside_and_all_others_move() {
    let now = crate::edge::clock::instant();
    let mut machine = machine(now);
    let at = |partition| TierPartition { tier: 0, partition };
    machine.assigned([at(0), at(1)].into_iter());
    for id in 0..40 {
        let entry = Entry {
            id,
            appended: 0,
            due: Some(0),
            bytes: 10,
            refused: false,
        };
        let offset = i64::try_from(id / 2).unwrap();
        machine.take(at(i32::try_from(id % 2).unwrap()), entry.held(offset));
    }
    let (bad, mut moved, mut refusals) = ((at(1), Offset(8)), Vec::new(), 0);
    let later = Now {
        wall: EpochMs(1000),
        steady: now + Duration::from_secs(1),
    };
    while let Some(batch) = machine.next_batch(later) {
        let is_refused = |one: &Move<'_>| {
            let fits =
                matches!(one.to, Destination::Invalid(record) if record.extent == Extent::Head);
            (one.from, one.offset) == bad && !fits
        };
        let all: Vec<_> = machine
            .moves(&batch)
            .map(|one| (one.from, one.offset))
            .collect();
        if machine.moves(&batch).any(|one| is_refused(&one)) {
            refusals += 1;
            let end = TransactionEnd::TooLarge { tag: 0 };
            match machine.ended(&batch, end, now) {
                Next::SetAside(at) => {
                    assert_eq!((at, all.len()), (bad.0, 1));
                    machine.set_aside(at, "retry");
                }
                next => assert_eq!(next, Next::WriteLess),
            }
            assert!(refusals < 40, "the record is not found");
            continue;
        }
        moved.extend(all);
        assert_eq!(
            machine.ended(&batch, TransactionEnd::Committed, now),
            Next::Continue
        );
    }
    moved.sort_unstable();
    moved.dedup();
    assert_eq!(moved.len(), 40, "after {refusals} refusals");
}

#[test]
fn a_partition_stops_before_a_record_of_a_newer_program_and_others_go_on() {
    let now = crate::edge::clock::instant();
    let mut machine = machine(now);
    let at = |partition| TierPartition { tier: 0, partition };
    machine.assigned([at(0), at(1)].into_iter());
    let entry = Entry {
        id: 0,
        appended: 0,
        due: Some(0),
        bytes: 10,
        refused: false,
    };
    machine.take(at(0), entry.held(5));
    machine.stop(at(0));
    assert!(!machine.takes(at(0)) && machine.takes(at(1)));
    assert_eq!((machine.stopped(0), machine.stopped(1)), (1, 0));
    assert_eq!(machine.flow(), [(at(0), Flow::Pause)]);
    assert_eq!(machine.flow(), [], "it stays paused");
    machine.take(at(1), entry.held(0));
    let later = Now {
        wall: EpochMs(1000),
        steady: now + Duration::from_secs(1),
    };
    let batch = machine.next_batch(later).unwrap();
    let positions: Vec<_> = batch
        .portions
        .iter()
        .map(|one| (one.from, one.position))
        .collect();
    assert_eq!(positions, [(at(0), Position(6)), (at(1), Position(1))]);
    assert_eq!(
        machine.ended(&batch, TransactionEnd::Committed, now),
        Next::Continue
    );
    // Read again from the committed positions, it stops at the same record again.
    assert!(
        !machine.is_empty(at(0)),
        "the client has read past that record"
    );
    machine.gap(at(0), Position(6), Position(0), Position(2));
    assert!(machine.takes(at(0)));
    assert_eq!(machine.flow(), [(at(0), Flow::Resume)]);
}
