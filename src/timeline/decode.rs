//! Recognises the records that carry an id, and decodes them to steps. Pure.
//!
//! Headers decide. Of the values only those of events and attempts are parsed, and those only if they contain the id.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::step::{Detail, RecordView, Step, TopicKind, Webhook};
use crate::model::attempt::Attempt;
use crate::model::command::{Command, header};
use crate::model::dead_letter::Fact;

/// Whether the record carries `id` as its webhook id or event id. Stops at the second of the two headers.
pub(super) fn carries<'h>(
    id: &str,
    headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> bool {
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

/// Whether the value of an attempt record contains `quoted`, an id as a JSON string. A cheap filter without false
/// negatives: only hookstream writes to this topic, so an id has one spelling.
#[must_use]
pub(super) fn holds(quoted: &str, value: Option<&[u8]>) -> bool {
    value
        .and_then(|value| std::str::from_utf8(value).ok())
        .is_some_and(|text| text.contains(quoted))
}

/// Whether the record carries one of these webhook ids.
pub(super) fn is_about<'h>(
    webhooks: &HashSet<String>,
    mut headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> bool {
    let found = headers.find(|(name, _)| *name == header::WEBHOOK_ID);
    let id = found.and_then(|(_, value)| std::str::from_utf8(value?).ok());
    id.is_some_and(|id| webhooks.contains(id))
}

/// Decodes a record that [`carries`] the id.
#[must_use]
pub(super) fn read(kind: TopicKind, raw: &RecordView<'_>) -> Step {
    let text = |name: &str| {
        let found = raw.headers.iter().rev().find(|(header, _)| *header == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    let webhook = text(header::WEBHOOK_ID).map(|id| Webhook {
        id,
        subscription: text(header::SUBSCRIPTION).unwrap_or_default(),
    });
    let detail = match kind {
        TopicKind::Commands | TopicKind::Tier => of_command(kind, raw),
        TopicKind::DeadLetters => of_fact(raw),
        TopicKind::Attempts | TopicKind::Events | TopicKind::Invalid => {
            Err("not a record of this topic".to_owned())
        }
    };
    Step {
        topic: Arc::clone(raw.topic),
        at: raw.at,
        time: raw.time,
        webhook,
        event_id: text(header::EVENT_ID).unwrap_or_default(),
        detail: detail.unwrap_or_else(|error| Detail::Unreadable { error }),
    }
}

/// Decodes an attempt record that [`holds`] the id; `None` if it belongs to another event and webhook.
#[must_use]
pub(super) fn attempt(id: &str, raw: &RecordView<'_>) -> Option<Step> {
    let value = raw.value.unwrap_or_default();
    let (webhook, event_id, detail) = match Attempt::decode(value) {
        Ok(attempt) => {
            let webhook = Webhook {
                id: attempt.webhook_id.into_owned(),
                subscription: attempt.subscription.into_owned(),
            };
            let detail = Detail::Attempt {
                number: attempt.attempt,
                status: attempt.status,
                class: attempt.class.into_owned(),
                outcome: attempt.outcome.into_owned(),
                duration_ms: attempt.duration_ms,
                error: attempt.error.map(|error| error.into_owned()),
            };
            (webhook, attempt.event_id.into_owned(), detail)
        }
        Err(error) => {
            // Perhaps written by a later version, which keeps the id fields.
            let fields: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            let webhook = Webhook {
                id: text("webhook_id"),
                subscription: text("subscription"),
            };
            let error = error.to_string();
            (webhook, text("event_id"), Detail::Unreadable { error })
        }
    };
    (webhook.id == id || event_id == id).then(|| Step {
        topic: Arc::clone(raw.topic),
        at: raw.at,
        time: raw.time,
        webhook: Some(webhook),
        event_id,
        detail,
    })
}

fn of_command(kind: TopicKind, raw: &RecordView<'_>) -> Result<Detail, String> {
    let headers = raw
        .headers
        .iter()
        .map(|(name, value)| (*name, Some(*value)));
    // The body is not needed.
    let command = Command::from_record(raw.key, headers, Some(Bytes::new()))
        .map_err(|error| error.to_string())?;
    let (cause, attempts) = (command.cause, command.attempt);
    Ok(if kind == TopicKind::Tier {
        Detail::Waits {
            cause,
            attempts,
            due: command.due,
            moved: false,
        }
    } else {
        Detail::Command { cause, attempts }
    })
}

fn of_fact(raw: &RecordView<'_>) -> Result<Detail, String> {
    let fact = Fact::decode(raw.at, raw.key, raw.headers).map_err(|error| error.to_string())?;
    Ok(match fact {
        Fact::DeadLettered(letter) => Detail::DeadLetter {
            reason: letter.info.reason,
            attempts: letter.attempts,
            status: letter.info.status,
            error: letter.info.error,
        },
        Fact::Settled(settled) => Detail::Settled {
            letter: settled.letter,
            how: settled.how,
        },
    })
}
