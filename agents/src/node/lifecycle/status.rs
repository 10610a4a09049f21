//! The PodStatus to report.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP, Pod,
    PodCondition, PodIP, PodStatus,
};

use super::backoff::go_duration;
use super::decide::{Outcome, crash_backoff, outcome, restart_at};
use super::memory::{Op, PodMemory};
use super::probe;
use super::resources::Qos;
use super::seen::{ContainerSeen, PodSeen, SeenState};
use super::{RestartPolicy, containers, init_containers, is_deleted, is_sidecar, spec};
use crate::node::time::to_time;

/// What the node contributes to the status of its pods.
#[derive(Clone, Debug)]
pub struct NodeFacts<'a> {
    /// The node's address.
    pub ip: &'a str,
    /// Prefix of container ids.
    pub runtime: &'a str,
}

/// Conditions that the agent owns. All others belong to whoever set them, and are kept.
const OWNED: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// The status of a pod.
pub fn status(pod: &Pod, seen: &PodSeen, memory: &PodMemory, node: &NodeFacts<'_>, now_ms: i64) -> PodStatus {
    let before = pod.status.as_ref();
    let view = View { pod, seen, memory, node, now_ms };
    let init: Vec<ContainerStatus> = init_containers(pod).iter().map(|c| view.container(c, true)).collect();
    let proper: Vec<ContainerStatus> = containers(pod).iter().map(|c| view.container(c, false)).collect();
    let outcome = outcome(pod, seen, memory);
    let phase = view.phase(outcome, &proper);
    let (reason, message) = match &memory.verdict {
        Some(verdict) => (Some(verdict.reason.clone()), Some(verdict.message.clone())),
        None => (before.and_then(|s| s.reason.clone()), before.and_then(|s| s.message.clone())),
    };
    let conditions = view.conditions(phase, &init, &proper);
    let ips = view.ips();
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        host_ip: Some(node.ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: node.ip.to_owned() }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: before.and_then(|s| s.start_time.clone()).or_else(|| Some(to_time(memory.first_seen_ms))),
        qos_class: before.and_then(|s| s.qos_class.clone()).or_else(|| Some(Qos::of(pod).word().to_owned())),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(proper),
        nominated_node_name: before.and_then(|s| s.nominated_node_name.clone()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// Two statuses that say the same. The order of conditions does not matter.
pub fn same(a: &PodStatus, b: &PodStatus) -> bool {
    let sorted = |status: &PodStatus| {
        let mut status = status.clone();
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|x, y| x.type_.cmp(&y.type_));
        }
        status
    };
    sorted(a) == sorted(b)
}

struct View<'a> {
    pod: &'a Pod,
    seen: &'a PodSeen,
    memory: &'a PodMemory,
    node: &'a NodeFacts<'a>,
    now_ms: i64,
}

