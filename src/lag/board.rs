//! The latest figures of the lag role, and its last hour, for the HTTP server.

use std::sync::{Arc, Mutex, PoisonError};

use super::figures::Figures;
use super::history::{History, Point};

/// The latest figures and the last hour, shared with the HTTP server.
#[derive(Debug, Default)]
pub struct Board {
    latest: Mutex<Option<Arc<Figures>>>,
    history: Mutex<History>,
}

impl Board {
    /// Replaces the figures.
    pub fn put(&self, figures: Figures) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.note(&figures);
        drop(history);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(Arc::new(figures));
    }

    /// The last hour, a point a minute, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Point> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.points().cloned().collect()
    }

    /// The latest figures; `None` if the role does not run or has not read anything yet.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Figures>> {
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
