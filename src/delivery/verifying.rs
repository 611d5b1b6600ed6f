//! Asks the endpoints of pending subscriptions for consent: from here, so that the request passes the egress rules and
//! the proxy like any webhook, and has its signature and credentials.
//!
//! Of all replicas, the owner of one partition asks ([`LEADER`]). The role's thread hands over what is pending whenever
//! that changes, and writes what becomes of it as outcomes of that partition, beside the subscription's own record. A
//! thread of its own asks, from when the first subscription is pending; see [`Plan`] for when. What an endpoint responds
//! is judged in `model::subscription::verification`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use self::plan::Plan;
use super::metrics::{DeliveryMetrics, VerificationResult};
use super::partition::effect::Outcome;
use super::partition::env::Standing;
use super::request::Target;
use super::terms::Directory;
use crate::edge::clock;
use crate::edge::http::{Answer, FailureClass, HttpOptions, Reply, with_causes};
use crate::edge::kafka::subscription_cache::SubscriptionCache;
use crate::edge::port::failure::Failure;
use crate::edge::port::{Http, Port, Task as _};
use crate::model::subscription::Subscription;
use crate::model::subscription::verification::{
    Consent, Handshake, Means, Pending, Tested, Verification, challenge, judge_challenge,
    judge_handshake, wanted_rate,
};
use crate::model::throttle::Throttle;
use crate::model::units::EpochMs;

mod plan;

/// The partition of the commands whose owner asks.
pub(super) const LEADER: i32 = 0;
/// How often it is looked at what is pending, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How long the secrets of a request may take to be read.
const LOADING: Duration = Duration::from_secs(10);
/// How often is looked for them, if nothing says that they are there.
const LOADING_STEP: Duration = Duration::from_millis(500);

/// The end of a try.
struct Ended {
    asked: Arc<Subscription>,
    found: Result<(Means, Consent), String>,
}

/// What became of a try.
struct Tried {
    asked: Arc<Subscription>,
    tested: Tested,
    at: EpochMs,
}

struct Started<T> {
    pending: UnboundedSender<Vec<Pending>>,
    tried: UnboundedReceiver<Tried>,
    task: T,
}

/// The side of the role's thread.
pub(super) struct Verifier<P: Port> {
    port: P,
    options: HttpOptions,
    /// Makes the directory of the thread that asks, which calls the given function when a secret was read.
    directory: Box<dyn Fn(Arc<Notify>) -> Directory>,
    table: Arc<SubscriptionCache>,
    metrics: DeliveryMetrics,
    started: Option<Started<P::Task>>,
    /// The version of the subscriptions that was handed over; `None` while another replica asks.
    seen: Option<u64>,
    looked: Option<Instant>,
    lines: Throttle,
}

impl<P: Port> Verifier<P> {
    pub(super) fn new(
        port: &P,
        options: HttpOptions,
        table: Arc<SubscriptionCache>,
        metrics: DeliveryMetrics,
        directory: impl Fn(Arc<Notify>) -> Directory + 'static,
    ) -> Self {
        const LINES: Duration = Duration::from_secs(10);
        Self {
            port: port.clone(),
            options,
            directory: Box::new(directory),
            table,
            metrics,
            started: None,
            seen: None,
            looked: None,
            lines: Throttle::burst(5, LINES),
        }
    }

    /// Hands over what is pending, if this replica `leads`, and returns what became of it.
    ///
    /// # Errors
    /// [`Failure`] when the thread cannot be started.
    pub(super) fn round(&mut self, leads: bool) -> Result<Vec<Outcome>, Failure> {
        let now = clock::instant();
        let version = leads.then(|| self.table.version());
        let is_time = self.looked.is_none_or(|looked| now >= looked + LOOK);
        if self.seen != version && (is_time || !leads) {
            self.looked = Some(now);
            self.seen = version;
            let pending = if leads {
                self.table.pending()
            } else {
                Vec::new()
            };
            self.hand_over(pending)?;
        }
        let mut outcomes = Vec::new();
        let tried = self.started.as_mut().map(|started| &mut started.tried);
        for tried in tried
            .into_iter()
            .flat_map(|tried| std::iter::from_fn(|| tried.try_recv().ok()))
        {
            let Tried { asked, tested, at } = tried;
            self.metrics.verifications(result(&tested)).inc();
            if let Some(suppressed) = self.lines.pass(now) {
                log(&asked, &tested, suppressed);
            }
            if leads {
                let verification = Verification::new(&asked, tested, at);
                outcomes.push(Outcome::Verification(asked, Box::new(verification)));
            }
        }
        Ok(outcomes)
    }

