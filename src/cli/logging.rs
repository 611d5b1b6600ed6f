//! The log on standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::exit::{CliError, Exit};
use crate::config::Layers;
use crate::config::table::SETTINGS;

/// Starts the log according to the settings.
///
/// # Errors
/// The log is already started, or the filter is invalid; the settings are checked before.
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
        // It would report its own errors on standard error and panic if that is closed; logging must not end the process.
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
