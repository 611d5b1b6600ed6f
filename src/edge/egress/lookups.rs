//! Name lookups by the system's resolver, for all workers of a replica.
//!
//! `getaddrinfo` honours `/etc/hosts`, search domains and the rest of the machine's configuration, as users expect, but
//! it blocks, for up to half a minute when a zone's servers do not respond, and cannot be cancelled. So lookups run on a
//! [`FairPool`], by zone: the zones that respond get theirs whatever the others do. Requests for the same host at the same
//! time share one lookup.
//!
//! Addresses are not kept. A failure is kept for as long as its lookup took, up to [`REMEMBER`]: a host that needs ten
//! seconds to fail occupies a thread for half of the time at most, and a quick failure is not kept at all.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::connect::dns::Name;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower_service::Service;

use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::fair_pool::{FairPool, OVERDUE};

/// The longest time for which a failure is kept.
pub const REMEMBER: Duration = Duration::from_secs(10);
/// A failure that took less time is not kept.
const WORTH_KEEPING: Duration = OVERDUE;
/// Failures to keep; beyond it, those that are over are dropped with each new one.
const FAILURES: usize = 1024;

/// Resolves a host to addresses. It may block.
pub type Resolve = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The system's resolver; clones share threads and failures.
#[derive(Clone)]
pub struct Lookups(Arc<Shared>);

struct Shared {
    pool: FairPool,
    resolve: Box<Resolve>,
    hosts: Mutex<HashMap<Box<str>, Host>>,
}

/// What is known of a host.
enum Host {
    /// A lookup runs or waits for its turn, for these.
    Asked(Vec<oneshot::Sender<Answer>>),
    /// The last lookup failed.
    Failed { failure: Failed, until: Instant },
}

type Answer = Result<Arc<[SocketAddr]>, Failed>;

/// A failed lookup.
#[derive(Clone, Debug, Error)]
#[error("{reason}")]
struct Failed {
    kind: io::ErrorKind,
    reason: Arc<str>,
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        Self::new(failed.kind, failed)
    }
}

impl std::fmt::Debug for Lookups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookups")
    }
}

impl Default for Lookups {
    fn default() -> Self {
        Self::over(Box::new(|host| {
            if failpoint::gets_no_response(host) {
                return Err(io::Error::other("the chaos test's fault"));
            }
            Ok((host, 0).to_socket_addrs()?.collect())
        }))
    }
}

impl Lookups {
    /// Uses another resolver.
    #[must_use]
    pub fn over(resolve: Box<Resolve>) -> Self {
        Self(Arc::new(Shared {
            pool: FairPool::new("lookups"),
            resolve,
            hosts: Mutex::default(),
        }))
    }

    /// The addresses of a host.
    ///
    /// # Errors
    /// That of the resolver, from this lookup or a recent one.
    pub async fn addresses(&self, host: &str) -> io::Result<Arc<[SocketAddr]>> {
        let mut answer = match self.0.ask(host) {
            Asked::Known(failed) => return Err(failed.into()),
            Asked::Wait(answer) => answer,
            Asked::Start(answer) => {
                let (narrow, wide) = zones(host);
                let (shared, own) = (Arc::clone(&self.0), Box::from(host));
                let job = Box::new(move || shared.look_up(own));
                self.0.pool.submit(narrow, wide, job);
                answer
            }
        };
        loop {
            match timeout(OVERDUE, &mut answer).await {
                Ok(Ok(answer)) => return answer.map_err(Into::into),
                Ok(Err(_)) => return Err(io::Error::other("the lookup was dropped")),
                Err(_) => self.0.pool.nudge(),
            }
        }
    }
}

enum Asked {
    /// A recent lookup failed.
    Known(Failed),
    /// Another request's lookup has the answer.
    Wait(oneshot::Receiver<Answer>),
    /// A lookup is needed.
    Start(oneshot::Receiver<Answer>),
}

