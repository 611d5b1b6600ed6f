//! Data on standard output, as a table, JSON or JSON lines; everything else belongs on standard error.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use super::exit::{CliError, Exit};
use crate::edge::kafka::error::Failure;
use crate::replay::ReplayError;

/// The format of data on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document per line.
    Jsonl,
}

/// Rows that can be printed in any format.
pub trait Row: Serialize {
    /// The headings of the table.
    const HEADINGS: &'static [&'static str];
    /// One cell per heading.
    fn cells(&self) -> Vec<String>;
}

/// Prints rows.
///
/// # Errors
/// Standard output cannot be written. A closed pipe is not an error.
pub fn rows<R: Row>(output: Output, rows: &[R]) -> Result<(), CliError> {
    match output {
        Output::Table => table(rows),
        Output::Json => document(output, &rows),
        Output::Jsonl => rows.iter().try_for_each(|row| document(output, row)),
    }
}

/// Prints one document, indented or on one line.
///
/// # Errors
/// As [`rows`].
pub fn document(output: Output, value: &impl Serialize) -> Result<(), CliError> {
    let text = match output {
        Output::Jsonl => serde_json::to_string(value),
        Output::Table | Output::Json => serde_json::to_string_pretty(value),
    };
    line(
        &text
            .map_err(|error| CliError::new(Exit::Failure, format!("cannot write JSON: {error}")))?,
    )
}

/// Prints rows as a table, if there are any.
///
/// # Errors
/// As [`rows`].
pub fn table<R: Row>(rows: &[R]) -> Result<(), CliError> {
    if rows.is_empty() {
        Ok(())
    } else {
        line(&draw(rows))
    }
}

/// Formats rows as a table.
#[must_use]
pub fn draw<R: Row>(rows: &[R]) -> String {
    let headings = R::HEADINGS.iter().map(|&heading| heading.to_owned());
    draw_cells(headings.collect(), rows.iter().map(Row::cells))
}

/// Formats a table whose columns were chosen.
#[must_use]
pub fn draw_cells(headings: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// Prints one line.
///
/// # Errors
/// As [`rows`].
pub fn line(text: &str) -> Result<(), CliError> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::new(
            Exit::Failure,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints bytes as they are, without a line's end.
///
/// # Errors
/// As [`rows`].
pub fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::new(
            Exit::Failure,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints one line of many; returns `false` when nobody reads standard output any more.
///
/// # Errors
/// As [`rows`], except that the caller ends when the pipe is closed.
pub fn line_if_read(text: &str) -> Result<bool, CliError> {
    match writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::new(
            Exit::Failure,
            format!("cannot write to standard output: {error}"),
        )),
    }
}

/// Prints one line on standard error and ignores errors.
pub fn note(text: &str) {
    // Not `eprintln`, which panics if standard error is closed.
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Converts a Kafka failure to an error with its exit code.
#[must_use]
pub fn failed(failure: &Failure) -> CliError {
    let exit = if failure.is_unreachable() {
        Exit::Unreachable
    } else {
        Exit::Failure
    };
    let hint = if exit == Exit::Unreachable {
        "no broker answers: "
    } else {
        ""
    };
    CliError::new(exit, format!("{hint}{failure}"))
}

/// The exit code and the message of a replay that failed after it had written `written` records. `taken_over` is what to say
/// when another run has fenced it.
#[must_use]
pub fn failed_replay(error: &ReplayError, taken_over: &str, written: u64) -> (Exit, String) {
    let (exit, message) = match error {
        ReplayError::TakenOver => (Exit::Failure, taken_over.to_owned()),
        ReplayError::Failed(failure) => {
            let failed = failed(failure);
            (failed.exit, failed.message)
        }
        ReplayError::NotCommitted(source) => {
            let exit = if source.is_unreachable() {
                Exit::Unreachable
            } else {
                Exit::Failure
            };
            (exit, format!("{error}: {source}"))
        }
        other => (Exit::Failure, other.to_string()),
    };
    match exit {
        Exit::Failure if written > 0 => (Exit::Partial, message),
        exit => (exit, message),
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        failed(&failure)
    }
}
