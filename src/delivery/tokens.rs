//! OAuth 2.0 tokens for endpoints: one for each token URL, client, secret, scopes and audience, and never shared across
//! those.
//!
//! A task fetches a token and its successors, through the egress rules like any request: at three quarters of a token's
//! life, and at once when an endpoint responds 401 to it. Any number of lanes that need a token wait for one request. A
//! token server that is down is not the endpoint's fault: no attempt is made while there is no valid token, commands wait
//! in their lane for the first token, and in a tier while there is none to be had.
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | time of one request | [`TIMEOUT`] | a failure; the former token stays in use while it is valid |
//! | pause after a failure | [`FIRST_RETRY`] to [`LAST_RETRY`] | |
//! | renewals because of a 401 | one in [`RENEWAL`] for each token | the 401 is the endpoint's response |
//! | a token that nobody uses | [`FORGET`] | forgotten |

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use super::secrets::Wake;
use crate::edge::http::{Address, Answer, Drained, Reply, Request};
use crate::edge::port::failure::Failure;
use crate::edge::port::{Http, Port};
use crate::edge::{clock, failpoint};
use crate::model::subscription::OAuth2;
use crate::model::token::{BasicForm, IssuedToken, TokenFault, TokenRequest};

/// The time limit of one request for a token.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first pause after a failure; each further one is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The least time between two renewals because of a 401: an endpoint that always responds so must not flood the server.
const RENEWAL: Duration = Duration::from_secs(5);
/// A token that no subscription has asked for is forgotten after this time.
const FORGET: Duration = Duration::from_secs(120);
/// The share of a token's life after which it is renewed.
const SHARE: f64 = 0.75;

/// What distinguishes a token. No `Debug`, since it holds a secret.
#[derive(Clone)]
pub(super) struct Wanted {
    oauth: Box<OAuth2>,
    secret: Arc<str>,
}

impl Hash for Wanted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Wanted {}

impl Wanted {
    /// `secret` is the text of the client's secret.
    pub(super) fn new(oauth: &OAuth2, secret: &Arc<str>) -> Self {
        Self {
            oauth: Box::new(oauth.clone()),
            secret: Arc::clone(secret),
        }
    }

    /// From where the secret was read makes no difference.
    fn parts(&self) -> (&str, &str, &str, &str, Option<&str>) {
        let oauth = &self.oauth;
        let url = oauth.token_url.as_str();
        let audience = oauth.audience.as_deref();
        (url, &oauth.client_id, &self.secret, &oauth.scope, audience)
    }

    fn request(&self) -> TokenRequest<'_> {
        TokenRequest {
            client_id: &self.oauth.client_id,
            client_secret: self.secret.trim(),
            scope: &self.oauth.scope,
            audience: self.oauth.audience.as_deref(),
        }
    }

    fn host(&self) -> &str {
        self.oauth.token_url.host_str().unwrap_or_default()
    }
}

/// A token and its successors.
pub(super) struct Token {
    wanted: Wanted,
    /// The header with the latest token.
    header: ArcSwapOption<HeaderValue>,
    state: Mutex<State>,
    /// Lets the task fetch at once.
    hurry: Notify,
    /// The number of requests that have ended.
    ended: watch::Sender<u64>,
}

struct State {
    /// When the latest token expires.
    expires: Option<Instant>,
    /// Why the last request failed.
    failure: Option<String>,
    failures: u32,
    waiting: Vec<Wake>,
    /// The last renewal because of a 401, and whether it is under way.
    renewed: Option<Instant>,
    is_renewing: bool,
    asked: Instant,
    /// Whether the task has ended, since nobody asked.
    is_forgotten: bool,
}

/// What became of a renewal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// There is another token.
    Another,
    /// There is none: the endpoint's response stands.
    No,
    /// The token server does not issue one, for this reason.
    Failed(String),
}

/// The state of a token.
pub(super) enum Asked {
    /// Usable for this time at least.
    Valid(Arc<Token>, Duration),
    /// It is being fetched for the first time.
    Fetching,
    /// It cannot be had, for this reason (**Secret**).
    Unusable(String),
}

