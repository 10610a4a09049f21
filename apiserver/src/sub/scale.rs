//! `scale`: the number of replicas of a workload, whichever kind it is.

use axum::body::Body;
use http::Response;
use kontiki_registry::field::{Errors, Path};
use kontiki_registry::patch::PatchType;
use kontiki_registry::row::{Row, Sub};
use kontiki_registry::status::Status;
use kontiki_registry::val;
use kontiki_registry::write_rules::Write;
use serde_json::{Map, Value, json};

use crate::core::Core;
use crate::error::Result;
use crate::negotiate;
use crate::rest::{Call, patch_of};
use crate::verbs::update::{Change, Update};
use crate::verbs::{WriteOptions, served};

pub(super) async fn serve(call: &mut Call, sub: &Sub) -> Result<Response<Body>> {
    let row = call.row.clone();
    if call.method == http::Method::GET {
        let object = call.core.get(&call.target(), call.query.revision()?).await?;
        return answer(call, &of(&Paths::of(&call.core, &row), &served(&row, object.value()))?);
    }
    let update = if call.method == http::Method::PUT { put(call, sub).await? } else { patch(call).await? };
    let (change, options) = update;
    let update = Update { target: call.target(), sub: None, write: Write::Patch, own: false, change };
    let done = call.core.update(&call.user, &update, &options).await?;
    answer(call, &of(&Paths::of(&call.core, &row), &done.object)?)
}

fn answer(call: &Call, scale: &Value) -> Result<Response<Body>> {
    let row = call.core.registry().resource("autoscaling", "v1", "horizontalpodautoscalers").unwrap_or_else(|| call.row.clone());
    call.answer_object(200, &row, scale)
}

async fn put(call: &mut Call, sub: &Sub) -> Result<(Box<Change<'static>>, WriteOptions)> {
    let (scale, options) = super::read_object(call, sub, "UpdateOptions").await?;
    let (name, paths) = (call.path.name.clone(), Paths::of(&call.core, &call.row));
    Ok((Box::new(move |live| apply(&paths, live, &scale, &name)), options))
}

async fn patch(call: &mut Call) -> Result<(Box<Change<'static>>, WriteOptions)> {
    let options = call.write_options("PatchOptions")?;
    let kind = PatchType::from_media_type(call.header("content-type")).ok_or_else(|| Status::unsupported_media(negotiate::MEDIA_TYPES))?;
    let bytes = call.read_body().await?;
    if kind == PatchType::ApplyYaml {
        return Err(Status::unimplemented("server-side apply of a scale"));
    }
    let (inner, _) = patch_of(&call.core, &scale_row(&call.row), kind, &bytes, &options, false, "")?;
    let (name, paths) = (call.path.name.clone(), Paths::of(&call.core, &call.row));
    let change = move |live: Option<&Value>| {
        let shown = live.map(|l| of(&paths, l)).transpose()?;
        let scale = inner(shown.as_ref())?;
        apply(&paths, live, &scale, &name)
    };
    Ok((Box::new(change), options))
}

/// A row that stands for Scale where a patch wants to know what it patches.
fn scale_row(row: &std::sync::Arc<Row>) -> std::sync::Arc<Row> {
    let mut scale = Row::clone(row);
    scale.group = "autoscaling".into();
    scale.version = "v1".into();
    scale.kind = "Scale".into();
    std::sync::Arc::new(scale)
}

/// The parent with the replicas of the scale; the scale's resource version and uid are preconditions.
fn apply(paths: &Paths, live: Option<&Value>, scale: &Value, name: &str) -> Result<Value> {
    let mut new = live.cloned().unwrap_or_default();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let mut errors = Errors::default();
        errors.invalid(&Path::new("spec.replicas"), replicas, "must be greater than or equal to 0");
        return Err(Status::invalid_kind("autoscaling", "Scale", name, &errors));
    }
    for field in ["resourceVersion", "uid"] {
        if scale["metadata"][field].as_str().is_some_and(|t| !t.is_empty()) {
            val::copy(&mut new, scale, &["metadata", field]);
        }
    }
    val::put(&mut new, &paths.spec.iter().map(String::as_str).collect::<Vec<_>>(), json!(replicas));
    Ok(new)
}

/// Where the numbers of a scale are in its parent.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    spec: Vec<String>,
    status: Vec<String>,
    /// Where a custom resource keeps its selector as text; a built-in kind has it as an object in `spec.selector`.
    selector: Option<Vec<String>>,
}

impl Paths {
    /// Those of a kind.
    pub(crate) fn of(core: &Core, row: &Row) -> Self {
        let split = |path: &str| path.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let custom = core.custom(row).and_then(|c| c.scale.clone());
        match custom {
            Some([spec, status, selector]) => Self { spec: split(&spec), status: split(&status), selector: Some(split(&selector)) },
            None => Self { spec: split("spec.replicas"), status: split("status.replicas"), selector: None },
        }
    }
}

fn look<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(object, |value, key| &value[key])
}

/// The Scale of a workload.
pub(crate) fn of(paths: &Paths, parent: &Value) -> Result<Value> {
    let meta = &parent["metadata"];
    let mut shown = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !meta[field].is_null() {
            shown.insert(field.into(), meta[field].clone());
        }
    }
    let mut status = json!({"replicas": look(parent, &paths.status).as_i64().unwrap_or(0)});
    let selector = match &paths.selector {
        None => selector_text(&parent["spec"]["selector"]),
        Some(path) if path.is_empty() => String::new(),
        Some(path) => look(parent, path).as_str().unwrap_or_default().to_owned(),
    };
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    let replicas = match look(parent, &paths.spec).as_i64() {
        None if paths.selector.is_some() => {
            return Err(Status::internal(&format!("the spec replicas field \".{}\" does not exist", paths.spec.join("."))));
        }
        found => found.unwrap_or(0),
    };
    Ok(json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": shown, "spec": {"replicas": replicas}, "status": status}))
}

/// A LabelSelector, or the plain map of a ReplicationController, as text.
fn selector_text(selector: &Value) -> String {
    let structured = selector["matchLabels"].is_object() || selector["matchExpressions"].is_array();
    let labels = if structured { &selector["matchLabels"] } else { selector };
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for e in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = e["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let text = match e["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort();
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_shown_as_text() {
        let selector = json!({"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "z", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&selector), "app=x,tier in (a,b),!z");
        assert_eq!(selector_text(&json!({"b": "2", "a": "1"})), "a=1,b=2");
        assert_eq!(selector_text(&Value::Null), "");
    }

    #[test]
    fn a_scale_carries_replicas_and_preconditions() {
        let words = |a: &str| vec![a.to_owned(), "replicas".to_owned()];
        let paths = Paths { spec: words("spec"), status: words("status"), selector: None };
        let live = json!({"metadata": {"name": "d", "resourceVersion": "5"}, "spec": {"replicas": 1}});
        let new = apply(&paths, Some(&live), &json!({"metadata": {"resourceVersion": "4"}, "spec": {"replicas": 3}}), "d").unwrap();
        assert_eq!(new, json!({"metadata": {"name": "d", "resourceVersion": "4"}, "spec": {"replicas": 3}}));
        let refused = apply(&paths, Some(&live), &json!({"spec": {"replicas": -1}}), "d").unwrap_err();
        assert_eq!(
            refused.message,
            "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
