//! Fan-out: one command per event and matching subscription.
//!
//! | file | kind | what |
//! |---|---|---|
//! | `sources` | P | where commands go and what their headers name, acknowledgements, positions, epochs |
//! | `stamp` | P | the metadata of a committed position |
//! | `trials` | P | which commands an event becomes, which events are set aside or tried alone |
//! | `blocked` | E | open transactions of publishers that hold up event partitions |
//! | `counts` | P | what an event is counted as |
//! | `history` | P | where events come from, and what failed |
//! | `identities` | P | events whose webhooks have one id, although their contents differ |
//! | `schemas` | E | values that are framed with a schema id: their schemas, their JSON |
//! | `topics` | P | the topics that fan-out needs, and who gets notices |
//! | `waiting` | P | partitions that wait for a schema |
//! | `role` | E | polls, writes, commits |

mod blocked;
mod counts;
mod history;
mod identities;
pub mod metrics;
mod role;
mod schemas;
mod sources;
mod stamp;
mod topics;
mod trials;
mod waiting;

pub use role::run;
