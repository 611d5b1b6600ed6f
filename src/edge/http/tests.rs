//! Tests the client against loopback servers that speak raw bytes, correctly and incorrectly.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::CertifiedKey;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Notify, mpsc};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::EgressSettings;

mod certificates;
mod refusals;
mod responses;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// Far longer than any test, so that only the tested limit ends an attempt.
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(500);

fn options(allow: &[&str]) -> HttpOptions {
    let settings = EgressSettings {
        allow_http: true,
        allow_cidrs: allow.iter().map(|net| net.parse().unwrap()).collect(),
        ..EgressSettings::default()
    };
    HttpOptions::new(Arc::new(EgressPolicy::new(&settings)))
}

fn client() -> HttpClient {
    HttpClient::new(options(&["127.0.0.0/8", "::1/128"])).unwrap()
}

fn request(uri: &str) -> Request {
    let headers = [
        ("webhook-id", "msg_1"),
        ("content-type", "application/json"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
    .collect();
    Request {
        to: Arc::new(Address::new(uri.parse().unwrap()).unwrap()),
        headers,
        body: Bytes::from_static(b"{\"a\":1}"),
    }
}

fn within(time: Duration) -> Instant {
    Instant::now() + time
}

async fn post(client: &HttpClient, uri: &str) -> Reply {
    client.post(request(uri), within(LONG)).await
}

#[track_caller]
fn answered(reply: Reply) -> Answer {
    match reply {
        Reply::Answered(answer) => answer,
        Reply::Failed(failure) => panic!("{failure:?}"),
    }
}

#[track_caller]
fn heard(reply: &Reply) -> bool {
    match reply {
        Reply::Answered(answer) => panic!("{answer:?}"),
        Reply::Failed(failure) => failure.heard,
    }
}

#[track_caller]
fn failed(reply: Reply) -> (FailureClass, String) {
    match reply {
        Reply::Answered(answer) => panic!("{answer:?}"),
        Reply::Failed(failure) => (failure.class, failure.error),
    }
}

/// A server that passes each connection to a handler.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F, Fut>(handler: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(handler(stream));
            }
        });
        Self { address, accepted }
    }

    /// Writes the same bytes after each request and keeps the connection open.
    async fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Arc::new(bytes.into());
        Self::start(move |mut stream| {
            let bytes = Arc::clone(&bytes);
            async move {
                while read_request(&mut stream).await.is_some() {
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// Writes the bytes after one request and closes.
    async fn closing(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Arc::new(bytes.into());
        Self::start(move |mut stream| {
            let bytes = Arc::clone(&bytes);
            async move {
                read_request(&mut stream).await;
                stream.write_all(&bytes).await.ok();
            }
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://{}/hook?token=s3cret", self.address)
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// Lets background tasks return a connection to the pool, or notice that it closed.
async fn settle() {
    for _ in 0..256 {
        tokio::task::yield_now().await;
    }
}

/// Reads one request with its body; `None` if the connection ended.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))?
            .parse::<usize>()
            .ok()?;
        if body.len() >= length {
            return Some(text.into_owned());
        }
    }
}

#[tokio::test]
async fn the_request_is_sent_as_given_with_nothing_added_but_framing_and_user_agent() {
    let (sent, mut seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let sent = sent.clone();
        async move {
            sent.send(read_request(&mut stream).await.unwrap()).unwrap();
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let answer = answered(post(&client(), &server.url()).await);
    assert_eq!(answer.status, 200);
    assert!(answer.rest.is_none(), "there is no body to read");
    let request = seen.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines().collect::<Vec<_>>();
    assert_eq!(lines.remove(0), "POST /hook?token=s3cret HTTP/1.1");
    lines.sort_unstable();
    let host = format!("host: {}", server.address);
    let agent = concat!("user-agent: hookstream/", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        [
            "content-length: 7",
            "content-type: application/json",
            &host,
            agent,
            "webhook-id: msg_1"
        ]
    );
    assert_eq!(body, "{\"a\":1}");
}

#[tokio::test]
async fn a_connection_is_used_again_after_its_body_was_drained() {
    let client = client();
    for body in ["", "thanks"] {
        let server = Server::answering(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
        for _ in 0..3 {
            if let Some(rest) = answered(post(&client, &server.url()).await).rest {
                assert_eq!(rest.drain(within(LONG)).await, Drained::Complete);
            }
            settle().await;
        }
        assert_eq!(server.accepted(), 1, "body {body:?}");
    }
}

#[tokio::test]
async fn a_snippet_is_what_the_receiver_wrote() {
    let server = Server::answering(
        "HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n4\r\nnope\r\n0\r\n\r\n",
    )
    .await;
    let answer = answered(post(&client(), &server.url()).await);
    assert_eq!(answer.status, 500);
    assert_eq!(
        answer.rest.unwrap().read_snippet(within(LONG)).await,
        (b"nope".to_vec(), Drained::Complete)
    );
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let inside = Server::answering(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let head = format!(
            "HTTP/1.1 {status} Elsewhere\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
            inside.url()
        );
        let server = Server::closing(head).await;
        assert_eq!(
            answered(post(&client(), &server.url()).await).status,
            status
        );
    }
    assert_eq!(inside.accepted(), 0, "a redirect was followed");
}

#[tokio::test]
async fn the_longest_retry_after_of_a_response_counts() {
    for (lines, expected) in [
        ("retry-after: 8\r\nRetry-After: 120\r\n", Some(120)),
        ("retry-after: 1.5\r\n", Some(2)),
        ("retry-after: soon\r\n", None),
        ("", None),
    ] {
        let head = format!("HTTP/1.1 429 Slow\r\n{lines}content-length: 0\r\n\r\n");
        let server = Server::closing(head).await;
        let wait = answered(post(&client(), &server.url()).await).retry_after;
        assert_eq!(wait, expected.map(Duration::from_secs), "{lines:?}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadline_and_closes_the_connection() {
    let (closed, mut seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let closed = closed.clone();
        async move {
            while read_request(&mut stream).await.is_some() {}
            closed.send(()).unwrap();
        }
    })
    .await;
    let client = client();
    let deadline = within(SHORT);
    let (class, error) = failed(client.post(request(&server.url()), deadline).await);
    assert_eq!(class, FailureClass::Timeout);
    assert!(error.starts_with("no response headers within "), "{error}");
    assert!(
        Instant::now() >= deadline && Instant::now() < deadline + LONG,
        "the deadline was not kept"
    );
    seen.recv().await.unwrap();
}

#[tokio::test]
async fn headers_that_trickle_end_at_the_deadline_too() {
    let server = Server::start(|mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok();
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while stream.write_all(b"x: y\r\n").await.is_ok() {
            ticks.tick().await;
        }
    })
    .await;
    let client = client();
    let reply = client.post(request(&server.url()), within(SHORT)).await;
    assert!(heard(&reply), "bytes that came are a response");
    assert_eq!(failed(reply).0, FailureClass::Timeout);
}

#[tokio::test]
async fn bytes_before_a_deadline_or_an_early_end_are_a_sign_of_the_endpoint() {
    let part = "HTTP/1.1 2";
    let dripping = |bytes: &'static str, ends: bool| {
        Server::start(move |mut stream| async move {
            read_request(&mut stream).await;
            stream.write_all(bytes.as_bytes()).await.ok();
            while !ends && stream.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
        })
    };
    for (bytes, ends, expected) in [
        (part, false, true),
        (part, true, true),
        ("", false, false),
        ("", true, false),
    ] {
        let server = dripping(bytes, ends).await;
        let client = client();
        let reply = client.post(request(&server.url()), within(SHORT)).await;
        assert_eq!(heard(&reply), expected, "{bytes:?}, ends: {ends}");
    }
}

#[tokio::test]
async fn what_arrived_before_a_request_is_no_sign_of_the_endpoint() {
    let server = Server::start(|mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(OK).await.ok();
        while stream.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let client = client();
    answered(post(&client, &server.url()).await);
    let reply = client.post(request(&server.url()), within(SHORT)).await;
    assert_eq!(server.accepted(), 1, "on the same connection");
    assert!(!heard(&reply));
    assert_eq!(failed(reply).0, FailureClass::Timeout);
}

#[tokio::test]
async fn a_body_that_hangs_ends_at_the_same_deadline() {
    let server = Server::answering("HTTP/1.1 500 No\r\ncontent-length: 10\r\n\r\nhalf").await;
    let (client, deadline) = (client(), within(SHORT));
    let answer = answered(client.post(request(&server.url()), deadline).await);
    assert_eq!(answer.status, 500);
    assert_eq!(
        answer.rest.unwrap().read_snippet(deadline).await,
        (b"half".to_vec(), Drained::Timeout)
    );
}

#[tokio::test]
async fn half_a_body_is_a_failed_drain() {
    let server = Server::closing("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let answer = answered(post(&client(), &server.url()).await);
    assert_eq!(
        answer.rest.unwrap().drain(within(LONG)).await,
        Drained::Failed
    );
}

#[tokio::test]
async fn an_endless_body_is_left_and_its_connection_closed() {
    let (closed, mut seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let closed = closed.clone();
        async move {
            read_request(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await
                .unwrap();
            while stream.write_all(b"4\r\nmore\r\n").await.is_ok() {}
            closed.send(()).unwrap();
        }
    })
    .await;
    let client = client();
    let answer = answered(post(&client, &server.url()).await);
    let (snippet, drained) = answer.rest.unwrap().read_snippet(within(LONG)).await;
    assert_eq!((snippet.len(), drained), (MAX_BODY_BYTES, Drained::TooLong));
    seen.recv().await.unwrap();
}

#[tokio::test]
async fn a_body_announced_too_long_is_not_read_at_all() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 16385\r\n\r\n").await;
    let answer = answered(post(&client(), &server.url()).await);
    assert_eq!(
        answer.rest.unwrap().drain(within(LONG)).await,
        Drained::TooLong
    );
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_complete() {
    let body = "x".repeat(MAX_BODY_BYTES);
    let server = Server::answering(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {MAX_BODY_BYTES}\r\n\r\n{body}"
    ))
    .await;
    let answer = answered(post(&client(), &server.url()).await);
    assert_eq!(
        answer.rest.unwrap().drain(within(LONG)).await,
        Drained::Complete
    );
}

#[tokio::test]
async fn what_is_not_an_http_response_fails_with_its_own_sentence() {
    let endless = format!(
        "HTTP/1.1 103 Early\r\nx: {}",
        "y".repeat(MAX_HEADER_BYTES * 4)
    );
    let large = "the response headers are too large; at most 32768 bytes are read";
    let closed = "the connection closed before the response was complete";
    for (bytes, expected) in [
        ("SSH-2.0-OpenSSH_9.6\r\n\r\n", "the response was not HTTP"),
        ("HTTP/1.1 20", closed),
        ("HTTP/1.1 103 Early\r\n\r\n", closed),
        ("", closed),
        (&endless, large),
    ] {
        let server = Server::closing(bytes).await;
        let (class, error) = failed(post(&client(), &server.url()).await);
        assert_eq!(class, FailureClass::Other, "{error}");
        assert_eq!(error, expected, "{:?}", bytes.get(..40));
    }
}

#[tokio::test]
async fn a_reset_is_a_failure_of_class_other() {
    let server = Server::start(|mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let (class, error) = failed(post(&client(), &server.url()).await);
    assert_eq!(class, FailureClass::Other);
    assert_eq!(
        error,
        "the connection broke before the response was complete: connection reset"
    );
}

#[tokio::test]
async fn a_refused_port_is_a_failure_of_class_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reply = post(&client(), &format!("http://{address}/")).await;
    assert_eq!(
        failed(reply),
        (FailureClass::Connect, "connection refused".to_owned())
    );
}

#[tokio::test]
async fn a_name_without_an_address_is_a_failure_of_class_connect() {
    let (class, error) =
        failed(post(&client(), "http://no-such-name.invalid/hook?token=s3cret").await);
    assert_eq!(class, FailureClass::Connect);
    assert!(error.starts_with("dns lookup found no address"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_request_is_sent_once_when_its_pooled_connection_dies_under_it() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let server = Server::start(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            read_request(&mut stream).await;
            counter.fetch_add(1, Ordering::SeqCst);
            stream.write_all(OK).await.unwrap();
            // The second request is read, and the connection closes without a response.
            if read_request(&mut stream).await.is_some() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let client = client();
    answered(post(&client, &server.url()).await);
    settle().await;
    let (class, _) = failed(post(&client, &server.url()).await);
    assert_eq!(class, FailureClass::Other);
    assert_eq!(
        (requests.load(Ordering::SeqCst), server.accepted()),
        (2, 1),
        "the client sent a POST again by itself"
    );
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_no_attempt() {
    let (closed, mut seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let closed = closed.clone();
        async move {
            read_request(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            drop(stream);
            closed.send(()).unwrap();
        }
    })
    .await;
    let client = client();
    for _ in 0..3 {
        assert_eq!(answered(post(&client, &server.url()).await).status, 200);
        seen.recv().await.unwrap();
        settle().await;
    }
    assert_eq!(server.accepted(), 3);
}

#[tokio::test]
async fn a_literal_address_is_denied_before_it_is_dialled() {
    let server = Server::answering(OK).await;
    let client = HttpClient::new(options(&["10.0.0.0/8"])).unwrap();
    let mapped = format!("http://[::ffff:127.0.0.1]:{}/", server.address.port());
    for url in [server.url(), mapped] {
        let (class, error) = failed(post(&client, &url).await);
        assert_eq!(class, FailureClass::Egress, "{error}");
        assert!(
            error.contains("loopback") && !error.contains("s3cret"),
            "{error}"
        );
    }
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn a_name_that_leads_inside_is_denied_after_its_lookup() {
    let server = Server::answering(OK).await;
    let client = HttpClient::new(options(&["10.0.0.0/8"])).unwrap();
    let (class, error) = failed(
        post(
            &client,
            &format!("http://localhost:{}/", server.address.port()),
        )
        .await,
    );
    assert_eq!(class, FailureClass::Egress, "{error}");
    assert!(
        error.starts_with("localhost (") && error.contains("loopback"),
        "{error}"
    );
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn plain_http_is_denied_unless_it_was_allowed() {
    let settings = EgressSettings {
        allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..EgressSettings::default()
    };
    let (_, ca_file) = certificate("127.0.0.1");
    let options = HttpOptions {
        ca_file: Some(ca_file.path().to_owned()),
        ..HttpOptions::new(Arc::new(EgressPolicy::new(&settings)))
    };
    let (class, error) =
        failed(post(&HttpClient::new(options).unwrap(), "http://127.0.0.1:9/").await);
    assert_eq!(class, FailureClass::Egress);
    assert!(error.contains("--egress-allow-http"), "{error}");
}

#[test]
fn a_header_cannot_be_injected() {
    for value in ["a\r\nx-evil: 1", "a\nb", "a\0b"] {
        assert!(HeaderValue::from_str(value).is_err(), "{value:?}");
    }
    for uri in [
        "http://a.example.org/\r\nx-evil: 1",
        "http://a.example.org/ HTTP/1.1",
    ] {
        assert!(uri.parse::<Uri>().is_err(), "{uri:?}");
    }
}

/// A self-signed certificate for `name`, and the file that makes it trusted.
fn certificate(name: &str) -> (CertifiedKey<rcgen::KeyPair>, tempfile::NamedTempFile) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(certified.cert.pem().as_bytes()).unwrap();
    (certified, file)
}

fn acceptor(certified: &CertifiedKey<rcgen::KeyPair>, alpn: &[&str]) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certified.cert.der().clone()], key)
    .unwrap();
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Responds 200 over TLS and reports the HTTP version of each request.
async fn tls_server(acceptor: TlsAcceptor) -> (Server, mpsc::UnboundedReceiver<http::Version>) {
    let (sent, seen) = mpsc::unbounded_channel();
    let server = Server::start(move |stream| {
        let (acceptor, sent) = (acceptor.clone(), sent.clone());
        async move {
            let Ok(tls) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request: http::Request<Incoming>| {
                sent.send(request.version()).unwrap();
                async {
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(
                        Bytes::from_static(b"hi"),
                    )))
                }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            builder
                .serve_connection(TokioIo::new(tls), service)
                .await
                .ok();
        }
    })
    .await;
    (server, seen)
}

fn trusting(ca_file: &tempfile::NamedTempFile) -> HttpClient {
    HttpClient::new(HttpOptions {
        ca_file: Some(ca_file.path().to_owned()),
        ..options(&["127.0.0.0/8", "::1/128"])
    })
    .unwrap()
}

#[tokio::test]
async fn an_untrusted_certificate_is_a_failure_of_class_tls() {
    let (certified, _) = certificate("127.0.0.1");
    let (server, _seen) = tls_server(acceptor(&certified, &[])).await;
    let (class, error) = failed(post(&client(), &format!("https://{}/", server.address)).await);
    assert_eq!(class, FailureClass::Tls);
    assert!(
        error.starts_with("the tls handshake failed: the server's certificate "),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_for_another_name_is_a_failure_of_class_tls() {
    let (certified, ca_file) = certificate("other.example.org");
    let (server, _seen) = tls_server(acceptor(&certified, &[])).await;
    let (class, error) =
        failed(post(&trusting(&ca_file), &format!("https://{}/", server.address)).await);
    assert_eq!(class, FailureClass::Tls, "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_a_failure_of_class_tls() {
    let talking = Server::start(|mut stream| async move {
        stream
            .write_all(b"220 mail.example.org ESMTP\r\n")
            .await
            .ok();
        stream.read_buf(&mut Vec::new()).await.ok();
    })
    .await;
    let closing = Server::start(|mut stream| async move {
        stream.read_buf(&mut Vec::new()).await.ok();
    })
    .await;
    for server in [talking, closing] {
        let (class, error) = failed(post(&client(), &format!("https://{}/", server.address)).await);
        assert_eq!(class, FailureClass::Tls, "{error}");
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_at_the_deadline() {
    let server = Server::start(|mut stream| async move {
        while stream.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let client = client();
    let reply = client
        .post(
            request(&format!("https://{}/", server.address)),
            within(SHORT),
        )
        .await;
    assert!(!heard(&reply), "it sent nothing");
    assert_eq!(failed(reply).0, FailureClass::Timeout);
}

#[tokio::test]
async fn a_certificate_in_the_ca_file_is_trusted_and_the_server_chooses_the_version() {
    let (certified, ca_file) = certificate("localhost");
    for (alpn, expected) in [
        (&["h2", "http/1.1"][..], http::Version::HTTP_2),
        (&["http/1.1"][..], http::Version::HTTP_11),
        (&[][..], http::Version::HTTP_11),
    ] {
        let (server, mut seen) = tls_server(acceptor(&certified, alpn)).await;
        let client = trusting(&ca_file);
        for _ in 0..2 {
            let answer = answered(
                post(
                    &client,
                    &format!("https://localhost:{}/", server.address.port()),
                )
                .await,
            );
            assert_eq!(answer.status, 200);
            assert_eq!(
                answer.rest.unwrap().read_snippet(within(LONG)).await,
                (b"hi".to_vec(), Drained::Complete)
            );
            assert_eq!(seen.recv().await, Some(expected));
            settle().await;
        }
        assert_eq!(
            server.accepted(),
            1,
            "the connection was not used again ({expected:?})"
        );
    }
}

/// Responds to each request, and reports each connection that ends.
async fn telling_of_ends(
    answer: impl Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Clone + Send + 'static,
) -> (Server, mpsc::UnboundedReceiver<()>) {
    let (ended, seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let (ended, answer) = (ended.clone(), answer.clone());
        async move {
            while read_request(&mut stream).await.is_some() {
                answer().await;
                stream.write_all(OK).await.unwrap();
            }
            ended.send(()).unwrap();
        }
    })
    .await;
    (server, seen)
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let (server, mut ended) = telling_of_ends(|| Box::pin(std::future::ready(()))).await;
    let client = HttpClient::new(HttpOptions {
        pool_idle_timeout: SHORT,
        ..options(&["127.0.0.0/8"])
    })
    .unwrap();
    answered(post(&client, &server.url()).await);
    let idle = Instant::now();
    ended.recv().await.unwrap();
    // The timestamp is between two sweeps.
    assert!(
        idle.elapsed() > SHORT / 2,
        "closed after {:?}",
        idle.elapsed()
    );
}

#[tokio::test]
async fn no_more_idle_connections_are_kept_than_allowed() {
    let both = Arc::new(Barrier::new(2));
    let answer = move || {
        let both = Arc::clone(&both);
        Box::pin(async move {
            both.wait().await;
        }) as Pin<Box<dyn Future<Output = ()> + Send>>
    };
    let (server, mut ended) = telling_of_ends(answer).await;
    let client = HttpClient::new(HttpOptions {
        max_idle: 1,
        ..options(&["127.0.0.0/8"])
    })
    .unwrap();
    let url = server.url();
    let (one, other) = tokio::join!(post(&client, &url), post(&client, &url));
    answered(one);
    answered(other);
    ended.recv().await.unwrap();
    settle().await;
    assert!(ended.try_recv().is_err(), "the one allowed was closed too");
}

#[tokio::test]
async fn a_request_takes_a_connection_that_comes_back_before_its_own_is_there() {
    let (certified, ca_file) = certificate("127.0.0.1");
    let acceptor = acceptor(&certified, &["http/1.1"]);
    let (connections, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let may_answer = Arc::clone(&go);
    let server = Server::start(move |stream| {
        let first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        let (acceptor, may_answer) = (acceptor.clone(), Arc::clone(&may_answer));
        async move {
            if !first {
                // A handshake that never starts.
                std::future::pending::<()>().await;
            }
            let mut stream = acceptor.accept(stream).await.unwrap();
            while read_request(&mut stream).await.is_some() {
                may_answer.notified().await;
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let client = trusting(&ca_file);
    let url = format!("https://{}/", server.address);
    let answered_once = Notify::new();
    let answers = async {
        while server.accepted() < 2 {
            tokio::task::yield_now().await;
        }
        // Each response waits for a permit; the second is held back until then.
        go.notify_one();
        answered_once.notified().await;
        go.notify_one();
    };
    let one = async {
        answered(post(&client, &url).await);
        answered_once.notify_one();
    };
    let other = async {
        answered(post(&client, &url).await);
        answered_once.notify_one();
    };
    tokio::join!(answers, one, other);
    assert_eq!(server.accepted(), 2);
}

#[test]
fn an_address_needs_a_scheme_and_a_host() {
    for uri in ["/hook", "example.org", "example.org:80"] {
        assert_eq!(
            Address::new(uri.parse().unwrap()).unwrap_err(),
            InvalidAddress,
            "{uri}"
        );
    }
    for (uri, expected) in [
        ("http://example.org/a", "example.org"),
        ("https://example.org:443/a", "example.org"),
        ("http://example.org:443", "example.org:443"),
        ("https://[::1]:8443/", "[::1]:8443"),
    ] {
        assert_eq!(
            Address::new(uri.parse().unwrap()).unwrap().host,
            expected,
            "{uri}"
        );
    }
}

#[test]
fn a_ca_file_that_is_missing_or_empty_is_refused_by_name() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [
        empty.path().to_owned(),
        empty.path().with_extension("missing"),
    ] {
        let name = path.display().to_string();
        let error = HttpClient::new(HttpOptions {
            ca_file: Some(path),
            ..options(&[])
        })
        .unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
    }
}

#[tokio::test]
async fn many_requests_at_once_each_get_their_answer() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let client = client();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let tasks = (0..64).map(|_| {
                let (client, url) = (client.clone(), server.url());
                tokio::task::spawn_local(async move {
                    let rest = answered(post(&client, &url).await).rest.unwrap();
                    assert_eq!(rest.drain(within(LONG)).await, Drained::Complete);
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        })
        .await;
    assert!(server.accepted() <= 64);
}

/// Runs `workers` loops of `each` requests at once on one thread, as delivery does; `tenant` names the subscriber of each
/// loop.
async fn load(
    client: &HttpClient,
    url: &str,
    workers: usize,
    each: usize,
    tenant: fn(usize) -> String,
) {
    let local = tokio::task::LocalSet::new();
    let work = async {
        let tasks = (0..workers).map(|number| {
            let client = client.clone();
            let to = Address::new(url.parse().unwrap()).unwrap();
            let to = Arc::new(to.for_subscriber(&tenant(number)));
            tokio::task::spawn_local(async move {
                for _ in 0..each {
                    let request = Request {
                        to: Arc::clone(&to),
                        ..request("http://127.0.0.1/")
                    };
                    let answer = answered(client.post(request, within(LONG)).await);
                    if let Some(rest) = answer.rest {
                        assert_eq!(rest.drain(within(LONG)).await, Drained::Complete);
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    };
    local.run_until(work).await;
}

#[tokio::test]
async fn no_more_connections_are_opened_than_requests_were_in_flight() {
    const IN_FLIGHT: usize = 640;
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let client = client();
    for _ in 0..3 {
        load(&client, &server.url(), IN_FLIGHT, 10, |_| String::new()).await;
        settle().await;
    }
    let opened = server.accepted();
    assert!(
        opened * 10 <= IN_FLIGHT * 11,
        "{opened} connections for {IN_FLIGHT} requests at once"
    );
}

/// As a tenant has them who changes the URL of a subscription again and again.
#[tokio::test]
async fn fifty_thousand_different_hosts_leave_nothing_behind() {
    const HOSTS: u32 = 50_000;
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let client = client();
    for number in 0..HOSTS {
        let host = std::net::Ipv4Addr::from(0x7f01_0000 + number);
        let (class, _) = failed(post(&client, &format!("http://{host}:{port}/")).await);
        assert_eq!(class, FailureClass::Connect);
        if number == HOSTS / 2 {
            assert!(client.0.pools().all.len() > 1);
        }
    }
    client.0.sweep();
    assert_eq!(client.0.pools().all.len(), 0);
    assert_eq!(client.0.opener.idle.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_connections_idle_for_longest_are_closed_whatever_their_origin() {
    const MOST: usize = 16;
    let mut servers = Vec::new();
    for _ in 0..20 {
        servers.push(Server::answering(OK).await);
    }
    let client = HttpClient::new(HttpOptions {
        max_idle: MOST,
        ..options(&["127.0.0.0/8"])
    })
    .unwrap();
    for server in &servers {
        answered(post(&client, &server.url()).await);
    }
    let idle = |client: &HttpClient| client.0.opener.idle.load(Ordering::Relaxed);
    assert!(idle(&client) <= MOST, "{} are idle", idle(&client));
    // The first ones were closed, the last ones are used again.
    for server in servers.iter().rev().take(8) {
        answered(post(&client, &server.url()).await);
        assert_eq!(server.accepted(), 1);
    }
    answered(post(&client, &servers[0].url()).await);
    assert_eq!(servers[0].accepted(), 2);
}

/// An HTTP/2 server that accepts `streams` streams per connection. Requests to `/hang` get no response; the others wait for
/// `pause`.
async fn streams_server(
    acceptor: TlsAcceptor,
    streams: u32,
    pause: Duration,
) -> (Server, Arc<AtomicUsize>) {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let server = Server::start(move |stream| {
        let (acceptor, most) = (acceptor.clone(), Arc::clone(&most));
        async move {
            let Ok(tls) = acceptor.accept(stream).await else {
                return;
            };
            let now = Arc::new(AtomicUsize::new(0));
            let service = service_fn(move |request: http::Request<Incoming>| {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                async move {
                    let open = now.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(open, Ordering::SeqCst);
                    if request.uri().path() == "/hang" {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(pause).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(
                        Bytes::from_static(b"hi"),
                    )))
                }
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(tls), service)
                .await
                .ok();
        }
    })
    .await;
    (server, seen)
}

fn to(url: &str, subscriber: &str) -> Request {
    let to = Address::new(url.parse().unwrap()).unwrap();
    Request {
        to: Arc::new(to.for_subscriber(subscriber)),
        ..request("http://127.0.0.1/")
    }
}

#[tokio::test]
async fn beyond_the_streams_that_a_server_accepts_another_connection_is_opened() {
    let (certified, ca_file) = certificate("127.0.0.1");
    for (streams, connections) in [(1, 8..=8), (3, 3..=8), (250, 1..=8)] {
        let acceptor = acceptor(&certified, &["h2"]);
        let (server, most) = streams_server(acceptor, streams, SHORT / 5).await;
        let client = trusting(&ca_file);
        let url = format!("https://{}/", server.address);
        for _ in 0..3 {
            load(&client, &url, 8, 4, |_| "acme".to_owned()).await;
        }
        let opened = server.accepted();
        assert!(connections.contains(&opened), "{streams} streams: {opened}");
        let most = u32::try_from(most.load(Ordering::SeqCst)).unwrap();
        assert!(most <= streams, "{most} of {streams} streams");
    }
}

#[tokio::test]
async fn requests_of_one_subscriber_share_connections_and_open_few() {
    let (certified, ca_file) = certificate("127.0.0.1");
    let acceptor = acceptor(&certified, &["h2"]);
    let (server, _) = streams_server(acceptor, 50, SHORT / 5).await;
    let client = trusting(&ca_file);
    let url = format!("https://{}/", server.address);
    answered(client.post(to(&url, "acme"), within(LONG)).await);
    load(&client, &url, 100, 3, |_| "acme".to_owned()).await;
    let opened = server.accepted();
    assert!(opened <= 4, "{opened} connections for 100 requests at once");
}

#[tokio::test]
async fn a_subscriber_that_hangs_holds_no_stream_of_another() {
    let (certified, ca_file) = certificate("127.0.0.1");
    let acceptor = acceptor(&certified, &["h2"]);
    let (server, _) = streams_server(acceptor, 4, Duration::ZERO).await;
    let client = trusting(&ca_file);
    let url = format!("https://{}/", server.address);
    let hang = format!("{url}hang");
    answered(client.post(to(&url, "well"), within(LONG)).await);
    let hanging: Vec<_> = (0..40)
        .map(|_| {
            let (client, request) = (client.clone(), to(&hang, "hangs"));
            tokio::spawn(async move { client.post(request, within(LONG)).await })
        })
        .collect();
    let all_hang = async {
        while server.accepted() < 11 {
            tokio::task::yield_now().await;
        }
    };
    let all_hang = tokio::time::timeout(LONG / 2, all_hang).await;
    assert!(all_hang.is_ok(), "{} connections", server.accepted());
    let before = server.accepted();
    for _ in 0..50 {
        let answer = client.post(to(&url, "well"), within(LONG / 2)).await;
        answered(answer);
    }
    assert_eq!(server.accepted(), before, "its own connection is used");
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_zone_that_does_not_respond_delays_no_request_to_another() {
    let server = Server::answering(OK).await;
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let lookups = Lookups::over(Box::new(move |host| {
        if host.ends_with(".dead.example") {
            let held = held.lock().unwrap_or_else(PoisonError::into_inner);
            held.recv().unwrap_or_default();
        }
        Ok(vec!["127.0.0.1:0".parse().unwrap()])
    }));
    let client = HttpClient::new(HttpOptions {
        lookups,
        ..options(&["127.0.0.0/8"])
    })
    .unwrap();
    let port = server.address.port();
    let dead: Vec<_> = (0..100)
        .map(|number| {
            let client = client.clone();
            let url = format!("http://h{number}.dead.example:{port}/");
            tokio::spawn(async move { post(&client, &url).await })
        })
        .collect();
    settle().await;
    for number in 0..20 {
        let request = request(&format!("http://h{number}.well.example:{port}/"));
        answered(client.post(request, within(LONG / 3)).await);
    }
    assert_eq!(server.accepted(), 20, "a dead zone was dialled");
    drop(hold);
    for one in dead {
        answered(one.await.unwrap());
    }
}
