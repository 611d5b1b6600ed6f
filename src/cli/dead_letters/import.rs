//! `hookstream dead-letters import`: writes exported dead letters to the topic again.
//!
//! The whole input is checked before any of it is written: a file is read twice, standard input is kept in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::reading::note_newer;
use crate::cli::exit::{CliError, Exit};
use crate::cli::interrupt::Interrupt;
use crate::cli::print::{self, Output};
use crate::config::Settings;
use crate::model::dead_letter::{Exported, Importable};
use crate::model::units::counted;
use crate::replay::{self, ReplayError};

/// The longest line, bytes: more than any record of Kafka's usual limits, twice.
const MAX_LINE: u64 = 64 << 20;

/// The most that is read from standard input, bytes.
const MAX_INPUT: u64 = 256 << 20;

/// `hookstream dead-letters import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// File that export has printed; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Also import dead letters of another Kafka cluster: they are open there too, unless they are discarded there
    #[arg(long)]
    from_other_cluster: bool,
    /// Also import dead letters of which the topic no longer shows whether they were replayed since the export
    #[arg(long)]
    unverified: bool,
    /// Print what would be imported, without writing it
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The result.
#[derive(Debug, Serialize)]
struct Summary {
    dry_run: bool,
    imported: u64,
    imported_settled: u64,
    already_known: u64,
    refused_other_cluster: u64,
    refused_unverified: u64,
}

/// An input that can be read from its beginning.
enum Input {
    File(PathBuf, String),
    Memory(Vec<u8>, String),
}

impl Input {
    fn open(path: &Path) -> Result<Self, CliError> {
        if path != Path::new("-") {
            return Ok(Self::File(path.to_owned(), path.display().to_string()));
        }
        let name = "standard input".to_owned();
        let mut bytes = Vec::new();
        let read = std::io::stdin()
            .lock()
            .take(MAX_INPUT + 1)
            .read_to_end(&mut bytes);
        read.map_err(|error| CliError::new(Exit::Usage, format!("reading {name}: {error}")))?;
        if bytes.len() as u64 > MAX_INPUT {
            let message = format!("{name} exceeds {} MiB; use a file", MAX_INPUT >> 20);
            return Err(CliError::new(Exit::Usage, message));
        }
        Ok(Self::Memory(bytes, name))
    }

    fn name(&self) -> &str {
        match self {
            Self::File(_, name) | Self::Memory(_, name) => name,
        }
    }

    fn lines(&self) -> Result<Lines<'_>, CliError> {
        let reader: Box<dyn BufRead + '_> = match self {
            Self::File(path, name) => {
                let file = File::open(path).map_err(|error| {
                    CliError::new(Exit::Usage, format!("reading {name}: {error}"))
                })?;
                Box::new(BufReader::new(file))
            }
            Self::Memory(bytes, _) => Box::new(Cursor::new(bytes)),
        };
        Ok(Lines {
            reader,
            number: 0,
            line: Vec::new(),
        })
    }
}

struct Lines<'a> {
    reader: Box<dyn BufRead + 'a>,
    number: u64,
    line: Vec<u8>,
}

impl Lines<'_> {
    /// The next dead letter, or what is wrong with it.
    fn next(&mut self) -> Option<Result<Importable, String>> {
        loop {
            self.line.clear();
            self.number += 1;
            let line = (&mut self.reader)
                .take(MAX_LINE + 1)
                .read_until(b'\n', &mut self.line);
            let at = |problem: String| format!("line {}: {problem}", self.number);
            match line {
                Ok(0) => return None,
                Err(error) => return Some(Err(at(error.to_string()))),
                Ok(_) if self.line.len() as u64 > MAX_LINE => {
                    return Some(Err(at(format!("longer than {} MiB", MAX_LINE >> 20))));
                }
                Ok(_) => {}
            }
            let text = match std::str::from_utf8(&self.line) {
                Ok(text) => text.trim(),
                Err(_) => return Some(Err(at("not UTF-8".to_owned()))),
            };
            if text.is_empty() {
                continue;
            }
            return Some(
                text.parse::<Exported>()
                    .and_then(Exported::check)
                    .map_err(at),
            );
        }
    }
}

