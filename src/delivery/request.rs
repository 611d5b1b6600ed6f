//! An endpoint and its requests: URL, header template and keys are prepared once, so that each request is cheap.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    USER_AGENT,
};
use percent_encoding::percent_decode_str;
use url::Url;

use super::partition::env::Endpoint;
use super::shares::Shared;
use super::signing::Signer;
use super::tokens::Token;
use crate::config::Settings;
use crate::edge::http::{Address, Answer, Drained, FailureClass, Reply, Request, Tls};
use crate::edge::port::Http;
use crate::model::attempt::{Excerpt, Mask, shown_url};
use crate::model::command::{Command, ContentType};
use crate::model::outcome::{Class, Response};
use crate::model::subscription::{SecretSource, Subscription, Texts};
use crate::model::units::EpochMs;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const WEBHOOK_REQUEST_ORIGIN: HeaderName = HeaderName::from_static("webhook-request-origin");
const WEBHOOK_REQUEST_RATE: HeaderName = HeaderName::from_static("webhook-request-rate");
const ATTEMPT: HeaderName = HeaderName::from_static("hookstream-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const AGENT: &str = concat!("hookstream/", env!("CARGO_PKG_VERSION"));

/// What an attempt needs besides its command.
pub(super) struct Target {
    pub(super) subscription: Arc<Subscription>,
    pub(super) timeout: Duration,
    pub(super) schedule: Box<[Duration]>,
    /// What may be shown of it.
    pub(super) shown: Shown,
    /// What its requests count to.
    pub(super) shared: Shared,
    /// Whether attempts are logged.
    pub(super) is_logged: bool,
    /// The token of its requests, if they have one.
    token: Option<Arc<Token>>,
    address: Arc<Address>,
    headers: HeaderMap,
    signer: Signer,
    /// What `signer` and the headers were made from.
    secrets: Box<[Arc<str>]>,
    /// The timestamp of the last request, in seconds and as a header: many requests share one.
    second: RefCell<(i64, HeaderValue)>,
}

/// An endpoint as the attempt log and the status may show it.
pub(super) struct Shown {
    pub(super) url: Arc<str>,
    /// Masks credentials that the endpoint echoes in a response.
    pub(super) mask: Mask,
}

impl Shown {
    fn new(
        subscription: &Subscription,
        headers: &[(HeaderName, HeaderValue)],
        secrets: &[Arc<str>],
    ) -> Self {
        let credentials = headers
            .iter()
            .filter(|(_, value)| value.is_sensitive())
            .map(|(_, value)| String::from_utf8_lossy(value.as_bytes()));
        let secrets = secrets.iter().map(|secret| Cow::Borrowed(&**secret));
        let url = subscription.url.to_url();
        let in_url = parts(&url);
        Self {
            url: shown_url(&url).into(),
            mask: Mask::new(credentials.chain(secrets).chain(in_url)),
        }
    }
}

/// All parts of a URL after its host that may be a credential, both as written and decoded.
fn parts(url: &Url) -> impl Iterator<Item = Cow<'_, str>> {
    let whole = [Some(url.path()), url.query()].into_iter().flatten();
    let segments = url.path().split('/');
    let pairs = url.query().into_iter().flat_map(|query| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(_, value)| value)
    });
    let written = segments.chain(pairs);
    let meant = url.query_pairs().map(|(_, value)| value);
    let decoded = written.clone();
    let decoded = decoded.map(|part| percent_decode_str(part).decode_utf8_lossy());
    let written = whole.chain(written).map(Cow::Borrowed);
    written.chain(meant).chain(decoded)
}

impl Target {
    /// Whether one of its secrets may change without a change of the subscription.
    pub(super) fn reads_files(&self) -> bool {
        self.subscription
            .sources()
            .any(|source| matches!(source, SecretSource::File(_) | SecretSource::Encrypted(_)))
    }

    /// Whether it was made from these.
    pub(super) fn is_of(&self, subscription: &Arc<Subscription>, secrets: &[Arc<str>]) -> bool {
        Arc::ptr_eq(&self.subscription, subscription) && *self.secrets == *secrets
    }

