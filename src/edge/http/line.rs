//! Opens connections, and exchanges requests on one that no other request uses.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Context;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor;
use hyper_util::client::legacy::connect::Connection as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::dial::{Dial, DialError, Stream};
use super::head::{CutOff, Marks, Tap};
use super::limits::{
    H2_CONNECTION_WINDOW, H2_MAX_HEADER_BYTES, H2_PING_INTERVAL, H2_PING_TIMEOUT, H2_STREAM_WINDOW,
    MAX_HEADER_BYTES,
};
use super::received::{Heard, Received, listen};
use super::reuse::{self, Idle, Reuse};
use super::trust::Tls;

/// The request type of hyper.
pub(super) type Message = http::Request<Full<Bytes>>;
/// The result of sending a request. An error contains the request if none of it was sent.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Message>>;

/// Streams that an HTTP/2 connection may carry before its server has said how many it accepts.
pub(super) const STREAMS_BEFORE_SETTINGS: usize = 1;

/// Why no connection is available.
#[derive(Debug)]
pub(super) enum OpenError {
    Dial(DialError),
    Handshake(hyper::Error),
}

/// Closes idle connections of any pool if there are too many.
pub(super) trait Evict: fmt::Debug + Send + Sync {
    /// Closes those that were idle for longest.
    fn evict(&self);
}

/// What all pools of a client share: the way to open connections, and the number of idle ones.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) dial: Dial,
    /// The owner of the pools.
    pub(super) client: Weak<dyn Evict>,
    /// How long idle connections are kept.
    pub(super) keep: Idle,
    /// The maximum number of idle connections of all pools.
    pub(super) max_idle: usize,
    /// Idle connections of all pools.
    pub(super) idle: AtomicUsize,
    /// The number of times that a connection became idle.
    pub(super) stamps: AtomicU64,
}

/// An HTTP/2 connection that nothing drives yet.
pub(super) struct Undriven {
    pub(super) sender: http2::SendRequest<Full<Bytes>>,
    pub(super) driver: http2::Connection<Stream, Full<Bytes>, Settings>,
    pub(super) settings: Settings,
    pub(super) received: Received,
}

/// Runs the tasks of an HTTP/2 connection. One of them receives the server's settings, and tells only the other ones'
/// common state: as long as these settings are missing, each step of a task is reported to whoever waits for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings(Arc<Arrival>);

#[derive(Debug, Default)]
struct Arrival {
    known: AtomicBool,
    step: Notify,
}

impl Settings {
    /// Waits for the next step of any task.
    pub(super) async fn step(&self) {
        self.0.step.notified().await;
    }

    /// Nobody waits for them any more.
    pub(super) fn are_known(&self) {
        self.0.known.store(true, Ordering::Relaxed);
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Settings {
    fn execute(&self, task: F) {
        if self.0.known.load(Ordering::Relaxed) {
            tokio::spawn(task);
            return;
        }
        let arrival = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                let polled = task.as_mut().poll(cx);
                if !arrival.known.load(Ordering::Relaxed) {
                    arrival.step.notify_one();
                }
                polled
            })
            .await;
        });
    }
}

/// A connection that was just opened.
pub(super) enum Opened {
    Http1(Box<Http1>),
    Http2(Box<Undriven>),
}

impl Opener {
    pub(super) async fn open(
        self: Arc<Self>,
        origin: Uri,
        tls: Option<Arc<Tls>>,
        received: Received,
    ) -> Result<Opened, OpenError> {
        let stream = self
            .dial
            .dial(origin, tls.as_deref(), received.clone())
            .await;
        let stream = stream.map_err(OpenError::Dial)?;
        let opened = if stream.connected().is_negotiated_h2() {
            let undriven = http2(stream, received).await;
            undriven.map(Box::new).map(Opened::Http2)
        } else {
            http1(stream, received).await.map(Opened::Http1)
        };
        opened.map_err(OpenError::Handshake)
    }

