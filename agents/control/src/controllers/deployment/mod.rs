//! Deployments: one ReplicaSet per pod template, and the way from one to the next (Kubernetes `pkg/controller/deployment`).
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the order of things: claim, pause, scale, roll out, clean up, status |
//! | `revision.rs` | the ReplicaSet of the current template: finding it, naming it, numbering it |
//! | `rolling.rs` | the arithmetic: surge, unavailability, proportional scaling |
//! | `status.rs` | counts and conditions |

pub mod revision;
pub mod rolling;
pub mod status;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kontiki_base::Code;
use serde_json::{Value, json};

use super::Input;
use super::claim::{self, Claim};
use super::replicaset::{scale_patch, wanted};
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, EventType, Plan, Regarding};
use crate::selector;
use rolling::Bounds;

/// How many replicas the Deployment wanted when it last scaled the ReplicaSet.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many pods there could be at most at that time.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The number of the template.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a template that came back.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The label that tells the pods of two templates apart.
pub const HASH: &str = "pod-template-hash";

/// A Deployment and what it owns, taken apart.
pub(crate) struct View<'a> {
    pub(crate) deployment: &'a Deployment,
    /// Its ReplicaSets, by creation, oldest first.
    pub(crate) sets: Vec<&'a Arc<ReplicaSet>>,
    /// The one of the current template.
    pub(crate) new: Option<&'a Arc<ReplicaSet>>,
    pub(crate) bounds: Bounds,
}

impl<'a> View<'a> {
    /// The ReplicaSets of earlier templates, oldest first.
    pub(crate) fn old(&self) -> impl Iterator<Item = &'a Arc<ReplicaSet>> + '_ {
        self.sets.iter().copied().filter(|rs| self.new.is_none_or(|new| !Arc::ptr_eq(rs, new)))
    }

    pub(crate) fn event(&self, event_type: EventType, reason: &'static str, message: String) -> Action {
        let meta = &self.deployment.metadata;
        let regarding = Regarding { kind: Kind::Deployment, key: meta::key(meta), uid: meta::uid(meta) };
        Action::Event { regarding, event_type, reason, message }
    }

    /// Brings a ReplicaSet to a size, and tells people.
    pub(crate) fn scale(&self, rs: &ReplicaSet, to: i32, plan: &mut Plan) {
        let from = wanted(rs);
        let annotations = self.size_annotations();
        let stale = [DESIRED, MAX].iter().any(|k| meta::annotation(&rs.metadata, k) != annotations[k].as_str());
        if from == to && !stale {
            return;
        }
        plan.push(scale_patch(rs, to, annotations));
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", meta::name(&rs.metadata));
            plan.push(self.event(EventType::Normal, "ScalingReplicaSet", message));
        }
    }

    pub(crate) fn size_annotations(&self) -> Value {
        json!({ DESIRED: self.bounds.replicas.to_string(), MAX: self.bounds.max_pods().to_string() })
    }
}

/// One look at one Deployment.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let Some(deployment) = input.world.deployments.get(input.key) else { return plan };
    let Some(spec) = &deployment.spec else { return plan };
    let view = view(deployment, input, &mut plan);
    if selector::is_everything(&spec.selector) {
        let message = "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
        plan.push(view.event(EventType::Warning, "SelectingAll", message));
        return plan;
    }
    let mut note = status::Note { collision: collides(&view, input), ..status::Note::default() };
    if !meta::deleting(&deployment.metadata) {
        if spec.paused == Some(true) {
            adopt_sizes(&view, &mut plan);
        } else if is_scaling(&view) {
            if !revision::renumber(&view, &mut note, &mut plan) {
                adopt_sizes(&view, &mut plan);
            }
        } else {
            roll_out(&view, input, &mut note, &mut plan);
        }
        if status::is_complete(&view) {
            clean_up(&view, &mut plan);
        }
    }
    status::write(&view, input.now, &note, &mut plan);
    plan
}

