//! Judges the certificates of servers: as WebPKI does, and beyond it trusts the very certificates of the operator's file.
//!
//! A self-signed certificate, as `openssl req -x509` makes it, is that of an authority, and WebPKI lets no server use one.
//! But who names it in `--ca-file` trusts that very certificate, as curl does: the path to an authority does not matter
//! then. Its validity, its purpose and its names do. Names in the subject (`CN`) count only there, and only if it has no
//! others.
//!
//! rustls reports all certificates without a path to a trusted authority alike; and that a server has asked for a
//! certificate of the client it does not report at all. [`Notes`] carries both from the handshake to its error.

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use webpki::EndEntityCert;

tokio::task_local! {
    /// The notes of the handshake of this task.
    pub(super) static NOTES: Notes;
}

/// What the error of a handshake does not say.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    /// Whether the server has asked for a certificate.
    pub(super) asks_for_certificate: Cell<bool>,
    /// Why its certificate has no path to a trusted authority.
    pub(super) untrusted: Cell<Option<Untrusted>>,
}

/// Why a certificate has no path to a trusted authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untrusted {
    /// It is its own issuer.
    SelfSigned,
    /// It came without the certificates of its issuers.
    Alone,
    /// None of the certificates that came with it leads to one.
    UnknownAuthority,
}

impl Untrusted {
    fn of(certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Self {
        let parsed = EndEntityCert::try_from(certificate).ok();
        if parsed.is_some_and(|parsed| parsed.issuer() == parsed.subject()) {
            Self::SelfSigned
        } else if others.iter().all(|other| **other == **certificate) {
            Self::Alone
        } else {
            Self::UnknownAuthority
        }
    }
}

/// Verifies servers by trusted authorities, or by their very certificates.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) authorities: Arc<WebPkiServerVerifier>,
    /// The certificates of the operator's file.
    pub(super) pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .authorities
            .verify_server_cert(certificate, others, name, ocsp, now);
        let error = match verified {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        if self.pinned.iter().any(|one| **one == **certificate) {
            return judge_pinned(certificate, name, error);
        }
        if is_of_path(&error) {
            let why = Untrusted::of(certificate, others);
            // Without notes, the handshake is not one of this module's.
            NOTES.try_with(|notes| notes.untrusted.set(Some(why))).ok();
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Whether an error is about the path from a certificate to a trusted authority.
pub(super) fn is_of_path(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
                // Such as an authority's certificate that a server uses.
                | CertificateError::Other(_)
        )
    )
}

/// Judges a pinned certificate that WebPKI rejects because of `error`. WebPKI checks the validity first, then the path, then
/// the name; so an error about the path says that the validity is right, and that the name was not checked.
fn judge_pinned(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    error: Error,
) -> Result<ServerCertVerified, Error> {
    let named = match error {
        of_path if is_of_path(&of_path) => {
            // What cannot be parsed fails here again.
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
        }
        other => Err(other),
    };
    match named {
        Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        })) if presented.is_empty() && has_common_name(certificate, name) => {
            Ok(ServerCertVerified::assertion())
        }
        named => named.map(|()| ServerCertVerified::assertion()),
    }
}

fn has_common_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let Ok(parsed) = EndEntityCert::try_from(certificate) else {
        return false;
    };
    let name = name.to_str();
    common_names(parsed.subject()).any(|common| {
        let wildcard = common.strip_prefix("*.").zip(name.split_once('.'));
        common.eq_ignore_ascii_case(&name)
            || wildcard.is_some_and(|(common, (_, rest))| common.eq_ignore_ascii_case(rest))
    })
}

/// The common names in the DER of a subject.
fn common_names(subject: &[u8]) -> impl Iterator<Item = &str> {
    /// The object identifier 2.5.4.3, with its tag and length.
    const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let found = subject.windows(COMMON_NAME.len()).enumerate();
    found
        .filter(|(_, window)| *window == COMMON_NAME)
        .filter_map(move |(at, _)| match &subject[at + COMMON_NAME.len()..] {
            // A text in UTF-8, printable or IA5 characters; no host name is longer than what one byte can say.
            [0x0c | 0x13 | 0x16, length @ 0..=127, text @ ..] => {
                std::str::from_utf8(text.get(..usize::from(*length))?).ok()
            }
            _ => None,
        })
}

/// Has one certificate for servers that ask for one, and notes that they do.
#[derive(Debug)]
pub(super) struct Certificate(pub(super) Arc<CertifiedKey>);

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        NOTES
            .try_with(|notes| notes.asks_for_certificate.set(true))
            .ok();
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Has no certificate for servers that ask for one, and notes that they do.
#[derive(Debug)]
pub(super) struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        NOTES
            .try_with(|notes| notes.asks_for_certificate.set(true))
            .ok();
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
