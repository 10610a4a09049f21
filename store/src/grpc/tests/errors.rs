//! The error table, row by row: every row is produced by a client's request, or it says here why no request can.

use std::collections::BTreeMap;

use kontiki_base::KvError;
use kontiki_mvcc::{Alarm, AlarmKind, Command};
use kontiki_proto::convert::error::{EtcdError, message_too_large};
use kontiki_proto::etcd::{authpb, v3electionpb, v3lockpb};
use pb::auth_client::AuthClient;
use pb::request_op::Request as Step;
use v3electionpb::election_client::ElectionClient;
use v3lockpb::lock_client::LockClient;

use super::*;
use crate::auth::AuthOptions;
use crate::raft::{Member, Role};

/// Rows that no request to a member produces.
const NEVER: &[(EtcdError, &str)] = &[
    (EtcdError::WatchCanceled, "the client that would be told is the one that has gone"),
    (EtcdError::RequestCanceled, "the client that would be told is the one that has gone"),
    (EtcdError::DeadlineExceeded, "the client's own gRPC says it when its deadline passes; a member's own bound is \"request timed out\""),
    (EtcdError::MemberExists, "a member's id comes from its URLs, and a clash of those is found first"),
    (EtcdError::NotCapable, "there is one version of this store, and it can do all of this"),
    (EtcdError::NoClusterVersion, "the cluster's version is known from the start"),
    (EtcdError::DowngradeInProgress, "a downgrade cannot be begun"),
    (EtcdError::TimeoutConnection, "a member does not guess why time ran out"),
    (EtcdError::TimeoutApply, "a member does not guess why time ran out"),
];

