//! The form of commit metadata for windows of every kind: runs of unfinished offsets, and bitmaps where the mix is dense.
//!
//! A whale's commands wait in long runs, among which those of its neighbours are finished: about two bytes for each
//! finished one, and two for any number of finished ones in a row. Where finished and unfinished offsets alternate, as
//! in what a lane sends now, a bitmap is shorter. So the span is cut into segments, each written in the shorter way.
//!
//! | a segment begins with a varint, whose two lowest bits say what | |
//! |---|---|
//! | 0 | so many unfinished offsets, then a finished one |
//! | 1 | so many unfinished offsets, then a varint: the number of finished ones less two |
//! | 2 | so many offsets as a bitmap, the lowest first, padded to bytes; 1 is finished |
//!
//! Unfinished offsets behind the last finished one are left out: a new owner reads them in any case. Pure.

use crate::model::varint;

const FINISHED_ONE: u64 = 0;
const FINISHED_MORE: u64 = 1;
const BITMAP: u64 = 2;

/// A bitmap takes at most so many bytes besides its bits: its varint, and what pads it.
const BITMAP_OVERHEAD: usize = 6;
/// Unfinished offsets that metadata may name. More than any partition defers, or takes otherwise.
const MOST: i64 = 1 << 26;

/// What a part of a span takes at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Where it begins; it ends where the next one begins.
    pub(super) from: i64,
    /// Bytes as segments without a bitmap.
    pub(super) bytes: usize,
}

/// A part of a span that is written in one way.
struct Part {
    /// The indexes of its pieces.
    from: usize,
    to: usize,
    is_bitmap: bool,
}

/// Bytes of a run of unfinished offsets, and of the finished ones behind it.
pub(super) fn token_length(run: i64, gap: i64) -> usize {
    match gap {
        ..=0 => 0,
        1 => varint::length(tagged(run, FINISHED_ONE)),
        _ => varint::length(tagged(run, FINISHED_MORE)) + varint::length(number(gap - 2)),
    }
}

fn tagged(value: i64, tag: u64) -> u64 {
    number(value) << 2 | tag
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The fewest bytes for these pieces, which end at `end`, when a bitmap takes `extra` more than it needs.
pub(super) fn fewest(pieces: &[Piece], end: i64, extra: usize) -> usize {
    plan(pieces, end, extra).0
}

/// The shortest way to write pieces: bytes at most, and the parts.
fn plan(pieces: &[Piece], end: i64, extra: usize) -> (usize, Vec<Part>) {
    let overhead = eighths(BITMAP_OVERHEAD + extra);
    let start = |index: usize| pieces.get(index).map_or(end, |piece| piece.from);
    // In eighths of bytes: the least for all pieces before the index, and where the last part before it begins.
    let mut best = vec![(0_i64, 0_usize, false)];
    // Where a bitmap would best begin.
    let mut open = 0;
    for index in 1..=pieces.len() {
        let (before, _, _) = best[index - 1];
        let plain = before + eighths(pieces[index - 1].bytes);
        let bitmap = best[open].0 + overhead + start(index) - start(open);
        best.push(if bitmap < plain {
            (bitmap, open, true)
        } else {
            (plain, index - 1, false)
        });
        if best[index].0 - start(index) < best[open].0 - start(open) {
            open = index;
        }
    }
    let mut parts = Vec::new();
    let mut to = pieces.len();
    while to > 0 {
        let (_, from, is_bitmap) = best[to];
        parts.push(Part {
            from,
            to,
            is_bitmap,
        });
        to = from;
    }
    parts.reverse();
    let all = best.last().map_or(0, |last| last.0);
    (usize::try_from(all).unwrap_or(0).div_ceil(8), parts)
}

fn eighths(bytes: usize) -> i64 {
    i64::try_from(bytes * 8).unwrap_or(i64::MAX / 4)
}

/// What is unfinished from `position` to before `end`, as segments. `runs` are ascending.
pub(super) fn write(runs: &[(i64, i64)], position: i64, end: i64) -> Vec<u8> {
    let pieces: Vec<Piece> = each_with_gap(runs, end)
        .map(|((from, to), gap)| Piece {
            from,
            bytes: token_length(to - from, gap),
        })
        .collect();
    let mut bytes = Vec::new();
    if let Some(&(first, _)) = runs.first() {
        write_token(&mut bytes, 0, first - position);
    } else {
        write_token(&mut bytes, 0, end - position);
    }
    for part in plan(&pieces, end, 0).1 {
        let to = runs.get(part.to).map_or(end, |next| next.0);
        let of = &runs[part.from..part.to];
        if part.is_bitmap {
            write_bitmap(&mut bytes, of, to);
        } else {
            for ((from, until), gap) in each_with_gap(of, to) {
                write_token(&mut bytes, until - from, gap);
            }
        }
    }
    bytes
}

/// Each run with the number of finished offsets behind it.
fn each_with_gap(runs: &[(i64, i64)], end: i64) -> impl Iterator<Item = ((i64, i64), i64)> + '_ {
    let next = runs.iter().skip(1).map(|next| next.0).chain([end]);
    runs.iter()
        .zip(next)
        .map(|(&run, next)| (run, next - run.1))
}

fn write_token(bytes: &mut Vec<u8>, run: i64, gap: i64) {
    match gap {
        ..=0 => {}
        1 => varint::write(bytes, tagged(run, FINISHED_ONE)),
        _ => {
            varint::write(bytes, tagged(run, FINISHED_MORE));
            varint::write(bytes, number(gap - 2));
        }
    }
}

