//! The fold: what is in force, who decided it, and that no decision outlives what it was made on.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::subscription::filter::Matcher;

mod verification;

fn record(id: &str, more: Value) -> Vec<u8> {
    let mut record = json!({
        "id": id, "subscriber": "acme", "url": "https://acme.example/hooks", "events": ["order.*"]
    });
    for (name, value) in more.as_object().unwrap() {
        record[name] = value.clone();
    }
    record.to_string().into_bytes()
}

fn at<'a>(key: &'a str, value: Option<&'a [u8]>, ms: i64) -> TopicRecord<'a> {
    TopicRecord {
        key: Some(key.as_bytes()),
        value,
        applied: None,
        partition: Some(0),
        timestamp: Some(EpochMs(ms)),
    }
}

/// A topic that is followed, and can be read again from its start, compacted or not.
#[derive(Default)]
struct Topic {
    fold: Fold,
    log: Vec<(String, Option<Vec<u8>>, i64)>,
}

impl Topic {
    fn put(&mut self, key: &str, value: Option<Vec<u8>>) -> Change {
        let ms = self.log.len() as i64;
        let change = self.fold.take(&at(key, value.as_deref(), ms));
        self.log.push((key.to_owned(), value, ms));
        change
    }

    fn apply(&mut self, more: Value) -> Change {
        self.put("a", Some(record("a", more)))
    }

    fn delete(&mut self) {
        self.put("a", None);
    }

    fn decide(&mut self, by: Decider, decision: &Decision) {
        self.put(&by.key("a"), Some(decision.to_json()));
    }

    fn operator(&mut self, state: State) {
        let now = EpochMs(self.log.len() as i64);
        let decision = Decision::by_operator(&self.now(), state, now);
        self.decide(Decider::Operator, &decision);
    }

    fn now(&self) -> Arc<Subscription> {
        Arc::clone(self.fold.get("a").unwrap())
    }

    fn gone(&self) -> Decision {
        Decision::gone(&self.now(), EpochMs(self.log.len() as i64))
    }

    fn state(&self) -> State {
        self.now().state
    }

    /// What a reader finds that starts now. Compaction keeps the last record of each key.
    fn read_again(&self, compacted: bool) -> Fold {
        let mut fold = Fold::default();
        for (place, (key, value, ms)) in self.log.iter().enumerate() {
            let is_last = self.log[place + 1..].iter().all(|(other, ..)| other != key);
            if !compacted || is_last {
                fold.take(&at(key, value.as_deref(), *ms));
            }
        }
        fold
    }

    /// What a reader finds that reads all records before it takes them.
    fn read_ahead(&self, kept: Kept) -> Fold {
        let all = self.log.iter();
        let all = all.map(|(key, value, ms)| at(key, value.as_deref(), *ms).read(kept, false));
        let all: Vec<ReadRecord<'_>> = all.collect();
        let mut fold = Fold::default();
        for one in all {
            fold.take_read(one);
        }
        fold
    }
}

#[test]
fn a_410_disables_the_record_that_it_was_decided_on() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    let gone = topic.gone();
    topic.decide(Decider::Hookstream, &gone);
    assert_eq!(topic.state(), State::Disabled);
    let decided = topic.fold.decided_by("a").unwrap().0;
    assert_eq!(decided, Decider::Hookstream);
    let again = topic.read_again(true);
    assert_eq!(again.get("a").unwrap().state, State::Disabled);
}

#[test]
fn a_410_decided_on_an_older_record_changes_nothing() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    let gone = topic.gone();
    topic.apply(json!({"url": "https://acme.example/new"}));
    topic.decide(Decider::Hookstream, &gone);
    let now = topic.now();
    assert_eq!(
        (now.state, now.url.to_url().path()),
        (State::Active, "/new")
    );
}

#[test]
fn a_410_decided_before_a_pause_or_a_resume_changes_nothing() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    let gone = topic.gone();
    topic.operator(State::Paused);
    topic.decide(Decider::Hookstream, &gone);
    assert_eq!(topic.state(), State::Paused);
    topic.operator(State::Active);
    assert_eq!(topic.state(), State::Active);
    topic.decide(Decider::Hookstream, &gone);
    assert_eq!(topic.state(), State::Active);
    // But the resumed subscription can be disabled in its turn.
    let gone = topic.gone();
    topic.decide(Decider::Hookstream, &gone);
    assert_eq!(topic.state(), State::Disabled);
    topic.operator(State::Active);
    assert_eq!(topic.state(), State::Active);
}

