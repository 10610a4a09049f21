//! Who owns whom: the metadata of every object of every watched kind, with an index from an owner's uid to its dependents.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kontiki_base::object::ObjectKey;
use kontiki_base::{Revision, Uid};

use crate::kind::Kind;
use crate::meta;

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub key: ObjectKey,
}

impl ObjectId {
    /// As the key of a controller whose keys are objects of any kind: the kind's words stand in front of the name.
    pub fn to_key(&self) -> ObjectKey {
        ObjectKey::new(self.key.namespace.clone(), format!("{}/{}", self.kind, self.key.name))
    }

    /// From such a key.
    pub fn from_key(key: &ObjectKey) -> Option<Self> {
        let (words, name) = key.name.split_once('/')?;
        let kind = Kind::ALL.iter().copied().find(|k| k.to_string() == words)?;
        Some(Self { kind, key: ObjectKey::new(key.namespace.clone(), name) })
    }
}

/// What the graph keeps of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphRow {
    /// Its uid.
    pub uid: Uid,
    /// Its revision.
    pub revision: Revision,
    /// Who owns it.
    pub owners: Vec<OwnerReference>,
    /// What must happen before it may go.
    pub finalizers: Vec<String>,
    /// Whether it is on its way out.
    pub deleting: bool,
}

impl GraphRow {
    /// From an object's metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta::uid(meta),
            revision: meta::revision(meta),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta::deleting(meta),
        }
    }

    /// Whether a finalizer of this name is still there.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|f| f == name)
    }
}

/// The graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    rows: BTreeMap<ObjectId, GraphRow>,
    dependents: BTreeMap<Uid, BTreeSet<ObjectId>>,
    per_namespace: BTreeMap<String, BTreeMap<Kind, u64>>,
}

impl Graph {
    /// Stores a row; the one it replaces.
    pub fn upsert(&mut self, id: ObjectId, row: GraphRow) -> Option<GraphRow> {
        let old = self.remove(&id);
        for owner in &row.owners {
            self.dependents.entry(Uid(owner.uid.clone())).or_default().insert(id.clone());
        }
        *self.per_namespace.entry(id.key.namespace.clone()).or_default().entry(id.kind).or_default() += 1;
        self.rows.insert(id, row);
        old
    }

    /// Takes a row out.
    pub fn remove(&mut self, id: &ObjectId) -> Option<GraphRow> {
        let old = self.rows.remove(id)?;
        for owner in &old.owners {
            let uid = Uid(owner.uid.clone());
            if let Some(ids) = self.dependents.get_mut(&uid) {
                ids.remove(id);
                if ids.is_empty() {
                    self.dependents.remove(&uid);
                }
            }
        }
        if let Some(kinds) = self.per_namespace.get_mut(&id.key.namespace) {
            if let Some(count) = kinds.get_mut(&id.kind) {
                *count -= 1;
            }
            kinds.retain(|_, count| *count > 0);
            if kinds.is_empty() {
                self.per_namespace.remove(&id.key.namespace);
            }
        }
        Some(old)
    }

    /// The row of an object.
    pub fn get(&self, id: &ObjectId) -> Option<&GraphRow> {
        self.rows.get(id)
    }

    /// The objects that name this uid among their owners.
    pub fn dependents(&self, uid: &Uid) -> impl Iterator<Item = (&ObjectId, &GraphRow)> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|id| self.rows.get_key_value(id))
    }

    /// All objects of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &GraphRow)> {
        let from = ObjectId { kind, key: ObjectKey::default() };
        self.rows
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(id, _)| id.kind == kind)
            .map(|(id, row)| (&id.key, row))
    }

    /// All objects.
    pub fn all(&self) -> impl Iterator<Item = (&ObjectId, &GraphRow)> {
        self.rows.iter()
    }

    /// How many objects of which kinds are in a namespace.
    pub fn content_of(&self, namespace: &str) -> impl Iterator<Item = (Kind, u64)> {
        self.per_namespace.get(namespace).into_iter().flatten().map(|(kind, count)| (*kind, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_edges_follow_the_rows() {
        let mut graph = Graph::default();
        let id = |name: &str| ObjectId { kind: Kind::Pod, key: ObjectKey::new("ns", name) };
        let owned = |uid: &str, owner: &str| GraphRow {
            uid: Uid(uid.into()),
            revision: Revision::ZERO,
            owners: vec![OwnerReference { uid: owner.into(), ..Default::default() }],
            finalizers: vec![],
            deleting: false,
        };
        graph.upsert(id("a"), owned("1", "x"));
        graph.upsert(id("b"), owned("2", "x"));
        graph.upsert(id("a"), owned("1", "y"));
        assert_eq!(graph.dependents(&Uid("x".into())).count(), 1);
        assert_eq!(graph.content_of("ns").collect::<Vec<_>>(), [(Kind::Pod, 2)]);
        graph.remove(&id("a"));
        graph.remove(&id("b"));
        assert_eq!((graph.dependents.len(), graph.per_namespace.len(), graph.rows.len()), (0, 0, 0));
        assert_eq!(ObjectId::from_key(&id("a").to_key()), Some(id("a")));
    }
}
