//! One tenant with subscriptions of every bad kind, beside healthy ones in the same partition of one replica.
//!
//! What is measured is a ratio within one run: the healthy ones' time to delivery before the tenant has commands, and while
//! thousands of its commands are under way. A single request that held up the others would cost its whole timeout, which is
//! many times what is permitted. Sockets, threads, memory, log lines and metric series stay under their limits.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hookstream::edge::clock;
use serde_json::{Value, json};

use crate::isolation::alone;
use crate::scene::{LATER, put, subscription, with, world};
use crate::support::{Answer, Process, Receiver, Seen, World};

/// Requests in flight of the replica: its only worker has all of them.
const IN_FLIGHT: usize = 128;
/// Half: what one subscriber gets alone (`delivery::shares`).
const OF_SUBSCRIBER: usize = IN_FLIGHT / 2 + 1;
/// Three quarters: what one host and port get alone.
const OF_HOST: usize = IN_FLIGHT / 4 * 3 + 1;
/// Healthy subscriptions, each of a subscriber of its own.
const HEALTHY: usize = 10;
/// Commands of the healthy ones in each phase, one after the other.
const COMMANDS: usize = 300;
const PACE: Duration = Duration::from_millis(15);
/// What the machine itself may cost, which other tests load.
const LEAST: Duration = Duration::from_millis(250);
const RATIO: u32 = 8;

// ---- evil endpoints ----

#[derive(Clone, Copy)]
enum Evil {
    /// A byte of a header line at a time.
    Drip,
    /// A body without an end, as fast as it is read.
    Flood,
    /// Header lines without an end.
    Headers,
    /// Interim responses without an end.
    Interim,
}

impl Evil {
    fn respond(self, mut to: TcpStream) -> std::io::Result<()> {
        to.read(&mut [0; 4096]).map(drop)?;
        if !matches!(self, Self::Interim) {
            to.write_all(b"HTTP/1.1 200 OK\r\n")?;
        }
        if matches!(self, Self::Flood) {
            to.write_all(b"content-length: 1000000000000\r\n\r\n")?;
        }
        loop {
            match self {
                Self::Drip => {
                    to.write_all(b"x")?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Self::Flood => to.write_all(&[b'x'; 65536])?,
                Self::Headers => to.write_all(&b"x-header: and one more\r\n".repeat(64))?,
                Self::Interim => to.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")?,
            }
        }
    }
}

/// A server of one kind; its threads end with their connections, those with the process under test.
fn evil(kind: Evil) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // What it cannot write ends it.
            std::thread::spawn(move || kind.respond(stream).err());
        }
    });
    address
}

/// Nobody listens there.
fn refusing() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// An HTTP/2 server that resets every stream, and after a few also ends the connection. Returns its address and the file of
/// its certificate.
fn resetting(dir: &Path) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let file = dir.join("h2.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(reset(acceptor.clone(), stream));
            }
        });
    });
    (address, format!("file:{}", file.display()))
}

/// Serves a connection, until an error of any kind ends it.
async fn reset(acceptor: tokio_rustls::TlsAcceptor, stream: tokio::net::TcpStream) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut count = 0;
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        count += 1;
        respond.send_reset(match count % 3 {
            0 => h2::Reason::REFUSED_STREAM,
            1 => h2::Reason::ENHANCE_YOUR_CALM,
            _ => h2::Reason::INTERNAL_ERROR,
        });
        if count == 20 {
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        }
    }
}

// ---- commands and their times ----

/// Writes commands of a subscriber's subscriptions; returns their webhook ids.
fn send(world: &World, to: &[(String, &str)]) -> Vec<String> {
    let ids: Vec<String> = to
        .iter()
        .map(|(id, _)| format!("msg_{:016x}_{id}", fastrand::u64(..)))
        .collect();
    let each = to.iter().zip(&ids);
    let commands = each.map(|((id, subscriber), webhook)| (&**webhook, &**id, *subscriber));
    world.produce_commands(commands, b"{}");
    ids
}

fn good(number: usize) -> String {
    format!("good-{}", number % HEALTHY)
}

/// Sends commands to the healthy ones, one after the other; the 99th percentile of their times to delivery.
fn healthy_p99(world: &World, receiver: &Receiver) -> Duration {
    let mut written = HashMap::new();
    for number in 0..COMMANDS {
        let id = good(number);
        let at = clock::now();
        let ids = send(world, &[(id.clone(), id.as_str())]);
        written.insert(ids[0].clone(), at);
        std::thread::sleep(PACE);
    }
    let is_ours = |seen: &&Arc<Seen>| written.contains_key(seen.webhook_id());
    receiver.wait_until("every healthy command", LATER, |seen| {
        seen.iter().filter(is_ours).count() >= COMMANDS
    });
    let seen = receiver.seen();
    let mut times: BTreeMap<&str, u64> = BTreeMap::new();
    for one in seen.iter().filter(is_ours) {
        let took = one.received - written[one.webhook_id()].0;
        let first = times.insert(one.webhook_id(), u64::try_from(took).unwrap_or(0));
        assert_eq!(first, None, "each is delivered once");
    }
    assert_eq!(times.len(), COMMANDS);
    let mut times: Vec<u64> = times.into_values().collect();
    times.sort_unstable();
    Duration::from_millis(times[COMMANDS * 99 / 100])
}

