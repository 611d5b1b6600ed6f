//! Deliveries over TLS, HTTP/1.1 and HTTP/2, to one origin and to many: CPU beside a raw client, memory of an idle
//! connection, handshakes and how many of them resume a session.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use crate::Scale;
use crate::deliver::{DONE, fill_for, helper};
use crate::receiver::origin;
use crate::reference::{posted, print_done};
use crate::report::Report;
use crate::stage::{Cost, Helper, Kafka, Problem, World, median, subscription};

/// Of the row with one origin.
const SUBSCRIPTIONS: usize = 10;

struct Case {
    protocol: &'static str,
    origins: usize,
    commands: usize,
}

impl Case {
    fn name(&self) -> String {
        format!("tls-{}-{}", self.protocol, self.origins)
    }

    /// How the receiver answers. Without a hint, connections are closed before their memory at rest is looked at.
    fn kind(&self) -> &'static str {
        match self.protocol {
            "h1" => "kept",
            _ => "ok",
        }
    }

    fn lanes(&self) -> usize {
        self.origins.max(SUBSCRIPTIONS)
    }

    /// One subscription for each origin, with one request at a time, or some for one.
    fn subscriptions(&self, port: &str, kind: &str) -> Vec<Value> {
        let each = (0..self.lanes()).map(|number| {
            let at = origin(number % self.origins);
            let mut one = subscription(number, &format!("https://{at}:{port}/{kind}/{number}"));
            if self.origins > 1 {
                one["max_in_flight"] = json!(1);
            }
            one
        });
        each.collect()
    }

    fn receiver(&self, file: &str) -> Result<Helper, Problem> {
        let origins = self.origins.to_string();
        Helper::start("receiver", &[file, "resumed", self.protocol, &origins])
    }
}

fn number(seen: &Value, name: &str) -> Result<f64, Problem> {
    Ok(seen[name].as_f64().ok_or(format!("no {name}"))?)
}

/// What one run has shown.
struct Run {
    /// CPU of a delivery on open connections, µs.
    micros: f64,
    /// MiB at rest, with these connections open.
    memory: f64,
    connected: f64,
}

/// One worker delivers everything; the first commands of each lane, which open connections, do not count.
fn deliver(
    world: &World<'_>,
    receiver: &mut Helper,
    case: &Case,
    name: &str,
    flags: &[&str],
) -> Result<Run, Problem> {
    let flags = [&["--workers", "1"], flags].concat();
    let role = world.again(name).start("deliver", &flags)?;
    let warm = 2 * case.lanes();
    let (first, _) = role.wait(&DONE, warm as f64)?;
    let begun = role.sum(&DONE)?;
    let (last, _) = role.wait(&DONE, case.commands as f64)?;
    let micros = (last.cpu - first.cpu) / (case.commands as f64 - begun) * 1e6;
    // Memory of the burst is freed by then.
    std::thread::sleep(Duration::from_secs(3));
    let seen = receiver.ask("report")?;
    let run = Run {
        micros,
        memory: role.resident()?,
        connected: number(&seen, "connected")?,
    };
    role.stop()?;
    Ok(run)
}

/// The same lanes and commands without connections at rest: each is closed after its request. Without TLS, since handshakes
/// would take too long.
fn without_connections(kafka: &Kafka, case: &Case) -> Result<Run, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let each = (0..case.lanes()).map(|number| {
        let mut one = subscription(number, &format!("http://127.0.0.1:{port}/close/{number}"));
        one["max_in_flight"] = json!(1);
        one
    });
    let name = format!("{}-close", case.name());
    let world = World::new(kafka, &name, 12, &each.collect::<Vec<_>>())?;
    fill_for(kafka, &world.commands(), case.commands, case.lanes())?;
    deliver(&world, &mut receiver, case, &name, &[])
}

fn measure(
    kafka: &Kafka,
    scale: &Scale,
    report: &mut Report,
    case: &Case,
    file: &str,
) -> Result<(), Problem> {
    let mut receiver = case.receiver(file)?;
    let port = receiver.line()?;
    let name = case.name();
    let world = World::new(kafka, &name, 12, &case.subscriptions(&port, case.kind()))?;
    fill_for(kafka, &world.commands(), case.commands, case.lanes())?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for run in 0..scale.runs {
        receiver.ask("reset")?;
        let flags = ["--ca-file", file];
        let name = format!("{name}-{run}");
        ours.push(deliver(&world, &mut receiver, case, &name, &flags)?);
        if case.origins == 1 {
            let count = case.commands.to_string();
            let arguments = [&*port, &count, "80", file, case.protocol];
            raw.push(helper("tls-client", &arguments)?);
        }
    }
    let what = format!("tls: {}, {} origin(s)", case.protocol, case.origins);
    let micros = median(ours.iter().map(|run| run.micros));
    report.at_most(
        &format!("{what}: CPU of a delivery"),
        micros,
        " µs",
        if case.origins > 1 { 20.0 } else { 17.0 },
    );
    if !raw.is_empty() {
        let of = |cost: &Cost| cost.cpu / case.commands as f64 * 1e6;
        let raw = median(raw.iter().map(of));
        report.tells(
            &format!("{what}: CPU of a request of a raw client"),
            raw,
            " µs",
        );
        report.tells(
            &format!("{what}: relative to the raw client"),
            micros / raw,
            " x",
        );
    } else if case.protocol == "h1" {
        let closed = without_connections(kafka, case)?;
        let with = median(ours.iter().map(|run| run.memory));
        let open = median(ours.iter().map(|run| run.connected));
        report.tells(&format!("{what}: connections at rest"), open, "");
        report.at_most(
            &format!("{what}: memory of a connection at rest"),
            (with - closed.memory) * 1024.0 / (open - closed.connected).max(1.0),
            " KiB",
            30.0,
        );
    }
    Ok(())
}

