//! `etcdserverpb.Watch`: a stream of the client's wishes in, a stream of what happened out.
//!
//! There is no task: whoever sends the response asks for the next message when the connection has room for one. A slow client therefore
//! holds back its own stream, and nothing else.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use kontiki_base::ids::Revision;
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Event, KvError};
use kontiki_base::{BoxFuture, WatchId};
use kontiki_proto::convert::error::{EtcdError, kv_status, reason, row_of};
use kontiki_proto::convert::event_to_wire;
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, message_bytes};
use crate::auth::Caller;
use crate::service::Service;
use crate::watch::{Canceled, Out, Pace, Session, WatchSpec};

/// The id in answers that concern no watch, or all of them.
const NO_WATCH: i64 = -1;

/// A stream that asked for a leader is ended when there has been none for so many election timeouts.
const LEADERLESS_ELECTIONS: u32 = 3;

#[tonic::async_trait]
impl pb::watch_server::Watch for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(&self, req: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = req.metadata().get("hasleader").is_some_and(|value| value == "true");
        let serving = Serving {
            caller: Caller::of(&req),
            session: self.service.watch(Pace::Every(self.service.progress_every)),
            api: self.clone(),
            inbound: req.into_inner(),
            said_all: false,
            ready: VecDeque::new(),
            leaderless: needs_leader.then(|| Box::pin(leaderless(Arc::clone(&self.service))) as BoxFuture<'static, ()>),
        };
        Ok(Response::new(Box::pin(futures::stream::unfold(Some(serving), |serving| async move {
            let mut serving = serving?;
            match serving.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(serving))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }
}

struct Serving {
    api: Api,
    caller: Caller,
    session: Session,
    inbound: Streaming<pb::WatchRequest>,
    /// The client has said all it has to say, and still listens: as in etcd, its watches go on.
    said_all: bool,
    /// Messages that are ready to go, in order: the pieces of one that was split.
    ready: VecDeque<pb::WatchResponse>,
    /// Completes when a client that demands a leader is to be turned away. Kept, so that other messages do not start its time anew.
    leaderless: Option<BoxFuture<'static, ()>>,
}

enum Woken {
    Asked(Option<pb::WatchRequest>),
    Happened(Option<Out>),
    Leaderless,
}

impl Serving {
    /// The next message; `None` ends the stream.
    async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(response));
            }
            let woken = tokio::select! {
                biased;
                asked = self.inbound.message(), if !self.said_all => Woken::Asked(asked?),
                out = self.session.next() => Woken::Happened(out.map_err(|e| kv_status(&e))?),
                () = or_never(&mut self.leaderless) => Woken::Leaderless,
            };
            match woken {
                Woken::Asked(Some(request)) => self.ask(request).await,
                Woken::Asked(None) => self.said_all = true,
                Woken::Happened(Some(out)) => {
                    self.tell(out);
                    // A batch that many watches see: the client is listened to again after it, not after each of them.
                    while let Some(out) = self.session.queued() {
                        self.tell(out);
                    }
                }
                Woken::Happened(None) => return Err(EtcdError::Stopped.status()),
                Woken::Leaderless => return Err(EtcdError::NoLeader.status()),
            }
        }
    }

    async fn ask(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let spec = spec_of(create);
                match self.api.service.by(&self.caller).may_read(&spec.range).await {
                    Ok(()) => self.session.create(spec),
                    Err(error) => self.ready.push_back(denied(&error, self.api.header_now())),
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => self.session.cancel(WatchId::new(cancel.watch_id)),
            Some(RequestUnion::ProgressRequest(_)) => self.session.request_progress(),
            None => {}
        }
    }

    fn tell(&mut self, out: Out) {
        let empty = |revision| pb::WatchResponse { header: self.api.header(revision), ..Default::default() };
        let response = match out {
            Out::Created { id, revision } => pb::WatchResponse { watch_id: id.get(), created: true, ..empty(revision) },
            Out::Events { id, revision, events, prev_kv, fragment } => {
                let response = pb::WatchResponse { watch_id: id.get(), ..empty(revision) };
                self.ready.extend(with_events(response, &events, prev_kv, fragment.then(|| message_bytes(self.api.service.bounds))));
                return;
            }
            Out::Progress { id, revision } => pb::WatchResponse { watch_id: id.get(), ..empty(revision) },
            Out::ProgressAll { revision } => pb::WatchResponse { watch_id: NO_WATCH, ..empty(revision) },
            Out::Canceled { id, why, revision } => canceled(id, &why, empty(revision)),
        };
        self.ready.push_back(response);
    }
}

