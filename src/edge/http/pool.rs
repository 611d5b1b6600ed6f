//! A pool of connections to one scheme, host and port.
//!
//! An HTTP/1.1 connection is driven by the request that uses it, on the same task, so only the task that waits for the
//! response is woken. An idle connection is not driven. That its peer has closed it is noticed on its next use (hyper
//! reads before it writes, and returns the unsent request) or by [`Pool::sweep`]. An HTTP/2 connection has its own task
//! and is shared by all requests.
//!
//! A request that finds no idle connection dials, and uses whichever comes first: its own connection, or one that
//! another request returns meanwhile. In the latter case its own is completed in the background and kept.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use http::{Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::client::legacy::connect::Connection as _;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;
use tower_service::Service;

use super::dial::{Dial, DialError, Stream};
use super::limits::{
    H2_CONNECTION_WINDOW, H2_PING_INTERVAL, H2_PING_TIMEOUT, H2_STREAM_WINDOW, MAX_HEADER_BYTES,
    MAX_HEADERS,
};

/// The request type of hyper.
pub(super) type Message = http::Request<Full<Bytes>>;
/// The result of sending a request. An error contains the request if none of it was sent.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Message>>;

/// Sweeps per idle timeout. A connection is closed at the first sweep after the timeout, so up to an eighth later; in
/// exchange, returning a connection reads no clock.
pub(super) const SWEEPS: u32 = 8;

/// Why no connection is available.
#[derive(Debug)]
pub(super) enum OpenError {
    Dial(DialError),
    Handshake(hyper::Error),
}

/// Opens connections, for all pools of a client.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) dial: Dial,
    pub(super) max_idle: usize,
}

impl Opener {
    async fn open(self: Arc<Self>, origin: Uri) -> Result<Line, OpenError> {
        let mut dial = self.dial.clone();
        poll_fn(|cx| dial.poll_ready(cx))
            .await
            .map_err(OpenError::Dial)?;
        let stream = dial.call(origin).await.map_err(OpenError::Dial)?;
        let opened = if stream.connected().is_negotiated_h2() {
            Self::http2(stream).await.map(Line::Shared)
        } else {
            Self::http1(stream).await.map(Line::Own)
        };
        opened.map_err(OpenError::Handshake)
    }

    async fn http1(stream: Stream) -> Result<Box<Http1>, hyper::Error> {
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(stream)
            .await?;
        Ok(Box::new(Http1 {
            sender,
            driver: Some(driver),
            since: 0,
        }))
    }

    async fn http2(stream: Stream) -> Result<Http2, hyper::Error> {
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .handshake(stream)
            .await?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                // Each of its open requests receives its own error.
                tracing::debug!("an http/2 connection ended: {error}");
            }
        });
        Ok(sender)
    }
}

type Http2 = http2::SendRequest<Full<Bytes>>;

