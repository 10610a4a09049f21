//! The kubeconfig that `kontiki up` writes: a context for the forwarded address, and one for each server.

use std::fs;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::layout::{Layout, State};
use crate::pki::{Authority, Files};

/// The default context.
pub(crate) const CONTEXT: &str = "kontiki";

/// Writes the kubeconfig of the cluster, for `admin`.
pub(crate) fn write(layout: &Layout, state: &State, authority: &Authority, admin: &Files) -> Result<()> {
    let ca = encoded(&authority.ca_cert())?;
    let mut clusters = vec![(CONTEXT.to_owned(), state.forward.to_string())];
    clusters.extend(state.servers.iter().map(|s| (format!("{CONTEXT}-{}", s.name), format!("127.0.0.1:{}", s.api))));
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": CONTEXT,
        "clusters": clusters.iter().map(|(name, addr)| serde_json::json!({
            "name": name,
            "cluster": { "server": format!("https://{addr}"), "certificate-authority-data": ca },
        })).collect::<Vec<_>>(),
        "contexts": clusters.iter().map(|(name, _)| serde_json::json!({
            "name": name,
            "context": { "cluster": name, "user": "admin" },
        })).collect::<Vec<_>>(),
        "users": [{
            "name": "admin",
            "user": { "client-certificate-data": encoded(&admin.cert)?, "client-key-data": encoded(&admin.key)? },
        }],
    });
    // JSON is YAML, and kubectl reads it as such.
    let path = layout.kubeconfig();
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec_pretty(&config)?).with_context(|| format!("cannot write {}", fresh.display()))?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&fresh, private).with_context(|| format!("cannot protect {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn encoded(path: &std::path::Path) -> Result<String> {
    Ok(STANDARD.encode(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
}
