//! The program as it runs in production: replicas of every role as processes, and a supervisor that starts again what
//! has ended, as Kubernetes would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::it::support::{Process, World};
use crate::reading::evictions;
use crate::tenants::SILENT_ZONE;
use crate::traffic::Progress;

/// So that the others take over soon after a kill.
pub const SESSION: Duration = Duration::from_secs(4);

/// One replica.
struct Slot {
    role: &'static str,
    instance: String,
    process: Option<Process>,
    /// Whether it should run.
    wanted: bool,
    /// Whether its end is a fault's doing.
    expected: bool,
}

/// All replicas.
pub struct Fleet {
    world: Arc<World>,
    slots: Vec<Slot>,
    /// What each delivery that was ever started has written.
    written: Vec<Box<dyn Fn() -> Vec<String>>>,
    /// Processes that ended by themselves, with a non-zero code and their last line.
    pub ended: Vec<String>,
    /// Processes that did not end when they were told to.
    pub stuck: Vec<String>,
}

impl Fleet {
    /// So many replicas of each role.
    pub fn start(world: &Arc<World>, roles: &[(&'static str, usize)]) -> Self {
        let mut fleet = Self {
            world: Arc::clone(world),
            slots: Vec::new(),
            written: Vec::new(),
            ended: Vec::new(),
            stuck: Vec::new(),
        };
        for &(role, count) in roles {
            fleet.scale(role, count);
        }
        for slot in &fleet.slots {
            slot.process.iter().for_each(Process::wait_ready);
        }
        fleet
    }

    /// How many replicas of a role are wanted.
    pub fn count(&self, role: &str) -> usize {
        let of_role = self.slots.iter().filter(|slot| slot.role == role);
        of_role.filter(|slot| slot.wanted).count()
    }

    /// Starts or ends replicas of a role, in an orderly way.
    pub fn scale(&mut self, role: &'static str, count: usize) {
        let mut having = self.count(role);
        while having < count {
            let idle = self
                .slots
                .iter()
                .position(|slot| slot.role == role && !slot.wanted && slot.process.is_none());
            let at = idle.unwrap_or_else(|| {
                let number = self.slots.iter().filter(|slot| slot.role == role).count();
                self.slots.push(Slot {
                    role,
                    instance: format!("{role}-{number}"),
                    process: None,
                    wanted: false,
                    expected: false,
                });
                self.slots.len() - 1
            });
            self.slots[at].wanted = true;
            self.launch(at, "");
            having += 1;
        }
        let surplus: Vec<usize> = (0..self.slots.len())
            .filter(|&at| self.slots[at].role == role && self.slots[at].wanted)
            .skip(count)
            .collect();
        for &at in &surplus {
            self.slots[at].wanted = false;
            self.slots[at].expected = true;
            if let Some(process) = &self.slots[at].process {
                process.sigterm();
            }
        }
        for at in surplus {
            self.await_end(at);
        }
    }

    /// The replicas of a role that run, by their places.
    pub fn running(&self, role: &str) -> Vec<usize> {
        (0..self.slots.len())
            .filter(|&at| self.slots[at].role == role && self.slots[at].process.is_some())
            .collect()
    }

    /// `kill -9`, and started again at once.
    pub fn kill(&mut self, at: usize) {
        self.slots[at].expected = true;
        if let Some(process) = &mut self.slots[at].process {
            process.sigkill();
        }
        self.tend();
    }

    /// Ends one and starts it with a fail-point (`src/edge/failpoint.rs`), written as the environment variable wants it.
    pub fn arm(&mut self, at: usize, point: &str) {
        self.slots[at].expected = true;
        if let Some(process) = &mut self.slots[at].process {
            process.sigkill();
        }
        self.slots[at].process = None;
        self.launch(at, point);
    }

    /// Whether the replica has ended; the supervisor has not looked yet.
    pub fn has_ended(&mut self, at: usize) -> bool {
        let process = self.slots[at].process.as_mut();
        process.is_none_or(|process| process.exited().is_some())
    }

    /// The death of the replica is a fault's doing.
    pub fn expect_end(&mut self, at: usize) {
        self.slots[at].expected = true;
    }

    /// Sends a signal by name.
    pub fn signal(&self, at: usize, name: &str) {
        if let Some(process) = &self.slots[at].process {
            process.signal(name);
        }
    }

    /// Ends one in an orderly way and starts it again.
    pub fn restart(&mut self, at: usize) {
        self.slots[at].expected = true;
        if let Some(process) = &self.slots[at].process {
            process.sigterm();
        }
        self.await_end(at);
        self.tend();
    }

    fn await_end(&mut self, at: usize) {
        /// The drain deadline, the last commit, leaving the group, and a busy machine.
        const LONG: Duration = Duration::from_secs(60);
        let slot = &mut self.slots[at];
        if let Some(mut process) = slot.process.take()
            && process.exited_within(LONG).is_none()
        {
            self.stuck.push(format!(
                "{} did not end within {LONG:?} of SIGTERM",
                slot.instance
            ));
            process.sigkill();
        }
    }

    /// Starts again what has ended and should run.
    pub fn tend(&mut self) {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let ended = slot.process.as_mut().map(Process::exited);
            match ended {
                Some(None) => continue,
                Some(Some(status)) => {
                    if !std::mem::take(&mut slot.expected) {
                        let last = slot
                            .process
                            .as_ref()
                            .and_then(|process| process.stderr().pop());
                        let line =
                            format!("{}: {status}: {}", slot.instance, last.unwrap_or_default());
                        self.ended.push(line);
                    }
                    slot.process = None;
                }
                None => {}
            }
            if self.slots[at].wanted {
                self.launch(at, "");
            }
        }
    }

    /// Tends until the events from `first` up to `last` have come through, and tells when; `None` after `patience`.
    pub fn tend_until_through(
        &mut self,
        progress: &Progress,
        first: u32,
        last: u32,
        patience: Duration,
    ) -> Option<Instant> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if progress.is_through(first, last) {
                return Some(Instant::now());
            }
            self.tend();
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    fn launch(&mut self, at: usize, points: &str) {
        let slot = &mut self.slots[at];
        slot.expected = false;
        let session = format!("session.timeout.ms={}", SESSION.as_millis());
        let extra = [
            "-X",
            &session,
            "-X",
            "heartbeat.interval.ms=500",
            "--drain-deadline",
            "5s",
            "--workers",
            "1",
            "--instance",
            &slot.instance,
            "--http-listen",
            "127.0.0.1:0",
        ];
        let mut arguments = vec![slot.role.to_owned()];
        arguments.extend(self.world.args());
        arguments.extend(extra.map(str::to_owned));
        // Harmless as long as no subscription's host is in that zone.
        let points = format!("silent-zone=return({SILENT_ZONE});{points}");
        let process = Process::spawn_with(&arguments, &[("FAILPOINTS", points.as_str())]);
        if slot.role == "deliver" {
            self.written.push(Box::new(process.stderr_reader()));
        }
        slot.process = Some(process);
    }

    /// When deliveries found that they had been put out of their group, epoch ms: at a fault, or because the machine was
    /// too busy for the session.
    pub fn evictions(&self) -> Vec<i64> {
        evictions(self.written.iter().flat_map(|read| read()))
    }

    /// What every running replica wrote to standard error, and its metrics, for the report of a failure.
    pub fn logs(&self) -> Vec<(String, Vec<String>)> {
        let running = self.slots.iter().filter_map(|slot| {
            let process = slot.process.as_ref()?;
            let mut lines = process.stderr();
            let metrics = process
                .try_get("/metrics")
                .map_or_else(String::new, |(_, body)| body);
            let told = metrics.lines().filter(|line| {
                let shows = [
                    "window",
                    "stalled",
                    "runnable",
                    "queued",
                    "unwritable",
                    "in_flight",
                    "breaker",
                    "lag_",
                ];
                !line.starts_with('#') && shows.iter().any(|part| line.contains(part))
            });
            lines.extend(told.map(str::to_owned));
            Some((slot.instance.clone(), lines))
        });
        running.collect()
    }
}
