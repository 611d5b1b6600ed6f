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
//! Questions take turns, of a quarter of a second for each topic. One that waits, for a transaction or for moves, does not
//! hold up the answers of other partitions. One that fails or gets no record does, as long as a request takes (2 s) or a
//! longer turn (8 s at most); after that it leaves as much time to the others.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::metrics::LookAheadResult;
use super::partition::effect::Question;
use super::partition::env::ORDER_BYTES;
use super::partition::event::LookAhead;
use super::partition::fairness::Search;
use super::partition::under_way::{Found, UnderWay};
use super::read_again::subscription;
use super::reader::{Asked, KEEP, Next, Queue, ReaderContext};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::record::read_command;
use crate::edge::port::Port;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{RecordView, TopicPartition};
use crate::model::throttle::Throttle;
use crate::model::units::{Offset, Position};
use crate::model::window::Window;

/// Names the clients and the thread.
pub(super) const PURPOSE: &str = "ahead";

/// How long a look-ahead waits for a transaction to end.
const OPEN_TRANSACTION: Duration = Duration::from_secs(5);
/// How often it looks whether the transaction has ended.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// How often it looks whether moves are durable.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause of a question after a failure; it doubles with each, this often.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
const DOUBLINGS: u32 = 4;
/// After so many failures in a row the clients are made anew.
const PATIENCE: u32 = 3;

mod part;

use part::{Part, Read};

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
    // Questions in a row that wait; and until when those wait that hold up others.
    let (mut waited, mut rest) = (0, clock::instant());
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
        if look.asked.has_left() {
            continue;
        }
        let began = clock::instant();
        logs.close_old(began);
        waited += 1;
        if began >= look.due(rest) {
            let turn = look.turn(&context, &mut logs).await;
            let now = clock::instant();
            match turn {
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
                Ok(Progress::Waits(time)) => look.not_before = now + time,
                Err(error) => {
                    context.metrics.look_aheads(LookAheadResult::Failed).inc();
                    if let Some(suppressed) = lines.pass(now) {
                        tracing::warn!(
                            partition = look.asked.partition,
                            suppressed,
                            "look-ahead failed, retrying: {error}"
                        );
                    }
                    look.not_before = now + BETWEEN_TRIES * 2_u32.pow(look.failures.min(DOUBLINGS));
                    look.failures += 1;
                    if look.failures >= PATIENCE {
                        logs.0.remove(look.topic());
                    }
                }
            }
            if look.is_stuck() {
                rest = now + (now - began);
            }
        }
        queue.put_back(look);
        if waited >= queue.waiting() {
            queue.pause(&context.port, |look| look.due(rest)).await;
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
                let part = Part::new(topic, asked.partition, from_here, None);
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

    /// What is being read; `None` before the first.
    fn part(&self) -> Option<&Part> {
        match &self.sought {
            Sought::UnderWay { topics, .. } => topics.as_ref()?.left.front(),
            Sought::Others(part, _) => Some(part),
        }
    }

    fn topic(&self) -> &str {
        self.part().map_or("", |part| &part.topic)
    }

    /// Whether its last turn was of no use.
    fn is_stuck(&self) -> bool {
        self.failures > 0 || self.part().is_some_and(Part::is_silent)
    }

    /// When it goes on, if those that hold up others rest until `rest`.
    fn due(&self, rest: Instant) -> Instant {
        if self.is_stuck() {
            self.not_before.max(rest)
        } else {
            self.not_before
        }
    }

    async fn turn<P: Port>(
        &mut self,
        context: &ReaderContext<P>,
        logs: &mut Logs<P::Log>,
    ) -> Result<Progress, Failure> {
        let asked = &self.asked;
        let is_over = || context.is_over() || asked.has_left();
        match &mut self.sought {
            Sought::UnderWay {
                window,
                moves,
                topics,
            } => {
                let topics = match topics {
                    Some(topics) => topics,
                    None => {
                        let load = asked.load();
                        if !load.is_some_and(|load| load.are_moves_durable(*moves)) {
                            return Ok(Progress::Waits(PAUSE));
                        }
                        let begun = Topics::begin(context, asked.partition, window).await?;
                        topics.insert(begun)
                    }
                };
                topics.turn(context, window, logs, &is_over).await
            }
            Sought::Others(part, search) => {
                let log = logs.open(context, &part.topic).await?;
                let stop = || is_over() || search.borrow().is_done();
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
        let part = |(topic, from)| Part::new(topic, partition, from, Some(OPEN_TRANSACTION));
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
        stop: &dyn Fn() -> bool,
    ) -> Result<Progress, Failure> {
        while let Some(part) = self.left.front_mut() {
            let is_released = part.topic == context.settings.topics.commands();
            let found = &mut self.found;
            let log = logs.open(context, &part.topic).await?;
            let read = part.turn(log, stop, |message| {
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
