//! `kontiki member`: who belongs to a store's cluster. A thin client: what is checked is checked by the members.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// `kontiki member`.
#[derive(Debug, Args)]
pub(crate) struct MemberCommand {
    /// Addresses of members; the first that answers is asked
    #[arg(
        long,
        global = true,
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        env = "ETCDCTL_ENDPOINTS"
    )]
    endpoints: Vec<String>,

    /// Authority of the members' certificates (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "ETCDCTL_CACERT")]
    cacert: Option<PathBuf>,

    /// This client's certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "ETCDCTL_CERT", requires = "key")]
    cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "ETCDCTL_KEY", requires = "cert")]
    key: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all members
    List,
    /// Tell the cluster of a member that will be started next
    ///
    /// A learner gets all data and has no vote: it costs the cluster nothing while it catches up. Promote it then.
    Add {
        /// Its name
        name: String,
        /// Where the other members reach it
        #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
        peer_urls: Vec<String>,
        /// Without a vote, until it is promoted
        #[arg(long)]
        learner: bool,
    },
    /// Take a member out; it stops by itself
    Remove {
        /// Its id, or its name
        member: String,
    },
    /// Give a learner that has caught up a vote
    Promote {
        /// Its id, or its name
        member: String,
    },
    /// Tell the cluster that the others reach a member at another address
    Update {
        /// Its id, or its name
        member: String,
        /// Where the other members reach it from now on
        #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
        peer_urls: Vec<String>,
    },
}

/// How long a member may take to answer. Changes wait for those before them.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take before the next address is tried.
const CONNECT: Duration = Duration::from_secs(2);

