//! Tests of [`super::Cluster`]: what clients are told, and what holds in any run.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::kafka::Pending;
use crate::kafka::group::{Join, Subscription};
use crate::kafka::log::{Appended, Batch, Producer, Record, Source};
use crate::kafka::transaction::Stage;

fn tp(partition: i32) -> Tp {
    Tp {
        topic: Arc::from("t"),
        partition,
    }
}

fn cluster(settings: Settings, config: TopicConfig) -> Cluster {
    let mut cluster = Cluster::new(settings, 1, 0);
    cluster.create_topic("t", config).unwrap();
    cluster
}

fn quick() -> Settings {
    Settings {
        replication: (0, 0),
        markers: (1, 1),
        load: (0, 0),
        ..Settings::default()
    }
}

fn batch(producer: Option<(Producer, i32)>, value: &str, transactional: bool) -> Batch {
    let record = Record {
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
        timestamp: 0,
    };
    let source = producer.map(|(producer, sequence)| Source {
        producer,
        sequence,
        transactional,
    });
    Batch {
        source,
        records: vec![Arc::new(record)],
    }
}

fn leader(cluster: &Cluster, partition: i32) -> Node {
    cluster.describe("t").unwrap().leaders[usize::try_from(partition).unwrap()].unwrap()
}

fn now<T>(pending: Pending<T>) -> T {
    match pending {
        Pending::Now(value) => value,
        Pending::Later(_) => panic!("at once"),
    }
}

struct Writer {
    id: Arc<str>,
    at: Node,
    producer: Producer,
}

fn writer(cluster: &mut Cluster, time: Ms, id: &str) -> Writer {
    let id: Arc<str> = Arc::from(id);
    let at = cluster.coordinator(Kind::Transaction, &id).unwrap();
    let producer = cluster.init_producer(time, at, Some(&id), 5_000).unwrap();
    Writer { id, at, producer }
}

#[test]
fn only_the_leader_takes_records_and_a_zombie_does_not_append() {
    let mut cluster = cluster(quick(), TopicConfig::default());
    let node = leader(&cluster, 0);
    let other = cluster
        .running()
        .into_iter()
        .find(|other| *other != node)
        .unwrap();
    let wrong = cluster.append(0, other, &tp(0), batch(None, "a", false), None);
    assert_eq!(wrong, Err(Code::NotLeaderForPartition));
    let old = writer(&mut cluster, 0, "w");
    let early = batch(Some((old.producer, 0)), "a", true);
    let early = cluster.append(0, node, &tp(0), early, Some("w"));
    assert_eq!(early, Err(Code::InvalidTransactionalState), "not added yet");
    cluster
        .add_to_transaction(0, old.at, "w", old.producer, &[tp(0)])
        .unwrap();
    let first = batch(Some((old.producer, 0)), "a", true);
    now(cluster.append(0, node, &tp(0), first, Some("w")).unwrap());
    let busy = cluster.init_producer(0, old.at, Some(&old.id), 5_000);
    assert_eq!(busy, Err(Code::ConcurrentTransactions));
    cluster.advance(1);
    let new = writer(&mut cluster, 1, "w");
    assert!(new.producer.epoch > old.producer.epoch);
    let zombie = batch(Some((old.producer, 1)), "z", true);
    let zombie = cluster.append(1, node, &tp(0), zombie, Some("w"));
    assert_eq!(zombie, Err(Code::InvalidProducerEpoch));
    let bounds = cluster.bounds(&tp(0)).unwrap();
    assert_eq!(
        (bounds.end, bounds.stable),
        (2, 2),
        "a record and its abort"
    );
    assert!(
        cluster
            .fetch(node, &tp(0), 0, true, 1_000)
            .unwrap()
            .records
            .is_empty()
    );
}

