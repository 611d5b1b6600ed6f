//! Decisions about a subscription's state, which are records of their own beside the applied one.

use serde::{Deserialize, Serialize};

use super::model::{State, Subscription};
use super::record::{MAX_RECORD_BYTES, SubscriptionError};
use super::version::Version;
use crate::model::units::EpochMs;

/// The prefix of the key of an operator's decision.
const OPERATOR: &str = "state/";
/// The prefix of the key of delivery's decision.
const DISABLED: &str = "disabled/";

/// Who decides about a subscription's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// An operator, with `subscriptions pause` or `resume`.
    Operator,
    /// hookstream, after a response 410.
    Hookstream,
}

impl Decider {
    /// Splits the key of a decision; `None` for other keys.
    #[must_use]
    pub fn of_key(key: &str) -> Option<(Self, &str)> {
        let operator = key.strip_prefix(OPERATOR).map(|id| (Self::Operator, id));
        operator.or_else(|| Some((Self::Hookstream, key.strip_prefix(DISABLED)?)))
    }

    /// The key of the decision about a subscription.
    #[must_use]
    pub fn key(self, id: &str) -> String {
        let prefix = match self {
            Self::Operator => OPERATOR,
            Self::Hookstream => DISABLED,
        };
        format!("{prefix}{id}")
    }
}

/// Why hookstream has disabled a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisabledBecause {
    /// Its endpoint responded 410.
    Gone,
    /// Its endpoint has failed for as long as the operator allows.
    Failing,
}

impl DisabledBecause {
    /// The text in the notice and in the decision.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// A decision about a subscription's state: the value of its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The subscription's id.
    pub subscription: Box<str>,
    /// What it was made on; it holds only while that is current.
    pub version: Version,
    /// What replaces that version without a change of anything but secrets, if it is about to: it holds for that too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_version: Option<Version>,
    /// The state. None is [`State::Pending`].
    pub state: State,
    /// When it was made.
    pub at: EpochMs,
    /// When the subscription was last resumed, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<EpochMs>,
    /// When an operator wanted its endpoint probed at once, if that is what was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_at: Option<EpochMs>,
    /// Why hookstream disabled it: `gone` (also where it is missing) or `failing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
}

impl Decision {
    /// An operator's decision about `subscription` as it is now.
    #[must_use]
    pub fn by_operator(subscription: &Subscription, state: State, now: EpochMs) -> Self {
        let resumed = (state == State::Active).then_some(now);
        Self {
            subscription: subscription.id.as_str().into(),
            version: subscription.source.applied.clone(),
            next_version: None,
            state: state.decided(),
            at: now,
            resumed_at: resumed.or(subscription.resumed_at()),
            probed_at: None,
            reason: None,
        }
    }

    /// The decision that keeps `subscription` in its state while its applied record is replaced by one of `next`.
    #[must_use]
    pub fn kept(subscription: &Subscription, next: Version, at: EpochMs) -> Self {
        Self {
            next_version: Some(next),
            at,
            resumed_at: subscription.resumed_at(),
            ..Self::by_operator(subscription, subscription.state, at)
        }
    }

    /// Whether it was made on an applied record of `version`.
    #[must_use]
    pub fn is_on(&self, version: &Version) -> bool {
        self.version == *version || self.next_version.as_ref() == Some(version)
    }

    /// An operator's wish that the endpoint of `subscription` is probed at once. The state stays, and each one is another
    /// version: that is what delivery notices.
    #[must_use]
    pub fn probe(subscription: &Subscription, now: EpochMs) -> Self {
        Self {
            subscription: subscription.id.as_str().into(),
            version: subscription.source.applied.clone(),
            next_version: None,
            state: subscription.state.decided(),
            at: now,
            resumed_at: subscription.resumed_at(),
            probed_at: Some(now),
            reason: None,
        }
    }

    /// The decision to disable `subscription`, whose endpoint is gone.
    #[must_use]
    pub fn gone(subscription: &Subscription, now: EpochMs) -> Self {
        Self::disabled(subscription, DisabledBecause::Gone, now)
    }

    /// hookstream's decision to disable `subscription`.
    #[must_use]
    pub fn disabled(subscription: &Subscription, because: DisabledBecause, now: EpochMs) -> Self {
        // 0.1.0 wrote none, and had one only.
        let reason = (because != DisabledBecause::Gone).then(|| because.as_str().into());
        Self {
            subscription: subscription.id.as_str().into(),
            version: subscription.source.version().clone(),
            next_version: None,
            state: State::Disabled,
            at: now,
            resumed_at: None,
            probed_at: None,
            reason,
        }
    }

    /// The value of its record.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of texts and numbers always serializes.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn read(id: &str, value: &[u8]) -> Result<Self, SubscriptionError> {
        if value.len() > MAX_RECORD_BYTES {
            return Err(SubscriptionError::TooLarge(value.len()));
        }
        let invalid = |problem| SubscriptionError::Invalid(vec![problem]);
        let read: Self =
            serde_json::from_slice(value).map_err(|error| invalid(format!("state: {error}")))?;
        if *read.subscription != *id {
            return Err(invalid(format!(
                "subscription: {:?} differs from the record's key, of {id:?}",
                read.subscription
            )));
        }
        Ok(read)
    }
}
