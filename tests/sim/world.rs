//! The whole system in virtual time: `make sim SEEDS=N`, `make sim SEED=K`.
//!
//! | module | |
//! |---|---|
//! | [`world::plan`] | what a seed chooses: replicas, subscriptions, endpoints, traffic, operators, faults |
//! | [`world::run`] | plays a plan |
//! | [`world::check`] | the invariants of `lib.rs`, at any moment and at the end |
//! | [`world::machine`], [`world::port`], [`world::replica`], [`world::endpoints`] | the outside of the product's roles |
//!
//! Without arguments it is a test: the same seed has the same history twice, and as many of 2,000 seeds as 80 s have room for, and planted bugs.

// As in `tests/it`: a test that cannot go on should stop where it stands.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    dead_code,
    unused_imports,
    missing_docs,
    unreachable_pub
)]

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

mod kafka;
mod world {
    pub mod check;
    pub mod endpoints;
    pub mod history;
    pub mod machine;
    pub mod plan;
    pub mod port;
    pub mod replica;
    pub mod run;
}

use world::plan::Plan;
use world::run::{Outcome, catch_panics, play};

/// How many seeds a test plays at most, and for how long.
const TEST_SEEDS: u64 = 2_000;
const TEST_TIME: Duration = Duration::from_secs(80);

/// How many runs the shrinking of a plan may take.
const SHRINKING: usize = 200;

/// Planted bugs that the first ten seeds find.
const QUICK: [&str; 4] = ["outcome-lost", "release-without-positions", "body", "early"];

/// The number of seeds until a planted bug is found, and the first violation.
fn find(name: &str, first: u64, count: u64) -> Option<(u64, String)> {
    let bug = kafka::planted::ALL.iter().find(|bug| bug.name == name)?;
    for seed in first..first + count {
        let plan = Plan::of(seed);
        kafka::planted::plant(Some(bug.name));
        let outcome = play(&plan);
        kafka::planted::plant(None);
        if let Some(what) = outcome.violations.into_iter().next() {
            return Some((seed - first + 1, what));
        }
    }
    None
}

/// Plants one bug, or `all` one after the other: prints after how many seeds each is found.
fn planted(name: &str, first: u64, count: u64) -> ExitCode {
    let all = kafka::planted::ALL.iter();
    let chosen: Vec<_> = all
        .filter(|bug| name == "all" || bug.name == name)
        .collect();
    let mut missed = chosen.is_empty();
    println!("| bug | what is wrong | seeds | found as |");
    println!("|---|---|---|---|");
    let next = AtomicUsize::new(0);
    let lines = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(bug) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = find(bug.name, first, count);
                    let is_found = found.is_some();
                    let (seeds, what) = found.map_or_else(
                        || (format!("not in {count}"), String::new()),
                        |(seeds, what)| (seeds.to_string(), what),
                    );
                    let (name, wrong) = (bug.name, bug.what);
                    let line = format!("| `{name}` | {wrong} | {seeds} | {} |", invariant(&what));
                    println!("{line}");
                    let mut lines = kafka::net::lock(&lines);
                    lines.push((is_found, line));
                }
            });
        }
    });
    let lines = lines.into_inner().unwrap_or_default();
    missed |= lines.iter().any(|(is_found, _)| !is_found);
    if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    catch_panics();
    if let Some(seed) = number("SEED") {
        return one(seed);
    }
    let first = number("FIRST").unwrap_or(1);
    if let Ok(name) = std::env::var("PLANT") {
        return planted(&name, first, number("SEEDS").unwrap_or(200));
    }
    if let Some(count) = number("SEEDS") {
        return many(first, count, Duration::MAX);
    }
    if let Err(what) = deterministic() {
        println!("{what}");
        return ExitCode::FAILURE;
    }
    // Those that few seeds show.
    for name in QUICK {
        if find(name, 1, 10).is_none() {
            println!("the planted bug {name} is not found by seeds 1 to 10");
            return ExitCode::FAILURE;
        }
    }
    println!("{} planted bugs are found", QUICK.len());
    many(first, TEST_SEEDS, TEST_TIME)
}

fn threads() -> usize {
    number("THREADS").map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |threads| usize::try_from(threads).unwrap_or(1),
    )
}

fn violations(plan: &Plan, outcome: &Outcome) -> Vec<String> {
    let mut all = outcome.violations.clone();
    if plan.is_calm() {
        all.extend(isolation(plan, outcome));
    }
    all
}

/// **Isolated**: beside the same seed with endpoints that all behave, the control group is not delayed.
fn isolation(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let well = play(&plan.without_bad_tenants());
    let at = |all: &[i64]| {
        let last = all.len().saturating_sub(1);
        all.get(last * 95 / 100).copied().unwrap_or(0)
    };
    let (with, without) = (at(&outcome.latencies), at(&well.latencies));
    (with > 2 * without + 500).then(|| {
        format!(
            "Isolated: the control group waits {with} ms (p95), {without} ms without bad tenants"
        )
    })
}

