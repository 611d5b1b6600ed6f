//! The record of one attempt, one HTTP request, in the attempt log.
//!
//! Key: the subscriber. Value: JSON (`schemas/attempt.schema.json`). There are no headers, because the client allocates
//! each header of each record separately; a reader searches the value for the text of an id before it parses it. The
//! log is for people who need to know what was sent and received; hookstream itself never reads it for a decision. An
//! endpoint may echo the request, so known credentials are masked in its response (**Secret**). Pure.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::command::Command;
use crate::model::event::rfc3339;
use crate::model::units::EpochMs;

/// The maximum length of a response body's excerpt, in bytes; the rest is cut at a character boundary.
pub const MAX_EXCERPT_BYTES: usize = 1024;
/// Shorter texts are not credentials, and masking them would make responses unreadable.
const LEAST_SECRET_BYTES: usize = 6;
/// Replaces a credential.
const MASK: &[u8] = b"***";

/// One attempt, as in its record's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt<'a> {
    /// The same in all attempts of a command.
    pub webhook_id: Cow<'a, str>,
    /// The subscription's id.
    pub subscription: Cow<'a, str>,
    /// The subscriber that owns the subscription.
    pub subscriber: Cow<'a, str>,
    /// The event's id.
    pub event_id: Cow<'a, str>,
    /// The event's type.
    pub event_type: Cow<'a, str>,
    /// The attempt number, from 1, as the receiver sees it.
    pub attempt: u32,
    /// When it began, RFC 3339.
    pub time: Cow<'a, str>,
    /// The time until the response headers or the failure, in milliseconds.
    pub duration_ms: f64,
    /// The destination, redacted: see [`shown_url`].
    pub url: Cow<'a, str>,
    /// The response status; absent without a response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The class of the response or failure, as in the metrics.
    pub class: Cow<'a, str>,
    /// `delivered`, `retry`, `dead_lettered` or `throttled`, as in the metrics.
    pub outcome: Cow<'a, str>,
    /// One sentence if there was no response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'a, str>>,
    /// The W3C trace context of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Cow<'a, str>>,
    /// The beginning of the response body; invalid UTF-8 is replaced, credentials are masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Cow<'a, str>>,
    /// Whether the response body was longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub body_truncated: bool,
}

/// The result of an attempt, apart from its command.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The attempt number, from 1.
    pub number: u32,
    /// When it began.
    pub began: EpochMs,
    /// The time until the response headers or the failure.
    pub took: Duration,
    /// See [`shown_url`].
    pub url: &'a str,
    /// The response status.
    pub status: Option<u16>,
    /// A metric label.
    pub class: &'static str,
    /// A metric label.
    pub outcome: &'static str,
    /// Set if there was no response.
    pub error: Option<&'a str>,
    /// The beginning of the response body.
    pub excerpt: Option<&'a Excerpt>,
}

impl<'a> Attempt<'a> {
    /// The attempt of `command` with these `facts`.
    #[must_use]
    pub fn new(command: &'a Command, facts: Facts<'a>) -> Self {
        let micros = facts.took.as_micros();
        Self {
            webhook_id: Cow::Borrowed(&command.webhook_id),
            subscription: Cow::Borrowed(&command.subscription),
            subscriber: Cow::Borrowed(&command.subscriber),
            event_id: Cow::Borrowed(&command.event_id),
            event_type: Cow::Borrowed(&command.event_type),
            attempt: facts.number,
            time: rfc3339(facts.began).into(),
            duration_ms: micros as f64 / 1000.0,
            url: facts.url.into(),
            status: facts.status,
            class: facts.class.into(),
            outcome: facts.outcome.into(),
            error: facts.error.map(Cow::Borrowed),
            traceparent: command.traceparent.as_deref().map(Cow::Borrowed),
            body: facts.excerpt.map(|excerpt| Cow::Borrowed(&*excerpt.text)),
            body_truncated: facts.excerpt.is_some_and(|excerpt| excerpt.truncated),
        }
    }

    /// Parses a record's value.
    ///
    /// # Errors
    /// The problem in the JSON.
    pub fn decode(value: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

/// A URL without parts that may be credentials: only scheme, host and port, and whether it has a path. User info and
/// query may contain credentials, and a path may be one, as in the incoming webhooks of chat services.
#[must_use]
pub fn shown_url(url: &url::Url) -> String {
    let path = if url.path() == "/" { "" } else { "REDACTED" };
    let origin = url.origin().ascii_serialization();
    format!("{origin}/{path}")
}

/// The beginning of a response body, prepared for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// UTF-8, at most [`MAX_EXCERPT_BYTES`].
    pub text: Box<str>,
    /// Whether the body was longer.
    pub truncated: bool,
}

impl Excerpt {
    /// Creates an excerpt of what was read of a body; `whole` says whether that is all of it.
    #[must_use]
    pub fn new(body: &[u8], whole: bool, mask: &Mask) -> Self {
        let (masked, read) = mask.apply(body, whole);
        let text = String::from_utf8_lossy(&masked);
        let end = text.floor_char_boundary(MAX_EXCERPT_BYTES);
        Self {
            truncated: !whole || read < body.len() || end < text.len(),
            text: text[..end].into(),
        }
    }
}

/// The credentials in a subscription's requests, to be masked in responses.
#[derive(Clone, Default)]
pub struct Mask(Vec<Box<[u8]>>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({})", self.0.len())
    }
}

