//! The window against a naive model, its limits and its formats.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::coverage::Kind;
use crate::model::source::{Mark, Point, Source};

const TOPIC: &str = "webhook-commands";
const FORMATS: [Format; 4] = [Format::V1, Format::V2, Format::V3, Format::V4];

fn at(partition: i32) -> Place {
    Place::new("cluster-a", TOPIC, partition)
}

/// The plainest thing that could be right: what was taken and what has ended, as sets.
#[derive(Default)]
struct Model {
    taken: BTreeSet<i64>,
    finished: BTreeSet<i64>,
    next: i64,
}

impl Model {
    fn open(&self) -> Vec<i64> {
        self.taken.difference(&self.finished).copied().collect()
    }

    fn position(&self) -> i64 {
        self.open().first().copied().unwrap_or(self.next)
    }
}

/// Restores from `window`'s snapshot and tells which of `offsets` a new owner has to do.
fn left_to_do(window: &Window, offsets: &BTreeSet<i64>, format: Format) -> Vec<i64> {
    let snapshot = window.snapshot(at(3), format);
    let (mut restored, error) = Window::restore(snapshot.position, &snapshot.metadata, at(3));
    assert_eq!(error, None, "own metadata must be readable");
    offsets
        .range(snapshot.position.0..)
        .copied()
        .filter(|&offset| restored.take(Offset(offset)))
        .collect()
}

#[derive(Clone, Debug)]
enum Action {
    Take {
        skipped: i64,
    },
    Finish(usize),
    /// The former owner writes this format, the next one whichever comes then.
    Restart(Format),
}

fn format() -> impl Strategy<Value = Format> {
    prop::sample::select(FORMATS.to_vec())
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (0..3_i64).prop_map(|skipped| Action::Take { skipped }),
        5 => any::<usize>().prop_map(Action::Finish),
        1 => format().prop_map(Action::Restart),
    ]
}

proptest! {
    #[test]
    fn a_window_and_its_restarts_agree_with_plain_sets(start in 0..1000_i64, actions in proptest::collection::vec(action(), 0..300)) {
        let mut window = Window::new(Position(start));
        let mut model = Model { next: start, ..Model::default() };
        for action in actions {
            match action {
                Action::Take { skipped } => {
                    let offset = model.next + skipped;
                    prop_assert!(window.has_room(Offset(offset)));
                    prop_assert!(window.take(Offset(offset)));
                    model.taken.insert(offset);
                    model.next = offset + 1;
                }
                Action::Finish(pick) => {
                    let open = model.open();
                    if !open.is_empty() {
                        let offset = open[pick % open.len()];
                        prop_assert!(window.finish(Offset(offset)));
                        prop_assert!(!window.finish(Offset(offset)), "an offset ends once");
                        model.finished.insert(offset);
                    }
                }
                Action::Restart(format) => {
                    let snapshot = window.snapshot(at(3), format);
                    let (restored, error) = Window::restore(snapshot.position, &snapshot.metadata, at(3));
                    prop_assert_eq!(error, None);
                    window = restored;
                    for &offset in model.taken.range(snapshot.position.0..) {
                        prop_assert_eq!(window.take(Offset(offset)), !model.finished.contains(&offset));
                    }
                }
            }
            prop_assert_eq!(window.position().0, model.position());
            prop_assert_eq!(window.unfinished(), model.open().len());
            for format in FORMATS {
                prop_assert_eq!(left_to_do(&window, &model.taken, format), model.open());
            }
        }
    }

    #[test]
    fn what_fits_when_it_is_taken_fits_however_it_ends(
        strides in proptest::collection::vec(1..40_i64, 5_000),
        seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut window = Window::new(Position(0));
        let mut open = Vec::new();
        let mut offset = 0;
        for stride in strides {
            offset += stride;
            while !window.has_room(Offset(offset)) {
                let ended = open.swap_remove(random.usize(..open.len()));
                window.finish(Offset(ended));
            }
            window.take(Offset(offset));
            open.push(offset);
            if random.u8(..) < 40 {
                let ended = open.swap_remove(random.usize(..open.len()));
                window.finish(Offset(ended));
            }
        }
        while !open.is_empty() {
            for format in FORMATS {
                prop_assert!(window.snapshot(at(0), format).metadata.len() <= METADATA_LIMIT);
            }
            for _ in 0..open.len().min(97) {
                window.finish(Offset(open.swap_remove(random.usize(..open.len()))));
            }
        }
    }

    #[test]
    fn foreign_metadata_reads_as_empty(metadata in "\\PC{0,200}") {
        let (window, error) = Window::restore(Position(7), &metadata, at(0));
        prop_assert_eq!(window.position(), Position(7));
        prop_assert_eq!(error.is_some(), !metadata.is_empty());
    }

    #[test]
    fn one_damaged_character_is_noticed(index in any::<prop::sample::Index>(), by in 1..64_u8, format in format()) {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut window = Window::new(Position(5));
        for offset in 5..300 {
            window.take(Offset(offset));
        }
        for offset in (6..300).step_by(3) {
            window.finish(Offset(offset));
        }
        let snapshot = window.snapshot(at(1), format);
        let mut bytes = snapshot.metadata.into_bytes();
        let index = index.index(bytes.len());
        let old = ALPHABET.iter().position(|&letter| letter == bytes[index]).unwrap();
        bytes[index] = ALPHABET[(old + by as usize) % 64];
        let (_, error) = Window::restore(snapshot.position, &String::from_utf8(bytes).unwrap(), at(1));
        prop_assert!(error.is_some());
    }
}

