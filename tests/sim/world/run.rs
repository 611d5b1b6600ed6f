//! Plays a plan: the cluster, the replicas, the traffic, the faults, and the wait for everything to be settled.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hookstream::config::{Guarantee, Layers, Machine as Host, Settings, Source};
use hookstream::edge::clock;
use hookstream::edge::port::records::{Headers as _, Record};
use hookstream::edge::port::task::KeepWaiting;
use hookstream::edge::port::{Producer as _, ProducerKind};
use hookstream::lag::figures::Figures;
use hookstream::model::subscription::APPLIED;
use hookstream::model::units::{EpochMs, Offset as PlaceOffset, Position};
use hookstream::model::window::{Format, Place, Window};
use tokio::time::{sleep, sleep_until};

use super::check::{Checker, control_latencies};
use super::endpoints::Endpoints;
use super::history::{EPOCH, History, What};
use super::lag::{self, observe};
use super::plan::{Act, Event, MOVED, MOVER, Plan, Roles};
use super::replay::replay;
use super::replica::Replica;
use crate::kafka::Tp;
use crate::kafka::cluster::{
    Cluster, Kind, Membership, Offset, Settings as ClusterSettings, TopicConfig,
};
use crate::kafka::log::Ms;
use crate::kafka::net::{Api, Fate, Net, Weather};
use crate::kafka::planted;
use crate::kafka::port::SimHeaders;
use crate::kafka::port::member::ELSEWHERE;
use crate::kafka::port::producer::SimProducer;

/// When faults have ended, everything is delivered or dead within this virtual time.
pub const SETTLED_WITHIN: Duration = Duration::from_secs(600);
/// What is published after all faults is delivered within this virtual time.
pub const WAVE_WITHIN: Duration = Duration::from_secs(60);
/// A replay ends within this virtual time.
const REPLAY_WITHIN: Duration = Duration::from_secs(60);
/// Within this virtual time after a late commit, a member has committed its positions again, even if another of its requests
/// is late too.
const COMMITTED_AGAIN: Duration = Duration::from_secs(15);
/// All processes have heard of a change of a subscription within this virtual time.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// The same where a request may wait in vain, which is given up after 12 s (`socket.timeout.ms`).
const HEARD_WITHIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the invariants are checked.
const LOOK: Duration = Duration::from_millis(500);

/// How a run ended.
pub struct Outcome {
    pub violations: Vec<String>,
    pub history: History,
    /// Virtual time, ms.
    pub took: Ms,
    /// Of the control group, ms, in order.
    pub latencies: Vec<Ms>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic in a task of a simulated process is a violation.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.with_borrow_mut(|all| all.push(panic.to_string()));
    }));
}

/// Plays a plan in virtual time.
pub fn play(plan: &Plan) -> Outcome {
    PANICS.take();
    planted::begin();
    fastrand::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let mut outcome = local.block_on(&runtime, Box::pin(world(plan)));
    drop(local);
    outcome.violations.extend(PANICS.take());
    outcome
}

fn settings(plan: &Plan) -> Settings {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "simulated:1");
    layers.give("tiers", Source::Flag, plan.tiers);
    layers.give("drain-deadline", Source::Flag, "5s");
    // With deferral, which is the default, and without.
    let format = if plan.seed.is_multiple_of(2) {
        "4"
    } else {
        "3"
    };
    layers.give("window-format", Source::Flag, format);
    let machine = Host {
        host_name: "replica".to_owned(),
        cores: 2,
    };
    Settings::check(&layers, &machine).unwrap()
}