#[test]
fn a_changed_record_is_in_the_state_that_it_says_and_an_unchanged_one_stays_as_decided() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    topic.operator(State::Paused);
    topic.apply(json!({}));
    assert_eq!(topic.state(), State::Paused, "the same bytes again");
    topic.apply(json!({"max_in_flight": 3}));
    assert_eq!(topic.state(), State::Active, "other bytes");
    topic.apply(json!({"state": "paused"}));
    assert_eq!(topic.state(), State::Paused, "as applied");
    assert!(topic.fold.decided_by("a").is_none());
    topic.operator(State::Active);
    assert_eq!(topic.state(), State::Active);
    topic.apply(json!({"state": "disabled"}));
    assert_eq!(topic.state(), State::Disabled);
}

/// Delivery makes nothing anew for a subscription that is the same.
#[test]
fn what_is_written_again_stays_the_same() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    topic.operator(State::Paused);
    let before = topic.now();
    topic.apply(json!({}));
    let decision = topic.log[1].1.clone();
    topic.put("state/a", decision);
    assert!(Arc::ptr_eq(&before, &topic.now()));
    // Decided on the record alone, without the pause.
    let gone = Decision {
        version: before.source.applied.clone(),
        ..topic.gone()
    };
    topic.decide(Decider::Hookstream, &gone);
    assert!(Arc::ptr_eq(&before, &topic.now()));
    topic.apply(json!({"max_in_flight": 3}));
    assert!(!Arc::ptr_eq(&before, &topic.now()));
}

#[test]
fn the_header_makes_the_same_document_another_version() {
    let mut fold = Fold::default();
    let value = record("a", json!({}));
    let with = |applied: &'static str| TopicRecord {
        applied: Some(applied.as_bytes()),
        ..at("a", Some(&value), 1)
    };
    fold.take(&with("1"));
    let gone = Decision::gone(fold.get("a").unwrap(), EpochMs(2)).to_json();
    fold.take(&at("disabled/a", Some(&gone), 2));
    assert_eq!(fold.get("a").unwrap().state, State::Disabled);
    fold.take(&with("2"));
    assert_eq!(fold.get("a").unwrap().state, State::Active);
}

#[test]
fn the_time_of_a_resume_is_known_whoever_ended_the_pause() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    assert_eq!(topic.now().resumed_at(), None);
    topic.operator(State::Paused);
    assert_eq!(topic.now().resumed_at(), None);
    topic.operator(State::Active);
    assert_eq!(topic.now().resumed_at(), Some(EpochMs(2)));
    topic.apply(json!({"max_in_flight": 3}));
    assert_eq!(
        topic.now().resumed_at(),
        Some(EpochMs(2)),
        "it outlives an apply"
    );
    topic.operator(State::Paused);
    topic.apply(json!({"max_in_flight": 4}));
    assert_eq!(
        topic.now().resumed_at(),
        Some(EpochMs(5)),
        "the apply ended the pause"
    );
    let again = topic.read_again(true);
    assert_eq!(again.get("a").unwrap().resumed_at(), Some(EpochMs(5)));
    topic.apply(json!({"state": "paused"}));
    topic.apply(json!({"state": "active"}));
    assert_eq!(topic.now().resumed_at(), Some(EpochMs(7)));
}

#[test]
fn a_tombstone_ends_the_decisions_too() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    topic.operator(State::Paused);
    topic.delete();
    assert!(topic.fold.get("a").is_none());
    assert!(topic.fold.decisions("a").is_empty());
    topic.apply(json!({}));
    assert_eq!(topic.state(), State::Active);
    let again = topic.read_again(false);
    assert_eq!(again.get("a").unwrap().state, State::Active);
}

#[test]
fn an_invalid_record_leaves_the_previous_one_in_force() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    let change = topic.put("a", Some(b"{}".to_vec()));
    assert!(
        matches!(change, Change::Refused { in_force: true, .. }),
        "{change:?}"
    );
    assert_eq!(topic.state(), State::Active);
    assert!(!topic.fold.is_unknown("a"));
    // After a restart, compaction has removed the valid one.
    let mut again = topic.read_again(true);
    assert!(again.get("a").is_none() && again.is_unknown("a"));
    let valid = record("a", json!({}));
    again.take(&at("a", Some(&valid), 9));
    assert!(again.get("a").is_some() && !again.is_unknown("a"));
    again.take(&at("a", None, 10));
    assert!(!again.is_unknown("a"));
}

