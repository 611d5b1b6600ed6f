//! Certificates and TLS of all kinds: which are trusted, and what is said about the others.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

use super::*;

/// An authority on P-256 that signs with SHA-512, which rustls does not support, and a certificate for localhost; valid
/// for a hundred years from 2020 on.
const SHA512_AUTHORITY: &[u8] = br"-----BEGIN CERTIFICATE-----
MIIBPDCB46ADAgECAgEBMAoGCCqGSM49BAMCMA0xCzAJBgNVBAMMAkNBMCAXDTIw
MDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjANMQswCQYDVQQDDAJDQTBZMBMG
ByqGSM49AgEGCCqGSM49AwEHA0IABFjjFZMQuaWv2nhYxuehLEiTFN/1SAgplL1L
gxXg9o/haEkzR9I1pXzf6Y96xf9yKH3O3oNg5UZJ4RDZd6kaJrujMjAwMA8GA1Ud
EwEB/wQFMAMBAf8wHQYDVR0OBBYEFMgGLIsGeWpclgso6Au2ekI28JcCMAoGCCqG
SM49BAMCA0gAMEUCIQCEvULxeCfSf9uCx5EEunuAGO0yF/pKiff0Igs7CBvFJgIg
NybCIQz6Wvm8P587Ao41ASZLHkMI+MnyhLpCLhaYdmo=
-----END CERTIFICATE-----
";
const SHA512_CERTIFICATE: &[u8] = br"-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIBAjAKBggqhkjOPQQDBDANMQswCQYDVQQDDAJDQTAgFw0y
MDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowFDESMBAGA1UEAwwJbG9jYWxo
b3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEyExZ+BNa7I5KYZwh7acEqLL5
MX+u2YF3Soy3bIvjZ7sNy3Mc+V7TdvA49K7m73zYlaRiLt/+OsEba33js37Cb6Nj
MGEwFAYDVR0RBA0wC4IJbG9jYWxob3N0MAkGA1UdEwQCMAAwHQYDVR0OBBYEFG0N
pepjMF73RybesL4T9UJOx9QIMB8GA1UdIwQYMBaAFMgGLIsGeWpclgso6Au2ekI2
8JcCMAoGCCqGSM49BAMEA0kAMEYCIQC9s38mX6KovEi5P3qgDA/jFoAvsAlOS5kF
VLUwgYyMyQIhANaJ8ajLpzucybOVTeT+CiOwp/mHmpt3Bm98Rc0rXLPN
-----END CERTIFICATE-----
";
const SHA512_KEY: &[u8] = br"-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgahMKaxT6CF9dpOd6
Tk9yAwd87ezaKtvXTpcRXtMe8bahRANCAATITFn4E1rsjkphnCHtpwSosvkxf67Z
gXdKjLdsi+Nnuw3Lcxz5XtN28Dj0rubvfNiVpGIu3/46wRtrfeOzfsJv
-----END PRIVATE KEY-----
";

/// A server's certificates and key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "localhost");
    params
}

