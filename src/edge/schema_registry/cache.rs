//! What is known of the schemas of a registry. Pure: time and chance are arguments.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::schema::{Schema, SchemaId};

/// How long a schema that does not exist is not asked for again.
pub const FORGET_MISSING: Duration = Duration::from_secs(30);
/// The first wait after a request that failed; doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Ids that are known at a time; beyond it, the one that was used least recently is forgotten.
const MAX_IDS: usize = 4096;
/// Bytes of text of the schemas that are known at a time; the same.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What is known of a schema.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The schema.
    Found(Arc<Schema>),
    /// The registry has none with this id.
    Missing,
    /// Why it can never be used.
    Unusable(Arc<str>),
    /// It is asked for, or will be soon; why the last request failed, if one did.
    Pending(Option<Arc<str>>),
}

#[derive(Debug)]
enum State {
    Found(Arc<Schema>),
    Unusable(Arc<str>),
    Missing { until: Instant },
    Asked(Option<Failed>),
    Failed(Failed, Instant),
}

#[derive(Clone, Debug)]
struct Failed {
    reason: Arc<str>,
    wait: Duration,
}

#[derive(Debug)]
struct Entry {
    state: State,
    size: usize,
    used: u64,
}

/// What is known, by id.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<SchemaId, Entry>,
    bytes: usize,
    uses: u64,
}

impl Cache {
    /// What is known of a schema, and whether it is to be asked for.
    pub(super) fn lookup(&mut self, id: SchemaId, now: Instant) -> (Lookup, bool) {
        self.uses += 1;
        let uses = self.uses;
        let Some(entry) = self.entries.get_mut(&id) else {
            self.put(id, State::Asked(None), 0);
            return (Lookup::Pending(None), true);
        };
        entry.used = uses;
        let again = match &entry.state {
            State::Missing { until } if *until <= now => State::Asked(None),
            State::Failed(failed, due) if *due <= now => State::Asked(Some(failed.clone())),
            state => return (known(state), false),
        };
        entry.state = again;
        (known(&entry.state), true)
    }

    /// What is known of a schema, without asking for it; `None` if nothing is.
    pub(super) fn peek(&mut self, id: SchemaId) -> Option<Lookup> {
        self.entries.get(&id).map(|entry| known(&entry.state))
    }

    /// Whether a schema is being asked for.
    pub(super) fn is_asked(&self, id: SchemaId) -> bool {
        let entry = self.entries.get(&id);
        entry.is_some_and(|entry| matches!(entry.state, State::Asked(_)))
    }

    /// There is such a schema.
    pub(super) fn found(&mut self, id: SchemaId, schema: Arc<Schema>, size: usize) {
        self.put(id, State::Found(schema), size);
    }

    /// There is one, but it cannot be used.
    pub(super) fn unusable(&mut self, id: SchemaId, reason: String) {
        self.put(id, State::Unusable(reason.into()), 0);
    }

    /// There is none.
    pub(super) fn missing(&mut self, id: SchemaId, now: Instant) {
        let until = now + FORGET_MISSING;
        self.put(id, State::Missing { until }, 0);
    }

    /// The registry did not say. `jitter` is in [0, 1).
    pub(super) fn failed(&mut self, id: SchemaId, reason: String, now: Instant, jitter: f64) {
        let before = match self.entries.get(&id).map(|entry| &entry.state) {
            Some(State::Asked(Some(failed)) | State::Failed(failed, _)) => Some(failed.wait),
            _ => None,
        };
        let wait = before.map_or(FIRST_WAIT, |before| (before * 2).min(LONGEST_WAIT));
        let reason = reason.into();
        let due = now + wait.mul_f64(0.8 + 0.2 * jitter);
        self.put(id, State::Failed(Failed { reason, wait }, due), 0);
    }

