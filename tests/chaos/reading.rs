//! What a run leaves, read back into a history: requests, records, positions, and what is left at rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hookstream::edge::clock;
use hookstream::model::coverage::{self, Coverage};
use hookstream::model::source::{self, Mark};
use hookstream::model::units::{Offset, Position as At};
use hookstream::model::window;
use hookstream::model::window::Window;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::history::{Copy, Place, Position, Request, Sent, What};
use crate::it::support::{Isolation, Receiver, Record, World, live};
use crate::tenants::{self, MARK, is_foreign};
use crate::traffic::Progress;
use crate::truth::{self, Kind, SUBSCRIPTIONS};

/// How long a run may take to come to rest after the last event.
const REST: Duration = Duration::from_secs(240);

/// Waits until nothing moves any more, calling `tend` meanwhile; what is not at rest by then is left.
pub fn come_to_rest(
    world: &World,
    progress: &Progress,
    events: usize,
    mut tend: impl FnMut(),
) -> Vec<(String, i32, i64)> {
    let deadline = Instant::now() + REST;
    let last = u32::try_from(events).unwrap() + 1;
    let mut before = None;
    let mut still = 0;
    while Instant::now() < deadline {
        tend();
        let now: Vec<_> = watched(world)
            .iter()
            .map(|(group, topic)| world.committed(group, topic))
            .collect();
        still = if before.as_ref() == Some(&now) {
            still + 1
        } else {
            0
        };
        before = Some(now);
        if still >= 3 && progress.is_through(1, last) {
            let left = left(world);
            if left.is_empty() {
                return left;
            }
            still = 0;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    left(world)
}

/// Every topic that a group reads, with the group.
fn watched(world: &World) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("fanout", world.events.clone()),
        ("deliver", world.topics.commands()),
    ];
    all.extend(
        world
            .tiers
            .iter()
            .map(|tier| ("release", world.topics.retry(*tier))),
    );
    all
}

/// The topics that hookstream's transactions write to.
fn written(world: &World) -> Vec<String> {
    let mut all = vec![world.topics.commands(), world.topics.dead_letters()];
    all.extend(world.tiers.iter().map(|tier| world.topics.retry(*tier)));
    all
}

