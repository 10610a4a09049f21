//! The calls that a store spends its life with, served without the general machinery: `Range`, `Put` and `Txn`.
//!
//! Here a call has come in whole. It is counted, decoded, handed to the same code as any other, and answered with a message. Whatever is
//! out of the ordinary about it (a compressed message, one that cannot be decoded, one that is too long) is left to the general way, which
//! is given the call as it came: so it is served, or refused, in the same words.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use http_body::{Body as _, Frame};
use kontiki_base::BoxFuture;
use kontiki_base::env::Mono;
use kontiki_proto::convert::error::kv_status;
use kontiki_proto::etcd::etcdserverpb as pb;
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tonic::codegen::Service as _;
use tonic::{Code, Status};

use super::layer::{client_of, go_name, kind_of};
use super::{Api, message_bytes};
use crate::auth::Caller;
use crate::http::Peer;
use crate::metrics::{Handled, Rpc};
use crate::service::Service;

/// Bytes before a message: whether it is compressed, and its length.
pub(crate) const PREFIX: usize = 5;

/// A call with a short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `KV.Range`.
    Range,
    /// `KV.Put`.
    Put,
    /// `KV.Txn`.
    Txn,
}

/// The calls with a short way: their paths, and their methods as metrics name them. What they demand of their caller is looked at where
/// they are carried out.
const KINDS: [(Kind, &str, &str); 3] = [
    (Kind::Range, "/etcdserverpb.KV/Range", "Range"),
    (Kind::Put, "/etcdserverpb.KV/Put", "Put"),
    (Kind::Txn, "/etcdserverpb.KV/Txn", "Txn"),
];

/// What the header of a call says.
pub(crate) struct Head {
    kind: Kind,
    caller: Caller,
    /// Counts its client.
    client: Counter,
    peer: Peer,
    path: Bytes,
    headers: HeaderMap,
}

/// What a call is answered with.
pub(crate) enum Answer {
    /// Of a range.
    Range(pb::RangeResponse),
    /// Of a put.
    Put(pb::PutResponse),
    /// Of a transaction.
    Txn(pb::TxnResponse),
    /// It was refused.
    Refused(Status),
    /// What the general way has said: headers, body, trailers.
    Whole(Box<(HeaderMap, Bytes, Option<HeaderMap>)>),
}

/// One kind's counters.
struct Row {
    rpc: Rpc,
    started: Counter,
    received: Counter,
    sent: Counter,
    ok: Counter,
}

/// The short way of one member.
pub(crate) struct Calls {
    api: Api,
    rows: [Row; 3],
    general: axum::Router,
}

impl Calls {
    /// The short way to a service.
    pub(crate) fn new(service: &Arc<Service>) -> Arc<Self> {
        let metrics = &service.metrics;
        let rows = KINDS.map(|(_, _, method)| {
            let service_name = "etcdserverpb.KV";
            let rpc = Rpc { grpc_type: kind_of(service_name, method), grpc_service: service_name.into(), grpc_method: method.into() };
            let ok = metrics.handled.get_or_create(&handled(&rpc, Code::Ok)).clone();
            let counter = |family: &prometheus_client::metrics::family::Family<Rpc, Counter>| family.get_or_create(&rpc).clone();
            Row { started: counter(&metrics.started), received: counter(&metrics.received), sent: counter(&metrics.sent), ok, rpc }
        });
        Arc::new(Self { api: Api { service: Arc::clone(service) }, rows, general: super::router(service) })
    }

    /// The longest body that may have to be kept: one byte more than that is refused whatever follows.
    pub(crate) fn longest(&self) -> usize {
        message_bytes(self.api.service.bounds) + PREFIX
    }

    /// What a header says, if its call has a short way.
    pub(crate) fn head(&self, fields: &[(Bytes, Bytes)], peer: &Peer) -> Option<Arc<Head>> {
        let named = |wanted: &str| fields.iter().find(|(name, _)| &**name == wanted.as_bytes()).map(|(_, value)| value);
        let path = named(":path")?;
        let (kind, ..) = KINDS.into_iter().find(|(_, known, _)| known.as_bytes() == &**path)?;
        let plain = named(":method").is_some_and(|method| &**method == b"POST")
            && named("content-type").is_some_and(|kind| matches!(&**kind, b"application/grpc" | b"application/grpc+proto"))
            && named("grpc-encoding").is_none_or(|encoding| &**encoding == b"identity")
            && named("hasleader").is_none();
        if !plain {
            return None;
        }
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
            headers.append(HeaderName::from_lowercase(name).ok()?, HeaderValue::from_maybe_shared(value.clone()).ok()?);
        }
        let client = client_of(&self.row(kind).rpc, &headers);
        let client = self.api.service.metrics.client_requests.get_or_create(&client).clone();
        let caller = Caller::of_http(&headers, Some(peer));
        Some(Arc::new(Head { kind, caller, client, peer: peer.clone(), path: path.clone(), headers }))
    }

    const fn row(&self, kind: Kind) -> &Row {
        &self.rows[kind as usize]
    }

    /// Carries out a call.
    pub(crate) fn call(self: &Arc<Self>, head: Arc<Head>, body: Bytes) -> BoxFuture<'static, Answer> {
        let calls = Arc::clone(self);
        Box::pin(async move {
            let Some(message) = message_in(&body, message_bytes(calls.api.service.bounds)) else {
                return calls.generally(&head, body).await;
            };
            let (api, caller) = (&calls.api, &head.caller);
            match head.kind {
                Kind::Range => {
                    let Ok(asked) = pb::RangeRequest::decode(message) else { return calls.generally(&head, body).await };
                    let begun = calls.begin(&head, body.len());
                    begun.end(async { api.range_for(caller, asked).await.map(Answer::Range) }).await
                }
                Kind::Put => {
                    let Ok(asked) = pb::PutRequest::decode(message) else { return calls.generally(&head, body).await };
                    let begun = calls.begin(&head, body.len());
                    begun.end(async { api.put_for(caller, asked).await.map(Answer::Put) }).await
                }
                Kind::Txn => {
                    let Ok(asked) = pb::TxnRequest::decode(message) else { return calls.generally(&head, body).await };
                    let begun = calls.begin(&head, body.len());
                    begun.end(async { api.txn_for(caller, asked).await.map(Answer::Txn) }).await
                }
            }
        })
    }

    fn begin(&self, head: &Head, bytes: usize) -> Begun<'_> {
        let (row, service) = (self.row(head.kind), &self.api.service);
        row.started.inc();
        row.received.inc();
        head.client.inc();
        service.metrics.client_received_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
        Begun { service, row, at: service.metrics.handling.is_some().then(|| service.env.now_mono()), done: false }
    }

    /// Serves a call as any other.
    async fn generally(&self, head: &Head, body: Bytes) -> Answer {
        let mut request = http::Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = head.headers.clone();
        request.extensions_mut().insert(head.peer.clone());
        match http::Uri::try_from(&*head.path) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return Answer::Refused(Status::internal(error.to_string())),
        }
        let Ok(response) = self.general.clone().call(request).await;
        let (parts, mut body) = response.into_parts();
        let (mut data, mut trailers) = (BytesMut::new(), None);
        while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
            match frame.map(Frame::into_data) {
                Ok(Ok(piece)) => data.extend_from_slice(&piece),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(error) => return Answer::Refused(Status::internal(error.to_string())),
            }
        }
        Answer::Whole(Box::new((parts.headers, data.freeze(), trailers)))
    }
}

