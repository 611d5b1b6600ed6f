//! Whether an endpoint wants webhooks from this sender: what it is asked, what its response means, and the record of it.
//!
//! | | request | consent |
//! |---|---|---|
//! | handshake | `OPTIONS` with `WebHook-Request-Origin` (CloudEvents, HTTP 1.1 Web Hooks for Event Delivery, section 4) | 2xx whose `WebHook-Allowed-Origin` names this origin, or is `*` |
//! | challenge | a signed POST with a random token, to an endpoint that knows no handshake | 2xx whose body is the token, or a JSON object with it as `challenge` |
//!
//! A challenge is not the token anywhere in the response: a server that echoes whatever it gets has not consented.
//!
//! The record is about the URL that was asked, not about the document around it: another filter needs no new consent,
//! another URL does. Pure.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::endpoint_url::EndpointUrl;
use super::model::{RateLimit, Subscription};
use super::record::{MAX_RECORD_BYTES, SubscriptionError};
use super::version::{Version, digest};
use crate::model::units::EpochMs;

/// The prefix of the key of the record.
const KEY: &str = "verified/";
/// The delay after the first refusal; it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// The longest delay between two tries.
const LAST_RETRY: Duration = Duration::from_secs(3600);

/// How an endpoint consented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// The handshake of CloudEvents.
    Handshake,
    /// A token that came back.
    Challenge,
}

/// What became of the last try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Tested {
    /// The endpoint consents.
    Verified {
        /// How.
        by: Means,
        /// The requests a minute that it allows, if it limits them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        per_minute: Option<u32>,
    },
    /// It does not, or could not be asked.
    Refused {
        /// Why (**Secret**).
        reason: Box<str>,
        /// The tries in a row that have failed.
        failures: u32,
    },
}

/// The value of the record of the last try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// The subscription's id.
    pub subscription: Box<str>,
    /// The version of the subscription at that time. A refusal is soon tried again when there is another one.
    pub version: Version,
    /// The hash of the URL that was asked: a consent holds for it alone.
    pub endpoint: Box<str>,
    /// When.
    pub at: EpochMs,
    /// What became of it.
    #[serde(flatten)]
    pub tested: Tested,
}

/// A subscription that waits for the consent of its endpoint.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The subscription.
    pub subscription: Arc<Subscription>,
    /// The last try.
    pub last: Option<Verification>,
}

/// The hash of a URL, as a record names it.
#[must_use]
pub fn endpoint(url: &EndpointUrl) -> Box<str> {
    digest(url.as_str().as_bytes(), None).into()
}

impl Verification {
    /// The record of a try with `subscription` as it was then.
    #[must_use]
    pub fn new(subscription: &Subscription, tested: Tested, at: EpochMs) -> Self {
        Self {
            subscription: subscription.id.as_str().into(),
            version: subscription.source.version().clone(),
            endpoint: endpoint(&subscription.url),
            at,
            tested,
        }
    }

    /// The key of the record about a subscription.
    #[must_use]
    pub fn key(id: &str) -> String {
        format!("{KEY}{id}")
    }

    /// The id in the key of such a record; `None` for other keys.
    #[must_use]
    pub fn id_of_key(key: &str) -> Option<&str> {
        key.strip_prefix(KEY)
    }

