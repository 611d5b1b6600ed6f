//! The index against a model that keeps every record, over random steps of a running system.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::dead_letter::{DeadLetterInfo, Settlement};

const SUBSCRIBERS: [&str; 3] = ["a", "b", "c"];

/// What a running system does to a topic and its committed offset.
#[derive(Clone, Debug)]
enum Step {
    /// Produces a record for a subscriber, after a gap in the offsets (markers, aborted records).
    Produce(bool, usize, i64, i64),
    /// Finishes an open offset out of order.
    Finish(usize),
    /// Commits up to the first open offset.
    Commit,
    /// Releases the first record of the tier.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 0..3_usize, prop_oneof![9 => 0..3_i64, 1 => Just(70_000)], 1..1000_i64).prop_map(|(tier, who, gap, time)| Step::Produce(tier, who, gap, time)),
        2 => (0..20_usize).prop_map(Step::Finish),
        1 => Just(Step::Commit),
        1 => Just(Step::Release),
    ]
}

proptest! {
    #[test]
    fn its_counts_are_those_of_a_naive_model(steps in prop::collection::vec(step(), 0..200)) {
        let mut index = Index::default();
        let mut next = [0_i64; 2];
        // Naive: every record that is not finished.
        let mut open: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
        let mut tier: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
        let mut finished: BTreeSet<i64> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Produce(in_tier, who, gap, time) => {
                    let at = usize::from(in_tier);
                    let offset = next[at] + gap;
                    next[at] = offset + 1;
                    let place = if in_tier { Place::Tier(0, 1) } else { Place::Commands(1) };
                    let entry = index.entry(SUBSCRIBERS[who], "s");
                    let enqueued = EpochMs(time * 1000);
                    index.add(place, Offset(offset), entry, enqueued, in_tier.then(|| EpochMs((time + 5) * 1000)), true);
                    if in_tier { &mut tier } else { &mut open }.insert(offset, (who, time));
                }
                Step::Finish(nth) => {
                    let found = open.keys().nth(nth).copied();
                    if let Some(offset) = found {
                        open.remove(&offset);
                        finished.insert(offset);
                    }
                }
                Step::Commit => {
                    let position = open.keys().next().copied().unwrap_or(next[0]);
                    index.trim(Place::Commands(1), Position(position));
                }
                Step::Release => {
                    if let Some((offset, _)) = tier.pop_first() {
                        index.trim(Place::Tier(0, 1), Position(offset + 1));
                    }
                }
            }
        }
        let done = |partition| { let finished = &finished; move |offset: Offset| partition == 1 && finished.contains(&offset.0) };
        let counts = index.count(done);
        prop_assert_eq!(counts.partitions.get(&1).copied().unwrap_or(0), open.len() as u64);
        let counts = counts.subscriptions;
        let mut by_name: BTreeMap<&str, Waiting> = BTreeMap::new();
        for (entry, waiting) in counts {
            by_name.insert(index.names(entry).0, waiting);
        }
        for (who, name) in SUBSCRIBERS.into_iter().enumerate() {
            let mine = |all: &BTreeMap<i64, (usize, i64)>| all.values().filter(|one| one.0 == who).map(|one| one.1).collect::<Vec<_>>();
            let (ready, waiting) = (mine(&open), mine(&tier));
            let found = by_name.remove(name).unwrap_or_default();
            prop_assert_eq!(found.ready, ready.len() as u64);
            prop_assert_eq!(found.waiting, waiting.len() as u64);
            let oldest = ready.iter().chain(&waiting).min().map(|&time| u32::try_from(time).unwrap());
            prop_assert_eq!(found.oldest, oldest);
            let due = waiting.iter().min().map(|&time| u32::try_from(time + 5).unwrap());
            prop_assert_eq!(found.next_due, due);
        }
    }
}

#[test]
fn a_command_takes_ten_bytes_and_finished_chunks_are_freed() {
    assert_eq!(size_of::<Row>(), 10);
    let mut index = Index::default();
    let entry = index.entry("acme", "orders");
    let place = Place::Commands(0);
    for offset in 0..100_000 {
        index.add(place, Offset(offset), entry, EpochMs(1000), None, true);
    }
    let held = |index: &Index| {
        let chunks = &index.columns[&place].chunks;
        let each = chunks
            .iter()
            .map(|chunk| chunk.rows.capacity() * size_of::<Row>());
        each.sum::<usize>()
    };
    assert!(held(&index) <= 11 * 100_000, "{} bytes", held(&index));
    index.trim(place, Position(99_000));
    index.trim(place, Position(98_000));
    assert_eq!(index.rows(), 1000, "dropped rows stay dropped");
    assert!(held(&index) <= 100_000, "{} bytes", held(&index));
}

