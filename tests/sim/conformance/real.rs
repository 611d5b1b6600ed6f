//! A real broker, by librdkafka with the settings that matter to the program's own clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata,
};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::step::{Side, Step, key_value};
use crate::it::support::{SOON, block_on};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(20);

/// How long committed offsets are waited for while a transaction holds them.
pub const HELD: Duration = Duration::from_secs(2);

/// A broker, seen by one scenario.
pub struct Real {
    brokers: String,
    prefix: String,
    admin: AdminClient<DefaultClientContext>,
    producers: BTreeMap<&'static str, Producer>,
    members: BTreeMap<&'static str, Member>,
    kept: BTreeMap<&'static str, Arc<ConsumerGroupMetadata>>,
}

struct Producer {
    client: ThreadedProducer<Reports>,
    sent: usize,
}

/// Logs nothing: errors are compared, not read.
struct Quiet;
impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}
impl ConsumerContext for Quiet {}

#[derive(Default)]
struct Reports(Mutex<BTreeMap<usize, String>>);

impl ClientContext for Reports {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        let seen = match result {
            Ok(message) => message.offset().to_string(),
            Err((error, _)) => describe(error),
        };
        self.0.lock().unwrap().insert(tag, seen);
    }
}

/// What the polling thread of a member and the scenario share.
#[derive(Default)]
struct Shared {
    owned: Mutex<BTreeSet<i32>>,
    hold: AtomicBool,
    asked: AtomicBool,
    frozen: AtomicBool,
    stop: AtomicBool,
}

struct Membership(Arc<Shared>);

impl ClientContext for Membership {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Membership {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let assigning = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let numbers = || {
            let elements = partitions.elements();
            let each = elements.iter().map(|element| element.partition());
            each.collect::<Vec<_>>()
        };
        if assigning {
            for element in &mut partitions.elements() {
                element.set_offset(Offset::Beginning).unwrap();
            }
            consumer.incremental_assign(partitions).unwrap();
            if partitions.count() > 0 {
                consumer.pause(partitions).unwrap();
            }
            self.0.owned.lock().unwrap().extend(numbers());
            return;
        }
        self.0.asked.store(true, Ordering::SeqCst);
        while self.0.hold.load(Ordering::SeqCst) && !self.0.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0
            .owned
            .lock()
            .unwrap()
            .retain(|number| !numbers().contains(number));
        consumer.incremental_unassign(partitions).unwrap();
    }
}

struct Member {
    client: Arc<BaseConsumer<Membership>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    last: BTreeSet<i32>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// An error as it is compared: its class in a transaction, and the library's code.
fn describe(error: &KafkaError) -> String {
    let code = error.rdkafka_error_code();
    let code = code.map_or_else(|| error.to_string(), |code| format!("{code:?}"));
    match error {
        KafkaError::Transaction(inner) if inner.is_fatal() => format!("fatal {code}"),
        KafkaError::Transaction(inner) if inner.txn_requires_abort() => format!("abort {code}"),
        KafkaError::Transaction(inner) if inner.is_retriable() => format!("retry {code}"),
        _ => code,
    }
}

fn shown(result: Result<(), KafkaError>) -> String {
    result.map_or_else(|error| describe(&error), |()| "ok".to_owned())
}

fn shown_code(result: TopicResult) -> String {
    result.map_or_else(|(_, code)| format!("{code:?}"), |_| "ok".to_owned())
}

impl Real {
    /// The broker at `brokers`, with names that no other scenario has.
    pub fn new(brokers: &str, scenario: &str) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let admin = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create();
        Self {
            brokers: brokers.to_owned(),
            prefix: format!("{scenario}-{}-{number}-", std::process::id()),
            admin: admin.unwrap(),
            producers: BTreeMap::new(),
            members: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("allow.auto.create.topics", "false")
            .set("topic.metadata.refresh.interval.ms", "500")
            .set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    fn consumer_config(&self, group: &str) -> ClientConfig {
        let mut config = self.config();
        config
            .set("group.id", self.name(group))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "6000")
            .set("max.poll.interval.ms", "6000")
            .set("heartbeat.interval.ms", "200")
            .set("fetch.wait.max.ms", "20");
        config
    }

