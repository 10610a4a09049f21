//! Cluster, Maintenance, Lock, Election, Health, and what is not there.

use kontiki_proto::etcd::{v3electionpb, v3lockpb};
use pb::auth_client::AuthClient;
use v3electionpb::election_client::ElectionClient;
use v3lockpb::lock_client::LockClient;

use super::*;

#[tokio::test]
async fn members_are_listed_and_changed() {
    let served = &served().await;
    let list = served.cluster().member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!(list.header.unwrap().revision, 0, "no revision in this service");
    assert_eq!((list.members.len(), list.members[0].name.as_str(), list.members[0].id), (1, "solo", 0xa11));
    let add = |url: &str, learner| pb::MemberAddRequest { peer_ur_ls: vec![url.into()], is_learner: learner };
    let refused = said(served.cluster().member_add(add("nonsense", true)).await);
    assert_eq!(refused, (Code::InvalidArgument, "etcdserver: given member URLs are invalid".into()));
    let taken = said(served.cluster().member_add(add("http://127.0.0.1:2380", true)).await);
    assert_eq!(taken, (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".into()));
    let added = served.cluster().member_add(add("http://127.0.0.1:9", true)).await.unwrap().into_inner();
    let member = added.member.unwrap();
    assert!(member.is_learner && member.name.is_empty() && added.members.len() == 2);
    let second = said(served.cluster().member_add(add("http://127.0.0.1:10", true)).await);
    assert_eq!(second, (Code::FailedPrecondition, "etcdserver: too many learner members in cluster".into()));
    let promote = |id| async move { served.cluster().member_promote(pb::MemberPromoteRequest { id }).await };
    assert_eq!(said(promote(1).await), (Code::NotFound, "etcdserver: member not found".into()));
    let voter = (Code::FailedPrecondition, "etcdserver: can only promote a learner member".to_owned());
    assert_eq!(said(promote(0xa11).await), voter);
    let move_to = |id, url: &str| pb::MemberUpdateRequest { id, peer_ur_ls: vec![url.into()] };
    let clash = said(served.cluster().member_update(move_to(member.id, "http://127.0.0.1:2380")).await);
    assert_eq!(clash, (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".into()));
    let moved = served.cluster().member_update(move_to(member.id, "http://127.0.0.1:11")).await.unwrap().into_inner();
    assert!(moved.members.iter().any(|m| m.peer_ur_ls == ["http://127.0.0.1:11"] && m.is_learner), "still a learner");
    let promoted = promote(member.id).await.unwrap().into_inner();
    assert!(promoted.members.iter().all(|m| !m.is_learner));
    served.bench.solo.silent.lock().unwrap().push(kontiki_base::ids::MemberId::new(member.id));
    let unhealthy = said(served.cluster().member_add(add("http://127.0.0.1:12", false)).await);
    assert_eq!(unhealthy.1, "etcdserver: re-configuration failed due to not enough started members", "it has no name yet");
    let left = served.cluster().member_remove(pb::MemberRemoveRequest { id: member.id }).await.unwrap().into_inner();
    assert_eq!(left.members.len(), 1);
    let remove = said(served.cluster().member_remove(pb::MemberRemoveRequest { id: 0xa11 }).await);
    assert_eq!(remove, (Code::Unknown, "etcdserver: re-configuration failed due to not enough started members".into()));
    let unknown = said(served.cluster().member_remove(pb::MemberRemoveRequest { id: 5 }).await);
    assert_eq!(unknown, (Code::NotFound, "etcdserver: member not found".into()));
}

#[tokio::test]
async fn status_needs_no_quorum() {
    let served = &served().await;
    served.put("k", "v").await;
    served.bench.solo.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
    let status = served.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.raft_term, status.errors.len()), (0xa11, 1, 0));
    assert!(status.version.starts_with("3.6.") && status.db_size > 0 && status.raft_applied_index > 0);
    assert_eq!(status.header.unwrap().revision, 2);
    served.bench.solo.become_(|s| s.leader = None);
    let status = served.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.errors), (0, vec!["etcdserver: no leader".to_owned()]));
}