    /// `secrets` are the texts of its [`sources`](Subscription::sources), of one that has stopped signing at `now` any.
    pub(super) fn new(
        subscription: &Arc<Subscription>,
        settings: &Settings,
        secrets: Vec<Arc<str>>,
        token: Option<Arc<Token>>,
        tls: Option<Arc<Tls>>,
        shared: Shared,
        now: EpochMs,
    ) -> Result<Self, String> {
        let texts = subscription.sort(&secrets);
        let signing = texts.signing.iter().zip(&*subscription.secrets);
        let signing = signing.map(|(text, secret)| (&**text, secret.until));
        let signer = Signer::with_ends(signing, now).map_err(|error| error.to_string())?;
        let own = own_headers(subscription, texts)?;
        let uri = subscription
            .url
            .as_str()
            .parse()
            .map_err(|error| format!("its url cannot be used: {error}"))?;
        let address = Address::new(uri)
            .map_err(|error| format!("its url cannot be used: {error}"))?
            .for_subscriber(&subscription.subscriber);
        let address = match tls {
            Some(tls) => address.with_tls(tls),
            None => address,
        };
        let headers = template(&own, &address, !signer.is_empty(), token.is_some());
        Ok(Self {
            subscription: Arc::clone(subscription),
            timeout: subscription.overrides.timeout.unwrap_or(settings.timeout),
            schedule: subscription
                .overrides
                .retry_schedule
                .as_deref()
                .unwrap_or(&settings.retry_schedule)
                .into(),
            shown: Shown::new(subscription, &own, &secrets),
            shared,
            is_logged: settings.attempt_log,
            token,
            address: Arc::new(address),
            headers,
            signer,
            secrets: secrets.into(),
            second: RefCell::new((0, HeaderValue::from(0))),
        })
    }

    /// Builds the request of one attempt, signed at `now`. Omits header values of the event that HTTP cannot carry.
    pub(super) fn request(
        &self,
        command: &Command,
        traceparent: Option<&str>,
        now: EpochMs,
    ) -> Request {
        let mut request = self.signed(&command.webhook_id, command.body.clone(), now);
        let headers = &mut request.headers;
        if command.content_type != ContentType::Json {
            let other = HeaderValue::from_static(command.content_type.as_str());
            headers.insert(CONTENT_TYPE, other);
        }
        if command.attempt > 0 {
            let number = HeaderValue::from(command.attempt.saturating_add(1));
            headers.insert(ATTEMPT, number);
        }
        if let Some(trace) = traceparent
            && let Ok(trace) = HeaderValue::from_str(trace)
        {
            headers.insert(TRACEPARENT, trace);
        }
        request
    }

    /// Builds the first request with this webhook id, signed at `now`.
    pub(super) fn signed(&self, id: &str, body: Bytes, now: EpochMs) -> Request {
        let mut headers = self.headers.clone();
        match HeaderValue::from_str(id) {
            Ok(id) => headers.insert(WEBHOOK_ID, id),
            Err(_) => headers.remove(WEBHOOK_ID),
        };
        let second = self.second(now.seconds());
        if !self.signer.is_empty() {
            let digits = second.to_str().unwrap_or_default();
            let signature = self.signer.sign_at(id, digits, &body, now);
            if let Ok(signature) = HeaderValue::try_from(signature) {
                headers.insert(WEBHOOK_SIGNATURE, signature);
            }
        }
        headers.insert(WEBHOOK_TIMESTAMP, second);
        if let Some(authorization) = self.authorization() {
            headers.insert(AUTHORIZATION, HeaderValue::clone(&authorization));
        }
        headers.insert(ATTEMPT, HeaderValue::from_static("1"));
        Request {
            to: Arc::clone(&self.address),
            headers,
            body,
        }
    }

    /// Builds the request that asks for consent, for OPTIONS: with what authenticates it, and nothing of a webhook.
    pub(super) fn handshake(&self, origin: &str, per_minute: Option<u32>) -> Request {
        let mut request = self.signed("", Bytes::new(), EpochMs(0));
        let headers = &mut request.headers;
        let of_webhooks = [
            CONTENT_TYPE,
            WEBHOOK_ID,
            WEBHOOK_TIMESTAMP,
            WEBHOOK_SIGNATURE,
            ATTEMPT,
        ];
        of_webhooks
            .iter()
            .for_each(|name| drop(headers.remove(name)));
        if let Ok(origin) = HeaderValue::from_str(origin) {
            headers.insert(WEBHOOK_REQUEST_ORIGIN, origin);
        }
        if let Some(per_minute) = per_minute {
            headers.insert(WEBHOOK_REQUEST_RATE, HeaderValue::from(per_minute));
        }
        request
    }

    /// The token of its requests, if they have one.
    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_deref()
    }

    /// The value of `authorization` with the latest token.
    pub(super) fn authorization(&self) -> Option<Arc<HeaderValue>> {
        self.token()?.header()
    }

    fn second(&self, now: i64) -> HeaderValue {
        let mut last = self.second.borrow_mut();
        if last.0 != now {
            *last = (now, HeaderValue::from(now));
        }
        last.1.clone()
    }
}

impl Endpoint for Rc<Target> {
    fn subscription(&self) -> &Arc<Subscription> {
        &self.subscription
    }

    fn schedule(&self) -> &[Duration] {
        &self.schedule
    }

    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(self, other)
    }
}

