//! The admin HTTP server: `/metrics` for Prometheus, `/livez` and `/readyz` for Kubernetes, and the pages of the roles.
//! With [`Access`], all but the probes need a token.
//!
//! A probe without a response ends the pod, so probes are served whatever other clients do: a connection is always
//! accepted, if need be in place of another one, and pages are rendered on other threads.
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | connections | `CONNECTIONS` | one is closed: of the address that has most, the one without a request for longest |
//! | headers of a request, and the wait for the next one | `HEADERS` | closed |
//! | pages that are rendered at the same time | `RENDERS` | wait; probes do not |

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use self::access::Access;
use self::access::Refused;
use super::health::{Health, State};
use super::metrics::{Metrics, Registry};
use crate::edge::clock;
use crate::edge::kafka::watchdog::Brokers;

mod access;
pub mod tls;

/// Maximum concurrent connections.
const CONNECTIONS: usize = 64;
/// Timeout for the headers of a request.
const HEADERS: Duration = Duration::from_secs(5);
/// Pages that are rendered at the same time.
const RENDERS: usize = 2;

/// The HTTP server cannot listen.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; choose another address with --http-listen")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// The response of a page.
#[derive(Debug)]
pub struct Page {
    /// The status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Content-Security-Policy`, for pages with scripts.
    pub policy: Option<&'static str>,
    /// The body.
    pub body: String,
}

/// Renders a page for a query.
pub type Handler = Box<dyn Fn(Option<&str>) -> Page + Send + Sync>;

/// A page of a role.
pub struct Route {
    /// The path, starting with `/`.
    pub path: &'static str,
    /// Called for each request, with the query.
    pub page: Handler,
}

/// Everything that the server serves.
pub struct Site {
    /// Rendered at `/metrics`.
    pub registry: Registry,
    /// Metrics that are updated on each scrape.
    pub metrics: Metrics,
    /// Rendered at `/livez` and `/readyz`.
    pub health: Arc<Health>,
    /// Whether brokers respond, at a time.
    pub brokers: fn(Instant) -> Brokers,
    /// The pages of the roles.
    pub routes: Vec<Route>,
    /// Who may read everything but the probes.
    pub access: Access,
}

/// Listens on `address`, for [`serve`] in any runtime, and logs the actual address.
///
/// # Errors
/// [`BindError`] names the address and the flag, for example when the port is in use.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, BindError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listen().map_err(|source| BindError { address, source })?;
    let local = listener.local_addr().unwrap_or(address);
    tracing::info!("listening http={local}");
    Ok(listener)
}

