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
//! Pure: it holds items of any type.

use std::collections::{BTreeMap, HashMap, HashSet};

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

/// The unfinished commands of one subscription, by subject and sequence.
#[derive(Debug)]
pub struct SubjectQueue<T> {
    subjects: HashMap<Box<str>, BTreeMap<i64, Place<T>>>,
    waiting: usize,
    /// While the unfinished commands are not known: those that were done meanwhile.
    unknown: Option<HashSet<(Box<str>, i64)>>,
}

impl<T> Default for SubjectQueue<T> {
    fn default() -> Self {
        Self {
            subjects: HashMap::new(),
            waiting: 0,
            unknown: Some(HashSet::new()),
        }
    }
}

impl<T> SubjectQueue<T> {
    /// Handles a command that arrives, new or back from a tier.
    pub fn arrive(&mut self, subject: &str, sequence: i64, item: T) -> Arrival<T> {
        let full = self.waiting >= WAITING;
        let known = self.unknown.is_none();
        if !self.subjects.contains_key(subject) {
            self.subjects.insert(subject.into(), BTreeMap::new());
        }
        let Some(line) = self.subjects.get_mut(subject) else {
            return Arrival::Go(item);
        };
        match line.get(&sequence) {
            Some(Place::Going) => return Arrival::Go(item),
            // A duplicate, which at-least-once delivery allows: one copy at a time.
            Some(Place::Waiting(_)) => return Arrival::Behind(item, None),
            Some(Place::Away(_)) | None => {}
        }
        // A parked command parks those behind it, so the nearest one ahead is enough.
        match line.range(..sequence).next_back() {
            None if known => {
                line.insert(sequence, Place::Going);
                return Arrival::Go(item);
            }
            Some((_, Place::Away(due))) => return Arrival::Behind(item, Some(*due)),
            _ if full => return Arrival::Behind(item, None),
            _ => {}
        }
        line.insert(sequence, Place::Waiting(item));
        self.waiting += 1;
        Arrival::Waits
    }

    /// Records that a command goes to a tier until `due`. Returns those that wait behind it, in order; the caller parks
    /// them too, and they already count as being in a tier.
    pub fn away(&mut self, subject: &str, sequence: i64, due: EpochMs) -> Vec<(i64, T)> {
        let Some(line) = self.subjects.get_mut(subject) else {
            return Vec::new();
        };
        let mut gone = Vec::new();
        if let Some(Place::Waiting(copy)) = line.insert(sequence, Place::Away(due)) {
            self.waiting -= 1;
            gone.push((sequence, copy));
        }
        let behind: Vec<i64> = line
            .range(sequence + 1..)
            .filter(|(_, place)| matches!(place, Place::Waiting(_)))
            .map(|(&sequence, _)| sequence)
            .collect();
        for sequence in behind {
            if let Some(Place::Waiting(item)) = line.insert(sequence, Place::Away(due)) {
                self.waiting -= 1;
                gone.push((sequence, item));
            }
        }
        gone
    }

    /// Records that a command is done: delivered, dead-lettered, or no longer ordered. Returns the next of its subject,
    /// which may proceed, if it waits here.
    pub fn done(&mut self, subject: &str, sequence: i64) -> Option<T> {
        if let Some(meanwhile) = &mut self.unknown {
            meanwhile.insert((subject.into(), sequence));
        }
        let line = self.subjects.get_mut(subject)?;
        // A duplicate that waits here stays: its offset has to end too.
        if !matches!(line.get(&sequence), Some(Place::Waiting(_))) {
            line.remove(&sequence);
        }
        self.next(subject)
    }

    /// Records the unfinished commands found in the tiers and among those released. Returns the items that may proceed.
    pub fn learn(&mut self, under_way: impl IntoIterator<Item = UnderWay>) -> Vec<T> {
        let Some(meanwhile) = self.unknown.take() else {
            return Vec::new();
        };
        for UnderWay {
            subject,
            sequence,
            due,
        } in under_way
        {
            if !meanwhile.contains(&(subject.clone(), sequence)) {
                self.subjects
                    .entry(subject)
                    .or_default()
                    .entry(sequence)
                    .or_insert(Place::Away(due));
            }
        }
        let subjects: Vec<Box<str>> = self.subjects.keys().cloned().collect();
        subjects
            .iter()
            .filter_map(|subject| self.next(subject))
            .collect()
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

    /// Forgets which commands are in tiers, to read them again: one that should have returned has not.
    pub fn forget_away(&mut self) {
        self.unknown = Some(HashSet::new());
        for line in self.subjects.values_mut() {
            line.retain(|_, place| !matches!(place, Place::Away(_)));
        }
    }

    /// Takes all waiting items, by sequence; they count as allowed to proceed.
    pub fn take_waiting(&mut self) -> Vec<T> {
        let mut taken = Vec::with_capacity(self.waiting);
        for line in self.subjects.values_mut() {
            for (&sequence, place) in line.iter_mut() {
                if matches!(place, Place::Waiting(_))
                    && let Place::Waiting(item) = std::mem::replace(place, Place::Going)
                {
                    taken.push((sequence, item));
                }
            }
        }
        self.waiting = 0;
        taken.sort_by_key(|(sequence, _)| *sequence);
        taken.into_iter().map(|(_, item)| item).collect()
    }

    /// Lets the first command of a subject proceed, if it waits here.
    fn next(&mut self, subject: &str) -> Option<T> {
        if self.unknown.is_some() {
            return None;
        }
        let line = self.subjects.get_mut(subject)?;
        let Some(mut first) = line.first_entry() else {
            self.subjects.remove(subject);
            return None;
        };
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
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const DUE: EpochMs = EpochMs(1000);

    fn known() -> SubjectQueue<i64> {
        let mut book = SubjectQueue::default();
        assert!(book.learn([]).is_empty());
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
        assert_eq!(book.learn([under_way]), [8]);
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
        book.learn([UnderWay {
            subject: "a".into(),
            sequence: 3,
            due: DUE,
        }]);
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
        book.learn([under_way]);
        assert_eq!(book.arrive("a", 2, 2), Arrival::Go(2));
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
            self.going.extend(self.book.learn(under_way));
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
