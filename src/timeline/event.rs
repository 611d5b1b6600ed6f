//! Recognises the record of the event itself, which carries no webhook id. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use super::step::{Detail, RecordView, Step, Webhook};
use crate::model::event;
use crate::model::event::{Mapping, RawEvent, webhook_id};

/// Matches the events that a search is about.
#[derive(Clone, Debug, Default)]
pub(super) struct EventMatcher {
    /// The id searched for: an event id or a webhook id.
    id: String,
    /// The event ids and webhooks found so far. Two sources may use the same event id, so an event matches only if it
    /// yields one of these webhook ids.
    found: Vec<(String, Webhook)>,
}

impl EventMatcher {
    /// A matcher for `id` and for the webhooks in `steps`.
    #[must_use]
    pub(super) fn of(id: &str, steps: &[Step]) -> Self {
        let mut found: Vec<(String, Webhook)> = Vec::new();
        for step in steps {
            // A settling record does not carry the event id.
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

    /// The webhook ids found so far.
    #[must_use]
    pub(super) fn webhooks(&self) -> HashSet<String> {
        let ids = self.found.iter().map(|(_, webhook)| webhook.id.clone());
        ids.collect()
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        let found = self.found.iter().map(|(event, _)| event.as_str());
        std::iter::once(self.id.as_str()).chain(found)
    }

    /// Whether the record may be a match: a cheap filter without false negatives. Only with a mapping can the id be in
    /// the key, or in any header.
    #[must_use]
    pub(super) fn may_be(&self, raw: &RecordView<'_>, mapping: Option<&Mapping>) -> bool {
        let texts = |value: Option<_>| value.and_then(|value| std::str::from_utf8(value).ok());
        let mapped = raw.headers.iter().map(|(_, value)| Some(*value));
        let mapped = mapped.chain([raw.key]).filter(|_| mapping.is_some());
        // An event is UTF-8. A backslash may stand for any character of an id.
        mapped
            .chain([raw.value])
            .filter_map(texts)
            .any(|text| text.contains('\\') || self.ids().any(|id| text.contains(id)))
            || self.ids().any(|id| in_header(id, raw.headers))
    }

    /// Decodes an event, by the mapping of its topic if it has one; `None` if it does not match.
    #[must_use]
    pub(super) fn event(&self, raw: &RecordView<'_>, mapping: Option<&Mapping>) -> Option<Step> {
        let record = RawEvent {
            topic: raw.topic,
            key: raw.key,
            payload: raw.value,
            headers: raw.headers,
            timestamp: raw.time,
        };
        let read = match mapping {
            None => event::read(&record, usize::MAX),
            Some(mapping) => event::read_mapped(&record, mapping, usize::MAX),
        };
        let event = read.ok()?;
        // Until 0.2 the type of a plain event was not part of the webhook id.
        let is_of = |(_, webhook): &(String, Webhook)| {
            event.webhook_id(&webhook.subscription) == webhook.id
                || webhook_id(event.source(), event.id(), &webhook.subscription) == webhook.id
        };
        if event.id() != self.id && !self.found.iter().any(is_of) {
            return None;
        }
        Some(self.step(
            raw,
            event.id(),
            Detail::Event {
                event_type: event.event_type().to_owned(),
            },
        ))
    }

    /// The step for a record that could not be read as an event, if its value contains the quoted id or one of the headers
    /// of the original is the id.
    #[must_use]
    pub(super) fn invalid(&self, raw: &RecordView<'_>) -> Option<Step> {
        let value = String::from_utf8_lossy(raw.value.unwrap_or_default());
        let own = |name: &str| name.starts_with("hookstream-");
        let mut original = raw.headers.iter().filter(|(name, _)| !own(name));
        let in_header = original.any(|(_, value)| *value == self.id.as_bytes());
        if !in_header && !value.contains(&format!("\"{}\"", self.id)) {
            return None;
        }
        let error = raw
            .headers
            .iter()
            .find(|(name, _)| *name == "hookstream-error");
        let error = error.map_or_else(String::new, |(_, text)| {
            String::from_utf8_lossy(text).into_owned()
        });
        Some(self.step(raw, &self.id, Detail::Invalid { error }))
    }

    fn step(&self, raw: &RecordView<'_>, event_id: &str, detail: Detail) -> Step {
        Step {
            topic: Arc::clone(raw.topic),
            at: raw.at,
            time: raw.time,
            webhook: None,
            event_id: event_id.to_owned(),
            detail,
        }
    }
}

/// Whether the headers carry the id as a CloudEvent in binary mode.
fn in_header(id: &str, headers: &[(&str, &[u8])]) -> bool {
    let mut named = headers.iter().filter(|(name, _)| *name == "ce_id");
    named.any(|(_, value)| *value == id.as_bytes())
}
