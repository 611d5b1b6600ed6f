//! Wiring: the threads of a process, how the failure of one stops the others, and the order of shutdown.
//!
//! Each role runs on its own thread and gets its dependencies as a [`RoleContext`]. The first role that fails, or a
//! signal, stops all; a role that does not stop in time does not keep the process alive. After the roles, the remaining
//! spans are exported, within the same deadline and at most three seconds. The process then exits and its supervisor
//! restarts it. There are two exceptions: a role with a stuck client restarts within the process, since a new client
//! fixes it; and all roles restart, after an orderly stop, when connection settings have changed on disk.

mod families;
mod signals;

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use thiserror::Error;

use crate::config::Settings;
use crate::config::credentials::Credentials;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::status_cache;
use crate::edge::kafka::subscription_cache::{InvalidCounters, SubscriptionCache, follow};
use crate::edge::kafka::wait::wait_for_topics;
use crate::edge::kafka::watchdog;
use crate::edge::live::Live;
use crate::edge::otlp::{Exporter, SetupError};
use crate::edge::port::task::block_on;
use crate::lag::pages;
use crate::model::hold::HeldRoles;
use crate::model::subscription::Kept;
use crate::positions::{GroupRole, hold, start};
use crate::runtime::admin_http::{self, Access, BindError, Site};
use crate::runtime::context::{Process, RoleContext};
use crate::runtime::hold::Holds;
use crate::runtime::metrics::{Metrics, Registry};
use crate::runtime::shutdown::Stop;
use families::Families;
use signals::Signals;

/// The roles of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Turns events into commands.
    Fanout,
    /// Turns commands into requests.
    Deliver,
    /// Moves due retries back to the commands topic.
    Release,
    /// Measures the backlog per subscriber.
    Lag,
}

impl Role {
    /// All roles, as in `hookstream run`.
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

    /// Whether a command of an operator may stop it for a while.
    fn can_be_held(self) -> bool {
        matches!(self, Self::Fanout | Self::Release)
    }

    fn run(self, context: &RoleContext, families: &Families) -> Result<(), Failure> {
        loop {
            if !context.wait_while_held() {
                return Ok(());
            }
            match self.run_once(context, families) {
                Err(failure @ (Failure::Stuck(_) | Failure::NoPosition { .. }))
                    if !context.process_stopping() =>
                {
                    tracing::warn!(role = self.name(), "role restarted: {failure}");
                    context.metrics.role_restarts(self.name()).inc();
                }
                // The next start decides.
                Err(Failure::NoPosition { .. }) => return Ok(()),
                // Held: it starts again.
                Ok(()) if !context.process_stopping() => {}
                ended => return ended,
            }
        }
    }

    /// The role as the owner of a group's positions.
    fn group(self) -> Option<GroupRole> {
        match self {
            Self::Fanout => Some(GroupRole::Fanout),
            Self::Deliver => Some(GroupRole::Deliver),
            Self::Release => Some(GroupRole::Release),
            Self::Lag => None,
        }
    }

    /// Decides where the role's group begins, before it joins it; `false` when told to stop meanwhile.
    fn begin(self, context: &RoleContext) -> Result<bool, Failure> {
        let Some(group) = self.group() else {
            return Ok(true);
        };
        let settings = &context.settings;
        let topics = group.topics(settings);
        // Not the topic of the subscriptions: a release of an older installation may not describe it.
        let possible = context.wait_until_possible(&Live, self.name(), &topics);
        if !block_on(possible)? {
            return Ok(false);
        }
        let keep_waiting = context.keep_waiting();
        start::begin(settings, group, &topics, &keep_waiting, context.loaded())
    }

    fn run_once(self, context: &RoleContext, families: &Families) -> Result<(), Failure> {
        if !self.begin(context)? {
            return Ok(());
        }
        match self {
            Self::Fanout => block_on(crate::fanout::run(&Live, context, &families.fanout)),
            Self::Deliver => block_on(crate::delivery::run(&Live, context, &families.delivery)),
            Self::Release => block_on(crate::retry::release::run(
                &Live,
                context,
                &families.release,
            )),
            Self::Lag => crate::lag::run(context, &families.lag, &families.board),
        }
    }
}

