//! Rules of the remaining kinds: storage, RBAC, policy, scheduling, webhooks, certificates, CRDs.

use serde_json::{Map, Value, json};

use super::{Generation, PLAIN, Rules, SelectableField, StatusMeta, WITH_SPEC, convert};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::val::{copy, int_at, is_empty, list_at, put, same, str_at};
use crate::validate::names::NameRule;
use crate::validate::pod::{one_of, quantity};
use crate::validate::{meta, names};

const OPEN: Rules = Rules { status_meta: StatusMeta::Open, ..PLAIN };
const OBJECT_BACK: Rules = Rules { delete_returns_object: true, ..OPEN };

/// PersistentVolumeClaims.
pub const CLAIM: Rules = Rules {
    defaults: defaults::cluster::claim,
    prepare_create: |c| put(c, &["status"], json!({"phase": "Pending"})),
    validate: claim,
    validate_update: claim_update,
    ..OBJECT_BACK
};

/// PersistentVolumes.
pub const VOLUME: Rules = Rules {
    defaults: defaults::cluster::volume,
    prepare_create: |v| put(v, &["status"], json!({"phase": "Pending"})),
    validate: volume,
    validate_update: volume_update,
    ..OBJECT_BACK
};

/// StorageClasses.
pub const STORAGE_CLASS: Rules = Rules {
    defaults: defaults::cluster::storage_class,
    validate: |c, e| {
        if str_at(c, &["provisioner"]).is_empty() {
            e.required(&Path::new("provisioner"), "");
        }
    },
    validate_update: |new, old, e| {
        for (field, why) in [
            ("parameters", "updates to parameters are forbidden."),
            ("provisioner", "updates to provisioner are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
        ] {
            if !same(&new[field], &old[field]) {
                e.forbidden(&Path::new(field), why);
            }
        }
        e.immutable(&Path::new("volumeBindingMode"), &new["volumeBindingMode"], &old["volumeBindingMode"]);
    },
    ..OBJECT_BACK
};

/// CSIDrivers.
pub const CSI_DRIVER: Rules =
    Rules { generation: Generation::Spec, defaults: defaults::cluster::csi_driver, unconditional_update: false, ..OBJECT_BACK };
/// CSINodes.
pub const CSI_NODE: Rules = Rules { unconditional_update: false, ..OBJECT_BACK };
/// CSIStorageCapacities.
pub const CSI_CAPACITY: Rules = Rules { unconditional_update: false, ..PLAIN };
/// VolumeAttachments.
pub const ATTACHMENT: Rules = Rules { unconditional_update: false, delete_returns_object: true, ..PLAIN };
/// Kinds of which only the deletion is special: it returns the object.
pub const RETURNED: Rules = OBJECT_BACK;
/// Kinds with a spec whose deletion returns the object.
pub const RETURNED_WITH_SPEC: Rules = Rules { generation: Generation::Spec, ..OBJECT_BACK };
/// ResourceClaims.
pub const RESOURCE_CLAIM: Rules = Rules { defaults: defaults::cluster::resource_claim, ..OBJECT_BACK };
/// ResourceClaimTemplates.
pub const RESOURCE_CLAIM_TEMPLATE: Rules = Rules { defaults: defaults::cluster::resource_claim_template, ..OBJECT_BACK };

/// ResourceSlices.
pub const RESOURCE_SLICE: Rules = Rules { fields: SLICE_FIELDS, ..RETURNED_WITH_SPEC };

const SLICE_FIELDS: &[SelectableField] =
    &[("spec.nodeName", |s| str_at(s, &["spec", "nodeName"]).into()), ("spec.driver", |s| str_at(s, &["spec", "driver"]).into())];

/// LimitRanges.
pub const LIMIT_RANGE: Rules = Rules { defaults: defaults::cluster::limit_range, create_on_update: true, ..PLAIN };

/// PriorityClasses.
pub const PRIORITY_CLASS: Rules = Rules {
    generation: Generation::Fixed,
    defaults: defaults::cluster::priority_class,
    validate: |c, e| {
        let (name, value) = (str_at(c, &["metadata", "name"]), int_at(c, &["value"]).unwrap_or(0));
        let system = ["system-node-critical", "system-cluster-critical"].contains(&name);
        if name.starts_with("system-") && !system {
            e.forbidden(&Path::new("metadata.name"), "priority class names with 'system-' prefix are reserved for system use only");
        } else if value > 1_000_000_000 && !system {
            e.forbidden(&Path::new("value"), "maximum allowed value of a user defined priority is 1000000000");
        }
        one_of(c, &Path::root(), "preemptionPolicy", &["PreemptLowerPriority", "Never"], e);
    },
    validate_update: |new, old, e| {
        if int_at(new, &["value"]) != int_at(old, &["value"]) {
            e.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        e.immutable(&Path::new("preemptionPolicy"), &new["preemptionPolicy"], &old["preemptionPolicy"]);
    },
    ..PLAIN
};

/// Roles of either scope.
pub const ROLE: Rules = Rules { name: NameRule::PathSegment, validate: role, create_on_update: true, ..PLAIN };

/// Role bindings of either scope.
pub const ROLE_BINDING: Rules = Rules {
    name: NameRule::PathSegment,
    defaults: defaults::cluster::role_binding,
    validate: role_binding,
    validate_update: |new, old, e| {
        if !same(&new["roleRef"], &old["roleRef"]) {
            let mut shown = Map::new();
            for (go, field) in [("APIGroup", "apiGroup"), ("Kind", "kind"), ("Name", "name")] {
                shown.insert(go.into(), json!(str_at(new, &["roleRef", field])));
            }
            e.invalid(&Path::new("roleRef"), Value::Object(shown), "cannot change roleRef");
        }
    },
    create_on_update: true,
    ..PLAIN
};

/// PodDisruptionBudgets.
pub const DISRUPTION_BUDGET: Rules = Rules {
    generation: Generation::Spec,
    unconditional_update: false,
    validate: |b, e| {
        let path = Path::new("spec");
        let spec = &b["spec"];
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            e.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
        }
        for field in ["minAvailable", "maxUnavailable"] {
            super::workload::count_or_percent(&spec[field], &path.child(field), e);
        }
        meta::label_selector(&spec["selector"], &path.child("selector"), e);
    },
    ..OPEN
};

/// HorizontalPodAutoscalers, `autoscaling/v2`.
pub const AUTOSCALER_V2: Rules = Rules { defaults: defaults::cluster::autoscaler_v2, validate: autoscaler, ..OPEN };

/// HorizontalPodAutoscalers, `autoscaling/v1`.
pub const AUTOSCALER_V1: Rules = Rules {
    defaults: defaults::cluster::autoscaler_v1,
    to_stored: Some(convert::autoscaler_to_v2),
    from_stored: Some(convert::autoscaler_from_v2),
    ..AUTOSCALER_V2
};

/// Ingresses.
pub const INGRESS: Rules = Rules { generation: Generation::Spec, defaults: defaults::network::ingress, ..OPEN };
/// IngressClasses.
pub const INGRESS_CLASS: Rules = Rules {
    defaults: defaults::network::ingress_class,
    validate_update: |new, old, e| e.immutable(&Path::new("spec.controller"), &new["spec"]["controller"], &old["spec"]["controller"]),
    ..WITH_SPEC
};
/// NetworkPolicies.
pub const NETWORK_POLICY: Rules = Rules { defaults: defaults::network::network_policy, ..WITH_SPEC };
/// RuntimeClasses.
pub const RUNTIME_CLASS: Rules = Rules {
    create_on_update: true,
    unconditional_update: false,
    validate_update: |new, old, e| e.immutable(&Path::new("handler"), &new["handler"], &old["handler"]),
    ..PLAIN
};

/// ValidatingWebhookConfigurations.
pub const VALIDATING_WEBHOOKS: Rules = Rules { defaults: defaults::cluster::validating_webhooks, ..ADMISSION };
/// MutatingWebhookConfigurations.
pub const MUTATING_WEBHOOKS: Rules = Rules { defaults: defaults::cluster::mutating_webhooks, ..ADMISSION };
/// Admission policies of either kind.
pub const ADMISSION_POLICY: Rules = Rules { defaults: defaults::cluster::admission_policy, ..ADMISSION };
/// Bindings of admission policies of either kind.
pub const ADMISSION_BINDING: Rules = Rules { defaults: defaults::cluster::admission_policy_binding, ..ADMISSION };

const ADMISSION: Rules = Rules { generation: Generation::Content, unconditional_update: false, ..PLAIN };

/// FlowSchemas.
pub const FLOW_SCHEMA: Rules = Rules { defaults: defaults::cluster::flow_schema, ..WITH_SPEC };
/// PriorityLevelConfigurations.
pub const PRIORITY_LEVEL: Rules = Rules { defaults: defaults::cluster::priority_level, ..WITH_SPEC };

/// CertificateSigningRequests.
pub const SIGNING_REQUEST: Rules = Rules {
    validate_update: |new, old, e| e.immutable(&Path::new("spec"), &new["spec"], &old["spec"]),
    prepare_update: |new, old| copy(new, old, &["spec"]),
    fields: SIGNING_FIELDS,
    ..PLAIN
};

const SIGNING_FIELDS: &[SelectableField] = &[("spec.signerName", |c| str_at(c, &["spec", "signerName"]).into())];

/// CustomResourceDefinitions.
pub const DEFINITION: Rules = Rules {
    defaults: defaults::cluster::custom_resource_definition,
    unconditional_update: false,
    validate: |d, e| {
        let want = format!("{}.{}", str_at(d, &["spec", "names", "plural"]), str_at(d, &["spec", "group"]));
        let name = str_at(d, &["metadata", "name"]);
        if name != want {
            e.invalid(&Path::new("metadata.name"), name, "must be spec.names.plural+\".\"+spec.group");
        }
    },
    validate_update: |new, old, e| {
        for path in [&["spec", "group"][..], &["spec", "scope"], &["spec", "names", "plural"], &["spec", "names", "kind"]] {
            e.immutable(&Path::new(&path.join(".")), crate::val::at(new, path), crate::val::at(old, path));
        }
    },
    ..WITH_SPEC
};

/// APIServices.
pub const API_SERVICE: Rules = Rules { name: NameRule::PathSegment, ..OPEN };

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Value, path: &Path, why: &str, e: &mut Errors) {
    let modes = list_at(spec, &["accessModes"]);
    if modes.is_empty() {
        e.required(&path.child("accessModes"), why);
    }
    for m in modes.iter().filter_map(Value::as_str).filter(|m| !MODES.contains(m)) {
        e.unsupported(&path.child("accessModes"), m, MODES);
    }
}

