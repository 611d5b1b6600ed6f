//! The coverage against plain sets, and the counterexamples of the models of fan-out without transactions.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn source(partition: u32, epoch: u32) -> Source {
    Source {
        cluster: 1,
        topic: [7; 16],
        partition,
        epoch,
    }
}

fn point(offset: i64, subscription: u64) -> Point {
    Point {
        leader_epoch: 0,
        offset,
        subscription,
    }
}

fn at(number: i64) -> Point {
    point(number, 0)
}

fn mark(source: Source, previous: Option<i64>, number: i64) -> Mark {
    Mark {
        source,
        at: at(number),
        previous: previous.map(at),
    }
}

/// Asks for the marks in this order, as the records from offset 0 on.
fn kinds(coverage: &mut Coverage, marks: &[Mark]) -> Vec<Kind> {
    let each = marks.iter().zip(coverage.asked as i64..);
    let offsets: Vec<_> = each.map(|(mark, offset)| (*mark, Offset(offset))).collect();
    offsets
        .into_iter()
        .map(|(mark, offset)| coverage.ask(offset, &mark).kind)
        .collect()
}

fn restart(coverage: &Coverage, position: i64) -> Coverage {
    let bytes = coverage.encode(Position(position));
    if bytes.is_empty() {
        return Coverage::new(Position(position));
    }
    Coverage::decode(Position(position), &bytes)
        .unwrap()
        .unwrap()
}

const ONE: Source = Source {
    cluster: 1,
    topic: [7; 16],
    partition: 3,
    epoch: 9,
};

#[test]
fn what_a_successor_writes_again_is_a_copy_and_what_follows_is_new() {
    let mut coverage = Coverage::new(Position(0));
    let found = kinds(
        &mut coverage,
        &[
            mark(ONE, None, 1),
            mark(ONE, Some(1), 2),
            mark(ONE, Some(2), 4),
            // From its committed position on.
            mark(ONE, None, 2),
            mark(ONE, Some(2), 4),
            mark(ONE, Some(4), 5),
        ],
    );
    use Kind::{Copy, New};
    assert_eq!(found, [New, New, New, Copy, Copy, New]);
    assert_eq!(coverage.holes(), 0);
    assert_eq!(coverage.head.sources[&ONE].intervals.len(), 1);
}

#[test]
fn a_write_that_was_lost_is_new_when_it_is_written_again() {
    let mut coverage = Coverage::new(Position(0));
    use Kind::{Copy, New, NewBehindHole};
    let found = kinds(&mut coverage, &[mark(ONE, None, 1), mark(ONE, Some(2), 3)]);
    assert_eq!((found, coverage.holes()), (vec![New, NewBehindHole], 1));
    let found = kinds(
        &mut coverage,
        &[
            mark(ONE, None, 1),
            mark(ONE, Some(1), 2),
            mark(ONE, Some(2), 3),
        ],
    );
    assert_eq!((found, coverage.holes()), (vec![Copy, New, Copy], 0));
}

#[test]
fn the_first_batch_of_a_producer_that_is_refused_is_not_taken_for_seen() {
    // Trial on a real broker: the first batch is refused, the next ones are accepted.
    let mut coverage = Coverage::new(Position(0));
    use Kind::{Copy, New, NewBehindHole};
    let found = kinds(
        &mut coverage,
        &[mark(ONE, Some(1), 2), mark(ONE, Some(2), 3)],
    );
    assert_eq!((found, coverage.holes()), (vec![NewBehindHole, New], 1));
    let found = kinds(
        &mut coverage,
        &[
            mark(ONE, None, 1),
            mark(ONE, Some(1), 2),
            mark(ONE, Some(2), 3),
        ],
    );
    assert_eq!((found, coverage.holes()), (vec![New, Copy, Copy], 0));
}

