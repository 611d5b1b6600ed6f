//! Tokens of a server that the test plays.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::edge::live::Live;
use crate::model::subscription::{SecretSource, parse};

const PATIENCE: Duration = Duration::from_secs(10);
const OK: &str = r#"{"access_token":"TOKEN","token_type":"Bearer","expires_in":3600}"#;

/// A token server: each request is reported, and waits for its response.
#[derive(Clone)]
struct Server {
    requests: Sender<Request>,
    responses: Arc<Mutex<VecDeque<(u16, String)>>>,
}

impl Http for Server {
    type Rest = Vec<u8>;

    async fn post_until_processed(
        &self,
        build: impl Fn() -> Request,
        _: tokio::time::Instant,
    ) -> Reply<Vec<u8>> {
        self.requests.send(build()).unwrap_or_default();
        loop {
            let next = self.responses.lock().unwrap().pop_front();
            if let Some((status, body)) = next {
                return Reply::Answered(Answer {
                    status,
                    retry_after: None,
                    headers: None,
                    rest: Some(body.into_bytes()),
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn exchange(
        &self,
        _method: http::Method,
        request: Request,
        deadline: tokio::time::Instant,
    ) -> Reply<Vec<u8>> {
        self.post_until_processed(|| request.clone(), deadline)
            .await
    }

    async fn drain(_: Vec<u8>, _: tokio::time::Instant) -> Drained {
        Drained::Complete
    }

    async fn read_snippet(rest: Vec<u8>, _: tokio::time::Instant) -> (Vec<u8>, Drained) {
        (rest, Drained::Complete)
    }
}

struct Scene {
    tokens: Tokens,
    requests: Receiver<Request>,
    responses: Arc<Mutex<VecDeque<(u16, String)>>>,
    wake: Wake,
    woken: Receiver<()>,
    issued: u32,
}

impl Scene {
    fn new() -> Self {
        let (send, requests) = channel();
        let responses = Arc::default();
        let server = Server {
            requests: send,
            responses: Arc::clone(&responses),
        };
        // The client is the stub, whose type is not the port's.
        let (new, mut started) = unbounded_channel();
        let fetching = move || async move {
            while let Some(token) = started.recv().await {
                Live.spawn_local(keep(server.clone(), token));
            }
        };
        drop(Live.spawn_worker("tokens".to_owned(), fetching).unwrap());
        let (wake, woken) = channel();
        Self {
            tokens: Tokens {
                all: Mutex::default(),
                new,
            },
            requests,
            responses,
            wake: Arc::new(move || wake.send(()).unwrap_or_default()),
            woken,
            issued: 0,
        }
    }

    fn respond(&self, status: u16, body: &str) {
        let mut responses = self.responses.lock().unwrap();
        responses.push_back((status, body.to_owned()));
    }

    /// Issues the next token.
    fn issue(&mut self) {
        self.issued += 1;
        self.respond(200, &OK.replace("TOKEN", &format!("token-{}", self.issued)));
    }

    fn request(&self) -> Request {
        self.requests.recv_timeout(PATIENCE).unwrap()
    }

    fn ask(&self, wanted: &Wanted) -> Asked {
        self.tokens.get(wanted, &self.wake)
    }

    fn woken(&self) {
        self.woken.recv_timeout(PATIENCE).unwrap();
    }

    #[track_caller]
    fn valid(&self, wanted: &Wanted) -> Arc<Token> {
        match self.ask(wanted) {
            Asked::Valid(token, _) => token,
            Asked::Fetching => panic!("it is being fetched"),
            Asked::Unusable(reason) => panic!("{reason}"),
        }
    }

    fn quiet(&self) -> bool {
        self.requests
            .recv_timeout(Duration::from_millis(50))
            .is_err()
    }
}

fn oauth(change: &str) -> Box<OAuth2> {
    let auth = r#"{"type":"oauth2","token_url":"https://idp.example/token","client_id":"me","client_secret":"env:S"}"#;
    let auth = auth.replace("\"me\"", &format!("\"me\"{change}"));
    let record = format!(
        r#"{{"id":"s","subscriber":"a","url":"https://a.example/","events":["**"],"auth":{auth}}}"#
    );
    let subscription = parse(None, record.as_bytes()).unwrap();
    match &subscription.overrides.auth {
        Some(crate::model::subscription::Auth::OAuth2(oauth)) => oauth.clone(),
        other => panic!("{other:?}"),
    }
}

fn wanted() -> Wanted {
    Wanted::new(&oauth(""), &Arc::from("hush"))
}

fn shown(token: &Token) -> String {
    let header = token.header().unwrap();
    assert!(header.is_sensitive());
    header.to_str().unwrap().to_owned()
}

fn within() -> tokio::time::Instant {
    tokio::time::Instant::now() + PATIENCE
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

#[test]
fn all_who_need_a_token_wait_for_one_request() {
    let mut scene = Scene::new();
    for _ in 0..5 {
        assert!(matches!(scene.ask(&wanted()), Asked::Fetching));
    }
    let request = scene.request();
    assert_eq!(request.headers["authorization"], "Basic bWU6aHVzaA==");
    assert_eq!(request.body, "grant_type=client_credentials");
    scene.issue();
    scene.woken();
    assert_eq!(shown(&scene.valid(&wanted())), "Bearer token-1");
    assert!(scene.quiet(), "one request was enough");
}

#[test]
fn no_token_is_shared_across_servers_clients_secrets_scopes_or_audiences() {
    let scene = Scene::new();
    let secret = Arc::from("hush");
    let mut other_url = oauth("");
    other_url.token_url = "https://idp.example/other".parse().unwrap();
    let mut other_client = oauth("");
    other_client.client_id = "you".into();
    let all = [
        wanted(),
        Wanted::new(&other_url, &secret),
        Wanted::new(&other_client, &secret),
        Wanted::new(&oauth(""), &Arc::from("other")),
        Wanted::new(&oauth(r#","scopes":["a"]"#), &secret),
        Wanted::new(&oauth(r#","audience":"a""#), &secret),
    ];
    for one in &all {
        assert!(matches!(scene.ask(one), Asked::Fetching));
        drop(scene.request());
    }
    // From where the secret was read makes no difference.
    let mut elsewhere = oauth("");
    elsewhere.client_secret = SecretSource::Env("T".into());
    assert!(Wanted::new(&elsewhere, &secret) == wanted());
}

#[test]
fn a_token_is_renewed_at_three_quarters_of_its_life() {
    let mut scene = Scene::new();
    drop(scene.ask(&wanted()));
    drop(scene.request());
    scene.respond(200, r#"{"access_token":"short","expires_in":2}"#);
    scene.woken();
    let began = clock::instant();
    let token = scene.valid(&wanted());
    drop(scene.request());
    let after = clock::instant() - began;
    assert!(after >= Duration::from_millis(1400), "{after:?}");
    scene.issue();
    while shown(&token) != "Bearer token-1" {
        assert!(clock::instant() - began < PATIENCE, "it was not renewed");
        std::thread::yield_now();
    }
}

#[test]
fn without_a_token_the_reason_is_named_until_the_server_is_back() {
    let mut scene = Scene::new();
    drop(scene.ask(&wanted()));
    drop(scene.request());
    scene.respond(503, "hush");
    scene.woken();
    let Asked::Unusable(reason) = scene.ask(&wanted()) else {
        panic!("there is no token");
    };
    assert_eq!(reason, "no token from idp.example: status 503");
    drop(scene.request());
    scene.issue();
    scene.woken();
    assert_eq!(shown(&scene.valid(&wanted())), "Bearer token-1");
}

#[test]
fn a_server_that_reads_no_header_gets_the_client_in_the_body() {
    let mut scene = Scene::new();
    drop(scene.ask(&wanted()));
    drop(scene.request());
    scene.respond(401, r#"{"error":"invalid_client"}"#);
    let second = scene.request();
    assert!(!second.headers.contains_key("authorization"));
    assert_eq!(
        second.body,
        "grant_type=client_credentials&client_id=me&client_secret=hush"
    );
    scene.issue();
    scene.woken();
    drop(scene.valid(&wanted()));
}

#[test]
fn of_many_requests_that_were_unauthorized_one_renews_the_token() {
    let mut scene = Scene::new();
    drop(scene.ask(&wanted()));
    drop(scene.request());
    scene.issue();
    scene.woken();
    let token = scene.valid(&wanted());
    let used = token.header();
    let renew = |token: &Arc<Token>| {
        let (token, used) = (Arc::clone(token), used.clone());
        std::thread::spawn(move || block_on(token.renewed(used.as_deref(), within())))
    };
    let waiting: Vec<_> = (0..3).map(|_| renew(&token)).collect();
    drop(scene.request());
    scene.issue();
    for one in waiting {
        assert_eq!(one.join().unwrap(), Renewed::Another);
    }
    assert_eq!(shown(&token), "Bearer token-2");
    // A late one that was sent with the former token, and one with the new token, which comes too soon.
    let again = block_on(token.renewed(used.as_deref(), within()));
    assert_eq!(again, Renewed::Another);
    let soon = block_on(token.renewed(token.header().as_deref(), within()));
    assert_eq!(soon, Renewed::No);
    assert!(scene.quiet(), "two requests were enough");
}

#[test]
fn a_token_server_that_is_down_is_not_the_fault_of_the_endpoint() {
    let mut scene = Scene::new();
    drop(scene.ask(&wanted()));
    drop(scene.request());
    scene.issue();
    scene.woken();
    let token = scene.valid(&wanted());
    let used = token.header();
    scene.respond(500, "");
    let failed = block_on(token.renewed(used.as_deref(), within()));
    assert_eq!(
        failed,
        Renewed::Failed("no token from idp.example: status 500".to_owned())
    );
}

#[test]
fn a_token_that_nobody_uses_is_forgotten() {
    let now = clock::instant();
    let token = Arc::new(Token::new(wanted(), now));
    let table = Arc::clone(&token);
    assert!(!token.forget(now + FORGET / 2), "somebody has just asked");
    let target = Arc::clone(&token);
    assert!(!token.forget(now + FORGET), "a subscription uses it");
    drop(target);
    assert!(token.forget(now + FORGET));
    let wake: Wake = Arc::new(|| {});
    assert!(table.ask(&wake, now).is_none(), "another one is made");
}
