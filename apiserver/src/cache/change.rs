//! One object and one change as the watch cache keeps them: bytes that are shared by everybody who reads or watches.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::Revision;
use serde_json::{Map, Value};

use crate::codec::{self, Digits};

/// An object: its serialized form, and the little that selectors look at.
#[derive(Debug)]
pub(crate) struct Cached {
    /// Storage key.
    pub(crate) key: Bytes,
    /// JSON with its `resourceVersion`.
    pub(crate) bytes: Bytes,
    /// Revision of its last write.
    pub(crate) revision: Revision,
    /// The object without its bulk: what label and field selectors can ask for.
    pub(crate) facets: Value,
    digits: Digits,
}

impl Cached {
    /// From the stored form. `None` if the bytes are no object.
    pub(crate) fn new(key: Bytes, stored: &[u8], revision: Revision) -> Option<Self> {
        let value: Value = serde_json::from_slice(stored).ok()?;
        let (bytes, digits) = codec::splice(stored, revision)?;
        Some(Self { key, bytes, revision, facets: facets(&value), digits })
    }

    /// The tree.
    pub(crate) fn value(&self) -> Value {
        // It was read once already, in `new`.
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The bytes as if written at another revision.
    pub(crate) fn at(&self, revision: Revision) -> Bytes {
        codec::restamp(&self.bytes, self.digits, revision)
    }
}

/// Scalars down to the third level, labels and pod addresses: all that a field selector of any built-in kind can name.
fn facets(object: &Value) -> Value {
    fn shallow(value: &Value, depth: usize) -> Option<Value> {
        match value {
            Value::Object(map) if depth > 0 => {
                let kept: Map<String, Value> = map
                    .iter()
                    .filter(|(k, _)| {
                        !matches!(k.as_str(), "annotations" | "managedFields" | "data" | "binaryData" | "stringData" | "template")
                    })
                    .filter_map(
                        |(k, v)| if k == "podIPs" { Some((k.clone(), v.clone())) } else { Some((k.clone(), shallow(v, depth - 1)?)) },
                    )
                    .collect();
                (!kept.is_empty()).then_some(Value::Object(kept))
            }
            Value::Object(_) | Value::Array(_) | Value::Null => None,
            scalar => Some(scalar.clone()),
        }
    }
    shallow(object, 3).unwrap_or_default()
}

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventType {
    /// The object appeared, or came to match.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or no longer matches.
    Deleted,
}

impl EventType {
    /// As it stands on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    /// When.
    pub(crate) revision: Revision,
    /// The object before, if there was one.
    pub(crate) old: Option<Arc<Cached>>,
    /// The object after, unless it was deleted.
    pub(crate) new: Option<Arc<Cached>>,
    frames: [OnceLock<Bytes>; 3],
    gone: OnceLock<Bytes>,
}

impl Change {
    /// A change from `old` to `new`.
    pub(crate) fn new(revision: Revision, old: Option<Arc<Cached>>, new: Option<Arc<Cached>>) -> Self {
        Self { revision, old, new, frames: Default::default(), gone: OnceLock::new() }
    }

    /// What the change is to a watcher that sees only objects that `matches` holds for; `None` if nothing.
    pub(crate) fn seen_by(&self, matches: impl Fn(&Cached) -> bool) -> Option<EventType> {
        let old = self.old.as_deref().is_some_and(&matches);
        let new = self.new.as_deref().is_some_and(&matches);
        match (old, new) {
            (false, true) => Some(EventType::Added),
            (true, true) => Some(EventType::Modified),
            (true, false) => Some(EventType::Deleted),
            (false, false) => None,
        }
    }

    /// The object that an event of this type shows: for a deletion the last state, stamped with the revision of the change.
    pub(crate) fn object(&self, kind: EventType) -> Bytes {
        match (kind, &self.new, &self.old) {
            (EventType::Added | EventType::Modified, Some(new), _) => new.bytes.clone(),
            (_, _, Some(old)) => self.gone.get_or_init(|| old.at(self.revision)).clone(),
            _ => Bytes::new(),
        }
    }

    /// The event as one line of a JSON watch stream: made once, shared by all watchers.
    pub(crate) fn frame(&self, kind: EventType) -> Bytes {
        self.frames[kind as usize].get_or_init(|| frame(kind.as_str(), &self.object(kind))).clone()
    }
}

/// One line of a JSON watch stream.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cached(label: &str, revision: i64) -> Arc<Cached> {
        let stored = json!({"kind": "ConfigMap", "metadata": {"name": "a", "labels": {"l": label}}, "data": {"k": "v"}}).to_string();
        Arc::new(Cached::new("/k".into(), stored.as_bytes(), Revision::new(revision)).unwrap())
    }

    #[test]
    fn selector_transitions() {
        let matches = |c: &Cached| c.facets["metadata"]["labels"]["l"] == "y";
        let (y, n) = (|| Some(cached("y", 5)), || Some(cached("n", 6)));
        //            old   new   seen as
        let table = [
            (None, y(), Some(EventType::Added)),
            (n(), y(), Some(EventType::Added)),
            (y(), y(), Some(EventType::Modified)),
            (y(), n(), Some(EventType::Deleted)),
            (y(), None, Some(EventType::Deleted)),
            (n(), None, None),
            (None, n(), None),
            (n(), n(), None),
        ];
        for (old, new, seen) in table {
            assert_eq!(Change::new(Revision::new(7), old, new).seen_by(matches), seen);
        }
    }

    #[test]
    fn deletion_shows_the_last_state_at_the_deletion() {
        let change = Change::new(Revision::new(9), Some(cached("y", 5)), Some(cached("n", 9)));
        let event: Value = serde_json::from_slice(&change.frame(EventType::Deleted)).unwrap();
        assert_eq!(event["object"]["metadata"], json!({"name": "a", "labels": {"l": "y"}, "resourceVersion": "9"}));
        let again = change.frame(EventType::Deleted);
        assert_eq!(again.as_ptr(), change.frame(EventType::Deleted).as_ptr(), "encoded once");
    }

    #[test]
    fn facets_keep_what_selectors_ask_for() {
        let pod = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {"x": "y"}, "managedFields": [{}]},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}], "conditions": [{}]},
        });
        let expected = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"nodeName": "n"},
            "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}]},
        });
        assert_eq!(facets(&pod), expected);
    }
}
