//! What one endpoint can do to others, and to itself: each of the means against it, on a real Kafka.
//!
//! All subscriptions of a test share one partition. Commands are written by the test, without fan-out, so that it
//! decides what stands behind what.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hookstream::model::tiers::LONGEST_PARK;
use serde_json::{Value, json};

use crate::scene::{LATER, event, put, subscription, wait_until_done, with, world};
use crate::support::{Answer, Process, Receiver, Seen, World, eventually_true};

/// For what takes half a minute on a quiet machine.
const LONG: Duration = Duration::from_secs(400);
/// Held by each test that loads the machine: four of them on two slow cores make an endpoint that is quick a slow one.
static HEAVY: Mutex<()> = Mutex::new(());
/// A command may be the probe more than once: by the default schedule it would then wait for minutes.
const RETRIES: &str =
    "--retry-schedule=1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s";

/// A breaker that opens soon and looks again soon.
const BREAKER: [&str; 5] = [
    "--breaker-failures=5",
    "--breaker-rate=0",
    "--breaker-probe=200ms",
    "--breaker-max-probe=1s",
    RETRIES,
];

pub fn alone() -> MutexGuard<'static, ()> {
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All roles in one process with these flags; the world's `flags` must be set before.
fn start(world: &World) -> Process {
    let process = world.spawn("run", &["--workers", "1"]);
    process.wait_ready();
    process
}

fn flags(world: &mut World, flags: &[&str]) {
    world.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
}

fn to(receiver: &Receiver, id: &str, fields: Value) -> Value {
    with(
        subscription(id, &receiver.url(&format!("/{id}")), &["**"]),
        fields,
    )
}

/// Writes commands for these subscriptions, in this order.
pub fn send<'a>(world: &World, subscriptions: impl IntoIterator<Item = &'a str>) {
    let numbered: Vec<(String, &str)> = subscriptions
        .into_iter()
        .enumerate()
        .map(|(number, id)| (format!("msg_{}_{id}_{number}", fastrand::u64(..)), id))
        .collect();
    let commands = numbered.iter().map(|(webhook, id)| (&**webhook, *id, *id));
    world.produce_commands(commands, b"{}");
}

fn webhooks(seen: &[Arc<Seen>]) -> usize {
    let ids: HashSet<&str> = seen.iter().map(|seen| seen.webhook_id()).collect();
    ids.len()
}

fn parked(process: &Process, why: &str) -> f64 {
    process
        .metric(&format!("hookstream_parked_total{{why=\"{why}\"}}"))
        .unwrap_or_default()
}

/// An endpoint that can be broken and mended.
struct Mendable {
    receiver: Receiver,
    broken: Arc<AtomicBool>,
}

impl Mendable {
    fn new(when_broken: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        let broken = Arc::new(AtomicBool::new(true));
        let now = Arc::clone(&broken);
        let receiver = Receiver::start(move |_| {
            if now.load(Ordering::Relaxed) {
                when_broken()
            } else {
                Answer::ok()
            }
        });
        Self { receiver, broken }
    }

