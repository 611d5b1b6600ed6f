//! What one record tells of an event's life, and the order in which a life is told.
//!
//! Decided by headers; of values only an event's and an attempt's are parsed, and those only where they hold the id.
//! Times are the records' own: by the clocks of those who wrote them, and in the tiers by the broker's. Where two are
//! equal, what causes comes before what follows. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::model::attempt::Attempt;
use crate::model::command::{Cause, Command, header};
use crate::model::dead_letter::{Coordinates, Fact, Reason, Settlement};
use crate::model::event;
use crate::model::event::{RawEvent, webhook_id};
use crate::model::units::{EpochMs, Offset, counted};

/// What a topic holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Events, by their producers.
    Events,
    /// Events that could not be read.
    Invalid,
    /// Commands.
    Commands,
    /// A tier.
    Tier,
    /// Dead letters and facts.
    DeadLetters,
    /// The log of attempts.
    Attempts,
}

/// A record, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Where it is.
    pub topic: &'a Arc<str>,
    /// Where it is.
    pub at: Coordinates,
    /// Its timestamp.
    pub time: EpochMs,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// One record of a life.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where it is.
    pub topic: Arc<str>,
    /// Where it is.
    pub at: Coordinates,
    /// Its timestamp.
    pub time: EpochMs,
    /// Whose it is; an event has none of these.
    pub webhook: Option<Webhook>,
    /// The event's id.
    pub event_id: String,
    /// What it tells.
    pub what: What,
}

/// One event for one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// The subscription's id.
    pub subscription: String,
}

/// What a record tells.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The event itself.
    Event {
        /// Its type.
        event_type: String,
    },
    /// It could not be read as an event.
    Invalid {
        /// Why.
        error: String,
    },
    /// It is to be sent.
    Command {
        /// Why this copy was written.
        cause: Cause,
        /// Attempts made so far.
        attempts: u32,
    },
    /// It waits in a tier.
    Waits {
        /// For a retry, or parked.
        cause: Cause,
        /// Attempts made so far.
        attempts: u32,
        /// Until when.
        due: Option<EpochMs>,
        /// It waited in a longer tier before, for the same.
        moved: bool,
    },
    /// It was given up.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// Attempts made.
        attempts: u32,
        /// Of the last answer.
        status: Option<u16>,
        /// The last error.
        error: String,
    },
    /// An operator settled a letter.
    Settled {
        /// Which one.
        letter: Coordinates,
        /// How.
        how: Settlement,
    },
    /// One request.
    Attempt {
        /// Counted from 1.
        number: u32,
        /// Of the answer.
        status: Option<u16>,
        /// Of the answer or the failure.
        class: String,
        /// `delivered`, `retry` or `dead_lettered`.
        outcome: String,
        /// Until the answer's headers.
        duration_ms: f64,
        /// When there was no answer.
        error: Option<String>,
    },
    /// It carries the id, and this program cannot read the rest.
    Unreadable {
        /// Why.
        error: String,
    },
}

impl What {
    /// One word, for programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Event { .. } => "event",
            Self::Invalid { .. } => "invalid",
            Self::Command { cause, .. } => match cause {
                Cause::New => "new",
                Cause::Replay => "replay",
                Cause::Retry | Cause::Parked => "released",
            },
            Self::Waits { moved: true, .. } => "moved",
            Self::Waits { cause, .. } => match cause {
                Cause::Parked => "parked",
                Cause::New | Cause::Retry | Cause::Replay => "retry",
            },
            Self::DeadLetter { .. } => "dead-lettered",
            Self::Settled { how, .. } => match how {
                Settlement::Replayed => "replayed",
                Settlement::Discarded => "discarded",
            },
            Self::Attempt { .. } => "attempt",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// Among records of the same time: what causes comes first.
    fn rank(&self) -> u8 {
        match self {
            Self::Event { .. } | Self::Invalid { .. } => 0,
            Self::Settled { .. } => 1,
            Self::Command { .. } => 2,
            Self::Attempt { .. } => 3,
            Self::Waits { .. } => 4,
            Self::DeadLetter { .. } => 5,
            Self::Unreadable { .. } => 6,
        }
    }

