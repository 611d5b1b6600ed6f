//! Retries: [`release`] moves commands out of the tiers when they are due. When a command is due and in which tier it
//! waits is decided in [`crate::model::backoff`] and [`crate::model::tiers`].

pub mod metrics;
pub mod release;
