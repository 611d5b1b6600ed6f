//! Restores the bootstrap servers of a client that has lost all brokers.
//!
//! A starting broker may return metadata with topics but no brokers, because it does not consider any broker alive yet.
//! librdkafka (2.10 to 2.15 at least, issue 5301) then drops every broker it knows, including the bootstrap servers, and
//! never reconnects: consumers and commits hang without an error. Adding the servers again is what librdkafka's own
//! re-bootstrap does, and has no effect on a healthy client. Each client has its own watching thread, since the thread
//! that uses the client may be blocked.

use std::ffi::CString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use super::credentials::keep_current;
use super::watchdog::Link;
use crate::config::Settings;
use crate::edge::kafka::error::Failure;

/// How often a client is probed.
const EVERY: Duration = Duration::from_secs(5);
/// Timeout of a probe.
const RESPONSE: Duration = Duration::from_secs(1);
/// Probes without a connection before the servers are added. Not on the first, and not for a slow response: an added
/// server is dropped again with the next metadata, and a request to it at that moment may be lost.
const DISCONNECTED_PROBES: usize = 2;

/// Watches `client` while it is in use, and passes new credentials to it; `inner` returns the client to probe. Returns the
/// link through which its calls are supervised; `purpose` is the name of its role.
///
/// # Errors
/// [`Failure`] when the thread cannot be started, or the list of servers is not a C string.
pub(super) fn keep<T, C>(
    settings: &Settings,
    client: &Arc<T>,
    inner: fn(&T) -> &Client<C>,
    purpose: &str,
) -> Result<Link, Failure>
where
    T: Send + Sync + 'static,
    C: ClientContext + 'static,
{
    let servers = CString::new(settings.brokers.as_str())
        .map_err(|error| Failure::Internal(format!("invalid list of brokers: {error}")))?;
    let topic = settings.topics.commands();
    keep_current(&settings.credentials, client, inner);
    let watched: Weak<T> = Arc::downgrade(client);
    let link = Link::new(purpose);
    let own = link.clone();
    let watch = move || {
        let mut disconnected = 0;
        while let Some(client) = watched.upgrade() {
            let client_inner = inner(&client);
            let found = probe(client_inner, &topic);
            if found == Probe::Brokers {
                own.reachable();
            } else {
                own.unreachable();
            }
            disconnected = if found == Probe::NoConnection {
                disconnected + 1
            } else {
                0
            };
            if found == Probe::NoBrokers || disconnected >= DISCONNECTED_PROBES {
                add(client_inner, &servers);
            }
            drop(client);
            std::thread::sleep(EVERY);
        }
    };
    std::thread::Builder::new()
        .name("bootstrap".to_owned())
        .spawn(watch)
        .map_err(|error| Failure::Internal(format!("cannot start a thread: {error}")))?;
    Ok(link)
}

/// The result of a probe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Brokers,
    /// A response without brokers.
    NoBrokers,
    /// No connection: all brokers are unreachable, or none is known.
    NoConnection,
    /// No response: a broker is busy or starting.
    NoResponse,
}

fn probe<C: ClientContext>(client: &Client<C>, topic: &str) -> Probe {
    match client.fetch_metadata(Some(topic), RESPONSE) {
        Ok(metadata) if metadata.brokers().is_empty() => Probe::NoBrokers,
        Ok(_) => Probe::Brokers,
        Err(error) => match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown) => {
                Probe::NoConnection
            }
            _ => Probe::NoResponse,
        },
    }
}

/// Adds the servers; those that the client already knows stay unchanged.
#[allow(unsafe_code, reason = "rust-rdkafka has no safe call for this")]
fn add<C: ClientContext>(client: &Client<C>, servers: &CString) {
    // SAFETY: both pointers are valid for the call, since the client and the string are borrowed; librdkafka copies
    // the string and takes its own locks (rdkafka.h, `rd_kafka_brokers_add`).
    let added =
        unsafe { rdkafka::bindings::rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
    tracing::debug!(
        added,
        "client knows no broker, bootstrap servers added again"
    );
}