/// Runs the command.
pub(crate) async fn run(args: &MemberCommand) -> Result<()> {
    let mut cluster = connect(args).await?;
    match &args.action {
        Action::List => print!("{}", table(&list(&mut cluster).await?)),
        Action::Add { name, peer_urls, learner } => {
            let request = pb::MemberAddRequest { peer_ur_ls: peer_urls.clone(), is_learner: *learner };
            let added = cluster.member_add(request).await.map_err(explained)?.into_inner();
            let Some(member) = added.member else { bail!("the cluster did not say which member it added") };
            print!("{}", after_add(name, &member, &added.members));
        }
        Action::Remove { member } => {
            let found = find(&list(&mut cluster).await?, member)?;
            let left = cluster.member_remove(pb::MemberRemoveRequest { id: found.id }).await.map_err(explained)?.into_inner();
            println!("removed member {:x} ({}); it stops by itself\n{}", found.id, called(&found), table(&left.members));
        }
        Action::Promote { member } => {
            let found = find(&list(&mut cluster).await?, member)?;
            let now = cluster.member_promote(pb::MemberPromoteRequest { id: found.id }).await.map_err(explained)?.into_inner();
            println!("member {:x} ({}) has a vote\n{}", found.id, called(&found), table(&now.members));
        }
        Action::Update { member, peer_urls } => {
            let found = find(&list(&mut cluster).await?, member)?;
            let request = pb::MemberUpdateRequest { id: found.id, peer_ur_ls: peer_urls.clone() };
            let now = cluster.member_update(request).await.map_err(explained)?.into_inner();
            print!("{}", table(&now.members));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

async fn connect(args: &MemberCommand) -> Result<ClusterClient<Channel>> {
    let mut failures = Vec::new();
    for url in &args.endpoints {
        let url = if url.contains("://") { url.clone() } else { format!("http://{url}") };
        let mut endpoint = Endpoint::from_shared(url.clone()).with_context(|| format!("--endpoints: {url:?} is not a URL"))?;
        endpoint = endpoint.connect_timeout(CONNECT).timeout(TIMEOUT);
        if url.starts_with("https://") {
            let Some(ca) = &args.cacert else { bail!("{url} needs --cacert, the authority of the members' certificates") };
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(cert), Some(key)) = (&args.cert, &args.key) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            endpoint = endpoint.tls_config(tls).context("the certificates cannot be used")?;
        }
        match endpoint.connect().await {
            Ok(channel) => return Ok(ClusterClient::new(channel)),
            Err(error) => failures.push(format!("{url}: {:#}", anyhow::Error::from(error))),
        }
    }
    bail!("no member answers; --endpoints says where they are\n  {}", failures.join("\n  "))
}

async fn list(cluster: &mut ClusterClient<Channel>) -> Result<Vec<pb::Member>> {
    let request = pb::MemberListRequest { linearizable: true };
    Ok(cluster.member_list(request).await.map_err(explained)?.into_inner().members)
}

/// A member by its id in hexadecimal, or by its name.
fn find(members: &[pb::Member], what: &str) -> Result<pb::Member> {
    let id = u64::from_str_radix(what.trim_start_matches("0x"), 16).ok();
    let found = members.iter().find(|m| m.name == what).or_else(|| members.iter().find(|m| Some(m.id) == id));
    let known = || members.iter().map(|m| format!("{:x} ({})", m.id, called(m))).collect::<Vec<_>>().join(", ");
    found.cloned().with_context(|| format!("no member is called {what:?}; there are {}", known()))
}

fn called(member: &pb::Member) -> &str {
    if member.name.is_empty() { "not started" } else { &member.name }
}

fn table(members: &[pb::Member]) -> String {
    let head = ["ID", "STATUS", "NAME", "PEERS", "CLIENTS", "VOTE"].map(str::to_owned);
    let row = |m: &pb::Member| {
        let status = if m.name.is_empty() { "unstarted" } else { "started" };
        [
            format!("{:x}", m.id),
            status.into(),
            m.name.clone(),
            m.peer_ur_ls.join(","),
            m.client_ur_ls.join(","),
            if m.is_learner { "learner" } else { "yes" }.into(),
        ]
    };
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(members.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// What to start the new member with.
fn after_add(name: &str, member: &pb::Member, members: &[pb::Member]) -> String {
    let row = |m: &pb::Member| {
        let name = if m.id == member.id { name } else { &m.name };
        m.peer_ur_ls.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>()
    };
    let all: Vec<String> = members.iter().flat_map(row).collect();
    let listen = member.peer_ur_ls.join(",");
    let vote = if member.is_learner { ", without a vote" } else { "" };
    format!(
        "added member {:x}{vote}; start it with an empty data directory:\n\n  kontiki store --name={name} --initial-cluster-state=existing \\\n    --listen-peer-urls={listen} \\\n    --initial-cluster={}\n",
        member.id,
        all.join(",")
    )
}

/// etcd's words, and what to do about them.
fn explained(status: Status) -> anyhow::Error {
    let advice = match EtcdError::from_text(status.message()) {
        Some(EtcdError::NotEnoughStarted) => {
            "the change would leave fewer started members than a quorum: start those that are added first, or remove one that is not started"
        }
        Some(EtcdError::Unhealthy) => "too few members answer for this change: bring one back, or remove one that is gone for good",
        Some(EtcdError::LearnerNotReady) => "it is still catching up: try again in a moment, and see that it is running",
        Some(EtcdError::NotLearner) => "it has a vote already",
        Some(EtcdError::TooManyLearners) => "promote or remove the learner that is there first",
        Some(EtcdError::PeerUrlExists) => "another member has this address; `kontiki member list` shows which",
        Some(EtcdError::BadMemberUrls) => "write --peer-urls=http://host:port, with https if the members have certificates",
        Some(EtcdError::NotForLearner) => "this member has no vote and cannot answer: name another one in --endpoints",
        Some(EtcdError::NoLeader | EtcdError::Timeout) => {
            "the cluster has no leader now: try again in a moment, and see that most members run"
        }
        _ => return anyhow::anyhow!("{}", status.message()),
    };
    anyhow::anyhow!("{} ({advice})", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, learner: bool) -> pb::Member {
        pb::Member { id, name: name.into(), peer_ur_ls: vec![format!("http://h:{id}")], client_ur_ls: vec![], is_learner: learner }
    }

    #[test]
    fn members_are_found_by_id_and_by_name() {
        let members = [member(0xab, "a", false), member(0xcd, "", true)];
        assert_eq!(find(&members, "a").unwrap().id, 0xab);
        assert_eq!(find(&members, "0xcd").unwrap().id, 0xcd);
        assert!(find(&members, "x").unwrap_err().to_string().contains("ab (a), cd (not started)"));
        let shown = table(&members);
        assert_eq!(shown.lines().nth(2), Some("cd  unstarted        http://h:205           learner"), "{shown}");
    }

    #[test]
    fn an_added_member_is_told_how_to_start() {
        let new = member(2, "", true);
        let said = after_add("b", &new, &[member(1, "a", false), new.clone()]);
        assert!(
            said.contains("added member 2, without a vote") && said.contains("--initial-cluster=a=http://h:1,b=http://h:2\n"),
            "{said}"
        );
    }

    #[test]
    fn refusals_say_what_to_do() {
        let said = explained(EtcdError::LearnerNotReady.status()).to_string();
        assert!(said.starts_with("etcdserver: can only promote a learner member which is in sync with leader (it is still"), "{said}");
        assert_eq!(explained(Status::internal("x")).to_string(), "x");
    }
}