/// Why a service did not start, or failed.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The HTTP server cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The HTTP server cannot be started.
    #[error("cannot start the HTTP server: {0}")]
    Http(io::Error),
    /// A file that the HTTP server needs cannot be used.
    #[error("{0}")]
    Access(String),
    /// The span export cannot be started.
    #[error(transparent)]
    Spans(#[from] SetupError),
    /// A thread cannot be started.
    #[error("cannot start the thread {name}: {source}")]
    Thread {
        /// The thread's name.
        name: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(io::Error),
    /// A role cannot continue.
    #[error("{role}: {failure}")]
    Role {
        /// The role.
        role: &'static str,
        /// The cause.
        failure: Box<Failure>,
    },
    /// A role did not stop in time.
    #[error(
        "a role did not stop in time: the Kafka client hangs or a broker is unreachable; unfinished work is repeated after the restart"
    )]
    Stuck,
}

/// A running service.
pub struct Service {
    /// The address of its HTTP server.
    pub http: SocketAddr,
    /// Its metrics.
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
    /// [`ServiceError`] when the port is in use or a thread cannot be started.
    pub fn start(settings: &Settings, roles: &[Role]) -> Result<Self, ServiceError> {
        Self::start_on(admin_http::bind(settings.http_listen)?, settings, roles)
    }

