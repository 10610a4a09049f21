//! What controllers may look at: the objects that informers have seen, and what is known of the nodes' heartbeats. A change goes in
//! through [`World::apply`], which also says which controllers must look at which keys.

mod dirty;
mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::Metadata;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kontiki_base::env::WallMs;
use kontiki_base::object::ObjectKey;

pub use graph::{Graph, GraphRow, ObjectId};

use crate::controllers::ControllerId;
use crate::kind::Kind;
use crate::meta;
use crate::store::Store;

/// The name of the config map that carries the cluster's certificate authority in every namespace.
pub const ROOT_CA_NAME: &str = "kube-root-ca.crt";

/// What is known of a node's heartbeats, as of the last tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeLiveness {
    /// How long ago the last heartbeat came; `None`: not since this process started.
    pub last_beat_age_ms: Option<u64>,
    /// For how long this process has been leading: nobody is silent for longer than somebody has been listening.
    pub since_leader_ms: u64,
}

impl NodeLiveness {
    /// For how long the node has certainly been silent.
    pub fn silent_ms(&self) -> u64 {
        self.last_beat_age_ms.map_or(self.since_leader_ms, |age| age.min(self.since_leader_ms))
    }
}

/// What the controllers are told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// PEM for the [`ROOT_CA_NAME`] config maps; empty: they are not written.
    pub root_ca_pem: String,
    /// A node that has been silent for this long is unreachable.
    pub node_grace: Duration,
    /// A node that has never been heard of since its registration gets this long.
    pub node_startup_grace: Duration,
    /// A pod whose node does not exist is removed after this long.
    pub gone_node_quarantine: Duration,
    /// Pods beyond this number that have run to their end are removed, oldest first.
    pub terminated_pods_kept: usize,
    /// The addresses of all pods: network and prefix length.
    pub pod_network: (std::net::Ipv4Addr, u8),
    /// Prefix length of one node's block within it.
    pub node_prefix: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            node_grace: Duration::from_secs(6),
            node_startup_grace: Duration::from_secs(20),
            gone_node_quarantine: Duration::from_secs(40),
            terminated_pods_kept: 12_500,
            pod_network: (std::net::Ipv4Addr::new(10, 244, 0, 0), 16),
            node_prefix: 24,
        }
    }
}

/// A change that an informer saw.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// The object is there, or has changed: its JSON.
    Upsert(&'a [u8]),
    /// The object is gone.
    Remove(&'a ObjectKey),
}

/// A controller must look at a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dirty {
    /// Who.
    pub controller: ControllerId,
    /// At what.
    pub key: ObjectKey,
}

/// What a change has done.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The object's name.
    pub key: ObjectKey,
    /// Who must look at what because of it.
    pub dirty: Vec<Dirty>,
    /// The pod as it was before, if it is one and was known.
    pub old_pod: Option<Arc<Pod>>,
}

/// An object that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("unreadable {kind}: {why}")]
pub struct BadObject {
    /// Of which kind it should have been.
    pub kind: Kind,
    /// What is wrong with it.
    pub why: String,
}

/// Everything that controllers may look at.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What the controllers are told once.
    pub settings: Settings,
    /// Namespaces.
    pub namespaces: Store<Namespace>,
    /// Nodes.
    pub nodes: Store<Node>,
    /// Pods.
    pub pods: Store<Pod>,
    /// Services.
    pub services: Store<Service>,
    /// Endpoints.
    pub endpoints: Store<Endpoints>,
    /// Endpoint slices.
    pub endpoint_slices: Store<EndpointSlice>,
    /// Service accounts.
    pub service_accounts: Store<ServiceAccount>,
    /// Config maps, those named [`ROOT_CA_NAME`] only.
    pub root_cas: Store<ConfigMap>,
    /// Deployments.
    pub deployments: Store<Deployment>,
    /// Replica sets.
    pub replica_sets: Store<ReplicaSet>,
    /// The metadata of every object of every watched kind, and who owns whom.
    pub graph: Graph,
    /// Heartbeats by node name.
    pub liveness: BTreeMap<String, NodeLiveness>,
    /// Pods by the node they are bound to.
    pods_by_node: BTreeMap<String, BTreeSet<ObjectKey>>,
    /// Nodes that pods are bound to and that do not exist, and since when.
    missing_nodes: BTreeMap<String, WallMs>,
}

