//! Partitions that move or end beside attempts that hang: only they wait for these, and the process stays visible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hookstream::edge::clock;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::Producer;
use rdkafka::util::Timeout;
use serde_json::{Value, json};

use crate::faults::{ALL, QUICK, RETRY, assert_one_lineage, flaky, world_on};
use crate::scene::{event, put, subscription, wait_until_done, with};
use crate::support::{
    Answer, Isolation, Process, Receiver, SOON, Seen, World, eventually, eventually_true,
};

const PARTITIONS: i32 = 8;
/// Enough subscribers for some of each kind in every partition; their names decide where they are.
const HANGING: usize = 40;
const HEALTHY: usize = 24;
/// How long partitions drain beside an attempt that hangs.
const DRAIN: Duration = Duration::from_secs(8);
/// The longest that partitions which stay may be silent meanwhile, ms: far below [`DRAIN`].
const SILENCE: i64 = 2_500;

/// Subscriptions whose endpoints hang, and healthy ones, each of its own subscriber.
fn subscriptions(receiver: &Receiver) -> Vec<Value> {
    let one = |kind: &'static str, count: usize| {
        (0..count).map(move |number| {
            let id = format!("{kind}{number}");
            let to = subscription(&id, &receiver.url(&format!("/{kind}/{id}")), &[kind]);
            with(to, json!({"max_in_flight": 4}))
        })
    };
    one("hanging", HANGING)
        .chain(one("healthy", HEALTHY))
        .collect()
}

fn hangs_or_not(seen: &Seen) -> Answer {
    if seen.path.starts_with("/hanging/") {
        Answer::hang()
    } else {
        Answer::ok()
    }
}

fn deliver(world: &World, instance: &str, drain: Duration) -> Process {
    let deadline = format!("--drain-deadline={}s", drain.as_secs());
    let flags = [&QUICK[..], &["--timeout=60s", &deadline]].concat();
    let process = world.spawn_as(instance, "deliver", &flags);
    process.wait_ready();
    process
}

/// The partitions of the first line behind `known` that contains `part`, in `partitions=[1, 2]`; not an empty list.
fn listed(process: &Process, known: usize, part: &str) -> Option<BTreeSet<i32>> {
    let lines = process.stderr();
    let found = lines[known..].iter().filter(|line| line.contains(part));
    found
        .filter_map(|line| {
            let list = line.split_once("partitions=[")?.1.split_once(']')?.0;
            list.split(',').map(|one| one.trim().parse().ok()).collect()
        })
        .next()
}

/// The partition of each subscriber, from its commands.
fn places(world: &World) -> BTreeMap<String, i32> {
    let commands = world.read_all(&world.topics.commands(), Isolation::Committed);
    let each = commands.iter();
    each.map(|record| (record.key_text().to_owned(), record.partition))
        .collect()
}

/// The longest time in which a subscriber got nothing between two moments, ms.
fn silence(seen: &[Arc<Seen>], subscriber: &str, from: i64, to: i64) -> i64 {
    let path = format!("/healthy/{subscriber}");
    let times = seen.iter().filter(|seen| seen.path == path);
    let times = times.map(|seen| seen.received);
    let mut last = from;
    let mut longest = 0;
    for time in times.filter(|time| (from..=to).contains(time)).chain([to]) {
        longest = longest.max(time - last);
        last = time;
    }
    longest
}

/// Events for the healthy ones at an even pace, until told to stop. Returns their number and the longest time between
/// two, ms.
fn produce_evenly(world: &World, stop: &AtomicBool, produced: &AtomicUsize) -> i64 {
    let mut last = clock::now();
    let mut longest = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = produced.load(Ordering::Relaxed);
        world.produce_event("k", &[], event(&format!("e{number}"), "healthy", "1"));
        produced.fetch_add(1, Ordering::Relaxed);
        longest = longest.max(clock::now().0 - last.0);
        last = clock::now();
        // The pace of what is measured, not a wait for something to happen.
        std::thread::sleep(Duration::from_millis(100));
    }
    longest
}

