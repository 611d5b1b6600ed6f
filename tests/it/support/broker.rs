//! A real broker, by `scripts/kafka`: one for all tests, and private ones for tests that stop theirs.
//!
//! The broker lives as long as this process holds the script's standard input, so it ends with the
//! tests also when they are killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use super::Proxy;

/// What a script that serves something prints when it is there: its address.
#[track_caller]
pub fn first_line(child: &mut Child, script: &str) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let line = line.trim().to_owned();
    assert!(
        !line.is_empty(),
        "{script} gave no address; its reason is on standard error"
    );
    line
}

/// A running Kafka.
pub struct Broker {
    /// Bootstrap servers.
    pub address: String,
    /// What stands between the program and each broker, where that was asked for.
    pub proxies: Vec<Proxy>,
    script: Option<Script>,
}

struct Script {
    child: Child,
    /// Closing it ends the brokers.
    stdin: Option<ChildStdin>,
    dir: PathBuf,
}

/// The broker that all tests share, started by the first that asks. `HOOKSTREAM_TEST_BROKERS` names an
/// existing one to use instead.
pub fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| match std::env::var("HOOKSTREAM_TEST_BROKERS") {
        Ok(address) => Broker {
            address,
            proxies: Vec::new(),
            script: None,
        },
        Err(_) => Broker::own(),
    })
}

impl Broker {
    /// A broker of the test's own, to be stopped and started; it ends when this is dropped.
    pub fn own() -> Self {
        Self::cluster(1)
    }

    /// 1 or 3 brokers of the test's own. Topics of three have three replicas, two of which must be in sync.
    pub fn cluster(brokers: u32) -> Self {
        Self::start_with(brokers, Vec::new(), &[])
    }

    /// A broker of the test's own with further options for the script, such as `--sasl`.
    pub fn with_options(options: &[&str]) -> Self {
        Self::start_with(1, Vec::new(), options)
    }

    /// Bootstrap servers of a further listener: `sasl_plaintext`, `ssl` or `sasl_ssl`.
    pub fn listener(&self, name: &str) -> String {
        let dir = &self.script.as_ref().unwrap().dir;
        let address = std::fs::read_to_string(dir.join(format!("address-{name}"))).unwrap();
        address.trim().to_owned()
    }

    /// Sets the password of a SCRAM user, who is made if there is none.
    pub fn set_password(&self, user: &str, password: &str) {
        let change = format!("SCRAM-SHA-512=[iterations=4096,password={password}]");
        let output = Command::new(script())
            .args(["tool", "kafka-configs", "--alter", "--add-config", &change])
            .args(["--entity-type", "users", "--entity-name", user])
            .args(["--bootstrap-server", &self.address])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "kafka-configs failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// As [`Self::cluster`], each broker behind a proxy.
    pub fn behind_proxies(brokers: u32) -> Self {
        let proxies = (0..brokers).map(|_| Proxy::start()).collect();
        Self::start_with(brokers, proxies, &[])
    }

    /// What the program is to be told: the proxies, where there are some.
    pub fn bootstrap(&self) -> String {
        if self.proxies.is_empty() {
            return self.address.clone();
        }
        let each = self.proxies.iter();
        let servers: Vec<String> = each
            .map(|proxy| format!("127.0.0.1:{}", proxy.port()))
            .collect();
        servers.join(",")
    }

    fn start_with(brokers: u32, proxies: Vec<Proxy>, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hookstream-it-")
            .tempdir()
            .unwrap()
            .keep();
        let ports: Vec<String> = proxies
            .iter()
            .map(|proxy| proxy.port().to_string())
            .collect();
        let mut command = Command::new(script());
        command.args(["run", "--remove", "--brokers", &brokers.to_string()]);
        command.args(options);
        if !ports.is_empty() {
            command.args(["--behind", &ports.join(",")]);
        }
        let mut child = command
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka should start");
        let stdin = child.stdin.take();
        let address = first_line(&mut child, "scripts/kafka run");
        for (number, proxy) in (1..).zip(&proxies) {
            let file = dir.join(format!("{number}/port"));
            let port = std::fs::read_to_string(file).unwrap();
            proxy.lead_to(port.trim().parse().unwrap());
        }
        Self {
            address,
            proxies,
            script: Some(Script { child, stdin, dir }),
        }
    }

    /// Stops the first broker in an orderly way.
    pub fn stop(&self) {
        self.control(&["stop-broker", "1"]);
    }

    /// Starts the first broker again: the same data, the same port.
    pub fn start(&self) {
        self.control(&["start-broker", "1"]);
    }

    /// [`Self::stop`], then [`Self::start`].
    pub fn restart(&self) {
        self.control(&["restart-broker", "1"]);
    }

    /// Runs one of `scripts/kafka`'s commands on this broker's directory: `["restart-broker", "--hard", "2"]`.
    ///
    /// # Panics
    /// When it fails, or when the broker is not this process's own.
    pub fn control(&self, arguments: &[&str]) {
        let dir = &self
            .script
            .as_ref()
            .expect("a broker given by HOOKSTREAM_TEST_BROKERS is not ours to stop")
            .dir;
        let status = Command::new(script())
            .args(arguments)
            .arg("--dir")
            .arg(dir)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "scripts/kafka {arguments:?} failed: {status}"
        );
    }

    /// Runs one of Kafka's console tools, such as `kafka-transactions`.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> std::process::Output {
        Command::new(script())
            .args(["tool", name])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Stops one of this process's own brokers, numbered from 1, in the middle of what it does.
    pub fn freeze(&self, number: u32) -> Frozen {
        let pid = self.pid(number);
        signal(pid, "STOP");
        Frozen(pid)
    }

    /// Process id of one of this process's own brokers, numbered from 1.
    pub fn pid(&self, number: u32) -> u32 {
        let dir = &self.script.as_ref().unwrap().dir;
        std::fs::read_to_string(dir.join(number.to_string()).join("pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

/// A broker that neither responds nor closes a connection, as on a machine that swaps. It goes on when this is dropped.
pub struct Frozen(u32);

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(sent.unwrap().success(), "SIG{name} to {pid}");
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.stdin.take());
        drop(self.child.wait());
    }
}

pub(super) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka")
}
