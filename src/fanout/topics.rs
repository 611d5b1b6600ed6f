//! The topics that fan-out needs, and who gets what is on the topic of notices.

use std::sync::Arc;

use crate::config::Settings;
use crate::model::event::Event;
use crate::model::notice;
use crate::model::subscription::Subscription;

/// The topics that must exist.
pub(super) fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let mut needed = topics.fanned_out();
    needed.extend([
        topics.commands(),
        topics.subscriptions(),
        topics.invalid_events(),
    ]);
    needed
}

/// Keeps the subscriptions that may see a notice; its key is the subscriber that it is about.
pub(super) fn keep_for_notice(
    settings: &Settings,
    event: &Event<'_>,
    key: Option<&[u8]>,
    matching: &mut Vec<Arc<Subscription>>,
) {
    let subscriber = std::str::from_utf8(key.unwrap_or_default()).unwrap_or_default();
    let operator = settings.operator_subscriber.as_deref();
    let event_type = event.event_type();
    matching.retain(|one| notice::is_for(one, event_type, subscriber, operator));
}