/// Committed records that no group has come past, and transactions that are still open.
fn left(world: &World) -> Vec<(String, i32, i64)> {
    let mut left = Vec::new();
    for (group, topic) in watched(world) {
        let positions: HashMap<i32, i64> = world
            .committed(group, &topic)
            .into_iter()
            .map(|(partition, position, _)| (partition, position))
            .collect();
        for record in world.read_all(&topic, Isolation::Committed) {
            if positions
                .get(&record.partition)
                .is_none_or(|&position| position <= record.offset)
            {
                left.push((topic.clone(), record.partition, record.offset));
            }
        }
    }
    for topic in written(world) {
        let open = world.open_transactions(&topic).into_iter();
        left.extend(open.map(|(partition, offset)| (topic.clone(), partition, offset)));
    }
    left
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// What the endpoints got.
pub fn requests(receiver: &Receiver) -> Vec<Request> {
    let mut seen = receiver.seen();
    seen.retain(|seen| tenants::answer(&seen.path).is_none());
    let requests = seen.iter().filter_map(|seen| {
        let subscription = truth::subscription_of(seen.path.strip_prefix('/')?)?;
        let event = truth::number_in(&seen.body)?;
        let attempt = seen.header("hookstream-attempt")?.parse().ok()?;
        Some(Request {
            at: seen.received,
            id: seen.webhook_id().to_owned(),
            subscription,
            event,
            attempt,
            hash: hash(&seen.body),
            accepted: truth::accepts(subscription, event, attempt),
        })
    });
    let requests: Vec<Request> = requests.collect();
    assert_eq!(
        requests.len(),
        seen.len(),
        "every request can be told whose it is"
    );
    requests
}

/// How often each event stands on its topic.
pub fn count_records(world: &World, sent: &mut [Sent]) {
    for (event, at) in events_of(world) {
        let sent = &mut sent[event as usize - 1];
        sent.at = if sent.records == 0 {
            at
        } else {
            sent.at.min(at)
        };
        sent.records += 1;
    }
}

/// The number of each event on the topic.
pub fn event_numbers(world: &World) -> Vec<u32> {
    events_of(world)
        .into_iter()
        .map(|(event, _)| event)
        .collect()
}

/// The number and the time (epoch ms) of each record on the topic.
fn events_of(world: &World) -> Vec<(u32, i64)> {
    let number = |record: Record| {
        let event = record.value.as_deref().and_then(truth::number_in);
        let event = event.unwrap_or_else(|| panic!("an event without a number: {record:?}"));
        (event, record.timestamp)
    };
    let records = world.read_all(&world.events, Isolation::Committed);
    records.into_iter().map(number).collect()
}

/// Every record of a command, on any topic. Of commands that fan-out wrote several times, only the first one lives.
pub fn copies(world: &World) -> Vec<Copy> {
    let mut records = vec![(Place::Commands, world.topics.commands())];
    records.extend(
        world
            .tiers
            .iter()
            .map(|tier| (Place::Tier, world.topics.retry(*tier))),
    );
    records.push((Place::DeadLetters, world.topics.dead_letters()));
    let mut copies = Vec::new();
    let mut facts = Vec::new();
    // A settling fact names no event: its command's other copies tell.
    let mut events: BTreeMap<String, u32> = BTreeMap::new();
    for (place, topic) in records {
        let all = world.read_all(&topic, Isolation::Committed);
        let decided = match place {
            Place::Commands => decided_otherwise(&all),
            _ => BTreeSet::new(),
        };
        for record in live(all) {
            if decided.contains(&(record.partition, record.offset)) {
                continue;
            }
            if record.header(MARK).is_some()
                || record.header("hs-subscription").is_some_and(is_foreign)
            {
                continue;
            }
            match copy(place, &record) {
                Some(copy) => {
                    events.insert(copy.id.clone(), copy.event);
                    copies.push(copy);
                }
                None => facts.push(record),
            }
        }
    }
    for record in facts {
        let fact = fact(&record, &events)
            .unwrap_or_else(|| panic!("a record that nobody understands: {record:?}"));
        copies.push(fact);
    }
    copies
}

/// The places of commands of subscriptions that come and go which lie among those that their partition had seen before: a
/// writer whose cache did not have the subscription had decided that there is none, and delivery keeps to that. At most one
/// is promised of these (**Complete**), so the rule is that of the program under test.
fn decided_otherwise(records: &[Record]) -> BTreeSet<(i32, i64)> {
    let mut covers: HashMap<i32, Coverage> = HashMap::new();
    let mut found = BTreeSet::new();
    for record in records {
        let Some(header) = record.header(source::HEADER) else {
            continue;
        };
        let mark = Mark::parse(header.as_bytes()).unwrap();
        let cover = covers
            .entry(record.partition)
            .or_insert_with(|| Coverage::new(At(0)));
        let answer = cover.ask(Offset(record.offset), &mark);
        let subscription = record
            .header("hs-subscription")
            .and_then(truth::subscription_of);
        let may_be_gone =
            subscription.is_some_and(|number| SUBSCRIPTIONS[number] == Kind::Volatile);
        if may_be_gone && answer.kind == coverage::Kind::Copy {
            found.insert((record.partition, record.offset));
        }
    }
    found
}

fn number<T: std::str::FromStr>(record: &Record, name: &str) -> Option<T> {
    record.header(name)?.parse().ok()
}

fn copy(place: Place, record: &Record) -> Option<Copy> {
    Some(Copy {
        place,
        partition: record.partition,
        offset: record.offset,
        at: record.timestamp,
        id: record.header("webhook-id")?.to_owned(),
        subscription: truth::subscription_of(record.header("hs-subscription")?)?,
        event: truth::number_of(record.header("hs-event-id")?)?,
        attempt: number(record, "hs-attempt")?,
        cause: record.header("hs-cause").unwrap_or_default().to_owned(),
        due: number(record, "hs-due"),
        hash: hash(record.value.as_deref()?),
        what: What::Command,
        reason: record.header("hs-reason").map(str::to_owned),
    })
}

fn fact(record: &Record, events: &BTreeMap<String, u32>) -> Option<Copy> {
    let id = record.header("webhook-id")?.to_owned();
    Some(Copy {
        place: Place::DeadLetters,
        partition: record.partition,
        offset: record.offset,
        at: record.timestamp,
        event: *events.get(&id)?,
        id,
        subscription: truth::subscription_of(record.header("hs-subscription")?)?,
        attempt: 0,
        cause: record.header("hs-fact")?.to_owned(),
        due: None,
        hash: 0,
        what: What::Replayed(
            number(record, "hs-letter-partition")?,
            number(record, "hs-letter-offset")?,
        ),
        reason: None,
    })
}

/// Reads what the delivery group has committed, twice a second.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
    positions: Arc<Mutex<Vec<Position>>>,
}