/// The one message of a body, if it is one, not compressed, and not too long.
fn message_in(body: &Bytes, longest: usize) -> Option<Bytes> {
    let (compressed, length) = body.get(..PREFIX)?.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    (*compressed == 0 && body.len() - PREFIX == length && length <= longest).then(|| body.slice(PREFIX..))
}

fn handled(rpc: &Rpc, code: Code) -> Handled {
    let Rpc { grpc_type, grpc_service, grpc_method } = rpc.clone();
    Handled { grpc_code: go_name(code), grpc_type, grpc_service, grpc_method }
}

/// A call that has begun.
struct Begun<'a> {
    service: &'a Service,
    row: &'a Row,
    at: Option<Mono>,
    done: bool,
}

impl Begun<'_> {
    async fn end(mut self, work: impl Future<Output = Result<Answer, Status>>) -> Answer {
        let answered = match self.service.room.serves() {
            Ok(()) => work.await,
            Err(error) => Err(kv_status(&error)),
        };
        match answered {
            Ok(answer) => {
                let bytes = answer.message_bytes().map_or(0, |bytes| bytes + PREFIX);
                self.service.metrics.client_sent_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
                self.row.sent.inc();
                self.counted(Code::Ok);
                answer
            }
            Err(status) => {
                self.counted(status.code());
                Answer::Refused(status)
            }
        }
    }

    fn counted(&mut self, code: Code) {
        self.done = true;
        let metrics = &self.service.metrics;
        if let Some((handling, at)) = metrics.handling.as_ref().zip(self.at) {
            handling.get_or_create(&self.row.rpc).observe(self.service.env.now_mono().since(at).as_secs_f64());
        }
        if code == Code::Ok {
            self.row.ok.inc();
        } else {
            metrics.handled.get_or_create(&handled(&self.row.rpc, code)).inc();
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The connection has gone before there was a status.
            self.counted(Code::Cancelled);
        }
    }
}

impl Answer {
    /// Bytes of its message, if it has one.
    pub(crate) fn message_bytes(&self) -> Option<usize> {
        match self {
            Self::Range(message) => Some(message.encoded_len()),
            Self::Put(message) => Some(message.encoded_len()),
            Self::Txn(message) => Some(message.encoded_len()),
            Self::Refused(_) | Self::Whole(_) => None,
        }
    }

    /// Writes its message, if it has one.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        let written = match self {
            Self::Range(message) => message.encode(out),
            Self::Put(message) => message.encode(out),
            Self::Txn(message) => message.encode(out),
            Self::Refused(_) | Self::Whole(_) => Ok(()),
        };
        written.expect("a buffer that grows has room");
    }
}

#[cfg(test)]
mod tests {
    use super::super::gate::{Need, TABLE};
    use super::*;

    #[test]
    fn only_whole_plain_messages_are_served_here() {
        let body = |bytes: &[u8]| message_in(&Bytes::copy_from_slice(bytes), 3);
        assert_eq!(body(&[0, 0, 0, 0, 2, 7, 8]).as_deref(), Some(&[7, 8][..]));
        assert_eq!(body(&[0, 0, 0, 0, 0]).as_deref(), Some(&[][..]), "an empty message is one");
        let others =
            [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 1, 7], &[0, 0, 0, 0, 2, 7], &[0, 0, 0, 0, 1, 7, 0], &[0, 0, 0, 0, 4, 1, 1, 1, 1]];
        for bad in others {
            assert_eq!(body(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_they_demand_is_looked_at_where_they_are_carried_out() {
        for (place, (kind, path, _)) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert!(TABLE.contains(&(path, Need::Own)), "{path}: the gate would have to be asked");
        }
    }
}
