//! Answers the questions of a worker's partitions, outside the group and in a separate task, so that neither polling nor
//! sending waits for it.
//!
//! - Finds the unfinished commands of a partition's ordered subscriptions, in the tiers and released from them. It
//!   fetches the release group's positions first, then reads the tiers, and the commands last: whatever release moves
//!   meanwhile appears in at least one of them, and its sequence identifies duplicates. Each is read to its high
//!   watermark. A crashed owner's open transaction would otherwise hide what others committed behind it, and its
//!   subject would appear to be free. Only the transactions of this partition matter, and those for five seconds. The
//!   moves to tiers that this owner has decided have to be durable before, each of them: a command on its way is in
//!   neither. Other outcomes end their commands, whether they are durable or not.
//! - Finds whether other subscribers have commands behind a backlog that blocks its partition. Without any, sending the
//!   backlog through the tiers would be wasted work. It ends early once there are some.
//!
//! Questions take turns: one reads for about a second, and leaves the next turn to another. One that waits, for a
//! transaction or for moves, or fails, does not hold up the answers of other partitions; a broker that does not respond
//! does, for some seconds at each try, and the tries become rare.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::messages::Load;
use super::metrics::LookAheadResult;
use super::partition::effect::Question;
use super::partition::env::ORDER_BYTES;
use super::partition::event::LookAhead;
use super::partition::fairness::Search;
use super::partition::under_way::{Found, UnderWay};
use super::read_again::subscription;
use super::reader::{Asked, Next, Queue, ReaderContext};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::record::read_command;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Isolation, Range, RecordView, TopicPartition};
use crate::edge::port::{Log, Port};
use crate::model::throttle::Throttle;
use crate::model::units::{Offset, Position};
use crate::model::window::Window;

/// Names the clients and the thread.
pub(super) const PURPOSE: &str = "ahead";

/// How long a look-ahead waits for a transaction to end.
const OPEN_TRANSACTION: Duration = Duration::from_secs(5);
/// How often it looks whether the transaction has ended.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// The pause while every question waits.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause of a question after a failure; it doubles with each, this often.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
const DOUBLINGS: u32 = 4;
/// A turn reads a topic for this long; longer while no record comes, so that it gets past what it does not see.
const TURN: Duration = Duration::from_secs(1);
/// Without a record for this long, reading fails.
const SILENCE: Duration = Duration::from_secs(30);
/// A topic stays open for this long after it was read.
const KEEP: Duration = Duration::from_secs(30);

/// A question, and how far its answer has come.
#[derive(Debug)]
pub(super) struct Look {
    asked: Asked<()>,
    sought: Sought,
    not_before: Instant,
    /// Failures in a row.
    failures: u32,
}

#[derive(Debug)]
enum Sought {
    UnderWay {
        window: Box<Window>,
        /// The moves to tiers before the question, which are to be durable before the topics are read.
        moves: u64,
        /// Set when the positions of release are known.
        topics: Option<Topics>,
    },
    Others(Part, RefCell<Search>),
}

/// The topics in which the commands of a partition's ordered subscriptions are.
#[derive(Debug)]
struct Topics {
    /// Those that are left to read; the commands are the last.
    left: VecDeque<Part>,
    found: UnderWay,
    result: LookAheadResult,
}

/// The reading of a partition of one topic, up to the end that it has when this begins.
#[derive(Debug)]
struct Part {
    topic: String,
    partition: i32,
    /// `None`: from the first record on.
    from: Option<Position>,
    /// Whether what a transaction hides is waited for, and read anyway when it stays open.
    wants_hidden: bool,
    extent: Extent,
    /// Whether it reaches behind a transaction that stays open.
    is_hidden: bool,
    /// How long it was read without a record.
    silent: Duration,
}

/// How much of a part there is to read.
#[derive(Debug)]
enum Extent {
    Unknown,
    /// A transaction hides some of these records since then.
    Hidden(Range, Instant),
    Left(VecDeque<(Isolation, Range)>),
}

/// What a turn of a part has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    All,
    More,
    /// A transaction hides some of it.
    Hidden,
}

