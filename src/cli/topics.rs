//! `hookstream topics create|check`: make the topics, and name what differs with the command that mends it.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{CliError, Exit};
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::kafka::topics as admin;
use crate::edge::kafka::topics::{Cluster, Creation, Difference, TopicSpec, Wish};

/// `hookstream topics`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Create the topics that are missing; existing ones are left alone
    Create(CreateArgs),
    /// Name every difference between the topics and what they should be
    Check(CheckArgs),
}

/// `hookstream topics create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Partitions of commands, retry tiers and dead letters [default: as many as there are, or 12]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    partitions: Option<i32>,
    /// Copies of each partition [default: 3, or one for each broker when there are fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=32_767))]
    replication_factor: Option<i32>,
    /// Create missing event topics too
    #[arg(id = "with-events", long)]
    events: bool,
    /// Print what would be created, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream topics check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Copies of each partition that are wanted [default: 3, or one for each broker when there are fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=32_767))]
    replication_factor: Option<i32>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the broker does not answer or denies, or a topic could not be created.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CliError::new(Exit::Failure, format!("cannot start a runtime: {error}"))
        })?;
    runtime.block_on(async {
        match command {
            Command::Create(args) => create(settings, args).await,
            Command::Check(args) => check(settings, args).await,
        }
    })
}

impl Row for Difference {
    const HEADINGS: &'static [&'static str] = &["TOPIC", "SETTING", "FOUND", "WANTED", "MENDED BY"];

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

/// What became of one topic.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    creation: Creation,
    result: &'static str,
}

impl Row for Outcome {
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
    let specs = admin::topics(settings);
    let wish = Wish {
        partitions: args.partitions,
        replication: args.replication_factor,
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
    let mut outcomes: Vec<_> = creations
        .into_iter()
        .zip(results)
        .map(|(creation, result)| Outcome { creation, result })
        .collect();
    outcomes.extend(specs.iter().filter_map(|spec| existing(spec, &cluster)));
    print::rows(args.output, &outcomes)?;
    report_differences(settings, &specs, &cluster, wish);
    match failures.as_slice() {
        [] => Ok(Exit::Done),
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
                    "the broker did not answer for the topic {}",
                    creation.topic
                ));
            }
        }
    }
    Ok((results, failures))
}

fn existing(spec: &TopicSpec, cluster: &Cluster) -> Option<Outcome> {
    let found = cluster.topics.get(&spec.name)?;
    let creation = Creation {
        topic: spec.name.clone(),
        partitions: found.partitions,
        replication_factor: found.replication,
        config: std::collections::BTreeMap::new(),
    };
    Some(Outcome {
        creation,
        result: "exists",
    })
}

/// What exists is left alone, but not passed over in silence.
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
                "{topic}: {setting} is {found}, should be {wanted}; mended by: {mend}"
            ));
        }
    }
}

async fn check(settings: &Settings, args: &CheckArgs) -> Result<Exit, CliError> {
    let specs = admin::topics(settings);
    let wish = Wish {
        partitions: None,
        replication: args.replication_factor,
    };
    let cluster = admin::describe(settings, &specs)
        .await
        .map_err(|failure| print::failed(&failure))?;
    let differences = admin::differences(settings, &specs, &cluster, wish);
    print::rows(args.output, &differences)?;
    if differences.is_empty() {
        print::note(&format!("all {} topics are as they should be", specs.len()));
        return Ok(Exit::Done);
    }
    print::note(&format!("settings that differ: {}", differences.len()));
    Ok(Exit::Failure)
}