/// Ends the producer also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Probes and metrics are served while `process` drains, until `over`, and say that it is in this state.
fn assert_visible(process: &Process, state: &str, mut over: impl FnMut() -> bool) {
    let is_told = || {
        process
            .try_get("/readyz")
            .is_some_and(|(_, told)| told.contains(state))
    };
    eventually_true(&format!("it is {state}"), ALL, is_told);
    let mut probed = 0;
    let began = Instant::now();
    while !over() {
        assert!(began.elapsed() < ALL, "the drain does not end");
        let responses = ["/livez", "/metrics"].map(|path| process.try_get(path));
        let served = responses.map(|response| response.is_some_and(|(status, _)| status == 200));
        let told = is_told();
        if over() {
            break;
        }
        assert_eq!(served, [true; 2], "/livez and /metrics during the drain");
        assert!(told, "it is not {state} any more");
        probed += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(probed > 10, "it was only visible {probed} times");
}

#[test]
fn partitions_that_stay_are_delivered_while_others_drain_beside_a_hanging_endpoint() {
    let world = world_on(None, "drains", PARTITIONS);
    let receiver = Receiver::start(hangs_or_not);
    put(&world, &subscriptions(&receiver));
    let fanout = world.spawn_as("f", "fanout", &QUICK);
    fanout.wait_ready();
    let members = ["one", "two"].map(|name| deliver(&world, name, DRAIN));
    for member in &members {
        member.wait_for_line("partitions assigned partitions=[", ALL);
    }
    world.produce_event("k", &[], event("hang", "hanging", "1"));
    world.produce_event("k", &[], event("first", "healthy", "1"));
    receiver.wait_until("all endpoints have been reached", ALL, |seen| {
        let paths: BTreeSet<_> = seen.iter().map(|seen| &seen.path).collect();
        paths.len() == HANGING + HEALTHY
    });
    let places = places(&world);
    let (stop, produced) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let stops = Stops(&stop);
        let producer = scope.spawn(|| produce_evenly(&world, &stop, &produced));
        eventually_true("events flow", ALL, || produced.load(Ordering::Relaxed) > 10);

        // A third joins: the two others give up some of their partitions.
        let known = members.each_ref().map(|member| member.stderr().len());
        let mut third = deliver(&world, "three", DRAIN);
        let revoked = |member: usize| listed(&members[member], known[member], "revoked");
        let (draining, mut left) = eventually("one drains", ALL, || {
            (0..2).find_map(|member| Some((member, revoked(member)?)))
        });
        let began = clock::now();
        let at = Instant::now();
        assert_visible(&members[draining], "ready", || {
            listed(&third, 0, "partitions assigned").is_some()
        });
        assert!(
            at.elapsed() > DRAIN / 2,
            "an attempt hung in what moved, but the drain took {:?}",
            at.elapsed()
        );
        let ended = clock::now();
        left.extend((0..2).filter_map(revoked).flatten());
        let joined = (began, ended, left);

        // It leaves: the two others take over what it has had.
        eventually_true("the third delivers", ALL, || {
            let delivered = r#"hookstream_attempts_total{class="2xx",outcome="delivered"}"#;
            third.metric(delivered).unwrap_or_default() > 0.0
        });
        let theirs = listed(&third, 0, "partitions assigned").unwrap();
        let began = clock::now();
        let at = Instant::now();
        third.sigterm();
        third.wait_for_line("draining", ALL);
        let cut = |line: &String| line.contains("the drain deadline has passed");
        assert_visible(&third, "draining", || third.stderr().iter().any(cut));
        assert!(at.elapsed() > DRAIN / 2, "it drained {:?}", at.elapsed());
        assert!(third.wait_exit(ALL).success(), "it ends in order");
        let ended = clock::now();
        let quit = (began, ended, theirs);
        drop(stops);
        let pace = producer.join().unwrap();

        let events = produced.load(Ordering::Relaxed) + 1;
        let healthy = |seen: &[Arc<Seen>]| -> Vec<(String, String)> {
            let healthy = seen.iter().filter(|seen| seen.path.starts_with("/healthy"));
            let each = healthy.map(|seen| (seen.path.clone(), seen.webhook_id().to_owned()));
            each.collect()
        };
        let seen = receiver.wait_until("everything arrives", ALL, |seen| {
            healthy(seen).len() >= events * HEALTHY
        });
        let all = healthy(&seen);
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), events * HEALTHY, "nothing is lost");
        assert_eq!(all.len(), distinct.len(), "nothing is sent twice");
        for (what, (from, to, moved)) in [("joined", joined), ("left", quit)] {
            let stay = (0..HEALTHY).map(|number| format!("healthy{number}"));
            let stay: Vec<_> = stay
                .filter(|subscriber| !moved.contains(&places[subscriber]))
                .collect();
            assert!(stay.len() > HEALTHY / 4, "{moved:?} moved of {places:?}");
            let silent = stay.iter();
            let longest = silent.map(|one| (silence(&seen, one, from.0, to.0), one));
            let (longest, of) = longest.max().unwrap();
            assert!(
                longest < SILENCE + pace,
                "while one {what}, {of} got nothing for {longest} ms; events came every {pace} ms, {moved:?} moved"
            );
        }
    });
}

