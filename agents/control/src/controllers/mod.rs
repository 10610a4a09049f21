//! The controllers, one file each, and the table of them.
//!
//! A reconcile sees the world as of at least its own last write: the shell does not run a key before the informers have delivered
//! what the key's last plan wrote. That takes the place of the *expectations* of Kubernetes' controllers.

pub mod claim;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod gc;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replicaset;
pub mod root_ca;
pub mod serviceaccount;
pub mod taint_eviction;

use kontiki_base::Code;
use kontiki_base::env::WallMs;
use kontiki_base::object::ObjectKey;

use crate::plan::Plan;
use crate::world::World;

/// The last plan of a key failed in a way that waiting does not cure; the controller may want to say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What came of the action.
    pub code: Code,
    /// The server's words.
    pub message: String,
    /// Name of the object that the action was about.
    pub object: ObjectKey,
}

/// What a reconcile gets.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What to look at. Controllers that look at the whole cluster have one key, the empty one.
    pub key: &'a ObjectKey,
    /// What is known.
    pub world: &'a World,
    /// What time it is.
    pub now: WallMs,
    /// How the last plan of this key failed, if it did.
    pub failure: Option<&'a Failure>,
}

/// A reconcile.
pub type Reconcile = fn(&Input<'_>) -> Plan;

/// A row of the table of controllers.
pub struct ControllerRow {
    /// Which.
    pub id: ControllerId,
    /// Its name in metrics, events and `fieldManager`.
    pub name: &'static str,
    /// What it does.
    pub reconcile: Reconcile,
}

macro_rules! controllers {
    ($($(#[$doc:meta])* $id:ident $name:literal $reconcile:path;)*) => {
        /// A controller.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(usize)]
        pub enum ControllerId { $($(#[$doc])* $id,)* }

        /// Every controller. [`ControllerId::row`] is the position here.
        pub const CONTROLLERS: &[ControllerRow] = &[$(ControllerRow { id: ControllerId::$id, name: $name, reconcile: $reconcile },)*];
    };
}

controllers! {
    /// Rolls pod templates out.
    Deployment "deployment-controller" deployment::reconcile;
    /// Keeps the number of pods.
    ReplicaSet "replicaset-controller" replicaset::reconcile;
    /// Writes Endpoints of services.
    Endpoints "endpoint-controller" endpoints::reconcile;
    /// Writes EndpointSlices of services.
    EndpointSlice "endpointslice-controller" endpointslice::reconcile;
    /// Empties namespaces that are being deleted.
    Namespace "namespace-controller" namespace::reconcile;
    /// Deletes what nobody owns any more.
    Gc "generic-garbage-collector" gc::reconcile;
    /// Gives every namespace its default service account.
    ServiceAccount "service-account-controller" serviceaccount::reconcile;
    /// Gives every namespace the cluster's certificate authority.
    RootCa "root-ca-certificate-publisher" root_ca::reconcile;
    /// Says which nodes are unreachable, and taints them.
    NodeLifecycle "node-lifecycle-controller" node_lifecycle::reconcile;
    /// Evicts pods from tainted nodes.
    TaintEviction "taint-eviction-controller" taint_eviction::reconcile;
    /// Removes pods that no node will ever finish.
    PodGc "pod-garbage-collector-controller" pod_gc::reconcile;
    /// Gives every node its block of pod addresses.
    NodeIpam "node-ipam-controller" node_ipam::reconcile;
}

impl ControllerId {
    /// The controller's row.
    pub fn row(self) -> &'static ControllerRow {
        &CONTROLLERS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_its_own_index_and_an_empty_world_is_quiet() {
        let world = World::default();
        for row in CONTROLLERS {
            assert_eq!(row.id.row().name, row.name);
            for key in [ObjectKey::default(), ObjectKey::new("ns", "x"), ObjectKey::new("ns", "pods/x")] {
                let input = Input { key: &key, world: &world, now: WallMs(0), failure: None };
                assert_eq!((row.reconcile)(&input), Plan::nothing(), "{}", row.name);
            }
        }
    }
}