#[test]
fn commands_that_arrive_in_another_order_are_all_new() {
    let mut coverage = Coverage::new(Position(0));
    use Kind::{Copy, New, NewBehindHole};
    let found = kinds(
        &mut coverage,
        &[
            mark(ONE, None, 1),
            mark(ONE, Some(2), 3),
            mark(ONE, Some(1), 2),
            mark(ONE, Some(2), 3),
        ],
    );
    assert_eq!(found, [New, NewBehindHole, New, Copy]);
}

#[test]
fn a_zombie_that_goes_on_writing_is_recognised() {
    let mut coverage = Coverage::new(Position(0));
    use Kind::{Copy, New};
    // The zombie's 3 arrives after its successor's.
    let found = kinds(
        &mut coverage,
        &[
            mark(ONE, None, 1),
            mark(ONE, Some(1), 2),
            mark(ONE, None, 2),
            mark(ONE, Some(2), 3),
            mark(ONE, Some(2), 3),
            mark(ONE, Some(3), 4),
            mark(ONE, Some(3), 4),
        ],
    );
    assert_eq!(found, [New, New, Copy, New, Copy, New, Copy]);
}

#[test]
fn a_subscription_that_only_one_of_two_caches_has_gets_at_most_one_command() {
    let mut coverage = Coverage::new(Position(0));
    let of = |previous: Option<(i64, u64)>, now: (i64, u64)| Mark {
        source: ONE,
        at: point(now.0, now.1),
        previous: previous.map(|(offset, subscription)| point(offset, subscription)),
    };
    use Kind::{Copy, New};
    let found = kinds(
        &mut coverage,
        &[
            of(None, (5, 10)),
            of(Some((5, 10)), (5, 30)),
            // The other writer has a subscription in between: the first one's cache decided that it gets none.
            of(None, (5, 10)),
            of(Some((5, 10)), (5, 20)),
            of(Some((5, 20)), (5, 30)),
            of(Some((5, 30)), (5, 40)),
        ],
    );
    assert_eq!(found, [New, New, Copy, Copy, Copy, New]);
}

#[test]
fn the_order_within_an_event_and_distinct_hashes_are_needed() {
    // Counterexample 1: a writer that does not keep the order, or two subscriptions with one hash, lose a command.
    let mut coverage = Coverage::new(Position(0));
    let of = |previous: Option<u64>, hash| Mark {
        source: ONE,
        at: point(1, hash),
        previous: previous.map(|hash| point(1, hash)),
    };
    kinds(&mut coverage, &[of(None, 10), of(Some(10), 20)]);
    assert_eq!(
        kinds(&mut coverage, &[of(None, 10), of(None, 15)]),
        [Kind::Copy, Kind::Copy],
        "so fan-out writes in the order of the hash and refuses two ids with one hash"
    );
}

#[test]
fn a_commit_says_what_is_covered_at_its_position_and_not_at_the_last_record() {
    // Counterexample 2: record 1 is read again after the restart, and must be new again.
    let mut coverage = Coverage::new(Position(0));
    let marks = [
        mark(ONE, None, 1),
        mark(ONE, Some(1), 2),
        mark(ONE, Some(2), 3),
    ];
    kinds(&mut coverage, &marks);
    for position in 0..=3 {
        let mut next = restart(&coverage, position);
        for (number, mark) in (0..).zip(&marks) {
            let expected = if number < position {
                Kind::Copy
            } else {
                Kind::New
            };
            assert_eq!(
                next.clone().ask(Offset(position), mark).kind == Kind::Copy,
                expected == Kind::Copy,
                "command {number} at position {position}"
            );
        }
        let again: Vec<_> = marks[usize::try_from(position).unwrap()..].to_vec();
        let found = again
            .iter()
            .zip(position..)
            .map(|(mark, offset)| next.ask(Offset(offset), mark).kind);
        assert!(found.into_iter().all(|kind| kind == Kind::New));
    }
}

#[test]
fn a_new_epoch_replays_what_an_old_one_has_written() {
    // Counterexamples 3 and 4: partitions were added, or positions set back on purpose.
    let mut coverage = Coverage::new(Position(0));
    let next = source(3, 10);
    let found = kinds(
        &mut coverage,
        &[
            mark(ONE, None, 1),
            mark(ONE, Some(1), 2),
            mark(next, None, 1),
            mark(ONE, None, 1),
        ],
    );
    use Kind::{Copy, New};
    assert_eq!(found, [New, New, New, Copy]);
}

