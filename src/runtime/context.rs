//! The dependencies of a role.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::health::{Health, State};
use super::hold::Holds;
use super::metrics::Metrics;
use super::shutdown::Stop;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::status_cache::StatusCache;
use crate::edge::kafka::subscription_cache::SubscriptionCache;
use crate::edge::kafka::wait::KeepWaiting;
use crate::edge::otlp::Tracer;
use crate::edge::port::Port;

/// The state shared by all roles of a process; cheap to clone.
#[derive(Clone)]
pub struct Process {
    /// The validated settings.
    pub settings: Arc<Settings>,
    /// The metrics common to all roles.
    pub metrics: Metrics,
    /// The subscriptions.
    pub table: Arc<SubscriptionCache>,
    /// What former owners wrote about endpoints.
    pub statuses: Arc<StatusCache>,
    /// Starts spans.
    pub tracer: Tracer,
    /// The state of every role.
    pub health: Arc<Health>,
    /// The stop signal.
    pub stop: Arc<Stop>,
    /// The roles that a command of an operator holds.
    pub holds: Holds,
    /// Whether the subscriptions were loaded completely once.
    pub subscriptions_loaded: Arc<AtomicBool>,
    /// Set by the first [`RoleContext::wait_until_possible`] of any role.
    pub cluster: Arc<OnceLock<ClusterId>>,
}

/// The dependencies of one role.
pub struct RoleContext {
    /// The validated settings.
    pub settings: Arc<Settings>,
    /// The metrics common to all roles.
    pub metrics: Metrics,
    /// The subscriptions.
    pub table: Arc<SubscriptionCache>,
    /// What former owners wrote about endpoints.
    pub statuses: Arc<StatusCache>,
    /// Starts spans.
    pub tracer: Tracer,
    role: &'static str,
    process: Process,
    /// Whether the role waits for the subscriptions.
    waits_for_subscriptions: bool,
    halt: Halt,
}

/// Why a role ends: the process stops, or the role is held.
#[derive(Clone)]
struct Halt {
    stop: Arc<Stop>,
    held: Option<Arc<AtomicBool>>,
}

impl Halt {
    fn is_held(&self) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.load(Ordering::Acquire))
    }

    fn is_requested(&self) -> bool {
        self.stop.is_requested() || self.is_held()
    }
}

impl RoleContext {
    /// The context of `role` in `process`.
    #[must_use]
    pub fn new(process: &Process, role: &'static str, waits_for_subscriptions: bool) -> Self {
        Self {
            settings: Arc::clone(&process.settings),
            metrics: process.metrics.clone(),
            table: Arc::clone(&process.table),
            statuses: Arc::clone(&process.statuses),
            tracer: process.tracer.clone(),
            role,
            process: process.clone(),
            waits_for_subscriptions,
            halt: Halt {
                stop: Arc::clone(&process.stop),
                held: process.holds.of(role),
            },
        }
    }

    /// The cluster that this process works on.
    ///
    /// # Errors
    /// [`Failure::Internal`] before [`RoleContext::wait_until_possible`] has succeeded.
    pub fn cluster(&self) -> Result<ClusterId, Failure> {
        let known = self.process.cluster.get().cloned();
        known.ok_or_else(|| Failure::Internal("the cluster id is not known yet".to_owned()))
    }

    /// All roles of a process, including restarted ones, must work on the same cluster.
    fn check_cluster(&self, found: ClusterId) -> Result<(), Failure> {
        let known = self.process.cluster.get_or_init(|| found.clone());
        if *known == found {
            return Ok(());
        }
        Err(Failure::Internal(format!(
            "the cluster at {} changed from {:?} to {:?}; restart this process",
            self.settings.brokers,
            known.as_str(),
            found.as_str(),
        )))
    }

