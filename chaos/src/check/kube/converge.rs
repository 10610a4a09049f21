//! K4: at the end of a run that ended calmly, every Deployment and ReplicaSet has observed its last generation, says that it has exactly the
//! replicas that it wants, and has them: as many living pods of that owner, none too many.

use std::rc::Rc;

use serde_json::Value;

use super::super::{Outcome, Tally, Violation};
use super::{deleting, ended_calmly, full_name, last, number, owner, terminal, uid};
use crate::history::History;

/// The check `K4`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    if ended_calmly(history) {
        tally.saw("calm ends");
        let pods: Vec<Rc<Value>> = last(history, "/registry/pods/").into_values().filter(|pod| !deleting(pod) && !terminal(pod)).collect();
        for set in last(history, "/registry/replicasets/").into_values() {
            let want = number(&set, "/spec/replicas").unwrap_or(1);
            let have = pods.iter().filter(|pod| owner(pod).is_some_and(|(_, owner)| owner == uid(&set))).count() as i64;
            if have != want && !deleting(&set) {
                fail("ReplicaSet", &set, format!("wants {want} pods and has {have}"), &mut tally);
            }
            if want > 0 {
                observed("ReplicaSet", &set, &[("/status/replicas", want), ("/status/readyReplicas", want)], &mut tally);
            }
        }
        for deployment in last(history, "/registry/deployments/").into_values() {
            let want = number(&deployment, "/spec/replicas").unwrap_or(1);
            let fields = ["/status/replicas", "/status/updatedReplicas", "/status/readyReplicas", "/status/availableReplicas"];
            observed("Deployment", &deployment, &fields.map(|field| (field, want)), &mut tally);
        }
    }
    tally.finish("K4", &["calm ends", "controllers at the end"])
}

fn fail(kind: &str, object: &Value, what: String, tally: &mut Tally) {
    tally.fail(Violation::new("K4", format!("{kind} {}: {what}", full_name(object))).state(object.to_string()));
}

fn observed(kind: &str, object: &Value, fields: &[(&str, i64)], tally: &mut Tally) {
    if deleting(object) {
        return;
    }
    tally.saw("controllers at the end");
    let (generation, seen) =
        (number(object, "/metadata/generation").unwrap_or(0), number(object, "/status/observedGeneration").unwrap_or(0));
    if seen != generation {
        fail(kind, object, format!("is at generation {generation}, its controller at {seen}"), tally);
    }
    for (field, want) in fields {
        let there = number(object, field).unwrap_or(0);
        if there != *want {
            fail(kind, object, format!("{field} is {there}, wanted are {want}"), tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{pod, put};
    use super::*;

    fn verdict(pods: usize, status: i64, observed: i64, ended: Option<u64>) -> Verdict {
        let status = json!({"observedGeneration": observed, "replicas": status, "readyReplicas": status});
        let set =
            json!({"metadata": {"name": "s", "namespace": "d", "uid": "s", "generation": 2}, "spec": {"replicas": 2}, "status": status});
        let mut changes = vec![put(2, "replicasets", &set)];
        for i in 0..pods {
            let mut one = pod(&format!("p{i}"), "n");
            one["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet", "uid": "s", "controller": true}]);
            changes.push(put(3 + i as i64, "pods", &one));
        }
        judge(&History { changes, ended, ..History::default() }).verdict
    }

    #[test]
    fn in_the_end_there_is_what_is_wanted() {
        let end = Some(20_000_000_000);
        assert_eq!(verdict(2, 2, 2, end), Verdict::Pass);
        assert!(matches!(verdict(1, 2, 2, end), Verdict::Fail(_)), "a pod is missing");
        assert!(matches!(verdict(3, 2, 2, end), Verdict::Fail(_)), "one too many");
        assert!(matches!(verdict(2, 1, 2, end), Verdict::Fail(_)), "the status is wrong");
        assert!(matches!(verdict(2, 2, 1, end), Verdict::Fail(_)), "not observed");
        assert!(matches!(verdict(1, 2, 2, None), Verdict::Vacuous(_)), "it did not end");
    }
}
