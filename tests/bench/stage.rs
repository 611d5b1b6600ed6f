//! What every row needs: Kafka, the program, helpers, and what the system accounts to them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};

use crate::reference::send;

pub type Problem = Box<dyn std::error::Error>;

/// Of a body, and of the pad that makes it so.
pub const BODY: usize = 1024;
pub const SUBSCRIPTIONS: usize = 10;
pub const IN_FLIGHT_EACH: usize = 8;
/// Nothing takes longer than this unless it is stuck.
pub const STUCK: Duration = Duration::from_secs(900);

/// What a process needed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// CPU seconds.
    pub cpu: f64,
    /// Seconds.
    pub wall: f64,
    /// Peak resident memory, MiB.
    pub memory: f64,
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In which order a run plays its kinds: each run begins with another, so that no kind always has the coldest broker.
pub fn in_turn(run: usize, kinds: usize) -> impl Iterator<Item = usize> {
    (0..kinds).map(move |at| (at + run) % kinds)
}

/// CPU seconds and peak memory of a process that still runs, as the system accounts them.
pub fn account(pid: u32) -> Result<Cost, Problem> {
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
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.ok_or("no peak memory")?.trim().trim_end_matches(" kB");
    Ok(Cost {
        cpu,
        wall: 0.0,
        memory: peak.trim().parse::<f64>()? / 1024.0,
    })
}

/// A real Kafka that ends with this process: its standard input is held open.
pub struct Kafka {
    child: Child,
    pub address: String,
    dir: PathBuf,
}

impl Kafka {
    pub fn start() -> Result<Self, Problem> {
        Self::with_brokers(1)
    }

    /// With 1 or 3 brokers.
    pub fn with_brokers(brokers: usize) -> Result<Self, Problem> {
        let dir = std::env::current_dir()?.join(format!(
            "target/bench/kafka-{}-{brokers}",
            std::process::id()
        ));
        std::fs::create_dir_all(&dir)?;
        let mut child = Command::new("scripts/kafka")
            .arg("run")
            .arg("--dir")
            .arg(&dir)
            .args(["--brokers", &brokers.to_string()])
            .arg("--remove")
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
            dir,
        })
    }

    /// Bytes that a topic's records take on the disk of the first broker.
    pub fn stored(&self, topic: &str) -> Result<u64, Problem> {
        let mut sum = 0;
        for entry in std::fs::read_dir(self.dir.join("1/data"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A partition's directory is its topic's name and its number.
            if name.rsplit_once('-').is_none_or(|(name, _)| name != topic) {
                continue;
            }
            for file in std::fs::read_dir(entry.path())? {
                let file = file?;
                if file.path().extension().is_some_and(|kind| kind == "log") {
                    sum += file.metadata()?.len();
                }
            }
        }
        Ok(sum)
    }

    /// CPU seconds of the brokers so far.
    pub fn cpu(&self) -> Result<f64, Problem> {
        let dir = self.dir.to_string_lossy().into_owned();
        let mut sum = 0.0;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Ok(pid) = name.parse() else { continue };
            // Processes come and go.
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            if command.contains("java") && command.contains(&dir) {
                sum += account(pid)?.cpu;
            }
        }
        if sum > 0.0 {
            Ok(sum)
        } else {
            Err("the broker's process was not found".into())
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("Kafka did not stop: {error}");
        }
    }
}

