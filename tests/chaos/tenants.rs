//! Faults of one tenant, one record or one topic: everybody else must not notice.
//!
//! Their subscriptions have ids that begin with [`FOREIGN`], and their records the header [`MARK`]; the checker leaves
//! both out. Events of theirs go to a topic of their own, which fan-out reads beside the generator's. While such a fault
//! lasts, and no other comes on top of it, the healthy subscriptions' latency is checked (**Isolated**).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, FutureProducer, FutureRecord, Producer, ThreadedProducer};
use serde_json::json;

use crate::it::support::{Answer, Isolation, Receiver, World, block_on};

/// What the ids of bad tenants' subscriptions begin with.
pub const FOREIGN: &str = "x-";
/// A header of every record that stands for nobody's event.
pub const MARK: &str = "x-garbage";
/// The path of an endpoint that hangs.
pub const HANGING: &str = "/x-hanging";
/// A zone whose name server never responds, to the replicas of this test (`src/edge/failpoint.rs`).
pub const SILENT_ZONE: &str = "silent.example";
/// Of every subscription with one.
const SECRET: &str = "whsec_YmFkIHRlbmFudHMgb2YgdGhlIGNoYW9zIHRlc3Q=";
/// More than fan-out's producer accepts.
const OVERSIZED: usize = 3 << 20;
/// How long a bad tenant has its way.
const LENGTH: Duration = Duration::from_secs(6);
/// How long what a fault should lead to may take.
const LATER: Duration = Duration::from_secs(60);

/// Whether a subscription is a bad tenant's.
pub fn is_foreign(subscription: &str) -> bool {
    subscription.starts_with(FOREIGN)
}

/// The response to a bad tenant's request; `None` for other paths.
pub fn answer(path: &str) -> Option<Answer> {
    match path.strip_prefix('/')?.strip_prefix(FOREIGN)? {
        "gone" => Some(Answer::status(410)),
        "kept" => Some(Answer::ok()),
        "failing" => Some(Answer::status(500)),
        _ => Some(Answer::hang()),
    }
}

/// The event topic of the bad tenants.
pub fn events(world: &World) -> String {
    format!("{}side-events", world.prefix)
}

/// What bad tenants did in one round.
#[derive(Default)]
pub struct Tenants {
    /// Events that cannot be read.
    invalid: AtomicUsize,
    number: AtomicUsize,
}

impl Tenants {
    /// Creates the event topic, which allows records larger than fan-out can write.
    pub fn create_topic(world: &World) {
        let limit = (2 * OVERSIZED).to_string();
        world.create_topic(&events(world), 1, &[("max.message.bytes", &limit)]);
    }

    fn next(&self) -> usize {
        self.number.fetch_add(1, Ordering::SeqCst)
    }

