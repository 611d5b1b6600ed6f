//! What operators type, on a real Kafka: topics, subscriptions, dead letters, replays, settings; and exit codes.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::scene::{
    LATER, alter_topic, dead_letters, event, put, start, subscription, wait_for_dead_letters,
    wait_for_records, wait_until_done, with, world,
};
use crate::support::{
    Answer, Isolation, Output, Process, Receiver, SOON, World, eventually_true, program, run_to_end,
};

fn read(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in {}\n{}", output.stdout, output.stderr))
}

// ---- topics ----------------------------------------------------------------------------------------------------

#[test]
fn topics_check_names_what_differs_from_what_topics_create_made() {
    let world = World::new("topics");
    let nothing = world.run(&["topics", "check", "-o", "json"], "");
    assert_eq!(nothing.code, 1, "{}", nothing.stderr);
    let missing = read(&nothing);
    let missing = missing.as_array().unwrap();
    assert!(
        missing.iter().all(|one| one["setting"] == "existence"),
        "{missing:?}"
    );

    let dry = world.run(&["topics", "create", "--dry-run", "--with-events"], "");
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    let still = read(&world.run(&["topics", "check", "-o", "json"], ""));
    assert_eq!(
        still.as_array().unwrap().len(),
        missing.len(),
        "a dry run has made topics"
    );

    let create = [
        "topics",
        "create",
        "--with-events",
        "--partitions",
        "2",
        "-o",
        "json",
    ];
    let made = world.run(&create, "");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made = read(&made);
    let made = made.as_array().unwrap();
    assert_eq!(
        made.len(),
        missing.len(),
        "all that were missing are made: {made:?}"
    );
    assert!(made.iter().all(|one| one["result"] == "created"));
    let good = world.run(&["topics", "check"], "");
    assert_eq!(
        (good.code, good.stdout.as_str()),
        (0, ""),
        "{}",
        good.stderr
    );
    let again = read(&world.run(&create, ""));
    assert!(
        again
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["result"] == "exists")
    );

    let note = "there are topics with 2 partitions";
    for (partitions, is_reported) in [("1", true), ("2", false)] {
        let output = world.run(&["topics", "create", "--partitions", partitions], "");
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert_eq!(
            output.stderr.contains(note),
            is_reported,
            "{}",
            output.stderr
        );
    }

    let commands = world.topics.commands();
    alter_topic(&world, &commands, &[("retention.ms", "1000")]);
    world_without(&world, &world.topics.dead_letters());
    let bad = world.run(&["topics", "check", "-o", "json"], "");
    assert_eq!(bad.code, 1);
    let found = read(&bad);
    let of = |topic: &str, setting: &str| {
        let mut all = found.as_array().unwrap().iter();
        all.find(|one| one["topic"] == topic && one["setting"] == setting)
            .unwrap_or_else(|| panic!("no difference of {topic} in {setting}: {found}"))
    };
    let retention = of(&commands, "retention.ms");
    assert_eq!(retention["found"], "1000");
    assert!(
        retention["mend"].as_str().unwrap().contains(&commands),
        "{retention}"
    );
    let missing = of(&world.topics.dead_letters(), "existence");
    let mend = missing["mend"].as_str().unwrap();
    assert!(mend.starts_with("hookstream topics create "), "{missing}");
    // Copied into a shell that knows nothing of these settings.
    let program = env!("CARGO_BIN_EXE_hookstream");
    let mended = Command::new("sh")
        .args(["-c", &mend.replacen("hookstream", program, 1)])
        .output()
        .unwrap();
    assert!(mended.status.success(), "{mended:?}");
    let rest = read(&world.run(&["topics", "check", "-o", "json"], ""));
    let mut rest = rest.as_array().unwrap().iter();
    assert!(rest.all(|one| one["topic"] == commands), "{rest:?}");
}

/// Deletes a topic.
pub fn world_without(world: &World, topic: &str) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::client::DefaultClientContext;
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let deleted = runtime
        .block_on(admin.delete_topics(&[topic], &AdminOptions::new()))
        .unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    eventually_true("the topic is gone", SOON, || {
        let metadata = admin.inner().fetch_metadata(None, SOON).unwrap();
        metadata.topics().iter().all(|found| found.name() != topic)
    });
}

// ---- subscriptions ---------------------------------------------------------------------------------------------

