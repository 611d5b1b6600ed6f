//! Events at a steady rate from a producer that knows which of them the broker has, endpoints that do as `truth` says,
//! and a count of what has come through.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

use crate::history::Sent;
use crate::it::support::{Answer, Receiver, World};
use crate::tenants;
use crate::truth::{self, Kind, SUBSCRIPTIONS};

/// Which probes have accepted an event, a bit each; by the event's number.
#[derive(Default)]
pub struct Progress(Mutex<Vec<u32>>);

impl Progress {
    fn note(&self, event: u32, number: usize) {
        let mut all = self.0.lock().unwrap();
        let at = event as usize;
        if all.len() <= at {
            all.resize(at + 1, 0);
        }
        all[at] |= 1 << number;
    }

    /// Nothing will ever come of this event.
    pub fn excuse(&self, event: u32) {
        (0..SUBSCRIPTIONS.len()).for_each(|number| self.note(event, number));
    }

    /// Whether every probe has accepted every event from one number up to, not including, another.
    pub fn is_through(&self, from: u32, until: u32) -> bool {
        self.missing(from, until).is_empty()
    }

    /// The events of these that not every probe has accepted.
    pub fn missing(&self, from: u32, until: u32) -> Vec<u32> {
        let probes = (0..SUBSCRIPTIONS.len()).filter(|&number| SUBSCRIPTIONS[number].is_probe());
        let mask = probes.fold(0, |mask, number| mask | 1 << number);
        let all = self.0.lock().unwrap();
        let is_missing = |event: &u32| {
            let seen = all.get(*event as usize);
            seen.is_none_or(|seen| seen & mask != mask)
        };
        (from..until).filter(is_missing).collect()
    }
}

/// An endpoint at that address for all subscriptions, told apart by their paths.
pub fn receiver(address: IpAddr, progress: &Arc<Progress>) -> Receiver {
    let progress = Arc::clone(progress);
    Receiver::start_at(address, move |seen| {
        if let Some(answer) = tenants::answer(&seen.path) {
            return answer;
        }
        let Some(number) = seen.path.strip_prefix('/').and_then(truth::subscription_of) else {
            return Answer::status(404);
        };
        let attempt = seen
            .header("hookstream-attempt")
            .and_then(|text| text.parse().ok());
        let (Some(event), Some(attempt)) = (truth::number_in(&seen.body), attempt) else {
            return Answer::status(418);
        };
        if truth::accepts(number, event, attempt) {
            progress.note(event, number);
        }
        let answer = SUBSCRIPTIONS[number].answer(event, attempt);
        if SUBSCRIPTIONS[number].is_probe() && truth::is_named(number) {
            // Each request needs a connection, and so a lookup: it notices when lookups wait.
            return answer.header("connection", "close");
        }
        answer
    })
}

/// Which events the broker has acknowledged, by their numbers.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Vec<bool>>>);

impl Acknowledged {
    fn has(&self, event: u32) -> bool {
        let all = self.0.lock().unwrap();
        all.get(event as usize).copied().unwrap_or(false)
    }
}

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, event: usize) {
        if result.is_ok() {
            let mut all = self.0.lock().unwrap();
            if all.len() <= event {
                all.resize(event + 1, false);
            }
            all[event] = true;
        }
    }
}

/// A thread that produces events 1, 2, 3 and so on.
pub struct Generator {
    next: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
    thread: JoinHandle<Vec<Sent>>,
}

impl Generator {
    /// `rate` events a second.
    pub fn start(world: &Arc<World>, rate: u32) -> Self {
        let next = Arc::new(AtomicU32::new(1));
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Acknowledged::default();
        let (world, next_of_thread, stopped) =
            (Arc::clone(world), Arc::clone(&next), Arc::clone(&stop));
        let context = acknowledged.clone();
        let thread =
            std::thread::spawn(move || produce(&world, rate, &next_of_thread, &stopped, context));
        Self {
            next,
            stop,
            acknowledged,
            thread,
        }
    }

    /// Whether the broker has said that it has this event.
    pub fn has_acknowledged(&self, event: u32) -> bool {
        self.acknowledged.has(event)
    }

    /// The number of the next event.
    pub fn next(&self) -> u32 {
        self.next.load(Ordering::SeqCst)
    }

    /// Produces no more; waits until the fate of all is known.
    pub fn finish(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn produce(
    world: &World,
    rate: u32,
    next: &AtomicU32,
    stop: &AtomicBool,
    acknowledged: Acknowledged,
) -> Vec<Sent> {
    let mut config = world.client_config();
    config
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("message.timeout.ms", "300000");
    let producer: ThreadedProducer<Acknowledged> =
        config.create_with_context(acknowledged.clone()).unwrap();
    let began = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let number = next.load(Ordering::SeqCst);
        let due = began + Duration::from_secs_f64(f64::from(number) / f64::from(rate));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (key, value) = (format!("order-{}", number % 50), truth::event(number));
        let record = BaseRecord::with_opaque_to(&world.events, number as usize)
            .key(&key)
            .payload(&value);
        match producer.send(record) {
            Ok(()) => {
                next.store(number + 1, Ordering::SeqCst);
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err((error, _)) => panic!("event {number} could not be produced: {error}"),
        }
    }
    producer.flush(Duration::from_secs(120)).unwrap();
    (1..next.load(Ordering::SeqCst))
        .map(|event| Sent {
            event,
            acknowledged: acknowledged.has(event),
            records: 0,
            at: 0,
        })
        .collect()
}

/// Writes the record of subscription `number`.
pub fn put(world: &World, receiver: &Receiver, number: usize, secret: &str, state: &str) {
    let mut url = receiver.url(&format!("/{}", Kind::id(number)));
    if truth::is_named(number) {
        url = url.replace("127.0.0.1", "localhost");
    }
    put_at(world, &url, number, secret, state);
}

/// The same with another URL.
pub fn put_at(world: &World, url: &str, number: usize, secret: &str, state: &str) {
    world.put_subscription(
        &Kind::id(number),
        truth::subscription(number, url, secret, state).to_string(),
    );
}
