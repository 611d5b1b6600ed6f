//! Connection settings from where a platform keeps them, on a broker that asks for them: a mounted service binding and
//! files. Passwords and certificates change while events flow.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::scene::{event, put, subscription, wait_until_done, world_on};
use crate::support::{
    Broker, Isolation, Output, Process, Receiver, World, eventually_true, run_to_end,
    run_to_end_with,
};

/// Longer than anything takes on a machine that is busy with other tests.
const ALL: Duration = Duration::from_secs(120);
/// With SCRAM, a connection ends, or proves the password that holds then, after this time (KIP-368).
const SESSION: Duration = Duration::from_secs(10);
const USER: &str = "hookstream";

/// A directory as Kubernetes mounts a Secret: each key is a link through `..data`, which is replaced as a whole.
struct Mounted {
    dir: tempfile::TempDir,
    versions: u32,
}

impl Mounted {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (key, _) in files {
            let target = Path::new("..data").join(key);
            std::os::unix::fs::symlink(target, dir.path().join(key)).unwrap();
        }
        let mut mounted = Self { dir, versions: 0 };
        mounted.replace(files);
        mounted
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn replace(&mut self, files: &[(&str, &str)]) {
        let dir = self.dir.path();
        let previous = std::fs::read_link(dir.join("..data"));
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        std::fs::create_dir(dir.join(&version)).unwrap();
        for (key, value) in files {
            std::fs::write(dir.join(&version).join(key), value).unwrap();
        }
        std::os::unix::fs::symlink(&version, dir.join("..data_tmp")).unwrap();
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        if let Ok(previous) = previous {
            std::fs::remove_dir_all(dir.join(previous)).unwrap();
        }
    }
}

/// As Strimzi's access operator writes it for a SCRAM user.
fn scram<'a>(brokers: &'a str, password: &'a str) -> [(&'a str, &'a str); 10] {
    [
        ("type", "kafka"),
        ("provider", "strimzi"),
        ("bootstrapServers", brokers),
        ("bootstrap.servers", brokers),
        ("securityProtocol", "SASL_PLAINTEXT"),
        ("saslMechanism", "SCRAM-SHA-512"),
        ("user", USER),
        ("username", USER),
        ("password", password),
        ("sasl.jaas.config", "not for this program"),
    ]
}

/// A broker that asks for credentials, for tests that leave it as it is.
struct Secured {
    broker: Broker,
    /// Who signed its certificate, PEM.
    authority: String,
    /// What the broker reads when it starts.
    _files: tempfile::TempDir,
}

fn secured() -> &'static Secured {
    static SECURED: OnceLock<Secured> = OnceLock::new();
    SECURED.get_or_init(|| {
        let files = tempfile::tempdir().unwrap();
        let authority = Authority::new("brokers");
        authority.write_for_broker(files.path());
        write(files.path(), "ca.pem", &authority.pem);
        // Users of PLAIN are part of the configuration.
        let mut properties = format!(
            "listener.name.sasl_plaintext.scram-sha-512.connections.max.reauth.ms={}\n",
            SESSION.as_millis()
        );
        for listener in ["sasl_plaintext", "sasl_ssl"] {
            properties.push_str(&format!(
                "listener.name.{listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"right-secret\";\n"
            ));
        }
        let properties = write(files.path(), "properties", &properties);
        let broker = Broker::with_options(&[
            "--sasl",
            "--tls",
            files.path().to_str().unwrap(),
            "--properties",
            properties.to_str().unwrap(),
        ]);
        Secured {
            broker,
            authority: authority.pem,
            _files: files,
        }
    })
}

/// All roles in one process, ready.
#[track_caller]
fn run(world: &World, flags: &[&str]) -> Process {
    let process = world.spawn("run", flags);
    wait_ready(&process);
    process
}

#[track_caller]
fn wait_ready(process: &Process) {
    eventually_true("it is ready", ALL, || {
        process
            .try_get("/readyz")
            .is_some_and(|(status, _)| status == 200)
    });
}

/// A world whose processes are told the brokers by something other than `--brokers`.
fn bound_world(broker: &Broker, name: &str) -> World {
    let mut world = world_on(broker, name);
    world.bootstrap = String::new();
    world
}

/// Publishes an event every few milliseconds until it is dropped.
struct Publisher<'w> {
    stop: &'w AtomicBool,
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn publish(world: &World, stop: &AtomicBool) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("e{count}");
        world.produce_event(&id, &[], event(&id, "order.made", "1"));
        count += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    count
}