/// Serves `site` until `shutdown`.
///
/// With `tls`, over TLS only.
pub async fn serve(
    listener: TcpListener,
    site: Arc<Site>,
    tls: Option<TlsAcceptor>,
    shutdown: impl Future<Output = ()>,
) {
    let open = Arc::new(Open::default());
    let renders = Arc::new(Semaphore::new(RENDERS));
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Usually too many open files; all that helps is to wait.
                tracing::warn!("accepting an HTTP connection failed: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (site, renders, all) = (Arc::clone(&site), Arc::clone(&renders), Arc::clone(&open));
        let tls = tls.clone();
        let mut connections = open.connections();
        let id = connections.next();
        let task = tokio::spawn(async move {
            let own = Entry { open: all, id };
            let (site, renders, connection) = (&site, &renders, &own);
            let service = service_fn(move |request: Request<Incoming>| async move {
                connection.set_rendering(true);
                let response = respond(site, renders, request).await;
                connection.set_rendering(false);
                Ok::<_, Infallible>(response)
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADERS);
            let served = match tls {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => match timeout(HEADERS, tls.accept(stream)).await {
                    Ok(Ok(stream)) => http.serve_connection(TokioIo::new(stream), service).await,
                    Ok(Err(error)) => {
                        tracing::debug!("TLS of an HTTP connection failed: {error}");
                        return;
                    }
                    Err(_) => return,
                },
            };
            if let Err(error) = served {
                tracing::debug!("HTTP connection failed: {error}");
            }
        });
        connections.add(id, peer.ip(), task.abort_handle());
    }
}

/// Probes are answered at once; everything else is rendered on another thread, in turn.
async fn respond(
    site: &Arc<Site>,
    renders: &Arc<Semaphore>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    if matches!(uri.path(), "/livez" | "/readyz") {
        return site.respond(&method, uri.path(), uri.query());
    }
    let site = Arc::clone(site);
    // It fails only when it was closed, which nobody does.
    let Ok(permit) = Arc::clone(renders).acquire_owned().await else {
        return failed();
    };
    let headers = request.headers().clone();
    let rendered = tokio::task::spawn_blocking(move || {
        let response = match site.access.check(&headers) {
            Ok(()) => site.respond(&method, uri.path(), uri.query()),
            Err(refused) => denied(refused),
        };
        drop(permit);
        response
    });
    rendered.await.unwrap_or_else(|error| {
        tracing::error!("a page was not rendered: {error}");
        failed()
    })
}

fn denied(refused: Refused) -> Response<Full<Bytes>> {
    let mut response = text(refused.status, "text/plain", refused.text.to_owned());
    if refused.status == StatusCode::UNAUTHORIZED {
        // Browsers ask for a password then.
        for scheme in ["Bearer realm=\"hookstream\"", "Basic realm=\"hookstream\""] {
            response.headers_mut().append(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static(scheme),
            );
        }
    }
    response
}

fn failed() -> Response<Full<Bytes>> {
    let why = "the page was not rendered, see the log\n".to_owned();
    text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", why)
}

/// The open connections.
#[derive(Debug, Default)]
struct Open(Mutex<Connections>);

impl Open {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in [`Open`] until its task ends.
struct Entry {
    open: Arc<Open>,
    id: u64,
}

impl Entry {
    fn set_rendering(&self, rendering: bool) {
        self.open.connections().request(self.id, rendering);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.connections().all.remove(&self.id);
    }
}

#[derive(Debug)]
struct Connections<H = AbortHandle> {
    all: BTreeMap<u64, Connection<H>>,
    /// The number of connections and requests so far.
    count: u64,
}

#[derive(Debug)]
struct Connection<H> {
    peer: IpAddr,
    /// Its place in the order of connections and requests.
    last: u64,
    /// Whether a response is being made.
    rendering: bool,
    task: H,
}

impl<H> Default for Connections<H> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            count: 0,
        }
    }
}

impl<H: Close> Connections<H> {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Adds a connection; closes another one if there are too many.
    fn add(&mut self, id: u64, peer: IpAddr, task: H) {
        if self.all.len() >= CONNECTIONS
            && let Some(victim) = self.victim()
            && let Some(victim) = self.all.remove(&victim)
        {
            victim.task.close();
        }
        let connection = Connection {
            peer,
            last: id,
            rendering: false,
            task,
        };
        self.all.insert(id, connection);
    }

    fn request(&mut self, id: u64, rendering: bool) {
        let last = self.next();
        if let Some(connection) = self.all.get_mut(&id) {
            connection.rendering = rendering;
            connection.last = last;
        }
    }

    /// Of the addresses with most connections, the one that has been without a request for longest.
    fn victim(&self) -> Option<u64> {
        let mut by_peer: HashMap<IpAddr, usize> = HashMap::new();
        for connection in self.all.values() {
            *by_peer.entry(connection.peer).or_default() += 1;
        }
        let most = by_peer.values().max().copied()?;
        let of_most = self.all.iter();
        let of_most = of_most.filter(|(_, connection)| by_peer[&connection.peer] == most);
        of_most
            .min_by_key(|(_, connection)| (connection.rendering, connection.last))
            .map(|(&id, _)| id)
    }
}

/// The end of a connection from outside.
trait Close {
    fn close(self);
}

impl Close for AbortHandle {
    fn close(self) {
        self.abort();
    }
}