/// What a turn of a question has come to.
enum Progress {
    Answered(LookAhead, LookAheadResult),
    More,
    Waits(Duration),
}

/// The topics that were read recently, and when.
struct Logs<L>(HashMap<String, (L, Instant)>);

/// Answers until nothing can be asked any more.
pub(super) async fn serve<P: Port>(context: ReaderContext<P>, mut queue: Queue<Look>) {
    let mut logs: Logs<P::Log> = Logs(HashMap::new());
    let mut lines = Throttle::new(BETWEEN_TRIES);
    // Questions in a row that wait.
    let mut waited = 0;
    loop {
        let mut look = match queue.next(&context.port, !logs.0.is_empty()).await {
            Next::One(look) => look,
            Next::Idle => {
                logs.0.clear();
                continue;
            }
            Next::Ended => return,
        };
        if context.is_over() {
            return;
        }
        let Some(load) = look.asked.load() else {
            continue;
        };
        let began = clock::instant();
        logs.close_old(began);
        waited += 1;
        if began >= look.not_before {
            match look.turn(&context, &load, &mut logs).await {
                Ok(Progress::Answered(found, result)) => {
                    context.metrics.look_aheads(result).inc();
                    context.answer(&look.asked, found);
                    waited = 0;
                    continue;
                }
                Ok(Progress::More) => {
                    look.failures = 0;
                    waited = 0;
                }
                Ok(Progress::Waits(time)) => look.not_before = clock::instant() + time,
                Err(error) => {
                    context.metrics.look_aheads(LookAheadResult::Failed).inc();
                    if let Some(suppressed) = lines.pass(began) {
                        tracing::warn!(
                            partition = look.asked.partition,
                            suppressed,
                            "look-ahead failed, retrying: {error}"
                        );
                    }
                    logs.0.remove(look.topic());
                    let pause = BETWEEN_TRIES * 2_u32.pow(look.failures.min(DOUBLINGS));
                    look.not_before = clock::instant() + pause;
                    look.failures += 1;
                }
            }
        }
        drop(load);
        queue.put_back(look);
        if waited >= queue.waiting() {
            context.port.sleep(PAUSE).await;
            waited = 0;
        }
    }
}

impl<L> Logs<L> {
    async fn open<P: Port<Log = L>>(
        &mut self,
        context: &ReaderContext<P>,
        topic: &str,
    ) -> Result<&L, Failure> {
        let now = clock::instant();
        let (log, used) = match self.0.entry(topic.to_owned()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(none) => {
                let settings = &context.settings;
                let log = context.port.log(settings, topic.to_owned(), PURPOSE);
                none.insert((log.await?, now))
            }
        };
        *used = now;
        Ok(log)
    }

    /// Closes what was not read for long: its clients are not served meanwhile.
    fn close_old(&mut self, now: Instant) {
        self.0
            .retain(|_, (_, used)| now.saturating_duration_since(*used) < KEEP);
    }
}

impl Look {
    /// A question that is asked after this many moves to tiers.
    pub(super) fn new(asked: Asked<Question>, moves: u64, settings: &Settings) -> Self {
        let (asked, question) = asked.take();
        let sought = match question {
            Question::UnderWay(window) => Sought::UnderWay {
                window,
                moves,
                topics: None,
            },
            Question::Others(from, except) => {
                let topic = settings.topics.commands();
                let from_here = Some(Position(from.0));
                let part = Part::new(topic, asked.partition, from_here, false);
                Sought::Others(part, RefCell::new(Search::new(from, except)))
            }
        };
        Self {
            asked,
            sought,
            not_before: clock::instant(),
            failures: 0,
        }
    }

    /// The topic that is being read; empty before the first.
    fn topic(&self) -> &str {
        let part = match &self.sought {
            Sought::UnderWay { topics, .. } => topics.as_ref().and_then(|all| all.left.front()),
            Sought::Others(part, _) => Some(part),
        };
        part.map_or("", |part| &part.topic)
    }