    /// The value of the record.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of texts and numbers always serializes.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the record of the subscription `id`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(id: &str, value: &[u8]) -> Result<Self, SubscriptionError> {
        let invalid = |problem| SubscriptionError::Invalid(vec![problem]);
        if value.len() > MAX_RECORD_BYTES {
            return Err(SubscriptionError::TooLarge(value.len()));
        }
        let read: Self = serde_json::from_slice(value)
            .map_err(|error| invalid(format!("verification: {error}")))?;
        if *read.subscription != *id {
            return Err(invalid(format!(
                "subscription: {:?} differs from the record's key, of {id:?}",
                read.subscription
            )));
        }
        Ok(read)
    }

    /// The consent for `url`, if it gives one.
    #[must_use]
    pub fn consent(&self, url: &EndpointUrl) -> Option<Consent> {
        match self.tested {
            Tested::Verified { per_minute, .. } if self.endpoint == endpoint(url) => {
                Some(Consent { per_minute })
            }
            _ => None,
        }
    }

    /// The tries in a row that have failed with `subscription` as it is, and when the next one is due.
    #[must_use]
    pub fn next_try(&self, subscription: &Subscription) -> Option<(u32, EpochMs)> {
        match self.tested {
            Tested::Refused { failures, .. }
                if self.version == *subscription.source.version()
                    && self.endpoint == endpoint(&subscription.url) =>
            {
                Some((failures, self.at + retry_delay(failures)))
            }
            _ => None,
        }
    }
}

/// The delay after so many failures in a row.
#[must_use]
pub fn retry_delay(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(20));
    LAST_RETRY.min(FIRST_RETRY.saturating_mul(doubled))
}

/// What an endpoint consented to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The requests a minute, if it limits them.
    pub per_minute: Option<u32>,
}

impl Consent {
    /// The rate limit of a subscription whose own one is `own`: the lower of both.
    #[must_use]
    pub fn rate_limit(self, own: Option<RateLimit>) -> Option<RateLimit> {
        let Some(per_minute) = self.per_minute else {
            return own;
        };
        let granted = RateLimit {
            per_second: f64::from(per_minute) / 60.0,
            // Evenly spread: no minute has more requests than it allows.
            burst: 1,
        };
        match own {
            Some(own) if own.per_second < granted.per_second => Some(own),
            _ => Some(granted),
        }
    }
}

/// The requests a minute to ask for, where a subscription has a limit of its own.
#[must_use]
pub fn wanted_rate(own: Option<&RateLimit>) -> Option<u32> {
    let per_minute = (own?.per_second * 60.0).floor().clamp(1.0, 6_000_000.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 6,000,000"
    )]
    Some(per_minute as u32)
}

/// What a response to the handshake means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Consent.
    Allowed(Consent),
    /// The endpoint knows the handshake, and does not consent.
    Denied(String),
    /// It does not know the handshake: challenge it.
    Unknown(String),
}

/// Judges a response to the handshake of `origin`: `origins` are the values of `WebHook-Allowed-Origin`, `rate` is that
/// of `WebHook-Allowed-Rate`.
#[must_use]
pub fn judge_handshake<'a>(
    origin: &str,
    status: u16,
    origins: impl IntoIterator<Item = &'a [u8]>,
    rate: Option<&[u8]>,
) -> Handshake {
    let mut origins = origins.into_iter().peekable();
    if !(200..300).contains(&status) || origins.peek().is_none() {
        return Handshake::Unknown(format!(
            "OPTIONS: status {status}, no WebHook-Allowed-Origin"
        ));
    }
    let mut allowed = origins.flat_map(|value| value.split(|&byte| byte == b','));
    let is_this = |one: &[u8]| {
        let one = one.trim_ascii();
        one == b"*" || one.eq_ignore_ascii_case(origin.as_bytes())
    };
    // What the endpoint sent is not shown: it may be one of our own credentials (**Secret**).
    if !allowed.any(is_this) {
        return Handshake::Denied(format!(
            "OPTIONS: status {status}, WebHook-Allowed-Origin is neither {origin:?} nor *"
        ));
    }
    let allowed = |per_minute| Handshake::Allowed(Consent { per_minute });
    match rate.map(<[u8]>::trim_ascii) {
        None | Some(b"*") => allowed(None),
        Some(rate) => match std::str::from_utf8(rate).map(str::parse::<u32>) {
            Ok(Ok(per_minute @ 1..)) => allowed(Some(per_minute)),
            _ => Handshake::Denied(format!(
                "OPTIONS: status {status}, WebHook-Allowed-Rate is neither a positive number of requests a minute nor *"
            )),
        },
    }
}

