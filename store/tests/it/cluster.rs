//! Three members: any of them answers anything, and what was promised survives a leader.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Kv, KvError, Op, PutReq, RangeReq, Txn, WatchMsg, WatchReq};
use kontiki_proto::env::SystemEnv;
use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_store::config::StoreConfig;
use kontiki_store::server::{Store, StoreHandle};
use pb::cluster_client::ClusterClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

use super::member::start_again;

pub(crate) async fn start_three(dir: &Path) -> Vec<StoreHandle> {
    start_three_with(dir, |_| {}).await
}

/// Three members, each made a little otherwise.
pub(crate) async fn start_three_with(dir: &Path, change: impl Fn(&mut StoreConfig)) -> Vec<StoreHandle> {
    // Held until all are known, so that no two are the same.
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    drop(listeners);
    let cluster: Vec<_> = peers.iter().enumerate().map(|(n, addr)| (format!("m{n}"), vec![format!("http://{addr}")])).collect();
    let mut stores = Vec::new();
    for (n, addr) in peers.iter().enumerate() {
        let name = format!("m{n}");
        let mut config = StoreConfig::single(&name, dir.join(&name), Arc::new(SystemEnv::new()));
        config.listen_peer = *addr;
        config.initial_cluster = cluster.clone();
        change(&mut config);
        stores.push(Store::start(config).await.unwrap());
    }
    stores
}

/// Waits until all of them agree on a leader; its place among them.
pub(crate) async fn leader(stores: &[StoreHandle]) -> usize {
    let agreed = async {
        loop {
            let leaders: Vec<_> = stores.iter().map(|s| s.status().borrow().leader).collect();
            if let Some(leader) = leaders[0]
                && leaders.iter().all(|l| *l == Some(leader))
                && let Some(place) = stores.iter().position(|s| s.status().borrow().id == leader)
            {
                return place;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), agreed).await.expect("a leader that all know")
}

pub(crate) async fn channel(store: &StoreHandle) -> Channel {
    Endpoint::try_from(format!("http://{}", store.client_addr().unwrap())).unwrap().connect().await.unwrap()
}

async fn put(kv: &dyn Kv, key: &str) -> Result<Revision, KvError> {
    let put = PutReq { key: key.to_owned().into(), value: "v".into(), ..PutReq::default() };
    Ok(kv.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }, None).await?.revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_answers_and_a_leader_can_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = start_three(dir.path()).await;
    let lead = leader(&stores).await;
    let follower = (lead + 1) % 3;

    // Written through a follower, read through every member.
    let revision = put(&*stores[follower].kv(), "k").await.unwrap();
    for store in &stores {
        let res = store.kv().range(RangeReq::new(KeyRange::single("k"))).await.unwrap();
        assert_eq!((res.count, res.revision), (1, revision));
    }

    // Leases through a follower: granted, kept alive, asked for their time.
    let mut leases = LeaseClient::new(channel(&stores[follower]).await);
    let id = leases.lease_grant(pb::LeaseGrantRequest { id: 0, ttl: 600 }).await.unwrap().into_inner().id;
    let ask = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
    let kept = leases.lease_keep_alive(ask).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((kept.id, kept.ttl), (id, 600));
    let time = leases.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: false }).await.unwrap().into_inner();
    assert!(time.ttl > 590 && time.granted_ttl == 600);

    // All agree on who belongs to the cluster, on who leads, and on the data.
    let mut hashes = Vec::new();
    for store in &stores {
        let members = ClusterClient::new(channel(store).await).member_list(pb::MemberListRequest { linearizable: true }).await;
        assert_eq!(members.unwrap().into_inner().members.len(), 3);
        let mut maintenance = MaintenanceClient::new(channel(store).await);
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.leader, stores[lead].status().borrow().id.get());
        hashes.push(maintenance.hash_kv(pb::HashKvRequest { revision: revision.get() }).await.unwrap().into_inner().hash);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    let mut cluster = ClusterClient::new(channel(&stores[follower]).await);
    // Members that have just started still tell the cluster so: the change waits for its turn.
    let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:9".into()], is_learner: true };
    let added = cluster.member_add(add).await.unwrap().into_inner();
    assert_eq!((added.members.len(), added.member.as_ref().map(|m| m.is_learner)), (4, Some(true)));
    let id_of_learner = added.member.unwrap().id;
    let left = cluster.member_remove(pb::MemberRemoveRequest { id: id_of_learner }).await.unwrap().into_inner();
    assert_eq!(left.members.len(), 3);
    let mut maintenance = MaintenanceClient::new(channel(&stores[follower]).await);
    let moved = maintenance.move_leader(pb::MoveLeaderRequest { target_id: 1 }).await.unwrap_err();
    assert_eq!(moved.message(), "etcdserver: not leader");

    // A watch at a follower outlives the leader.
    let mut watch =
        stores[follower].kv().watch(WatchReq { range: KeyRange::prefix("w"), from: Revision::ZERO, prev_kv: false }).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(WatchMsg::Created { .. }))));
    put(&*stores[lead].kv(), "w1").await.unwrap();
    let gone = stores.remove(lead);
    gone.shutdown().await;
    leader(&stores).await;
    let written = async {
        loop {
            // Whoever writes during an election is told so, and may try again.
            match put(&*stores[0].kv(), "w2").await {
                Ok(revision) => return revision,
                Err(error) => assert!(matches!(error, KvError::NoLeader | KvError::LeaderChanged | KvError::Timeout), "{error}"),
            }
        }
    };
    let last = tokio::time::timeout(Duration::from_secs(20), written).await.expect("two of three go on");
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        match tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("events").unwrap().unwrap() {
            WatchMsg::Events { events, .. } => seen.extend(events.iter().map(|e| e.kv.mod_revision)),
            WatchMsg::Created { .. } | WatchMsg::Progress { .. } => {}
        }
    }
    assert!(seen.len() >= 2 && seen.is_sorted());

    // The lease has its full time again, and the new leader knows it.
    let mut leases = LeaseClient::new(channel(&stores[0]).await);
    let time = leases.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: false }).await.unwrap().into_inner();
    assert!(time.ttl > 590 && time.granted_ttl == 600, "{time:?}");
    drop(watch);
    for store in stores {
        store.shutdown().await;
    }
}

