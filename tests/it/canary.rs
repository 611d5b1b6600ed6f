//! The canary (**Secret**): a secret of every kind is planted, everything is run through its failures at the most detailed
//! log level, and all that comes out is searched for them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::oauth::TokenServer;
use crate::scene::{
    LATER, event, put, start, subscription, wait_for_dead_letters, wait_for_records, with, world,
};
use crate::support::{Answer, Isolation, Receiver, Seen, eventually_true, run_to_end_with};

/// In each secret. Base64 of it has no part that anything else has.
const CANARY: &str = "c4naryS3cretCanary";

/// In each URL. `subscriptions list` and `show` print URLs as they are stored; nothing else does.
const QUERY: &str = "qu3ryCanaryOfUrls";

/// All forms in which a secret must not appear.
fn forms() -> Vec<String> {
    let mut forms = vec![CANARY.to_owned()];
    // In base64, at each of the three places that a text can begin at; the ends depend on the neighbours.
    for before in ["", "x", "xx"] {
        let encoded = STANDARD.encode(format!("{before}{CANARY}"));
        forms.push(encoded[4..encoded.len() - 6].to_owned());
    }
    forms
}

#[track_caller]
fn assert_clean(what: &str, text: &str) {
    let in_urls = (!what.contains("subscriptions")).then(|| QUERY.to_owned());
    for form in forms().into_iter().chain(in_urls) {
        if let Some(at) = text.find(&form) {
            let from = text[..at]
                .char_indices()
                .rev()
                .nth(80)
                .map_or(0, |(at, _)| at);
            panic!("{what} holds a secret behind {:?}", &text[from..at]);
        }
    }
}

/// What an endpoint that tells everything it got responds.
fn echo(seen: &Seen) -> Answer {
    let everything = format!("{} {:?}", seen.path, seen.headers);
    match seen.attempt {
        1 => Answer::status(500).body(everything),
        2 => Answer::status(429)
            .header("retry-after", "1")
            .body(everything),
        3 => Answer::reset(),
        _ => Answer::status(400).body(everything),
    }
}

fn secret(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    format!("file:{}", path.display())
}

