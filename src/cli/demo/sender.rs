//! Sends the sample events at an even rate, on its own thread. Each is recorded in the ledger before it is sent.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::message::OwnedHeaders;

use super::broker::{Broker, refused};
use super::events::Flow;
use super::receivers::SharedLedger;
use crate::cli::exit::{CliError, Exit};
use crate::cli::samples::Event;
use crate::edge::clock;
use crate::edge::kafka::producer::{Producer, Record};
use crate::runtime::shutdown::Stop;

/// How often due events are sent.
const TICK: Duration = Duration::from_millis(50);

/// Starts sending; ends when all are sent or on shutdown.
///
/// # Errors
/// [`CliError`] when the producer or the thread cannot be created.
pub(super) fn start(
    broker: &Broker,
    ledger: &SharedLedger,
    run: String,
    flow: Flow,
    stop: &Arc<Stop>,
) -> Result<JoinHandle<Result<(), CliError>>, CliError> {
    let mut sender = Sender {
        producer: broker.producer()?,
        topic: broker
            .settings
            .topics
            .events
            .first()
            .cloned()
            .unwrap_or_default(),
        ledger: ledger.clone(),
        run,
        sent: 0,
    };
    let stop = Arc::clone(stop);
    std::thread::Builder::new()
        .name("sender".to_owned())
        .spawn(move || {
            let all = flow.events();
            // The first event goes ahead, so that the latencies do not include the start of the roles.
            sender.send_up_to(1)?;
            while sender.ledger.lock().requests() == 0 && !stop.is_requested() {
                stop.wait(TICK);
            }
            let begun = clock::instant();
            while sender.sent < all && !stop.is_requested() {
                sender.send_up_to(flow.due(begun.elapsed()).min(all))?;
                stop.wait(TICK);
            }
            Ok(())
        })
        .map_err(|error| {
            CliError::new(
                Exit::Failure,
                format!("starting the sender thread: {error}"),
            )
        })
}

struct Sender {
    producer: Producer,
    topic: String,
    ledger: SharedLedger,
    run: String,
    sent: u32,
}

impl Sender {
    fn send_up_to(&mut self, due: u32) -> Result<(), CliError> {
        let what = "sending the sample events";
        for number in self.sent..due {
            let event = Event::new(&self.run, number);
            self.ledger.lock().expect(&event, clock::instant());
            let value = event.envelope(&clock::now().rfc3339()).to_string();
            let record = Record {
                topic: &self.topic,
                partition: None,
                key: Some(event.order.as_bytes()),
                value: Some(value.as_bytes()),
                headers: OwnedHeaders::new(),
                tag: number as usize,
            };
            self.producer
                .send(record)
                .map_err(|error| refused(what, error))?;
        }
        self.sent = due.max(self.sent);
        self.producer
            .finish(&[], None)
            .map_err(|error| refused(what, error))
    }
}
