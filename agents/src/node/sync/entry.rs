//! What the loop keeps of one pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kontiki_base::object::ObjectKey;

use super::observe::Print;
use crate::node::lifecycle::memory::PodMemory;
use crate::node::lifecycle::seen::PodSeen;

/// One pod.
pub(super) struct Entry {
    /// The object; its status is what was last reported, with what others have added to it.
    pub(super) pod: Arc<Pod>,
    /// What the runtime showed when it was last asked.
    pub(super) seen: Arc<PodSeen>,
    /// The same, short.
    pub(super) print: Print,
    /// What is remembered beside that.
    pub(super) memory: PodMemory,
    /// Counts looks at the runtime; an answer to an older question than the latest is void.
    pub(super) look: u64,
    /// Whether the latest look has been answered.
    pub(super) looked: bool,
    /// Whether to decide anew.
    pub(super) dirty: bool,
    /// When to decide anew in any case.
    pub(super) wake_ms: Option<i64>,
    /// The status that was last handed to the session.
    pub(super) sent: Option<PodStatus>,
    /// Since when the API shows another status than that.
    pub(super) differs_since_ms: Option<i64>,
    /// When it was last said that the pod is done with; 0 is never.
    pub(super) finished_said_ms: i64,
    /// Whether the API still has the pod.
    pub(super) in_api: bool,
    /// When the files of its volumes are to be brought up to date.
    pub(super) files_due_ms: i64,
}

impl Entry {
    pub(super) fn new(pod: Pod, in_api: bool, now_ms: i64) -> Self {
        Self {
            pod: Arc::new(pod),
            seen: Arc::default(),
            print: Print::new(),
            memory: PodMemory { first_seen_ms: now_ms, ..PodMemory::default() },
            look: 0,
            looked: false,
            dirty: true,
            wake_ms: None,
            sent: None,
            differs_since_ms: None,
            finished_said_ms: 0,
            in_api,
            files_due_ms: now_ms + super::FILES_EVERY_MS,
        }
    }

    pub(super) fn key(&self) -> ObjectKey {
        let meta = &self.pod.metadata;
        ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }

    /// The earliest of what is set.
    pub(super) fn wake(&mut self, at_ms: Option<i64>) {
        self.wake_ms = [self.wake_ms, at_ms].into_iter().flatten().min();
    }

    /// Takes a newer object from the API.
    pub(super) fn update(&mut self, mut pod: Pod, now_ms: i64) {
        if let Some(sent) = &self.sent {
            let theirs = pod.status.take().unwrap_or_default();
            if ours_of(&theirs) == ours_of(sent) {
                self.differs_since_ms = None;
            } else {
                self.differs_since_ms.get_or_insert(now_ms);
            }
            pod.status = Some(merge(theirs, sent));
        }
        self.pod = Arc::new(pod);
        self.in_api = true;
        self.dirty = true;
    }

    /// The API has the pod no more: it is to end here too.
    pub(super) fn lost(&mut self, now_ms: i64) {
        self.in_api = false;
        self.dirty = true;
        if self.pod.metadata.deletion_timestamp.is_none() {
            let mut pod = (*self.pod).clone();
            pod.metadata.deletion_timestamp = Some(crate::node::time::to_time(now_ms));
            self.pod = Arc::new(pod);
        }
    }
}

/// Conditions that the agent sets.
fn is_ours(kind: &str) -> bool {
    matches!(kind, "PodReadyToStartContainers" | "Initialized" | "ContainersReady" | "Ready")
}

/// The part of a status that the agent answers for, in a form that can be compared.
fn ours_of(status: &PodStatus) -> PodStatus {
    let mut own = status.clone();
    let mut conditions = own.conditions.take().unwrap_or_default();
    conditions.retain(|c| is_ours(&c.type_));
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    own.conditions = Some(conditions);
    own.nominated_node_name = None;
    own.observed_generation = None;
    own
}

/// Our status with others' conditions.
fn merge(theirs: PodStatus, ours: &PodStatus) -> PodStatus {
    let mut merged = ours.clone();
    let mut conditions: Vec<_> = ours.conditions.iter().flatten().filter(|c| is_ours(&c.type_)).cloned().collect();
    conditions.extend(theirs.conditions.into_iter().flatten().filter(|c| !is_ours(&c.type_)));
    merged.conditions = Some(conditions);
    merged.nominated_node_name = theirs.nominated_node_name;
    merged
}
