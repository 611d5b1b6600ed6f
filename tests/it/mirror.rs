//! A mirrored cluster, by MirrorMaker 2: a planned failover repeats nothing that was finished and loses nothing; an
//! unplanned one loses nothing that was mirrored, and repeats at most what its procedure goes back by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hookstream::edge::clock;
use hookstream::model::command::{Cause, Command, ContentType};
use hookstream::model::dead_letter::{
    Coordinates, DeadLetter, DeadLetterInfo, Reason, Settled, Settlement,
};
use hookstream::model::event::plain_webhook_id;
use hookstream::model::units::{EpochMs, Offset};
use serde_json::{Value, json};

use crate::scene::{
    LATER, dead_letters, put, subscription, wait_until_done, wait_until_done_within, with,
};
use crate::support::{
    Answer, Broker, Isolation, Mirror, Process, Receiver, Seen, World, eventually_true, kafka_tool,
};

/// Failovers start three JVMs and wait for tiers of ten seconds.
const SLOWLY: Duration = Duration::from_secs(180);
const PARTITIONS: i32 = 2;
const GROUPS: [&str; 3] = ["fanout", "deliver", "release"];

/// One request and how it was answered.
#[derive(Clone, Debug)]
struct Request {
    webhook_id: String,
    path: String,
    /// The command's attempt, as the request states it.
    attempt: u32,
    body: String,
    /// 0 for none.
    status: u16,
}

/// An endpoint for each manner, and what it was sent.
struct Endpoint {
    receiver: Receiver,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Whether what has failed until now works from now on.
    works: Arc<AtomicBool>,
}

impl Endpoint {
    fn start() -> Self {
        let (requests, works) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::default());
        let (log, working) = (Arc::clone(&requests), Arc::clone(&works));
        let receiver = Receiver::start(move |seen| {
            let request = judge(seen, AtomicBool::load(&working, Ordering::SeqCst));
            let answer = match request.status {
                0 => Answer::hang(),
                status => Answer::status(status),
            };
            log.lock().unwrap().push(request);
            answer
        });
        Self {
            receiver,
            requests,
            works,
        }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn count(&self, path: &str, status: u16) -> usize {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|one| one.path == path && one.status == status)
            .count()
    }

    #[track_caller]
    fn wait_for(&self, path: &str, status: u16, count: usize) {
        let what = format!("{count} requests to {path} get {status}");
        eventually_true(&what, SLOWLY, || self.count(path, status) >= count);
    }
}

