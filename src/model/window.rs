//! The window of one partition: offsets that delivery has taken and not yet committed past.
//!
//! Attempts end in any order, but a group commits one position per partition. So each commit carries, in its
//! metadata, which offsets above the position are finished already; a restart reads it and repeats nothing.
//!
//! What is finished must fit [`METADATA_LIMIT`]. Of three forms the shortest is used: a **bitmap** of the span
//! (any mix, up to about 24,000 offsets), the **gaps** between unfinished offsets as varints (few unfinished
//! ones in a span of a million), or **segments** (`segments`: few finished ones among many that rest, and any mix
//! of both). Finishing an offset never makes the shorter of the first two longer than the limit: the
//! span only shrinks, and two gaps that merge take no more bytes than they did apart. So room is asked for
//! only when an offset is taken ([`Window::has_room`]), and a handful of hanging attempts never stops intake.
//!
//! Segments do grow when offsets finish. So what waits for long **rests** ([`Window::rest`]): it does not finish before
//! it is woken, and the bytes are bounded for whatever the others do (`Window::worst`). Room is asked for when an
//! offset is taken or woken.
//!
//! The format, before base64:
//!
//! | bytes | what | version |
//! |---|---|---|
//! | 1 | version | |
//! | 4 | CRC-32 of all that follows | |
//! | 8 | hash of the topic's name and the partition | |
//! | 8 | hash of the cluster's id | 2 |
//! | 8 | base position | |
//! | 2 | length of the coverage | 3, 4 |
//! | | coverage ([`super::coverage`]) | 3, 4 |
//! | 1 | form | |
//! | | data | |
//!
//! All versions are read. Version 1 names no cluster: on a mirrored cluster it is told from the cluster's own only
//! by its position. Version 3 is written only when there is a coverage, which programs that read only up to version 2
//! do not know: their partitions stop. Version 4 is written only with segments. Metadata that is foreign, damaged, stale or of another cluster reads as empty;
//! what a newer program wrote stops the partition: see [`ReadError`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::model::coverage::{Coverage, MAX_GROWTH};
use crate::model::units::{Offset, Position};
use crate::model::varint;
use runs::Runs;
use segments::Piece;

use read::{FORM_BITMAP, FORM_GAPS, FORM_NONE, FORM_SEGMENTS};
pub use read::{Place, ReadError, VERSION};

mod golomb;
mod read;
mod runs;
mod segments;

/// What a broker keeps with an offset by default (`offset.metadata.max.bytes`), characters.
pub const METADATA_LIMIT: usize = 4096;

/// Bytes before base64 that fit, with a few to spare.
const BYTES: usize = 3068;
/// Version 1, CRC 4, place 8, cluster 8, base 8, form 1; and in the gaps form 10 for the tail. Version 1 lacks the
/// cluster and has the same room, so that what one version holds fits the other.
const HEADER: usize = 40;
const ROOM: usize = BYTES - HEADER;

/// Bytes that a coverage takes besides itself.
const COVERAGE_HEADER: usize = 2;

/// What an offset adds to segments at most, bytes, when it finishes among others.
const ONE: usize = 6;
/// The beginning of segments, and what rounding adds to them.
const LEAD: usize = 16;
/// A bitmap, or codes, may begin and end somewhere else than was assumed, which lengthens its neighbours.
const BESIDE: usize = 8;
/// Offsets that change before the bytes in the worst case are computed again.
const CHANGES: usize = 32;

/// Offsets that are taken and unfinished, and the position behind the last one taken.
///
/// Offsets that do not exist (transaction markers, compaction) count as finished.
#[derive(Clone, Debug)]
pub struct Window {
    /// Unfinished offsets. After a restore also what the former owner left unfinished and this window has not yet taken.
    open: Runs,
    /// Those of them that do not finish before they are woken or taken.
    resting: Runs,
    /// Behind the last offset taken.
    next: i64,
    /// Behind the last offset that this or a former owner has taken.
    end: i64,
    /// Bytes that gaps, bitmap or segments may take.
    room: usize,
    /// Whether more is taken than the first two forms can describe.
    is_wide: bool,
    /// Bytes of segments, whatever finishes: a bound, if it was computed, and what has changed since.
    worst: Option<usize>,
    changes: usize,
    /// The order of its codes.
    order: u32,
}

