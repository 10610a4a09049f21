//! Evictions: a deletion that disruption budgets may refuse. The budget is charged in the transaction that deletes the pod.

use axum::body::Body;
use http::Response;
use kontiki_base::Code;
use kontiki_registry::delete::DeleteOptions;
use kontiki_registry::rbac::User;
use kontiki_registry::select::LabelSelector;
use kontiki_registry::status::{Cause, Details, Status};
use kontiki_registry::val;
use serde_json::{Value, json};

use super::binding::set_condition;
use crate::core::Core;
use crate::error::Result;
use crate::rest::{Call, success};
use crate::verbs::commit::{Committed, Prepared};
use crate::verbs::create::contended;
use crate::verbs::update::Update;
use crate::verbs::{Target, WRITE_TRIES, WriteOptions};

/// A budget that has this many evictions under way takes no more.
const MAX_DISRUPTED: usize = 2_000;

/// POST pods/{name}/eviction.
pub(super) async fn serve(call: &mut Call) -> Result<Response<Body>> {
    let sub = call.row.subresource("eviction").cloned().ok_or_else(Status::no_such_resource)?;
    let (eviction, mut options) = super::read_object(call, &sub, "CreateOptions").await?;
    let how = DeleteOptions::from_body(&eviction["deleteOptions"])?;
    options.dry_run |= how.dry_run;
    let named = eviction["metadata"]["name"].as_str().unwrap_or_default();
    if named != call.path.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    evict(&call.core, &call.user, &call.target(), &how, &options).await?;
    call.answer_tree(201, &success())
}

/// Evicts a pod.
pub(crate) async fn evict(core: &Core, user: &User, target: &Target, how: &DeleteOptions, options: &WriteOptions) -> Result<()> {
    for _ in 0..WRITE_TRIES {
        let mut current = core.read_fresh(target).await?;
        let pod = current.value.clone().ok_or_else(|| Status::not_found(&target.row, &target.name))?;
        let mut writes: Vec<Prepared> = Vec::new();
        if !ignores_budgets(&pod) {
            writes.extend(charge(core, user, target, &pod, options).await?);
        }
        if let Some(value) = &mut current.value {
            let why = "Eviction API: evicting";
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": why});
            set_condition(value, condition, &core.now());
        }
        writes.push(core.prepare_delete(target, &current, how)?);
        if options.dry_run || writes.iter().all(Prepared::is_noop) {
            return Ok(());
        }
        if let Committed::At(_) = core.commit(&writes, options.fence).await? {
            return Ok(());
        }
    }
    Err(contended(target))
}

fn ignores_budgets(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
    matches!(phase, "Pending" | "Succeeded" | "Failed") || pod["metadata"]["deletionTimestamp"].is_string()
}

