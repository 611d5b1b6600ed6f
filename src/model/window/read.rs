//! Reads commit metadata: what it says, for which place it counts, and why it is not used.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use thiserror::Error;

use super::segments;
use crate::model::coverage::Coverage;
use crate::model::stable_hash::fnv1a;
use crate::model::units::Position;
use crate::model::varint;

/// The latest version of the format of commit metadata that this program reads.
pub const VERSION: u8 = 4;
/// Nothing is finished above the position; only with a coverage.
pub(super) const FORM_NONE: u8 = 0;
pub(super) const FORM_BITMAP: u8 = 1;
pub(super) const FORM_GAPS: u8 = 2;
/// Since version 4.
pub(super) const FORM_SEGMENTS: u8 = 3;
/// Where metadata counts: one partition of one cluster. The hashes are computed once, not for each snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub(super) cluster: u64,
    pub(super) partition: u64,
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

/// What metadata says.
pub(super) struct Decoded {
    /// Runs, ascending.
    pub(super) unfinished: Vec<(i64, i64)>,
    /// The position behind the last offset that it describes.
    pub(super) end: i64,
    pub(super) coverage: Coverage,
}

pub(super) fn decode(
    metadata: &str,
    position: Position,
    place: Place,
) -> Result<Decoded, ReadError> {
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
            if coverage.is_empty() && version >= 4 {
                Coverage::new(position)
            } else {
                Coverage::decode(position, coverage)
                    .map_err(|_| ReadError::Foreign)?
                    .ok_or(ReadError::NewerForm(version))?
            }
        }
    };
    let (unfinished, end) = match split(&mut rest)? {
        [FORM_NONE] if version >= 3 => (Vec::new(), position.0),
        [FORM_GAPS] => read_gaps(rest, position.0)?,
        [FORM_BITMAP] => read_bitmap(rest, position.0),
        [FORM_SEGMENTS] if version >= 4 => {
            segments::read(rest, position.0).ok_or(ReadError::Foreign)?
        }
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

fn read_gaps(mut data: &[u8], base: i64) -> Result<(Vec<(i64, i64)>, i64), ReadError> {
    let tail = varint::read(&mut data).ok_or(ReadError::Foreign)?;
    let mut unfinished: Vec<(i64, i64)> = Vec::new();
    let mut next = base;
    while !data.is_empty() {
        let gap = varint::read(&mut data).ok_or(ReadError::Foreign)?;
        let offset = i64::try_from(gap)
            .ok()
            .and_then(|gap| next.checked_add(gap))
            .ok_or(ReadError::Foreign)?;
        next = offset.checked_add(1).ok_or(ReadError::Foreign)?;
        match unfinished.last_mut() {
            Some(last) if last.1 == offset => last.1 = next,
            _ => unfinished.push((offset, next)),
        }
    }
    let end = i64::try_from(tail)
        .ok()
        .and_then(|tail| next.checked_add(tail))
        .ok_or(ReadError::Foreign)?;
    Ok((unfinished, end))
}

fn read_bitmap(data: &[u8], base: i64) -> (Vec<(i64, i64)>, i64) {
    let mut unfinished = Vec::new();
    let mut end = base;
    for (index, byte) in data.iter().enumerate() {
        for bit in 0..8 {
            let offset = base + (index * 8 + bit) as i64;
            if byte & (1 << bit) != 0 {
                if end < offset {
                    unfinished.push((end, offset));
                }
                end = offset + 1;
            }
        }
    }
    (unfinished, end)
}
