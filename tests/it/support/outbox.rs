//! A real PostgreSQL, by `scripts/postgres`, and Debezium in a standalone Kafka Connect, by `scripts/debezium`. Both end
//! with this process at the latest.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::first_line;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts")
        .join(name)
}

/// A running server; its cluster is removed when this is dropped.
pub struct Postgres {
    pub port: u16,
    password: String,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Postgres {
    /// Whether its programs are there.
    pub fn is_installed() -> bool {
        let status = Command::new(script("postgres")).arg("available").status();
        status.unwrap().success()
    }

    /// Starts one with these settings, as in `wal_level=logical`.
    pub fn start(settings: &[&str]) -> Self {
        let password: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(16)
            .collect();
        let mut child = Command::new(script("postgres"))
            .arg("run")
            .args(settings)
            .env("POSTGRES_PASSWORD", &password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/postgres should start");
        let stdin = child.stdin.take();
        let port = first_line(&mut child, "scripts/postgres run").parse();
        Self {
            port: port.expect("scripts/postgres prints its port"),
            password,
            child,
            stdin,
        }
    }

    /// Runs statements in a database; what they print, unaligned.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let mut psql = Command::new(script("postgres"))
            .args(["psql", &self.port.to_string()])
            .args(["--tuples-only", "--no-align", "--dbname", database])
            .env("POSTGRES_PASSWORD", &self.password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = psql.stdin.take().unwrap();
        stdin.write_all(statements.as_bytes()).unwrap();
        drop(stdin);
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success(), "psql failed: {statements}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.stdin.take());
        drop(self.child.wait());
    }
}

/// Connect with one connector.
pub struct Connect {
    child: Child,
    stdin: Option<ChildStdin>,
    dir: tempfile::TempDir,
}

impl Connect {
    /// Starts it; files are in `properties` of a worker and of a connector.
    pub fn start(worker: &str, connector: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hookstream-connect-")
            .tempdir()
            .unwrap();
        std::fs::write(dir.path().join("worker.properties"), worker).unwrap();
        std::fs::write(dir.path().join("connector.properties"), connector).unwrap();
        let mut child = Command::new(script("debezium"))
            .arg("connect")
            .arg(dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("scripts/debezium should start");
        let stdin = child.stdin.take();
        Self { child, stdin, dir }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        drop(self.stdin.take());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("connect.log"));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("---- Connect wrote at the end:\n{last}");
        }
    }
}
