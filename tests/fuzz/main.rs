//! Hostile input for everything that reads what others wrote: `make fuzz`, and a short run in `make test`.
//!
//! Each target ([`targets`]) is a function over bytes, which checks properties besides "no panic". Inputs are mutations of
//! seeds and of inputs that led to an outcome not seen before ([`engine`]); the same number gives the same inputs.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `INPUTS` | how many inputs each target runs | [`SHORT`], or as many as fit into `SECONDS` |
//! | `SECONDS` | how long each target runs at most | without an end |
//! | `TARGET` | the targets whose name contains this | all |
//! | `SEED` | where chance begins | 1 |
//!
//! A panic, an input that takes longer than [`TOO_LONG`], or one that takes more memory than [`most_memory`] fails the run,
//! which prints the input; it belongs among the seeds once it is fixed.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod engine;
mod memory;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::{Engine, outcome_hash};
use targets::{TARGETS, Target};

/// The inputs of each target in a short run.
const SHORT: u64 = 2_000;
/// How long one input may take, of 64 KiB at most, on a slow and busy machine.
const TOO_LONG: Duration = Duration::from_secs(5);

/// The most memory that an input of so many bytes may take.
fn most_memory(bytes: usize) -> usize {
    (8 << 20) + 256 * bytes
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name}={text} is not a value"),
    }
}

/// The input under way, for the thread that notices one that never ends.
#[derive(Default)]
struct Current {
    input: Mutex<(&'static str, Vec<u8>)>,
    /// Its number, from 1, or 0 between inputs.
    number: AtomicU64,
}

/// What ends the run of a target: whichever comes first.
#[derive(Clone, Copy)]
struct Bounds {
    inputs: u64,
    time: Duration,
}

struct Report {
    target: &'static str,
    inputs: u64,
    outcomes: usize,
    took: Duration,
    slowest: Duration,
    memory: usize,
}

fn main() -> ExitCode {
    let seconds: Option<u64> = variable("SECONDS");
    let unbounded = if seconds.is_some() { u64::MAX } else { SHORT };
    let bounds = Bounds {
        inputs: variable("INPUTS").unwrap_or(unbounded),
        time: seconds.map_or(Duration::MAX, Duration::from_secs),
    };
    let wanted: String = variable("TARGET").unwrap_or_default();
    let seed: u64 = variable("SEED").unwrap_or(1);
    let current = Arc::new(Current::default());
    watch(Arc::clone(&current));
    let mut reports = Vec::new();
    for target in TARGETS
        .iter()
        .filter(|target| target.name.contains(&wanted))
    {
        match run(target, bounds, seed, &current) {
            Ok(report) => reports.push(report),
            Err(()) => return ExitCode::FAILURE,
        }
    }
    if reports.is_empty() {
        eprintln!("TARGET={wanted} names no target");
        return ExitCode::FAILURE;
    }
    println!("target            inputs   outcomes   inputs/s   slowest    memory");
    for report in reports {
        println!(
            "{:<14} {:>9} {:>10} {:>10.0} {:>6.1} ms {:>5} KiB",
            report.target,
            report.inputs,
            report.outcomes,
            report.inputs as f64 / report.took.as_secs_f64(),
            report.slowest.as_secs_f64() * 1000.0,
            report.memory / 1024,
        );
    }
    ExitCode::SUCCESS
}

fn run(target: &Target, bounds: Bounds, seed: u64, current: &Current) -> Result<Report, ()> {
    let began = Instant::now();
    let mut engine = Engine::new(target, seed);
    let mut report = Report {
        target: target.name,
        inputs: 0,
        outcomes: 0,
        took: Duration::ZERO,
        slowest: Duration::ZERO,
        memory: 0,
    };
    let is_over = |inputs: u64| inputs >= bounds.inputs || began.elapsed() >= bounds.time;
    while !is_over(report.inputs) {
        let input = engine.next_input();
        {
            let mut now = current.input.lock().unwrap();
            now.0 = target.name;
            now.1.clone_from(&input);
        }
        current.number.store(report.inputs + 1, Ordering::SeqCst);
        let one = Instant::now();
        let before = memory::begin();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        let memory = memory::peak().saturating_sub(before);
        let took = one.elapsed();
        current.number.store(0, Ordering::SeqCst);
        report.inputs += 1;
        if took > report.slowest {
            // Once more: what the machine did meanwhile is not the input's time.
            let again = Instant::now();
            drop(catch_unwind(AssertUnwindSafe(|| (target.run)(&input))));
            report.slowest = report.slowest.max(took.min(again.elapsed()));
        }
        report.memory = report.memory.max(memory);
        let Ok(outcome) = outcome else {
            failed(target.name, "panicked", &input);
            return Err(());
        };
        if memory > most_memory(input.len()) {
            failed(
                target.name,
                &format!("took {memory} bytes of memory"),
                &input,
            );
            return Err(());
        }
        engine.learn(input, outcome_hash(&outcome));
    }
    report.took = began.elapsed();
    report.outcomes = engine.outcomes();
    Ok(report)
}

fn failed(target: &str, what: &str, input: &[u8]) {
    eprintln!(
        "\nfuzz target {target} {what} on {} bytes:\n  b\"{}\"",
        input.len(),
        input.escape_ascii()
    );
}

/// Ends the run when an input does not end. Counts its looks, not the time: a process that was suspended has no slow input.
fn watch(current: Arc<Current>) {
    const EVERY: Duration = Duration::from_millis(200);
    std::thread::spawn(move || {
        let (mut before, mut looks) = (0, 0);
        loop {
            std::thread::sleep(EVERY);
            let number = current.number.load(Ordering::SeqCst);
            looks = if number == before { looks + 1 } else { 0 };
            before = number;
            if number > 0 && EVERY * looks > TOO_LONG {
                let (target, input) = current.input.lock().unwrap().clone();
                failed(target, "took too long", &input);
                std::process::exit(1);
            }
        }
    });
}