/// **Owner only**: what a process learns of attempts of partitions that it has lost changes nothing.
#[test]
fn a_process_that_was_frozen_for_longer_than_its_session_commits_nothing_of_what_it_has_lost() {
    const EVENTS: usize = 40;
    let world = world_on(None, "frozen", 2);
    let slow = Arc::new(AtomicBool::new(true));
    let slows = Arc::clone(&slow);
    // The first attempt of each is refused, a while after it was made.
    let receiver = Receiver::start(move |seen| match slows.load(Ordering::Relaxed) {
        true => flaky(seen).after(Duration::from_secs(3)),
        false => flaky(seen),
    });
    let all: Vec<_> = (0..4)
        .map(|number| {
            let id = format!("s{number}");
            let to = subscription(&id, &receiver.url(&format!("/flaky/{id}")), &["**"]);
            with(to, json!({"max_in_flight": 16}))
        })
        .collect();
    put(&world, &all);
    let flags = [&QUICK[..], &RETRY[..]].concat();
    let others = ["fanout", "release"].map(|role| world.spawn_as(role, role, &flags));
    others.iter().for_each(Process::wait_ready);
    let frozen = world.spawn_as("one", "deliver", &flags);
    frozen.wait_for_line("partitions assigned partitions=[", ALL);
    let produce = |numbers: std::ops::Range<usize>| {
        world.produce_events(numbers.map(|number| {
            let id = format!("e{number}");
            (format!("k{number}"), event(&id, "order.created", "1"))
        }));
    };
    produce(0..EVENTS / 2);
    receiver.wait_for(40, ALL);
    // The responses to these arrive at a process that is frozen.
    frozen.signal("STOP");
    slow.store(false, Ordering::Relaxed);
    let second = world.spawn_as("two", "deliver", &flags);
    second.wait_for_line("partitions assigned partitions=[", ALL);
    let retried = |seen: &[Arc<Seen>]| {
        let retries = seen
            .iter()
            .filter(|seen| seen.header("hookstream-attempt") == Some("2"));
        let ids: BTreeSet<_> = retries.map(|seen| seen.webhook_id().to_owned()).collect();
        ids.len()
    };
    receiver.wait_until("the second has done it all", ALL, |seen| {
        retried(seen) >= EVENTS / 2 * 4
    });
    wait_until_done(&world);
    let commands = world.topics.commands();
    let before = world.committed("deliver", &commands);
    let tier = world.topics.retry(world.tiers[0]);
    let written = world.read_all(&tier, Isolation::Committed).len();
    frozen.signal("CONT");
    frozen.wait_for_line("partitions revoked", ALL);
    // It joins again, and both go on.
    eventually_true("it has some of the partitions again", ALL, || {
        frozen
            .stderr()
            .iter()
            .filter(|line| line.contains("partitions assigned partitions=["))
            .count()
            >= 2
    });
    let after = world.committed("deliver", &commands);
    assert_eq!(before, after, "it has committed nothing of what it had");
    assert_eq!(
        world.read_all(&tier, Isolation::Committed).len(),
        written,
        "nor written an outcome"
    );
    produce(EVENTS / 2..EVENTS);
    receiver.wait_until("the rest arrives too", ALL, |seen| {
        retried(seen) >= EVENTS * 4
    });
    wait_until_done(&world);
    assert_one_lineage(&world, EVENTS, 4);
}

/// The client does not report an eviction while it waits for partitions to be given up: the rejected commit does.
#[test]
fn a_process_that_is_evicted_while_it_drains_gives_everything_up_and_joins_again() {
    let world = world_on(None, "evicted", 4);
    let receiver = Receiver::start(hangs_or_not);
    put(&world, &subscriptions(&receiver));
    let fanout = world.spawn_as("f", "fanout", &QUICK);
    fanout.wait_ready();
    let mut frozen = deliver(&world, "one", Duration::from_secs(60));
    frozen.wait_for_line("partitions assigned partitions=[", ALL);
    let mut produced = 0;
    let mut produce = |kind: &str, count: usize| {
        let numbers = produced..produced + count;
        produced += count;
        world.produce_events(numbers.map(|number| {
            let id = format!("e{number}");
            (format!("k{number}"), event(&id, kind, "1"))
        }));
    };
    let healthy = |seen: &[Arc<Seen>]| -> usize {
        let healthy = seen.iter().filter(|seen| seen.path.starts_with("/healthy"));
        let each: BTreeSet<_> = healthy
            .map(|seen| (&seen.path, seen.webhook_id()))
            .collect();
        each.len()
    };
    produce("hanging", 1);
    produce("healthy", 1);
    receiver.wait_until("all endpoints have been reached", ALL, |seen| {
        let paths: BTreeSet<_> = seen.iter().map(|seen| &seen.path).collect();
        paths.len() == HANGING + HEALTHY
    });
    let second = deliver(&world, "two", Duration::from_secs(60));
    eventually_true("the first drains", ALL, || {
        listed(&frozen, 0, "partitions revoked").is_some()
    });
    frozen.signal("STOP");
    let assigned = |process: &Process| {
        let lines = process.stderr();
        let each = lines
            .iter()
            .filter(|line| line.contains("partitions assigned"));
        each.filter_map(|line| line.split_once("partitions=["))
            .flat_map(|(_, list)| {
                list.split_once(']')
                    .map(|(list, _)| list.split(',').count())
            })
            .sum::<usize>()
    };
    eventually_true("the second has all partitions", ALL, || {
        assigned(&second) == 4
    });
    produce("healthy", 20);
    receiver.wait_until("the second delivers them", ALL, |seen| {
        healthy(seen) == 21 * HEALTHY
    });
    wait_for_positions(&world);
    let commands = world.topics.commands();
    let before = world.committed("deliver", &commands);
    frozen.signal("CONT");
    eventually_true("it has lost the others too", ALL, || {
        let lost =
            |line: &String| line.contains("partitions revoked") && line.contains("lost=true");
        frozen.stderr().iter().any(lost)
    });
    assert_eq!(
        world.committed("deliver", &commands),
        before,
        "it has committed something"
    );
    eventually_true("the second drains for it", ALL, || {
        listed(&second, 0, "partitions revoked").is_some()
    });
    // What stays with the second goes on, and the first is a member again.
    produce("healthy", 1);
    let seen = receiver.wait_until("the other partitions are delivered", ALL, |seen| {
        healthy(seen) > 21 * HEALTHY
    });
    assert!(!seen.is_empty());
    assert_eq!(frozen.exited(), None, "it goes on");
    assert_eq!(frozen.get("/livez").0, 200);
}

