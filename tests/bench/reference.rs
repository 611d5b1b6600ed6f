//! The raw references: what a well-written client without hookstream costs for the same bytes.

use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioExecutor;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, TopicPartitionList};

use crate::stage::{BODY, Problem, SUBSCRIPTIONS, producer_config};

/// Prints a line for the parent.
pub fn print(text: &str) -> Result<(), Problem> {
    println!("{text}");
    Ok(std::io::stdout().flush()?)
}

/// Prints that all is done, and waits to be ended.
pub fn print_done() -> Result<(), Problem> {
    print("done")?;
    rest()
}

/// The parent reads this process's accounting before it ends it.
fn rest() -> ! {
    loop {
        std::thread::park();
    }
}

/// PORT COUNT TASKS [KIND]: POSTs with pooled connections, one task for each request in flight, on one thread, to paths
/// `/KIND/N`; `ok` when there is none.
pub fn client(arguments: &[String]) -> Result<(), Problem> {
    let (port, count): (u16, usize) = (arguments[0].parse()?, arguments[1].parse()?);
    let tasks: usize = arguments[2].parse()?;
    hookstream::edge::descriptors::raise_limit();
    let kind = arguments.get(3).map_or("ok", String::as_str).to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
        connector.set_nodelay(true);
        let client: hyper_util::client::legacy::Client<_, Full<Bytes>> =
            hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        let each: Vec<_> = (0..tasks)
            .map(|task| {
                let client = client.clone();
                let mine = count / tasks + usize::from(task < count % tasks);
                let uri = format!("http://127.0.0.1:{port}/{kind}/{}", task % SUBSCRIPTIONS);
                tokio::spawn(async move {
                    for _ in 0..mine {
                        let answer = client.request(posted(&uri)).await;
                        let answer = answer.expect("the receiver answers");
                        answer
                            .into_body()
                            .collect()
                            .await
                            .expect("the body is read");
                    }
                })
            })
            .collect();
        for task in each {
            task.await?;
        }
        Ok::<(), Problem>(())
    })?;
    print_done()
}

/// A request as large as a delivery's.
pub fn posted(uri: &str) -> hyper::Request<Full<Bytes>> {
    static BODY_SENT: [u8; BODY] = [b'x'; BODY];
    hyper::Request::post(uri)
        .header("content-type", "application/json")
        .header("user-agent", "raw")
        .header("webhook-id", "msg_0123456789abcdefghijklmnopq")
        .header("webhook-timestamp", "1700000000")
        .header(
            "webhook-signature",
            "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
        )
        .header("hookstream-attempt", "1")
        .body(Full::new(Bytes::from_static(&BODY_SENT)))
        .expect("a valid request")
}

/// Sends when there is room again.
pub fn send<'a, K: ?Sized + rdkafka::message::ToBytes>(
    producer: &ThreadedProducer<DefaultProducerContext>,
    mut record: BaseRecord<'a, K, [u8]>,
) -> Result<(), Problem> {
    while let Err((error, refused)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error.into());
        }
        record = refused;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A command as fan-out writes it, of one of [`SUBSCRIPTIONS`].
pub fn command(number: usize) -> hookstream::model::command::Command {
    command_of(number, number % SUBSCRIPTIONS)
}

/// The same for the subscription with this number.
pub fn command_of(number: usize, name: usize) -> hookstream::model::command::Command {
    let mut body =
        format!(r#"{{"type":"order.created","data":{{"number":{number},"pad":""#).into_bytes();
    body.resize(BODY - 3, b'x');
    body.extend_from_slice(b"\"}}");
    hookstream::model::command::Command {
        subscriber: format!("subscriber-{name}").into(),
        webhook_id: format!("msg_{number:027}").into(),
        subscription: format!("s{name}").into(),
        event_id: format!("event-{number}").into(),
        event_type: "order.created".into(),
        event_time: Some("2026-01-01T00:00:00Z".into()),
        subject: Some(format!("order-{number}").into()),
        content_type: hookstream::model::command::ContentType::Json,
        attempt: 0,
        due: None,
        enqueued: hookstream::edge::clock::now(),
        cause: hookstream::model::command::Cause::New,
        traceparent: None,
        first_failure: None,
        last_failure: None,
        replayed: None,
        sequence: None,
        recorded: None,
        cluster: None,
        body: body.into(),
    }
}

/// The record of a command.
pub fn record<'a>(
    topic: &'a str,
    command: &'a hookstream::model::command::Command,
) -> BaseRecord<'a, [u8], [u8]> {
    BaseRecord::to(topic)
        .key(command.subscriber.as_bytes())
        .payload(&command.body[..])
        .headers(hookstream::edge::kafka::record::command_headers(
            &command.envelope(),
        ))
}

/// ADDRESS TOPIC COUNT: an idempotent producer that writes commands, and tells how many seconds it took.
pub fn producer(arguments: &[String]) -> Result<(), Problem> {
    let count: usize = arguments[2].parse()?;
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&arguments[0]).create()?;
    // Made beforehand, but for their headers, which every producer has to make.
    let commands: Vec<_> = (0..10_000.min(count)).map(command).collect();
    let begun = Instant::now();
    for number in 0..count {
        let command = &commands[number % commands.len()];
        let mut headers = OwnedHeaders::new_with_capacity(12);
        command.envelope().each_header(|name, value| {
            let all = std::mem::take(&mut headers);
            headers = all.insert(rdkafka::message::Header {
                key: name,
                value: Some(value),
            });
        });
        let record = BaseRecord::<[u8], [u8]>::to(&arguments[1])
            .key(command.subscriber.as_bytes())
            .payload(&command.body[..])
            .headers(headers);
        send(&producer, record)?;
    }
    producer.flush(Duration::from_secs(120))?;
    print(&begun.elapsed().as_secs_f64().to_string())?;
    rest()
}

/// ADDRESS TOPIC PARTITIONS COUNT: reads that many records and looks at their headers.
pub fn consumer(arguments: &[String]) -> Result<(), Problem> {
    let (partitions, count): (i32, usize) = (arguments[2].parse()?, arguments[3].parse()?);
    let consumer = reader(&arguments[0], &arguments[1], partitions)?;
    let mut seen = 0;
    while seen < count {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                seen += usize::from(message.headers().is_some());
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
    print("done")?;
    rest()
}

/// As readers without a group are set.
pub fn reader_config(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("group.id", "bench-reader")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.queue.backoff.ms", "50");
    config
}

/// All of a topic from its beginning, without a group.
pub fn reader(address: &str, topic: &str, partitions: i32) -> Result<BaseConsumer, Problem> {
    read_all(&reader_config(address), topic, partitions)
}

/// The same with other settings.
pub fn read_all(
    config: &ClientConfig,
    topic: &str,
    partitions: i32,
) -> Result<BaseConsumer, Problem> {
    let consumer: BaseConsumer = config.create()?;
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition, rdkafka::Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    Ok(consumer)
}

/// ADDRESS FROM TO PARTITIONS: copies every record at once, until it is ended.
pub fn relay(arguments: &[String]) -> Result<(), Problem> {
    let partitions: i32 = arguments[3].parse()?;
    let consumer = reader(&arguments[0], &arguments[1], partitions)?;
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&arguments[0]).create()?;
    print("ready")?;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let key = message.key().unwrap_or_default();
                let value = message.payload().unwrap_or_default();
                let record = BaseRecord::<[u8], [u8]>::to(&arguments[2])
                    .key(key)
                    .payload(value);
                send(&producer, record)?;
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
}
