//! Records that fan-out has written twice: it writes without transactions, and again after a crash. Pure.

use std::collections::HashSet;

use super::step::TopicKind;
use crate::model::invalid_record::{HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC};
use crate::model::source::{Mark, Point, Source};

/// The records of a topic that were seen, of those that may have copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    commands: HashSet<(Source, Point)>,
    /// Their topics, partitions and offsets, as texts.
    set_aside: HashSet<[Vec<u8>; 3]>,
}

impl Copies {
    /// Whether a record is a copy of one before it. A command without a source is none, nor is a record that was not set
    /// aside.
    pub(super) fn has_seen<'h>(
        &mut self,
        kind: TopicKind,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) -> bool {
        match kind {
            TopicKind::Commands => match Mark::find(headers) {
                Ok(Some(mark)) => !self.commands.insert((mark.source, mark.at)),
                // What is not valid is shown.
                Ok(None) | Err(_) => false,
            },
            TopicKind::Invalid => {
                let mut of: [Option<Vec<u8>>; 3] = Default::default();
                for (name, value) in headers {
                    let names = [HEADER_TOPIC, HEADER_PARTITION, HEADER_OFFSET];
                    if let Some(index) = names.iter().position(|known| *known == name) {
                        // Those that were added are behind the record's own.
                        of[index] = value.map(<[u8]>::to_vec);
                    }
                }
                match of {
                    [Some(topic), Some(partition), Some(offset)] => {
                        !self.set_aside.insert([topic, partition, offset])
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(mark: &Mark) -> Vec<u8> {
        mark.to_text().into_bytes()
    }

    #[test]
    fn a_command_that_fan_out_wrote_again_is_a_copy_whatever_precedes_it() {
        let at = |offset| Point {
            leader_epoch: 0,
            offset,
            subscription: 7,
        };
        let mark = |offset, previous| Mark {
            source: Source {
                cluster: 1,
                topic: [2; 16],
                partition: 3,
                epoch: 4,
            },
            at: at(offset),
            previous,
        };
        let mut copies = Copies::default();
        let mut seen = |mark: &Mark| {
            let value = header(mark);
            let headers = [
                ("webhook-id", Some(&b"x"[..])),
                ("hs-source", Some(&value[..])),
            ];
            copies.has_seen(TopicKind::Commands, headers.into_iter())
        };
        assert!(!seen(&mark(5, Some(at(4)))));
        assert!(!seen(&mark(6, Some(at(5)))));
        assert!(seen(&mark(5, None)));
        assert!(seen(&mark(6, Some(at(5)))));
        let without = [("webhook-id", Some(&b"x"[..]))];
        for _ in 0..2 {
            assert!(!copies.has_seen(TopicKind::Commands, without.into_iter()));
        }
    }

    #[test]
    fn an_event_that_was_set_aside_twice_is_told_by_its_coordinates() {
        let mut copies = Copies::default();
        let mut seen = |offset: &'static str| {
            let headers = [
                (HEADER_TOPIC, Some(&b"orders"[..])),
                (HEADER_PARTITION, Some(&b"3"[..])),
                (HEADER_OFFSET, Some(offset.as_bytes())),
            ];
            copies.has_seen(TopicKind::Invalid, headers.into_iter())
        };
        assert_eq!(["7", "8", "7"].map(&mut seen), [false, false, true]);
    }
}
