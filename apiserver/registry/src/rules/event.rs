//! Rules of Events, in both groups.

use serde_json::Value;

use super::{DefaultGc, PLAIN, Rules, SelectableField, convert};
use crate::field::{Errors, Path};
use crate::val::str_at;

/// Seconds that an event is kept.
const TTL_SECONDS: u32 = 3600;

/// The rules of core/v1 Events.
pub const CORE: Rules = Rules {
    validate: core,
    create_on_update: true,
    default_gc: DefaultGc::Unsupported,
    ttl_seconds: Some(TTL_SECONDS),
    fields: CORE_FIELDS,
    ..PLAIN
};

/// The rules of events.k8s.io/v1 Events.
pub const NEW: Rules = Rules {
    validate: new,
    validate_create: new_on_create,
    validate_update: new_on_update,
    fields: NEW_FIELDS,
    to_stored: Some(convert::event_to_core),
    from_stored: Some(convert::event_from_core),
    ..CORE
};

macro_rules! object_fields {
    ($of:literal, $($field:literal),*) => {
        [$((concat!($of, ".", $field), (|e: &Value| str_at(e, &[$of, $field]).into()) as fn(&Value) -> String)),*]
    };
}

const INVOLVED: [SelectableField; 7] =
    object_fields!("involvedObject", "kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath");
const REGARDING: [SelectableField; 7] =
    object_fields!("regarding", "kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath");

const CORE_FIELDS: &[SelectableField] = &{
    let [a, b, c, d, e, f, g] = INVOLVED;
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        ("reason", |e| str_at(e, &["reason"]).into()),
        ("reportingComponent", |e| str_at(e, &["reportingComponent"]).into()),
        ("source", source),
        ("type", |e| str_at(e, &["type"]).into()),
    ]
};

const NEW_FIELDS: &[SelectableField] = &{
    let [a, b, c, d, e, f, g] = REGARDING;
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        ("reason", |e| str_at(e, &["reason"]).into()),
        ("reportingController", |e| str_at(e, &["reportingController"]).into()),
        ("type", |e| str_at(e, &["type"]).into()),
    ]
};

fn source(e: &Value) -> String {
    let [component, reporting] = [str_at(e, &["source", "component"]), str_at(e, &["reportingComponent"])];
    if component.is_empty() { reporting.into() } else { component.into() }
}

/// An event lives where its object lives; those of objects without a namespace live in `default`.
fn place(event: &Value, object: &str, e: &mut Errors) {
    let ns = str_at(event, &["metadata", "namespace"]);
    let of = str_at(event, &[object, "namespace"]);
    let path = Path::new(object).child("namespace");
    let fits = if of.is_empty() { ["default", "kube-system"].contains(&ns) } else { of == ns };
    if !fits {
        e.invalid(&path, of, "does not match event.namespace");
    }
}

fn core(event: &Value, e: &mut Errors) {
    place(event, "involvedObject", e);
}

fn new(event: &Value, e: &mut Errors) {
    place(event, "regarding", e);
}

fn new_on_create(event: &Value, e: &mut Errors) {
    if event["eventTime"].is_null() {
        e.required(&Path::new("eventTime"), "");
    }
    for (field, max) in [("reportingController", 128), ("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let text = str_at(event, &[field]);
        let path = Path::new(field);
        if text.is_empty() {
            e.required(&path, "");
        } else if text.len() > max {
            e.invalid(&path, "", format!("can have at most {max} characters"));
        }
    }
    if str_at(event, &["note"]).len() > 1024 {
        e.invalid(&Path::new("note"), "", "can have at most 1024 characters");
    }
    let kind = str_at(event, &["type"]);
    if !["Normal", "Warning"].contains(&kind) {
        e.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
}

fn new_on_update(new: &Value, old: &Value, e: &mut Errors) {
    for field in ["regarding", "related", "reason", "action", "note", "type", "eventTime", "reportingController", "reportingInstance"] {
        e.immutable(&Path::new(field), &new[field], &old[field]);
    }
}
