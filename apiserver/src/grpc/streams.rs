//! LIST and WATCH as streams of messages.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use kontiki_base::Revision;
use kontiki_proto::api;
use kontiki_registry::row::Row;

use super::convert::{from_cached, from_tree};
use crate::cache::change::{Change, EventType};
use crate::verbs::list::Listed;
use crate::verbs::watch::{Item, Watch};
use crate::verbs::{as_stored, served};

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

/// Objects per message of a list.
const LIST_BATCH: usize = 256;

/// A list: first its revision alone, then its objects.
pub(super) fn list(row: Arc<Row>, listed: Listed) -> Answers<api::ListResponse> {
    let revision = listed.revision.get();
    let head = stream::iter([Ok(api::ListResponse { revision, items: Vec::new() })]);
    let batches: Vec<Vec<_>> = listed.items.chunks(LIST_BATCH).map(<[_]>::to_vec).collect();
    let body = batches
        .into_iter()
        .map(move |batch| Ok(api::ListResponse { revision, items: batch.iter().map(|o| from_cached(&row, o)).collect() }));
    Box::pin(futures::StreamExt::chain(head, stream::iter(body)))
}

/// A watch. A change that is not the last one of its revision carries the revision before: whoever resumes from it misses nothing.
pub(super) fn watch(row: Arc<Row>, watch: Watch) -> Answers<api::WatchResponse> {
    let batches = stream::unfold((watch, row), |(mut watch, row)| async move {
        let items = watch.next().await?;
        let responses = responses(&row, &items);
        Some((stream::iter(responses.into_iter().map(Ok)), (watch, row)))
    });
    Box::pin(futures::StreamExt::flatten(batches))
}

fn responses(row: &Row, items: &[Item]) -> Vec<api::WatchResponse> {
    let same = |item: &Item, next: &Item| match (item, next) {
        (Item::Change(_, a), Item::Change(_, b)) => a.revision == b.revision,
        _ => false,
    };
    let mut out: Vec<api::WatchResponse> = items.iter().map(|item| response(row, item)).collect();
    for (answer, pair) in out.iter_mut().zip(items.windows(2)) {
        if same(&pair[0], &pair[1]) {
            answer.revision -= 1;
        }
    }
    out
}

fn response(row: &Row, item: &Item) -> api::WatchResponse {
    let answer =
        |kind: api::EventType, object: Option<api::Object>, revision: i64| api::WatchResponse { r#type: kind.into(), object, revision };
    match item {
        // Resuming from an object of the initial state would skip the others: only the bookmark that ends them has a revision.
        Item::Present(object) => answer(api::EventType::Added, Some(from_cached(row, object)), 0),
        Item::Change(kind, change) => answer(event_type(*kind), Some(changed(row, *kind, change)), change.revision.get()),
        Item::Bookmark(revision, _) => answer(api::EventType::Bookmark, None, revision.get()),
    }
}

fn event_type(kind: EventType) -> api::EventType {
    match kind {
        EventType::Added => api::EventType::Added,
        EventType::Modified => api::EventType::Modified,
        EventType::Deleted => api::EventType::Deleted,
    }
}

fn changed(row: &Row, kind: EventType, change: &Change) -> api::Object {
    let bytes = change.object(kind);
    if !as_stored(row) {
        return from_tree(&served(row, serde_json::from_slice(&bytes).unwrap_or_default()));
    }
    api::Object {
        api_version: row.api_version(),
        kind: row.kind.clone(),
        encoding: api::Encoding::Json.into(),
        raw: bytes,
        revision: change.revision.max(Revision::ZERO).get(),
    }
}
