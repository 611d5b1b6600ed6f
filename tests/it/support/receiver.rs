//! An endpoint whose manners a test decides, and which remembers all that it was sent.
//!
//! HTTP/1.1 by hand over a socket: an HTTP library would not send garbage, half a response or a reset.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookstream::edge::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With the query, if any.
    pub path: String,
    /// In order; names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// When its last byte was read, epoch ms.
    pub received: i64,
    /// 1 for the first request with this `webhook-id`, and so on.
    pub attempt: u32,
}

impl Seen {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// `webhook-id`, or nothing.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id").unwrap_or("")
    }
}

/// What to do with a request, after a delay.
#[derive(Clone, Debug)]
pub struct Answer {
    delay: Duration,
    manner: Manner,
}

#[derive(Clone, Debug)]
enum Manner {
    Respond {
        status: u16,
        headers: Vec<(String, String)>,
        body: Bytes,
        /// The connection is reset in the middle of the body, which is said to be longer than it is.
        cut: bool,
    },
    Hang,
    Reset,
    Close,
    Garbage,
    Half,
    Endless,
}

impl Answer {
    /// An empty response with that status; the connection is kept.
    pub fn status(status: u16) -> Self {
        Manner::Respond {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            cut: false,
        }
        .into()
    }

    /// 200.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// Takes the request and never answers; the connection stays open.
    pub fn hang() -> Self {
        Manner::Hang.into()
    }

    /// Resets the connection (RST).
    pub fn reset() -> Self {
        Manner::Reset.into()
    }

    /// Closes the connection without a byte.
    pub fn close() -> Self {
        Manner::Close.into()
    }

    /// Sends bytes that are not HTTP, then closes.
    pub fn garbage() -> Self {
        Manner::Garbage.into()
    }

    /// Closes in the middle of the headers.
    pub fn half() -> Self {
        Manner::Half.into()
    }

    /// 200, and a body that never ends.
    pub fn endless() -> Self {
        Manner::Endless.into()
    }

    /// Adds a header to a response.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Manner::Respond { headers, .. } = &mut self.manner {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Sets the body of a response.
    #[must_use]
    pub fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        if let Manner::Respond { body, .. } = &mut self.manner {
            *body = bytes.into();
        }
        self
    }

    /// Resets the connection behind the headers of a response.
    #[must_use]
    pub fn then_cut(mut self) -> Self {
        if let Manner::Respond { cut, .. } = &mut self.manner {
            *cut = true;
        }
        self
    }

    /// Waits before it does so.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

impl From<Manner> for Answer {
    fn from(manner: Manner) -> Self {
        Self {
            delay: Duration::ZERO,
            manner,
        }
    }
}

/// A server on a free port, on a thread of its own; it ends when this is dropped.
pub struct Receiver {
    address: SocketAddr,
    log: Arc<Log>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Vec<Arc<Seen>>,
    attempts: HashMap<String, u32>,
}

type Behaviour = dyn Fn(&Seen) -> Answer + Send + Sync;

