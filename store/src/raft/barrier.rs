//! Read barriers in batches: one confirmation with the quorum serves every read that was waiting when it began.

use std::sync::Arc;

use kontiki_base::BoxFuture;
use kontiki_base::env::Task;
use kontiki_base::kv::KvError;
use kontiki_base::limits;
use kontiki_base::mutant;
use tokio::sync::{mpsc, oneshot};

use super::node::Inner;

type Waiter = oneshot::Sender<Result<(), KvError>>;

/// The queue of reads that wait. A clone is another handle to it.
#[derive(Clone)]
pub(super) struct Barrier {
    queue: mpsc::Sender<Waiter>,
    task: Arc<Task>,
}

impl Barrier {
    pub(super) fn start(inner: Arc<Inner>) -> Self {
        let (queue, waiting) = mpsc::channel(limits::READS_QUEUED);
        let env = inner.env.clone();
        let task = Arc::new(env.spawn("raft.barrier", Box::pin(serve(inner, waiting))));
        Self { queue, task }
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }

    pub(super) fn wait(&self) -> BoxFuture<'static, Result<(), KvError>> {
        let (waiter, result) = oneshot::channel();
        let queued = self.queue.try_send(waiter);
        Box::pin(async move {
            match queued {
                Ok(()) => result.await.unwrap_or(Err(KvError::Stopped)),
                Err(mpsc::error::TrySendError::Full(_)) => Err(KvError::TooManyRequests),
                Err(mpsc::error::TrySendError::Closed(_)) => Err(KvError::Stopped),
            }
        })
    }
}

async fn serve(inner: Arc<Inner>, mut waiting: mpsc::Receiver<Waiter>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, limits::READS_QUEUED).await > 0 {
        let deadline = inner.deadline();
        let waiters = std::mem::take(&mut batch);
        match inner.confirm(deadline).await {
            Ok(index) => {
                // The next round need not wait until this one's entries are applied.
                let here = inner.clone();
                let finish = async move {
                    let reached = mutant!("M52", here.wait_applied(index, deadline).await, Ok(()));
                    answer(waiters, &reached);
                };
                if inner.applied.borrow().index >= index {
                    finish.await;
                } else {
                    inner.env.spawn("raft.barrier", Box::pin(finish));
                }
            }
            Err(error) => answer(waiters, &Err(error)),
        }
    }
}

fn answer(waiters: Vec<Waiter>, result: &Result<(), KvError>) {
    for waiter in waiters {
        // A reader that has gone needs no answer.
        drop(waiter.send(result.clone()));
    }
}
