//! Rules of Nodes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{PLAIN, Rules, SelectableField, StatusMeta};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::val::{bool_at, is_empty, list_at, same, str_at};
use crate::validate::names;

/// The rules of Nodes.
pub const RULES: Rules = Rules {
    status_meta: StatusMeta::Open,
    status_on_create: true,
    defaults: defaults::cluster::node,
    validate: check,
    validate_update: check_update,
    fields: FIELDS,
    ..PLAIN
};

const FIELDS: &[SelectableField] = &[("spec.unschedulable", |n| bool_at(n, &["spec", "unschedulable"]).to_string())];

fn check(node: &Value, e: &mut Errors) {
    let path = Path::new("spec.taints");
    let mut seen = BTreeSet::new();
    for (i, t) in list_at(node, &["spec", "taints"]).iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (str_at(t, &["key"]), str_at(t, &["value"]), str_at(t, &["effect"]));
        for why in names::qualified_name(key) {
            e.invalid(&path.child("key"), key, why);
        }
        for why in names::label_value(value) {
            e.invalid(&path.child("value"), value, why);
        }
        match effect {
            "" => e.required(&path.child("effect"), ""),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            other => e.unsupported(&path.child("effect"), other, &["NoSchedule", "PreferNoSchedule", "NoExecute"]),
        }
        if !seen.insert((key, effect)) {
            e.duplicate(&path, t.clone());
        }
    }
    let cidrs = list_at(node, &["spec", "podCIDRs"]);
    let first = str_at(node, &["spec", "podCIDR"]);
    if !cidrs.is_empty() && !first.is_empty() && cidrs[0] != first {
        let why = format!("podCIDR {first} and podCIDRs[0] must match");
        e.invalid(&Path::new("spec.podCIDRs"), cidrs[0].clone(), why);
    }
}

fn check_update(new: &Value, old: &Value, e: &mut Errors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    if !is_empty(&o["podCIDRs"]) && !same(&n["podCIDRs"], &o["podCIDRs"]) {
        e.forbidden(&Path::new("spec.podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
    }
    let had = str_at(o, &["providerID"]);
    if !had.is_empty() && had != str_at(n, &["providerID"]) {
        e.forbidden(&Path::new("spec.providerID"), "node updates may not change providerID except from \"\" to valid");
    }
}
