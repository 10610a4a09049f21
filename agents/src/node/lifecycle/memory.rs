//! What the agent remembers of a pod between two looks at it. Lost when the agent restarts; nothing in it may be needed to be right.

use std::collections::{BTreeMap, BTreeSet};

use super::backoff::Backoff;
use super::probe::ProbeMemory;

/// Something that is being done for a pod right now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Volumes are being made.
    Volumes,
    /// A sandbox is being made.
    Sandbox,
    /// This container's image is being fetched.
    Pull(String),
    /// A container of this name is being made and started.
    Start(String),
    /// The container with this id is being stopped.
    Stop(String),
    /// The sandbox with this id is being stopped.
    StopSandbox(String),
    /// What is left of the pod is being removed.
    CleanUp,
    /// Old containers and sandboxes are being removed.
    Prune,
}

/// Why a container that should run does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The waiting state's reason: `ErrImagePull`, `CreateContainerConfigError`…
    pub reason: String,
    /// Its message.
    pub message: String,
    /// No further attempt before this time.
    pub until_ms: i64,
    /// How the attempts have been going.
    pub backoff: Backoff,
}

/// A pod that the agent has given up for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Reason of the Failed phase: `DeadlineExceeded`, `Evicted`, `OutOfcpu`…
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// Everything remembered of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodMemory {
    /// When the agent first saw the pod.
    pub first_seen_ms: i64,
    /// What is being done.
    pub in_flight: BTreeSet<Op>,
    /// Whether volumes stand.
    pub volumes_ready: bool,
    /// Why the pod as a whole cannot start (volumes, sandbox), and until when not to try again.
    pub pod_blocked: Option<Blocked>,
    /// The same per container.
    pub blocked: BTreeMap<String, Blocked>,
    /// Containers whose image has been found or fetched for the next start.
    pub image_ready: BTreeSet<String>,
    /// Crash backoff per container.
    pub crashes: BTreeMap<String, Backoff>,
    /// Probes, by container id and then kind.
    pub probes: BTreeMap<String, ProbeMemory>,
    /// The seconds of grace with which each container that is being stopped was told to end.
    pub stopping: BTreeMap<String, i64>,
    /// Set once the agent has given up the pod.
    pub verdict: Option<Verdict>,
    /// Whether everything of the pod has been removed.
    pub cleaned: bool,
}

impl PodMemory {
    /// Whether this is being done.
    pub fn busy(&self, op: &Op) -> bool {
        self.in_flight.contains(op)
    }

    /// The probes of a container; nothing known yet if it is new.
    pub fn probes_of(&self, container_id: &str) -> Option<&ProbeMemory> {
        self.probes.get(container_id)
    }
}
