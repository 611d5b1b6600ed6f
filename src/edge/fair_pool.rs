//! Threads for calls that block and cannot be cancelled: name lookups, reads of files.
//!
//! A call that hangs keeps its thread, so a pool that serves all tenants must not let those whose calls hang take all of
//! its threads. Each job names two groups, a narrow and a wide one, such as a host's parent domain and its registrable
//! domain. Narrow groups take turns, whatever the number of jobs in each.
//!
//! # Limits
//! | what | limit | beyond it |
//! |---|---|---|
//! | running jobs of a narrow group | [`NARROW`], fewer when many groups have jobs | wait |
//! | running jobs of a narrow group that is slow: one of its jobs ran for [`OVERDUE`] within [`SLOW_FOR`] | [`NARROW`], and 1 while slow groups hold [`FEW`] threads | wait, behind all groups that are not slow |
//! | running jobs of a wide group | [`WIDE`] | wait |
//! | running jobs younger than [`OVERDUE`] | [`BUSY`] | wait |
//! | threads that slow groups hold | half of [`THREADS`] | wait |
//! | threads | [`THREADS`]; each ends after `IDLE` without a job | wait |
//! | waiting jobs | none here: each waits for somebody who limits them | - |

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::clock;

/// Running jobs of one narrow group.
pub const NARROW: usize = 4;
/// Running jobs of one wide group.
pub const WIDE: usize = 16;
/// Running jobs of all groups, without overdue ones.
pub const BUSY: usize = 64;
/// Threads that slow groups may hold before each of them gets only one.
pub const FEW: usize = 32;
/// Threads, including those whose jobs hang.
pub const THREADS: usize = 256;
/// A job that runs for longer hardly uses the processor: it waits for something that does not respond.
pub const OVERDUE: Duration = Duration::from_millis(250);
/// How long a group with an overdue job counts as slow.
pub const SLOW_FOR: Duration = Duration::from_secs(60);
/// How long a thread waits for another job.
const IDLE: Duration = Duration::from_secs(10);

/// A blocking call. It checks by itself whether anybody still wants its result.
pub type Job = Box<dyn FnOnce() + Send>;

/// A shared pool of threads; clones share it. Threads whose jobs hang do not delay the end of the process.
#[derive(Clone)]
pub struct FairPool(Arc<Shared>);

struct Shared {
    name: &'static str,
    state: Mutex<State>,
    wake: Condvar,
}

impl std::fmt::Debug for FairPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FairPool({})", self.0.name)
    }
}

impl FairPool {
    /// A pool without threads yet; `name` is that of its threads.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self(Arc::new(Shared {
            name,
            state: Mutex::default(),
            wake: Condvar::new(),
        }))
    }

    /// Runs `job` as soon as the limits of its groups permit.
    pub fn submit(&self, narrow: &str, wide: &str, job: Job) {
        let mut state = self.0.state();
        state.jobs.add(narrow, wide, job);
        self.0.staff(&mut state);
    }

    /// Starts what became possible only with time: a running job no longer counts once it is overdue. To be called by
    /// whoever waits for a job, every [`OVERDUE`] or so.
    pub fn nudge(&self) {
        self.0.staff(&mut self.0.state());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out each job that may start, and makes sure that there is a thread for it.
    fn staff(self: &Arc<Self>, state: &mut State) {
        let now = clock::instant();
        while let Some(next) = state.jobs.start(now) {
            state.handed.push_back(next);
        }
        while state.handed.len() > state.idle + state.starting {
            let shared = Arc::clone(self);
            let spawned = std::thread::Builder::new()
                .name(self.name.to_owned())
                .spawn(move || shared.work());
            if let Err(error) = spawned {
                // The next thread that is free takes the job, or the next call of this tries again.
                tracing::error!("starting a thread for {}: {error}", self.name);
                break;
            }
            state.starting += 1;
        }
        if state.idle > 0 && !state.handed.is_empty() {
            self.wake.notify_all();
        }
    }

    fn work(self: Arc<Self>) {
        let mut state = self.state();
        state.starting -= 1;
        loop {
            if let Some((id, job)) = state.handed.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job of {} panicked", self.name);
                }
                state = self.state();
                let now = clock::instant();
                state.jobs.end(id, now);
                // This thread takes one of those that may start now: no other one is needed for it.
                let own = state.handed.pop_front().or_else(|| state.jobs.start(now));
                self.staff(&mut state);
                state.handed.extend(own);
                continue;
            }
            state.idle += 1;
            let waited = self
                .wake
                .wait_timeout_while(state, IDLE, |state| state.handed.is_empty());
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            if state.handed.is_empty() {
                return;
            }
        }
    }
}

