//! `hookstream replay`: sends open dead letters, or the events of a time range, again.

pub(super) mod events;

use std::time::Duration;

use clap::Args;

use self::events::{Range, execute as execute_events};
use super::dead_letters::{FilterArgs, parse_time};
use super::exit::{CliError, Exit};
use super::print::Output;
use super::settle::{How, execute};
use super::subscriptions::{Chosen, Label, apply_elsewhere, chosen, parse_label};
use crate::config::Settings;
use crate::edge::clock;
use crate::model::units::EpochMs;
use crate::replay::Plan;

/// `hookstream replay`.
#[derive(Args, Clone, Debug)]
#[group(id = "replayed", required = true, multiple = false, args = ["dead_letters", "from"])]
pub struct ReplayArgs {
    /// Replay open dead letters, each exactly once
    #[arg(long)]
    dead_letters: bool,
    /// Send the events that were published at or after this time again, with the same webhook ids, to the subscriptions of
    /// --subscription, --subscriber, --selector or --all: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<EpochMs>,
    /// With --from: the end of the time range, exclusive [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "from")]
    to: Option<EpochMs>,
    /// With --from: to the subscriptions with this label; repeated or separated by commas, all of them
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label, requires = "from")]
    selector: Vec<Label>,
    /// With --from: to all subscriptions
    #[arg(long, requires = "from", conflicts_with_all = ["selector", "subscription", "subscriber"])]
    all: bool,
    /// With --from: also send what an earlier run of the same replay has sent
    #[arg(long, requires = "from")]
    again: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// With --dead-letters and --subscription: send them to this URL instead. Deliver sends them, by its egress rules and
    /// with the subscription's secrets, without its other credentials and headers
    #[arg(long, value_name = "URL", requires_all = ["dead_letters", "subscription"])]
    to_endpoint: Option<String>,
    /// Maximum number of webhooks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Maximum rate of webhooks per second (50, 50/s) or minute (30/m)
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    rate: Option<Rate>,
    /// Also replay dead letters that were replayed on another cluster at or after this time: after an unplanned failover,
    /// the mirror may lack their commands. RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "from")]
    again_since: Option<EpochMs>,
    /// Print what would be replayed, without replaying it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The time between two webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(Duration);

fn parse_rate(text: &str) -> Result<Rate, String> {
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => {
            return Err(format!(
                "{text:?} is not a rate; use a number per second or minute, such as 50/s or 30/m"
            ));
        }
    };
    match number.parse::<u32>() {
        Ok(number) if number > 0 => Ok(Rate(per / number)),
        _ => Err(format!(
            "{text:?} is not a rate; use a whole number above 0, such as 50/s or 30/m"
        )),
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the replay failed or was interrupted.
pub fn run(settings: &Settings, args: &ReplayArgs) -> Result<Exit, CliError> {
    let how = How {
        dry_run: args.dry_run,
        yes: args.yes,
        output: args.output,
    };
    if let Some(from) = args.from {
        return events(settings, args, from, how);
    }
    let filter = args.filter.filter()?;
    let to_subscription = match (&args.to_endpoint, &args.filter.subscription) {
        (Some(url), Some(id)) => Some(apply_elsewhere(settings, id, url, args.dry_run)?),
        _ => None,
    };
    let plan = Plan {
        filter,
        discards: false,
        limit: args.limit,
        pace: args.rate.map(|rate| rate.0),
        again_since: args.again_since,
        // A preview would not find the subscription that it does not apply.
        to_subscription: to_subscription.filter(|_| !args.dry_run),
    };
    execute(settings, plan, how)
}

/// Filters that say something about dead letters only.
fn of_dead_letters(filter: &FilterArgs) -> Vec<&'static str> {
    let given = [
        ("--reason", filter.reason.is_some()),
        ("--status", filter.status.is_some()),
        ("--webhook-id", filter.webhook_id.is_some()),
        ("--error-contains", filter.error_contains.is_some()),
        ("--since", filter.since.is_some()),
        ("--until", filter.until.is_some()),
    ];
    let given = given.into_iter().filter(|(_, is_given)| *is_given);
    given.map(|(name, _)| name).collect()
}

fn events(
    settings: &Settings,
    args: &ReplayArgs,
    from: EpochMs,
    how: How,
) -> Result<Exit, CliError> {
    let usage = |message: String| CliError::new(Exit::Usage, message);
    let wrong = of_dead_letters(&args.filter);
    if !wrong.is_empty() {
        let wrong = wrong.join(", ");
        return Err(usage(format!(
            "{wrong} selects dead letters, not events; leave it out or use --dead-letters"
        )));
    }
    let now = clock::now();
    let to = args.to.unwrap_or(now);
    if to <= from || from > now {
        return Err(usage(format!(
            "--to ({}) must be later than --from ({}), which must be in the past",
            to.rfc3339(),
            from.rfc3339()
        )));
    }
    let wanted = Chosen {
        id: args.filter.subscription.clone(),
        subscriber: args.filter.subscriber.clone(),
        selector: args.selector.clone(),
        all: args.all,
    };
    if wanted.is_none() {
        return Err(usage(
            "specify to which subscriptions: --subscription ID, --subscriber NAME, --selector KEY=VALUE or --all".to_owned(),
        ));
    }
    let range = Range {
        from,
        to,
        event_type: args.filter.event_type.clone(),
        event_id: args.filter.event_id.clone(),
        limit: args.limit,
        pace: args.rate.map(|rate| rate.0),
        again: args.again,
    };
    execute_events(settings, chosen(settings, &wanted)?, &range, how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_per_second_or_per_minute() {
        assert_eq!(parse_rate("50/s"), Ok(Rate(Duration::from_millis(20))));
        assert_eq!(parse_rate("50"), Ok(Rate(Duration::from_millis(20))));
        assert_eq!(parse_rate("30/m"), Ok(Rate(Duration::from_secs(2))));
        for wrong in ["0", "-1/s", "5/h", "x", "1.5/s", ""] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn filters_of_dead_letters_are_named() {
        let filter = FilterArgs {
            status: Some(500),
            subscriber: Some("acme".to_owned()),
            since: Some(EpochMs(1)),
            ..FilterArgs::default()
        };
        assert_eq!(of_dead_letters(&filter), ["--status", "--since"]);
    }
}
