//! Small scenarios on a real Kafka, with the program as it was built beside this test, and the model of the same size:
//! how far the model is off.
//!
//! All processes share this machine, which should do nothing else meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hookstream::edge::clock;
use hookstream::model::partitioner::{key_hash, partition};
use serde_json::json;

use super::full::{group_shape, partition_shape};
use super::group::{self, Fault};
use super::partition::{self, Manner, Outage, SECOND, Seen as Modelled, Whale};
use crate::it::support::{Answer, Process, Receiver, Seen, World};
use crate::{settings, settings_with};

/// What the endpoints need for a response.
const RESPONSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(600);
/// Shorter than the default, so that commands with several failed attempts return within minutes.
const SCHEDULE: &str = "5s,20s,40s,60s,60s,60s,60s";
/// The breaker's own defaults.
const BREAKER: [&str; 2] = ["--breaker-failures=5", "--breaker-rate=0.5"];

struct Row {
    what: &'static str,
    measured: f64,
    model: f64,
    unit: &'static str,
}

/// Plays all scenarios, and prints both figures and the error of the model.
pub fn print() {
    // ROWS=group plays these only.
    let wanted = std::env::var("ROWS").unwrap_or_default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted == name;
    let mut rows = Vec::new();
    if is_wanted("group") {
        rows.extend(handovers());
    }
    if is_wanted("outage") {
        rows.extend(outage());
    }
    if is_wanted("whale") {
        rows.extend(whale());
    }
    println!("| small run | measured | model | error |");
    println!("|---|---|---|---|");
    for row in rows {
        let Row {
            what,
            measured,
            model,
            unit,
        } = row;
        let error = (model - measured) / measured * 100.0;
        println!("| {what} | {measured:.2} {unit} | {model:.2} {unit} | {error:+.0} % |");
    }
}

/// Writes commands for subscriptions, as fan-out does.
fn produce(world: &World, commands: &[(String, String)]) {
    let each = commands.iter();
    let commands = each.map(|(webhook, id)| (&**webhook, &**id, &**id));
    world.produce_commands(commands, &[b'x'; 1_024]);
}

fn put(world: &World, receiver: &Receiver, id: &str, max_in_flight: Option<u32>) {
    let mut record = json!({
        "id": id, "subscriber": id, "events": ["**"], "url": receiver.url(&format!("/{id}")),
    });
    if let Some(most) = max_in_flight {
        record["max_in_flight"] = most.into();
    }
    world.put_subscription(id, record.to_string());
}

fn flags(world: &mut World) {
    world.flags = BREAKER.iter().map(|&flag| flag.to_owned()).collect();
    world.flags.push(format!("--retry-schedule={SCHEDULE}"));
}

// ---- the group ------------------------------------------------------------------------------------

