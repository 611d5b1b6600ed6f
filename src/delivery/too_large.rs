//! What becomes of an outcome that its topic does not take, because it is larger than `max.message.bytes` allows.
//!
//! Pure. The topics are created so that each takes what the one before it holds, but an operator may lower the limit of
//! one. A command must still come to an end, and must not hold up the others of its partition:
//!
//! | outcome | becomes |
//! |---|---|
//! | a retry | a dead letter with reason `too-large` |
//! | a dead letter | a record in `webhook-invalid-events`, with all headers of the dead letter |
//! | an invalid record | its head and its size, then its coordinates and the reason alone |
//! | the decision to disable a subscription | nothing: the next 410 decides again |

use super::partition::effect::Outcome;
use crate::model::command::{Command, Envelope};
use crate::model::dead_letter::{DeadLetterInfo, Reason};
use crate::model::invalid_record::InvalidRecord;
use crate::model::units::{EpochMs, Offset};

/// What stays of the value of an invalid record, in bytes.
const HEAD: usize = 16 * 1024;
/// The header with the original size of a value that was cut.
const TRUNCATED: &str = "hookstream-truncated";

/// Where the outcome's command was read, and what refused the outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused<'a> {
    /// The commands topic.
    pub(super) commands: &'a str,
    /// The partition of the command.
    pub(super) partition: i32,
    /// The topic that refused the outcome.
    pub(super) topic: &'a str,
    /// The time.
    pub(super) now: EpochMs,
}

/// The outcome to write instead.
#[derive(Debug)]
pub(super) enum Instead {
    /// This one.
    Write(Outcome),
    /// None.
    Nothing,
    /// There is nothing smaller.
    Impossible,
}

/// What to write instead of an outcome that its topic refused.
pub(super) fn instead(outcome: Outcome, refused: Refused<'_>) -> Instead {
    let Refused { topic, now, .. } = refused;
    match outcome {
        Outcome::Tier(_, command) => {
            let bytes = command.body.len();
            let info = DeadLetterInfo {
                reason: Reason::TooLarge,
                status: None,
                error: format!(
                    "the retry, with a body of {bytes} bytes, is larger than max.message.bytes of {topic} allows"
                ),
                first_failure: command.first_failure.unwrap_or(now),
                last_failure: now,
            };
            Instead::Write(Outcome::DeadLetter(command, Box::new(info)))
        }
        Outcome::DeadLetter(command, info) => {
            let record = unwritable(&command, &info, refused);
            Instead::Write(Outcome::Invalid(Box::new(record)))
        }
        Outcome::Invalid(record) => match smaller(*record) {
            Some(record) => Instead::Write(Outcome::Invalid(Box::new(record))),
            None => Instead::Impossible,
        },
        Outcome::Disable(_) => Instead::Nothing,
    }
}

/// A dead letter that its topic refuses. Its offset in the commands topic is not known any more; the webhook id is.
fn unwritable(command: &Command, info: &DeadLetterInfo, refused: Refused<'_>) -> InvalidRecord {
    let mut headers = Vec::new();
    dead_letter_envelope(command).each_header(|name, value| {
        headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    });
    let of_info = info.headers().into_iter();
    headers.extend(of_info.map(|(name, value)| (name.to_owned(), Some(value.into_bytes()))));
    InvalidRecord {
        key: Some(command.subscriber.as_bytes().to_vec()),
        value: Some(command.body.to_vec()),
        headers,
        error: format!(
            "the dead letter of {}, with a body of {} bytes, is larger than max.message.bytes of {} allows",
            command.webhook_id,
            command.body.len(),
            refused.topic
        ),
        topic: refused.commands.to_owned(),
        partition: refused.partition,
        offset: Offset(-1),
    }
}

/// The envelope of a dead letter: its own first-failure header replaces the command's, and a replay gets a new sequence.
pub(super) fn dead_letter_envelope(command: &Command) -> Envelope<'_> {
    Envelope {
        first_failure: None,
        sequence: None,
        cluster: None,
        ..command.envelope()
    }
}

