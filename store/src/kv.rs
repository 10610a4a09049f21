//! The store in process, as the API server sees it: [`Kv`] without a wire.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::BoxFuture;
use kontiki_base::ids::{Revision, Term};
use kontiki_base::kv::{Event, Kv, KvError, KvStatus, RangeReq, RangeRes, Txn, TxnRes, WatchMsg, WatchReq, WatchStream};

use crate::raft::{RaftStatus, Role};
use crate::service::Service;
use crate::watch::{Canceled, Out, Pace, Session, WatchSpec};

/// A watch in process hears this long after the store has moved on that nothing in it concerned the watch.
const PROGRESS_AFTER: Duration = Duration::from_millis(100);

/// The local member as a [`Kv`].
#[derive(Clone)]
pub struct LocalStoreKv {
    service: Arc<Service>,
}

impl LocalStoreKv {
    /// A [`Kv`] over a member.
    pub const fn new(service: Arc<Service>) -> Self {
        Self { service }
    }
}

fn status_of(raft: &RaftStatus, revision: Revision) -> KvStatus {
    KvStatus { term: raft.term, is_leader: raft.role == Role::Leader, has_leader: raft.leader.is_some(), revision }
}

impl Kv for LocalStoreKv {
    fn range(&self, req: RangeReq) -> BoxFuture<'_, Result<RangeRes, KvError>> {
        Box::pin(self.service.range(req))
    }

    fn txn(&self, txn: Txn, fence: Option<Term>) -> BoxFuture<'_, Result<TxnRes, KvError>> {
        // The bound on steps is the caller's own: see `limits::TRANSACT_OBJECTS`.
        Box::pin(self.service.txn(txn, fence, usize::MAX))
    }

    fn watch(&self, req: WatchReq) -> BoxFuture<'_, Result<Box<dyn WatchStream>, KvError>> {
        let mut session = self.service.watch(Pace::Behind(PROGRESS_AFTER));
        session.create(WatchSpec {
            id: None,
            range: req.range,
            from: req.from,
            prev_kv: req.prev_kv,
            no_put: false,
            no_delete: false,
            progress: true,
            fragment: false,
        });
        Box::pin(async move { Ok(Box::new(LocalWatch { session, over: false }) as Box<dyn WatchStream>) })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        Box::pin(self.service.compact(revision, false))
    }

    fn status(&self) -> KvStatus {
        status_of(&self.service.status.borrow(), self.service.revision())
    }

    fn status_changed(&self, seen: KvStatus) -> BoxFuture<'_, ()> {
        let mut status = self.service.status.clone();
        let differs = move |raft: &RaftStatus| {
            let now = status_of(raft, seen.revision);
            (now.term, now.is_leader, now.has_leader) != (seen.term, seen.is_leader, seen.has_leader)
        };
        Box::pin(async move {
            // The sender goes away with the member; then nothing changes any more.
            if status.wait_for(differs).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

struct LocalWatch {
    session: Session,
    over: bool,
}

impl LocalWatch {
    async fn step(&mut self) -> Option<Result<WatchMsg, KvError>> {
        if self.over {
            return None;
        }
        match self.session.next().await {
            Ok(Some(Out::Created { revision, .. })) => Some(Ok(WatchMsg::Created { revision })),
            Ok(Some(Out::Events { revision, events, prev_kv, .. })) => {
                let events = events.to_events();
                let events = if prev_kv { events } else { without_prev(&events) };
                Some(Ok(WatchMsg::Events { revision, events }))
            }
            Ok(Some(Out::Progress { revision, .. } | Out::ProgressAll { revision })) => Some(Ok(WatchMsg::Progress { revision })),
            Ok(Some(Out::Canceled { why, .. })) => {
                self.over = true;
                Some(Err(match why {
                    Canceled::Compacted(compact) => KvError::Compacted { compact },
                    Canceled::NegativeStart => KvError::Compacted { compact: Revision::ZERO },
                    Canceled::EmptyRange => KvError::EmptyKey,
                    Canceled::TooMany => KvError::TooManyRequests,
                    Canceled::Client | Canceled::DuplicateId => KvError::Internal(format!("a watch of its own was ended: {why:?}")),
                }))
            }
            Ok(None) => {
                self.over = true;
                None
            }
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }
}

fn without_prev(events: &Arc<[Event]>) -> Arc<[Event]> {
    if events.iter().all(|event| event.prev.is_none()) {
        return Arc::clone(events);
    }
    events.iter().map(|event| Event { kind: event.kind, kv: event.kv.clone(), prev: None }).collect()
}

impl WatchStream for LocalWatch {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<WatchMsg, KvError>>> {
        Box::pin(self.step())
    }
}
