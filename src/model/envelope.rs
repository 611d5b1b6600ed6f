//! Secrets that are encrypted in the record of a subscription: `enc:v1:KEY:BASE64`. Pure; chance is an argument.
//!
//! A key-encryption key of the operator (`--kek-file`) encrypts a data key, which encrypts one secret, both with AES-256-GCM:
//!
//! | part | contents |
//! |---|---|
//! | `KEY` | 16 hexadecimal digits that name the key-encryption key; they follow from the key, so that no file names it |
//! | `BASE64` | nonce (12 bytes), encrypted data key (32) and its tag (16), nonce (12), encrypted secret and its tag (16) |
//!
//! Both ciphertexts are bound to the key, the subscriber and the id of the subscription: in the record of another
//! subscription they do not decrypt, so that a tenant cannot sign with what it copied from another one's record.
//!
//! A file may hold several keys, one in a line: the first encrypts, all of them decrypt. So a key is replaced by adding the
//! new one before it, encrypting again, and removing it.
//!
//! No error, and no `Debug`, holds a secret or a key (**Secret**).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use thiserror::Error;

/// The beginning of an encrypted secret.
pub const ENCRYPTED: &str = "enc:";
const VERSION: &str = "enc:v1:";
/// The length of a key, in bytes.
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// Hexadecimal digits that name a key.
const NAME_DIGITS: usize = 16;
/// Everything before the encrypted secret.
const HEAD_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES + NONCE_LEN;
/// The longest secret, in bytes.
const MAX_SECRET_BYTES: usize = 4096;
/// The most keys in a file.
const MAX_KEYS: usize = 16;

/// The random bytes that one encryption needs: a data key and two nonces.
pub const RANDOM_BYTES: usize = KEY_BYTES + 2 * NONCE_LEN;

/// A text that is not an encrypted secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("is not of the form enc:v1:KEY:BASE64, as `subscriptions apply` with --kek-file writes it")]
pub struct NotEncrypted;

/// Why the keys cannot be used. It names lines, never their text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeysError {
    /// Not a key.
    #[error(
        "line {0} is not a key, which is the base64 of 32 random bytes (openssl rand -base64 32)"
    )]
    NotAKey(usize),
    /// No key.
    #[error(
        "it contains no key; a line with the base64 of 32 random bytes is one (openssl rand -base64 32)"
    )]
    Empty,
    /// Too many.
    #[error("it contains more than {MAX_KEYS} keys; remove those that no record uses")]
    TooMany,
}

/// Why a secret was not encrypted or decrypted. It names keys, never a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// Encrypted with a key that is not there.
    #[error("is encrypted with the key {0}, which --kek-file does not contain")]
    UnknownKey(Box<str>),
    /// It does not decrypt.
    #[error(
        "does not decrypt with the key {0}: it was encrypted for another subscription, or is damaged"
    )]
    Refused(Box<str>),
    /// Too long to encrypt.
    #[error("is {0} bytes, the limit is {MAX_SECRET_BYTES}")]
    TooLong(usize),
}

/// An encrypted secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    key: Box<str>,
    bytes: Box<[u8]>,
}

impl Sealed {
    /// Reads the text of a record.
    ///
    /// # Errors
    /// When it does not have the form.
    pub fn read(text: &str) -> Result<Self, NotEncrypted> {
        let (key, encoded) = text
            .strip_prefix(VERSION)
            .and_then(|rest| rest.split_once(':'))
            .ok_or(NotEncrypted)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_name = key.len() == NAME_DIGITS && key.bytes().all(is_digit);
        let bytes = STANDARD_PAD_INDIFFERENT.decode(encoded);
        let bytes = bytes.map_err(|_| NotEncrypted)?;
        let secret = bytes.len().checked_sub(HEAD_BYTES + TAG_BYTES);
        if !is_name || secret.is_none_or(|length| length > MAX_SECRET_BYTES) {
            return Err(NotEncrypted);
        }
        Ok(Self {
            key: key.into(),
            bytes: bytes.into(),
        })
    }

    /// The name of its key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// The text of the record.
impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}{}:{}", self.key, STANDARD.encode(&self.bytes))
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({})", self.key)
    }
}

/// Whose secret it is.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The subscriber.
    pub subscriber: &'a str,
    /// The id of the subscription.
    pub id: &'a str,
}

/// A key-encryption key.
struct Key {
    name: Box<str>,
    key: LessSafeKey,
}

