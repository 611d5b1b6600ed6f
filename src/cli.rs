//! What operators type.

pub mod dead_letters;
pub mod interrupt;
pub mod outcome;
pub mod print;
pub mod replay;
pub mod subscriptions;
pub mod topics;
