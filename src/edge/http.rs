//! Sends one request and returns its result.
//!
//! A thin layer over hyper's connections: HTTP/1.1, and HTTP/2 where the server selects it by ALPN. The connection pool
//! is described in `pool`. This module adds connections only where [`EgressPolicy`] allows them, one deadline over
//! connect, headers and body, a named limit on everything that a receiver can make the process hold, and a metric class
//! for each failure.
//!
//! It never follows a redirect (which is a response like any other), decompresses, keeps cookies, uses `Alt-Svc`, sends
//! `Expect`, or reads proxy environment variables. It sends a request again only if the first one certainly was not
//! processed:
//! - A connection turns out to be closed, and the request is still complete in its queue: only then does hyper return it
//!   (`TrySendError::take_message`, `hyper::proto::h1::dispatch` "the message was never even started").
//! - An HTTP/2 server refuses it ([`HttpClient::post_until_processed`]): REFUSED_STREAM, or a GOAWAY that names an
//!   earlier stream as the last one (RFC 9113, sections 6.8 and 8.7).
//!
//! A response is judged by its status: where the rest cannot be read, the connection is closed, nothing more (`head`).
//! Malformed header lines are ignored, folded ones are joined (RFC 9112, section 5.2). Only a response that is malformed in
//! HTTP/2 is none, as RFC 9113 (section 8.1.1) demands.
//!
//! # Limits
//! | what | limit | beyond it |
//! |---|---|---|
//! | lookup, TCP and TLS of one connection | [`DIAL_LIMIT`], TCP alone [`TCP_LIMIT`] | class connect; also bounds dials that no request waits for any more |
//! | response headers, HTTP/1.1 | [`MAX_HEADER_BYTES`], [`MAX_HEADERS`] | the status counts, connection closed |
//! | interim responses (1xx), HTTP/1.1 | 20, or 256 KiB | class other, connection closed |
//! | response headers, HTTP/2 | [`H2_MAX_HEADER_BYTES`] | class other, stream reset; beyond four times that, the subscriber's connection is closed |
//! | response body | [`MAX_BODY_BYTES`] | [`Drained::TooLong`], connection closed (HTTP/2: stream reset) |
//! | idle connections | [`HttpOptions::pool_idle_timeout`], [`HttpOptions::max_idle`] | closed, those first that were idle for longest |
//! | idle HTTP/1.1 connections | also the server's `Keep-Alive` hint less a second; without one, [`HttpOptions::unhinted_idle`] (up to an eighth more) | closed |
//! | requests on one HTTP/2 connection | what its server accepts, [`MAX_STREAMS`]; those of one subscriber | another connection |
//! | unresponsive HTTP/2 connection | [`H2_PING_INTERVAL`] + [`H2_PING_TIMEOUT`] | closed |

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri};
use http_body_util::Full;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

pub use self::clock_samples::ClockSamples;
pub(crate) use self::failure::tls_reason;
pub use self::failure::{Failure, FailureClass, with_causes};
pub use self::head::read_head;
pub use self::limits::{
    DIAL_LIMIT, H2_MAX_HEADER_BYTES, H2_PING_INTERVAL, H2_PING_TIMEOUT, MAX_BODY_BYTES,
    MAX_HEADER_BYTES, MAX_HEADERS, MAX_STREAMS, TCP_LIMIT, UNHINTED_IDLE, max_idle,
};
use self::line::{Evict, Message, Opener};
use self::pool::{Line, Pool};
use self::received::Heard;
use self::response::OnLoan;
pub use self::response::{Answer, Drained, Rest};
use self::reuse::Idle;
use self::trust::Digest;
pub(crate) use self::trust::client_config as trusted;
pub use self::trust::{HttpSetupError, Tls, TlsMaker};
use crate::config::ProxySettings;
use crate::edge::clock;
use crate::edge::egress::EgressPolicy;
use crate::edge::egress::lookups::Lookups;
use crate::edge::failpoint;
use crate::model::backoff::resend_delay;

mod clock_samples;
mod dial;
mod failure;
mod head;
mod limits;
mod line;
mod pool;
mod proxy;
mod received;
mod response;
mod reuse;
mod tls_error;
mod trust;
mod verify;

