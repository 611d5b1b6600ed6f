//! A registry that responds as it is told to, on loopback.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::config::{Layers, Machine, RegistryAuth, SchemaRegistrySettings, SecretRef, Source};
use crate::edge::schema_registry::client::Client;

const SOON: Duration = Duration::from_secs(30);

/// A request: path and authorization.
type Seen = (String, Option<String>);

/// Responds to each request with what `answer` returns for its path, status and body; closes each connection.
fn stub(
    answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static,
) -> (String, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/base", listener.local_addr().unwrap());
    let (sender, seen) = channel();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, sender) = (Arc::clone(&answer), sender.clone());
            std::thread::spawn(move || respond(stream.unwrap(), &*answer, &sender));
        }
    });
    (url, seen)
}

fn respond(stream: impl Read + Write, answer: &dyn Fn(&str) -> (u16, String), seen: &Sender<Seen>) {
    let mut stream = BufReader::new(stream);
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        // A client that does not trust the server ends the handshake.
        let read = stream.read_line(&mut line).unwrap_or_default();
        (read > 2).then(|| line.trim_end().to_owned())
    });
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let mut authorization = None;
    for line in lines {
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            authorization = Some(value.to_owned());
        }
    }
    // A test that does not look may be over.
    seen.send((path.clone(), authorization)).ok();
    let (status, body) = answer(&path);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\nlocation: /\r\n\r\n"
    );
    // The client may have given up.
    let stream = stream.get_mut();
    stream.write_all(format!("{head}{body}").as_bytes()).ok();
    stream.flush().ok();
}

/// The same over TLS, with a certificate for `name`; returns the port and the file that makes the certificate trusted.
fn tls_stub(name: &str) -> (u16, tempfile::NamedTempFile) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(certified.cert.pem().as_bytes()).unwrap();
    let key = certified.signing_key.serialize_der();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, _) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let answer = |_: &str| (200, STRING.to_owned());
            respond(
                rustls::StreamOwned::new(tls, stream.unwrap()),
                &answer,
                &seen,
            );
        }
    });
    (port, file)
}

fn client(url: &str, auth: Option<RegistryAuth>) -> Result<Client, SetupError> {
    let settings = SchemaRegistrySettings {
        url: url.to_owned(),
        auth,
        ca_file: None,
    };
    Client::new(&settings, None)
}

fn registry(url: &str) -> (SchemaRegistry, Receiver<Asked>) {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "localhost:9092");
    layers.give("schema-registry", Source::Flag, url);
    let machine = Machine {
        host_name: "replica-0".to_owned(),
        cores: 2,
    };
    let settings = Settings::check(&layers, &machine).unwrap();
    let (sender, asked) = channel();
    let sender = Mutex::new(sender);
    let observe = move |one| {
        sender.lock().unwrap().send(one).ok();
    };
    (
        SchemaRegistry::start(&settings, observe).unwrap().unwrap(),
        asked,
    )
}

fn asked(client: &Client, id: SchemaId) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(client.schema(id))
}

const STRING: &str = r#"{"schema":"\"string\""}"#;
const SEVEN: SchemaId = SchemaId::Number(7);

#[test]
fn only_40403_means_that_there_is_no_such_schema() {
    let cases = [
        (404, r#"{"error_code":40403,"message":"not found"}"#, None),
        (
            404,
            r#"{"error_code":40401}"#,
            Some("status 404, error code 40401"),
        ),
        (
            404,
            "<html>",
            Some("status 404; check the path of --schema-registry, such as /apis/ccompat/v7"),
        ),
        (
            500,
            r#"{"error_code":40403}"#,
            Some("status 500, error code 40403"),
        ),
        (503, "", Some("status 503")),
        (302, "", Some("status 302; redirects are not followed")),
        (
            401,
            r#"{"error_code":40101}"#,
            Some(
                "status 401, error code 40101; check --schema-registry-user and --schema-registry-password, or --schema-registry-token",
            ),
        ),
        (
            403,
            "",
            Some(
                "status 403; check --schema-registry-user and --schema-registry-password, or --schema-registry-token",
            ),
        ),
        (
            200,
            "<html>",
            Some("the response is not a schema; is this the URL of a registry?"),
        ),
    ];
    for (status, body, expected) in cases {
        let (url, _seen) = stub(move |_| (status, body.to_owned()));
        match (asked(&client(&url, None).unwrap(), SEVEN), expected) {
            (Answer::Missing, None) => {}
            (Answer::Failed(reason), Some(expected)) => {
                assert_eq!(reason, format!("GET /schemas/ids/7: {expected}"));
            }
            (answer, _) => panic!("{status} {body}: {answer:?}"),
        }
    }
}

#[test]
fn a_registry_without_tls_behind_an_https_url_is_named_as_that() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert!(stream.read(&mut [0; 16]).unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .unwrap();
        }
    });
    let answer = asked(&client(&url, None).unwrap(), SEVEN);
    let expected = "the server does not speak TLS on this port";
    assert!(
        matches!(&answer, Answer::Failed(reason) if reason.contains(expected)),
        "{answer:?}"
    );
}