/// Less of a record; `None` when there is no less.
fn smaller(mut record: InvalidRecord) -> Option<InvalidRecord> {
    match &mut record.value {
        Some(value) if value.len() > HEAD => {
            let size = value.len().to_string();
            value.truncate(HEAD);
            record
                .headers
                .push((TRUNCATED.to_owned(), Some(size.into_bytes())));
        }
        Some(value) => {
            if !record.headers.iter().any(|(name, _)| name == TRUNCATED) {
                let size = value.len().to_string();
                record
                    .headers
                    .push((TRUNCATED.to_owned(), Some(size.into_bytes())));
            }
            record.value = None;
        }
        None => {
            let is_size = |(name, _): &(String, _)| name == TRUNCATED;
            if record.key.is_none() && record.headers.iter().all(is_size) {
                return None;
            }
            record.headers.retain(is_size);
            record.key = None;
        }
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::tests::sample;

    fn refused(topic: &str) -> Refused<'_> {
        Refused {
            commands: "webhook-commands",
            partition: 3,
            topic,
            now: EpochMs(7),
        }
    }

    #[track_caller]
    fn next(outcome: Outcome, topic: &str) -> Outcome {
        match instead(outcome, refused(topic)) {
            Instead::Write(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_comes_to_an_end_whatever_refuses_it() {
        let command = Command {
            body: vec![b'x'; 40_000].into(),
            ..sample()
        };
        let id = command.webhook_id.clone();
        let letter = next(Outcome::Tier(0, Box::new(command)), "webhook-retry-5s");
        let Outcome::DeadLetter(_, info) = &letter else {
            panic!("{letter:?}");
        };
        assert_eq!(info.reason, Reason::TooLarge);
        assert!(
            info.error.contains("webhook-retry-5s") && info.error.contains("40000"),
            "{}",
            info.error
        );

        let mut outcome = next(letter, "webhook-dead-letters");
        let Outcome::Invalid(record) = &outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(
            record.value.as_ref().map(Vec::len),
            Some(40_000),
            "nothing is lost yet"
        );
        assert!(record.error.contains(&*id) && record.error.contains("webhook-dead-letters"));
        let reason = record.headers.iter().find(|(name, _)| name == "hs-reason");
        assert_eq!(
            reason.and_then(|(_, value)| value.as_deref()),
            Some(b"too-large".as_slice())
        );

        let mut sizes = Vec::new();
        loop {
            match instead(outcome, refused("webhook-invalid-events")) {
                Instead::Write(Outcome::Invalid(record)) => {
                    let size = record.headers.iter().find(|(name, _)| name == TRUNCATED);
                    assert_eq!(
                        size.and_then(|(_, size)| size.as_deref()),
                        Some(b"40000".as_slice())
                    );
                    sizes.push(record.value.as_ref().map(Vec::len));
                    outcome = Outcome::Invalid(record);
                }
                Instead::Impossible => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sizes, [Some(HEAD), None, None]);
    }

    #[test]
    fn an_invalid_record_without_value_or_key_ends_too() {
        for (key, value) in [
            (None, None),
            (Some(vec![1]), None),
            (None, Some(vec![])),
            (None, Some(vec![1; 10])),
        ] {
            let record = InvalidRecord {
                key,
                value,
                headers: Vec::new(),
                error: String::new(),
                topic: String::new(),
                partition: 0,
                offset: Offset(0),
            };
            let mut outcome = Outcome::Invalid(Box::new(record));
            let mut steps = 0;
            while let Instead::Write(less) = instead(outcome, refused("webhook-invalid-events")) {
                outcome = less;
                steps += 1;
                assert!(steps < 5);
            }
        }
    }

    #[test]
    fn a_decision_to_disable_is_left_to_the_next_response() {
        let json = br#"{"id":"a","subscriber":"a","url":"https://a.example/","events":["**"]}"#;
        let subscription = crate::model::subscription::parse(None, json).unwrap();
        let decision = Outcome::Disable(std::sync::Arc::new(subscription));
        assert!(matches!(
            instead(decision, refused("webhook-subscriptions")),
            Instead::Nothing
        ));
    }
}
