//! Writes on their way into the log: a bounded queue, and one task that makes batches of what waits in it.
//!
//! A batch is one Raft entry. While the pipe is full, the next batch grows by itself: no timers, and a lone client's command is an entry
//! of its own at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kontiki_base::env::{Env, Task};
use kontiki_base::kv::{KvError, Op, PutReq, Txn};
use kontiki_base::mutant;
use kontiki_base::{BoxFuture, limits};
use kontiki_mvcc::{Command, Outcome, Reply, validate};
use kontiki_proto::trace::{self, TraceContext, names};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::Instrument as _;

use crate::metrics::Metrics;
use crate::raft::Consensus;
use crate::room::Room;

/// A command with who waits for it.
struct Pending {
    command: Command,
    bytes: usize,
    answer: oneshot::Sender<Result<Outcome, KvError>>,
    /// The span of who waits, if it is exported.
    trace: Option<TraceContext>,
    /// Its share of the byte budget, given back when it is answered.
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// The way into the log.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Pending>,
    budget: Arc<Semaphore>,
    env: Arc<dyn Env>,
    timeout: Duration,
    metrics: Arc<Metrics>,
    room: Arc<OnceLock<Arc<Room>>>,
}

impl Proposer {
    /// A proposer and its task. Every proposal is answered within `timeout`.
    pub fn start(consensus: Arc<dyn Consensus>, env: Arc<dyn Env>, metrics: Arc<Metrics>, timeout: Duration) -> (Self, Task) {
        let (tx, rx) = mpsc::channel(limits::PROPOSALS_QUEUED);
        let budget = Arc::new(Semaphore::new(limits::PROPOSALS_QUEUED_BYTES));
        let task = env.spawn("store.propose", Box::pin(run(consensus, rx)));
        (Self { queue: tx, budget, env, timeout, metrics, room: Arc::default() }, task)
    }

    /// From now on commands for which there is no room are refused.
    pub fn keep_within(&self, room: Arc<Room>) {
        // A member is composed once; another room would have no business here.
        drop(self.room.set(room));
    }

    /// Checks a command, has it decided and applied, and answers with its outcome.
    ///
    /// # Errors
    /// What is wrong with the command; [`KvError::NoSpace`] and [`KvError::Corrupt`] as [`Room`] says; [`KvError::TooManyRequests`] at
    /// once when the queue is full; [`KvError::Timeout`] when it is not known what became of it; what consensus says.
    pub async fn propose(&self, command: Command, max_txn_ops: usize) -> Result<Reply, KvError> {
        validate(&command, max_txn_ops)?;
        if let Some(room) = self.room.get()
            && let Err(refusal) = room.admit(&command)
        {
            if let Some(alarm) = refusal.raise {
                // The client waits until the cluster knows, as in etcd. If it cannot be told, the next write tries again.
                drop(self.decide(Command::Alarm { raise: true, alarm }).await);
            }
            return Err(refusal.error);
        }
        self.decide(command).await
    }

    async fn decide(&self, command: Command) -> Result<Reply, KvError> {
        let _pending = Gauged::new(&self.metrics);
        let decided = self.enqueue(command)?;
        let outcome = tokio::select! {
            biased;
            outcome = decided => outcome.unwrap_or(Err(KvError::Stopped)),
            () = self.env.sleep(self.timeout) => Err(KvError::Timeout),
        };
        if outcome.is_err() {
            self.metrics.proposals_failed.inc();
        }
        outcome?.reply
    }

    fn enqueue(&self, command: Command) -> Result<oneshot::Receiver<Result<Outcome, KvError>>, KvError> {
        let bytes = weight(&command);
        let share = u32::try_from(bytes.min(limits::PROPOSALS_QUEUED_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(share).map_err(|_| KvError::TooManyRequests)?;
        let (answer, decided) = oneshot::channel();
        let trace = trace::current();
        self.queue.try_send(Pending { command, bytes, answer, trace, _permit: permit }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => KvError::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => KvError::Stopped,
        })?;
        Ok(decided)
    }
}

/// Counts a proposal as pending for as long as somebody waits for it.
struct Gauged<'a>(&'a Metrics);

impl<'a> Gauged<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.proposals_pending.inc();
        Self(metrics)
    }
}

impl Drop for Gauged<'_> {
    fn drop(&mut self) {
        self.0.proposals_pending.dec();
    }
}

/// Makes batches until all proposers are gone, then waits for what is under way.
async fn run(consensus: Arc<dyn Consensus>, mut queue: mpsc::Receiver<Pending>) {
    let mut in_flight: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut waiting: Vec<Pending> = Vec::new();
    let mut open = true;
    while open || !waiting.is_empty() || !in_flight.is_empty() {
        let room = in_flight.len() < limits::PROPOSALS_IN_FLIGHT;
        if room && !waiting.is_empty() {
            in_flight.push(decide(&consensus, cut(&mut waiting)));
            continue;
        }
        tokio::select! {
            biased;
            Some(()) = in_flight.next() => {}
            taken = queue.recv_many(&mut waiting, limits::PROPOSAL_BATCH), if open && room => open = taken > 0,
        }
    }
}

/// Takes as much from the front as makes a batch.
fn cut(waiting: &mut Vec<Pending>) -> Vec<Pending> {
    let mut bytes = 0;
    let fits = waiting.iter().take(limits::PROPOSAL_BATCH).take_while(|pending| {
        bytes += pending.bytes;
        bytes <= limits::PROPOSAL_BATCH_BYTES
    });
    let count = fits.count().max(1);
    let rest = waiting.split_off(count.min(waiting.len()));
    std::mem::replace(waiting, rest)
}

