//! The contents of the three kinds of span: fan-out of an event, attempt of a command, release from a tier.
//!
//! | span | kind | parent | start, end |
//! |---|---|---|---|
//! | `fanout` | consumer | the event's context | the event is read, its commands are visible |
//! | `attempt` | client | the command's context | the request, the response headers or the failure |
//! | `release` | consumer | the command's context | the command is written back, it is visible |
//!
//! The command's context is that of its fan-out, so attempts and releases are siblings below it, in order of time.
//! Attributes have OpenTelemetry's names where it defines one (HTTP, messaging, CloudEvents).
//!
//! **Secret**: a URL appears only as [`shown_url`] shows it.
//! Pure.

use std::time::Duration;

use url::Url;

use crate::model::attempt::shown_url;
use crate::model::command::Command;
use crate::model::event::Event;
use crate::model::outcome::Response;

/// The role of the process in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It processed a record.
    Consumer,
    /// It sent a request to another process.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A fixed word of the program.
    Word(&'static str),
    /// Text of an event, a subscription or an error.
    Text(Box<str>),
    /// A count, a status, a partition or an offset.
    Number(i64),
    /// A duration, in seconds.
    Seconds(f64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// The contents of a span, apart from its context and times.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// One of `fanout`, `attempt`, `release`.
    pub name: &'static str,
    /// The role of the process.
    pub kind: Kind,
    /// Attributes by name.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why the span counts as failed, if it does.
    pub error: Option<Box<str>>,
}

impl Facts {
    fn of_record(name: &'static str, at: Place<'_>) -> Self {
        Self {
            name,
            kind: Kind::Consumer,
            attributes: vec![
                ("messaging.system", Value::Word("kafka")),
                ("messaging.operation.name", Value::Word(name)),
                ("messaging.operation.type", Value::Word("process")),
                ("messaging.destination.name", at.topic.into()),
                (
                    "messaging.destination.partition.id",
                    Value::Text(at.partition.to_string().into()),
                ),
                ("messaging.kafka.offset", Value::Number(at.offset)),
            ],
            error: None,
        }
    }

    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.attributes.push((name, value.into()));
    }

    fn add_command(&mut self, command: &Command) {
        self.add("hookstream.webhook_id", &*command.webhook_id);
        self.add("hookstream.subscription", &*command.subscription);
        self.add("hookstream.subscriber", &*command.subscriber);
        self.add("cloudevents.event_id", &*command.event_id);
        self.add("cloudevents.event_type", &*command.event_type);
    }
}

/// The location of a record.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "as everywhere in Kafka")]
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

/// The span of a fan-out: an event became a command for each of the matched subscriptions.
#[must_use]
pub fn fanout(event: &Event<'_>, at: Place<'_>, matches: usize) -> Facts {
    let mut facts = Facts::of_record("fanout", at);
    facts.add("cloudevents.event_id", event.id());
    facts.add("cloudevents.event_source", event.source());
    facts.add("cloudevents.event_type", event.event_type());
    let matches = i64::try_from(matches).unwrap_or(i64::MAX);
    facts.add("hookstream.matches", Value::Number(matches));
    facts
}

/// The span of a release: a command left a tier, for `to`, after `waited`.
#[must_use]
pub fn release(command: &Command, at: Place<'_>, to: &str, waited: Duration) -> Facts {
    let mut facts = Facts::of_record("release", at);
    facts.add_command(command);
    facts.add(
        "hookstream.attempts",
        Value::Number(i64::from(command.attempt)),
    );
    facts.add("hookstream.cause", Value::Word(command.cause.as_str()));
    facts.add("hookstream.released_to", to);
    facts.add("hookstream.waited", Value::Seconds(waited.as_secs_f64()));
    facts
}

/// The result of a request.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The endpoint's response, or the lack of one.
    pub response: Response,
    /// Why there was no response.
    pub error: Option<&'a str>,
    /// Whether it delivered the command.
    pub delivered: bool,
}

