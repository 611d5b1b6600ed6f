//! Subscription lookups of partitions: reads the cache and prepares endpoints.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::partition::env::{Standing, Subscriptions, Terms, Unavailable};
use super::partition::lane::{Limits, Rate};
use super::refused::{Reason, Refused};
use super::request::Target;
use super::secrets::{MISSING_SECRET, SECRET_FILE, Secret, Secrets, Wake};
use super::shares::Shares;
use super::tokens::{Asked, Token, Tokens, Wanted};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::egress::EgressPolicy;
use crate::edge::failpoint;
use crate::edge::http::{Tls, TlsMaker};
use crate::edge::kafka::status_cache::StatusCache;
use crate::edge::kafka::subscription_cache::{Known, SubscriptionCache};
use crate::model::envelope::{Keys, Owner, Sealed};
use crate::model::expiry::default_max_age;
use crate::model::status::Status;
use crate::model::subscription::{Auth, SecretSource, State, Subscription};

/// Looks up subscriptions for one worker.
pub(super) struct Directory {
    /// The subscription cache.
    pub(super) table: Arc<SubscriptionCache>,
    /// What former owners wrote about endpoints.
    pub(super) statuses: Arc<StatusCache>,
    /// Which endpoints may be reached.
    pub(super) policy: Arc<EgressPolicy>,
    /// Defaults for what a subscription does not set.
    pub(super) settings: Arc<Settings>,
    /// Secrets, of signatures and of headers.
    pub(super) secrets: Arc<Secrets>,
    /// Tokens that requests authenticate with.
    pub(super) tokens: Arc<Tokens>,
    /// Makes what the connections of subscriptions with authorities or certificates of their own are made with.
    pub(super) trust: Arc<TlsMaker>,
    /// How many requests each host and subscriber may have in flight on this worker.
    pub(super) shares: Shares,
    /// The subscriptions that cannot be served.
    pub(super) refused: Arc<Refused>,
    /// Lets the worker ask for terms again when a secret was read.
    pub(super) wake: Wake,
}

/// The token of a subscription, if it has one, and for how long it is valid.
type TokenInUse = (Option<Arc<Token>>, Validity);

/// How long terms are valid without a change of the subscription; `None`: without limit.
type Validity = Option<Duration>;

impl Directory {
    fn standing(
        &self,
        subscription: &Arc<Subscription>,
        before: Option<&Rc<Target>>,
    ) -> (Standing<Rc<Target>>, Validity) {
        match subscription.state {
            State::Paused | State::Pending => return (Standing::Waiting, None),
            State::Disabled => return (Standing::Disabled, None),
            State::Active => {}
        }
        let served = self.served(subscription, before);
        match &served.0 {
            Standing::Open(_) => self.refused.is_served(&subscription.id),
            Standing::Denied(denied) => self.refused.note(subscription, Reason::Egress, denied),
            Standing::Unusable(error) => self.refused.note(subscription, Reason::Secret, error),
            Standing::Loading | Standing::Waiting | Standing::Disabled => {}
        }
        served
    }

    /// The endpoint of a subscription, whatever its state: open, loading, denied or unusable.
    pub(super) fn served(
        &self,
        subscription: &Arc<Subscription>,
        before: Option<&Rc<Target>>,
    ) -> (Standing<Rc<Target>>, Validity) {
        if let Err(denied) = self.policy.check_url(&subscription.url.to_url()) {
            return (Standing::Denied(denied.to_string().into()), None);
        }
        let open = self.open(subscription, before);
        open.unwrap_or_else(|error| (Standing::Unusable(error.into()), Some(MISSING_SECRET)))
    }

