//! A producer that never keeps its caller waiting for long: it is created and abandoned in the background.
//!
//! A partition that refuses writes must not stop what does not depend on it. So a role sends a batch, goes on with its
//! other work, and looks later whether the batch is acknowledged.

use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::error::Failure;
use super::producer::Producer;
use super::wait::KeepWaiting;
use crate::config::Settings;

enum State {
    Closed,
    Opening(Receiver<Result<Producer, Failure>>),
    Open(Box<Producer>),
}

/// One producer, or none at present.
pub struct Writer {
    settings: Settings,
    keep_waiting: KeepWaiting,
    purpose: &'static str,
    state: State,
}

/// The producer of a writer.
pub enum Ready<'a> {
    /// It is open.
    Yes(&'a mut Producer),
    /// It is being created.
    NotYet,
    /// There is none: it was closed, or could not be created.
    No,
}

impl Writer {
    /// A writer without a producer. `keep_waiting` is called by background threads.
    #[must_use]
    pub fn new(settings: &Settings, keep_waiting: KeepWaiting, purpose: &'static str) -> Self {
        Self {
            settings: settings.clone(),
            keep_waiting,
            purpose,
            state: State::Closed,
        }
    }

    /// The same with `producer`, of [`Producer::for_writer`].
    #[must_use]
    pub fn with(self, producer: Producer) -> Self {
        let state = State::Open(Box::new(producer));
        Self { state, ..self }
    }

    /// The producer, if it is there.
    ///
    /// # Errors
    /// [`Failure`] when it could not be created; it is closed then.
    pub fn ready(&mut self) -> Result<Ready<'_>, Failure> {
        if let State::Opening(made) = &self.state {
            match made.try_recv() {
                Ok(Ok(producer)) => self.state = State::Open(Box::new(producer)),
                Ok(Err(failure)) => {
                    self.state = State::Closed;
                    return Err(failure);
                }
                Err(TryRecvError::Empty) => return Ok(Ready::NotYet),
                Err(TryRecvError::Disconnected) => {
                    return Err(Failure::Internal(format!(
                        "the thread that creates the producer of {} has panicked",
                        self.purpose
                    )));
                }
            }
        }
        Ok(match &mut self.state {
            State::Open(producer) => Ready::Yes(producer),
            State::Closed | State::Opening(_) => Ready::No,
        })
    }

    /// Whether the producer is being created.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening(_))
    }

    /// The producer, if it is open.
    pub fn producer(&mut self) -> Option<&mut Producer> {
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
        let purpose = self.purpose;
        let (done, made) = channel();
        std::thread::spawn(move || {
            let producer = Producer::probe(&settings, &keep_waiting, purpose, slot);
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
        std::thread::spawn(move || {
            let producer = old.successor(&keep_waiting);
            done.send(producer).ok();
            old.abandon();
        });
        self.state = State::Opening(made);
    }

    /// Gives up the batch, if there is one, and the producer.
    pub fn close(&mut self) {
        if let State::Open(old) = std::mem::replace(&mut self.state, State::Closed) {
            std::thread::spawn(move || old.abandon());
        }
    }
}