/// The options of a client.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// The egress policy.
    pub policy: Arc<EgressPolicy>,
    /// A PEM file of certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Name lookups, to be shared by all clients of a process.
    pub lookups: Lookups,
    /// The proxy that all connections go through, if there is one.
    pub proxy: Option<Arc<ProxySettings>>,
    /// Sent if a request has no `user-agent`.
    pub user_agent: String,
    /// How long an idle connection is kept at most.
    pub pool_idle_timeout: Duration,
    /// How long an idle HTTP/1.1 connection is kept whose server does not say how long it keeps it: less than what servers
    /// do by default. A request on a connection that the server is closing fails, and may have been processed.
    pub unhinted_idle: Duration,
    /// Idle connections of all hosts. A host keeps those that it needed within `pool_idle_timeout`, so this limit only
    /// protects the process's file descriptors.
    pub max_idle: usize,
    /// Samples of the endpoints' clocks, to be shared by all clients of a process.
    pub clocks: ClockSamples,
}

impl HttpOptions {
    /// The defaults: system roots, `hookstream/<version>`, 60 s, [`UNHINTED_IDLE`], 1,024 connections.
    #[must_use]
    pub fn new(policy: Arc<EgressPolicy>) -> Self {
        Self {
            policy,
            ca_file: None,
            lookups: Lookups::default(),
            proxy: None,
            user_agent: concat!("hookstream/", env!("CARGO_PKG_VERSION")).to_owned(),
            pool_idle_timeout: Duration::from_secs(60),
            unhinted_idle: UNHINTED_IDLE,
            max_idle: 1024,
            clocks: ClockSamples::default(),
        }
    }
}

/// A destination, prepared once for many requests. It remembers the connection pool of the first client that uses it.
#[derive(Debug)]
pub struct Address {
    uri: Uri,
    /// The target as sent by HTTP/1.1: only path and query.
    target: Uri,
    host: HeaderValue,
    /// Whose requests share HTTP/2 connections.
    tenant: Arc<str>,
    /// What its connections are made with, if not with the default.
    tls: Option<Arc<Tls>>,
    pool: OnceLock<Arc<Pool>>,
}

/// The URI has no scheme or no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a request can only go to an absolute URL with a host")]
pub struct InvalidAddress;

impl Address {
    /// Prepares the destination `uri`.
    ///
    /// # Errors
    /// When `uri` has no scheme or no host.
    pub fn new(uri: Uri) -> Result<Self, InvalidAddress> {
        if uri.scheme().is_none() {
            return Err(InvalidAddress);
        }
        let host = host(&uri).ok_or(InvalidAddress)?;
        let path = uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self {
            target: path.into(),
            uri,
            host,
            tenant: Arc::from(""),
            tls: None,
            pool: OnceLock::new(),
        })
    }

    /// The destination of a subscriber: its requests share HTTP/2 connections with no other one.
    #[must_use]
    pub fn for_subscriber(self, subscriber: &str) -> Self {
        Self {
            tenant: subscriber.into(),
            ..self
        }
    }

    /// The same, with authorities and a certificate of its own.
    #[must_use]
    pub fn with_tls(self, tls: Arc<Tls>) -> Self {
        Self {
            tls: Some(tls),
            ..self
        }
    }

    /// Where it is.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The value of the `host` header, for callers that prepare headers once for many requests.
    #[must_use]
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }
}

/// The `host` header: includes the port unless it is the scheme's default.
fn host(uri: &Uri) -> Option<HeaderValue> {
    let name = uri.host().filter(|name| !name.is_empty())?;
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) {
        443
    } else {
        80
    };
    match uri.port_u16().filter(|&port| port != usual) {
        Some(port) => HeaderValue::try_from(format!("{name}:{port}")).ok(),
        None => HeaderValue::from_str(name).ok(),
    }
}

/// A POST, unless it is sent as another one. The client adds `host`, `content-length`, and `user-agent` where it is missing; nothing else.
///
/// A [`HeaderMap`] cannot hold a line end, so no header can be injected through a value.
#[derive(Clone, Debug)]
pub struct Request {
    /// The destination.
    pub to: Arc<Address>,
    /// The headers to send.
    pub headers: HeaderMap,
    /// The body to send.
    pub body: Bytes,
}

/// The result of a POST.
#[derive(Debug)]
pub enum Reply<R = Rest> {
    /// A status was received, any.
    Answered(Answer<R>),
    /// No response was received.
    Failed(Failure),
}

/// Sends requests over pooled connections. Clones share the pools.
///
/// Build one per runtime: a connection is driven by the runtime that opened it.
#[derive(Clone, Debug)]
pub struct HttpClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    opener: Arc<Opener>,
    user_agent: HeaderValue,
    pools: Mutex<Pools>,
    clocks: ClockSamples,
}

/// What the connections of a pool have in common; the digest is that of their [`Tls`].
type Key = (Scheme, Authority, Option<Digest>);

#[derive(Debug, Default)]
struct Pools {
    all: HashMap<Key, Arc<Pool>>,
    /// Whether a task sweeps the pools.
    swept: bool,
}

