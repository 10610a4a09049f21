//! A remote store as a [`Kv`]: etcd v3 over gRPC. Works with any etcd, and with our own members.
//!
//! What etcd does not have is refused, not imitated: a transaction with a fence. What it says less of is less here: an error "compacted"
//! does not tell where history begins, a watch's end does.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::BoxFuture;
use kontiki_base::env::Env;
use kontiki_base::ids::{Revision, Term};
use kontiki_base::kv::{Event, Kv, KvError, KvStatus, RangeReq, RangeRes, Txn, TxnRes, WatchMsg, WatchReq, WatchStream};
use tokio::sync::{mpsc, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

use crate::convert::error::kv_error;
use crate::convert::{event_from_wire, request, response};
use crate::etcd::etcdserverpb as pb;
use crate::trace;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;

/// A watch asks how far it is this long after the store was seen to have moved on without it.
const PROGRESS_AFTER: Duration = Duration::from_millis(100);

/// Requests of one watch that may wait to be sent.
const WATCH_REQUESTS: usize = 4;

/// A silent connection is asked this often whether it is still there, and given up after the second time.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(2);

/// Certificates towards the store, PEM.
#[derive(Clone)]
pub struct ClientTls {
    /// Authority that signed the store's certificates.
    pub ca_pem: Vec<u8>,
    /// Our certificate and key, if the store demands one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

/// A channel whose requests say whose child their work is.
type Traced = InterceptedService<Channel, trace::Inject>;

/// A remote store.
#[derive(Clone)]
pub struct EtcdKv {
    kv: KvClient<Traced>,
    watch: WatchClient<Traced>,
    env: Arc<dyn Env>,
    timeout: Duration,
    seen: watch::Sender<KvStatus>,
}

impl EtcdKv {
    /// A store at these endpoints (`http(s)://host:port`), any of which may answer. Does not connect yet. Every request ends within
    /// `timeout`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`KvError::Unavailable`] if an endpoint or a certificate cannot be read.
    pub fn new(endpoints: &[String], tls: Option<&ClientTls>, env: Arc<dyn Env>, timeout: Duration) -> Result<Self, KvError> {
        let endpoints = endpoints.iter().map(|url| endpoint(url, tls)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(KvError::Unavailable("no endpoint of the store is given".into()));
        }
        let channel = Channel::balance_list(endpoints.into_iter());
        let channel = Traced::new(channel, trace::inject);
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let watch = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        Ok(Self { kv, watch, env, timeout, seen: watch::Sender::default() })
    }

    /// Waits for an answer, and takes note of what it says of the store.
    async fn within<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, KvError> {
        let answered = tokio::select! {
            biased;
            answered = call => answered.map(tonic::Response::into_inner).map_err(|status| kv_error(&status)),
            () = self.env.sleep(self.timeout) => Err(KvError::Timeout),
        };
        if matches!(answered, Err(KvError::NoLeader)) {
            self.seen.send_if_modified(|seen| std::mem::replace(&mut seen.has_leader, false));
        }
        answered
    }

    fn heard(&self, header: Option<&pb::ResponseHeader>) {
        note(&self.seen, header);
    }

    async fn range_of(&self, req: RangeReq) -> Result<RangeRes, KvError> {
        let res = self.within(self.kv.clone().range(request::range_to_wire(req))).await?;
        self.heard(res.header.as_ref());
        Ok(response::range_from_wire(res))
    }

    async fn txn_of(&self, txn: Txn, fence: Option<Term>) -> Result<TxnRes, KvError> {
        if fence.is_some() {
            return Err(KvError::Unimplemented("etcd has no transactions that hold only under one term".into()));
        }
        let res = self.within(self.kv.clone().txn(request::txn_to_wire(txn))).await?;
        self.heard(res.header.as_ref());
        Ok(response::txn_from_wire(res))
    }

    async fn watch_of(&self, req: WatchReq) -> Result<Box<dyn WatchStream>, KvError> {
        let (key, range_end) = req.range.to_wire();
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: req.from.get(),
            progress_notify: true,
            prev_kv: req.prev_kv,
            ..Default::default()
        };
        let (requests, outbound) = mpsc::channel(WATCH_REQUESTS);
        let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.try_send(first).map_err(|error| KvError::Internal(format!("a new queue is full: {error}")))?;
        let outbound = ReceiverStream(outbound);
        let inbound = self.within(self.watch.clone().watch(outbound)).await?;
        let (seen, env) = (self.seen.clone(), Arc::clone(&self.env));
        Ok(Box::new(RemoteWatch { requests, inbound, seen, env, told: Revision::ZERO, pause: None, over: false }))
    }
}

/// What a response header tells of the store. Latest wins; a revision never goes back.
fn note(seen: &watch::Sender<KvStatus>, header: Option<&pb::ResponseHeader>) {
    let Some(header) = header else { return };
    seen.send_if_modified(|seen| {
        let now = KvStatus {
            term: seen.term.max(Term::new(header.raft_term)),
            is_leader: false,
            has_leader: true,
            revision: seen.revision.max(Revision::new(header.revision)),
        };
        std::mem::replace(seen, now.clone()) != now
    });
}

/// An endpoint (`http(s)://host:port`) with timeouts that notice a dead server.
///
/// # Errors
/// [`KvError::Unavailable`] if the URL or a certificate cannot be read.
pub fn endpoint(url: &str, tls: Option<&ClientTls>) -> Result<Endpoint, KvError> {
    let bad = |error: tonic::transport::Error| KvError::Unavailable(format!("endpoint {url}: {error}"));
    let mut endpoint = Endpoint::try_from(url.to_owned())
        .map_err(bad)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(crate::socket::KEEPALIVE))
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20);
    if let Some(tls) = tls {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
        if let Some((cert, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(cert, key));
        }
        endpoint = endpoint.tls_config(config).map_err(bad)?;
    }
    Ok(endpoint)
}

