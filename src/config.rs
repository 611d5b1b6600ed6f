//! Settings: as given ([`Layers`]), then validated ([`Settings`]).
//!
//! Precedence, highest first: flag, environment variable, key in the file, service binding, default. All problems are
//! reported at once, each with name, value, source and allowed values, so that a rollout does not fail once per mistake.
//! Pure: the CLI reads the flags, the environment and the files.

mod binding;
pub mod credentials;
mod files;
mod layers;
mod login;
mod mapping;
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
pub use secrets::{REDACTED, SecretRef, is_secret};
pub use settings::{
    EgressSettings, Guarantee, Machine, OtlpSettings, RegistryAuth, SchemaRegistrySettings,
    Settings, StartAt, Topics,
};
