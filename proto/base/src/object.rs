//! Names of Kubernetes objects, and the one place where `resourceVersion` and [`Revision`] meet.

use std::fmt;

use crate::ids::Revision;

/// Group, version and kind of an object. The core group is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvk {
    /// API group, empty for the core group.
    pub group: String,
    /// Version, such as `v1`.
    pub version: String,
    /// Kind, such as `Pod`.
    pub kind: String,
}

impl Gvk {
    /// From an object's `apiVersion` and `kind`.
    pub fn from_api_version(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// The object's `apiVersion`: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl fmt::Display for Gvk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Kind={}", self.api_version(), self.kind)
    }
}

/// Namespace and name of an object. A cluster-scoped object has an empty namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A `resourceVersion` that a client sent and that is not a number of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid resource version {0:?}: must be a decimal number, as a list or an object gave it")]
pub struct BadResourceVersion(pub String);

impl Revision {
    /// Reads a `resourceVersion`. Empty is `None` ("not given"); `"0"` is revision 0 ("any").
    pub fn parse_resource_version(text: &str) -> Result<Option<Self>, BadResourceVersion> {
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<u64>() {
            Ok(n) if n <= i64::MAX as u64 => Ok(Some(Self::new(n as i64))),
            _ => Err(BadResourceVersion(text.into())),
        }
    }

    /// Writes a `resourceVersion`.
    pub fn to_resource_version(self) -> String {
        self.get().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_version_is_the_revision() {
        assert_eq!(Revision::parse_resource_version("17"), Ok(Some(Revision::new(17))));
        assert_eq!(Revision::parse_resource_version(""), Ok(None));
        for bad in ["-1", "x", "1.0", "99999999999999999999", "9223372036854775808"] {
            assert_eq!(Revision::parse_resource_version(bad), Err(BadResourceVersion(bad.into())));
        }
        assert_eq!(Revision::new(17).to_resource_version(), "17");
    }

    #[test]
    fn gvk_splits_and_joins() {
        for v in ["v1", "apps/v1", "discovery.k8s.io/v1"] {
            assert_eq!(Gvk::from_api_version(v, "X").api_version(), v);
        }
    }
}
