//! Records, identities, the fold of the facts, and replays.

use std::collections::HashMap;

use proptest::prelude::*;

use super::fact::cut;
use super::*;
use crate::model::command::tests::any_value;
use crate::model::command::{VERSION, header};
use crate::model::subscription::TypePattern;
use crate::model::units::{EpochMs, Offset};

fn command_headers(attempt: u32) -> Vec<(&'static str, String)> {
    vec![
        ("webhook-id", "msg_1".to_owned()),
        ("hs-subscription", "acme-orders".to_owned()),
        ("hs-event-id", "e1".to_owned()),
        ("hs-event-type", "order.created".to_owned()),
        ("hs-attempt", attempt.to_string()),
        ("hs-due", "99".to_owned()),
        ("hs-enqueued", "7".to_owned()),
        ("hs-cause", "retry".to_owned()),
        ("hs-first-failure", "8".to_owned()),
        ("hs-of-tomorrow", "kept".to_owned()),
    ]
}

fn borrowed<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a [u8])> {
    headers
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect()
}

fn at(partition: i32, offset: i64) -> Coordinates {
    Coordinates {
        partition,
        offset: Offset(offset),
    }
}

fn info(reason: Reason) -> DeadLetterInfo {
    DeadLetterInfo {
        reason,
        status: Some(400),
        error: "status 400".to_owned(),
        first_failure: EpochMs(10),
        last_failure: EpochMs(20),
    }
}

fn letter() -> DeadLetter {
    DeadLetter {
        at: at(3, 1042),
        subscriber: "acme".to_owned(),
        subscription: "acme-orders".to_owned(),
        webhook_id: "msg_1".to_owned(),
        event_id: "e1".to_owned(),
        event_type: "order.created".to_owned(),
        attempts: 2,
        enqueued: Some(EpochMs(7)),
        info: info(Reason::PermanentStatus),
    }
}

const NAMES: [&str; 16] = [
    header::VERSION,
    header::CLUSTER,
    FACT,
    "hs-reason",
    "hs-status",
    "hs-error",
    "hs-first-failure",
    "hs-last-failure",
    "hs-attempt",
    "hs-enqueued",
    "hs-at",
    "hs-letter-partition",
    "hs-letter-offset",
    "webhook-id",
    "hs-subscription",
    "hs-event-id",
];

