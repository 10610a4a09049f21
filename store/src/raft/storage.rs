//! openraft's log storage on our log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::stream::{self, Stream};
use kontiki_base::ids::LogIndex;
use kontiki_base::limits;
use kontiki_base::mutant;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use super::types::{self, Entry, LogId, TypeConfig, Vote};
use crate::log::{Cold, Done, Log, LogError};

/// The log, as openraft wants it. A clone is another reader of the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
    /// Read files inside the calling task.
    inline: bool,
}

impl LogStore {
    pub(crate) fn new(log: Log, inline: bool) -> Self {
        Self { log, inline }
    }

    async fn read(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let entries = match self.log.read(from, to, max_bytes)? {
            Cold::Ready(entries) => entries,
            Cold::Files(cold) if self.inline => cold.run()?,
            Cold::Files(cold) => tokio::task::spawn_blocking(move || cold.run()).await.map_err(io::Error::other)??,
        };
        entries.into_iter().map(|e| types::from_log(e).ok_or_else(unreadable)).collect()
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an entry of the log makes no sense")
}

/// openraft's range of indexes as ours: from, and up to but without.
fn ours(range: &impl RangeBounds<u64>) -> (LogIndex, LogIndex) {
    let from = match range.start_bound() {
        Bound::Included(i) => i + 1,
        Bound::Excluded(i) => i + 2,
        Bound::Unbounded => 1,
    };
    let to = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(2),
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => u64::MAX,
    };
    (LogIndex::new(from), LogIndex::new(to))
}

fn waiter() -> (Done, oneshot::Receiver<Result<(), LogError>>) {
    let (tx, rx) = oneshot::channel();
    // The receiver is gone only when consensus is.
    (Box::new(move |result| drop(tx.send(result))), rx)
}

async fn wait(result: oneshot::Receiver<Result<(), LogError>>) -> io::Result<()> {
    match result.await {
        Ok(result) => result.map_err(io::Error::from),
        Err(_) => Err(io::Error::other("the log has been closed")),
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = ours(&range);
        self.read(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.status().vote.map(types::vote_from_log))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(LogIndex::new(start + 1), LogIndex::new(end + 1), limits::RAFT_APPEND_BYTES).await
    }

    /// In pages, so that catching up never holds the whole log in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, to) = ours(&range);
        let pages = stream::unfold((self.clone(), from, false), move |(store, from, ended)| async move {
            if ended || from >= to {
                return None;
            }
            let page = store.read(from, to, limits::RAFT_APPLY_CHUNK_BYTES).await;
            let next = page.as_ref().ok().and_then(|p| p.last()).map(|e| types::pos(e.log_id).index.next());
            let items: Vec<_> = match page {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((stream::iter(items), (store, next.unwrap_or(from), next.is_none())))
        });
        Box::pin(futures::StreamExt::flatten(pages))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let status = self.log.status();
        Ok(LogState { last_purged_log_id: types::log_id(status.purged), last_log_id: types::log_id(status.last) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, result) = waiter();
        mutant!("M02", self.log.vote(types::vote_to_log(vote), done).await, return Ok(()));
        mutant!("M03", wait(result).await, Ok(()))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.hint_committed(types::pos_or_zero(committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let status = self.log.status();
        // The hint may be ahead of what the log kept in a crash. Everything it kept up to there is committed all the same: the log
        // is a prefix of the one that held the hinted entry.
        let committed = if status.committed.index > status.last.index { status.last } else { status.committed };
        Ok(types::log_id(committed))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut traced = Vec::new();
        let note_trace = |entry: &Entry| traced.extend(types::trace_of(entry).map(|trace| (types::pos(entry.log_id).index, trace)));
        let entries = entries.into_iter().inspect(note_trace).map(types::to_log).collect();
        self.log.append(entries, traced, Box::new(move |result| callback.io_completed(result.map_err(io::Error::from)))).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let (done, result) = waiter();
        self.log.truncate(types::pos_or_zero(last_log_id), done).await;
        wait(result).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let (done, result) = waiter();
        self.log.purge(types::pos(log_id), done).await;
        wait(result).await
    }
}
