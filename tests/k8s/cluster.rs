//! The cluster under test: kubectl for what changes, and the API server's own answers, by `kubectl proxy`, for what is
//! watched.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::it::support::{eventually_true, http_get};

/// The namespace that everything is in.
pub const NAMESPACE: &str = "hookstream-test";
/// For what a busy machine should do within moments: start pods, end them.
const LONG: Duration = Duration::from_secs(240);

/// One pod as the API server describes it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    /// `fanout`, `deliver`, …
    pub role: String,
    pub image: String,
    pub ready: bool,
    /// It is being deleted.
    pub ending: bool,
    pub restarts: u64,
    /// `containerd://…`
    pub container: String,
    pub running: bool,
    /// Why its container ended the last time.
    pub ended: Option<String>,
}

impl Pod {
    fn parse(value: &Value) -> Self {
        let text = |pointer: &str| {
            let found = value.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let container = |name: &str| format!("/status/containerStatuses/0/{name}");
        let flag = |name: &str| value.pointer(&container(name)).and_then(Value::as_bool);
        let restarts = value.pointer(&container("restartCount"));
        Self {
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
            role: text("/metadata/labels/app.kubernetes.io~1component"),
            image: text("/spec/containers/0/image"),
            ready: flag("ready").unwrap_or(false),
            ending: value.pointer("/metadata/deletionTimestamp").is_some(),
            restarts: restarts.and_then(Value::as_u64).unwrap_or(0),
            container: text(&container("containerID")),
            running: value.pointer(&container("state/running")).is_some(),
            ended: Some(text(&container("lastState/terminated/reason")))
                .filter(|reason| !reason.is_empty()),
        }
    }
}

/// A child that ends when this is dropped.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs kubectl in the namespace.
///
/// # Errors
/// What it wrote to standard error, when it fails.
pub fn try_kubectl(arguments: &[&str], stdin: &str) -> Result<String, String> {
    let mut child = Command::new("kubectl")
        .args(["--namespace", NAMESPACE])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl should start");
    let mut input = child.stdin.take().unwrap();
    // It may end without having read all.
    drop(input.write_all(stdin.as_bytes()));
    drop(input);
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// As [`try_kubectl`].
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments, "")
        .unwrap_or_else(|error| panic!("kubectl {arguments:?} failed: {error}"))
}

/// Applies manifests.
#[track_caller]
pub fn apply(manifests: &str) {
    if let Err(error) = try_kubectl(&["apply", "-f", "-"], manifests) {
        panic!("the manifests were refused: {error}");
    }
}

/// The pods as they are now, and what became of their containers so far.
pub struct Cluster {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
    _proxy: Reaped,
}

/// What the watcher has seen.
#[derive(Default)]
struct Seen {
    /// Restarts of each pod by its uid; pods that are gone keep theirs.
    restarts: BTreeMap<String, u64>,
}

impl Cluster {
    /// Watches the namespace; what containers write is kept in `logs`.
    pub fn watch(logs: PathBuf) -> Self {
        let mut proxy = Command::new("kubectl")
            .args(["proxy", "--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl should start");
        let mut line = String::new();
        BufReader::new(proxy.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("kubectl proxy wrote {line:?}"));
        let (seen, stop) = (
            Arc::new(Mutex::new(Seen::default())),
            Arc::new(AtomicBool::new(false)),
        );
        let (into, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        std::fs::create_dir_all(&logs).unwrap();
        let watcher = std::thread::spawn(move || watch(port, &logs, &into, &stopped));
        Self {
            port,
            seen,
            stop,
            watcher: Some(watcher),
            _proxy: Reaped(proxy),
        }
    }

    /// All pods of the namespace.
    pub fn pods(&self) -> Vec<Pod> {
        let mut found = Vec::new();
        eventually_true("the API server lists the pods", LONG, || {
            list(self.port).is_some_and(|pods| {
                found = pods;
                true
            })
        });
        found
    }

    /// The pods of a role, by name.
    pub fn pods_of(&self, role: &str) -> Vec<Pod> {
        let mut pods = self.pods();
        pods.retain(|pod| pod.role == role);
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        pods
    }

    /// Restarts of containers so far, of pods that are gone too.
    pub fn restarts(&self) -> u64 {
        // What happened since the watcher looked counts too.
        let pods = self.pods();
        let mut seen = self.seen.lock().unwrap();
        seen.note(&pods);
        seen.restarts.values().sum()
    }

    /// Whether each workload has as many ready pods as it should, and no others.
    pub fn is_settled(&self) -> bool {
        self.pods().iter().all(|pod| pod.ready && !pod.ending)
            && ["statefulsets", "deployments"]
                .iter()
                .all(|kind| self.are_complete(kind))
    }

    fn are_complete(&self, kind: &str) -> bool {
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/{kind}");
        let all = ask(self.port, &path);
        all.is_some_and(|all| {
            let items = all["items"].as_array();
            items.is_some_and(|items| !items.is_empty() && items.iter().all(is_complete))
        })
    }

    pub fn wait_settled(&self) {
        eventually_true("all pods are ready", LONG, || self.is_settled());
    }

    /// Waits until this pod is gone and its successor is ready.
    pub fn wait_replaced(&self, old: &Pod) {
        let what = format!("the successor of {} is ready", old.name);
        eventually_true(&what, LONG, || {
            let pods = self.pods_of(&old.role);
            !pods.iter().any(|pod| pod.uid == old.uid) && self.is_settled()
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(watcher) = self.watcher.take() {
            drop(watcher.join());
        }
    }
}

/// What the API server says of a path; `None` while it does not answer.
fn ask(port: u16, path: &str) -> Option<Value> {
    let (status, body) = http_get(port, path).ok()?;
    if status != 200 {
        return None;
    }
    serde_json::from_str(&body).ok()
}

fn list(port: u16) -> Option<Vec<Pod>> {
    let all = ask(port, &format!("/api/v1/namespaces/{NAMESPACE}/pods"))?;
    Some(all["items"].as_array()?.iter().map(Pod::parse).collect())
}

/// Whether a controller has acted on the last change of a workload, and is done.
fn is_complete(workload: &Value) -> bool {
    let number = |pointer: &str| workload.pointer(pointer).and_then(Value::as_u64);
    let wanted = number("/spec/replicas");
    number("/status/observedGeneration") == number("/metadata/generation")
        && number("/status/replicas") == wanted
        && number("/status/readyReplicas") == wanted
        && number("/status/updatedReplicas") == wanted
}

impl Seen {
    fn note(&mut self, pods: &[Pod]) {
        for pod in pods {
            let known = self.restarts.entry(pod.uid.clone()).or_default();
            *known = (*known).max(pod.restarts);
        }
    }
}

fn watch(port: u16, logs: &Path, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut followers = Vec::new();
    let mut followed = BTreeSet::new();
    while !stop.load(Ordering::SeqCst) {
        for pod in list(port).unwrap_or_default() {
            seen.lock().unwrap().note(std::slice::from_ref(&pod));
            if pod.running && followed.insert((pod.uid.clone(), pod.restarts)) {
                followers.push(follow(&pod, logs));
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Copies what a container writes to a file of its own.
fn follow(pod: &Pod, logs: &Path) -> Reaped {
    let name = format!("{}-{}-{}.log", pod.name, &pod.uid[..8], pod.restarts);
    let file = std::fs::File::create(logs.join(name)).unwrap();
    let child = Command::new("kubectl")
        .args(["--namespace", NAMESPACE, "logs", "--follow", &pod.name])
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(Stdio::null())
        .spawn();
    Reaped(child.expect("kubectl should start"))
}