    fn mend(&self) {
        self.broken.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_breaker_spends_no_attempts_on_an_endpoint_that_fails_and_finds_out_when_it_works() {
    const COMMANDS: usize = 500;
    let mut world = world("breaker");
    flags(&mut world, &BREAKER);
    let endpoint = Mendable::new(|| Answer::status(500));
    put(&world, &[to(&endpoint.receiver, "bad", json!({}))]);
    let process = start(&world);
    send(&world, std::iter::repeat_n("bad", COMMANDS));
    let open = r#"hookstream_breaker_open{subscriber="bad",subscription="bad"}"#;
    eventually_true("all that is left is parked", LATER, || {
        process.metric(open) == Some(1.0) && parked(&process, "breaker") >= (COMMANDS - 20) as f64
    });
    process.wait_for_line("breaker opened", LATER);
    let spent = endpoint.receiver.seen().len();
    // 5 in a row, those that were in flight with them, and probes.
    assert!(spent < 60, "{spent} attempts were spent");
    endpoint.mend();
    wait_until_done(&world);
    assert_eq!(webhooks(&endpoint.receiver.seen()), COMMANDS);
    process.wait_for_line("breaker closed", LATER);
    assert_eq!(process.metric(open), None, "closed ones have no series");
}

#[test]
fn a_subscription_has_its_own_breaker() {
    let mut world = world("own-breaker");
    flags(&mut world, &BREAKER);
    let receiver = Receiver::start(|seen| {
        if seen.attempt > 3 {
            Answer::ok()
        } else {
            Answer::status(500)
        }
    });
    let never =
        json!({"breaker": {"failures": 0, "rate": 0}, "retry_schedule": ["20ms", "20ms", "20ms"]});
    put(&world, &[to(&receiver, "patient", never)]);
    let process = start(&world);
    send(&world, std::iter::repeat_n("patient", 50));
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 200);
    assert!(parked(&process, "breaker") == 0.0);
}

#[test]
fn a_rate_limit_is_exact_and_what_it_cannot_send_soon_is_parked() {
    const COMMANDS: usize = 400;
    const BURST: usize = 5;
    const PER_SECOND: usize = 40;
    let world = world("rate");
    let receiver = Receiver::good();
    let limit = json!({"rate_limit": {"per_second": PER_SECOND, "burst": BURST}});
    put(
        &world,
        &[
            to(&receiver, "limited", limit),
            to(&receiver, "free", json!({})),
        ],
    );
    let process = start(&world);
    send(
        &world,
        std::iter::repeat_n("limited", COMMANDS).chain(["free"]),
    );
    receiver.wait_until("the one behind it is not held up", LATER, |seen| {
        seen.iter().any(|seen| seen.path == "/free")
    });
    assert!(receiver.seen_at("/limited").len() < COMMANDS / 2);
    wait_until_done(&world);
    let mut times: Vec<i64> = receiver
        .seen_at("/limited")
        .iter()
        .map(|seen| seen.received)
        .collect();
    assert_eq!(times.len(), COMMANDS);
    times.sort_unstable();
    for (first, begin) in times.iter().enumerate() {
        for (length, end) in times[first..].iter().enumerate() {
            // What was sent on time may be received late, all at once, by a busy machine: half a second of it.
            let allowed = BURST as f64 + PER_SECOND as f64 * ((end - begin) as f64 / 1000.0 + 0.5);
            assert!(
                (length + 1) as f64 <= allowed + 1.0,
                "{} in {} ms",
                length + 1,
                end - begin
            );
        }
    }
    let parked = parked(&process, "rate");
    assert!(parked >= 100.0, "{parked}");
    // A command whose turn is far comes back when it is its turn, not again and again before.
    assert!(
        parked <= 3.0 * COMMANDS as f64,
        "{parked} parked of {COMMANDS}"
    );
}

#[test]
fn an_endpoint_that_does_not_answer_gets_ever_fewer_sockets() {
    let mut world = world("sockets");
    flags(
        &mut world,
        &[
            "--timeout=500ms",
            "--breaker-failures=0",
            "--breaker-rate=0",
        ],
    );
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let receiver = Receiver::start(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Answer::hang()
    });
    put(
        &world,
        &[to(&receiver, "silent", json!({"max_in_flight": 32}))],
    );
    let process = start(&world);
    send(&world, std::iter::repeat_n("silent", 250));
    eventually_true("it gets all that it may have at first", LATER, || {
        open.load(Ordering::Relaxed) >= 32
    });
    eventually_true("and one in the end", LATER, || {
        let before = open.load(Ordering::Relaxed);
        before > 60 && process.metric("hookstream_in_flight") == Some(1.0)
    });
}