impl Sampler {
    pub fn start(world: &Arc<World>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let positions = Arc::new(Mutex::new(Vec::new()));
        let (world, stopped, into) = (Arc::clone(world), Arc::clone(&stop), Arc::clone(&positions));
        let thread = std::thread::spawn(move || {
            let mut config = world.client_config();
            config.set("group.id", format!("{}deliver", world.prefix));
            let consumer: BaseConsumer = config.create().unwrap();
            let topic = world.topics.commands();
            while !stopped.load(Ordering::SeqCst) {
                // While brokers are away there is nothing to read.
                if let Some(read) = sample(&consumer, &topic) {
                    into.lock().unwrap().extend(read);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Self {
            stop,
            thread,
            positions,
        }
    }

    pub fn finish(self) -> Vec<Position> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.positions.lock().unwrap())
    }
}

fn sample(consumer: &BaseConsumer, topic: &str) -> Option<Vec<Position>> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).ok()?;
    let mut asked = TopicPartitionList::new();
    for partition in metadata.topics().first()?.partitions() {
        asked.add_partition(topic, partition.id());
    }
    let cluster = consumer.client().fetch_cluster_id(PATIENCE)?;
    let place = |partition| window::Place::new(&cluster, topic, partition);
    let at = clock::now().0;
    let answer = consumer.committed_offsets(asked, PATIENCE).ok()?;
    let read = answer.elements().into_iter().filter_map(|element| {
        let position = element.offset().to_raw().filter(|&offset| offset >= 0)?;
        let (window, error) =
            Window::restore(At(position), element.metadata(), place(element.partition()));
        assert!(error.is_none(), "the group's own metadata: {error:?}");
        let finished =
            (position..position + 24_000).filter(|&offset| window.is_finished(Offset(offset)));
        Some(Position {
            at,
            partition: element.partition(),
            position,
            finished: finished.collect(),
        })
    });
    Some(read.collect())
}

/// When deliveries found that they were out of their group, by what they logged; epoch ms.
pub fn evictions(lines: impl Iterator<Item = String>) -> Vec<i64> {
    let lost = lines.filter(|line| line.contains("revoked") && line.contains("lost=true"));
    let times = lost.filter_map(|line| line.split(' ').next()?.parse::<jiff::Timestamp>().ok());
    times.map(|time| time.as_millisecond()).collect()
}

/// The partition and the time (epoch ms) of each event's record, by the event's number.
#[allow(dead_code, reason = "only the test on Kubernetes needs it")]
pub fn event_records(world: &World) -> HashMap<u32, (i32, i64)> {
    let records = world.read_all(&world.events, Isolation::Committed);
    let of_record = |record: &Record| {
        let event = record.value.as_deref().and_then(truth::number_in)?;
        Some((event, (record.partition, record.timestamp)))
    };
    records.iter().filter_map(of_record).collect()
}
