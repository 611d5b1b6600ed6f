//! The receivers of webhooks, and the client that reaches them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hookstream::edge::http::{
    Answer, Drained, Failure, FailureClass, Reply, Request as HttpRequest,
};
use hookstream::edge::port::Http;
use ring::hmac;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until};

use super::history::{Hash, History, Signed, What};
use super::plan::shared;
use crate::kafka::log::Ms;
use crate::kafka::net::{Net, lock};

/// How an endpoint behaves for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behaviour {
    /// It accepts everything.
    Well,
    /// So many of 100 requests get this status.
    Status(u16, u32),
    /// 429, with `Retry-After` in seconds.
    Throttling(u64),
    /// No response.
    Hanging,
    /// No connection.
    Refusing,
    /// It accepts everything after this many ms.
    Slow(u64),
}

/// One endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its host name.
    #[serde(with = "shared")]
    pub host: Arc<str>,
    /// From when on it behaves how, ms since the beginning, in order; well before the first.
    pub phases: Vec<(Ms, Behaviour)>,
    /// The shortest and the longest response, ms.
    pub latency: (u64, u64),
}

struct World {
    all: BTreeMap<Arc<str>, Endpoint>,
    rng: fastrand::Rng,
    history: History,
    /// By host: the secrets that its receiver knows, the present one last.
    secrets: BTreeMap<Arc<str>, Vec<(String, hmac::Key)>>,
    /// Instances that reach no endpoint.
    cut: BTreeSet<Arc<str>>,
    healed: bool,
}

/// All endpoints. The history of the world is here too.
#[derive(Clone)]
pub struct Endpoints {
    net: Net,
    world: Arc<Mutex<World>>,
}

impl Endpoints {
    /// These endpoints.
    pub fn new(net: &Net, all: &[Endpoint], seed: u64) -> Self {
        let each = all.iter().cloned();
        let world = World {
            all: each
                .map(|endpoint| (Arc::clone(&endpoint.host), endpoint))
                .collect(),
            rng: fastrand::Rng::with_seed(seed),
            history: History::default(),
            secrets: BTreeMap::new(),
            cut: BTreeSet::new(),
            healed: false,
        };
        Self {
            net: net.clone(),
            world: Arc::new(Mutex::new(world)),
        }
    }

    /// Writes something into the history.
    pub fn note(&self, what: What) {
        let now = self.net.now();
        lock(&self.world).history.add(now, what);
    }

    /// The history so far.
    pub fn history(&self) -> History {
        lock(&self.world).history.clone()
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        lock(&self.world).rng.u64(..)
    }

    /// Cuts an instance off from all endpoints, or ends that.
    pub fn cut(&self, instance: &Arc<str>, off: bool) {
        let cut = &mut lock(&self.world).cut;
        match off {
            true => cut.insert(Arc::clone(instance)),
            false => cut.remove(instance),
        };
    }

    /// The receiver at `host` knows this secret from now on.
    pub fn learn(&self, host: &str, secret: &str) {
        let mut world = lock(&self.world);
        let known = world.secrets.entry(Arc::from(host)).or_default();
        if known.iter().any(|(before, _)| before == secret) {
            return;
        }
        let key = secret.strip_prefix("whsec_").unwrap_or(secret);
        let key = STANDARD.decode(key).unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        known.push((secret.to_owned(), key));
    }

    fn signed(&self, host: &str, content: &[u8], signatures: &str) -> Signed {
        let signatures = signatures.split(' ');
        let signatures =
            signatures.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
        let signatures: Vec<_> = signatures.collect();
        let by = |(_, key): &(String, hmac::Key)| {
            let mut each = signatures.iter();
            each.any(|one| hmac::verify(key, content, one).is_ok())
        };
        let world = lock(&self.world);
        let known = world.secrets.get(host).map_or(&[][..], Vec::as_slice);
        match known.split_last() {
            Some((present, _)) if by(present) => Signed::Now,
            Some((_, before)) if before.iter().any(by) => Signed::Before,
            _ => Signed::No,
        }
    }

    /// All endpoints behave well from now on.
    pub fn heal(&self) {
        let mut world = lock(&self.world);
        world.healed = true;
        world.cut.clear();
    }

