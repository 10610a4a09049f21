//! Server-side apply: a manager states its whole intent, the server merges it, takes back what the manager no longer wants, and refuses to change what
//! others own. The algorithm is that of `sigs.k8s.io/structured-merge-diff/v6/merge`, with the rules that kube-apiserver puts around it.

use std::collections::BTreeMap;

use kontiki_base::Code;
use kontiki_base::object::Gvk;
use serde_json::{Value, json};

use super::PatchError;
use super::fields::{Set, path_text};
use super::managed::{self, Entry, Id, Managers, Operation, Writer};
use super::typed;

/// One field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictCause {
    /// Such as `conflict with "kubectl" using apps/v1`.
    pub message: String,
    /// Path of the field, such as `.spec.replicas`.
    pub field: String,
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields that this one wants to change, and it did not force. Reason of each cause: `FieldManagerConflict`.
    #[error("{message}")]
    Conflicts {
        /// The message of the Status.
        message: String,
        /// One per field.
        causes: Vec<ConflictCause>,
    },
    /// The configuration is no object of its kind.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

impl ApplyError {
    /// The outcome code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Conflicts { .. } => Code::Conflict,
            Self::Patch(e) => e.code(),
        }
    }
}

/// The manager that owns what was there before anyone applied.
const BEFORE: &str = "before-first-apply";
/// The manager that keeps the annotation of client-side apply up to date.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Applies a manager's whole intent to the live object of a built-in kind, or to nothing if there is none. The result carries the new managed fields; it
/// equals the live object if nothing changed. Defaults and validation are the caller's.
///
/// # Errors
/// [`ApplyError::Conflicts`] unless `force`; [`ApplyError::Patch`] if the configuration does not fit the kind.
pub fn apply(live: Option<&Value>, applied: &Value, gvk: &Gvk, manager: &str, force: bool, now: &str) -> Result<Value, ApplyError> {
    apply_as(live, applied, &Writer::new(gvk, manager, "", now), force)
}

/// [`apply`] for any writer: custom resources, subresources.
///
/// # Errors
/// As [`apply`].
pub fn apply_as(live: Option<&Value>, applied: &Value, writer: &Writer<'_>, force: bool) -> Result<Value, ApplyError> {
    check(applied, writer)?;
    let nothing = json!({});
    let live_bare = managed::without_managed(live.unwrap_or(&nothing));
    let mut managers = live.and_then(managed::decode).unwrap_or_default();
    if live.is_some() && managers.is_empty() {
        let before = Writer { manager: BEFORE, subresource: "", ..*writer };
        let schema = writer.schema;
        managed::record_update(&mut managers, &schema.normalized(&nothing), &schema.normalized(&live_bare), &before);
    }
    let (mut merged, mut managers) = match merge(&live_bare, applied, &managers, writer, force) {
        Ok(done) => done,
        Err(conflicts) if writer.manager == KUBECTL => retry_as_owner(&live_bare, applied, &managers, writer, conflicts)?,
        Err(conflicts) => return Err(refuse(&conflicts)),
    };
    if merged != live_bare
        && let Some(entry) = managers.get_mut(&writer.id(Operation::Apply))
    {
        entry.time = Some(writer.now.to_owned());
    }
    if writer.manager == KUBECTL {
        sync_last_applied(&mut merged, applied);
    }
    managed::cap(&mut managers);
    managed::encode(&mut merged, &managers);
    Ok(merged)
}

/// The configuration must be an object of its kind that says nothing about managed fields.
fn check(applied: &Value, writer: &Writer<'_>) -> Result<(), PatchError> {
    let text = |path: &str| applied.pointer(path).and_then(Value::as_str).unwrap_or("");
    let gvk = Gvk::from_api_version(text("/apiVersion"), text("/kind"));
    if gvk != *writer.gvk {
        return Err(PatchError::Malformed(format!("invalid object type: {gvk}")));
    }
    if applied.pointer("/metadata/managedFields").is_some_and(|v| !v.is_null()) {
        return Err(PatchError::Malformed("metadata.managedFields must be nil".into()));
    }
    let mut errors = Vec::new();
    typed::validate(writer.schema, applied, &mut Vec::new(), &mut errors);
    let what = match errors.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    Err(PatchError::Unmergeable(format!("failed to create typed patch object ({namespace}/{name}; {gvk}): {what}")))
}

/// Who conflicts over which paths.
type Conflicts = BTreeMap<Id, Set>;

