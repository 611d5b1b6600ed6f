//! What a process tells over HTTP: `/metrics` for Prometheus, `/livez` and `/readyz` for Kubernetes.
//!
//! Ready means that every role of the process does its work. Alive means that every role's loop goes round: a role
//! that waits for a broker is alive, one that hangs in the client library is not, and is to be restarted.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::cli::outcome::{CliError, Exit};
use crate::clock;
use crate::kafka::watchdog::{self, Brokers};
use crate::lag::figures::{Board, Query};
use crate::metrics::Metrics;

/// Connections served at a time; more wait in the listener's queue.
const CONNECTIONS: usize = 64;
/// How long a client may take to send a request's headers.
const HEADERS: Duration = Duration::from_secs(10);

/// What a role is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It gets ready; why not yet.
    Starting(String),
    /// It waits for a broker; for which.
    Waiting(String),
    /// It does its work.
    Ready,
    /// It finishes what it has begun.
    Draining,
    /// It cannot go on.
    Failed,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Waiting(_) => "waiting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Starting(reason) | Self::Waiting(reason) => Some(reason),
            Self::Ready | Self::Draining | Self::Failed => None,
        }
    }
}

#[derive(Debug)]
struct RoleHealth {
    state: State,
    beat: Instant,
    /// Without a beat for longer than this, the role is not alive.
    bound: Duration,
}

/// The state of every role of this process.
#[derive(Debug, Default)]
pub struct Health(Mutex<BTreeMap<&'static str, RoleHealth>>);

impl Health {
    /// No roles yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn roles(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, RoleHealth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts on `role`, which is alive as long as it beats at least every `bound`.
    pub fn register(&self, role: &'static str, bound: Duration) {
        let state = State::Waiting("starting".to_owned());
        self.roles().insert(
            role,
            RoleHealth {
                state,
                beat: clock::instant(),
                bound,
            },
        );
    }

    /// `role` is in `state` now.
    pub fn set(&self, role: &str, state: State) {
        if let Some(known) = self.roles().get_mut(role) {
            known.state = state;
            known.beat = clock::instant();
        }
    }

    /// The loop of `role` goes round.
    pub fn beat(&self, role: &str) {
        if let Some(known) = self.roles().get_mut(role) {
            known.beat = clock::instant();
        }
    }

    /// The state of each role: none does its work while no broker answers.
    fn states(&self, brokers: Brokers) -> Vec<(&'static str, State)> {
        let roles = self.roles();
        let each = roles.iter().map(|(name, role)| {
            let waits = brokers.away && role.state == State::Ready;
            let state = if waits {
                State::Waiting("no broker answers".to_owned())
            } else {
                role.state.clone()
            };
            (*name, state)
        });
        each.collect()
    }

    /// Whether all roles are ready, and what each is doing.
    #[must_use]
    pub fn readiness(&self, brokers: Brokers) -> (bool, serde_json::Value) {
        let states = self.states(brokers);
        let ready = !states.is_empty() && states.iter().all(|(_, state)| *state == State::Ready);
        let told: serde_json::Map<_, _> = states
            .iter()
            .map(|(name, state)| {
                let told = match state.reason() {
                    Some(reason) => serde_json::json!({"state": state.name(), "reason": reason}),
                    None => serde_json::json!({"state": state.name()}),
                };
                ((*name).to_owned(), told)
            })
            .collect();
        let status = if ready { "ready" } else { "not ready" };
        (ready, serde_json::json!({"status": status, "roles": told}))
    }

    /// Whether all roles were heard of within their bounds at `now`, and which were not. The time in which no broker
    /// answered does not count: a loop may wait for one within the client library, and a restart would not help.
    #[must_use]
    pub fn liveness(&self, now: Instant, brokers: Brokers) -> (bool, serde_json::Value) {
        let stale: serde_json::Map<_, _> = self
            .roles()
            .iter()
            .filter_map(|(name, role)| {
                let since = brokers.unreachable.map_or(role.beat, |at| at.max(role.beat));
                let silent = now.saturating_duration_since(since);
                let dead = silent > role.bound || role.state == State::Failed;
                dead.then(|| {
                    let told = serde_json::json!({"silent_seconds": silent.as_secs(), "bound_seconds": role.bound.as_secs(), "state": role.state.name()});
                    ((*name).to_owned(), told)
                })
            })
            .collect();
        let alive = stale.is_empty();
        let status = if alive { "alive" } else { "not alive" };
        (alive, serde_json::json!({"status": status, "stale": stale}))
    }
}

/// Listens on `address`, for [`serve`] in any runtime, and logs where: with port 0 the system chooses.
///
/// # Errors
/// [`CliError`] names the address and the flag, as when another process uses the port.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, CliError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listen().map_err(|error: std::io::Error| {
        CliError::new(
            Exit::Failure,
            format!(
                "cannot listen on {address}: {error}; choose another address with --http-listen"
            ),
        )
    })?;
    let local = listener.local_addr().unwrap_or(address);
    tracing::info!("listening http={local}");
    Ok(listener)
}