/// An HTTP/1.1 connection. Dropping it closes it.
pub(super) struct Http1 {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` after the connection has ended.
    driver: Option<http1::Connection<Stream, Full<Bytes>>>,
    /// The sweep count when it was returned.
    since: u64,
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http1")
    }
}

impl Http1 {
    /// Sends one request and waits for the response headers. Dropping the future leaves the connection in the middle of
    /// an exchange: drop the connection too.
    pub(super) async fn exchange(&mut self, message: Message) -> Sent {
        let Self { sender, driver, .. } = self;
        let mut sent = pin!(sender.try_send_request(message));
        poll_fn(|cx| {
            drive(driver, cx);
            sent.as_mut().poll(cx)
        })
        .await
    }

    /// Drives the connection: call this before polling anything that waits for it.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.driver, cx);
    }

    /// Whether it can take another request, as far as this side knows.
    fn is_free(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }
}

fn drive<T: Future + Unpin>(driver: &mut Option<T>, cx: &mut Context<'_>) {
    // The request in flight receives the connection's error.
    if let Some(running) = driver
        && Pin::new(running).poll(cx).is_ready()
    {
        *driver = None;
    }
}

/// A connection to send a request on.
#[derive(Debug)]
pub(super) enum Line {
    Own(Box<Http1>),
    Shared(Http2),
}

/// The connections to one origin.
#[derive(Debug)]
pub(super) struct Pool {
    opener: Arc<Opener>,
    origin: Uri,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
#[allow(
    clippy::vec_box,
    reason = "a connection is large, and moves with each request"
)]
struct Kept {
    /// In order of last use; the most recent one is used next.
    idle: Vec<Box<Http1>>,
    /// With the sweep count of its last use.
    shared: Option<(Http2, u64)>,
    /// Requests that are still dialling.
    waiting: VecDeque<oneshot::Sender<Line>>,
    /// The number of sweeps so far.
    sweeps: u64,
}

impl Kept {
    fn line(&mut self) -> Option<Line> {
        if let Some((shared, used)) = &mut self.shared {
            if !shared.is_closed() {
                *used = self.sweeps;
                return Some(Line::Shared(shared.clone()));
            }
            self.shared = None;
        }
        self.idle.pop().map(Line::Own)
    }
}

impl Pool {
    /// Creates a pool for the scheme, host and port of `origin`.
    pub(super) fn new(opener: Arc<Opener>, origin: Uri) -> Self {
        Self {
            opener,
            origin,
            kept: Mutex::default(),
        }
    }

    /// Whether it belongs to the client of `opener`.
    pub(super) fn is_of(&self, opener: &Arc<Opener>) -> bool {
        Arc::ptr_eq(&self.opener, opener)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection, and whether it was used before: if it was, a request that it returns unsent is to be sent on
    /// another.
    pub(super) async fn line(self: &Arc<Self>) -> Result<(Line, bool), OpenError> {
        let kept = self.kept().line();
        match kept {
            Some(line) => Ok((line, true)),
            None => self.open().await,
        }
    }

    async fn open(self: &Arc<Self>) -> Result<(Line, bool), OpenError> {
        let mut dialled = Box::pin(Arc::clone(&self.opener).open(self.origin.clone()));
        let mut given = self.wait();
        tokio::select! {
            biased;
            // The sender is dropped only with the pool, which this request keeps alive.
            Ok(line) = &mut given => {
                if matches!(line, Line::Own(_)) {
                    let pool = Arc::clone(self);
                    tokio::spawn(async move {
                        if let Ok(line) = dialled.await {
                            drop(pool.accept(line));
                        }
                    });
                }
                Ok((line, true))
            }
            opened = &mut dialled => {
                given.close();
                if let Ok(Line::Own(other)) = given.try_recv() {
                    self.give_back(other);
                }
                match opened? {
                    Line::Own(own) => Ok((Line::Own(own), false)),
                    shared => Ok((self.share(shared), false)),
                }
            }
        }
    }

    fn wait(&self) -> oneshot::Receiver<Line> {
        let (give, given) = oneshot::channel();
        let mut kept = self.kept();
        // Remove requests that no longer wait, such as after their deadline.
        kept.waiting.retain(|one| !one.is_closed());
        kept.waiting.push_back(give);
        given
    }

    /// Keeps a connection that no request waits for any more.
    fn accept(&self, line: Line) -> Option<Line> {
        match line {
            Line::Own(own) => {
                self.give_back(own);
                None
            }
            shared => Some(self.share(shared)),
        }
    }

    /// Keeps a connection for all requests to share, unless there is one already.
    fn share(&self, line: Line) -> Line {
        let mut kept = self.kept();
        if let Some(line) = kept
            .shared
            .as_ref()
            .filter(|(shared, _)| !shared.is_closed())
            .map(|(shared, _)| Line::Shared(shared.clone()))
        {
            return line;
        }
        if let Line::Shared(shared) = &line {
            kept.shared = Some((shared.clone(), kept.sweeps));
            for waiting in kept.waiting.drain(..) {
                // Its deadline may have passed.
                waiting.send(Line::Shared(shared.clone())).ok();
            }
        }
        line
    }

    /// Returns a connection whose response was read to its end; closes it if it cannot take another request, or if
    /// enough are idle.
    pub(super) fn give_back(&self, mut own: Box<Http1>) {
        if !own.is_free() {
            own.drive(&mut Context::from_waker(Waker::noop()));
            if !own.is_free() {
                return;
            }
        }
        let mut kept = self.kept();
        while let Some(waiting) = kept.waiting.pop_front() {
            match waiting.send(Line::Own(own)) {
                Ok(()) => return,
                Err(Line::Own(back)) => own = back,
                Err(Line::Shared(_)) => return,
            }
        }
        if kept.idle.len() < self.opener.max_idle {
            own.since = kept.sweeps;
            kept.idle.push(own);
        }
    }

    /// Closes connections that were unused for more than [`SWEEPS`] sweeps or closed by their peers. Returns whether
    /// the pool is empty.
    pub(super) fn sweep(&self) -> bool {
        let mut kept = self.kept();
        kept.sweeps += 1;
        let stale = |since: u64, sweeps: u64| sweeps - since > u64::from(SWEEPS);
        let sweeps = kept.sweeps;
        let mut cx = Context::from_waker(Waker::noop());
        kept.idle.retain_mut(|own| {
            own.drive(&mut cx);
            own.is_free() && !stale(own.since, sweeps)
        });
        kept.shared
            .take_if(|(shared, used)| shared.is_closed() || stale(*used, sweeps));
        kept.waiting.retain(|one| !one.is_closed());
        kept.idle.is_empty() && kept.shared.is_none() && kept.waiting.is_empty()
    }
}