/// Three replicas, twelve partitions: each is replaced, then one is killed.
fn handovers() -> Vec<Row> {
    const PARTITIONS: i32 = 12;
    const REPLICAS: usize = 3;
    let mut world = World::new("scale-group");
    flags(&mut world);
    world.create_topics(PARTITIONS);
    let receiver = Receiver::start(|_| Answer::ok().after(RESPONSE));
    let ids: Vec<String> = (0..PARTITIONS).map(of_partition).collect();
    for id in &ids {
        put(&world, &receiver, id, None);
    }
    let name = |number: usize| format!("{}replica-{number}", world.prefix);
    let start = |number: usize| {
        let process = world.spawn_as(&name(number), "deliver", &["--workers=1"]);
        process.wait_ready();
        process
    };
    let ended = AtomicBool::new(false);
    let (mut restarts, mut spans) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut round = 0;
            while !ended.load(Ordering::Relaxed) {
                let each = ids
                    .iter()
                    .map(|id| (format!("msg_{id}_{round}"), id.clone()));
                produce(&world, &each.collect::<Vec<_>>());
                round += 1;
                std::thread::sleep(EVERY);
            }
        });
        let mut replicas: Vec<Process> = (0..REPLICAS).map(start).collect();
        receiver.wait_for(PARTITIONS as usize * 20, PATIENCE);
        std::thread::sleep(Duration::from_secs(10));
        let began = clock::now().0;
        // As a StatefulSet does: the last one first.
        for number in (0..REPLICAS).rev() {
            let mut old = replicas.remove(number);
            old.sigterm();
            old.wait_exit(PATIENCE);
            let exited = Instant::now();
            replicas.insert(number, start(number));
            restarts.push(exited.elapsed());
            std::thread::sleep(Duration::from_secs(10));
        }
        spans.push((began, clock::now().0));
        let began = clock::now().0;
        replicas[0].sigkill();
        std::thread::sleep(Duration::from_secs(30));
        spans.push((began, clock::now().0));
        ended.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    let seen = receiver.seen();
    let measured: Vec<Vec<i64>> = spans.iter().map(|&span| gaps(&seen, span)).collect();
    let restart = restarts.iter().sum::<Duration>() / u32::try_from(restarts.len()).unwrap();
    let shape = group::Shape {
        members: REPLICAS,
        partitions: PARTITIONS,
        restart: i64::try_from(restart.as_millis()).unwrap(),
        settle: 10_000,
        ..group_shape(vec![i64::try_from(RESPONSE.as_millis()).unwrap()])
    };
    // A small group has few pauses: the mean of many seeds.
    let model = |fault| -> Vec<i64> {
        let mut all: Vec<i64> = (0..50)
            .flat_map(|seed| {
                let shape = group::Shape {
                    seed,
                    ..shape.clone()
                };
                let pauses = group::play(&shape, fault).pauses;
                pauses.into_iter().filter(|pause| *pause > NOISE)
            })
            .collect();
        all.sort_unstable();
        all
    };
    let roll = model(Fault::Roll { at_a_time: 1 });
    let kill = model(Fault::Kill { returns: false });
    let at = |all: &[i64], share: f64| {
        let last = all.len().saturating_sub(1) as f64;
        all.get((last * share) as usize)
            .map_or(0.0, |ms| *ms as f64 / 1e3)
    };
    let row = |what, measured: &[i64], model: &[i64], share: f64| Row {
        what,
        measured: at(measured, share),
        model: at(model, share),
        unit: "s",
    };
    vec![
        row(
            "3 replicas replaced one by one, 12 partitions: pause of a partition, median",
            &measured[0],
            &roll,
            0.5,
        ),
        row("the same, longest", &measured[0], &roll, 1.0),
        row(
            "one of 3 killed: pause of its partitions, median",
            &measured[1],
            &kill,
            0.5,
        ),
        row("the same, longest", &measured[1], &kill, 1.0),
    ]
}

const EVERY: Duration = Duration::from_millis(20);
/// A pause that is not longer may be one of the machine, ms: not counted, neither here nor in the model.
const NOISE: i64 = 400;

/// A name whose partition of twelve is this one.
fn of_partition(wanted: i32) -> String {
    let names = (0..).map(|number| format!("p{wanted}-{number}"));
    let mut fitting = names.filter(|name| partition(key_hash(name.as_bytes()), 12) == Some(wanted));
    fitting.next().unwrap()
}

/// The times for which the endpoint of a partition got nothing, where that is longer than between two commands, ms.
fn gaps(seen: &[Arc<Seen>], (from, to): (i64, i64)) -> Vec<i64> {
    let mut by_path: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for one in seen {
        by_path.entry(&one.path).or_default().push(one.received);
    }
    let mut all = Vec::new();
    for mut times in by_path.into_values() {
        times.sort_unstable();
        // A pause begins with the last request before.
        times.retain(|time| (from - 1_000..to).contains(time));
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let usual = i64::try_from(EVERY.as_millis()).unwrap();
        all.extend(gaps.map(|gap| gap - usual).filter(|gap| *gap > NOISE));
    }
    all.sort_unstable();
    all
}

// ---- one partition --------------------------------------------------------------------------------

/// Thirty subscriptions share the load of a partition evenly.
const SUBSCRIPTIONS: usize = 30;

fn shape(rate: f64) -> partition::Shape {
    partition::Shape {
        rate,
        subscriptions: SUBSCRIPTIONS,
        skew: 0.0,
        latency: (RESPONSE.as_millis() as f64 + 2.0, 0.05),
        requests: settings().max_in_flight,
        until: 20 * SECOND,
        ..partition_shape(3)
    }
}

fn modelled(shape: &partition::Shape) -> Modelled {
    partition::play(shape, &settings_with(&[("retry-schedule", SCHEDULE)]))
}

/// A run on a real Kafka: commands at a rate, until all of them are done.
struct Run {
    world: World,
    receiver: Receiver,
    is_down: Arc<AtomicBool>,
    _deliver: Process,
    _release: Process,
    sent: HashMap<String, i64>,
    /// When the endpoints went down.
    down_from: Option<i64>,
    random: fastrand::Rng,
}