proptest! {
    #[test]
    fn every_header_of_a_fact_with_every_kind_of_value_is_read_or_refused(
        name in 0..NAMES.len(), value in any_value(), key in any_value(), settles in any::<bool>(),
    ) {
        let headers = if settles {
            Settled::new(&letter(), Settlement::Replayed, EpochMs(5), "cluster-a").headers()
        } else {
            let mut headers = command_headers(3);
            headers.extend(info(Reason::Gone).headers());
            headers
        };
        let value = value.unwrap_or_default();
        let mut headers = borrowed(&headers);
        headers.push((NAMES[name], &value));
        match Fact::decode(at(0, 1), key.as_deref(), &headers) {
            Ok(fact) => drop(fact),
            Err(FactError::Newer(version)) => {
                prop_assert_eq!(NAMES[name], header::VERSION);
                prop_assert!(version > VERSION);
            }
            Err(error) => prop_assert!(error.to_string().len() < 1000, "{}", error),
        }
        drop(replay_headers(&headers, EpochMs(0)));
    }

    #[test]
    fn a_letter_survives_its_headers(
        reason in prop::sample::select(Reason::ALL.to_vec()),
        status in prop::option::of(100_u16..600),
        error in ".{0,200}",
        first in 0_i64..1 << 45,
        last in 0_i64..1 << 45,
        attempts in any::<u32>(),
    ) {
        let info = DeadLetterInfo {
            reason, status, error, first_failure: EpochMs(first), last_failure: EpochMs(last),
        };
        let mut headers = command_headers(attempts);
        headers.extend(info.headers());
        let decoded = Fact::decode(at(3, 1042), Some(b"acme"), &borrowed(&headers)).unwrap();
        prop_assert_eq!(decoded, Fact::DeadLettered(Box::new(DeadLetter { info, attempts, ..letter() })));
    }

    #[test]
    fn a_settling_fact_survives_its_headers(
        partition in 0..i32::MAX, offset in 0..i64::MAX, when in 0_i64..1 << 45, replayed: bool,
    ) {
        let how = if replayed { Settlement::Replayed } else { Settlement::Discarded };
        let of = DeadLetter { at: at(partition, offset), ..letter() };
        let new = Settled::new(&of, how, EpochMs(when), "cluster-a");
        let old = Settled { cluster: None, moment: None, ..new.clone() };
        for fact in [new, old] {
            let decoded = Fact::decode(at(partition, 5), Some(b"acme"), &borrowed(&fact.headers())).unwrap();
            prop_assert_eq!(decoded, Fact::Settled(fact));
        }
    }

    /// A partition of letters and facts, then the same partition as a mirror holds it: other offsets, and some
    /// records twice. In both, exactly those letters are settled that were settled.
    #[test]
    fn the_fold_agrees_with_a_list_of_letters_that_are_struck_out_also_on_a_mirror(
        steps in prop::collection::vec((0_usize..40, any::<bool>(), any::<bool>(), 1_i64..4), 0..120),
        shift in -3_i64..50,
        by_place: bool,
    ) {
        let mut log: Vec<(i64, Result<DeadLetter, Settled>, bool)> = Vec::new();
        let mut letters: Vec<(DeadLetter, Option<Settlement>)> = Vec::new();
        let mut offset = 0;
        for (pick, is_letter, replayed, gap) in steps {
            offset += gap;
            if is_letter || letters.is_empty() {
                // Few webhooks, so that each has several letters.
                let mut new = DeadLetter { at: at(3, offset), webhook_id: format!("msg_{}", pick % 3), ..letter() };
                new.info.last_failure = EpochMs(offset);
                letters.push((new.clone(), None));
                log.push((offset, Ok(new), replayed));
                continue;
            }
            let pick = pick % letters.len();
            let (of, state) = &mut letters[pick];
            let how = if replayed { Settlement::Replayed } else { Settlement::Discarded };
            state.get_or_insert(how);
            let mut fact = Settled::new(of, how, EpochMs(1), "cluster-a");
            if by_place {
                (fact.cluster, fact.moment) = (None, None);
            }
            log.push((offset, Err(fact), replayed));
        }
        let settled = |state: State| match state {
            State::Open => None,
            State::Settled(how, _) => Some(how),
        };
        let mut fold = OpenLetters::default();
        for (offset, record, _) in &log {
            if let Err(fact) = record {
                fold.settle(fact, at(3, *offset));
            }
        }
        for (letter, state) in &letters {
            prop_assert_eq!(settled(fold.state(letter)), *state);
        }

        let mut fold = OpenLetters::default();
        let mut mirrored: Vec<DeadLetter> = Vec::new();
        let mut next = shift.max(0);
        for (_, record, twice) in log {
            for _ in 0..=u8::from(twice) {
                match &record {
                    Ok(letter) => mirrored.push(DeadLetter { at: at(3, next), ..letter.clone() }),
                    Err(fact) => fold.settle(fact, at(3, next)),
                }
                next += 1;
            }
        }
        for letter in mirrored {
            let told = settled(fold.state(&letter));
            let (_, state) = letters.iter().find(|(one, _)| one.info == letter.info).unwrap();
            if by_place {
                // Such a fact settles no letter of another webhook.
                let of_it = letters.iter().filter(|(one, _)| one.webhook_id == letter.webhook_id);
                prop_assert!(told.is_none() || of_it.into_iter().any(|(_, state)| state.is_some()));
            } else {
                prop_assert_eq!(told, *state);
            }
        }
    }
}

#[test]
fn a_letter_that_came_after_the_fact_is_open() {
    let mut fold = OpenLetters::default();
    let fact = Settled::new(&letter(), Settlement::Replayed, EpochMs(30), "cluster-a");
    fold.settle(&fact, at(3, 1050));
    let state = |offset| {
        let letter = DeadLetter {
            at: at(3, offset),
            ..letter()
        };
        fold.state(&letter)
    };
    let replayed = State::Settled(Settlement::Replayed, EpochMs(30));
    assert_eq!(state(1042), replayed);
    assert_eq!(state(7), replayed, "as a mirror holds it");
    assert_eq!(state(1051), State::Open);
    let mut again = letter();
    again.info.last_failure = EpochMs(99);
    assert!(fold.is_open(&again), "dead-lettered again");
}

#[test]
fn a_replayed_command_is_the_letter_without_what_made_it_one() {
    let mut headers = command_headers(8);
    headers.extend(info(Reason::AttemptsExhausted).headers());
    let pairs = borrowed(&headers);
    let replayed: Vec<(&str, String)> = replay_headers(&pairs, EpochMs(77))
        .into_iter()
        .map(|(name, value)| (name, String::from_utf8(value.into_owned()).unwrap()))
        .collect();
    let expected = [
        ("webhook-id", "msg_1"),
        ("hs-subscription", "acme-orders"),
        ("hs-event-id", "e1"),
        ("hs-event-type", "order.created"),
        ("hs-enqueued", "7"),
        ("hs-of-tomorrow", "kept"),
        ("hs-attempt", "0"),
        ("hs-cause", "replay"),
        ("hs-replayed", "77"),
    ];
    assert_eq!(
        replayed,
        expected.map(|(name, value)| (name, value.to_owned()))
    );
}

