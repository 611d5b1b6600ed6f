//! The shells of fan-out, deliver and release run unchanged on another outside than Kafka, hyper and threads: in virtual
//! time, on one thread, and each time alike.

// A test that cannot go on should stop where it stands, and the lint on reachability looks at libraries.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hookstream::config::{Layers, Machine, Settings, Source};
use hookstream::delivery;
use hookstream::delivery::metrics::DeliveryMetrics;
use hookstream::edge::clock;
use hookstream::edge::kafka::status_cache::StatusCache;
use hookstream::edge::kafka::subscription_cache::SubscriptionCache;
use hookstream::edge::otlp::Tracer;
use hookstream::edge::port::Port;
use hookstream::edge::port::records::TopicPartition;
use hookstream::fanout;
use hookstream::fanout::metrics::FanoutMetrics;
use hookstream::model::subscription::TopicRecord;
use hookstream::model::units::EpochMs;
use hookstream::retry::metrics::ReleaseMetrics;
use hookstream::retry::release;
use hookstream::runtime::context::{Process, RoleContext};
use hookstream::runtime::hold::Holds;
use hookstream::runtime::metrics::{Metrics, Registry};
use memory::{Memory, RENEWAL, RESPONSE, Received, Unwritten};

mod memory;

fn settings() -> Settings {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "memory:1");
    let machine = Machine {
        host_name: "one".to_owned(),
        cores: 2,
    };
    Settings::check(&layers, &machine).unwrap()
}