/// How often each event was delivered.
fn deliveries(receiver: &Receiver) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for seen in receiver.seen() {
        *counts.entry(seen.webhook_id().to_owned()).or_default() += 1;
    }
    counts
}

/// Each event has made one command, and each command was sent, once unless the process lost its partitions in the
/// middle, as on a machine that is too busy for heartbeats.
#[track_caller]
fn assert_each_once(world: &World, receiver: &Receiver, process: &Process, events: usize) {
    wait_until_done(world);
    let commands =
        crate::support::live(world.read_all(&world.topics.commands(), Isolation::Committed));
    // Copies that came back from a retry tier are the same command.
    let commands: Vec<_> = commands
        .iter()
        .filter(|record| record.header("hs-cause") == Some("new"))
        .collect();
    let ids: BTreeSet<_> = commands
        .iter()
        .map(|record| record.header("webhook-id").unwrap().to_owned())
        .collect();
    assert_eq!(
        (commands.len(), ids.len()),
        (events, events),
        "commands, and different ones"
    );
    let counts = deliveries(receiver);
    assert_eq!(counts.len(), events, "commands that were sent");
    let repeated: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(
        repeated.is_empty() || lines(process, "revoked") > 0,
        "sent more than once: {repeated:?}"
    );
}

/// Waits until `more` further requests have come.
#[track_caller]
fn wait_for_more(receiver: &Receiver, more: usize) {
    let wanted = receiver.seen().len() + more;
    receiver.wait_for(wanted, ALL);
}

/// Deliveries go on for longer than any connection lives without proving a password.
#[track_caller]
fn outlive_sessions(receiver: &Receiver) {
    let begun = Instant::now();
    while begun.elapsed() < 2 * SESSION {
        wait_for_more(receiver, 5);
    }
    wait_for_more(receiver, 5);
}

fn lines(process: &Process, part: &str) -> usize {
    let lines = process.stderr();
    lines.iter().filter(|line| line.contains(part)).count()
}

#[track_caller]
fn assert_silent(process: &Process, secrets: &[&str]) {
    for line in process.stderr() {
        for secret in secrets {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

#[test]
fn a_scram_password_is_rotated_while_events_flow() {
    let broker = &secured().broker;
    broker.set_password(USER, "first-secret");
    let address = broker.listener("sasl_plaintext");
    let mut binding = Mounted::new(&scram(&address, "first-secret"));
    let world = bound_world(broker, "rotated");
    let receiver = Receiver::good();
    put(
        &world,
        &[subscription("s", &receiver.url("/s"), &["order.*"])],
    );
    let mut process = run(&world, &["--kafka-binding", binding.path()]);
    let stop = AtomicBool::new(false);
    let published = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&world, &stop));
        let stopping = Publisher { stop: &stop };
        wait_for_more(&receiver, 20);

        // As an operator does it: the broker takes the new password, then the Secret has it.
        broker.set_password(USER, "second-secret");
        binding.replace(&scram(&address, "second-secret"));
        process.wait_for_line("SASL user or password changed", ALL);
        outlive_sessions(&receiver);

        // The Secret comes late: connections are refused meanwhile.
        broker.set_password(USER, "third-secret");
        process.wait_for_line("connection not authenticated", ALL);
        binding.replace(&scram(&address, "third-secret"));
        eventually_true("the third password is in use", ALL, || {
            lines(&process, "SASL user or password changed") == 2
        });
        outlive_sessions(&receiver);
        drop(stopping);
        publisher.join().unwrap()
    });
    assert_each_once(&world, &receiver, &process, published);
    assert!(process.exited().is_none(), "the process went on");
    assert_eq!(lines(&process, "role restarted"), 0);
    assert_silent(&process, &["first-secret", "second-secret", "third-secret"]);
    process.sigterm();
    assert!(process.wait_exit(ALL).success());
}

