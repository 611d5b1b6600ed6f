//! The simulation: the roles of hookstream in virtual time, on a simulated Kafka.
//!
//! `kafka` is the simulated broker and what its clients do; `conformance` compares both with a real broker.

// As in `tests/it`: a test that cannot go on should stop where it stands.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    dead_code,
    missing_docs,
    unreachable_pub
)]

#[path = "../it"]
mod it {
    pub mod support;
}

mod conformance;
mod kafka;