#[test]
fn no_secret_comes_out_anywhere_whatever_fails() {
    let mut world = world("canary");
    world.create_topic(&world.topics.attempts(), 1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let own = |name: &str| secret(at, name, &format!("{name}-{CANARY}"));
    let server = TokenServer::start(&format!("client-{CANARY}"));
    let receiver = Receiver::start(echo);
    let signing = format!(
        "whsec_{}",
        STANDARD.encode(format!("{CANARY}-0123456789-0123456789"))
    );
    let one = |id: &str, fields: Value| {
        let url = receiver.url(&format!("/{id}?key={QUERY}"));
        with(subscription(id, &url, &["**"]), fields)
    };
    let oauth = |secret: &str| {
        json!({"auth": {"type": "oauth2", "token_url": server.url, "client_id": "hookstream",
            "client_secret": secret, "scopes": ["kafka"]}})
    };
    let valid = [
        one("literal", json!({"secrets": [signing]})),
        one(
            "file",
            json!({"secrets": [secret(at, "signing", &signing)]}),
        ),
        one(
            "header",
            json!({"headers": {"authorization": format!("Bearer {}", own("header"))}}),
        ),
        one(
            "plain",
            json!({"headers": {"x-api-key": format!("plain-{CANARY}")}}),
        ),
        one(
            "bearer",
            json!({"auth": {"type": "bearer", "token": own("bearer")}}),
        ),
        one(
            "basic",
            json!({"auth": {"type": "basic", "username": "me", "password": own("basic")}}),
        ),
        one("oauth2", oauth(&own("client"))),
        // Its endpoint is asked for consent, and echoes what it is asked with.
        one(
            "no-consent",
            json!({"verify": true, "auth": {"type": "bearer", "token": own("consent")}}),
        ),
        // These cannot be used.
        one("cannot-sign", json!({"secrets": [own("no-key")]})),
        one(
            "no-header",
            json!({"auth": {"type": "bearer", "token": secret(at, "lines", &format!("a\n{CANARY}"))}}),
        ),
        one("refused", oauth(&own("wrong"))),
        with(
            one(
                "tls",
                json!({"tls_ca": own("ca"), "client_certificate": own("crt"), "client_key": own("key")}),
            ),
            json!({"url": format!("https://localhost:{}/{QUERY}", receiver.port())}),
        ),
    ];
    put(&world, &valid);
    // Encrypted on the topic, by a key that is a secret too.
    let mut kek = [b'c'; 32];
    kek[..CANARY.len()].copy_from_slice(CANARY.as_bytes());
    let keys = secret(at, "keys", &STANDARD.encode(kek));
    let key_flags = ["--kek-file", keys.trim_start_matches("file:")];
    world.flags.extend(key_flags.map(str::to_owned));
    let encrypted = one("encrypted", json!({"secrets": [signing]})).to_string();
    let applied = world.run(&["subscriptions", "apply", "-f", "-"], &encrypted);
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    assert_clean(
        "subscriptions apply",
        &format!("{}{}", applied.stdout, applied.stderr),
    );
    // And these are invalid records.
    let invalid = [
        one(
            "literal-auth",
            json!({"auth": {"type": "bearer", "token": CANARY}}),
        ),
        one(
            "literal-key",
            json!({"client_key": CANARY, "client_certificate": CANARY}),
        ),
        one("bad-secret", json!({"secrets": [CANARY]})),
        one(
            "bad-header",
            json!({"headers": {"authorization": format!("env:{CANARY} x")}}),
        ),
        with(
            one("bad-url", json!({})),
            json!({"url": format!("https://me:{CANARY}@x/")}),
        ),
    ];
    put(&world, &invalid);
    let schema_password = own("schema");
    let password = at.join("kafka");
    std::fs::write(&password, format!("kafka-{CANARY}")).unwrap();
    let flags = [
        "--attempt-log",
        "--log",
        "trace",
        "-X",
        "debug=security,conf",
        "-X",
        &format!("sasl.password=@{}", password.display()),
        "--schema-registry",
        "http://127.0.0.1:1",
        "--schema-registry-user",
        "me",
        "--schema-registry-password",
        &schema_password,
    ]
    .map(str::to_owned);
    world.flags.extend(flags);
    let collector = Receiver::good();
    let otlp = collector.url("");
    let spans = ["--otlp-endpoint", otlp.as_str(), "--trace-sample", "1"];
    let process = start(&world, if cfg!(feature = "otlp") { &spans } else { &[] });
    world.produce_event("k", &[], event("e1", "order.made", "1"));
    // The eight that can be sent end after four attempts.
    let dead = wait_for_dead_letters(&world, 8);
    wait_for_records(&world, &world.topics.attempts(), 32);
    if cfg!(feature = "otlp") {
        eventually_true("spans of attempts are exported", LATER, || {
            let seen = collector.seen();
            seen.iter()
                .any(|one| String::from_utf8_lossy(&one.body).contains("attempt"))
        });
        for seen in collector.seen() {
            let spans = String::from_utf8_lossy(&seen.body).into_owned();
            assert_clean("a span", &format!("{:?} {spans}", seen.headers));
        }
    }
    for line in process.stderr() {
        assert_clean("the log", &line);
    }
    for letter in dead {
        assert_clean("a dead letter", &letter.to_string());
    }
    for topic in [
        world.topics.attempts(),
        world.topics.commands(),
        world.topics.invalid_events(),
    ] {
        for record in world.read_all(&topic, Isolation::Committed) {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            assert_clean(&topic, &format!("{value} {:?}", record.headers));
        }
    }
    for page in [
        "/metrics",
        "/lag",
        "/lag/history",
        "/lag?all=1",
        "/",
        "/readyz",
        "/livez",
        "/nothing",
    ] {
        let (_, body) = process.get(page);
        assert_clean(page, &body);
    }
    let stored = world.read_all(&world.topics.subscriptions(), Isolation::Committed);
    assert!(stored.len() >= valid.len(), "the records are there");
    let mut verifications = stored
        .iter()
        .filter(|one| one.key_text().starts_with("verified/"));
    let refused = verifications
        .next()
        .expect("the endpoint was asked for consent");
    assert_eq!(refused.json()["result"], "refused");
    assert_clean("a verification", &refused.json().to_string());
    let documents: String = invalid.iter().map(|one| format!("{one}\n")).collect();
    for (command, stdin) in [
        (&["subscriptions", "list"][..], ""),
        (&["subscriptions", "list", "-o", "json"], ""),
        (&["subscriptions", "show", "basic"], ""),
        (&["subscriptions", "show", "oauth2"], ""),
        (&["subscriptions", "apply", "-f", "-"], documents.as_str()),
        (&["subscriptions", "show", "encrypted", "-o", "yaml"], ""),
        (&["subscriptions", "encrypt", "encrypted"], ""),
        (&["subscriptions", "pause", "tls"], ""),
        (&["dead-letters", "list", "-o", "json"], ""),
        (&["trace", "e1", "-o", "json"], ""),
        (&["lag", "--once", "-o", "json"], ""),
        (&["config"], ""),
        (&["config", "-o", "json"], ""),
        (&["topics", "check"], ""),
        (&["replay", "--dead-letters", "--dry-run"], ""),
    ] {
        let output = world.run(command, stdin);
        assert_clean(
            &format!("{command:?}"),
            &format!("{}{}", output.stdout, output.stderr),
        );
    }
    // In the environment, where each of these should be a reference, or is a secret itself.
    let login = format!("sasl.password=password-{CANARY}");
    let environment = [
        ("HOOKSTREAM_SCHEMA_REGISTRY_PASSWORD", CANARY),
        ("HOOKSTREAM_SCHEMA_REGISTRY_TOKEN", CANARY),
        ("HOOKSTREAM_EGRESS_PROXY_PASSWORD", CANARY),
        ("HOOKSTREAM_X", &login),
        ("HOOKSTREAM_SCHEMA_REGISTRY_PASSWORDD", CANARY),
    ];
    for command in [
        &["--help"][..],
        &["--help-settings"],
        &["deliver", "--help"],
        &["subscriptions", "apply", "--help"],
        &["man"],
        &["config"],
        &["config", "--brokers", "127.0.0.1:1"],
        &["deliver", "--brokers", "127.0.0.1:1"],
        &["lag", "--brokers", "127.0.0.1:1", "--no-such-flag"],
    ] {
        let output = run_to_end_with(command, "", &environment);
        let printed = format!("{}{}", output.stdout, output.stderr);
        assert!(!printed.is_empty(), "{command:?} prints something");
        assert_clean(&format!("{command:?}"), &printed);
    }
    let seen = receiver.wait_for(32, LATER);
    let sent: String = seen
        .iter()
        .map(|one| format!("{:?}", one.headers))
        .collect();
    assert!(
        forms().iter().any(|form| sent.contains(form)),
        "the endpoints got the secrets"
    );
}

#[test]
fn no_debug_shows_a_secret() {
    use hookstream::config::{Layers, Machine, Settings, Source, is_secret};
    use hookstream::delivery::signing::Signer;
    use hookstream::model::attempt::Mask;
    use hookstream::model::envelope::{Keys, Owner};
    use hookstream::model::signing_key::SigningKey;
    use hookstream::model::subscription::{Redacted, parse};
    use hookstream::model::token::TokenRequest;

    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "b:1");
    let properties = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "visible"),
        ("sasl.password", CANARY),
        ("ssl.key.password", CANARY),
        ("ssl.keystore.password", CANARY),
        ("ssl.key.pem", CANARY),
    ];
    for (key, value) in properties {
        assert!(is_secret(key) == (value == CANARY), "{key}");
        layers.give_property(&format!("{key}={value}"), Source::Flag);
    }
    let machine = Machine {
        host_name: "h".to_owned(),
        cores: 1,
    };
    let settings = Settings::check(&layers, &machine).unwrap();
    assert_eq!(settings.properties.len(), properties.len());
    let shown = format!("{settings:?}");
    assert!(shown.contains("visible"), "{shown}");

    let signing = format!(
        "whsec_{}",
        STANDARD.encode(format!("{CANARY}-0123456789-0123456789"))
    );
    let mut kek = [b'c'; 32];
    kek[..CANARY.len()].copy_from_slice(CANARY.as_bytes());
    let keys = Keys::read(&STANDARD.encode(kek)).unwrap();
    let owner = Owner {
        subscriber: "a",
        id: "a",
    };
    let request = TokenRequest {
        client_id: "me",
        client_secret: CANARY,
        scope: "",
        audience: None,
    };
    let response = json!({"access_token": CANARY, "expires_in": 60}).to_string();
    let record = with(
        subscription("a", "https://a.example/", &["**"]),
        json!({
            "secrets": [signing],
            "headers": {"authorization": format!("Bearer {CANARY}"), "x-api-key": CANARY},
        }),
    );
    let subscription = parse(None, record.to_string().as_bytes()).unwrap();
    let all: [(&str, &dyn std::fmt::Debug); 9] = [
        ("Settings", &settings),
        ("Signer", &Signer::new([signing.as_str()]).unwrap()),
        ("SigningKey", &SigningKey::read(&signing).unwrap()),
        ("Mask", &Mask::new([CANARY.into()])),
        ("Keys", &keys),
        ("Sealed", &keys.seal(CANARY, owner, &[7; 56]).unwrap()),
        ("Redacted", &Redacted::new(CANARY)),
        (
            "IssuedToken",
            &request.judge(200, response.as_bytes(), 0).unwrap(),
        ),
        ("Subscription", &subscription),
    ];
    for (what, one) in all {
        assert_clean(what, &format!("{one:?} {one:#?}"));
    }
}

