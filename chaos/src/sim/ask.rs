//! One operation of a client, as messages of etcd's API and back.

use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_proto::etcd::mvccpb;
use pb::compare::{CompareResult, CompareTarget as PbTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use pb::response_op::Response;
use tonic::{Code, Status};

use super::http::Channel;
use crate::history::{Answer, Ask, Compare, CompareOp, CompareTarget, LeaseAsk, RangeAsk, Seen, Step, StepAnswer};

/// An operation that takes longer has an unknown outcome.
pub const LIMIT: Duration = Duration::from_secs(6);

/// Asks, and says what came of it.
pub async fn perform(channel: &Channel, ask: &Ask) -> Answer {
    match tokio::time::timeout(LIMIT, ask_for(channel, ask)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) => failed(ask, &status),
        Err(_) => failed(ask, &Status::deadline_exceeded("the client gave up")),
    }
}

/// What an error says about the outcome. Only codes that a server gives before it proposes, or for a command that it refused as a whole
/// (history that is compacted or does not exist yet, a lease that does not exist), are definite; a broken connection never is.
fn failed(ask: &Ask, status: &Status) -> Answer {
    let why = format!("{:?}: {}", status.code(), status.message());
    let code = status.code();
    let whole = matches!(code, Code::OutOfRange | Code::NotFound) && matches!(ask, Ask::Txn { .. } | Ask::Do(_));
    let definite =
        whole || matches!(code, Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::Unauthenticated);
    if definite || ask.is_read_only() { Answer::Refused { why } } else { Answer::Unknown { why } }
}

async fn ask_for(channel: &Channel, ask: &Ask) -> Result<Answer, Status> {
    let mut kv = KvClient::new(channel.clone());
    match ask {
        Ask::Get { key } => {
            let response = kv.range(range(&RangeAsk { key: key.clone(), ..RangeAsk::default() })).await?.into_inner();
            let found = response.kvs.first().map(|kv| (text(&kv.value), kv.mod_revision));
            Ok(Answer::Read { revision: revision(response.header.as_ref()), found })
        }
        Ask::Put { key, value } => {
            let response = kv.put(put(key, value, 0, false)).await?.into_inner();
            Ok(Answer::Written { revision: revision(response.header.as_ref()) })
        }
        Ask::Delete { key } => {
            let response = kv.delete_range(delete(key, "", false)).await?.into_inner();
            let revision = revision(response.header.as_ref());
            Ok(if response.deleted > 0 { Answer::Written { revision } } else { Answer::NothingDeleted { revision } })
        }
        Ask::Cas { key, expect, value } => {
            let compare = Compare { key: key.clone(), target: CompareTarget::Mod(*expect), op: CompareOp::Equal };
            let step = Step::Put { key: key.clone(), value: value.clone(), lease: 0, prev: false };
            let response = kv.txn(txn(&[compare], &[step], &[])).await?.into_inner();
            let revision = revision(response.header.as_ref());
            Ok(if response.succeeded { Answer::Written { revision } } else { Answer::CompareFailed { revision } })
        }
        Ask::Do(step) => alone(&mut kv, step).await,
        Ask::Txn { compare, success, failure } => {
            let response = kv.txn(txn(compare, success, failure)).await?.into_inner();
            let steps = response.responses.into_iter().filter_map(|op| op.response).filter_map(step_answer).collect();
            Ok(Answer::Txn { revision: revision(response.header.as_ref()), succeeded: response.succeeded, steps })
        }
        Ask::Lease(ask) => lease(channel, ask).await,
        Ask::Compact { revision: at } => {
            let response = kv.compact(pb::CompactionRequest { revision: *at, physical: false }).await?.into_inner();
            Ok(Answer::Compacted { revision: revision(response.header.as_ref()) })
        }
    }
}

async fn alone(kv: &mut KvClient<Channel>, step: &Step) -> Result<Answer, Status> {
    let (header, response) = match step {
        Step::Put { key, value, lease, prev } => {
            let response = kv.put(put(key, value, *lease, *prev)).await?.into_inner();
            (response.header, Response::ResponsePut(response))
        }
        Step::Range(ask) => {
            let response = kv.range(range(ask)).await?.into_inner();
            (response.header, Response::ResponseRange(response))
        }
        Step::Delete { key, end, prev } => {
            let response = kv.delete_range(delete(key, end, *prev)).await?.into_inner();
            (response.header, Response::ResponseDeleteRange(response))
        }
    };
    let step = step_answer(response).ok_or_else(|| Status::internal("an answer to another question"))?;
    Ok(Answer::Did { revision: revision(header.as_ref()), step })
}

