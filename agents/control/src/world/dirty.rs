//! Which controllers must look at which keys when an object changes. Events that change nothing that a controller reads wake
//! nobody: an idle cluster stays idle.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kontiki_base::object::ObjectKey;

use super::{Dirty, GraphRow, ObjectId, Pair, World};
use crate::controllers::ControllerId;
use crate::controllers::gc::{FOREGROUND, ORPHAN};
use crate::kind::Kind;
use crate::meta;
use crate::selector;

/// The label that says to which service a slice belongs.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

fn wake(out: &mut Vec<Dirty>, controller: ControllerId, key: ObjectKey) {
    out.push(Dirty { controller, key });
}

/// The keys of the controllers that look at the whole cluster at once.
fn wake_whole(out: &mut Vec<Dirty>, controller: ControllerId) {
    wake(out, controller, ObjectKey::default());
}

pub(super) fn namespace(pair: &Pair<Namespace>, out: &mut Vec<Dirty>) {
    let Some(ns) = &pair.new else { return };
    let key = meta::key(&ns.metadata);
    if meta::deleting(&ns.metadata) {
        wake(out, ControllerId::Namespace, key);
    } else if pair.old.is_none() {
        wake(out, ControllerId::ServiceAccount, key.clone());
        wake(out, ControllerId::RootCa, key);
    }
}

pub(super) fn service_account(pair: &Pair<ServiceAccount>, out: &mut Vec<Dirty>) {
    if let (Some(old), None) = (&pair.old, &pair.new)
        && meta::name(&old.metadata) == "default"
    {
        wake(out, ControllerId::ServiceAccount, ObjectKey::new("", meta::namespace(&old.metadata)));
    }
}

pub(super) fn root_ca(pair: &Pair<ConfigMap>, out: &mut Vec<Dirty>) {
    if let Some(map) = pair.any()
        && pair.old.as_ref().is_none_or(|old| pair.new.as_ref().is_none_or(|new| old.data != new.data))
    {
        wake(out, ControllerId::RootCa, ObjectKey::new("", meta::namespace(&map.metadata)));
    }
}

pub(super) fn node(world: &World, pair: &Pair<Node>, out: &mut Vec<Dirty>) {
    let Some(node) = pair.any() else { return };
    let name = meta::name(&node.metadata);
    let conditions = |n: &Arc<Node>| n.status.as_ref().map(|s| s.conditions.clone().unwrap_or_default());
    let conditions_changed = pair.old.as_ref().map(conditions) != pair.new.as_ref().map(conditions);
    let spec_changed = pair.old.as_ref().map(|n| &n.spec) != pair.new.as_ref().map(|n| &n.spec);
    if conditions_changed || spec_changed {
        wake_whole(out, ControllerId::NodeLifecycle);
    }
    if spec_changed {
        wake_whole(out, ControllerId::NodeIpam);
        for pod in world.pods_on(name) {
            wake(out, ControllerId::TaintEviction, meta::key(&pod.metadata));
        }
    }
    if pair.new.is_none() || pair.old.is_none() {
        for pod in world.pods_on(name) {
            wake(out, ControllerId::PodGc, meta::key(&pod.metadata));
        }
    }
    let zone = |n: &Arc<Node>| meta::label(&n.metadata, "topology.kubernetes.io/zone").map(str::to_owned);
    if pair.old.as_ref().and_then(zone) != pair.new.as_ref().and_then(zone) {
        for pod in world.pods_on(name) {
            wake_services_of(world, pod, out);
        }
    }
}

fn wake_services_of(world: &World, pod: &Pod, out: &mut Vec<Dirty>) {
    for service in world.services.in_namespace(meta::namespace(&pod.metadata)) {
        let wanted = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
        if wanted.is_some_and(|wanted| selector::contains(pod.metadata.labels.as_ref(), wanted)) {
            let key = meta::key(&service.metadata);
            wake(out, ControllerId::Endpoints, key.clone());
            wake(out, ControllerId::EndpointSlice, key);
        }
    }
}

/// What endpoints say of a pod.
fn endpoint_view(pod: &Pod) -> impl PartialEq {
    let status = pod.status.as_ref();
    (
        pod.metadata.labels.clone(),
        (meta::pod_ready(pod), meta::terminal(pod), meta::deleting(&pod.metadata)),
        status.and_then(|s| s.pod_ips.clone()),
        (status.and_then(|s| s.pod_ip.clone()), meta::node_of(pod).to_owned(), pod.metadata.uid.clone()),
    )
}

