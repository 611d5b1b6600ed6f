//! One webhook that no event has caused, sent at once and shown whole: what an endpoint does with it, and what it gets.
//!
//! It goes through the rules, the secrets, the connection and the signature of any webhook, but through no topic: nothing
//! is retried, counted or written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::sync::Notify;

use super::metrics::DeliveryMetrics;
use super::refused::Refused;
use super::request::read_rest;
use super::secrets::Secrets;
use super::shares::Shares;
use super::terms::Directory;
use super::tokens::Tokens;
use super::verifying::loaded;
use super::workers::http_options;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::egress::EgressPolicy;
use crate::edge::http::{Reply, TlsMaker, with_causes};
use crate::edge::port::{Http as _, Port};
use crate::model::attempt::Excerpt;
use crate::model::command::ContentType;
use crate::model::subscription::Subscription;
use crate::runtime::metrics::Registry;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The webhook id.
    pub id: String,
    /// The body, in the subscription's format.
    pub body: Bytes,
    /// Of the body.
    pub content_type: ContentType,
}

/// A header as it may be shown: without credentials.
pub type Header = (String, String);

/// What was sent, and what came back.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The URL, without what may be a credential in it.
    pub url: String,
    /// The headers of the request.
    pub headers: Vec<Header>,
    /// The response, or why there is none.
    pub response: Result<Received, String>,
    /// From the request to the response headers, or to the failure.
    pub took: Duration,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Received {
    /// The status code.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<Header>,
    /// The beginning of its body, if it has one.
    pub body: Option<Excerpt>,
}

/// Sends a sample to the endpoint of a subscription, whatever its state.
///
/// # Errors
/// One sentence: the endpoint is not allowed, or a secret or a token cannot be read. Nothing was sent then.
pub async fn send<P: Port>(
    port: &P,
    settings: &Arc<Settings>,
    subscription: &Arc<Subscription>,
    sample: &Sample,
) -> Result<Exchange, String> {
    let policy = Arc::new(EgressPolicy::new(&settings.egress));
    let client = || {
        let client = port.http(http_options(settings, &policy));
        client.map_err(|error| with_causes(&error))
    };
    let tokens = Tokens::start(port, client()?).map_err(|failure| failure.to_string())?;
    let (notify, metrics) = (
        Arc::new(Notify::new()),
        DeliveryMetrics::register(&Registry::new()),
    );
    let read = Arc::clone(&notify);
    let directory = Directory {
        table: Arc::default(),
        statuses: Arc::default(),
        policy: Arc::clone(&policy),
        settings: Arc::clone(settings),
        secrets: Arc::new(Secrets::new()),
        tokens: Arc::new(tokens),
        trust: Arc::new(TlsMaker::new(settings.ca_file.clone())),
        shares: Shares::default(),
        refused: Arc::new(Refused::new(metrics)),
        wake: Arc::new(move || read.notify_waiters()),
    };
    let target = loaded(&directory, &notify, subscription).await?;
    let mut request = target.signed(&sample.id, sample.body.clone(), clock::now());
    if sample.content_type != ContentType::Json {
        let other = HeaderValue::from_static(sample.content_type.as_str());
        request.headers.insert(CONTENT_TYPE, other);
    }
    let (url, headers) = (target.shown.url.to_string(), shown(&request.headers));
    let began = clock::instant();
    let deadline = tokio::time::Instant::from_std(began) + target.timeout;
    let client = client()?;
    let reply = client.exchange(http::Method::POST, request, deadline).await;
    let took = clock::instant() - began;
    let response = match reply {
        Reply::Failed(failure) => Err(format!("{}: {}", failure.class.as_str(), failure.error)),
        Reply::Answered(answer) => Ok(Received {
            status: answer.status,
            headers: shown(&answer.headers.unwrap_or_default()),
            body: match answer.rest {
                Some(rest) => read_rest::<P::Http>(rest, deadline, Some(target)).await,
                None => None,
            },
        }),
    };
    Ok(Exchange {
        url,
        headers,
        response,
        took,
    })
}

/// Headers as they may be shown.
fn shown(headers: &HeaderMap) -> Vec<Header> {
    let each = headers.iter().map(|(name, value)| {
        let hidden = value.is_sensitive() || name == AUTHORIZATION;
        let value = match hidden {
            true => "***".into(),
            false => String::from_utf8_lossy(value.as_bytes()),
        };
        (name.to_string(), value.into_owned())
    });
    each.collect()
}