#[tokio::test]
async fn maintenance_answers_as_etcd_does() {
    let served = &served().await;
    served.put("k", "v").await;
    let hash = |revision| async move { served.maintenance().hash_kv(pb::HashKvRequest { revision }).await };
    let first = hash(0).await.unwrap().into_inner();
    assert_eq!((first.hash_revision, first.compact_revision), (2, -1));
    served.put("k", "w").await;
    assert_ne!(hash(0).await.unwrap().into_inner().hash, first.hash);
    assert_eq!(hash(2).await.unwrap().into_inner().hash, first.hash);
    assert_eq!(said(hash(9).await).1, "etcdserver: mvcc: required revision is a future revision");
    assert_eq!(served.maintenance().defragment(pb::DefragmentRequest {}).await.unwrap().into_inner().header, None);
    let mv = |target_id| async move { served.maintenance().move_leader(pb::MoveLeaderRequest { target_id }).await };
    assert_eq!(said(mv(0).await), (Code::FailedPrecondition, "etcdserver: bad leader transferee".into()));
    assert_eq!(mv(0xa11).await.unwrap().into_inner().header, None, "to itself is fine");
    served.bench.solo.become_(|s| s.role = crate::raft::Role::Follower);
    assert_eq!(said(mv(0xa11).await), (Code::FailedPrecondition, "etcdserver: not leader".into()));
    let downgrade = |version: &str| pb::DowngradeRequest { action: 0, version: version.into() };
    let wrong = said(served.maintenance().downgrade(downgrade("x")).await);
    assert_eq!(wrong, (Code::InvalidArgument, "etcdserver: wrong downgrade target version format".into()));
    let far = said(served.maintenance().downgrade(downgrade("3.4.0")).await);
    assert_eq!(far, (Code::InvalidArgument, "etcdserver: invalid downgrade target version".into()));
}

/// Carries out an alarm request; the alarms in the answer, as (member, alarm).
async fn alarm(served: &Served, action: i32, member_id: u64, alarm: i32) -> Vec<(u64, i32)> {
    let res = served.maintenance().alarm(pb::AlarmRequest { action, member_id, alarm }).await.unwrap().into_inner();
    assert_eq!(res.header.unwrap().member_id, 0xa11);
    res.alarms.into_iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect()
}

#[tokio::test]
async fn alarms_are_raised_listed_and_taken_back() {
    const GET: i32 = 0;
    const ACTIVATE: i32 = 1;
    const DEACTIVATE: i32 = 2;
    let served = &served().await;
    let lease = pb::LeaseGrantRequest { ttl: 60, id: 7 };
    served.lease().lease_grant(lease).await.unwrap();
    served.put("k", "v").await;
    assert_eq!(alarm(served, GET, 0, 0).await, []);
    assert_eq!(alarm(served, ACTIVATE, 5, 0).await, [], "no kind is no alarm");
    assert_eq!(alarm(served, DEACTIVATE, 5, 1).await, [], "there is none");
    assert_eq!(alarm(served, ACTIVATE, 5, 1).await, [(5, 1)]);
    assert_eq!(alarm(served, ACTIVATE, 5, 1).await, [(5, 1)], "twice is once");
    assert_eq!(alarm(served, ACTIVATE, 0, 1).await, [(0, 1)]);
    assert_eq!(alarm(served, GET, 9, 0).await, [(0, 1), (5, 1)], "the member is not looked at");
    assert_eq!(alarm(served, GET, 0, 2).await, []);
    let status = served.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["alarm:NOSPACE ", "memberID:5 alarm:NOSPACE "]);
    // What grows is refused, by the proposer as well as in the log; what shrinks is not.
    let full = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned());
    let put = pb::PutRequest { key: "k".into(), value: "w".into(), ..Default::default() };
    assert_eq!(said(served.kv().put(put.clone()).await), full);
    let op = |request| pb::RequestOp { request: Some(request) };
    let txn = |op| pb::TxnRequest { failure: vec![op], ..Default::default() };
    let put_op = op(pb::request_op::Request::RequestPut(put.clone()));
    assert_eq!(said(served.kv().txn(txn(put_op)).await), full, "whichever branch it is in");
    assert_eq!(said(served.lease().lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 8 }).await), full);
    let delete = pb::DeleteRangeRequest { key: "k".into(), ..Default::default() };
    served.kv().txn(txn(op(pb::request_op::Request::RequestDeleteRange(delete.clone())))).await.unwrap();
    served.kv().delete_range(delete).await.unwrap();
    served.kv().compact(pb::CompactionRequest { revision: 2, physical: true }).await.unwrap();
    served.lease().lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap();
    assert_eq!(alarm(served, DEACTIVATE, 5, 1).await, [(5, 1)]);
    assert_eq!(said(served.kv().put(put.clone()).await), full, "the other one is there");
    assert_eq!(alarm(served, DEACTIVATE, 0, 1).await, [(0, 1)]);
    served.kv().put(put.clone()).await.unwrap();

    assert_eq!(alarm(served, ACTIVATE, 5, 2).await, [(5, 2)]);
    let corrupt = (Code::DataLoss, "etcdserver: corrupt cluster".to_owned());
    assert_eq!(said(served.kv().put(put.clone()).await), corrupt);
    assert_eq!(said(served.kv().range(range("k", "")).await), corrupt);
    assert_eq!(said(served.lease().lease_leases(pb::LeaseLeasesRequest {}).await), corrupt);
    served.maintenance().hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap();
    assert_eq!(alarm(served, DEACTIVATE, 5, 2).await, [(5, 2)]);
    served.kv().put(put).await.unwrap();
}