/// What was produced, and by what.
#[derive(Default)]
struct Seen(BTreeMap<String, (Code, &'static str)>);

impl Seen {
    /// Takes a refusal; it must be exactly this row.
    fn take<T: std::fmt::Debug>(&mut self, by: &'static str, result: Result<T, Status>, row: EtcdError) {
        assert_eq!(said(result), (row.code(), row.text().to_owned()), "{by}");
        self.0.insert(row.text().to_owned(), (row.code(), by));
    }
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn txn(steps: Vec<Step>) -> pb::TxnRequest {
    pb::TxnRequest { success: steps.into_iter().map(|step| pb::RequestOp { request: Some(step) }).collect(), ..Default::default() }
}

async fn keys(seen: &mut Seen) {
    let served = &served().await;
    let kv = || served.kv();
    seen.take("no key", kv().put(put("")).await, EtcdError::EmptyKey);
    let keep = pb::PutRequest { ignore_value: true, value: Default::default(), ..put("absent") };
    seen.take("a value that is to be kept, of no key", kv().put(keep).await, EtcdError::KeyNotFound);
    seen.take(
        "a value that is to be kept, and another",
        kv().put(pb::PutRequest { ignore_value: true, ..put("k") }).await,
        EtcdError::ValueProvided,
    );
    let lease = pb::PutRequest { ignore_lease: true, lease: 7, ..put("k") };
    seen.take("a lease that is to be kept, and another", kv().put(lease).await, EtcdError::LeaseProvided);
    seen.take("129 steps", kv().txn(txn(vec![Step::RequestPut(put("k")); 129])).await, EtcdError::TooManyOps);
    seen.take("a key twice", kv().txn(txn(vec![Step::RequestPut(put("k")); 2])).await, EtcdError::DuplicateKey);
    let odd = pb::RangeRequest { sort_order: 9, ..range("k", "") };
    seen.take("an order that does not exist", kv().range(odd).await, EtcdError::InvalidSort);
    let later = pb::RangeRequest { revision: 99, ..range("k", "") };
    seen.take("the future", kv().range(later).await, EtcdError::FutureRev);
    served.put("k", "v").await;
    served.put("k", "w").await;
    kv().compact(pb::CompactionRequest { revision: 3, physical: false }).await.unwrap();
    let gone = pb::RangeRequest { revision: 2, ..range("k", "") };
    seen.take("the past", kv().range(gone).await, EtcdError::Compacted);
    let big = pb::PutRequest { value: vec![0; 1_600_000].into(), ..put("k") };
    seen.take("1.6 MB", kv().put(big).await, EtcdError::RequestTooLarge);
    let huge = pb::PutRequest { value: vec![0; 2_200_000].into(), ..put("k") };
    let (code, text) = said(kv().put(huge).await);
    let found = text.split(['(', ' ']).find_map(|word| word.parse::<u64>().ok()).unwrap();
    assert_eq!((code, text), (Code::ResourceExhausted, message_too_large(found, 2_097_152)), "2.2 MB: gRPC itself refuses it");
    let sorted = pb::RangeRequest { sort_order: 2, ..range("k", "") };
    seen.take("a stream in another order", kv().range_stream(sorted).await, EtcdError::StreamSort);
    let filtered = pb::RangeRequest { min_mod_revision: 1, ..range("k", "") };
    seen.take("a stream with a filter", kv().range_stream(filtered).await, EtcdError::StreamFilter);
}

async fn leases(seen: &mut Seen) {
    let served = &served().await;
    let grant = |id, ttl| async move { served.lease().lease_grant(pb::LeaseGrantRequest { id, ttl }).await };
    grant(7, 60).await.unwrap();
    seen.take("an id twice", grant(7, 60).await, EtcdError::LeaseExists);
    seen.take("longer than three centuries", grant(8, 9_000_000_001).await, EtcdError::LeaseTtlTooLarge);
    seen.take("no such lease", served.lease().lease_revoke(pb::LeaseRevokeRequest { id: 9 }).await, EtcdError::LeaseNotFound);
}

async fn members(seen: &mut Seen) {
    let served = &served().await;
    let cluster = || served.cluster();
    let add = |url: &str, is_learner| pb::MemberAddRequest { peer_ur_ls: vec![url.into()], is_learner };
    seen.take("no URL", cluster().member_add(add("nonsense", true)).await, EtcdError::BadMemberUrls);
    seen.take("a URL that is taken", cluster().member_add(add("http://127.0.0.1:2380", true)).await, EtcdError::PeerUrlExists);
    seen.take("a voter", cluster().member_promote(pb::MemberPromoteRequest { id: 0xa11 }).await, EtcdError::NotLearner);
    seen.take("nobody", cluster().member_remove(pb::MemberRemoveRequest { id: 5 }).await, EtcdError::MemberNotFound);
    seen.take("the last voter", cluster().member_remove(pb::MemberRemoveRequest { id: 0xa11 }).await, EtcdError::NotEnoughStarted);
    let learner = cluster().member_add(add("http://127.0.0.1:9", true)).await.unwrap().into_inner().member.unwrap();
    seen.take("a second learner", cluster().member_add(add("http://127.0.0.1:10", true)).await, EtcdError::TooManyLearners);
    served.bench.solo.refuse_next(KvError::Unavailable(EtcdError::LearnerNotReady.text().into()));
    seen.take(
        "a learner that lags",
        cluster().member_promote(pb::MemberPromoteRequest { id: learner.id }).await,
        EtcdError::LearnerNotReady,
    );
    let lead = |target_id| async move { served.maintenance().move_leader(pb::MoveLeaderRequest { target_id }).await };
    seen.take("leadership for nobody", lead(1).await, EtcdError::BadTransferee);
    let other = kontiki_base::MemberId::new(0xb22);
    served.bench.solo.become_(|s| s.members.push(Member { id: other, learner: false, ..s.members[0].clone() }));
    seen.take("leadership for somebody who does not take it", lead(0xb22).await, EtcdError::TimeoutLeaderFail);
    served.bench.solo.silent.lock().unwrap().push(other);
    let promote = cluster().member_promote(pb::MemberPromoteRequest { id: learner.id }).await;
    seen.take("a change while no quorum answers", promote, EtcdError::Unhealthy);
    served.bench.solo.silent.lock().unwrap().clear();
    served.bench.solo.become_(|s| s.role = Role::Follower);
    seen.take("asked of a follower", lead(0xb22).await, EtcdError::NotLeader);
    served.bench.solo.become_(|s| s.role = Role::Learner);
    seen.take("asked of a learner", served.kv().put(put("k")).await, EtcdError::NotForLearner);
    let downgrade = |action: i32, version: &str| pb::DowngradeRequest { action, version: version.into() };
    served.bench.solo.become_(|s| s.role = Role::Leader);
    seen.take("no version", served.maintenance().downgrade(downgrade(0, "x")).await, EtcdError::WrongDowngradeFormat);
    seen.take("two versions back", served.maintenance().downgrade(downgrade(0, "3.4.0")).await, EtcdError::BadDowngradeTarget);
    seen.take("nothing to take back", served.maintenance().downgrade(downgrade(2, "")).await, EtcdError::NoDowngrade);
}

async fn trouble(seen: &mut Seen) {
    let served = &served().await;
    for (error, row) in [(KvError::LeaderChanged, EtcdError::LeaderChanged), (KvError::Stopped, EtcdError::Stopped)] {
        served.bench.solo.refuse_next(error);
        seen.take("consensus says so", served.kv().put(put("k")).await, row);
    }
    let alarm = |raise, kind| {
        let alarm = Alarm { kind, member: kontiki_base::MemberId::new(1), automatic: false };
        served.bench.service.proposer.propose(Command::Alarm { raise, alarm }, 0)
    };
    alarm(true, AlarmKind::NoSpace).await.unwrap();
    seen.take("the alarm NOSPACE", served.kv().put(put("k")).await, EtcdError::NoSpace);
    alarm(true, AlarmKind::Corrupt).await.unwrap();
    seen.take("the alarm CORRUPT", served.kv().put(put("k")).await, EtcdError::Corrupt);
    alarm(false, AlarmKind::Corrupt).await.unwrap();
    alarm(false, AlarmKind::NoSpace).await.unwrap();
    served.bench.solo.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
    seen.take("nobody answers", served.kv().range(range("k", "")).await, EtcdError::Timeout);
    // Nothing is ever decided: what is proposed waits, until there is no room to wait in.
    let waiting: Vec<_> = (0..60)
        .map(|_| {
            let mut kv = served.kv();
            tokio::spawn(async move { kv.put(pb::PutRequest { value: vec![0; 1_500_000].into(), ..put("k") }).await })
        })
        .collect();
    let (first, _, rest) = futures::future::select_all(waiting).await;
    rest.iter().for_each(tokio::task::JoinHandle::abort);
    seen.take("90 MB that wait", first.unwrap(), EtcdError::TooManyRequests);
    served.bench.solo.become_(|s| s.leader = None);
    let mut demanding = tonic::Request::new(put("k"));
    demanding.metadata_mut().insert("hasleader", "true".parse().unwrap());
    seen.take("a leader is demanded", served.kv().put(demanding).await, EtcdError::NoLeader);
}

async fn users(seen: &mut Seen) {
    let served = &served().await;
    let nobody = served.nobody();
    let auth = || nobody.auth();
    let enable = || async { auth().auth_enable(pb::AuthEnableRequest {}).await };
    seen.take("auth without root", enable().await, EtcdError::RootUserAbsent);
    nobody.add_user("root", "toor").await.unwrap();
    seen.take("auth with a powerless root", enable().await, EtcdError::RootRoleAbsent);
    seen.take("logging in for nothing", served.log_in("root", "toor").await.map(drop), EtcdError::AuthNotEnabled);
    seen.take("a user twice", nobody.add_user("root", "toor").await, EtcdError::UserExists);
    seen.take("a user without a name", nobody.add_user("", "x").await, EtcdError::UserEmpty);
    seen.take("73 letters", nobody.add_user("long", &"x".repeat(73)).await, EtcdError::PasswordTooLong);
    seen.take("nobody's role", nobody.grant("ghost", "root").await, EtcdError::UserNotFound);
    seen.take("no such role", nobody.grant("root", "none").await, EtcdError::RoleNotFound);
    seen.take("a role without a name", nobody.add_role("").await, EtcdError::RoleEmpty);
    let revoke = || pb::AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() };
    seen.take("a role that was not given", auth().user_revoke_role(revoke()).await, EtcdError::RoleNotGranted);
    let root = served.guard_anew().await;
    seen.take("a role twice", root.add_role("some").await, EtcdError::RoleExists);
    let grant = pb::AuthRoleGrantPermissionRequest { name: "some".into(), perm: None };
    seen.take("a grant of nothing", root.auth().role_grant_permission(root.ask(grant)).await, EtcdError::PermissionNotGiven);
    let take = pb::AuthRoleRevokePermissionRequest { role: "some".into(), key: "nothing".into(), range_end: Default::default() };
    seen.take("a permission that was not given", root.auth().role_revoke_permission(root.ask(take)).await, EtcdError::PermissionNotGranted);
    seen.take("root without root", root.auth().user_revoke_role(root.ask(revoke())).await, EtcdError::InvalidAuthMgmt);
    let bad = root.allow("some", authpb::permission::Type::Read, "b", "a").await;
    seen.take("a permission for no key", bad, EtcdError::InvalidAuthMgmt);
    seen.take("no token", served.kv().put(put("k")).await, EtcdError::UserEmpty);
    seen.take("a wrong password", served.log_in("alice", "wrong").await.map(drop), EtcdError::AuthFailed);
    let mute =
        pb::AuthUserAddRequest { name: "mute".into(), options: Some(authpb::UserAddOptions { no_password: true }), ..Default::default() };
    root.auth().user_add(root.ask(mute)).await.unwrap();
    seen.take("a password for who has none", served.log_in("mute", "x").await.map(drop), EtcdError::NoPasswordUser);
    let alice = served.log_in("alice", "secret").await.unwrap();
    seen.take("another's key", served.kv().put(alice.ask(put("z"))).await, EtcdError::PermissionDenied);
    let mut forged = tonic::Request::new(put("k"));
    forged.metadata_mut().insert("token", "abcdefghijklmnop.1".parse().unwrap());
    seen.take("a token that nobody made", served.kv().put(forged).await, EtcdError::InvalidToken);
}

async fn signed_tokens(seen: &mut Seen) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let provider = |token: String| AuthOptions { token, ..AuthOptions::default() }.provider().unwrap();
    let secret = file("secret", "a secret".into());
    let served = served_as(provider(format!("jwt,sign-method=HS256,priv-key={secret}"))).await;
    let root = served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    served.kv().put(alice.ask(put("a"))).await.unwrap();
    root.add_role("another").await.unwrap();
    seen.take("a token that says of when it is", served.kv().put(alice.ask(put("a"))).await, EtcdError::AuthOldRevision);
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let public = file("pub.pem", pair.public_key_pem());
    let served = served_as(provider(format!("jwt,sign-method=EdDSA,pub-key={public}"))).await;
    let nobody = served.nobody();
    nobody.add_user("root", "toor").await.unwrap();
    nobody.grant("root", "root").await.unwrap();
    AuthClient::new(served.channel.clone()).auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    seen.take("a member without a key to sign with", served.log_in("root", "toor").await.map(drop), EtcdError::VerifyOnly);
}

async fn queues(seen: &mut Seen) {
    let served = &served().await;
    let mut election = ElectionClient::new(served.channel.clone());
    let ask = v3electionpb::LeaderRequest { name: "e".into() };
    seen.take("an election without candidates", election.leader(ask).await, EtcdError::ElectionNoLeader);
    let nameless = v3electionpb::ProclaimRequest { leader: None, value: "v".into() };
    seen.take("a proclamation by nobody", election.proclaim(nameless).await, EtcdError::MissingLeaderKey);
    let stranger = v3electionpb::LeaderKey { name: "e".into(), key: "e/1".into(), rev: 1, lease: 0 };
    let proclaim = v3electionpb::ProclaimRequest { leader: Some(stranger), value: "v".into() };
    seen.take("a proclamation by somebody else", election.proclaim(proclaim).await, EtcdError::ElectionNotLeader);
    let mut lock = LockClient::new(served.channel.clone());
    let held = lock.lock(v3lockpb::LockRequest { name: "l".into(), lease: 0 }).await.unwrap().into_inner().key;
    let lease = served.lease().lease_grant(pb::LeaseGrantRequest { id: 0, ttl: 600 }).await.unwrap().into_inner().id;
    let mut waiting = LockClient::new(served.channel.clone());
    let second = tokio::spawn(async move { waiting.lock(v3lockpb::LockRequest { name: "l".into(), lease }).await });
    while served.get("l/", "l0").await.count < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served.lease().lease_revoke(pb::LeaseRevokeRequest { id: lease }).await.unwrap();
    lock.unlock(v3lockpb::UnlockRequest { key: held }).await.unwrap();
    seen.take("a place that was lost while waiting", second.await.unwrap(), EtcdError::MutexExpired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_table_is_produced_or_says_why_not() {
    let mut seen = Seen::default();
    keys(&mut seen).await;
    leases(&mut seen).await;
    members(&mut seen).await;
    trouble(&mut seen).await;
    users(&mut seen).await;
    signed_tokens(&mut seen).await;
    queues(&mut seen).await;
    for row in EtcdError::ALL {
        let never = NEVER.iter().find(|(known, _)| known == row).map(|(_, why)| *why);
        let by = seen.0.get(row.text()).map(|(_, by)| *by);
        assert!(by.is_some() != never.is_some(), "{row:?}: produced by {by:?}, never because {never:?}");
    }
}
