//! What is written instead of an outcome that its topic refuses for its size. Pure.
//!
//! | refused | written instead |
//! |---|---|
//! | a retry or a parked command | a dead letter with the reason `too-large` |
//! | a dead letter | the command as an invalid record, with the headers of the dead letter |
//! | an invalid record | less of it, at last nothing: see [`Extent`] |
//! | a status, a notice | nothing |
//! | a disabled subscription | nothing: the subscription stays as it is |
//!
//! So nothing that a broker refuses for its size stops a partition. Topics with the settings of `hookstream topics create`
//! refuse none of hookstream's own records.

use super::partition::effect::Outcome;
use crate::model::command::Command;
use crate::model::dead_letter::{DeadLetterInfo, Reason};
use crate::model::invalid_record::{Extent, InvalidRecord};
use crate::model::units::{EpochMs, Offset};

/// Where the record that led to the outcome is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: Offset,
}

/// The outcome to write instead of `refused`; `None` when nothing is to be written.
pub(super) fn smaller(refused: Outcome, source: Source<'_>, now: EpochMs) -> Option<Outcome> {
    match refused {
        Outcome::Tier(_, command) => {
            let info = DeadLetterInfo {
                reason: Reason::TooLarge,
                status: None,
                error: "the command is larger than max.message.bytes of its retry topic".to_owned(),
                first_failure: command.first_failure.unwrap_or(now),
                last_failure: now,
            };
            Some(Outcome::DeadLetter(command, Box::new(info)))
        }
        Outcome::DeadLetter(command, info) => {
            Some(Outcome::Invalid(Box::new(invalid(&command, &info, source))))
        }
        Outcome::Invalid(mut record) => {
            record.extent = record.extent.smaller();
            Some(Outcome::Invalid(record))
        }
        Outcome::Disable(..)
        | Outcome::Status(_)
        | Outcome::Notice(..)
        | Outcome::Verification(..) => None,
    }
}

fn invalid(command: &Command, info: &DeadLetterInfo, source: Source<'_>) -> InvalidRecord {
    let mut headers = Vec::new();
    let mut add =
        |name: &str, value: &str| headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    command.envelope().each_header(&mut add);
    for (name, value) in info.headers() {
        add(name, &value);
    }
    InvalidRecord {
        key: Some(command.subscriber.as_bytes().to_vec()),
        value: Some(command.body.to_vec()),
        headers,
        error: format!(
            "the dead letter of this command is larger than max.message.bytes of its topic; reason {}: {}",
            info.reason, info.error
        ),
        topic: source.topic.to_owned(),
        partition: source.partition,
        offset: source.offset,
        extent: Extent::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::tests::sample;

    const SOURCE: Source<'_> = Source {
        topic: "webhook-commands",
        partition: 3,
        offset: Offset(41),
    };

    #[test]
    fn a_retry_that_is_refused_ends_as_ever_less_of_a_copy() {
        let outcome = Outcome::Tier(0, Box::new(sample()));
        let now = EpochMs(1_700_000_000_123);
        let outcome = smaller(outcome, SOURCE, now).unwrap();
        let Outcome::DeadLetter(command, info) = &outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!((&**command, info.reason), (&sample(), Reason::TooLarge));
        let mut outcome = smaller(outcome, SOURCE, now).unwrap();
        for extent in [
            Extent::Whole,
            Extent::Head,
            Extent::Coordinates,
            Extent::Nothing,
            Extent::Nothing,
        ] {
            let Outcome::Invalid(record) = &outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(record.extent, extent);
            let at = (record.topic.as_str(), record.partition, record.offset);
            assert_eq!(at, ("webhook-commands", 3, Offset(41)));
            assert_eq!(record.value.as_deref(), Some(b"{}".as_slice()));
            let reason = ("hs-reason".to_owned(), Some(b"too-large".to_vec()));
            assert!(record.headers.contains(&reason), "{:?}", record.headers);
            outcome = smaller(outcome, SOURCE, now).unwrap();
        }
    }
}
