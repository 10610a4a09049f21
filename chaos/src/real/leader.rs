//! The fault `leader-kill`: SIGKILL to the process that leads, and how long it takes until another does.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_proto::etcd::etcdserverpb::StatusRequest;
use kontiki_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;
use tonic::transport::Endpoint;

use super::cluster::{Cluster, Server};
use crate::load::kv::Run;
use crate::report::Fault;

/// How often members are asked for their leader.
const POLL: Duration = Duration::from_millis(10);

/// A new leader that does not appear in this time is counted as none.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a member says of leadership.
struct View {
    member: u64,
    leader: u64,
    term: u64,
}

async fn view(server: &Server) -> Result<View> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.client))?;
    let endpoint = endpoint.connect_timeout(Duration::from_millis(200)).timeout(Duration::from_millis(500));
    let status = MaintenanceClient::new(endpoint.connect().await?).status(StatusRequest {}).await?.into_inner();
    let header = status.header.context("a status has a header")?;
    Ok(View { member: header.member_id, leader: status.leader, term: status.raft_term })
}

/// Finds the leader: the member that says so itself, in the highest term.
async fn find(cluster: &Cluster) -> Result<(Server, View)> {
    let mut best: Option<(Server, View)> = None;
    for server in cluster.servers()? {
        let Ok(view) = view(&server).await else { continue };
        if view.leader == view.member && view.leader != 0 && best.as_ref().is_none_or(|(_, b)| b.term < view.term) {
            best = Some((server, view));
        }
    }
    best.context("no member says that it leads")
}

/// Kills the leader, and waits until a member leads in a later term. The supervisor starts the killed one again.
pub(super) async fn kill(cluster: &Cluster, run: &Run) -> Result<Fault> {
    let (victim, before) = find(cluster).await?;
    if victim.pid <= 0 {
        bail!("{} is not running", victim.name);
    }
    let at = run.now();
    signal(Pid::from_raw(victim.pid), Signal::SIGKILL).with_context(|| format!("cannot kill {}", victim.name))?;
    let deadline = at + u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
    let mut leader_back = None;
    while leader_back.is_none() && run.now() < deadline {
        // Any leader of a later term will do: the killed member may be back, and have won.
        for server in &cluster.servers()? {
            if let Ok(view) = view(server).await
                && view.leader != 0
                && view.term > before.term
            {
                leader_back = Some(run.now());
                break;
            }
        }
        run.env.sleep(POLL).await;
    }
    Ok(Fault { at, victim: victim.name, detail: format!("pid {}, term {}", victim.pid, before.term), leader_back })
}