/// The merge proper: the new object and its managers, or the conflicts.
fn merge(live: &Value, applied: &Value, managers: &Managers, writer: &Writer<'_>, force: bool) -> Result<(Value, Managers), Conflicts> {
    let mut managers = managers.clone();
    let id = writer.id(Operation::Apply);
    let merged = typed::merge(writer.schema, live, applied);
    let last = managers.remove(&id);
    let set = typed::to_set(writer.schema, applied).recursive_difference(&writer.ignored_set());
    let time = last.as_ref().and_then(|e| e.time.clone());
    managers.insert(id.clone(), Entry { api_version: writer.gvk.api_version(), set, time });
    let merged = match &last {
        Some(last) if !last.set.is_empty() => prune(merged, &managers, &last.set, writer),
        _ => merged,
    };
    let change = typed::compare(writer.schema, live, &merged);
    let touched = change.modified.union(&change.added);
    let conflicts: Conflicts = managers
        .iter()
        .filter(|(other, _)| **other != id)
        .map(|(other, entry)| (other.clone(), entry.set.intersection(&touched)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    managed::take_away(&mut managers, &change, Some(&id));
    if let Some(entry) = managers.get_mut(&id) {
        entry.set = entry.set.difference(&managed::unowned());
    }
    Ok((merged, managers))
}

/// Removes what the manager had applied before and no longer does, unless another manager owns it too.
fn prune(merged: Value, managers: &Managers, last: &Set, writer: &Writer<'_>) -> Value {
    let ty = writer.schema;
    let last = last.with_named_parents(ty);
    let pruned = typed::remove(ty, &merged, &last);
    let owned = managers.values().fold(Set::default(), |all, e| all.union(&e.set)).with_named_parents(ty);
    let everything = typed::to_set(ty, &merged).with_named_parents(ty);
    // What others own comes back …
    let left = typed::to_set(ty, &pruned).with_named_parents(ty);
    let pruned = typed::remove(ty, &merged, &everything.difference(&left.union(&owned)));
    // … and so does what went only because something around it went, without having been applied.
    let left = typed::to_set(ty, &pruned).with_named_parents(ty);
    typed::remove(ty, &merged, &everything.difference(&left).intersection(&last))
}

/// kubectl may take over without force what its own client-side apply had set and nobody changed since.
fn retry_as_owner(
    live: &Value,
    applied: &Value,
    managers: &Managers,
    writer: &Writer<'_>,
    conflicts: Conflicts,
) -> Result<(Value, Managers), ApplyError> {
    let annotation = live.pointer("/metadata/annotations").and_then(|a| a.get(LAST_APPLIED)).and_then(Value::as_str);
    let Some(last) = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return Err(refuse(&conflicts)) };
    let change = typed::compare(writer.schema, &last, live);
    let unchanged = typed::to_set(writer.schema, &last).difference(&change.modified).difference(&change.added).difference(&change.removed);
    let left: Conflicts =
        conflicts.into_iter().map(|(id, set)| (id, set.difference(&unchanged))).filter(|(_, set)| !set.is_empty()).collect();
    if !left.is_empty() {
        return Err(refuse(&left));
    }
    merge(live, applied, managers, writer, true).map_err(|conflicts| refuse(&conflicts))
}

/// Keeps the annotation of client-side apply equal to what kubectl applied, where there is one.
fn sync_last_applied(merged: &mut Value, applied: &Value) {
    let Some(annotations) = merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    if !annotations.contains_key(LAST_APPLIED) {
        return;
    }
    let mut bare = managed::without_managed(applied);
    if let Some(own) = bare.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.remove(LAST_APPLIED);
    }
    annotations.insert(LAST_APPLIED.into(), format!("{bare}\n").into());
}

/// A manager as conflicts name it.
fn manager_text(id: &Id) -> String {
    let mut text = format!("{:?}", id.manager);
    if !id.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", id.subresource));
    }
    if id.operation == Operation::Update {
        text.push_str(&format!(" using {}", id.api_version));
    }
    text
}

fn refuse(conflicts: &Conflicts) -> ApplyError {
    let mut by_manager: Vec<(String, Vec<String>)> =
        conflicts.iter().map(|(id, set)| (manager_text(id), set.paths().iter().map(|path| path_text(path)).collect())).collect();
    by_manager.sort();
    let count: usize = by_manager.iter().map(|(_, paths)| paths.len()).sum();
    let causes = by_manager
        .iter()
        .flat_map(|(manager, paths)| {
            paths.iter().map(move |field| ConflictCause { message: format!("conflict with {manager}"), field: field.clone() })
        })
        .collect::<Vec<_>>();
    let what = match causes.as_slice() {
        [one] => format!("{}: {}", one.message, one.field),
        _ => {
            let block = |(manager, paths): &(String, Vec<String>)| format!("conflicts with {manager}:\n- {}", paths.join("\n- "));
            by_manager.iter().map(block).collect::<Vec<_>>().join("\n")
        }
    };
    let noun = if count == 1 { "conflict" } else { "conflicts" };
    ApplyError::Conflicts { message: format!("Apply failed with {count} {noun}: {what}"), causes }
}

#[cfg(test)]
mod tests;