fn view<'a>(deployment: &'a Deployment, input: &Input<'a>, plan: &mut Plan) -> View<'a> {
    let mut sets = Vec::new();
    if let Some(spec) = &deployment.spec {
        for rs in input.world.replica_sets.in_namespace(meta::namespace(&deployment.metadata)) {
            let selected = selector::matches(&spec.selector, rs.metadata.labels.as_ref());
            match claim::claim(&deployment.metadata, &rs.metadata, selected) {
                Claim::Mine => sets.push(rs),
                Claim::Adopt if !selector::is_everything(&spec.selector) => {
                    // Counted from the next look on: it is not ours before the owner reference is written.
                    plan.push(claim::adopt(Kind::Deployment, &deployment.metadata, Kind::ReplicaSet, &rs.metadata));
                }
                Claim::Release => plan.push(claim::release(&deployment.metadata, Kind::ReplicaSet, &rs.metadata)),
                Claim::Adopt | Claim::Foreign => {}
            }
        }
    }
    sets.sort_by_key(|rs| (rs.metadata.creation_timestamp.as_ref().map(meta::millis), meta::name(&rs.metadata).to_owned()));
    let new = revision::find_new(deployment, &sets);
    View { deployment, sets, new, bounds: Bounds::of(deployment) }
}

/// Whether the name of the new ReplicaSet is taken by something else.
fn collides(view: &View<'_>, input: &Input<'_>) -> bool {
    let wanted_name = revision::new_name(view.deployment);
    let refused = input.failure.is_some_and(|f| f.code == Code::AlreadyExists && f.object.name == wanted_name);
    let key = kontiki_base::object::ObjectKey::new(meta::namespace(&view.deployment.metadata), wanted_name);
    let exists = input.world.replica_sets.get(&key).is_some();
    view.new.is_none() && (refused || exists)
}

/// Whether the number of replicas has changed since the ReplicaSets were last sized (not the template).
fn is_scaling(view: &View<'_>) -> bool {
    view.sets.iter().filter(|rs| wanted(rs) > 0).any(|rs| {
        let desired = meta::annotation(&rs.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok());
        desired.is_some_and(|d| d != view.bounds.replicas)
    })
}

/// Proportional scaling: nothing but sizes change.
fn adopt_sizes(view: &View<'_>, plan: &mut Plan) {
    for (rs, size) in rolling::proportional(view) {
        view.scale(rs, size, plan);
    }
}

fn roll_out(view: &View<'_>, input: &Input<'_>, note: &mut status::Note, plan: &mut Plan) {
    let recreate = view.deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).is_some_and(|s| s.type_.as_deref() == Some("Recreate"));
    if recreate {
        let mut scaled = false;
        for rs in view.old().filter(|rs| wanted(rs) > 0) {
            view.scale(rs, 0, plan);
            scaled = true;
        }
        if scaled || old_pods_running(view, input) {
            return;
        }
    }
    if note.collision {
        return;
    }
    let Some(new) = view.new else {
        let size = if recreate { view.bounds.replicas } else { rolling::first_size(view) };
        revision::create(view, size, note, plan);
        return;
    };
    if revision::renumber(view, note, plan) {
        // The rest is decided on what that write makes.
        return;
    }
    if recreate {
        if wanted(new) != view.bounds.replicas {
            view.scale(new, view.bounds.replicas, plan);
        }
        return;
    }
    let up = rolling::new_size(view);
    if up != wanted(new) {
        view.scale(new, up, plan);
        return;
    }
    for (rs, size) in rolling::old_sizes(view) {
        view.scale(rs, size, plan);
    }
}

/// Recreate: a pod of an old template, even one that is terminating, keeps the new ones away.
fn old_pods_running(view: &View<'_>, input: &Input<'_>) -> bool {
    view.old().any(|rs| input.world.pods.owned_by(&meta::uid(&rs.metadata)).any(|p| !meta::terminal(p)))
}

/// Deletes the oldest ReplicaSets beyond the history limit.
fn clean_up(view: &View<'_>, plan: &mut Plan) {
    let limit = view.deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let Ok(limit) = usize::try_from(limit) else { return };
    if limit == usize::try_from(i32::MAX).unwrap_or(usize::MAX) {
        return;
    }
    let mut old: Vec<_> = view.old().filter(|rs| !meta::deleting(&rs.metadata)).collect();
    if old.len() <= limit {
        return;
    }
    old.sort_by_key(|rs| (revision::number(&rs.metadata), rs.metadata.creation_timestamp.as_ref().map(meta::millis)));
    let surplus = old.len() - limit;
    for rs in &old[..surplus] {
        let status = rs.status.as_ref();
        let observed = status.and_then(|s| s.observed_generation) >= rs.metadata.generation;
        if status.map_or(0, |s| s.replicas) == 0 && wanted(rs) == 0 && observed {
            plan.push(Action::Delete {
                kind: Kind::ReplicaSet,
                key: meta::key(&rs.metadata),
                uid: meta::uid(&rs.metadata),
                expect: Some(meta::revision(&rs.metadata)),
                grace: None,
                propagation: None,
                guards: Vec::new(),
            });
        }
    }
}
