//! A pool of connections to one scheme, host and port, with one certificate and trust.
//!
//! An HTTP/1.1 connection is driven by the request that uses it, on the same task, so only the task that waits for the
//! response is woken. An idle connection is not driven. That its peer has closed it is noticed on its next use (hyper
//! reads before it writes, and returns the unsent request) or by [`Pool::sweep`]. An HTTP/2 connection has its own task.
//!
//! The requests of one subscriber share HTTP/2 connections, up to the number of streams that the server accepts; beyond
//! it, another connection is opened. Subscribers share none: streams of one that hang would count against the server's
//! limit and fill the connection's window for others. HTTP/1.1 connections are shared by all subscribers, in turn.
//!
//! A request that finds no connection dials, and uses whichever comes first: its own connection, or one that another
//! request returns meanwhile. In the latter case its own is completed in the background, and the next request that finds
//! none waits for that one, so that never more connections are opened than requests are in flight.
//!
//! The connection used last is used next, so those that were not needed since the last peak are idle for longest. They
//! are closed after the idle timeout, which for HTTP/1.1 depends on what the server says ([`reuse`](super::reuse)), or when
//! the client has too many ([`Evict`](super::line::Evict)).

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::limits::MAX_STREAMS;
use super::line::{
    Http1, Message, OpenError, Opened, Opener, STREAMS_BEFORE_SETTINGS, Sent, Undriven,
};
use super::received::{Heard, Received, listen};
use super::trust::Tls;
use crate::edge::clock;

/// How long a request waits for a connection that another one has begun to open, counted from then. One that takes
/// longer may take for ever.
const CLAIM: Duration = Duration::from_secs(1);

/// A connection to send a request on.
#[derive(Debug)]
pub(super) enum Line {
    Own(Box<Http1>),
    Shared(Slot),
}

/// An HTTP/2 connection of one subscriber.
#[derive(Debug)]
struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    received: Received,
    tenant: Arc<str>,
    // All of these change under the pool's lock.
    /// Streams in use.
    used: AtomicUsize,
    /// Streams that may be in use.
    limit: AtomicUsize,
    /// As in [`Http1`].
    since: AtomicU64,
    stamp: AtomicU64,
}

impl Http2 {
    fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.limit.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }
}

/// A stream of an HTTP/2 connection, to be dropped when its response was read to its end.
#[derive(Debug)]
pub(super) struct Slot {
    connection: Arc<Http2>,
    pool: Arc<Pool>,
}

impl Slot {
    /// Sends one request and waits for the response headers. `heard` notes whether anything arrives on the connection.
    pub(super) async fn exchange(&self, message: Message, heard: &Heard) -> Sent {
        let mut sender = self.connection.sender.clone();
        let sent = sender.try_send_request(message);
        listen(sent, &self.connection.received, heard).await
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.free(&self.connection);
    }
}

/// A message to a request that waits for a connection.
#[derive(Debug)]
enum Given {
    Line(Line),
    /// The connection that it waits for is not coming.
    Dial,
}

#[derive(Debug)]
struct Waiting {
    tenant: Arc<str>,
    give: oneshot::Sender<Given>,
    /// Whether it dials itself.
    dials: bool,
}

/// The connections to one origin.
#[derive(Debug)]
pub(super) struct Pool {
    opener: Arc<Opener>,
    origin: Uri,
    /// What its connections are made with, if not with the default.
    tls: Option<Arc<Tls>>,
    kept: Mutex<Kept>,
}

type ByTenant = HashMap<Arc<str>, Vec<Arc<Http2>>, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
#[allow(
    clippy::vec_box,
    reason = "a connection is large, and moves with each request"
)]
struct Kept {
    /// In order of last use; the most recent one is used next.
    idle: Vec<Box<Http1>>,
    shared: ByTenant,
    /// Requests that found no connection.
    waiting: VecDeque<Waiting>,
    /// When the dials began that no request waits for any more.
    spare: Vec<Instant>,
    /// The stream limit of the last HTTP/2 connection; `None` if the last one was HTTP/1.1.
    streams: Option<usize>,
    /// The number of sweeps so far.
    sweeps: u64,
}

impl Kept {
    /// A stream of a connection of `tenant`, which is counted as used.
    fn stream(&mut self, tenant: &str, opener: &Opener) -> Option<Arc<Http2>> {
        let all = self.shared.get_mut(tenant)?;
        all.retain(|one| {
            let closed = one.sender.is_closed();
            if closed && one.is_idle() {
                opener.not_idle(1);
            }
            !closed
        });
        let found = all.iter().find(|one| one.has_room())?;
        if found.used.fetch_add(1, Ordering::Relaxed) == 0 {
            opener.not_idle(1);
        }
        Some(Arc::clone(found))
    }

