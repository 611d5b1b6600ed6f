//! One test's own topics and groups on a broker that it shares with others, and what is read and written there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hookstream::config::Topics;
use hookstream::model::source::{self, Mark};
use hookstream::model::units::format_duration;
use hookstream::model::window::Place;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{Broker, Output, Process, SOON, block_on, broker, run_to_end};

/// Names that no other test uses, and the settings that every process of this test gets.
pub struct World {
    /// For this process's own clients.
    pub brokers: String,
    /// For the program's; none is named when it is empty.
    pub bootstrap: String,
    /// Prefix of topics, groups and instances, with its separator.
    pub prefix: String,
    pub topics: Topics,
    /// The event topic.
    pub events: String,
    pub tiers: Vec<Duration>,
    /// `--start-at`; the program's default when it is empty. Most tests publish before the first start.
    pub start_at: &'static str,
    /// 1, or 3 on three brokers.
    pub replicas: i32,
    /// Further flags for every process, such as `--guarantee`, `at-least-once`.
    pub flags: Vec<String>,
    spawned: AtomicU32,
    producer: OnceLock<FutureProducer>,
}

/// Whether records of open and aborted transactions are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    Uncommitted,
}

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Epoch ms, by the producer or by the broker as the topic is set.
    pub timestamp: i64,
}

/// Without the copies of commands, which fan-out writes again after a crash and delivery does not deliver: their headers
/// name the same source and the same place in it as a record before them in their partition, whatever precedes them.
pub fn live(records: Vec<Record>) -> Vec<Record> {
    let mut seen = BTreeSet::new();
    let mut is_first = |record: &Record| {
        let header = record.header(source::HEADER);
        let mark = header.map(|header| Mark::parse(header.as_bytes()).unwrap());
        mark.is_none_or(|mark| seen.insert((record.partition, mark.source, mark.at)))
    };
    records
        .into_iter()
        .filter(|record| is_first(record))
        .collect()
}

impl Record {
    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    pub fn key_text(&self) -> &str {
        self.key
            .as_deref()
            .map_or("", |key| std::str::from_utf8(key).unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.value.as_deref().expect("a tombstone is no JSON")).unwrap()
    }
}

impl World {
    /// On the shared broker.
    pub fn new(name: &str) -> Self {
        Self::on(broker(), name)
    }

    /// On a broker of the test's own.
    pub fn on(broker: &Broker, name: &str) -> Self {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(6)
            .collect();
        let prefix = format!("t-{name}-{}-", random.to_lowercase());
        let events = format!("{prefix}events");
        Self {
            brokers: broker.address.clone(),
            bootstrap: broker.bootstrap(),
            topics: Topics {
                events: vec![events.clone()],
                prefix: prefix.clone(),
            },
            prefix,
            events,
            tiers: vec![Duration::from_secs(1), Duration::from_secs(2)],
            start_at: "earliest",
            replicas: if broker.address.contains(',') { 3 } else { 1 },
            flags: Vec::new(),
            spawned: AtomicU32::new(0),
            producer: OnceLock::new(),
        }
    }

    /// The same names on another broker, for a mirror.
    pub fn elsewhere(&self, broker: &Broker) -> Self {
        Self {
            brokers: broker.address.clone(),
            bootstrap: broker.bootstrap(),
            prefix: self.prefix.clone(),
            topics: self.topics.clone(),
            events: self.events.clone(),
            tiers: self.tiers.clone(),
            start_at: self.start_at,
            replicas: self.replicas,
            flags: self.flags.clone(),
            spawned: AtomicU32::new(100),
            producer: OnceLock::new(),
        }
    }

    // ---- the program -----------------------------------------------------------------------------

