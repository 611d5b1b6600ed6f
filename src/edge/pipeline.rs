//! Consume, transform, produce: batches over several producers in turn.
//!
//! The next batch is produced while the previous one commits. Commits stay in order, so the group's committed offset
//! never passes a batch whose predecessor was aborted (**Complete**). Batches may reach the log in any order unless
//! [`Pipeline::keep_order`] is called. After a failure, all uncommitted batches are discarded, the producers are
//! recreated, and the caller reads again from the committed offsets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::clock;
use super::port::failure::{BatchError, ClientError, Failure};
use super::port::records::{Commit, Record};
use super::port::task::KeepWaiting;
use super::port::{Port, Producer as _, ProducerKind, Task as _};
use crate::config::Settings;

/// The result of a batch: its number, how long its end took, and its producer.
struct Ended<P: Port> {
    producer: P::Producer,
    result: Result<(), BatchError>,
    took: Duration,
}

struct Job<P: Port> {
    number: u64,
    producer: P::Producer,
    commits: Vec<Commit>,
    generation: Option<P::Generation>,
    committed: Committed,
}

/// Called when a batch is visible, for instance to count it.
pub type Committed = Box<dyn FnOnce() + Send>;

/// The order of commits: a batch may commit once all before it have, unless one has failed.
struct Turns(watch::Sender<Turn>);

#[derive(Default)]
struct Turn {
    committed: u64,
    /// Ended batches that are not completely in the log yet.
    unacknowledged: usize,
    broken: bool,
}

impl Turns {
    /// Waits until `reached` holds or a batch has failed; `false` when one has.
    async fn wait_for(&self, mut reached: impl FnMut(&Turn) -> bool) -> bool {
        let mut turns = self.0.subscribe();
        let turn = turns.wait_for(|turn| turn.broken || reached(turn)).await;
        // The sender is this very object.
        turn.is_ok_and(|turn| !turn.broken)
    }

    /// Waits for the turn of batch `number`; `false` when a batch before it failed.
    async fn wait(&self, number: u64) -> bool {
        self.wait_for(|turn| turn.committed + 1 >= number).await
    }

    fn end(&self, number: u64, well: bool) {
        self.0.send_modify(|turn| {
            if well {
                turn.committed = number;
            } else {
                turn.broken = true;
            }
        });
    }

    fn begin(&self) {
        self.0.send_modify(|turn| turn.unacknowledged += 1);
    }

    fn acknowledged(&self) {
        self.0.send_modify(|turn| turn.unacknowledged -= 1);
    }

    fn reset(&self, committed: u64) {
        self.0.send_modify(|turn| {
            *turn = Turn {
                committed,
                unacknowledged: 0,
                broken: false,
            };
        });
    }
}

/// Producers used in turn, each with a task that ends its batches.
pub struct Pipeline<P: Port> {
    idle: VecDeque<(usize, P::Producer)>,
    open: Option<(usize, P::Producer)>,
    slots: Vec<Slot<P>>,
    /// Slots whose batch is ending, oldest first.
    pending: VecDeque<usize>,
    turns: Arc<Turns>,
    last: u64,
    observe: Box<dyn Fn(bool, Duration) + Send>,
}

struct Slot<P: Port> {
    jobs: UnboundedSender<Job<P>>,
    ended: UnboundedReceiver<Ended<P>>,
    task: P::Task,
}

impl<P: Port> Pipeline<P> {
    /// Creates `slots` producers for `purpose`. `observe` is called for each batch with whether it committed, and how
    /// long its end took.
    ///
    /// # Errors
    /// [`Failure`] when a producer cannot be created.
    pub async fn new(
        port: &P,
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        slots: usize,
        observe: impl Fn(bool, Duration) + Send + 'static,
    ) -> Result<Self, Failure> {
        let turns = Arc::new(Turns(watch::Sender::new(Turn::default())));
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
        let mut made = Vec::new();
        for slot in 0..slots {
            let (port, settings) = (port.clone(), settings.clone());
            let keep_waiting = KeepWaiting::clone(keep_waiting);
            let (done, producer) = oneshot::channel();
            port.clone()
                .spawn(format!("{purpose}-{slot}"), move || async move {
                    let kind = ProducerKind::Turn(slot);
                    let producer = port.producer(&settings, &keep_waiting, purpose, kind).await;
                    // Nobody waits for it when another one could not be made.
                    done.send(producer).ok();
                })?;
            made.push(producer);
        }
        for (slot, producer) in made.into_iter().enumerate() {
            let producer = producer
                .await
                .map_err(|_| Failure::Internal("making a producer has panicked".to_owned()))??;
            pipeline.idle.push_back((slot, producer));
            let name = format!("{purpose}-commit-{slot}");
            pipeline.slots.push(Slot::start(port, name, &turns)?);
        }
        Ok(pipeline)
    }