fn decide(consensus: &Arc<dyn Consensus>, batch: Vec<Pending>) -> BoxFuture<'static, ()> {
    let span = span_of(&batch);
    let trace = trace::of(&span).filter(|trace| trace.sampled());
    let (commands, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|p| (p.command, (p.answer, p._permit))).unzip();
    let decided = consensus.propose(commands, trace);
    let answer = async move {
        // A client that has gone away does not want its answer: that is what a failed send means here.
        match decided.await {
            Ok(outcomes) if outcomes.len() == answers.len() => {
                let outcomes = mutant!("M58", outcomes, outcomes.into_iter().rev().collect::<Vec<_>>());
                answers.into_iter().zip(outcomes).for_each(|((answer, _), outcome)| drop(answer.send(Ok(outcome))));
            }
            Ok(outcomes) => {
                let text = format!("{} outcomes for {} commands", outcomes.len(), answers.len());
                answers.into_iter().for_each(|(answer, _)| drop(answer.send(Err(KvError::Internal(text.clone())))));
            }
            Err(error) => answers.into_iter().for_each(|(answer, _)| drop(answer.send(Err(error.clone())))),
        }
    };
    Box::pin(answer.instrument(span))
}

/// The span of a batch: the child of the first of its commands that somebody records, and linked to the others.
fn span_of(batch: &[Pending]) -> tracing::Span {
    let span = tracing::debug_span!(
        parent: None,
        names::PROPOSE,
        commands = batch.len(),
        bytes = batch.iter().map(|pending| pending.bytes).sum::<usize>(),
    );
    if span.is_disabled() {
        return span;
    }
    let (recorded, not): (Vec<_>, Vec<_>) = batch.iter().filter_map(|pending| pending.trace).partition(|trace| trace.sampled());
    if let Some(parent) = recorded.first().or(not.first()) {
        trace::adopt(&span, *parent);
    }
    recorded.iter().skip(1).for_each(|other| trace::link(&span, *other));
    span
}

/// Roughly what a command takes in memory and in the log.
fn weight(command: &Command) -> usize {
    const HEAD: usize = 64;
    HEAD + match command.inner() {
        Command::Put(put) => put_weight(put),
        Command::Delete(delete) => delete.range.start.len() * 2,
        Command::Txn { txn, .. } => txn_weight(txn),
        Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. }
        | Command::Compact { .. }
        | Command::Alarm { .. } => 0,
        Command::Auth(_) | Command::As { .. } => HEAD,
    }
}

fn put_weight(put: &PutReq) -> usize {
    put.key.len() + put.value.len()
}

fn txn_weight(txn: &Txn) -> usize {
    const STEP: usize = 64;
    let compares: usize = txn.compare.iter().map(|c| STEP + c.range.start.len() * 2).sum();
    let ops = txn.success.iter().chain(&txn.failure).map(|op| {
        STEP + match op {
            Op::Range(range) => range.range.start.len() * 2,
            Op::Put(put) => put_weight(put),
            Op::Delete(delete) => delete.range.start.len() * 2,
            Op::Txn(inner) => txn_weight(inner),
        }
    });
    compares + ops.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use tracing_subscriber::layer::SubscriberExt as _;

    /// A batch of commands that belong to these traces, by number and whether somebody records it.
    fn batch(traces: &[Option<(u8, bool)>]) -> Vec<Pending> {
        let budget = Arc::new(Semaphore::new(64));
        let pending = |trace: &Option<(u8, bool)>| Pending {
            command: Command::LeaseRevoke { id: kontiki_base::LeaseId::new(1) },
            bytes: 10,
            answer: oneshot::channel().0,
            trace: trace.and_then(|(n, sampled)| TraceContext::new([n; 16], [n; 8], sampled.into())),
            _permit: Arc::clone(&budget).try_acquire_owned().unwrap(),
        };
        traces.iter().map(pending).collect()
    }

    /// The span of a batch as it is exported, if it is, and whether the entry carries it.
    fn exported(traces: &[Option<(u8, bool)>]) -> (Option<SpanData>, bool) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let carried = tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = span_of(&batch(traces));
            trace::of(&span).is_some_and(TraceContext::sampled)
        });
        (exporter.get_finished_spans().unwrap().pop(), carried)
    }

    #[test]
    fn a_batch_is_the_child_of_the_first_that_is_recorded_and_linked_to_the_others() {
        let (span, carried) = exported(&[None, Some((1, false)), Some((2, true)), Some((3, true))]);
        let span = span.unwrap();
        assert!(carried);
        assert_eq!((span.span_context.trace_id().to_bytes(), span.parent_span_id.to_bytes()), ([2; 16], [2; 8]));
        assert_eq!(span.links.iter().map(|link| link.span_context.trace_id().to_bytes()).collect::<Vec<_>>(), [[3; 16]]);
        let text = |key: &str| span.attributes.iter().find(|a| a.key.as_str() == key).map(|a| a.value.to_string());
        assert_eq!((text("commands").as_deref(), text("bytes").as_deref()), (Some("4"), Some("40")));
    }

    #[test]
    fn nobody_records_a_batch_of_those_who_are_not_recorded() {
        let (span, carried) = exported(&[Some((1, false)), None]);
        assert!(span.is_none() && !carried);
        let (span, carried) = exported(&[None]);
        assert!(span.is_some_and(|s| s.parent_span_id.to_bytes() == [0; 8]) && carried, "the store's own work is a trace of its own");
    }
}
