//! The topics that delivery needs.

use crate::config::Settings;

/// The topics that must exist.
pub(super) fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let mut needed = vec![
        topics.commands(),
        topics.subscriptions(),
        topics.dead_letters(),
        topics.invalid_events(),
        topics.status(),
        topics.notices(),
    ];
    needed.extend(settings.retry_topics());
    if settings.attempt_log {
        needed.push(topics.attempts());
    }
    needed
}
