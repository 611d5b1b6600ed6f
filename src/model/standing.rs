//! How a subscription stands, for operators: its state, why, and what its endpoint did last. Pure.
//!
//! It joins what operators and hookstream decided (the fold of the subscriptions) with what delivery knows (its
//! [`Status`]). The JSON is the same wherever it is printed: `/lag`, `lag`, `subscriptions list` and `show`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::status::{EndpointState, Failure, Status};
use super::subscription::verification::{Tested, Verification};
use super::subscription::{Decider, Fold, State, Subscription};
use super::units::EpochMs;

/// The state of a subscription; of several, the greatest is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Its endpoint gets requests.
    Active,
    /// Its endpoint asked for fewer requests.
    Throttled,
    /// Its commands wait until it is resumed.
    Paused,
    /// It gets no events until its endpoint consents.
    Pending,
    /// Its endpoint fails: it gets only probes.
    BreakerOpen,
    /// Its commands become dead letters.
    Disabled,
}

impl Condition {
    /// The text in JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Throttled => "throttled",
            Self::Paused => "paused",
            Self::Pending => "pending",
            Self::BreakerOpen => "breaker_open",
            Self::Disabled => "disabled",
        }
    }
}

/// The last failure, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastFailure {
    /// When, RFC 3339.
    pub at: String,
    /// The class, as in the metrics.
    pub class: Box<str>,
    /// The status, if there was a response.
    pub status: Option<u16>,
    /// The first line of the response or error.
    pub error: Box<str>,
    /// The webhook, for `hookstream trace`.
    pub webhook_id: Option<Box<str>>,
    /// Whose endpoint it was.
    pub subscription: Box<str>,
    #[serde(skip)]
    time: EpochMs,
}

impl LastFailure {
    fn new(failure: &Failure, subscription: &str) -> Self {
        let webhook_id = Some(&failure.webhook_id).filter(|id| !id.is_empty());
        Self {
            at: failure.at.rfc3339(),
            class: failure.class.clone(),
            status: failure.status,
            error: failure.error.clone(),
            webhook_id: webhook_id.cloned(),
            subscription: subscription.into(),
            time: failure.at,
        }
    }
}

/// What became of asking an endpoint for consent, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastTry {
    /// When, RFC 3339.
    pub at: String,
    /// What became of it.
    #[serde(flatten)]
    pub tested: Tested,
    #[serde(skip)]
    time: EpochMs,
}

impl LastTry {
    fn new(verification: &Verification) -> Self {
        Self {
            at: verification.at.rfc3339(),
            tested: verification.tested.clone(),
            time: verification.at,
        }
    }
}

/// How a subscription, or a subscriber with all of its subscriptions, stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Its state; null if the subscription is not known, as when it was deleted.
    pub state: Option<Condition>,
    /// Who disabled it: `operator`, `hookstream` or `document`; null unless it is disabled.
    pub disabled_by: Option<&'static str>,
    /// When the next probe is due, RFC 3339, while the breaker is open.
    pub breaker_open_until: Option<String>,
    /// Since when the endpoint has failed, RFC 3339, if it does.
    pub failing_since: Option<String>,
    /// The last failed attempt.
    pub last_failure: Option<LastFailure>,
    /// When the last attempt succeeded, RFC 3339; some seconds late at most.
    pub last_success: Option<String>,
    /// What became of asking the endpoint for consent, if it needs to give it and was asked.
    pub verification: Option<LastTry>,
    /// Attempts of the last five minutes by class.
    pub attempts: BTreeMap<Box<str>, u64>,
    #[serde(skip)]
    succeeded: Option<EpochMs>,
}

/// Who may disable a subscription: an operator's command, hookstream itself, or what was applied.
pub const DISABLERS: [&str; 3] = ["operator", "hookstream", "document"];

/// What a standing needs of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The subscriber that owns it.
    pub subscriber: Box<str>,
    /// Its state.
    pub state: State,
    /// Who disabled it.
    pub disabled_by: Option<&'static str>,
    /// What became of asking its endpoint for consent.
    pub verification: Option<LastTry>,
}

impl Decided {
    /// The state of a subscription of `fold`.
    #[must_use]
    pub fn of(fold: &Fold, subscription: &Subscription) -> Self {
        let [operator, hookstream, document] = DISABLERS;
        let by = || match fold.decided_by(&subscription.id) {
            Some((Decider::Operator, _)) => operator,
            Some((Decider::Hookstream, _)) => hookstream,
            None => document,
        };
        Self {
            subscriber: subscription.subscriber.as_str().into(),
            state: subscription.state,
            disabled_by: (subscription.state == State::Disabled).then(by),
            verification: fold.verification(&subscription.id).map(LastTry::new),
        }
    }
}

