//! The constants of `docs/sizing.md`: CPU, memory and bytes for each event, command, delivery, retry, subscription,
//! partition and request in flight, of hookstream and of Kafka.
//!
//! Only CPU time, memory and file sizes are taken, which a busy machine disturbs little; nothing here is a target. Bodies
//! do not compress, so that bytes are the worst case; one figure with a body that compresses to nothing leaves what a
//! command takes beside its body.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};

use crate::Scale;
use crate::reference::{command, record, send};
use crate::report::Report;
use crate::stage::{
    BODY, Helper, Kafka, Problem, Role, STUCK, World, median, producer_config, subscription,
};

type Writer = ThreadedProducer<DefaultProducerContext>;

const PARTITIONS: usize = 12;
const MATCHES: usize = 10;
const MICROS: f64 = 1e6;
/// For what a further partition and a further subscription take.
const WIDE: usize = 48;
const SUBSCRIBERS: usize = 10_000;

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    fanout(kafka, scale, report)?;
    replication(scale, report)?;
    deliveries(kafka, scale, report)?;
    tiers(kafka, scale, report)?;
    resting(kafka, report)?;
    lanes(kafka, scale, report)?;
    in_flight(kafka, scale, report)
}

/// What one pass of a role over its input took.
struct Pass {
    /// CPU seconds of the role, and of the brokers meanwhile.
    own: f64,
    kafka: f64,
    /// Inputs a second.
    rate: f64,
    /// Peak, MiB.
    memory: f64,
}

/// Runs a role over `count` inputs `runs` times, each time with groups of its own, and once before to warm the broker.
fn passes(
    kafka: &Kafka,
    world: &World<'_>,
    runs: usize,
    role: (&str, &[&str]),
    done: (&[&str], usize),
) -> Result<Vec<Pass>, Problem> {
    let mut all = Vec::new();
    for run in 0..=runs {
        let before = kafka.cpu()?;
        let running = world
            .again(&format!("{}-{}-{run}", world.events(), role.0))
            .start(role.0, role.1)?;
        let (cost, seconds) = running.wait(done.0, done.1 as f64)?;
        let pass = Pass {
            own: cost.cpu,
            kafka: kafka.cpu()? - before,
            rate: done.1 as f64 / seconds,
            memory: cost.memory,
        };
        running.stop()?;
        if run > 0 {
            all.push(pass);
        }
    }
    Ok(all)
}

fn own(passes: &[Pass], count: usize) -> f64 {
    median(passes.iter().map(|pass| pass.own)) / count as f64 * MICROS
}

fn brokers(passes: &[Pass], count: usize) -> f64 {
    median(passes.iter().map(|pass| pass.kafka)) / count as f64 * MICROS
}

fn rate(passes: &[Pass]) -> f64 {
    median(passes.iter().map(|pass| pass.rate))
}

fn memory(passes: &[Pass]) -> f64 {
    median(passes.iter().map(|pass| pass.memory))
}

// ---- fan-out ----

/// `wanted` subscriptions, each of a subscriber of its own, that want events of that type.
fn wanting(wanted: usize, kind: &str, url: &str) -> Vec<Value> {
    let one = |number| {
        let mut one = subscription(number, &format!("{url}/{number}"));
        one["events"] = json!([kind]);
        one
    };
    (0..wanted).map(one).collect()
}

/// Text that does not compress.
fn noise(seed: usize, length: usize) -> String {
    let mut chance = fastrand::Rng::with_seed(seed as u64);
    (0..length).map(|_| chance.alphanumeric()).collect()
}