/// The key-encryption keys: the first encrypts, all of them decrypt.
pub struct Keys(Vec<Key>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Keys {
    /// Reads the text of a file: a key in each line; empty lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    /// The first line that is not a key, or that there is none.
    pub fn read(text: &str) -> Result<Self, KeysError> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|(at, line)| key(line).ok_or(KeysError::NotAKey(at + 1)));
        let keys: Vec<Key> = keys.collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(KeysError::Empty),
            1..=MAX_KEYS => Ok(Self(keys)),
            _ => Err(KeysError::TooMany),
        }
    }

    /// The names of the keys, the one that encrypts first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| &*key.name)
    }

    /// Encrypts a secret with the first key. `random` must be from a secure source, and never be used again.
    ///
    /// # Errors
    /// When the secret is too long.
    pub fn seal(
        &self,
        secret: &str,
        owner: Owner<'_>,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Sealed, EnvelopeError> {
        if secret.len() > MAX_SECRET_BYTES {
            return Err(EnvelopeError::TooLong(secret.len()));
        }
        // There is at least one.
        let first = &self.0[0];
        let bytes = sealed(first, secret, owner, random);
        let bytes = bytes.ok_or_else(|| EnvelopeError::Refused(first.name.clone()))?;
        Ok(Sealed {
            key: first.name.clone(),
            bytes: bytes.into(),
        })
    }

    /// Decrypts a secret.
    ///
    /// # Errors
    /// When its key is not there, or it does not decrypt.
    pub fn open(&self, sealed: &Sealed, owner: Owner<'_>) -> Result<String, EnvelopeError> {
        let mut found = self
            .0
            .iter()
            .filter(|key| key.name == sealed.key)
            .peekable();
        if found.peek().is_none() {
            return Err(EnvelopeError::UnknownKey(sealed.key.clone()));
        }
        found
            .find_map(|key| opened(key, sealed, owner))
            .ok_or_else(|| EnvelopeError::Refused(sealed.key.clone()))
    }

    /// Whether a secret is encrypted with the key that encrypts.
    #[must_use]
    pub fn is_current(&self, sealed: &Sealed) -> bool {
        self.names().next() == Some(&*sealed.key)
    }
}

fn key(line: &str) -> Option<Key> {
    let bytes = STANDARD_PAD_INDIFFERENT.decode(line).ok()?;
    if bytes.len() != KEY_BYTES {
        return None;
    }
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &bytes),
        b"hookstream kek name v1",
    );
    let digits = tag.as_ref().iter().take(NAME_DIGITS / 2);
    let name: String = digits.map(|byte| format!("{byte:02x}")).collect();
    Some(Key {
        name: name.into(),
        key: aes(&bytes)?,
    })
}

fn aes(bytes: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, bytes)
        .ok()
        .map(LessSafeKey::new)
}

/// What both ciphertexts are bound to. None of the names can contain a zero byte.
fn bound(part: &str, key: &Key, owner: Owner<'_>) -> Aad<Vec<u8>> {
    let all = [VERSION, part, &key.name, owner.subscriber, owner.id];
    Aad::from(all.join("\0").into_bytes())
}

fn nonce(bytes: &[u8]) -> Option<Nonce> {
    Nonce::try_assume_unique_for_key(bytes).ok()
}

fn sealed(
    first: &Key,
    secret: &str,
    owner: Owner<'_>,
    random: &[u8; RANDOM_BYTES],
) -> Option<Vec<u8>> {
    let (data_key, nonces) = random.split_at(KEY_BYTES);
    let (outer, inner) = nonces.split_at(NONCE_LEN);
    let mut wrapped = data_key.to_vec();
    let to = bound("key", first, owner);
    let wrapping = first
        .key
        .seal_in_place_append_tag(nonce(outer)?, to, &mut wrapped);
    wrapping.ok()?;
    let mut hidden = secret.as_bytes().to_vec();
    let to = bound("secret", first, owner);
    let hiding = aes(data_key)?.seal_in_place_append_tag(nonce(inner)?, to, &mut hidden);
    hiding.ok()?;
    Some([outer, &wrapped, inner, &hidden].concat())
}

