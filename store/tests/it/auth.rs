//! Users and roles with real clients: etcd's own command line against three members, and the same requests beside etcd itself.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kontiki_proto::env::SystemEnv;
use kontiki_proto::etcd::{authpb, etcdserverpb as pb};
use kontiki_store::auth::AuthOptions;
use kontiki_store::config::{StoreConfig, TlsOptions};
use kontiki_store::server::{Store, StoreHandle};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::cluster::{leader, start_three_with};
use super::etcd::Etcd;
use super::etcdctl::{Ctl, present};
use super::member::endpoint;
use super::tls::Authority;

/// As little as bcrypt can do.
fn quick() -> AuthOptions {
    AuthOptions { bcrypt_cost: 4, ..AuthOptions::default() }
}

/// Runs a command that must fail, and say this.
fn refused(ctl: &Ctl, args: &str, why: &str) {
    let said = ctl.fail(args);
    assert!(said.contains(why), "{args}: {said}");
}

/// The whole of auth with etcd's own client; each step through the next of these members.
fn tour(members: &[Ctl]) {
    let mut turn = members.iter().cycle();
    let mut ctl = || turn.next().unwrap();
    assert_eq!(ctl().run("user add root:toor"), "User root created\n");
    refused(ctl(), "user add root:toor", "etcdserver: user name already exists");
    assert_eq!(ctl().run("user grant-role root root"), "Role root is granted to user root\n");
    assert_eq!(ctl().run("user add alice:secret"), "User alice created\n");
    assert_eq!(ctl().run("role add some"), "Role some created\n");
    assert_eq!(ctl().run("role grant-permission some readwrite a b"), "Role some updated\n");
    assert_eq!(ctl().run("role grant-permission some read r"), "Role some updated\n");
    assert_eq!(ctl().run("user grant-role alice some"), "Role some is granted to user alice\n");
    assert_eq!(ctl().run("put r seen"), "OK\n");
    assert_eq!(ctl().run("auth enable"), "Authentication Enabled\n");

    for args in ["put a 1", "get a", "del a", "user list", "role get some", "auth disable", "user delete alice"] {
        let said = ctl().fail(args);
        assert!(said.contains("etcdserver: user name is empty"), "{args}: {said}");
    }
    refused(ctl(), "--user alice:wrong get a", "etcdserver: authentication failed, invalid user ID or password");
    refused(ctl(), "--user ghost:secret get a", "etcdserver: authentication failed, invalid user ID or password");
    assert_eq!(ctl().run("--user alice:secret put a1 1"), "OK\n");
    assert_eq!(ctl().run("--user alice:secret get a b"), "a1\n1\n");
    assert_eq!(ctl().run("--user alice:secret get r"), "r\nseen\n");
    for args in ["put z 1", "put r 1", "get z", "get a c", "get a --from-key", "del a c", "user list", "role add x", "auth disable"] {
        let said = ctl().fail(&format!("--user alice:secret {args}"));
        assert!(said.contains("etcdserver: permission denied"), "{args}: {said}");
    }
    assert_eq!(ctl().feed("--user alice:secret txn", "value(\"r\") = \"seen\"\n\nput a2 2\n\nget r\n\n"), "SUCCESS\n\nOK\n");
    assert_eq!(ctl().run("--user alice:secret user get alice"), "User: alice\nRoles: some\n");
    assert!(ctl().run("--user alice:secret role get some").contains("KV Read:\n\t[a, b)"));

    assert_eq!(ctl().run("--user root:toor user list"), "alice\nroot\n");
    assert_eq!(ctl().run("--user root:toor role list"), "some\n");
    assert_eq!(ctl().run("--user root:toor put z 1"), "OK\n");
    refused(ctl(), "--user root:toor user delete root", "etcdserver: invalid auth management");
    refused(ctl(), "--user root:toor user revoke-role root root", "etcdserver: invalid auth management");
    assert_eq!(ctl().run("--user root:toor role revoke-permission some a b"), "Permission of range [a, b) is revoked from role some\n");
    refused(ctl(), "--user alice:secret get a b", "etcdserver: permission denied");
    assert_eq!(ctl().feed("--user root:toor user passwd alice --interactive=false", "other\n"), "Password updated\n");
    refused(ctl(), "--user alice:secret get r", "etcdserver: authentication failed");
    assert_eq!(ctl().run("--user alice:other get r"), "r\nseen\n");
    assert_eq!(ctl().run("--user root:toor role delete some"), "Role some deleted\n");
    refused(ctl(), "--user alice:other get r", "etcdserver: permission denied");
    assert_eq!(ctl().run("--user root:toor user delete alice"), "User alice deleted\n");
    assert_eq!(ctl().run("--user root:toor auth disable"), "Authentication Disabled\n");
    assert_eq!(ctl().run("put a 1"), "OK\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_own_client_finds_auth_at_every_member() {
    if !present() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let stores = start_three_with(dir.path(), |config| config.auth = quick()).await;
    leader(&stores).await;
    let members: Vec<Ctl> = stores.iter().map(|store| Ctl { endpoint: endpoint(store) }).collect();
    tokio::task::spawn_blocking(move || tour(&members)).await.unwrap();
    for store in stores {
        store.shutdown().await;
    }
}

/// The tour demands of our members what it demands of etcd: here is the proof that etcd does that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_itself_passes_the_tour_of_auth() {
    let Some(etcd) = Etcd::start().await else { return };
    let members = [Ctl { endpoint: etcd.endpoint.clone() }];
    tokio::task::spawn_blocking(move || tour(&members)).await.unwrap();
}

