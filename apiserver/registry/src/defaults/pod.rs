//! Defaults of pods and of the pod specs inside templates.

use serde_json::{Map, Value, json};

use crate::quantity::Quantity;
use crate::val::{default, default_int, default_str, list_mut, map_mut, str_at};

/// Lists of containers, in the order in which they start.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod.
pub fn pod(obj: &mut Value) {
    pod_spec(obj, &["spec"]);
    let Some(spec) = obj["spec"].as_object_mut() else { return };
    default(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for c in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            requests_from_limits(c);
            if host_network {
                host_ports(c);
            }
        }
    }
    if let Some(spec) = crate::val::at_mut(obj, &["spec"]) {
        requests_from_limits(spec);
    }
    addresses(obj);
}

/// `podIP` is the first of `podIPs`; who sets one of them sets both.
fn addresses(obj: &mut Value) {
    let ip = str_at(obj, &["status", "podIP"]).to_string();
    let first = str_at(&obj["status"]["podIPs"][0], &["ip"]).to_string();
    if !ip.is_empty() && first.is_empty() {
        map_mut(obj, &["status"]).insert("podIPs".into(), json!([{"ip": ip}]));
    } else if ip.is_empty() && !first.is_empty() {
        map_mut(obj, &["status"]).insert("podIP".into(), json!(first));
    }
}

/// Defaults of the template of a workload, at `path`.
pub fn template(obj: &mut Value, path: &[&str]) {
    let spec: Vec<&str> = path.iter().copied().chain(["spec"]).collect();
    pod_spec(obj, &spec);
}

/// Defaults of the pod spec at `path`.
pub fn pod_spec(obj: &mut Value, path: &[&str]) {
    let spec = map_mut(obj, path);
    default_str(spec, "dnsPolicy", "ClusterFirst");
    default_str(spec, "restartPolicy", "Always");
    default_str(spec, "schedulerName", "default-scheduler");
    default(spec, "securityContext", json!({}));
    default(spec, "terminationGracePeriodSeconds", 30);
    mirror_service_account(spec);
    for list in CONTAINERS {
        for c in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            container(c);
        }
    }
    for v in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        volume(v);
    }
    round(spec.get_mut("overhead"));
}

/// The old name of the field shows what the new one says.
fn mirror_service_account(spec: &mut Map<String, Value>) {
    let text = |m: &Map<String, Value>, k: &str| m.get(k).and_then(Value::as_str).unwrap_or("").to_string();
    let (new, old) = (text(spec, "serviceAccountName"), text(spec, "serviceAccount"));
    if new.is_empty() && old.is_empty() {
        return;
    }
    let name = if new.is_empty() { old } else { new };
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
}

fn container(c: &mut Value) {
    let pull = if pulls_always(str_at(c, &["image"])) { "Always" } else { "IfNotPresent" };
    let Some(m) = c.as_object_mut() else { return };
    default_str(m, "imagePullPolicy", pull);
    default_str(m, "terminationMessagePath", "/dev/termination-log");
    default_str(m, "terminationMessagePolicy", "File");
    default(m, "resources", json!({}));
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = m.get_mut(name) {
            probe(p);
        }
    }
    for p in list_mut(c, &["ports"]) {
        if let Some(p) = p.as_object_mut() {
            default_str(p, "protocol", "TCP");
        }
    }
    for e in list_mut(c, &["env"]) {
        if let Some(f) = crate::val::at_mut(e, &["valueFrom", "fieldRef"]) {
            field_ref(f);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(get) = crate::val::at_mut(c, &["lifecycle", hook, "httpGet"]) {
            http_get(get);
        }
    }
    for list in ["limits", "requests"] {
        round(crate::val::at_mut(c, &["resources", list]));
    }
}

/// Whether an image without a policy is pulled again every time: its tag is `latest`, or it has neither tag nor digest.
fn pulls_always(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, ""), |(n, d)| (n, d));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("", |(_, tag)| tag);
    tag == "latest" || (tag.is_empty() && digest.is_empty())
}

fn probe(p: &mut Value) {
    if let Some(get) = crate::val::at_mut(p, &["httpGet"]) {
        http_get(get);
    }
    if let Some(Value::Object(grpc)) = crate::val::at_mut(p, &["grpc"]) {
        default(grpc, "service", "");
    }
    if let Some(m) = p.as_object_mut() {
        default_int(m, "timeoutSeconds", 1);
        default_int(m, "periodSeconds", 10);
        default_int(m, "successThreshold", 1);
        default_int(m, "failureThreshold", 3);
    }
}

fn http_get(v: &mut Value) {
    if let Some(m) = v.as_object_mut() {
        default_str(m, "path", "/");
        default_str(m, "scheme", "HTTP");
    }
}

fn field_ref(v: &mut Value) {
    if let Some(m) = v.as_object_mut() {
        default_str(m, "apiVersion", "v1");
    }
}

fn volume(v: &mut Value) {
    let Some(m) = v.as_object_mut() else { return };
    if !m.iter().any(|(k, v)| k != "name" && v.is_object()) {
        m.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(Value::Object(s)) = m.get_mut(source) {
            default(s, "defaultMode", 420);
        }
    }
    if let Some(Value::Object(h)) = m.get_mut("hostPath") {
        default(h, "type", "");
    }
    if let Some(Value::Object(i)) = m.get_mut("iscsi") {
        default_str(i, "iscsiInterface", "default");
    }
    if let Some(Value::Object(r)) = m.get_mut("rbd") {
        for (k, d) in [("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")] {
            default_str(r, k, d);
        }
    }
    for item in list_mut(v, &["downwardAPI", "items"]) {
        if let Some(f) = crate::val::at_mut(item, &["fieldRef"]) {
            field_ref(f);
        }
    }
    for s in list_mut(v, &["projected", "sources"]) {
        if let Some(Value::Object(t)) = crate::val::at_mut(s, &["serviceAccountToken"]) {
            default(t, "expirationSeconds", 3600);
        }
        for item in list_mut(s, &["downwardAPI", "items"]) {
            if let Some(f) = crate::val::at_mut(item, &["fieldRef"]) {
                field_ref(f);
            }
        }
    }
    if let Some(Value::Object(claim)) = crate::val::at_mut(v, &["ephemeral", "volumeClaimTemplate", "spec"]) {
        default(claim, "volumeMode", "Filesystem");
    }
}

/// What is limited and not requested is requested at its limit.
fn requests_from_limits(holder: &mut Value) {
    let Some(limits) = holder["resources"]["limits"].as_object().cloned().filter(|l| !l.is_empty()) else { return };
    let requests = map_mut(holder, &["resources", "requests"]);
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// On the network of the host a container port is a port of the host.
fn host_ports(c: &mut Value) {
    for p in list_mut(c, &["ports"]) {
        let port = p["containerPort"].as_i64().unwrap_or(0);
        if let Some(m) = p.as_object_mut() {
            default_int(m, "hostPort", port);
        }
    }
}

/// Amounts of resources are kept in thousandths: finer ones are rounded up.
fn round(list: Option<&mut Value>) {
    for v in list.and_then(Value::as_object_mut).into_iter().flat_map(|m| m.values_mut()) {
        let Some(text) = v.as_str() else { continue };
        if let Ok(q) = Quantity::parse(text) {
            let new = q.rounded_to_milli().to_string();
            if new != text {
                *v = Value::String(new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, always) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.2", false),
            ("r.io:5000/x", true),
            ("r.io:5000/x:1", false),
            ("x@sha256:abc", false),
            ("x:latest@sha256:abc", true),
        ] {
            assert_eq!(pulls_always(image), always, "{image}");
        }
    }
}
