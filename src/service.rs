//! Wiring: which threads a process has, how a failure of one ends the others, and in what order they stop.
//!
//! Each role runs on a thread of its own and gets all that it needs as a [`RoleContext`]. The first role that
//! fails, or a signal, stops all; a role that does not stop in time does not keep the process alive. When they have
//! ended, the spans of what they did last are exported, within the same deadline and at most three seconds. The process
//! then exits, and its supervisor starts it again. Only for a client that is known to stay silent, which a new
//! one fixes, a role begins anew within the process; and all of them do, after an orderly stop, when certificates or
//! other settings of the connection have changed on disk.

pub mod http;
mod signals;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::cli::outcome::{CliError, Exit};
use crate::cli::print;
use crate::clock;
use crate::config::Settings;
use crate::kafka::cluster::ClusterId;
use crate::kafka::credentials::Credentials;
use crate::kafka::table::{self, Table};
use crate::kafka::{self, Failure};
use crate::lag::figures::Board;
use crate::metrics::Metrics;
use crate::spans::{Exporter, Tracer};
use http::{Health, State};
use signals::Signals;

/// What a process can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Events to commands.
    Fanout,
    /// Commands to requests.
    Deliver,
    /// What is due, back to commands.
    Release,
    /// How much waits for whom.
    Lag,
}

impl Role {
    /// Every role, as `hookstream run` has them.
    pub const ALL: [Self; 4] = [Self::Fanout, Self::Deliver, Self::Release, Self::Lag];

    /// The role's name on the command line, in logs and in `/readyz`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Deliver => "deliver",
            Self::Release => "release",
            Self::Lag => "lag",
        }
    }

    fn needs_subscriptions(self) -> bool {
        matches!(self, Self::Fanout | Self::Deliver)
    }

    fn run(self, context: &RoleContext) -> Result<(), Failure> {
        loop {
            match self.run_once(context) {
                Err(failure @ Failure::Forgotten(_)) if !context.stopping() => {
                    tracing::warn!(role = self.name(), "{failure}: the role begins anew");
                    context.metrics.role_restarts(self.name()).inc();
                }
                ended => return ended,
            }
        }
    }

    fn run_once(self, context: &RoleContext) -> Result<(), Failure> {
        match self {
            Self::Fanout => crate::fanout::run(context),
            Self::Deliver => crate::delivery::run(context),
            Self::Release => crate::release::run(context),
            Self::Lag => crate::lag::run(context),
        }
    }
}