/// The version of the format that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Names no cluster; the only one that hookstream 0.1.0 reads.
    V1,
    /// Names the cluster.
    V2,
    /// Version 2, and with a coverage version 3.
    V3,
    /// Version 3, and with segments version 4.
    V4,
}

/// What to commit: everything below `position` is finished, and what `metadata` names above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The lowest unfinished offset, or the position behind the last one taken.
    pub position: Position,
    /// Which offsets above are finished; empty when none is.
    pub metadata: String,
}

/// What a partition's last owner committed.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What is finished.
    pub window: Window,
    /// What was seen of each source; unknown when the metadata was not usable.
    pub coverage: Coverage,
}

impl Restored {
    /// A partition at `position`; what was seen before is unknown.
    #[must_use]
    pub fn unknown(position: Position) -> Self {
        Self {
            window: Window::new(position),
            coverage: Coverage::unknown(position),
        }
    }

    /// A partition as its last owner committed it. Unusable `metadata` reads as empty, with the reason.
    #[must_use]
    pub fn read(position: Position, metadata: &str, place: Place) -> (Self, Option<ReadError>) {
        let mut window = Window::new(position);
        if metadata.is_empty() {
            let coverage = Coverage::new(position);
            return (Self { window, coverage }, None);
        }
        match read::decode(metadata, position, place) {
            Ok(decoded) => {
                window.open = decoded.unfinished.into_iter().collect();
                window.resting = window.open.clone();
                window.end = decoded.end;
                let coverage = decoded.coverage;
                (Self { window, coverage }, None)
            }
            Err(error) => (Self::unknown(position), Some(error)),
        }
    }
}

impl Window {
    /// A window that begins at `position`, nothing finished above it.
    #[must_use]
    pub fn new(position: Position) -> Self {
        Self {
            open: Runs::default(),
            resting: Runs::default(),
            next: position.0,
            end: position.0,
            room: ROOM,
            is_wide: false,
            worst: None,
            changes: 0,
            order: 0,
        }
    }

    /// Takes more than the first two forms can describe, as far as segments can. Only where every replica reads them.
    pub fn set_wide(&mut self) {
        self.is_wide = true;
    }

    /// The broker keeps at most this many characters (`offset.metadata.max.bytes`). Intake stops until what is finished
    /// fits them; meanwhile the commit leaves out what does not fit, which is then done again after a restart.
    pub fn set_limit(&mut self, characters: usize) {
        self.room = room(characters);
    }

    /// How many offsets a commit of so many characters can describe, whatever is finished.
    #[must_use]
    pub fn reach(characters: usize) -> usize {
        room(characters) * 8
    }

    /// The same beside a coverage.
    #[must_use]
    pub fn reach_beside(characters: usize, coverage: &Coverage) -> usize {
        let beside = match coverage.reserve() {
            0 => 0,
            bytes => COVERAGE_HEADER + bytes,
        };
        room(characters).saturating_sub(beside) * 8
    }

    /// Bytes that a coverage may take in a commit of so many characters: two thirds.
    #[must_use]
    pub fn coverage_limit(characters: usize) -> usize {
        room(characters) * 2 / 3
    }

    /// The window of [`Restored::read`].
    #[must_use]
    pub fn restore(position: Position, metadata: &str, place: Place) -> (Self, Option<ReadError>) {
        let (restored, error) = Restored::read(position, metadata, place);
        (restored.window, error)
    }

    /// Whether `offset`, which is behind all taken ones, can be taken, whatever finishes first.
    #[must_use]
    pub fn has_room(&mut self, offset: Offset) -> bool {
        self.has_room_in(offset, self.room)
    }

    /// The same beside a coverage, which grows with the record. While offsets rest, an eighth of the room is kept for
    /// those that are woken: intake would leave none.
    #[must_use]
    pub fn has_room_beside(&mut self, offset: Offset, coverage: &Coverage) -> bool {
        let room = self.room_beside(coverage);
        let kept = if self.resting.is_empty() { 0 } else { room / 8 };
        self.has_room_in(offset, room - kept)
    }

    fn room_beside(&self, coverage: &Coverage) -> usize {
        let beside = COVERAGE_HEADER + coverage.reserve() + MAX_GROWTH;
        self.room.saturating_sub(beside)
    }

