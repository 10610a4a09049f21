//! Rules of workloads that keep pods running: Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers.

use serde_json::{Value, json};

use super::{DefaultGc, Generation, PLAIN, Rules, SelectableField, StatusMeta};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::select::LabelSelector;
use crate::val::{at, copy, int_at, is_empty, map_at, map_mut, same, str_at};
use crate::validate::meta::label_selector;
use crate::validate::pod::{non_negative, one_of, template};

const BASE: Rules = Rules { generation: Generation::Spec, status_meta: StatusMeta::Open, ..PLAIN };

/// The rules of Deployments.
pub const DEPLOYMENT: Rules = Rules {
    generation: Generation::SpecAndAnnotations,
    status_meta: StatusMeta::KeepsLabels,
    defaults: defaults::workload::deployment,
    validate: deployment,
    validate_update: selector_is_fixed,
    ..BASE
};

/// The rules of ReplicaSets.
pub const REPLICA_SET: Rules =
    Rules { defaults: defaults::workload::replica_set, validate: replica_set, validate_update: selector_is_fixed, ..BASE };

/// The rules of StatefulSets.
pub const STATEFUL_SET: Rules = Rules {
    defaults: defaults::workload::stateful_set,
    validate: stateful_set,
    validate_update: stateful_set_update,
    fields: NEVER,
    ..BASE
};

/// A field that upstream accepts for this kind and that nothing ever has.
const NEVER: &[SelectableField] = &[("status.successful", |_| String::new())];

/// The rules of DaemonSets.
pub const DAEMON_SET: Rules = Rules {
    defaults: defaults::workload::daemon_set,
    prepare_create: |ds| set_template_generation(ds, 1),
    prepare_update: daemon_set_prepare,
    validate: daemon_set,
    validate_update: selector_is_fixed,
    ..BASE
};

/// The rules of ReplicationControllers.
pub const REPLICATION_CONTROLLER: Rules = Rules {
    defaults: defaults::workload::replication_controller,
    validate: replication_controller,
    default_gc: DefaultGc::Orphan,
    fields: RC_FIELDS,
    ..BASE
};

const RC_FIELDS: &[SelectableField] = &[("status.replicas", |rc| int_at(rc, &["status", "replicas"]).unwrap_or(0).to_string())];

/// The rules of PodTemplates.
pub const POD_TEMPLATE: Rules = Rules {
    generation: Generation::Content,
    defaults: defaults::workload::pod_template,
    validate: |obj, e| template(&obj["template"], &Path::new("template"), e),
    delete_returns_object: true,
    ..PLAIN
};

/// The rules of ControllerRevisions: what they hold never changes.
pub const CONTROLLER_REVISION: Rules = Rules {
    validate: |obj, e| {
        if obj["data"].is_null() {
            e.required(&Path::new("data"), "data is mandatory");
        }
        non_negative(obj, &Path::root(), "revision", e);
    },
    validate_update: |new, old, e| e.immutable(&Path::new("data"), &new["data"], &old["data"]),
    ..PLAIN
};

/// Selector and template of the `apps` workloads.
fn selector_and_template(obj: &Value, kind: &str, e: &mut Errors) {
    let path = Path::new("spec");
    let selector = &obj["spec"]["selector"];
    if selector.is_null() {
        e.required(&path.child("selector"), "");
    } else {
        label_selector(selector, &path.child("selector"), e);
        if is_empty(selector) {
            e.invalid(&path.child("selector"), selector.clone(), format!("empty selector is invalid for {kind}"));
        }
    }
    let labels = &obj["spec"]["template"]["metadata"]["labels"];
    let path = path.child("template");
    // An empty selector has been refused above; one that cannot be read as well.
    let parsed = LabelSelector::from_object(selector).unwrap_or_else(|_| LabelSelector::nothing());
    if !parsed.is_everything() && !parsed.matches_labels(labels) {
        let why = "`selector` does not match template `labels`";
        e.invalid(&path.child("metadata").child("labels"), labels.clone(), why);
    }
    template(&obj["spec"]["template"], &path, e);
    always_restarts(obj, &path, e);
}

fn always_restarts(obj: &Value, path: &Path, e: &mut Errors) {
    let spec = &obj["spec"]["template"]["spec"];
    let path = path.child("spec");
    let policy = str_at(spec, &["restartPolicy"]);
    if policy != "Always" && ["OnFailure", "Never"].contains(&policy) {
        e.unsupported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if !spec["activeDeadlineSeconds"].is_null() {
        e.forbidden(&path.child("activeDeadlineSeconds"), format!("activeDeadlineSeconds in {} is not Supported", str_at(obj, &["kind"])));
    }
}

fn selector_is_fixed(new: &Value, old: &Value, e: &mut Errors) {
    e.immutable(&Path::new("spec.selector"), &new["spec"]["selector"], &old["spec"]["selector"]);
}

fn deployment(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &obj["spec"];
    non_negative(spec, &path, "replicas", e);
    selector_and_template(obj, "deployment", e);
    strategy(&spec["strategy"], &path.child("strategy"), e);
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        non_negative(spec, &path, field, e);
    }
    if let Some(deadline) = int_at(spec, &["progressDeadlineSeconds"])
        && deadline <= int_at(spec, &["minReadySeconds"]).unwrap_or(0)
    {
        e.invalid(&path.child("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds");
    }
}

fn strategy(s: &Value, path: &Path, e: &mut Errors) {
    let rolling = &s["rollingUpdate"];
    match str_at(s, &["type"]) {
        "Recreate" if !rolling.is_null() => {
            e.forbidden(&path.child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'");
        }
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            for field in ["maxUnavailable", "maxSurge"] {
                count_or_percent(&rolling[field], &path.child(field), e);
            }
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                e.invalid(&path.child("maxUnavailable"), rolling["maxUnavailable"].clone(), "may not be 0 when `maxSurge` is 0");
            }
        }
        _ => one_of(s, path, "type", &["Recreate", "RollingUpdate"], e),
    }
}

