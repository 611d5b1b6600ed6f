//! The log of one partition: records, transaction markers, and the offsets that bound what a reader sees.
//!
//! | offset | meaning |
//! |---|---|
//! | start | the first one kept; moves with retention and with deleted records |
//! | stable | last stable offset: below it, every transaction has ended. Readers of committed records stop here |
//! | high | high watermark: below it, every in-sync replica has the record. All readers stop here |
//! | end | the next offset to be given. An offset is never given twice, except after [`Log::truncate`] |
//!
//! The log also holds what a partition knows of its producers (KIP-98): the epoch and the last batches of each. Pure: the
//! time is an argument. Reading costs as much as what is read, not as what is kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::Code;

/// Milliseconds of virtual time since the Unix epoch.
pub type Ms = i64;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order.
    pub headers: Vec<(Arc<str>, Option<Bytes>)>,
    /// When the producer made it.
    pub timestamp: Ms,
}

impl Record {
    /// Bytes in a batch, without compression.
    pub fn size(&self) -> usize {
        let field = |bytes: &Option<Bytes>| {
            let length = bytes.as_ref().map_or(0, Bytes::len);
            varint(length) + length
        };
        let header = |(name, value): &(Arc<str>, Option<Bytes>)| {
            varint(name.len()) + name.len() + field(value)
        };
        let headers: usize = self.headers.iter().map(header).sum();
        // Attributes, two deltas, the number of headers.
        let body = 4 + field(&self.key) + field(&self.value) + headers;
        varint(body) + body
    }
}

/// Bytes of a zigzag varint.
fn varint(value: usize) -> usize {
    let bits = usize::BITS - (value << 1).leading_zeros();
    usize::try_from(bits.max(1).div_ceil(7)).unwrap_or(10)
}

/// Bytes of an empty batch of format 2.
pub const BATCH_OVERHEAD: usize = 61;

/// An incarnation of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Producer {
    /// The producer id.
    pub id: i64,
    /// Its epoch: an append of a lower one is refused.
    pub epoch: i16,
}

/// Who sends a batch, and with which sequence number it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The producer.
    pub producer: Producer,
    /// The sequence number of the first record, per partition.
    pub sequence: i32,
    /// The batch belongs to the producer's open transaction.
    pub transactional: bool,
}

/// Records that one request appends to one partition, all or none.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `None` for a producer without idempotence.
    pub source: Option<Source>,
    /// The records; at least one.
    pub records: Vec<Arc<Record>>,
}

impl Batch {
    /// Bytes, without compression.
    pub fn size(&self) -> usize {
        let each = self.records.iter().map(|record| record.size());
        BATCH_OVERHEAD + each.sum::<usize>()
    }
}

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset of its first record.
    pub first: i64,
    /// The offset of its last record.
    pub last: i64,
    /// It had been appended before.
    pub duplicate: bool,
}

#[derive(Clone, Debug)]
enum Body {
    Record(Arc<Record>, Option<Source>),
    Marker { producer: Producer, commit: bool },
}

#[derive(Clone, Debug)]
struct Entry {
    offset: i64,
    /// The offset of the batch's first record.
    batch: i64,
    at: Ms,
    body: Body,
}

/// What a partition knows of a producer.
#[derive(Clone, Debug)]
struct Known {
    epoch: i16,
    /// First and last sequence number and first offset of the last batches of this epoch, oldest first.
    batches: VecDeque<(i32, i32, i64)>,
}

/// How many batches of a producer are remembered, and so recognised when they are sent again.
const REMEMBERED: usize = 5;

/// What a fetch found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Records with their offsets, in order.
    pub records: Vec<(i64, Arc<Record>)>,
    /// Where to fetch next: behind markers and aborted records too.
    pub next: i64,
    /// The bounds at that time.
    pub bounds: Bounds,
}

/// The bounds of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset kept.
    pub start: i64,
    /// The last stable offset.
    pub stable: i64,
    /// The high watermark.
    pub high: i64,
    /// The next offset to be given.
    pub end: i64,
}

/// The log of one partition.
#[derive(Clone, Debug, Default)]
pub struct Log {
    entries: VecDeque<Entry>,
    start: i64,
    high: i64,
    end: i64,
    bytes: usize,
    producers: BTreeMap<i64, Known>,
    /// Open transactions: the producer by the first offset.
    open: BTreeMap<i64, i64>,
    open_of: BTreeMap<i64, i64>,
    /// Transactions that have ended with a marker that is not replicated yet: the marker by the first offset.
    ending: BTreeMap<i64, i64>,
    /// First and last offset of aborted transactions, by producer, in order.
    aborted: BTreeMap<i64, Vec<(i64, i64)>>,
}

