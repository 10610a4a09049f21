//! Every namespace has a service account named `default`, and has it again when somebody deletes it.

use kontiki_base::object::ObjectKey;
use serde_json::json;

use super::Input;
use crate::kind::Kind;
use crate::plan::{Action, Plan};

/// One look at one namespace.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let namespace = &input.key.name;
    let wanted = input.world.namespace_active(namespace);
    if wanted && input.world.service_accounts.get(&ObjectKey::new(namespace.clone(), "default")).is_none() {
        let object = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } });
        plan.push(Action::Create { kind: Kind::ServiceAccount, object, guards: Vec::new() });
    }
    plan
}