#[test]
fn a_handful_of_hanging_attempts_never_stops_intake() {
    let mut window = Window::new(Position(0));
    for offset in 0..2_000_000 {
        assert!(
            window.has_room(Offset(offset)),
            "offset {offset} did not fit"
        );
        window.take(Offset(offset));
        if offset % 250_000 != 0 {
            window.finish(Offset(offset));
        }
    }
    assert_eq!(window.unfinished(), 8);
    assert_eq!(window.span(), 2_000_000);
    assert!(window.snapshot(at(0), Format::V2).metadata.len() < 100);
}

#[test]
fn a_window_full_of_unfinished_offsets_has_no_room_for_more() {
    let mut window = Window::new(Position(0));
    let mut offset = 0;
    while window.has_room(Offset(offset)) {
        window.take(Offset(offset));
        offset += 1;
    }
    assert_eq!(offset, bits(ROOM), "a bitmap holds any mix in its span");
    window.finish(Offset(1));
    assert!(
        !window.has_room(Offset(offset)),
        "only the first offset's end makes room"
    );
    window.finish(Offset(0));
    assert!(window.has_room(Offset(offset)));
}

#[test]
fn metadata_of_another_place_or_position_is_stale() {
    let mut window = Window::new(Position(10));
    window.take(Offset(10));
    window.take(Offset(11));
    window.finish(Offset(11));
    for format in FORMATS {
        let Snapshot { position, metadata } = window.snapshot(at(0), format);
        let error = |position, place| Window::restore(position, &metadata, place).1;
        let elsewhere = Place::new("cluster-a", "other", 0);
        assert_eq!(error(position, at(0)), None);
        assert_eq!(error(position, at(1)), Some(ReadError::Stale));
        assert_eq!(error(position, elsewhere), Some(ReadError::Stale));
        assert_eq!(error(Position(9), at(0)), Some(ReadError::Stale));
    }
}

#[test]
fn metadata_of_another_cluster_reads_as_empty_though_topic_partition_and_position_agree() {
    let mut window = Window::new(Position(10));
    window.take(Offset(10));
    window.take(Offset(11));
    window.finish(Offset(11));
    let Snapshot { position, metadata } = window.snapshot(at(0), Format::V2);
    let mirrored = Place::new("cluster-b", TOPIC, 0);
    for position in [position, Position(3)] {
        let (restored, error) = Window::restore(position, &metadata, mirrored);
        assert_eq!(error, Some(ReadError::OtherCluster));
        assert_eq!((restored.position(), restored.span()), (position, 0));
    }
    let Snapshot { position, metadata } = window.snapshot(at(0), Format::V1);
    let (_, error) = Window::restore(position, &metadata, mirrored);
    assert_eq!(error, None, "version 1 names no cluster");
}

