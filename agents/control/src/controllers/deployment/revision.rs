//! The ReplicaSet of the current pod template: finding it, naming it, numbering it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::status::Note;
use super::{DESIRED, HASH, MAX, REVISION, REVISION_HISTORY, View};
use crate::kind::Kind;
use crate::meta;
use crate::name;
use crate::plan::{Action, EventType, PatchType, Plan};

/// Annotations of a Deployment that are its own and not its ReplicaSets'.
const NOT_COPIED: &[&str] =
    &["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];

/// The number of a ReplicaSet's template; 0 where it has none.
pub fn number(meta: &ObjectMeta) -> i64 {
    meta::annotation(meta, REVISION).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// A template as what it means: without the hash label, without nulls and empty containers.
fn meaning(template: &PodTemplateSpec) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH);
    }
    meta::normalized(meta::to_json(&template))
}

fn template_of(deployment: &Deployment) -> PodTemplateSpec {
    deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default()
}

/// The oldest ReplicaSet that has the Deployment's template. `sets` are sorted by creation.
pub(crate) fn find_new<'a>(deployment: &Deployment, sets: &[&'a Arc<ReplicaSet>]) -> Option<&'a Arc<ReplicaSet>> {
    let wanted = meaning(&template_of(deployment));
    sets.iter().copied().find(|rs| rs.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| meaning(t) == wanted))
}

/// The hash of the Deployment's template. Kubernetes hashes a Go dump of it; nobody computes it a second time, so that any stable
/// hash will do: this is FNV-1a over the template's canonical JSON, spelled as Kubernetes spells it.
pub fn template_hash(deployment: &Deployment) -> String {
    let mut bytes = meaning(&template_of(deployment)).to_string().into_bytes();
    if let Some(count) = deployment.status.as_ref().and_then(|s| s.collision_count) {
        bytes.extend_from_slice(&i64::from(count).to_le_bytes());
    }
    name::safe_encode(name::fnv32(&bytes))
}

/// The name of the ReplicaSet of the current template.
pub fn new_name(deployment: &Deployment) -> String {
    format!("{}-{}", meta::name(&deployment.metadata), template_hash(deployment))
}

/// The number that the current template gets.
fn next_number(view: &View<'_>) -> i64 {
    view.old().map(|rs| number(&rs.metadata)).max().unwrap_or(0) + 1
}

fn copied_annotations(deployment: &Deployment) -> Map<String, Value> {
    let own = deployment.metadata.annotations.iter().flatten();
    own.filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())).map(|(k, v)| (k.clone(), json!(v))).collect()
}

/// Creates the ReplicaSet of the current template with `size` pods.
pub(crate) fn create(view: &View<'_>, size: i32, note: &mut Note, plan: &mut Plan) {
    let deployment = view.deployment;
    let Some(spec) = &deployment.spec else { return };
    let (hash, rs_name) = (template_hash(deployment), new_name(deployment));
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash);
    let mut annotations = copied_annotations(deployment);
    let revision = next_number(view).to_string();
    annotations.insert(REVISION.into(), json!(revision));
    if let Value::Object(sizes) = view.size_annotations() {
        annotations.extend(sizes);
    }
    let object = json!({
        "apiVersion": Kind::ReplicaSet.api_version(),
        "kind": Kind::ReplicaSet.word(),
        "metadata": {
            "name": rs_name,
            "namespace": deployment.metadata.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [meta::owner_ref(Kind::Deployment, &deployment.metadata)],
        },
        "spec": {
            "replicas": size,
            "minReadySeconds": spec.min_ready_seconds.unwrap_or(0),
            "selector": selector,
            "template": template,
        },
    });
    plan.push(Action::Create { kind: Kind::ReplicaSet, object, guards: Vec::new() });
    if size > 0 {
        let message = format!("Scaled up replica set {rs_name} from 0 to {size}");
        plan.push(view.event(EventType::Normal, "ScalingReplicaSet", message));
    }
    note.created = Some(rs_name);
    number_deployment(view, &revision, plan);
}

/// Gives the ReplicaSet of the current template its number, its copied annotations and its `minReadySeconds`, if they are not
/// right yet. True: something had to be written.
pub(crate) fn renumber(view: &View<'_>, note: &mut Note, plan: &mut Plan) -> bool {
    let Some(new) = view.new else { return false };
    note.found = Some(meta::name(&new.metadata).to_owned());
    let min_ready = view.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let has_min_ready = new.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let (is, should) = (number(&new.metadata), next_number(view));
    let mut annotations = copied_annotations(view.deployment);
    annotations.retain(|k, v| meta::annotation(&new.metadata, k) != v.as_str());
    if is < should {
        annotations.insert(REVISION.into(), json!(should.to_string()));
        if is > 0 {
            let history = meta::annotation(&new.metadata, REVISION_HISTORY).unwrap_or_default();
            let joined = if history.is_empty() { is.to_string() } else { format!("{history},{is}") };
            annotations.insert(REVISION_HISTORY.into(), json!(joined));
        }
    }
    let changed = !annotations.is_empty() || min_ready != has_min_ready;
    if changed {
        let mut metadata = meta::pin(&new.metadata);
        metadata["annotations"] = Value::Object(annotations);
        let mut patch = json!({ "metadata": metadata });
        if min_ready != has_min_ready {
            patch["spec"] = json!({ "minReadySeconds": min_ready });
        }
        let key = meta::key(&new.metadata);
        plan.push(Action::Patch { kind: Kind::ReplicaSet, key, patch_type: PatchType::Merge, patch, subresource: "", guards: Vec::new() });
    }
    number_deployment(view, &is.max(should).to_string(), plan);
    changed
}

/// The Deployment carries the number of its current template.
fn number_deployment(view: &View<'_>, revision: &str, plan: &mut Plan) {
    let meta = &view.deployment.metadata;
    if meta::annotation(meta, REVISION) == Some(revision) {
        return;
    }
    // Without the version: the status that the same plan writes must not make this one stale, or the other way round.
    let patch = json!({ "metadata": { "uid": meta.uid, "annotations": { REVISION: revision } } });
    let key = meta::key(meta);
    plan.push(Action::Patch { kind: Kind::Deployment, key, patch_type: PatchType::Merge, patch, subresource: "", guards: Vec::new() });
}