impl Kv for EtcdKv {
    fn range(&self, req: RangeReq) -> BoxFuture<'_, Result<RangeRes, KvError>> {
        Box::pin(self.range_of(req))
    }

    fn txn(&self, txn: Txn, fence: Option<Term>) -> BoxFuture<'_, Result<TxnRes, KvError>> {
        Box::pin(self.txn_of(txn, fence))
    }

    fn watch(&self, req: WatchReq) -> BoxFuture<'_, Result<Box<dyn WatchStream>, KvError>> {
        Box::pin(self.watch_of(req))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        let compact = pb::CompactionRequest { revision: revision.get(), physical: false };
        Box::pin(async move {
            let res = self.within(self.kv.clone().compact(compact)).await?;
            self.heard(res.header.as_ref());
            Ok(())
        })
    }

    fn status(&self) -> KvStatus {
        self.seen.borrow().clone()
    }

    fn status_changed(&self, seen: KvStatus) -> BoxFuture<'_, ()> {
        let mut now = self.seen.subscribe();
        Box::pin(async move {
            // The sender is part of `self`, and so outlives this.
            let _ = now.wait_for(|now| (now.term, now.has_leader) != (seen.term, seen.has_leader)).await;
        })
    }
}

/// The receiving end of a queue as a stream.
struct ReceiverStream(mpsc::Receiver<pb::WatchRequest>);

impl futures::Stream for ReceiverStream {
    type Item = pb::WatchRequest;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// A watch on a stream of its own.
struct RemoteWatch {
    requests: mpsc::Sender<pb::WatchRequest>,
    inbound: Streaming<pb::WatchResponse>,
    seen: watch::Sender<KvStatus>,
    env: Arc<dyn Env>,
    /// The furthest that the client of this watch has been told.
    told: Revision,
    /// Until the store is asked how far the watch is.
    pause: Option<BoxFuture<'static, ()>>,
    over: bool,
}

enum Woken {
    Message(Result<Option<pb::WatchResponse>, Status>),
    Behind,
    Ask,
}

impl RemoteWatch {
    async fn step(&mut self) -> Option<Result<WatchMsg, KvError>> {
        while !self.over {
            let mut seen = self.seen.subscribe();
            let told = self.told;
            let woken = tokio::select! {
                biased;
                message = self.inbound.message() => Woken::Message(message),
                () = or_never(&mut self.pause) => Woken::Ask,
                _ = seen.wait_for(|seen| seen.revision > told), if self.pause.is_none() => Woken::Behind,
            };
            match woken {
                Woken::Message(Ok(Some(message))) => {
                    if let Some(done) = self.read(message) {
                        return Some(done);
                    }
                }
                Woken::Message(Ok(None)) => {
                    self.over = true;
                    return Some(Err(KvError::Unavailable("the store has ended the watch's stream".into())));
                }
                Woken::Message(Err(status)) => {
                    self.over = true;
                    return Some(Err(kv_error(&status)));
                }
                Woken::Behind => self.pause = Some(self.env.sleep(PROGRESS_AFTER)),
                Woken::Ask => {
                    self.pause = Some(self.env.sleep(PROGRESS_AFTER));
                    // A full queue has such a request in it already.
                    let _ = self
                        .requests
                        .try_send(pb::WatchRequest { request_union: Some(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})) });
                }
            }
        }
        None
    }

    fn read(&mut self, message: pb::WatchResponse) -> Option<Result<WatchMsg, KvError>> {
        note(&self.seen, message.header.as_ref());
        let revision = Revision::new(message.header.map_or(0, |header| header.revision));
        if message.canceled {
            self.over = true;
            let compacted = message.compact_revision > 0 || message.cancel_reason.contains("has been compacted");
            return Some(Err(match compacted {
                true => KvError::Compacted { compact: Revision::new(message.compact_revision) },
                false if message.cancel_reason.contains("watcher range is empty") => KvError::EmptyKey,
                false => kv_error(&Status::unknown(message.cancel_reason)),
            }));
        }
        if message.created {
            self.reached(revision);
            return Some(Ok(WatchMsg::Created { revision }));
        }
        let events: Arc<[Event]> = message.events.into_iter().map(event_from_wire).collect();
        let Some(last) = events.last() else {
            self.reached(revision);
            return Some(Ok(WatchMsg::Progress { revision }));
        };
        // The header may be ahead of what has been sent: etcd catches up in pieces.
        let revision = last.kv.mod_revision;
        self.reached(revision);
        Some(Ok(WatchMsg::Events { revision, events }))
    }

    fn reached(&mut self, revision: Revision) {
        self.told = self.told.max(revision);
        self.pause = None;
    }
}

async fn or_never(future: &mut Option<BoxFuture<'static, ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

impl WatchStream for RemoteWatch {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<WatchMsg, KvError>>> {
        Box::pin(self.step())
    }
}
