//! What `/lag`, `hookstream lag --once` and the page tell: the figures of one moment, and which of them are asked for.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::index::{Index, Waiting};
use crate::model::units::{EpochMs, Offset};
use crate::model::window::Window;

/// What is known of one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// When every topic was last read to its end and the positions were read, RFC 3339. What happened since is not in.
    pub as_of: Option<String>,
    /// The same in seconds since the epoch; 0 before the first time.
    pub as_of_seconds: f64,
    /// Offsets that are known to lie behind what was read; 0 when the figures are exact as of `as_of`.
    pub behind: u64,
    /// Sums over all subscribers; where some are asked for by name, over those.
    pub total: Totals,
    /// Those of whom something is pending or dead.
    pub subscribers: Vec<Subscriber>,
    /// Of the commands topic.
    pub partitions: Vec<Partition>,
}

/// Sums.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// In the commands topic.
    pub ready: u64,
    /// In the tiers.
    pub waiting: u64,
    /// Open dead letters.
    pub dead_letters: u64,
}

impl Totals {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready == 0 && self.waiting == 0 && self.dead_letters == 0
    }

    /// Adds them up.
    #[must_use]
    pub fn of(subscribers: &[Subscriber]) -> Self {
        let sum = |figure: fn(&Subscriber) -> u64| subscribers.iter().map(figure).sum();
        Self {
            ready: sum(|one| one.ready),
            waiting: sum(|one| one.waiting),
            dead_letters: sum(Subscriber::dead),
        }
    }
}

/// One subscriber, or one of its subscriptions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Subscriber {
    /// Whose they are; of a subscription, its id.
    pub name: String,
    /// In the commands topic, in flight included.
    pub ready: u64,
    /// In the tiers.
    pub waiting: u64,
    /// The same by the tier's delay.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tiers: BTreeMap<String, u64>,
    /// Commands that delivery has finished since the lag role began to read, whatever came of them; not those that were
    /// deleted unfinished.
    pub finished: u64,
    /// When the oldest pending command's first copy was written, RFC 3339.
    pub oldest: Option<String>,
    /// Seconds from then to `as_of`, or to now while there is none.
    pub age_seconds: Option<u64>,
    /// When the next one in a tier is due, RFC 3339.
    pub next_due: Option<String>,
    /// Open dead letters by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Each subscription; empty for a subscription itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscriber>,
}

/// One partition of the commands topic.
#[derive(Clone, Debug, Serialize)]
pub struct Partition {
    /// Its number.
    pub partition: i32,
    /// What the delivery group has committed.
    pub position: Option<i64>,
    /// From the position to the last offset that delivery has taken.
    pub window: u64,
    /// Unfinished offsets of the window.
    pub unfinished: usize,
    /// Commands that wait in it.
    pub pending: u64,
    /// For how long nothing was finished though something is pending, seconds.
    pub stalled_seconds: u64,
}

fn rfc3339(seconds: u32) -> String {
    EpochMs(i64::from(seconds) * 1000).rfc3339()
}

impl Subscriber {
    fn of(name: &str, waiting: &Waiting, tiers: &[String], at: u32) -> Self {
        let by_tier = waiting.tiers.iter();
        let by_tier = by_tier.filter_map(|(&tier, count)| Some((tiers.get(tier)?.clone(), *count)));
        Self {
            name: name.to_owned(),
            ready: waiting.ready,
            waiting: waiting.waiting,
            tiers: by_tier.collect(),
            finished: waiting.finished,
            oldest: waiting.oldest.map(rfc3339),
            age_seconds: waiting
                .oldest
                .map(|oldest| at.saturating_sub(oldest).into()),
            next_due: waiting.next_due.map(rfc3339),
            dead_letters: waiting
                .dead
                .iter()
                .map(|(reason, count)| (reason.as_str().to_owned(), *count))
                .collect(),
            subscriptions: Vec::new(),
        }
    }

    /// Ready and waiting.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.ready + self.waiting
    }

    /// Open dead letters.
    #[must_use]
    pub fn dead(&self) -> u64 {
        self.dead_letters.values().sum()
    }
}

/// What is pending for all of a subscriber, and for each of its subscriptions.
pub type Sums = (Waiting, BTreeMap<Box<str>, Waiting>);

/// What is pending, by subscriber and by subscription.
#[derive(Debug, Default)]
pub struct Tally {
    /// Of each subscriber: all in all, and each subscription.
    pub subscribers: BTreeMap<Box<str>, Sums>,
    /// How many commands are pending in each partition.
    pub partitions: BTreeMap<i32, u64>,
}

impl Tally {
    /// Walks over the index once; `windows` are those of the commands' partitions.
    #[must_use]
    pub fn of(index: &Index, windows: &BTreeMap<i32, Window>) -> Self {
        let counts = index.tally(|partition| {
            let window = windows.get(&partition);
            move |offset: Offset| window.is_some_and(|window| window.is_finished(offset))
        });
        let mut tally = Self {
            partitions: counts.partitions,
            ..Self::default()
        };
        for (entry, waiting) in counts.subscriptions {
            let (subscriber, subscription) = index.names(entry);
            let (sum, each) = tally.subscribers.entry(subscriber.into()).or_default();
            sum.add(&waiting);
            each.insert(subscription.into(), waiting);
        }
        tally
    }

