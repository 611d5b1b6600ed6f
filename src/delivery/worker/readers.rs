//! What reads for a worker.

use crate::delivery::look_ahead::Look;
use crate::delivery::partition::deferral::Pass;
use crate::delivery::reader::{Asked, Reader};

/// The readers of a worker; each is started when there is something to read.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Answers questions.
    pub(super) ahead: Option<Reader<Look>>,
    /// Reads deferred commands again.
    pub(super) again: Option<Reader<Asked<Box<Pass>>>>,
}

impl Readers {
    /// Whether none of their threads has panicked.
    pub(super) fn have_all_survived(&self) -> bool {
        let ended = self.ahead.as_ref().is_some_and(Reader::has_ended)
            || self.again.as_ref().is_some_and(Reader::has_ended);
        !ended
    }
}