    /// An event that does not fit into a record of fan-out's.
    pub fn oversized(&self, world: &World, rng: &mut Rng) -> String {
        let mut config = world.client_config();
        config.set("message.max.bytes", (2 * OVERSIZED).to_string());
        let producer: FutureProducer = config.create().unwrap();
        let size = OVERSIZED + rng.usize(0..OVERSIZED / 2);
        let mut value = br#"{"id":"big","type":"a.big","data":""#.to_vec();
        value.extend((value.len()..size).map(|_| rng.alphanumeric() as u8));
        value.extend(br#""}"#);
        let topic = events(world);
        let record = FutureRecord::<str, [u8]>::to(&topic)
            .payload(&value)
            .headers(mark(OwnedHeaders::new()));
        block_on(producer.send(record, LATER)).unwrap();
        self.invalid.fetch_add(1, Ordering::SeqCst);
        format!("{size} bytes")
    }

    /// Records that nobody can read, on each topic of hookstream's own.
    pub fn garbage(&self, world: &World, rng: &mut Rng) -> String {
        let topics = [
            world.topics.commands(),
            world.topics.retry(world.tiers[0]),
            world.topics.dead_letters(),
            world.topics.subscriptions(),
        ];
        let producer: ThreadedProducer<_> = world.client_config().create().unwrap();
        let names = [
            "hs-version",
            "webhook-id",
            "hs-subscription",
            "hs-event-id",
            "hs-attempt",
            "hs-due",
            "hs-enqueued",
            "hs-cause",
            "hs-sequence",
            "hs-reason",
            "hs-fact",
            "hs-event-time",
            "traceparent",
        ];
        let values: [&[u8]; 8] = [
            b"",
            b"-1",
            b"99999999999999999999999",
            b"\xff\xfe\x00",
            b"x",
            b"1.5",
            b"\n",
            b"new",
        ];
        let mut count = 0;
        for topic in &topics {
            for _ in 0..8 {
                let mut headers = mark(OwnedHeaders::new());
                for name in names {
                    if rng.bool() {
                        let value = values[rng.usize(0..values.len())];
                        // A version that is newer, not garbage, stops its partition: by design, and not here.
                        let value = if name == "hs-version" {
                            &b"x"[..]
                        } else {
                            value
                        };
                        headers = headers.insert(Header {
                            key: name,
                            value: Some(value),
                        });
                    }
                }
                let key: &[u8] = if rng.bool() { b"\xff\xff" } else { b"nobody" };
                let value: &[u8] = if rng.bool() { b"{" } else { b"\xff\x00\xfe" };
                let record = BaseRecord::<[u8], [u8]>::to(topic)
                    .key(key)
                    .payload(value)
                    .headers(headers);
                producer.send(record).map_err(|(error, _)| error).unwrap();
                count += 1;
            }
        }
        producer.flush(LATER).unwrap();
        format!("{count} records on {} topics", topics.len())
    }

    /// A publisher's transaction that stays open for a while.
    pub fn open_transaction(&self, world: &World, rng: &mut Rng) -> String {
        let mut config = world.client_config();
        config
            .set(
                "transactional.id",
                format!("{}publisher-{}", world.prefix, self.next()),
            )
            .set("transaction.timeout.ms", "60000");
        let producer: ThreadedProducer<_> = config.create().unwrap();
        producer.init_transactions(LATER).unwrap();
        producer.begin_transaction().unwrap();
        let topic = events(world);
        let record = BaseRecord::<[u8], [u8]>::to(&topic)
            .payload(b"never committed")
            .headers(mark(OwnedHeaders::new()));
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(LATER).unwrap();
        let length = LENGTH + Duration::from_millis(rng.u64(0..2000));
        std::thread::sleep(length);
        producer.abort_transaction(LATER).unwrap();
        format!("for {length:?}")
    }

    /// Eight subscriptions of one subscriber that point to a closed port.
    pub fn closed_port(&self, world: &World) -> String {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        self.dead_endpoints(world, |_| {
            format!("http://127.0.0.1:{port}/{FOREIGN}closed")
        })
    }

    /// Eight subscriptions of one subscriber, whose endpoints do not respond.
    pub fn dead_endpoints(&self, world: &World, url: impl Fn(usize) -> String) -> String {
        self.subscribe(world, 8, url)
    }

    /// Many hosts in one zone whose name server never responds: more than there may be lookups at the same time.
    pub fn silent_zone(&self, world: &World) -> String {
        self.subscribe(world, 24, |at| {
            format!("http://h{at}.z{}.{SILENT_ZONE}/{FOREIGN}hanging", at % 3)
        })
    }

    /// Slow endpoints of many origins: each has as many connections as it may have requests in flight, and keeps them.
    pub fn many_connections(&self, world: &World) -> String {
        const SLOW: Duration = Duration::from_millis(1500);
        let slow = Receiver::start_at(Ipv4Addr::UNSPECIFIED.into(), |_| Answer::ok().after(SLOW));
        let told = self.subscribe(world, 16, |at| {
            format!("http://127.0.1.{}:{}/{FOREIGN}slow", at + 1, slow.port())
        });
        format!("{told}, {} requests", slow.seen().len())
    }

    /// So many subscriptions of one subscriber, for a while.
    fn subscribe(&self, world: &World, count: usize, url: impl Fn(usize) -> String) -> String {
        // As many commands as eight subscriptions make: what is tested is the hosts and sockets, not the load.
        let events = if count > 8 { "a.paid" } else { "a.**" };
        let number = self.next();
        let ids: Vec<String> = (0..count)
            .map(|at| format!("{FOREIGN}bad-{number}-{at}"))
            .collect();
        for (at, id) in ids.iter().enumerate() {
            put_for(world, id, &url(at), &[SECRET.to_owned()], events);
        }
        std::thread::sleep(LENGTH);
        ids.iter().for_each(|id| world.delete_subscription(id));
        format!("{count} subscriptions")
    }

    /// Secrets in files that never end, or that nobody writes.
    pub fn odd_secrets(&self, world: &World, receiver: &Receiver) -> String {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let made = std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap();
        assert!(made.success(), "mkfifo failed");
        let number = self.next();
        let files = [fifo.display().to_string(), "/dev/zero".to_owned()];
        let ids = [0, 1].map(|at| format!("{FOREIGN}secret-{number}-{at}"));
        for (id, file) in ids.iter().zip(&files) {
            let url = receiver.url(&format!("/{FOREIGN}kept"));
            put(world, id, &url, &[format!("file:{file}")]);
        }
        std::thread::sleep(LENGTH);
        ids.iter().for_each(|id| world.delete_subscription(id));
        "a FIFO and /dev/zero".to_owned()
    }

    /// An endpoint that is gone; as soon as it has said so, the operator applies another URL.
    pub fn gone(&self, world: &World, receiver: &Receiver, failures: &mut Vec<String>) -> String {
        let id = format!("{FOREIGN}gone-{}", self.next());
        let gone = format!("/{FOREIGN}gone");
        let kept = format!("/{FOREIGN}kept");
        let before = receiver.seen_at(&gone).len();
        put(world, &id, &receiver.url(&gone), &[SECRET.to_owned()]);
        let deadline = Instant::now() + LATER;
        while receiver.seen_at(&gone).len() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let at = receiver.seen_at(&kept).len();
        put(world, &id, &receiver.url(&kept), &[SECRET.to_owned()]);
        let applied = Instant::now();
        while receiver.seen_at(&kept).len() == at && applied.elapsed() < LATER {
            std::thread::sleep(Duration::from_millis(20));
        }
        if receiver.seen_at(&kept).len() == at {
            failures.push(format!(
                "{id}: a 410 of the old URL disabled what was applied after it"
            ));
        }
        let took = applied.elapsed();
        world.delete_subscription(&id);
        format!("the new URL got its first webhook after {took:.1?}")
    }

    /// Each event that cannot be read is set aside, once or at least once.
    pub fn check(&self, world: &World, exact: bool, failures: &mut Vec<String>) {
        let expected = self.invalid.load(Ordering::SeqCst);
        let side = events(world);
        let set_aside = || {
            let all = world.read_all(&world.topics.invalid_events(), Isolation::Committed);
            let of_side = all
                .iter()
                .filter(|record| record.header("hookstream-topic") == Some(&side));
            of_side.count()
        };
        let deadline = Instant::now() + LATER;
        let mut found = set_aside();
        while found < expected && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(500));
            found = set_aside();
        }
        if found < expected || (exact && found > expected) {
            failures.push(format!(
                "{expected} events could not be read, {found} were set aside"
            ));
        }
    }
}

fn mark(headers: OwnedHeaders) -> OwnedHeaders {
    headers.insert(Header {
        key: MARK,
        value: Some("1"),
    })
}

fn put(world: &World, id: &str, url: &str, secrets: &[String]) {
    put_for(world, id, url, secrets, "a.**");
}

fn put_for(world: &World, id: &str, url: &str, secrets: &[String], events: &str) {
    let subscription = json!({
        "id": id,
        "subscriber": "x-tenant",
        "url": url,
        "events": [events],
        "secrets": secrets,
        "max_in_flight": 64,
        "timeout": "3s",
        "retry_schedule": ["1s"],
    });
    world.put_subscription(id, subscription.to_string());
}
