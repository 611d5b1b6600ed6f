//! `subscriptions test`: sends a signed sample to an endpoint, and prints the whole exchange.
//!
//! From here: with the egress rules, the proxy, the environment and the files of this process. Where those are deliver's,
//! run it there. Credentials are never printed.

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::change::unknown;
use super::stored::Stored;
use crate::cli::curl;
use crate::cli::exit::{CliError, Exit, runtime};
use crate::cli::print::{self, Output};
use crate::cli::samples::parse_json;
use crate::config::Settings;
use crate::delivery::testing::{self, Exchange, Header, Sample};
use crate::edge::clock;
use crate::edge::kafka::subscription_log::Freshness;
use crate::edge::live::Live;
use crate::model::event::{self, RawEvent};
use crate::model::subscription::{Segment, Subscription, TypePattern};
use crate::model::units::EpochMs;

/// `hookstream subscriptions test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Subscription id
    id: String,
    /// The type of the sample event [default: one that the subscription matches]
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// The data of the sample event
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    data: Option<Value>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the subscription is unknown, its endpoint is not allowed or does not respond, or the status is not 2xx.
pub(super) fn run(settings: &Settings, args: &TestArgs) -> Result<Exit, CliError> {
    let stored = Stored::read(settings, Freshness::Visible)?;
    let subscription = stored
        .fold
        .get(&args.id)
        .ok_or_else(|| unknown(&[args.id.as_str()]))?;
    let now = clock::now();
    let sample = sample(settings, subscription, args, now)?;
    let settings = Arc::new(settings.clone());
    let runtime = runtime()?;
    // As on a worker of deliver, where a client belongs to its thread.
    let local = tokio::task::LocalSet::new();
    let sending = testing::send(&Live, &settings, subscription, &sample);
    let sent = local.block_on(&runtime, sending);
    let exchange = sent.map_err(|why| {
        CliError::new(
            Exit::Failure,
            format!("{}: nothing was sent: {why}", args.id),
        )
    })?;
    let verify = verification(subscription, &sample, &exchange);
    match args.output {
        Output::Table => print::line(&drawn(&sample, &exchange, verify.as_deref()))?,
        output => print::document(output, &document(&sample, &exchange, verify))?,
    }
    let took = exchange.took.as_millis();
    match exchange.response {
        Ok(received) if (200..300).contains(&received.status) => {
            print::note(&format!("accepted in {took} ms"));
            Ok(Exit::Done)
        }
        Ok(received) => {
            let message = format!(
                "{}: the endpoint responded {} after {took} ms",
                args.id, received.status
            );
            Err(CliError::new(Exit::Failure, message))
        }
        Err(why) => {
            let message = format!("{}: no response after {took} ms: {why}", args.id);
            Err(CliError::new(Exit::Failure, message))
        }
    }
}

/// A type that a pattern matches, with `test` for each wildcard.
fn example(pattern: &TypePattern) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Literal(text) => text.to_string(),
        Segment::One | Segment::Any => "test".to_owned(),
    };
    match pattern {
        TypePattern::Exact(text) => text.to_string(),
        TypePattern::Wildcard(all) => all.iter().map(segment).collect::<Vec<_>>().join("."),
    }
}

/// The webhook of a sample event, as fan-out would make it.
fn sample(
    settings: &Settings,
    subscription: &Subscription,
    args: &TestArgs,
    now: EpochMs,
) -> Result<Sample, CliError> {
    let event_type = args
        .r#type
        .clone()
        .or_else(|| subscription.events.first().map(example))
        .unwrap_or_default();
    let envelope = json!({
        "id": format!("test-{}", now.0),
        "type": event_type,
        "time": now.rfc3339(),
        "subject": "test",
        "data": args.data.clone().unwrap_or_else(|| json!({"test": true})),
    });
    let value = envelope.to_string();
    let raw = RawEvent {
        topic: settings.topics.events.first().map_or("", String::as_str),
        key: None,
        payload: Some(value.as_bytes()),
        headers: &[],
        timestamp: now,
    };
    let event = event::read(&raw, settings.max_event_bytes)
        .map_err(|error| CliError::new(Exit::Usage, format!("the sample event: {error}")))?;
    Ok(Sample {
        id: event.webhook_id(&subscription.id),
        body: event.body(subscription.format).into(),
        content_type: subscription.format.content_type(),
    })
}

/// The script that makes the signature that was sent.
fn verification(
    subscription: &Subscription,
    sample: &Sample,
    exchange: &Exchange,
) -> Option<String> {
    let mut headers = exchange.headers.iter();
    let timestamp = headers.find(|(name, _)| name == "webhook-timestamp")?;
    curl::signature(subscription, &sample.id, &timestamp.1, &sample.body)
}

/// The exchange as curl shows one.
fn drawn(sample: &Sample, exchange: &Exchange, verify: Option<&str>) -> String {
    let mut text = String::new();
    let mut part = |mark: char, first: &str, headers: &[Header], body: Option<&str>| {
        let headers = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"));
        let head = std::iter::once(first.to_owned()).chain(headers);
        let body = body.filter(|body| !body.is_empty());
        let body = body.map(|body| format!("\n{body}"));
        for line in head.chain(body).collect::<Vec<_>>().join("\n").lines() {
            // Writing to a string does not fail.
            writeln!(text, "{}", format!("{mark} {line}").trim_end()).ok();
        }
    };
    let body = String::from_utf8_lossy(&sample.body);
    part(
        '>',
        &format!("POST {}", exchange.url),
        &exchange.headers,
        Some(&body),
    );
    if let Ok(received) = &exchange.response {
        let body = received.body.as_ref().map(|body| &*body.text);
        part('<', &received.status.to_string(), &received.headers, body);
        if received.body.as_ref().is_some_and(|body| body.truncated) {
            text.push_str("< …\n");
        }
    }
    if let Some(verify) = verify {
        text.push_str("\n# prints the signature that the receiver should compute:\n");
        text.push_str(verify);
    }
    text.trim_end().to_owned()
}

#[derive(Serialize)]
struct Shown<'a> {
    request: Value,
    response: Value,
    error: Option<&'a str>,
    milliseconds: u128,
    verify: Option<String>,
}

fn document<'a>(sample: &Sample, exchange: &'a Exchange, verify: Option<String>) -> Shown<'a> {
    let headers = |headers: &[Header]| -> Value {
        let pairs = headers.iter();
        let pairs = pairs.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
        pairs.collect::<Map<_, _>>().into()
    };
    Shown {
        request: json!({
            "method": "POST",
            "url": exchange.url,
            "headers": headers(&exchange.headers),
            "body": String::from_utf8_lossy(&sample.body),
        }),
        response: exchange.response.as_ref().map_or(Value::Null, |received| {
            json!({
                "status": received.status,
                "headers": headers(&received.headers),
                "body": received.body.as_ref().map(|body| &*body.text),
                "truncated": received.body.as_ref().is_some_and(|body| body.truncated),
            })
        }),
        error: exchange.response.as_ref().err().map(String::as_str),
        milliseconds: exchange.took.as_millis(),
        verify,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_a_type_that_the_subscription_matches() {
        for (pattern, expected) in [
            ("order.created", "order.created"),
            ("order.*", "order.test"),
            ("**", "test"),
            ("*.paid.**", "test.paid.test"),
        ] {
            let pattern = TypePattern::parse(pattern).unwrap();
            assert_eq!(example(&pattern), expected);
            assert!(pattern.matches(expected));
        }
    }
}
