//! OAUTHBEARER on a real broker, which checks the signature of each token with the keys that the issuer publishes (JWKS):
//! tokens of a few seconds from a token server that fails, refuses and rotates its secrets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use crate::scene::{event, put, subscription, wait_until_done, world_on};
use crate::support::{Answer, Broker, Output, Process, Receiver, World, eventually_true};

const ALL: Duration = Duration::from_secs(120);
/// Life of a token: a client takes a new one at three quarters of it, and a busy machine must not need the rest for a login.
const LIFE: Duration = Duration::from_secs(12);

/// Who issues the tokens, and for whom.
const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "kafka";

/// A broker whose clients log in with tokens that [`key`] signs, and whose connections end with their token (KIP-368).
fn guarded() -> &'static Broker {
    static BROKER: OnceLock<(Broker, tempfile::NamedTempFile)> = OnceLock::new();
    let (broker, _) = BROKER.get_or_init(|| {
        let keys = publish_keys();
        let listener = "listener.name.sasl_plaintext";
        let own = format!("{listener}.oauthbearer");
        let package = "org.apache.kafka.common.security.oauthbearer";
        let properties = format!(
            "{listener}.sasl.enabled.mechanisms=OAUTHBEARER\n\
             {own}.connections.max.reauth.ms=60000\n\
             {own}.sasl.server.callback.handler.class={package}.OAuthBearerValidatorCallbackHandler\n\
             {own}.sasl.oauthbearer.jwks.endpoint.url={keys}\n\
             {own}.sasl.oauthbearer.expected.issuer={ISSUER}\n\
             {own}.sasl.oauthbearer.expected.audience={AUDIENCE}\n\
             {own}.sasl.jaas.config={package}.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), properties).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        // Without it, Kafka 4 asks no server for keys.
        let allowed = format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys}");
        let options = ["--sasl", "--properties", &path, "--java", &allowed];
        (Broker::with_options(&options), file)
    });
    broker
}

fn new_key() -> EcdsaKeyPair {
    let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
    let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).unwrap()
}

/// The key of the issuer.
fn key() -> &'static EcdsaKeyPair {
    static KEY: OnceLock<EcdsaKeyPair> = OnceLock::new();
    KEY.get_or_init(new_key)
}

/// Serves the public half of [`key`] as a JSON Web Key Set; returns its URL.
fn publish_keys() -> String {
    // A point, uncompressed: 4, then both coordinates.
    let (x, y) = key().public_key().as_ref()[1..].split_at(32);
    let keys = serde_json::json!({"keys": [{
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "1",
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    }]});
    let server = Receiver::start(move |_| {
        Answer::status(200)
            .header("content-type", "application/jwk-set+json")
            .body(keys.to_string())
    });
    let url = server.url("/keys");
    // It serves for as long as the broker does.
    std::mem::forget(server);
    url
}

/// What is wrong with a token, if anything.
#[derive(Clone, Copy, Debug)]
pub enum Flaw {
    None,
    Unsigned,
    OtherKey,
    OtherAudience,
    OtherIssuer,
}

/// What the token server does.
#[derive(Clone)]
pub struct Rules {
    /// The secret that it accepts.
    pub secret: String,
    /// The life of its tokens.
    pub life: Duration,
    /// It closes connections without a response.
    pub is_down: bool,
    /// What is wrong with its tokens.
    pub flaw: Flaw,
    /// Tokens issued.
    issued: Vec<String>,
}

/// A token server for the client `hookstream` and the scope `kafka`.
pub struct TokenServer {
    pub url: String,
    rules: Arc<Mutex<Rules>>,
}

impl TokenServer {
    pub fn start(secret: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let rules = Arc::new(Mutex::new(Rules {
            secret: secret.to_owned(),
            life: LIFE,
            is_down: false,
            flaw: Flaw::None,
            issued: Vec::new(),
        }));
        let own = Arc::clone(&rules);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &own);
            }
        });
        Self { url, rules }
    }

    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().unwrap());
    }

    pub fn issued(&self) -> Vec<String> {
        self.rules.lock().unwrap().issued.clone()
    }
}

fn serve(stream: TcpStream, rules: &Mutex<Rules>) {
    let mut rules = rules.lock().unwrap();
    if rules.is_down {
        return;
    }
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            return;
        }
        let line = line.trim().to_owned();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let login = format!(
        "Basic {}",
        STANDARD.encode(format!("hookstream:{}", rules.secret))
    );
    let is_login = head.iter().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("authorization") && value.trim() == login
        })
    });
    let (status, answer) = if !head[0].starts_with("POST /token ")
        || body != "grant_type=client_credentials&scope=kafka"
    {
        (
            "400 Bad Request",
            format!(
                r#"{{"error":"invalid_request","error_description":"{}"}}"#,
                head[0]
            ),
        )
    } else if is_login {
        let life = rules.life.as_secs();
        let token = token(life, rules.issued.len(), rules.flaw);
        rules.issued.push(token.clone());
        (
            "200 OK",
            format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{life}}}"#),
        )
    } else {
        (
            "401 Unauthorized",
            r#"{"error":"invalid_client"}"#.to_owned(),
        )
    };
    write!(
        reader.into_inner(),
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len()
    )
    .unwrap();
}

