//! The command line: the commands and their settings.
//!
//! Settings are global flags, generated from the table in `config/table.rs`; they may precede or follow the command. Data
//! goes to standard output, everything else to standard error.

mod completions;
mod confirm;
mod curl;
pub mod dead_letters;
pub mod demo;
mod documents;
pub mod exit;
pub mod interrupt;
pub mod invalid_events;
pub mod lag;
mod logging;
pub mod positions;
pub mod print;
pub mod progress;
pub mod publish;
pub mod receive;
mod receiving;
pub mod replay;
mod samples;
mod settle;
mod sources;
pub mod subscriptions;
pub mod topics;
pub mod trace;

use std::ffi::OsString;
use std::io::Write as _;

use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::table::SETTINGS;
use crate::config::{self, EffectiveSetting, Layers, Machine, Settings};
use crate::wiring::{self, Role, ServiceError};
use exit::{CliError, Exit};
use print::{Output, Row};

/// Events on Kafka become signed webhooks.
#[derive(Parser, Debug)]
#[command(name = "hookstream", version, about, long_about = None, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Read events and write a command for each matching subscription
    Fanout,
    /// Send commands to their endpoints
    Deliver,
    /// Move due retries from the retry tiers back to the commands topic
    Release,
    /// Show pending commands per subscriber: runs the lag role, or prints with --once or --watch
    Lag(lag::LagArgs),
    /// Run all roles in one process
    Run,
    /// Run a demonstration with sample data, on an embedded broker or the one of --brokers
    Demo(demo::DemoArgs),
    /// Write sample events, or given ones, to an event topic
    Publish(publish::PublishArgs),
    /// Receive webhooks on this machine: verify and print them, or fail on demand
    Receive(receive::ReceiveArgs),
    /// Send dead letters again, each exactly once; or the events of a time range
    Replay(replay::ReplayArgs),
    /// List and show dead letters
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// List, show and replay records that were set aside
    #[command(subcommand)]
    InvalidEvents(invalid_events::Command),
    /// Show the timeline of one event: every record about it, in order
    Trace(trace::TraceArgs),
    /// Manage subscriptions
    #[command(subcommand)]
    Subscriptions(subscriptions::Command),
    /// Create and check the topics
    #[command(subcommand)]
    Topics(topics::Command),
    /// Show and set the committed offsets of the groups, and move them to a mirrored cluster
    #[command(subcommand)]
    Positions(positions::Command),
    /// Print the effective settings and their sources
    Config {
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print a shell completion script, to be sourced: `source <(hookstream completions bash)`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual pages in roff format
    Man,
}

/// The version, with the commit if the build knows it.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    match option_env!("HOOKSTREAM_COMMIT") {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_owned(),
    }
}

/// The command line with all settings.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Cli::command().next_help_heading("Settings");
    for setting in SETTINGS {
        let help = match setting.default {
            "" => format!("{} ({})", setting.help, setting.range),
            default => format!("{} ({}) [default: {default}]", setting.help, setting.range),
        };
        let arg = Arg::new(setting.name)
            .long(setting.name)
            .global(true)
            .help(help);
        command = command.arg(if setting.is_switch() {
            // A flag can also turn off what the environment or the file turns on.
            arg.value_name("true|false")
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
        } else {
            arg.value_name(setting.value)
                .action(ArgAction::Set)
                .allow_hyphen_values(false)
        });
    }
    command
        .version(version())
        .arg(
            // Handled before the command line is parsed.
            Arg::new("help-settings")
                .long("help-settings")
                .global(true)
                .action(ArgAction::SetTrue)
                .help_heading("Options")
                .help("Print help with the settings, which every command has"),
        )
        .arg(
            Arg::new("x")
                .short('X')
                .value_name("KEY=VALUE")
                .global(true)
                .action(ArgAction::Append)
                .help("librdkafka property, for example for TLS or SASL; may be repeated"),
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .global(true)
                .help("TOML file of settings, with the flag names without leading dashes as keys, and a table [x] of librdkafka properties"),
        )
}

/// The flag that prints the help of a command with all settings.
const HELP_SETTINGS: &str = "--help-settings";

/// The command line as it is parsed: its help lists the flags of a command only, unless it `lists_settings`.
fn parser(lists_settings: bool) -> clap::Command {
    let is_setting = |id: &str| {
        matches!(id, "x" | "config") || SETTINGS.iter().any(|setting| setting.name == id)
    };
    command().mut_args(|arg| {
        let hides = !lists_settings && is_setting(arg.get_id().as_str());
        arg.hide(hides)
    })
}

