//! One incident from its notice to the last webhook, by a person at a terminal: a pty, keys and all. `docs/incident.md` is
//! its transcript, and this test holds the document to what the program prints.
//!
//! `UPDATE_INCIDENT=1 cargo test --test it incident` writes the transcript anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};
use regex::Regex;
use serde_json::{Value, json};

use crate::scene::{LATER, put, start, subscription, wait_until_done, with};
use crate::support::{Answer, Receiver, World, eventually, eventually_true, foreign_settings};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/incident.md");
/// Ctrl-C.
const INTERRUPT: &[u8] = b"\x03";
/// Webhooks that acme's endpoint rejects.
const REJECTED: usize = 40;
/// Webhooks that wait for it after that.
const PENDING: usize = 10;

/// What somebody did at the terminal, and saw.
struct Session<'a> {
    world: &'a World,
    /// By marker in the document: the transcript of that part.
    parts: Vec<(&'static str, String)>,
}

impl<'a> Session<'a> {
    fn part(&mut self, name: &'static str) {
        self.parts.push((name, String::new()));
    }

    /// Types a command, and returns what the terminal shows at its end.
    #[track_caller]
    fn run(&mut self, command: &str, code: i32) -> String {
        self.run_with(command, code, None)
    }

    /// The same, and presses Ctrl-C when `is_time` says so.
    #[track_caller]
    fn run_with(&mut self, command: &str, code: i32, is_time: Option<&dyn Fn() -> bool>) -> String {
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("hookstream"), "{command}");
        let (pty, terminal) = open().unwrap();
        pty.resize(Size::new(50, 150)).unwrap();
        let words: Vec<&str> = words.map(|word| word.trim_matches('\'')).collect();
        let program = Command::new(env!("CARGO_BIN_EXE_hookstream"));
        let mut child = foreign_settings()
            .fold(program, |program, name| program.env_remove(name))
            .args(words)
            .envs(environment(self.world))
            .env("TERM", "xterm")
            .spawn(terminal)
            .unwrap();
        let pty = Arc::new(pty);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let reading = {
            let (pty, shown) = (Arc::clone(&pty), Arc::clone(&shown));
            std::thread::spawn(move || read(&pty, &shown))
        };
        if let Some(is_time) = is_time {
            eventually_true("the time for Ctrl-C", LATER, is_time);
            (&*pty).write_all(INTERRUPT).unwrap();
        }
        let status = eventually("the command ends", LATER, || child.try_wait().unwrap());
        reading.join().unwrap();
        let shown = screen(&shown.lock().unwrap());
        assert_eq!(status.code(), Some(code), "{command}:\n{shown}");
        let (_, text) = self.parts.last_mut().unwrap();
        write!(text, "$ {command}\n{shown}").unwrap();
        shown
    }
}

/// Until the last process has closed the terminal.
fn read(pty: &Pty, shown: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    let mut pty = pty;
    // Linux reports a terminal that all have closed as an I/O error.
    while let Ok(read @ 1..) = pty.read(&mut buffer) {
        shown.lock().unwrap().extend_from_slice(&buffer[..read]);
    }
}

