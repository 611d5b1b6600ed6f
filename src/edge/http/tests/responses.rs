//! Responses that real servers send: judged by their status whatever else is wrong with them.

use super::*;

fn large() -> String {
    format!("x-large: {}\r\n", "y".repeat(64 * 1024))
}

fn many() -> String {
    "x: y\r\n".repeat(MAX_HEADERS + 1)
}

/// Heads that hyper reads, all of them with an empty body.
fn odd_heads() -> Vec<String> {
    let lines = [
        "Set-Cookie: a=\u{1}b\r\n",
        "x-folded: one\r\n two\r\n\tthree\r\n",
        "x-folded:\r\n one\r\n",
        "Server : old\r\n",
        "a line without a colon\r\n",
        ": no name\r\n",
        "b\u{e4}d name: x\r\n",
        "x-utf8: gr\u{fc}n\r\n",
        " begins with a space: x\r\n",
    ];
    let mut heads: Vec<_> = lines
        .iter()
        .map(|line| format!("HTTP/1.1 200 OK\r\n{line}content-length: 0\r\n\r\n"))
        .collect();
    heads.extend(
        [
            "HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 gr\u{fc}n\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
            "\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.1 103 Early\r\n\r\nHTTP/1.1 102 Go\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
        ]
        .map(str::to_owned),
    );
    heads
}

/// Heads that hyper cannot read, with the status that counts.
fn unreadable_heads() -> Vec<(String, u16)> {
    let mut heads = Vec::new();
    for status in [200, 204, 410, 400, 503] {
        for lines in [
            many(),
            large(),
            "a: \0\r\n".to_owned(),
            "a: b\rc\r\n".to_owned(),
            "content-length: 1\r\ncontent-length: 2\r\n".to_owned(),
            "content-length: many\r\n".to_owned(),
            "content-length: -1\r\n".to_owned(),
            "content-length: 99999999999999999999999\r\n".to_owned(),
        ] {
            // 204 has no body, whatever its head says.
            if status != 204 || !lines.starts_with("content") {
                heads.push((format!("HTTP/1.1 {status} X\r\n{lines}\r\n"), status));
            }
        }
    }
    let early = format!("HTTP/1.1 103 Early\r\n{}\r\n", many());
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let large_early = format!("HTTP/1.1 103 Early\r\n{}\r\n{ok}", large());
    let reason = format!("HTTP/1.1 200 {}\r\n\r\n", "y".repeat(64 * 1024));
    heads.extend([
        (format!("{early}{ok}"), 200),
        (format!("{early}{early}HTTP/1.1 410 Gone\r\n\r\n"), 410),
        (large_early, 200),
        (reason, 200),
        (
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
            200,
        ),
        (
            "HTTP/1.1  200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
            200,
        ),
        (
            "HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
            200,
        ),
        (
            "HTTP/1.1 200 O\u{1}K\r\ncontent-length: 0\r\n\r\n".to_owned(),
            200,
        ),
    ]);
    heads
}

#[tokio::test]
async fn odd_header_lines_change_nothing() {
    let client = client();
    for head in odd_heads() {
        let server = Server::answering(head.clone()).await;
        for _ in 0..3 {
            let answer = answered(post(&client, &server.url()).await);
            assert!(matches!(answer.status, 200 | 204), "{head:?}");
            assert!(answer.rest.is_none(), "{head:?}");
            settle().await;
        }
        assert_eq!(server.accepted(), 1, "used again after {head:?}");
    }
}

#[tokio::test]
async fn the_status_counts_where_the_rest_cannot_be_read_and_the_connection_is_closed() {
    let client = client();
    for (head, status) in unreadable_heads() {
        let shown = head.get(..80).unwrap_or(&head);
        let server = Server::answering(head.clone()).await;
        for number in 1..=3 {
            let answer = answered(post(&client, &server.url()).await);
            assert_eq!(answer.status, status, "{shown:?}");
            assert!(answer.rest.is_none(), "{shown:?}");
            settle().await;
            assert_eq!(server.accepted(), number, "{shown:?}");
        }
    }
}

