//! Objects of one kind by name, with the index that controllers need: by controller owner.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kontiki_base::Uid;
use kontiki_base::object::ObjectKey;

use crate::meta;

/// All objects of a kind, as the informer last saw them.
#[derive(Clone, Debug)]
pub struct Store<T> {
    objects: BTreeMap<ObjectKey, Arc<T>>,
    by_owner: BTreeMap<Uid, BTreeSet<ObjectKey>>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), by_owner: BTreeMap::new() }
    }
}

impl<T: Metadata<Ty = ObjectMeta>> Store<T> {
    /// The object of this name.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<T>> {
        self.objects.get(key)
    }

    /// All objects of a namespace, by name.
    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<T>> + 'a {
        let from = ObjectKey::new(namespace, "");
        self.objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, object)| object)
    }

    /// All objects from a name on.
    pub fn from(&self, key: &ObjectKey) -> impl Iterator<Item = &Arc<T>> {
        self.objects.range((Bound::Included(key.clone()), Bound::Unbounded)).map(|(_, object)| object)
    }

    /// All objects, by namespace and name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<T>> {
        self.objects.values()
    }

    /// The objects whose controller has this uid.
    pub fn owned_by(&self, uid: &Uid) -> impl Iterator<Item = &Arc<T>> {
        self.by_owner.get(uid).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Stores an object; the one it replaces.
    pub fn upsert(&mut self, object: Arc<T>) -> Option<Arc<T>> {
        let key = meta::key(object.metadata());
        let old = self.remove(&key);
        if let Some(owner) = meta::controller_uid(object.metadata()) {
            self.by_owner.entry(owner).or_default().insert(key.clone());
        }
        self.objects.insert(key, object);
        old
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Arc<T>> {
        let old = self.objects.remove(key)?;
        if let Some(owner) = meta::controller_uid(old.metadata())
            && let Some(keys) = self.by_owner.get_mut(&owner)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(old)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}
