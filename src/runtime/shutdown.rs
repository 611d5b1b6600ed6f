//! The stop signal of a process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Set once; seen by every thread.
#[derive(Debug, Default)]
pub struct Stop {
    requested: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Tells all threads to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Whether the threads must stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Waits for `time`, or until requested to stop.
    pub fn wait(&self, time: Duration) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_requested() {
            drop(
                self.changed
                    .wait_timeout(guard, time)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}
