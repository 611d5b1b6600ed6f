//! Resolves a name to the addresses that may be dialled, once per connection.
//!
//! Runs inside hyper-util's `HttpConnector`, which dials exactly the addresses that this returns. [`Lookups`] does the
//! lookup with the system's resolver. So search domains, `/etc/hosts` and the like work as usual, and no second resolver
//! is involved.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use thiserror::Error;
use tower_service::Service;

use super::lookups::Lookups;
use super::{EgressDenied, EgressPolicy};
use crate::edge::failpoint;

/// The most addresses of one lookup that are checked and dialled; the rest is dropped, to bound the work that a hostile
/// zone can cause.
pub const MAX_ANSWERS: usize = 16;

/// Why a name has no address to dial.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// At least one address is denied.
    #[error("egress denied")]
    Denied(#[source] EgressDenied),
    /// The system's resolver failed: unknown name, no server, or no response.
    #[error("dns lookup failed")]
    Lookup(#[source] io::Error),
    /// The name exists but has no address.
    #[error("dns lookup found no address")]
    NoAddress,
}

/// Resolves with `R` and returns only addresses that the policy allows.
#[derive(Clone, Debug)]
pub struct GuardedResolver<R = Lookups> {
    policy: Arc<EgressPolicy>,
    inner: R,
}

impl GuardedResolver {
    /// Uses the system's resolver.
    #[must_use]
    pub fn new(policy: Arc<EgressPolicy>, lookups: Lookups) -> Self {
        Self::over(policy, lookups)
    }
}

impl<R> GuardedResolver<R> {
    /// Uses another resolver.
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
