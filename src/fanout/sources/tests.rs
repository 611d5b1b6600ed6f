//! Writers of one source against delivery's coverage: crashes, zombies, lost and reordered writes, late commits, changing
//! subscriptions and numbers of partitions, at random. Each rule that is dropped is found.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::fanout::metrics::EventResult;
use crate::model::coverage::{Coverage, Kind};
use crate::model::source::{Mark, subscription_hash};

const AT: EventPartition = EventPartition {
    topic: 0,
    partition: 3,
};

const AHEAD: RunAhead = RunAhead {
    events: 100,
    bytes: 10_000,
};

fn place() -> Source {
    Source {
        cluster: 1,
        topic: [7; 16],
        partition: 3,
        epoch: 0,
    }
}

fn counts() -> EventCounts {
    EventCounts {
        commands: 1,
        ..EventCounts::of(EventResult::FannedOut)
    }
}

/// Subscriptions: their id, the hash of their key, and whether every cache has them.
const SUBSCRIPTIONS: [(&str, u32, bool); 6] = [
    ("a", 0, true),
    ("b", 1, true),
    ("c", 2, true),
    ("d", 3, true),
    ("e", 4, false),
    ("f", 5, false),
];

/// A rule that a run goes without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Each writer has an order of its own of the commands of an event.
    Order,
    /// Commands name no predecessor.
    Previous,
    /// Positions pass events that are not acknowledged.
    Acknowledgement,
    /// An epoch is not committed before it is used.
    CommittedEpoch,
    /// The number of partitions changes at once, within the epoch.
    EpochOfPartitions,
    /// The number of partitions changes before all is written that a predecessor may have written.
    End,
    /// The subscriptions change within an event, and so do their owners: the key of one that is made again.
    Keys,
}

#[derive(Clone, Copy, Debug)]
struct Faults {
    /// Of a hundred writes, how many are lost, or overtaken by the next one.
    lost: u32,
    reordered: u32,
    /// Whether the number of partitions of the commands changes.
    grows: bool,
}

const NO_FAULTS: Faults = Faults {
    lost: 0,
    reordered: 0,
    grows: false,
};

#[derive(Clone, Debug)]
struct Written {
    tag: Tag,
    offset: i64,
    subscription: usize,
    mark: Mark,
}

struct Writer {
    sources: Sources,
    read: i64,
    cache: usize,
    /// Of the order of its commands.
    salt: u64,
    /// By partition of the commands.
    queues: Vec<VecDeque<Written>>,
    /// It has read its last event.
    is_gone: bool,
    /// A commit that may take effect once more.
    late: Option<(i64, String)>,
}

struct World {
    random: fastrand::Rng,
    without: Without,
    faults: Faults,
    end: i64,
    committed: (Option<i64>, String),
    partitions: i32,
    caches: Vec<BTreeSet<usize>>,
    writers: Vec<Writer>,
    logs: Vec<Vec<Written>>,
    seeds: u64,
}

const EVENTS: i64 = 6;
const MOST_PARTITIONS: i32 = 3;

