//! Trusted certificate authorities: the system's and those of the operator's file.
//!
//! The system's are loaded with rustls-native-certs, so `SSL_CERT_FILE` and `SSL_CERT_DIR` work as in other programs. The
//! operator's file may also hold the very certificate of a server ([`verify`](super::verify)). A subscription can have further
//! authorities and a certificate of its own ([`Tls`]). TLS 1.2 and 1.3 with ring.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

use super::sessions;
use super::verify::{Certificate, NoCertificate, Verifier};
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
    let trust = Trust::load(ca_file)?;
    match (trust.roots.is_empty(), allow_http) {
        (true, false) => return Err(HttpSetupError::NoRoots),
        (true, true) => {
            tracing::warn!("no certificate authorities found, every https endpoint will fail")
        }
        (false, _) => {}
    }
    trust.config(Arc::new(NoCertificate))
}

/// Whom a client trusts.
#[derive(Clone, Debug)]
struct Trust {
    roots: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// The authorities of the system and of the operator's file.
    fn load(ca_file: Option<&Path>) -> Result<Self, HttpSetupError> {
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
        Ok(Self { roots, pinned })
    }

    /// TLS 1.2 and 1.3; host names are always verified.
    fn config(self, client: Arc<dyn ResolvesClientCert>) -> Result<ClientConfig, HttpSetupError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(HttpSetupError::Tls)?;
        let mut config = if self.roots.is_empty() {
            // Trusts nobody; a verifier cannot be made without authorities.
            let config = config.with_root_certificates(self.roots);
            config.with_client_cert_resolver(client)
        } else {
            let authorities =
                WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots), provider)
                    .build()
                    .map_err(HttpSetupError::Verifier)?;
            let verifier = Verifier {
                authorities,
                pinned: self.pinned,
            };
            config
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_cert_resolver(client)
        };
        config.resumption = sessions::resumption();
        Ok(config)
    }
}

/// What a subscription's connections are made with, beyond the defaults. Connections are shared only where it is equal.
pub struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// A digest of the authorities, the certificate and the key.
    pub(super) digest: Digest,
}

pub(super) type Digest = [u8; 32];

/// Without the key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Makes the [`Tls`] of subscriptions. What is equal is made once.
#[derive(Debug, Default)]
pub struct TlsMaker {
    ca_file: Option<PathBuf>,
    /// Loaded when the first subscription needs it.
    base: OnceLock<Result<Trust, String>>,
    made: Mutex<HashMap<Digest, Weak<Tls>>>,
}

impl TlsMaker {
    /// `ca_file`: a PEM file of authorities to trust besides the system's.
    #[must_use]
    pub fn new(ca_file: Option<PathBuf>) -> Self {
        Self {
            ca_file,
            ..Self::default()
        }
    }

    /// `ca`: PEM of authorities to trust too, or of the very certificates of a server. `client`: PEM of a certificate, with
    /// those of its issuers, and of its key.
    ///
    /// # Errors
    /// One sentence that names the field, without its content.
    pub fn tls(&self, ca: Option<&str>, client: Option<(&str, &str)>) -> Result<Arc<Tls>, String> {
        let digest = digest(ca, client);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&digest).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let base = self.base.get_or_init(|| {
            let loaded = Trust::load(self.ca_file.as_deref());
            loaded.map_err(|error| error.to_string())
        });
        let mut trust = base.clone()?;
        if let Some(pem) = ca {
            let own = add_pem(&mut trust.roots, pem.as_bytes());
            trust
                .pinned
                .extend(own.map_err(|problem| format!("tls_ca: {problem}"))?);
        }
        let resolver: Arc<dyn ResolvesClientCert> = match client {
            None => Arc::new(NoCertificate),
            Some((certificate, key)) => Arc::new(Certificate(certified(certificate, key)?)),
        };
        let mut config = trust.config(resolver).map_err(|error| error.to_string())?;
        config.alpn_protocols = alpn();
        let tls = Arc::new(Tls {
            config: Arc::new(config),
            digest,
        });
        made.retain(|_, known| known.strong_count() > 0);
        made.insert(digest, Arc::downgrade(&tls));
        Ok(tls)
    }
}

/// The protocols that a client offers, the preferred one first.
pub(super) fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

fn digest(ca: Option<&str>, client: Option<(&str, &str)>) -> Digest {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let parts = [ca, client.map(|both| both.0), client.map(|both| both.1)];
    for part in parts {
        let part = part.unwrap_or_default();
        // Its length first, so that no two lists look alike.
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn certified(certificate: &str, key: &str) -> Result<Arc<CertifiedKey>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(|_| "client_certificate: is not PEM".to_owned())?;
    if chain.is_empty() {
        return Err("client_certificate: contains no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| "client_key: is not an unencrypted private key in PEM".to_owned())?;
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, key, &provider) {
        Ok(found) => Ok(Arc::new(found)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err("client_key: is not the key of client_certificate".to_owned())
        }
        Err(_) => Err(
            "client_key: cannot be used; must be RSA, ECDSA on P-256 or P-384, or Ed25519"
                .to_owned(),
        ),
    }
}

/// Adds the certificates of a PEM text as authorities, and returns them.
fn add_pem(roots: &mut RootCertStore, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|_| "is not PEM".to_owned())?;
    for (at, certificate) in all.iter().enumerate() {
        let added = roots.add(certificate.clone());
        added.map_err(|_| {
            let position = at + 1;
            format!("certificate {position} is not usable as a certificate authority")
        })?;
    }
    if all.is_empty() {
        return Err("contains no certificate".to_owned());
    }
    Ok(all)
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issue() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn what_is_equal_is_made_once_and_what_differs_is_shared_by_nobody() {
        let maker = TlsMaker::new(None);
        let ((ca, _), (certificate, key), (other, other_key)) = (issue(), issue(), issue());
        let made = [
            maker.tls(Some(&ca), None),
            maker.tls(Some(&other), None),
            maker.tls(None, Some((&certificate, &key))),
            maker.tls(None, Some((&other, &other_key))),
            maker.tls(Some(&ca), Some((&certificate, &key))),
        ]
        .map(Result::unwrap);
        for (at, one) in made.iter().enumerate() {
            let same = made.iter().filter(|other| other.digest == one.digest);
            assert_eq!(same.count(), 1, "{at}");
        }
        let again = maker.tls(Some(&ca), None).unwrap();
        assert!(Arc::ptr_eq(&again, &made[0]));
        drop((again, made));
        let kept = maker.tls(Some(&ca), None).unwrap();
        assert_eq!(
            maker.made.lock().unwrap().len(),
            1,
            "unused ones are forgotten"
        );
        drop(kept);
    }

    #[test]
    fn what_is_wrong_is_named_without_its_content() {
        let maker = TlsMaker::new(None);
        let ((certificate, key), (other, _)) = (issue(), issue());
        for (ca, client, expected) in [
            (Some("hunter2"), None, "tls_ca: contains no certificate"),
            (
                Some("-----BEGIN CERTIFICATE-----\nhunter2"),
                None,
                "tls_ca: is not PEM",
            ),
            (Some(&*key), None, "tls_ca: contains no certificate"),
            (
                None,
                Some(("hunter2", &*key)),
                "client_certificate: contains no certificate",
            ),
            (
                None,
                Some((&*certificate, "hunter2")),
                "client_key: is not an unencrypted",
            ),
            (
                None,
                Some((&*other, &*key)),
                "client_key: is not the key of client_certificate",
            ),
        ] {
            let error = maker.tls(ca, client).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
