//! What is done to the cluster, one step after the other, and what each may cost.

use std::fmt;
use std::time::Duration;

/// How long the broker is away.
pub const AWAY: Duration = Duration::from_secs(120);

/// Which image runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The commit before these manifests.
    Old,
    New,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is done: what the machine does by itself.
    Steady,
    /// All workloads get this image, as `kubectl apply -k` does it.
    Roll(Version),
    /// All run the new version: they get the form of the window that only it reads.
    NewFormat,
    /// So many replicas of deliver.
    Scale(u32),
    /// A pod of this role is deleted by force: its successor may start while it still runs.
    Delete(&'static str),
    /// Every pod is evicted, one by one, as soon as its PodDisruptionBudget lets it go.
    Evict,
    /// A pod of deliver runs out of memory.
    OutOfMemory,
    /// The only broker is stopped, and started after [`AWAY`].
    Broker,
}

impl Step {
    /// In the order in which they are done.
    const ALL: [Self; 15] = [
        Self::Steady,
        Self::Roll(Version::New),
        Self::Roll(Version::Old),
        Self::Roll(Version::New),
        Self::NewFormat,
        Self::Scale(1),
        Self::Scale(4),
        Self::Scale(2),
        Self::Scale(3),
        Self::Delete("deliver"),
        Self::Delete("fanout"),
        Self::Delete("release"),
        Self::Evict,
        Self::OutOfMemory,
        Self::Broker,
    ];

    /// The word by which `STEPS` picks it.
    fn word(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Roll(_) => "roll",
            Self::NewFormat => "format",
            Self::Scale(_) => "scale",
            Self::Delete(_) => "delete",
            Self::Evict => "evict",
            Self::OutOfMemory => "oom",
            Self::Broker => "broker",
        }
    }

    /// Pods end in an orderly way: no attempt that ends within the drain deadline is made again.
    pub fn is_orderly(self) -> bool {
        !matches!(self, Self::Delete(_) | Self::OutOfMemory | Self::Broker)
    }

    /// No partition may stand still for longer than the goal.
    pub fn is_rolling(self) -> bool {
        matches!(self, Self::Roll(_) | Self::NewFormat)
    }

    /// How many containers are expected to be restarted.
    pub fn restarts(self) -> u64 {
        u64::from(self == Self::OutOfMemory)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => write!(f, "nothing (for comparison)"),
            Self::Roll(Version::New) => write!(f, "rolling update, old to new"),
            Self::Roll(Version::Old) => write!(f, "rolling update, new to old"),
            Self::NewFormat => write!(f, "rolling restart with window format 2"),
            Self::Scale(replicas) => write!(f, "scale deliver to {replicas}"),
            Self::Delete(role) => write!(f, "delete a pod of {role} by force"),
            Self::Evict => write!(f, "evict all pods one by one"),
            Self::OutOfMemory => write!(f, "out of memory (deliver)"),
            Self::Broker => write!(f, "broker away for {} s", AWAY.as_secs()),
        }
    }
}

/// All steps, or those that the words pick, comma separated.
///
/// # Panics
/// When a word picks nothing.
pub fn chosen(words: &str) -> Vec<Step> {
    let words: Vec<&str> = words
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    for word in &words {
        let known: Vec<&str> = Step::ALL.iter().map(|step| step.word()).collect();
        assert!(
            known.contains(word),
            "STEPS: {word} must be one of {known:?}"
        );
    }
    let mut steps = Step::ALL.to_vec();
    steps.retain(|step| words.is_empty() || words.contains(&step.word()));
    steps
}
