//! Release: moves what is due from the tiers back to `webhook-commands`, or to a lower tier.
//!
//! | file | kind | what |
//! |---|---|---|
//! | `machine` | P | which records are held, when they move and where to, when a partition is paused |
//! | `role` | E | polls, pauses, resumes |
//! | `moving` | E | produces and commits |

pub mod machine;
mod moving;
mod role;

pub use role::run;
