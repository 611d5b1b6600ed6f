//! A machine that runs one process: it may freeze, thaw and die with all tasks of the process at once, and its wall clock
//! may be wrong.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use hookstream::edge::clock::simulated;
use tokio::task::{AbortHandle, JoinHandle};

use crate::kafka::net::{Host, enter, lock};

const RUNNING: u8 = 0;
const FROZEN: u8 = 1;
const DEAD: u8 = 2;

/// A machine.
#[derive(Default)]
pub struct Machine {
    state: AtomicU8,
    /// How far its wall clock is ahead, in ms.
    ahead: AtomicI64,
    waiting: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Machine {
    /// Starts a task.
    pub fn start(self: &Arc<Self>, task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
        let gate = Gate {
            machine: Arc::clone(self),
            task: Box::pin(task),
        };
        let started = tokio::task::spawn_local(gate);
        let mut tasks = lock(&self.tasks);
        if tasks.len() >= 64 && tasks.len().is_power_of_two() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(started.abort_handle());
        started
    }

    /// A dead one stays dead.
    fn change(&self, from: u8, to: u8) {
        let (one, other) = (Ordering::Relaxed, Ordering::Relaxed);
        self.state.compare_exchange(from, to, one, other).ok();
    }

    /// Nothing runs until it thaws.
    pub fn freeze(&self) {
        self.change(RUNNING, FROZEN);
    }

    /// Goes on after [`Machine::freeze`].
    pub fn thaw(&self) {
        self.change(FROZEN, RUNNING);
        for waker in lock(&self.waiting).drain(..) {
            waker.wake();
        }
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.state.load(Ordering::Relaxed) == FROZEN
    }

    /// Drops all tasks; none runs again.
    pub fn die(&self) {
        self.state.store(DEAD, Ordering::Relaxed);
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.state.load(Ordering::Relaxed) == DEAD
    }

    /// Sets its wall clock.
    pub fn set_ahead(&self, ms: i64) {
        self.ahead.store(ms, Ordering::Relaxed);
    }
}

/// The present machine's tasks, as the simulated clients start them.
struct OnMachine(Arc<Machine>);

impl Host for OnMachine {
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()>>>) {
        drop(self.0.start(task));
    }
}

/// A task that runs only while its machine does.
struct Gate {
    machine: Arc<Machine>,
    task: Pin<Box<dyn Future<Output = ()>>>,
}

impl Future for Gate {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.machine.state.load(Ordering::Relaxed) {
            RUNNING => {}
            FROZEN => {
                lock(&self.machine.waiting).push(context.waker().clone());
                return Poll::Pending;
            }
            _ => return Poll::Pending,
        }
        let _here = Here::enter(&self.machine);
        self.task.as_mut().poll(context)
    }
}

/// This thread is on a machine, until it is dropped: by a panic of the task too.
struct Here {
    host: Option<Arc<dyn Host>>,
    clock: i64,
}

impl Here {
    fn enter(machine: &Arc<Machine>) -> Self {
        Self {
            host: enter(Some(Arc::new(OnMachine(Arc::clone(machine))))),
            clock: simulated::set_offset(machine.ahead.load(Ordering::Relaxed)),
        }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        simulated::set_offset(self.clock);
        enter(self.host.take());
    }
}
