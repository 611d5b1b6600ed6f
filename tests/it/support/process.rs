//! The program as an operator runs it: a process with flags, standard streams, signals and an exit code.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::SOON;

/// A running hookstream. Killed when dropped; what it wrote is printed if the test is failing.
pub struct Process {
    child: Child,
    name: String,
    stdout: Lines,
    stderr: Lines,
}

/// What a finished hookstream left.
#[derive(Debug)]
pub struct Output {
    /// -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Lines read so far from one stream.
#[derive(Clone, Default)]
struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Lines {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                writer
                    .0
                    .state
                    .lock()
                    .unwrap()
                    .0
                    .push(String::from_utf8_lossy(&line).into_owned());
                writer.0.changed.notify_all();
            }
            writer.0.state.lock().unwrap().1 = true;
            writer.0.changed.notify_all();
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        self.0.state.lock().unwrap().0.clone()
    }

    /// `None` when the stream ended, or the time is over, without such a line.
    fn find<T>(&self, timeout: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(found) = state.0[seen..].iter().find_map(|line| pick(line)) {
                return Some(found);
            }
            seen = state.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn wait_end(&self) {
        let state = self.0.state.lock().unwrap();
        drop(
            self.0
                .changed
                .wait_timeout_while(state, SOON, |state| !state.1)
                .unwrap(),
        );
    }
}

impl Process {
    /// Starts hookstream with these arguments and nothing on standard input.
    pub fn spawn<S: AsRef<str>>(arguments: &[S]) -> Self {
        Self::spawn_with(arguments, &[])
    }

    /// The same with these environment variables.
    pub fn spawn_with<S: AsRef<str>>(arguments: &[S], environment: &[(&str, &str)]) -> Self {
        let mut command = command(arguments);
        command.envs(environment.iter().copied());
        let name = arguments.first().map_or("", AsRef::as_ref);
        Self::of(name, command)
    }

    /// Starts a command that becomes hookstream, with nothing on standard input.
    pub fn of(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            name: name.to_owned(),
            stdout: Lines::follow(child.stdout.take().unwrap()),
            stderr: Lines::follow(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Waits for a line on standard error that contains `part`.
    ///
    /// # Panics
    /// When there is none in time, or the process ends before.
    #[track_caller]
    pub fn wait_for_line(&self, part: &str, timeout: Duration) -> String {
        let line = self
            .stderr
            .find(timeout, |line| line.contains(part).then(|| line.to_owned()));
        line.unwrap_or_else(|| {
            panic!(
                "{} (pid {}) did not log {part:?} within {timeout:?}",
                self.name,
                self.pid()
            )
        })
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Reads what it has written to standard error by then, also after its end.
    pub fn stderr_reader(&self) -> impl Fn() -> Vec<String> + use<> {
        let lines = self.stderr.clone();
        move || lines.all()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`, ...
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()
            .unwrap();
        assert!(
            status.success(),
            "{} (pid {}) could not be sent SIG{name}",
            self.name,
            self.pid()
        );
    }

    pub fn sigterm(&self) {
        self.signal("TERM");
    }

    /// Ends it without a chance to clean up, and waits until it is gone.
    pub fn sigkill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// `None` when it still runs after `timeout`.
    pub fn exited_within(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            let exited = self.exited();
            if exited.is_some() || Instant::now() >= deadline {
                return exited;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// # Panics
    /// When it still runs after `timeout`.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) exits", self.name, self.pid());
        let status = super::eventually(&what, timeout, || self.exited());
        self.stderr.wait_end();
        status
    }

    /// The port of `/metrics`, `/livez` and `/readyz`, from the log line `listening ... http=127.0.0.1:PORT`.
    #[track_caller]
    pub fn http_port(&self) -> u16 {
        let port = self.stderr.find(SOON, |line| {
            let address = line
                .contains("listening")
                .then(|| line.split_once("http="))??
                .1;
            let digits = address.split_once(':')?.1;
            digits
                .split(|character: char| !character.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        });
        port.unwrap_or_else(|| {
            panic!(
                "{} (pid {}) did not log where it listens",
                self.name,
                self.pid()
            )
        })
    }

    /// GETs a path of its own HTTP server: status and body; `None` when it does not answer.
    #[track_caller]
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        get(self.http_port(), path).ok()
    }

    /// GETs a path of its own HTTP server: status and body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path)
            .unwrap_or_else(|| panic!("{} does not answer GET {path}", self.name))
    }

    /// One sample of `/metrics` by its full name with labels, as in `hookstream_events_total{result="invalid"}`.
    #[track_caller]
    pub fn metric(&self, sample: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics");
        body.lines().find_map(|line| {
            line.strip_prefix(sample)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
    }

    /// The most memory that it has had resident so far, MiB.
    pub fn peak_memory_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.unwrap().trim().trim_end_matches("kB").trim();
        kib.parse::<u64>().unwrap() / 1024
    }

    /// Waits until `/readyz` answers 200.
    #[track_caller]
    pub fn wait_ready(&self) {
        let what = format!("{} is ready", self.name);
        super::eventually_true(&what, SOON, || {
            self.try_get("/readyz")
                .is_some_and(|(status, _)| status == 200)
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            self.stderr.wait_end();
            eprintln!("---- {} (pid {}) wrote:", self.name, self.pid());
            for line in self.stdout.all().iter().chain(&self.stderr.all()) {
                eprintln!("{line}");
            }
        }
    }
}

/// Runs hookstream to its end with `stdin` as its standard input.
///
/// # Panics
/// When it takes longer than two minutes.
#[track_caller]
pub fn run_to_end<S: AsRef<str>>(arguments: &[S], stdin: &str) -> Output {
    run_to_end_with(arguments, stdin, &[])
}

/// The same with these environment variables.
#[track_caller]
pub fn run_to_end_with<S: AsRef<str>>(
    arguments: &[S],
    stdin: &str,
    environment: &[(&str, &str)],
) -> Output {
    let mut child = command(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    // It may end without having read all.
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            drop(child.wait());
            let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
            panic!(
                "hookstream {words:?} did not end; it wrote: {}",
                stderr.join().unwrap()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output {
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Settings of whoever runs the tests, which must not reach the program.
pub fn foreign_settings() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| name.to_string_lossy().starts_with("HOOKSTREAM_"))
}

/// The program without them.
pub fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_hookstream"));
    for name in foreign_settings() {
        program.env_remove(name);
    }
    program
}

fn command<S: AsRef<str>>(arguments: &[S]) -> Command {
    let mut command = program();
    command
        .args(arguments.iter().map(AsRef::as_ref))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A GET to a port of this machine: status and body.
///
/// # Errors
/// When nothing answers there within 10 s, or not with HTTP.
pub fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Ok((
        status,
        if chunked {
            unchunk(body)
        } else {
            body.to_owned()
        },
    ))
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let (Some(chunk), true) = (rest.get(..size), size > 0) else {
            break;
        };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or("");
    }
    whole
}