/// Somebody at one server.
#[derive(Clone)]
struct Side {
    channel: Channel,
    token: Option<String>,
}

fn bytes(text: &str) -> Bytes {
    text.to_owned().into()
}

impl Side {
    async fn connect(endpoint: &str) -> Self {
        let channel = Endpoint::try_from(format!("http://{endpoint}")).unwrap().connect().await.unwrap();
        Self { channel, token: None }
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    /// The same server, as somebody else.
    async fn log_in(&self, name: &str, password: &str) -> Result<Self, Status> {
        let ask = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        let token = self.auth().authenticate(ask).await?.into_inner().token;
        Ok(Self { channel: self.channel.clone(), token: Some(token) })
    }

    async fn add_user(&self, name: &str, password: &str) {
        let add = pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
        self.auth().user_add(self.ask(add)).await.unwrap();
    }

    async fn enable(&self) {
        self.add_user("root", "toor").await;
        self.auth().user_grant_role(self.ask(pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() })).await.unwrap();
        self.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    }

    async fn put(&self, key: &str) -> Result<(), Status> {
        let put = pb::PutRequest { key: bytes(key), ..Default::default() };
        KvClient::new(self.channel.clone()).put(self.ask(put)).await.map(drop)
    }

    async fn get(&self, key: &str) -> Result<i64, Status> {
        let get = pb::RangeRequest { key: bytes(key), ..Default::default() };
        Ok(KvClient::new(self.channel.clone()).range(self.ask(get)).await?.into_inner().count)
    }
}

fn text_of<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    result.unwrap_err().message().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_member_counts_at_all_and_users_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let stores = start_three_with(dir.path(), |config| config.auth = quick()).await;
    leader(&stores).await;
    let mut sides = Vec::new();
    for store in &stores {
        sides.push(Side::connect(&endpoint(store)).await);
    }
    sides[0].enable().await;
    for from in &sides {
        let token = from.log_in("root", "toor").await.unwrap().token;
        for at in &sides {
            // At once: a member that has not heard of it yet waits for it.
            let root = Side { token: token.clone(), ..at.clone() };
            root.put("k").await.unwrap();
            assert_eq!(root.get("k").await.unwrap(), 1);
        }
    }
    let old = sides[1].log_in("root", "toor").await.unwrap();
    old.auth().auth_disable(old.ask(pb::AuthDisableRequest {})).await.unwrap();
    for at in &sides {
        at.put("k").await.unwrap();
    }
    sides[2].auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let fresh = sides[2].log_in("root", "toor").await.unwrap();
    for at in &sides {
        let before = Side { token: old.token.clone(), ..at.clone() };
        let after = Side { token: fresh.token.clone(), ..at.clone() };
        after.put("k").await.unwrap();
        assert_eq!(text_of(before.put("k").await), "etcdserver: invalid auth token", "of before auth was disabled");
    }
    for store in stores {
        store.shutdown().await;
    }
}