impl Run {
    fn new(name: &str, max_in_flight: Option<u32>) -> Self {
        let mut world = World::new(name);
        world.tiers = settings().tiers.delays().to_vec();
        flags(&mut world);
        world.create_topics(1);
        let is_down = Arc::new(AtomicBool::new(false));
        let down = Arc::clone(&is_down);
        let receiver = Receiver::start(move |seen| {
            let fails = down.load(Ordering::Relaxed) && seen.path.ends_with('5');
            let answer = if fails {
                Answer::status(500)
            } else {
                Answer::ok()
            };
            answer.after(RESPONSE)
        });
        for number in 0..SUBSCRIPTIONS {
            put(&world, &receiver, &format!("s{number}"), None);
        }
        put(&world, &receiver, "whale", max_in_flight);
        let deliver = world.spawn("deliver", &["--workers=1"]);
        let release = world.spawn("release", &[]);
        deliver.wait_ready();
        release.wait_ready();
        Self {
            world,
            receiver,
            is_down,
            _deliver: deliver,
            _release: release,
            sent: HashMap::new(),
            down_from: None,
            random: fastrand::Rng::with_seed(3),
        }
    }

    fn send(&mut self, ids: Vec<String>) {
        let now = clock::now().0;
        let each = ids.into_iter().map(|id| {
            let webhook = format!("msg_{id}_{}", self.random.u64(..));
            self.sent.insert(webhook.clone(), now);
            (webhook, id)
        });
        let each: Vec<_> = each.collect();
        produce(&self.world, &each);
    }

