//! Admission: what is added to an object, and why it may be refused, given a few facts about the rest of the cluster.
//!
//! The server first asks [`wants`], reads those objects, and calls [`create`] or [`update`] with them.

pub mod namespace;
pub mod node;
pub mod pod;
pub mod service;

use serde_json::Value;

use crate::rbac::User;
use crate::row::{Row, Sub};
use crate::status::Status;

/// What admission needs to read before it can decide about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The namespace object of the request.
    pub namespace: bool,
    /// This ServiceAccount in the namespace of the request.
    pub service_account: Option<String>,
    /// All PriorityClasses.
    pub priority_classes: bool,
    /// All StorageClasses.
    pub storage_classes: bool,
    /// All IngressClasses.
    pub ingress_classes: bool,
    /// All Services, in all namespaces: addresses and ports are allocated among them. The write must be serialized with other
    /// writes of Services, or guarded by a key that each of them changes.
    pub services: bool,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// As asked; `None` is "there is none".
    pub namespace: Option<&'a Value>,
    /// As asked; `None` is "there is none".
    pub service_account: Option<&'a Value>,
    /// As asked.
    pub priority_classes: &'a [&'a Value],
    /// As asked.
    pub storage_classes: &'a [&'a Value],
    /// As asked.
    pub ingress_classes: &'a [&'a Value],
    /// As asked.
    pub services: &'a [&'a Value],
}

/// Who asks, and about what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who.
    pub user: &'a User,
    /// The kind.
    pub row: &'a Row,
    /// The subresource, if any.
    pub sub: Option<&'a Sub>,
    /// Namespace of the path; empty for kinds without.
    pub namespace: &'a str,
    /// Five random characters, for names that admission makes up.
    pub suffix: &'a str,
}

/// What to read before a creation or an update of `obj`.
pub fn wants(req: &Request<'_>, obj: &Value) -> Wants {
    let core = req.row.group.is_empty() && req.sub.is_none();
    let is = |kind: &str| core && req.row.kind == kind;
    Wants {
        namespace: req.row.namespaced,
        service_account: is("Pod").then(|| pod::service_account_name(obj).to_string()),
        priority_classes: is("Pod"),
        storage_classes: is("PersistentVolumeClaim"),
        ingress_classes: req.row.group == "networking.k8s.io" && req.row.kind == "Ingress" && req.sub.is_none(),
        services: is("Service"),
    }
}

/// Admits a creation. `obj` has its defaults; it may be changed, and must get its defaults again afterwards.
pub fn create(req: &Request<'_>, obj: &mut Value, facts: &Facts<'_>) -> Result<(), Status> {
    namespace::check_create(req, obj, facts.namespace)?;
    node::restrict(req, obj, None)?;
    if req.sub.is_some() {
        return Ok(());
    }
    match (req.row.group.as_str(), req.row.kind.as_str()) {
        ("", "Pod") => pod::create(req, obj, facts),
        ("", "Node") => {
            node::taint_not_ready(obj);
            Ok(())
        }
        ("", "Service") => service::allocate(req.row, obj, None, facts.services),
        ("", "PersistentVolumeClaim") => {
            service::default_storage_class(obj, facts.storage_classes);
            service::protect(obj, "kubernetes.io/pvc-protection");
            Ok(())
        }
        ("", "PersistentVolume") => {
            service::protect(obj, "kubernetes.io/pv-protection");
            Ok(())
        }
        ("networking.k8s.io", "Ingress") => {
            service::default_ingress_class(obj, facts.ingress_classes);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Admits an update. `obj` is the new state with defaults and with what an update copies from `old`.
pub fn update(req: &Request<'_>, obj: &mut Value, old: &Value, facts: &Facts<'_>) -> Result<(), Status> {
    namespace::check_update(req, facts.namespace)?;
    node::restrict(req, obj, Some(old))?;
    if req.sub.is_none() && req.row.group.is_empty() && req.row.kind == "Service" {
        service::allocate(req.row, obj, Some(old), facts.services)?;
    }
    Ok(())
}
