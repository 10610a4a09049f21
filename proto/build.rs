//! Compiles the `.proto` files with protox: no protoc on the machine.

use std::path::PathBuf;

use prost::Message as _;

/// Each file with the folder that its imports are relative to.
const FILES: &[&str] = &[
    "api/resources.proto",
    "cri/api.proto",
    "etcd/auth.proto",
    "etcd/election.proto",
    "etcd/kv.proto",
    "etcd/lock.proto",
    "etcd/rpc.proto",
    "node/session.proto",
    "peer/peer.proto",
    "store/leadership.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for file in FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