/// Serves until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Arc<Health>,
    board: Arc<Board>,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(shutdown);
    loop {
        let slot = tokio::select! {
            () = &mut shutdown => return,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let Ok(slot) = slot else {
            return;
        };
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, as a rule: taking a breath is all there is to do.
                tracing::warn!("accepting an HTTP connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (metrics, health, board) = (metrics.clone(), Arc::clone(&health), Arc::clone(&board));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = match request.uri().path() {
                    "/lag" if is_reading(request.method()) => lag(&board, request.uri().query()),
                    "/" if is_reading(request.method()) => page(),
                    path => answer(request.method(), path, &metrics, &health),
                };
                async move { Ok::<_, Infallible>(response) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("an HTTP connection ended: {error}");
            }
            drop(slot);
        });
    }
}

fn is_reading(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// The page for people: it asks `/lag`, and nothing else.
fn page() -> Response<Full<Bytes>> {
    /// Nothing from elsewhere, and nothing sent elsewhere.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    let mut response = text(
        StatusCode::OK,
        "text/html; charset=utf-8",
        include_str!("page.html").to_owned(),
    );
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        header::HeaderValue::from_static(POLICY),
    );
    response
}

/// The figures of the lag role, as far as they are asked for.
fn lag(board: &Board, query: Option<&str>) -> Response<Full<Bytes>> {
    let asked = match Query::parse(query.unwrap_or_default()) {
        Ok(asked) => asked,
        Err(mistake) => {
            return text(
                StatusCode::BAD_REQUEST,
                "text/plain",
                format!("{mistake}\n"),
            );
        }
    };
    let Some(figures) = board.get() else {
        let reason = "the lag role does not run in this process, or has not read anything yet\n";
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain",
            reason.to_owned(),
        );
    };
    match serde_json::to_string(&asked.apply(&figures)) {
        Ok(body) => text(StatusCode::OK, "application/json", body + "\n"),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            format!("{error}\n"),
        ),
    }
}

fn answer(
    method: &Method,
    path: &str,
    metrics: &Metrics,
    health: &Health,
) -> Response<Full<Bytes>> {
    if !is_reading(method) {
        let mut refused = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET and HEAD\n".to_owned(),
        );
        refused
            .headers_mut()
            .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let now = clock::instant();
    let brokers = watchdog::brokers(now);
    match path {
        "/metrics" => match render(metrics, health, brokers) {
            Ok(rendered) => text(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                rendered,
            ),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                format!("{error}\n"),
            ),
        },
        "/livez" => told(health.liveness(now, brokers)),
        "/readyz" => told(health.readiness(brokers)),
        _ => text(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there is /, /lag, /metrics, /livez and /readyz\n".to_owned(),
        ),
    }
}

fn render(
    metrics: &Metrics,
    health: &Health,
    brokers: Brokers,
) -> Result<String, prometheus::Error> {
    let states = health.states(brokers);
    let waits = |state: &State| matches!(state, State::Waiting(_));
    let is_up = !states.iter().any(|(_, state)| waits(state));
    metrics.broker_up().set(i64::from(is_up));
    for (role, state) in states {
        let ready = i64::from(state == State::Ready);
        metrics.role_ready(role).set(ready);
    }
    metrics.render()
}

