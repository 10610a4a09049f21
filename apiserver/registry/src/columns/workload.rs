//! apps, batch, autoscaling and policy.

use serde_json::Value;

use super::format::{
    NONE, UNSET, age, containers, deleting, images, int, is_true, join, kind_dot_group, labels, name, plain_or, selector, selector_text,
    text_or,
};
use super::{AGE, NAME, Printer, flag, int as integer, row, text, wide};
use crate::val::{at, bool_at, list_at, str_at};
use crate::{time, times};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    Some(match (group, kind) {
        ("apps" | "extensions", "Deployment") => DEPLOYMENT,
        ("apps" | "extensions", "ReplicaSet") => REPLICA_SET,
        ("apps", "StatefulSet") => STATEFUL_SET,
        ("apps" | "extensions", "DaemonSet") => DAEMON_SET,
        ("apps", "ControllerRevision") => REVISION,
        ("batch", "Job") => JOB,
        ("batch", "CronJob") => CRON_JOB,
        ("autoscaling", "HorizontalPodAutoscaler") => super::hpa::HPA,
        ("autoscaling", "Scale") => SCALE,
        ("policy", "PodDisruptionBudget") => BUDGET,
        _ => return None,
    })
}

fn template(o: &Value) -> &Value {
    at(o, &["spec", "template", "spec"])
}

fn ready_of(o: &Value) -> String {
    format!("{}/{}", int(o, &["status", "readyReplicas"]), int(o, &["spec", "replicas"]))
}

const DEPLOYMENT: Printer = Printer {
    columns: &[NAME, text("Ready"), text("Up-to-date"), text("Available"), AGE, wide("Containers"), wide("Images"), wide("Selector")],
    cells: |o, now| {
        row![
            name(o),
            ready_of(o),
            int(o, &["status", "updatedReplicas"]),
            int(o, &["status", "availableReplicas"]),
            age(o, now),
            containers(template(o)),
            images(template(o)),
            selector_text(at(o, &["spec", "selector"])).unwrap_or_else(|| "<invalid>".into()),
        ]
    },
};

const REPLICA_SET: Printer = Printer {
    columns: &[NAME, integer("Desired"), integer("Current"), integer("Ready"), AGE, wide("Containers"), wide("Images"), wide("Selector")],
    cells: |o, now| {
        row![
            name(o),
            int(o, &["spec", "replicas"]),
            int(o, &["status", "replicas"]),
            int(o, &["status", "readyReplicas"]),
            age(o, now),
            containers(template(o)),
            images(template(o)),
            selector(at(o, &["spec", "selector"])),
        ]
    },
};

const STATEFUL_SET: Printer = Printer {
    columns: &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")],
    cells: |o, now| row![name(o), ready_of(o), age(o, now), containers(template(o)), images(template(o))],
};

const DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        integer("Up-to-date"),
        integer("Available"),
        text("Node Selector"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |o, now| {
        let status = |field| int(o, &["status", field]);
        row![
            name(o),
            status("desiredNumberScheduled"),
            status("currentNumberScheduled"),
            status("numberReady"),
            status("updatedNumberScheduled"),
            status("numberAvailable"),
            labels(at(template(o), &["nodeSelector"])),
            age(o, now),
            containers(template(o)),
            images(template(o)),
            selector(at(o, &["spec", "selector"])),
        ]
    },
};

const REVISION: Printer = Printer {
    columns: &[NAME, text("Controller"), text("Revision"), AGE],
    cells: |o, now| {
        let owner = list_at(o, &["metadata", "ownerReferences"]).iter().find(|r| bool_at(r, &["controller"]));
        let owner = owner.map_or_else(
            || NONE.into(),
            |r| format!("{}/{}", kind_dot_group(str_at(r, &["kind"]), str_at(r, &["apiVersion"])), str_at(r, &["name"])),
        );
        row![name(o), owner, int(o, &["revision"]), age(o, now)]
    },
};

const JOB: Printer = Printer {
    columns: &[NAME, text("Status"), text("Completions"), text("Duration"), AGE, wide("Containers"), wide("Images"), wide("Selector")],
    cells: |o, now| {
        row![
            name(o),
            job_status(o),
            job_completions(o),
            job_duration(o, now),
            age(o, now),
            containers(template(o)),
            images(template(o)),
            selector(at(o, &["spec", "selector"])),
        ]
    },
};

fn job_status(o: &Value) -> &'static str {
    match () {
        () if is_true(o, "Complete") => "Complete",
        () if is_true(o, "Failed") => "Failed",
        () if deleting(o) => "Terminating",
        () if is_true(o, "Suspended") => "Suspended",
        () if is_true(o, "FailureTarget") => "FailureTarget",
        () if is_true(o, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn job_completions(o: &Value) -> String {
    let (succeeded, parallelism) = (int(o, &["status", "succeeded"]), int(o, &["spec", "parallelism"]));
    match at(o, &["spec", "completions"]).as_i64() {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

fn job_duration(o: &Value, now: i64) -> String {
    let time = |field| time::instant(str_at(o, &["status", field])).map(|t| t.0);
    match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => times::human(end.unwrap_or(now).saturating_sub(start)),
    }
}

const CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        text("Schedule"),
        text("Timezone"),
        flag("Suspend"),
        integer("Active"),
        text("Last Schedule"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |o, now| {
        let job = at(o, &["spec", "jobTemplate", "spec"]);
        let suspended = match at(o, &["spec", "suspend"]).as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => UNSET,
        };
        let last = str_at(o, &["status", "lastScheduleTime"]);
        row![
            name(o),
            str_at(o, &["spec", "schedule"]),
            text_or(o, &["spec", "timeZone"], NONE),
            suspended,
            list_at(o, &["status", "active"]).len(),
            if last.is_empty() { NONE.into() } else { times::age(last, now) },
            age(o, now),
            containers(template_of(job)),
            images(template_of(job)),
            selector(at(job, &["selector"])),
        ]
    },
};

fn template_of(job_spec: &Value) -> &Value {
    at(job_spec, &["template", "spec"])
}

const SCALE: Printer = Printer {
    columns: &[text("Name"), integer("Desired"), integer("Available"), AGE],
    cells: |o, now| row![name(o), int(o, &["spec", "replicas"]), int(o, &["status", "replicas"]), age(o, now)],
};

const BUDGET: Printer = Printer {
    columns: &[NAME, text("Min Available"), text("Max Unavailable"), integer("Allowed Disruptions"), AGE],
    cells: |o, now| {
        let bound = |field| plain_or(at(o, &["spec", field]), "N/A");
        row![name(o), bound("minAvailable"), bound("maxUnavailable"), int(o, &["status", "disruptionsAllowed"]), age(o, now)]
    },
};

/// Subjects of a kind in a role binding.
pub(super) fn subjects(o: &Value, kind: &str) -> String {
    let names: Vec<String> = list_at(o, &["subjects"])
        .iter()
        .filter(|s| str_at(s, &["kind"]) == kind)
        .map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", str_at(s, &["namespace"]), str_at(s, &["name"])),
            _ => str_at(s, &["name"]).to_owned(),
        })
        .collect();
    join(names.iter().map(String::as_str), ", ")
}
