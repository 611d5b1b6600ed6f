//! The log on standard error: text for people, JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::exit::{CliError, Exit};
use crate::config::Layers;
use crate::config::table::SETTINGS;

/// Starts the log as the settings say.
///
/// # Errors
/// A log was started before, or its filter is wrong; settings are checked before this.
pub(super) fn start(layers: &Layers) -> Result<(), CliError> {
    let wrong =
        |error: &dyn std::fmt::Display| CliError::new(Exit::Usage, format!("--log: {error}"));
    let value = |name: &str| {
        let setting = SETTINGS.iter().find(|setting| setting.name == name);
        setting
            .and_then(|setting| layers.effective(setting))
            .map_or("", |(value, _)| value)
    };
    let filter = EnvFilter::try_new(value("log")).map_err(|error| wrong(&error))?;
    let log = tracing_subscriber::fmt()
        // Told on standard error, with a panic where that is closed: a log that nobody reads must not end the process.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if value("log-format") == "json" {
        log.json().flatten_event(true).try_init()
    } else {
        log.with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init()
    };
    started.map_err(|error| wrong(&error))
}
