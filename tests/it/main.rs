//! Tests of the program on a real Apache Kafka, in one binary: it links once, and its tests share one broker.
//!
//! Each test lives in a [`support::World`] of its own (topic and group prefix), so all may run at once.
//! Java 17 is needed: `make test` checks it and fetches Kafka.

// A test that cannot go on should stop where it stands; it measures real time from outside the program; and
// the lint on reachability looks at libraries.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod adversary;
mod applied;
mod attempts;
mod auth;
mod bad_input;
mod brokers;
mod canary;
mod completing;
mod credentials;
mod demo;
mod docs;
mod drains;
mod egress;
mod exact;
mod faults;
mod flows;
mod formats;
mod gaps;
mod growing;
mod hands;
mod harness;
mod image;
mod incident;
mod isolation;
mod lag;
mod layers;
mod mirror;
mod neighbours;
mod oauth;
mod observe;
mod operator;
mod order;
mod outbox;
mod poison;
mod positions;
mod readme;
mod scaling;
mod scene;
mod schema_registry;
mod schemas;
mod secrets;
mod services;
mod skipped;
#[cfg(feature = "otlp")]
mod spans;
mod starts;
mod states;
mod support;
mod trace;
mod unwritable;
mod verification;
mod why;
