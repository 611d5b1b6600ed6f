//! Values that are framed with a schema id, on a real Kafka: a stub of a registry for what goes wrong, a real one for values
//! that Confluent's serializers have written.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::scene::{
    LATER, body, event, put, start, subscription, wait_for_records, wait_until_done,
};
use crate::skipped::skip;
use crate::support::{
    Answer, Isolation, Process, RawRecord, Receiver, World, eventually_true, first_line,
};

const SCHEMA: &str = r#"{"schema":"{\"type\":\"record\",\"name\":\"E\",\"fields\":[{\"name\":\"id\",\"type\":\"string\"},{\"name\":\"type\",\"type\":\"string\"},{\"name\":\"data\",\"type\":\"long\"}]}"}"#;
const NO_SUCH_SCHEMA: &str = r#"{"error_code":40403,"message":"Schema not found"}"#;

fn record(headers: &[(&str, &[u8])], value: &[u8]) -> RawRecord {
    let headers = headers.iter();
    RawRecord {
        key: Some(b"k".to_vec()),
        headers: headers
            .map(|(name, value)| (name.as_bytes().to_vec(), Some(value.to_vec())))
            .collect(),
        value: Some(value.to_vec()),
    }
}

fn avro(id: &str, data: u8) -> Vec<u8> {
    let length = u8::try_from(id.len() * 2).unwrap();
    [&[length][..], id.as_bytes(), &[6], b"a.b", &[data * 2]].concat()
}

fn framed(schema: u8, value: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, schema][..], value].concat()
}

fn waits(process: &Process, world: &World, partition: i32) -> Option<f64> {
    let topic = &world.events;
    process.metric(&format!(
        r#"hookstream_schema_wait_seconds{{partition="{partition}",topic="{topic}"}}"#
    ))
}