impl Shared {
    fn hosts(&self) -> MutexGuard<'_, HashMap<Box<str>, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, host: &str) -> Asked {
        let now = clock::instant();
        let mut hosts = self.hosts();
        let (give, given) = oneshot::channel();
        match hosts.get_mut(host) {
            Some(Host::Asked(waiting)) => {
                waiting.retain(|one| !one.is_closed());
                waiting.push(give);
                return Asked::Wait(given);
            }
            Some(Host::Failed { failure, until }) if now < *until => {
                return Asked::Known(failure.clone());
            }
            Some(Host::Failed { .. }) | None => {}
        }
        hosts.insert(host.into(), Host::Asked(vec![give]));
        Asked::Start(given)
    }

    /// Runs a lookup whose turn it is, unless nobody waits for it any more.
    fn look_up(&self, host: Box<str>) {
        if !self.is_wanted(&host) {
            return;
        }
        let began = clock::instant();
        let found = catch_unwind(AssertUnwindSafe(|| (self.resolve)(&host)))
            .unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")));
        let now = clock::instant();
        let answer = found.map(Arc::from).map_err(|error| Failed {
            kind: error.kind(),
            reason: error.to_string().into(),
        });
        for waiting in self.answered(host, &answer, now, now - began) {
            // Its deadline may have passed.
            waiting.send(answer.clone()).ok();
        }
    }

    fn is_wanted(&self, host: &str) -> bool {
        let mut hosts = self.hosts();
        let wanted = match hosts.get(host) {
            Some(Host::Asked(waiting)) => waiting.iter().any(|one| !one.is_closed()),
            Some(Host::Failed { .. }) | None => false,
        };
        if !wanted {
            hosts.remove(host);
        }
        wanted
    }

    /// Keeps what is worth keeping; returns those who wait for the answer.
    fn answered(
        &self,
        host: Box<str>,
        answer: &Answer,
        now: Instant,
        took: Duration,
    ) -> Vec<oneshot::Sender<Answer>> {
        let mut hosts = self.hosts();
        let asked = hosts.remove(&host);
        if let Err(failure) = answer
            && took >= WORTH_KEEPING
        {
            if hosts.len() >= FAILURES {
                hosts.retain(|_, one| match one {
                    Host::Asked(_) => true,
                    Host::Failed { until, .. } => now < *until,
                });
            }
            let failed = Host::Failed {
                failure: failure.clone(),
                until: now + took.min(REMEMBER),
            };
            hosts.insert(host, failed);
        }
        match asked {
            Some(Host::Asked(waiting)) => waiting,
            Some(Host::Failed { .. }) | None => Vec::new(),
        }
    }
}

impl Service<Name> for Lookups {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let lookups = self.clone();
        Box::pin(async move {
            let found = lookups.addresses(name.as_str()).await?;
            let found: Vec<SocketAddr> = found.to_vec();
            Ok(found.into_iter())
        })
    }
}

/// Labels under which countries register domains, such as `co` in `co.uk`.
const SECOND_LEVEL: [&str; 16] = [
    "ac", "co", "com", "edu", "gob", "gov", "id", "ltd", "mil", "ne", "net", "nom", "or", "org",
    "plc", "sch",
];