/// Two runs of a seed have the same history.
fn deterministic() -> Result<(), String> {
    for seed in 1..=12 {
        let plan = Plan::of(seed);
        let (first, second) = (play(&plan).history, play(&plan).history);
        if first.hash() != second.hash() {
            let mut pairs = first.0.iter().zip(&second.0);
            let differ = pairs.find(|(first, second)| first != second);
            return Err(format!("seed {seed} has two histories: {differ:?}"));
        }
    }
    println!("the same seed has the same history twice");
    Ok(())
}

/// The invariant that a line is about.
fn invariant(line: &str) -> &str {
    let line = line.split(" ms: ").last().unwrap_or_default();
    line.split(':').next().unwrap_or_default()
}

/// The smallest plan found that violates the same invariant, within [`SHRINKING`] runs.
fn shrink(plan: Plan, outcome: Outcome) -> (Plan, Outcome) {
    let Some(first) = violations(&plan, &outcome).into_iter().next() else {
        return (plan, outcome);
    };
    let wanted = invariant(&first).to_owned();
    let (mut plan, mut outcome, mut runs) = (plan, outcome, 0);
    loop {
        let mut found = None;
        for smaller in plan.smaller() {
            if runs == SHRINKING {
                return (plan, outcome);
            }
            runs += 1;
            let played = play(&smaller);
            let mut all = violations(&smaller, &played).into_iter();
            if all.any(|line| invariant(&line) == wanted) {
                found = Some((smaller, played));
                break;
            }
        }
        match found {
            Some(smaller) => (plan, outcome) = smaller,
            None => return (plan, outcome),
        }
    }
}

fn one(seed: u64) -> ExitCode {
    let plan = Plan::of(seed);
    if std::env::var("LOG").is_ok() {
        log();
    }
    if let Ok(name) = std::env::var("PLANT") {
        let bug = kafka::planted::ALL.iter().find(|bug| bug.name == name);
        kafka::planted::plant(bug.map(|bug| bug.name));
    }
    let hash = play(&plan).history.hash();
    let outcome = play(&plan);
    if hash != outcome.history.hash() {
        println!("seed {seed} has two histories");
        return ExitCode::FAILURE;
    }
    let size = plan.acts.len();
    let (plan, outcome) = if std::env::var("WHOLE").is_ok() {
        (plan, outcome)
    } else {
        shrink(plan, outcome)
    };
    if plan.acts.len() < size {
        let left = plan.acts.len();
        println!("shrunk from {size} acts to {left} that fail alike; WHOLE=1 shows all");
    }
    println!("{plan:#?}");
    outcome.history.print();
    let all = violations(&plan, &outcome);
    for what in &all {
        println!("VIOLATED {what}");
    }
    println!("{} ms of virtual time", outcome.took);
    println!("history {hash:016x}");
    if all.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The product's own log, with virtual times.
fn log() {
    struct Virtual;
    impl tracing_subscriber::fmt::time::FormatTime for Virtual {
        fn format_time(
            &self,
            w: &mut tracing_subscriber::fmt::format::Writer<'_>,
        ) -> std::fmt::Result {
            let now = hookstream::edge::clock::now().0 - world::history::EPOCH;
            write!(w, "{now:>9} ms")
        }
    }
    tracing_subscriber::fmt()
        .with_timer(Virtual)
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("LOG"))
        .init();
}

fn many(first: u64, count: u64, time: Duration) -> ExitCode {
    let began = Instant::now();
    let threads = threads();
    let next = AtomicU64::new(first);
    let (passed, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let virtual_ms = AtomicU64::new(0);
    let lines = Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || began.elapsed() > time {
                        return;
                    }
                    let plan = Plan::of(seed);
                    let outcome = play(&plan);
                    let took = u64::try_from(outcome.took).unwrap_or(0);
                    virtual_ms.fetch_add(took, Ordering::Relaxed);
                    let all = violations(&plan, &outcome);
                    if all.is_empty() {
                        passed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    failed.fetch_add(1, Ordering::Relaxed);
                    let _alone = lines.lock();
                    for what in all.iter().take(3) {
                        println!("seed {seed}: {what}");
                    }
                    println!("seed {seed}: make sim SEED={seed}");
                }
            });
        }
    });
    let (passed, failed) = (passed.into_inner(), failed.into_inner());
    let (real, simulated) = (
        began.elapsed(),
        Duration::from_millis(virtual_ms.into_inner()),
    );
    println!(
        "{simulated:.0?} of virtual time in {real:.1?}, {:.0} times as fast",
        simulated.as_secs_f64() / real.as_secs_f64()
    );
    println!("{passed} seeds passed, {failed} failed");
    std::io::stdout().flush().ok();
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
