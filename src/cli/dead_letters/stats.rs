//! `hookstream dead-letters stats`: counts by subscriber, reason and hour, with a small bar chart.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use clap::Args;
use serde::Serialize;

use super::filter::FilterArgs;
use super::reading::{fold, note_newer, open};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::model::dead_letter::{DeadLetter, Reason, State};
use crate::model::units::{EpochMs, counted};
use crate::replay::{self, Undecoded};

/// The longest bar, characters.
const BAR: usize = 30;
/// Hours in the chart of a table, the last ones; JSON has all.
const HOURS: usize = 24;
const HOUR_MS: i64 = 3_600_000;

/// `hookstream dead-letters stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Include replayed and discarded dead letters
    #[arg(long)]
    all: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Counts.
#[derive(Debug, Default)]
struct Counts {
    subscribers: BTreeMap<String, BTreeMap<Reason, u64>>,
    /// By hours since 1970, of the last failure.
    hours: BTreeMap<i64, u64>,
}

impl Counts {
    fn add(&mut self, letter: &DeadLetter) {
        let reasons = self
            .subscribers
            .entry(letter.subscriber.clone())
            .or_default();
        *reasons.entry(letter.info.reason).or_default() += 1;
        let hour = letter.info.last_failure.0.div_euclid(HOUR_MS);
        *self.hours.entry(hour).or_default() += 1;
    }

    fn total(&self) -> u64 {
        self.hours.values().sum()
    }

    fn rows(&self) -> Vec<ByReason> {
        let rows = self.subscribers.iter().flat_map(|(subscriber, reasons)| {
            reasons.iter().map(|(&reason, &count)| ByReason {
                subscriber: subscriber.clone(),
                reason,
                count,
                most: 0,
            })
        });
        let mut rows: Vec<ByReason> = rows.collect();
        let most = rows.iter().map(|row| row.count).max().unwrap_or(0);
        rows.iter_mut().for_each(|row| row.most = most);
        rows.sort_by(|a, b| {
            b.count
                .cmp(&a.count)
                .then_with(|| a.subscriber.cmp(&b.subscriber))
        });
        rows
    }

    fn by_hour(&self) -> Vec<ByHour> {
        let most = self.hours.values().copied().max().unwrap_or(0);
        let each = self.hours.iter().map(|(&hour, &count)| ByHour {
            hour: EpochMs(hour.saturating_mul(HOUR_MS)).rfc3339(),
            count,
            most,
        });
        each.collect()
    }
}

/// A bar in proportion to the greatest count; never empty for a count above 0.
fn bar(count: u64, most: u64) -> String {
    let share = count as f64 / most.max(1) as f64;
    let length = (share * BAR as f64).round() as usize;
    "█".repeat(length.max(usize::from(count > 0)))
}

#[derive(Debug, Serialize)]
struct ByReason {
    subscriber: String,
    reason: Reason,
    count: u64,
    #[serde(skip)]
    most: u64,
}

impl Row for ByReason {
    const HEADINGS: &'static [&'static str] = &["SUBSCRIBER", "REASON", "COUNT", ""];

    fn cells(&self) -> Vec<String> {
        vec![
            self.subscriber.clone(),
            self.reason.to_string(),
            self.count.to_string(),
            bar(self.count, self.most),
        ]
    }
}

#[derive(Debug, Serialize)]
struct ByHour {
    /// Its begin, RFC 3339.
    hour: String,
    count: u64,
    #[serde(skip)]
    most: u64,
}

impl Row for ByHour {
    const HEADINGS: &'static [&'static str] = &["LAST FAILURE", "COUNT", ""];

    fn cells(&self) -> Vec<String> {
        vec![
            self.hour.clone(),
            self.count.to_string(),
            bar(self.count, self.most),
        ]
    }
}

#[derive(Serialize)]
struct Document {
    total: u64,
    by_reason: Vec<ByReason>,
    by_hour: Vec<ByHour>,
}

/// Runs the command.
pub(super) fn run(settings: &Settings, args: &StatsArgs) -> Result<Exit, CliError> {
    let filter = args.filter.filter()?;
    let (log, ends) = open(settings)?;
    let (settled, newer) = fold(&log, &ends)?;
    let (mut counts, mut unreadable) = (Counts::default(), 0_u64);
    log.read::<Failure>(&ends, &|| false, |message| {
        match replay::decode(message) {
            Ok(Some(letter)) => {
                let is_asked = args.all || settled.state(&letter) == State::Open;
                if is_asked && filter.matches(&letter) {
                    counts.add(&letter);
                }
            }
            Ok(None) | Err(Undecoded::Newer(_)) => {}
            Err(Undecoded::Unreadable(_)) => unreadable += 1,
        }
        Ok(ControlFlow::Continue(()))
    })
    .map_err(|failure| print::failed(&failure))?;
    let (by_reason, mut by_hour) = (counts.rows(), counts.by_hour());
    match args.output {
        Output::Json | Output::Jsonl => {
            let total = counts.total();
            let document = Document {
                total,
                by_reason,
                by_hour,
            };
            print::document(args.output, &document)?;
        }
        Output::Table => {
            print::table(&by_reason)?;
            let old = by_hour.len().saturating_sub(HOURS);
            by_hour.drain(..old);
            if !by_hour.is_empty() {
                print::line("")?;
            }
            print::table(&by_hour)?;
            print::note(&counted(counts.total(), "dead letter"));
        }
    }
    if unreadable > 0 {
        print::note(&format!(
            "skipped {}",
            counted(unreadable, "unreadable record")
        ));
    }
    Ok(note_newer(&newer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dead_letter::{Coordinates, DeadLetterInfo};
    use crate::model::units::Offset;

    fn letter(subscriber: &str, reason: Reason, hour: i64) -> DeadLetter {
        DeadLetter {
            at: Coordinates {
                partition: 0,
                offset: Offset(1),
            },
            subscriber: subscriber.to_owned(),
            subscription: "s".to_owned(),
            webhook_id: "msg".to_owned(),
            event_id: "e".to_owned(),
            event_type: "t".to_owned(),
            attempts: 1,
            enqueued: None,
            info: DeadLetterInfo {
                reason,
                status: None,
                error: String::new(),
                first_failure: EpochMs(0),
                last_failure: EpochMs(hour * HOUR_MS + 5),
            },
        }
    }

    #[test]
    fn the_greatest_counts_come_first_and_every_hour_has_its_count() {
        let mut counts = Counts::default();
        for _ in 0..60 {
            counts.add(&letter("beta", Reason::Gone, 2));
        }
        counts.add(&letter("acme", Reason::Gone, 1));
        counts.add(&letter("acme", Reason::Expired, 2));
        counts.add(&letter("acme", Reason::Expired, 2));
        assert_eq!(counts.total(), 63);
        let rows = counts.rows();
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (&*row.subscriber, row.reason, row.count))
            .collect();
        assert_eq!(
            shown,
            [
                ("beta", Reason::Gone, 60),
                ("acme", Reason::Expired, 2),
                ("acme", Reason::Gone, 1)
            ]
        );
        let bars: Vec<usize> = rows
            .iter()
            .map(|row| row.cells()[3].chars().count())
            .collect();
        assert_eq!(bars, [BAR, 1, 1], "a small count is visible");
        let hours = counts.by_hour();
        let shown: Vec<_> = hours.iter().map(|one| (&*one.hour, one.count)).collect();
        assert_eq!(
            shown,
            [("1970-01-01T01:00:00Z", 1), ("1970-01-01T02:00:00Z", 62)]
        );
    }
}