impl World {
    fn new(seed: u64, without: Without, faults: Faults) -> Self {
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            without,
            faults,
            end: 2,
            committed: (None, String::new()),
            partitions: 2,
            caches: Vec::new(),
            writers: Vec::new(),
            logs: vec![Vec::new(); MOST_PARTITIONS as usize],
            seeds: seed << 8,
        };
        world.change_cache();
        world.spawn();
        world
    }

    fn change_cache(&mut self) {
        let all = SUBSCRIPTIONS.iter().enumerate();
        let random = &mut self.random;
        let cache = all.filter(|(_, one)| one.2 || random.bool());
        self.caches.push(cache.map(|(index, _)| index).collect());
    }

    fn owner(&mut self) -> Option<&mut Writer> {
        self.writers.last_mut().filter(|writer| !writer.is_gone)
    }

    /// A new owner; the former one goes on writing what it has read.
    fn spawn(&mut self) {
        for writer in &mut self.writers {
            writer.is_gone = true;
        }
        if self.writers.len() > 4 {
            self.writers.remove(0);
        }
        self.seeds += 1;
        let mut sources = Sources::new(AHEAD, self.partitions, self.seeds);
        let (position, metadata) = &self.committed;
        let assigned = sources.assigned(AT, place(), position.map(Position), metadata);
        assert_eq!(assigned, Assigned::Ready);
        self.learn_ends(&mut sources);
        let cache = self.random.usize(..self.caches.len());
        self.writers.push(Writer {
            sources,
            read: position.unwrap_or(0),
            cache,
            salt: self.random.u64(..),
            queues: vec![VecDeque::new(); MOST_PARTITIONS as usize],
            is_gone: false,
            late: None,
        });
    }

    fn learn_ends(&self, sources: &mut Sources) {
        for at in sources.unknown_ends() {
            let end = if self.without == Without::End {
                0
            } else {
                self.end
            };
            sources.set_end(at, end);
        }
    }

    fn read(&mut self) {
        let (end, without) = (self.end, self.without);
        let newest = self.caches.len() - 1;
        let shuffle = self.random.u64(..);
        let caches = self.caches.clone();
        let partitions = self.partitions;
        let Some(writer) = self.owner().filter(|writer| writer.read < end) else {
            return;
        };
        if writer.queues.iter().map(VecDeque::len).sum::<usize>() > 8 {
            return;
        }
        let offset = Offset(writer.read);
        let tag = match writer.sources.take(AT, 0, offset) {
            Take::Taken(tag) => tag,
            Take::NotOwned => unreachable!("it is assigned"),
            Take::Begin => {
                let begin = writer.sources.begin(AT, offset.position()).unwrap();
                writer.sources.begun(AT, offset.position());
                if without != Without::CommittedEpoch {
                    self.committed = (Some(offset.0), begin.metadata);
                }
                return;
            }
        };
        let mut random = fastrand::Rng::with_seed(shuffle);
        let salt = match without {
            Without::Order => writer.salt,
            _ => 0,
        };
        let hash = |index: usize| subscription_hash(SUBSCRIPTIONS[index].0) ^ salt;
        let mut matching: Vec<usize> = caches[writer.cache].iter().copied().collect();
        matching.sort_by_key(|&index| hash(index));
        let mut header = String::new();
        for subscription in matching {
            let mut key = SUBSCRIPTIONS[subscription].1;
            if without == Without::Keys && writer.cache % 2 == 1 && subscription == 0 {
                key += 1;
            }
            let hash = hash(subscription);
            let target = writer.sources.command(tag, key, hash, &mut header);
            let mut target = target.unwrap();
            if without == Without::EpochOfPartitions {
                target = partition(key, partitions).unwrap();
            }
            let mut mark = Mark::parse(header.as_bytes()).unwrap();
            if without == Without::Previous {
                mark.previous = None;
            }
            writer.queues[target as usize].push_back(Written {
                tag,
                offset: offset.0,
                subscription,
                mark,
            });
        }
        writer.sources.written(tag, 100, counts());
        writer.read += 1;
        if random.u8(..5) == 0 {
            writer.cache = newest;
        }
    }

    /// A writer's next record for a partition reaches the log.
    fn write(&mut self, index: usize, target: usize) {
        let Faults {
            lost, reordered, ..
        } = self.faults;
        let (is_lost, overtakes) = (
            self.random.u32(..100) < lost,
            self.random.u32(..100) < reordered,
        );
        let Some(writer) = self.writers.get_mut(index) else {
            return;
        };
        let queue = &mut writer.queues[target];
        if overtakes && queue.len() > 1 {
            queue.swap(0, 1);
        }
        let Some(record) = queue.pop_front() else {
            return;
        };
        if !is_lost {
            writer.sources.acknowledged(record.tag, 1);
            self.logs[target].push(record);
        }
    }

    /// Only the owner's commits are taken.
    fn commit(&mut self) {
        let without = self.without;
        let Some(writer) = self.owner() else {
            return;
        };
        let mut ready = writer.sources.commits(false);
        let read = writer.read;
        if without == Without::Acknowledgement
            && let Some((_, position, _)) = ready.first_mut()
        {
            // The stamp belongs to this position.
            position.0 = read;
        }
        let mut committed = None;
        for (at, position, metadata) in ready {
            let metadata = match without {
                Without::Acknowledgement => restamped(&metadata, position),
                _ => metadata,
            };
            writer.sources.committed(at, position);
            writer.late = Some((position.0, metadata.clone()));
            committed = Some((Some(position.0), metadata));
        }
        self.committed = committed.unwrap_or_else(|| self.committed.clone());
    }

    /// An earlier commit of the owner takes effect once more. Not one of another epoch: see the comment of `sources`.
    fn commit_late(&mut self) {
        let now = self.committed.1.clone();
        let Some(writer) = self.owner() else {
            return;
        };
        let Some((position, metadata)) = writer.late.clone() else {
            return;
        };
        let epoch = |text: &str| text.split('.').nth(4).map(str::to_owned);
        if epoch(&metadata) == epoch(&now) {
            self.committed = (Some(position), metadata);
        }
    }

    /// The owner gives up what is not committed, and begins with a new client. What the old one has queued may be written.
    fn rewind(&mut self) {
        let committed = self.committed.0;
        let Some(writer) = self.owner() else {
            return;
        };
        writer.sources.rewound(AT);
        writer.read = committed.unwrap_or(0);
        let queues = std::mem::replace(
            &mut writer.queues,
            vec![VecDeque::new(); MOST_PARTITIONS as usize],
        );
        let zombie = Writer {
            sources: Sources::new(AHEAD, 1, 0),
            read: 0,
            cache: 0,
            salt: 0,
            queues,
            is_gone: true,
            late: None,
        };
        self.writers.insert(0, zombie);
    }

    fn step(&mut self) {
        if self.random.u8(..100) < 8 {
            self.end = EVENTS.min(self.end + 1);
        }
        let writers = self.writers.len();
        match self.random.u8(..100) {
            0..=29 => self.read(),
            30..=64 => {
                let (index, target) = (
                    self.random.usize(..writers),
                    self.random.usize(..self.logs.len()),
                );
                self.write(index, target);
            }
            65..=79 => self.commit(),
            80..=81 => self.commit_late(),
            82..=85 => self.rewind(),
            86..=91 => self.spawn(),
            92..=95 => self.change_cache(),
            _ if self.faults.grows => {
                self.partitions = MOST_PARTITIONS;
                let mut sources = match self.owner() {
                    Some(writer) => {
                        std::mem::replace(&mut writer.sources, Sources::new(AHEAD, 1, 0))
                    }
                    None => return,
                };
                sources.set_partitions(MOST_PARTITIONS);
                self.learn_ends(&mut sources);
                if let Some(writer) = self.owner() {
                    writer.sources = sources;
                }
            }
            _ => {}
        }
    }

    /// Nothing fails any more, and zombies wake up after all.
    fn finish(&mut self) {
        self.faults.lost = 0;
        self.faults.reordered = 0;
        self.end = EVENTS;
        for _ in 0..20 {
            self.spawn();
            for _ in 0..40 {
                self.read();
                let owner = self.writers.len() - 1;
                (0..self.logs.len())
                    .for_each(|target| (0..8).for_each(|_| self.write(owner, target)));
                self.commit();
            }
            if self.committed.0 == Some(EVENTS) {
                break;
            }
        }
        assert_eq!(self.committed.0, Some(EVENTS), "everything is committed");
        for index in 0..self.writers.len() {
            for target in 0..self.logs.len() {
                (0..100).for_each(|_| self.write(index, target));
            }
        }
    }

    /// What delivery makes of the logs.
    fn violation(&self) -> Option<String> {
        let mut new: BTreeMap<(i64, usize), usize> = BTreeMap::new();
        for log in &self.logs {
            let mut coverage = Coverage::new(Position(0));
            for (number, record) in log.iter().enumerate() {
                let answer = coverage.ask(Offset(number as i64), &record.mark);
                assert_eq!(answer.forgotten, 0);
                if answer.kind != Kind::Copy {
                    *new.entry((record.offset, record.subscription)).or_default() += 1;
                }
            }
        }
        for offset in 0..EVENTS {
            for (index, (id, _, is_always)) in SUBSCRIPTIONS.iter().enumerate() {
                let count = new.get(&(offset, index)).copied().unwrap_or(0);
                let is_in_all = *is_always || self.caches.iter().all(|one| one.contains(&index));
                if count > 1 {
                    return Some(format!("{offset} {id} has {count} live commands"));
                }
                if count == 0 && is_in_all {
                    return Some(format!("{offset} {id} is lost"));
                }
            }
        }
        None
    }
}

