//! The metrics that autoscaling needs: they grow when another replica would help, and not when none would.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::util::Timeout;
use serde_json::{Value, json};

use crate::isolation::send;
use crate::scene::{LATER, event, put, subscription, wait_for_records, with, world};
use crate::support::{Answer, Broker, Process, Receiver, SOON, World, block_on, eventually_true};

fn event_lag(process: &Process, topic: &str, partition: i32) -> Option<f64> {
    let labels = format!(r#"{{partition="{partition}",topic="{topic}"}}"#);
    process.metric(&format!("hookstream_event_lag{labels}"))
}

/// A publisher that uses transactions.
struct Publisher<'a> {
    world: &'a World,
    producer: BaseProducer,
    published: usize,
}

impl<'a> Publisher<'a> {
    fn new(world: &'a World) -> Self {
        let mut config = world.client_config();
        let id = format!("{}publisher", world.prefix);
        let producer: BaseProducer = config.set("transactional.id", id).create().unwrap();
        producer.init_transactions(SOON).unwrap();
        Self {
            world,
            producer,
            published: 0,
        }
    }

    /// One transaction of so many events in a partition.
    fn publish(&mut self, partition: i32, events: usize, commit: bool) {
        self.producer.begin_transaction().unwrap();
        for _ in 0..events {
            self.published += 1;
            let payload = event(&format!("tx{}", self.published), "a.b", "{}");
            let record = BaseRecord::<str, str>::to(&self.world.events)
                .partition(partition)
                .payload(&payload);
            self.producer.send(record).unwrap();
        }
        self.producer.flush(SOON).unwrap();
        if commit {
            self.producer.commit_transaction(Timeout::Never).unwrap();
        } else {
            self.producer.abort_transaction(Timeout::Never).unwrap();
        }
    }
}

/// The last stable offset of each partition of the event topic.
fn stable_ends(world: &World, partitions: i32) -> Vec<i64> {
    let mut config = world.client_config();
    let consumer: BaseConsumer = config
        .set("group.id", format!("{}ends", world.prefix))
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    let end = |partition| {
        let ends = consumer.fetch_watermarks(&world.events, partition, SOON);
        ends.unwrap().1
    };
    (0..partitions).map(end).collect()
}

fn positions(world: &World) -> Vec<i64> {
    let mut committed = world.committed("fanout", &world.events);
    committed.sort_unstable();
    committed
        .into_iter()
        .map(|(_, position, _)| position)
        .collect()
}

