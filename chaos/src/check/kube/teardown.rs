//! K17: when a pod's object goes, its containers have stopped, unless its machine was gone or it was deleted by force (grace 0, or never
//! told to stop).
//!
//! When an object went is known as "by then": a container that still ran when others had already seen the deletion is the counterexample.

use std::collections::BTreeMap;

use super::super::times::Times;
use super::super::{Outcome, Tally, Violation, clock};
use super::{deleting, full_name, number, runs, steps, uid};
use crate::history::History;

/// The check `K17`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let times = Times::new(history);
    let mut gone: BTreeMap<String, (i64, String)> = BTreeMap::new();
    for step in steps(history, "/registry/pods/") {
        let (Some(pod), None) = (step.before.as_deref(), step.after.as_deref()) else { continue };
        let forced = !deleting(pod) || number(pod, "/metadata/deletionGracePeriodSeconds") == Some(0);
        // The agent itself confirms the end with a grace of 0: then the pod was told to stop before, and says so in its status.
        let told = pod.pointer("/status/containerStatuses").is_some();
        if !forced || told && deleting(pod) {
            gone.insert(uid(pod).to_owned(), (step.revision, full_name(pod)));
        }
    }
    for run in runs(history).into_iter().filter(|run| !run.lost) {
        let Some((revision, name)) = gone.get(run.uid) else { continue };
        tally.saw("containers of deleted pods");
        if let Some(by) = times.there_by(*revision)
            && run.from < by
            && run.until > by
        {
            let detail = format!(
                "pod {name} was gone at revision {revision}, by {}; its container {} ran on {} until {}",
                clock(by),
                run.container,
                run.node,
                clock(run.until)
            );
            tally.fail(Violation::new("K17", detail).revision(*revision).at(by).at(run.until));
        }
    }
    tally.finish("K17", &["containers of deleted pods"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{exit, fact, pod, put, start};
    use super::*;
    use crate::history::{Change, NodeFact, Sample};

    #[test]
    fn containers_stop_before_their_pod_goes() {
        let verdict = |end, grace: i64| {
            let mut one = pod("a", "n");
            one["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            one["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            let changes = vec![put(2, "pods", &one), Change::delete(3, "/registry/pods/d/a")];
            let samples = vec![Sample { at: 10, revision: 3, ..Sample::default() }];
            judge(&History { changes, samples, nodes: vec![start(1, "n", "a"), end], ..History::default() }).verdict
        };
        assert_eq!(verdict(exit(9, "n", "a"), 30), Verdict::Pass);
        assert!(matches!(verdict(exit(11, "n", "a"), 30), Verdict::Fail(_)));
        assert!(!matches!(verdict(exit(11, "n", "a"), 0), Verdict::Fail(_)), "by force");
        assert!(!matches!(verdict(fact(11, "n", NodeFact::Down), 30), Verdict::Fail(_)), "its machine was gone");
    }
}
