//! What a Deployment says of itself: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};
use kontiki_base::env::WallMs;

use super::super::replicaset::wanted;
use super::View;
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, Plan};

const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// What this reconcile did that the conditions mention.
#[derive(Clone, Debug, Default)]
pub(crate) struct Note {
    /// The ReplicaSet of the current template is being created.
    pub(crate) created: Option<String>,
    /// It was there.
    pub(crate) found: Option<String>,
    /// Its name is taken by something else.
    pub(crate) collision: bool,
}

fn sum(view: &View<'_>, count: impl Fn(&ReplicaSet) -> i32) -> i32 {
    view.sets.iter().map(|rs| count(rs)).sum()
}

fn of_status(rs: &ReplicaSet, field: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>) -> i32 {
    rs.status.as_ref().and_then(field).unwrap_or(0)
}

/// The counts as of now, without conditions; `None` where the count is zero, as the API server leaves it out.
fn counts(view: &View<'_>) -> DeploymentStatus {
    let available = sum(view, |rs| of_status(rs, |s| s.available_replicas));
    let wanted_now = sum(view, wanted);
    let terminating = sum(view, |rs| of_status(rs, |s| s.terminating_replicas));
    let positive = |n: i32| (n > 0).then_some(n);
    let old = view.deployment.status.as_ref();
    let was_terminating = old.and_then(|s| s.terminating_replicas);
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: positive(sum(view, |rs| of_status(rs, |s| Some(s.replicas)))),
        updated_replicas: positive(view.new.map_or(0, |rs| of_status(rs, |s| Some(s.replicas)))),
        ready_replicas: positive(sum(view, |rs| of_status(rs, |s| s.ready_replicas))),
        available_replicas: positive(available),
        unavailable_replicas: positive(wanted_now - available),
        terminating_replicas: if was_terminating.unwrap_or(0) == terminating { was_terminating } else { Some(terminating) },
        collision_count: old.and_then(|s| s.collision_count),
        conditions: old.and_then(|s| s.conditions.clone()),
    }
}

/// Whether the rollout is over: everything is of the current template, and available.
pub(crate) fn is_complete(view: &View<'_>) -> bool {
    complete(view, &counts(view))
}

fn complete(view: &View<'_>, status: &DeploymentStatus) -> bool {
    let all = Some(view.bounds.replicas).filter(|n| *n > 0);
    status.updated_replicas == all && status.replicas == all && status.available_replicas == all && {
        // The status at hand is of this generation by construction; the template must have its ReplicaSet, though.
        view.new.is_some()
    }
}

/// Writes the status if it is not what it should be, and asks to be woken at the progress deadline.
pub(crate) fn write(view: &View<'_>, now: WallMs, note: &Note, plan: &mut Plan) {
    let old = view.deployment.status.clone().unwrap_or_default();
    let mut status = counts(view);
    if note.collision {
        status.collision_count = Some(old.collision_count.unwrap_or(0) + 1);
    }
    let mut conditions = Conditions { list: status.conditions.take().unwrap_or_default(), now };
    let enough = status.available_replicas.unwrap_or(0) >= view.bounds.min_available();
    if enough {
        conditions.set("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into());
    } else {
        conditions.set("Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.".into());
    }
    if !meta::deleting(&view.deployment.metadata) {
        progress(view, &old, &status, note, &mut conditions, plan);
    }
    replica_failure(view, &mut conditions);
    status.conditions = (!conditions.list.is_empty()).then_some(conditions.list);
    if Some(&status) == view.deployment.status.as_ref() {
        return;
    }
    let mut object = meta::to_json(view.deployment);
    object["status"] = meta::to_json(&status);
    let expect = meta::revision(&view.deployment.metadata);
    // Before the writes that it does not depend on: one of them may change the Deployment's own version.
    plan.actions.insert(0, Action::Update { kind: Kind::Deployment, object, expect, subresource: "status" });
}

fn deadline(view: &View<'_>) -> Option<i64> {
    let seconds = view.deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds)?;
    (seconds != i32::MAX).then_some(i64::from(seconds) * 1000)
}