fn create_topics(cluster: &mut Cluster, settings: &Settings, plan: &Plan) -> Vec<(Arc<str>, i32)> {
    let topics = &settings.topics;
    let base = |partitions| TopicConfig {
        partitions,
        min_in_sync: 2,
        retention: None,
        ..TopicConfig::default()
    };
    let compacted = TopicConfig {
        compact: true,
        delete: false,
        ..base(2)
    };
    let mut all = vec![
        (topics.events[0].clone(), base(plan.event_partitions)),
        (topics.subscriptions(), compacted.clone()),
        (topics.status(), compacted),
        (topics.notices(), base(1)),
        (topics.commands(), base(plan.partitions)),
        (topics.dead_letters(), base(plan.partitions)),
        (topics.invalid_events(), base(1)),
    ];
    let tier = TopicConfig {
        append_time: true,
        ..base(plan.partitions)
    };
    all.extend(
        settings
            .retry_topics()
            .into_iter()
            .map(|topic| (topic, tier.clone())),
    );
    let mut created = Vec::new();
    for (name, config) in all {
        created.push((Arc::from(name.as_str()), config.partitions));
        cluster.create_topic(&name, config).unwrap();
    }
    created
}

/// Delivery's positions as a mirror copies them, with metadata of the other cluster: every second command is done there.
fn copy_positions(cluster: &mut Cluster, settings: &Settings, plan: &Plan) {
    let group: Arc<str> = Arc::from(format!("{}deliver", settings.group_prefix));
    let topic = settings.topics.commands();
    let each = (0..plan.partitions).map(|partition| {
        let mut window = Window::new(Position(0));
        for offset in 0..16 {
            window.take(PlaceOffset(offset));
        }
        for offset in (1..16).step_by(2) {
            window.finish(PlaceOffset(offset));
        }
        let snapshot = window.snapshot(Place::new(ELSEWHERE, &topic, partition), Format::V2);
        Offset {
            tp: Tp {
                topic: Arc::from(topic.as_str()),
                partition,
            },
            position: snapshot.position.0,
            metadata: Arc::from(snapshot.metadata),
        }
    });
    let offsets: Vec<_> = each.collect();
    let node = cluster.coordinator(Kind::Group, &group).unwrap();
    let nobody = Membership {
        group,
        member: Arc::from(""),
        generation: -1,
    };
    cluster.commit(EPOCH, node, &nobody, &offsets).unwrap();
}

/// Whoever writes from outside: publishers and operators.
struct Writer {
    producer: SimProducer,
}

impl Writer {
    async fn new(net: &Net, settings: &Settings, purpose: &'static str) -> Self {
        let settings = Settings {
            guarantee: Guarantee::AtLeastOnce,
            instance: "outside".to_owned(),
            ..settings.clone()
        };
        let keep_waiting: KeepWaiting = Arc::new(|| true);
        let kind = ProducerKind::Writer;
        let opened = SimProducer::open(net, &settings, &keep_waiting, purpose, kind);
        Self {
            producer: opened.await.unwrap(),
        }
    }

