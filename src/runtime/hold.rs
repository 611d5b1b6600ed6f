//! Which roles of this process hold, as the thread that looks for holds last saw it (see [`crate::model::hold`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::model::hold::HeldRoles;

/// Shared by the roles of a process.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    looked: Arc<AtomicBool>,
    fanout: Arc<AtomicBool>,
    release: Arc<AtomicBool>,
}

impl Holds {
    /// Takes note of what a look has found, or that a look has failed and the last one still holds.
    pub fn set(&self, roles: HeldRoles) {
        self.fanout.store(roles.fanout, Ordering::Release);
        self.release.store(roles.release, Ordering::Release);
        self.looked.store(true, Ordering::Release);
    }

    /// Whether there was a look: before it, a role does not know whether it may start.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.looked.load(Ordering::Acquire)
    }

    /// The flag of a role; `None` for roles that are never held.
    #[must_use]
    pub fn of(&self, role: &str) -> Option<Arc<AtomicBool>> {
        match role {
            "fanout" => Some(Arc::clone(&self.fanout)),
            "release" => Some(Arc::clone(&self.release)),
            _ => None,
        }
    }
}
