//! ReplicaSets: as many pods as the spec says (Kubernetes `pkg/controller/replicaset`).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kontiki_base::Code;
use kontiki_base::env::WallMs;
use kontiki_base::object::ObjectKey;
use serde_json::{Value, json};

use super::claim::{self, Claim};
use super::{Failure, Input};
use crate::kind::Kind;
use crate::meta;
use crate::name;
use crate::plan::{Action, EventType, Plan, Regarding};
use crate::selector;
use crate::world::World;

/// At most so many pods are created or deleted by one plan.
const BURST: usize = 500;

/// The annotation that says how costly the deletion of a pod is.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// One look at one ReplicaSet.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let Some(rs) = input.world.replica_sets.get(input.key) else { return plan };
    let pods = claim_pods(rs, input.world, &mut plan);
    let active: Vec<&Arc<Pod>> = pods.iter().copied().filter(|p| meta::active(p)).collect();
    let terminating = pods.iter().filter(|p| meta::deleting(&p.metadata) && !meta::terminal(p)).count();
    let quota_failure = input.failure.filter(|f| f.code != Code::AlreadyExists);
    let wanted = usize::try_from(wanted(rs)).unwrap_or(0);
    let spawn = if meta::deleting(&rs.metadata) { Vec::new() } else { manage(rs, &active, wanted, input) };
    let status = status_of(rs, &active, terminating, wanted, quota_failure, input.now, &mut plan);
    // The status goes first: where creation fails for lack of quota, the condition that says so must still be written.
    if Some(&status) != rs.status.as_ref() {
        let mut object = meta::to_json(rs.as_ref());
        object["status"] = meta::to_json(&status);
        plan.push(Action::Update { kind: Kind::ReplicaSet, object, expect: meta::revision(&rs.metadata), subresource: "status" });
    }
    if let Some(failure) = quota_failure {
        plan.push(event(rs, EventType::Warning, "FailedCreate", format!("Error creating: {}", failure.message)));
    }
    plan.actions.extend(spawn);
    plan
}