/// A field with the text of a secret belongs into a type whose `Debug` is written by hand, or which has none.
#[test]
fn no_type_derives_a_debug_that_shows_the_text_of_a_secret() {
    let derived = regex::Regex::new(
        r"(?s)#\[derive\(([^)]*)\)\]\s*(?:(?:#\[|//)[^\n]*\s*)*(?:pub(?:\([^)]*\))? )?(?:struct|enum) (\w+)[^;]*?\n\}",
    );
    let derived = derived.unwrap();
    let plain = regex::Regex::new(
        r"(?im)^\s*(?:pub(?:\([^)]*\))? )?\w*(?:secret|passw|token|credential|private|_key|certificates|properties)\w*(?:: |\()[^\n]*(?:\bString|\bstr\b|u8>|u8\]|Bytes|CString)",
    );
    let plain = plain.unwrap();
    let example =
        "#[derive(Clone, Debug)]\nstruct A {\n    pub(super) client_secret: Option<Box<str>>,\n}\n";
    let hit = derived.captures(example).unwrap();
    assert!(plain.is_match(&hit[0]), "a test that can fail");
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let (mut types, mut found) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let own = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            for one in derived.captures_iter(own) {
                // An error holds messages, which are searched above.
                if one[1].contains("Debug") && !one[2].ends_with("Error") {
                    types += 1;
                    let hits = plain.find_iter(&one[0]).map(|hit| hit.as_str().trim());
                    found.extend(hits.map(|hit| format!("{}: {}: {hit}", path.display(), &one[2])));
                }
            }
        }
    }
    assert!(types > 200, "{types} types are looked at");
    assert!(found.is_empty(), "{found:#?}");
}
