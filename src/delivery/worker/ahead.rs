//! What a worker lets others read.

use std::sync::Arc;

use super::Worker;
use crate::delivery::look_ahead;
use crate::delivery::partition::deferral::Pass;
use crate::delivery::partition::effect::Question;
use crate::delivery::read_again::{self, Rereader};
use crate::delivery::sending::Owner;
use crate::edge::port::Port;
use crate::edge::port::failure::Failure;

impl<P: Port> Worker<P> {
    pub(super) fn look_ahead(&self, owner: Owner, question: Question) {
        let around = &self.around;
        let Some(owned) = self.partitions.get(&owner.partition) else {
            return;
        };
        let asked = look_ahead::Asked {
            partition: owner.partition,
            epoch: owner.epoch,
            moves: owned.load.moves(),
            load: Arc::downgrade(&owned.load),
            question,
        };
        let (settings, cluster, worker) = (&around.settings, &around.cluster, around.own.clone());
        let started = look_ahead::start(
            &around.port,
            settings,
            cluster,
            &around.metrics,
            asked,
            worker,
        );
        if let Err(error) = started {
            not_started(owner, &error);
        }
    }

    pub(super) fn read_again(&mut self, owner: Owner, pass: Box<Pass>) {
        let around = &self.around;
        let Some(owned) = self.partitions.get(&owner.partition) else {
            return;
        };
        let asked = read_again::Asked {
            partition: owner.partition,
            epoch: owner.epoch,
            load: Arc::downgrade(&owned.load),
            pass,
        };
        let rereader = match &self.rereader {
            Some(started) => started,
            None => {
                let (settings, worker) = (&around.settings, around.own.clone());
                match Rereader::start(&around.port, settings, &around.metrics, worker) {
                    Ok(started) => self.rereader.insert(started),
                    Err(error) => return not_started(owner, &error),
                }
            }
        };
        rereader.ask(asked);
    }
}

fn not_started(owner: Owner, error: &Failure) {
    tracing::error!(
        partition = owner.partition,
        "{error}; what waits for this look-ahead waits until the partition moves"
    );
}
