//! Trusted certificate authorities: the system's and those of the operator's file.
//!
//! The system's are loaded with rustls-native-certs, so `SSL_CERT_FILE` and `SSL_CERT_DIR` work as in other programs. The
//! operator's file may also hold the very certificate of a server ([`verify`](super::verify)). TLS 1.2 and 1.3 with ring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

use super::verify::{NoCertificate, Verifier};
use crate::edge::small_file::{self, FileError, MAX_BUNDLE_BYTES};

/// Why a client cannot be built.
#[derive(Debug, Error)]
pub enum HttpSetupError {
    /// The file of certificate authorities cannot be read.
    #[error("cannot read the certificate authorities in {path}")]
    CaFile {
        /// The path of the file.
        path: PathBuf,
        /// Why not.
        source: FileError,
    },
    /// The file of certificate authorities is not PEM.
    #[error("the certificate authorities in {path} are not PEM")]
    CaPem {
        /// The path of the file.
        path: PathBuf,
        /// The place and kind of the error.
        source: rustls::pki_types::pem::Error,
    },
    /// One of its certificates cannot be used.
    #[error("certificate {position} in {path} is not a usable certificate authority")]
    CaCertificate {
        /// The path of the file.
        path: PathBuf,
        /// The position of the certificate, from 1.
        position: usize,
        /// The reason.
        source: rustls::Error,
    },
    /// The file holds no certificate.
    #[error("{path} contains no certificate")]
    CaFileEmpty {
        /// The path of the file.
        path: PathBuf,
    },
    /// No authority is known, so every https endpoint would fail.
    #[error(
        "no certificate authorities found on this system; install ca-certificates or set --ca-file"
    )]
    NoRoots,
    /// The TLS library supports none of the required protocol versions.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The TLS library rejects the authorities.
    #[error("cannot set up the verification of certificates")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// The user agent contains a control character.
    #[error("the user agent is not a valid header value")]
    UserAgent,
}

/// Fails without any authority; only warns if `http` is allowed, because there may be no https endpoint then.
pub(crate) fn client_config(
    ca_file: Option<&Path>,
    allow_http: bool,
) -> Result<ClientConfig, HttpSetupError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (_, unusable) = roots.add_parsable_certificates(system.certs);
    if unusable > 0 || !system.errors.is_empty() {
        tracing::debug!(unusable, errors = ?system.errors, "some certificate authorities of the system ignored");
    }
    let pinned = match ca_file {
        Some(path) => add_file(&mut roots, path)?,
        None => Vec::new(),
    };
    match (roots.is_empty(), allow_http) {
        (true, false) => return Err(HttpSetupError::NoRoots),
        (true, true) => {
            tracing::warn!("no certificate authorities found, every https endpoint will fail")
        }
        (false, _) => {}
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(HttpSetupError::Tls)?;
    if roots.is_empty() {
        // Trusts nobody; a verifier cannot be made without authorities.
        return Ok(config.with_root_certificates(roots).with_no_client_auth());
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(HttpSetupError::Verifier)?;
    let verifier = Verifier {
        authorities,
        pinned,
    };
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(NoCertificate));
    Ok(config)
}

/// Adds the certificates of a file as authorities, and returns them.
fn add_file(
    roots: &mut RootCertStore,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, HttpSetupError> {
    let content = small_file::read(path, MAX_BUNDLE_BYTES).map_err(|source| {
        let path = path.to_owned();
        HttpSetupError::CaFile { path, source }
    })?;
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let position = all.len() + 1;
        let certificate = certificate.map_err(|source| {
            let path = path.to_owned();
            HttpSetupError::CaPem { path, source }
        })?;
        roots
            .add(certificate.clone())
            .map_err(|source| HttpSetupError::CaCertificate {
                path: path.to_owned(),
                position,
                source,
            })?;
        all.push(certificate);
    }
    if all.is_empty() {
        Err(HttpSetupError::CaFileEmpty {
            path: path.to_owned(),
        })
    } else {
        Ok(all)
    }
}
