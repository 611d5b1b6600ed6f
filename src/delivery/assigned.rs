//! Partitions that this process gets: they begin where their last owner has ended.

use std::sync::Arc;

use super::durable_prefix::DurablePrefix;
use super::messages::{Load, Message};
use super::role::{Delivery, Owned};
use crate::edge::clock;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Commit, Committed, TopicPartition};
use crate::edge::port::{Member as _, Port};
use crate::model::window::{Place, ReadError, Restored, Snapshot};

impl<P: Port> Delivery<'_, P> {
    fn place(&self, number: i32) -> Place {
        Place::new(self.cluster.as_str(), &self.topic, number)
    }

    pub(super) fn open(&mut self, number: i32, restored: Restored, committed: Option<Snapshot>) {
        let load = Arc::new(Load::default());
        let place = self.place(number);
        self.workers.place(number).send(Message::Open {
            partition: number,
            place,
            restored: Box::new(restored),
            load: Arc::clone(&load),
        });
        let owned = Owned {
            load,
            durable_moves: DurablePrefix::default(),
            paused: false,
            committed,
        };
        self.partitions.insert(number, owned);
    }

    pub(super) fn assigned(&mut self, committed: &[Committed]) -> Result<(), Failure> {
        let numbers: Vec<i32> = committed.iter().map(|found| found.at.partition).collect();
        self.rejected.settled(&numbers);
        if self.context.stopping() {
            // The group goes on, and they move on when this process leaves it.
            let each = numbers.iter().map(|&number| self.at(number));
            self.member.take_unread(&each.collect::<Vec<_>>())?;
            self.is_generation_old = false;
            return Ok(());
        }
        let newer = self.open_all(committed);
        self.member.take(committed)?;
        self.is_generation_old = false;
        for (number, version) in newer {
            self.stop_at_newer(number, None, version)?;
        }
        if !numbers.is_empty() {
            tracing::info!(partitions = ?numbers, "partitions assigned");
        }
        Ok(())
    }

    /// Begins with partitions where their last owner has ended. Returns those whose state a newer program has written.
    fn open_all(&mut self, committed: &[Committed]) -> Vec<(i32, u32)> {
        let mut newer = Vec::new();
        for found in committed {
            let number = found.at.partition;
            let position = found.position.unwrap_or_default();
            let place = self.place(number);
            let (restored, error) = Restored::read(position, &found.metadata, place);
            if let Some(version) = error.as_ref().and_then(ReadError::newer) {
                // Without a window: nothing is delivered or committed.
                newer.push((number, version.into()));
                continue;
            }
            if let Some(error) = error {
                self.metrics.foreign_commit_metadata().inc();
                tracing::error!(
                    topic = %self.topic, partition = number, position = position.0,
                    metric = "hookstream_foreign_commit_metadata_total",
                    "finished commands above the committed position may be delivered again: {error}",
                );
            }
            let known = found.position.map(|position| Snapshot {
                position,
                metadata: found.metadata.clone(),
            });
            self.open(number, restored, known);
        }
        newer
    }

    /// Takes back partitions that this process has given up for nothing ([`Rejected`]).
    pub(super) async fn take_back(&mut self) -> Result<(), Failure> {
        if self.drain.is_some() {
            return Ok(());
        }
        let numbers = self
            .rejected
            .take_back(self.member.session(), clock::instant());
        if numbers.is_empty() {
            return Ok(());
        }
        let each: Vec<TopicPartition> = numbers.iter().map(|&number| self.at(number)).collect();
        let committed = self.member.committed(&each).await?;
        // A commit that changes nothing: only a member's is accepted.
        let anchor = committed.iter().find_map(|found| {
            Some(Commit {
                at: found.at.clone(),
                position: found.position?,
                metadata: found.metadata.clone(),
            })
        });
        let anchor: Vec<Commit> = anchor.into_iter().collect();
        if let Err(error) = self.member.renew_generation(&anchor).await {
            tracing::warn!(partitions = ?numbers, "not taken again: {error}");
            self.rejected.add(&numbers, clock::instant());
            return Ok(());
        }
        self.member.rewind(&each).await?;
        self.member.resume(&each)?;
        tracing::warn!(
            partitions = ?numbers,
            "taken again: a broker had said that this process is not in its group, and the client has not lost them"
        );
        for (number, version) in self.open_all(&committed) {
            self.stop_at_newer(number, None, version)?;
        }
        Ok(())
    }
}
