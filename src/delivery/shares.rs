//! Who may have how many of a worker's requests in flight: each host and each subscriber, over all of their lanes.
//!
//! A lane gets a part of the free requests only (`partition::lane`). But a thousand tenants may send to the same host of a
//! software service, and a tenant may have a thousand subscriptions: when these hang, all free requests would be theirs.
//! So a turn of a lane waits while its host or its subscriber has its share:
//!
//! | who | share | alone on a worker |
//! |---|---|---|
//! | host and port | three times as many as are free: [`OF_HOST`] | three quarters |
//! | subscriber | as many as are free: [`OF_SUBSCRIBER`] | a half |
//!
//! It is a part of what is free, so that something is left for the next one, however many hang. A lane that waits keeps its
//! place in the order of those that wait for the same share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use url::Url;

/// So many requests may a host have in flight for each one that is free.
const OF_HOST: usize = 3;
/// The same of a subscriber.
const OF_SUBSCRIBER: usize = 1;

/// The requests in flight of one host or one subscriber.
#[derive(Debug)]
pub(super) struct Share {
    in_flight: AtomicUsize,
    /// How many may be in flight for each one that is free.
    of: usize,
}

impl Share {
    /// How many more it may start when `spare` are free.
    fn room(&self, spare: usize) -> usize {
        // The last free one can be used.
        let most = spare.saturating_mul(self.of) + 1;
        most.saturating_sub(self.in_flight.load(Ordering::Relaxed))
    }
}

/// The shares that the requests of one target count to.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    host: Arc<Share>,
    subscriber: Arc<Share>,
}

impl Shared {
    /// The share that is used up, when `spare` requests are free.
    pub(super) fn full(&self, spare: usize) -> Option<&Arc<Share>> {
        let mut each = [&self.host, &self.subscriber].into_iter();
        each.find(|share| share.room(spare) == 0)
    }

