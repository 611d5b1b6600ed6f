//! Acknowledgements, commits of positions, new epochs, and the number of partitions of the commands.
//!
//! Positions are committed plainly, at most every tenth of a second, and only when they have changed. A commit that fails is
//! tried again. One that takes effect late, after a later one, takes a position back: a successor that begins there writes
//! again what delivery recognises as copies, since the epoch is the same. Positions are committed again then, or the group
//! would seem to be behind for as long as no event comes ([`crate::runtime::recommit`]).

use std::time::Duration;

use super::{COUNT_EVERY, Fanout, interrupted};
use crate::edge::clock;
use crate::edge::port::failure::{BatchError, ClientError, ErrorKind, Failure};
use crate::edge::port::records::Commit;
use crate::edge::port::{Ends as _, Member as _, Polled, Port, Producer as _};
use crate::fanout::history::EventPartition;
use crate::fanout::metrics::{EventResult, NewEpoch};
use crate::model::command::Cause;
use crate::model::units::Position;
use crate::runtime::metrics::Label as _;

/// How often positions are committed.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// How often the positions behind the ends of transactions are committed.
const PASSED_EVERY: Duration = Duration::from_secs(1);
/// How long a wait for acknowledgements lasts between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How long one waits while there is no room.
const NO_ROOM: Duration = Duration::from_millis(2);
/// How long there may be no room before the group is served beside it. Pausing drops what was read ahead.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long events are not taken for a change of the number of partitions of the commands.
const REST: Duration = Duration::from_secs(2);