/// The body of a challenge.
#[must_use]
pub fn challenge(token: &str, subscription: &str, at: EpochMs) -> Vec<u8> {
    let body = json!({
        "type": "hookstream.endpoint.verification",
        "timestamp": at.rfc3339(),
        "data": {"subscription": subscription, "challenge": token},
    });
    body.to_string().into_bytes()
}

/// Judges a response to a challenge with `token`.
///
/// # Errors
/// Why it is no consent.
pub fn judge_challenge(token: &str, status: u16, body: &[u8]) -> Result<Consent, String> {
    let text = std::str::from_utf8(body).unwrap_or_default().trim();
    let in_json = || match serde_json::from_str(text) {
        Ok(Value::String(text)) => text == token,
        Ok(Value::Object(object)) => object.get("challenge").and_then(Value::as_str) == Some(token),
        _ => false,
    };
    if !(200..300).contains(&status) {
        return Err(format!("challenge: status {status}"));
    }
    if text == token || in_json() {
        return Ok(Consent { per_minute: None });
    }
    Err(format!(
        "challenge: status {status}, and the response is neither its token nor a JSON object with it as \"challenge\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::subscription::parse;

    const ORIGIN: &str = "events.shop.example";

    fn handshake(status: u16, origin: &str, rate: Option<&str>) -> Handshake {
        let origins = (!origin.is_empty()).then_some(origin.as_bytes());
        judge_handshake(ORIGIN, status, origins, rate.map(str::as_bytes))
    }

    #[test]
    fn a_handshake_is_allowed_by_name_or_asterisk_with_a_positive_rate() {
        let allowed = |per_minute| Handshake::Allowed(Consent { per_minute });
        for (status, origin, rate, expected) in [
            (200, ORIGIN, None, allowed(None)),
            (204, "*", Some("*"), allowed(None)),
            (200, "EVENTS.shop.example", Some("120"), allowed(Some(120))),
            (
                200,
                "other.example, events.shop.example",
                Some(" 1 "),
                allowed(Some(1)),
            ),
        ] {
            assert_eq!(
                handshake(status, origin, rate),
                expected,
                "{origin} {rate:?}"
            );
        }
        let many = [&b"other.example"[..], b"events.shop.example"];
        assert_eq!(judge_handshake(ORIGIN, 200, many, None), allowed(None));
        for (origin, rate) in [
            ("other.example", None),
            ("shop.example", None),
            ("*", Some("0")),
            ("*", Some("-1")),
            ("*", Some("1.5")),
            ("*", Some("")),
            ("*", Some("99999999999")),
        ] {
            let found = handshake(200, origin, rate);
            assert!(
                matches!(found, Handshake::Denied(_)),
                "{origin} {rate:?}: {found:?}"
            );
        }
        for (status, origin) in [(200, ""), (404, ""), (405, "*"), (302, ORIGIN), (500, "*")] {
            let found = handshake(status, origin, None);
            assert!(
                matches!(found, Handshake::Unknown(_)),
                "{status}: {found:?}"
            );
        }
    }

    #[test]
    fn no_reason_shows_what_an_endpoint_sent() {
        for (origin, rate) in [("hush.example", None), ("*", Some("hush"))] {
            let Handshake::Denied(reason) = handshake(200, origin, rate) else {
                panic!("no consent was given");
            };
            assert!(!reason.contains("hush"), "{reason}");
        }
        let refused = judge_challenge("T-1", 200, b"hush").unwrap_err();
        assert!(
            !refused.contains("hush") && !refused.contains("T-1"),
            "{refused}"
        );
    }

    #[test]
    fn a_challenge_is_met_by_its_token_and_not_by_an_echo() {
        let body = String::from_utf8(challenge("T-1", "acme", EpochMs(0))).unwrap();
        for (status, body, is_met) in [
            (200, "T-1", true),
            (200, " T-1\r\n", true),
            (202, r#""T-1""#, true),
            (200, r#"{"challenge":"T-1","ok":true}"#, true),
            (200, r#"{"challenge":"T-2"}"#, false),
            (200, r#"{"challenge":["T-1"]}"#, false),
            (200, "the token is T-1", false),
            (200, &body, false),
            (200, "", false),
            (200, "\u{fffd}", false),
            (302, "T-1", false),
            (404, "T-1", false),
        ] {
            let judged = judge_challenge("T-1", status, body.as_bytes());
            assert_eq!(judged.is_ok(), is_met, "{status} {body}: {judged:?}");
        }
        assert!(judge_challenge("T-1", 200, b"\xff").is_err());
    }

    #[test]
    fn the_lower_of_both_rates_limits() {
        let own = |per_second| {
            Some(RateLimit {
                per_second,
                burst: 50,
            })
        };
        let with = |per_minute, own| Consent { per_minute }.rate_limit(own);
        assert_eq!(with(None, None), None);
        assert_eq!(with(None, own(5.0)), own(5.0));
        let granted = Some(RateLimit {
            per_second: 2.0,
            burst: 1,
        });
        assert_eq!(with(Some(120), None), granted);
        assert_eq!(with(Some(120), own(50.0)), granted);
        assert_eq!(with(Some(120), own(1.0)), own(1.0));
        assert_eq!(wanted_rate(None), None);
        for (per_second, per_minute) in
            [(0.001, 1), (0.5, 30), (50.0, 3000), (100_000.0, 6_000_000)]
        {
            assert_eq!(wanted_rate(own(per_second).as_ref()), Some(per_minute));
        }
    }

    #[test]
    fn refusals_are_tried_again_more_and_more_rarely() {
        let seconds: Vec<u64> = (0..12)
            .map(|failures| retry_delay(failures).as_secs())
            .collect();
        assert_eq!(
            seconds,
            [5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600]
        );
        assert_eq!(retry_delay(u32::MAX), LAST_RETRY);
    }

    #[test]
    fn a_record_is_about_one_url_and_a_refusal_about_one_version() {
        let known = |url: &str| {
            let json = format!(r#"{{"id":"s","subscriber":"s","url":"{url}","events":["**"]}}"#);
            parse(None, json.as_bytes()).unwrap()
        };
        let (one, other) = (known("https://a.example/1"), known("https://a.example/2"));
        let consent = Tested::Verified {
            by: Means::Handshake,
            per_minute: Some(6),
        };
        let record = Verification::new(&one, consent, EpochMs(7));
        let read = Verification::read("s", &record.to_json()).unwrap();
        assert_eq!(read, record);
        assert_eq!(
            read.consent(&one.url),
            Some(Consent {
                per_minute: Some(6)
            })
        );
        assert_eq!(read.consent(&other.url), None);
        assert!(Verification::read("t", &record.to_json()).is_err());
        assert!(Verification::read("s", b"{}").is_err());

        let refusal = Tested::Refused {
            reason: "status 404".into(),
            failures: 2,
        };
        let refused = Verification::new(&one, refusal, EpochMs(1_000));
        let refused = Verification::read("s", &refused.to_json()).unwrap();
        assert_eq!(refused.consent(&one.url), None);
        assert_eq!(refused.next_try(&one), Some((2, EpochMs(11_000))));
        assert_eq!(refused.next_try(&other), None);
        let mut changed = one.clone();
        changed.source.applied = Version::of_applied(b"another", None);
        assert_eq!(refused.next_try(&changed), None, "it is tried at once");
        let key = Verification::key("s");
        assert_eq!(
            (key.as_str(), Verification::id_of_key(&key)),
            ("verified/s", Some("s"))
        );
        assert_eq!(Verification::id_of_key("state/s"), None);
    }
}