/// The lines that a terminal shows at the end: without colours, and of what was drawn over only the last.
fn screen(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    // Erased, which is the same as drawn over here.
    let text = text.replace("\x1b[2K", "\r").replace("\x1b[K", "\r");
    let escapes = Regex::new("\x1b\\[[0-9;?]*[A-Za-z]").unwrap();
    let text = escapes.replace_all(&text, "");
    let mut lines = String::new();
    for line in text.lines() {
        let line = line.trim_end_matches('\r');
        let last = line.rsplit('\r').find(|part| !part.trim().is_empty());
        let line = last.unwrap_or_default().trim_end().trim_start_matches("^C");
        if !line.is_empty() {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    lines
}

/// The flags of a world, as variables.
fn environment(world: &World) -> BTreeMap<String, String> {
    let arguments = world.args();
    let mut all = BTreeMap::new();
    let mut left = arguments.iter().peekable();
    while let Some(argument) = left.next() {
        let name = argument.strip_prefix("--").unwrap();
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => match left.next_if(|next| !next.starts_with("--")) {
                Some(value) => (name, value.clone()),
                None => (name, "true".to_owned()),
            },
        };
        let name = name.to_ascii_uppercase().replace('-', "_");
        all.insert(format!("HOOKSTREAM_{name}"), value);
    }
    all
}

/// A line without what differs in each run.
fn lasting(line: &str) -> String {
    let patterns = [
        (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
        (r"http://127\.0\.0\.1:\d+", "URL"),
        (r"\bmsg_[\w-]+", "WEBHOOK"),
        (r"\b\d+:\d+\b", "PLACE"),
        (r"\d+([.:]\d+)*( ?(ms|s|m|h|min|%))?\b", "N"),
        (r"[█▉▊▋▌▍▎▏░ ]+", " "),
    ];
    let mut line = line.to_owned();
    for (pattern, to) in patterns {
        line = Regex::new(pattern)
            .unwrap()
            .replace_all(&line, to)
            .into_owned();
    }
    line.trim().to_owned()
}

/// The document with these transcripts at their markers.
fn document(parts: &[(&str, String)]) -> String {
    let mut text = std::fs::read_to_string(DOCUMENT).unwrap();
    for (name, transcript) in parts {
        let (begin, end) = (
            format!("<!-- {name}: begin -->\n"),
            format!("<!-- {name}: end -->"),
        );
        let from = text.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let to = from
            + text[from..]
                .find(&end)
                .unwrap_or_else(|| panic!("no {end}"));
        text.replace_range(from..to, &format!("```\n{transcript}```\n"));
    }
    text
}

fn publish(world: &World, numbers: std::ops::Range<usize>) {
    world.produce_events(numbers.map(|number| {
        let id = format!("order-{number}");
        let event = json!({"id": id, "type": "order.created", "data": {"number": number}});
        ("k", event.to_string())
    }));
}

fn notices(chat: &Receiver) -> Vec<String> {
    let each = chat.seen_at("/chat").into_iter();
    each.map(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        body["type"].as_str().unwrap().to_owned()
    })
    .collect()
}

#[test]
fn one_person_handles_an_incident_with_this_program_alone() {
    let mut world = World::new("incident");
    let flags = [
        "--breaker-failures=3",
        // Long enough for everything that happens until somebody probes.
        "--breaker-probe=30s",
        "--notice-after=1s",
        "--operator-subscriber=ops",
    ];
    world.flags.extend(flags.map(str::to_owned));
    world.create_topics(1);
    let status = Arc::new(AtomicU16::new(422));
    let receiver = {
        let status = Arc::clone(&status);
        Receiver::start(move |seen| match seen.path.as_str() {
            "/acme" => match status.load(Ordering::SeqCst) {
                200 => Answer::ok(),
                422 => Answer::status(422).body(r#"{"error":"unknown field: currency"}"#),
                other => Answer::status(other).body("database is down"),
            },
            _ => Answer::ok(),
        })
    };
    let one = |id: &str, path: &str, subscriber: &str, events: &[&str]| {
        let subscription = subscription(id, &receiver.url(path), events);
        // Longer than an endpoint counts as working after its last response.
        let schedule = vec!["2s"; 4];
        with(
            subscription,
            json!({"subscriber": subscriber, "retry_schedule": schedule}),
        )
    };
    put(
        &world,
        &[
            one("acme-orders", "/acme", "acme", &["order.*"]),
            one("globex-orders", "/globex", "globex", &["order.*"]),
            one("ops-chat", "/chat", "ops", &["hookstream.**"]),
        ],
    );
    let _process = start(&world, &[]);
    let mut session = Session {
        world: &world,
        parts: Vec::new(),
    };

    // acme has deployed a version that rejects every webhook, and then breaks down.
    publish(&world, 0..REJECTED);
    eventually_true("the first dead letter is noticed", LATER, || {
        notices(&receiver).contains(&"hookstream.dead_letters.begun".to_owned())
    });
    eventually_true("all are rejected", LATER, || {
        receiver.seen_at("/acme").len() == REJECTED
    });
    status.store(503, Ordering::SeqCst);
    publish(&world, REJECTED..REJECTED + PENDING);
    eventually_true("the failing endpoint is noticed", LATER, || {
        notices(&receiver).contains(&"hookstream.endpoint.failing".to_owned())
    });

    session.part("notice");
    let failing = receiver.seen_at("/chat").into_iter().find_map(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        (body["type"] == "hookstream.endpoint.failing").then_some(body)
    });
    let failing = serde_json::to_string_pretty(&failing.unwrap()).unwrap();
    writeln!(session.parts.last_mut().unwrap().1, "{failing}").unwrap();
    assert!(failing.contains("database is down"), "{failing}");

    session.part("who and why");
    let lag = session.run("hookstream lag --once", 0);
    assert!(
        lag.contains("breaker open") && lag.contains("database is down"),
        "{lag}"
    );
    session.run("hookstream subscriptions show acme-orders", 0);
    let stats = session.run("hookstream dead-letters stats", 0);
    assert!(stats.contains("permanent-status"), "{stats}");
    session.run(
        "hookstream dead-letters list --subscriber acme --limit 3",
        0,
    );

    // acme has fixed it.
    status.store(200, Ordering::SeqCst);
    let down = receiver.seen_at("/acme").len();
    session.part("probe");
    session.run("hookstream subscriptions probe acme-orders", 0);
    wait_until_done(&world);
    eventually_true("the recovery is noticed", LATER, || {
        notices(&receiver).contains(&"hookstream.endpoint.recovered".to_owned())
    });
    session.run("hookstream lag --once", 0);

    session.part("replay");
    let before = receiver.seen_at("/acme").len();
    session.run(
        "hookstream replay --dead-letters --subscriber acme --dry-run",
        0,
    );
    session.run_with(
        "hookstream replay --dead-letters --subscriber acme --rate 10 --yes",
        130,
        Some(&|| receiver.seen_at("/acme").len() >= before + 5),
    );
    let resumed = session.run(
        "hookstream replay --dead-letters --subscriber acme --yes",
        0,
    );
    assert!(!resumed.contains("40 of 40") || REJECTED != 40, "{resumed}");
    wait_until_done(&world);
    session.part("end");
    session.run("hookstream lag --once", 0);
    session.run("hookstream dead-letters stats", 0);

    // Everything was accepted once.
    let mut accepted: BTreeMap<String, usize> = BTreeMap::new();
    for seen in &receiver.seen_at("/acme")[down..] {
        *accepted.entry(seen.webhook_id().to_owned()).or_default() += 1;
    }
    assert_eq!(accepted.len(), REJECTED + PENDING);
    assert!(accepted.values().all(|&times| times == 1), "{accepted:?}");

    if std::env::var_os("UPDATE_INCIDENT").is_some() {
        std::fs::write(DOCUMENT, document(&session.parts)).unwrap();
    }
    // Lines that differ by figures only are one: an hour may end meanwhile.
    let lines = |text: &str| -> Vec<String> {
        let mut lines: Vec<String> = text.lines().map(lasting).collect();
        lines.dedup();
        lines
    };
    let written = std::fs::read_to_string(Path::new(DOCUMENT)).unwrap();
    let (written, actual) = (lines(&written), lines(&document(&session.parts)));
    let other = written
        .iter()
        .zip(&actual)
        .find(|(written, actual)| written != actual);
    assert_eq!(
        other, None,
        "docs/incident.md: UPDATE_INCIDENT=1 writes it anew"
    );
    assert_eq!(written.len(), actual.len());
}
