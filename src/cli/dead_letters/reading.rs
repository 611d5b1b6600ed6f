//! Reads the dead-letter topic, and reports what a newer program wrote.

use std::ops::ControlFlow;

use crate::cli::exit::{CliError, Exit};
use crate::cli::print;
use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range};
use crate::model::dead_letter::OpenLetters;
use crate::model::units::counted;
use crate::replay::{self, Newer, NewerFacts};

/// Where the state of dead letters may be wrong: a newer program settled some of them in a way unknown to this one; and
/// dead letters that this one cannot read.
pub(super) fn note_newer(newer: &NewerFacts) -> Exit {
    let topic = newer.topic();
    for found in newer.iter() {
        print::note(&match found {
            Newer::Settling { at, version } => format!(
                "the state of the dead letters of {topic} partition {} is uncertain: the record at offset {} was written by a newer hookstream (version {version} of the format); upgrade this program",
                at.partition, at.offset,
            ),
            Newer::DeadLetters { at, version, count } => format!(
                "{} of {topic} partition {}, the first at offset {}, written by a newer hookstream (version {version} of the format), cannot be read; upgrade this program",
                counted(count, "dead letter"),
                at.partition,
                at.offset,
            ),
        });
    }
    if newer.is_empty() {
        Exit::Done
    } else {
        Exit::Partial
    }
}

/// Opens the topic, with the offsets to read.
pub(super) fn open(settings: &Settings) -> Result<(Log, Vec<Range>), CliError> {
    let log = Log::open(settings, settings.topics.dead_letters(), "dead-letters")
        .map_err(|f| print::failed(&f))?;
    let ends = log
        .stable_ends()
        .map_err(|failure| print::failed(&failure))?;
    Ok((log, ends))
}

/// The settled dead letters.
pub(super) fn fold(log: &Log, ends: &[Range]) -> Result<(OpenLetters, NewerFacts), CliError> {
    let mut settled = OpenLetters::default();
    let mut newer = NewerFacts::of(log.topic());
    log.read::<Failure>(ends, &|| false, |message| {
        if let Some(fact) = newer.settled(message) {
            settled.settle(&fact, replay::place(message));
        }
        Ok(ControlFlow::Continue(()))
    })
    .map_err(|failure| print::failed(&failure))?;
    Ok((settled, newer))
}
