//! The lag role's figures against what the topics hold, while everything moves, and after what operators and retention do.
//!
//! A count takes time while records move, so "the true figure" of a moment that is looked at from outside is a range: a
//! record counts for certain if it was there before and is not done after, and may count if it is there after and was not
//! done before. What the role tells of a moment between the two lies in that range, for each subscription, or it is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hookstream::model::units::{Offset, Position};
use hookstream::model::window;
use hookstream::model::window::Window;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::lag::{Counts, lag, naive, once, told};
use crate::scene::{LATER, event, put, subscription, with};
use crate::support::{
    Answer, Broker, Isolation, Process, Receiver, Record, World, eventually_true, live,
};

/// Subscriber, subscription, and which of ready, waiting and dead.
type Cell = (String, String, usize);
/// A record of one of the topics, by the topic's number.
type Place = (usize, i32, i64);

/// All records of one moment, and which of them are done.
struct Moment {
    there: BTreeMap<Place, Cell>,
    done: BTreeSet<Place>,
}

impl Moment {
    /// Reads all that counts. What it has as done is done when it returns, and what is there when it is called is in it.
    fn of(world: &World) -> Self {
        let mut moment = Self {
            there: BTreeMap::new(),
            done: BTreeSet::new(),
        };
        let tiers = world.tiers.iter().map(|tier| world.topics.retry(*tier));
        let tiers: Vec<String> = tiers.collect();
        moment.take(world, 0, &world.topics.commands(), "deliver", 0);
        for (number, tier) in tiers.iter().enumerate() {
            moment.take(world, 1 + number, tier, "release", 1);
        }
        for letter in world.read_all(&world.topics.dead_letters(), Isolation::Committed) {
            if letter.header("hs-fact") == Some("dead-lettered") {
                let place = (9, letter.partition, letter.offset);
                moment.there.insert(place, cell(&letter, 2));
            } else {
                let offset = letter.header("hs-letter-offset").unwrap().parse().unwrap();
                moment.done.insert((9, letter.partition, offset));
            }
        }
        moment
    }

    fn take(&mut self, world: &World, number: usize, topic: &str, group: &str, kind: usize) {
        let committed = world.committed(group, topic);
        let cluster = world.cluster();
        for record in live(world.read_all(topic, Isolation::Committed)) {
            let place = (number, record.partition, record.offset);
            self.there.insert(place, cell(&record, kind));
            let window = committed.iter().find(|(at, ..)| *at == record.partition);
            let is_done = window.is_some_and(|(partition, position, metadata)| {
                let place = window::Place::new(&cluster, topic, *partition);
                let (window, _) = Window::restore(Position(*position), metadata, place);
                record.offset < *position || window.is_finished(Offset(record.offset))
            });
            if is_done {
                self.done.insert(place);
            }
        }
    }

    /// The least and the most that may be told of a moment between this one and a later one.
    fn range(&self, later: &Self) -> BTreeMap<Cell, (u64, u64)> {
        let mut range: BTreeMap<Cell, (u64, u64)> = BTreeMap::new();
        for (place, cell) in &later.there {
            let entry = range.entry(cell.clone()).or_default();
            entry.0 += u64::from(self.there.contains_key(place) && !later.done.contains(place));
            entry.1 += u64::from(!self.done.contains(place));
        }
        range
    }
}

fn cell(record: &Record, kind: usize) -> Cell {
    let subscription = record.header("hs-subscription").unwrap().to_owned();
    (record.key_text().to_owned(), subscription, kind)
}