/// The narrow and the wide zone of a host: its parent domain, and the domain that somebody registered, as far as its
/// labels show. A host is its own zone if it has no more labels than that.
fn zones(host: &str) -> (&str, &str) {
    let name = host.strip_suffix('.').unwrap_or(host);
    let mut dots = name.rmatch_indices('.').map(|(at, _)| at);
    let (Some(last), Some(second)) = (dots.next(), dots.next()) else {
        return (name, name);
    };
    let by_country = name.len() - last == 3
        && SECOND_LEVEL
            .iter()
            .any(|label| name[second + 1..last].eq_ignore_ascii_case(label));
    let wide = if by_country {
        dots.next().map_or(name, |third| &name[third + 1..])
    } else {
        &name[second + 1..]
    };
    if wide.len() == name.len() {
        return (name, name);
    }
    let parent = name.find('.').map_or(name, |first| &name[first + 1..]);
    (parent, wide)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn address() -> SocketAddr {
        "93.184.215.14:0".parse().unwrap()
    }

    /// A resolver whose dead zones do not respond until the sender is dropped.
    struct Stub {
        lookups: Lookups,
        made: Arc<AtomicUsize>,
        hold: Sender<()>,
    }

    fn stub() -> Stub {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let (hold, held) = channel::<()>();
        let held = Mutex::new(held);
        let lookups = Lookups::over(Box::new(move |host| {
            counted.fetch_add(1, Ordering::SeqCst);
            if host.contains("dead") {
                let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.recv().unwrap_or_default();
                return Err(io::Error::other("no server responded"));
            }
            Ok(vec![address()])
        }));
        Stub {
            lookups,
            made,
            hold,
        }
    }

    async fn resolves(lookups: &Lookups, host: &str) {
        let found = timeout(PATIENCE, lookups.addresses(host)).await;
        let found = found.unwrap_or_else(|_| panic!("{host} was not looked up"));
        assert_eq!(*found.unwrap(), [address()]);
    }

    #[tokio::test]
    async fn a_hundred_dead_hosts_of_one_zone_do_not_delay_another_zone() {
        let stub = stub();
        let dead: Vec<_> = (0..100)
            .map(|number| {
                let lookups = stub.lookups.clone();
                let host = format!("h{number}.z{}.dead.example", number % 10);
                tokio::spawn(async move { lookups.addresses(&host).await.map(|_| ()) })
            })
            .collect();
        for number in 0..50 {
            let began = clock::instant();
            resolves(&stub.lookups, &format!("h{number}.well.example.org")).await;
            assert!(clock::instant() - began < PATIENCE / 2, "{number} waited");
        }
        let begun = stub.made.load(Ordering::SeqCst) - 50;
        assert!(begun <= 16, "one zone got {begun} threads");
        drop(stub.hold);
        for one in dead {
            assert!(one.await.unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn dead_hosts_of_a_hundred_zones_do_not_delay_another_zone() {
        let stub = stub();
        for number in 0..100 {
            let lookups = stub.lookups.clone();
            let host = format!("hooks.dead{number}.example");
            tokio::spawn(async move { lookups.addresses(&host).await.map(|_| ()) });
        }
        tokio::task::yield_now().await;
        let began = clock::instant();
        for number in 0..50 {
            resolves(&stub.lookups, &format!("h{number}.well{number}.example")).await;
        }
        assert!(clock::instant() - began < PATIENCE / 2);
        drop(stub.hold);
    }

    #[tokio::test]
    async fn requests_for_one_host_share_a_lookup_and_its_failure() {
        let stub = stub();
        let asked: Vec<_> = (0..20)
            .map(|_| {
                let lookups = stub.lookups.clone();
                tokio::spawn(async move { lookups.addresses("dead.example").await })
            })
            .collect();
        while stub.made.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let began = clock::instant();
        while clock::instant() - began < WORTH_KEEPING {
            tokio::task::yield_now().await;
        }
        drop(stub.hold);
        for one in asked {
            let error = one.await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "no server responded");
        }
        let error = stub.lookups.addresses("dead.example").await.unwrap_err();
        assert_eq!(error.to_string(), "no server responded");
        assert_eq!(stub.made.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_quick_failure_is_not_kept() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let lookups = Lookups::over(Box::new(move |_| {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err(io::Error::other("unknown name")),
                _ => Ok(vec![address()]),
            }
        }));
        assert!(lookups.addresses("a.example").await.is_err());
        resolves(&lookups, "a.example").await;
        resolves(&lookups, "a.example").await;
        assert_eq!(made.load(Ordering::SeqCst), 3, "addresses are not kept");
    }

    #[tokio::test]
    async fn a_lookup_that_nobody_waits_for_is_skipped() {
        let stub = stub();
        let zone: Vec<_> = (0..30)
            .map(|number| format!("h{number}.dead.example"))
            .collect();
        for host in &zone {
            let asked = stub.lookups.addresses(host);
            assert!(timeout(Duration::ZERO, asked).await.is_err());
        }
        drop(stub.hold);
        resolves(&stub.lookups, "well.example").await;
        let deadline = clock::instant() + PATIENCE;
        while !stub.lookups.0.hosts().is_empty() {
            assert!(clock::instant() < deadline, "hosts are never forgotten");
            tokio::task::yield_now().await;
        }
        assert!(stub.made.load(Ordering::SeqCst) <= 5);
    }

    #[tokio::test]
    async fn the_system_resolves_localhost() {
        let found = Lookups::default().addresses("localhost").await.unwrap();
        assert!(found.iter().all(|one| one.ip().is_loopback()), "{found:?}");
    }

    #[test]
    fn a_zone_is_what_somebody_registered() {
        for (host, expected) in [
            ("hooks.example.com", ("example.com", "example.com")),
            ("a.b.example.com", ("b.example.com", "example.com")),
            ("example.com", ("example.com", "example.com")),
            ("example.com.", ("example.com", "example.com")),
            ("shop.co.uk", ("shop.co.uk", "shop.co.uk")),
            ("a.shop.co.uk", ("shop.co.uk", "shop.co.uk")),
            ("a.b.shop.com.au", ("b.shop.com.au", "shop.com.au")),
            ("h.ab.io", ("ab.io", "ab.io")),
            ("localhost", ("localhost", "localhost")),
            (
                "svc.ns.svc.cluster.local",
                ("ns.svc.cluster.local", "cluster.local"),
            ),
            ("", ("", "")),
            (".", ("", "")),
            ("..", (".", ".")),
        ] {
            assert_eq!(zones(host), expected, "{host}");
        }
    }
}
