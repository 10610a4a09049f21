//! Clients of the store: put, get, compare-and-swap and delete on a few keys, through all members, over etcd v3.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_base::env::{Env, Mono};
use kontiki_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kontiki_proto::etcd::etcdserverpb::kv_client::KvClient;
use kontiki_proto::etcd::etcdserverpb::request_op::Request;
use kontiki_proto::etcd::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::history::{Answer, Ask, Recorder};
use crate::plan::{Dice, KvLoad, Mix};

/// Where they lie.
pub const PREFIX: &str = "chaos/";

/// A client asks a silent member so often whether it is there, and goes to another one if it is not.
const PING: Duration = Duration::from_millis(500);

/// After a failure a client waits up to so long before it asks again.
const RETRY: Duration = Duration::from_millis(20);

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
    /// What clients do.
    pub load: KvLoad,
    /// Takes down everything that is seen.
    pub recorder: Recorder,
}

impl Run {
    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.env.now_mono().since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Connects when first used; a call on a connection that is down fails at once.
pub(crate) fn channel(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("{url:?} is not a URL"))?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(LIMIT).tcp_nodelay(true);
    Ok(endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PING).connect_lazy())
}

/// Works until told to stop; everything is recorded.
///
/// # Errors
/// A member's URL is not one.
pub async fn client(run: Arc<Run>, id: u16) -> Result<()> {
    let mut members = run.members.iter().map(|url| Ok(KvClient::new(channel(url)?))).collect::<Result<Vec<_>>>()?;
    let mut dice = Dice::new(run.seed, &format!("client/{id}"));
    let mut known = vec![0_i64; run.load.keys as usize];
    let mut asked = 0_u64;
    // Like any client: stays with a member until that fails, then tries the next one.
    let mut member = usize::from(id) % members.len();
    let pause = pause(&run.load);
    while !run.stop.load(Ordering::Relaxed) {
        let slot = usize::try_from(dice.below(u64::from(run.load.keys))).unwrap_or(0);
        let ask = choose(&mut dice, &run.load.mix, slot, id, asked, known[slot]);
        asked += 1;
        let op = run.recorder.invoke(id, member, run.now(), ask.clone());
        let answer = perform(&mut members[member], &ask).await;
        match &answer {
            Answer::Written { revision } => known[slot] = if ask.value().is_some() { *revision } else { 0 },
            Answer::Read { found, .. } => known[slot] = found.as_ref().map_or(0, |(_, at)| *at),
            _ => {}
        }
        let failed = matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. });
        run.recorder.answer(op, run.now(), answer);
        if failed {
            run.env.sleep(dice.between(RETRY / 10, RETRY)).await;
        }
        if !pause.is_zero() {
            run.env.sleep(dice.between(Duration::ZERO, pause * 2)).await;
        }
        // Now and then a client moves anyway, so that every member keeps some.
        if failed || dice.below(200) == 0 {
            member = (member + 1) % members.len();
        }
    }
    Ok(())
}

/// What a client waits on average between two operations, so that all together ask as often as the plan says.
fn pause(load: &KvLoad) -> Duration {
    if load.rate == 0 { Duration::ZERO } else { Duration::from_secs(1) * u32::from(load.clients) / load.rate }
}

fn choose(dice: &mut Dice, mix: &Mix, slot: usize, client: u16, number: u64, known: i64) -> Ask {
    let key = format!("{PREFIX}k{slot}");
    let value = format!("c{client}-{number}");
    let drawn = dice.below(u64::from(mix.get) + u64::from(mix.put) + u64::from(mix.cas) + u64::from(mix.delete));
    let (get, put, cas) = (u64::from(mix.get), u64::from(mix.put), u64::from(mix.cas));
    match drawn {
        n if n < get => Ask::Get { key },
        n if n < get + put => Ask::Put { key, value },
        n if n < get + put + cas => Ask::Cas { key, expect: known, value },
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
