//! What a run came to: a table of faults, one of invariants, and the story of each violation.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::checker::{INVARIANTS, Promise, Verdict};
use crate::faults::Fault;
use crate::history::History;
use crate::round::Plan;

/// Violations of each invariant that are told in full; the others are counted.
const TOLD: usize = 3;
/// Lines of each process's log that are told when something is wrong.
const TAIL: usize = 200;

/// All rounds of a run so far.
pub struct Report {
    seed: u64,
    promise: Promise,
    rounds: usize,
    seconds: f64,
    /// How often each fault was injected.
    injected: BTreeMap<Fault, usize>,
    /// How long the system took after each fault that came alone; `None` is stuck.
    alone: BTreeMap<Fault, Vec<Option<Duration>>>,
    /// And after the last of several.
    bursts: Vec<Option<Duration>>,
    events: usize,
    unknown: usize,
    /// Events that the generator's own client wrote more than once.
    twice: usize,
    requests: usize,
    verdict: Verdict,
    /// Processes that ended by themselves: the supervisor started them again.
    ended: Vec<String>,
    wrong: Vec<String>,
}

impl Report {
    pub fn new(seed: u64, promise: Promise) -> Self {
        Self {
            seed,
            promise,
            rounds: 0,
            seconds: 0.0,
            injected: BTreeMap::new(),
            alone: BTreeMap::new(),
            bursts: Vec::new(),
            events: 0,
            unknown: 0,
            twice: 0,
            requests: 0,
            verdict: Verdict::default(),
            ended: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// Faults of which nothing can be said of how long recovery took.
    pub fn injected(&mut self, faults: &[Fault]) {
        for &fault in faults {
            *self.injected.entry(fault).or_default() += 1;
        }
    }

    /// One fault, or several that came on top of each other, and how long after the last of them all was well.
    pub fn faults(&mut self, faults: &[Fault], recovered: Option<Duration>) {
        self.injected(faults);
        match faults {
            [alone] => self.alone.entry(*alone).or_default().push(recovered),
            _ => self.bursts.push(recovered),
        }
    }

    pub fn stuck(&mut self, what: String, logs: Vec<(String, Vec<String>)>) {
        self.wrong
            .push(format!("the system did not recover {what}"));
        print_logs(logs);
    }

    pub fn failures(&mut self, failures: Vec<String>) {
        self.wrong.extend(failures);
    }

    pub fn round(&mut self, plan: &Plan, history: &History, verdict: Verdict, ended: Vec<String>) {
        self.rounds += 1;
        self.seconds += plan.length.as_secs_f64();
        self.events += history.sent.len();
        self.unknown += history
            .sent
            .iter()
            .filter(|sent| !sent.acknowledged)
            .count();
        let twice = history.sent.iter().filter(|sent| sent.records > 1);
        self.twice += twice.count();
        self.requests += history.requests.len();
        self.ended.extend(ended);
        let all = &mut self.verdict;
        all.violations.extend(verdict.violations);
        all.commands += verdict.commands;
        all.repeated += verdict.repeated;
        all.allowed += verdict.allowed;
        all.told_back += verdict.told_back;
        all.doubled += verdict.doubled;
        all.beside_tenants.extend(verdict.beside_tenants);
        all.never_there += verdict.never_there;
    }

    pub fn is_clean(&self) -> bool {
        self.verdict.violations.is_empty() && self.wrong.is_empty()
    }

    /// Keeps the report under `target/chaos/`, so that a long run that is ended leaves what it has found.
    pub fn write(&self) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/chaos");
        std::fs::create_dir_all(&dir).unwrap();
        let name = format!("{:?}-{}.md", self.promise, self.seed);
        std::fs::write(dir.join(name), self.to_string()).unwrap();
    }

    fn count(&self, invariant: &str) -> usize {
        let all = self.verdict.violations.iter();
        all.filter(|one| one.invariant == invariant).count()
    }
}

fn seconds(times: &[Duration]) -> (String, String) {
    let mut sorted = times.to_vec();
    sorted.sort();
    let tell = |time: Option<&Duration>| {
        time.map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
    };
    (tell(sorted.get(sorted.len() / 2)), tell(sorted.last()))
}

fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    injected: usize,
    times: &[Option<Duration>],
) -> fmt::Result {
    let known: Vec<Duration> = times.iter().copied().flatten().collect();
    let (median, worst) = seconds(&known);
    let stuck = times.len() - known.len();
    let worst = if stuck > 0 {
        format!("{stuck} never")
    } else {
        worst
    };
    writeln!(
        f,
        "| {name} | {injected} | {} | {median} | {worst} |",
        times.len()
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let injected: usize = self.injected.values().sum();
        writeln!(
            f,
            "{:?}, seed {}, {} rounds of {:.0} s in all: {injected} faults, {} events ({} of them never acknowledged, {} twice on the topic, {} not on it though acknowledged), {} commands, {} requests.\n",
            self.promise,
            self.seed,
            self.rounds,
            self.seconds,
            self.events,
            self.unknown,
            self.twice,
            self.verdict.never_there,
            self.verdict.commands,
            self.requests
        )?;
        writeln!(
            f,
            "| fault | injected | of them alone | back after, s: median | worst |\n|---|---|---|---|---|"
        )?;
        for (fault, count) in &self.injected {
            let times = self.alone.get(fault).map_or(&[][..], Vec::as_slice);
            row(f, fault.name(), *count, times)?;
        }
        let several = "several, on top of each other";
        row(f, several, self.bursts.len(), &self.bursts)?;
        writeln!(f, "\n| invariant | violations |\n|---|---|")?;
        for invariant in INVARIANTS {
            writeln!(f, "| {invariant} | {} |", self.count(invariant))?;
        }
        writeln!(
            f,
            "\nRequests that repeat an attempt: {} (at the faults were {}). Commands doubled: {}. Positions told back for a moment while brokers began: {}. Processes that ended by themselves and were started again: {}.",
            self.verdict.repeated,
            self.verdict.allowed,
            self.verdict.doubled,
            self.verdict.told_back,
            self.ended.len()
        )?;
        let mut latencies = self.verdict.beside_tenants.clone();
        latencies.sort_unstable();
        if let (Some(last), Some(p99)) =
            (latencies.last(), latencies.get(latencies.len() * 99 / 100))
        {
            writeln!(
                f,
                "\nHealthy subscriptions beside one tenant's faults: {} first attempts, p50 {} ms, p99 {p99} ms, longest {last} ms after their event.",
                latencies.len(),
                latencies[latencies.len() / 2],
            )?;
        }
        for line in &self.ended {
            writeln!(f, "- {line}")?;
        }
        for line in &self.wrong {
            writeln!(f, "\nWRONG: {line}")?;
        }
        for invariant in INVARIANTS {
            let mut told = self
                .verdict
                .violations
                .iter()
                .filter(|one| one.invariant == invariant)
                .take(TOLD);
            told.try_for_each(|violation| writeln!(f, "\n{violation}"))?;
        }
        Ok(())
    }
}

/// The ends of the processes' logs.
pub fn print_logs(logs: Vec<(String, Vec<String>)>) {
    for (instance, lines) in logs {
        println!("---- {instance} wrote at last:");
        let tail = lines.len().saturating_sub(TAIL);
        lines[tail..].iter().for_each(|line| println!("{line}"));
    }
}
