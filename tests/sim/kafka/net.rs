//! The network between clients and brokers, in virtual time.
//!
//! A request takes a while to arrive, is handled by one broker at one moment, and its response takes a while to return.
//! Either way may be lost: the broker was gone, the connection broke, or nothing comes back until the client gives up. The
//! client cannot tell whether the request took effect. Requests of one task are in order; those of different tasks overtake
//! one another.
//!
//! Chance comes from the seed, or a fate is prescribed for the next request of a kind ([`Net::next`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::log::Ms;
use super::{Node, Reply, Token, Tp};

/// The kinds of requests, as far as faults tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// Topics, coordinators, offsets of partitions, topics' administration.
    Metadata,
    /// Records to append.
    Produce,
    /// Records to read.
    Fetch,
    /// Join, sync, heartbeat, leave.
    Group,
    /// Offsets of a group, committed or read.
    Offsets,
    /// The start of a producer.
    InitProducer,
    /// Partitions, groups and offsets of a transaction.
    Transaction,
    /// The end of a transaction.
    EndTransaction,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is handled, and its response arrives.
    Handled,
    /// The connection breaks before it arrives.
    Lost,
    /// It is handled, and the connection breaks before the response arrives.
    Unanswered,
    /// It arrives this much later, long after the client has given up.
    Late(Duration),
}

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The connection broke, or there is none.
    Broken,
    /// Nothing came in time.
    TimedOut,
}

/// How the network behaves.
#[derive(Clone, Debug)]
pub struct Weather {
    /// The shortest and the longest time of one way.
    pub latency: (Duration, Duration),
    /// How many of 10,000 requests break before they arrive.
    pub lost: u32,
    /// How many of 10,000 are handled and not answered.
    pub unanswered: u32,
    /// How many of 10,000 take up to [`Weather::slowness`] longer.
    pub slow: u32,
    /// See there.
    pub slowness: Duration,
    /// Clients, or all of an instance (`purpose-instance`), that do not reach a broker: requests vanish.
    pub cut: BTreeSet<(Arc<str>, Node)>,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: (Duration::ZERO, Duration::from_millis(1)),
            lost: 0,
            unanswered: 0,
            slow: 0,
            slowness: Duration::from_millis(500),
            cut: BTreeSet::new(),
        }
    }
}

impl Weather {
    fn is_cut(&self, client: &str, node: Node) -> bool {
        self.cut.iter().any(|(who, at)| {
            let rest = client.strip_suffix(&**who);
            *at == node && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
        })
    }
}

/// A machine that runs the tasks of clients: it may freeze or die with all of them.
pub trait Host {
    /// Starts a task on it.
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()>>>);
}

thread_local! {
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

/// Sets the machine of the task that is polled now, and returns the one before.
pub fn enter(host: Option<Arc<dyn Host>>) -> Option<Arc<dyn Host>> {
    HOST.replace(host)
}

/// Starts a client's task on the machine of the task that calls this, if it is on one.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    match HOST.with_borrow(Option::clone) {
        Some(host) => host.spawn(Box::pin(task)),
        None => drop(tokio::spawn(task)),
    }
}

/// Partitions that a reader watches and that have something new.
#[derive(Debug, Default)]
pub struct Watch {
    ready: Mutex<BTreeSet<Tp>>,
    /// Signalled when something is added.
    pub moved: Notify,
}

impl Watch {
    /// Takes what has moved.
    pub fn take(&self) -> BTreeSet<Tp> {
        std::mem::take(&mut *lock(&self.ready))
    }
}

enum Waiter {
    Reply(oneshot::Sender<Reply>),
    Watch(Arc<Watch>),
}