#[test]
fn events_of_a_log_that_was_cut_off_are_new_though_their_offsets_come_again() {
    // Counterexample 8.
    let mut coverage = Coverage::new(Position(0));
    kinds(
        &mut coverage,
        &[mark(ONE, None, 90), mark(ONE, Some(90), 100)],
    );
    let after = Mark {
        source: ONE,
        at: Point {
            leader_epoch: 1,
            ..at(95)
        },
        previous: Some(at(90)),
    };
    assert_eq!(kinds(&mut coverage, &[after]), [Kind::New]);
}

#[test]
fn a_record_that_is_asked_twice_is_its_own_copy() {
    // Counterexample 6: so the partition asks once.
    let mut coverage = Coverage::new(Position(0));
    assert_eq!(coverage.ask(Offset(0), &mark(ONE, None, 1)).kind, Kind::New);
    assert_eq!(
        coverage.ask(Offset(0), &mark(ONE, None, 1)).kind,
        Kind::Copy
    );
}

#[test]
fn a_loss_of_the_commit_metadata_doubles_and_loses_nothing_and_opens_no_hole() {
    // Counterexample 9.
    let mut coverage = Coverage::unknown(Position(5));
    use Kind::{Copy, New};
    let marks = [
        mark(ONE, Some(7), 8),
        mark(ONE, Some(3), 7),
        mark(ONE, None, 8),
    ];
    assert_eq!(kinds(&mut coverage, &marks), [New, New, Copy]);
    assert_eq!(coverage.holes(), 0);
    // And so it is after the next restart.
    let mut coverage = restart(&Coverage::unknown(Position(0)), 0);
    assert_eq!(
        kinds(&mut coverage, &marks[..1]),
        [Kind::NewBehindHole],
        "nothing was committed"
    );
    let mut coverage = Coverage::unknown(Position(0));
    kinds(&mut coverage, &marks[..1]);
    let mut coverage = restart(&coverage, 1);
    assert_eq!(
        kinds(&mut coverage, &[mark(source(4, 1), Some(5), 6)]),
        [New]
    );
    assert_eq!(coverage.holes(), 0);
}

#[test]
fn sources_that_do_not_fit_are_forgotten_oldest_first_and_only_double() {
    let mut coverage = Coverage::new(Position(0));
    let mut forgotten = 0;
    for number in 0..300_u32 {
        let answer = coverage.ask(
            Offset(number.into()),
            &mark(source(number, 1), None, 1 << 40),
        );
        assert_eq!(answer.kind, Kind::New);
        forgotten += answer.forgotten;
        coverage.pass(Position(i64::from(number) + 1), std::iter::empty());
        assert!(coverage.reserve() <= MAX_BYTES);
        assert!(coverage.encode(Position(i64::from(number) + 1)).len() <= coverage.reserve());
    }
    assert_eq!(coverage.head.sources.len() + forgotten, 300);
    assert!(
        (80..100).contains(&coverage.head.sources.len()),
        "{}",
        coverage.head.sources.len()
    );
    let kind = |coverage: &Coverage, partition| {
        let mut coverage = coverage.clone();
        coverage
            .ask(Offset(300), &mark(source(partition, 1), None, 1 << 40))
            .kind
    };
    assert_eq!(kind(&coverage, 299), Kind::Copy);
    assert_eq!(kind(&coverage, 0), Kind::New);
    assert_eq!(coverage.holes(), 0);
}

#[test]
fn a_source_with_many_holes_forgets_its_lowest_intervals() {
    let mut coverage = Coverage::new(Position(0));
    let mut forgotten = 0;
    for number in 0..100 {
        let mark = mark(ONE, Some(number * 10), number * 10 + 5);
        forgotten += coverage.ask(Offset(number), &mark).forgotten;
    }
    assert_eq!(coverage.head.sources[&ONE].intervals.len(), MAX_INTERVALS);
    assert_eq!(forgotten, 100 - MAX_INTERVALS);
    let restored = restart(&coverage, 100);
    assert_eq!(
        restored.head.sources[&ONE].intervals,
        coverage.head.sources[&ONE].intervals
    );
}