#[tokio::test]
async fn a_lock_is_held_by_one_and_handed_on() {
    let served = &served().await;
    let mut lock = LockClient::new(served.channel.clone());
    let first = lock.lock(v3lockpb::LockRequest { name: "l".into(), lease: 0 }).await.unwrap().into_inner();
    assert!(first.key.starts_with(b"l/"));
    let mut waiting = LockClient::new(served.channel.clone());
    let second = tokio::spawn(async move { waiting.lock(v3lockpb::LockRequest { name: "l".into(), lease: 0 }).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!second.is_finished(), "the first holds it");
    lock.unlock(v3lockpb::UnlockRequest { key: first.key.clone() }).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(5), second).await.unwrap().unwrap().unwrap().into_inner();
    assert_ne!(second.key, first.key);

    let mut gone = LockClient::new(served.channel.clone());
    let third = tokio::spawn(async move { gone.lock(v3lockpb::LockRequest { name: "l".into(), lease: 0 }).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(served.get("l/", "l0").await.count, 2);
    third.abort();
    let left = async {
        while served.get("l/", "l0").await.count != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), left).await.expect("a client that goes away leaves the queue");
    let no_lease = said(lock.lock(v3lockpb::LockRequest { name: "l".into(), lease: 99 }).await);
    assert_eq!(no_lease, (Code::NotFound, "etcdserver: requested lease not found".into()));
}

#[tokio::test]
async fn an_election_has_one_leader_and_observers_follow() {
    let served = &served().await;
    let mut election = ElectionClient::new(served.channel.clone());
    let ask = || v3electionpb::LeaderRequest { name: "e".into() };
    assert_eq!(said(election.leader(ask()).await), (Code::Unknown, "election: no leader".into()));
    let campaign = |value: &'static str| v3electionpb::CampaignRequest { name: "e".into(), lease: 0, value: value.into() };
    let won = election.campaign(campaign("one")).await.unwrap().into_inner().leader.unwrap();
    let mut seen = election.observe(ask()).await.unwrap().into_inner();
    assert_eq!(seen.message().await.unwrap().unwrap().kv.unwrap().value, "one");
    let proclaim = v3electionpb::ProclaimRequest { leader: Some(won.clone()), value: "uno".into() };
    election.proclaim(proclaim.clone()).await.unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv.unwrap().value, "uno");
    let mut other = ElectionClient::new(served.channel.clone());
    let second = tokio::spawn(async move { other.campaign(campaign("two")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!second.is_finished());
    election.resign(v3electionpb::ResignRequest { leader: Some(won) }).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), second).await.unwrap().unwrap().unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv.unwrap().value, "two");
    assert_eq!(said(election.proclaim(proclaim).await), (Code::Unknown, "election: not leader".into()));
    let nameless = said(election.resign(v3electionpb::ResignRequest { leader: None }).await);
    assert_eq!(nameless, (Code::Unknown, "\"leader\" field must be provided".into()));
}

#[tokio::test]
async fn health_is_served_and_unknown_methods_are_unimplemented() {
    let served = &served().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(served.channel.clone());
    let answer = health.check(tonic_health::pb::HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(answer.status, 1, "SERVING");
    let mut grpc = tonic::client::Grpc::new(served.channel.clone());
    for path in ["/etcdserverpb.KV/Nope", "/no.such.Service/Nope"] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::StatusRequest, pb::StatusRequest>::default();
        let call = grpc.unary(tonic::Request::new(pb::StatusRequest {}), path.parse().unwrap(), codec).await;
        assert_eq!(call.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn a_learner_serves_little() {
    let served = &served().await;
    served.put("k", "v").await;
    served.bench.solo.become_(|s| s.role = crate::raft::Role::Learner);
    let refusal = (Code::FailedPrecondition, "etcdserver: rpc not supported for learner".to_owned());
    assert_eq!(said(served.kv().range(range("k", "")).await), refusal);
    let stale = pb::RangeRequest { serializable: true, ..range("k", "") };
    assert_eq!(served.kv().range(stale).await.unwrap().into_inner().count, 1);
    assert!(served.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner().is_learner);
    assert_eq!(said(served.kv().put(pb::PutRequest { key: "k".into(), ..Default::default() }).await), refusal);
    assert_eq!(said(served.cluster().member_list(pb::MemberListRequest::default()).await), refusal);
    assert_eq!(said(served.maintenance().alarm(pb::AlarmRequest::default()).await), refusal);
    assert_eq!(said(served.maintenance().hash_kv(pb::HashKvRequest::default()).await), refusal);
    assert_eq!(said(AuthClient::new(served.channel.clone()).auth_status(pb::AuthStatusRequest {}).await), refusal);
    assert_eq!(said(served.watch().watch(tokio_stream::pending()).await), refusal);
    let mut health = tonic_health::pb::health_client::HealthClient::new(served.channel.clone());
    assert_eq!(health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
}
