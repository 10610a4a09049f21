//! Rules of Namespaces.

use serde_json::{Value, json};

use super::{PLAIN, Rules, SelectableField, StatusMeta};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::val::{copy, list_at, put, str_at, vec_mut};
use crate::validate::meta::finalizer_name;
use crate::validate::names::NameRule;

/// The rules of Namespaces.
pub const RULES: Rules = Rules {
    name: NameRule::Label,
    status_meta: StatusMeta::Open,
    defaults: defaults::cluster::namespace,
    prepare_create,
    prepare_update,
    prepare_status,
    validate: check,
    delete_returns_object: true,
    fields: FIELDS,
    ..PLAIN
};

const FIELDS: &[SelectableField] = &[("status.phase", |n| str_at(n, &["status", "phase"]).into())];

/// The finalizer that holds a namespace until it is empty.
pub const KUBERNETES: &str = "kubernetes";

fn prepare_create(ns: &mut Value) {
    put(ns, &["status"], json!({"phase": "Active"}));
    let finalizers = vec_mut(ns, &["spec", "finalizers"]);
    if !finalizers.iter().any(|f| f == KUBERNETES) {
        finalizers.push(json!(KUBERNETES));
    }
}

/// Finalizers of the spec go through `/finalize` only.
fn prepare_update(ns: &mut Value, old: &Value) {
    copy(ns, old, &["spec", "finalizers"]);
}

fn prepare_status(ns: &mut Value, old: &Value) {
    // A namespace that is being deleted is terminating, whatever anybody says.
    if old["metadata"]["deletionTimestamp"].is_string() {
        put(ns, &["status", "phase"], json!("Terminating"));
    }
}

fn check(ns: &Value, e: &mut Errors) {
    for f in list_at(ns, &["spec", "finalizers"]).iter().filter_map(Value::as_str) {
        finalizer_name(f, &Path::new("spec.finalizers"), e);
    }
}
