//! The targets of an autoscaler, in either version of its API.

use serde_json::{Value, json};

use super::format::{NONE, UNKNOWN, UNSET, age, int, name, plain_or, quantity};
use super::{AGE, NAME, Printer, row, text};
use crate::val::{at, list_at, str_at};

pub(super) const HPA: Printer = Printer {
    columns: &[NAME, text("Reference"), text("Targets"), text("MinPods"), text("MaxPods"), text("Replicas"), AGE],
    cells: |o, now| {
        let target = at(o, &["spec", "scaleTargetRef"]);
        row![
            name(o),
            format!("{}/{}", str_at(target, &["kind"]), str_at(target, &["name"])),
            targets(o),
            plain_or(at(o, &["spec", "minReplicas"]), UNSET),
            int(o, &["spec", "maxReplicas"]),
            int(o, &["status", "currentReplicas"]),
            age(o, now),
        ]
    },
};

fn targets(o: &Value) -> String {
    let (specs, statuses) = match at(o, &["spec", "targetCPUUtilizationPercentage"]) {
        Value::Null => (list_at(o, &["spec", "metrics"]).to_vec(), list_at(o, &["status", "currentMetrics"]).to_vec()),
        percent => cpu_only(percent, at(o, &["status", "currentCPUUtilizationPercentage"])),
    };
    if specs.is_empty() {
        return NONE.into();
    }
    let texts: Vec<String> = specs.iter().enumerate().map(|(i, spec)| metric(spec, statuses.get(i).unwrap_or(&Value::Null))).collect();
    let shown = texts.iter().take(2).cloned().collect::<Vec<_>>().join(", ");
    if texts.len() > 2 { format!("{shown} + {} more...", texts.len() - 2) } else { shown }
}

/// `autoscaling/v1` knows one metric.
fn cpu_only(percent: &Value, current: &Value) -> (Vec<Value>, Vec<Value>) {
    let spec = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": percent}}});
    let status = json!({"type": "Resource", "resource": {"current": {"averageUtilization": current}}});
    (vec![spec], vec![status])
}

fn metric(spec: &Value, status: &Value) -> String {
    let (source, of_resource) = match str_at(spec, &["type"]) {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".into(),
    };
    let target = at(spec, &[source, "target"]);
    let current = at(status, &[source, "current"]);
    let value = |v: &Value| if v.is_null() { UNKNOWN.into() } else { quantity(v) };
    let average = at(target, &["averageValue"]);
    if of_resource {
        let resource = str_at(spec, &[source, "name"]);
        if !average.is_null() {
            return format!("{resource}: {}/{}", value(at(current, &["averageValue"])), quantity(average));
        }
        let percent = |v: &Value, none: &str| v.as_i64().map_or_else(|| none.to_owned(), |n| format!("{n}%"));
        let now = percent(at(current, &["averageUtilization"]), UNKNOWN);
        return format!("{resource}: {now}/{}", percent(at(target, &["averageUtilization"]), "<auto>"));
    }
    match (source, average) {
        ("pods", _) => format!("{}/{}", value(at(current, &["averageValue"])), quantity(average)),
        (_, Value::Null) => format!("{}/{}", value(at(current, &["value"])), quantity(at(target, &["value"]))),
        _ => format!("{}/{} (avg)", value(at(current, &["averageValue"])), quantity(average)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_of_metrics() {
        let o = json!({
            "spec": {"metrics": [
                {"type": "External", "external": {"target": {"averageValue": "1"}}},
                {"type": "Object", "object": {"target": {"value": "10"}}},
                {"type": "Pods", "pods": {"target": {"averageValue": "3"}}},
            ]},
            "status": {"currentMetrics": [{"external": {"current": {"averageValue": "2"}}}, {"object": {"current": {"value": "500m"}}}]},
        });
        assert_eq!(targets(&o), "2/1 (avg), 500m/10 + 1 more...");
        assert_eq!(targets(&json!({"spec": {"metrics": [{"type": "X"}]}})), "<unknown type>");
        assert_eq!(targets(&json!({})), NONE);
    }
}
