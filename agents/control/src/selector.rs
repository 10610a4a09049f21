//! Label selectors and node selectors, as Kubernetes' `labels.Selector` and `component-helpers/nodeaffinity` read them.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::meta::Labels;

/// Whether a selector selects everything: it has no requirement.
pub fn is_everything(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(Labels::is_empty) && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether `labels` satisfy all requirements of `selector`. A selector with an operator that does not exist selects nothing.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let wanted = selector.match_labels.iter().flatten();
    let value_of = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    wanted.into_iter().all(|(k, v)| value_of(k) == Some(v))
        && selector.match_expressions.iter().flatten().all(|r| requirement(r, value_of(&r.key)))
}

fn requirement(r: &LabelSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |v: &str| r.values.iter().flatten().any(|w| w == v);
    match r.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// Whether `labels` contain all of `wanted`: the selector of Services and replication controllers.
pub fn contains(labels: Option<&Labels>, wanted: &Labels) -> bool {
    wanted.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

/// Whether a node satisfies a node selector: any of its terms. A selector without terms selects nothing.
pub fn node_selector(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| node_term(term, node))
}

/// Whether a node satisfies a term: all of its expressions. A term without any selects nothing.
pub fn node_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions.iter().all(|r| node_requirement(r, labels.and_then(|l| l.get(&r.key)).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && node_requirement(r, node.metadata.name.as_deref()))
}

fn node_requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let listed = |v: &str| values.iter().any(|w| w == v);
    match r.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => {
            let numbers = value.and_then(|v| v.parse::<i64>().ok()).zip(values.first().and_then(|v| v.parse::<i64>().ok()));
            values.len() == 1 && numbers.is_some_and(|(have, bound)| if r.operator == "Gt" { have > bound } else { have < bound })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selector_table() {
        let l = labels(&[("app", "web"), ("tier", "front")]);
        let table = [
            (json!({}), true),
            (json!({ "matchLabels": { "app": "web" } }), true),
            (json!({ "matchLabels": { "app": "db" } }), false),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["a", "web"] }] }), true),
            (json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }), false),
            (json!({ "matchExpressions": [{ "key": "zone", "operator": "NotIn", "values": ["a"] }] }), true),
            (json!({ "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["front"] }] }), false),
            (json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] }), true),
            (json!({ "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] }), false),
            (json!({ "matchExpressions": [{ "key": "tier", "operator": "Near" }] }), false),
        ];
        for (selector, want) in table {
            assert_eq!(matches(&serde_json::from_value(selector.clone()).unwrap(), Some(&l)), want, "{selector}");
        }
        assert!(matches(&LabelSelector::default(), None));
    }

    #[test]
    fn node_terms_are_ored_and_expressions_anded() {
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": "n1", "labels": { "gen": "5", "zone": "a" } } })).unwrap();
        let table = [
            (json!([]), false),
            (json!([{}]), false),
            (json!([{ "matchExpressions": [{ "key": "gen", "operator": "Gt", "values": ["4"] }] }]), true),
            (json!([{ "matchExpressions": [{ "key": "gen", "operator": "Lt", "values": ["5"] }] }]), false),
            (json!([{ "matchExpressions": [{ "key": "zone", "operator": "Gt", "values": ["4"] }] }]), false),
            (json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }]), true),
            (
                json!([{ "matchExpressions": [{ "key": "zone", "operator": "Exists" }, { "key": "gen", "operator": "In", "values": ["6"] }] }]),
                false,
            ),
            (
                json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n2"] }] },
                    { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }]),
                true,
            ),
        ];
        for (terms, want) in table {
            let selector = serde_json::from_value(json!({ "nodeSelectorTerms": terms })).unwrap();
            assert_eq!(node_selector(&selector, &node), want, "{terms}");
        }
    }
}
