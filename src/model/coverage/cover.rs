//! What is covered of all sources, and its encoding: see the table of [`super`].

use std::collections::BTreeMap;

use crate::model::source::{Point, Source};
use crate::model::varint;

/// The version of the encoding.
const VERSION: u8 = 1;

/// Version, flags and the number of topics.
pub(super) const HEAD: usize = 5;
/// Cluster, id and the number of sources.
pub(super) const TOPIC: usize = 26;
/// Partition, epoch, and the number of intervals with its flags.
pub(super) const SOURCE: usize = 5 + 4 + 2;
/// Leader epoch, offset, subscription.
pub(super) const POINT: usize = 5 + 9 + 8;

/// The commands behind `after`, up to and including `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    /// `None` is the start.
    pub(super) after: Option<Point>,
    pub(super) to: Point,
}

impl Interval {
    pub(super) fn contains(&self, at: Point) -> bool {
        self.after < Some(at) && at <= self.to
    }

    fn bytes(&self) -> usize {
        self.after.map_or(0, point_bytes) + point_bytes(self.to)
    }
}

/// What is covered of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Covered {
    /// Ascending, not touching each other, at least one.
    pub(super) intervals: Vec<Interval>,
    /// Commands before the first interval may have been seen.
    pub(super) is_begin_unknown: bool,
    /// When it was last seen: the number of the record.
    pub(super) seen: u64,
}

impl Covered {
    fn bytes(&self, source: &Source) -> usize {
        varint::length(source.partition.into())
            + 4
            + varint::length(flags(self))
            + self.intervals.iter().map(Interval::bytes).sum::<usize>()
    }

    fn holes(&self) -> usize {
        let is_begin_missing = self
            .intervals
            .first()
            .is_some_and(|first| first.after.is_some())
            && !self.is_begin_unknown;
        self.intervals.len() - 1 + usize::from(is_begin_missing)
    }

    /// Adds an interval and merges those that touch.
    fn add(&mut self, new: Interval) {
        // Nearly always: the last one goes on.
        if let Some(last) = self.intervals.last_mut()
            && last.after <= new.after
            && new.after <= Some(last.to)
        {
            last.to = last.to.max(new.to);
            return;
        }
        let mut merged = new;
        self.intervals.retain(|old| {
            let touches = old.after <= Some(merged.to) && merged.after <= Some(old.to);
            if touches {
                merged.after = merged.after.min(old.after);
                merged.to = merged.to.max(old.to);
            }
            !touches
        });
        let place = self.intervals.partition_point(|old| old.to < merged.to);
        self.intervals.insert(place, merged);
    }
}

/// What is covered of all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cover {
    pub(super) sources: BTreeMap<Source, Covered>,
    /// What encoding it takes at most.
    pub(super) bytes: usize,
    pub(super) holes: usize,
}

/// A change of a cover.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// An interval was covered.
    Add {
        interval: Interval,
        /// For a source that is not known yet.
        is_begin_unknown: bool,
        seen: u64,
    },
    /// The source's intervals up to this point were forgotten; without a point, the source.
    Forget(Option<Point>),
}

/// The bytes are not an encoded coverage.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the coverage in the commit metadata is corrupt")]
pub struct Damaged;

impl Cover {
    /// Returns whether it changed.
    pub(super) fn apply(&mut self, source: Source, change: Change) -> bool {
        match change {
            Change::Add {
                interval,
                is_begin_unknown,
                seen,
            } => self.add(source, interval, is_begin_unknown, seen),
            Change::Forget(None) => self.remove(&source).is_some(),
            Change::Forget(Some(up_to)) => {
                let Some(mut covered) = self.remove(&source) else {
                    return false;
                };
                covered.intervals.retain(|one| one.to > up_to);
                covered.is_begin_unknown = true;
                if !covered.intervals.is_empty() {
                    self.put(source, covered);
                }
                true
            }
        }
    }

    fn add(
        &mut self,
        source: Source,
        interval: Interval,
        is_begin_unknown: bool,
        seen: u64,
    ) -> bool {
        let Some(covered) = self.sources.get_mut(&source) else {
            self.put(
                source,
                Covered {
                    intervals: vec![interval],
                    is_begin_unknown,
                    seen,
                },
            );
            return true;
        };
        covered.seen = seen;
        let is_inside = covered
            .intervals
            .iter()
            .any(|one| one.after <= interval.after && interval.to <= one.to);
        if is_inside {
            return false;
        }
        let (bytes, holes) = (covered.bytes(&source), covered.holes());
        covered.add(interval);
        self.bytes = self.bytes + covered.bytes(&source) - bytes;
        self.holes = self.holes + covered.holes() - holes;
        true
    }

    fn has_topic_of(&self, source: &Source) -> bool {
        let first = Source {
            partition: 0,
            epoch: 0,
            ..*source
        };
        let next = self.sources.range(first..).next();
        next.is_some_and(|(next, _)| next.cluster == source.cluster && next.topic == source.topic)
    }

    /// Of a source that is not known.
    fn put(&mut self, source: Source, covered: Covered) {
        if !self.has_topic_of(&source) {
            self.bytes += TOPIC;
        }
        self.bytes += covered.bytes(&source);
        self.holes += covered.holes();
        self.sources.insert(source, covered);
    }