/// The same stamp for another position.
fn restamped(metadata: &str, position: Position) -> String {
    let (stamp, _) = metadata.rsplit_once('.').unwrap();
    format!("{stamp}.{}", position.0)
}

fn violations(runs: u64, without: Without, faults: Faults) -> Vec<(u64, String)> {
    let run = |seed| {
        let mut world = World::new(seed, without, faults);
        for _ in 0..world.random.usize(40..260) {
            world.step();
        }
        world.finish();
        Some((seed, world.violation()?))
    };
    (0..runs).filter_map(run).collect()
}

#[test]
fn each_matching_subscription_gets_exactly_one_live_command_whatever_fails() {
    let faulty = Faults {
        lost: 4,
        reordered: 5,
        grows: false,
    };
    let growing = Faults {
        grows: true,
        ..faulty
    };
    for faults in [NO_FAULTS, faulty] {
        assert_eq!(violations(1_000, Without::Nothing, faults), []);
    }
    // A zombie of the old epoch may write what its successor writes in the new one: nothing is lost, and hardly anything
    // doubled.
    let found = violations(1_000, Without::Nothing, growing);
    let lost = found.iter().filter(|(_, what)| what.contains("lost"));
    assert_eq!(lost.count(), 0, "{found:?}");
    assert!(found.len() < 20, "{} of 1,000", found.len());
}

