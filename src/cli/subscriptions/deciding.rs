//! `pause`, `resume` and `probe`: what operators decide about subscriptions.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::change::unknown;
use super::select::{Results, Selection};
use super::stored::{Stored, Write, write};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::subscription_log::Freshness;
use crate::model::subscription::{Decision, State, Subscription};
use crate::model::tiers::LONGEST_PARK;
use crate::model::units::EpochMs;

/// `hookstream subscriptions pause|resume|probe`.
#[derive(Args, Clone, Debug)]
pub struct DecideArgs {
    #[command(flatten)]
    pub(super) selection: Selection,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// What to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Pause,
    Resume,
    Probe,
}

impl Verb {
    /// The result of doing it.
    fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Probe => "probing",
        }
    }

    /// What it does to a subscription: the decision, or the result without one.
    fn of(self, known: &Subscription, now: EpochMs) -> Result<Decision, &'static str> {
        match (self, known.state) {
            (Self::Pause, State::Paused) | (Self::Resume, State::Active) => Err("unchanged"),
            (Self::Resume, State::Pending) => Err("pending, its endpoint has not consented"),
            (Self::Pause, _) => Ok(Decision::by_operator(known, State::Paused, now)),
            (Self::Resume, _) => Ok(Decision::by_operator(known, State::Active, now)),
            (Self::Probe, State::Active | State::Pending) => Ok(Decision::probe(known, now)),
            (Self::Probe, State::Paused) => Err("paused, not probed"),
            (Self::Probe, State::Disabled) => Err("disabled, not probed"),
        }
    }

    /// Whether commands come back.
    fn brings_back(self) -> bool {
        matches!(self, Self::Resume | Self::Probe)
    }
}

/// The result for one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Decided {
    id: String,
    result: &'static str,
    /// When the last of its parked commands is back at the latest, RFC 3339.
    parked_back_by: Option<String>,
}

impl Row for Decided {
    const HEADINGS: &'static [&'static str] = &["ID", "RESULT", "PARKED BACK BY"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.result.to_owned(),
            self.parked_back_by.clone().unwrap_or_default(),
        ]
    }
}

/// When commands that are parked at `now` are back at the latest: a park is bounded, and a release may be late by a tenth.
fn back_by(now: EpochMs) -> EpochMs {
    const LEAST_LATENESS: Duration = Duration::from_secs(5);
    now + LONGEST_PARK + (LONGEST_PARK / 10).max(LEAST_LATENESS)
}

/// Decides about subscriptions, unless one of them is unknown.
///
/// The decision names the applied record that it was made on. So it is read again afterwards: a subscription that was
/// applied meanwhile is decided on again.
pub(super) fn decide(settings: &Settings, args: &DecideArgs, verb: Verb) -> Result<Exit, CliError> {
    /// An apply at the same moment is rare; one in each of these would be an apply in a loop.
    const TRIES: usize = 5;
    let mut results = Results::new();
    let mut stored = Stored::read(settings, Freshness::Latest)?;
    let mut open: BTreeSet<String> = args.selection.ids(&stored)?;
    for _ in 0..TRIES {
        let gone = open.iter().filter(|id| stored.fold.get(id).is_none());
        let gone: Vec<&str> = gone.map(String::as_str).collect();
        if !gone.is_empty() {
            return Err(unknown(&gone));
        }
        let now = clock::now();
        let (mut writes, mut written) = (Vec::new(), Vec::new());
        for known in open.iter().filter_map(|id| stored.fold.get(id)) {
            match verb.of(known, now) {
                Ok(decision) => {
                    writes.push(Write::decision(known, &decision));
                    written.push((known.id.to_string(), known.source.applied.clone()));
                }
                Err(result) => drop(results.entry(known.id.to_string()).or_insert(result)),
            }
        }
        open = BTreeSet::new();
        if !writes.is_empty() {
            write(settings, &writes)?;
            stored = Stored::read(settings, Freshness::Latest)?;
            for (id, applied) in written {
                let after = stored.fold.get(&id);
                if after.is_some_and(|after| after.source.applied == applied) {
                    results.insert(id, verb.done());
                } else {
                    open.insert(id);
                }
            }
        }
        if open.is_empty() {
            return report(args, verb, results, now);
        }
    }
    let open: Vec<_> = open.into_iter().map(|id| format!("{id:?}")).collect();
    let message = format!(
        "{} changed while it was being {}, {TRIES} times; run again when nothing applies it",
        open.join(", "),
        verb.done()
    );
    Err(CliError::new(Exit::Failure, message))
}

fn report(args: &DecideArgs, verb: Verb, results: Results, now: EpochMs) -> Result<Exit, CliError> {
    let back = back_by(now).rfc3339();
    let is_done = |result: &str| result == verb.done();
    let any_back = verb.brings_back() && results.values().any(|result| is_done(result));
    let rows = results.into_iter().map(|(id, result)| Decided {
        id,
        result,
        parked_back_by: (verb.brings_back() && is_done(result)).then(|| back.clone()),
    });
    let rows: Vec<Decided> = rows.collect();
    print::rows(args.output, &rows)?;
    if any_back {
        print::note(&format!(
            "new commands are sent within seconds; those parked in the retry topics are back by {back} at the latest; retries keep their schedule"
        ));
    }
    let is_left = |row: &Decided| verb == Verb::Probe && !is_done(row.result);
    // Of a selector, those that cannot be probed were not meant.
    if args.selection.is_by_id() && rows.iter().any(is_left) {
        return Ok(Exit::Partial);
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::subscription::parse;

    #[test]
    fn each_verb_changes_what_it_should_and_a_probe_keeps_the_state_and_the_resume() {
        let mut known = parse(
            None,
            br#"{"id":"s","subscriber":"s","url":"https://a.example/","events":["**"]}"#,
        )
        .unwrap()
        .resumed(EpochMs(5));
        let of = |known: &Subscription, verb: Verb| verb.of(known, EpochMs(9));
        assert_eq!(of(&known, Verb::Pause).unwrap().state, State::Paused);
        assert_eq!(of(&known, Verb::Resume), Err("unchanged"));
        let probe = of(&known, Verb::Probe).unwrap();
        assert_eq!(
            (probe.state, probe.resumed_at, probe.probed_at),
            (State::Active, Some(EpochMs(5)), Some(EpochMs(9)))
        );
        known.state = State::Paused;
        assert_eq!(of(&known, Verb::Pause), Err("unchanged"));
        let resumed = of(&known, Verb::Resume).unwrap();
        assert_eq!(
            (resumed.state, resumed.resumed_at),
            (State::Active, Some(EpochMs(9)))
        );
        assert_eq!(of(&known, Verb::Probe), Err("paused, not probed"));
        known.state = State::Disabled;
        assert_eq!(of(&known, Verb::Probe), Err("disabled, not probed"));
        assert_eq!(of(&known, Verb::Resume).unwrap().state, State::Active);
    }

    #[test]
    fn parked_commands_are_back_within_the_longest_park_and_its_lateness() {
        let back = back_by(EpochMs(0));
        assert_eq!(back.0, 660_000, "ten minutes and a tenth of it");
    }
}