#[test]
fn a_newer_version_is_told_apart_from_damage() {
    let mut bytes = vec![VERSION + 1, 0, 0, 0, 0];
    bytes.extend_from_slice(&[0; 17]);
    let crc = crc32fast::hash(&bytes[5..]);
    bytes[1..5].copy_from_slice(&crc.to_be_bytes());
    let (_, error) = Window::restore(Position(0), &STANDARD_NO_PAD.encode(bytes), at(0));
    assert_eq!(error, Some(ReadError::Newer(5)));
    assert_eq!(error.and_then(|error| error.newer()), Some(5));
}

#[test]
fn the_formats_stay_as_they_are() {
    let mut window = Window::new(Position(100));
    for offset in 100..110 {
        window.take(Offset(offset));
    }
    for offset in [101, 103, 104, 109] {
        window.finish(Offset(offset));
    }
    assert_eq!(
        window.snapshot(at(7), Format::V1).metadata,
        "AV8J+cDRHzojv67wTgAAAAAAAABkARoC"
    );
    assert_eq!(
        window.snapshot(at(7), Format::V2).metadata,
        "AgaliWPRHzojv67wTgHXzZCOyhdzAAAAAAAAAGQBGgI"
    );
}

#[test]
fn what_retention_has_removed_is_not_waited_for() {
    let mut window = Window::new(Position(0));
    for offset in 0..10 {
        window.take(Offset(offset));
    }
    for offset in [1, 5, 9] {
        window.finish(Offset(offset));
    }
    let Snapshot { position, metadata } = window.snapshot(at(0), Format::V2);
    let (mut restored, _) = Window::restore(position, &metadata, at(0));
    assert!(restored.take(Offset(8)), "8 was left unfinished");
    assert_eq!(restored.position(), Position(8), "0 to 7 are no more");
    assert!(
        !restored.take(Offset(9)),
        "9 was finished by the former owner"
    );
    restored.finish(Offset(8));
    assert_eq!(restored.position(), Position(10));
}

#[test]
fn an_empty_window_passes_offsets_without_a_record_and_another_does_not() {
    let mut window = Window::new(Position(5));
    window.pass(Position(7));
    assert_eq!(window.position(), Position(7));
    window.pass(Position(6));
    assert_eq!(window.position(), Position(7), "never back");
    assert!(window.take(Offset(9)));
    window.pass(Position(12));
    assert_eq!((window.position(), window.span()), (Position(9), 1));
    window.finish(Offset(9));
    window.pass(Position(12));
    let snapshot = window.snapshot(at(3), Format::V2);
    assert_eq!((snapshot.position, &*snapshot.metadata), (Position(12), ""));
}

#[test]
fn a_smaller_limit_bounds_intake_and_what_is_committed_from_then_on() {
    for limit in [2048, 128, 80, 56, 0] {
        let mut window = Window::new(Position(0));
        for offset in 0..30_000 {
            assert!(window.take(Offset(offset)));
        }
        for offset in (0..30_000).filter(|offset| offset % 3 == 1) {
            window.finish(Offset(offset));
        }
        window.set_limit(limit);
        assert!(!window.has_room(Offset(30_000)), "{limit}");
        let mut repeated = 0;
        while window.unfinished() > 0 {
            let Snapshot { position, metadata } = window.snapshot(at(3), Format::V2);
            assert!(metadata.len() <= limit, "{limit}: {}", metadata.len());
            let (restored, error) = Window::restore(position, &metadata, at(3));
            assert_eq!(error, None);
            assert_eq!(restored.position(), window.position());
            // What the text has no room for is taken again, and nothing else is finished.
            let first = position.0;
            for offset in first..first + 500 {
                let known = restored.is_finished(Offset(offset));
                assert!(
                    !known || window.is_finished(Offset(offset)),
                    "{limit}: {offset}"
                );
                repeated += usize::from(!known && window.is_finished(Offset(offset)));
                let reach = i64::try_from(Window::reach(limit)).unwrap();
                let within = offset < first + reach && offset < 30_000;
                assert!(
                    !within || known == window.is_finished(Offset(offset)),
                    "{limit}"
                );
            }
            for offset in first..first + 300 {
                window.finish(Offset(offset));
            }
        }
        assert!(limit > 1000 || repeated > 0);
        assert!(
            window.has_room(Offset(30_000)),
            "{limit}: when all is finished"
        );
    }
}

