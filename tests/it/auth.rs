//! Endpoints that want a login: each kind of credential, and OAuth 2.0 with tokens that expire, are revoked or cannot be had.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::oauth::TokenServer;
use crate::scene::{
    LATER, event, put, start, subscription, wait_for_dead_letters, wait_for_records,
    wait_until_done, with, world,
};
use crate::support::{Answer, Isolation, Receiver, Record, World};

/// Writes a secret into a file and returns the reference to it.
fn reference(dir: &tempfile::TempDir, name: &str, secret: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    format!("file:{}", path.display())
}

fn oauth2(server: &TokenServer, secret: &str) -> Value {
    json!({"type": "oauth2", "token_url": server.url, "client_id": "hookstream", "client_secret": secret,
        "scopes": ["kafka"]})
}

/// An endpoint that accepts the tokens of a server from this one on, counted from 0, and responds 401 to all others.
fn guarded(server: &Arc<TokenServer>) -> (Receiver, Arc<AtomicUsize>) {
    let first: Arc<AtomicUsize> = Arc::default();
    let (own, server) = (Arc::clone(&first), Arc::clone(server));
    let receiver = Receiver::start(move |seen| {
        let header = seen.header("authorization").unwrap_or_default();
        let token = header.strip_prefix("Bearer ").unwrap_or_default();
        let accepted = server.issued();
        let mut accepted = accepted.iter().skip(own.load(Ordering::SeqCst));
        match accepted.any(|one| one == token) {
            true => Answer::ok(),
            false => Answer::status(401).body(format!("you sent {header}")),
        }
    });
    (receiver, first)
}

/// No record of the world holds any of these texts.
#[track_caller]
fn assert_nowhere(world: &World, secrets: &[String]) {
    let topics = [
        world.topics.commands(),
        world.topics.dead_letters(),
        world.topics.attempts(),
        world.topics.subscriptions(),
    ];
    for topic in topics {
        for record in world.read_all(&topic, Isolation::Committed) {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            let text = format!("{value} {:?}", record.headers);
            for secret in secrets {
                assert!(!text.contains(secret.as_str()), "{topic} holds a secret");
            }
        }
    }
}

#[test]
fn each_kind_of_credential_reaches_its_endpoint_and_nothing_else() {
    let mut world = world("auth");
    world.create_topic(&world.topics.attempts(), 1, &[]);
    world.flags.push("--attempt-log".to_owned());
    let secrets = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(|seen| {
        let login = seen.header("authorization").or(seen.header("x-api-key"));
        Answer::status(if seen.attempt == 1 { 500 } else { 200 })
            .body(login.unwrap_or_default().to_owned())
    });
    let one = |id: &str, auth: Value| {
        with(
            subscription(id, &receiver.url(&format!("/{id}")), &["**"]),
            json!({"auth": auth}),
        )
    };
    let token = reference(&secrets, "token", "token-s3cret");
    let password = reference(&secrets, "password", "password-s3cret");
    let key = reference(&secrets, "key", "key-s3cret");
    put(
        &world,
        &[
            one("bearer", json!({"type": "bearer", "token": token})),
            one(
                "basic",
                json!({"type": "basic", "username": "me", "password": password}),
            ),
            one(
                "header",
                json!({"type": "header", "name": "X-Api-Key", "value": key}),
            ),
        ],
    );
    let process = start(&world, &["--log", "trace"]);
    world.produce_event("k", &[], event("e", "order.made", "1"));
    receiver.wait_for(6, LATER);
    wait_until_done(&world);
    let login = |path: &str, name: &str| {
        let seen = receiver.seen_at(path);
        seen[0].header(name).map(str::to_owned)
    };
    assert_eq!(
        login("/bearer", "authorization").as_deref(),
        Some("Bearer token-s3cret")
    );
    let basic = login("/basic", "authorization").unwrap();
    assert_eq!(basic, "Basic bWU6cGFzc3dvcmQtczNjcmV0");
    assert_eq!(login("/header", "x-api-key").as_deref(), Some("key-s3cret"));
    wait_for_records(&world, &world.topics.attempts(), 6);
    let all = [
        "token-s3cret",
        "password-s3cret",
        "key-s3cret",
        "bWU6cGFzc3dvcmQtczNjcmV0",
    ];
    let all = all.map(str::to_owned);
    assert_nowhere(&world, &all);
    let logged = process.stderr().join("\n");
    assert!(
        all.iter().all(|secret| !logged.contains(secret)),
        "a secret is logged"
    );
}