#[test]
fn a_transaction_without_an_end_is_aborted_after_its_timeout() {
    let mut cluster = cluster(quick(), TopicConfig::default());
    let writer = writer(&mut cluster, 0, "w");
    let node = leader(&cluster, 0);
    cluster
        .add_to_transaction(0, writer.at, "w", writer.producer, &[tp(0)])
        .unwrap();
    let sent = batch(Some((writer.producer, 0)), "a", true);
    now(cluster.append(0, node, &tp(0), sent, Some("w")).unwrap());
    cluster.advance(9_999);
    assert_eq!(cluster.bounds(&tp(0)).unwrap().stable, 0);
    cluster.advance(10_001);
    assert_eq!(cluster.bounds(&tp(0)).unwrap().stable, 2);
    let late = cluster.end_transaction(10_001, writer.at, &writer.id, writer.producer, true);
    assert_eq!(late, Err(Code::InvalidProducerEpoch));
}

#[test]
fn too_few_replicas_refuse_and_the_last_one_keeps_what_was_acknowledged() {
    let config = TopicConfig {
        min_in_sync: 2,
        ..TopicConfig::default()
    };
    let mut cluster = cluster(quick(), config);
    let first = leader(&cluster, 0);
    now(cluster
        .append(0, first, &tp(0), batch(None, "a", false), None)
        .unwrap());
    cluster.stop(0, first);
    let second = leader(&cluster, 0);
    assert_ne!(second, first);
    now(cluster
        .append(0, second, &tp(0), batch(None, "b", false), None)
        .unwrap());
    cluster.stop(0, second);
    let third = leader(&cluster, 0);
    let few = cluster.append(0, third, &tp(0), batch(None, "c", false), None);
    assert_eq!(few, Err(Code::NotEnoughReplicas));
    assert_eq!(
        cluster
            .fetch(third, &tp(0), 0, true, 1_000)
            .unwrap()
            .records
            .len(),
        2
    );
    cluster.start_broker(0, first);
    cluster.advance(5_000);
    now(cluster
        .append(5_000, third, &tp(0), batch(None, "c", false), None)
        .unwrap());
}

#[test]
fn what_was_not_replicated_is_lost_with_the_leader_and_was_never_acknowledged() {
    let settings = Settings {
        replication: (50, 50),
        ..quick()
    };
    let mut cluster = cluster(settings, TopicConfig::default());
    let node = leader(&cluster, 0);
    let sent = cluster
        .append(0, node, &tp(0), batch(None, "a", false), None)
        .unwrap();
    let Pending::Later(token) = sent else {
        panic!("it is not replicated yet");
    };
    cluster.kill(10, node);
    cluster.advance(9_009);
    assert!(
        cluster.finished().is_empty(),
        "the controller has not noticed"
    );
    cluster.advance(9_010);
    let lost = Reply::Appended(Err(Code::NotLeaderForPartition));
    assert_eq!(cluster.finished(), [(token, lost)]);
    assert_eq!(cluster.bounds(&tp(0)).unwrap().end, 0);
}

#[test]
fn a_follower_that_dies_holds_acknowledgements_until_it_is_out_of_sync() {
    let settings = Settings {
        replication: (5, 5),
        ..quick()
    };
    let mut cluster = cluster(settings, TopicConfig::default());
    let node = leader(&cluster, 0);
    let other = cluster
        .running()
        .into_iter()
        .find(|other| *other != node)
        .unwrap();
    cluster.kill(0, other);
    cluster
        .append(0, node, &tp(0), batch(None, "a", false), None)
        .unwrap();
    cluster.advance(8_999);
    assert!(cluster.finished().is_empty());
    cluster.advance(9_000);
    assert_eq!(cluster.finished().len(), 1);
    assert_eq!(cluster.bounds(&tp(0)).unwrap().high, 1);
}

#[test]
fn a_commit_with_too_much_metadata_is_refused_alone() {
    let mut cluster = cluster(
        quick(),
        TopicConfig {
            partitions: 2,
            ..TopicConfig::default()
        },
    );
    let who = Membership {
        group: Arc::from("g"),
        member: Arc::from(""),
        generation: -1,
    };
    let at = cluster.coordinator(Kind::Group, "g").unwrap();
    let offset = |partition, length| Offset {
        tp: tp(partition),
        position: 5,
        metadata: Arc::from("x".repeat(length)),
    };
    let results = cluster
        .commit(0, at, &who, &[offset(0, 4_097), offset(1, 4_096)])
        .unwrap();
    assert_eq!(results, [Err(Code::OffsetMetadataTooLarge), Ok(())]);
    let found = cluster
        .committed(0, at, "g", &[tp(0), tp(1)], true)
        .unwrap();
    assert_eq!(found[0], Ok(None));
    assert_eq!(found[1].as_ref().unwrap().as_ref().unwrap().0, 5);
    cluster.delete_topic("t").unwrap();
    let found = cluster.committed(0, at, "g", &[tp(1)], true).unwrap();
    assert_eq!(found[0], Ok(None), "deleted with its topic");
}