    /// Whether a connection is being opened that a request of `tenant` may wait for.
    fn may_claim(&self, tenant: &str) -> bool {
        let waits = |one: &&Waiting| !one.give.is_closed();
        if let Some(streams) = self.streams {
            let own = self.waiting.iter().filter(waits);
            let own = own.filter(|one| *one.tenant == *tenant);
            let (mut all, mut dials) = (0, 0);
            for one in own {
                all += 1;
                dials += usize::from(one.dials);
            }
            return all < dials * streams;
        }
        if self.spare.is_empty() {
            return false;
        }
        let now = clock::instant();
        let young = |at: &&Instant| now.saturating_duration_since(**at) < CLAIM;
        let coming = self.spare.iter().filter(young).count();
        let claims = self.waiting.iter().filter(waits);
        claims.filter(|one| !one.dials).count() < coming
    }
}

impl Pool {
    /// Creates a pool for the scheme, host and port of `origin`.
    pub(super) fn new(opener: Arc<Opener>, origin: Uri, tls: Option<Arc<Tls>>) -> Self {
        Self {
            opener,
            origin,
            tls,
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

    /// A connection for a request of `tenant`, and whether it was used before: if it was, a request that it returns
    /// unsent is to be sent on another. `heard` notes whether anything arrives while one is opened.
    pub(super) async fn line(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        heard: &Heard,
    ) -> Result<(Line, bool), OpenError> {
        match self.kept_line(tenant) {
            Some(line) => Ok((line, true)),
            None => self.open(tenant, heard).await,
        }
    }

    fn kept_line(self: &Arc<Self>, tenant: &str) -> Option<Line> {
        let mut kept = self.kept();
        if !kept.shared.is_empty()
            && let Some(connection) = kept.stream(tenant, &self.opener)
        {
            return Some(Line::Shared(self.slot(connection)));
        }
        loop {
            let own = kept.idle.pop()?;
            self.opener.not_idle(1);
            if !own.is_over(clock::instant) {
                return Some(Line::Own(own));
            }
        }
    }

    fn slot(self: &Arc<Self>, connection: Arc<Http2>) -> Slot {
        Slot {
            connection,
            pool: Arc::clone(self),
        }
    }

    async fn open(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        heard: &Heard,
    ) -> Result<(Line, bool), OpenError> {
        let (mut given, claims) = self.wait(tenant, true);
        if claims {
            match timeout(CLAIM, &mut given).await {
                Ok(Ok(Given::Line(line))) => return Ok((line, true)),
                Ok(Ok(Given::Dial) | Err(_)) | Err(_) => {
                    given.close();
                    if let Ok(Given::Line(line)) = given.try_recv() {
                        return Ok((line, true));
                    }
                    (given, _) = self.wait(tenant, false);
                }
            }
        }
        let began = clock::instant();
        let received = Received::default();
        let opening =
            Arc::clone(&self.opener).open(self.origin.clone(), self.tls.clone(), received.clone());
        let mut dialled = Box::pin(opening);
        tokio::select! {
            biased;
            // Only requests that claim are told to dial.
            Ok(Given::Line(line)) = &mut given => {
                if matches!(line, Line::Own(_)) {
                    self.complete(dialled, began, Arc::clone(tenant));
                }
                Ok((line, true))
            }
            opened = listen(&mut dialled, &received, heard) => {
                given.close();
                if let Ok(Given::Line(other)) = given.try_recv() {
                    self.put_back(other);
                }
                match opened {
                    Ok(Opened::Http1(own)) => {
                        self.kept().streams = None;
                        Ok((Line::Own(own), false))
                    }
                    Ok(Opened::Http2(undriven)) => {
                        Ok((Line::Shared(self.share(*undriven, tenant)), false))
                    }
                    Err(error) => {
                        self.not_coming();
                        Err(error)
                    }
                }
            }
        }
    }

    /// Waits for a connection, and returns whether one is coming for it, unless it `may_claim` none.
    fn wait(&self, tenant: &Arc<str>, may_claim: bool) -> (oneshot::Receiver<Given>, bool) {
        let (give, given) = oneshot::channel();
        let mut kept = self.kept();
        // Remove requests that no longer wait, such as after their deadline.
        kept.waiting.retain(|one| !one.give.is_closed());
        let claims = may_claim && kept.may_claim(tenant);
        kept.waiting.push_back(Waiting {
            tenant: Arc::clone(tenant),
            give,
            dials: !claims,
        });
        (given, claims)
    }

    /// Completes a dial that no request waits for any more.
    fn complete(
        self: &Arc<Self>,
        dialled: Pin<Box<impl Future<Output = Result<Opened, OpenError>> + Send + 'static>>,
        began: Instant,
        tenant: Arc<str>,
    ) {
        self.kept().spare.push(began);
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let opened = dialled.await;
            {
                let mut kept = pool.kept();
                if let Some(at) = kept.spare.iter().position(|one| *one == began) {
                    kept.spare.swap_remove(at);
                }
            }
            match opened {
                Ok(Opened::Http1(own)) => pool.give_back(own),
                Ok(Opened::Http2(undriven)) => drop(pool.share(*undriven, &tenant)),
                // Those who dial themselves get their own error.
                Err(_) => pool.not_coming(),
            }
        });
    }

