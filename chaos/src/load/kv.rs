//! Clients of the store: put, get, compare-and-swap and delete on a few keys, through all members, over etcd v3.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kontiki_base::env::{Env, Mono};
use kontiki_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kontiki_proto::etcd::etcdserverpb::kv_client::KvClient;
use kontiki_proto::etcd::etcdserverpb::request_op::Request;
use kontiki_proto::etcd::etcdserverpb::watch_client::WatchClient;
use kontiki_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use kontiki_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use kontiki_proto::etcd::mvccpb::event::EventType;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::history::{Answer, Ask, Change, Op};

/// Keys of the run: few, so that clients meet.
const KEYS: u32 = 8;

/// Where they lie.
pub const PREFIX: &str = "chaos/";

/// An operation that takes longer has an unknown outcome.
const LIMIT: Duration = Duration::from_secs(5);

/// What all clients of a run share.
pub struct Run {
    /// Time.
    pub env: Arc<dyn Env>,
    /// When the run began.
    pub origin: Mono,
    /// True: finish the operation at hand and stop.
    pub stop: AtomicBool,
    /// The members' client URLs.
    pub members: Vec<String>,
    /// Decides what is asked.
    pub seed: u64,
}

impl Run {
    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.env.now_mono().since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Connects when first used; a call on a connection that is down fails at once.
fn channel(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("{url:?} is not a URL"))?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(LIMIT).tcp_nodelay(true);
    Ok(endpoint.http2_keep_alive_interval(Duration::from_secs(2)).keep_alive_timeout(Duration::from_secs(2)).connect_lazy())
}

/// Works until told to stop; returns what it recorded.
///
/// # Errors
/// A member's URL is not one.
pub async fn client(run: Arc<Run>, id: u16) -> Result<Vec<Op>> {
    let mut members = run.members.iter().map(|url| Ok(KvClient::new(channel(url)?))).collect::<Result<Vec<_>>>()?;
    let mut rng = StdRng::seed_from_u64(run.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(id));
    let mut known = vec![0_i64; KEYS as usize];
    let mut ops = Vec::new();
    // Like any client: stays with a member until that fails, then tries the next one.
    let mut member = usize::from(id) % members.len();
    while !run.stop.load(Ordering::Relaxed) {
        let slot = rng.random_range(0..KEYS);
        let ask = choose(&mut rng, slot, id, ops.len(), known[slot as usize]);
        let call = run.now();
        let answer = perform(&mut members[member], &ask).await;
        let ret = run.now();
        match &answer {
            Answer::Written { revision } => known[slot as usize] = if ask.value().is_some() { *revision } else { 0 },
            Answer::Read { found, .. } => known[slot as usize] = found.as_ref().map_or(0, |(_, at)| *at),
            Answer::Unknown { .. } | Answer::Refused { .. } => {
                tokio::time::sleep(Duration::from_millis(rng.random_range(2..20))).await;
            }
            _ => {}
        }
        let failed = matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. });
        ops.push(Op { client: id, member, call, ret, ask, answer });
        // Now and then a client moves anyway, so that every member keeps some.
        if failed || rng.random_range(0..200) == 0 {
            member = (member + 1) % members.len();
        }
    }
    Ok(ops)
}

fn choose(rng: &mut StdRng, slot: u32, client: u16, number: usize, known: i64) -> Ask {
    let key = format!("{PREFIX}k{slot}");
    let value = format!("c{client}-{number}");
    match rng.random_range(0..100) {
        0..40 => Ask::Get { key },
        40..70 => Ask::Put { key, value },
        70..95 => Ask::Cas { key, expect: known, value },
        _ => Ask::Delete { key },
    }
}

async fn perform(kv: &mut KvClient<Channel>, ask: &Ask) -> Answer {
    let outcome = match ask {
        Ask::Get { key } => get(kv, key).await,
        Ask::Put { key, value } => put(kv, key, value).await,
        Ask::Cas { key, expect, value } => cas(kv, key, *expect, value).await,
        Ask::Delete { key } => delete(kv, key).await,
        other => return Answer::Refused { why: format!("this client does not ask {other:?}") },
    };
    outcome.unwrap_or_else(|status| failed(ask, &status))
}

