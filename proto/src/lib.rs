//! The wire: generated modules, conversions to the words of `kontiki-base`, clients, the system's [`env::SystemEnv`], and what carries a
//! [`trace`] from one process to the next.

pub mod client;
pub mod convert;
pub mod env;
pub mod etcd;
pub mod process;
pub mod socket;
pub mod trace;

/// Generated: `kontiki.api.v1`, the native gRPC door.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod api {
    tonic::include_proto!("kontiki.api.v1");
}

/// Generated: `kontiki.node.v1`, the session between node agents and servers.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod node {
    tonic::include_proto!("kontiki.node.v1");
}

/// Generated: `runtime.v1`, the Container Runtime Interface.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Generated: `kontiki.peer.v1`, the members among themselves.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod peer {
    tonic::include_proto!("kontiki.peer.v1");
}

/// Generated: `kontiki.store.v1`, what members of a store say of themselves beyond etcd's services.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unreachable_pub)]
pub mod store {
    tonic::include_proto!("kontiki.store.v1");
}

/// Every message and service as one descriptor set, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// [`DESCRIPTORS`], read.
pub fn pool() -> &'static prost_reflect::DescriptorPool {
    static POOL: std::sync::LazyLock<prost_reflect::DescriptorPool> = std::sync::LazyLock::new(|| {
        prost_reflect::DescriptorPool::decode(DESCRIPTORS).expect("the descriptors were made when this was built")
    });
    &POOL
}