#[test]
fn a_registry_that_is_down_or_says_too_much_is_a_failure() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let answer = asked(&client(&url, None).unwrap(), SEVEN);
    assert!(
        matches!(&answer, Answer::Failed(reason) if reason.contains("Connection refused")),
        "{answer:?}"
    );
    let (url, _seen) = stub(|_| (200, "x".repeat(13 * 1024 * 1024)));
    let answer = asked(&client(&url, None).unwrap(), SEVEN);
    assert!(
        matches!(&answer, Answer::Failed(reason) if reason.contains("length limit exceeded")),
        "{answer:?}"
    );
}

#[test]
fn a_registry_over_tls_needs_a_trusted_certificate_for_its_name() {
    let (port, file) = tls_stub("localhost");
    let other = tls_stub("other.example");
    let ask = |host: &str, port: u16, ca_file: Option<PathBuf>, general: Option<PathBuf>| {
        let settings = SchemaRegistrySettings {
            url: format!("https://{host}:{port}"),
            auth: None,
            ca_file,
        };
        asked(&Client::new(&settings, general.as_deref()).unwrap(), SEVEN)
    };
    let trusted = Some(file.path().to_owned());
    let without = [None, Some(other.1.path().to_owned())];
    // Its own file, or that of all connections.
    for answer in [
        ask("localhost", port, trusted.clone(), without[1].clone()),
        ask("localhost", port, None, trusted),
    ] {
        assert!(matches!(answer, Answer::Found(_)), "{answer:?}");
    }
    let reason = |answer| match answer {
        Answer::Failed(reason) => reason,
        answer => panic!("{answer:?}"),
    };
    // The other certificate has the same issuer's name, so its signature is what differs.
    for (ca_file, expected) in without.into_iter().zip([
        "the server's certificate was not issued by a trusted authority",
        "a signature of the server, or of its certificate, is wrong",
    ]) {
        let reason = reason(ask("localhost", port, ca_file, None));
        assert_eq!(
            reason,
            format!(
                "GET /schemas/ids/7: the tls handshake failed: {expected}; --schema-registry-ca-file holds the certificates to trust"
            )
        );
    }
    let reason = reason(ask(
        "localhost",
        other.0,
        Some(other.1.path().to_owned()),
        None,
    ));
    assert!(
        reason.contains("the server's certificate is not for localhost, but for other.example"),
        "{reason}"
    );
}

#[test]
fn a_guid_is_looked_up_by_its_own_path() {
    let (url, seen) = stub(|_| (200, STRING.to_owned()));
    let id = SchemaId::Guid([0xab; 16]);
    let answer = asked(&client(&url, None).unwrap(), id);
    assert!(matches!(answer, Answer::Found(_)), "{answer:?}");
    let (path, authorization) = seen.recv_timeout(SOON).unwrap();
    assert_eq!(
        path,
        "/base/schemas/guids/abababab-abab-abab-abab-abababababab"
    );
    assert_eq!(authorization, None);
}

