//! When to try again ([`schedule`]) and where a command waits until then ([`tier`]).

pub mod schedule;
pub mod tier;