    /// How long the response to a request takes, and what it is.
    fn choose(&self, host: &str) -> (Duration, Behaviour, bool) {
        let now = self.net.now() - super::history::EPOCH;
        let mut world = lock(&self.world);
        let healed = world.healed;
        let Some(endpoint) = world.all.get(host) else {
            return (Duration::ZERO, Behaviour::Refusing, false);
        };
        let phases = endpoint.phases.iter().rev();
        let mut phases = phases.filter(|(from, _)| *from <= now);
        let behaviour = phases.next().map_or(Behaviour::Well, |(_, what)| *what);
        let behaviour = if healed { Behaviour::Well } else { behaviour };
        let (least, most) = endpoint.latency;
        let latency = Duration::from_micros(world.rng.u64(least * 1000..=most * 1000));
        let bad = match behaviour {
            Behaviour::Status(_, of_100) => world.rng.u32(0..100) < of_100,
            _ => true,
        };
        (latency, behaviour, bad)
    }
}

/// The client of one process.
#[derive(Clone)]
pub struct Client {
    pub endpoints: Endpoints,
    pub instance: Arc<str>,
}

fn failed(class: FailureClass, error: &str) -> Reply<()> {
    Reply::Failed(Failure {
        class,
        error: error.to_owned(),
        heard: false,
        is_unprocessed: false,
    })
}

fn answered(status: u16, retry_after: Option<Duration>) -> Reply<()> {
    Reply::Answered(Answer {
        status,
        retry_after,
        headers: None,
        rest: None,
    })
}

/// The id of the event in a body, which all events of a world have in their data.
fn event_of(body: &[u8]) -> Arc<str> {
    let found: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let found = found
        .as_ref()
        .and_then(|body| body["data"]["event"].as_str());
    Arc::from(found.unwrap_or("?"))
}

impl Http for Client {
    type Rest = ();

    async fn post_until_processed(
        &self,
        build: impl Fn() -> HttpRequest,
        deadline: Instant,
    ) -> Reply<()> {
        let request = build();
        let host: Arc<str> = Arc::from(request.to.uri().host().unwrap_or_default());
        let header = |name: &str| {
            let value = request
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let id: Arc<str> = Arc::from(header("webhook-id"));
        let attempt = header("hookstream-attempt").parse().unwrap_or(0);
        let (latency, behaviour, bad) = self.endpoints.choose(&host);
        let unsent = || {
            let id = Arc::clone(&id);
            self.endpoints.note(What::Unsent { id, attempt });
        };
        if lock(&self.endpoints.world).cut.contains(&self.instance) {
            unsent();
            sleep(Duration::from_millis(20)).await;
            return failed(FailureClass::Connect, "network unreachable");
        }
        if behaviour == Behaviour::Refusing {
            unsent();
            sleep(latency / 2).await;
            return failed(FailureClass::Connect, "connection refused");
        }
        let timestamp = header("webhook-timestamp");
        let content = [
            id.as_bytes(),
            b".",
            timestamp.as_bytes(),
            b".",
            &request.body,
        ]
        .concat();
        let signatures = header("webhook-signature");
        let signed = self.endpoints.signed(&host, &content, &signatures);
        // Noted when it is sent: what is on its way arrives, whatever becomes of the process.
        self.endpoints.note(What::Request {
            replica: Arc::clone(&self.instance),
            host: Arc::clone(&host),
            id: Arc::clone(&id),
            attempt,
            body: Hash::of(&request.body),
            event: event_of(&request.body),
            signed,
        });
        sleep(latency / 2).await;
        let respond = |status| {
            self.endpoints.note(What::Response {
                host: Arc::clone(&host),
                id: Arc::clone(&id),
                attempt,
                status,
            });
        };
        let (wait, status, retry_after) = match behaviour {
            Behaviour::Well | Behaviour::Refusing => (latency / 2, 200, None),
            Behaviour::Status(status, _) if bad => (latency / 2, status, None),
            Behaviour::Status(..) => (latency / 2, 200, None),
            Behaviour::Throttling(seconds) => {
                (latency / 2, 429, Some(Duration::from_secs(seconds)))
            }
            Behaviour::Slow(ms) => (Duration::from_millis(ms), 200, None),
            Behaviour::Hanging => {
                sleep_until(deadline).await;
                respond(0);
                return failed(FailureClass::Timeout, "no response headers in time");
            }
        };
        let until = Instant::now() + wait;
        // Receivers answer although nobody waits any more: what they accepted is accepted.
        respond(status);
        if until > deadline {
            sleep_until(deadline).await;
            return failed(FailureClass::Timeout, "no response headers in time");
        }
        sleep_until(until).await;
        answered(status, retry_after)
    }

    async fn exchange(
        &self,
        _method: http::Method,
        request: HttpRequest,
        deadline: Instant,
    ) -> Reply<()> {
        self.post_until_processed(|| request.clone(), deadline)
            .await
    }

    async fn drain((): (), _deadline: Instant) -> Drained {
        Drained::Complete
    }

    async fn read_snippet((): (), _deadline: Instant) -> (Vec<u8>, Drained) {
        (Vec::new(), Drained::Complete)
    }
}