/// `spec.replicas`, which the API server defaults to 1.
pub fn wanted(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

fn claim_pods<'a>(rs: &'a ReplicaSet, world: &'a World, plan: &mut Plan) -> Vec<&'a Arc<Pod>> {
    let Some(spec) = &rs.spec else { return Vec::new() };
    let mut mine = Vec::new();
    for pod in world.pods.in_namespace(meta::namespace(&rs.metadata)) {
        let selected = selector::matches(&spec.selector, pod.metadata.labels.as_ref());
        match claim::claim(&rs.metadata, &pod.metadata, selected) {
            Claim::Mine => mine.push(pod),
            Claim::Adopt if !meta::terminal(pod) => {
                plan.push(claim::adopt(Kind::ReplicaSet, &rs.metadata, Kind::Pod, &pod.metadata));
                mine.push(pod);
            }
            Claim::Release => plan.push(claim::release(&rs.metadata, Kind::Pod, &pod.metadata)),
            Claim::Adopt | Claim::Foreign => {}
        }
    }
    mine
}

fn manage(rs: &ReplicaSet, active: &[&Arc<Pod>], wanted: usize, input: &Input<'_>) -> Vec<Action> {
    match active.len().cmp(&wanted) {
        Ordering::Less => create(rs, (wanted - active.len()).min(BURST), input.world),
        Ordering::Greater => delete(rs, active, (active.len() - wanted).min(BURST), input),
        Ordering::Equal => Vec::new(),
    }
}

fn create(rs: &ReplicaSet, count: usize, world: &World) -> Vec<Action> {
    let Some(template) = rs.spec.as_ref().and_then(|s| s.template.as_ref()) else { return Vec::new() };
    if !world.namespace_active(meta::namespace(&rs.metadata)) {
        return Vec::new();
    }
    let mut actions = Vec::with_capacity(count * 2);
    for pod_name in free_names(rs, count, world) {
        let message = format!("Created pod: {pod_name}");
        let object = pod_from(template, rs, &pod_name);
        actions.push(Action::Create { kind: Kind::Pod, object, guards: Vec::new() });
        actions.push(event(rs, EventType::Normal, "SuccessfulCreate", message));
    }
    actions
}

/// Names that are free, and the same every time until a pod that was created under one of them has been seen: a plan that is
/// carried out twice, by two leaders or after an answer that got lost, creates once. The newest pod's uid is part of the seed, so
/// that a name is not used again as soon as its pod is gone.
fn free_names(rs: &ReplicaSet, count: usize, world: &World) -> Vec<String> {
    let base = format!("{}-", meta::name(&rs.metadata));
    let uid = meta::uid(&rs.metadata);
    let newest =
        world.pods.owned_by(&uid).map(|p| (p.metadata.creation_timestamp.as_ref().map(meta::millis), meta::uid(&p.metadata))).max();
    let newest = newest.map(|(_, uid)| uid).unwrap_or_default();
    let namespace = meta::namespace(&rs.metadata);
    let mut names: Vec<String> = Vec::with_capacity(count);
    let mut taken = std::collections::BTreeSet::new();
    let mut attempt = 0;
    while names.len() < count {
        let candidate = name::generated(&base, &name::suffix(&[&uid.0, &newest.0], attempt));
        attempt += 1;
        if world.pods.get(&ObjectKey::new(namespace, candidate.clone())).is_none() && taken.insert(candidate.clone()) {
            names.push(candidate);
        }
    }
    names
}

/// A pod as the template says, owned by the ReplicaSet.
pub fn pod_from(template: &PodTemplateSpec, rs: &ReplicaSet, pod_name: &str) -> Value {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod { spec: template.spec.clone(), ..Pod::default() };
    pod.metadata.name = Some(pod_name.to_owned());
    pod.metadata.generate_name = Some(format!("{}-", meta::name(&rs.metadata)));
    pod.metadata.namespace = rs.metadata.namespace.clone();
    pod.metadata.labels = meta.labels;
    pod.metadata.annotations = meta.annotations;
    pod.metadata.finalizers = meta.finalizers;
    pod.metadata.owner_references = Some(vec![meta::owner_ref(Kind::ReplicaSet, &rs.metadata)]);
    meta::to_json(&pod)
}

fn delete(rs: &ReplicaSet, active: &[&Arc<Pod>], count: usize, input: &Input<'_>) -> Vec<Action> {
    let neighbours = colocated(rs, input.world);
    let mut ranked: Vec<&Arc<Pod>> = active.to_vec();
    ranked.sort_by(|a, b| deletion_order(a, b, &neighbours, input.now));
    let mut actions = Vec::with_capacity(count * 2);
    for pod in &ranked[..count.min(ranked.len())] {
        actions.push(Action::Delete {
            kind: Kind::Pod,
            key: meta::key(&pod.metadata),
            uid: meta::uid(&pod.metadata),
            expect: None,
            grace: None,
            propagation: None,
            guards: Vec::new(),
        });
        actions.push(event(rs, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", meta::name(&pod.metadata))));
    }
    actions
}

/// How many active pods of all ReplicaSets of the same Deployment run on each node.
fn colocated(rs: &ReplicaSet, world: &World) -> BTreeMap<String, usize> {
    let mut family: Vec<_> = match meta::controller_uid(&rs.metadata) {
        Some(owner) => world.replica_sets.owned_by(&owner).map(|rs| meta::uid(&rs.metadata)).collect(),
        None => Vec::new(),
    };
    let own = meta::uid(&rs.metadata);
    if !family.contains(&own) {
        family.push(own);
    }
    let mut counts = BTreeMap::new();
    for pod in family.iter().flat_map(|uid| world.pods.owned_by(uid)).filter(|p| meta::active(p)) {
        *counts.entry(meta::node_of(pod).to_owned()).or_default() += 1;
    }
    counts
}

/// Who goes first: `Less` goes before `Greater` (Kubernetes `ActivePodsWithRanks.Less`).
pub fn deletion_order(a: &Pod, b: &Pod, colocated: &BTreeMap<String, usize>, now: WallMs) -> Ordering {
    let assigned = |p: &Pod| !meta::node_of(p).is_empty();
    let phase = |p: &Pod| match meta::phase(p) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = |p: &Pod| meta::annotation(&p.metadata, DELETION_COST).and_then(|c| c.parse::<i32>().ok()).unwrap_or(0);
    let rank = |p: &Pod| colocated.get(meta::node_of(p)).copied().unwrap_or(0);
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(meta::millis);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| meta::pod_ready(a).cmp(&meta::pod_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| rank(b).cmp(&rank(a)))
        .then_with(|| {
            if meta::pod_ready(a) {
                age_bucket(meta::ready_since(a), now).cmp(&age_bucket(meta::ready_since(b), now))
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age_bucket(created(a), now).cmp(&age_bucket(created(b), now)))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// Ages compare by their power of two only, so that pods of about one age are chosen among evenly. Unknown is the youngest.
fn age_bucket(since: Option<i64>, now: WallMs) -> u32 {
    let seconds = since.map_or(0, |t| u64::try_from((now.0 - t) / 1000).unwrap_or(0));
    if seconds == 0 { 0 } else { seconds.ilog2() + 1 }
}

/// Restarts of regular containers, then of init containers: the most of any.
fn restarts(pod: &Pod) -> (i32, i32) {
    let most = |list: Option<&Vec<k8s_openapi::api::core::v1::ContainerStatus>>| list.into_iter().flatten().map(|c| c.restart_count).max();
    let status = pod.status.as_ref();
    let regular = most(status.and_then(|s| s.container_statuses.as_ref()));
    let init = most(status.and_then(|s| s.init_container_statuses.as_ref()));
    (regular.unwrap_or(0), init.unwrap_or(0))
}

fn status_of(
    rs: &ReplicaSet,
    active: &[&Arc<Pod>],
    terminating: usize,
    wanted: usize,
    failure: Option<&Failure>,
    now: WallMs,
    plan: &mut Plan,
) -> ReplicaSetStatus {
    let spec = rs.spec.as_ref();
    let template_labels = spec.and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let (mut labeled, mut ready, mut available) = (0, 0, 0);
    for pod in active {
        labeled += i32::from(selector::contains(pod.metadata.labels.as_ref(), &template_labels));
        ready += i32::from(meta::pod_ready(pod));
        match meta::available(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(left)) => plan.recheck_in(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
            Err(None) => {}
        }
    }
    let old = rs.status.clone().unwrap_or_default();
    let positive = |n: i32| (n != 0).then_some(n);
    let count = i32::try_from(active.len()).unwrap_or(i32::MAX);
    let short = active.len() < wanted;
    ReplicaSetStatus {
        replicas: count,
        fully_labeled_replicas: positive(labeled),
        ready_replicas: positive(ready),
        available_replicas: positive(available),
        terminating_replicas: same_or(old.terminating_replicas, i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: rs.metadata.generation,
        conditions: conditions(old.conditions, failure.filter(|_| short), short, now),
    }
}

/// Absent and zero are the same count: what was written stays as it was.
fn same_or(old: Option<i32>, new: i32) -> Option<i32> {
    if old.unwrap_or(0) == new { old } else { Some(new) }
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Failure>,
    short: bool,
    now: WallMs,
) -> Option<Vec<ReplicaSetCondition>> {
    let is_failure = |c: &ReplicaSetCondition| c.type_ == "ReplicaFailure";
    match failure {
        Some(failure) => {
            let mut list = old.unwrap_or_default();
            if !list.iter().any(|c| is_failure(c) && c.message.as_deref() == Some(&failure.message)) {
                list.retain(|c| !is_failure(c));
                list.push(ReplicaSetCondition {
                    type_: "ReplicaFailure".into(),
                    status: "True".into(),
                    reason: Some("FailedCreate".into()),
                    message: Some(failure.message.clone()),
                    last_transition_time: Some(meta::time(now)),
                });
            }
            Some(list)
        }
        // The condition stays until the missing pods have been created.
        None if short => old,
        None => old.map(|list| list.into_iter().filter(|c| !is_failure(c)).collect::<Vec<_>>()).filter(|list| !list.is_empty()),
    }
}

fn event(rs: &ReplicaSet, event_type: EventType, reason: &'static str, message: String) -> Action {
    let regarding = Regarding { kind: Kind::ReplicaSet, key: meta::key(&rs.metadata), uid: meta::uid(&rs.metadata) };
    Action::Event { regarding, event_type, reason, message }
}

/// A ReplicaSet's `spec.replicas` as a patch that hits this version only.
pub fn scale_patch(rs: &ReplicaSet, replicas: i32, annotations: Value) -> Action {
    let mut metadata = meta::pin(&rs.metadata);
    metadata["annotations"] = annotations;
    Action::Patch {
        kind: Kind::ReplicaSet,
        key: meta::key(&rs.metadata),
        patch_type: crate::plan::PatchType::Merge,
        patch: json!({ "metadata": metadata, "spec": { "replicas": replicas } }),
        subresource: "",
        guards: Vec::new(),
    }
}
