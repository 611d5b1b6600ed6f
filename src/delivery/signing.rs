//! Signs requests according to Standard Webhooks 1.0, so that receivers can verify their origin.
//!
//! The signed content is `{webhook-id}.{webhook-timestamp}.{body}`, byte for byte as sent
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//! Every secret signs, in order: a receiver that still has the old secret finds its signature in the same header, which
//! is all that a rotation needs.
//!
//! # How a secret is read
//! | secret | read as | reason |
//! |---|---|---|
//! | `whsec_<base64>` | HMAC-SHA256, `v1` | the spec |
//! | `<base64>` | the same | the reference libraries strip the prefix when it is there |
//! | `whsk_<base64>` | ed25519 seed and public key, 64 bytes, `v1a` | the spec |
//! | without `=` padding | accepted | same bytes; secret managers strip the padding |
//! | surrounding whitespace or line end | trimmed | files end with a newline |
//! | URL-safe base64, other characters, stray bits | rejected | libraries disagree on the bytes, so signatures would not verify |
//! | HMAC key under 24 or over 64 bytes | rejected | the spec's bounds |
//! | `whpk_…` | rejected | a public key cannot sign |
//!
//! No error, and no `Debug`, holds any part of a secret (**Secret**).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use ring::hmac;
use ring::signature::Ed25519KeyPair;
use thiserror::Error;

/// The allowed length of an HMAC key, in bytes (Standard Webhooks 1.0, "Signature scheme").
const HMAC_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The length of an ed25519 seed and public key together, in bytes.
const ED25519_KEY_BYTES: usize = 64;

/// Why a secret cannot sign. `position` counts from 1 in the given order; the secret itself is never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// Empty, or empty after the prefix.
    #[error("secret {position} is empty")]
    Empty {
        /// The position of the secret.
        position: usize,
    },
    /// A public key (`whpk_`).
    #[error("secret {position} is a public key (whpk_); a private one (whsk_) is needed to sign")]
    PublicKey {
        /// The position of the secret.
        position: usize,
    },
    /// Not standard base64 after the prefix.
    #[error("secret {position} is not standard base64 behind whsec_ or whsk_")]
    NotBase64 {
        /// The position of the secret.
        position: usize,
    },
    /// Not a length that the spec allows.
    #[error("secret {position} has {bytes} bytes; whsec_ needs 24 to 64, whsk_ needs 64")]
    Length {
        /// The position of the secret.
        position: usize,
        /// The length after decoding.
        bytes: usize,
    },
    /// The two halves of a `whsk_` secret do not match.
    #[error("secret {position} (whsk_) holds a public key that is not the one of its seed")]
    NotAPair {
        /// The position of the secret.
        position: usize,
    },
}

enum Key {
    Hmac(hmac::Key),
    Ed25519(Box<Ed25519KeyPair>),
}

impl Key {
    /// The length of its signature in the header: the scheme, and base64 of 32 or 64 bytes.
    fn signature_length(&self) -> usize {
        match self {
            Self::Hmac(_) => "v1,".len() + 44,
            Self::Ed25519(_) => "v1a,".len() + 88,
        }
    }

    fn read(position: usize, secret: &str) -> Result<Self, SecretError> {
        let secret = secret.trim();
        if secret.starts_with("whpk_") {
            return Err(SecretError::PublicKey { position });
        }
        let (asymmetric, encoded) = match secret.strip_prefix("whsk_") {
            Some(rest) => (true, rest),
            None => (false, secret.strip_prefix("whsec_").unwrap_or(secret)),
        };
        if encoded.is_empty() {
            return Err(SecretError::Empty { position });
        }
        let bytes = STANDARD_PAD_INDIFFERENT
            .decode(encoded)
            .map_err(|_| SecretError::NotBase64 { position })?;
        if asymmetric {
            Self::ed25519(position, &bytes)
        } else {
            Self::hmac(position, &bytes)
        }
    }

