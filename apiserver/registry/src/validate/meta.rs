//! `metadata`: names, labels, annotations, owners, finalizers, and what an update may change of them (apimachinery
//! `pkg/api/validation/objectmeta.go`).

use serde_json::Value;

use super::names;
use crate::field::{Errors, Path};
use crate::row::Row;
use crate::val::{go_quote, list_at, map_at, same, str_at};

/// All annotations together, keys and values, in bytes.
const ANNOTATIONS_BYTES: usize = 256 * 1024;

/// What must hold of the metadata of any object.
pub fn check(row: &Row, obj: &Value, e: &mut Errors) {
    let m = &obj["metadata"];
    let path = Path::new("metadata");
    let generate = str_at(m, &["generateName"]);
    if !generate.is_empty() {
        for why in row.rules.name.check(generate, true) {
            e.invalid(&path.child("generateName"), generate, why);
        }
    }
    match str_at(m, &["name"]) {
        "" => e.required(&path.child("name"), "name or generateName is required"),
        name => {
            for why in row.rules.name.check(name, false) {
                e.invalid(&path.child("name"), name, why);
            }
        }
    }
    match str_at(m, &["namespace"]) {
        "" if row.namespaced => e.required(&path.child("namespace"), ""),
        ns if row.namespaced => {
            for why in names::dns1123_label(ns) {
                e.invalid(&path.child("namespace"), ns, why);
            }
        }
        "" => {}
        _ => e.forbidden(&path.child("namespace"), "not allowed on this type"),
    }
    if m["generation"].as_i64().is_some_and(|g| g < 0) {
        e.invalid(&path.child("generation"), m["generation"].clone(), "must be greater than or equal to 0");
    }
    check_open_parts(m, &path, e);
    finalizers(m, &path.child("finalizers"), e);
}

/// Labels, annotations and owners: what creation and update check alike.
fn check_open_parts(m: &Value, path: &Path, e: &mut Errors) {
    labels(&m["labels"], &path.child("labels"), e);
    annotations(&m["annotations"], &path.child("annotations"), e);
    owners(m, &path.child("ownerReferences"), e);
}

/// Syntax of labels.
pub fn labels(v: &Value, path: &Path, e: &mut Errors) {
    for (key, value) in v.as_object().into_iter().flatten() {
        for why in names::qualified_name(key) {
            e.invalid(path, key.as_str(), why);
        }
        let value = value.as_str().unwrap_or("");
        for why in names::label_value(value) {
            e.invalid(path, value, why);
        }
    }
}

/// Syntax and size of annotations.
pub fn annotations(v: &Value, path: &Path, e: &mut Errors) {
    let mut total = 0;
    for (key, value) in v.as_object().into_iter().flatten() {
        // Upper case is folded: old annotations have it in their prefix.
        for why in names::qualified_name(&key.to_lowercase()) {
            e.invalid(path, key.as_str(), why);
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_BYTES {
        e.too_long(path, ANNOTATIONS_BYTES);
    }
}

fn owners(m: &Value, path: &Path, e: &mut Errors) {
    let mut controller: Option<&str> = None;
    for (i, owner) in list_at(m, &["ownerReferences"]).iter().enumerate() {
        let path = path.index(i);
        let field = |f: &str| str_at(owner, &[f]);
        let api = field("apiVersion");
        if api.is_empty() || api.matches('/').count() > 1 {
            e.invalid(&path.child("apiVersion"), api, "version must not be empty");
        }
        for (name, why) in [("kind", "must not be empty"), ("name", "must not be empty"), ("uid", "must not be empty")] {
            if field(name).is_empty() {
                e.invalid(&path.child(name), "", format!("{name} {why}"));
            }
        }
        if field("kind") == "Event" && (api == "v1" || api.starts_with("events.k8s.io/")) {
            e.invalid(&path, owner.clone(), format!("{api}, Kind=Event is disallowed from being an owner"));
        }
        if owner["controller"] == true {
            if let Some(first) = controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                    field("name")
                );
                e.invalid(&Path::new("metadata.ownerReferences"), owner.clone(), why);
            } else {
                controller = Some(field("name"));
            }
        }
    }
}

/// Finalizers that need no domain.
const OLD_FINALIZERS: &[&str] = &["orphan", "foregroundDeletion", "kubernetes"];

fn finalizers(m: &Value, path: &Path, e: &mut Errors) {
    let list: Vec<&str> = list_at(m, &["finalizers"]).iter().filter_map(Value::as_str).collect();
    for f in &list {
        finalizer_name(f, path, e);
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        e.invalid(path, serde_json::json!(list), why);
    }
}

/// Syntax of a finalizer: a qualified name with a domain, but for the old ones.
pub fn finalizer_name(f: &str, path: &Path, e: &mut Errors) {
    for why in names::qualified_name(f) {
        e.invalid(path, f, why);
    }
    if !f.contains('/') && !OLD_FINALIZERS.contains(&f) && names::qualified_name(f).is_empty() {
        e.invalid(path, f, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// What an update may do to metadata: new, old. Numbers and times that clients cannot change have been put back already.
pub fn check_update(row: &Row, new: &Value, old: &Value, e: &mut Errors) {
    let (m, o) = (&new["metadata"], &old["metadata"]);
    let path = Path::new("metadata");
    if o["deletionTimestamp"].is_string() {
        let had: Vec<&str> = list_at(o, &["finalizers"]).iter().filter_map(Value::as_str).collect();
        let mut added: Vec<&str> = list_at(m, &["finalizers"]).iter().filter_map(Value::as_str).filter(|f| !had.contains(f)).collect();
        added.sort_unstable();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| go_quote(f)).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            e.forbidden(&path.child("finalizers"), why);
        }
    }
    for field in ["name", "namespace", "uid", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if !same(&m[field], &o[field]) && (field != "namespace" || row.namespaced) {
            e.invalid(&path.child(field), m[field].clone(), "field is immutable");
        }
    }
    check_open_parts(m, &path, e);
    // Upstream looks at finalizers on creation only; one that no controller could ever own is refused here as well.
    if !same(&m["finalizers"], &o["finalizers"]) {
        finalizers(m, &path.child("finalizers"), e);
    }
}

/// A `LabelSelector` object.
pub fn label_selector(v: &Value, path: &Path, e: &mut Errors) {
    if let Some(pairs) = map_at(v, &["matchLabels"]) {
        labels(&Value::Object(pairs.clone()), &path.child("matchLabels"), e);
    }
    for (i, r) in list_at(v, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list_at(r, &["values"]);
        match str_at(r, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                e.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                e.forbidden(&path.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => e.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        let key = str_at(r, &["key"]);
        for why in names::qualified_name(key) {
            e.invalid(&path.child("key"), key, why);
        }
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            for why in names::label_value(value) {
                e.invalid(&path.child("values").index(j), value, why);
            }
        }
    }
}
