//! K10: an update changes `spec` if and only if it raises `metadata.generation`, by one; `status.observedGeneration` never exceeds the
//! generation, and does not go back within the life of a uid.
//!
//! Judged for kinds that count generations, other than pods, whose binding changes their spec without one. A deletion that begins may raise it too.

use super::super::{Outcome, Tally, Violation};
use super::{deleting, number, steps};
use crate::history::History;

/// Folders of the store whose objects count generations.
const COUNTED: &[&str] =
    &["/registry/deployments/", "/registry/replicasets/", "/registry/statefulsets/", "/registry/daemonsets/", "/registry/jobs/"];

/// The check `K10`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    for step in COUNTED.iter().flat_map(|prefix| steps(history, prefix)) {
        let Some(after) = step.after.as_deref() else { continue };
        let generation = |v| number(v, "/metadata/generation").unwrap_or(0);
        let observed = |v| number(v, "/status/observedGeneration").unwrap_or(0);
        let mut fail = |what: String| {
            tally.fail(Violation::new("K10", format!("{} at {}: {what}", step.key, step.revision)).revision(step.revision));
        };
        if observed(after) > generation(after) {
            fail(format!("observed generation {}, which is only at {}", observed(after), generation(after)));
        }
        let Some((before, after)) = step.lives_on() else { continue };
        let grown = generation(after) - generation(before);
        let differ = |at: &str| before.pointer(at) != after.pointer(at);
        // A Deployment's annotations count as part of its spec (kubernetes/pkg/registry/apps/deployment/strategy.go, PrepareForUpdate).
        let annotated = step.key.starts_with("/registry/deployments/") && differ("/metadata/annotations");
        let changed = differ("/spec") || annotated;
        let begins = !deleting(before) && deleting(after);
        let right = if changed { grown == 1 } else { grown == 0 || begins && grown == 1 };
        if !right {
            fail(format!("the spec {}, the generation grew by {grown}", if changed { "changed" } else { "stayed" }));
        }
        if observed(after) < observed(before) {
            fail(format!("observed generation {} after {}", observed(after), observed(before)));
        }
        tally.saw(if changed { "changes of a spec" } else { "updates that leave the spec alone" });
    }
    tally.finish("K10", &["updates that leave the spec alone"])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::Verdict;
    use super::super::tests::put;
    use super::*;

    fn object(generation: i64, replicas: i64, observed: i64) -> Value {
        let metadata = json!({"name": "s", "namespace": "d", "uid": "s", "generation": generation});
        json!({"metadata": metadata, "spec": {"replicas": replicas}, "status": {"observedGeneration": observed}})
    }

    #[test]
    fn annotations_of_a_deployment_count_and_those_of_others_do_not() {
        for (folder, passes) in [("deployments", true), ("replicasets", false)] {
            let mut annotated = object(2, 1, 1);
            annotated["metadata"]["annotations"] = json!({"a": "b"});
            let changes = vec![put(2, folder, &object(1, 1, 1)), put(3, folder, &annotated)];
            let failed = matches!(judge(&History { changes, ..History::default() }).verdict, Verdict::Fail(_));
            assert_eq!(failed, !passes, "{folder}");
        }
    }

    #[test]
    fn generations_count_changes_of_the_spec() {
        let verdict = |second: &Value| {
            let changes = vec![put(2, "deployments", &object(1, 1, 1)), put(3, "deployments", second)];
            judge(&History { changes, ..History::default() }).verdict
        };
        assert_eq!(verdict(&object(1, 1, 1)), Verdict::Pass);
        assert!(!matches!(verdict(&object(2, 5, 1)), Verdict::Fail(_)));
        for (bad, why) in [
            (object(1, 5, 1), "the spec changed alone"),
            (object(2, 1, 1), "the generation grew alone"),
            (object(3, 5, 1), "by two"),
            (object(1, 1, 2), "observed the future"),
            (object(1, 1, 0), "observed goes back"),
        ] {
            assert!(matches!(verdict(&bad), Verdict::Fail(_)), "{why}");
        }
    }
}