#[derive(Default)]
struct State {
    jobs: Jobs,
    /// Jobs that count as running and that no thread has taken yet.
    handed: VecDeque<(u64, Job)>,
    /// Threads that wait for a job.
    idle: usize,
    /// Threads that do not run yet.
    starting: usize,
}

/// A running job.
struct Running {
    narrow: Box<str>,
    wide: Box<str>,
    since: Instant,
}

/// The waiting jobs of a narrow group.
struct Waiting {
    wide: Box<str>,
    jobs: VecDeque<Job>,
}

/// Which job is next. Pure: the time is an argument.
#[derive(Default)]
struct Jobs {
    waiting: HashMap<Box<str>, Waiting>,
    /// The groups with waiting jobs, in the order of their turns.
    turns: VecDeque<Box<str>>,
    running: HashMap<u64, Running>,
    /// When a job of a group was last overdue.
    slow: HashMap<Box<str>, Instant>,
    last_id: u64,
}

impl Jobs {
    fn add(&mut self, narrow: &str, wide: &str, job: Job) {
        if let Some(waiting) = self.waiting.get_mut(narrow) {
            waiting.jobs.push_back(job);
            return;
        }
        let waiting = Waiting {
            wide: wide.into(),
            jobs: VecDeque::from([job]),
        };
        self.waiting.insert(narrow.into(), waiting);
        self.turns.push_back(narrow.into());
    }

    /// Takes the next job that the limits permit, and counts it as running.
    fn start(&mut self, now: Instant) -> Option<(u64, Job)> {
        if self.turns.is_empty() || self.running.len() >= THREADS {
            return None;
        }
        for one in self.running.values() {
            if is_overdue(one.since, now) {
                self.slow.insert(one.narrow.clone(), now);
            }
        }
        self.slow
            .retain(|_, at| now.saturating_duration_since(*at) < SLOW_FOR);
        let young = self.running.values();
        let young = young.filter(|one| !is_overdue(one.since, now)).count();
        if young >= BUSY {
            return None;
        }
        let at = self.next_turn(false).or_else(|| self.next_turn(true))?;
        let narrow = self.turns.remove(at)?;
        let waiting = self.waiting.get_mut(&narrow)?;
        let job = waiting.jobs.pop_front()?;
        let wide = waiting.wide.clone();
        if waiting.jobs.is_empty() {
            self.waiting.remove(&narrow);
        } else {
            self.turns.push_back(narrow.clone());
        }
        self.last_id += 1;
        let running = Running {
            narrow,
            wide,
            since: now,
        };
        self.running.insert(self.last_id, running);
        Some((self.last_id, job))
    }

    /// The position of the next group whose limits permit a job, among those that are slow or not.
    fn next_turn(&self, slow: bool) -> Option<usize> {
        let mut narrow: HashMap<&str, usize> = HashMap::new();
        let mut wide: HashMap<&str, usize> = HashMap::new();
        let mut held_by_slow = 0;
        for one in self.running.values() {
            *narrow.entry(&one.narrow).or_default() += 1;
            *wide.entry(&one.wide).or_default() += 1;
            held_by_slow += usize::from(self.slow.contains_key(&one.narrow));
        }
        if slow && held_by_slow >= THREADS / 2 {
            return None;
        }
        let fair = BUSY / 2 / self.turns.len().max(1);
        let most = match slow {
            true if held_by_slow < FEW => NARROW,
            true => 1,
            false => fair.clamp(1, NARROW),
        };
        self.turns.iter().position(|group| {
            let Some(waiting) = self.waiting.get(group) else {
                return false;
            };
            self.slow.contains_key(group) == slow
                && narrow.get(&**group).is_none_or(|&running| running < most)
                && wide
                    .get(&*waiting.wide)
                    .is_none_or(|&running| running < WIDE)
        })
    }

    fn end(&mut self, id: u64, now: Instant) {
        if let Some(one) = self.running.remove(&id) {
            if is_overdue(one.since, now) {
                self.slow.insert(one.narrow, now);
            } else {
                self.slow.remove(&one.narrow);
            }
        }
    }
}

