//! A panic carries no secret out (**Secret**), wherever it is and whatever its message is formatted from.
//!
//! The code panics at named points, with the credentials that it has there as the message: as a slice of a text at a wrong
//! place would, or `expect` on an error that holds one. What is written is searched for them, with the longest backtraces.

use std::path::Path;
use std::time::Duration;

use crate::it::support::{Broker, Process, Receiver, World, eventually_true};
use crate::truth;

const LATER: Duration = Duration::from_secs(60);

/// In each secret.
const CANARY: &str = "c4naryS3cretOfPanics";

/// A file with a secret.
fn file(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, format!("{name}-{CANARY}")).unwrap();
    path.display().to_string()
}

/// `run`, which panics at `point`, with a subscription that authenticates by `auth`.
fn run_with(world: &World, dir: &Path, point: &str, auth: &serde_json::Value) -> Process {
    let receiver = Receiver::good();
    let subscription = serde_json::json!({
        "id": "s", "subscriber": "s", "url": receiver.url("/s"), "events": ["**"], "auth": auth,
    });
    world.put_subscription("s", subscription.to_string());
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(world.args());
    let password = format!("sasl.password=@{}", file(dir, "kafka"));
    let more = [
        "--http-listen",
        "127.0.0.1:0",
        "--log",
        "trace",
        "-X",
        &password,
    ];
    arguments.extend(more.map(str::to_owned));
    let points = format!("{point}=return");
    let environment = [("FAILPOINTS", points.as_str()), ("RUST_BACKTRACE", "full")];
    Process::spawn_with(&arguments, &environment)
}

#[test]
fn a_panic_shows_its_place_and_no_secret() {
    let _beside = crate::beside_others();
    let broker = Broker::own();
    let dir = tempfile::tempdir().unwrap();
    let reference = |name: &str| format!("file:{}", file(dir.path(), name));
    let bearer = serde_json::json!({"type": "bearer", "token": reference("bearer")});
    let oauth = serde_json::json!({
        "type": "oauth2", "token_url": "http://127.0.0.1:1/", "client_id": "c", "client_secret": reference("client"),
    });
    // The point, where it is, and whether the process ends by it.
    let cases = [
        (
            "client.configured",
            "src/edge/kafka/client.rs",
            &bearer,
            true,
        ),
        ("secrets.read", "src/delivery/terms.rs", &bearer, true),
        ("token.asked", "src/delivery/tokens.rs", &oauth, false),
    ];
    for (point, place, auth, ends) in cases {
        let world = World::on(&broker, "panic");
        world.create_topics(1);
        let mut process = run_with(&world, dir.path(), point, auth);
        world.produce_events([("k", truth::event(1))]);
        let line = process.wait_for_line(" panicked at ", LATER);
        assert!(line.contains(place), "{point}: {line}");
        process.wait_for_line("may hold a secret", LATER);
        process.wait_for_line("core::panicking", LATER);
        if ends {
            assert!(!process.wait_exit(LATER).success(), "{point}");
        } else {
            for page in ["/metrics", "/lag?all=1", "/readyz", "/"] {
                let (_, body) = process.get(page);
                assert!(!body.contains(CANARY), "{point}: {page}");
            }
            process.sigterm();
            eventually_true("it ends", LATER, || process.exited().is_some());
        }
        for line in process.stderr() {
            assert!(!line.contains(CANARY), "{point}: a secret is written");
        }
    }
}