#[test]
fn references_are_resolved_each_once_and_before_what_needs_them() {
    let answer = |path: &str| {
        let name = |name: &str, subject: &str| {
            format!(r#"{{"name":"{name}","subject":"{subject}","version":3}}"#)
        };
        let references = match path {
            "/base/schemas/ids/7" => {
                format!("{},{}", name("a", "s/a ?"), name("b", "b"))
            }
            "/base/subjects/s%2Fa%20%3F/versions/3?deleted=true" => name("b", "b"),
            "/base/subjects/b/versions/3?deleted=true" => name("a", "s/a ?"),
            other => panic!("{other}"),
        };
        let body =
            format!(r#"{{"schema":"{path}","schemaType":"PROTOBUF","references":[{references}]}}"#);
        (200, body)
    };
    let (url, _seen) = stub(answer);
    let Answer::Found(definition) = asked(&client(&url, None).unwrap(), SEVEN) else {
        panic!("not found");
    };
    let names: Vec<_> = definition.references.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn a_missing_reference_is_no_missing_schema() {
    let answer = |path: &str| match path {
        "/base/schemas/ids/7" => (
            200,
            r#"{"schema":"\"b\"","references":[{"name":"b","subject":"b","version":1}]}"#
                .to_owned(),
        ),
        _ => (404, r#"{"error_code":40403}"#.to_owned()),
    };
    let (url, _seen) = stub(answer);
    let answer = asked(&client(&url, None).unwrap(), SEVEN);
    assert!(
        matches!(&answer, Answer::Failed(reason) if reason == "GET /subjects/b/versions/1?deleted=true: status 404, error code 40403"),
        "{answer:?}"
    );
}

#[test]
fn credentials_are_sent_and_read_again_and_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "hunter2\n").unwrap();
    let (url, seen) = stub(|_| (401, String::new()));
    let bearer = RegistryAuth::Bearer(SecretRef::File(file.clone()));
    let one = client(&url, Some(bearer)).unwrap();
    let answer = asked(&one, SEVEN);
    let sent = seen.recv_timeout(SOON).unwrap().1;
    assert_eq!(sent.as_deref(), Some("Bearer hunter2"));
    std::fs::write(&file, "hunter3").unwrap();
    asked(&one, SEVEN);
    let sent = seen.recv_timeout(SOON).unwrap().1;
    assert_eq!(sent.as_deref(), Some("Bearer hunter3"));
    let printed = format!("{answer:?} {one:?}");
    assert!(!printed.contains("hunter"), "{printed}");
    std::fs::remove_file(&file).unwrap();
    let answer = asked(&one, SEVEN);
    assert!(
        matches!(&answer, Answer::Failed(reason) if reason.contains("--schema-registry-token: cannot read")),
        "{answer:?}"
    );
    std::fs::write(&file, "pass").unwrap();
    let basic = RegistryAuth::Basic {
        user: "me".to_owned(),
        password: SecretRef::File(file),
    };
    asked(&client(&url, Some(basic)).unwrap(), SEVEN);
    let sent = seen.recv_timeout(SOON).unwrap().1;
    assert_eq!(sent.as_deref(), Some("Basic bWU6cGFzcw=="));
    let unset = RegistryAuth::Bearer(SecretRef::Env("HOOKSTREAM_TEST_NO_SUCH_TOKEN".to_owned()));
    let error = client(&url, Some(unset)).err().unwrap().to_string();
    assert_eq!(
        error,
        "--schema-registry-token: the environment variable HOOKSTREAM_TEST_NO_SUCH_TOKEN is not set"
    );
}

#[test]
fn a_slow_response_holds_up_no_other_and_is_asked_for_once() {
    let (go, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let (url, seen) = stub(move |path| {
        if path.ends_with("/7") {
            gate.lock().unwrap().recv().unwrap();
        }
        (200, STRING.to_owned())
    });
    let (registry, observed) = registry(&url);
    for _ in 0..100 {
        assert!(matches!(registry.lookup(SEVEN), Lookup::Pending(None)));
    }
    let other = registry.lookup_within(SchemaId::Number(8), SOON);
    assert!(matches!(other, Lookup::Found(_)), "{other:?}");
    let waited = registry.lookup_within(SEVEN, Duration::from_millis(1));
    assert!(matches!(waited, Lookup::Pending(None)), "{waited:?}");
    go.send(()).unwrap();
    let found = registry.lookup_within(SEVEN, SOON);
    assert!(matches!(found, Lookup::Found(_)), "{found:?}");
    let mut paths: Vec<_> = seen.try_iter().map(|(path, _)| path).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/base/schemas/ids/7", "/base/schemas/ids/8"]);
    assert_eq!(observed.recv_timeout(SOON).unwrap(), Asked::Found);
    assert_eq!(observed.recv_timeout(SOON).unwrap(), Asked::Found);
}

#[test]
fn a_failure_is_tried_again_and_a_useless_schema_is_not() {
    let tries = Mutex::new(0);
    let (url, _seen) = stub(move |path| {
        if path.ends_with("/8") {
            return (200, r#"{"schema":"\"no.Such\""}"#.to_owned());
        }
        *tries.lock().unwrap() += 1;
        let up = *tries.lock().unwrap() > 1;
        (if up { 200 } else { 503 }, STRING.to_owned())
    });
    let (registry, observed) = registry(&url);
    let failed = registry.lookup_within(SEVEN, SOON);
    assert!(
        matches!(&failed, Lookup::Pending(Some(reason)) if &**reason == "GET /schemas/ids/7: status 503"),
        "{failed:?}"
    );
    let useless = registry.lookup_within(SchemaId::Number(8), SOON);
    assert!(
        matches!(&useless, Lookup::Unusable(reason) if reason.contains("no.Such")),
        "{useless:?}"
    );
    let deadline = clock::instant() + SOON;
    while matches!(registry.lookup_within(SEVEN, SOON), Lookup::Pending(_)) {
        assert!(clock::instant() < deadline, "not tried again");
        std::thread::yield_now();
    }
    let observed: Vec<_> = observed.try_iter().collect();
    assert_eq!(observed, [Asked::Failed, Asked::Unusable, Asked::Found]);
}
