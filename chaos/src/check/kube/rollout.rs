//! K13: when a ReplicaSet of a Deployment is told to grow, the sum of what all of them are told is at most what the Deployment wants plus its
//! surge; its wish is any that it had since the generation which its controller says that it has seen.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::super::{Outcome, Tally, Violation};
use super::{full_name, number, owner, steps, text, uid};
use crate::history::History;

/// Replicas plus surge, as a Deployment's spec says. Its default is a quarter, rounded up.
fn allowed(deployment: &Value) -> i64 {
    let replicas = number(deployment, "/spec/replicas").unwrap_or(1);
    if text(deployment, "/spec/strategy/type") == "Recreate" {
        return replicas;
    }
    let surge = match deployment.pointer("/spec/strategy/rollingUpdate/maxSurge") {
        Some(Value::Number(n)) => n.as_i64().unwrap_or(0),
        Some(Value::String(text)) => percent(text, replicas),
        _ => percent("25%", replicas),
    };
    replicas + surge
}

fn percent(text: &str, of: i64) -> i64 {
    let number: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
    if text.ends_with('%') { (of * number + 99) / 100 } else { number }
}

/// The check `K13`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    // Of each Deployment: its wishes with their generations, and the generation that its controller has seen.
    let mut wishes: BTreeMap<String, (Vec<(i64, i64)>, i64)> = BTreeMap::new();
    let mut sets: BTreeMap<&str, Rc<Value>> = BTreeMap::new();
    let all = steps(history, "/registry/");
    for step in &all {
        if step.key.starts_with("/registry/deployments/") {
            if let Some(deployment) = step.after.as_deref() {
                let (list, seen) = wishes.entry(uid(deployment).to_owned()).or_default();
                list.push((number(deployment, "/metadata/generation").unwrap_or(0), allowed(deployment)));
                *seen = number(deployment, "/status/observedGeneration").unwrap_or(0);
            }
        } else if step.key.starts_with("/registry/replicasets/") {
            let told = |set: &Value| number(set, "/spec/replicas").unwrap_or(1);
            let Some(set) = &step.after else {
                sets.remove(step.key);
                continue;
            };
            let grew = step.before.as_deref().map_or(0, told) < told(set);
            sets.insert(step.key, Rc::clone(set));
            let Some((list, seen)) = owner(set).and_then(|(_, owner)| wishes.get(owner)).filter(|_| grew) else { continue };
            tally.saw("ReplicaSets told to grow");
            let most = list.iter().filter(|(generation, _)| generation >= seen).map(|(_, allowed)| *allowed).max().unwrap_or(0);
            let sum: i64 = sets.values().filter(|other| owner(other) == owner(set)).map(|set| told(set)).sum();
            if sum > most {
                let detail = format!(
                    "ReplicaSet {} is told to grow at {}: now {sum} pods in all, allowed are {most}",
                    full_name(set),
                    step.revision
                );
                tally.fail(Violation::new("K13", detail).revision(step.revision));
            }
        }
    }
    tally.finish("K13", &["ReplicaSets told to grow"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::put;
    use super::*;

    #[test]
    fn a_rollout_stays_within_its_surge() {
        let deployment = |generation: i64, replicas: i64, observed: i64| {
            let metadata = json!({"name": "d", "namespace": "d", "uid": "d", "generation": generation});
            json!({"metadata": metadata, "spec": {"replicas": replicas}, "status": {"observedGeneration": observed}})
        };
        let set = |name: &str, replicas: i64| {
            let owners = json!([{"kind": "Deployment", "uid": "d", "controller": true}]);
            json!({"metadata": {"name": name, "namespace": "d", "uid": name, "ownerReferences": owners}, "spec": {"replicas": replicas}})
        };
        let verdict = |objects: Vec<(&str, Value)>| {
            let changes = objects.iter().zip(2..).map(|((folder, object), revision)| put(revision, folder, object)).collect();
            judge(&History { changes, ..History::default() }).verdict
        };
        let (d, s) = ("deployments", "replicasets");
        assert_eq!(verdict(vec![(d, deployment(1, 4, 1)), (s, set("a", 4)), (s, set("b", 1))]), Verdict::Pass);
        assert!(matches!(verdict(vec![(d, deployment(1, 4, 1)), (s, set("a", 4)), (s, set("b", 2))]), Verdict::Fail(_)));
        assert_eq!(verdict(vec![(d, deployment(1, 4, 1)), (d, deployment(2, 1, 1)), (s, set("a", 4))]), Verdict::Pass, "not seen yet");
        assert!(matches!(verdict(vec![(d, deployment(1, 4, 1)), (d, deployment(2, 1, 2)), (s, set("a", 4))]), Verdict::Fail(_)));
    }
}