    /// Lets a request dial that waits for a connection that another one has failed to open.
    fn not_coming(&self) {
        loop {
            let claims = {
                let mut kept = self.kept();
                let at = kept.waiting.iter().position(|one| !one.dials);
                at.and_then(|at| kept.waiting.remove(at))
            };
            // One whose deadline has passed needs none.
            if claims.is_none_or(|waiting| waiting.give.send(Given::Dial).is_ok()) {
                return;
            }
        }
    }

    fn put_back(&self, line: Line) {
        match line {
            Line::Own(own) => self.give_back(own),
            Line::Shared(slot) => drop(slot),
        }
    }

    /// Keeps a new connection for the requests of `tenant` to share, and returns its first stream.
    fn share(self: &Arc<Self>, undriven: Undriven, tenant: &Arc<str>) -> Slot {
        let Undriven {
            sender,
            mut driver,
            settings,
            received,
        } = undriven;
        let connection = Arc::new(Http2 {
            sender,
            received,
            tenant: Arc::clone(tenant),
            used: AtomicUsize::new(1),
            limit: AtomicUsize::new(STREAMS_BEFORE_SETTINGS),
            since: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
        });
        {
            let mut kept = self.kept();
            kept.streams.get_or_insert(STREAMS_BEFORE_SETTINGS);
            let own = kept.shared.entry(Arc::clone(tenant)).or_default();
            own.push(Arc::clone(&connection));
        }
        let (pool, driven) = (Arc::downgrade(self), Arc::downgrade(&connection));
        tokio::spawn(async move {
            let mut known = STREAMS_BEFORE_SETTINGS;
            let mut step = pin!(settings.step());
            let ended = poll_fn(|cx| {
                let polled: Poll<_> = Pin::new(&mut driver).poll(cx);
                while step.as_mut().poll(cx).is_ready() {
                    step.set(settings.step());
                }
                let streams = driver.current_max_send_streams();
                if std::mem::replace(&mut known, streams) != streams {
                    settings.are_known();
                    accepts(&pool, &driven, streams);
                }
                polled
            });
            if let Err(error) = ended.await {
                // Each of its open requests receives its own error.
                tracing::debug!("an http/2 connection ended: {error}");
            }
        });
        self.slot(connection)
    }

    /// Gives streams of a connection to the requests that wait for one, as far as it has room.
    fn serve(self: &Arc<Self>, connection: &Arc<Http2>) {
        loop {
            let waiting = {
                let mut kept = self.kept();
                let own =
                    |one: &Waiting| *one.tenant == *connection.tenant && !one.give.is_closed();
                // First those who do not dial: once a request that dials has a stream, nobody waits for its dial.
                let claims = |one: &Waiting| own(one) && !one.dials;
                let all = &kept.waiting;
                let first = all.iter().position(claims);
                let first = first.or_else(|| all.iter().position(own));
                match first.filter(|_| connection.has_room() && !connection.sender.is_closed()) {
                    Some(at) => {
                        if connection.used.fetch_add(1, Ordering::Relaxed) == 0 {
                            self.opener.not_idle(1);
                        }
                        kept.waiting.remove(at)
                    }
                    None => None,
                }
            };
            let Some(waiting) = waiting else {
                return;
            };
            // Not under the lock: if its deadline has passed meanwhile, the stream is dropped, which takes the lock.
            let slot = self.slot(Arc::clone(connection));
            drop(waiting.give.send(Given::Line(Line::Shared(slot))));
        }
    }

