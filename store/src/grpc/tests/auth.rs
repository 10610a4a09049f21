//! Auth over the wire: logging in, tokens, and what every service demands of its callers.

use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::etcd::{authpb, v3electionpb, v3lockpb};
use pb::auth_client::AuthClient;
use tonic::Request;

use super::*;

/// A client that shows a token, or none.
#[derive(Clone)]
pub(super) struct As<'a> {
    served: &'a Served,
    token: Option<String>,
}

impl As<'_> {
    pub(super) fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    pub(super) fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.served.channel.clone())
    }

    pub(super) async fn add_user(&self, name: &str, password: &str) -> Result<(), Status> {
        let add = pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
        self.auth().user_add(self.ask(add)).await.map(drop)
    }

    pub(super) async fn grant(&self, user: &str, role: &str) -> Result<(), Status> {
        self.auth().user_grant_role(self.ask(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })).await.map(drop)
    }

    pub(super) async fn add_role(&self, name: &str) -> Result<(), Status> {
        self.auth().role_add(self.ask(pb::AuthRoleAddRequest { name: name.into() })).await.map(drop)
    }

    pub(super) async fn allow(&self, role: &str, kind: authpb::permission::Type, key: &str, end: &str) -> Result<(), Status> {
        let perm = authpb::Permission { perm_type: kind.into(), key: key.to_owned().into(), range_end: end.to_owned().into() };
        let grant = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
        self.auth().role_grant_permission(self.ask(grant)).await.map(drop)
    }

    async fn put(&self, key: &str) -> Result<i64, Status> {
        let put = pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
        Ok(self.served.kv().put(self.ask(put)).await?.into_inner().header.unwrap().revision)
    }

    async fn get(&self, key: &str, end: &str) -> Result<usize, Status> {
        Ok(self.served.kv().range(self.ask(range(key, end))).await?.into_inner().kvs.len())
    }
}

impl Served {
    /// Somebody without a token.
    pub(super) fn nobody(&self) -> As<'_> {
        As { served: self, token: None }
    }

    pub(super) async fn log_in(&self, name: &str, password: &str) -> Result<As<'_>, Status> {
        let ask = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        let token = AuthClient::new(self.channel.clone()).authenticate(ask).await?.into_inner().token;
        Ok(As { served: self, token: Some(token) })
    }

    /// Makes root and alice, who may read and write ["a", "b"), and enables auth. Root's client.
    pub(super) async fn guard(&self) -> As<'_> {
        self.nobody().add_user("root", "toor").await.unwrap();
        self.guard_anew().await
    }

    /// As [`Served::guard`], with a root that is there already.
    pub(super) async fn guard_anew(&self) -> As<'_> {
        let nobody = self.nobody();
        nobody.grant("root", "root").await.unwrap();
        nobody.add_user("alice", "secret").await.unwrap();
        nobody.add_role("some").await.unwrap();
        nobody.grant("alice", "some").await.unwrap();
        nobody.allow("some", authpb::permission::Type::Readwrite, "a", "b").await.unwrap();
        nobody.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        self.log_in("root", "toor").await.unwrap()
    }
}

pub(super) fn row(error: EtcdError) -> (Code, String) {
    (error.code(), error.text().to_owned())
}

#[tokio::test]
async fn a_disabled_store_asks_nobody() {
    let served = &served().await;
    let nobody = served.nobody();
    let status = nobody.auth().auth_status(pb::AuthStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.enabled, status.auth_revision), (false, 1));
    assert_eq!(said(served.log_in("root", "").await.map(drop)), row(EtcdError::AuthNotEnabled));
    assert_eq!(said(nobody.auth().auth_enable(pb::AuthEnableRequest {}).await), row(EtcdError::RootUserAbsent));
    // A token from another time does no harm.
    let old = As { served, token: Some("nonsense".into()) };
    old.put("k").await.unwrap();
    assert_eq!(old.get("k", "").await.unwrap(), 1);
}

