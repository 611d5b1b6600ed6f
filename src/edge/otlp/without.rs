//! What stands for the export of spans in a build without the feature `otlp`: nothing. Settings refuse a collector there.

use std::convert::Infallible;
use std::time::Duration;

use super::tracer::{SetupError, SpanCounters, Tracer};
use crate::config::Settings;

/// There is none.
pub struct Exporter(Infallible);

impl Exporter {
    /// Starts nothing.
    ///
    /// # Errors
    /// None.
    pub fn start(_: &Settings, _: SpanCounters) -> Result<(Tracer, Option<Self>), SetupError> {
        Ok((Tracer::off(), None))
    }

    /// Cannot be called.
    pub fn end(self, _: Duration) {
        match self.0 {}
    }
}
