//! Replays or discards dead letters: confirmation, progress, report.
//!
//! The work runs on its own thread, because the commit of a transaction may block while no broker is reachable. The main
//! thread supervises it, so that an interrupt or a dead broker still ends the command. Abandoning a commit is safe: the
//! dead letters are then either settled or open, and the next run takes the open ones.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;

use super::confirm;
use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use super::progress::{bar, leave};
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::log_reader::Reading;
use crate::model::dead_letter::Reason;
use crate::model::units::counted;
use crate::replay::{self, DeadLetterCounts, End, Newer, Plan, Progress, ReplayError, Report};

/// After this long without a response to a commit or to the first request, the broker counts as unreachable.
const UNANSWERED: Duration = Duration::from_secs(60);

/// How long the current batch may take to commit after an interrupt.
const LAST_BATCH: Duration = Duration::from_secs(20);

/// How a plan is executed.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Only print what would be done.
    pub(super) dry_run: bool,
    /// Do not ask for confirmation.
    pub(super) yes: bool,
    pub(super) output: Output,
}

/// What is done, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verb {
    command: &'static str,
    question: &'static str,
    done: &'static str,
    twice: &'static str,
    one: &'static str,
}

impl Verb {
    fn of(plan: &Plan) -> Self {
        if plan.discards {
            Self {
                command: "discard",
                question: "Discard",
                done: "discarded",
                twice: "discarded",
                one: "dead letter",
            }
        } else {
            Self {
                command: "replay",
                question: "Replay",
                done: "replayed",
                twice: "sent",
                one: "dead letter",
            }
        }
    }

    /// Events are sent again.
    pub(super) const EVENTS: Self = Self {
        command: "replay",
        question: "Send",
        done: "written",
        twice: "sent",
        one: "webhook",
    };
}

/// Previews, asks for confirmation, and replays or discards dead letters.
pub(super) fn execute(settings: &Settings, plan: Plan, how: How) -> Result<Exit, CliError> {
    let verb = Verb::of(&plan);
    let asks = !how.dry_run && !how.yes;
    if asks {
        confirm::can_ask(verb.command)?;
    }
    let interrupt = Interrupt::watch()?;
    if how.dry_run || asks {
        let look = {
            let interrupt = interrupt.clone();
            move || interrupt.is_raised()
        };
        let (counts, reading) =
            replay::preview(settings, &plan, &look).map_err(|failure| print::failed(&failure))?;
        if reading == Reading::Stopped {
            return Err(CliError::new(
                Exit::Interrupted,
                format!("interrupted while reading; nothing was {}", verb.done),
            ));
        }
        if how.dry_run {
            print_counts(how.output, &counts, true, true)?;
            return ended(&counts);
        }
        if counts.letters() == 0 {
            let ended = ended(&counts)?;
            print::note("no open dead letters match");
            return Ok(ended);
        }
        if !is_confirmed(&counts, verb, &interrupt)? {
            return Ok(if interrupt.is_raised() {
                Exit::Interrupted
            } else {
                Exit::Done
            });
        }
    }
    let report = supervise(settings, plan, &interrupt)?;
    conclude(how.output, verb, &report, settings.guarantee)
}

/// Shows what would be replayed and asks for confirmation.
fn is_confirmed(
    counts: &DeadLetterCounts,
    verb: Verb,
    interrupt: &Interrupt,
) -> Result<bool, CliError> {
    note_left_open(counts);
    print::note(&print::draw(&groups(counts)));
    let letters = counted(counts.letters(), "dead letter");
    let question = format!("{} {letters}?", verb.question);
    confirm::ask(&question, &format!("nothing was {}", verb.done), interrupt)
}

/// Runs the replay on its own thread until it ends or is abandoned.
fn supervise(settings: &Settings, plan: Plan, interrupt: &Interrupt) -> Result<Report, CliError> {
    let verb = Verb::of(&plan);
    let settings = settings.clone();
    supervised(verb, interrupt, move |stop, report| {
        let report = replay::run(&settings, &plan, stop, report);
        let is_complete = matches!(report.end, End::Complete);
        (report, is_complete)
    })
}

