//! A cluster that heals itself: a voter that is gone for good is replaced by a learner that waits; once, and only while there is a quorum.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::kv::{Op, PutReq, Txn};
use kontiki_proto::env::SystemEnv;
use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_proto::store::ObservationsRequest;
use kontiki_proto::store::leadership_client::LeadershipClient;
use kontiki_store::config::StoreConfig;
use kontiki_store::raft::RaftStatus;
use kontiki_store::server::StoreHandle;
use kontiki_store::why::join;
use pb::cluster_client::ClusterClient;

use super::cluster::{channel, leader};
use super::member::start_again;

const PATIENCE: Duration = Duration::from_secs(2);

/// Who they are and where: a cluster of three, and a fourth that waits.
struct Plan {
    peers: Vec<(String, SocketAddr)>,
}

impl Plan {
    fn new() -> Self {
        let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        Self { peers: listeners.iter().enumerate().map(|(n, l)| (format!("m{n}"), l.local_addr().unwrap())).collect() }
    }

    fn url(&self, n: usize) -> String {
        format!("http://{}", self.peers[n].1)
    }

    async fn start(&self, dir: &Path, n: usize) -> StoreHandle {
        let (name, addr) = &self.peers[n];
        let config = || {
            let mut config = StoreConfig::single(name, dir.join(name), Arc::new(SystemEnv::new()));
            let listed = if n == 3 { 4 } else { 3 };
            config.initial_cluster = (0..listed).map(|n| (self.peers[n].0.clone(), vec![self.url(n)])).collect();
            (config.listen_peer, config.join, config.heal_after) = (*addr, n == 3, Some(PATIENCE));
            config
        };
        start_again(config).await.unwrap()
    }
}

fn voters(raft: &RaftStatus) -> BTreeSet<String> {
    raft.members.iter().filter(|m| !m.learner).map(|m| m.name.clone()).collect()
}

fn names(of: &[usize]) -> BTreeSet<String> {
    of.iter().map(|n| format!("m{n}")).collect()
}

async fn wait(store: &StoreHandle, what: &str, mut reached: impl FnMut(&RaftStatus) -> bool) {
    let mut status = store.status();
    let waited = tokio::time::timeout(Duration::from_secs(60), status.wait_for(|raft| reached(raft))).await;
    assert!(waited.is_ok(), "{what}: {:#?}", store.status().borrow());
}

async fn put(store: &StoreHandle, key: &str) {
    let put = PutReq { key: key.to_owned().into(), value: "v".into(), ..PutReq::default() };
    store.kv().txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_learner_takes_the_place_of_a_voter_that_is_gone_once_and_only_with_a_quorum() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::new();
    let mut founders = Vec::new();
    for n in 0..3 {
        founders.push(plan.start(dir.path(), n).await);
    }
    let lead = leader(&founders).await;
    let mut cluster = ClusterClient::new(channel(&founders[lead]).await);
    cluster.member_add(pb::MemberAddRequest { peer_ur_ls: vec![plan.url(3)], is_learner: true }).await.unwrap();
    let learner = plan.start(dir.path(), 3).await;
    wait(&learner, "the learner is there, and all know its name", |raft| raft.members.iter().any(|m| m.learner && m.name == "m3")).await;
    wait(&founders[lead], "the leader knows it, too", |raft| raft.members.iter().any(|m| m.learner && m.name == "m3")).await;

    // Two of three are gone: there is nobody who could decide anything, however long it takes.
    let (stays, back, gone) = (lead, (lead + 1) % 3, (lead + 2) % 3);
    let mut founders: Vec<Option<StoreHandle>> = founders.into_iter().map(Some).collect();
    for n in [gone, back] {
        founders[n].take().unwrap().shutdown().await;
    }
    tokio::time::sleep(PATIENCE * 2).await;
    let stays_here = founders[stays].as_ref().unwrap();
    assert_eq!(voters(&stays_here.status().borrow()), names(&[0, 1, 2]), "nobody was replaced without a quorum");

    // One comes back: the other is replaced.
    founders[back] = Some(plan.start(dir.path(), back).await);
    let healed = names(&[stays, back, 3]);
    let stays_here = founders[stays].as_ref().unwrap();
    wait(stays_here, "the learner has its vote, and it is gone", |raft| voters(raft) == healed && raft.members.len() == 3).await;
    wait(&learner, "the learner knows it", |raft| voters(raft) == healed).await;
    put(stays_here, "k").await;
    tokio::time::sleep(PATIENCE * 2).await;
    assert_eq!(voters(&stays_here.status().borrow()), healed, "once");
    let told = LeadershipClient::new(channel(stays_here).await).observations(ObservationsRequest { everyone: true }).await.unwrap();
    let told = told.into_inner();
    let replacements = join(&told.members, &told.silent).replacements;
    assert_eq!(replacements.len(), 1, "{replacements:#?}");
    assert_eq!(replacements[0].learner.name, "m3");
    assert!(replacements[0].silent_ms >= 2_000 && replacements[0].because.contains("2000 ms are borne"), "{replacements:#?}");

    // Whoever was replaced finds out, and stops; the cluster bears the loss of another one.
    let replaced = plan.start(dir.path(), gone).await;
    wait(&replaced, "it was removed", |raft| raft.fatal.as_deref() == Some("this member has been removed from the cluster")).await;
    replaced.shutdown().await;
    founders[back].take().unwrap().shutdown().await;
    let left = [founders[stays].take().unwrap(), learner];
    leader(&left).await;
    put(&left[1], "k").await;
    for store in left {
        store.shutdown().await;
    }
}
