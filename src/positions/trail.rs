//! Describes a position in a partition by the records around it, which a mirror copies, instead of by an offset, which it
//! does not. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::model::units::{Offset, Position};
use crate::model::window::Window;

/// The identity of a record apart from its offset and timestamp: a digest of key, headers and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of a record.
    #[must_use]
    pub fn of(key: Option<&[u8]>, headers: &[(&str, &[u8])], value: Option<&[u8]>) -> Self {
        let mut hash = Context::new(&SHA256);
        let mut part = |bytes: Option<&[u8]>| {
            // Prefixed with its length, so that the boundaries of parts count.
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(&length.to_be_bytes());
            hash.update(bytes.unwrap_or_default());
        };
        part(key);
        part(value);
        for (name, value) in headers {
            part(Some(name.as_bytes()));
            part(Some(value));
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finish().as_ref()[..16]);
        Self(short)
    }

    fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// The records around a position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// The last record before the position; `None` when there is none.
    pub before: Option<String>,
    /// The number of records from the position to the end.
    pub records: usize,
    /// A digest of these records.
    pub digest: String,
    /// How many of them delivery has taken, from the position on.
    pub taken: usize,
    /// The indexes of the taken records that are unfinished; the others are finished.
    pub unfinished: Vec<usize>,
}

impl Trail {
    /// The trail of `window` in `records`, which include the last record before its position.
    #[must_use]
    pub fn new(records: &[(Offset, Fingerprint)], window: &Window) -> Self {
        let position = window.position();
        let split = records.partition_point(|(offset, _)| offset.0 < position.0);
        let (before, behind) = records.split_at(split);
        let end = position.0 + i64::try_from(window.span()).unwrap_or(0);
        let taken = behind.partition_point(|(offset, _)| offset.0 < end);
        let unfinished = behind[..taken]
            .iter()
            .enumerate()
            .filter(|(_, (offset, _))| !window.is_finished(*offset));
        Self {
            before: before.last().map(|(_, fingerprint)| fingerprint.text()),
            records: behind.len(),
            digest: digest(behind),
            taken,
            unfinished: unfinished.map(|(number, _)| number).collect(),
        }
    }

    /// Finds the trail in the `records` of a mirror; returns the window there, and how many records after its position are
    /// finished. `low` is the first offset of the partition; later records may follow those of the trail.
    #[must_use]
    pub fn find(&self, records: &[(Offset, Fingerprint)], low: i64) -> Option<(Window, usize)> {
        let last = records.len().checked_sub(self.records)?;
        // Backwards: the trail is at the end, unless the target already has later records.
        let start = (0..=last).rev().find(|&start| {
            // Without a record before the position on the source, retention may have deleted one that the mirror still has.
            let follows = self.before.as_ref().is_none_or(|before| {
                let index = start.checked_sub(1);
                index.is_some_and(|index| records[index].1.text() == *before)
            });
            follows && digest(&records[start..start + self.records]) == self.digest
        })?;
        let behind = &records[start..start + self.records];
        let position = match (behind.first(), start.checked_sub(1)) {
            (Some((offset, _)), _) => Position(offset.0),
            (None, Some(before)) => records[before].0.next(),
            (None, None) => Position(low),
        };
        let mut window = Window::new(position);
        let mut unfinished = self.unfinished.iter().copied().peekable();
        let mut finished = 0;
        for (number, (offset, _)) in behind.iter().enumerate().take(self.taken) {
            window.take(*offset);
            if unfinished.next_if_eq(&number).is_none() {
                window.finish(*offset);
                finished += 1;
            }
        }
        Some((window, finished))
    }
}

