//! Sets of field paths, as server-side apply keeps them, and their `fieldsV1` form: a trie in JSON.
//!
//! `f:<name>` is a field, `k:{…}` an element of a keyed list, `v:<json>` an element of a set, `i:<n>` an index; `"."` says that the place itself is a
//! member, as does an empty object.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

/// A JSON value with an order: numbers, strings, booleans, lists, objects, null.
#[derive(Clone, Debug)]
pub struct Scalar(pub Value);

impl Scalar {
    fn rank(&self) -> u8 {
        match self.0 {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scalar {}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
            },
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (a @ (Value::Array(_) | Value::Object(_)), b) if self.rank() == other.rank() => a.to_string().cmp(&b.to_string()),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of an object.
    Field(String),
    /// An element of a keyed list: the key fields, sorted by name.
    Key(Vec<(String, Scalar)>),
    /// An element of a set.
    Item(Scalar),
    /// An element of a list by position.
    Index(i64),
}

impl Element {
    /// The `fieldsV1` form.
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let fields: Vec<_> = keys.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), v.0)).collect();
                format!("k:{{{}}}", fields.join(","))
            }
            Self::Item(value) => format!("v:{}", value.0),
            Self::Index(i) => format!("i:{i}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (tag, rest) = text.split_once(':')?;
        Some(match tag {
            "f" => Self::Field(rest.to_owned()),
            "k" => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(rest).ok()?;
                Self::Key(keys.into_iter().map(|(k, v)| (k, Scalar(v))).collect())
            }
            "v" => Self::Item(Scalar(serde_json::from_str(rest).ok()?)),
            "i" => Self::Index(rest.parse().ok()?),
            _ => return None,
        })
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let text: Vec<_> = keys.iter().map(|(k, v)| format!("{k}={}", v.0)).collect();
                write!(f, "[{}]", text.join(","))
            }
            Self::Item(value) => write!(f, "[={}]", value.0),
            Self::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A path as error texts print it.
pub fn path_text(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

/// Tries deeper than this are refused when they are read: an object cannot be.
const MAX_DEPTH: u32 = 128;

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    members: BTreeSet<Element>,
    children: BTreeMap<Element, Set>,
}

impl Set {
    /// True if there is no path in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Self::is_empty)
    }

    /// Adds a path. The empty path, the object itself, is never a member.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// True if the one-step path is a member.
    pub fn has(&self, element: &Element) -> bool {
        self.members.contains(element)
    }

    /// The paths below a step.
    pub fn below(&self, element: &Element) -> Option<&Self> {
        self.children.get(element).filter(|s| !s.is_empty())
    }

    /// Paths in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, set) in &other.children {
            let child = out.children.entry(element.clone()).or_default();
            *child = child.union(set);
        }
        out
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let both = |e: &Element, s: &Self| other.children.get(e).map(|o| s.intersection(o)).filter(|s| !s.is_empty());
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: self.children.iter().filter_map(|(e, s)| Some((e.clone(), both(e, s)?))).collect(),
        }
    }

    /// Paths here and not there.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.without(other, false)
    }

    /// Paths here that are not there and not below a path there.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.without(other, true)
    }

    fn without(&self, other: &Self, below_too: bool) -> Self {
        let child = |e: &Element, s: &Self| {
            if below_too && other.members.contains(e) {
                return None;
            }
            Some(other.children.get(e).map_or_else(|| s.clone(), |o| s.without(o, below_too))).filter(|s| !s.is_empty())
        };
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: self.children.iter().filter_map(|(e, s)| Some((e.clone(), child(e, s)?))).collect(),
        }
    }

    /// Adds declared fields that have paths below them, as members.
    #[must_use]
    pub fn with_named_parents(&self, ty: super::keys::Type<'_>) -> Self {
        let mut out = self.clone();
        for (element, set) in &self.children {
            let below = match element {
                Element::Field(name) => {
                    if ty.declares(name) {
                        out.members.insert(element.clone());
                    }
                    ty.child(name)
                }
                _ => Some(ty.element()),
            };
            if let Some(below) = below {
                out.children.insert(element.clone(), set.with_named_parents(below));
            }
        }
        out
    }

    /// Every path, in order.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        let steps: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for step in steps {
            prefix.push(step.clone());
            if self.members.contains(step) {
                out.push(prefix.clone());
            }
            if let Some(child) = self.children.get(step) {
                child.collect(prefix, out);
            }
            prefix.pop();
        }
    }

    /// The `fieldsV1` form.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        for member in &self.members {
            out.insert(member.encode(), Value::Object(Map::new()));
        }
        for (element, child) in self.children.iter().filter(|(_, s)| !s.is_empty()) {
            let mut inner = child.to_json();
            if let (true, Value::Object(inner)) = (self.members.contains(element), &mut inner) {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(element.encode(), inner);
        }
        Value::Object(out)
    }

    /// Reads the `fieldsV1` form; `None` if it is none.
    pub fn from_json(value: &Value) -> Option<Self> {
        Self::read(value, 0)
    }

    fn read(value: &Value, depth: u32) -> Option<Self> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut out = Self::default();
        for (key, inner) in value.as_object()? {
            if key == "." {
                continue;
            }
            let element = Element::decode(key)?;
            let fields = inner.as_object()?;
            if fields.is_empty() || fields.contains_key(".") {
                out.members.insert(element.clone());
            }
            let child = Self::read(inner, depth + 1)?;
            if !child.is_empty() {
                out.children.insert(element, child);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_trie_reads_back() {
        let trie = json!({
            "f:metadata": {"f:finalizers": {"v:\"x/a\"": {}}},
            "f:spec": {".": {}, "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:list": {"i:3": {}}},
        });
        let set = Set::from_json(&trie).unwrap();
        assert_eq!(set.to_json(), trie);
        let paths: Vec<_> = set.paths().iter().map(|p| path_text(p)).collect();
        assert_eq!(
            paths,
            [
                ".metadata.finalizers[=\"x/a\"]",
                ".spec",
                ".spec.list[3]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port"
            ]
        );
        for bad in [json!([]), json!({"x": {}}), json!({"f:a": 1}), json!({"k:1": {}}), json!({"v:": {}})] {
            assert_eq!(Set::from_json(&bad), None, "{bad}");
        }
    }

    fn set() -> impl Strategy<Value = Set> {
        let element =
            prop_oneof!["[a-c]".prop_map(Element::Field), (0..3i64).prop_map(|n| Element::Key(vec![("k".into(), Scalar(n.into()))])),];
        proptest::collection::vec(proptest::collection::vec(element, 1..4), 0..8).prop_map(|paths| {
            let mut set = Set::default();
            paths.iter().for_each(|p| set.insert(p));
            set
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sets_are_sets(a in set(), b in set()) {
            let paths = |s: &Set| s.paths().into_iter().collect::<BTreeSet<_>>();
            prop_assert_eq!(paths(&a.union(&b)), &paths(&a) | &paths(&b));
            prop_assert_eq!(paths(&a.intersection(&b)), &paths(&a) & &paths(&b));
            prop_assert_eq!(paths(&a.difference(&b)), &paths(&a) - &paths(&b));
            prop_assert_eq!(Set::from_json(&a.to_json()).map(|s| paths(&s)), Some(paths(&a)));
        }
    }
}
