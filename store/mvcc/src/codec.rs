//! Commands as bytes: in the log and between members.
//!
//! A version byte, then the command: a tag, integers as LEB128 (signed ones zigzagged), bytes with their length before them, flags in
//! one byte. A batch is a version byte, a count, and commands without version bytes. Decoding shares the memory of its input, copies
//! nothing, and is total: anything that `encode` did not write is an error.

use bytes::{BufMut, Bytes};
use kontiki_base::ids::{LeaseId, MemberId, Revision, Term};
use kontiki_base::key::{KeyRange, RangeEnd};
use kontiki_base::kv::{Compare, CompareOp, CompareTarget, Consistency, DeleteReq, Op, PutReq, RangeReq, SortOrder, SortTarget, Txn};

use crate::alarm::{Alarm, AlarmKind};
use crate::auth::codec::{put_auth, put_who};
use crate::command::Command;
use crate::validate::MAX_TXN_DEPTH;

/// The version of the format, on disk: never reused.
const FORMAT: u8 = 1;

/// Bytes that are no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("command ends too early")]
    Truncated,
    /// They go on after the end.
    #[error("{0} bytes after the end of a command")]
    Trailing(usize),
    /// They were written by another version of this code.
    #[error("command format {0} is not known")]
    Format(u8),
    /// A tag or a set of flags that does not exist.
    #[error("no {what} has tag {tag}")]
    Tag {
        /// Of what.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// A number that does not fit, or is written longer than it must be.
    #[error("malformed number in command")]
    Number,
    /// A name that is no text.
    #[error("a name in a command is not UTF-8")]
    Text,
    /// Transactions nested too deeply.
    #[error("transactions are nested deeper than {MAX_TXN_DEPTH}")]
    TooDeep,
}

impl Command {
    /// The command as bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(1 + size_hint(self));
        out.put_u8(FORMAT);
        put_command(&mut out, self);
        out.into()
    }

    /// The command in `bytes`, sharing their memory.
    ///
    /// # Errors
    /// [`DecodeError`] if `bytes` are not exactly what [`Command::encode`] writes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut input = Input { all: bytes, at: 0 };
        input.format()?;
        let command = input.command()?;
        input.end()?;
        Ok(command)
    }

    /// Commands that share one log entry, as bytes.
    pub fn encode_batch(commands: &[Self]) -> Bytes {
        let mut out = Vec::with_capacity(6 + commands.iter().map(size_hint).sum::<usize>());
        out.put_u8(FORMAT);
        put_u64(&mut out, commands.len() as u64);
        commands.iter().for_each(|command| put_command(&mut out, command));
        out.into()
    }

    /// The commands in `bytes`, sharing their memory.
    ///
    /// # Errors
    /// [`DecodeError`] if `bytes` are not exactly what [`Command::encode_batch`] writes.
    pub fn decode_batch(bytes: Bytes) -> Result<Vec<Self>, DecodeError> {
        let mut input = Input { all: bytes, at: 0 };
        input.format()?;
        let commands = input.list(Input::command)?;
        input.end()?;
        Ok(commands)
    }
}

// Tags. They are on disk: never reused.
const PUT: u8 = 1;
const DELETE: u8 = 2;
const TXN: u8 = 3;
const FENCED_TXN: u8 = 4;
const LEASE_GRANT: u8 = 5;
const LEASE_REVOKE: u8 = 6;
const COMPACT: u8 = 7;
const LEASE_EXPIRE: u8 = 8;
const ALARM: u8 = 9;
const AUTH: u8 = 32;
const AS: u8 = 33;
const RANGE: u8 = 8;

const END_SINGLE: u8 = 0;
const END_BEFORE: u8 = 1;
const END_UNBOUNDED: u8 = 2;

/// Enough for the usual command: what is longer makes the buffer grow once.
fn size_hint(command: &Command) -> usize {
    match command {
        Command::Put(req) => 24 + req.key.len() + req.value.len(),
        Command::Txn { txn, .. } => 64 + txn.success.iter().chain(&txn.failure).map(op_hint).sum::<usize>() + 64 * txn.compare.len(),
        Command::As { who, command } => 12 + who.user.len() + size_hint(command),
        _ => 64,
    }
}

