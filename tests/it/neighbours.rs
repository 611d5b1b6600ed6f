//! What a subscription's own settings, and other clients of the admin port, may do to everybody else: nothing.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::scene::{LATER, event, put, start, subscription, with, world};
use crate::support::{Receiver, SOON};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[test]
fn a_secret_file_that_blocks_or_never_ends_stops_no_other_subscriber() {
    const EVENTS: usize = 30;
    let world = world("bad-secrets");
    let receiver = Receiver::good();
    let files = tempfile::tempdir().unwrap();
    let fifo = files.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let good = files.path().join("good");
    std::fs::write(&good, SECRET).unwrap();
    let large = files.path().join("large");
    std::fs::write(&large, "x".repeat(64 * 1024 + 1)).unwrap();
    let secret = |id: &str, path: &std::path::Path| {
        let url = receiver.url(&format!("/{id}"));
        let secrets = json!({"secrets": [format!("file:{}", path.display())]});
        with(subscription(id, &url, &["**"]), secrets)
    };
    put(
        &world,
        &[
            secret("fifo", &fifo),
            secret("zero", "/dev/zero".as_ref()),
            secret("large", &large),
            secret("well", &good),
        ],
    );
    let process = start(&world, &[]);
    world.produce_events((0..EVENTS).map(|number| {
        let event = event(&number.to_string(), "order.created", "1");
        ("key", event)
    }));
    let seen = receiver.wait_until("all events of the healthy one", SOON, |seen| {
        seen.iter().filter(|one| one.path == "/well").count() == EVENTS
    });
    assert!(seen.iter().all(|one| one.path == "/well"));
    for (path, reason) in [
        (fifo.display().to_string(), "a FIFO"),
        ("/dev/zero".to_owned(), "a device"),
        (large.display().to_string(), "at most 65536 bytes"),
    ] {
        let line = process.wait_for_line(&path, SOON);
        assert!(line.contains(reason), "{line}");
    }
    assert!(
        process.peak_memory_mib() < 600,
        "{} MiB",
        process.peak_memory_mib()
    );
    // Its commands wait, and are delivered once the file is right.
    std::fs::remove_file(&fifo).unwrap();
    std::fs::write(&fifo, SECRET).unwrap();
    receiver.wait_until("all events of the repaired one", LATER, |seen| {
        seen.iter().filter(|one| one.path == "/fifo").count() == EVENTS
    });
}

#[test]
fn probes_are_served_whatever_other_clients_of_the_port_do() {
    let world = world("probes");
    let process = start(&world, &[]);
    let address = ("127.0.0.1", process.http_port());
    for count in [64, 300] {
        let held: Vec<TcpStream> = (0..count)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                // One that makes room for another is closed meanwhile.
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhos").ok();
                stream
            })
            .collect();
        let asked = Instant::now();
        for probe in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(process.get(probe).0, 200, "{probe}");
        }
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(3), "{count} clients: {took:?}");
        drop(held);
    }
}
