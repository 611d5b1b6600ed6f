//! Which dead letters are open: the fold of the settling facts.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::fact::{Coordinates, DeadLetter, Moment, Settled, Settlement};
use crate::model::units::{EpochMs, Offset};

/// What has become of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing yet: a replay would take it.
    Open,
    /// It was settled so, at that time.
    Settled(Settlement, EpochMs),
}

impl State {
    /// `open`, `replayed` or `discarded`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Settled(Settlement::Replayed, _) => "replayed",
            Self::Settled(Settlement::Discarded, _) => "discarded",
        }
    }
}

/// Makes keys of what letters and facts say of themselves. Seeded at random: nobody can choose ids that collide.
#[derive(Clone, Debug, Default)]
pub struct Identities(RandomState);

/// A letter's identity in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Its partition.
    pub partition: i32,
    key: u64,
}

impl Identities {
    /// The identity that letters and facts in `partition` have with this webhook id, subscription and moment.
    #[must_use]
    pub fn of(
        &self,
        partition: i32,
        webhook_id: &str,
        subscription: &str,
        moment: Moment,
    ) -> Identity {
        let key = self.0.hash_one((webhook_id, subscription, moment));
        Identity { partition, key }
    }

    /// A letter's identity.
    #[must_use]
    pub fn of_letter(&self, letter: &DeadLetter) -> Identity {
        self.of(
            letter.at.partition,
            &letter.webhook_id,
            &letter.subscription,
            letter.moment(),
        )
    }

    /// The webhook and the subscription alone.
    #[must_use]
    pub fn webhook(&self, webhook_id: &str, subscription: &str) -> u64 {
        self.0.hash_one((webhook_id, subscription))
    }
}

/// The fold of the facts: it holds what they say of settled letters only, about 50 bytes each, so that a first pass
/// over the topic is small however many letters are open; a second pass then asks for the state of each letter.
///
/// A fact settles every letter before it that says the same of itself. Two that do, to the millisecond, are copies of
/// one letter: a mirror writes some records twice when it was killed.
#[derive(Clone, Debug, Default)]
pub struct OpenLetters {
    identities: Identities,
    /// By the first fact, and where the last one lies.
    settled: HashMap<Identity, (Settlement, EpochMs, Offset)>,
    /// Facts that name their letters by coordinates only, each with the letter's webhook.
    by_place: HashMap<Coordinates, (u64, Settlement, EpochMs)>,
}

impl OpenLetters {
    /// Takes a settling fact, which lies at `place`. The first one for a letter counts.
    pub fn settle(&mut self, fact: &Settled, place: Coordinates) {
        let (webhook_id, subscription) = (&fact.webhook_id, &fact.subscription);
        let Some(moment) = fact.moment else {
            let webhook = self.identities.webhook(webhook_id, subscription);
            let settled = (webhook, fact.how, fact.at);
            self.by_place.entry(fact.letter).or_insert(settled);
            return;
        };
        let partition = place.partition;
        let identity = self
            .identities
            .of(partition, webhook_id, subscription, moment);
        let settled = (fact.how, fact.at, place.offset);
        let (_, _, last) = self.settled.entry(identity).or_insert(settled);
        *last = place.offset.max(*last);
    }

    /// What a letter says of itself: copies of one have the same identity.
    #[must_use]
    pub fn identity(&self, letter: &DeadLetter) -> Identity {
        self.identities.of_letter(letter)
    }

    /// What has become of a letter.
    #[must_use]
    pub fn state(&self, letter: &DeadLetter) -> State {
        let webhook = || {
            self.identities
                .webhook(&letter.webhook_id, &letter.subscription)
        };
        if let Some((of, how, at)) = self.by_place.get(&letter.at)
            && *of == webhook()
        {
            return State::Settled(*how, *at);
        }
        match self.settled.get(&self.identities.of_letter(letter)) {
            Some((how, at, last)) if letter.at.offset < *last => State::Settled(*how, *at),
            _ => State::Open,
        }
    }

    /// Whether a letter is open.
    #[must_use]
    pub fn is_open(&self, letter: &DeadLetter) -> bool {
        self.state(letter) == State::Open
    }
}
