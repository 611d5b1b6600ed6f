//! Ends the process when a call into the client library hangs.
//!
//! Closing, committing, sending offsets and starting transactions can block forever in librdkafka (issues 453, 5456,
//! 5511), whatever timeout they are given, and no other thread can unblock them. So each such call is registered here,
//! and a watchdog thread checks the oldest.
//!
//! Time without a reachable broker does not count. Whether a broker is reachable is known per client, from probes: one
//! frozen broker, or one client that is cut off, says nothing about the calls of another client.
//!
//! | a client's probes | others' probes | its calls |
//! |---|---|---|
//! | succeed | any | count; from the end of the last outage, if one of `OUTAGE` or more came since their beginning |
//! | fail, for at most `CUT_OFF` | any | do not count for the moment |
//! | fail for longer | all fail | do not count: there is no broker |
//! | fail for longer | one succeeds | count: the client itself is stuck, and a restart helps |
//!
//! A single probe that fails between two that succeed is no outage: it may have asked the frozen broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::clock;

/// A client that has reached no broker for longer, while others have, is stuck.
const CUT_OFF: Duration = Duration::from_secs(60);

/// A client whose last probe is older says nothing: its thread waits.
const RECENT: Duration = Duration::from_secs(20);

/// Two probes in succession have failed.
const OUTAGE: Duration = Duration::from_secs(4);

/// The clients of this process, and their calls in progress.
static CLIENTS: Mutex<Clients> = Mutex::new(Clients {
    links: BTreeMap::new(),
    slots: Vec::new(),
    outage: None,
    last: 0,
});

fn clients() -> MutexGuard<'static, Clients> {
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client as the watchdog knows it, until the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Link(Arc<Id>);

#[derive(Debug)]
struct Id(u64);

impl Drop for Id {
    fn drop(&mut self) {
        clients().links.remove(&self.0);
    }
}

impl Link {
    /// A client of `purpose`, which is the name of its role.
    pub(super) fn new(purpose: &str) -> Self {
        Self(Arc::new(Id(clients().add(purpose))))
    }

    /// Makes a call that may hang, supervised by the watchdog.
    pub(super) fn bounded<T>(&self, what: &'static str, call: impl FnOnce() -> T) -> T {
        let _entry = Entry(clients().begin(self.0.0, what, clock::instant()));
        call()
    }

    /// Notes that the client could not reach any broker.
    pub(super) fn unreachable(&self) {
        clients().probed(self.0.0, false, clock::instant());
    }

    /// Notes that the client has reached a broker.
    pub(super) fn reachable(&self) {
        clients().probed(self.0.0, true, clock::instant());
    }
}

/// A call in progress; ends when dropped.
struct Entry(usize);

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(slot) = clients().slots.get_mut(self.0) {
            *slot = None;
        }
    }
}

/// The reachability of the brokers.
#[derive(Clone, Debug, Default)]
pub struct Brokers {
    /// No client of this process has reached a broker for a while.
    pub away: bool,
    /// Until when no client of this process reached a broker.
    pub outage: Option<Instant>,
    /// Per client: the name of its role, and until when the time does not count for it.
    pub excused: Vec<(Box<str>, Instant)>,
}

impl Brokers {
    /// Until when the time does not count for a role; `None` if all of it does.
    #[must_use]
    pub fn excused(&self, role: &str) -> Option<Instant> {
        let own = self
            .excused
            .iter()
            .filter(|(purpose, _)| **purpose == *role);
        own.map(|(_, until)| *until).chain(self.outage).max()
    }
}

/// The reachability of the brokers at `now`, as probed by the clients of this process every few seconds.
#[must_use]
pub fn brokers(now: Instant) -> Brokers {
    clients().brokers(now)
}

/// Whether a client failed to reach any broker within the last `time`.
pub(super) fn was_unreachable_within(time: Duration) -> bool {
    clients().was_unreachable_within(time, clock::instant())
}

/// Watches until the process ends; calls `give_up` with a message when a call exceeds `bound`.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(bound: Duration, give_up: impl Fn(String) + Send + 'static) -> std::io::Result<()> {
    let every = (bound / 10).min(Duration::from_secs(1));
    let look = move || {
        loop {
            std::thread::sleep(every);
            let found = clients().hanging(clock::instant(), bound);
            if let Some((what, age)) = found {
                give_up(format!(
                    "{what} hangs in the Kafka client for {age:.0?} while brokers are reachable (--hang-deadline {bound:?}); exiting, unfinished work is repeated after the restart"
                ));
            }
        }
    };
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(look)
        .map(drop)
}

/// The result of a client's probes.
#[derive(Debug)]
struct State {
    purpose: Box<str>,
    /// When a probe last succeeded.
    reached: Option<Instant>,
    /// When a probe last failed.
    failed: Option<Instant>,
    /// Since when every probe has failed.
    away: Option<Instant>,
    /// The end of its last outage.
    outage: Option<Instant>,
}