    fn reader(&self, committed: bool) -> BaseConsumer<Quiet> {
        let isolation = if committed {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        let mut config = self.consumer_config("reader");
        config.set("isolation.level", isolation);
        config.create_with_context(Quiet).unwrap()
    }

    fn open(&mut self, name: &'static str, id: Option<(&str, u32)>) -> String {
        let mut config = self.config();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("retry.backoff.ms", "5")
            .set("message.max.bytes", "1000000")
            .set("message.timeout.ms", "20000");
        if let Some((id, timeout)) = id {
            config
                .set("transactional.id", self.name(id))
                .set("transaction.timeout.ms", timeout.to_string())
                .set("message.timeout.ms", timeout.min(20_000).to_string());
        }
        let client: ThreadedProducer<Reports> =
            config.create_with_context(Reports::default()).unwrap();
        let result = match id {
            Some(_) => shown(client.init_transactions(CALL)),
            None => "ok".to_owned(),
        };
        self.producers.insert(name, Producer { client, sent: 0 });
        result
    }

    fn send(
        &mut self,
        name: &str,
        topic: &str,
        partition: i32,
        (key, value): (Option<&str>, Option<&str>),
        ago: i64,
    ) -> String {
        let topic = self.name(topic);
        let producer = self.producers.get_mut(name).unwrap();
        let now = jiff::Timestamp::now().as_millisecond();
        let mut record = BaseRecord::with_opaque_to(&topic, producer.sent)
            .partition(partition)
            .timestamp(now - ago);
        record.key = key;
        record.payload = value;
        producer.sent += 1;
        match producer.client.send(record) {
            Ok(()) => "ok".to_owned(),
            Err((error, _)) => describe(&error),
        }
    }

    fn read(&self, topic: &str, partition: i32, from: i64, committed: bool) -> String {
        let reader = self.reader(committed);
        let mut list = TopicPartitionList::new();
        let at = Offset::Offset(from);
        list.add_partition_offset(&self.name(topic), partition, at)
            .unwrap();
        reader.assign(&list).unwrap();
        let until = Instant::now() + CALL;
        let mut seen = Vec::new();
        while Instant::now() < until {
            match reader.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let value = message.payload().map(String::from_utf8_lossy);
                    let value = value.unwrap_or_default();
                    seen.push(format!("{}={value}", message.offset()));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return seen.join(" "),
                Some(Err(error)) => match error.rdkafka_error_code() {
                    // The library's name for a position out of range without a reset.
                    Some(Code::AutoOffsetReset) => return "out of range".to_owned(),
                    Some(Code::UnknownPartition) => {}
                    _ => return describe(&error),
                },
                None => {}
            }
        }
        "nothing".to_owned()
    }

    fn ends(&self, topic: &str) -> String {
        let ask = |committed| {
            let reader = self.reader(committed);
            reader.fetch_watermarks(&self.name(topic), 0, CALL)
        };
        match ask(true).and_then(|stable| Ok((stable, ask(false)?))) {
            Ok(((low, stable), (_, high))) => format!("{low} {stable} {high}"),
            Err(error) => describe(&error),
        }
    }

    fn since(&self, topic: &str, ago: i64) -> String {
        let now = jiff::Timestamp::now().as_millisecond();
        let mut list = TopicPartitionList::new();
        let at = Offset::Offset(now - ago);
        list.add_partition_offset(&self.name(topic), 0, at).unwrap();
        match self.reader(true).offsets_for_times(list, CALL) {
            Ok(found) => match found.elements()[0].offset() {
                Offset::Offset(offset) => offset.to_string(),
                other => format!("{other:?}"),
            },
            Err(error) => describe(&error),
        }
    }