impl<P: Port> Fanout<'_, P> {
    /// How long the next poll may wait.
    pub(super) fn wait(&self) -> Duration {
        match self.sources.uncommitted() {
            0 => super::WAIT,
            _ => self.next_commit.saturating_duration_since(clock::instant()),
        }
    }

    /// Takes note of what was acknowledged.
    pub(super) fn acknowledge(&mut self) -> Result<(), BatchError> {
        for (tag, records) in self.producer.reports()? {
            self.sources.acknowledged(tag, records);
        }
        Ok(())
    }

    pub(super) async fn commit_when_due(&mut self, member: &P::Member) -> Result<(), BatchError> {
        let now = clock::instant();
        if now < self.next_commit {
            return Ok(());
        }
        self.acknowledge()?;
        self.pass(member).await?;
        self.commit(member, false).await?;
        self.trials.forget_identities();
        self.count_partitions(member).await
    }

    /// Commits the positions that have changed, or everything. Returns whether that succeeded.
    async fn commit(&mut self, member: &P::Member, everything: bool) -> Result<bool, Failure> {
        let began = clock::instant();
        self.next_commit = began + COMMIT_EVERY;
        self.end_spans();
        if member.was_disturbed() {
            self.recommit.begin(began);
        }
        let ready = self
            .sources
            .commits(self.recommit.is_due(began) || everything);
        let events = i64::try_from(self.sources.uncommitted()).unwrap_or(i64::MAX);
        self.metrics.uncommitted().set(events);
        if ready.is_empty() {
            return Ok(true);
        }
        let commits: Vec<Commit> = ready
            .iter()
            .map(|(at, position, metadata)| Commit {
                at: self.events.topic_partition(*at),
                position: *position,
                metadata: metadata.clone(),
            })
            .collect();
        let done = member.commit(&commits).await;
        let refused = member.refused_commits();
        for (at, error) in &refused {
            self.log_failed_commit(&format!("{} {}: {error}", at.topic, at.partition));
        }
        match done {
            Ok(()) => {
                let now = clock::instant();
                self.recommit.answered(now - began, now);
                for ((at, position, _), commit) in ready.iter().zip(&commits) {
                    if !refused.iter().any(|(refused, _)| *refused == commit.at) {
                        self.sources.committed(*at, *position);
                    }
                }
                self.count();
                Ok(refused.is_empty())
            }
            Err(error) if error.is_denied() => {
                Err(Failure::from_client("committing positions", error))
            }
            // Nothing is lost: it is tried again, and a successor begins before it.
            Err(error) => {
                self.recommit.begin(clock::instant());
                self.log_failed_commit(&error);
                Ok(false)
            }
        }
    }

    fn log_failed_commit(&mut self, error: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.commit_log.pass(clock::instant()) {
            tracing::warn!(suppressed, "positions not committed, trying again: {error}");
        }
    }

    /// Ends the spans of events whose records are acknowledged.
    fn end_spans(&mut self) {
        let sources = &mut self.sources;
        let done = self.spans.extract_if(.., |(tag, ..)| sources.is_done(*tag));
        for (_, span, facts) in done {
            span.end(facts);
        }
    }

    fn count(&mut self) {
        let common = &self.context.metrics;
        for (topic, counts) in self.sources.counts() {
            self.metrics.events(counts.result).inc();
            if counts.result == EventResult::Invalid {
                common.set_aside(self.events.name(topic)).inc();
            }
            common.commands(Cause::New).inc_by(counts.commands.into());
            self.metrics
                .record_times_replaced()
                .inc_by(counts.is_time_replaced.into());
            self.metrics
                .attributes_left_out()
                .inc_by(counts.left_out.into());
            self.metrics
                .webhook_id_collisions()
                .inc_by(counts.collides.into());
        }
    }

    /// Waits until all that was taken of some partitions, or of all, is acknowledged and committed. Returns whether it is.
    pub(super) async fn settle(
        &mut self,
        member: &P::Member,
        time: Duration,
        of: Option<&[EventPartition]>,
    ) -> Result<bool, BatchError> {
        let until = clock::instant() + time;
        loop {
            self.context.heartbeat();
            self.acknowledge()?;
            let is_late = clock::instant() >= until;
            if is_late || self.sources.is_acknowledged(of) {
                // The last commit of partitions that leave counts, whatever arrived late before.
                return Ok(self.commit(member, true).await? && !is_late);
            }
            if let Some(refused) = self.producer.acknowledged_within(LOOK).await
                && let Some(first) = refused.into_iter().next()
            {
                return Err(BatchError::of_record("fanout", first.tag, first.error));
            }
        }
    }

    /// Commits a new epoch before anything is written in it.
    pub(super) async fn begin(
        &mut self,
        member: &P::Member,
        at: EventPartition,
        position: Position,
    ) -> Result<(), BatchError> {
        let Some(begin) = self.sources.begin(at, position) else {
            return Ok(());
        };
        let place = self.events.topic_partition(at);
        let commit = Commit {
            at: place.clone(),
            position,
            metadata: begin.metadata,
        };
        let commits = std::slice::from_ref(&commit);
        member
            .commit(commits)
            .await
            .map_err(|error| BatchError::of_record("fanout", 0, error))?;
        // A broker may refuse the commit of one partition, and the client reports none of it.
        let found = member.committed(std::slice::from_ref(&place)).await?;
        let kept = |found: &crate::edge::port::records::Committed| {
            found.position == Some(position) && found.metadata == commit.metadata
        };
        if !found.first().is_some_and(kept) {
            let text = format!(
                "the broker has not kept the position {position} of {} {} with its metadata",
                place.topic, place.partition
            );
            return Err(BatchError::Aborted(ClientError::new(
                ErrorKind::Other,
                &text,
            )));
        }
        self.sources.begun(at, position);
        self.count();
        self.metrics.epochs(begin.why).inc();
        match begin.why {
            NewEpoch::First => tracing::debug!(
                topic = %place.topic,
                partition = place.partition,
                %position,
                "first epoch",
            ),
            why => tracing::warn!(
                topic = %place.topic,
                partition = place.partition,
                %position,
                reason = why.text(),
                metric = "hookstream_source_epochs_total",
                "new epoch: commands that were written before from this position on are not recognised as copies",
            ),
        }
        Ok(())
    }

    /// Commits the positions behind the ends of transactions, or the group would seem to be behind for as long as no event
    /// comes.
    async fn pass(&mut self, member: &P::Member) -> Result<(), BatchError> {
        let now = clock::instant();
        if now < self.next_passed {
            return Ok(());
        }
        self.next_passed = now + PASSED_EVERY;
        for (place, position) in member.passed()? {
            let at = self.events.event_partition(&place.topic, place.partition);
            // What was given of a held partition was dropped.
            let is_dropped = self.trials.is_held(at) || self.dropped.contains(&at);
            if !is_dropped && self.sources.passed(at, position) {
                self.begin(member, at, position).await?;
            }
        }
        Ok(())
    }

    /// Looks whether the commands topic has another number of partitions.
    async fn count_partitions(&mut self, member: &P::Member) -> Result<(), BatchError> {
        let now = clock::instant();
        if now < self.next_count {
            return Ok(());
        }
        self.next_count = now + COUNT_EVERY;
        if let Some(count) = self.producer.partitions(&self.commands).await {
            self.sources.set_partitions(count);
        }
        let unknown = self.sources.unknown_ends();
        if !unknown.is_empty() {
            let each = unknown.iter();
            let places: Vec<_> = each.map(|&at| self.events.topic_partition(at)).collect();
            let ends = self.port.ends(&self.context.settings, "fanout")?;
            match ends.high(&places).await {
                Ok(found) => {
                    for (place, end) in found {
                        let at = self.events.event_partition(&place.topic, place.partition);
                        self.sources.set_end(at, end);
                    }
                }
                // Until then the old number is used.
                Err(failure) => tracing::debug!("reading the ends of event partitions: {failure}"),
            }
        }
        if self.sources.wants_rest() {
            self.settle(member, REST, None).await?;
        }
        Ok(())
    }

    /// Waits a moment, since so much is not committed that no event is taken.
    pub(super) async fn wait_for_room(&mut self, member: &P::Member) -> Result<(), BatchError> {
        self.next_commit = clock::instant();
        self.wait_a_moment(member).await
    }

    /// Waits a moment for room. When there has been none for long, the group is served meanwhile.
    pub(super) async fn wait_a_moment(&mut self, member: &P::Member) -> Result<(), BatchError> {
        self.context.heartbeat();
        self.port.sleep(NO_ROOM).await;
        self.acknowledge()?;
        let now = clock::instant();
        let since = *self.full_since.get_or_insert(now);
        if now - since < PATIENCE || self.revoked.is_some() {
            return Ok(());
        }
        if !self.is_paused {
            self.is_paused = true;
            let owned = self.trials.owned();
            let owned: Vec<_> = owned.map(|at| self.events.topic_partition(at)).collect();
            member.pause(&owned)?;
            tracing::warn!(
                uncommitted = self.sources.uncommitted(),
                metric = "hookstream_uncommitted_events",
                "no more events are taken: a partition of the commands takes no writes, or only slowly",
            );
        }
        match member
            .poll(Duration::ZERO)
            .await
            .map_err(BatchError::Failed)?
        {
            Polled::Idle => {}
            Polled::Gap(gap) => self.gap(&gap),
            Polled::Message(message) => {
                use crate::edge::port::records::RecordView as _;
                let at = self
                    .events
                    .event_partition(message.topic(), message.partition());
                self.dropped.insert(at);
            }
            Polled::Assigned(committed) => {
                self.assigned(member, &committed).await?;
                // With the new ones.
                self.is_paused = false;
            }
            Polled::Revoked { partitions, lost } => {
                self.revoked = Some((partitions, lost));
            }
        }
        Ok(())
    }

    /// There is room again.
    pub(super) async fn go_on(&mut self, member: &P::Member) -> Result<(), Failure> {
        self.full_since = None;
        if !std::mem::take(&mut self.is_paused) {
            return Ok(());
        }
        let owned = self.trials.owned().filter(|&at| !self.trials.is_held(at));
        let owned: Vec<_> = owned.map(|at| self.events.topic_partition(at)).collect();
        member.resume(&owned)?;
        let dropped: Vec<_> = std::mem::take(&mut self.dropped).into_iter().collect();
        if !dropped.is_empty() {
            self.read_from_committed(member, &dropped).await?;
        }
        Ok(())
    }

    /// An event that is being written is given up when partitions are revoked, so that the group gets its response.
    pub(super) fn check_revoked(&self) -> Result<(), BatchError> {
        match self.revoked {
            Some(_) => Err(interrupted()),
            None => Ok(()),
        }
    }
}