/// This program again, in another part; it tells what it has to tell line by line, and ends when dropped.
pub struct Helper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Helper {
    pub fn start(part: &str, arguments: &[&str]) -> Result<Self, Problem> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(format!("part:{part}"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            input: child.stdin.take().ok_or("no input")?,
            output: BufReader::new(child.stdout.take().ok_or("no output")?),
            child,
        })
    }

    pub fn line(&mut self) -> Result<String, Problem> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a helper has ended".into());
        }
        Ok(line.trim().to_owned())
    }

    pub fn ask(&mut self, question: &str) -> Result<Value, Problem> {
        writeln!(self.input, "{question}")?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    pub fn cost(&self) -> Result<Cost, Problem> {
        account(self.child.id())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Topics, groups and subscriptions of one measurement.
pub struct World<'a> {
    kafka: &'a Kafka,
    name: String,
    partitions: usize,
}

impl<'a> World<'a> {
    /// With topics of so many partitions, and these subscriptions.
    pub fn new(
        kafka: &'a Kafka,
        name: &str,
        partitions: usize,
        subscriptions: &[Value],
    ) -> Result<Self, Problem> {
        Self::replicated(kafka, name, partitions, subscriptions, None)
    }

    /// The same with so many copies of each partition; else as many as `topics create` makes.
    pub fn replicated(
        kafka: &'a Kafka,
        name: &str,
        partitions: usize,
        subscriptions: &[Value],
        copies: Option<usize>,
    ) -> Result<Self, Problem> {
        let world = Self {
            kafka,
            name: name.to_owned(),
            partitions,
        };
        let mut create = world.command(&[
            "topics",
            "create",
            "--with-events",
            "--partitions",
            &partitions.to_string(),
        ]);
        if let Some(copies) = copies {
            create.args(["--replication-factor", &copies.to_string()]);
        }
        let created = create.stdout(Stdio::null()).status()?;
        if !created.success() {
            return Err("the topics could not be created".into());
        }
        if subscriptions.is_empty() {
            return Ok(world);
        }
        world.write(subscriptions)?;
        Ok(world)
    }

    /// Writes the records of subscriptions: `subscriptions apply` takes at most 64 MiB at a time.
    fn write(&self, subscriptions: &[Value]) -> Result<(), Problem> {
        let producer: ThreadedProducer<DefaultProducerContext> =
            producer_config(&self.kafka.address).create()?;
        let topic = self.subscriptions();
        for one in subscriptions {
            let value = serde_json::to_vec(one)?;
            let key = one["id"].as_str().ok_or("no id")?;
            let record = BaseRecord::<[u8], [u8]>::to(&topic).key(key.as_bytes());
            send(&producer, record.payload(&value[..]))?;
        }
        Ok(producer.flush(STUCK)?)
    }

    /// Runs a command to its end: what it wrote to standard output.
    pub fn output(&self, arguments: &[&str]) -> Result<String, Problem> {
        let output = self.command(arguments).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("hookstream {arguments:?} has failed").into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same topics with groups of their own: what was read is read again.
    pub fn again(&self, name: &str) -> Again<'_> {
        Again {
            world: self,
            groups: format!("{name}-"),
        }
    }

    /// The prefix of its topics, without the dash.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn events(&self) -> String {
        format!("{}-events", self.name)
    }

    pub fn subscriptions(&self) -> String {
        format!("{}-subscriptions", self.name)
    }

    pub fn commands(&self) -> String {
        format!("{}-commands", self.name)
    }

    pub fn partitions(&self) -> usize {
        self.partitions
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hookstream"));
        let prefix = format!("{}-", self.name);
        command
            .args(["--brokers", &self.kafka.address, "--topic-prefix", &prefix])
            .args(["--events", &self.events()])
            // Most benchmarks publish before they start a role.
            .args(["--start-at", "earliest"])
            .args([
                "--egress-allow-http",
                "--egress-allow-cidr",
                "127.0.0.0/8",
                "--egress-ports",
                "any",
            ])
            .args(["--log", "warn,hookstream::runtime=info"])
            .args(arguments);
        command
    }
}

pub struct Again<'a> {
    world: &'a World<'a>,
    groups: String,
}

impl Again<'_> {
    /// A role, from its start on.
    pub fn start(&self, role: &str, flags: &[&str]) -> Result<Role, Problem> {
        let begun = Instant::now();
        let mut child = self
            .world
            .command(&[
                "--group-prefix",
                &self.groups,
                "--http-listen",
                "127.0.0.1:0",
            ])
            .args(flags)
            .arg(role)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().ok_or("no log")?);
        let address = listening(&mut log)?;
        // Its pipe must not fill up, and what it warns of is told.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains("ERROR")
                    || line.contains("WARN") && !line.contains("the breaker is open")
                {
                    eprintln!("{line}");
                }
            }
        });
        Ok(Role {
            child,
            address,
            begun,
        })
    }
}

fn listening(log: &mut impl BufRead) -> Result<SocketAddr, Problem> {
    for line in log.lines() {
        let line = line?;
        if let Some((_, address)) = line.split_once("listening http=") {
            return Ok(address.trim().parse()?);
        }
        eprintln!("{line}");
    }
    Err("hookstream ended at its start".into())
}

/// A running process of hookstream.
pub struct Role {
    child: Child,
    address: SocketAddr,
    begun: Instant,
}