/// The answer to whoever may not watch what they want to. The stream stays.
fn denied(error: &KvError, header: Option<pb::ResponseHeader>) -> pb::WatchResponse {
    let row = row_of(error).unwrap_or(EtcdError::PermissionDenied);
    pb::WatchResponse {
        header,
        watch_id: NO_WATCH,
        created: true,
        canceled: true,
        cancel_reason: reason::printed(row),
        ..Default::default()
    }
}

fn canceled(id: Option<WatchId>, why: &Canceled, empty: pb::WatchResponse) -> pb::WatchResponse {
    let (compact_revision, cancel_reason) = match why {
        Canceled::Client => (0, String::new()),
        Canceled::Compacted(compact) => (compact.get(), String::new()),
        Canceled::EmptyRange => (0, reason::EMPTY_RANGE.into()),
        Canceled::DuplicateId => (0, reason::DUPLICATE_ID.into()),
        Canceled::NegativeStart => (0, EtcdError::Compacted.text().into()),
        Canceled::TooMany => (0, EtcdError::TooManyRequests.text().into()),
    };
    pb::WatchResponse {
        watch_id: id.map_or(NO_WATCH, WatchId::get),
        created: id.is_none(),
        canceled: true,
        compact_revision,
        cancel_reason,
        ..empty
    }
}

fn spec_of(create: pb::WatchCreateRequest) -> WatchSpec {
    let filters = |kind: FilterType| create.filters.contains(&kind.into());
    let (no_put, no_delete) = (filters(FilterType::Noput), filters(FilterType::Nodelete));
    // An empty key is the smallest key that there can be.
    let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key };
    WatchSpec {
        id: (create.watch_id != 0).then_some(WatchId::new(create.watch_id)),
        range: KeyRange::from_wire(key, create.range_end),
        from: Revision::new(create.start_revision),
        prev_kv: create.prev_kv,
        no_put,
        no_delete,
        progress: create.progress_notify,
        fragment: create.fragment,
    }
}

/// The response with the events: one message, or several if it has to be split. All but the last of those say so.
fn with_events(response: pb::WatchResponse, events: &Arc<[Event]>, prev_kv: bool, split_at: Option<usize>) -> Vec<pb::WatchResponse> {
    let mut pieces = vec![response.clone()];
    let mut size = response.encoded_len();
    for event in events.iter().map(|event| event_to_wire(event, prev_kv)) {
        let more = event.encoded_len() + 8;
        let Some(piece) = pieces.last_mut() else { break };
        if split_at.is_some_and(|limit| size + more >= limit) && !piece.events.is_empty() {
            piece.fragment = true;
            size = response.encoded_len() + more;
            pieces.push(pb::WatchResponse { events: vec![event], ..response.clone() });
        } else {
            size += more;
            piece.events.push(event);
        }
    }
    pieces
}

async fn or_never(future: &mut Option<BoxFuture<'static, ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Completes when there has been no leader for three election timeouts.
async fn leaderless(service: Arc<Service>) {
    let mut status = service.status.clone();
    loop {
        if status.wait_for(|raft| raft.leader.is_none()).await.is_err() {
            return std::future::pending().await;
        }
        let back = status.wait_for(|raft| raft.leader.is_some());
        tokio::select! {
            biased;
            _ = back => {}
            () = service.env.sleep(service.election * LEADERLESS_ELECTIONS) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use kontiki_base::kv::{EventKind, KeyValue};

    use super::*;

    #[test]
    fn only_the_last_piece_does_not_say_that_more_follows() {
        let kv = KeyValue { key: "k".into(), value: vec![1; 100].into(), ..KeyValue::default() };
        let events: Arc<[Event]> = vec![Event { kind: EventKind::Put, kv, prev: None }; 10].into();
        let whole = with_events(pb::WatchResponse::default(), &events, false, None);
        assert_eq!((whole.len(), whole[0].events.len(), whole[0].fragment), (1, 10, false));
        let pieces = with_events(pb::WatchResponse::default(), &events, false, Some(400));
        assert_eq!(pieces.iter().map(|p| p.events.len()).sum::<usize>(), 10);
        assert!(pieces.len() > 2 && pieces.iter().all(|p| p.encoded_len() < 400));
        let (last, others) = pieces.split_last().unwrap();
        assert!(!last.fragment && others.iter().all(|p| p.fragment));
        let tiny = with_events(pb::WatchResponse::default(), &events, false, Some(10));
        assert_eq!(tiny.len(), 10, "an event is never split");
    }
}