/// What is told, by cell; what is not told is 0.
fn cells(figures: &Value) -> BTreeMap<Cell, u64> {
    let mut cells = BTreeMap::new();
    for one in figures["subscribers"].as_array().unwrap() {
        let subscriber = one["name"].as_str().unwrap();
        let mut sums = [0; 3];
        for inner in one["subscriptions"].as_array().unwrap() {
            let dead = inner["dead_letters"].as_object().unwrap().values();
            let counts = [
                inner["ready"].as_u64().unwrap(),
                inner["waiting"].as_u64().unwrap(),
                dead.map(|count| count.as_u64().unwrap()).sum(),
            ];
            for (kind, count) in counts.into_iter().enumerate() {
                sums[kind] += count;
                let name = inner["name"].as_str().unwrap().to_owned();
                cells.insert((subscriber.to_owned(), name, kind), count);
            }
        }
        assert_eq!(
            one["ready"], sums[0],
            "a subscriber's figure is its subscriptions': {one}"
        );
        assert_eq!(one["waiting"], sums[1], "{one}");
    }
    cells
}

#[track_caller]
fn assert_between(before: &Moment, told: &Value, after: &Moment) {
    let range = before.range(after);
    let told = cells(told);
    for (cell, (least, most)) in &range {
        let figure = told.get(cell).copied().unwrap_or(0);
        assert!(
            (*least..=*most).contains(&figure),
            "{cell:?} is told as {figure}, and it is between {least} and {most}"
        );
    }
    for (cell, figure) in told {
        assert!(
            figure == 0 || range.contains_key(&cell),
            "{cell:?}: {figure} of nothing"
        );
    }
}

/// The role's figures of a moment that is not before `since`, seconds since the epoch.
#[track_caller]
fn figures_since(role: &Process, since: f64) -> Value {
    let mut figures = Value::Null;
    eventually_true("the figures are of now", LATER, || {
        // There are none before everything was read once.
        let (status, body) = role.get("/lag");
        figures = serde_json::from_str(&body).unwrap_or_default();
        status == 200 && figures["as_of_seconds"].as_f64().unwrap() >= since
    });
    figures
}

fn now() -> f64 {
    hookstream::edge::clock::now().0 as f64 / 1000.0
}

/// A transaction that is given up: its commands never were.
fn abort(world: &World, number: usize) {
    let producer = open(world, number, 25, None);
    producer.abort_transaction(LATER).unwrap();
}

/// A transaction with so many commands, which is left open.
fn open(world: &World, number: usize, count: usize, partition: Option<i32>) -> BaseProducer {
    let producer = world.begin_transaction(&format!("abort-{number}"), "60000");
    for _ in 0..count {
        let topic = world.topics.commands();
        let mut record = BaseRecord::<str, str>::to(&topic).key("acme").payload("{}");
        record.partition = partition;
        producer.send(record.headers(headers("acme-good"))).unwrap();
    }
    producer.flush(LATER).unwrap();
    producer
}

fn headers(subscription: &str) -> OwnedHeaders {
    let pairs = [
        ("hs-subscription", subscription),
        ("hs-enqueued", "1700000000000"),
        ("hs-cause", "new"),
    ];
    pairs.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        let value = Some(*value);
        all.insert(Header { key, value })
    })
}

