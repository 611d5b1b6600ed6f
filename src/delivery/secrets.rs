//! Resolves the signing secrets of subscriptions.

use crate::model::subscription::SecretSource;

/// Reads the secret of a source.
///
/// # Errors
/// Names the source of the secret, never its value (**Secret**).
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
