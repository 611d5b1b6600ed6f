//! One run: traffic flows while the steps are done one after the other, each followed until all is well again; then rest,
//! and the check.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hookstream::edge::clock;
use hookstream::edge::kafka::client::SESSION_TIMEOUT;
use serde_json::json;

use crate::checker::{Promise, check};
use crate::cluster::{Cluster, NAMESPACE, Pod, apply, kubectl, try_kubectl};
use crate::history::{History, Injected, Place, Request};
use crate::it::support::{Broker, World, eventually, eventually_true};
use crate::pauses::Arrival;
use crate::reading::{
    Sampler, come_to_rest, copies, count_records, event_records, evictions, requests,
};
use crate::report::{Report, Row};
use crate::step::{AWAY, Step, Version};
use crate::traffic::{self, Generator, Progress};
use crate::truth::{self, SUBSCRIPTIONS};

/// Of each topic. Two for each replica.
const PARTITIONS: i32 = 6;
/// How long the system may take until all that was produced during a step is through. Past it, it is stuck.
const STUCK: Duration = Duration::from_secs(300);
/// How long the comparison takes.
const STEADY: Duration = Duration::from_secs(20);

/// What a run is to be.
pub struct Plan {
    /// This machine's address, as pods reach it.
    pub address: IpAddr,
    pub old_image: String,
    pub new_image: String,
    /// Events a second.
    pub rate: u32,
    pub steps: Vec<Step>,
}

impl Plan {
    fn image(&self, version: Version) -> &str {
        match version {
            Version::Old => &self.old_image,
            Version::New => &self.new_image,
        }
    }

    /// The version that runs before the first step.
    fn first_version(&self) -> Version {
        let rolls = self.steps.iter().any(|step| matches!(step, Step::Roll(_)));
        if rolls { Version::Old } else { Version::New }
    }
}

/// Where the run keeps what it makes.
fn work() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/k8s")
}

/// Runs the steps, and checks.
pub fn run(plan: &Plan) -> Report {
    let broker = Broker::with_options(&["--also", &plan.address.to_string()]);
    let mut world = World::on(&broker, "k8s");
    world.bootstrap = broker.listener("outside");
    world.tiers = vec![truth::RETRY];
    world.create_topics(PARTITIONS);
    let world = Arc::new(world);
    let progress = Arc::new(Progress::default());
    let receiver = traffic::receiver(plan.address, &progress);
    for number in 0..SUBSCRIPTIONS.len() {
        traffic::put(&world, &receiver, number, SECRET, "active");
    }
    let _namespace = Namespace::create();
    let logs = work().join("logs");
    drop(std::fs::remove_dir_all(&logs));
    let cluster = Cluster::watch(logs.clone());
    let version = plan.first_version();
    deploy(plan, &world, version, 1);
    cluster.wait_settled();
    let sampler = Sampler::start(&world);
    let generator = Generator::start(&world, plan.rate);
    let scene = Scene {
        plan,
        broker: &broker,
        world: &world,
        cluster: &cluster,
        generator: &generator,
        progress: &progress,
    };
    // The groups have formed, and traffic flows, before anything is measured.
    eventually_true("the first events come through", STUCK, || {
        progress.is_through(1, 5 * plan.rate)
    });
    let mut report = Report::new(&plan.old_image, &plan.new_image);
    let faults = scene.take_all(version, &mut report);
    let mut sent = generator.finish();
    let left = come_to_rest(&world, &progress, sent.len(), || {});
    let positions = sampler.finish();
    count_records(&world, &mut sent);
    let history = History {
        sent,
        requests: requests(&receiver),
        copies: copies(&world),
        positions,
        faults,
        session: SESSION_TIMEOUT,
        evictions: evictions(deliver_logs(&logs)),
        left,
    };
    let verdict = check(&history, Promise::ExactlyOnce);
    report.complete(&history, &verdict, &arrivals(&world, &history));
    report
}

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Everything in it goes with it.
struct Namespace;

impl Namespace {
    fn create() -> Self {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": NAMESPACE,
                // The profile that the manifests promise to meet.
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        });
        apply(&namespace.to_string());
        Self
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", NAMESPACE, "--timeout=120s"];
        if let Err(error) = try_kubectl(&arguments, "") {
            println!("the namespace {NAMESPACE} is left: {error}");
        }
    }
}

/// What every process of the fault test gets as flags, as variables.
fn variables(plan: &Plan, world: &World) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let arguments = world.args();
    let mut rest = arguments.iter().peekable();
    while let Some(flag) = rest.next() {
        let flag = flag.strip_prefix("--").expect("a flag");
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => match rest.next_if(|next| !next.starts_with("--")) {
                Some(value) => (flag, value.clone()),
                None => (flag, "true".to_owned()),
            },
        };
        variables.push((name.to_uppercase().replace('-', "_"), value));
    }
    variables.retain(|(name, _)| name != "EGRESS_ALLOW_CIDR");
    variables.push((
        "EGRESS_ALLOW_CIDR".to_owned(),
        format!("{}/32", plan.address),
    ));
    variables.push(("LOG_FORMAT".to_owned(), "text".to_owned()));
    variables
}