impl Log {
    /// The bounds now.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            start: self.start,
            stable: self.stable(),
            high: self.high,
            end: self.end,
        }
    }

    fn stable(&self) -> i64 {
        let first = |map: &BTreeMap<i64, i64>| map.keys().next().copied().unwrap_or(i64::MAX);
        first(&self.open).min(first(&self.ending)).min(self.high)
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries kept, markers included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether this producer has an open transaction here.
    pub fn is_open(&self, producer: i64) -> bool {
        self.open_of.contains_key(&producer)
    }

    /// Appends a batch at the end.
    ///
    /// # Errors
    /// `INVALID_PRODUCER_EPOCH`, `OUT_OF_ORDER_SEQUENCE_NUMBER` or `DUPLICATE_SEQUENCE_NUMBER`, as of KIP-98 and KIP-360.
    pub fn append(&mut self, now: Ms, batch: &Batch) -> Result<Appended, Code> {
        let count = i64::try_from(batch.records.len()).unwrap_or(i64::MAX);
        if let Some(source) = batch.source
            && let Some(first) = self.check(source, batch.records.len())?
        {
            return Ok(Appended {
                first,
                last: first + count - 1,
                duplicate: true,
            });
        }
        let first = self.end;
        for record in &batch.records {
            let body = Body::Record(Arc::clone(record), batch.source);
            self.push(now, first, body);
        }
        if let Some(source) = batch.source {
            self.note(source, batch.records.len(), first);
        }
        Ok(Appended {
            first,
            last: self.end - 1,
            duplicate: false,
        })
    }

    fn push(&mut self, at: Ms, batch: i64, body: Body) {
        self.bytes += size(&body);
        let offset = self.end;
        self.entries.push_back(Entry {
            offset,
            batch,
            at,
            body,
        });
        self.end += 1;
    }

    /// The first offset of a batch that is in the log already, or `None` for the batch that comes next.
    fn check(&self, source: Source, count: usize) -> Result<Option<i64>, Code> {
        let Some(known) = self.producers.get(&source.producer.id) else {
            // What the log knew of this producer has expired, or it is new.
            return Ok(None);
        };
        if source.producer.epoch < known.epoch {
            return Err(Code::InvalidProducerEpoch);
        }
        if source.producer.epoch > known.epoch {
            let begins = source.sequence == 0;
            return if begins {
                Ok(None)
            } else {
                Err(Code::OutOfOrderSequenceNumber)
            };
        }
        let last = after(source.sequence, count.saturating_sub(1));
        let same = |&&(from, to, _): &&(i32, i32, i64)| from == source.sequence && to == last;
        if let Some((_, _, first)) = known.batches.iter().find(same) {
            return Ok(Some(*first));
        }
        match known.batches.back() {
            // Only a marker has been written in this epoch.
            None => Ok(None),
            Some(&(_, to, _)) if after(to, 1) == source.sequence => Ok(None),
            Some(&(_, to, _)) if source.sequence <= to && to - source.sequence < i32::MAX / 2 => {
                Err(Code::DuplicateSequenceNumber)
            }
            Some(_) => Err(Code::OutOfOrderSequenceNumber),
        }
    }

    fn note(&mut self, source: Source, count: usize, first: i64) {
        let Producer { id, epoch } = source.producer;
        let known = self.producers.entry(id).or_insert_with(|| Known {
            epoch,
            batches: VecDeque::new(),
        });
        if known.epoch != epoch {
            known.epoch = epoch;
            known.batches.clear();
        }
        let last = after(source.sequence, count.saturating_sub(1));
        known.batches.push_back((source.sequence, last, first));
        if known.batches.len() > REMEMBERED {
            known.batches.pop_front();
        }
        if source.transactional && !self.open_of.contains_key(&id) {
            self.open_of.insert(id, first);
            self.open.insert(first, id);
        }
    }

    /// Ends the transaction of `producer` in this partition: a marker, which takes an offset also where the producer has
    /// written nothing.
    ///
    /// # Errors
    /// `INVALID_PRODUCER_EPOCH` for the marker of an older epoch.
    pub fn mark(&mut self, now: Ms, producer: Producer, commit: bool) -> Result<i64, Code> {
        let known = self.producers.get(&producer.id);
        if known.is_some_and(|known| producer.epoch < known.epoch) {
            return Err(Code::InvalidProducerEpoch);
        }
        let offset = self.end;
        self.push(now, offset, Body::Marker { producer, commit });
        self.end_transaction(producer, commit, offset);
        Ok(offset)
    }

    /// Whether the marker that was written at `offset` is still there, or was deleted since with what is before it.
    pub fn has_marker(&self, offset: i64, producer: Producer) -> bool {
        let found = self.entries.get(self.index(offset));
        let is_marker = |entry: &Entry| {
            let of = matches!(entry.body, Body::Marker { producer: by, .. } if by == producer);
            entry.offset == offset && of
        };
        offset < self.start || found.is_some_and(is_marker)
    }

    fn end_transaction(&mut self, producer: Producer, commit: bool, marker: i64) {
        let known = self.producers.entry(producer.id).or_insert_with(|| Known {
            epoch: producer.epoch,
            batches: VecDeque::new(),
        });
        if known.epoch != producer.epoch {
            known.epoch = producer.epoch;
            known.batches.clear();
        }
        let Some(first) = self.open_of.remove(&producer.id) else {
            return;
        };
        self.open.remove(&first);
        self.ending.insert(first, marker);
        if !commit {
            let all = self.aborted.entry(producer.id).or_default();
            all.push((first, marker));
        }
    }

    /// All in-sync replicas have everything below `offset`. Returns whether a bound that readers see has moved.
    pub fn replicated(&mut self, offset: i64) -> bool {
        let before = (self.high, self.stable());
        self.high = self.high.max(offset.min(self.end));
        let high = self.high;
        self.ending.retain(|_, marker| *marker >= high);
        before != (self.high, self.stable())
    }

    /// A replica without the records from `offset` on has become the leader. Nobody has been told of them.
    pub fn truncate(&mut self, offset: i64) {
        if offset >= self.end {
            return;
        }
        let old = std::mem::take(self);
        *self = Self {
            start: old.start.min(offset),
            end: old.start.min(offset),
            ..Self::default()
        };
        let mut batch: Option<(Source, usize, i64)> = None;
        for entry in old
            .entries
            .into_iter()
            .take_while(|entry| entry.offset < offset)
        {
            match &entry.body {
                Body::Record(_, Some(source)) => match &mut batch {
                    Some((_, count, first)) if *first == entry.batch => *count += 1,
                    _ => {
                        self.note_all(batch.take());
                        batch = Some((*source, 1, entry.batch));
                    }
                },
                Body::Record(_, None) => {}
                Body::Marker { producer, commit } => {
                    self.note_all(batch.take());
                    self.end_transaction(*producer, *commit, entry.offset);
                }
            }
            self.bytes += size(&entry.body);
            self.end = entry.offset + 1;
            self.entries.push_back(entry);
        }
        self.note_all(batch);
        self.end = self.end.max(offset);
        self.replicated(old.high);
    }

    fn note_all(&mut self, batch: Option<(Source, usize, i64)>) {
        if let Some((source, count, first)) = batch {
            self.note(source, count, first);
        }
    }

    /// Reads from `from` until `bytes` are full, at least one record. With `committed`, up to the last stable offset and
    /// without aborted records.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE` below the start or beyond the end.
    pub fn fetch(&self, from: i64, committed: bool, bytes: usize) -> Result<Fetched, Code> {
        if from < self.start || from > self.end {
            return Err(Code::OffsetOutOfRange);
        }
        let bounds = self.bounds();
        let limit = if committed {
            bounds.stable
        } else {
            bounds.high
        };
        let (mut records, mut next, mut size) = (Vec::new(), from, 0);
        for entry in self.entries.range(self.index(from)..) {
            if entry.offset >= limit || size >= bytes {
                break;
            }
            next = entry.offset + 1;
            let Body::Record(record, source) = &entry.body else {
                continue;
            };
            if committed && source.is_some_and(|source| self.is_aborted(source, entry.offset)) {
                continue;
            }
            size += record.size();
            records.push((entry.offset, Arc::clone(record)));
        }
        // Behind a compacted tail too.
        if size < bytes {
            next = next.max(limit);
        }
        Ok(Fetched {
            records,
            next,
            bounds,
        })
    }

    fn is_aborted(&self, source: Source, offset: i64) -> bool {
        let Some(all) = self.aborted.get(&source.producer.id) else {
            return false;
        };
        let at = all.partition_point(|(_, marker)| *marker < offset);
        source.transactional && all.get(at).is_some_and(|(first, _)| *first <= offset)
    }

    /// The index of the first entry at or behind `offset`.
    fn index(&self, offset: i64) -> usize {
        let Some(front) = self.entries.front() else {
            return 0;
        };
        let guess = usize::try_from(offset - front.offset).unwrap_or(0);
        match self.entries.get(guess) {
            Some(entry) if entry.offset == offset => guess,
            _ => self.entries.partition_point(|entry| entry.offset < offset),
        }
    }

    /// The first offset of a record of the time `at` or later, and its time.
    pub fn at_time(&self, at: Ms) -> Option<(i64, Ms)> {
        let record = |entry: &Entry| match &entry.body {
            Body::Record(record, _) => Some((entry.offset, record.timestamp)),
            Body::Marker { .. } => None,
        };
        let mut each = self.entries.iter().filter_map(record);
        each.find(|(_, timestamp)| *timestamp >= at)
    }

    /// Deletes what is below `offset` (`DeleteRecords`); `None` is the high watermark.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE` beyond the high watermark.
    pub fn delete_before(&mut self, offset: Option<i64>) -> Result<i64, Code> {
        let offset = offset.unwrap_or(self.high);
        if offset > self.high || offset < 0 {
            return Err(Code::OffsetOutOfRange);
        }
        self.start = self.start.max(offset);
        while let Some(front) = self.entries.front()
            && front.offset < self.start
        {
            self.bytes -= size(&front.body);
            self.entries.pop_front();
        }
        let start = self.start;
        self.aborted.retain(|_, all| {
            all.retain(|(_, marker)| *marker >= start);
            !all.is_empty()
        });
        Ok(self.start)
    }

    /// Deletes replicated records from the front while they are older than `before`, or while more than `bytes` are kept.
    /// A broker deletes whole segments; this deletes each record as soon as it may.
    pub fn retain(&mut self, before: Option<Ms>, bytes: Option<usize>) {
        let mut upto = self.start;
        let mut kept = self.bytes;
        for entry in &self.entries {
            let time = match &entry.body {
                Body::Record(record, _) => record.timestamp,
                Body::Marker { .. } => entry.at,
            };
            let old = before.is_some_and(|before| time < before);
            let much = bytes.is_some_and(|bytes| kept > bytes);
            if entry.offset >= self.high || !(old || much) {
                break;
            }
            kept -= size(&entry.body);
            upto = entry.offset + 1;
        }
        // Never beyond the high watermark.
        self.delete_before(Some(upto.max(self.start))).ok();
    }

    /// Compacts what is stable and older than `before`: of each key the last committed record stays, of tombstones older
    /// than `tombstones` none, of markers and aborted records none. The last entry stays, as the active segment does.
    pub fn compact(&mut self, before: Ms, tombstones: Ms) {
        let stable = self.stable();
        let last = self.entries.back().map_or(0, |entry| entry.offset);
        let dirty = |entry: &Entry| entry.offset < stable.min(last) && entry.at < before;
        let mut latest: BTreeMap<Bytes, i64> = BTreeMap::new();
        for entry in &self.entries {
            if let Body::Record(record, source) = &entry.body
                && entry.offset < stable
                && !source.is_some_and(|source| self.is_aborted(source, entry.offset))
                && let Some(key) = &record.key
            {
                latest.insert(key.clone(), entry.offset);
            }
        }
        let entries = std::mem::take(&mut self.entries);
        let keep = |entry: &Entry| match &entry.body {
            _ if !dirty(entry) => true,
            Body::Marker { .. } => false,
            Body::Record(record, _) => {
                let key = record.key.as_ref();
                let newest = key.is_some_and(|key| latest.get(key) == Some(&entry.offset));
                newest && (record.value.is_some() || entry.at >= tombstones)
            }
        };
        self.entries = entries.into_iter().filter(keep).collect();
        self.bytes = self.entries.iter().map(|entry| size(&entry.body)).sum();
    }
}

/// The sequence number `count` behind `sequence`; the last one is followed by 0.
pub fn after(sequence: i32, count: usize) -> i32 {
    let sum = i64::from(sequence) + i64::try_from(count).unwrap_or(0);
    i32::try_from(sum % (i64::from(i32::MAX) + 1)).unwrap_or(0)
}

fn size(body: &Body) -> usize {
    match body {
        Body::Record(record, _) => record.size(),
        // A batch of its own.
        Body::Marker { .. } => BATCH_OVERHEAD + 17,
    }
}

#[cfg(test)]
mod tests;
