//! Adoption and release: which objects a controller may call its own (Kubernetes `controller_ref_manager.go`). A selector alone
//! never claims an object that another controller owns.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::kind::Kind;
use crate::meta;
use crate::plan::{Action, Guard, PatchType};

/// What an object is to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Owned and selected.
    Mine,
    /// Nobody's, selected, and both sides are here to stay.
    Adopt,
    /// Owned, but no longer selected.
    Release,
    /// None of its business.
    Foreign,
}

/// Decides; `selected` says whether the controller's selector matches the object.
pub fn claim(owner: &ObjectMeta, object: &ObjectMeta, selected: bool) -> Claim {
    match meta::controller_of(object) {
        Some(reference) if Some(&reference.uid) == owner.uid.as_ref() => {
            // An owner that is going lets nothing go: the garbage collector decides about its dependents.
            if selected || meta::deleting(owner) { Claim::Mine } else { Claim::Release }
        }
        Some(_) => Claim::Foreign,
        None if selected && !meta::deleting(owner) && !meta::deleting(object) => Claim::Adopt,
        None => Claim::Foreign,
    }
}

/// Makes `owner` the controller of an object that has none, provided that the owner still lives.
pub fn adopt(owner_kind: Kind, owner: &ObjectMeta, kind: Kind, object: &ObjectMeta) -> Action {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|o| Some(&o.uid) != owner.uid.as_ref());
    owners.push(meta::owner_ref(owner_kind, owner));
    let mut metadata = meta::pin(object);
    metadata["ownerReferences"] = json!(owners);
    Action::Patch {
        kind,
        key: meta::key(object),
        patch_type: PatchType::Merge,
        patch: json!({ "metadata": metadata }),
        subresource: "",
        guards: vec![Guard::Alive { kind: owner_kind, key: meta::key(owner), uid: meta::uid(owner) }],
    }
}

/// Takes `owner` out of an object's owners.
pub fn release(owner: &ObjectMeta, kind: Kind, object: &ObjectMeta) -> Action {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|o| Some(&o.uid) != owner.uid.as_ref());
    let mut metadata = meta::pin(object);
    metadata["ownerReferences"] = if owners.is_empty() { serde_json::Value::Null } else { json!(owners) };
    Action::Patch {
        kind,
        key: meta::key(object),
        patch_type: PatchType::Merge,
        patch: json!({ "metadata": metadata }),
        subresource: "",
        guards: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_table() {
        let meta = |uid: &str, owner: Option<&str>, deleting: bool| -> ObjectMeta {
            let owners =
                owner.map(|o| json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": o, "controller": true }]));
            let gone = deleting.then_some("2024-01-01T00:00:00Z");
            serde_json::from_value(json!({ "uid": uid, "ownerReferences": owners, "deletionTimestamp": gone })).unwrap()
        };
        let (owner, dying) = (meta("o", None, false), meta("o", None, true));
        let table = [
            (&owner, Some("o"), false, true, Claim::Mine),
            (&owner, Some("o"), false, false, Claim::Release),
            (&dying, Some("o"), false, false, Claim::Mine),
            (&owner, Some("other"), false, true, Claim::Foreign),
            (&owner, None, false, true, Claim::Adopt),
            (&owner, None, true, true, Claim::Foreign),
            (&dying, None, false, true, Claim::Foreign),
            (&owner, None, false, false, Claim::Foreign),
        ];
        for (i, (owner, object_owner, deleting, selected, want)) in table.into_iter().enumerate() {
            assert_eq!(claim(owner, &meta("x", object_owner, deleting), selected), want, "row {i}");
        }
    }
}
