//! Deletion: options, grace, finalizers, propagation (apiserver `pkg/registry/generic/registry/store.go`, `pkg/registry/rest/delete.go`).

use serde_json::{Value, json};

use crate::field::{Errors, Path};
use crate::row::Row;
use crate::rules::DefaultGc;
use crate::status::Status;
use crate::time;
use crate::val::{int_at, list_at, put, str_at};

/// Finalizer: dependents must be released first.
pub const ORPHAN: &str = "orphan";
/// Finalizer: dependents must be deleted first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Namespaces that cannot be deleted.
pub const IMMORTAL_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public"];
/// The warning that goes with a deletion of a Job that names no policy.
pub const JOB_WARNING: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them \
                               or set propagationPolicy=Orphan to suppress this warning";

/// What becomes of dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They stay, without this owner.
    Orphan,
    /// They are deleted after the owner.
    Background,
    /// They are deleted before the owner.
    Foreground,
}

impl Propagation {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "Orphan" => Some(Self::Orphan),
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            _ => None,
        }
    }
}

/// How a deletion is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds of grace; `None` is the kind's default.
    pub grace_period_seconds: Option<i64>,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must be at this resource version.
    pub resource_version: Option<String>,
    /// What becomes of dependents; `None` is what the object or the kind says.
    pub propagation: Option<Propagation>,
    /// `orphanDependents: false` was said in so many words: a deletion that is not done at once is answered with 202.
    pub orphan_false: bool,
    /// Nothing is written.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From a decoded body. Unknown fields are ignored.
    pub fn from_body(body: &Value) -> Result<Self, Status> {
        let kind = str_at(body, &["kind"]);
        if !kind.is_empty() && kind != "DeleteOptions" {
            let api = str_at(body, &["apiVersion"]);
            return Err(Status::bad_request(format!(
                "{api}, Kind={kind} is not DeleteOptions: the body of a deletion must hold delete options"
            )));
        }
        let text = |path: &[&str]| Some(str_at(body, path).to_string()).filter(|s| !s.is_empty());
        let dry_run: Vec<&str> = list_at(body, &["dryRun"]).iter().filter_map(Value::as_str).collect();
        Self::build(
            int_at(body, &["gracePeriodSeconds"]),
            text(&["preconditions", "uid"]),
            text(&["preconditions", "resourceVersion"]),
            body.get("orphanDependents").and_then(Value::as_bool),
            text(&["propagationPolicy"]),
            &dry_run,
        )
    }

    /// From the query of a request without a body.
    pub fn from_query<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, Status> {
        let (mut grace, mut orphan, mut policy, mut dry_run) = (None, None, None, Vec::new());
        for (k, v) in pairs.filter(|(_, v)| !v.is_empty()) {
            match k {
                "gracePeriodSeconds" => {
                    let n = v.parse::<i64>();
                    grace = Some(n.map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {v:?}: invalid syntax")))?);
                }
                "orphanDependents" => orphan = Some(!matches!(v.to_ascii_lowercase().as_str(), "false" | "0")),
                "propagationPolicy" => policy = Some(v.to_string()),
                "dryRun" => dry_run.push(v),
                _ => {}
            }
        }
        Self::build(grace, None, None, orphan, policy, &dry_run)
    }

    fn build(
        grace: Option<i64>,
        uid: Option<String>,
        resource_version: Option<String>,
        orphan: Option<bool>,
        policy: Option<String>,
        dry_run: &[&str],
    ) -> Result<Self, Status> {
        let mut e = Errors::default();
        let path = Path::new("propagationPolicy");
        let parsed = policy.as_deref().and_then(Propagation::parse);
        if let (Some(_), Some(p)) = (orphan, &policy) {
            e.invalid(&path, p.as_str(), "orphanDependents and deletionPropagation cannot be both set");
        }
        if let (Some(p), None) = (&policy, parsed) {
            e.unsupported(&path, p.as_str(), &["Foreground", "Background", "Orphan", "nil"]);
        }
        check_dry_run(dry_run, &mut e);
        if !e.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", &e));
        }
        let propagation = parsed.or(orphan.map(|o| if o { Propagation::Orphan } else { Propagation::Background }));
        Ok(Self {
            grace_period_seconds: grace,
            uid,
            resource_version,
            propagation,
            orphan_false: orphan == Some(false),
            dry_run: !dry_run.is_empty(),
        })
    }
}

/// Checks `dryRun` values: only `All` is known. For create, update and patch options alike.
pub fn check_dry_run(values: &[&str], e: &mut Errors) {
    if values.iter().any(|v| *v != "All") {
        e.unsupported(&Path::new("dryRun"), json!(values), &["All"]);
    }
}

