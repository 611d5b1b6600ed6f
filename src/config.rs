//! Settings: as typed ([`Layers`]), then checked ([`Settings`]).
//!
//! A flag goes before an environment variable, that before a key in the file, that before the service binding, that
//! before the default. All that is wrong is told at once, each by its name, its value, where that came from and what is allowed, so that a rollout
//! does not find one mistake per restart. Pure: `cli.rs` reads the flags, the environment and the file.

mod binding;
pub mod credentials;
mod files;
mod layers;
mod parse;
mod report;
mod secrets;
mod settings;
pub mod table;
#[cfg(test)]
mod tests;

pub use files::Connection;
pub use layers::{Layers, Source};
pub use report::{EffectiveSetting, effective, reference, unknown_variables};
pub use secrets::{REDACTED, is_secret};
pub use settings::{EgressSettings, Guarantee, Machine, OtlpSettings, Settings, Topics};
