//! K3: containers of two pods with the name of one ordinal of a StatefulSet never run at the same time, unless a user deleted the first one
//! by force (grace 0) or its node was declared out of service.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Outcome, Tally, Violation, clock};
use super::{Run, full_name, number, owner, runs, steps, uid};
use crate::history::History;

/// The check `K3`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let mut stateful: BTreeMap<String, String> = BTreeMap::new();
    let mut forced: BTreeSet<String> = BTreeSet::new();
    for step in steps(history, "/registry/pods/") {
        let Some(pod) = step.after.as_deref() else {
            if let Some(pod) = step.before.as_deref()
                && number(pod, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
            {
                // Gone without having been asked to stop: deleted by force.
                forced.insert(uid(pod).to_owned());
            }
            continue;
        };
        if owner(pod).is_some_and(|(kind, _)| kind == "StatefulSet") {
            stateful.insert(uid(pod).to_owned(), full_name(pod));
        }
    }
    let mut by_name: BTreeMap<&str, Vec<Run<'_>>> = BTreeMap::new();
    for run in runs(history) {
        if let Some(name) = stateful.get(run.uid) {
            tally.saw("containers with an identity");
            by_name.entry(name).or_default().push(run);
        }
    }
    for (name, mut runs) in by_name {
        runs.sort_by_key(|run| run.from);
        for (i, first) in runs.iter().enumerate() {
            for second in runs[i + 1..].iter().take_while(|second| second.from < first.until) {
                if second.uid != first.uid && !forced.contains(first.uid) {
                    let detail = format!(
                        "{name} runs twice: {} on {} until {}, {} on {} from {}",
                        first.uid,
                        first.node,
                        clock(first.until),
                        second.uid,
                        second.node,
                        clock(second.from)
                    );
                    tally.fail(Violation::new("K3", detail).at(first.from).at(second.from));
                }
            }
        }
    }
    tally.finish("K3", &["containers with an identity"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{exit, pod, put, start};
    use super::*;
    use crate::history::Change;

    #[test]
    fn an_identity_runs_once() {
        let verdict = |nodes, grace: i64| {
            let one = |uid: &str, grace: i64| {
                let mut pod = pod("web-0", "n");
                pod["metadata"]["uid"] = json!(uid);
                pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                pod["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "uid": "s", "controller": true}]);
                pod
            };
            let changes = vec![put(2, "pods", &one("a", grace)), Change::delete(3, "/registry/pods/d/web-0"), put(4, "pods", &one("b", 0))];
            judge(&History { changes, nodes, ..History::default() }).verdict
        };
        assert_eq!(verdict(vec![start(1, "n", "a"), exit(2, "n", "a"), start(3, "m", "b")], 30), Verdict::Pass);
        let both = || vec![start(1, "n", "a"), start(2, "m", "b"), exit(3, "n", "a")];
        assert!(matches!(verdict(both(), 30), Verdict::Fail(_)));
        assert_eq!(verdict(both(), 0), Verdict::Pass, "by force");
        assert!(matches!(verdict(vec![], 30), Verdict::Vacuous(_)));
    }
}
