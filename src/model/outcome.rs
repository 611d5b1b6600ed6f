//! The status rules: what follows from the result of an attempt.
//!
//! | response | verdict |
//! |---|---|
//! | 2xx | delivered, as soon as the headers are complete |
//! | 410 | dead letter (`gone`), and the subscription is disabled |
//! | 400 405 406 411 413 414 415 422 431 451 501 505 | dead letter (`permanent-status`): a retry cannot help |
//! | denied by the egress rules, after a lookup | retry; at the end of the attempts a dead letter (`egress-denied`). A URL that is denied whatever its lookup says is no attempt |
//! | 429; 503 with `Retry-After` | throttled: the lane slows down, and the same attempt follows |
//! | refused by an HTTP/2 server before it processed the request | throttled |
//! | everything else, 3xx included; timeouts; connection errors | retry |
//!
//! A subscription's `on_status` takes precedence over the table. A retry becomes a dead letter (`attempts-exhausted`)
//! at the end of the schedule. A throttled command keeps its attempt count: its endpoint works, or asks for a pause.

use std::time::Duration;

use crate::model::subscription::{StatusRule, StatusRules};

/// Statuses which say that the same request will never be accepted.
pub const PERMANENT: [u16; 12] = [400, 405, 406, 411, 413, 414, 415, 422, 431, 451, 501, 505];

/// The class of an attempt's result, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Success.
    Success,
    /// A redirect, never followed. Also informational responses that end an attempt.
    Redirect,
    /// The endpoint rejected the request.
    ClientError,
    /// The server failed.
    ServerError,
    /// The deadline passed.
    Timeout,
    /// No connection: DNS failure, refused, or reset before the request.
    Connect,
    /// The certificate or the handshake failed.
    Tls,
    /// The egress rules deny the endpoint.
    Egress,
    /// Not HTTP, an incomplete response, and the like.
    Other,
}

impl Class {
    /// All classes, in declaration order.
    pub const ALL: [Self; 9] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::Timeout,
        Self::Connect,
        Self::Tls,
        Self::Egress,
        Self::Other,
    ];

    /// The text in metric labels and in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Egress => "egress",
            Self::Other => "other",
        }
    }

    /// The class of a response status.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Success,
            400..=499 => Self::ClientError,
            500..=599 => Self::ServerError,
            100..=199 | 300..=399 => Self::Redirect,
            _ => Self::Other,
        }
    }
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The endpoint accepted it.
    Delivered,
    /// Another attempt follows.
    Retry,
    /// No further attempt follows.
    DeadLettered,
    /// The endpoint did not process it: the same attempt follows, later.
    Throttled,
}

impl AttemptOutcome {
    /// All outcomes, in declaration order.
    pub const ALL: [Self; 4] = [
        Self::Delivered,
        Self::Retry,
        Self::DeadLettered,
        Self::Throttled,
    ];

    /// The text in metric labels and in the attempt log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::DeadLettered => "dead_lettered",
            Self::Throttled => "throttled",
        }
    }
}

/// Why a command went to a tier without an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkReason {
    /// The breaker is open.
    Breaker,
    /// The lane was full and slow.
    LaneFull,
    /// An egress outage, and nothing came from the endpoint.
    Outage,
    /// The rate limit, or the endpoint throttles.
    Rate,
    /// The subscription asks for order, and a command ahead of it is in a tier.
    Order,
    /// The subscription is paused, not known yet, or has no usable signing secret.
    Paused,
}

impl ParkReason {
    /// All reasons, in declaration order.
    pub const ALL: [Self; 6] = [
        Self::Breaker,
        Self::LaneFull,
        Self::Outage,
        Self::Rate,
        Self::Order,
        Self::Paused,
    ];

    /// The text in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::LaneFull => "lane_full",
            Self::Outage => "outage",
            Self::Rate => "rate",
            Self::Order => "order",
            Self::Paused => "paused",
        }
    }
}

/// The result of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The endpoint responded.
    Status {
        /// The status.
        status: u16,
        /// Its `Retry-After`, as a delay from now.
        retry_after: Option<Duration>,
    },
    /// There was no response.
    None(Class),
    /// The server refused the request before it processed it: HTTP/2 GOAWAY or REFUSED_STREAM (RFC 9113, 8.7).
    Unprocessed,
}

