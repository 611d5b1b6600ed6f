//! The shapes of the full size, and their tables.

use std::time::Instant;

use hookstream::delivery::partition::env::Amount;

use super::group::{self, Fault};
use super::partition::{self, Manner, Outage, SECOND, Seen, Us, Whale};
use crate::settings;

/// Of the whole installation.
const REPLICAS: usize = 200;
const PARTITIONS: i32 = 1_000;
const SUBSCRIPTIONS: usize = 1_000_000;
/// Partitions that are played.
const SAMPLES: u64 = 2;

const MINUTE: Us = 60 * SECOND;

/// One partition of a thousand: 1,000 commands/s to 1,000 subscriptions, with the defaults of a replica that owns five
/// partitions with five workers.
pub fn partition_shape(seed: u64) -> partition::Shape {
    let settings = settings();
    partition::Shape {
        seed,
        rate: 1_000.0,
        subscriptions: SUBSCRIPTIONS / 1_000,
        skew: 0.7,
        body: 1_024,
        latency: (80.0, 0.8),
        requests: settings.max_in_flight.div_ceil(5),
        share: Amount {
            bytes: settings.max_queued_bytes / 5,
            commands: settings.max_queued_commands / 5,
        },
        transaction: 20_000,
        release: (1_000.0, 30_000),
        outage: None,
        whale: None,
        until: 2 * MINUTE,
    }
}

/// The group of deliver with the product's settings.
pub fn group_shape(drains: Vec<i64>) -> group::Shape {
    group::Shape {
        seed: 1,
        members: REPLICAS,
        partitions: PARTITIONS,
        session: 20_000,
        heartbeat: 500,
        poll: 300_000,
        round_trip: (1, 5),
        assign: 50,
        take: (10, 60),
        drains,
        drain_deadline: 10_000,
        last_commit: (20, 120),
        restart: 20_000,
        settle: 12_000,
    }
}

fn outage(manner: Manner) -> Outage {
    Outage {
        every: 10,
        from: 2 * MINUTE,
        to: 32 * MINUTE,
        manner,
    }
}

/// Plays a shape with several seeds, two at a time.
fn samples(shape: impl Fn(u64) -> partition::Shape + Sync, count: u64) -> Vec<Seen> {
    let mut all = Vec::new();
    for pair in (1..=count).collect::<Vec<_>>().chunks(2) {
        let shape = &shape;
        std::thread::scope(|scope| {
            let play = |&seed| scope.spawn(move || partition::play(&shape(seed), &settings()));
            let started: Vec<_> = pair.iter().map(play).collect();
            all.extend(started.into_iter().map(|one| one.join().unwrap()));
        });
    }
    all
}

fn most<T: Ord + Copy + Default>(all: &[Seen], of: impl Fn(&Seen) -> T) -> T {
    all.iter().map(of).max().unwrap_or_default()
}

fn mean(all: &[Seen], of: impl Fn(&Seen) -> f64) -> f64 {
    all.iter().map(of).sum::<f64>() / all.len() as f64
}

fn seconds(ms: i64) -> String {
    match ms {
        ms if ms < 10_000 => format!("{:.2} s", ms as f64 / 1e3),
        ms if ms < 600_000 => format!("{:.0} s", ms as f64 / 1e3),
        ms => format!("{:.0} min", ms as f64 / 60e3),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        bytes if bytes < 10_240.0 => format!("{bytes:.0} B"),
        bytes if bytes < 10_485_760.0 => format!("{:.0} KiB", bytes / 1024.0),
        bytes => format!("{:.0} MiB", bytes / 1_048_576.0),
    }
}

