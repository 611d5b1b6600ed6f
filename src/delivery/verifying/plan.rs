//! Which endpoint is asked for consent when: a plan over the subscriptions that are pending. Pure.
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | endpoints that are asked at once | [`AT_ONCE`] | they wait |
//! | those of one subscriber | [`OF_SUBSCRIBER`] | they wait, and delay no other subscriber |
//! | tries of one endpoint | [`retry_delay`] between them | |
//!
//! A subscription that was applied, resumed or probed since the last try is asked at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use compact_str::CompactString;

use crate::model::subscription::Subscription;
use crate::model::subscription::verification::{Pending, retry_delay};
use crate::model::units::EpochMs;

/// So many endpoints are asked at once.
const AT_ONCE: usize = 64;
/// So many of them are of one subscriber.
const OF_SUBSCRIBER: usize = 4;
/// After this time an endpoint that consented is asked again, if its subscription is still pending: the record was lost.
const LOST: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Entry {
    subscription: Arc<Subscription>,
    failures: u32,
    next: EpochMs,
}

/// The plan.
#[derive(Debug, Default)]
pub(super) struct Plan {
    all: BTreeMap<CompactString, Entry>,
    /// By the time of the next try.
    queue: BTreeSet<(EpochMs, CompactString)>,
    /// The ids that are being asked.
    running: BTreeSet<CompactString>,
    /// How many of them each subscriber has.
    of_subscriber: HashMap<CompactString, usize>,
}

impl Plan {
    /// These are pending now, and no others.
    pub(super) fn set(&mut self, pending: Vec<Pending>, now: EpochMs) {
        let mut before = std::mem::take(&mut self.all);
        self.queue.clear();
        for Pending { subscription, last } in pending {
            let entry = match before.remove(&subscription.id) {
                Some(known) if is_same(&known.subscription, &subscription) => known,
                Some(_) => Entry::new(subscription, 0, now),
                None => {
                    let known = last.and_then(|last| last.next_try(&subscription));
                    let (failures, next) = known.unwrap_or((0, now));
                    // A clock that was ahead must not delay it for longer than that.
                    let next = next.min(now + retry_delay(failures));
                    Entry::new(subscription, failures, next)
                }
            };
            self.insert(entry);
        }
    }

    fn insert(&mut self, entry: Entry) {
        let id = entry.subscription.id.clone();
        self.queue.insert((entry.next, id.clone()));
        self.all.insert(id, entry);
    }

    /// The subscriptions whose endpoints are to be asked now. Each is running until [`Plan::ended`].
    pub(super) fn due(&mut self, now: EpochMs) -> Vec<Arc<Subscription>> {
        let mut due = Vec::new();
        let in_time = self.queue.iter().take_while(|(next, _)| *next <= now);
        for (_, id) in in_time {
            if self.running.len() >= AT_ONCE {
                break;
            }
            let Some(entry) = self.all.get(id) else {
                continue;
            };
            let subscriber = &entry.subscription.subscriber;
            let count = self.of_subscriber.get(subscriber).copied().unwrap_or(0);
            if count < OF_SUBSCRIBER && self.running.insert(id.clone()) {
                self.of_subscriber.insert(subscriber.clone(), count + 1);
                due.push(Arc::clone(&entry.subscription));
            }
        }
        due
    }

    /// When the next endpoint is to be asked that is not being asked; in the past if it waits for another to end.
    pub(super) fn next(&self) -> Option<EpochMs> {
        let mut waiting = self.queue.iter();
        let next = waiting.find(|(_, id)| !self.running.contains(id));
        next.map(|(next, _)| *next)
    }

    /// A try has ended. Returns how many in a row have failed.
    pub(super) fn ended(&mut self, asked: &Subscription, consents: bool, now: EpochMs) -> u32 {
        self.running.remove(&asked.id);
        if let Some(count) = self.of_subscriber.get_mut(&asked.subscriber) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_subscriber.remove(&asked.subscriber);
            }
        }
        let Some(entry) = self.all.get_mut(&asked.id) else {
            return u32::from(!consents);
        };
        if !is_same(&entry.subscription, asked) {
            // It has changed meanwhile, and is asked again.
            return u32::from(!consents);
        }
        let before = (entry.next, asked.id.clone());
        entry.failures = if consents { 0 } else { entry.failures + 1 };
        entry.next = now
            + if consents {
                LOST
            } else {
                retry_delay(entry.failures)
            };
        let after = (entry.next, asked.id.clone());
        let failures = entry.failures;
        self.queue.remove(&before);
        self.queue.insert(after);
        failures
    }
}

impl Entry {
    fn new(subscription: Arc<Subscription>, failures: u32, next: EpochMs) -> Self {
        Self {
            subscription,
            failures,
            next,
        }
    }
}

