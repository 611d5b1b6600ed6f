//! The batch in a made-up world of event logs, transactions, rebalances and failures, against a naive reader.

use std::collections::{BTreeSet, VecDeque};
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::schema::SchemaId;
use crate::model::subscription::parse;

fn limits() -> Limits {
    Limits {
        events: 5,
        bytes: 1500,
        time: Duration::from_millis(50),
        event_bytes: 900,
        command_bytes: 600,
        batches: 5,
    }
}

/// Of both formats, with and without an order.
fn subscriptions() -> &'static [Arc<Subscription>] {
    static ALL: OnceLock<Vec<Arc<Subscription>>> = OnceLock::new();
    ALL.get_or_init(|| {
        [
            ("standard", "none"),
            ("cloudevents", "none"),
            ("standard", "per_subject"),
        ]
        .iter()
        .enumerate()
        .map(|(number, (format, order))| {
            let record = json!({
                "id": format!("s{number}"), "subscriber": format!("owner{number}"),
                "url": "https://a.example/", "events": ["**"], "format": format, "order": order,
            });
            Arc::new(parse(None, record.to_string().as_bytes()).unwrap())
        })
        .collect()
    })
}

#[derive(Clone, Debug)]
enum Entry {
    /// The end of a transaction: an offset without a record.
    Marker,
    Event {
        payload: String,
        /// Which subscriptions match, by bit.
        mask: usize,
        /// The broker refuses its commands for their size.
        refused: bool,
    },
}

impl Entry {
    fn new(id: usize, kind: usize, mask: usize) -> Self {
        if kind == 0 {
            return Self::Marker;
        }
        let size = [10, 10, 300, 550, 700, 2000][kind % 6];
        let payload = match kind {
            1 => "no event".to_owned(),
            _ => json!({"id": format!("e{id}"), "type": "a", "data": "x".repeat(size)}).to_string(),
        };
        Self::Event {
            payload,
            mask: mask % 8,
            refused: kind == 7,
        }
    }

    fn matching(&self) -> Vec<Arc<Subscription>> {
        let Self::Event { mask, .. } = self else {
            return Vec::new();
        };
        let all = subscriptions().iter().enumerate();
        all.filter(|(number, _)| mask & (1 << number) != 0)
            .map(|(_, one)| Arc::clone(one))
            .collect()
    }
}

/// One record, as far as it says where it comes from and what it is: the subscription, or an invalid event.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    at: EventPartition,
    offset: i64,
    subscription: Option<String>,
    key: String,
    body: Vec<u8>,
    bytes: usize,
    tag: usize,
}

#[derive(Debug, Default)]
struct Log {
    entries: Vec<Entry>,
    committed: i64,
    /// Of the owner's client.
    next: i64,
    /// Behind the last event that the client gave, if a marker follows.
    passed: Option<i64>,
}

impl Log {
    fn end(&self) -> i64 {
        i64::try_from(self.entries.len()).unwrap()
    }
}

#[derive(Debug)]
struct World {
    batch: Batch,
    start: Instant,
    now: u64,
    ids: usize,
    logs: BTreeMap<EventPartition, Log>,
    owned: BTreeSet<EventPartition>,
    open: Vec<Written>,
    opened: u64,
    open_events: usize,
    /// Batches that are being committed, oldest first.
    pending: VecDeque<(Ended, Vec<Written>)>,
    /// Batches that were committed.
    batches: u64,
    /// An event whose records are never committed.
    poison: Option<(EventPartition, i64)>,
    /// Events that failed alone.
    held: Vec<(EventPartition, i64)>,
}

const PLACES: usize = 4;

fn place(number: usize) -> EventPartition {
    EventPartition {
        topic: number % 2,
        partition: i32::try_from(number / 2 % 2).unwrap(),
    }
}

fn raw(at: EventPartition, payload: &str) -> RawEvent<'_> {
    RawEvent {
        topic: ["orders", "payments"][at.topic],
        key: None,
        payload: Some(payload.as_bytes()),
        headers: &[],
        timestamp: EpochMs(1_700_000_000_000),
    }
}