fn as_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Prints the tables of `docs/sizing.md`.
pub fn print() {
    let began = Instant::now();
    let stage = |name: &str| eprintln!("{name}: {:.0?}", began.elapsed());
    let calm = samples(partition_shape, SAMPLES);
    stage("nothing fails");
    let down = samples(
        |seed| partition::Shape {
            outage: Some(outage(Manner::RefuseOrHang)),
            ..partition_shape(seed)
        },
        SAMPLES,
    );
    stage("outage");
    let whale = |max_in_flight, commands| {
        move |seed| partition::Shape {
            whale: Some(Whale {
                commands,
                at: MINUTE,
                max_in_flight,
                latency: 80.0,
            }),
            ..partition_shape(seed)
        }
    };
    let wide = samples(whale(64, 300_000), SAMPLES);
    stage("whale, 64 in flight");
    let narrow = samples(whale(8, 50_000), SAMPLES);
    stage("whale, 8 in flight");
    let drains = |all: &[Seen], of: fn(&Seen) -> &Vec<i64>| -> Vec<i64> {
        all.iter().flat_map(|seen| of(seen).clone()).collect()
    };
    let healthy = drains(&calm, |seen| &seen.drains);
    let hanging = drains(&down, |seen| &seen.drains_in_outage);

    println!(
        "| group of deliver | time to settle | rebalances | pause of a partition: median, longest | pauses of one partition: number, sum | partitions that pause at a time |"
    );
    println!("|---|---|---|---|---|---|");
    let row = |name: &str, drains: &[i64], fault| {
        let seen = group::play(&group_shape(drains.to_vec()), fault);
        println!(
            "| {name} | {} | {} | {}, {} | {}, {} | {} |",
            seconds(seen.took),
            seen.generations,
            seconds(seen.pause(0.5)),
            seconds(seen.pause(1.0)),
            seen.most_often,
            seconds(seen.longest_sum),
            seen.most_standing,
        );
    };
    let roll = |at_a_time| Fault::Roll { at_a_time };
    row("rolling update, one replica at a time", &healthy, roll(1));
    row("rolling update, 20 at a time (10 %)", &healthy, roll(20));
    row(
        "the same while every tenth endpoint is down",
        &hanging,
        roll(20),
    );
    let zone = |coordinator| Fault::Zone { coordinator };
    row("loss of a zone: 67 replicas", &healthy, zone(None));
    row(
        "the same with the group coordinator, which moves in 10 s",
        &healthy,
        zone(Some(10_000)),
    );
    let kill = Fault::Kill { returns: true };
    row("one replica is killed and restarted", &healthy, kill);
    stage("group");

    println!();
    println!(
        "| sampled partition | time to settle | appends per affected command | records that release moves of the partition, peak | healthy subscriptions: p50, p99, longest | longest wait of intake | commit metadata, characters |"
    );
    println!("|---|---|---|---|---|---|---|");
    let row = |name: &str, all: &[Seen], phase: usize| {
        let settled = most(all, |seen| seen.settled.unwrap_or(0));
        let moves = most(all, |seen| seen.moves);
        let appends = mean(all, |seen| {
            seen.appends() as f64 / seen.affected.max(1) as f64
        });
        let is_calm = all.iter().all(|seen| seen.affected == 0);
        println!(
            "| {name} | {} | {} | {moves}/s | {}, {}, {} | {} | {} |",
            if is_calm {
                "—".to_owned()
            } else {
                seconds(as_ms(settled))
            },
            if is_calm {
                "—".to_owned()
            } else {
                format!("{appends:.1}")
            },
            seconds(as_ms(most(all, |seen| seen.healthy[phase].p50))),
            seconds(as_ms(most(all, |seen| seen.healthy[phase].p99))),
            seconds(as_ms(most(all, |seen| seen.healthy[phase].max))),
            seconds(as_ms(
                u64::try_from(most(all, |seen| seen.stalled).as_millis()).unwrap_or(0)
            )),
            most(all, |seen| seen.window),
        );
    };
    row("nothing fails", &calm, 0);
    row(
        "every tenth endpoint is down for 30 min: meanwhile",
        &down,
        1,
    );
    row("after the return", &down, 2);
    row("whale: 300,000 commands at once, 64 in flight", &wide, 1);
    row(
        "whale: 50,000 commands at once, 8 in flight (the default)",
        &narrow,
        1,
    );

    println!();
    println!("| structure | bytes | of what |");
    println!("|---|---|---|");
    let subscription = partition::cache(20_000);
    let show =
        |name: &str, bytes: f64, what: &str| println!("| {name} | {} | {what} |", size(bytes));
    show(
        "subscriptions, in each replica",
        subscription * SUBSCRIPTIONS as f64,
        &format!("{subscription:.0} B each"),
    );
    let machine = |name: &str, all: &[Seen]| {
        let bytes = most(all, |seen| seen.machine);
        show(
            &format!("lanes and window of a partition: {name}"),
            bytes as f64,
            "1,000 subscriptions with commands; most at any time",
        );
        let bytes = most(all, |seen| seen.commands_bytes);
        show(
            &format!("commands in memory: {name}"),
            bytes as f64,
            &format!(
                "at most; up to {} records wait in `webhook-commands`, {} in the retry topics",
                most(all, |seen| seen.unread),
                most(all, |seen| seen.in_tiers)
            ),
        );
    };
    machine("nothing fails", &calm);
    machine("outage", &down);
    machine("whale", &wide);
    let range = |all: &[i64], share: f64| {
        let mut all = all.to_vec();
        all.sort_unstable();
        let at = (all.len().saturating_sub(1) as f64 * share) as usize;
        seconds(all.get(at).copied().unwrap_or(0))
    };
    println!();
    println!(
        "Longest attempt in flight of a partition, at any moment: median {}, p99 {}; in the outage {}, {}.",
        range(&healthy, 0.5),
        range(&healthy, 0.99),
        range(&hanging, 0.5),
        range(&hanging, 0.99),
    );
}