/// RFC 9112, section 8: what a response means may depend on headers that have not come.
#[tokio::test]
async fn a_head_that_ends_with_its_connection_is_no_response() {
    let client = client();
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 410 Gone\r\n",
        "HTTP/1.1 200 ",
        "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 500 No\r\nx",
    ] {
        let server = Server::closing(head).await;
        let reply = post(&client, &server.url()).await;
        assert!(matches!(reply, Reply::Failed(_)), "{head:?}");
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_changes_nothing() {
    let client = client();
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nbad trailer\r\n\r\n",
        "2\r\nhello\r\n0\r\n\r\n",
        "5\r\nhi",
    ] {
        let server = Server::closing(format!("{head}{body}")).await;
        let answer = answered(post(&client, &server.url()).await);
        assert_eq!(answer.status, 200, "{body:?}");
        answer.rest.unwrap().drain(within(LONG)).await;
        answered(post(&client, &server.url()).await);
        assert_eq!(server.accepted(), 2, "{body:?}");
    }
}

#[tokio::test]
async fn what_comes_instead_of_a_status_line_is_no_response() {
    for bytes in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "<html>HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 103 Early\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let server = Server::answering(bytes).await;
        let (class, error) = failed(post(&client(), &server.url()).await);
        assert_eq!(class, FailureClass::Other, "{bytes:?}");
        assert_eq!(error, "the response was not HTTP", "{bytes:?}");
    }
}

#[tokio::test]
async fn retry_after_of_a_head_that_cannot_be_read_counts() {
    let client = client();
    for lines in [many(), large(), "a: \0\r\n".to_owned()] {
        for status in [429, 503] {
            let head = format!(
                "HTTP/1.1 {status} Slow\r\nRetry-After: 8\r\nretry-after: 120\r\n{lines}\r\n"
            );
            let server = Server::answering(head).await;
            let answer = answered(post(&client, &server.url()).await);
            assert_eq!(answer.status, status);
            assert_eq!(answer.retry_after, Some(Duration::from_secs(120)));
        }
    }
}

/// Responds to each request with `head`, and sends `late` a moment after it, as long as the connection is open.
async fn with_late_bytes(head: &'static str, late: &'static str) -> (Server, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let server = Server::start(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            stream.set_nodelay(true).unwrap();
            while read_request(&mut stream).await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                let written = stream.write_all(head.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                if written.is_err() || stream.write_all(late.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (server, requests)
}

#[tokio::test]
async fn an_endless_row_of_interim_responses_or_blank_lines_ends_before_the_deadline() {
    for (piece, is_named) in [
        ("HTTP/1.1 103 Early\r\n\r\n", true),
        ("\r\n", false),
        ("HTTP/1.1 103 Early\r\nlink: a\r\n\r\n", true),
    ] {
        let row = piece.repeat(2 * 1024 * 1024 / piece.len());
        let server = Server::answering(row).await;
        let Reply::Failed(failure) = post(&client(), &server.url()).await else {
            panic!("there is no response");
        };
        assert_eq!(failure.class, FailureClass::Other, "{failure:?}");
        assert!(
            !is_named || failure.error.contains("interim"),
            "{failure:?}"
        );
    }
    let few = "HTTP/1.1 103 Early\r\n\r\n".repeat(10);
    let server = Server::answering(format!(
        "{few}HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"
    ));
    let answer = answered(post(&client(), &server.await.url()).await);
    assert_eq!(answer.status, 410);
}

#[tokio::test]
async fn a_connection_is_closed_after_a_body_that_its_status_forbids() {
    for (head, late) in [
        ("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", "hi"),
        (
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\n\r\n",
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
            "hi",
        ),
        (
            "HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "hi",
        ),
    ] {
        let (server, requests) = with_late_bytes(head, late).await;
        let client = client();
        for _ in 0..30 {
            let answer = answered(post(&client, &server.url()).await);
            assert!(matches!(answer.status, 200 | 204 | 304), "{head:?}");
        }
        let requests = requests.load(Ordering::SeqCst);
        assert_eq!((requests, server.accepted()), (30, 30), "{head:?}");
    }
}

/// Reads the head of a request, responds, and closes while the body is on its way.
async fn respond_early(
    stream: &mut (impl AsyncRead + tokio::io::AsyncWrite + Unpin),
    response: &str,
) {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            continue;
        }
        return;
    }
    stream.write_all(response.as_bytes()).await.ok();
    stream.flush().await.ok();
}

fn large_request(url: &str) -> Request {
    Request {
        body: vec![b'x'; 12 * 1024 * 1024].into(),
        ..request(url)
    }
}

const EARLY: [(&str, u16); 3] = [
    ("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n", 413),
    (
        "HTTP/1.1 401 Who\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno",
        401,
    ),
    (
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Slow\r\nretry-after: 7\r\n\r\n",
        429,
    ),
];

#[tokio::test]
async fn a_response_before_the_body_is_through_counts() {
    for (response, status) in EARLY {
        let server = Server::start(move |mut stream| async move {
            respond_early(&mut stream, response).await;
        })
        .await;
        let client = client();
        for _ in 0..20 {
            let reply = client
                .post(large_request(&server.url()), within(LONG))
                .await;
            let answer = answered(reply);
            assert_eq!(answer.status, status);
            let wait = (status == 429).then_some(Duration::from_secs(7));
            assert_eq!(answer.retry_after, wait);
        }
        assert_eq!(server.accepted(), 20, "sent again by itself");
    }
}

#[tokio::test]
async fn a_response_before_the_body_is_through_counts_over_tls_too() {
    let (certified, ca_file) = certificate("localhost");
    let acceptor = acceptor(&certified, &["http/1.1"]);
    for (response, status) in EARLY {
        let acceptor = acceptor.clone();
        let server = Server::start(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                // Or else the response waits for the acknowledgement of the session tickets, and the close discards it.
                stream.set_nodelay(true).unwrap();
                let mut tls = acceptor.accept(stream).await.unwrap();
                respond_early(&mut tls, response).await;
            }
        })
        .await;
        let client = trusting(&ca_file);
        let url = format!("https://localhost:{}/", server.address.port());
        for _ in 0..10 {
            let reply = client.post(large_request(&url), within(LONG)).await;
            assert_eq!(answered(reply).status, status);
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_body_without_a_response_is_a_failure() {
    for (part, expected) in [("", false), ("HTTP/1.1 4", true)] {
        let server = Server::start(move |mut stream| async move {
            respond_early(&mut stream, part).await;
        })
        .await;
        let reply = client()
            .post(large_request(&server.url()), within(LONG))
            .await;
        assert_eq!(heard(&reply), expected, "{part:?}");
        let (class, error) = failed(reply);
        assert_eq!(class, FailureClass::Other);
        assert!(error.starts_with("the connection "), "{error}");
    }
}

/// Responds with `lines`, and reports when each connection ends.
async fn hinting(lines: &'static str) -> (Server, mpsc::UnboundedReceiver<Instant>) {
    let (ended, seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let ended = ended.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                let head = format!("HTTP/1.1 200 OK\r\n{lines}content-length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
            }
            ended.send(Instant::now()).unwrap();
        }
    })
    .await;
    (server, seen)
}

