//! The next steps of a pod.
//!
//! A step is named here and carried out elsewhere; while one is in flight it is not asked for again. Every decision starts from what
//! the runtime shows, so an agent that was restarted goes on where its predecessor stopped and touches nothing that runs as it should.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::backoff::{Backoff, FORGET_MS};
use super::memory::{Op, PodMemory, Verdict};
use super::probe::{self, ProbeKind};
use super::seen::{ContainerSeen, PodSeen, SeenState};
use super::{RestartPolicy, container, container_hash, containers, grace_seconds, init_containers, is_deleted, is_sidecar, spec};

/// Dead containers of one name that are kept beside the newest, for their logs and as `lastState`.
const KEPT_DEAD: usize = 1;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the pod's volumes.
    PrepareVolumes,
    /// Make a sandbox.
    CreateSandbox {
        /// Its attempt number.
        attempt: u32,
    },
    /// See that the image is there, fetching it if the policy says so.
    PullImage {
        /// For this container.
        name: String,
    },
    /// Make and start a container.
    StartContainer {
        /// Its name.
        name: String,
        /// Its attempt number, which is also its restart count.
        attempt: u32,
        /// The sandbox to start it in.
        sandbox: String,
    },
    /// Ask a container to end.
    StopContainer {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Seconds until it is killed.
        grace: i64,
        /// For the event.
        why: String,
    },
    /// Give back a sandbox's network.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Remove dead containers and sandboxes that nobody needs any more.
    Prune {
        /// Container ids.
        containers: Vec<String>,
        /// Sandbox ids.
        sandboxes: Vec<String>,
    },
    /// Remove everything of the pod: containers, sandboxes, volumes, cgroup.
    CleanUp,
    /// Give the pod up for good.
    GiveUp(Verdict),
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// All of these, concurrently.
    pub steps: Vec<Step>,
    /// Milliseconds since the epoch.
    pub recheck_ms: Option<i64>,
}

impl Decision {
    fn wait(&mut self, until_ms: i64) {
        self.recheck_ms = Some(self.recheck_ms.map_or(until_ms, |at| at.min(until_ms)));
    }
}

/// How the pod as a whole stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something runs, or will.
    Open,
    /// Everything has ended well.
    Succeeded,
    /// Everything has ended, not all of it well; or the agent has given up.
    Failed,
}

/// Whether the pod has run its course.
pub fn outcome(pod: &Pod, seen: &PodSeen, memory: &PodMemory) -> Outcome {
    match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
        // What has been reported once as ended never comes back.
        Some("Succeeded") => return Outcome::Succeeded,
        Some("Failed") => return Outcome::Failed,
        _ if memory.verdict.is_some() => return Outcome::Failed,
        _ => {}
    }
    let policy = RestartPolicy::of(spec(pod));
    let init_failed = policy == RestartPolicy::Never
        && init_containers(pod)
            .iter()
            .filter(|c| !is_sidecar(c))
            .any(|c| seen.current(&c.name).and_then(ContainerSeen::exit_code).is_some_and(|code| code != 0));
    if init_failed {
        return Outcome::Failed;
    }
    let codes: Option<Vec<i32>> = containers(pod).iter().map(|c| seen.latest(&c.name)?.exit_code()).collect();
    match codes {
        Some(codes) if !codes.is_empty() && codes.iter().all(|code| !policy.restarts(*code)) => {
            if codes.iter().all(|code| *code == 0) {
                Outcome::Succeeded
            } else {
                Outcome::Failed
            }
        }
        _ => Outcome::Open,
    }
}

