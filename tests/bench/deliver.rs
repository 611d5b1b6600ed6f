//! Delivery's speed, beside a raw client's, in the same run: `make bench-deliver`.
//!
//! The commands are written to a real Kafka once. Then, in turn, `hookstream deliver` sends all of them to a local
//! receiver, and a raw hyper client sends requests of the same size to the same receiver, as many in flight. Both
//! are processes of their own, and so is the receiver; what counts is the CPU time that the system accounts to the
//! sender, from its start, since wall time is noisy on a shared machine. The figures are medians.
//!
//! Arguments: `--commands N` (200000), `--runs N` (3), `--workers N` (1).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench reads the clock itself, and what fails ends it"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, producer::DefaultProducerContext};

const SUBSCRIPTIONS: usize = 10;
const IN_FLIGHT_EACH: usize = 8;
const BODY: usize = 1024;
/// `cargo bench` passes this to every bench.
const CARGO_FLAG: &str = "--bench";

type Problem = Box<dyn std::error::Error>;

fn main() -> Result<(), Problem> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != CARGO_FLAG)
        .collect();
    match arguments.first().map(String::as_str) {
        Some("receiver") => receiver(),
        Some("raw") => raw(arguments[1].parse()?, arguments[2].parse()?),
        _ => bench(&Options::read(&arguments)?),
    }
}

struct Options {
    commands: usize,
    runs: usize,
    workers: usize,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self, Problem> {
        let mut options = Self {
            commands: 200_000,
            runs: 3,
            workers: 1,
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} needs a value", pair[0]).into());
            };
            let value = value.parse()?;
            match name.as_str() {
                "--commands" => options.commands = value,
                "--runs" => options.runs = value,
                "--workers" => options.workers = value,
                _ => {
                    return Err(format!(
                        "{name} is not known; there are --commands, --runs and --workers"
                    )
                    .into());
                }
            }
        }
        Ok(options)
    }
}

/// What one sender needed for all.
#[derive(Clone, Copy)]
struct Figure {
    cpu: f64,
    wall: f64,
    /// Peak resident memory, MiB.
    memory: f64,
}

fn bench(options: &Options) -> Result<(), Problem> {
    let mut kafka = Kafka::start()?;
    let receiver = Helper::start(&["receiver"])?;
    let port = receiver.line.trim().to_owned();
    prepare(&kafka.address, &port, options.commands)?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for run in 0..options.runs {
        ours.push(deliver(&kafka.address, options, run)?);
        raw.push(raw_run(&port, options.commands)?);
        eprintln!(
            "run {}: hookstream {:.2} s CPU, {:.2} s; raw {:.2} s CPU, {:.2} s",
            run + 1,
            ours[run].cpu,
            ours[run].wall,
            raw[run].cpu,
            raw[run].wall
        );
    }
    kafka.stop();
    report(options, &ours, &raw)
}

fn median(figures: &[Figure], of: impl Fn(&Figure) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(options: &Options, ours: &[Figure], raw: &[Figure]) -> Result<(), Problem> {
    let commands = options.commands as f64;
    let mut table = format!(
        "{} commands of {BODY} bytes, signed, {SUBSCRIPTIONS} subscriptions with {IN_FLIGHT_EACH} in flight each, {} worker(s), medians of {} runs:\n\n\
         | sender | deliveries/s | CPU ms per 1,000 | deliveries per CPU second | peak memory |\n|---|---|---|---|---|\n",
        options.commands, options.workers, options.runs
    );
    let mut json = serde_json::Map::new();
    for (name, figures) in [("hookstream deliver", ours), ("raw hyper client", raw)] {
        let (cpu, wall) = (
            median(figures, |figure| figure.cpu),
            median(figures, |figure| figure.wall),
        );
        let memory = median(figures, |figure| figure.memory);
        table.push_str(&format!(
            "| {name} | {:.0} | {:.1} | {:.0} | {memory:.0} MiB |\n",
            commands / wall,
            cpu / commands * 1e6,
            commands / cpu
        ));
        json.insert(name.to_owned(), serde_json::json!({"cpu_seconds": cpu, "wall_seconds": wall, "peak_memory_mib": memory}));
    }
    let ratios: Vec<Figure> = ours
        .iter()
        .zip(raw)
        .map(|(ours, raw)| Figure {
            cpu: ours.cpu / raw.cpu,
            wall: ours.wall / raw.wall,
            memory: 0.0,
        })
        .collect();
    let ratio = median(&ratios, |figure| figure.cpu);
    table.push_str(&format!(
        "\nCPU of hookstream over CPU of the raw client, pair by pair, median: {ratio:.2}\n"
    ));
    json.insert("commands".to_owned(), options.commands.into());
    json.insert("cpu_ratio".to_owned(), ratio.into());
    println!("{table}");
    std::fs::create_dir_all("target/bench")?;
    std::fs::write("target/bench/deliver.md", table)?;
    std::fs::write(
        "target/bench/deliver.json",
        serde_json::to_string_pretty(&json)?,
    )?;
    Ok(())
}

/// A real Kafka that ends with this process: its standard input is held open.
struct Kafka {
    child: Child,
    address: String,
}

impl Kafka {
    fn start() -> Result<Self, Problem> {
        let mut child = Command::new("scripts/kafka")
            .arg("run")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut address)?;
        if address.trim().is_empty() {
            return Err("Kafka did not start".into());
        }
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }

    fn stop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("Kafka did not stop: {error}");
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.stop();
    }
}