async fn lease(channel: &Channel, ask: &LeaseAsk) -> Result<Answer, Status> {
    let mut client = LeaseClient::new(channel.clone());
    let (header, ttl) = match *ask {
        LeaseAsk::Grant { id, ttl } => {
            let response = client.lease_grant(pb::LeaseGrantRequest { id, ttl }).await?.into_inner();
            (response.header, response.ttl)
        }
        LeaseAsk::Revoke { id } => {
            let response = client.lease_revoke(pb::LeaseRevokeRequest { id }).await?.into_inner();
            (response.header, 0)
        }
        LeaseAsk::Remaining { id } => {
            let request = pb::LeaseTimeToLiveRequest { id, ..pb::LeaseTimeToLiveRequest::default() };
            let response = client.lease_time_to_live(request).await?.into_inner();
            (response.header, response.ttl)
        }
        LeaseAsk::KeepAlive { id } => {
            // The stream stays open until its answer is there, as a client's does.
            let requests = futures::StreamExt::chain(futures::stream::iter([pb::LeaseKeepAliveRequest { id }]), futures::stream::pending());
            let mut answers = client.lease_keep_alive(requests).await?.into_inner();
            let response = answers.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
            (response.header, response.ttl)
        }
    };
    Ok(Answer::Lease { revision: revision(header.as_ref()), ttl })
}

/// The revision of a header.
pub fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |h| h.revision)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A key as an answer shows it.
pub fn seen(kv: &mvccpb::KeyValue) -> Seen {
    Seen {
        key: text(&kv.key),
        value: text(&kv.value),
        create: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn put(key: &str, value: &str, lease: i64, prev_kv: bool) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, prev_kv, ..pb::PutRequest::default() }
}

fn delete(key: &str, end: &str, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv }
}

/// A range as a request.
pub fn range(ask: &RangeAsk) -> pb::RangeRequest {
    pb::RangeRequest {
        key: ask.key.clone().into(),
        range_end: ask.end.clone().into(),
        revision: ask.at,
        limit: ask.limit,
        serializable: ask.serializable,
        count_only: ask.count_only,
        keys_only: ask.keys_only,
        ..pb::RangeRequest::default()
    }
}

fn txn(compare: &[Compare], success: &[Step], failure: &[Step]) -> pb::TxnRequest {
    let steps = |steps: &[Step]| steps.iter().map(|step| pb::RequestOp { request: Some(request(step)) }).collect();
    pb::TxnRequest { compare: compare.iter().map(condition).collect(), success: steps(success), failure: steps(failure) }
}

fn request(step: &Step) -> Request {
    match step {
        Step::Put { key, value, lease, prev } => Request::RequestPut(put(key, value, *lease, *prev)),
        Step::Range(ask) => Request::RequestRange(range(ask)),
        Step::Delete { key, end, prev } => Request::RequestDeleteRange(delete(key, end, *prev)),
    }
}

fn condition(compare: &Compare) -> pb::Compare {
    let (target, union) = match &compare.target {
        CompareTarget::Version(n) => (PbTarget::Version, TargetUnion::Version(*n)),
        CompareTarget::Create(n) => (PbTarget::Create, TargetUnion::CreateRevision(*n)),
        CompareTarget::Mod(n) => (PbTarget::Mod, TargetUnion::ModRevision(*n)),
        CompareTarget::Value(value) => (PbTarget::Value, TargetUnion::Value(value.clone().into())),
        CompareTarget::Lease(n) => (PbTarget::Lease, TargetUnion::Lease(*n)),
    };
    let result = match compare.op {
        CompareOp::Equal => CompareResult::Equal,
        CompareOp::Greater => CompareResult::Greater,
        CompareOp::Less => CompareResult::Less,
        CompareOp::NotEqual => CompareResult::NotEqual,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: compare.key.clone().into(),
        target_union: Some(union),
        ..pb::Compare::default()
    }
}

fn step_answer(response: Response) -> Option<StepAnswer> {
    match response {
        Response::ResponsePut(put) => Some(StepAnswer::Put { prev: put.prev_kv.as_ref().map(seen) }),
        Response::ResponseRange(range) => {
            Some(StepAnswer::Range { kvs: range.kvs.iter().map(seen).collect(), more: range.more, count: range.count })
        }
        Response::ResponseDeleteRange(delete) => {
            Some(StepAnswer::Delete { deleted: delete.deleted, prevs: delete.prev_kvs.iter().map(seen).collect() })
        }
        Response::ResponseTxn(_) => None,
    }
}
