//! Who may do what. For now the rules are wired in: full RBAC will stand behind the same function.
//!
//! | group | may |
//! |---|---|
//! | `system:masters` | everything |
//! | `system:nodes` | what node agents need |
//! | `system:authenticated` | discovery, version, health, reviews of oneself |
//! | `system:unauthenticated` | version, health |

use kontiki_base::Code;

use crate::row::Row;
use crate::status::{Details, Status};
use crate::val::go_quote;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name: `system:node:n1`.
    pub name: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Uid; may be empty.
    pub uid: String,
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], uid: String::new() }
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is, if it is one.
    pub fn node(&self) -> Option<&str> {
        if self.in_group("system:nodes") { self.name.strip_prefix("system:node:").filter(|n| !n.is_empty()) } else { None }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A resource.
    Resource {
        /// API group.
        group: &'a str,
        /// Plural name.
        resource: &'a str,
        /// Subresource; may be empty.
        subresource: &'a str,
        /// Namespace; empty for all of them and for kinds without.
        namespace: &'a str,
        /// Name; empty for collections.
        name: &'a str,
    },
    /// A path that is no resource.
    Path(&'a str),
}

impl<'a> Target<'a> {
    /// A resource by its row.
    pub fn row(row: &'a Row, subresource: &'a str, namespace: &'a str, name: &'a str) -> Self {
        Self::Resource { group: &row.group, resource: &row.plural, subresource, namespace, name }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No rule says yes. The text, which may be empty, says why more closely.
    Deny(String),
}

/// What node agents need: verbs, group, resources (`*` stands for every subresource).
const NODE_RULES: &[(&[&str], &str, &[&str])] = &[
    (&["create", "get", "list", "watch", "update", "patch", "delete"], "", &["nodes"]),
    (&["get", "update", "patch"], "", &["nodes/status"]),
    (&["get", "list", "watch", "create", "delete"], "", &["pods"]),
    (&["get", "update", "patch"], "", &["pods/status"]),
    (&["create"], "", &["pods/eviction", "serviceaccounts/token"]),
    (&["get", "list", "watch"], "", &["services", "endpoints", "namespaces", "persistentvolumes", "persistentvolumeclaims"]),
    (&["get", "list", "watch"], "", &["secrets", "configmaps", "serviceaccounts"]),
    (&["update", "patch"], "", &["persistentvolumeclaims/status"]),
    (&["create", "update", "patch"], "", &["events"]),
    (&["create", "update", "patch"], "events.k8s.io", &["events"]),
    (&["get", "create", "update", "patch", "delete", "list", "watch"], "coordination.k8s.io", &["leases"]),
    (&["get", "list", "watch"], "discovery.k8s.io", &["endpointslices"]),
    (&["get", "list", "watch"], "node.k8s.io", &["runtimeclasses"]),
    (&["get", "list", "watch"], "storage.k8s.io", &["csidrivers", "volumeattachments"]),
    (&["get", "create", "update", "patch", "delete", "list", "watch"], "storage.k8s.io", &["csinodes"]),
    (&["get", "list", "watch", "create"], "certificates.k8s.io", &["certificatesigningrequests"]),
    (&["create"], "authentication.k8s.io", &["tokenreviews"]),
    (&["create"], "authorization.k8s.io", &["subjectaccessreviews", "localsubjectaccessreviews"]),
];

/// Paths that everybody may read.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// Paths that whoever has a name may read; those that end with a star are prefixes.
const DISCOVERY_PATHS: &[&str] =
    &["/", "/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/healthz/*", "/livez/*", "/readyz/*"];
/// Reviews of oneself.
const SELF_REVIEWS: &[(&str, &str)] = &[
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];

/// Decides a request. `verb` is the API verb, or the HTTP method in lower case for a path.
pub fn authorize(user: &User, verb: &str, target: Target<'_>) -> Decision {
    if user.in_group("system:masters") {
        return Decision::Allow;
    }
    let named = user.in_group("system:authenticated");
    let allowed = match target {
        Target::Path(path) => {
            let reads = matches!(verb, "get" | "head");
            reads && (matches_path(PUBLIC_PATHS, path) || (named && matches_path(DISCOVERY_PATHS, path)))
        }
        Target::Resource { group, resource, subresource, .. } => {
            let own_review = named && verb == "create" && subresource.is_empty() && SELF_REVIEWS.contains(&(group, resource));
            own_review || user.node().is_some_and(|node| node_may(node, verb, target))
        }
    };
    if allowed { Decision::Allow } else { Decision::Deny(String::new()) }
}

fn matches_path(patterns: &[&str], path: &str) -> bool {
    patterns.iter().any(|p| p.strip_suffix('*').map_or(*p == path, |prefix| path.starts_with(prefix)))
}

/// A node may do what the table says, and to nodes, leases and storage nodes only where they are its own.
fn node_may(node: &str, verb: &str, target: Target<'_>) -> bool {
    let Target::Resource { group, resource, subresource, namespace, name } = target else { return false };
    let full = if subresource.is_empty() { resource.to_string() } else { format!("{resource}/{subresource}") };
    if !NODE_RULES.iter().any(|(verbs, g, resources)| *g == group && verbs.contains(&verb) && resources.contains(&full.as_str())) {
        return false;
    }
    let reads = matches!(verb, "get" | "list" | "watch");
    // A creation has no name in its path: admission looks at the object.
    let own = name == node || (verb == "create" && name.is_empty());
    match (group, resource) {
        ("", "nodes") => reads || own,
        ("coordination.k8s.io", "leases") => namespace == "kube-node-lease" && (own || matches!(verb, "list" | "watch")),
        ("storage.k8s.io", "csinodes") => reads || own,
        _ => true,
    }
}

/// The 403 for a request that was denied.
pub fn forbidden(user: &User, verb: &str, target: Target<'_>, why: &str) -> Status {
    let who = go_quote(&user.name);
    let tail = if why.is_empty() { String::new() } else { format!(": {why}") };
    match target {
        Target::Path(path) => {
            let message = format!("forbidden: User {who} cannot {verb} path {}{tail}", go_quote(path));
            Status::new(Code::Forbidden, message).with_details(Details::default())
        }
        Target::Resource { group, resource, subresource, namespace, name } => {
            let group_resource = if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") };
            let what = if name.is_empty() { group_resource } else { format!("{group_resource} {}", go_quote(name)) };
            let full = if subresource.is_empty() { resource.to_string() } else { format!("{resource}/{subresource}") };
            let scope =
                if namespace.is_empty() { "at the cluster scope".into() } else { format!("in the namespace {}", go_quote(namespace)) };
            let message = format!(
                "{what} is forbidden: User {who} cannot {verb} resource {} in API group {} {scope}{tail}",
                go_quote(&full),
                go_quote(group)
            );
            let details = Details { name: name.into(), group: group.into(), kind: resource.into(), ..Details::default() };
            Status::new(Code::Forbidden, message).with_details(details)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, groups: &[&str]) -> User {
        User { name: name.into(), groups: groups.iter().map(|g| (*g).to_string()).collect(), uid: String::new() }
    }

    fn may(user: &User, verb: &str, target: Target<'_>) -> bool {
        authorize(user, verb, target) == Decision::Allow
    }

    fn resource<'a>(group: &'a str, resource: &'a str, subresource: &'a str, namespace: &'a str, name: &'a str) -> Target<'a> {
        Target::Resource { group, resource, subresource, namespace, name }
    }

    #[test]
    fn who_may_what() {
        let admin = user("a", &["system:masters"]);
        let bob = user("bob", &["system:authenticated"]);
        let n1 = user("system:node:n1", &["system:nodes", "system:authenticated"]);
        let nobody = User::anonymous();
        let pods = resource("", "pods", "", "ns", "");
        let table: &[(&User, &str, Target<'_>, bool)] = &[
            (&admin, "delete", resource("", "nodes", "", "", "x"), true),
            (&bob, "list", pods, false),
            (&bob, "get", Target::Path("/apis/apps/v1"), true),
            (&bob, "get", Target::Path("/metrics"), false),
            (&bob, "create", resource("authorization.k8s.io", "selfsubjectaccessreviews", "", "", ""), true),
            (&nobody, "get", Target::Path("/healthz"), true),
            (&nobody, "get", Target::Path("/version"), true),
            (&nobody, "get", Target::Path("/api"), false),
            (&nobody, "post", Target::Path("/healthz"), false),
            (&n1, "list", pods, true),
            (&n1, "create", resource("", "pods", "binding", "ns", "p"), false),
            (&n1, "patch", resource("", "nodes", "status", "", "n1"), true),
            (&n1, "patch", resource("", "nodes", "status", "", "n2"), false),
            (&n1, "update", resource("coordination.k8s.io", "leases", "", "kube-node-lease", "n1"), true),
            (&n1, "update", resource("coordination.k8s.io", "leases", "", "kube-system", "n1"), false),
            (&n1, "delete", resource("apps", "deployments", "", "ns", "d"), false),
            (&user("system:node:n1", &["system:authenticated"]), "list", pods, false),
        ];
        for (user, verb, target, yes) in table {
            assert_eq!(may(user, verb, *target), *yes, "{} {verb} {target:?}", user.name);
        }
    }

    #[test]
    fn refusals_name_who_and_what() {
        let bob = user("bob", &[]);
        for (verb, target, text) in [
            (
                "list",
                resource("", "pods", "", "default", ""),
                "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
            ),
            (
                "get",
                resource("apps", "deployments", "", "d", "x"),
                "deployments.apps \"x\" is forbidden: User \"bob\" cannot get resource \"deployments\" in API group \"apps\" in the namespace \"d\"",
            ),
            (
                "create",
                resource("", "pods", "eviction", "d", "x"),
                "pods \"x\" is forbidden: User \"bob\" cannot create resource \"pods/eviction\" in API group \"\" in the namespace \"d\"",
            ),
            (
                "get",
                resource("", "nodes", "", "", "n"),
                "nodes \"n\" is forbidden: User \"bob\" cannot get resource \"nodes\" in API group \"\" at the cluster scope",
            ),
            ("get", Target::Path("/metrics"), "forbidden: User \"bob\" cannot get path \"/metrics\""),
        ] {
            let s = forbidden(&bob, verb, target, "");
            assert_eq!((s.message.as_str(), s.http), (text, 403));
        }
    }
}
