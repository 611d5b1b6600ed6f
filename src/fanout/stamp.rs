//! The metadata of fan-out's commits: how the commands of a partition of events are written from that position on. Pure.
//!
//! A writer that goes on where another one stopped writes the same commands in the same order to the same partitions of
//! the commands, under the same epoch; so its copies are recognised. Whatever may change that begins a new epoch.
//!
//! The text is that of a [`Source`], as at the beginning of the header `hs-source`, and two more fields behind dots: the
//! number of partitions of the commands, and the position. A tool that moves the position leaves the metadata out, or
//! takes it along unchanged: both begin a new epoch.

use crate::model::source::{FIRST_START, Source};
use crate::model::units::Position;

/// How the commands of a source are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The source, with its epoch.
    pub(super) source: Source,
    /// The number of partitions of the commands that they are spread over.
    pub(super) partitions: i32,
}

/// What the metadata of a committed position says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The position was committed by fan-out, and the commands behind it may have been written like this.
    Known(Stamp),
    /// The position is that of the first start: nothing was written before it.
    First,
    /// Nothing: an older program has committed the position, or a tool has set it.
    Nothing,
    /// It belongs to another position, partition, topic or cluster, or is damaged.
    Foreign,
    /// A newer program has written it, in this version.
    Newer(u32),
}

impl Stamp {
    /// The metadata of a commit of `position`.
    pub(super) fn to_text(self, position: Position) -> String {
        format!("{}{}.{}", self.source.prefix(), self.partitions, position.0)
    }

    /// Reads the metadata of `position` in the partition of events that `place` names, of whatever epoch.
    pub(super) fn read(text: &str, place: Source, position: Position) -> Found {
        if text.is_empty() {
            return Found::Nothing;
        }
        if text == FIRST_START {
            return Found::First;
        }
        if let Some(newer) = Source::newer_version(text) {
            return Found::Newer(newer);
        }
        let read = || {
            let (source, rest) = Source::parse_prefix(text)?;
            let (partitions, at) = rest.split_once('.')?;
            let partitions = partitions.parse().ok().filter(|&count: &i32| count > 0)?;
            let same = Source {
                epoch: source.epoch,
                ..place
            };
            let stamp = Self { source, partitions };
            // One stamp has one text.
            (source == same && at.parse() == Ok(position.0) && stamp.to_text(position) == text)
                .then_some(stamp)
        };
        read().map_or(Found::Foreign, Found::Known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        source: Source {
            cluster: 0x0102_0304_0506_0708,
            topic: [7; 16],
            partition: 3,
            epoch: 9,
        },
        partitions: 12,
    };

    fn read(text: &str, at: i64) -> Found {
        let place = Source {
            epoch: 0,
            ..STAMP.source
        };
        Stamp::read(text, place, Position(at))
    }

    #[test]
    fn what_is_written_is_read_at_its_position_and_nowhere_else() {
        let text = STAMP.to_text(Position(17));
        assert_eq!(text, "1.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.12.17");
        assert_eq!(read(&text, 17), Found::Known(STAMP));
        assert_eq!(read(&text, 18), Found::Foreign, "the position was moved");
        let place = Source {
            partition: 4,
            ..STAMP.source
        };
        assert_eq!(Stamp::read(&text, place, Position(17)), Found::Foreign);
        let place = Source {
            cluster: 1,
            ..STAMP.source
        };
        assert_eq!(Stamp::read(&text, place, Position(17)), Found::Foreign);
        assert_eq!(read("", 17), Found::Nothing);
        assert_eq!(read(FIRST_START, 17), Found::First);
    }

    #[test]
    fn what_is_no_stamp_is_foreign_and_what_is_newer_is_told_apart() {
        for text in [
            "x",
            "1",
            "1.",
            "0.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.12.17",
            "1.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.12",
            "1.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.0.17",
            "1.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.+12.17",
            "1.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.12.017",
            "1.AQIDBAUGBwg.BwcHBwcHBwcHBwcHBwcHBw.3.AAAACQ.12.17.1",
        ] {
            assert_eq!(read(text, 17), Found::Foreign, "{text}");
        }
        assert_eq!(read("2.whatever", 17), Found::Newer(2));
    }
}