    fn hand_over(&mut self, pending: Vec<Pending>) -> Result<(), Failure> {
        if self.started.is_none() && !pending.is_empty() {
            self.started = Some(self.start()?);
        }
        if let Some(started) = &self.started
            && started.pending.send(pending).is_err()
        {
            let panicked = "the thread that verifies endpoints has panicked";
            return Err(Failure::Internal(panicked.to_owned()));
        }
        Ok(())
    }

    fn start(&self) -> Result<Started<P::Task>, Failure> {
        let notify = Arc::new(Notify::new());
        let directory = (self.directory)(Arc::clone(&notify));
        let client = self.port.http(self.options.clone());
        let client = client.map_err(|error| Failure::Internal(with_causes(&error)))?;
        let (pending, inbox) = unbounded_channel();
        let (results, tried) = unbounded_channel();
        let port = self.port.clone();
        let work = move || {
            let asking = Asking {
                directory,
                client,
                notify,
            };
            work(port, Rc::new(asking), inbox, results)
        };
        let task = self.port.spawn_worker("verify".to_owned(), work)?;
        Ok(Started {
            pending,
            tried,
            task,
        })
    }

    /// Ends the thread; what it asks at present is given up.
    pub(super) async fn end(self) {
        if let Some(Started { pending, task, .. }) = self.started {
            drop(pending);
            if !task.join().await {
                tracing::error!("the thread that verifies endpoints has panicked");
            }
        }
    }
}

fn result(tested: &Tested) -> VerificationResult {
    match tested {
        Tested::Verified { .. } => VerificationResult::Verified,
        Tested::Refused { .. } => VerificationResult::Refused,
    }
}

fn log(asked: &Subscription, tested: &Tested, suppressed: u64) {
    let (subscription, subscriber) = (&*asked.id, &*asked.subscriber);
    match tested {
        Tested::Verified { by, per_minute } => tracing::info!(
            subscription,
            subscriber,
            ?by,
            per_minute,
            suppressed,
            "the endpoint consents"
        ),
        Tested::Refused { reason, failures } => tracing::warn!(
            subscription,
            subscriber,
            failures,
            suppressed,
            "the endpoint does not consent, its subscription stays pending: {reason}"
        ),
    }
}

/// What is needed to ask.
struct Asking<H> {
    directory: Directory,
    client: H,
    notify: Arc<Notify>,
}

async fn work<P: Port>(
    port: P,
    asking: Rc<Asking<P::Http>>,
    mut inbox: UnboundedReceiver<Vec<Pending>>,
    results: UnboundedSender<Tried>,
) {
    let (ended_in, mut ended) = unbounded_channel::<Ended>();
    let mut plan = Plan::default();
    loop {
        let next = plan.next();
        tokio::select! {
            pending = inbox.recv() => match pending {
                Some(pending) => plan.set(pending, clock::now()),
                None => return,
            },
            Some(Ended { asked, found }) = ended.recv() => {
                let at = clock::now();
                let failures = plan.ended(&asked, found.is_ok(), at);
                let tested = match found {
                    Ok((by, Consent { per_minute })) => Tested::Verified { by, per_minute },
                    Err(reason) => Tested::Refused { reason: reason.into(), failures },
                };
                // The role's thread may have stopped.
                results.send(Tried { asked, tested, at }).ok();
            }
            () = until(next), if next.is_some() => {}
        }
        for asked in plan.due(clock::now()) {
            let (asking, ended) = (Rc::clone(&asking), ended_in.clone());
            port.spawn_local(async move {
                let found = asking.ask(&asked).await;
                ended.send(Ended { asked, found }).ok();
            });
        }
    }
}