/// A window and a coverage, as a partition uses them.
struct Both {
    window: Window,
    coverage: Coverage,
}

impl Both {
    fn new() -> Self {
        Self {
            window: Window::new(Position(0)),
            coverage: Coverage::new(Position(0)),
        }
    }

    fn take(&mut self, offset: i64, mark: &Mark) {
        self.coverage.ask(Offset(offset), mark);
        self.window.take(Offset(offset));
    }

    fn snapshot(&self) -> Snapshot {
        self.window
            .snapshot_beside(&self.coverage, at(3), Format::V3)
    }

    fn pass(&mut self) {
        self.coverage
            .pass(self.window.position(), self.window.open());
    }
}

/// The command of an event, of one of many sources; the hash is at its longest.
fn mark(source: u32, previous: Option<i64>, offset: i64) -> Mark {
    let point = |offset| Point {
        leader_epoch: 40,
        offset: 1_000_000_000 + offset,
        subscription: u64::MAX,
    };
    Mark {
        source: Source {
            cluster: 1,
            topic: [9; 16],
            partition: source,
            epoch: 7,
        },
        at: point(offset),
        previous: previous.map(point),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn window_and_coverage_fit_together_however_commands_end(
        strides in proptest::collection::vec((1..40_i64, 0..120_u32, 0..50_u8), 3_000),
        finish in 20..120_u8,
        seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut both = Both::new();
        let (mut open, mut taken) = (Vec::new(), Vec::new());
        let mut offset = 0;
        for (index, (stride, source, luck)) in strides.into_iter().enumerate() {
            offset += stride;
            while !both.window.has_room_beside(Offset(offset), &both.coverage) {
                prop_assert!(!open.is_empty(), "an empty window has room");
                let ended = open.swap_remove(random.usize(..open.len()));
                both.window.finish(Offset(ended));
                both.pass();
            }
            // Some writes are lost: holes.
            let previous = (luck > 0).then_some(offset - i64::from(luck));
            both.take(offset, &mark(source, previous, offset));
            open.push(offset);
            taken.push(offset);
            if random.u8(..) < finish {
                let ended = open.swap_remove(random.usize(..open.len()));
                both.window.finish(Offset(ended));
            }
            if index % 50 == 0 {
                both.pass();
                let Snapshot { position, metadata } = both.snapshot();
                prop_assert!(metadata.len() <= METADATA_LIMIT);
                let (restored, error) = Restored::read(position, &metadata, at(3));
                prop_assert_eq!(error, None);
                prop_assert_eq!(restored.window.position(), both.window.position());
                for &one in taken.iter().filter(|&&one| one >= position.0) {
                    let is_finished = both.window.is_finished(Offset(one));
                    prop_assert_eq!(restored.window.is_finished(Offset(one)), is_finished);
                }
                prop_assert_eq!(restored.coverage.encode(position), both.coverage.encode(position));
            }
        }
    }
}

#[test]
fn a_coverage_is_committed_though_nothing_is_finished_above_the_position() {
    let mut both = Both::new();
    both.take(0, &mark(1, None, 0));
    let Snapshot { position, metadata } = both.snapshot();
    assert_eq!(
        (position, &*metadata),
        (Position(0), ""),
        "record 0 is read again"
    );
    both.window.finish(Offset(0));
    let Snapshot { position, metadata } = both.snapshot();
    assert_eq!(position, Position(1));
    let (mut restored, error) = Restored::read(position, &metadata, at(3));
    assert_eq!((error, restored.window.span()), (None, 0));
    let copy = restored.coverage.ask(Offset(1), &mark(1, None, 0));
    assert_eq!(copy.kind, Kind::Copy);
    for format in [Format::V1, Format::V2] {
        let snapshot = both.window.snapshot_beside(&both.coverage, at(3), format);
        assert_eq!(snapshot.metadata, "", "only version 3 has a coverage");
    }
}

#[test]
fn without_a_coverage_version_3_is_version_2_which_older_programs_read() {
    let mut window = Window::new(Position(100));
    for offset in 100..110 {
        window.take(Offset(offset));
    }
    window.finish(Offset(105));
    let coverage = Coverage::new(Position(100));
    assert_eq!(
        window.snapshot_beside(&coverage, at(7), Format::V3),
        window.snapshot(at(7), Format::V2)
    );
}

#[test]
fn the_format_with_a_coverage_stays_as_it_is() {
    let mut both = Both::new();
    for offset in 0..4 {
        both.take(offset, &mark(1, None, offset));
    }
    both.window.finish(Offset(0));
    both.window.finish(Offset(2));
    let snapshot = both.snapshot();
    let bytes = STANDARD_NO_PAD.decode(&snapshot.metadata).unwrap();
    assert_eq!(snapshot.position, Position(1));
    assert_eq!(bytes[0], 3);
    assert_eq!(bytes[5..21], bytes_of_place());
    assert_eq!(bytes[21..29], 1_i64.to_be_bytes());
    let coverage = both.coverage.encode(Position(1));
    assert_eq!(bytes[29..31], (coverage.len() as u16).to_be_bytes());
    assert_eq!(bytes[31..31 + coverage.len()], coverage);
    assert_eq!(bytes[31 + coverage.len()..], [FORM_BITMAP, 0b010]);
}

fn bytes_of_place() -> Vec<u8> {
    let place = at(3);
    [place.partition.to_be_bytes(), place.cluster.to_be_bytes()].concat()
}

#[test]
fn an_unknown_form_is_of_a_newer_program_and_not_empty() {
    let mut both = Both::new();
    both.take(0, &mark(1, None, 0));
    both.window.finish(Offset(0));
    let Snapshot { position, metadata } = both.snapshot();
    let bytes = STANDARD_NO_PAD.decode(&metadata).unwrap();
    let read = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes[5..]);
        bytes[1..5].copy_from_slice(&crc.to_be_bytes());
        Restored::read(position, &STANDARD_NO_PAD.encode(bytes), at(3)).1
    };
    let last = bytes.len() - 1;
    assert_eq!(read(&|_| {}), None);
    // The window's form, and the coverage's version.
    assert_eq!(
        read(&|bytes| bytes[last] = 9),
        Some(ReadError::NewerForm(3))
    );
    assert_eq!(read(&|bytes| bytes[31] = 9), Some(ReadError::NewerForm(3)));
    assert_eq!(ReadError::NewerForm(3).newer(), Some(3));
    // A length beyond the end; a coverage that is damaged.
    assert_eq!(read(&|bytes| bytes[29] = 9), Some(ReadError::Foreign));
    assert_eq!(read(&|bytes| bytes[33] = 99), Some(ReadError::Foreign));
}