#[test]
fn a_command_that_hangs_does_not_make_the_journal_longer_and_longer() {
    let mut coverage = Coverage::new(Position(0));
    let mut last = BTreeMap::new();
    for offset in 0..200_000_i64 {
        let source = source((offset % 12) as u32, 1);
        let previous = last.insert(source, offset);
        coverage.ask(Offset(offset), &mark(source, previous, offset));
        if offset % 1_000 == 0 {
            coverage.pass(
                Position(0),
                [0, 50_000].into_iter().filter(|&one| one <= offset),
            );
        }
    }
    coverage.pass(Position(0), [0, 50_000].into_iter());
    assert!(
        coverage.journal.len() <= 2 * SHORT + 1_000,
        "{}",
        coverage.journal.len()
    );
    let mut next = restart(&coverage, 50_000);
    assert_eq!(
        next.ask(Offset(50_000), &mark(source(7, 1), None, 49_999))
            .kind,
        Kind::Copy
    );
    let mut next = restart(&coverage, 50_000);
    assert_eq!(
        next.ask(Offset(50_000), &mark(source(8, 1), Some(49_988), 50_000))
            .kind,
        Kind::New
    );
}

#[test]
fn the_encoding_stays_as_it_is() {
    let mut coverage = Coverage::new(Position(0));
    kinds(
        &mut coverage,
        &[
            mark(ONE, None, 300),
            mark(ONE, Some(400), 500),
            mark(source(200, 1), Some(1), 2),
        ],
    );
    let hex: String = coverage
        .encode(Position(3))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let zeros = "0000000000000000";
    let expected = [
        "010001",
        "0000000000000001",
        &"07".repeat(16),
        "02",
        "030000000909",
        &format!("01ac02{zeros}019003{zeros}01f403{zeros}"),
        "c8010000000104",
        &format!("0101{zeros}0102{zeros}"),
    ]
    .concat();
    assert_eq!(hex, expected);
}

#[test]
fn a_newer_encoding_is_told_apart_from_damage() {
    let decode = |bytes: &[u8]| Coverage::decode(Position(0), bytes).map(|read| read.is_some());
    assert_eq!(decode(&[2, 0, 0]), Ok(false));
    assert_eq!(decode(&[1, 2, 0]), Ok(false));
    assert_eq!(decode(&[1, 0, 0]), Ok(true));
    for damaged in [
        &[][..],
        &[1],
        &[0, 0, 0],
        &[1, 0],
        &[1, 0, 1],
        &[1, 0, 0, 0],
    ] {
        assert_eq!(decode(damaged), Err(Damaged), "{damaged:?}");
    }
}

/// A writer of the model: what it writes to the partition, in order.
#[derive(Clone, Debug)]
struct Writer {
    source: Source,
    next: usize,
    previous: Option<Point>,
}

#[derive(Clone, Debug)]
enum Action {
    /// A writer begins at the committed position of this source, in its place or beside it.
    Begin {
        source: usize,
        from: prop::sample::Index,
    },
    /// A writer's next command reaches the log, or is lost, or reaches it before the one ahead of it.
    Write {
        writer: prop::sample::Index,
        is_lost: bool,
    },
    Finish(prop::sample::Index),
    Pass,
    Restart {
        lost: bool,
    },
}

fn action(with_loss: bool) -> impl Strategy<Value = Action> {
    let loss = if with_loss { 10 } else { 0 };
    prop_oneof![
        1 => (0..3_usize, any::<prop::sample::Index>()).prop_map(|(source, from)| Action::Begin { source, from }),
        12 => (any::<prop::sample::Index>(), 0..100_u32)
            .prop_map(move |(writer, luck)| Action::Write { writer, is_lost: luck < loss }),
        8 => any::<prop::sample::Index>().prop_map(Action::Finish),
        2 => Just(Action::Pass),
        1 => (0..20_u32).prop_map(move |luck| Action::Restart { lost: with_loss && luck == 0 }),
    ]
}

