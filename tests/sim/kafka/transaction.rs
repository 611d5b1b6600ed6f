//! One transactional id at its coordinator.
//!
//! ```text
//! Empty ──a partition or a group is added──► Ongoing ──end──► Ending ──all markers written──► Ended
//!   ▲ init                                      │ init or time-out: the epoch grows, the end is an abort │
//!   └───────────────────────────────────────────┴────────────────────────────────────────────────────────┘ (Ended ──► Ongoing too)
//! ```
//!
//! The coordinator decides the end and responds; the markers are written after that. Until then whatever the producer asks
//! for is refused with `CONCURRENT_TRANSACTIONS`, which it retries. The client is one without KIP-890's second part: its
//! epoch stays the same from one transaction to the next. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::log::{Ms, Producer};
use super::{Code, Tp};

/// Where the transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// None yet, in this epoch.
    Empty,
    /// Open since this time.
    Ongoing(Ms),
    /// Decided; markers are being written.
    Ending {
        /// How it ends.
        commit: bool,
    },
    /// All markers are written.
    Ended {
        /// How it ended.
        commit: bool,
    },
}

/// What a coordinator knows of a transactional id.
#[derive(Debug)]
pub struct Transaction {
    producer: Producer,
    timeout: Ms,
    stage: Stage,
    /// Partitions that need a marker.
    pub partitions: BTreeSet<Tp>,
    /// Groups whose offsets it commits.
    pub groups: BTreeSet<Arc<str>>,
    /// Markers that are written, and perhaps not replicated yet: a leader that dies may take one with it.
    pub written: BTreeMap<Tp, i64>,
}

/// The response to the start of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// The producer may begin.
    Ready(Producer),
    /// An open transaction is being aborted first; ask again.
    Aborting,
}

impl Transaction {
    /// A new transactional id.
    pub fn new(id: i64, timeout: Ms) -> Self {
        Self {
            producer: Producer { id, epoch: 0 },
            timeout,
            stage: Stage::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            written: BTreeMap::new(),
        }
    }

    /// The present incarnation of its producer.
    pub fn producer(&self) -> Producer {
        self.producer
    }

    /// Where the transaction stands.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// A producer starts with this id, and fences its predecessor. `fresh` is a producer id for when the epochs are used
    /// up.
    ///
    /// # Errors
    /// `CONCURRENT_TRANSACTIONS` while markers are written.
    pub fn init(&mut self, timeout: Ms, fresh: i64) -> Result<Init, Code> {
        match self.stage {
            Stage::Ending { .. } => return Err(Code::ConcurrentTransactions),
            Stage::Ongoing(_) => {
                self.fence();
                return Ok(Init::Aborting);
            }
            Stage::Empty | Stage::Ended { .. } => {}
        }
        self.timeout = timeout;
        self.stage = Stage::Empty;
        self.producer = match self.producer.epoch {
            epoch if epoch >= i16::MAX - 2 => Producer {
                id: fresh,
                epoch: 0,
            },
            epoch => Producer {
                epoch: epoch + 1,
                ..self.producer
            },
        };
        Ok(Init::Ready(self.producer))
    }

    /// Aborts the open transaction in a new epoch.
    fn fence(&mut self) {
        self.producer.epoch += 1;
        self.stage = Stage::Ending { commit: false };
    }

    fn check(&self, producer: Producer) -> Result<(), Code> {
        if producer.id != self.producer.id {
            return Err(Code::InvalidProducerIdMapping);
        }
        if producer.epoch != self.producer.epoch {
            return Err(Code::InvalidProducerEpoch);
        }
        Ok(())
    }

    fn open(&mut self, now: Ms, producer: Producer) -> Result<(), Code> {
        self.check(producer)?;
        match self.stage {
            Stage::Ending { .. } => Err(Code::ConcurrentTransactions),
            Stage::Ongoing(_) => Ok(()),
            Stage::Empty | Stage::Ended { .. } => {
                self.partitions.clear();
                self.groups.clear();
                self.stage = Stage::Ongoing(now);
                Ok(())
            }
        }
    }

    /// Adds partitions, before the producer writes to them.
    ///
    /// # Errors
    /// `INVALID_PRODUCER_ID_MAPPING`, `INVALID_PRODUCER_EPOCH`, `CONCURRENT_TRANSACTIONS`.
    pub fn add(
        &mut self,
        now: Ms,
        producer: Producer,
        partitions: impl IntoIterator<Item = Tp>,
    ) -> Result<(), Code> {
        self.open(now, producer)?;
        self.partitions.extend(partitions);
        Ok(())
    }

    /// Adds a group whose offsets will be committed.
    ///
    /// # Errors
    /// As [`Transaction::add`].
    pub fn add_group(&mut self, now: Ms, producer: Producer, group: Arc<str>) -> Result<(), Code> {
        self.open(now, producer)?;
        self.groups.insert(group);
        Ok(())
    }

