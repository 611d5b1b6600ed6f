//! What a version writes, the next ones must read: each format stands in a golden file, and a later version's is refused.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hookstream::model::attempt::{Attempt, Excerpt, Facts, Mask};
use hookstream::model::command::{Cause, Command, ContentType, LastFailure};
use hookstream::model::coverage::{Coverage, Kind};
use hookstream::model::dead_letter::{
    Coordinates, DeadLetter, DeadLetterInfo, Fact, Reason, Settled, Settlement,
};
use hookstream::model::source::{self, Mark, Point, Source};
use hookstream::model::subscription::{Decider, Decision, Fold, State, TopicRecord};
use hookstream::model::units::{EpochMs, Offset, Position};
use hookstream::model::window::{Format, Place, Restored, Window};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::scene::{LATER, event, put, start, subscription, world};
use crate::support::{Answer, Receiver, World, eventually_true};

const TOPIC: &str = "webhook-commands";
const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qg";

fn command() -> Command {
    Command {
        subscriber: "acme".into(),
        webhook_id: "msg_1".into(),
        subscription: "acme-orders".into(),
        event_id: "e1".into(),
        event_type: "order.created".into(),
        event_time: Some("2026-07-01T12:00:00Z".into()),
        subject: Some("order-1".into()),
        content_type: ContentType::CloudEvents,
        attempt: 2,
        due: Some(EpochMs(1_700_000_005_000)),
        enqueued: EpochMs(1_700_000_000_000),
        recorded: Some(EpochMs(1_699_999_999_990)),
        cause: Cause::Retry,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        first_failure: Some(EpochMs(1_700_000_001_000)),
        last_failure: Some(Box::new(LastFailure::new(
            EpochMs(1_700_000_004_000),
            Some(503),
            "the endpoint responded 503",
        ))),
        replayed: Some(EpochMs(1_700_000_000_500)),
        sequence: Some(42),
        cluster: Some(CLUSTER.into()),
        body: "{}".into(),
    }
}

fn letter() -> DeadLetter {
    DeadLetter {
        at: Coordinates {
            partition: 3,
            offset: Offset(1042),
        },
        subscriber: "acme".to_owned(),
        subscription: "acme-orders".to_owned(),
        webhook_id: "msg_1".to_owned(),
        event_id: "e1".to_owned(),
        event_type: "order.created".to_owned(),
        attempts: 3,
        enqueued: Some(EpochMs(1_700_000_000_000)),
        info: DeadLetterInfo {
            reason: Reason::AttemptsExhausted,
            status: Some(500),
            error: "the endpoint answered 500".to_owned(),
            first_failure: EpochMs(1_700_000_001_000),
            last_failure: EpochMs(1_700_000_009_000),
        },
    }
}

fn attempt(command: &Command) -> Attempt<'_> {
    let excerpt = Excerpt::new(b"try again later", false, &Mask::default());
    let facts = Facts {
        number: 3,
        began: EpochMs(1_700_000_009_000),
        took: Duration::from_micros(12_345),
        url: "https://acme.example/REDACTED",
        status: Some(500),
        class: "5xx",
        outcome: "retry",
        error: None,
        excerpt: None,
    };
    Attempt {
        body: Some(String::from(excerpt.text).into()),
        body_truncated: excerpt.truncated,
        ..Attempt::new(command, facts)
    }
}

/// A window of the bitmap form, and one of the form with gaps.
fn windows() -> [Window; 2] {
    let taken = |span: i64| {
        let mut window = Window::new(Position(100));
        for offset in 100..100 + span {
            assert!(window.take(Offset(offset)));
        }
        window
    };
    let mut mixed = taken(20);
    for offset in [101, 103, 104, 119] {
        assert!(mixed.finish(Offset(offset)));
    }
    let mut nearly_done = taken(5000);
    for offset in (101..5100).filter(|offset| *offset != 2000) {
        assert!(nearly_done.finish(Offset(offset)));
    }
    [mixed, nearly_done]
}

fn place() -> Place {
    Place::new(CLUSTER, TOPIC, 3)
}

