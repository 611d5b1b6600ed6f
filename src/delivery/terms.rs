//! Subscription lookups of partitions: reads the cache and prepares endpoints.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::partition::env::{Standing, Subscriptions, Terms};
use super::partition::lane::{Limits, Rate};
use super::request::Target;
use crate::config::Settings;
use crate::edge::egress::EgressPolicy;
use crate::edge::kafka::subscription_cache::SubscriptionCache;
use crate::model::expiry::default_max_age;
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
                Standing::Unusable
            }
        }
    }
}

impl Subscriptions for Directory {
    type Endpoint = Rc<Target>;

    fn version(&self) -> u64 {
        self.table.version()
    }

    fn terms(&self, id: &str) -> Option<Terms<Rc<Target>>> {
        const MISSING_SECRET: Duration = Duration::from_secs(10);
        const SECRET_FILE: Duration = Duration::from_secs(60);
        let subscription = self.table.get(id)?;
        let standing = self.standing(&subscription);
        let valid_for = match &standing {
            Standing::Unusable => Some(MISSING_SECRET),
            Standing::Open(target) if target.reads_files() => Some(SECRET_FILE),
            Standing::Open(_) | Standing::Waiting | Standing::Disabled | Standing::Denied(_) => {
                None
            }
        };
        Some(Terms {
            subscriber: Arc::from(&*subscription.subscriber),
            standing,
            limits: limits(&subscription, &self.settings),
            order: subscription.order,
            max_age: max_age(&subscription, &self.settings),
            resumed_at: subscription.resumed_at,
            valid_for,
        })
    }
}

/// The maximum age of a subscription's commands: its own, else the operator's, else as long as its schedule can last.
fn max_age(subscription: &Subscription, settings: &Settings) -> Duration {
    subscription
        .max_age
        .or(settings.max_age)
        .unwrap_or_else(|| {
            let own = subscription.retry_schedule.as_ref();
            let schedule = own.unwrap_or(&settings.retry_schedule);
            let timeout = subscription.timeout.unwrap_or(settings.timeout);
            default_max_age(schedule, timeout, settings.tiers.delays()[0])
        })
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
