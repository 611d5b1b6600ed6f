//! The receiver of all rows: a process that responds by the path, counts, and measures how late each request was.
//!
//! | path | response |
//! |---|---|
//! | `/ok/N` | 200 |
//! | `/after/MS/N` | 200 after so many milliseconds |
//! | `/timed/N` | 200, and its lateness goes into a histogram |
//! | `/whale/N` | the same after [`WHALE`] |
//! | `/tenth/N` | as `/timed/N` for first attempts, but each tenth of them gets 500 |
//! | `/switch/N` | as `/timed/N`, or 500 between `down` and `up` on standard input |
//! | `/fail/N` | 500 |
//! | `/slow/N` | 200 after 10 s |
//! | `/hang/N` | none |
//! | `/close/N` | 200, and the connection is closed |
//! | `/kept/N` | 200, and the connection is kept for a minute |
//!
//! Commands on standard input: `report` prints counts and quantiles by path, connections accepted, open and resumed and the
//! most requests at a time as JSON, `reset` clears them, and `take` prints them and clears those by path.
//!
//! FILE [SESSIONS PROTOCOL ORIGINS]: it speaks TLS, and writes the certificate to trust there. SESSIONS are `whole` (the
//! default: each connection costs a whole handshake) or `resumed`, PROTOCOL is `h1` (the default) or `h2`; with ORIGINS it
//! listens on the first so many addresses of [`origin`], on one port.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::HandshakeKind;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{Authority, Sessions};
use crate::stage::{Problem, wall};

/// How long the endpoint of a whale takes.
pub const WHALE: Duration = Duration::from_millis(20);

/// What was seen since the last reset.
#[derive(Default)]
struct Seen {
    late: Mutex<BTreeMap<String, Histogram<u64>>>,
    connections: AtomicUsize,
    /// Of these, those that are open, and TLS sessions that were resumed.
    connected: AtomicUsize,
    resumed: AtomicUsize,
    /// Requests now, and the most at a time.
    open: AtomicUsize,
    peak: AtomicUsize,
    /// First attempts of `/tenth`.
    tenth: AtomicUsize,
    /// Of `/switch`.
    is_down: AtomicBool,
}

type Counts = Arc<Seen>;

/// The address of an origin; the first one is 127.0.0.1.
pub fn origin(number: usize) -> Ipv4Addr {
    const EACH: usize = 250;
    let part = |number: usize| u8::try_from(number % EACH).unwrap_or_default();
    Ipv4Addr::new(127, 0, part(number / EACH), part(number) + 1)
}

/// What is listened on, and the port, which is free on all addresses.
async fn listen(origins: usize) -> Result<(Vec<TcpListener>, u16), Problem> {
    let first = TcpListener::bind((origin(0), 0)).await?;
    let port = first.local_addr()?.port();
    let mut all = vec![first];
    for number in 1..origins {
        all.push(TcpListener::bind((origin(number), port)).await?);
    }
    Ok((all, port))
}

pub fn play(arguments: &[String]) -> Result<(), Problem> {
    hookstream::edge::descriptors::raise_limit();
    let word = |at: usize| arguments.get(at).map(String::as_str);
    let sessions = match word(1) {
        Some("resumed") => Sessions::Resumed,
        _ => Sessions::Whole,
    };
    let authority = word(0).map(|file| Authority::new(file, sessions, word(2) == Some("h2")));
    let authority = authority.transpose()?;
    let origins = word(3).map_or(Ok(1), str::parse)?;
    let counts = Counts::default();
    let told = Arc::clone(&counts);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (listeners, port) = listen(origins).await?;
        let mut each = Vec::with_capacity(listeners.len());
        for (number, listener) in listeners.into_iter().enumerate() {
            let tls = authority.as_ref();
            let tls = tls.map(|authority| authority.acceptor(origin(number)));
            each.push(tokio::spawn(accept(
                listener,
                tls.transpose()?,
                Arc::clone(&counts),
            )));
        }
        println!("{port}");
        std::io::stdout().flush()?;
        std::thread::spawn(move || {
            if let Err(problem) = tell(&told) {
                eprintln!("the receiver: {problem}");
            }
        });
        for accepting in each {
            accepting.await??;
        }
        Ok(())
    })
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    counts: Counts,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        counts.connections.fetch_add(1, Relaxed);
        counts.connected.fetch_add(1, Relaxed);
        let (counts, tls) = (Arc::clone(&counts), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, false, &counts).await,
                // The sender may give up during the handshake, or not trust the certificate.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let session = stream.get_ref().1;
                        let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
                        counts.resumed.fetch_add(is_resumed.into(), Relaxed);
                        let is_h2 = session.alpn_protocol() == Some(b"h2");
                        serve(stream, is_h2, &counts).await;
                    }
                }
            }
            counts.connected.fetch_sub(1, Relaxed);
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_h2: bool,
    counts: &Counts,
) {
    let counts = Arc::clone(counts);
    let answer = service_fn(move |request| {
        let counts = Arc::clone(&counts);
        async move { answer(&counts, request).await }
    });
    let stream = TokioIo::new(stream);
    // The sender closes when it has done.
    match is_h2 {
        true => {
            let h2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            h2.serve_connection(stream, answer).await.ok()
        }
        false => {
            let h1 = hyper::server::conn::http1::Builder::new();
            h1.serve_connection(stream, answer).await.ok()
        }
    };
}

