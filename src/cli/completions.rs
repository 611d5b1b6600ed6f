//! Shell completions: the script that registers them, and the candidates that it asks this program for.
//!
//! The script runs the program with [`VARIABLE`] set and the words of the command line; the program prints what may follow.
//! Commands, flags and fixed values come from the command line's own definition, ids of subscriptions and names of subscribers
//! from Kafka, with the settings of the line that is completed, of the environment and of the file. A shell waits meanwhile, so
//! that takes [`PATIENCE`] at most, and any failure is silent: then there are no such candidates.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::mpsc;
use std::time::Duration;

use clap::builder::StyledStr;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{EnvCompleter, Shells};

use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};

/// The environment variable that asks for candidates; its value is the shell. Not a setting.
pub(super) const VARIABLE: &str = "_HOOKSTREAM_COMPLETE";
/// How long a shell waits for what Kafka has at most.
const PATIENCE: Duration = Duration::from_secs(1);
/// After this, what was read by then is enough.
const READING: Duration = Duration::from_millis(800);
/// Separates the call from the words that are completed.
const WORDS: &str = "--";
const NAME: &str = "hookstream";

/// The shell of this name.
fn shell(name: &str) -> Option<&'static dyn EnvCompleter> {
    Shells::builtins()
        .0
        .iter()
        .copied()
        .find(|one| one.is(name))
}

/// The script for a shell.
pub(super) fn script(of: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    if let Some(shell) = shell(&of.to_string()) {
        // Writing to memory does not fail.
        shell
            .write_registration(VARIABLE, NAME, NAME, NAME, &mut script)
            .ok();
    }
    script
}

/// What finds the settings of an unfinished command line.
pub(super) type FindSettings = fn(&[OsString]) -> Option<Settings>;

/// The candidates for a line of `command`, if that is what the process was started for: `None` otherwise.
pub(super) fn candidates(
    arguments: &[OsString],
    command: impl FnOnce() -> clap::Command,
    settings: FindSettings,
) -> Option<Vec<u8>> {
    let name = std::env::var(VARIABLE).ok()?;
    let mut printed = Vec::new();
    let words = arguments.iter().skip_while(|word| *word != WORDS).skip(1);
    let words: Vec<OsString> = words.cloned().collect();
    if let Some(shell) = shell(&name).filter(|_| !words.is_empty()) {
        let line = Line {
            words: words.clone(),
            settings,
        };
        let mut command = with_names(command(), &line);
        command.build();
        let here = std::env::current_dir().ok();
        // Whatever fails, a shell has no use for a message.
        shell
            .write_complete(&mut command, words, here.as_deref(), &mut printed)
            .ok();
    }
    Some(printed)
}

/// What an argument takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Subscriptions,
    Subscribers,
}

impl Names {
    /// What the argument with this id takes, in a command of `parent`.
    fn of(parent: &str, id: &str) -> Option<Self> {
        match (parent, id) {
            (_, "subscription") | ("subscriptions", "id" | "ids") => Some(Self::Subscriptions),
            (_, "subscriber") => Some(Self::Subscribers),
            _ => None,
        }
    }
}

/// The line that is completed.
#[derive(Clone)]
struct Line {
    words: Vec<OsString>,
    settings: FindSettings,
}

/// The command line whose arguments complete names.
fn with_names(command: clap::Command, line: &Line) -> clap::Command {
    fn complete(command: clap::Command, parent: &str, line: &Line) -> clap::Command {
        let name = command.get_name().to_owned();
        let command = command.mut_args(|arg| match Names::of(parent, arg.get_id().as_str()) {
            Some(names) => {
                let line = line.clone();
                let find = move |current: &OsStr| found(names, &line, current);
                arg.add(ArgValueCompleter::new(find))
            }
            None => arg,
        });
        command.mut_subcommands(|inner| complete(inner, &name, line))
    }
    complete(command, "", line)
}