/// Applies the overlay with an image and the settings of this run.
fn deploy(plan: &Plan, world: &World, version: Version, window_format: u32) {
    let (name, tag) = plan
        .image(version)
        .rsplit_once(':')
        .expect("an image with a tag");
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {NAMESPACE}\n\
         resources: [../../../tests/k8s/overlay]\n\
         images: [{{name: hookstream, newName: {name}, newTag: {tag}}}]\n\
         configMapGenerator:\n- name: hookstream\n  behavior: merge\n  literals:\n"
    );
    for (variable, value) in variables(plan, world) {
        writeln!(text, "  - HOOKSTREAM_{variable}={value}").unwrap();
    }
    writeln!(text, "  - HOOKSTREAM_WINDOW_FORMAT={window_format}").unwrap();
    let dir = work().join("kustomize");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("kustomization.yaml"), text).unwrap();
    kubectl(&["apply", "-k", dir.to_str().unwrap()]);
}

/// What the deliveries wrote, also those that are gone.
fn deliver_logs(logs: &Path) -> impl Iterator<Item = String> {
    let files = std::fs::read_dir(logs).unwrap().map(|file| file.unwrap());
    let of_deliver = files.filter(|file| file.file_name().to_string_lossy().contains("-deliver-"));
    of_deliver.flat_map(|file| {
        let bytes = std::fs::read(file.path()).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    })
}

/// First attempts, by the partition of their command and by that of their event.
pub struct Arrivals {
    pub commands: Vec<Arrival>,
    pub events: Vec<Arrival>,
    /// When attempts came that take as long as their deadline, epoch ms.
    pub slow: Vec<i64>,
}

fn arrivals(world: &World, history: &History) -> Arrivals {
    let commands = history
        .copies
        .iter()
        .filter(|copy| copy.place == Place::Commands);
    // The first of a command's copies is the one that its first attempt comes from.
    let mut of_commands: HashMap<(u32, usize), (i32, i64)> = HashMap::new();
    for copy in commands {
        let known = of_commands
            .entry((copy.event, copy.subscription))
            .or_insert((copy.partition, copy.at));
        known.1 = known.1.min(copy.at);
    }
    let of_events = event_records(world);
    let first = || history.requests.iter().filter(|one| one.attempt == 1);
    let arrival = |one: &Request, record: Option<&(i32, i64)>| {
        let &(partition, produced) = record?;
        Some(Arrival {
            at: one.at,
            partition,
            produced,
        })
    };
    let is_slow = |one: &&Request| truth::is_slow(one.subscription, one.event, one.attempt);
    Arrivals {
        commands: first()
            .filter_map(|one| arrival(one, of_commands.get(&(one.event, one.subscription))))
            .collect(),
        events: first()
            .filter_map(|one| arrival(one, of_events.get(&one.event)))
            .collect(),
        slow: history
            .requests
            .iter()
            .filter(is_slow)
            .map(|one| one.at)
            .collect(),
    }
}

/// What a step acts on.
struct Scene<'a> {
    plan: &'a Plan,
    broker: &'a Broker,
    world: &'a World,
    cluster: &'a Cluster,
    generator: &'a Generator,
    progress: &'a Progress,
}