    /// The figures in the form in which they are told: of subscribers of whom something is pending or dead. `tiers` are
    /// the names of the tiers; ages are those at `at`, in seconds since the epoch.
    #[must_use]
    pub fn told(&self, tiers: &[String], at: u32) -> Vec<Subscriber> {
        let all = self.subscribers.iter();
        let some = all.filter(|(_, (sum, _))| !sum.is_empty());
        let each = some.map(|(name, (sum, subscriptions))| {
            let mut told = Subscriber::of(name, sum, tiers, at);
            let inner = subscriptions.iter().filter(|(_, one)| !one.is_empty());
            told.subscriptions = inner
                .map(|(id, waiting)| Subscriber::of(id, waiting, tiers, at))
                .collect();
            told
        });
        each.collect()
    }
}

/// By what subscribers are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// The most pending commands first.
    #[default]
    Lag,
    /// The oldest pending command first.
    Age,
    /// The most open dead letters first.
    Dead,
    /// By name.
    Name,
}

impl FromStr for Sort {
    type Err = ();

    /// Upper and lower case are alike.
    fn from_str(text: &str) -> Result<Self, ()> {
        let known = [
            ("lag", Self::Lag),
            ("age", Self::Age),
            ("dead", Self::Dead),
            ("name", Self::Name),
        ];
        let found = known
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, sort)| *sort).ok_or(())
    }
}

/// Which figures are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// In which order.
    pub sort: Sort,
    /// At most so many subscribers.
    pub top: Option<usize>,
    /// Only those whose name contains this.
    pub subscriber: Option<String>,
}

impl Query {
    /// Reads `sort=lag|age|dead|name`, `top=N` and `subscriber=TEXT`.
    ///
    /// # Errors
    /// One sentence that names the parameter and what it may be.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "sort" => {
                    parsed.sort = value.parse().map_err(|()| {
                        format!("sort={value} is unknown; must be lag, age, dead or name")
                    })?;
                }
                "top" => {
                    let top = value.parse();
                    parsed.top = Some(top.map_err(|_| format!("top={value} is no number"))?);
                }
                "subscriber" => parsed.subscriber = Some(value.into_owned()),
                _ => return Err(format!("{name} is none of sort, top and subscriber")),
            }
        }
        Ok(parsed)
    }

    /// The figures that are asked for; sums are those of the subscribers with that name, also of those that `top` cuts.
    #[must_use]
    pub fn apply(&self, figures: &Figures) -> Figures {
        let mut asked = figures.clone();
        if let Some(part) = &self.subscriber {
            asked.subscribers.retain(|one| one.name.contains(part));
            asked.total = Totals::of(&asked.subscribers);
        }
        let key = |one: &Subscriber| match self.sort {
            Sort::Lag => one.pending(),
            Sort::Age => one.age_seconds.map_or(0, |age| age + 1),
            Sort::Dead => one.dead(),
            Sort::Name => 0,
        };
        asked
            .subscribers
            .sort_by(|a, b| key(b).cmp(&key(a)).then_with(|| a.name.cmp(&b.name)));
        asked.subscribers.truncate(self.top.unwrap_or(usize::MAX));
        asked
    }
}

/// Where the role leaves its figures for whoever asks.
#[derive(Debug, Default)]
pub struct Board(Mutex<Option<Arc<Figures>>>);

impl Board {
    /// Replaces the figures.
    pub fn put(&self, figures: Figures) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(figures));
    }

    /// The last figures; `None` where the role does not run, or has not read anything yet.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Figures>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let one = |name: &str, ready, age, dead| Subscriber {
            name: name.to_owned(),
            ready,
            age_seconds: age,
            dead_letters: BTreeMap::from([("gone".to_owned(), dead)]),
            ..Subscriber::default()
        };
        Figures {
            subscribers: vec![
                one("acme", 5, Some(10), 0),
                one("beta", 9, Some(2), 1),
                one("corp", 0, None, 7),
            ],
            ..Figures::default()
        }
    }

    fn names(query: &str) -> Vec<String> {
        let asked = Query::parse(query).unwrap().apply(&figures());
        asked.subscribers.into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn a_query_sorts_filters_and_cuts() {
        assert_eq!(names(""), ["beta", "acme", "corp"]);
        assert_eq!(names("sort=age"), ["acme", "beta", "corp"]);
        assert_eq!(names("sort=dead&top=1"), ["corp"]);
        assert_eq!(names("sort=name&subscriber=c"), ["acme", "corp"]);
    }

    #[test]
    fn sums_are_of_those_asked_for_by_name_and_a_cut_does_not_change_them() {
        let all = Figures {
            total: Totals::of(&figures().subscribers),
            ..figures()
        };
        let sums = |query: &str| {
            let total = Query::parse(query).unwrap().apply(&all).total;
            (total.ready, total.dead_letters)
        };
        assert_eq!(sums(""), (14, 8));
        assert_eq!(sums("top=1"), (14, 8));
        assert_eq!(sums("subscriber=c&top=1"), (5, 7));
        assert_eq!(sums("subscriber=nobody"), (0, 0));
    }

    #[test]
    fn a_wrong_query_says_what_it_may_be() {
        assert!(
            Query::parse("sort=size")
                .unwrap_err()
                .contains("lag, age, dead")
        );
        assert!(Query::parse("top=many").unwrap_err().contains("no number"));
        assert!(Query::parse("page=2").unwrap_err().contains("page"));
    }
}
