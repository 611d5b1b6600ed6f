//! `hookstream lag`: runs the role, prints the current figures with `--once`, or a refreshed table with `--watch`.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::clock;
use crate::lag;
use crate::lag::figures::{EventPartition, Figures, Query, Sort, Subscriber};
use crate::model::units::{counted, format_duration};
use crate::wiring::{self, Role};

/// How often the table is redrawn.
const REDRAW: Duration = Duration::from_secs(2);
/// The number of subscribers that `--watch` shows by default.
const WATCH_TOP: usize = 20;

/// The sort key of subscribers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// The most pending commands first.
    #[default]
    Lag,
    /// The oldest pending command first.
    Age,
    /// The most open dead letters first.
    Dead,
    /// By name.
    Name,
}

impl From<SortBy> for Sort {
    fn from(by: SortBy) -> Self {
        match by {
            SortBy::Lag => Self::Lag,
            SortBy::Age => Self::Age,
            SortBy::Dead => Self::Dead,
            SortBy::Name => Self::Name,
        }
    }
}

/// `hookstream lag`.
#[derive(Args, Clone, Debug)]
pub struct LagArgs {
    /// Print the current figures and exit
    #[arg(long, group = "moment")]
    pub once: bool,
    /// Redraw a table every two seconds until interrupted
    #[arg(long, group = "moment")]
    pub watch: bool,
    /// Serve the page as well as /lag; it is always served
    #[arg(long, hide = true)]
    pub http: bool,
    /// Output format of --once
    // clap ignores `requires` if there is a conflict.
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        requires = "once",
        conflicts_with = "watch"
    )]
    pub output: Output,
    /// Sort order
    #[arg(long, value_enum, default_value_t, requires = "moment")]
    pub sort: SortBy,
    /// Maximum number of subscribers
    #[arg(long, value_name = "N", requires = "moment", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub top: Option<usize>,
    /// Only subscribers whose name contains this text
    #[arg(long, value_name = "TEXT", requires = "moment")]
    pub subscriber: Option<String>,
    /// Also subscribers with nothing pending
    #[arg(long, requires = "moment")]
    pub all: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the topics cannot be read, or the role failed.
pub fn run(settings: &Settings, args: &LagArgs) -> Result<Exit, CliError> {
    let query = Query {
        sort: args.sort.into(),
        top: args.top,
        subscriber: args.subscriber.clone(),
        all: args.all,
    };
    if args.once {
        return once(settings, &query, args.output);
    }
    if args.watch {
        return watch(settings, &query);
    }
    wiring::run(settings, &[Role::Lag])?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Line {
    subscriber: String,
    ready: u64,
    waiting: u64,
    age: String,
    next_due: String,
    dead: String,
    state: String,
    failure: String,
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &[
        "SUBSCRIBER",
        "READY",
        "WAITING",
        "AGE",
        "NEXT DUE",
        "DEAD LETTERS",
        "STATE",
        "LAST FAILURE",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.subscriber.clone(),
            self.ready.to_string(),
            self.waiting.to_string(),
            self.age.clone(),
            self.next_due.clone(),
            self.dead.clone(),
            self.state.clone(),
            self.failure.clone(),
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
            next_due: next_due(one, &clock::now().rfc3339()),
            dead: dead.join(", "),
            state: one.standing.state_text(),
            failure: one.standing.failure_text(clock::now()),
        }
    }
}

/// When the first waiting command is due; in the past while it is on its way.
fn next_due(one: &Subscriber, now: &str) -> String {
    const SECOND: usize = "2026-01-01T00:00:00".len();
    match one.next_due.as_deref() {
        // To the second: only `now` has a fraction.
        Some(due) if due.get(..SECOND) <= now.get(..SECOND) => "now".to_owned(),
        due => due.unwrap_or_default().to_owned(),
    }
}

