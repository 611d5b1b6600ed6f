//! Events that the broker refuses, and events that fail for another reason, among others that do not; and the commands of
//! an event.

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::schema::SchemaId;
use crate::model::subscription::parse;

fn limits() -> Limits {
    Limits {
        event_bytes: 900,
        command_bytes: 600,
    }
}

/// Of both formats.
fn subscriptions() -> &'static [Arc<Subscription>] {
    static ALL: OnceLock<Vec<Arc<Subscription>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let formats = ["standard", "cloudevents", "standard", "cloudevents"];
        let all = formats.iter().enumerate();
        all.map(|(number, format)| {
            let record = json!({
                "id": format!("s{number}"), "subscriber": format!("owner{number}"),
                "url": "https://a.example/", "events": ["**"], "format": format,
            });
            Arc::new(parse(None, record.to_string().as_bytes()).unwrap())
        })
        .collect()
    })
}

const PLACES: usize = 4;

fn place(number: usize) -> EventPartition {
    EventPartition {
        topic: number % 2,
        partition: i32::try_from(number / 2 % 2).unwrap(),
    }
}

fn raw(payload: &str) -> RawEvent<'_> {
    RawEvent {
        topic: "orders",
        key: None,
        payload: Some(payload.as_bytes()),
        headers: &[],
        timestamp: EpochMs(1_700_000_000_000),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    /// The broker refuses its commands for their size.
    Refused,
    /// Its commands are never acknowledged.
    Poison,
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Kind>,
    committed: usize,
    next: usize,
}

/// Partitions of events, and what the shell does with [`Trials`].
struct World {
    trials: Trials,
    start: Instant,
    now: u64,
    logs: BTreeMap<EventPartition, Log>,
    /// Events that are written and not committed, in order.
    under_way: Vec<Origin>,
    committed: u64,
    set_aside: Vec<Origin>,
    held: Vec<Origin>,
}