#[test]
fn a_broker_that_keeps_too_little_gets_no_coverage_and_no_more_than_it_keeps() {
    for limit in [2048, 128, 80, 56, 0] {
        let mut both = Both::new();
        both.window.set_limit(limit);
        both.coverage.set_limit(Window::coverage_limit(limit));
        for offset in 0..200 {
            let mark = mark(u32::try_from(offset).unwrap(), None, offset);
            if !both.window.has_room_beside(Offset(offset), &both.coverage) {
                for open in both.window.open().collect::<Vec<_>>() {
                    both.window.finish(Offset(open));
                }
                both.pass();
            }
            assert!(both.window.has_room_beside(Offset(offset), &both.coverage));
            both.take(offset, &mark);
            let Snapshot { position, metadata } = both.snapshot();
            assert!(metadata.len() <= limit, "{limit}: {}", metadata.len());
            assert_eq!(Restored::read(position, &metadata, at(3)).1, None);
        }
    }
}

#[test]
fn metadata_that_is_not_usable_leaves_what_was_seen_unknown() {
    let (mut restored, error) = Restored::read(Position(7), "what", at(0));
    assert_eq!(error, Some(ReadError::Foreign));
    let answer = restored.coverage.ask(Offset(7), &mark(1, Some(3), 4));
    assert_eq!((answer.kind, restored.coverage.holes()), (Kind::New, 0));
}

