//! Fetches the tokens of the Kafka clients: OAUTHBEARER with client credentials.
//!
//! One thread fetches a token, passes it to all clients of the process, and fetches the next one when three quarters to
//! four fifths of its life have passed, so that replicas do not come at the same moment. While the token server does not
//! respond, the former token stays in use, and clients without one report why they cannot log in.

use std::ffi::CString;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use crate::config::TokenSource;
use crate::config::credentials::{Credentials, Login, Token};
use crate::edge::clock;
use crate::edge::http as trust;
use crate::model::token::{
    BasicForm, IssuedToken, MAX_TOKEN_RESPONSE_BYTES, TokenFault, TokenRequest,
};

/// Time of one request, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first wait after a failure; each further one is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(15);
/// A failure that lasts is logged again after this time.
const REPEAT_LOG: Duration = Duration::from_secs(60);

/// The thread that fetches tokens.
pub struct Tokens {
    changes: Sender<TokenSource>,
    first: Receiver<Result<(), TokenFault>>,
}

/// Starts the thread. Clients get tokens by way of `credentials`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(credentials: &Credentials, source: TokenSource) -> std::io::Result<Tokens> {
    let (changes, changed) = channel();
    let (result, first) = channel();
    let credentials = credentials.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("tokens".to_owned())
        .spawn(move || {
            let mut fetching = Fetching {
                credentials,
                source,
                plan: Plan::default(),
            };
            loop {
                let (wait, found) = fetching.once(&runtime);
                // Nobody waits for any but the first.
                result.send(found).ok();
                match changed.recv_timeout(wait) {
                    Ok(source) => fetching.change(changed.try_iter().last().unwrap_or(source)),
                    Err(RecvTimeoutError::Timeout) => {}
                    // Nobody can change the source any more.
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
                }
            }
        })?;
    Ok(Tokens { changes, first })
}

impl Tokens {
    /// Waits for the first answer of the token server.
    ///
    /// # Errors
    /// [`TokenFault`]: the thread tries again, which helps if the fault may pass.
    pub fn first(&self) -> Result<(), TokenFault> {
        let late = || TokenFault::Failed(format!("no response within {TIMEOUT:?}"));
        self.first
            .recv_timeout(TIMEOUT + FIRST_RETRY)
            .map_err(|_| late())?
    }

    /// Fetches the next tokens, from now on, with other settings.
    pub(super) fn change(&self, source: TokenSource) {
        // The thread never ends.
        self.changes.send(source).ok();
    }
}

struct Fetching {
    credentials: Credentials,
    source: TokenSource,
    plan: Plan,
}

impl Fetching {
    fn change(&mut self, source: TokenSource) {
        self.source = source;
        self.plan.failures = 0;
    }

    /// Fetches a token. Returns how long to wait before the next one.
    fn once(&mut self, runtime: &tokio::runtime::Runtime) -> (Duration, Result<(), TokenFault>) {
        let found = runtime.block_on(fetch(&self.source));
        let now = clock::now().0;
        match found.and_then(|issued| self.login(&issued, now).map(|login| (issued, login))) {
            Ok((issued, login)) => {
                let clients = self.credentials.replace_login(login);
                let life = issued.life;
                if self.plan.failures > 0 {
                    tracing::info!(clients, "the token server responds again");
                }
                tracing::debug!(clients, ?life, "new token for the brokers");
                let share = 0.75 + 0.05 * fastrand::f64();
                (self.plan.fetched(now, life, share), Ok(()))
            }
            Err(fault) => {
                let (wait, may_log) = self.plan.failed(now, &fault);
                let host = host(&self.source.url);
                let line = format!("no token from the token server {host}: {fault}");
                if may_log {
                    let left = self.plan.left(now);
                    tracing::warn!(retry_in = ?wait, former_token_valid_for = ?left, "{line}");
                }
                if self.plan.left(now).is_zero()
                    && let Ok(reason) = CString::new(line)
                {
                    self.credentials.replace_login(Login::NoToken(reason));
                }
                (wait, Err(fault))
            }
        }
    }

    fn login(&self, issued: &IssuedToken, now_ms: i64) -> Result<Login, TokenFault> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| TokenFault::Refused("NUL in the client id".to_owned()))
        };
        let life = i64::try_from(issued.life.as_millis()).unwrap_or(i64::MAX);
        Ok(Login::Token(Token {
            value: text(issued.expose())?,
            expires_ms: now_ms.saturating_add(life),
            principal: text(&self.source.client_id)?,
            extensions: self.source.extensions.clone(),
        }))
    }
}

/// When to fetch the next token, and what to log. Times are milliseconds since the epoch.
#[derive(Default)]
struct Plan {
    failures: u32,
    expires: i64,
    logged: Option<(TokenFault, i64)>,
}

