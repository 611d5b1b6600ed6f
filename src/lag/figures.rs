//! The backlog as `/lag`, the page and `hookstream lag --once` report it, and the query that selects and sorts it. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::history::{History, Point};
use super::index::{Index, Waiting};
use crate::model::standing::Standing;
use crate::model::units::{EpochMs, Offset};
use crate::model::window::Window;

/// The backlog at one point in time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Time of the last complete reading of all topics and committed offsets, RFC 3339. Later changes are not included.
    pub as_of: Option<String>,
    /// The same in seconds since the epoch; 0 before the first complete reading.
    pub as_of_seconds: f64,
    /// Offsets known to be unread; 0 when the figures are exact as of `as_of`.
    pub behind: u64,
    /// Sums over all subscribers, or over those that match the query's name.
    pub total: Totals,
    /// All subscribers that have had commands or dead letters; of a query, those with something to see.
    pub subscribers: Vec<Subscriber>,
    /// Partitions of the commands topic.
    pub partitions: Vec<Partition>,
    /// Partitions of the event topics: what waits for fan-out. Empty if they could not be read.
    pub events: Vec<EventPartition>,
}

/// Sums.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Commands in the commands topic.
    pub ready: u64,
    /// Commands in the retry tiers.
    pub waiting: u64,
    /// Open dead letters.
    pub dead_letters: u64,
}

impl Totals {
    /// Whether all sums are zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready == 0 && self.waiting == 0 && self.dead_letters == 0
    }

    /// The sums over `subscribers`.
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
    /// The subscriber, or the subscription id.
    pub name: String,
    /// Commands in the commands topic, including those in flight.
    pub ready: u64,
    /// Commands in the retry tiers.
    pub waiting: u64,
    /// The same by the delay of the tier.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tiers: BTreeMap<String, u64>,
    /// Commands that have reached an end (delivered, dead-lettered or discarded) since the lag role started. Parking and
    /// retrying are not ends.
    pub finished: u64,
    /// When the oldest pending command was first written, RFC 3339.
    pub oldest: Option<String>,
    /// Seconds from then to `as_of`, or to now without one.
    pub age_seconds: Option<u64>,
    /// When the next retry is due, RFC 3339.
    pub next_due: Option<String>,
    /// Open dead letters by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Its state and why, and what its endpoint did last.
    #[serde(flatten)]
    pub standing: Standing,
    /// The subscriptions of a subscriber.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscriber>,
}

/// One partition of an event topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EventPartition {
    /// The topic.
    pub topic: String,
    /// The partition number.
    pub partition: i32,
    /// Offsets from the one that fan-out has committed to the last stable offset. Until fan-out is at rest, the markers of
    /// transactions count too.
    pub behind: u64,
    /// When the oldest of these events was written, RFC 3339; a few seconds late, and null until it is read.
    pub oldest: Option<String>,
    /// Seconds since then.
    pub age_seconds: Option<u64>,
    /// Offsets behind the last stable offset: a publisher's open transaction hides them.
    pub hidden: u64,
    /// How long that transaction has held up the partition, as far as the lag role saw it, seconds.
    pub blocked_seconds: u64,
}

/// One partition of the commands topic.
#[derive(Clone, Debug, Serialize)]
pub struct Partition {
    /// The partition number.
    pub partition: i32,
    /// The committed offset of the delivery group.
    pub position: Option<i64>,
    /// Offsets from the committed one to the last one that delivery has taken.
    pub window: u64,
    /// Unfinished offsets of the window.
    pub unfinished: usize,
    /// Pending commands.
    pub pending: u64,
    /// Seconds since the last finished command while commands are pending.
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
            standing: Standing::default(),
            subscriptions: Vec::new(),
        }
    }

    /// Ready and waiting commands.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.ready + self.waiting
    }

    /// Whether there is something to see about it: a backlog, or a state that is not active.
    #[must_use]
    pub fn is_notable(&self) -> bool {
        self.pending() > 0 || self.dead() > 0 || self.standing.is_notable()
    }

    /// Open dead letters.
    #[must_use]
    pub fn dead(&self) -> u64 {
        self.dead_letters.values().sum()
    }
}

/// The backlog of a subscriber, and of each of its subscriptions.
pub type Sums = (Waiting, BTreeMap<Box<str>, Waiting>);

/// The backlog by subscriber and subscription.
#[derive(Debug, Default)]
pub struct Backlog {
    /// By subscriber.
    pub subscribers: BTreeMap<Box<str>, Sums>,
    /// Pending commands by partition.
    pub partitions: BTreeMap<i32, u64>,
}

