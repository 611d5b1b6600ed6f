//! What hookstream works on and the rules for it: events, subscriptions, commands, attempts and dead letters, their
//! record formats, matching, retries and the window of a partition.
//!
//! Pure: no Kafka, HTTP, clock, randomness or metrics. Imports nothing of hookstream but itself.

pub mod attempt;
pub mod backoff;
pub mod breaker_rules;
pub mod clock_skew;
pub mod command;
pub mod coverage;
pub mod dead_letter;
pub mod envelope;
pub mod event;
pub mod expiry;
pub mod hold;
pub mod invalid_record;
pub mod maps;
pub mod matching;
pub mod notice;
pub mod outcome;
pub mod partitioner;
pub mod retry_after;
pub mod schema;
pub mod secret_rules;
pub mod set_aside;
pub mod signing_key;
pub mod source;
pub mod span;
pub mod stable_hash;
pub mod standing;
pub mod start_marker;
pub mod status;
pub mod subscription;
pub mod throttle;
pub mod tiers;
pub mod token;
pub mod trace_context;
pub mod transaction_end;
pub mod units;
pub mod unwritable;
pub mod varint;
pub mod window;