async fn answer(
    counts: &Counts,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, hyper::Error> {
    let open = counts.open.fetch_add(1, Relaxed) + 1;
    counts.peak.fetch_max(open, Relaxed);
    let answered = respond(counts, request).await;
    counts.open.fetch_sub(1, Relaxed);
    answered
}

async fn respond(
    counts: &Counts,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let attempt = request.headers().get("hookstream-attempt");
    let is_first = attempt.is_some_and(|attempt| attempt == "1");
    let body = request.into_body().collect().await?.to_bytes();
    let mut response = hyper::Response::new(Full::default());
    match path.split('/').nth(1) {
        Some("timed") => note(counts, path, &body),
        Some("whale") => {
            tokio::time::sleep(WHALE).await;
            note(counts, path, &body);
        }
        Some("after") => {
            let time = path.split('/').nth(2).and_then(|ms| ms.parse().ok());
            tokio::time::sleep(Duration::from_millis(time.unwrap_or(0))).await;
        }
        Some("fail") => fail(&mut response),
        Some("tenth") if !is_first => {}
        Some("tenth") if counts.tenth.fetch_add(1, Relaxed) % 10 == 9 => fail(&mut response),
        Some("tenth") => note(counts, path, &body),
        Some("switch") if counts.is_down.load(Relaxed) => fail(&mut response),
        Some("switch") => note(counts, path, &body),
        Some("kept") => {
            let kept = hyper::header::HeaderValue::from_static("timeout=60");
            response.headers_mut().insert("keep-alive", kept);
        }
        Some("close") => {
            let close = hyper::header::HeaderValue::from_static("close");
            response
                .headers_mut()
                .insert(hyper::header::CONNECTION, close);
        }
        Some("slow") => tokio::time::sleep(Duration::from_secs(10)).await,
        Some("hang") => std::future::pending().await,
        _ => {}
    }
    Ok(response)
}

fn fail(response: &mut hyper::Response<Full<Bytes>>) {
    *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
}

fn note(counts: &Counts, path: String, body: &[u8]) {
    let late = scheduled(body).map_or(0, |at| wall().saturating_sub(at) / 1000);
    let mut late_by = counts.late.lock().unwrap();
    late_by
        .entry(path)
        .or_insert_with(histogram)
        .saturating_record(u64::try_from(late).unwrap_or(u64::MAX));
}

/// Microseconds, up to an hour.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap()
}

/// The number behind `"at":`.
pub fn scheduled(body: &[u8]) -> Option<u128> {
    let at = body.windows(5).position(|window| window == br#""at":"#)? + 5;
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u128::from(digit - b'0')))
}

/// Quantiles in milliseconds.
pub fn quantiles(histogram: &Histogram<u64>) -> Value {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    json!({"count": histogram.len(), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)})
}

fn tell(counts: &Counts) -> Result<(), Problem> {
    for line in std::io::stdin().lock().lines() {
        let mut late = counts.late.lock().unwrap();
        let command = line?;
        let response: Value = match command.as_str() {
            "reset" => {
                late.clear();
                counts.connections.store(0, Relaxed);
                counts.resumed.store(0, Relaxed);
                counts.peak.store(counts.open.load(Relaxed), Relaxed);
                json!({})
            }
            switch @ ("down" | "up") => {
                counts.is_down.store(switch == "down", Relaxed);
                json!({})
            }
            // Of all paths together, beside each; `take` clears them.
            _ => {
                let mut all = histogram();
                let mut each = serde_json::Map::new();
                for (path, histogram) in late.iter() {
                    all.add(histogram)?;
                    each.insert(path.clone(), quantiles(histogram));
                }
                if command == "take" {
                    late.clear();
                }
                json!({
                    "all": quantiles(&all), "each": each,
                    "connections": counts.connections.load(Relaxed), "connected": counts.connected.load(Relaxed),
                    "resumed": counts.resumed.load(Relaxed), "peak": counts.peak.load(Relaxed),
                })
            }
        };
        println!("{response}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
