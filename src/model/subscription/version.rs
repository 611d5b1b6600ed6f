//! The versions of subscriptions: what a decision was made on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
    let digits = bytes.flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]));
    digits.collect()
}
