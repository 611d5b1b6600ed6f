//! The versions of subscriptions: what a decision was made on.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The header of an applied record that makes its version distinct.
pub const APPLIED: &str = "hs-applied";

/// What a decision was made on: the applied record, and the operator's decision on that record, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Box<str>", into = "String")]
pub struct Version(Content);

/// One text has one form, so that equal versions are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Content {
    /// Of an applied record: every replica holds those of all subscriptions in memory.
    Digest([u8; 16]),
    /// With a decision, or of another form.
    Text(Arc<str>),
}

impl Default for Version {
    fn default() -> Self {
        Self(Content::Text(Arc::default()))
    }
}

impl Version {
    /// The version of an applied record, from its value and its [`APPLIED`] header.
    #[must_use]
    pub fn of_applied(value: &[u8], applied: Option<&[u8]>) -> Self {
        Self(Content::Digest(digest_bytes(value, applied)))
    }

    /// This version together with the operator's decision on it.
    pub(super) fn with(&self, decision: &str) -> Self {
        Self(Content::Text(format!("{self}.{decision}").into()))
    }
}

impl From<Box<str>> for Version {
    fn from(text: Box<str>) -> Self {
        let digest = u128::from_str_radix(&text, 16).ok();
        // Other texts are read as the same number: in capitals, without leading zeros, with a sign.
        let digest = digest.filter(|digest| hexadecimal(digest.to_be_bytes()) == *text);
        Self(match digest {
            Some(digest) => Content::Digest(digest.to_be_bytes()),
            None => Content::Text(text.into()),
        })
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Content::Digest(digest) => f.write_str(&hexadecimal(*digest)),
            Content::Text(text) => f.write_str(text),
        }
    }
}

/// 128 bits of SHA-256. The length of the value keeps value and header apart.
fn digest_bytes(value: &[u8], applied: Option<&[u8]>) -> [u8; 16] {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(value);
    if let Some(applied) = applied {
        hash.update(&(value.len() as u64).to_be_bytes());
        hash.update(applied);
    }
    let hash = hash.finish();
    let first = hash.as_ref().first_chunk();
    first.copied().unwrap_or_default()
}

fn hexadecimal(digest: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(digest))
}

/// The digest that makes a version, in hexadecimal.
pub(super) fn digest(value: &[u8], applied: Option<&[u8]>) -> String {
    hexadecimal(digest_bytes(value, applied))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_was_written_is_the_same_when_it_is_read() {
        let applied = Version::of_applied(b"value", Some(b"header"));
        let decided = applied.with(&digest(b"decision", None));
        for version in [&applied, &decided, &Version::default()] {
            let json = serde_json::to_string(version).unwrap();
            let read: Version = serde_json::from_str(&json).unwrap();
            assert_eq!((&read, json), (version, format!("\"{version}\"")));
        }
        let digits = "0f571c24d2a0a51b6e2f0b9b4f0a2c01";
        let capitals = digits.to_uppercase();
        for text in [
            digits,
            &digits[1..],
            &format!("+{}", &digits[1..]),
            &capitals,
            "1.2",
            "-1",
        ] {
            let version = Version::from(Box::from(text));
            assert_eq!(version.to_string(), text);
            assert_eq!(version == Version::from(Box::from(digits)), text == digits);
        }
    }
}