#[test]
fn while_the_registry_does_not_say_only_partitions_that_need_it_wait_and_nothing_is_lost() {
    let world = World::new("schemas");
    world.create_topics(2);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let status = Arc::new(AtomicU16::new(503));
    let answered = Arc::clone(&status);
    let registry = Receiver::start(move |seen| match seen.path.as_str() {
        "/v7/schemas/ids/7" | "/v7/schemas/guids/abababab-abab-abab-abab-abababababab" => {
            match answered.load(Ordering::SeqCst) {
                0 => Answer::close(),
                200 => Answer::ok().body(SCHEMA),
                other => Answer::status(other),
            }
        }
        _ => Answer::status(404).body(NO_SUCH_SCHEMA),
    });
    let process = start(&world, &["--schema-registry", &registry.url("/v7/")]);
    let guid = [&[1][..], &[0xab; 16]].concat();
    world.produce_raw(
        &world.events,
        0,
        &[
            record(&[], event("before", "a.b", "1").as_bytes()),
            record(&[], &framed(7, &avro("e1", 1))),
            record(&[], event("behind", "a.b", "2").as_bytes()),
            record(&[("__value_schema_id", &guid)], &avro("e2", 3)),
            record(&[], &framed(8, b"x")),
            record(&[], &framed(7, b"\x04e3")),
            record(&[], &framed(7, &avro("e4", 4))),
        ],
    );
    world.produce_raw(
        &world.events,
        1,
        &[record(&[], event("other", "a.b", "9").as_bytes())],
    );
    // What is before it in its partition, and the other partition.
    receiver.wait_for(2, LATER);
    for failing in [503, 401, 404, 0] {
        status.store(failing, Ordering::SeqCst);
        let before = registry.seen().len();
        eventually_true("the registry is asked again", LATER, || {
            registry.seen().len() > before
        });
        assert_eq!(receiver.seen().len(), 2, "nothing is skipped at {failing}");
    }
    let line = process.wait_for_line("the schema registry does not return a schema", LATER);
    for part in ["offset=1", "schema=7", "status 503", &world.events] {
        assert!(line.contains(part), "{line}");
    }
    eventually_true("the partition's wait is exported", LATER, || {
        waits(&process, &world, 0).is_some_and(|seconds| seconds > 0.0)
    });
    assert_eq!(waits(&process, &world, 1), None);
    world.produce_raw(
        &world.events,
        1,
        &[record(&[], event("later", "a.b", "8").as_bytes())],
    );
    receiver.wait_for(3, LATER);

    status.store(200, Ordering::SeqCst);
    let seen = receiver.wait_for(7, LATER);
    wait_until_done(&world);
    let mut bodies: Vec<_> = seen
        .iter()
        .map(|seen| {
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            body["data"].as_i64().unwrap()
        })
        .collect();
    bodies.sort_unstable();
    assert_eq!(bodies, [1, 1, 2, 3, 4, 8, 9]);
    assert_eq!(waits(&process, &world, 0), None);
    let invalid = wait_for_records(&world, &world.topics.invalid_events(), 2);
    let errors: Vec<_> = invalid
        .iter()
        .map(|record| {
            (
                record.header("hookstream-offset").unwrap(),
                record.header("hookstream-error").unwrap(),
            )
        })
        .collect();
    assert_eq!(
        errors,
        [
            (
                "4",
                "the value names the schema id 8, which the Schema Registry does not have"
            ),
            (
                "5",
                "the value cannot be decoded with its schema, id 7: type: the value ends too early"
            ),
        ]
    );
    assert_eq!(
        process.metric(r#"hookstream_schema_lookups_total{result="missing"}"#),
        Some(1.0)
    );
    let found = process.metric(r#"hookstream_schema_lookups_total{result="found"}"#);
    assert_eq!(found, Some(2.0));
}

/// A real registry, or `None` where it cannot be fetched: then the calling test is recorded as skipped.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    #[track_caller]
    fn start() -> Option<Self> {
        let script = root().join("scripts/schema-registry");
        let fetched = Command::new(&script).arg("fetch").status().unwrap();
        if !fetched.success() {
            skip("without Apicurio Registry");
            return None;
        }
        let mut child = Command::new(&script)
            .arg("run")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let address = first_line(&mut child, "scripts/schema-registry run");
        Some(Self { child, address })
    }

    /// The id of a schema that is registered now, after those that it refers to.
    fn register(&self, responses: &Value, subject: &str, answer: &Value) -> u32 {
        for one in answer["references"].as_array().into_iter().flatten() {
            let subject = one["subject"].as_str().unwrap();
            let path = format!(
                "/subjects/{}/versions/{}?deleted=true",
                subject.replace('/', "%2F"),
                one["version"]
            );
            self.register(responses, subject, &responses[&path]);
        }
        let mut schema = json!({"schema": answer["schema"], "references": answer["references"]});
        if let Some(language) = answer["schemaType"].as_str() {
            schema["schemaType"] = language.into();
        }
        let path = format!("/subjects/{}/versions", subject.replace('/', "%2F"));
        let answer = self.post(&path, &schema.to_string());
        u32::try_from(answer["id"].as_u64().unwrap()).unwrap()
    }

    fn post(&self, path: &str, body: &str) -> Value {
        let (host, base) = self.address["http://".len()..].split_once('/').unwrap();
        let mut stream = TcpStream::connect(host).unwrap();
        let head = format!(
            "POST /{base}{path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "POST {path}: {response}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn values_of_confluents_serializers_are_delivered_by_way_of_a_real_registry() {
    let Some(registry) = Registry::start() else {
        return;
    };
    let recorded = root().join("tests/data/schema-registry/records.json");
    let recorded: Value = serde_json::from_slice(&std::fs::read(recorded).unwrap()).unwrap();
    let world = World::new("registry");
    world.create_topics(1);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let process = start(&world, &["--schema-registry", &registry.address]);
    let responses = &recorded["responses"];
    let mut expected = Vec::new();
    for one in recorded["records"].as_array().unwrap() {
        // This registry has no GUIDs.
        let Some(id) = one["id"].as_u64() else {
            continue;
        };
        let name = one["name"].as_str().unwrap();
        let answer = &responses[format!("/schemas/ids/{id}")];
        let id = registry.register(responses, &format!("{name}-value"), answer);
        let mut value = STANDARD.decode(one["value"].as_str().unwrap()).unwrap();
        value[1..5].copy_from_slice(&id.to_be_bytes());
        let is_event = one["json"]["id"].is_string();
        let headers: &[(&str, &[u8])] = if is_event {
            expected.push(one["json"]["data"].clone());
            &[]
        } else {
            // Only data: a CloudEvent in binary mode.
            expected.push(one["json"].clone());
            &[
                ("ce_specversion", b"1.0"),
                ("ce_id", name.as_bytes()),
                ("ce_source", b"/s"),
                ("ce_type", b"order.created"),
                ("content-type", b"application/x-protobuf"),
            ]
        };
        world.produce_raw(&world.events, 0, &[record(headers, &value)]);
    }
    world.produce_raw(&world.events, 0, &[record(&[], &[0, 0, 1, 0, 0, 1])]);
    assert_eq!(expected.len(), 6);
    let seen = receiver.wait_for(expected.len(), LATER);
    wait_until_done(&world);
    let mut delivered: Vec<_> = seen
        .iter()
        .map(|seen| {
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            body["data"].to_string()
        })
        .collect();
    let mut expected: Vec<_> = expected.iter().map(Value::to_string).collect();
    delivered.sort_unstable();
    expected.sort_unstable();
    assert_eq!(delivered, expected);
    let invalid = wait_for_records(&world, &world.topics.invalid_events(), 1);
    assert_eq!(invalid.len(), 1, "{invalid:?}");
    assert_eq!(
        invalid[0].header("hookstream-error"),
        Some("the value names the schema id 65536, which the Schema Registry does not have")
    );
    drop(process);
}

#[test]
fn trace_looks_into_framed_values_and_reports_those_that_it_cannot_decode() {
    let world = World::new("trace-schemas");
    world.create_topics(1);
    let registry = Receiver::start(|seen| match seen.path.as_str() {
        "/schemas/ids/7" => Answer::ok().body(SCHEMA),
        "/schemas/ids/9" => Answer::status(503),
        _ => Answer::status(404).body(NO_SUCH_SCHEMA),
    });
    let url = registry.url("");
    let trace = |id: &str, more: &[&str]| {
        let arguments = [&["trace", id, "-o", "json"], more].concat();
        world.run(&arguments, "")
    };
    let with = ["--schema-registry", url.as_str()];
    world.produce_raw(&world.events, 0, &[record(&[], &framed(7, &avro("e1", 1)))]);
    let found = trace("e1", &with);
    assert_eq!(found.code, 0, "{}", found.stderr);
    let steps: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(steps[0]["step"], "event", "{steps}");
    assert!(!found.stderr.contains("not searched"), "{}", found.stderr);
    let other = trace("e2", &with);
    assert_eq!(other.code, 1);
    assert!(!other.stderr.contains("not searched"), "{}", other.stderr);
    let without = trace("e1", &[]);
    assert_eq!(without.code, 1);
    let expected =
        "1 event value with a schema id not searched: set --schema-registry to decode them";
    assert!(without.stderr.contains(expected), "{}", without.stderr);
    world.produce_raw(
        &world.events,
        0,
        &[
            record(&[], &framed(9, &avro("e3", 1))),
            record(&[], &framed(8, &avro("e3", 1))),
            record(&[], &framed(9, &avro("e3", 1))),
        ],
    );
    let found = trace("e1", &with);
    assert_eq!(found.code, 0, "{}", found.stderr);
    let expected = "3 event values with a schema id not searched: the Schema Registry does not return schema id 9: GET /schemas/ids/9: status 503";
    assert!(found.stderr.contains(expected), "{}", found.stderr);
}

#[test]
fn without_a_registry_a_framed_value_is_invalid_and_named() {
    let world = World::new("no-registry");
    world.create_topics(1);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let _process = start(&world, &[]);
    let good = event("good", "a.b", "1");
    world.produce_raw(
        &world.events,
        0,
        &[record(&[], &framed(7, b"{}")), record(&[], good.as_bytes())],
    );
    let seen = receiver.wait_for(1, LATER);
    assert_eq!(seen[0].body, body("a.b", "1"));
    let invalid = world.read_all(&world.topics.invalid_events(), Isolation::Committed);
    let error = invalid[0].header("hookstream-error").unwrap();
    assert!(
        error.contains("the schema id 7 of a Schema Registry; set --schema-registry"),
        "{error}"
    );
}
