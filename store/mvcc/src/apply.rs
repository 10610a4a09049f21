//! The state machine: a state and a command give changes and an outcome, the same on every member.
//!
//! Revisions: an empty store is at 1. A command that changes at least one key makes exactly one revision, however many keys it changes;
//! the changes are ordered within it by their sub-revision. A command that changes no key, or fails, makes none. A command that fails
//! leaves nothing in the batch.
//!
//! Events carry no `prev`: to have it, every put would read the value that it replaces, which costs more than the rest of it.
//! Who delivers to a watcher that wants it asks [`previous`](crate::history::previous), by revision; history has it.

use kontiki_base::ids::LogPos;
use kontiki_base::kv::KvError;
use kontiki_base::mutant;

use crate::alarm;
use crate::auth;
use crate::command::{Command, Outcome, Reply};
use crate::lease;
use crate::ops;
use crate::state::{self, ReadError};
use crate::txn;
use crate::validate;
use crate::view::{Batch, Overlay, View, ViewError};
use crate::write::Writer;

/// Carries out one command on the state `view` with `out` on top, and adds its changes to `out`.
///
/// # Errors
/// The state could not be read. What is in `out` then is of no use to anybody: the member stops. Everything else that can go wrong is
/// in the [`Outcome`].
pub fn apply(view: &dyn View, at: LogPos, cmd: &Command, out: &mut Batch) -> Result<Outcome, ViewError> {
    let begin = state::current(&Overlay { base: view, batch: out })?;
    let mut writer = Writer::new(view, out, begin);
    let reply = match run(&mut writer, at, cmd) {
        Ok(reply) => Ok(reply),
        Err(ReadError::Kv(error)) => Err(error),
        Err(ReadError::View(error)) => return Err(error),
    };
    let (revision, events) = writer.finish();
    Ok(Outcome { reply, events, revision })
}

fn run(writer: &mut Writer<'_>, at: LogPos, cmd: &Command) -> Result<Reply, ReadError> {
    let (who, cmd) = match cmd {
        Command::As { who, command } => (Some(who), command.as_ref()),
        cmd => (None, cmd),
    };
    match cmd {
        Command::Txn { fence: Some(given), .. } if *given != at.term => {
            return Err(KvError::Fenced { given: *given, current: at.term }.into());
        }
        Command::LeaseExpire { term, .. } if mutant!("M23", *term != at.term, false) => {
            return Err(KvError::Fenced { given: *term, current: at.term }.into());
        }
        _ => validate::well_formed(cmd)?,
    }
    // What makes no sense has been refused as such, whoever asks for it.
    if let Some(who) = who {
        auth::may_run(&writer.view(), who, cmd)?;
    }
    alarm::allows(&alarm::list(&writer.view())?, cmd)?;
    Ok(match cmd {
        Command::Put(req) => Reply::Put(ops::put(writer, req)?),
        Command::Delete(req) => Reply::Delete(ops::delete(writer, req)?),
        Command::Txn { txn, .. } => Reply::Txn(txn::run(writer, txn)?),
        Command::LeaseGrant { id, ttl } => Reply::LeaseGrant { id: *id, ttl: lease::grant(writer, *id, *ttl)? },
        Command::LeaseRevoke { id } | Command::LeaseExpire { id, .. } => {
            lease::revoke(writer, *id)?;
            Reply::LeaseRevoke
        }
        Command::Compact { revision } => {
            ops::compact(writer, *revision)?;
            Reply::Compact
        }
        Command::Alarm { raise, alarm } => Reply::Alarm(alarm::change(writer, *raise, *alarm)?),
        Command::Auth(command) => Reply::Auth(auth::change::run(writer, at, command)?),
        Command::As { .. } => return Err(KvError::Internal("a command was asked for twice".to_owned()).into()),
    })
}
