//! A subscription: who wants which events, where, and how. A record is accepted as a whole or rejected.
//!
//! The validator is `schemas/subscription.schema.json`, compiled into the program, so the documentation, `subscriptions
//! apply` and the subscription cache of a running role use the same rules. What a schema cannot express is checked here
//! after it; all problems are reported at once. No message shows a secret or a header value (**Secret**). Whether a URL
//! may be reached is decided by the egress policy, not here.

mod auth;
mod decision;
mod endpoint_url;
pub mod filter;
mod fold;
mod interned;
mod json;
mod keep;
mod model;
mod numbers;
mod path;
mod record;
mod reference;
mod sealing;
mod source;
mod topic_record;
mod validate;
pub mod verification;
mod version;

pub use auth::{Auth, OAuth2};
pub use decision::{Decider, Decision, DisabledBecause};
pub use endpoint_url::EndpointUrl;
pub use filter::{Filter, Segment, TypePattern};
pub use fold::{Change, Fold, is_id};
pub use json::StrictValue;
pub use keep::{fingerprinted, has_fingerprints, keep};
pub use model::{
    BoxedOverrides, NO_EVENT, Order, Overrides, RateLimit, Source, State, StatusRule, StatusRules,
    Subscription, Texts, TlsReferences,
};
pub use numbers::check_numbers;
pub use record::{MAX_RECORD_BYTES, SubscriptionError, redacted};
pub use reference::MAX_HEADER_BYTES;
pub use sealing::{rotated, seal};
pub use source::{HeaderSource, Redacted, SecretSource, SigningSecret};
pub use topic_record::{Kept, ReadRecord, TopicRecord};
pub use validate::{
    DEFAULT_MAX_IN_FLIGHT, MAX_RETRY_DELAY, MAX_TIMEOUT, MIN_PROBE, MIN_RETRY_DELAY, MIN_TIMEOUT,
    SCHEMA, parse,
};
pub use version::{APPLIED, Version};

#[cfg(test)]
mod tests;
