//! Dead letters as a log of facts: what was given up, and what an operator did about it.
//!
//! The topic never changes a record. A letter is a fact (`dead-lettered`), and so is what later settles it
//! (`replayed`, `discarded`); the open letters are the fold of both. Facts are told apart by the header `hs-fact`,
//! and a settling fact lies in its letter's own partition, so that one partition can be folded without the others.
//!
//! A settling fact names its letter by what the letter says: webhook id, subscription, attempts and last failure,
//! since a webhook id may be dead-lettered again after its replay. That holds on a mirrored cluster too, where the
//! letter has another offset. The coordinates beside it, and the cluster that they are of, are for people, and for
//! facts of hookstream 0.1.0, which have nothing else: those settle a letter only if its webhook id and subscription
//! agree. Pure: headers come and go as plain pairs, times are arguments.

mod fact;
mod filter;
mod open;
mod reason;

pub use fact::{
    Coordinates, DeadLetter, DeadLetterInfo, FACT, Fact, FactError, Kind, MAX_ERROR_BYTES, Moment,
    Settled, Settlement, replay_headers,
};
pub use filter::Filter;
pub use open::{Identities, Identity, OpenLetters, State};
pub use reason::Reason;

#[cfg(test)]
mod tests;
