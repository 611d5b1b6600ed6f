//! `hookstream topics add-partitions`: more partitions for the commands, the retry tiers and the dead letters, without a
//! moment at which two replicas own one subscriber.
//!
//! A subscriber moves to another partition when their number changes. So nothing may be in its old one by then, nor be
//! written to it afterwards:
//!
//! 1. fan-out is held, and leaves its group; release goes on until no ordered subscription has commands in the tiers,
//!    since delivery looks for those in the partition of the same number only;
//! 2. release is held too, and what is in the commands is delivered, or moves to the tiers;
//! 3. partitions are added;
//! 4. fan-out and release start again, with the new number.
//!
//! Events wait meanwhile. Whatever ends the command, the hold ends with it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::confirm;
use crate::cli::exit::{CliError, Exit};
use crate::cli::interrupt::Interrupt;
use crate::cli::print::{self, Output, Row};
use crate::cli::subscriptions::ordered_ids;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::topics as admin;
use crate::edge::kafka::topics::Growth;
use crate::lag::Watcher;
use crate::lag::figures::{Figures, Subscriber};
use crate::model::hold::{HeldRoles, LEASE};
use crate::model::units::{counted, first_of, format_duration, parse_duration};
use crate::positions::GroupRole;
use crate::positions::hold::{Keeper, Members};

/// How long the log of the commands must be seen empty: fan-out's last commands are counted after that.
const SETTLED: Duration = Duration::from_secs(2);

/// `hookstream topics add-partitions`.
#[derive(Args, Clone, Debug)]
pub struct AddArgs {
    /// Partitions of webhook-commands, the retry topics and webhook-dead-letters afterwards
    #[arg(value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    partitions: i32,
    /// How long to wait for pending commands before giving up; events wait meanwhile
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    wait: Duration,
    /// Do not wait for retries of ordered subscriptions: commands behind them may be sent before them
    #[arg(long)]
    reorder: bool,
    /// Print what would be added, without adding it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Row for Growth {
    const HEADINGS: &'static [&'static str] = &["TOPIC", "BEFORE", "PARTITIONS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.topic.clone(),
            self.before.to_string(),
            self.partitions.to_string(),
        ]
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the number is too small, roles do not stop, commands do not end in time, or a broker refuses. Partitions
/// were added to all topics, to none, or (exit code 3) to those that the message names.
pub(super) async fn run(settings: &Settings, args: &AddArgs) -> Result<Exit, CliError> {
    if !(args.dry_run || args.yes) {
        confirm::can_ask("topics add-partitions")?;
    }
    let growths = plan(settings, args.partitions).await?;
    if growths.is_empty() {
        print::note(&format!(
            "all topics have {} already",
            counted(u64::from(args.partitions.unsigned_abs()), "partition")
        ));
        return Ok(Exit::Done);
    }
    if args.dry_run {
        print::rows(args.output, &growths)?;
        return Ok(Exit::Done);
    }
    let interrupt = Interrupt::watch()?;
    if !args.yes {
        print::note(&print::draw(&growths));
        let question = "Hold fan-out and release, and add these partitions?";
        if !confirm::ask(question, "nothing was added", &interrupt)? {
            return Ok(match interrupt.is_raised() {
                true => Exit::Interrupted,
                false => Exit::Done,
            });
        }
    }
    let ordered = match args.reorder {
        true => Vec::new(),
        false => ordered_ids(settings)?,
    };
    let waiting = Waiting::begin(settings, args, &interrupt)?;
    waiting.until_drained(&ordered)?;
    waiting.check()?;
    if let Err(failure) = admin::grow(settings, &growths).await {
        let left = plan(settings, args.partitions).await?;
        let exit = match left.len() == growths.len() {
            true => Exit::Failure,
            false => Exit::Partial,
        };
        let message = format!("{failure}; run the same command again when the cause is gone");
        return Err(CliError::new(exit, message));
    }
    waiting.until_visible(&growths).await?;
    drop(waiting);
    print::note(
        "fan-out and release start again within 3 s; deliver reads the new partitions within 20 s",
    );
    print::rows(args.output, &growths)?;
    Ok(Exit::Done)
}

