//! The window of one partition: offsets that delivery has taken and not yet committed past.
//!
//! Attempts end in any order, but a group commits one position per partition. So each commit carries, in its
//! metadata, which offsets above the position are finished already; a restart reads it and repeats nothing.
//!
//! What is finished must fit [`METADATA_LIMIT`]. Of two forms the shorter is used: a **bitmap** of the span
//! (any mix, up to about 24,000 offsets), or the **gaps** between unfinished offsets as varints (few unfinished
//! ones in a span of a million). Finishing an offset never makes the shorter form longer than the limit: the
//! span only shrinks, and two gaps that merge take no more bytes than they did apart. So room is asked for
//! only when an offset is taken ([`Window::has_room`]), and a handful of hanging attempts never stops intake.
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
//! | 2 | length of the coverage | 3 |
//! | | coverage ([`super::coverage`]) | 3 |
//! | 1 | form | |
//! | | data | |
//!
//! All versions are read. Version 1 names no cluster: on a mirrored cluster it is told from the cluster's own only
//! by its position. Version 3 is written only when there is a coverage, which programs that read only up to version 2
//! do not know: their partitions stop. Metadata that is foreign, damaged, stale or of another cluster reads as empty;
//! what a newer program wrote stops the partition: see [`ReadError`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use thiserror::Error;

use crate::model::coverage::{Coverage, MAX_GROWTH};
use crate::model::stable_hash::fnv1a;
use crate::model::units::{Offset, Position};
use crate::model::varint;

/// What a broker keeps with an offset by default (`offset.metadata.max.bytes`), characters.
pub const METADATA_LIMIT: usize = 4096;

/// Bytes before base64 that fit, with a few to spare.
const BYTES: usize = 3068;
/// Version 1, CRC 4, place 8, cluster 8, base 8, form 1; and in the gaps form 10 for the tail. Version 1 lacks the
/// cluster and has the same room, so that what one version holds fits the other.
const HEADER: usize = 40;
const ROOM: usize = BYTES - HEADER;

/// The latest version of the format of commit metadata that this program reads.
pub const VERSION: u8 = 3;
/// Nothing is finished above the position; only with a coverage.
const FORM_NONE: u8 = 0;
const FORM_BITMAP: u8 = 1;
const FORM_GAPS: u8 = 2;
/// Bytes that a coverage takes besides itself.
const COVERAGE_HEADER: usize = 2;

/// Offsets that are taken and unfinished, and the position behind the last one taken.
///
/// Offsets that do not exist (transaction markers, compaction) count as finished.
#[derive(Clone, Debug)]
pub struct Window {
    /// Unfinished offsets, each with its gap: how many offsets lie between it and the one before it; the
    /// first one's gap is 0, since the base of a snapshot is its own offset. After a restore it also holds
    /// what the former owner left unfinished and this window has not yet taken.
    open: BTreeMap<i64, u64>,
    /// Bytes that all gaps take as varints.
    gap_bytes: usize,
    /// Behind the last offset taken.
    next: i64,
    /// Behind the last offset that this or a former owner has taken.
    end: i64,
    /// Bytes that gaps or bitmap may take.
    room: usize,
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
}

/// Where metadata counts: one partition of one cluster. The hashes are computed once, not for each snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    cluster: u64,
    partition: u64,
}

impl Place {
    /// A partition of a topic of a cluster.
    #[must_use]
    pub fn new(cluster: &str, topic: &str, partition: i32) -> Self {
        Self {
            cluster: fnv1a(cluster.bytes()),
            partition: fnv1a(topic.bytes().chain(partition.to_be_bytes())),
        }
    }
}

/// What to commit: everything below `position` is finished, and what `metadata` names above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The lowest unfinished offset, or the position behind the last one taken.
    pub position: Position,
    /// Which offsets above are finished; empty when none is.
    pub metadata: String,
}

/// Why commit metadata was ignored. The finished commands that it named are delivered again; receivers deduplicate by
/// webhook id.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// Not written by hookstream, or truncated.
    #[error("the commit metadata was not written by hookstream, or is corrupt")]
    Foreign,
    /// Written by a newer program.
    #[error(
        "the commit metadata has version {0}, but this program supports only up to version {VERSION}; do not run older replicas beside newer ones"
    )]
    Newer(u8),
    /// Written by a newer program, in a form of a known version that this program does not know.
    #[error(
        "the commit metadata has version {0} in a form that this program does not support; do not run older replicas beside newer ones"
    )]
    NewerForm(u8),
    /// Written for another topic, partition or position: an operator moved the offset, or the topic was recreated.
    #[error("the commit metadata belongs to another topic, partition or position")]
    Stale,
    /// Copied by a mirror from another cluster, whose offsets are meaningless here.
    #[error(
        "the commit metadata was written on another Kafka cluster, whose offsets are not valid here; after a planned failover, run `hookstream positions import` before delivery starts"
    )]
    OtherCluster,
}