#[test]
fn while_all_moves_the_figures_lie_between_those_of_before_and_after() {
    let mut world = World::new("exact");
    world.tiers = vec![Duration::from_secs(1), Duration::from_secs(3600)];
    world.create_topics(3);
    let receiver = Receiver::start(|seen| {
        let answer = Answer::status(match seen.path.as_str() {
            "/acme-failing" => 500,
            "/beta-refusing" => 400,
            _ => 200,
        });
        let slow = if seen.path == "/beta-slow" { 20 } else { 0 };
        answer.after(Duration::from_millis(slow))
    });
    let one = |id: &str, more: Value| {
        let (subscriber, _) = id.split_once('-').unwrap();
        let fields = json!({"subscriber": subscriber, "retry_schedule": ["1s", "1h"]});
        let plain = subscription(id, &receiver.url(&format!("/{id}")), &["**"]);
        with(with(plain, fields), more)
    };
    put(
        &world,
        &[
            one("acme-good", json!({})),
            // With an open breaker its commands would go round in the tier of one second, and never be still.
            one(
                "acme-failing",
                json!({"breaker": {"failures": 0, "rate": 0}}),
            ),
            one("beta-refusing", json!({})),
            one("beta-slow", json!({"max_in_flight": 2})),
            one("corp-paused", json!({"state": "paused"})),
        ],
    );
    let role = world.spawn("lag", &[]);
    let quick = ["-X", "session.timeout.ms=6000"];
    let others = [
        world.spawn("fanout", &quick),
        world.spawn("release", &quick),
    ];
    let mut deliverers = vec![world.spawn_as("first", "deliver", &quick)];
    for process in others.iter().chain(&deliverers).chain([&role]) {
        process.wait_ready();
    }
    let mut random = fastrand::Rng::with_seed(20_261_125);
    let mut produced = 0;
    let mut before = Moment::of(&world);
    let begun = Instant::now();
    let mut looks = 0;
    while begun.elapsed() < Duration::from_secs(25) || looks < 12 {
        let since = now();
        let count = random.usize(0..60);
        world.produce_events((produced..produced + count).map(|number| {
            let id = format!("e{number}");
            (format!("k{number}"), event(&id, "a.b", "{}"))
        }));
        produced += count;
        match looks % 6 {
            1 => abort(&world, looks),
            2 => deliverers.push(world.spawn_as(&format!("d{looks}"), "deliver", &quick)),
            4 => deliverers.remove(0).sigkill(),
            5 => {
                let replay = ["replay", "--dead-letters", "--limit", "7", "--yes"];
                assert_eq!(world.run(&replay, "").code, 0);
            }
            _ => {}
        }
        let told = if looks % 5 == 3 {
            once(&world)
        } else {
            figures_since(&role, since)
        };
        let after = Moment::of(&world);
        assert_between(&before, &told, &after);
        before = after;
        looks += 1;
    }
    assert!(produced > 100, "{produced}");
    // Quiet: the one that is paused goes round in its tiers, so it is told of as waiting or ready.
    let still = |counts: Counts| -> Counts {
        let others = counts.into_iter().filter(|(name, _)| name != "corp");
        others.collect()
    };
    eventually_true(
        "all have ended, and the role tells the same",
        LATER * 2,
        || {
            let expected = still(naive(&world));
            let told = still(told(&figures_since(&role, now())));
            expected == told && expected.values().all(|counts| counts[0] == 0)
        },
    );
}

/// A command as the lag role sees it.
fn command(world: &World, partition: i32, count: usize) {
    let producer: BaseProducer = world.client_config().create().unwrap();
    for _ in 0..count {
        let topic = world.topics.commands();
        let record = BaseRecord::<str, str>::to(&topic).key("acme").payload("{}");
        let record = record.partition(partition).headers(headers("acme-orders"));
        producer.send(record).unwrap();
    }
    producer.flush(LATER).unwrap();
}

fn commit(world: &World, positions: &[i64]) {
    let mut config = world.client_config();
    let group = format!("{}deliver", world.prefix);
    let consumer: BaseConsumer = config.set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    for (partition, position) in (0..).zip(positions) {
        let position = rdkafka::Offset::Offset(*position);
        list.add_partition_offset(&world.topics.commands(), partition, position)
            .unwrap();
    }
    consumer.commit(&list, CommitMode::Sync).unwrap();
}

