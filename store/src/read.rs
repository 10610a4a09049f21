//! Reads: linearizable ones wait for a read index, then both kinds read this member's state.
//!
//! A point read costs two look-ups, microseconds: it runs where the request runs. A range may cost seconds: where there are threads it
//! runs on one of them, and only so many run at once, so that neither the runtime nor the memory is swamped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kontiki_base::kv::{Consistency, KvError, RangeReq, RangeRes};
use kontiki_base::limits;
use kontiki_base::mutant;
use kontiki_mvcc::{ReadError, View};
use kontiki_proto::trace::names;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use crate::metrics::Metrics;
use crate::raft::Consensus;

/// Where consistent states to read from come from: the engine.
pub trait Views: Send + Sync + 'static {
    /// The latest committed state. Holding it pins disk space, and stops nobody.
    fn view(&self) -> Box<dyn View + Send>;

    /// Bytes on disk, roughly.
    fn size(&self) -> u64;

    /// Bytes of them that hold what can be read, roughly.
    fn in_use(&self) -> u64 {
        self.size()
    }

    /// Begins to give back the space of what was removed, in the background.
    fn reclaim(&self) {}
}

/// Where reads run that may take long.
#[derive(Clone, Debug)]
pub enum Workers {
    /// In the calling task: for runtimes whose clock is simulated.
    Inline,
    /// On the blocking threads of tokio, so many at once.
    Threads(Arc<Semaphore>),
}

impl Workers {
    /// Threads, with the usual bound.
    pub fn threads() -> Self {
        Self::Threads(Arc::new(Semaphore::new(limits::RANGES_AT_ONCE)))
    }

    /// Runs a read that may take long.
    ///
    /// # Errors
    /// What it returns; [`KvError::Stopped`] if the runtime is shutting down.
    pub async fn run<T, F>(&self, read: F) -> Result<T, KvError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, KvError> + Send + 'static,
    {
        match self {
            Self::Inline => read(),
            Self::Threads(at_once) => {
                let _permit = at_once.acquire().await.map_err(|_| KvError::Stopped)?;
                match tokio::task::spawn_blocking(read).await {
                    Ok(result) => result,
                    Err(error) if error.is_panic() => Err(KvError::Internal("a read panicked".into())),
                    Err(_) => Err(KvError::Stopped),
                }
            }
        }
    }
}

/// The way to the state.
#[derive(Clone)]
pub struct Reader {
    consensus: Arc<dyn Consensus>,
    views: Arc<dyn Views>,
    workers: Workers,
    waiting: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Reader {
    /// A reader.
    pub fn new(consensus: Arc<dyn Consensus>, views: Arc<dyn Views>, workers: Workers, metrics: Arc<Metrics>) -> Self {
        Self { consensus, views, workers, waiting: Arc::default(), metrics }
    }

    /// The latest committed state here.
    pub fn view(&self) -> Box<dyn View + Send> {
        self.views.view()
    }

    /// Where long reads run.
    pub const fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Bytes on disk, roughly.
    pub fn size(&self) -> u64 {
        self.views.size()
    }

    /// Completes when everything that was acknowledged before the call is readable here.
    ///
    /// # Errors
    /// [`KvError::TooManyRequests`] at once when too many wait already; what consensus says.
    pub async fn barrier(&self) -> Result<(), KvError> {
        let _place = Place::take(&self.waiting)?;
        let done = self.consensus.read_barrier().instrument(tracing::debug_span!(names::READ_BARRIER)).await;
        if done.is_err() {
            self.metrics.reads_failed.inc();
        }
        done
    }

    /// Reads a range.
    ///
    /// # Errors
    /// [`KvError::EmptyKey`], [`KvError::Compacted`], [`KvError::FutureRevision`]; for a linearizable read also what
    /// [`Reader::barrier`] says.
    pub async fn range(&self, req: RangeReq) -> Result<RangeRes, KvError> {
        if req.range.start.is_empty() {
            return Err(KvError::EmptyKey);
        }
        if mutant!("M53", req.consistency == Consistency::Linearizable, false) {
            self.barrier().await?;
        }
        self.range_here(req).await
    }

    /// Reads a range as this member has it.
    ///
    /// # Errors
    /// As [`Reader::range`], without the barrier's.
    pub async fn range_here(&self, req: RangeReq) -> Result<RangeRes, KvError> {
        self.metrics.ranges.inc();
        let view = self.views.view();
        // The total is counted over the whole range, whatever the limit: only a single key is surely small.
        if req.range.is_single() {
            return Ok(kontiki_mvcc::range(&*view, &req)?);
        }
        self.workers.run(move || Ok(kontiki_mvcc::range(&*view, &req)?)).await
    }
}

impl Reader {
    /// Reads one page of a range as this member has it: the first `limit` keys, and whether there are more. Only counts the whole range if
    /// it is told to, and then without reading it.
    ///
    /// # Errors
    /// As [`Reader::range_here`].
    pub async fn page_here(&self, req: &RangeReq, limit: usize, count: bool) -> Result<RangeRes, KvError> {
        self.metrics.ranges.inc();
        let (view, req) = (self.views.view(), req.clone());
        let read = move || {
            let (range, at) = (&req.range, req.at);
            let mut res = RangeRes { revision: kontiki_mvcc::current(&*view).map_err(ReadError::from)?.revision, ..RangeRes::default() };
            if count {
                res.count = kontiki_mvcc::range(&*view, &RangeReq { count_only: true, ..req.clone() })?.count;
            }
            if !req.count_only {
                (res.kvs, res.more) = kontiki_mvcc::page(&*view, range, at, limit, req.keys_only)?;
            }
            Ok(res)
        };
        self.workers.run(read).await
    }
}

/// A place among the reads that wait for a read index.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, KvError> {
        if waiting.fetch_add(1, Ordering::Relaxed) >= limits::READS_QUEUED {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(KvError::TooManyRequests);
        }
        Ok(Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
