//! The harness itself on the real broker: what other tests take for granted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::util::Timeout;

use crate::support::{
    Answer, Broker, Isolation, Process, Receiver, SOON, World, eventually_true, run_to_end,
};

#[test]
fn what_is_produced_is_read_back_in_order_with_key_and_headers() {
    let world = World::new("read-back");
    world.create_topics(3);
    world.produce_event("a", &[("ce_id", "1")], r#"{"id":"1"}"#);
    world.produce_events((0..500).map(|n| ("b", format!(r#"{{"n":{n}}}"#))));

    let records = world.read_all(&world.events, Isolation::Committed);
    let first = records
        .iter()
        .find(|record| record.key_text() == "a")
        .unwrap();
    assert_eq!(first.header("ce_id"), Some("1"));
    assert_eq!(first.json()["id"], "1");
    let of_b: Vec<i64> = records
        .iter()
        .filter(|record| record.key_text() == "b")
        .map(|record| record.json()["n"].as_i64().unwrap())
        .collect();
    assert_eq!(
        of_b,
        (0..500).collect::<Vec<i64>>(),
        "records of one key must keep their order"
    );
    assert!(
        world
            .read_all(&world.topics.commands(), Isolation::Committed)
            .is_empty()
    );
    assert!(
        world.committed("fanout", &world.events).is_empty(),
        "nobody has committed yet"
    );
}

#[test]
fn a_transaction_is_seen_open_and_an_aborted_one_only_uncommitted() {
    let world = World::new("aborted");
    world.create_topics(1);
    let topic = world.topics.commands();
    let mut config = world.client_config();
    let producer: BaseProducer = config
        .set("transactional.id", format!("{}tx", world.prefix))
        .create()
        .unwrap();
    producer.init_transactions(SOON).unwrap();
    for (value, commit) in [("kept", true), ("dropped", false)] {
        producer.begin_transaction().unwrap();
        producer
            .send(BaseRecord::<str, str>::to(&topic).payload(value))
            .unwrap();
        producer.flush(SOON).unwrap();
        assert_eq!(world.open_transactions(&topic).len(), 1);
        if commit {
            producer.commit_transaction(Timeout::Never)
        } else {
            producer.abort_transaction(Timeout::Never)
        }
        .unwrap();
        // The marker may be written a moment after the answer.
        eventually_true("no transaction is open", SOON, || {
            world.open_transactions(&topic).is_empty()
        });
    }
    let values = |isolation| -> Vec<String> {
        let records = world.read_all(&topic, isolation);
        records
            .into_iter()
            .map(|record| String::from_utf8(record.value.unwrap()).unwrap())
            .collect()
    };
    assert_eq!(values(Isolation::Committed), ["kept"]);
    assert_eq!(values(Isolation::Uncommitted), ["kept", "dropped"]);
}

#[test]
fn a_restarted_broker_keeps_its_data_and_its_port() {
    let broker = Broker::own();
    let world = World::on(&broker, "restart");
    world.create_topics(1);
    world.produce_event("k", &[], "before");
    broker.restart();
    world.produce_event("k", &[], "between");
    broker.control(&["stop-broker", "--hard", "1"]);
    broker.start();
    world.produce_event("k", &[], "after");
    let values: Vec<_> = world
        .read_all(&world.events, Isolation::Committed)
        .into_iter()
        .map(|r| r.value.unwrap())
        .collect();
    assert_eq!(values, [&b"before"[..], b"between", b"after"]);
}

#[test]
fn a_process_is_seen_to_end() {
    assert_eq!(run_to_end(&["--version"], "").code, 0);
    assert!(Process::spawn(&["--version"]).wait_exit(SOON).success());
}

#[test]
fn a_receiver_records_requests_and_counts_attempts() {
    let receiver = Receiver::start(|seen| match (seen.path.as_str(), seen.attempt) {
        ("/flaky", 1) => Answer::status(503).header("retry-after", "1"),
        _ => Answer::ok().body("thanks"),
    });
    let mut connection = connect(&receiver);
    let answers: Vec<String> = ["/flaky", "/flaky"]
        .iter()
        .map(|path| post(&mut connection, path, "m-1", "body"))
        .collect();
    assert!(
        answers[0].starts_with("HTTP/1.1 503") && answers[0].contains("retry-after: 1"),
        "{answers:?}"
    );
    assert!(
        answers[1].starts_with("HTTP/1.1 200") && answers[1].ends_with("thanks"),
        "{answers:?}"
    );

    let seen = receiver.wait_for(2, SOON);
    assert_eq!(
        (seen[1].webhook_id(), seen[1].attempt, &seen[1].body[..]),
        ("m-1", 2, &b"body"[..])
    );
    assert!(seen[0].received <= seen[1].received);
}

#[test]
fn a_receiver_can_misbehave_in_every_way() {
    let receiver = Receiver::start(|seen| match seen.path.as_str() {
        "/reset" => Answer::reset(),
        "/close" => Answer::close(),
        "/garbage" => Answer::garbage(),
        "/half" => Answer::half(),
        "/endless" => Answer::endless(),
        _ => Answer::hang(),
    });
    let all = |path: &str| {
        let mut connection = connect(&receiver);
        send(&mut connection, path, "m", "");
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).map(|_| bytes)
    };
    assert_eq!(
        all("/reset").unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert_eq!(all("/close").unwrap(), b"");
    assert!(!all("/garbage").unwrap().starts_with(b"HTTP"));
    assert!(all("/half").unwrap().ends_with(b"content-le"));

    let mut endless = connect(&receiver);
    send(&mut endless, "/endless", "m", "");
    endless.read_exact(&mut vec![0; 1_000_000]).unwrap();

    let mut hanging = connect(&receiver);
    send(&mut hanging, "/hang", "m", "");
    receiver.wait_until("the request that hangs", SOON, |seen| {
        seen.iter().any(|one| one.path == "/hang")
    });
    hanging
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(hanging.read(&mut [0]).is_err(), "nothing may come");
}

fn connect(receiver: &Receiver) -> TcpStream {
    let connection = TcpStream::connect(("127.0.0.1", receiver.port())).unwrap();
    connection.set_read_timeout(Some(SOON)).unwrap();
    connection
}

fn send(connection: &mut TcpStream, path: &str, id: &str, body: &str) {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nWebhook-Id: {id}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).unwrap();
}

fn post(connection: &mut TcpStream, path: &str, id: &str, body: &str) -> String {
    send(connection, path, id, body);
    let mut buffer = [0; 4096];
    let length = connection.read(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}