/// Waits until what has ended is committed: two readings agree.
fn wait_for_positions(world: &World) {
    let mut before = Vec::new();
    eventually_true("positions are committed", ALL, || {
        let now = world.committed("deliver", &world.topics.commands());
        let same = now == before;
        before = now;
        same
    });
}

/// What an owner that was killed has left open hides the positions of its partitions until it times out.
#[test]
fn partitions_that_stay_are_delivered_while_the_positions_of_others_are_hidden() {
    let world = world_on(None, "hidden", 4);
    let receiver = Receiver::good();
    put(&world, &subscriptions(&receiver));
    let fanout = world.spawn_as("f", "fanout", &QUICK);
    fanout.wait_ready();
    let [survivor, mut killed] = ["one", "two"].map(|name| deliver(&world, name, DRAIN));
    killed.wait_for_line("partitions assigned partitions=[", ALL);
    world.produce_event("k", &[], event("first", "healthy", "1"));
    receiver.wait_for(HEALTHY, ALL);
    wait_until_done(&world);
    let places = places(&world);
    let moves = listed(&killed, 0, "partitions assigned").unwrap();
    let commands = world.topics.commands();
    let mut offsets = TopicPartitionList::new();
    for (partition, position, metadata) in world.committed("deliver", &commands) {
        if moves.contains(&partition) {
            let mut one = offsets.add_partition(&commands, partition);
            one.set_offset(rdkafka::Offset::Offset(position)).unwrap();
            one.set_metadata(metadata);
        }
    }
    assert_eq!(offsets.count(), moves.len());
    let mut config = world.client_config();
    config.set("group.id", format!("{}deliver", world.prefix));
    let anybody: BaseConsumer = config.create().unwrap();
    let open = world.begin_transaction("left-open", "60000");
    let group = anybody.group_metadata().unwrap();
    open.send_offsets_to_transaction(&offsets, &group, SOON)
        .unwrap();
    killed.sigkill();

    let (stop, produced) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let stops = Stops(&stop);
        let producer = scope.spawn(|| produce_evenly(&world, &stop, &produced));
        survivor.wait_for_line("reading committed offsets failed, retrying", ALL);
        let from = clock::now();
        let began = produced.load(Ordering::Relaxed);
        eventually_true("events flow", ALL, || {
            produced.load(Ordering::Relaxed) > began + 50
        });
        let to = clock::now();
        assert!(
            survivor.metric("hookstream_in_flight").is_some(),
            "it serves its metrics"
        );
        open.abort_transaction(Timeout::Never).unwrap();
        drop(stops);
        let pace = producer.join().unwrap();
        let events = produced.load(Ordering::Relaxed) + 1;
        let seen = receiver.wait_for(events * HEALTHY, ALL);
        let stay = (0..HEALTHY).map(|number| format!("healthy{number}"));
        let stay: Vec<_> = stay.filter(|one| !moves.contains(&places[one])).collect();
        assert!(
            !stay.is_empty() && stay.len() < HEALTHY,
            "{moves:?} move of {places:?}"
        );
        let each = stay.iter();
        let (longest, of) = each
            .map(|one| (silence(&seen, one, from.0, to.0), one))
            .max()
            .unwrap();
        assert!(
            longest < SILENCE + pace,
            "{of} got nothing for {longest} ms"
        );
    });
}
