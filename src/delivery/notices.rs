//! Logs the notices and outcomes of partitions, and updates the metrics.

use super::metrics::DeliveryMetrics;
use super::partition::effect::{Notice, Outcome};
use crate::edge::clock;
use crate::model::command::Command;
use crate::model::dead_letter::DeadLetterInfo;
use crate::model::throttle::Throttle;

/// Logs an outcome that concerns operators; `lines` limits the lines of dead letters.
pub(super) fn log_outcome(lines: &mut Throttle, outcome: &Outcome) {
    match outcome {
        Outcome::DeadLetter(command, info) => {
            log_dead_letter(lines, command, info);
        }
        Outcome::Disable(subscription) => tracing::warn!(
            subscription = %subscription.id, subscriber = %subscription.subscriber,
            "the endpoint responded 410 Gone; disabling the subscription",
        ),
        Outcome::Tier(..) | Outcome::Invalid(_) => {}
    }
}

/// One line per second: an endpoint that rejects everything must not flood the log.
fn log_dead_letter(lines: &mut Throttle, command: &Command, info: &DeadLetterInfo) {
    let Some(suppressed) = lines.pass(clock::instant()) else {
        return;
    };
    tracing::warn!(
        webhook_id = %command.webhook_id, subscription = %command.subscription, subscriber = %command.subscriber,
        trace_id = command.trace_id(), reason = info.reason.as_str(), attempts = command.attempt, suppressed,
        "dead letter: {}", info.error,
    );
}

/// Logs a partition's notice and updates the metrics.
pub(super) fn log_notice(metrics: &DeliveryMetrics, notice: Notice) {
    match notice {
        Notice::BreakerOpened {
            subscription,
            subscriber,
            class,
            probe_at,
        } => {
            let probe_in = probe_at.saturating_duration_since(clock::instant());
            tracing::warn!(
                %subscription, %subscriber, class = class.as_str(), ?probe_in,
                "breaker opened; commands are parked until the next probe",
            );
            metrics.breaker_open(&subscriber, &subscription, true);
        }
        Notice::BreakerClosed {
            subscription,
            subscriber,
        } => {
            tracing::info!(%subscription, %subscriber, "breaker closed");
            metrics.breaker_open(&subscriber, &subscription, false);
        }
        Notice::BreakerForgotten {
            subscription,
            subscriber,
        } => metrics.breaker_open(&subscriber, &subscription, false),
        Notice::Overdue(subscription) => tracing::warn!(
            %subscription,
            "a command that others wait for is overdue; reading the retry topics again",
        ),
    }
}