impl ReadError {
    /// The version of the metadata, if a newer program wrote it: then it must not be taken as empty.
    #[must_use]
    pub fn newer(&self) -> Option<u8> {
        match self {
            Self::Newer(version) | Self::NewerForm(version) => Some(*version),
            Self::Foreign | Self::Stale | Self::OtherCluster => None,
        }
    }
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
        match decode(metadata, position, place) {
            Ok(decoded) => {
                for offset in decoded.unfinished {
                    window.push(offset);
                }
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
            open: BTreeMap::new(),
            gap_bytes: 0,
            next: position.0,
            end: position.0,
            room: ROOM,
        }
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
    pub fn has_room(&self, offset: Offset) -> bool {
        self.has_room_in(offset, self.room)
    }

    /// The same beside a coverage, which grows with the record.
    #[must_use]
    pub fn has_room_beside(&self, offset: Offset, coverage: &Coverage) -> bool {
        let beside = COVERAGE_HEADER + coverage.reserve() + MAX_GROWTH;
        self.has_room_in(offset, self.room.saturating_sub(beside))
    }

    fn has_room_in(&self, offset: Offset, room: usize) -> bool {
        let Some((&first, _)) = self.open.first_key_value() else {
            return true;
        };
        offset.0 < self.end
            || offset.0 - first < bits(room)
            || self.gap_bytes + varint::length(self.gap_to(offset.0)) <= room
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
            return self.open.contains_key(&offset.0);
        }
        self.end = self.next;
        self.push(offset.0);
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
        let is_first = self
            .open
            .first_key_value()
            .is_some_and(|(&first, _)| first == offset.0);
        let Some(gap) = self.open.remove(&offset.0) else {
            return false;
        };
        self.gap_bytes -= varint::length(gap);
        if let Some((_, after)) = self.open.range_mut(offset.0..).next() {
            self.gap_bytes -= varint::length(*after);
            *after = if is_first { 0 } else { *after + gap + 1 };
            self.gap_bytes += varint::length(*after);
        }
        true
    }

    /// Whether an offset was taken, by this or a former owner, and is finished.
    #[must_use]
    pub fn is_finished(&self, offset: Offset) -> bool {
        offset.0 < self.end && !self.open.contains_key(&offset.0)
    }

    /// The unfinished offsets, ascending.
    pub fn open(&self) -> impl Iterator<Item = i64> {
        self.open.keys().copied()
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
        let first = self.open.first_key_value();
        Position(first.map_or(self.next, |(&first, _)| first.min(self.next)))
    }