impl State {
    fn probed(&mut self, reached: bool, now: Instant) {
        if reached {
            self.reached = Some(now);
            self.away = None;
            return;
        }
        self.failed = Some(now);
        let since = *self.away.get_or_insert(now);
        if now.saturating_duration_since(since) >= OUTAGE {
            self.outage = Some(now);
        }
    }

    /// Until when the time does not count, from its own probes.
    fn excused(&self, now: Instant) -> Option<Instant> {
        let Some(away) = self.away else {
            return self.outage;
        };
        let is_stuck = now.saturating_duration_since(away) > CUT_OFF;
        self.failed.filter(|_| !is_stuck)
    }
}

/// A call in progress.
struct Call {
    client: u64,
    what: &'static str,
    since: Instant,
}

/// All clients. Pure: the time is an argument.
#[derive(Default)]
struct Clients {
    links: BTreeMap<u64, State>,
    /// Calls in progress, in reusable slots.
    slots: Vec<Option<Call>>,
    /// The end of the last outage of all clients.
    outage: Option<Instant>,
    last: u64,
}

impl Clients {
    fn add(&mut self, purpose: &str) -> u64 {
        self.last += 1;
        let state = State {
            purpose: purpose.into(),
            reached: None,
            failed: None,
            away: None,
            outage: None,
        };
        self.links.insert(self.last, state);
        self.last
    }

    fn begin(&mut self, client: u64, what: &'static str, now: Instant) -> usize {
        let free = self.slots.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[at] = Some(Call {
            client,
            what,
            since: now,
        });
        at
    }

    fn probed(&mut self, client: u64, reached: bool, now: Instant) {
        let Some(state) = self.links.get_mut(&client) else {
            return;
        };
        state.probed(reached, now);
        if self.none_reaches_for(now) >= Some(OUTAGE) {
            self.outage = Some(now);
        }
    }

    /// For how long the probes of every client have failed. A client without a recent one says nothing.
    fn none_reaches_for(&self, now: Instant) -> Option<Duration> {
        let last = |one: &State| one.failed.max(one.reached);
        let recent = |at: Instant| now.saturating_duration_since(at) < RECENT;
        let probed = self
            .links
            .values()
            .filter(|one| last(one).is_some_and(recent));
        let since: Option<Vec<Instant>> = probed.map(|one| one.away).collect();
        let last = since?.into_iter().max()?;
        Some(now.saturating_duration_since(last))
    }

    /// Until when the time does not count for any client.
    fn all_excused(&self, now: Instant) -> Option<Instant> {
        let none_reaches = self.none_reaches_for(now).is_some();
        let failed = self.links.values().filter_map(|one| one.failed).max();
        failed.filter(|_| none_reaches).max(self.outage)
    }

    /// Until when the time does not count for a client.
    fn excused(&self, client: u64, now: Instant) -> Option<Instant> {
        let own = self.links.get(&client).and_then(|one| one.excused(now));
        own.max(self.all_excused(now))
    }

    fn brokers(&self, now: Instant) -> Brokers {
        /// Longer than two probes, so that a briefly busy broker does not count as away.
        const AWAY: Duration = Duration::from_secs(8);
        let links = self.links.iter();
        Brokers {
            away: self.none_reaches_for(now) > Some(AWAY),
            outage: self.all_excused(now),
            excused: links
                .filter_map(|(&id, one)| Some((one.purpose.clone(), self.excused(id, now)?)))
                .collect(),
        }
    }

    fn was_unreachable_within(&self, time: Duration, now: Instant) -> bool {
        let failed = self.links.values().filter_map(|one| one.failed);
        let last = failed.chain(self.outage).max();
        last.is_some_and(|last| now.saturating_duration_since(last) < time)
    }

