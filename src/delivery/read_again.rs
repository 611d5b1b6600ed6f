//! Reads deferred commands again for a worker, outside the group: see [`super::partition::deferral`].

use std::cell::RefCell;
use std::time::Duration;

use super::partition::deferral::{Collector, Found, Pass};
use crate::config::Settings;
use crate::edge::kafka::record::{each_header, read_command};
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Isolation, Range, RecordView};
use crate::edge::port::{AGAIN, Log as _, Port};
use crate::model::command::header;
use crate::model::units::Offset;

/// What a pass takes into memory at most, bytes, and at least.
const MOST_BYTES: usize = 8 * 1024 * 1024;
const LEAST_BYTES: usize = 64 * 1024;

/// Reads a part of a partition; takes a quarter of the memory that the partition may hold (`share`).
pub(super) async fn read(
    port: &impl Port,
    settings: &Settings,
    partition: i32,
    pass: &Pass,
    share: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Found, Failure> {
    let log = port
        .log(settings, settings.topics.commands(), AGAIN)
        .await?;
    let (range, _) = log.high_watermark(partition, Duration::ZERO, stop).await?;
    let most = (share / 4).clamp(LEAST_BYTES, MOST_BYTES);
    let mut collector = Collector::new(pass.clone(), most);
    let part = Range {
        partition,
        low: collector.begin(range.low),
        end: pass.to,
    };
    let collector = RefCell::new(collector);
    let is_done = || stop() || collector.borrow().is_done();
    log.read(Isolation::Committed, &[part], &is_done, |message| {
        let offset = Offset(message.offset());
        let command = || read_command(message).ok()?.ok();
        collector
            .borrow_mut()
            .visit(offset, subscription(message), command);
    })
    .await?;
    Ok(collector.into_inner().finish())
}

/// The subscription of a command's record.
pub(super) fn subscription(message: &impl RecordView) -> Option<&str> {
    let (_, value) = each_header(message).find(|(name, _)| *name == header::SUBSCRIPTION)?;
    std::str::from_utf8(value?).ok()
}
