//! TLS of the admin HTTP server (`--http-certificate`, `--http-key`): TLS 1.2 and 1.3, with a certificate that is read
//! again when its file changes. A new one that cannot be used is logged, and the former one stays in use.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::edge::clock;
use crate::edge::small_file::{self, MAX_BUNDLE_BYTES, MAX_SECRET_BYTES};

/// How long a certificate counts as current.
const EVERY: Duration = Duration::from_secs(30);

/// The certificate and key in use.
struct Current {
    files: (PathBuf, PathBuf),
    key: ArcSwap<CertifiedKey>,
    /// What the files held, and when they were read.
    read: Mutex<(Contents, Instant)>,
}

/// The contents of the certificate's file and the key's file.
type Contents = (Vec<u8>, Vec<u8>);

/// Without the key.
impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

/// Accepts connections with the certificate of these files.
///
/// # Errors
/// What is wrong with a file, with the name of its setting and without its content.
pub fn acceptor(certificate: PathBuf, key: PathBuf) -> Result<TlsAcceptor, String> {
    let files = (certificate, key);
    let contents = read(&files)?;
    let current = Current {
        key: ArcSwap::new(Arc::new(certified(&contents)?)),
        files,
        read: Mutex::new((contents, clock::instant())),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(current));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.refresh(clock::instant());
        Some(self.key.load_full())
    }
}

impl Current {
    /// Reads the files again, if they were not read for a while. Two small files, twice a minute.
    fn refresh(&self, now: Instant) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(read.1) < EVERY {
            return;
        }
        read.1 = now;
        let found = self::read(&self.files).and_then(|contents| {
            if contents == read.0 {
                return Ok(None);
            }
            certified(&contents).map(|key| Some((contents, key)))
        });
        match found {
            Ok(None) => {}
            Ok(Some((contents, key))) => {
                tracing::info!("the HTTP server uses a new certificate");
                self.key.store(Arc::new(key));
                read.0 = contents;
            }
            Err(problem) => {
                tracing::warn!("the HTTP server keeps its former certificate: {problem}");
            }
        }
    }
}

fn read(files: &(PathBuf, PathBuf)) -> Result<Contents, String> {
    let one = |setting: &str, path: &PathBuf, limit| {
        small_file::read(path, limit)
            .map_err(|error| format!("--{setting} {}: {error}", path.display()))
    };
    Ok((
        one("http-certificate", &files.0, MAX_BUNDLE_BYTES)?,
        one("http-key", &files.1, MAX_SECRET_BYTES)?,
    ))
}

fn certified(contents: &Contents) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&contents.0).collect();
    let chain = chain.map_err(|_| "--http-certificate: the file is not PEM".to_owned())?;
    if chain.is_empty() {
        return Err("--http-certificate: the file contains no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(&contents.1)
        .map_err(|_| "--http-key: the file is not an unencrypted private key in PEM".to_owned())?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            "--http-key: is not the key of --http-certificate".to_owned()
        }
        _ => "--http-key: cannot be used; must be RSA, ECDSA on P-256 or P-384, or Ed25519"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issue() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_is_read_again_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = (dir.path().join("crt"), dir.path().join("key"));
        let write = |certificate: &str, key: &str| {
            std::fs::write(&files.0, certificate).unwrap();
            std::fs::write(&files.1, key).unwrap();
        };
        let (first, second) = (issue(), issue());
        write(&first.0, &first.1);
        let contents = read(&files).unwrap();
        let current = Current {
            key: ArcSwap::new(Arc::new(certified(&contents).unwrap())),
            files: files.clone(),
            read: Mutex::new((contents, clock::instant())),
        };
        let served = || current.key.load().cert[0].clone();
        let former = served();
        write(&second.0, &first.1);
        current.refresh(clock::instant() + EVERY);
        assert_eq!(served(), former, "they do not belong together");
        write(&second.0, &second.1);
        current.refresh(clock::instant() + EVERY);
        assert_eq!(served(), former, "it was read a moment ago");
        current.refresh(clock::instant() + 2 * EVERY);
        assert_ne!(served(), former);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("crt"), dir.path().join("key"));
        let error = || acceptor(certificate.clone(), key.clone()).err().unwrap();
        assert!(error().starts_with("--http-certificate "), "{}", error());
        let (pem, own) = issue();
        std::fs::write(&certificate, &pem).unwrap();
        std::fs::write(&key, "hunter2").unwrap();
        assert!(
            error().starts_with("--http-key: the file is not"),
            "{}",
            error()
        );
        std::fs::write(&key, issue().1).unwrap();
        assert!(error().contains("is not the key of"), "{}", error());
        std::fs::write(&key, own).unwrap();
        assert!(acceptor(certificate, key).is_ok());
    }
}