    fn remove(&mut self, source: &Source) -> Option<Covered> {
        let covered = self.sources.remove(source)?;
        self.bytes -= covered.bytes(source);
        self.holes -= covered.holes();
        if !self.has_topic_of(source) {
            self.bytes -= TOPIC;
        }
        Some(covered)
    }

    /// Reads a cover, and whether something was forgotten. `None` when a newer program wrote it.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<(Self, bool)>, Damaged> {
        let [version, forgetful, rest @ ..] = bytes else {
            return Err(Damaged);
        };
        if *version > VERSION || *forgetful > 1 {
            return Ok(None);
        }
        let mut rest = rest;
        let mut base = Self::default();
        for _ in 0..number(&mut rest)? {
            let cluster = u64::from_be_bytes(take(&mut rest)?);
            let topic = take(&mut rest)?;
            for _ in 0..number(&mut rest)? {
                let source = Source {
                    cluster,
                    topic,
                    partition: u32::try_from(number(&mut rest)?).map_err(|_| Damaged)?,
                    epoch: u32::from_be_bytes(take(&mut rest)?),
                };
                base.insert(source, covered(&mut rest)?)?;
            }
        }
        if *version == 0 || !rest.is_empty() {
            return Err(Damaged);
        }
        Ok(Some((base, *forgetful == 1)))
    }

    /// As read: sources ascend, each stands once.
    fn insert(&mut self, source: Source, covered: Covered) -> Result<(), Damaged> {
        if self
            .sources
            .last_key_value()
            .is_some_and(|(last, _)| *last >= source)
        {
            return Err(Damaged);
        }
        self.put(source, covered);
        Ok(())
    }

    /// Empty without sources.
    pub(super) fn encode(&self, is_forgetful: bool) -> Vec<u8> {
        if self.sources.is_empty() {
            return Vec::new();
        }
        let mut bytes = Vec::with_capacity(HEAD + self.bytes);
        bytes.extend_from_slice(&[VERSION, u8::from(is_forgetful)]);
        let all: Vec<_> = self.sources.iter().collect();
        let topics = || {
            all.chunk_by(|(one, _), (next, _)| {
                one.cluster == next.cluster && one.topic == next.topic
            })
        };
        varint::write(&mut bytes, topics().count() as u64);
        for topic in topics() {
            bytes.extend_from_slice(&topic[0].0.cluster.to_be_bytes());
            bytes.extend_from_slice(&topic[0].0.topic);
            varint::write(&mut bytes, topic.len() as u64);
            for (source, covered) in topic {
                varint::write(&mut bytes, source.partition.into());
                bytes.extend_from_slice(&source.epoch.to_be_bytes());
                varint::write(&mut bytes, flags(covered));
                for interval in &covered.intervals {
                    if let Some(after) = interval.after {
                        write_point(&mut bytes, after);
                    }
                    write_point(&mut bytes, interval.to);
                }
            }
        }
        bytes
    }
}

fn flags(covered: &Covered) -> u64 {
    let is_from_start = covered
        .intervals
        .first()
        .is_some_and(|one| one.after.is_none());
    covered.intervals.len() as u64 * 4
        + u64::from(covered.is_begin_unknown) * 2
        + u64::from(is_from_start)
}

fn covered(rest: &mut &[u8]) -> Result<Covered, Damaged> {
    let flags = number(rest)?;
    let count = flags / 4;
    if count == 0 {
        return Err(Damaged);
    }
    let mut intervals: Vec<Interval> = Vec::new();
    for index in 0..count {
        let after = match index == 0 && flags & 1 == 1 {
            true => None,
            false => Some(point(rest)?),
        };
        let to = point(rest)?;
        let is_apart = intervals.last().is_none_or(|last| Some(last.to) < after);
        if after >= Some(to) || !is_apart {
            return Err(Damaged);
        }
        intervals.push(Interval { after, to });
    }
    Ok(Covered {
        intervals,
        is_begin_unknown: flags & 2 == 2,
        seen: 0,
    })
}

fn point_bytes(point: Point) -> usize {
    varint::length(leader_epoch(point)) + varint::length(offset(point)) + 8
}

fn write_point(bytes: &mut Vec<u8>, point: Point) {
    varint::write(bytes, leader_epoch(point));
    varint::write(bytes, offset(point));
    bytes.extend_from_slice(&point.subscription.to_be_bytes());
}

fn point(rest: &mut &[u8]) -> Result<Point, Damaged> {
    let leader_epoch = i64::try_from(number(rest)?).map_err(|_| Damaged)?;
    Ok(Point {
        leader_epoch: i32::try_from(leader_epoch.saturating_sub(1)).map_err(|_| Damaged)?,
        offset: i64::try_from(number(rest)?).map_err(|_| Damaged)?,
        subscription: u64::from_be_bytes(take(rest)?),
    })
}

fn leader_epoch(point: Point) -> u64 {
    u64::try_from(i64::from(point.leader_epoch) + 1).unwrap_or(0)
}

fn offset(point: Point) -> u64 {
    u64::try_from(point.offset).unwrap_or(0)
}

fn number(rest: &mut &[u8]) -> Result<u64, Damaged> {
    varint::read(rest).ok_or(Damaged)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Damaged> {
    let (first, behind) = rest.split_first_chunk().ok_or(Damaged)?;
    *rest = behind;
    Ok(*first)
}
