//! etcd v3 on the wire: the generated modules, by package.

/// Generated: users, roles, permissions.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// Generated: the services KV, Watch, Lease, Cluster, Maintenance and Auth.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Generated: keys and events.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Generated: the service Election.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// Generated: the service Lock.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
