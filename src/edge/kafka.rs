//! The edge to Kafka.
//!
//! | module | what |
//! |---|---|
//! | [`client`], [`credentials`], [`oauth`], `sasl` | settings, logins, tokens |
//! | [`log`], [`error`], `cause` | the library's log, what an error means |
//! | [`member`], [`producer`] | a member of a consumer group; transactions |
//! | [`best_effort`] | records that may be lost |
//! | [`log_reader`], [`ends`], [`topics`], [`cluster`], [`wait`] | reading and describing topics without a group |
//! | [`subscription_cache`] | the subscriptions, kept in memory |
//! | [`subscription_log`] | the subscriptions, read once |
//! | [`record`] | headers and commands as records |
//! | [`watchdog`], `bootstrap` | calls that hang, clients that lost every broker |

pub mod best_effort;
mod bootstrap;
mod cause;
pub mod client;
pub mod cluster;
pub mod credentials;
pub mod ends;
pub mod error;
pub mod log;
pub mod log_reader;
pub mod member;
pub mod oauth;
pub mod producer;
pub mod record;
mod sasl;
pub mod status_cache;
pub mod status_log;
pub mod subscription_cache;
pub mod subscription_log;
pub mod topics;
mod unread;
pub mod wait;
pub mod watchdog;
