//! The plan of a replay: pace, limit, and what another cluster has replayed already.

use std::time::Duration;

use super::*;
use crate::model::dead_letter::{Coordinates, DeadLetter, Reason, Settled, Settlement};
use crate::model::subscription::{Decision, Fold, TopicRecord};
use crate::model::units::{EpochMs, Offset};

#[test]
fn a_paced_batch_covers_one_second() {
    let plan = |pace| Plan {
        pace,
        ..Plan::default()
    };
    assert_eq!(plan(None).batch(), MAX_BATCH);
    assert_eq!(plan(Some(Duration::from_millis(20))).batch(), 50);
    assert_eq!(plan(Some(Duration::from_secs(60))).batch(), 1);
    assert_eq!(plan(Some(Duration::from_nanos(1))).batch(), MAX_BATCH);
}

#[test]
fn only_recent_replays_on_another_cluster_are_repeated() {
    let fact = |cluster: Option<&str>, how, at| Settled {
        letter: Coordinates {
            partition: 0,
            offset: Offset(1),
        },
        cluster: cluster.map(str::to_owned),
        moment: None,
        how,
        at: EpochMs(at),
        webhook_id: "msg_1".to_owned(),
        subscription: "s".to_owned(),
    };
    let plan = Plan {
        again_since: Some(EpochMs(10)),
        ..Plan::default()
    };
    let (replayed, discarded) = (Settlement::Replayed, Settlement::Discarded);
    assert!(!plan.accepts(&fact(Some("a"), replayed, 10), "b"));
    for accepted in [
        fact(Some("a"), replayed, 9),
        fact(Some("a"), discarded, 10),
        fact(Some("b"), replayed, 10),
        fact(None, replayed, 10),
    ] {
        assert!(plan.accepts(&accepted, "b"), "{accepted:?}");
    }
    let fact = fact(Some("a"), replayed, 10);
    assert!(Plan::default().accepts(&fact, "b"));
}

#[test]
fn a_limit_is_reached_by_that_many_dead_letters() {
    let plan = Plan {
        limit: Some(3),
        ..Plan::default()
    };
    assert!(!plan.is_reached(2) && plan.is_reached(3));
    assert!(
        !Plan::default().is_reached(u64::MAX),
        "without a limit it is never reached"
    );
}

fn sample() -> DeadLetter {
    DeadLetter {
        at: Coordinates {
            partition: 0,
            offset: Offset(1),
        },
        subscriber: String::new(),
        subscription: String::new(),
        webhook_id: "msg_1".to_owned(),
        event_id: "e1".to_owned(),
        event_type: "order.created".to_owned(),
        attempts: 1,
        enqueued: None,
        info: crate::model::dead_letter::DeadLetterInfo {
            reason: Reason::Gone,
            status: Some(410),
            error: String::new(),
            first_failure: EpochMs(1),
            last_failure: EpochMs(1),
        },
    }
}

#[test]
fn only_what_its_subscription_takes_is_replayed() {
    let letter = |subscription: &str, subscriber: &str| DeadLetter {
        subscription: subscription.to_owned(),
        subscriber: subscriber.to_owned(),
        ..sample()
    };
    let mut fold = Fold::default();
    let put = |fold: &mut Fold, key: &str, value: &[u8]| {
        fold.take(&TopicRecord {
            key: Some(key.as_bytes()),
            value: Some(value),
            ..TopicRecord::default()
        });
    };
    for (id, state) in [
        ("on", "active"),
        ("wait", "paused"),
        ("off", "disabled"),
        ("gone", "active"),
    ] {
        let value = serde_json::json!({
            "id": id, "subscriber": "acme", "url": "https://a.example/", "events": ["**"], "state": state
        });
        put(&mut fold, id, value.to_string().as_bytes());
    }
    let gone = Decision::gone(fold.get("gone").unwrap(), EpochMs(1)).to_json();
    put(&mut fold, "disabled/gone", &gone);
    put(&mut fold, "odd", b"{}");
    let why = |id: &str, subscriber: &str| Why::of(&letter(id, subscriber), &fold);
    assert_eq!(why("on", "acme"), None);
    assert_eq!(why("wait", "acme"), None, "its commands wait");
    assert_eq!(why("odd", "acme"), None, "its commands wait");
    assert_eq!(why("off", "acme"), Some(Why::Disabled));
    assert_eq!(why("gone", "acme"), Some(Why::Gone));
    assert_eq!(why("none", "acme"), Some(Why::Missing));
    assert_eq!(why("on", "globex"), Some(Why::OtherSubscriber));
}
