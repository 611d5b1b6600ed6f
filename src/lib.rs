//! hookstream turns events on Kafka into signed webhooks, with Kafka as its only infrastructure.
//!
//! ```text
//!  order-events ──► fanout ──► webhook-commands ──► delivery ──► HTTPS POST
//!    (group 1: one command per matching     (group 2)    │
//!     subscription, keyed by subscriber)                 ├─ retry ──► webhook-retry-<delay> ──► release ──► webhook-commands
//!  webhook-subscriptions (compacted) ─► cache            └─ permanent failure ─► webhook-dead-letters ──► replay ──► webhook-commands
//!    in the memory of fanout and delivery
//! ```
//!
//! A command's key is its subscriber, and released retries return to `webhook-commands`. So one delivery replica
//! owns all the work of a subscriber, and limits and order are exact without coordination.
//!
//! # Invariants
//! Tests and assertions quote these names.
//!
//! - **Complete**: for each event below fan-out's committed offset and each subscription that matched in every cache
//!   involved, there is exactly one live command. A subscription that is added, changed or removed meanwhile is decided
//!   by one of the caches, and gets at most one. Some of an event's commands may be visible before others.
//! - **Durable outcome**: delivery's committed position passes a command only after it is delivered, or its retry
//!   or dead letter is durable in Kafka.
//! - **One lineage**: a live command is in exactly one place at any time. Copies that fan-out writes again after a crash
//!   are not live: delivery recognises them by their source.
//! - **Stable identity**: all attempts of a command have the same webhook id and body.
//! - **Never early**: no command is sent before its due time.
//! - **Owner only**: a process changes nothing for a partition between its revocation and its next assignment.
//! - **Isolated**: a slow, dead or failing endpoint does not delay other subscribers.
//! - **Bounded**: memory, sockets, tasks and queues stay within configured limits, whatever the backlog.
//! - **Attempt counts survive**: restarts, rebalances and hops neither reset nor skip them.
//! - **Dead letters are whole**: a replay sends the same bytes and webhook id, once per dead letter unless requested
//!   otherwise.
//! - **Secret**: no secret or credential appears in a log, metric, error, dead letter or trace.
//!
//! # Map
//! The layers. Each imports only from rows above it (checked by `scripts/layers` in `make check`); stages do not import
//! each other. P: pure decisions, no Kafka, HTTP, clock or randomness.
//!
//! | layer | modules |
//! |---|---|
//! | [`model`], P | the domain: events, subscriptions, matching, commands, attempts, dead letters, tiers, windows |
//! | [`config`] | settings |
//! | [`edge`] | Kafka, HTTP, DNS and egress rules, span export, the clock; [`edge::port`], over which the roles use them |
//! | [`runtime`] | services that every role shares: context, health, shutdown, HTTP, metrics |
//! | stages | [`fanout`], [`delivery`], [`retry`], [`lag`], [`replay`], [`timeline`], [`positions`] |
//! | [`wiring`] | the threads of a process, and their shutdown order |
//! | [`cli`] | the command line |

pub mod cli;
pub mod config;
pub mod delivery;
pub mod edge;
pub mod fanout;
pub mod lag;
pub mod model;
pub mod positions;
pub mod replay;
pub mod retry;
pub mod runtime;
pub mod timeline;
pub mod wiring;
