//! HTTP/2 servers that refuse requests or retire their connections, frame by frame: a library would not let a test
//! choose the last stream of a GOAWAY.

use std::sync::Mutex;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in HPACK's static table.
const STATUS_200: &[u8] = &[0x88];
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What to do with a complete request.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    /// Respond 200.
    Accept,
    /// Reset its stream with this code.
    Reset(u32),
    /// Send GOAWAY with this code and the last accepted stream, then respond to nothing later on this connection.
    Retire(u32),
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Serves one connection; `react` gets the number of the request on this connection, from 1.
async fn serve(
    mut stream: impl AsyncRead + tokio::io::AsyncWrite + Unpin,
    react: impl Fn(usize) -> Reaction,
) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let (mut requests, mut last) = (0, 0_u32);
    let mut is_retired = false;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        if kind == SETTINGS && flags & ACK == 0 {
            stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
        }
        let is_complete = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if !is_complete || is_retired {
            continue;
        }
        requests += 1;
        let answer = match react(requests) {
            Reaction::Accept => {
                last = last.max(id);
                frame(HEADERS, END_STREAM | END_HEADERS, id, STATUS_200)
            }
            Reaction::Reset(code) => frame(RST_STREAM, 0, id, &code.to_be_bytes()),
            Reaction::Retire(code) => {
                is_retired = true;
                let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
                frame(GOAWAY, 0, 0, &payload)
            }
        };
        stream.write_all(&answer).await?;
    }
}

/// A server and a client that trusts it; `react` gets the numbers of the connection and of its request, from 1.
async fn start(
    react: impl Fn(usize, usize) -> Reaction + Send + Sync + 'static,
) -> (Server, HttpClient, String) {
    let (certified, ca_file) = certificate("localhost");
    let acceptor = acceptor(&certified, &["h2"]);
    let react = Arc::new(react);
    let connections = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |stream| {
        let (acceptor, react) = (acceptor.clone(), Arc::clone(&react));
        let connection = connections.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            if let Ok(tls) = acceptor.accept(stream).await {
                // It ends when the client closes it.
                serve(tls, |request| react(connection, request)).await.ok();
            }
        }
    })
    .await;
    let url = format!("https://localhost:{}/", server.address.port());
    (server, trusting(&ca_file), url)
}

async fn post_until_processed(client: &HttpClient, url: &str) -> Reply {
    client
        .post_until_processed(|| request(url), within(LONG))
        .await
}

#[tokio::test]
async fn only_what_certainly_was_not_processed_counts_as_refused() {
    let cases = [
        (Reaction::Reset(REFUSED_STREAM), true),
        (Reaction::Reset(INTERNAL_ERROR), false),
        (Reaction::Retire(NO_ERROR), true),
        (Reaction::Retire(ENHANCE_YOUR_CALM), true),
    ];
    for (reaction, is_refused) in cases {
        let (_server, client, url) = start(move |_, _| reaction).await;
        let Reply::Failed(failure) = post(&client, &url).await else {
            panic!("{reaction:?}: there was a response");
        };
        assert_eq!(
            failure.is_unprocessed, is_refused,
            "{reaction:?}: {failure:?}"
        );
        assert_eq!(failure.class, FailureClass::Other);
    }
}

#[tokio::test]
async fn a_stream_that_was_open_before_the_last_one_of_a_goaway_may_have_been_processed() {
    // The first request is never answered, the second is, the third is refused; then the connection ends.
    let server = Arc::new(Mutex::new(None));
    let (certified, ca_file) = certificate("localhost");
    let acceptor = acceptor(&certified, &["h2"]);
    let seen = Arc::clone(&server);
    let running = Server::start(move |stream| {
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        async move {
            let Ok(mut tls) = acceptor.accept(stream).await else {
                return;
            };
            let mut bytes = vec![0; 4096];
            tls.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            // The preface, settings and the first request arrive; the last stream that it names is that one.
            let mut all: Vec<u8> = Vec::new();
            while !all.windows(7).any(|window| window == b"{\"a\":1}") {
                let read = tls.read(&mut bytes).await.unwrap();
                all.extend(&bytes[..read]);
            }
            let payload = [1_u32.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
            tls.write_all(&frame(GOAWAY, 0, 0, &payload)).await.unwrap();
            tls.shutdown().await.ok();
            *seen.lock().unwrap() = Some(());
        }
    })
    .await;
    let url = format!("https://localhost:{}/", running.address.port());
    let Reply::Failed(failure) = post(&trusting(&ca_file), &url).await else {
        panic!("there was a response");
    };
    assert!(!failure.is_unprocessed, "{failure:?}");
    assert!(server.lock().unwrap().is_some());
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_at_once() {
    let (_server, client, url) = start(|_, request| match request % 2 {
        1 => Reaction::Reset(REFUSED_STREAM),
        _ => Reaction::Accept,
    })
    .await;
    for _ in 0..20 {
        let began = clock::instant();
        assert_eq!(
            answered(post_until_processed(&client, &url).await).status,
            200
        );
        // Without a delay: the first is 100 ms before jitter.
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_server_that_retires_its_connections_gets_every_request_once() {
    const EACH: usize = 10;
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    let (server, client, url) = start(move |_, request| {
        if request > EACH {
            return Reaction::Retire(NO_ERROR);
        }
        counted.fetch_add(1, Ordering::SeqCst);
        Reaction::Accept
    })
    .await;
    let tasks = (0..8).map(|_| {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move {
            for _ in 0..25 {
                let reply = post_until_processed(&client, &url).await;
                assert_eq!(answered(reply).status, 200);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 200);
    assert!(server.accepted() >= 200 / EACH);
}

#[tokio::test]
async fn a_server_that_refuses_everything_is_given_up_for_now() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let (_server, client, url) = start(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Reaction::Reset(REFUSED_STREAM)
    })
    .await;
    let Reply::Failed(failure) = post_until_processed(&client, &url).await else {
        panic!("there was a response");
    };
    assert!(failure.is_unprocessed);
    assert_eq!(requests.load(Ordering::SeqCst), 6);
    // The deadline is one for all.
    let reply = client
        .post_until_processed(|| request(&url), within(Duration::from_millis(50)))
        .await;
    assert!(matches!(reply, Reply::Failed(_)));
    assert!(requests.load(Ordering::SeqCst) <= 8);
}