/// From the first of these runs to before `to`.
fn write_bitmap(bytes: &mut Vec<u8>, runs: &[(i64, i64)], to: i64) {
    let Some(&(start, _)) = runs.first() else {
        return;
    };
    let offsets = usize::try_from(to - start).unwrap_or(0);
    varint::write(bytes, tagged(to - start, BITMAP));
    let begin = bytes.len();
    bytes.resize(begin + offsets.div_ceil(8), 0xff);
    let bitmap = &mut bytes[begin..];
    if !offsets.is_multiple_of(8) {
        bitmap[offsets / 8] = 0xff >> (8 - offsets % 8);
    }
    for offset in runs.iter().flat_map(|&(from, until)| from..until) {
        let at = usize::try_from(offset - start).unwrap_or(0);
        bitmap[at / 8] &= !(1 << (at % 8));
    }
}

/// The unfinished runs from `position` on, and the position behind the last finished offset; `None` for what
/// [`write`] does not write.
pub(super) fn read(mut data: &[u8], position: i64) -> Option<(Vec<(i64, i64)>, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    let (mut at, mut unfinished) = (position, 0_i64);
    let mut add = |from: i64, to: i64| {
        unfinished = unfinished.checked_add(to - from)?;
        match runs.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ if from < to => runs.push((from, to)),
            _ => {}
        }
        (unfinished <= MOST).then_some(())
    };
    while !data.is_empty() {
        let head = varint::read(&mut data)?;
        let length = i64::try_from(head >> 2).ok()?;
        let to = at.checked_add(length)?;
        match head & 3 {
            FINISHED_ONE => {
                add(at, to)?;
                at = to.checked_add(1)?;
            }
            FINISHED_MORE => {
                add(at, to)?;
                let more = i64::try_from(varint::read(&mut data)?).ok()?;
                at = to.checked_add(more)?.checked_add(2)?;
            }
            BITMAP => {
                let bytes = usize::try_from(length).ok()?.div_ceil(8);
                let (bitmap, behind) = data.split_at_checked(bytes)?;
                data = behind;
                for offset in at..to {
                    let bit = usize::try_from(offset - at).ok()?;
                    if bitmap[bit / 8] & (1 << (bit % 8)) == 0 {
                        add(offset, offset + 1)?;
                    }
                }
                at = to;
            }
            _ => return None,
        }
    }
    // What is unfinished at the end of a bitmap is not described.
    let end = match runs.last() {
        Some(&(from, to)) if to == at => {
            runs.pop();
            from
        }
        _ => at,
    };
    Some((runs, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs and gaps of every size.
    fn lengths() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let one = prop_oneof![4 => 1..4_i64, 2 => 1..300_i64, 1 => 1..200_000_i64];
        let other = prop_oneof![4 => 1..4_i64, 2 => 1..300_i64, 1 => 1..200_000_i64];
        proptest::collection::vec((one, other), 0..60)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_takes_no_more_than_planned(
            lead in 0..3_i64,
            lengths in lengths(),
            tail in any::<bool>(),
        ) {
            let mut runs = Vec::new();
            let mut at = 100 + lead;
            for (run, gap) in lengths {
                runs.push((at, at + run));
                at += run + gap;
            }
            let end = if tail { at } else { runs.last().map_or(at, |last| last.1) };
            let bytes = write(&runs, 100, end);
            let (read, known) = read(&bytes, 100).unwrap();
            let mut expected = runs.clone();
            if !tail && !runs.is_empty() {
                expected.pop();
            }
            prop_assert_eq!(&read, &expected);
            let behind = if tail || runs.is_empty() { end } else { runs.last().unwrap().0 };
            prop_assert_eq!(known, behind);
            let pieces: Vec<Piece> = each_with_gap(&runs, end)
                .map(|((from, to), gap)| Piece { from, bytes: token_length(to - from, gap) })
                .collect();
            prop_assert!(bytes.len() <= fewest(&pieces, end, 0) + token_length(0, lead));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some((runs, end)) = read(&bytes, 7) {
                prop_assert!(runs.iter().all(|(from, to)| from < to && *to <= end));
                prop_assert!(runs.is_sorted());
            }
        }
    }

    #[test]
    fn a_whale_takes_bytes_for_each_neighbour_and_none_for_its_commands() {
        // 300,000 commands at 20,000/s among those of neighbours at 83/s, then 15,000 of neighbours alone.
        let runs: Vec<(i64, i64)> = (0..1_250).map(|one| (one * 241, one * 241 + 240)).collect();
        let bytes = write(&runs, 0, 1_250 * 241 + 15_000);
        assert!(bytes.len() < 2_510, "{}", bytes.len());
        // What its lane sends now ends in any order.
        let front = (0..1_500)
            .filter(|one| one % 3 != 1)
            .map(|one| (one, one + 1));
        let later = (0..500).map(|one| (2_000 + one * 241, 2_240 + one * 241));
        let runs: Vec<(i64, i64)> = front.chain(later).collect();
        let joined: Vec<(i64, i64)> = runs
            .iter()
            .copied()
            .collect::<super::super::runs::Runs>()
            .iter()
            .collect();
        let bytes = write(&joined, 0, 200_000);
        assert!(bytes.len() < 1_500 / 8 + 1_020, "{}", bytes.len());
    }
}
