//! Which settings and properties hold credentials, and are not shown.

/// What stands for a secret when settings are printed.
pub const REDACTED: &str = "***";

/// Whether a librdkafka property holds a credential.
#[must_use]
pub fn is_secret(property: &str) -> bool {
    ["password", "secret", "token", "jaas", "key.pem", "private"]
        .iter()
        .any(|part| property.contains(part))
        || property == "sasl.oauthbearer.config"
}

/// Whether a URL has a part where credentials are put. Such a one is refused, and must not be shown then either.
pub(super) fn may_hold_credentials(url: &str) -> bool {
    url.contains(['@', '?', '#'])
}
