//! Dead letters that a replay leaves open, because their commands would become dead letters again.
//!
//! Pure.

use std::fmt;

use serde::Serialize;

use crate::model::dead_letter::DeadLetter;
use crate::model::subscription::{Decider, Fold, State};

/// Why a dead letter is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Its subscription does not exist.
    Missing,
    /// Its subscription belongs to another subscriber: it was deleted and created again.
    OtherSubscriber,
    /// Its subscription is disabled.
    Disabled,
    /// Its subscription is disabled, since its endpoint responded 410.
    Gone,
    /// Its subscription is pending: its endpoint has not consented.
    Pending,
}

impl Why {
    /// The reason to leave a dead letter open; `None` when a replay may send it. Commands of a paused subscription wait.
    #[must_use]
    pub fn of(letter: &DeadLetter, subscriptions: &Fold) -> Option<Self> {
        Self::of_subscription(&letter.subscription, &letter.subscriber, subscriptions)
    }

    /// The reason not to send commands of this subscriber to the subscription `id`.
    #[must_use]
    pub fn of_subscription(id: &str, subscriber: &str, subscriptions: &Fold) -> Option<Self> {
        let Some(subscription) = subscriptions.get(id) else {
            // One with only an invalid record exists: its commands wait.
            return (!subscriptions.is_unknown(id)).then_some(Self::Missing);
        };
        if *subscription.subscriber != *subscriber {
            return Some(Self::OtherSubscriber);
        }
        let by_hookstream = subscriptions
            .decided_by(id)
            .is_some_and(|(by, _)| by == Decider::Hookstream);
        match subscription.state {
            State::Disabled if by_hookstream => Some(Self::Gone),
            State::Disabled => Some(Self::Disabled),
            State::Pending => Some(Self::Pending),
            State::Active | State::Paused => None,
        }
    }

    /// What makes a replay possible, for the dead letters of a subscription.
    #[must_use]
    pub fn way_out(self, subscription: &str) -> String {
        let resume = format!("`hookstream subscriptions resume {subscription}`, then replay again");
        match self {
            Self::Missing => format!(
                "apply a subscription with the id {subscription} and the same subscriber, then replay again"
            ),
            Self::OtherSubscriber => {
                "they are never sent to another subscriber; publish their events again if they are still needed"
                    .to_owned()
            }
            Self::Disabled => resume,
            Self::Gone => format!("fix the endpoint, {resume}"),
            Self::Pending => format!(
                "`hookstream subscriptions show {subscription}` prints why its endpoint has not consented; replay again when it has"
            ),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "the subscription does not exist",
            Self::OtherSubscriber => "the subscription now belongs to another subscriber",
            Self::Disabled => "the subscription is disabled",
            Self::Gone => "the subscription is disabled, since its endpoint responded 410",
            Self::Pending => "the subscription is pending, since its endpoint has not consented",
        })
    }
}

/// Dead letters that are left open for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WithheldGroup {
    /// Their subscription.
    pub subscription: String,
    /// Their subscriber.
    pub subscriber: String,
    /// Why.
    pub why: Why,
}
