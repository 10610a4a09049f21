//! K8: while an EndpointSlice shows a pod as ready, a container of that pod ran within the last 2 s, 8 s if its machine went down. The same
//! for what nodes route.
//!
//! The state of the slices at a moment is that of the largest revision that anybody had seen by then: the real one may only be newer, which
//! is why a slice that is corrected at the last moment is not accused.

use std::collections::BTreeMap;

use super::super::times::Times;
use super::super::{Outcome, Tally, Violation, clock};
use super::{list, runs, steps, text};
use crate::history::{At, History};

const SECOND: At = 1_000_000_000;

/// From when to when, in revisions, each pod's uid is ready in some slice.
fn ready(history: &History) -> BTreeMap<(String, String), Vec<(i64, i64)>> {
    let mut spans: BTreeMap<(String, String), Vec<(i64, i64)>> = BTreeMap::new();
    for step in steps(history, "/registry/endpointslices/") {
        let mut now: Vec<String> = Vec::new();
        for endpoint in step.after.iter().flat_map(|slice| list(slice, "/endpoints")) {
            let is_ready = endpoint.pointer("/conditions/ready").and_then(serde_json::Value::as_bool).unwrap_or(true);
            if is_ready && text(endpoint, "/targetRef/kind") == "Pod" {
                now.push(text(endpoint, "/targetRef/uid").to_owned());
            }
        }
        for ((_, uid), spans) in spans.iter_mut().filter(|((key, _), _)| key == step.key) {
            if let Some(open) = spans.last_mut().filter(|span| span.1 == i64::MAX && !now.contains(uid)) {
                open.1 = step.revision;
            }
        }
        for uid in now {
            let spans = spans.entry((step.key.to_owned(), uid)).or_default();
            if spans.last().is_none_or(|span| span.1 != i64::MAX) {
                spans.push((step.revision, i64::MAX));
            }
        }
    }
    spans
}

/// The check `K8`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let times = Times::new(history);
    let end = history.end();
    let mut of: BTreeMap<&str, Vec<(At, At, bool)>> = BTreeMap::new();
    for run in runs(history) {
        of.entry(run.uid).or_default().push((run.from, run.until, run.lost));
    }
    let faults = |from: At, until: At| {
        // While the store cannot write, nobody can correct anything: bounds count after healing.
        history.faults.iter().any(|f| f.installed() && !f.members.is_empty() && f.at < until && history.healed(f) + 5 * SECOND > from)
    };
    for ((slice, uid), spans) in ready(history) {
        let Some(runs) = of.get(uid.as_str()) else { continue };
        for (_, stopped, lost) in runs.iter().filter(|(_, until, _)| *until != At::MAX) {
            tally.saw("ends of containers behind an endpoint");
            let grace = if *lost { 8 * SECOND } else { 2 * SECOND };
            let late = stopped.saturating_add(grace);
            let runs_again = runs.iter().any(|(from, until, _)| *from <= late && *until > *stopped && *from >= *stopped);
            if late > end || runs_again || faults(*stopped, late) {
                continue;
            }
            let revision = times.at_least(late);
            if let Some((since, _)) = spans.iter().find(|(from, until)| *from <= revision && revision < *until) {
                let detail = format!(
                    "{slice} shows pod {uid} as ready since {since} and still at revision {revision} ({}), its container ended at {}",
                    clock(late),
                    clock(*stopped)
                );
                tally.fail(Violation::new("K8", detail).revision(*since).revision(revision).at(*stopped).at(late));
            }
        }
    }
    tally.finish("K8", &["ends of containers behind an endpoint"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{exit, put, start};
    use super::*;
    use crate::history::Sample;

    #[test]
    fn the_dead_leave_the_slices() {
        let slice = |ready: bool| {
            let endpoints = json!([{"conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "uid": "a"}}]);
            json!({"metadata": {"name": "s", "namespace": "d"}, "endpoints": endpoints})
        };
        // The container ends at 1 s; what is known of the store's revision, and when.
        let verdict = |samples: &[(At, i64)]| {
            let changes = vec![put(2, "endpointslices", &slice(true)), put(5, "endpointslices", &slice(false))];
            let samples = samples.iter().map(|(at, revision)| Sample { at: *at, revision: *revision, ..Sample::default() }).collect();
            let nodes = vec![start(1, "n", "a"), exit(SECOND, "n", "a")];
            judge(&History { changes, samples, nodes, ended: Some(9 * SECOND), ..History::default() }).verdict
        };
        assert_eq!(verdict(&[(0, 2), (2 * SECOND, 5)]), Verdict::Pass);
        assert!(matches!(verdict(&[(0, 2), (3 * SECOND - 1, 4), (5 * SECOND, 5)]), Verdict::Fail(_)));
    }
}
