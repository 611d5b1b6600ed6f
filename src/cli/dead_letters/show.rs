//! `hookstream dead-letters show`.

use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;

use super::list::Listed;
use super::reading::{fold, note_newer, open};
use crate::cli::curl::{self, Webhook};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print::{self, Output};
use crate::config::Settings;
use crate::edge::kafka::log_reader::Range;
use crate::edge::kafka::record::header_pairs;
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};
use crate::model::dead_letter::{Coordinates, DeadLetter, State};
use crate::model::units::{EpochMs, Offset};
use crate::replay;

/// `hookstream dead-letters show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// The place of the dead letter, such as 3:1042, or a webhook id for its latest dead letter
    #[arg(value_name = "PARTITION:OFFSET|WEBHOOK_ID")]
    letter: String,
    /// Print only the body, byte for byte
    #[arg(long, conflicts_with = "output")]
    body: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A dead letter with headers and body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detailed {
    /// The fields of the list.
    #[serde(flatten)]
    pub listed: Listed,
    /// The headers of the record, in order.
    pub headers: Vec<HeaderText>,
    /// The body, if it is UTF-8.
    pub body: Option<String>,
    /// The body, if it is not.
    pub body_base64: Option<String>,
    /// A shell script that sends it again by hand; none if the subscription does not exist.
    pub curl: Option<String>,
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderText {
    /// Its name.
    pub name: String,
    /// Its value; bytes that are not UTF-8 are replaced.
    pub value: String,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the topic cannot be read, or there is no such dead letter.
pub(super) fn run(settings: &Settings, args: &ShowArgs) -> Result<Exit, CliError> {
    let (log, ends) = open(settings)?;
    let place = args.letter.parse::<Coordinates>().ok();
    // A dead letter and the records that settle it are in the same partition.
    let ends: Vec<Range> = ends
        .into_iter()
        .filter(|range| place.is_none_or(|at| at.partition == range.partition))
        .collect();
    let (settled, newer) = fold(&log, &ends)?;
    let mut found: Vec<(EpochMs, Found)> = Vec::new();
    let wanted =
        |letter: &DeadLetter| place.map_or(letter.webhook_id == args.letter, |at| letter.at == at);
    log.read::<CliError>(&from(&ends, place), &|| false, |message| {
        if let Ok(Some(letter)) = replay::decode(message)
            && wanted(&letter)
        {
            let body = message.payload().unwrap_or_default().to_vec();
            let shown = detailed(&letter, settled.state(&letter), message);
            found.push((letter.info.last_failure, Found { shown, body }));
        }
        let beyond = place.is_some_and(|at| message.offset() >= at.offset.0);
        Ok(if beyond {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    found.sort_by_key(|(last_failure, _)| *last_failure);
    let Some((_, mut latest)) = found.pop() else {
        return Err(CliError::new(
            Exit::Failure,
            format!("dead letter {:?} not found", args.letter),
        ));
    };
    if !found.is_empty() {
        let others: Vec<_> = found
            .iter()
            .map(|(_, other)| other.shown.listed.place.as_str())
            .collect();
        print::note(&format!(
            "this is the latest dead letter of the webhook; earlier ones: {}",
            others.join(", ")
        ));
    }
    if args.body {
        print::bytes(&latest.body)?;
        return Ok(note_newer(&newer));
    }
    latest.shown.curl = curl(settings, &latest);
    if args.output == Output::Table {
        print::line(&describe(&latest.shown))?
    } else {
        print::document(args.output, &latest.shown)?
    }
    Ok(note_newer(&newer))
}

/// A dead letter that was found, with its body as it is.
struct Found {
    shown: Detailed,
    body: Vec<u8>,
}

/// The script that sends it again by hand. Without the subscription there is none, and a note says why.
fn curl(settings: &Settings, found: &Found) -> Option<String> {
    let Detailed {
        listed, headers, ..
    } = &found.shown;
    let read = SubscriptionLog::open(settings, "dead-letters").and_then(|mut log| {
        log.catch_up(Freshness::Visible, &|| false, &mut |_, _| {})?;
        Ok(log.into_fold())
    });
    let fold = match read {
        Ok(fold) => fold,
        Err(failure) => {
            print::note(&format!("no script that sends it by hand: {failure}"));
            return None;
        }
    };
    let Some(subscription) = fold.get(&listed.subscription) else {
        print::note(&format!(
            "no script that sends it by hand: the subscription {:?} does not exist",
            listed.subscription
        ));
        return None;
    };
    let header = |name: &str| {
        let found = headers.iter().rev().find(|header| header.name == name);
        found.map(|header| header.value.as_str())
    };
    let webhook = Webhook {
        id: &listed.webhook_id,
        content_type: header("hs-content-type").unwrap_or("application/json"),
        attempt: listed.attempts,
        traceparent: header("traceparent"),
        body: &found.body,
        body_from: &format!("hookstream dead-letters show {} --body", listed.place),
    };
    Some(curl::script(subscription, webhook))
}

/// Skips the records before a known place.
fn from(ends: &[Range], place: Option<Coordinates>) -> Vec<Range> {
    let start = place.map_or(Offset(0), |at| at.offset).0;
    ends.iter()
        .map(|range| Range {
            low: range.low.max(start),
            ..*range
        })
        .collect()
}

fn detailed(letter: &DeadLetter, state: State, message: &BorrowedMessage<'_>) -> Detailed {
    let body = message.payload().unwrap_or_default();
    let text = std::str::from_utf8(body).ok().map(str::to_owned);
    let headers = header_pairs(message).into_iter();
    Detailed {
        listed: Listed::new(letter, state, body.len()),
        headers: headers
            .map(|(name, value)| HeaderText {
                name: name.to_owned(),
                value: String::from_utf8_lossy(value).into_owned(),
            })
            .collect(),
        body_base64: text.is_none().then(|| STANDARD.encode(body)),
        body: text,
        curl: None,
    }
}

fn describe(letter: &Detailed) -> String {
    let Listed {
        place,
        state,
        settled_at,
        reason,
        error,
        first_failure_at,
        last_failure_at,
        ..
    } = &letter.listed;
    let settled = settled_at
        .as_ref()
        .map(|at| format!(" at {at}"))
        .unwrap_or_default();
    let mut lines = vec![
        format!("{place}  {state}{settled}"),
        format!("{reason}: {error}"),
        format!("subscriber {}", letter.listed.subscriber),
        format!("first failure {first_failure_at}, last failure {last_failure_at}"),
        String::new(),
    ];
    lines.extend(
        letter
            .headers
            .iter()
            .map(|header| format!("{}: {}", header.name, header.value)),
    );
    lines.push(String::new());
    lines.push(match (&letter.body, &letter.body_base64) {
        (Some(text), _) => text.clone(),
        (None, base64) => format!("(not UTF-8; base64) {}", base64.clone().unwrap_or_default()),
    });
    if let Some(script) = &letter.curl {
        lines.push(String::new());
        lines.push("to send it by hand:".to_owned());
        lines.push(String::new());
        lines.push(script.clone());
    }
    lines.join("\n")
}
