//! K9: an object's changes form a chain: within a life (between creation and deletion of a key) uid and creation time stay, the generation
//! does not go back, and a deletion that has begun is not taken back. A write on an old copy breaks one of these.

use super::super::{Outcome, Tally, Violation};
use super::{deleting, number, steps, text, uid};
use crate::history::History;

/// The check `K9`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    for step in steps(history, "/registry/") {
        let (Some(before), Some(after)) = (step.before.as_deref(), step.after.as_deref()) else { continue };
        if uid(before).is_empty() {
            continue;
        }
        tally.saw("updates of objects");
        let mut fail = |what: String| {
            let detail = format!("{} at {}: {what}", step.key, step.revision);
            tally.fail(Violation::new("K9", detail).revision(step.revision));
        };
        if uid(before) != uid(after) {
            fail(format!("an update changed its uid from {} to {}", uid(before), uid(after)));
        }
        let created = |v| text(v, "/metadata/creationTimestamp");
        if created(before) != created(after) {
            fail(format!("its creation moved from {} to {}", created(before), created(after)));
        }
        let generation = |v| number(v, "/metadata/generation").unwrap_or(0);
        if generation(after) < generation(before) {
            fail(format!("its generation went from {} back to {}: an old copy was written", generation(before), generation(after)));
        }
        if deleting(before) && !deleting(after) {
            fail("its deletion was taken back: an old copy was written".into());
        }
    }
    tally.finish("K9", &["updates of objects"])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::Verdict;
    use super::super::tests::{pod, put};
    use super::*;

    fn verdict(change: impl FnOnce(&mut Value)) -> Verdict {
        let mut first = pod("a", "n");
        first["metadata"]["generation"] = json!(2);
        first["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut second = first.clone();
        change(&mut second);
        judge(&History { changes: vec![put(2, "pods", &first), put(3, "pods", &second)], ..History::default() }).verdict
    }

    #[test]
    fn old_copies_are_seen() {
        assert_eq!(verdict(|v| v["metadata"]["generation"] = json!(3)), Verdict::Pass);
        assert!(matches!(verdict(|v| v["metadata"]["generation"] = json!(1)), Verdict::Fail(_)));
        assert!(matches!(verdict(|v| v["metadata"]["uid"] = json!("b")), Verdict::Fail(_)));
        assert!(matches!(verdict(|v| v["metadata"]["deletionTimestamp"] = Value::Null), Verdict::Fail(_)));
        assert!(matches!(verdict(|v| v["metadata"]["creationTimestamp"] = json!("x")), Verdict::Fail(_)));
    }
}
