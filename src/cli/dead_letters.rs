//! `hookstream dead-letters list|show|discard|export|import|stats`: dead letters and their state.
//!
//! They read the dead-letter topic twice, as a replay does: first the settling records, then the dead letters. The field
//! names of the JSON formats are a stable interface, described in `schemas/dead-letter.schema.json`.

mod export;
mod filter;
mod import;
mod list;
mod reading;
mod show;
mod stats;

use clap::{Args, Subcommand};

pub use self::export::ExportArgs;
pub use self::filter::{FilterArgs, check_range, parse_time};
pub use self::import::ImportArgs;
pub use self::list::{ListArgs, Listed};
pub use self::show::{Detailed, HeaderText, ShowArgs};
pub use self::stats::StatsArgs;
use super::exit::{CliError, Exit};
use super::print::Output;
use super::settle::{How, execute};
use crate::config::Settings;
use crate::replay::Plan;

/// `hookstream dead-letters`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List dead letters, sorted by last failure
    List(ListArgs),
    /// Show one dead letter with its headers, body and state, and a script that sends it again by hand
    Show(ShowArgs),
    /// Discard open dead letters: they are not open any more, and never sent
    Discard(DiscardArgs),
    /// Print dead letters whole, as JSON lines that import reads
    Export(ExportArgs),
    /// Write exported dead letters to the topic, except those that are or were there
    Import(ImportArgs),
    /// Count open dead letters by subscriber, reason and hour
    Stats(StatsArgs),
}

/// `hookstream dead-letters discard`.
#[derive(Args, Clone, Debug)]
pub struct DiscardArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Maximum number of dead letters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print what would be discarded, by subscriber and reason, without discarding it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the topic cannot be read, or there is no such dead letter.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list::run(settings, args),
        Command::Show(args) => show::run(settings, args),
        Command::Discard(args) => discard(settings, args),
        Command::Export(args) => export::run(settings, args),
        Command::Import(args) => import::run(settings, args),
        Command::Stats(args) => stats::run(settings, args),
    }
}

fn discard(settings: &Settings, args: &DiscardArgs) -> Result<Exit, CliError> {
    let plan = Plan {
        filter: args.filter.filter()?,
        discards: true,
        limit: args.limit,
        ..Plan::default()
    };
    let how = How {
        dry_run: args.dry_run,
        yes: args.yes,
        output: args.output,
    };
    execute(settings, plan, how)
}