impl Standing {
    /// The standing of a subscription at `now`; `decided` is missing if the subscription is not known, `status` if nothing
    /// was sent to it.
    #[must_use]
    pub fn new(id: &str, decided: Option<&Decided>, status: Option<&Status>, now: EpochMs) -> Self {
        // A subscription that was created again for another subscriber has not been seen yet.
        let is_same = |status: &&Status| {
            decided.is_none_or(|decided| decided.subscriber == status.subscriber)
        };
        let status = status.filter(is_same);
        let seen = match status.map(|status| status.state) {
            Some(EndpointState::BreakerOpen) => Condition::BreakerOpen,
            Some(EndpointState::Throttled) => Condition::Throttled,
            Some(EndpointState::Active | EndpointState::Unknown) | None => Condition::Active,
        };
        let state = decided.map(|decided| match decided.state {
            State::Active => seen,
            State::Paused => Condition::Paused,
            State::Pending => Condition::Pending,
            State::Disabled => Condition::Disabled,
        });
        let until = status.and_then(|status| status.breaker_open_until);
        let failing = status.and_then(|status| status.failing);
        let failure = status.and_then(|status| status.last_failure.as_ref());
        let succeeded = status.and_then(|status| status.last_success);
        Self {
            state,
            disabled_by: decided.and_then(|decided| decided.disabled_by),
            breaker_open_until: until.map(EpochMs::rfc3339),
            failing_since: failing.map(|failing| failing.since.rfc3339()),
            last_failure: failure.map(|failure| LastFailure::new(failure, id)),
            last_success: succeeded.map(EpochMs::rfc3339),
            verification: decided.and_then(|decided| decided.verification.clone()),
            attempts: status.map_or_else(BTreeMap::new, |status| status.recent_attempts(now)),
            succeeded,
        }
    }

    /// Adds the standing of another subscription of the same subscriber: the worst state, the latest failure and success,
    /// the earliest probe and beginning of a failure.
    pub fn add(&mut self, other: &Self) {
        fn earliest(a: &mut Option<String>, b: Option<&String>) {
            // RFC 3339 in UTC sorts by time, to the second; of two in the same second either will do.
            if let Some(b) = b
                && a.as_ref().is_none_or(|a| b < a)
            {
                *a = Some(b.clone());
            }
        }
        if self.state < other.state {
            self.state = other.state;
            self.disabled_by = other.disabled_by;
            self.verification.clone_from(&other.verification);
        }
        earliest(
            &mut self.breaker_open_until,
            other.breaker_open_until.as_ref(),
        );
        earliest(&mut self.failing_since, other.failing_since.as_ref());
        let time = |failure: &Option<LastFailure>| failure.as_ref().map(|failure| failure.time);
        if time(&self.last_failure) < time(&other.last_failure) {
            self.last_failure.clone_from(&other.last_failure);
        }
        if self.succeeded < other.succeeded {
            self.succeeded = other.succeeded;
            self.last_success.clone_from(&other.last_success);
        }
        for (class, count) in &other.attempts {
            *self.attempts.entry(class.clone()).or_default() += count;
        }
    }

    /// Whether operators may want to know of it though nothing waits.
    #[must_use]
    pub fn is_notable(&self) -> bool {
        self.state.is_some_and(|state| state > Condition::Active)
    }

    /// The state for a table, with until when or by whom.
    #[must_use]
    pub fn state_text(&self) -> String {
        let Some(state) = self.state else {
            return String::new();
        };
        let state = state.as_str().replace('_', " ");
        match (self.disabled_by, &self.breaker_open_until) {
            (Some(by), _) => format!("{state} by {by}"),
            (None, Some(until)) if self.state == Some(Condition::BreakerOpen) => {
                format!("{state}, probe {}", short_time(until))
            }
            _ => state,
        }
    }

    /// The last failure for a table: how long ago, what, and the webhook.
    #[must_use]
    pub fn failure_text(&self, now: EpochMs) -> String {
        if let Some(LastTry {
            tested: Tested::Refused { reason, .. },
            time,
            ..
        }) = &self.verification
        {
            return format!("{} ago: no consent: {reason}", ago(now, *time));
        }
        let Some(failure) = &self.last_failure else {
            return String::new();
        };
        let ago = ago(now, failure.time);
        let what = match failure.status {
            Some(status) => status.to_string(),
            None => failure.class.to_string(),
        };
        let webhook = failure.webhook_id.as_deref().unwrap_or_default();
        let text = format!("{ago} ago: {what} {} {webhook}", failure.error);
        text.trim_end().to_owned()
    }
}

/// The time of day of an RFC 3339 text, to the second.
fn short_time(text: &str) -> &str {
    text.get(11..19).unwrap_or(text)
}

