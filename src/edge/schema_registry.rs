//! The schemas of a registry with Confluent's API, by id.
//!
//! A thread of its own with its own runtime asks the registry, so that whoever needs a schema never waits for it. Each id
//! is asked for once at a time. What is found is kept, since a schema never changes under its id.
//!
//! | response | what it is |
//! |---|---|
//! | a schema that can be used | [`Lookup::Found`] |
//! | a schema that cannot be used | [`Lookup::Unusable`]: never, whoever asks |
//! | 404 with the error code 40403 | [`Lookup::Missing`], for [`FORGET_MISSING`] |
//! | anything else, or none | [`Lookup::Pending`] with a reason; asked again after 1 s to 30 s |
//!
//! The operator chooses the registry, so the egress rules, which restrict subscribers, do not apply to it.

mod cache;
mod client;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};

use self::cache::Cache;
pub use self::cache::{FORGET_MISSING, Lookup};
pub use self::client::SetupError;
use self::client::{Answer, Client};
use super::clock;
use crate::config::Settings;
use crate::model::schema::{Schema, SchemaId};

/// Schemas that are asked for at a time.
const CONCURRENT: usize = 8;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// There is such a schema, and it can be used.
    Found,
    /// There is none.
    Missing,
    /// There is one, but it cannot be used.
    Unusable,
    /// The registry did not say; asked again later.
    Failed,
}

/// The schemas of a registry. The thread ends when this is dropped.
#[derive(Debug)]
pub struct SchemaRegistry {
    shared: Arc<Shared>,
    requests: UnboundedSender<SchemaId>,
    _open: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Shared {
    cache: Mutex<Cache>,
    /// Something was answered.
    changed: Condvar,
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SchemaRegistry {
    /// Starts the thread, if a registry is configured. `observe` is called after each request.
    ///
    /// # Errors
    /// [`SetupError`] when a certificate or credential cannot be read, or the thread cannot be started.
    pub fn start(
        settings: &Settings,
        observe: impl Fn(Asked) + Send + Sync + 'static,
    ) -> Result<Option<Self>, SetupError> {
        let Some(registry) = &settings.schema_registry else {
            return Ok(None);
        };
        let client = Client::new(registry, settings.ca_file.as_deref())?;
        let shared = Arc::<Shared>::default();
        let (requests, asked) = unbounded_channel();
        let (open, closed) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SetupError::Thread)?;
        let asker = Arc::new(Asker {
            client,
            shared: Arc::clone(&shared),
            observe: Box::new(observe),
            slots: Semaphore::new(CONCURRENT),
        });
        std::thread::Builder::new()
            .name("schemas".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = ask(asker, asked) => {}
                        // Nothing is ever sent: the other end is dropped.
                        _ = closed => {}
                    }
                });
                // A lookup of the registry's name must not delay the exit of the process.
                runtime.shutdown_background();
            })
            .map_err(SetupError::Thread)?;
        tracing::info!(url = registry.url, "schema registry configured");
        Ok(Some(Self {
            shared,
            requests,
            _open: open,
        }))
    }

    /// What is known of a schema. What is not known yet, or has to be asked for again, is asked for.
    #[must_use]
    pub fn lookup(&self, id: SchemaId) -> Lookup {
        let (found, ask) = self.shared.cache().lookup(id, clock::instant());
        if ask {
            // The thread ends only when this is dropped.
            self.requests.send(id).ok();
        }
        found
    }

    /// Does the same, and waits for the registry for at most `patience` if it has to be asked.
    #[must_use]
    pub fn lookup_within(&self, id: SchemaId, patience: Duration) -> Lookup {
        let found = self.lookup(id);
        if !matches!(found, Lookup::Pending(_)) {
            return found;
        }
        let cache = self.shared.cache();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(cache, patience, |cache| cache.is_asked(id));
        let (mut cache, _) = waited.unwrap_or_else(PoisonError::into_inner);
        cache.peek(id).unwrap_or(found)
    }
}

struct Asker {
    client: Client,
    shared: Arc<Shared>,
    observe: Box<dyn Fn(Asked) + Send + Sync>,
    slots: Semaphore,
}

/// Asks for each id that comes, until nobody can ask any more.
async fn ask(asker: Arc<Asker>, mut asked: UnboundedReceiver<SchemaId>) {
    while let Some(id) = asked.recv().await {
        let asker = Arc::clone(&asker);
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _slot = asker.slots.acquire().await;
            let answer = asker.client.schema(id).await;
            asker.answered(id, answer);
        });
    }
}

impl Asker {
    fn answered(&self, id: SchemaId, answer: Answer) {
        let now = clock::instant();
        let asked = match answer {
            Answer::Found(definition) => {
                // Before the lock: a large schema takes a while.
                match Schema::compile(&definition) {
                    Ok(schema) => {
                        let size = definition.size();
                        self.shared.cache().found(id, Arc::new(schema), size);
                        Asked::Found
                    }
                    Err(reason) => {
                        tracing::warn!(schema = %id, "schema cannot be used: {reason}");
                        self.shared.cache().unusable(id, reason.to_string());
                        Asked::Unusable
                    }
                }
            }
            Answer::Unusable(reason) => {
                tracing::warn!(schema = %id, "schema cannot be used: {reason}");
                self.shared.cache().unusable(id, reason.to_string());
                Asked::Unusable
            }
            Answer::Missing => {
                self.shared.cache().missing(id, now);
                Asked::Missing
            }
            Answer::Failed(reason) => {
                tracing::debug!(schema = %id, "schema not read: {reason}");
                let jitter = fastrand::f64();
                self.shared.cache().failed(id, reason, now, jitter);
                Asked::Failed
            }
        };
        (self.observe)(asked);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
