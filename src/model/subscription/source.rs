//! Where the secrets of a subscription, and the values of its headers, come from.

use std::fmt;
use std::path::Path;

use http::HeaderValue;

use crate::model::envelope::Sealed;
use crate::model::units::EpochMs;

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the delivering process.
    Env(Box<str>),
    /// A file at an absolute path.
    File(Box<Path>),
    /// In the record itself: `whsec_…` or `whsk_…`, which can sign.
    Literal(Redacted),
    /// In the record itself, encrypted with a key of the operator.
    Encrypted(Box<Sealed>),
}

/// The name of the source, never the secret.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Literal(secret) => secret.fmt(f),
            Self::Encrypted(sealed) => write!(f, "enc:v1:{}:…", sealed.key()),
        }
    }
}

/// A secret that signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningSecret {
    /// Where it comes from.
    pub source: SecretSource,
    /// When it stops signing, if it does.
    pub until: Option<EpochMs>,
}

impl SigningSecret {
    /// Whether it no longer signs at `now`.
    #[must_use]
    pub fn has_ended(&self, now: EpochMs) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Where the value of an additional header comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderSource {
    /// The record itself. Marked sensitive when the header's name says that it carries a credential.
    Literal(HeaderValue),
    /// A secret of the delivering process, behind a prefix.
    Reference {
        /// The scheme and a space, as in `Bearer `, or nothing.
        prefix: Box<str>,
        /// Never a literal.
        source: SecretSource,
    },
}

/// A text that neither `Debug` nor `Display` reveals.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(Box<str>);

impl Redacted {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself: for signing only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Redacted {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}
