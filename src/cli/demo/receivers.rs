//! The sample receivers: small HTTP servers that verify requests as a subscriber would.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::ledger::{Attempt, Ledger};
use super::subscribers::{Behavior, SLOW_RESPONSE, SUBSCRIBERS};
use crate::cli::exit::{CliError, Exit};
use crate::cli::receiving::{VerifyingKey, serve, text, verify, whole};
use crate::edge::clock;

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
            let secret = format!("whsec_{}", STANDARD.encode(key));
            let key = VerifyingKey::read(&secret).map_err(|error| failed(&error))?;
            let endpoint = Arc::new(Endpoint {
                index,
                keys: vec![key],
                ledger: ledger.clone(),
            });
            let receive = move |request| {
                let endpoint = Arc::clone(&endpoint);
                async move { endpoint.receive(request).await }
            };
            runtime.spawn(serve(listener, receive));
            all.push(Receiver {
                url: format!("http://{address}/{}", subscriber.name),
                secret,
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
    keys: Vec<VerifyingKey>,
    ledger: SharedLedger,
}

impl Endpoint {
    async fn receive(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some((parts, body)) = whole(request).await else {
            return respond(413);
        };
        let id = text(&parts.headers, "webhook-id")
            .unwrap_or_default()
            .to_owned();
        let signature = verify(&self.keys, &parts.headers, &body, clock::now().seconds());
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