#[test]
fn a_coordinator_that_has_moved_loads_and_members_keep_their_sessions() {
    let settings = Settings {
        load: (100, 100),
        ..quick()
    };
    let mut cluster = cluster(settings, TopicConfig::default());
    let group: Arc<str> = Arc::from("g");
    let at = cluster.coordinator(Kind::Group, "g").unwrap();
    let mut join = Join {
        member: Arc::from(""),
        instance: None,
        subscription: Subscription::default(),
        session: 6_000,
        rebalance: 6_000,
    };
    let (_, id) = cluster.join(0, at, &group, "m", join.clone()).unwrap_err();
    join.member = id.unwrap();
    cluster.join(0, at, &group, "m", join.clone()).unwrap();
    let who = Membership {
        group: Arc::clone(&group),
        member: Arc::clone(&join.member),
        generation: 1,
    };
    cluster.sync(0, at, &who, Some(Vec::new())).unwrap();
    cluster.kill(0, at);
    cluster.advance(9_000);
    let next = cluster.coordinator(Kind::Group, "g").unwrap();
    assert_eq!(
        cluster.heartbeat(9_050, next, &who),
        Err(Code::CoordinatorLoadInProgress)
    );
    assert_eq!(cluster.heartbeat(9_100, next, &who), Ok(()));
    cluster.advance(30_000);
    assert_eq!(
        cluster.heartbeat(30_000, next, &who),
        Err(Code::UnknownMemberId)
    );
}

/// What a random run did, to be compared with what readers see in the end.
#[derive(Default)]
struct Truth {
    acknowledged: Vec<(Tp, i64, String)>,
    waiting: BTreeMap<Token, (Tp, String, usize)>,
    /// Values by transaction, and how it ended.
    transactions: Vec<(Vec<String>, Option<bool>)>,
}

#[test]
fn acknowledged_records_stay_and_transactions_are_whole_whatever_fails() {
    for seed in 0..60 {
        run(seed);
    }
}

/// One producer after another writes in transactions while brokers die, start and hand over.
fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let config = TopicConfig {
        partitions: 3,
        min_in_sync: 2,
        ..TopicConfig::default()
    };
    let mut cluster = Cluster::new(Settings::default(), seed, 0);
    cluster.create_topic("t", config).unwrap();
    let (mut time, mut truth) = (0, Truth::default());
    let id: Arc<str> = Arc::from("w");
    let mut producer: Option<(Producer, BTreeMap<i32, i32>)> = None;
    for step in 0..200 {
        time += rng.i64(0..400);
        cluster.advance(time);
        truth.learn(&mut cluster);
        match rng.u8(0..12) {
            0 => cluster.kill(time, rng.i32(1..=3)),
            1 | 2 => cluster.start_broker(time, rng.i32(1..=3)),
            3 => cluster.move_leader(&tp(rng.i32(0..3))),
            4 => cluster.move_coordinator(time, Kind::Transaction, "w"),
            _ => step_of(
                &mut cluster,
                &mut rng,
                time,
                step,
                &id,
                &mut producer,
                &mut truth,
            ),
        }
    }
    for node in 1..=3 {
        cluster.start_broker(time, node);
    }
    time += 60_000;
    cluster.advance(time);
    truth.learn(&mut cluster);
    truth.check(&cluster, seed);
}