/// The headers `hs-source` of two commands: the first one of its writer, and the one behind it.
fn marks() -> [Mark; 2] {
    let source = Source {
        cluster: source::cluster_hash(CLUSTER),
        topic: [7; 16],
        partition: 5,
        epoch: 0x0123_4567,
    };
    let at = |offset, subscription| Point {
        leader_epoch: 2,
        offset,
        subscription: source::subscription_hash(subscription),
    };
    let (first, second) = (at(1_000, "acme-orders"), at(1_007, "acme-invoices"));
    let mark = |at, previous| Mark {
        source,
        at,
        previous,
    };
    [mark(first, None), mark(second, Some(first))]
}

/// The first window with its first offset finished, beside what these headers say.
fn covered() -> (Window, Coverage) {
    let [mut window, _] = windows();
    window.finish(Offset(100));
    let mut coverage = Coverage::new(Position(100));
    for (offset, mark) in (100..).zip(marks()) {
        coverage.ask(Offset(offset), &mark);
    }
    (window, coverage)
}

fn written() -> String {
    let mut text = String::from(
        "# Each format as it is written; what 0.1.0 wrote otherwise is in formats-0.1.0.golden. Later versions must read it.\n",
    );
    text.push_str("\n## command\n");
    command()
        .envelope()
        .each_header(|name, value| writeln!(text, "{name}: {value}").unwrap());
    text.push_str("\n## dead letter: behind the command's headers\n");
    for (name, value) in letter().info.headers() {
        writeln!(text, "{name}: {value}").unwrap();
    }
    for how in [Settlement::Replayed, Settlement::Discarded] {
        text.push_str("\n## fact\n");
        let fact = Settled::new(&letter(), how, EpochMs(1_700_000_010_000), CLUSTER);
        for (name, value) in fact.headers() {
            writeln!(text, "{name}: {value}").unwrap();
        }
    }
    text.push_str("\n## decisions about a subscription's state\n");
    for (key, value) in decisions() {
        writeln!(text, "{key}: {}", String::from_utf8(value).unwrap()).unwrap();
    }
    text.push_str("\n## attempt\n");
    let command = command();
    let value = serde_json::to_string(&attempt(&command)).unwrap();
    writeln!(text, "{value}").unwrap();
    for (version, format) in [(1, Format::V1), (2, Format::V2)] {
        for window in windows() {
            let snapshot = window.snapshot(place(), format);
            writeln!(
                text,
                "\n## commit metadata, version {version}\nposition: {}\n{}",
                snapshot.position.0, snapshot.metadata
            )
            .unwrap();
        }
    }
    let (window, coverage) = covered();
    let snapshot = window.snapshot_beside(&coverage, place(), Format::V3);
    writeln!(
        text,
        "\n## commit metadata, version 3\nposition: {}\n{}",
        snapshot.position.0, snapshot.metadata
    )
    .unwrap();
    text.push_str("\n## sources of commands\n");
    for mark in marks() {
        writeln!(text, "{}: {}", source::HEADER, mark.to_text()).unwrap();
    }
    text
}

const APPLIED: &[u8] =
    br#"{"id":"acme-orders","subscriber":"acme","url":"https://acme.example/","events":["order.*"]}"#;

fn topic_record<'a>(key: &'a str, value: &'a [u8]) -> TopicRecord<'a> {
    TopicRecord {
        key: Some(key.as_bytes()),
        value: Some(value),
        applied: Some(b"1700000000000-0badcafe"),
        ..TopicRecord::default()
    }
}

/// An operator's decision, and hookstream's on top of it.
fn decisions() -> [(String, Vec<u8>); 2] {
    let id = "acme-orders";
    let mut fold = Fold::default();
    fold.take(&topic_record(id, APPLIED));
    let now = EpochMs(1_700_000_000_000);
    let resumed = Decision::by_operator(fold.get(id).unwrap(), State::Active, now).to_json();
    fold.take(&topic_record(&Decider::Operator.key(id), &resumed));
    let gone = Decision::gone(fold.get(id).unwrap(), now).to_json();
    [
        (Decider::Operator.key(id), resumed),
        (Decider::Hookstream.key(id), gone),
    ]
}