    /// Flags that every command of this world needs.
    pub fn args(&self) -> Vec<String> {
        let tiers: Vec<String> = self
            .tiers
            .iter()
            .map(|tier| format_duration(*tier))
            .collect();
        let pairs = [
            ("--brokers", self.bootstrap.as_str()),
            ("--topic-prefix", &self.prefix),
            ("--group-prefix", &self.prefix),
            ("--events", &self.topics.events.join(",")),
            ("--tiers", &tiers.join(",")),
            // Whatever `localhost` is.
            ("--egress-allow-cidr", "127.0.0.0/8,::1/128"),
            ("--egress-ports", "any"),
            ("--start-at", self.start_at),
        ];
        let mut arguments: Vec<String> = pairs
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
            .collect();
        arguments.push("--egress-allow-http".to_owned());
        // Most tests let endpoints fail in ways that a breaker would shorten.
        if !self.flags.iter().any(|flag| flag.starts_with("--breaker")) {
            arguments.extend(["--breaker-failures=0", "--breaker-rate=0"].map(str::to_owned));
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Starts a role (`fanout`, `deliver`, ...) as an instance of its own on a free port.
    pub fn spawn(&self, role: &str, extra: &[&str]) -> Process {
        let number = self.spawned.fetch_add(1, Ordering::Relaxed);
        self.spawn_as(&format!("{}{role}-{number}", self.prefix), role, extra)
    }

    /// Starts a role as a named instance: the successor of one that was killed.
    pub fn spawn_as(&self, instance: &str, role: &str, extra: &[&str]) -> Process {
        let mut arguments = vec![role.to_owned()];
        arguments.extend(self.args());
        arguments
            .extend(["--instance", instance, "--http-listen", "127.0.0.1:0"].map(str::to_owned));
        arguments.extend(extra.iter().map(|&argument| argument.to_owned()));
        Process::spawn(&arguments)
    }

    /// Runs an operator's command to its end: `&["dead-letters", "list", "-o", "json"]`.
    #[track_caller]
    pub fn run(&self, command: &[&str], stdin: &str) -> Output {
        let mut arguments: Vec<String> = command
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        arguments.extend(self.args());
        run_to_end(&arguments, stdin)
    }

    // ---- topics ----------------------------------------------------------------------------------

    /// The event topic and all own topics, as `topics create` would make them; `partitions` each.
    pub fn create_topics(&self, partitions: i32) {
        self.create_events_topic(partitions);
        let settled = [("cleanup.policy", "delete")];
        self.create_topic(&self.topics.commands(), partitions, &settled);
        self.create_topic(&self.topics.dead_letters(), partitions, &settled);
        self.create_topic(&self.topics.invalid_events(), partitions, &settled);
        self.create_topic(
            &self.topics.subscriptions(),
            1,
            &[("cleanup.policy", "compact")],
        );
        self.create_topic(&self.topics.notices(), partitions, &settled);
        self.create_topic(
            &self.topics.status(),
            1,
            &[("cleanup.policy", "compact,delete")],
        );
        for tier in &self.tiers {
            self.create_topic(
                &self.topics.retry(*tier),
                partitions,
                &[("message.timestamp.type", "LogAppendTime")],
            );
        }
    }

    /// The event topic by the admin client, the own ones by the program's `topics create` with further flags.
    #[track_caller]
    pub fn create_topics_by_program(&self, partitions: i32, extra: &[&str]) -> Output {
        self.create_events_topic(partitions);
        let output = self.run(&[&["topics", "create"], extra].concat(), "");
        assert_eq!(output.code, 0, "topics create failed: {}", output.stderr);
        output
    }

    pub fn create_events_topic(&self, partitions: i32) {
        self.create_topic(&self.events, partitions, &[]);
    }

    /// Creates a topic, and waits until this broker's metadata shows it.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(self.replicas));
        self.create(
            settings
                .iter()
                .fold(topic, |topic, (key, value)| topic.set(key, value)),
        );
    }

    /// The same for a topic whose replicas a test places itself.
    #[track_caller]
    pub fn create(&self, topic: NewTopic<'_>) {
        let admin: AdminClient<DefaultClientContext> = self.client_config().create().unwrap();
        let name = topic.name;
        // Shorter than all the time there is: the client may drop the broker that it asks while it learns of the others,
        // and then waits for a response that nobody sends.
        let options = AdminOptions::new()
            .operation_timeout(Some(SOON / 9))
            .request_timeout(Some(SOON / 9));
        let is_late = RDKafkaErrorCode::RequestTimedOut;
        let results = super::eventually("the cluster takes the request", SOON, || {
            let results = block_on(admin.create_topics([&topic], &options)).ok()?;
            let taken = !matches!(results.first(), Some(Err((_, code))) if *code == is_late);
            taken.then_some(results)
        });
        match results.first() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) | None => {}
            Some(Err((name, code))) => panic!("the topic {name} could not be created: {code}"),
        }
        super::eventually_true(&format!("the topic {name} has its leaders"), SOON, || {
            let metadata = admin.inner().fetch_metadata(Some(name), SOON);
            metadata.is_ok_and(|metadata| {
                let found = metadata.topics()[0].partitions();
                found.len() == usize::try_from(topic.num_partitions).unwrap()
                    && found.iter().all(|one| one.leader() >= 0)
            })
        });
    }

    // ---- writing ---------------------------------------------------------------------------------

    /// Produces one record to the event topic; returns when the broker has it.
    #[track_caller]
    pub fn produce_event(&self, key: &str, headers: &[(&str, &str)], payload: impl AsRef<[u8]>) {
        self.produce(
            &self.events,
            [(Some(key), headers.to_vec(), Some(payload.as_ref().to_vec()))],
        );
    }

    /// Produces plain events in bulk, key and payload each; returns when the broker has all of them.
    #[track_caller]
    pub fn produce_events<K: AsRef<str>, V: AsRef<[u8]>>(
        &self,
        events: impl IntoIterator<Item = (K, V)>,
    ) {
        self.produce(
            &self.events,
            events
                .into_iter()
                .map(|(key, value)| (Some(key), Vec::new(), Some(value.as_ref().to_vec()))),
        );
    }

    /// Writes a subscription as a raw record, valid or not; its id is the key.
    #[track_caller]
    pub fn put_subscription(&self, id: &str, value: impl AsRef<[u8]>) {
        self.produce(
            &self.topics.subscriptions(),
            [(Some(id), Vec::new(), Some(value.as_ref().to_vec()))],
        );
    }

    /// Writes the tombstone of a subscription.
    #[track_caller]
    pub fn delete_subscription(&self, id: &str) {
        self.produce(&self.topics.subscriptions(), [(Some(id), Vec::new(), None)]);
    }

    /// Writes commands as fan-out does: webhook id, subscription and subscriber of each, all with this body.
    ///
    /// # Panics
    /// When the broker refuses one.
    #[track_caller]
    pub fn produce_commands<'a>(
        &self,
        commands: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>,
        body: &[u8],
    ) {
        let now = hookstream::edge::clock::now().to_string();
        let records = commands.into_iter().map(|(webhook, id, subscriber)| {
            let headers = vec![
                ("webhook-id", webhook),
                ("hs-subscription", id),
                ("hs-event-id", webhook),
                ("hs-event-type", "order.created"),
                ("hs-content-type", "application/json"),
                ("hs-attempt", "0"),
                ("hs-enqueued", now.as_str()),
                ("hs-cause", "new"),
            ];
            (Some(subscriber), headers, Some(body.to_vec()))
        });
        self.produce(&self.topics.commands(), records);
    }

    /// Produces (key, headers, value) records, pipelined, in order, outside any transaction.
    ///
    /// # Panics
    /// When the broker refuses one.
    #[track_caller]
    pub fn produce<'a, K: AsRef<str>>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = (Option<K>, Vec<(&'a str, &'a str)>, Option<Vec<u8>>)>,
    ) {
        let producer = self.producer();
        let mut pending = Vec::new();
        for (key, headers, value) in records {
            let headers = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (name, value)| {
                    all.insert(Header {
                        key: name,
                        value: Some(*value),
                    })
                });
            let mut record = FutureRecord::<str, [u8]>::to(topic).headers(headers);
            record.key = key.as_ref().map(AsRef::as_ref);
            record.payload = value.as_deref();
            pending.push(loop {
                match producer.send_result(record) {
                    Ok(delivery) => break delivery,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        drop(producer.flush(Duration::from_millis(100)));
                        record = back;
                    }
                    Err((error, _)) => {
                        panic!("a record for {topic} could not be produced: {error}")
                    }
                }
            });
        }
        for delivery in pending {
            if let Err((error, _)) = block_on(delivery).unwrap() {
                panic!("a record for {topic} was refused: {error}");
            }
        }
    }

    /// Produces records of any bytes, each by itself and in order; returns the offset of each.
    #[track_caller]
    pub fn produce_raw(&self, topic: &str, partition: i32, records: &[RawRecord]) -> Vec<i64> {
        let write = |raw: &RawRecord| {
            let headers = raw.headers.iter();
            let headers = headers.fold(OwnedHeaders::new(), |all, (name, value)| {
                insert_raw(all, name, value.as_deref())
            });
            let mut record = FutureRecord::<[u8], [u8]>::to(topic)
                .partition(partition)
                .headers(headers);
            record.key = raw.key.as_deref();
            record.payload = raw.value.as_deref();
            let sent = self.producer().send_result(record);
            let delivery = sent.unwrap_or_else(|(error, _)| panic!("{topic}: {error}"));
            let written = block_on(delivery).unwrap();
            written
                .unwrap_or_else(|(error, _)| panic!("{topic}: {error}"))
                .offset
        };
        records.iter().map(write).collect()
    }

    fn producer(&self) -> &FutureProducer {
        self.producer.get_or_init(|| {
            let mut config = self.client_config();
            config
                .set("enable.idempotence", "true")
                // The topics decide.
                .set("message.max.bytes", "50000000")
                .set("partitioner", "murmur2_random")
                .set("linger.ms", "2");
            config.create().unwrap()
        })
    }

    // ---- reading ---------------------------------------------------------------------------------

    /// A client's configuration for this broker, for what a test does by itself.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// A producer of a transaction that is open, and that the broker aborts after `timeout_ms`; `name` ends its id.
    pub fn begin_transaction(&self, name: &str, timeout_ms: &str) -> BaseProducer {
        let mut config = self.client_config();
        config
            .set("transactional.id", format!("{}{name}", self.prefix))
            .set("transaction.timeout.ms", timeout_ms);
        let producer: BaseProducer = config.create().unwrap();
        producer.init_transactions(SOON).unwrap();
        producer.begin_transaction().unwrap();
        producer
    }

    /// The id of the cluster.
    pub fn cluster(&self) -> String {
        let consumer = self.reader(&format!("{}reader", self.prefix), Isolation::Committed);
        super::eventually("the cluster's id is told", SOON, || {
            consumer.client().fetch_cluster_id(Duration::from_secs(5))
        })
    }

    /// The number of the broker that leads a partition.
    pub fn leader(&self, topic: &str, partition: i32) -> u32 {
        let consumer = self.reader(&format!("{}reader", self.prefix), Isolation::Committed);
        super::eventually("the partition has a leader", SOON, || {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5));
            let metadata = metadata.ok()?;
            let mut partitions = metadata.topics().first()?.partitions().iter();
            u32::try_from(partitions.find(|one| one.id() == partition)?.leader()).ok()
        })
    }

    /// Where the commit metadata of a partition of the commands counts.
    pub fn window_place(&self, partition: i32) -> Place {
        Place::new(&self.cluster(), &self.topics.commands(), partition)
    }

    /// Where transactions are open: each partition of `topic` whose committed records end before its records do, and where.
    pub fn open_transactions(&self, topic: &str) -> Vec<(i32, i64)> {
        let [committed, all] = [Isolation::Committed, Isolation::Uncommitted]
            .map(|isolation| self.reader(&format!("{}reader", self.prefix), isolation));
        let end = |consumer: &BaseConsumer, partition| {
            super::eventually("the topic's ends are told", SOON, || {
                let ends = consumer.fetch_watermarks(topic, partition, Duration::from_secs(5));
                ends.ok().map(|(_, high)| high)
            })
        };
        let partitions = self.partitions(&committed, topic).into_iter();
        let ends = partitions.filter_map(|partition| {
            let stable = end(&committed, partition);
            (stable < end(&all, partition)).then_some((partition, stable))
        });
        ends.collect()
    }

    /// All records of a topic from its beginning to where it ended at the time of the call (for
    /// [`Isolation::Committed`], to the last stable offset), by partition and offset.
    ///
    /// # Panics
    /// When the end is not reached in time.
    #[track_caller]
    pub fn read_all(&self, topic: &str, isolation: Isolation) -> Vec<Record> {
        self.read_from(topic, isolation, &BTreeMap::new())
    }

    /// The same from `positions` on; a partition without one from its beginning.
    #[track_caller]
    pub fn read_from(
        &self,
        topic: &str,
        isolation: Isolation,
        positions: &BTreeMap<i32, i64>,
    ) -> Vec<Record> {
        let consumer = self.reader(&format!("{}reader", self.prefix), isolation);
        let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
        let mut all = TopicPartitionList::new();
        for partition in self.partitions(&consumer, topic) {
            let (low, high) = super::eventually("the topic's ends are told", SOON, || {
                consumer
                    .fetch_watermarks(topic, partition, Duration::from_secs(5))
                    .ok()
            });
            let from = positions.get(&partition).map_or(low, |from| low.max(*from));
            if high > from {
                ends.insert(partition, high);
                all.add_partition_offset(topic, partition, Offset::Offset(from))
                    .unwrap();
            }
        }
        consumer.assign(&all).unwrap();
        let mut records = Vec::new();
        let deadline = Instant::now() + SOON;
        while !ends.is_empty() {
            assert!(
                Instant::now() < deadline,
                "{topic} was not read to its end within {SOON:?}"
            );
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                // Offsets have gaps: the record before the end may not exist.
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.remove(&partition)),
                // Brokers that went come back: the deadline tells if they do not.
                Some(Err(error)) if hookstream::edge::kafka::error::is_unreachable(&error) => {}
                Some(Err(error)) => panic!("{topic} could not be read: {error}"),
                Some(Ok(message)) => {
                    let Some(&end) = ends.get(&message.partition()) else {
                        continue;
                    };
                    if message.offset() < end {
                        records.push(record(&message));
                    }
                    if message.offset() + 1 >= end {
                        ends.remove(&message.partition());
                    }
                }
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Commits a position with metadata as another program would, while nobody is a member of the group.
    /// `group` is without the prefix: `deliver`.
    #[track_caller]
    pub fn commit(&self, group: &str, topic: &str, partition: i32, position: i64, metadata: &str) {
        let mut config = self.client_config();
        let committer: BaseConsumer = config
            .set("group.id", format!("{}{group}", self.prefix))
            .create()
            .unwrap();
        let mut positions = TopicPartitionList::new();
        let mut element = positions.add_partition(topic, partition);
        element.set_offset(Offset::Offset(position)).unwrap();
        element.set_metadata(metadata);
        super::eventually_true("the coordinator takes a commit", SOON, || {
            committer.commit(&positions, CommitMode::Sync).is_ok()
        });
    }

    /// What a group has committed for a topic: partition, position and metadata, where it has committed.
    /// `group` is without the prefix: `deliver`.
    #[track_caller]
    pub fn committed(&self, group: &str, topic: &str) -> Vec<(i32, i64, String)> {
        // Uncommitted: else this would wait for a transaction that holds the group's offsets.
        let consumer = self.reader(&format!("{}{group}", self.prefix), Isolation::Uncommitted);
        let mut asked = TopicPartitionList::new();
        for partition in self.partitions(&consumer, topic) {
            asked.add_partition(topic, partition);
        }
        // A coordinator that has just moved says so.
        let answer = super::eventually("the group's offsets are told", SOON, || {
            consumer
                .committed_offsets(asked.clone(), Duration::from_secs(5))
                .ok()
        });
        let committed =
            answer
                .elements()
                .into_iter()
                .filter_map(|element| match element.offset() {
                    Offset::Offset(position) => {
                        Some((element.partition(), position, element.metadata().to_owned()))
                    }
                    _ => None,
                });
        committed.collect()
    }

    fn reader(&self, group: &str, isolation: Isolation) -> BaseConsumer {
        let level = if isolation == Isolation::Committed {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        let mut config = self.client_config();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false")
            .set("isolation.level", level)
            .set("fetch.wait.max.ms", "20");
        config.create().unwrap()
    }

    fn partitions(&self, consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
        let metadata = super::eventually("the topic's partitions are told", SOON, || {
            consumer
                .fetch_metadata(Some(topic), Duration::from_secs(5))
                .ok()
        });
        let found: Vec<i32> = metadata.topics()[0]
            .partitions()
            .iter()
            .map(|partition| partition.id())
            .collect();
        assert!(!found.is_empty(), "there is no topic {topic}");
        found
    }
}

/// A record to produce, of any bytes.
#[derive(Clone, Debug, Default)]
pub struct RawRecord {
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub value: Option<Vec<u8>>,
}

/// Adds a header whose name may be any bytes, which the binding's own call does not take.
#[allow(unsafe_code)]
fn insert_raw(headers: OwnedHeaders, name: &[u8], value: Option<&[u8]>) -> OwnedHeaders {
    let list = std::ptr::from_ref(headers.as_borrowed()).cast_mut().cast();
    let value = value.map_or((std::ptr::null(), 0), |value| {
        (value.as_ptr().cast(), value.len().cast_signed())
    });
    // SAFETY: a borrowed list is the client's own list, which is written to by nobody else; the client copies all bytes.
    let error = unsafe {
        rdkafka::bindings::rd_kafka_header_add(
            list,
            name.as_ptr().cast(),
            name.len().cast_signed(),
            value.0,
            value.1,
        )
    };
    assert_eq!(
        error,
        rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
    );
    headers
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    // The binding's own call panics on a name that is not UTF-8.
    let headers = hookstream::edge::kafka::record::header_pairs(message).into_iter();
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_vec()));
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        headers: headers.collect(),
        value: message.payload().map(<[u8]>::to_vec),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
    }
}
