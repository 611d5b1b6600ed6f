//! The decisions at a start, as a table.

use super::*;
use crate::model::units::EpochMs;

const SOME: Option<i64> = Some(5);

fn ranges(ends: &[(i64, i64)]) -> Vec<Range> {
    let each = ends.iter().zip(0..);
    each.map(|(&(low, end), partition)| Range {
        partition,
        low,
        end,
    })
    .collect()
}

fn known(positions: &[Option<i64>], marker: Option<i32>) -> Known<'_> {
    Known {
        positions,
        marker,
        is_elsewhere: false,
    }
}

const FULL: [(i64, i64); 2] = [(0, 9), (3, 9)];

fn at(positions: &[Option<i64>], marker: Option<i32>, kind: Kind) -> Decision {
    let known = known(positions, marker);
    decide(known, &ranges(&FULL), kind, Members::None, true)
}

fn begin(partitions: &[i32], at: StartAt, is_first: bool, marker: Option<i32>) -> Decision {
    Decision::Begin {
        partitions: partitions.to_vec(),
        at,
        is_first,
        marker,
    }
}

const DEFAULT: Kind = Kind::Events(None);
const KINDS: [Kind; 4] = [
    Kind::Own,
    DEFAULT,
    Kind::Events(Some(StartAt::Earliest)),
    Kind::Events(Some(StartAt::Time(EpochMs(7)))),
];

#[test]
fn a_first_start_follows_the_setting_and_own_topics_are_read_from_their_beginning() {
    for (kind, expected) in [
        (Kind::Own, StartAt::Earliest),
        (DEFAULT, StartAt::Now),
        (Kind::Events(Some(StartAt::Now)), StartAt::Now),
        (Kind::Events(Some(StartAt::Earliest)), StartAt::Earliest),
        (KINDS[3], StartAt::Time(EpochMs(7))),
    ] {
        assert_eq!(
            at(&[None, None], None, kind),
            begin(&[0, 1], expected, true, Some(2)),
            "{kind:?}"
        );
    }
}

#[test]
fn positions_win_and_an_older_installation_gets_its_marker() {
    for kind in KINDS {
        for (marker, written) in [
            (None, Some(2)),
            (Some(1), Some(2)),
            (Some(2), None),
            (Some(9), None),
        ] {
            let expected = Decision::GoOn { marker: written };
            assert_eq!(at(&[SOME, SOME], marker, kind), expected, "{marker:?}");
        }
    }
    assert!(known(&[SOME, SOME], Some(2)).is_complete());
    assert!(!known(&[SOME, SOME], None).is_complete());
    assert!(!known(&[SOME, None], Some(2)).is_complete());
}

#[test]
fn partitions_that_are_new_are_read_from_their_beginning_whatever_the_setting() {
    for kind in KINDS {
        // The second one was added; an older version left no marker.
        for marker in [Some(1), None] {
            assert_eq!(
                at(&[SOME, None], marker, kind),
                begin(&[1], StartAt::Earliest, false, Some(2))
            );
        }
        // All of an older program's positions are behind the new one.
        assert_eq!(
            at(&[None, SOME], None, kind),
            begin(&[0], StartAt::Earliest, false, Some(2))
        );
    }
}

#[test]
fn positions_that_were_there_are_lost_whatever_the_setting() {
    for kind in KINDS {
        for members in [
            Members::None,
            Members::Elsewhere,
            Members::Reading,
            Members::Unknown,
        ] {
            for transactions in [true, false] {
                let decide = |positions: &[Option<i64>], marker| {
                    let known = known(positions, marker);
                    decide(known, &ranges(&FULL), kind, members, transactions)
                };
                assert_eq!(decide(&[None, None], Some(2)), Decision::Lost(vec![0, 1]));
                assert_eq!(decide(&[SOME, None], Some(2)), Decision::Lost(vec![1]));
                // The second one is new.
                assert_eq!(decide(&[None, None], Some(1)), Decision::Lost(vec![0]));
                assert_eq!(
                    decide(&[None, None], Some(i32::MAX)),
                    Decision::Lost(vec![0, 1])
                );
            }
        }
    }
}

#[test]
fn a_lost_position_in_a_partition_without_records_loses_nothing() {
    let ranges = ranges(&[(4, 4), (0, 0)]);
    for kind in KINDS {
        let decision = decide(
            known(&[None, None], Some(2)),
            &ranges,
            kind,
            Members::None,
            true,
        );
        assert_eq!(decision, begin(&[0, 1], StartAt::Earliest, false, None));
    }
}

#[test]
fn whoever_reads_the_topic_has_begun() {
    for kind in KINDS {
        let decide = |positions: &[Option<i64>], members| {
            decide(known(positions, None), &ranges(&FULL), kind, members, true)
        };
        let go_on = |marker| Decision::GoOn { marker };
        assert_eq!(decide(&[None, None], Members::Reading), go_on(None));
        assert_eq!(decide(&[SOME, None], Members::Reading), go_on(Some(1)));
        assert_eq!(decide(&[None, None], Members::Unknown), Decision::Wait);
        // A topic that was added to `--events` begins while the group reads others.
        assert!(matches!(
            decide(&[None, None], Members::Elsewhere),
            Decision::Begin { is_first: true, .. }
        ));
    }
}

#[test]
fn without_transactions_nothing_is_committed_beside_members() {
    let decide = |kind| {
        let known = known(&[None, None], None);
        decide(known, &ranges(&FULL), kind, Members::Elsewhere, false)
    };
    assert_eq!(decide(DEFAULT), Decision::Busy);
    assert_eq!(decide(KINDS[3]), Decision::Busy);
    for kind in [Kind::Own, KINDS[2]] {
        assert_eq!(decide(kind), Decision::GoOn { marker: None });
    }
}

#[test]
fn after_an_unfinished_failover_the_operator_decides() {
    let decide = |kind, ends: &[(i64, i64)]| {
        let known = Known {
            is_elsewhere: true,
            ..known(&[None, None], None)
        };
        decide(known, &ranges(ends), kind, Members::None, true)
    };
    assert_eq!(decide(DEFAULT, &FULL), Decision::NotMoved);
    for (kind, ends) in [
        (Kind::Own, FULL),
        (KINDS[2], FULL),
        (DEFAULT, [(0, 0), (4, 4)]),
    ] {
        assert!(
            matches!(decide(kind, &ends), Decision::Begin { .. }),
            "{kind:?}"
        );
    }
}

#[test]
fn ranges_are_listed_up_to_a_bound() {
    let mut ranges = Ranges::default();
    assert_eq!(ranges.text(), "none");
    ranges.add("t", 0, 4, 4);
    ranges.add("t", 1, 0, 3);
    assert_eq!(
        (ranges.text(), ranges.offsets),
        ("t 1: 0 to 3".to_owned(), 3)
    );
    for partition in 0..200 {
        ranges.add("t", partition, 0, 1);
    }
    assert!(
        ranges.text().ends_with("t 98: 0 to 1 and 101 more"),
        "{}",
        ranges.text()
    );
}

#[test]
fn a_group_has_begun_where_it_has_a_position() {
    let events = Kind::Events(None);
    for (positions, own, of_events) in [
        (vec![vec![Some(1), None], vec![None]], true, false),
        (vec![vec![Some(1), None], vec![Some(0)]], true, true),
        (vec![vec![None], vec![None]], false, false),
    ] {
        assert_eq!(Kind::Own.has_begun(&positions), own, "{positions:?}");
        assert_eq!(events.has_begun(&positions), of_events, "{positions:?}");
    }
}
