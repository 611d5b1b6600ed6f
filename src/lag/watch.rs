//! A thread that refreshes a value again and again until its [`Watch`] is dropped.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::edge::clock;
use crate::edge::kafka::error::Failure;

/// The latest value, once there is one.
type Latest<T> = Arc<Mutex<Option<T>>>;

/// Stops the thread when dropped.
pub(super) struct Watch<T> {
    _open: Sender<()>,
    latest: Latest<T>,
}

impl<T: Clone + Send + 'static> Watch<T> {
    /// Starts a thread that runs `run`, which is to end when [`Shown::goes_on`] says so.
    ///
    /// # Errors
    /// [`Failure`] when the thread cannot be started.
    pub(super) fn start(
        name: &str,
        run: impl FnOnce(&Shown<T>) + Send + 'static,
    ) -> Result<Self, Failure> {
        let (open, closed) = channel();
        let latest = Latest::default();
        let shown = Shown {
            latest: Arc::clone(&latest),
            closed,
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shown))
            .map_err(|error| Failure::Internal(format!("starting a thread: {error}")))?;
        Ok(Self {
            _open: open,
            latest,
        })
    }

    /// The latest value, if there is one.
    pub(super) fn latest(&self) -> Option<T> {
        let latest = self.latest.lock();
        latest.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, for a command that has just started: waits for the first one, at most `patience`.
    pub(super) fn first(&self, patience: Duration) -> Option<T> {
        /// How often it looks for it.
        const AGAIN: Duration = Duration::from_millis(20);
        let began = clock::instant();
        loop {
            let latest = self.latest();
            if latest.is_some() || clock::instant() - began >= patience {
                return latest;
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// The side of the thread.
pub(super) struct Shown<T> {
    latest: Latest<T>,
    closed: Receiver<()>,
}

impl<T> Shown<T> {
    /// Replaces the value.
    pub(super) fn show(&self, value: Option<T>) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// Waits for `pause`; returns `false` at once when the watch was dropped.
    pub(super) fn goes_on(&self, pause: Duration) -> bool {
        self.closed.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
    }
}
