//! Secrets of subscriptions, read where they are kept.

use crate::model::subscription::SecretSource;

/// The secret of a source.
///
/// # Errors
/// Names where the secret should be, never what it is (**Secret**).
pub(super) fn resolve(source: &SecretSource) -> Result<String, String> {
    match source {
        SecretSource::Env(name) => std::env::var(name).map_err(|_| {
            format!("the environment variable {name}, which holds its secret, is not set")
        }),
        SecretSource::File(path) => std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .map_err(|error| format!("its secret cannot be read from {}: {error}", path.display())),
        SecretSource::Literal(secret) => Ok(secret.expose().to_owned()),
    }
}
