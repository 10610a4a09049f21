//! Every namespace has the cluster's certificate authority in a config map that pods mount, restored when it is changed.

use std::collections::BTreeMap;

use kontiki_base::object::ObjectKey;
use serde_json::json;

use super::Input;
use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, PatchType, Plan};
use crate::world::ROOT_CA_NAME;

/// One look at one namespace.
pub fn reconcile(input: &Input<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let (world, namespace) = (input.world, &input.key.name);
    let pem = &world.settings.root_ca_pem;
    if pem.is_empty() || !world.namespace_active(namespace) {
        return plan;
    }
    let wanted = BTreeMap::from([("ca.crt".to_owned(), pem.clone())]);
    match world.root_cas.get(&ObjectKey::new(namespace.clone(), ROOT_CA_NAME)) {
        None => {
            let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
                         internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
                         clusters.";
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": { "name": ROOT_CA_NAME, "namespace": namespace, "annotations": { "kubernetes.io/description": about } },
                "data": wanted,
            });
            plan.push(Action::Create { kind: Kind::ConfigMap, object, guards: Vec::new() });
        }
        Some(map) if map.data.as_ref() != Some(&wanted) && !meta::deleting(&map.metadata) => {
            // A merge patch would leave keys that somebody added: they are named and nulled.
            let mut data = json!(wanted);
            for stale in map.data.iter().flatten().map(|(k, _)| k).filter(|k| *k != "ca.crt") {
                data[stale] = serde_json::Value::Null;
            }
            plan.push(Action::Patch {
                kind: Kind::ConfigMap,
                key: meta::key(&map.metadata),
                patch_type: PatchType::Merge,
                patch: json!({ "metadata": meta::pin(&map.metadata), "data": data }),
                subresource: "",
                guards: Vec::new(),
            });
        }
        Some(_) => {}
    }
    plan
}