async fn one(dir: &Path, auth: AuthOptions) -> StoreHandle {
    let mut config = StoreConfig::single("solo", dir.join("data"), Arc::new(SystemEnv::new()));
    config.auth = auth;
    let store = Store::start(config).await.unwrap();
    store.status().wait_for(|raft| raft.leader.is_some()).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_on_disk_and_tokens_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = one(dir.path(), quick()).await;
    let side = Side::connect(&endpoint(&store)).await;
    side.enable().await;
    let root = side.log_in("root", "toor").await.unwrap();
    root.put("k").await.unwrap();
    store.shutdown().await;

    let store = one(dir.path(), quick()).await;
    let side = Side::connect(&endpoint(&store)).await;
    assert_eq!(text_of(side.get("k").await), "etcdserver: user name is empty");
    let stale = Side { token: root.token, ..side.clone() };
    assert_eq!(text_of(stale.get("k").await), "etcdserver: invalid auth token");
    assert_eq!(side.log_in("root", "toor").await.unwrap().get("k").await.unwrap(), 1);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_tokens_outlive_a_restart_until_something_changes() {
    let dir = tempfile::tempdir().unwrap();
    let pair = rcgen::KeyPair::generate().unwrap();
    let (private, public) = (dir.path().join("key.pem"), dir.path().join("pub.pem"));
    std::fs::write(&private, pair.serialize_pem()).unwrap();
    std::fs::write(&public, pair.public_key_pem()).unwrap();
    let token = format!("jwt,sign-method=ES256,priv-key={},pub-key={}", private.display(), public.display());
    let options = AuthOptions { token, ..quick() };
    let store = one(dir.path(), options.clone()).await;
    let side = Side::connect(&endpoint(&store)).await;
    side.enable().await;
    let root = side.log_in("root", "toor").await.unwrap();
    store.shutdown().await;

    let store = one(dir.path(), options).await;
    let root = Side { token: root.token, ..Side::connect(&endpoint(&store)).await };
    root.put("k").await.unwrap();
    root.add_user("alice", "secret").await;
    assert_eq!(text_of(root.put("k").await), "etcdserver: revision of auth store is old");
    assert_eq!(text_of(root.get("k").await), "etcdserver: revision of auth store is old");
    root.log_in("root", "toor").await.unwrap().put("k").await.unwrap();
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_says_who_its_holder_is_and_a_token_says_it_better() {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = authority.issue();
    let mut config = StoreConfig::single("solo", dir.path().join("data"), Arc::new(SystemEnv::new()));
    config.auth = quick();
    config.client_tls = Some(TlsOptions::new(cert, key).for_clients_of(authority.pem.clone()));
    config.listen_clients[0].tls = true;
    let store = Store::start(config).await.unwrap();
    store.status().wait_for(|raft| raft.leader.is_some()).await.unwrap();
    let (cert, key) = authority.issue();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).identity(Identity::from_pem(cert, key));
    let endpoint = Endpoint::try_from(format!("https://{}", endpoint(&store))).unwrap().tls_config(tls).unwrap();
    let side = Side { channel: endpoint.connect().await.unwrap(), token: None };
    // What rcgen calls the holder of a certificate that is given no name.
    const NAME: &str = "rcgen self signed cert";
    side.add_user(NAME, "secret").await;
    side.enable().await;
    assert_eq!(text_of(side.put("k").await), "etcdserver: permission denied", "known, but without a role");
    let root = side.log_in("root", "toor").await.unwrap();
    root.put("k").await.unwrap();
    root.auth().user_grant_role(root.ask(pb::AuthUserGrantRoleRequest { user: NAME.into(), role: "root".into() })).await.unwrap();
    side.put("k").await.unwrap();
    let mut through_gateway = Request::new(pb::PutRequest { key: bytes("k"), ..Default::default() });
    through_gateway.metadata_mut().insert("grpcgateway-accept", "application/json".parse().unwrap());
    let refused = KvClient::new(side.channel.clone()).put(through_gateway).await;
    assert_eq!(text_of(refused), "etcdserver: user name is empty", "the certificate is the gateway's");
    store.shutdown().await;
}

/// A small generator with a seed.
struct Mix(u64);

impl Mix {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(u64::try_from(from.len()).unwrap())).unwrap()].clone()
    }
}