fn digest(records: &[(Offset, Fingerprint)]) -> String {
    let mut hash = Context::new(&SHA256);
    for (_, fingerprint) in records {
        hash.update(&fingerprint.0);
    }
    URL_SAFE_NO_PAD.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record; equal numbers give equal records.
    fn record(number: u8) -> Fingerprint {
        Fingerprint::of(
            Some(b"acme"),
            &[("webhook-id", &[number])],
            Some(b"{}".as_slice()),
        )
    }

    /// Assigns offsets with gaps, as transactions leave them.
    fn lay(numbers: &[u8], gaps: &[i64], from: i64) -> Vec<(Offset, Fingerprint)> {
        let mut offset = from;
        let mut all = Vec::new();
        for (number, gap) in numbers.iter().zip(gaps) {
            offset += gap;
            all.push((Offset(offset), record(*number)));
            offset += 1;
        }
        all
    }

    proptest! {
        /// A window of a partition with gaps, exported and found in a mirror without gaps, has the same finished records,
        /// even if some records are equal and later ones follow on the mirror.
        #[test]
        fn a_window_moves_to_a_mirror_by_its_records(
            numbers in proptest::collection::vec(0_u8..60, 0..60),
            gaps in proptest::collection::vec(0_i64..3, 60),
            before in 0_usize..60,
            taken in 0_usize..60,
            finished in proptest::collection::vec(any::<bool>(), 60),
            from in 0_i64..100,
            later in 0_usize..3,
        ) {
            let source = lay(&numbers, &gaps, 0);
            let before = before.min(source.len());
            let start = source.get(before).or(source.last()).map_or(0, |(offset, _)| offset.0);
            let start = if before == source.len() && before > 0 { start + 1 } else { start };
            let mut window = Window::new(Position(start));
            let mut done = vec![true; before];
            for (number, (offset, _)) in source.iter().enumerate().skip(before).take(taken) {
                window.take(*offset);
                if finished[number] {
                    window.finish(*offset);
                }
                done.push(finished[number]);
            }
            let trail = Trail::new(&source, &window);
            let document = serde_json::to_string(&trail).unwrap();
            let trail: Trail = serde_json::from_str(&document).unwrap();

            let mut numbers = numbers;
            numbers.extend(std::iter::repeat_n(99, later));
            let mirror = lay(&numbers, &[0; 70], from);
            let (moved, _) = trail.find(&mirror, from).unwrap();
            if later > 0 && trail.records == 0 && trail.before.is_none() {
                return Ok(());
            }
            for (number, (offset, _)) in mirror.iter().enumerate() {
                let is_done = offset.0 < moved.position().0 || moved.is_finished(*offset);
                prop_assert_eq!(is_done, done.get(number).copied().unwrap_or(false), "record {}", number);
            }
        }

        #[test]
        fn a_mirror_that_lacks_a_record_is_refused(
            count in 1_usize..40,
            at in 0_usize..40,
            lost in any::<prop::sample::Index>(),
        ) {
            let numbers: Vec<u8> = (0..count).map(|number| u8::try_from(number).unwrap()).collect();
            let source = lay(&numbers, &[0; 40], 0);
            let at = at.min(count);
            let trail = Trail::new(&source, &Window::new(Position(i64::try_from(at).unwrap())));
            let lost = lost.index(count);
            let mut mirror = source;
            mirror.remove(lost);
            // Before the position only the last record matters.
            let needed = lost + 1 >= at;
            prop_assert_eq!(trail.find(&mirror, 0).is_none(), needed);
        }
    }

    #[test]
    fn a_fingerprint_depends_on_every_part_of_a_record() {
        let plain = Fingerprint::of(Some(b"k"), &[("a", b"bc")], Some(b"v"));
        for other in [
            Fingerprint::of(None, &[("a", b"bc")], Some(b"v")),
            Fingerprint::of(Some(b""), &[("a", b"bc")], Some(b"v")),
            Fingerprint::of(Some(b"k"), &[("ab", b"c")], Some(b"v")),
            Fingerprint::of(Some(b"k"), &[], Some(b"v")),
            Fingerprint::of(Some(b"k"), &[("a", b"bc")], None),
        ] {
            assert_ne!(plain, other);
        }
    }
}