/// This program again, in another part; ended when dropped.
struct Helper {
    child: Child,
    line: String,
}

impl Helper {
    fn start(arguments: &[&str]) -> Result<Self, Problem> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        Ok(Self { child, line })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Answers 200 to everything.
fn receiver() -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        std::io::stdout().flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let answer = service_fn(
                    |request: hyper::Request<hyper::body::Incoming>| async move {
                        request.into_body().collect().await?;
                        Ok::<_, hyper::Error>(hyper::Response::new(Full::<Bytes>::default()))
                    },
                );
                // The sender closes when it has done.
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await
                    .ok();
            });
        }
    })
}

/// What a well-written client costs: pooled connections, one task for each request in flight, one thread.
fn raw(port: u16, count: usize) -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = Bytes::from(vec![b'x'; BODY]);
    runtime.block_on(async move {
        let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
        connector.set_nodelay(true);
        let client: hyper_util::client::legacy::Client<_, Full<Bytes>> =
            hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        let tasks = SUBSCRIPTIONS * IN_FLIGHT_EACH;
        let each: Vec<_> = (0..tasks)
            .map(|task| {
                let (client, body) = (client.clone(), body.clone());
                let mine = count / tasks + usize::from(task < count % tasks);
                let uri = format!("http://127.0.0.1:{port}/{}", task % SUBSCRIPTIONS);
                tokio::spawn(async move {
                    for _ in 0..mine {
                        let request = hyper::Request::post(&uri)
                            .header("content-type", "application/json")
                            .header("user-agent", "raw")
                            .header("webhook-id", "msg_0123456789abcdefghijklmnopq")
                            .header("webhook-timestamp", "1700000000")
                            .header(
                                "webhook-signature",
                                "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
                            )
                            .body(Full::new(body.clone()))
                            .expect("a valid request");
                        let answer = client.request(request).await.expect("the receiver answers");
                        answer
                            .into_body()
                            .collect()
                            .await
                            .expect("the body is read");
                    }
                })
            })
            .collect();
        for task in each {
            task.await?;
        }
        println!("done");
        std::io::stdout().flush()?;
        // The parent reads this process's accounting before it ends it.
        std::future::pending::<()>().await;
        Ok(())
    })
}

fn raw_run(port: &str, count: usize) -> Result<Figure, Problem> {
    let begun = Instant::now();
    let helper = Helper::start(&["raw", port, &count.to_string()])?;
    let wall = begun.elapsed().as_secs_f64();
    account(helper.child.id(), wall)
}

fn hookstream(address: &str, group: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookstream"));
    command.args(["--brokers", address, "--group-prefix", group]);
    command
}