    /// The span from the position to the last offset taken, which a commit has to describe.
    #[must_use]
    pub fn span(&self) -> u64 {
        u64::try_from(self.end - self.position().0).unwrap_or(0)
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
        if format != Format::V3 || coverage.is_empty() {
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

    fn push(&mut self, offset: i64) {
        let gap = self.gap_to(offset);
        self.gap_bytes += varint::length(gap);
        self.open.insert(offset, gap);
    }

    fn gap_to(&self, offset: i64) -> u64 {
        self.open.last_key_value().map_or(0, |(&last, _)| {
            u64::try_from(offset - last - 1).unwrap_or(0)
        })
    }

    /// Unfinished offsets of a former owner below `offset` that were not read again were deleted by retention: there is
    /// nothing left to deliver.
    fn forget_missing(&mut self, offset: i64) {
        let missing: Vec<_> = self
            .open
            .range(self.next..offset.max(self.next))
            .map(|(&gone, _)| gone)
            .collect();
        for gone in missing {
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
        let gap_bytes = self.gap_bytes + varint::length(self.lead(position)) - 1;
        let is_short = gap_bytes <= span / 8;
        if !is_plain && gap_bytes.min(span.div_ceil(8)) > room {
            return self.cut(room).encode(position, coverage, place, format);
        }
        let mut bytes = Vec::with_capacity(BYTES);
        let version = match format {
            Format::V1 => 1,
            _ if !coverage.is_empty() => 3,
            Format::V2 | Format::V3 => 2,
        };
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
        if is_plain {
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

    /// As if nothing behind what fits had been taken. Only after the limit was lowered, or beside a coverage that a former
    /// owner had not written.
    fn cut(&self, room: usize) -> Self {
        let end = self.end.min(self.position().0 + bits(room));
        let mut open = self.open.clone();
        let cut_off = open.split_off(&end);
        let gaps = cut_off.values().map(|&gap| varint::length(gap));
        Self {
            open,
            gap_bytes: self.gap_bytes - gaps.sum::<usize>(),
            next: self.next.min(end),
            end,
            room: self.room,
        }
    }

    /// How many offsets lie from `position` to the first unfinished one, whose own gap is 0.
    fn lead(&self, position: Position) -> u64 {
        let first = self.open.keys().next();
        first.map_or(0, |first| u64::try_from(first - position.0).unwrap_or(0))
    }

    /// How many offsets are finished behind the last unfinished one, then each unfinished one's gap.
    fn write_gaps(&self, bytes: &mut Vec<u8>, position: Position) {
        let last = self.open.keys().next_back().copied();
        let tail = self.end - last.unwrap_or(position.0 - 1) - 1;
        varint::write(bytes, u64::try_from(tail).unwrap_or(0));
        let mut lead = self.lead(position);
        for &gap in self.open.values() {
            varint::write(bytes, gap + std::mem::take(&mut lead));
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
        for &offset in self.open.keys() {
            let at = usize::try_from(offset - position.0).unwrap_or(0);
            bitmap[at / 8] &= !(1 << (at % 8));
        }
    }
}

/// Bytes for gaps or bitmap in a text of so many characters.
fn room(characters: usize) -> usize {
    (characters * 3 / 4).saturating_sub(HEADER).min(ROOM)
}

/// The number of offsets that a bitmap of `room` bytes covers.
fn bits(room: usize) -> i64 {
    i64::try_from(room * 8).unwrap_or(i64::MAX)
}

/// What metadata says.
struct Decoded {
    /// Ascending.
    unfinished: Vec<i64>,
    /// The position behind the last offset that it describes.
    end: i64,
    coverage: Coverage,
}

fn decode(metadata: &str, position: Position, place: Place) -> Result<Decoded, ReadError> {
    let bytes = STANDARD_NO_PAD
        .decode(metadata)
        .map_err(|_| ReadError::Foreign)?;
    let mut rest = bytes.as_slice();
    let [version] = split(&mut rest)?;
    let crc: [u8; 4] = split(&mut rest)?;
    if crc32fast::hash(rest).to_be_bytes() != crc || version == 0 {
        return Err(ReadError::Foreign);
    }
    if version > VERSION {
        return Err(ReadError::Newer(version));
    }
    let partition: [u8; 8] = split(&mut rest)?;
    if version >= 2 && split(&mut rest)? != place.cluster.to_be_bytes() {
        return Err(ReadError::OtherCluster);
    }
    let base: [u8; 8] = split(&mut rest)?;
    if partition != place.partition.to_be_bytes() || base != position.0.to_be_bytes() {
        return Err(ReadError::Stale);
    }
    let coverage = match version {
        1 | 2 => Coverage::new(position),
        _ => {
            let length = usize::from(u16::from_be_bytes(split(&mut rest)?));
            let (coverage, behind) = rest.split_at_checked(length).ok_or(ReadError::Foreign)?;
            rest = behind;
            Coverage::decode(position, coverage)
                .map_err(|_| ReadError::Foreign)?
                .ok_or(ReadError::NewerForm(version))?
        }
    };
    let (unfinished, end) = match split(&mut rest)? {
        [FORM_NONE] if version >= 3 => (Vec::new(), position.0),
        [FORM_GAPS] => read_gaps(rest, position.0)?,
        [FORM_BITMAP] => read_bitmap(rest, position.0),
        _ => return Err(ReadError::NewerForm(version)),
    };
    Ok(Decoded {
        unfinished,
        end,
        coverage,
    })
}

/// The next `N` bytes.
fn split<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ReadError> {
    let (first, behind) = rest.split_first_chunk().ok_or(ReadError::Foreign)?;
    *rest = behind;
    Ok(*first)
}

fn read_gaps(mut data: &[u8], base: i64) -> Result<(Vec<i64>, i64), ReadError> {
    let tail = varint::read(&mut data).ok_or(ReadError::Foreign)?;
    let mut unfinished = Vec::new();
    let mut next = base;
    while !data.is_empty() {
        let gap = varint::read(&mut data).ok_or(ReadError::Foreign)?;
        let offset = i64::try_from(gap)
            .ok()
            .and_then(|gap| next.checked_add(gap))
            .ok_or(ReadError::Foreign)?;
        unfinished.push(offset);
        next = offset.checked_add(1).ok_or(ReadError::Foreign)?;
    }
    let end = i64::try_from(tail)
        .ok()
        .and_then(|tail| next.checked_add(tail))
        .ok_or(ReadError::Foreign)?;
    Ok((unfinished, end))
}

fn read_bitmap(data: &[u8], base: i64) -> (Vec<i64>, i64) {
    let mut unfinished = Vec::new();
    let mut end = base;
    for (index, byte) in data.iter().enumerate() {
        for bit in 0..8 {
            let offset = base + (index * 8 + bit) as i64;
            if byte & (1 << bit) != 0 {
                unfinished.extend(end..offset);
                end = offset + 1;
            }
        }
    }
    (unfinished, end)
}

#[cfg(test)]
mod tests;