impl Role {
    /// The sum of the samples whose line begins with one of these.
    pub fn sum(&self, samples: &[&str]) -> Result<f64, Problem> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let mut sum = 0.0;
        for line in text.lines() {
            if samples.iter().any(|sample| line.starts_with(sample)) {
                sum += line.rsplit(' ').next().unwrap_or("0").parse::<f64>()?;
            }
        }
        Ok(sum)
    }

    /// Waits until that sum is so high: what it cost since its start, and the seconds between the first and the last.
    pub fn wait(&self, samples: &[&str], until: f64) -> Result<(Cost, f64), Problem> {
        let mut first: Option<(Instant, f64)> = None;
        loop {
            let sum = self.sum(samples)?;
            let now = Instant::now();
            if sum > 0.0 {
                first.get_or_insert((now, sum));
            }
            if sum >= until {
                let mut cost = account(self.child.id())?;
                cost.wall = self.begun.elapsed().as_secs_f64();
                let (since, at) = first.unwrap_or((self.begun, 0.0));
                // As if the first had begun at its own pace.
                let share = (until - at).max(1.0) / until;
                return Ok((cost, (now - since).as_secs_f64() / share));
            }
            if self.begun.elapsed() > STUCK {
                return Err(format!("{sum} of {until} after {STUCK:?}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Since its start.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn wait_ready(&self) -> Result<(), Problem> {
        while self.begun.elapsed() < STUCK {
            let mut stream = TcpStream::connect(self.address)?;
            stream
                .write_all(b"GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            if text.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("hookstream did not become ready".into())
    }

    pub fn cost(&self) -> Result<Cost, Problem> {
        account(self.child.id())
    }

    /// Its open connections to the broker at `address`.
    pub fn connections(&self, address: &str) -> Result<usize, Problem> {
        let pid = self.child.id();
        let mut sockets = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            // Some are closed meanwhile.
            let Ok(link) = std::fs::read_link(entry?.path()) else {
                continue;
            };
            let link = link.to_string_lossy().into_owned();
            if let Some(socket) = link.strip_prefix("socket:[") {
                sockets.push(socket.trim_end_matches(']').to_owned());
            }
        }
        let port: u16 = address.rsplit(':').next().unwrap_or("").parse()?;
        let (port, table) = (
            format!(":{port:04X}"),
            std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?,
        );
        let open = table.lines().skip(1).filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // The remote address, the state (01 is established) and the socket's number.
            fields.len() > 9
                && fields[2].ends_with(&port)
                && fields[3] == "01"
                && sockets.iter().any(|socket| socket == fields[9])
        });
        Ok(open.count())
    }

    /// Its open file descriptors.
    pub fn descriptors(&self) -> Result<usize, Problem> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// Memory that is resident now, MiB.
    pub fn resident(&self) -> Result<f64, Problem> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.ok_or("no memory")?.trim().trim_end_matches(" kB");
        Ok(resident.trim().parse::<f64>()? / 1024.0)
    }

    pub fn stop(mut self) -> Result<(), Problem> {
        let stopped = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()?;
        if stopped.success() && self.child.wait()?.success() {
            Ok(())
        } else {
            Err("hookstream did not stop in order".into())
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // After a problem it still runs.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Signed, `IN_FLIGHT_EACH` at a time; all events match.
pub fn subscription(number: usize, url: &str) -> Value {
    json!({
        "id": format!("s{number}"), "subscriber": format!("subscriber-{number}"), "events": ["order.*"], "url": url,
        "max_in_flight": IN_FLIGHT_EACH, "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    })
}

pub fn subscriptions(port: &str) -> Vec<Value> {
    (0..SUBSCRIPTIONS)
        .map(|number| subscription(number, &format!("http://127.0.0.1:{port}/ok/{number}")))
        .collect()
}

/// A plain event whose body will be of [`BODY`] bytes; `at` is when it was to be produced, nanoseconds since 1970.
pub fn event(number: usize, at: u128) -> Vec<u8> {
    let begin = format!(
        r#"{{"id":"event-{number}","type":"order.created","time":"2026-01-01T00:00:00Z","subject":"order-{number}","data":"#
    );
    let mut data = format!(r#"{{"at":{at},"number":{number},"pad":""#);
    // The body is {"type":"order.created","timestamp":"2026-01-01T00:00:00Z","data":…}.
    let around = r#"{"type":"order.created","timestamp":"2026-01-01T00:00:00Z","data":}"#.len();
    while data.len() + around + 2 < BODY {
        data.push('x');
    }
    format!("{begin}{data}\"}}}}").into_bytes()
}

/// As hookstream's own producers are set, without transactions.
pub fn producer_config(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("linger.ms", "1")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "200000");
    config
}

/// Nanoseconds since 1970.
pub fn wall() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}
