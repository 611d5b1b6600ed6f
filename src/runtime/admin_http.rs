//! The admin HTTP server: `/metrics` for Prometheus, `/livez` and `/readyz` for Kubernetes, and the pages of the roles.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::health::{Health, State};
use super::metrics::{Metrics, Registry};
use crate::edge::clock;
use crate::edge::kafka::watchdog::Brokers;

/// Maximum concurrent connections; more wait in the listener's queue.
const CONNECTIONS: usize = 64;
/// Timeout for the headers of a request.
const HEADERS: Duration = Duration::from_secs(10);

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
pub async fn serve(listener: TcpListener, site: Arc<Site>, shutdown: impl Future<Output = ()>) {
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
                // Usually too many open files; all that helps is to wait.
                tracing::warn!("accepting an HTTP connection failed: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let uri = request.uri();
                let response = site.respond(request.method(), uri.path(), uri.query());
                async move { Ok::<_, Infallible>(response) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("HTTP connection failed: {error}");
            }
            drop(slot);
        });
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
            "/metrics" => match self.render(brokers) {
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
            "/livez" => probe(self.health.liveness(now, brokers)),
            "/readyz" => probe(self.health.readiness(brokers)),
            _ => text(
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found; available: /, /lag, /metrics, /livez, /readyz\n".to_owned(),
            ),
        }
    }

    fn render(&self, brokers: Brokers) -> Result<String, prometheus::Error> {
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
            half.health.readiness(Brokers::default()).1["roles"]["deliver"]["reason"],
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
            unreachable: now.checked_sub(Duration::from_secs(2)),
        };
        let (ready, told) = health.readiness(brokers);
        assert!(!ready);
        assert_eq!(told["roles"]["fanout"]["reason"], "no broker answers");
        assert!(health.liveness(now, brokers).0);
        assert!(!health.liveness(now, Brokers::default()).0);
        let site = site(health);
        let rendered = site.render(brokers).unwrap();
        assert!(rendered.contains("hookstream_broker_up 0"));
        assert!(rendered.contains("hookstream_role_ready{role=\"fanout\"} 0"));
        let rendered = site.render(Brokers::default()).unwrap();
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
        let listener = TcpListener::from_std(bind(LOOPBACK).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let site = Arc::new(site(health(&[("fanout", State::Ready)])));
        let serving = tokio::spawn(serve(listener, site, async {
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

    #[tokio::test]
    async fn clients_that_hold_all_connections_do_not_prevent_shutdown() {
        let (address, stop, serving) = server().await;
        let mut held = Vec::new();
        for _ in 0..=CONNECTIONS {
            held.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        // Once the last that fits gets a response, all slots are taken and the server waits for one.
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