    fn has_room_in(&mut self, offset: Offset, room: usize) -> bool {
        let is_known = offset.0 < self.end;
        // What was committed fits without the growth of a coverage.
        let described = self.is_described(offset, if is_known { self.room } else { room });
        described || (self.is_wide || is_known) && self.worst_is_within(room, ONE)
    }

    /// Whether a bitmap or gaps describe the window with `offset`, whatever finishes.
    fn is_described(&self, offset: Offset, room: usize) -> bool {
        // The end of the first one shortens the span.
        let Some(first) = self.open.first().filter(|&first| first != offset.0) else {
            return true;
        };
        let end = self.end.max(offset.0 + 1);
        if end - first <= bits(room) {
            return true;
        }
        let gap = match self.open.end() {
            Some(last) if last <= offset.0 => gap_length(offset.0 - last),
            _ => 0,
        };
        self.open.gap_bytes() + gap <= room
    }

    /// Whether an offset that rests may be woken beside a coverage.
    #[must_use]
    pub fn may_wake(&mut self, offset: Offset, coverage: &Coverage) -> bool {
        self.has_room_in(offset, self.room_beside(coverage))
    }

    /// Whether another offset may rest beside a coverage: a quarter of the room is kept for those that do not.
    #[must_use]
    pub fn may_rest(&mut self, coverage: &Coverage) -> bool {
        let room = self.room_beside(coverage) * 3 / 4;
        let is_short = |first| self.end - first < bits(room);
        self.is_wide && (self.open.first().is_none_or(is_short) || self.worst_is_within(room, 0))
    }

    /// An offset that was taken does not finish before it is woken.
    pub fn rest(&mut self, offset: Offset) {
        debug_assert!(self.open.contains(offset.0), "an unfinished offset rests");
        self.resting.insert(offset.0);
        self.changes += 1;
    }

    /// An offset that rests may finish from now on. `false` if it does not rest.
    pub fn wake(&mut self, offset: Offset) -> bool {
        self.grow();
        self.changes += 1;
        self.resting.remove(offset.0)
    }

    /// Whether an offset was taken and rests.
    #[must_use]
    pub fn rests(&self, offset: Offset) -> bool {
        offset.0 < self.next && self.resting.contains(offset.0)
    }

    /// The offsets that rest from `low` to before `high`, as runs.
    pub fn resting(&self, low: i64, high: i64) -> impl Iterator<Item = (i64, i64)> {
        self.resting.within(low, high)
    }

    /// Another offset may finish.
    fn grow(&mut self) {
        if let Some(worst) = &mut self.worst {
            *worst += ONE;
        }
    }

    /// Whether segments with another `more` bytes take at most `room`, whatever finishes.
    fn worst_is_within(&mut self, room: usize, more: usize) -> bool {
        let fits = |worst: Option<usize>| worst.is_some_and(|worst| worst + more <= room);
        if !fits(self.worst) && (self.worst.is_none() || self.changes >= CHANGES) {
            self.order = segments::order(self.resting.runs(), self.resting.len());
            self.worst = Some(self.worst());
            self.changes = 0;
        }
        fits(self.worst)
    }

    /// Bytes of segments at most, whichever of the offsets that do not rest finish.
    fn worst(&self) -> usize {
        let mut pieces = Vec::new();
        let mut ends = self.resting.iter().skip(1).map(|next| next.0);
        let mut each = self.open.iter().peekable();
        while let Some((from, to)) = each.next() {
            let behind = each.peek().map_or(self.end, |next| next.0) - to;
            let gap = |until: i64| if until < to { 0 } else { behind };
            let any = |at: i64, until: i64| {
                let (before, behind) = (at > from, until < to);
                Piece::any(at, until - at, gap(until), before, behind, self.order)
            };
            let mut at = from;
            for (rests, until) in self.resting.within(from, to) {
                if at < rests {
                    pieces.push(any(at, rests));
                }
                let most = ends.next().unwrap_or(self.end.max(until + 1)) - until;
                let run = until - rests;
                pieces.push(Piece::resting(rests, run, gap(until), most, self.order));
                at = until;
            }
            if at < to {
                pieces.push(any(at, to));
            }
        }
        segments::fewest(&pieces, self.end, BESIDE) + LEAD
    }

