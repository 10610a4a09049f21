//! What each call demands of its caller while auth is enabled, in one table. A call that has no row is for administrators.

use kontiki_proto::convert::error::kv_status;
use tonic::Status;

use crate::auth::Caller;
use crate::service::Service;

/// What a call demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Open,
    /// Permissions for what it names: whoever serves the call looks at that.
    Own,
    /// That the caller has said who they are.
    Known,
    /// The role root.
    Root,
    /// The role root, in the state that the call meets when it is carried out: that may be newer than what can be seen here.
    RootThen,
}

use Need::{Known, Open, Own, Root, RootThen};

/// The calls, by service and method.
pub(super) const TABLE: &[(&str, Need)] = &[
    ("/etcdserverpb.KV/Range", Own),
    ("/etcdserverpb.KV/RangeStream", Own),
    ("/etcdserverpb.KV/Put", Own),
    ("/etcdserverpb.KV/DeleteRange", Own),
    ("/etcdserverpb.KV/Txn", Own),
    ("/etcdserverpb.KV/Compact", RootThen),
    ("/etcdserverpb.Watch/Watch", Own),
    ("/etcdserverpb.Lease/LeaseGrant", Known),
    ("/etcdserverpb.Lease/LeaseRevoke", Own),
    ("/etcdserverpb.Lease/LeaseKeepAlive", Own),
    ("/etcdserverpb.Lease/LeaseTimeToLive", Own),
    ("/etcdserverpb.Lease/LeaseLeases", Known),
    ("/etcdserverpb.Cluster/MemberAdd", Root),
    ("/etcdserverpb.Cluster/MemberRemove", Root),
    ("/etcdserverpb.Cluster/MemberUpdate", Root),
    ("/etcdserverpb.Cluster/MemberList", Known),
    ("/etcdserverpb.Cluster/MemberPromote", Root),
    // Asking is for anybody who is known, the rest for root.
    ("/etcdserverpb.Maintenance/Alarm", Own),
    ("/etcdserverpb.Maintenance/Status", Known),
    ("/etcdserverpb.Maintenance/Defragment", Root),
    ("/etcdserverpb.Maintenance/Hash", Root),
    ("/etcdserverpb.Maintenance/HashKV", Root),
    ("/etcdserverpb.Maintenance/Snapshot", Root),
    ("/etcdserverpb.Maintenance/MoveLeader", Root),
    ("/etcdserverpb.Maintenance/Downgrade", Root),
    ("/etcdserverpb.Auth/AuthEnable", RootThen),
    ("/etcdserverpb.Auth/AuthDisable", RootThen),
    ("/etcdserverpb.Auth/AuthStatus", Open),
    ("/etcdserverpb.Auth/Authenticate", Open),
    ("/etcdserverpb.Auth/UserAdd", RootThen),
    // Users may see themselves, and roles that they have.
    ("/etcdserverpb.Auth/UserGet", Own),
    ("/etcdserverpb.Auth/UserList", RootThen),
    ("/etcdserverpb.Auth/UserDelete", RootThen),
    ("/etcdserverpb.Auth/UserChangePassword", RootThen),
    ("/etcdserverpb.Auth/UserGrantRole", RootThen),
    ("/etcdserverpb.Auth/UserRevokeRole", RootThen),
    ("/etcdserverpb.Auth/RoleAdd", RootThen),
    ("/etcdserverpb.Auth/RoleGet", Own),
    ("/etcdserverpb.Auth/RoleList", RootThen),
    ("/etcdserverpb.Auth/RoleDelete", RootThen),
    ("/etcdserverpb.Auth/RoleGrantPermission", RootThen),
    ("/etcdserverpb.Auth/RoleRevokePermission", RootThen),
    ("/kontiki.store.v1.Leadership/Observations", Known),
    ("/v3lockpb.Lock/Lock", Own),
    ("/v3lockpb.Lock/Unlock", Own),
    ("/v3electionpb.Election/Campaign", Own),
    ("/v3electionpb.Election/Proclaim", Own),
    ("/v3electionpb.Election/Leader", Own),
    ("/v3electionpb.Election/Observe", Own),
    ("/v3electionpb.Election/Resign", Own),
    ("/grpc.health.v1.Health/Check", Open),
    ("/grpc.health.v1.Health/Watch", Open),
    ("/grpc.health.v1.Health/List", Open),
];

/// What a call demands.
pub(super) fn need(path: &str) -> Need {
    TABLE.iter().find(|(known, _)| *known == path).map_or(Root, |(_, need)| *need)
}

/// What must be looked at before a call is let in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Demand {
    /// That the caller has said who they are.
    Known,
    /// The role root.
    Root,
}

/// What must be looked at before a call is let in; nothing while auth is disabled.
///
/// # Errors
/// The state cannot be read: the status that the client is sent.
pub(super) fn demand(service: &Service, path: &str) -> Result<Option<Demand>, Status> {
    let demand = match need(path) {
        Open | Own | RootThen => return Ok(None),
        Known => Demand::Known,
        Root => Demand::Root,
    };
    let facts = service.auth.facts().map_err(|error| kv_status(&error))?;
    Ok(facts.enabled.then_some(demand))
}

/// Lets a call in, or says why not.
///
/// # Errors
/// The status that the client is sent.
pub(super) async fn admit(service: &Service, demand: Demand, caller: &Caller) -> Result<(), Status> {
    let acting = service.by(caller);
    let admitted = match demand {
        Demand::Known => acting.must_be_known().await,
        Demand::Root => acting.must_be_admin().await,
    };
    admitted.map_err(|error| kv_status(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The protocol files, with the package of each.
    const FILES: &[(&str, &str)] = &[
        ("etcdserverpb", include_str!("../../../proto/etcd/rpc.proto")),
        ("v3lockpb", include_str!("../../../proto/etcd/lock.proto")),
        ("v3electionpb", include_str!("../../../proto/etcd/election.proto")),
        ("kontiki.store.v1", include_str!("../../../proto/store/leadership.proto")),
    ];

    /// Every call that the protocol files declare.
    fn declared() -> Vec<String> {
        let mut calls = Vec::new();
        for (package, text) in FILES {
            let mut service = "";
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("service ") {
                    service = rest.split([' ', '{']).next().unwrap();
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    calls.push(format!("/{package}.{service}/{}", rest.split(['(', ' ']).next().unwrap()));
                }
            }
        }
        calls
    }

    #[test]
    fn every_call_has_one_row_and_every_row_is_a_call() {
        let declared = declared();
        assert!(declared.len() > 45, "{declared:?}");
        for call in &declared {
            assert_eq!(TABLE.iter().filter(|(row, _)| row == call).count(), 1, "{call}");
        }
        for (row, _) in TABLE.iter().filter(|(row, _)| !row.starts_with("/grpc.health")) {
            assert!(declared.iter().any(|call| call == row), "{row}");
        }
        assert_eq!(need("/etcdserverpb.KV/Nope"), Root, "what nobody thought of is for administrators");
    }
}
