//! Defaults of the other kinds: nodes, namespaces, secrets, storage, autoscaling, RBAC, webhooks, flow control.

use serde_json::{Value, json};

use crate::val::{at_mut, default, default_str, list_at, list_mut, map_at, map_mut, put, str_at, take};

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// Defaults of a Namespace. Its name is a label of it at all times.
pub fn namespace(obj: &mut Value) {
    let name = str_at(obj, &["metadata", "name"]).to_string();
    if !name.is_empty() {
        map_mut(obj, &["metadata", "labels"]).insert("kubernetes.io/metadata.name".into(), json!(name));
    }
    default_str(map_mut(obj, &["status"]), "phase", "Active");
}

/// Defaults of a Node.
pub fn node(obj: &mut Value) {
    if obj["status"]["allocatable"].is_null() && obj["status"]["capacity"].is_object() {
        let capacity = obj["status"]["capacity"].clone();
        put(obj, &["status", "allocatable"], capacity);
    }
}

/// Defaults of a Secret: text is stored as what it is.
pub fn secret(obj: &mut Value) {
    use base64::Engine as _;
    if let Some(Value::Object(text)) = take(obj, &["stringData"]) {
        for (key, value) in text {
            let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or(""));
            map_mut(obj, &["data"]).insert(key, json!(encoded));
        }
    }
    default_str(map_mut(obj, &[]), "type", "Opaque");
}

/// Defaults of a PersistentVolumeClaim.
pub fn claim(obj: &mut Value) {
    default(map_mut(obj, &["spec"]), "volumeMode", "Filesystem");
    default_str(map_mut(obj, &["status"]), "phase", "Pending");
}

/// Defaults of a PersistentVolume.
pub fn volume(obj: &mut Value) {
    let spec = map_mut(obj, &["spec"]);
    default_str(spec, "persistentVolumeReclaimPolicy", "Retain");
    default(spec, "volumeMode", "Filesystem");
    if let Some(Value::Object(h)) = spec.get_mut("hostPath") {
        default(h, "type", "");
    }
    default_str(map_mut(obj, &["status"]), "phase", "Pending");
}

/// Defaults of a StorageClass.
pub fn storage_class(obj: &mut Value) {
    let m = map_mut(obj, &[]);
    default(m, "reclaimPolicy", "Delete");
    default(m, "volumeBindingMode", "Immediate");
}

/// Defaults of a CSIDriver.
pub fn csi_driver(obj: &mut Value) {
    let spec = map_mut(obj, &["spec"]);
    default(spec, "attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        default(spec, field, false);
    }
    default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
    }
}

/// Defaults of a PriorityClass.
pub fn priority_class(obj: &mut Value) {
    default(map_mut(obj, &[]), "preemptionPolicy", "PreemptLowerPriority");
}

/// Defaults of a role binding of either scope.
pub fn role_binding(obj: &mut Value) {
    default_str(map_mut(obj, &["roleRef"]), "apiGroup", RBAC_GROUP);
    for s in list_mut(obj, &["subjects"]) {
        if matches!(str_at(s, &["kind"]), "User" | "Group") {
            default_str(map_mut(s, &[]), "apiGroup", RBAC_GROUP);
        }
    }
}

/// Defaults of a LimitRange: `max` is the default limit, and that is the default request.
pub fn limit_range(obj: &mut Value) {
    for item in list_mut(obj, &["spec", "limits"]) {
        if str_at(item, &["type"]) != "Container" {
            continue;
        }
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            for (name, amount) in map_at(item, &[from]).cloned().into_iter().flatten() {
                map_mut(item, &[to]).entry(name).or_insert(amount);
            }
        }
    }
}

/// Defaults of a HorizontalPodAutoscaler, `autoscaling/v2`.
pub fn autoscaler_v2(obj: &mut Value) {
    default(map_mut(obj, &["spec"]), "minReplicas", 1);
    if list_at(obj, &["spec", "metrics"]).is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        put(obj, &["spec", "metrics"], json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    if obj["spec"]["behavior"].is_object() {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let up = map_mut(obj, &["spec", "behavior", "scaleUp"]);
        default(up, "stabilizationWindowSeconds", 0);
        default(up, "selectPolicy", "Max");
        default(up, "policies", json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, percent]));
        let down = map_mut(obj, &["spec", "behavior", "scaleDown"]);
        default(down, "selectPolicy", "Max");
        default(down, "policies", json!([percent]));
    }
    default(map_mut(obj, &["status"]), "desiredReplicas", 0);
}

