//! The lag role's figures against a naive count over all topics, while delivery runs and while it is down.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use hookstream::model::units::{Offset, Position};
use hookstream::model::window::{Place, Window};
use serde_json::{Value, json};

use crate::scene::{LATER, event, put, subscription, with};
use crate::support::{
    Answer, Isolation, Process, Receiver, World, eventually, eventually_true, live,
};

/// Ready, waiting and dead, by subscriber.
pub type Counts = BTreeMap<String, [u64; 3]>;

/// What is pending, by reading everything.
pub fn naive(world: &World) -> Counts {
    let mut counts = Counts::new();
    let positions = |group: &str, topic: &str| -> BTreeMap<i32, (i64, String)> {
        let committed = world.committed(group, topic).into_iter();
        committed
            .map(|(partition, position, metadata)| (partition, (position, metadata)))
            .collect()
    };
    let commands = world.topics.commands();
    let delivered = positions("deliver", &commands);
    let cluster = world.cluster();
    let place = |partition| Place::new(&cluster, &commands, partition);
    for record in live(world.read_all(&commands, Isolation::Committed)) {
        let done = delivered
            .get(&record.partition)
            .is_some_and(|(position, metadata)| {
                let (window, error) =
                    Window::restore(Position(*position), metadata, place(record.partition));
                assert_eq!(error, None);
                record.offset < *position || window.is_finished(Offset(record.offset))
            });
        if !done {
            counts.entry(record.key_text().to_owned()).or_default()[0] += 1;
        }
    }
    for tier in &world.tiers {
        let topic = world.topics.retry(*tier);
        let released = positions("release", &topic);
        for record in world.read_all(&topic, Isolation::Committed) {
            let position = released
                .get(&record.partition)
                .map_or(0, |(position, _)| *position);
            if record.offset >= position {
                counts.entry(record.key_text().to_owned()).or_default()[1] += 1;
            }
        }
    }
    for record in world.read_all(&world.topics.dead_letters(), Isolation::Committed) {
        let by = if record.header("hs-fact") == Some("dead-lettered") {
            1
        } else {
            -1
        };
        let dead = &mut counts.entry(record.key_text().to_owned()).or_default()[2];
        *dead = dead.checked_add_signed(by).unwrap();
    }
    counts.retain(|_, counts| counts.iter().any(|count| *count > 0));
    counts
}

pub fn told(figures: &Value) -> Counts {
    let each = figures["subscribers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let dead = one["dead_letters"].as_object().unwrap().values();
            let counts = [
                one["ready"].as_u64().unwrap(),
                one["waiting"].as_u64().unwrap(),
                dead.map(|count| count.as_u64().unwrap()).sum(),
            ];
            (one["name"].as_str().unwrap().to_owned(), counts)
        });
    each.filter(|(_, counts)| counts.iter().any(|count| *count > 0))
        .collect()
}

