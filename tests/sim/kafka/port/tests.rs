//! The port on the simulated clients: copiers that read, write and commit in transactions, while requests and brokers fail.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hookstream::config::{Layers, Machine, Settings, Source};
use hookstream::edge::port::failure::{BatchError, ErrorKind};
use hookstream::edge::port::records::{Commit, Headers as _, Isolation, Record, RecordView};
use hookstream::edge::port::task::KeepWaiting;
use hookstream::edge::port::{Log as _, Member as _, Polled, Producer as _, ProducerKind};
use hookstream::model::units::{Offset, Position};

use super::log::SimLog;
use super::member::SimMember;
use super::producer::SimProducer;
use super::{SimHeaders, client_name};
use crate::kafka::Tp;
use crate::kafka::cluster::{self, Cluster, TopicConfig};
use crate::kafka::net::Net;

const RECORDS: usize = 60;

fn settings(host: &str) -> Settings {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "simulated:1");
    let machine = Machine {
        host_name: host.to_owned(),
        cores: 2,
    };
    Settings::check(&layers, &machine).unwrap()
}

fn record<'a>(topic: &'a str, value: &'a [u8]) -> Record<'a, SimHeaders> {
    Record {
        topic,
        partition: None,
        key: Some(value),
        value: Some(value),
        headers: SimHeaders::with_capacity(1).and("from", Some(b"test")),
        tag: 0,
    }
}

async fn producer(net: &Net, settings: &Settings, purpose: &'static str) -> SimProducer {
    let keep_waiting: KeepWaiting = Arc::new(|| true);
    SimProducer::open(net, settings, &keep_waiting, purpose, ProducerKind::Writer)
        .await
        .unwrap()
}

async fn publish(net: &Net, settings: &Settings) {
    let mut producer = producer(net, settings, "publisher").await;
    for number in 0..RECORDS {
        let value = number.to_string();
        let sent = producer.send(record("in", value.as_bytes())).await;
        sent.unwrap();
    }
    producer.finish(&[], None).await.unwrap();
}

/// Copies `in` to `out`, a record in each transaction, until `done`.
async fn copy(net: Net, settings: Settings, done: Rc<Cell<bool>>) {
    let keep_waiting: KeepWaiting = Arc::new(|| true);
    let member = SimMember::join(&net, &settings, keep_waiting, "copier", "g", &["in"]);
    let mut producer = producer(&net, &settings, "copier").await;
    let mut owned: Vec<Tp> = Vec::new();
    while !done.get() {
        let polled = member.poll(Duration::from_millis(100)).await.unwrap();
        match polled {
            Polled::Assigned(committed) => {
                member.take(&committed).unwrap();
                owned.extend(committed.into_iter().map(|found| found.at));
            }
            Polled::Revoked { partitions, .. } => {
                member.give_up(&partitions).unwrap();
                owned.retain(|tp| !partitions.contains(tp));
            }
            Polled::Message(message) => {
                let at = Tp {
                    topic: Arc::from(message.topic()),
                    partition: message.partition(),
                };
                let commit = Commit {
                    at,
                    position: Offset(message.offset()).next(),
                    metadata: String::new(),
                };
                let value = message.payload().unwrap();
                let copied = copy_one(&member, &mut producer, value, commit).await;
                if let Err(error) = copied {
                    assert!(!matches!(error, BatchError::Failed(_)), "{error}");
                    producer.renew().await.unwrap();
                    member.rewind(&owned).await.unwrap();
                }
            }
            Polled::Gap(gap) => panic!("nothing was deleted: {gap:?}"),
            Polled::Idle => {}
        }
    }
    member.leave(Ok(())).await.unwrap();
}

async fn copy_one(
    member: &SimMember,
    producer: &mut SimProducer,
    value: &[u8],
    commit: Commit,
) -> Result<(), BatchError> {
    producer.send(record("out", value)).await?;
    let generation = member.generation();
    producer.finish(&[commit], generation.as_ref()).await
}

async fn copies(net: &Net, settings: &Settings) -> Vec<String> {
    let log = SimLog::open(net, settings, "out".to_owned(), "checker")
        .await
        .unwrap();
    let ends = log.stable_ends().await.unwrap();
    let mut seen = Vec::new();
    let visit = |view: &super::View| {
        let value = view.payload().unwrap_or_default();
        seen.push(String::from_utf8_lossy(value).into_owned());
    };
    log.read(Isolation::Committed, &ends, &|| false, visit)
        .await
        .unwrap();
    seen
}

