//! Connects through a proxy, where a network has no other way out (`--egress-proxy`): HTTP/1.1 `CONNECT` (RFC 9110,
//! section 9.3.6).
//!
//! The proxy is told an address that the egress rules have checked, so that it cannot look a name up anew and reach
//! another one. Where only the proxy can look up names (`--egress-proxy-lookups`), it is told the name, and the rules about
//! addresses do not apply: the operator has handed them over to the proxy.
//!
//! | the proxy | what follows |
//! |---|---|
//! | cannot be reached, demands another login (407), or responds with something else than these | its fault, not the endpoint's: the request was not processed |
//! | 403 | it denies the endpoint: class egress |
//! | 5xx | it cannot reach the endpoint: class connect |

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_service::Service;

use super::limits::TCP_LIMIT;
use crate::config::ProxySettings;
use crate::edge::egress::lookups::Lookups;
use crate::edge::egress::resolver::GuardedResolver;
use crate::edge::secret_text;

/// The largest response to `CONNECT`, bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// Why the proxy opens no tunnel.
#[derive(Debug, Error)]
pub(super) enum ProxyError {
    /// It is the proxy's fault, or that of its settings.
    #[error("the egress proxy {0}")]
    Fault(String),
    /// It denies the endpoint.
    #[error("the egress proxy denies the endpoint (status 403)")]
    Denied,
    /// It cannot reach the endpoint.
    #[error("the egress proxy cannot reach the endpoint (status {0})")]
    Unreachable(u16),
}

fn fault(text: impl Into<String>) -> ProxyError {
    ProxyError::Fault(text.into())
}

/// A proxy.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    settings: Arc<ProxySettings>,
    tcp: HttpConnector<Lookups>,
    /// `None`: the proxy looks names up.
    resolver: Option<GuardedResolver>,
}

impl Proxy {
    pub(super) fn new(
        settings: Arc<ProxySettings>,
        lookups: Lookups,
        resolver: GuardedResolver,
    ) -> Self {
        // The proxy itself is the operator's, and not subject to the rules for endpoints.
        let mut tcp = HttpConnector::new_with_resolver(lookups);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP_LIMIT));
        Self {
            resolver: (!settings.looks_up).then_some(resolver),
            settings,
            tcp,
        }
    }

    /// Opens a tunnel to the host of `uri`.
    pub(super) async fn tunnel(
        mut self,
        uri: &Uri,
    ) -> Result<TcpStream, Box<dyn std::error::Error + Send + Sync>> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(match uri.scheme_str() {
            Some("http") => 80,
            _ => 443,
        });
        let target = match &mut self.resolver {
            None => authority(host, port),
            Some(resolver) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let address = match bare.parse::<IpAddr>() {
                    // Checked with the URL.
                    Ok(address) => address,
                    Err(_) => {
                        let name = bare.parse()?;
                        let found = resolver.call(name).await.map_err(Box::new)?;
                        let mut all: Vec<IpAddr> = found.map(|found| found.ip()).collect();
                        // A proxy often has no IPv6; all addresses are checked, so any may be named.
                        all.sort_by_key(IpAddr::is_ipv6);
                        *all.first().ok_or("dns lookup found no address")?
                    }
                };
                authority(&address.to_string(), port)
            }
        };
        Ok(self.connect(&target).await?)
    }

    async fn connect(&mut self, target: &str) -> Result<TcpStream, ProxyError> {
        let login = self.login().await?;
        let connected = self.tcp.call(self.settings.uri.clone()).await;
        let connected = connected.map_err(|error| {
            let mut text = "cannot be reached".to_owned();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                if let Some(error) = error.downcast_ref::<io::Error>() {
                    text = format!("cannot be reached: {}", error.kind());
                }
                cause = error.source();
            }
            fault(text)
        })?;
        let mut stream = TokioIo::into_inner(connected);
        let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{login}\r\n");
        let broke = |error: io::Error| fault(format!("closed the connection: {}", error.kind()));
        stream.write_all(request.as_bytes()).await.map_err(broke)?;
        let mut head = Vec::with_capacity(256);
        // Byte by byte: what follows the head is already the endpoint's.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD_BYTES {
                return Err(fault("sends a response that is too large"));
            }
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(error) => return Err(broke(error)),
            }
        }
        judge(&head)?;
        Ok(stream)
    }

    /// The header of the login, with its line end.
    async fn login(&self) -> Result<String, ProxyError> {
        let Some((user, password)) = self.settings.login.clone() else {
            return Ok(String::new());
        };
        // A file system may hang.
        let read = tokio::task::spawn_blocking(move || secret_text::read(&password));
        let password = read
            .await
            .map_err(|error| error.to_string())
            .and_then(|read| read)
            .map_err(|problem| fault(format!("has no password: {problem}")))?;
        let both = STANDARD.encode(format!("{user}:{password}"));
        Ok(format!("proxy-authorization: Basic {both}\r\n"))
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// What the head of the response says.
fn judge(head: &[u8]) -> Result<(), ProxyError> {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        Some(403) => Err(ProxyError::Denied),
        Some(407) => Err(fault(
            "demands a login, or another one (status 407); see --egress-proxy-user and --egress-proxy-password",
        )),
        Some(status @ 500..=599) => Err(ProxyError::Unreachable(status)),
        Some(status) => Err(fault(format!("responds with status {status}"))),
        None => Err(fault("does not speak HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_is_about_the_endpoint_is_the_endpoints_fault() {
        let said = |head: &str| judge(head.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(said("HTTP/1.1 200 Connection established\r\n\r\n"), Ok(()));
        assert_eq!(said("HTTP/1.0 200\r\n\r\n"), Ok(()));
        for (head, expected) in [
            ("HTTP/1.1 403 Forbidden\r\n", "denies the endpoint"),
            ("HTTP/1.1 407 x\r\n", "demands a login"),
            (
                "HTTP/1.1 502 Bad\r\n",
                "cannot reach the endpoint (status 502)",
            ),
            ("HTTP/1.1 302 Found\r\n", "responds with status 302"),
            ("HTTP/1.1 429 Slow\r\n", "responds with status 429"),
            ("SSH-2.0-x\r\n", "does not speak HTTP"),
            ("HTTP/1.1 2é\r\n", "does not speak HTTP"),
            ("", "does not speak HTTP"),
        ] {
            let error = said(head).unwrap_err();
            assert!(error.contains(expected), "{head}: {error}");
        }
    }

    #[test]
    fn an_address_of_ipv6_is_in_brackets() {
        assert_eq!(authority("2001:db8::1", 443), "[2001:db8::1]:443");
        assert_eq!(authority("[2001:db8::1]", 443), "[2001:db8::1]:443");
        assert_eq!(authority("a.example", 8443), "a.example:8443");
    }
}