#[tokio::test]
async fn only_the_right_password_gets_a_token() {
    let served = &served().await;
    let root = served.guard().await;
    let mute = pb::AuthUserAddRequest {
        name: "mute".into(),
        password: "ignored".into(),
        options: Some(authpb::UserAddOptions { no_password: true }),
        ..Default::default()
    };
    root.auth().user_add(root.ask(mute)).await.unwrap();
    for (name, password, expected) in [
        ("alice", "wrong", EtcdError::AuthFailed),
        ("alice", "", EtcdError::AuthFailed),
        ("ghost", "secret", EtcdError::AuthFailed),
        ("", "", EtcdError::AuthFailed),
        ("mute", "ignored", EtcdError::NoPasswordUser),
        ("mute", "", EtcdError::NoPasswordUser),
    ] {
        assert_eq!(said(served.log_in(name, password).await.map(drop)), row(expected), "{name} {password}");
    }
    let token = served.log_in("alice", "secret").await.unwrap().token.unwrap();
    let (letters, index) = token.split_once('.').unwrap();
    assert!(letters.len() == 16 && letters.bytes().all(|b| b.is_ascii_alphabetic()), "{token}");
    assert!(index.parse::<u64>().unwrap() > 0);
    for bad in ["nonsense", "abcdefghijklmnop.1", &format!("{letters}.1"), &format!("{letters}.{}", u64::MAX)] {
        let forged = As { served, token: Some(bad.to_owned()) };
        assert_eq!(said(forged.put("a").await), row(EtcdError::InvalidToken), "{bad}");
        assert_eq!(said(forged.get("a", "").await), row(EtcdError::InvalidToken), "{bad}");
    }
    let mut carried = Request::new(range("a", ""));
    carried.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    served.kv().range(carried).await.unwrap();
}

#[tokio::test]
async fn tokens_end_with_the_password_the_user_and_auth_itself() {
    let served = &served().await;
    let root = served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    alice.put("a").await.unwrap();
    let change = pb::AuthUserChangePasswordRequest { name: "alice".into(), password: "other".into(), ..Default::default() };
    root.auth().user_change_password(root.ask(change)).await.unwrap();
    assert_eq!(said(alice.put("a").await), row(EtcdError::InvalidToken));
    assert!(served.log_in("alice", "secret").await.is_err());
    let alice = served.log_in("alice", "other").await.unwrap();
    root.auth().user_delete(root.ask(pb::AuthUserDeleteRequest { name: "alice".into() })).await.unwrap();
    assert_eq!(said(alice.put("a").await), row(EtcdError::InvalidToken));
    root.auth().auth_disable(root.ask(pb::AuthDisableRequest {})).await.unwrap();
    served.nobody().put("z").await.unwrap();
    served.nobody().auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    assert_eq!(said(root.put("a").await), row(EtcdError::InvalidToken), "of before auth was disabled");
}

#[tokio::test]
async fn a_token_stands_for_what_its_user_may_do_now() {
    let served = &served().await;
    let root = served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    assert_eq!(said(alice.put("z").await), row(EtcdError::PermissionDenied));
    // Permissions change: the token need not.
    root.allow("some", authpb::permission::Type::Write, "z", "").await.unwrap();
    alice.put("z").await.unwrap();
    assert_eq!(said(alice.get("z", "").await), row(EtcdError::PermissionDenied), "writing is not reading");
    let revoke = pb::AuthRoleRevokePermissionRequest { role: "some".into(), key: "z".into(), range_end: Default::default() };
    root.auth().role_revoke_permission(root.ask(revoke)).await.unwrap();
    assert_eq!(said(alice.put("z").await), row(EtcdError::PermissionDenied));
    let me = alice.auth().user_get(alice.ask(pb::AuthUserGetRequest { name: "alice".into() })).await.unwrap().into_inner();
    assert_eq!(me.roles, ["some"]);
    let mine = alice.auth().role_get(alice.ask(pb::AuthRoleGetRequest { role: "some".into() })).await.unwrap().into_inner();
    assert_eq!(mine.perm.iter().map(|p| (p.perm_type, &p.key[..], &p.range_end[..])).collect::<Vec<_>>(), [(2, &b"a"[..], &b"b"[..])]);
    let other = said(alice.auth().user_get(alice.ask(pb::AuthUserGetRequest { name: "root".into() })).await);
    assert_eq!(other, row(EtcdError::PermissionDenied));
    root.add_role("root").await.unwrap();
    let all = root.auth().role_get(root.ask(pb::AuthRoleGetRequest { role: "root".into() })).await.unwrap().into_inner().perm;
    assert_eq!(all.iter().map(|p| (p.perm_type, &p.key[..], &p.range_end[..])).collect::<Vec<_>>(), [(2, &b""[..], &b"\0"[..])]);
}

