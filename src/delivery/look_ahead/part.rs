//! The reading of a partition of one topic, in turns, up to the end that it has when this begins.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::edge::clock;
use crate::edge::port::Log;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Isolation, Range, RecordView};
use crate::model::units::Position;

/// A turn takes this long; longer while no record comes, so that it gets past what it does not see, such as what was
/// aborted.
const TURN: Duration = Duration::from_millis(250);
/// The longest turn.
const LONGEST_TURN: Duration = Duration::from_secs(8);
/// Without a record for this long, reading fails.
const SILENCE: Duration = Duration::from_secs(30);

/// A part.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) topic: String,
    partition: i32,
    /// `None`: from the first record on.
    from: Option<Position>,
    /// How long what a transaction hides is waited for, before it is read anyway. `None`: only what is stable is read.
    patience: Option<Duration>,
    extent: Extent,
    /// Whether it reaches behind a transaction that stays open.
    pub(super) is_hidden: bool,
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

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    All,
    More,
    /// A transaction hides some of it.
    Hidden,
}

impl Part {
    pub(super) fn new(
        topic: String,
        partition: i32,
        from: Option<Position>,
        patience: Option<Duration>,
    ) -> Self {
        Self {
            topic,
            partition,
            from,
            patience,
            extent: Extent::Unknown,
            is_hidden: false,
            silent: Duration::ZERO,
        }
    }

    /// Whether the last turn brought no record.
    pub(super) fn is_silent(&self) -> bool {
        !self.silent.is_zero()
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
        if let Some(patience) = self.patience.filter(|_| end < wanted.end) {
            if now.saturating_duration_since(since) < patience {
                self.extent = Extent::Hidden(wanted, since);
                return Ok(());
            }
            tracing::warn!(
                topic = log.topic(),
                partition = self.partition,
                offset = end,
                records = wanted.end - end,
                "a transaction has been open for more than {patience:?}: what lies behind it counts as unfinished for the \
                 order of commands; find it with kafka-transactions.sh find-hanging",
            );
            let low = end.max(low);
            left.push_back((Isolation::Uncommitted, Range { low, ..wanted }));
            self.is_hidden = true;
        }
        self.extent = Extent::Left(left);
        Ok(())
    }

    /// Reads on for a turn, or until `stop` returns true. After an error the next turn goes on behind what was visited.
    pub(super) async fn turn<L: Log>(
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
        let until = clock::instant() + self.silent.clamp(TURN, LONGEST_TURN);
        while let Some((isolation, range)) = left.front_mut() {
            let (next, is_stopped) = (Cell::new(range.low), Cell::new(false));
            let stop = || {
                is_stopped.set(stop() || clock::instant() >= until);
                is_stopped.get()
            };
            let part = [*range];
            let began = clock::instant();
            let read = log.read(*isolation, &part, &stop, |message| {
                next.set(next.get().max(message.offset() + 1));
                each(message);
            });
            let mut read = read.await;
            let is_complete = read.is_ok() && !is_stopped.get();
            if is_complete || next.get() > range.low {
                range.low = next.get();
                self.silent = Duration::ZERO;
            } else {
                self.silent += clock::instant().saturating_duration_since(began);
            }
            if is_complete {
                left.pop_front();
                continue;
            }
            if read.is_ok() && self.silent > SILENCE {
                read = Err(Failure::Internal(format!(
                    "no record of {} partition {} from {} on came for {SILENCE:?}",
                    self.topic, self.partition, range.low
                )));
            }
            let Err(failure) = read else {
                return Ok(Read::More);
            };
            self.from = Some(Position(range.low));
            self.silent = Duration::ZERO;
            self.extent = Extent::Unknown;
            return Err(failure);
        }
        Ok(Read::All)
    }
}

#[cfg(test)]
mod tests;