    fn start_on(
        listener: TcpListener,
        settings: &Settings,
        roles: &[Role],
    ) -> Result<Self, ServiceError> {
        let settings = Arc::new(settings.clone());
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        let families = Families::register(&registry);
        let stop = Arc::new(Stop::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(ServiceError::Http)?;
        let http = listener.local_addr().map_err(ServiceError::Http)?;
        let access = Access::new(settings.http_token_file.clone());
        let access = access.map_err(ServiceError::Access)?;
        let tls = settings.http_tls.clone();
        let tls = tls.map(|(certificate, key)| admin_http::tls::acceptor(certificate, key));
        let tls = tls.transpose().map_err(ServiceError::Access)?;
        let served = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)
        };
        let served = served.map_err(ServiceError::Http)?;
        let (tracer, exporter) = Exporter::start(&settings, metrics.span_counters())?;
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
        let kept = match [Role::Fanout, Role::Deliver].map(|role| roles.contains(&role)) {
            [true, true] => Kept::Whole,
            [true, false] => Kept::ForMatching,
            [false, _] => Kept::ForLookups,
        };
        let process = Process {
            settings: Arc::clone(&settings),
            metrics: metrics.clone(),
            table: Arc::new(SubscriptionCache::new(settings.require_verification, kept)),
            statuses: Arc::default(),
            tracer,
            health: Arc::default(),
            stop,
            holds: Holds::default(),
            subscriptions_loaded: Arc::default(),
            cluster: Arc::default(),
        };
        let are_followed = roles.iter().any(|role| role.needs_subscriptions());
        for &role in roles {
            process.health.register(role.name(), LIVENESS);
            // Where subscriptions are loaded anyway, the start of the role's group is read with them.
            let waits = are_followed && role.group().is_some();
            let context = RoleContext::new(&process, role.name(), waits);
            let families = families.clone();
            service.spawn(role.name(), &over, move || {
                let result = role.run(&context, &families);
                if result.is_err() {
                    context.failed();
                }
                result
            })?;
        }
        if are_followed {
            let process = process.clone();
            service.spawn("table", &over, move || follow_subscriptions(&process))?;
        }
        if roles.iter().any(|role| role.can_be_held()) {
            let process = process.clone();
            service.spawn("holds", &over, move || {
                hold::watch(&process.settings, &process.holds, &process.stop)
            })?;
        } else {
            process.holds.set(HeldRoles::NONE);
        }
        if roles.contains(&Role::Deliver) {
            let process = process.clone();
            service.spawn("statuses", &over, move || follow_statuses(&process))?;
        }
        let site = Arc::new(Site {
            registry,
            metrics,
            health: process.health,
            brokers: watchdog::brokers,
            routes: pages::routes(families.board),
            access,
        });
        // Serves until the runtime ends: failing probes would kill the process while its roles drain.
        let never = std::future::pending();
        service
            .runtime
            .spawn(admin_http::serve(served, site, tls, never));
        Ok(service)
    }

    fn spawn(
        &mut self,
        name: &'static str,
        over: &std::sync::mpsc::Sender<(&'static str, Result<(), Failure>)>,
        run: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), ServiceError> {
        let over = over.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                    .unwrap_or_else(|_| {
                        Err(Failure::Internal(format!(
                            "{name} panicked, see the log above"
                        )))
                    });
                // The receiver is dropped only when the process is exiting.
                over.send((name, result)).ok();
            })
            .map_err(|source| ServiceError::Thread { name, source })?;
        self.running += 1;
        Ok(())
    }

    /// A handle to stop all roles from another thread than the one in [`Service::wait`].
    #[must_use]
    pub fn stop_handle(&self) -> Arc<Stop> {
        Arc::clone(&self.stop)
    }

    /// Tells all roles to stop; [`Service::wait`] then waits for them.
    pub fn stop(&self) {
        self.stop.request();
    }

    /// Waits until every role has ended, after [`Service::stop`], a signal, a failure, or a change of connection settings.
    ///
    /// # Errors
    /// [`ServiceError`] with the first failure, or when a role does not end in time.
    pub fn wait(mut self) -> Result<(), ServiceError> {
        let mut failed: Option<ServiceError> = None;
        let mut deadline = None;
        while self.running > 0 {
            if self.credentials.is_due(clock::instant()) && !self.stop.is_requested() {
                tracing::info!("connection settings changed, draining");
                self.stop.request();
            }
            if self.stop.is_requested() && deadline.is_none() {
                deadline = Some(clock::instant() + self.grace);
            }
            match self.ended.recv_timeout(Duration::from_millis(100)) {
                Ok((name, result)) => {
                    self.running -= 1;
                    if let Err(failure) = result {
                        tracing::error!(role = name, "{failure}");
                        failed.get_or_insert(ServiceError::Role {
                            role: name,
                            failure: Box::new(failure),
                        });
                    }
                    // One role that ends stops all: a process does all of its work or none.
                    self.stop.request();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if deadline.is_some_and(|deadline| clock::instant() >= deadline) {
                        failed.get_or_insert(ServiceError::Stuck);
                        break;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.stop.request();
        if let Some(exporter) = self.exporter {
            let left =
                deadline.map(|deadline| deadline.saturating_duration_since(clock::instant()));
            exporter.end(left.unwrap_or(LAST_SPANS).min(LAST_SPANS));
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        failed.map_or(Ok(()), Err)
    }
}

/// Time beyond the drain deadline, for the last commit and leaving the group.
const GRACE: Duration = Duration::from_secs(15);
/// Time for exporting the last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);
/// A role without a heartbeat for this long is not alive. Longer than a commit may take during a broker failover.
const LIVENESS: Duration = Duration::from_secs(90);

#[allow(
    clippy::disallowed_methods,
    reason = "no thread can be joined while one of them hangs"
)]
fn give_up(why: String) {
    tracing::error!("{why}");
    // Not `eprintln`, which panics where standard error is closed.
    writeln!(io::stderr(), "hookstream: {why}").ok();
    std::process::exit(1);
}

/// Runs `roles` until a signal or a failure ends them, and restarts them when connection settings change.
///
/// # Errors
/// [`ServiceError`] says what failed.
pub fn run(settings: &Settings, roles: &[Role]) -> Result<(), ServiceError> {
    watchdog::watch(settings.hang_deadline, give_up).map_err(|source| ServiceError::Thread {
        name: "watchdog",
        source,
    })?;
    let signals = Signals::handle().map_err(ServiceError::Signals)?;
    settings.credentials.renew();
    let mut settings = settings.clone();
    // Shared by all services, so that a probe between two of them waits instead of being refused.
    let listener = admin_http::bind(settings.http_listen)?;
    loop {
        let listener = listener.try_clone().map_err(ServiceError::Http)?;
        let service = Service::start_on(listener, &settings, roles)?;
        signals.stop(service.stop_handle());
        service.wait()?;
        match settings.credentials.due(clock::instant()) {
            Some(connection) if !signals.came() => {
                tracing::info!("connection settings changed, starting with new clients");
                settings = settings.with_connection(connection);
            }
            _ => return Ok(()),
        }
    }
}

fn follow_statuses(process: &Process) -> Result<(), Failure> {
    let settings = &process.settings;
    let stopped = || process.stop.is_requested();
    let topic = settings.topics.status();
    let set_aside = process.metrics.set_aside(&topic);
    let needed = [topic];
    if wait_for_topics(settings, "statuses", &needed, &stopped, &mut |_| {})?.is_none() {
        return Ok(());
    }
    status_cache::follow(settings, &process.statuses, &set_aside, &stopped)
}

fn follow_subscriptions(process: &Process) -> Result<(), Failure> {
    let settings = &process.settings;
    let stopped = || process.stop.is_requested();
    let needed = [settings.topics.subscriptions()];
    if wait_for_topics(settings, "table", &needed, &stopped, &mut |_| {})?.is_none() {
        return Ok(());
    }
    let invalid = InvalidCounters {
        subscriptions: process.metrics.invalid_subscriptions().clone(),
        set_aside: process.metrics.set_aside(&settings.topics.subscriptions()),
    };
    follow(settings, &process.table, &invalid, &stopped, &mut || {
        process.subscriptions_loaded.store(true, Ordering::Release);
    })
}
