//! Traces: one event is one trace, from its publisher through fan-out, attempts and a retry to the receiver's header,
//! as a collector gets it; nothing goes there that nobody asked for; and the log names the trace.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message as _;
use serde_json::{Value, json};

use crate::scene::{LATER, event, put, start, subscription, wait_for_records, with, world};
use crate::support::{Answer, Receiver, SOON, World, eventually_true};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";

fn sampled() -> String {
    format!("00-{TRACE}-{PUBLISHER}-01")
}

/// All spans that a collector was sent, and what they are said to be of.
fn exported(collector: &Receiver) -> (Vec<Span>, Vec<KeyValue>) {
    let (mut spans, mut resource) = (Vec::new(), Vec::new());
    for seen in collector.seen() {
        assert_eq!(seen.path, "/v1/traces");
        assert_eq!(seen.header("content-type"), Some("application/x-protobuf"));
        let request = ExportTraceServiceRequest::decode(seen.body.clone()).unwrap();
        for group in request.resource_spans {
            resource = group.resource.unwrap().attributes;
            spans.extend(group.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    spans.sort_by_key(|span| span.start_time_unix_nano);
    (spans, resource)
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// An attribute, as JSON.
fn value(attributes: &[KeyValue], name: &str) -> Value {
    let found = attributes.iter().find(|one| one.key == name);
    let held = found.and_then(|one| one.value.as_ref()?.value.as_ref());
    match held {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        Some(other) => panic!("{name}: {other:?}"),
        None => Value::Null,
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn produce(world: &World, id: &str, traceparent: Option<&str>) {
    let headers: Vec<_> = traceparent
        .iter()
        .map(|trace| ("traceparent", *trace))
        .collect();
    world.produce_event("k", &headers, event(id, "a.b", "{}"));
}

#[test]
fn an_event_is_one_trace_from_its_publisher_through_a_retry_to_the_receiver() {
    let world = world("spans");
    let receiver =
        Receiver::start(|seen| Answer::status(if seen.attempt == 1 { 503 } else { 204 }));
    let collector = Receiver::good();
    let url = receiver.url("/t0ken?key=hunter2");
    put(&world, &[subscription("acme", &url, &["**"])]);
    let mut process = start(&world, &["--otlp-endpoint", &collector.url("")]);
    produce(&world, "e1", Some(&sampled()));
    let requests = receiver.wait_for(2, LATER);
    // What the last second told is exported on the way out.
    process.sigterm();
    assert!(process.wait_exit(LATER).success());

    let (spans, resource) = exported(&collector);
    assert_eq!(value(&resource, "service.name"), "hookstream");
    assert!(value(&resource, "service.instance.id").is_string());
    for span in &spans {
        assert_eq!(hex(&span.trace_id), TRACE, "{span:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    let fanout = named(&spans, "fanout");
    let attempts = named(&spans, "attempt");
    let releases = named(&spans, "release");
    assert_eq!((fanout.len(), attempts.len()), (1, 2), "{spans:#?}");
    assert!(!releases.is_empty());
    assert_eq!(spans.len(), 3 + releases.len());

    let fanout = fanout[0];
    assert_eq!(hex(&fanout.parent_span_id), PUBLISHER);
    assert_eq!(fanout.kind(), SpanKind::Consumer);
    assert_eq!(value(&fanout.attributes, "hookstream.matches"), 1);
    for span in attempts.iter().chain(&releases) {
        assert_eq!(span.parent_span_id, fanout.span_id, "{span:?}");
        let of = |name| value(&span.attributes, name);
        assert_eq!(of("hookstream.webhook_id"), requests[0].webhook_id());
        assert_eq!(of("hookstream.subscription"), "acme");
        assert_eq!(of("hookstream.subscriber"), "acme");
    }
    let commands = wait_for_records(&world, &world.topics.commands(), 2);
    let carried = format!("00-{TRACE}-{}-01", hex(&fanout.span_id));
    for command in commands {
        assert_eq!(command.header("traceparent"), Some(carried.as_str()));
    }

    for (number, (span, request)) in attempts.iter().zip(&requests).enumerate() {
        assert_eq!(span.kind(), SpanKind::Client);
        assert_eq!(
            value(&span.attributes, "hookstream.attempt"),
            json!(number + 1)
        );
        let sent = format!("00-{TRACE}-{}-01", hex(&span.span_id));
        assert_eq!(request.header("traceparent"), Some(sent.as_str()));
    }
    let came_of = |span: &Span| {
        let of = |name| value(&span.attributes, name);
        let status = span.status.clone().unwrap_or_default().code();
        (of("http.response.status_code"), of("error.type"), status)
    };
    assert_eq!(
        came_of(attempts[0]),
        (json!(503), json!("503"), StatusCode::Error)
    );
    assert_eq!(
        came_of(attempts[1]),
        (json!(204), Value::Null, StatusCode::Unset)
    );
    let last = releases.last().unwrap();
    assert_eq!(
        value(&last.attributes, "hookstream.released_to"),
        json!(world.topics.commands())
    );
    assert!(attempts[0].end_time_unix_nano <= last.start_time_unix_nano);
    assert!(last.start_time_unix_nano <= attempts[1].start_time_unix_nano);
    for seen in collector.seen() {
        let all = String::from_utf8_lossy(&seen.body);
        assert!(!all.contains("hunter2") && !all.contains("t0ken"), "{all}");
    }
}

#[test]
fn what_is_not_sampled_is_passed_on_and_not_exported_and_nothing_is_when_it_is_off() {
    let world = world("spans-off");
    let (receiver, collector) = (Receiver::good(), Receiver::good());
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let mut process = start(&world, &["--otlp-endpoint", &collector.url("")]);
    let unsampled = format!("00-{TRACE}-{PUBLISHER}-00");
    produce(&world, "unsampled", Some(&unsampled));
    produce(&world, "none", None);
    let requests = receiver.wait_for(2, LATER);
    let mut carried: Vec<_> = requests
        .iter()
        .map(|seen| seen.header("traceparent"))
        .collect();
    carried.sort();
    assert_eq!(carried, [None, Some(unsampled.as_str())]);
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    assert!(collector.seen().is_empty());

    let process = start(&world, &[]);
    produce(&world, "off", Some(&sampled()));
    let requests = receiver.wait_for(3, LATER);
    assert_eq!(
        requests[2].header("traceparent"),
        Some(sampled().as_str()),
        "as the event has it"
    );
    assert!(process.metric(r#"hookstream_spans_total{result="exported"}"#) == Some(0.0));
}

#[test]
fn a_collector_that_does_not_answer_delays_neither_delivery_nor_the_end() {
    let world = world("spans-hang");
    let (receiver, collector) = (Receiver::good(), Receiver::start(|_| Answer::hang()));
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let url = collector.url("");
    let mut process = start(&world, &["--otlp-endpoint", &url, "--trace-sample", "1"]);
    produce(&world, "e1", None);
    let requests = receiver.wait_for(1, LATER);
    let begun = requests[0].header("traceparent").unwrap();
    assert!(begun.ends_with("-01"), "a trace begins here: {begun}");
    collector.wait_for(1, SOON);
    produce(&world, "e2", None);
    receiver.wait_for(2, LATER);
    process.sigterm();
    let told = process.wait_for_line("last spans not exported in time", LATER);
    assert!(process.wait_exit(SOON).success(), "{told}");
}

#[test]
fn spans_that_a_collector_refuses_are_counted_and_told_of() {
    let world = world("spans-refused");
    let receiver = Receiver::good();
    let collector = Receiver::start(|_| Answer::status(400));
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let process = start(&world, &["--otlp-endpoint", &collector.url("")]);
    produce(&world, "e1", Some(&sampled()));
    eventually_true("both spans are counted", LATER, || {
        process.metric(r#"hookstream_spans_total{result="failed"}"#) == Some(2.0)
    });
    process.wait_for_line("span export failed", Duration::from_secs(1));
}

#[test]
fn lines_of_the_json_log_about_a_command_name_it_its_subscription_and_its_trace() {
    let world = world("spans-log");
    let receiver =
        Receiver::start(|seen| Answer::status(if seen.attempt == 1 { 503 } else { 400 }));
    let one = with(
        subscription("acme", &receiver.url("/"), &["**"]),
        json!({"retry_schedule": ["300ms"]}),
    );
    put(&world, &[one]);
    let log = ["--log", "hookstream=debug", "--log-format", "json"];
    let process = start(&world, &log);
    produce(&world, "e1", Some(&sampled()));
    process.wait_for_line("dead letter: ", LATER);
    let lines: Vec<Value> = process
        .stderr()
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let webhook_id = receiver.seen()[0].webhook_id().to_owned();
    let of = |start: &str| {
        let about = lines
            .iter()
            .filter(|line| line["message"].as_str().unwrap().starts_with(start));
        let about: Vec<_> = about.collect();
        for line in &about {
            assert_eq!(line["webhook_id"], webhook_id, "{line}");
            assert_eq!(line["subscription"], "acme", "{line}");
            assert_eq!(line["trace_id"], TRACE, "{line}");
        }
        about.len()
    };
    assert_eq!((of("attempt failed"), of("dead letter: ")), (2, 1));
}
