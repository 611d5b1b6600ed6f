//! The JSON of event values that are framed with a schema id, by way of the Schema Registry.
//!
//! For operators' commands, which wait for the registry. One that cannot decode some values goes on, and reports how many
//! it did not look into, and why.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::Settings;
use crate::edge::clock;
use crate::edge::schema_registry::{Lookup, SchemaRegistry};
use crate::model::schema::{self, Framed, SchemaId};

/// How long to wait for a schema.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same once the registry has not returned one.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// Values that were not decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undecoded {
    /// How many.
    pub values: u64,
    /// Why not the first of them.
    pub reason: String,
}

/// The schemas of framed values.
pub struct Schemas {
    /// Or why it cannot be asked.
    registry: Result<Option<SchemaRegistry>, String>,
    max_bytes: usize,
    /// What the registry did not return: it is not asked again.
    failed: Mutex<HashMap<SchemaId, Arc<str>>>,
    undecoded: Mutex<Undecoded>,
}

impl Schemas {
    /// Starts to ask the registry, if one is configured.
    #[must_use]
    pub fn start(settings: &Settings) -> Self {
        Self {
            registry: SchemaRegistry::start(settings, |_| {}).map_err(|error| error.to_string()),
            max_bytes: settings.max_event_bytes,
            failed: Mutex::default(),
            undecoded: Mutex::default(),
        }
    }

    /// What was not decoded.
    #[must_use]
    pub fn into_undecoded(self) -> Undecoded {
        self.undecoded
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The JSON of a value, with the headers adapted to it; `None` when it is to be read as it is. What cannot be decoded
    /// is counted if it `counts`.
    pub fn json<'a>(
        &self,
        value: Option<&'a [u8]>,
        headers: &mut Vec<(&'a str, &'a [u8])>,
        counts: bool,
        stop: &dyn Fn() -> bool,
    ) -> Option<Cow<'a, [u8]>> {
        // Larger ones are refused by fan-out as they are.
        let value = value.filter(|value| value.len() <= self.max_bytes)?;
        let framed = schema::framed(value, || {
            headers.iter().map(|(name, value)| (*name, Some(*value)))
        })?;
        match self.decode(&framed, stop) {
            Ok(json) => {
                schema::adapt_headers(headers);
                Some(json)
            }
            Err(reason) => {
                if counts {
                    let mut all = self
                        .undecoded
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    if all.values == 0 {
                        all.reason = reason;
                    }
                    all.values += 1;
                }
                None
            }
        }
    }

    fn decode<'a>(
        &self,
        framed: &Framed<'a>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Cow<'a, [u8]>, String> {
        let id = framed.id;
        let registry = match &self.registry {
            Ok(Some(registry)) => registry,
            Ok(None) => return Err("set --schema-registry to decode them".to_owned()),
            Err(reason) => return Err(reason.clone()),
        };
        match self.lookup(registry, id, stop) {
            Lookup::Found(schema) => schema
                .decode(framed, self.max_bytes)
                .map_err(|error| format!("schema id {id}: {error}")),
            Lookup::Missing => Err(format!("the Schema Registry has no schema id {id}")),
            Lookup::Unusable(reason) => Err(format!("schema id {id} cannot be used: {reason}")),
            Lookup::Pending(reason) => {
                let reason = reason.as_deref().unwrap_or("no response");
                Err(format!(
                    "the Schema Registry does not return schema id {id}: {reason}"
                ))
            }
        }
    }

    fn lookup(&self, registry: &SchemaRegistry, id: SchemaId, stop: &dyn Fn() -> bool) -> Lookup {
        const STEP: Duration = Duration::from_millis(100);
        let patience = {
            let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = failed.get(&id) {
                return Lookup::Pending(Some(Arc::clone(reason)));
            }
            if failed.is_empty() {
                PATIENCE
            } else {
                IMPATIENCE
            }
        };
        let until = clock::instant() + patience;
        loop {
            let found = registry.lookup_within(id, STEP);
            let Lookup::Pending(reason) = &found else {
                return found;
            };
            if stop() || clock::instant() >= until {
                let reason = reason.clone().unwrap_or_else(|| Arc::from("no response"));
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.insert(id, reason);
                return found;
            }
            // A failed request is repeated after a while.
            std::thread::sleep(STEP);
        }
    }
}
