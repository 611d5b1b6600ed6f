//! Settings: as given ([`Layers`]), then validated ([`Settings`]).
//!
//! Precedence, highest first: flag, environment variable, key in the file, service binding, default. All problems are
//! reported at once, each with name, value, source and allowed values, so that a rollout does not fail once per mistake.
//! Pure: the CLI reads the flags, the environment and the files.

mod binding;
pub mod credentials;
mod files;
mod hosts;
mod layers;
mod login;
mod mapping;
mod oauth;
mod parse;
mod report;
mod secrets;
mod settings;
pub mod table;
#[cfg(test)]
mod tests;

pub use files::Connection;
pub use hosts::HostPattern;
pub use layers::{Layers, Source};
pub(crate) use oauth::concerns_tokens_only;
pub use oauth::{TokenSource, is_served_here};
pub use report::{EffectiveSetting, effective, reference, unknown_variables};
pub use secrets::{Properties, REDACTED, SecretRef, is_secret};
pub use settings::{
    EgressSettings, Guarantee, Machine, OtlpSettings, ProxySettings, RegistryAuth,
    SchemaRegistrySettings, Settings, StartAt, Topics,
};