fn parse<T: serde::de::DeserializeOwned>(kind: Kind, raw: &[u8]) -> Result<T, BadObject> {
    serde_json::from_slice(raw).map_err(|e| BadObject { kind, why: e.to_string() })
}

#[derive(serde::Deserialize)]
struct MetaOnly {
    metadata: ObjectMeta,
}

/// Old and new state of one object.
struct Pair<T> {
    old: Option<Arc<T>>,
    new: Option<Arc<T>>,
}

impl<T: Metadata<Ty = ObjectMeta> + serde::de::DeserializeOwned> Pair<T> {
    fn put(kind: Kind, store: &mut Store<T>, change: Change<'_>) -> Result<Self, BadObject> {
        match change {
            Change::Upsert(raw) => {
                let new = Arc::new(parse::<T>(kind, raw)?);
                Ok(Self { old: store.upsert(new.clone()), new: Some(new) })
            }
            Change::Remove(key) => Ok(Self { old: store.remove(key), new: None }),
        }
    }

    fn new_meta(&self) -> Option<ObjectMeta> {
        self.new.as_ref().map(|object| object.metadata().clone())
    }

    fn any(&self) -> Option<&Arc<T>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    fn both(&self) -> impl Iterator<Item = &Arc<T>> {
        self.old.iter().chain(self.new.iter())
    }
}

impl World {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes in a change. An object that cannot be read changes nothing.
    pub fn apply(&mut self, kind: Kind, change: Change<'_>) -> Result<Applied, BadObject> {
        let mut out = Vec::new();
        let mut old_pod = None;
        let typed = match kind {
            Kind::Namespace => {
                let pair = Pair::put(kind, &mut self.namespaces, change)?;
                dirty::namespace(&pair, &mut out);
                pair.new_meta()
            }
            Kind::Node => {
                let pair = Pair::put(kind, &mut self.nodes, change)?;
                dirty::node(self, &pair, &mut out);
                pair.new_meta()
            }
            Kind::Pod => {
                let pair = Pair::put(kind, &mut self.pods, change)?;
                self.index_pod(&pair);
                dirty::pod(self, &pair, &mut out);
                old_pod.clone_from(&pair.old);
                pair.new_meta()
            }
            Kind::Service => {
                let pair = Pair::put(kind, &mut self.services, change)?;
                dirty::service(&pair, &mut out);
                pair.new_meta()
            }
            Kind::Endpoints => {
                let pair = Pair::put(kind, &mut self.endpoints, change)?;
                dirty::endpoints(&pair, &mut out);
                pair.new_meta()
            }
            Kind::EndpointSlice => {
                let pair = Pair::put(kind, &mut self.endpoint_slices, change)?;
                dirty::endpoint_slice(&pair, &mut out);
                pair.new_meta()
            }
            Kind::ServiceAccount => {
                let pair = Pair::put(kind, &mut self.service_accounts, change)?;
                dirty::service_account(&pair, &mut out);
                pair.new_meta()
            }
            Kind::Deployment => {
                let pair = Pair::put(kind, &mut self.deployments, change)?;
                dirty::deployment(&pair, &mut out);
                pair.new_meta()
            }
            Kind::ReplicaSet => {
                let pair = Pair::put(kind, &mut self.replica_sets, change)?;
                dirty::replica_set(self, &pair, &mut out);
                pair.new_meta()
            }
            _ => None,
        };
        let key = self.apply_meta(kind, change, typed, &mut out)?;
        if kind == Kind::ConfigMap && key.name == ROOT_CA_NAME {
            let pair = Pair::put(Kind::ConfigMap, &mut self.root_cas, change)?;
            dirty::root_ca(&pair, &mut out);
        }
        out.sort();
        out.dedup();
        Ok(Applied { key, dirty: out, old_pod })
    }