impl Scene<'_> {
    /// Takes the steps until one fails; returns the faults.
    fn take_all(&self, mut version: Version, report: &mut Report) -> Vec<Injected> {
        let mut faults = Vec::new();
        for &step in &self.plan.steps {
            if let Step::Roll(to) = step {
                version = to;
            }
            println!("{step} ({version:?})");
            // What was found out so far is worth a report, also when a step fails.
            let taken = catch_unwind(AssertUnwindSafe(|| self.take(step, version)));
            let Ok((row, fault)) = taken else {
                report.broken(step);
                break;
            };
            println!("  {}", row.summary());
            faults.extend(fault);
            let is_stuck = row.settled.is_none();
            report.rows.push(row);
            if is_stuck {
                break;
            }
        }
        faults
    }

    /// Does it, and waits until all that was produced meanwhile is through.
    fn take(&self, step: Step, version: Version) -> (Row, Option<Injected>) {
        let restarts = self.cluster.restarts();
        let first = self.generator.next();
        let from = clock::now().0;
        let since = self.act(step, version);
        let acted = clock::now().0;
        let last = self.generator.next() + self.plan.rate;
        let settled = self.wait_settled(first, last);
        let until = clock::now().0;
        let fault = (!step.is_orderly()).then(|| Injected {
            what: step.to_string(),
            of_brokers: step == Step::Broker,
            of_tenant: false,
            from,
            until: acted,
        });
        let row = Row {
            step,
            first_event: first,
            from,
            until,
            settled: settled.map(|at| at.saturating_duration_since(since)),
            restarts: self.cluster.restarts() - restarts,
        };
        (row, fault)
    }

    fn wait_settled(&self, first: u32, last: u32) -> Option<Instant> {
        let deadline = Instant::now() + STUCK;
        while Instant::now() < deadline {
            if self.progress.is_through(first, last) {
                let at = Instant::now();
                self.cluster.wait_settled();
                return Some(at);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// Since when the system has to settle.
    fn act(&self, step: Step, version: Version) -> Instant {
        match step {
            Step::Steady => std::thread::sleep(STEADY),
            Step::Roll(version) => self.roll(|| deploy(self.plan, self.world, version, 1)),
            Step::NewFormat => self.roll(|| {
                deploy(self.plan, self.world, version, 2);
                kubectl(&["rollout", "restart", "statefulset,deployment"]);
            }),
            Step::Scale(replicas) => {
                let replicas = format!("--replicas={replicas}");
                kubectl(&["scale", "statefulset/hookstream-deliver", &replicas]);
                self.cluster.wait_settled();
            }
            Step::Delete(role) => {
                let pod = self.some_pod(role);
                let since = Instant::now();
                kubectl(&["delete", "pod", &pod.name, "--grace-period=0", "--force"]);
                self.cluster.wait_replaced(&pod);
                return since;
            }
            Step::Evict => self.cluster.pods().iter().for_each(evict),
            Step::OutOfMemory => {
                let pod = self.some_pod("deliver");
                let since = Instant::now();
                run_out_of_memory(self.cluster, &pod);
                return since;
            }
            Step::Broker => {
                self.broker.stop();
                std::thread::sleep(AWAY);
                self.broker.start();
            }
        }
        Instant::now()
    }

    fn some_pod(&self, role: &str) -> Pod {
        self.cluster.pods_of(role).swap_remove(1)
    }

    /// Changes all workloads, and waits until no pod of before is left.
    fn roll(&self, change: impl FnOnce()) {
        let before = self.cluster.pods();
        change();
        eventually_true("all pods are replaced", STUCK * 2, || {
            let now = self.cluster.pods();
            let is_left = |old: &Pod| now.iter().any(|pod| pod.uid == old.uid);
            !before.iter().any(is_left)
        });
        self.cluster.wait_settled();
    }
}

/// Evicts a pod as soon as its budget allows it.
fn evict(pod: &Pod) {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/eviction", pod.name);
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": NAMESPACE},
        "deleteOptions": {"preconditions": {"uid": pod.uid}},
    });
    eventually_true(&format!("{} is evicted", pod.name), STUCK, || {
        match try_kubectl(&["create", "--raw", &path, "-f", "-"], &body.to_string()) {
            Ok(_) => true,
            Err(error) => {
                // 429: the budget allows none at the moment.
                let is_refused =
                    error.contains("disruption budget") || error.contains("TooManyRequests");
                assert!(is_refused, "{} could not be evicted: {error}", pod.name);
                false
            }
        }
    });
}

/// Lowers the memory limit of a running container below what it uses, so that the kernel kills it.
///
/// By its control group: an in-place resize is refused when the new limit is below the usage.
fn run_out_of_memory(cluster: &Cluster, pod: &Pod) {
    let (_, id) = pod.container.split_once("://").expect("a container id");
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name", id])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    // Version 1 of control groups has a tree for each controller.
    let limit = found
        .lines()
        .flat_map(|dir| {
            ["memory.max", "memory.limit_in_bytes"].map(|file| Path::new(dir).join(file))
        })
        .find(|file| file.exists());
    let limit = limit
        .unwrap_or_else(|| panic!("{} has no memory limit on this machine: {found}", pod.name));
    eventually(&format!("{} is killed", pod.name), STUCK, || {
        lower(&limit);
        let pods = cluster.pods_of(&pod.role);
        let now = pods.into_iter().find(|now| now.uid == pod.uid)?;
        (now.restarts > pod.restarts).then(|| {
            assert_eq!(
                now.ended.as_deref(),
                Some("OOMKilled"),
                "how {} ended",
                pod.name
            );
        })
    });
    cluster.wait_settled();
}

/// As low as the kernel takes it: version 1 refuses what is below the usage.
fn lower(limit: &Path) {
    let usage = limit.with_file_name("memory.usage_in_bytes");
    let used = std::fs::read_to_string(usage).ok();
    let used: u64 = used.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    // The container, and its group, may be gone.
    drop(std::fs::write(limit, used.max(4096).to_string()));
}