/// Calls every method of every service with an empty message, over the wire's own words: what each says to somebody.
async fn tour(who: &As<'_>) -> Vec<(&'static str, Result<(), Code>)> {
    let mut grpc = tonic::client::Grpc::new(who.served.channel.clone());
    let mut found = Vec::new();
    for (path, _) in crate::grpc::gate::TABLE {
        // Streams of requests stay open, and are looked at by themselves.
        if ["Watch", "LeaseKeepAlive", "Observe", "Lock", "Campaign"].iter().any(|name| path.ends_with(&format!("/{name}"))) {
            continue;
        }
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::StatusRequest, pb::StatusRequest>::default();
        let call = grpc.server_streaming(who.ask(pb::StatusRequest {}), path.parse().unwrap(), codec).await;
        let answer = match call {
            Ok(response) => response.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        found.push((*path, answer.map_err(|status| status.code())));
    }
    found
}

#[tokio::test]
async fn every_call_demands_what_its_row_says() {
    use crate::grpc::gate::{Need, need};
    let served = &served().await;
    let root = served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    let forged = As { served, token: Some("abcdefghijklmnop.1".into()) };
    for (path, answer) in tour(&alice).await {
        let denied = answer == Err(Code::PermissionDenied);
        assert_eq!(denied, matches!(need(path), Need::Root | Need::RootThen) || is_own_and_forbidden(path), "{path}: {answer:?}");
    }
    for (path, answer) in tour(&served.nobody()).await {
        // "user name is empty" and an empty message have one code; that it is the former is looked at elsewhere.
        if matches!(need(path), Need::Known | Need::Root) {
            assert_eq!(answer, Err(Code::InvalidArgument), "{path}");
        }
    }
    for (path, answer) in tour(&forged).await {
        if matches!(need(path), Need::Known | Need::Root | Need::RootThen) {
            assert_eq!(answer, Err(Code::Unauthenticated), "{path}");
        }
    }
    // Members would be asked to lead, or users to go: an administrator only gets as far as what is wrong with the message.
    for (path, answer) in tour(&root).await {
        assert!(!matches!(answer, Err(Code::PermissionDenied | Code::Unauthenticated)), "{path}: {answer:?}");
        if path.ends_with("/AuthDisable") {
            break;
        }
    }
}

/// What an empty message asks for is not alice's: no user, no role, an election without a name.
fn is_own_and_forbidden(path: &str) -> bool {
    ["/UserGet", "/RoleGet", "/Leader"].iter().any(|name| path.ends_with(name))
}

#[tokio::test]
async fn keys_are_guarded_in_every_message() {
    use pb::request_op::Request as Step;
    let served = &served().await;
    let root = served.guard().await;
    let alice = &served.log_in("alice", "secret").await.unwrap();
    let denied = row(EtcdError::PermissionDenied);
    assert_eq!(said(served.nobody().put("a").await), row(EtcdError::UserEmpty));
    assert_eq!(said(served.nobody().get("a", "").await), row(EtcdError::UserEmpty));
    root.put("z").await.unwrap();
    alice.put("a1").await.unwrap();
    assert_eq!(alice.get("a", "b").await.unwrap(), 1);
    for end in ["b\0", "\0", "z"] {
        assert_eq!(said(alice.get("a", end).await), denied, "{end:?}");
    }
    let stream = served.kv().range_stream(alice.ask(range("\0", "\0"))).await;
    assert_eq!(said(stream.map(drop)), denied);
    let delete =
        |key: &str, end: &str| pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv: true };
    assert_eq!(said(served.kv().delete_range(alice.ask(delete("a", "\0"))).await), denied);
    served.kv().delete_range(alice.ask(delete("a", "b"))).await.unwrap();
    let txn = |steps: Vec<Step>| pb::TxnRequest {
        failure: steps.into_iter().map(|step| pb::RequestOp { request: Some(step) }).collect(),
        ..Default::default()
    };
    let nest = |step: Step| txn(vec![Step::RequestTxn(txn(vec![step]))]);
    for step in [
        Step::RequestRange(range("z", "")),
        Step::RequestDeleteRange(delete("z", "")),
        Step::RequestPut(pb::PutRequest { key: "z".into(), ..Default::default() }),
    ] {
        assert_eq!(said(served.kv().txn(alice.ask(nest(step.clone()))).await), denied, "{step:?}");
        assert_eq!(said(served.kv().txn(alice.ask(txn(vec![step.clone()]))).await), denied, "{step:?}");
        served.kv().txn(root.ask(nest(step))).await.unwrap();
    }
    // One that only reads does not go through the log, and is looked at all the same.
    let reads = txn(vec![Step::RequestRange(range("a", "b"))]);
    served.kv().txn(alice.ask(reads)).await.unwrap();
    assert_eq!(said(served.kv().compact(alice.ask(pb::CompactionRequest { revision: 1, physical: false })).await), denied);
    served.kv().compact(root.ask(pb::CompactionRequest { revision: 1, physical: false })).await.unwrap();
}