impl Mask {
    /// Masks these texts, also in the forms in which JSON may encode them. In a text with spaces, such as `Bearer …`,
    /// each word is masked separately too.
    #[must_use]
    pub fn new<'s>(secrets: impl IntoIterator<Item = Cow<'s, str>>) -> Self {
        let mut all: Vec<Box<[u8]>> = Vec::new();
        for secret in secrets {
            for part in std::iter::once(&*secret).chain(secret.split_whitespace()) {
                let quoted = serde_json::to_string(part).unwrap_or_default();
                let escaped = quoted.trim_matches('"');
                for form in [part, escaped, &escaped.replace('/', "\\/")] {
                    if form.len() >= LEAST_SECRET_BYTES {
                        all.push(form.as_bytes().into());
                    }
                }
            }
        }
        // Longest first, so that a part of a secret does not break up the whole.
        all.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Self(all)
    }

    /// The same and another text.
    #[must_use]
    pub fn and(&self, secret: Cow<'_, str>) -> Self {
        let mut all = Self::new([secret]);
        all.0.extend(self.0.iter().cloned());
        all.0
            .sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        all
    }

    /// The masked beginning of `body`, as much as an excerpt needs, and how much of the body that is. If a body that is
    /// not `whole` ends with the beginning of a secret, that is masked too.
    fn apply(&self, body: &[u8], whole: bool) -> (Vec<u8>, usize) {
        // One character past the cut, so that the character at the cut is complete.
        const ENOUGH: usize = MAX_EXCERPT_BYTES + 4;
        let mut masked = Vec::with_capacity(body.len().min(ENOUGH));
        let mut at = 0;
        while at < body.len() && masked.len() < ENOUGH {
            let rest = &body[at..];
            let is_cut = !whole && rest.len() >= LEAST_SECRET_BYTES;
            let mut secrets = self.0.iter();
            if let Some(secret) = secrets
                .find(|secret| rest.starts_with(secret) || is_cut && secret.starts_with(rest))
            {
                masked.extend_from_slice(MASK);
                at += secret.len().min(rest.len());
            } else {
                masked.push(body[at]);
                at += 1;
            }
        }
        (masked, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(secrets.iter().map(|&secret| Cow::Borrowed(secret)))
    }

    fn excerpt(body: &str, secrets: &[&str]) -> Excerpt {
        Excerpt::new(body.as_bytes(), true, &mask(secrets))
    }

    #[test]
    fn an_answer_that_echoes_a_credential_is_masked_in_every_form_that_json_has() {
        let secrets = ["Bearer abc/def\"ghi", "hunter2hunter2"];
        for (body, shown) in [
            ("you sent Bearer abc/def\"ghi!", "you sent ***!"),
            ("token abc/def\"ghi", "token ***"),
            (r#"{"t":"abc/def\"ghi"}"#, r#"{"t":"***"}"#),
            (r#"{"t":"abc\/def\"ghi"}"#, r#"{"t":"***"}"#),
            ("hunter2hunter2hunter2hunter2", "******"),
            ("nothing of it", "nothing of it"),
        ] {
            assert_eq!(&*excerpt(body, &secrets).text, shown, "{body}");
        }
        assert!(!format!("{:?}", mask(&secrets)).contains("hunter2"));
    }

    #[test]
    fn a_secret_that_reaches_over_the_cut_is_masked_before_the_cut() {
        let body = format!("{}{}", "x".repeat(MAX_EXCERPT_BYTES - 4), "topsecret");
        let cut = excerpt(&body, &["topsecret"]);
        assert!(
            !cut.text.contains("tops") && cut.text.ends_with("***"),
            "{}",
            cut.text
        );
    }

    #[test]
    fn what_is_left_of_a_secret_where_the_body_was_cut_is_masked() {
        let secrets = mask(&["topsecret-and-long"]);
        let cut = |body: &str| Excerpt::new(body.as_bytes(), false, &secrets).text;
        assert_eq!(&*cut("you sent topsecret-an"), "you sent ***");
        assert_eq!(&*cut("you sent topsec"), "you sent ***");
        assert_eq!(&*cut("topsecret-and-long topsecret"), "*** ***");
        assert_eq!(&*cut("you sent topse"), "you sent topse", "too short");
        assert_eq!(&*cut("topsecret-am I"), "topsecret-am I");
        let whole = Excerpt::new(b"it is topsecret", true, &secrets);
        assert_eq!(&*whole.text, "it is topsecret", "nothing was cut");
    }

    #[test]
    fn what_is_too_short_for_a_credential_is_left_alone() {
        assert_eq!(
            &*excerpt("one of a kind", &["a", "one", ""]).text,
            "one of a kind"
        );
    }

    #[test]
    fn a_long_body_is_cut_at_a_characters_border() {
        let cut = excerpt(&"ö".repeat(MAX_EXCERPT_BYTES), &[]);
        assert_eq!(cut.text.len(), MAX_EXCERPT_BYTES);
        assert!(cut.truncated);
        let odd = excerpt(&format!("x{}", "ö".repeat(MAX_EXCERPT_BYTES)), &[]);
        assert_eq!(odd.text.len(), MAX_EXCERPT_BYTES - 1);
        assert!(!excerpt("short", &[]).truncated);
        assert!(
            Excerpt::new(b"short", false, &Mask::default()).truncated,
            "what was not read to its end went on"
        );
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced() {
        let shown = Excerpt::new(b"a\xffb", true, &Mask::default());
        assert_eq!(&*shown.text, "a\u{fffd}b");
    }

    #[test]
    fn nothing_that_may_be_a_credential_is_shown_of_a_url() {
        for (from, shown) in [
            (
                "https://user:hunter2@a.example:8443/t0ken?key=hunter2#f",
                "https://a.example:8443/REDACTED",
            ),
            ("https://a.example", "https://a.example/"),
            ("http://[::1]:80/?key=hunter2", "http://[::1]/"),
        ] {
            assert_eq!(shown_url(&from.parse().unwrap()), shown);
        }
    }
}
