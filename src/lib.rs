//! hookstream turns events on Kafka into signed webhooks, with Kafka as its only infrastructure.
//!
//! ```text
//!  order-events ──► fanout ──► webhook-commands ──► delivery ──► HTTPS POST
//!    (group 1: one command per matching     (group 2)    │
//!     subscription, keyed by subscriber)                 ├─ may recover ──► webhook-retry-<delay> ──► release ──► webhook-commands
//!  webhook-subscriptions (compacted) ─► a table          └─ failed for good ─► webhook-dead-letters ──► replay ──► webhook-commands
//!    that fanout and delivery keep in memory
//! ```
//!
//! A command is keyed by its subscriber, and released retries go back through `webhook-commands`, so one
//! delivery replica owns all the work of one subscriber: limits and order are exact without coordination.
//!
//! # Invariants
//! Tests and assertions quote these names.
//!
//! - **Complete**: for each event below fan-out's committed offset and each subscription that matched,
//!   exactly one command is visible to read-committed readers; never some of an event's without the others.
//! - **Durable outcome**: delivery's committed position passes a command only when it is delivered, or its
//!   retry or dead letter is durable in Kafka.
//! - **One lineage**: at any time a command is in one place only. A crash never leaves two live copies.
//! - **Stable identity**: all attempts of a command carry the same webhook id and body.
//! - **Never early**: nothing is sent before its due time.
//! - **Owner only**: a process changes nothing for a partition between its revocation and its next assignment.
//! - **Isolated**: an endpoint that is slow, dead or failing delays no other subscriber.
//! - **Bounded**: memory, sockets, tasks and queues stay under configured caps whatever the backlog.
//! - **Attempt counts survive**: restart, rebalance and hops neither reset nor skip them.
//! - **Dead letters are whole**: replay gives the same bytes and webhook id, once each unless told otherwise.
//! - **Secret**: no secret or credential appears in a log, metric, error, dead letter or trace.
//!
//! # Map
//! Layers; each imports only what stands above it in this table (`scripts/layers`, in `make check`). Stages do not import
//! one another. P: pure decisions, no Kafka, HTTP, clock or randomness.
//!
//! | layer | modules |
//! |---|---|
//! | [`model`], P | what hookstream works on: events, subscriptions, matching, commands, attempts, dead letters, tiers, windows |
//! | [`config`] | settings |
//! | [`edge`] | Kafka, HTTP, names and addresses, the collector of spans, the clock |
//! | [`runtime`] | what every role needs from its process: context, health, shutdown, HTTP, metrics |
//! | stages | [`fanout`], [`delivery`], [`retry`], [`lag`], [`replay`], [`timeline`], [`positions`] |
//! | [`wiring`] | which threads a process has, and in which order they stop |
//! | [`cli`] | what operators type |

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