impl Plan {
    /// The wait after a success; `share` of the token's life.
    fn fetched(&mut self, now: i64, life: Duration, share: f64) -> Duration {
        self.failures = 0;
        self.logged = None;
        self.expires = now.saturating_add(i64::try_from(life.as_millis()).unwrap_or(i64::MAX));
        life.mul_f64(share)
    }

    /// The wait after a failure, and whether to log it.
    fn failed(&mut self, now: i64, fault: &TokenFault) -> (Duration, bool) {
        let wait = LAST_RETRY.min(FIRST_RETRY * 2_u32.saturating_pow(self.failures.min(10)));
        self.failures += 1;
        let repeat = i64::try_from(REPEAT_LOG.as_millis()).unwrap_or(i64::MAX);
        let may_log =
            !matches!(&self.logged, Some((known, at)) if known == fault && now - at < repeat);
        if may_log {
            self.logged = Some((fault.clone(), now));
        }
        (wait, may_log)
    }

    /// How long the last token is still valid.
    fn left(&self, now: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.expires.saturating_sub(now)).unwrap_or(0))
    }
}

/// The host of a URL: the rest may hold a secret.
fn host(url: &str) -> String {
    let url = url::Url::parse(url).ok();
    let host = url.as_ref().and_then(url::Url::host_str);
    host.unwrap_or("(no host)").to_owned()
}

async fn fetch(source: &TokenSource) -> Result<IssuedToken, TokenFault> {
    match timeout(TIMEOUT, exchange(source)).await {
        Ok(found) => found,
        Err(_) => Err(TokenFault::Failed(format!(
            "no response within {TIMEOUT:?}"
        ))),
    }
}

async fn exchange(source: &TokenSource) -> Result<IssuedToken, TokenFault> {
    let wanted = TokenRequest {
        client_id: &source.client_id,
        client_secret: &source.client_secret,
        scope: &source.scope,
        audience: None,
    };
    let failed = |text: String| TokenFault::Failed(text);
    let mut authorization = HeaderValue::try_from(wanted.authorization(BasicForm::Plain))
        .map_err(|_| failed("the client id or secret does not fit into a header".to_owned()))?;
    authorization.set_sensitive(true);
    let request = Request::post(&source.url)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(
            USER_AGENT,
            concat!("hookstream/", env!("CARGO_PKG_VERSION")),
        )
        .header(AUTHORIZATION, authorization)
        .body(Full::new(Bytes::from(wanted.body())))
        .map_err(|error| failed(format!("the request is not valid: {error}")))?;
    let client = client(source.ca_file.as_deref(), source.url.starts_with("http:"))
        .map_err(|error| failed(error.to_string()))?;
    let response = client
        .request(request)
        .await
        .map_err(|error| failed(trust::with_causes(&error)))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_TOKEN_RESPONSE_BYTES)
        .collect()
        .await
        .map_err(|error| failed(format!("reading the response: {error}")))?;
    wanted.judge(status, &body.to_bytes(), clock::now().seconds())
}

type HttpClient = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client for one request: the next one comes after minutes, and the certificates may have changed by then.
fn client(ca_file: Option<&Path>, plain: bool) -> Result<HttpClient, trust::HttpSetupError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(trust::trusted(ca_file, plain)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(text: &str) -> TokenFault {
        TokenFault::Failed(text.to_owned())
    }

    #[test]
    fn a_token_is_replaced_before_its_end_and_a_failure_is_retried_soon() {
        let mut plan = Plan::default();
        assert!(plan.left(0).is_zero());
        let wait = plan.fetched(1_000, Duration::from_secs(100), 0.75);
        assert_eq!(wait, Duration::from_secs(75));
        assert_eq!(plan.left(76_000), Duration::from_secs(25));
        let waits: Vec<_> = (0..6)
            .map(|_| plan.failed(76_000, &failed("down")).0.as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 15, 15]);
        assert!(plan.left(101_000).is_zero());
        plan.fetched(200_000, Duration::from_secs(100), 0.75);
        assert_eq!(plan.failed(275_000, &failed("down")).0, FIRST_RETRY);
    }

    #[test]
    fn a_failure_is_logged_when_it_begins_when_it_changes_and_once_a_minute() {
        let mut plan = Plan::default();
        let mut logged = |now, text| plan.failed(now, &failed(text)).1;
        assert!(logged(0, "down"));
        assert!(!logged(59_999, "down"));
        assert!(logged(60_000, "down"));
        assert!(logged(60_001, "status 500"));
        plan.fetched(60_002, Duration::from_secs(1), 0.75);
        assert!(plan.failed(60_003, &failed("status 500")).1);
    }

    #[test]
    fn a_url_is_named_by_its_host_alone() {
        assert_eq!(
            host("https://idp.example:8443/realms/x?secret=1"),
            "idp.example"
        );
        assert_eq!(host("nonsense"), "(no host)");
    }
}
