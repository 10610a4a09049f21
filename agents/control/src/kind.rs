//! The kinds that controllers watch, one row each: their words, their scope, and how much of an object is kept in the
//! [`World`](crate::World).

use std::fmt;

/// How much of an object the world keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The whole object, typed.
    Whole,
    /// Its metadata only: enough for the garbage collector and for the deletion of namespaces.
    Meta,
    /// Nothing: the kind is only written, or only asked for by name.
    Nothing,
}

macro_rules! kinds {
    ($($name:ident $group:literal $version:literal $plural:literal $scope:ident $keep:ident;)*) => {
        /// A kind of Kubernetes object that an agent knows by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(usize)]
        #[allow(missing_docs, reason = "the variants are Kubernetes' own kinds")]
        pub enum Kind { $($name,)* }

        impl Kind {
            /// Every kind, in the order of the table: [`Kind::index`] is the position here.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// API group; empty for the core group.
            pub const fn group(self) -> &'static str {
                match self { $(Kind::$name => $group,)* }
            }

            /// Version within the group.
            pub const fn version(self) -> &'static str {
                match self { $(Kind::$name => $version,)* }
            }

            /// The plural in URLs: `pods`.
            pub const fn plural(self) -> &'static str {
                match self { $(Kind::$name => $plural,)* }
            }

            /// The word in `kind`: `Pod`.
            pub const fn word(self) -> &'static str {
                match self { $(Kind::$name => stringify!($name),)* }
            }

            /// Whether its objects live in namespaces.
            pub const fn namespaced(self) -> bool {
                match self { $(Kind::$name => matches!(Scope::$scope, Scope::Ns),)* }
            }

            /// How much of it the world keeps.
            pub const fn keep(self) -> Keep {
                match self { $(Kind::$name => Keep::$keep,)* }
            }
        }
    };
}

enum Scope {
    Ns,
    Cluster,
}

kinds! {
    // kind                    group                        version plural                     scope   kept
    Namespace                  ""                           "v1"    "namespaces"               Cluster Whole;
    Node                       ""                           "v1"    "nodes"                    Cluster Whole;
    Pod                        ""                           "v1"    "pods"                     Ns      Whole;
    Service                    ""                           "v1"    "services"                 Ns      Whole;
    Endpoints                  ""                           "v1"    "endpoints"                Ns      Whole;
    ServiceAccount             ""                           "v1"    "serviceaccounts"          Ns      Whole;
    ConfigMap                  ""                           "v1"    "configmaps"               Ns      Meta;
    Secret                     ""                           "v1"    "secrets"                  Ns      Meta;
    PersistentVolumeClaim      ""                           "v1"    "persistentvolumeclaims"   Ns      Meta;
    PersistentVolume           ""                           "v1"    "persistentvolumes"        Cluster Meta;
    PodTemplate                ""                           "v1"    "podtemplates"             Ns      Meta;
    ReplicationController      ""                           "v1"    "replicationcontrollers"   Ns      Meta;
    ResourceQuota              ""                           "v1"    "resourcequotas"           Ns      Meta;
    LimitRange                 ""                           "v1"    "limitranges"              Ns      Meta;
    Event                      ""                           "v1"    "events"                   Ns      Nothing;
    Deployment                 "apps"                       "v1"    "deployments"              Ns      Whole;
    ReplicaSet                 "apps"                       "v1"    "replicasets"              Ns      Whole;
    StatefulSet                "apps"                       "v1"    "statefulsets"             Ns      Meta;
    DaemonSet                  "apps"                       "v1"    "daemonsets"               Ns      Meta;
    ControllerRevision         "apps"                       "v1"    "controllerrevisions"      Ns      Meta;
    Job                        "batch"                      "v1"    "jobs"                     Ns      Meta;
    CronJob                    "batch"                      "v1"    "cronjobs"                 Ns      Meta;
    HorizontalPodAutoscaler    "autoscaling"                "v2"    "horizontalpodautoscalers" Ns      Meta;
    PodDisruptionBudget        "policy"                     "v1"    "poddisruptionbudgets"     Ns      Meta;
    EndpointSlice              "discovery.k8s.io"           "v1"    "endpointslices"           Ns      Whole;
    Ingress                    "networking.k8s.io"          "v1"    "ingresses"                Ns      Meta;
    NetworkPolicy              "networking.k8s.io"          "v1"    "networkpolicies"          Ns      Meta;
    Role                       "rbac.authorization.k8s.io"  "v1"    "roles"                    Ns      Meta;
    RoleBinding                "rbac.authorization.k8s.io"  "v1"    "rolebindings"             Ns      Meta;
    ClusterRole                "rbac.authorization.k8s.io"  "v1"    "clusterroles"             Cluster Meta;
    ClusterRoleBinding         "rbac.authorization.k8s.io"  "v1"    "clusterrolebindings"      Cluster Meta;
    Lease                      "coordination.k8s.io"        "v1"    "leases"                   Ns      Nothing;
}

impl Kind {
    /// Position in [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(self) -> String {
        if self.group().is_empty() { self.version().to_owned() } else { format!("{}/{}", self.group(), self.version()) }
    }

    /// The kind that an owner reference or an object names. The version is not compared: two versions are the same object.
    pub fn of(api_version: &str, word: &str) -> Option<Kind> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Kind::ALL.iter().copied().find(|k| k.word() == word && k.group() == group)
    }

    /// The kinds whose objects the informers follow.
    pub fn watched() -> impl Iterator<Item = Kind> {
        Kind::ALL.iter().copied().filter(|k| k.keep() != Keep::Nothing)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group().is_empty() { f.write_str(self.plural()) } else { write!(f, "{}.{}", self.plural(), self.group()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_its_own_index() {
        for (i, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(kind.index(), i);
            assert_eq!(Kind::of(&kind.api_version(), kind.word()), Some(*kind));
        }
        assert_eq!(Kind::of("example.com/v1", "Pod"), None, "a kind of another group is another kind");
        assert_eq!(Kind::of("apps/v1beta1", "Deployment"), Some(Kind::Deployment));
    }
}