/// Runs `work`, which returns whether it is complete, on its own thread until it ends or is abandoned.
pub(super) fn supervised<T: Send + 'static>(
    verb: Verb,
    interrupt: &Interrupt,
    work: impl FnOnce(&dyn Fn() -> bool, &mut dyn FnMut(Progress)) -> (T, bool) + Send + 'static,
) -> Result<T, CliError> {
    let progress = Arc::new(Mutex::new(Progress::default()));
    let (done, ended) = mpsc::channel();
    let worker = {
        let (progress, interrupt) = (Arc::clone(&progress), interrupt.clone());
        move || {
            let mut report = |now| *progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
            let result = work(&|| interrupt.is_raised(), &mut report);
            // Fails only if the command no longer waits for it.
            done.send(result).ok();
        }
    };
    std::thread::spawn(worker);
    let mut watch = Watch::new(verb);
    let bar = bar();
    loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok((result, is_complete)) => {
                let last = *progress.lock().unwrap_or_else(PoisonError::into_inner);
                show(&bar, verb, last);
                leave(&bar, is_complete);
                return Ok(result);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(CliError::new(
                    Exit::Failure,
                    "the replay thread ended without a report",
                ));
            }
        }
        let now = *progress.lock().unwrap_or_else(PoisonError::into_inner);
        show(&bar, verb, now);
        if let Some(error) = watch.look(now, interrupt.is_raised()) {
            bar.finish_and_clear();
            return Err(error);
        }
    }
}

/// Detects an unreachable broker.
struct Watch {
    verb: Verb,
    seen: Progress,
    since: std::time::Instant,
    interrupted: Option<std::time::Instant>,
}

impl Watch {
    fn new(verb: Verb) -> Self {
        Self {
            verb,
            seen: Progress::default(),
            since: clock::instant(),
            interrupted: None,
        }
    }

    fn look(&mut self, now: Progress, interrupted: bool) -> Option<CliError> {
        if now != self.seen {
            self.seen = now;
            self.since = clock::instant();
        }
        if interrupted {
            self.interrupted.get_or_insert_with(clock::instant);
        }
        let known = format!(
            "{} certainly {}; run again to continue, without duplicates",
            counted(now.replayed, self.verb.one),
            self.verb.done
        );
        if self.interrupted.is_some_and(|at| at.elapsed() > LAST_BATCH) {
            return Some(CliError::new(
                Exit::Interrupted,
                format!("interrupted during a batch: {known}"),
            ));
        }
        let unanswered = now.committing || now == Progress::default();
        let waited = self.since.elapsed();
        (unanswered && waited > UNANSWERED).then(|| {
            let seconds = waited.as_secs();
            CliError::new(
                Exit::Unreachable,
                format!("no response from the broker for {seconds} s: {known}"),
            )
        })
    }
}

fn show(bar: &ProgressBar, verb: Verb, now: Progress) {
    bar.set_length(now.of.max(1));
    bar.set_position(now.read);
    bar.set_message(if now.sending {
        format!("{} {}", verb.done, now.replayed)
    } else {
        format!("reading the {}s", verb.one)
    });
}

/// Prints the result.
fn conclude(
    output: Output,
    verb: Verb,
    report: &Report,
    guarantee: Guarantee,
) -> Result<Exit, CliError> {
    let letters = report.replayed.letters();
    print_counts(
        output,
        &report.replayed,
        false,
        matches!(report.end, End::Complete),
    )?;
    if !matches!(report.end, End::Complete) {
        note_left_open(&report.replayed);
    }
    match &report.end {
        End::Complete => {
            print::note(&format!(
                "{} {}",
                verb.done,
                counted(letters, "dead letter")
            ));
            ended(&report.replayed)
        }
        End::Stopped => Err(CliError::new(
            Exit::Interrupted,
            format!(
                "interrupted after {}; run again to continue",
                counted(letters, "dead letter")
            ),
        )),
        End::Failed(error) => Err(explain(error, verb, letters, guarantee)),
    }
}

/// Reports the dead letters that stay open, each group with its way out.
fn note_left_open(counts: &DeadLetterCounts) {
    for line in left_open(counts) {
        print::note(&line);
    }
}

