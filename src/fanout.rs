//! Fan-out: one command per event and matching subscription, all of them or none.
//!
//! | file | kind | what |
//! |---|---|---|
//! | `batch` | P | which commands an event becomes, when a batch ends and what it commits, which events are set aside |
//! | `blocked` | E | open transactions of publishers that hold up event partitions |
//! | `history` | P | where recent events came from, and what failed |
//! | `identities` | P | events of a batch whose webhooks have one id, although their contents differ |
//! | `schemas` | E | values that are framed with a schema id: their schemas, their JSON |
//! | `topics` | P | the topics that fan-out needs, and who gets notices |
//! | `waiting` | P | partitions that wait for a schema |
//! | `role` | E | polls, produces, commits |

mod batch;
mod blocked;
mod history;
mod identities;
pub mod metrics;
mod role;
mod schemas;
mod topics;
mod waiting;

pub use role::run;