/// Events whose commands have bodies of [`BODY`] bytes, of noise or of one letter.
fn fill_events(kafka: &Kafka, topic: &str, count: usize, noisy: bool) -> Result<(), Problem> {
    let producer: Writer = producer_config(&kafka.address).create()?;
    let around =
        r#"{"type":"order.created","timestamp":"2026-01-01T00:00:00Z","data":{"pad":""}}"#.len();
    for number in 0..count {
        let pad = if noisy {
            noise(number, BODY - around)
        } else {
            "x".repeat(BODY - around)
        };
        let value = format!(
            r#"{{"id":"event-{number}","type":"order.created","time":"2026-01-01T00:00:00Z","subject":"order-{number}","data":{{"pad":"{pad}"}}}}"#
        );
        let key = format!("order-{number}");
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(key.as_bytes())
            .payload(value.as_bytes());
        send(&producer, record)?;
    }
    Ok(producer.flush(STUCK)?)
}

const EVENTS: [&str; 1] = ["hookstream_events_total"];
const COMMANDS: [&str; 1] = ["hookstream_commands_total"];

fn fanout(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let events = scale.pick(10_000, 50_000);
    let nowhere = "http://127.0.0.1:1/ok";
    let mut publishing = 0.0;
    let mut of = |name: &str, kind: &str| -> Result<Vec<Pass>, Problem> {
        let subscriptions = wanting(MATCHES, kind, nowhere);
        let world = World::new(kafka, name, PARTITIONS, &subscriptions)?;
        let before = kafka.cpu()?;
        fill_events(kafka, &world.events(), events, true)?;
        // The second time, when the broker is warm, counts.
        publishing = (kafka.cpu()? - before) / events as f64 * MICROS;
        let done = (&EVENTS[..], events);
        passes(kafka, &world, scale.runs, ("fanout", &[]), done)
    };
    let none = of("sizing-unmatched", "invoice.*")?;
    let ten = of("sizing-matched", "order.*")?;
    let each = |ten: f64, none: f64| (ten - none) / MATCHES as f64;
    report.tells("fan-out: CPU per event", own(&none, events), " µs");
    report.tells(
        "fan-out: CPU per command",
        each(own(&ten, events), own(&none, events)),
        " µs",
    );
    report.tells(
        "fan-out: Kafka's CPU per event read",
        brokers(&none, events),
        " µs",
    );
    report.tells(
        "fan-out: Kafka's CPU per command written",
        each(brokers(&ten, events), brokers(&none, events)),
        " µs",
    );
    report.tells("Kafka's CPU per event published", publishing, " µs");
    report.tells("fan-out: peak memory", memory(&ten), " MiB");
    report.tells(
        "fan-out: commands, one replica",
        rate(&ten) * MATCHES as f64,
        "/s",
    );

    // One match an event: no two commands share a body, which compression would find.
    for (noisy, name) in [(true, "a body of noise"), (false, "a body of one letter")] {
        let world = World::new(
            kafka,
            &format!("sizing-bytes-{noisy}"),
            PARTITIONS,
            &wanting(1, "order.*", nowhere),
        )?;
        fill_events(kafka, &world.events(), events, noisy)?;
        let before = kafka.stored(&world.commands())?;
        let role = world.again(&world.events()).start("fanout", &[])?;
        role.wait(&COMMANDS, events as f64)?;
        role.stop()?;
        let bytes = kafka.stored(&world.commands())? - before;
        report.tells(
            &format!("fan-out: bytes on disk per command with {name} of {BODY} bytes"),
            bytes as f64 / events as f64,
            " B",
        );
    }
    Ok(())
}

/// What three copies of each record cost the brokers, against one copy on the same brokers.
fn replication(scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let events = scale.pick(5_000, 30_000);
    let kafka = Kafka::with_brokers(3)?;
    let mut cost = Vec::new();
    for copies in [1, 3] {
        let world = World::replicated(
            &kafka,
            &format!("sizing-copies-{copies}"),
            PARTITIONS,
            &wanting(MATCHES, "order.*", "http://127.0.0.1:1/ok"),
            Some(copies),
        )?;
        fill_events(&kafka, &world.events(), events, true)?;
        let done = (&EVENTS[..], events);
        let all = passes(&kafka, &world, scale.runs, ("fanout", &[]), done)?;
        cost.push(brokers(&all, events * MATCHES));
    }
    report.tells(
        "three brokers: Kafka's CPU per command, 1 copy",
        cost[0],
        " µs",
    );
    report.tells(
        "three brokers: Kafka's CPU per command, 3 copies",
        cost[1],
        " µs",
    );
    report.tells("three copies over one", cost[1] / cost[0], " x");
    Ok(())
}

