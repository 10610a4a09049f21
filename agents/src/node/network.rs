//! The node's network: the runtime's configuration for pods, routes to the pods of other nodes, and the address of what leaves.
//!
//! Pods are connected by CNI's `ptp` plugin, through the runtime. Other nodes are reached by plain routes over a common network; there is
//! no tunnel. The programs `ip` and `nft` do the work; what they refuse is logged and tried again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kontiki_base::object::ObjectKey;
use kontiki_base::{Code, Revision};
use kontiki_control::Kind;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::watch;

use super::NodeConfig;
use crate::api::{Client, Scope, WatchEvent};
use crate::error::ApiError;

/// Marks our routes in the kernel's table, so that others' are left alone.
const ROUTE_PROTOCOL: &str = "76";
/// The file that the runtime reads; first in the order of names.
const CONFLIST: &str = "10-kontiki.conflist";
/// Our table of packet rules.
const TABLE: &str = "kontiki-node";
/// Pause after something failed.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the node's network as it should be, for ever.
pub(super) async fn run(config: NodeConfig, client: Client, mut range: watch::Receiver<String>) {
    let Some(cidr) = pod_range(&config, &client, &mut range).await else { return };
    while let Err(error) = configure(&config, &cidr).await {
        tracing::warn!(node = %config.name, %error, "the pod network cannot be configured");
        config.env.sleep(RETRY).await;
    }
    // Without a network of its own the node shares the machine's, where its pods are reached without routes.
    if config.runtime.simulated() || config.node_ip.is_loopback() {
        return;
    }
    loop {
        if let Err(error) = follow_nodes(&config, &client).await {
            tracing::debug!(node = %config.name, %error, "the watch of nodes ended");
        }
        config.env.sleep(RETRY).await;
    }
}

/// The range of the node's pods: from the session, or from the Node object if it was assigned after the session began.
async fn pod_range(config: &NodeConfig, client: &Client, range: &mut watch::Receiver<String>) -> Option<String> {
    loop {
        tokio::select! {
            told = range.wait_for(|cidr| !cidr.is_empty()) => return told.ok().map(|cidr| cidr.clone()),
            () = config.env.sleep(RETRY) => {}
        }
        let Ok(node) = client.get(Kind::Node, &ObjectKey::new("", config.name.as_str())).await else { continue };
        let Ok(node) = node.parse::<Value>() else { continue };
        if let Some(cidr) = node["spec"]["podCIDR"].as_str().filter(|c| !c.is_empty()) {
            return Some(cidr.to_owned());
        }
    }
}