fn claim(c: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &c["spec"];
    access_modes(spec, &path, "at least 1 access mode is required", e);
    let storage = path.child("resources").key("storage");
    match &spec["resources"]["requests"]["storage"] {
        Value::Null => e.required(&storage, ""),
        q => quantity(q, &storage, e),
    }
    let class = str_at(spec, &["storageClassName"]);
    if !class.is_empty() {
        for why in names::dns1123_subdomain(class) {
            e.invalid(&path.child("storageClassName"), class, why);
        }
    }
}

const CLAIM_FORBIDDEN: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

fn claim_update(new: &Value, old: &Value, e: &mut Errors) {
    let mut rest = new["spec"].clone();
    let was = &old["spec"];
    if str_at(was, &["volumeName"]).is_empty() {
        copy(&mut rest, was, &["volumeName"]);
    }
    if was["storageClassName"].is_null() {
        // A claim that was made before there was a default class may be given one.
        copy(&mut rest, was, &["storageClassName"]);
    }
    copy(&mut rest, was, &["volumeAttributesClassName"]);
    copy(&mut rest, was, &["resources", "requests", "storage"]);
    let path = Path::new("spec");
    if !same(&rest, was) {
        let mut text = format!("{CLAIM_FORBIDDEN}\n");
        crate::validate::pod::diff("spec", &rest, was, &mut text);
        e.forbidden(&path, text);
    }
    let amount = |v: &Value| v["resources"]["requests"]["storage"].as_str().and_then(|s| crate::quantity::Quantity::parse(s).ok());
    let floor = old["status"]["capacity"]["storage"].as_str().and_then(|s| crate::quantity::Quantity::parse(s).ok());
    if let (Some(n), Some(o)) = (amount(&new["spec"]), amount(was))
        && n < o
        && floor.is_none_or(|f| n < f)
    {
        let path = path.child("resources").child("requests").child("storage");
        e.forbidden(&path, "field can not be less than status.capacity");
    }
}

