//! Reads signing secrets: the one reader for `subscriptions apply`, for the records on the topic and for delivery.
//!
//! | secret | read as | reason |
//! |---|---|---|
//! | `whsec_<base64>` | HMAC-SHA256, `v1` | Standard Webhooks 1.0 |
//! | `<base64>` | the same | the reference libraries strip the prefix when it is there |
//! | `whsk_<base64>` of 64 bytes | ed25519 seed and public key, `v1a` | Standard Webhooks 1.0 |
//! | `whsk_<base64>` of 32 bytes | ed25519 seed | the public key follows from it (RFC 8032, section 5.1.5) |
//! | without `=` padding | accepted | same bytes; secret managers strip the padding |
//! | surrounding whitespace or line end | trimmed | files end with a newline |
//! | URL-safe base64, other characters, stray bits | rejected | libraries disagree on the bytes, so signatures would not verify |
//! | HMAC key under 24 or over 64 bytes | rejected | the spec's bounds |
//! | `whpk_…` | rejected | a public key cannot sign |
//!
//! No error, and no `Debug`, holds any part of a secret (**Secret**).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use ring::hmac;
use ring::signature::Ed25519KeyPair;

/// The allowed length of an HMAC key, in bytes (Standard Webhooks 1.0, "Signature scheme").
const HMAC_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The length of an ed25519 seed, in bytes. In a pair, a public key of as many bytes follows it.
const SEED_BYTES: usize = 32;

/// Why a secret cannot sign; the secret itself is never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Empty, or empty after the prefix.
    #[error("is empty")]
    Empty,
    /// A public key (`whpk_`).
    #[error("is a public key (whpk_); a private one (whsk_) is needed to sign")]
    PublicKey,
    /// Not standard base64 after the prefix.
    #[error("is not standard base64 behind whsec_ or whsk_")]
    NotBase64,
    /// Not a length that the spec allows.
    #[error(
        "has {bytes} bytes; whsec_ needs 24 to 64, whsk_ needs 32 (a seed) or 64 (seed and public key)"
    )]
    Length {
        /// The length after decoding.
        bytes: usize,
    },
    /// The two halves of a `whsk_` secret do not match.
    #[error("(whsk_) holds a public key that is not the one of its seed")]
    NotAPair,
}

/// A key that signs.
pub enum SigningKey {
    /// HMAC-SHA256: `v1`.
    Hmac(hmac::Key),
    /// Ed25519: `v1a`.
    Ed25519(Box<Ed25519KeyPair>),
}

impl SigningKey {
    /// Reads a secret.
    ///
    /// # Errors
    /// Why it cannot sign.
    pub fn read(secret: &str) -> Result<Self, KeyError> {
        Ok(match Decoded::of(secret)? {
            Decoded::Hmac(bytes) => Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
            Decoded::Ed25519(bytes) => Self::ed25519(&bytes)?,
        })
    }

    /// Like [`read`](Self::read), but does not derive the HMAC key: every replica checks every subscription.
    ///
    /// # Errors
    /// The same.
    pub fn check(secret: &str) -> Result<(), KeyError> {
        match Decoded::of(secret)? {
            Decoded::Hmac(_) => Ok(()),
            Decoded::Ed25519(bytes) => Self::ed25519(&bytes).map(drop),
        }
    }

    fn ed25519(bytes: &[u8]) -> Result<Self, KeyError> {
        let pair = match bytes.split_at_checked(SEED_BYTES) {
            Some((seed, [])) => Ed25519KeyPair::from_seed_unchecked(seed),
            Some((seed, public)) if public.len() == SEED_BYTES => {
                Ed25519KeyPair::from_seed_and_public_key(seed, public)
            }
            _ => return Err(KeyError::Length { bytes: bytes.len() }),
        };
        let pair = pair.map_err(|_| KeyError::NotAPair)?;
        Ok(Self::Ed25519(Box::new(pair)))
    }
}

/// What a secret decodes to.
enum Decoded {
    /// A key of an allowed length.
    Hmac(Vec<u8>),
    /// Not checked.
    Ed25519(Vec<u8>),
}

impl Decoded {
    fn of(secret: &str) -> Result<Self, KeyError> {
        let secret = secret.trim();
        if secret.starts_with("whpk_") {
            return Err(KeyError::PublicKey);
        }
        let (is_asymmetric, encoded) = match secret.strip_prefix("whsk_") {
            Some(rest) => (true, rest),
            None => (false, secret.strip_prefix("whsec_").unwrap_or(secret)),
        };
        if encoded.is_empty() {
            return Err(KeyError::Empty);
        }
        let bytes = STANDARD_PAD_INDIFFERENT
            .decode(encoded)
            .map_err(|_| KeyError::NotBase64)?;
        if is_asymmetric {
            return Ok(Self::Ed25519(bytes));
        }
        if !HMAC_KEY_BYTES.contains(&bytes.len()) {
            return Err(KeyError::Length { bytes: bytes.len() });
        }
        Ok(Self::Hmac(bytes))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hmac(_) => "SigningKey(hmac)",
            Self::Ed25519(_) => "SigningKey(ed25519)",
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_secret_that_cannot_sign_is_refused_and_never_quoted() {
        let hmac = |bytes: &[u8]| format!("whsec_{}", STANDARD.encode(bytes));
        let url_safe = hmac(&[0xfb; 24]).replace('+', "-").replace('/', "_");
        let asymmetric = |length| format!("whsk_{}", STANDARD.encode(vec![1; length]));
        let length = |bytes| KeyError::Length { bytes };
        for (secret, expected) in [
            (String::new(), KeyError::Empty),
            ("whsec_".to_owned(), KeyError::Empty),
            ("whsk_".to_owned(), KeyError::Empty),
            (
                "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=".to_owned(),
                KeyError::PublicKey,
            ),
            ("whsec_not base64 at all!".to_owned(), KeyError::NotBase64),
            (url_safe, KeyError::NotBase64),
            // Stray bits behind the last byte.
            (format!("whsec_{}B", "A".repeat(33)), KeyError::NotBase64),
            (hmac(&[1; 23]), length(23)),
            (hmac(&[1; 65]), length(65)),
            (asymmetric(31), length(31)),
            (asymmetric(33), length(33)),
            (asymmetric(63), length(63)),
            (asymmetric(65), length(65)),
            (asymmetric(96), length(96)),
            (asymmetric(64), KeyError::NotAPair),
        ] {
            let error = SigningKey::read(&secret).unwrap_err();
            assert_eq!(error, expected, "{secret}");
            assert_eq!(SigningKey::check(&secret), Err(expected), "{secret}");
            let encoded = secret.split_once('_').map_or("", |(_, rest)| rest);
            assert!(
                encoded.is_empty() || !format!("{error} {error:?}").contains(encoded),
                "the error quotes the secret"
            );
        }
    }
}
