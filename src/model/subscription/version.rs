//! The versions of subscriptions: what a decision was made on.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::model::{RateLimit, State};
use crate::model::units::EpochMs;

/// The header of an applied record that makes its version distinct.
pub const APPLIED: &str = "hs-applied";

/// What a decision was made on: the applied record, and the operator's decision on that record, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(Arc<str>);

impl Version {
    /// The version of an applied record, from its value and its [`APPLIED`] header.
    #[must_use]
    pub fn of_applied(value: &[u8], applied: Option<&[u8]>) -> Self {
        Self(digest(value, applied).into())
    }

    /// The text in records.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This version together with the operator's decision on it.
    pub(super) fn with(&self, decision: &str) -> Self {
        Self(format!("{}.{decision}", self.0).into())
    }
}

/// 128 bits of SHA-256, in hexadecimal. The length of the value keeps value and header apart.
pub(super) fn digest(value: &[u8], applied: Option<&[u8]>) -> String {
    const BYTES: usize = 16;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(value);
    if let Some(applied) = applied {
        hash.update(&(value.len() as u64).to_be_bytes());
        hash.update(applied);
    }
    let hash = hash.finish();
    let bytes = hash.as_ref().iter().take(BYTES);
    bytes.fold(String::with_capacity(2 * BYTES), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// What an applied record says itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppliedRecord {
    /// Its timestamp.
    pub timestamp: Option<EpochMs>,
    /// Its state.
    pub state: State,
    /// Its rate limit.
    pub rate_limit: Option<RateLimit>,
}

/// Where a subscription comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// The version of its applied record.
    pub applied: Version,
    /// The version of the subscription as it is: the applied record, with the operator's decision on it.
    pub version: Version,
    /// The partition of its records: decisions are written there too, so that they keep their order.
    pub partition: Option<i32>,
    /// What else its applied record says, which decisions and consents may override.
    pub record: AppliedRecord,
}

impl Source {
    /// Whether both are the same version in the same partition.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let parts = |source: &Self| {
            (
                source.applied.clone(),
                source.version.clone(),
                source.partition,
            )
        };
        parts(self) == parts(other)
    }
}
