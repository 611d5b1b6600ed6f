//! An HTTP server that verifies webhooks as a subscriber would: for `receive` and the demo.
//!
//! Signature verification follows the text of Standard Webhooks 1.0 and shares no code with the signer.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use tokio::net::TcpListener;

/// The maximum body size, bytes.
const LARGEST_BODY: usize = 2 * 1024 * 1024;

/// How far a request's timestamp may be from now, as the specification advises.
const TOLERANCE: Duration = Duration::from_secs(300);

/// Serves requests, each connection on its own task, until it is dropped.
pub(super) async fn serve<H, F>(listener: TcpListener, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Usually too many open files.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = handle(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("connection of a receiver ended: {error}");
            }
        });
    }
}

/// The head and the body of a request; `None` if the body is too large or incomplete.
pub(super) async fn whole(request: Request<Incoming>) -> Option<(Parts, Bytes)> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, LARGEST_BODY).collect().await.ok()?;
    Some((parts, body.to_bytes()))
}

/// A header's value, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a signature is verified with.
#[derive(Clone)]
pub(super) enum VerifyingKey {
    /// `whsec_…`, for `v1` signatures.
    Hmac(hmac::Key),
    /// `whpk_…`, or the public half of `whsk_…`, for `v1a` signatures.
    Ed25519(Vec<u8>),
}

impl VerifyingKey {
    /// Reads a secret, or a public key.
    ///
    /// # Errors
    /// One sentence that does not show it.
    pub(super) fn read(secret: &str) -> Result<Self, String> {
        /// The length of an ed25519 seed, and of a public key.
        const KEY: usize = 32;
        let secret = secret.trim();
        let decode = |text: &str| {
            let padded = text.trim_end_matches('=');
            base64::engine::general_purpose::STANDARD_NO_PAD
                .decode(padded)
                .map_err(|_| "the secret is not base64".to_owned())
        };
        if let Some(public) = secret.strip_prefix("whpk_") {
            let key = decode(public)?;
            if key.len() != KEY {
                return Err(format!(
                    "the secret has {} bytes; whpk_ needs {KEY}",
                    key.len()
                ));
            }
            return Ok(Self::Ed25519(key));
        }
        if let Some(private) = secret.strip_prefix("whsk_") {
            let bytes = decode(private)?;
            let pair = bytes
                .get(..KEY)
                .and_then(|seed| Ed25519KeyPair::from_seed_unchecked(seed).ok())
                .ok_or_else(|| "a whsk_ secret has 32 or 64 bytes".to_owned())?;
            return Ok(Self::Ed25519(pair.public_key().as_ref().to_vec()));
        }
        let key = decode(secret.strip_prefix("whsec_").unwrap_or(secret))?;
        Ok(Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    fn fits(&self, signature: &str, signed: &[u8]) -> bool {
        let decoded = |prefix: &str| STANDARD.decode(signature.strip_prefix(prefix)?).ok();
        match self {
            Self::Hmac(key) => {
                decoded("v1,").is_some_and(|tag| hmac::verify(key, signed, &tag).is_ok())
            }
            Self::Ed25519(public) => decoded("v1a,").is_some_and(|signature| {
                let key = UnparsedPublicKey::new(&ED25519, public);
                key.verify(signed, &signature).is_ok()
            }),
        }
    }
}

/// Standard Webhooks 1.0, "Verifying webhooks": a signature must match one of the keys, and the timestamp be recent.
///
/// # Errors
/// One sentence.
pub(super) fn verify(
    keys: &[VerifyingKey],
    headers: &HeaderMap,
    body: &[u8],
    now_seconds: i64,
) -> Result<(), &'static str> {
    let id = text(headers, "webhook-id").ok_or("missing webhook-id")?;
    let timestamp = text(headers, "webhook-timestamp").ok_or("missing webhook-timestamp")?;
    let signatures = text(headers, "webhook-signature").ok_or("missing webhook-signature")?;
    let seconds: i64 = timestamp
        .parse()
        .map_err(|_| "webhook-timestamp is not a number")?;
    if seconds.abs_diff(now_seconds) > TOLERANCE.as_secs() {
        return Err("webhook-timestamp is not recent");
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let mut signatures = signatures.split(' ');
    if signatures.any(|signature| keys.iter().any(|key| key.fits(signature, &signed))) {
        Ok(())
    } else {
        Err("no signature matches")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::signing::Signer;

    fn headers(secret: &str) -> HeaderMap {
        let signer = Signer::new([secret]).unwrap();
        let signature = signer.sign("msg_1", "1700000000", b"{}");
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", "1700000000".parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    #[test]
    fn a_signature_is_valid_only_for_its_body_key_and_time() {
        for prefix in ["whsec_", "whsk_"] {
            let secret = format!("{prefix}{}", STANDARD.encode([7; 32]));
            let headers = headers(&secret);
            let own = [VerifyingKey::read(&secret).unwrap()];
            let other = format!("{prefix}{}", STANDARD.encode([8; 32]));
            let other = [VerifyingKey::read(&other).unwrap()];
            let at = |keys: &[VerifyingKey], body: &[u8], now| verify(keys, &headers, body, now);
            assert_eq!(at(&own, b"{}", 1_700_000_100), Ok(()));
            assert!(at(&own, b"{} ", 1_700_000_100).is_err(), "another body");
            assert!(at(&other, b"{}", 1_700_000_100).is_err(), "another key");
            assert!(at(&own, b"{}", 1_700_001_000).is_err(), "too old");
            let both = [other[0].clone(), own[0].clone()];
            assert_eq!(at(&both, b"{}", 1_700_000_100), Ok(()), "one of them");
        }
    }

    #[test]
    fn a_broken_secret_is_refused_without_showing_it() {
        for secret in ["whsec_ä!", "whsk_AAAA", "whpk_?"] {
            let error = VerifyingKey::read(secret).err().unwrap();
            let (_, key) = secret.split_once('_').unwrap();
            assert!(!error.contains(key), "{error}");
        }
    }
}
