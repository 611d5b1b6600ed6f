//! Logs the notices and outcomes of partitions, and updates the metrics.

use std::time::{Duration, Instant};

use super::metrics::DeliveryMetrics;
use super::partition::effect::{Notice, Outcome};
use crate::edge::clock;
use crate::model::command::Command;
use crate::model::dead_letter::DeadLetterInfo;
use crate::model::subscription::DisabledBecause;
use crate::model::throttle::Throttle;

/// The log lines of a worker that are limited: an endpoint that rejects everything, or an outage of many, must not flood
/// the log. What is suppressed is reported as a number when the interval is over.
pub(super) struct Lines {
    dead_letters: Throttle,
    opened: Throttle,
    closed: Throttle,
    holes: Throttle,
    forgotten: Throttle,
}

impl Default for Lines {
    fn default() -> Self {
        /// Lines about breakers within [`BREAKERS`].
        const MOST: u32 = 5;
        const BREAKERS: Duration = Duration::from_secs(10);
        Self {
            dead_letters: Throttle::new(Duration::from_secs(1)),
            opened: Throttle::burst(MOST, BREAKERS),
            closed: Throttle::burst(MOST, BREAKERS),
            holes: Throttle::new(BREAKERS),
            forgotten: Throttle::new(BREAKERS),
        }
    }
}

impl Lines {
    /// Logs an outcome that concerns operators.
    pub(super) fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::DeadLetter(command, info) => self.dead_letter(command, info),
            Outcome::Disable(subscription, because, _) => {
                let why = match because {
                    DisabledBecause::Gone => "the endpoint responded 410 Gone",
                    DisabledBecause::Failing => {
                        "the endpoint failed for as long as --disable-after"
                    }
                };
                tracing::warn!(
                    subscription = %subscription.id, subscriber = %subscription.subscriber,
                    "{why}; disabling the subscription",
                );
            }
            Outcome::Notice(notice, _) => tracing::info!(
                subscription = %notice.subscription, subscriber = %notice.subscriber,
                event_type = notice.kind.event_type(), "notice",
            ),
            Outcome::Tier(..)
            | Outcome::Invalid(_)
            | Outcome::Status(_)
            | Outcome::Verification(..) => {}
        }
    }

    fn dead_letter(&mut self, command: &Command, info: &DeadLetterInfo) {
        let Some(suppressed) = self.dead_letters.pass(clock::instant()) else {
            return;
        };
        tracing::warn!(
            webhook_id = %command.webhook_id, subscription = %command.subscription, subscriber = %command.subscriber,
            trace_id = command.trace_id(), reason = info.reason.as_str(), attempts = command.attempt, suppressed,
            "dead letter: {}", info.error,
        );
    }

    /// Reports how many lines were suppressed, once no other line does.
    pub(super) fn flush(&mut self, metrics: &DeliveryMetrics, now: Instant) {
        if let Some(suppressed) = self.dead_letters.flush(now) {
            tracing::warn!(suppressed, "dead letters");
        }
        let open = metrics.breakers_open();
        if let Some(suppressed) = self.opened.flush(now) {
            tracing::warn!(suppressed, open, "breakers opened");
        }
        if let Some(suppressed) = self.closed.flush(now) {
            tracing::info!(suppressed, open, "breakers closed");
        }
    }

    /// Logs a partition's notice and updates the metrics.
    pub(super) fn notice(&mut self, metrics: &DeliveryMetrics, notice: Notice) {
        match notice {
            Notice::BreakerOpened {
                subscription,
                subscriber,
                class,
                probe_at,
            } => {
                metrics.breaker_open(&subscriber, &subscription, true);
                let now = clock::instant();
                if let Some(suppressed) = self.opened.pass(now) {
                    let probe_in = probe_at.saturating_duration_since(now);
                    tracing::warn!(
                        %subscription, %subscriber, class = class.as_str(), ?probe_in, suppressed,
                        "breaker opened; commands are parked until the next probe",
                    );
                }
            }
            Notice::BreakerClosed {
                subscription,
                subscriber,
            } => {
                metrics.breaker_open(&subscriber, &subscription, false);
                if let Some(suppressed) = self.closed.pass(clock::instant()) {
                    tracing::info!(%subscription, %subscriber, suppressed, "breaker closed");
                }
            }
            Notice::BreakerForgotten {
                subscription,
                subscriber,
            } => metrics.breaker_open(&subscriber, &subscription, false),
            Notice::Overdue(subscription) => tracing::warn!(
                %subscription,
                "a command that others wait for is overdue; reading the retry topics again",
            ),
            Notice::Hole(offset, mark) => {
                if let Some(suppressed) = self.holes.pass(clock::instant()) {
                    tracing::error!(
                        command_offset = offset.0,
                        event_partition = mark.source.partition,
                        event_offset = mark.at.offset,
                        metric = "hookstream_source_holes",
                        suppressed,
                        "a command of fan-out is missing before this one; fan-out writes it again from its committed position",
                    );
                }
            }
            Notice::DeferredGone(commands) => {
                metrics.deferred_lost().inc_by(commands as u64);
                tracing::error!(
                    commands,
                    "LOST: deferred commands were deleted from the topic of commands before they were read again; its retention is too short"
                );
            }
            Notice::SourcesForgotten(sources) => {
                if let Some(suppressed) = self.forgotten.pass(clock::instant()) {
                    tracing::error!(
                        sources,
                        suppressed,
                        "too many partitions of events for the commit metadata: what this partition of the commands has seen of the ones that were idle for longest is forgotten, and their commands may be delivered again if fan-out writes them again; use fewer partitions of events",
                    );
                }
            }
        }
    }
}