    /// The endpoint, once its secrets are known: `before` if neither the subscription nor a secret has changed.
    fn open(
        &self,
        subscription: &Arc<Subscription>,
        before: Option<&Rc<Target>>,
    ) -> Result<(Standing<Rc<Target>>, Validity), String> {
        /// While a file is read again.
        const SOON: Duration = Duration::from_secs(1);
        let rules = &self.settings.secret_rules;
        let now = clock::now();
        let signing = subscription.secrets.iter();
        let have_ended = signing.clone().map(|secret| secret.has_ended(now));
        let have_ended = have_ended.chain(std::iter::repeat(false));
        let default = self.default_certificate(subscription);
        // All of them, so that they are read at the same time.
        let secrets: Vec<Secret> = subscription
            .sources()
            .zip(have_ended)
            .map(|(source, has_ended)| {
                if has_ended {
                    return Ok(Secret::nothing());
                }
                let dir = rules.check(&subscription.subscriber, source)?;
                Ok(match source {
                    SecretSource::Encrypted(sealed) => self.decrypted(sealed, subscription),
                    _ => self.secrets.get(source, dir, &self.wake),
                })
            })
            .chain(default.iter().flatten().map(|source| {
                // The operator's own: no rule restricts it.
                Ok(self.secrets.get(source, None, &self.wake))
            }))
            .collect::<Result<_, String>>()?;
        let (mut texts, mut loading, mut again) = (Vec::with_capacity(secrets.len()), false, false);
        for secret in secrets {
            match secret {
                Secret::Known { text, again: more } => {
                    texts.push(text);
                    again |= more;
                }
                Secret::Reading => loading = true,
                Secret::Unusable(error) => return Err(error),
            }
        }
        failpoint::panics_with("secrets.read", || texts.join(" "));
        let loaded = match loading {
            true => None,
            false => self.token(subscription, &texts)?,
        };
        let Some((token, token_valid_for)) = loaded else {
            return Ok((Standing::Loading, Some(Duration::ZERO)));
        };
        let target = match before {
            Some(same) if same.is_of(subscription, &texts) => Rc::clone(same),
            _ => Rc::new({
                let tls = self.tls(subscription, &texts, default.is_some())?;
                let url = subscription.url.to_url();
                let shared = self.shares.of(&url, &subscription.subscriber);
                Target::new(subscription, &self.settings, texts, token, tls, shared, now)?
            }),
        };
        let valid_for = match target.reads_files() || default.is_some() {
            true if again => Some(SOON),
            true => Some(SECRET_FILE),
            false => None,
        };
        let ends = signing.filter(|secret| !secret.has_ended(now));
        let ends = ends.filter_map(|secret| Some(secret.until?.since(now)));
        let valid_for = valid_for.into_iter().chain(token_valid_for);
        let valid_for = valid_for.chain(ends).min();
        Ok((Standing::Open(target), valid_for))
    }

    /// The operator's certificate and its key, for a subscription without its own.
    fn default_certificate(&self, subscription: &Subscription) -> Option<[SecretSource; 2]> {
        let is_needed = subscription.overrides.tls.client.is_none() && subscription.url.is_https();
        let (certificate, key) = self.settings.client_certificate.as_ref()?;
        is_needed.then(|| [certificate, key].map(|path| SecretSource::File(path.as_path().into())))
    }

    /// A secret of the record, decrypted with the operator's keys.
    fn decrypted(&self, sealed: &Sealed, subscription: &Subscription) -> Secret {
        let Some(path) = &self.settings.kek_file else {
            return Secret::Unusable(format!(
                "its secret is encrypted with the key {}, and --kek-file is not set",
                sealed.key()
            ));
        };
        let file = SecretSource::File(path.as_path().into());
        let (text, again) = match self.secrets.get(&file, None, &self.wake) {
            Secret::Known { text, again } => (text, again),
            other => return other,
        };
        let keys = match Keys::read(&text) {
            Ok(keys) => keys,
            Err(error) => {
                return Secret::Unusable(format!("--kek-file {}: {error}", path.display()));
            }
        };
        let owner = Owner {
            subscriber: &subscription.subscriber,
            id: &subscription.id,
        };
        match keys.open(sealed, owner) {
            Ok(text) => Secret::Known {
                text: text.into(),
                again,
            },
            Err(error) => Secret::Unusable(format!("its secret {error}")),
        }
    }