/// What a deletion comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum DeleteDecision {
    /// The object goes now; this is its last state.
    Remove(Value),
    /// The object stays for a while; this is what is stored.
    MarkAndKeep(Value),
    /// It is on its way already, and this request changes nothing: answer with the live object.
    AlreadyDeleting,
    /// No.
    Fail(Box<Status>),
}

/// Decides the deletion of `obj`, the live object. `now`: RFC 3339 in UTC, whole seconds.
pub fn decide_delete(row: &Row, obj: &Value, opts: &DeleteOptions, now: &str) -> DeleteDecision {
    let Some(now_s) = time::parse(now) else {
        return DeleteDecision::Fail(Box::new(Status::internal("the clock gave no RFC 3339 time")));
    };
    let is_namespace = row.group.is_empty() && row.kind == "Namespace";
    let name = str_at(obj, &["metadata", "name"]);
    if is_namespace && IMMORTAL_NAMESPACES.contains(&name) {
        return DeleteDecision::Fail(Box::new(Status::forbidden(row, name, "this namespace may not be deleted")));
    }
    if let Err(status) = check_preconditions(row, obj, opts, is_namespace) {
        return DeleteDecision::Fail(Box::new(status));
    }
    if is_namespace && let Some(decision) = delete_namespace(row, obj, opts, now) {
        return decision;
    }
    let mut new = obj.clone();
    let graceful = match begin_grace(row, &mut new, opts, now_s) {
        Grace::None => None,
        Grace::Pending => return DeleteDecision::AlreadyDeleting,
        Grace::For(seconds) => Some(seconds),
    };
    let finalizers = gc_finalizers(row, &new, opts);
    let pending = !finalizers.is_empty();
    set_finalizers(&mut new, finalizers);
    match graceful {
        None if !pending => DeleteDecision::Remove(new),
        None => {
            mark_deleting(&mut new, now_s);
            if new == *obj { DeleteDecision::AlreadyDeleting } else { DeleteDecision::MarkAndKeep(new) }
        }
        Some(0) if !pending => DeleteDecision::Remove(new),
        Some(_) => DeleteDecision::MarkAndKeep(new),
    }
}

