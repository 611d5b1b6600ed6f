//! Signs requests according to Standard Webhooks 1.0, so that receivers can verify their origin.
//!
//! The signed content is `{webhook-id}.{webhook-timestamp}.{body}`, byte for byte as sent
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//! Every secret signs, in order: a receiver that still has the old secret finds its signature in the same header, which
//! is all that a rotation needs.
//!
//! Secrets are read by [`SigningKey`].
//!
//! No error, and no `Debug`, holds any part of a secret (**Secret**).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use crate::model::signing_key::{KeyError, SigningKey};
use crate::model::units::EpochMs;

/// A secret that cannot sign; the secret itself is never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret {position} {problem}")]
pub struct SecretError {
    /// The position of the secret in the given order, from 1.
    pub position: usize,
    /// Why it cannot sign.
    pub problem: KeyError,
}

/// The length of a key's signature in the header: the scheme, and base64 of 32 or 64 bytes.
fn signature_length(key: &SigningKey) -> usize {
    match key {
        SigningKey::Hmac(_) => "v1,".len() + 44,
        SigningKey::Ed25519(_) => "v1a,".len() + 88,
    }
}

/// The keys of one subscription, ready to sign. Cloning shares them.
#[derive(Clone)]
pub struct Signer(Arc<[Key]>);

/// A key, and when it stops signing, if it does.
struct Key {
    key: SigningKey,
    until: Option<EpochMs>,
}

impl Key {
    fn signs(&self, now: EpochMs) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Signer {
    /// Parses secrets, in signing order; an empty list is valid and signs nothing.
    ///
    /// # Errors
    /// The position of the first secret that cannot sign; never its text.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self, SecretError> {
        let secrets = secrets.into_iter().map(|secret| (secret, None));
        Self::with_ends(secrets, EpochMs(0))
    }

    /// The same, each with the time when it stops signing, if it does. Those that have stopped at `now` are not read.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_ends<'a>(
        secrets: impl IntoIterator<Item = (&'a str, Option<EpochMs>)>,
        now: EpochMs,
    ) -> Result<Self, SecretError> {
        let mut keys = Vec::new();
        for (index, (secret, until)) in secrets.into_iter().enumerate() {
            if until.is_some_and(|until| until <= now) {
                continue;
            }
            let position = index + 1;
            let key = SigningKey::read(secret);
            let key = key.map_err(|problem| SecretError { position, problem })?;
            keys.push(Key { key, until });
        }
        Ok(Self(keys.into()))
    }

    /// Whether there is no secret: the request then carries no `webhook-signature`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `webhook-signature` for one attempt: one signature per secret, separated by spaces; empty without
    /// secrets. `timestamp` is the value of `webhook-timestamp`: seconds, in decimal. Keys that have stopped signing at
    /// `now` do not sign.
    #[must_use]
    pub fn sign_at(&self, webhook_id: &str, timestamp: &str, body: &[u8], now: EpochMs) -> String {
        let length: usize = self.0.iter().map(|key| signature_length(&key.key)).sum();
        // Allocated at its final length, so that it becomes a header without another allocation.
        let mut header = String::with_capacity((length + self.0.len()).saturating_sub(1));
        let content = [
            webhook_id.as_bytes(),
            b".",
            timestamp.as_bytes(),
            b".",
            body,
        ];
        for key in self.0.iter().filter(|key| key.signs(now)) {
            if !header.is_empty() {
                header.push(' ');
            }
            match &key.key {
                SigningKey::Hmac(key) => {
                    let mut context = hmac::Context::with_key(key);
                    content.iter().for_each(|part| context.update(part));
                    header.push_str("v1,");
                    push_base64(&mut header, context.sign().as_ref());
                }
                SigningKey::Ed25519(pair) => {
                    // Ed25519 hashes the message twice, so it needs it contiguous: this is the only copy.
                    header.push_str("v1a,");
                    push_base64(&mut header, pair.sign(&content.concat()).as_ref());
                }
            }
        }
        header
    }
}

impl Signer {
    /// The same with all keys, those that have stopped signing too.
    #[must_use]
    pub fn sign(&self, webhook_id: &str, timestamp: &str, body: &[u8]) -> String {
        self.sign_at(webhook_id, timestamp, body, EpochMs(i64::MIN))
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
    fn a_seed_alone_signs_like_the_pair_that_follows_from_it() {
        let pair = STANDARD.decode(&PRIVATE["whsk_".len()..]).unwrap();
        let seed = format!("whsk_{}", STANDARD.encode(&pair[..32]));
        let of = |secret: &str| Signer::new([secret]).unwrap().sign("a", "1", b"b");
        assert_eq!(of(&seed), of(PRIVATE));
    }

    #[test]
    fn a_secret_that_cannot_sign_is_refused_by_its_position() {
        let error = Signer::new([SECRET, "whsec_not base64 at all!"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "secret 2 is not standard base64 behind whsec_ or whsk_"
        );
        assert_eq!(
            format!("{:?}", Signer::new([SECRET]).unwrap()),
            "Signer(1 secrets)"
        );
    }

    #[test]
    fn a_secret_signs_until_its_end_and_is_not_read_after_it() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let secrets = [(SECRET, None), (other.as_str(), Some(EpochMs(10_000)))];
        let signer = Signer::with_ends(secrets, EpochMs(0)).unwrap();
        let of = |secrets: &[&str]| {
            let signer = Signer::new(secrets.iter().copied()).unwrap();
            signer.sign("a", "9", b"b")
        };
        let at = |ms: i64| signer.sign_at("a", "9", b"b", EpochMs(ms));
        assert_eq!(at(9_999), of(&[SECRET, &other]));
        assert_eq!(at(10_000), of(&[SECRET]));
        let gone = [("", Some(EpochMs(10_000))), (SECRET, None)];
        let later = Signer::with_ends(gone, EpochMs(10_000)).unwrap();
        assert_eq!(later.sign("a", "9", b"b"), of(&[SECRET]));
        assert!(
            Signer::with_ends(gone, EpochMs(9_999)).is_err(),
            "it still signs"
        );
    }

    #[test]
    fn without_a_secret_nothing_is_signed() {
        let signer = Signer::new([]).unwrap();
        assert!(signer.is_empty());
        assert_eq!(signer.sign("a", "1", b"b"), "");
    }
}