struct Shared {
    cluster: Cluster,
    weather: Weather,
    rng: fastrand::Rng,
    fates: BTreeMap<(Arc<str>, Api), VecDeque<Fate>>,
    waiters: BTreeMap<Token, Waiter>,
    /// Responses that came before anybody waited for them.
    early: BTreeMap<Token, Reply>,
    /// One past the last record that a member has given to its role.
    taken: BTreeMap<Tp, i64>,
    /// Groups of which a member has lost its partitions.
    evicted: BTreeSet<Arc<str>>,
    /// When the last request that is late arrives.
    late: Option<Instant>,
    /// When processes of these replicas died last.
    deaths: BTreeMap<Arc<str>, Instant>,
    /// Clients of which brokers refuse so many batches next.
    refusals: BTreeMap<Arc<str>, u32>,
}

/// The network and the cluster behind it. Clones are the same.
#[derive(Clone)]
pub struct Net {
    shared: Arc<Mutex<Shared>>,
    timers: Arc<Notify>,
    began: Instant,
    epoch: Ms,
}

/// Locks what no task holds while it waits.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    /// A network in front of `cluster`, whose time begins at `epoch`. Must be called in a runtime; a task drives the
    /// cluster's timers until the runtime ends.
    pub fn new(cluster: Cluster, seed: u64, epoch: Ms) -> Self {
        let shared = Shared {
            cluster,
            weather: Weather::default(),
            rng: fastrand::Rng::with_seed(seed),
            fates: BTreeMap::new(),
            waiters: BTreeMap::new(),
            early: BTreeMap::new(),
            taken: BTreeMap::new(),
            evicted: BTreeSet::new(),
            late: None,
            deaths: BTreeMap::new(),
            refusals: BTreeMap::new(),
        };
        let net = Self {
            shared: Arc::new(Mutex::new(shared)),
            timers: Arc::new(Notify::new()),
            began: Instant::now(),
            epoch,
        };
        tokio::spawn(net.clone().drive());
        net
    }

    /// The present time.
    pub fn now(&self) -> Ms {
        let passed = self.began.elapsed().as_millis();
        self.epoch + Ms::try_from(passed).unwrap_or(Ms::MAX - self.epoch)
    }

    async fn drive(self) {
        loop {
            let next = self.with(|cluster, _| cluster.next_timer());
            let wait = next.map_or(Ms::MAX, |at| (at - self.now()).max(0));
            let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0).min(86_400_000));
            tokio::select! {
                biased;
                () = self.timers.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Looks at or changes the cluster directly: for operators, faults and checks, not for clients.
    pub fn with<T>(&self, act: impl FnOnce(&mut Cluster, Ms) -> T) -> T {
        let now = self.now();
        let mut shared = lock(&self.shared);
        shared.cluster.advance(now);
        let before = shared.cluster.next_timer();
        let result = act(&mut shared.cluster, now);
        let finished = shared.cluster.finished();
        for (token, reply) in finished {
            shared.deliver(token, reply);
        }
        if shared.cluster.next_timer() < before || before.is_none() {
            self.timers.notify_one();
        }
        result
    }

    /// Changes the weather.
    pub fn weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut lock(&self.shared).weather);
    }

    /// Nothing is prescribed any more.
    pub fn clear(&self) {
        let mut shared = lock(&self.shared);
        shared.fates.clear();
        shared.refusals.clear();
    }

    /// Brokers refuse the next batches of a client, for a reason of their own.
    pub fn refuse(&self, client: &str, count: u32) {
        lock(&self.shared).refusals.insert(Arc::from(client), count);
    }

    /// Whether the next batch of a client is refused.
    pub fn is_refused(&self, client: &Arc<str>) -> bool {
        let mut shared = lock(&self.shared);
        let left = shared.refusals.get_mut(client).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }

    /// A member has given this record to its role.
    pub fn note_taken(&self, tp: &Tp, offset: i64) {
        let mut shared = lock(&self.shared);
        match shared.taken.get_mut(tp) {
            Some(next) => *next = (*next).max(offset + 1),
            None => drop(shared.taken.insert(tp.clone(), offset + 1)),
        }
    }

    /// One past the last record of a partition that a member has given to its role.
    pub fn taken(&self, tp: &Tp) -> i64 {
        lock(&self.shared).taken.get(tp).copied().unwrap_or(0)
    }

    /// A member of this group has lost its partitions.
    pub fn note_evicted(&self, group: &Arc<str>) {
        lock(&self.shared).evicted.insert(Arc::clone(group));
    }

    /// Whether a member of this group has ever lost its partitions.
    pub fn has_evicted(&self, group: &str) -> bool {
        lock(&self.shared).evicted.contains(group)
    }

    /// Prescribes what becomes of the next request of this kind by `client`, after those prescribed before.
    pub fn next(&self, client: &str, api: Api, fate: Fate) {
        let mut shared = lock(&self.shared);
        let queue = shared.fates.entry((Arc::from(client), api)).or_default();
        queue.push_back(fate);
    }

    /// Sends a request, and waits for its response for at most `timeout`.
    ///
    /// # Errors
    /// [`Lost`]; the request may have been handled nevertheless.
    pub async fn call<T: Send + 'static>(
        &self,
        client: &Arc<str>,
        node: Node,
        api: Api,
        timeout: Duration,
        handle: impl FnOnce(&mut Cluster, Ms) -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let (fate, there, back, cut) = lock(&self.shared).plan(client, node, api);
        if cut {
            tokio::time::sleep(timeout).await;
            return Err(Lost::TimedOut);
        }
        pass(there).await;
        match fate {
            Fate::Handled | Fate::Unanswered => {}
            Fate::Lost => return Err(Lost::Broken),
            Fate::Late(by) => {
                let net = self.clone();
                let (sent, client) = (Instant::now(), Arc::clone(client));
                {
                    let mut shared = lock(&self.shared);
                    shared.late = shared.late.max(Some(sent + by));
                }
                // It is in the network: that the client's machine is cut off or frozen does not matter any more.
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    let is_gone = net.has_just_died(&client, sent);
                    if !is_gone && net.with(|cluster, _| cluster.is_up(node)) {
                        net.with(handle);
                    }
                });
                tokio::time::sleep(timeout).await;
                return Err(Lost::TimedOut);
            }
        }
        let handled = self.with(|cluster, now| cluster.is_up(node).then(|| handle(cluster, now)));
        let handled = handled.ok_or(Lost::Broken)?;
        if fate == Fate::Unanswered {
            return Err(Lost::Broken);
        }
        if there + back > timeout {
            tokio::time::sleep(timeout.saturating_sub(there)).await;
            return Err(Lost::TimedOut);
        }
        pass(back).await;
        if !self.with(|cluster, _| cluster.is_up(node)) {
            return Err(Lost::Broken);
        }
        Ok(handled)
    }

    /// A process of this replica dies.
    pub fn note_death(&self, replica: &Arc<str>) {
        let mut shared = lock(&self.shared);
        shared.deaths.insert(Arc::clone(replica), Instant::now());
    }

    /// Whether the process of this client died after it sent something at `sent`, and its group may not know yet. What
    /// arrives in its name then does not count: nothing can tell it from what a process sends that lives (see
    /// `runtime/recommit.rs`).
    fn has_just_died(&self, client: &str, sent: Instant) -> bool {
        /// Longer than a session and a rebalance.
        const KNOWN: Duration = Duration::from_secs(30);
        let shared = lock(&self.shared);
        let is_its = |(replica, _): &(&Arc<str>, &Instant)| {
            let role = client.strip_suffix(&***replica);
            role.is_some_and(|role| role.ends_with('-'))
        };
        let died = shared.deaths.iter().find(is_its).map(|(_, died)| *died);
        died.is_some_and(|died| died >= sent && died.elapsed() < KNOWN)
    }

    /// When the last request that is late arrives, if any was late.
    pub fn late(&self) -> Option<Instant> {
        lock(&self.shared).late
    }

    /// Waits for a response that comes later, from `node`.
    ///
    /// # Errors
    /// [`Lost::TimedOut`]; [`Lost::Broken`] when the broker was gone by then.
    pub async fn reply(&self, node: Node, token: Token, timeout: Duration) -> Result<Reply, Lost> {
        let (send, receive) = oneshot::channel();
        {
            let mut shared = lock(&self.shared);
            match shared.early.remove(&token) {
                Some(reply) => return Ok(reply),
                None => shared.waiters.insert(token, Waiter::Reply(send)),
            };
        }
        /// How soon a client notices that a connection is gone.
        const NOTICE: Duration = Duration::from_millis(100);
        let until = Instant::now() + timeout;
        let mut receive = receive;
        loop {
            let step = (Instant::now() + NOTICE).min(until);
            match tokio::time::timeout_at(step, &mut receive).await {
                Ok(reply) => return reply.map_err(|_| Lost::Broken),
                Err(_) if !self.with(|cluster, _| cluster.is_up(node)) => return Err(Lost::Broken),
                Err(_) if Instant::now() >= until => return Err(Lost::TimedOut),
                Err(_) => {}
            }
        }
    }

    /// Adds `tp` to `watch` as soon as it has something new; once.
    pub fn watch(&self, tp: &Tp, watch: &Arc<Watch>) {
        let token = self.with(|cluster, _| cluster.watcher());
        lock(&self.shared)
            .waiters
            .insert(token, Waiter::Watch(Arc::clone(watch)));
        self.with(|cluster, _| cluster.watch(tp, token));
    }

    /// The brokers that `client` may ask for anything.
    pub fn bootstrap(&self, client: &Arc<str>) -> Option<Node> {
        let mut shared = lock(&self.shared);
        let running = shared.cluster.running().into_iter();
        let weather = &shared.weather;
        let reached = running.filter(|node| !weather.is_cut(client, *node));
        let reached: Vec<_> = reached.collect();
        let count = reached.len();
        (count > 0).then(|| reached[shared.rng.usize(0..count)])
    }

    /// A random number for a client.
    pub fn random(&self, below: u64) -> u64 {
        lock(&self.shared).rng.u64(0..below.max(1))
    }
}