#[test]
fn a_wrong_password_is_reported_until_the_file_has_the_right_one() {
    let files = tempfile::tempdir().unwrap();
    let broker = &secured().broker;
    let mut world = world_on(broker, "wrong-password");
    world.bootstrap = broker.listener("sasl_plaintext");
    let receiver = Receiver::good();
    put(
        &world,
        &[subscription("s", &receiver.url("/s"), &["order.*"])],
    );
    let password = files.path().join("password");
    std::fs::write(&password, "wrong-secret\n").unwrap();
    let reference = format!("sasl.password=@{}", password.display());
    let user = format!("sasl.username={USER}");
    let security = [
        "-X",
        "security.protocol=SASL_PLAINTEXT",
        "-X",
        "sasl.mechanism=PLAIN",
        "-X",
        &user,
        "-X",
        &reference,
    ];
    let process = world.spawn("run", &security);
    let line = process.wait_for_line("waiting for a broker", ALL);
    assert!(
        line.contains("connection not authenticated: ") && line.contains("Authentication failed"),
        "{line}"
    );
    let (status, body) = process.get("/readyz");
    assert!(
        status == 503 && body.contains("connection not authenticated"),
        "{status} {body}"
    );
    assert_eq!(process.get("/livez").0, 200);

    let checked = world.run(&[&["topics", "check"], &security[..]].concat(), "");
    assert_eq!(checked.code, 1, "{}", checked.stderr);
    assert!(
        checked.stderr.contains("connection not authenticated")
            && checked.stderr.contains("service binding"),
        "{}",
        checked.stderr
    );

    // In the middle of a rotation a file may be empty.
    std::fs::write(&password, "").unwrap();
    let line = process.wait_for_line("changed connection settings rejected", ALL);
    assert!(
        line.contains("sasl.password") && line.contains("the file is empty"),
        "{line}"
    );
    std::fs::write(&password, "right-secret\n").unwrap();
    process.wait_for_line("SASL user or password changed", ALL);
    wait_ready(&process);
    world.produce_event("e", &[], event("e", "order.made", "1"));
    receiver.wait_for(1, ALL);
    assert_silent(&process, &["wrong-secret", "right-secret"]);
}

/// A certificate authority, its certificate as PEM.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Writes what a broker on this machine needs.
    fn write_for_broker(&self, files: &Path) {
        let (key, certificate) = self.issue("127.0.0.1");
        write(files, "broker.pem", &format!("{key}{certificate}"));
    }

    /// Key and certificate of `name`, as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (key.serialize_pem(), certificate.pem())
    }
}

fn mutual_tls<'a>(
    brokers: &'a str,
    authority: &'a Authority,
    (key, certificate): &'a (String, String),
) -> [(&'a str, &'a str); 6] {
    [
        ("type", "kafka"),
        ("bootstrap-servers", brokers),
        ("security.protocol", "SSL"),
        ("ssl.truststore.crt", &authority.pem),
        ("ssl.keystore.crt", certificate),
        ("ssl.keystore.key", key),
    ]
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn new_certificates_make_new_clients_in_the_same_process() {
    let (brokers, old, new) = (
        Authority::new("brokers"),
        Authority::new("old clients"),
        Authority::new("new clients"),
    );
    let tls = tempfile::tempdir().unwrap();
    brokers.write_for_broker(tls.path());
    // The broker accepts the old and the new ones for a while.
    write(tls.path(), "ca.pem", &format!("{}{}", old.pem, new.pem));
    let broker = Broker::with_options(&["--tls", tls.path().to_str().unwrap()]);
    let address = broker.listener("ssl");
    let first = old.issue("client");
    let mut binding = Mounted::new(&mutual_tls(&address, &brokers, &first));
    let world = bound_world(&broker, "certificates");
    let receiver = Receiver::good();
    put(
        &world,
        &[subscription("s", &receiver.url("/s"), &["order.*"])],
    );
    let mut process = run(&world, &["--kafka-binding", binding.path()]);
    let stop = AtomicBool::new(false);
    let published = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&world, &stop));
        let stopping = Publisher { stop: &stop };
        wait_for_more(&receiver, 20);

        // A certificate and a key that do not belong together make no client.
        let second = new.issue("client");
        let mixed = (first.0.clone(), second.1.clone());
        binding.replace(&mutual_tls(&address, &brokers, &mixed));
        process.wait_for_line("changed connection settings rejected", ALL);
        binding.replace(&mutual_tls(&address, &brokers, &second));
        let line = process.wait_for_line("making new clients within", ALL);
        assert!(line.contains("ssl.certificate.pem, ssl.key.pem"), "{line}");
        process.wait_for_line("starting with new clients", ALL);
        // On the same port.
        eventually_true("it is ready again", ALL, || {
            lines(&process, "ready role=") == 8 && process.get("/readyz").0 == 200
        });
        wait_for_more(&receiver, 50);

        // Only the new ones from now on.
        write(tls.path(), "ca.pem", &new.pem);
        broker.restart();
        wait_for_more(&receiver, 50);
        drop(stopping);
        publisher.join().unwrap()
    });
    receiver.wait_until("every event is delivered", ALL, |seen| {
        seen.len() >= published
    });
    wait_until_done(&world);
    assert_eq!(deliveries(&receiver).len(), published);
    assert!(process.exited().is_none(), "the process went on");
    process.sigterm();
    assert!(process.wait_exit(ALL).success());
}

