//! `hookstream replay --from TIME --to TIME`: sends the events of a time range again, to chosen subscriptions. Also the
//! backfill of `subscriptions apply`.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::confirm;
use crate::cli::exit::{CliError, Exit};
use crate::cli::interrupt::Interrupt;
use crate::cli::print::{self, Output, Row};
use crate::cli::settle::{How, Verb, supervised};
use crate::config::Settings;
use crate::edge::kafka::log_reader::Reading;
use crate::model::subscription::{State, Subscription, TypePattern};
use crate::model::units::{EpochMs, counted};
use crate::replay::{EventCounts, EventPlan, ReplayError, replay_events};

/// Which events, and how they are sent.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) from: EpochMs,
    pub(crate) to: EpochMs,
    pub(crate) event_type: Option<TypePattern>,
    pub(crate) event_id: Option<String>,
    pub(crate) limit: Option<u64>,
    pub(crate) pace: Option<Duration>,
    pub(crate) again: bool,
}

/// The webhooks of one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Group {
    subscription: String,
    webhooks: u64,
}

impl Row for Group {
    const HEADINGS: &'static [&'static str] = &["SUBSCRIPTION", "WEBHOOKS"];

    fn cells(&self) -> Vec<String> {
        vec![self.subscription.clone(), self.webhooks.to_string()]
    }
}

#[derive(Serialize)]
struct Summary {
    dry_run: bool,
    complete: bool,
    from: String,
    to: String,
    events: u64,
    webhooks: u64,
    invalid: u64,
    undecoded: u64,
    groups: Vec<Group>,
}

/// Previews, asks for confirmation, and sends.
pub(crate) fn execute(
    settings: &Settings,
    subscriptions: Vec<Arc<Subscription>>,
    range: &Range,
    how: How,
) -> Result<Exit, CliError> {
    refuse_disabled(&subscriptions)?;
    refuse_pending(&subscriptions)?;
    let plan = EventPlan {
        from: range.from,
        to: range.to,
        subscriptions,
        event_type: range.event_type.clone(),
        event_id: range.event_id.clone(),
        limit: range.limit,
        pace: range.pace,
        again: range.again,
    };
    let asks = !how.dry_run && !how.yes;
    if asks {
        confirm::can_ask("replay")?;
    }
    let interrupt = Interrupt::watch()?;
    if how.dry_run || asks {
        let (counts, result) = replay_run(settings, &plan, true, &interrupt)?;
        if interrupt.is_raised() {
            let message = "interrupted while reading; nothing was written";
            return Err(CliError::new(Exit::Interrupted, message));
        }
        result.map_err(|error| explain(&error, &counts, &plan))?;
        if how.dry_run {
            print_counts(how.output, &plan, &counts, true, true)?;
            note_done_before(&counts);
            return ended(&counts);
        }
        note_done_before(&counts);
        if counts.total() == 0 {
            print::note("no events match");
            return ended(&counts);
        }
        print::note(&print::draw(&groups(&counts)));
        let question = format!("Send {}?", counted(counts.total(), "webhook"));
        if !confirm::ask(&question, "nothing was written", &interrupt)? {
            return Ok(if interrupt.is_raised() {
                Exit::Interrupted
            } else {
                Exit::Done
            });
        }
    }
    let (counts, result) = replay_run(settings, &plan, false, &interrupt)?;
    let reading = result.map_err(|error| explain(&error, &counts, &plan))?;
    let is_complete = reading == Reading::Complete;
    print_counts(how.output, &plan, &counts, false, is_complete)?;
    note_done_before(&counts);
    let webhooks = counted(counts.total(), "webhook");
    if !is_complete {
        let message = format!("interrupted after {webhooks}; {}", continues(&plan));
        return Err(CliError::new(Exit::Interrupted, message));
    }
    print::note(&format!("wrote the commands of {webhooks}"));
    ended(&counts)
}

fn replay_run(
    settings: &Settings,
    plan: &EventPlan,
    dry_run: bool,
    interrupt: &Interrupt,
) -> Result<(EventCounts, Result<Reading, ReplayError>), CliError> {
    let (settings, plan) = (settings.clone(), plan.clone());
    supervised(Verb::EVENTS, interrupt, move |stop, report| {
        let done = replay_events(&settings, &plan, dry_run, stop, report);
        let is_complete = matches!(done.1, Ok(Reading::Complete));
        (done, is_complete)
    })
}