fn once(settings: &Settings, query: &Query, output: Output) -> Result<Exit, CliError> {
    let interrupted = Interrupt::watch()?;
    let mut watcher = lag::Watcher::new(settings)?;
    let figures = watcher.next(Duration::ZERO, &|| interrupted.is_raised())?;
    // Not dropped: each client would first wait for the response to its last fetch.
    std::mem::forget(watcher);
    let Some(figures) = figures else {
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
            print::note(&summary(&asked, query));
        }
    }
    Ok(Exit::Done)
}

/// The sums of the selected subscribers, and a note if no name matches.
fn summary(asked: &Figures, query: &Query) -> String {
    let no_match = match &query.subscriber {
        Some(part) if asked.total.is_empty() => {
            format!("no pending commands or dead letters match {part:?}; ")
        }
        _ => String::new(),
    };
    format!(
        "{no_match}{} ready, {} waiting, {}; as of {}{}",
        asked.total.ready,
        asked.total.waiting,
        counted(asked.total.dead_letters, "dead letter"),
        asked.as_of.as_deref().unwrap_or("never"),
        waiting_events(&asked.events),
    )
}

/// What waits for fan-out, as a line of its own for each topic.
fn waiting_events(events: &[EventPartition]) -> String {
    #[derive(Default)]
    struct Sum {
        behind: u64,
        age: Option<u64>,
        hidden: u64,
        blocked: u64,
    }
    let mut topics: BTreeMap<&str, Sum> = BTreeMap::new();
    for one in events {
        let sum = topics.entry(&one.topic).or_default();
        sum.behind += one.behind;
        sum.age = sum.age.max(one.age_seconds);
        sum.hidden += one.hidden;
        sum.blocked = sum.blocked.max(one.blocked_seconds);
    }
    let mut text = String::new();
    let span = |seconds| format_duration(Duration::from_secs(seconds));
    for (topic, sum) in topics {
        if sum.behind > 0 {
            let age = sum.age.map(|age| format!(", the oldest for {}", span(age)));
            let age = age.unwrap_or_default();
            text += &format!("\n{topic}: {} for fan-out{age}", waits(sum.behind));
        }
        if sum.hidden > 0 {
            let blocked = span(sum.blocked);
            text += &format!(
                "\n{topic}: an open transaction hides {} for at least {blocked}",
                counted(sum.hidden, "offset")
            );
        }
    }
    text
}

fn waits(count: u64) -> String {
    let verb = if count == 1 { "waits" } else { "wait" };
    format!("{} {verb}", counted(count, "event"))
}

/// The previous figures of each subscriber: pending and finished.
type Before = (Instant, HashMap<String, (u64, u64)>);

#[derive(Serialize)]
struct WatchRow {
    line: Line,
    trend: String,
    done: String,
    drained: String,
}

impl Row for WatchRow {
    const HEADINGS: &'static [&'static str] = &[
        "SUBSCRIBER",
        "READY",
        "WAITING",
        "AGE",
        "NEXT DUE",
        "DEAD LETTERS",
        "CHANGE",
        "DONE",
        "EMPTY IN",
        "STATE",
        "LAST FAILURE",
    ];
    fn cells(&self) -> Vec<String> {
        /// Behind the dead letters.
        const PLACE: usize = 6;
        let mut cells = self.line.cells();
        let rates = [self.trend.clone(), self.done.clone(), self.drained.clone()];
        cells.splice(PLACE..PLACE, rates);
        cells
    }
}

impl WatchRow {
    fn of(one: &Subscriber, before: Option<&Before>, now: Instant) -> Self {
        let rates = before.and_then(|(at, all)| {
            let (pending, finished) = *all.get(&one.name)?;
            let seconds = (now - *at).as_secs_f64();
            let change = one.pending() as f64 - pending as f64;
            let done = one.finished.saturating_sub(finished) as f64;
            (seconds > 0.0).then(|| (change / seconds, done / seconds))
        });
        let rate = rates.map(|(change, _)| change);
        let done = rates.map_or_else(String::new, |(_, done)| format!("{done:.0}/s"));
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
            done,
            drained,
        }
    }
}