/// The next steps.
pub fn decide(pod: &Pod, seen: &PodSeen, memory: &PodMemory, now_ms: i64) -> Decision {
    let mut decision = Decision::default();
    if is_deleted(pod) || outcome(pod, seen, memory) != Outcome::Open {
        wind_down(pod, seen, memory, &mut decision);
        return decision;
    }
    if let Some(deadline_ms) = deadline(pod, memory) {
        if deadline_ms <= now_ms {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            decision.steps.push(Step::GiveUp(Verdict { reason: "DeadlineExceeded".to_owned(), message }));
            return decision;
        }
        decision.wait(deadline_ms);
    }
    if let Some(blocked) = memory.pod_blocked.as_ref().filter(|b| b.until_ms > now_ms) {
        decision.wait(blocked.until_ms);
        return decision;
    }
    if !memory.volumes_ready {
        ask(memory, &mut decision, Op::Volumes, Step::PrepareVolumes);
        return decision;
    }
    let Some(sandbox) = seen.live_sandbox() else {
        replace_sandbox(seen, memory, &mut decision);
        return decision;
    };
    let turn = Turn { pod, seen, memory, sandbox: &sandbox.id, now_ms };
    turn.run(&mut decision);
    prune(pod, seen, memory, &mut decision);
    decision
}

/// When `activeDeadlineSeconds` is over.
fn deadline(pod: &Pod, memory: &PodMemory) -> Option<i64> {
    let seconds = spec(pod).active_deadline_seconds?;
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(memory.first_seen_ms, crate::node::time::from_time);
    Some(started.saturating_add(seconds.saturating_mul(1_000)))
}

/// Adds a step unless it is being done.
fn ask(memory: &PodMemory, decision: &mut Decision, op: Op, step: Step) {
    if !memory.busy(&op) {
        decision.steps.push(step);
    }
}

/// The sandbox is absent or dead: whatever still runs in the old one has lost its network, so the whole pod is started again.
fn replace_sandbox(seen: &PodSeen, memory: &PodMemory, decision: &mut Decision) {
    let mut old_runs = false;
    for container in seen.running() {
        old_runs = true;
        stop(memory, decision, container, 2, "the pod's sandbox is gone");
    }
    if old_runs || memory.in_flight.iter().any(|op| matches!(op, Op::Stop(_) | Op::Start(_) | Op::StopSandbox(_))) {
        return;
    }
    let attempt = seen.sandbox().map_or(0, |s| s.attempt + 1);
    ask(memory, decision, Op::Sandbox, Step::CreateSandbox { attempt });
}

/// Asks a container to end; again if it now gets less time than it was told.
fn stop(memory: &PodMemory, decision: &mut Decision, seen: &ContainerSeen, grace: i64, why: &str) {
    let told = memory.stopping.get(&seen.id);
    let shorter = told.is_some_and(|told| grace < *told);
    if shorter || (told.is_none() && !memory.busy(&Op::Stop(seen.id.clone()))) {
        let (id, name, why) = (seen.id.clone(), seen.name.clone(), why.to_owned());
        decision.steps.push(Step::StopContainer { id, name, grace, why });
    }
}

/// The pod is to end, or has ended: containers proper first, then sidecars from the last to the first, then the sandbox; and when
/// the object is being deleted, everything that is left.
fn wind_down(pod: &Pod, seen: &PodSeen, memory: &PodMemory, decision: &mut Decision) {
    let grace = grace_seconds(pod);
    let running: Vec<&ContainerSeen> = seen.running().collect();
    let is_side = |c: &ContainerSeen| init_containers(pod).iter().any(|i| i.name == c.name && is_sidecar(i));
    let (sidecars, proper): (Vec<_>, Vec<_>) = running.into_iter().partition(|c| is_side(c));
    for container in &proper {
        stop(memory, decision, container, grace, "Stopping container");
    }
    if proper.is_empty() {
        let position = |c: &ContainerSeen| init_containers(pod).iter().position(|i| i.name == c.name);
        if let Some(last) = sidecars.iter().max_by_key(|c| position(c)) {
            stop(memory, decision, last, grace, "Stopping container");
        }
    }
    if !proper.is_empty() || !sidecars.is_empty() || !memory.in_flight.is_empty() {
        return;
    }
    for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
        ask(memory, decision, Op::StopSandbox(sandbox.id.clone()), Step::StopSandbox { id: sandbox.id.clone() });
    }
    if is_deleted(pod) && !memory.cleaned && seen.sandboxes.iter().all(|s| !s.ready) {
        ask(memory, decision, Op::CleanUp, Step::CleanUp);
    }
}

