//! Gives a client that has lost every broker its bootstrap servers back.
//!
//! A broker that is starting may answer for its topics while it counts itself, and every other, as not yet alive:
//! metadata with topics and no brokers. librdkafka (2.10 to 2.15 at least, issue 5301) then drops every broker that it
//! knows, the bootstrap servers too, and never connects again: a consumer is silent for good, a commit waits for ever,
//! and no error tells. Adding the servers once more is what its own re-bootstrap does, and changes nothing for a client
//! that is well. Each client is watched by a thread of its own, since the thread that uses it may be the one that waits.

use std::ffi::CString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use super::credentials::keep_current;
use super::watchdog;
use crate::config::Settings;
use crate::edge::kafka::error::Failure;

/// How often a client is asked which brokers it knows.
const EVERY: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// After so many times without a connection the servers are added. Not at once, and not for a slow answer: a server that
/// is added is dropped again with the next metadata, and what was asked of it at that moment may be lost.
const SILENT: usize = 2;

/// Watches `client` for as long as it is in use, and lets it have new credentials; `inner` leads to the part that is
/// asked.
///
/// # Errors
/// [`Failure`] when there can be no thread, or no C string of the list of servers.
pub(super) fn keep<T, C>(
    settings: &Settings,
    client: &Arc<T>,
    inner: fn(&T) -> &Client<C>,
) -> Result<(), Failure>
where
    T: Send + Sync + 'static,
    C: ClientContext + 'static,
{
    let servers = CString::new(settings.brokers.as_str())
        .map_err(|error| Failure::Internal(format!("the list of brokers: {error}")))?;
    let topic = settings.topics.commands();
    keep_current(&settings.credentials, client, inner);
    let watched: Weak<T> = Arc::downgrade(client);
    let watch = move || {
        let mut silent = 0;
        while let Some(client) = watched.upgrade() {
            let client_inner = inner(&client);
            let told = ask(client_inner, &topic);
            if told == Told::Brokers {
                watchdog::reachable();
            } else {
                watchdog::unreachable();
            }
            silent = if told == Told::NoConnection {
                silent + 1
            } else {
                0
            };
            if told == Told::NoBrokers || silent >= SILENT {
                add(client_inner, &servers);
            }
            drop(client);
            std::thread::sleep(EVERY);
        }
    };
    std::thread::Builder::new()
        .name("bootstrap".to_owned())
        .spawn(watch)
        .map_err(|error| Failure::Internal(format!("starting a thread: {error}")))?;
    Ok(())
}

/// What came of asking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Brokers,
    /// An answer that names none.
    NoBrokers,
    /// There is no connection to ask over: all brokers are away, or none is known.
    NoConnection,
    /// A broker that is busy, or starts.
    Nothing,
}

fn ask<C: ClientContext>(client: &Client<C>, topic: &str) -> Told {
    match client.fetch_metadata(Some(topic), ANSWER) {
        Ok(metadata) if metadata.brokers().is_empty() => Told::NoBrokers,
        Ok(_) => Told::Brokers,
        Err(error) => match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown) => {
                Told::NoConnection
            }
            _ => Told::Nothing,
        },
    }
}

/// Those that the client knows already stay as they are.
#[allow(unsafe_code, reason = "rust-rdkafka has no safe call for this")]
fn add<C: ClientContext>(client: &Client<C>, servers: &CString) {
    // SAFETY: both pointers are valid for the call, since the client and the string are borrowed; librdkafka copies
    // the string and takes its own locks (rdkafka.h, `rd_kafka_brokers_add`).
    let added =
        unsafe { rdkafka::bindings::rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
    tracing::debug!(
        added,
        "a client knows no broker: its bootstrap servers are added again"
    );
}