async fn first_answer(who: &As<'_>, key: &str, end: &str) -> pb::WatchResponse {
    let create = pb::WatchCreateRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    tx.send(request).await.unwrap();
    let mut stream = who.served.watch().watch(who.ask(tokio_stream::wrappers::ReceiverStream::new(rx))).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap()
}

#[tokio::test]
async fn watches_are_refused_by_a_reason_and_their_stream_stays() {
    let served = &served().await;
    served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    let forged = As { served, token: Some("abcdefghijklmnop.1".into()) };
    let created = first_answer(&alice, "a", "b").await;
    assert!(created.created && !created.canceled && created.cancel_reason.is_empty());
    for (who, key, end, reason) in [
        (&alice, "b", "", "rpc error: code = PermissionDenied desc = etcdserver: permission denied"),
        (&alice, "a", "\0", "rpc error: code = PermissionDenied desc = etcdserver: permission denied"),
        (&served.nobody(), "a", "", "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"),
        (&forged, "a", "", "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"),
    ] {
        let answer = first_answer(who, key, end).await;
        assert_eq!((answer.created, answer.canceled, answer.watch_id, answer.cancel_reason.as_str()), (true, true, -1, reason));
    }
}

#[tokio::test]
async fn leases_are_guarded_by_what_hangs_on_them() {
    let served = &served().await;
    let root = served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    let grant = || pb::LeaseGrantRequest { id: 0, ttl: 600 };
    assert_eq!(said(served.lease().lease_grant(served.nobody().ask(grant())).await), row(EtcdError::UserEmpty));
    assert_eq!(said(served.lease().lease_leases(served.nobody().ask(pb::LeaseLeasesRequest {})).await), row(EtcdError::UserEmpty));
    let id = served.lease().lease_grant(alice.ask(grant())).await.unwrap().into_inner().id;
    let renew = |who: &As<'_>| {
        let request = who.ask(tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]));
        let mut lease = served.lease();
        async move { lease.lease_keep_alive(request).await?.into_inner().message().await }
    };
    assert_eq!(renew(&alice).await.unwrap().unwrap().ttl, 600);
    let hang = pb::PutRequest { key: "z".into(), lease: id, ..Default::default() };
    served.kv().put(root.ask(hang)).await.unwrap();
    let denied = row(EtcdError::PermissionDenied);
    assert_eq!(said(renew(&alice).await), denied);
    let time = |keys| pb::LeaseTimeToLiveRequest { id, keys };
    for keys in [false, true] {
        assert_eq!(said(served.lease().lease_time_to_live(alice.ask(time(keys))).await), denied);
    }
    assert_eq!(said(served.lease().lease_revoke(alice.ask(pb::LeaseRevokeRequest { id })).await), denied);
    let mine = pb::PutRequest { key: "a".into(), lease: id, ..Default::default() };
    assert_eq!(said(served.kv().put(alice.ask(mine)).await), denied, "it would die when root's key does");
    assert_eq!(served.lease().lease_time_to_live(root.ask(time(true))).await.unwrap().into_inner().keys, ["z"]);
    assert_eq!(renew(&root).await.unwrap().unwrap().ttl, 600);
    served.lease().lease_revoke(root.ask(pb::LeaseRevokeRequest { id })).await.unwrap();
}