async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

impl Shared {
    fn deliver(&mut self, token: Token, reply: Reply) {
        match (self.waiters.remove(&token), reply) {
            // A client that has given up does not mind.
            (Some(Waiter::Reply(sender)), reply) => drop(sender.send(reply)),
            (Some(Waiter::Watch(watch)), Reply::Moved(tp)) => {
                lock(&watch.ready).insert(tp);
                watch.moved.notify_one();
            }
            (Some(Waiter::Watch(_)), _) => {}
            (None, reply) => {
                self.early.insert(token, reply);
            }
        }
    }

    /// The fate of a request, how long both ways take, and whether the broker is out of reach.
    fn plan(
        &mut self,
        client: &Arc<str>,
        node: Node,
        api: Api,
    ) -> (Fate, Duration, Duration, bool) {
        let queue = self.fates.get_mut(&(Arc::clone(client), api));
        let prescribed = queue.and_then(VecDeque::pop_front);
        let Weather {
            latency,
            lost,
            unanswered,
            slow,
            slowness,
            ..
        } = self.weather;
        let dice = self.rng.u32(0..10_000);
        let fate = prescribed.unwrap_or(match dice {
            dice if dice < lost => Fate::Lost,
            dice if dice < lost + unanswered => Fate::Unanswered,
            _ => Fate::Handled,
        });
        let mut way = || {
            let (least, most) = (latency.0.as_micros(), latency.1.as_micros());
            let extra = if self.rng.u32(0..10_000) < slow {
                slowness.as_micros()
            } else {
                0
            };
            let micros = self.rng.u128(least..=most.max(least) + extra);
            Duration::from_micros(u64::try_from(micros).unwrap_or(0))
        };
        let (there, back) = (way(), way());
        let cut = self.weather.is_cut(client, node);
        (fate, there, back, cut)
    }
}
