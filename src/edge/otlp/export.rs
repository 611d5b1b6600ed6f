//! The span export: OTLP over HTTP with protobuf, on its own thread.
//!
//! The thread has its own runtime, so a slow collector or a burst of spans costs delivery only CPU time. A batch that the
//! collector does not accept is dropped and counted: spans are not worth the memory that an outage of the collector would
//! need. The operator chooses the collector, so the egress rules, which restrict subscribers, do not apply to it.
//!
//! Headers for the collector, which may be credentials, come from `OTEL_EXPORTER_OTLP_HEADERS` and are never printed.
//! `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` set the resource attributes.

use std::sync::mpsc::{Receiver as Ended, channel};
use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::time::{sleep_until, timeout};

use super::tracer::{SetupError, Span, SpanCounters, Tracer};
use crate::config::{OtlpSettings, Settings};
use crate::edge::clock;
use crate::edge::http;
use crate::model::span::{Kind, Value};
use crate::model::throttle::Throttle;
use crate::model::trace_context::Sampling;

/// Maximum spans per request.
const BATCH: usize = 512;
/// Maximum time that a span waits for its batch.
const LINGER: Duration = Duration::from_secs(1);
/// Timeout of one request, including the connect.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum time between log lines about failed exports.
const REMIND: Duration = Duration::from_secs(60);

/// The export thread; to be ended after everything that starts spans.
pub struct Exporter {
    closing: oneshot::Sender<()>,
    ended: Ended<()>,
}

impl Exporter {
    /// Starts the export if a collector is configured, and returns the tracer for it.
    ///
    /// # Errors
    /// [`SetupError`] when the settings or `OTEL_…` variables are invalid, or the thread cannot be started.
    pub fn start(
        settings: &Settings,
        counters: SpanCounters,
    ) -> Result<(Tracer, Option<Self>), SetupError> {
        let Some(otlp) = &settings.otlp else {
            return Ok((Tracer::off(), None));
        };
        let exporter = exporter(settings, otlp)?;
        let sampling = Sampling {
            begun_here: otlp.sample,
        };
        let (tracer, spans) = Tracer::new(sampling, counters.clone());
        let (closing, closes) = oneshot::channel();
        let (over, ended) = channel();
        let export = Export {
            exporter,
            scope: InstrumentationScope::builder("hookstream")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            counters,
            endpoint: otlp.endpoint.clone(),
            told: Throttle::new(REMIND),
        };
        let cannot =
            |error: std::io::Error| failure(format!("cannot start the span export: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot)?;
        std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || {
                runtime.block_on(run(export, spans, closes));
                // A lookup of the collector's name must not delay the exit of the process.
                runtime.shutdown_background();
                // Nobody receives this when the process exits without waiting.
                over.send(()).ok();
            })
            .map_err(cannot)?;
        tracing::info!(
            endpoint = otlp.endpoint,
            sample = otlp.sample,
            "span export started"
        );
        Ok((tracer, Some(Self { closing, ended })))
    }

    /// Exports the queued spans for at most `patience`.
    pub fn end(self, patience: Duration) {
        // If the thread has ended, there is nothing to close.
        self.closing.send(()).ok();
        if self.ended.recv_timeout(patience).is_err() {
            tracing::warn!("last spans not exported in time, dropped");
        }
    }
}

fn failure(message: String) -> SetupError {
    SetupError(message)
}

fn exporter(settings: &Settings, otlp: &OtlpSettings) -> Result<SpanExporter, SetupError> {
    let wrong = |error: &dyn std::fmt::Display| failure(format!("--otlp-endpoint: {error}"));
    let plain = otlp.endpoint.starts_with("http:");
    let tls = http::trusted(settings.ca_file.as_deref(), plain).map_err(|error| wrong(&error))?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&otlp.endpoint)
        .with_http_client(HyperClient::new(connector, TIMEOUT, None))
        .build()
        .map_err(|error| wrong(&error))?;
    exporter.set_resource(&resource(&settings.instance));
    Ok(exporter)
}

/// The resource attributes from the operator's variables, with defaults.
fn resource(instance: &str) -> Resource {
    let name = Key::from_static_str("service.name");
    let found = Resource::builder().build();
    let named = found
        .get(&name)
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let own = [
        ("service.name", "hookstream", named),
        ("service.instance.id", instance, false),
        ("service.version", env!("CARGO_PKG_VERSION"), false),
    ];
    let missing = own.into_iter().filter(|&(name, _, given)| {
        !given && (name == "service.name" || found.get(&Key::from_static_str(name)).is_none())
    });
    let missing = missing.map(|(name, value, _)| KeyValue::new(name, value.to_owned()));
    Resource::builder().with_attributes(missing).build()
}

struct Export {
    exporter: SpanExporter,
    scope: InstrumentationScope,
    counters: SpanCounters,
    endpoint: String,
    told: Throttle,
}

/// Runs until the queue is closed and empty.
async fn run(mut export: Export, mut spans: Receiver<Span>, mut closing: oneshot::Receiver<()>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut due = None;
    let mut open = true;
    loop {
        let linger = due.unwrap_or_else(|| clock::instant() + LINGER);
        let room = BATCH - batch.len();
        tokio::select! {
            taken = spans.recv_many(&mut batch, room) => {
                if taken == 0 {
                    break;
                }
                due.get_or_insert_with(|| clock::instant() + LINGER);
                if batch.len() < BATCH {
                    continue;
                }
            }
            () = sleep_until(linger.into()), if due.is_some() => {}
            // Signalled, or the sender was dropped.
            _ = &mut closing, if open => {
                open = false;
                spans.close();
                continue;
            }
        }
        due = None;
        export.send(&mut batch).await;
    }
    if !batch.is_empty() {
        export.send(&mut batch).await;
    }
}

impl Export {
    async fn send(&mut self, batch: &mut Vec<Span>) {
        let count = batch.len() as u64;
        let data = batch
            .drain(..)
            .map(|span| data(span, self.scope.clone()))
            .collect();
        let error = match timeout(TIMEOUT, self.exporter.export(data)).await {
            Ok(Ok(())) => {
                self.counters.exported.inc_by(count);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no response within {TIMEOUT:?}"),
        };
        self.counters.failed.inc_by(count);
        if let Some(suppressed) = self.told.pass(clock::instant()) {
            tracing::warn!(
                endpoint = self.endpoint,
                spans = count,
                suppressed,
                "span export failed: {error}"
            );
        }
    }
}

fn data(span: Span, scope: InstrumentationScope) -> SpanData {
    let context = span.context;
    let attributes = span.facts.attributes.into_iter();
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(context.trace_id()),
            SpanId::from(context.span_id()),
            TraceFlags::new(context.flags()),
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(span.parent.unwrap_or_default()),
        parent_span_is_remote: span.parent.is_some(),
        span_kind: match span.facts.kind {
            Kind::Consumer => SpanKind::Consumer,
            Kind::Client => SpanKind::Client,
        },
        name: span.facts.name.into(),
        start_time: span.began,
        end_time: span.ended,
        attributes: attributes
            .map(|(name, value)| match value {
                Value::Word(word) => KeyValue::new(name, word),
                Value::Text(text) => KeyValue::new(name, text.into_string()),
                Value::Number(number) => KeyValue::new(name, number),
                Value::Seconds(seconds) => KeyValue::new(name, seconds),
            })
            .collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: match span.facts.error {
            Some(error) => Status::error(error.into_string()),
            None => Status::Unset,
        },
        instrumentation_scope: scope,
    }
}