    fn put(&mut self, id: SchemaId, state: State, size: usize) {
        self.bytes += size;
        let entry = Entry {
            state,
            size,
            used: self.uses,
        };
        if let Some(before) = self.entries.insert(id, entry) {
            self.bytes -= before.size;
        }
        while self.entries.len() > MAX_IDS || self.bytes > MAX_BYTES {
            let others = self
                .entries
                .iter()
                .filter(|(other, entry)| **other != id && !matches!(entry.state, State::Asked(_)));
            let Some((&oldest, _)) = others.min_by_key(|(_, entry)| entry.used) else {
                return;
            };
            if let Some(forgotten) = self.entries.remove(&oldest) {
                self.bytes -= forgotten.size;
            }
        }
    }
}

fn known(state: &State) -> Lookup {
    match state {
        State::Found(schema) => Lookup::Found(Arc::clone(schema)),
        State::Unusable(reason) => Lookup::Unusable(Arc::clone(reason)),
        State::Missing { .. } => Lookup::Missing,
        State::Asked(failed) => {
            Lookup::Pending(failed.as_ref().map(|failed| Arc::clone(&failed.reason)))
        }
        State::Failed(failed, _) => Lookup::Pending(Some(Arc::clone(&failed.reason))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::clock;
    use crate::model::schema::{Definition, Language};

    fn schema() -> Arc<Schema> {
        let definition = Definition {
            language: Language::Json,
            text: "{}".to_owned(),
            references: Vec::new(),
        };
        Arc::new(Schema::compile(&definition).unwrap())
    }

    const ID: SchemaId = SchemaId::Number(7);

    #[test]
    fn an_id_is_asked_for_once_and_kept() {
        let (mut cache, now) = (Cache::default(), clock::instant());
        assert!(matches!(
            cache.lookup(ID, now),
            (Lookup::Pending(None), true)
        ));
        assert!(matches!(
            cache.lookup(ID, now),
            (Lookup::Pending(None), false)
        ));
        assert!(cache.is_asked(ID));
        cache.found(ID, schema(), 2);
        let later = now + Duration::from_secs(1_000_000);
        assert!(matches!(cache.lookup(ID, later), (Lookup::Found(_), false)));
    }

    #[test]
    fn a_missing_schema_is_asked_for_again_after_a_while() {
        let (mut cache, now) = (Cache::default(), clock::instant());
        cache.lookup(ID, now);
        cache.missing(ID, now);
        let before = now + FORGET_MISSING / 2;
        assert!(matches!(cache.lookup(ID, before), (Lookup::Missing, false)));
        let (found, ask) = cache.lookup(ID, now + FORGET_MISSING);
        assert!(ask && matches!(found, Lookup::Pending(None)));
    }

    #[test]
    fn failures_wait_longer_each_time_and_keep_their_reason() {
        let (mut cache, mut now) = (Cache::default(), clock::instant());
        let mut waits = Vec::new();
        cache.lookup(ID, now);
        for _ in 0..7 {
            cache.failed(ID, "status 401".to_owned(), now, 1.0);
            let begin = now;
            loop {
                now += Duration::from_millis(500);
                let (found, ask) = cache.lookup(ID, now);
                assert!(matches!(found, Lookup::Pending(Some(reason)) if &*reason == "status 401"));
                if ask {
                    break;
                }
            }
            waits.push((now - begin).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn what_is_known_is_bounded_and_what_is_asked_for_stays() {
        let (mut cache, now) = (Cache::default(), clock::instant());
        cache.lookup(ID, now);
        for number in 1000..1000 + u32::try_from(MAX_IDS).unwrap() * 2 {
            cache.lookup(SchemaId::Number(number), now);
            cache.missing(SchemaId::Number(number), now);
        }
        assert_eq!(cache.entries.len(), MAX_IDS);
        assert!(cache.is_asked(ID));
        for number in 0..100 {
            cache.found(SchemaId::Number(number), schema(), MAX_BYTES / 10);
        }
        assert!(cache.bytes <= MAX_BYTES, "{}", cache.bytes);
        let sum: usize = cache.entries.values().map(|entry| entry.size).sum();
        assert_eq!(cache.bytes, sum);
    }
}
