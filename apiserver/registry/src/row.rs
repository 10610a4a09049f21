//! A kind of object: one row of the table that everything else reads.

use std::fmt;

use kontiki_base::object::{Gvk, ObjectKey};

use crate::rules::Rules;

macro_rules! verbs {
    ($($name:ident = $text:literal;)*) => {
        /// What can be done to a resource.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)]
        pub enum Verb { $($name,)* }

        impl Verb {
            /// Every verb, in the order of discovery documents.
            pub const ALL: &'static [Verb] = &[$(Verb::$name,)*];

            /// The verb as discovery and authorization spell it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Verb::$name => $text,)* }
            }

            /// Reads a verb.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Verb::$name),)* _ => None }
            }
        }
    };
}

verbs! {
    Create = "create";
    Delete = "delete";
    DeleteCollection = "deletecollection";
    Get = "get";
    List = "list";
    Patch = "patch";
    Update = "update";
    Watch = "watch";
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerbSet(u8);

impl VerbSet {
    /// With one verb more.
    #[must_use]
    pub const fn with(self, verb: Verb) -> Self {
        Self(self.0 | 1 << verb as u8)
    }

    /// Whether the verb is in the set.
    pub const fn has(self, verb: Verb) -> bool {
        self.0 & (1 << verb as u8) != 0
    }

    /// The verbs, in the order of discovery documents.
    pub fn iter(self) -> impl Iterator<Item = Verb> {
        Verb::ALL.iter().copied().filter(move |v| self.has(*v))
    }

    /// From a list of names divided by `sep`; `None` if one is unknown.
    pub fn parse(text: &str, sep: char) -> Option<Self> {
        text.split(sep).filter(|t| !t.is_empty()).try_fold(Self::default(), |set, t| Some(set.with(Verb::parse(t)?)))
    }
}

/// How finished an API is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Stored and served.
    Stable,
    /// Served, never stored: reviews, bindings.
    Virtual,
}

/// A subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sub {
    /// Last part of its path: `status`.
    pub name: String,
    /// What its bodies are. For `status` that is the kind itself.
    pub gvk: Gvk,
    /// What can be done to it. Connect subresources (`exec`, `proxy`) list the verbs of their HTTP methods.
    pub verbs: VerbSet,
}

/// A kind of object as the API serves it in one version.
#[derive(Clone, Debug)]
pub struct Row {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of a list of them.
    pub list_kind: String,
    /// Name of the resource in paths.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Short names that kubectl accepts.
    pub short: Vec<String>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done to it.
    pub verbs: VerbSet,
    /// Its subresources, by name.
    pub subresources: Vec<Sub>,
    /// Groups of resources that it belongs to, such as `all`.
    pub categories: Vec<String>,
    /// Prefix of its storage keys without the final slash: `/registry/pods`. Empty for what is not stored.
    pub storage: String,
    /// As discovery shows it; empty for what is not stored.
    pub storage_version_hash: String,
    /// Whether its objects are stored.
    pub stage: Stage,
    /// What its objects are stored as. Differs from [`Row::gvk`] where several rows share their storage.
    pub stored_as: Gvk,
    /// What is special about the kind.
    pub rules: &'static Rules,
    /// For custom resources: the JSON paths of the fields that selectors may name. `None` for built-in kinds, whose rules say it.
    pub selectable: Option<Vec<String>>,
    /// Name of its schema in OpenAPI documents: `io.k8s.api.core.v1.Pod`. Empty for what has none.
    pub schema: String,
}

impl Row {
    /// Group, version and kind.
    pub fn gvk(&self) -> Gvk {
        Gvk { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`: how messages name the resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod`, `Deployment.apps`: how messages name the kind.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// Whether its objects are stored.
    pub fn is_stored(&self) -> bool {
        !self.storage.is_empty()
    }

    /// The key of one object. `ns` is ignored for kinds without namespaces.
    pub fn storage_key(&self, ns: &str, name: &str) -> String {
        if self.namespaced { format!("{}/{ns}/{name}", self.storage) } else { format!("{}/{name}", self.storage) }
    }

    /// The prefix of the keys of all objects, or of those in one namespace; ends with a slash.
    pub fn storage_prefix(&self, ns: Option<&str>) -> String {
        match ns {
            Some(ns) if self.namespaced && !ns.is_empty() => format!("{}/{ns}/", self.storage),
            _ => format!("{}/", self.storage),
        }
    }

    /// Namespace and name from a storage key; `None` if the key is not one of this kind.
    pub fn key_of(&self, storage_key: &[u8]) -> Option<ObjectKey> {
        let rest = std::str::from_utf8(storage_key).ok()?.strip_prefix(self.storage.as_str())?.strip_prefix('/')?;
        let key = if self.namespaced {
            let (ns, name) = rest.split_once('/')?;
            ObjectKey::new(ns, name)
        } else {
            ObjectKey::new("", rest)
        };
        (!key.name.is_empty() && !key.name.contains('/') && (key.namespace.is_empty() != self.namespaced)).then_some(key)
    }

    /// Whether the verb exists for the resource itself.
    pub fn has_verb(&self, verb: Verb) -> bool {
        self.verbs.has(verb)
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&Sub> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the status is written through `/status` only.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verb_sets_hold_what_was_put_in() {
        let set = VerbSet::parse("get,watch,create", ',').unwrap();
        assert_eq!(set.iter().map(Verb::as_str).collect::<Vec<_>>(), ["create", "get", "watch"]);
        assert!(!set.has(Verb::Delete));
        assert_eq!(VerbSet::parse("get,fly", ','), None);
    }
}