#[test]
fn a_token_is_renewed_before_its_end_and_once_when_the_endpoint_does_not_accept_it() {
    let mut world = world("auth-oauth2");
    world.create_topic(&world.topics.attempts(), 1, &[]);
    world.flags.push("--attempt-log".to_owned());
    let secrets = tempfile::tempdir().unwrap();
    let secret = reference(&secrets, "client", "client-s3cret");
    let server = Arc::new(TokenServer::start("client-s3cret"));
    server.change(|rules| rules.life = Duration::from_secs(3600));
    let (receiver, first) = guarded(&server);
    let auth = json!({"auth": oauth2(&server, &secret)});
    let one = with(
        subscription("s", &receiver.url("/s"), &["**"]),
        auth.clone(),
    );
    let other = with(subscription("t", &receiver.url("/t"), &["**"]), auth);
    put(&world, &[one, other]);
    let process = start(&world, &[]);
    world.produce_event("k", &[], event("e1", "order.made", "1"));
    wait_until_done(&world);
    assert_eq!(server.issued().len(), 1, "both have one token");

    // A revoked token, with many requests at once: one renewal, and no attempt fails.
    first.store(1, Ordering::SeqCst);
    for number in 0..10 {
        let id = format!("many{number}");
        world.produce_event(&id, &[], event(&id, "order.made", "1"));
    }
    wait_until_done(&world);
    let outcomes = || {
        let records = world.read_all(&world.topics.attempts(), Isolation::Committed);
        let each = records.iter().map(Record::json);
        each.map(|value| {
            (
                value["status"].as_i64().unwrap(),
                value["outcome"].to_string(),
            )
        })
        .collect::<Vec<_>>()
    };
    wait_for_records(&world, &world.topics.attempts(), 22);
    assert!(
        outcomes().iter().all(|(status, _)| *status == 200),
        "{:?}",
        outcomes()
    );
    assert_eq!(server.issued().len(), 2, "one renewal");
    assert!(receiver.seen().len() > 22, "some requests were sent again");

    // An endpoint that accepts no token has failed the attempt, and does not flood the token server.
    first.store(usize::MAX, Ordering::SeqCst);
    world.produce_event("k", &[], event("e2", "order.made", "1"));
    wait_for_dead_letters(&world, 2);
    let refused = outcomes();
    let refused = refused.iter().filter(|(status, _)| *status == 401).count();
    assert_eq!(refused, 8, "two commands with a schedule of three retries");
    assert!(
        server.issued().len() <= 4,
        "{} tokens",
        server.issued().len()
    );
    let mut all = server.issued();
    all.push("client-s3cret".to_owned());
    assert_nowhere(&world, &all);
    let logged = process.stderr().join("\n");
    assert!(
        all.iter().all(|secret| !logged.contains(secret)),
        "a secret is logged"
    );
}