fn self_signed(params: &CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Identity {
        chain: vec![certificate.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}

/// What `openssl req -x509` makes.
fn of_openssl(names: &[&str]) -> CertificateParams {
    let mut params = params(names);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// An authority, an intermediate one, and a certificate for localhost, each issued by the one before.
fn issued() -> (CertificateDer<'static>, CertificateDer<'static>, Identity) {
    let named = |name: &str| {
        let mut params = of_openssl(&[]);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let (root, middle) = (named("root"), named("middle"));
    let [root_key, middle_key, key] = [(); 3].map(|()| KeyPair::generate().unwrap());
    let root_certificate = root.self_signed(&root_key).unwrap();
    let root = Issuer::new(root, root_key);
    let middle_certificate = middle.signed_by(&middle_key, &root).unwrap();
    let middle = Issuer::new(middle, middle_key);
    let leaf = params(&["localhost"]).signed_by(&key, &middle).unwrap();
    let identity = Identity {
        chain: vec![leaf.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    };
    (
        root_certificate.der().clone(),
        middle_certificate.der().clone(),
        identity,
    )
}

fn server_config(
    identity: &Identity,
    versions: &[&'static rustls::SupportedProtocolVersion],
    clients: Option<&CertificateDer<'static>>,
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    builder
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap()
}

/// Responds 200 to each request.
async fn serving(config: rustls::ServerConfig) -> Server {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Server::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut tls) = acceptor.accept(stream).await else {
                return;
            };
            while read_request(&mut tls).await.is_some() {
                tls.write_all(OK).await.ok();
            }
        }
    })
    .await
}

fn pem(certificates: &[&CertificateDer<'static>]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for certificate in certificates {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        writeln!(file, "-----BEGIN CERTIFICATE-----").unwrap();
        for line in text.as_bytes().chunks(64) {
            file.write_all(line).unwrap();
            writeln!(file).unwrap();
        }
        writeln!(file, "-----END CERTIFICATE-----").unwrap();
    }
    file.flush().unwrap();
    file
}

async fn result(identity: &Identity, trusted: &[&CertificateDer<'static>], host: &str) -> Reply {
    let server = serving(server_config(identity, rustls::ALL_VERSIONS, None)).await;
    let mut unrelated = of_openssl(&["unrelated.example"]);
    unrelated
        .distinguished_name
        .push(DnType::CommonName, "unrelated");
    let unrelated = self_signed(&unrelated);
    let all: Vec<_> = trusted.iter().copied().chain(&unrelated.chain).collect();
    let client = trusting(&pem(&all));
    post(
        &client,
        &format!("https://{host}:{}/", server.address.port()),
    )
    .await
}

#[track_caller]
fn refused(reply: Reply, expected: &str) {
    let (class, error) = failed(reply);
    assert_eq!(class, FailureClass::Tls, "{error}");
    let sentence = error
        .strip_prefix("the tls handshake failed: ")
        .or_else(|| error.strip_prefix("the tls connection failed: "))
        .unwrap_or_else(|| panic!("{error}"));
    assert!(sentence.starts_with(expected), "{error}");
}

#[tokio::test]
async fn the_very_certificate_of_the_ca_file_is_trusted() {
    let (root, middle, leaf) = issued();
    let mut whole = leaf;
    let only_leaf = whole.chain[0].clone();
    for (identity, host) in [
        (self_signed(&of_openssl(&["localhost"])), "localhost"),
        (self_signed(&of_openssl(&["127.0.0.1"])), "127.0.0.1"),
        (self_signed(&params(&["localhost"])), "localhost"),
        // Without any subjectAltName, the name is in the subject.
        (self_signed(&of_openssl(&[])), "localhost"),
        (self_signed(&params(&[])), "localhost"),
    ] {
        let own = identity.chain[0].clone();
        let reply = result(&identity, &[&own], host).await;
        assert_eq!(answered(reply).status, 200, "{host}");
        let reply = result(&identity, &[&root, &own], host).await;
        assert_eq!(answered(reply).status, 200, "one of two, {host}");
    }
    let reply = result(&whole, &[&only_leaf], "localhost").await;
    assert_eq!(answered(reply).status, 200, "its issuer is not needed");
    whole.chain.push(middle);
    let reply = result(&whole, &[&root], "localhost").await;
    assert_eq!(
        answered(reply).status,
        200,
        "with its path to the authority"
    );
}

#[tokio::test]
async fn a_pinned_certificate_is_valid_only_for_its_names_and_its_time() {
    let wrong = self_signed(&of_openssl(&["other.example.org", "a.example.org"]));
    let reply = result(&wrong, &[&wrong.chain[0]], "localhost").await;
    refused(
        reply,
        "the server's certificate is not for localhost, but for other.example.org, a.example.org",
    );
    let mut subject = of_openssl(&[]);
    subject.distinguished_name = rcgen::DistinguishedName::new();
    subject
        .distinguished_name
        .push(DnType::CommonName, "other.example.org");
    let wrong = self_signed(&subject);
    let reply = result(&wrong, &[&wrong.chain[0]], "localhost").await;
    refused(
        reply,
        "the server's certificate is not for localhost: it has no subjectAltName",
    );
    for is_authority in [true, false] {
        let mut old = if is_authority {
            of_openssl(&["localhost"])
        } else {
            params(&["localhost"])
        };
        old.not_before = date_time_ymd(2020, 1, 1);
        old.not_after = date_time_ymd(2020, 2, 1);
        let identity = self_signed(&old);
        let reply = result(&identity, &[&identity.chain[0]], "localhost").await;
        refused(
            reply,
            "the server's certificate expired at 2020-02-01T00:00:00",
        );
        old.not_before = date_time_ymd(4000, 1, 1);
        old.not_after = date_time_ymd(4001, 1, 1);
        let identity = self_signed(&old);
        let reply = result(&identity, &[&identity.chain[0]], "localhost").await;
        refused(
            reply,
            "the server's certificate is valid only from 4000-01-01T00:00:00",
        );
    }
}

#[tokio::test]
async fn another_certificate_for_the_same_name_is_not_trusted() {
    let pinned = self_signed(&of_openssl(&["localhost"]));
    for other in [
        self_signed(&of_openssl(&["localhost"])),
        self_signed(&params(&["localhost"])),
    ] {
        for trusted in [&[&pinned.chain[0]][..], &[]] {
            let (class, error) = failed(result(&other, trusted, "localhost").await);
            assert_eq!(class, FailureClass::Tls, "{error}");
            // A wrong signature, if it has the same subject as an authority.
            let known = ["is self-signed", "a signature of the server"];
            assert!(known.iter().any(|text| error.contains(text)), "{error}");
        }
    }
}

#[tokio::test]
async fn a_certificate_without_a_trusted_issuer_is_explained() {
    let (root, middle, mut leaf) = issued();
    refused(
        result(&leaf, &[&root], "localhost").await,
        "the server sent its certificate without the intermediate certificate of its issuer",
    );
    leaf.chain.push(middle);
    refused(
        result(&leaf, &[], "localhost").await,
        "the server's certificate was not issued by a trusted authority",
    );
    refused(
        result(&leaf, &[&root], "127.0.0.1").await,
        "the server's certificate is not for 127.0.0.1, but for localhost",
    );
    let identity = self_signed(&of_openssl(&["localhost"]));
    refused(
        result(&identity, &[], "localhost").await,
        "the server's certificate is self-signed, and not one of --ca-file",
    );
    let mut purpose = params(&["localhost"]);
    purpose.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let identity = self_signed(&purpose);
    refused(
        result(&identity, &[&identity.chain[0]], "localhost").await,
        "the server's certificate is not for servers",
    );
}

#[tokio::test]
async fn an_unsupported_signature_is_explained() {
    let identity = Identity {
        chain: vec![CertificateDer::from_pem_slice(SHA512_CERTIFICATE).unwrap()],
        key: PrivateKeyDer::from_pem_slice(SHA512_KEY).unwrap(),
    };
    let authority = CertificateDer::from_pem_slice(SHA512_AUTHORITY).unwrap();
    refused(
        result(&identity, &[&authority], "localhost").await,
        "the server's certificate, or that of an issuer, is signed in a way that hookstream does not support",
    );
    let reply = result(&identity, &[&identity.chain[0]], "localhost").await;
    assert_eq!(
        answered(reply).status,
        200,
        "its own signature is not needed"
    );
}

#[tokio::test]
async fn a_server_that_demands_a_client_certificate_is_named_as_such() {
    let identity = self_signed(&params(&["localhost"]));
    let own = identity.chain[0].clone();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let server = serving(server_config(&identity, &[version], Some(&own))).await;
        let url = format!("https://localhost:{}/", server.address.port());
        refused(
            post(&trusting(&pem(&[&own])), &url).await,
            "the server demands a client certificate",
        );
    }
}

#[tokio::test]
async fn what_a_server_says_instead_of_a_handshake_is_explained() {
    let alert = |code: u8| vec![0x15, 3, 3, 0, 2, 2, code];
    for (bytes, expected) in [
        (
            alert(40),
            "the server and hookstream have no protocol version, cipher, curve",
        ),
        (alert(70), "the server supports neither TLS 1.2 nor TLS 1.3"),
        (alert(112), "the server has no host of this name"),
        (alert(80), "the server reports an internal error"),
        (alert(50), "the server ended TLS with alert 50"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "the server does not speak TLS on this port",
        ),
        (
            b"220 mail.example.org ESMTP\r\n".to_vec(),
            "the server does not speak TLS on this port",
        ),
        (Vec::new(), "the connection closed"),
    ] {
        let server = Server::start(move |mut stream| {
            let bytes = bytes.clone();
            async move {
                stream.read_buf(&mut Vec::with_capacity(8192)).await.ok();
                stream.write_all(&bytes).await.ok();
                stream.shutdown().await.ok();
                while stream
                    .read_buf(&mut Vec::with_capacity(8192))
                    .await
                    .is_ok_and(|n| n > 0)
                {}
            }
        })
        .await;
        let url = format!("https://{}/", server.address);
        refused(post(&client(), &url).await, expected);
    }
}

#[tokio::test]
async fn connections_are_shared_only_where_certificate_and_trust_are_equal() {
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = params(&[name]).self_signed(&key).unwrap();
        let identity = Identity {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        };
        (identity, certificate.pem(), key.serialize_pem())
    };
    let (server_identity, server_pem, _) = issue("localhost");
    let (client_identity, certificate, key) = issue("client");
    let (_, other_certificate, other_key) = issue("other");
    let own = client_identity.chain[0].clone();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let server = serving(server_config(&server_identity, &[version], Some(&own))).await;
        let url = format!("https://localhost:{}/", server.address.port());
        let client = client();
        let maker = TlsMaker::new(None);
        let post = |tls: Option<Arc<Tls>>| {
            let address = Address::new(url.parse().unwrap()).unwrap();
            let to = Arc::new(match tls {
                Some(tls) => address.with_tls(tls),
                None => address,
            });
            let request = Request {
                to,
                ..request(&url)
            };
            client.post(request, within(LONG))
        };
        let both = |certificate, key| {
            let tls = maker.tls(Some(&server_pem), Some((certificate, key)));
            Some(tls.unwrap())
        };
        for _ in 0..2 {
            assert_eq!(answered(post(both(&certificate, &key)).await).status, 200);
        }
        assert_eq!(server.accepted.load(Ordering::SeqCst), 1, "it is reused");
        // None of these may use the connection that was opened with the right certificate.
        refused(
            post(both(&other_certificate, &other_key)).await,
            "the server demands a client certificate",
        );
        let trust_only = maker.tls(Some(&server_pem), None).unwrap();
        refused(
            post(Some(trust_only)).await,
            "the server demands a client certificate",
        );
        refused(post(None).await, "the server's certificate is self-signed");
        let stranger = maker.tls(None, Some((&certificate, &key))).unwrap();
        refused(
            post(Some(stranger)).await,
            "the server's certificate is self-signed",
        );
        assert_eq!(answered(post(both(&certificate, &key)).await).status, 200);
    }
}