// ---- delivery ----

/// Commands of `lanes` subscriptions in turn, from the one with number `from` on.
fn fill_commands(
    kafka: &Kafka,
    topic: &str,
    lanes: usize,
    numbers: std::ops::Range<usize>,
) -> Result<(), Problem> {
    let producer: Writer = producer_config(&kafka.address).create()?;
    for number in numbers {
        let mut command = command(number);
        let name = number % lanes;
        command.subscriber = format!("subscriber-{name}").into();
        command.subscription = format!("s{name}").into();
        let mut body = r#"{"type":"order.created","data":{"pad":""#.to_owned();
        body.push_str(&noise(number, BODY - body.len() - 3));
        body.push_str("\"}}");
        command.body = body.into();
        send(&producer, record(topic, &command))?;
    }
    Ok(producer.flush(STUCK)?)
}

/// The case against which a new connection for each request is measured.
const KEPT: &str = "https";

/// Where the certificate of a receiver goes.
fn certificate() -> Result<String, Problem> {
    let file = std::env::current_dir()?.join(format!("target/bench/{}.pem", std::process::id()));
    Ok(file.to_string_lossy().into_owned())
}

fn deliveries(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let file = certificate()?;
    let mut plain_receiver = Helper::start("receiver", &[])?;
    let mut tls_receiver = Helper::start("receiver", &[&file])?;
    let (plain, tls) = (plain_receiver.line()?, tls_receiver.line()?);
    let many = scale.pick(50_000, 200_000);
    let few = scale.pick(5_000, 20_000);
    let delivered = r#"hookstream_attempts_total{class="2xx""#;
    let parked = "hookstream_parked_total";
    let retried = r#"hookstream_attempts_total{class="5xx",outcome="retry"#;
    let cases = [
        (
            "http",
            format!("http://127.0.0.1:{plain}/ok"),
            many,
            delivered,
        ),
        (KEPT, format!("https://127.0.0.1:{tls}/ok"), many, delivered),
        (
            "https, a new connection each",
            format!("https://127.0.0.1:{tls}/close"),
            few,
            delivered,
        ),
        (
            "http, 500 and a retry each",
            format!("http://127.0.0.1:{plain}/fail"),
            many / 2,
            retried,
        ),
        (
            "paused, parked each",
            format!("http://127.0.0.1:{plain}/ok"),
            many / 2,
            parked,
        ),
    ];
    let mut kept = f64::NAN;
    for (number, (name, url, count, sample)) in cases.into_iter().enumerate() {
        let mut subscriptions = wanting(MATCHES, "order.*", &url);
        for subscription in &mut subscriptions {
            // A breaker would spare the attempts.
            subscription["breaker"] = json!({"failures": 0, "rate": 0});
            if sample == parked {
                subscription["state"] = json!("paused");
            }
        }
        let world = World::new(
            kafka,
            &format!("sizing-deliver-{number}"),
            PARTITIONS,
            &subscriptions,
        )?;
        fill_commands(kafka, &world.commands(), MATCHES, 0..count)?;
        let flags = ["--workers", "1", "--ca-file", &file];
        let flags = if url.starts_with("https") {
            &flags[..]
        } else {
            &flags[..2]
        };
        // What a full queue parks has left the role too.
        let samples = [sample, parked];
        let role = ("deliver", flags);
        let all = passes(kafka, &world, scale.runs, role, (&samples, count))?;
        let each = own(&all, count);
        report.tells(&format!("deliver ({name}): CPU per command"), each, " µs");
        if name == KEPT {
            kept = each;
        } else if url.ends_with("/close") {
            report.tells("deliver: CPU per new https connection", each - kept, " µs");
        }
        report.tells(
            &format!("deliver ({name}): Kafka's CPU per command"),
            brokers(&all, count),
            " µs",
        );
        report.tells(
            &format!("deliver ({name}): commands, one worker"),
            rate(&all),
            "/s",
        );
        report.tells(
            &format!("deliver ({name}): peak memory"),
            memory(&all),
            " MiB",
        );
        if number == 0 {
            // Groups of its own have done none of it.
            let done = (&["hookstream_subscriber_lag{"][..], count);
            let all = passes(kafka, &world, scale.runs, ("lag", &[]), done)?;
            report.tells("lag: CPU per record read", own(&all, count), " µs");
            report.tells(
                "lag: Kafka's CPU per record read",
                brokers(&all, count),
                " µs",
            );
        }
    }
    Ok(std::fs::remove_file(file)?)
}