    /// Takes the next offset; offsets are taken in ascending order. `false` when it was finished by a former
    /// owner: then there is nothing to do for it.
    pub fn take(&mut self, offset: Offset) -> bool {
        debug_assert!(
            offset.0 >= self.next,
            "offsets are taken in ascending order, each once"
        );
        if self.next < self.end {
            self.forget_missing(offset.0);
        }
        self.next = offset.0 + 1;
        if offset.0 < self.end {
            return self.open.contains(offset.0) && {
                self.wake(offset);
                true
            };
        }
        self.end = self.next;
        self.open.push(offset.0, offset.0 + 1);
        self.grow();
        true
    }

    /// There is nothing to take below `position`. Does nothing while an offset is unfinished, as nothing would change.
    pub fn pass(&mut self, position: Position) {
        if self.open.is_empty() && position.0 > self.next {
            self.next = position.0;
            self.end = self.end.max(position.0);
        }
    }

    /// Finishes an offset that was taken. `false` if it is not open, which is a bug of the caller.
    pub fn finish(&mut self, offset: Offset) -> bool {
        if !self.open.remove(offset.0) {
            return false;
        }
        if self.resting.remove(offset.0) {
            self.grow();
        }
        self.changes += 1;
        true
    }

    /// Whether an offset was taken, by this or a former owner, and is finished.
    #[must_use]
    pub fn is_finished(&self, offset: Offset) -> bool {
        offset.0 < self.end && !self.open.contains(offset.0)
    }

    /// The unfinished offsets, ascending.
    pub fn open(&self) -> impl Iterator<Item = i64> {
        self.open.iter().flat_map(|(from, to)| from..to)
    }

    /// How many offsets are unfinished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// The lowest unfinished offset, or the position behind the last one taken. Not behind what a former owner has
    /// finished and this one has not read again: the coverage does not know these records yet.
    #[must_use]
    pub fn position(&self) -> Position {
        let first = self.open.first();
        Position(first.map_or(self.next, |first| first.min(self.next)))
    }

    /// The span from the position to the last offset taken, which a commit has to describe.
    #[must_use]
    pub fn span(&self) -> u64 {
        u64::try_from(self.end - self.position().0).unwrap_or(0)
    }

    /// Behind the last offset that was taken.
    #[must_use]
    pub fn end(&self) -> Position {
        Position(self.end)
    }

    /// The commit for the partition at `place`.
    #[must_use]
    pub fn snapshot(&self, place: Place, format: Format) -> Snapshot {
        self.snapshot_with(&[], place, format)
    }

    /// The commit for the partition at `place`, with what was seen of each source before its position. In formats
    /// before version 3, and where the broker keeps too little, it is left out: then copies may be delivered again after
    /// a restart.
    #[must_use]
    pub fn snapshot_beside(&self, coverage: &Coverage, place: Place, format: Format) -> Snapshot {
        if !matches!(format, Format::V3 | Format::V4) || coverage.is_empty() {
            return self.snapshot(place, format);
        }
        self.snapshot_with(&coverage.encode(self.position()), place, format)
    }

    fn snapshot_with(&self, coverage: &[u8], place: Place, format: Format) -> Snapshot {
        let position = self.position();
        let fits = COVERAGE_HEADER + coverage.len() <= self.room;
        let coverage = if fits { coverage } else { &[] };
        let metadata = self.encode(position, coverage, place, format);
        debug_assert!(
            metadata.len() <= METADATA_LIMIT,
            "the commit fits whatever was taken"
        );
        Snapshot { position, metadata }
    }

    /// Unfinished offsets of a former owner below `offset` that were not read again were deleted by retention: there is
    /// nothing left to deliver.
    fn forget_missing(&mut self, offset: i64) {
        let missing: Vec<_> = self.open.within(self.next, offset).collect();
        for gone in missing.into_iter().flat_map(|(from, to)| from..to) {
            self.finish(Offset(gone));
        }
    }

