//! Reads the operator's own secrets, each when it is needed, so that a changed one takes effect. Blocks.

use crate::config::SecretRef;
use crate::edge::small_file::{self, MAX_SECRET_BYTES};

/// The secret, without the line end of its file.
///
/// # Errors
/// One sentence that names the place and never shows the secret.
pub fn read(from: &SecretRef) -> Result<String, String> {
    let (text, place) = match from {
        SecretRef::Env(name) => {
            let text = std::env::var(name)
                .map_err(|_| format!("the environment variable {name} is not set"))?;
            (text, format!("the environment variable {name}"))
        }
        SecretRef::File(path) => {
            let text = small_file::read_text(path, MAX_SECRET_BYTES)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            (text, path.display().to_string())
        }
    };
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{place} is empty"));
    }
    Ok(secret.to_owned())
}