/// Runs a command line and returns its exit code; messages go to standard error.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(candidates) = completions::candidates(&arguments, || parser(false), unfinished) {
        // A closed pipe is not an error.
        std::io::stdout().write_all(&candidates).ok();
        return Exit::Done;
    }
    let asks = arguments
        .iter()
        .position(|argument| argument == HELP_SETTINGS);
    if let Some(asks) = asks {
        arguments[asks] = "--help".into();
    }
    let matches = match parser(asks.is_some()).try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are data; a closed pipe is not an error.
            error.print().ok();
            return if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
        }
    };
    match dispatch(&matches) {
        Ok(exit) => exit,
        Err(error) => {
            print::note(&format!("hookstream: {error}"));
            error.exit
        }
    }
}

/// The settings of an unfinished command line, as far as it goes.
fn unfinished(words: &[OsString]) -> Option<Settings> {
    let unfinished = parser(false).ignore_errors(true);
    let matches = unfinished.try_get_matches_from(words).ok()?;
    let matches = deepest(&matches);
    let layers = sources::layers(matches);
    let settings = Settings::check(&layers, &machine()).ok()?;
    sources::follow(matches, &layers, &settings).ok()?;
    Some(settings)
}

fn dispatch(matches: &ArgMatches) -> Result<Exit, CliError> {
    let cli = Cli::from_arg_matches(matches)
        .map_err(|error| CliError::new(Exit::Usage, error.to_string()))?;
    match &cli.command {
        Command::Completions { shell } => {
            return print_text(&completions::script(*shell));
        }
        Command::Man => return manual(),
        Command::Receive(args) => return receive::run(args),
        _ => {}
    }
    let machine = machine();
    let mut layers = sources::layers(deepest(matches));
    let unknown = unknown_variables();
    match &cli.command {
        Command::Config { output } => {
            unknown.iter().for_each(|warning| print::note(warning));
            return print_config(&layers, &machine, *output);
        }
        Command::Demo(_) => demo::prepare(&mut layers),
        _ => {}
    }
    let settings = check(&layers, &machine)?;
    logging::start(&layers)?;
    unknown
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    sources::follow(deepest(matches), &layers, &settings)?;
    match cli.command {
        Command::Fanout => run_roles(&settings, &[Role::Fanout]),
        Command::Deliver => run_roles(&settings, &[Role::Deliver]),
        Command::Release => run_roles(&settings, &[Role::Release]),
        Command::Lag(args) => lag::run(&settings, &args),
        Command::Run => run_roles(&settings, &Role::ALL),
        Command::Demo(args) => demo::run(settings, &args),
        Command::Publish(args) => publish::run(&settings, &args),
        Command::Replay(args) => replay::run(&settings, &args),
        Command::DeadLetters(command) => dead_letters::run(&settings, &command),
        Command::InvalidEvents(command) => invalid_events::run(&settings, &command),
        Command::Trace(args) => trace::run(&settings, &args),
        Command::Subscriptions(command) => subscriptions::run(&settings, &command),
        Command::Topics(command) => topics::run(&settings, &command),
        Command::Positions(command) => positions::run(&settings, &command),
        Command::Config { .. }
        | Command::Completions { .. }
        | Command::Man
        | Command::Receive(_) => Ok(Exit::Done),
    }
}

/// The matches of the innermost command, which hold the global flags.
fn deepest(matches: &ArgMatches) -> &ArgMatches {
    let mut innermost = matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    innermost
}

fn machine() -> Machine {
    let host_name = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "hookstream".to_owned());
    Machine {
        host_name,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn unknown_variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    config::unknown_variables(names)
        .into_iter()
        .map(|name| format!("unknown setting {name} in the environment, ignored"))
        .collect()
}

fn check(layers: &Layers, machine: &Machine) -> Result<Settings, CliError> {
    Settings::check(layers, machine).map_err(|mistakes| match mistakes.as_slice() {
        [one] => CliError::new(Exit::Usage, one.clone()),
        many => CliError::new(
            Exit::Usage,
            format!("{} invalid settings:\n  {}", many.len(), many.join("\n  ")),
        ),
    })
}

impl Row for EffectiveSetting {
    const HEADINGS: &'static [&'static str] = &["SETTING", "VALUE", "SOURCE"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.value.clone(),
            self.source.to_owned(),
        ]
    }
}

/// Prints the effective settings, even if some are invalid, and then the errors.
fn print_config(layers: &Layers, machine: &Machine, output: Output) -> Result<Exit, CliError> {
    print::rows(output, &config::effective(layers, machine))?;
    check(layers, machine).map(|_| Exit::Done)
}

/// One page per command, each after its parent's.
fn manual() -> Result<Exit, CliError> {
    let mut pages = Vec::new();
    manual_page(command(), "hookstream", &mut pages).map_err(|error| {
        CliError::new(Exit::Failure, format!("cannot write the manual: {error}"))
    })?;
    print_text(&pages)
}

