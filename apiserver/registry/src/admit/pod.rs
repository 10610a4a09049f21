//! What a pod gets on creation: service account, priority, tolerations (admission plugins `ServiceAccount`, `Priority`,
//! `DefaultTolerationSeconds`).

use serde_json::{Value, json};

use super::{Facts, Request};
use crate::status::Status;
use crate::val::{bool_at, int_at, list_at, list_mut, map_at, map_mut, put, str_at, vec_mut};

/// Where containers find the token of their service account.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Marks a pod that a node runs by itself and only shows to the API.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;

/// The service account that a pod names, or the default one.
pub fn service_account_name(pod: &Value) -> &str {
    let spec = &pod["spec"];
    [str_at(spec, &["serviceAccountName"]), str_at(spec, &["serviceAccount"])].into_iter().find(|n| !n.is_empty()).unwrap_or("default")
}

/// Admits the creation of a pod.
pub fn create(req: &Request<'_>, pod: &mut Value, facts: &Facts<'_>) -> Result<(), Status> {
    let mirror = map_at(pod, &["metadata", "annotations"]).is_some_and(|a| a.contains_key(MIRROR));
    if !mirror {
        service_account(req, pod, facts.service_account)?;
    }
    priority(req, pod, facts.priority_classes)?;
    default_tolerations(pod);
    Ok(())
}

fn service_account(req: &Request<'_>, pod: &mut Value, account: Option<&Value>) -> Result<(), Status> {
    let name = service_account_name(pod).to_string();
    let Some(account) = account else {
        let why = format!("error looking up service account {}/{name}: serviceaccount \"{name}\" not found", req.namespace);
        return Err(Status::forbidden(req.row, str_at(pod, &["metadata", "name"]), &why));
    };
    put(pod, &["spec", "serviceAccountName"], json!(name));
    put(pod, &["spec", "serviceAccount"], json!(name));
    let secrets = list_at(account, &["imagePullSecrets"]);
    if list_at(pod, &["spec", "imagePullSecrets"]).is_empty() && !secrets.is_empty() {
        put(pod, &["spec", "imagePullSecrets"], json!(secrets));
    }
    Ok(())
}

/// Gives a pod the projected volume with the token of its service account, and mounts it where nothing is mounted yet, unless pod or
/// account say no. [`create`] does not do it: a pod that waits for a token that nobody issues never starts. A server that issues tokens
/// calls this after `create`.
pub fn mount_token(pod: &mut Value, account: &Value, suffix: &str) {
    let automount = pod["spec"]["automountServiceAccountToken"].as_bool().or(account["automountServiceAccountToken"].as_bool());
    if automount == Some(false) {
        return;
    }
    let lacks = |c: &Value| !list_at(c, &["volumeMounts"]).iter().any(|m| m["mountPath"] == TOKEN_PATH);
    let volume = format!("kube-api-access-{suffix}");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for c in list_mut(pod, &["spec", list]).iter_mut().filter(|c| lacks(c)) {
            vec_mut(c, &["volumeMounts"]).push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            mounted = true;
        }
    }
    if mounted {
        let field = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
        vec_mut(pod, &["spec", "volumes"]).push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
        ]}}));
    }
}

fn priority(req: &Request<'_>, pod: &mut Value, classes: &[&Value]) -> Result<(), Status> {
    let refuse = |pod: &Value, why: String| Err(Status::forbidden(req.row, str_at(pod, &["metadata", "name"]), &why));
    let named = str_at(pod, &["spec", "priorityClassName"]).to_string();
    let class = if named.is_empty() {
        // Of several global defaults the lowest counts.
        let defaults = classes.iter().filter(|c| bool_at(c, &["globalDefault"]));
        defaults.min_by_key(|c| int_at(c, &["value"]).unwrap_or(0)).copied()
    } else {
        match builtin_class(&named).or_else(|| classes.iter().find(|c| c["metadata"]["name"] == named.as_str()).map(|c| (*c).clone())) {
            Some(class) => return set_priority(req, pod, Some(&class)),
            None => return refuse(pod, format!("no PriorityClass with name {named} was found")),
        }
    };
    set_priority(req, pod, class)
}