impl HttpClient {
    /// Loads the trusted certificate authorities; opens no connection yet.
    ///
    /// # Errors
    /// `ca_file` cannot be read or holds no certificate; no authority at all is known while only `https` is allowed;
    /// `user_agent` is not a valid header value.
    pub fn new(options: HttpOptions) -> Result<Self, HttpSetupError> {
        let user_agent =
            HeaderValue::try_from(options.user_agent).map_err(|_| HttpSetupError::UserAgent)?;
        let tls = trust::client_config(options.ca_file.as_deref(), options.policy.allows_http())?;
        let dial = dial::Dial::new(options.policy, options.lookups, options.proxy, tls);
        let idle = Idle::new(options.pool_idle_timeout, options.unhinted_idle);
        Ok(Self(Arc::new_cyclic(|client: &Weak<Shared>| Shared {
            opener: Arc::new(Opener {
                dial,
                keep: idle,
                client: Weak::<Shared>::clone(client),
                max_idle: options.max_idle,
                idle: AtomicUsize::new(0),
                stamps: AtomicU64::new(0),
            }),
            user_agent,
            pools: Mutex::default(),
            clocks: options.clocks,
        })))
    }

    /// Sends the request once, and waits for the response headers until `deadline` at most.
    ///
    /// Dropping the future, as the deadline does, closes its connection (HTTP/2: resets the stream), so nothing is left
    /// behind. The receiver may still have received the request.
    pub async fn post(&self, request: Request, deadline: Instant) -> Reply {
        self.request(Method::POST, request, deadline, false).await
    }

    /// The same with any method. The answer has its headers.
    pub async fn exchange(&self, method: Method, request: Request, deadline: Instant) -> Reply {
        self.request(method, request, deadline, true).await
    }