pub(super) fn pod(world: &World, pair: &Pair<Pod>, out: &mut Vec<Dirty>) {
    let Some(pod) = pair.any() else { return };
    let key = meta::key(&pod.metadata);
    for pod in pair.both() {
        wake_replica_sets_of(world, pod, out);
    }
    if pair.old.as_ref().map(|p| endpoint_view(p)) != pair.new.as_ref().map(|p| endpoint_view(p)) {
        for pod in pair.both() {
            wake_services_of(world, pod, out);
        }
    }
    let gone_or_done = pair.new.as_ref().is_none_or(|p| meta::terminal(p));
    if gone_or_done {
        wake_deployment_of_pod(world, pod, out);
    }
    let Some(new) = &pair.new else { return };
    let node = meta::node_of(new);
    if !node.is_empty() && world.node(node).is_some_and(|n| has_no_execute(n)) {
        wake(out, ControllerId::TaintEviction, key.clone());
    }
    let orphan = !node.is_empty() && world.node(node).is_none();
    if orphan || (node.is_empty() && meta::deleting(&new.metadata)) {
        wake(out, ControllerId::PodGc, key.clone());
    }
    let node_lost = world.node(node).is_some_and(|n| meta::node_condition(n, "Ready") == "Unknown");
    if node_lost && meta::pod_ready(new) {
        wake_whole(out, ControllerId::NodeLifecycle);
    }
    if meta::terminal(new) && world.pods.len() > world.settings.terminated_pods_kept {
        wake_whole(out, ControllerId::PodGc);
    }
}

fn has_no_execute(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.effect == "NoExecute")
}

fn wake_replica_sets_of(world: &World, pod: &Pod, out: &mut Vec<Dirty>) {
    let namespace = meta::namespace(&pod.metadata);
    if let Some(owner) = meta::controller_of(&pod.metadata) {
        if owner.kind == Kind::ReplicaSet.word() {
            wake(out, ControllerId::ReplicaSet, ObjectKey::new(namespace, owner.name.clone()));
        }
        return;
    }
    for rs in world.replica_sets.in_namespace(namespace) {
        let selects = rs.spec.as_ref().is_some_and(|s| selector::matches(&s.selector, pod.metadata.labels.as_ref()));
        if selects {
            wake(out, ControllerId::ReplicaSet, meta::key(&rs.metadata));
        }
    }
}

fn wake_deployment_of_pod(world: &World, pod: &Pod, out: &mut Vec<Dirty>) {
    let Some(owner) = meta::controller_of(&pod.metadata).filter(|o| o.kind == Kind::ReplicaSet.word()) else { return };
    let rs = world.replica_sets.get(&ObjectKey::new(meta::namespace(&pod.metadata), owner.name.clone()));
    if let Some(rs) = rs {
        wake_deployment_of(rs, out);
    }
}

fn wake_deployment_of(rs: &ReplicaSet, out: &mut Vec<Dirty>) {
    if let Some(owner) = meta::controller_of(&rs.metadata).filter(|o| o.kind == Kind::Deployment.word()) {
        wake(out, ControllerId::Deployment, ObjectKey::new(meta::namespace(&rs.metadata), owner.name.clone()));
    }
}

pub(super) fn service(pair: &Pair<Service>, out: &mut Vec<Dirty>) {
    let Some(service) = pair.any() else { return };
    let key = meta::key(&service.metadata);
    wake(out, ControllerId::Endpoints, key.clone());
    wake(out, ControllerId::EndpointSlice, key);
}

pub(super) fn endpoints(pair: &Pair<Endpoints>, out: &mut Vec<Dirty>) {
    if let Some(endpoints) = pair.any() {
        wake(out, ControllerId::Endpoints, meta::key(&endpoints.metadata));
    }
}

pub(super) fn endpoint_slice(pair: &Pair<EndpointSlice>, out: &mut Vec<Dirty>) {
    for slice in pair.both() {
        if let Some(service) = meta::label(&slice.metadata, SERVICE_NAME) {
            wake(out, ControllerId::EndpointSlice, ObjectKey::new(meta::namespace(&slice.metadata), service));
        }
    }
}

pub(super) fn deployment(pair: &Pair<Deployment>, out: &mut Vec<Dirty>) {
    if let Some(deployment) = &pair.new {
        wake(out, ControllerId::Deployment, meta::key(&deployment.metadata));
    }
}

