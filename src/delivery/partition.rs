//! A partition of the commands, as a state machine: [`Partition::apply`] turns an event into effects.
//!
//! It owns the window, the lanes, the order within subjects and the fairness between subscribers, and decides when a
//! command is sent, retried, parked or given up. The worker's shell (`worker.rs`) executes its decisions. Replica-wide
//! state, the cap on requests in flight and an egress outage, arrives with the events. So a test
//! drives it with made-up events and restores it from any snapshot.
//!
//! Pure: no tokio, HTTP, Kafka, clock or metrics; time, randomness and subscriptions are arguments ([`env::Env`]).
//!
//! | module | what |
//! |---|---|
//! | [`event`], [`effect`], [`mod@env`] | inputs, outputs, environment |
//! | `state`, `apply`, `routing`, `room`, `slow_lanes`, `parking`, `until_probe`, `copies`, `conclusion`, `ordering`, `holding`, `idle`, `report` | the state machine |
//! | [`lane`], [`breaker`], [`concurrency`], [`pacing`] | one subscription's queue and its limits |
//! | [`order`], [`under_way`], [`fairness`] | order within subjects; fairness between subscribers |
//! | [`deferral`], `deferring`, `growth` | commands that are read again when their lane has room, or a probe has ended |
//! | [`health`] | the way to a lane's endpoint |
//! | `lane_status`, `status` | what a lane knows about its endpoint, for operators |
//! | [`counts`] | attempts by class |

mod apply;
pub mod breaker;
mod conclusion;
pub mod concurrency;
mod copies;
pub mod counts;
pub mod deferral;
mod deferring;
pub mod effect;
pub mod env;
pub mod event;
pub mod fairness;
mod growth;
pub mod health;
mod holding;
mod idle;
pub mod lane;
mod lane_status;
pub mod order;
mod ordering;
pub mod pacing;
mod parking;
mod report;
mod room;
mod routing;
mod slow_lanes;
mod state;
mod status;
#[cfg(test)]
mod tests;
pub mod under_way;
mod until_probe;

pub use state::Partition;
