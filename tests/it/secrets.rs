//! Secrets in the records of subscriptions: encrypted with the operator's keys, and replaced while deliveries go on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::scene::{LATER, event, put, start, subscription, wait_until_done, with, world};
use crate::support::{Isolation, Receiver, Seen, World, eventually_true};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn write_keys(path: &Path, keys: &[u8]) {
    let lines: Vec<_> = keys.iter().map(|&key| STANDARD.encode([key; 32])).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// The secrets of the latest record of `s`.
fn stored(world: &World) -> Vec<Value> {
    let records = world.read_all(&world.topics.subscriptions(), Isolation::Committed);
    let last = records.iter().rev().find(|one| one.key_text() == "s");
    last.unwrap().json()["secrets"].as_array().unwrap().clone()
}

/// No record of the topic holds this.
#[track_caller]
fn assert_hidden(world: &World, secret: &str) {
    for record in world.read_all(&world.topics.subscriptions(), Isolation::Committed) {
        let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
        assert!(!value.contains(&secret["whsec_".len()..]), "{value}");
    }
}

/// Whether one of the signatures of a request is that of a secret, as a receiver verifies it.
fn verifies(seen: &Seen, secret: &str) -> bool {
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, seen.header(name).unwrap().parse().unwrap());
    }
    let webhook = standardwebhooks::Webhook::new(secret).unwrap();
    webhook.verify(&seen.body, &headers).is_ok()
}

fn signatures(seen: &Seen) -> usize {
    let header = seen.header("webhook-signature").unwrap_or_default();
    header.split(' ').count()
}

fn publish(world: &World, id: usize) {
    world.produce_event("k", &[], event(&format!("e{id}"), "order.made", "1"));
}

#[test]
fn an_encrypted_secret_signs_and_is_replaced_with_an_overlap() {
    let mut world = world("secrets");
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    write_keys(&keys, &[1]);
    world.flags = vec!["--kek-file".to_owned(), keys.display().to_string()];
    let receiver = Receiver::good();
    let document = with(
        subscription("s", &receiver.url("/s"), &["**"]),
        json!({"secrets": [SECRET]}),
    );
    let apply = || {
        world.run(
            &["subscriptions", "apply", "-f", "-", "-o", "json"],
            &document.to_string(),
        )
    };
    let applied = apply();
    assert!(applied.stdout.contains("created"), "{applied:?}");
    assert!(apply().stdout.contains("unchanged"), "the same document");
    let before = stored(&world);
    assert!(
        before[0].as_str().unwrap().starts_with("enc:v1:"),
        "{before:?}"
    );

    let process = start(&world, &[]);
    publish(&world, 1);
    let seen = receiver.wait_for(1, LATER);
    assert!(verifies(&seen[0], SECRET) && signatures(&seen[0]) == 1);

    // Paused meanwhile: it stays so.
    let paused = world.run(&["subscriptions", "pause", "s"], "");
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    let overlap = "15s";
    let rotated = world.run(
        &[
            "subscriptions",
            "rotate-secret",
            "s",
            "--overlap",
            overlap,
            "-o",
            "jsonl",
        ],
        "",
    );
    assert_eq!(rotated.code, 0, "{}", rotated.stderr);
    let rotated: Value = serde_json::from_str(&rotated.stdout).unwrap();
    let new = rotated["secret"].as_str().unwrap().to_owned();
    let until: jiff::Timestamp = rotated["former_until"].as_str().unwrap().parse().unwrap();
    assert_hidden(&world, &new);
    assert_hidden(&world, SECRET);
    assert_eq!(stored(&world)[1]["until"], rotated["former_until"]);
    let shown = world.run(&["subscriptions", "show", "s", "-o", "json"], "");
    assert!(
        !shown.stdout.contains(&new) && shown.stdout.contains("paused"),
        "{}",
        shown.stdout
    );
    let resumed = world.run(&["subscriptions", "resume", "s"], "");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);

    // Until its end the former one signs too, at its end no more, whether or not anything else happens.
    let (mut sent, mut with_both) = (1, 0);
    eventually_true("the former secret stops signing", LATER, || {
        sent += 1;
        publish(&world, sent);
        let seen = receiver.wait_for(sent, LATER);
        let last = seen.iter().max_by_key(|seen| seen.received).unwrap();
        assert!(verifies(last, &new), "the new one signs at once");
        let second: i64 = last.header("webhook-timestamp").unwrap().parse().unwrap();
        let has_ended = second > until.as_second();
        if second < until.as_second() {
            with_both += usize::from(verifies(last, SECRET) && signatures(last) == 2);
        }
        assert!(
            !has_ended || !verifies(last, SECRET),
            "it signs behind its end"
        );
        has_ended
    });
    assert!(with_both > 0, "none was signed with both");
    drop(process);
}

