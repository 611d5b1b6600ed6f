//! Traces: the way of an event through fan-out, attempts and releases, as spans for an OpenTelemetry collector.
//!
//! Off by default, and then each place that could begin a span costs one branch. When on, nothing waits for it: a span
//! is made when its work is done, put into a queue of [`QUEUE`] spans, and dropped and counted when that is full.
//!
//! What is told is decided where an event is read, by [`context::Sampling`], and travels with the command as the flag
//! of its `traceparent`. A command of an event that is told carries the context of its fan-out instead of the event's
//! own: otherwise attempts could not stand below it, and an event without a trace could not begin one. Release and
//! replay leave it as it is. A request carries the context of its attempt.
//!
//! | module | kind | what |
//! |---|---|---|
//! | [`context`] | P | `traceparent`, and which traces are told |
//! | [`span`] | P | what spans tell |
//! | `otlp` | E | the export; with the feature `otlp` |

#[cfg_attr(not(feature = "otlp"), path = "otlp/without.rs")]
mod export;
mod tracer;

pub use export::Exporter;
pub use tracer::{Open, QUEUE, SetupError, SpanCounters, Together, Tracer};