/// The span of an attempt: a command was sent to `url`.
#[must_use]
pub fn attempt(command: &Command, url: &Url, reply: Reply<'_>) -> Facts {
    let mut facts = Facts {
        name: "attempt",
        kind: Kind::Client,
        attributes: Vec::with_capacity(13),
        error: None,
    };
    facts.add_command(command);
    let made = i64::from(command.attempt);
    facts.add("hookstream.attempt", Value::Number(made + 1));
    if made > 0 {
        facts.add("http.request.resend_count", Value::Number(made));
    }
    facts.add("http.request.method", Value::Word("POST"));
    facts.add("url.full", &*shown_url(url));
    facts.add("server.address", url.host_str().unwrap_or_default());
    if let Some(port) = url.port_or_known_default() {
        facts.add("server.port", Value::Number(i64::from(port)));
    }
    let error_type = match reply.response {
        Response::Status { status, .. } => {
            let number = Value::Number(i64::from(status));
            facts.add("http.response.status_code", number);
            Value::Text(status.to_string().into())
        }
        Response::None(_) | Response::Unprocessed => Value::Word(reply.response.class().as_str()),
    };
    if !reply.delivered {
        facts.add("error.type", error_type);
        facts.error = Some(reply.error.unwrap_or_default().into());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::tests::sample;
    use crate::model::outcome::Class;

    fn value(facts: &Facts, name: &str) -> Option<Value> {
        let mut found = facts.attributes.iter().filter(|(known, _)| *known == name);
        let (_, value) = found.next()?;
        assert!(found.next().is_none(), "{name} stands twice");
        Some(value.clone())
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn nothing_that_may_be_a_credential_is_told_of_a_url() {
        let reply = Reply {
            response: Response::None(Class::Timeout),
            error: None,
            delivered: false,
        };
        let facts = attempt(&sample(), &url("https://u:hunter2@a.example/t0ken"), reply);
        let all = format!("{facts:?}");
        assert!(!all.contains("hunter2") && !all.contains("t0ken"), "{all}");
    }

    #[test]
    fn an_attempt_tells_its_number_and_what_came_of_it() {
        let answered = |status| Response::Status {
            status,
            retry_after: None,
        };
        let mut command = sample();
        let good = Reply {
            response: answered(200),
            error: None,
            delivered: true,
        };
        let facts = attempt(&command, &url("https://a.example/"), good);
        assert_eq!(value(&facts, "hookstream.attempt"), Some(Value::Number(1)));
        assert_eq!(value(&facts, "http.request.resend_count"), None);
        assert_eq!(value(&facts, "server.port"), Some(Value::Number(443)));
        assert_eq!((value(&facts, "error.type"), facts.error), (None, None));

        command.attempt = 2;
        let bad = Reply {
            response: answered(503),
            error: None,
            delivered: false,
        };
        let facts = attempt(&command, &url("https://a.example/"), bad);
        assert_eq!(value(&facts, "hookstream.attempt"), Some(Value::Number(3)));
        assert_eq!(
            value(&facts, "http.request.resend_count"),
            Some(Value::Number(2))
        );
        assert_eq!(
            value(&facts, "http.response.status_code"),
            Some(Value::Number(503))
        );
        assert_eq!(value(&facts, "error.type"), Some("503".into()));

        let failed = Reply {
            response: Response::None(Class::Tls),
            error: Some("the tls handshake failed"),
            delivered: false,
        };
        let facts = attempt(&command, &url("https://a.example/"), failed);
        assert_eq!(value(&facts, "http.response.status_code"), None);
        assert_eq!(value(&facts, "error.type"), Some(Value::Word("tls")));
        assert_eq!(facts.error.as_deref(), Some("the tls handshake failed"));
    }

    #[test]
    fn a_release_tells_how_long_the_command_waited() {
        let at = Place {
            topic: "webhook-retry-5s",
            partition: 3,
            offset: 7,
        };
        let facts = release(
            &sample(),
            at,
            "webhook-commands",
            Duration::from_millis(5200),
        );
        assert_eq!(
            value(&facts, "hookstream.waited"),
            Some(Value::Seconds(5.2))
        );
        assert_eq!(
            value(&facts, "messaging.destination.partition.id"),
            Some("3".into())
        );
    }
}
