//! Users and roles: etcd's rules as tables; who may do what, in every place where a key can be named; and that members agree.

use bytes::Bytes;
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, DeleteReq, KvError, Op, PutReq, RangeReq, Txn};
use kontiki_base::{AuthError, KeyRange, LeaseId, Revision};
use kontiki_mvcc::auth::{self, Access, AuthCommand, AuthReply, Out, Permission, Who};
use kontiki_mvcc::{Command, Reply, state_hash, verify};

use crate::generate::Choices;
use crate::util::{Store, one, put, put_leased, then, wire};

fn text(name: &str) -> String {
    name.to_owned()
}

fn user_add(name: &str) -> AuthCommand {
    AuthCommand::UserAdd { name: text(name), hash: Some(Bytes::from_static(b"hash")) }
}

fn role_add(name: &str) -> AuthCommand {
    AuthCommand::RoleAdd { name: text(name) }
}

fn grant(name: &str, role: &str) -> AuthCommand {
    AuthCommand::UserGrant { name: text(name), role: text(role) }
}

fn revoke(name: &str, role: &str) -> AuthCommand {
    AuthCommand::UserRevoke { name: text(name), role: text(role) }
}

fn allow(role: &str, access: Access, range: KeyRange) -> AuthCommand {
    AuthCommand::RoleGrant { name: text(role), permission: Permission { access, range } }
}

fn delete_user(name: &str) -> AuthCommand {
    AuthCommand::UserDelete { name: text(name) }
}

