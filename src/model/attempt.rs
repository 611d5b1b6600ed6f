//! The record of one attempt, one HTTP request, as the log of attempts keeps it.
//!
//! Key: the subscriber. Value: JSON (`schemas/attempt.schema.json`). There are no headers, which the client allocates one
//! by one for each record: a reader looks for an id's text before it parses a value. It is for people who ask what was
//! sent and what was answered; no part of hookstream decides by it. An endpoint may echo what it was sent, so what is
//! known to be a credential is masked in its answer (**Secret**). Pure.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::command::Command;
use crate::model::event::rfc3339;
use crate::model::units::EpochMs;

/// Of an answer's body, bytes; the rest is cut at a character's border.
pub const MAX_EXCERPT_BYTES: usize = 1024;
/// What is shorter is no credential, and masking it would make answers unreadable.
const LEAST_SECRET_BYTES: usize = 6;
/// What stands for a credential.
const MASK: &[u8] = b"***";

/// One attempt, as its record's value tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt<'a> {
    /// The same in all attempts of a command.
    pub webhook_id: Cow<'a, str>,
    /// The subscription's id.
    pub subscription: Cow<'a, str>,
    /// Who owns it.
    pub subscriber: Cow<'a, str>,
    /// The event's id.
    pub event_id: Cow<'a, str>,
    /// The event's type.
    pub event_type: Cow<'a, str>,
    /// Counted from 1, as the receiver counts.
    pub attempt: u32,
    /// When it began, RFC 3339.
    pub time: Cow<'a, str>,
    /// Until the answer's headers, or its failure; milliseconds.
    pub duration_ms: f64,
    /// Where it went, as far as that is told: see [`shown_url`].
    pub url: Cow<'a, str>,
    /// Of the answer; nothing when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Of the answer or the failure, as in the metrics.
    pub class: Cow<'a, str>,
    /// `delivered`, `retry` or `dead_lettered`, as in the metrics.
    pub outcome: Cow<'a, str>,
    /// One sentence when there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'a, str>>,
    /// W3C trace context of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Cow<'a, str>>,
    /// The beginning of the answer's body; bytes that are not UTF-8 are replaced, credentials masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Cow<'a, str>>,
    /// Whether the answer's body went on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub body_truncated: bool,
}

/// What an attempt came to, beside its command.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Counted from 1.
    pub number: u32,
    /// When it began.
    pub began: EpochMs,
    /// Until the answer's headers, or its failure.
    pub took: Duration,
    /// See [`shown_url`].
    pub url: &'a str,
    /// Of the answer.
    pub status: Option<u16>,
    /// A label of the metrics.
    pub class: &'static str,
    /// A label of the metrics.
    pub outcome: &'static str,
    /// When there was no answer.
    pub error: Option<&'a str>,
    /// Of the answer's body.
    pub excerpt: Option<&'a Excerpt>,
}

impl<'a> Attempt<'a> {
    /// The attempt of `command` that `facts` tell of.
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

    /// Reads a record's value.
    ///
    /// # Errors
    /// What is wrong with the JSON.
    pub fn decode(value: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

/// A URL without what may be a credential: only scheme, host and port are told, and whether it has a path. User info and
/// query may hold credentials, and a path may be one, as with the incoming webhooks of chat services.
#[must_use]
pub fn shown_url(url: &url::Url) -> String {
    let path = if url.path() == "/" { "" } else { "REDACTED" };
    let origin = url.origin().ascii_serialization();
    format!("{origin}/{path}")
}

/// The beginning of an answer's body, fit for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// UTF-8, at most [`MAX_EXCERPT_BYTES`].
    pub text: Box<str>,
    /// Whether the body went on.
    pub truncated: bool,
}

impl Excerpt {
    /// Of what was read of a body, `whole` or not.
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

/// Knows the credentials that go out with a subscription's requests, and hides them in what comes back.
#[derive(Clone, Default)]
pub struct Mask(Vec<Box<[u8]>>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({})", self.0.len())
    }
}

impl Mask {
    /// Hides these, and in the forms in which JSON may write them. Of a text with blanks, as `Bearer …`, each word
    /// by itself too.
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
        // The longest first: a part of another must not break it up.
        all.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Self(all)
    }

    /// The beginning of `body`, as far as an excerpt needs it, and how much of the body that is. Where a body that is not
    /// `whole` ends with the beginning of a secret, that is hidden too.
    fn apply(&self, body: &[u8], whole: bool) -> (Vec<u8>, usize) {
        // Past the cut by a character, so that the one at the cut is whole.
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
