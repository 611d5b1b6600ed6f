//! A producer that never keeps its caller waiting for long: it is created and abandoned in the background.
//!
//! A partition that refuses writes must not stop what does not depend on it. So a role sends a batch, goes on with its
//! other work, and looks later whether the batch is acknowledged.

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::oneshot::{Receiver, channel};

use super::port::failure::Failure;
use super::port::task::KeepWaiting;
use super::port::{Port, Producer as _, ProducerKind};
use crate::config::Settings;

enum State<P: Port> {
    Closed,
    Opening(Receiver<Result<P::Producer, Failure>>),
    Open(Box<P::Producer>),
}

/// One producer, or none at present.
pub struct Writer<P: Port> {
    port: P,
    settings: Settings,
    keep_waiting: KeepWaiting,
    purpose: &'static str,
    state: State<P>,
}

/// The producer of a writer.
pub enum Ready<'a, P: Port> {
    /// It is open.
    Yes(&'a mut P::Producer),
    /// It is being created.
    NotYet,
    /// There is none: it was closed, or could not be created.
    No,
}

impl<P: Port> Writer<P> {
    /// A writer without a producer. `keep_waiting` is called by background tasks.
    #[must_use]
    pub fn new(
        port: &P,
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
    ) -> Self {
        Self {
            port: port.clone(),
            settings: settings.clone(),
            keep_waiting,
            purpose,
            state: State::Closed,
        }
    }

    /// The same with `producer`, of the kind [`ProducerKind::Writer`].
    #[must_use]
    pub fn with(self, producer: P::Producer) -> Self {
        let state = State::Open(Box::new(producer));
        Self { state, ..self }
    }

    /// The producer, if it is there.
    ///
    /// # Errors
    /// [`Failure`] when it could not be created; it is closed then.
    pub fn ready(&mut self) -> Result<Ready<'_, P>, Failure> {
        if let State::Opening(made) = &mut self.state {
            match made.try_recv() {
                Ok(Ok(producer)) => self.state = State::Open(Box::new(producer)),
                Ok(Err(failure)) => {
                    self.state = State::Closed;
                    return Err(failure);
                }
                Err(TryRecvError::Empty) => return Ok(Ready::NotYet),
                Err(TryRecvError::Closed) => {
                    return Err(Failure::Internal(format!(
                        "the thread that creates the producer of {} was not started or has panicked, see the log above",
                        self.purpose
                    )));
                }
            }
        }
        Ok(match &mut self.state {
            State::Open(producer) => Ready::Yes(producer.as_mut()),
            State::Closed | State::Opening(_) => Ready::No,
        })
    }

    /// Whether the producer is being created.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening(_))
    }

    /// The producer, if it is open.
    pub fn producer(&mut self) -> Option<&mut P::Producer> {
        match &mut self.state {
            State::Open(producer) => Some(producer),
            State::Closed | State::Opening(_) => None,
        }
    }

    /// Begins to create the producer of a probe, with the transactional id `slot`.
    pub fn open_probe(&mut self, slot: usize) {
        let (settings, keep_waiting) = (
            self.settings.clone(),
            KeepWaiting::clone(&self.keep_waiting),
        );
        let (port, purpose) = (self.port.clone(), self.purpose);
        let (done, made) = channel();
        self.spawn(move || async move {
            let kind = ProducerKind::Probe(slot);
            let producer = port.producer(&settings, &keep_waiting, purpose, kind).await;
            // Nobody waits for it when the role has ended.
            done.send(producer).ok();
        });
        self.state = State::Opening(made);
    }

    /// Gives up the batch, and replaces the producer. Only before its offsets were sent.
    pub fn replace(&mut self) {
        let State::Open(mut old) = std::mem::replace(&mut self.state, State::Closed) else {
            return;
        };
        let keep_waiting = KeepWaiting::clone(&self.keep_waiting);
        let (done, made) = channel();
        self.spawn(move || async move {
            let producer = old.successor(&keep_waiting).await;
            done.send(producer).ok();
            old.abandon().await;
        });
        self.state = State::Opening(made);
    }

    /// Gives up the batch, if there is one, and the producer.
    pub fn close(&mut self) {
        if let State::Open(old) = std::mem::replace(&mut self.state, State::Closed) {
            self.spawn(move || old.abandon());
        }
    }

    /// Starts a task; without it, its channel is closed, and whoever waits for that fails.
    fn spawn<T: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) {
        if let Err(failure) = self.port.spawn(format!("{}-writer", self.purpose), make) {
            tracing::error!(client = self.purpose, "{failure}");
        }
    }
}
