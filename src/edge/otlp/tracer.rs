//! Starts and ends spans, and queues them for export.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use thiserror::Error;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::edge::clock;
use crate::model::span::Facts;
use crate::model::trace_context::{Decision, Sampling, TraceContext};

/// Counts the results of spans.
#[derive(Clone, Debug)]
pub struct SpanCounters {
    /// The collector accepted them.
    pub exported: IntCounter,
    /// The collector rejected them, or did not respond.
    pub failed: IntCounter,
    /// The queue was full.
    pub dropped: IntCounter,
}

/// Why the export of spans cannot start.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SetupError(pub(super) String);

/// The capacity of the export queue; further spans are dropped. A span takes about 1 KiB.
pub const QUEUE: usize = 4096;

/// A span that has ended.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    allow(dead_code, reason = "it is read by the export")
)]
pub(crate) struct Span {
    pub(super) context: TraceContext,
    pub(super) parent: Option<u64>,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
    pub(super) facts: Facts,
}

/// Starts spans for traced events and commands; cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Shared>>);

struct Shared {
    sampling: Sampling,
    queue: Sender<Span>,
    counters: SpanCounters,
}

impl Tracer {
    /// A tracer that starts no spans.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// A tracer whose spans arrive at the returned receiver.
    #[cfg_attr(
        not(feature = "otlp"),
        allow(dead_code, reason = "it is made with the export")
    )]
    pub(crate) fn new(sampling: Sampling, counters: SpanCounters) -> (Self, Receiver<Span>) {
        let (queue, spans) = mpsc::channel(QUEUE);
        let shared = Shared {
            sampling,
            queue,
            counters,
        };
        (Self(Some(Arc::new(shared))), spans)
    }

    /// Starts the span of an event, if it is to be traced.
    #[must_use]
    pub fn of_event(&self, traceparent: Option<&str>) -> Option<Open> {
        let shared = self.0.as_ref()?;
        match shared.sampling.decide(traceparent, fastrand::f64()) {
            Decision::PassOn => None,
            Decision::Join(parent) => Some(Open::below(parent, shared)),
            Decision::Begin => {
                let ids = (fastrand::u128(..), fastrand::u64(..));
                let context = TraceContext::start(ids.0, ids.1);
                Some(Open::new(context, None, shared))
            }
        }
    }

    /// Starts a span for a command, if its trace is recorded.
    #[must_use]
    pub fn of_command(&self, traceparent: Option<&str>) -> Option<Open> {
        let shared = self.0.as_ref()?;
        let parent = TraceContext::parse(traceparent?)?;
        parent.is_sampled().then(|| Open::below(parent, shared))
    }
}

/// A started span. It is not exported if dropped, because its operation did not complete here.
pub struct Open {
    context: TraceContext,
    parent: Option<u64>,
    began: SystemTime,
    shared: Arc<Shared>,
}

impl Open {
    fn new(context: TraceContext, parent: Option<u64>, shared: &Arc<Shared>) -> Self {
        Self {
            context,
            parent,
            began: clock::wall(),
            shared: Arc::clone(shared),
        }
    }

    fn below(parent: TraceContext, shared: &Arc<Shared>) -> Self {
        let context = parent.child(fastrand::u64(..));
        Self::new(context, Some(parent.span_id()), shared)
    }

    /// The context to pass to operations below this span.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.context.to_string()
    }

    /// Ends the span now.
    pub fn end(self, facts: Facts) {
        let now = clock::wall();
        self.end_at(now, facts);
    }

    /// Ends the span with this duration.
    pub fn end_after(self, took: Duration, facts: Facts) {
        let ended = self.began + took;
        self.end_at(ended, facts);
    }

    fn end_at(self, ended: SystemTime, facts: Facts) {
        let Self {
            context,
            parent,
            began,
            shared,
        } = self;
        let span = Span {
            context,
            parent,
            began,
            ended,
            facts,
        };
        if shared.queue.try_send(span).is_err() {
            shared.counters.dropped.inc();
        }
    }
}

/// Spans that end together with a batch: when it becomes visible, or never.
#[derive(Default)]
pub struct Together(Vec<(Open, Facts)>);

impl Together {
    /// Adds a span.
    pub fn add(&mut self, span: Open, facts: Facts) {
        self.0.push((span, facts));
    }

    /// Ends all spans: the batch is visible.
    pub fn end(self) {
        for (span, facts) in self.0 {
            span.end(facts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::span::Kind;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn tracer(begun_here: f64) -> (Tracer, Receiver<Span>, SpanCounters) {
        let counter = |name| IntCounter::new(name, "of a test").unwrap();
        let counters = SpanCounters {
            exported: counter("exported"),
            failed: counter("failed"),
            dropped: counter("dropped"),
        };
        let (tracer, spans) = Tracer::new(Sampling { begun_here }, counters.clone());
        (tracer, spans, counters)
    }

    fn facts() -> Facts {
        Facts {
            name: "attempt",
            kind: Kind::Client,
            attributes: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn when_off_no_span_begins() {
        assert!(Tracer::off().of_event(Some(SAMPLED)).is_none());
        assert!(Tracer::off().of_command(Some(SAMPLED)).is_none());
    }

    #[test]
    fn a_span_stands_below_what_its_record_carried() {
        let (tracer, mut spans, _) = tracer(0.0);
        let fanout = tracer.of_event(Some(SAMPLED)).unwrap();
        let attempt = tracer.of_command(Some(&fanout.traceparent())).unwrap();
        let id = fanout.context.span_id();
        attempt.end_after(Duration::from_millis(3), facts());
        fanout.end(facts());
        let attempt = spans.try_recv().unwrap();
        assert_eq!(attempt.parent, Some(id));
        assert_eq!(
            attempt.ended.duration_since(attempt.began).unwrap(),
            Duration::from_millis(3)
        );
        let fanout = spans.try_recv().unwrap();
        assert_eq!(fanout.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert_eq!(fanout.context.trace_id(), attempt.context.trace_id());
    }

    #[test]
    fn what_is_not_sampled_is_not_told_and_a_command_begins_no_trace() {
        let (tracer, _spans, _) = tracer(1.0);
        assert!(tracer.of_event(Some(UNSAMPLED)).is_none());
        assert!(tracer.of_command(Some(UNSAMPLED)).is_none());
        assert!(tracer.of_command(None).is_none());
        let begun = tracer.of_event(None).unwrap();
        assert_eq!(begun.parent, None);
        assert!(tracer.of_command(Some(&begun.traceparent())).is_some());
    }

    #[test]
    fn a_batch_that_is_given_up_tells_nothing() {
        let (tracer, mut spans, _) = tracer(0.0);
        let mut given_up = Together::default();
        given_up.add(tracer.of_event(Some(SAMPLED)).unwrap(), facts());
        drop(given_up);
        let mut visible = Together::default();
        visible.add(tracer.of_event(Some(SAMPLED)).unwrap(), facts());
        visible.end();
        assert!(spans.try_recv().is_ok() && spans.try_recv().is_err());
    }

    #[test]
    fn past_the_bound_spans_are_dropped_and_counted() {
        let (tracer, mut spans, counters) = tracer(0.0);
        for _ in 0..QUEUE + 3 {
            tracer.of_event(Some(SAMPLED)).unwrap().end(facts());
        }
        assert_eq!(counters.dropped.get(), 3);
        let mut kept = 0;
        while spans.try_recv().is_ok() {
            kept += 1;
        }
        assert_eq!(kept, QUEUE);
    }
}