    /// The graph's part of a change; `typed` is the metadata if the object has been read already.
    fn apply_meta(
        &mut self,
        kind: Kind,
        change: Change<'_>,
        typed: Option<ObjectMeta>,
        out: &mut Vec<Dirty>,
    ) -> Result<ObjectKey, BadObject> {
        let (id, old, new) = match change {
            Change::Upsert(raw) => {
                let meta = match typed {
                    Some(meta) => meta,
                    None => parse::<MetaOnly>(kind, raw)?.metadata,
                };
                let id = ObjectId { kind, key: meta::key(&meta) };
                let row = GraphRow::of(&meta);
                (id.clone(), self.graph.upsert(id, row.clone()), Some(row))
            }
            Change::Remove(key) => {
                let id = ObjectId { kind, key: key.clone() };
                (id.clone(), self.graph.remove(&id), None)
            }
        };
        dirty::graph(self, &id, old.as_ref(), new.as_ref(), out);
        Ok(id.key)
    }

    fn index_pod(&mut self, pair: &Pair<Pod>) {
        let place = |p: &Arc<Pod>| (meta::node_of(p).to_owned(), meta::key(&p.metadata));
        let (old, new) = (pair.old.as_ref().map(place), pair.new.as_ref().map(place));
        if old == new {
            return;
        }
        if let Some((node, key)) = old
            && let Some(keys) = self.pods_by_node.get_mut(&node)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.pods_by_node.remove(&node);
            }
        }
        if let Some((node, key)) = new.filter(|(node, _)| !node.is_empty()) {
            self.pods_by_node.entry(node).or_default().insert(key);
        }
    }

    /// The pods that are bound to a node.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Pod>> + 'a {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|key| self.pods.get(key))
    }

    /// The pods of a namespace, by name.
    pub fn pods_in(&self, namespace: &str) -> Vec<&Arc<Pod>> {
        let from = ObjectKey::new(namespace, "");
        self.pods.from(&from).take_while(|pod| meta::namespace(&pod.metadata) == namespace).collect()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(&ObjectKey::new("", name))
    }

    /// Since when pods are bound to a node that does not exist; `None` while it exists.
    pub fn missing_since(&self, node: &str) -> Option<WallMs> {
        self.missing_nodes.get(node).copied()
    }

    /// Whether a namespace is there and not on its way out.
    pub fn namespace_active(&self, namespace: &str) -> bool {
        self.namespaces.get(&ObjectKey::new("", namespace)).is_some_and(|ns| !meta::deleting(&ns.metadata))
    }

    /// The names of all objects of a kind that were seen, for a list that replaces them.
    pub fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        self.graph.of_kind(kind).map(|(key, _)| key.clone()).collect()
    }

    /// Time passes: takes in the heartbeats, and says who must look because of their age alone. To be called twice a second.
    pub fn tick(&mut self, now: WallMs, liveness: BTreeMap<String, NodeLiveness>) -> Vec<Dirty> {
        let mut out = Vec::new();
        self.liveness = liveness;
        if crate::controllers::node_lifecycle::verdicts_changed(self, now) {
            out.push(Dirty { controller: ControllerId::NodeLifecycle, key: ObjectKey::default() });
        }
        let nodes = &self.nodes;
        let exists = |node: &str| nodes.get(&ObjectKey::new("", node)).is_some();
        let by_node = &self.pods_by_node;
        self.missing_nodes.retain(|node, _| !exists(node) && by_node.contains_key(node));
        for (node, pods) in by_node {
            if exists(node) || self.missing_nodes.contains_key(node) {
                continue;
            }
            self.missing_nodes.insert(node.clone(), now);
            out.extend(pods.iter().map(|key| Dirty { controller: ControllerId::PodGc, key: key.clone() }));
        }
        out
    }

    /// Everything there is to look at, for a new leader: every key of every controller.
    pub fn everything(&self) -> Vec<Dirty> {
        dirty::everything(self)
    }
}
