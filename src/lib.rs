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
//! The modules read as the path of an event. P: pure decisions, no Kafka, HTTP, clock or chance.
//! S: a stage (select, decide, apply). E: an edge.
//!
//! | module | kind | what |
//! |---|---|---|
//! | [`config`], [`service`] | P, S | settings; wiring and drain order |
//! | [`event`], [`subscription`] | P | what comes in, and who wants it |
//! | [`fanout`], [`fanout::matching`] | S, P | event to commands |
//! | [`command`], [`attempt`] | P | a command and its record; the record of an attempt |
//! | [`delivery`], `delivery::{window, lane, outcome, signing}` | S, P | command to POST to outcome |
//! | [`retry`], `retry::{schedule, tier}`, [`release`] | P, S | when to try again, and moving back what is due |
//! | [`lag`], `lag::{index, top, figures}` | S, P | how much waits for whom |
//! | [`dead_letter`], [`replay`] | P, S | the log of facts, and sending again |
//! | [`positions`], [`positions::trail`] | S, P | where the groups are, moved to a mirrored cluster |
//! | [`trace`], [`trace::story`] | S, P | the life of one event, found in the topics |
//! | [`kafka`], [`http`], [`egress`], [`admin`], [`clock`] | E | the edges |
//! | [`spans`], `spans::{context, span}` | S, P | the way of an event, as spans for a collector |
//! | [`metrics`], [`throttle`], [`cli`], [`units`] | | what operators see; what they type; positions and times |

pub mod admin;
pub mod attempt;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod dead_letter;
pub mod delivery;
pub mod egress;
pub mod event;
pub mod fanout;
mod fault;
pub mod http;
pub mod kafka;
pub mod lag;
pub mod metrics;
pub mod positions;
pub mod release;
pub mod replay;
pub mod retry;
pub mod service;
pub mod spans;
pub mod subscription;
pub mod throttle;
pub mod trace;
pub mod units;