#[test]
fn keys_that_are_no_ids_take_no_memory() {
    let mut fold = Fold::default();
    let long = "x".repeat(201);
    for key in [
        b"\xff\xfe".as_slice(),
        b"",
        b"a b",
        b"state/",
        b"state/a/b",
        b"disabled/\xff",
        long.as_bytes(),
    ] {
        for value in [b"{}".as_slice(), b"", b"\xff", b"null"] {
            let change = fold.take(&TopicRecord {
                key: Some(key),
                value: Some(value),
                ..TopicRecord::default()
            });
            assert!(
                matches!(
                    change,
                    Change::Refused {
                        in_force: false,
                        ..
                    }
                ),
                "{key:?}"
            );
        }
        fold.take(&TopicRecord {
            key: Some(key),
            ..TopicRecord::default()
        });
    }
    fold.take(&TopicRecord::default());
    // Without a key, even a valid document is of no subscription.
    let document =
        json!({"id": "a", "subscriber": "a", "events": ["**"], "url": "https://a.example/"});
    let change = fold.take(&TopicRecord {
        value: Some(document.to_string().as_bytes()),
        ..TopicRecord::default()
    });
    assert!(matches!(change, Change::Refused { .. }), "{change:?}");
    assert!(fold.applied.is_empty() && fold.side_records.is_empty());
}

#[test]
fn the_subscriber_changes_only_with_a_new_subscription() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    let change = topic.apply(json!({"subscriber": "globex"}));
    let Change::Refused {
        error,
        in_force: true,
        ..
    } = change
    else {
        panic!("{change:?}");
    };
    let text = error.to_string();
    assert!(
        text.contains("acme") && text.contains("globex") && text.contains("new id"),
        "{text}"
    );
    assert_eq!(&*topic.now().subscriber, "acme");
    topic.delete();
    topic.apply(json!({"subscriber": "globex"}));
    assert_eq!(&*topic.now().subscriber, "globex");
}

#[test]
fn a_decision_that_cannot_be_read_makes_the_subscription_wait() {
    let mut topic = Topic::default();
    topic.apply(json!({}));
    topic.operator(State::Paused);
    topic.put("state/a", Some(b"later version".to_vec()));
    assert_eq!(
        topic.state(),
        State::Paused,
        "the previous one stays in force"
    );
    let mut again = topic.read_again(true);
    assert_eq!(again.get("a").unwrap().state, State::Paused);
    let resumed = Decision::by_operator(again.get("a").unwrap(), State::Active, EpochMs(9));
    again.take(&at("state/a", Some(&resumed.to_json()), 9));
    assert_eq!(again.get("a").unwrap().state, State::Active);
    let other = Decision {
        subscription: "b".into(),
        ..resumed
    };
    let change = again.take(&at("state/a", Some(&other.to_json()), 10));
    assert!(
        matches!(change, Change::Refused { in_force: true, .. }),
        "{change:?}"
    );
}

#[test]
fn of_records_in_two_partitions_the_later_one_counts() {
    let (old, new) = (
        record("a", json!({})),
        record("a", json!({"max_in_flight": 3})),
    );
    let old = at("a", Some(&old), 1);
    let new = TopicRecord {
        partition: Some(1),
        ..at("a", Some(&new), 2)
    };
    for order in [[&old, &new], [&new, &old]] {
        let mut fold = Fold::default();
        for one in order {
            fold.take(one);
        }
        let found = fold.get("a").unwrap();
        assert_eq!((found.max_in_flight, found.source.partition), (3, Some(1)));
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    /// Applies a document with this number.
    Apply(u8),
    Operator(State),
    /// A request is sent, whose response will be 410.
    Send,
    /// A 410 for one of the requests arrives.
    Gone(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..3_u8).prop_map(Action::Apply),
        prop_oneof![Just(State::Active), Just(State::Paused)].prop_map(Action::Operator),
        Just(Action::Send),
        (0..8_usize).prop_map(Action::Gone),
    ]
}

proptest! {
    /// A naive model: an apply of a new version and a decision of an operator are generations, and a 410 counts only in
    /// its own generation.
    #[test]
    fn whatever_the_order_nothing_newer_is_disabled_or_overwritten(actions in proptest::collection::vec(action(), 0..40)) {
        let mut topic = Topic::default();
        let mut applied = 0;
        let mut generation = 0;
        let mut decided = State::Active;
        let mut requests = Vec::new();
        topic.put("a", Some(record("a", json!({"max_in_flight": 1}))));
        let mut document = 0;
        for action in actions {
            match action {
                Action::Apply(other) if other == document => {
                    topic.put("a", topic.log.iter().rfind(|(key, ..)| key == "a").unwrap().1.clone());
                }
                Action::Apply(other) => {
                    // As the command line does: each of its records is distinct.
                    (document, applied, generation, decided) = (other, applied + 1, generation + 1, State::Active);
                    topic.apply(json!({"max_in_flight": other + 1, "headers": {"x-n": applied.to_string()}}));
                }
                Action::Operator(state) => {
                    topic.operator(state);
                    (generation, decided) = (generation + 1, state);
                }
                Action::Send => requests.push((generation, topic.gone(), decided == State::Active)),
                Action::Gone(which) if which < requests.len() => {
                    let (of, decision, was_sent) = requests[which].clone();
                    if was_sent {
                        topic.decide(Decider::Hookstream, &decision);
                        if of == generation {
                            decided = State::Disabled;
                        } else if decided == State::Disabled {
                            // The record of a 410 is replaced by an older one: the next attempt decides again.
                            decided = State::Active;
                        }
                    }
                }
                Action::Gone(_) => {}
            }
            let now = topic.now();
            prop_assert_eq!(now.state, decided);
            prop_assert_eq!(now.max_in_flight, u32::from(document) + 1);
            let again = topic.read_again(true);
            prop_assert_eq!(again.get("a").unwrap().state, decided);
            for kept in [Kept::Whole, Kept::ForLookups] {
                let ahead = topic.read_ahead(kept);
                prop_assert_eq!(format!("{:?}", ahead.get("a")), format!("{:?}", Some(&now)));
            }
        }
    }
}