impl Response {
    /// The status, if there was a response.
    #[must_use]
    pub fn status(self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status),
            Self::None(_) | Self::Unprocessed => None,
        }
    }

    /// The class of the result.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Status { status, .. } => Class::of_status(status),
            Self::None(class) => class,
            Self::Unprocessed => Class::Other,
        }
    }
}

/// What to do with the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is delivered.
    Delivered,
    /// Retry, not before `retry_after`.
    Retry {
        /// The minimum delay.
        retry_after: Option<Duration>,
    },
    /// Send the same attempt again, at a pace that the endpoint accepts.
    Throttled {
        /// The minimum delay, for the whole subscription.
        retry_after: Option<Duration>,
    },
    /// The same request can never succeed.
    Permanent,
    /// The endpoint is permanently gone: disable the subscription.
    Gone,
    /// The egress rules deny an address that the endpoint's name had at this attempt: retry.
    EgressDenied,
}

/// Applies the table above.
#[must_use]
pub fn judge(response: Response, rules: &StatusRules) -> Verdict {
    const RETRY: Verdict = Verdict::Retry { retry_after: None };
    let (status, retry_after) = match response {
        Response::None(Class::Egress) => return Verdict::EgressDenied,
        Response::None(_) => return RETRY,
        Response::Unprocessed => return Verdict::Throttled { retry_after: None },
        Response::Status {
            status,
            retry_after,
        } => (status, retry_after),
    };
    match rules.lookup(status) {
        Some(StatusRule::Delivered) => return Verdict::Delivered,
        Some(StatusRule::DeadLetter) => return Verdict::Permanent,
        Some(StatusRule::Retry) => return Verdict::Retry { retry_after },
        None => {}
    }
    match status {
        200..=299 => Verdict::Delivered,
        410 => Verdict::Gone,
        429 => Verdict::Throttled { retry_after },
        503 if retry_after.is_some() => Verdict::Throttled { retry_after },
        _ if PERMANENT.contains(&status) => Verdict::Permanent,
        _ => Verdict::Retry { retry_after },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::subscription::parse;

    fn verdict(status: u16) -> Verdict {
        judge(
            Response::Status {
                status,
                retry_after: None,
            },
            &StatusRules::default(),
        )
    }

    #[test]
    fn every_status_has_the_verdict_of_the_table() {
        for status in 0..=999 {
            let expected = match status {
                200..=299 => Verdict::Delivered,
                410 => Verdict::Gone,
                400 | 405 | 406 | 411 | 413 | 414 | 415 | 422 | 431 | 451 | 501 | 505 => {
                    Verdict::Permanent
                }
                429 => Verdict::Throttled { retry_after: None },
                _ => Verdict::Retry { retry_after: None },
            };
            assert_eq!(verdict(status), expected, "status {status}");
        }
    }

    #[test]
    fn an_endpoint_that_names_a_time_is_left_alone_until_then_unless_the_subscription_says_otherwise()
     {
        let retry_after = Some(Duration::from_secs(7));
        let throttled = Verdict::Throttled { retry_after };
        let retry = Verdict::Retry { retry_after };
        for (status, expected) in [(429, throttled), (503, throttled), (500, retry)] {
            let response = Response::Status {
                status,
                retry_after,
            };
            assert_eq!(judge(response, &StatusRules::default()), expected);
            let own = format!(
                r#"{{"id":"s","subscriber":"s","url":"https://a.example/","events":["**"],"on_status":{{"{status}":"retry"}}}}"#
            );
            let own = parse(Some(b"s"), own.as_bytes()).unwrap().overrides;
            assert_eq!(judge(response, &own.on_status), retry, "status {status}");
        }
    }

    #[test]
    fn no_answer_is_tried_again_and_a_denied_address_is_told_apart() {
        let failed = |class| judge(Response::None(class), &StatusRules::default());
        assert_eq!(failed(Class::Egress), Verdict::EgressDenied);
        assert_eq!(
            judge(Response::Unprocessed, &StatusRules::default()),
            Verdict::Throttled { retry_after: None }
        );
        for class in [Class::Timeout, Class::Connect, Class::Tls, Class::Other] {
            assert!(matches!(failed(class), Verdict::Retry { .. }));
        }
    }
}