#[tokio::test]
async fn the_sessions_of_many_hosts_are_resumed() {
    const HOSTS: usize = 100;
    let identity = self_signed(&params(&["*.well.example"]));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&identity, &[version], None)));
        let resumed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&resumed);
        let server = Server::start(move |stream| {
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            async move {
                let Ok(mut tls) = acceptor.accept(stream).await else {
                    return;
                };
                let kind = tls.get_ref().1.handshake_kind();
                let is_resumed = kind == Some(rustls::HandshakeKind::Resumed);
                count.fetch_add(usize::from(is_resumed), Ordering::SeqCst);
                read_request(&mut tls).await;
                let response = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                tls.write_all(response).await.ok();
                tls.shutdown().await.ok();
            }
        })
        .await;
        let trusted = pem(&[&identity.chain[0]]);
        let client = HttpClient::new(HttpOptions {
            ca_file: Some(trusted.path().to_owned()),
            lookups: Lookups::over(Box::new(|_| Ok(vec!["127.0.0.1:0".parse().unwrap()]))),
            ..options(&["127.0.0.0/8"])
        })
        .unwrap();
        let port = server.address.port();
        for round in 0..2 {
            for number in 0..HOSTS {
                let url = format!("https://h{number}.well.example:{port}/");
                answered(post(&client, &url).await);
            }
            let seen = resumed.load(Ordering::SeqCst);
            assert_eq!(seen, round * HOSTS, "round {round} with {version:?}");
        }
        assert_eq!(server.accepted(), 2 * HOSTS);
    }
}