#[test]
fn what_is_written_is_what_the_golden_file_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats.golden");
    let now = written();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        now, golden,
        "a format changed: give it a new version, and keep reading this one"
    );
}

/// The headers under each title of the golden file.
fn sections(golden: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    golden
        .split("\n## ")
        .skip(1)
        .map(|section| {
            let mut lines = section.lines();
            let title = lines.next().unwrap();
            (
                title,
                lines.filter_map(|line| line.split_once(": ")).collect(),
            )
        })
        .collect()
}

#[test]
fn what_the_golden_files_hold_is_read() {
    let of_0_1_0 = include_str!("../data/formats-0.1.0.golden");
    reads(
        of_0_1_0,
        Command {
            cluster: None,
            last_failure: None,
            replayed: None,
            recorded: None,
            ..command()
        },
        |fact| fact.cluster.is_none() && fact.moment.is_none(),
    );
    let now = include_str!("../data/formats.golden");
    reads(now, command(), |fact| {
        fact.cluster.as_deref() == Some(CLUSTER) && fact.moment == Some(letter().moment())
    });
    let sections = sections(now);
    let sources = sections
        .iter()
        .find(|(title, _)| title.starts_with("sources"));
    let read = sources.unwrap().1.iter().map(|(_, value)| {
        let read = Mark::parse(value.as_bytes());
        read.unwrap()
    });
    assert_eq!(read.collect::<Vec<_>>(), marks());
    let mut titled = now.split("\n## ");
    let version_3 = titled.find(|section| section.starts_with("commit metadata, version 3"));
    let metadata = version_3.unwrap().lines().last().unwrap();
    let (restored, error) = Restored::read(covered().0.position(), metadata, place());
    assert_eq!(error, None);
    assert_eq!(restored.window.unfinished(), covered().0.unfinished());
    let mut coverage = restored.coverage;
    let kinds = marks().map(|mark| coverage.ask(Offset(120), &mark).kind);
    assert_eq!(kinds, [Kind::Copy, Kind::Copy]);
    let decisions = sections
        .iter()
        .find(|(title, _)| title.starts_with("decisions"));
    let mut fold = Fold::default();
    fold.take(&topic_record("acme-orders", APPLIED));
    for (key, value) in &decisions.unwrap().1 {
        fold.take(&topic_record(key, value.as_bytes()));
    }
    let folded = fold.get("acme-orders").unwrap();
    assert_eq!(folded.state, State::Disabled);
    assert_eq!(folded.resumed_at(), Some(EpochMs(1_700_000_000_000)));
}

fn reads(golden: &str, expected: Command, is_of_version: impl Fn(&Settled) -> bool) {
    let sections = sections(golden);
    let of = |title: &str| {
        let (_, headers) = sections
            .iter()
            .find(|(name, _)| name.starts_with(title))
            .unwrap();
        headers.clone()
    };
    let headers = of("command");
    let borrowed = headers
        .iter()
        .map(|(name, value)| (*name, Some(value.as_bytes())));
    let read = Command::from_record(Some(b"acme"), borrowed, Some("{}".into()));
    assert_eq!(read.unwrap(), expected);
    let both = [of("command"), of("dead letter")].concat();
    let fact = Fact::decode(letter().at, Some(b"acme"), &bytes(&both)).unwrap();
    assert!(matches!(fact, Fact::DeadLettered(read) if read.info == letter().info));
    let fact = Fact::decode(letter().at, Some(b"acme"), &bytes(&of("fact"))).unwrap();
    let Fact::Settled(fact) = fact else {
        panic!("it settles a letter")
    };
    assert!(
        fact.letter == letter().at && is_of_version(&fact),
        "{fact:?}"
    );
    let value = golden.lines().find(|line| line.starts_with('{')).unwrap();
    let command = command();
    assert_eq!(
        Attempt::decode(value.as_bytes()).unwrap(),
        attempt(&command)
    );
    let metadata = golden
        .lines()
        .filter(|line| line.starts_with(['A']) && !line.contains(' '));
    let mut count = 0;
    for (line, window) in metadata.zip([windows(), windows()].into_iter().flatten()) {
        let (restored, error) = Window::restore(window.position(), line, place());
        assert_eq!(error, None, "{line}");
        assert_eq!(restored.unfinished(), window.unfinished());
        assert_eq!(restored.span(), window.span());
        count += 1;
    }
    assert!(count >= 2, "both forms");
}