/// Writers that write the same commands again and again, some of which are lost; a reader that restarts from commits.
/// Against a set of the commands that were seen: each command that is in the log is delivered once, unless what was seen
/// was lost with the metadata; then at least once.
fn follow(actions: Vec<Action>) -> Result<(), TestCaseError> {
    let commands: Vec<Point> = (0..60)
        .map(|number| point(number / 3, number as u64 % 3))
        .collect();
    let sources = [source(1, 1), source(2, 1), source(1, 2)];
    let mut writers: Vec<Writer> = Vec::new();
    // Of each source: how far its commands are in the log without a gap.
    let mut log: Vec<Mark> = Vec::new();
    let mut coverage = Coverage::new(Position(0));
    let mut open: BTreeSet<i64> = BTreeSet::new();
    let mut new_at: BTreeMap<(Source, Point), BTreeSet<i64>> = BTreeMap::new();
    let mut asked = 0_i64;
    let mut is_forgetful = false;
    let durable = |log: &[Mark], source: Source| {
        let written: BTreeSet<Point> = log
            .iter()
            .filter(|mark| mark.source == source)
            .map(|mark| mark.at)
            .collect();
        commands
            .iter()
            .take_while(|at| written.contains(at))
            .count()
    };
    let position = |open: &BTreeSet<i64>, asked: i64| open.first().copied().unwrap_or(asked);
    for action in actions {
        match action {
            Action::Begin { source, from } => {
                let source = sources[source];
                // Any position that was committed: at most what is written, events as a whole.
                let most = durable(&log, source);
                let next = from.index(most + 1) / 3 * 3;
                writers.push(Writer {
                    source,
                    next,
                    previous: None,
                });
            }
            Action::Write { writer, is_lost } => {
                if writers.is_empty() {
                    continue;
                }
                let index = writer.index(writers.len());
                let writer = &mut writers[index];
                let Some(&now) = commands.get(writer.next) else {
                    continue;
                };
                let mark = Mark {
                    source: writer.source,
                    at: now,
                    previous: writer.previous,
                };
                writer.next += 1;
                writer.previous = Some(now);
                if !is_lost {
                    log.push(mark);
                }
            }
            Action::Finish(which) => {
                if !open.is_empty() {
                    let at = *open.iter().nth(which.index(open.len())).unwrap();
                    open.remove(&at);
                }
            }
            Action::Pass => coverage.pass(Position(position(&open, asked)), open.iter().copied()),
            Action::Restart { lost } => {
                let from = position(&open, asked);
                let finished: BTreeSet<i64> =
                    (from..asked).filter(|at| !open.contains(at)).collect();
                let bytes = coverage.encode(Position(from));
                prop_assert!(bytes.len() <= coverage.reserve());
                let reserve = coverage.reserve();
                coverage = match (lost, bytes.is_empty()) {
                    (true, _) => Coverage::unknown(Position(from)),
                    (false, true) => Coverage::new(Position(from)),
                    (false, false) => {
                        let read = Coverage::decode(Position(from), &bytes).unwrap().unwrap();
                        prop_assert_eq!(read.encode(Position(from)), bytes);
                        read
                    }
                };
                is_forgetful |= lost;
                // It reads again from there: what was open must be new again, whatever it is that was finished.
                for at in from..asked {
                    let mark = &log[usize::try_from(at).unwrap()];
                    let answer = coverage.ask(Offset(at), mark);
                    if !finished.contains(&at) {
                        prop_assert_ne!(answer.kind, Kind::Copy, "offset {}", at);
                    }
                }
                prop_assert!(
                    lost || coverage.reserve() <= reserve,
                    "the room that was kept is enough"
                );
            }
        }
        while asked < log.len() as i64 {
            let mark = log[usize::try_from(asked).unwrap()];
            let answer = coverage.ask(Offset(asked), &mark);
            let seen = new_at.entry((mark.source, mark.at)).or_default();
            if answer.kind == Kind::Copy {
                prop_assert!(
                    !seen.is_empty(),
                    "{:?} was taken for a copy and is the first one",
                    mark
                );
            } else {
                prop_assert!(is_forgetful || seen.is_empty(), "{:?} is doubled", mark);
                seen.insert(asked);
                open.insert(asked);
            }
            asked += 1;
            prop_assert!(
                coverage.encode(Position(position(&open, asked))).len() <= coverage.reserve()
            );
        }
    }
    // A last writer of each source writes all that is not written: then there is no hole.
    for source in sources {
        let mut previous = None;
        for &now in &commands[durable(&log, source) / 3 * 3..] {
            log.push(Mark {
                source,
                at: now,
                previous,
            });
            previous = Some(now);
        }
    }
    for (mark, offset) in log[usize::try_from(asked).unwrap()..].iter().zip(asked..) {
        if coverage.ask(Offset(offset), mark).kind != Kind::Copy {
            let seen = new_at.entry((mark.source, mark.at)).or_default();
            prop_assert!(is_forgetful || seen.is_empty(), "{:?} is doubled", mark);
            seen.insert(offset);
        }
    }
    for source in sources {
        for at in &commands {
            prop_assert!(new_at.contains_key(&(source, *at)), "{:?} is lost", at);
        }
    }
    prop_assert!(is_forgetful || coverage.holes() == 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn writers_that_repeat_themselves_and_a_reader_that_restarts_deliver_each_command_once(
        actions in prop::collection::vec(action(false), 0..400),
    ) {
        follow(actions)?;
    }

    #[test]
    fn so_they_do_when_writes_and_the_metadata_are_lost(
        actions in prop::collection::vec(action(true), 0..400),
    ) {
        follow(actions)?;
    }

    #[test]
    fn any_marks_agree_with_a_set_of_intervals(
        marks in prop::collection::vec((0..3_u32, 0..24_i64, 0..24_i64, any::<bool>()), 0..120),
        position in any::<prop::sample::Index>(),
    ) {
        let mut coverage = Coverage::new(Position(0));
        // Of each source, the covered places of a number line from start to end.
        let mut model: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
        let mut covers = vec![model.clone()];
        let of = |(partition, one, other, is_first): (u32, i64, i64, bool)| {
            let (low, high) = (one.min(other), one.max(other) + 1);
            mark(source(partition, 1), (!is_first).then_some(low), high)
        };
        for (&one, offset) in marks.iter().zip(0..) {
            let mark = of(one);
            let covered = model.entry(mark.source.partition).or_default();
            let is_copy = covered.contains(&mark.at.offset);
            let answer = coverage.ask(Offset(offset), &mark);
            prop_assert_eq!(answer.kind == Kind::Copy, is_copy);
            covered.extend(mark.previous.map_or(-1, |previous| previous.offset + 1)..=mark.at.offset);
            covers.push(model.clone());
        }
        let position = position.index(marks.len() + 1);
        let restored = restart(&coverage, position as i64);
        for partition in 0..3 {
            let covered = covers[position].get(&partition);
            for number in 0..=25 {
                let known = restored.head.sources.get(&source(partition, 1));
                let known = known.is_some_and(|known| known.intervals.iter().any(|one| one.contains(at(number))));
                prop_assert_eq!(known, covered.is_some_and(|covered| covered.contains(&number)));
            }
        }
    }

    #[test]
    fn garbage_in_place_of_a_coverage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Some(read)) = Coverage::decode(Position(0), &bytes) {
            prop_assert!(read.encode(Position(0)).len() <= read.reserve());
        }
        let mut bytes = bytes;
        bytes.splice(0..0, [1, 0, 1]);
        if let Ok(Some(read)) = Coverage::decode(Position(0), &bytes) {
            prop_assert!(read.encode(Position(0)).len() <= read.reserve());
        }
    }
}
