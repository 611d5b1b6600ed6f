//! Opens connections: egress check, DNS lookup, TCP, TLS. Each step has its own error, so that failures are
//! distinguished by type and not by text.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use thiserror::Error;
use tokio::time::timeout;
use tower_service::Service;

use super::limits::{DIAL_LIMIT, TCP_LIMIT};
use super::proxy::{Proxy, ProxyError};
use super::received::{Counted, Received};
use super::trust::{Tls, alpn};
use super::verify::{NOTES, Notes};
use crate::config::ProxySettings;
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
    #[error(transparent)]
    Proxy(ProxyError),
    #[error("no connection within {DIAL_LIMIT:?}")]
    TimedOut,
    #[error("connect failed")]
    Other(#[source] BoxError),
}

/// A connection without HTTP.
pub(super) type Stream = MaybeHttpsStream<TokioIo<Counted>>;

/// The connector of the pools.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    policy: Arc<EgressPolicy>,
    tcp: HttpConnector<GuardedResolver>,
    /// The only way out, if there is one.
    proxy: Option<Proxy>,
    tls: Arc<ClientConfig>,
}

impl Dial {
    pub(super) fn new(
        policy: Arc<EgressPolicy>,
        lookups: Lookups,
        proxy: Option<Arc<ProxySettings>>,
        mut tls: ClientConfig,
    ) -> Self {
        let resolver = GuardedResolver::new(Arc::clone(&policy), lookups.clone());
        let proxy = proxy.map(|proxy| Proxy::new(proxy, lookups, resolver.clone()));
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP_LIMIT));
        tls.alpn_protocols = alpn();
        Self {
            policy,
            tcp,
            proxy,
            tls: Arc::new(tls),
        }
    }

    /// Connects to the host of `uri`, with `tls` in place of the default. What arrives is counted in `received`.
    pub(super) async fn dial(
        &self,
        uri: Uri,
        tls: Option<&Tls>,
        received: Received,
    ) -> Result<Stream, DialError> {
        self.policy.check_target(&uri).map_err(DialError::Denied)?;
        let tcp = CountedConnector {
            tcp: self.tcp.clone(),
            proxy: self.proxy.clone(),
            received,
        };
        // Takes http too: the policy decides about it, so that its message reaches the operator.
        let config = tls.map_or(&self.tls, |tls| &tls.config);
        let mut https = HttpsConnector::from((tcp, Arc::clone(config)));
        let dialling = async {
            poll_fn(|cx| https.poll_ready(cx)).await?;
            https.call(uri).await
        };
        let dialled = async {
            match timeout(DIAL_LIMIT, dialling).await {
                Ok(dialled) => dialled.map_err(sort),
                Err(_) => Err(DialError::TimedOut),
            }
        };
        NOTES.scope(Notes::default(), dialled).await
    }
}

/// Opens one TCP connection that counts its reads.
#[derive(Clone)]
struct CountedConnector {
    tcp: HttpConnector<GuardedResolver>,
    proxy: Option<Proxy>,
    received: Received,
}

impl Service<Uri> for CountedConnector {
    type Response = TokioIo<Counted>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let received = self.received.clone();
        if let Some(proxy) = self.proxy.clone() {
            return Box::pin(async move {
                let tunnel = proxy.tunnel(&uri).await?;
                Ok(TokioIo::new(Counted::new(tunnel, received)))
            });
        }
        let connecting = self.tcp.call(uri);
        Box::pin(async move {
            let tcp = connecting.await?.into_inner();
            Ok(TokioIo::new(Counted::new(tcp, received)))
        })
    }
}

/// hyper-rustls passes errors of the inner connector on as they are and wraps those of the handshake in
/// `io::Error`; the inner connector keeps resolver and socket errors as the source of its own private type.
fn sort(error: BoxError) -> DialError {
    let error = match error.downcast::<ProxyError>() {
        Ok(error) => return DialError::Proxy(*error),
        Err(error) => error,
    };
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
