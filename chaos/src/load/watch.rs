//! Clients that watch all keys of the run, and resume where they broke off, at the next member.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use kontiki_proto::etcd::etcdserverpb::watch_client::WatchClient;
use kontiki_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use kontiki_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use kontiki_proto::etcd::mvccpb::{Event, KeyValue, event::EventType};
use tokio_stream::StreamExt as _;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::kv::{PREFIX, Run};
use crate::history::{Frame, Record, Seen, SeenEvent, Watch, WatchAsk};

/// The end of the range that begins with [`PREFIX`].
pub const PREFIX_END: &str = "chaos0";

/// How often a watcher asks how far its watch is. A member that is silent for three of these is left.
const PROGRESS: Duration = Duration::from_secs(1);

/// A connection that takes longer is tried at the next member.
const CONNECT: Duration = Duration::from_secs(1);

/// After a failure a watcher waits so long.
const RETRY: Duration = Duration::from_millis(50);

/// A key as clients see it.
pub(crate) fn seen(kv: &KeyValue) -> Seen {
    Seen {
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        value: String::from_utf8_lossy(&kv.value).into_owned(),
        create: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn seen_event(event: &Event) -> SeenEvent {
    SeenEvent {
        delete: event.r#type() == EventType::Delete,
        kv: event.kv.as_ref().map(seen).unwrap_or_default(),
        prev: event.prev_kv.as_ref().map(seen),
    }
}

/// Opens a watch at a member, and keeps asking how far it is.
pub(super) async fn open(url: &str, ask: &WatchAsk) -> Result<Streaming<WatchResponse>> {
    let create = WatchCreateRequest {
        key: ask.key.clone().into(),
        range_end: ask.end.clone().into(),
        start_revision: ask.start,
        prev_kv: ask.prev,
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let progress = WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
    let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(PROGRESS)).skip(1);
    let requests = tokio_stream::once(create).chain(ticks.map(move |_| progress.clone()));
    let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(CONNECT).tcp_nodelay(true);
    let endpoint = endpoint.http2_keep_alive_interval(PROGRESS).keep_alive_timeout(PROGRESS).keep_alive_while_idle(true);
    let client = WatchClient::new(endpoint.connect().await?).max_decoding_message_size(usize::MAX);
    let mut client = client;
    Ok(tokio::time::timeout(CONNECT * 2, client.watch(requests)).await??.into_inner())
}

/// Watches until told to stop. `opened` is called when a watch is in place.
///
/// # Errors
/// A member's URL is not one.
pub async fn watcher(run: Arc<Run>, id: u16, opened: Arc<dyn Fn() + Send + Sync>) -> Result<()> {
    let mut member = usize::from(id) % run.members.len();
    let mut next = 1_i64;
    while !run.stop.load(Ordering::Relaxed) {
        let ask = WatchAsk { key: PREFIX.into(), end: PREFIX_END.into(), start: next, prev: id.is_multiple_of(2), ..WatchAsk::default() };
        let watch = run.recorder.id();
        let note = |frame: Frame| run.recorder.record(Record::Watch(Watch { watch, client: id, member, at: run.now(), frame }));
        note(Frame::Asked(ask.clone()));
        if let Ok(mut stream) = open(&run.members[member], &ask).await {
            follow(&run, &mut stream, &mut next, &note, &*opened).await;
        }
        note(Frame::Closed);
        member = (member + 1) % run.members.len();
        run.env.sleep(RETRY).await;
    }
    Ok(())
}

async fn follow(
    run: &Run,
    stream: &mut Streaming<WatchResponse>,
    next: &mut i64,
    note: &(impl Fn(Frame) + Sync),
    opened: &(dyn Fn() + Send + Sync),
) {
    while !run.stop.load(Ordering::Relaxed) {
        let Ok(Ok(Some(response))) = tokio::time::timeout(PROGRESS * 3, stream.message()).await else { return };
        let revision = response.header.as_ref().map_or(0, |h| h.revision);
        if response.canceled {
            note(Frame::Cancelled { compact: response.compact_revision, why: response.cancel_reason });
            *next = (*next).max(response.compact_revision);
            return;
        }
        if response.created {
            note(Frame::Created { revision });
            opened();
            continue;
        }
        if response.events.is_empty() {
            note(Frame::Progress { revision });
            *next = (*next).max(revision + 1);
            continue;
        }
        let events: Vec<SeenEvent> = response.events.iter().map(seen_event).collect();
        *next = events.iter().map(|e| e.kv.modified + 1).max().unwrap_or(0).max(*next);
        note(Frame::Events { revision, events, fragment: response.fragment });
    }
}
