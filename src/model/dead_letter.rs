//! Dead letters as a log of facts: the commands that were given up, and what operators did about them.
//!
//! Records are never changed. A dead letter is a fact (`dead-lettered`), and so is what later settles it (`replayed`,
//! `discarded`); the open dead letters are the fold of both. The header `hs-fact` distinguishes facts, and a settling
//! fact is in the same partition as its dead letter, so that each partition can be folded on its own.
//!
//! A settling fact identifies its dead letter by content: webhook id, subscription, attempts and last failure, since a
//! webhook id may be dead-lettered again after its replay. This also works on a mirrored cluster, where the dead letter
//! has another offset. The coordinates and the cluster id beside it are for operators, and for facts of hookstream 0.1.0,
//! which have nothing else: those settle a dead letter only if webhook id and subscription match. Pure: headers are plain
//! pairs, times are arguments.

mod exported;
mod fact;
mod filter;
mod open;
mod reason;

pub use exported::{Exported, ExportedHeader, Importable};
pub use fact::{
    Coordinates, DeadLetter, DeadLetterInfo, FACT, Fact, FactError, IMPORTED, Kind,
    MAX_ERROR_BYTES, Moment, Settled, Settlement, replay_headers,
};
pub use filter::Filter;
pub use open::{Identities, Identity, OpenLetters, State};
pub use reason::Reason;

#[cfg(test)]
mod tests;
