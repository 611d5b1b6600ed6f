//! Errors of TLS, one sentence each: what is wrong, and with which side.

use rustls::pki_types::UnixTime;
use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved,
};

use super::verify::{Notes, Untrusted, is_of_path};
use crate::model::units::EpochMs;

const DEMANDS_CERTIFICATE: &str = "the server demands a client certificate, and hookstream sends none that it accepts; see client_certificate of the subscription";
const NOTHING_IN_COMMON: &str = "the server and hookstream have no protocol version, cipher, curve and signature algorithm in common (hookstream needs TLS 1.2 or 1.3 with an AEAD cipher and X25519, P-256 or P-384, and a certificate with an RSA or Ed25519 key, or an ECDSA key on P-256 or P-384)";
const OLD_VERSION: &str = "the server supports neither TLS 1.2 nor TLS 1.3";

/// The sentence about the error of a handshake.
pub(super) fn of_handshake(error: &Error, notes: &Notes) -> String {
    if notes.untrusted.get() == Some(Untrusted::SelfSigned) && is_of_path(error) {
        return "the server's certificate is self-signed, and not one of --ca-file".to_owned();
    }
    match error {
        Error::InvalidCertificate(error) => of_certificate(error, notes),
        Error::AlertReceived(alert) => of_alert(*alert, notes.asks_for_certificate.get()),
        other => of_protocol(other),
    }
}

/// The sentence about an error after the handshake. A server that uses TLS 1.3 judges the client's certificate only then.
pub(super) fn of_connection(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => of_alert(*alert, true),
        other => of_protocol(other),
    }
}

fn of_protocol(error: &Error) -> String {
    let text = match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => "the server does not speak TLS on this port",
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => "the server sent an invalid TLS message",
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => OLD_VERSION,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => NOTHING_IN_COMMON,
        Error::PeerMisbehaved(
            PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme
            | PeerMisbehaved::SignedKxWithWrongAlgorithm
            | PeerMisbehaved::SelectedUnofferedCipherSuite
            | PeerMisbehaved::SelectedUnofferedKxGroup,
        ) => NOTHING_IN_COMMON,
        Error::PeerMisbehaved(_) => "the server violates the TLS protocol",
        Error::NoCertificatesPresented => "the server sent no certificate",
        Error::UnsupportedNameType => "the host is not a name that a certificate can be for",
        Error::InvalidCertificate(error) => return of_certificate(error, &Notes::default()),
        _ => "an internal error of hookstream's TLS",
    };
    text.to_owned()
}

fn of_alert(alert: AlertDescription, asks_for_certificate: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired | Alert::NoCertificate => DEMANDS_CERTIFICATE.to_owned(),
        Alert::HandshakeFailure
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::DecryptError
            if asks_for_certificate =>
        {
            DEMANDS_CERTIFICATE.to_owned()
        }
        Alert::HandshakeFailure | Alert::InsufficientSecurity => NOTHING_IN_COMMON.to_owned(),
        Alert::ProtocolVersion => OLD_VERSION.to_owned(),
        Alert::UnrecognisedName => "the server has no host of this name".to_owned(),
        Alert::InternalError => "the server reports an internal error of its TLS".to_owned(),
        other => format!("the server ended TLS with alert {}", u8::from(other)),
    }
}

fn of_certificate(error: &CertificateError, notes: &Notes) -> String {
    let text = match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            return format!("the server's certificate expired at {}", at(*not_after));
        }
        CertificateError::Expired => "the server's certificate has expired",
        CertificateError::NotValidYetContext { not_before, .. } => {
            return format!(
                "the server's certificate is valid only from {} on",
                at(*not_before)
            );
        }
        CertificateError::NotValidYet => "the server's certificate is not valid yet",
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => return of_names(&expected.to_str(), presented),
        CertificateError::NotValidForName => "the server's certificate is for another host",
        CertificateError::UnknownIssuer => match notes.untrusted.get() {
            Some(Untrusted::Alone) => {
                "the server sent its certificate without the intermediate certificate of its issuer, and the issuer itself is not trusted"
            }
            _ => "the server's certificate was not issued by a trusted authority",
        },
        CertificateError::BadSignature => {
            "a signature of the server, or of its certificate, is wrong"
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate, or that of an issuer, is signed in a way that hookstream does not support (supported are RSA with SHA-256, SHA-384 and SHA-512, ECDSA on P-256 and P-384 with SHA-256 and SHA-384, and Ed25519)"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not for servers: its extended key usage lacks serverAuth"
        }
        CertificateError::Revoked => "the server's certificate is revoked",
        CertificateError::BadEncoding => "the server's certificate is malformed",
        CertificateError::UnhandledCriticalExtension => {
            "the server's certificate has a critical extension that hookstream does not support"
        }
        _ => "the server's certificate cannot be used by a server",
    };
    text.to_owned()
}

fn at(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    EpochMs(seconds.saturating_mul(1000)).rfc3339()
}

/// Names at most three of those that the certificate is for, without the notation of the library.
fn of_names(expected: &str, presented: &[String]) -> String {
    const SHOWN: usize = 3;
    let bare = |name: &String| {
        let inner = name
            .split_once('(')
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    let names: Vec<_> = presented.iter().take(SHOWN).map(bare).collect();
    let more = match presented.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    if names.is_empty() {
        return format!("the server's certificate is not for {expected}: it has no subjectAltName");
    }
    format!(
        "the server's certificate is not for {expected}, but for {}{more}",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::OtherError;

    use super::*;

    #[test]
    fn no_sentence_is_that_of_the_library() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(1_795_000_000));
        let errors = [
            Error::InvalidCertificate(CertificateError::ExpiredContext {
                time,
                not_after: time,
            }),
            Error::InvalidCertificate(CertificateError::NotValidYet),
            Error::InvalidCertificate(CertificateError::UnknownIssuer),
            Error::InvalidCertificate(CertificateError::BadEncoding),
            Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(
                std::io::Error::other("CaUsedAsEndEntity"),
            )))),
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            Error::InvalidMessage(InvalidMessage::MissingData("ServerHello")),
            Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered),
            Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare),
            Error::AlertReceived(AlertDescription::HandshakeFailure),
            Error::AlertReceived(AlertDescription::DecodeError),
            Error::AlertReceived(AlertDescription::Unknown(200)),
            Error::General("some text".to_owned()),
            Error::FailedToGetRandomBytes,
        ];
        for error in errors {
            for text in [
                of_handshake(&error, &Notes::default()),
                of_connection(&error),
            ] {
                let debug = format!("{error:?}");
                let words = debug.split(|c: char| !c.is_alphanumeric());
                let of_library = |word: &str| word.len() > 8 && text.contains(word);
                assert!(!words.into_iter().any(of_library), "{debug}: {text}");
                assert!(
                    !text.contains(&['{', '\n', '"'][..]) && text.len() < 400,
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn names_are_shown_without_notation() {
        let names = ["DnsName(\"a.example\")", "IpAddress(::1)", "c", "d", "e"].map(str::to_owned);
        assert_eq!(
            of_names("b.example", &names),
            "the server's certificate is not for b.example, but for a.example, ::1, c and 2 more"
        );
    }
}