#[test]
fn the_position_passes_nothing_that_a_new_owner_has_not_read_again() {
    // With few unfinished offsets, with many, and with none.
    for (unfinished, end) in [
        (vec![5, 4_000], 20_000),
        ((5..100).collect(), 120),
        (vec![5], 90),
    ] {
        let mut window = Window::new(Position(5));
        for offset in 5..end {
            window.take(Offset(offset));
            if !unfinished.contains(&offset) {
                window.finish(Offset(offset));
            }
        }
        let Snapshot { position, metadata } = window.snapshot(at(0), Format::V2);
        let (mut next, error) = Window::restore(position, &metadata, at(0));
        assert_eq!((error, next.position()), (None, Position(5)));
        for offset in 5..end {
            if next.take(Offset(offset)) {
                next.finish(Offset(offset));
            }
            assert_eq!(next.position(), Position(offset + 1));
            if offset % 97 == 5 || offset + 3 > end {
                let Snapshot { position, metadata } = next.snapshot(at(0), Format::V2);
                assert_eq!(position, next.position());
                let (again, error) = Window::restore(position, &metadata, at(0));
                assert_eq!(error, None);
                let of = |window: &Window| {
                    let all = (0..end + 3).map(|offset| window.is_finished(Offset(offset)));
                    all.collect::<Vec<_>>()
                };
                assert_eq!(of(&again), of(&next), "after {offset}");
            }
        }
    }
}

#[test]
fn a_new_owner_passes_the_end_of_a_transaction_that_a_former_owner_has_passed() {
    let mut window = Window::new(Position(5));
    window.take(Offset(5));
    window.take(Offset(6));
    window.finish(Offset(6));
    let Snapshot { position, metadata } = window.snapshot(at(0), Format::V2);
    let (mut next, _) = Window::restore(position, &metadata, at(0));
    next.take(Offset(5));
    next.finish(Offset(5));
    assert_eq!(next.position(), Position(6));
    // Its record is gone.
    next.pass(Position(7));
    assert_eq!(next.position(), Position(7));
    next.pass(Position(9));
    assert_eq!(next.position(), Position(9));
}