#[tokio::test]
async fn locks_and_elections_need_the_keys_that_they_stand_on() {
    let served = &served().await;
    served.guard().await;
    let alice = &served.log_in("alice", "secret").await.unwrap();
    let mut lock = v3lockpb::lock_client::LockClient::new(served.channel.clone());
    let mut election = v3electionpb::election_client::ElectionClient::new(served.channel.clone());
    let denied = row(EtcdError::PermissionDenied);
    let lock_of = |name: &str| v3lockpb::LockRequest { name: name.to_owned().into(), lease: 0 };
    assert_eq!(said(lock.lock(alice.ask(lock_of("z"))).await), denied);
    assert_eq!(said(lock.lock(served.nobody().ask(lock_of("a"))).await), row(EtcdError::UserEmpty));
    let held = lock.lock(alice.ask(lock_of("a"))).await.unwrap().into_inner().key;
    let unlock = |key: bytes::Bytes| v3lockpb::UnlockRequest { key };
    assert_eq!(said(lock.unlock(served.nobody().ask(unlock(held.clone()))).await), row(EtcdError::UserEmpty));
    assert_eq!(said(lock.unlock(alice.ask(unlock("z".into()))).await), denied);
    lock.unlock(alice.ask(unlock(held))).await.unwrap();
    let campaign = |name: &str| v3electionpb::CampaignRequest { name: name.to_owned().into(), lease: 0, value: "me".into() };
    assert_eq!(said(election.campaign(alice.ask(campaign("z"))).await), denied);
    let leader = election.campaign(alice.ask(campaign("a"))).await.unwrap().into_inner().leader;
    let named = |name: &str| v3electionpb::LeaderRequest { name: name.to_owned().into() };
    assert_eq!(election.leader(alice.ask(named("a"))).await.unwrap().into_inner().kv.unwrap().value, "me");
    assert_eq!(said(election.leader(alice.ask(named("z"))).await), denied);
    let observed = election.observe(served.nobody().ask(named("a"))).await.unwrap().into_inner().message().await;
    assert_eq!(said(observed), row(EtcdError::UserEmpty));
    let proclaim = v3electionpb::ProclaimRequest { leader: leader.clone(), value: "still me".into() };
    assert_eq!(said(election.proclaim(served.nobody().ask(proclaim.clone())).await), row(EtcdError::UserEmpty));
    election.proclaim(alice.ask(proclaim)).await.unwrap();
    let resign = v3electionpb::ResignRequest { leader };
    assert_eq!(said(election.resign(served.nobody().ask(resign.clone())).await), row(EtcdError::UserEmpty));
    election.resign(alice.ask(resign)).await.unwrap();
}

#[tokio::test]
async fn asking_for_alarms_is_for_those_who_are_known_and_the_rest_for_root() {
    let served = &served().await;
    let root = served.guard().await;
    let alice = served.log_in("alice", "secret").await.unwrap();
    let get = || pb::AlarmRequest { action: pb::alarm_request::AlarmAction::Get.into(), ..Default::default() };
    let clear = || pb::AlarmRequest { action: pb::alarm_request::AlarmAction::Deactivate.into(), ..Default::default() };
    assert_eq!(said(served.maintenance().alarm(served.nobody().ask(get())).await), row(EtcdError::UserEmpty));
    served.maintenance().alarm(alice.ask(get())).await.unwrap();
    assert_eq!(said(served.maintenance().alarm(alice.ask(clear())).await), row(EtcdError::PermissionDenied));
    served.maintenance().alarm(root.ask(clear())).await.unwrap();
}

#[tokio::test]
async fn the_store_in_process_is_trusted() {
    use kontiki_base::kv::{Kv as _, Op, PutReq, RangeReq, Txn};
    let served = &served().await;
    served.guard().await;
    let kv = crate::kv::LocalStoreKv::new(std::sync::Arc::clone(&served.bench.service));
    let put = Op::Put(PutReq { key: "z".into(), ..PutReq::default() });
    kv.txn(Txn { success: vec![put], ..Txn::default() }, None).await.unwrap();
    assert_eq!(kv.range(RangeReq::new(kontiki_base::KeyRange::single("z"))).await.unwrap().count, 1);
}