impl World {
    fn new() -> Self {
        let start = crate::edge::clock::instant();
        Self {
            batch: Batch::new(limits(), start),
            start,
            now: 0,
            ids: 0,
            logs: (0..PLACES)
                .map(|number| (place(number), Log::default()))
                .collect(),
            owned: BTreeSet::new(),
            open: Vec::new(),
            opened: 0,
            open_events: 0,
            pending: VecDeque::new(),
            batches: 0,
            poison: None,
            held: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    /// What a naive reader makes of the entry at this offset.
    fn expected(&self, at: EventPartition, offset: i64) -> Vec<Written> {
        let entry = &self.logs[&at].entries[usize::try_from(offset).unwrap()];
        let Entry::Event {
            payload, refused, ..
        } = entry
        else {
            return Vec::new();
        };
        let written = |subscription, key: &str, body: Vec<u8>, bytes| Written {
            at,
            offset,
            subscription,
            key: key.to_owned(),
            body,
            bytes,
            tag: 0,
        };
        let matching = entry.matching();
        let Ok(event) = event::read(&raw(at, payload), limits().event_bytes) else {
            let bytes = payload.len() + 512;
            return vec![written(None, "", payload.clone().into(), bytes)];
        };
        let bodies = matching.iter().map(|one| event.body(one.format).len());
        let beside = event.id().len() + event.event_type().len();
        let too_large = bodies.max().unwrap_or(0) + beside > limits().command_bytes;
        if too_large || *refused && !matching.is_empty() {
            let bytes = payload.len() + 512;
            return vec![written(None, "", payload.clone().into(), bytes)];
        }
        let command = |one: &Arc<Subscription>| {
            let body = event.body(one.format);
            let bytes = body.len();
            let id = event.webhook_id(&one.id);
            written(
                Some(format!("{} {id}", one.id)),
                &one.subscriber,
                body,
                bytes,
            )
        };
        matching.iter().map(command).collect()
    }

    fn assign(&mut self, at: EventPartition) {
        if self.owned.contains(&at) {
            return;
        }
        self.settle();
        self.owned.insert(at);
        self.batch.assigned([at].into_iter());
        self.reset(at);
    }

    fn reset(&mut self, at: EventPartition) {
        let log = self.logs.get_mut(&at).unwrap();
        log.next = log.committed;
        log.passed = None;
    }

    fn revoke(&mut self, at: EventPartition, lost: bool) {
        if !self.owned.remove(&at) {
            return;
        }
        self.batch.revoking(&[at]);
        if lost {
            self.batch.give_up();
            self.read_again();
        } else {
            self.settle();
        }
        self.batch.revoked(&[at]);
        let known = self.batch.oversized.keys().map(|(at, _)| at);
        let known = known.chain(self.batch.held.keys());
        let mut known = known.chain(self.batch.passed.keys());
        assert!(
            !known.any(|known| *known == at),
            "what was given up is forgotten"
        );
        assert!(!self.batch.waiting.contains(at));
    }

    fn restart(&mut self) {
        self.batch = Batch::new(limits(), self.now());
        self.owned.clear();
        self.drop_all();
    }

    fn drop_all(&mut self) {
        self.open.clear();
        self.open_events = 0;
        self.pending.clear();
    }

    fn read_again(&mut self) {
        self.drop_all();
        let owned: BTreeSet<_> = self.batch.owned().collect();
        assert_eq!(owned, self.owned, "what is owned is read again");
        owned.into_iter().for_each(|at| self.reset(at));
        assert!(!self.batch.is_open());
    }

    fn failed(&mut self, end: TransactionEnd) {
        match self.batch.failed(end, self.batches, self.now()) {
            Next::ReadAgain => self.read_again(),
            Next::Hold { at, offset, .. } => {
                assert!(self.batch.is_held(at) && self.batch.is_suspect(at, offset));
                self.held.push((at, offset.0));
                self.read_again();
            }
            Next::Stop => {
                assert_eq!(end, TransactionEnd::Fatal);
                self.restart();
            }
        }
    }

    fn poll(&mut self, at: EventPartition) {
        for at in self.batch.due(self.now()) {
            self.reset(at);
        }
        let next = Offset(self.logs[&at].next);
        if self.batch.waiting.contains(at) {
            return self.drop_next(at);
        }
        if self.batch.is_held(at) {
            return;
        }
        if self.batch.is_suspect(at, next) {
            self.settle();
            if self.batch.is_held(at) || self.logs[&at].next != next.0 {
                return;
            }
        }
        let log = self.logs.get_mut(&at).unwrap();
        if !self.owned.contains(&at) || log.next == log.end() {
            return;
        }
        let offset = log.next;
        log.next += 1;
        let entry = log.entries[usize::try_from(offset).unwrap()].clone();
        let Entry::Event { payload, .. } = &entry else {
            log.passed = Some(log.next);
            return;
        };
        log.passed = None;
        assert_eq!(self.batch.is_open(), self.open_events > 0);
        if self.open_events == 0 {
            self.opened = self.now;
        }
        self.open_events += 1;
        let tag = self.batch.take(at, Offset(offset), self.now());
        let matching = entry.matching();
        match self.batch.read(tag, &raw(at, payload), None) {
            Ok(event) => match self.batch.fan_out(&event, &matching) {
                Ok(commands) => {
                    let ordered = matching.iter().any(|one| one.order != Order::None);
                    assert_eq!(commands.keep_order(), ordered);
                    for command in commands.each(Some("trace"), EpochMs(7)) {
                        let envelope = command.envelope();
                        assert_eq!((envelope.attempt, envelope.cause), (0, Cause::New));
                        self.open.push(Written {
                            at,
                            offset,
                            subscription: Some(format!(
                                "{} {}",
                                envelope.subscription, envelope.webhook_id
                            )),
                            key: command.subscriber().to_owned(),
                            body: command.body.to_vec(),
                            bytes: command.body.len(),
                            tag,
                        });
                    }
                }
                Err(TooLarge) => self.set_aside(at, offset, payload, tag),
            },
            Err(_) => self.set_aside(at, offset, payload, tag),
        }
        let bytes: usize = self.open.iter().map(|written| written.bytes).sum();
        let full = self.open_events >= limits().events
            || bytes >= limits().bytes
            || self.now - self.opened >= 50
            || self.batch.open.alone;
        assert_eq!(self.batch.is_full(self.now()), full);
        if full {
            self.end();
        }
    }

    /// The client still gives what it has fetched of a partition that waits for a schema, and that is dropped.
    fn drop_next(&mut self, at: EventPartition) {
        let log = self.logs.get_mut(&at).unwrap();
        if log.next < log.end() {
            let entry = &log.entries[usize::try_from(log.next).unwrap()];
            log.next += 1;
            log.passed = matches!(entry, Entry::Marker).then_some(log.next);
        }
    }

    /// The next event needs a schema that is not known yet.
    fn wait_for_schema(&mut self, at: EventPartition) {
        if !self.owned.contains(&at) || self.batch.is_held(at) {
            return;
        }
        self.settle();
        if self.batch.is_held(at) {
            return;
        }
        let next = Offset(self.logs[&at].next);
        let (schema, now) = (SchemaId::Number(1), self.now());
        self.batch.waiting.add(at, next, schema, now);
        assert!(self.batch.is_held(at));
    }

    fn schemas_are_known(&mut self) {
        let waiting: Vec<_> = self.batch.waiting.all().map(|(at, _)| at).collect();
        for at in waiting {
            self.batch.waiting.remove(at);
            self.reset(at);
        }
    }

    fn set_aside(&mut self, at: EventPartition, offset: i64, payload: &str, tag: usize) {
        let record = InvalidRecord {
            key: None,
            value: Some(payload.into()),
            headers: Vec::new(),
            error: String::new(),
            topic: at.topic.to_string(),
            partition: 0,
            offset: Offset(offset),
            extent: self.batch.extent(tag),
        };
        self.batch.set_aside(&record);
        self.open.push(Written {
            at,
            offset,
            subscription: None,
            key: String::new(),
            body: payload.into(),
            bytes: record.weight(),
            tag,
        });
    }

    fn end(&mut self) {
        let asks = self.batch.asks_for_passed(self.now());
        let owned = self.owned.iter().filter(|_| asks);
        let passed: Vec<_> = owned
            .filter_map(|&at| Some((at, Position(self.logs[&at].passed?))))
            .collect();
        let had_events = self.open_events > 0;
        let Some(ended) = self.batch.end(passed.into_iter()) else {
            assert!(!had_events, "the batch is not ended");
            return;
        };
        assert!(!self.batch.is_open());
        let alone = ended.alone;
        assert!(!alone || self.open_events <= 1);
        self.open_events = 0;
        let written = std::mem::take(&mut self.open);
        self.pending.push_back((ended, written));
        if alone || self.pending.len() > 3 {
            self.settle_pending();
        }
    }

    /// The oldest batch is committed, unless `end` says otherwise or the broker refuses a record in it.
    fn commit(&mut self, end: TransactionEnd, visible: bool, pick: usize) {
        let is_refused = |written: &Written| {
            let offset = usize::try_from(written.offset).unwrap();
            let entry = &self.logs[&written.at].entries[offset];
            written.subscription.is_some() && matches!(entry, Entry::Event { refused: true, .. })
        };
        // The broker refuses what it gets together with such a record, and names any of it.
        let under_way = || self.pending.iter().flat_map(|(_, written)| written);
        if under_way().any(is_refused) {
            let named = under_way().nth(pick % under_way().count()).unwrap();
            let (at, offset, tag) = (named.at, Offset(named.offset), named.tag);
            assert_eq!(self.batch.origins.of(tag), Some((at, offset)));
            return self.failed(TransactionEnd::TooLarge { tag });
        }
        let poison = self.poison;
        if under_way().any(|written| Some((written.at, written.offset)) == poison) {
            return self.failed(TransactionEnd::Fenced);
        }
        let Some((ended, written)) = self.pending.pop_front() else {
            return;
        };
        if end == TransactionEnd::Committed || visible {
            self.batches += u64::from(end == TransactionEnd::Committed);
            self.check(&ended, &written);
            for (at, position) in &ended.positions {
                self.logs.get_mut(at).unwrap().committed = position.0;
            }
        }
        if end != TransactionEnd::Committed {
            self.failed(end);
        }
    }

    /// The batch has exactly what a naive reader makes of the events that it commits, in the order of each partition.
    fn check(&self, ended: &Ended, written: &[Written]) {
        let mut counts = Counts::default();
        let mut records = 0;
        for (&at, &position) in &ended.positions {
            assert!(
                self.logs[&at].committed < position.0,
                "a position goes back"
            );
            let mut expected = Vec::new();
            for offset in self.logs[&at].committed..position.0 {
                let entry = &self.logs[&at].entries[usize::try_from(offset).unwrap()];
                let from_event = self.expected(at, offset);
                match (entry, from_event.first()) {
                    (Entry::Marker, _) => {}
                    (_, None) => counts.unmatched += 1,
                    (_, Some(first)) if first.subscription.is_none() => counts.invalid += 1,
                    (_, Some(_)) => {
                        counts.fanned_out += 1;
                        counts.commands += u64::try_from(from_event.len()).unwrap();
                    }
                }
                expected.extend(from_event);
            }
            let found = written.iter().filter(|written| written.at == at);
            let found: Vec<Written> = found
                .map(|written| Written {
                    tag: 0,
                    ..written.clone()
                })
                .collect();
            assert_eq!(found, expected, "{at:?} up to {position}");
            records += found.len();
        }
        assert_eq!(records, written.len(), "no records of other partitions");
        assert_eq!(counts, ended.counts);
        assert_eq!(ended.set_aside.values().sum::<u64>(), counts.invalid);
        let events = counts.fanned_out + counts.unmatched + counts.invalid;
        assert!(usize::try_from(events).unwrap() <= limits().events);
    }

    fn settle_pending(&mut self) {
        while !self.pending.is_empty() {
            self.commit(TransactionEnd::Committed, true, self.ids);
        }
    }

    fn settle(&mut self) {
        self.end();
        self.settle_pending();
    }

    fn step(&mut self, (what, a, b): (u8, usize, usize)) {
        let at = place(a);
        match what {
            0..=24 => {
                let entry = Entry::new(self.ids, b % 8, a / 4);
                self.ids += 1;
                self.logs.get_mut(&at).unwrap().entries.push(entry);
            }
            25..=59 => self.poll(at),
            60..=61 => self.end(),
            62..=63 => self.wait_for_schema(at),
            64 => self.schemas_are_known(),
            65..=69 => self.now += u64::try_from(b).unwrap(),
            70..=84 => self.commit(TransactionEnd::Committed, true, b),
            85 => self.commit(TransactionEnd::Aborted, false, b),
            86 => self.commit(TransactionEnd::Fenced, false, b),
            87 => self.commit(TransactionEnd::Ambiguous, a.is_multiple_of(2), b),
            88 => self.commit(TransactionEnd::Fatal, false, b),
            89..=92 => self.assign(at),
            93..=95 => self.revoke(at, false),
            96 | 97 => self.revoke(at, true),
            98 => self.restart(),
            _ => self.settle(),
        }
    }

    /// Everything is committed once nothing fails any more, the ends of transactions included.
    fn drain(&mut self) {
        (0..PLACES).for_each(|number| self.assign(place(number)));
        self.schemas_are_known();
        for _ in 0..10_000 {
            let (mut at_end, mut all) = (0, 0);
            for log in self.logs.values() {
                at_end += log.committed;
                all += log.end();
            }
            if at_end == all {
                return;
            }
            (0..PLACES).for_each(|number| self.poll(place(number)));
            self.now += 100;
            if self.now.is_multiple_of(3) {
                self.settle();
            }
        }
        panic!("lost: {:?}", self.logs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn each_event_becomes_its_commands_once_whatever_fails(
        steps in proptest::collection::vec((0..100_u8, 0..1000_usize, 0..1000_usize), 1..100),
    ) {
        let mut world = World::new();
        (0..PLACES).for_each(|number| world.assign(place(number)));
        steps.into_iter().for_each(|step| world.step(step));
        world.drain();
    }
}

#[test]
fn an_event_that_is_refused_is_set_aside_and_then_ever_less_of_it() {
    let now = crate::edge::clock::instant();
    let mut batch = Batch::new(limits(), now);
    batch.take(place(0), Offset(3), now);
    let tag = batch.take(place(1), Offset(9), now);
    let end = TransactionEnd::TooLarge { tag };
    assert_eq!(
        batch.failed(end, 0, now),
        Next::ReadAgain,
        "it may be any event"
    );
    for extent in [
        Extent::Whole,
        Extent::Head,
        Extent::Coordinates,
        Extent::Nothing,
    ] {
        let tag = batch.take(place(1), Offset(9), now);
        assert!(batch.is_full(now), "it is tried alone");
        assert_eq!(
            batch.failed(TransactionEnd::TooLarge { tag }, 0, now),
            Next::ReadAgain
        );
        assert!(batch.is_suspect(place(1), Offset(9)));
        let tag = batch.take(place(1), Offset(9), now);
        assert_eq!(batch.extent(tag), extent);
        assert!(
            batch
                .read(tag, &raw(place(1), r#"{"id":"e","type":"a"}"#), None)
                .is_err()
        );
        batch.give_up();
    }
    let tag = batch.take(place(0), Offset(3), now);
    assert_eq!(batch.extent(tag), Extent::Whole, "no other event is blamed");
    assert!(
        batch
            .read(tag, &raw(place(0), r#"{"id":"e","type":"a"}"#), None)
            .is_ok()
    );
}

#[test]
fn a_refusal_of_an_unknown_event_is_not_pinned_on_another() {
    let now = crate::edge::clock::instant();
    let mut batch = Batch::new(limits(), now);
    let unknown = TransactionEnd::TooLarge { tag: 99 };
    assert_eq!(batch.failed(unknown, 0, now), Next::ReadAgain);
    assert_eq!(batch.failed(unknown, 0, now), Next::ReadAgain);
    assert!(batch.oversized.is_empty());
}

#[test]
fn an_event_that_is_never_committed_holds_its_own_partition_and_no_other() {
    let mut world = World::new();
    (0..PLACES).for_each(|number| world.assign(place(number)));
    let bad = place(1);
    for number in 0..PLACES * 20 {
        let at = place(number);
        let entry = Entry::new(number, 2, 1);
        world.logs.get_mut(&at).unwrap().entries.push(entry);
    }
    world.poison = Some((bad, 7));
    for turn in 0..2000 {
        if turn % 30 == 0 && turn < 1800 {
            let entry = Entry::new(1000 + turn, 2, 1);
            world.logs.get_mut(&place(2)).unwrap().entries.push(entry);
        }
        world.poll(place(turn));
        world.now += 10;
        if turn % 7 == 0 {
            world.end();
            world.settle_pending();
        }
    }
    for (at, log) in &world.logs {
        let expected = if *at == bad { 7 } else { log.end() };
        assert_eq!(log.committed, expected, "{at:?}");
    }
    assert!(!world.held.is_empty());
    assert!(
        world.held.iter().all(|held| Some(*held) == world.poison),
        "only the poisoned event fails alone: {:?}",
        world.held
    );
    assert!(
        world.held.len() < 7,
        "waits grow: {} tries in 20 s",
        world.held.len()
    );
    world.poison = None;
    world.drain();
}

#[test]
fn while_nothing_at_all_is_committed_no_wait_grows() {
    let now = crate::edge::clock::instant();
    let mut batch = Batch::new(limits(), now);
    let fail = |batch: &mut Batch| {
        batch.take(place(1), Offset(9), now);
        batch.failed(TransactionEnd::Ambiguous, 0, now)
    };
    assert_eq!(fail(&mut batch), Next::ReadAgain);
    assert_eq!(fail(&mut batch), Next::ReadAgain);
    for _ in 0..5 {
        let Next::Hold { at, offset, wait } = fail(&mut batch) else {
            panic!("it was tried alone");
        };
        assert_eq!((at, offset), (place(1), Offset(9)));
        assert_eq!(wait, Duration::from_secs(1));
        assert!(batch.is_held(at) && batch.due(now).is_empty());
        assert_eq!(batch.due(now + wait), [at]);
        assert!(!batch.is_held(at));
    }
}
