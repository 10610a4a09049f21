//! `etcdserverpb.Watch`: a stream of the client's wishes in, a stream of what happened out.
//!
//! There is no task: whoever sends the response asks for the next message when the connection has room for one. A slow client therefore
//! holds back its own stream, and nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
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
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, message_bytes};
use crate::auth::Caller;
use crate::service::Service as Store;
use crate::watch::{Canceled, Out, Pace, Seen, Session, WatchSpec};

/// The id in answers that concern no watch, or all of them.
const NO_WATCH: i64 = -1;

/// A stream that asked for a leader is ended when there has been none for so many election timeouts.
const LEADERLESS_ELECTIONS: u32 = 3;

/// The service, with messages whose events may be encoded already.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) api: Api,
}

impl tonic::server::NamedService for Door {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl<B> Service<http::Request<B>> for Door
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let door = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return Ok(Status::unimplemented("").into_http());
            }
            let longest = message_bytes(door.api.service.bounds);
            let mut grpc = tonic::server::Grpc::new(WatchCodec).apply_max_message_size_config(Some(longest), Some(usize::MAX));
            Ok(grpc.streaming(door, request).await)
        })
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

impl tonic::server::StreamingService<pb::WatchRequest> for Door {
    type Response = Message;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, req: Request<Streaming<pb::WatchRequest>>) -> Self::Future {
        let needs_leader = req.metadata().get("hasleader").is_some_and(|value| value == "true");
        let service = &self.api.service;
        let serving = Serving {
            caller: Caller::of(&req),
            session: service.watch(Pace::Every(service.progress_every)),
            api: self.api.clone(),
            inbound: req.into_inner(),
            said_all: false,
            ready: VecDeque::new(),
            leaderless: needs_leader.then(|| Box::pin(leaderless(Arc::clone(service))) as BoxFuture<'static, ()>),
        };
        // Boxed: it is handed on for each message.
        std::future::ready(Ok(Response::new(Box::pin(futures::stream::unfold(Some(Box::new(serving)), |serving| async move {
            let mut serving = serving?;
            match serving.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(serving))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        })))))
    }
}

/// A response. Its events stand beside it, as they are sent: with what goes before each, so that one after the other makes the field.
#[derive(Debug)]
pub(super) struct Message {
    response: pb::WatchResponse,
    events: Vec<Bytes>,
}

impl From<pb::WatchResponse> for Message {
    fn from(response: pb::WatchResponse) -> Self {
        Self { response, events: Vec::new() }
    }
}

/// `events = 11` of `WatchResponse`: the last of its fields.
const EVENTS: u32 = 11;

/// An event as it stands in a response.
fn encode_event(event: &Event, prev_kv: bool) -> Bytes {
    let mut out = BytesMut::new();
    prost::encoding::message::encode(EVENTS, &event_to_wire(event, prev_kv), &mut out);
    out.freeze()
}

/// Reads requests as any other codec does, and writes [`Message`]s.
#[derive(Clone, Copy, Debug, Default)]
struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Message;
    type Decode = pb::WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for WatchCodec {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, item: Message, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.response.encode(dst).map_err(|error| Status::internal(error.to_string()))?;
        item.events.iter().for_each(|event| dst.put_slice(event));
        Ok(())
    }
}

impl Decoder for WatchCodec {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        pb::WatchRequest::decode(src).map(Some).map_err(|error| Status::internal(error.to_string()))
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
    ready: VecDeque<Message>,
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
    async fn next(&mut self) -> Result<Option<Message>, Status> {
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
                    Err(error) => self.ready.push_back(denied(&error, self.api.header_now()).into()),
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
                let split_at = fragment.then(|| message_bytes(self.api.service.bounds));
                with_events(response, &events, prev_kv, split_at, &mut self.ready);
                return;
            }
            Out::Progress { id, revision } => pb::WatchResponse { watch_id: id.get(), ..empty(revision) },
            Out::ProgressAll { revision } => pb::WatchResponse { watch_id: NO_WATCH, ..empty(revision) },
            Out::Canceled { id, why, revision } => canceled(id, &why, empty(revision)),
        };
        self.ready.push_back(response.into());
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
fn with_events(response: pb::WatchResponse, seen: &Seen, prev_kv: bool, split_at: Option<usize>, ready: &mut VecDeque<Message>) {
    let head = response.encoded_len();
    let mut size = head;
    let mut piece = Message { response, events: Vec::with_capacity(seen.len()) };
    for event in seen.encoded(|event| encode_event(event, prev_kv)) {
        if split_at.is_some_and(|limit| size + event.len() >= limit) && !piece.events.is_empty() {
            let next = Message { response: piece.response.clone(), events: Vec::new() };
            let mut full = std::mem::replace(&mut piece, next);
            full.response.fragment = true;
            ready.push_back(full);
            size = head;
        }
        size += event.len();
        piece.events.push(event);
    }
    ready.push_back(piece);
}

async fn or_never(future: &mut Option<BoxFuture<'static, ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Completes when there has been no leader for three election timeouts.
async fn leaderless(service: Arc<Store>) {
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
        let events = Seen::from(vec![Event { kind: EventKind::Put, kv, prev: None }; 10]);
        let pieces = |split_at| {
            let mut ready = VecDeque::new();
            with_events(pb::WatchResponse { watch_id: 7, ..Default::default() }, &events, false, split_at, &mut ready);
            ready
                .into_iter()
                .map(|message: Message| {
                    let mut bytes = message.response.encode_to_vec();
                    message.events.iter().for_each(|event| bytes.extend_from_slice(event));
                    (bytes.len(), pb::WatchResponse::decode(&*bytes).unwrap())
                })
                .collect::<Vec<_>>()
        };
        let whole = pieces(None);
        assert_eq!((whole.len(), whole[0].1.events.len(), whole[0].1.fragment), (1, 10, false));
        let expected = pb::WatchResponse {
            watch_id: 7,
            events: events.iter().map(|event| event_to_wire(event, false)).collect(),
            ..Default::default()
        };
        assert_eq!((&whole[0].1, whole[0].0), (&expected, expected.encoded_len()), "as any other encoder writes it");
        let some = pieces(Some(400));
        assert_eq!(some.iter().map(|(_, p)| p.events.len()).sum::<usize>(), 10);
        assert!(some.len() > 2 && some.iter().all(|(len, _)| *len < 400));
        let ((_, last), others) = some.split_last().unwrap();
        assert!(!last.fragment && others.iter().all(|(_, p)| p.fragment && p.watch_id == 7));
        assert_eq!(pieces(Some(10)).len(), 10, "an event is never split");
    }
}
