//! Delivery: commands become POSTs, and POSTs outcomes that are durable before the position passes them.
//!
//! | module | what |
//! |---|---|
//! | `role`, `commit`, `writing`, `outcome_records` | the thread of the group: polls, rebalances, commits, writes outcomes |
//! | `assigned`, `drain`, `newer` | partitions that come, those that leave, and those that stop at what a newer program wrote |
//! | `workers`, `worker`, `messages`, `sending`, `notices` | the threads that own partitions, and do what these decide |
//! | [`partition`], P | the state machine of a partition: every decision about a command |
//! | `terms`, `request`, `secrets`, `refused`, [`signing`] P | subscriptions as partitions look them up; signed requests |
//! | `verifying` | asks the endpoints of pending subscriptions for consent |
//! | `oversize`, P | what is written instead of an outcome that its topic refuses for its size |
//! | `reader`, `look_ahead`, `read_again`, `attempt_log` | reading beside the group; the record of attempts |
//! | [`outage`], [`top_subscribers`], `open_breakers`, `busy`, `rejected`, `outbox`, P | egress outages, labels, load, partitions to take back, outcomes to write |

mod assigned;
mod attempt_log;
mod busy;
mod commit;
mod drain;
mod durable_prefix;
mod look_ahead;
mod messages;
pub mod metrics;
mod newer;
mod notices;
mod open_breakers;
pub mod outage;
mod outbox;
mod outcome_records;
mod oversize;
pub mod partition;
mod read_again;
mod reader;
mod refused;
mod rejected;
mod request;
mod role;
mod secrets;
mod sending;
mod shares;
pub mod signing;
mod terms;
pub mod testing;
mod tokens;
pub mod top_subscribers;
mod topics;
mod verifying;
mod worker;
mod workers;
mod writing;

pub use role::run;
