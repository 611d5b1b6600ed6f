//! Opens connections: egress check, DNS lookup, TCP, TLS. Each step has its own error, so that failures are
//! distinguished by type and not by text.

use std::future::{Future, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use super::limits::{DIAL_LIMIT, TCP_LIMIT};
use super::verify::{NOTES, Notes};
use crate::edge::egress::lookups::Lookups;
use crate::edge::egress::resolver::{GuardedResolver, ResolveError};
use crate::edge::egress::{EgressDenied, EgressPolicy};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection.
#[derive(Debug, Error)]
pub(super) enum DialError {
    #[error("egress denied")]
    Denied(#[source] EgressDenied),
    #[error("dns lookup failed")]
    Resolve(#[source] io::Error),
    #[error("dns lookup found no address")]
    NoAddress,
    #[error("tcp connect failed")]
    Tcp(#[source] io::Error),
    #[error("tls handshake failed")]
    Tls(#[source] io::Error, Notes),
    #[error("no connection within {DIAL_LIMIT:?}")]
    TimedOut,
    #[error("connect failed")]
    Other(#[source] BoxError),
}

/// A connection without HTTP.
pub(super) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// The connector of the pools.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    policy: Arc<EgressPolicy>,
    https: HttpsConnector<HttpConnector<GuardedResolver>>,
}

impl Dial {
    pub(super) fn new(policy: Arc<EgressPolicy>, lookups: Lookups, tls: ClientConfig) -> Self {
        let resolver = GuardedResolver::new(Arc::clone(&policy), lookups);
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP_LIMIT));
        // The policy decides about http, so that its message reaches the operator.
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions();
        Self {
            policy,
            https: https.wrap_connector(tcp),
        }
    }
}

impl Service<Uri> for Dial {
    type Response = Stream;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        self.https.poll_ready(cx).map_err(sort)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if let Err(denied) = self.policy.check_target(&uri) {
            return Box::pin(ready(Err(DialError::Denied(denied))));
        }
        let dialling = self.https.call(uri);
        let dialled = async move {
            match timeout(DIAL_LIMIT, dialling).await {
                Ok(dialled) => dialled.map_err(sort),
                Err(_) => Err(DialError::TimedOut),
            }
        };
        Box::pin(NOTES.scope(Notes::default(), dialled))
    }
}

/// hyper-rustls passes errors of the inner connector on as they are and wraps those of the handshake in
/// `io::Error`; the inner connector keeps resolver and socket errors as the source of its own private type.
fn sort(error: BoxError) -> DialError {
    let error = match error.downcast::<io::Error>() {
        Ok(handshake) => {
            let notes = NOTES.try_with(Notes::clone).unwrap_or_default();
            return DialError::Tls(*handshake, notes);
        }
        Err(error) => error,
    };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(one) = next {
        match (
            one.downcast_ref::<ResolveError>(),
            one.downcast_ref::<io::Error>(),
        ) {
            (Some(ResolveError::Denied(denied)), _) => return DialError::Denied(denied.clone()),
            (Some(ResolveError::NoAddress), _) => return DialError::NoAddress,
            (Some(ResolveError::Lookup(cause)), _) => return DialError::Resolve(copy(cause)),
            (None, Some(cause)) => return DialError::Tcp(copy(cause)),
            (None, None) => next = one.source(),
        }
    }
    DialError::Other(error)
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}