#[tokio::test]
async fn an_idle_connection_is_left_before_its_server_closes_it() {
    let ms = Duration::from_millis;
    for (lines, at_least) in [
        ("Keep-Alive: timeout=0\r\n", 0),
        ("Keep-Alive: timeout=1\r\n", 400),
        ("Keep-Alive: timeout=2, max=50\r\n", 900),
        ("connection: keep-alive\r\n", 1200),
    ] {
        let (server, mut ended) = hinting(lines).await;
        let client = client();
        for _ in 0..2 {
            answered(post(&client, &server.url()).await);
            settle().await;
        }
        let idle = Instant::now();
        let lasted = ended.recv().await.unwrap().duration_since(idle);
        assert!(lasted >= ms(at_least), "{lines:?}: {lasted:?}");
        // Far less than the minute of other connections, on a busy machine too.
        assert!(lasted < LONG / 2, "{lines:?}: {lasted:?}");
    }
}

#[tokio::test]
async fn a_connection_takes_no_more_requests_than_its_server_accepts() {
    for (lines, each) in [
        ("Keep-Alive: timeout=60, max=0\r\n", 1),
        ("Keep-Alive: timeout=60, max=2\r\n", 3),
    ] {
        let (server, _ended) = hinting(lines).await;
        let client = client();
        for _ in 0..each * 4 {
            answered(post(&client, &server.url()).await);
            settle().await;
        }
        assert_eq!(server.accepted(), 4, "{lines:?}");
    }
}

/// An HTTP/2 server whose responses have `count` headers of `size` bytes. A path that begins with `/plain` gets none, after
/// `go`.
async fn with_headers(count: usize, size: usize) -> (Server, HttpClient, String, Arc<Notify>) {
    let (certified, ca_file) = certificate("localhost");
    let acceptor = acceptor(&certified, &["h2"]);
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let server = Server::start(move |stream| {
        let (acceptor, wait) = (acceptor.clone(), Arc::clone(&wait));
        async move {
            let tls = acceptor.accept(stream).await.unwrap();
            let service = service_fn(move |request: http::Request<Incoming>| {
                let wait = Arc::clone(&wait);
                async move {
                    let mut response = http::Response::new(Full::new(Bytes::new()));
                    if request.uri().path() == "/plain" {
                        wait.notified().await;
                        return Ok::<_, std::convert::Infallible>(response);
                    }
                    *response.status_mut() = http::StatusCode::GONE;
                    for number in 0..count {
                        let name = format!("x-{number}").parse::<http::HeaderName>().unwrap();
                        let value = "y".repeat(size).parse().unwrap();
                        response.headers_mut().insert(name, value);
                    }
                    Ok(response)
                }
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tls), service)
                .await
                .ok();
        }
    })
    .await;
    let url = format!("https://localhost:{}/", server.address.port());
    (server, trusting(&ca_file), url, go)
}

