//! The life of a definition: its names are accepted, its kinds are served; when it is deleted, its objects go first.

use std::sync::Arc;
use std::time::Duration;

use kontiki_registry::delete::DeleteOptions;
use kontiki_registry::val;
use serde_json::{Value, json};

use super::{Kinds, conflict, rows};
use crate::core::Core;
use crate::error::Result;
use crate::sub::binding::set_condition;
use crate::verbs::list::{ListRequest, Selection};
use crate::verbs::update::Update;
use crate::verbs::{Target, WriteOptions};

/// Holds a definition until its objects are gone.
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Wait before what is not finished is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the table of kinds in step with the definitions. Every server does this; what it writes is the same on all of them.
pub(crate) async fn run(core: Arc<Core>) {
    let row = core.builtin("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    loop {
        let Some(cache) = core.cache(&row).await else {
            core.env.sleep(AGAIN).await;
            continue;
        };
        let mut ticks = cache.subscribe();
        while cache.phase() == crate::cache::row::Phase::Ready {
            ticks.mark_unchanged();
            let (_, objects) = cache.snapshot(row.storage_prefix(None).as_bytes(), || core.hub.applied());
            let definitions: Vec<Value> = objects.iter().map(|o| o.value()).collect();
            core.set_kinds(Kinds::with(&definitions));
            let mut settled = true;
            for (i, definition) in definitions.iter().enumerate() {
                match settle(&core, definition, &definitions[..i]).await {
                    Ok(done) => settled &= done,
                    Err(status) => {
                        tracing::debug!(%status, "a definition is not settled yet");
                        settled = false;
                    }
                }
            }
            let again = if settled { Duration::from_secs(3_600) } else { AGAIN };
            tokio::select! {
                changed = ticks.changed() => if changed.is_err() { return },
                () = core.env.sleep(again) => {}
                () = core.stopped() => return,
            }
        }
    }
}

/// Takes a definition one step further; `true` when there is nothing left to do.
async fn settle(core: &Arc<Core>, definition: &Value, before: &[Value]) -> Result<bool> {
    let row = core.builtin("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let target = Target::of(&row, "", val::str_at(definition, &["metadata", "name"]));
    let user = crate::bootstrap::server_user();
    let options = WriteOptions { manager: "kube-apiserver".into(), ..WriteOptions::default() };
    if definition["metadata"]["deletionTimestamp"].is_string() {
        if !empty(core, definition).await? {
            return Ok(false);
        }
        let release = Update::own(target, |live| {
            let mut new = live.clone();
            val::vec_mut(&mut new, &["metadata", "finalizers"]).retain(|f| f != CLEANUP);
            Ok(new)
        });
        return core.update(&user, &release, &options).await.map(|_| true);
    }
    let taken = conflict(&Kinds::with(before).registry, definition);
    let now = core.now();
    let accept = Update::own(target, move |live| Ok(accepted(live, taken.as_ref(), &now)));
    core.update(&user, &accept, &options).await.map(|_| true)
}

/// The definition with the status and the finalizer that it must have.
fn accepted(live: &Value, taken: Option<&(&'static str, String)>, now: &str) -> Value {
    let mut new = live.clone();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message});
    match taken {
        None => {
            let names = live["spec"]["names"].clone();
            val::put(&mut new, &["status", "acceptedNames"], names);
            set_condition(&mut new, condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"), now);
            set_condition(&mut new, condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted"), now);
        }
        Some((reason, message)) => {
            set_condition(&mut new, condition("NamesAccepted", "False", reason, message), now);
            set_condition(&mut new, condition("Established", "False", "NotAccepted", "not all names are accepted"), now);
        }
    }
    let versions = val::list_at(live, &["spec", "versions"]);
    if let Some(storage) = versions.iter().find(|v| v["storage"] == true).map(|v| v["name"].clone()) {
        let stored = val::vec_mut(&mut new, &["status", "storedVersions"]);
        if !stored.contains(&storage) {
            stored.push(storage);
        }
    }
    let finalizers = val::vec_mut(&mut new, &["metadata", "finalizers"]);
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(json!(CLEANUP));
    }
    new
}

/// Deletes the objects of a definition; `true` when none is left.
async fn empty(core: &Arc<Core>, definition: &Value) -> Result<bool> {
    let served = rows(definition).into_iter().map(|(row, _)| row).next();
    let Some(row) = served.map(Arc::new) else { return Ok(true) };
    let request = ListRequest { selection: Selection::all(&row, ""), revision: None, matching: None, limit: 0, page: None };
    let left = core.list(&request).await?.items;
    if left.is_empty() {
        return Ok(true);
    }
    let how = DeleteOptions::default();
    core.delete_collection(&request, &how, &WriteOptions::default()).await?;
    Ok(core.list(&request).await?.items.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptance_settles_and_is_stable() {
        let live = json!({"metadata": {"name": "foos.ex.com"}, "spec": {"names": {"plural": "foos"}, "versions": [{"name": "v1", "storage": true}]}});
        let once = accepted(&live, None, "t1");
        assert_eq!(once["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(once["status"]["conditions"][1]["type"], "Established");
        assert_eq!(once["metadata"]["finalizers"], json!([CLEANUP]));
        assert_eq!(accepted(&once, None, "t2"), once, "times move only with the status");
        let taken = accepted(&live, Some(&("KindConflict", "x".into())), "t1");
        assert_eq!(taken["status"]["conditions"][0]["reason"], "KindConflict");
    }
}
