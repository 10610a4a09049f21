//! Leases over the wire: grants, time, keep-alives, expiry.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

async fn grant(served: &Served, id: i64, ttl: i64) -> pb::LeaseGrantResponse {
    served.lease().lease_grant(pb::LeaseGrantRequest { id, ttl }).await.unwrap().into_inner()
}

async fn put_under(served: &Served, key: &str, lease: i64) {
    served.kv().put(pb::PutRequest { key: key.to_owned().into(), lease, ..Default::default() }).await.unwrap();
}

async fn time_to_live(served: &Served, id: i64) -> pb::LeaseTimeToLiveResponse {
    served.lease().lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: true }).await.unwrap().into_inner()
}

#[tokio::test]
async fn grants_and_revocations() {
    let served = &served().await;
    let granted = grant(served, 0, 60).await;
    assert!(granted.id > 0 && granted.ttl == 60 && granted.error.is_empty());
    assert_eq!(granted.header.unwrap().revision, 1, "a grant makes no revision");
    assert_eq!(grant(served, -5, 0).await.ttl, 1, "raised to one and a half election timeouts");
    let taken = served.lease().lease_grant(pb::LeaseGrantRequest { id: granted.id, ttl: 60 }).await;
    assert_eq!(said(taken), (Code::FailedPrecondition, "etcdserver: lease already exists".into()));
    let eternal = served.lease().lease_grant(pb::LeaseGrantRequest { id: 0, ttl: 9_000_000_001 }).await;
    assert_eq!(said(eternal), (Code::OutOfRange, "etcdserver: too large lease TTL".into()));
    put_under(served, "b", granted.id).await;
    put_under(served, "a", granted.id).await;
    let mut leases: Vec<_> =
        served.lease().lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner().leases.iter().map(|l| l.id).collect();
    leases.sort_unstable();
    assert_eq!(leases, [-5, granted.id]);
    let time = time_to_live(served, granted.id).await;
    assert!((58..=60).contains(&time.ttl) && time.granted_ttl == 60);
    assert_eq!(time.keys, ["a", "b"]);
    let revoked = served.lease().lease_revoke(pb::LeaseRevokeRequest { id: granted.id }).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 4, "both keys in one revision");
    assert_eq!(served.get("a", "c").await.count, 0);
    let again = served.lease().lease_revoke(pb::LeaseRevokeRequest { id: granted.id }).await;
    assert_eq!(said(again), (Code::NotFound, "etcdserver: requested lease not found".into()));
    let gone = time_to_live(served, granted.id).await;
    assert_eq!((gone.id, gone.ttl, gone.granted_ttl), (granted.id, -1, 0));
}

#[tokio::test]
async fn keep_alives_are_answered_one_by_one() {
    let served = &served().await;
    let id = grant(served, 0, 60).await.id;
    let (tx, requests) = mpsc::channel(4);
    let mut answers = served.lease().lease_keep_alive(ReceiverStream::new(requests)).await.unwrap().into_inner();
    for (id, ttl) in [(id, 60), (424_242, 0), (id, 60)] {
        tx.send(pb::LeaseKeepAliveRequest { id }).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.id, answer.ttl), (id, ttl), "a lease that is gone is no error");
    }
}

#[tokio::test]
async fn an_expired_lease_takes_its_keys_along() {
    let served = &served().await;
    let id = grant(served, 0, 1).await.id;
    put_under(served, "k", id).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(served.get("k", "").await.count, 1, "not before its time");
    let gone = async {
        while served.get("k", "").await.count == 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3), gone).await.expect("the lease runs out");
    assert_eq!(served.get("k", "").await.header.unwrap().revision, 3);
    assert_eq!(time_to_live(served, id).await.ttl, -1);
}

#[tokio::test]
async fn without_a_leader_nobody_knows_the_time() {
    let served = &served().await;
    let id = grant(served, 0, 60).await.id;
    served.bench.solo.become_(|s| s.leader = None);
    let asked = served.lease().lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: false }).await;
    assert_eq!(said(asked), (Code::Unavailable, "etcdserver: no leader".into()));
}

#[tokio::test]
async fn a_new_leader_starts_the_time_anew() {
    let served = &served().await;
    let id = grant(served, 0, 2).await.id;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    served.bench.solo.become_(|s| s.role = crate::raft::Role::Follower);
    tokio::time::sleep(Duration::from_millis(50)).await;
    served.bench.solo.become_(|s| {
        s.role = crate::raft::Role::Leader;
        s.term = s.term.next();
    });
    assert!(time_to_live(served, id).await.ttl >= 1, "never shorter than it was granted");
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(time_to_live(served, id).await.ttl >= 0, "its first time would be over by now");
}
