//! Tests of [`super::Log`]: named cases, and a random one against a naive model.

use super::*;

fn record(text: &str) -> Arc<Record> {
    Arc::new(Record {
        key: Some(Bytes::copy_from_slice(text.as_bytes())),
        value: Some(Bytes::copy_from_slice(text.as_bytes())),
        headers: Vec::new(),
        timestamp: 0,
    })
}

fn batch(producer: Producer, sequence: i32, transactional: bool, texts: &[&str]) -> Batch {
    Batch {
        source: Some(Source {
            producer,
            sequence,
            transactional,
        }),
        records: texts.iter().map(|text| record(text)).collect(),
    }
}

fn texts(fetched: &Fetched) -> Vec<(i64, String)> {
    let each = fetched.records.iter();
    each.map(|(offset, record)| {
        let value = record.value.as_deref().unwrap_or_default();
        (*offset, String::from_utf8_lossy(value).into_owned())
    })
    .collect()
}

const A: Producer = Producer { id: 1, epoch: 0 };
const B: Producer = Producer { id: 2, epoch: 0 };

fn all(log: &mut Log) {
    log.replicated(i64::MAX);
}

#[test]
fn markers_take_offsets_and_readers_pass_them() {
    let mut log = Log::default();
    log.append(0, &batch(A, 0, true, &["a"])).unwrap();
    all(&mut log);
    assert_eq!(log.bounds().stable, 0, "the transaction is open");
    assert_eq!(log.mark(0, A, true), Ok(1));
    all(&mut log);
    let fetched = log.fetch(0, true, usize::MAX).unwrap();
    assert_eq!(texts(&fetched), [(0, "a".to_owned())]);
    assert_eq!(fetched.next, 2);
}

#[test]
fn readers_of_committed_records_skip_aborted_ones_and_wait_for_open_ones() {
    let mut log = Log::default();
    log.append(0, &batch(A, 0, true, &["a0"])).unwrap();
    log.append(0, &batch(B, 0, true, &["b0"])).unwrap();
    log.mark(0, A, false).unwrap();
    log.append(0, &batch(A, 1, true, &["a1"])).unwrap();
    all(&mut log);
    let fetched = log.fetch(0, true, usize::MAX).unwrap();
    assert_eq!((texts(&fetched), fetched.next), (vec![], 1));
    log.mark(0, B, true).unwrap();
    log.mark(0, A, true).unwrap();
    all(&mut log);
    let fetched = log.fetch(0, true, usize::MAX).unwrap();
    assert_eq!(
        texts(&fetched),
        [(1, "b0".to_owned()), (3, "a1".to_owned())]
    );
    let raw = log.fetch(0, false, usize::MAX).unwrap();
    assert_eq!(raw.records.len(), 3);
}

#[test]
fn a_marker_that_is_not_replicated_holds_the_stable_offset() {
    let mut log = Log::default();
    log.append(0, &batch(A, 0, true, &["a"])).unwrap();
    all(&mut log);
    log.mark(0, A, true).unwrap();
    assert_eq!(log.bounds().stable, 0);
    assert!(log.replicated(2));
    assert_eq!(log.bounds().stable, 2);
}

#[test]
fn a_batch_that_is_sent_again_is_recognised_and_one_too_early_is_refused() {
    let mut log = Log::default();
    for sequence in 0..7 {
        log.append(0, &batch(A, sequence, false, &["x"])).unwrap();
    }
    let again = log.append(0, &batch(A, 4, false, &["x"])).unwrap();
    assert_eq!((again.first, again.duplicate), (4, true));
    let forgotten = log.append(0, &batch(A, 0, false, &["x"]));
    assert_eq!(forgotten, Err(Code::DuplicateSequenceNumber));
    let early = log.append(0, &batch(A, 9, false, &["x"]));
    assert_eq!(early, Err(Code::OutOfOrderSequenceNumber));
    let bumped = Producer { epoch: 1, ..A };
    let early = log.append(0, &batch(bumped, 7, false, &["x"]));
    assert_eq!(early, Err(Code::OutOfOrderSequenceNumber));
    log.append(0, &batch(bumped, 0, false, &["x"])).unwrap();
    let fenced = log.append(0, &batch(A, 7, false, &["x"]));
    assert_eq!(fenced, Err(Code::InvalidProducerEpoch));
    assert_eq!(log.bounds().end, 8, "refused batches take no offset");
}

#[test]
fn a_marker_of_a_newer_epoch_fences_appends_of_the_older_one() {
    let mut log = Log::default();
    log.append(0, &batch(A, 0, true, &["a"])).unwrap();
    log.mark(0, Producer { epoch: 1, ..A }, false).unwrap();
    let zombie = log.append(0, &batch(A, 1, true, &["a"]));
    assert_eq!(zombie, Err(Code::InvalidProducerEpoch));
    assert_eq!(log.mark(0, A, true), Err(Code::InvalidProducerEpoch));
}

#[test]
fn sequence_numbers_wrap() {
    let mut log = Log::default();
    log.append(0, &batch(A, i32::MAX - 1, false, &["a", "b"]))
        .unwrap();
    let next = log.append(0, &batch(A, 0, false, &["c"])).unwrap();
    assert!(!next.duplicate);
}