/// Finished and pending commands of the first entry.
fn finished(index: &Index, is_done: impl Fn(Offset) -> bool + Copy) -> [u64; 2] {
    let counts = index.count(|_| is_done).subscriptions.into_iter();
    let first = counts.map(|(_, waiting)| [waiting.finished, waiting.pending()]);
    first.take(1).next().unwrap_or_default()
}

#[test]
fn parking_and_retrying_are_not_ends_and_a_command_ends_once() {
    let mut index = Index::default();
    let acme = index.entry("acme", "orders");
    let (commands, tier, longer) = (Place::Commands(0), Place::Tier(0, 0), Place::Tier(1, 0));
    let add = |index: &mut Index, place, offset, enters| {
        index.add(place, Offset(offset), acme, EpochMs(0), None, enters);
    };
    let none = |_| false;
    for offset in 0..6 {
        add(&mut index, commands, offset, true);
    }
    // Two are delivered, four are parked.
    index.trim(commands, Position(6));
    for offset in 0..4 {
        add(&mut index, tier, offset, false);
    }
    assert_eq!(finished(&index, none), [2, 4]);
    // One moves to a longer tier, two are released; of these one is delivered and one fails again.
    index.trim(tier, Position(3));
    add(&mut index, longer, 0, false);
    add(&mut index, commands, 7, false);
    add(&mut index, commands, 9, false);
    assert_eq!(finished(&index, none), [2, 4]);
    assert_eq!(finished(&index, |offset| offset.0 == 9), [3, 3]);
    index.trim(commands, Position(10));
    add(&mut index, longer, 1, false);
    assert_eq!(finished(&index, none), [3, 3]);
    // A replay of a dead letter is one more command.
    add(&mut index, commands, 11, true);
    assert_eq!(finished(&index, none), [3, 4]);
    index.trim(commands, Position(12));
    assert_eq!(finished(&index, none), [4, 3]);
}

#[test]
fn what_is_there_when_reading_begins_counts_wherever_it_is() {
    let mut index = Index::default();
    let acme = index.entry("acme", "orders");
    let (commands, tier) = (Place::Commands(0), Place::Tier(0, 0));
    index.begin(commands, Offset(5));
    index.begin(tier, Offset(3));
    // A released retry, and one that waits.
    index.add(commands, Offset(4), acme, EpochMs(0), None, false);
    index.add(tier, Offset(2), acme, EpochMs(0), None, false);
    let none = |_| false;
    assert_eq!(finished(&index, none), [0, 2]);
    index.trim(commands, Position(5));
    assert_eq!(finished(&index, none), [1, 1]);
    // The one that waited is released.
    index.trim(tier, Position(3));
    index.add(commands, Offset(6), acme, EpochMs(0), None, false);
    assert_eq!(finished(&index, none), [1, 1]);
    // The partition is read again from its committed position: nothing is counted twice.
    index.forget(commands);
    index.begin(commands, Offset(7));
    index.add(commands, Offset(6), acme, EpochMs(0), None, false);
    assert_eq!(finished(&index, none), [1, 1]);
    index.trim(commands, Position(7));
    assert_eq!(finished(&index, none), [2, 0]);
}

#[test]
fn commands_deleted_unfinished_are_neither_pending_nor_finished() {
    let mut index = Index::default();
    let entry = index.entry("acme", "orders");
    for place in [Place::Commands(0), Place::Tier(0, 0)] {
        for offset in 0..10 {
            index.add(place, Offset(offset), entry, EpochMs(0), None, true);
        }
    }
    index.trim(Place::Commands(0), Position(2));
    // Before 6, offset 4 is finished; 2, 3 and 5 are not.
    let is_done = |offset: Offset| offset.0 == 4 || offset.0 == 8;
    let counts = |index: &Index| {
        let waiting = &index.count(|_| is_done).subscriptions[0].1;
        [waiting.ready, waiting.finished, waiting.waiting]
    };
    assert_eq!(counts(&index), [6, 4, 10]);
    index.delete(Place::Commands(0), Offset(6), is_done);
    assert_eq!(counts(&index), [3, 4, 10]);
    index.delete(Place::Commands(0), Offset(6), is_done);
    index.trim(Place::Commands(0), Position(6));
    assert_eq!(counts(&index), [3, 4, 10], "deleted once");
    index.delete(Place::Tier(0, 0), Offset(3), |_| false);
    assert_eq!(counts(&index), [3, 4, 7]);
}

