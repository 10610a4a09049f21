//! `/healthz`, `/livez`, `/readyz`: one list of checks, and which of them each endpoint asks.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use http::Response;
use kontiki_base::Revision;
use kontiki_registry::row::Row;

use crate::core::Core;
use crate::rest::respond::respond;

/// Kinds whose caches are loaded from the start; the server is ready when they are.
pub(crate) const WARM: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "pods"),
    ("", "nodes"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "configmaps"),
    ("", "secrets"),
    ("", "endpoints"),
    ("discovery.k8s.io", "endpointslices"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("storage.k8s.io", "storageclasses"),
    ("coordination.k8s.io", "leases"),
];

/// A check: its name, and whether it holds.
type Check = (&'static str, fn(&Core) -> bool);

fn ping(_: &Core) -> bool {
    true
}

fn store(core: &Core) -> bool {
    core.kv.status().has_leader
}

fn caches(core: &Core) -> bool {
    core.hub.applied() > Revision::ZERO && warm(core).iter().all(|row| core.hub.ready(row).is_some())
}

fn stopping(core: &Core) -> bool {
    !*core.stopping.borrow()
}

const LIVE: &[Check] = &[("ping", ping)];
const HEALTHY: &[Check] = &[("ping", ping), ("store", store)];
const READY: &[Check] = &[("ping", ping), ("store", store), ("caches", caches), ("shutdown", stopping)];

/// The rows of [`WARM`].
pub(crate) fn warm(core: &Core) -> Vec<Arc<Row>> {
    WARM.iter().map(|(group, plural)| core.builtin(group, "v1", plural)).collect()
}

/// Answers a health path; `None` if it is none.
pub(crate) fn serve(core: &Core, path: &str, verbose: bool) -> Option<Response<Body>> {
    let (endpoint, one) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.strip_prefix('/')?, ""));
    let checks = match endpoint {
        "livez" => LIVE,
        "healthz" => HEALTHY,
        "readyz" => READY,
        _ => return None,
    };
    let checks: Vec<&Check> = checks.iter().filter(|(name, _)| one.is_empty() || *name == one).collect();
    if checks.is_empty() {
        return None;
    }
    let mut text = String::new();
    let mut failed = false;
    for (name, check) in checks {
        let holds = check(core);
        failed |= !holds;
        let _ = if holds { writeln!(text, "[+]{name} ok") } else { writeln!(text, "[-]{name} failed: reason withheld") };
    }
    let plain = "text/plain; charset=utf-8";
    if failed {
        let _ = write!(text, "{endpoint} check failed");
        return Some(respond(500, plain, text));
    }
    if verbose {
        let _ = writeln!(text, "{endpoint} check passed");
        return Some(respond(200, plain, text));
    }
    Some(respond(200, plain, "ok"))
}