impl Token {
    fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            header: ArcSwapOption::empty(),
            state: Mutex::new(State {
                expires: None,
                failure: None,
                failures: 0,
                waiting: Vec::new(),
                renewed: None,
                is_renewing: false,
                asked: now,
                is_forgotten: false,
            }),
            hurry: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of `authorization` with the latest token.
    pub(super) fn header(&self) -> Option<Arc<HeaderValue>> {
        self.header.load_full()
    }

    /// Keeps the result of a request. Returns when to make the next one, and who waits for this one.
    fn keep(&self, found: Result<IssuedToken, TokenFault>, now: Instant) -> (Duration, Vec<Wake>) {
        let found = found.and_then(|token| {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            let mut value =
                value.map_err(|_| TokenFault::Failed("the token fits no header".to_owned()))?;
            value.set_sensitive(true);
            Ok((value, token.life))
        });
        let mut state = self.state();
        state.is_renewing = false;
        let wait = match found {
            Ok((value, life)) => {
                self.header.store(Some(Arc::new(value)));
                state.expires = Some(now + life);
                state.failure = None;
                state.failures = 0;
                life.mul_f64(SHARE)
            }
            Err(fault) => {
                let reason = format!("no token from {}: {fault}", self.wanted.host());
                let wait =
                    LAST_RETRY.min(FIRST_RETRY * 2_u32.saturating_pow(state.failures.min(10)));
                state.failures += 1;
                if state.failure.as_ref() != Some(&reason) {
                    let left = state.expires.map(|at| at.saturating_duration_since(now));
                    tracing::warn!(former_token_valid_for = ?left.unwrap_or_default(), "{reason}");
                }
                state.failure = Some(reason);
                wait
            }
        };
        (wait, std::mem::take(&mut state.waiting))
    }

    fn ask(self: &Arc<Self>, wake: &Wake, now: Instant) -> Option<Asked> {
        let mut state = self.state();
        if state.is_forgotten {
            return None;
        }
        state.asked = now;
        let left = state.expires.map(|at| at.saturating_duration_since(now));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return Some(Asked::Valid(Arc::clone(self), left));
        }
        if !state.waiting.iter().any(|known| Arc::ptr_eq(known, wake)) {
            state.waiting.push(Arc::clone(wake));
        }
        Some(match &state.failure {
            Some(reason) => Asked::Unusable(reason.clone()),
            None => Asked::Fetching,
        })
    }

    /// Whether its task ends now: nobody but it and the table knows the token, and nobody has asked for long.
    fn forget(self: &Arc<Self>, now: Instant) -> bool {
        const TABLE_AND_TASK: usize = 2;
        let mut state = self.state();
        let is_unused = Arc::strong_count(self) <= TABLE_AND_TASK
            && now.saturating_duration_since(state.asked) >= FORGET;
        state.is_forgotten = is_unused;
        is_unused
    }

    /// An endpoint has responded 401 to the token `used`: waits for another one until `deadline` at most.
    pub(super) async fn renewed(
        &self,
        used: Option<&HeaderValue>,
        deadline: tokio::time::Instant,
    ) -> Renewed {
        let is_another = || self.header().as_deref() != used;
        let mut ended = self.ended.subscribe();
        let before = *ended.borrow_and_update();
        if is_another() {
            return Renewed::Another;
        }
        {
            let now = clock::instant();
            let mut state = self.state();
            let is_soon = |at: Instant| now.saturating_duration_since(at) < RENEWAL;
            if !state.is_renewing {
                if state.renewed.is_some_and(is_soon) {
                    drop(state);
                    // It may have come since this request looked.
                    return if is_another() {
                        Renewed::Another
                    } else {
                        Renewed::No
                    };
                }
                state.is_renewing = true;
                state.renewed = Some(now);
                self.hurry.notify_one();
            }
        }
        let next = ended.wait_for(|count| *count > before);
        match tokio::time::timeout_at(deadline, next).await {
            Ok(Ok(_)) if is_another() => Renewed::Another,
            Ok(Ok(_)) => match self.state().failure.clone() {
                Some(reason) => Renewed::Failed(reason),
                // The server issues the same token again.
                None => Renewed::No,
            },
            Ok(Err(_)) => Renewed::No,
            Err(_) => Renewed::Failed(format!(
                "no token from {}: no response in time",
                self.wanted.host()
            )),
        }
    }
}

