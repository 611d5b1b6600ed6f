//! The sample receivers: small HTTP servers that verify requests as a subscriber would.
//!
//! Signature verification follows the text of Standard Webhooks 1.0 and shares no code with the signer.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::ledger::{Attempt, Ledger};
use super::subscribers::{Behavior, SLOW_RESPONSE, SUBSCRIBERS};
use crate::cli::exit::{CliError, Exit};
use crate::edge::clock;

/// The maximum body size, bytes.
const LARGEST_BODY: usize = 1024 * 1024;

/// How far a request's timestamp may be from now, as the specification advises.
const TOLERANCE: Duration = Duration::from_secs(300);

/// The ledger, shared by the receivers, the sender and the view.
#[derive(Clone)]
pub(super) struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running receiver of one subscriber.
pub(super) struct Receiver {
    /// Its URL.
    pub(super) url: String,
    /// Its secret, `whsec_…`.
    pub(super) secret: String,
}

/// All receivers; they stop when this is dropped.
pub(super) struct Receivers {
    /// In the order of [`SUBSCRIBERS`].
    pub(super) all: Vec<Receiver>,
    /// Runs their tasks.
    _runtime: Runtime,
}

impl Receivers {
    /// Starts one receiver per subscriber, each on a free local port.
    ///
    /// # Errors
    /// [`CliError`] when no port is available.
    pub(super) fn start(ledger: &SharedLedger) -> Result<Self, CliError> {
        let failed = |what: &str| {
            CliError::new(
                Exit::Failure,
                format!("starting the sample receivers: {what}"),
            )
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("receivers")
            .enable_all()
            .build()
            .map_err(|error| failed(&error.to_string()))?;
        let mut all = Vec::new();
        for (index, subscriber) in SUBSCRIBERS.iter().enumerate() {
            let mut key = [0; 32];
            SystemRandom::new()
                .fill(&mut key)
                .map_err(|_| failed("no randomness for a secret"))?;
            let listener = runtime
                .block_on(TcpListener::bind(("127.0.0.1", 0)))
                .map_err(|error| failed(&error.to_string()))?;
            let address = listener
                .local_addr()
                .map_err(|error| failed(&error.to_string()))?;
            let endpoint = Arc::new(Endpoint {
                index,
                key: hmac::Key::new(hmac::HMAC_SHA256, &key),
                ledger: ledger.clone(),
            });
            runtime.spawn(accept(listener, endpoint));
            all.push(Receiver {
                url: format!("http://{address}/{}", subscriber.name),
                secret: format!("whsec_{}", STANDARD.encode(key)),
            });
        }
        Ok(Self {
            all,
            _runtime: runtime,
        })
    }
}

struct Endpoint {
    /// The index in [`SUBSCRIBERS`].
    index: usize,
    key: hmac::Key,
    ledger: SharedLedger,
}

async fn accept(listener: TcpListener, endpoint: Arc<Endpoint>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Usually too many open files.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let endpoint = Arc::clone(&endpoint);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let endpoint = Arc::clone(&endpoint);
                async move { Ok::<_, Infallible>(endpoint.receive(request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("connection of a sample receiver ended: {error}");
            }
        });
    }
}

impl Endpoint {
    async fn receive(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, LARGEST_BODY).collect().await else {
            return respond(413);
        };
        let body = body.to_bytes();
        let id = text(&parts.headers, "webhook-id")
            .unwrap_or_default()
            .to_owned();
        let signature = verify(&self.key, &parts.headers, &body, clock::now().seconds());
        let status = self.ledger.lock().attempt(
            self.index,
            &Attempt {
                webhook_id: &id,
                number: text(&parts.headers, "hookstream-attempt")
                    .and_then(|number| number.parse().ok()),
                body: &body,
                signature,
            },
        );
        if SUBSCRIBERS[self.index].behavior == Behavior::Slow {
            tokio::time::sleep(SLOW_RESPONSE).await;
        }
        self.ledger
            .lock()
            .responded(self.index, &id, status, clock::instant());
        respond(status)
    }
}

fn respond(status: u16) -> Response<Full<Bytes>> {
    let text = match status {
        400 => "this receiver does not understand order.created yet",
        _ => "",
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Standard Webhooks 1.0, "Verifying webhooks": one of the `v1` signatures must match, and the timestamp be recent.
fn verify(
    key: &hmac::Key,
    headers: &HeaderMap,
    body: &[u8],
    now_seconds: i64,
) -> Result<(), &'static str> {
    let id = text(headers, "webhook-id").ok_or("missing webhook-id")?;
    let timestamp = text(headers, "webhook-timestamp").ok_or("missing webhook-timestamp")?;
    let signatures = text(headers, "webhook-signature").ok_or("missing webhook-signature")?;
    let seconds: i64 = timestamp
        .parse()
        .map_err(|_| "webhook-timestamp is not a number")?;
    if seconds.abs_diff(now_seconds) > TOLERANCE.as_secs() {
        return Err("webhook-timestamp is not recent");
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let fits = signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .any(|signature| hmac::verify(key, &signed, &signature).is_ok());
    if fits {
        Ok(())
    } else {
        Err("no signature matches")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::signing::Signer;

    #[test]
    fn a_signature_is_valid_only_for_its_body_key_and_time() {
        let key = [7; 32];
        let secret = format!("whsec_{}", STANDARD.encode(key));
        let signature = Signer::new([secret.as_str()])
            .unwrap()
            .sign("msg_1", "1700000000", b"{}");
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", "1700000000".parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        let own = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let other = hmac::Key::new(hmac::HMAC_SHA256, &[8; 32]);
        assert_eq!(verify(&own, &headers, b"{}", 1_700_000_100), Ok(()));
        assert!(
            verify(&own, &headers, b"{} ", 1_700_000_100).is_err(),
            "another body"
        );
        assert!(
            verify(&other, &headers, b"{}", 1_700_000_100).is_err(),
            "another key"
        );
        assert!(
            verify(&own, &headers, b"{}", 1_700_001_000).is_err(),
            "too old"
        );
    }
}
