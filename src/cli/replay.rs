//! `hookstream replay --dead-letters`: sends open dead letters again.

use std::time::Duration;

use clap::Args;

use super::dead_letters::{FilterArgs, parse_time};
use super::exit::{CliError, Exit};
use super::print::Output;
use super::settle::{How, execute};
use crate::config::Settings;
use crate::model::units::EpochMs;
use crate::replay::Plan;

/// `hookstream replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Replay open dead letters, each exactly once
    #[arg(long)]
    dead_letters: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Maximum number of dead letters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Maximum rate of dead letters per second (50, 50/s) or minute (30/m)
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    rate: Option<Rate>,
    /// Also replay dead letters that were replayed on another cluster at or after this time: after an unplanned failover,
    /// the mirror may lack their commands. RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    again_since: Option<EpochMs>,
    /// Print what would be replayed, by subscriber and reason, without replaying it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The time between two dead letters.
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
    if !args.dead_letters {
        return Err(CliError::new(
            Exit::Usage,
            "specify what to replay: --dead-letters replays open dead letters",
        ));
    }
    let filter = args.filter.filter()?;
    let plan = Plan {
        filter,
        discards: false,
        limit: args.limit,
        pace: args.rate.map(|rate| rate.0),
        again_since: args.again_since,
    };
    let how = How {
        dry_run: args.dry_run,
        yes: args.yes,
        output: args.output,
    };
    execute(settings, plan, how)
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
}