fn token(life: u64, number: usize, flaw: Flaw) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = serde_json::json!({
        "sub": "hookstream", "iat": now, "exp": now + life, "scope": "kafka", "jti": number.to_string(),
        "iss": if matches!(flaw, Flaw::OtherIssuer) { "https://other.example" } else { ISSUER },
        "aud": if matches!(flaw, Flaw::OtherAudience) { "other" } else { AUDIENCE },
    });
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    if matches!(flaw, Flaw::Unsigned) {
        return format!(
            "{}.{}.",
            part(serde_json::json!({"alg": "none"})),
            part(claims)
        );
    }
    let head = serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": "1"});
    let signed = format!("{}.{}", part(head), part(claims));
    let other;
    let key = if matches!(flaw, Flaw::OtherKey) {
        other = new_key();
        &other
    } else {
        key()
    };
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The flags of a login at `url`, with the secret in a file.
fn login(url: &str, secret: &std::path::Path) -> Vec<String> {
    [
        "security.protocol=SASL_PLAINTEXT".to_owned(),
        "sasl.mechanism=OAUTHBEARER".to_owned(),
        "sasl.oauthbearer.method=oidc".to_owned(),
        format!("sasl.oauthbearer.token.endpoint.url={url}"),
        "sasl.oauthbearer.client.id=hookstream".to_owned(),
        format!("sasl.oauthbearer.client.secret=@{}", secret.display()),
        "sasl.oauthbearer.scope=kafka".to_owned(),
    ]
    .into_iter()
    .flat_map(|property| ["-X".to_owned(), property])
    .collect()
}

fn lines(process: &Process, part: &str) -> usize {
    let lines = process.stderr();
    lines.iter().filter(|line| line.contains(part)).count()
}

/// Events that come later are delivered too.
#[track_caller]
fn deliver_more(world: &World, receiver: &Receiver, count: &mut usize, time: Duration) {
    let begun = Instant::now();
    loop {
        let id = format!("e{count}");
        world.produce_event(&id, &[], event(&id, "order.made", "1"));
        *count += 1;
        receiver.wait_for(*count, ALL);
        if begun.elapsed() > time {
            return;
        }
    }
}

#[test]
fn tokens_are_renewed_while_events_flow_and_outlive_a_token_server_that_is_down() {
    let broker = guarded();
    let server = TokenServer::start("first-secret");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "first-secret\n").unwrap();
    let mut world = world_on(broker, "oauth");
    world.bootstrap = broker.listener("sasl_plaintext");
    let receiver = Receiver::good();
    put(
        &world,
        &[subscription("s", &receiver.url("/s"), &["order.*"])],
    );
    let login = login(&server.url, secret.path());
    let login: Vec<&str> = login.iter().map(String::as_str).collect();
    let mut process = world.spawn("run", &login);
    process.wait_ready();
    let mut count = 0;
    deliver_more(&world, &receiver, &mut count, 3 * LIFE);
    assert!(
        server.issued().len() >= 4,
        "{} tokens",
        server.issued().len()
    );

    // Every kind of client logs in: administration, readers without a group, producers.
    let checked = world.run(&[&["topics", "check"], &login[..]].concat(), "");
    assert!(
        checked.stderr.contains("differences found"),
        "{}",
        checked.stderr
    );
    for command in [
        &["subscriptions", "list"][..],
        &["positions", "show"],
        &["lag", "--once"],
        &["dead-letters", "list"],
        &["subscriptions", "pause", "s"],
        &["subscriptions", "resume", "s"],
    ] {
        let Output { code, stderr, .. } = world.run(&[command, &login[..]].concat(), "");
        assert_eq!(code, 0, "{command:?}: {stderr}");
    }

    // Longer than the last token lives.
    server.change(|rules| rules.is_down = true);
    process.wait_for_line("no token from the token server 127.0.0.1", ALL);
    process.wait_for_line("there is no token to log in with", ALL);
    server.change(|rules| rules.is_down = false);
    process.wait_for_line("the token server responds again", ALL);
    deliver_more(&world, &receiver, &mut count, LIFE);

    // The secret is rotated at the server first.
    server.change(|rules| rules.secret = "second-secret".to_owned());
    process.wait_for_line("invalid_client", ALL);
    std::fs::write(secret.path(), "second-secret\n").unwrap();
    process.wait_for_line("settings of the token server changed", ALL);
    deliver_more(&world, &receiver, &mut count, LIFE);
    wait_until_done(&world);
    assert_eq!(lines(&process, "role restarted"), 0);
    assert!(process.exited().is_none(), "the process went on");
    let stderr = process.stderr().join("\n");
    for secret in server
        .issued()
        .iter()
        .map(String::as_str)
        .chain(["first-secret", "second-secret"])
    {
        assert!(!stderr.contains(secret), "a secret is logged");
    }
    process.sigterm();
    assert!(process.wait_exit(ALL).success());
}