fn opened(key: &Key, sealed: &Sealed, owner: Owner<'_>) -> Option<String> {
    let (outer, rest) = sealed.bytes.split_at_checked(NONCE_LEN)?;
    let (wrapped, rest) = rest.split_at_checked(KEY_BYTES + TAG_BYTES)?;
    let (inner, hidden) = rest.split_at_checked(NONCE_LEN)?;
    let mut wrapped = wrapped.to_vec();
    let to = bound("key", key, owner);
    let data_key = key
        .key
        .open_in_place(nonce(outer)?, to, &mut wrapped)
        .ok()?;
    let mut hidden = hidden.to_vec();
    let to = bound("secret", key, owner);
    let secret = aes(data_key)?;
    let secret = secret.open_in_place(nonce(inner)?, to, &mut hidden).ok()?;
    String::from_utf8(secret.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ACME: Owner<'_> = Owner {
        subscriber: "acme",
        id: "orders",
    };
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn line(byte: u8) -> String {
        STANDARD.encode([byte; KEY_BYTES])
    }

    fn keys(bytes: &[u8]) -> Keys {
        let lines: Vec<_> = bytes.iter().map(|&byte| line(byte)).collect();
        Keys::read(&lines.join("\n")).unwrap()
    }

    fn seal(keys: &Keys, owner: Owner<'_>) -> Sealed {
        keys.seal(SECRET, owner, &[7; RANDOM_BYTES]).unwrap()
    }

    #[test]
    fn a_secret_comes_back_from_its_text_and_neither_shows_it() {
        let keys = keys(&[1]);
        let sealed = seal(&keys, ACME);
        let text = sealed.to_string();
        let again = Sealed::read(&text).unwrap();
        assert_eq!(again, sealed);
        assert_eq!(keys.open(&again, ACME).as_deref(), Ok(SECRET));
        for shown in [text, format!("{sealed:?} {keys:?}")] {
            assert!(
                !shown.contains("MfKQ9r8") && !shown.contains(&line(1)[..20]),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_key_is_replaced_while_both_are_in_the_file() {
        let old = seal(&keys(&[1]), ACME);
        let both = keys(&[2, 1]);
        assert_eq!(both.open(&old, ACME).as_deref(), Ok(SECRET));
        assert!(!both.is_current(&old));
        let new = seal(&both, ACME);
        assert!(both.is_current(&new));
        let rest = keys(&[2]);
        assert_eq!(rest.open(&new, ACME).as_deref(), Ok(SECRET));
        let error = rest.open(&old, ACME).unwrap_err();
        assert_eq!(error, EnvelopeError::UnknownKey(old.key().into()));
        assert!(
            error.to_string().contains("--kek-file does not contain"),
            "{error}"
        );
    }

    #[test]
    fn what_another_subscription_copies_does_not_decrypt_there() {
        let keys = keys(&[1]);
        let sealed = seal(&keys, ACME);
        for (subscriber, id) in [
            ("acme", "other"),
            ("globex", "orders"),
            ("acm", "eorders"),
            ("orders", "acme"),
            ("", "acme\0orders"),
        ] {
            let error = keys.open(&sealed, Owner { subscriber, id });
            let refused = EnvelopeError::Refused(sealed.key().into());
            assert_eq!(error, Err(refused), "{subscriber} {id}");
        }
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let keys = keys(&[1]);
        let sealed = seal(&keys, ACME);
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert!(keys.open(&changed, ACME).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_file_of_keys_says_which_line_is_wrong_and_never_its_text() {
        let good = format!("# since May\n\n  {}  \r\n{}\n", line(1), line(2));
        assert_eq!(Keys::read(&good).unwrap().names().count(), 2);
        let unpadded = line(1).trim_end_matches('=').to_owned();
        assert_eq!(Keys::read(&unpadded).unwrap().names().count(), 1);
        for (text, error) in [
            (String::new(), KeysError::Empty),
            ("# none\n".to_owned(), KeysError::Empty),
            (format!("{}\nhunter2", line(1)), KeysError::NotAKey(2)),
            (STANDARD.encode([1; 31]), KeysError::NotAKey(1)),
            (STANDARD.encode([1; 33]), KeysError::NotAKey(1)),
            (
                (0..17).map(|byte| line(byte) + "\n").collect(),
                KeysError::TooMany,
            ),
        ] {
            let found = Keys::read(&text).unwrap_err();
            assert_eq!(found, error);
            assert!(!format!("{found} {found:?}").contains("hunter2"));
        }
    }

    #[test]
    fn other_texts_are_not_encrypted_secrets() {
        let text = seal(&keys(&[1]), ACME).to_string();
        for wrong in [
            "",
            "enc:",
            "enc:v1:",
            "enc:v1::",
            SECRET,
            &text.replace("v1", "v2"),
            &text.replace("enc:v1:", "enc:v1:X"),
            &text[..text.len() - 60],
            &format!("{text} "),
            &format!(
                "{VERSION}0011223344556677:{}",
                STANDARD.encode([1; HEAD_BYTES + TAG_BYTES - 1])
            ),
            &format!("{VERSION}0011223344556677:{}", STANDARD.encode([1; 5000])),
        ] {
            assert_eq!(Sealed::read(wrong), Err(NotEncrypted), "{wrong}");
        }
        let long = keys(&[1]).seal(&"x".repeat(4097), ACME, &[7; RANDOM_BYTES]);
        assert_eq!(long, Err(EnvelopeError::TooLong(4097)));
    }

    proptest! {
        #[test]
        fn every_text_comes_back(secret in ".{0,300}", random in proptest::array::uniform32(any::<u8>())) {
            let keys = keys(&[3]);
            let mut all = [0; RANDOM_BYTES];
            all[..32].copy_from_slice(&random);
            let sealed = keys.seal(&secret, ACME, &all).unwrap();
            let text = sealed.to_string();
            prop_assert_eq!(keys.open(&Sealed::read(&text).unwrap(), ACME).unwrap(), secret);
        }
    }
}
