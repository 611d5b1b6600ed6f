//! `hookstream topics create|check|add-partitions`: creates the topics, lists differences with the command that fixes each,
//! and adds partitions.

mod add_partitions;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{CliError, Exit, runtime};
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::topics as admin;
use crate::edge::kafka::topics::{Cluster, Creation, Difference, TopicSpec, Wish};
use crate::edge::kafka::wait::KeepWaiting;
use crate::model::units::{counted, parse_duration};
use crate::positions::{GroupRole, start};

/// `hookstream topics`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Create missing topics; existing ones are not changed
    Create(CreateArgs),
    /// List every difference between the actual and the expected topic settings
    Check(CheckArgs),
    /// Add partitions: holds fan-out and release, waits for pending commands, adds, and lets them start again
    AddPartitions(add_partitions::AddArgs),
}

/// `hookstream topics create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Partitions of the commands, retry tier and dead-letter topics [default: as many as exist, or 12]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    partitions: Option<i32>,
    /// Commands per second to choose the number of partitions for, with spare ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000), conflicts_with = "partitions")]
    expected_rate: Option<u32>,
    /// How long commands and retries are kept: longer than any outage of deliver or release [default: 14d]
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    retention: Option<Duration>,
    /// Replication factor [default: 3, or the number of brokers if there are fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=32_767))]
    replication_factor: Option<i32>,
    /// Also create missing event topics
    #[arg(id = "with-events", long)]
    events: bool,
    /// Print what would be created, without creating it
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream topics check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Expected replication factor [default: 3, or the number of brokers if there are fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=32_767))]
    replication_factor: Option<i32>,
    /// How long commands and retries are expected to be kept [default: 14d]
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    retention: Option<Duration>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A retention: at least an hour, or a short outage already loses work.
fn retention(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(60 * 60);
    let retention = parse_duration(text)?;
    if retention < LEAST {
        return Err("must be at least 1h, and longer than any outage of deliver".to_owned());
    }
    Ok(retention)
}

fn specs(settings: &Settings, retention: Option<Duration>) -> Vec<TopicSpec> {
    admin::topics_kept(settings, retention.unwrap_or(admin::WORK_RETENTION))
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the broker is unreachable or denies access, or a topic could not be created.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    let runtime = runtime()?;
    runtime.block_on(async {
        match command {
            Command::Create(args) => create(settings, args).await,
            Command::Check(args) => check(settings, args).await,
            Command::AddPartitions(args) => add_partitions::run(settings, args).await,
        }
    })
}

impl Row for Difference {
    const HEADINGS: &'static [&'static str] = &["TOPIC", "SETTING", "FOUND", "EXPECTED", "FIX"];

    fn cells(&self) -> Vec<String> {
        [
            &self.topic,
            &self.setting,
            &self.found,
            &self.wanted,
            &self.mend,
        ]
        .map(Clone::clone)
        .to_vec()
    }
}

/// The result for one topic.
#[derive(Serialize)]
struct TopicResult {
    #[serde(flatten)]
    creation: Creation,
    result: &'static str,
}

impl Row for TopicResult {
    const HEADINGS: &'static [&'static str] =
        &["TOPIC", "RESULT", "PARTITIONS", "REPLICATION", "CONFIG"];

    fn cells(&self) -> Vec<String> {
        let Creation {
            topic,
            partitions,
            replication_factor,
            config,
        } = &self.creation;
        let config: Vec<_> = config
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        vec![
            topic.clone(),
            self.result.to_owned(),
            partitions.to_string(),
            replication_factor.to_string(),
            config.join(" "),
        ]
    }
}

async fn create(settings: &Settings, args: &CreateArgs) -> Result<Exit, CliError> {
    let specs = specs(settings, args.retention);
    let wish = Wish {
        partitions: args
            .partitions
            .or(args.expected_rate.map(admin::partitions_for)),
        replication: args.replication_factor,
        retention: args.retention,
    };
    let cluster = admin::describe(settings, &specs)
        .await
        .map_err(|failure| print::failed(&failure))?;
    let creations = admin::creations(&specs, &cluster, wish, args.events);
    let wanted = creations.len();
    let (results, failures) = if args.dry_run {
        (vec!["would_create"; creations.len()], Vec::new())
    } else {
        make(settings, &creations).await?
    };
    let mut rows: Vec<_> = creations
        .into_iter()
        .zip(results)
        .map(|(creation, result)| TopicResult { creation, result })
        .collect();
    rows.extend(specs.iter().filter_map(|spec| existing(spec, &cluster)));
    print::rows(args.output, &rows)?;
    report_differences(settings, &specs, &cluster, wish);
    let common = cluster.common_partitions(&specs, wish);
    if let Some(wished) = wish.partitions.filter(|&wished| wished < common) {
        print::note(&format!(
            "there are topics with {common} partitions, which Kafka cannot remove, so new topics get {common}, not {wished}"
        ));
    }
    match failures.as_slice() {
        [] if args.dry_run => Ok(Exit::Done),
        [] => begin(settings, &rows),
        some => {
            let exit = if some.len() == wanted {
                Exit::Failure
            } else {
                Exit::Partial
            };
            Err(CliError::new(exit, some.join("\n")))
        }
    }
}