#[test]
fn the_event_lag_is_what_waits_for_fan_out_and_0_at_rest_with_transactional_publishers_too() {
    let world = World::new("event-lag");
    world.create_topics(2);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let lag = world.spawn("lag", &[]);
    lag.wait_ready();
    let told = || [0, 1].map(|partition| event_lag(&lag, &world.events, partition));

    // Fan-out has never run: it would begin with the first record.
    let mut publisher = Publisher::new(&world);
    publisher.publish(0, 4, true);
    publisher.publish(1, 2, true);
    eventually_true(
        "all that waits is counted, ends of transactions too",
        LATER,
        || told() == [Some(5.0), Some(3.0)],
    );
    let events = |figures: &Value| -> Vec<[Value; 4]> {
        let each = figures["events"].as_array().unwrap().iter();
        each.map(|one| ["topic", "partition", "behind", "hidden"].map(|name| one[name].clone()))
            .collect()
    };
    let expected = [5, 3].map(|behind| (json!(world.events), behind));
    let expected: Vec<[Value; 4]> = (0..)
        .zip(expected)
        .map(|(partition, (topic, behind))| [topic, json!(partition), json!(behind), json!(0)])
        .collect();
    eventually_true("/lag shows them with their age", LATER, || {
        let figures = crate::lag::lag(&lag, "");
        let mut ages = figures["events"].as_array().unwrap().iter();
        events(&figures) == expected
            && ages.all(|one| one["oldest"].is_string() && one["age_seconds"].is_u64())
    });
    assert_eq!(events(&crate::lag::once(&world)), expected);

    let mut fanout = world.spawn("fanout", &[]);
    fanout.wait_ready();
    wait_for_records(&world, &world.topics.commands(), 6);
    let at_rest = |count: usize| {
        // The figures are of up to a second ago: what was published since is not in.
        eventually_true("nothing waits at rest", LATER, || {
            positions(&world) == stable_ends(&world, 2) && told() == [Some(0.0); 2]
        });
        let commands = world.read_all(
            &world.topics.commands(),
            crate::support::Isolation::Committed,
        );
        assert_eq!(commands.len(), count, "each event is fanned out once");
    };
    at_rest(6);
    // A partition whose last transaction was aborted, and one that gets nothing but that.
    publisher.publish(0, 3, true);
    publisher.publish(0, 5, false);
    publisher.publish(1, 5, false);
    wait_for_records(&world, &world.topics.commands(), 9);
    at_rest(9);

    for count in 10..13 {
        world.produce_event("k", &[], event(&format!("plain{count}"), "a.b", "{}"));
        at_rest(count);
    }

    fanout.sigterm();
    assert!(fanout.wait_exit(LATER).success());
    publisher.publish(1, 4, true);
    eventually_true("it is counted while fan-out is down", LATER, || {
        told() == [Some(0.0), Some(5.0)]
    });
    let successor = world.spawn("fanout", &["--guarantee", "at-least-once"]);
    successor.wait_ready();
    wait_for_records(&world, &world.topics.commands(), 16);
    at_rest(16);
    for role in [&lag, &successor] {
        assert_eq!(
            role.metric("hookstream_worker_busy_ratio"),
            None,
            "neither sends"
        );
    }
}