    fn join(&mut self, name: &'static str, group: &str, topic: &str, instance: &str) -> String {
        let mut config = self.consumer_config(group);
        if !instance.is_empty() {
            config.set("group.instance.id", self.name(instance));
        }
        let shared = Arc::new(Shared::default());
        let context = Membership(Arc::clone(&shared));
        let client: BaseConsumer<Membership> = config.create_with_context(context).unwrap();
        client.subscribe(&[&self.name(topic)]).unwrap();
        let client = Arc::new(client);
        let (polled, state) = (Arc::clone(&client), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            while !state.stop.load(Ordering::SeqCst) {
                if state.frozen.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                } else {
                    drop(polled.poll(Duration::from_millis(20)));
                }
            }
        });
        let member = Member {
            client,
            shared,
            thread: Some(thread),
            last: BTreeSet::new(),
        };
        self.members.insert(name, member);
        "ok".to_owned()
    }

    fn offset(
        &self,
        topic: &str,
        partition: i32,
        position: i64,
        length: usize,
    ) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&self.name(topic), partition);
        element.set_offset(Offset::Offset(position)).unwrap();
        if length > 0 {
            element.set_metadata("x".repeat(length));
        }
        list
    }

    fn committed(&self, group: &str, topic: &str, partition: i32) -> String {
        let client: BaseConsumer<Quiet> = self
            .consumer_config(group)
            .create_with_context(Quiet)
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.name(topic), partition);
        match client.committed_offsets(list, HELD) {
            Ok(found) => {
                let elements = found.elements();
                match (elements[0].error(), elements[0].offset()) {
                    (Ok(()), Offset::Offset(offset)) => {
                        format!("{offset} {}", elements[0].metadata().len())
                    }
                    (Ok(()), _) => "none".to_owned(),
                    (Err(error), _) => describe(&error),
                }
            }
            Err(error) => describe(&error),
        }
    }

    fn commit(client: &BaseConsumer<impl ConsumerContext>, list: &TopicPartitionList) -> String {
        shown(client.commit(list, CommitMode::Sync))
    }

    fn owns(&self, wanted: &[(&'static str, usize)]) -> String {
        let owned = |name: &str| self.members[name].shared.owned.lock().unwrap().len();
        let each = wanted
            .iter()
            .map(|(name, _)| format!("{name}:{}", owned(name)));
        each.collect::<Vec<_>>().join(" ")
    }

    fn wait(&self, mut holds: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + SOON;
        while !holds(self) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn administer(&self, step: &Step) -> Option<String> {
        let options = AdminOptions::new().operation_timeout(Some(CALL));
        let first = |result: Result<Vec<TopicResult>, KafkaError>| match result {
            Ok(results) => shown_code(results.into_iter().next().unwrap()),
            Err(error) => describe(&error),
        };
        Some(match step {
            Step::Topic(name, partitions, config) => {
                let name = self.name(name);
                let mut topic = NewTopic::new(&name, *partitions, TopicReplication::Fixed(1));
                for (key, value) in *config {
                    topic = topic.set(key, value);
                }
                first(block_on(self.admin.create_topics([&topic], &options)))
            }
            Step::DeleteTopic(name) => first(block_on(
                self.admin.delete_topics(&[&self.name(name)], &options),
            )),
            Step::Partitions(name, count) => {
                let name = self.name(name);
                let count = usize::try_from(*count).unwrap();
                let more = NewPartitions::new(&name, count);
                first(block_on(self.admin.create_partitions([&more], &options)))
            }
            Step::DeleteRecords(name, offset) => {
                let mut list = TopicPartitionList::new();
                let at = Offset::Offset(*offset);
                list.add_partition_offset(&self.name(name), 0, at).unwrap();
                match block_on(self.admin.delete_records(&list, &options)) {
                    Ok(done) => shown(done.elements()[0].error()),
                    Err(error) => describe(&error),
                }
            }
            _ => return None,
        })
    }

    fn produce(&mut self, step: &Step) -> Option<String> {
        Some(match step {
            Step::Open(name, id, timeout) => self.open(name, Some((*id, *timeout))),
            Step::OpenPlain(name) => self.open(name, None),
            Step::Begin(name) => shown(self.producers[name].client.begin_transaction()),
            Step::Send(name, topic, partition, records, ago) => {
                let each = records.iter();
                let each: Vec<_> = each
                    .map(|text| self.send(name, topic, *partition, key_value(text), *ago))
                    .collect();
                each.join(" ")
            }
            Step::SendLarge(name, topic, size) => {
                let value = "x".repeat(*size);
                self.send(name, topic, 0, (None, Some(&value)), 0)
            }
            Step::Flush(name) => {
                let client = &self.producers[name].client;
                // What is not written by then is missing below.
                client.flush(CALL).ok();
                let reports = std::mem::take(&mut *client.context().0.lock().unwrap());
                reports.into_values().collect::<Vec<_>>().join(" ")
            }
            Step::Offsets(name, kept, topic, position, length) => {
                let list = self.offset(topic, 0, *position, *length);
                let client = &self.producers[name].client;
                shown(client.send_offsets_to_transaction(&list, &self.kept[kept], CALL))
            }
            Step::Commit(name) => shown(
                self.producers[name]
                    .client
                    .commit_transaction(Timeout::Never),
            ),
            Step::Abort(name) => shown(self.producers[name].client.abort_transaction(CALL)),
            Step::Crash(name) => {
                self.producers.remove(name);
                "ok".to_owned()
            }
            _ => return None,
        })
    }
}

impl Side for Real {
    fn act(&mut self, step: &Step) -> String {
        if let Some(seen) = self.administer(step) {
            return seen;
        }
        if let Some(seen) = self.produce(step) {
            return seen;
        }
        match step {
            Step::Read(topic, partition, from, committed) => {
                self.read(topic, *partition, *from, *committed)
            }
            Step::Ends(topic) => self.ends(topic),
            Step::Since(topic, ago) => self.since(topic, *ago),
            Step::Join(name, group, topic, instance) => self.join(name, group, topic, instance),
            Step::Own(wanted) => {
                let goal = wanted.iter().map(|(name, count)| format!("{name}:{count}"));
                let goal = goal.collect::<Vec<_>>().join(" ");
                self.wait(|real| real.owns(wanted) == goal);
                self.owns(wanted)
            }
            Step::Kept(name) => {
                let member = self.members.get_mut(name).unwrap();
                let owned = member.shared.owned.lock().unwrap().clone();
                let last = std::mem::replace(&mut member.last, owned.clone());
                (owned.is_subset(&last) || last.is_subset(&owned)).to_string()
            }
            Step::Hold(name, hold) => {
                let shared = &self.members[name].shared;
                shared.asked.store(false, Ordering::SeqCst);
                shared.hold.store(*hold, Ordering::SeqCst);
                "ok".to_owned()
            }
            Step::Asked(name) => {
                self.wait(|real| real.members[name].shared.asked.load(Ordering::SeqCst));
                let asked = self.members[name].shared.asked.load(Ordering::SeqCst);
                asked.to_string()
            }
            Step::Freeze(name, frozen) => {
                let shared = &self.members[name].shared;
                shared.frozen.store(*frozen, Ordering::SeqCst);
                "ok".to_owned()
            }
            Step::Leave(name) => {
                self.members.remove(name);
                "ok".to_owned()
            }
            Step::Keep(name, kept) => {
                let membership = self.members[name].client.group_metadata().unwrap();
                self.kept.insert(*kept, Arc::new(membership));
                "ok".to_owned()
            }
            Step::CommitAs(name, topic, partition, position, length) => {
                let list = self.offset(topic, *partition, *position, *length);
                Self::commit(&self.members[name].client, &list)
            }
            Step::CommitAlone(group, topic, position) => {
                let config = self.consumer_config(group);
                let client: BaseConsumer<Quiet> = config.create_with_context(Quiet).unwrap();
                Self::commit(&client, &self.offset(topic, 0, *position, 0))
            }
            Step::Committed(group, topic, partition) => self.committed(group, topic, *partition),
            other => panic!("{other:?} is not a step of this side"),
        }
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
    }
}
