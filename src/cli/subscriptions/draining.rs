//! `subscriptions delete --drain` and `--discard`: what becomes of the commands that wait.
//!
//! | | new events | commands that wait | then |
//! |---|---|---|---|
//! | `--drain` | match no more | are delivered, or become dead letters | the subscription is deleted |
//! | `--discard` | the subscription is deleted | become dead letters `subscription-missing` | those are discarded |

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::document::{Document, applied};
use super::stored::{Stored, Write, write};
use crate::cli::exit::{CliError, Exit};
use crate::cli::interrupt::Interrupt;
use crate::cli::print::{self, Output};
use crate::cli::settle::{How, execute};
use crate::config::Settings;
use crate::edge::clock;
use crate::lag::Watcher;
use crate::model::dead_letter::{Filter, Reason};
use crate::model::subscription::{NO_EVENT, State};
use crate::model::units::counted;
use crate::replay::Plan;

/// In which fan-out takes notice of a change.
const NOTICED: Duration = Duration::from_secs(2);

/// Waits until no command of these subscriptions is pending, which get no more events. They can then be deleted.
///
/// # Errors
/// [`CliError`]: one is paused or disabled, a topic cannot be read or written, or the wait was interrupted.
pub(super) fn drain(settings: &Settings, stored: &Stored, ids: &[&str]) -> Result<(), CliError> {
    let mut writes: Vec<Write> = Vec::new();
    for id in ids {
        let (Some(document), Some(folded)) = (stored.document(id), stored.fold.get(id)) else {
            // A record that was never valid has no commands that are sent.
            continue;
        };
        if folded.state == State::Pending {
            let message = format!(
                "{id:?} is pending, so its commands never end; `hookstream subscriptions show {id}` prints why, or use --discard"
            );
            return Err(CliError::new(Exit::Failure, message));
        }
        if folded.state == State::Paused {
            let message = format!(
                "{id:?} is paused, so its commands never end; `hookstream subscriptions resume {id}` first, or use --discard"
            );
            return Err(CliError::new(Exit::Failure, message));
        }
        let failed = |error: String| CliError::new(Exit::Failure, format!("{id:?}: {error}"));
        let mut record: Map<String, Value> =
            serde_json::from_slice(document).map_err(|error| failed(error.to_string()))?;
        let none = json!([NO_EVENT]);
        if record.get("events") == Some(&none) {
            continue;
        }
        record.insert("events".to_owned(), none);
        let json = serde_json::to_vec(&record).map_err(|error| failed(error.to_string()))?;
        let document =
            Document::parse(None, json).map_err(|error| failed(error.problems().join("; ")))?;
        writes.extend(applied(stored, document, clock::now()));
    }
    write(settings, &writes)?;
    wait(
        settings,
        ids,
        "run the same command again to continue; no new events match meanwhile",
    )
}

/// Waits until the commands of these deleted subscriptions have become dead letters, and discards those.
///
/// # Errors
/// As [`drain`].
pub(super) fn discard(settings: &Settings, ids: &[&str], output: Output) -> Result<Exit, CliError> {
    let commands: Vec<_> = ids
        .iter()
        .map(|id| {
            format!("`hookstream dead-letters discard --reason subscription-missing --subscription {id}`")
        })
        .collect();
    let rest = format!(
        "deleted; what waits becomes dead letters, at the latest when it leaves its retry topic: discard those then with {}",
        commands.join(", ")
    );
    wait(settings, ids, &rest)?;
    for id in ids {
        let plan = Plan {
            filter: Filter {
                subscription: Some((*id).to_owned()),
                reason: Some(Reason::SubscriptionMissing),
                ..Filter::default()
            },
            discards: true,
            ..Plan::default()
        };
        let how = How {
            dry_run: false,
            yes: true,
            output,
        };
        execute(settings, plan, how)?;
    }
    Ok(Exit::Done)
}

fn wait(settings: &Settings, ids: &[&str], rest: &str) -> Result<(), CliError> {
    const EVERY: Duration = Duration::from_secs(1);
    let interrupt = Interrupt::watch()?;
    let stop = || interrupt.is_raised();
    let begun = clock::instant();
    let mut watcher = Watcher::new(settings)?;
    let mut last = None;
    while let Some(figures) = watcher.next(EVERY, &stop)? {
        let all = figures
            .subscribers
            .iter()
            .flat_map(|one| &one.subscriptions);
        let of_ids = all.filter(|one| ids.contains(&one.name.as_str()));
        let pending: BTreeMap<&str, u64> = of_ids
            .map(|one| (one.name.as_str(), one.pending()))
            .collect();
        let left: u64 = pending.values().sum();
        if left == 0 && begun.elapsed() > NOTICED {
            // Not dropped: each client would first wait for the response to its last fetch.
            std::mem::forget(watcher);
            return Ok(());
        }
        if left > 0 && last != Some(left) {
            print::note(&format!("waiting for {}", counted(left, "command")));
            last = Some(left);
        }
    }
    std::mem::forget(watcher);
    let left = last.map_or_else(|| "commands".to_owned(), |left| counted(left, "command"));
    let message = format!("interrupted while {left} waited; {rest}");
    Err(CliError::new(Exit::Interrupted, message))
}