    /// The longest call over `bound`, with its duration as far as it counts.
    fn hanging(&self, now: Instant, bound: Duration) -> Option<(&'static str, Duration)> {
        let ages = self.slots.iter().flatten().map(|call| {
            let excused = self.excused(call.client, now);
            let from = excused.map_or(call.since, |until| until.max(call.since));
            (call.what, now.saturating_duration_since(from))
        });
        ages.filter(|&(_, age)| age > bound)
            .max_by_key(|&(_, age)| age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    struct Scene {
        clients: Clients,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                clients: Clients::default(),
                now: clock::instant(),
            }
        }

        /// Lets time pass, with a probe of each client every five seconds; `reaches` says for a client and the number
        /// of the probe whether it reaches a broker.
        fn pass(&mut self, seconds: u32, reaches: impl Fn(u64, u32) -> bool) {
            for second in 0..seconds {
                self.now += SECOND;
                if second % 5 == 0 {
                    let ids: Vec<u64> = self.clients.links.keys().copied().collect();
                    for id in ids {
                        self.clients.probed(id, reaches(id, second / 5), self.now);
                    }
                }
            }
        }

        fn hanging(&self) -> Option<&'static str> {
            self.clients.hanging(self.now, BOUND).map(|(what, _)| what)
        }
    }

    #[test]
    fn the_oldest_call_over_the_bound_is_named() {
        let mut scene = Scene::new();
        let client = scene.clients.add("deliver");
        let begin = |scene: &mut Scene, what| scene.clients.begin(client, what, scene.now);
        let first = begin(&mut scene, "a");
        scene.pass(20, |_, _| true);
        begin(&mut scene, "b");
        scene.pass(10, |_, _| true);
        assert_eq!(scene.hanging(), None);
        scene.pass(1, |_, _| true);
        assert_eq!(scene.hanging(), Some("a"));
        scene.clients.slots[first] = None;
        assert_eq!(scene.hanging(), None);
        assert_eq!(begin(&mut scene, "c"), first, "its slot is used again");
        scene.pass(20, |_, _| true);
        assert_eq!(scene.hanging(), Some("b"));
    }

    #[test]
    fn the_time_without_a_broker_does_not_count() {
        let mut scene = Scene::new();
        let one = scene.clients.add("deliver");
        scene.clients.add("fanout");
        scene.clients.begin(one, "a", scene.now);
        scene.pass(600, |_, _| false);
        assert_eq!(scene.hanging(), None);
        assert!(scene.clients.brokers(scene.now).away);
        scene.pass(25, |_, _| true);
        assert_eq!(scene.hanging(), None);
        assert!(!scene.clients.brokers(scene.now).away);
        scene.pass(10, |_, _| true);
        assert_eq!(scene.hanging(), Some("a"));
    }

    #[test]
    fn a_client_that_reaches_no_broker_does_not_mask_the_call_of_another() {
        let mut scene = Scene::new();
        let hangs = scene.clients.add("deliver");
        let cut_off = scene.clients.add("fanout");
        scene.clients.begin(hangs, "a", scene.now);
        scene.pass(32, |id, _| id != cut_off);
        assert_eq!(scene.hanging(), Some("a"));
        let brokers = scene.clients.brokers(scene.now);
        assert!(!brokers.away, "one client that is cut off is no outage");
        assert_eq!(brokers.excused("deliver"), None);
        assert!(brokers.excused("fanout").is_some());
    }

    #[test]
    fn one_frozen_broker_of_three_masks_no_call_of_another_client_and_is_no_outage() {
        let mut scene = Scene::new();
        let hangs = scene.clients.add("deliver");
        let asks_frozen = scene.clients.add("fanout");
        scene.clients.begin(hangs, "a", scene.now);
        scene.clients.begin(asks_frozen, "b", scene.now);
        // Every third probe of one client asks the broker that does not respond.
        let reaches = |id, number| id == hangs || number % 3 != 0;
        scene.pass(32, reaches);
        assert_eq!(scene.hanging(), Some("a"));
        scene.clients.slots[0] = None;
        scene.pass(300, reaches);
        assert!(!scene.clients.brokers(scene.now).away);
    }

    #[test]
    fn a_call_that_hangs_is_found_although_its_own_client_asks_a_frozen_broker_now_and_then() {
        let mut scene = Scene::new();
        let hangs = scene.clients.add("deliver");
        scene.clients.add("fanout");
        scene.clients.begin(hangs, "a", scene.now);
        scene.pass(35, |_, number| number % 3 != 0);
        assert_eq!(scene.hanging(), None, "its last probe failed");
        scene.pass(1, |_, _| true);
        assert_eq!(scene.hanging(), Some("a"));
    }

    #[test]
    fn a_call_of_a_client_that_stays_cut_off_while_others_are_not_is_found() {
        let mut scene = Scene::new();
        let cut_off = scene.clients.add("deliver");
        scene.clients.add("fanout");
        scene.pass(5, |_, _| true);
        scene.clients.begin(cut_off, "a", scene.now);
        scene.pass(55, |id, _| id != cut_off);
        assert_eq!(scene.hanging(), None);
        scene.pass(10, |id, _| id != cut_off);
        assert_eq!(scene.hanging(), Some("a"));
        assert_eq!(scene.clients.brokers(scene.now).excused("deliver"), None);
    }

    #[test]
    fn a_client_that_was_not_probed_or_is_gone_says_nothing() {
        let mut scene = Scene::new();
        let away = scene.clients.add("deliver");
        scene.clients.add("new");
        for _ in 0..3 {
            scene.clients.probed(away, false, scene.now);
            scene.now += SECOND * 5;
        }
        assert!(scene.clients.brokers(scene.now).away);
        scene.clients.links.remove(&away);
        assert!(!scene.clients.brokers(scene.now).away);
        assert!(scene.clients.was_unreachable_within(BOUND, scene.now));
    }
}
