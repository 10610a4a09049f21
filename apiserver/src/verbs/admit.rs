//! What admission looks at, and the guards that keep it true until the write is carried out.

use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::kv::RangeReq;
use kontiki_base::{Code, KeyRange, Revision};
use kontiki_registry::admit::{self, Facts, Request, Wants};
use kontiki_registry::status::Status;
use serde_json::Value;

use super::commit::{Effect, KeyWrite};
use super::{Current, Target};
use crate::core::Core;
use crate::error::Result;

/// Every write that allocates Service addresses or ports changes this key: two of them cannot pass each other.
const SERVICES_KEY: &[u8] = b"/registry/ranges/services";

/// The objects that admission asked for, and what must still hold at the commit.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    namespace: Option<Value>,
    service_account: Option<Value>,
    priority_classes: Vec<Value>,
    storage_classes: Vec<Value>,
    ingress_classes: Vec<Value>,
    services: Vec<Value>,
    /// Keys that must not have changed.
    pub(crate) guards: Vec<(Bytes, Revision)>,
    /// Keys to write along.
    pub(crate) also: Vec<KeyWrite>,
}

impl Gathered {
    fn with_facts<T>(&self, decide: impl FnOnce(&Facts<'_>) -> T) -> T {
        let [priority_classes, storage_classes, ingress_classes, services] =
            [&self.priority_classes, &self.storage_classes, &self.ingress_classes, &self.services].map(|v| v.iter().collect::<Vec<_>>());
        decide(&Facts {
            namespace: self.namespace.as_ref(),
            service_account: self.service_account.as_ref(),
            priority_classes: &priority_classes,
            storage_classes: &storage_classes,
            ingress_classes: &ingress_classes,
            services: &services,
        })
    }

    /// Admits a creation.
    pub(crate) fn create(&self, request: &Request<'_>, object: &mut Value) -> Result<()> {
        self.with_facts(|facts| admit::create(request, object, facts))
    }

    /// Admits an update.
    pub(crate) fn update(&self, request: &Request<'_>, object: &mut Value, old: &Value) -> Result<()> {
        self.with_facts(|facts| admit::update(request, object, old, facts))
    }
}

impl Core {
    /// Reads what admission wants to know. `creating`: the namespace must stay as it is until the commit.
    pub(crate) async fn gather(&self, request: &Request<'_>, object: &Value, creating: bool) -> Result<Gathered> {
        let wants: Wants = admit::wants(request, object);
        let mut gathered = Gathered::default();
        if wants.namespace && !request.namespace.is_empty() {
            let target = Target::of(&self.builtin("", "v1", "namespaces"), "", request.namespace);
            let namespace = self.read_settled_namespace(&target).await?;
            if creating && namespace.value.is_some() {
                gathered.guards.push((target.key(), namespace.revision));
            }
            gathered.namespace = namespace.value;
        }
        if let Some(name) = &wants.service_account {
            let target = Target::of(&self.builtin("", "v1", "serviceaccounts"), request.namespace, name);
            let mut account = self.read_for_write(&target).await?;
            if account.value.is_none() && !account.fresh {
                account = self.read_fresh(&target).await?;
            }
            gathered.service_account = account.value;
        }
        for (wanted, group, plural, into) in [
            (wants.priority_classes, "scheduling.k8s.io", "priorityclasses", &mut gathered.priority_classes),
            (wants.storage_classes, "storage.k8s.io", "storageclasses", &mut gathered.storage_classes),
            (wants.ingress_classes, "networking.k8s.io", "ingressclasses", &mut gathered.ingress_classes),
        ] {
            if wanted {
                *into = self.everything(group, plural).await?;
            }
        }
        if wants.services {
            let lock = self.kv.range(RangeReq::new(KeyRange::single(Bytes::from_static(SERVICES_KEY)))).await?;
            let expect = lock.kvs.first().map_or(Revision::ZERO, |kv| kv.mod_revision);
            // Every Service that was written under the key as it is now is in the cache from here on.
            self.not_older(expect).await?;
            gathered.services = self.everything("", "services").await?;
            let value = format!("{{\"serialized\":\"{}\"}}", request.suffix);
            gathered.also.push(KeyWrite { key: Bytes::from_static(SERVICES_KEY), expect, effect: Effect::Put(value.into()) });
        }
        Ok(gathered)
    }

    /// A namespace from the cache if it is alive there. A missing or a dying one is looked up in the store: it may have come back.
    async fn read_settled_namespace(&self, target: &Target) -> Result<Current> {
        let found = self.read_for_write(target).await?;
        let alive = |v: &Value| v["metadata"]["deletionTimestamp"].is_null() && v["status"]["phase"] != "Terminating";
        if found.fresh || found.value.as_ref().is_some_and(alive) { Ok(found) } else { self.read_fresh(target).await }
    }

    async fn everything(&self, group: &str, plural: &str) -> Result<Vec<Value>> {
        let row = self.builtin(group, "v1", plural);
        let cache = self.cache(&row).await.ok_or_else(|| Status::new(Code::Unavailable, format!("the cache of {plural} is not ready")))?;
        let (_, objects) = cache.snapshot(row.storage_prefix(None).as_bytes(), || self.hub.applied());
        Ok(objects.iter().map(|o: &Arc<_>| o.value()).collect())
    }
}
