//! The URL grammar: what a path names, and the verb that a method on it means.

use std::borrow::Cow;

/// What the path of a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Something under `/api/v1/…` or `/apis/{group}/{version}/…`.
    Resource(ResourcePath),
    /// Anything else, as it was asked for, without a trailing slash.
    Other(String),
}

/// A path that names objects by the words of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    /// API group, empty for the core group.
    pub(crate) group: String,
    /// Version.
    pub(crate) version: String,
    /// Namespace, empty if the path has none. For a namespace itself: its own name, as authorization wants it.
    pub(crate) namespace: String,
    /// Plural.
    pub(crate) plural: String,
    /// Object name, empty for a collection.
    pub(crate) name: String,
    /// Subresource, empty for none.
    pub(crate) sub: String,
    /// What follows the subresource (`proxy/…`).
    pub(crate) rest: Vec<String>,
    /// The old `/watch/` prefix was used: always a watch.
    pub(crate) legacy_watch: bool,
}

impl ResourcePath {
    /// The namespace of the object, empty when the object is the namespace itself.
    pub(crate) fn object_namespace(&self) -> &str {
        if self.plural == "namespaces" && self.group.is_empty() { "" } else { &self.namespace }
    }
}

/// Reads a path.
pub(crate) fn parse(path: &str) -> Path {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let other = || Path::Other(if trimmed.is_empty() { "/".into() } else { trimmed.into() });
    let Some(body) = trimmed.strip_prefix('/') else { return other() };
    let raw: Vec<&str> = body.split('/').collect();
    if raw.iter().any(|s| s.is_empty()) {
        return Path::Other(path.into());
    }
    let Some(segments) = raw.iter().map(|s| decode(s).map(Cow::into_owned)).collect::<Option<Vec<_>>>() else { return other() };
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => resource("", version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => resource(group, version, rest),
        _ => other(),
    }
}

fn resource(group: &str, version: &str, words: &[&str]) -> Path {
    let mut out = ResourcePath { group: group.into(), version: version.into(), ..ResourcePath::default() };
    let mut words = words;
    if words.len() > 1 && words[0] == "watch" {
        out.legacy_watch = true;
        words = &words[1..];
    }
    match words {
        ["namespaces", name] => fill(&mut out, name, &["namespaces", name]),
        ["namespaces", name, sub @ ("status" | "finalize"), rest @ ..] => {
            let all: Vec<&str> = ["namespaces", name, sub].into_iter().chain(rest.iter().copied()).collect();
            fill(&mut out, name, &all);
        }
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => fill(&mut out, namespace, rest),
        rest => fill(&mut out, "", rest),
    }
    Path::Resource(out)
}

fn fill(out: &mut ResourcePath, namespace: &str, words: &[&str]) {
    let word = |i: usize| words.get(i).map(|w| (*w).to_owned()).unwrap_or_default();
    out.namespace = namespace.into();
    out.plural = word(0);
    out.name = word(1);
    out.sub = word(2);
    out.rest = words.iter().skip(3).map(|w| (*w).to_owned()).collect();
}

/// Undoes percent-encoding; `None` if it is malformed, or hides a slash, or is not UTF-8.
pub(crate) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let bytes = percent(text.as_bytes())?;
    let decoded = String::from_utf8(bytes).ok()?;
    (!decoded.contains('/')).then_some(Cow::Owned(decoded))
}

/// Bytes of a percent-encoded text; `None` if it is malformed.
pub(crate) fn percent(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'%' {
            let hex = text.get(at + 1..at + 3)?;
            let digits = std::str::from_utf8(hex).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    Some(out)
}

/// The verb of a request on a resource, as authorization and metrics name it.
pub(crate) fn verb(method: &http::Method, path: &ResourcePath, watch: bool) -> &'static str {
    let named = !path.name.is_empty();
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        "GET" | "HEAD" if path.legacy_watch => "watch",
        "GET" | "HEAD" if named => "get",
        "GET" | "HEAD" if watch => "watch",
        "GET" | "HEAD" => "list",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn res(path: &str) -> ResourcePath {
        match parse(path) {
            Path::Resource(r) => r,
            Path::Other(p) => panic!("{path} is {p}"),
        }
    }

    #[test]
    fn resources_are_found_wherever_they_stand() {
        //   path                                               group  version namespace plural  name  sub  legacy
        let table = [
            ("/api/v1/pods", "", "v1", "", "pods", "", "", false),
            ("/api/v1/pods/", "", "v1", "", "pods", "", "", false),
            ("/api/v1/namespaces", "", "v1", "", "namespaces", "", "", false),
            ("/api/v1/namespaces/a", "", "v1", "a", "namespaces", "a", "", false),
            ("/api/v1/namespaces/a/finalize", "", "v1", "a", "namespaces", "a", "finalize", false),
            ("/api/v1/namespaces/a/pods", "", "v1", "a", "pods", "", "", false),
            ("/api/v1/namespaces/a/pods/p/log", "", "v1", "a", "pods", "p", "log", false),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", "apps", "v1", "a", "deployments", "d", "scale", false),
            ("/api/v1/watch/namespaces/a/pods", "", "v1", "a", "pods", "", "", true),
            ("/apis/apps/v1/watch/deployments", "apps", "v1", "", "deployments", "", "", true),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io",
                "v1",
                "",
                "clusterroles",
                "system:node",
                "",
                false,
            ),
        ];
        for (path, group, version, namespace, plural, name, sub, legacy) in table {
            let r = res(path);
            let got = (&*r.group, &*r.version, &*r.namespace, &*r.plural, &*r.name, &*r.sub, r.legacy_watch);
            assert_eq!(got, (group, version, namespace, plural, name, sub, legacy), "{path}");
        }
        assert_eq!(res("/api/v1/namespaces/a").object_namespace(), "");
        assert_eq!(res("/api/v1/namespaces/a/services/s/proxy/x/y").rest, ["x", "y"]);
    }

    #[test]
    fn other_paths_stay_text() {
        for path in ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "//api/v1/pods", "/api/v1/pods/a%2Fb"] {
            assert!(matches!(parse(path), Path::Other(_)), "{path}");
        }
        assert_eq!(parse("/apis/"), Path::Other("/apis".into()));
    }

    #[test]
    fn verbs_follow_the_table() {
        let verb_of = |m: &str, p: &str, w| verb(&m.parse().unwrap(), &res(p), w);
        assert_eq!(verb_of("GET", "/api/v1/pods", false), "list");
        assert_eq!(verb_of("GET", "/api/v1/pods", true), "watch");
        assert_eq!(verb_of("GET", "/api/v1/namespaces/a/pods/p", true), "get");
        assert_eq!(verb_of("GET", "/api/v1/watch/pods", false), "watch");
        assert_eq!(verb_of("DELETE", "/api/v1/namespaces/a/pods", false), "deletecollection");
        assert_eq!(verb_of("DELETE", "/api/v1/namespaces/a/pods/p", false), "delete");
        assert_eq!(verb_of("POST", "/api/v1/namespaces/a/pods/p/eviction", false), "create");
    }
}