/// What an error says about the outcome. Only codes that etcd gives before it proposes are definite; a broken connection never is.
fn failed(ask: &Ask, status: &tonic::Status) -> Answer {
    let why = format!("{:?}: {}", status.code(), status.message());
    let definite =
        matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::Unauthenticated);
    if definite || matches!(ask, Ask::Get { .. }) { Answer::Refused { why } } else { Answer::Unknown { why } }
}

fn revision(header: Option<&kontiki_proto::etcd::etcdserverpb::ResponseHeader>) -> i64 {
    header.map_or(0, |h| h.revision)
}

async fn get(kv: &mut KvClient<Channel>, key: &str) -> Result<Answer, tonic::Status> {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let response = kv.range(request).await?.into_inner();
    let found = response.kvs.first().map(|kv| (String::from_utf8_lossy(&kv.value).into_owned(), kv.mod_revision));
    Ok(Answer::Read { revision: revision(response.header.as_ref()), found })
}

async fn put(kv: &mut KvClient<Channel>, key: &str, value: &str) -> Result<Answer, tonic::Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let response = kv.put(request).await?.into_inner();
    Ok(Answer::Written { revision: revision(response.header.as_ref()) })
}

async fn cas(kv: &mut KvClient<Channel>, key: &str, expect: i64, value: &str) -> Result<Answer, tonic::Status> {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(expect)),
        ..Compare::default()
    };
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
    let response = kv.txn(TxnRequest { compare: vec![compare], success, failure: vec![] }).await?.into_inner();
    let revision = revision(response.header.as_ref());
    Ok(if response.succeeded { Answer::Written { revision } } else { Answer::CompareFailed { revision } })
}

async fn delete(kv: &mut KvClient<Channel>, key: &str) -> Result<Answer, tonic::Status> {
    let request = DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
    let response = kv.delete_range(request).await?.into_inner();
    let revision = revision(response.header.as_ref());
    Ok(if response.deleted > 0 { Answer::Written { revision } } else { Answer::NothingDeleted { revision } })
}

/// All changes of the run's keys, as the store tells them: by a watch from the first revision to the one that a linearizable read shows now.
///
/// # Errors
/// The store does not answer, or has forgotten its history.
pub async fn changes(url: &str) -> Result<Vec<Change>> {
    let channel = channel(url)?;
    let range = RangeRequest { key: PREFIX.into(), count_only: true, ..RangeRequest::default() };
    let until = revision(KvClient::new(channel.clone()).range(range).await?.into_inner().header.as_ref());
    let create = WatchCreateRequest { key: PREFIX.into(), range_end: "chaos0".into(), start_revision: 1, ..WatchCreateRequest::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let progress = WatchRequest { request_union: Some(RequestUnion::ProgressRequest(Default::default())) };
    // The stream stays open, and asks how far it is once a second.
    let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
    let requests = tokio_stream::once(create).chain(ticks.map(move |_| progress.clone()));
    let mut endless = Endpoint::from_shared(url.to_owned())?.connect().await.map(WatchClient::new)?;
    let mut stream = endless.watch(requests).await?.into_inner();
    let mut changes = Vec::new();
    loop {
        let response = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.context("the watch is silent")??;
        let response = response.context("the watch ended")?;
        if response.canceled {
            bail!("the watch was cancelled: {}", response.cancel_reason);
        }
        for event in &response.events {
            let kv = event.kv.as_ref().context("an event has a key")?;
            let value = (event.r#type() == EventType::Put).then(|| String::from_utf8_lossy(&kv.value).into_owned());
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            let (create, version, lease) = (kv.create_revision, kv.version, kv.lease);
            changes.push(Change { revision: kv.mod_revision, key, value, create, version, lease });
        }
        if !response.created && revision(response.header.as_ref()) >= until {
            return Ok(changes);
        }
    }
}