#[test]
fn a_key_is_replaced_and_without_it_commands_wait_and_nothing_is_written() {
    let mut world = world("keys");
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    write_keys(&keys, &[1]);
    world.flags = vec!["--kek-file".to_owned(), keys.display().to_string()];
    let receiver = Receiver::good();
    let document = |secret: &str| {
        let one = subscription("s", &receiver.url("/s"), &["**"]);
        with(one, json!({"secrets": [secret]})).to_string()
    };
    let run = |command: &[&str], input: &str| {
        let output = world.run(&[&["subscriptions"], command].concat(), input);
        assert!(!output.stderr.contains("MfKQ9r8") && !output.stdout.contains("MfKQ9r8"));
        output
    };
    let apply = |secret: &str| run(&["apply", "-f", "-"], &document(secret));
    assert_eq!(apply(SECRET).code, 0);
    let first = stored(&world)[0].as_str().unwrap().to_owned();

    // The new key before the old one.
    write_keys(&keys, &[2, 1]);
    let encrypted = run(&["encrypt", "--all"], "");
    assert_eq!(encrypted.code, 0, "{}", encrypted.stderr);
    let second = stored(&world)[0].as_str().unwrap().to_owned();
    assert_ne!(first[..23], second[..23], "another key");
    assert!(run(&["encrypt", "s"], "").stdout.contains("unchanged"));

    // With the old one alone the record can be neither written nor used, and is not replaced by a literal.
    write_keys(&keys, &[1]);
    for (code, output) in [
        (1, run(&["encrypt", "s"], "")),
        (1, apply(&second)),
        (1, apply(&first.replace("enc:v1:", "enc:v1:0"))),
    ] {
        assert!(output.code == code || output.code == 2, "{output:?}");
    }
    std::fs::write(&keys, "MfKQ9r8 is no key").unwrap();
    let refused = apply(SECRET);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("line 1 is not a key"),
        "{}",
        refused.stderr
    );
    assert_eq!(stored(&world)[0], second.as_str(), "nothing was written");

    write_keys(&keys, &[1]);
    let process = start(&world, &[]);
    publish(&world, 1);
    let line = process.wait_for_line("which --kek-file does not contain", LATER);
    assert!(line.contains("is encrypted with the key"), "{line}");
    assert!(receiver.seen().is_empty());
    // It is read again by itself.
    write_keys(&keys, &[2]);
    let seen = receiver.wait_until("it is sent", Duration::from_secs(150), |seen| {
        !seen.is_empty()
    });
    assert!(verifies(&seen[0], SECRET));
}

/// An HTTPS server that demands a client certificate, and the subjects of those that it was shown, as DER.
fn demanding(dir: &Path, trusted: &rcgen::Certificate) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(dir.join("server.pem"), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![made.cert.der().clone()], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let shown: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let own = Arc::clone(&shown);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                // Whoever shows none is refused here.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
                own.lock().unwrap().push(certificates[0].to_vec());
                let mut request = vec![0; 8192];
                let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                if stream.read(&mut request).await.is_ok() {
                    stream.write_all(response).await.ok();
                    stream.shutdown().await.ok();
                }
            }
        });
    });
    (address, shown)
}

#[test]
fn endpoints_that_demand_a_certificate_get_the_operators_or_the_subscriptions_own() {
    let mut world = world("certificates");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let name = rcgen::DnType::CommonName;
    root.distinguished_name.push(name, "root of clients");
    let root_key = rcgen::KeyPair::generate().unwrap();
    let authority = root.self_signed(&root_key).unwrap();
    let issuer = rcgen::Issuer::new(root, root_key);
    let client = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![format!("{name}.example")]).unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        std::fs::write(at(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(at(&format!("{name}.key")), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    };
    let (default, own) = (client("default"), client("own"));
    let (address, shown) = demanding(dir.path(), &authority);
    let ca = at("server.pem");
    world.flags = [
        ("--ca-file", ca.as_str()),
        ("--client-certificate", &at("default.crt")),
        ("--client-key", &at("default.key")),
    ]
    .iter()
    .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
    .collect();
    let url = format!("https://{address}/");
    let with_own = json!({
        "client_certificate": format!("file:{}", at("own.crt")),
        "client_key": format!("file:{}", at("own.key")),
    });
    put(
        &world,
        &[
            subscription("default", &url, &["**"]),
            with(subscription("own", &url, &["**"]), with_own),
        ],
    );
    let _process = start(&world, &[]);
    publish(&world, 1);
    wait_until_done(&world);
    let mut shown = shown.lock().unwrap().clone();
    shown.sort();
    let mut expected = [default, own];
    expected.sort();
    assert_eq!(shown, expected, "one request with each");
}