    /// Counts a stream as free.
    fn count_free(&self, connection: &Arc<Http2>) {
        let mut kept = self.kept();
        if connection.used.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let sweeps = kept.sweeps;
        let Some(all) = kept.shared.get_mut(&connection.tenant) else {
            return;
        };
        if connection.sender.is_closed() {
            all.retain(|one| !Arc::ptr_eq(one, connection));
        } else if all.iter().any(|one| Arc::ptr_eq(one, connection)) {
            connection.since.store(sweeps, Ordering::Relaxed);
            let stamp = self.opener.idle_one();
            connection.stamp.store(stamp, Ordering::Relaxed);
        }
    }

    /// The end of a stream.
    fn free(self: &Arc<Self>, connection: &Arc<Http2>) {
        self.count_free(connection);
        self.serve(connection);
        self.opener.trim();
    }

    /// Returns a connection whose response was read to its end; closes it if it cannot take another request.
    pub(super) fn give_back(&self, mut own: Box<Http1>) {
        if !own.is_free() {
            own.drive(&mut Context::from_waker(Waker::noop()));
            if !own.is_free() {
                return;
            }
        }
        if own.is_over(clock::instant) {
            return;
        }
        {
            let mut kept = self.kept();
            while let Some(waiting) = kept.waiting.pop_front() {
                match waiting.give.send(Given::Line(Line::Own(own))) {
                    Err(Given::Line(Line::Own(back))) => own = back,
                    Ok(()) | Err(_) => return,
                }
            }
            own.since = kept.sweeps;
            own.stamp = self.opener.idle_one();
            kept.idle.push(own);
        }
        self.opener.trim();
    }

    /// Closes connections that were unused for too long, or closed by their peers. Returns the number of idle ones, or
    /// `None` if the pool is empty.
    pub(super) fn sweep(&self) -> Option<usize> {
        let mut kept = self.kept();
        kept.sweeps += 1;
        let sweeps = kept.sweeps;
        let keep = self.opener.keep;
        let stale = |since: u64, limit: u64| sweeps - since > limit;
        let mut cx = Context::from_waker(Waker::noop());
        let now = clock::instant();
        kept.idle.retain_mut(|own| {
            own.drive(&mut cx);
            let limit = if own.is_hinted() {
                keep.most
            } else {
                keep.unhinted
            };
            own.is_free() && !own.is_over(|| now) && !stale(own.since, limit)
        });
        let mut idle = kept.idle.len();
        kept.shared.retain(|_, all| {
            all.retain(|one| {
                let since = one.since.load(Ordering::Relaxed);
                let ends = one.is_idle() && stale(since, keep.most);
                !one.sender.is_closed() && !ends
            });
            idle += all.iter().filter(|one| one.is_idle()).count();
            !all.is_empty()
        });
        kept.waiting.retain(|one| !one.give.is_closed());
        let empty = kept.idle.is_empty()
            && kept.shared.is_empty()
            && kept.waiting.is_empty()
            && kept.spare.is_empty();
        (!empty).then_some(idle)
    }

    /// The order in which its idle connections became idle.
    pub(super) fn stamps(&self, into: &mut Vec<u64>) {
        let kept = self.kept();
        into.extend(kept.idle.iter().map(|own| own.stamp));
        let shared = kept.shared.values().flatten();
        let idle = shared.filter(|one| one.is_idle());
        into.extend(idle.map(|one| one.stamp.load(Ordering::Relaxed)));
    }

    /// Closes idle connections that became idle up to `stamp`.
    pub(super) fn close_until(&self, stamp: u64) {
        let mut kept = self.kept();
        kept.idle.retain(|own| own.stamp > stamp);
        kept.shared.retain(|_, all| {
            all.retain(|one| !one.is_idle() || one.stamp.load(Ordering::Relaxed) > stamp);
            !all.is_empty()
        });
    }
}

/// The server of a connection accepts so many streams from now on.
fn accepts(pool: &Weak<Pool>, connection: &Weak<Http2>, streams: usize) {
    let (Some(pool), Some(connection)) = (pool.upgrade(), connection.upgrade()) else {
        return;
    };
    // One that accepts none for the moment gets one request, which waits.
    let streams = streams.clamp(1, MAX_STREAMS);
    {
        let mut kept = pool.kept();
        connection.limit.store(streams, Ordering::Relaxed);
        kept.streams = Some(streams);
    }
    pool.serve(&connection);
}