fn is_overdue(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= OVERDUE
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn nothing() -> Job {
        Box::new(|| ())
    }

    /// Starts what may start, and returns the groups.
    fn started(jobs: &mut Jobs, now: Instant) -> Vec<(u64, String)> {
        let mut all = Vec::new();
        while let Some((id, _)) = jobs.start(now) {
            all.push((id, jobs.running[&id].narrow.to_string()));
        }
        all
    }

    #[test]
    fn groups_take_turns_whatever_the_number_of_their_jobs() {
        let mut jobs = Jobs::default();
        for _ in 0..1_000 {
            jobs.add("many", "many", nothing());
        }
        jobs.add("one", "one", nothing());
        let now = clock::instant();
        let begun = started(&mut jobs, now);
        assert_eq!(begun.len(), NARROW + 1);
        assert_eq!(begun[1].1, "one");
        jobs.end(begun[0].0, now);
        assert_eq!(started(&mut jobs, now).len(), 1);
    }

    #[test]
    fn narrow_groups_of_one_wide_group_share_its_limit() {
        let mut jobs = Jobs::default();
        for group in 0..100 {
            jobs.add(&format!("g{group}.dead"), "dead", nothing());
        }
        jobs.add("healthy", "healthy", nothing());
        let begun = started(&mut jobs, clock::instant());
        assert_eq!(begun.len(), WIDE + 1);
        assert!(begun.iter().any(|(_, group)| group == "healthy"));
    }

    #[test]
    fn two_hundred_groups_whose_jobs_hang_leave_room_for_others() {
        let mut jobs = Jobs::default();
        let mut now = clock::instant();
        for round in 0..60 {
            for group in 0..200 {
                let group = format!("dead{group}");
                jobs.add(&group, &group, nothing());
            }
            started(&mut jobs, now);
            let healthy = format!("healthy{}", round % 7);
            jobs.add(&healthy, &healthy, nothing());
            let asked = now;
            let own = loop {
                let begun = started(&mut jobs, now);
                if let Some((own, _)) = begun.into_iter().find(|(_, group)| *group == healthy) {
                    break own;
                }
                now += OVERDUE;
                assert!(now - asked < OVERDUE * 5, "round {round} starved");
            };
            // Only groups that are not known yet are ahead of a healthy one.
            assert!(round < 2 || now == asked, "round {round} waited");
            jobs.end(own, now);
            assert!(jobs.running.len() <= THREADS);
            now += OVERDUE;
        }
        let mut held: HashMap<&str, usize> = HashMap::new();
        for one in jobs.running.values() {
            *held.entry(&one.narrow).or_default() += 1;
        }
        assert!(held.values().all(|&held| held <= NARROW), "{held:?}");
    }

    #[test]
    fn a_slow_group_gets_one_thread_when_many_are_slow_and_is_quick_after_a_quick_job() {
        let mut jobs = Jobs::default();
        let start = clock::instant();
        let count = FEW.div_ceil(NARROW);
        let add = |jobs: &mut Jobs| {
            for group in 0..count {
                for _ in 0..NARROW {
                    jobs.add(&format!("g{group}"), &format!("g{group}"), nothing());
                }
            }
        };
        add(&mut jobs);
        let first = started(&mut jobs, start);
        assert_eq!(first.len(), FEW);
        let later = start + OVERDUE;
        add(&mut jobs);
        assert!(started(&mut jobs, later).is_empty(), "all groups are slow");
        // Those of a single group end: it is slow all the same, but few threads are held.
        let of_one = first.iter().filter(|(_, group)| group == "g0");
        of_one.for_each(|&(id, _)| jobs.end(id, later));
        assert_eq!(started(&mut jobs, later).len(), NARROW);
        let (quick, _) = jobs.running.iter().max_by_key(|(id, _)| **id).unwrap();
        let quick = *quick;
        jobs.end(quick, later);
        assert!(!jobs.slow.contains_key("g0"));
    }

    #[test]
    fn jobs_run_on_threads_and_a_panic_ends_only_its_job() {
        let pool = FairPool::new("test");
        let (done, ended) = channel();
        pool.submit("a", "a", Box::new(|| panic!("as the test wants it")));
        for number in 0..100 {
            let done = done.clone();
            let group = format!("g{}", number % 10);
            let job = Box::new(move || done.send(number).unwrap_or_default());
            pool.submit(&group, &group, job);
        }
        drop(done);
        let mut all: Vec<i32> = ended.iter().collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn jobs_that_hang_do_not_delay_another_group() {
        let pool = FairPool::new("test");
        let (hold, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..100 {
            let held = Arc::clone(&held);
            let hang = Box::new(move || {
                let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.recv().unwrap_or_default();
            });
            pool.submit("dead", "dead", hang);
        }
        let (done, ended) = channel();
        for number in 0..50 {
            let done = done.clone();
            pool.submit(
                &format!("w{number}"),
                "well",
                Box::new(move || done.send(()).unwrap_or_default()),
            );
        }
        drop(done);
        assert_eq!(ended.iter().count(), 50);
        drop(hold);
    }
}
