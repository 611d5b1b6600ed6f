//! What a worker lets others read.

use std::sync::Arc;

use super::{Surroundings, Worker};
use crate::delivery::look_ahead::{self, Look};
use crate::delivery::partition::deferral::Pass;
use crate::delivery::partition::effect::Question;
use crate::delivery::read_again;
use crate::delivery::reader::{Asked, Reader, ReaderContext};
use crate::delivery::sending::Owner;
use crate::edge::port::failure::Failure;
use crate::edge::port::{AGAIN, Port};

impl<P: Port> Worker<P> {
    pub(super) fn look_ahead(&mut self, owner: Owner, question: Question) {
        let Some((asked, moves)) = self.asked(owner, question) else {
            return;
        };
        let context = || reader_context(&self.around);
        let start = || Reader::start(context(), look_ahead::PURPOSE, look_ahead::serve);
        if let Some(reader) = started(&mut self.readers.ahead, owner, start) {
            reader.ask(Look::new(asked, moves, &self.around.settings));
        }
    }

    pub(super) fn read_again(&mut self, owner: Owner, pass: Box<Pass>) {
        let Some((asked, _)) = self.asked(owner, pass) else {
            return;
        };
        let context = || reader_context(&self.around);
        let start = || Reader::start(context(), AGAIN, read_again::serve);
        if let Some(reader) = started(&mut self.readers.again, owner, start) {
            reader.ask(asked);
        }
    }

    /// A question of the present owner, and how many moves to tiers were decided before it.
    fn asked<Q>(&self, owner: Owner, question: Q) -> Option<(Asked<Q>, u64)> {
        let owned = self.partitions.get(&owner.partition)?;
        let asked = Asked {
            partition: owner.partition,
            epoch: owner.epoch,
            load: Arc::downgrade(&owned.load),
            question,
        };
        Some((asked, owned.load.moves()))
    }
}

fn reader_context<P: Port>(around: &Surroundings<P>) -> ReaderContext<P> {
    ReaderContext {
        port: around.port.clone(),
        settings: Arc::clone(&around.settings),
        cluster: around.cluster.clone(),
        metrics: around.metrics.clone(),
        worker: around.own.clone(),
    }
}

/// A reader, started if there is none.
fn started<A>(
    reader: &mut Option<Reader<A>>,
    owner: Owner,
    start: impl FnOnce() -> Result<Reader<A>, Failure>,
) -> Option<&Reader<A>> {
    if reader.is_none() {
        match start() {
            Ok(started) => *reader = Some(started),
            Err(error) => tracing::error!(
                partition = owner.partition,
                "{error}; what waits for this look-ahead waits until the partition moves"
            ),
        }
    }
    reader.as_ref()
}
