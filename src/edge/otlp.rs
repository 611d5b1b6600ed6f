//! Traces: an event's path through fan-out, attempts and releases, as spans for an OpenTelemetry collector.
//!
//! Off by default; each place that could begin a span then costs one branch. When on, nothing waits for it: a span is
//! created when its work is done and put into a queue of [`QUEUE`] spans; when the queue is full, it is dropped and counted.
//!
//! Whether a trace is exported is decided where its event is read ([`crate::model::trace_context::Sampling`]), and travels
//! with the command as the flag of its `traceparent`. A sampled event's command carries the context of its fan-out instead
//! of the event's own: otherwise attempts could not be its children, and an event without a trace could not begin one.
//! Release and replay leave it unchanged. A request carries the context of its attempt.

#[cfg_attr(not(feature = "otlp"), path = "otlp/without.rs")]
mod export;
mod tracer;

pub use export::Exporter;
pub use tracer::{Open, QUEUE, SetupError, SpanCounters, Together, Tracer};
