//! Subscription lookups of partitions: reads the cache and prepares endpoints.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::partition::env::{Standing, Subscriptions, Terms, Unavailable};
use super::partition::lane::{Limits, Rate};
use super::request::Target;
use crate::config::Settings;
use crate::edge::egress::EgressPolicy;
use crate::edge::kafka::subscription_cache::{Known, SubscriptionCache};
use crate::model::subscription::{State, Subscription};

/// Looks up subscriptions for one worker.
pub(super) struct Directory {
    /// The subscription cache.
    pub(super) table: Arc<SubscriptionCache>,
    /// Which endpoints may be reached.
    pub(super) policy: Arc<EgressPolicy>,
    /// Defaults for what a subscription does not set.
    pub(super) settings: Arc<Settings>,
}

impl Directory {
    fn standing(&self, subscription: &Arc<Subscription>) -> Standing<Rc<Target>> {
        match subscription.state {
            State::Paused => return Standing::Waiting,
            State::Disabled => return Standing::Disabled,
            State::Active => {}
        }
        if let Err(denied) = self.policy.check_url(&subscription.url) {
            return Standing::Denied(denied.to_string().into());
        }
        match Target::new(subscription, &self.settings) {
            Ok(target) => Standing::Open(Rc::new(target)),
            Err(error) => {
                tracing::error!(subscription = %subscription.id, "cannot send, commands wait: {error}");
                Standing::Waiting
            }
        }
    }
}

impl Subscriptions for Directory {
    type Endpoint = Rc<Target>;

    fn version(&self) -> u64 {
        self.table.version()
    }

    fn get(&self, id: &str, subscriber: &str) -> Result<Arc<Subscription>, Unavailable> {
        match self.table.get(id) {
            Known::Valid(found) if *found.subscriber == *subscriber => Ok(found),
            Known::Valid(found) => Err(Unavailable::Foreign(found.subscriber.clone())),
            Known::Invalid => Err(Unavailable::Invalid),
            Known::Missing => Err(Unavailable::Missing),
        }
    }

    fn terms(&self, subscription: &Arc<Subscription>) -> Terms<Rc<Target>> {
        const MISSING_SECRET: Duration = Duration::from_secs(10);
        const SECRET_FILE: Duration = Duration::from_secs(60);
        let standing = self.standing(subscription);
        let valid_for = match &standing {
            Standing::Waiting => Some(MISSING_SECRET),
            Standing::Open(target) if target.reads_files() => Some(SECRET_FILE),
            Standing::Open(_) | Standing::Disabled | Standing::Denied(_) => None,
        };
        Terms {
            standing,
            limits: limits(subscription, &self.settings),
            order: subscription.order,
            valid_for,
        }
    }
}

/// The lane limits of a subscription.
fn limits(subscription: &Subscription, settings: &Settings) -> Limits {
    Limits {
        breaker: settings.breaker.with(&subscription.breaker),
        max_in_flight: usize::try_from(subscription.max_in_flight).unwrap_or(usize::MAX),
        rate: subscription.rate_limit.as_ref().map(|limit| Rate {
            per_second: limit.per_second,
            burst: f64::from(limit.burst),
        }),
    }
}