#[test]
fn subscriptions_are_applied_from_json_json_lines_and_yaml() {
    let world = world("apply");
    let apply = |text: &str| world.run(&["subscriptions", "apply", "-f", "-", "-o", "json"], text);
    let list = || read(&world.run(&["subscriptions", "list", "-o", "json"], ""));
    let ids = || -> Vec<String> {
        let listed = list();
        let ids = listed.as_array().unwrap().iter();
        ids.map(|one| one["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let https = |id: &str| subscription(id, &format!("https://{id}.example/"), &["order.*"]);

    let one = with(
        https("json"),
        json!({"secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "headers": {"authorization": "Bearer s3cr3t"}}),
    );
    let created = apply(&one.to_string());
    assert_eq!(created.code, 0, "{}", created.stderr);
    assert_eq!(read(&created)[0]["result"], "created");
    assert_eq!(read(&apply(&one.to_string()))[0]["result"], "unchanged");
    let lines = format!("{}\n{}\n", https("line-1"), https("line-2"));
    assert_eq!(apply(&lines).code, 0);
    let yaml = "id: yaml\nsubscriber: yaml\nurl: https://yaml.example/\nevents: ['order.*']\n";
    assert_eq!(apply(yaml).code, 0);
    assert_eq!(ids(), ["json", "line-1", "line-2", "yaml"]);

    let bad = with(https("bad"), json!({"max_in_flight": 0, "colour": "blue"}));
    let three = format!("[{}, {bad}, {}]", https("good-1"), https("good-2"));
    let missing = world.run(&["subscriptions", "apply", "-f", "/nowhere/subs.yaml"], "");
    assert_eq!(missing.code, 2, "{}", missing.stderr);
    let refused = apply(&three);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    for part in ["item 2", "\"bad\"", "max_in_flight", "colour"] {
        assert!(
            refused.stderr.contains(part),
            "{part} is not named: {}",
            refused.stderr
        );
    }
    assert_eq!(
        ids(),
        ["json", "line-1", "line-2", "yaml"],
        "nothing may be written"
    );

    for output in [
        world.run(&["subscriptions", "list", "-o", "json"], ""),
        world.run(&["subscriptions", "show", "json", "-o", "json"], ""),
        world.run(&["subscriptions", "show", "json"], ""),
    ] {
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(output.stdout.contains("redacted"), "{}", output.stdout);
        for secret in ["MfKQ9r8", "s3cr3t"] {
            assert!(
                !output.stdout.contains(secret) && !output.stderr.contains(secret),
                "a secret is shown"
            );
        }
    }
}

#[test]
fn a_subscription_is_paused_resumed_and_deleted() {
    let world = world("states");
    let whole = with(
        subscription("acme", "https://acme.example/", &["order.*"]),
        json!({"secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "max_in_flight": 3}),
    );
    put(
        &world,
        &[
            whole.clone(),
            subscription("other", "https://o.example/", &["**"]),
        ],
    );
    let act = |verb: &str, ids: &[&str]| {
        world.run(&[&["subscriptions", verb, "-o", "json"], ids].concat(), "")
    };
    let records = |key: &str| -> Vec<Option<Value>> {
        let records = world.read_all(&world.topics.subscriptions(), Isolation::Committed);
        let of_key = records
            .into_iter()
            .filter(|record| record.key_text() == key);
        let value = |value: Vec<u8>| serde_json::from_slice(&value).unwrap();
        of_key.map(|record| record.value.map(value)).collect()
    };
    let show = || read(&world.run(&["subscriptions", "show", "acme", "-o", "json"], ""));
    let paused = act("pause", &["acme"]);
    assert_eq!(
        (paused.code, &read(&paused)[0]["result"]),
        (0, &json!("paused"))
    );
    assert_eq!(
        show()["state"],
        "paused",
        "the state is shown as it was decided"
    );
    assert_eq!(read(&act("pause", &["acme"]))[0]["result"], "unchanged");
    assert_eq!(read(&act("resume", &["acme"]))[0]["result"], "resumed");
    assert_eq!(show()["state"], "active");
    assert_eq!(records("acme"), [Some(whole)], "the document is as applied");
    let decisions = records("state/acme");
    let states: Vec<_> = decisions
        .iter()
        .map(|decision| decision.as_ref().unwrap()["state"].clone())
        .collect();
    assert_eq!(states, ["paused", "active"]);
    assert!(decisions[1].as_ref().unwrap()["resumed_at"].is_i64());

    let unknown = act("delete", &["acme", "nobody"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    assert_eq!(
        records("acme").len(),
        1,
        "nothing may be written when one is unknown"
    );
    assert_eq!(read(&act("delete", &["acme"]))[0]["result"], "deleted");
    assert_eq!(records("acme").last(), Some(&None));
    assert_eq!(records("state/acme").last(), Some(&None));
    let show = world.run(&["subscriptions", "show", "acme"], "");
    assert_eq!((show.code, show.stdout.as_str()), (1, ""));
}

// ---- dead letters and replay -----------------------------------------------------------------------------------

/// A world with dead letters of two subscribers, and an endpoint that will accept them later.
struct Given {
    world: World,
    receiver: Receiver,
    accepts: Arc<AtomicBool>,
}

impl Given {
    /// `acme` and `globex` have `each` dead letters; nothing runs any more.
    fn up(name: &str, each: usize) -> Self {
        let world = world(name);
        let accepts = Arc::new(AtomicBool::new(false));
        let accepting = Arc::clone(&accepts);
        let receiver = Receiver::start(move |seen| {
            match (accepting.load(Ordering::SeqCst), seen.path.as_str()) {
                (true, _) => Answer::ok(),
                (false, "/acme") => Answer::status(400),
                (false, _) => Answer::status(422),
            }
        });
        put(
            &world,
            &["acme", "globex"]
                .map(|id| subscription(id, &receiver.url(&format!("/{id}")), &["**"])),
        );
        let mut process = start(&world, &[]);
        world.produce_events(
            (0..each).map(|n| ("k", event(&format!("e-{n}"), "order.created", "1"))),
        );
        wait_for_records(&world, &world.topics.dead_letters(), each * 2);
        wait_until_done(&world);
        process.sigterm();
        assert!(process.wait_exit(LATER).success());
        Self {
            world,
            receiver,
            accepts,
        }
    }

    fn replay(&self, flags: &[&str]) -> Output {
        self.world
            .run(&[&["replay", "--dead-letters"], flags].concat(), "")
    }

    fn replay_in_background(&self, flags: &[&str]) -> Process {
        let mut arguments = vec!["replay".to_owned(), "--dead-letters".to_owned()];
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        arguments.extend(self.world.args());
        Process::spawn(&arguments)
    }

    /// Webhook ids of the commands that replays have written.
    fn replayed(&self) -> Vec<String> {
        let commands = self
            .world
            .read_all(&self.world.topics.commands(), Isolation::Committed);
        let replayed = commands
            .iter()
            .filter(|one| one.header("hs-cause") == Some("replay"));
        replayed
            .map(|one| one.header("webhook-id").unwrap().to_owned())
            .collect()
    }

    /// Every letter has exactly one command, and gets exactly one request once delivery runs.
    #[track_caller]
    fn assert_each_is_sent_once(&self, count: usize) {
        let replayed = self.replayed();
        let distinct: BTreeSet<&String> = replayed.iter().collect();
        assert_eq!(
            (replayed.len(), distinct.len()),
            (count, count),
            "commands, and different ones"
        );
        assert!(dead_letters(&self.world).is_empty());

        let before = self.receiver.seen().len();
        self.accepts.store(true, Ordering::SeqCst);
        let _process = start(&self.world, &[]);
        wait_until_done(&self.world);
        let seen = self.receiver.seen();
        let ids: BTreeSet<&str> = seen[before..].iter().map(|one| one.webhook_id()).collect();
        assert_eq!(
            (seen.len() - before, ids.len()),
            (count, count),
            "requests, and different ones"
        );
    }
}

#[test]
fn dead_letters_are_listed_shown_and_replayed_by_what_they_are() {
    let given = Given::up("letters", 3);
    let letters = dead_letters(&given.world);
    assert_eq!(letters.len(), 6);
    let count = |flags: &[&str]| {
        let command = [&["dead-letters", "list", "-o", "json"], flags].concat();
        read(&given.world.run(&command, ""))
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(count(&["--subscriber", "acme"]), 3);
    assert_eq!(count(&["--status", "422"]), 3);
    assert_eq!(count(&["--reason", "gone"]), 0);
    assert_eq!(count(&["--event-type", "order.*"]), 6);
    assert_eq!(count(&["--event-type", "invoice.*"]), 0);
    assert_eq!(count(&["--until", "1h"]), 0);
    assert_eq!(count(&["--since", "1h", "--limit", "4"]), 4);

    let place = letters[0]["place"].as_str().unwrap();
    let shown = read(
        &given
            .world
            .run(&["dead-letters", "show", place, "-o", "json"], ""),
    );
    assert_eq!(shown["webhook_id"], letters[0]["webhook_id"]);
    assert_eq!(
        shown["body"],
        r#"{"type":"order.created","timestamp":"2026-07-01T12:00:00Z","data":1}"#
    );
    let nothing = given.world.run(&["dead-letters", "show", "7:7"], "");
    assert_eq!(nothing.code, 1, "{}", nothing.stderr);

    let asked = given.replay(&[]);
    assert_eq!(asked.code, 2, "without a terminal it cannot ask");
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    let dry = given.replay(&["--dry-run", "--subscriber", "acme", "-o", "json"]);
    let dry = read(&dry);
    assert_eq!(
        (&dry["dry_run"], &dry["letters"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(dry["by_reason"]["permanent-status"], 3);
    assert!(
        given.replayed().is_empty(),
        "a dry run has written commands"
    );
    assert_eq!(
        dead_letters(&given.world).len(),
        6,
        "a dry run has settled letters"
    );

    let two = given.replay(&["--yes", "--subscriber", "acme", "--limit", "2"]);
    assert_eq!(two.code, 0, "{}", two.stderr);
    assert_eq!(given.replayed().len(), 2);
    assert_eq!(count(&["--subscriber", "acme"]), 1);
    assert_eq!(count(&["--all"]), 6);
    let rest = given.replay(&["--yes", "-o", "json"]);
    assert_eq!(read(&rest)["letters"], 4, "{}", rest.stderr);
    given.assert_each_is_sent_once(6);
}

#[test]
fn two_replays_at_once_send_each_letter_once() {
    let given = Given::up("two-replays", 15);
    let first = given.replay_in_background(&["--yes", "--rate", "10/s"]);
    eventually_true("the first replay is in the middle", LATER, || {
        !given.replayed().is_empty()
    });
    let second = given.replay(&["--yes"]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    let mut first = first;
    assert_eq!(
        first.wait_exit(LATER).code(),
        Some(0),
        "it has nothing left to do"
    );
    given.assert_each_is_sent_once(30);
}

#[test]
fn replays_with_different_filters_work_at_the_same_time() {
    let given = Given::up("side-by-side", 12);
    // Of the same partition: they take turns.
    let mut both = ["acme", "globex"]
        .map(|id| given.replay_in_background(&["--yes", "--rate", "6/s", "--subscriber", id]));
    eventually_true("both are in the middle", LATER, || {
        let commands = given
            .world
            .read_all(&given.world.topics.commands(), Isolation::Committed);
        let replayed = commands
            .iter()
            .filter(|one| one.header("hs-cause") == Some("replay"));
        replayed
            .map(|one| one.key_text())
            .collect::<BTreeSet<_>>()
            .len()
            == 2
    });
    for one in &mut both {
        assert_eq!(one.wait_exit(LATER).code(), Some(0), "{:?}", one.stderr());
    }
    given.assert_each_is_sent_once(24);
}

#[test]
fn a_replay_that_is_killed_and_run_again_sends_each_letter_once() {
    let given = Given::up("killed-replay", 15);
    let mut first = given.replay_in_background(&["--yes", "--rate", "5/s"]);
    eventually_true("the first replay is in the middle", LATER, || {
        !given.replayed().is_empty()
    });
    first.sigkill();
    let sent = given.replayed().len();
    assert!(sent < 30, "it was done before it was killed");
    let second = given.replay(&["--yes", "-o", "json"]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    let taken = read(&second)["letters"].as_u64().unwrap();
    // What was being committed when it was killed may have been committed after all.
    assert!(
        usize::try_from(taken).unwrap() <= 30 - sent,
        "{sent} before, {taken} after"
    );
    given.assert_each_is_sent_once(30);
}

#[test]
fn an_interrupted_replay_says_so_and_leaves_the_rest_open() {
    let given = Given::up("interrupted", 15);
    let mut first = given.replay_in_background(&["--yes", "--rate", "5/s"]);
    eventually_true("the replay is in the middle", LATER, || {
        !given.replayed().is_empty()
    });
    first.signal("INT");
    assert_eq!(first.wait_exit(LATER).code(), Some(130));
    let sent = given.replayed().len();
    assert!(sent < 30, "it was done before it was interrupted");
    assert_eq!(dead_letters(&given.world).len(), 30 - sent);
}

// ---- settings, help, exit codes --------------------------------------------------------------------------------

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "brokers = \"file:1\"\ntimeout = \"3s\"\nmax-in-flight = 7\n[x]\n\"sasl.password\" = \"hunter2\"\n\"socket.keepalive.enable\" = true\n",
    )
    .unwrap();
    let config = |environment: &[(&str, &str)], flags: &[&str]| {
        let mut command = program();
        command.args(["config", "-o", "json", "--config"]);
        command.arg(file.path()).args(flags);
        command.envs(environment.iter().copied()).output().unwrap()
    };
    let output = config(
        &[
            ("HOOKSTREAM_TIMEOUT", "4s"),
            ("HOOKSTREAM_BROKERS", "env:1"),
        ],
        &["--brokers", "flag:1"],
    );
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let settings: Value = serde_json::from_str(&text).unwrap();
    let of = |name: &str| {
        let found = settings
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"] == name || one["setting"] == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not in {text}"));
        (
            found["value"].as_str().unwrap().to_owned(),
            found["source"].as_str().unwrap().to_owned(),
        )
    };
    let is = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(of("brokers"), is("flag:1", "flag"));
    assert_eq!(of("timeout"), is("4s", "environment"));
    assert_eq!(of("max-in-flight"), is("7", "file"));
    assert_eq!(of("topic-prefix"), is("webhook-", "default"));
    assert_eq!(of("x.socket.keepalive.enable"), is("true", "file"));
    assert!(
        !text.contains("hunter2"),
        "a password is shown: {:?}",
        of("x.sasl.password")
    );

    let wrong = config(
        &[("HOOKSTREAM_TIMEOUT", "soon")],
        &["--brokers", "b:1", "--max-in-flight", "0"],
    );
    assert_eq!(wrong.status.code(), Some(2));
    let told = String::from_utf8(wrong.stderr).unwrap();
    for part in ["timeout", "soon", "environment", "max-in-flight", "65536"] {
        assert!(told.contains(part), "{part} is not named: {told}");
    }
}

#[test]
fn help_version_completions_and_the_manual_need_no_broker() {
    let version = run_to_end(&["--version"], "");
    assert_eq!(
        (version.code, version.stdout.trim()),
        (0, concat!("hookstream ", env!("CARGO_PKG_VERSION")))
    );
    let completions = run_to_end(&["completions", "bash"], "");
    assert_eq!(completions.code, 0);
    assert!(completions.stdout.contains("complete ") && completions.stdout.contains("_hookstream"));
    let manual = run_to_end(&["man"], "");
    assert_eq!(manual.code, 0);
    assert!(
        manual.stdout.contains(".TH hookstream"),
        "{}",
        &manual.stdout[..200.min(manual.stdout.len())]
    );
    let help = run_to_end(&["--help"], "");
    assert_eq!(help.code, 0);
    assert!(!help.stdout.contains("--topic-prefix") && help.stdout.contains("--help-settings"));
    let help = run_to_end(&["deliver", "--help-settings"], "");
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("--topic-prefix"));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for wrong in [
        &["deliver", "--brokers", "b:1", "--no-such-flag"][..],
        &["no-such-command"],
        &["deliver"],
        &["deliver", "--brokers", "b:1", "--timeout", "soon"],
        &["deliver", "--brokers", "b:1", "-X", "group.id=mine"],
        &[
            "replay",
            "--dead-letters",
            "--brokers",
            "b:1",
            "--limit",
            "0",
        ],
        &["replay", "--brokers", "b:1", "--yes"],
        &["lag", "--brokers", "b:1", "-o", "json"],
        &["lag", "--brokers", "b:1", "--sort", "age"],
        &["lag", "--brokers", "b:1", "--top", "3"],
        &["lag", "--brokers", "b:1", "--subscriber", "acme"],
        &["lag", "--brokers", "b:1", "--watch", "-o", "json"],
        &["lag", "--brokers", "b:1", "--watch", "--once"],
        &["deliver", "--brokers", "b:1", "--attempt-log=perhaps"],
    ] {
        let output = run_to_end(wrong, "");
        assert_eq!(output.code, 2, "{wrong:?}: {}", output.stderr);
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_range_of_time_in_which_nothing_can_be_is_a_usage_error() {
    for command in [
        &["dead-letters", "list"][..],
        &["replay", "--dead-letters", "--dry-run"],
        &["trace", "e1"],
    ] {
        let refused = |range: &[&str], parts: &[&str]| {
            let output = run_to_end(&[command, &["--brokers", "b:1"], range].concat(), "");
            assert_eq!(output.code, 2, "{command:?}: {}", output.stderr);
            for part in parts {
                assert!(output.stderr.contains(part), "{}", output.stderr);
            }
        };
        refused(&["--since", "1h", "--until", "2h"], &["--since", "--until"]);
        refused(&["--since", "2100-01-01T00:00:00Z"], &["in the future"]);
    }
}

#[test]
fn operators_commands_say_that_no_broker_answers() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    };
    let brokers = format!("127.0.0.1:{port}");
    let commands = [
        &["topics", "check"][..],
        &["topics", "create"],
        &["subscriptions", "list"],
        &["subscriptions", "apply", "-f", "-"],
        &["dead-letters", "list"],
        &["replay", "--dead-letters", "--dry-run"],
        &["replay", "--dead-letters", "--yes"],
    ];
    let input = subscription("a", "https://a.example/", &["**"]).to_string();
    std::thread::scope(|scope| {
        for command in commands {
            let (brokers, input) = (&brokers, &input);
            scope.spawn(move || {
                let arguments = [command, &["--brokers", brokers]].concat();
                let output = run_to_end(&arguments, input);
                assert_eq!(output.code, 4, "{command:?}: {}", output.stderr);
                assert!(
                    output.stderr.contains("no broker answers"),
                    "{command:?}: {}",
                    output.stderr
                );
            });
        }
    });
}

#[test]
fn dead_letters_are_counted_and_discarded_by_what_they_are() {
    let world = world("discard");
    let receiver = Receiver::start(|_| Answer::status(400));
    let one = |id: &str| subscription(id, &receiver.url(&format!("/{id}")), &["**"]);
    put(&world, &[one("acme"), one("beta")]);
    let _process = start(&world, &[]);
    for number in 0..3 {
        world.produce_event("k", &[], event(&format!("e{number}"), "a.b", "{}"));
    }
    let letters = wait_for_dead_letters(&world, 6);
    let run = |arguments: &[&str]| {
        let output = world.run(&[&["dead-letters"], arguments].concat(), "");
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
        output
    };
    let stats = |arguments: &[&str]| {
        let output = run(&[&["stats", "-o", "json"], arguments].concat());
        let stats: Value = serde_json::from_str(&output.stdout).unwrap();
        stats["total"].as_u64().unwrap()
    };
    assert_eq!((stats(&[]), stats(&["--event-id", "e1"])), (6, 2));
    assert_eq!(stats(&["--error-contains", "RESPONDED 400"]), 6);
    assert_eq!(stats(&["--error-contains", "refused"]), 0);
    let table = run(&["stats"]).stdout;
    assert!(
        table.contains("permanent-status") && table.contains('█'),
        "{table}"
    );

    let webhook_id = letters[0]["webhook_id"].as_str().unwrap();
    let one = ["discard", "--webhook-id", webhook_id];
    run(&[&one[..], &["--dry-run"]].concat());
    assert_eq!(stats(&[]), 6, "a dry run touches nothing");
    let unasked = world.run(&[&["dead-letters"], &one[..]].concat(), "");
    assert_eq!(unasked.code, 2, "{}", unasked.stderr);
    let done = run(&[&one[..], &["--yes"]].concat());
    assert!(
        done.stderr.contains("discarded 1 dead letter"),
        "{}",
        done.stderr
    );
    let again = run(&[&one[..], &["--yes"]].concat());
    assert!(
        again.stderr.contains("discarded 0 dead letters"),
        "{}",
        again.stderr
    );
    run(&["discard", "--subscriber", "beta", "--yes"]);
    let left = 6 - 3 - u64::from(letters[0]["subscriber"] == "acme");
    assert_eq!((stats(&[]), stats(&["--all"])), (left, 6));
    let shown = run(&["show", webhook_id, "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["state"], "discarded");
    let sent = receiver.seen().len();
    let replayed = world.run(
        &["replay", "--dead-letters", "--subscriber", "beta", "--yes"],
        "",
    );
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    assert_eq!(receiver.seen().len(), sent, "what is discarded is not sent");
}
