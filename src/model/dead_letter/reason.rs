//! The reasons for a dead letter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a command was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The endpoint responded with a status that no further attempt would change.
    PermanentStatus,
    /// The last attempt of the schedule failed.
    AttemptsExhausted,
    /// The command reached its maximum age (`max_age`).
    Expired,
    /// The endpoint responded 410.
    Gone,
    /// The subscription was disabled when the command came.
    Disabled,
    /// The egress guard refuses the endpoint.
    EgressDenied,
    /// There was no such subscription when the command came.
    SubscriptionMissing,
    /// The command would not fit the broker's message limit.
    TooLarge,
}

impl Reason {
    /// All, in the order in which help and errors list them.
    pub const ALL: [Self; 8] = [
        Self::PermanentStatus,
        Self::AttemptsExhausted,
        Self::Expired,
        Self::Gone,
        Self::Disabled,
        Self::EgressDenied,
        Self::SubscriptionMissing,
        Self::TooLarge,
    ];

    /// The text of the header `hs-reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PermanentStatus => "permanent-status",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::Expired => "expired",
            Self::Gone => "gone",
            Self::Disabled => "disabled",
            Self::EgressDenied => "egress-denied",
            Self::SubscriptionMissing => "subscription-missing",
            Self::TooLarge => "too-large",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|reason| reason.as_str()).collect();
                format!(
                    "unknown reason {text:?}; must be one of {}",
                    known.join(", ")
                )
            })
    }
}
