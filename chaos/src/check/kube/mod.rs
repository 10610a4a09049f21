//! The control plane's invariants: folds over the store's order of revisions, joined with what the nodes really ran.
//!
//! Objects are read from the changes of `/registry/` keys as plain JSON: nothing of the product's own types is used.

pub mod bind;
pub mod capacity;
pub mod chain;
pub mod converge;
pub mod endpoints;
pub mod generation;
pub mod identity;
pub mod informer;
pub mod orphan;
pub mod rollout;
pub mod teardown;
pub mod unique;

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use crate::history::{At, History, NodeFact};

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// When.
    pub revision: i64,
    /// The store's key.
    pub key: &'a str,
    /// Before it; `None`: there was none.
    pub before: Option<Rc<Value>>,
    /// After it; `None`: it was deleted.
    pub after: Option<Rc<Value>>,
}

impl Step<'_> {
    /// Whether the object goes on living with the same uid.
    pub fn lives_on(&self) -> Option<(&Value, &Value)> {
        let (before, after) = (self.before.as_deref()?, self.after.as_deref()?);
        (uid(before) == uid(after)).then_some((before, after))
    }
}

/// The changes of all objects under a prefix of the store's keys, in order. What is not JSON is left out.
pub fn steps<'a>(history: &'a History, prefix: &str) -> Vec<Step<'a>> {
    let mut living: BTreeMap<&str, Rc<Value>> = BTreeMap::new();
    let changes = history.changes.iter().filter(|c| c.key.starts_with(prefix));
    changes
        .filter_map(|change| {
            let before = living.get(change.key.as_str()).cloned();
            let after = match &change.value {
                Some(text) => Some(Rc::new(serde_json::from_str::<Value>(text).ok()?)),
                None => None,
            };
            match &after {
                Some(value) => living.insert(&change.key, Rc::clone(value)),
                None => living.remove(change.key.as_str()),
            };
            Some(Step { revision: change.revision, key: &change.key, before, after })
        })
        .collect()
}

/// The objects under a prefix as they are in the end.
pub fn last<'a>(history: &'a History, prefix: &str) -> BTreeMap<&'a str, Rc<Value>> {
    let mut living = BTreeMap::new();
    for step in steps(history, prefix) {
        match step.after {
            Some(value) => living.insert(step.key, value),
            None => living.remove(step.key),
        };
    }
    living
}

/// A text field by its JSON pointer; empty if there is none.
pub fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number field by its JSON pointer.
pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// The elements of a list field.
pub fn list<'v>(object: &'v Value, pointer: &str) -> &'v [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// An object's uid.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// Namespace and name.
pub fn full_name(object: &Value) -> String {
    format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

/// The controlling owner: kind and uid.
pub fn owner(object: &Value) -> Option<(&str, &str)> {
    let owners = list(object, "/metadata/ownerReferences").iter();
    let controller = owners.into_iter().find(|o| o.pointer("/controller").and_then(Value::as_bool) == Some(true))?;
    Some((text(controller, "/kind"), text(controller, "/uid")))
}

/// Whether it is being deleted.
pub fn deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
}

/// Whether a pod has ended for good.
pub fn terminal(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// When a container ran on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// The pod's uid.
    pub uid: &'a str,
    /// The pod: namespace and name.
    pub pod: &'a str,
    /// The container.
    pub container: &'a str,
    /// The node.
    pub node: &'a str,
    /// From.
    pub from: At,
    /// Until; the end of time while it runs.
    pub until: At,
    /// Whether it ended because its machine went down.
    pub lost: bool,
}

/// Every run of every container, from what nodes recorded.
pub fn runs(history: &History) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for record in &history.nodes {
        let open = |run: &&mut Run<'_>| run.node == record.node && run.until == At::MAX;
        match &record.fact {
            NodeFact::Start { uid, pod, container } => {
                runs.push(Run { uid, pod, container, node: &record.node, from: record.at, until: At::MAX, lost: false });
            }
            NodeFact::Exit { uid, container } => {
                let mut ended = runs.iter_mut().filter(open).filter(|run| run.uid == uid && run.container == container);
                if let Some(run) = ended.next_back() {
                    run.until = record.at;
                }
            }
            NodeFact::Down => runs.iter_mut().filter(open).for_each(|run| (run.until, run.lost) = (record.at, true)),
            NodeFact::Up | NodeFact::Route { .. } => {}
        }
    }
    runs
}

/// The run ended in good order, and nothing was broken in its last 10 s: what must converge has.
pub fn ended_calmly(history: &History) -> bool {
    history.ended.is_some_and(|end| end >= history.calm_from().saturating_add(10_000_000_000))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::{Change, NodeRecord};

    /// A change of an object: the key follows from its kind's folder and its name.
    pub(in super::super) fn put(revision: i64, folder: &str, object: &Value) -> Change {
        let namespace = text(object, "/metadata/namespace");
        let slash = if namespace.is_empty() { "" } else { "/" };
        Change::put(revision, format!("/registry/{folder}/{namespace}{slash}{}", text(object, "/metadata/name")), object.to_string())
    }

    /// A pod with a uid like its name, on a node.
    pub(in super::super) fn pod(name: &str, node: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": {"nodeName": node}, "status": {"phase": "Running"}})
    }

    pub(in super::super) fn fact(at: At, node: &str, fact: NodeFact) -> NodeRecord {
        NodeRecord { at, node: node.into(), fact }
    }

    pub(in super::super) fn start(at: At, node: &str, uid: &str) -> NodeRecord {
        fact(at, node, NodeFact::Start { uid: uid.into(), pod: format!("d/{uid}"), container: "c".into() })
    }

    pub(in super::super) fn exit(at: At, node: &str, uid: &str) -> NodeRecord {
        fact(at, node, NodeFact::Exit { uid: uid.into(), container: "c".into() })
    }

    #[test]
    fn containers_run_until_they_exit_or_their_machine_is_gone() {
        let nodes = vec![start(1, "n", "a"), start(2, "n", "b"), exit(3, "n", "a"), fact(5, "n", NodeFact::Down), start(6, "m", "a")];
        let history = History { nodes, ..History::default() };
        let ends: Vec<_> = runs(&history).iter().map(|r| (r.uid.to_owned(), r.until, r.lost)).collect();
        assert_eq!(ends, [("a".into(), 3, false), ("b".into(), 5, true), ("a".into(), At::MAX, false)]);
    }

    #[test]
    fn steps_know_what_was_before() {
        let changes = vec![put(2, "pods", &pod("a", "")), put(3, "pods", &pod("a", "n")), Change::delete(4, "/registry/pods/d/a")];
        let history = History { changes, ..History::default() };
        let steps = steps(&history, "/registry/pods/");
        assert_eq!(
            steps.iter().map(|s| (s.before.is_some(), s.after.is_some())).collect::<Vec<_>>(),
            [(false, true), (true, true), (true, false)]
        );
        assert!(last(&history, "/registry/").is_empty());
    }
}
