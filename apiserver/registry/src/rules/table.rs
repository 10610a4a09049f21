//! Which rules belong to which kind, and what kinds are stored as.

use kontiki_base::object::Gvk;

use super::{DefaultGc, Generation, PLAIN, PLAIN_RULES, Rules, WITH_SPEC, convert, event, namespace, node, pod, service, workload};
use crate::validate::names::NameRule;

/// Group, kind, rules. A kind that is not named here is [`PLAIN`].
static RULES: &[(&str, &str, Rules)] =
    &[("", "Namespace", namespace::RULES), ("", "Node", node::RULES), ("", "Pod", pod::RULES), ("", "Service", service::RULES)];

/// The rules of a kind.
pub fn rules_of(gvk: &Gvk) -> &'static Rules {
    let found = RULES.iter().find(|(g, k, _)| *g == gvk.group && *k == gvk.kind);
    found.map_or(&PLAIN_RULES, |(_, _, r)| r)
}

/// What a kind is stored as: itself, but for the kinds that are served in several forms.
pub fn stored_as(gvk: &Gvk) -> Gvk {
    let of = |group: &str, version: &str| Gvk { group: group.into(), version: version.into(), kind: gvk.kind.clone() };
    match (gvk.group.as_str(), gvk.version.as_str(), gvk.kind.as_str()) {
        ("events.k8s.io", _, "Event") => of("", "v1"),
        ("autoscaling", _, "HorizontalPodAutoscaler") => of("autoscaling", "v2"),
        _ => gvk.clone(),
    }
}
