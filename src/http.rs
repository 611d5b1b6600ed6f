//! Sends one POST and says what came of it.
//!
//! A thin layer over hyper-util's pooled client: HTTP/1.1, and HTTP/2 where the server chooses it by ALPN.
//! What it adds: connections only where [`EgressPolicy`] allows, one deadline over connect, headers and body,
//! a named limit on all that a receiver can make us hold, and failures sorted into the classes of the metrics.
//!
//! What it never does: follow a redirect (it is an answer like any other), decompress, keep cookies, heed
//! `Alt-Svc`, send `Expect`, read proxy variables from the environment, or send a request twice. The pool
//! does take another connection when the one it picked turned out to be closed, but only while the request
//! is still whole in its queue: hyper hands it back (`TrySendError::take_message`, `hyper::proto::h1::dispatch`
//! "the message was never even started") and hyper-util retries those alone (`Builder::retry_canceled_requests`).
//!
//! # Limits
//! | what | limit | past it |
//! |---|---|---|
//! | look-up, TCP and TLS of one connection | [`DIAL_LIMIT`], TCP alone [`TCP_LIMIT`] | class connect; bounds also dials that no request waits for any more |
//! | response headers | [`MAX_HEADER_BYTES`], on HTTP/1.1 also [`MAX_HEADERS`] | class other, connection closed |
//! | response body | [`MAX_BODY_BYTES`] | [`Drained::TooLong`], connection closed (HTTP/2: stream reset) |
//! | idle connections | [`HttpOptions::pool_idle_timeout`], [`HttpOptions::max_idle_per_host`] | closed |
//! | HTTP/2 connection that answers nothing | [`H2_PING_INTERVAL`] + [`H2_PING_TIMEOUT`] | closed |

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Uri};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

pub use self::failure::{Failure, FailureClass};
pub use self::trust::HttpSetupError;
use crate::clock;
use crate::egress::EgressPolicy;
use crate::units::EpochMs;

mod dial;
mod failure;
mod trust;

/// For one connection: look-up, TCP and TLS together.
pub const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// For the TCP part, shared evenly among the addresses of a name, so that a dead one leaves time for the next.
pub const TCP_LIMIT: Duration = Duration::from_secs(10);
/// Of a response, bytes: status line and headers.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Of an HTTP/1.1 response.
pub const MAX_HEADERS: usize = 100;
/// Of a response body, bytes. Longer ones are not read on.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// While requests are open on an HTTP/2 connection, it is pinged this often: nothing else would notice that
/// its peer is gone, and the pool would hand it out for ever.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(15);
/// For the answer to a ping.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// What one response, and all of one connection, may have in flight towards us, bytes.
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How to build a client.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Where it may connect to.
    pub policy: Arc<EgressPolicy>,
    /// Certificate authorities trusted besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Sent when a request has no `user-agent` of its own.
    pub user_agent: String,
    /// An idle connection is closed after this time.
    pub pool_idle_timeout: Duration,
    /// Idle connections kept per scheme, host and port.
    pub max_idle_per_host: usize,
}

impl HttpOptions {
    /// System roots, `hookstream/<version>`, 60 s, 32 connections.
    #[must_use]
    pub fn new(policy: Arc<EgressPolicy>) -> Self {
        Self {
            policy,
            ca_file: None,
            user_agent: concat!("hookstream/", env!("CARGO_PKG_VERSION")).to_owned(),
            pool_idle_timeout: Duration::from_secs(60),
            max_idle_per_host: 32,
        }
    }
}

/// A POST. The client adds `host`, `content-length`, and `user-agent` where it is missing; nothing else.
///
/// A [`HeaderMap`] cannot hold a line end, so no header can be injected through a value.
#[derive(Clone, Debug)]
pub struct Request {
    /// Absolute: scheme, host, path.
    pub uri: Uri,
    /// As they shall be sent.
    pub headers: HeaderMap,
    /// As it shall be sent.
    pub body: Bytes,
}

/// What came of a POST.
#[derive(Debug)]
pub enum Reply {
    /// There are complete response headers, whatever the status.
    Answered(Answer),
    /// There are none.
    Failed(Failure),
}

/// Complete response headers.
#[derive(Debug)]
pub struct Answer {
    /// 100 to 999; informational ones (1xx) are skipped.
    pub status: u16,
    /// When the receiver wants to hear from us again.
    pub retry_after: Option<RetryAfter>,
    /// The body, still unread; nothing when it is empty. Dropping it unread closes the connection.
    pub rest: Option<Rest>,
}

/// `Retry-After`, RFC 9110 section 10.2.3. Unreadable values count as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// Seconds from now; `u64::MAX` for numbers beyond it.
    Seconds(u64),
    /// At this time.
    At(EpochMs),
}

/// How reading a body ended. Only after [`Drained::Complete`] is the connection used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// At its end.
    Complete,
    /// Past [`MAX_BODY_BYTES`].
    TooLong,
    /// The connection broke, or the framing was wrong.
    Failed,
    /// At the deadline.
    Timeout,
}