    /// What the connections of a subscription are made with, if not with the defaults. `secrets` are the texts of its
    /// sources, and those of the operator's certificate if it `has_default`.
    fn tls(
        &self,
        subscription: &Subscription,
        secrets: &[Arc<str>],
        has_default: bool,
    ) -> Result<Option<Arc<Tls>>, String> {
        let texts = subscription.sort(secrets);
        let ca = texts.ca.map(|text| &**text);
        let client = match secrets {
            [.., certificate, key] if has_default => Some((certificate, key)),
            _ => texts.certificate.zip(texts.key),
        };
        let client = client.map(|(certificate, key)| (&**certificate, &**key));
        if ca.is_none() && client.is_none() {
            return Ok(None);
        }
        self.trust.tls(ca, client).map(Some)
    }

    /// The token of a subscription, if it has one, and for how long it is valid; `None` while it is fetched. `secrets` are
    /// the texts of its sources.
    fn token(
        &self,
        subscription: &Subscription,
        secrets: &[Arc<str>],
    ) -> Result<Option<TokenInUse>, String> {
        let secret = subscription.sort(secrets).auth;
        let (Some(Auth::OAuth2(oauth)), Some(secret)) = (&subscription.overrides.auth, secret)
        else {
            return Ok(Some((None, None)));
        };
        let denied = self.policy.check_url(&oauth.token_url);
        denied.map_err(|denied| format!("auth: token_url: {denied}"))?;
        let wanted = Wanted::new(oauth, secret);
        match self.tokens.get(&wanted, &self.wake) {
            Asked::Valid(token, left) => Ok(Some((Some(token), Some(left)))),
            Asked::Fetching => Ok(None),
            Asked::Unusable(reason) => Err(format!("auth: {reason}")),
        }
    }
}

impl Subscriptions for Directory {
    type Endpoint = Rc<Target>;

    fn version(&self) -> u64 {
        self.table.version()
    }

    fn get(&self, id: &str, subscriber: &str) -> Result<Arc<Subscription>, Unavailable> {
        match self.table.get(id) {
            Known::Valid(found) if *found.subscriber == *subscriber => Ok(found),
            Known::Valid(found) => Err(Unavailable::Foreign(found.subscriber.as_str().into())),
            Known::Invalid => Err(Unavailable::Invalid),
            Known::Missing => Err(Unavailable::Missing),
        }
    }

    fn status(&self, id: &str, subscriber: &str) -> Option<Arc<Status>> {
        self.statuses.get(id, subscriber)
    }

    fn statuses_version(&self) -> u64 {
        self.statuses.version()
    }

    fn terms(
        &self,
        subscription: &Arc<Subscription>,
        before: Option<&Rc<Target>>,
    ) -> Terms<Rc<Target>> {
        let (standing, valid_for) = self.standing(subscription, before);
        Terms {
            standing,
            limits: limits(subscription, &self.settings),
            order: subscription.order,
            max_age: max_age(subscription, &self.settings),
            resumed_at: subscription.resumed_at(),
            valid_for,
        }
    }
}

/// The maximum age of a subscription's commands: its own, else the operator's, else as long as its schedule can last.
fn max_age(subscription: &Subscription, settings: &Settings) -> Duration {
    subscription
        .overrides
        .max_age
        .or(settings.max_age)
        .unwrap_or_else(|| {
            let own = subscription.overrides.retry_schedule.as_ref();
            let schedule = own.unwrap_or(&settings.retry_schedule);
            let timeout = subscription.overrides.timeout.unwrap_or(settings.timeout);
            default_max_age(schedule, timeout, settings.tiers.delays()[0])
        })
}

