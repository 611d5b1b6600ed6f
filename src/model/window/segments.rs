//! The form of commit metadata for windows of every kind: runs of unfinished offsets, and bitmaps where the mix is dense.
//!
//! A whale's commands wait in long runs, among which those of its neighbours are finished: about two bytes for each
//! finished one, and two for any number of finished ones in a row. Many runs of about one length, as of a whale beside
//! neighbours, take little more than half of that as codes ([`super::golomb`]). Where finished and unfinished offsets
//! alternate, as in what a lane sends now, a bitmap is shorter. So the span is cut into segments, each written in the
//! shortest way.
//!
//! | a segment begins with a varint, whose two lowest bits say what | |
//! |---|---|
//! | 0 | so many unfinished offsets, then a finished one |
//! | 1 | so many unfinished offsets, then a varint: the number of finished ones less two |
//! | 2 | so many offsets as a bitmap, the lowest first, padded to bytes; 1 is finished |
//! | 3 | an order (four bits), and so many finished ones, each as a code: how many unfinished ones come before it; padded to bytes |
//!
//! Unfinished offsets behind the last finished one are left out: a new owner reads them in any case. Pure.

use super::golomb::{self, MOST_ORDER};
use crate::model::varint;

const FINISHED_ONE: u64 = 0;
const FINISHED_MORE: u64 = 1;
const BITMAP: u64 = 2;
const CODES: u64 = 3;

/// Bitmaps and codes take at most so many bytes besides their bits: a varint, and what pads them.
const OVERHEAD: usize = 6;
/// A token takes at most so many bytes beside those of what it splits or lengthens.
const TOKEN: usize = 5;
/// Unfinished offsets that metadata may name. More than any partition defers, or takes otherwise.
const MOST: i64 = 1 << 26;

/// What a part of a span takes at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Where it begins; it ends where the next one begins.
    from: i64,
    /// Bits as tokens.
    token: usize,
    /// Bits as codes.
    code: usize,
}

impl Piece {
    /// A run of unfinished offsets, and the finished ones behind it.
    fn run(from: i64, run: i64, gap: i64, order: u32) -> Self {
        Self::resting(from, run, gap, gap, order)
    }

    /// A run of offsets that rest, and the finished ones behind it: `gap` of them, and `most` when all up to the next run
    /// that rests have finished. A token counts all of these, codes only those before the next piece.
    pub(super) fn resting(from: i64, run: i64, gap: i64, most: i64, order: u32) -> Self {
        let code = match most {
            ..=0 => 0,
            _ => golomb::length(number(run), order) + zeros(gap - 1, order),
        };
        Self {
            from,
            token: token_length(run, most) * 8,
            code,
        }
    }

    /// Offsets any of which may be finished, and the finished ones behind them. `before` and `behind` say whether they touch
    /// a run that rests.
    pub(super) fn any(
        from: i64,
        offsets: i64,
        gap: i64,
        before: bool,
        behind: bool,
        order: u32,
    ) -> Self {
        let beside = i64::from(before) + i64::from(behind);
        // Runs that touch no other; the run before them counts all gaps as one.
        let runs = number((offsets + 1 - beside) / 2) as usize;
        Self {
            from,
            token: (runs * TOKEN + number(beside) as usize) * 8,
            // An unfinished one lengthens the next code by as much as its own would take, and at most two bits. The first
            // one of them that is finished has the code of the run before.
            code: 2 * number(offsets) as usize
                + 2
                + zeros(offsets + gap - i64::from(before), order),
        }
    }
}

/// The bits of so many finished offsets in a row, as codes.
fn zeros(offsets: i64, order: u32) -> usize {
    number(offsets) as usize * golomb::length(0, order)
}

/// How a part of a span is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Segments of a token each.
    Tokens,
    Bitmap,
    Codes,
}

/// A part of a span that is written in one way.
struct Part {
    /// The indexes of its pieces.
    from: usize,
    to: usize,
    way: Way,
}

