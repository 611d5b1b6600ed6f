//! Tests the outbox against a naive model: partitions that break and recover, records that are too large, partitions of
//! the commands that move away. No outcome is lost, doubled or written with a partition that is known to fail.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Batch, Entry, Outbox, Purpose};
use crate::model::units::Offset;
use crate::model::unwritable::Target;

const TOPICS: usize = 3;
const PARTITIONS: i32 = 4;

/// Kafka, with or without transactions.
struct Sim {
    outbox: Outbox<u64>,
    now: Instant,
    broken: BTreeSet<(usize, i32)>,
    /// Outcomes that are larger than their topics allow.
    oversized: BTreeSet<u64>,
    /// Those not durable, with their partition of the commands.
    open: BTreeMap<u64, i32>,
    durable: BTreeSet<u64>,
    transactional: bool,
    next: u64,
}

impl Sim {
    fn new(transactional: bool) -> Self {
        let mut outbox = Outbox::default();
        for topic in 0..TOPICS {
            outbox.learn_count(topic, PARTITIONS);
        }
        Self {
            outbox,
            now: crate::edge::clock::instant(),
            broken: BTreeSet::new(),
            oversized: BTreeSet::new(),
            open: BTreeMap::new(),
            durable: BTreeSet::new(),
            transactional,
            next: 0,
        }
    }

    fn add(&mut self, partition: i32, topic: usize, hash: u32, oversized: bool) {
        let record = self.next;
        self.next += 1;
        self.open.insert(record, partition);
        if oversized {
            self.oversized.insert(record);
        }
        self.outbox.add(Entry {
            partition,
            offset: Some(Offset(record as i64)),
            move_number: None,
            topic,
            hash,
            weight: 10,
            load: Some(10),
            record,
        });
    }

    /// What is written instead of an outcome that is too large: for another topic, or less for the same one, or nothing.
    fn smaller(&mut self, entry: Entry<u64>) -> Option<Entry<u64>> {
        if entry.topic + 1 < TOPICS {
            let topic = entry.topic + 1;
            return Some(Entry { topic, ..entry });
        }
        self.oversized.remove(&entry.record);
        if entry.record.is_multiple_of(5) {
            self.open.remove(&entry.record);
            return None;
        }
        Some(entry)
    }

    /// Writes a batch as the shell does.
    fn write(&mut self, batch: Batch<u64>) {
        let place = |entry: &Entry<u64>| (entry.topic, (entry.hash % PARTITIONS as u32) as i32);
        match batch.purpose {
            Purpose::Ordinary => {
                for entry in &batch.entries {
                    assert_eq!(
                        self.outbox.unwritable.holds(self.outbox.target(entry)),
                        None,
                        "an outcome for a partition that fails is written with others"
                    );
                }
            }
            Purpose::Probe(_) => assert_eq!(batch.entries.len(), 1),
        }
        let target = |(topic, partition)| Target {
            topic,
            partition: Some(partition),
        };
        let large = batch
            .entries
            .iter()
            .position(|entry| self.oversized.contains(&entry.record));
        let refused: BTreeSet<Target> = batch
            .entries
            .iter()
            .map(place)
            .filter(|place| self.broken.contains(place))
            .map(target)
            .collect();
        if refused.is_empty()
            && let Some(large) = large
        {
            if batch.entries.len() == 1 {
                let purpose = batch.purpose;
                for entry in batch.entries {
                    let smaller = self.smaller(entry);
                    self.outbox.is_too_large(smaller, purpose, self.now);
                }
            } else {
                let target = target(place(&batch.entries[large]));
                self.outbox.too_large(batch, target, self.now);
            }
            return;
        }
        let Batch { purpose, entries } = batch;
        let (failed, written): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| {
            !refused.is_empty() && (self.transactional || self.broken.contains(&place(entry)))
        });
        for entry in written {
            self.open.remove(&entry.record);
            assert!(self.durable.insert(entry.record), "written twice");
        }
        if failed.is_empty() {
            self.outbox.written(purpose, self.now);
        } else {
            let batch = Batch {
                purpose,
                entries: failed,
            };
            self.outbox.refused(batch, &refused, self.now);
        }
    }

    fn turn(&mut self) {
        while let Some(batch) = self.outbox.next_batch() {
            self.write(batch);
        }
        if let Some(probe) = self.outbox.next_probe(self.now) {
            self.write(probe);
        }
    }

    /// What is not durable is in the outbox, once.
    fn check(&self) {
        let held = self.outbox.held.values().flatten();
        let each = self.outbox.waiting.iter().chain(held);
        let mut all: Vec<u64> = each.map(|entry| entry.record).collect();
        all.sort_unstable();
        let open: Vec<u64> = self.open.keys().copied().collect();
        assert_eq!(all, open, "an outcome is lost or doubled");
    }
}