#[track_caller]
fn assert_unharmed(before: Duration, during: Duration) {
    let most = before.max(LEAST) * RATIO;
    println!("healthy p99: {before:?} alone, {during:?} beside the evil tenant, at most {most:?}");
    assert!(
        during <= most,
        "the healthy ones' p99 rose from {before:?} to {during:?}"
    );
}

// ---- what the process uses ----

/// The most of what the process used, looked at while this lives.
struct Watch {
    stops: Arc<AtomicBool>,
    descriptors: Arc<AtomicUsize>,
    threads: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

impl Watch {
    fn start(pid: u32) -> Self {
        let mut watch = Self {
            stops: Arc::default(),
            descriptors: Arc::default(),
            threads: Arc::default(),
            thread: None,
        };
        let (stops, most) = (Arc::clone(&watch.stops), Arc::clone(&watch.descriptors));
        let most_threads = Arc::clone(&watch.threads);
        watch.thread = Some(std::thread::spawn(move || {
            while !stops.load(Ordering::Relaxed) {
                most.fetch_max(descriptors(pid), Ordering::Relaxed);
                most_threads.fetch_max(threads(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        }));
        watch
    }

    fn end(mut self) -> (usize, usize) {
        self.stops.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (of(&self.descriptors), of(&self.threads))
    }
}

fn series(process: &Process) -> usize {
    let (_, page) = process.get("/metrics");
    page.lines().filter(|line| !line.starts_with('#')).count()
}

fn start(world: &mut World) -> Process {
    let in_flight = IN_FLIGHT.to_string();
    // Without breakers, which would soon spare everybody: the worst case.
    let flags = [
        "--max-in-flight",
        &in_flight,
        "--timeout",
        "10s",
        "--breaker-failures=0",
        "--breaker-rate=0",
    ];
    world.flags = flags.map(str::to_owned).to_vec();
    let process = world.spawn("run", &["--workers", "1"]);
    process.wait_ready();
    process
}

fn healthy(receiver: &Receiver) -> Vec<Value> {
    let each = (0..HEALTHY).map(good);
    each.map(|id| subscription(&id, &receiver.url(&format!("/{id}")), &["**"]))
        .collect()
}

#[test]
fn a_tenant_of_every_bad_kind_harms_no_other_in_its_partition() {
    let _alone = alone();
    const OF_KIND: usize = 7;
    const EACH: usize = 25;
    let mut world = world("adversary");
    let dir = tempfile::tempdir().unwrap();
    let well = Receiver::good();
    let hanging = Receiver::start(|_| Answer::hang());
    let breaking = Receiver::start(|seen| match seen.attempt % 5 {
        0 => Answer::reset(),
        1 => Answer::garbage(),
        2 => Answer::half(),
        3 => Answer::close(),
        _ => Answer::endless(),
    });
    let (h2, certificate) = resetting(dir.path());
    let raw = |kind| format!("http://{}/", evil(kind));
    let long: Value = (0..3)
        .map(|at| (format!("x-{at}"), json!("y".repeat(4000))))
        .collect();
    let kinds: Vec<(&str, String, Value)> = vec![
        ("hang", hanging.url("/"), json!({})),
        (
            "hang-again",
            hanging.url("/"),
            json!({"retry_schedule": vec!["1ms"; 20], "timeout": "60s"}),
        ),
        ("break", breaking.url("/"), json!({"max_in_flight": 1024})),
        (
            "refuse",
            format!("http://{}/", refusing()),
            json!({"retry_schedule": vec!["1ms"; 20]}),
        ),
        ("drip", raw(Evil::Drip), json!({"timeout": "60s"})),
        ("flood", raw(Evil::Flood), json!({"max_in_flight": 1024})),
        ("headers", raw(Evil::Headers), json!({"headers": long})),
        ("interim", raw(Evil::Interim), json!({})),
        (
            "no-tls",
            raw(Evil::Drip).replace("http", "https"),
            json!({}),
        ),
        ("untrusted", format!("https://{h2}/"), json!({})),
        (
            "h2",
            format!("https://{h2}/"),
            json!({"tls_ca": certificate, "max_in_flight": 1024}),
        ),
        (
            "names",
            "https://HOST.zone-without-an-answer.example/".to_owned(),
            json!({}),
        ),
        ("hosts", "http://127.9.0.HOST/".to_owned(), json!({})),
        (
            "no-secret",
            hanging.url("/"),
            json!({"secrets": ["file:/nowhere/at/all"]}),
        ),
    ];
    // To find the one that does harm: ADVERSARY=hang,drip.
    let only = std::env::var("ADVERSARY").unwrap_or_default();
    let is_asked = |kind: &str| only.is_empty() || only.split(',').any(|one| one == kind);
    let mut evil_ids = Vec::new();
    let mut subscriptions = healthy(&well);
    for number in 0..OF_KIND {
        for (kind, url, fields) in kinds.iter().filter(|(kind, ..)| is_asked(kind)) {
            let id = format!("evil-{kind}-{number}");
            let url = url.replace("HOST", &(number + 1).to_string());
            let own = json!({"subscriber": "evil"});
            subscriptions.push(with(
                with(subscription(&id, &url, &["**"]), own),
                fields.clone(),
            ));
            evil_ids.push((id, "evil"));
        }
    }
    put(&world, &subscriptions);
    let process = start(&mut world);
    let before = healthy_p99(&world, &well);
    let idle = (
        descriptors(process.pid()),
        threads(process.pid()),
        series(&process),
    );

    let watch = Watch::start(process.pid());
    let burst: Vec<(String, &str)> = (0..EACH).flat_map(|_| evil_ids.clone()).collect();
    send(&world, &burst);
    // And updates in a loop, meanwhile.
    let ends = AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !ends.load(Ordering::Relaxed) {
                round += 1;
                let id = format!("evil-updated-{}", round % 10);
                let own = json!({"subscriber": "evil", "headers": {"x-round": round.to_string()}});
                let one = with(subscription(&id, &hanging.url("/"), &["**"]), own);
                put(&world, &[one]);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let during = healthy_p99(&world, &well);
        ends.store(true, Ordering::Relaxed);
        during
    });
    let in_flight = process.metric("hookstream_in_flight").unwrap_or_default();
    let (most_descriptors, most_threads) = watch.end();
    assert_unharmed(before, during);
    assert!(
        !only.is_empty() || hanging.seen().len() + breaking.seen().len() > 20,
        "the evil tenant's requests were made"
    );

    println!(
        "alone {idle:?}; at most {most_descriptors} descriptors, {most_threads} threads; {in_flight} in flight"
    );
    assert!(
        in_flight <= (OF_SUBSCRIBER + HEALTHY) as f64,
        "{in_flight} requests in flight"
    );
    // A request has one connection; those whose attempt is over may still be closing.
    let most = idle.0 + 2 * OF_SUBSCRIBER + 64;
    assert!(
        most_descriptors <= most,
        "{most_descriptors} descriptors, the limit is {most}"
    );
    // Look-ups and reads of files, each with its limit for one group (`edge::fair_pool`).
    let most = idle.1 + 2 * hookstream::edge::fair_pool::WIDE;
    assert!(
        most_threads <= most,
        "{most_threads} threads, the limit is {most}"
    );
    // Of one subscriber, whatever the number of its subscriptions.
    let more = series(&process).saturating_sub(idle.2);
    assert!(more <= 120, "{more} more metric series");
    let lines = process.stderr().len();
    let most = 50 + 3 * evil_ids.len();
    assert!(lines <= most, "{lines} lines of log, the limit is {most}");
    let memory = process.peak_memory_mib();
    assert!(memory <= 600, "{memory} MiB");
}

#[test]
fn a_host_of_many_tenants_that_hangs_leaves_requests_for_others() {
    let _alone = alone();
    const TENANTS: usize = 150;
    let mut world = world("one-host");
    let well = Receiver::good();
    let hanging = Receiver::start(|_| Answer::hang());
    let mut subscriptions = healthy(&well);
    let tenants: Vec<String> = (0..TENANTS)
        .map(|number| format!("tenant-{number}"))
        .collect();
    for id in &tenants {
        subscriptions.push(subscription(id, &hanging.url(&format!("/{id}")), &["**"]));
    }
    put(&world, &subscriptions);
    let process = start(&mut world);
    let before = healthy_p99(&world, &well);
    let burst: Vec<(String, &str)> = (0..4)
        .flat_map(|_| tenants.iter().map(|id| (id.clone(), id.as_str())))
        .collect();
    send(&world, &burst);
    let during = healthy_p99(&world, &well);
    assert_unharmed(before, during);
    let in_flight = process.metric("hookstream_in_flight").unwrap_or_default();
    println!("{in_flight} in flight");
    assert!(
        in_flight <= (OF_HOST + HEALTHY) as f64,
        "{in_flight} requests in flight"
    );
    assert!(
        in_flight >= (OF_HOST / 2) as f64,
        "the host hangs, and has its share: {in_flight}"
    );
}
