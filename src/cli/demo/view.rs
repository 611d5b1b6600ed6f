//! What the demo shows: a table redrawn in place on a terminal, else a line every two seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ledger::{Ledger, Numbers};
use super::subscribers::SUBSCRIBERS;
use crate::cli::exit::CliError;
use crate::cli::print;
use crate::edge::clock;

/// Between two lines when standard output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Title and blank line above the table, and the heading.
const LINES: usize = SUBSCRIBERS.len() + 3;

/// The view while the story goes on.
pub(super) struct View {
    begun: Instant,
    surface: Surface,
}

enum Surface {
    /// One bar a line: indicatif cuts each at the terminal's width and redraws in place.
    Terminal {
        all: MultiProgress,
        lines: Vec<ProgressBar>,
    },
    Plain {
        next: Instant,
        last: String,
    },
}

impl View {
    pub(super) fn new() -> Self {
        let begun = clock::instant();
        let surface = if std::io::stdout().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
            let style = ProgressStyle::with_template("{wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let lines = (0..LINES)
                .map(|_| all.add(ProgressBar::new(1).with_style(style.clone())))
                .collect();
            Surface::Terminal { all, lines }
        } else {
            Surface::Plain {
                next: begun,
                last: String::new(),
            }
        };
        Self { begun, surface }
    }

    /// Shows where things stand. `doing`: what goes on now.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn show(&mut self, doing: &str, ledger: &Ledger) -> Result<(), CliError> {
        let seconds = self.begun.elapsed().as_secs();
        match &mut self.surface {
            Surface::Terminal { lines, .. } => {
                let title = format!("  {seconds:>3} s  {doing}");
                let drawn = table(ledger);
                let texts = std::iter::once(title.as_str())
                    .chain([""])
                    .chain(drawn.lines());
                for (line, text) in lines.iter().zip(texts) {
                    line.set_message(text.to_owned());
                }
                Ok(())
            }
            Surface::Plain { next, last } => {
                let now = clock::instant();
                // Each thing that goes on is told at once.
                if now < *next && last == doing {
                    return Ok(());
                }
                *next = now + LINE_EVERY;
                doing.clone_into(last);
                print::line(&format!("{seconds:>3} s  {doing}: {}", summary(ledger)))
            }
        }
    }

    /// Leaves the last numbers standing.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn end(self, ledger: &Ledger) -> Result<(), CliError> {
        if let Surface::Terminal { all, lines } = &self.surface {
            lines.iter().for_each(ProgressBar::finish_and_clear);
            // A terminal that is gone is noticed by the next line.
            all.clear().ok();
        }
        print::line(&format!("\n{}", table(ledger)))
    }
}

/// All subscribers, a row each.
fn table(ledger: &Ledger) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "SUBSCRIBER",
        "WHAT IT DOES",
        "DELIVERED",
        "WAITING",
        "RETRYING",
        "DEAD",
        "P50",
    ]);
    for (index, subscriber) in SUBSCRIBERS.iter().enumerate() {
        let numbers = ledger.numbers(index);
        let counts = [
            numbers.delivered,
            numbers.waiting,
            numbers.retrying,
            numbers.dead,
        ];
        let mut row = vec![subscriber.name.to_owned(), subscriber.does.to_owned()];
        row.extend(counts.map(|count| count.to_string()));
        row.push(numbers.median.map_or_else(|| "-".to_owned(), latency));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let drawn = table.trim_fmt();
    drawn
        .lines()
        .map(|line| format!(" {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// All subscribers on one line.
fn summary(ledger: &Ledger) -> String {
    let told: Vec<String> = SUBSCRIBERS
        .iter()
        .enumerate()
        .map(|(index, subscriber)| format!("{} {}", subscriber.name, counts(ledger.numbers(index))))
        .collect();
    format!("events {} | {}", ledger.orders(), told.join(" | "))
}

/// `12, 3 waiting`: what is zero goes without saying.
fn counts(numbers: Numbers) -> String {
    let mut text = numbers.delivered.to_string();
    for (count, what) in [
        (numbers.waiting, "waiting"),
        (numbers.retrying, "retrying"),
        (numbers.dead, "dead"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

/// A latency for people: whole milliseconds, or seconds with one digit.
pub(super) fn latency(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_its_lines_and_a_usual_terminal() {
        let drawn = table(&Ledger::new("order-events"));
        assert_eq!(drawn.lines().count() + 2, LINES, "{drawn}");
        assert!(drawn.lines().all(|line| line.len() < 80), "{drawn}");
    }

    #[test]
    fn what_is_zero_goes_without_saying() {
        let numbers = Numbers {
            delivered: 12,
            waiting: 3,
            ..Numbers::default()
        };
        assert_eq!(counts(numbers), "12, 3 waiting");
        assert_eq!(counts(Numbers::default()), "0");
    }
}