impl Store {
    fn change(&mut self, command: AuthCommand) -> Result<AuthReply, AuthError> {
        match self.apply(&Command::Auth(command)).reply {
            Ok(Reply::Auth(reply)) => Ok(reply),
            Err(KvError::Auth(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn revision(&self) -> u64 {
        auth::facts(&self.view).unwrap().revision
    }

    /// What `user` is told, with the permissions of this moment.
    fn ask(&mut self, user: &str, command: Command) -> Result<Reply, KvError> {
        let who = if user.is_empty() { Who::nobody() } else { Who { user: text(user), revision: self.revision() } };
        self.apply(&command.by(who)).reply
    }

    fn may(&mut self, user: &str, command: Command) -> Result<(), AuthError> {
        match self.ask(user, command) {
            Ok(_) => Ok(()),
            Err(KvError::Auth(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }
}

/// Root, and alice, who may read ["r", "s") and write ["w", "x"), and both with "b"; enabled.
fn guarded() -> Store {
    let mut store = Store::default();
    for command in [
        user_add("root"),
        grant("root", "root"),
        user_add("alice"),
        role_add("some"),
        grant("alice", "some"),
        allow("some", Access::Read, wire("r", "s")),
        allow("some", Access::Write, wire("w", "x")),
        allow("some", Access::ReadWrite, one("b")),
        AuthCommand::Enable,
    ] {
        store.change(command).unwrap();
    }
    store
}

#[test]
fn changes_have_etcds_outcomes_and_each_makes_one_auth_revision() {
    use AuthError::*;
    let table: Vec<(AuthCommand, Result<u64, AuthError>)> = vec![
        (AuthCommand::Enable, Err(RootUserAbsent)),
        (AuthCommand::Disable, Ok(0)),
        (user_add(""), Err(UserEmpty)),
        (user_add("root"), Ok(1)),
        (user_add("root"), Err(UserExists)),
        (AuthCommand::Enable, Err(RootRoleAbsent)),
        (grant("nobody", "nothing"), Err(UserNotFound)),
        (grant("root", "nothing"), Err(RoleNotFound)),
        (grant("root", "root"), Ok(1)),
        (grant("root", "root"), Ok(0)),
        (AuthCommand::Authenticate { user: text("root"), prefix: text("x") }, Err(NotEnabled)),
        (role_add(""), Err(RoleEmpty)),
        (role_add("r"), Ok(1)),
        (role_add("r"), Err(RoleExists)),
        (allow("none", Access::Read, one("k")), Err(RoleNotFound)),
        (allow("r", Access::Read, wire("", "")), Err(InvalidManagement)),
        (allow("r", Access::Read, wire("b", "a")), Err(InvalidManagement)),
        (allow("r", Access::Read, wire("b", "b")), Err(InvalidManagement)),
        (allow("none", Access::Read, wire("b", "a")), Err(InvalidManagement)),
        (allow("r", Access::Read, wire("b", "\0")), Ok(1)),
        (allow("r", Access::Write, wire("b", "\0")), Ok(1)),
        (allow("r", Access::Read, wire("b", "c")), Ok(1)),
        (AuthCommand::RoleRevoke { name: text("none"), range: one("k") }, Err(RoleNotFound)),
        (AuthCommand::RoleRevoke { name: text("r"), range: one("b") }, Err(PermissionNotGranted)),
        (AuthCommand::RoleRevoke { name: text("r"), range: wire("b", "c") }, Ok(1)),
        (revoke("nobody", "r"), Err(UserNotFound)),
        (revoke("root", "r"), Err(RoleNotGranted)),
        (AuthCommand::UserPassword { name: text("nobody"), hash: Bytes::new() }, Err(UserNotFound)),
        (AuthCommand::UserPassword { name: text("root"), hash: Bytes::from_static(b"new") }, Ok(1)),
        (AuthCommand::UserAdd { name: text("mute"), hash: None }, Ok(1)),
        (AuthCommand::UserPassword { name: text("mute"), hash: Bytes::from_static(b"new") }, Ok(1)),
        (delete_user("nobody"), Err(UserNotFound)),
        (AuthCommand::RoleDelete { name: text("none") }, Err(RoleNotFound)),
        (AuthCommand::RoleDelete { name: text("root") }, Err(RoleNotFound)),
        (AuthCommand::Enable, Ok(0)),
        (AuthCommand::Enable, Ok(0)),
        (delete_user("root"), Err(InvalidManagement)),
        (revoke("root", "root"), Err(InvalidManagement)),
        (AuthCommand::RoleDelete { name: text("root") }, Err(InvalidManagement)),
        (AuthCommand::Authenticate { user: text("nobody"), prefix: text("x") }, Err(Failed)),
        (AuthCommand::Authenticate { user: text("mute"), prefix: text("x") }, Err(Failed)),
        (AuthCommand::Authenticate { user: text("root"), prefix: text("x") }, Ok(0)),
        (AuthCommand::Disable, Ok(1)),
        (AuthCommand::Disable, Ok(0)),
        (revoke("root", "root"), Ok(1)),
        (AuthCommand::RoleDelete { name: text("r") }, Ok(1)),
        (delete_user("root"), Ok(1)),
    ];
    let mut store = Store::default();
    for (command, expected) in table {
        let before = store.revision();
        let got = store.change(command.clone());
        assert_eq!(got.clone().map(|_| store.revision() - before), expected, "{command:?}");
        assert!(got.is_ok() || store.revision() == before, "{command:?} failed and changed something");
        verify(&store.view).unwrap();
    }
    assert_eq!(kontiki_mvcc::current(&store.view).unwrap().revision, Revision(1), "users are no keys");
    assert_eq!(auth::user(&store.view, "mute").unwrap().unwrap().hash, None, "who has no password is given none");
}

#[test]
fn whose_tokens_end_is_said_with_the_change() {
    let mut store = guarded();
    let out = |reply| match reply {
        Ok(AuthReply::Changed { out }) => out,
        other => panic!("{other:?}"),
    };
    let alice = Out::Users(vec![text("alice")]);
    let password = AuthCommand::UserPassword { name: text("alice"), hash: Bytes::from_static(b"new") };
    assert_eq!(out(store.change(password)), alice);
    assert_eq!(out(store.change(role_add("other"))), Out::Nobody);
    assert_eq!(out(store.change(AuthCommand::RoleDelete { name: text("some") })), alice, "everybody who had the role");
    assert!(auth::user(&store.view, "alice").unwrap().unwrap().roles.is_empty());
    assert_eq!(out(store.change(delete_user("alice"))), alice);
    let token = store.change(AuthCommand::Authenticate { user: text("root"), prefix: text("abc") }).unwrap();
    assert_eq!(token, AuthReply::Token { token: format!("abc.{}", store.index), user: text("root") });
    assert_eq!(out(store.change(AuthCommand::Disable)), Out::Everybody);
}

fn read(range: KeyRange) -> Op {
    Op::Range(RangeReq::new(range))
}

fn del(range: KeyRange, prev_kv: bool) -> DeleteReq {
    DeleteReq { range, prev_kv }
}

fn txn(txn: Txn) -> Command {
    Command::Txn { txn, fence: None }
}

#[test]
fn every_place_that_names_a_key_is_guarded() {
    use AuthError::PermissionDenied;
    let denied = Err(PermissionDenied);
    let compare = |key: &'static str| Compare { range: one(key), target: CompareTarget::Version(9), op: CompareOp::Equal };
    let with_prev = |key: &'static str| PutReq { prev_kv: true, ..put(key, "v") };
    let nested = |op: Op| then(vec![Op::Txn(then(vec![Op::Txn(Txn { failure: vec![op], ..Txn::default() })]))]);
    let table: Vec<(&str, Command, Result<(), AuthError>)> = vec![
        ("put", Command::Put(put("w1", "v")), Ok(())),
        ("put what can only be read", Command::Put(put("r1", "v")), denied),
        ("put elsewhere", Command::Put(put("z", "v")), denied),
        ("put and see what was there", Command::Put(with_prev("w1")), denied),
        ("put and see, with both", Command::Put(with_prev("b")), Ok(())),
        ("delete", Command::Delete(del(wire("w", "x"), false)), Ok(())),
        ("delete a little more", Command::Delete(del(wire("w", "x\0"), false)), denied),
        ("delete to the end", Command::Delete(del(wire("w", "\0"), false)), denied),
        ("delete and see", Command::Delete(del(one("w1"), true)), denied),
        ("delete and see, with both", Command::Delete(del(one("b"), true)), Ok(())),
        ("read in a transaction", txn(then(vec![read(wire("r", "s")), Op::Put(put("w1", "v"))])), Ok(())),
        ("read what can only be written", txn(then(vec![read(one("w1")), Op::Put(put("w1", "v"))])), denied),
        ("a condition", txn(Txn { compare: vec![compare("r1")], ..then(vec![Op::Put(put("w1", "v"))]) }), Ok(())),
        ("a condition on what can only be written", txn(Txn { compare: vec![compare("w1")], ..Txn::default() }), denied),
        (
            "the branch that will not run",
            txn(Txn { success: vec![Op::Put(put("z", "v"))], failure: vec![], compare: vec![compare("r1")] }),
            denied,
        ),
        ("the other branch", txn(Txn { failure: vec![Op::Delete(del(one("z"), false))], ..Txn::default() }), denied),
        ("put and see, in a transaction", txn(then(vec![Op::Put(with_prev("w1"))])), denied),
        ("delete and see, in a transaction", txn(then(vec![Op::Delete(del(one("w1"), true))])), denied),
        ("deep within, allowed", txn(nested(Op::Put(put("w1", "v")))), Ok(())),
        ("deep within, a put", txn(nested(Op::Put(put("z", "v")))), denied),
        ("deep within, a read", txn(nested(read(one("z")))), denied),
        ("deep within, a delete", txn(nested(Op::Delete(del(one("r1"), false)))), denied),
        ("compaction", Command::Compact { revision: Revision(0) }, denied),
        ("another user", Command::Auth(user_add("mallory")), denied),
        ("more rights", Command::Auth(grant("alice", "root")), denied),
        ("another's password", Command::Auth(AuthCommand::UserPassword { name: text("root"), hash: Bytes::new() }), denied),
        ("no auth", Command::Auth(AuthCommand::Disable), denied),
    ];
    for (what, command, expected) in table {
        let mut store = guarded();
        assert_eq!(store.may("alice", command.clone()), expected, "{what}");
        let is_admins = matches!(command, Command::Auth(_) | Command::Compact { .. });
        let vanished = if is_admins { AuthError::UserNotFound } else { PermissionDenied };
        let mut store = guarded();
        assert_eq!(store.may("ghost", command.clone()), Err(vanished), "{what}, by somebody who does not exist");
        assert_eq!(store.may("", command.clone()), Err(AuthError::UserEmpty), "{what}, by nobody");
        assert_eq!(store.may("root", command.clone()), Ok(()), "{what}, by root");
        let old = Who { user: text("alice"), revision: 3 };
        let mut store = guarded();
        let outcome = store.apply(&command.by(old)).reply;
        let stale = if is_admins { PermissionDenied } else { AuthError::OldRevision };
        assert_eq!(outcome, Err(KvError::Auth(stale)), "{what}, with permissions of long ago");
    }
}

#[test]
fn what_hangs_on_a_lease_is_guarded_with_it() {
    let mut store = guarded();
    let id = LeaseId(7);
    assert_eq!(store.may("", Command::LeaseGrant { id, ttl: 60 }), Err(AuthError::UserEmpty));
    assert_eq!(store.may("alice", Command::LeaseGrant { id, ttl: 60 }), Ok(()));
    assert_eq!(store.may("alice", Command::Put(put_leased("w1", 7))), Ok(()));
    assert_eq!(store.may("root", Command::Put(put_leased("z", 7))), Ok(()));
    // Now a key of root's hangs on it: alice would delete it with the lease, or by letting the lease run out.
    assert_eq!(store.may("alice", Command::Put(put_leased("w2", 7))), Err(AuthError::PermissionDenied));
    let nested = txn(then(vec![Op::Txn(then(vec![Op::Put(put_leased("w2", 7))]))]));
    assert_eq!(store.may("alice", nested), Err(AuthError::PermissionDenied));
    assert_eq!(store.may("alice", Command::LeaseRevoke { id }), Err(AuthError::PermissionDenied));
    let alice = Who { user: text("alice"), revision: store.revision() };
    let refused = Err(AuthError::PermissionDenied.into());
    assert_eq!(auth::may_write_lease(&store.view, &alice, id), refused);
    assert_eq!(auth::may_read_lease(&store.view, &alice, id), refused);
    assert_eq!(auth::may_write_lease(&store.view, &alice, LeaseId(99)), Ok(()), "nothing hangs on what is not there");
    assert_eq!(store.may("root", Command::LeaseRevoke { id }), Ok(()));
    assert!(store.get("z").is_none() && store.get("w1").is_none());
    // The cluster itself is asked by nobody.
    store.ok(Command::LeaseGrant { id, ttl: 60 });
    store.ok(Command::LeaseExpire { id, term: crate::util::TERM });
}

#[test]
fn nobody_is_asked_while_auth_is_disabled() {
    let mut store = Store::default();
    assert_eq!(store.may("", Command::Put(put("k", "v"))), Ok(()));
    assert_eq!(store.may("ghost", Command::Auth(user_add("root"))), Ok(()));
    assert_eq!(auth::may_read(&store.view, &Who::nobody(), &one("k")), Ok(()));
    assert_eq!(auth::must_be_admin(&store.view, &Who::nobody()), Ok(()));
}

/// Two members that carry out the same log have the same state, byte for byte; and that state is always one that makes sense.
#[test]
fn members_agree_whatever_is_asked() {
    let mut enabled = 0;
    for seed in 0..20 {
        let mut choices = Choices::Seed(seed);
        let (mut one, mut other) = (Store::default(), Store::default());
        for _ in 0..400 {
            let now = kontiki_mvcc::current(&one.view).unwrap().revision;
            let command = choices.any_command(now);
            let outcome = one.apply(&command);
            assert_eq!(outcome, other.apply(&Command::decode(command.encode()).unwrap()));
            enabled += u32::from(auth::facts(&one.view).unwrap().enabled);
        }
        verify(&one.view).unwrap();
        assert_eq!(one.view, other.view);
        let before = state_hash(&one.view).unwrap();
        other.change(AuthCommand::UserAdd { name: text("one more"), hash: None }).unwrap();
        assert_ne!(state_hash(&other.view).unwrap(), before, "users are part of the state");
    }
    assert!(enabled > 100, "auth was hardly ever enabled");
}