pub fn lag(process: &Process, query: &str) -> Value {
    let (status, body) = process.get(&format!("/lag{query}"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Runs a browser on the page for a few seconds; what it writes.
fn browse(port: u16, arguments: &[&str]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--virtual-time-budget=3000")
        .args(arguments)
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()
        .expect("chromium, which scripts/prerequisites installs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The page as a browser has it, on a desk and on a phone; pictures of both stay in `target/tmp`, to be looked at.
fn look(port: u16, name: &str) -> String {
    for (device, size) in [("desk", "1280,900"), ("phone", "390,900")] {
        let picture = format!("{}/{name}-{device}.png", env!("CARGO_TARGET_TMPDIR"));
        let to = format!("--screenshot={picture}");
        browse(port, &[&format!("--window-size={size}"), &to]);
        let bytes = std::fs::metadata(&picture).map_or(0, |file| file.len());
        assert!(bytes > 10_000, "{picture} has {bytes} bytes");
    }
    browse(port, &["--dump-dom"])
}

pub fn once(world: &World) -> Value {
    let output = world.run(&["lag", "--once", "-o", "json"], "");
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

fn produce(world: &World, numbers: std::ops::Range<usize>) {
    world.produce_events(numbers.map(|number| {
        (
            format!("k{number}"),
            event(&format!("e{number}"), "a.b", "{}"),
        )
    }));
}

fn setup(name: &str) -> (World, Receiver) {
    let mut world = World::new(name);
    world.tiers = vec![Duration::from_secs(1), Duration::from_secs(3600)];
    world.create_topics(3);
    let receiver = Receiver::start(|seen| {
        Answer::status(match seen.path.split('?').next() {
            Some("/failing") => 500,
            Some("/refusing") => 400,
            _ => 200,
        })
    });
    let one = |id: &str| {
        // In the long tier for sure, where nothing moves: what is due within the hour moves from hop to hop.
        let fields = json!({"retry_schedule": ["2h"]});
        // With what a stranger should not see, on the page or elsewhere.
        let url = receiver.url(&format!("/{id}?token=hunter2"));
        let secret = json!({"secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]});
        with(with(subscription(id, &url, &["**"]), fields), secret)
    };
    put(&world, &[one("good"), one("failing"), one("refusing")]);
    (world, receiver)
}

#[test]
fn at_rest_the_figures_are_those_of_a_naive_count_and_everybody_tells_the_same() {
    let (world, receiver) = setup("lag");
    let mut process = world.spawn("run", &[]);
    process.wait_ready();
    produce(&world, 0..20);
    receiver.wait_for(60, LATER);
    let expected = Counts::from([
        ("failing".to_owned(), [0, 20, 0]),
        ("refusing".to_owned(), [0, 0, 20]),
    ]);
    eventually_true("the retries and dead letters are durable", LATER, || {
        naive(&world) == expected
    });
    eventually_true("/lag tells of them", LATER, || {
        told(&lag(&process, "")) == expected
    });
    let failing = lag(&process, "?subscriber=fail&sort=age&top=1");
    let one = &failing["subscribers"][0];
    assert_eq!(one["subscriptions"][0]["name"], "failing");
    assert!(
        one["oldest"].is_string() && one["next_due"].is_string(),
        "{one}"
    );
    // The marker of the last transaction may have come just before the figures were made.
    eventually_true("everything was read", LATER, || {
        lag(&process, "")["behind"] == 0
    });
    let finished = |figures: &Value| -> BTreeMap<String, u64> {
        let each = figures["subscribers"].as_array().unwrap().iter();
        each.map(|one| {
            let name = one["name"].as_str().unwrap().to_owned();
            (name, one["finished"].as_u64().unwrap())
        })
        .collect()
    };
    assert_eq!(
        finished(&lag(&process, "?all=1")),
        BTreeMap::from([
            ("failing".to_owned(), 0),
            ("good".to_owned(), 20),
            ("refusing".to_owned(), 20)
        ]),
        "waiting for a retry is no end"
    );
    assert_eq!(
        failing["total"],
        json!({"ready": 0, "waiting": 20, "dead_letters": 0}),
        "of those asked for"
    );
    assert_eq!(lag(&process, "?top=1")["total"]["dead_letters"], 20);
    eventually_true("the metrics tell of them", LATER, || {
        process.metric(r#"hookstream_subscriber_lag{state="waiting",subscriber="failing"}"#)
            == Some(20.0)
            && process.metric(r#"hookstream_subscriber_dead_letters{subscriber="refusing"}"#)
                == Some(20.0)
    });
    assert!(!failing.to_string().contains("hunter2"), "{failing}");
    assert_eq!(process.get("/lag?sort=size").0, 400);
    // Attempts are told by delivery, some seconds later.
    eventually_true("the last minute has all failed attempts", LATER, || {
        let past: Value = serde_json::from_str(&process.get("/lag/history").1).unwrap();
        let last = past.as_array().and_then(|points| points.last()).unwrap();
        last["waiting"] == 20 && last["failed_attempts"] == 40
    });
    let (status, page) = process.get("/");
    assert_eq!(status, 200);
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "nothing from elsewhere"
    );
    let port = process.http_port();
    if crate::skipped::have("chromium") {
        eventually_true("a browser shows the figures", LATER, || {
            browse(port, &["--dump-dom"]).contains("20 permanent-status")
        });
        let shown = look(port, "page");
        assert!(
            shown.contains("<polyline") && shown.contains("failing"),
            "{shown}"
        );
        assert!(
            shown.contains(r#"tabindex="0""#) && shown.contains(r#"aria-expanded="false""#),
            "a keyboard opens a subscriber: {shown}"
        );
        assert!(
            !shown.contains("token") && !shown.contains("whsec"),
            "no secrets"
        );
    }

    // Delivery is down, and more comes in; some dead letters are replayed meanwhile.
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    let fanout = world.spawn("fanout", &[]);
    fanout.wait_ready();
    produce(&world, 20..35);
    let replayed = world.run(&["replay", "--dead-letters", "--limit", "5", "--yes"], "");
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    let expected = Counts::from([
        ("good".to_owned(), [15, 0, 0]),
        ("failing".to_owned(), [15, 20, 0]),
        ("refusing".to_owned(), [20, 0, 15]),
    ]);
    eventually_true("all commands are there", LATER, || {
        naive(&world) == expected
    });
    assert_eq!(told(&once(&world)), expected);
    let table = world.run(&["lag", "--once"], "");
    assert!(
        table.stdout.contains("SUBSCRIBER") && table.stdout.contains("15 permanent-status"),
        "{}",
        table.stdout
    );
    assert!(
        table
            .stderr
            .contains("50 ready, 20 waiting, 15 dead letters"),
        "{}",
        table.stderr
    );
    // `lag --watch | head -1` ends.
    let shell = r#""$0" "$@" | head -1; test ${PIPESTATUS[0]} = 0"#;
    let args = [&world.args()[..], &["lag".to_owned(), "--watch".to_owned()]].concat();
    let watched = Command::new("timeout")
        .args(["60", "bash", "-c", shell, env!("CARGO_BIN_EXE_hookstream")])
        .args(args)
        .output()
        .unwrap();
    assert!(watched.status.success(), "{watched:?}");
    let nobody = world.run(&["lag", "--once", "--subscriber", "nobody"], "");
    assert_eq!((nobody.code, nobody.stdout.as_str()), (0, ""));
    for part in ["match \"nobody\"", "0 ready, 0 waiting, 0 dead"] {
        assert!(nobody.stderr.contains(part), "{}", nobody.stderr);
    }
}

#[test]
fn the_role_follows_kills_rebalances_and_operators() {
    let (world, receiver) = setup("lag-follows");
    let role = world.spawn("lag", &[]);
    role.wait_ready();
    let quick = ["-X", "session.timeout.ms=6000"];
    let _others = [
        world.spawn("fanout", &quick),
        world.spawn("release", &quick),
    ];
    let mut first = world.spawn_as("one", "deliver", &quick);
    first.wait_ready();
    produce(&world, 0..300);
    receiver.wait_for(200, LATER);
    first.sigkill();
    let second = world.spawn_as("two", "deliver", &quick);
    second.wait_ready();
    let expected = Counts::from([
        ("failing".to_owned(), [0, 300, 0]),
        ("refusing".to_owned(), [0, 0, 300]),
    ]);
    eventually_true("everything has ended", LATER * 2, || {
        naive(&world) == expected
    });
    eventually_true("the role tells so", LATER, || {
        told(&lag(&role, "")) == expected
    });
    // What it tells is never of the future, and never stale for long.
    let as_of = eventually("a time", LATER, || lag(&role, "")["as_of_seconds"].as_f64());
    let age = hookstream::edge::clock::now().0 as f64 / 1000.0 - as_of;
    assert!((0.0..30.0).contains(&age), "{age}");
}