/// Commits where fan-out begins to read the event topics that exist, so that what is published from now on is delivered.
fn begin(settings: &Settings, rows: &[TopicResult]) -> Result<Exit, CliError> {
    /// How long to wait for brokers, and for other replicas that begin.
    const PATIENCE: Duration = Duration::from_secs(60);
    const AGAIN: Duration = Duration::from_millis(200);
    let is_there = |topic: &&String| rows.iter().any(|row| row.creation.topic == **topic);
    let topics: Vec<String> = settings
        .topics
        .events
        .iter()
        .filter(is_there)
        .cloned()
        .collect();
    let until = clock::instant() + PATIENCE;
    let keep_waiting: KeepWaiting = Arc::new(move || clock::instant() < until);
    let failed = |why: String| {
        let message = format!(
            "the topics exist, but where to begin reading {} is not committed, so fan-out decides it at its first start: {why}",
            topics.join(", ")
        );
        CliError::new(Exit::Partial, message)
    };
    if topics.is_empty() {
        return Ok(Exit::Done);
    }
    let begun = loop {
        match start::begin(settings, GroupRole::Fanout, &topics, &keep_waiting, None) {
            // The brokers do not know yet what was just created.
            Err(Failure::TopicMissing(_)) if keep_waiting() => std::thread::sleep(AGAIN),
            begun => break begun,
        }
    };
    match begun {
        Ok(true) => Ok(Exit::Done),
        Ok(false) => Err(failed("no decision within 60 s, see the log".to_owned())),
        // For the roles to report: the topics are as they should be.
        Err(failure @ Failure::PositionsLost(_)) => {
            print::note(&failure.to_string());
            Ok(Exit::Done)
        }
        Err(failure) => Err(failed(failure.to_string())),
    }
}

async fn make(
    settings: &Settings,
    creations: &[Creation],
) -> Result<(Vec<&'static str>, Vec<String>), CliError> {
    let answers = admin::create(settings, creations)
        .await
        .map_err(|failure| print::failed(&failure))?;
    let mut failures = Vec::new();
    let mut results = Vec::new();
    for creation in creations {
        let answer = answers.iter().find(|(name, _)| *name == creation.topic);
        match answer {
            Some((_, Ok(()))) => results.push("created"),
            Some((_, Err(failure))) => {
                results.push("failed");
                failures.push(failure.to_string());
            }
            None => {
                results.push("failed");
                failures.push(format!(
                    "the broker returned no result for the topic {}",
                    creation.topic
                ));
            }
        }
    }
    Ok((results, failures))
}

fn existing(spec: &TopicSpec, cluster: &Cluster) -> Option<TopicResult> {
    let found = cluster.topics.get(&spec.name)?;
    let creation = Creation {
        topic: spec.name.clone(),
        partitions: found.partitions,
        replication_factor: found.replication,
        config: std::collections::BTreeMap::new(),
    };
    Some(TopicResult {
        creation,
        result: "exists",
    })
}

/// Reports differences of existing topics, which are not changed.
fn report_differences(settings: &Settings, specs: &[TopicSpec], cluster: &Cluster, wish: Wish) {
    for found in admin::differences(settings, specs, cluster, wish) {
        if found.setting != "existence" {
            let Difference {
                topic,
                setting,
                found,
                wanted,
                mend,
            } = found;
            print::note(&format!(
                "{topic}: {setting} is {found}, expected {wanted}; fix: {mend}"
            ));
        }
    }
}

async fn check(settings: &Settings, args: &CheckArgs) -> Result<Exit, CliError> {
    let specs = specs(settings, args.retention);
    let wish = Wish {
        partitions: None,
        replication: args.replication_factor,
        retention: args.retention,
    };
    let cluster = admin::describe(settings, &specs)
        .await
        .map_err(|failure| print::failed(&failure))?;
    let differences = admin::differences(settings, &specs, &cluster, wish);
    print::rows(args.output, &differences)?;
    if let Some(why) = &cluster.broker_configs_unknown {
        print::note(&format!(
            "the settings of the brokers were not compared: {why}"
        ));
    }
    if differences.is_empty() {
        print::note(&format!("all {} topics are correct", specs.len()));
        return Ok(Exit::Done);
    }
    let count = counted(differences.len() as u64, "difference");
    print::note(&format!("{count} found"));
    Ok(Exit::Failure)
}