/// Fields of a volume's spec that are not its source.
const VOLUME_FIELDS: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn source(spec: &Value) -> Map<String, Value> {
    spec.as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| !VOLUME_FIELDS.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn volume(v: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &v["spec"];
    access_modes(spec, &path, "", e);
    match &spec["capacity"]["storage"] {
        Value::Null => e.required(&path.child("capacity"), ""),
        q => quantity(q, &path.child("capacity").key("storage"), e),
    }
    match source(spec).len() {
        0 => e.required(&path, "must specify a volume type"),
        1 => {}
        _ => e.forbidden(&path, "may not specify more than 1 volume type"),
    }
    one_of(spec, &path, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], e);
}

fn volume_update(new: &Value, old: &Value, e: &mut Errors) {
    if !same(&Value::Object(source(&new["spec"])), &Value::Object(source(&old["spec"]))) {
        e.forbidden(&Path::new("spec.persistentvolumesource"), "spec.persistentvolumesource is immutable after creation");
    }
    e.immutable(&Path::new("spec.volumeMode"), &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
}

fn role(r: &Value, e: &mut Errors) {
    for (i, rule) in list_at(r, &["rules"]).iter().enumerate() {
        let path = Path::new("rules").index(i);
        if is_empty(&rule["verbs"]) {
            e.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        let paths = !is_empty(&rule["nonResourceURLs"]);
        if paths && r["kind"] == "Role" {
            e.invalid(
                &path.child("nonResourceURLs"),
                rule["nonResourceURLs"].clone(),
                "namespaced rules cannot apply to non-resource URLs",
            );
        }
        if paths && (!is_empty(&rule["apiGroups"]) || !is_empty(&rule["resources"])) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            e.invalid(&path.child("nonResourceURLs"), rule["nonResourceURLs"].clone(), why);
        } else if !paths {
            for (field, why) in [
                ("apiGroups", "resource rules must supply at least one api group"),
                ("resources", "resource rules must supply at least one resource"),
            ] {
                if is_empty(&rule[field]) {
                    e.required(&path.child(field), why);
                }
            }
        }
    }
}

fn role_binding(b: &Value, e: &mut Errors) {
    let role = Path::new("roleRef");
    let group = str_at(b, &["roleRef", "apiGroup"]);
    if group != "rbac.authorization.k8s.io" {
        e.unsupported(&role.child("apiGroup"), group, &["rbac.authorization.k8s.io"]);
    }
    let kinds: &[&str] = if b["kind"] == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let kind = str_at(b, &["roleRef", "kind"]);
    if !kinds.contains(&kind) {
        e.unsupported(&role.child("kind"), kind, kinds);
    }
    if str_at(b, &["roleRef", "name"]).is_empty() {
        e.required(&role.child("name"), "");
    }
    for (i, s) in list_at(b, &["subjects"]).iter().enumerate() {
        let path = Path::new("subjects").index(i);
        if str_at(s, &["name"]).is_empty() {
            e.required(&path.child("name"), "");
        }
        match str_at(s, &["kind"]) {
            "ServiceAccount" if str_at(s, &["namespace"]).is_empty() => e.required(&path.child("namespace"), ""),
            "ServiceAccount" | "User" | "Group" => {}
            other => e.unsupported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
        }
    }
}

fn autoscaler(a: &Value, e: &mut Errors) {
    let path = Path::new("spec");
    let spec = &a["spec"];
    let (min, max) = (int_at(spec, &["minReplicas"]).unwrap_or(1), int_at(spec, &["maxReplicas"]).unwrap_or(0));
    if min < 1 {
        e.invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1");
    }
    if max < 1 {
        e.invalid(&path.child("maxReplicas"), max, "must be greater than 0");
    }
    if max < min {
        e.invalid(&path.child("maxReplicas"), max, "must be greater than or equal to `minReplicas`");
    }
    for field in ["kind", "name"] {
        if str_at(spec, &["scaleTargetRef", field]).is_empty() {
            e.required(&path.child("scaleTargetRef").child(field), "");
        }
    }
}