#[derive(Clone, Debug)]
enum Action {
    Add(i32, usize, u32, bool),
    Break(usize, i32),
    Recover(usize, i32),
    Turn,
    Advance(u64),
    Forget(i32),
}

fn action() -> impl Strategy<Value = Action> {
    let place = (0..TOPICS, 0..PARTITIONS);
    prop_oneof![
        12 => (0..3_i32, 0..TOPICS, 0..100_u32, prop::bool::weighted(0.05))
            .prop_map(|(partition, topic, hash, large)| Action::Add(partition, topic, hash, large)),
        2 => place.clone().prop_map(|(topic, partition)| Action::Break(topic, partition)),
        3 => place.prop_map(|(topic, partition)| Action::Recover(topic, partition)),
        8 => Just(Action::Turn),
        4 => (1..40_000_u64).prop_map(Action::Advance),
        1 => (0..3_i32).prop_map(Action::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_fails_every_outcome_is_written_once(
        transactional in any::<bool>(),
        actions in proptest::collection::vec(action(), 0..150),
    ) {
        let mut sim = Sim::new(transactional);
        for action in actions {
            match action {
                Action::Add(partition, topic, hash, large) => sim.add(partition, topic, hash, large),
                Action::Break(topic, partition) => drop(sim.broken.insert((topic, partition))),
                Action::Recover(topic, partition) => drop(sim.broken.remove(&(topic, partition))),
                Action::Turn => sim.turn(),
                Action::Advance(ms) => sim.now += Duration::from_millis(ms),
                Action::Forget(partition) => {
                    sim.outbox.forget(&HashSet::from([partition]));
                    sim.open.retain(|_, own| *own != partition);
                }
            }
            sim.check();
        }
        sim.broken.clear();
        for _ in 0..500 {
            sim.turn();
            sim.now += Duration::from_secs(1);
        }
        prop_assert!(sim.open.is_empty(), "never written: {:?}", sim.open);
    }
}

#[test]
fn what_can_be_written_waits_for_no_partition_that_cannot() {
    let mut sim = Sim::new(true);
    sim.broken.insert((0, 1));
    sim.add(0, 0, 1, false);
    sim.add(0, 1, 1, false);
    sim.turn();
    assert_eq!(
        sim.durable,
        BTreeSet::from([1]),
        "the second transaction is without the first outcome"
    );
    for _ in 0..100 {
        let record = sim.next;
        sim.add(0, 0, 1, false);
        sim.add(1, 0, 2, false);
        sim.turn();
        assert!(sim.durable.contains(&(record + 1)), "at once");
        sim.now += Duration::from_secs(1);
    }
    let failing: Vec<_> = sim.outbox.failing().collect();
    assert_eq!(failing.len(), 1);
    assert_eq!(failing[0].2, 101, "outcomes wait for it");
    sim.broken.clear();
    sim.now += Duration::from_secs(30);
    sim.turn();
    sim.turn();
    assert!(sim.open.is_empty());
}

#[test]
fn of_many_outcomes_one_that_is_too_large_gives_way_to_less_and_holds_none_back() {
    let mut sim = Sim::new(true);
    for number in 0..20 {
        sim.add(0, 0, 1, number == 7);
    }
    for _ in 0..40 {
        sim.turn();
    }
    assert!(sim.open.is_empty(), "{:?}", sim.open);
    assert!(sim.oversized.is_empty(), "it was refused by every topic");
    assert_eq!(
        sim.outbox.failing().count(),
        0,
        "each partition takes records"
    );
}

#[test]
fn an_outcome_whose_offset_the_commit_cannot_name_is_written_later() {
    let mut sim = Sim::new(true);
    for _ in 0..10 {
        sim.add(0, 0, 1, false);
    }
    sim.outbox.reaches(0, Offset(4));
    sim.turn();
    assert_eq!(sim.durable.len(), 4);
    assert!(sim.outbox.is_settled(), "nothing else can be written now");
    sim.check();
    sim.outbox.reaches(0, Offset(9));
    sim.turn();
    let order: Vec<u64> = sim.durable.iter().copied().collect();
    assert_eq!(order, (0..9).collect::<Vec<_>>());
}