/// About how long ago something was.
fn ago(now: EpochMs, then: EpochMs) -> String {
    let seconds = now.since(then).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::Class;
    use crate::model::status::Failing;

    const NOW: EpochMs = EpochMs(1_700_000_400_000);

    fn decided(state: State) -> Decided {
        Decided {
            subscriber: "acme".into(),
            state,
            disabled_by: (state == State::Disabled).then_some("operator"),
            verification: None,
        }
    }

    fn failing() -> Status {
        let at = EpochMs(1_700_000_280_000);
        Status {
            subscription: "s".into(),
            subscriber: "acme".into(),
            at,
            state: EndpointState::BreakerOpen,
            breaker_open_until: Some(EpochMs(1_700_000_410_000)),
            failing: Some(Failing {
                since: EpochMs(1_700_000_000_000),
                noticed: None,
            }),
            last_failure: Some(Failure::new(
                at,
                Class::ServerError,
                Some(503),
                "down",
                "msg_1",
            )),
            last_success: Some(EpochMs(1_699_999_000_000)),
            attempts: BTreeMap::from([("5xx".into(), 3)]),
            ..Status::default()
        }
    }

    #[test]
    fn what_operators_decided_counts_before_what_the_endpoint_does() {
        let status = failing();
        let state = |state| {
            let decided = decided(state);
            Standing::new("s", Some(&decided), Some(&status), NOW).state
        };
        assert_eq!(state(State::Active), Some(Condition::BreakerOpen));
        assert_eq!(state(State::Paused), Some(Condition::Paused));
        assert_eq!(state(State::Disabled), Some(Condition::Disabled));
        assert_eq!(Standing::new("s", None, Some(&status), NOW).state, None);
        let quiet = Standing::new("s", Some(&decided(State::Active)), None, NOW);
        assert_eq!(quiet.state, Some(Condition::Active));
        assert!(!quiet.is_notable() && quiet.last_failure.is_none());
    }

    #[test]
    fn a_status_of_another_subscriber_says_nothing() {
        let other = Decided {
            subscriber: "beta".into(),
            ..decided(State::Active)
        };
        let standing = Standing::new("s", Some(&other), Some(&failing()), NOW);
        assert_eq!(standing.state, Some(Condition::Active));
        assert_eq!((standing.last_failure, standing.last_success), (None, None));
    }

    #[test]
    fn it_is_printed_under_the_names_that_others_rely_on() {
        let standing = Standing::new("s", Some(&decided(State::Active)), Some(&failing()), NOW);
        let json = serde_json::to_value(&standing).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "state": "breaker_open", "disabled_by": null,
                "breaker_open_until": "2023-11-14T22:20:10Z", "failing_since": "2023-11-14T22:13:20Z",
                "last_failure": {
                    "at": "2023-11-14T22:18:00Z", "class": "5xx", "status": 503, "error": "down",
                    "webhook_id": "msg_1", "subscription": "s",
                },
                "last_success": "2023-11-14T21:56:40Z", "verification": null, "attempts": {"5xx": 3},
            })
        );
        assert_eq!(standing.state_text(), "breaker open, probe 22:20:10");
        assert_eq!(standing.failure_text(NOW), "2m ago: 503 down msg_1");
        let paused = Standing::new("s", Some(&decided(State::Paused)), None, NOW);
        assert_eq!(
            (paused.state_text(), paused.failure_text(NOW)),
            ("paused".to_owned(), String::new())
        );
    }

    #[test]
    fn one_without_consent_is_pending_with_the_reason() {
        let decided = Decided {
            verification: Some(LastTry {
                at: "2023-11-14T22:19:00Z".to_owned(),
                tested: Tested::Refused {
                    reason: "challenge: status 404".into(),
                    failures: 3,
                },
                time: EpochMs(1_700_000_340_000),
            }),
            ..decided(State::Pending)
        };
        let standing = Standing::new("s", Some(&decided), None, NOW);
        assert_eq!(standing.state_text(), "pending");
        assert_eq!(
            standing.failure_text(NOW),
            "1m ago: no consent: challenge: status 404"
        );
        let json = serde_json::to_value(&standing).unwrap();
        assert_eq!(
            json["verification"],
            serde_json::json!({
                "at": "2023-11-14T22:19:00Z", "result": "refused", "reason": "challenge: status 404", "failures": 3,
            })
        );
    }

    #[test]
    fn a_subscriber_stands_as_the_worst_of_its_subscriptions() {
        let mut sum = Standing::default();
        let active = Standing::new("a", Some(&decided(State::Active)), None, NOW);
        sum.add(&active);
        assert_eq!(sum.state, Some(Condition::Active));
        sum.add(&Standing::new(
            "s",
            Some(&decided(State::Active)),
            Some(&failing()),
            NOW,
        ));
        let mut later = failing();
        later.last_failure = Some(Failure::new(NOW, Class::Timeout, None, "slow", ""));
        later.failing = None;
        sum.add(&Standing::new(
            "t",
            Some(&decided(State::Disabled)),
            Some(&later),
            NOW,
        ));
        sum.add(&active);
        assert_eq!(sum.state_text(), "disabled by operator");
        assert_eq!(sum.failure_text(NOW), "0s ago: timeout slow");
        assert_eq!(
            sum.last_failure.as_ref().map(|last| &*last.subscription),
            Some("t")
        );
        assert_eq!(sum.attempts.get("5xx"), Some(&6));
        assert_eq!(sum.failing_since.as_deref(), Some("2023-11-14T22:13:20Z"));
    }
}
