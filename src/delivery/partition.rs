//! A partition of the commands, as a state machine: [`Partition::apply`] turns an event into effects.
//!
//! It owns the window, the lanes, the order within subjects and the fairness between subscribers, and decides everything
//! that happens to a command: when it is sent, retried, parked or given up. What it decides, the worker's shell does
//! (`worker.rs`). What is replica-wide, the cap on requests in flight and the pause during an egress outage, comes in with
//! the events. So a test drives it with made-up events, and restores it from any snapshot.
//!
//! Pure: no tokio, HTTP, Kafka, clock or metrics; time, randomness and subscriptions are arguments ([`env::Env`]).
//!
//! | module | what |
//! |---|---|
//! | [`event`], [`effect`], [`mod@env`] | what comes in, what goes out, what is asked |
//! | `state`, `apply`, `routing`, `conclusion`, `ordering`, `report` | the machine |
//! | [`lane`], [`breaker`], [`concurrency`] | one subscription's queue and its limits |
//! | [`order`], [`fairness`] | order within subjects; who waits behind a backlog |
//! | [`counts`] | attempts by class |

mod apply;
pub mod breaker;
mod conclusion;
pub mod concurrency;
pub mod counts;
pub mod effect;
pub mod env;
pub mod event;
pub mod fairness;
pub mod lane;
pub mod order;
mod ordering;
mod report;
mod routing;
mod state;
#[cfg(test)]
mod tests;

pub use state::Partition;
