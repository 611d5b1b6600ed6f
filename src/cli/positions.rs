//! `hookstream positions export|import`: a planned failover to a mirrored cluster.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::positions::{self, Document, Imported, PositionsError};

/// `hookstream positions`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Print the committed offsets of the groups as JSON, in a form valid on a mirrored cluster; stop all roles first
    Export,
    /// Commit exported offsets on a mirrored cluster, if the mirror is complete
    Import(ImportArgs),
}

/// `hookstream positions import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// Output of `hookstream positions export`; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print what would be committed, without committing
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Row for Imported {
    const HEADINGS: &'static [&'static str] = &[
        "GROUP",
        "TOPIC",
        "PARTITION",
        "BEFORE",
        "POSITION",
        "RECORDS",
        "FINISHED",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.group.clone(),
            self.topic.clone(),
            self.partition.to_string(),
            self.before
                .map_or_else(|| "-".to_owned(), |before| before.to_string()),
            self.position.to_string(),
            self.records.to_string(),
            self.finished.to_string(),
        ]
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a group has members, the mirror is incomplete, or the broker is unreachable or denies access.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    let interrupt = Interrupt::watch()?;
    let stop = || interrupt.is_raised();
    match command {
        Command::Export => {
            let document = positions::export(settings, &stop).map_err(failed)?;
            print::document(Output::Json, &document)?;
        }
        Command::Import(args) => {
            let document = read(args)?;
            let imported =
                positions::import(settings, &document, args.dry_run, &stop).map_err(failed)?;
            print::rows(args.output, &imported)?;
        }
    }
    Ok(Exit::Done)
}

fn read(args: &ImportArgs) -> Result<Document, CliError> {
    let name = args.file.display();
    let text = match args.file.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(&args.file),
    };
    let text = text.map_err(|error| CliError::new(Exit::Usage, format!("{name}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| {
        CliError::new(
            Exit::Usage,
            format!("{name} is not the output of `hookstream positions export`: {error}"),
        )
    })
}

fn failed(error: PositionsError) -> CliError {
    match error {
        PositionsError::Failed(failure) => print::failed(&failure),
        PositionsError::Interrupted => CliError::new(Exit::Interrupted, error.to_string()),
        other => CliError::new(Exit::Failure, other.to_string()),
    }
}
