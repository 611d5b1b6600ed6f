//! How a process is told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Told once; seen by every thread.
#[derive(Debug, Default)]
pub struct Stop {
    told: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Tells everybody to stop.
    pub fn tell(&self) {
        self.told.store(true, Ordering::Release);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Whether everybody was told to.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Waits for at most `time`, less when told to stop.
    pub fn wait(&self, time: Duration) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_told() {
            drop(
                self.changed
                    .wait_timeout(guard, time)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}