#[test]
fn truncation_forgets_what_was_not_replicated_and_nothing_else() {
    let mut log = Log::default();
    log.append(0, &batch(A, 0, true, &["a", "b"])).unwrap();
    log.replicated(2);
    log.append(0, &batch(A, 2, true, &["c"])).unwrap();
    log.truncate(2);
    assert_eq!((log.bounds().end, log.bounds().high), (2, 2));
    assert!(log.is_open(A.id));
    let again = log.append(0, &batch(A, 0, true, &["a", "b"])).unwrap();
    assert!(again.duplicate, "both records are one batch still");
    let lost = log.append(0, &batch(A, 2, true, &["c"])).unwrap();
    assert_eq!((lost.first, lost.duplicate), (2, false));
}

#[test]
fn the_end_survives_the_deletion_of_everything() {
    let mut log = Log::default();
    log.append(0, &batch(A, 0, false, &["a", "b"])).unwrap();
    all(&mut log);
    assert_eq!(log.delete_before(Some(3)), Err(Code::OffsetOutOfRange));
    assert_eq!(log.delete_before(None), Ok(2));
    assert_eq!(log.fetch(1, true, 1), Err(Code::OffsetOutOfRange));
    assert_eq!(log.fetch(2, true, 1).unwrap().next, 2);
    log.append(0, &batch(A, 2, false, &["c"])).unwrap();
    assert_eq!(log.bounds().end, 3);
    assert_eq!(log.bytes(), record("c").size());
}

#[test]
fn retention_deletes_from_the_front_and_compaction_keeps_the_last_of_each_key() {
    let mut log = Log::default();
    for (sequence, key) in (0..).zip(["a", "b", "a", "c"]) {
        log.append(i64::from(sequence), &batch(A, sequence, false, &[key]))
            .unwrap();
    }
    all(&mut log);
    log.compact(100, 100);
    let fetched = log.fetch(0, true, usize::MAX).unwrap();
    let offsets: Vec<_> = fetched.records.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [1, 2, 3]);
    log.retain(None, Some(record("a").size()));
    assert_eq!(log.bounds().start, 3);
}

/// A list of all that was appended, with how each transaction ended.
#[derive(Default)]
struct Model {
    entries: Vec<(Producer, Option<String>)>,
    ended: Vec<(i64, usize, bool)>,
}

#[test]
fn what_readers_see_is_what_a_naive_model_says() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut log, mut model) = (Log::default(), Model::default());
        let mut sequences = [0; 3];
        for step in 0..60 {
            let id = rng.i64(0..3);
            let producer = Producer { id, epoch: 0 };
            if rng.u8(0..4) > 0 {
                let text = format!("{step}");
                let at = usize::try_from(id).unwrap();
                let sent = batch(producer, sequences[at], true, &[&text]);
                log.append(0, &sent).unwrap();
                sequences[at] += 1;
                model.entries.push((producer, Some(text)));
                if rng.u8(0..5) == 0 {
                    assert!(log.append(0, &sent).unwrap().duplicate);
                }
            } else {
                let commit = rng.bool();
                log.mark(0, producer, commit).unwrap();
                model.ended.push((id, model.entries.len(), commit));
                model.entries.push((producer, None));
            }
            if rng.u8(0..3) == 0 {
                log.replicated(rng.i64(0..=log.bounds().end));
            }
            model.check(&log);
        }
    }
}

impl Model {
    /// The first entry of each transaction that is open, or whose marker is not replicated, bounds the readers.
    fn check(&self, log: &Log) {
        let bounds = log.bounds();
        let high = usize::try_from(bounds.high).unwrap();
        let end_of = |at: usize, id: i64| {
            let mut later = self.ended.iter();
            later.find(|(of, marker, _)| *of == id && *marker >= at)
        };
        let mut seen = Vec::new();
        let mut stable = high;
        for (at, (producer, text)) in self.entries.iter().enumerate() {
            let Some(text) = text else { continue };
            match end_of(at, producer.id) {
                Some((_, marker, commit)) if *marker < high => {
                    if *commit {
                        seen.push((i64::try_from(at).unwrap(), text.clone()));
                    }
                }
                _ => stable = stable.min(at),
            }
        }
        seen.retain(|(offset, _)| usize::try_from(*offset).unwrap() < stable);
        assert_eq!(usize::try_from(bounds.stable).unwrap(), stable);
        assert!(bounds.start <= bounds.stable && bounds.stable <= bounds.high);
        assert!(bounds.high <= bounds.end);
        let fetched = log.fetch(0, true, usize::MAX).unwrap();
        assert_eq!(texts(&fetched), seen);
        // Small fetches see the same.
        let (mut from, mut small) = (0, Vec::new());
        loop {
            let fetched = log.fetch(from, true, 1).unwrap();
            if fetched.next == from {
                break;
            }
            from = fetched.next;
            small.extend(texts(&fetched));
        }
        assert_eq!(small, seen);
    }
}
