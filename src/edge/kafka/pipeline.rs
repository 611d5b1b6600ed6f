//! Consume, transform, produce: batches over several producers in turn.
//!
//! The next batch is produced while the previous one commits. Commits stay in order, so the group's committed offset
//! never passes a batch whose predecessor was aborted (**Complete**). Batches may reach the log in any order unless
//! [`Pipeline::keep_order`] is called. After a failure, all uncommitted batches are discarded, the producers are
//! recreated, and the caller reads again from the committed offsets.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::ConsumerGroupMetadata;

use super::producer::{BatchError, Producer, Record};
use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::Commit;
use crate::edge::kafka::wait::KeepWaiting;

/// The result of a batch: its number, how long its end took, and its producer.
struct Ended {
    producer: Producer,
    result: Result<(), BatchError>,
    took: Duration,
}

struct Job {
    number: u64,
    producer: Producer,
    commits: Vec<Commit>,
    generation: Option<Arc<ConsumerGroupMetadata>>,
    committed: Committed,
}

/// Called when a batch is visible, for instance to count it.
pub type Committed = Box<dyn FnOnce() + Send>;

/// The order of commits: a batch may commit once all before it have, unless one has failed.
#[derive(Default)]
struct Turns {
    state: Mutex<Turn>,
    moved: Condvar,
}

#[derive(Default)]
struct Turn {
    committed: u64,
    /// Ended batches that are not completely in the log yet.
    unacknowledged: usize,
    broken: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `wanted` holds and no batch has failed.
    fn wait_while(&self, mut wanted: impl FnMut(&Turn) -> bool) -> MutexGuard<'_, Turn> {
        self.moved
            .wait_while(self.lock(), |turn| !turn.broken && wanted(turn))
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of batch `number`; `false` when a batch before it failed.
    fn wait(&self, number: u64) -> bool {
        !self.wait_while(|turn| turn.committed + 1 < number).broken
    }

    fn end(&self, number: u64, well: bool) {
        let mut turn = self.lock();
        if well {
            turn.committed = number;
        } else {
            turn.broken = true;
        }
        self.moved.notify_all();
    }

    fn begin(&self) {
        self.lock().unacknowledged += 1;
    }

    fn acknowledged(&self) {
        self.lock().unacknowledged -= 1;
        self.moved.notify_all();
    }

    fn reset(&self, committed: u64) {
        *self.lock() = Turn {
            committed,
            unacknowledged: 0,
            broken: false,
        };
    }
}

/// Producers used in turn, each with a thread that ends its batches.
pub struct Pipeline {
    idle: VecDeque<(usize, Producer)>,
    open: Option<(usize, Producer)>,
    slots: Vec<Slot>,
    /// Slots whose batch is ending, oldest first.
    pending: VecDeque<usize>,
    turns: Arc<Turns>,
    last: u64,
    observe: Box<dyn Fn(bool, Duration) + Send>,
}

struct Slot {
    jobs: Option<Sender<Job>>,
    ended: Receiver<Ended>,
    thread: Option<JoinHandle<()>>,
}

impl Pipeline {
    /// Creates `slots` producers for `purpose`. `observe` is called for each batch with whether it committed, and how
    /// long its end took.
    ///
    /// # Errors
    /// [`Failure`] when a producer cannot be created.
    pub fn new(
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        slots: usize,
        observe: impl Fn(bool, Duration) + Send + 'static,
    ) -> Result<Self, Failure> {
        let turns = Arc::new(Turns::default());
        let mut pipeline = Self {
            idle: VecDeque::new(),
            open: None,
            slots: Vec::new(),
            pending: VecDeque::new(),
            turns: Arc::clone(&turns),
            last: 0,
            observe: Box::new(observe),
        };
        // Concurrently, because each waits for the coordinator several times: sequentially, this would dominate the
        // start-up time.
        let made = std::thread::scope(|scope| {
            let each = (0..slots).map(|slot| {
                let make = move || Producer::new(settings, keep_waiting, purpose, slot);
                scope.spawn(make)
            });
            let threads: Vec<_> = each.collect();
            let each = threads.into_iter().map(|thread| thread.join());
            each.collect::<Vec<_>>()
        });
        for (slot, made) in made.into_iter().enumerate() {
            let producer =
                made.map_err(|_| Failure::Internal("making a producer has panicked".to_owned()))??;
            pipeline.idle.push_back((slot, producer));
            pipeline.slots.push(Slot::start(&turns));
        }
        Ok(pipeline)
    }

    /// Adds a record to the open batch. If there is none, waits for an idle producer and begins one.
    ///
    /// # Errors
    /// [`BatchError`] of this batch or an earlier one. Call [`Pipeline::recover`] then.
    pub fn send(&mut self, record: Record<'_>) -> Result<(), BatchError> {
        if self.open.is_none() {
            while self.idle.is_empty() {
                self.await_oldest()?;
            }
            self.open = self.idle.pop_front();
        }
        match &mut self.open {
            Some((_, producer)) => producer.send(record),
            None => Err(Failure::Internal("the pipeline has no producers".to_owned()).into()),
        }
    }

