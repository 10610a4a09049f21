//! Random commands and reads, made from a sequence of choices. The choices come from a seed, for long runs, or from a tape of numbers that
//! proptest makes and shrinks: zeros are the simplest commands, and a shorter tape is a shorter run.

use bytes::Bytes;
use kontiki_base::ids::{LeaseId, MemberId, Revision, Term};
use kontiki_base::key::{KeyRange, RangeEnd};
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, Consistency, DeleteReq, Op, PutReq, RangeReq, SortOrder, SortTarget, Txn};
use kontiki_mvcc::auth::{Access, AuthCommand, Permission, Who};
use kontiki_mvcc::{Alarm, AlarmKind, Command};

use crate::util::TERM;

/// Where choices come from.
pub(crate) enum Choices {
    /// Endless, from a seed (SplitMix64).
    Seed(u64),
    /// These, then zeros.
    Tape(std::vec::IntoIter<u32>),
}

/// Keys whose order and encoding are easy to get wrong.
const KEYS: &[&[u8]] =
    &[b"a", b"a\0", b"a\0b", b"a\0\xff", b"a\x01", b"ab", b"\0", b"\0\0", b"b", b"b\xff", b"b\xff\xff", b"c", b"\xff", b"\xff\xff"];

impl Choices {
    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        match self {
            Self::Seed(seed) => {
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *seed;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) % u64::from(n)) as u32
            }
            Self::Tape(tape) => tape.next().unwrap_or(0) % n,
        }
    }

    pub(crate) fn exhausted(&self) -> bool {
        matches!(self, Self::Tape(tape) if tape.as_slice().is_empty())
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == n - 1
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u32) as usize].clone()
    }

    pub(crate) fn key(&mut self) -> Bytes {
        if self.one_in(200) { Bytes::new() } else { Bytes::from_static(self.pick(KEYS)) }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(self.pick(&[b"".as_slice(), b"x", b"y", b"a longer value", b"\0\xff"]))
    }

    pub(crate) fn lease(&mut self) -> LeaseId {
        LeaseId(self.pick(&[1, 2, -3, i64::MAX]))
    }

    fn lease_or_none(&mut self) -> LeaseId {
        if self.one_in(3) { self.lease() } else { LeaseId::ZERO }
    }

    pub(crate) fn range(&mut self) -> KeyRange {
        let start = self.key();
        let end = match self.below(4) {
            0 => RangeEnd::Single,
            1 | 2 => RangeEnd::Before(self.key()),
            _ => RangeEnd::Unbounded,
        };
        KeyRange { start, end }
    }

    /// A revision near `now`, now and then far away.
    pub(crate) fn revision(&mut self, now: Revision) -> Revision {
        match self.below(16) {
            0..4 => Revision::ZERO,
            4..12 => Revision(now.get() - i64::from(self.below(12))),
            12 | 13 => Revision(now.get() - i64::from(self.below(300))),
            14 => Revision(now.get() + i64::from(self.below(3))),
            _ => Revision(-i64::from(self.below(3))),
        }
    }

    fn bound(&mut self, now: Revision) -> Revision {
        if self.one_in(6) { self.revision(now) } else { Revision::ZERO }
    }

    pub(crate) fn range_req(&mut self, now: Revision) -> RangeReq {
        RangeReq {
            range: self.range(),
            at: self.revision(now),
            limit: self.pick(&[0, 0, 1, 2, 5]),
            order: self.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]),
            target: self.pick(&[
                SortTarget::Key,
                SortTarget::Key,
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Value,
            ]),
            consistency: self.pick(&[Consistency::Linearizable, Consistency::Serializable]),
            keys_only: self.one_in(4),
            count_only: self.one_in(6),
            min_mod: self.bound(now),
            max_mod: self.bound(now),
            min_create: self.bound(now),
            max_create: self.bound(now),
        }
    }

    fn put(&mut self) -> PutReq {
        let ignore_value = self.one_in(10);
        let ignore_lease = self.one_in(10);
        let value = if ignore_value && !self.one_in(10) { Bytes::new() } else { self.value() };
        let lease = if ignore_lease && !self.one_in(10) { LeaseId::ZERO } else { self.lease_or_none() };
        PutReq { key: self.key(), value, lease, prev_kv: self.one_in(3), ignore_value, ignore_lease }
    }

    fn delete(&mut self) -> DeleteReq {
        DeleteReq { range: self.range(), prev_kv: self.one_in(2) }
    }

    fn compare(&mut self, now: Revision) -> Compare {
        let range = if self.one_in(4) { self.range() } else { KeyRange::single(self.key()) };
        let target = match self.below(5) {
            0 => CompareTarget::Version(i64::from(self.below(3))),
            1 => CompareTarget::Create(self.revision(now)),
            2 => CompareTarget::Mod(self.revision(now)),
            3 => CompareTarget::Value(self.value()),
            _ => CompareTarget::Lease(self.lease_or_none()),
        };
        let op = self.pick(&[CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual]);
        Compare { range, target, op }
    }

    fn op(&mut self, now: Revision, depth: u32) -> Op {
        match self.below(if depth > 0 { 8 } else { 7 }) {
            0..3 => Op::Put(self.put()),
            3 | 4 => Op::Delete(self.delete()),
            5 | 6 => {
                // A revision that cannot be read fails the whole transaction: rarely.
                let at = if self.one_in(8) { self.revision(now) } else { Revision::ZERO };
                Op::Range(RangeReq { at, ..self.range_req(now) })
            }
            _ => Op::Txn(self.txn(now, depth - 1)),
        }
    }

    fn txn(&mut self, now: Revision, depth: u32) -> Txn {
        let list = |n: u32, choices: &mut Self| (0..choices.below(n)).map(|_| ()).collect::<Vec<_>>();
        Txn {
            compare: list(3, self).iter().map(|()| self.compare(now)).collect(),
            success: list(5, self).iter().map(|()| self.op(now, depth)).collect(),
            failure: list(4, self).iter().map(|()| self.op(now, depth)).collect(),
        }
    }

    pub(crate) fn command(&mut self, now: Revision) -> Command {
        match self.below(33) {
            0..12 => Command::Put(self.put()),
            12..16 => Command::Delete(DeleteReq {
                range: if self.one_in(3) { self.range() } else { KeyRange::single(self.key()) },
                prev_kv: self.one_in(2),
            }),
            16..26 => {
                let fence = self.one_in(12).then(|| Term(TERM.get() + u64::from(self.one_in(2))));
                Command::Txn { txn: self.txn(now, 3), fence }
            }
            26 | 27 => Command::LeaseGrant { id: self.lease_or_zero(), ttl: self.pick(&[60, 1, 0, 9_000_000_001]) },
            28 => Command::LeaseRevoke { id: self.lease() },
            29 => Command::LeaseExpire { id: self.lease(), term: Term(TERM.get() + u64::from(self.one_in(6))) },
            30 => Command::Compact { revision: self.revision(now) },
            32 => {
                // Rarely raised, often taken back: most of a run is free of them.
                let raise = self.one_in(60);
                let (kind, member) = (self.pick(AlarmKind::ALL), MemberId(u64::from(self.below(2))));
                let automatic = self.one_in(if raise { 2 } else { 6 });
                Command::Alarm { raise, alarm: Alarm { kind, member, automatic } }
            }
            _ => Command::Compact { revision: Revision(now.get() - i64::from(self.below(40))) },
        }
    }

    fn name(&mut self) -> String {
        self.pick(&["root", "alice", "bob", "", "n\u{e4}me"]).to_owned()
    }

    fn permission(&mut self) -> Permission {
        Permission { access: self.pick(&[Access::Read, Access::Write, Access::ReadWrite]), range: self.range() }
    }

    fn hash(&mut self) -> Bytes {
        Bytes::from_static(self.pick(&[b"".as_slice(), b"$2b$04$abc", b"\0\xff"]))
    }

    /// A change of users and roles.
    pub(crate) fn auth_command(&mut self) -> AuthCommand {
        match self.below(14) {
            0 => AuthCommand::Enable,
            1 => AuthCommand::Disable,
            2 => AuthCommand::Authenticate { user: self.name(), prefix: self.name() },
            3 => AuthCommand::UserAdd { name: self.name(), hash: None },
            4 => AuthCommand::UserAdd { name: self.name(), hash: Some(self.hash()) },
            5 => AuthCommand::UserDelete { name: self.name() },
            6 => AuthCommand::UserPassword { name: self.name(), hash: self.hash() },
            7 | 8 => AuthCommand::UserGrant { name: self.name(), role: self.name() },
            9 => AuthCommand::UserRevoke { name: self.name(), role: self.name() },
            10 => AuthCommand::RoleAdd { name: self.name() },
            11 => AuthCommand::RoleDelete { name: self.name() },
            12 => AuthCommand::RoleGrant { name: self.name(), permission: self.permission() },
            _ => AuthCommand::RoleRevoke { name: self.name(), range: self.range() },
        }
    }

    /// A command of any kind, asked for by anybody.
    pub(crate) fn any_command(&mut self, now: Revision) -> Command {
        let command = if self.one_in(3) { Command::Auth(self.auth_command()) } else { self.command(now) };
        if self.one_in(3) { command.by(Who { user: self.name(), revision: self.below(9).into() }) } else { command }
    }

    fn lease_or_zero(&mut self) -> LeaseId {
        if self.one_in(20) { LeaseId::ZERO } else { self.lease() }
    }
}