    fn hmac(position: usize, bytes: &[u8]) -> Result<Self, SecretError> {
        if !HMAC_KEY_BYTES.contains(&bytes.len()) {
            return Err(SecretError::Length {
                position,
                bytes: bytes.len(),
            });
        }
        Ok(Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    fn ed25519(position: usize, bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() != ED25519_KEY_BYTES {
            return Err(SecretError::Length {
                position,
                bytes: bytes.len(),
            });
        }
        let (seed, public) = bytes.split_at(32);
        Ed25519KeyPair::from_seed_and_public_key(seed, public)
            .map(|pair| Self::Ed25519(Box::new(pair)))
            .map_err(|_| SecretError::NotAPair { position })
    }
}

/// The keys of one subscription, ready to sign. Cloning shares them.
#[derive(Clone)]
pub struct Signer(Arc<[Key]>);

impl Signer {
    /// Parses secrets, in signing order; an empty list is valid and signs nothing.
    ///
    /// # Errors
    /// The position of the first secret that cannot sign; never its text.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self, SecretError> {
        secrets
            .into_iter()
            .enumerate()
            .map(|(index, secret)| Key::read(index + 1, secret))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether there is no secret: the request then carries no `webhook-signature`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `webhook-signature` for one attempt: one signature per secret, separated by spaces; empty without
    /// secrets. `timestamp` is the value of `webhook-timestamp`: seconds, in decimal.
    #[must_use]
    pub fn sign(&self, webhook_id: &str, timestamp: &str, body: &[u8]) -> String {
        let length: usize = self.0.iter().map(Key::signature_length).sum();
        // Allocated at its final length, so that it becomes a header without another allocation.
        let mut header = String::with_capacity((length + self.0.len()).saturating_sub(1));
        let content = [
            webhook_id.as_bytes(),
            b".",
            timestamp.as_bytes(),
            b".",
            body,
        ];
        for key in self.0.iter() {
            if !header.is_empty() {
                header.push(' ');
            }
            match key {
                Key::Hmac(key) => {
                    let mut context = hmac::Context::with_key(key);
                    content.iter().for_each(|part| context.update(part));
                    header.push_str("v1,");
                    push_base64(&mut header, context.sign().as_ref());
                }
                Key::Ed25519(pair) => {
                    // Ed25519 hashes the message twice, so it needs it contiguous: this is the only copy.
                    header.push_str("v1a,");
                    push_base64(&mut header, pair.sign(&content.concat()).as_ref());
                }
            }
        }
        header
    }
}

/// Appends a signature of at most 64 bytes.
fn push_base64(header: &mut String, signature: &[u8]) {
    let mut encoded = [0; 88];
    let text = STANDARD
        .encode_slice(signature, &mut encoded)
        .ok()
        .and_then(|length| std::str::from_utf8(&encoded[..length]).ok());
    match text {
        Some(text) => header.push_str(text),
        None => STANDARD.encode_string(signature, header),
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const VECTORS: &str = include_str!("../../tests/data/standard-webhooks-vectors.json");
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

    fn vectors() -> Value {
        serde_json::from_str(VECTORS).unwrap()
    }

    fn body(case: &Value) -> Vec<u8> {
        match case["body_base64"].as_str() {
            Some(encoded) => STANDARD.decode(encoded).unwrap(),
            None => case["body"].as_str().unwrap().as_bytes().to_vec(),
        }
    }

    fn secrets(case: &Value) -> Vec<&str> {
        match case["secrets"].as_array() {
            Some(several) => several.iter().map(|one| one.as_str().unwrap()).collect(),
            None => vec![case["secret"].as_str().unwrap()],
        }
    }

    fn sign(case: &Value) -> String {
        let signer = Signer::new(secrets(case)).unwrap();
        signer.sign(
            case["webhook-id"].as_str().unwrap(),
            &case["webhook-timestamp"].as_i64().unwrap().to_string(),
            &body(case),
        )
    }

    #[test]
    fn every_vector_is_signed_as_published() {
        let vectors = vectors();
        let cases = vectors["vectors"].as_array().unwrap();
        assert!(
            cases.len() >= 12,
            "the file of vectors shrank to {}",
            cases.len()
        );
        for case in cases {
            let expected = case["signature"]
                .as_str()
                .or(case["webhook-signature"].as_str())
                .unwrap();
            assert_eq!(sign(case), expected, "{}", case["name"]);
        }
    }

    #[test]
    fn the_header_is_found_among_the_signatures_that_a_verifier_accepts_and_in_no_other() {
        for case in vectors()["verify_cases"].as_array().unwrap() {
            let (Some(header), Some(valid)) =
                (case["webhook-signature"].as_str(), case["valid"].as_bool())
            else {
                continue;
            };
            if case["now"] != case["webhook-timestamp"] {
                continue; // the verifier's tolerance of clocks is not the signer's business
            }
            assert_eq!(
                header.split(' ').any(|one| one == sign(case)),
                valid,
                "{}",
                case["name"]
            );
        }
    }

    #[test]
    fn the_reference_library_verifies_what_is_signed() {
        let now = crate::edge::clock::now().seconds().to_string();
        let payload = br#"{"type":"order.created","data":{"total":"9.90"}}"#;
        let header = Signer::new([PRIVATE, SECRET])
            .unwrap()
            .sign("msg_1", &now, payload);
        let mut headers = http::HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", now.parse().unwrap());
        headers.insert("webhook-signature", header.parse().unwrap());
        standardwebhooks::Webhook::new(SECRET)
            .unwrap()
            .verify(payload, &headers)
            .unwrap();
    }

    #[test]
    fn another_ed25519_implementation_verifies_what_is_signed() {
        let vectors = vectors();
        let case = vectors["vectors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|case| case["scheme"] == "v1a")
            .unwrap();
        let public = STANDARD
            .decode(
                case["public_key"]
                    .as_str()
                    .unwrap()
                    .strip_prefix("whpk_")
                    .unwrap(),
            )
            .unwrap();
        let public =
            ed25519_dalek::VerifyingKey::from_bytes(public.as_slice().try_into().unwrap()).unwrap();
        let header = Signer::new([PRIVATE])
            .unwrap()
            .sign("msg_2", "7", b"\x00\xff");
        let signature = STANDARD
            .decode(header.strip_prefix("v1a,").unwrap())
            .unwrap();
        let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
        public
            .verify_strict(b"msg_2.7.\x00\xff", &signature)
            .unwrap();
    }

    #[test]
    fn prefix_padding_and_blanks_do_not_change_the_key() {
        let padded = format!("whsec_{}", STANDARD.encode([7; 32]));
        let expected = Signer::new([padded.as_str()]).unwrap().sign("a", "1", b"b");
        for form in [
            padded.trim_end_matches('='),
            padded.trim_start_matches("whsec_"),
            &format!(" {padded}\r\n"),
        ] {
            assert_eq!(
                Signer::new([form]).unwrap().sign("a", "1", b"b"),
                expected,
                "{form:?}"
            );
        }
    }

    #[test]
    fn a_secret_that_cannot_sign_is_refused_by_its_position_and_never_quoted() {
        let short = format!("whsec_{}", STANDARD.encode([1; 23]));
        let long = format!("whsec_{}", STANDARD.encode([1; 65]));
        let seed_only = format!("whsk_{}", STANDARD.encode([1; 32]));
        let unpaired = format!("whsk_{}", STANDARD.encode([1; 64]));
        let url_safe = format!(
            "whsec_{}",
            STANDARD
                .encode([0xfb; 24])
                .replace('+', "-")
                .replace('/', "_")
        );
        let position = 2;
        for (secret, expected) in [
            ("", SecretError::Empty { position }),
            ("whsec_", SecretError::Empty { position }),
            ("whsk_", SecretError::Empty { position }),
            (
                "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=",
                SecretError::PublicKey { position },
            ),
            (
                "whsec_not base64 at all!",
                SecretError::NotBase64 { position },
            ),
            (&url_safe, SecretError::NotBase64 { position }),
            (
                &short,
                SecretError::Length {
                    position,
                    bytes: 23,
                },
            ),
            (
                &long,
                SecretError::Length {
                    position,
                    bytes: 65,
                },
            ),
            (
                &seed_only,
                SecretError::Length {
                    position,
                    bytes: 32,
                },
            ),
            (&unpaired, SecretError::NotAPair { position }),
        ] {
            let error = Signer::new([SECRET, secret]).unwrap_err();
            assert_eq!(error, expected);
            let encoded = secret.split_once('_').map_or("", |(_, rest)| rest);
            assert!(
                encoded.is_empty() || !format!("{error} {error:?}").contains(encoded),
                "the error quotes the secret"
            );
        }
        assert_eq!(
            format!("{:?}", Signer::new([SECRET]).unwrap()),
            "Signer(1 secrets)"
        );
    }

    #[test]
    fn without_a_secret_nothing_is_signed() {
        let signer = Signer::new([]).unwrap();
        assert!(signer.is_empty());
        assert_eq!(signer.sign("a", "1", b"b"), "");
    }
}