/// Told once; seen by every thread.
#[derive(Debug, Default)]
pub struct Stop {
    told: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Tells everybody to stop.
    pub fn tell(&self) {
        self.told.store(true, Ordering::Release);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Whether everybody was told to.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Waits for at most `time`, less when told to stop.
    pub fn wait(&self, time: Duration) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_told() {
            drop(
                self.changed
                    .wait_timeout(guard, time)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

/// A fact that comes true once.
#[derive(Debug, Default)]
struct Once(AtomicBool);

/// What a role needs of the process that it runs in.
pub struct RoleContext {
    /// The settings, checked.
    pub settings: Arc<Settings>,
    /// Where it counts.
    pub metrics: Metrics,
    /// The subscriptions.
    pub table: Arc<Table>,
    /// Where it tells of traces.
    pub tracer: Tracer,
    /// Where the lag role leaves its figures.
    pub board: Arc<Board>,
    role: Role,
    health: Arc<Health>,
    stop: Arc<Stop>,
    subscriptions_read: Arc<Once>,
    /// Known after [`RoleContext::wait_until_possible`] of any role.
    cluster: Arc<OnceLock<ClusterId>>,
}

impl RoleContext {
    /// The cluster that this process works on.
    ///
    /// # Errors
    /// [`Failure::Internal`] before [`RoleContext::wait_until_possible`] has succeeded.
    pub fn cluster(&self) -> Result<ClusterId, Failure> {
        let known = self.cluster.get().cloned();
        known.ok_or_else(|| Failure::Internal("the cluster's id is not known yet".to_owned()))
    }

    /// All roles of a process, also one that begins anew, work on one cluster.
    fn check_cluster(&self, found: ClusterId) -> Result<(), Failure> {
        let known = self.cluster.get_or_init(|| found.clone());
        if *known == found {
            return Ok(());
        }
        Err(Failure::Internal(format!(
            "{} was the cluster {:?} and is the cluster {:?} now: restart this process",
            self.settings.brokers,
            known.as_str(),
            found.as_str(),
        )))
    }

    /// Whether the role is to stop.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.is_told()
    }

    /// The role's loop goes round: without this for a while, `/livez` turns red.
    pub fn beat(&self) {
        self.health.beat(self.role.name());
    }

    /// A beat, and whether to go on, for a thread that waits within the client library.
    #[must_use]
    pub fn pulse(&self) -> kafka::Pulse {
        let (health, stop, role) = (Arc::clone(&self.health), Arc::clone(&self.stop), self.role);
        Arc::new(move || {
            health.beat(role.name());
            !stop.is_told()
        })
    }

    /// The role does its work now.
    pub fn ready(&self) {
        tracing::info!(role = self.role.name(), "ready");
        self.set(State::Ready);
    }

    /// Waits for at most `time`, less when told to stop.
    pub fn pause(&self, time: Duration) {
        self.stop.wait(time);
    }

    /// The role finishes what it has begun.
    pub fn draining(&self) {
        self.set(State::Draining);
    }

    fn set(&self, state: State) {
        self.health.set(self.role.name(), state);
    }

    /// Waits for a broker, checks that `topics` exist, and waits until the subscriptions are read if the role
    /// needs them. `Ok(false)` when told to stop meanwhile.
    ///
    /// # Errors
    /// [`Failure`] names what is missing or denied.
    pub fn wait_until_possible(
        &self,
        purpose: &'static str,
        topics: &[String],
    ) -> Result<bool, Failure> {
        let mut told: Option<std::time::Instant> = None;
        let mut waiting = |reason: &str| {
            /// How often the log repeats that there is no broker.
            const REMIND: Duration = Duration::from_secs(10);
            self.beat();
            self.set(State::Waiting(reason.to_owned()));
            let now = clock::instant();
            if told.is_none_or(|before| now - before >= REMIND) {
                told = Some(now);
                tracing::warn!(role = purpose, "{reason}");
            }
        };
        let cluster = kafka::wait_for_topics(
            &self.settings,
            purpose,
            topics,
            &|| self.stopping(),
            &mut waiting,
        )?;
        let Some(cluster) = cluster else {
            return Ok(false);
        };
        self.check_cluster(cluster)?;
        self.set(State::Starting("reading the subscriptions".to_owned()));
        while self.role.needs_subscriptions() && !self.subscriptions_read.0.load(Ordering::Acquire)
        {
            if self.stopping() {
                return Ok(false);
            }
            self.beat();
            self.stop.wait(Duration::from_millis(20));
        }
        Ok(true)
    }
}

/// What a running service is: its threads, and how to end it.
pub struct Service {
    /// Where its HTTP server listens.
    pub http: SocketAddr,
    /// What it counts.
    pub metrics: Metrics,
    stop: Arc<Stop>,
    ended: Receiver<(&'static str, Result<(), Failure>)>,
    running: usize,
    runtime: tokio::runtime::Runtime,
    grace: Duration,
    exporter: Option<Exporter>,
    credentials: Credentials,
}

impl Service {
    /// Starts `roles`.
    ///
    /// # Errors
    /// [`CliError`] when the port is in use or a thread cannot be started.
    pub fn start(settings: &Settings, roles: &[Role]) -> Result<Self, CliError> {
        Self::start_on(http::bind(settings.http_listen)?, settings, roles)
    }

    fn start_on(
        listener: TcpListener,
        settings: &Settings,
        roles: &[Role],
    ) -> Result<Self, CliError> {
        let settings = Arc::new(settings.clone());
        let metrics = Metrics::new();
        let health = Arc::new(Health::new());
        let stop = Arc::new(Stop::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(|error| {
                CliError::new(Exit::Failure, format!("starting the HTTP server: {error}"))
            })?;
        let http = listener.local_addr().map_err(|error| {
            CliError::new(Exit::Failure, format!("the HTTP server's address: {error}"))
        })?;
        let served = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)
        };
        let served = served.map_err(|error| {
            CliError::new(Exit::Failure, format!("starting the HTTP server: {error}"))
        })?;
        let (tracer, exporter) = Exporter::start(&settings, &metrics)?;
        let (over, ended) = channel();
        let mut service = Self {
            http,
            metrics: metrics.clone(),
            stop: Arc::clone(&stop),
            ended,
            running: 0,
            runtime,
            grace: settings.drain_deadline + GRACE,
            exporter,
            credentials: settings.credentials.clone(),
        };
        let board = Arc::new(Board::default());
        let table = Arc::new(Table::default());
        let subscriptions_read = Arc::new(Once::default());
        let cluster = Arc::new(OnceLock::new());
        for &role in roles {
            health.register(role.name(), LIVENESS);
            let context = RoleContext {
                settings: Arc::clone(&settings),
                metrics: metrics.clone(),
                table: Arc::clone(&table),
                tracer: tracer.clone(),
                board: Arc::clone(&board),
                role,
                health: Arc::clone(&health),
                stop: Arc::clone(&stop),
                subscriptions_read: Arc::clone(&subscriptions_read),
                cluster: Arc::clone(&cluster),
            };
            service.spawn(role.name(), &over, move || {
                let result = role.run(&context);
                if result.is_err() {
                    context.set(State::Failed);
                }
                result
            })?;
        }
        if roles.iter().any(|role| role.needs_subscriptions()) {
            let (settings, metrics, stop) =
                (Arc::clone(&settings), metrics.clone(), Arc::clone(&stop));
            service.spawn("table", &over, move || {
                let stopped = || stop.is_told();
                let needed = [settings.topics.subscriptions()];
                if kafka::wait_for_topics(&settings, "table", &needed, &stopped, &mut |_| {})?
                    .is_none()
                {
                    return Ok(());
                }
                table::follow(&settings, &table, &metrics, &stopped, &mut || {
                    subscriptions_read.0.store(true, Ordering::Release)
                })
            })?;
        }
        // Until the runtime ends: while roles drain, probes that got no answer would end the process.
        let for_good = std::future::pending();
        service
            .runtime
            .spawn(http::serve(served, metrics, health, board, for_good));
        Ok(service)
    }

    fn spawn(
        &mut self,
        name: &'static str,
        over: &std::sync::mpsc::Sender<(&'static str, Result<(), Failure>)>,
        run: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), CliError> {
        let over = over.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                    .unwrap_or_else(|_| {
                        Err(Failure::Internal(format!(
                            "{name} has panicked; the log above says where"
                        )))
                    });
                // The receiver is gone only when the process is ending anyway.
                over.send((name, result)).ok();
            })
            .map_err(|error| {
                CliError::new(
                    Exit::Failure,
                    format!("starting the thread of {name}: {error}"),
                )
            })?;
        self.running += 1;
        Ok(())
    }

    /// What stops all roles when told, from another thread than the one in [`Service::wait`].
    #[must_use]
    pub fn stop_handle(&self) -> Arc<Stop> {
        Arc::clone(&self.stop)
    }

    /// Tells all roles to stop; [`Service::wait`] then waits for that.
    pub fn stop(&self) {
        self.stop.tell();
    }

    /// Waits until every role has ended: because of [`Service::stop`], of a signal, of a failure of one, or because new
    /// clients are due.
    ///
    /// # Errors
    /// [`CliError`] with the first failure, or when a role does not end in time.
    pub fn wait(mut self) -> Result<Exit, CliError> {
        let mut failed: Option<CliError> = None;
        let mut deadline = None;
        while self.running > 0 {
            if self.credentials.is_due() && !self.stop.is_told() {
                tracing::info!("connection settings changed, draining");
                self.stop.tell();
            }
            if self.stop.is_told() && deadline.is_none() {
                deadline = Some(clock::instant() + self.grace);
            }
            match self.ended.recv_timeout(Duration::from_millis(100)) {
                Ok((name, result)) => {
                    self.running -= 1;
                    if let Err(failure) = result {
                        tracing::error!(role = name, "{failure}");
                        failed.get_or_insert_with(|| {
                            CliError::new(Exit::Failure, format!("{name}: {failure}"))
                        });
                    }
                    // One role that ends, ends all: a process does the whole of its work or none.
                    self.stop.tell();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if deadline.is_some_and(|deadline| clock::instant() >= deadline) {
                        failed.get_or_insert_with(|| {
                            CliError::new(Exit::Failure, "a role did not end in time: the client library hangs, or a broker does not answer; what was under way is done again after the restart".to_owned())
                        });
                        break;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.stop.tell();
        if let Some(exporter) = self.exporter {
            let left =
                deadline.map(|deadline| deadline.saturating_duration_since(clock::instant()));
            exporter.end(left.unwrap_or(LAST_SPANS).min(LAST_SPANS));
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        failed.map_or(Ok(Exit::Done), Err)
    }
}

/// Beyond the drain deadline: the last commit and leaving the group.
const GRACE: Duration = Duration::from_secs(15);
/// For the export of what the roles told last.
const LAST_SPANS: Duration = Duration::from_secs(3);
/// A role whose loop has not gone round for this long is not alive. Longer than a commit may take while brokers change.
const LIVENESS: Duration = Duration::from_secs(90);

#[allow(
    clippy::disallowed_methods,
    reason = "no thread can be joined while one of them hangs"
)]
fn give_up(why: String) {
    tracing::error!("{why}");
    print::note(&format!("hookstream: {why}"));
    std::process::exit(Exit::Failure as i32);
}

/// Runs `roles` until a signal or a failure ends them; with new clients whenever the settings of the connection change.
///
/// # Errors
/// [`CliError`] says what failed.
pub fn run(settings: &Settings, roles: &[Role]) -> Result<Exit, CliError> {
    kafka::watchdog::watch(settings.hang_deadline, give_up)
        .map_err(|error| CliError::new(Exit::Failure, format!("starting a thread: {error}")))?;
    let signals = Signals::handle()?;
    settings.credentials.renew();
    let mut settings = settings.clone();
    // One for all services, so that a probe between two of them waits, and is not refused.
    let listener = http::bind(settings.http_listen)?;
    loop {
        let listener = listener.try_clone().map_err(|error| {
            CliError::new(Exit::Failure, format!("the HTTP server's socket: {error}"))
        })?;
        let service = Service::start_on(listener, &settings, roles)?;
        signals.stop(service.stop_handle());
        let exit = service.wait()?;
        match settings.credentials.due() {
            Some(connection) if !signals.came() => {
                tracing::info!("connection settings changed, starting with new clients");
                settings = settings.with_connection(connection);
            }
            _ => return Ok(exit),
        }
    }
}