/// The lane limits of a subscription.
fn limits(subscription: &Subscription, settings: &Settings) -> Limits {
    Limits {
        breaker: settings.breaker.with(&subscription.overrides.breaker),
        max_in_flight: usize::try_from(subscription.max_in_flight).unwrap_or(usize::MAX),
        rate: subscription.rate_limit.as_deref().map(|limit| Rate {
            per_second: limit.per_second,
            burst: f64::from(limit.burst),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::config::{EgressSettings, Layers, Machine, Source};
    use crate::delivery::metrics::DeliveryMetrics;
    use crate::delivery::partition::Partition;
    use crate::delivery::partition::effect::{Effect, Effects, Outcome};
    use crate::delivery::partition::env::{Env, Memory, NoticeRules, Rules};
    use crate::delivery::partition::event::{Event, Incoming};
    use crate::delivery::secrets::Reader;
    use crate::edge::clock;
    use crate::edge::http::HttpOptions;
    use crate::edge::live::Live;
    use crate::edge::port::Port;
    use crate::model::command::{Command, tests::sample};
    use crate::model::outcome::ParkReason;
    use crate::model::subscription::TopicRecord;
    use crate::model::units::{Offset, Position};
    use crate::model::window::Window;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A partition over a real directory, with a stub that reads the files.
    struct Scene {
        directory: Directory,
        machine: Partition<Rc<Target>>,
        woken: Receiver<()>,
        next: i64,
    }

    impl Scene {
        fn new(read: Arc<Reader>) -> Self {
            let mut layers = Layers::new();
            layers.give("brokers", Source::Flag, "b:1");
            let machine = Machine {
                host_name: "h".to_owned(),
                cores: 1,
            };
            let settings = Settings::check(&layers, &machine).unwrap();
            let rules = Rules {
                cluster: "cluster".into(),
                tiers: settings.tiers.clone(),
                order_bytes: 1 << 20,
                defers: true,
                notices: NoticeRules {
                    after: Duration::from_secs(300),
                    disable_after: None,
                },
            };
            let (wake, woken) = channel();
            let policy = EgressPolicy::new(&EgressSettings::default());
            let client = Live.http(HttpOptions::new(Arc::new(policy.clone())));
            let tokens = Tokens::start(&Live, client.unwrap()).unwrap();
            Self {
                directory: Directory {
                    table: Arc::default(),
                    statuses: Arc::default(),
                    policy: Arc::new(policy),
                    settings: Arc::new(settings),
                    secrets: Arc::new(Secrets::over(read)),
                    tokens: Arc::new(tokens),
                    trust: Arc::default(),
                    shares: Shares::default(),
                    refused: Arc::new(Refused::new(DeliveryMetrics::register(
                        &crate::runtime::metrics::Registry::new(),
                    ))),
                    wake: Arc::new(move || wake.send(()).unwrap_or_default()),
                },
                machine: Partition::new(Arc::new(rules), Window::new(Position(0))),
                woken,
                next: 0,
            }
        }

        fn put(&self, id: &str, secret: &str, state: &str) {
            self.put_record(serde_json::json!({
                "id": id, "subscriber": "acme", "events": ["**"], "url": "https://example.com/",
                "secrets": [secret], "state": state,
            }));
        }

        fn put_record(&self, record: serde_json::Value) {
            let id = record["id"].as_str().unwrap();
            let (key, value) = (Some(id.as_bytes()), record.to_string());
            let record = TopicRecord {
                key,
                value: Some(value.as_bytes()),
                applied: None,
                partition: None,
                timestamp: None,
            };
            let applied = self.directory.table.apply(&record);
            assert!(applied.is_ok(), "{value}: {applied:?}");
        }

        /// Applies an event and gives every lane that asks for one its turn; returns what else is to be done.
        fn apply(&mut self, event: Event<Rc<Target>>) -> Vec<Effect<Rc<Target>>> {
            let mut random = fastrand::Rng::with_seed(1);
            let mut effects = Effects::default();
            let env = Env {
                now: clock::instant(),
                wall: clock::now(),
                memory: Memory::Plenty,
                subscriptions: &self.directory,
            };
            self.machine.apply(event, &env, &mut random, &mut effects);
            let mut rest = Vec::new();
            while !effects.list.is_empty() {
                for effect in std::mem::take(&mut effects.list) {
                    match effect {
                        Effect::Ready(lane) => {
                            let turn = Event::Turn { lane, spare: 100 };
                            self.machine.apply(turn, &env, &mut random, &mut effects);
                        }
                        other => rest.push(other),
                    }
                }
            }
            rest
        }

        fn take(&mut self, id: &str) -> Vec<Effect<Rc<Target>>> {
            let command = Command {
                subscription: id.into(),
                subscriber: "acme".into(),
                due: None,
                enqueued: clock::now(),
                ..sample()
            };
            let offset = Offset(self.next);
            self.next += 1;
            self.apply(Event::Taken(vec![Incoming {
                offset,
                content: Ok(Box::new(command)),
                mark: None,
            }]))
        }
    }

    fn sent(effects: &[Effect<Rc<Target>>]) -> Vec<Rc<Target>> {
        let each = effects.iter();
        each.filter_map(|effect| match effect {
            Effect::Send(attempt) => Some(Rc::clone(&attempt.endpoint)),
            _ => None,
        })
        .collect()
    }

    /// The effects of a command of `s` until it waits in a tier. Its secret may be read before it is asked for again.
    fn parked(scene: &mut Scene) -> Vec<Effect<Rc<Target>>> {
        let is_parked = |effect: &Effect<_>| matches!(effect, Effect::Parked(ParkReason::Paused));
        let mut effects = scene.take("s");
        let deadline = clock::instant() + PATIENCE;
        while !effects.iter().any(is_parked) {
            assert!(clock::instant() < deadline, "its command does not wait");
            std::thread::yield_now();
            effects.extend(scene.apply(Event::Tick));
        }
        effects
    }

    #[test]
    fn a_change_of_one_subscription_reads_no_secret_of_the_others() {
        let mut scene = Scene::new(Arc::new(|_: &Path| Ok(SECRET.to_owned())));
        let ids: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
        for id in &ids {
            scene.put(id, &format!("file:/secrets/{id}"), "active");
        }
        let mut before = Vec::new();
        for id in &ids {
            let mut now = sent(&scene.take(id));
            while now.is_empty() {
                scene.woken.recv_timeout(PATIENCE).unwrap();
                now = sent(&scene.apply(Event::Tick));
            }
            before.append(&mut now);
        }
        assert_eq!(scene.directory.secrets.reads(), 20);
        for round in 0..2 {
            scene.put("other", &format!("env:NONE_{round}"), "paused");
            for (id, before) in ids.iter().zip(&before) {
                let now = sent(&scene.take(id));
                assert!(
                    Rc::ptr_eq(&now[0], before),
                    "the endpoint of {id} was made again"
                );
            }
        }
        assert_eq!(scene.directory.secrets.reads(), 20);
        scene.put("s3", "file:/secrets/new", "active");
        let mut now = sent(&scene.take("s3"));
        while now.is_empty() {
            scene.woken.recv_timeout(PATIENCE).unwrap();
            now = sent(&scene.apply(Event::Tick));
        }
        assert!(!Rc::ptr_eq(&now[0], &before[3]));
        assert_eq!(scene.directory.secrets.reads(), 21);
    }

    #[test]
    fn commands_wait_in_their_lane_while_a_secret_is_read_and_others_are_sent() {
        let (give, given) = channel::<Result<String, String>>();
        let given = Mutex::new(given);
        let mut scene = Scene::new(Arc::new(move |_: &Path| {
            given.lock().unwrap().recv().unwrap()
        }));
        scene.put("slow", "file:/slow/secret", "active");
        scene.put("well", SECRET, "active");
        for _ in 0..3 {
            assert!(scene.take("slow").is_empty(), "neither sent nor parked");
        }
        assert_eq!(sent(&scene.take("well")).len(), 1);
        assert!(sent(&scene.apply(Event::Tick)).is_empty());
        give.send(Ok(SECRET.to_owned())).unwrap();
        scene.woken.recv_timeout(PATIENCE).unwrap();
        assert_eq!(sent(&scene.apply(Event::Tick)).len(), 3);
        assert_eq!(scene.directory.secrets.reads(), 1);
    }

    #[test]
    fn commands_whose_secret_cannot_be_read_wait_in_a_tier() {
        let mut scene = Scene::new(Arc::new(|_: &Path| Err("it is a FIFO".to_owned())));
        scene.put("s", "file:/fifo", "active");
        let effects = parked(&mut scene);
        assert!(sent(&effects).is_empty());
        let written = |effect: &Effect<_>| matches!(effect, Effect::Write(_, Outcome::Tier(..)));
        assert_eq!(effects.iter().filter(|effect| written(effect)).count(), 1);
    }

    #[test]
    fn a_header_is_read_like_a_secret_and_its_commands_wait_without_it() {
        let content = Arc::new(Mutex::new(Err("No such file".to_owned())));
        let given = Arc::clone(&content);
        let mut scene = Scene::new(Arc::new(move |path: &Path| {
            assert_eq!(path, Path::new("/run/token"));
            given.lock().unwrap().clone()
        }));
        scene.put_record(serde_json::json!({
            "id": "s", "subscriber": "acme", "events": ["**"], "url": "https://example.com/", "secrets": [SECRET],
            "headers": {"x-tenant": "acme", "authorization": "Bearer file:/run/token"},
        }));
        assert!(sent(&parked(&mut scene)).is_empty());
        let refused = &scene.directory.refused;
        assert_eq!(refused.logged(), 1);

        *content.lock().unwrap() = Ok("hush\n".to_owned());
        let secrets = &scene.directory.secrets;
        secrets.expire(Path::new("/run/token"));
        let id = scene.directory.get("s", "acme").unwrap();
        let deadline = clock::instant() + PATIENCE;
        let target = loop {
            assert!(clock::instant() < deadline, "the header was never read");
            match scene.directory.terms(&id, None).standing {
                Standing::Open(target) => break target,
                _ => std::thread::yield_now(),
            }
        };
        let request = target.request(&sample(), None, clock::now());
        assert_eq!(request.headers["authorization"], "Bearer hush");
        assert!(request.headers["authorization"].is_sensitive());
        assert_eq!(request.headers["x-tenant"], "acme");
        assert_eq!(refused.logged(), 0, "it is served again");
    }

    #[test]
    fn a_subscription_that_cannot_be_served_is_logged_once_for_each_reason() {
        let scene = Scene::new(Arc::new(|_: &Path| Ok(SECRET.to_owned())));
        for number in 0..3 {
            let id = format!("s{number}");
            scene.put_record(serde_json::json!({
                "id": id, "subscriber": "acme", "events": ["**"], "url": "https://10.0.0.5/",
            }));
            let known = scene.directory.get(&id, "acme").unwrap();
            for _ in 0..5 {
                let standing = scene.directory.terms(&known, None).standing;
                assert!(matches!(standing, Standing::Denied(_)));
            }
        }
        assert_eq!(scene.directory.refused.logged(), 3);
        assert_eq!(scene.directory.refused.count(Reason::Egress), 15);
    }

    #[test]
    fn a_token_endpoint_that_egress_denies_is_not_asked_and_named() {
        let scene = Scene::new(Arc::new(|_: &Path| Ok("hush".to_owned())));
        let inside = [
            "https://169.254.169.254/latest/api/token",
            "https://metadata.google.internal/token",
            "https://10.0.0.5/token",
            "http://idp.example/token",
        ];
        for (number, url) in inside.into_iter().enumerate() {
            let id = format!("s{number}");
            scene.put_record(serde_json::json!({
                "id": id, "subscriber": "acme", "events": ["**"], "url": "https://example.com/",
                "auth": {"type": "oauth2", "token_url": url, "client_id": "c", "client_secret": "file:/run/client"},
            }));
            let known = scene.directory.get(&id, "acme").unwrap();
            let deadline = clock::instant() + PATIENCE;
            let reason = loop {
                assert!(
                    clock::instant() < deadline,
                    "{url}: its secret was never read"
                );
                match scene.directory.terms(&known, None).standing {
                    Standing::Unusable(reason) => break reason,
                    Standing::Loading => std::thread::yield_now(),
                    _ => panic!("{url} may be asked"),
                }
            };
            assert!(reason.starts_with("auth: token_url: "), "{url}: {reason}");
        }
    }
}