    /// One sentence, for people; `time` writes times.
    #[must_use]
    pub fn sentence(&self, time: impl Fn(EpochMs) -> String) -> String {
        let until = |due: Option<EpochMs>| due.map_or_else(|| "now".to_owned(), &time);
        match self {
            Self::Event { event_type } => format!("event {event_type}"),
            Self::Invalid { error } => format!("could not be read as an event: {error}"),
            Self::Command {
                cause: Cause::New, ..
            } => "new command".to_owned(),
            Self::Command {
                cause: Cause::Replay,
                ..
            } => "new command by replay".to_owned(),
            Self::Command {
                cause: Cause::Retry,
                attempts,
            } => format!("released for attempt {}", attempts.saturating_add(1)),
            Self::Command {
                cause: Cause::Parked,
                attempts,
            } => format!(
                "released from parking for attempt {}",
                attempts.saturating_add(1)
            ),
            Self::Waits {
                moved: true, due, ..
            } => format!("moved to a shorter wait, due {}", until(*due)),
            Self::Waits {
                cause: Cause::Parked,
                due,
                ..
            } => format!("parked until {}", until(*due)),
            Self::Waits { attempts, due, .. } => {
                format!("retry {attempts} due {}", until(*due))
            }
            Self::DeadLetter {
                reason,
                attempts,
                error,
                ..
            } => format!(
                "dead letter after {}, {reason}: {error}",
                counted(*attempts, "attempt")
            ),
            Self::Settled { letter, how } => match how {
                Settlement::Replayed => format!("dead letter {letter} replayed"),
                Settlement::Discarded => format!("dead letter {letter} discarded"),
            },
            Self::Attempt {
                number,
                status,
                outcome,
                duration_ms,
                error,
                ..
            } => {
                let outcome = outcome.replace('_', "-");
                match (status, error) {
                    (Some(status), _) => {
                        format!(
                            "attempt {number} answered {status} in {duration_ms:.0} ms: {outcome}"
                        )
                    }
                    (None, error) => format!(
                        "attempt {number} had no answer after {duration_ms:.0} ms: {outcome}: {}",
                        error.as_deref().unwrap_or("no reason is told")
                    ),
                }
            }
            Self::Unreadable { error } => format!("cannot be read: {error}"),
        }
    }
}

/// Whether the record carries `id` as its webhook's or its event's. Looks at no more than it has to.
pub fn carries<'h>(id: &str, headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>) -> bool {
    let mut left = 2;
    for (name, value) in headers {
        if matches!(name, header::WEBHOOK_ID | header::EVENT_ID) {
            if value == Some(id.as_bytes()) {
                return true;
            }
            left -= 1;
            if left == 0 {
                return false;
            }
        }
    }
    false
}

/// Whether the value of an attempt's record holds `quoted`, an id as JSON writes it: cheap, and never wrong when it says
/// no, since only hookstream writes there.
#[must_use]
pub fn holds(quoted: &str, value: Option<&[u8]>) -> bool {
    value
        .and_then(|value| std::str::from_utf8(value).ok())
        .is_some_and(|text| text.contains(quoted))
}

/// Whether the record carries the id of one of these webhooks.
pub fn is_about<'h>(
    webhooks: &HashSet<String>,
    mut headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> bool {
    let found = headers.find(|(name, _)| *name == header::WEBHOOK_ID);
    let id = found.and_then(|(_, value)| std::str::from_utf8(value?).ok());
    id.is_some_and(|id| webhooks.contains(id))
}

