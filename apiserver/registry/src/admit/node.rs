//! What nodes may write (admission plugin `NodeRestriction`), and the taint of a fresh node (`TaintNodesByCondition`).

use serde_json::{Value, json};

use super::Request;
use crate::status::Status;
use crate::val::{list_at, map_at, same, str_at, vec_mut};

/// Label keys under `kubernetes.io` and `k8s.io` that a node may set on itself.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Prefixes of which every label is a node's own.
const OWN_PREFIXES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// The taint of a node that has not reported yet.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// A node writes itself, its lease, and pods that run on it: nothing else.
pub fn restrict(req: &Request<'_>, obj: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(node) = req.user.node() else { return Ok(()) };
    let name = str_at(obj, &["metadata", "name"]);
    let refuse = |why: String| Err(Status::forbidden(req.row, name, &why));
    match (req.row.group.as_str(), req.row.plural.as_str()) {
        ("", "nodes") if name != node => refuse(format!("node \"{node}\" is not allowed to modify node \"{name}\"")),
        ("", "nodes") => match forbidden_change(obj, old) {
            Some(what) => refuse(format!("is not allowed to {what}")),
            None => Ok(()),
        },
        ("", "pods") if old.is_none() => {
            let mirror = map_at(obj, &["metadata", "annotations"]).is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
            let on = str_at(obj, &["spec", "nodeName"]);
            match (mirror, on == node) {
                (false, _) => refuse(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"{node}\" can only create mirror pods"
                )),
                (true, false) => refuse(format!("node \"{node}\" can only create pods with spec.nodeName set to itself")),
                _ => Ok(()),
            }
        }
        ("", "pods") => {
            let old = old.unwrap_or(obj);
            let on = str_at(old, &["spec", "nodeName"]);
            if on != node {
                return refuse(format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"));
            }
            if !same(&obj["metadata"]["labels"], &old["metadata"]["labels"]) {
                return refuse(format!("node \"{node}\" cannot update labels through pod status"));
            }
            Ok(())
        }
        ("coordination.k8s.io", "leases") if req.namespace == "kube-node-lease" && name != node => {
            refuse(format!("can only access node lease with the same name as the requesting node, \"{node}\""))
        }
        ("storage.k8s.io", "csinodes") if name != node => {
            refuse(format!("can only access CSINode with the same name as the requesting node, \"{node}\""))
        }
        _ => Ok(()),
    }
}

/// What of a change to its own object a node may not do.
fn forbidden_change(obj: &Value, old: Option<&Value>) -> Option<String> {
    let empty = Value::Null;
    let old_labels = old.map_or(&empty, |o| &o["metadata"]["labels"]);
    let new_labels = &obj["metadata"]["labels"];
    let keys = |v: &Value| v.as_object().map(|m| m.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut changed: Vec<String> = keys(new_labels).into_iter().filter(|k| new_labels.get(k) != old_labels.get(k)).collect();
    changed.extend(keys(old_labels).into_iter().filter(|k| new_labels.get(k).is_none()));
    changed.retain(|k| is_reserved(k));
    if !changed.is_empty() {
        return Some(format!("modify labels: {}", changed.join(", ")));
    }
    // At its creation a node may bring taints; later it may not touch them.
    if old.is_some_and(|o| !same(&o["spec"]["taints"], &obj["spec"]["taints"])) {
        return Some("modify taints".into());
    }
    None
}

fn is_reserved(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    let under = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    (under("kubernetes.io") || under("k8s.io"))
        && !OWN_LABELS.contains(&key)
        && !OWN_PREFIXES.iter().any(|p| prefix == *p || prefix.strip_suffix(p).is_some_and(|x| x.ends_with('.')))
}

/// A node that has just been created gets no pods until it is known to be ready.
pub fn taint_not_ready(obj: &mut Value) {
    let there = list_at(obj, &["spec", "taints"]).iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule");
    if !there {
        vec_mut(obj, &["spec", "taints"]).push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbac::User;
    use crate::table::Registry;

    fn check(group: &str, plural: &str, ns: &str, obj: &Value, old: Option<&Value>) -> bool {
        let row = Registry::builtin().resource(group, "v1", plural).unwrap();
        let user = User { name: "system:node:n1".into(), groups: vec!["system:nodes".into()], uid: String::new() };
        restrict(&Request { user: &user, row: &row, sub: None, namespace: ns, suffix: "x" }, obj, old).is_ok()
    }

    #[test]
    fn a_node_writes_only_what_is_its_own() {
        let node = |name: &str, label: &str| json!({"metadata": {"name": name, "labels": {label: "v"}}, "spec": {}});
        assert!(check("", "nodes", "", &node("n1", "kubernetes.io/hostname"), None));
        assert!(check("", "nodes", "", &node("n1", "example.com/x"), None));
        assert!(!check("", "nodes", "", &node("n2", "example.com/x"), None));
        assert!(!check("", "nodes", "", &node("n1", "node-restriction.kubernetes.io/x"), None));
        let plain = node("n1", "example.com/x");
        let mut tainted = plain.clone();
        tainted["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
        assert!(check("", "nodes", "", &tainted, None) && !check("", "nodes", "", &tainted, Some(&plain)));
        let pod = |on: &str, labels: Value| json!({"metadata": {"name": "p", "labels": labels}, "spec": {"nodeName": on}});
        let mine = pod("n1", json!({}));
        assert!(check("", "pods", "ns", &mine, Some(&mine)));
        assert!(!check("", "pods", "ns", &pod("n1", json!({"a": "b"})), Some(&mine)), "labels are not its to change");
        assert!(!check("", "pods", "ns", &pod("n2", json!({})), Some(&pod("n2", json!({})))));
        assert!(!check("", "pods", "ns", &mine, None), "only mirror pods");
        let lease = |name: &str| json!({"metadata": {"name": name}});
        assert!(check("coordination.k8s.io", "leases", "kube-node-lease", &lease("n1"), None));
        assert!(!check("coordination.k8s.io", "leases", "kube-node-lease", &lease("n2"), None));
    }

    #[test]
    fn a_fresh_node_is_tainted_once() {
        let mut node = json!({"metadata": {"name": "n"}});
        taint_not_ready(&mut node);
        taint_not_ready(&mut node);
        assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
    }
}