#[test]
fn a_missing_event_topic_takes_nothing_from_the_other_figures() {
    let world = World::new("event-lag-missing");
    world.create_topics(1);
    world.produce_event("k", &[], event("e", "a.b", "{}"));
    send(&world, ["acme"]);
    let mut arguments = vec!["lag".to_owned()];
    arguments.extend(world.args().into_iter().map(|argument| {
        if argument == world.events {
            format!("{argument},{}missing", world.prefix)
        } else {
            argument
        }
    }));
    arguments.extend(["--instance=lag", "--http-listen=127.0.0.1:0"].map(str::to_owned));
    let lag = Process::spawn(&arguments);
    lag.wait_ready();
    lag.wait_for_line("event topic does not exist", LATER);
    eventually_true("the topic that exists is counted", LATER, || {
        event_lag(&lag, &world.events, 0) == Some(1.0)
    });
    eventually_true("so is what waits for delivery", LATER, || {
        lag.metric(r#"hookstream_subscriber_lag{state="ready",subscriber="acme"}"#) == Some(1.0)
    });
    let missing = format!("{}missing", world.prefix);
    assert_eq!(event_lag(&lag, &missing, 0), None);
}

const RUNNABLE: &str = r#"hookstream_runnable_commands{partition="0"}"#;

fn to(receiver: &Receiver, id: &str, fields: Value) -> Value {
    with(
        subscription(id, &receiver.url(&format!("/{id}")), &["**"]),
        fields,
    )
}

#[test]
fn commands_are_runnable_when_the_replica_is_short_of_requests() {
    let world = world("runnable");
    // One alone would get three of the four requests (`delivery::shares`).
    let receivers =
        [(); 4].map(|()| Receiver::start(|_| Answer::ok().after(Duration::from_millis(100))));
    let names: Vec<String> = (0..12).map(|number| format!("healthy-{number}")).collect();
    let subscriptions: Vec<Value> = names
        .iter()
        .zip(receivers.iter().cycle())
        .map(|(name, receiver)| to(receiver, name, json!({})))
        .collect();
    put(&world, &subscriptions);
    let deliver = world.spawn("deliver", &["--workers", "1", "--max-in-flight", "4"]);
    deliver.wait_ready();
    send(&world, names.iter().map(String::as_str).cycle().take(600));
    eventually_true("healthy endpoints wait for the replica", LATER, || {
        // Each of the others is owed its first request.
        deliver.metric(RUNNABLE).is_some_and(|count| count >= 8.0)
    });
    eventually_true("its requests are all in use", LATER, || {
        deliver.metric("hookstream_in_flight") == Some(4.0)
    });
    eventually_true("its thread has something to do", LATER, || {
        let busy = deliver.metric("hookstream_worker_busy_ratio");
        assert!(busy.is_none_or(|busy| busy <= 1.0), "{busy:?}");
        busy > Some(0.0)
    });
    for receiver in &receivers {
        receiver.wait_for(150, LATER);
    }
    eventually_true("none is runnable at rest", LATER, || {
        deliver.metric(RUNNABLE) == Some(0.0)
    });
}

#[test]
fn endpoints_that_are_dead_slow_limited_or_paused_make_no_command_runnable() {
    let mut world = world("runnable-in-vain");
    world.flags = [
        "--breaker-failures=5",
        "--breaker-rate=0",
        "--breaker-probe=10m",
    ]
    .map(str::to_owned)
    .to_vec();
    let receiver = Receiver::start(|seen| match seen.path.as_str() {
        "/dead" => Answer::close(),
        "/slow" => Answer::hang(),
        "/busy" => Answer::status(429).header("retry-after", "300"),
        _ => Answer::ok(),
    });
    let limit = json!({"rate_limit": {"per_second": 20, "burst": 1}});
    put(
        &world,
        &[
            to(&receiver, "dead", json!({})),
            to(
                &receiver,
                "slow",
                json!({"max_in_flight": 2, "timeout": "60s"}),
            ),
            to(&receiver, "busy", json!({})),
            to(&receiver, "limited", limit),
            to(&receiver, "paused", json!({"state": "paused"})),
        ],
    );
    let deliver = world.spawn("deliver", &["--workers", "1"]);
    deliver.wait_ready();
    let all = ["dead", "slow", "busy", "limited", "paused"];
    send(&world, all.into_iter().cycle().take(2000));
    let parked = |why: &str| {
        let sample = format!(r#"hookstream_parked_total{{why="{why}"}}"#);
        deliver.metric(&sample).unwrap_or_default()
    };
    let mut samples = 0;
    eventually_true("each has shown what it does with a backlog", LATER, || {
        let runnable = deliver.metric(RUNNABLE);
        samples += usize::from(runnable.is_some());
        assert!(matches!(runnable, None | Some(0.0)), "{runnable:?}");
        parked("breaker") > 0.0
            && parked("rate") > 0.0
            && parked("paused") >= 400.0
            && receiver.seen_at("/slow").len() >= 2
            && receiver.seen_at("/limited").len() >= 60
    });
    assert!(samples > 5, "{samples} samples");
    assert!(
        deliver.metric("hookstream_queued_commands") > Some(0.0),
        "a backlog is there"
    );
}

/// The high watermark of each partition of a topic, the ends of transactions included.
fn high_watermarks(world: &World, topic: &str) -> Vec<i64> {
    let mut config = world.client_config();
    let consumer: BaseConsumer = config
        .set("group.id", format!("{}ends", world.prefix))
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), SOON).unwrap();
    let partitions = metadata.topics()[0].partitions();
    let end = |partition| consumer.fetch_watermarks(topic, partition, SOON).unwrap().1;
    partitions.iter().map(|one| end(one.id())).collect()
}

