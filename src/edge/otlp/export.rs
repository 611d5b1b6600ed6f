//! The export of spans: OTLP over HTTP with protobuf, from a thread of its own.
//!
//! The thread has a runtime of its own, so neither a slow collector nor a burst of spans takes anything from delivery
//! but the cores. A batch that the collector does not take is given up and counted: spans are worth less than the
//! memory that an outage of the collector would need. The collector is the operator's choice, so the egress rules,
//! which are about what subscribers choose, do not apply to it.
//!
//! Headers for the collector, which may be credentials, come from `OTEL_EXPORTER_OTLP_HEADERS` and never show.
//! `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say what the spans are of.

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

/// Spans in one request, at most.
const BATCH: usize = 512;
/// How long a span waits for others at most.
const LINGER: Duration = Duration::from_secs(1);
/// For one request, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often the log tells that the collector takes nothing.
const REMIND: Duration = Duration::from_secs(60);

/// The thread that exports; to be ended when all that begins spans has ended.
pub struct Exporter {
    closing: oneshot::Sender<()>,
    ended: Ended<()>,
}

impl Exporter {
    /// Starts it if the settings name a collector, and gives what begins spans for it.
    ///
    /// # Errors
    /// [`SetupError`] when the settings or `OTEL_…` variables cannot be used, or there can be no thread.
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
            |error: std::io::Error| failure(format!("starting the export of spans: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot)?;
        std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || {
                runtime.block_on(run(export, spans, closes));
                // A look-up of the collector's name must not hold the process up.
                runtime.shutdown_background();
                // Nobody waits for it when the process is given up.
                over.send(()).ok();
            })
            .map_err(cannot)?;
        tracing::info!(
            endpoint = otlp.endpoint,
            sample = otlp.sample,
            "spans are exported: of events with a sampled traceparent, and of this share of those without any"
        );
        Ok((tracer, Some(Self { closing, ended })))
    }

    /// Exports what is in the queue, for at most `patience`.
    pub fn end(self, patience: Duration) {
        // If the thread has ended, there is nothing to be closed.
        self.closing.send(()).ok();
        if self.ended.recv_timeout(patience).is_err() {
            tracing::warn!("the last spans were not exported in time; they are given up");
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

/// What the operator's variables say, and what they leave open.
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

/// Until the queue is closed and empty.
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
            // Whether told or forgotten.
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
            Err(_) => format!("no answer within {TIMEOUT:?}"),
        };
        self.counters.failed.inc_by(count);
        if let Some(untold) = self.told.pass(clock::instant()) {
            tracing::warn!(
                endpoint = self.endpoint,
                spans = count,
                untold,
                "spans are not exported: {error}"
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