fn op_hint(op: &Op) -> usize {
    match op {
        Op::Put(req) => 24 + req.key.len() + req.value.len(),
        _ => 96,
    }
}

fn put_command(out: &mut Vec<u8>, command: &Command) {
    match command {
        Command::Put(req) => {
            out.put_u8(PUT);
            put_put(out, req);
        }
        Command::Delete(req) => {
            out.put_u8(DELETE);
            put_delete(out, req);
        }
        Command::Txn { txn, fence: None } => {
            out.put_u8(TXN);
            put_txn(out, txn);
        }
        Command::Txn { txn, fence: Some(term) } => {
            out.put_u8(FENCED_TXN);
            put_u64(out, term.get());
            put_txn(out, txn);
        }
        Command::LeaseGrant { id, ttl } => {
            out.put_u8(LEASE_GRANT);
            put_i64(out, id.get());
            put_i64(out, *ttl);
        }
        Command::LeaseRevoke { id } => {
            out.put_u8(LEASE_REVOKE);
            put_i64(out, id.get());
        }
        Command::LeaseExpire { id, term } => {
            out.put_u8(LEASE_EXPIRE);
            put_i64(out, id.get());
            put_u64(out, term.get());
        }
        Command::Compact { revision } => {
            out.put_u8(COMPACT);
            put_i64(out, revision.get());
        }
        Command::Alarm { raise, alarm } => {
            out.put_u8(ALARM);
            out.put_u8(flags([*raise, alarm.automatic, false]));
            out.put_u8(index(AlarmKind::ALL, alarm.kind));
            put_u64(out, alarm.member.get());
        }
        Command::Auth(command) => {
            out.put_u8(AUTH);
            put_auth(out, command);
        }
        Command::As { who, command } => {
            out.put_u8(AS);
            put_who(out, who);
            put_command(out, command);
        }
    }
}

fn put_put(out: &mut Vec<u8>, req: &PutReq) {
    out.put_u8(flags([req.prev_kv, req.ignore_value, req.ignore_lease]));
    put_i64(out, req.lease.get());
    put_bytes(out, &req.key);
    put_bytes(out, &req.value);
}

fn put_delete(out: &mut Vec<u8>, req: &DeleteReq) {
    out.put_u8(flags([req.prev_kv, false, false]));
    put_range(out, &req.range);
}

fn put_txn(out: &mut Vec<u8>, txn: &Txn) {
    put_u64(out, txn.compare.len() as u64);
    txn.compare.iter().for_each(|compare| put_compare(out, compare));
    for ops in [&txn.success, &txn.failure] {
        put_u64(out, ops.len() as u64);
        ops.iter().for_each(|op| put_op(out, op));
    }
}

fn put_op(out: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Range(req) => {
            out.put_u8(RANGE);
            put_range_req(out, req);
        }
        Op::Put(req) => {
            out.put_u8(PUT);
            put_put(out, req);
        }
        Op::Delete(req) => {
            out.put_u8(DELETE);
            put_delete(out, req);
        }
        Op::Txn(txn) => {
            out.put_u8(TXN);
            put_txn(out, txn);
        }
    }
}

fn put_range_req(out: &mut Vec<u8>, req: &RangeReq) {
    put_range(out, &req.range);
    out.put_u8(flags([req.keys_only, req.count_only, req.consistency == Consistency::Serializable]));
    out.put_u8(index(ORDERS, req.order));
    out.put_u8(index(TARGETS, req.target));
    put_u64(out, req.limit as u64);
    for revision in [req.at, req.min_mod, req.max_mod, req.min_create, req.max_create] {
        put_i64(out, revision.get());
    }
}

