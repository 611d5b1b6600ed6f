//! The clients of Kafka as the port has them: their own calls, which block.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};

use crate::edge::kafka::log_reader::Log;
use crate::edge::kafka::member::{Member, Polled};
use crate::edge::kafka::producer::{Producer, Record};
use crate::edge::port;
use crate::edge::port::failure::{BatchError, ClientError, Failure, Refused};
use crate::edge::port::records::{Commit, Committed, Isolation, Range, Stamp, TopicPartition};
use crate::edge::port::task::KeepWaiting;
use crate::model::units::Position;

impl port::Member for Member {
    type Generation = Arc<ConsumerGroupMetadata>;
    type Record<'a> = BorrowedMessage<'a>;

    async fn poll(&self, timeout: Duration) -> Result<Polled<'_>, Failure> {
        Member::poll(self, timeout)
    }

    fn take(&self, partitions: &[Committed]) -> Result<(), Failure> {
        Member::take(self, partitions)
    }

    fn take_unread(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        Member::take_unread(self, partitions)
    }

    fn give_up(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        Member::give_up(self, partitions)
    }

    fn stop_reading(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        Member::stop_reading(self, partitions)
    }

    fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        Member::pause(self, partitions)
    }

    fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        Member::resume(self, partitions)
    }

    async fn rewind(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        Member::rewind(self, partitions)
    }

    async fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        Member::committed(self, partitions)
    }

    fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        Member::passed(self)
    }

    async fn commit(&self, commits: &[Commit]) -> Result<(), ClientError> {
        Ok(Member::commit(self, commits)?)
    }

    fn refused_commits(&self) -> Vec<(TopicPartition, ClientError)> {
        let refused = Member::refused_commits(self).into_iter();
        refused.map(|(at, error)| (at, error.into())).collect()
    }

    fn session(&self) -> Duration {
        Member::session(self)
    }

    fn was_disturbed(&self) -> bool {
        Member::was_disturbed(self)
    }

    fn generation(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        Member::generation(self)
    }

    async fn renew_generation(&self, anchor: &[Commit]) -> Result<(), ClientError> {
        Ok(Member::renew_generation(self, anchor)?)
    }

    async fn leave(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        Member::leave(self, ended)
    }
}

impl port::Producer for Producer {
    type Generation = Arc<ConsumerGroupMetadata>;
    type Headers = OwnedHeaders;

    async fn send(&mut self, record: Record<'_>) -> Result<(), BatchError> {
        Producer::send(self, record)
    }

    async fn offer<'a>(&mut self, record: Record<'a>) -> Result<Option<Record<'a>>, BatchError> {
        Producer::offer(self, record)
    }

    fn reports(&self) -> Result<Vec<(usize, u32)>, BatchError> {
        Producer::reports(self)
    }

    async fn acknowledged(&self) -> Result<(), BatchError> {
        Producer::acknowledged(self)
    }

    async fn acknowledged_within(&self, time: Duration) -> Option<Vec<Refused>> {
        Producer::acknowledged_within(self, time)
    }

    fn stamp(&self) -> Option<Stamp> {
        Producer::stamp(self)
    }

    async fn finish(
        &mut self,
        commits: &[Commit],
        generation: Option<&Self::Generation>,
    ) -> Result<(), BatchError> {
        Producer::finish(self, commits, generation.map(|generation| &**generation))
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        Producer::renew(self)
    }

    async fn successor(&mut self, keep_waiting: &KeepWaiting) -> Result<Self, Failure> {
        Producer::successor(self, keep_waiting)
    }

    async fn abandon(self) {
        Producer::abandon(self);
    }

    async fn partitions(&self, topic: &str) -> Option<i32> {
        Producer::partitions(self, topic)
    }
}

impl port::Log for Log {
    type Record<'a> = BorrowedMessage<'a>;

    fn topic(&self) -> &str {
        Log::topic(self)
    }

    async fn stable_ends(&self) -> Result<Vec<Range>, Failure> {
        Log::stable_ends(self)
    }

    async fn high_watermark(
        &self,
        partition: i32,
        patience: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Range, i64), Failure> {
        Log::high_watermark(self, partition, patience, stop)
    }

    async fn read(
        &self,
        isolation: Isolation,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<(), Failure> {
        let each = |message: &BorrowedMessage<'_>| {
            visit(message);
            Ok::<_, Failure>(ControlFlow::Continue(()))
        };
        match isolation {
            Isolation::Committed => Log::read(self, ranges, stop, each)?,
            Isolation::Uncommitted => Log::read_uncommitted(self, ranges, stop, each)?,
        };
        Ok(())
    }
}