/// A whale's commands rest among those of neighbours, and everything ends in any order.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// So many commands of the whale arrive.
    Whale(u16),
    /// One of a neighbour.
    Neighbour,
    /// So many of neighbours, most of which end at once.
    Crowd(u16),
    /// Some end, any of those that do not rest.
    End(u8),
    /// The first that rest are read again, or some in the middle.
    Wake(u8, bool),
    Restart(Format),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => (1..400_u16).prop_map(Turn::Whale),
        6 => Just(Turn::Neighbour),
        2 => (1..2_000_u16).prop_map(Turn::Crowd),
        4 => any::<u8>().prop_map(Turn::End),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(count, first)| Turn::Wake(count, first)),
        1 => format().prop_map(Turn::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn what_rests_fits_however_the_others_end(
        turns in proptest::collection::vec(turn(), 0..120),
        gaps in 1..3_i64,
        limit in prop::sample::select(vec![METADATA_LIMIT, 900, 300]),
        seed in any::<u64>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let coverage = Coverage::new(Position(0));
        let wide = |mut window: Window| {
            window.set_wide();
            window.set_limit(limit);
            window
        };
        let mut window = wide(Window::new(Position(0)));
        let (mut taken, mut finished, mut active) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let mut next = 0;
        for turn in turns {
            match turn {
                Turn::Whale(count) => {
                    for _ in 0..count {
                        let offset = next;
                        if !window.has_room_beside(Offset(offset), &coverage) || !window.may_rest(&coverage) {
                            break;
                        }
                        next += gaps;
                        prop_assert!(window.take(Offset(offset)));
                        window.rest(Offset(offset));
                        taken.insert(offset);
                    }
                }
                Turn::Neighbour => {
                    if window.has_room_beside(Offset(next), &coverage) {
                        prop_assert!(window.take(Offset(next)));
                        taken.insert(next);
                        active.push(next);
                        next += gaps;
                    }
                }
                Turn::Crowd(count) => {
                    let rarely = random.u16(2..200);
                    for _ in 0..count {
                        if !window.has_room_beside(Offset(next), &coverage) {
                            break;
                        }
                        prop_assert!(window.take(Offset(next)));
                        taken.insert(next);
                        if random.u16(..rarely) == 0 {
                            active.push(next);
                        } else {
                            prop_assert!(window.finish(Offset(next)));
                            finished.insert(next);
                        }
                        next += gaps;
                    }
                }
                Turn::End(count) => {
                    for _ in 0..usize::from(count).min(active.len()) {
                        let ended = active.swap_remove(random.usize(..active.len()));
                        prop_assert!(window.finish(Offset(ended)));
                        finished.insert(ended);
                    }
                }
                Turn::Wake(count, first) => {
                    let open: Vec<i64> = window.open().filter(|&at| window.rests(Offset(at))).collect();
                    let from = if first || open.is_empty() { 0 } else { random.usize(..open.len()) };
                    let is_first = first && active.is_empty();
                    for (number, &offset) in open[from..].iter().take(usize::from(count)).enumerate() {
                        if !window.may_wake(Offset(offset), &coverage) {
                            prop_assert!(number > 0 || !is_first, "the first one can always be woken");
                            break;
                        }
                        prop_assert!(window.wake(Offset(offset)));
                        active.push(offset);
                    }
                }
                Turn::Restart(format) => {
                    let snapshot = window.snapshot(at(3), format);
                    let (restored, error) = Window::restore(snapshot.position, &snapshot.metadata, at(3));
                    prop_assert_eq!(error, None);
                    window = wide(restored);
                    active.clear();
                    for &offset in taken.range(snapshot.position.0..) {
                        // As the partition does: it waits until some end.
                        if !window.has_room_beside(Offset(offset), &coverage) {
                            for ended in active.drain(..) {
                                window.finish(Offset(ended));
                                finished.insert(ended);
                            }
                            // Then it reads what rests again, and parks it.
                            while !window.has_room_beside(Offset(offset), &coverage) {
                                let first = window.open().find(|&at| window.rests(Offset(at)));
                                let first = first.map(Offset);
                                prop_assert!(first.is_some_and(|first| window.may_wake(first, &coverage)));
                                first.map(|first| window.wake(first) && window.finish(first));
                                finished.extend(first.map(|first| first.0));
                            }
                        }
                        let is_open = window.take(Offset(offset));
                        prop_assert_eq!(is_open, !finished.contains(&offset));
                        if is_open && offset % 3 == 0 {
                            active.push(offset);
                        } else if is_open && window.may_rest(&coverage) {
                            window.rest(Offset(offset));
                        } else if is_open {
                            // It is parked.
                            window.finish(Offset(offset));
                            finished.insert(offset);
                        }
                    }
                }
            }
            let open: Vec<i64> = taken.difference(&finished).copied().collect();
            prop_assert!(window.open().eq(open.iter().copied()));
            for format in [Format::V3, Format::V4] {
                let snapshot = window.snapshot(at(3), format);
                prop_assert!(snapshot.metadata.len() <= limit, "{}", snapshot.metadata.len());
                let (mut restored, error) = Window::restore(snapshot.position, &snapshot.metadata, at(3));
                prop_assert_eq!(error, None);
                let mut left = taken.range(snapshot.position.0..).copied();
                prop_assert!(left.all(|offset| restored.take(Offset(offset)) != finished.contains(&offset)));
            }
        }
    }
}

#[test]
fn a_whale_of_300_000_fits_beside_its_neighbours() {
    let mut coverage = Coverage::new(Position(0));
    for source in 0..12 {
        coverage.ask(Offset(0), &mark(source, None, 1));
    }
    let mut window = Window::new(Position(0));
    window.set_wide();
    let mut random = fastrand::Rng::with_seed(1);
    let mut finished = 0;
    for offset in 0..300_000 {
        assert!(
            window.has_room_beside(Offset(offset), &coverage),
            "{offset}"
        );
        window.take(Offset(offset));
        // At 20,000/s, and neighbours at 83/s.
        if random.u32(..241) == 7 {
            window.finish(Offset(offset));
            finished += 1;
        } else {
            assert!(window.may_rest(&coverage), "{offset}");
            window.rest(Offset(offset));
        }
    }
    assert_eq!(window.unfinished(), 300_000 - finished);
    assert!(finished > 1_200, "{finished}");
    let length = window.snapshot(at(0), Format::V4).metadata.len();
    assert!(length < 2_400, "{length}");
    // A setting for older replicas does not cut it off.
    let narrow = window.snapshot(at(0), Format::V3);
    assert_eq!(narrow.metadata.len(), length);
    // Its neighbours go on behind it.
    for offset in 300_000..400_000 {
        assert!(
            window.has_room_beside(Offset(offset), &coverage),
            "{offset}"
        );
        window.take(Offset(offset));
        window.finish(Offset(offset));
    }
    let more = window.snapshot(at(0), Format::V4).metadata.len() - length;
    assert!(more < 10, "{more}");
}