/// A cluster with the topics `in` and `out`.
fn net(seed: u64) -> Net {
    let mut cluster = Cluster::new(cluster::Settings::default(), seed, 0);
    for topic in ["in", "out"] {
        let config = TopicConfig {
            partitions: 3,
            min_in_sync: 2,
            ..TopicConfig::default()
        };
        cluster.create_topic(topic, config).unwrap();
    }
    Net::new(cluster, seed, 0)
}

/// Returns the virtual time that it took, in ms.
async fn run(seed: u64) -> i64 {
    let net = net(seed);
    let settings = [settings("replica-0"), settings("replica-1")];
    publish(&net, &settings[0]).await;
    net.weather(|weather| {
        weather.lost = 100;
        weather.unanswered = 100;
        weather.slow = 100;
    });
    let done = Rc::new(Cell::new(false));
    let copiers = settings.clone().map(|settings| {
        let (net, done) = (net.clone(), Rc::clone(&done));
        tokio::task::spawn_local(copy(net, settings, done))
    });
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    net.with(|cluster, now| cluster.kill(now, 2));
    tokio::time::sleep(Duration::from_secs(12)).await;
    net.with(|cluster, now| cluster.start_broker(now, 2));
    let mut wanted: Vec<_> = (0..RECORDS).map(|number| number.to_string()).collect();
    wanted.sort();
    let mut seen = Vec::new();
    while net.now() < 600_000 && seen.len() < RECORDS {
        tokio::time::sleep(Duration::from_secs(1)).await;
        seen = copies(&net, &settings[0]).await;
    }
    seen.sort();
    assert_eq!(seen, wanted, "seed {seed}");
    done.set(true);
    for copier in copiers {
        copier.await.unwrap();
    }
    net.now()
}

/// A member is evicted, and its group is empty: it is told of that by its commit, before it hears that its partitions are
/// lost.
async fn evicted() {
    let (net, settings) = (net(1), settings("replica-0"));
    let keep_waiting: KeepWaiting = Arc::new(|| true);
    let member = SimMember::join(&net, &settings, keep_waiting, "copier", "g", &["in"]);
    let committed = loop {
        if let Polled::Assigned(committed) = member.poll(Duration::from_secs(1)).await.unwrap() {
            break committed;
        }
    };
    member.take(&committed).unwrap();
    let at = committed[0].at.clone();
    let commit = |position| {
        [Commit {
            at: at.clone(),
            position: Position(position),
            metadata: String::new(),
        }]
    };
    member.commit(&commit(1)).await.unwrap();
    let name: Arc<str> = Arc::from(client_name(&settings, "copier"));
    net.weather(|weather| {
        let all = (1..=3).map(|node| (Arc::clone(&name), node));
        weather.cut.extend(all);
    });
    tokio::time::sleep(member.session() * 3).await;
    net.weather(|weather| weather.cut.clear());
    let refused = member.commit(&commit(0)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::UnknownMember);
    let kept = net.with(|cluster, _| cluster.position("g", &at)).unwrap();
    assert_eq!(
        kept.unwrap().0,
        1,
        "the position of whoever came between stays"
    );
    let polled = member.poll(Duration::from_secs(1)).await.unwrap();
    let Polled::Revoked {
        partitions,
        lost: true,
    } = polled
    else {
        panic!("its partitions are lost");
    };
    member.give_up(&partitions).unwrap();
    loop {
        if let Polled::Assigned(again) = member.poll(Duration::from_secs(1)).await.unwrap() {
            member.take(&again).unwrap();
            break;
        }
    }
    member.commit(&commit(2)).await.unwrap();
}

#[test]
fn a_member_that_was_evicted_commits_nothing_into_its_empty_group() {
    in_virtual_time(evicted());
}

fn play(seed: u64) -> i64 {
    in_virtual_time(run(seed))
}

fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

#[test]
fn a_copier_in_transactions_copies_each_record_once_whatever_fails() {
    for seed in 0..20 {
        play(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(play(7), play(7));
}