/// Every connection is closed after its request: handshakes, and how many resume.
fn handshakes(
    kafka: &Kafka,
    scale: &Scale,
    report: &mut Report,
    origins: usize,
    file: &str,
) -> Result<(), Problem> {
    let case = Case {
        protocol: "h1",
        origins,
        commands: scale.pick(4, 10) * origins,
    };
    let mut receiver = case.receiver(file)?;
    let subscriptions = case.subscriptions(&receiver.line()?, "close");
    let world = World::new(kafka, "tls-handshakes", 12, &subscriptions)?;
    fill_for(kafka, &world.commands(), case.commands, case.lanes())?;
    let flags = ["--workers", "1", "--ca-file", file];
    let role = world.again("tls-handshakes").start("deliver", &flags)?;
    let (cost, seconds) = role.wait(&DONE, case.commands as f64)?;
    role.stop()?;
    let seen = receiver.ask("report")?;
    let made = number(&seen, "connections")?;
    let of = format!("tls: {origins} origins, closed after each request");
    report.tells(&format!("{of}: handshakes"), made / seconds, "/s");
    report.tells(
        &format!("{of}: CPU of a handshake and its delivery"),
        cost.cpu / made * 1e6,
        " µs",
    );
    let later = made - origins as f64;
    report.at_least(
        &format!("{of}: resumed handshakes, without the first of each origin"),
        number(&seen, "resumed")? / later * 100.0,
        " %",
        90.0,
    );
    Ok(())
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let file = std::env::current_dir()?.join("target/bench/authority.pem");
    let file = file.to_string_lossy().into_owned();
    let (many, commands) = scale.pick((200, 40_000), (2_000, 200_000));
    for origins in [1, many] {
        for protocol in ["h1", "h2"] {
            let case = Case {
                protocol,
                origins,
                commands,
            };
            measure(kafka, scale, report, &case, &file)?;
        }
    }
    handshakes(kafka, scale, report, many, &file)?;
    Ok(std::fs::remove_file(file)?)
}

/// PORT COUNT TASKS FILE PROTOCOL: POSTs over TLS, on one thread; over HTTP/1.1 each task has its connection, over HTTP/2
/// they share one.
pub fn client(arguments: &[String]) -> Result<(), Problem> {
    let (port, count): (u16, usize) = (arguments[0].parse()?, arguments[1].parse()?);
    let tasks: usize = arguments[2].parse()?;
    let is_h2 = arguments[4] == "h2";
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&arguments[3])? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if is_h2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let connector = TlsConnector::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let connect = async || {
            let stream = tokio::net::TcpStream::connect((origin(0), port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::IpAddress(std::net::IpAddr::V4(origin(0)).into());
            Ok::<_, Problem>(TokioIo::new(connector.connect(name, stream).await?))
        };
        let share = move |task: usize| count / tasks + usize::from(task < count % tasks);
        let uri = format!("https://127.0.0.1:{port}/ok/0");
        let mut each = Vec::new();
        if is_h2 {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), connect().await?).await?;
            tokio::spawn(connection);
            for task in 0..tasks {
                let (mut sender, uri) = (sender.clone(), uri.clone());
                each.push(tokio::spawn(async move {
                    for _ in 0..share(task) {
                        sender.ready().await.expect("the connection is open");
                        read(sender.send_request(posted(&uri)).await).await;
                    }
                }));
            }
        } else {
            for task in 0..tasks {
                let (mut sender, connection) = http1::handshake(connect().await?).await?;
                tokio::spawn(connection);
                let uri = uri.clone();
                each.push(tokio::spawn(async move {
                    for _ in 0..share(task) {
                        sender.ready().await.expect("the connection is open");
                        read(sender.send_request(posted(&uri)).await).await;
                    }
                }));
            }
        }
        for task in each {
            task.await?;
        }
        Ok::<(), Problem>(())
    })?;
    print_done()
}

async fn read(answer: hyper::Result<hyper::Response<hyper::body::Incoming>>) {
    let answer = answer.expect("the receiver answers").into_body();
    answer.collect().await.expect("the body is read");
}