/// Containers and sandboxes that nobody needs any more.
fn prune(pod: &Pod, seen: &PodSeen, memory: &PodMemory, decision: &mut Decision) {
    let mut old = Vec::new();
    for c in init_containers(pod).iter().chain(containers(pod)) {
        let dead = seen.containers.iter().filter(|s| s.name == c.name).skip(1).filter(|s| !s.is_running());
        old.extend(dead.skip(KEPT_DEAD).map(|s| s.id.clone()));
    }
    let kept = |sandbox: &str| seen.containers.iter().any(|c| c.sandbox == sandbox && !old.contains(&c.id));
    let sandboxes: Vec<String> = seen.sandboxes.iter().skip(1).filter(|s| !s.ready && !kept(&s.id)).map(|s| s.id.clone()).collect();
    if !old.is_empty() || !sandboxes.is_empty() {
        ask(memory, decision, Op::Prune, Step::Prune { containers: old, sandboxes });
    }
}

/// One look at a pod whose sandbox stands.
struct Turn<'a> {
    pod: &'a Pod,
    seen: &'a PodSeen,
    memory: &'a PodMemory,
    sandbox: &'a str,
    now_ms: i64,
}

/// What an init container means for those behind it.
enum Gate {
    Open,
    Closed,
}

impl Turn<'_> {
    fn run(&self, decision: &mut Decision) {
        // Containers proper exist only once the init containers are through; those may have been removed since.
        let initialized = containers(self.pod).iter().any(|c| self.seen.current(&c.name).is_some());
        for init in init_containers(self.pod) {
            let gate = if is_sidecar(init) { self.sidecar(init, decision) } else { self.init(init, initialized, decision) };
            if matches!(gate, Gate::Closed) && !initialized {
                return;
            }
        }
        for container in containers(self.pod) {
            self.proper(container, decision);
        }
    }

    /// An init container: those behind it wait until it has ended well.
    fn init(&self, c: &Container, initialized: bool, decision: &mut Decision) -> Gate {
        match self.seen.current(&c.name).map(|s| (s, &s.state)) {
            _ if initialized => return Gate::Open,
            Some((_, SeenState::Exited { code: 0, .. })) => return Gate::Open,
            Some((_, SeenState::Running { .. })) => {}
            Some((seen, SeenState::Exited { .. })) => self.restart(c, seen, decision),
            Some((_, SeenState::Created)) | None => self.start(c, decision),
        }
        Gate::Closed
    }

    /// A sidecar: it is kept running; those behind it wait until it has started.
    fn sidecar(&self, c: &Container, decision: &mut Decision) -> Gate {
        match self.seen.current(&c.name) {
            Some(seen) if seen.is_running() => {
                if self.stop_if_bad(c, seen, decision) || !probe::is_started(c, self.memory.probes_of(&seen.id)) {
                    return Gate::Closed;
                }
                Gate::Open
            }
            Some(seen) if seen.is_exited() => {
                self.restart(c, seen, decision);
                Gate::Closed
            }
            _ => {
                self.start(c, decision);
                Gate::Closed
            }
        }
    }

    fn proper(&self, c: &Container, decision: &mut Decision) {
        match self.seen.current(&c.name) {
            Some(seen) if seen.is_running() => {
                self.stop_if_bad(c, seen, decision);
            }
            Some(seen) => match &seen.state {
                SeenState::Exited { code, .. } if RestartPolicy::of(spec(self.pod)).restarts(*code) => self.restart(c, seen, decision),
                SeenState::Exited { .. } if seen.hash != container_hash(c) => self.start(c, decision),
                SeenState::Exited { .. } | SeenState::Running { .. } => {}
                SeenState::Created => self.start(c, decision),
            },
            // In a sandbox that replaces another one, what had ended for good stays ended.
            None => match self.seen.latest(&c.name).and_then(ContainerSeen::exit_code) {
                Some(code) if !RestartPolicy::of(spec(self.pod)).restarts(code) => {}
                _ => self.start(c, decision),
            },
        }
    }

    /// Stops a running container that is not as it should be. True if it is not.
    fn stop_if_bad(&self, c: &Container, seen: &ContainerSeen, decision: &mut Decision) -> bool {
        let own = spec(self.pod).termination_grace_period_seconds.unwrap_or(30);
        if seen.hash != container_hash(c) {
            let why = format!("Container {} definition changed, will be restarted", c.name);
            stop(self.memory, decision, seen, own, &why);
            return true;
        }
        let Some((kind, _)) = probe::fatal(c, self.memory.probes_of(&seen.id)) else { return false };
        let grace = kind.of(c).and_then(|p| p.termination_grace_period_seconds).unwrap_or(own);
        let why = format!("Container {} failed {} probe, will be restarted", c.name, kind.word().to_lowercase());
        stop(self.memory, decision, seen, grace, &why);
        debug_assert!(kind != ProbeKind::Readiness);
        true
    }

    /// Starts an ended container again, when its backoff is over.
    fn restart(&self, c: &Container, seen: &ContainerSeen, decision: &mut Decision) {
        let at = restart_at(self.memory, seen);
        if at > self.now_ms {
            decision.wait(at);
        } else {
            self.start(c, decision);
        }
    }

    /// Starts a container: image first.
    fn start(&self, c: &Container, decision: &mut Decision) {
        let name = c.name.clone();
        if self.memory.busy(&Op::Start(name.clone())) || self.memory.busy(&Op::Pull(name.clone())) {
            return;
        }
        if let Some(blocked) = self.memory.blocked.get(&name).filter(|b| b.until_ms > self.now_ms) {
            decision.wait(blocked.until_ms);
            return;
        }
        if !self.memory.image_ready.contains(&name) {
            decision.steps.push(Step::PullImage { name });
            return;
        }
        let attempt = self.seen.latest(&name).map_or(0, |s| s.attempt + 1);
        decision.steps.push(Step::StartContainer { name, attempt, sandbox: self.sandbox.to_owned() });
    }
}

