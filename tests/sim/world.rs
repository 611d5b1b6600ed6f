//! The whole system in virtual time: `make sim SEEDS=N`, `make sim SEED=K`.
//!
//! | module | |
//! |---|---|
//! | [`world::plan`] | what a seed chooses: replicas, subscriptions, endpoints, traffic, operators, faults |
//! | [`world::run`] | plays a plan |
//! | [`world::check`] | the invariants of `lib.rs`, at any moment and at the end |
//! | [`world::lag`] | somebody who watches the backlog |
//! | [`world::machine`], [`world::port`], [`world::replica`], [`world::endpoints`] | the outside of the product's roles |
//!
//! Without arguments it is a test: the same seed has the same history twice, planted bugs are found, what was found once
//! (`world/found`) stays fixed, and as many of 2,000 seeds as 80 s have room for break no invariant.

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
    pub mod aims;
    pub mod check;
    pub mod endpoints;
    pub mod history;
    pub mod lag;
    pub mod machine;
    pub mod plan;
    pub mod port;
    pub mod replay;
    pub mod replica;
    pub mod run;
}

use kafka::planted::Bug;
use world::plan::Plan;
use world::run::{Outcome, catch_panics, play};

/// How many seeds a test plays at most, and for how long.
const TEST_SEEDS: u64 = 2_000;
const TEST_TIME: Duration = Duration::from_secs(80);
/// After so many seeds a run says how far it is.
const PROGRESS: u64 = 5_000;

/// How many runs the shrinking of a plan may take.
const SHRINKING: usize = 200;

const DOCUMENTATION: &str = include_str!("../../docs/simulation.md");

/// How often a plan of [`FOUND`] is played, each time with other chances.
const CHANCES: u64 = 5;
/// The shrunk plans of seeds that have found something.
const FOUND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/world/found");

/// Does something for each of these on all cores, and returns what it makes of them in their order.
fn on_all_cores<T: Sync, R: Send>(all: &[T], make: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let made = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = all.get(at) else { return };
                    let one = make(one);
                    kafka::net::lock(&made).push((at, one));
                }
            });
        }
    });
    let mut made = made.into_inner().unwrap();
    made.sort_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, one)| one).collect()
}

/// What a seed finds of a planted bug, if it finds nothing without it.
fn finds(bug: &Bug, seed: u64) -> Option<String> {
    let plan = Plan::of(seed);
    kafka::planted::plant(Some(bug.name));
    let outcome = play(&plan);
    kafka::planted::plant(None);
    let what = outcome.violations.into_iter().next()?;
    play(&plan).violations.is_empty().then_some(what)
}

/// The number of seeds until a planted bug is found, and the first violation.
fn find(bug: &Bug, first: u64, count: u64) -> Option<(u64, String)> {
    let mut each = first..first + count;
    each.find_map(|seed| Some((seed - first + 1, finds(bug, seed)?)))
}

/// The planted bugs with the seed that finds each, from the table of the documentation; none of one that is not found.
fn documented() -> Result<Vec<(Bug, Option<u64>)>, String> {
    let each = kafka::planted::ALL.iter().map(|bug| {
        let row = format!("| `{}` | {} | ", bug.name, bug.what);
        let mut lines = DOCUMENTATION.lines();
        let rest = lines.find_map(|line| line.strip_prefix(&row));
        let rest = rest.ok_or_else(|| format!("docs/simulation.md has no row {row}"))?;
        let (seed, _) = rest.split_once(" |").unwrap_or_default();
        Ok((*bug, seed.parse().ok()))
    });
    each.collect()
}

/// Each planted bug is found by the seed that the documentation names, or by one of a few others.
fn planted_bugs_are_found() -> Result<(), String> {
    const OTHERS: u64 = 100;
    let all = documented()?;
    let missed = on_all_cores(&all, |(bug, seed)| {
        let seed = (*seed)?;
        let found = finds(bug, seed).is_some() || find(bug, 1, OTHERS).is_some();
        (!found).then_some(bug.name)
    });
    let missed: Vec<_> = missed.into_iter().flatten().collect();
    if !missed.is_empty() {
        return Err(format!(
            "planted bugs that are not found: {missed:?}; `make sim PLANT=all` makes the table of docs/simulation.md"
        ));
    }
    let count = all.iter().filter(|(_, seed)| seed.is_some()).count();
    println!("{count} planted bugs are found");
    Ok(())
}