async fn configure(config: &NodeConfig, cidr: &str) -> Result<(), String> {
    if let Some(dir) = config.runtime.network_config_dir().await.map_err(|e| e.to_string())? {
        write_conflist(&dir, &config.data_dir, cidr).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    config.runtime.set_pod_cidr(cidr).await.map_err(|e| e.to_string())?;
    if !config.runtime.simulated() && !config.node_ip.is_loopback() {
        nft(&masquerade(cidr, &config.cluster_cidr)).await?;
    }
    Ok(())
}

/// The configuration of pod networks. Addresses are remembered in a directory of this node's own: several nodes may share a machine.
fn conflist(addresses: &Path, cidr: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "kontiki", "plugins": [
        {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {
            "type": "host-local", "ranges": [[{"subnet": cidr}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": addresses,
        }},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

/// Writes the file by a rename: the runtime must not read half of it. If somebody else configures the network, that is respected.
fn write_conflist(dir: &Path, data_dir: &Path, cidr: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let others = std::fs::read_dir(dir)?.flatten().any(|e| {
        let name = e.file_name();
        let name = name.to_string_lossy();
        name != CONFLIST && (name.ends_with(".conflist") || name.ends_with(".conf"))
    });
    if others {
        return Ok(());
    }
    let text = conflist(&data_dir.join("addresses"), cidr).to_string();
    let target = dir.join(CONFLIST);
    if std::fs::read_to_string(&target).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let fresh = dir.join(".kontiki.tmp");
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, target)
}

/// What leaves the pods' network goes with the node's address: nobody outside knows the way to a pod.
fn masquerade(cidr: &str, cluster: &str) -> String {
    format!(
        "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n  chain post {{\n    type nat hook postrouting priority srcnat; policy accept;\n    ip saddr {cidr} ip daddr != {cluster} masquerade\n  }}\n}}\n"
    )
}

async fn nft(rules: &str) -> Result<(), String> {
    let spawned =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let mut child = spawned.map_err(|e| format!("nft: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).await.map_err(|e| format!("nft: {e}"))?;
    }
    let output = child.wait_with_output().await.map_err(|e| format!("nft: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}

async fn ip(words: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(words).kill_on_drop(true).output().await.map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Pod range and address of a node, if both are known.
fn way(node: &Value) -> Option<(String, String)> {
    let cidr = node["spec"]["podCIDR"].as_str()?;
    let addresses = node["status"]["addresses"].as_array()?;
    let internal = addresses.iter().find(|a| a["type"] == "InternalIP")?;
    Some((cidr.to_owned(), internal["address"].as_str()?.to_owned()))
}

/// Keeps routes as the Node objects say, until the watch ends.
async fn follow_nodes(config: &NodeConfig, client: &Client) -> Result<(), ApiError> {
    let (revision, nodes) = client.list(Kind::Node, &Scope::default()).await?;
    let mut ways: BTreeMap<String, (String, String)> = BTreeMap::new();
    let name_of = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let note = |ways: &mut BTreeMap<String, (String, String)>, node: &Value| {
        let name = name_of(node);
        match way(node).filter(|_| name != config.name) {
            Some(way) => ways.insert(name, way.clone()) != Some(way),
            None => ways.remove(&name).is_some(),
        }
    };
    for node in &nodes {
        note(&mut ways, &node.parse()?);
    }
    let mut settled = set_routes(&ways).await;
    let mut watch = client.watch(Kind::Node, &Scope::default(), Revision::new(revision.get())).await?;
    loop {
        let event = tokio::select! {
            event = watch.next() => event?,
            // A route that was refused (its link was down) is tried again.
            () = config.env.sleep(RETRY), if !settled => {
                settled = set_routes(&ways).await;
                continue;
            }
        };
        let changed = match event {
            None => return Err(ApiError::new("watch nodes", Code::Unavailable, "the stream ended")),
            Some(WatchEvent::Upsert(object)) => note(&mut ways, &object.parse()?),
            Some(WatchEvent::Removed(object)) => ways.remove(&name_of(&object.parse()?)).is_some(),
            Some(WatchEvent::Bookmark(_)) => false,
        };
        if changed {
            settled = set_routes(&ways).await;
        }
    }
}

/// Adds what is missing and removes what is too much. False if something was refused.
async fn set_routes(ways: &BTreeMap<String, (String, String)>) -> bool {
    let mut settled = true;
    for (name, (cidr, address)) in ways {
        if let Err(error) = ip(&["route", "replace", cidr, "via", address, "proto", ROUTE_PROTOCOL]).await {
            tracing::warn!(node = %name, %error, "no route to the pods of a node");
            settled = false;
        }
    }
    let present = ip(&["-4", "route", "show", "proto", ROUTE_PROTOCOL]).await.unwrap_or_default();
    for cidr in present.lines().filter_map(|line| line.split(' ').next()).filter(|c| !ways.values().any(|(cidr, _)| cidr == c)) {
        settled &= ip(&["route", "del", cidr, "proto", ROUTE_PROTOCOL]).await.is_ok();
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conflist_is_ours_unless_somebody_else_has_one() {
        let dir = tempfile::tempdir().unwrap();
        write_conflist(dir.path(), Path::new("/d"), "10.244.1.0/24").unwrap();
        let text = std::fs::read_to_string(dir.path().join(CONFLIST)).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.1.0/24");
        write_conflist(dir.path(), Path::new("/d"), "10.244.2.0/24").unwrap();
        assert!(std::fs::read_to_string(dir.path().join(CONFLIST)).unwrap().contains("10.244.2.0/24"));
        std::fs::write(dir.path().join("05-other.conflist"), "{}").unwrap();
        std::fs::remove_file(dir.path().join(CONFLIST)).unwrap();
        write_conflist(dir.path(), Path::new("/d"), "10.244.2.0/24").unwrap();
        assert!(!dir.path().join(CONFLIST).exists());
    }

    #[test]
    fn a_way_needs_range_and_address() {
        let node = json!({"spec": {"podCIDR": "10.244.1.0/24"}, "status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}]}});
        assert_eq!(way(&node), Some(("10.244.1.0/24".into(), "10.0.0.1".into())));
        assert_eq!(way(&json!({"spec": {}, "status": node["status"]})), None);
    }
}