#[test]
fn without_one_of_the_rules_commands_are_lost_or_doubled() {
    let lossy = Faults {
        lost: 4,
        ..NO_FAULTS
    };
    let grows = Faults {
        grows: true,
        ..NO_FAULTS
    };
    for (without, faults, least) in [
        (Without::Order, NO_FAULTS, 1),
        (Without::Previous, lossy, 1),
        (Without::Acknowledgement, NO_FAULTS, 1),
        (Without::CommittedEpoch, NO_FAULTS, 1),
        (Without::EpochOfPartitions, grows, 1),
        (Without::End, grows, 20),
        (Without::Keys, NO_FAULTS, 1),
    ] {
        let found = violations(400, without, faults);
        assert!(
            found.len() >= least,
            "{without:?} is not found: {}",
            found.len()
        );
    }
}

/// Takes an event in an epoch that is begun and committed first if it must.
fn take(sources: &mut Sources, leader_epoch: i32, offset: i64) -> (Tag, Option<NewEpoch>) {
    let mut why = None;
    loop {
        match sources.take(AT, leader_epoch, Offset(offset)) {
            Take::Taken(tag) => return (tag, why),
            Take::NotOwned => panic!("it is assigned"),
            Take::Begin => {
                let begin = sources.begin(AT, Position(offset)).unwrap();
                assert_eq!(why.replace(begin.why), None, "one epoch at a time");
                sources.begun(AT, Position(offset));
            }
        }
    }
}

fn write(sources: &mut Sources, tag: Tag, key: u32) -> (i32, Mark) {
    let mut header = String::new();
    let target = sources.command(tag, key, 9, &mut header).unwrap();
    (target, Mark::parse(header.as_bytes()).unwrap())
}

fn fresh() -> Sources {
    let mut sources = Sources::new(AHEAD, 2, 7);
    sources.assigned(AT, place(), None, "");
    sources
}

