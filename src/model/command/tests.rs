//! Records of commands: round trips, refusals, and the order across clusters.

use proptest::prelude::*;

use super::*;

/// A command to vary in tests.
pub(crate) fn sample() -> Command {
    Command {
        subscriber: "acme".into(),
        webhook_id: "msg_1".into(),
        subscription: "acme-orders".into(),
        event_id: "e1".into(),
        event_type: "order.created".into(),
        event_time: None,
        subject: None,
        content_type: ContentType::Json,
        attempt: 0,
        due: None,
        enqueued: EpochMs(1_700_000_000_000),
        cause: Cause::New,
        traceparent: None,
        first_failure: None,
        last_failure: None,
        replayed: None,
        sequence: None,
        recorded: None,
        cluster: None,
        body: Bytes::from_static(b"{}"),
    }
}

fn headers_of(command: &Command) -> Vec<(&'static str, Vec<u8>)> {
    let mut headers = Vec::new();
    command
        .envelope()
        .each_header(|name, value| headers.push((name, value.as_bytes().to_vec())));
    headers
}

fn read(
    key: &str,
    headers: &[(&'static str, Vec<u8>)],
    body: &Bytes,
) -> Result<Command, InvalidCommand> {
    let headers = headers
        .iter()
        .map(|(name, value)| (*name, Some(value.as_slice())));
    Command::from_record(Some(key.as_bytes()), headers, Some(body.clone()))
}

fn maybe_text() -> impl Strategy<Value = Option<Box<str>>> {
    proptest::option::of("\\PC{0,20}".prop_map(Box::from))
}

prop_compose! {
    fn any_command()(
        ids in ("\\PC{1,20}", "\\PC{1,20}", "\\PC{1,20}", "\\PC{1,20}", "\\PC{1,20}"),
        optional in (maybe_text(), maybe_text(), maybe_text(), maybe_text()),
        times in (proptest::option::of(any::<i64>()), any::<i64>(), proptest::option::of(any::<i64>()), proptest::option::of(any::<i64>())),
        attempt in any::<u32>(),
        cause in 0..4_usize,
        last in proptest::option::of((any::<i64>(), proptest::option::of(any::<u16>()), "\\PC{0,40}")),
        replayed in proptest::option::of(any::<i64>()),
        recorded in proptest::option::of(any::<i64>()),
        cloud in any::<bool>(),
        body in proptest::collection::vec(any::<u8>(), 0..50),
    ) -> Command {
        Command {
            subscriber: ids.0.into(),
            webhook_id: ids.1.into(),
            subscription: ids.2.into(),
            event_id: ids.3.into(),
            event_type: ids.4.into(),
            event_time: optional.0,
            subject: optional.1,
            content_type: if cloud { ContentType::CloudEvents } else { ContentType::Json },
            attempt,
            due: times.0.map(EpochMs),
            enqueued: EpochMs(times.1),
            recorded: recorded.map(EpochMs),
            cause: Cause::ALL[cause],
            traceparent: optional.2,
            first_failure: times.2.map(EpochMs),
            last_failure: last.map(|(at, status, error)| Box::new(LastFailure::new(EpochMs(at), status, &error))),
            replayed: replayed.map(EpochMs),
            sequence: times.3,
            cluster: optional.3.filter(|_| times.3.is_some()),
            body: body.into(),
        }
    }
}

proptest! {
    #[test]
    fn a_command_survives_its_record(command in any_command()) {
        let read = read(&command.subscriber, &headers_of(&command), &command.body);
        prop_assert_eq!(read, Ok(command));
    }

    #[test]
    fn every_header_with_every_kind_of_value_is_read_or_refused_with_its_name(
        name in 0..NAMES.len(), value in any_value(), key in any_value(), body in any_value(),
        last in any::<bool>(),
    ) {
        let name = NAMES[name];
        let good = headers_of(&sample());
        let mut headers: Vec<(&str, Option<&[u8]>)> = good
            .iter()
            .map(|(name, value)| (*name, Some(value.as_slice())))
            .collect();
        // Of a repeated header, the last one counts.
        headers.insert(if last { headers.len() } else { 0 }, (name, value.as_deref()));
        let result = Command::from_record(key.as_deref(), headers.into_iter(), body.clone().map(Bytes::from));
        match result {
            Ok(mut command) => {
                prop_assert_eq!(Some(command.subscriber.as_bytes()), key.as_deref());
                prop_assert_eq!(Some(&command.body[..]), body.as_deref());
                // What was read can be written and read again; a cluster alone says nothing.
                command.cluster.take_if(|_| command.sequence.is_none());
                let again = read(&command.subscriber, &headers_of(&command), &command.body);
                prop_assert_eq!(again, Ok(command));
            }
            Err(InvalidCommand::Newer(version)) => {
                prop_assert_eq!(name, header::VERSION);
                prop_assert!(version > VERSION);
                let text = version.to_string();
                prop_assert_eq!(value.as_deref(), Some(text.as_bytes()));
            }
            Err(error) => prop_assert!(error.to_string().len() < 1000, "{}", error),
        }
    }

    #[test]
    fn a_version_is_newer_only_as_a_program_writes_it(value in any_value()) {
        let is_newer = value.as_deref().and_then(|value| std::str::from_utf8(value).ok())
            .and_then(|text| text.parse::<u32>().ok().filter(|number| number.to_string() == text))
            .filter(|number| *number > VERSION);
        match FormatVersion::of(value.as_deref()) {
            FormatVersion::Newer(version) => prop_assert_eq!(Some(version), is_newer),
            FormatVersion::Known => prop_assert!(value.is_none() || value.as_deref() == Some(b"1")),
            FormatVersion::Unreadable => prop_assert_eq!(is_newer, None),
        }
    }
}

const NAMES: [&str; 18] = [
    header::VERSION,
    header::WEBHOOK_ID,
    header::SUBSCRIPTION,
    header::EVENT_ID,
    header::EVENT_TYPE,
    header::EVENT_TIME,
    header::SUBJECT,
    header::CONTENT_TYPE,
    header::ATTEMPT,
    header::DUE,
    header::ENQUEUED,
    header::CAUSE,
    header::FIRST_FAILURE,
    header::SEQUENCE,
    header::CLUSTER,
    header::TRACEPARENT,
    "hs-of-tomorrow",
    "",
];

/// Absent, empty, numbers at and beyond every limit, words, text of any kind, and bytes that are no text; some long.
pub(crate) fn any_value() -> impl Strategy<Value = Option<Vec<u8>>> {
    let odd: Vec<&[u8]> = vec![
        b"",
        b" ",
        b"0",
        b"1",
        b"01",
        b"+1",
        b"-1",
        b"1.0",
        b"1e3",
        b" 1",
        b"2",
        b"17",
        b"4294967295",
        b"4294967296",
        b"9223372036854775807",
        b"9223372036854775808",
        b"-9223372036854775808",
        b"-9223372036854775809",
        b"99999999999999999999999999999999",
        b"NaN",
        b"new",
        b"retry",
        b"application/json",
        b"null",
        b"\0",
        b"\r\nx: y",
        b"\xff\xfe",
        b"\xc3",
        b"{\"a\":",
    ];
    prop_oneof![
        1 => Just(None),
        6 => prop::sample::select(odd).prop_map(|value| Some(value.to_vec())),
        2 => any::<i64>().prop_map(|number| Some(number.to_string().into_bytes())),
        2 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Some),
        2 => "\\PC{0,40}".prop_map(|text| Some(text.into_bytes())),
        1 => (any::<u8>(), 10_000..100_000_usize).prop_map(|(byte, length)| Some(vec![byte; length])),
    ]
}

#[test]
fn what_is_missing_is_named() {
    let command = sample();
    // Without a version it is of the first.
    for (name, _) in headers_of(&command).into_iter().skip(1) {
        let rest: Vec<_> = headers_of(&command)
            .into_iter()
            .filter(|(other, _)| *other != name)
            .collect();
        assert_eq!(
            read("acme", &rest, &command.body),
            Err(InvalidCommand::Missing(name))
        );
    }
    assert_eq!(
        read("", &headers_of(&command), &command.body),
        Err(InvalidCommand::NoKey)
    );
    let headers = headers_of(&command);
    let headers = headers
        .iter()
        .map(|(name, value)| (*name, Some(value.as_slice())));
    assert_eq!(
        Command::from_record(Some(b"acme"), headers, None),
        Err(InvalidCommand::NoBody)
    );
}

#[test]
fn the_age_of_a_command_counts_from_its_latest_replay() {
    let mut command = sample();
    assert_eq!(command.waits_since(), command.enqueued);
    command.replayed = Some(EpochMs(1_800_000_000_000));
    assert_eq!(command.waits_since(), EpochMs(1_800_000_000_000));
}

#[test]
fn a_long_error_is_cut_at_a_characters_border() {
    let failure = LastFailure::new(EpochMs(1), None, &"ü".repeat(MAX_LAST_ERROR_BYTES));
    assert_eq!(&*failure.error, "ü".repeat(MAX_LAST_ERROR_BYTES / 2));
    let uneven = format!("x{}", "ü".repeat(MAX_LAST_ERROR_BYTES));
    let failure = LastFailure::new(EpochMs(1), None, &uneven);
    assert_eq!(failure.error.len(), MAX_LAST_ERROR_BYTES - 1);
}

#[test]
fn what_is_unreadable_is_named_with_what_was_wanted() {
    let mut headers = headers_of(&sample());
    headers.push((header::ATTEMPT, b"-1".to_vec()));
    let error = read("acme", &headers, &Bytes::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the header hs-attempt is \"-1\", which is not a count of attempts"
    );
}

#[test]
fn commands_of_another_cluster_are_before_those_of_this_one_in_the_order_that_they_had() {
    let placed = |sequence: Option<i64>, of: Option<&str>, cluster: &str, offset| {
        let mut command = Command {
            sequence,
            cluster: of.map(Box::from),
            ..sample()
        };
        command.place_in_order(cluster, offset);
        assert_eq!(command.cluster.as_deref(), Some(cluster));
        command.sequence.unwrap()
    };
    assert_eq!(placed(None, None, "b", 7), 7);
    assert_eq!(placed(Some(3), Some("b"), "b", 7), 3);
    assert_eq!(placed(Some(3), None, "b", 7), 3, "of hookstream 0.1.0");
    let of_a: Vec<i64> = [5, 900_000_000_000]
        .map(|sequence| placed(Some(sequence), Some("a"), "b", 7))
        .to_vec();
    assert!(of_a.is_sorted() && of_a[1] < 0, "{of_a:?}");
    let from_a_over_b = placed(Some(of_a[1]), Some("b"), "c", 7);
    let from_b = placed(Some(0), Some("b"), "c", 7);
    assert!(from_a_over_b < from_b && from_b < 0);
    assert_eq!(placed(Some(from_b), Some("c"), "c", 8), from_b);
}