    /// Ensures that later records are behind all ended batches in the log. Each batch has its own producer, so their
    /// order is otherwise undefined. Does not wait after a failure, because all batches are discarded then.
    pub fn keep_order(&self) {
        drop(self.turns.wait_while(|turn| turn.unacknowledged > 0));
    }

    /// Ends the open batch in the background. `commits` become visible with it, on behalf of `generation`, and then
    /// `committed` is called. A batch without records only commits.
    ///
    /// # Errors
    /// [`BatchError`] of an earlier batch. Call [`Pipeline::recover`] then.
    pub fn commit(
        &mut self,
        commits: Vec<Commit>,
        generation: Option<Arc<ConsumerGroupMetadata>>,
        committed: Committed,
    ) -> Result<(), BatchError> {
        while self.open.is_none() && self.idle.is_empty() {
            self.await_oldest()?;
        }
        let Some((slot, producer)) = self.open.take().or_else(|| self.idle.pop_front()) else {
            return Ok(());
        };
        self.last += 1;
        let job = Job {
            number: self.last,
            producer,
            commits,
            generation,
            committed,
        };
        self.turns.begin();
        let sent = self.slots[slot]
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(Failure::Internal("a committing thread has ended".to_owned()).into());
        }
        self.pending.push_back(slot);
        Ok(())
    }

    /// Handles batches that have ended meanwhile, without waiting.
    ///
    /// # Errors
    /// [`BatchError`] of a batch that failed. Call [`Pipeline::recover`] then.
    pub fn check(&mut self) -> Result<(), BatchError> {
        while let Some(&slot) = self.pending.front() {
            match self.slots[slot].ended.try_recv() {
                Ok(ended) => self.note(slot, ended)?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Waits until every batch has ended.
    ///
    /// # Errors
    /// [`BatchError`] of the first batch that failed. Call [`Pipeline::recover`] then.
    pub fn settle(&mut self) -> Result<(), BatchError> {
        while !self.pending.is_empty() {
            self.await_oldest()?;
        }
        Ok(())
    }

    /// Whether any batch is open or ending.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.open.is_some() || !self.pending.is_empty()
    }

    /// Discards every uncommitted batch and recreates all producers. After it returns, no earlier batch can commit any
    /// more.
    ///
    /// # Errors
    /// [`Failure`] when a producer cannot be created.
    pub fn recover(&mut self) -> Result<(), Failure> {
        self.turns.end(0, false);
        while let Some(slot) = self.pending.pop_front() {
            let ended = self.slots[slot].ended.recv().map_err(|_| ended_early())?;
            (self.observe)(ended.result.is_ok(), ended.took);
            self.idle.push_back((slot, ended.producer));
        }
        self.idle.extend(self.open.take());
        for (_, producer) in &mut self.idle {
            producer.renew()?;
        }
        self.turns.reset(self.last);
        Ok(())
    }

    fn await_oldest(&mut self) -> Result<(), BatchError> {
        let Some(&slot) = self.pending.front() else {
            return Ok(());
        };
        let ended = self.slots[slot].ended.recv().map_err(|_| ended_early())?;
        self.note(slot, ended)
    }

    fn note(&mut self, slot: usize, ended: Ended) -> Result<(), BatchError> {
        self.pending.pop_front();
        (self.observe)(ended.result.is_ok(), ended.took);
        self.idle.push_back((slot, ended.producer));
        ended.result
    }
}

fn ended_early() -> Failure {
    Failure::Internal("a committing thread has ended".to_owned())
}

impl Slot {
    fn start(turns: &Arc<Turns>) -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (outbox, ended) = channel();
        let turns = Arc::clone(turns);
        let thread = std::thread::spawn(move || {
            for job in inbox {
                let started = crate::edge::clock::instant();
                let (producer, result) = end(&turns, job);
                let ended = Ended {
                    producer,
                    result,
                    took: crate::edge::clock::instant() - started,
                };
                if outbox.send(ended).is_err() {
                    break;
                }
            }
        });
        Self {
            jobs: Some(jobs),
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a committing thread has panicked");
        }
    }
}

fn end(turns: &Turns, job: Job) -> (Producer, Result<(), BatchError>) {
    let Job {
        number,
        mut producer,
        commits,
        generation,
        committed,
    } = job;
    // Wait out of turn for the acknowledgements: only the offsets and the commit are ordered.
    let acknowledged = producer.acknowledged();
    turns.acknowledged();
    let result = acknowledged.and_then(|()| {
        if turns.wait(number) {
            producer.finish(&commits, generation.as_deref())
        } else {
            Err(BatchError::Aborted(rdkafka::error::KafkaError::Canceled))
        }
    });
    turns.end(number, result.is_ok());
    if result.is_ok() {
        committed();
    }
    (producer, result)
}
