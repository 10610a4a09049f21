//! K5: at the end of a run that ended calmly, each controlling owner exists with that very uid, no object is in a namespace that does not
//! exist, and every container that runs belongs to a pod.

use std::collections::BTreeSet;

use super::super::{Outcome, Tally, Violation, clock};
use super::{ended_calmly, last, owner, runs, text, uid};
use crate::history::{At, History};

/// The check `K5`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    if ended_calmly(history) {
        tally.saw("calm ends");
        let objects = last(history, "/registry/");
        let uids: BTreeSet<&str> = objects.values().map(|object| uid(object)).collect();
        let namespaces: BTreeSet<&str> = objects.keys().filter_map(|key| key.strip_prefix("/registry/namespaces/")).collect();
        for (key, object) in &objects {
            if let Some((kind, owner)) = owner(object) {
                tally.saw("owned objects");
                if !uids.contains(owner) {
                    tally.fail(Violation::new("K5", format!("{key} is controlled by {kind} {owner}, which does not exist")));
                }
            }
            let namespace = text(object, "/metadata/namespace");
            if !namespace.is_empty() && !namespaces.is_empty() && !namespaces.contains(namespace) {
                tally.fail(Violation::new("K5", format!("{key} is in namespace {namespace}, which does not exist")));
            }
        }
        for run in runs(history).into_iter().filter(|run| run.until == At::MAX) {
            tally.saw("containers that run at the end");
            if !uids.contains(run.uid) {
                let detail = format!(
                    "container {} of pod {} ({}) runs on {} since {}, the pod does not exist",
                    run.container,
                    run.pod,
                    run.uid,
                    run.node,
                    clock(run.from)
                );
                tally.fail(Violation::new("K5", detail).at(run.from));
            }
        }
    }
    tally.finish("K5", &["calm ends", "owned objects"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{exit, pod, put, start};
    use super::*;

    #[test]
    fn nothing_is_left_without_an_owner() {
        let verdict = |owner: &str, namespace: &str, nodes| {
            let mut one = pod("a", "n");
            one["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet", "uid": owner, "controller": true}]);
            let changes = vec![
                put(2, "namespaces", &json!({"metadata": {"name": namespace, "uid": "ns"}})),
                put(3, "replicasets", &json!({"metadata": {"name": "s", "namespace": namespace, "uid": "s"}})),
                put(4, "pods", &one),
            ];
            judge(&History { changes, nodes, ended: Some(20_000_000_000), ..History::default() }).verdict
        };
        assert_eq!(verdict("s", "d", vec![start(1, "n", "a"), start(1, "n", "b"), exit(2, "n", "b")]), Verdict::Pass);
        assert!(matches!(verdict("t", "d", vec![]), Verdict::Fail(_)), "no such owner");
        assert!(matches!(verdict("s", "e", vec![]), Verdict::Fail(_)), "no such namespace");
        assert!(matches!(verdict("s", "d", vec![start(1, "n", "b")]), Verdict::Fail(_)), "no such pod");
    }
}