    /// Counts a connection that has become idle; returns the order in which it did.
    pub(super) fn idle_one(&self) -> u64 {
        self.idle.fetch_add(1, Ordering::Relaxed);
        self.stamps.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts `count` connections that are no longer idle.
    pub(super) fn not_idle(&self, count: usize) {
        self.idle.fetch_sub(count, Ordering::Relaxed);
    }

    /// Closes the connections that were idle for longest, if there are too many.
    pub(super) fn trim(&self) {
        if self.idle.load(Ordering::Relaxed) > self.max_idle
            && let Some(client) = self.client.upgrade()
        {
            client.evict();
        }
    }
}

async fn http1(stream: Stream, received: Received) -> Result<Box<Http1>, hyper::Error> {
    let marks = Arc::new(Marks::default());
    let stream = Tap::new(TokioIo::new(stream), Arc::clone(&marks));
    let (sender, driver) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        // Header lines are no reason to send a webhook again.
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await?;
    Ok(Box::new(Http1 {
        sender,
        driver,
        has_ended: false,
        received,
        marks,
        reuse: Reuse::default(),
        since: 0,
        stamp: 0,
    }))
}

async fn http2(stream: Stream, received: Received) -> Result<Undriven, hyper::Error> {
    let settings = Settings::default();
    let (sender, driver) = http2::Builder::new(settings.clone())
        .timer(TokioTimer::new())
        .max_header_list_size(H2_MAX_HEADER_BYTES)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .handshake(stream)
        .await?;
    Ok(Undriven {
        sender,
        driver,
        settings,
        received,
    })
}

/// What hyper reads from and writes to.
type Io = TokioIo<Tap<TokioIo<Stream>>>;

/// An HTTP/1.1 connection. Dropping it closes it.
pub(super) struct Http1 {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: http1::Connection<Io, Full<Bytes>>,
    /// Whether `driver` has ended, and must not be polled again.
    has_ended: bool,
    received: Received,
    /// Shared with the tap on the connection.
    marks: Arc<Marks>,
    /// What the server says about using it again.
    reuse: Reuse,
    /// The sweep count when it was returned.
    pub(super) since: u64,
    /// The order in which it was returned.
    pub(super) stamp: u64,
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http1")
    }
}

impl Http1 {
    /// Sends one request and waits for the response headers. Dropping the future leaves the connection in the middle of
    /// an exchange: drop the connection too. `heard` notes whether anything arrives.
    pub(super) async fn exchange(&mut self, message: Message, heard: &Heard) -> Sent {
        self.marks.begin();
        let Self {
            sender,
            driver,
            has_ended,
            received,
            ..
        } = self;
        let mut sent = pin!(sender.try_send_request(message));
        let driven = poll_fn(|cx| {
            drive(driver, has_ended, cx);
            sent.as_mut().poll(cx)
        });
        listen(driven, received, heard).await
    }

    /// What has arrived of the response whose [`exchange`](Self::exchange) has failed after the request was, at least in
    /// part, sent.
    /// If its status has not, returns the error that ended reading, if there was one. `heard` notes whether more arrives.
    pub(super) async fn cut_off(
        self: Box<Self>,
        heard: &Heard,
    ) -> Result<CutOff, Option<io::Error>> {
        let Self {
            driver, received, ..
        } = *self;
        let tap = driver.into_parts().io.into_inner();
        listen(tap.cut_off(), &received, heard).await
    }

    /// Drives the connection: call this before polling anything that waits for it.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.driver, &mut self.has_ended, cx);
    }

    /// Heeds what a response means for the use of its connection.
    pub(super) fn heed(&mut self, status: u16, headers: &HeaderMap) {
        if reuse::has_forbidden_body(status, headers) {
            self.marks.close();
        }
        self.reuse.heed(headers);
    }

    /// Whether it can take another request, as far as this side knows.
    pub(super) fn is_free(&self) -> bool {
        !self.has_ended
            && self.sender.is_ready()
            && !self.marks.closes()
            && self.reuse.may_be_used()
    }

    /// Whether its server says how long it keeps the connection.
    pub(super) fn is_hinted(&self) -> bool {
        self.reuse.until().is_some()
    }

    /// Whether its server is about to close it.
    pub(super) fn is_over(&self, now: impl FnOnce() -> Instant) -> bool {
        self.reuse.until().is_some_and(|until| until <= now())
    }
}

fn drive<T: Future + Unpin>(driver: &mut T, has_ended: &mut bool, cx: &mut Context<'_>) {
    // The request in flight receives the connection's error.
    if !*has_ended && Pin::new(driver).poll(cx).is_ready() {
        *has_ended = true;
    }
}
