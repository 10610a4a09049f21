//! K15: at each revision no two living pods with addresses of their own share one, no two services share a cluster address or a node port,
//! and no two objects share a uid.
//!
//! A machine that loses power comes back with all its addresses free, while the pods that it had are still written down with theirs until
//! they are replaced: an address that was written down before such a fall, or while it was still on its way, and given out anew after it, is
//! held once.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::times::Times;
use super::super::{Outcome, Tally, Violation};
use super::{list, number, steps, terminal, text, uid};
use crate::history::{At, History, NodeFact};

/// What a machine said before it fell may be written down so much later.
const ON_ITS_WAY: At = 10_000_000_000;

/// Whether the machine of a pod fell after another one's address was told, at revision `first`, and before this one's was.
fn fell(history: &History, times: &Times, pod: &Value, first: i64, second: i64) -> bool {
    let (from, until) = (times.there_by(first).unwrap_or(0).saturating_sub(ON_ITS_WAY), times.there_by(second).unwrap_or(At::MAX));
    let node = text(pod, "/spec/nodeName");
    history.nodes.iter().any(|record| record.fact == NodeFact::Down && record.node == node && (from..=until).contains(&record.at))
}

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
    let times = Times::new(history);
    let mut holders: BTreeMap<String, Vec<(&str, i64)>> = BTreeMap::new();
    let mut begun: BTreeMap<(&str, String), i64> = BTreeMap::new();
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
                    keys.retain(|(key, _)| *key != step.key);
                }
            }
        }
        for step in group {
            let Some(object) = &step.after else { continue };
            for what in holds(step.key, object) {
                tally.saw(if what.starts_with("uid") { "uids" } else { "addresses and ports" });
                let keys = holders.entry(what.clone()).or_default();
                let address = what.starts_with("pod address");
                let other = keys.iter().find(|(_, first)| !address || !fell(history, &times, object, *first, revision));
                if let Some((other, _)) = other {
                    let detail = format!("{what} is held by {other} and, since {revision}, by {}", step.key);
                    tally.fail(Violation::new("K15", detail).revision(revision));
                }
                // Since when it has it, not since when it was last written.
                let since = step.before.iter().any(|before| holds(step.key, before).contains(&what));
                let first = if since { begun.get(&(step.key, what.clone())).copied().unwrap_or(revision) } else { revision };
                begun.insert((step.key, what), first);
                keys.push((step.key, first));
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
    use super::super::tests::{fact, pod, put};
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
        let fallen = |node: &str| {
            let down = fact(5, node, NodeFact::Down);
            let changes = vec![put(2, "pods", &at("a", "10.1")), put(3, "pods", &at("b", "10.1"))];
            judge(&History { changes, nodes: vec![down], ..History::default() }).verdict
        };
        assert_eq!(fallen("n"), Verdict::Pass, "its machine came back empty");
        assert!(matches!(fallen("another"), Verdict::Fail(_)));
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