/// Clears the screen if standard output is a terminal.
fn clear() -> &'static str {
    if std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    }
}

fn watch(settings: &Settings, query: &Query) -> Result<Exit, CliError> {
    let interrupted = Interrupt::watch()?;
    let query = Query {
        top: query.top.or(Some(WATCH_TOP)),
        ..query.clone()
    };
    let mut watcher = lag::Watcher::new(settings)?;
    let mut before: Option<Before> = None;
    while let Some(figures) = watcher.next(REDRAW, &|| interrupted.is_raised())? {
        let now = clock::instant();
        let asked = query.apply(&figures);
        let mut rows: Vec<WatchRow> = asked
            .subscribers
            .iter()
            .map(|one| WatchRow::of(one, before.as_ref(), now))
            .collect();
        let today = figures.as_of.as_deref().and_then(|time| time.get(..11));
        for row in &mut rows {
            // Without today's date the line fits more terminals.
            if let Some(time) = today.and_then(|today| row.line.next_due.strip_prefix(today)) {
                row.line.next_due = time.to_owned();
            }
        }
        let is_read = print::line_if_read(&format!(
            "{}{}\n\n{}",
            clear(),
            summary(&asked, &query),
            print::draw(&rows)
        ))?;
        if !is_read {
            return Ok(Exit::Done);
        }
        let all = figures.subscribers.iter();
        let all = all.map(|one| (one.name.clone(), (one.pending(), one.finished)));
        before = Some((now, all.collect()));
    }
    Ok(Exit::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_match_is_reported() {
        let query = Query {
            subscriber: Some("nobody".to_owned()),
            ..Query::default()
        };
        let mut figures = Figures::default();
        figures.total.dead_letters = 1;
        assert_eq!(
            summary(&figures, &query),
            "0 ready, 0 waiting, 1 dead letter; as of never"
        );
        let text = summary(&Figures::default(), &query);
        assert!(
            text.starts_with("no pending commands or dead letters match \"nobody\"; 0 ready"),
            "{text}"
        );
    }

    #[test]
    fn what_waits_for_fan_out_is_summed_up_by_topic() {
        let one = |partition, behind, age, hidden, blocked| EventPartition {
            topic: "orders".to_owned(),
            partition,
            behind,
            age_seconds: age,
            hidden,
            blocked_seconds: blocked,
            ..EventPartition::default()
        };
        assert_eq!(waiting_events(&[one(0, 0, None, 0, 0)]), "");
        assert_eq!(
            waiting_events(&[one(0, 1, None, 0, 0)]),
            "\norders: 1 event waits for fan-out"
        );
        assert_eq!(
            waiting_events(&[one(0, 2, Some(5), 0, 0), one(1, 5, Some(90), 3, 61)]),
            "\norders: 7 events wait for fan-out, the oldest for 90s\norders: an open transaction hides 3 offsets for at least 61s"
        );
    }

    #[test]
    fn a_row_shows_the_trend_the_rate_and_the_time_to_empty() {
        let one = |ready, finished| Subscriber {
            name: "acme".to_owned(),
            ready,
            finished,
            ..Subscriber::default()
        };
        let now = clock::instant();
        let rates = |pending, finished| {
            let all = HashMap::from([("acme".to_owned(), (pending, finished))]);
            let before: Before = (now, all);
            let row = WatchRow::of(&one(100, 50), Some(&before), now + Duration::from_secs(2));
            [row.trend, row.done, row.drained]
        };
        assert_eq!(rates(200, 10), ["▼ 50/s", "20/s", "2s"]);
        assert_eq!(rates(80, 50), ["▲ 10/s", "0/s", ""]);
        assert_eq!(rates(100, 40), ["=", "5/s", ""]);
        let first = WatchRow::of(&one(100, 50), None, now);
        assert_eq!([first.trend, first.done, first.drained], ["", "", ""]);
    }
}