fn left_open(counts: &DeadLetterCounts) -> Vec<String> {
    let withheld = counts.withheld.iter().map(|(group, letters)| {
        format!(
            "left open: {} of {:?} (subscriber {:?}), since {}; {}",
            counted(*letters, "dead letter"),
            group.subscription,
            group.subscriber,
            group.why,
            group.why.way_out(&group.subscription)
        )
    });
    let large = (counts.too_large > 0).then(|| {
        format!(
            "left open: {}, too large for --max-event-bytes; raise it, run `hookstream topics check`, and replay again",
            counted(counts.too_large, "dead letter")
        )
    });
    let topic = counts.newer.topic();
    let newer = counts.newer.iter().map(|found| match found {
        Newer::Settling { at, version } => format!(
            "left open: all dead letters of {topic} partition {}, since the record at offset {} was written by a newer hookstream (version {version} of the format) and may settle some of them; upgrade this program, then replay again",
            at.partition, at.offset
        ),
        Newer::DeadLetters { at, version, count } => format!(
            "left open: {} of {topic} partition {}, the first at offset {}, written by a newer hookstream (version {version} of the format); upgrade this program, then replay again",
            counted(count, "dead letter"), at.partition, at.offset
        ),
    });
    withheld.chain(large).chain(newer).collect()
}

/// The end of a complete replay, or of a preview of one: dead letters that have to stay open make it partial, or a failure
/// if there are no others.
fn ended(counts: &DeadLetterCounts) -> Result<Exit, CliError> {
    let lines = left_open(counts);
    let exit = match counts.letters() {
        _ if lines.is_empty() => return Ok(Exit::Done),
        0 => Exit::Failure,
        _ => Exit::Partial,
    };
    Err(CliError::new(exit, lines.join("\n")))
}

fn explain(error: &ReplayError, verb: Verb, letters: u64, guarantee: Guarantee) -> CliError {
    let mut message = error.to_string();
    if let ReplayError::NotCommitted(source) = error {
        message = format!("{message}: {source}");
    }
    if let ReplayError::Failed(failure) = error {
        message = print::failed(failure).message;
    }
    let exit = match error {
        ReplayError::TakenOver => Exit::Failure,
        ReplayError::NotCommitted(source) if source.is_unreachable() => Exit::Unreachable,
        ReplayError::Failed(failure) if print::failed(failure).exit == Exit::Unreachable => {
            Exit::Unreachable
        }
        _ if letters > 0 => Exit::Partial,
        _ => Exit::Failure,
    };
    let rest = match guarantee {
        Guarantee::ExactlyOnce => format!(
            "run again for the dead letters that are still open; none is {} twice",
            verb.twice
        ),
        Guarantee::AtLeastOnce => format!(
            "run again for the dead letters that are still open; the last batch may be {} again",
            verb.twice
        ),
    };
    CliError::new(
        exit,
        format!(
            "{message}; {} {}; {rest}",
            verb.done,
            counted(letters, "dead letter")
        ),
    )
}

/// The dead letters of one subscriber with one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Group {
    subscriber: String,
    reason: Reason,
    letters: u64,
    bytes: u64,
}

impl Row for Group {
    const HEADINGS: &'static [&'static str] = &["SUBSCRIBER", "REASON", "COUNT", "BYTES"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.subscriber.clone(),
            self.reason.to_string(),
            self.letters.to_string(),
            self.bytes.to_string(),
        ]
    }
}

#[derive(Serialize)]
struct Summary {
    dry_run: bool,
    complete: bool,
    letters: u64,
    unreadable: u64,
    by_reason: BTreeMap<&'static str, u64>,
    groups: Vec<Group>,
    withheld: Vec<Withheld>,
}

/// Dead letters of one subscription that stay open.
#[derive(Serialize)]
struct Withheld {
    subscription: String,
    subscriber: String,
    why: replay::Why,
    letters: u64,
    way_out: String,
}

fn withheld(counts: &DeadLetterCounts) -> Vec<Withheld> {
    let group = |(group, letters): (&replay::WithheldGroup, &u64)| Withheld {
        subscription: group.subscription.clone(),
        subscriber: group.subscriber.clone(),
        why: group.why,
        letters: *letters,
        way_out: group.why.way_out(&group.subscription),
    };
    counts.withheld.iter().map(group).collect()
}

fn groups(counts: &DeadLetterCounts) -> Vec<Group> {
    let group = |((subscriber, reason), count): (&(String, Reason), &replay::Count)| Group {
        subscriber: subscriber.clone(),
        reason: *reason,
        letters: count.letters,
        bytes: count.bytes,
    };
    counts.groups.iter().map(group).collect()
}