/// What `kafka-consumer-groups --describe` shows as LAG, over all groups and partitions.
fn lag_of_groups(world: &World) -> i64 {
    let mut all = vec![
        ("fanout", world.events.clone()),
        ("deliver", world.topics.commands()),
    ];
    let tiers = world.tiers.iter();
    all.extend(tiers.map(|&tier| ("release", world.topics.retry(tier))));
    let lag = |(group, topic): (&str, String)| {
        let committed = world.committed(group, &topic);
        let ends = high_watermarks(world, &topic);
        let each = ends.into_iter().zip(0..).map(|(end, partition)| {
            let position = committed.iter().find(|(number, ..)| *number == partition);
            end - position.map_or(0, |(_, position, _)| *position)
        });
        each.sum::<i64>()
    };
    all.into_iter().map(lag).sum()
}

#[test]
fn kafkas_own_lag_of_each_group_is_0_at_rest_and_nothing_is_committed_then() {
    let broker = Broker::own();
    let mut world = World::on(&broker, "own-lag");
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(2);
    let receiver = Receiver::start(|seen| {
        let first = seen.header("hookstream-attempt") == Some("1");
        Answer::status(if seen.path == "/flaky" && first {
            500
        } else {
            200
        })
    });
    let subscriptions = ["/flaky", "/good"].map(|path| {
        let url = receiver.url(path);
        subscription(&path[1..], &url, &["**"])
    });
    put(&world, &subscriptions);
    let process = world.spawn("run", &["--retry-schedule", "1s,1s,1s"]);
    process.wait_ready();
    let mut publisher = Publisher::new(&world);
    for round in 1..=2 {
        publisher.publish(0, 4, true);
        publisher.publish(1, 3, true);
        publisher.publish(1, 3, false);
        receiver.wait_for(round * 7 * 3, LATER);
        eventually_true("no group has a lag", LATER, || lag_of_groups(&world) == 0);
    }
    let commits = || -> i64 { high_watermarks(&world, "__consumer_offsets").iter().sum() };
    let as_of = || process.metric("hookstream_lag_as_of_timestamp_seconds");
    // How an endpoint does is written a while after its last attempt, in one transaction with a position.
    let statuses = || high_watermarks(&world, &world.topics.status());
    let (mut known, mut since) = (statuses(), as_of().unwrap());
    let (mut before, mut after) = (None, 0);
    eventually_true("five seconds pass by the figures' own clock", LATER, || {
        after = commits();
        let (written, now) = (statuses(), as_of().unwrap_or(since));
        if written != known {
            (known, since, before) = (written, now, None);
        }
        if now < since + 1.0 {
            return false;
        }
        before.get_or_insert(after);
        now >= since + 6.0
    });
    assert_eq!(
        Some(after),
        before,
        "positions that did not change are committed"
    );
}

/// The client in the group knows of them first, and hands them to one that may not have heard of them.
#[test]
fn partitions_added_to_an_event_topic_are_read() {
    let world = world("grown");
    let receiver = Receiver::good();
    put(&world, &[subscription("all", &receiver.url("/"), &["**"])]);
    let _process = crate::scene::start(&world, &[]);
    world.produce_event("k", &[], event("first", "a.b", "1"));
    receiver.wait_for(1, LATER);
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let grown = NewPartitions::new(&world.events, 8);
    let options = AdminOptions::new().operation_timeout(Some(SOON));
    block_on(admin.create_partitions([&grown], &options)).unwrap();
    eventually_true("the partitions have their leaders", LATER, || {
        let metadata = admin.inner().fetch_metadata(Some(&world.events), SOON);
        metadata.is_ok_and(|metadata| {
            let found = metadata.topics()[0].partitions();
            found.len() == 8 && found.iter().all(|one| one.leader() >= 0)
        })
    });
    let producer: BaseProducer = world.client_config().create().unwrap();
    for partition in 1..8 {
        let payload = event(&format!("in-{partition}"), "a.b", "{}");
        let record = BaseRecord::<str, str>::to(&world.events)
            .partition(partition)
            .payload(&payload);
        producer.send(record).unwrap();
    }
    producer.flush(SOON).unwrap();
    receiver.wait_for(8, LATER);
}
