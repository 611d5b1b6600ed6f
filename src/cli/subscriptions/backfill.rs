//! `subscriptions apply --backfill-since`: the events from before a subscription was created.

use std::collections::BTreeSet;
use std::time::Duration;

use super::change::Change;
use super::chosen::{Chosen, chosen};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print::{self, Output};
use crate::cli::replay::events::{Range, execute};
use crate::cli::settle::How;
use crate::config::Settings;
use crate::edge::clock;

/// Sends the events from before its creation to each subscription that was created. Fan-out sends those since then; what
/// was published while it took notice of the subscription may be sent by both, with the same webhook id.
pub(super) fn backfill(
    settings: &Settings,
    changes: &[Change],
    since: Duration,
    dry_run: bool,
    output: Output,
) -> Result<Exit, CliError> {
    /// In which fan-out takes notice of a new subscription.
    const NOTICED: Duration = Duration::from_secs(2);
    let created = changes.iter().filter(|change| change.result == "created");
    let created: BTreeSet<&str> = created.map(|change| change.id.as_str()).collect();
    if created.is_empty() {
        print::note("no subscription was created: there is nothing to backfill");
        return Ok(Exit::Done);
    }
    if dry_run {
        print::note(
            "dry run: the events to backfill are counted by `hookstream replay --from … --dry-run` when the subscriptions exist",
        );
        return Ok(Exit::Done);
    }
    let begun = clock::now();
    std::thread::sleep(NOTICED);
    let wanted = Chosen {
        all: true,
        ..Chosen::default()
    };
    let mut subscriptions = chosen(settings, &wanted)?;
    subscriptions.retain(|one| created.contains(&*one.id));
    let range = Range {
        from: begun - since,
        to: clock::now(),
        event_type: None,
        event_id: None,
        limit: None,
        pace: None,
        again: false,
    };
    let how = How {
        dry_run: false,
        yes: true,
        output,
    };
    execute(settings, subscriptions, &range, how)
}
