//! Defaults of workloads: deployments, replica sets, stateful and daemon sets, jobs.

use serde_json::{Value, json};

use super::pod;
use crate::val::{default, default_str, list_mut, map_at, map_mut, put, str_at};

/// Where workloads keep their template.
const TEMPLATE: &[&str] = &["spec", "template"];

/// Defaults of a Deployment.
pub fn deployment(obj: &mut Value) {
    pod::template(obj, TEMPLATE);
    let spec = map_mut(obj, &["spec"]);
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    let strategy = map_mut(obj, &["spec", "strategy"]);
    default_str(strategy, "type", "RollingUpdate");
    if strategy.get("type") == Some(&json!("RollingUpdate")) {
        let rolling = map_mut(obj, &["spec", "strategy", "rollingUpdate"]);
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
}

/// Defaults of a ReplicaSet.
pub fn replica_set(obj: &mut Value) {
    pod::template(obj, TEMPLATE);
    default(map_mut(obj, &["spec"]), "replicas", 1);
    default(map_mut(obj, &["status"]), "replicas", 0);
}

/// Defaults of a ReplicationController: its labels and selector are those of its template.
pub fn replication_controller(obj: &mut Value) {
    let labels = obj["spec"]["template"]["metadata"]["labels"].clone();
    if labels.as_object().is_some_and(|l| !l.is_empty()) {
        if map_at(obj, &["spec", "selector"]).is_none_or(serde_json::Map::is_empty) {
            put(obj, &["spec", "selector"], labels.clone());
        }
        if map_at(obj, &["metadata", "labels"]).is_none_or(serde_json::Map::is_empty) {
            put(obj, &["metadata", "labels"], labels);
        }
    }
    if obj["spec"]["template"].is_object() {
        pod::template(obj, TEMPLATE);
    }
    default(map_mut(obj, &["spec"]), "replicas", 1);
    default(map_mut(obj, &["status"]), "replicas", 0);
}

/// Defaults of a PodTemplate.
pub fn pod_template(obj: &mut Value) {
    pod::template(obj, &["template"]);
}

/// Defaults of a StatefulSet.
pub fn stateful_set(obj: &mut Value) {
    pod::template(obj, TEMPLATE);
    let spec = map_mut(obj, &["spec"]);
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default_str(spec, "podManagementPolicy", "OrderedReady");
    let strategy = map_mut(obj, &["spec", "updateStrategy"]);
    default_str(strategy, "type", "RollingUpdate");
    if strategy.get("type") == Some(&json!("RollingUpdate")) {
        default(map_mut(obj, &["spec", "updateStrategy", "rollingUpdate"]), "partition", 0);
    }
    let retention = map_mut(obj, &["spec", "persistentVolumeClaimRetentionPolicy"]);
    default_str(retention, "whenDeleted", "Retain");
    default_str(retention, "whenScaled", "Retain");
    for claim in list_mut(obj, &["spec", "volumeClaimTemplates"]) {
        if let Some(m) = claim.as_object_mut() {
            default_str(m, "apiVersion", "v1");
            default_str(m, "kind", "PersistentVolumeClaim");
        }
        super::cluster::claim(claim);
    }
    let status = map_mut(obj, &["status"]);
    default(status, "replicas", 0);
    default(status, "availableReplicas", 0);
}

/// Defaults of a DaemonSet.
pub fn daemon_set(obj: &mut Value) {
    pod::template(obj, TEMPLATE);
    default(map_mut(obj, &["spec"]), "revisionHistoryLimit", 10);
    let strategy = map_mut(obj, &["spec", "updateStrategy"]);
    default_str(strategy, "type", "RollingUpdate");
    if strategy.get("type") == Some(&json!("RollingUpdate")) {
        let rolling = map_mut(obj, &["spec", "updateStrategy", "rollingUpdate"]);
        default(rolling, "maxUnavailable", 1);
        default(rolling, "maxSurge", 0);
    }
    default(map_mut(obj, &["metadata", "annotations"]), "deprecated.daemonset.template.generation", "0");
    let status = map_mut(obj, &["status"]);
    for field in ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"] {
        default(status, field, 0);
    }
}

/// Defaults of a Job.
pub fn job(obj: &mut Value) {
    let labels = obj["spec"]["template"]["metadata"]["labels"].clone();
    if labels.as_object().is_some_and(|l| !l.is_empty()) && map_at(obj, &["metadata", "labels"]).is_none_or(serde_json::Map::is_empty) {
        put(obj, &["metadata", "labels"], labels);
    }
    job_spec(obj, &["spec"]);
}

fn job_spec(obj: &mut Value, path: &[&str]) {
    let template: Vec<&str> = path.iter().copied().chain(["template"]).collect();
    pod::template(obj, &template);
    let policy: Vec<&str> = path.iter().copied().chain(["podFailurePolicy"]).collect();
    let failure_policy = crate::val::at(obj, &policy).is_object();
    let spec = map_mut(obj, path);
    let absent = |m: &serde_json::Map<String, Value>, k: &str| m.get(k).is_none_or(Value::is_null);
    if absent(spec, "completions") && absent(spec, "parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    default(spec, "parallelism", 1);
    let limit = if absent(spec, "backoffLimitPerIndex") { 6 } else { i64::from(i32::MAX) };
    default(spec, "backoffLimit", limit);
    default_str(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    default_str(spec, "podReplacementPolicy", if failure_policy { "Failed" } else { "TerminatingOrFailed" });
    if let Some(Value::Object(p)) = spec.get_mut("podFailurePolicy") {
        for rule in p.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            for condition in list_mut(rule, &["onPodConditions"]) {
                if str_at(condition, &["status"]).is_empty() {
                    put(condition, &["status"], json!("True"));
                }
            }
        }
    }
}

/// Defaults of a CronJob.
pub fn cron_job(obj: &mut Value) {
    let spec = map_mut(obj, &["spec"]);
    default_str(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    // The job inside gets the defaults of its pods only: its own are those of the Job that is made from it.
    pod::template(obj, &["spec", "jobTemplate", "spec", "template"]);
}
