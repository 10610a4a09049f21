//! The command line of each process of the cluster, and the certificates that it needs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::layout::{Layout, Node, Server, State};
use super::server_ip;
use super::supervise::Spec;
use crate::pki::{Authority, Files, Subject};
use crate::testbed::Testbed;

/// The certificates of a cluster.
pub(crate) struct Identities {
    /// Who signed them.
    pub(crate) authority: Authority,
    /// For people: may do everything.
    pub(crate) admin: Files,
}

impl Identities {
    /// Opens the authority, and makes the administrator's certificate.
    pub(crate) fn issue(layout: &Layout, _state: &State) -> Result<Self> {
        let authority = Authority::open(&layout.pki())?;
        let admin = Subject { user: "kontiki-admin".into(), groups: vec!["system:masters".into()], names: vec![] };
        let admin = authority.issue("admin", &admin)?;
        Ok(Self { authority, admin })
    }
}

/// All processes, servers first.
pub(crate) fn specs(
    layout: &Layout,
    state: &State,
    ids: &Identities,
    testbed: Option<&Testbed>,
    otlp_endpoint: Option<&str>,
) -> Result<Vec<Spec>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut program = vec![program.to_str().context("the path of this program is not UTF-8")?.to_owned()];
    program.extend(otlp_endpoint.map(|url| format!("--otlp-endpoint={url}")));
    let host = server_ip(testbed);
    let mut specs = Vec::new();
    for server in &state.servers {
        specs.push(server_spec(layout, state, ids, server, &program, host)?);
    }
    for (index, node) in state.nodes.iter().enumerate() {
        specs.push(node_spec(layout, state, ids, node, &program, host, testbed.map(|t| (t, index)))?);
    }
    Ok(specs)
}

fn list<'a>(items: impl Iterator<Item = String> + 'a) -> String {
    items.collect::<Vec<_>>().join(",")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn server_spec(layout: &Layout, state: &State, ids: &Identities, server: &Server, program: &[String], host: IpAddr) -> Result<Spec> {
    let names = ["localhost", "127.0.0.1", "::1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let names = names.into_iter().map(str::to_owned).chain([server.name.clone(), host.to_string()]);
    let subject = Subject { user: format!("kontiki:{}", server.name), groups: vec!["system:masters".into()], names: names.collect() };
    let files = ids.authority.issue(&server.name, &subject)?;
    // Nodes live in namespaces of their own: they reach the servers from outside this machine's loopback.
    let listen = if host.is_loopback() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let mut command = program.to_vec();
    command.push("server".into());
    let mut flag = |name: &str, value: String| command.push(format!("--{name}={value}"));
    flag("name", server.name.clone());
    flag("data-dir", text(&layout.of(&server.name)));
    flag("listen-client", format!("127.0.0.1:{}", server.client));
    flag("listen-peer", format!("127.0.0.1:{}", server.peer));
    flag("initial-cluster", list(state.servers.iter().map(|s| format!("{}=https://127.0.0.1:{}", s.name, s.peer))));
    flag("listen-api", format!("{listen}:{}", server.api));
    flag("api-servers", list(state.servers.iter().map(|s| format!("https://127.0.0.1:{}", s.api))));
    flag("api-endpoints", list(state.servers.iter().map(|s| format!("{host}:{}", s.api))));
    flag("ca", text(&ids.authority.ca_cert()));
    flag("cert", text(&files.cert));
    flag("key", text(&files.key));
    Ok(Spec { name: server.name.clone(), command, log: layout.log(&server.name) })
}

fn node_spec(
    layout: &Layout,
    state: &State,
    ids: &Identities,
    node: &Node,
    program: &[String],
    host: IpAddr,
    testbed: Option<(&Testbed, usize)>,
) -> Result<Spec> {
    let ip = testbed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |(t, index)| t.node(index).ip);
    let subject = Subject {
        user: format!("system:node:{}", node.name),
        groups: vec!["system:nodes".into()],
        names: vec![node.name.clone(), ip.to_string()],
    };
    let files = ids.authority.issue(&format!("{}-{}", node.name, state.runtime), &subject)?;
    let mut command = program.to_vec();
    command.push("agent".into());
    let mut flag = |name: &str, value: String| command.push(format!("--{name}={value}"));
    flag("name", node.name.clone());
    flag("data-dir", text(&layout.of(&node.name)));
    flag("servers", list(state.servers.iter().map(|s| format!("https://{host}:{}", s.api))));
    flag("listen", format!("{ip}:{}", node.port));
    flag("node-ip", ip.to_string());
    flag("ca", text(&ids.authority.ca_cert()));
    flag("cert", text(&files.cert));
    flag("key", text(&files.key));
    if let Some((testbed, index)) = testbed {
        let node = testbed.node(index);
        flag("cri-socket", text(&node.cri_socket));
        flag("cgroup-parent", node.cgroup_parent.clone());
        command = node.enter(command);
    }
    Ok(Spec { name: node.name.clone(), command, log: layout.log(&node.name) })
}
