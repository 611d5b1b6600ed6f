//! `hookstream demo`.

use clap::Args;

use super::outcome::{CliError, Exit};
use crate::config::{Layers, Settings};

/// `hookstream demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {}

/// Sets what the demo needs where nothing is given.
pub fn prepare(_layers: &mut Layers) {}

/// Runs the demo.
///
/// # Errors
/// [`CliError`] says what failed.
pub fn run(_settings: Settings, _args: &DemoArgs) -> Result<Exit, CliError> {
    Ok(Exit::Done)
}