    async fn turn<P: Port>(
        &mut self,
        context: &ReaderContext<P>,
        load: &Load,
        logs: &mut Logs<P::Log>,
    ) -> Result<Progress, Failure> {
        match &mut self.sought {
            Sought::UnderWay {
                window,
                moves,
                topics,
            } => {
                let topics = match topics {
                    Some(topics) => topics,
                    None if !load.are_moves_durable(*moves) => return Ok(Progress::Waits(PAUSE)),
                    None => {
                        let begun = Topics::begin(context, self.asked.partition, window).await?;
                        topics.insert(begun)
                    }
                };
                topics.turn(context, window, logs).await
            }
            Sought::Others(part, search) => {
                let log = logs.open(context, &part.topic).await?;
                let stop = || context.is_over() || search.borrow().is_done();
                let read = part.turn(log, &stop, |message| {
                    let offset = Offset(message.offset());
                    search.borrow_mut().visit(offset, subscription(message));
                });
                let read = read.await?;
                let search = search.borrow();
                if read == Read::More && !search.is_done() {
                    return Ok(Progress::More);
                }
                Ok(Progress::Answered(
                    LookAhead::Others(search.found()),
                    LookAheadResult::Complete,
                ))
            }
        }
    }
}

impl Topics {
    async fn begin<P: Port>(
        context: &ReaderContext<P>,
        partition: i32,
        window: &Window,
    ) -> Result<Self, Failure> {
        let settings = &context.settings;
        let delays = settings.tiers.delays().iter().rev();
        let tiers: Vec<_> = delays.map(|&delay| settings.topics.retry(delay)).collect();
        let at = |topic: &String| TopicPartition {
            topic: Arc::from(topic.as_str()),
            partition,
        };
        let asked: Vec<_> = tiers.iter().map(at).collect();
        let group = format!("{}release", settings.group_prefix);
        let positions = context.port.positions(settings, &group, PURPOSE, &asked);
        let released_to = positions.await?;
        let part = |(topic, from)| Part::new(topic, partition, from, true);
        let mut left: VecDeque<_> = tiers.into_iter().zip(released_to).map(part).collect();
        left.push_back(part((settings.topics.commands(), Some(window.position()))));
        Ok(Self {
            left,
            found: UnderWay::new(ORDER_BYTES),
            result: LookAheadResult::Complete,
        })
    }

    async fn turn<P: Port>(
        &mut self,
        context: &ReaderContext<P>,
        window: &Window,
        logs: &mut Logs<P::Log>,
    ) -> Result<Progress, Failure> {
        let stop = || context.is_over();
        while let Some(part) = self.left.front_mut() {
            let is_released = part.topic == context.settings.topics.commands();
            let found = &mut self.found;
            let log = logs.open(context, &part.topic).await?;
            let read = part.turn(log, &stop, |message| {
                let released = is_released.then(|| Offset(message.offset()));
                if !released.is_some_and(|offset| window.is_finished(offset)) {
                    note(found, message, released, &context.cluster);
                }
            });
            match read.await? {
                Read::Hidden => return Ok(Progress::Waits(BETWEEN_LOOKS)),
                Read::More => return Ok(Progress::More),
                Read::All => {
                    if part.is_hidden {
                        self.result = LookAheadResult::OpenTransaction;
                    }
                    self.left.pop_front();
                }
            }
        }
        let found = std::mem::replace(&mut self.found, UnderWay::new(ORDER_BYTES));
        Ok(Progress::Answered(LookAhead::UnderWay(found), self.result))
    }
}

impl Part {
    fn new(topic: String, partition: i32, from: Option<Position>, wants_hidden: bool) -> Self {
        Self {
            topic,
            partition,
            from,
            wants_hidden,
            extent: Extent::Unknown,
            is_hidden: false,
            silent: Duration::ZERO,
        }
    }

