//! The configuration of a node's containerd.

use std::path::Path;

use super::exec::{TestbedError, at};
use super::plan::NodePlan;
use super::preflight::{find_plugins, find_program};

/// The image that holds a pod's namespaces; imported, never pulled.
pub(super) const PAUSE_IMAGE: &str = "kontiki.dev/pause:1";

/// Writes `config.toml`; gives its path.
pub(super) fn write_config(node: &NodePlan) -> Result<std::path::PathBuf, TestbedError> {
    let plugins = find_plugins().ok_or_else(|| TestbedError::Plan("the CNI plugins are not installed".into()))?;
    let runc = find_program("runc").ok_or_else(|| TestbedError::Plan("runc is not installed".into()))?;
    let path = node.runtime_dir().join("config.toml");
    at(&path, std::fs::write(&path, config(node, plugins, &runc)))?;
    Ok(path)
}

fn config(node: &NodePlan, plugins: &Path, runc: &Path) -> String {
    let dir = node.runtime_dir();
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE a lower oom_score_adj cannot be set, and sandboxes would not start.
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_address = "{address}"
  stream_server_port = "10010"
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  max_container_log_line_size = 16384
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{dir}/certs.d"
"#,
        socket = node.cri_socket.display(),
        address = node.ip,
        runc = runc.display(),
        plugins = plugins.display(),
        cni = node.cni_conf_dir().display(),
    )
}