#[test]
fn while_the_token_server_is_down_commands_wait_and_no_attempt_is_spent() {
    let world = world("auth-down");
    let secrets = tempfile::tempdir().unwrap();
    let secret = reference(&secrets, "client", "client-s3cret");
    let server = TokenServer::start("client-s3cret");
    server.change(|rules| rules.is_down = true);
    let receiver = Receiver::good();
    put(
        &world,
        &[
            with(
                subscription("s", &receiver.url("/s"), &["**"]),
                json!({"auth": oauth2(&server, &secret), "retry_schedule": []}),
            ),
            subscription("well", &receiver.url("/well"), &["**"]),
        ],
    );
    let process = start(&world, &[]);
    world.produce_event("k", &[], event("e", "order.made", "1"));
    receiver.wait_until("others are served", LATER, |seen| !seen.is_empty());
    let line = process.wait_for_line("no token from 127.0.0.1", LATER);
    assert!(!line.contains("s3cret"), "{line}");
    assert!(receiver.seen_at("/s").is_empty());
    server.change(|rules| rules.is_down = false);
    receiver.wait_until("it is delivered", LATER, |seen| {
        seen.iter().any(|one| one.path == "/s")
    });
    wait_until_done(&world);
    assert_eq!(receiver.seen_at("/s").len(), 1);
    let header = receiver.seen_at("/s")[0]
        .header("hookstream-attempt")
        .map(str::to_owned);
    assert_eq!(header.as_deref(), Some("1"), "no attempt was spent");
    wait_for_dead_letters(&world, 0);
}

#[test]
fn a_tenant_can_name_no_secret_of_another_one() {
    let world = world("auth-tenants");
    let secrets = tempfile::tempdir().unwrap();
    for tenant in ["acme", "other"] {
        std::fs::create_dir(secrets.path().join(tenant)).unwrap();
    }
    let own = reference(&secrets, "acme/token", "acme-s3cret");
    let foreign = reference(&secrets, "other/token", "other-s3cret");
    std::os::unix::fs::symlink("../other/token", secrets.path().join("acme/link")).unwrap();
    let link = own.replace("acme/token", "acme/link");
    let receiver = Receiver::good();
    let one = |id: &str, token: &str| {
        let auth = json!({"auth": {"type": "bearer", "token": token}, "subscriber": "acme"});
        with(
            subscription(id, &receiver.url(&format!("/{id}")), &["**"]),
            auth,
        )
    };
    let dirs = format!("{}/{{subscriber}}", secrets.path().display());
    let limits = [
        "--secret-dirs",
        &dirs,
        "--secret-env-prefix",
        "WH_{subscriber}__",
    ];
    let apply = |subscription: &Value, strict: &[&str]| {
        let command = [&["subscriptions", "apply", "-f", "-"], &limits[..], strict].concat();
        world.run(&command, &subscription.to_string())
    };
    for (id, token) in [
        ("foreign", foreign.as_str()),
        ("env", "env:WH_other__TOKEN"),
    ] {
        let refused = apply(&one(id, token), &["--strict"]);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("not allowed for this subscriber"),
            "{}",
            refused.stderr
        );
        let warned = apply(&one(id, token), &[]);
        assert_eq!(warned.code, 0, "{}", warned.stderr);
        assert!(warned.stderr.contains("warning"), "{}", warned.stderr);
    }
    // Where a link leads is known only where it is read.
    assert_eq!(apply(&one("link", &link), &["--strict"]).code, 0);
    assert_eq!(apply(&one("own", &own), &["--strict"]).code, 0);
    let process = start(&world, &limits);
    world.produce_event("k", &[], event("e", "order.made", "1"));
    receiver.wait_until("its own secret works", LATER, |seen| !seen.is_empty());
    for (id, reason) in [
        ("foreign", "not allowed for this subscriber"),
        ("env", "not allowed for this subscriber"),
        ("link", "leads outside of"),
    ] {
        let line = process.wait_for_line(&format!("subscription={id}"), LATER);
        assert!(line.contains(reason), "{line}");
    }
    let seen = receiver.seen();
    assert!(
        seen.iter().all(|one| one.path == "/own"),
        "nothing was sent with a foreign secret"
    );
    assert_eq!(seen[0].header("authorization"), Some("Bearer acme-s3cret"));
}