fn bytes<'a>(headers: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a [u8])> {
    let all = headers
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()));
    all.collect()
}

#[test]
fn a_command_of_a_later_version_stops_its_partition_and_stays_where_it_is() {
    let world = world("newer-command");
    let mut headers = vec![("hs-version", "2")];
    let mut owned = Vec::new();
    command()
        .envelope()
        .each_header(|name, value| owned.push((name, value.to_owned())));
    headers.extend(
        owned
            .iter()
            .skip(1)
            .map(|(name, value)| (*name, value.as_str())),
    );
    world.produce(
        &world.topics.commands(),
        [(Some("acme"), headers, Some(b"{}".to_vec()))],
    );
    let mut process = world.spawn("deliver", &[]);
    process.wait_ready();
    let line = process.wait_for_line("partition stopped", LATER);
    assert!(
        line.contains(&world.topics.commands())
            && ["partition=0", "offset=0", "version=2"]
                .iter()
                .all(|part| line.contains(part)),
        "{line}"
    );
    assert_eq!(process.exited(), None, "other partitions go on");
    // Where it began to read may be committed already.
    let mut committed = world
        .committed("deliver", &world.topics.commands())
        .into_iter();
    let passed = committed.find(|(_, position, _)| *position > 0);
    assert_eq!(passed, None);
}

/// The version of the metadata that delivery has committed for the first partition, while it has a window.
fn window_version(world: &World) -> Option<u8> {
    let (_, _, metadata) = world
        .committed("deliver", &world.topics.commands())
        .into_iter()
        .next()?;
    let bytes = STANDARD_NO_PAD.decode(metadata).unwrap();
    bytes.first().copied()
}

#[test]
fn a_change_of_the_window_format_rewrites_the_metadata_and_repeats_nothing_that_is_finished() {
    let world = world("window-format");
    let receiver = Receiver::start(|seen| match seen.path.as_str() {
        "/hangs" => Answer::hang(),
        _ => Answer::ok(),
    });
    let subscriptions = [
        subscription("hangs", &receiver.url("/hangs"), &["hang"]),
        subscription("good", &receiver.url("/good"), &["a.b"]),
    ];
    put(&world, &subscriptions);
    let flags = |format| {
        [
            "--window-format",
            format,
            "--drain-deadline",
            "0s",
            "--timeout",
            "60s",
        ]
    };
    let mut first = start(&world, &flags("1"));
    world.produce_events([("k", event("slow", "hang", "1"))]);
    receiver.wait_for(1, LATER);
    produce(&world, 0..20);
    receiver.wait_for(21, LATER);
    for (format, version) in [("2", 2), ("1", 1), ("2", 2)] {
        eventually_true("what is finished is committed", LATER, || {
            window_version(&world).is_some()
        });
        first.sigterm();
        assert!(first.wait_exit(LATER).success());
        first = start(&world, &flags(format));
        let what = format!("metadata of version {version}");
        eventually_true(&what, LATER, || window_version(&world) == Some(version));
    }
    produce(&world, 20..21);
    receiver.wait_until("the last is delivered", LATER, |seen| {
        seen.iter().filter(|one| one.path == "/good").count() >= 21
    });
    assert_eq!(receiver.seen_at("/good").len(), 21, "some were repeated");
    assert_eq!(
        first.metric("hookstream_foreign_commit_metadata_total"),
        Some(0.0)
    );
}

