//! Values that are framed with a schema id: which schema an event needs, and its JSON.
//!
//! Value bytes in, JSON bytes out, before an event is read from them: everything behind it sees JSON. Without
//! `--schema-registry`, and for values without such a framing, nothing is done.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::history::EventPartition;
use super::metrics::{FanoutMetrics, SchemaResult};
use super::waiting::Waiting;
use crate::config::Settings;
use crate::edge::kafka::record::each_header;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{RecordView, TopicPartition};
use crate::edge::schema_registry::{Asked, Lookup, SchemaRegistry};
use crate::model::schema::{self, Framed, Schema, SchemaId};

/// How long an event waits here for a registry that responds, before its partition does.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often waiting partitions are looked at.
const EVERY: Duration = Duration::from_millis(50);

/// What an event's value needs.
#[derive(Debug)]
pub(super) enum Needs {
    /// Nothing: it is read as it is.
    Nothing,
    /// To be decoded with this schema.
    Schema(SchemaId, Arc<Schema>),
    /// A schema that the registry has not returned yet.
    Later(SchemaId),
    /// It cannot be read, for this reason.
    Invalid(String),
}

/// The schemas of framed values.
#[derive(Debug)]
pub(super) struct Schemas {
    registry: Option<SchemaRegistry>,
    max_bytes: usize,
    /// Whether the registry has responded in time when an event last waited here.
    is_quick: Cell<bool>,
    looked: Instant,
}

impl Schemas {
    /// Starts asking the registry, if one is configured.
    ///
    /// # Errors
    /// [`Failure`] when its certificates or credentials cannot be read.
    pub(super) fn start(
        settings: &Settings,
        metrics: &FanoutMetrics,
        now: Instant,
    ) -> Result<Self, Failure> {
        metrics.forget_schema_waits();
        let metrics = metrics.clone();
        let observe = move |asked| metrics.schema_lookups(SchemaResult::of(asked)).inc();
        let registry = SchemaRegistry::start(settings, observe)
            .map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Self {
            registry,
            max_bytes: settings.max_event_bytes,
            is_quick: Cell::new(true),
            looked: now,
        })
    }

    /// What the value of `message` needs.
    pub(super) fn needs(&self, message: &impl RecordView) -> Needs {
        let Some(registry) = &self.registry else {
            return Needs::Nothing;
        };
        let Some(framed) = framed(message, self.max_bytes) else {
            return Needs::Nothing;
        };
        let patience = if self.is_quick.get() {
            PATIENCE
        } else {
            Duration::ZERO
        };
        let found = registry.lookup_within(framed.id, patience);
        let id = framed.id;
        match found {
            Lookup::Found(schema) => {
                self.is_quick.set(true);
                Needs::Schema(id, schema)
            }
            Lookup::Missing => {
                self.is_quick.set(true);
                Needs::Invalid(format!(
                    "the value names the schema id {id}, which the Schema Registry does not have"
                ))
            }
            Lookup::Unusable(reason) => Needs::Invalid(format!(
                "the value names the schema id {id}, which cannot be used: {reason}"
            )),
            Lookup::Pending(_) => {
                self.is_quick.set(false);
                Needs::Later(id)
            }
        }
    }

    /// The partitions that need not wait any more. Reports those that do.
    pub(super) fn due(
        &mut self,
        waiting: &mut Waiting,
        now: Instant,
        metrics: &FanoutMetrics,
        name: impl Fn(EventPartition) -> TopicPartition,
    ) -> Vec<EventPartition> {
        let Some(registry) = &self.registry else {
            return Vec::new();
        };
        if waiting.is_empty() || now.saturating_duration_since(self.looked) < EVERY {
            return Vec::new();
        }
        self.looked = now;
        let all: Vec<_> = waiting.all().collect();
        let mut due = Vec::new();
        for (at, wait) in all {
            let Lookup::Pending(failed) = registry.lookup(wait.schema) else {
                due.push(at);
                continue;
            };
            let named = name(at);
            metrics.schema_wait(&named.topic, named.partition, wait.time(now));
            if let Some(reason) = failed
                && waiting.logs(at, now)
            {
                tracing::warn!(
                    topic = %named.topic,
                    partition = named.partition,
                    offset = wait.offset.0,
                    schema = %wait.schema,
                    waited = ?wait.time(now),
                    "the schema registry does not return a schema; this partition waits, the others go on: {reason}",
                );
            }
        }
        due
    }

    /// The JSON of the value of `message`; `None` when it is read as it is. Adapts the headers to it.
    ///
    /// # Errors
    /// Why the value cannot be read, in one sentence.
    pub(super) fn decode<'a>(
        &self,
        needs: &Needs,
        message: &'a impl RecordView,
        headers: &mut Vec<(&'a str, &'a [u8])>,
    ) -> Result<Option<Cow<'a, [u8]>>, String> {
        let (id, schema) = match needs {
            Needs::Schema(id, schema) => (id, schema),
            Needs::Invalid(reason) => return Err(reason.clone()),
            Needs::Nothing | Needs::Later(_) => return Ok(None),
        };
        let Some(framed) = framed(message, self.max_bytes) else {
            return Ok(None);
        };
        let json = schema.decode(&framed, self.max_bytes).map_err(|error| {
            format!("the value cannot be decoded with its schema, id {id}: {error}")
        })?;
        schema::adapt_headers(headers);
        Ok(Some(json))
    }
}

/// What a value is framed with; larger ones are refused as they are.
fn framed(message: &impl RecordView, max_bytes: usize) -> Option<Framed<'_>> {
    let value = message.payload().filter(|value| value.len() <= max_bytes)?;
    schema::framed(value, || each_header(message))
}

impl SchemaResult {
    fn of(asked: Asked) -> Self {
        match asked {
            Asked::Found => Self::Found,
            Asked::Missing => Self::Missing,
            Asked::Unusable => Self::Unusable,
            Asked::Failed => Self::Failed,
        }
    }
}
