//! Turns a name into the addresses that may be dialled, once per connection.
//!
//! Sits inside hyper-util's `HttpConnector`, which dials exactly what this yields. The system's resolver does
//! the look-up (`getaddrinfo` on the runtime's blocking threads: their number bounds the look-ups under way),
//! so search domains, `/etc/hosts` and the like work as everywhere else; there is never a second resolver.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use thiserror::Error;
use tower_service::Service;

use super::{EgressDenied, EgressPolicy};
use crate::edge::failpoint;

/// Answers of one look-up that are judged and dialled; those past it are dropped, to bound the work that a
/// hostile zone can cause.
pub const MAX_ANSWERS: usize = 16;

/// Why a name gave nothing to dial.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// An answer, or more, may not be dialled.
    #[error("egress denied")]
    Denied(#[source] EgressDenied),
    /// The system's resolver failed: no such name, no server, no answer.
    #[error("dns lookup failed")]
    Lookup(#[source] io::Error),
    /// The name exists, without an address.
    #[error("dns lookup found no address")]
    NoAddress,
}

/// Resolves with `R` and lets through only what the policy allows.
#[derive(Clone, Debug)]
pub struct GuardedResolver<R = GaiResolver> {
    policy: Arc<EgressPolicy>,
    inner: R,
}

impl GuardedResolver {
    /// Over the system's resolver.
    #[must_use]
    pub fn new(policy: Arc<EgressPolicy>) -> Self {
        Self::over(policy, GaiResolver::new())
    }
}

impl<R> GuardedResolver<R> {
    /// Over another resolver.
    #[must_use]
    pub fn over(policy: Arc<EgressPolicy>, inner: R) -> Self {
        Self { policy, inner }
    }
}

impl<R> Service<Name> for GuardedResolver<R>
where
    R: Service<Name, Error = io::Error>,
    R::Response: Iterator<Item = SocketAddr>,
    R::Future: Send + 'static,
{
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ResolveError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        self.inner.poll_ready(cx).map_err(ResolveError::Lookup)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if failpoint::fails("resolve") {
            let failed = ResolveError::Lookup(io::Error::other("the chaos test's fault"));
            return Box::pin(std::future::ready(Err(failed)));
        }
        let policy = Arc::clone(&self.policy);
        let lookup = self.inner.call(name.clone());
        Box::pin(async move {
            let answers = lookup
                .await
                .map_err(ResolveError::Lookup)?
                .take(MAX_ANSWERS)
                .collect::<Vec<_>>();
            let addresses = answers.iter().map(SocketAddr::ip).collect::<Vec<IpAddr>>();
            policy
                .check_addresses(name.as_str(), &addresses)
                .map_err(ResolveError::Denied)?;
            if answers.is_empty() {
                Err(ResolveError::NoAddress)
            } else {
                Ok(answers.into_iter())
            }
        })
    }
}