    /// Whether `producer` may write to `tp` now, as a leader asks (KIP-890, first part).
    ///
    /// # Errors
    /// `INVALID_PRODUCER_EPOCH`, `INVALID_PRODUCER_ID_MAPPING`, `CONCURRENT_TRANSACTIONS`; `INVALID_TXN_STATE` when the
    /// partition was not added.
    pub fn verify(&self, producer: Producer, tp: &Tp) -> Result<(), Code> {
        self.check(producer)?;
        match self.stage {
            Stage::Ending { .. } => Err(Code::ConcurrentTransactions),
            Stage::Ongoing(_) if self.partitions.contains(tp) => Ok(()),
            _ => Err(Code::InvalidTransactionalState),
        }
    }

    /// The producer ends its transaction. Returns whether markers are to be written now; a repeated end is confirmed.
    ///
    /// # Errors
    /// `INVALID_PRODUCER_ID_MAPPING`, `INVALID_PRODUCER_EPOCH`, `CONCURRENT_TRANSACTIONS`; `INVALID_TXN_STATE` where there
    /// is no transaction, or it has ended the other way.
    pub fn end(&mut self, producer: Producer, commit: bool) -> Result<bool, Code> {
        self.check(producer)?;
        match self.stage {
            Stage::Ongoing(_) => {
                self.stage = Stage::Ending { commit };
                Ok(true)
            }
            Stage::Ending { commit: ending } if ending == commit => {
                Err(Code::ConcurrentTransactions)
            }
            Stage::Ended { commit: ended } if ended == commit => Ok(false),
            Stage::Empty | Stage::Ending { .. } | Stage::Ended { .. } => {
                Err(Code::InvalidTransactionalState)
            }
        }
    }

    /// Aborts a transaction that has been open for longer than it may. Returns whether it has.
    pub fn expire(&mut self, now: Ms) -> bool {
        let expired = matches!(self.stage, Stage::Ongoing(since) if now >= since + self.timeout);
        if expired {
            self.fence();
        }
        expired
    }

    /// All markers are written.
    pub fn ended(&mut self) {
        if let Stage::Ending { commit } = self.stage {
            self.stage = Stage::Ended { commit };
            self.partitions.clear();
            self.groups.clear();
            self.written.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tp() -> Tp {
        Tp {
            topic: Arc::from("t"),
            partition: 0,
        }
    }

    #[test]
    fn a_successor_aborts_the_open_transaction_and_fences() {
        let mut transaction = Transaction::new(7, 1_000);
        let first = transaction.producer();
        transaction.add(0, first, [tp()]).unwrap();
        assert_eq!(transaction.init(1_000, 8), Ok(Init::Aborting));
        assert_eq!(
            transaction.init(1_000, 8),
            Err(Code::ConcurrentTransactions)
        );
        let fenced = transaction.end(first, true);
        assert_eq!(fenced, Err(Code::InvalidProducerEpoch));
        assert_eq!(transaction.stage(), Stage::Ending { commit: false });
        transaction.ended();
        let Ok(Init::Ready(second)) = transaction.init(1_000, 8) else {
            panic!("it may begin");
        };
        assert_eq!(second, Producer { id: 7, epoch: 2 });
        assert_eq!(
            transaction.verify(second, &tp()),
            Err(Code::InvalidTransactionalState)
        );
    }

    #[test]
    fn an_end_that_is_sent_again_is_confirmed_but_not_turned() {
        let mut transaction = Transaction::new(7, 1_000);
        let producer = transaction.producer();
        assert_eq!(
            transaction.end(producer, true),
            Err(Code::InvalidTransactionalState)
        );
        transaction.add(0, producer, [tp()]).unwrap();
        assert_eq!(transaction.end(producer, true), Ok(true));
        assert_eq!(
            transaction.end(producer, true),
            Err(Code::ConcurrentTransactions)
        );
        assert_eq!(
            transaction.end(producer, false),
            Err(Code::InvalidTransactionalState)
        );
        transaction.ended();
        assert_eq!(transaction.end(producer, true), Ok(false));
        assert_eq!(
            transaction.end(producer, false),
            Err(Code::InvalidTransactionalState)
        );
        transaction.add_group(0, producer, Arc::from("g")).unwrap();
        assert_eq!(transaction.stage(), Stage::Ongoing(0));
    }

    #[test]
    fn a_transaction_that_stays_open_for_too_long_is_aborted() {
        let mut transaction = Transaction::new(7, 1_000);
        let producer = transaction.producer();
        assert!(!transaction.expire(5_000), "none is open");
        transaction.add(5_000, producer, [tp()]).unwrap();
        assert!(!transaction.expire(5_999));
        assert!(transaction.expire(6_000));
        transaction.ended();
        let late = transaction.add(7_000, producer, [tp()]);
        assert_eq!(late, Err(Code::InvalidProducerEpoch));
    }

    #[test]
    fn a_new_producer_id_follows_the_last_epoch() {
        let mut transaction = Transaction::new(7, 1_000);
        transaction.producer.epoch = i16::MAX - 2;
        let fresh = Producer { id: 8, epoch: 0 };
        assert_eq!(transaction.init(1_000, 8), Ok(Init::Ready(fresh)));
        let old = Producer { id: 7, epoch: 1 };
        assert_eq!(
            transaction.end(old, true),
            Err(Code::InvalidProducerIdMapping)
        );
    }
}