fn progress(view: &View<'_>, old: &DeploymentStatus, status: &DeploymentStatus, note: &Note, conditions: &mut Conditions, plan: &mut Plan) {
    let Some(deadline) = deadline(view) else {
        conditions.remove("Progressing");
        return;
    };
    let paused = view.deployment.spec.as_ref().is_some_and(|s| s.paused == Some(true));
    let reason = conditions.reason("Progressing").to_owned();
    if paused {
        if reason != PAUSED && reason != TIMED_OUT {
            conditions.set("Progressing", "Unknown", PAUSED, "Deployment is paused".into());
        }
        return;
    }
    if reason == PAUSED {
        conditions.set("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into());
    }
    if let Some(created) = &note.created {
        conditions.set("Progressing", "True", "NewReplicaSetCreated", format!("Created new replica set \"{created}\""));
        plan.recheck_in(millis(deadline + 1000));
        return;
    }
    if let Some(found) = note.found.as_ref().filter(|_| conditions.get("Progressing").is_none()) {
        conditions.set("Progressing", "True", "FoundNewReplicaSet", format!("Found new replica set \"{found}\""));
    }
    let at_rest = status.replicas == status.updated_replicas && conditions.reason("Progressing") == NEW_AVAILABLE;
    if at_rest && view.new.is_some() {
        return;
    }
    let subject = match view.new {
        Some(rs) => format!("ReplicaSet \"{}\"", meta::name(&rs.metadata)),
        None => format!("Deployment \"{}\"", meta::name(&view.deployment.metadata)),
    };
    if complete(view, status) {
        conditions.set("Progressing", "True", NEW_AVAILABLE, format!("{subject} has successfully progressed."));
        return;
    }
    if progressed(old, status) {
        conditions.touch("Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
    }
    let Some(current) = conditions.get("Progressing") else { return };
    if matches!(current.reason.as_deref(), Some(NEW_AVAILABLE | TIMED_OUT)) {
        return;
    }
    let since = current.last_update_time.as_ref().or(current.last_transition_time.as_ref()).map_or(conditions.now.0, meta::millis);
    let left = since + deadline - conditions.now.0;
    if left < 0 {
        conditions.set("Progressing", "False", TIMED_OUT, format!("{subject} has timed out progressing."));
    } else {
        plan.recheck_in(millis(left + 1000));
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    n(new.updated_replicas) > n(old.updated_replicas)
        || n(new.replicas) - n(new.updated_replicas) < n(old.replicas) - n(old.updated_replicas)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn replica_failure(view: &View<'_>, conditions: &mut Conditions) {
    let failure = |rs: &ReplicaSet| {
        let list = rs.status.as_ref()?.conditions.as_ref()?;
        list.iter().find(|c| c.type_ == "ReplicaFailure").cloned()
    };
    let found = view.new.and_then(|rs| failure(rs)).or_else(|| view.old().find_map(|rs| failure(rs)));
    match found {
        Some(c) => {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            conditions.set_owned("ReplicaFailure", c.status, reason, message);
        }
        None => conditions.remove("ReplicaFailure"),
    }
}

/// Conditions that keep their times as long as they say the same.
struct Conditions {
    list: Vec<DeploymentCondition>,
    now: WallMs,
}

impl Conditions {
    fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|c| c.type_ == type_)
    }

    fn reason(&self, type_: &str) -> &str {
        self.get(type_).and_then(|c| c.reason.as_deref()).unwrap_or_default()
    }

    fn remove(&mut self, type_: &str) {
        self.list.retain(|c| c.type_ != type_);
    }

    /// Sets a condition unless it has this status and reason already.
    fn set(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        self.set_owned(type_, status.to_owned(), reason.to_owned(), message);
    }

    fn set_owned(&mut self, type_: &str, status: String, reason: String, message: String) {
        let same = self.get(type_).is_some_and(|c| c.status == status && c.reason.as_deref() == Some(&reason));
        if !same {
            self.replace(type_, status, reason, message);
        }
    }

    /// Sets a condition and moves its update time even if it has this status and reason already.
    fn touch(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        self.replace(type_, status.to_owned(), reason.to_owned(), message);
    }

    fn replace(&mut self, type_: &str, status: String, reason: String, message: String) {
        let time = meta::time(self.now);
        let kept = self.get(type_).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        self.remove(type_);
        self.list.push(DeploymentCondition {
            type_: type_.to_owned(),
            status,
            reason: Some(reason),
            message: Some(message),
            last_update_time: Some(time.clone()),
            last_transition_time: Some(kept.unwrap_or(time)),
        });
    }
}
