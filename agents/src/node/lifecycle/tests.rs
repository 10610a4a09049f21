//! Tables of decisions and statuses.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};

use super::backoff::{Backoff, FIRST_MS};
use super::decide::{Outcome, Step, charge_restart, decide, due_probes, outcome};
use super::memory::{Blocked, Op, PodMemory};
use super::probe::{ProbeKind, ProbeMemory, Timing};
use super::seen::{ContainerSeen, PodSeen, SandboxSeen, SeenState};
use super::status::{NodeFacts, same, status};
use super::{container, container_hash};

/// Containers: name, attempt, state.
type Shape<'a> = &'a [(&'a str, u32, SeenState)];

const NOW: i64 = 1_000_000_000;

fn pod_with(spec: Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "n", "uid": "u"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
}

fn pod(policy: &str) -> Pod {
    pod_with(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i:1"}]}))
}

fn deleted(mut pod: Pod, grace: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(crate::node::time::to_time(NOW));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

fn ready_memory() -> PodMemory {
    let mut memory = PodMemory { volumes_ready: true, first_seen_ms: NOW, ..PodMemory::default() };
    memory.image_ready.extend(["a", "b", "init", "side"].map(str::to_owned));
    memory
}

fn sandbox(attempt: u32, ready: bool) -> SandboxSeen {
    SandboxSeen { id: format!("s{attempt}"), attempt, ready, created_ms: NOW, ips: vec!["10.0.0.2".into()] }
}

fn seen_of(pod: &Pod, containers: Shape<'_>) -> PodSeen {
    let containers = containers.iter().map(|(name, attempt, state)| ContainerSeen {
        id: format!("{name}{attempt}"),
        sandbox: "s0".into(),
        name: (*name).to_owned(),
        attempt: *attempt,
        state: state.clone(),
        image: "i:1".into(),
        image_id: "sha256:1".into(),
        hash: container(pod, name).map(container_hash).unwrap_or_default(),
        created_ms: NOW + i64::from(*attempt),
    });
    let mut seen = PodSeen { sandboxes: vec![sandbox(0, true)], containers: containers.collect() };
    seen.sort();
    seen
}

fn running() -> SeenState {
    SeenState::Running { started_ms: NOW }
}

fn exited(code: i32) -> SeenState {
    let reason = if code == 0 { "Completed" } else { "Error" };
    SeenState::Exited { code, reason: reason.into(), message: String::new(), started_ms: NOW - 1_000, finished_ms: NOW }
}

fn start(name: &str, attempt: u32) -> Step {
    Step::StartContainer { name: name.into(), attempt, sandbox: "s0".into() }
}

fn steps(pod: &Pod, seen: &PodSeen, memory: &PodMemory) -> Vec<Step> {
    decide(pod, seen, memory, NOW).steps
}

fn stops(steps: &[Step]) -> Vec<(&str, i64)> {
    steps.iter().filter_map(|s| if let Step::StopContainer { id, grace, .. } = s { Some((id.as_str(), *grace)) } else { None }).collect()
}

#[test]
fn a_pod_is_brought_up_step_by_step() {
    let pod = pod("Always");
    let mut memory = PodMemory::default();
    assert_eq!(steps(&pod, &PodSeen::default(), &memory), [Step::PrepareVolumes]);
    memory.in_flight.insert(Op::Volumes);
    assert_eq!(steps(&pod, &PodSeen::default(), &memory), [], "it is being done");
    memory = PodMemory { volumes_ready: true, ..PodMemory::default() };
    assert_eq!(steps(&pod, &PodSeen::default(), &memory), [Step::CreateSandbox { attempt: 0 }]);
    let seen = seen_of(&pod, &[]);
    assert_eq!(steps(&pod, &seen, &memory), [Step::PullImage { name: "a".into() }]);
    memory.image_ready.insert("a".into());
    assert_eq!(steps(&pod, &seen, &memory), [start("a", 0)]);
    assert_eq!(steps(&pod, &seen_of(&pod, &[("a", 0, running())]), &PodMemory { volumes_ready: true, ..PodMemory::default() }), []);
}

#[test]
fn an_agent_that_was_restarted_touches_nothing_that_runs() {
    let pod = pod("Always");
    let seen = seen_of(&pod, &[("a", 3, running())]);
    assert_eq!(steps(&pod, &seen, &PodMemory::default()), [Step::PrepareVolumes], "which is idempotent");
    assert_eq!(steps(&pod, &seen, &ready_memory()), []);
}

#[test]
fn restart_policy_and_exit_code_decide() {
    let table = [
        ("Always", 0, Outcome::Open),
        ("Always", 1, Outcome::Open),
        ("OnFailure", 0, Outcome::Succeeded),
        ("OnFailure", 1, Outcome::Open),
        ("Never", 0, Outcome::Succeeded),
        ("Never", 1, Outcome::Failed),
    ];
    for (policy, code, expected) in table {
        let pod = pod(policy);
        let seen = seen_of(&pod, &[("a", 0, exited(code))]);
        assert_eq!(outcome(&pod, &seen, &ready_memory()), expected, "{policy} {code}");
        let next = steps(&pod, &seen, &ready_memory());
        let expected = if expected == Outcome::Open { vec![start("a", 1)] } else { vec![Step::StopSandbox { id: "s0".into() }] };
        assert_eq!(next, expected, "{policy} {code}");
    }
}

#[test]
fn crashes_wait_longer_each_time() {
    let pod = pod("Always");
    let mut memory = ready_memory();
    let first = seen_of(&pod, &[("a", 0, exited(1))]);
    assert_eq!(steps(&pod, &first, &memory), [start("a", 1)], "the first restart is at once");
    charge_restart(&mut memory, first.latest("a"), NOW);
    let second = seen_of(&pod, &[("a", 1, exited(1)), ("a", 0, exited(1))]);
    let decision = decide(&pod, &second, &memory, NOW + 1);
    assert_eq!((decision.steps, decision.recheck_ms), (vec![], Some(NOW + FIRST_MS)));
    assert_eq!(decide(&pod, &second, &memory, NOW + FIRST_MS).steps, [start("a", 2)]);
    charge_restart(&mut memory, second.latest("a"), NOW + FIRST_MS);
    assert_eq!(memory.crashes["a"].delay_ms, 2 * FIRST_MS);
    // An agent that has forgotten the count waits the shortest time, not none.
    assert_eq!(decide(&pod, &second, &ready_memory(), NOW + 1).recheck_ms, Some(NOW + FIRST_MS));
}

#[test]
fn init_containers_run_one_after_the_other() {
    let spec = json!({"initContainers": [{"name": "init", "image": "i:1"}, {"name": "side", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]});
    let pod = pod_with(spec);
    let memory = ready_memory();
    let table: [(Shape<'_>, Vec<Step>); 6] = [
        (&[], vec![start("init", 0)]),
        (&[("init", 0, running())], vec![]),
        (&[("init", 0, exited(1))], vec![start("init", 1)]),
        (&[("init", 0, exited(0))], vec![start("side", 0)]),
        (&[("init", 0, exited(0)), ("side", 0, running())], vec![start("a", 0), start("b", 0)]),
        (&[("side", 0, exited(1)), ("a", 0, running()), ("b", 0, running())], vec![start("side", 1)]),
    ];
    for (containers, expected) in table {
        assert_eq!(steps(&pod, &seen_of(&pod, containers), &memory), expected, "{containers:?}");
    }
}

#[test]
fn an_init_container_that_fails_for_good_fails_the_pod() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "init"}], "containers": [{"name": "a"}]});
    let pod = pod_with(spec);
    let seen = seen_of(&pod, &[("init", 0, exited(2))]);
    assert_eq!(outcome(&pod, &seen, &ready_memory()), Outcome::Failed);
}

#[test]
fn a_dead_sandbox_is_replaced_after_its_containers() {
    let pod = pod("Always");
    let mut seen = seen_of(&pod, &[("a", 0, running())]);
    seen.sandboxes = vec![sandbox(0, false)];
    assert_eq!(stops(&steps(&pod, &seen, &ready_memory())), [("a0", 2)]);
    let mut seen = seen_of(&pod, &[("a", 0, exited(137))]);
    seen.sandboxes = vec![sandbox(0, false)];
    assert_eq!(steps(&pod, &seen, &ready_memory()), [Step::CreateSandbox { attempt: 1 }]);
    seen.sandboxes = vec![sandbox(1, true), sandbox(0, false)];
    let next = steps(&pod, &seen, &ready_memory());
    assert_eq!(next[0], Step::StartContainer { name: "a".into(), attempt: 1, sandbox: "s1".into() });
}

#[test]
fn deletion_goes_from_containers_to_sidecars_to_nothing() {
    let spec = json!({"initContainers": [{"name": "init", "restartPolicy": "Always"}, {"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]});
    let pod = deleted(pod_with(spec), 7);
    let mut memory = ready_memory();
    let seen = seen_of(&pod, &[("init", 0, running()), ("side", 0, running()), ("a", 0, running())]);
    assert_eq!(stops(&steps(&pod, &seen, &memory)), [("a0", 7)]);
    memory.stopping.insert("a0".into(), 7);
    memory.in_flight.insert(Op::Stop("a0".into()));
    assert_eq!(steps(&pod, &seen, &memory), [], "it was told");
    let urgent = deleted(pod.clone(), 1);
    assert_eq!(stops(&steps(&urgent, &seen, &memory)), [("a0", 1)], "and is told again when the grace shrinks");
    let memory = ready_memory();
    let seen = seen_of(&pod, &[("init", 0, running()), ("side", 0, running()), ("a", 0, exited(143))]);
    assert_eq!(stops(&steps(&pod, &seen, &memory)), [("side0", 7)], "the last sidecar first");
    let seen = seen_of(&pod, &[("init", 0, exited(0)), ("side", 0, exited(0)), ("a", 0, exited(143))]);
    assert_eq!(steps(&pod, &seen, &memory), [Step::StopSandbox { id: "s0".into() }]);
    let mut gone = seen.clone();
    gone.sandboxes = vec![sandbox(0, false)];
    assert_eq!(steps(&pod, &gone, &memory), [Step::CleanUp]);
    assert_eq!(steps(&pod, &PodSeen::default(), &PodMemory { cleaned: true, ..memory }), []);
}

#[test]
fn an_image_that_changed_restarts_the_container() {
    let before = pod("Always");
    let after = pod_with(json!({"containers": [{"name": "a", "image": "i:2"}]}));
    let seen = seen_of(&before, &[("a", 0, running())]);
    assert_eq!(stops(&steps(&after, &seen, &ready_memory())), [("a0", 30)]);
}

#[test]
fn a_deadline_ends_the_pod() {
    let pod = pod_with(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}));
    let seen = seen_of(&pod, &[("a", 0, running())]);
    assert_eq!(decide(&pod, &seen, &ready_memory(), NOW).recheck_ms, Some(NOW + 5_000));
    let late = decide(&pod, &seen, &ready_memory(), NOW + 5_000).steps;
    let Some(Step::GiveUp(verdict)) = late.into_iter().next() else { panic!("it goes on") };
    let memory = PodMemory { verdict: Some(verdict), ..ready_memory() };
    assert_eq!(stops(&steps(&pod, &seen, &memory)), [("a0", 30)]);
    let shown = show(&pod, &seen, &memory);
    assert_eq!((shown.phase.as_deref(), shown.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
}

#[test]
fn old_attempts_are_pruned_but_for_the_last() {
    let pod = pod("Always");
    let seen = seen_of(&pod, &[("a", 3, running()), ("a", 2, exited(1)), ("a", 1, exited(1)), ("a", 0, exited(1))]);
    assert_eq!(steps(&pod, &seen, &ready_memory()), [Step::Prune { containers: vec!["a1".into(), "a0".into()], sandboxes: vec![] }]);
}

fn probed(kind: &str, extra: Value) -> Pod {
    let mut probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": 2, "failureThreshold": 2, "initialDelaySeconds": 1});
    probe.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
    pod_with(json!({"containers": [{"name": "a", "image": "i:1", kind: probe}]}))
}

fn recorded(pod: &Pod, kind: ProbeKind, results: &[bool]) -> PodMemory {
    let mut memory = ready_memory();
    let timing = Timing::of(kind.of(container(pod, "a").unwrap()).unwrap());
    let mut row = ProbeMemory::default();
    for (i, ok) in results.iter().enumerate() {
        row.row_mut(kind).record(&timing, *ok, "no".into(), NOW + i as i64);
    }
    memory.probes.insert("a0".into(), row);
    memory
}

#[test]
fn probes_decide_readiness_and_life() {
    let ready =
        |pod: &Pod, memory: &PodMemory| show(pod, &seen_of(pod, &[("a", 0, running())]), memory).container_statuses.unwrap()[0].ready;
    let pod = probed("readinessProbe", json!({"successThreshold": 2}));
    let table: [(&[bool], bool); 6] = [
        (&[], false),
        (&[true], false),
        (&[true, true], true),
        (&[true, true, false], true),
        (&[true, true, false, false], false),
        (&[true, true, false, false, true], false),
    ];
    for (results, expected) in table {
        assert_eq!(ready(&pod, &recorded(&pod, ProbeKind::Readiness, results)), expected, "{results:?}");
    }
    let pod = probed("livenessProbe", json!({"terminationGracePeriodSeconds": 4}));
    let seen = seen_of(&pod, &[("a", 0, running())]);
    assert_eq!(stops(&steps(&pod, &seen, &recorded(&pod, ProbeKind::Liveness, &[false]))), []);
    assert_eq!(stops(&steps(&pod, &seen, &recorded(&pod, ProbeKind::Liveness, &[false, false]))), [("a0", 4)]);
    let pod = probed("startupProbe", json!({}));
    assert!(!ready(&pod, &ready_memory()), "not before the startup probe");
    assert!(ready(&pod, &recorded(&pod, ProbeKind::Startup, &[true])));
    assert_eq!(
        stops(&steps(&pod, &seen_of(&pod, &[("a", 0, running())]), &recorded(&pod, ProbeKind::Startup, &[false, false]))),
        [("a0", 30)]
    );
}

#[test]
fn probes_are_due_after_their_delay_and_never_twice_at_once() {
    let pod = probed("readinessProbe", json!({}));
    let seen = seen_of(&pod, &[("a", 0, running())]);
    assert_eq!(due_probes(&pod, &seen, &ready_memory(), NOW), (vec![], Some(NOW + 1_000)));
    let mut memory = ready_memory();
    let due = due_probes(&pod, &seen, &memory, NOW + 1_000).0;
    assert_eq!(due, [("a0".to_owned(), "a".to_owned(), ProbeKind::Readiness)]);
    memory.probes.entry("a0".into()).or_default().row_mut(ProbeKind::Readiness).running = true;
    assert_eq!(due_probes(&pod, &seen, &memory, NOW + 9_000), (vec![], None));
    let memory = recorded(&pod, ProbeKind::Readiness, &[true]);
    assert_eq!(due_probes(&pod, &seen, &memory, NOW + 1_500).1, Some(NOW + 2_000), "a period after the last");
}

fn show(pod: &Pod, seen: &PodSeen, memory: &PodMemory) -> PodStatus {
    status(pod, seen, memory, &NodeFacts { ip: "10.9.9.9", runtime: "containerd" }, NOW + 1)
}

fn waiting(status: &ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

fn condition(status: &PodStatus, kind: &str) -> (String, Option<String>) {
    let all = status.conditions.as_ref().unwrap();
    let c = all.iter().find(|c| c.type_ == kind).unwrap();
    (c.status.clone(), c.reason.clone())
}

#[test]
fn statuses_tell_the_story() {
    let pod = pod("Always");
    let fresh = show(&pod, &PodSeen::default(), &ready_memory());
    assert_eq!(fresh.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(&fresh.container_statuses.as_ref().unwrap()[0]), Some("ContainerCreating"));
    assert_eq!(condition(&fresh, "Ready"), ("False".into(), Some("ContainersNotReady".into())));

    let up = show(&pod, &seen_of(&pod, &[("a", 0, running())]), &ready_memory());
    assert_eq!((up.phase.as_deref(), up.pod_ip.as_deref(), up.host_ip.as_deref()), (Some("Running"), Some("10.0.0.2"), Some("10.9.9.9")));
    let first = &up.container_statuses.as_ref().unwrap()[0];
    assert_eq!((first.ready, first.started, first.container_id.as_deref()), (true, Some(true), Some("containerd://a0")));
    for kind in ["Ready", "ContainersReady", "Initialized", "PodReadyToStartContainers", "PodScheduled"] {
        assert_eq!(condition(&up, kind).0, "True", "{kind}");
    }

    let crashed = seen_of(&pod, &[("a", 1, exited(3)), ("a", 0, exited(1))]);
    let mut memory = ready_memory();
    memory.crashes.insert("a".into(), Backoff { delay_ms: 20_000, charged_ms: NOW });
    let looping = show(&pod, &crashed, &memory);
    let c = &looping.container_statuses.as_ref().unwrap()[0];
    assert_eq!((waiting(c), c.restart_count, looping.phase.as_deref()), (Some("CrashLoopBackOff"), 1, Some("Running")));
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    let message = c.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert_eq!(message, "back-off 20s restarting failed container=a pod=p_n(u)");

    let mut memory = ready_memory();
    let blocked = Blocked { reason: "ErrImagePull".into(), message: "no".into(), until_ms: NOW + 9, backoff: Backoff::default() };
    memory.blocked.insert("a".into(), blocked);
    assert_eq!(waiting(&show(&pod, &seen_of(&pod, &[]), &memory).container_statuses.unwrap()[0]), Some("ErrImagePull"));
}

#[test]
fn ended_pods_say_how() {
    for (code, phase, reason) in [(0, "Succeeded", "PodCompleted"), (1, "Failed", "PodFailed")] {
        let pod = pod("Never");
        let shown = show(&pod, &seen_of(&pod, &[("a", 0, exited(code))]), &ready_memory());
        assert_eq!(shown.phase.as_deref(), Some(phase));
        assert_eq!(condition(&shown, "Ready"), ("False".into(), Some(reason.into())));
        assert_eq!(shown.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, code);
        // A terminal phase is final, whatever the runtime shows later.
        let mut over = pod.clone();
        over.status = Some(shown);
        assert_eq!(show(&over, &PodSeen::default(), &ready_memory()).phase.as_deref(), Some(phase));
        assert_eq!(steps(&over, &PodSeen::default(), &ready_memory()), []);
    }
}

#[test]
fn others_conditions_and_transition_times_are_kept() {
    let mut pod = pod("Always");
    let seen = seen_of(&pod, &[("a", 0, running())]);
    let mut before = show(&pod, &seen, &ready_memory());
    let old = crate::node::time::to_time(NOW - 500_000);
    for c in before.conditions.as_mut().unwrap() {
        c.last_transition_time = Some(old.clone());
    }
    let mut gate = before.conditions.as_ref().unwrap()[0].clone();
    gate.type_ = "example.com/gate".into();
    before.conditions.as_mut().unwrap().push(gate);
    pod.status = Some(before.clone());
    let after = show(&pod, &seen, &ready_memory());
    assert!(same(&before, &after), "{before:#?}\n{after:#?}");
    let down = show(&pod, &seen_of(&pod, &[("a", 0, exited(1))]), &ready_memory());
    assert!(!same(&before, &down));
    let ready = down.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_ne!(ready.last_transition_time, Some(old));
}