fn process(registry: &Registry) -> Process {
    let subscription = serde_json::json!({
        "id": "s", "subscriber": "acme", "events": ["**"], "url": "https://example.com/in",
        "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    });
    let table = SubscriptionCache::default();
    let applied = table.apply(&TopicRecord {
        key: Some(b"s"),
        value: Some(subscription.to_string().as_bytes()),
        applied: None,
        partition: None,
        timestamp: None,
    });
    assert!(applied.is_ok(), "{applied:?}");
    Process {
        settings: Arc::new(settings()),
        metrics: Metrics::register(registry),
        table: Arc::new(table),
        statuses: Arc::new(StatusCache::without_reader()),
        tracer: Tracer::off(),
        health: Arc::default(),
        stop: Arc::default(),
        holds: Holds::default(),
        subscriptions_loaded: Arc::new(AtomicBool::new(true)),
        cluster: Arc::default(),
    }
}

/// Runs the three roles until `done`, and then until they have ended. Fan-out is given up again and again, each time after
/// the next of `lives`. Returns the copies of commands that delivery has recognised.
async fn run(memory: &Memory, lives: &[Duration], done: impl Fn() -> bool) -> u64 {
    let registry = Registry::new();
    let process = process(&registry);
    let stop = Arc::clone(&process.stop);
    let of = |role| RoleContext::new(&process, role, role != "release");
    let (fanout, deliver, release) = (of("fanout"), of("deliver"), of("release"));
    let metrics = (
        FanoutMetrics::register(&registry),
        DeliveryMetrics::register(&registry),
        ReleaseMetrics::register(&registry),
    );
    let fanout = async {
        for life in lives {
            let given_up = fanout::run(memory, &fanout, &metrics.0);
            if let Ok(ended) = tokio::time::timeout(*life, given_up).await {
                return ended;
            }
        }
        fanout::run(memory, &fanout, &metrics.0).await
    };
    let roles = async {
        tokio::join!(
            fanout,
            delivery::run(memory, &deliver, &metrics.1),
            release::run(memory, &release, &metrics.2),
        )
    };
    let watch = async {
        while !done() {
            memory.sleep(Duration::from_millis(10)).await;
        }
        // The last commits.
        memory.sleep(Duration::from_secs(2)).await;
        stop.request();
    };
    let all = Box::pin(async { tokio::join!(roles, watch) });
    let ended = tokio::time::timeout(Duration::from_secs(3600), all).await;
    let ((fanout, deliver, release), ()) = ended.expect("an hour of virtual time");
    fanout.unwrap();
    deliver.unwrap();
    release.unwrap();
    metrics.1.duplicate_commands().get()
}

/// Plays `world` in virtual time.
fn play(world: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let world = async {
        clock::simulated::begin(EpochMs(1_800_000_000_000));
        world.await;
    };
    tokio::task::LocalSet::new().block_on(&runtime, world);
}

fn publish(memory: &Memory, events: usize) {
    for number in 0..events {
        let event = serde_json::json!({
            "id": format!("e{number}"), "type": "order.created", "time": "2027-01-15T08:00:00Z",
            "subject": "o1", "data": {"number": number},
        });
        let at = TopicPartition {
            topic: settings().topics.events[0].as_str().into(),
            partition: 0,
        };
        let record = Unwritten {
            value: Some(event.to_string().into_bytes()),
            ..Unwritten::default()
        };
        memory.append(at, record);
    }
}

fn history(statuses: &[u16], events: usize) -> (Vec<Received>, Vec<(i64, i64)>) {
    let (received, progress, copies) = history_with(statuses, events, &[]);
    assert_eq!(copies, 0, "nothing is written again");
    (received, progress)
}

/// What was received, the progress of the groups, and the copies of commands.
fn history_with(
    statuses: &[u16],
    events: usize,
    lives: &[Duration],
) -> (Vec<Received>, Vec<(i64, i64)>, u64) {
    let copies = Cell::new(0);
    let expected = events + statuses.iter().filter(|status| **status != 200).count();
    let memory = Memory::responding(statuses);
    play(async {
        publish(&memory, events);
        let done = || memory.received().len() >= expected;
        copies.set(Box::pin(run(&memory, lives, done)).await);
    });
    let groups = ["fanout", "deliver", "release"];
    let prefix = settings().group_prefix;
    let progress = groups.iter();
    let progress = progress.flat_map(|group| memory.progress(&format!("{prefix}{group}")));
    (memory.received(), progress.collect(), copies.get())
}

#[test]
fn an_event_passes_all_three_roles_in_virtual_time() {
    let (received, progress) = history(&[500], 1);
    let [first, second] = received.as_slice() else {
        panic!("{received:?}");
    };
    assert_eq!((&*first.attempt, &*second.attempt), ("1", "2"));
    assert_eq!(first.webhook_id, second.webhook_id, "Stable identity");
    assert_eq!(first.body, second.body, "Stable identity");
    let waited = second.at.since(first.at);
    let due = Duration::from_secs(4)..Duration::from_secs(11);
    assert!(due.contains(&waited), "Never early: {waited:?}");
    for (position, end) in progress {
        assert_eq!(position, end, "all work is committed");
    }
}

#[test]
fn two_runs_have_the_same_history() {
    let statuses = [500, 200, 503, 500, 200, 429, 500];
    assert_eq!(history(&statuses, 40), history(&statuses, 40));
}

#[test]
fn a_fan_out_that_is_given_up_and_begun_again_sends_no_webhook_twice() {
    let lives: Vec<_> = (0..30)
        .map(|life| Duration::from_millis(7 + life * 11))
        .collect();
    let (received, progress, copies) = history_with(&[], 300, &lives);
    let webhooks: BTreeSet<_> = received.iter().map(|one| &one.webhook_id).collect();
    assert_eq!((received.len(), webhooks.len()), (300, 300));
    assert!(copies > 0, "it has written some of them again");
    for (position, end) in progress {
        assert_eq!(position, end, "all work is committed");
    }
}

/// Others send what it holds, and learn nothing of what it sends.
#[test]
fn an_evicted_member_sends_nothing_more_however_late_its_client_learns_of_it() {
    const EVENTS: usize = 400;
    let memory = Memory::responding(&[500; 5]);
    play(async {
        publish(&memory, EVENTS);
        memory.evict(&format!("{}deliver", settings().group_prefix));
        let is_over = || {
            let evicted = memory.evicted();
            evicted.is_some_and(|at| clock::now().since(at) > RENEWAL * 2)
        };
        Box::pin(run(&memory, &[], is_over)).await;
    });
    let evicted = memory.evicted().unwrap();
    let received = memory.received();
    assert!(received.len() < EVENTS, "commands are left");
    // A request that was under way arrives.
    let last = received.last().unwrap().at;
    assert!(
        last.since(evicted) <= RESPONSE,
        "Owner only: sent {:?} after the eviction",
        last.since(evicted)
    );
}
