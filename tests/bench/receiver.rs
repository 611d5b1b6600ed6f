//! The receiver of all rows: a process that answers by the path, counts, and tells how late each request was.
//!
//! `/ok/N`: 200. `/after/MS/N`: 200 after so many milliseconds. `/timed/N`: 200, and its lateness goes into a histogram. `/fail/N`: 500. `/slow/N`: 200 after 10 s.
//! `/tenth/N`: as `/timed/N` for first attempts, but each tenth of them gets 500. `/switch/N`: as `/timed/N`, or 500 between `down`
//! and `up` on standard input. `/whale/N`: as `/timed/N`, after [`WHALE`]. `/hang/N`: never. `/close/N`: 200, and the connection is closed. Asked on standard input: `report` tells counts and
//! quantiles by path, connections accepted and the most requests at a time as JSON, `reset` forgets. With the name of a file it speaks TLS, and writes the certificate there;
//! sessions are not resumed, so each connection costs a whole handshake.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::stage::{Problem, wall};

/// How long the endpoint of a whale takes.
pub const WHALE: Duration = Duration::from_millis(20);

/// What was seen since the last reset.
#[derive(Default)]
struct Seen {
    late: Mutex<BTreeMap<String, Histogram<u64>>>,
    connections: AtomicUsize,
    /// Requests now, and the most at a time.
    open: AtomicUsize,
    peak: AtomicUsize,
    /// First attempts of `/tenth`.
    tenth: AtomicUsize,
    /// Of `/switch`.
    is_down: AtomicBool,
}

type Counts = Arc<Seen>;

pub fn play(arguments: &[String]) -> Result<(), Problem> {
    hookstream::edge::descriptors::raise_limit();
    let tls = arguments.first().map(|file| acceptor(file)).transpose()?;
    let counts = Counts::default();
    let told = Arc::clone(&counts);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        std::io::stdout().flush()?;
        std::thread::spawn(move || {
            if let Err(problem) = tell(&told) {
                eprintln!("the receiver: {problem}");
            }
        });
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            counts.connections.fetch_add(1, Relaxed);
            let (counts, tls) = (Arc::clone(&counts), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve(stream, &counts).await,
                    // The sender may give up during the handshake.
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => serve(stream, &counts).await,
                        Err(error) => eprintln!("the receiver: {error}"),
                    },
                }
            });
        }
    })
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, counts: &Counts) {
    let answer = service_fn(|request| answer(counts, request));
    // The sender closes when it has done.
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await
        .ok();
}

/// TLS with a fresh certificate for 127.0.0.1, written to `file` for those who are to trust it.
fn acceptor(file: &str) -> Result<TlsAcceptor, Problem> {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    std::fs::write(file, certified.cert.pem())?;
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
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
        let answer: Value = match line?.as_str() {
            "reset" => {
                late.clear();
                counts.connections.store(0, Relaxed);
                counts.peak.store(counts.open.load(Relaxed), Relaxed);
                json!({})
            }
            switch @ ("down" | "up") => {
                counts.is_down.store(switch == "down", Relaxed);
                json!({})
            }
            // Of all paths together, beside each.
            _ => {
                let mut all = histogram();
                let mut each = serde_json::Map::new();
                for (path, histogram) in late.iter() {
                    all.add(histogram)?;
                    each.insert(path.clone(), quantiles(histogram));
                }
                json!({
                    "all": quantiles(&all), "each": each,
                    "connections": counts.connections.load(Relaxed), "peak": counts.peak.load(Relaxed),
                })
            }
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