/// What was found once does not come back.
fn found_stays_fixed() -> Result<(), String> {
    let entries = std::fs::read_dir(FOUND).map_err(|error| format!("{FOUND}: {error}"))?;
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let wrong = on_all_cores(&files, |path| {
        let file = std::fs::read_to_string(path).unwrap();
        let mut plan = Plan::from_file(file).map_err(|error| format!("{path:?}: {error}"))?;
        for _ in 0..CHANCES {
            if let Some(what) = violations(&plan, &play(&plan)).into_iter().next() {
                let (found, path) = (&plan.found, path.display());
                return Err(format!(
                    "{found}: {what}\nmake sim PLAN={path} CHANCE={}",
                    plan.seed
                ));
            }
            plan.seed += 1;
        }
        Ok(())
    });
    wrong.into_iter().collect::<Result<Vec<()>, _>>()?;
    println!("{} plans of earlier findings pass", files.len());
    Ok(())
}

/// Plants one bug, or `all` one after the other: prints after how many seeds each is found.
fn planted(name: &str, first: u64, count: u64) -> ExitCode {
    let all = kafka::planted::ALL.iter();
    let chosen: Vec<_> = all
        .filter(|bug| name == "all" || bug.name == name)
        .collect();
    let mut missed = chosen.is_empty();
    let lines = on_all_cores(&chosen, |bug| {
        let found = find(bug, first, count);
        let is_found = found.is_some();
        let (seeds, what) = found.map_or_else(
            || (format!("not in {count}"), String::new()),
            |(seeds, what)| (seeds.to_string(), what),
        );
        let (name, wrong) = (bug.name, bug.what);
        eprintln!("{name}: {seeds}");
        let line = format!("| `{name}` | {wrong} | {seeds} | {} |", invariant(&what));
        (is_found, line)
    });
    println!("| bug | what is wrong | seeds | found as |");
    println!("|---|---|---|---|");
    for (is_found, line) in lines {
        println!("{line}");
        missed |= !is_found;
    }
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
    if let Some(path) = std::env::var_os("PLAN") {
        let file = std::fs::read_to_string(&path).map_err(|error| error.to_string());
        let plan = file.and_then(|file| Plan::from_file(file).map_err(|error| error.to_string()));
        return match plan {
            Ok(mut plan) => {
                plan.seed = number("CHANCE").unwrap_or(plan.seed);
                one(plan)
            }
            Err(error) => {
                println!("{}: {error}", path.display());
                ExitCode::FAILURE
            }
        };
    }
    if let Some(seed) = number("SEED") {
        return one(Plan::of(seed));
    }
    let first = number("FIRST").unwrap_or(1);
    if let Ok(name) = std::env::var("PLANT") {
        return planted(&name, first, number("SEEDS").unwrap_or(200));
    }
    if let Some(count) = number("SEEDS") {
        return many(first, count, Duration::MAX);
    }
    for check in [deterministic, planted_bugs_are_found, found_stays_fixed] {
        if let Err(what) = check() {
            println!("{what}");
            return ExitCode::FAILURE;
        }
    }
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
    // On different threads, and after others there.
    let seeds: Vec<u64> = (1..=12).chain((1..=12).rev()).collect();
    let mut histories = on_all_cores(&seeds, |seed| play(&Plan::of(*seed)).history);
    let second = histories.split_off(12);
    for (seed, (first, second)) in (1..).zip(histories.iter().zip(second.iter().rev())) {
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

/// Plays a plan twice, and shows what happens; one that fails is shrunk first, and saved.
fn one(plan: Plan) -> ExitCode {
    let seed = plan.seed;
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
    if !all.is_empty() {
        let saved = format!("{}/plan-{seed}.json", env!("CARGO_TARGET_TMPDIR"));
        match std::fs::write(&saved, plan.to_file()) {
            Ok(()) => println!("saved: make sim PLAN={saved}"),
            Err(error) => println!("{saved}: {error}"),
        }
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
                    let begun = seed - first;
                    if begun > 0 && begun.is_multiple_of(PROGRESS) {
                        let failed = failed.load(Ordering::Relaxed);
                        println!(
                            "{begun} seeds after {:.0?}, {failed} failed",
                            began.elapsed()
                        );
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