/// Whether nothing was decided between the two that is a reason to ask at once.
fn is_same(one: &Subscription, other: &Subscription) -> bool {
    one.source.version() == other.source.version() && one.url == other.url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::subscription::verification::{Tested, Verification};
    use crate::model::subscription::{Version, parse};

    fn pending(id: &str, subscriber: &str, version: &str) -> Pending {
        let json = format!(
            r#"{{"id":"{id}","subscriber":"{subscriber}","url":"https://a.example/","events":["**"]}}"#
        );
        let mut subscription = parse(None, json.as_bytes()).unwrap();
        subscription.source.applied = Version::of_applied(version.as_bytes(), None);
        Pending {
            subscription: Arc::new(subscription),
            last: None,
        }
    }

    fn ids(due: &[Arc<Subscription>]) -> Vec<&str> {
        due.iter().map(|one| &*one.id).collect()
    }

    #[test]
    fn an_endpoint_that_refuses_is_asked_more_and_more_rarely_and_at_once_after_a_change() {
        let mut plan = Plan::default();
        plan.set(vec![pending("a", "a", "1")], EpochMs(0));
        let due = plan.due(EpochMs(0));
        assert_eq!(ids(&due), ["a"]);
        assert!(plan.due(EpochMs(0)).is_empty(), "it is being asked");
        assert_eq!(plan.next(), None);
        assert_eq!(plan.ended(&due[0], false, EpochMs(1_000)), 1);
        assert_eq!(plan.next(), Some(EpochMs(6_000)));
        // The record of the refusal, and changes of others.
        plan.set(vec![pending("a", "a", "1")], EpochMs(1_500));
        assert!(plan.due(EpochMs(5_999)).is_empty());
        let due = plan.due(EpochMs(6_000));
        assert_eq!(plan.ended(&due[0], false, EpochMs(6_000)), 2);
        assert_eq!(plan.next(), Some(EpochMs(16_000)));
        plan.set(vec![pending("a", "a", "2")], EpochMs(7_000));
        assert_eq!(ids(&plan.due(EpochMs(7_000))), ["a"]);
    }

    #[test]
    fn one_that_changes_while_it_is_asked_is_asked_again() {
        let mut plan = Plan::default();
        plan.set(vec![pending("a", "a", "1")], EpochMs(0));
        let asked = plan.due(EpochMs(0));
        plan.set(vec![pending("a", "a", "2")], EpochMs(10));
        assert!(
            plan.due(EpochMs(10)).is_empty(),
            "not twice at the same time"
        );
        assert_eq!(plan.ended(&asked[0], false, EpochMs(20)), 1);
        assert_eq!(ids(&plan.due(EpochMs(20))), ["a"]);
    }

    #[test]
    fn one_whose_consent_is_not_seen_is_asked_again_later() {
        let mut plan = Plan::default();
        plan.set(vec![pending("a", "a", "1")], EpochMs(0));
        let asked = plan.due(EpochMs(0));
        assert_eq!(plan.ended(&asked[0], true, EpochMs(0)), 0);
        plan.set(vec![pending("a", "a", "1")], EpochMs(100));
        assert!(plan.due(EpochMs(29_999)).is_empty());
        assert_eq!(ids(&plan.due(EpochMs(30_000))), ["a"]);
        plan.set(Vec::new(), EpochMs(30_001));
        assert_eq!(plan.next(), None, "it is active");
    }

    #[test]
    fn a_new_owner_continues_where_the_last_one_stopped() {
        let refused = |failures, at| {
            let mut one = pending("a", "a", "1");
            let reason = "status 404".into();
            let tested = Tested::Refused { reason, failures };
            one.last = Some(Verification::new(&one.subscription, tested, EpochMs(at)));
            one
        };
        let mut plan = Plan::default();
        plan.set(vec![refused(3, 1_000)], EpochMs(2_000));
        assert_eq!(plan.next(), Some(EpochMs(21_000)));
        let due = plan.due(EpochMs(21_000));
        assert_eq!(plan.ended(&due[0], false, EpochMs(21_000)), 4);
        let mut plan = Plan::default();
        plan.set(vec![refused(3, 9_000_000)], EpochMs(2_000));
        assert_eq!(plan.next(), Some(EpochMs(22_000)), "its clock was ahead");
    }

    #[test]
    fn a_subscriber_whose_endpoints_hang_delays_no_other() {
        let mut plan = Plan::default();
        let mut all: Vec<Pending> = (0..200)
            .map(|number| pending(&format!("a-{number}"), "a", "1"))
            .collect();
        all.push(pending("z", "z", "1"));
        plan.set(all, EpochMs(0));
        let due = plan.due(EpochMs(0));
        assert_eq!(due.len(), OF_SUBSCRIBER + 1);
        assert!(due.iter().any(|one| &*one.id == "z"));
        let first = due.iter().find(|one| &*one.subscriber == "a").unwrap();
        plan.ended(first, false, EpochMs(1));
        assert_eq!(plan.due(EpochMs(1)).len(), 1, "the next of its own");
        // Of many subscribers, a limit holds for all.
        let many = (0..200).map(|number| format!("s-{number}"));
        let many = many.map(|id| pending(&id, &id, "1")).collect();
        let mut plan = Plan::default();
        plan.set(many, EpochMs(0));
        assert_eq!(plan.due(EpochMs(0)).len(), AT_ONCE);
    }
}