fn is_zero(v: &Value) -> bool {
    v.as_i64() == Some(0) || v.as_str().is_some_and(|s| s.trim_end_matches('%').parse::<u32>() == Ok(0))
}

/// A number of pods, or a share of them up to 100 %.
pub fn count_or_percent(v: &Value, path: &Path, e: &mut Errors) {
    match v {
        Value::String(s) => match s.strip_suffix('%').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            None => e.invalid(path, s.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
            Some(n) if n.parse::<u64>().is_ok_and(|n| n > 100) && !path.to_string().ends_with("maxSurge") => {
                e.invalid(path, s.as_str(), "must not be greater than 100%");
            }
            Some(_) => {}
        },
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => {
            e.invalid(path, v.clone(), "must be greater than or equal to 0");
        }
        _ => {}
    }
}

fn replica_set(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    non_negative(&obj["spec"], &path, "replicas", e);
    non_negative(&obj["spec"], &path, "minReadySeconds", e);
    selector_and_template(obj, "replicaset", e);
}

fn stateful_set(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &obj["spec"];
    one_of(spec, &path, "podManagementPolicy", &["OrderedReady", "Parallel"], e);
    one_of(&spec["updateStrategy"], &path.child("updateStrategy"), "type", &["RollingUpdate", "OnDelete"], e);
    non_negative(spec, &path, "replicas", e);
    non_negative(spec, &path, "minReadySeconds", e);
    // Volumes made from claim templates are known to the containers.
    let mut seen = obj.clone();
    let claims = crate::val::list_at(spec, &["volumeClaimTemplates"]);
    if !claims.is_empty() {
        let volumes = crate::val::vec_mut(&mut seen, &["spec", "template", "spec", "volumes"]);
        for c in claims {
            let name = c["metadata"]["name"].clone();
            volumes.retain(|v| v["name"] != name);
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": "from-template"}}));
        }
    }
    selector_and_template(&seen, "statefulset", e);
}

const STATEFUL_SET_FORBIDDEN: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                                      'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

fn stateful_set_update(new: &Value, old: &Value, e: &mut Errors) {
    let mut rest = new["spec"].clone();
    for field in [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ] {
        copy(&mut rest, &old["spec"], &[field]);
    }
    if !same(&rest, &old["spec"]) {
        e.forbidden(&Path::new("spec"), STATEFUL_SET_FORBIDDEN);
    }
}

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn set_template_generation(ds: &mut Value, n: i64) {
    map_mut(ds, &["metadata", "annotations"]).insert(TEMPLATE_GENERATION.into(), json!(n.to_string()));
}

fn daemon_set_prepare(ds: &mut Value, old: &Value) {
    let had: i64 = str_at(old, &["metadata", "annotations", TEMPLATE_GENERATION]).parse().unwrap_or(0);
    let changed = !same(at(ds, &["spec", "template"]), at(old, &["spec", "template"]));
    set_template_generation(ds, if changed { had.saturating_add(1) } else { had });
}

fn daemon_set(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &obj["spec"];
    selector_and_template(obj, "daemonset", e);
    non_negative(spec, &path, "minReadySeconds", e);
    let strategy = &spec["updateStrategy"];
    let path = path.child("updateStrategy");
    one_of(strategy, &path, "type", &["RollingUpdate", "OnDelete"], e);
    let rolling = &strategy["rollingUpdate"];
    if rolling.is_object() {
        let path = path.child("rollingUpdate");
        for field in ["maxUnavailable", "maxSurge"] {
            count_or_percent(&rolling[field], &path.child(field), e);
        }
        match (is_zero(&rolling["maxUnavailable"]), is_zero(&rolling["maxSurge"])) {
            (true, true) => e.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
            (false, false) => {
                e.invalid(&path.child("maxSurge"), rolling["maxSurge"].clone(), "may not be set when maxUnavailable is non-zero")
            }
            _ => {}
        }
    }
}

fn replication_controller(obj: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &obj["spec"];
    non_negative(spec, &path, "replicas", e);
    let selector = &spec["selector"];
    if map_at(selector, &[]).is_none_or(serde_json::Map::is_empty) {
        e.required(&path.child("selector"), "");
    }
    if spec["template"].is_null() {
        e.required(&path.child("template"), "");
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !LabelSelector::from_map(selector).matches_labels(labels) {
        e.invalid(&path.child("template").child("metadata").child("labels"), labels.clone(), "`selector` does not match template `labels`");
    }
    template(&spec["template"], &path.child("template"), e);
    always_restarts(obj, &path.child("template"), e);
}