fn print_counts(
    output: Output,
    counts: &DeadLetterCounts,
    dry_run: bool,
    complete: bool,
) -> Result<(), CliError> {
    let groups = groups(counts);
    if counts.unreadable > 0 {
        print::note(&format!(
            "skipped {}",
            counted(counts.unreadable, "unreadable record")
        ));
    }
    if dry_run && groups.is_empty() && left_open(counts).is_empty() {
        print::note("no open dead letters match");
    }
    if output != Output::Json {
        return print::rows(output, &groups);
    }
    let mut by_reason = BTreeMap::new();
    for group in &groups {
        *by_reason.entry(group.reason.as_str()).or_default() += group.letters;
    }
    let (letters, unreadable) = (counts.letters(), counts.unreadable);
    print::document(
        output,
        &Summary {
            dry_run,
            complete,
            letters,
            unreadable,
            by_reason,
            groups,
            withheld: withheld(counts),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(replayed: u64) -> DeadLetterCounts {
        let group = |why, id: &str| replay::WithheldGroup {
            subscription: id.to_owned(),
            subscriber: "acme".to_owned(),
            why,
        };
        let count = replay::Count {
            letters: replayed,
            bytes: 1,
        };
        let key = ("acme".to_owned(), Reason::Gone);
        DeadLetterCounts {
            groups: (replayed > 0).then_some((key, count)).into_iter().collect(),
            unreadable: 0,
            withheld: [
                (group(replay::Why::Gone, "orders"), 47),
                (group(replay::Why::Missing, "invoices"), 1),
            ]
            .into(),
            ..DeadLetterCounts::default()
        }
    }

    #[test]
    fn what_stays_open_is_reported_with_the_way_out() {
        let error = ended(&counts(3)).unwrap_err();
        assert_eq!(error.exit, Exit::Partial);
        let lines: Vec<&str> = error.message.lines().collect();
        assert!(
            lines[0].contains("1 dead letter of \"invoices\"")
                && lines[0].contains("apply a subscription"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("47 dead letters of \"orders\"")
                && lines[1].contains("hookstream subscriptions resume orders"),
            "{lines:?}"
        );
        assert_eq!(ended(&counts(0)).unwrap_err().exit, Exit::Failure);
        assert_eq!(ended(&DeadLetterCounts::default()).unwrap(), Exit::Done);
        let report = Report {
            replayed: counts(3),
            end: End::Complete,
        };
        let verb = Verb::of(&Plan::default());
        let ended = conclude(Output::Json, verb, &report, Guarantee::ExactlyOnce);
        assert_eq!(ended.unwrap_err().exit, Exit::Partial);
        let json = serde_json::to_value(withheld(&counts(3))).unwrap();
        assert_eq!(
            (&json[1]["why"], &json[1]["letters"]),
            (&"gone".into(), &47.into())
        );
    }

    #[test]
    fn records_of_a_newer_program_are_named_and_fail_a_replay_that_does_nothing_else() {
        let at = |partition, offset| crate::model::dead_letter::Coordinates {
            partition,
            offset: crate::model::units::Offset(offset),
        };
        let letter: [(&str, &[u8]); 2] = [("hs-version", b"3"), ("hs-fact", b"dead-lettered")];
        let other: [(&str, &[u8]); 1] = [("hs-version", b"2")];
        for (headers, version) in [(&letter[..], "version 3"), (&other[..], "version 2")] {
            let mut newer = replay::NewerFacts::of("webhook-dead-letters");
            assert_eq!(newer.decode(at(4, 17), Some(b"acme"), headers), None);
            let alone = DeadLetterCounts {
                newer: newer.clone(),
                ..DeadLetterCounts::default()
            };
            let error = ended(&alone).unwrap_err();
            assert_eq!(error.exit, Exit::Failure);
            for part in [
                "webhook-dead-letters partition 4",
                "offset 17",
                version,
                "upgrade",
            ] {
                assert!(error.message.contains(part), "{}", error.message);
            }
            let with_others = DeadLetterCounts {
                newer,
                withheld: BTreeMap::new(),
                ..counts(3)
            };
            assert_eq!(ended(&with_others).unwrap_err().exit, Exit::Partial);
        }
    }

    #[test]
    fn a_replay_that_was_taken_over_fails_even_after_some_dead_letters() {
        assert_eq!(
            explain(
                &ReplayError::TakenOver,
                Verb::of(&Plan::default()),
                5,
                Guarantee::ExactlyOnce
            )
            .exit,
            Exit::Failure
        );
    }
}
