//! Orders the commands of one subscription by the subject of their events.
//!
//! Per subject, one command at a time may proceed: the first unfinished one. Later ones wait here. When the first goes
//! to a tier, for a retry or for lack of room, they are parked behind it with its due time, so that it holds neither
//! memory nor the partition's window. Other subjects are unaffected.
//!
//! The order survives restarts: each command carries its *sequence*, its offset when it was first taken. A new owner
//! reads the tiers, and the commands released from them meanwhile, to find each subject's unfinished commands; until
//! then everything waits here.
//!
//! A dead endpoint may have millions of unfinished commands. So only the first ones are recorded, by their sequence, up
//! to the *horizon*; those beyond it are parked without a record, whatever their subject. When half of the recorded ones
//! are done, the tiers are read again ([`SubjectQueue::wants_more`]).
//!
//! Pure: it holds items of any type.

use std::collections::{BTreeMap, HashSet};

use super::under_way::{ALL, ENTRY_BYTES};
use crate::model::maps::SafeMap;
use crate::model::units::EpochMs;

/// The most commands that wait here, over all subjects; further ones are parked.
pub const WAITING: usize = 256;

/// Where an unfinished command is.
#[derive(Debug)]
enum Place<T> {
    /// Here, behind another command of its subject.
    Waiting(T),
    /// Allowed to proceed: in the lane's queue or in flight.
    Going,
    /// In a tier, due at this time.
    Away(EpochMs),
}

/// What to do with a command that arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T> {
    /// Proceed.
    Go(T),
    /// Nothing: it waits here for its turn.
    Waits,
    /// Park it until this time, when the command ahead of it is due, if known.
    Behind(T, Option<EpochMs>),
}

/// An unfinished command that a new owner found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// The subject of its event.
    pub subject: Box<str>,
    /// Its position among the commands of its subject.
    pub sequence: i64,
    /// When it is due.
    pub due: EpochMs,
}

/// The memory of the record of a command in a tier, bytes, roughly: as if each had its own subject.
fn weight(subject: &str) -> usize {
    ENTRY_BYTES + subject.len()
}

/// The unfinished commands of one subscription, by subject and sequence.
#[derive(Debug)]
pub struct SubjectQueue<T> {
    subjects: SafeMap<Box<str>, BTreeMap<i64, Place<T>>>,
    waiting: usize,
    /// While the unfinished commands are not known: those that were done meanwhile.
    unknown: Option<HashSet<(Box<str>, i64)>>,
    /// Of the unfinished commands whose sequence is at most this, all are recorded.
    horizon: i64,
    /// What the records of commands in tiers weigh, and may weigh, bytes. Others are bounded by the lane's queue.
    weight: usize,
    limit: usize,
}

impl<T> Default for SubjectQueue<T> {
    fn default() -> Self {
        Self {
            subjects: SafeMap::default(),
            waiting: 0,
            unknown: Some(HashSet::new()),
            horizon: ALL,
            weight: 0,
            limit: usize::MAX,
        }
    }
}

