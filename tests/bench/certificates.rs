//! The certificates of the receiver: one for each address that it listens on, all of one authority, so that each address
//! is an origin of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache};
use tokio_rustls::TlsAcceptor;

use crate::stage::Problem;

/// How the receiver speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Each connection costs a whole handshake.
    Whole,
    /// Later ones resume.
    Resumed,
}

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    sessions: Sessions,
    is_h2: bool,
}

impl Authority {
    /// A new one, whose certificate is written to `file` for those who are to trust it.
    pub fn new(file: &str, sessions: Sessions, is_h2: bool) -> Result<Self, Problem> {
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name
            .push(DnType::CommonName, "hookstream bench");
        let key = KeyPair::generate()?;
        std::fs::write(file, root.self_signed(&key)?.pem())?;
        Ok(Self {
            issuer: Issuer::new(root, key),
            sessions,
            is_h2,
        })
    }

    /// TLS as the origin at `address`.
    pub fn acceptor(&self, address: Ipv4Addr) -> Result<TlsAcceptor, Problem> {
        let key = KeyPair::generate()?;
        let own = CertificateParams::new(vec![address.to_string()])?;
        let certificate = own.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        match self.sessions {
            Sessions::Whole => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
            Sessions::Resumed => config.session_storage = ServerSessionMemoryCache::new(1_024),
        }
        if self.is_h2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