/// Ranges that permissions are given for: etcd 3.4 gets two of one key wrong, so each key has one end.
const GRANTS: &[(&str, &str)] = &[("a", "c"), ("c", "e"), ("e", ""), ("g", "\0"), ("\0", "b"), ("f", "g")];
/// Ranges that are asked for.
const ASKS: &[(&str, &str)] = &[
    ("a", ""),
    ("a", "e"),
    ("b", "d"),
    ("e", "f"),
    ("e", "e\0"),
    ("d", "\0"),
    ("\0", "\0"),
    ("f", "h"),
    ("x", ""),
    ("c", "f"),
    ("m", "c"),
];
const USERS: &[&str] = &["alice", "bob", "alice", "bob", "alice", "bob", "alice", "bob", "root", ""];
const ROLES: &[&str] = &["r1", "r2", "r1", "r2", "r1", "r2", "r1", "r2", "r1", "r2", "r1", "r2", "root", ""];

#[derive(Clone, Debug)]
enum Ask {
    Enable,
    Disable,
    UserAdd(&'static str),
    UserGet(&'static str),
    UserList,
    UserDelete(&'static str),
    Password(&'static str, &'static str),
    Grant(&'static str, &'static str),
    Revoke(&'static str, &'static str),
    RoleAdd(&'static str),
    RoleGet(&'static str),
    RoleList,
    RoleDelete(&'static str),
    Allow(&'static str, i32, (&'static str, &'static str)),
    Forbid(&'static str, (&'static str, &'static str)),
    /// Not by root but by this user: a read, a deletion, a write.
    Use(&'static str, u64, (&'static str, &'static str)),
}

fn next(mix: &mut Mix) -> Ask {
    match mix.below(40) {
        0 | 1 => Ask::Enable,
        2 if mix.below(3) == 0 => Ask::Disable,
        2..=4 => Ask::UserAdd(mix.of(USERS)),
        5 => Ask::UserGet(mix.of(USERS)),
        6 => Ask::UserList,
        7 => Ask::UserDelete(mix.of(USERS)),
        8 => Ask::Password(mix.of(USERS), mix.of(&["secret", "other"])),
        9..=12 => Ask::Grant(mix.of(USERS), mix.of(ROLES)),
        13 => Ask::Revoke(mix.of(USERS), mix.of(ROLES)),
        14 | 15 => Ask::RoleAdd(mix.of(ROLES)),
        // etcd 3.4 shows of the role root what it was given, later ones what it allows.
        16 => Ask::RoleGet(mix.of(&["r1", "r2", ""])),
        17 => Ask::RoleList,
        18 => Ask::RoleDelete(mix.of(ROLES)),
        19..=24 => Ask::Allow(mix.of(ROLES), i32::try_from(mix.below(3)).unwrap(), mix.of(GRANTS)),
        25 | 26 => Ask::Forbid(mix.of(ROLES), mix.of(GRANTS)),
        _ => Ask::Use(mix.of(&["alice", "bob"]), mix.below(3), mix.of(ASKS)),
    }
}

/// What came of it, as text.
type Answer = Result<String, (Code, String)>;

impl Side {
    async fn answer(&mut self, ask: &Ask) -> Answer {
        let mut answer = self.try_answer(ask).await;
        let unknown = |status: &Status| ["etcdserver: invalid auth token", "etcdserver: user name is empty"].contains(&status.message());
        // Tokens end with passwords and roles: the root of both sides logs in again. Where auth is disabled, etcd 3.4 still looks at tokens.
        if answer.as_ref().is_err_and(unknown) {
            self.token = self.log_in("root", "toor").await.ok().and_then(|root| root.token);
            answer = self.try_answer(ask).await;
        }
        answer.map_err(|status| (status.code(), status.message().to_owned()))
    }

    async fn try_answer(&self, ask: &Ask) -> Result<String, Status> {
        let mut auth = self.auth();
        let done = String::new();
        Ok(match ask.clone() {
            Ask::Enable => auth.auth_enable(self.ask(pb::AuthEnableRequest {})).await.map(|_| done)?,
            Ask::Disable => auth.auth_disable(self.ask(pb::AuthDisableRequest {})).await.map(|_| done)?,
            Ask::UserAdd(name) => {
                let add = pb::AuthUserAddRequest {
                    name: name.into(),
                    password: if name == "root" { "toor" } else { "secret" }.into(),
                    ..Default::default()
                };
                auth.user_add(self.ask(add)).await.map(|_| done)?
            }
            Ask::UserGet(name) => {
                format!("{:?}", auth.user_get(self.ask(pb::AuthUserGetRequest { name: name.into() })).await?.into_inner().roles)
            }
            Ask::UserList => format!("{:?}", auth.user_list(self.ask(pb::AuthUserListRequest {})).await?.into_inner().users),
            Ask::UserDelete(name) => auth.user_delete(self.ask(pb::AuthUserDeleteRequest { name: name.into() })).await.map(|_| done)?,
            Ask::Password(name, password) => {
                let password = if name == "root" { "toor" } else { password };
                let change = pb::AuthUserChangePasswordRequest { name: name.into(), password: password.into(), ..Default::default() };
                auth.user_change_password(self.ask(change)).await.map(|_| done)?
            }
            Ask::Grant(user, role) => {
                auth.user_grant_role(self.ask(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })).await.map(|_| done)?
            }
            Ask::Revoke(name, role) => auth
                .user_revoke_role(self.ask(pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() }))
                .await
                .map(|_| done)?,
            Ask::RoleAdd(name) => auth.role_add(self.ask(pb::AuthRoleAddRequest { name: name.into() })).await.map(|_| done)?,
            Ask::RoleGet(role) => {
                format!("{:?}", auth.role_get(self.ask(pb::AuthRoleGetRequest { role: role.into() })).await?.into_inner().perm)
            }
            Ask::RoleList => format!("{:?}", auth.role_list(self.ask(pb::AuthRoleListRequest {})).await?.into_inner().roles),
            Ask::RoleDelete(role) => auth.role_delete(self.ask(pb::AuthRoleDeleteRequest { role: role.into() })).await.map(|_| done)?,
            Ask::Allow(name, kind, (key, end)) => {
                let perm = Some(authpb::Permission { perm_type: kind, key: bytes(key), range_end: bytes(end) });
                auth.role_grant_permission(self.ask(pb::AuthRoleGrantPermissionRequest { name: name.into(), perm })).await.map(|_| done)?
            }
            Ask::Forbid(role, (key, end)) => {
                let forbid = pb::AuthRoleRevokePermissionRequest { role: role.into(), key: bytes(key), range_end: bytes(end) };
                auth.role_revoke_permission(self.ask(forbid)).await.map(|_| done)?
            }
            Ask::Use(name, kind, (key, end)) => self.use_keys(name, kind, key, end).await?,
        })
    }

    /// Logs in as a user, with the one password or the other, and does something to keys.
    async fn use_keys(&self, name: &str, kind: u64, key: &str, end: &str) -> Result<String, Status> {
        let nobody = Self { token: None, ..self.clone() };
        let user = match nobody.log_in(name, "secret").await {
            Err(status) if status.message().contains("authentication failed") => nobody.log_in(name, "other").await,
            other => other,
        };
        let user = match user {
            Err(status) if status.message().contains("is not enabled") => nobody,
            other => other?,
        };
        let mut kv = KvClient::new(user.channel.clone());
        Ok(match kind {
            0 => {
                let get = pb::RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() };
                kv.range(user.ask(get)).await?.into_inner().count.to_string()
            }
            1 => {
                let delete = pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: end.is_empty() };
                kv.delete_range(user.ask(delete)).await?.into_inner().deleted.to_string()
            }
            _ => kv.put(user.ask(pb::PutRequest { key: bytes(key), ..Default::default() })).await.map(|_| String::new())?,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_users_and_roles_have_the_same_answers() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = one(dir.path(), quick()).await;
    let mut theirs = Side::connect(&etcd.endpoint).await;
    let mut ours = Side::connect(&endpoint(&store)).await;
    let mut mix = Mix(20_260_102);
    theirs.enable().await;
    ours.enable().await;
    let (mut denied, mut allowed) = (0, 0);
    for round in 0..1_500 {
        let ask = next(&mut mix);
        let expected = theirs.answer(&ask).await;
        let given = ours.answer(&ask).await;
        assert_eq!(given, expected, "request {round}: {ask:?} (ours, etcd's)");
        match (&ask, given) {
            // Somebody took root away while that was allowed: the next time it works.
            (Ask::Enable, Err(_)) => {
                for repair in [Ask::UserAdd("root"), Ask::Grant("root", "root")] {
                    let expected = theirs.answer(&repair).await;
                    assert_eq!(ours.answer(&repair).await, expected, "after request {round}: {repair:?}");
                }
            }
            (Ask::Use(..), Ok(_)) => allowed += 1,
            (Ask::Use(..), Err((Code::PermissionDenied, _))) => denied += 1,
            _ => {}
        }
    }
    assert!(denied > 50 && allowed > 50, "{denied} times no, {allowed} times yes");
    store.shutdown().await;
}
