//! The way out: a proxy that wants a login, and whose faults are not the endpoint's; and who may read the pages.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use crate::scene::{
    LATER, event, put, start, subscription, wait_for_dead_letters, wait_until_done, with, world,
};
use crate::support::{Receiver, World, eventually_true};

/// A proxy for the user `me` with the password `right-s3cret`.
struct Proxy {
    url: String,
    /// The targets of its tunnels.
    targets: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let targets = Arc::default();
        let own = Arc::clone(&targets);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, targets) = (stream.unwrap(), Arc::clone(&own));
                std::thread::spawn(move || tunnel(stream, &targets));
            }
        });
        Self { url, targets }
    }

    fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }
}

fn tunnel(client: TcpStream, targets: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let mut client = client;
    let login = format!(
        "proxy-authorization: Basic {}",
        STANDARD.encode("me:right-s3cret")
    );
    if !head.contains(&login) {
        write!(client, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").unwrap();
        return;
    }
    let target = head[0].split(' ').nth(1).unwrap().to_owned();
    let server = TcpStream::connect(&target);
    targets.lock().unwrap().push(target);
    let Ok(mut server) = server else {
        write!(client, "HTTP/1.1 502 Bad Gateway\r\n\r\n").unwrap();
        return;
    };
    write!(client, "HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    let (mut from_server, mut to_client) = (server.try_clone().unwrap(), client);
    let back = std::thread::spawn(move || {
        std::io::copy(&mut from_server, &mut to_client).ok();
        to_client.shutdown(std::net::Shutdown::Both).ok();
    });
    std::io::copy(&mut reader, &mut server).ok();
    server.shutdown(std::net::Shutdown::Both).ok();
    back.join().unwrap();
}

/// The flags of a proxy whose password is in a file.
fn flags(proxy: &Proxy, password: &Path) -> Vec<String> {
    [
        "--egress-proxy",
        &proxy.url,
        "--egress-proxy-user",
        "me",
        "--egress-proxy-password",
        &format!("file:{}", password.display()),
    ]
    .map(str::to_owned)
    .into()
}

fn one(receiver: &Receiver, world: &World, id: &str) {
    let url = format!("http://localhost:{}/{id}", receiver.port());
    let fields = json!({"retry_schedule": []});
    put(world, &[with(subscription(id, &url, &["**"]), fields)]);
}

#[test]
fn a_proxy_gets_the_address_that_was_checked_and_its_faults_spend_no_attempt() {
    let world = world("proxy");
    let proxy = Proxy::start();
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "wrong-s3cret").unwrap();
    let receiver = Receiver::good();
    one(&receiver, &world, "s");
    // Nothing listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("http://{}/", closed.local_addr().unwrap());
    drop(closed);
    let flags = flags(&proxy, password.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let process = start(
        &world,
        &[&flags[..], &["--log", "hookstream=debug,info"]].concat(),
    );
    world.produce_event("k", &[], event("e", "order.made", "1"));
    let line = process.wait_for_line("status 407", LATER);
    assert!(
        line.contains("--egress-proxy-password") && !line.contains("s3cret"),
        "{line}"
    );
    assert!(receiver.seen().is_empty());
    std::fs::write(password.path(), "right-s3cret\n").unwrap();
    receiver.wait_for(1, LATER);
    wait_until_done(&world);
    wait_for_dead_letters(&world, 0);
    let seen = receiver.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        seen[0].header("hookstream-attempt"),
        Some("1"),
        "the proxy's faults spend no attempt"
    );
    let target = &proxy.targets()[0];
    let is_address = target.parse::<std::net::SocketAddr>().is_ok();
    assert!(is_address, "{target} is the address that was checked");

    // An endpoint that the proxy cannot reach has failed.
    let fields = json!({"retry_schedule": []});
    put(
        &world,
        &[with(subscription("t", &nowhere, &["t.*"]), fields)],
    );
    world.produce_event("k", &[], event("e2", "t.made", "1"));
    let dead = wait_for_dead_letters(&world, 1);
    let dead = dead[0].to_string();
    assert!(dead.contains("502"), "{dead}");
}

#[test]
fn a_proxy_looks_names_up_only_where_that_is_asked_for() {
    let world = world("proxy-lookups");
    let proxy = Proxy::start();
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "right-s3cret").unwrap();
    let receiver = Receiver::good();
    one(&receiver, &world, "s");
    let flags = flags(&proxy, password.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let process = start(&world, &[&flags[..], &["--egress-proxy-lookups"]].concat());
    world.produce_event("k", &[], event("e", "order.made", "1"));
    receiver.wait_for(1, LATER);
    assert_eq!(proxy.targets()[0], format!("localhost:{}", receiver.port()));
    drop(process);
}

/// The status of a GET, with a bearer token if there is one.
fn status(port: u16, path: &str, token: Option<&str>) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let login = token.map_or_else(String::new, |token| {
        format!("authorization: Bearer {token}\r\n")
    });
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\n{login}connection: close\r\n\r\n"
    )
    .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn pages_need_a_token_and_probes_do_not() {
    const TOKEN: &str = "page-s3cret-0123456789";
    let world = world("pages");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "short").unwrap();
    let path = file.path().to_str().unwrap();
    let refused = world.run(
        &[
            "run",
            "--http-listen",
            "127.0.0.1:0",
            "--http-token-file",
            path,
        ],
        "",
    );
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("shorter than"),
        "{}",
        refused.stderr
    );
    std::fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
    let process = start(&world, &["--http-token-file", path]);
    let port = process.http_port();
    for page in ["/", "/metrics", "/lag", "/nothing"] {
        assert_eq!(status(port, page, None), 401, "{page}");
        assert_eq!(status(port, page, Some("wrong")), 401, "{page}");
    }
    for page in ["/", "/metrics", "/lag"] {
        // The backlog is known after a moment.
        eventually_true(page, LATER, || status(port, page, Some(TOKEN)) == 200);
    }
    assert_eq!(status(port, "/livez", None), 200);
    assert_eq!(status(port, "/readyz", None), 200);
    let logged = process.stderr().join("\n");
    assert!(!logged.contains(TOKEN), "the token is logged");
}

#[test]
fn the_pages_are_served_over_tls_with_a_certificate() {
    let world = world("pages-tls");
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (crt, pem) = (dir.path().join("crt"), dir.path().join("key"));
    std::fs::write(&crt, certificate.pem()).unwrap();
    std::fs::write(&pem, key.serialize_pem()).unwrap();
    let process = world.spawn(
        "run",
        &[
            "--http-certificate",
            crt.to_str().unwrap(),
            "--http-key",
            pem.to_str().unwrap(),
        ],
    );
    let line = process.wait_for_line("listening http=", LATER);
    let address = line.split("http=").nth(1).unwrap().trim().to_owned();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect(address).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, tcp);
    write!(
        tls,
        "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut line = String::new();
    BufReader::new(tls).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
}