/// A member that is removed stops; one that is added, learns and is promoted takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_and_another_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = start_three(dir.path()).await;
    let lead = leader(&stores).await;
    put(&*stores[lead].kv(), "k").await.unwrap();
    let mut cluster = ClusterClient::new(channel(&stores[lead]).await);
    let gone = stores.remove((lead + 1) % 3);
    let id = gone.status().borrow().id.get();
    let left = cluster.member_remove(pb::MemberRemoveRequest { id }).await.unwrap().into_inner();
    assert!(left.members.len() == 2 && left.members.iter().all(|m| m.id != id));
    let mut status = gone.status();
    let stopped = status.wait_for(|raft| raft.fatal.is_some());
    let why = tokio::time::timeout(Duration::from_secs(60), stopped).await.expect("it stops").unwrap().fatal.clone();
    assert_eq!(why.as_deref(), Some("this member has been removed from the cluster"));
    assert!(matches!(put(&*gone.kv(), "k").await, Err(KvError::Stopped)), "it serves nobody");
    gone.shutdown().await;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{addr}");
    let add = pb::MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: true };
    let added = cluster.member_add(add).await.unwrap().into_inner();
    let new = added.member.unwrap().id;
    let early = cluster.member_promote(pb::MemberPromoteRequest { id: new }).await.unwrap_err();
    assert_eq!(early.message(), "etcdserver: can only promote a learner member which is in sync with leader");
    let mut config = StoreConfig::single("m9", dir.path().join("m9"), Arc::new(SystemEnv::new()));
    (config.listen_peer, config.join) = (addr, true);
    config.initial_cluster =
        added.members.iter().map(|m| (if m.id == new { "m9".into() } else { m.name.clone() }, m.peer_ur_ls.clone())).collect();
    let store = Store::start(config).await.unwrap();
    let promoted = async {
        // Through a follower, as through any member.
        let other = stores.iter().find(|s| s.status().borrow().leader != Some(s.status().borrow().id)).unwrap();
        let mut cluster = ClusterClient::new(channel(other).await);
        loop {
            match cluster.member_promote(pb::MemberPromoteRequest { id: new }).await {
                Ok(promoted) => return promoted.into_inner(),
                Err(status) => assert!(status.message().contains("in sync with leader"), "{status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let members = tokio::time::timeout(Duration::from_secs(60), promoted).await.expect("it catches up").members;
    assert!(members.len() == 3 && members.iter().all(|m| !m.is_learner));
    stores.push(store);
    leader(&stores).await;
    let res = stores[2].kv().range(RangeReq::new(KeyRange::single("k"))).await.unwrap();
    assert_eq!(res.count, 1);
    for store in stores {
        store.shutdown().await;
    }
}

/// A machine loses its disk and comes back at the same address: as another member, which cannot vote where the old one has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_comes_back_at_its_address_as_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = start_three(dir.path()).await;
    let lead = leader(&stores).await;
    put(&*stores[lead].kv(), "k").await.unwrap();
    let mut cluster = ClusterClient::new(channel(&stores[lead]).await);
    let at = (lead + 1) % 3;
    let lost = stores.remove(at);
    let (old, name) = (lost.status().borrow().id.get(), format!("m{at}"));
    let before = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner().members;
    let urls = before.iter().find(|m| m.id == old).unwrap().peer_ur_ls.clone();
    let initial: Vec<_> = before.iter().map(|m| (m.name.clone(), m.peer_ur_ls.clone())).collect();
    lost.shutdown().await;
    let data = dir.path().join(&name);
    let config = |join: bool| {
        let mut config = StoreConfig::single(&name, data.clone(), Arc::new(SystemEnv::new()));
        config.listen_peer = urls[0].strip_prefix("http://").unwrap().parse().unwrap();
        (config.initial_cluster, config.join) = (initial.clone(), join);
        config
    };
    std::fs::remove_dir_all(&data).unwrap();
    let wiped = start_again(|| config(false)).await.err().expect("it could vote twice");
    assert!(wiped.contains("its data is gone") && wiped.contains("kontiki member remove"), "{wiped}");
    let wiped = start_again(|| config(true)).await.err().expect("it is still the old one");
    assert!(wiped.contains("its data is gone"), "{wiped}");

    cluster.member_remove(pb::MemberRemoveRequest { id: old }).await.unwrap();
    let gone = start_again(|| config(false)).await.err().expect("it is no founder any more");
    assert!(gone.contains(&format!("kontiki member add {name}")), "{gone}");
    let add = pb::MemberAddRequest { peer_ur_ls: urls.clone(), is_learner: true };
    let new = cluster.member_add(add.clone()).await.unwrap().into_inner().member.unwrap().id;
    assert_ne!(new, old);
    let twice = cluster.member_add(pb::MemberAddRequest { is_learner: false, ..add }).await.unwrap_err();
    assert_eq!(twice.message(), "etcdserver: Peer URLs already exists");
    let store = start_again(|| config(true)).await.unwrap();
    assert_eq!(store.status().borrow().id.get(), new, "the others told it who it is");
    let promoted = async {
        while let Err(status) = cluster.member_promote(pb::MemberPromoteRequest { id: new }).await {
            assert!(status.message().contains("in sync with leader"), "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), promoted).await.expect("it catches up");
    // It knows who it is by itself from now on, whatever it is started with.
    store.shutdown().await;
    let store = start_again(|| config(false)).await.unwrap();
    assert_eq!(store.status().borrow().id.get(), new);
    stores.insert(at, store);
    leader(&stores).await;
    assert_eq!(stores[at].kv().range(RangeReq::new(KeyRange::single("k"))).await.unwrap().count, 1);
    for store in stores {
        store.shutdown().await;
    }
}
