//! The road of an object from a request to the store: what the server sets, what clients cannot, defaults, validation.

use serde_json::{Value, json};

use crate::field::Errors;
use crate::row::{Row, Sub};
use crate::rules::{Generation, StatusMeta};
use crate::status::Status;
use crate::val::{at, copy, int_at, map_mut, put, same, str_at, take};
use crate::validate;

/// What the server brings to a creation.
#[derive(Clone, Debug)]
pub struct CreateCtx<'a> {
    /// A fresh random uid (version 4).
    pub uid: String,
    /// Now, RFC 3339 in UTC, whole seconds.
    pub now: &'a str,
    /// Who asks.
    pub user: &'a str,
    /// Five characters of [`SUFFIX_ALPHABET`], for `generateName`; fresh for every try.
    pub suffix: &'a str,
    /// Namespace of the path; empty for kinds without namespaces.
    pub namespace: &'a str,
    /// Who is named in `managedFields`.
    pub field_manager: &'a str,
}

/// The characters of generated names (apimachinery `pkg/util/rand`): no vowels, nothing that looks like another.
pub const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many fresh names are tried before a creation with `generateName` gives up.
pub const GENERATE_NAME_TRIES: usize = 8;
/// The part of `generateName` that is used: 63 less the suffix.
const GENERATE_NAME_BYTES: usize = 58;
/// Fields of `metadata` that a client cannot give on creation. `managedFields` are made by the caller, which knows the manager.
const SERVER_FIELDS: &[&str] = &["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "managedFields"];

/// Makes a decoded, pruned object ready to be stored: name, namespace, uid, times, generation, status, defaults, validation.
pub fn prepare_create(row: &Row, obj: &mut Value, ctx: &CreateCtx<'_>) -> Result<(), Status> {
    let asked_ns = str_at(obj, &["metadata", "namespace"]);
    if row.namespaced && !asked_ns.is_empty() && asked_ns != ctx.namespace {
        return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    let m = map_mut(obj, &["metadata"]);
    for field in SERVER_FIELDS {
        m.remove(*field);
    }
    if row.namespaced {
        m.insert("namespace".into(), json!(ctx.namespace));
    } else {
        m.remove("namespace");
    }
    m.insert("uid".into(), json!(ctx.uid));
    m.insert("creationTimestamp".into(), json!(ctx.now));
    if row.rules.generation != Generation::Untracked {
        m.insert("generation".into(), json!(1));
    }
    generate_name(obj, ctx.suffix);
    dedup_owners(obj);
    if row.has_status() && !row.rules.status_on_create {
        put(obj, &["status"], json!({}));
    }
    (row.rules.defaults)(obj);
    (row.rules.prepare_create)(obj);
    if row.has_status() && obj.get("status").is_none() {
        put(obj, &["status"], json!({}));
    }
    let mut e = Errors::default();
    validate::meta::check(row, obj, &mut e);
    (row.rules.validate)(obj, &mut e);
    (row.rules.validate_create)(obj, &mut e);
    refuse(row, obj, &e)
}

fn generate_name(obj: &mut Value, suffix: &str) {
    let prefix = str_at(obj, &["metadata", "generateName"]);
    if !str_at(obj, &["metadata", "name"]).is_empty() || prefix.is_empty() {
        return;
    }
    let mut end = prefix.len().min(GENERATE_NAME_BYTES);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let name = format!("{}{suffix}", &prefix[..end]);
    put(obj, &["metadata", "name"], json!(name));
}

/// An owner that is named twice is kept once.
fn dedup_owners(obj: &mut Value) {
    if let Some(Value::Array(owners)) = crate::val::at_mut(obj, &["metadata", "ownerReferences"]) {
        let mut seen: Vec<Value> = Vec::with_capacity(owners.len());
        owners.retain(|o| {
            !seen.contains(o) && {
                seen.push(o.clone());
                true
            }
        });
    }
}

fn refuse(row: &Row, obj: &Value, e: &Errors) -> Result<(), Status> {
    if e.is_empty() { Ok(()) } else { Err(Status::invalid(row, str_at(obj, &["metadata", "name"]), e)) }
}

/// Makes the new state of an object ready to be stored over the old one. `sub` is the subresource that was written, if any; only what
/// that subresource owns is taken from `obj`.
pub fn prepare_update(row: &Row, obj: &mut Value, old: &Value, sub: Option<&Sub>, _now: &str) -> Result<(), Status> {
    let m = map_mut(obj, &["metadata"]);
    m.remove("selfLink");
    // What clients cannot change is put back, so that a stale copy of it is no error.
    for field in ["creationTimestamp", "generation", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        copy(obj, old, &["metadata", field]);
    }
    for field in ["uid", "namespace", "name"] {
        if str_at(obj, &["metadata", field]).is_empty() {
            copy(obj, old, &["metadata", field]);
        }
    }
    if !row.namespaced {
        take(obj, &["metadata", "namespace"]);
    }
    dedup_owners(obj);
    let is_status = split(row, obj, old, sub);
    (row.rules.defaults)(obj);
    if is_status {
        (row.rules.prepare_status)(obj, old);
    } else {
        (row.rules.prepare_update)(obj, old);
    }
    if row.has_status() && obj.get("status").is_none() {
        put(obj, &["status"], json!({}));
    }
    if !is_status && generation_moves(row, obj, old) {
        let generation = int_at(old, &["metadata", "generation"]).unwrap_or(0);
        put(obj, &["metadata", "generation"], json!(generation.saturating_add(1)));
    }
    let mut e = Errors::default();
    // Twice, as upstream: once for all kinds and once in the kind's own check. The causes of a 422 show both.
    validate::meta::check_update(row, obj, old, &mut e);
    validate::meta::check_update(row, obj, old, &mut e);
    if !is_status {
        (row.rules.validate)(obj, &mut e);
        match sub {
            None => (row.rules.validate_update)(obj, old, &mut e),
            Some(sub) => (row.rules.validate_sub)(&sub.name, obj, old, &mut e),
        }
    }
    refuse(row, obj, &e)
}

/// Takes from `obj` what the endpoint owns and everything else from `old`. Returns whether the endpoint is `status` or like it.
fn split(row: &Row, obj: &mut Value, old: &Value, sub: Option<&Sub>) -> bool {
    let Some(sub) = sub else {
        if row.has_status() {
            copy(obj, old, &["status"]);
        }
        return false;
    };
    let owned: &[&str] = match sub.name.as_str() {
        "status" => &["status"],
        "finalize" => &["spec", "finalizers"],
        "approval" => &["status", "conditions"],
        "ephemeralcontainers" => &["spec", "ephemeralContainers"],
        "resize" => return resize(obj, old),
        // The caller has made the whole object: bindings, scale.
        _ => return false,
    };
    let value = at(obj, owned).clone();
    let metadata = status_metadata(row, sub, obj, old);
    *obj = old.clone();
    put(obj, &["metadata"], metadata);
    put(obj, owned, value);
    sub.name == "status" || sub.name == "approval" || sub.name == "finalize"
}

/// The metadata that a write through a subresource leaves.
fn status_metadata(row: &Row, sub: &Sub, obj: &Value, old: &Value) -> Value {
    let keeps: &[&str] = match (sub.name.as_str(), row.rules.status_meta) {
        ("status", StatusMeta::Open) => &[],
        ("status", StatusMeta::KeepsLabels) => &["labels"],
        ("status", StatusMeta::KeepsOwners) => &["ownerReferences"],
        _ => &["labels", "annotations", "finalizers", "ownerReferences"],
    };
    let mut new = obj.clone();
    for field in keeps {
        copy(&mut new, old, &["metadata", field]);
    }
    new["metadata"].take()
}

/// The resources of containers, and nothing else.
fn resize(obj: &mut Value, old: &Value) -> bool {
    let given = std::mem::replace(obj, old.clone());
    copy(obj, &given, &["metadata", "managedFields"]);
    for list in ["containers", "initContainers"] {
        for c in crate::val::list_mut(obj, &["spec", list]) {
            let name = c["name"].clone();
            if let Some(new) = crate::val::list_at(&given, &["spec", list]).iter().find(|n| n["name"] == name) {
                copy(c, new, &["resources"]);
            }
        }
    }
    false
}

fn generation_moves(row: &Row, new: &Value, old: &Value) -> bool {
    // Both have the form that decoding gives: what differs is a difference. `{}` in place of nothing is one, too: of a selector, say.
    let spec = || new["spec"] != old["spec"];
    let meta = |field: &str| !same(&new["metadata"][field], &old["metadata"][field]);
    let content = || {
        let body = |v: &Value| {
            let mut v = v.clone();
            if let Some(m) = v.as_object_mut() {
                m.remove("metadata");
                if row.has_status() {
                    m.remove("status");
                }
            }
            v
        };
        body(new) != body(old)
    };
    match row.rules.generation {
        Generation::Untracked | Generation::Fixed => false,
        Generation::Spec => spec(),
        Generation::SpecAndAnnotations => spec() || meta("annotations"),
        Generation::Content => content(),
        Generation::ContentAndLabels => content() || meta("labels") || meta("annotations"),
    }
}
