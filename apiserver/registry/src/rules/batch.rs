//! Rules of Jobs and CronJobs.

use serde_json::{Value, json};

use super::{DefaultGc, Generation, PLAIN, Rules, SelectableField, StatusMeta};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::val::{bool_at, copy, int_at, map_mut, put, same, str_at};
use crate::validate::names;
use crate::validate::pod::{non_negative, one_of, template};

/// The rules of Jobs.
pub const JOB: Rules = Rules {
    generation: Generation::Spec,
    status_meta: StatusMeta::Open,
    defaults: defaults::workload::job,
    prepare_create: own_selector,
    validate: job,
    validate_update: job_update,
    default_gc: DefaultGc::Orphan,
    fields: FIELDS,
    ..PLAIN
};

const FIELDS: &[SelectableField] = &[("status.successful", |j| int_at(j, &["status", "succeeded"]).unwrap_or(0).to_string())];

/// The rules of CronJobs.
pub const CRON_JOB: Rules = Rules {
    generation: Generation::Spec,
    status_meta: StatusMeta::Open,
    defaults: defaults::workload::cron_job,
    validate: cron_job,
    ..PLAIN
};

/// A job selects its pods by its own uid, unless it brings a selector.
fn own_selector(job: &mut Value) {
    if bool_at(job, &["spec", "manualSelector"]) || job["spec"]["selector"].is_object() {
        return;
    }
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    let labels = map_mut(job, &["spec", "template", "metadata", "labels"]);
    for (key, value) in [
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels.insert(key.into(), value.clone());
    }
    put(job, &["spec", "selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    // A job without labels takes those of its template, these included.
    defaults::workload::job(job);
}

fn job(obj: &Value, e: &mut Errors) {
    job_spec(&obj["spec"], &Path::new("spec"), e);
    let spec = &obj["spec"];
    if spec["selector"].is_null() {
        e.required(&Path::new("spec.selector"), "");
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    let selector = crate::select::LabelSelector::from_object(&spec["selector"]);
    if !selector.is_ok_and(|s| s.matches_labels(labels)) {
        let path = Path::new("spec.template.metadata.labels");
        e.invalid(&path, labels.clone(), "`selector` does not match template `labels`");
    }
}

fn job_spec(spec: &Value, path: &Path, e: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(spec, path, field, e);
    }
    one_of(spec, path, "completionMode", &["NonIndexed", "Indexed"], e);
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        e.required(&path.child("completions"), "when completion mode is Indexed");
    }
    let path = path.child("template");
    template(&spec["template"], &path, e);
    let policy = str_at(spec, &["template", "spec", "restartPolicy"]);
    if policy == "Always" {
        // The template's own check has an opinion on texts that are no policy at all.
        e.unsupported(&path.child("spec").child("restartPolicy"), policy, &["OnFailure", "Never"]);
    }
}

/// Parts of the template that say where pods may run: they can be set anew while a job waits.
const SCHEDULING: &[&[&str]] = &[
    &["spec", "affinity"],
    &["spec", "nodeSelector"],
    &["spec", "tolerations"],
    &["spec", "schedulingGates"],
    &["metadata", "annotations"],
    &["metadata", "labels"],
];

fn job_update(new: &Value, old: &Value, e: &mut Errors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let path = Path::new("spec");
    let elastic = n["completionMode"] == "Indexed" && n["completions"] == n["parallelism"];
    if !elastic {
        e.immutable(&path.child("completions"), &n["completions"], &o["completions"]);
    }
    for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        e.immutable(&path.child(field), &n[field], &o[field]);
    }
    let mut rest = n["template"].clone();
    let waits = bool_at(o, &["suspend"]) && old["status"]["startTime"].is_null();
    if waits {
        for part in SCHEDULING {
            copy(&mut rest, &o["template"], part);
        }
    }
    if !same(&rest, &o["template"]) {
        e.invalid(&path.child("template"), n["template"].clone(), "field is immutable");
    }
}

fn cron_job(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &obj["spec"];
    let name = str_at(obj, &["metadata", "name"]);
    if name.len() > 52 {
        e.invalid(&Path::new("metadata.name"), name, "must be no more than 52 characters");
    }
    match str_at(spec, &["schedule"]) {
        "" => e.required(&path.child("schedule"), ""),
        text if text.contains("TZ") => {
            e.invalid(&path.child("schedule"), text, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
        text => {
            let fields = text.split_ascii_whitespace().count();
            if !text.starts_with('@') && fields != 5 {
                let why =
                    format!("expected exactly 5 fields, found {fields}: [{}]", text.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
                e.invalid(&path.child("schedule"), text, why);
            }
        }
    }
    one_of(spec, &path, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], e);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(spec, &path, field, e);
    }
    let job = path.child("jobTemplate").child("spec");
    let inner = &spec["jobTemplate"]["spec"];
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit"] {
        non_negative(inner, &job, field, e);
    }
    template(&inner["template"], &job.child("template"), e);
    if inner["template"]["spec"]["restartPolicy"] == "Always" {
        let path = job.child("template").child("spec").child("restartPolicy");
        e.unsupported(&path, "Always", &["OnFailure", "Never"]);
    }
    for key in spec["jobTemplate"]["metadata"]["labels"].as_object().into_iter().flatten().map(|(k, _)| k) {
        for why in names::qualified_name(key) {
            e.invalid(&path.child("jobTemplate").child("metadata").child("labels"), key.as_str(), why);
        }
    }
}