/// The write that charges the pod's budget; `None` if there is none to charge.
async fn charge(core: &Core, user: &User, target: &Target, pod: &Value, options: &WriteOptions) -> Result<Option<Prepared>> {
    let row = core.builtin("policy", "v1", "poddisruptionbudgets");
    let cache = core.cache(&row).await.ok_or_else(|| Status::new(Code::Unavailable, "the cache of disruption budgets is not ready"))?;
    let prefix = row.storage_prefix(Some(&target.namespace));
    core.not_older(core.quorum_revision().await?).await?;
    let (_, budgets) = cache.snapshot(prefix.as_bytes(), || core.hub.applied());
    let mut matching = Vec::new();
    for budget in budgets {
        let value = budget.value();
        if LabelSelector::from_object(&value["spec"]["selector"])?.matches(pod) {
            matching.push(value);
        }
    }
    let budget = match matching.as_slice() {
        [] => return Ok(None),
        [one] => one,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    if !is_ready(pod) && unhealthy_may_go(budget) {
        return Ok(None);
    }
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let budget_target = Target::of(&row, &target.namespace, name);
    let (pod_name, now) = (target.name.clone(), core.now());
    let update = Update::own(budget_target.clone(), move |live| spend(live, &pod_name, &now));
    let current = core.read_fresh(&budget_target).await?;
    core.prepare_update(user, &update, &current, options).await.map(Some)
}

fn is_ready(pod: &Value) -> bool {
    val::list_at(pod, &["status", "conditions"]).iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether a pod that is not ready may be evicted without charging the budget.
fn unhealthy_may_go(budget: &Value) -> bool {
    if budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" {
        return true;
    }
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0
}

fn refuse(message: &str, retry_after_seconds: u32) -> Status {
    let cause = Cause { reason: "DisruptionBudget".into(), message: message.into(), field: String::new() };
    Status::new(Code::TooManyRequests, "Cannot evict pod as it would violate the pod's disruption budget.").with_details(Details {
        causes: vec![cause],
        retry_after_seconds,
        ..Details::default()
    })
}

/// The budget with one disruption less, or why it has none to give.
fn spend(budget: &Value, pod: &str, now: &str) -> Result<Value> {
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let status = &budget["status"];
    let number = |v: &Value| v.as_i64().unwrap_or(0);
    if number(&status["observedGeneration"]) < number(&budget["metadata"]["generation"]) {
        return Err(refuse(&format!("The disruption budget {name} is still being processed by the server."), 10));
    }
    let allowed = number(&status["disruptionsAllowed"]);
    let forbidden = |why: &str| Status::new(Code::Forbidden, format!("poddisruptionbudgets.policy {name:?} is forbidden: {why}"));
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    if status["disruptedPods"].as_object().is_some_and(|p| p.len() > MAX_DISRUPTED) {
        return Err(forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    if allowed == 0 {
        return Err(refuse(&exhausted(budget, name), 0));
    }
    let mut new = budget.clone();
    val::put(&mut new, &["status", "disruptionsAllowed"], json!(allowed - 1));
    val::put(&mut new, &["status", "disruptedPods", pod], json!(now));
    if allowed == 1 {
        set_condition(&mut new, json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods"}), now);
    }
    Ok(new)
}

fn exhausted(budget: &Value, name: &str) -> String {
    let status = &budget["status"];
    let condition =
        val::list_at(budget, &["status", "conditions"]).iter().find(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False");
    let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
    if let Some(c) = condition.filter(|c| c["reason"] == "SyncFailed") {
        return format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text(c, "message")
        );
    }
    let (current, desired) = (status["currentHealthy"].as_i64().unwrap_or(0), status["desiredHealthy"].as_i64().unwrap_or(0));
    if current <= desired {
        return format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently");
    }
    match condition.filter(|c| !text(c, "message").is_empty()) {
        Some(c) => {
            format!("The disruption budget {name} does not allow evicting pods currently ({}): {}", text(c, "reason"), text(c, "message"))
        }
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_until_it_is_exhausted() {
        let budget = json!({"metadata": {"name": "b", "generation": 1}, "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1}});
        let spent = spend(&budget, "p", "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert_eq!(spent["status"]["disruptedPods"], json!({"p": "2026-01-01T00:00:00Z"}));
        let refused = spend(&spent, "q", "2026-01-01T00:00:00Z").unwrap_err();
        assert_eq!((refused.http, refused.retry_after()), (429, None));
        let mut unseen = budget.clone();
        unseen["metadata"]["generation"] = json!(2);
        assert_eq!(spend(&unseen, "p", "").unwrap_err().retry_after(), Some(10));
    }

    #[test]
    fn unhealthy_pods_go_only_if_the_budget_is_met() {
        let with = |policy: &str, current: i64| json!({"spec": {"unhealthyPodEvictionPolicy": policy}, "status": {"currentHealthy": current, "desiredHealthy": 2}});
        assert!(unhealthy_may_go(&with("AlwaysAllow", 0)));
        assert!(unhealthy_may_go(&with("IfHealthyBudget", 2)));
        assert!(!unhealthy_may_go(&with("IfHealthyBudget", 1)));
    }
}