impl<T> SubjectQueue<T> {
    /// Sets what the records of commands in tiers may weigh, bytes, roughly.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// What the records of commands in tiers weigh, bytes, roughly.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether most recorded commands are done while others are beyond the horizon: then forget the tiers and read them
    /// again ([`SubjectQueue::forget_away`]).
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.horizon != ALL && self.unknown.is_none() && self.weight <= self.limit / 2
    }

    /// Handles a command that arrives, new or back from a tier.
    pub fn arrive(&mut self, subject: &str, sequence: i64, item: T) -> Arrival<T> {
        let known = self.unknown.is_none();
        let line = self.subjects.get(subject);
        match line.and_then(|line| line.get(&sequence)) {
            Some(Place::Going) => return Arrival::Go(item),
            // A duplicate, which at-least-once delivery allows: one copy at a time.
            Some(Place::Waiting(_)) => return Arrival::Behind(item, None),
            Some(Place::Away(_)) | None => {}
        }
        // What is ahead of it is not known.
        if sequence > self.horizon {
            return Arrival::Behind(item, None);
        }
        // A parked command parks those behind it, so the nearest one ahead is enough.
        match line.and_then(|line| line.range(..sequence).next_back()) {
            None if known => {
                self.put(subject, sequence, Place::Going);
                return Arrival::Go(item);
            }
            Some((_, Place::Away(due))) => return Arrival::Behind(item, Some(*due)),
            _ if self.waiting >= WAITING => return Arrival::Behind(item, None),
            _ => {}
        }
        self.put(subject, sequence, Place::Waiting(item));
        Arrival::Waits
    }

    /// Records that a command goes to a tier until `due`. Returns those that wait behind it, in order, and those that now
    /// are beyond the horizon; the caller parks them too, and they already count as being in a tier.
    pub fn away(&mut self, subject: &str, sequence: i64, due: EpochMs) -> Vec<(i64, T)> {
        let mut gone = Vec::new();
        let copy = if sequence <= self.horizon {
            self.put(subject, sequence, Place::Away(due))
        } else {
            self.take(subject, sequence)
        };
        if let Some(Place::Waiting(copy)) = copy {
            gone.push((sequence, copy));
        }
        let line = self.subjects.get(subject);
        let behind: Vec<i64> = line
            .into_iter()
            .flat_map(|line| line.range(sequence.saturating_add(1)..))
            .filter(|(_, place)| matches!(place, Place::Waiting(_)))
            .map(|(&sequence, _)| sequence)
            .collect();
        for sequence in behind {
            if let Some(Place::Waiting(item)) = self.put(subject, sequence, Place::Away(due)) {
                gone.push((sequence, item));
            }
        }
        gone.extend(self.shrink());
        gone
    }

    /// Records that a command is done: delivered, dead-lettered, or no longer ordered. Returns the next of its subject,
    /// which may proceed, if it waits here.
    pub fn done(&mut self, subject: &str, sequence: i64) -> Option<T> {
        if let Some(meanwhile) = &mut self.unknown {
            meanwhile.insert((subject.into(), sequence));
        }
        // A duplicate that waits here stays: its offset has to end too.
        let place = self.subjects.get(subject)?.get(&sequence);
        if !matches!(place, Some(Place::Waiting(_))) {
            self.take(subject, sequence);
        }
        self.next(subject)
    }

    /// Records the unfinished commands found in the tiers and among those released, of which those up to `horizon` are
    /// complete. Returns the items that may proceed, and those that are beyond the horizon; the latter count as being in
    /// a tier.
    pub fn learn(
        &mut self,
        under_way: impl IntoIterator<Item = UnderWay>,
        horizon: i64,
    ) -> (Vec<T>, Vec<T>) {
        let Some(meanwhile) = self.unknown.take() else {
            return (Vec::new(), Vec::new());
        };
        self.horizon = self.horizon.min(horizon);
        for UnderWay {
            subject,
            sequence,
            due,
        } in under_way
        {
            let line = self.subjects.get(&subject);
            let is_here = line.is_some_and(|line| line.contains_key(&sequence));
            if !is_here && !meanwhile.contains(&(subject.clone(), sequence)) {
                self.put(&subject, sequence, Place::Away(due));
            }
        }
        let mut beyond = self.take_beyond();
        beyond.extend(self.shrink());
        let subjects: Vec<Box<str>> = self.subjects.keys().cloned().collect();
        let go = subjects.iter().filter_map(|subject| self.next(subject));
        let go = go.collect();
        (go, beyond.into_iter().map(|(_, item)| item).collect())
    }

    /// Sets the place of a command; returns the former one.
    fn put(&mut self, subject: &str, sequence: i64, place: Place<T>) -> Option<Place<T>> {
        if !self.subjects.contains_key(subject) {
            self.subjects.insert(subject.into(), BTreeMap::new());
        }
        match &place {
            Place::Waiting(_) => self.waiting += 1,
            Place::Away(_) => self.weight += weight(subject),
            Place::Going => {}
        }
        let before = self.subjects.get_mut(subject)?.insert(sequence, place);
        self.uncount(subject, before.as_ref());
        before
    }

    /// Counts a record out that has been replaced or removed.
    fn uncount(&mut self, subject: &str, place: Option<&Place<T>>) {
        match place {
            Some(Place::Waiting(_)) => self.waiting -= 1,
            Some(Place::Away(_)) => self.weight -= weight(subject),
            Some(Place::Going) | None => {}
        }
    }

    /// Removes the record of a command.
    fn take(&mut self, subject: &str, sequence: i64) -> Option<Place<T>> {
        let line = self.subjects.get_mut(subject)?;
        let place = line.remove(&sequence);
        if line.is_empty() {
            self.subjects.remove(subject);
        }
        self.uncount(subject, place.as_ref());
        place
    }

    /// Over the limit, lowers the horizon until the records of commands in tiers weigh seven eighths of it. Returns what
    /// waits beyond.
    fn shrink(&mut self) -> Vec<(i64, T)> {
        if self.weight <= self.limit {
            return Vec::new();
        }
        let mut all: Vec<(i64, usize)> = Vec::new();
        for (subject, line) in &self.subjects {
            let away = line
                .iter()
                .filter(|(_, place)| matches!(place, Place::Away(_)));
            all.extend(away.map(|(&sequence, _)| (sequence, weight(subject))));
        }
        all.sort_unstable();
        let (mut sum, mut horizon) = (0, i64::MIN);
        for (sequence, weight) in all {
            sum += weight;
            // One at least, or nothing would ever proceed.
            if sum > self.limit - self.limit / 8 && horizon != i64::MIN {
                break;
            }
            horizon = sequence;
        }
        self.horizon = self.horizon.min(horizon);
        self.take_beyond()
    }

    /// Removes what is beyond the horizon, except for commands that proceed already. Returns what waits there.
    fn take_beyond(&mut self) -> Vec<(i64, T)> {
        if self.horizon == ALL {
            return Vec::new();
        }
        let mut beyond: Vec<(Box<str>, i64)> = Vec::new();
        for (subject, line) in &self.subjects {
            let after = line.range(self.horizon.saturating_add(1)..);
            let not_going = after.filter(|(_, place)| !matches!(place, Place::Going));
            beyond.extend(not_going.map(|(&sequence, _)| (subject.clone(), sequence)));
        }
        let mut taken = Vec::new();
        for (subject, sequence) in beyond {
            if let Some(Place::Waiting(item)) = self.take(&subject, sequence) {
                taken.push((sequence, item));
            }
        }
        taken
    }

    /// Takes all items that wait behind one in a tier, with its due time; the caller parks them too, and they already
    /// count as being in a tier.
    pub fn take_behind_away(&mut self) -> Vec<(T, EpochMs)> {
        let heads: Vec<(Box<str>, i64, EpochMs)> = self
            .subjects
            .iter()
            .filter_map(|(subject, line)| match line.first_key_value()? {
                (&sequence, Place::Away(due)) => Some((subject.clone(), sequence, *due)),
                _ => None,
            })
            .collect();
        let mut taken = Vec::new();
        for (subject, sequence, due) in heads {
            let behind = self.away(&subject, sequence, due);
            taken.extend(behind.into_iter().map(|(_, item)| (item, due)));
        }
        taken
    }

    /// Forgets which commands are in tiers, to read them again.
    pub fn forget_away(&mut self) {
        self.unknown = Some(HashSet::new());
        self.horizon = ALL;
        self.weight = 0;
        self.subjects.retain(|_, line| {
            line.retain(|_, place| !matches!(place, Place::Away(_)));
            !line.is_empty()
        });
    }

    /// Takes all waiting items, by sequence; they count as allowed to proceed.
    pub fn take_waiting(&mut self) -> Vec<T> {
        self.take_waiting_if(|_| true)
    }

    /// Takes the waiting items for which `ends` holds, by sequence; they count as allowed to proceed.
    pub fn take_waiting_if(&mut self, mut ends: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for line in self.subjects.values_mut() {
            for (&sequence, place) in line.iter_mut() {
                if matches!(place, Place::Waiting(item) if ends(item))
                    && let Place::Waiting(item) = std::mem::replace(place, Place::Going)
                {
                    self.waiting -= 1;
                    taken.push((sequence, item));
                }
            }
        }
        taken.sort_by_key(|(sequence, _)| *sequence);
        taken.into_iter().map(|(_, item)| item).collect()
    }

    /// Lets the first command of a subject proceed, if it waits here.
    fn next(&mut self, subject: &str) -> Option<T> {
        if self.unknown.is_some() {
            return None;
        }
        let mut first = self.subjects.get_mut(subject)?.first_entry()?;
        if !matches!(first.get(), Place::Waiting(_)) {
            return None;
        }
        match first.insert(Place::Going) {
            Place::Waiting(item) => {
                self.waiting -= 1;
                Some(item)
            }
            Place::Going | Place::Away(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    const DUE: EpochMs = EpochMs(1000);

    fn known() -> SubjectQueue<i64> {
        let mut book = SubjectQueue::default();
        assert!(book.learn([], ALL).0.is_empty());
        book
    }

    #[test]
    fn one_of_a_subject_at_a_time_and_subjects_do_not_concern_each_other() {
        let mut book = known();
        assert_eq!(book.arrive("a", 1, 1), Arrival::Go(1));
        assert_eq!(book.arrive("a", 2, 2), Arrival::Waits);
        assert_eq!(book.arrive("b", 3, 3), Arrival::Go(3));
        assert_eq!(book.arrive("a", 4, 4), Arrival::Waits);
        assert_eq!(book.done("b", 3), None);
        assert_eq!(book.done("a", 1), Some(2));
        assert_eq!(book.done("a", 2), Some(4));
        assert_eq!(book.done("a", 4), None);
        assert!(book.subjects.is_empty(), "what is done takes no memory");
    }

    #[test]
    fn those_behind_one_that_goes_to_a_tier_go_there_too_and_come_back_in_order() {
        let mut book = known();
        assert_eq!(book.arrive("a", 1, 1), Arrival::Go(1));
        assert_eq!(book.arrive("a", 2, 2), Arrival::Waits);
        assert_eq!(book.away("a", 1, DUE), [(2, 2)]);
        assert_eq!(book.arrive("a", 3, 3), Arrival::Behind(3, Some(DUE)));
        book.away("a", 3, DUE);
        assert_eq!(
            book.arrive("a", 2, 2),
            Arrival::Behind(2, Some(DUE)),
            "released before the one ahead of it"
        );
        assert_eq!(book.arrive("a", 1, 1), Arrival::Go(1));
        assert_eq!(book.arrive("a", 3, 3), Arrival::Behind(3, Some(DUE)));
        assert_eq!(book.arrive("a", 2, 2), Arrival::Waits);
        assert_eq!(book.done("a", 1), Some(2));
    }

    #[test]
    fn a_new_owner_lets_nothing_through_until_it_knows_what_is_under_way() {
        let mut book = SubjectQueue::default();
        assert_eq!(book.arrive("a", 7, 7), Arrival::Waits);
        assert_eq!(book.arrive("b", 8, 8), Arrival::Waits);
        let under_way = UnderWay {
            subject: "a".into(),
            sequence: 3,
            due: DUE,
        };
        assert_eq!(book.learn([under_way], ALL).0, [8]);
        assert_eq!(book.arrive("a", 3, 3), Arrival::Go(3));
        assert_eq!(book.done("a", 3), Some(7));
    }

    #[test]
    fn a_second_copy_is_never_lost_nor_sent_beside_the_first() {
        let mut book = known();
        book.arrive("a", 5, 50);
        assert_eq!(book.arrive("a", 10, 100), Arrival::Waits);
        assert_eq!(book.arrive("a", 10, 101), Arrival::Behind(101, None));
        assert_eq!(book.away("a", 10, DUE), [(10, 100)], "both go");
        assert_eq!(book.waiting, 0);
        assert_eq!(book.arrive("a", 7, 70), Arrival::Waits);
        assert_eq!(book.done("a", 7), None, "another copy of it is done");
        assert_eq!(book.done("a", 5), Some(70), "and this one still goes");
    }

    #[test]
    fn what_waits_behind_one_in_a_tier_can_be_taken_there_too() {
        let mut book = SubjectQueue::default();
        assert_eq!(book.arrive("a", 7, 7), Arrival::Waits);
        let under_way = UnderWay {
            subject: "a".into(),
            sequence: 3,
            due: DUE,
        };
        book.learn([under_way], ALL);
        assert_eq!(book.take_behind_away(), [(7, DUE)]);
        assert_eq!(book.arrive("a", 8, 8), Arrival::Behind(8, Some(DUE)));
    }

    #[test]
    fn what_was_done_while_the_tiers_were_read_is_not_under_way() {
        let mut book = known();
        book.arrive("a", 1, 1);
        book.forget_away();
        assert_eq!(book.done("a", 1), None);
        let under_way = UnderWay {
            subject: "a".into(),
            sequence: 1,
            due: DUE,
        };
        book.learn([under_way], ALL);
        assert_eq!(book.arrive("a", 2, 2), Arrival::Go(2));
    }

    #[test]
    fn what_is_beyond_the_horizon_is_parked_and_read_again_when_there_is_room() {
        let mut book = known();
        // Sixteen records.
        book.set_limit(16 * weight("a"));
        for sequence in 0..16 {
            let subject = if sequence % 2 == 0 { "a" } else { "b" };
            book.away(subject, sequence, DUE);
        }
        assert_eq!(book.arrive("c", 16, 16), Arrival::Go(16), "all is known");
        assert_eq!(book.arrive("c", 17, 17), Arrival::Waits);
        assert_eq!(book.away("a", 18, DUE), [(17, 17)], "it is beyond now");
        assert_eq!(book.weight(), 14 * weight("a"));
        assert_eq!(book.arrive("d", 19, 19), Arrival::Behind(19, None));
        assert!(book.away("d", 19, DUE).is_empty());
        assert_eq!(book.arrive("a", 14, 14), Arrival::Behind(14, None));
        assert_eq!(book.arrive("a", 2, 2), Arrival::Behind(2, Some(DUE)));
        assert_eq!(book.done("c", 16), None, "what proceeded goes on");
        for sequence in 0..6 {
            assert!(!book.wants_more());
            let subject = if sequence % 2 == 0 { "a" } else { "b" };
            assert_eq!(
                book.arrive(subject, sequence, sequence),
                Arrival::Go(sequence)
            );
            assert_eq!(book.done(subject, sequence), None);
        }
        assert!(book.wants_more());
        book.forget_away();
        assert_eq!(
            book.arrive("d", 19, 19),
            Arrival::Waits,
            "until it is known"
        );
        let found = (6..=19).filter(|sequence| *sequence != 16);
        let subjects = ["a", "b"].repeat(8);
        let found = found.map(|sequence| UnderWay {
            subject: match sequence {
                17 => "c",
                18 => "a",
                19 => "d",
                other => subjects[other as usize],
            }
            .into(),
            sequence,
            due: DUE,
        });
        let (go, beyond) = book.learn(found, 18);
        assert_eq!(
            (go, beyond),
            (Vec::new(), vec![19]),
            "nothing is known of 19"
        );
        assert_eq!(book.arrive("c", 17, 17), Arrival::Go(17));
    }

    #[test]
    fn more_than_it_holds_is_parked() {
        let mut book = known();
        book.arrive("a", 0, 0);
        for sequence in 1..=WAITING as i64 {
            assert_eq!(book.arrive("a", sequence, sequence), Arrival::Waits);
        }
        assert_eq!(book.arrive("a", 9999, 9999), Arrival::Behind(9999, None));
        assert_eq!(book.take_waiting().len(), WAITING);
    }

    #[derive(Clone, Debug)]
    enum Step {
        New(u8),
        /// The n-th command that proceeds ends, or is parked or retried.
        Done(usize),
        Away(usize),
        /// The n-th command in a tier returns, whatever its due time.
        Back(usize),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_u8).prop_map(Step::New),
            4 => (0..9_usize).prop_map(Step::Done),
            2 => (0..9_usize).prop_map(Step::Away),
            4 => (0..9_usize).prop_map(Step::Back),
            1 => Just(Step::Restart),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// A partition's log and tiers, and an owner that restarts occasionally.
    #[derive(Default)]
    struct Model {
        book: SubjectQueue<i64>,
        subject: HashMap<i64, String>,
        /// Taken but not committed: a restart delivers them again, in order.
        open: BTreeMap<i64, i64>,
        going: VecDeque<i64>,
        tier: Vec<i64>,
        next: i64,
        offset: i64,
        done: Vec<i64>,
    }

    impl Model {
        fn take(&mut self, sequence: i64) {
            self.open.insert(self.offset, sequence);
            self.offset += 1;
            self.route(sequence);
        }

        fn route(&mut self, sequence: i64) {
            let subject = self.subject[&sequence].clone();
            match self.book.arrive(&subject, sequence, sequence) {
                Arrival::Go(_) => self.going.push_back(sequence),
                Arrival::Waits => {}
                Arrival::Behind(..) => self.send_away(sequence),
            }
        }

        fn send_away(&mut self, sequence: i64) {
            let subject = self.subject[&sequence].clone();
            self.open.retain(|_, open| *open != sequence);
            self.tier.push(sequence);
            for (_, behind) in self.book.away(&subject, sequence, DUE) {
                self.open.retain(|_, open| *open != behind);
                self.tier.push(behind);
            }
        }

        fn finish(&mut self, sequence: i64) {
            let subject = self.subject[&sequence].clone();
            self.open.retain(|_, open| *open != sequence);
            self.done.push(sequence);
            self.going.extend(self.book.done(&subject, sequence));
        }

        fn restart(&mut self) {
            self.book = SubjectQueue::default();
            self.going.clear();
            for sequence in self.open.values().copied().collect::<Vec<_>>() {
                self.route(sequence);
            }
            let under_way: Vec<UnderWay> = self
                .tier
                .iter()
                .map(|sequence| UnderWay {
                    subject: self.subject[sequence].as_str().into(),
                    sequence: *sequence,
                    due: DUE,
                })
                .collect();
            let (go, _) = self.book.learn(under_way, ALL);
            self.going.extend(go);
        }

        fn check(&self) -> Result<(), TestCaseError> {
            let mut subjects = HashSet::new();
            for sequence in &self.going {
                prop_assert!(
                    subjects.insert(&self.subject[sequence]),
                    "two of a subject overlap"
                );
            }
            Ok(())
        }
    }

    proptest! {
        /// Strict order: despite parking, retries and restarts, each subject's commands all end, in the order in which
        /// they arrived.
        #[test]
        fn subjects_end_in_order_over_parking_and_restarts(steps in steps()) {
            let mut model = Model { book: known(), ..Model::default() };
            for step in steps {
                match step {
                    Step::New(subject) => {
                        let sequence = model.offset.max(model.next);
                        model.offset = sequence;
                        model.next = sequence + 1;
                        model.subject.insert(sequence, subject.to_string());
                        model.take(sequence);
                    }
                    Step::Done(n) if n < model.going.len() => {
                        let sequence = model.going.remove(n).unwrap();
                        model.finish(sequence);
                    }
                    Step::Away(n) if n < model.going.len() => {
                        let sequence = model.going.remove(n).unwrap();
                        model.send_away(sequence);
                    }
                    Step::Back(n) if n < model.tier.len() => {
                        let sequence = model.tier.remove(n);
                        model.take(sequence);
                    }
                    Step::Restart => model.restart(),
                    Step::Done(_) | Step::Away(_) | Step::Back(_) => {}
                }
                model.check()?;
            }
            for _ in 0..100_000 {
                if let Some(sequence) = model.going.pop_front() {
                    model.finish(sequence);
                } else if model.tier.is_empty() {
                    break;
                } else {
                    let sequence = model.tier.remove(0);
                    model.take(sequence);
                }
                model.check()?;
            }
            prop_assert_eq!(model.done.len(), model.subject.len(), "all end");
            for subject in 0..3_u8 {
                let of_it: Vec<i64> = model.done.iter().copied().filter(|sequence| model.subject[sequence] == subject.to_string()).collect();
                prop_assert!(of_it.is_sorted(), "subject {}: {:?}", subject, of_it);
            }
        }
    }
}
