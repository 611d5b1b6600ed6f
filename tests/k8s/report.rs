//! What a run came to: a table of steps, the goals that were missed, and the story of each violation.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::checker::{Verdict, Violation};
use crate::history::History;
use crate::pauses::{Pause, longest};
use crate::scenario::Arrivals;
use crate::step::Step;
use crate::truth;

/// The longest pause of a partition in a rolling update, beside the slowest attempt in flight if that takes longer than
/// a second.
const PAUSE_GOAL: Duration = Duration::from_secs(3);
/// Violations of each kind that are told in full.
const TOLD: usize = 3;

/// One step.
pub struct Row {
    pub step: Step,
    /// The number of the next event when it began.
    pub first_event: u32,
    /// Epoch ms.
    pub from: i64,
    /// All that was produced up to its end was through.
    pub until: i64,
    /// From the end of the orderly change, or from the beginning of the fault; `None` is stuck.
    pub settled: Option<Duration>,
    pub restarts: u64,
}

impl Row {
    pub fn summary(&self) -> String {
        let settled = self.settled.map_or("stuck".to_owned(), |time| {
            format!("settled after {:.1} s", time.as_secs_f64())
        });
        format!("{settled}, {} container restarts", self.restarts)
    }
}

/// What the history says of a step.
#[derive(Default)]
struct Figures {
    lost: usize,
    doubled: usize,
    /// Violations that are neither: a changed body, an early retry, ….
    other: usize,
    repeated: usize,
    of_commands: Option<Pause>,
    of_events: Option<Pause>,
    /// What the pause of a rolling update may be.
    pause_goal: Duration,
}

/// All steps of a run.
pub struct Report {
    images: String,
    pub rows: Vec<Row>,
    figures: Vec<Figures>,
    summary: String,
    violations: Vec<Violation>,
    missed: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    pub fn new(old_image: &str, new_image: &str) -> Self {
        Self {
            images: format!("old is {old_image}, new is {new_image}"),
            rows: Vec::new(),
            figures: Vec::new(),
            summary: String::new(),
            violations: Vec::new(),
            missed: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// A step could not be done; why is on standard error.
    pub fn broken(&mut self, step: Step) {
        self.failed.push(format!("{step}: it could not be done"));
    }

    /// Adds what was found out at the end.
    pub fn complete(&mut self, history: &History, verdict: &Verdict, arrivals: &Arrivals) {
        self.violations = verdict.violations.clone();
        let seconds = self
            .rows
            .iter()
            .map(|row| row.until - row.from)
            .sum::<i64>()
            / 1000;
        self.summary = format!(
            "{}; three replicas of each role, {} cores shared with Kafka and Kubernetes, load average {}. {} events, {} commands ({} a second), {} requests.",
            self.images,
            std::thread::available_parallelism().map_or(0, usize::from),
            load_average(),
            history.sent.len(),
            verdict.commands,
            verdict.commands as i64 / seconds.max(1),
            history.requests.len()
        );
        let repeats = repeats(history);
        self.figures = self
            .rows
            .iter()
            .map(|row| Figures {
                repeated: repeats
                    .iter()
                    .filter(|&&at| row.from <= at && at < row.until)
                    .count(),
                of_commands: longest(&arrivals.commands, row.from, row.until),
                of_events: longest(&arrivals.events, row.from, row.until),
                ..Figures::default()
            })
            .collect();
        for violation in &self.violations {
            let at = step_of(&self.rows, violation);
            let Some(figures) = self.figures.get_mut(at) else {
                continue;
            };
            match violation.invariant {
                _ if violation.doubled => figures.doubled += 1,
                "Complete" | "Durable outcome" => figures.lost += 1,
                _ => figures.other += 1,
            }
        }
        for (row, figures) in self.rows.iter().zip(&mut self.figures) {
            figures.pause_goal =
                pause_goal(figures.of_commands.max(figures.of_events), &arrivals.slow);
            judge(row, figures, &mut self.missed, &mut self.failed);
        }
        if verdict.never_there > 0 {
            self.failed.push(format!(
                "{} acknowledged events are not on their topic",
                verdict.never_there
            ));
        }
    }

    /// Nothing is lost, doubled or stuck; goals that were missed are in the text.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.failed.is_empty()
    }

    /// Keeps the text in `target/k8s/report.md`.
    pub fn write(&self) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/k8s");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("report.md"), self.to_string()).unwrap();
    }
}

