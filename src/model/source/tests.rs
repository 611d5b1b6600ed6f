//! The header against itself, and against whatever may stand in its place.

use proptest::prelude::*;

use super::*;

fn point() -> impl Strategy<Value = Point> {
    let small = (-1..3_i32, 0..50_i64, 0..4_u64);
    let any = (-1..i32::MAX, 0..=i64::MAX, any::<u64>());
    prop_oneof![small, any].prop_map(|(leader_epoch, offset, subscription)| Point {
        leader_epoch,
        offset,
        subscription,
    })
}

pub(crate) fn source() -> impl Strategy<Value = Source> {
    (
        any::<u64>(),
        any::<[u8; 16]>(),
        0..=i32::MAX as u32,
        any::<u32>(),
    )
        .prop_map(|(cluster, topic, partition, epoch)| Source {
            cluster,
            topic,
            partition,
            epoch,
        })
}

fn mark() -> impl Strategy<Value = Mark> {
    (source(), point(), prop::option::of(point())).prop_map(|(source, one, other)| {
        let (at, previous) = match other {
            Some(other) if other < one => (one, Some(other)),
            Some(other) if other > one => (other, Some(one)),
            _ => (one, None),
        };
        Mark {
            source,
            at,
            previous,
        }
    })
}

fn example() -> Mark {
    Mark {
        source: Source {
            cluster: cluster_hash("cluster-a"),
            topic: *b"0123456789abcdef",
            partition: 7,
            epoch: 0x1234_5678,
        },
        at: Point {
            leader_epoch: 4,
            offset: 1_000_000_007,
            subscription: subscription_hash("acme-orders"),
        },
        previous: None,
    }
}

proptest! {
    #[test]
    fn every_header_reads_as_it_was_written(mark in mark()) {
        let text = mark.to_text();
        prop_assert!(text.len() <= MAX_BYTES, "{} bytes", text.len());
        prop_assert_eq!(Mark::parse(text.as_bytes()), Ok(mark));
    }

    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Mark::parse(&bytes).is_err());
    }

    #[test]
    fn a_header_with_a_damaged_byte_is_an_error_or_another_header_with_that_text(
        mark in mark(),
        index in any::<prop::sample::Index>(),
        byte in prop_oneof![any::<u8>(), prop::sample::select(b"0123456789.-+ startAZaz_=".to_vec())],
    ) {
        let mut text = mark.to_text().into_bytes();
        let index = index.index(text.len());
        text[index] = byte;
        if let Ok(read) = Mark::parse(&text) {
            prop_assert_eq!(read.to_text().into_bytes(), text);
            prop_assert!(read.previous.is_none_or(|previous| previous < read.at));
        }
    }

    #[test]
    fn a_header_that_is_cut_off_is_an_error(mark in mark(), index in any::<prop::sample::Index>()) {
        let text = mark.to_text();
        prop_assert!(Mark::parse(&text.as_bytes()[..index.index(text.len())]).is_err());
    }
}

#[test]
fn each_field_is_named_when_it_is_wrong() {
    let good = "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.5.60.AAAAAAAAAAc.1.20.AAAAAAAAAAg";
    assert!(Mark::parse(good.as_bytes()).is_ok());
    let fields: Vec<&str> = good.split('.').collect();
    let names = [
        "version",
        "cluster",
        "topic",
        "partition",
        "epoch",
        "leader epoch",
        "offset",
        "subscription",
        "previous",
        "previous",
        "previous",
    ];
    for (index, name) in names.into_iter().enumerate() {
        for wrong in [
            "",
            "x",
            "-2",
            "01",
            "+1",
            "1 ",
            "99999999999999999999",
            "\u{e4}",
        ] {
            // A previous command may be cut off in between.
            if index == 9 && wrong == "-2" {
                continue;
            }
            let mut changed = fields.clone();
            changed[index] = wrong;
            let error = Mark::parse(changed.join(".").as_bytes()).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&format!("field {name} ")),
                "{wrong:?}: {text}"
            );
        }
        let error = Mark::parse(fields[..index].join(".").as_bytes()).unwrap_err();
        assert!(
            index == 0 || error == MarkError::Missing(name),
            "{index}: {error}"
        );
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let cases = [
        (
            "partition",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.2147483648.AAAABA.5.60.AAAAAAAAAAc.start",
        ),
        (
            "leader epoch",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.2147483648.60.AAAAAAAAAAc.start",
        ),
        (
            "offset",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.5.9223372036854775808.AAAAAAAAAAc.start",
        ),
        // Before the first offset; before any leader epoch; this command itself; a later one.
        (
            "previous",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.5.60.AAAAAAAAAAc.0.61.AAAAAAAAAAg",
        ),
        (
            "previous",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.5.60.AAAAAAAAAAc.7.1.AAAAAAAAAAg",
        ),
        (
            "previous",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.5.60.AAAAAAAAAAc.0.0.AAAAAAAAAAc",
        ),
        (
            "previous",
            "1.AAAAAAAAAAE.AAAAAAAAAAAAAAAAAAAAAg.3.AAAABA.5.60.AAAAAAAAAAc.0.-1.AAAAAAAAAAc",
        ),
    ];
    for (field, text) in cases {
        let error = Mark::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("field {field} ")),
            "{text}: {error}"
        );
    }
}