fn told((well, body): (bool, serde_json::Value)) -> Response<Full<Bytes>> {
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, "application/json", format!("{body}\n"))
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(5);

    fn health(states: &[(&'static str, State)]) -> Health {
        let health = Health::new();
        for (role, state) in states {
            health.register(role, BOUND);
            health.set(role, state.clone());
        }
        health
    }

    fn status(path: &str, health: &Health) -> StatusCode {
        answer(&Method::GET, path, &Metrics::new(), health).status()
    }

    #[test]
    fn a_process_is_ready_when_all_its_roles_are() {
        assert_eq!(
            status("/readyz", &health(&[])),
            StatusCode::SERVICE_UNAVAILABLE
        );
        let half = health(&[
            ("fanout", State::Ready),
            ("deliver", State::Waiting("no broker".to_owned())),
        ]);
        assert_eq!(status("/readyz", &half), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            half.readiness(Brokers::default()).1["roles"]["deliver"]["reason"],
            "no broker"
        );
        half.set("deliver", State::Ready);
        assert_eq!(status("/readyz", &half), StatusCode::OK);
        half.set("deliver", State::Draining);
        assert_eq!(status("/readyz", &half), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn a_role_that_waits_is_alive_and_one_that_hangs_is_not() {
        let health = health(&[("fanout", State::Waiting("no broker".to_owned()))]);
        let now = clock::instant();
        assert!(health.liveness(now, Brokers::default()).0);
        let (alive, told) =
            health.liveness(now + BOUND + Duration::from_secs(1), Brokers::default());
        assert!(!alive);
        assert!(told["stale"]["fanout"]["silent_seconds"].as_u64().unwrap() > BOUND.as_secs());
    }

    #[test]
    fn without_a_broker_no_role_is_ready_and_all_are_alive() {
        let health = health(&[("fanout", State::Ready)]);
        let now = clock::instant() + BOUND * 3;
        let brokers = Brokers {
            away: true,
            unreachable: now.checked_sub(Duration::from_secs(2)),
        };
        let (ready, told) = health.readiness(brokers);
        assert!(!ready);
        assert_eq!(told["roles"]["fanout"]["reason"], "no broker answers");
        assert!(health.liveness(now, brokers).0);
        assert!(!health.liveness(now, Brokers::default()).0);
        let metrics = Metrics::new();
        let rendered = render(&metrics, &health, brokers).unwrap();
        assert!(rendered.contains("hookstream_broker_up 0"));
        assert!(rendered.contains("hookstream_role_ready{role=\"fanout\"} 0"));
        let rendered = render(&metrics, &health, Brokers::default()).unwrap();
        assert!(rendered.contains("hookstream_broker_up 1"));
        assert!(rendered.contains("hookstream_role_ready{role=\"fanout\"} 1"));
    }

    #[test]
    fn a_failed_role_is_not_alive() {
        assert_eq!(
            status("/livez", &health(&[("release", State::Failed)])),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let health = health(&[]);
        assert_eq!(status("/", &health), StatusCode::NOT_FOUND);
        let refused = answer(&Method::POST, "/metrics", &Metrics::new(), &health);
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status("/metrics", &health), StatusCode::OK);
    }

    const LOOPBACK: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A server on a port of its own; it ends when the sender says so.
    async fn server() -> (
        SocketAddr,
        tokio::sync::oneshot::Sender<()>,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::from_std(bind(LOOPBACK).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let health = Arc::new(health(&[("fanout", State::Ready)]));
        let serving = tokio::spawn(serve(
            listener,
            Metrics::new(),
            health,
            Arc::default(),
            async {
                stopped.await.ok();
            },
        ));
        (address, stop, serving)
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        let read = stream.read_to_string(&mut response);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        response
    }

    #[tokio::test]
    async fn a_server_answers_over_tcp() {
        let (address, stop, serving) = server().await;
        let get = |method: &str, path: &str| {
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        };
        let ready = exchange(address, &get("GET", "/readyz")).await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        assert!(
            ready
                .ends_with("{\"roles\":{\"fanout\":{\"state\":\"ready\"}},\"status\":\"ready\"}\n"),
            "{ready}"
        );
        let metrics = exchange(address, &get("GET", "/metrics")).await;
        assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("hookstream_build_info{"), "{metrics}");
        let head = exchange(address, &get("HEAD", "/livez")).await;
        assert!(head.ends_with("\r\n\r\n"), "HEAD has no body: {head}");
        let refused = exchange(address, &get("DELETE", "/livez")).await;
        assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, serving)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn clients_that_hold_every_connection_do_not_keep_it_from_stopping() {
        let (address, stop, serving) = server().await;
        let mut held = Vec::new();
        for _ in 0..=CONNECTIONS {
            held.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        // All but the last were accepted once the last that fits is answered; the server then waits for a slot.
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let last = &mut held[CONNECTIONS - 1];
        last.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut byte = [0];
        tokio::time::timeout(PATIENCE, last.read_exact(&mut byte))
            .await
            .unwrap()
            .unwrap();
        stop.send(()).unwrap();
        let stopped = tokio::time::timeout(HEADERS / 2, serving).await;
        assert!(
            stopped.is_ok(),
            "a server that waits for a slot must stop too"
        );
    }

    #[test]
    fn a_port_in_use_is_told_with_its_address_and_flag() {
        let first = bind(LOOPBACK).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        assert_eq!(error.exit, Exit::Failure);
        assert!(
            error.message.contains(&address.to_string()) && error.message.contains("--http-listen"),
            "{error}"
        );
    }
}