fn check_preconditions(row: &Row, obj: &Value, opts: &DeleteOptions, is_namespace: bool) -> Result<(), Status> {
    let name = str_at(obj, &["metadata", "name"]);
    let pairs = [
        ("UID", &opts.uid, str_at(obj, &["metadata", "uid"]), "deleted and then recreated"),
        ("ResourceVersion", &opts.resource_version, str_at(obj, &["metadata", "resourceVersion"]), "modified"),
    ];
    for (what, want, have, fate) in pairs {
        match want {
            Some(want) if want != have && is_namespace => {
                let why = format!("Precondition failed: {what} in precondition: {want}, {what} in object meta: {have}");
                return Err(Status::conflict(row, name, &why));
            }
            Some(want) if want != have => {
                let why = format!(
                    "the {what} in the precondition ({want}) does not match the {what} in record ({have}). The object might have been {fate}"
                );
                return Err(Status::delete_precondition(row, name, &why));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A namespace is emptied first: its content belongs to `spec.finalizers`. `None`: nothing holds it any more.
fn delete_namespace(row: &Row, obj: &Value, opts: &DeleteOptions, now: &str) -> Option<DeleteDecision> {
    if obj["metadata"]["deletionTimestamp"].is_string() {
        let held = !list_at(obj, &["spec", "finalizers"]).is_empty();
        return held.then_some(DeleteDecision::AlreadyDeleting);
    }
    let mut new = obj.clone();
    put(&mut new, &["metadata", "deletionTimestamp"], json!(now));
    put(&mut new, &["status", "phase"], json!("Terminating"));
    let finalizers = gc_finalizers(row, &new, opts);
    set_finalizers(&mut new, finalizers);
    Some(DeleteDecision::MarkAndKeep(new))
}

enum Grace {
    /// The kind is not deleted gracefully, or the grace is over.
    None,
    /// Already under way, and not to be shortened.
    Pending,
    /// Marked in the object, for so many seconds.
    For(i64),
}

fn begin_grace(row: &Row, obj: &mut Value, opts: &DeleteOptions, now: i64) -> Grace {
    let Some(grace_of) = row.rules.grace else { return Grace::None };
    let asked = opts.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
    if let Some(at) = obj["metadata"]["deletionTimestamp"].as_str().and_then(time::parse) {
        let Some(old) = int_at(obj, &["metadata", "deletionGracePeriodSeconds"]) else { return Grace::None };
        return match asked {
            Some(period) if period < old => {
                set_deletion(obj, at.saturating_sub(old).saturating_add(period).max(now), period);
                Grace::For(period)
            }
            _ => Grace::Pending,
        };
    }
    let period = grace_of(obj, asked);
    bump_generation(obj);
    set_deletion(obj, now.saturating_add(period), period);
    Grace::For(period)
}

fn set_deletion(obj: &mut Value, at: i64, grace: i64) {
    put(obj, &["metadata", "deletionTimestamp"], json!(time::format(at)));
    put(obj, &["metadata", "deletionGracePeriodSeconds"], json!(grace));
}

fn bump_generation(obj: &mut Value) {
    if let Some(g) = int_at(obj, &["metadata", "generation"]).filter(|g| *g > 0) {
        put(obj, &["metadata", "generation"], json!(g.saturating_add(1)));
    }
}

/// Marks an object that waits for its finalizers only.
fn mark_deleting(obj: &mut Value, now: i64) {
    let at = obj["metadata"]["deletionTimestamp"].as_str().and_then(time::parse);
    if at.is_none() {
        bump_generation(obj);
    }
    set_deletion(obj, at.map_or(now, |at| at.min(now)), 0);
}

/// The finalizers that the object must have, given what becomes of its dependents.
fn gc_finalizers(row: &Row, obj: &Value, opts: &DeleteOptions) -> Vec<String> {
    let have: Vec<&str> = list_at(obj, &["metadata", "finalizers"]).iter().filter_map(Value::as_str).collect();
    let policy = if row.rules.default_gc == DefaultGc::Unsupported {
        Propagation::Background
    } else if let Some(p) = opts.propagation {
        p
    } else {
        match have.iter().find(|f| [ORPHAN, FOREGROUND].contains(f)) {
            Some(f) if *f == ORPHAN => Propagation::Orphan,
            Some(_) => Propagation::Foreground,
            None if row.rules.default_gc == DefaultGc::Orphan => Propagation::Orphan,
            None => Propagation::Background,
        }
    };
    let (want, other) = match policy {
        Propagation::Background => (None, None),
        Propagation::Orphan => (Some(ORPHAN), Some(FOREGROUND)),
        Propagation::Foreground => (Some(FOREGROUND), Some(ORPHAN)),
    };
    // The list keeps its order where the set does not change.
    if want.is_some_and(|w| have.contains(&w)) && !other.is_some_and(|o| have.contains(&o)) {
        return have.into_iter().map(Into::into).collect();
    }
    have.into_iter().filter(|f| ![ORPHAN, FOREGROUND].contains(f)).chain(want).map(Into::into).collect()
}

fn set_finalizers(obj: &mut Value, finalizers: Vec<String>) {
    let value = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
    put(obj, &["metadata", "finalizers"], value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Registry;

    const NOW: &str = "2026-01-01T00:00:00Z";
    const LATER: &str = "2026-01-01T00:00:30Z";

    fn decide(plural: &str, group: &str, obj: &Value, opts: &DeleteOptions) -> DeleteDecision {
        decide_delete(&Registry::builtin().resource(group, "v1", plural).unwrap(), obj, opts, NOW)
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "uid": "u", "resourceVersion": "5", "generation": 1},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}})
    }

    fn with_grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: Some(seconds), ..DeleteOptions::default() }
    }

    fn kept(d: DeleteDecision) -> Value {
        match d {
            DeleteDecision::MarkAndKeep(v) => v,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_gets_its_grace_and_can_only_lose_of_it() {
        let marked = kept(decide("pods", "", &pod(), &DeleteOptions::default()));
        let meta = &marked["metadata"];
        assert_eq!(
            (&meta["deletionTimestamp"], &meta["deletionGracePeriodSeconds"], &meta["generation"]),
            (&json!(LATER), &json!(30), &json!(2))
        );
        assert_eq!(decide("pods", "", &marked, &DeleteOptions::default()), DeleteDecision::AlreadyDeleting);
        assert_eq!(decide("pods", "", &marked, &with_grace(50)), DeleteDecision::AlreadyDeleting);
        let sooner = kept(decide("pods", "", &marked, &with_grace(5)));
        assert_eq!(sooner["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
        assert_eq!(sooner["metadata"]["generation"], 2);
        let DeleteDecision::Remove(last) = decide("pods", "", &marked, &with_grace(0)) else { panic!("gone at once") };
        assert_eq!(last["metadata"]["deletionGracePeriodSeconds"], 0);
        // Never into the past.
        let mut old = marked.clone();
        old["metadata"]["deletionTimestamp"] = json!("2025-12-31T23:59:59Z");
        assert_eq!(kept(decide("pods", "", &old, &with_grace(5)))["metadata"]["deletionTimestamp"], NOW);
    }

    #[test]
    fn a_pod_that_runs_nowhere_goes_at_once() {
        for (field, value) in [(["spec", "nodeName"], ""), (["status", "phase"], "Failed"), (["status", "phase"], "Succeeded")] {
            let mut p = pod();
            put(&mut p, &field, json!(value));
            assert!(matches!(decide("pods", "", &p, &with_grace(20)), DeleteDecision::Remove(_)), "{field:?}");
            put(&mut p, &["metadata", "finalizers"], json!(["example.com/x"]));
            assert_eq!(kept(decide("pods", "", &p, &with_grace(20)))["metadata"]["deletionGracePeriodSeconds"], 0);
        }
    }

    #[test]
    fn policies_become_finalizers() {
        let plain = json!({"metadata": {"name": "x", "uid": "u"}});
        let held = |f: &str| json!({"metadata": {"name": "x", "uid": "u", "finalizers": [f]}});
        let opts = |p: Option<Propagation>| DeleteOptions { propagation: p, ..DeleteOptions::default() };
        // Resource, group, object, policy, finalizers afterwards; none: it is gone.
        for (plural, group, obj, policy, after) in [
            ("deployments", "apps", &plain, None, None),
            ("deployments", "apps", &plain, Some(Propagation::Orphan), Some(ORPHAN)),
            ("deployments", "apps", &plain, Some(Propagation::Foreground), Some(FOREGROUND)),
            ("deployments", "apps", &held(ORPHAN), Some(Propagation::Background), None),
            ("deployments", "apps", &held(ORPHAN), Some(Propagation::Foreground), Some(FOREGROUND)),
            ("deployments", "apps", &held(FOREGROUND), None, Some(FOREGROUND)),
            ("jobs", "batch", &plain, None, Some(ORPHAN)),
            ("jobs", "batch", &held(FOREGROUND), None, Some(FOREGROUND)),
            ("jobs", "batch", &plain, Some(Propagation::Background), None),
            ("events", "", &plain, Some(Propagation::Orphan), None),
        ] {
            let d = decide(plural, group, obj, &opts(policy));
            match after {
                None => assert!(matches!(d, DeleteDecision::Remove(_)), "{plural} {policy:?} {d:?}"),
                Some(f) => assert_eq!(kept(d)["metadata"]["finalizers"], json!([f]), "{plural} {policy:?}"),
            }
        }
    }

    #[test]
    fn preconditions_and_namespaces() {
        let wrong = DeleteOptions { uid: Some("other".into()), ..DeleteOptions::default() };
        let DeleteDecision::Fail(s) = decide("pods", "", &pod(), &wrong) else { panic!("it is another pod") };
        assert_eq!(
            s.message,
            "Operation cannot be fulfilled on Pod \"p\": the UID in the precondition (other) does not match the UID in record (u). The object \
             might have been deleted and then recreated"
        );
        let ns = |name: &str| json!({"metadata": {"name": name, "uid": "u"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        for name in IMMORTAL_NAMESPACES {
            assert!(matches!(decide("namespaces", "", &ns(name), &DeleteOptions::default()), DeleteDecision::Fail(_)));
        }
        let dying = kept(decide("namespaces", "", &ns("x"), &DeleteOptions::default()));
        assert_eq!(dying["status"]["phase"], "Terminating");
        assert_eq!(decide("namespaces", "", &dying, &DeleteOptions::default()), DeleteDecision::AlreadyDeleting);
        let mut empty = dying.clone();
        put(&mut empty, &["spec", "finalizers"], json!([]));
        assert!(matches!(decide("namespaces", "", &empty, &DeleteOptions::default()), DeleteDecision::Remove(_)));
        assert!(crate::write_rules::completes_deletion(
            &json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "x"}, "spec": {"finalizers": []}}),
            &dying
        ));
    }

    #[test]
    fn options_come_by_body_or_by_query() {
        let q = DeleteOptions::from_query([("gracePeriodSeconds", "5"), ("propagationPolicy", "Orphan"), ("dryRun", "All")].into_iter())
            .unwrap();
        assert_eq!((q.grace_period_seconds, q.propagation, q.dry_run), (Some(5), Some(Propagation::Orphan), true));
        let b = DeleteOptions::from_body(&json!({"orphanDependents": false, "preconditions": {"uid": "x"}})).unwrap();
        assert_eq!((b.propagation, b.uid.as_deref(), b.orphan_false), (Some(Propagation::Background), Some("x"), true));
        assert_eq!(DeleteOptions::from_query([("gracePeriodSeconds", "x")].into_iter()).unwrap_err().http, 400);
        assert_eq!(DeleteOptions::from_body(&json!({"dryRun": ["Some"]})).unwrap_err().http, 422);
        assert_eq!(DeleteOptions::from_body(&json!({"kind": "Pod", "apiVersion": "v1"})).unwrap_err().http, 400);
    }
}