    /// A steady load.
    fn load(&mut self, rate: f64, time: Duration) {
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < time {
            let due = (began.elapsed().as_secs_f64() * rate) as usize;
            if due > sent {
                let ids = (sent..due).map(|_| format!("s{}", self.random.usize(0..SUBSCRIPTIONS)));
                let ids = ids.collect();
                sent = due;
                self.send(ids);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A load until each command that `counts`, of those up to `until`, has been accepted.
    fn load_until_done(&mut self, rate: f64, counts: impl Fn(&str) -> bool, until: i64, back: i64) {
        let of: Vec<String> = self
            .sent
            .iter()
            .filter(|(webhook, at)| counts(webhook) && **at <= until)
            .map(|(webhook, _)| webhook.clone())
            .collect();
        let began = Instant::now();
        loop {
            self.load(rate, Duration::from_secs(1));
            let done = self.accepted(back);
            if of.iter().all(|webhook| done.contains_key(webhook)) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "commands are not done in time");
        }
    }

    /// When each webhook was accepted: endpoints that were down accept from `back` on.
    fn accepted(&self, back: i64) -> HashMap<String, i64> {
        let seen = self.receiver.seen();
        let from = self.down_from.unwrap_or(i64::MAX);
        let accepts = |one: &&Arc<Seen>| {
            !one.path.ends_with('5') || one.received < from || one.received >= back
        };
        let each = seen.iter().filter(accepts);
        each.map(|one| (one.webhook_id().to_owned(), one.received))
            .collect()
    }

    /// Records of the retry topics, and those that came back, without their originals.
    fn appends(&self) -> usize {
        let read = |topic: &str| {
            let all = self
                .world
                .read_all(topic, crate::it::support::Isolation::Committed);
            all.len()
        };
        let tiers = self.world.tiers.iter();
        let tiers: usize = tiers
            .map(|tier| read(&self.world.topics.retry(*tier)))
            .sum();
        tiers + read(&self.world.topics.commands()) - self.sent.len()
    }

    /// From the event to the request, of subscriptions that are not affected, p99 and the longest, between two times, s.
    fn healthy(&self, from: i64, to: i64) -> (f64, f64) {
        let seen = self.receiver.seen();
        let waits = seen.iter().filter_map(|one| {
            let is_affected = one.path.ends_with('5') || one.path == "/whale";
            let sent = *self.sent.get(one.webhook_id())?;
            (!is_affected && (from..to).contains(&sent)).then_some(one.received - sent)
        });
        let mut waits: Vec<i64> = waits.collect();
        waits.sort_unstable();
        let at = |share: f64| {
            let place = (waits.len().saturating_sub(1) as f64 * share) as usize;
            waits.get(place).map_or(0.0, |ms| *ms as f64 / 1e3)
        };
        (at(0.99), at(1.0))
    }
}

fn is_affected(webhook: &str) -> bool {
    let id = webhook.split('_').nth(1).unwrap_or("");
    id.ends_with('5') || id == "whale"
}

/// Every tenth endpoint responds 500 for 90 s.
fn outage() -> Vec<Row> {
    const RATE: f64 = 150.0;
    let mut run = Run::new("scale-outage", None);
    run.load(RATE, Duration::from_secs(20));
    let from = clock::now().0;
    run.is_down.store(true, Ordering::Relaxed);
    run.down_from = Some(from);
    run.load(RATE, Duration::from_secs(90));
    run.is_down.store(false, Ordering::Relaxed);
    let back = clock::now().0;
    run.load_until_done(RATE, is_affected, back, back);
    let accepted = run.accepted(back);
    let late = run
        .sent
        .iter()
        .filter(|(webhook, at)| is_affected(webhook) && **at <= back);
    let late = late.filter_map(|(webhook, _)| accepted.get(webhook)).max();
    let settled = late.map_or(0, |at| at - back) as f64 / 1e3;
    let affected = run
        .sent
        .keys()
        .filter(|webhook| is_affected(webhook))
        .count();
    let during = run
        .sent
        .iter()
        .filter(|(webhook, at)| is_affected(webhook) && (from..back).contains(*at));
    let during = during.count();
    let appends = run.appends() as f64 / during as f64;
    let requests = run.receiver.seen();
    let failed = requests
        .iter()
        .filter(|one| one.path.ends_with('5') && (from..back).contains(&one.received));
    let failed = failed.count() as f64;
    let (p99, _) = run.healthy(from, back);
    drop(run);
    eprintln!("outage: {affected} affected, {during} during");
    let model = modelled(&partition::Shape {
        outage: Some(Outage {
            every: 10,
            from: 20 * SECOND,
            to: 110 * SECOND,
            manner: Manner::Status(500),
        }),
        ..shape(RATE)
    });
    let row = |what, measured, model, unit| Row {
        what,
        measured,
        model,
        unit,
    };
    // The share of the affected commands that falls into the outage is the same in both.
    let of_outage = RATE / 10.0 * 90.0;
    vec![
        row(
            "every tenth of 30 endpoints down for 90 s, 150 commands/s: time to settle",
            settled,
            model.settled.unwrap_or(0) as f64 / 1e3,
            "s",
        ),
        row(
            "the same: appends per command of the outage",
            appends,
            model.appends() as f64 / of_outage,
            "",
        ),
        row(
            "the same: attempts that failed",
            failed,
            model.failed as f64,
            "",
        ),
        // A request arrives before its response: the model counts to the end.
        row(
            "the same: healthy subscriptions, p99 to the request",
            p99,
            model.healthy[1].p99 as f64 / 1e3 - RESPONSE.as_secs_f64(),
            "s",
        ),
    ]
}

/// One subscription gets 10,000 commands at once.
fn whale() -> Vec<Row> {
    const RATE: f64 = 60.0;
    const COMMANDS: usize = 10_000;
    let mut run = Run::new("scale-whale", Some(8));
    run.load(RATE, Duration::from_secs(10));
    run.send(vec!["whale".to_owned(); COMMANDS]);
    let began = clock::now().0;
    run.load_until_done(RATE, is_affected, began, 0);
    let accepted = run.accepted(0);
    let whale = |webhook: &str| webhook.starts_with("msg_whale");
    let last = accepted.iter().filter(|(webhook, _)| whale(webhook));
    let last = last.map(|(_, at)| *at).max().unwrap_or(began);
    let settled = (last - began) as f64 / 1e3;
    let appends = run.appends() as f64 / COMMANDS as f64;
    let (p99, longest) = run.healthy(began, last);
    drop(run);
    let model = modelled(&partition::Shape {
        whale: Some(Whale {
            commands: u32::try_from(COMMANDS).unwrap(),
            at: 10 * SECOND,
            max_in_flight: 8,
            latency: RESPONSE.as_millis() as f64 + 2.0,
        }),
        ..shape(RATE)
    });
    let row = |what, measured, model, unit| Row {
        what,
        measured,
        model,
        unit,
    };
    vec![
        row(
            "whale: 10,000 commands at once, 8 in flight, beside 60/s: time to settle",
            settled,
            model.settled.unwrap_or(0) as f64 / 1e3,
            "s",
        ),
        row(
            "the same: appends per command",
            appends,
            model.appends() as f64 / COMMANDS as f64,
            "",
        ),
        row(
            "the same: healthy subscriptions, p99",
            p99,
            model.healthy[1].p99 as f64 / 1e3,
            "s",
        ),
        row(
            "the same: longest",
            longest,
            model.healthy[1].max as f64 / 1e3,
            "s",
        ),
    ]
}