    /// Whether the role must stop, because its process does or because it is held.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.halt.is_requested()
    }

    /// Whether the whole process stops.
    #[must_use]
    pub fn process_stopping(&self) -> bool {
        self.process.stop.is_requested()
    }

    /// Waits until the role may run: until it is known whether it is held, and while it is. `false` when the process
    /// stops meanwhile.
    #[must_use]
    pub fn wait_while_held(&self) -> bool {
        /// Between two looks at the flag.
        const AGAIN: Duration = Duration::from_millis(50);
        let mut was_held = false;
        while !self.process_stopping() {
            let is_held = self.halt.is_held();
            if self.process.holds.is_known() && !is_held {
                if was_held {
                    tracing::info!(role = self.role, "hold ended, starting again");
                }
                return true;
            }
            if is_held && !was_held {
                was_held = true;
                let reason = "held by `topics add-partitions`";
                tracing::info!(role = self.role, "{reason}");
                self.set(State::Waiting(reason.to_owned()));
            }
            self.heartbeat();
            self.process.stop.wait(AGAIN);
        }
        false
    }

    /// Reports a heartbeat of the role; `/livez` fails without one for a while.
    pub fn heartbeat(&self) {
        self.process.health.heartbeat(self.role);
    }

    /// A callback for threads that wait within the client library: reports a heartbeat and returns whether to continue.
    #[must_use]
    pub fn keep_waiting(&self) -> KeepWaiting {
        let (health, halt, role) = (
            Arc::clone(&self.process.health),
            self.halt.clone(),
            self.role,
        );
        Arc::new(move || {
            health.heartbeat(role);
            !halt.is_requested()
        })
    }

    /// A callback for background threads: returns whether to continue, and reports no heartbeat, since the role's own
    /// thread may hang meanwhile.
    #[must_use]
    pub fn unless_stopping(&self) -> KeepWaiting {
        let halt = self.halt.clone();
        Arc::new(move || !halt.is_requested())
    }

    /// Marks the role as ready.
    pub fn ready(&self) {
        tracing::info!(role = self.role, "ready");
        self.set(State::Ready);
    }

    /// Waits for `time`, or until told to stop.
    pub fn pause(&self, time: Duration) {
        self.process.stop.wait(time);
    }

    /// Marks the role as draining.
    pub fn draining(&self) {
        self.set(State::Draining);
    }

    /// Marks the role as failed.
    pub fn failed(&self) {
        self.set(State::Failed);
    }

    fn set(&self, state: State) {
        self.process.health.set(self.role, state);
    }

    /// The subscriptions, if the role waits for them and they are loaded.
    #[must_use]
    pub fn loaded(&self) -> Option<&SubscriptionCache> {
        let loaded = &self.process.subscriptions_loaded;
        let is_loaded = self.waits_for_subscriptions && loaded.load(Ordering::Acquire);
        is_loaded.then_some(&*self.process.table)
    }

    /// Waits until the statuses are loaded, so that a rollout neither forgets since when an endpoint fails nor repeats a
    /// notice. `false` when told to stop meanwhile.
    pub async fn wait_for_statuses(&self, port: &impl Port) -> bool {
        while !self.statuses.is_loaded() {
            if self.stopping() {
                return false;
            }
            self.heartbeat();
            port.sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Waits for a broker, checks that `topics` exist, and waits until the subscriptions are loaded if the role needs
    /// them. `Ok(false)` when told to stop meanwhile.
    ///
    /// # Errors
    /// [`Failure`] names what is missing or denied.
    pub async fn wait_until_possible(
        &self,
        port: &impl Port,
        purpose: &'static str,
        topics: &[String],
    ) -> Result<bool, Failure> {
        let mut logged: Option<std::time::Instant> = None;
        let mut waiting = |reason: &str| {
            /// How often the log repeats the reason.
            const REMIND: Duration = Duration::from_secs(10);
            self.heartbeat();
            self.set(State::Waiting(reason.to_owned()));
            let now = clock::instant();
            if logged.is_none_or(|before| now - before >= REMIND) {
                logged = Some(now);
                tracing::warn!(role = purpose, "{reason}");
            }
        };
        let cluster = port
            .wait_for_topics(
                &self.settings,
                purpose,
                topics,
                &|| self.stopping(),
                &mut waiting,
            )
            .await?;
        let Some(cluster) = cluster else {
            return Ok(false);
        };
        self.check_cluster(cluster)?;
        self.set(State::Starting("loading subscriptions".to_owned()));
        while self.waits_for_subscriptions
            && !self.process.subscriptions_loaded.load(Ordering::Acquire)
        {
            if self.stopping() {
                return Ok(false);
            }
            self.heartbeat();
            port.sleep(Duration::from_millis(20)).await;
        }
        Ok(true)
    }
}
