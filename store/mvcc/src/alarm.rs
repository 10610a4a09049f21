//! Alarms: what the cluster has agreed to stop doing, and for whom.
//!
//! An alarm is raised and taken back through the log, so every member refuses the same commands at the same place in it: neither a
//! member's own disk nor its own clock ever decides what `apply` answers.
//!
//! | alarm | refused | allowed |
//! |---|---|---|
//! | no space, of any member | puts, transactions that contain one, grants of leases | everything else |
//! | corrupt, raised by hand | everything that touches keys or leases | alarms |
//! | corrupt, automatic | nothing here: the rest of the cluster agrees with itself, and the member serves nobody until it is rebuilt | everything |
//!
//! An automatic alarm is raised by a member for a reason that can pass, and that member takes it back when it has. One that was raised by
//! hand, or by the quota, stays until somebody disarms it, as in etcd.

use bytes::{BufMut, Bytes};
use kontiki_base::ids::MemberId;
use kontiki_base::kv::{KvError, Op, Txn};

use crate::command::Command;
use crate::keys;
use crate::state::ReadError;
use crate::view::{Space, View, ViewError};
use crate::write::Writer;

/// Why there is an alarm. The numbers are etcd's, and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum AlarmKind {
    /// The quota or the disk is used up.
    NoSpace = 1,
    /// Members hold different data.
    Corrupt = 2,
}

impl AlarmKind {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::NoSpace, Self::Corrupt];

    /// etcd's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        }
    }
}

/// An alarm of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// Why.
    pub kind: AlarmKind,
    /// Whose; zero if it was raised for nobody in particular.
    pub member: MemberId,
    /// The member takes it back by itself when the reason has passed.
    pub automatic: bool,
}

/// As etcd's `Maintenance.Status` lists it: protobuf's text form, with the space at its end.
impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.member != MemberId::ZERO {
            write!(f, "memberID:{} ", self.member.get())?;
        }
        write!(f, "alarm:{} ", self.kind.name())
    }
}

/// `Sys`: all alarms, by kind and member: kind, whether it is automatic, BE(member). Absent if there is none.
pub(crate) const SYS_ALARMS: &[u8] = b"alarms";

/// Bytes of an alarm in the record of all.
const LEN: usize = 10;

/// All alarms, by kind and member.
///
/// # Errors
/// The state cannot be read.
pub fn list(view: &dyn View) -> Result<Vec<Alarm>, ViewError> {
    let Some(bytes) = view.get(Space::Sys, SYS_ALARMS)? else { return Ok(Vec::new()) };
    let bad = || keys::bad(Space::Sys, "alarms");
    let (alarms, rest) = bytes.as_chunks::<LEN>();
    if !rest.is_empty() {
        return Err(bad());
    }
    let decode = |[kind, automatic, member @ ..]: &[u8; LEN]| {
        let kind = AlarmKind::ALL.iter().copied().find(|known| *known as u8 == *kind).ok_or_else(bad)?;
        Ok(Alarm { kind, automatic: *automatic != 0, member: MemberId(u64::from_be_bytes(*member)) })
    };
    alarms.iter().map(decode).collect()
}

/// Whether the alarms refuse everything that touches keys or leases.
pub fn corrupt(alarms: &[Alarm]) -> bool {
    alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt && !alarm.automatic)
}

/// What the alarms say to a command: `apply` asks, and a proposer may ask before it costs a log entry.
///
/// # Errors
/// [`KvError::NoSpace`], [`KvError::Corrupt`].
pub fn allows(alarms: &[Alarm], cmd: &Command) -> Result<(), KvError> {
    let cmd = cmd.inner();
    if alarms.is_empty() || matches!(cmd, Command::Alarm { .. }) {
        return Ok(());
    }
    if corrupt(alarms) {
        return Err(KvError::Corrupt(CORRUPT.to_owned()));
    }
    let full = alarms.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace);
    if full && needs_space(cmd) { Err(KvError::NoSpace) } else { Ok(()) }
}

/// What everybody is told while the cluster is known to be corrupt: etcd's text.
pub const CORRUPT: &str = "etcdserver: corrupt cluster";

/// Whether a command may make the store larger, as etcd sees it: its [`cost`] is not zero.
fn needs_space(cmd: &Command) -> bool {
    match cmd {
        Command::Put(_) | Command::LeaseGrant { .. } => true,
        Command::Txn { txn, .. } => has_put(txn),
        _ => false,
    }
}

fn has_put(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(inner) => has_put(inner),
        Op::Range(_) | Op::Delete(_) => false,
    })
}

/// Bytes beside key and value that a put is reckoned with (`kvOverhead` in etcd's `server/storage/quota.go`).
const PUT_OVERHEAD: u64 = 256;

/// Bytes that a lease is reckoned with (`leaseOverhead`, there).
const LEASE_COST: u64 = 64;

/// The bytes that a command may add to the store, as etcd reckons it for the quota. Zero always passes.
pub fn cost(cmd: &Command) -> u64 {
    match cmd.inner() {
        Command::Put(req) => put_cost(&req.key, &req.value),
        Command::Txn { txn, .. } => txn_cost(txn),
        Command::LeaseGrant { .. } => LEASE_COST,
        _ => 0,
    }
}

fn put_cost(key: &Bytes, value: &Bytes) -> u64 {
    PUT_OVERHEAD + key.len() as u64 + value.len() as u64
}

fn txn_cost(txn: &Txn) -> u64 {
    let branch = |ops: &[Op]| -> u64 {
        let each = ops.iter().map(|op| match op {
            Op::Put(req) => put_cost(&req.key, &req.value),
            Op::Txn(inner) => txn_cost(inner),
            Op::Range(_) | Op::Delete(_) => 0,
        });
        each.sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

/// Raises an alarm or takes it back; the alarm, if there is one now or was one. An automatic alarm never weakens one that was raised by
/// hand, and is never taken for it.
pub(crate) fn change(writer: &mut Writer<'_>, raise: bool, alarm: Alarm) -> Result<Option<Alarm>, ReadError> {
    let mut alarms = list(&writer.view())?;
    let found = alarms.iter().position(|known| (known.kind, known.member) == (alarm.kind, alarm.member));
    let answer = match (found, raise) {
        (Some(at), true) => {
            alarms[at].automatic &= alarm.automatic;
            Some(alarms[at])
        }
        (None, true) => {
            alarms.push(alarm);
            Some(alarm)
        }
        (Some(at), false) if alarms[at].automatic || !alarm.automatic => Some(alarms.remove(at)),
        (_, false) => None,
    };
    alarms.sort_unstable();
    let place = Bytes::from_static(SYS_ALARMS);
    if alarms.is_empty() {
        writer.unset(Space::Sys, place);
    } else {
        let mut bytes = Vec::with_capacity(LEN * alarms.len());
        for alarm in alarms {
            bytes.put_slice(&[alarm.kind as u8, u8::from(alarm.automatic)]);
            bytes.put_u64(alarm.member.get());
        }
        writer.set(Space::Sys, place, bytes.into());
    }
    Ok(answer)
}