impl Backlog {
    /// Scans the index once; `windows` are those of the commands topic's partitions.
    #[must_use]
    pub fn of(index: &Index, windows: &BTreeMap<i32, Window>) -> Self {
        let counts = index.count(|partition| {
            let window = windows.get(&partition);
            move |offset: Offset| window.is_some_and(|window| window.is_finished(offset))
        });
        let mut backlog = Self {
            partitions: counts.partitions,
            ..Self::default()
        };
        for (entry, waiting) in counts.subscriptions {
            let (subscriber, subscription) = index.names(entry);
            let (sum, each) = backlog.subscribers.entry(subscriber.into()).or_default();
            sum.add(&waiting);
            each.insert(subscription.into(), waiting);
        }
        backlog
    }

    /// The figures of all subscribers that have had commands or dead letters. `tiers` are the labels of the tiers; ages are as of `at`, seconds since the epoch.
    #[must_use]
    pub fn figures(&self, tiers: &[String], at: u32) -> Vec<Subscriber> {
        let all = self.subscribers.iter();
        let each = all.map(|(name, (sum, subscriptions))| {
            let mut figures = Subscriber::of(name, sum, tiers, at);
            figures.subscriptions = subscriptions
                .iter()
                .map(|(id, waiting)| Subscriber::of(id, waiting, tiers, at))
                .collect();
            figures
        });
        each.collect()
    }
}

/// The sort key of subscribers.
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

    /// Ignores case.
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

/// A query for figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The sort key.
    pub sort: Sort,
    /// The most subscribers to return.
    pub top: Option<usize>,
    /// Only subscribers whose name contains this text.
    pub subscriber: Option<String>,
    /// Those with nothing to see too.
    pub all: bool,
}

impl Query {
    /// Parses `sort=lag|age|dead|name`, `top=N`, `subscriber=TEXT` and `all=0|1`.
    ///
    /// # Errors
    /// A message with the parameter and its allowed values.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "sort" => {
                    parsed.sort = value
                        .parse()
                        .map_err(|()| format!("sort={value}: must be lag, age, dead or name"))?;
                }
                "top" => {
                    let top = value.parse();
                    parsed.top = Some(top.map_err(|_| format!("top={value}: must be a number"))?);
                }
                "subscriber" => parsed.subscriber = Some(value.into_owned()),
                "all" => {
                    parsed.all = match &*value {
                        "0" => false,
                        "1" => true,
                        _ => return Err(format!("all={value}: must be 0 or 1")),
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown parameter {name}: must be sort, top, subscriber or all"
                    ));
                }
            }
        }
        Ok(parsed)
    }

    /// Selects and sorts. The sums include the subscribers that `top` cuts off.
    #[must_use]
    pub fn apply(&self, figures: &Figures) -> Figures {
        let is_asked = |one: &&Subscriber| {
            let named = self.subscriber.as_ref();
            named.is_none_or(|part| one.name.contains(part)) && (self.all || one.is_notable())
        };
        let subscribers = figures.subscribers.iter().filter(is_asked).cloned();
        let mut asked = Figures {
            subscribers: subscribers.collect(),
            partitions: figures.partitions.clone(),
            events: figures.events.clone(),
            total: figures.total.clone(),
            as_of: figures.as_of.clone(),
            ..*figures
        };
        if self.subscriber.is_some() {
            asked.total = Totals::of(&asked.subscribers);
        }
        if !self.all {
            for one in &mut asked.subscribers {
                one.subscriptions.retain(Subscriber::is_notable);
            }
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

/// The latest figures and the last hour, shared with the HTTP server.
#[derive(Debug, Default)]
pub struct Board {
    latest: Mutex<Option<Arc<Figures>>>,
    history: Mutex<History>,
}

impl Board {
    /// Replaces the figures.
    pub fn put(&self, figures: Figures) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.note(&figures);
        drop(history);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(Arc::new(figures));
    }

    /// The last hour, a point a minute, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Point> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.points().cloned().collect()
    }

    /// The latest figures; `None` if the role does not run or has not read anything yet.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Figures>> {
        self.latest
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
    fn subscribers_with_nothing_to_see_are_shown_when_asked_for() {
        let mut figures = figures();
        figures.subscribers.push(Subscriber {
            name: "quiet".to_owned(),
            ..Subscriber::default()
        });
        let count = |query: &str| {
            let asked = Query::parse(query).unwrap().apply(&figures);
            asked.subscribers.len()
        };
        assert_eq!([count(""), count("all=0"), count("all=1")], [3, 3, 4]);
        assert_eq!([count("all=1&subscriber=q"), count("all=1&top=2")], [1, 2]);
        assert!(Query::parse("all=yes").unwrap_err().contains("0 or 1"));
    }

    #[test]
    fn sums_follow_the_name_and_not_the_limit() {
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
    fn a_wrong_query_is_refused_with_the_allowed_values() {
        assert!(
            Query::parse("sort=size")
                .unwrap_err()
                .contains("lag, age, dead")
        );
        assert!(Query::parse("top=many").unwrap_err().contains("a number"));
        assert!(Query::parse("page=2").unwrap_err().contains("page"));
    }
}