    /// Counts one request, until what is returned is dropped.
    pub(super) fn hold(&self) -> Held {
        for share in [&self.host, &self.subscriber] {
            share.in_flight.fetch_add(1, Ordering::Relaxed);
        }
        Held(self.clone())
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Held(Shared);

impl Drop for Held {
    fn drop(&mut self) {
        for share in [&self.0.host, &self.0.subscriber] {
            share.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The shares of one worker, by name, while a target uses them.
#[derive(Debug, Default)]
pub(super) struct Shares {
    named: Mutex<Named>,
}

#[derive(Debug, Default)]
struct Named {
    hosts: HashMap<Box<str>, Weak<Share>>,
    subscribers: HashMap<Box<str>, Weak<Share>>,
}

impl Shares {
    /// The shares of a URL and a subscriber.
    pub(super) fn of(&self, url: &Url, subscriber: &str) -> Shared {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let port = url.port_or_known_default().unwrap_or_default();
        let host = format!("{}:{port}", url.host_str().unwrap_or_default());
        Shared {
            host: share(&mut named.hosts, &host, OF_HOST),
            subscriber: share(&mut named.subscribers, subscriber, OF_SUBSCRIBER),
        }
    }
}

fn share(named: &mut HashMap<Box<str>, Weak<Share>>, name: &str, of: usize) -> Arc<Share> {
    if let Some(known) = named.get(name).and_then(Weak::upgrade) {
        return known;
    }
    // Only before the map would grow, so that it is seldom.
    if named.len() == named.capacity() {
        named.retain(|_, share| share.strong_count() > 0);
    }
    let new = Arc::new(Share {
        in_flight: AtomicUsize::new(0),
        of,
    });
    named.insert(name.into(), Arc::downgrade(&new));
    new
}

/// Lanes that wait for a share.
#[derive(Debug)]
pub(super) struct Crowded<T>(Vec<(Arc<Share>, VecDeque<T>)>);

impl<T> Default for Crowded<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Crowded<T> {
    /// Lets one wait.
    pub(super) fn wait(&mut self, share: &Arc<Share>, one: T) {
        let mut each = self.0.iter_mut();
        match each.find(|(known, _)| Arc::ptr_eq(known, share)) {
            Some((_, waiting)) => waiting.push_back(one),
            None => self.0.push((Arc::clone(share), VecDeque::from([one]))),
        }
    }

    /// Moves those that there is room for to the end of `ready`, when `spare` requests are free.
    pub(super) fn wake(&mut self, spare: usize, ready: &mut VecDeque<T>) {
        if self.0.is_empty() || spare == 0 {
            return;
        }
        self.0.retain_mut(|(share, waiting)| {
            let room = share.room(spare).min(waiting.len());
            ready.extend(waiting.drain(..room));
            !waiting.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_gets_three_quarters_of_the_requests_and_each_further_one_as_much_of_the_rest() {
        let shares = Shares::default();
        let (mut spare, mut held) = (1000, Vec::new());
        let mut counts = Vec::new();
        for host in 0..4 {
            let before = held.len();
            for tenant in 0..1000 {
                let url = url(&format!("https://h{host}.example/{tenant}"));
                let shared = shares.of(&url, &format!("t{tenant}"));
                if shared.full(spare).is_some() {
                    break;
                }
                held.push(shared.hold());
                spare -= 1;
            }
            counts.push(held.len() - before);
        }
        assert_eq!(counts, [751, 187, 47, 12]);
        assert_eq!(spare, 3, "something is left for the next one");
        drop(held);
        let again = shares.of(&url("https://h0.example/"), "t0");
        assert!(again.full(1).is_none(), "all were given back");
    }

    #[test]
    fn a_subscriber_gets_half_however_many_hosts_it_names() {
        let shares = Shares::default();
        let (mut spare, mut held) = (900, Vec::new());
        for host in 0..900 {
            let shared = shares.of(&url(&format!("https://h{host}.example/")), "evil");
            if shared.full(spare).is_some() {
                break;
            }
            held.push(shared.hold());
            spare -= 1;
        }
        assert!((449..=451).contains(&held.len()), "{}", held.len());
        let other = shares.of(&url("https://good.example/"), "good");
        assert!(other.full(spare).is_none());
    }

    #[test]
    fn the_last_free_request_can_be_used() {
        let shares = Shares::default();
        let shared = shares.of(&url("https://a.example/"), "a");
        assert!(shared.full(1).is_none());
    }

    #[test]
    fn ports_are_hosts_of_their_own_and_default_ports_are_not() {
        let shares = Shares::default();
        let of = |text: &str| shares.of(&url(text), "a").host;
        assert!(Arc::ptr_eq(
            &of("https://a.example/x"),
            &of("https://A.example:443/y")
        ));
        assert!(!Arc::ptr_eq(
            &of("https://a.example/"),
            &of("https://a.example:8443/")
        ));
    }

    #[test]
    fn those_that_wait_come_in_their_order_when_there_is_room() {
        let shares = Shares::default();
        let shared = shares.of(&url("https://a.example/"), "a");
        let (mut crowded, mut ready) = (Crowded::default(), VecDeque::new());
        let held: Vec<Held> = (0..4).map(|_| shared.hold()).collect();
        for lane in 0..3 {
            let full = shared.full(2).expect("4 in flight and 2 free");
            crowded.wait(full, lane);
        }
        crowded.wake(2, &mut ready);
        assert!(ready.is_empty());
        drop(held);
        crowded.wake(2, &mut ready);
        assert_eq!(ready, [0, 1, 2]);
        crowded.wake(2, &mut ready);
        assert_eq!(ready.len(), 3, "each once");
    }

    #[test]
    fn names_that_nobody_uses_are_forgotten() {
        let shares = Shares::default();
        for host in 0..10_000 {
            drop(shares.of(&url(&format!("https://h{host}.example/")), "a"));
        }
        assert!(shares.named.lock().unwrap().hosts.len() < 100);
    }
}