/// Reads a record that [`carries`] the id.
#[must_use]
pub fn read(kind: Kind, raw: &Raw<'_>) -> Step {
    let text = |name: &str| {
        let found = raw.headers.iter().rev().find(|(header, _)| *header == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    let webhook = text(header::WEBHOOK_ID).map(|id| Webhook {
        id,
        subscription: text(header::SUBSCRIPTION).unwrap_or_default(),
    });
    let what = match kind {
        Kind::Commands | Kind::Tier => of_command(kind, raw),
        Kind::DeadLetters => of_fact(raw),
        Kind::Attempts | Kind::Events | Kind::Invalid => {
            Err("its headers do not tell what it is".to_owned())
        }
    };
    Step {
        topic: Arc::clone(raw.topic),
        at: raw.at,
        time: raw.time,
        webhook,
        event_id: text(header::EVENT_ID).unwrap_or_default(),
        what: what.unwrap_or_else(|error| What::Unreadable { error }),
    }
}

/// The step of an attempt's record that [`holds`] the id, if it is of that event or webhook.
#[must_use]
pub fn attempt(id: &str, raw: &Raw<'_>) -> Option<Step> {
    let value = raw.value.unwrap_or_default();
    let (webhook, event_id, what) = match Attempt::decode(value) {
        Ok(attempt) => {
            let webhook = Webhook {
                id: attempt.webhook_id.into_owned(),
                subscription: attempt.subscription.into_owned(),
            };
            let what = What::Attempt {
                number: attempt.attempt,
                status: attempt.status,
                class: attempt.class.into_owned(),
                outcome: attempt.outcome.into_owned(),
                duration_ms: attempt.duration_ms,
                error: attempt.error.map(|error| error.into_owned()),
            };
            (webhook, attempt.event_id.into_owned(), what)
        }
        Err(error) => {
            // Of a later version perhaps: the ids are still where they were.
            let fields: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            let webhook = Webhook {
                id: text("webhook_id"),
                subscription: text("subscription"),
            };
            let error = error.to_string();
            (webhook, text("event_id"), What::Unreadable { error })
        }
    };
    (webhook.id == id || event_id == id).then(|| Step {
        topic: Arc::clone(raw.topic),
        at: raw.at,
        time: raw.time,
        webhook: Some(webhook),
        event_id,
        what,
    })
}

fn of_command(kind: Kind, raw: &Raw<'_>) -> Result<What, String> {
    let headers = raw
        .headers
        .iter()
        .map(|(name, value)| (*name, Some(*value)));
    // Whatever the body is, it does not matter here.
    let command = Command::from_record(raw.key, headers, Some(Bytes::new()))
        .map_err(|error| error.to_string())?;
    let (cause, attempts) = (command.cause, command.attempt);
    Ok(if kind == Kind::Tier {
        What::Waits {
            cause,
            attempts,
            due: command.due,
            moved: false,
        }
    } else {
        What::Command { cause, attempts }
    })
}

fn of_fact(raw: &Raw<'_>) -> Result<What, String> {
    let fact = Fact::decode(raw.at, raw.key, raw.headers).map_err(|error| error.to_string())?;
    Ok(match fact {
        Fact::DeadLettered(letter) => What::DeadLetter {
            reason: letter.info.reason,
            attempts: letter.attempts,
            status: letter.info.status,
            error: letter.info.error,
        },
        Fact::Settled(settled) => What::Settled {
            letter: settled.letter,
            how: settled.how,
        },
    })
}

/// Which events are looked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The id that was asked for: an event's, or a webhook's.
    pub id: String,
    /// The events and webhooks that were found under it: an event counts if its webhook has that id, since two sources
    /// may use the same id for two events.
    pub found: Vec<(String, Webhook)>,
}

impl Wanted {
    /// What the steps tell of the event behind `id`.
    #[must_use]
    pub fn of(id: &str, steps: &[Step]) -> Self {
        let mut found: Vec<(String, Webhook)> = Vec::new();
        for step in steps {
            // A settling fact does not name its event.
            if let Some(webhook) = step.webhook.clone().filter(|_| !step.event_id.is_empty()) {
                let pair = (step.event_id.clone(), webhook);
                if !found.contains(&pair) {
                    found.push(pair);
                }
            }
        }
        Self {
            id: id.to_owned(),
            found,
        }
    }

    /// The ids of the webhooks that were found.
    #[must_use]
    pub fn webhooks(&self) -> HashSet<String> {
        let ids = self.found.iter().map(|(_, webhook)| webhook.id.clone());
        ids.collect()
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        let found = self.found.iter().map(|(event, _)| event.as_str());
        std::iter::once(self.id.as_str()).chain(found)
    }

    /// Whether the record may be such an event: cheap, and never wrong when it says no.
    #[must_use]
    pub fn may_be(&self, value: Option<&[u8]>, headers: &[(&str, &[u8])]) -> bool {
        let in_header = |id: &str| in_header(id, headers);
        // What is not UTF-8 is no event. A backslash may stand for any character of an id.
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        let in_value = |id: &str| text.is_some_and(|text| text.contains(id));
        self.ids().any(|id| in_header(id) || in_value(id))
            || text.is_some_and(|text| text.contains('\\'))
    }

    /// The step that an event's record is, if it is one of those.
    #[must_use]
    pub fn event(&self, raw: &Raw<'_>) -> Option<Step> {
        let read = event::read(
            &RawEvent {
                topic: raw.topic,
                payload: raw.value,
                headers: raw.headers,
                timestamp: raw.time,
            },
            usize::MAX,
        );
        let event = read.ok()?;
        let is_of = |(_, webhook): &(String, Webhook)| {
            webhook_id(event.source(), event.id(), &webhook.subscription) == webhook.id
        };
        if event.id() != self.id && !self.found.iter().any(is_of) {
            return None;
        }
        Some(self.step(
            raw,
            event.id(),
            What::Event {
                event_type: event.event_type().to_owned(),
            },
        ))
    }

    /// The step of a record that could not be read as an event, if it holds the id between quotes, or has it in the header
    /// of a CloudEvent in binary mode, whatever its value is.
    #[must_use]
    pub fn invalid(&self, raw: &Raw<'_>) -> Option<Step> {
        let value = String::from_utf8_lossy(raw.value.unwrap_or_default());
        if !in_header(&self.id, raw.headers) && !value.contains(&format!("\"{}\"", self.id)) {
            return None;
        }
        let error = raw
            .headers
            .iter()
            .find(|(name, _)| *name == "hookstream-error");
        let error = error.map_or_else(String::new, |(_, text)| {
            String::from_utf8_lossy(text).into_owned()
        });
        Some(self.step(raw, &self.id, What::Invalid { error }))
    }

    fn step(&self, raw: &Raw<'_>, event_id: &str, what: What) -> Step {
        Step {
            topic: Arc::clone(raw.topic),
            at: raw.at,
            time: raw.time,
            webhook: None,
            event_id: event_id.to_owned(),
            what,
        }
    }
}

/// Whether a CloudEvent in binary mode has that id.
fn in_header(id: &str, headers: &[(&str, &[u8])]) -> bool {
    let mut named = headers.iter().filter(|(name, _)| *name == "ce_id");
    named.any(|(_, value)| *value == id.as_bytes())
}

/// Puts the records of a life in order: by time, then what causes before what follows. Of settling facts, which do not
/// name their event, the event is filled in; and of a wait that only goes on in another tier it is told so.
#[must_use]
pub fn tell(mut steps: Vec<Step>) -> Vec<Step> {
    let place = |at: Coordinates| (at.partition, at.offset);
    steps.sort_by(|a, b| {
        let key = |step: &Step| (step.time, step.what.rank());
        key(a)
            .cmp(&key(b))
            .then_with(|| a.topic.cmp(&b.topic))
            .then_with(|| place(a.at).cmp(&place(b.at)))
    });
    let events: HashMap<String, String> = steps
        .iter()
        .filter(|step| !step.event_id.is_empty())
        .filter_map(|step| Some((step.webhook.as_ref()?.id.clone(), step.event_id.clone())))
        .collect();
    let mut waits: HashMap<String, (Cause, u32, Option<EpochMs>)> = HashMap::new();
    for step in &mut steps {
        let Some(webhook) = step.webhook.as_ref().map(|webhook| webhook.id.clone()) else {
            continue;
        };
        if step.event_id.is_empty()
            && let Some(event) = events.get(&webhook)
        {
            step.event_id.clone_from(event);
        }
        match &mut step.what {
            What::Waits {
                cause,
                attempts,
                due,
                moved,
            } => {
                let wait = (*cause, *attempts, *due);
                *moved = waits.insert(webhook, wait) == Some(wait);
            }
            What::Command { .. } => drop(waits.remove(&webhook)),
            _ => {}
        }
    }
    steps
}

/// The place of a record.
#[must_use]
pub fn place(partition: i32, offset: i64) -> Coordinates {
    Coordinates {
        partition,
        offset: Offset(offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::ContentType;
    use crate::model::command::Envelope;

    fn headers_of(cause: Cause, attempt: u32, due: Option<i64>) -> Vec<(&'static str, Vec<u8>)> {
        let mut headers = Vec::new();
        let envelope = Envelope {
            webhook_id: "msg_1",
            subscription: "acme-orders",
            event_id: "e1",
            event_type: "order.created",
            event_time: None,
            subject: None,
            content_type: ContentType::Json,
            attempt,
            due: due.map(EpochMs),
            enqueued: EpochMs(1),
            cause,
            first_failure: None,
            sequence: None,
            cluster: None,
            traceparent: None,
        };
        envelope.each_header(|name, value| headers.push((name, value.as_bytes().to_vec())));
        headers
    }

    fn step(kind: Kind, time: i64, headers: &[(&'static str, Vec<u8>)]) -> Step {
        let pairs: Vec<(&str, &[u8])> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_slice()))
            .collect();
        let raw = Raw {
            topic: &Arc::from("t"),
            at: place(0, time),
            time: EpochMs(time),
            key: Some(b"acme"),
            headers: &pairs,
            value: None,
        };
        read(kind, &raw)
    }

    fn sentences(steps: Vec<Step>) -> Vec<String> {
        tell(steps)
            .iter()
            .map(|step| step.what.sentence(|at| format!("@{at}")))
            .collect()
    }

    #[test]
    fn a_life_is_told_in_the_order_of_its_times() {
        let told = sentences(vec![
            step(Kind::Commands, 900, &headers_of(Cause::Retry, 1, Some(800))),
            step(Kind::Tier, 300, &headers_of(Cause::Retry, 1, Some(800))),
            step(Kind::Tier, 600, &headers_of(Cause::Retry, 1, Some(800))),
            step(Kind::Commands, 100, &headers_of(Cause::New, 0, None)),
            step(Kind::Tier, 950, &headers_of(Cause::Parked, 1, Some(2000))),
            step(
                Kind::Commands,
                2000,
                &headers_of(Cause::Parked, 1, Some(2000)),
            ),
        ]);
        assert_eq!(
            told,
            [
                "new command",
                "retry 1 due @800",
                "moved to a shorter wait, due @800",
                "released for attempt 2",
                "parked until @2000",
                "released from parking for attempt 2",
            ]
        );
    }

    #[test]
    fn of_records_of_one_time_the_cause_comes_first() {
        let settled = crate::model::dead_letter::Settled {
            letter: place(3, 7),
            cluster: None,
            moment: None,
            how: Settlement::Replayed,
            at: EpochMs(5),
            webhook_id: "msg_1".to_owned(),
            subscription: "acme-orders".to_owned(),
        };
        let fact: Vec<_> = settled
            .headers()
            .into_iter()
            .map(|(name, value)| (name, value.into_bytes()))
            .collect();
        let steps = tell(vec![
            step(Kind::Tier, 5, &headers_of(Cause::Retry, 1, Some(9))),
            step(Kind::Commands, 5, &headers_of(Cause::Replay, 0, None)),
            step(Kind::DeadLetters, 5, &fact),
        ]);
        let names: Vec<_> = steps.iter().map(|step| step.what.name()).collect();
        assert_eq!(names, ["replayed", "replay", "retry"]);
        assert!(
            steps.iter().all(|step| step.event_id == "e1"),
            "a fact's event is known from the others"
        );
    }

    #[test]
    fn a_record_carries_the_ids_in_its_headers_and_nothing_else_counts() {
        let headers = headers_of(Cause::New, 0, None);
        let with = |id: &str| {
            let pairs = headers
                .iter()
                .map(|(name, value)| (*name, Some(value.as_slice())));
            carries(id, pairs)
        };
        assert!(with("msg_1") && with("e1"));
        assert!(!with("acme-orders") && !with("msg_") && !with(""));
    }

    #[test]
    fn an_attempt_is_found_by_both_ids_in_its_value_and_by_no_other_text() {
        let value = |event: &str, body: &str| {
            serde_json::json!({
                "webhook_id": "msg_1", "subscription": "acme-orders", "subscriber": "acme", "event_id": event,
                "event_type": "order.created", "attempt": 1, "time": "2023-11-14T22:13:29.000Z", "duration_ms": 1.5,
                "url": "https://acme.example/", "status": 200, "class": "2xx", "outcome": "delivered", "body": body,
            })
            .to_string()
        };
        let find = |id: &str, value: &str| {
            let quoted = serde_json::Value::from(id).to_string();
            let value = Some(value.as_bytes());
            let raw = Raw {
                topic: &Arc::from("webhook-attempts"),
                at: place(0, 7),
                time: EpochMs(5),
                key: Some(b"acme"),
                headers: &[],
                value,
            };
            holds(&quoted, value).then(|| attempt(id, &raw)).flatten()
        };
        for (id, event) in [("msg_1", "e1"), ("e1", "e1"), ("a\"b\\\n", "a\"b\\\n")] {
            let step = find(id, &value(event, "")).unwrap();
            assert_eq!((&*step.event_id, step.what.name()), (event, "attempt"));
            let webhook = step.webhook.unwrap();
            assert_eq!(
                (&*webhook.id, &*webhook.subscription),
                ("msg_1", "acme-orders")
            );
        }
        for id in ["msg_", "acme", "order.created", "e2", ""] {
            assert!(find(id, &value("e1", r#"you sent "e2""#)).is_none(), "{id}");
        }
        let later = r#"{"webhook_id":"msg_1","subscription":"acme-orders","attempt":"first"}"#;
        let step = find("msg_1", later).unwrap();
        assert_eq!(
            (step.what.name(), &*step.webhook.unwrap().id),
            ("unreadable", "msg_1")
        );
        assert!(find("acme-orders", later).is_none(), "it is another's");
    }

    #[test]
    fn a_record_of_a_later_version_is_told_and_not_left_out() {
        let mut headers = headers_of(Cause::New, 0, None);
        headers[0].1 = b"2".to_vec();
        let step = step(Kind::Commands, 1, &headers);
        assert_eq!(step.what.name(), "unreadable");
        assert!(
            step.what
                .sentence(|at| at.to_string())
                .contains("version 2"),
            "{:?}",
            step.what
        );
    }

    fn event_step(wanted: &Wanted, value: &str) -> Option<Step> {
        let raw = Raw {
            topic: &Arc::from("order-events"),
            at: place(0, 0),
            time: EpochMs(0),
            key: None,
            headers: &[],
            value: Some(value.as_bytes()),
        };
        let step = wanted.event(&raw);
        assert!(
            step.is_none() || wanted.may_be(raw.value, raw.headers),
            "the look ahead must not miss it"
        );
        step
    }

    #[test]
    fn an_event_is_found_by_its_id_however_json_writes_it() {
        let wanted = Wanted::of("e/1", &[]);
        for id in ["e/1", r"e\/1", r"e\u002f1"] {
            let event = format!(r#"{{"id":"{id}","type":"a.b"}}"#);
            assert_eq!(event_step(&wanted, &event).unwrap().event_id, "e/1", "{id}");
        }
        for other in [
            r#"{"id":"e/11","type":"a.b"}"#,
            r#"{"id":"x","type":"e/1"}"#,
        ] {
            assert!(event_step(&wanted, other).is_none(), "{other}");
        }
    }

    #[test]
    fn an_event_that_could_not_be_read_is_found_in_binary_mode_too() {
        let wanted = Wanted::of("e1", &[]);
        let found = |id: &str, value: Option<&[u8]>| {
            let headers: [(&str, &[u8]); 2] = [
                ("ce_id", id.as_bytes()),
                ("hookstream-error", b"ce_type is missing"),
            ];
            let raw = Raw {
                topic: &Arc::from("webhook-invalid-events"),
                at: place(0, 0),
                time: EpochMs(0),
                key: None,
                headers: &headers,
                value,
            };
            wanted.invalid(&raw)
        };
        for value in [None, Some(&b"{"[..]), Some(&b"\xff"[..])] {
            let step = found("e1", value).unwrap();
            let error = "ce_type is missing".to_owned();
            assert_eq!(
                (&*step.event_id, step.what),
                ("e1", What::Invalid { error })
            );
            assert_eq!(found("e11", value), None);
        }
        assert!(found("x", Some(br#"{"id":"e1"}"#)).is_some());
    }

    #[test]
    fn by_a_webhooks_id_its_own_event_is_found_and_not_that_of_another_source() {
        let id = webhook_id("/shop", "1", "acme-orders");
        let mut command = step(Kind::Commands, 1, &headers_of(Cause::New, 0, None));
        command.event_id = "1".to_owned();
        command.webhook = Some(Webhook {
            id: id.clone(),
            subscription: "acme-orders".to_owned(),
        });
        let wanted = Wanted::of(&id, &[command]);
        let event = |source: &str| {
            format!(r#"{{"specversion":"1.0","id":"1","source":"{source}","type":"a.b"}}"#)
        };
        assert!(event_step(&wanted, &event("/shop")).is_some());
        assert!(event_step(&wanted, &event("/other")).is_none());
    }

    #[test]
    fn an_attempt_says_what_was_answered() {
        let attempt = |status, error: Option<&str>| What::Attempt {
            number: 2,
            status,
            class: "5xx".to_owned(),
            outcome: "dead_lettered".to_owned(),
            duration_ms: 12.345,
            error: error.map(str::to_owned),
        };
        let told = |what: What| what.sentence(|at| at.to_string());
        assert_eq!(
            told(attempt(Some(500), None)),
            "attempt 2 answered 500 in 12 ms: dead-lettered"
        );
        assert_eq!(
            told(attempt(None, Some("refused"))),
            "attempt 2 had no answer after 12 ms: dead-lettered: refused"
        );
    }
}
