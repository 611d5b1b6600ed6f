//! Subscriptions that cannot be served: logged once for each reason, counted each time that they are looked at.
//!
//! All workers share it: the lanes of a subscription are in one partition, but their terms are asked for again and again,
//! every few seconds while a secret cannot be read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::metrics::DeliveryMetrics;
pub(super) use super::metrics::Refusal as Reason;
use crate::model::subscription::Subscription;

/// How many subscriptions are remembered. Beyond it all are forgotten, and logged again.
const MAX_REMEMBERED: usize = 10_000;

/// What was logged.
pub(super) struct Refused {
    metrics: DeliveryMetrics,
    /// By subscription: the reason that was logged.
    logged: Mutex<HashMap<Box<str>, Box<str>>>,
    /// Whether `logged` is not empty: the usual case needs no lock.
    is_any: AtomicBool,
}

impl Refused {
    pub(super) fn new(metrics: DeliveryMetrics) -> Self {
        Self {
            metrics,
            logged: Mutex::default(),
            is_any: AtomicBool::new(false),
        }
    }

    /// A subscription cannot be served; `error` contains no secret (**Secret**).
    pub(super) fn note(&self, subscription: &Subscription, reason: Reason, error: &str) {
        self.metrics.refused_subscriptions(reason).inc();
        let mut logged = self.lock();
        if logged
            .get(subscription.id.as_str())
            .is_some_and(|known| **known == *error)
        {
            return;
        }
        if logged.len() >= MAX_REMEMBERED {
            logged.clear();
        }
        logged.insert(subscription.id.as_str().into(), error.into());
        self.is_any.store(true, Ordering::Release);
        let effect = match reason {
            Reason::Secret => "cannot send, commands wait",
            Reason::Egress => "cannot send, commands become dead letters",
        };
        tracing::error!(subscription = %subscription.id, "{effect}: {error}");
    }

    /// A subscription can be served.
    pub(super) fn is_served(&self, id: &str) {
        if !self.is_any.load(Ordering::Acquire) {
            return;
        }
        let mut logged = self.lock();
        let was_refused = logged.remove(id).is_some();
        self.is_any.store(!logged.is_empty(), Ordering::Release);
        if was_refused {
            tracing::info!(subscription = id, "can send again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Box<str>>> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many subscriptions are remembered.
    #[cfg(test)]
    pub(super) fn logged(&self) -> usize {
        self.lock().len()
    }

    /// How often a subscription was refused for this reason.
    #[cfg(test)]
    pub(super) fn count(&self, reason: Reason) -> u64 {
        self.metrics.refused_subscriptions(reason).get()
    }
}