/// All tokens of a replica.
pub(super) struct Tokens {
    all: Mutex<HashMap<Wanted, Arc<Token>>>,
    /// Tokens whose task is to be started.
    new: UnboundedSender<Arc<Token>>,
}

impl Tokens {
    /// Starts the task that fetches tokens with `client`; it ends when this is dropped.
    ///
    /// # Errors
    /// [`Failure`] when its thread cannot be started.
    pub(super) fn start<P: Port>(port: &P, client: P::Http) -> Result<Self, Failure> {
        let (new, mut started) = unbounded_channel();
        let own = port.clone();
        let fetching = move || async move {
            while let Some(token) = started.recv().await {
                own.spawn_local(keep(client.clone(), token));
            }
        };
        drop(port.spawn_worker("tokens".to_owned(), fetching)?);
        Ok(Self {
            all: Mutex::default(),
            new,
        })
    }

    /// The token for a subscription. Does not block: `wake` is called when the request that it waits for has ended.
    pub(super) fn get(&self, wanted: &Wanted, wake: &Wake) -> Asked {
        let now = clock::instant();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = all.get(wanted).and_then(|token| token.ask(wake, now)) {
            return asked;
        }
        all.retain(|_, token| !token.state().is_forgotten);
        let token = Arc::new(Token::new(wanted.clone(), now));
        all.insert(wanted.clone(), Arc::clone(&token));
        token.state().waiting.push(Arc::clone(wake));
        // The task ends after this only.
        self.new.send(token).ok();
        Asked::Fetching
    }
}

/// Fetches a token and its successors until nobody needs it any more.
async fn keep<H: Http>(client: H, token: Arc<Token>) {
    loop {
        let found = fetch(&client, &token.wanted).await;
        let (wait, waiting) = token.keep(found, clock::instant());
        token.ended.send_modify(|count| *count += 1);
        waiting.iter().for_each(|wake| wake());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = token.hurry.notified() => {}
        }
        if token.forget(clock::instant()) {
            return;
        }
    }
}

/// Fetches a token: with the client's secret in a header, as the standard wants it, or else in the body, as some servers
/// do.
async fn fetch<H: Http>(client: &H, wanted: &Wanted) -> Result<IssuedToken, TokenFault> {
    let asked = wanted.request();
    failpoint::panics_with("token.asked", || asked.client_secret.to_owned());
    let header = HeaderValue::try_from(asked.authorization(BasicForm::Encoded)).ok();
    let first = exchange(client, wanted, header, asked.body()).await;
    match first {
        Err(TokenFault::Refused(_)) => {
            let second = exchange(client, wanted, None, asked.body_with_client()).await;
            // What the server says about the form of the standard counts.
            second.or(first)
        }
        other => other,
    }
}

async fn exchange<H: Http>(
    client: &H,
    wanted: &Wanted,
    authorization: Option<HeaderValue>,
    body: String,
) -> Result<IssuedToken, TokenFault> {
    let failed = |text: String| TokenFault::Failed(text);
    let uri = wanted.oauth.token_url.as_str().parse();
    let uri = uri.map_err(|error| failed(format!("the token_url cannot be used: {error}")))?;
    let to = Address::new(uri).map_err(|error| failed(error.to_string()))?;
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let form = "application/x-www-form-urlencoded";
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form));
    if let Some(mut authorization) = authorization {
        authorization.set_sensitive(true);
        headers.insert(AUTHORIZATION, authorization);
    }
    let request = Request {
        to: Arc::new(to),
        headers,
        body: Bytes::from(body),
    };
    let deadline = tokio::time::Instant::from_std(clock::instant()) + TIMEOUT;
    let answer = match client
        .post_until_processed(|| request.clone(), deadline)
        .await
    {
        Reply::Answered(answer) => answer,
        Reply::Failed(failure) => return Err(failed(failure.error)),
    };
    let Answer { status, rest, .. } = answer;
    let (body, drained) = match rest {
        Some(rest) => H::read_snippet(rest, deadline).await,
        None => (Vec::new(), Drained::Complete),
    };
    if drained != Drained::Complete {
        return Err(failed(format!(
            "status {status}, and its body cannot be read to the end"
        )));
    }
    let asked = wanted.request();
    asked.judge(status, &body, clock::now().seconds())
}

#[cfg(test)]
mod tests;
