//! How the subscriptions stand: reads the topics of subscriptions and statuses once a second, on a thread of its own, so
//! that neither delays the figures.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::figures::Subscriber;
use super::watch::{Shown, Watch};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::status_log::{StatusLog, Statuses};
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};
use crate::model::standing::{DISABLERS, Decided, Standing};
use crate::model::subscription::{Change, TopicRecord};
use crate::model::units::EpochMs;

const PURPOSE: &str = "standings";
/// How often the topics are read.
const EVERY: Duration = Duration::from_secs(1);
/// How long a command waits for the first reading.
pub(super) const FIRST: Duration = Duration::from_secs(10);
/// How often a failure is logged.
const REMIND: Duration = Duration::from_secs(60);

/// The subscriptions and statuses at one moment.
#[derive(Debug, Default)]
pub(super) struct Standings {
    /// By id.
    decided: HashMap<Box<str>, Decided>,
    statuses: Statuses,
}

impl Standings {
    fn standing(&self, id: &str, now: EpochMs) -> Standing {
        let status = self.statuses.get(id).map(|status| &**status);
        Standing::new(id, self.decided.get(id), status, now)
    }

    /// How many subscriptions are disabled, by each of those who may.
    pub(super) fn disabled(&self) -> BTreeMap<&'static str, u64> {
        let mut disabled: BTreeMap<_, u64> = DISABLERS.map(|by| (by, 0)).into();
        for by in self.decided.values().filter_map(|one| one.disabled_by) {
            *disabled.entry(by).or_default() += 1;
        }
        disabled
    }

    /// Adds the standing of each subscription and subscriber, and subscribers without a backlog.
    pub(super) fn annotate(&self, subscribers: &mut Vec<Subscriber>, now: EpochMs) {
        let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (id, decided) in &self.decided {
            missing.entry(&decided.subscriber).or_default().push(id);
        }
        for ids in missing.values_mut() {
            ids.sort_unstable();
        }
        for one in subscribers.iter_mut() {
            let ids = missing.remove(&*one.name).unwrap_or_default();
            self.complete(one, &ids, now);
        }
        for (name, ids) in missing {
            let mut one = Subscriber {
                name: name.to_owned(),
                ..Subscriber::default()
            };
            self.complete(&mut one, &ids, now);
            subscribers.push(one);
        }
    }

    fn complete(&self, one: &mut Subscriber, ids: &[&str], now: EpochMs) {
        let known = one.subscriptions.len();
        for id in ids {
            let there = &one.subscriptions[..known];
            if !there.iter().any(|subscription| subscription.name == **id) {
                one.subscriptions.push(Subscriber {
                    name: (*id).to_owned(),
                    ..Subscriber::default()
                });
            }
        }
        one.standing = Standing::default();
        for subscription in &mut one.subscriptions {
            subscription.standing = self.standing(&subscription.name, now);
            one.standing.add(&subscription.standing);
        }
    }
}

/// Starts reading. There is no value before the first reading.
///
/// # Errors
/// [`Failure`] when the thread cannot be started.
pub(super) fn watch(settings: &Arc<Settings>) -> Result<Watch<Arc<Standings>>, Failure> {
    let settings = Arc::clone(settings);
    Watch::start(PURPOSE, move |shown| run(&settings, shown))
}

/// Both topics, read as far as the last call.
struct Topics {
    subscriptions: SubscriptionLog,
    statuses: StatusLog,
}

impl Topics {
    fn open(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            subscriptions: SubscriptionLog::open(settings, PURPOSE)?,
            statuses: StatusLog::open(settings, PURPOSE)?,
        })
    }

    /// What is new; `None` if nothing is.
    fn read(&mut self) -> Result<Option<Standings>, Failure> {
        let mut any = false;
        let mut visit = |_: &TopicRecord<'_>, _: &Change| any = true;
        let go_on = || false;
        self.subscriptions
            .catch_up(Freshness::Visible, &go_on, &mut visit)?;
        any |= self.statuses.catch_up(&go_on)?;
        Ok(any.then(|| self.standings()))
    }

    fn standings(&self) -> Standings {
        let fold = self.subscriptions.fold();
        let decided = fold
            .iter()
            .map(|one| (one.id.as_str().into(), Decided::of(fold, one)));
        Standings {
            decided: decided.collect(),
            statuses: self.statuses.statuses().clone(),
        }
    }
}

fn run(settings: &Settings, shown: &Shown<Arc<Standings>>) {
    let put = |standings| shown.show(Some(Arc::new(standings)));
    let mut topics: Option<Topics> = None;
    let mut logged: Option<Instant> = None;
    loop {
        let read = match &mut topics {
            Some(topics) => topics.read().map(|news| news.map(&put)),
            // The first reading counts also when there is nothing.
            None => Topics::open(settings).and_then(|mut opened| {
                opened.read()?;
                put(opened.standings());
                topics = Some(opened);
                Ok(None)
            }),
        };
        if let Err(failure) = read {
            topics = None;
            let now = clock::instant();
            if logged.is_none_or(|before| now - before >= REMIND) {
                logged = Some(now);
                tracing::warn!("reading how subscriptions stand failed, retrying: {failure}");
            }
        }
        if !shown.goes_on(EVERY) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::standing::Condition;
    use crate::model::subscription::State;

    fn decided(subscriber: &str, state: State) -> Decided {
        Decided {
            subscriber: subscriber.into(),
            state,
            disabled_by: None,
            verification: None,
        }
    }

    #[test]
    fn disabled_subscriptions_are_counted_by_who_disabled_them() {
        let by = |by| Decided {
            disabled_by: by,
            ..decided("acme", State::Disabled)
        };
        let all = [
            Some("hookstream"),
            None,
            Some("hookstream"),
            Some("document"),
        ];
        let each = all.map(by).into_iter().enumerate();
        let standings = Standings {
            decided: each.map(|(id, one)| (id.to_string().into(), one)).collect(),
            statuses: Statuses::new(),
        };
        let counted = [("document", 1), ("hookstream", 2), ("operator", 0)];
        assert_eq!(standings.disabled(), counted.into());
    }

    #[test]
    fn every_subscription_is_there_once_with_its_state_and_a_deleted_one_without() {
        let standings = Standings {
            decided: HashMap::from([
                ("a-orders".into(), decided("acme", State::Active)),
                ("a-bills".into(), decided("acme", State::Paused)),
                ("b".into(), decided("beta", State::Active)),
            ]),
            statuses: Statuses::new(),
        };
        let one = |name: &str, subscriptions| Subscriber {
            name: name.to_owned(),
            subscriptions,
            ..Subscriber::default()
        };
        let mut all = vec![
            one("acme", vec![one("a-orders", vec![])]),
            one("gone", vec![one("g", vec![])]),
        ];
        standings.annotate(&mut all, EpochMs(0));
        let shown: Vec<_> = all
            .iter()
            .map(|one| {
                let inner = one.subscriptions.iter();
                let inner: Vec<_> = inner.map(|one| (&*one.name, one.standing.state)).collect();
                (&*one.name, one.standing.state, inner)
            })
            .collect();
        let (active, paused) = (Some(Condition::Active), Some(Condition::Paused));
        assert_eq!(
            shown,
            [
                (
                    "acme",
                    paused,
                    vec![("a-orders", active), ("a-bills", paused)]
                ),
                ("gone", None, vec![("g", None)]),
                ("beta", active, vec![("b", active)]),
            ]
        );
        assert!(
            all[0].is_notable(),
            "a paused one is visible with nothing pending"
        );
        assert!(!all[2].is_notable());
    }
}
