//! K2: when a pod is bound to a node, the requests of all living pods there fit what the node offers, and no two share a host port.
//!
//! Judged at bindings: what a node offers may shrink later without anybody's fault.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::super::{Outcome, Tally, Violation};
use super::{full_name, list, number, steps, terminal, text};
use crate::history::History;

/// A quantity in thousandths: `100m`, `2`, `1Gi`, `1e3`. What cannot be read is `None`.
pub fn quantity(value: &Value) -> Option<i128> {
    let owned;
    let text = match value {
        Value::String(text) => text.as_str(),
        other => {
            owned = other.to_string();
            &owned
        }
    };
    let digits = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor: i128 = match suffix {
        "" => 1_000,
        "m" => 1,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        other => 1_000 * 10_i128.pow(other.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    Some(whole * factor + fraction * factor / scale)
}

/// What a pod asks for: the sum of its containers, or its largest init container, with its overhead.
fn requests(pod: &Value) -> BTreeMap<String, i128> {
    let mut sum: BTreeMap<String, i128> = BTreeMap::new();
    let mut add = |requests: Option<&Value>, largest: bool| {
        for (name, amount) in requests.and_then(Value::as_object).into_iter().flatten() {
            let amount = quantity(amount).unwrap_or(0);
            let entry = sum.entry(name.clone()).or_default();
            *entry = if largest { (*entry).max(amount) } else { *entry + amount };
        }
    };
    list(pod, "/spec/containers").iter().for_each(|c| add(c.pointer("/resources/requests"), false));
    list(pod, "/spec/initContainers").iter().for_each(|c| add(c.pointer("/resources/requests"), true));
    add(pod.pointer("/spec/overhead"), false);
    sum.insert("pods".into(), 1_000);
    sum
}

fn host_ports(pod: &Value) -> Vec<(i64, String, String)> {
    let ports = list(pod, "/spec/containers").iter().flat_map(|c| list(c, "/ports"));
    ports
        .filter_map(|port| {
            let number = number(port, "/hostPort").filter(|n| *n > 0)?;
            Some((number, text(port, "/protocol").to_owned(), text(port, "/hostIP").to_owned()))
        })
        .collect()
}

/// The check `K2`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let mut nodes: BTreeMap<String, Rc<Value>> = BTreeMap::new();
    let mut pods: BTreeMap<&str, Rc<Value>> = BTreeMap::new();
    let all = steps(history, "/registry/");
    for step in &all {
        if let Some(name) = step.key.strip_prefix("/registry/minions/") {
            match &step.after {
                Some(node) => nodes.insert(name.to_owned(), Rc::clone(node)),
                None => nodes.remove(name),
            };
        } else if step.key.starts_with("/registry/pods/") {
            let Some(pod) = step.after.as_ref().filter(|pod| !terminal(pod)) else {
                pods.remove(step.key);
                continue;
            };
            let node = text(pod, "/spec/nodeName").to_owned();
            let newly = pods.insert(step.key, Rc::clone(pod)).is_none_or(|old| text(&old, "/spec/nodeName") != node);
            if newly && !node.is_empty() {
                tally.saw("bindings");
                fits(&node, nodes.get(&node).map(Rc::as_ref), &pods, step.revision, pod, &mut tally);
            }
        }
    }
    tally.finish("K2", &["bindings", "bindings to nodes that say what they offer"])
}

fn fits(name: &str, node: Option<&Value>, pods: &BTreeMap<&str, Rc<Value>>, revision: i64, pod: &Value, tally: &mut Tally) {
    let here: Vec<&Rc<Value>> = pods.values().filter(|pod| text(pod, "/spec/nodeName") == name).collect();
    let mut ports = BTreeMap::new();
    for other in &here {
        for port in host_ports(other) {
            if let Some(first) = ports.insert(port.clone(), full_name(other)) {
                let detail = format!("pods {first} and {} share host port {port:?} of {name} at {revision}", full_name(other));
                tally.fail(Violation::new("K2", detail).revision(revision));
            }
        }
    }
    let Some(offers) = node.and_then(|n| n.pointer("/status/allocatable")).and_then(Value::as_object) else { return };
    tally.saw("bindings to nodes that say what they offer");
    for (what, amount) in offers {
        let Some(offered) = quantity(amount) else { continue };
        let used: i128 = here.iter().filter_map(|pod| requests(pod).get(what).copied()).sum();
        if used > offered && requests(pod).get(what).is_some_and(|n| *n > 0) {
            let detail = format!(
                "with pod {} at {revision}, node {name} has {} of {what} taken and offers {amount}",
                full_name(pod),
                used as f64 / 1_000.0
            );
            tally.fail(Violation::new("K2", detail).revision(revision));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Verdict;
    use super::super::tests::{pod, put};
    use super::*;

    #[test]
    fn quantities_are_thousandths() {
        let cases = [("100m", 100), ("2", 2_000), ("1.5", 1_500), ("1Ki", 1_024_000), ("2Gi", 2_147_483_648_000), ("1e3", 1_000_000)];
        for (text, value) in cases {
            assert_eq!(quantity(&json!(text)), Some(value), "{text}");
        }
        assert_eq!(quantity(&json!(3)), Some(3_000));
        assert_eq!(quantity(&json!("x")), None);
    }

    fn verdict(requests: &[&str], ports: &[i64]) -> Verdict {
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "pods": "3"}}});
        let mut changes = vec![put(2, "minions", &node)];
        for (i, request) in requests.iter().enumerate() {
            let mut one = pod(&format!("p{i}"), "n");
            let port = ports.get(i).copied().unwrap_or(0);
            one["spec"]["containers"] = json!([{"resources": {"requests": {"cpu": request}}, "ports": [{"hostPort": port}]}]);
            changes.push(put(3 + i as i64, "pods", &one));
        }
        judge(&History { changes, ..History::default() }).verdict
    }

    #[test]
    fn nodes_are_not_overcommitted() {
        assert_eq!(verdict(&["500m", "500m"], &[80, 81]), Verdict::Pass);
        assert!(matches!(verdict(&["500m", "501m"], &[]), Verdict::Fail(_)));
        assert!(matches!(verdict(&["1m", "1m", "1m", "1m"], &[]), Verdict::Fail(_)), "too many pods");
        assert!(matches!(verdict(&["1m", "1m"], &[80, 80]), Verdict::Fail(_)));
        assert!(matches!(verdict(&[], &[]), Verdict::Vacuous(_)));
    }
}
