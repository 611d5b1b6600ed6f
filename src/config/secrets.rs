//! Which settings and properties hold credentials and must not be printed.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;

/// Printed in place of a secret.
pub const REDACTED: &str = "***";

/// Whether a librdkafka property holds a credential.
#[must_use]
pub fn is_secret(property: &str) -> bool {
    ["password", "secret", "token", "jaas", "key.pem", "private"]
        .iter()
        .any(|part| property.contains(part))
        || property == "sasl.oauthbearer.config"
}

/// librdkafka properties, in order. `Debug` shows no credential.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(Vec<(String, String)>);

impl Deref for Properties {
    type Target = [(String, String)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(key, value): &'_ (String, String)| match is_secret(key) {
            true => (key.clone(), REDACTED.to_owned()),
            false => (key.clone(), value.clone()),
        };
        f.debug_map().entries(self.iter().map(shown)).finish()
    }
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// In an environment variable.
    Env(String),
    /// In a file.
    File(PathBuf),
}

/// Reads `env:NAME` or `file:PATH`.
pub(super) fn secret_ref(text: &str) -> Option<SecretRef> {
    let text = text.trim();
    let is_name = |name: &str| {
        let letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        !name.is_empty() && name.chars().all(letter)
    };
    if let Some(name) = text.strip_prefix("env:") {
        return is_name(name).then(|| SecretRef::Env(name.to_owned()));
    }
    let path = text.strip_prefix("file:").filter(|path| !path.is_empty())?;
    Some(SecretRef::File(path.into()))
}

/// Whether the value of a setting may hold a credential. Such a value is rejected, and not printed.
pub(super) fn may_be_secret(setting: &str, value: &str) -> bool {
    match setting {
        "otlp-endpoint" | "schema-registry" | "egress-proxy" => may_hold_credentials(value),
        "schema-registry-password" | "schema-registry-token" | "egress-proxy-password" => {
            secret_ref(value).is_none()
        }
        _ => false,
    }
}

/// Whether a URL has a part that may hold credentials. Such a URL is rejected, and not printed.
pub(super) fn may_hold_credentials(url: &str) -> bool {
    url.contains(['@', '?', '#'])
}
