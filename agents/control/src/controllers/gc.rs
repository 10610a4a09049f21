//! The garbage collector: objects whose owners are all gone go too; owners that are deleted in the foreground wait for their
//! dependents; orphans are let go (Kubernetes `pkg/controller/garbagecollector`).
//!
//! A deletion is decided on what the informers saw and carried out only after the API server itself has confirmed, for each owner,
//! that no object of that uid exists: a cache alone never deletes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kontiki_base::Uid;
use kontiki_base::object::ObjectKey;
use serde_json::{Value, json};

use super::Input;
use crate::kind::{Keep, Kind};
use crate::plan::{Action, EventType, Guard, PatchType, Plan, Propagation, Regarding};
use crate::world::{Graph, GraphRow, ObjectId};

/// The finalizer of an owner that waits for its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner that lets its dependents go.
pub const ORPHAN: &str = "orphan";

/// What an owner reference comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// The owner is there and stays, or nobody here can tell.
    Solid,
    /// The owner is there and waits for its dependents to go.
    Waiting,
    /// There is no such owner: to be confirmed.
    Dangling(Guard),
    /// A cluster-scoped object names an owner that lives in namespaces.
    Impossible,
}

/// One look at one object of any kind.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let graph = &input.world.graph;
    let Some(id) = ObjectId::from_key(input.key) else { return plan };
    let Some(row) = graph.get(&id) else { return plan };
    if row.deleting {
        if row.has_finalizer(ORPHAN) {
            orphan(graph, &id, row, &mut plan);
        } else if row.has_finalizer(FOREGROUND) && !is_blocked(graph, row) {
            plan.push(drop_finalizer(&id, row, FOREGROUND));
        }
        return plan;
    }
    if !row.owners.is_empty() {
        collect(graph, &id, row, &mut plan);
    }
    plan
}

/// Whether a dependent is left whose deletion the owner must wait for.
fn is_blocked(graph: &Graph, owner: &GraphRow) -> bool {
    let blocks = |row: &GraphRow| row.owners.iter().any(|o| o.uid == owner.uid.0 && o.block_owner_deletion == Some(true));
    graph.dependents(&owner.uid).any(|(_, row)| blocks(row))
}

fn orphan(graph: &Graph, id: &ObjectId, row: &GraphRow, plan: &mut Plan) {
    let mut dependents = graph.dependents(&row.uid).peekable();
    if dependents.peek().is_none() {
        plan.push(drop_finalizer(id, row, ORPHAN));
    }
    for (dependent, dependent_row) in dependents {
        plan.push(keep_owners(dependent, dependent_row, |o| o.uid != row.uid.0, Vec::new()));
    }
}

fn collect(graph: &Graph, id: &ObjectId, row: &GraphRow, plan: &mut Plan) {
    let classes: Vec<Owner> = row.owners.iter().map(|owner| classify(graph, id, owner)).collect();
    let guards: Vec<Guard> =
        classes.iter().filter_map(|c| if let Owner::Dangling(guard) = c { Some(guard.clone()) } else { None }).collect();
    for owner in row.owners.iter().zip(&classes).filter(|(o, c)| is_foreign(graph, id, o, c)).map(|(o, _)| o) {
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
            owner.api_version, owner.kind, id.key.namespace, owner.name, owner.uid, id.key.namespace
        );
        let regarding = Regarding { kind: id.kind, key: id.key.clone(), uid: row.uid.clone() };
        plan.push(Action::Event { regarding, event_type: EventType::Warning, reason: "OwnerRefInvalidNamespace", message });
    }
    let waiting = classes.contains(&Owner::Waiting);
    let solid = classes.iter().any(|c| matches!(c, Owner::Solid | Owner::Impossible));
    if solid {
        if waiting || !guards.is_empty() {
            let gone: Vec<&str> = row
                .owners
                .iter()
                .zip(&classes)
                .filter(|(_, c)| matches!(c, Owner::Waiting | Owner::Dangling(_)))
                .map(|(o, _)| o.uid.as_str())
                .collect();
            plan.push(keep_owners(id, row, |o| !gone.contains(&o.uid.as_str()), guards));
        }
        return;
    }
    let has_dependents = graph.dependents(&row.uid).next().is_some();
    let propagation = if waiting && has_dependents {
        Propagation::Foreground
    } else if row.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if row.has_finalizer(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    plan.push(Action::Delete {
        kind: id.kind,
        key: id.key.clone(),
        uid: row.uid.clone(),
        expect: Some(row.revision),
        grace: None,
        propagation: Some(propagation),
        guards,
    });
}

fn owner_id(id: &ObjectId, kind: Kind, owner: &OwnerReference) -> ObjectId {
    let namespace = if kind.namespaced() { id.key.namespace.clone() } else { String::new() };
    ObjectId { kind, key: ObjectKey::new(namespace, owner.name.clone()) }
}

fn classify(graph: &Graph, id: &ObjectId, owner: &OwnerReference) -> Owner {
    // A kind that is not followed cannot be said to be absent.
    let Some(kind) = Kind::of(&owner.api_version, &owner.kind).filter(|k| k.keep() != Keep::Nothing) else { return Owner::Solid };
    if kind.namespaced() && !id.kind.namespaced() {
        return Owner::Impossible;
    }
    let at = owner_id(id, kind, owner);
    match graph.get(&at).filter(|row| row.uid.0 == owner.uid) {
        Some(row) if row.deleting && row.has_finalizer(FOREGROUND) => Owner::Waiting,
        Some(_) => Owner::Solid,
        None => Owner::Dangling(Guard::Absent { kind, key: at.key, uid: Uid(owner.uid.clone()) }),
    }
}

/// Whether the reference names an owner that lives elsewhere than where the reference can reach.
fn is_foreign(graph: &Graph, id: &ObjectId, owner: &OwnerReference, class: &Owner) -> bool {
    match class {
        Owner::Impossible => true,
        Owner::Dangling(_) => {
            let Some(kind) = Kind::of(&owner.api_version, &owner.kind).filter(|k| k.namespaced()) else { return false };
            graph.of_kind(kind).any(|(key, row)| row.uid.0 == owner.uid && key.namespace != id.key.namespace)
        }
        Owner::Solid | Owner::Waiting => false,
    }
}

fn pin(row: &GraphRow) -> Value {
    json!({ "uid": row.uid.0, "resourceVersion": row.revision.to_resource_version() })
}

fn metadata_patch(id: &ObjectId, metadata: Value, guards: Vec<Guard>) -> Action {
    let patch = json!({ "metadata": metadata });
    Action::Patch { kind: id.kind, key: id.key.clone(), patch_type: PatchType::Merge, patch, subresource: "", guards }
}

fn keep_owners(id: &ObjectId, row: &GraphRow, keep: impl Fn(&OwnerReference) -> bool, guards: Vec<Guard>) -> Action {
    let kept: Vec<&OwnerReference> = row.owners.iter().filter(|o| keep(o)).collect();
    let mut metadata = pin(row);
    metadata["ownerReferences"] = if kept.is_empty() { Value::Null } else { json!(kept) };
    metadata_patch(id, metadata, guards)
}

fn drop_finalizer(id: &ObjectId, row: &GraphRow, name: &str) -> Action {
    let kept: Vec<&String> = row.finalizers.iter().filter(|f| *f != name).collect();
    let mut metadata = pin(row);
    metadata["finalizers"] = if kept.is_empty() { Value::Null } else { json!(kept) };
    metadata_patch(id, metadata, Vec::new())
}