/// The two classes that exist before anybody has written them.
fn builtin_class(name: &str) -> Option<Value> {
    let value = match name {
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        _ => return None,
    };
    Some(json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"}))
}

fn set_priority(req: &Request<'_>, pod: &mut Value, class: Option<&Value>) -> Result<(), Status> {
    let value = class.and_then(|c| int_at(c, &["value"])).unwrap_or(0);
    let policy = class.map_or("", |c| str_at(c, &["preemptionPolicy"]));
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let name = str_at(pod, &["metadata", "name"]);
    if let Some(given) = int_at(pod, &["spec", "priority"]).filter(|p| *p != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the \
             given PriorityClass name"
        );
        return Err(Status::forbidden(req.row, name, &why));
    }
    let given = str_at(pod, &["spec", "preemptionPolicy"]);
    if !given.is_empty() && given != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} \
             from the given PriorityClass name"
        );
        return Err(Status::forbidden(req.row, name, &why));
    }
    if let Some(class) = class {
        put(pod, &["spec", "priorityClassName"], class["metadata"]["name"].clone());
    }
    let spec = map_mut(pod, &["spec"]);
    spec.insert("priority".into(), json!(value));
    spec.insert("preemptionPolicy".into(), json!(policy));
    Ok(())
}

/// A pod leaves a node that is not ready after five minutes, unless it says otherwise.
fn default_tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |t: &Value| {
            let k = str_at(t, &["key"]);
            let effect = str_at(t, &["effect"]);
            (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !list_at(pod, &["spec", "tolerations"]).iter().any(tolerates) {
            let t = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS});
            vec_mut(pod, &["spec", "tolerations"]).push(t);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbac::User;
    use crate::table::Registry;

    fn admit(pod: Value, account: Option<&Value>, classes: &[Value]) -> Result<Value, String> {
        let row = Registry::builtin().resource("", "v1", "pods").unwrap();
        let user = User::anonymous();
        let req = Request { user: &user, row: &row, sub: None, namespace: "ns", suffix: "abcde" };
        let classes: Vec<&Value> = classes.iter().collect();
        let mut pod = pod;
        let facts = Facts { service_account: account, priority_classes: &classes, ..Facts::default() };
        create(&req, &mut pod, &facts).map_err(|s| s.message)?;
        Ok(pod)
    }

    #[test]
    fn priorities_come_from_classes() {
        let account = json!({"metadata": {"name": "default"}});
        let class = |name: &str, value: i64, global: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": global});
        let classes = [class("hi", 100, true), class("lo", 10, true), class("x", 7, false)];
        let pod = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
        let got = |spec: Value| admit(pod(spec), Some(&account), &classes);
        assert_eq!(got(json!({})).unwrap()["spec"]["priority"], 10, "of two defaults the lower one");
        assert_eq!(got(json!({"priorityClassName": "x"})).unwrap()["spec"]["priority"], 7);
        assert_eq!(got(json!({"priorityClassName": "system-node-critical"})).unwrap()["spec"]["priority"], 2_000_001_000);
        assert!(got(json!({"priorityClassName": "nosuch"})).unwrap_err().ends_with("no PriorityClass with name nosuch was found"));
        assert!(got(json!({"priority": 99})).unwrap_err().contains("the integer value of priority (99) must not be provided in pod spec"));
        assert_eq!(admit(pod(json!({})), Some(&account), &[]).unwrap()["spec"]["priority"], 0);
    }

    #[test]
    fn accounts_must_exist_but_for_mirror_pods() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        let refused = admit(pod.clone(), None, &[]).unwrap_err();
        assert_eq!(refused, "pods \"p\" is forbidden: error looking up service account ns/default: serviceaccount \"default\" not found");
        let mut mirror = pod;
        mirror["metadata"]["annotations"] = json!({MIRROR: "x"});
        assert!(admit(mirror, None, &[]).unwrap()["spec"].get("serviceAccountName").is_none());
    }

    #[test]
    fn tolerations_are_added_once() {
        let account = json!({"metadata": {"name": "default"}});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]}});
        let once = admit(pod, Some(&account), &[]).unwrap();
        assert_eq!(list_at(&once, &["spec", "tolerations"]).len(), 2);
        let twice = admit(once.clone(), Some(&account), &[]).unwrap();
        assert_eq!(once, twice);
        let all = json!({"metadata": {"name": "p"}, "spec": {"tolerations": [{"operator": "Exists"}]}});
        assert_eq!(list_at(&admit(all, Some(&account), &[]).unwrap(), &["spec", "tolerations"]).len(), 1);
    }
}
