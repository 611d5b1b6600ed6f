//! A replica: a process of some roles on a machine of its own, with a supervisor that starts it again.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hookstream::config::Settings;
use hookstream::delivery::metrics::DeliveryMetrics;
use hookstream::edge::kafka::status_cache::StatusCache;
use hookstream::edge::kafka::subscription_cache::SubscriptionCache;
use hookstream::edge::kafka::subscription_cache::topic_record;
use hookstream::edge::otlp::Tracer;
use hookstream::edge::port::failure::Failure;
use hookstream::fanout::metrics::FanoutMetrics;
use hookstream::model::subscription::Kept;
use hookstream::retry::metrics::ReleaseMetrics;
use hookstream::runtime::context::{Process, RoleContext};
use hookstream::runtime::hold::Holds;
use hookstream::runtime::metrics::{Metrics, Registry};
use hookstream::runtime::shutdown::Stop;
use hookstream::{delivery, fanout, retry};
use tokio::time::sleep;

use super::endpoints::Endpoints;
use super::history::What;
use super::machine::Machine;
use super::plan::Roles;
use super::port::Outside;
use crate::kafka::Tp;
use crate::kafka::client::reader::{Event, Reader};
use crate::kafka::net::Net;
use crate::kafka::port::View;

/// Beyond the drain deadline, for the last commit and leaving the group, as in the product.
const GRACE: Duration = Duration::from_secs(15);

/// A replica.
pub struct Replica {
    pub name: Arc<str>,
    roles: Roles,
    settings: Arc<Settings>,
    net: Net,
    endpoints: Endpoints,
    running: Option<Running>,
    ahead: i64,
    /// Counts its processes.
    pub run: u64,
    /// It was stopped, and does not start again.
    pub gone: bool,
}

struct Running {
    machine: Arc<Machine>,
    stop: Arc<Stop>,
    /// Roles that have not ended.
    left: Rc<Cell<usize>>,
}

impl Replica {
    /// A replica that does not run yet.
    pub fn new(
        net: &Net,
        endpoints: &Endpoints,
        settings: &Settings,
        name: String,
        roles: Roles,
    ) -> Self {
        let settings = Settings {
            instance: name.clone(),
            ..settings.clone()
        };
        Self {
            name: Arc::from(name),
            roles,
            settings: Arc::new(settings),
            net: net.clone(),
            endpoints: endpoints.clone(),
            running: None,
            ahead: 0,
            run: 0,
            gone: false,
        }
    }

    fn note(&self, what: &str) {
        let what = What::Process(Arc::clone(&self.name), what.to_owned());
        self.endpoints.note(what);
    }

    /// Starts the process, if it does not run.
    pub fn start(&mut self) {
        if self.running.is_some() || self.gone {
            return;
        }
        self.note("starts");
        self.run += 1;
        let machine = Arc::new(Machine::default());
        machine.set_ahead(self.ahead);
        let outside = Outside {
            net: self.net.clone(),
            machine: Arc::clone(&machine),
            endpoints: self.endpoints.clone(),
            instance: Arc::clone(&self.name),
            away: Arc::default(),
        };
        let registry = Registry::new();
        let process = Process {
            settings: Arc::clone(&self.settings),
            metrics: Metrics::register(&registry),
            table: Arc::new(match self.roles {
                Roles::All => SubscriptionCache::default(),
                Roles::Fanout => SubscriptionCache::new(false, Kept::ForMatching),
                Roles::Deliver | Roles::Release => SubscriptionCache::new(false, Kept::ForLookups),
            }),
            // Without a reader: each owner begins anew.
            statuses: Arc::new(StatusCache::without_reader()),
            tracer: Tracer::off(),
            health: Arc::default(),
            stop: Arc::default(),
            holds: Holds::default(),
            subscriptions_loaded: Arc::new(AtomicBool::new(false)),
            cluster: Arc::default(),
        };
        let stop = Arc::clone(&process.stop);
        let roles: &[&'static str] = match self.roles {
            Roles::All => &["fanout", "deliver", "release"],
            Roles::Fanout => &["fanout"],
            Roles::Deliver => &["deliver"],
            Roles::Release => &["release"],
        };
        let left = Rc::new(Cell::new(roles.len()));
        for &role in roles {
            let (outside, process, registry) = (outside.clone(), process.clone(), registry.clone());
            let (left, endpoints) = (Rc::clone(&left), self.endpoints.clone());
            let name = Arc::clone(&self.name);
            drop(machine.start(async move {
                let ended = run_role(&outside, &process, &registry, role).await;
                let what = match ended {
                    Ok(()) => format!("{role} has ended"),
                    Err(failure) => format!("{role} FAILED: {failure}"),
                };
                endpoints.note(What::Process(name, what));
                // One role that ends stops all.
                process.stop.request();
                left.set(left.get() - 1);
            }));
        }
        drop(machine.start(follow(outside, process)));
        self.running = Some(Running {
            machine,
            stop,
            left,
        });
    }