/// Sends requests over pooled connections. Clones share the pool.
///
/// Build one per runtime: a connection is driven by the runtime that opened it.
#[derive(Clone, Debug)]
pub struct HttpClient {
    inner: Client<dial::Dial, Full<Bytes>>,
    user_agent: HeaderValue,
}

impl HttpClient {
    /// Loads the trusted certificate authorities; opens nothing yet.
    ///
    /// # Errors
    /// `ca_file` cannot be read or holds no certificate; no authority at all is known while only `https` is
    /// allowed; `user_agent` is no header value.
    pub fn new(options: HttpOptions) -> Result<Self, HttpSetupError> {
        let user_agent =
            HeaderValue::try_from(options.user_agent).map_err(|_| HttpSetupError::UserAgent)?;
        let tls = trust::client_config(options.ca_file.as_deref(), options.policy.allows_http())?;
        let inner = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.pool_idle_timeout)
            .pool_max_idle_per_host(options.max_idle_per_host)
            .http1_max_buf_size(MAX_HEADER_BYTES)
            .http1_max_headers(MAX_HEADERS)
            .http2_max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
            .http2_initial_stream_window_size(H2_STREAM_WINDOW)
            .http2_initial_connection_window_size(H2_CONNECTION_WINDOW)
            .http2_keep_alive_interval(H2_PING_INTERVAL)
            .http2_keep_alive_timeout(H2_PING_TIMEOUT)
            .build(dial::Dial::new(options.policy, tls));
        Ok(Self { inner, user_agent })
    }

    /// Sends the request, once, and waits for complete response headers until `deadline` at most.
    ///
    /// Dropping the future, as the deadline does, closes the connection that it used (HTTP/2: resets the
    /// stream), so nothing is left behind; the receiver may still have got the request.
    pub async fn post(&self, request: Request, deadline: Instant) -> Reply {
        let started = clock::instant();
        let sent = self.inner.request(self.prepare(request));
        match timeout_at(deadline, sent).await {
            Ok(Ok(response)) => Reply::Answered(Answer::of(response)),
            Ok(Err(error)) => Reply::Failed(Failure::of(&error)),
            Err(_) => Reply::Failed(Failure::timeout(
                deadline.into_std().saturating_duration_since(started),
            )),
        }
    }

    fn prepare(&self, request: Request) -> http::Request<Full<Bytes>> {
        let mut prepared = http::Request::new(Full::new(request.body));
        *prepared.method_mut() = Method::POST;
        *prepared.uri_mut() = request.uri;
        *prepared.headers_mut() = request.headers;
        prepared
            .headers_mut()
            .entry(USER_AGENT)
            .or_insert_with(|| self.user_agent.clone());
        prepared
    }
}

impl Answer {
    fn of(response: http::Response<Incoming>) -> Self {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(RetryAfter::read);
        let body = response.into_body();
        let rest = (!body.is_end_stream()).then_some(Rest { body });
        Self {
            status,
            retry_after,
            rest,
        }
    }
}

impl RetryAfter {
    fn read(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Self::Seconds(text.parse().unwrap_or(u64::MAX)));
        }
        let time = httpdate::parse_http_date(text)
            .ok()?
            .duration_since(UNIX_EPOCH)
            .ok()?;
        Some(Self::At(EpochMs(i64::try_from(time.as_millis()).ok()?)))
    }
}

/// The unread body of an answer.
#[derive(Debug)]
pub struct Rest {
    body: Incoming,
}

impl Rest {
    /// Reads the body and forgets it, so that the connection can be used again. Give it the deadline of the
    /// [`post`](HttpClient::post): there is one for a whole attempt.
    pub async fn drain(self, deadline: Instant) -> Drained {
        if self.body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Drained::TooLong;
        }
        self.read(deadline, |_| ()).await
    }

    /// The same, keeping up to [`MAX_BODY_BYTES`] for a log or record; what came before an error is kept too.
    pub async fn read_snippet(self, deadline: Instant) -> (Vec<u8>, Drained) {
        let mut snippet = Vec::new();
        let drained = self
            .read(deadline, |data| {
                let room = MAX_BODY_BYTES - snippet.len();
                snippet.extend_from_slice(&data[..data.len().min(room)]);
            })
            .await;
        (snippet, drained)
    }

    async fn read(mut self, deadline: Instant, mut keep: impl FnMut(&[u8])) -> Drained {
        let mut total = 0;
        let whole = async {
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                let Ok(frame) = frame else {
                    return Drained::Failed;
                };
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                keep(data);
                total += data.len();
                if total > MAX_BODY_BYTES {
                    return Drained::TooLong;
                }
            }
            Drained::Complete
        };
        timeout_at(deadline, whole)
            .await
            .unwrap_or(Drained::Timeout)
    }
}

#[cfg(test)]
mod tests;
