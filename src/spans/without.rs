//! What stands for the export of spans in a build without the feature `otlp`: nothing. Settings refuse a collector there.

use std::convert::Infallible;
use std::time::Duration;

use super::Tracer;
use crate::cli::outcome::CliError;
use crate::config::Settings;
use crate::metrics::Metrics;

/// There is none.
pub struct Exporter(Infallible);

impl Exporter {
    /// Starts nothing.
    ///
    /// # Errors
    /// None.
    pub fn start(_: &Settings, _: &Metrics) -> Result<(Tracer, Option<Self>), CliError> {
        Ok((Tracer::off(), None))
    }

    /// Cannot be called.
    pub fn end(self, _: Duration) {
        match self.0 {}
    }
}