fn put_compare(out: &mut Vec<u8>, compare: &Compare) {
    put_range(out, &compare.range);
    out.put_u8(index(COMPARE_OPS, compare.op));
    let (tag, number) = match &compare.target {
        CompareTarget::Version(version) => (0, *version),
        CompareTarget::Create(revision) => (1, revision.get()),
        CompareTarget::Mod(revision) => (2, revision.get()),
        CompareTarget::Lease(lease) => (4, lease.get()),
        CompareTarget::Value(value) => {
            out.put_u8(3);
            return put_bytes(out, value);
        }
    };
    out.put_u8(tag);
    put_i64(out, number);
}

pub(crate) fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    match &range.end {
        RangeEnd::Single => out.put_u8(END_SINGLE),
        RangeEnd::Unbounded => out.put_u8(END_UNBOUNDED),
        RangeEnd::Before(end) => {
            out.put_u8(END_BEFORE);
            put_bytes(out, end);
        }
    }
    put_bytes(out, &range.start);
}

const ORDERS: &[SortOrder] = &[SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
const TARGETS: &[SortTarget] = &[SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
const COMPARE_OPS: &[CompareOp] = &[CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];

/// The tag of a value: its place in the list of all.
pub(crate) fn index<T: PartialEq>(all: &[T], value: T) -> u8 {
    let at = all.iter().position(|one| *one == value).expect("the list has every variant");
    u8::try_from(at).expect("the lists are short")
}

fn flags(set: [bool; 3]) -> u8 {
    u8::from(set[0]) | u8::from(set[1]) << 1 | u8::from(set[2]) << 2
}

pub(crate) fn put_u64(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.put_u8(number.to_le_bytes()[0]);
}

fn put_i64(out: &mut Vec<u8>, number: i64) {
    put_u64(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Bytes that are being decoded.
pub(crate) struct Input {
    all: Bytes,
    /// How many of them are decoded.
    at: usize,
}

impl Input {
    fn left(&self) -> &[u8] {
        &self.all[self.at..]
    }

    fn format(&mut self) -> Result<(), DecodeError> {
        match self.u8()? {
            FORMAT => Ok(()),
            other => Err(DecodeError::Format(other)),
        }
    }

    fn end(self) -> Result<(), DecodeError> {
        if self.left().is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.left().len())) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.left().first().ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for at in 0..10 {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit; a last byte of zero says nothing.
            if at == 9 && bits > 1 || at > 0 && byte == 0 {
                return Err(DecodeError::Number);
            }
            number |= bits << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::Number)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        let number = self.u64()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn len(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.u64()?).map_err(|_| DecodeError::Number)
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.len()?;
        if len > self.left().len() {
            return Err(DecodeError::Truncated);
        }
        let bytes = self.all.slice(self.at..self.at + len);
        self.at += len;
        Ok(bytes)
    }

    fn flags(&mut self, known: u8) -> Result<[bool; 3], DecodeError> {
        let flags = self.u8()?;
        if flags & !known != 0 {
            return Err(DecodeError::Tag { what: "flags", tag: flags });
        }
        Ok([flags & 1 != 0, flags & 2 != 0, flags & 4 != 0])
    }

    pub(crate) fn one_of<T: Copy>(&mut self, what: &'static str, all: &[T]) -> Result<T, DecodeError> {
        let tag = self.u8()?;
        all.get(usize::from(tag)).copied().ok_or(DecodeError::Tag { what, tag })
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
        let count = self.len()?;
        // An item has at least one byte; the count is not trusted with memory beyond a few.
        if count > self.left().len() {
            return Err(DecodeError::Truncated);
        }
        let mut items = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn command(&mut self) -> Result<Command, DecodeError> {
        Ok(match self.u8()? {
            PUT => Command::Put(self.put()?),
            DELETE => Command::Delete(self.delete()?),
            TXN => Command::Txn { txn: self.txn(MAX_TXN_DEPTH)?, fence: None },
            FENCED_TXN => {
                let fence = Some(Term(self.u64()?));
                Command::Txn { txn: self.txn(MAX_TXN_DEPTH)?, fence }
            }
            LEASE_GRANT => Command::LeaseGrant { id: LeaseId(self.i64()?), ttl: self.i64()? },
            LEASE_REVOKE => Command::LeaseRevoke { id: LeaseId(self.i64()?) },
            LEASE_EXPIRE => Command::LeaseExpire { id: LeaseId(self.i64()?), term: Term(self.u64()?) },
            COMPACT => Command::Compact { revision: Revision(self.i64()?) },
            ALARM => {
                let [raise, automatic, _] = self.flags(0b11)?;
                let kind = self.one_of("alarm", AlarmKind::ALL)?;
                Command::Alarm { raise, alarm: Alarm { kind, automatic, member: MemberId(self.u64()?) } }
            }
            AUTH => Command::Auth(self.auth()?),
            AS => {
                let who = self.who()?;
                // Once: nobody asks for what somebody else asks for.
                match self.left().first() {
                    Some(&AS) => return Err(DecodeError::Tag { what: "command", tag: AS }),
                    _ => Command::As { who, command: Box::new(self.command()?) },
                }
            }
            tag => return Err(DecodeError::Tag { what: "command", tag }),
        })
    }

    fn put(&mut self) -> Result<PutReq, DecodeError> {
        let [prev_kv, ignore_value, ignore_lease] = self.flags(0b111)?;
        let lease = LeaseId(self.i64()?);
        Ok(PutReq { key: self.bytes()?, value: self.bytes()?, lease, prev_kv, ignore_value, ignore_lease })
    }

    fn delete(&mut self) -> Result<DeleteReq, DecodeError> {
        let [prev_kv, ..] = self.flags(0b1)?;
        Ok(DeleteReq { range: self.range()?, prev_kv })
    }

    fn txn(&mut self, depth: usize) -> Result<Txn, DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        Ok(Txn {
            compare: self.list(Self::compare)?,
            success: self.list(|input| input.op(depth))?,
            failure: self.list(|input| input.op(depth))?,
        })
    }

    fn op(&mut self, depth: usize) -> Result<Op, DecodeError> {
        Ok(match self.u8()? {
            RANGE => Op::Range(self.range_req()?),
            PUT => Op::Put(self.put()?),
            DELETE => Op::Delete(self.delete()?),
            TXN => Op::Txn(self.txn(depth)?),
            tag => return Err(DecodeError::Tag { what: "step", tag }),
        })
    }

    fn range_req(&mut self) -> Result<RangeReq, DecodeError> {
        let range = self.range()?;
        let [keys_only, count_only, serializable] = self.flags(0b111)?;
        Ok(RangeReq {
            range,
            keys_only,
            count_only,
            consistency: if serializable { Consistency::Serializable } else { Consistency::Linearizable },
            order: self.one_of("order", ORDERS)?,
            target: self.one_of("sort target", TARGETS)?,
            limit: self.len()?,
            at: Revision(self.i64()?),
            min_mod: Revision(self.i64()?),
            max_mod: Revision(self.i64()?),
            min_create: Revision(self.i64()?),
            max_create: Revision(self.i64()?),
        })
    }

    fn compare(&mut self) -> Result<Compare, DecodeError> {
        let range = self.range()?;
        let op = self.one_of("comparison", COMPARE_OPS)?;
        let target = match self.u8()? {
            0 => CompareTarget::Version(self.i64()?),
            1 => CompareTarget::Create(Revision(self.i64()?)),
            2 => CompareTarget::Mod(Revision(self.i64()?)),
            3 => CompareTarget::Value(self.bytes()?),
            4 => CompareTarget::Lease(LeaseId(self.i64()?)),
            tag => return Err(DecodeError::Tag { what: "compare target", tag }),
        };
        Ok(Compare { range, target, op })
    }

    pub(crate) fn range(&mut self) -> Result<KeyRange, DecodeError> {
        let end = match self.u8()? {
            END_SINGLE => RangeEnd::Single,
            END_BEFORE => RangeEnd::Before(self.bytes()?),
            END_UNBOUNDED => RangeEnd::Unbounded,
            tag => return Err(DecodeError::Tag { what: "range end", tag }),
        };
        Ok(KeyRange { start: self.bytes()?, end })
    }
}
