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
//! | 1 | form | |
//! | | data | |
//!
//! Both versions are read. Version 1 names no cluster: on a mirrored cluster it is told from the cluster's own only
//! by its position. Metadata that is foreign, damaged, stale or of another cluster reads as empty: see [`ReadError`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use thiserror::Error;

use crate::model::units::{Offset, Position};

/// What a broker keeps with an offset by default (`offset.metadata.max.bytes`), characters.
pub const METADATA_LIMIT: usize = 4096;

/// Bytes before base64 that fit, with a few to spare.
const BYTES: usize = 3068;
/// Version 1, CRC 4, place 8, cluster 8, base 8, form 1; and in the gaps form 10 for the tail. Version 1 lacks the
/// cluster and has the same room, so that what one version holds fits the other.
const HEADER: usize = 40;
const ROOM: usize = BYTES - HEADER;

/// The latest version of the format of commit metadata that this program reads.
pub const VERSION: u8 = 2;
const FORM_BITMAP: u8 = 1;
const FORM_GAPS: u8 = 2;

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
    /// Written for another topic, partition or position: an operator moved the offset, or the topic was recreated.
    #[error("the commit metadata belongs to another topic, partition or position")]
    Stale,
    /// Copied by a mirror from another cluster, whose offsets are meaningless here.
    #[error(
        "the commit metadata was written on another Kafka cluster, whose offsets are not valid here; after a planned failover, run `hookstream positions import` before delivery starts"
    )]
    OtherCluster,
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

    /// How many offsets from the position on a commit of so many characters can describe, whatever is finished.
    #[must_use]
    pub fn reach(characters: usize) -> usize {
        room(characters) * 8
    }

    /// A window as its last owner committed it. Unusable `metadata` reads as empty, with the reason.
    #[must_use]
    pub fn restore(position: Position, metadata: &str, place: Place) -> (Self, Option<ReadError>) {
        let mut window = Self::new(position);
        if metadata.is_empty() {
            return (window, None);
        }
        match decode(metadata, position, place) {
            Ok((unfinished, end)) => {
                for offset in unfinished {
                    window.push(offset);
                }
                window.end = end;
                (window, None)
            }
            Err(error) => (window, Some(error)),
        }
    }

    /// Whether `offset`, which is behind all taken ones, can be taken, whatever finishes first.
    #[must_use]
    pub fn has_room(&self, offset: Offset) -> bool {
        let Some((&first, _)) = self.open.first_key_value() else {
            return true;
        };
        offset.0 < self.end
            || offset.0 - first < bits(self.room)
            || self.gap_bytes + varint_length(self.gap_to(offset.0)) <= self.room
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

    /// There is nothing to take below `position`, as behind the end of a transaction. Does nothing while an offset is
    /// unfinished: what the commit says is the same then, and longer.
    pub fn pass(&mut self, position: Position) {
        if self.open.is_empty() && position.0 > self.end {
            self.next = position.0;
            self.end = position.0;
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
        self.gap_bytes -= varint_length(gap);
        if let Some((_, after)) = self.open.range_mut(offset.0..).next() {
            self.gap_bytes -= varint_length(*after);
            *after = if is_first { 0 } else { *after + gap + 1 };
            self.gap_bytes += varint_length(*after);
        }
        true
    }

    /// Whether an offset was taken, by this or a former owner, and is finished.
    #[must_use]
    pub fn is_finished(&self, offset: Offset) -> bool {
        offset.0 < self.end && !self.open.contains_key(&offset.0)
    }

    /// How many offsets are unfinished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// The lowest unfinished offset, or the position behind the last one taken.
    #[must_use]
    pub fn position(&self) -> Position {
        Position(
            self.open
                .first_key_value()
                .map_or(self.end, |(&first, _)| first),
        )
    }

    /// The span from the position to the last offset taken, which a commit has to describe.
    #[must_use]
    pub fn span(&self) -> u64 {
        u64::try_from(self.end - self.position().0).unwrap_or(0)
    }

    /// The commit for the partition at `place`.
    #[must_use]
    pub fn snapshot(&self, place: Place, format: Format) -> Snapshot {
        let position = self.position();
        let metadata = self.encode(position, place, format);
        debug_assert!(
            metadata.len() <= METADATA_LIMIT,
            "the commit fits whatever was taken"
        );
        Snapshot { position, metadata }
    }

    fn push(&mut self, offset: i64) {
        let gap = self.gap_to(offset);
        self.gap_bytes += varint_length(gap);
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

    fn encode(&self, position: Position, place: Place, format: Format) -> String {
        let span = usize::try_from(self.end - position.0).unwrap_or(0);
        if span == self.open.len() || self.room == 0 {
            return String::new();
        }
        let is_short = self.gap_bytes <= span / 8;
        if self.gap_bytes.min(span.div_ceil(8)) > self.room {
            return self.cut().encode(position, place, format);
        }
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(match format {
            Format::V1 => 1,
            Format::V2 => 2,
        });
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&place.partition.to_be_bytes());
        if format == Format::V2 {
            bytes.extend_from_slice(&place.cluster.to_be_bytes());
        }
        bytes.extend_from_slice(&position.0.to_be_bytes());
        if is_short {
            bytes.push(FORM_GAPS);
            self.write_gaps(&mut bytes);
        } else {
            bytes.push(FORM_BITMAP);
            self.write_bitmap(&mut bytes, position, span);
        }
        let crc = crc32fast::hash(&bytes[5..]);
        bytes[1..5].copy_from_slice(&crc.to_be_bytes());
        STANDARD_NO_PAD.encode(&bytes)
    }

    /// As if nothing behind what fits had been taken. Only after the limit was lowered.
    fn cut(&self) -> Self {
        let end = self.end.min(self.position().0 + bits(self.room));
        let mut open = self.open.clone();
        let cut_off = open.split_off(&end);
        let gaps = cut_off.values().map(|&gap| varint_length(gap));
        Self {
            open,
            gap_bytes: self.gap_bytes - gaps.sum::<usize>(),
            next: self.next.min(end),
            end,
            room: self.room,
        }
    }

    /// How many offsets are finished behind the last unfinished one, then each unfinished one's gap.
    fn write_gaps(&self, bytes: &mut Vec<u8>) {
        let last = self
            .open
            .last_key_value()
            .map_or(self.end - 1, |(&last, _)| last);
        write_varint(bytes, u64::try_from(self.end - last - 1).unwrap_or(0));
        for &gap in self.open.values() {
            write_varint(bytes, gap);
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

/// Stable over versions and machines, which the standard library's hasher is not.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The unfinished offsets, ascending, and the position behind the last offset told of.
fn decode(metadata: &str, position: Position, place: Place) -> Result<(Vec<i64>, i64), ReadError> {
    let bytes = STANDARD_NO_PAD
        .decode(metadata)
        .map_err(|_| ReadError::Foreign)?;
    let mut rest = bytes.as_slice();
    let [version] = split(&mut rest)?;
    let crc: [u8; 4] = split(&mut rest)?;
    if crc32fast::hash(rest).to_be_bytes() != crc {
        return Err(ReadError::Foreign);
    }
    if !matches!(version, 1 | 2) {
        return Err(ReadError::Newer(version));
    }
    let partition: [u8; 8] = split(&mut rest)?;
    if version == 2 && split(&mut rest)? != place.cluster.to_be_bytes() {
        return Err(ReadError::OtherCluster);
    }
    let base: [u8; 8] = split(&mut rest)?;
    if partition != place.partition.to_be_bytes() || base != position.0.to_be_bytes() {
        return Err(ReadError::Stale);
    }
    match split(&mut rest)? {
        [FORM_GAPS] => read_gaps(rest, position.0),
        [FORM_BITMAP] => Ok(read_bitmap(rest, position.0)),
        _ => Err(ReadError::Foreign),
    }
}

/// The next `N` bytes.
fn split<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ReadError> {
    let (first, behind) = rest.split_first_chunk().ok_or(ReadError::Foreign)?;
    *rest = behind;
    Ok(*first)
}

fn read_gaps(mut data: &[u8], base: i64) -> Result<(Vec<i64>, i64), ReadError> {
    let tail = read_varint(&mut data).ok_or(ReadError::Foreign)?;
    let mut unfinished = Vec::new();
    let mut next = base;
    while !data.is_empty() {
        let gap = read_varint(&mut data).ok_or(ReadError::Foreign)?;
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

fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
#[cfg(test)]
mod tests;
