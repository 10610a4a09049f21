//! K11, informer equivalence: a session's list, with the events of the watches that follow it, is the store's set of objects at every
//! resource version that the session is told: after a list, and at each bookmark. Resource versions do not go back, neither from event to
//! event nor from one list to the next. Every event is a change of the store.

use std::collections::BTreeMap;

use super::super::log::Log;
use super::super::{Outcome, Tally, Violation, clock};
use crate::history::{ApiFrame, ApiWatch, History};

/// What a session knows.
#[derive(Default)]
struct Session {
    prefix: String,
    objects: BTreeMap<String, i64>,
    revision: i64,
}

/// The check `K11`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let log = Log::new(history.changes.iter().filter(|c| c.is_registry()));
    let mut sessions: BTreeMap<u64, Session> = BTreeMap::new();
    for frame in &history.api {
        sessions.entry(frame.session).or_default().take(frame, &log, &mut tally);
    }
    tally.finish("K11", &["lists", "events"])
}

impl Session {
    fn take(&mut self, frame: &ApiWatch, log: &Log<'_>, tally: &mut Tally) {
        match &frame.frame {
            ApiFrame::List { prefix, revision, items } => {
                tally.saw("lists");
                self.forward(*revision, frame, tally);
                self.prefix.clone_from(prefix);
                self.objects = items.iter().cloned().collect();
                self.compare(frame, log, tally);
            }
            ApiFrame::Put { key, revision } => {
                tally.saw("events");
                self.forward(*revision, frame, tally);
                if log.get(key, *revision).is_none_or(|v| v.revision != *revision) {
                    fail(format!("{key} was not written at {revision}"), *revision, frame, tally);
                }
                self.objects.insert(key.clone(), *revision);
            }
            ApiFrame::Delete { key, revision } => {
                tally.saw("events");
                self.forward(*revision, frame, tally);
                if !log.at(*revision).iter().any(|c| c.key == *key && c.value.is_none()) {
                    fail(format!("{key} was not deleted at {revision}"), *revision, frame, tally);
                }
                self.objects.remove(key);
            }
            ApiFrame::Bookmark { revision } => {
                tally.saw("bookmarks");
                self.forward(*revision, frame, tally);
                self.compare(frame, log, tally);
            }
            ApiFrame::Gone => tally.saw("histories that were gone"),
            ApiFrame::Closed => {}
        }
    }

    fn forward(&mut self, revision: i64, frame: &ApiWatch, tally: &mut Tally) {
        // Several objects of one transaction share a revision.
        if revision < self.revision {
            fail(format!("was told {} and now {revision}", self.revision), revision, frame, tally);
        }
        self.revision = self.revision.max(revision);
    }

    fn compare(&self, frame: &ApiWatch, log: &Log<'_>, tally: &mut Tally) {
        let end = format!("{}0", self.prefix.trim_end_matches('/'));
        let store: BTreeMap<&str, i64> =
            log.range(&self.prefix, &end, self.revision).into_iter().map(|(key, v)| (key, v.revision)).collect();
        for (key, at) in &store {
            match self.objects.get(*key) {
                Some(have) if have == at => {}
                have => fail(format!("at {} has {key} as of {have:?}, the store as of {at}", self.revision), self.revision, frame, tally),
            }
        }
        for key in self.objects.keys().filter(|key| !store.contains_key(key.as_str())) {
            fail(format!("at {} still has {key}", self.revision), self.revision, frame, tally);
        }
    }
}

fn fail(what: String, revision: i64, frame: &ApiWatch, tally: &mut Tally) {
    let detail = format!("session {} at member {}, {}: {what}", frame.session, frame.member, clock(frame.at));
    tally.fail(Violation::new("K11", detail).revision(revision).at(frame.at));
}

#[cfg(test)]
mod tests {
    use super::super::super::Verdict;
    use super::*;
    use crate::history::Change;

    fn verdict(frames: Vec<ApiFrame>) -> Verdict {
        let key = |name: &str| format!("/registry/pods/d/{name}");
        let changes = vec![
            Change::put(2, key("a"), "{}"),
            Change::put(3, key("b"), "{}"),
            Change::put(4, key("a"), "{}"),
            Change::delete(5, key("b")),
            Change::put(6, "/registry/nodes/x", "{}"),
        ];
        let api = frames.into_iter().map(|frame| ApiWatch { session: 1, member: 0, at: 0, frame }).collect();
        judge(&History { changes, api, ..History::default() }).verdict
    }

    fn list(revision: i64, items: &[(&str, i64)]) -> ApiFrame {
        let items = items.iter().map(|(name, at)| (format!("/registry/pods/d/{name}"), *at)).collect();
        ApiFrame::List { prefix: "/registry/pods/".into(), revision, items }
    }

    fn put(revision: i64, name: &str) -> ApiFrame {
        ApiFrame::Put { key: format!("/registry/pods/d/{name}"), revision }
    }

    fn delete(revision: i64, name: &str) -> ApiFrame {
        ApiFrame::Delete { key: format!("/registry/pods/d/{name}"), revision }
    }

    fn bookmark(revision: i64) -> ApiFrame {
        ApiFrame::Bookmark { revision }
    }

    #[test]
    fn a_client_has_what_the_store_has() {
        let begin = || list(3, &[("a", 2), ("b", 3)]);
        assert_eq!(verdict(vec![begin(), put(4, "a"), bookmark(4), delete(5, "b"), bookmark(6)]), Verdict::Pass);
        assert_eq!(verdict(vec![begin(), put(4, "a"), ApiFrame::Gone, list(5, &[("a", 4)])]), Verdict::Pass);
        for (why, frames) in [
            ("the list is short", vec![list(3, &[("a", 2)]), put(4, "a")]),
            ("the list is stale", vec![list(4, &[("a", 2), ("b", 3)]), put(4, "a")]),
            ("an event is missing", vec![begin(), put(4, "a"), bookmark(5)]),
            ("an event is invented", vec![begin(), put(5, "a")]),
            ("a deletion is invented", vec![begin(), delete(4, "b")]),
            ("back in time", vec![begin(), put(4, "a"), put(3, "b")]),
            ("an older list", vec![begin(), put(4, "a"), list(3, &[("a", 2), ("b", 3)])]),
        ] {
            assert!(matches!(verdict(frames), Verdict::Fail(_)), "{why}");
        }
    }
}
