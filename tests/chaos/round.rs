//! One round: traffic flows, faults come one after the other, each followed until all is well again; then rest, and the
//! check.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use hookstream::clock;
use hookstream::delivery::window::{Place, Window};
use hookstream::units::{Offset, Position as At};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::checker::{Promise, check};
use crate::faults::{Bag, Fault, Scene, secret};
use crate::fleet::Fleet;
use crate::history::{Copy, History, Place, Position, Request, Sent, What};
use crate::it::support::{Broker, Isolation, Receiver, Record, World};
use crate::report::Report;
use crate::traffic::{self, Generator, Progress};
use crate::truth::{self, SUBSCRIPTIONS};

/// How long the system may take until all that was produced during a fault is through. Past it, it is stuck.
const STUCK: Duration = Duration::from_secs(120);
/// How long it may take to come to rest after the last event.
const REST: Duration = Duration::from_secs(240);

/// What a round is to be.
pub struct Plan {
    pub seed: u64,
    pub length: Duration,
    /// Events a second.
    pub rate: u32,
    pub promise: Promise,
    /// No faults that take half a minute.
    pub short: bool,
    /// At most so many faults come on top of each other before it is waited until all is well again.
    pub bursts: usize,
}

/// How many faults come next: in half of the cases one alone.
fn burst(rng: &mut Rng, most: usize) -> usize {
    if most < 2 || rng.bool() {
        1
    } else {
        rng.usize(2..=most)
    }
}

/// Runs one round, and adds it to the report.
pub fn run(broker: &Broker, plan: &Plan, wanted: &dyn Fn(Fault) -> bool, report: &mut Report) {
    let mut rng = Rng::with_seed(plan.seed);
    let mut world = World::on(broker, "chaos");
    world.tiers = vec![truth::RETRY];
    if plan.promise == Promise::AtLeastOnce {
        world.flags = ["--guarantee", "at-least-once"].map(str::to_owned).to_vec();
    }
    world.create_topics(3);
    let world = Arc::new(world);
    let progress = Arc::new(Progress::default());
    let receiver = traffic::receiver(&progress);
    for number in 0..SUBSCRIPTIONS.len() {
        traffic::put(&world, &receiver, number, &secret(0), "active");
    }
    let mut fleet = Fleet::start(&world, &[("fanout", 2), ("deliver", 2), ("release", 2)]);
    let sampler = Sampler::start(&world);
    let generator = Generator::start(&world, plan.rate);
    let mut faults = Vec::new();
    let mut scene = Scene {
        broker,
        world: &world,
        receiver: &receiver,
        fleet: &mut fleet,
        secret: 0,
        partitions: 3,
        failures: Vec::new(),
        generator: &generator,
        progress: &progress,
        rate: plan.rate,
        alone: true,
        recovered: None,
    };
    let until = Instant::now() + plan.length;
    let mut bag = Bag::new(wanted, plan.short);
    while Instant::now() < until {
        let burst = burst(&mut rng, plan.bursts);
        let first = generator.next();
        let mut since = Instant::now();
        let mut names = Vec::new();
        scene.alone = burst == 1;
        scene.recovered = None;
        for _ in 0..burst {
            let fault = bag.next(&mut rng);
            let from = Instant::now();
            let injected = scene.inject(fault, &mut rng);
            println!(
                "{:>6.1} s: {}",
                (plan
                    .length
                    .saturating_sub(until.saturating_duration_since(from)))
                .as_secs_f64(),
                injected.what
            );
            // What a kill breaks is broken from its beginning; what lasts, is mended at its end.
            since = if matches!(fault, Fault::Kill | Fault::BrokerKill) {
                from
            } else {
                Instant::now()
            };
            names.push(fault);
            faults.push(injected);
        }
        let last = generator.next() + plan.rate;
        let through = scene
            .fleet
            .tend_until_through(&progress, first, last, STUCK);
        if through.is_none() && excuse_what_kafka_lost(&world, &generator, &progress, first, last) {
            report.injected(&names);
            continue;
        }
        let recovered = through.map(|at| scene.recovered.unwrap_or(at));
        report.faults(
            &names,
            recovered.map(|at| at.saturating_duration_since(since)),
        );
        if through.is_none() {
            report.stuck(
                format!("after {names:?}: {}", faults.last().unwrap().what),
                scene.fleet.logs(),
            );
            break;
        }
        std::thread::sleep(Duration::from_millis(rng.u64(200..2000)));
        scene.fleet.tend();
    }
    report.failures(std::mem::take(&mut scene.failures));
    let mut sent = generator.finish();
    let left = come_to_rest(&world, &mut fleet, &progress, sent.len());
    let positions = sampler.finish();
    count_records(&world, &mut sent);
    let history = History {
        sent,
        requests: requests(&receiver),
        copies: copies(&world),
        positions,
        faults,
        evictions: fleet.evictions(),
        left,
    };
    let verdict = check(&history, plan.promise);
    if !verdict.violations.is_empty() {
        report.logs(fleet.logs());
    }
    report.failures(std::mem::take(&mut fleet.stuck));
    report.round(plan, &history, verdict, std::mem::take(&mut fleet.ended));
}

/// Events that are not on their topic cannot come through: whether all that are missing are such ones. The checker counts
/// them, since the generator's client had them acknowledged.
fn excuse_what_kafka_lost(
    world: &World,
    generator: &Generator,
    progress: &Progress,
    first: u32,
    last: u32,
) -> bool {
    // Before the topic is read: what comes through meanwhile was too late, not lost.
    let missing = progress.missing(first, last);
    let there: HashSet<u32> = event_numbers(world).into_iter().collect();
    let is_lost = |&event: &u32| !there.contains(&event) && generator.has_acknowledged(event);
    let lost = !missing.is_empty() && missing.iter().all(is_lost);
    if lost {
        println!("          not on the topic, though acknowledged: events {missing:?}");
        missing.into_iter().for_each(|event| progress.excuse(event));
    }
    lost
}

/// Waits until nothing moves any more; what is not at rest by then is left.
fn come_to_rest(
    world: &World,
    fleet: &mut Fleet,
    progress: &Progress,
    events: usize,
) -> Vec<(String, i32, i64)> {
    let deadline = Instant::now() + REST;
    let last = u32::try_from(events).unwrap() + 1;
    let mut before = None;
    let mut still = 0;
    while Instant::now() < deadline {
        fleet.tend();
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

fn requests(receiver: &Receiver) -> Vec<Request> {
    let seen = receiver.seen();
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

fn count_records(world: &World, sent: &mut [Sent]) {
    for event in event_numbers(world) {
        sent[event as usize - 1].records += 1;
    }
}

/// The number of each event on the topic.
fn event_numbers(world: &World) -> Vec<u32> {
    let number = |record: Record| {
        let event = record.value.as_deref().and_then(truth::number_in);
        event.unwrap_or_else(|| panic!("an event without a number: {record:?}"))
    };
    let records = world.read_all(&world.events, Isolation::Committed);
    records.into_iter().map(number).collect()
}

fn copies(world: &World) -> Vec<Copy> {
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
        for record in world.read_all(&topic, Isolation::Committed) {
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
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
    positions: Arc<Mutex<Vec<Position>>>,
}

impl Sampler {
    fn start(world: &Arc<World>) -> Self {
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

    fn finish(self) -> Vec<Position> {
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
    let place = |partition| Place::new(&cluster, topic, partition);
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