/// Commands of a disabled subscription would only become dead letters.
fn refuse_disabled(subscriptions: &[Arc<Subscription>]) -> Result<(), CliError> {
    let disabled = subscriptions
        .iter()
        .filter(|one| one.state == State::Disabled);
    let disabled: Vec<&str> = disabled.map(|one| &*one.id).collect();
    if disabled.is_empty() {
        return Ok(());
    }
    let ids = disabled.join(" ");
    let message = format!(
        "disabled subscriptions take no webhooks: {}; run `hookstream subscriptions resume {ids}` first",
        disabled.join(", ")
    );
    Err(CliError::new(Exit::Failure, message))
}

/// No commands are made for a pending subscription.
fn refuse_pending(subscriptions: &[Arc<Subscription>]) -> Result<(), CliError> {
    let pending = subscriptions
        .iter()
        .filter(|one| one.state == State::Pending);
    let pending: Vec<&str> = pending.map(|one| &*one.id).collect();
    if pending.is_empty() {
        return Ok(());
    }
    let message = format!(
        "pending subscriptions take no webhooks: {}; `hookstream subscriptions show {}` prints why its endpoint has not consented",
        pending.join(", "),
        pending[0],
    );
    Err(CliError::new(Exit::Failure, message))
}

/// How a run is continued: with the times that it began with, also where they were given as durations before now.
fn continues(plan: &EventPlan) -> String {
    format!(
        "to continue, run the same command with --from {} --to {}; nothing is written twice",
        plan.from.rfc3339(),
        plan.to.rfc3339()
    )
}

fn note_done_before(counts: &EventCounts) {
    if counts.done_before > 0 {
        print::note(
            "an earlier run of this replay has sent part of it, which is skipped; --again begins anew",
        );
    }
}

/// What was not sent of a complete replay.
fn ended(counts: &EventCounts) -> Result<Exit, CliError> {
    let mut left = Vec::new();
    if counts.undecoded.values > 0 {
        left.push(format!(
            "not looked into: {}, whose values could not be decoded: {}",
            counted(counts.undecoded.values, "event"),
            counts.undecoded.reason
        ));
    }
    if counts.too_large > 0 {
        left.push(format!(
            "not written: {}, too large for --max-event-bytes",
            counted(counts.too_large, "webhook")
        ));
    }
    if counts.invalid > 0 {
        print::note(&format!(
            "skipped {}, which fan-out has set aside too",
            counted(counts.invalid, "invalid event")
        ));
    }
    if left.is_empty() {
        return Ok(Exit::Done);
    }
    Err(CliError::new(Exit::Partial, left.join("\n")))
}

fn explain(error: &ReplayError, counts: &EventCounts, plan: &EventPlan) -> CliError {
    let total = counts.total();
    let taken_over = "another run of the same replay took over; this one stopped";
    let (exit, message) = print::failed_replay(error, taken_over, total);
    let wrote = counted(total, "webhook");
    CliError::new(
        exit,
        format!("{message}; wrote {wrote}; {}", continues(plan)),
    )
}

fn groups(counts: &EventCounts) -> Vec<Group> {
    let each = counts.commands.iter();
    each.map(|(subscription, &webhooks)| Group {
        subscription: subscription.clone(),
        webhooks,
    })
    .collect()
}

fn print_counts(
    output: Output,
    plan: &EventPlan,
    counts: &EventCounts,
    dry_run: bool,
    complete: bool,
) -> Result<(), CliError> {
    let groups = groups(counts);
    if output != Output::Json {
        return print::rows(output, &groups);
    }
    let summary = Summary {
        dry_run,
        complete,
        from: plan.from.rfc3339(),
        to: plan.to.rfc3339(),
        events: counts.events,
        webhooks: counts.total(),
        invalid: counts.invalid,
        undecoded: counts.undecoded.values,
        groups,
    };
    print::document(output, &summary)
}