pub(super) fn replica_set(world: &World, pair: &Pair<ReplicaSet>, out: &mut Vec<Dirty>) {
    if let Some(rs) = &pair.new {
        wake(out, ControllerId::ReplicaSet, meta::key(&rs.metadata));
    }
    for rs in pair.both() {
        if meta::controller_of(&rs.metadata).is_some() {
            wake_deployment_of(rs, out);
            continue;
        }
        for deployment in world.deployments.in_namespace(meta::namespace(&rs.metadata)) {
            let selects = deployment.spec.as_ref().is_some_and(|s| selector::matches(&s.selector, rs.metadata.labels.as_ref()));
            if selects {
                wake(out, ControllerId::Deployment, meta::key(&deployment.metadata));
            }
        }
    }
}

pub(super) fn graph(world: &World, id: &ObjectId, old: Option<&GraphRow>, new: Option<&GraphRow>, out: &mut Vec<Dirty>) {
    let gc = |out: &mut Vec<Dirty>, id: &ObjectId| wake(out, ControllerId::Gc, id.to_key());
    if let Some(new) = new {
        let leaving = new.deleting && (new.has_finalizer(FOREGROUND) || new.has_finalizer(ORPHAN));
        let edges_changed = old.is_none_or(|old| old.owners != new.owners || old.uid != new.uid);
        if leaving || (edges_changed && !new.owners.is_empty()) {
            gc(out, id);
        }
        if leaving && old.is_none_or(|old| !old.deleting || old.finalizers != new.finalizers) {
            world.graph.dependents(&new.uid).for_each(|(dependent, _)| gc(out, dependent));
        }
    }
    let replaced = old.filter(|old| new.is_none_or(|new| new.uid != old.uid));
    if let Some(old) = replaced {
        world.graph.dependents(&old.uid).for_each(|(dependent, _)| gc(out, dependent));
    }
    if let Some(old) = old.filter(|old| new.is_none_or(|new| new.owners != old.owners)) {
        // An owner that waits for its dependents may have waited for this one.
        for owner in &old.owners {
            if let Some(kind) = Kind::of(&owner.api_version, &owner.kind) {
                let namespace = if kind.namespaced() { id.key.namespace.clone() } else { String::new() };
                let owner = ObjectId { kind, key: ObjectKey::new(namespace, owner.name.clone()) };
                if world.graph.get(&owner).is_some_and(|row| row.deleting) {
                    gc(out, &owner);
                }
            }
        }
    }
    let left = new.is_none() && !id.key.namespace.is_empty();
    if left && !world.namespace_active(&id.key.namespace) {
        wake(out, ControllerId::Namespace, ObjectKey::new("", id.key.namespace.clone()));
    }
}

pub(super) fn everything(world: &World) -> Vec<Dirty> {
    let mut out = Vec::new();
    for ns in world.namespaces.all() {
        let key = meta::key(&ns.metadata);
        for controller in [ControllerId::Namespace, ControllerId::ServiceAccount, ControllerId::RootCa] {
            wake(&mut out, controller, key.clone());
        }
    }
    for controller in [ControllerId::NodeLifecycle, ControllerId::NodeIpam, ControllerId::PodGc] {
        wake_whole(&mut out, controller);
    }
    for deployment in world.deployments.all() {
        wake(&mut out, ControllerId::Deployment, meta::key(&deployment.metadata));
    }
    for rs in world.replica_sets.all() {
        wake(&mut out, ControllerId::ReplicaSet, meta::key(&rs.metadata));
    }
    let services = world.services.all().map(|s| meta::key(&s.metadata));
    let endpoints = world.endpoints.all().map(|e| meta::key(&e.metadata));
    for key in services.chain(endpoints) {
        wake(&mut out, ControllerId::Endpoints, key.clone());
        wake(&mut out, ControllerId::EndpointSlice, key);
    }
    for slice in world.endpoint_slices.all() {
        if let Some(service) = meta::label(&slice.metadata, SERVICE_NAME) {
            wake(&mut out, ControllerId::EndpointSlice, ObjectKey::new(meta::namespace(&slice.metadata), service));
        }
    }
    for pod in world.pods.all() {
        let key = meta::key(&pod.metadata);
        wake(&mut out, ControllerId::TaintEviction, key.clone());
        wake(&mut out, ControllerId::PodGc, key);
    }
    for (id, row) in world.graph.all() {
        if !row.owners.is_empty() || row.deleting {
            wake(&mut out, ControllerId::Gc, id.to_key());
        }
    }
    out.sort();
    out.dedup();
    out
}
