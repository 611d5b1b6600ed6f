//! The consumer that users would write by hand: rdkafka and hyper, one request a record, signed. Offsets are stored as
//! requests end, so one that is killed may lose what is in flight.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rdkafka::consumer::Consumer;
use rdkafka::message::{Headers, Message, OwnedMessage};
use ring::hmac;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::channel;

use crate::reference::{print_done, read_all, reader_config};
use crate::stage::Problem;

/// ADDRESS TOPIC PARTITIONS COUNT PORT IN_FLIGHT KIND: delivers so many records to paths `/KIND/N`, so many at a time.
pub fn play(arguments: &[String]) -> Result<(), Problem> {
    let (address, topic) = (arguments[0].clone(), arguments[1].clone());
    let (partitions, count): (i32, usize) = (arguments[2].parse()?, arguments[3].parse()?);
    let (port, in_flight) = (arguments[4].clone(), arguments[5].parse()?);
    let kind = arguments[6].clone();
    hookstream::edge::descriptors::raise_limit();
    let mut config = reader_config(&address);
    config
        .set("enable.auto.commit", "true")
        .set("enable.auto.offset.store", "false");
    let consumer = Arc::new(read_all(&config, &topic, partitions)?);
    let (records, mut read) = channel::<OwnedMessage>(1_000);
    let reading = Arc::clone(&consumer);
    std::thread::spawn(move || {
        for _ in 0..count {
            let message = loop {
                match reading.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => break message.detach(),
                    Some(Err(error)) => eprintln!("the consumer by hand: {error}"),
                    None => {}
                }
            };
            if records.blocking_send(message).is_err() {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[7; 24]));
        let room = Arc::new(Semaphore::new(in_flight));
        while let Some(record) = read.recv().await {
            let place = Arc::clone(&room).acquire_owned().await?;
            let (client, consumer) = (client.clone(), Arc::clone(&consumer));
            let request = request(&record, &key, &port, &kind);
            tokio::spawn(async move {
                let answer = client.request(request).await.expect("the receiver answers");
                let body = answer.into_body();
                body.collect().await.expect("the body is read");
                let stored =
                    consumer.store_offset(record.topic(), record.partition(), record.offset());
                stored.expect("the partition is assigned");
                drop(place);
            });
        }
        room.acquire_many(u32::try_from(in_flight)?).await?.forget();
        Ok::<(), Problem>(())
    })?;
    print_done()
}

fn request(
    record: &OwnedMessage,
    key: &hmac::Key,
    port: &str,
    kind: &str,
) -> hyper::Request<Full<Bytes>> {
    let header = |name: &str| {
        let all = record.headers()?.iter();
        let found = all
            .filter(|header| header.key == name)
            .find_map(|header| header.value);
        std::str::from_utf8(found?).ok()
    };
    let id = header("webhook-id").unwrap_or("none");
    let lane = header("hs-subscription")
        .unwrap_or("s0")
        .trim_start_matches('s');
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (now, body) = (now.as_secs(), record.payload().unwrap_or_default());
    let mut signed = hmac::Context::with_key(key);
    signed.update(format!("{id}.{now}.").as_bytes());
    signed.update(body);
    let signature = STANDARD.encode(signed.sign());
    hyper::Request::post(format!("http://127.0.0.1:{port}/{kind}/{lane}"))
        .header("content-type", "application/json")
        .header("user-agent", "byhand")
        .header("webhook-id", id)
        .header("webhook-timestamp", now.to_string())
        .header("webhook-signature", format!("v1,{signature}"))
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a valid request")
}