fn manual_page(command: clap::Command, path: &str, pages: &mut Vec<u8>) -> std::io::Result<()> {
    let inner: Vec<_> = command.get_subcommands().cloned().collect();
    let command = command.bin_name(path).display_name(path.replace(' ', "-"));
    clap_mangen::Man::new(command)
        .source(format!("hookstream {}", version()))
        .render(pages)?;
    for command in inner {
        let path = format!("{path} {}", command.get_name());
        manual_page(command, &path, pages)?;
    }
    Ok(())
}

fn print_text(text: &[u8]) -> Result<Exit, CliError> {
    print::line(String::from_utf8_lossy(text).trim_end())?;
    Ok(Exit::Done)
}

fn run_roles(settings: &Settings, roles: &[Role]) -> Result<Exit, CliError> {
    wiring::run(settings, roles)?;
    Ok(Exit::Done)
}

impl From<ServiceError> for CliError {
    fn from(error: ServiceError) -> Self {
        let exit = match error {
            ServiceError::Access(_) => Exit::Usage,
            _ => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn the_command_line_is_valid() {
        command().debug_assert();
    }

    #[test]
    fn connection_settings_that_cannot_work_are_usage_errors() {
        let broken = tempfile::NamedTempFile::new().unwrap();
        let authorities = format!("ssl.ca.location={}", broken.path().display());
        let sasl = "security.protocol=SASL_SSL";
        for properties in [
            &[sasl, "sasl.mechanism=OAUTHBEARER"][..],
            &["sasl.mechanism=OAUTHBEARER"],
            &[sasl, "sasl.mechanism=GSSAPI"],
            &[sasl],
            &[sasl, "sasl.mechanism=PLAIN", "sasl.username=me"],
            &["security.protocol=SSL", &authorities],
        ] {
            let mut line = vec!["hookstream", "topics", "check", "--brokers", "127.0.0.1:9"];
            line.extend(properties.iter().flat_map(|property| ["-X", *property]));
            let exit = main(line.into_iter().map(OsString::from));
            assert_eq!(exit, Exit::Usage, "{properties:?}");
        }
    }

    #[test]
    fn the_help_of_a_command_lists_its_own_flags_and_the_settings_on_request() {
        let help = |lists_settings: bool| {
            let line = ["hookstream", "dead-letters", "list", "--help"];
            parser(lists_settings)
                .try_get_matches_from(line)
                .unwrap_err()
                .to_string()
        };
        let (short, long) = (help(false), help(true));
        for own in ["--error-contains", "--columns", "--help-settings"] {
            assert!(short.contains(own) && long.contains(own), "{own}: {short}");
        }
        for setting in ["--topic-prefix", "--config", "-X "] {
            assert!(
                !short.contains(setting) && long.contains(setting),
                "{setting}: {short}"
            );
        }
    }

    #[test]
    fn settings_may_precede_or_follow_the_command() {
        for line in [
            ["hookstream", "--brokers", "b:1", "fanout"],
            ["hookstream", "fanout", "--brokers", "b:1"],
        ] {
            let matches = command().try_get_matches_from(line).unwrap();
            let layers = sources::layers(deepest(&matches));
            let settings = Settings::check(&layers, &machine()).unwrap();
            assert_eq!(settings.brokers, "b:1");
        }
    }

    #[test]
    fn a_switch_is_true_without_a_value_and_can_be_turned_off() {
        let switches = |line: &[&str]| {
            let line = [&["hookstream", "deliver", "--brokers", "b:1"], line].concat();
            let matches = command().try_get_matches_from(line).unwrap();
            let mut layers = sources::layers(deepest(&matches));
            layers.give("attempt-log", Source::Environment, "true");
            Settings::check(&layers, &machine())
                .map(|settings| (settings.attempt_log, settings.egress.allow_http))
        };
        assert_eq!(switches(&["--egress-allow-http"]), Ok((true, true)));
        assert_eq!(
            switches(&["--attempt-log=false", "--egress-allow-http=true"]),
            Ok((false, true))
        );
        // A value needs an equals sign.
        assert_eq!(
            switches(&["--attempt-log", "--timeout", "5s"]),
            Ok((true, false))
        );
        let wrong = switches(&["--attempt-log=perhaps"]).unwrap_err();
        assert!(wrong[0].contains("allowed: true or false"), "{wrong:?}");
    }

    #[test]
    fn the_manual_has_a_page_for_every_command() {
        let mut pages = Vec::new();
        manual_page(command(), "hookstream", &mut pages).unwrap();
        let pages = String::from_utf8(pages).unwrap();
        for title in [
            "hookstream",
            "hookstream-replay",
            "hookstream-dead-letters-show",
            "hookstream-topics-check",
        ] {
            assert!(
                pages
                    .lines()
                    .any(|line| line.starts_with(&format!(".TH {title} "))),
                "{title} is missing"
            );
        }
    }
}