#[test]
fn a_position_waits_for_the_first_event_that_is_not_acknowledged() {
    let mut sources = fresh();
    let (first, why) = take(&mut sources, 0, 10);
    assert_eq!(why, Some(NewEpoch::First));
    let finish = |sources: &mut Sources, tag| {
        write(sources, tag, 0);
        write(sources, tag, 1);
        assert_eq!(sources.commits(false), []);
        sources.written(tag, 100, counts());
    };
    finish(&mut sources, first);
    let (second, _) = take(&mut sources, 0, 11);
    finish(&mut sources, second);
    let (third, _) = take(&mut sources, 0, 14);
    finish(&mut sources, third);
    assert_eq!((sources.uncommitted(), sources.bytes), (3, 300));
    sources.acknowledged(second, 2);
    sources.acknowledged(first, 1);
    assert_eq!(sources.commits(false), []);
    assert!(!sources.is_acknowledged(None) && !sources.is_done(first));
    sources.acknowledged(first, 1);
    let ready = sources.commits(false);
    assert_eq!((ready[0].1, ready.len()), (Position(14), 1));
    sources.committed(AT, Position(14));
    assert_eq!(sources.counts().len(), 2);
    assert_eq!((sources.uncommitted(), sources.events_committed()), (1, 2));
    sources.acknowledged(third, 2);
    assert_eq!(sources.commits(false)[0].1, Position(15));
    sources.committed(AT, Position(15));
    assert_eq!(sources.commits(false), [], "nothing has changed");
    assert_eq!(
        sources.commits(true)[0].1,
        Position(15),
        "a late commit may have taken it back"
    );
    assert_eq!((sources.uncommitted(), sources.bytes), (0, 0));
    sources.acknowledged(third, 1);
    assert!(!sources.passed(AT, Position(15)));
    assert!(!sources.passed(AT, Position(17)));
    assert_eq!(sources.commits(false)[0].1, Position(17));
}

#[test]
fn each_command_names_the_one_before_it_in_its_partition() {
    let mut sources = fresh();
    let (first, _) = take(&mut sources, 0, 10);
    let (target, mark) = write(&mut sources, first, 0);
    assert_eq!((target, mark.previous), (0, None));
    let (target, other) = write(&mut sources, first, 1);
    assert_eq!((target, other.previous), (1, None));
    let (second, _) = take(&mut sources, 0, 12);
    let (_, next) = write(&mut sources, second, 0);
    assert_eq!(next.previous, Some(mark.at));
    assert_eq!((next.at.offset, next.source), (12, mark.source));
    // From the committed position on there is no predecessor.
    sources.rewound(AT);
    assert!(!sources.is_done(first) || sources.uncommitted() == 0);
    let (again, why) = take(&mut sources, 0, 10);
    let (_, copy) = write(&mut sources, again, 0);
    assert_eq!((copy, why), (mark, None));
    sources.acknowledged(first, 1);
    assert!(!sources.is_done(again), "the report is of another one");
}

#[test]
fn an_epoch_whose_commit_failed_is_tried_again_unchanged() {
    let mut sources = fresh();
    assert_eq!(sources.take(AT, 0, Offset(3)), Take::Begin);
    let first = sources.begin(AT, Position(3)).unwrap();
    sources.rewound(AT);
    assert_eq!(sources.take(AT, 0, Offset(3)), Take::Begin);
    assert_eq!(sources.begin(AT, Position(3)), Some(first.clone()));
    sources.begun(AT, Position(3));
    // The next owner goes on in it.
    let mut next = Sources::new(AHEAD, 2, 99);
    next.assigned(AT, place(), Some(Position(3)), &first.metadata);
    let (tag, why) = take(&mut next, 0, 3);
    assert_eq!(why, None);
    let (_, mark) = write(&mut next, tag, 0);
    assert!(first.metadata.starts_with(&mark.source.prefix()));
}