/// Waits until a time of the wall clock; not for long, since that clock may be set. Not at all busily, where the time has
/// come and others must end first.
async fn until(next: Option<EpochMs>) {
    const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(30);
    let wait = next.map_or(MOST, |next| next.since(clock::now()));
    tokio::time::sleep(wait.clamp(LEAST, MOST)).await;
}

impl<H: Http> Asking<H> {
    /// Asks the endpoint of a subscription.
    async fn ask(&self, subscription: &Arc<Subscription>) -> Result<(Means, Consent), String> {
        let target = loaded(&self.directory, &self.notify, subscription).await?;
        match self.handshake(&target).await? {
            Handshake::Allowed(consent) => Ok((Means::Handshake, consent)),
            Handshake::Denied(reason) => Err(reason),
            Handshake::Unknown(first) => match self.challenge(&target).await {
                Ok(consent) => Ok((Means::Challenge, consent)),
                Err(second) => Err(format!("{first}; {second}")),
            },
        }
    }

    async fn handshake(&self, target: &Target) -> Result<Handshake, String> {
        let deadline = tokio::time::Instant::from_std(clock::instant()) + target.timeout;
        let origin = &*self.directory.settings.verification_origin;
        let rate = wanted_rate(target.subscription.rate_limit.as_deref());
        let request = target.handshake(origin, rate);
        let answer = match self
            .client
            .exchange(Method::OPTIONS, request, deadline)
            .await
        {
            Reply::Answered(answer) => answer,
            // It may be a server that closes the connection when it does not know a method.
            Reply::Failed(failure) if failure.class == FailureClass::Other => {
                return Ok(Handshake::Unknown(format!("OPTIONS: {}", failure.error)));
            }
            Reply::Failed(failure) => return Err(failure.error),
        };
        let headers = answer.headers.unwrap_or_default();
        let judged = judge_handshake(
            origin,
            answer.status,
            headers
                .get_all("webhook-allowed-origin")
                .iter()
                .map(|value| value.as_bytes()),
            headers
                .get("webhook-allowed-rate")
                .map(|value| value.as_bytes()),
        );
        if let Some(rest) = answer.rest {
            H::drain(rest, deadline).await;
        }
        Ok(judged)
    }

    async fn challenge(&self, target: &Target) -> Result<Consent, String> {
        let token = token()?;
        let now = clock::now();
        let deadline = tokio::time::Instant::from_std(clock::instant()) + target.timeout;
        let body = challenge(&token, &target.subscription.id, now);
        let request = target.signed(&format!("msg_verify_{token}"), body.into(), now);
        let sent = self
            .client
            .post_until_processed(|| request.clone(), deadline);
        let Answer { status, rest, .. } = match sent.await {
            Reply::Answered(answer) => answer,
            Reply::Failed(failure) => return Err(format!("challenge: {}", failure.error)),
        };
        let body = match rest {
            Some(rest) => H::read_snippet(rest, deadline).await.0,
            None => Vec::new(),
        };
        judge_challenge(&token, status, &body)
    }
}

/// The endpoint of a subscription with its secrets, for which it waits; `notify` says that one was read.
///
/// # Errors
/// Why it cannot be reached, or what cannot be read.
pub(super) async fn loaded(
    directory: &Directory,
    notify: &Notify,
    subscription: &Arc<Subscription>,
) -> Result<Rc<Target>, String> {
    let began = clock::instant();
    loop {
        let read = notify.notified();
        match directory.served(subscription, None).0 {
            Standing::Open(target) => return Ok(target),
            Standing::Denied(reason) | Standing::Unusable(reason) => return Err(reason.into()),
            Standing::Loading | Standing::Waiting | Standing::Disabled => {}
        }
        if clock::instant() >= began + LOADING {
            return Err("its secrets or its token could not be read in time".to_owned());
        }
        // Whether this one was read or another, there is no harm in looking.
        tokio::time::timeout(LOADING_STEP, read).await.ok();
    }
}

/// A token that nobody can guess.
fn token() -> Result<String, String> {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| "the operating system has no random bytes".to_owned())?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
