//! `hookstream dead-letters export`: whole dead letters as JSON lines, for `import`.

use std::ops::ControlFlow;

use clap::Args;
use rdkafka::message::Message;

use super::filter::FilterArgs;
use super::reading::{fold, note_newer, open};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::record::header_pairs;
use crate::model::dead_letter::{Exported, State};
use crate::model::units::counted;
use crate::replay::{self, Undecoded};

/// `hookstream dead-letters export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Include replayed and discarded dead letters; import writes them as such
    #[arg(long)]
    all: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the topic cannot be read, or some of it: an export that lacks dead letters is not one.
pub(super) fn run(settings: &Settings, args: &ExportArgs) -> Result<Exit, CliError> {
    let filter = args.filter.filter()?;
    let (log, ends) = open(settings)?;
    let cluster = log.cluster()?;
    let (settled, newer) = fold(&log, &ends)?;
    let now = clock::now();
    let (mut exported, mut unreadable, mut is_read) = (0_u64, 0_u64, true);
    log.read::<CliError>(&ends, &|| false, |message| {
        let letter = match replay::decode(message) {
            Ok(Some(letter)) => letter,
            Ok(None) | Err(Undecoded::Newer(_)) => return Ok(ControlFlow::Continue(())),
            Err(Undecoded::Unreadable(_)) => {
                unreadable += 1;
                return Ok(ControlFlow::Continue(()));
            }
        };
        let state = settled.state(&letter);
        if !(args.all || state == State::Open) || !filter.matches(&letter) {
            return Ok(ControlFlow::Continue(()));
        }
        let read_to = ends
            .iter()
            .find(|range| range.partition == letter.at.partition);
        let read_to = read_to.map_or(letter.at.offset.0 + 1, |range| range.end);
        let headers = header_pairs(message);
        let row = Exported::new(
            &letter,
            state,
            &headers,
            message.payload(),
            (cluster.as_str(), read_to),
            now,
        );
        let line = serde_json::to_string(&row).map_err(|error| {
            CliError::new(Exit::Failure, format!("dead letter {}: {error}", letter.at))
        })?;
        exported += 1;
        is_read = print::line_if_read(&line)?;
        Ok(if is_read {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    if !is_read {
        return Ok(Exit::Done);
    }
    print::note(&format!("exported {}", counted(exported, "dead letter")));
    if unreadable > 0 {
        let records = counted(unreadable, "unreadable record");
        return Err(CliError::new(
            Exit::Partial,
            format!(
                "the export lacks {records} of {}, which cannot be dead letters of any hookstream",
                log.topic()
            ),
        ));
    }
    Ok(note_newer(&newer))
}