    /// Adds a record to the open batch. If there is none, waits for an idle producer and begins one.
    ///
    /// # Errors
    /// [`BatchError`] of this batch or an earlier one. Call [`Pipeline::recover`] then.
    pub async fn send(&mut self, record: Record<'_, P::Headers>) -> Result<(), BatchError> {
        if self.open.is_none() {
            while self.idle.is_empty() {
                self.await_oldest().await?;
            }
            self.open = self.idle.pop_front();
        }
        match &mut self.open {
            Some((_, producer)) => producer.send(record).await,
            None => Err(Failure::Internal("the pipeline has no producers".to_owned()).into()),
        }
    }

    /// Ensures that later records are behind all ended batches in the log. Each batch has its own producer, so their
    /// order is otherwise undefined. Does not wait after a failure, because all batches are discarded then.
    pub async fn keep_order(&self) {
        self.turns.wait_for(|turn| turn.unacknowledged == 0).await;
    }

    /// Ends the open batch in the background. `commits` become visible with it, on behalf of `generation`, and then
    /// `committed` is called. A batch without records only commits.
    ///
    /// # Errors
    /// [`BatchError`] of an earlier batch. Call [`Pipeline::recover`] then.
    pub async fn commit(
        &mut self,
        commits: Vec<Commit>,
        generation: Option<P::Generation>,
        committed: Committed,
    ) -> Result<(), BatchError> {
        while self.open.is_none() && self.idle.is_empty() {
            self.await_oldest().await?;
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
        if self.slots[slot].jobs.send(job).is_err() {
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
    pub async fn settle(&mut self) -> Result<(), BatchError> {
        while !self.pending.is_empty() {
            self.await_oldest().await?;
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
    pub async fn recover(&mut self) -> Result<(), Failure> {
        self.turns.end(0, false);
        while let Some(slot) = self.pending.pop_front() {
            let ended = self.slots[slot].ended.recv().await;
            let ended = ended.ok_or_else(ended_early)?;
            (self.observe)(ended.result.is_ok(), ended.took);
            self.idle.push_back((slot, ended.producer));
        }
        self.idle.extend(self.open.take());
        for (_, producer) in &mut self.idle {
            producer.renew().await?;
        }
        self.turns.reset(self.last);
        Ok(())
    }

    async fn await_oldest(&mut self) -> Result<(), BatchError> {
        let Some(&slot) = self.pending.front() else {
            return Ok(());
        };
        let ended = self.slots[slot].ended.recv().await;
        let ended = ended.ok_or_else(ended_early)?;
        self.note(slot, ended)
    }

    /// Waits for the end of the tasks, and of what they still have to do.
    pub async fn end(self) {
        for slot in self.slots {
            drop(slot.jobs);
            if !slot.task.join().await {
                tracing::error!("a committing thread has panicked");
            }
        }
    }

    fn note(&mut self, slot: usize, ended: Ended<P>) -> Result<(), BatchError> {
        self.pending.pop_front();
        (self.observe)(ended.result.is_ok(), ended.took);
        self.idle.push_back((slot, ended.producer));
        ended.result
    }
}

fn ended_early() -> Failure {
    Failure::Internal("a committing thread has ended".to_owned())
}

impl<P: Port> Slot<P> {
    fn start(port: &P, name: String, turns: &Arc<Turns>) -> Result<Self, Failure> {
        let (jobs, mut inbox) = unbounded_channel::<Job<P>>();
        let (outbox, ended) = unbounded_channel();
        let turns = Arc::clone(turns);
        let task = port.spawn(name, move || async move {
            while let Some(job) = inbox.recv().await {
                let started = clock::instant();
                let (producer, result) = end(&turns, job).await;
                let ended = Ended {
                    producer,
                    result,
                    took: clock::instant() - started,
                };
                if outbox.send(ended).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { jobs, ended, task })
    }
}

async fn end<P: Port>(turns: &Turns, job: Job<P>) -> (P::Producer, Result<(), BatchError>) {
    let Job {
        number,
        mut producer,
        commits,
        generation,
        committed,
    } = job;
    // Wait out of turn for the acknowledgements: only the offsets and the commit are ordered.
    let acknowledged = producer.acknowledged().await;
    turns.acknowledged();
    let result = match acknowledged {
        Ok(()) if turns.wait(number).await => producer.finish(&commits, generation.as_ref()).await,
        Ok(()) => Err(BatchError::Aborted(ClientError::canceled())),
        Err(error) => Err(error),
    };
    turns.end(number, result.is_ok());
    if result.is_ok() {
        committed();
    }
    (producer, result)
}
