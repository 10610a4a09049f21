//! K15: at each revision no two living pods with addresses of their own share one, no two services share a cluster address or a node port,
//! and no two objects share a uid.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::{Outcome, Tally, Violation};
use super::{list, number, steps, terminal, text, uid};
use crate::history::History;

/// What an object holds that nobody else may hold at the same time.
fn holds(key: &str, object: &Value) -> Vec<String> {
    let mut held = Vec::new();
    if !uid(object).is_empty() {
        held.push(format!("uid {}", uid(object)));
    }
    if key.starts_with("/registry/pods/") && !terminal(object) {
        let own = object.pointer("/spec/hostNetwork").and_then(Value::as_bool) != Some(true);
        let ip = text(object, "/status/podIP");
        if own && !ip.is_empty() {
            held.push(format!("pod address {ip}"));
        }
    }
    if key.starts_with("/registry/services/specs/") {
        let ip = text(object, "/spec/clusterIP");
        if !ip.is_empty() && ip != "None" {
            held.push(format!("cluster address {ip}"));
        }
        for port in list(object, "/spec/ports") {
            if let Some(node_port) = number(port, "/nodePort").filter(|n| *n > 0) {
                held.push(format!("node port {node_port}/{}", text(port, "/protocol")));
            }
        }
    }
    held
}

/// The check `K15`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let mut holders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let all = steps(history, "/registry/");
    // A transaction may hand something on: a revision is judged when it is complete.
    let mut i = 0;
    while i < all.len() {
        let revision = all[i].revision;
        let end = i + all[i..].iter().take_while(|step| step.revision == revision).count();
        let group = &all[i..end];
        for step in group {
            for what in step.before.iter().flat_map(|object| holds(step.key, object)) {
                if let Some(keys) = holders.get_mut(&what) {
                    keys.retain(|key| *key != step.key);
                }
            }
        }
        for step in group {
            for what in step.after.iter().flat_map(|object| holds(step.key, object)) {
                tally.saw(if what.starts_with("uid") { "uids" } else { "addresses and ports" });
                let keys = holders.entry(what.clone()).or_default();
                if let Some(other) = keys.first() {
                    let detail = format!("{what} is held by {other} and, since {revision}, by {}", step.key);
                    tally.fail(Violation::new("K15", detail).revision(revision));
                }
                keys.push(step.key);
            }
        }
        i = end;
    }
    tally.finish("K15", &["uids"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{pod, put};
    use super::*;
    use crate::history::Change;

    #[test]
    fn nothing_is_held_twice() {
        let at = |name: &str, ip: &str| {
            let mut pod = pod(name, "n");
            pod["status"]["podIP"] = json!(ip);
            pod
        };
        let verdict = |changes| judge(&History { changes, ..History::default() }).verdict;
        assert_eq!(verdict(vec![put(2, "pods", &at("a", "10.1")), put(3, "pods", &at("b", "10.2"))]), Verdict::Pass);
        assert!(matches!(verdict(vec![put(2, "pods", &at("a", "10.1")), put(3, "pods", &at("b", "10.1"))]), Verdict::Fail(_)));
        let gone = Change::delete(3, "/registry/pods/d/a");
        assert_eq!(verdict(vec![put(2, "pods", &at("a", "10.1")), gone, put(3, "pods", &at("b", "10.1"))]), Verdict::Pass);
        let mut done = at("a", "10.1");
        done["status"]["phase"] = json!("Succeeded");
        assert_eq!(verdict(vec![put(2, "pods", &done), put(3, "pods", &at("b", "10.1"))]), Verdict::Pass);
        let service = |name: &str, port: i64| {
            let spec = json!({"clusterIP": "None", "ports": [{"nodePort": port, "protocol": "TCP"}]});
            json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec})
        };
        let folder = "services/specs";
        assert!(matches!(verdict(vec![put(2, folder, &service("a", 31_000)), put(3, folder, &service("b", 31_000))]), Verdict::Fail(_)));
        assert_eq!(verdict(vec![put(2, folder, &service("a", 31_000)), put(3, folder, &service("b", 31_001))]), Verdict::Pass);
    }
}