#[tokio::test]
async fn the_status_counts_with_many_and_large_headers_in_http2() {
    for (count, size) in [(2000, 10), (40, 1000), (2000, 100), (1, 200_000)] {
        let (server, client, url, _) = with_headers(count, size).await;
        for _ in 0..3 {
            let answer = answered(post(&client, &url).await);
            assert_eq!(answer.status, 410, "{count} headers of {size} bytes");
        }
        assert_eq!(server.accepted(), 1, "{count} headers of {size} bytes");
    }
}

#[tokio::test]
async fn too_many_headers_in_http2_harm_no_other_request() {
    let (server, client, url, go) = with_headers(5000, 100).await;
    let plain = format!("{url}plain");
    // The server's limit of streams is known after the first request.
    go.notify_one();
    answered(client.post(to(&plain, "acme"), within(LONG)).await);
    let (waiting, late) = (client.clone(), plain.clone());
    let same = tokio::spawn(async move { client_post(&waiting, &late, "acme").await });
    settle().await;
    let Reply::Failed(failure) = client.post(to(&url, "acme"), within(LONG)).await else {
        panic!("there was a response");
    };
    assert_eq!(failure.class, FailureClass::Other);
    assert!(!failure.is_unprocessed, "it was processed: {failure:?}");
    assert!(failure.heard);
    go.notify_one();
    assert_eq!(answered(same.await.unwrap()).status, 200);
    assert_eq!(server.accepted(), 1);
}

async fn client_post(client: &HttpClient, url: &str, subscriber: &str) -> Reply {
    client.post(to(url, subscriber), within(LONG)).await
}

#[tokio::test]
async fn a_response_before_the_body_is_through_counts_in_http2() {
    let (certified, ca_file) = certificate("localhost");
    let acceptor = acceptor(&certified, &["h2"]);
    let server = Server::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let tls = acceptor.accept(stream).await.unwrap();
            // Responds without reading the body, and then resets the stream (RFC 9113, section 8.1).
            let service = service_fn(|_: http::Request<Incoming>| async {
                let mut response = http::Response::new(Full::new(Bytes::new()));
                *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
                Ok::<_, std::convert::Infallible>(response)
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tls), service)
                .await
                .ok();
        }
    })
    .await;
    let client = trusting(&ca_file);
    let url = format!("https://localhost:{}/", server.address.port());
    for _ in 0..10 {
        let reply = client.post(large_request(&url), within(LONG)).await;
        assert_eq!(answered(reply).status, 413);
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_request_with_options_returns_its_headers_and_others_do_not() {
    let (sent, mut seen) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let sent = sent.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                sent.send(request).unwrap();
                let head =
                    "HTTP/1.1 200 OK\r\nwebhook-allowed-rate: 60\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
            }
        }
    });
    let server = server.await;
    let client = client();
    let empty = || Request {
        body: Bytes::new(),
        ..request(&server.url())
    };
    let answer = answered(
        client
            .exchange(http::Method::OPTIONS, empty(), within(LONG))
            .await,
    );
    let headers = answer.headers.unwrap();
    assert_eq!(headers["webhook-allowed-rate"], "60");
    let line = seen.recv().await.unwrap();
    assert!(
        line.starts_with("OPTIONS /hook?token=s3cret HTTP/1.1\r\n"),
        "{line}"
    );
    let answer = answered(post(&client, &server.url()).await);
    assert!(answer.headers.is_none());
    assert!(seen.recv().await.unwrap().starts_with("POST "));
    assert_eq!(server.accepted(), 1, "both on one connection");

    let guarded = HttpClient::new(options(&[])).unwrap();
    let (class, _) = failed(
        guarded
            .exchange(http::Method::OPTIONS, empty(), within(LONG))
            .await,
    );
    assert_eq!((class, server.accepted()), (FailureClass::Egress, 1));
}