impl World {
    fn new() -> Self {
        let mut trials = Trials::new(limits());
        trials.assigned((0..PLACES).map(place));
        Self {
            trials,
            start: crate::edge::clock::instant(),
            now: 0,
            logs: (0..PLACES)
                .map(|number| (place(number), Log::default()))
                .collect(),
            under_way: Vec::new(),
            committed: 0,
            set_aside: Vec::new(),
            held: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn kind(&self, (at, offset): Origin) -> Kind {
        self.logs[&at].events[usize::try_from(offset.0).unwrap()]
    }

    fn read_again(&mut self, at: EventPartition) {
        let log = self.logs.get_mut(&at).unwrap();
        log.next = log.committed;
        self.under_way.retain(|(other, _)| *other != at);
    }

    fn failed(&mut self, end: TransactionEnd) {
        let events = self.under_way.len();
        let next = self.trials.failed(end, events, self.committed, self.now());
        assert_ne!(next, Next::Stop);
        if let Next::Hold { at, offset, .. } = next {
            assert!(self.trials.is_held(at) && self.trials.is_alone(at, offset));
            self.held.push((at, offset));
        }
        (0..PLACES).for_each(|number| self.read_again(place(number)));
    }

    /// What is under way is committed, or fails; returns whether it is committed.
    fn settle(&mut self, pick: usize) -> bool {
        let is_written = |one: &&Origin| self.trials.extent(**one) == Extent::default();
        let mut written = self.under_way.iter().filter(is_written);
        let is_refused = |one: &Origin| {
            self.kind(*one) == Kind::Refused && !self.trials.oversized.contains_key(one)
        };
        if self.under_way.iter().any(is_refused) {
            self.failed(TransactionEnd::TooLarge { tag: pick });
            return false;
        }
        if written.any(|one| self.kind(*one) == Kind::Poison) {
            self.failed(TransactionEnd::Aborted);
            return false;
        }
        for origin in std::mem::take(&mut self.under_way) {
            let (at, offset) = origin;
            if self.trials.oversized.contains_key(&origin) {
                assert_eq!(self.kind(origin), Kind::Refused, "no other event is blamed");
                self.set_aside.push(origin);
            }
            self.logs.get_mut(&at).unwrap().committed = usize::try_from(offset.0).unwrap() + 1;
            self.committed += 1;
        }
        true
    }

    fn poll(&mut self, at: EventPartition, pick: usize) {
        for at in self.trials.due(self.now()) {
            self.read_again(at);
        }
        let log = &self.logs[&at];
        let offset = Offset(i64::try_from(log.next).unwrap());
        if self.trials.is_held(at) || log.next == log.events.len() {
            return;
        }
        if self.trials.is_alone(at, offset) && !self.settle(pick) {
            return;
        }
        let log = self.logs.get_mut(&at).unwrap();
        log.next += 1;
        let is_alone = self.trials.take(at, offset);
        self.under_way.push((at, offset));
        if is_alone {
            assert_eq!(self.under_way.len(), 1, "nothing else is under way");
            if self.settle(pick) {
                self.trials.succeeded();
            }
        } else if self.under_way.len() > 12 {
            self.settle(pick);
        }
    }

    fn run(&mut self, turns: usize) {
        for turn in 0..turns {
            self.poll(place(turn), turn);
            self.now += 10;
            if turn % 11 == 0 {
                self.settle(turn);
            }
        }
    }
}

proptest! {
    #[test]
    fn exactly_the_events_that_are_refused_are_set_aside_and_nothing_else_waits(
        events in prop::collection::vec((0..PLACES, 0..30_u8), 1..80),
    ) {
        let mut world = World::new();
        let mut poisoned = BTreeMap::new();
        for (number, kind) in events {
            let log = world.logs.get_mut(&place(number)).unwrap();
            let kind = match kind {
                0 => Kind::Poison,
                1..=3 => Kind::Refused,
                _ => Kind::Good,
            };
            if kind == Kind::Poison {
                poisoned.entry(place(number)).or_insert(log.events.len());
            }
            log.events.push(kind);
        }
        world.run(8_000);
        let mut refused = Vec::new();
        for (at, log) in &world.logs {
            let end = poisoned.get(at).copied().unwrap_or(log.events.len());
            prop_assert_eq!(log.committed, end, "{:?}", at);
            let each = log.events[..end].iter().enumerate();
            let each = each.filter(|(_, kind)| **kind == Kind::Refused);
            refused.extend(each.map(|(offset, _)| (*at, Offset(offset as i64))));
        }
        world.set_aside.sort_unstable();
        prop_assert_eq!(world.set_aside, refused);
        for (at, offset) in world.held {
            prop_assert_eq!(poisoned.get(&at), Some(&(offset.0 as usize)));
        }
    }
}

#[test]
fn an_event_that_never_gets_through_is_tried_less_and_less_often() {
    let mut world = World::new();
    for number in 0..PLACES {
        let log = world.logs.get_mut(&place(number)).unwrap();
        log.events.resize(2_000, Kind::Good);
    }
    world.logs.get_mut(&place(1)).unwrap().events[7] = Kind::Poison;
    world.run(3_000);
    assert!(
        (2..9).contains(&world.held.len()),
        "{} tries in 30 s",
        world.held.len()
    );
    assert_eq!(world.logs[&place(1)].committed, 7);
}

#[test]
fn an_event_that_is_refused_is_set_aside_and_then_ever_less_of_it() {
    let now = crate::edge::clock::instant();
    let mut trials = Trials::new(limits());
    let origin = (place(1), Offset(9));
    trials.take(place(0), Offset(3));
    trials.take(origin.0, origin.1);
    let end = TransactionEnd::TooLarge { tag: 4 };
    let failed = |trials: &mut Trials| trials.failed(end, 2, 0, now);
    assert_eq!(failed(&mut trials), Next::ReadAgain, "it may be any event");
    for extent in [
        Extent::Whole,
        Extent::Head,
        Extent::Coordinates,
        Extent::Nothing,
    ] {
        assert!(trials.take(origin.0, origin.1), "it is tried alone");
        assert_eq!(failed(&mut trials), Next::ReadAgain);
        assert!(trials.is_alone(origin.0, origin.1));
        assert_eq!(trials.extent(origin), extent);
        let read = trials.read(origin, &raw(r#"{"id":"e","type":"a"}"#), None);
        assert!(read.unwrap_err().contains("max.message.bytes"));
    }
    let other = (place(0), Offset(3));
    assert_eq!(trials.extent(other), Extent::Whole, "no other is blamed");
    let read = trials.read(other, &raw(r#"{"id":"e","type":"a"}"#), None);
    assert!(read.is_ok());
    trials.revoked(&[place(1)]);
    assert!(!trials.is_alone(origin.0, origin.1));
}

#[test]
fn while_nothing_at_all_is_committed_no_wait_grows() {
    let now = crate::edge::clock::instant();
    let mut trials = Trials::new(limits());
    let fail = |trials: &mut Trials| {
        trials.take(place(1), Offset(9));
        trials.failed(TransactionEnd::Ambiguous, 1, 0, now)
    };
    assert_eq!(fail(&mut trials), Next::ReadAgain);
    assert_eq!(fail(&mut trials), Next::ReadAgain);
    for _ in 0..5 {
        let Next::Hold { at, offset, wait } = fail(&mut trials) else {
            panic!("it was tried alone");
        };
        assert_eq!((at, offset), (place(1), Offset(9)));
        assert_eq!(wait, Duration::from_secs(1));
        assert!(trials.is_held(at) && trials.due(now).is_empty());
        assert_eq!(trials.due(now + wait), [at]);
        assert!(!trials.is_held(at));
    }
}

#[test]
fn an_event_that_cannot_be_tried_alone_waits_and_the_others_are_not_tried_alone() {
    let now = crate::edge::clock::instant();
    let mut trials = Trials::new(limits());
    for _ in 0..2 {
        trials.failed(TransactionEnd::Aborted, 9, 0, now);
    }
    assert!(trials.is_alone(place(0), Offset(5)));
    trials.wait(place(0), Offset(5), now);
    assert!(trials.is_held(place(0)) && !trials.is_alone(place(1), Offset(5)));
    assert_eq!(trials.due(now + Duration::from_secs(1)), [place(0)]);
    assert!(trials.is_alone(place(0), Offset(5)));
}

#[test]
fn a_partition_that_waits_for_a_schema_is_held() {
    let now = crate::edge::clock::instant();
    let mut trials = Trials::new(limits());
    trials
        .waiting
        .add(place(2), Offset(1), SchemaId::Number(1), now);
    assert!(trials.is_held(place(2)) && !trials.is_held(place(1)));
    trials.revoked(&[place(2)]);
    assert!(!trials.is_held(place(2)));
}

#[test]
fn the_commands_of_an_event_ascend_by_the_hash_of_their_subscription() {
    let mut trials = Trials::new(limits());
    let payload = r#"{"id":"e","type":"a","data":1}"#;
    let raw = raw(payload);
    let event = trials.read((place(0), Offset(0)), &raw, None).unwrap();
    let mut orders = Vec::new();
    for turn in 0..4 {
        let mut matching = subscriptions().to_vec();
        matching.rotate_left(turn);
        let commands = trials.fan_out(&event, &mut matching).unwrap();
        let mut order = Vec::new();
        for command in commands.each(Some("trace"), EpochMs(7)) {
            let envelope = command.envelope();
            assert_eq!((envelope.attempt, envelope.cause), (0, Cause::New));
            assert_eq!(
                command.subscriber(),
                envelope.subscription.replace('s', "owner")
            );
            let format = match envelope.content_type {
                ContentType::Json => Format::Standard,
                ContentType::CloudEvents => Format::CloudEvents,
            };
            assert_eq!(command.body, event.body(format));
            order.push(command.hash());
        }
        assert!(order.is_sorted(), "{order:?}");
        orders.push(order);
    }
    orders.dedup();
    assert_eq!(orders.len(), 1);
    let counts = trials.counts(&event, payload.as_bytes(), true, 4);
    assert_eq!(
        (counts.result, counts.commands, counts.is_time_replaced),
        (EventResult::FannedOut, 4, true)
    );
    let none = trials.counts(&event, b"other", false, 0);
    assert_eq!((none.result, none.collides), (EventResult::Unmatched, true));
    trials.forget_identities();
    assert!(!trials.counts(&event, b"third", false, 0).collides);
}

#[test]
fn an_event_whose_largest_command_does_not_fit_has_none() {
    let trials = Trials::new(limits());
    let payload = json!({"id": "e", "type": "a", "data": "x".repeat(550)}).to_string();
    let raw = raw(&payload);
    let event = trials.read((place(0), Offset(0)), &raw, None).unwrap();
    let mut matching = subscriptions().to_vec();
    assert!(trials.fan_out(&event, &mut matching).is_err());
    assert!(trials.fan_out(&event, &mut []).is_ok());
}
