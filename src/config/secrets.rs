//! Which settings and properties hold credentials and must not be printed.

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

/// Whether a URL has a part that may hold credentials. Such a URL is rejected, and not printed.
pub(super) fn may_hold_credentials(url: &str) -> bool {
    url.contains(['@', '?', '#'])
}
