//! The progress of the demo: a table redrawn in place on a terminal, else a line every two seconds.

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

/// The interval between lines if standard output is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// The title, a blank line, the heading and the rows.
const LINES: usize = SUBSCRIBERS.len() + 3;

/// The view of a running demo.
pub(super) struct View {
    begun: Instant,
    surface: Surface,
}

enum Surface {
    /// One bar per line, which indicatif truncates to the terminal width and redraws in place.
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

    /// Shows the current numbers. `doing` is the current step.
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
                // A new step is printed immediately.
                if now < *next && last == doing {
                    return Ok(());
                }
                *next = now + LINE_EVERY;
                doing.clone_into(last);
                print::line(&format!("{seconds:>3} s  {doing}: {}", summary(ledger)))
            }
        }
    }

    /// Prints the final numbers.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn end(self, ledger: &Ledger) -> Result<(), CliError> {
        if let Surface::Terminal { all, lines } = &self.surface {
            lines.iter().for_each(ProgressBar::finish_and_clear);
            // An error shows in the next line printed.
            all.clear().ok();
        }
        print::line(&format!("\n{}", table(ledger)))
    }
}

/// All subscribers, one per row.
fn table(ledger: &Ledger) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "SUBSCRIBER",
        "BEHAVIOR",
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
        let mut row = vec![subscriber.name.to_owned(), subscriber.summary.to_owned()];
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
    let parts: Vec<String> = SUBSCRIBERS
        .iter()
        .enumerate()
        .map(|(index, subscriber)| format!("{} {}", subscriber.name, counts(ledger.numbers(index))))
        .collect();
    format!("events {} | {}", ledger.orders(), parts.join(" | "))
}

/// `12, 3 waiting`: without zero counts.
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

/// Formats a latency in whole milliseconds, or seconds with one decimal.
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
    fn the_table_fits_its_lines_and_a_standard_terminal() {
        let drawn = table(&Ledger::new("order-events"));
        assert_eq!(drawn.lines().count() + 2, LINES, "{drawn}");
        assert!(drawn.lines().all(|line| line.len() < 80), "{drawn}");
    }

    #[test]
    fn zero_counts_are_omitted() {
        let numbers = Numbers {
            delivered: 12,
            waiting: 3,
            ..Numbers::default()
        };
        assert_eq!(counts(numbers), "12, 3 waiting");
        assert_eq!(counts(Numbers::default()), "0");
    }
}
