//! The queue that locks and elections stand in: keys under one prefix, each tied to its holder's lease, in order of their creation. It is
//! whoever's key is the oldest that has the turn. This is the protocol of etcd's Go package `concurrency`: clients of both kinds can
//! stand in one queue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::env::Task;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{
    Compare, CompareOp, CompareTarget, DeleteReq, EventKind, KeyValue, KvError, Op, OpRes, PutReq, RangeReq, SortOrder, SortTarget, Txn,
};
use kontiki_base::limits;

use crate::auth::Caller;
use crate::service::Service;
use crate::watch::{Out, Pace, WatchSpec};

/// What a holder that brings no lease is given, in seconds: etcd's default for sessions.
const SESSION_TTL: i64 = 60;

/// A place in a queue.
pub(super) struct Turn {
    service: Arc<Service>,
    caller: Caller,
    pub(super) key: Bytes,
    pub(super) revision: Revision,
    pub(super) lease: LeaseId,
    /// The key was there before: the same lease had taken the place already.
    pub(super) found: Option<KeyValue>,
    /// The store's revision when the place was taken.
    pub(super) taken_at: Revision,
    prefix: Bytes,
    keep_alive: Option<Task>,
    /// Given up unless somebody keeps it.
    kept: bool,
}

/// The prefix of a queue's keys.
pub(super) fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The oldest key of a queue: who has the turn.
pub(super) fn oldest(prefix: &Bytes) -> RangeReq {
    RangeReq { limit: 1, order: SortOrder::Ascend, target: SortTarget::Create, ..RangeReq::new(KeyRange::prefix(prefix.clone())) }
}

/// Holds if the key is the same one that was created then.
pub(super) fn still(key: &Bytes, created: Revision) -> Compare {
    Compare { range: KeyRange::single(key.clone()), target: CompareTarget::Create(created), op: CompareOp::Equal }
}

impl Turn {
    /// Takes a place, under a lease or a new one.
    pub(super) async fn take(service: &Arc<Service>, caller: Caller, name: &[u8], lease: LeaseId, value: Bytes) -> Result<Self, KvError> {
        let lease = match lease {
            LeaseId::ZERO => service.by(&caller).grant(LeaseId::ZERO, SESSION_TTL).await?.0,
            lease => lease,
        };
        // Also finds out that there is no such lease.
        let ttl = service.by(&caller).keep_alive(lease).await?.ok_or(KvError::LeaseNotFound)?;
        let prefix = prefix_of(name);
        let key: Bytes = [&prefix[..], format!("{:x}", lease.get()).as_bytes()].concat().into();
        let mine = RangeReq::new(KeyRange::single(key.clone()));
        let txn = Txn {
            compare: vec![still(&key, Revision::ZERO)],
            success: vec![Op::Put(PutReq { key: key.clone(), value, lease, ..PutReq::default() })],
            failure: vec![Op::Range(mine)],
        };
        let res = service.by(&caller).txn(txn, limits::TXN_OPS).await?;
        let found = match res.responses.into_iter().next() {
            Some(OpRes::Range(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let revision = found.as_ref().map_or(res.revision, |kv| kv.create_revision);
        let keep_alive = Some(keep_alive(service, lease, ttl));
        let service = Arc::clone(service);
        Ok(Self { service, caller, key, revision, lease, found, taken_at: res.revision, prefix, keep_alive, kept: false })
    }

    /// Waits until everybody who came before has gone. Answers with the store's revision then; `None` if the place was lost meanwhile.
    pub(super) async fn wait(&self) -> Result<Option<Revision>, KvError> {
        let before = Revision::new(self.revision.get() - 1);
        loop {
            let last = RangeReq {
                limit: 1,
                order: SortOrder::Descend,
                target: SortTarget::Create,
                max_create: before,
                ..RangeReq::new(KeyRange::prefix(self.prefix.clone()))
            };
            let res = self.service.by(&self.caller).range(last).await?;
            match res.kvs.into_iter().next() {
                None => return self.check().await,
                Some(kv) => self.wait_for_deletion(kv.key, res.revision).await?,
            }
        }
    }

    /// The place may have been lost while waiting: with the lease, or because somebody deleted the key.
    async fn check(&self) -> Result<Option<Revision>, KvError> {
        let mine = self.service.by(&self.caller).range(RangeReq::new(KeyRange::single(self.key.clone()))).await?;
        match mine.kvs.first() {
            Some(kv) if kv.create_revision == self.revision => Ok(Some(mine.revision)),
            _ => Ok(None),
        }
    }

    async fn wait_for_deletion(&self, key: Bytes, seen: Revision) -> Result<(), KvError> {
        let mut session = self.service.watch(Pace::Every(Duration::from_secs(3600)));
        session.create(WatchSpec {
            id: None,
            range: KeyRange::single(key),
            from: seen.next(),
            prev_kv: false,
            no_put: true,
            no_delete: false,
            progress: false,
            fragment: false,
        });
        loop {
            match session.next().await? {
                Some(Out::Events { events, .. }) if events.iter().any(|event| event.kind == EventKind::Delete) => return Ok(()),
                // History has been compacted from under the watch: look again.
                Some(Out::Canceled { .. }) => return Ok(()),
                Some(_) => {}
                None => return Err(KvError::Stopped),
            }
        }
    }

    /// Keeps the place beyond the call; from now on its lease must be kept alive by its client.
    pub(super) fn keep(mut self) -> (Bytes, Revision, LeaseId) {
        self.kept = true;
        (self.key.clone(), self.revision, self.lease)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(task) = self.keep_alive.take() {
            task.abort();
        }
        if self.kept {
            return;
        }
        // The client has gone, or the wait has failed: nobody shall wait for this place.
        let service = Arc::clone(&self.service);
        let txn = Txn {
            compare: vec![still(&self.key, self.revision)],
            success: vec![Op::Delete(DeleteReq { range: KeyRange::single(self.key.clone()), prev_kv: false })],
            failure: Vec::new(),
        };
        self.service.env.spawn(
            "lock.give_up",
            Box::pin(async move {
                if let Err(error) = service.txn(txn, None, limits::TXN_OPS).await {
                    tracing::warn!(%error, "a place in a queue could not be given up; it goes with its lease");
                }
            }),
        );
    }
}

/// Keeps the lease alive while its holder waits.
fn keep_alive(service: &Arc<Service>, lease: LeaseId, ttl: i64) -> Task {
    let pause = Duration::from_secs(u64::try_from(ttl).unwrap_or(1)) / 3;
    let held = Arc::clone(service);
    service.env.spawn(
        "lock.keep_alive",
        Box::pin(async move {
            loop {
                held.env.sleep(pause).await;
                match held.leases.keep_alive(lease).await {
                    Ok(Some(_)) => {}
                    // Gone: whoever waits finds out when it has its turn.
                    Ok(None) => return,
                    Err(error) => tracing::debug!(%error, lease = lease.get(), "keep-alive of a waiting holder failed"),
                }
            }
        }),
    )
}