impl View<'_> {
    fn ips(&self) -> Vec<String> {
        if spec(self.pod).host_network == Some(true) {
            return self.seen.sandbox().map(|_| self.node.ip.to_owned()).into_iter().collect();
        }
        match self.seen.sandbox() {
            Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
            // An ended pod has lost its address but keeps showing it.
            _ => {
                let before = self.pod.status.as_ref().and_then(|s| s.pod_ips.as_ref());
                before.into_iter().flatten().map(|p| p.ip.clone()).collect()
            }
        }
    }

    fn container_id(&self, seen: &ContainerSeen) -> String {
        format!("{}://{}", self.node.runtime, seen.id)
    }

    /// What was last reported of this container, for when the runtime shows nothing of it any more.
    fn reported(&self, name: &str) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let all = status.init_container_statuses.iter().chain(status.container_statuses.iter()).flatten();
        all.into_iter().find(|c| c.name == name)
    }

    fn container(&self, c: &Container, is_init: bool) -> ContainerStatus {
        let Some(seen) = self.seen.latest(&c.name) else { return self.absent(c) };
        let probes = self.memory.probes_of(&seen.id);
        let state = self.state(c, seen, is_init);
        let running = state.running.is_some();
        let plain_init = is_init && !is_sidecar(c);
        let completed_init = plain_init && seen.exit_code() == Some(0);
        let last = if state.waiting.is_some() && seen.is_exited() { Some(seen) } else { self.seen.previous(&c.name) };
        let last_state = match last.map(|s| (s, self.terminated(s))) {
            Some((_, Some(terminated))) => Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() }),
            _ => self.reported(&c.name).and_then(|r| r.last_state.clone()).filter(|s| s.terminated.is_some()),
        };
        ContainerStatus {
            name: c.name.clone(),
            image: seen.image.clone(),
            image_id: seen.image_id.clone(),
            container_id: Some(self.container_id(seen)),
            ready: completed_init || (running && !plain_init && probe::is_ready(c, probes)),
            started: Some(running && probe::is_started(c, probes)),
            restart_count: i32::try_from(seen.attempt).unwrap_or(i32::MAX),
            state: Some(state),
            last_state,
            ..ContainerStatus::default()
        }
    }

    /// The runtime shows nothing of it: not started yet, or ended and removed.
    fn absent(&self, c: &Container) -> ContainerStatus {
        if let Some(reported) = self.reported(&c.name).filter(|r| r.container_id.is_some()) {
            let mut status = reported.clone();
            let ended = status.state.as_ref().is_some_and(|s| s.terminated.is_some());
            if !ended {
                // It ran when it was last seen, and now there is no trace of it: nobody knows how it ended.
                let terminated = ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".to_owned()),
                    message: Some("The container could not be located when the pod was terminated".to_owned()),
                    ..ContainerStateTerminated::default()
                };
                let ended = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
                let waiting = self.waiting(c);
                if is_deleted(self.pod) {
                    status.state = Some(ended);
                } else {
                    status.last_state = Some(ended);
                    status.state = Some(waiting);
                }
            }
            (status.ready, status.started) = (status.ready && ended, Some(false));
            return status;
        }
        ContainerStatus {
            name: c.name.clone(),
            image: c.image.clone().unwrap_or_default(),
            ready: false,
            started: Some(false),
            restart_count: 0,
            state: Some(self.waiting(c)),
            last_state: None,
            ..ContainerStatus::default()
        }
    }

    fn waiting(&self, c: &Container) -> ContainerState {
        let blocked = self.memory.blocked.get(&c.name);
        let (reason, message) = match blocked {
            Some(blocked) => (blocked.reason.clone(), Some(blocked.message.clone())),
            None if !self.initialized() && !init_containers(self.pod).is_empty() => ("PodInitializing".to_owned(), None),
            None => ("ContainerCreating".to_owned(), None),
        };
        let waiting = ContainerStateWaiting { reason: Some(reason), message: message.filter(|m| !m.is_empty()) };
        ContainerState { waiting: Some(waiting), ..ContainerState::default() }
    }

    fn state(&self, c: &Container, seen: &ContainerSeen, is_init: bool) -> ContainerState {
        match &seen.state {
            SeenState::Created => self.waiting(c),
            SeenState::Running { started_ms } => {
                let running = ContainerStateRunning { started_at: Some(to_time(*started_ms)) };
                ContainerState { running: Some(running), ..ContainerState::default() }
            }
            SeenState::Exited { code, .. } => {
                let policy = RestartPolicy::of(spec(self.pod));
                let plain_init = is_init && !is_sidecar(c);
                let comes_back =
                    if plain_init { *code != 0 && policy != RestartPolicy::Never } else { is_sidecar(c) || policy.restarts(*code) };
                let over = is_deleted(self.pod) || outcome(self.pod, self.seen, self.memory) != Outcome::Open;
                if comes_back && !over {
                    if self.memory.blocked.contains_key(&c.name) {
                        return self.waiting(c);
                    }
                    // The next wait is charged when a start begins; until that start is seen it does not apply.
                    if restart_at(self.memory, seen) > self.now_ms && !self.memory.busy(&Op::Start(c.name.clone())) {
                        return self.crash_loop(c, seen);
                    }
                }
                ContainerState { terminated: self.terminated(seen), ..ContainerState::default() }
            }
        }
    }

    fn crash_loop(&self, c: &Container, seen: &ContainerSeen) -> ContainerState {
        let meta = &self.pod.metadata;
        let (name, namespace, uid) = (meta.name.as_deref(), meta.namespace.as_deref(), meta.uid.as_deref());
        let message = format!(
            "back-off {} restarting failed container={} pod={}_{}({})",
            go_duration(crash_backoff(self.memory, seen).delay_ms),
            c.name,
            name.unwrap_or_default(),
            namespace.unwrap_or_default(),
            uid.unwrap_or_default()
        );
        let waiting = ContainerStateWaiting { reason: Some("CrashLoopBackOff".to_owned()), message: Some(message) };
        ContainerState { waiting: Some(waiting), ..ContainerState::default() }
    }

    fn terminated(&self, seen: &ContainerSeen) -> Option<ContainerStateTerminated> {
        let SeenState::Exited { code, reason, message, started_ms, finished_ms } = &seen.state else { return None };
        Some(ContainerStateTerminated {
            exit_code: *code,
            reason: Some(reason.clone()).filter(|r| !r.is_empty()),
            message: Some(message.clone()).filter(|m| !m.is_empty()),
            started_at: (*started_ms > 0).then(|| to_time(*started_ms)),
            finished_at: (*finished_ms > 0).then(|| to_time(*finished_ms)),
            container_id: Some(self.container_id(seen)),
            signal: None,
        })
    }

    /// Whether the init containers are through.
    fn initialized(&self) -> bool {
        let past = containers(self.pod).iter().any(|c| self.seen.latest(&c.name).is_some_and(|s| s.state != SeenState::Created));
        past || init_containers(self.pod).iter().all(|c| match self.seen.latest(&c.name) {
            Some(seen) if is_sidecar(c) => seen.is_running() && probe::is_started(c, self.memory.probes_of(&seen.id)),
            Some(seen) => seen.exit_code() == Some(0),
            None => false,
        })
    }

    fn phase(&self, outcome: Outcome, proper: &[ContainerStatus]) -> &'static str {
        let started = proper.iter().any(|c| {
            let state = c.state.as_ref();
            let now = state.is_some_and(|s| s.running.is_some() || s.terminated.is_some());
            now || c.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
        });
        match outcome {
            Outcome::Succeeded => "Succeeded",
            Outcome::Failed => "Failed",
            Outcome::Open if self.initialized() && started => "Running",
            Outcome::Open => "Pending",
        }
    }

    fn conditions(&self, phase: &str, init: &[ContainerStatus], proper: &[ContainerStatus]) -> Vec<PodCondition> {
        let over = matches!(phase, "Succeeded" | "Failed");
        let completed = phase == "Succeeded";
        let network = self.seen.live_sandbox().is_some_and(|s| !s.ips.is_empty() || spec(self.pod).host_network == Some(true));
        let unready: Vec<&str> = proper.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
        let side_unready = init_containers(self.pod).iter().zip(init).filter(|(c, s)| is_sidecar(c) && !s.ready).count();
        let containers_ready = !over && !proper.is_empty() && unready.is_empty() && side_unready == 0;
        let gates = spec(self.pod).readiness_gates.as_deref().unwrap_or_default();
        let gate = gates.iter().find(|gate| !self.has_condition(&gate.condition_type));
        let initialized = self.initialized() || completed;
        let why_init = || {
            let waiting: Vec<&str> = init.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
            ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", waiting.join(" ")))
        };
        let why_ready = || match (completed, over) {
            (true, _) => ("PodCompleted", String::new()),
            (_, true) => ("PodFailed", String::new()),
            _ => ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
        };
        let (init_reason, init_message) = if initialized { completed_reason(completed) } else { why_init() };
        let (ready_reason, ready_message) = if containers_ready { ("", String::new()) } else { why_ready() };
        let gated = match gate {
            Some(gate) if containers_ready => (
                "ReadinessGatesNotReady",
                format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type),
            ),
            _ => (ready_reason, ready_message.clone()),
        };
        let mut all = vec![
            self.condition("PodReadyToStartContainers", network, "", String::new()),
            self.condition("Initialized", initialized, init_reason, init_message),
            self.condition("Ready", containers_ready && gate.is_none(), gated.0, gated.1),
            self.condition("ContainersReady", containers_ready, ready_reason, ready_message),
        ];
        let before = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        all.extend(before.iter().filter(|c| !OWNED.contains(&c.type_.as_str())).cloned());
        if !all.iter().any(|c| c.type_ == "PodScheduled") {
            all.push(self.condition("PodScheduled", true, "", String::new()));
        }
        all
    }

    fn has_condition(&self, kind: &str) -> bool {
        let conditions = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == kind && c.status == "True")
    }

    /// A condition; the time of its last change is kept while its status stays.
    fn condition(&self, kind: &str, holds: bool, reason: &str, message: String) -> PodCondition {
        let word = if holds { "True" } else { "False" };
        let before = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let unchanged = before.iter().find(|c| c.type_ == kind && c.status == word);
        let since = unchanged.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| to_time(self.now_ms));
        PodCondition {
            type_: kind.to_owned(),
            status: word.to_owned(),
            reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
            message: Some(message).filter(|m| !m.is_empty()),
            last_transition_time: Some(since),
            observed_generation: self.pod.metadata.generation,
            last_probe_time: None,
        }
    }
}

fn completed_reason(completed: bool) -> (&'static str, String) {
    (if completed { "PodCompleted" } else { "" }, String::new())
}