fn is_reading(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

impl Site {
    fn respond(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        if !is_reading(method) {
            let mut refused = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain",
                "use GET or HEAD\n".to_owned(),
            );
            refused
                .headers_mut()
                .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        if let Some(route) = self.routes.iter().find(|route| route.path == path) {
            return render_page((route.page)(query));
        }
        let now = clock::instant();
        let brokers = (self.brokers)(now);
        match path {
            "/metrics" => match self.render(&brokers) {
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
            "/livez" => probe(self.health.liveness(now, &brokers)),
            "/readyz" => probe(self.health.readiness(&brokers)),
            _ => text(
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found; available: /, /lag, /lag/history, /metrics, /livez, /readyz\n"
                    .to_owned(),
            ),
        }
    }

    fn render(&self, brokers: &Brokers) -> Result<String, prometheus::Error> {
        let states = self.health.states(brokers);
        let waits = |state: &State| matches!(state, State::Waiting(_));
        let is_up = !states.iter().any(|(_, state)| waits(state));
        self.metrics.broker_up().set(i64::from(is_up));
        for (role, state) in states {
            let ready = i64::from(state == State::Ready);
            self.metrics.role_ready(role).set(ready);
        }
        self.registry.render()
    }
}

fn render_page(page: Page) -> Response<Full<Bytes>> {
    let mut response = text(page.status, page.content_type, page.body);
    if let Some(policy) = page.policy {
        response.headers_mut().insert(
            header::CONTENT_SECURITY_POLICY,
            header::HeaderValue::from_static(policy),
        );
    }
    response
}

fn probe((well, body): (bool, serde_json::Value)) -> Response<Full<Bytes>> {
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
    use tokio::net::TcpStream;

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

    fn site(health: Health) -> Site {
        let registry = Registry::new();
        Site {
            metrics: Metrics::register(&registry),
            registry,
            health: Arc::new(health),
            brokers: |_| Brokers::default(),
            routes: Vec::new(),
            access: Access::default(),
        }
    }

    fn status(path: &str, health: Health) -> StatusCode {
        site(health).respond(&Method::GET, path, None).status()
    }

    #[test]
    fn a_process_is_ready_when_all_its_roles_are() {
        assert_eq!(
            status("/readyz", health(&[])),
            StatusCode::SERVICE_UNAVAILABLE
        );
        let half = health(&[
            ("fanout", State::Ready),
            ("deliver", State::Waiting("no broker".to_owned())),
        ]);
        let half = site(half);
        let status_of = |site: &Site| site.respond(&Method::GET, "/readyz", None).status();
        assert_eq!(status_of(&half), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            half.health.readiness(&Brokers::default()).1["roles"]["deliver"]["reason"],
            "no broker"
        );
        half.health.set("deliver", State::Ready);
        assert_eq!(status_of(&half), StatusCode::OK);
        half.health.set("deliver", State::Draining);
        assert_eq!(status_of(&half), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn without_a_broker_no_role_is_ready_and_all_are_alive() {
        let health = health(&[("fanout", State::Ready)]);
        let now = clock::instant() + BOUND * 3;
        let brokers = Brokers {
            away: true,
            outage: Some(now),
            ..Brokers::default()
        };
        let (ready, told) = health.readiness(&brokers);
        assert!(!ready);
        assert_eq!(told["roles"]["fanout"]["reason"], "no broker answers");
        assert!(health.liveness(now, &brokers).0);
        assert!(!health.liveness(now, &Brokers::default()).0);
        let site = site(health);
        let rendered = site.render(&brokers).unwrap();
        assert!(rendered.contains("hookstream_broker_up 0"));
        assert!(rendered.contains("hookstream_role_ready{role=\"fanout\"} 0"));
        let rendered = site.render(&Brokers::default()).unwrap();
        assert!(rendered.contains("hookstream_broker_up 1"));
        assert!(rendered.contains("hookstream_role_ready{role=\"fanout\"} 1"));
    }

    #[test]
    fn a_failed_role_is_not_alive() {
        assert_eq!(
            status("/livez", health(&[("release", State::Failed)])),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }

    #[test]
    fn other_paths_and_methods_are_rejected() {
        assert_eq!(status("/", health(&[])), StatusCode::NOT_FOUND);
        let refused = site(health(&[])).respond(&Method::POST, "/metrics", None);
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status("/metrics", health(&[])), StatusCode::OK);
    }

    const LOOPBACK: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A server on a free port; stops on a message from the sender.
    async fn server() -> (
        SocketAddr,
        tokio::sync::oneshot::Sender<()>,
        tokio::task::JoinHandle<()>,
    ) {
        serving(Vec::new()).await
    }

    /// The same, with pages.
    async fn serving(
        routes: Vec<Route>,
    ) -> (
        SocketAddr,
        tokio::sync::oneshot::Sender<()>,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::from_std(bind(LOOPBACK).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let site = Arc::new(Site {
            routes,
            ..site(health(&[("fanout", State::Ready)]))
        });
        let serving = tokio::spawn(serve(listener, site, None, async {
            stopped.await.ok();
        }));
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
    async fn a_server_responds_over_tcp() {
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

    const PROBE: &str = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    /// Opens connections and writes `beginning` on each.
    async fn hold(address: SocketAddr, count: usize, beginning: &str) -> Vec<TcpStream> {
        use tokio::io::AsyncWriteExt;
        let mut held = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // One that makes room for another is closed meanwhile.
            stream.write_all(beginning.as_bytes()).await.ok();
            held.push(stream);
        }
        held
    }

    #[tokio::test]
    async fn probes_are_served_while_others_hold_half_sent_requests() {
        let (address, stop, serving) = server().await;
        for count in [CONNECTIONS, 300, 1] {
            let held = hold(address, count, "GET /metrics HTTP/1.1\r\nho").await;
            let asked = clock::instant();
            for _ in 0..10 {
                let response = exchange(address, PROBE).await;
                assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
            }
            let took = clock::instant() - asked;
            assert!(
                took < HEADERS / 2,
                "{count} clients delay probes by {took:?}"
            );
            drop(held);
        }
        // Clients that hold all connections do not delay the end either.
        let _held = hold(address, CONNECTIONS, "GET").await;
        stop.send(()).unwrap();
        let stopped = tokio::time::timeout(HEADERS / 2, serving).await;
        assert!(stopped.is_ok(), "the server must stop");
    }

    #[tokio::test]
    async fn probes_are_served_while_pages_hang() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let held = Mutex::new(held);
        let (address, stop, serving) = serving(vec![Route {
            path: "/slow",
            page: Box::new(move |_| {
                held.lock().unwrap().recv().unwrap_or_default();
                Page {
                    status: StatusCode::OK,
                    content_type: "text/plain",
                    policy: None,
                    body: String::new(),
                }
            }),
        }])
        .await;
        let slow = "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
        let _held = self::hold(address, 2 * CONNECTIONS, slow).await;
        for _ in 0..10 {
            let response = exchange(address, PROBE).await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        }
        drop(hold);
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, serving)
            .await
            .unwrap()
            .unwrap();
    }

    /// What was closed.
    #[derive(Clone, Default)]
    struct Closed(std::rc::Rc<std::cell::RefCell<Vec<u64>>>, u64);

    impl Close for Closed {
        fn close(self) {
            self.0.borrow_mut().push(self.1);
        }
    }

    #[test]
    fn a_new_connection_takes_the_place_of_the_least_useful_one() {
        let closed = Closed::default();
        let mut connections = Connections::default();
        let [flood, scraper, other] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let open = |connections: &mut Connections<Closed>, peer| {
            let id = connections.next();
            connections.add(id, peer, Closed(std::rc::Rc::clone(&closed.0), id));
            id
        };
        let scrape = open(&mut connections, scraper);
        let first: Vec<u64> = (1..CONNECTIONS)
            .map(|_| open(&mut connections, flood))
            .collect();
        connections.request(first[0], true);
        connections.request(first[1], true);
        connections.request(first[1], false);
        for _ in 0..2 * CONNECTIONS {
            open(&mut connections, flood);
        }
        assert_eq!(connections.all.len(), CONNECTIONS);
        let order = closed.0.borrow().clone();
        assert_eq!(order[..2], first[2..4], "without a request for longest");
        assert!(order.contains(&first[1]), "its response was made");
        assert!(!order.contains(&first[0]), "its response is being made");
        assert!(!order.contains(&scrape), "the address with most pays");
        // Even when all are busy, a new one gets a place.
        let ids: Vec<u64> = connections.all.keys().copied().collect();
        ids.iter().for_each(|&id| connections.request(id, true));
        let new = open(&mut connections, other);
        assert!(connections.all.contains_key(&new));
        assert_eq!(connections.all.len(), CONNECTIONS);
    }

    #[test]
    fn a_port_in_use_is_reported_with_address_and_flag() {
        let first = bind(LOOPBACK).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&address.to_string()) && text.contains("--http-listen"),
            "{text}"
        );
    }
}
