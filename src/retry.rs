//! Retries: how what waits in the tiers comes back ([`release`]). When it is due and in which tier it waits is decided in
//! [`crate::model::backoff`] and [`crate::model::tiers`].

pub mod metrics;
pub mod release;