    fn encode(&self, position: Position, coverage: &[u8], place: Place, format: Format) -> String {
        let span = usize::try_from(self.end - position.0).unwrap_or(0);
        let is_plain = span == self.open.len() || self.room == 0;
        if is_plain && coverage.is_empty() {
            return String::new();
        }
        let room = match coverage.len() {
            0 => self.room,
            length => self.room - COVERAGE_HEADER - length,
        };
        let lead = varint::length(self.lead(position)) - 1;
        let (gaps, bitmap) = (self.open.gap_bytes() + lead, span.div_ceil(8));
        let is_short = gaps <= span / 8;
        let plainly = gaps.min(bitmap);
        // A window that other forms cannot describe is not cut off because a setting asks for them.
        let runs = || self.open.iter().collect::<Vec<_>>();
        let segments = (!is_plain && (format == Format::V4 || plainly > room))
            .then(|| segments::write(&runs(), position.0, self.end, self.orders()))
            .filter(|segments| segments.len() < plainly);
        if !is_plain && segments.as_ref().map_or(plainly, Vec::len) > room {
            return self.cut(room).encode(position, coverage, place, format);
        }
        let version = match format {
            _ if segments.is_some() => 4,
            Format::V1 => 1,
            _ if !coverage.is_empty() => 3,
            Format::V2 | Format::V3 | Format::V4 => 2,
        };
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(version);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&place.partition.to_be_bytes());
        if version >= 2 {
            bytes.extend_from_slice(&place.cluster.to_be_bytes());
        }
        bytes.extend_from_slice(&position.0.to_be_bytes());
        if version >= 3 {
            let length = u16::try_from(coverage.len()).unwrap_or(u16::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(coverage);
        }
        if let Some(segments) = segments {
            bytes.push(FORM_SEGMENTS);
            bytes.extend_from_slice(&segments);
        } else if is_plain {
            bytes.push(FORM_NONE);
        } else if is_short {
            bytes.push(FORM_GAPS);
            self.write_gaps(&mut bytes, position);
        } else {
            bytes.push(FORM_BITMAP);
            self.write_bitmap(&mut bytes, position, span);
        }
        let crc = crc32fast::hash(&bytes[5..]);
        bytes[1..5].copy_from_slice(&crc.to_be_bytes());
        STANDARD_NO_PAD.encode(&bytes)
    }

    /// The order that the bound was computed with, and the one that the runs suggest.
    fn orders(&self) -> [u32; 2] {
        [
            self.order,
            segments::order(self.open.runs(), self.open.len()),
        ]
    }

    /// As if nothing behind what fits had been taken. Only after the limit was lowered, or beside a coverage that a former
    /// owner had not written.
    fn cut(&self, room: usize) -> Self {
        let end = self.end.min(self.position().0 + bits(room));
        Self {
            open: self.open.within(i64::MIN, end).collect(),
            resting: Runs::default(),
            next: self.next.min(end),
            end,
            ..*self
        }
    }

    /// How many offsets lie from `position` to the first unfinished one, whose own gap is 0.
    fn lead(&self, position: Position) -> u64 {
        let first = self.open.first();
        first.map_or(0, |first| u64::try_from(first - position.0).unwrap_or(0))
    }

    /// How many offsets are finished behind the last unfinished one, then each unfinished one's gap.
    fn write_gaps(&self, bytes: &mut Vec<u8>, position: Position) {
        let tail = self.end - self.open.end().unwrap_or(position.0);
        varint::write(bytes, u64::try_from(tail).unwrap_or(0));
        let mut before = position.0;
        for (from, to) in self.open.iter() {
            varint::write(bytes, u64::try_from(from - before).unwrap_or(0));
            // Offsets in a row have no gap: a zero each.
            let more = usize::try_from(to - from).unwrap_or(1) - 1;
            bytes.resize(bytes.len() + more, 0);
            before = to;
        }
    }

    /// A bit for each offset from the position, lowest first; 1 is finished. The last byte is padded with
    /// zeros and the span ends at the last 1, so the last offset of a bitmap is always a finished one.
    fn write_bitmap(&self, bytes: &mut Vec<u8>, position: Position, span: usize) {
        let start = bytes.len();
        bytes.resize(start + span.div_ceil(8), 0xff);
        let bitmap = &mut bytes[start..];
        if !span.is_multiple_of(8) {
            bitmap[span / 8] = 0xff >> (8 - span % 8);
        }
        for offset in self.open() {
            let at = usize::try_from(offset - position.0).unwrap_or(0);
            bitmap[at / 8] &= !(1 << (at % 8));
        }
    }
}

/// Bytes for gaps or bitmap in a text of so many characters.
fn room(characters: usize) -> usize {
    (characters * 3 / 4).saturating_sub(HEADER).min(ROOM)
}

fn gap_length(gap: i64) -> usize {
    varint::length(u64::try_from(gap).unwrap_or(0))
}

/// The number of offsets that a bitmap of `room` bytes covers.
fn bits(room: usize) -> i64 {
    i64::try_from(room * 8).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