/// The names that begin with `current`.
fn found(names: Names, line: &Line, current: &OsStr) -> Vec<CompletionCandidate> {
    // Flags are completed at the same place.
    let Some(current) = current.to_str().filter(|text| !text.starts_with('-')) else {
        return Vec::new();
    };
    let all = subscriptions(line.clone()).unwrap_or_default();
    let mut found: BTreeMap<String, String> = match names {
        Names::Subscriptions => all,
        Names::Subscribers => {
            let owners = all.into_values();
            owners.map(|owner| (owner, String::new())).collect()
        }
    };
    found.retain(|name, _| name.starts_with(current));
    let candidate = |(name, owner): (String, String)| {
        let help = (!owner.is_empty()).then(|| StyledStr::from(owner));
        CompletionCandidate::new(name).help(help)
    };
    found.into_iter().map(candidate).collect()
}

/// The subscriber of each subscription, as far as they are known in time.
fn subscriptions(line: Line) -> Option<BTreeMap<String, String>> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        // Nobody may wait any more.
        sender.send(read_subscriptions(&line)).ok();
    };
    // It is left behind when it takes longer: the process ends.
    std::thread::Builder::new()
        .name("completions".to_owned())
        .spawn(read)
        .ok()?;
    receiver.recv_timeout(PATIENCE).ok()?
}

fn read_subscriptions(line: &Line) -> Option<BTreeMap<String, String>> {
    let begun = clock::instant();
    let settings = (line.settings)(&line.words)?;
    let mut log = SubscriptionLog::open(&settings, "completions").ok()?;
    let is_late = || begun.elapsed() > READING;
    log.catch_up(Freshness::Visible, &is_late, &mut |_, _| {})
        .ok()?;
    let each = log.fold().iter();
    let each = each.map(|one| (one.id.to_string(), one.subscriber.to_string()));
    Some(each.collect())
}

#[cfg(test)]
mod tests {
    use super::super::{parser, unfinished};
    use super::*;

    fn named(command: &clap::Command, path: &str, all: &mut Vec<String>) {
        for arg in command.get_arguments() {
            if arg.get::<ArgValueCompleter>().is_some() {
                all.push(format!("{path} {}", arg.get_id()));
            }
        }
        for inner in command.get_subcommands() {
            named(inner, &format!("{path} {}", inner.get_name()), all);
        }
    }

    #[test]
    fn every_argument_that_takes_a_subscription_or_subscriber_completes_names() {
        let mut all = Vec::new();
        let line = Line {
            words: Vec::new(),
            settings: unfinished,
        };
        named(&with_names(parser(false), &line), "", &mut all);
        for wanted in [
            " subscriptions show id",
            " subscriptions pause ids",
            " subscriptions resume ids",
            " subscriptions probe ids",
            " subscriptions delete ids",
            " subscriptions test id",
            " subscriptions rotate-secret id",
            " replay subscription",
            " replay subscriber",
            " dead-letters list subscription",
            " dead-letters discard subscriber",
            " lag subscriber",
        ] {
            assert!(all.iter().any(|one| one == wanted), "{wanted} of {all:?}");
        }
        assert!(!all.iter().any(|one| one.starts_with(" trace")), "{all:?}");
    }

    #[test]
    fn an_unfinished_line_has_its_settings() {
        let line = "hookstream subscriptions --brokers b:1 show --topic-prefix x- ";
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let settings = unfinished(&words).unwrap();
        assert_eq!(settings.brokers, "b:1");
        assert_eq!(settings.topics.subscriptions(), "x-subscriptions");
    }

    #[test]
    fn each_shell_has_a_script_that_asks_this_program() {
        use clap_complete::Shell;
        for of in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::Elvish,
            Shell::PowerShell,
        ] {
            let script = String::from_utf8(script(of)).unwrap();
            assert!(
                script.contains(VARIABLE) && script.contains(NAME),
                "{of}: {script}"
            );
        }
    }
}
