//! K1: for a pod's uid the node name goes from empty to a node at most once and never changes after, and its containers run there only.

use std::collections::BTreeMap;

use super::super::{Outcome, Tally, Violation, clock};
use super::{full_name, runs, steps, text, uid};
use crate::history::History;

/// The check `K1`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let mut bound: BTreeMap<String, (String, i64)> = BTreeMap::new();
    for step in steps(history, "/registry/pods/") {
        let Some(pod) = step.after.as_deref() else { continue };
        let node = text(pod, "/spec/nodeName");
        match bound.get(uid(pod)) {
            Some((first, at)) if first != node => {
                let detail = format!("pod {} was bound to {first} at {at} and has node {node:?} at {}", full_name(pod), step.revision);
                tally.fail(Violation::new("K1", detail).revision(*at).revision(step.revision));
            }
            Some(_) => {}
            None if node.is_empty() => {}
            None => {
                tally.saw("bindings");
                bound.insert(uid(pod).to_owned(), (node.to_owned(), step.revision));
            }
        }
    }
    for run in runs(history) {
        let Some((node, at)) = bound.get(run.uid) else { continue };
        tally.saw("containers");
        if node != run.node {
            let detail = format!(
                "pod {} is bound to {node} at {at}, its container {} runs on {} from {}",
                run.pod,
                run.container,
                run.node,
                clock(run.from)
            );
            tally.fail(Violation::new("K1", detail).revision(*at).at(run.from));
        }
    }
    tally.finish("K1", &["bindings"])
}

#[cfg(test)]
mod tests {
    use super::super::super::Verdict;
    use super::super::tests::{pod, put, start};
    use super::*;

    #[test]
    fn a_pod_is_bound_once_and_runs_there() {
        let verdict = |nodes: &[&str], runs: Vec<_>| {
            let changes = nodes.iter().zip(2..).map(|(node, revision)| put(revision, "pods", &pod("a", node))).collect();
            judge(&History { changes, nodes: runs, ..History::default() }).verdict
        };
        assert_eq!(verdict(&["", "n", "n"], vec![start(1, "n", "a")]), Verdict::Pass);
        assert!(matches!(verdict(&["", "n", "m"], vec![]), Verdict::Fail(_)));
        assert!(matches!(verdict(&["n", ""], vec![]), Verdict::Fail(_)));
        assert!(matches!(verdict(&["", "n"], vec![start(1, "m", "a")]), Verdict::Fail(_)));
        assert!(matches!(verdict(&[""], vec![]), Verdict::Vacuous(_)));
    }
}