/// librdkafka has no token source of its own, so a client that is forgotten never connects.
#[test]
fn every_kafka_client_is_given_its_login() {
    let own = |text: &str| {
        text.split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let count = |text: &str, what: &[&str]| -> usize {
        what.iter().map(|what| text.matches(what).count()).sum()
    };
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut clients = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // The demo's broker is embedded, and tests have none that asks for a login.
            let shown = path.to_string_lossy();
            if shown.contains("/demo")
                || shown.contains("tests")
                || shown.ends_with("credentials.rs")
            {
                continue;
            }
            let text = own(&std::fs::read_to_string(&path).unwrap());
            if !text.contains("rdkafka") {
                continue;
            }
            let made = count(&text, &[".create_with_context(", ".create()"]);
            let given = count(
                &text,
                &["give_once(&", "keep_current(&", "bootstrap::keep("],
            );
            assert!(
                given >= made,
                "{shown}: {made} clients, {given} with a login"
            );
            clients += made;
        }
    }
    assert!(clients >= 12, "{clients} clients");
}

#[test]
fn a_token_server_that_refuses_ends_the_command_and_one_that_is_down_is_waited_for() {
    let broker = guarded();
    let server = TokenServer::start("right-secret");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "wrong-secret\n").unwrap();
    let mut world = world_on(broker, "oauth-refused");
    world.bootstrap = broker.listener("sasl_plaintext");
    let flags = login(&server.url, secret.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for command in [&["topics", "check"][..], &["run"]] {
        let Output { code, stderr, .. } = world.run(&[command, &flags[..]].concat(), "");
        assert_eq!(code, 2, "{command:?}: {stderr}");
        assert!(
            stderr.contains("invalid_client")
                && stderr.contains("sasl.oauthbearer.client.secret")
                && !stderr.contains("wrong-secret"),
            "{stderr}"
        );
    }

    server.change(|rules| rules.is_down = true);
    std::fs::write(secret.path(), "right-secret\n").unwrap();
    let Output { code, stderr, .. } = world.run(&[&["topics", "check"], &flags[..]].concat(), "");
    assert!(code != 0 && code != 2, "{code}: {stderr}");
    assert!(
        stderr.contains("no token from the token server 127.0.0.1"),
        "{stderr}"
    );
    let process = world.spawn("run", &flags);
    let line = process.wait_for_line("waiting for a broker", ALL);
    assert!(
        line.contains("there is no token to log in with")
            && line.contains("token server 127.0.0.1"),
        "{line}"
    );
    server.change(|rules| rules.is_down = false);
    eventually_true("it is ready", ALL, || {
        process
            .try_get("/readyz")
            .is_some_and(|(status, _)| status == 200)
    });
}

#[test]
fn a_broker_that_refuses_a_token_is_reported_and_the_token_is_not_shown() {
    let broker = guarded();
    let server = TokenServer::start("own-secret");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "own-secret\n").unwrap();
    let mut world = world_on(broker, "oauth-flaws");
    world.bootstrap = broker.listener("sasl_plaintext");
    let flags = login(&server.url, secret.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let check = |flaw: Flaw| {
        server.change(|rules| rules.flaw = flaw);
        world.run(&[&["topics", "check"], &flags[..]].concat(), "")
    };
    for flaw in [
        Flaw::Unsigned,
        Flaw::OtherKey,
        Flaw::OtherAudience,
        Flaw::OtherIssuer,
    ] {
        let Output { code, stderr, .. } = check(flaw);
        assert_eq!(code, 1, "{flaw:?}: {stderr}");
        assert!(
            stderr.contains("connection not authenticated"),
            "{flaw:?}: {stderr}"
        );
        let issued = server.issued();
        assert!(
            !issued.iter().any(|token| stderr.contains(token)),
            "{flaw:?}: the token is shown"
        );
    }
    let Output { stderr, .. } = check(Flaw::None);
    assert!(stderr.contains("differences found"), "{stderr}");
}