    /// Writes until it is acknowledged; operators try again, publishers do not (the same event twice would be two).
    async fn write(
        &mut self,
        topic: &str,
        key: &str,
        value: Option<&[u8]>,
        applied: Option<&str>,
        again: bool,
    ) {
        loop {
            let mut headers = SimHeaders::with_capacity(1);
            if let Some(applied) = applied {
                headers = headers.and(APPLIED, Some(applied.as_bytes()));
            }
            let record = Record {
                topic,
                partition: None,
                key: Some(key.as_bytes()),
                value,
                headers,
                tag: 0,
            };
            let sent = self.producer.send(record).await;
            let done = match sent {
                Ok(()) => self.producer.acknowledged().await,
                Err(error) => Err(error),
            };
            if done.is_ok() {
                return;
            }
            self.producer.renew().await.unwrap();
            if !again {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

struct World {
    net: Net,
    settings: Settings,
    endpoints: Endpoints,
    plan: Plan,
    topics: Vec<(Arc<str>, i32)>,
    replicas: RefCell<Vec<Replica>>,
    checker: RefCell<Checker>,
    /// When each event was published, ms since the beginning.
    published: RefCell<BTreeMap<String, Ms>>,
    /// Subscriptions that exist.
    existing: RefCell<BTreeSet<usize>>,
    /// Subscriptions that were moved.
    moved: RefCell<BTreeSet<usize>>,
    /// By subscription: which secret is its present one, and whether the one before is still in use.
    secrets: RefCell<BTreeMap<usize, (u8, bool)>>,
    publisher: tokio::sync::Mutex<Writer>,
    operator: tokio::sync::Mutex<Writer>,
    /// Faults are over.
    calm: std::cell::Cell<bool>,
    /// The last figures of who watches the backlog.
    figures: lag::Latest,
}

async fn world(plan: &Plan) -> Outcome {
    clock::simulated::begin(EpochMs(EPOCH));
    let settings = settings(plan);
    let mut cluster = Cluster::new(ClusterSettings::default(), plan.seed, EPOCH);
    let topics = create_topics(&mut cluster, &settings, plan);
    if plan.mirrored {
        copy_positions(&mut cluster, &settings, plan);
    }
    let net = Net::new(cluster, plan.seed ^ 0x0071, EPOCH);
    let endpoints = Endpoints::new(&net, &plan.endpoints, plan.seed ^ 0xe27d);
    let replicas = plan.replicas.iter().enumerate().map(|(number, roles)| {
        Replica::new(
            &net,
            &endpoints,
            &settings,
            format!("replica-{number}"),
            *roles,
        )
    });
    let world = Rc::new(World {
        replicas: RefCell::new(replicas.collect()),
        checker: RefCell::new(Checker::new(&net, &settings, plan)),
        publisher: tokio::sync::Mutex::new(Writer::new(&net, &settings, "publisher").await),
        operator: tokio::sync::Mutex::new(Writer::new(&net, &settings, "operator").await),
        net,
        settings,
        endpoints,
        plan: plan.clone(),
        topics,
        published: RefCell::default(),
        existing: RefCell::default(),
        moved: RefCell::default(),
        secrets: RefCell::default(),
        calm: std::cell::Cell::new(false),
        figures: lag::Latest::default(),
    });
    for sub in 0..plan.subs.len() {
        world.apply(sub, false).await;
    }
    for replica in world.replicas.borrow_mut().iter_mut() {
        replica.start();
    }
    let supervisor = tokio::task::spawn_local(Rc::clone(&world).supervise());
    let watcher = tokio::task::spawn_local(Rc::clone(&world).watch());
    let observer = plan
        .observed
        .then(|| tokio::task::spawn_local(Rc::clone(&world).observe()));
    let began = tokio::time::Instant::now();
    for (at, act) in &plan.acts {
        let since = world.net.now() - EPOCH;
        let wait = u64::try_from(at - since).unwrap_or(0);
        sleep(Duration::from_millis(wait)).await;
        Rc::clone(&world).act(act);
    }
    let rest = u64::try_from(plan.quiet).unwrap_or(0);
    sleep_until(began + Duration::from_millis(rest)).await;
    world.settle().await;
    supervisor.abort();
    watcher.abort();
    if let Some(observer) = observer {
        observer.abort();
    }
    let took = world.net.now() - EPOCH;
    let history = world.endpoints.history();
    let latencies = control_latencies(&history, &world.published.borrow());
    let violations = std::mem::take(&mut world.checker.borrow_mut().violations);
    Outcome {
        violations,
        history,
        took,
        latencies,
    }
}

fn ms(ms: Ms) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// A secret of a subscription.
fn secret(sub: usize, number: u8) -> String {
    let mut key = [b's'; 32];
    (key[0], key[1]) = (u8::try_from(sub).unwrap_or(u8::MAX), number);
    format!("whsec_{}", STANDARD.encode(key))
}

impl World {
    fn note(&self, what: String) {
        self.endpoints.note(What::Plan(what));
    }

    fn violated(&self, what: String) {
        let at = self.net.now() - EPOCH;
        let line = format!("{at} ms: {what}");
        self.checker.borrow_mut().violations.push(line);
    }

    /// Starts again what has died or failed.
    async fn supervise(self: Rc<Self>) {
        loop {
            sleep(Duration::from_secs(1)).await;
            let mut replicas = self.replicas.borrow_mut();
            for replica in replicas.iter_mut() {
                // A process that ends by itself is started again.
                if replica.has_ended() && !replica.gone && replica.is_stopping() {
                    replica.kill();
                    replica.start();
                }
            }
        }
    }

    async fn watch(self: Rc<Self>) {
        loop {
            sleep(LOOK).await;
            self.checker.borrow_mut().look();
        }
    }

    async fn observe(self: Rc<Self>) {
        let (net, settings) = (self.net.clone(), self.settings.clone());
        let latest = Rc::clone(&self.figures);
        let check = |figures: &Figures| self.checker.borrow_mut().bounds(figures);
        observe(net, settings, check, latest).await;
    }

    /// When everything is settled, soon nothing is pending in the figures, and what is dead is.
    async fn figures_settle(&self) {
        const WITHIN: Duration = Duration::from_secs(60);
        let since = self.net.now();
        let until = tokio::time::Instant::now() + WITHIN;
        let mut wrong = "there are no figures".to_owned();
        while tokio::time::Instant::now() < until {
            sleep(Duration::from_millis(500)).await;
            let figures = self.figures.borrow().clone();
            let is_new = |figures: &Figures| figures.as_of_seconds * 1000.0 >= since as f64;
            let Some(figures) = figures.filter(is_new) else {
                continue;
            };
            match self.checker.borrow().settled(&figures) {
                Ok(()) => return,
                Err(what) => wrong = what,
            }
        }
        self.violated(format!(
            "Lag: {WITHIN:?} after everything is settled, {wrong}"
        ));
    }

    async fn apply(&self, sub: usize, paused: bool) {
        let mut operator = self.operator.lock().await;
        self.apply_by(&mut operator, sub, paused).await;
    }

    /// What holds by then is what an operator applies, however long the one before had to wait.
    async fn apply_by(&self, operator: &mut Writer, sub: usize, paused: bool) {
        let it = &self.plan.subs[sub];
        let schedule: Vec<_> = it.schedule.iter().map(|ms| format!("{ms}ms")).collect();
        let moved = self.moved.borrow().contains(&sub);
        let (subscriber, host) = match moved {
            // Whoever does not notice that it is another's behaves as if it were not.
            true if planted::is("subscription-moved") => (&*it.subscriber, MOVED),
            true => (MOVER, MOVED),
            false => (&*it.subscriber, &*it.host),
        };
        let (present, both) = self.secrets.borrow().get(&sub).copied().unwrap_or_default();
        let mut secrets = vec![secret(sub, present)];
        if both {
            secrets.push(secret(sub, present - 1));
        }
        self.endpoints.learn(host, &secrets[0]);
        if planted::is("stale-secret") {
            secrets = vec![secret(sub, 0)];
        }
        let mut value = serde_json::json!({
            "id": it.id,
            "subscriber": subscriber,
            "events": [it.events],
            "url": format!("https://{host}/in"),
            "secrets": secrets,
            "retry_schedule": schedule,
            "timeout": format!("{}ms", it.timeout),
            "max_in_flight": it.max_in_flight,
            "order": match (it.ordered, it.strict) {
                (_, true) => "strict",
                (true, false) => "per_subject",
                (false, false) => "none",
            },
            "state": if paused { "paused" } else { "active" },
        });
        if let Some(rate) = it.rate {
            value["rate_limit"] = serde_json::json!({"per_second": rate, "burst": rate});
        }
        let topic = self.settings.topics.subscriptions();
        let value = value.to_string();
        // Each one is distinct from all earlier ones, as by `hookstream subscriptions apply`.
        let applied = format!("{}-{:08x}", self.net.now(), fastrand::u32(..));
        operator
            .write(
                &topic,
                &it.id,
                Some(value.as_bytes()),
                Some(&applied)
                    .filter(|_| !planted::is("stale-disable"))
                    .map(|x| &**x),
                true,
            )
            .await;
        self.existing.borrow_mut().insert(sub);
    }

    async fn publish(&self, events: Vec<Event>) {
        let topic = self.settings.topics.events[0].clone();
        let mut publisher = self.publisher.lock().await;
        for event in events {
            let value = serde_json::json!({
                "id": event.id, "type": event.kind, "time": "2027-01-15T08:00:00Z",
                "subject": event.subject, "data": {"event": event.id},
            });
            let value = Bytes::from(value.to_string());
            let now = self.net.now() - EPOCH;
            self.published.borrow_mut().insert(event.id.clone(), now);
            publisher
                .write(&topic, &event.subject, Some(&value), None, false)
                .await;
        }
    }

    fn replica(&self, number: usize, act: impl FnOnce(&mut Replica)) {
        let mut replicas = self.replicas.borrow_mut();
        let count = replicas.len();
        act(&mut replicas[number % count]);
    }

    /// Does what the plan wants, and lets it end in the background.
    fn act(self: Rc<Self>, act: &Act) {
        let act = act.clone();
        if act.is_fault() {
            self.note(format!("{act:?}"));
        }
        tokio::task::spawn_local(async move { self.perform(act).await });
    }

    async fn perform(&self, act: Act) {
        match act {
            Act::Publish(events) => {
                self.note(format!("{} events", events.len()));
                self.publish(events).await;
            }
            Act::Apply { sub, paused } => {
                let what = if paused { "paused" } else { "active" };
                if self.existing.borrow().contains(&sub) {
                    self.note(format!("{} applied, {what}", self.plan.subs[sub].id));
                    self.apply(sub, paused).await;
                }
            }
            Act::Delete(sub) => {
                let id = &self.plan.subs[sub].id;
                self.note(format!("{id} deleted"));
                self.existing.borrow_mut().remove(&sub);
                let topic = self.settings.topics.subscriptions();
                let mut operator = self.operator.lock().await;
                operator.write(&topic, id, None, None, true).await;
            }
            Act::Move(sub) => {
                let id = &self.plan.subs[sub].id;
                self.note(format!("{id} moves to {MOVER}"));
                let topic = self.settings.topics.subscriptions();
                let mut operator = self.operator.lock().await;
                operator.write(&topic, id, None, None, true).await;
                self.moved.borrow_mut().insert(sub);
                self.apply_by(&mut operator, sub, false).await;
            }
            Act::Rotate(sub) => {
                let listed = self.existing.borrow().contains(&sub);
                if listed {
                    self.rotate(sub).await;
                }
            }
            Act::Replay(killed) => {
                let time = killed.map_or(REPLAY_WITHIN, ms);
                self.replay(time).await;
            }
            Act::Gap(partition, time) => {
                let topic: Arc<str> = Arc::from(self.settings.topics.commands());
                let partition = partition % self.plan.partitions;
                self.delete_unread(&Tp { topic, partition }, ms(time)).await;
            }
            Act::Kill(at, time) => {
                self.replica(at, Replica::kill);
                sleep(ms(time)).await;
                self.replica(at, Replica::start);
            }
            Act::Freeze(at, time) => {
                self.replica(at, |replica| replica.freeze(true));
                sleep(ms(time)).await;
                self.replica(at, |replica| replica.freeze(false));
            }
            Act::Restart(at) => self.restart(at).await,
            Act::Roll => {
                let count = self.replicas.borrow().len();
                for at in 0..count {
                    self.restart(at).await;
                }
            }
            Act::ScaleUp(roles) => {
                let mut replicas = self.replicas.borrow_mut();
                let name = format!("replica-{}", replicas.len());
                let mut more =
                    Replica::new(&self.net, &self.endpoints, &self.settings, name, roles);
                more.start();
                replicas.push(more);
            }
            Act::ScaleDown(at) => self.scale_down(at).await,
            Act::Cut(at, node, time) => {
                let mut who: Arc<str> = Arc::from("");
                self.replica(at, |replica| who = Arc::clone(&replica.name));
                let cut = (who, node);
                self.net.weather(|weather| {
                    weather.cut.insert(cut.clone());
                });
                sleep(ms(time)).await;
                self.net.weather(|weather| {
                    weather.cut.remove(&cut);
                });
            }
            Act::CutEgress(at, time) => {
                let mut who: Arc<str> = Arc::from("");
                self.replica(at, |replica| who = Arc::clone(&replica.name));
                self.endpoints.cut(&who, true);
                sleep(ms(time)).await;
                self.endpoints.cut(&who, false);
            }
            Act::KillBroker(node, time) => {
                self.net.with(|cluster, now| cluster.kill(now, node));
                sleep(ms(time)).await;
                self.net
                    .with(|cluster, now| cluster.start_broker(now, node));
            }
            Act::StopBroker(node, time) => {
                self.net.with(|cluster, now| cluster.stop(now, node));
                sleep(ms(time)).await;
                self.net
                    .with(|cluster, now| cluster.start_broker(now, node));
            }
            Act::MoveLeader(topic, partition) => {
                let (topic, count) = &self.topics[topic % self.topics.len()];
                let tp = Tp {
                    topic: Arc::clone(topic),
                    partition: partition % count,
                };
                self.net.with(|cluster, _| cluster.move_leader(&tp));
            }
            Act::MoveCoordinator(kind, role) => {
                let prefix = &self.settings.group_prefix;
                let key = match kind {
                    crate::kafka::cluster::Kind::Group => format!("{prefix}{role}"),
                    crate::kafka::cluster::Kind::Transaction => {
                        format!("{prefix}{role}-replica-0-0")
                    }
                };
                self.net
                    .with(|cluster, now| cluster.move_coordinator(now, kind, &key));
            }
            Act::Clock(at, ahead) => self.replica(at, |replica| replica.set_ahead(ahead)),
            Act::Weather(lost, unanswered, slow, time) => {
                self.net.weather(|weather| {
                    (weather.lost, weather.unanswered, weather.slow) = (lost, unanswered, slow);
                });
                sleep(ms(time)).await;
                self.net.weather(|weather| {
                    (weather.lost, weather.unanswered, weather.slow) = (0, 0, 0);
                });
            }
            Act::LateEnd(at, by) => {
                self.replica(at, |replica| {
                    let client = format!("release-{}", replica.name);
                    self.net
                        .next(&client, Api::EndTransaction, Fate::Late(ms(by)));
                });
            }
            Act::Hide(time) => self.hide(ms(time)).await,
            Act::LatePosition(at, by) => {
                self.replica(at, |replica| {
                    let client = format!("fanout-{}", replica.name);
                    self.net.next(&client, Api::Offsets, Fate::Late(ms(by)));
                });
            }
            Act::Refuse(at, count) => {
                self.replica(at, |replica| {
                    let client = format!("fanout-{}", replica.name);
                    self.net.refuse(&client, count);
                });
            }
            Act::LateCommit(at, by) => {
                self.replica(at, |replica| {
                    for role in ["deliver", "release"] {
                        let client = format!("{role}-{}", replica.name);
                        self.net.next(&client, Api::Offsets, Fate::Late(ms(by)));
                    }
                });
            }
        }
    }

    /// A transaction of a process that is gone stays open in all retry topics for `time`, and is aborted then.
    async fn hide(&self, time: Duration) {
        const GONE: &str = "gone";
        let settings = Settings {
            instance: GONE.to_owned(),
            ..self.settings.clone()
        };
        let keep_waiting: KeepWaiting = Arc::new(|| true);
        let kind = ProducerKind::Writer;
        let opened = SimProducer::open(&self.net, &settings, &keep_waiting, GONE, kind);
        let mut producer = opened.await.unwrap();
        for topic in self.settings.retry_topics() {
            for partition in 0..self.plan.partitions {
                let record = Record {
                    topic: &topic,
                    partition: Some(partition),
                    key: Some(GONE.as_bytes()),
                    value: None,
                    headers: SimHeaders::with_capacity(0),
                    tag: 0,
                };
                producer.send(record).await.unwrap();
            }
        }
        producer.acknowledged().await.unwrap();
        sleep(time).await;
        producer.abandon().await;
    }

    /// Gives a subscription a new secret; the one before is used beside it until all have heard of it.
    async fn rotate(&self, sub: usize) {
        const BOTH: Duration = Duration::from_secs(5);
        self.note(format!("{} gets a new secret", self.plan.subs[sub].id));
        {
            let mut secrets = self.secrets.borrow_mut();
            let (present, both) = secrets.entry(sub).or_default();
            (*present, *both) = (*present + 1, true);
        }
        self.apply(sub, false).await;
        sleep(BOTH).await;
        if self.calm.get() || !self.existing.borrow().contains(&sub) {
            return;
        }
        self.secrets.borrow_mut().entry(sub).or_default().1 = false;
        self.apply(sub, false).await;
    }

    /// Replays what is dead, for at most `time`; returns whether it came to its end.
    async fn replay(&self, time: Duration) -> bool {
        let replayed = replay(&self.net, &self.endpoints, &self.settings);
        let (what, ended) = match tokio::time::timeout(time, replayed).await {
            Ok(Ok(count)) => (format!("{count} dead letters replayed"), true),
            Ok(Err(error)) => (format!("the replay failed: {error}"), false),
            Err(_) => ("the replay is killed".to_owned(), false),
        };
        self.note(what);
        ended
    }

    /// Replays everything that is dead: it is delivered.
    async fn replay_all(&self) -> bool {
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            if self.replay(REPLAY_WITHIN).await {
                return self
                    .settled_within(SETTLED_WITHIN + self.plan.patience())
                    .await;
            }
            sleep(Duration::from_secs(2)).await;
        }
        false
    }

    /// Delivery does not reach the brokers for `time`; then the commands of a partition are deleted.
    async fn delete_unread(&self, tp: &Tp, time: Duration) {
        let cuts: Vec<_> = {
            let replicas = self.replicas.borrow();
            let names = replicas.iter().map(|replica| &replica.name);
            let names = names.map(|name| Arc::<str>::from(format!("deliver-{name}")));
            names
                .flat_map(|name| (1..=3).map(move |node| (Arc::clone(&name), node)))
                .collect()
        };
        // What has come so far is read by then, unless delivery is held up.
        sleep(Duration::from_secs(1)).await;
        if self.calm.get() {
            return;
        }
        self.net
            .weather(|weather| weather.cut.extend(cuts.iter().cloned()));
        sleep(time).await;
        if self.calm.get() {
            return;
        }
        self.checker.borrow_mut().look();
        let deleted = self.net.with(|cluster, _| {
            let upto = cluster.bounds(tp)?.stable;
            let at = usize::try_from(tp.partition).ok()?;
            let leaders = cluster.describe(&tp.topic)?.leaders;
            let leader = leaders.get(at).copied().flatten()?;
            cluster.delete_records(leader, tp, Some(upto)).ok()
        });
        if deleted.is_some() {
            let checker = self.checker.borrow();
            let kept = self.plan.keeps_memory() && !checker.has_evicted();
            drop(checker);
            let read = if kept { self.net.taken(tp) } else { 0 };
            self.checker.borrow_mut().deleted(tp, read);
        }
        self.net.weather(|weather| {
            for cut in &cuts {
                weather.cut.remove(cut);
            }
        });
    }

    /// Stops a replica in an orderly way; one that does not end in time is killed, as a platform does.
    async fn end(&self, at: usize) {
        let (mut patience, mut run) = (Duration::ZERO, 0);
        self.replica(at, |replica| {
            replica.stop();
            (patience, run) = (replica.patience(), replica.run);
        });
        let mut until = tokio::time::Instant::now() + patience;
        let mut calm = self.calm.get();
        let (mut ended, mut again) = (false, false);
        while !ended && tokio::time::Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
            // While brokers cannot be reached, there is no last commit.
            if !std::mem::replace(&mut calm, self.calm.get()) && calm {
                until = tokio::time::Instant::now() + patience;
            }
            self.replica(at, |replica| {
                again = replica.run != run;
                ended = replica.has_ended() || again;
            });
        }
        if again {
            // Something else has started it again.
            return;
        }
        if !ended && self.calm.get() {
            let mut name: Arc<str> = Arc::from("");
            self.replica(at, |replica| name = Arc::clone(&replica.name));
            self.violated(format!(
                "Liveness: {name} does not stop within {patience:?}"
            ));
        }
        self.replica(at, Replica::kill);
    }

    async fn restart(&self, at: usize) {
        self.end(at).await;
        self.replica(at, Replica::start);
    }

    async fn scale_down(&self, at: usize) {
        // The last of a role stays.
        let only_all = self.plan.replicas.iter().all(|roles| *roles == Roles::All);
        let has_others = {
            let replicas = self.replicas.borrow();
            let others = replicas.iter().enumerate().filter(|(other, replica)| {
                *other != at % replicas.len() && !replica.gone && replica.roles() == Roles::All
            });
            others.count() > 0
        };
        if !only_all || !has_others {
            return;
        }
        self.replica(at, |replica| replica.gone = true);
        self.end(at).await;
    }

    /// Ends all faults, and waits until everything is delivered or dead; then publishes a last wave to endpoints that are
    /// all well.
    async fn settle(&self) {
        self.note("all faults end".to_owned());
        self.net.weather(|weather| *weather = Weather::default());
        self.net.clear();
        let longer = self.plan.patience();
        for node in 1..=3 {
            self.net
                .with(|cluster, now| cluster.start_broker(now, node));
        }
        self.endpoints.heal();
        for replica in self.replicas.borrow_mut().iter_mut() {
            replica.freeze(false);
            replica.set_ahead(0);
            replica.start();
        }
        self.calm.set(true);
        for (_, both) in self.secrets.borrow_mut().values_mut() {
            *both = false;
        }
        // What is paused or disabled would wait, or be dead, for ever.
        let existing: Vec<_> = self.existing.borrow().iter().copied().collect();
        for sub in existing {
            self.apply(sub, false).await;
        }
        if !self.settled_within(SETTLED_WITHIN + longer).await {
            let open = self.checker.borrow().open();
            self.violated(format!(
                "Liveness: not settled {SETTLED_WITHIN:?} after the faults: {open}"
            ));
            return;
        }
        // A notice of a 410 that was under way may have disabled one: the operator's word comes last.
        let existing: Vec<_> = self.existing.borrow().iter().copied().collect();
        for sub in existing {
            self.apply(sub, false).await;
        }
        let lost = self.plan.loses_requests();
        sleep(if lost {
            HEARD_WITHIN_TIMEOUT
        } else {
            HEARD_WITHIN
        })
        .await;
        if self.plan.replays() && !self.replay_all().await {
            let open = self.checker.borrow().open();
            self.violated(format!(
                "Liveness: not settled after all dead letters were replayed: {open}"
            ));
            return;
        }
        let wave: Vec<_> = (0..6)
            .map(|number| Event {
                id: format!("w{number}"),
                kind: ["order.created", "user.created"][number % 2],
                subject: format!("o{number}"),
            })
            .collect();
        let ids: BTreeSet<_> = wave.iter().map(|event| event.id.clone()).collect();
        self.note("the last wave".to_owned());
        self.publish(wave).await;
        if !self.settled_within(WAVE_WITHIN + longer).await {
            let open = self.checker.borrow().open();
            self.violated(format!(
                "Liveness: the last wave is not delivered within {WAVE_WITHIN:?}: {open}"
            ));
        }
        if self.plan.observed {
            self.figures_settle().await;
        }
        // A commit that arrives after a member's last one cannot be corrected.
        if let Some(late) = self.net.late() {
            tokio::time::sleep_until(late + COMMITTED_AGAIN).await;
        }
        let count = self.replicas.borrow().len();
        for at in 0..count {
            self.replica(at, |replica| replica.gone = true);
            self.end(at).await;
        }
        let mut checker = self.checker.borrow_mut();
        if !checker.look() && !checker.has_only_lost_open() {
            let open = checker.open();
            checker
                .violations
                .push(format!("Durable outcome: open after the end: {open}"));
        }
        checker.end(&self.plan, &self.endpoints.history(), &ids);
    }

    async fn settled_within(&self, time: Duration) -> bool {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < until {
            sleep(Duration::from_millis(250)).await;
            if self.checker.borrow_mut().look() {
                return true;
            }
        }
        false
    }
}