/// What a step must not do, and what it should not.
fn judge(row: &Row, figures: &Figures, missed: &mut Vec<String>, failed: &mut Vec<String>) {
    let step = row.step;
    if row.settled.is_none() {
        failed.push(format!("{step}: the system did not settle"));
    }
    if row.restarts != step.restarts() {
        let what = format!(
            "{step}: {} container restarts, not {}",
            row.restarts,
            step.restarts()
        );
        failed.push(what);
    }
    if step.is_orderly() && figures.repeated > 0 {
        missed.push(format!(
            "{step}: {} requests were sent again",
            figures.repeated
        ));
    }
    let pause = figures.of_commands.max(figures.of_events);
    let pause = pause.map_or(0, |pause| pause.milliseconds);
    let goal = figures.pause_goal.as_millis();
    if step.is_rolling() && pause as u128 > goal {
        missed.push(format!(
            "{step}: a partition paused for {pause} ms, the goal is {goal} ms"
        ));
    }
}

/// The goal beside what was in flight when a pause began: an attempt that takes long may hold it up for as long.
fn pause_goal(pause: Option<Pause>, slow: &[i64]) -> Duration {
    let timeout = truth::TIMEOUT.as_millis() as i64;
    let was_slow = pause.is_some_and(|pause| {
        let began = pause.until - pause.milliseconds;
        slow.iter()
            .any(|at| (began - timeout..=pause.until).contains(at))
    });
    PAUSE_GOAL
        + if was_slow {
            truth::TIMEOUT
        } else {
            Duration::ZERO
        }
}

/// How busy the machine was in the last 15 minutes.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').nth(2).unwrap_or("unknown").to_owned()
}

/// When attempts were made again, epoch ms.
fn repeats(history: &History) -> Vec<i64> {
    let mut seen: HashMap<(&str, u32), usize> = HashMap::new();
    let again = history.requests.iter().filter(|one| {
        let count = seen.entry((&one.id, one.attempt)).or_default();
        *count += 1;
        *count > 1
    });
    again.map(|one| one.at).collect()
}

/// The step in which it was last heard of the command, or in which its event was produced.
fn step_of(rows: &[Row], violation: &Violation) -> usize {
    let by_time = |at: i64| rows.iter().rposition(|row| row.from <= at);
    let by_event = |event: u32| rows.iter().rposition(|row| row.first_event <= event);
    let found = violation.at.and_then(by_time);
    found
        .or_else(|| violation.event.and_then(by_event))
        .unwrap_or(0)
}

fn seconds(pause: Option<Pause>) -> String {
    pause.map_or("-".to_owned(), |pause| {
        format!("{:.1}", pause.milliseconds as f64 / 1000.0)
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.summary)?;
        writeln!(
            f,
            "| step | lost | doubled | requests sent again | longest pause of a partition, s: commands | events | settled after, s | container restarts |\n|---|---|---|---|---|---|---|---|"
        )?;
        for (row, figures) in self.rows.iter().zip(&self.figures) {
            let settled = row.settled.map_or("never".to_owned(), |time| {
                format!("{:.1}", time.as_secs_f64())
            });
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {settled} | {} |",
                row.step,
                figures.lost,
                figures.doubled,
                figures.repeated,
                seconds(figures.of_commands),
                seconds(figures.of_events),
                row.restarts
            )?;
        }
        let other: usize = self.figures.iter().map(|figures| figures.other).sum();
        writeln!(f, "\nOther violations of invariants: {other}.")?;
        for line in &self.missed {
            writeln!(f, "\nGoal missed: {line}.")?;
        }
        for line in &self.failed {
            writeln!(f, "\nFAILED: {line}.")?;
        }
        let mut told: HashMap<&str, usize> = HashMap::new();
        for violation in &self.violations {
            let count = told.entry(violation.invariant).or_default();
            *count += 1;
            if *count <= TOLD {
                writeln!(f, "\n{violation}")?;
            }
        }
        Ok(())
    }
}