// ---- release ----

fn tiers(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    const TIER: Duration = Duration::from_secs(5);
    let count = scale.pick(50_000, 200_000);
    let world = World::new(kafka, "sizing-release", PARTITIONS, &[])?;
    // What is in a tier without a due time is due when the tier's delay is over.
    let tier = format!("{}-retry-5s", world.name());
    let before = kafka.stored(&tier)?;
    fill_commands(kafka, &tier, MATCHES, 0..count)?;
    let bytes = kafka.stored(&tier)? - before;
    std::thread::sleep(TIER);
    let done = (&[r#"hookstream_released_total{to="commands""#][..], count);
    let all = passes(kafka, &world, scale.runs, ("release", &[]), done)?;
    report.tells("release: CPU per move", own(&all, count), " µs");
    report.tells("release: Kafka's CPU per move", brokers(&all, count), " µs");
    report.tells("release: moves, one replica", rate(&all), "/s");
    report.tells("release: peak memory", memory(&all), " MiB");
    report.tells(
        "release: bytes on disk per record in a tier",
        bytes as f64 / count as f64,
        " B",
    );
    Ok(())
}

// ---- memory, connections and CPU at rest ----

/// A role that has been at rest for a while.
struct Rest {
    /// MiB.
    memory: f64,
    connections: usize,
    /// Of a core, percent.
    cpu: f64,
    kafka: f64,
    /// Seconds from the start of the process until it was ready.
    ready: f64,
}

fn at_rest(kafka: &Kafka, world: &World<'_>, role: &str) -> Result<Rest, Problem> {
    const SETTLE: Duration = Duration::from_secs(6);
    const LOOK: Duration = Duration::from_secs(10);
    let begun = Instant::now();
    let running = world.again(&world.events()).start(role, &[])?;
    running.wait_ready()?;
    let ready = begun.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let (own, brokers, since) = (running.cost()?.cpu, kafka.cpu()?, Instant::now());
    std::thread::sleep(LOOK);
    let share = |cpu: f64| 100.0 * cpu / since.elapsed().as_secs_f64();
    let rest = Rest {
        memory: running.resident()?,
        connections: running.connections(&kafka.address)?,
        cpu: share(running.cost()?.cpu - own),
        kafka: share(kafka.cpu()? - brokers),
        ready,
    };
    running.stop()?;
    Ok(rest)
}

fn resting(kafka: &Kafka, report: &mut Report) -> Result<(), Problem> {
    let few = World::new(
        kafka,
        "sizing-rest",
        PARTITIONS,
        &wanting(1, "order.*", URL),
    )?;
    let wide = World::new(kafka, "sizing-wide", WIDE, &wanting(1, "order.*", URL))?;
    let many = wanting(SUBSCRIBERS, "order.*", URL);
    let many = World::new(kafka, "sizing-many", PARTITIONS, &many)?;
    for role in ["fanout", "deliver", "release", "lag"] {
        let base = at_rest(kafka, &few, role)?;
        report.tells(&format!("{role} at rest: memory"), base.memory, " MiB");
        report.tells(&format!("{role} at rest: of a core"), base.cpu, " %");
        report.tells(
            &format!("{role} at rest: Kafka, of a core"),
            base.kafka,
            " %",
        );
        report.tells(
            &format!("{role} at rest: connections to one broker"),
            base.connections as f64,
            "",
        );
        report.tells(&format!("{role}: start to ready"), base.ready, " s");
        let of_many = at_rest(kafka, &wide, role)?;
        report.tells(
            &format!("{role} at rest: memory per further partition"),
            1024.0 * (of_many.memory - base.memory) / (WIDE - PARTITIONS) as f64,
            " KiB",
        );
        report.tells(
            &format!("{role} at rest with {WIDE} partitions: of a core"),
            of_many.cpu,
            " %",
        );
        report.tells(
            &format!("{role} at rest with {WIDE} partitions: Kafka, of a core"),
            of_many.kafka,
            " %",
        );
        if matches!(role, "fanout" | "deliver") {
            let all = at_rest(kafka, &many, role)?;
            report.tells(
                &format!("{role}: memory per subscription"),
                1024.0 * (all.memory - base.memory) / SUBSCRIBERS as f64,
                " KiB",
            );
            report.tells(
                &format!("{role}: start to ready with {SUBSCRIBERS} subscriptions"),
                all.ready,
                " s",
            );
        }
    }
    Ok(())
}

const URL: &str = "https://hooks.example.com/ok";

/// A subscription that has commands has a lane, also when it is idle again.
fn lanes(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let (few, all) = scale.pick((1_000, 5_000), (2_000, 20_000));
    let mut receiver = Helper::start("receiver", &[])?;
    let url = format!("http://127.0.0.1:{}/ok", receiver.line()?);
    let subscriptions = wanting(all, "order.*", &url);
    let world = World::new(kafka, "sizing-lanes", PARTITIONS, &subscriptions)?;
    let delivered = [r#"hookstream_attempts_total{class="2xx""#];
    let role = world.again("sizing-lanes").start("deliver", &[])?;
    fill_commands(kafka, &world.commands(), all, 0..few)?;
    role.wait(&delivered, few as f64)?;
    let before = settled(&role)?;
    fill_commands(kafka, &world.commands(), all, few..all)?;
    role.wait(&delivered, all as f64)?;
    report.tells(
        "deliver: memory per active subscription",
        1024.0 * (settled(&role)? - before) / (all - few) as f64,
        " KiB",
    );
    role.stop()
}

/// What is resident when what a burst needed has been let go of.
fn settled(role: &Role) -> Result<f64, Problem> {
    std::thread::sleep(Duration::from_secs(3));
    role.resident()
}

fn in_flight(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    const EACH: usize = 8;
    let (few, all) = scale.pick((400, 2_000), (800, 6_000));
    let file = certificate()?;
    let mut plain = Helper::start("receiver", &[])?;
    let mut tls = Helper::start("receiver", &[&file])?;
    let urls = [
        ("http", format!("http://127.0.0.1:{}/hang", plain.line()?)),
        ("https", format!("https://127.0.0.1:{}/hang", tls.line()?)),
    ];
    for (name, url) in urls {
        let mut memory = Vec::new();
        for count in [few, all] {
            let lanes = count / EACH;
            let world = World::new(
                kafka,
                &format!("sizing-{name}-{count}"),
                PARTITIONS,
                &wanting(lanes, "order.*", &url),
            )?;
            fill_commands(kafka, &world.commands(), lanes, 0..count)?;
            let flags = ["--max-in-flight", "16384", "--timeout", "60s"];
            let trust = ["--ca-file", &file];
            let flags: Vec<&str> = if name == "https" {
                flags.into_iter().chain(trust).collect()
            } else {
                flags.to_vec()
            };
            let role = world.again(&world.events()).start("deliver", &flags)?;
            role.wait(&["hookstream_in_flight"], count as f64)?;
            memory.push(settled(&role)?);
            // It is not asked to drain: dropping it ends it.
        }
        report.tells(
            &format!("deliver: memory per request in flight, {name}"),
            1024.0 * (memory[1] - memory[0]) / (all - few) as f64,
            " KiB",
        );
    }
    Ok(std::fs::remove_file(file)?)
}