/// Topics, subscriptions and the waiting commands.
fn prepare(address: &str, port: &str, count: usize) -> Result<(), Problem> {
    let created = hookstream(address, "bench-")
        .args(["topics", "create", "--with-events"])
        .stdout(Stdio::null())
        .status()?;
    if !created.success() {
        return Err("the topics could not be created".into());
    }
    let subscriptions: Vec<_> = (0..SUBSCRIPTIONS)
        .map(|number| {
            serde_json::json!({
                "id": format!("s{number}"), "subscriber": format!("subscriber-{number}"), "events": ["order.*"],
                "url": format!("http://127.0.0.1:{port}/{number}"), "max_in_flight": IN_FLIGHT_EACH,
                "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            })
        })
        .collect();
    let mut apply = hookstream(address, "bench-")
        .args(["subscriptions", "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    apply
        .stdin
        .take()
        .ok_or("no input")?
        .write_all(&serde_json::to_vec(&subscriptions)?)?;
    if !apply.wait()?.success() {
        return Err("the subscriptions could not be applied".into());
    }
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "500000")
        .create()?;
    for number in 0..count {
        let command = command(number);
        let mut record = BaseRecord::to("webhook-commands")
            .key(command.subscriber.as_bytes())
            .payload(&command.body[..])
            .headers(hookstream::kafka::command_headers(&command.envelope()));
        while let Err((error, refused)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(rdkafka::error::RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            record = refused;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

fn command(number: usize) -> hookstream::command::Command {
    let name = number % SUBSCRIPTIONS;
    let mut body =
        format!(r#"{{"type":"order.created","data":{{"number":{number},"pad":""#).into_bytes();
    body.resize(BODY - 3, b'x');
    body.extend_from_slice(b"\"}}");
    hookstream::command::Command {
        subscriber: format!("subscriber-{name}").into(),
        webhook_id: format!("msg_{number:027}").into(),
        subscription: format!("s{name}").into(),
        event_id: format!("event-{number}").into(),
        event_type: "order.created".into(),
        event_time: Some("2026-01-01T00:00:00Z".into()),
        subject: Some(format!("order-{number}").into()),
        content_type: hookstream::command::ContentType::Json,
        attempt: 0,
        due: None,
        enqueued: hookstream::clock::now(),
        cause: hookstream::command::Cause::New,
        traceparent: None,
        first_failure: None,
        sequence: None,
        body: body.into(),
    }
}

fn deliver(address: &str, options: &Options, run: usize) -> Result<Figure, Problem> {
    let begun = Instant::now();
    let mut child = hookstream(address, &format!("bench-{run}-"))
        .args([
            "--egress-allow-http",
            "--egress-allow-cidr",
            "127.0.0.0/8",
            "--egress-ports",
            "any",
        ])
        .args([
            "--http-listen",
            "127.0.0.1:0",
            "--workers",
            &options.workers.to_string(),
            "deliver",
        ])
        .stderr(Stdio::piped())
        .spawn()?;
    let mut log = BufReader::new(child.stderr.take().ok_or("no log")?);
    let address = listening(&mut log)?;
    // Its pipe must not fill up.
    std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
    let limit = Instant::now() + Duration::from_secs(600);
    while done(address)? < options.commands as f64 {
        if Instant::now() > limit {
            return Err("not all was delivered in 10 minutes".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let figure = account(child.id(), begun.elapsed().as_secs_f64())?;
    let stopped = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()?;
    if !stopped.success() || !child.wait()?.success() {
        return Err("hookstream deliver did not stop in order".into());
    }
    Ok(figure)
}

fn listening(log: &mut impl BufRead) -> Result<SocketAddr, Problem> {
    for line in log.lines() {
        if let Some((_, address)) = line?.split_once("listening http=") {
            return Ok(address.trim().parse()?);
        }
    }
    Err("hookstream deliver ended at its start".into())
}

fn done(address: SocketAddr) -> Result<f64, Problem> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut sum = 0.0;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        // What is parked comes back through the release role, which does not run here.
        let delivered = line.starts_with("hookstream_attempts_total") && line.contains("delivered");
        if delivered || line.starts_with("hookstream_parked_total") {
            sum += line.rsplit(' ').next().unwrap_or("0").parse::<f64>()?;
        }
    }
    Ok(sum)
}

/// CPU seconds and peak memory of a process that still runs, as the system accounts them.
fn account(pid: u32, wall: f64) -> Result<Figure, Problem> {
    /// Ticks a second in /proc, on every Linux that matters.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .ok_or("no fields")?
        .split_whitespace()
        .collect();
    let cpu = (fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no peak memory")?;
    let memory = peak.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0;
    Ok(Figure { cpu, wall, memory })
}
