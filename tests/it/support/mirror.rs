//! MirrorMaker 2 from one world's broker to another's, by `scripts/kafka mirror`.

use std::process::{Child, ChildStdin, Command, Stdio};

use super::World;
use super::broker::script;

/// A running MirrorMaker; it ends with this process at the latest.
pub struct Mirror {
    child: Child,
    stdin: Option<ChildStdin>,
    dir: tempfile::TempDir,
}

impl Mirror {
    /// Copies all of `source`'s topics and groups to `target`, by the settings of the guide: docs/operations.md.
    pub fn start(source: &World, target: &World) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hookstream-mirror-")
            .tempdir()
            .unwrap();
        let file = dir.path().join("mirror.properties");
        std::fs::write(&file, properties(source, target)).unwrap();
        let mut child = Command::new(script())
            .arg("mirror")
            .arg(&file)
            .stdin(Stdio::piped())
            .spawn()
            .expect("scripts/kafka should start");
        let stdin = child.stdin.take();
        Self { child, stdin, dir }
    }

    /// Sends MirrorMaker itself a signal by name: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let file = self.dir.path().join("mirror.properties.pid");
        let pid = std::fs::read_to_string(file).unwrap();
        let status = Command::new("kill")
            .args([&format!("-{name}"), pid.trim()])
            .status()
            .unwrap();
        assert!(status.success(), "MirrorMaker could not be sent SIG{name}");
    }

    /// Stops it in an orderly way: what it has read is written.
    ///
    /// # Panics
    /// When it had ended by itself.
    pub fn stop(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "MirrorMaker ended by itself: {ended:?}");
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(self.stdin.take());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.dir.path().join("mirror.properties.log");
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            eprintln!("---- MirrorMaker wrote at the end:\n{last}");
        }
    }
}

fn properties(source: &World, target: &World) -> String {
    let (from, to, prefix) = (&source.brokers, &target.brokers, &source.prefix);
    format!(
        "clusters=source,target
source.bootstrap.servers={from}
target.bootstrap.servers={to}
source->target.enabled=true
target->source.enabled=false
source->target.topics={prefix}.*
source->target.groups={prefix}(fanout|deliver|release)
replication.policy.class=org.apache.kafka.connect.mirror.IdentityReplicationPolicy
source->target.consumer.isolation.level=read_committed
source->target.offset.lag.max=0
source->target.sync.group.offsets.enabled=true
source->target.sync.group.offsets.interval.seconds=1
source->target.emit.checkpoints.interval.seconds=1
source->target.emit.heartbeats.interval.seconds=1
source->target.refresh.topics.interval.seconds=1
source->target.refresh.groups.interval.seconds=1
source->target.sync.topic.configs.enabled=false
source->target.sync.topic.acls.enabled=false
replication.factor=1
checkpoints.topic.replication.factor=1
heartbeats.topic.replication.factor=1
offset-syncs.topic.replication.factor=1
offset.storage.replication.factor=1
status.storage.replication.factor=1
config.storage.replication.factor=1
tasks.max=2
"
    )
}

/// Runs one of Kafka's console tools to its end; what it printed.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn kafka_tool(arguments: &[&str]) -> String {
    let output = Command::new(script())
        .arg("tool")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {printed}{wrong}");
    printed
}
