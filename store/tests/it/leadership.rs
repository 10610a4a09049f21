//! Why the leader changed, as members saw it: over the real wire, and over restarts.

use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb::MoveLeaderRequest;
use kontiki_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use kontiki_proto::store as pb;
use kontiki_store::server::StoreHandle;
use kontiki_store::why::{Code, Election, join};
use pb::leadership_client::LeadershipClient;

use crate::cluster::{channel, leader, start_three};

/// What all members saw, asked of one of them.
async fn elections(store: &StoreHandle) -> (Vec<Election>, usize) {
    let mut client = LeadershipClient::new(channel(store).await);
    let told = client.observations(pb::ObservationsRequest { everyone: true }).await.unwrap().into_inner();
    let history = join(&told.members, &told.silent);
    (history.elections, history.silent.len())
}

/// Waits until somebody knows of the election after `term`.
async fn next(store: &StoreHandle, term: u64) -> Election {
    let known = async {
        loop {
            let (elections, _) = elections(store).await;
            if let Some(last) = elections.into_iter().next_back().filter(|last| last.term > term && last.cause != Code::Unknown) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.expect("an election that is explained")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_election_has_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = start_three(dir.path()).await;
    let first = leader(&stores).await;
    let founded = next(&stores[0], 0).await;
    assert!(matches!(founded.cause, Code::Founded), "{founded:#?}");
    assert!(founded.votes.iter().filter(|vote| vote.granted).count() >= 2, "{founded:#?}");
    assert_eq!((founded.leaderless_ms, founded.before), (None, None));

    let (old, target) = (stores[first].status().borrow().id, stores[(first + 1) % 3].status().borrow().id);
    let mut maintenance = MaintenanceClient::new(channel(&stores[first]).await);
    maintenance.move_leader(MoveLeaderRequest { target_id: target.get() }).await.unwrap();
    let moved = next(&stores[0], founded.term).await;
    assert!(matches!(moved.cause, Code::Asked), "{moved:#?}");
    assert_eq!(moved.leader.id, format!("{:x}", target.get()));
    assert_eq!(moved.before.as_ref().map(|(_, who)| who.id.clone()), Some(format!("{:x}", old.get())));
    assert!(moved.because.contains("because somebody had asked for that"), "{moved:#?}");
    assert!(moved.leaderless_ms.is_some());
    let handed = moved.evidence.iter().any(|evidence| evidence.text.contains("handed leadership to"));
    assert!(handed, "the old leader says so itself: {moved:#?}");

    // The leader is stopped: it is not there to be asked, and those who are left know why.
    let lead = leader(&stores).await;
    stores.remove(lead).shutdown().await;
    let stopped = next(&stores[0], moved.term).await;
    assert!(matches!(stopped.cause, Code::Stopping), "{stopped:#?}");
    let (_, silent) = elections(&stores[0]).await;
    assert_eq!(silent, 1, "the one that was stopped");
    for store in stores {
        store.shutdown().await;
    }
}
