//! Kinds that are served in two forms and stored in one.

use serde_json::{Map, Value, json};

use crate::val::{at, list_at, map_mut, put, take};

/// Names of fields of an Event: `events.k8s.io/v1`, core.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

/// An `events.k8s.io/v1` Event as a core one.
pub fn event_to_core(v: Value) -> Value {
    rename(v, "v1", |(new, core)| (new, core))
}

/// A core Event as one of `events.k8s.io/v1`.
pub fn event_from_core(v: Value) -> Value {
    rename(v, "events.k8s.io/v1", |(new, core)| (core, new))
}

fn rename(v: Value, api: &str, direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str)) -> Value {
    let Value::Object(mut m) = v else { return v };
    let mut out = Map::new();
    for pair in EVENT_FIELDS {
        let (from, to) = direction(*pair);
        if let Some(value) = m.remove(from) {
            out.insert(to.into(), value);
        }
    }
    out.extend(m);
    out.insert("apiVersion".into(), json!(api));
    Value::Object(out)
}

/// Annotations in which `autoscaling/v1` keeps what it has no fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu_utilization(m: &Value) -> bool {
    m["type"] == "Resource" && m["resource"]["name"] == "cpu" && !m["resource"]["target"]["averageUtilization"].is_null()
}

/// An `autoscaling/v1` HorizontalPodAutoscaler as one of v2.
pub fn autoscaler_to_v2(mut v: Value) -> Value {
    put(&mut v, &["apiVersion"], json!("autoscaling/v2"));
    let mut metrics = annotation(&mut v, METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(percent) = take(&mut v, &["spec", "targetCPUUtilizationPercentage"]) {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        put(&mut v, &["spec", "metrics"], json!(metrics));
    }
    if let Some(behavior) = annotation(&mut v, BEHAVIOR) {
        put(&mut v, &["spec", "behavior"], behavior);
    }
    let mut current = annotation(&mut v, CURRENT_METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(percent) = take(&mut v, &["status", "currentCPUUtilizationPercentage"]) {
        let value = json!({"averageUtilization": percent});
        current.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": value}}));
    }
    if !current.is_empty() {
        put(&mut v, &["status", "currentMetrics"], json!(current));
    }
    if let Some(conditions) = annotation(&mut v, CONDITIONS) {
        put(&mut v, &["status", "conditions"], conditions);
    }
    v
}

/// An `autoscaling/v2` HorizontalPodAutoscaler as one of v1.
pub fn autoscaler_from_v2(mut v: Value) -> Value {
    put(&mut v, &["apiVersion"], json!("autoscaling/v1"));
    let metrics = list_at(&v, &["spec", "metrics"]).to_vec();
    take(&mut v, &["spec", "metrics"]);
    let cpu = metrics.iter().position(is_cpu_utilization);
    if let Some(i) = cpu {
        let percent = at(&metrics[i], &["resource", "target", "averageUtilization"]).clone();
        put(&mut v, &["spec", "targetCPUUtilizationPercentage"], percent);
    }
    let rest: Vec<&Value> = metrics.iter().enumerate().filter(|(i, _)| Some(*i) != cpu).map(|(_, m)| m).collect();
    annotate(&mut v, METRICS, json!(rest));
    let behavior = take(&mut v, &["spec", "behavior"]).unwrap_or_default();
    annotate(&mut v, BEHAVIOR, behavior);
    let current = list_at(&v, &["status", "currentMetrics"]).to_vec();
    take(&mut v, &["status", "currentMetrics"]);
    let is_current_cpu = |m: &&Value| m["resource"]["name"] == "cpu" && !m["resource"]["current"]["averageUtilization"].is_null();
    if let Some(m) = current.iter().find(is_current_cpu) {
        let percent = m["resource"]["current"]["averageUtilization"].clone();
        put(&mut v, &["status", "currentCPUUtilizationPercentage"], percent);
    }
    let rest: Vec<&Value> = current.iter().filter(|m| !is_current_cpu(m)).collect();
    annotate(&mut v, CURRENT_METRICS, json!(rest));
    let conditions = take(&mut v, &["status", "conditions"]).unwrap_or_default();
    annotate(&mut v, CONDITIONS, conditions);
    v
}

fn annotation(v: &mut Value, key: &str) -> Option<Value> {
    let text = take(v, &["metadata", "annotations", key])?;
    if v["metadata"]["annotations"].as_object().is_some_and(Map::is_empty) {
        take(v, &["metadata", "annotations"]);
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn annotate(v: &mut Value, key: &str, value: Value) {
    if !crate::val::is_empty(&value) {
        map_mut(v, &["metadata", "annotations"]).insert(key.into(), json!(value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::val::str_at;

    #[test]
    fn events_go_there_and_back() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
            "message": "m", "source": {"component": "c"}, "count": 2, "reportingComponent": "r", "reason": "x", "type": "Normal"});
        let new = event_from_core(core.clone());
        assert_eq!((str_at(&new, &["apiVersion"]), str_at(&new, &["note"])), ("events.k8s.io/v1", "m"));
        assert_eq!(new["regarding"]["kind"], "Pod");
        assert_eq!(event_to_core(new), core);
    }

    #[test]
    fn autoscalers_go_there_and_back() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}});
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [cpu, memory], "behavior": {"scaleUp": {"selectPolicy": "Max"}}},
            "status": {"conditions": [{"type": "AbleToScale"}]}});
        let v1 = autoscaler_from_v2(v2.clone());
        assert_eq!(v1["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}));
        assert_eq!(v1["metadata"]["annotations"].as_object().unwrap().len(), 3);
        assert_eq!(autoscaler_to_v2(v1), v2);
    }
}