#[test]
fn a_window_that_fills_up_parks_what_waits_longest_and_the_healthy_go_on() {
    const HANGING: usize = 16;
    const EACH: usize = 220;
    const HEALTHY: usize = 40_000;
    const BETWEEN: usize = 2;
    let _alone = alone();
    let mut world = world("window");
    // Segments, the form since version 4, would describe all of them.
    flags(&mut world, &["--timeout=60s", "--window-format=3"]);
    let receiver = Receiver::start(|seen| {
        if seen.path == "/healthy" {
            Answer::ok()
        } else {
            Answer::hang()
        }
    });
    let names: Vec<String> = (0..HANGING)
        .map(|number| format!("hangs-{number}"))
        .collect();
    let mut all = vec![to(&receiver, "healthy", json!({"max_in_flight": 32}))];
    all.extend(
        names
            .iter()
            .map(|name| to(&receiver, name, json!({"max_in_flight": 1}))),
    );
    put(&world, &all);
    // Each queue is below what a lane parks of itself, and together they are more than a commit can tell of.
    let spread = (0..EACH).flat_map(|_| {
        names
            .iter()
            .flat_map(|name| std::iter::once(name.as_str()).chain(["healthy"; BETWEEN]))
    });
    send(
        &world,
        spread.chain(std::iter::repeat_n("healthy", HEALTHY)),
    );
    let process = start(&world);
    // Where the machine is busy in the second before the window is full, the healthy one's backlog is parked too, and
    // comes back at the pace of that second: within ten minutes, however slow that was.
    receiver.wait_until(
        "the healthy one has all of its",
        LONGEST_PARK + LONG,
        |seen| {
            seen.iter().filter(|seen| seen.path == "/healthy").count()
                >= HEALTHY + EACH * HANGING * BETWEEN
        },
    );
    assert!(
        parked(&process, "lane_full") > 0.0,
        "the window has been full"
    );
    let hanging = receiver
        .seen()
        .iter()
        .filter(|seen| seen.path != "/healthy")
        .count();
    assert!(hanging <= 2 * HANGING, "{hanging} attempts hang");
}

#[test]
fn a_backlog_delays_a_single_command_behind_it_but_little_and_is_delivered_too() {
    const BACKLOG: usize = 20_000;
    let _alone = alone();
    let mut world = world("fair");
    // So little memory that the backlog does not fit.
    flags(&mut world, &["--max-queued-bytes=1MiB"]);
    let receiver = Receiver::start(|seen| {
        let answer = Answer::ok();
        if seen.path == "/big" {
            answer.after(Duration::from_millis(2))
        } else {
            answer
        }
    });
    put(
        &world,
        &[
            to(&receiver, "big", json!({"max_in_flight": 2})),
            to(&receiver, "small", json!({})),
        ],
    );
    send(&world, std::iter::repeat_n("big", BACKLOG).chain(["small"]));
    let process = start(&world);
    let seen = receiver.wait_until("the single command is delivered", LONG, |seen| {
        seen.iter().any(|seen| seen.path == "/small")
    });
    assert!(
        seen.len() < BACKLOG * 3 / 4,
        "{} of the backlog went before it",
        seen.len()
    );
    receiver.wait_until("the backlog is delivered", LONG, |seen| {
        seen.len() > BACKLOG
    });
    wait_until_done(&world);
    assert_eq!(webhooks(&receiver.seen()), BACKLOG + 1);
    let parked = parked(&process, "lane_full");
    assert!(
        parked <= 4.0 * BACKLOG as f64,
        "{parked} parked of {BACKLOG}"
    );
}

/// Commands of a whale, each hundredth of a neighbour.
fn flood(world: &World, commands: usize) -> usize {
    let neighbours = commands / 100;
    let all = (0..commands).map(|number| if number % 100 == 99 { "small" } else { "big" });
    send(world, all);
    neighbours
}