#[test]
fn two_ids_with_one_hash_are_not_both_in_force() {
    // Known to collide.
    let (one, other) = ("8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ");
    let mut topic = Topic::default();
    topic.put(one, Some(record(one, json!({}))));
    let Change::Refused {
        error, in_force, ..
    } = topic.put(other, Some(record(other, json!({}))))
    else {
        panic!("it is refused");
    };
    assert!(!in_force && error.to_string().contains(one), "{error}");
    assert!(topic.fold.get(other).is_none() && topic.fold.is_unknown(other));
    // The first one may change, and makes room when it is deleted.
    let changed = topic.put(one, Some(record(one, json!({"events": ["a"]}))));
    assert!(matches!(changed, Change::Updated(_)), "{changed:?}");
    topic.put(one, None);
    let applied = topic.put(other, Some(record(other, json!({}))));
    assert!(matches!(applied, Change::Updated(_)), "{applied:?}");
}

#[test]
fn for_lookups_all_but_the_filter_is_kept() {
    let document = record(
        "a",
        json!({"filter": {"data.x": ["y"]}, "state": "paused", "rate_limit": {"per_second": 5}}),
    );
    let one = at("a", Some(&document), 1);
    let (mut whole, mut lean) = (Fold::default(), Fold::default());
    whole.take_read(one.read(Kept::Whole, false));
    lean.take_read(one.read(Kept::ForLookups, false));
    let (whole, mut lean) = (whole.get("a").unwrap(), (**lean.get("a").unwrap()).clone());
    assert_eq!(
        (whole.filter.conditions.len(), lean.filter.conditions.len()),
        (1, 0)
    );
    lean.filter = whole.filter.clone();
    assert_eq!(format!("{lean:?}"), format!("{whole:?}"));
}

#[test]
fn for_matching_the_url_is_kept_only_if_the_endpoint_must_consent_and_no_secrets_are() {
    for (consents, verify) in [(false, false), (true, false), (false, true)] {
        let document = record(
            "a",
            json!({
                "filter": {"data.x": ["y"]}, "secrets": ["env:KEY"], "timeout": "5s",
                "format": "cloudevents", "verify": consents,
            }),
        );
        let one = at("a", Some(&document), 1);
        let (mut whole, mut lean) = (Fold::new(verify), Fold::new(verify));
        whole.take_read(one.read(Kept::Whole, verify));
        lean.take_read(one.read(Kept::ForMatching, verify));
        let (whole, mut lean) = (whole.get("a").unwrap(), (**lean.get("a").unwrap()).clone());
        assert!(lean.secrets.is_empty() && lean.overrides.timeout.is_none());
        assert_eq!(lean.url.as_str().is_empty(), !consents && !verify);
        lean.secrets = whole.secrets.clone();
        lean.overrides = whole.overrides.clone();
        lean.url = whole.url.clone();
        assert_eq!(format!("{lean:?}"), format!("{whole:?}"));
    }
}

/// Every replica holds all of them in memory.
#[test]
fn a_subscription_and_a_condition_are_small() {
    assert_eq!(size_of::<Subscription>(), 200);
    assert_eq!(size_of::<Matcher>(), 24);
}

#[test]
fn subscriptions_share_their_patterns_and_paths() {
    let mut fold = Fold::default();
    let filter = json!({"filter": {"data.x": ["y"]}});
    for id in ["a", "b"] {
        fold.take(&at(id, Some(&record(id, filter.clone())), 1));
    }
    let [a, b] = ["a", "b"].map(|id| Arc::clone(fold.get(id).unwrap()));
    assert!(Arc::ptr_eq(&a.events, &b.events));
    let [a, b] = [&a, &b].map(|one| &one.filter.conditions[0].path);
    assert!(Arc::ptr_eq(a, b));
}