    async fn request(
        &self,
        method: Method,
        request: Request,
        deadline: Instant,
        keeps_headers: bool,
    ) -> Reply {
        let started = clock::instant();
        failpoint::point("request.before");
        let heard = Heard::default();
        let clocks = &self.0.clocks;
        let host = request.to.uri().host().unwrap_or_default();
        let sampled = clocks
            .is_due(host, started)
            .then(|| Arc::clone(&request.to));
        let headers = keeps_headers || sampled.is_some();
        // Boxed: the futures around it, and the task, would each be moved with all its bytes.
        let sent = Box::pin(self.send(method, request, &heard, headers));
        let mut failure = match timeout_at(deadline, sent).await {
            Ok(Ok(mut answer)) => {
                failpoint::point("response-head.after");
                if let (Some(to), Some(headers)) = (sampled, &answer.headers) {
                    clocks.take(to.uri().host().unwrap_or_default(), headers, started);
                }
                if !keeps_headers {
                    answer.headers = None;
                }
                return Reply::Answered(answer);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::timeout(deadline.into_std().saturating_duration_since(started)),
        };
        failure.heard |= heard.get();
        Reply::Failed(failure)
    }

    /// Does the same, but sends the request that `build` returns again while the server refuses it before it processes
    /// it: at once, on another connection if the first was retired, then after [`resend_delay`]s. `deadline` includes
    /// all.
    pub async fn post_until_processed(
        &self,
        build: impl Fn() -> Request,
        deadline: Instant,
    ) -> Reply {
        let (mut refusals, mut heard) = (0, false);
        loop {
            let mut reply = self.post(build(), deadline).await;
            match &mut reply {
                // A refusal is a sign of the endpoint too, unless it is a proxy's.
                Reply::Failed(failure) if failure.is_unprocessed => heard |= failure.heard,
                Reply::Failed(failure) => {
                    failure.heard |= heard;
                    return reply;
                }
                Reply::Answered(_) => return reply,
            }
            refusals += 1;
            let Some(delay) = resend_delay(refusals, fastrand::f64()) else {
                return reply;
            };
            if Instant::from_std(clock::instant()) + delay >= deadline {
                return reply;
            }
            tokio::time::sleep(delay).await;
        }
    }

    async fn send(
        &self,
        method: Method,
        request: Request,
        heard: &Heard,
        keeps_headers: bool,
    ) -> Result<Answer, Failure> {
        let to = Arc::clone(&request.to);
        let pool = self.pool(&to);
        let mut message = self.prepare(method, request);
        let mut is_first = true;
        loop {
            let (line, used) = pool
                .line(&to.tenant, heard)
                .await
                .map_err(|error| Failure::of_open(&error))?;
            let (sent, on) = match line {
                Line::Own(mut own) => {
                    *message.uri_mut() = to.target.clone();
                    let headers = message.headers_mut();
                    headers.entry(HOST).or_insert_with(|| to.host.clone());
                    let sent = own.exchange(message, heard).await;
                    let pool = Arc::clone(&pool);
                    (sent, OnLoan::Own { own, pool })
                }
                Line::Shared(slot) => {
                    *message.uri_mut() = to.uri.clone();
                    // HTTP/2 carries the host in the URI.
                    message.headers_mut().remove(HOST);
                    (slot.exchange(message, heard).await, OnLoan::Shared(slot))
                }
            };
            match sent {
                Ok(response) => return Ok(Answer::of(response, on, keeps_headers)),
                Err(mut error) => match error.take_message() {
                    // Nothing of it was sent. A server that closes new connections too fails the second one.
                    Some(unsent) if used || is_first => {
                        // An end that arrived while the connection was idle.
                        heard.reset();
                        is_first &= used;
                        message = unsent;
                    }
                    Some(_) => return Err(Failure::of_exchange(&error.into_error())),
                    // Boxed: it is rare, and each request would have room for it.
                    None => return Box::pin(on.cut_off(&error.into_error(), heard)).await,
                },
            }
        }
    }

    fn prepare(&self, method: Method, request: Request) -> Message {
        let length = HeaderValue::from(request.body.len());
        let mut prepared = http::Request::new(Full::new(request.body));
        *prepared.method_mut() = method;
        *prepared.headers_mut() = request.headers;
        prepared.headers_mut().insert(CONTENT_LENGTH, length);
        prepared
            .headers_mut()
            .entry(USER_AGENT)
            .or_insert_with(|| self.0.user_agent.clone());
        prepared
    }

    /// The connection pool of an address: looked up once for all requests to it.
    fn pool(&self, to: &Address) -> Arc<Pool> {
        match to.pool.get() {
            Some(known) if known.is_of(&self.0.opener) => Arc::clone(known),
            known => {
                let pool = self.find_pool(&to.uri, to.tls.as_ref());
                if known.is_none() {
                    // A concurrent request to the same address may have set it already, to the same pool.
                    to.pool.set(Arc::clone(&pool)).ok();
                }
                pool
            }
        }
    }

    fn find_pool(&self, uri: &Uri, tls: Option<&Arc<Tls>>) -> Arc<Pool> {
        let parts = uri.clone().into_parts();
        // An address always has both.
        let scheme = parts.scheme.unwrap_or(Scheme::HTTPS);
        let authority = parts
            .authority
            .unwrap_or_else(|| Authority::from_static("invalid"));
        let mut pools = self.0.pools();
        if !pools.swept {
            pools.swept = true;
            tokio::spawn(sweep(Arc::downgrade(&self.0), self.0.opener.keep.every));
        }
        let key = (scheme, authority, tls.map(|tls| tls.digest));
        let pool = pools
            .all
            .entry(key)
            .or_insert_with_key(|(scheme, authority, _)| {
                let mut origin = http::uri::Parts::default();
                origin.scheme = Some(scheme.clone());
                origin.authority = Some(authority.clone());
                origin.path_and_query = Some(PathAndQuery::from_static("/"));
                let origin = Uri::from_parts(origin).unwrap_or_else(|_| uri.clone());
                Arc::new(Pool::new(Arc::clone(&self.0.opener), origin, tls.cloned()))
            });
        Arc::clone(pool)
    }
}

impl Shared {
    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self) {
        let mut idle = 0;
        self.pools().all.retain(|_, pool| match pool.sweep() {
            Some(kept) => {
                idle += kept;
                true
            }
            None => Arc::strong_count(pool) > 1,
        });
        self.opener.idle.store(idle, Ordering::Relaxed);
    }
}

impl Evict for Shared {
    /// Closes the connections of any pool that were idle for longest: those above the limit, and an eighth of the limit
    /// more, so that this happens once for many connections.
    fn evict(&self) {
        let pools = self.pools();
        let mut stamps = Vec::new();
        pools.all.values().for_each(|pool| pool.stamps(&mut stamps));
        let (idle, most) = (stamps.len(), self.opener.max_idle);
        let surplus = idle.saturating_sub(most);
        let close = if surplus == 0 { 0 } else { surplus + most / 8 }.min(idle);
        if close > 0 {
            let (_, &mut last, _) = stamps.select_nth_unstable(close - 1);
            pools.all.values().for_each(|pool| pool.close_until(last));
        }
        self.opener.idle.store(idle - close, Ordering::Relaxed);
    }
}

/// Closes connections that were idle for too long, as long as a client exists. Removes a pool that is empty and
/// unreferenced, because endpoints come and go.
async fn sweep(client: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(client) = client.upgrade() else {
            return;
        };
        client.sweep();
    }
}

#[cfg(test)]
mod tests;