#[test]
fn metadata_of_another_cluster_reads_as_empty_and_is_counted() {
    let world = world("other-cluster");
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let commands = world.topics.commands();
    // Offset 1 is finished there.
    let mut window = Window::new(Position(0));
    window.take(Offset(0));
    window.take(Offset(1));
    window.finish(Offset(1));
    let place = Place::new("another", &commands, 0);
    let mut list = TopicPartitionList::new();
    let mut partition = list.add_partition(&commands, 0);
    partition.set_offset(rdkafka::Offset::Offset(0)).unwrap();
    partition.set_metadata(&window.snapshot(place, Format::V2).metadata);
    commit_list(&world, &list);
    let process = start(&world, &[]);
    process.wait_for_line("was written on another Kafka cluster", LATER);
    produce(&world, 0..3);
    receiver.wait_for(3, LATER);
    assert_eq!(
        process.metric("hookstream_foreign_commit_metadata_total"),
        Some(1.0)
    );
}

#[test]
fn what_retention_deleted_before_it_was_read_is_told_by_its_range() {
    let world = world("torn");
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let mut first = start(&world, &[]);
    produce(&world, 0..10);
    receiver.wait_for(10, LATER);
    eventually_true("the position is behind the ten", LATER, || {
        position(&world) >= 10
    });
    first.sigterm();
    assert!(first.wait_exit(LATER).success());
    let from = position(&world);
    // Twenty more commands come while nothing runs that would deliver them; then some are deleted.
    let fanout = world.spawn("fanout", &[]);
    produce(&world, 10..30);
    eventually_true("the commands are there", LATER, || {
        world
            .read_all(
                &world.topics.commands(),
                crate::support::Isolation::Committed,
            )
            .len()
            == 30
    });
    drop(fanout);
    let low = from + 8;
    delete_before(&world, low);
    let left = world
        .read_all(
            &world.topics.commands(),
            crate::support::Isolation::Committed,
        )
        .len();
    let process = start(&world, &[]);
    receiver.wait_for(10 + left, LATER);
    process.wait_for_line(
        &format!("LOST: the offsets from {from} to {} of", low - 1),
        LATER,
    );
    let metric = format!(
        r#"hookstream_lost_offsets_total{{topic="{}"}}"#,
        world.topics.commands()
    );
    assert_eq!(process.metric(&metric), Some(8.0));
}

#[test]
fn a_position_past_the_end_is_told_and_everything_is_read() {
    let world = world("past-the-end");
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let fanout = world.spawn("fanout", &[]);
    produce(&world, 0..5);
    eventually_true("the commands are there", LATER, || {
        world
            .read_all(
                &world.topics.commands(),
                crate::support::Isolation::Committed,
            )
            .len()
            == 5
    });
    drop(fanout);
    commit(&world, 1_000_000);
    let process = start(&world, &[]);
    receiver.wait_for(5, LATER);
    process.wait_for_line("ends before the position 1000000 of this group", LATER);
    eventually_true("the position is one of the topic's again", LATER, || {
        (5..100).contains(&position(&world))
    });
}

fn produce(world: &World, numbers: std::ops::Range<usize>) {
    world.produce_events(numbers.map(|number| ("k", event(&format!("e{number}"), "a.b", "{}"))));
}

fn position(world: &World) -> i64 {
    let committed = world.committed("deliver", &world.topics.commands());
    committed.first().map_or(0, |(_, position, _)| *position)
}

fn list(world: &World, offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topics.commands(), 0, rdkafka::Offset::Offset(offset))
        .unwrap();
    list
}

fn delete_before(world: &World, offset: i64) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::client::DefaultClientContext;
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let deleted = crate::support::block_on(admin.delete_records(&list(world, offset), &options));
    deleted.unwrap();
}

fn commit(world: &World, offset: i64) {
    commit_list(world, &list(world, offset));
}

fn commit_list(world: &World, list: &TopicPartitionList) {
    let mut config = world.client_config();
    config.set("group.id", format!("{}deliver", world.prefix));
    let consumer: BaseConsumer = config.create().unwrap();
    eventually_true("the coordinator takes a commit", LATER, || {
        consumer.commit(list, CommitMode::Sync).is_ok()
    });
}