#[test]
fn an_error_is_cut_at_a_characters_border() {
    let long = DeadLetterInfo {
        error: "é".repeat(1000),
        ..info(Reason::Gone)
    };
    let headers = long.headers();
    let (_, error) = headers
        .iter()
        .find(|(name, _)| *name == "hs-error")
        .unwrap();
    assert_eq!(error.len(), MAX_ERROR_BYTES);
    assert_eq!(
        cut(&format!("x{}", "é".repeat(1000))).len(),
        MAX_ERROR_BYTES - 1
    );
}

#[test]
fn a_foreign_record_is_refused_by_the_header_that_it_lacks() {
    assert_eq!(
        Fact::decode(at(0, 0), None, &[]),
        Err(FactError::Missing(FACT))
    );
    let unknown = Fact::decode(at(0, 0), None, &[(FACT, b"resurrected")]);
    assert_eq!(
        unknown,
        Err(FactError::Value {
            header: FACT,
            value: "resurrected".to_owned()
        })
    );
    let mut headers = command_headers(1);
    headers.extend(info(Reason::Gone).headers());
    assert_eq!(
        Fact::decode(at(0, 0), None, &borrowed(&headers)),
        Err(FactError::Key)
    );
}

#[test]
fn every_part_of_a_filter_must_match() {
    let letter = letter();
    assert!(
        Filter::default().matches(&letter),
        "an empty filter takes every letter"
    );
    let all = Filter {
        subscriber: Some("acme".to_owned()),
        subscription: Some("acme-orders".to_owned()),
        event_type: TypePattern::parse("order.*").ok(),
        reason: Some(Reason::PermanentStatus),
        status: Some(400),
        since: Some(EpochMs(20)),
        until: Some(EpochMs(21)),
        ..Filter::default()
    };
    assert!(all.matches(&letter));
    let misses = [
        Filter {
            subscriber: Some("globex".to_owned()),
            ..all.clone()
        },
        Filter {
            subscription: Some("other".to_owned()),
            ..all.clone()
        },
        Filter {
            event_type: TypePattern::parse("order").ok(),
            ..all.clone()
        },
        Filter {
            reason: Some(Reason::Gone),
            ..all.clone()
        },
        Filter {
            status: Some(404),
            ..all.clone()
        },
        Filter {
            since: Some(EpochMs(21)),
            ..all.clone()
        },
        Filter {
            until: Some(EpochMs(20)),
            ..all
        },
    ];
    for miss in misses {
        assert!(!miss.matches(&letter), "{miss:?}");
    }
}

#[test]
fn a_letters_place_is_written_as_it_is_read() {
    assert_eq!("3:1042".parse(), Ok(at(3, 1042)));
    assert_eq!(at(3, 1042).to_string(), "3:1042");
    for text in ["3", "3:", ":1", "-1:2", "3:-1", "msg_1", "a:b"] {
        assert!(text.parse::<Coordinates>().is_err(), "{text}");
    }
}

#[test]
fn facts_keep_to_their_schemas() {
    let problems = |schema: &str, headers: &[(&'static str, String)]| {
        let schema = serde_json::from_str(schema).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let headers: HashMap<_, _> = headers.iter().cloned().collect();
        let headers = serde_json::to_value(headers).unwrap();
        validator
            .iter_errors(&headers)
            .map(|error| error.to_string())
            .collect::<Vec<_>>()
    };
    let letters = include_str!("../../../schemas/dead-letter.schema.json");
    let facts = include_str!("../../../schemas/fact.schema.json");
    for reason in Reason::ALL {
        let mut headers = command_headers(3);
        headers.extend(info(reason).headers());
        assert_eq!(
            problems(letters, &headers),
            Vec::<String>::new(),
            "{reason}"
        );
        assert_ne!(
            problems(facts, &headers),
            Vec::<String>::new(),
            "a letter settles nothing"
        );
    }
    for how in [Settlement::Replayed, Settlement::Discarded] {
        let mut fact = Settled::new(&letter(), how, EpochMs(5), "cluster-a");
        assert_eq!(problems(facts, &fact.headers()), Vec::<String>::new());
        (fact.cluster, fact.moment) = (None, None);
        assert_eq!(problems(facts, &fact.headers()), Vec::<String>::new());
    }
}

#[test]
fn reasons_are_the_contracts() {
    for reason in Reason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(reason));
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
    }
    assert!(
        "lost"
            .parse::<Reason>()
            .unwrap_err()
            .contains("permanent-status")
    );
}