fn step_of(
    cluster: &mut Cluster,
    rng: &mut fastrand::Rng,
    time: Ms,
    step: usize,
    id: &Arc<str>,
    producer: &mut Option<(Producer, BTreeMap<i32, i32>)>,
    truth: &mut Truth,
) {
    let coordinator = cluster.coordinator(Kind::Transaction, id);
    let Some(at) = coordinator.ok().filter(|node| cluster.is_up(*node)) else {
        return;
    };
    let Some((who, sequences)) = producer else {
        if let Ok(new) = cluster.init_producer(time, at, Some(id), 5_000) {
            *producer = Some((new, BTreeMap::new()));
            truth.transactions.push((Vec::new(), None));
        }
        return;
    };
    let number = truth.transactions.len() - 1;
    if rng.u8(0..4) == 0 {
        let whole = !truth.waiting.values().any(|(_, _, of)| *of == number);
        let commit = whole && rng.bool();
        match cluster.end_transaction(time, at, id, *who, commit) {
            Ok(()) => truth.transactions[number].1 = Some(commit),
            Err(Code::InvalidTransactionalState) => return,
            Err(_) => {}
        }
        *producer = None;
        return;
    }
    let tp = tp(rng.i32(0..3));
    let node = cluster.describe("t").unwrap().leaders[usize::try_from(tp.partition).unwrap()];
    let Some(node) = node.filter(|node| cluster.is_up(*node)) else {
        return;
    };
    if cluster
        .add_to_transaction(time, at, id, *who, std::slice::from_ref(&tp))
        .is_err()
    {
        *producer = None;
        return;
    }
    let sequence = sequences.entry(tp.partition).or_default();
    let value = step.to_string();
    let sent = batch(Some((*who, *sequence)), &value, true);
    match cluster.append(time, node, &tp, sent, Some(id)) {
        Ok(Pending::Now(appended)) => truth.acknowledged(&tp, appended, value, number),
        Ok(Pending::Later(token)) => {
            truth.waiting.insert(token, (tp, value, number));
        }
        Err(Code::NotEnoughReplicas) => return,
        Err(_) => {
            *producer = None;
            return;
        }
    }
    *sequence += 1;
}

impl Truth {
    fn acknowledged(&mut self, tp: &Tp, appended: Appended, value: String, of: usize) {
        self.acknowledged
            .push((tp.clone(), appended.first, value.clone()));
        self.transactions[of].0.push(value);
    }

    fn learn(&mut self, cluster: &mut Cluster) {
        for (token, reply) in cluster.finished() {
            let Some((tp, value, of)) = self.waiting.remove(&token) else {
                continue;
            };
            if let Reply::Appended(Ok(appended)) = reply {
                self.acknowledged(&tp, appended, value, of);
            }
        }
    }

    fn check(&self, cluster: &Cluster, seed: u64) {
        assert_ne!(cluster.transaction_stage("w"), None);
        let stage = cluster.transaction_stage("w").unwrap();
        let over = !matches!(stage, Stage::Ongoing(_) | Stage::Ending { .. });
        assert!(over, "{seed}: {stage:?}");
        let mut committed = Vec::new();
        for partition in 0..3 {
            let tp = tp(partition);
            let bounds = cluster.bounds(&tp).unwrap();
            assert_eq!(
                (bounds.stable, bounds.high),
                (bounds.end, bounds.end),
                "{seed}"
            );
            let node = leader(cluster, partition);
            let all = cluster
                .fetch(node, &tp, 0, false, usize::MAX)
                .unwrap()
                .records;
            for (at, offset, value) in self.acknowledged.iter().filter(|(at, ..)| *at == tp) {
                let found = all.iter().find(|(found, _)| found == offset);
                let found = found.and_then(|(_, record)| record.value.as_deref());
                assert_eq!(found, Some(value.as_bytes()), "{seed}: {at:?} {offset}");
            }
            let seen = cluster
                .fetch(node, &tp, 0, true, usize::MAX)
                .unwrap()
                .records;
            let values = seen
                .into_iter()
                .filter_map(|(_, record)| record.value.clone());
            committed.extend(values);
        }
        for (values, commit) in &self.transactions {
            let seen = |value: &&String| committed.iter().any(|found| *found == value.as_bytes());
            let count = values.iter().filter(seen).count();
            let wanted = if *commit == Some(true) {
                values.len()
            } else {
                0
            };
            assert_eq!(count, wanted, "{seed}: {values:?} {commit:?}");
        }
    }
}