#[test]
fn what_is_deleted_added_moved_back_or_forgotten_is_counted_as_it_is() {
    let world = World::new("exact-admin");
    world.create_topics(2);
    let role = world.spawn("lag", &[]);
    role.wait_ready();
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(LATER));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let expect = |what: &str, ready: u64| {
        let expected = Counts::from([("acme".to_owned(), [ready, 0, 0])]);
        assert_eq!(
            naive(&world),
            expected,
            "{what}: the test itself counts wrong"
        );
        expected
    };
    // Partitions that were added and records that were deleted are looked for now and then.
    let check_soon = |what: &str, ready: u64| {
        let expected = expect(what, ready);
        eventually_true(what, LATER, || {
            told(&figures_since(&role, now())) == expected
        });
        assert_eq!(told(&once(&world)), expected, "{what}");
    };
    // All else is right as soon as the figures say that they are of now.
    let check = |what: &str, ready: u64| {
        let expected = expect(what, ready);
        let figures = figures_since(&role, now());
        assert_eq!(told(&figures), expected, "{what}");
        assert_eq!(told(&once(&world)), expected, "{what}");
    };
    command(&world, 0, 6);
    command(&world, 1, 4);
    check("all are ready", 10);
    commit(&world, &[5, 2]);
    check("the group has moved on", 3);
    commit(&world, &[2, 2]);
    check("an operator has moved it back", 6);
    let transaction = open(&world, 0, 1, Some(1));
    commit(&world, &[2, 5]);
    check("the position lies behind what a transaction holds back", 4);
    transaction.abort_transaction(LATER).unwrap();
    // The naive count takes it for done; delivery begins with the first record, as another test shows.
    commit(&world, &[2, 1_000_000]);
    let all_of_it = Counts::from([("acme".to_owned(), [8, 0, 0])]);
    assert_eq!(told(&figures_since(&role, now())), all_of_it);
    assert_eq!(told(&once(&world)), all_of_it);
    commit(&world, &[2, 2]);
    check("the position lies in the topic again", 6);
    let mut deleted = TopicPartitionList::new();
    deleted
        .add_partition_offset(&world.topics.commands(), 0, rdkafka::Offset::Offset(4))
        .unwrap();
    let outcome = runtime.block_on(admin.delete_records(&deleted, &options));
    let outcome = outcome.unwrap();
    assert!(
        outcome.elements().iter().all(|one| one.error().is_ok()),
        "{outcome:?}"
    );
    check_soon("retention has deleted what was not done", 4);
    // Five and four that were done, and two of the second partition a second time: what is moved back counts again where
    // its end was seen before. The two that were deleted were done once, and not again.
    let finished = &lag(&role, "")["subscribers"][0]["finished"];
    assert_eq!(finished.as_u64(), Some(11), "what was deleted counts");
    let topic = world.topics.commands();
    let grown = NewPartitions::new(&topic, 3);
    runtime
        .block_on(admin.create_partitions([&grown], &options))
        .unwrap();
    eventually_true("the partition has its leader", LATER, || {
        let metadata = admin.inner().fetch_metadata(Some(&topic), LATER);
        let found = metadata.map(|metadata| {
            let partitions = metadata.topics()[0].partitions().iter();
            partitions.filter(|one| one.leader() >= 0).count()
        });
        found.is_ok_and(|count| count == 3)
    });
    command(&world, 2, 5);
    check_soon("a partition was added", 9);
    let group = format!("{}deliver", world.prefix);
    eventually_true("the group is deleted", LATER, || {
        let outcome = runtime.block_on(admin.delete_groups(&[&group], &options));
        outcome.is_ok_and(|results| results.iter().all(Result::is_ok))
    });
    check("the group's positions are gone", 11);
}

#[test]
fn figures_that_cannot_be_renewed_say_of_when_they_are() {
    let broker = Broker::own();
    let world = World::on(&broker, "exact-stale");
    world.create_topics(1);
    command(&world, 0, 3);
    let role = world.spawn("lag", &[]);
    role.wait_ready();
    let figures = figures_since(&role, now());
    assert_eq!(figures["total"]["ready"], 3);
    assert_eq!(figures["behind"], 0);
    broker.stop();
    let stopped = now();
    std::thread::sleep(Duration::from_secs(3));
    let stale = lag(&role, "");
    assert_eq!(stale["total"]["ready"], 3, "they stay what they were");
    let as_of = stale["as_of_seconds"].as_f64().unwrap();
    assert!(as_of <= stopped + 0.5, "{as_of} is after {stopped}");
    let metric = role.metric("hookstream_lag_as_of_timestamp_seconds");
    assert!(metric.unwrap() <= stopped + 0.5, "{metric:?}");
    broker.start();
    command(&world, 0, 2);
    let figures = figures_since(&role, now());
    assert_eq!(figures["total"]["ready"], 5);
}
