//! Whose certificates are believed: the system's authorities and those of the operator's file.
//!
//! The system's are found as rustls-native-certs does, so `SSL_CERT_FILE` and `SSL_CERT_DIR` work as with
//! other programs. TLS 1.2 and 1.3 with ring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

/// Why no client could be built.
#[derive(Debug, Error)]
pub enum HttpSetupError {
    /// The file of certificate authorities is not PEM or not readable.
    #[error("the certificate authorities in {path} could not be read")]
    CaFile {
        /// As set.
        path: PathBuf,
        /// Of reading or of PEM.
        source: rustls::pki_types::pem::Error,
    },
    /// One of its certificates cannot be used.
    #[error("certificate {position} in {path} is no certificate authority that can be used")]
    CaCertificate {
        /// As set.
        path: PathBuf,
        /// Counted from 1.
        position: usize,
        /// Says what is wrong with it.
        source: rustls::Error,
    },
    /// The file holds no certificate.
    #[error("there is no certificate in {path}")]
    CaFileEmpty {
        /// As set.
        path: PathBuf,
    },
    /// Every https endpoint would fail.
    #[error(
        "no certificate authority was found on this system; install ca-certificates or set --ca-file"
    )]
    NoRoots,
    /// The TLS library has no protocol version in common with us.
    #[error("tls could not be set up")]
    Tls(#[source] rustls::Error),
    /// It holds a control character.
    #[error("the user agent is not a header value")]
    UserAgent,
}

/// Without any authority it fails, or warns if `http` is allowed: then there may be no https endpoint at all.
pub(crate) fn client_config(
    ca_file: Option<&Path>,
    allow_http: bool,
) -> Result<ClientConfig, HttpSetupError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (_, unusable) = roots.add_parsable_certificates(system.certs);
    if unusable > 0 || !system.errors.is_empty() {
        tracing::debug!(unusable, errors = ?system.errors, "some certificate authorities of the system were left out");
    }
    if let Some(path) = ca_file {
        add_file(&mut roots, path)?;
    }
    match (roots.is_empty(), allow_http) {
        (true, false) => return Err(HttpSetupError::NoRoots),
        (true, true) => {
            tracing::warn!("no certificate authority was found: every https endpoint will fail")
        }
        (false, _) => {}
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(HttpSetupError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), HttpSetupError> {
    let unreadable = |source| HttpSetupError::CaFile {
        path: path.to_owned(),
        source,
    };
    let mut position = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        position += 1;
        let certificate = certificate.map_err(unreadable)?;
        roots
            .add(certificate)
            .map_err(|source| HttpSetupError::CaCertificate {
                path: path.to_owned(),
                position,
                source,
            })?;
    }
    if position == 0 {
        Err(HttpSetupError::CaFileEmpty {
            path: path.to_owned(),
        })
    } else {
        Ok(())
    }
}