    /// Finds what there is to read.
    ///
    /// A transaction that stays open must not withhold the order of the whole partition. What lies behind it is read then
    /// whatever becomes of it. A command whose record is aborted later is unfinished all the same, as its original is, so
    /// this blocks too much rather than too little: a subject may wait until its command is overdue.
    async fn measure<L: Log>(&mut self, log: &L) -> Result<(), Failure> {
        // Of this partition only: another one may have no leader, or a transaction that hangs.
        let asked = log.high_watermark(self.partition, Duration::ZERO, &|| true);
        let (range, stable) = asked.await?;
        let now = clock::instant();
        let (wanted, since) = match self.extent {
            Extent::Hidden(wanted, since) => (wanted, since),
            Extent::Unknown | Extent::Left(_) => (range, now),
        };
        let low = self.from.map_or(range.low, |from| from.0.max(range.low));
        let end = stable.min(wanted.end);
        let committed = Range { low, end, ..wanted };
        let mut left = VecDeque::from([(Isolation::Committed, committed)]);
        if self.wants_hidden && end < wanted.end {
            if now.saturating_duration_since(since) <= OPEN_TRANSACTION {
                self.extent = Extent::Hidden(wanted, since);
                return Ok(());
            }
            tracing::warn!(
                topic = log.topic(),
                partition = self.partition,
                offset = end,
                records = wanted.end - end,
                "a transaction has been open for more than {OPEN_TRANSACTION:?}: what lies behind it counts as unfinished \
                 for the order of commands; find it with kafka-transactions.sh find-hanging",
            );
            let low = end.max(low);
            left.push_back((Isolation::Uncommitted, Range { low, ..wanted }));
            self.is_hidden = true;
        }
        self.extent = Extent::Left(left);
        Ok(())
    }

    /// Reads on for a turn, or until `stop` returns true. After an error the next turn goes on behind what was visited.
    async fn turn<L: Log>(
        &mut self,
        log: &L,
        stop: &dyn Fn() -> bool,
        mut each: impl FnMut(&L::Record<'_>),
    ) -> Result<Read, Failure> {
        if !matches!(self.extent, Extent::Left(_)) {
            self.measure(log).await?;
        }
        let Extent::Left(left) = &mut self.extent else {
            return Ok(Read::Hidden);
        };
        let began = clock::instant();
        let until = began + TURN.max(self.silent);
        while let Some((isolation, range)) = left.front_mut() {
            let (next, is_stopped) = (Cell::new(range.low), Cell::new(false));
            let stop = || {
                is_stopped.set(stop() || clock::instant() >= until);
                is_stopped.get()
            };
            let part = [*range];
            let read = log.read(*isolation, &part, &stop, |message| {
                next.set(next.get().max(message.offset() + 1));
                each(message);
            });
            let mut read = read.await;
            if next.get() > range.low {
                range.low = next.get();
                self.silent = Duration::ZERO;
            } else {
                self.silent += clock::instant().saturating_duration_since(began);
            }
            if read.is_ok() && is_stopped.get() {
                if self.silent < SILENCE {
                    return Ok(Read::More);
                }
                read = Err(Failure::Internal(format!(
                    "no record of {} partition {} from {} on came for {SILENCE:?}",
                    self.topic, self.partition, range.low
                )));
            }
            if let Err(failure) = read {
                self.from = Some(Position(range.low));
                self.silent = Duration::ZERO;
                self.extent = Extent::Unknown;
                return Err(failure);
            }
            left.pop_front();
        }
        Ok(Read::All)
    }
}

fn note(
    found: &mut UnderWay,
    message: &impl RecordView,
    released: Option<Offset>,
    cluster: &ClusterId,
) {
    // The role that handles unreadable records reports them.
    let Ok(Ok(mut command)) = read_command(message) else {
        return;
    };
    // A command without a sequence was never taken.
    if command.sequence.is_none() {
        return;
    }
    command.place_in_order(cluster.as_str(), message.offset());
    if let (Some(subject), Some(sequence)) = (command.subject, command.sequence) {
        let one = Found {
            subject,
            sequence,
            attempt: command.attempt,
            due: command.due.unwrap_or(command.enqueued),
            released,
        };
        found.add(&command.subscription, &command.subscriber, one);
    }
}

#[cfg(test)]
mod tests;
