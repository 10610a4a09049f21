//! Pods: the one kind whose status column is an algorithm.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::format::{NONE, age, condition, deleting, int, is_true, name, or, text_or};
use super::{AGE, Column, NAME, Printer, row, text, wide};
use crate::val::{at, bool_at, list_at, str_at};
use crate::{time, times};

const COLUMNS: &[Column] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

pub(super) const POD: Printer = Printer { columns: COLUMNS, cells };

/// What is gathered while walking over the containers.
#[derive(Default)]
struct Walk {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<i64>,
    initializing: bool,
}

impl Walk {
    fn restarted(&mut self, container: &Value) {
        self.restarts += int(container, &["restartCount"]);
        let finished = time::instant(str_at(container, &["lastState", "terminated", "finishedAt"])).map(|t| t.0);
        self.last_restart = self.last_restart.max(finished);
    }
}

fn cells(pod: &Value, now: i64) -> Vec<Value> {
    let inits = list_at(pod, &["spec", "initContainers"]);
    let restartable = |c: &Value| str_at(c, &["restartPolicy"]) == "Always";
    let total = list_at(pod, &["spec", "containers"]).len() + inits.iter().filter(|c| restartable(c)).count();
    let walk = walk(pod);
    let restarts = match walk.last_restart {
        Some(at) if walk.restarts != 0 => format!("{} ({} ago)", walk.restarts, times::human(now.saturating_sub(at))),
        _ => walk.restarts.to_string(),
    };
    let ip = list_at(pod, &["status", "podIPs"]).first().map_or("", |ip| str_at(ip, &["ip"]));
    row![
        name(pod),
        format!("{}/{total}", walk.ready),
        walk.reason,
        restarts,
        age(pod, now),
        or(ip, NONE),
        text_or(pod, &["spec", "nodeName"], NONE),
        text_or(pod, &["status", "nominatedNodeName"], NONE),
        readiness_gates(pod),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list_at(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return NONE.into();
    }
    let conditions = list_at(pod, &["status", "conditions"]).iter();
    let held: BTreeSet<&str> = conditions.filter(|c| str_at(c, &["status"]) == "True").map(|c| str_at(c, &["type"])).collect();
    let open = gates.iter().filter(|g| held.contains(str_at(g, &["conditionType"]))).count();
    format!("{open}/{}", gates.len())
}

fn walk(pod: &Value) -> Walk {
    let phase = str_at(pod, &["status", "phase"]);
    let status_reason = str_at(pod, &["status", "reason"]);
    let mut walk = Walk { reason: or(status_reason, phase).to_owned(), ..Walk::default() };
    if condition(pod, "PodScheduled").is_some_and(|c| str_at(c, &["reason"]) == "SchedulingGated") {
        walk.reason = "SchedulingGated".into();
    }
    let restartable = walk_inits(pod, &mut walk);
    if !walk.initializing || is_true(pod, "Initialized") {
        (walk.restarts, walk.last_restart) = (restartable.restarts, restartable.last_restart);
        walk_containers(pod, &mut walk);
    }
    if deleting(pod) {
        if status_reason == "NodeLost" {
            walk.reason = "Unknown".into();
        } else if phase != "Succeeded" && phase != "Failed" {
            walk.reason = "Terminating".into();
        }
    }
    walk
}

/// Why a container ended: `Signal:9`, `ExitCode:1`, or the reason that it gave.
fn ended(terminated: &Value) -> String {
    let (reason, signal) = (str_at(terminated, &["reason"]), int(terminated, &["signal"]));
    match () {
        () if !reason.is_empty() => reason.to_owned(),
        () if signal != 0 => format!("Signal:{signal}"),
        () => format!("ExitCode:{}", int(terminated, &["exitCode"])),
    }
}

/// Walks over the init containers; returns the restarts of those that go on running beside the others.
fn walk_inits(pod: &Value, walk: &mut Walk) -> Walk {
    let inits = list_at(pod, &["spec", "initContainers"]);
    let beside: BTreeSet<&str> = inits.iter().filter(|c| str_at(c, &["restartPolicy"]) == "Always").map(|c| str_at(c, &["name"])).collect();
    let mut restartable = Walk::default();
    for (i, status) in list_at(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        walk.restarted(status);
        let keeps_running = beside.contains(str_at(status, &["name"]));
        if keeps_running {
            restartable.restarted(status);
        }
        let (terminated, waiting) = (at(status, &["state", "terminated"]), str_at(status, &["state", "waiting", "reason"]));
        if terminated.is_object() && int(terminated, &["exitCode"]) == 0 {
            continue;
        }
        if keeps_running && bool_at(status, &["started"]) {
            walk.ready += usize::from(bool_at(status, &["ready"]));
            continue;
        }
        walk.reason = if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", inits.len())
        };
        walk.initializing = true;
        break;
    }
    restartable
}

fn walk_containers(pod: &Value, walk: &mut Walk) {
    let (mut running, mut failed) = (false, None);
    for status in list_at(pod, &["status", "containerStatuses"]).iter().rev() {
        walk.restarted(status);
        let (terminated, waiting) = (at(status, &["state", "terminated"]), str_at(status, &["state", "waiting", "reason"]));
        if !waiting.is_empty() {
            waiting.clone_into(&mut walk.reason);
        } else if terminated.is_object() {
            walk.reason = ended(terminated);
            if int(terminated, &["exitCode"]) != 0 {
                failed = Some(walk.reason.clone());
            }
        } else if bool_at(status, &["ready"]) && at(status, &["state", "running"]).is_object() {
            running = true;
            walk.ready += 1;
        }
    }
    // Some containers are done and others run: say how the pod as a whole stands.
    if walk.reason == "Completed" {
        if running && is_true(pod, "Ready") {
            walk.reason = "Running".into();
        } else if let Some(reason) = failed {
            walk.reason = reason;
        } else if running {
            walk.reason = "NotReady".into();
        }
    }
}

/// The condition of the row of a pod that has run to its end.
pub(super) fn row_condition(pod: &Value) -> Option<Value> {
    let (phase, message) = match str_at(pod, &["status", "phase"]) {
        phase @ "Succeeded" => (phase, "The pod has completed successfully."),
        phase @ "Failed" => (phase, "The pod failed."),
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": phase, "message": message}))
}