#[test]
fn a_password_in_a_binding_works_over_tls() {
    let Secured {
        broker, authority, ..
    } = secured();
    let address = broker.listener("sasl_ssl");
    let world = bound_world(broker, "sasl-ssl");
    let bound = |authority: &str| {
        Mounted::new(&[
            ("type", "kafka"),
            ("bootstrapServers", &address),
            ("securityProtocol", "SASL_SSL"),
            ("saslMechanism", "PLAIN"),
            ("username", USER),
            ("password", "right-secret"),
            ("ssl.truststore.crt", authority),
        ])
    };
    let check = |binding: &Mounted| {
        world.run(
            &["subscriptions", "list", "--kafka-binding", binding.path()],
            "",
        )
    };
    let Output { code, stderr, .. } = check(&bound(authority));
    assert_eq!(code, 0, "{stderr}");
    let Output { code, stderr, .. } = check(&bound(&Authority::new("others").pem));
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("connection not authenticated") && stderr.contains("certificate"),
        "{stderr}"
    );
}

fn config(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    run_to_end_with(
        &[&["config", "-o", "json"], arguments].concat(),
        "",
        environment,
    )
}

#[test]
fn the_effective_settings_show_where_a_value_comes_from_and_no_secret() {
    let binding = Mounted::new(&scram("bound:9093", "binding-secret"));
    let files = tempfile::tempdir().unwrap();
    let timeout = write(files.path(), "timeout", "7s\n");
    let properties = write(files.path(), "x", "client.rack=a\nsasl.username=other\n");
    let output = config(
        &["--kafka-binding", binding.path()],
        &[
            ("HOOKSTREAM_TIMEOUT_FILE", timeout.to_str().unwrap()),
            ("HOOKSTREAM_X_FILE", properties.to_str().unwrap()),
        ],
    );
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stderr, "", "the variables are known");
    let rows: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    let row = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        (
            row["value"].as_str().unwrap().to_owned(),
            row["source"].as_str().unwrap().to_owned(),
        )
    };
    for (name, value, source) in [
        ("brokers", "bound:9093", "binding"),
        ("timeout", "7s", "environment"),
        ("x.client.rack", "a", "environment"),
        ("x.sasl.mechanism", "SCRAM-SHA-512", "binding"),
        ("x.sasl.username", "other", "environment"),
        ("x.sasl.password", "***", "binding"),
    ] {
        assert_eq!(row(name), (value.to_owned(), source.to_owned()), "{name}");
    }
    assert!(!output.stdout.contains("binding-secret"));
}

#[test]
fn what_is_wrong_with_files_is_named_at_once() {
    let binding = Mounted::new(&[("type", "kafka"), ("securityProtocol", "TLS")]);
    let output = config(
        &[
            "--kafka-binding",
            binding.path(),
            "-X",
            "sasl.password=@/nonexistent/password",
        ],
        &[
            ("HOOKSTREAM_TIMEOUT", "7s"),
            ("HOOKSTREAM_TIMEOUT_FILE", "/nonexistent/timeout"),
            ("HOOKSTREAM_WORKERS_FILE", "/nonexistent/workers"),
        ],
    );
    assert_eq!(output.code, 2, "{}", output.stderr);
    let place = binding.path();
    for part in [
        "HOOKSTREAM_TIMEOUT and HOOKSTREAM_TIMEOUT_FILE are both in the environment".to_owned(),
        "HOOKSTREAM_WORKERS_FILE /nonexistent/workers: No such file".to_owned(),
        "-X sasl.password (flag): /nonexistent/password: No such file".to_owned(),
        format!("--kafka-binding {place}: securityProtocol is \"TLS\"; allowed: PLAINTEXT, SSL"),
        format!("--kafka-binding {place}: bootstrapServers or"),
    ] {
        assert!(output.stderr.contains(&part), "{part}: {}", output.stderr);
    }

    let missing = run_to_end(
        &["topics", "check", "--kafka-binding", "/nonexistent/binding"],
        "",
    );
    assert_eq!(missing.code, 2);
    assert!(
        missing
            .stderr
            .contains("--kafka-binding /nonexistent/binding: No such file"),
        "{}",
        missing.stderr
    );

    let no_pem = Mounted::new(&[
        ("type", "kafka"),
        ("bootstrapServers", "b:1"),
        ("securityProtocol", "SSL"),
        ("ssl.truststore.crt", "no PEM"),
    ]);
    let refused = run_to_end(&["topics", "check", "--kafka-binding", no_pem.path()], "");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("ssl.ca.pem"), "{}", refused.stderr);
}
