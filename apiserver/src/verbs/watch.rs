//! WATCH: the present state (if asked for), then changes, bookmarks in between, an end in good order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::Revision;
use kontiki_base::env::Mono;
use kontiki_registry::status::Status;
use tokio::sync::watch;

use super::list::Selection;
use crate::cache::change::{Cached, Change, EventType};
use crate::cache::row::{Cursor, Phase, Step};
use crate::core::Core;
use crate::error::Result;

/// Objects of the initial state per step.
const INITIAL_BATCH: usize = 256;
/// How often an idle watch hears how far the store is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// So long before a watch times out it hears a last time how far the store is.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// A watch without a timeout of its own lives between this long and twice as long.
const LIFE: Duration = Duration::from_secs(1_800);

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With the present objects, not older than this revision (`None`: confirmed to be the latest).
    State(Option<Revision>),
    /// With the changes after this revision.
    After(Revision),
    /// With whatever comes next.
    Now,
}

/// A watch request.
#[derive(Clone, Debug)]
pub(crate) struct WatchRequest {
    /// Which objects.
    pub(crate) selection: Selection,
    /// Where it begins.
    pub(crate) begin: Begin,
    /// Send bookmarks.
    pub(crate) bookmarks: bool,
    /// Say where the present objects end.
    pub(crate) mark_end: bool,
    /// How long it lives.
    pub(crate) timeout: Option<Duration>,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// An object that was there when the watch began.
    Present(Arc<Cached>),
    /// A change.
    Change(EventType, Arc<Change>),
    /// Everything up to this revision has been delivered. `true`: this ends the initial state.
    Bookmark(Revision, bool),
}

/// A running watch. Dropping it ends it.
pub(crate) struct Watch {
    core: Arc<Core>,
    selection: Selection,
    cursor: Cursor,
    ticks: watch::Receiver<(u64, Phase)>,
    present: VecDeque<Arc<Cached>>,
    /// Changes from before the window, still to be delivered.
    backlog: Vec<Arc<Change>>,
    /// The bookmark that ends the initial state is still due, with this revision.
    initial_end: Option<Revision>,
    /// Changes up to here are not wanted.
    after: Revision,
    bookmarks: bool,
    next_bookmark: Mono,
    ends: Mono,
    over: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("selection", &self.selection).finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.core.metrics.watchers.dec();
    }
}

/// The answer to a watch from before the window.
fn too_old(asked: Revision, floor: Revision) -> Status {
    Status::expired(format!("too old resource version: {asked} ({floor})"))
}

impl Core {
    /// WATCH. Too far back is [`Code::Compacted`](kontiki_base::Code::Compacted).
    pub(crate) async fn watch(self: &Arc<Self>, request: WatchRequest) -> Result<Watch> {
        let selection = request.selection;
        let quorum = match request.begin {
            Begin::State(None) => self.quorum_revision().await?,
            Begin::State(Some(revision)) => revision,
            Begin::After(_) | Begin::Now => Revision::ZERO,
        };
        let unavailable = || Status::new(kontiki_base::Code::Unavailable, "the watch cache is not ready yet");
        let cache = self.cache(&selection.row).await.ok_or_else(unavailable)?;
        self.not_older(quorum).await?;
        let applied = || self.hub.applied();
        let ticks = cache.subscribe();
        let (label, objects, mut cursor) = cache.snapshot_and_follow(&selection.prefix(), applied);
        let mut after = label;
        let mut backlog = Vec::new();
        let mut present = VecDeque::new();
        match request.begin {
            Begin::State(_) => present = objects.into_iter().filter(|o| selection.matches(o)).collect(),
            Begin::Now => {}
            Begin::After(revision) => {
                after = revision;
                match cache.follow(revision) {
                    Ok(there) => cursor = there,
                    Err(gone) => {
                        let replayed = self.replay(&selection, revision, label).await;
                        backlog = replayed.ok_or_else(|| too_old(revision, gone.floor))?;
                    }
                }
            }
        }
        let now = self.env.now_mono();
        let jitter = Duration::from_secs(self.env.random_u64() % LIFE.as_secs());
        let ends = now.plus(request.timeout.unwrap_or(LIFE + jitter));
        let wants_state = matches!(request.begin, Begin::State(_));
        self.metrics.watchers.inc();
        let mut watch = Watch {
            core: self.clone(),
            selection,
            cursor,
            ticks,
            present,
            backlog,
            initial_end: (request.mark_end && wants_state).then_some(label),
            after,
            bookmarks: request.bookmarks,
            next_bookmark: now,
            ends,
            over: false,
        };
        watch.plan_bookmark(now);
        Ok(watch)
    }
}

impl Watch {
    /// The next items, never none of them; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Vec<Item>> {
        loop {
            if !self.present.is_empty() {
                let batch = self.present.len().min(INITIAL_BATCH);
                return Some(self.present.drain(..batch).map(Item::Present).collect());
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(vec![Item::Bookmark(revision, true)]);
            }
            if self.over {
                return None;
            }
            let backlog = std::mem::take(&mut self.backlog);
            let items = self.visible(&backlog);
            if !items.is_empty() {
                return Some(items);
            }
            self.ticks.mark_unchanged();
            match self.cursor.step(|| self.core.hub.applied()) {
                Step::Changes(changes) => {
                    let items = self.visible(&changes);
                    if !items.is_empty() {
                        return Some(items);
                    }
                }
                Step::Lost => {
                    self.over = true;
                    tracing::debug!(resource = %self.selection.row.plural, "watcher was left behind by the window");
                    return None;
                }
                Step::Idle(revision) => {
                    if let Some(item) = self.idle(revision).await {
                        return Some(vec![item]);
                    }
                }
            }
        }
    }

    fn visible(&self, changes: &[Arc<Change>]) -> Vec<Item> {
        let seen = |change: &Arc<Change>| {
            let kind = change.seen_by(|object| self.selection.matches(object))?;
            Some(Item::Change(kind, change.clone()))
        };
        changes.iter().filter(|c| c.revision > self.after).filter_map(seen).collect()
    }

    /// Waits for a change, a bookmark's time, or the end. `revision`: everything up to there has been delivered.
    async fn idle(&mut self, revision: Revision) -> Option<Item> {
        let now = self.core.env.now_mono();
        if now >= self.ends {
            self.over = true;
            return None;
        }
        if self.bookmarks && now >= self.next_bookmark {
            self.plan_bookmark(now);
            if revision >= self.after {
                return Some(Item::Bookmark(revision, false));
            }
        }
        let wake = if self.bookmarks { self.ends.min(self.next_bookmark) } else { self.ends };
        let core = self.core.clone();
        tokio::select! {
            changed = self.ticks.changed() => self.over = changed.is_err(),
            () = core.env.sleep(wake.since(now)) => {}
            () = core.stopped() => self.over = true,
        }
        None
    }

    /// Once a minute, and shortly before the end.
    fn plan_bookmark(&mut self, now: Mono) {
        let left = self.ends.since(now);
        let last = (left > LAST_BOOKMARK).then(|| now.plus(left.saturating_sub(LAST_BOOKMARK)));
        let regular = now.plus(BOOKMARK_EVERY);
        self.next_bookmark = match last {
            Some(last) => last.min(regular),
            None => self.ends.plus(BOOKMARK_EVERY),
        };
    }
}
