//! A subscription: who wants which events, where, and how. Read from its record, whole or not at all.
//!
//! `schemas/subscription.schema.json` is the validator, compiled into the program, so what the documentation shows,
//! what `subscriptions apply` refuses and what the table of a running role keeps out are one thing. What a schema
//! cannot state is checked here after it; all problems are reported at once. No message shows a secret or the
//! value of a header (**Secret**). Whether a URL may be reached is egress's question, not this file's.

pub mod filter;
mod model;
mod record;
mod validate;

pub use filter::{Filter, TypePattern};
pub use model::{
    Order, RateLimit, Redacted, SecretSource, State, StatusRule, StatusRules, Subscription,
};
pub use record::{MAX_RECORD_BYTES, SubscriptionError, redacted, with_state};
pub use validate::{
    DEFAULT_MAX_IN_FLIGHT, MAX_RETRY_DELAY, MAX_TIMEOUT, MIN_PROBE, MIN_RETRY_DELAY, MIN_TIMEOUT,
    SCHEMA, parse,
};

#[cfg(test)]
mod tests;
