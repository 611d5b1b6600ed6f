//! `hookstream lag`: the role; `--once`, the figures of one moment; `--watch`, a table that is drawn again and again.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::interrupt::Interrupt;
use super::outcome::{CliError, Exit, Output};
use super::print::{self, Row};
use crate::clock;
use crate::config::Settings;
use crate::lag;
use crate::lag::figures::{Figures, Query, Sort, Subscriber};
use crate::service::{self, Role};
use crate::units::format_duration;

/// How often the table is drawn.
const REDRAW: Duration = Duration::from_secs(2);
/// Subscribers that `--watch` shows when nothing else is said.
const SHOWN: usize = 20;

/// `hookstream lag`.
#[derive(Args, Clone, Debug)]
pub struct LagArgs {
    /// Print the figures of this moment and end
    #[arg(long, conflicts_with = "watch")]
    pub once: bool,
    /// Draw a table every two seconds until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Serve the page beside /lag; it is always served
    #[arg(long, hide = true)]
    pub http: bool,
    /// Form of the output of --once
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// In which order
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// At most so many subscribers
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Only subscribers whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub subscriber: Option<String>,
}

/// Runs it.
///
/// # Errors
/// [`CliError`] says what failed.
pub fn run(settings: &Settings, args: &LagArgs) -> Result<Exit, CliError> {
    let query = Query {
        sort: args.sort,
        top: args.top,
        subscriber: args.subscriber.clone(),
    };
    if args.once {
        return once(settings, &query, args.output);
    }
    if args.watch {
        return watch(settings, &query);
    }
    service::run(settings, &[Role::Lag])
}

#[derive(Serialize)]
struct Line {
    subscriber: String,
    ready: u64,
    waiting: u64,
    age: String,
    next_due: String,
    dead: String,
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &[
        "SUBSCRIBER",
        "READY",
        "WAITING",
        "AGE",
        "NEXT DUE",
        "DEAD LETTERS",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.subscriber.clone(),
            self.ready.to_string(),
            self.waiting.to_string(),
            self.age.clone(),
            self.next_due.clone(),
            self.dead.clone(),
        ]
    }
}

impl Line {
    fn of(one: &Subscriber) -> Self {
        let dead: Vec<String> = one
            .dead_letters
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        Self {
            subscriber: one.name.clone(),
            ready: one.ready,
            waiting: one.waiting,
            age: one
                .age_seconds
                .map_or_else(String::new, |age| format_duration(Duration::from_secs(age))),
            next_due: one.next_due.clone().unwrap_or_default(),
            dead: dead.join(", "),
        }
    }
}

fn once(settings: &Settings, query: &Query, output: Output) -> Result<Exit, CliError> {
    let interrupted = Interrupt::watch()?;
    let Some(figures) =
        lag::Watcher::new(settings)?.next(Duration::ZERO, &|| interrupted.is_raised())?
    else {
        return Ok(Exit::Interrupted);
    };
    let asked = query.apply(&figures);
    match output {
        Output::Json => print::document(output, &asked)?,
        Output::Jsonl => asked
            .subscribers
            .iter()
            .try_for_each(|one| print::document(output, one))?,
        Output::Table => {
            let lines: Vec<Line> = asked.subscribers.iter().map(Line::of).collect();
            print::table(&lines)?;
            print::note(&summary(&figures));
        }
    }
    Ok(Exit::Done)
}

fn summary(figures: &Figures) -> String {
    format!(
        "{} ready, {} waiting, {} dead letters; as of {}",
        figures.total.ready,
        figures.total.waiting,
        figures.total.dead_letters,
        figures.as_of.as_deref().unwrap_or("never"),
    )
}

/// What a subscriber had the last time.
type Before = (Instant, HashMap<String, u64>);

#[derive(Serialize)]
struct Moving {
    line: Line,
    trend: String,
    drained: String,
}

impl Row for Moving {
    const HEADINGS: &'static [&'static str] = &[
        "SUBSCRIBER",
        "READY",
        "WAITING",
        "AGE",
        "NEXT DUE",
        "DEAD LETTERS",
        "CHANGE",
        "EMPTY IN",
    ];
    fn cells(&self) -> Vec<String> {
        let mut cells = self.line.cells();
        cells.extend([self.trend.clone(), self.drained.clone()]);
        cells
    }
}

impl Moving {
    fn of(one: &Subscriber, before: Option<&Before>, now: Instant) -> Self {
        let rate = before.and_then(|(at, pending)| {
            let was = *pending.get(&one.name)?;
            let seconds = (now - *at).as_secs_f64();
            (seconds > 0.0).then(|| (one.pending() as f64 - was as f64) / seconds)
        });
        let trend = match rate {
            Some(rate) if rate >= 0.5 => format!("▲ {rate:.0}/s"),
            Some(rate) if rate <= -0.5 => format!("▼ {:.0}/s", -rate),
            Some(_) => "=".to_owned(),
            None => String::new(),
        };
        let drained = rate
            .filter(|rate| *rate < 0.0)
            .map_or_else(String::new, |rate| {
                let seconds = one.pending() as f64 / -rate;
                format_duration(Duration::from_secs(seconds.min(1e9) as u64))
            });
        Self {
            line: Line::of(one),
            trend,
            drained,
        }
    }
}

fn watch(settings: &Settings, query: &Query) -> Result<Exit, CliError> {
    let interrupted = Interrupt::watch()?;
    let query = Query {
        top: query.top.or(Some(SHOWN)),
        ..query.clone()
    };
    let mut watcher = lag::Watcher::new(settings)?;
    let mut before: Option<Before> = None;
    while let Some(figures) = watcher.next(REDRAW, &|| interrupted.is_raised())? {
        let now = clock::instant();
        let asked = query.apply(&figures);
        let rows: Vec<Moving> = asked
            .subscribers
            .iter()
            .map(|one| Moving::of(one, before.as_ref(), now))
            .collect();
        // Home, the table, and nothing below it.
        print::line(&format!(
            "\x1b[H\x1b[2J{}\n\n{}",
            summary(&figures),
            print::draw(&rows)
        ))?;
        std::io::stdout().flush().ok();
        let pending = figures.subscribers.iter();
        before = Some((
            now,
            pending
                .map(|one| (one.name.clone(), one.pending()))
                .collect(),
        ));
    }
    Ok(Exit::Interrupted)
}