async fn plan(settings: &Settings, partitions: i32) -> Result<Vec<Growth>, CliError> {
    let specs = admin::topics(settings);
    let cluster = admin::describe(settings, &specs).await?;
    let commands = settings.topics.commands();
    admin::growths(&specs, &cluster, &commands, partitions)
        .map_err(|why| CliError::new(Exit::Failure, why))
}

/// What is not at its end yet, in one line; `None` when partitions may be added.
fn pending(figures: &[Subscriber], ordered: &[String], tiers: bool) -> Option<String> {
    let ready: u64 = figures.iter().map(|subscriber| subscriber.ready).sum();
    let mut waiting: BTreeMap<&str, u64> = BTreeMap::new();
    let all = figures
        .iter()
        .flat_map(|subscriber| &subscriber.subscriptions);
    for one in all.filter(|one| tiers && one.waiting > 0) {
        if ordered.contains(&one.name) {
            *waiting.entry(&one.name).or_default() += one.waiting;
        }
    }
    let mut parts = Vec::new();
    if ready > 0 {
        parts.push(format!(
            "{} in the commands topic",
            counted(ready, "command")
        ));
    }
    if !waiting.is_empty() {
        let total: u64 = waiting.values().sum();
        let names: Vec<_> = waiting.keys().copied().collect();
        parts.push(format!(
            "{} of ordered subscriptions in the retry topics ({})",
            counted(total, "command"),
            first_of(&names)
        ));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The hold, and the end of the wait.
struct Waiting<'a> {
    settings: &'a Settings,
    interrupt: &'a Interrupt,
    keeper: Keeper,
    members: Members,
    until: Instant,
    limit: Duration,
}

impl<'a> Waiting<'a> {
    fn begin(
        settings: &'a Settings,
        args: &AddArgs,
        interrupt: &'a Interrupt,
    ) -> Result<Self, CliError> {
        let roles = [GroupRole::Fanout, GroupRole::Release];
        let members = Members::of(settings, &roles)?;
        let keeper = Keeper::begin(settings, HeldRoles::FANOUT)?;
        let waiting = Self {
            settings,
            interrupt,
            keeper,
            members,
            until: clock::instant() + args.wait,
            limit: args.wait,
        };
        waiting.until_left(GroupRole::Fanout)?;
        Ok(waiting)
    }

    /// Waits until the role has left its group.
    fn until_left(&self, role: GroupRole) -> Result<(), CliError> {
        const EVERY: Duration = Duration::from_millis(500);
        let began = clock::instant();
        loop {
            let members = self.members.list(role)?;
            if members.is_empty() {
                print::note(&format!("{} is held", role.as_str()));
                return Ok(());
            }
            // Those of this version leave within a few seconds, after what is under way.
            if clock::instant() - began > LEASE * 2 {
                let message = format!(
                    "{} goes on: {}; stop it, since versions before this one do not hold, and run the same command again",
                    role.as_str(),
                    members.join(", ")
                );
                return Err(CliError::new(Exit::Failure, message));
            }
            self.go_on(|| format!("{} stops", role.as_str()))?;
            std::thread::sleep(EVERY);
        }
    }

    /// Waits until nothing is in the commands, and nothing ordered in the tiers; holds release on the way.
    fn until_drained(&self, ordered: &[String]) -> Result<(), CliError> {
        const EVERY: Duration = Duration::from_secs(1);
        let mut watcher = Watcher::new(self.settings)?;
        let stop = || self.interrupt.is_raised();
        let (mut is_held, mut last, mut since) = (false, String::new(), None::<Instant>);
        while let Some(figures) = watcher.next(EVERY, &stop)? {
            let Figures { subscribers, .. } = figures;
            match pending(&subscribers, ordered, !is_held) {
                Some(left) => {
                    since = None;
                    self.go_on(|| left.clone())?;
                    if left != last {
                        print::note(&format!("waiting for {left}"));
                        last = left;
                    }
                }
                None => {
                    let now = clock::instant();
                    let settled = now - *since.get_or_insert(now) >= SETTLED;
                    if settled && is_held {
                        // Not dropped: each client would first wait for the response to its last fetch.
                        std::mem::forget(watcher);
                        return Ok(());
                    }
                    if settled {
                        self.keeper.change(HeldRoles::BOTH);
                        self.until_left(GroupRole::Release)?;
                        (is_held, since) = (true, None);
                    }
                }
            }
        }
        std::mem::forget(watcher);
        Err(self.interrupted())
    }

    /// Waits until every broker that is asked knows the partitions.
    async fn until_visible(&self, growths: &[Growth]) -> Result<(), CliError> {
        const EVERY: Duration = Duration::from_millis(500);
        let most = growths.iter().map(|growth| growth.partitions).max();
        while let Some(growth) = plan(self.settings, most.unwrap_or(1)).await?.first() {
            self.go_on(|| format!("the new partitions of {}", growth.topic))?;
            tokio::time::sleep(EVERY).await;
        }
        Ok(())
    }

    /// Nobody may have started again by now.
    fn check(&self) -> Result<(), CliError> {
        for role in [GroupRole::Fanout, GroupRole::Release] {
            let members = self.members.list(role)?;
            if !members.is_empty() {
                let message = format!(
                    "nothing was added: {} has started again meanwhile: {}; run the same command again",
                    role.as_str(),
                    members.join(", ")
                );
                return Err(CliError::new(Exit::Failure, message));
            }
        }
        self.go_on(|| "the last look".to_owned())
    }

    /// Whether to wait any longer, for `what`.
    fn go_on(&self, what: impl Fn() -> String) -> Result<(), CliError> {
        if self.interrupt.is_raised() {
            return Err(self.interrupted());
        }
        if let Some(why) = self.keeper.lapsed() {
            let message = format!(
                "nothing was added: the hold of fan-out and release may have ended: {why}; run the same command again"
            );
            return Err(CliError::new(Exit::Failure, message));
        }
        if clock::instant() >= self.until {
            let message = format!(
                "nothing was added: after {} there is still to wait for {}; see `hookstream lag --once`, then run the same command again, with a longer --wait, or with --reorder where order does not matter",
                format_duration(self.limit),
                what()
            );
            return Err(CliError::new(Exit::Failure, message));
        }
        Ok(())
    }

    fn interrupted(&self) -> CliError {
        let message = "interrupted; nothing was added, and fan-out and release start again";
        CliError::new(Exit::Interrupted, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, ready: u64, waiting: u64) -> Subscriber {
        Subscriber {
            name: name.to_owned(),
            ready,
            waiting,
            ..Subscriber::default()
        }
    }

    #[test]
    fn only_commands_and_ordered_retries_are_waited_for() {
        let figures = [
            Subscriber {
                subscriptions: vec![one("plain", 2, 5), one("strict", 0, 3)],
                ..one("acme", 2, 8)
            },
            Subscriber {
                subscriptions: vec![one("subject", 0, 1)],
                ..one("globex", 0, 1)
            },
        ];
        let ordered = ["strict".to_owned(), "subject".to_owned()];
        assert_eq!(
            pending(&figures, &ordered, true).unwrap(),
            "2 commands in the commands topic, 4 commands of ordered subscriptions in the retry topics (strict, subject)"
        );
        assert_eq!(
            pending(&figures, &ordered, false).unwrap(),
            "2 commands in the commands topic",
            "release is held: what is in the tiers stays there"
        );
        assert_eq!(pending(&figures[1..], &[], true), None);
        assert_eq!(pending(&figures[1..], &ordered, false), None);
    }
}
