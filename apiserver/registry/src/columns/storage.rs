//! storage and dynamic resource allocation.

use serde_json::Value;

use super::format::{NONE, UNSET, age, deleting, join, name, or, strings, text_or};
use super::network::with_default;
use super::{AGE, Column, NAME, NAME_AGE, Printer, flag, int as integer, row, text};
use crate::times;
use crate::val::{at, bool_at, list_at, str_at};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    Some(match (group, kind) {
        ("storage", "StorageClass") => STORAGE_CLASS,
        ("storage", "VolumeAttributesClass") => ATTRIBUTES_CLASS,
        ("storage", "CSINode") => CSI_NODE,
        ("storage", "VolumeAttachment") => ATTACHMENT,
        ("storage", "CSIDriver") => CSI_DRIVER,
        ("resource", "DeviceClass" | "ResourceClaimTemplate") => NAME_AGE,
        ("resource", "ResourceSlice") => SLICE,
        ("resource", "ResourceClaim") => CLAIM,
        ("resource", "DeviceTaintRule") => TAINT_RULE,
        _ => return None,
    })
}

const STORAGE_CLASS: Printer = Printer {
    columns: &[NAME, text("Provisioner"), text("ReclaimPolicy"), text("VolumeBindingMode"), text("AllowVolumeExpansion"), AGE],
    cells: |o, now| {
        let marked = |key: &str| str_at(o, &["metadata", "annotations", key]) == "true";
        let default = marked("storageclass.kubernetes.io/is-default-class") || marked("storageclass.beta.kubernetes.io/is-default-class");
        row![
            with_default(o, default),
            str_at(o, &["provisioner"]),
            text_or(o, &["reclaimPolicy"], "Delete"),
            text_or(o, &["volumeBindingMode"], "Immediate"),
            bool_at(o, &["allowVolumeExpansion"]),
            age(o, now),
        ]
    },
};

const ATTRIBUTES_CLASS: Printer =
    Printer { columns: &[NAME, text("DriverName"), AGE], cells: |o, now| row![name(o), str_at(o, &["driverName"]), age(o, now)] };

const CSI_NODE: Printer = Printer {
    columns: &[NAME, integer("Drivers"), AGE],
    cells: |o, now| row![name(o), list_at(o, &["spec", "drivers"]).len(), age(o, now)],
};

const ATTACHMENT: Printer = Printer {
    columns: &[NAME, Column { format: "name", ..text("Attacher") }, text("PV"), text("Node"), flag("Attached"), AGE],
    cells: |o, now| {
        row![
            name(o),
            str_at(o, &["spec", "attacher"]),
            str_at(o, &["spec", "source", "persistentVolumeName"]),
            str_at(o, &["spec", "nodeName"]),
            bool_at(o, &["status", "attached"]),
            age(o, now),
        ]
    },
};

const CSI_DRIVER: Printer = Printer {
    columns: &[
        NAME,
        flag("AttachRequired"),
        flag("PodInfoOnMount"),
        flag("StorageCapacity"),
        text("TokenRequests"),
        flag("RequiresRepublish"),
        text("Modes"),
        AGE,
    ],
    cells: |o, now| {
        let spec = |field| bool_at(o, &["spec", field]);
        let audiences = join(list_at(o, &["spec", "tokenRequests"]).iter().map(|t| str_at(t, &["audience"])), ",");
        let modes = join(strings(o, &["spec", "volumeLifecycleModes"]), ",");
        row![
            name(o),
            at(o, &["spec", "attachRequired"]).as_bool().unwrap_or(true),
            spec("podInfoOnMount"),
            spec("storageCapacity"),
            or(&audiences, UNSET),
            spec("requiresRepublish"),
            or(&modes, NONE),
            age(o, now),
        ]
    },
};

const SLICE: Printer = Printer {
    columns: &[NAME, text("Node"), text("Driver"), text("Pool"), AGE],
    cells: |o, now| {
        let spec = |path: &[&str]| str_at(at(o, &["spec"]), path).to_owned();
        row![name(o), spec(&["nodeName"]), spec(&["driver"]), spec(&["pool", "name"]), age(o, now)]
    },
};

const CLAIM: Printer = Printer { columns: &[NAME, text("State"), AGE], cells: |o, now| row![name(o), claim_state(o), age(o, now)] };

fn claim_state(o: &Value) -> String {
    let mut state = Vec::new();
    if deleting(o) {
        state.push("deleted");
    }
    if at(o, &["status", "allocation"]).is_null() {
        if state.is_empty() {
            state.push("pending");
        }
    } else {
        state.push("allocated");
        if !list_at(o, &["status", "reservedFor"]).is_empty() {
            state.push("reserved");
        }
    }
    state.join(",")
}

const TAINT_RULE: Printer = Printer {
    columns: &[NAME, text("Key"), text("Value"), text("Effect"), text("TimeAdded"), AGE],
    cells: |o, now| {
        let taint = |field| str_at(o, &["spec", "taint", field]);
        row![name(o), taint("key"), taint("value"), taint("effect"), times::age(taint("timeAdded"), now), age(o, now)]
    },
};