#[test]
fn what_is_not_its_own_begins_a_new_epoch() {
    let mut sources = fresh();
    let (tag, _) = take(&mut sources, 0, 10);
    sources.written(tag, 1, counts());
    let (_, position, metadata) = sources.commits(false).remove(0);
    assert_eq!(position, Position(11));
    let begins = |position, metadata: &str| {
        let mut next = Sources::new(AHEAD, 2, 99);
        next.assigned(AT, place(), position, metadata);
        take(&mut next, 0, 20).1
    };
    assert_eq!(begins(Some(position), &metadata), None);
    assert_eq!(
        begins(Some(Position(5)), &metadata),
        Some(NewEpoch::Foreign)
    );
    assert_eq!(begins(Some(Position(5)), ""), Some(NewEpoch::Lost));
    assert_eq!(begins(None, ""), Some(NewEpoch::First));
    let mut next = Sources::new(AHEAD, 2, 99);
    assert_eq!(
        next.assigned(AT, place(), Some(position), "9.x"),
        Assigned::Newer(9)
    );
    assert_eq!(next.take(AT, 0, Offset(20)), Take::NotOwned);
}

#[test]
fn offsets_that_come_again_begin_a_new_epoch_unless_a_later_leader_wrote_them() {
    let mut sources = fresh();
    take(&mut sources, 4, 10);
    assert_eq!(take(&mut sources, 5, 8).1, None, "the log was cut off");
    assert_eq!(take(&mut sources, 5, 8).1, Some(NewEpoch::Moved));
    assert_eq!(
        take(&mut sources, 1, 9).1,
        Some(NewEpoch::Moved),
        "made again"
    );
    sources.moved(AT, Position(50));
    assert_eq!(take(&mut sources, 1, 50).1, None, "retention");
    sources.moved(AT, Position(0));
    assert_eq!(sources.uncommitted(), 0);
    assert_eq!(take(&mut sources, 1, 51).1, Some(NewEpoch::Moved));
}

#[test]
fn the_number_of_partitions_changes_only_when_all_that_was_written_with_the_old_one_is_committed() {
    let mut sources = fresh();
    let (tag, _) = take(&mut sources, 0, 10);
    write(&mut sources, tag, 5);
    sources.written(tag, 1, counts());
    sources.set_partitions(8);
    assert!(sources.wants_rest() && sources.unknown_ends().is_empty());
    let (second, why) = take(&mut sources, 0, 11);
    assert_eq!((why, write(&mut sources, second, 5).0), (None, 1));
    sources.written(second, 1, counts());
    sources.acknowledged(tag, 1);
    sources.acknowledged(second, 1);
    let (_, position, metadata) = sources.commits(false).remove(0);
    // A successor does not know how far its predecessor has written.
    let mut next = Sources::new(AHEAD, 8, 99);
    next.assigned(AT, place(), Some(position), &metadata);
    assert_eq!(next.unknown_ends(), [AT]);
    let (tag, why) = take(&mut next, 0, 12);
    assert_eq!((why, write(&mut next, tag, 5).0), (None, 1));
    next.written(tag, 1, counts());
    next.acknowledged(tag, 1);
    next.set_end(AT, 14);
    next.committed(AT, Position(13));
    assert_eq!(take(&mut next, 0, 13).1, None, "13 may be written");
    // The owner itself does, once it rests.
    sources.committed(AT, position);
    assert!(!sources.wants_rest());
    let (tag, why) = take(&mut sources, 0, 12);
    assert_eq!(
        (why, write(&mut sources, tag, 5).0),
        (Some(NewEpoch::Partitions), 5)
    );
}

#[test]
fn so_many_events_are_taken_beyond_the_committed_positions() {
    let mut sources = fresh();
    for offset in 0..99 {
        let (tag, _) = take(&mut sources, 0, offset);
        sources.record(tag);
        sources.written(tag, 10, counts());
        assert!(!sources.is_full());
    }
    let (tag, _) = take(&mut sources, 0, 99);
    assert!(sources.is_full());
    sources.removed(AT);
    assert!(!sources.is_full());
    assert_eq!((sources.uncommitted(), sources.bytes), (0, 0));
    sources.assigned(AT, place(), None, "");
    let (other, _) = take(&mut sources, 0, 5);
    sources.acknowledged(tag, 1);
    assert!(!sources.is_done(other) && sources.is_done(tag));
    sources.written(other, AHEAD.bytes, counts());
    assert!(sources.is_full(), "an event of any size is taken");
}