#[test]
fn a_whale_is_deferred_and_delays_no_neighbour_in_its_partition_also_over_a_restart() {
    const COMMANDS: usize = 12_000;
    let _alone = alone();
    let mut world = world("whale");
    flags(&mut world, &["--max-queued-bytes=1MiB"]);
    let receiver = Receiver::start(|seen| match &*seen.path {
        "/big" => Answer::ok().after(Duration::from_millis(20)),
        _ => Answer::ok(),
    });
    let at_a_time = json!({"max_in_flight": 16});
    put(
        &world,
        &[
            to(&receiver, "big", at_a_time),
            to(&receiver, "small", json!({})),
        ],
    );
    let neighbours = flood(&world, COMMANDS);
    let mut process = start(&world);
    let small = |seen: &[Arc<Seen>]| seen.iter().filter(|seen| seen.path == "/small").count();
    let seen = receiver.wait_until("the neighbour has all of its", LONG, |seen| {
        small(seen) >= neighbours
    });
    let whale = seen.len() - neighbours;
    assert!(
        whale < COMMANDS / 2,
        "{whale} of the whale went before the neighbour's last"
    );
    assert!(
        process
            .metric("hookstream_deferred_total")
            .unwrap_or_default()
            > 1_000.0
    );
    let waiting = r#"hookstream_deferred_commands{partition="0"}"#;
    eventually_true("what waits is shown", LATER, || {
        process.metric(waiting).unwrap_or_default() > 0.0
    });
    assert!(parked(&process, "lane_full") == 0.0);
    // The next owner reads the deferred ones from the log, and sends nothing that is finished.
    process.sigterm();
    process.wait_exit(LONG);
    let process = start(&world);
    receiver.wait_until("the whale has all of its", LONG, |seen| {
        seen.len() >= COMMANDS
    });
    wait_until_done(&world);
    let seen = receiver.seen();
    assert_eq!(
        (webhooks(&seen), seen.len()),
        (COMMANDS, COMMANDS),
        "each once"
    );
    assert!(parked(&process, "lane_full") == 0.0);
    assert_eq!(process.metric(waiting), Some(0.0));
    let reads = process
        .metric("hookstream_deferred_reads_total")
        .unwrap_or_default();
    assert!(
        reads < 4.0 * COMMANDS as f64,
        "{reads} records were read again"
    );
}

#[test]
fn a_backlog_that_nobody_waits_behind_is_not_parked() {
    const BACKLOG: usize = 15_000;
    let _alone = alone();
    let mut world = world("alone");
    flags(&mut world, &["--max-queued-bytes=1MiB"]);
    let receiver = Receiver::start(|_| Answer::ok().after(Duration::from_millis(2)));
    put(&world, &[to(&receiver, "big", json!({"max_in_flight": 4}))]);
    send(&world, std::iter::repeat_n("big", BACKLOG));
    let process = start(&world);
    receiver.wait_until("all is delivered", LONG, |seen| seen.len() >= BACKLOG);
    assert!(parked(&process, "lane_full") < BACKLOG as f64 / 20.0);
}

const SYSTEMIC: &str = "hookstream_systemic_failure";

/// An address of this machine: each is a host of its own.
fn host(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 1, number).into()
}

