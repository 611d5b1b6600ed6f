//! The records of an event.

use super::Fanout;
use crate::edge::clock;
use crate::edge::kafka::record::{
    command_headers, each_header, invalid_record, log_set_aside, send_invalid,
};
use crate::edge::otlp::Open;
use crate::edge::port::failure::BatchError;
use crate::edge::port::records::{Headers as _, Record, RecordView};
use crate::edge::port::{Port, Producer as _};
use crate::fanout::counts::EventCounts;
use crate::fanout::history::Origin;
use crate::fanout::metrics::EventResult;
use crate::fanout::schemas::Needs;
use crate::fanout::sources::Tag;
use crate::fanout::topics::keep_for_notice;
use crate::fanout::trials::TooLarge;
use crate::model::event::{Event, RawEvent, record_time};
use crate::model::partitioner::key_hash;
use crate::model::source;
use crate::model::span;

/// A command's record without its body and key, bytes, as far as it counts against the bound of what is not committed.
const OVERHEAD: usize = 512;

const TOO_LARGE: &str = "a command for this event would be larger than --max-event-bytes allows";

/// What was written of an event.
struct Written {
    bytes: usize,
    counts: EventCounts,
}

impl<P: Port> Fanout<'_, P> {
    /// Writes an event's records.
    pub(super) async fn write(
        &mut self,
        member: &P::Member,
        message: &impl RecordView,
        origin: Origin,
        tag: Tag,
        needs: &Needs,
    ) -> Result<(), BatchError> {
        let Written { bytes, counts } = self
            .write_records(member, message, origin, tag, needs)
            .await?;
        self.sources.written(tag, bytes, counts);
        Ok(())
    }

    async fn write_records(
        &mut self,
        member: &P::Member,
        message: &impl RecordView,
        origin: Origin,
        tag: Tag,
        needs: &Needs,
    ) -> Result<Written, BatchError> {
        let mut headers: Vec<(&str, &[u8])> = each_header(message)
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let json = match self.schemas.decode(needs, message, &mut headers) {
            Ok(json) => json,
            Err(error) => return self.set_aside(member, message, error, origin, tag).await,
        };
        let (timestamp, replaced) = record_time(message.timestamp().map(|at| at.0), clock::now());
        let raw = RawEvent {
            topic: message.topic(),
            key: message.key(),
            payload: json.as_deref().or_else(|| message.payload()),
            headers: &headers,
            timestamp,
        };
        let mapping = self.events.mapping(origin.0);
        if raw.is_skipped(mapping) {
            return Ok(Written {
                bytes: 0,
                counts: EventCounts::of(EventResult::Tombstone),
            });
        }
        let event = match self.trials.read(origin, &raw, mapping) {
            Ok(event) => event,
            Err(error) => return self.set_aside(member, message, error, origin, tag).await,
        };
        // Taken from the cache once: subscriptions do not change within an event.
        let mut matching = std::mem::take(&mut self.matching);
        self.context.table.matching(&event, &mut matching);
        if self.events.is_notices(origin.0) {
            let settings = &self.context.settings;
            keep_for_notice(settings, &event, message.key(), &mut matching);
        }
        let value = message.payload().unwrap_or_default();
        let counts = self.trials.counts(&event, value, replaced, matching.len());
        let place = span::Place {
            topic: message.topic(),
            partition: message.partition(),
            offset: message.offset(),
        };
        let written = self
            .fan_out(member, tag, &event, &mut matching, place)
            .await;
        matching.clear();
        self.matching = matching;
        match written? {
            Ok(bytes) => Ok(Written { bytes, counts }),
            Err(TooLarge) => {
                let error = TOO_LARGE.to_owned();
                self.set_aside(member, message, error, origin, tag).await
            }
        }
    }

    async fn set_aside(
        &mut self,
        member: &P::Member,
        message: &impl RecordView,
        error: String,
        origin: Origin,
        tag: Tag,
    ) -> Result<Written, BatchError> {
        let mut record = invalid_record(message, error);
        record.extent = self.trials.extent(origin);
        let topic = self.invalid.clone();
        send_invalid(&mut record, &topic, tag, async |record| {
            self.send(member, record).await?;
            self.sources.record(tag);
            Ok(())
        })
        .await?;
        // An event topic that holds something else altogether must not flood the log.
        if let Some(suppressed) = self.invalid_log.pass(clock::instant()) {
            log_set_aside(&record, suppressed);
        }
        Ok(Written {
            bytes: record.weight(),
            counts: EventCounts::of(EventResult::Invalid),
        })
    }

    /// Writes an event's commands, all of which were checked for their size before the first one is written. Returns how
    /// many bytes they have.
    async fn fan_out(
        &mut self,
        member: &P::Member,
        tag: Tag,
        event: &Event<'_>,
        matching: &mut [std::sync::Arc<crate::model::subscription::Subscription>],
        at: span::Place<'_>,
    ) -> Result<Result<usize, TooLarge>, BatchError> {
        let span = self.context.tracer.of_event(event.traceparent());
        let own = span.as_ref().map(Open::traceparent);
        let traceparent = own.as_deref().or(event.traceparent());
        let count = matching.len();
        let commands = match self.trials.fan_out(event, matching) {
            Ok(commands) => commands,
            Err(too_large) => return Ok(Err(too_large)),
        };
        let topic = self.commands.clone();
        let mut header = std::mem::take(&mut self.header);
        for command in commands.each(traceparent, clock::now()) {
            let key = command.subscriber().as_bytes();
            let target = self
                .sources
                .command(tag, key_hash(key), command.hash(), &mut header);
            // Its partition was read from another position while there was no room.
            let Some(partition) = target else {
                return Err(super::interrupted());
            };
            let headers: P::Headers = command_headers(&command.envelope());
            let record = Record {
                topic: &topic,
                partition: Some(partition),
                key: Some(key),
                value: Some(command.body),
                headers: headers.and(source::HEADER, Some(header.as_bytes())),
                tag,
            };
            self.send(member, record).await?;
        }
        self.header = header;
        if let Some(span) = span {
            let facts = span::fanout(event, at, count);
            self.spans.push((tag, span, facts));
        }
        Ok(Ok(commands.bytes() + count * OVERHEAD))
    }

    /// Hands a record to the client, and waits while its queue is full.
    async fn send(
        &mut self,
        member: &P::Member,
        mut record: Record<'_, P::Headers>,
    ) -> Result<(), BatchError> {
        while let Some(refused) = self.producer.offer(record).await? {
            record = refused;
            self.wait_a_moment(member).await?;
            self.check_revoked()?;
        }
        Ok(())
    }
}