fn dead_letter(partition: i32, offset: i64, webhook_id: &str, last_failure: i64) -> DeadLetter {
    DeadLetter {
        at: Coordinates {
            partition,
            offset: Offset(offset),
        },
        subscriber: "acme".to_owned(),
        subscription: "orders".to_owned(),
        webhook_id: webhook_id.to_owned(),
        event_id: "e1".to_owned(),
        event_type: "order.created".to_owned(),
        attempts: 1,
        enqueued: None,
        info: DeadLetterInfo {
            reason: Reason::Gone,
            status: Some(410),
            error: String::new(),
            first_failure: EpochMs(1),
            last_failure: EpochMs(last_failure),
        },
    }
}

fn replayed(dead_letter: &DeadLetter) -> Settled {
    Settled::new(dead_letter, Settlement::Replayed, EpochMs(9), "cluster-a")
}

fn open_dead_letters(index: &Index) -> u64 {
    let counts = index.count(|_| |_| false).subscriptions;
    counts
        .iter()
        .filter_map(|(_, waiting)| waiting.dead.get(&Reason::Gone))
        .sum()
}

#[test]
fn dead_letters_deleted_by_retention_are_not_open() {
    let mut index = Index::default();
    let entry = index.entry("acme", "orders");
    for (partition, offset) in [(0, 1), (0, 5), (1, 1)] {
        index.dead_lettered(&dead_letter(partition, offset, "msg_1", offset), entry);
    }
    index.forget_dead_letters(0, Offset(5));
    assert_eq!(open_dead_letters(&index), 2);
    index.forget_dead_letters(0, Offset(i64::MAX));
    assert_eq!(open_dead_letters(&index), 1);
    assert_eq!(index.dead_letters.by_identity.len(), 1);
}

#[test]
fn dead_letters_are_open_until_settled() {
    let mut index = Index::default();
    let entry = index.entry("acme", "orders");
    let [first, second] = [
        dead_letter(0, 1, "msg_1", 10),
        dead_letter(0, 2, "msg_1", 20),
    ];
    index.dead_lettered(&first, entry);
    index.dead_lettered(&second, entry);
    let settled_at = dead_letter(0, 3, "", 0).at;
    index.settled(&replayed(&first), settled_at);
    assert_eq!(open_dead_letters(&index), 1);
    assert!(index.dead_letters.open.contains_key(&second.at));
    let mut of_0_1_0 = replayed(&second);
    (of_0_1_0.cluster, of_0_1_0.moment) = (None, None);
    index.settled(&of_0_1_0, settled_at);
    assert_eq!(open_dead_letters(&index), 0);
}

#[test]
fn a_mirrored_settling_record_settles_its_dead_letter_at_any_offset() {
    let mut index = Index::default();
    let entry = index.entry("acme", "orders");
    let on_source = dead_letter(0, 900, "msg_1", 10);
    // On the mirror it is at 4, and another dead letter has the offset that the record names.
    index.dead_lettered(&dead_letter(0, 4, "msg_1", 10), entry);
    index.dead_lettered(&dead_letter(0, 900, "msg_2", 10), entry);
    let mut of_0_1_0 = replayed(&on_source);
    (of_0_1_0.cluster, of_0_1_0.moment) = (None, None);
    index.settled(&of_0_1_0, dead_letter(0, 901, "", 0).at);
    assert_eq!(open_dead_letters(&index), 2, "it names another dead letter");
    index.settled(&replayed(&on_source), dead_letter(0, 902, "", 0).at);
    assert_eq!(open_dead_letters(&index), 1);
    let left = dead_letter(0, 900, "msg_2", 10);
    assert!(index.dead_letters.open.contains_key(&left.at));
}

#[test]
fn a_recreated_partition_is_counted_from_zero() {
    let mut index = Index::default();
    let entry = index.entry("acme", "orders");
    for offset in [5, 6, 7] {
        index.add(
            Place::Commands(0),
            Offset(offset),
            entry,
            EpochMs(1000),
            None,
            true,
        );
    }
    let place = Place::Commands(0);
    index.add(place, Offset(0), entry, EpochMs(1000), None, true);
    assert_eq!(index.count(|_| |_| false).subscriptions[0].1.ready, 1);
}
