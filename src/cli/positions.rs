//! `hookstream positions show|set|export|import`: the committed offsets of the groups, and a planned failover to a mirrored
//! cluster.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::confirm;
use super::dead_letters::parse_time;
use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::model::units::counted;
use crate::positions::control::{self, Moved, Shown, Target, Wanted};
use crate::positions::{self, Document, Imported, PositionsError};

/// `hookstream positions`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Show the committed offset of each group in each partition
    Show(ShowArgs),
    /// Set the committed offsets of a group that has no members; stop its roles first
    Set(SetArgs),
    /// Print the committed offsets of the groups as JSON, in a form valid on a mirrored cluster; stop all roles first
    Export,
    /// Commit exported offsets on a mirrored cluster, if the mirror is complete
    Import(ImportArgs),
}

/// `hookstream positions show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream positions set`.
#[derive(Args, Clone, Debug)]
pub struct SetArgs {
    /// Topics, or partitions of topics
    #[arg(required = true, value_name = "TOPIC[:PARTITION]", value_parser = parse_wanted)]
    what: Vec<Wanted>,
    /// New position: now, earliest, an offset, or a time such as 2026-01-01T00:00:00Z or 2h (ago)
    #[arg(long, value_name = "POSITION", value_parser = parse_target)]
    to: Target,
    /// Print what would be committed, without committing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Names of topics contain no colon.
fn parse_wanted(text: &str) -> Result<Wanted, String> {
    let (topic, partition) = match text.split_once(':') {
        None => (text, None),
        Some((topic, number)) => {
            let partition: Option<i32> = number.parse().ok();
            let partition = partition.filter(|partition| *partition >= 0);
            let partition = partition.ok_or_else(|| {
                format!("{number:?} is not the number of a partition, as in events:0")
            })?;
            (topic, Some(partition))
        }
    };
    if topic.is_empty() {
        return Err("the name of a topic is missing".to_owned());
    }
    Ok(Wanted {
        topic: topic.to_owned(),
        partition,
    })
}

fn parse_target(text: &str) -> Result<Target, String> {
    match text {
        "now" => Ok(Target::Now),
        "earliest" => Ok(Target::Earliest),
        _ => match text.parse::<i64>() {
            Ok(offset) => Ok(Target::Offset(offset)),
            Err(_) => parse_time(text)
                .map(Target::Time)
                .map_err(|error| format!("must be now, earliest, an offset or a time: {error}")),
        },
    }
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

fn offset(offset: Option<i64>) -> String {
    offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string())
}

/// What every row begins with, and its figures.
fn cells(group: &str, topic: &str, partition: i32, figures: [String; 4]) -> Vec<String> {
    let place = [group.to_owned(), topic.to_owned(), partition.to_string()];
    place.into_iter().chain(figures).collect()
}

impl Row for Shown {
    const HEADINGS: &'static [&'static str] = &[
        "GROUP",
        "TOPIC",
        "PARTITION",
        "POSITION",
        "LOW",
        "END",
        "BEHIND",
    ];

    fn cells(&self) -> Vec<String> {
        cells(
            &self.group,
            &self.topic,
            self.partition,
            [
                offset(self.position),
                self.low.to_string(),
                self.end.to_string(),
                self.behind.to_string(),
            ],
        )
    }
}

impl Row for Moved {
    const HEADINGS: &'static [&'static str] = &[
        "GROUP",
        "TOPIC",
        "PARTITION",
        "BEFORE",
        "POSITION",
        "SKIPPED",
        "REPEATED",
    ];

    fn cells(&self) -> Vec<String> {
        cells(
            &self.group,
            &self.topic,
            self.partition,
            [
                offset(self.before),
                self.position.to_string(),
                self.skipped.to_string(),
                self.repeated.to_string(),
            ],
        )
    }
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
        cells(
            &self.group,
            &self.topic,
            self.partition,
            [
                offset(self.before),
                self.position.to_string(),
                self.records.to_string(),
                self.finished.to_string(),
            ],
        )
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a group has members, the mirror is incomplete, or the broker is unreachable or denies access.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    if let Command::Set(args) = command
        && !(args.dry_run || args.yes)
    {
        confirm::can_ask("positions set")?;
    }
    let interrupt = Interrupt::watch()?;
    let stop = || interrupt.is_raised();
    match command {
        Command::Show(args) => {
            print::rows(args.output, &control::show(settings).map_err(failed)?)?;
        }
        Command::Set(args) => return set(settings, args, &interrupt),
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

fn set(settings: &Settings, args: &SetArgs, interrupt: &Interrupt) -> Result<Exit, CliError> {
    let plan = control::plan(settings, &args.what, args.to).map_err(failed)?;
    if args.dry_run {
        print::rows(args.output, &plan.moves)?;
        return Ok(Exit::Done);
    }
    if !args.yes {
        print::note(&print::draw(&plan.moves));
        if !is_confirmed(plan.moves.len() as u64, interrupt)? {
            return Ok(match interrupt.is_raised() {
                true => Exit::Interrupted,
                false => Exit::Done,
            });
        }
    }
    let moved = plan.commit().map_err(failed)?;
    print::rows(args.output, &moved)?;
    Ok(Exit::Done)
}

fn is_confirmed(positions: u64, interrupt: &Interrupt) -> Result<bool, CliError> {
    let question = format!("Set {}?", counted(positions, "position"));
    confirm::ask(&question, "nothing was committed", interrupt)
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
        PositionsError::UnknownTopic { .. }
        | PositionsError::UnknownPartition { .. }
        | PositionsError::OutOfRange { .. } => CliError::new(Exit::Usage, error.to_string()),
        other => CliError::new(Exit::Failure, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_may_name_one_partition() {
        let wanted = |topic: &str, partition| Wanted {
            topic: topic.to_owned(),
            partition,
        };
        assert_eq!(parse_wanted("a.b_c-1"), Ok(wanted("a.b_c-1", None)));
        assert_eq!(parse_wanted("events:12"), Ok(wanted("events", Some(12))));
        for text in ["", ":1", "events:", "events:-1", "events:x", "events:1:2"] {
            assert!(parse_wanted(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_position_is_a_word_an_offset_or_a_time() {
        assert_eq!(parse_target("now"), Ok(Target::Now));
        assert_eq!(parse_target("earliest"), Ok(Target::Earliest));
        assert_eq!(parse_target("42"), Ok(Target::Offset(42)));
        let time = crate::model::units::EpochMs(1_767_225_600_000);
        assert_eq!(parse_target("2026-01-01T00:00:00Z"), Ok(Target::Time(time)));
        assert!(matches!(parse_target("2h"), Ok(Target::Time(_))));
        let error = parse_target("latest").unwrap_err();
        assert!(
            error.contains("now, earliest, an offset or a time"),
            "{error}"
        );
    }
}