/// Eight subscriptions that point to closed ports, on one host or on eight, beside two whose endpoint works.
fn beside_eight_that_are_dead(name: &str, hosts: u8, ours: bool) {
    const EACH: usize = 500;
    let mut world = world(name);
    // Probes of the breakers do not end an outage that is assumed wrongly.
    flags(&mut world, &["--breaker-probe=10m"]);
    let receiver = Receiver::good();
    let closed: Vec<SocketAddr> = (0..hosts)
        .map(|number| {
            let listener = TcpListener::bind((host(10 + number), 0)).unwrap();
            listener.local_addr().unwrap()
        })
        .collect();
    let dead: Vec<String> = (0..8).map(|number| format!("dead{number}")).collect();
    let mut all = vec![
        to(&receiver, "one", json!({})),
        to(&receiver, "two", json!({})),
    ];
    for (name, address) in dead.iter().zip(closed.iter().cycle()) {
        let url = format!("http://{address}/");
        all.push(subscription(name, &url, &["**"]));
    }
    put(&world, &all);
    let process = start(&world);
    // The dead ones fail first, without anybody who responds.
    let names = || dead.iter().map(String::as_str);
    send(&world, (0..20).flat_map(|_| names()));
    if ours {
        eventually_true("it looks like an outage", LATER, || {
            process.metric(SYSTEMIC) == Some(1.0)
        });
    } else {
        eventually_true("all breakers are open", LATER, || {
            names().all(|name| {
                let open = format!(
                    r#"hookstream_breaker_open{{subscriber="{name}",subscription="{name}"}}"#
                );
                process.metric(&open) == Some(1.0)
            })
        });
    }
    let began = Instant::now();
    send(
        &world,
        (0..EACH).flat_map(|_| names().chain(["one", "two"])),
    );
    receiver.wait_until("the healthy have all of theirs", LATER, |seen| {
        seen.len() >= 2 * EACH
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "the healthy took {took:?}");
    let systemic = process.metric(SYSTEMIC);
    assert_eq!(systemic, Some(if ours { 1.0 } else { 0.0 }));
}

#[test]
fn many_subscriptions_of_one_dead_host_are_no_outage() {
    beside_eight_that_are_dead("one-dead-host", 1, false);
}

#[test]
fn an_outage_that_is_assumed_wrongly_delays_nobody() {
    beside_eight_that_are_dead("false-outage", 8, true);
}

#[test]
fn when_most_hosts_do_not_respond_they_get_only_probes_until_one_responds() {
    const SUBSCRIPTIONS: usize = 8;
    const EACH: usize = 200;
    let mut world = world("systemic");
    flags(&mut world, &BREAKER);
    let broken = Arc::new(AtomicBool::new(true));
    let hosts: Vec<Receiver> = (0..SUBSCRIPTIONS)
        .map(|number| {
            let broken = Arc::clone(&broken);
            Receiver::start_at(host(number as u8 + 1), move |_| {
                if broken.load(Ordering::Relaxed) {
                    Answer::reset()
                } else {
                    Answer::ok()
                }
            })
        })
        .collect();
    let healthy = Receiver::good();
    let names: Vec<String> = (0..SUBSCRIPTIONS)
        .map(|number| format!("s{number}"))
        .collect();
    let mut all: Vec<Value> = names
        .iter()
        .zip(&hosts)
        .map(|(name, host)| to(host, name, json!({})))
        .collect();
    all.push(to(&healthy, "healthy", json!({})));
    put(&world, &all);
    let process = start(&world);
    let failing = || names.iter().map(String::as_str);
    send(&world, (0..EACH).flat_map(|_| failing().chain(["healthy"])));
    eventually_true("the fault is seen to be ours", LATER, || {
        process.metric(SYSTEMIC) == Some(1.0)
    });
    let line = process.wait_for_line("egress outage: most endpoints do not respond", LATER);
    assert!(line.contains("ERROR"), "{line}");
    healthy.wait_for(EACH, LATER);
    send(&world, std::iter::repeat_n("healthy", EACH));
    healthy.wait_for(2 * EACH, LATER);
    assert_eq!(process.metric(SYSTEMIC), Some(1.0), "it goes on meanwhile");
    broken.store(false, Ordering::Relaxed);
    eventually_true("it is over", LATER, || {
        process.metric(SYSTEMIC) == Some(0.0)
    });
    wait_until_done(&world);
    let seen: Vec<_> = hosts.iter().map(Receiver::seen).collect();
    for seen in &seen {
        assert_eq!(webhooks(seen), EACH);
    }
    let requests: usize = seen.iter().map(Vec::len).sum();
    let spent = requests - SUBSCRIPTIONS * EACH;
    assert!(
        spent < SUBSCRIPTIONS * EACH / 4,
        "{spent} attempts were spent"
    );
}

#[test]
fn a_dead_endpoint_with_a_large_backlog_costs_little_memory_and_the_others_nothing() {
    const DEAD: usize = 200_000;
    const OTHERS: usize = 5_000;
    /// All roles in one process, unoptimised, with their clients' buffers, MiB; the commands alone weigh 100.
    const MEMORY: u64 = 450;
    let _alone = alone();
    let mut world = world("dead");
    flags(
        &mut world,
        &[
            "--breaker-failures=5",
            "--breaker-rate=0",
            "--breaker-probe=1s",
            "--breaker-max-probe=10s",
            RETRIES,
            "--max-queued-bytes=16MiB",
        ],
    );
    let endpoint = Mendable::new(|| Answer::status(500));
    let others = Receiver::good();
    put(
        &world,
        &[
            to(&endpoint.receiver, "dead", json!({"max_in_flight": 32})),
            to(&others, "one", json!({})),
            to(&others, "two", json!({})),
        ],
    );
    let dead = std::iter::repeat_n("dead", DEAD / OTHERS);
    send(
        &world,
        (0..OTHERS).flat_map(|_| dead.clone().chain(["one", "two"])),
    );
    let process = start(&world);
    others.wait_until("the others have all of theirs", LONG, |seen| {
        seen.len() >= 2 * OTHERS
    });
    let open = r#"hookstream_breaker_open{subscriber="dead",subscription="dead"}"#;
    assert_eq!(process.metric(open), Some(1.0));
    let spent = endpoint.receiver.seen().len();
    assert!(
        spent < 300,
        "{spent} attempts were spent on the dead endpoint"
    );
    let peak = process.peak_memory_mib();
    assert!(peak < MEMORY, "{peak} MiB");
    endpoint.mend();
    endpoint
        .receiver
        .wait_until("all of the dead one's are delivered", 2 * LONG, |seen| {
            seen.len() >= DEAD
        });
    wait_until_done(&world);
    let seen = endpoint.receiver.seen();
    assert_eq!(webhooks(&seen), DEAD);
    let peak = process.peak_memory_mib();
    assert!(peak < MEMORY, "{peak} MiB");
}

/// In a mass outage the metrics and the log stay small: a total, some series, and lines that are summed up.
#[test]
fn many_open_breakers_are_counted_and_few_are_shown() {
    const MANY: usize = 60;
    let world = world("breakers");
    let works = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&works);
    let receiver = Receiver::start(move |_| match now.load(Ordering::SeqCst) {
        true => Answer::ok(),
        false => Answer::status(500),
    });
    let all: Vec<Value> = (0..MANY)
        .map(|number| {
            let id = format!("s{number}");
            let rules = json!({"breaker": {"failures": 1, "probe": "2s", "max_probe": "2s"}});
            with(subscription(&id, &receiver.url("/"), &["**"]), rules)
        })
        .collect();
    put(&world, &all);
    let process = crate::scene::start(&world, &["--lag-top", "5"]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    eventually_true("all breakers are open", LATER, || {
        process.metric("hookstream_breakers_open") == Some(MANY as f64)
    });
    let series = || {
        let (_, metrics) = process.get("/metrics");
        let lines = metrics.lines();
        lines
            .filter(|line| line.starts_with("hookstream_breaker_open{"))
            .count()
    };
    assert_eq!(series(), 5);
    process.wait_for_line("breakers opened suppressed=", LATER);
    works.store(true, Ordering::SeqCst);
    // What the probes send.
    world.produce_event("k", &[], event("2", "order.created", "2"));
    eventually_true("all breakers are closed", LATER, || {
        process.metric("hookstream_breakers_open") == Some(0.0)
    });
    assert_eq!(series(), 0);
    let lines = process.stderr();
    let opened = lines.iter().filter(|line| line.contains("breaker opened"));
    assert!(opened.count() <= 15, "{lines:?}");
}
