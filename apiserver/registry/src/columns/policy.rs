//! Who may do what, what is let in, and the kinds that run the API itself.

use serde_json::Value;

use super::format::{NONE, UNKNOWN, UNSET, age, condition, is_true, labels, more_list, name, plain_or, quantity, selector, text_or};
use super::workload::subjects;
use super::{AGE, Column, NAME, NAME_AGE, Printer, flag, int as integer, row, text, wide};
use crate::quantity::Quantity;
use crate::times;
use crate::val::{at, bool_at, list_at, map_at, str_at};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    Some(match (group, kind) {
        ("rbac", "RoleBinding" | "ClusterRoleBinding") => ROLE_BINDING,
        ("certificates", "CertificateSigningRequest") => SIGNING_REQUEST,
        ("certificates", "ClusterTrustBundle") => TRUST_BUNDLE,
        ("certificates", "PodCertificateRequest") => POD_CERTIFICATE,
        ("scheduling", "PriorityClass") => PRIORITY_CLASS,
        ("scheduling", "Workload") => NAME_AGE,
        ("scheduling", "PodGroup") => POD_GROUP,
        ("node", "RuntimeClass") => RUNTIME_CLASS,
        ("admissionregistration", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => WEBHOOKS,
        ("admissionregistration", "ValidatingAdmissionPolicy") => VALIDATING_POLICY,
        ("admissionregistration", "MutatingAdmissionPolicy") => MUTATING_POLICY,
        ("admissionregistration", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => POLICY_BINDING,
        ("flowcontrol", "FlowSchema") => FLOW_SCHEMA,
        ("flowcontrol", "PriorityLevelConfiguration") => PRIORITY_LEVEL,
        ("apiregistration", "APIService") => API_SERVICE,
        ("internal", "StorageVersion") => STORAGE_VERSION,
        ("storagemigration", "StorageVersionMigration") => MIGRATION,
        ("metrics", "NodeMetrics" | "PodMetrics") => METRICS,
        _ => return None,
    })
}

const ROLE_BINDING: Printer = Printer {
    columns: &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    cells: |o, now| {
        let role = format!("{}/{}", str_at(o, &["roleRef", "kind"]), str_at(o, &["roleRef", "name"]));
        row![name(o), role, age(o, now), subjects(o, "User"), subjects(o, "Group"), subjects(o, "ServiceAccount")]
    },
};

const SIGNING_REQUEST: Printer = Printer {
    columns: &[NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")],
    cells: |o, now| {
        let duration = at(o, &["spec", "expirationSeconds"]).as_i64().map_or_else(|| NONE.into(), times::human);
        row![name(o), age(o, now), str_at(o, &["spec", "signerName"]), str_at(o, &["spec", "username"]), duration, signing_state(o)]
    },
};

fn signing_state(o: &Value) -> String {
    let has = |kind| condition(o, kind).is_some();
    let mut state = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !str_at(o, &["status", "certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    state
}

const TRUST_BUNDLE: Printer =
    Printer { columns: &[NAME, text("SignerName")], cells: |o, _| row![name(o), str_at(o, &["spec", "signerName"])] };

const POD_CERTIFICATE: Printer = Printer {
    columns: &[
        NAME,
        text("PodName"),
        text("ServiceAccountName"),
        text("NodeName"),
        text("SignerName"),
        text("State"),
        text("UnverifiedUserAnnotations"),
    ],
    cells: |o, _| {
        let spec = |field| str_at(o, &["spec", field]);
        let states = ["Issued", "Denied", "Failed"];
        let state = list_at(o, &["status", "conditions"]).iter().rev().map(|c| str_at(c, &["type"])).find(|t| states.contains(t));
        row![
            name(o),
            spec("podName"),
            spec("serviceAccountName"),
            spec("nodeName"),
            spec("signerName"),
            state.unwrap_or("Pending"),
            labels(at(o, &["spec", "unverifiedUserAnnotations"])),
        ]
    },
};

const PRIORITY_CLASS: Printer = Printer {
    columns: &[NAME, integer("Value"), flag("Global-Default"), AGE, text("PreemptionPolicy")],
    cells: |o, now| {
        let value = at(o, &["value"]).as_i64().unwrap_or(0);
        row![name(o), value, bool_at(o, &["globalDefault"]), age(o, now), str_at(o, &["preemptionPolicy"])]
    },
};

const POD_GROUP: Printer = Printer {
    columns: &[NAME, text("Policy"), text("Workload"), text("Status"), AGE],
    cells: |o, now| {
        let policy = at(o, &["spec", "schedulingPolicy"]);
        let policy = match () {
            () if policy.get("gang").is_some() => "Gang",
            () if policy.get("basic").is_some() => "Basic",
            () => NONE,
        };
        let template = at(o, &["spec", "podGroupTemplateRef", "workload"]);
        let status = list_at(o, &["status", "conditions"]).first().map_or("", |c| str_at(c, &["reason"]));
        row![name(o), policy, text_or(template, &["workloadName"], NONE), status, age(o, now)]
    },
};

const RUNTIME_CLASS: Printer =
    Printer { columns: &[NAME, text("Handler"), AGE], cells: |o, now| row![name(o), str_at(o, &["handler"]), age(o, now)] };

const WEBHOOKS: Printer =
    Printer { columns: &[NAME, integer("Webhooks"), AGE], cells: |o, now| row![name(o), list_at(o, &["webhooks"]).len(), age(o, now)] };

fn param_kind(o: &Value) -> String {
    let kind = at(o, &["spec", "paramKind"]);
    if kind.is_object() { format!("{}/{}", str_at(kind, &["apiVersion"]), str_at(kind, &["kind"])) } else { UNSET.into() }
}

const VALIDATING_POLICY: Printer = Printer {
    columns: &[NAME, integer("Validations"), text("ParamKind"), AGE],
    cells: |o, now| row![name(o), list_at(o, &["spec", "validations"]).len(), param_kind(o), age(o, now)],
};

const MUTATING_POLICY: Printer = Printer {
    columns: &[NAME, integer("Mutations"), text("ParamKind"), AGE],
    cells: |o, now| row![name(o), list_at(o, &["spec", "mutations"]).len(), param_kind(o), age(o, now)],
};

const POLICY_BINDING: Printer = Printer {
    columns: &[NAME, text("PolicyName"), text("ParamRef"), AGE],
    cells: |o, now| {
        let param = at(o, &["spec", "paramRef"]);
        let text = match (str_at(param, &["namespace"]), str_at(param, &["name"])) {
            _ if param.is_null() => UNSET.into(),
            (_, "") => selector(at(param, &["selector"])),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        row![name(o), str_at(o, &["spec", "policyName"]), text, age(o, now)]
    },
};

const FLOW_SCHEMA: Printer = Printer {
    columns: &[
        NAME,
        text("PriorityLevel"),
        text("MatchingPrecedence"),
        text("DistinguisherMethod"),
        AGE,
        Column { description: "Whether the priority level exists", ..text("MissingPL") },
    ],
    cells: |o, now| {
        row![
            name(o),
            str_at(o, &["spec", "priorityLevelConfiguration", "name"]),
            at(o, &["spec", "matchingPrecedence"]).as_i64().unwrap_or(0),
            text_or(o, &["spec", "distinguisherMethod", "type"], NONE),
            age(o, now),
            condition(o, "Dangling").map_or("?", |c| str_at(c, &["status"])),
        ]
    },
};

const PRIORITY_LEVEL: Printer = Printer {
    columns: &[NAME, text("Type"), text("NominalConcurrencyShares"), text("Queues"), text("HandSize"), text("QueueLengthLimit"), AGE],
    cells: |o, now| {
        let or_none = |v: &Value| if v.is_null() { NONE.into() } else { v.clone() };
        let shares = ["limited", "exempt"].iter().map(|kind| at(o, &["spec", kind, "nominalConcurrencyShares"])).find(|v| !v.is_null());
        let queuing = |field| or_none(at(o, &["spec", "limited", "limitResponse", "queuing", field]));
        row![
            name(o),
            str_at(o, &["spec", "type"]),
            or_none(shares.unwrap_or(&Value::Null)),
            queuing("queues"),
            queuing("handSize"),
            queuing("queueLengthLimit"),
            age(o, now),
        ]
    },
};

const API_SERVICE: Printer = Printer {
    columns: &[NAME, text("Service"), text("Available"), AGE],
    cells: |o, now| {
        let service = at(o, &["spec", "service"]);
        let service = if service.is_object() {
            format!("{}/{}", str_at(service, &["namespace"]), str_at(service, &["name"]))
        } else {
            "Local".into()
        };
        let available = match condition(o, "Available") {
            None => "Unknown".into(),
            Some(c) if !is_true(o, "Available") && !str_at(c, &["reason"]).is_empty() => {
                format!("{} ({})", str_at(c, &["status"]), str_at(c, &["reason"]))
            }
            Some(c) => str_at(c, &["status"]).to_owned(),
        };
        row![name(o), service, available, age(o, now)]
    },
};

const STORAGE_VERSION: Printer = Printer {
    columns: &[NAME, text("CommonEncodingVersion"), text("StorageVersions"), AGE],
    cells: |o, now| {
        let versions: Vec<String> = list_at(o, &["status", "storageVersions"])
            .iter()
            .map(|v| format!("{}={}", str_at(v, &["apiServerID"]), str_at(v, &["encodingVersion"])))
            .collect();
        row![name(o), plain_or(at(o, &["status", "commonEncodingVersion"]), UNSET), more_list(&versions, 3), age(o, now)]
    },
};

const MIGRATION: Printer = Printer {
    columns: &[NAME, text("Resource"), text("Status"), AGE],
    cells: |o, now| {
        let resource = at(o, &["spec", "resource"]);
        let parts = [str_at(resource, &["resource"]), str_at(resource, &["group"])];
        let resource = super::format::join(parts.into_iter().filter(|p| !p.is_empty()), ".");
        let status = ["Succeeded", "Failed", "Running"].into_iter().find(|kind| is_true(o, kind));
        row![name(o), resource, status.unwrap_or("Unknown"), age(o, now)]
    },
};

/// One column per resource upstream; cpu and memory are the two that exist.
const METRICS: Printer = Printer {
    columns: &[
        NAME,
        Column { format: "quantity", ..text("cpu") },
        Column { format: "quantity", ..text("memory") },
        Column { format: "duration", ..text("Window") },
    ],
    cells: |o, _| row![name(o), usage(o, "cpu"), usage(o, "memory"), text_or(o, &["window"], UNKNOWN)],
};

fn usage(o: &Value, resource: &str) -> String {
    if map_at(o, &["usage"]).is_some() {
        return quantity(at(o, &["usage", resource]));
    }
    let parse = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok());
    let all = list_at(o, &["containers"]).iter().filter_map(|c| parse(at(c, &["usage", resource])));
    all.reduce(|a, b| a.add(&b)).map_or_else(String::new, |q| q.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_of_requests() {
        let csr = |conditions: &[&str], certificate: &str| {
            let conditions: Vec<_> = conditions.iter().map(|t| json!({"type": t})).collect();
            signing_state(&json!({"status": {"conditions": conditions, "certificate": certificate}}))
        };
        assert_eq!(csr(&[], ""), "Pending");
        assert_eq!(csr(&["Approved"], "x"), "Approved,Issued");
        assert_eq!(csr(&["Approved", "Denied", "Failed"], ""), "Denied,Failed");
    }

    #[test]
    fn usage_of_pods_is_the_sum_of_their_containers() {
        let pod = json!({"containers": [{"usage": {"cpu": "5m"}}, {"usage": {"cpu": "10m"}}]});
        assert_eq!(usage(&pod, "cpu"), "15m");
        assert_eq!(usage(&json!({"usage": {"memory": "1Gi"}}), "memory"), "1Gi");
    }
}