/// When an ended container may be started again.
pub fn restart_at(memory: &PodMemory, seen: &ContainerSeen) -> i64 {
    let SeenState::Exited { started_ms, finished_ms, .. } = &seen.state else { return 0 };
    let ran_ms = if *started_ms == 0 { 0 } else { finished_ms - started_ms };
    crash_backoff(memory, seen).ready_at(*finished_ms, ran_ms)
}

/// The crash backoff that applies to an ended container. An agent that was restarted has forgotten it, and assumes the shortest.
pub fn crash_backoff(memory: &PodMemory, seen: &ContainerSeen) -> Backoff {
    let known = memory.crashes.get(&seen.name).copied();
    known.unwrap_or_else(|| if seen.attempt == 0 { Backoff::default() } else { Backoff::resumed(seen.created_ms) })
}

/// To be noted when a container is started again: the next crash waits longer.
pub fn charge_restart(memory: &mut PodMemory, seen: Option<&ContainerSeen>, now_ms: i64) {
    let Some(seen) = seen else { return };
    let SeenState::Exited { started_ms, finished_ms, .. } = seen.state else { return };
    let ran_ms = if started_ms == 0 { 0 } else { (finished_ms - started_ms).min(FORGET_MS) };
    let charged = crash_backoff(memory, seen).charge(now_ms, ran_ms);
    memory.crashes.insert(seen.name.clone(), charged);
}

/// The containers of the pod that are to be probed now, and when to look again.
pub fn due_probes(pod: &Pod, seen: &PodSeen, memory: &PodMemory, now_ms: i64) -> (Vec<(String, String, ProbeKind)>, Option<i64>) {
    let (mut all, mut next): (Vec<(String, String, ProbeKind)>, Option<i64>) = (Vec::new(), None);
    if is_deleted(pod) {
        return (all, None);
    }
    for seen in seen.running() {
        let (SeenState::Running { started_ms }, Some(c)) = (&seen.state, container(pod, &seen.name)) else { continue };
        let (kinds, later) = probe::due(c, memory.probes_of(&seen.id), *started_ms, now_ms);
        all.extend(kinds.into_iter().map(|kind| (seen.id.clone(), seen.name.clone(), kind)));
        next = [next, later].into_iter().flatten().min();
    }
    (all, next)
}