#[test]
fn a_newer_version_is_told_apart_from_garbage() {
    assert_eq!(Mark::parse(b"2.whatever"), Err(MarkError::Newer(2)));
    assert_eq!(Mark::parse(b"17"), Err(MarkError::Newer(17)));
    assert!(matches!(
        Mark::parse(b"0.x"),
        Err(MarkError::Unreadable {
            field: "version",
            ..
        })
    ));
}

#[test]
fn long_values_and_what_follows_are_refused_and_shown_in_part() {
    let long = vec![b'1'; 5000];
    assert_eq!(Mark::parse(&long), Err(MarkError::TooLong(5000)));
    let text = format!("{}.0", example().to_text());
    let error = Mark::parse(text.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("previous"), "{error}");
    let after = Mark {
        previous: Some(Point {
            offset: 5,
            ..example().at
        }),
        ..example()
    };
    let text = format!("{}.0", after.to_text());
    let error = Mark::parse(text.as_bytes()).unwrap_err();
    assert_eq!(error, MarkError::Trailing("0".into()));
}

#[test]
fn the_last_of_several_headers_counts_and_a_null_one_is_none() {
    let text = example().to_text();
    let found = |headers: &[(&'static str, Option<&[u8]>)]| Mark::find(headers.iter().copied());
    assert_eq!(found(&[]), Ok(None));
    assert_eq!(found(&[("hs-event-id", Some(b"x"))]), Ok(None));
    assert_eq!(found(&[(HEADER, None)]), Ok(None));
    let all = [(HEADER, Some(&b"x"[..])), (HEADER, Some(text.as_bytes()))];
    assert_eq!(found(&all), Ok(Some(example())));
    assert!(found(&[(HEADER, Some(b"x"))]).is_err());
}

#[test]
fn events_after_an_unclean_election_come_after_those_that_were_cut_off() {
    let before = Point {
        leader_epoch: 4,
        offset: 100,
        subscription: 1,
    };
    let after = Point {
        leader_epoch: 5,
        offset: 90,
        subscription: 0,
    };
    assert!(before < after);
    let mark = Mark {
        at: after,
        previous: Some(before),
        ..example()
    };
    assert_eq!(Mark::parse(mark.to_text().as_bytes()), Ok(mark));
}

#[test]
fn the_header_stays_as_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/source/golden.txt");
    let first = example();
    let within = Mark {
        at: Point {
            subscription: first.at.subscription + 1,
            ..first.at
        },
        previous: Some(first.at),
        ..first
    };
    let later = Mark {
        at: Point {
            leader_epoch: 5,
            offset: 1_000_000_003,
            ..first.at
        },
        previous: Some(first.at),
        ..first
    };
    let unknown = Mark {
        at: Point {
            leader_epoch: -1,
            offset: 0,
            subscription: 0,
        },
        ..first
    };
    let text: String = [first, within, later, unknown]
        .iter()
        .map(|mark| mark.to_text() + "\n")
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(path).unwrap(),
        "the header changed, and commands on topics have the old one"
    );
}