/// The subscription's own headers; `texts` are those of its references.
fn own_headers(
    subscription: &Subscription,
    texts: Texts<'_, Arc<str>>,
) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut secrets = texts.headers.iter();
    let headers = subscription.overrides.headers.iter();
    let mut all: Vec<_> = headers
        .map(|(name, source)| {
            let secret = source.reference().and_then(|_| secrets.next());
            let value = source.value(secret.map(|secret| &**secret));
            let value = value.map_err(|error| format!("header {name}: {error}"))?;
            Ok((name.clone(), value))
        })
        .collect::<Result<_, String>>()?;
    if let Some(auth) = &subscription.overrides.auth {
        let secret = texts.auth.map_or("", |secret| &**secret);
        let value = auth.value(secret);
        let value = value.map_err(|error| format!("auth: {error}"))?;
        all.extend(value.map(|value| (auth.header_name().clone(), value)));
    }
    Ok(all)
}

/// All headers of a request, with empty values for those that each request sets: a request's header map is a copy that
/// never grows.
fn template(
    own: &[(HeaderName, HeaderValue)],
    address: &Address,
    signed: bool,
    has_token: bool,
) -> HeaderMap {
    const EMPTY: HeaderValue = HeaderValue::from_static("");
    let mut headers = HeaderMap::with_capacity(own.len() + 10);
    for (name, value) in own {
        headers.append(name.clone(), value.clone());
    }
    headers.insert(HOST, address.host().clone());
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let json = HeaderValue::from_static(ContentType::Json.as_str());
    headers.insert(CONTENT_TYPE, json);
    headers.insert(CONTENT_LENGTH, EMPTY);
    headers.insert(WEBHOOK_ID, EMPTY);
    headers.insert(WEBHOOK_TIMESTAMP, EMPTY);
    headers.insert(ATTEMPT, EMPTY);
    if signed {
        headers.insert(WEBHOOK_SIGNATURE, EMPTY);
    }
    if has_token {
        headers.insert(AUTHORIZATION, EMPTY);
    }
    headers
}

/// The response, the error if there was none, and the body still to be read.
pub(super) fn response_of<R>(reply: Reply<R>) -> (Response, Option<Box<str>>, Option<R>) {
    match reply {
        Reply::Answered(Answer {
            status,
            retry_after,
            rest,
            ..
        }) => {
            let response = Response::Status {
                status,
                retry_after,
            };
            (response, None, rest)
        }
        Reply::Failed(failure) if failure.is_unprocessed => {
            (Response::Unprocessed, Some(failure.error.into()), None)
        }
        Reply::Failed(failure) => {
            let class = match failure.class {
                FailureClass::Timeout => Class::Timeout,
                FailureClass::Connect => Class::Connect,
                FailureClass::Tls => Class::Tls,
                FailureClass::Egress => Class::Egress,
                FailureClass::Other => Class::Other,
            };
            (Response::None(class), Some(failure.error.into()), None)
        }
    }
}

/// Reads a response body to its end, so that its connection can be reused, and keeps its beginning for `wanted`.
pub(super) async fn read_rest<H: Http>(
    rest: H::Rest,
    deadline: tokio::time::Instant,
    wanted: Option<Rc<Target>>,
) -> Option<Excerpt> {
    let Some(target) = wanted else {
        H::drain(rest, deadline).await;
        return None;
    };
    let (body, drained) = H::read_snippet(rest, deadline).await;
    let whole = drained == Drained::Complete;
    let authorization = target.authorization();
    Some(match authorization {
        None => Excerpt::new(&body, whole, &target.shown.mask),
        Some(value) => {
            let token = String::from_utf8_lossy(value.as_bytes());
            Excerpt::new(&body, whole, &target.shown.mask.and(token))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attempt::Excerpt;

    #[test]
    fn of_an_url_that_an_endpoint_echoes_nothing_is_logged_that_may_be_a_credential() {
        let url = "https://a.example/in/path-s3cret%3D%3D/a+b=c&d?key=query%20s3cret";
        let url: Url = url.parse().unwrap();
        let mask = Mask::new(parts(&url));
        let shown = |body: &str| Excerpt::new(body.as_bytes(), true, &mask).text;
        for echo in [
            url.path(),
            "path-s3cret%3D%3D",
            "path-s3cret==",
            "a+b=c&d",
            "key=query%20s3cret",
            "query%20s3cret",
            "query s3cret",
        ] {
            assert_eq!(&*shown(&format!("you sent {echo}!")), "you sent ***!");
        }
        assert_eq!(&*shown("it came in"), "it came in");
        let url: Url = "https://a.example/?x=s3%7C+cret&y=1".parse().unwrap();
        let mask = Mask::new(parts(&url));
        for echo in ["s3%7C+cret", "s3|+cret", "s3| cret"] {
            let shown = Excerpt::new(echo.as_bytes(), true, &mask).text;
            assert_eq!(&*shown, "***");
        }
    }
}