#[test]
fn intake_leaves_room_for_offsets_that_are_woken() {
    let coverage = Coverage::new(Position(0));
    let mut window = Window::new(Position(0));
    window.set_wide();
    let mut next = 0;
    for offset in 0..200_000 {
        window.take(Offset(offset));
        window.rest(Offset(offset));
        next = offset + 1;
    }
    // Behind them nothing ends, and intake goes on for as long as it may.
    while window.has_room_beside(Offset(next), &coverage) {
        window.take(Offset(next));
        next += 1;
    }
    // As many as a lane takes, and they end in the order that is longest to write.
    for offset in 0..256 {
        assert!(window.may_wake(Offset(offset), &coverage), "{offset}");
        window.wake(Offset(offset));
    }
    for offset in (1..256).step_by(2).chain((200_001..next).step_by(2)) {
        window.finish(Offset(offset));
    }
    let length = window.snapshot(at(3), Format::V4).metadata.len();
    assert!(length <= METADATA_LIMIT, "{length}");
}

#[test]
fn segments_stay_as_they_are() {
    let mut window = Window::new(Position(100));
    for offset in 100..100_000 {
        window.take(Offset(offset));
    }
    for offset in [101, 103, 104, 50_000, 50_001, 50_002, 99_000] {
        window.finish(Offset(offset));
    }
    let metadata = window.snapshot(at(7), Format::V4).metadata;
    assert_eq!(
        metadata,
        "BEIqEZ/RHzojv67wTgHXzZCOyhdzAAAAAAAAAGQAAAMEBQCdlwwBlPsL"
    );
    let (restored, error) = Window::restore(Position(100), &metadata, at(7));
    assert_eq!((error, restored.span()), (None, 98_901));
    // Many runs of about one length, as codes.
    let mut window = Window::new(Position(100));
    for offset in 100..10_000 {
        window.take(Offset(offset));
    }
    for offset in (107..9_000).step_by(241).chain([9_100, 9_101]) {
        window.finish(Offset(offset));
    }
    let metadata = window.snapshot(at(7), Format::V4).metadata;
    assert_eq!(
        metadata,
        "BFndhM7RHzojv67wTgHXzZCOyhdzAAAAAAAAAGQAAAPfEw/CCSeccMIJJ5xwwgknnHDCCSeccMIJJ5xwwgknnHDCCSeccMIJJ5xwwgknnHDyBgA"
    );
    let (restored, error) = Window::restore(Position(100), &metadata, at(7));
    assert_eq!((error, restored.span()), (None, 9_002));
}

#[test]
fn what_is_in_flight_far_behind_what_rests_fits_however_it_ends() {
    let coverage = Coverage::new(Position(0));
    for every in [2, 3, 10, 30, 50, 100, 300, 1_000] {
        let mut window = Window::new(Position(0));
        window.set_wide();
        for offset in 0..5_000 {
            window.take(Offset(offset));
            window.rest(Offset(offset));
        }
        let mut active = Vec::new();
        for offset in 5_000..300_000 {
            if !window.has_room_beside(Offset(offset), &coverage) {
                break;
            }
            window.take(Offset(offset));
            if offset % every == 0 {
                active.push(offset);
            } else {
                window.finish(Offset(offset));
            }
        }
        for &offset in active.iter().step_by(2) {
            window.finish(Offset(offset));
        }
        let metadata = window.snapshot(at(0), Format::V4).metadata;
        let (restored, error) = Window::restore(Position(0), &metadata, at(0));
        assert_eq!(error, None);
        let differ = (0..window.next).find(|&offset| {
            window.is_finished(Offset(offset)) != restored.is_finished(Offset(offset))
        });
        assert_eq!(differ, None, "every {every}");
    }
}