    /// What it runs.
    pub fn roles(&self) -> Roles {
        self.roles
    }

    /// Dies at once.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            self.note("dies");
            self.net.note_death(&self.name);
            running.machine.die();
        }
    }

    /// Asks it to stop.
    pub fn stop(&self) {
        if let Some(running) = &self.running {
            self.note("is told to stop");
            running.stop.request();
        }
    }

    /// Whether all its roles have ended.
    pub fn has_ended(&self) -> bool {
        let running = self.running.as_ref();
        running.is_none_or(|running| running.left.get() == 0)
    }

    /// Whether it was told to stop, or has stopped by itself.
    pub fn is_stopping(&self) -> bool {
        let running = self.running.as_ref();
        running.is_none_or(|running| running.stop.is_requested())
    }

    /// Freezes or thaws.
    pub fn freeze(&self, frozen: bool) {
        if let Some(running) = &self.running {
            self.note(if frozen { "freezes" } else { "thaws" });
            match frozen {
                true => running.machine.freeze(),
                false => running.machine.thaw(),
            }
        }
    }

    /// Sets its wall clock.
    pub fn set_ahead(&mut self, ms: i64) {
        self.ahead = ms;
        if let Some(running) = &self.running {
            running.machine.set_ahead(ms);
        }
    }

    /// How long it may take to stop.
    pub fn patience(&self) -> Duration {
        self.settings.drain_deadline + GRACE
    }
}

async fn run_role(
    outside: &Outside,
    process: &Process,
    registry: &Registry,
    role: &'static str,
) -> Result<(), Failure> {
    let context = RoleContext::new(process, role, role != "release");
    loop {
        let ended = match role {
            "fanout" => {
                let metrics = FanoutMetrics::register(registry);
                Box::pin(fanout::run(outside, &context, &metrics)).await
            }
            "deliver" => {
                let metrics = DeliveryMetrics::register(registry);
                Box::pin(delivery::run(outside, &context, &metrics)).await
            }
            _ => {
                let metrics = ReleaseMetrics::register(registry);
                Box::pin(retry::release::run(outside, &context, &metrics)).await
            }
        };
        match ended {
            Err(Failure::Stuck(_)) if !context.stopping() => {}
            ended => return ended,
        }
    }
}

/// Follows the subscriptions, as `edge::kafka::subscription_cache::follow` does.
async fn follow(outside: Outside, process: Process) {
    let settings = &process.settings;
    let name = format!("table-{}", settings.instance);
    let mut reader = Reader::new(&outside.net, &name, true);
    let topic: Arc<str> = Arc::from(settings.topics.subscriptions());
    let count = loop {
        match reader.link().topic(&topic).await {
            Ok(Some(view)) => break view.leaders.len(),
            Ok(None) | Err(_) => sleep(Duration::from_millis(200)).await,
        }
    };
    let mut behind = std::collections::BTreeSet::new();
    for partition in 0..i32::try_from(count).unwrap_or(0) {
        let tp = Tp {
            topic: Arc::clone(&topic),
            partition,
        };
        reader.start(&tp, 0);
        behind.insert(partition);
    }
    while !process.stop.is_requested() {
        if behind.is_empty() {
            process.subscriptions_loaded.store(true, Ordering::Release);
        }
        match reader.poll(Duration::from_secs(1)).await {
            Some(Event::Record(tp, offset, record)) => {
                let view = View::new(tp, offset, record);
                // Counted and logged by the product.
                drop(process.table.apply(&topic_record(&view)));
            }
            Some(Event::End(tp, _)) => {
                behind.remove(&tp.partition);
            }
            Some(Event::Failed(..)) | None => {}
        }
    }
}