impl Receiver {
    /// Starts one that asks `behaviour` what to do with each request, after having recorded it.
    pub fn start(behaviour: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), behaviour)
    }

    /// The same on another address of this machine.
    pub fn start_at(
        address: IpAddr,
        behaviour: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind((address, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        runtime.spawn(accept(listener, Arc::clone(&log), Arc::new(behaviour)));
        Self {
            address,
            log,
            runtime: Some(runtime),
        }
    }

    /// One that answers 200 to everything.
    pub fn good() -> Self {
        Self::start(|_| Answer::ok())
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL of a path on it, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Arc<Seen>> {
        self.log.state.lock().unwrap().seen.clone()
    }

    /// The requests so far to one path.
    pub fn seen_at(&self, path: &str) -> Vec<Arc<Seen>> {
        self.log
            .state
            .lock()
            .unwrap()
            .seen
            .iter()
            .filter(|seen| seen.path == path)
            .cloned()
            .collect()
    }

    /// Waits until the requests so far fulfil a condition, and returns them.
    ///
    /// # Panics
    /// Naming `what`, and how many there were, when they do not in time.
    #[track_caller]
    pub fn wait_until(
        &self,
        what: &str,
        timeout: Duration,
        mut holds: impl FnMut(&[Arc<Seen>]) -> bool,
    ) -> Vec<Arc<Seen>> {
        let deadline = Instant::now() + timeout;
        loop {
            // The condition looks at a copy: a slow one must not hold the server up.
            let seen = self.seen();
            if holds(&seen) {
                return seen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "the receiver did not see within {timeout:?}: {what} ({} requests)",
                seen.len()
            );
            if seen.len() > 1000 {
                // Else thousands a second would each have the condition look at all of them; and looking at fifty
                // thousand takes milliseconds that what is tested needs.
                std::thread::sleep(Duration::from_micros(5 * seen.len() as u64));
            }
            let state = self.log.state.lock().unwrap();
            drop(
                self.log
                    .changed
                    .wait_timeout_while(state, left, |state| state.seen.len() == seen.len())
                    .unwrap(),
            );
        }
    }

    /// Waits for that many requests or more.
    #[track_caller]
    pub fn wait_for(&self, count: usize, timeout: Duration) -> Vec<Arc<Seen>> {
        self.wait_until(&format!("{count} requests"), timeout, |seen| {
            seen.len() >= count
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Log {
    fn record(&self, mut seen: Seen) -> Arc<Seen> {
        let mut state = self.state.lock().unwrap();
        let attempts = state
            .attempts
            .entry(seen.webhook_id().to_owned())
            .or_default();
        *attempts += 1;
        seen.attempt = *attempts;
        let seen = Arc::new(seen);
        state.seen.push(Arc::clone(&seen));
        drop(state);
        self.changed.notify_all();
        seen
    }
}

async fn accept(listener: TcpListener, log: Arc<Log>, behaviour: Arc<Behaviour>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (log, behaviour) = (Arc::clone(&log), Arc::clone(&behaviour));
        tokio::spawn(async move {
            // A client that goes away is its own affair.
            drop(stream.set_nodelay(true));
            drop(serve(stream, &log, &*behaviour).await);
        });
    }
}

async fn serve(mut stream: TcpStream, log: &Log, behaviour: &Behaviour) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    while let Some(seen) = read_request(&mut stream, &mut buffer).await? {
        let answer = behaviour(&log.record(seen));
        if !answer.delay.is_zero() {
            tokio::time::sleep(answer.delay).await;
        }
        match answer.manner {
            Manner::Respond {
                status,
                headers,
                body,
                cut: false,
            } => stream.write_all(&response(status, &headers, &body)).await?,
            Manner::Respond { status, .. } => {
                let head = format!("HTTP/1.1 {status} Status\r\ncontent-length: 100\r\n\r\nhalf");
                stream.write_all(head.as_bytes()).await?;
                return stream.set_zero_linger();
            }
            Manner::Hang => std::future::pending().await,
            Manner::Reset => return stream.set_zero_linger(),
            Manner::Close => return Ok(()),
            Manner::Garbage => {
                return stream
                    .write_all(b"\x00\x01these are not the bytes you wait for\r\n\r\n")
                    .await;
            }
            Manner::Half => return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await,
            Manner::Endless => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await?;
                loop {
                    stream.write_all(b"400\r\n").await?;
                    stream.write_all(&[b'x'; 0x400]).await?;
                    stream.write_all(b"\r\n").await?;
                }
            }
        }
    }
    Ok(())
}

fn response(status: u16, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    if status >= 200 && status != 204 && status != 304 {
        write!(head, "content-length: {}\r\n", body.len()).unwrap();
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// `None` when the client closed between two requests. Requests carry `content-length` or no body.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Seen>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut line = lines.next().unwrap_or_default().split(' ');
    let mut next = || line.next().unwrap_or_default().to_owned();
    let (method, path) = (next(), next());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    while buffer.len() < end + length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let body = Bytes::copy_from_slice(&buffer[end..end + length]);
    buffer.drain(..end + length);
    Ok(Some(Seen {
        method,
        path,
        headers,
        body,
        received: clock::now().0,
        attempt: 0,
    }))
}
