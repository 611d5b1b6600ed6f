//! Fan-out: one command per event and matching subscription, all of them or none.

pub mod metrics;
mod role;

pub use role::run;