/// Checks all lines, and returns how many there are.
fn check(input: &Input) -> Result<u64, CliError> {
    /// Errors that are printed; a file of something else has as many as lines.
    const MOST: usize = 20;
    let (mut lines, mut count, mut errors) = (input.lines()?, 0, Vec::new());
    while let Some(line) = lines.next() {
        count += 1;
        if let Err(error) = line {
            errors.push(format!("{}, {error}", input.name()));
            if errors.len() >= MOST {
                errors.push("further lines were not checked".to_owned());
                break;
            }
        }
    }
    if errors.is_empty() && count == 0 {
        errors.push(format!("{} contains no dead letter", input.name()));
    }
    if errors.is_empty() {
        Ok(count)
    } else {
        Err(CliError::new(Exit::Usage, errors.join("\n")))
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the input is invalid, nothing of it may be imported, or the topic cannot be read or written.
pub(super) fn run(settings: &Settings, args: &ImportArgs) -> Result<Exit, CliError> {
    let input = Input::open(&args.file)?;
    let count = check(&input)?;
    let interrupt = Interrupt::watch()?;
    let permit = replay::Permit {
        other_clusters: args.from_other_cluster,
        expired: args.unverified,
        dry_run: args.dry_run,
    };
    let mut lines = input.lines()?;
    let mut changed = None;
    let mut next = || match lines.next()? {
        Ok(one) => Some(one),
        Err(error) => {
            changed = Some(error);
            None
        }
    };
    let stop = || interrupt.is_raised();
    let (imported, result) = replay::import(settings, permit, &stop, &mut next);
    let others: BTreeMap<&String, &u64> = imported.other_clusters.iter().collect();
    let summary = Summary {
        dry_run: args.dry_run,
        imported: imported.open,
        imported_settled: imported.settled,
        already_known: imported.known,
        refused_other_cluster: others.values().copied().sum(),
        refused_unverified: imported.expired,
    };
    report(args, &summary)?;
    let newer = result.map_err(|error| explain(&error, &summary))?;
    if let Some(error) = changed {
        let message = format!("{} changed while it was read: {error}", input.name());
        return Err(CliError::new(Exit::Partial, message));
    }
    if interrupt.is_raised() {
        let message = "interrupted; run again to continue, nothing is imported twice";
        return Err(CliError::new(Exit::Interrupted, message));
    }
    if !newer.is_empty() {
        note_newer(&newer);
        let message = "nothing was imported: the topic has records of a newer hookstream, which may be these dead letters or settle them";
        return Err(CliError::new(Exit::Failure, message));
    }
    let refused = refusals(&others, &summary);
    if refused.is_empty() {
        return Ok(Exit::Done);
    }
    let all = summary.refused_other_cluster + summary.refused_unverified == count;
    let exit = if all { Exit::Failure } else { Exit::Partial };
    Err(CliError::new(exit, refused.join("\n")))
}

fn report(args: &ImportArgs, summary: &Summary) -> Result<(), CliError> {
    if args.output != Output::Table {
        return print::document(args.output, summary);
    }
    let verb = if summary.dry_run {
        "would import"
    } else {
        "imported"
    };
    print::note(&format!(
        "{verb} {} and {} that were replayed or discarded; {} already known",
        counted(summary.imported, "open dead letter"),
        summary.imported_settled,
        summary.already_known,
    ));
    Ok(())
}

fn refusals(others: &BTreeMap<&String, &u64>, summary: &Summary) -> Vec<String> {
    let other = others.iter().map(|(cluster, count)| {
        format!(
            "not imported: {} of the Kafka cluster {cluster}, where a replay would send them as well; discard them there, then use --from-other-cluster",
            counted(**count, "dead letter")
        )
    });
    let expired = (summary.refused_unverified > 0).then(|| {
        format!(
            "not imported: {} that may have been replayed since the export, which the topic no longer shows; use --unverified if you know that they were not",
            counted(summary.refused_unverified, "dead letter")
        )
    });
    other.chain(expired).collect()
}

fn explain(error: &ReplayError, summary: &Summary) -> CliError {
    let written = summary.imported + summary.imported_settled;
    let (exit, message) = match error {
        ReplayError::TakenOver => (
            Exit::Failure,
            "another import took over; this one stopped".to_owned(),
        ),
        ReplayError::Failed(failure) => {
            let failed = print::failed(failure);
            (failed.exit, failed.message)
        }
        ReplayError::TooLarge(at) => (
            Exit::Failure,
            format!(
                "dead letter {at} exceeds the size limit of the dead-letter topic; raise its max.message.bytes"
            ),
        ),
        ReplayError::NotCommitted(source) => (Exit::Failure, format!("{error}: {source}")),
        ReplayError::InvalidTooLarge(..) => (Exit::Failure, error.to_string()),
    };
    let exit = if written > 0 && exit == Exit::Failure {
        Exit::Partial
    } else {
        exit
    };
    CliError::new(
        exit,
        format!("{message}; run again to continue, nothing is imported twice"),
    )
}