fn judge(seen: &Seen, works: bool) -> Request {
    let attempt = seen.header("hookstream-attempt").unwrap().parse().unwrap();
    let body = String::from_utf8_lossy(&seen.body).into_owned();
    let status = match (seen.path.as_str(), attempt) {
        ("/dead", _) if !works => 400,
        ("/hang", _) if !works => 0,
        ("/flaky" | "/slow", 1) => 503,
        ("/ordered", 1) if body.contains(r#""fails":true"#) => 503,
        _ => 200,
    };
    Request {
        webhook_id: seen.webhook_id().to_owned(),
        path: seen.path.clone(),
        attempt,
        body,
        status,
    }
}

/// Two clusters with the topics of one world, and what copies from the first to the second.
struct Clusters {
    source_broker: Broker,
    // Ends after its world's last use.
    _target_broker: Broker,
    source: World,
    target: World,
    mirror: Mirror,
}

impl Clusters {
    fn start(name: &str) -> Self {
        let (source_broker, target_broker) = (Broker::own(), Broker::own());
        let mut source = World::on(&source_broker, name);
        source.tiers = vec![Duration::from_secs(1), Duration::from_secs(10)];
        source.flags = ["--retry-schedule", "1s", "--drain-deadline", "1s"]
            .map(str::to_owned)
            .to_vec();
        let target = source.elsewhere(&target_broker);
        for world in [&source, &target] {
            world.create_topics(PARTITIONS);
        }
        let mirror = Mirror::start(&source, &target);
        Self {
            source_broker,
            _target_broker: target_broker,
            source,
            target,
            mirror,
        }
    }
}

fn subscriptions(endpoint: &Endpoint) -> Vec<Value> {
    let at = |id: &str, path: &str, events: &str| {
        subscription(id, &endpoint.receiver.url(path), &[events])
    };
    let mut all: Vec<Value> = (0..3)
        .map(|number| at(&format!("good-{number}"), "/good", "a.*"))
        .collect();
    all.push(at("flaky", "/flaky", "a.*"));
    all.push(with(
        at("slow", "/slow", "slow.*"),
        json!({"retry_schedule": ["15s"]}),
    ));
    all.push(at("dead", "/dead", "dead.*"));
    all.push(with(
        at("hang", "/hang", "hang.*"),
        json!({"timeout": "60s"}),
    ));
    all.push(with(
        at("ordered", "/ordered", "ordered.*"),
        json!({"order": "strict", "retry_schedule": ["15s"]}),
    ));
    all
}

/// Event ids by the subscriptions that want them.
#[derive(Default)]
struct Sent(Vec<(String, String, Vec<&'static str>)>);

impl Sent {
    fn send(&mut self, world: &World, event_type: &str, count: usize, wanted_by: &[&'static str]) {
        let first = self.0.len();
        let ids: Vec<String> = (first..first + count)
            .map(|number| format!("e{number:05}"))
            .collect();
        world.produce_events(ids.iter().enumerate().map(|(number, id)| {
            // Two subjects, in order within their partition.
            let subject = format!("s{}", number % 2);
            // The first of each subject, for the ordered subscription: the others wait behind it.
            let fails = number < 2 && event_type != "ordered.three";
            let data = json!({"id": id, "subject": subject, "fails": fails});
            let event = json!({"id": id, "type": event_type, "subject": subject, "data": data});
            (subject, event.to_string())
        }));
        self.0.extend(
            ids.into_iter()
                .map(|id| (id, event_type.to_owned(), wanted_by.to_vec())),
        );
    }

    /// All webhooks that there are to be, by what identifies them.
    fn webhooks(&self, world: &World) -> BTreeMap<String, (&'static str, &str)> {
        let each = self.0.iter().flat_map(|(id, event_type, wanted_by)| {
            wanted_by.iter().map(move |subscription| {
                let webhook = plain_webhook_id(&world.events, event_type, id, subscription);
                (webhook, (*subscription, id.as_str()))
            })
        });
        each.collect()
    }
}

const A: [&str; 4] = ["good-0", "good-1", "good-2", "flaky"];

fn lag(world: &World) -> Value {
    let printed = world.run(&["lag", "--once", "-o", "json"], "");
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let lag: Value = serde_json::from_str(&printed.stdout).unwrap();
    lag["total"].clone()
}

/// What identifies the open letters on any cluster.
fn open_letters(world: &World) -> BTreeSet<(String, String)> {
    let text = |letter: &Value, name: &str| letter[name].as_str().unwrap().to_owned();
    let letters = dead_letters(world);
    letters
        .iter()
        .map(|letter| (text(letter, "webhook_id"), text(letter, "last_failure_at")))
        .collect()
}

fn replay(world: &World, filter: &[&str]) -> u64 {
    let command = [&["replay", "--dead-letters", "--yes", "-o", "json"], filter].concat();
    let printed = world.run(&command, "");
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let report: Value = serde_json::from_str(&printed.stdout).unwrap();
    report["letters"].as_u64().unwrap()
}

fn start(world: &World) -> Process {
    let process = world.spawn("run", &["--workers", "1"]);
    process.wait_ready();
    process
}

#[test]
fn a_planned_failover_to_a_mirrored_cluster_loses_nothing_and_repeats_nothing() {
    let endpoint = Endpoint::start();
    let mut clusters = Clusters::start("planned");
    let (source, target) = (&clusters.source, &clusters.target);
    put(source, &subscriptions(&endpoint));
    let mut first = start(source);
    let mut sent = Sent::default();
    let mut send = |event_type: &str, count, wanted_by: &[&'static str]| {
        sent.send(source, event_type, count, wanted_by);
    };
    // Retries that have left the tiers by the time of the failover, and letters that were replayed and failed again.
    send("slow.one", 20, &["slow"]);
    send("ordered.one", 6, &["ordered"]);
    send("a.one", 40, &A);
    send("dead.even", 5, &["dead"]);
    send("dead.odd", 5, &["dead"]);
    endpoint.wait_for("/dead", 400, 10);
    eventually_true("all letters are there", LATER, || {
        dead_letters(source).len() == 10
    });
    assert_eq!(replay(source, &["--event-type", "dead.even"]), 5);
    endpoint.wait_for("/dead", 400, 15);
    endpoint.wait_for("/slow", 200, 20);
    endpoint.wait_for("/ordered", 200, 6);
    endpoint.wait_for("/flaky", 200, 40);
    // Retries that wait in the tiers, ordered ones among them, and attempts that hang below others that succeed.
    send("slow.two", 20, &["slow"]);
    send("ordered.two", 6, &["ordered"]);
    send("hang.two", 3, &["hang"]);
    send("a.two", 40, &A);
    endpoint.wait_for("/slow", 503, 40);
    endpoint.wait_for("/ordered", 503, 4);
    endpoint.wait_for("/hang", 0, 3);
    endpoint.wait_for("/good", 200, 240);
    endpoint.wait_for("/flaky", 503, 80);
    first.sigterm();
    assert!(first.wait_exit(LATER).success());

    let exported = source.run(&["positions", "export"], "");
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    let refused = source.run(&["positions", "import", "-"], &exported.stdout);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("from this cluster"),
        "{}",
        refused.stderr
    );
    let (open, pending) = (open_letters(source), lag(source));
    let finished: BTreeSet<String> = endpoint
        .requests()
        .into_iter()
        .filter_map(|request| (request.status == 200).then_some(request.webhook_id))
        .collect();
    let windows: usize = source
        .committed("deliver", &source.topics.commands())
        .iter()
        .filter(|(_, _, metadata)| !metadata.is_empty())
        .count();
    assert!(windows > 0, "no window is unfinished");

    // The mirror is complete when the import finds everything.
    let import = |flags: &[&str]| {
        target.run(
            &[&["positions", "import", "-"], flags].concat(),
            &exported.stdout,
        )
    };
    eventually_true("the mirror is complete", SLOWLY, || {
        let tried = import(&["--dry-run"]);
        assert!(
            tried.code == 0 || tried.stderr.contains("has not copied"),
            "{}",
            tried.stderr
        );
        tried.code == 0
    });
    clusters.mirror.stop();
    let imported = import(&[]);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    eprintln!("{}", imported.stdout);
    assert_eq!(open_letters(target), open);
    assert_eq!(open.len(), 10);
    let mirrored = lag(target);
    for count in ["ready", "waiting", "dead_letters"] {
        assert_eq!(
            mirrored[count], pending[count],
            "{count}: {mirrored} {pending}"
        );
    }

    endpoint.works.store(true, Ordering::SeqCst);
    let before = endpoint.requests().len();
    let second = start(target);
    sent.send(target, "ordered.three", 4, &["ordered"]);
    sent.send(target, "a.three", 10, &A);
    wait_until_done_within(target, SLOWLY);
    assert_eq!(
        second.metric("hookstream_foreign_commit_metadata_total"),
        Some(0.0)
    );
    check_planned(&endpoint, before, &finished, &sent, target);

    let before = endpoint.requests().len();
    assert_eq!(replay(target, &[]), 10);
    assert_eq!(replay(target, &[]), 0);
    wait_until_done(target);
    let replayed: Vec<Request> = endpoint.requests().split_off(before);
    let webhooks: BTreeSet<&str> = replayed.iter().map(|one| one.webhook_id.as_str()).collect();
    assert_eq!((replayed.len(), webhooks.len()), (10, 10), "{replayed:?}");
    assert!(replayed.iter().all(|one| one.status == 200));
}

/// Nothing that was finished is requested again, each attempt is made once, and everything succeeds once.
fn check_planned(
    endpoint: &Endpoint,
    before: usize,
    finished: &BTreeSet<String>,
    sent: &Sent,
    world: &World,
) {
    let requests = endpoint.requests();
    let again: Vec<&Request> = requests[before..]
        .iter()
        .filter(|request| finished.contains(&request.webhook_id))
        .collect();
    assert!(again.is_empty(), "finished, and requested again: {again:?}");
    let mut attempts: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    let mut delivered: BTreeMap<&str, usize> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.path != "/dead") {
        let key = (request.webhook_id.as_str(), request.attempt);
        *attempts.entry(key).or_default() += 1;
        if request.status == 200 {
            *delivered.entry(&request.webhook_id).or_default() += 1;
        }
    }
    // The three that hung were cut, which no window can call finished.
    let repeated: usize = attempts.values().map(|count| count - 1).sum();
    assert_eq!(repeated, 3, "{attempts:?}");
    for (webhook, (subscription, event)) in sent.webhooks(world) {
        let expected = usize::from(subscription != "dead");
        let count = delivered.get(webhook.as_str()).copied().unwrap_or(0);
        assert_eq!(count, expected, "{event} for {subscription}");
    }
    assert_in_order(&requests);
}

/// Of each subject, the ordered subscription's successes come in the order of the events.
fn assert_in_order(requests: &[Request]) {
    let mut by_subject: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in requests {
        if request.path == "/ordered" && request.status == 200 {
            let body: Value = serde_json::from_str(&request.body).unwrap();
            let text = |name: &str| body["data"][name].as_str().unwrap().to_owned();
            by_subject
                .entry(text("subject"))
                .or_default()
                .push(text("id"));
        }
    }
    assert_eq!(by_subject.len(), 2);
    for (subject, ids) in by_subject {
        assert!(ids.is_sorted(), "{subject}: {ids:?}");
    }
}

/// What a mirror copied of a replay: the letter and the fact, and not yet the command.
#[test]
fn a_replay_whose_command_was_not_mirrored_can_be_repeated_once() {
    let world = crate::scene::world("half-mirrored");
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let command = Command {
        subscriber: "s".into(),
        webhook_id: "msg_1".into(),
        subscription: "s".into(),
        event_id: "e1".into(),
        event_type: "order.created".into(),
        event_time: None,
        subject: None,
        content_type: ContentType::Json,
        attempt: 1,
        due: None,
        enqueued: EpochMs(1),
        cause: Cause::New,
        traceparent: None,
        first_failure: None,
        last_failure: None,
        replayed: None,
        sequence: None,
        recorded: None,
        cluster: None,
        body: "{}".into(),
    };
    let letter = DeadLetter {
        at: Coordinates {
            partition: 0,
            offset: Offset(777),
        },
        subscriber: "s".to_owned(),
        subscription: "s".to_owned(),
        webhook_id: "msg_1".to_owned(),
        event_id: "e1".to_owned(),
        event_type: "order.created".to_owned(),
        attempts: 1,
        enqueued: Some(EpochMs(1)),
        info: DeadLetterInfo {
            reason: Reason::PermanentStatus,
            status: Some(400),
            error: "status 400".to_owned(),
            first_failure: EpochMs(2),
            last_failure: EpochMs(2),
        },
    };
    let mut headers = Vec::new();
    command
        .envelope()
        .each_header(|name, value| headers.push((name, value.to_owned())));
    headers.extend(letter.info.headers());
    let fact = Settled::new(&letter, Settlement::Replayed, clock::now(), "the source");
    let write = |headers: &[(&'static str, String)], value: &[u8]| {
        let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let record = (Some("s"), headers.collect(), Some(value.to_vec()));
        world.produce(&world.topics.dead_letters(), [record]);
    };
    write(&headers, b"{}");
    write(&fact.headers(), b"");
    assert_eq!(dead_letters(&world), Vec::<Value>::new());
    assert_eq!(replay(&world, &[]), 0);
    assert_eq!(replay(&world, &["--again-since", "1h"]), 1);
    assert_eq!(replay(&world, &["--again-since", "1h"]), 0);
    let _process = crate::scene::start(&world, &[]);
    receiver.wait_for(1, LATER);
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 1);
}

/// Of a role's group on the target, each partition's position goes back by so many records. The tool exits with 0 also
/// when it did nothing, so what it prints is looked at; it takes only a group without members, which a group of
/// the mirror's is.
fn go_back(world: &World, role: &str, records: usize) {
    let group = format!("{}{role}", world.prefix);
    let back = format!("-{records}");
    let command = [
        "kafka-consumer-groups",
        "--bootstrap-server",
        &world.brokers,
        "--timeout",
        "60000",
        "--group",
        &group,
        "--all-topics",
        "--reset-offsets",
        "--shift-by",
        &back,
        "--execute",
    ];
    let what = format!("{group} goes back");
    eventually_true(&what, SLOWLY, || {
        let printed = kafka_tool(&command);
        eprintln!("{printed}");
        printed.contains("NEW-OFFSET") && !printed.contains("Error")
    });
}

/// The ids of the events that a cluster has.
fn event_ids(world: &World) -> BTreeSet<String> {
    let records = world.read_all(&world.events, Isolation::Committed);
    let ids = records
        .iter()
        .map(|record| record.json()["id"].as_str().unwrap().to_owned());
    ids.collect()
}

#[test]
fn an_unplanned_failover_loses_nothing_that_was_mirrored_and_repeats_what_it_goes_back_by() {
    const ROUNDS: u32 = 100;
    const EVERY: Duration = Duration::from_millis(300);
    const TAIL: usize = 20;
    /// What each group goes back by in each partition: more records than it passes in six seconds, which is more than
    /// the mirror lags behind.
    const BACK: [(&str, usize); 3] = [("fanout", 60), ("deliver", 270), ("release", 40)];
    let endpoint = Endpoint::start();
    let mut clusters = Clusters::start("unplanned");
    let (source, target) = (&clusters.source, &clusters.target);
    put(source, &subscriptions(&endpoint));
    let mut first = start(source);
    let mut sent = Sent::default();
    sent.send(source, "a.first", 20, &A);
    eventually_true("the mirror copies events and positions", SLOWLY, || {
        let topics = [
            source.events.clone(),
            source.topics.commands(),
            source.topics.retry(source.tiers[0]),
        ];
        let mut groups = GROUPS.iter().zip(topics);
        groups.all(|(group, topic)| !target.committed(group, &topic).is_empty())
    });
    let began = Instant::now();
    for round in 1..=ROUNDS {
        sent.send(source, "a.b", 4, &A);
        sent.send(source, "dead.b", 1, &["dead"]);
        sent.send(source, "slow.b", 1, &["slow"]);
        std::thread::sleep((began + EVERY * round).saturating_duration_since(Instant::now()));
    }
    // From here on nothing is mirrored but what answers the mirror's pending fetches.
    clusters.mirror.signal("STOP");
    sent.send(source, "a.fetched", TAIL, &A);
    sent.send(source, "a.last", TAIL, &A);
    kill(clusters.source_broker.pid(1));
    first.sigkill();
    clusters.mirror.signal("CONT");
    clusters.mirror.stop();

    let mirrored = event_ids(target);
    let tail = sent.0.iter().filter(|(id, ..)| !mirrored.contains(id));
    let tail = tail.count();
    eprintln!(
        "{} events, {} of them mirrored; the tail that was not: {tail}",
        sent.0.len(),
        mirrored.len(),
    );
    assert!(tail >= TAIL, "{tail} events were not mirrored");
    let before = endpoint.requests().len();
    for (role, records) in BACK {
        go_back(target, role, records);
    }
    let bound = most_repeated(target);
    let second = start(target);
    wait_until_done_within(target, SLOWLY);
    assert_eq!(
        second.metric("hookstream_foreign_commit_metadata_total"),
        Some(0.0)
    );

    let requests = endpoint.requests();
    let mut delivered: BTreeMap<&str, usize> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.status == 200) {
        *delivered.entry(&request.webhook_id).or_default() += 1;
    }
    let letters: BTreeSet<String> = open_letters(target).into_iter().map(|(id, _)| id).collect();
    let mut lost = Vec::new();
    for (webhook, (subscription, event)) in sent.webhooks(target) {
        let has_ended = match subscription {
            "dead" => letters.contains(&webhook),
            _ => delivered.contains_key(webhook.as_str()),
        };
        if mirrored.contains(event) && !has_ended {
            lost.push((event.to_owned(), subscription));
        }
    }
    assert!(lost.is_empty(), "mirrored and lost: {lost:?}");
    let doubled: usize = delivered.values().map(|count| count - 1).sum();
    eprintln!(
        "{} webhooks delivered, {doubled} times again, of at most {bound}; {} requests after the failover",
        delivered.len(),
        requests.len() - before
    );
    assert!(doubled <= bound);
    let once = delivered.values().filter(|count| **count == 1).count();
    assert!(
        once > 0,
        "everything was repeated: the groups went back to the beginning"
    );
}

/// The most successes that positions which went back can repeat: an event that is read again becomes four commands at
/// most, and each command and retry one request that succeeds.
fn most_repeated(world: &World) -> usize {
    let behind = |role: &str, topic: &str| {
        let committed = world.committed(role, topic);
        let position = |partition| {
            let found = committed.iter().find(|(known, _, _)| *known == partition);
            found.map_or(0, |(_, position, _)| *position)
        };
        let records = world.read_all(topic, Isolation::Committed);
        let again = records
            .iter()
            .filter(|record| record.offset >= position(record.partition));
        again.count()
    };
    let tiers = world.tiers.iter().map(|tier| world.topics.retry(*tier));
    let retries: usize = tiers.map(|topic| behind("release", &topic)).sum();
    A.len() * behind("fanout", &world.events)
        + behind("deliver", &world.topics.commands())
        + retries
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}