/// Bytes of a run of unfinished offsets, and of the finished ones behind it.
fn token_length(run: i64, gap: i64) -> usize {
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

/// The order in which so many runs of so many offsets together are short as codes.
pub(super) fn order(runs: usize, offsets: usize) -> u32 {
    golomb::order((offsets / runs.max(1)) as u64)
}

/// The fewest bytes for these pieces, which end at `end`, when each part but tokens takes `extra` more than it needs.
pub(super) fn fewest(pieces: &[Piece], end: i64, extra: usize) -> usize {
    plan(pieces, end, extra).0
}

/// The shortest way to write pieces: bytes at most, and the parts.
fn plan(pieces: &[Piece], end: i64, extra: usize) -> (usize, Vec<Part>) {
    let overhead = bits(OVERHEAD + extra);
    let start = |index: usize| pieces.get(index).map_or(end, |piece| piece.from);
    // In bits: the least for all pieces before the index, and where the last part before it begins.
    let mut best = Vec::with_capacity(pieces.len() + 1);
    best.push((0_i64, 0_usize, Way::Tokens));
    // Where a bitmap and codes would best begin, and what they would take if they had begun with the first piece.
    let mut bitmap = (0, start(0));
    let mut codes = (0, 0_i64);
    let mut coded = 0_i64;
    for (index, piece) in pieces.iter().enumerate() {
        let after = index + 1;
        coded += bits_of(piece.code);
        let from = |(open, began): (usize, i64), now: i64| best[open].0 + overhead + now - began;
        let ways = [
            (best[index].0 + bits_of(piece.token), index, Way::Tokens),
            (from(bitmap, start(after)), bitmap.0, Way::Bitmap),
            (from(codes, coded), codes.0, Way::Codes),
        ];
        let [mut least, others @ ..] = ways;
        for other in others {
            if other.0 < least.0 {
                least = other;
            }
        }
        best.push(least);
        if least.0 - start(after) < best[bitmap.0].0 - bitmap.1 {
            bitmap = (after, start(after));
        }
        if least.0 - coded < best[codes.0].0 - codes.1 {
            codes = (after, coded);
        }
    }
    let mut parts = Vec::new();
    let mut to = pieces.len();
    while to > 0 {
        let (_, from, way) = best[to];
        parts.push(Part { from, to, way });
        to = from;
    }
    parts.reverse();
    let all = best.last().map_or(0, |last| last.0);
    (usize::try_from(all).unwrap_or(0).div_ceil(8), parts)
}

fn bits(bytes: usize) -> i64 {
    bits_of(bytes * 8)
}

fn bits_of(bits: usize) -> i64 {
    i64::try_from(bits).unwrap_or(i64::MAX / 4)
}
/// What is unfinished from `position` to before `end`, as segments; codes are in one of these orders. `runs` are ascending.
pub(super) fn write(runs: &[(i64, i64)], position: i64, end: i64, orders: [u32; 2]) -> Vec<u8> {
    let plans = orders.map(|order| {
        let runs = each_with_gap(runs, end);
        let each = runs.map(|((from, to), gap)| Piece::run(from, to - from, gap, order));
        let pieces: Vec<Piece> = each.collect();
        let (bytes, parts) = plan(&pieces, end, 0);
        (bytes, parts, order)
    });
    let [first, second] = plans;
    let (_, parts, order) = if second.0 < first.0 { second } else { first };
    let mut bytes = Vec::new();
    if let Some(&(first, _)) = runs.first() {
        write_token(&mut bytes, 0, first - position);
    } else {
        write_token(&mut bytes, 0, end - position);
    }
    for part in parts {
        let to = runs.get(part.to).map_or(end, |next| next.0);
        let of = &runs[part.from..part.to];
        match part.way {
            Way::Bitmap => write_bitmap(&mut bytes, of, to),
            Way::Codes => write_codes(&mut bytes, of, to, order),
            Way::Tokens => {
                for ((from, until), gap) in each_with_gap(of, to) {
                    write_token(&mut bytes, until - from, gap);
                }
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

/// The finished offsets behind these runs, up to `to`.
fn write_codes(bytes: &mut Vec<u8>, runs: &[(i64, i64)], to: i64, order: u32) {
    let gaps = || each_with_gap(runs, to).filter(|&(_, gap)| gap > 0);
    let finished: i64 = gaps().map(|(_, gap)| gap).sum();
    let head = number(finished) << 4 | u64::from(order);
    varint::write(bytes, head << 2 | CODES);
    let mut writer = golomb::Writer::new(bytes);
    for ((from, until), gap) in gaps() {
        writer.write(number(until - from), order);
        for _ in 1..gap {
            writer.write(0, order);
        }
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
            // All that is left of the two bits.
            _ => {
                let order = (head >> 2) as u32 & MOST_ORDER;
                let mut codes = golomb::Reader::new(data);
                for _ in 0..length >> 4 {
                    let run = i64::try_from(codes.read(order)?).ok()?;
                    let to = at.checked_add(run)?;
                    add(at, to)?;
                    at = to.checked_add(1)?;
                }
                data = codes.rest();
            }
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
            orders in [0..=MOST_ORDER, 0..=MOST_ORDER],
        ) {
            let mut runs = Vec::new();
            let mut at = 100 + lead;
            for (run, gap) in lengths {
                runs.push((at, at + run));
                at += run + gap;
            }
            let end = if tail { at } else { runs.last().map_or(at, |last| last.1) };
            let bytes = write(&runs, 100, end, orders);
            let (read, known) = read(&bytes, 100).unwrap();
            let mut expected = runs.clone();
            if !tail && !runs.is_empty() {
                expected.pop();
            }
            prop_assert_eq!(&read, &expected);
            let behind = if tail || runs.is_empty() { end } else { runs.last().unwrap().0 };
            prop_assert_eq!(known, behind);
            for order in orders {
                let pieces: Vec<Piece> = each_with_gap(&runs, end)
                    .map(|((from, to), gap)| Piece::run(from, to - from, gap, order))
                    .collect();
                prop_assert!(bytes.len() <= fewest(&pieces, end, 0) + token_length(0, lead));
            }
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
        let mut random = fastrand::Rng::with_seed(7);
        let (mut runs, mut at) = (Vec::new(), 0);
        for _ in 0..1_250 {
            let run = (-240.0 * random.f64().max(1e-9).ln()) as i64 + 1;
            runs.push((at, at + run));
            at += run + 1;
        }
        let orders = [order(1_250, at as usize), 0];
        let bytes = write(&runs, 0, at + 15_000, orders);
        assert!(bytes.len() < 1_250 * 39 / 32 + 20, "{}", bytes.len());
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
        let bytes = write(&joined, 0, 200_000, orders);
        assert!(
            bytes.len() < 1_500 / 8 + 500 * 10 / 8 + 20,
            "{}",
            bytes.len()
        );
    }
}