/// Defaults of a HorizontalPodAutoscaler, `autoscaling/v1`.
pub fn autoscaler_v1(obj: &mut Value) {
    let spec = map_mut(obj, &["spec"]);
    default(spec, "minReplicas", 1);
    default(spec, "targetCPUUtilizationPercentage", 80);
    let status = map_mut(obj, &["status"]);
    default(status, "currentReplicas", 0);
    default(status, "desiredReplicas", 0);
}

/// Defaults of a webhook configuration; `mutating` ones may be called again.
fn webhooks(obj: &mut Value, mutating: bool) {
    for w in list_mut(obj, &["webhooks"]) {
        if let Some(client) = at_mut(w, &["clientConfig"]) {
            super::network::webhook_client(client);
        }
        for r in list_mut(w, &["rules"]) {
            default(map_mut(r, &[]), "scope", "*");
        }
        let m = map_mut(w, &[]);
        default(m, "failurePolicy", "Fail");
        default(m, "matchPolicy", "Equivalent");
        default(m, "namespaceSelector", json!({}));
        default(m, "objectSelector", json!({}));
        default(m, "timeoutSeconds", 10);
        if mutating {
            default(m, "reinvocationPolicy", "Never");
        }
    }
}

/// Defaults of a ValidatingWebhookConfiguration.
pub fn validating_webhooks(obj: &mut Value) {
    webhooks(obj, false);
}

/// Defaults of a MutatingWebhookConfiguration.
pub fn mutating_webhooks(obj: &mut Value) {
    webhooks(obj, true);
}

/// Defaults of an admission policy of either kind.
pub fn admission_policy(obj: &mut Value) {
    default(map_mut(obj, &["spec"]), "failurePolicy", "Fail");
    match_resources(obj, &["spec", "matchConstraints"]);
}

/// Defaults of a binding of an admission policy.
pub fn admission_policy_binding(obj: &mut Value) {
    match_resources(obj, &["spec", "matchResources"]);
}

fn match_resources(obj: &mut Value, path: &[&str]) {
    let Some(m) = at_mut(obj, path) else { return };
    for list in ["resourceRules", "excludeResourceRules"] {
        for r in list_mut(m, &[list]) {
            default(map_mut(r, &[]), "scope", "*");
        }
    }
    let m = map_mut(m, &[]);
    default(m, "matchPolicy", "Equivalent");
    default(m, "namespaceSelector", json!({}));
    default(m, "objectSelector", json!({}));
}

/// Defaults of a PriorityLevelConfiguration.
pub fn priority_level(obj: &mut Value) {
    if let Some(Value::Object(m)) = at_mut(obj, &["spec", "limited"]) {
        default(m, "nominalConcurrencyShares", 30);
        default(m, "lendablePercent", 0);
        default(m, "limitResponse", json!({"type": ""}));
        if let Some(Value::Object(q)) = m.get_mut("limitResponse").and_then(|r| r.get_mut("queuing")) {
            for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                crate::val::default_int(q, field, value);
            }
        }
    }
    if let Some(Value::Object(m)) = at_mut(obj, &["spec", "exempt"]) {
        default(m, "nominalConcurrencyShares", 0);
        default(m, "lendablePercent", 0);
    }
}

/// Defaults of a FlowSchema.
pub fn flow_schema(obj: &mut Value) {
    crate::val::default_int(map_mut(obj, &["spec"]), "matchingPrecedence", 1000);
}

/// Defaults of a ResourceClaim: an exact request asks for one device.
pub fn resource_claim(obj: &mut Value) {
    devices(obj, &["spec", "devices", "requests"]);
}

/// Defaults of a ResourceClaimTemplate.
pub fn resource_claim_template(obj: &mut Value) {
    devices(obj, &["spec", "spec", "devices", "requests"]);
}

fn devices(obj: &mut Value, path: &[&str]) {
    let fill = |v: &mut Value| {
        let m = map_mut(v, &[]);
        default_str(m, "allocationMode", "ExactCount");
        if m.get("allocationMode") == Some(&json!("ExactCount")) {
            crate::val::default_int(m, "count", 1);
        }
    };
    for r in list_mut(obj, path) {
        if let Some(exact) = at_mut(r, &["exactly"]) {
            fill(exact);
        }
        for sub in list_mut(r, &["firstAvailable"]) {
            fill(sub);
        }
    }
}

/// Defaults of a CustomResourceDefinition: names and a conversion that changes nothing.
pub fn custom_resource_definition(obj: &mut Value) {
    let kind = str_at(obj, &["spec", "names", "kind"]).to_string();
    if kind.is_empty() {
        return;
    }
    let names = map_mut(obj, &["spec", "names"]);
    default_str(names, "singular", &kind.to_lowercase());
    default_str(names, "listKind", &format!("{kind}List"));
    default(map_mut(obj, &["spec"]), "conversion", json!({"strategy": "None"}));
}
