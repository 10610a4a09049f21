//! Beside etcd itself: the same requests to both, and the same answers demanded of both, message for message and text for text.

use bytes::Bytes;
use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_proto::etcd::mvccpb;
use pb::compare::{CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use pb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::etcd::Etcd;
use super::member::{endpoint, start};

/// A small generator with a seed that a failure prints.
struct Mix(u64);

impl Mix {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, from: &[T]) -> T {
        let place = usize::try_from(self.below(u64::try_from(from.len()).unwrap())).unwrap();
        from[place].clone()
    }
}

/// One request of any kind.
#[derive(Clone, Debug)]
enum Ask {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
}

/// What came of it, without what must differ: ids, terms, remaining seconds.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(i64),
    Grant(i64, i64),
    Revoke(i64),
    TimeToLive(i64, bool, Vec<Bytes>),
    Failed(Code, String),
}

const KEYS: &[&str] = &["a", "aa", "ab", "b", "ba", "c", "\0"];
const ENDS: &[&str] = &["", "", "", "b", "c", "\0", "a", "d"];
const LEASES: &[i64] = &[11, 12, 13];

fn bytes(text: &str) -> Bytes {
    text.to_owned().into()
}

/// What the requests may refer to.
struct World {
    mix: Mix,
    revision: i64,
}

impl World {
    fn key(&mut self) -> Bytes {
        if self.mix.one_in(40) { Bytes::new() } else { bytes(self.mix.of(KEYS)) }
    }

    /// Near the present, sometimes beyond it.
    fn near(&mut self) -> i64 {
        self.revision - 12 + i64::try_from(self.mix.below(15)).unwrap()
    }

    fn range(&mut self, in_txn: bool) -> pb::RangeRequest {
        let mut req = pb::RangeRequest { key: self.key(), range_end: bytes(self.mix.of(ENDS)), ..Default::default() };
        req.limit = self.mix.of(&[0, 0, 0, 1, 2, 5, -1]);
        if self.mix.one_in(3) {
            // A negative revision means different things to etcd's releases within a transaction.
            req.revision = if in_txn { self.near().max(0) } else { self.near() };
        }
        req.sort_order = self.mix.of(&[0, 0, 1, 2]);
        req.sort_target = self.mix.of(&[0, 0, 1, 2, 3, 4]);
        if req.sort_order == 0 && req.sort_target != 0 {
            // Without an order, etcd cuts to the limit first and sorts what is left: an accident that we do not repeat.
            req.limit = 0;
        }
        req.serializable = self.mix.one_in(4);
        req.count_only = self.mix.one_in(8);
        req.keys_only = self.mix.one_in(8);
        for bound in [&mut req.min_mod_revision, &mut req.max_mod_revision, &mut req.min_create_revision, &mut req.max_create_revision] {
            if self.mix.one_in(12) {
                *bound = self.revision - i64::try_from(self.mix.below(8)).unwrap();
            }
        }
        req
    }

    fn put(&mut self) -> pb::PutRequest {
        let mut req = pb::PutRequest { key: self.key(), value: bytes(&self.mix.below(50).to_string()), ..Default::default() };
        if self.mix.one_in(4) {
            req.lease = self.mix.of(LEASES);
        }
        req.prev_kv = self.mix.one_in(3);
        if self.mix.one_in(8) {
            req.ignore_value = true;
            if !self.mix.one_in(6) {
                req.value = Bytes::new();
            }
        }
        if self.mix.one_in(8) {
            req.ignore_lease = true;
            if !self.mix.one_in(6) {
                req.lease = 0;
            }
        }
        req
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let range_end = if self.mix.one_in(2) { Bytes::new() } else { bytes(self.mix.of(ENDS)) };
        pb::DeleteRangeRequest { key: self.key(), range_end, prev_kv: self.mix.one_in(2) }
    }

    fn compare(&mut self) -> pb::Compare {
        let key = self.key();
        let near = self.near();
        let (target, union) = match self.mix.below(6) {
            0 => (CompareTarget::Version, TargetUnion::Version(i64::try_from(self.mix.below(3)).unwrap())),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(self.mix.of(&[0, near]))),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(self.mix.of(&[0, near]))),
            3 => (CompareTarget::Value, TargetUnion::Value(bytes(&self.mix.below(50).to_string()))),
            4 => (CompareTarget::Lease, TargetUnion::Lease(self.mix.of(&[0, 11, 12]))),
            // The operand of another target.
            _ => (CompareTarget::Value, TargetUnion::Version(1)),
        };
        let range_end = if self.mix.one_in(4) { bytes(self.mix.of(ENDS)) } else { Bytes::new() };
        let result = self.mix.of(&[0, 0, 1, 2, 3, 9]);
        let target = if self.mix.one_in(20) { 9 } else { target.into() };
        pb::Compare { result, target, key, range_end, target_union: Some(union) }
    }

    fn ops(&mut self, depth: u32) -> Vec<pb::RequestOp> {
        (0..self.mix.below(4))
            .map(|_| {
                let request = match self.mix.below(if depth == 0 { 9 } else { 8 }) {
                    0..=2 => Request::RequestRange(self.range(true)),
                    3..=5 => Request::RequestPut(self.put()),
                    6 | 7 => Request::RequestDeleteRange(self.delete()),
                    _ => Request::RequestTxn(self.txn(depth + 1)),
                };
                pb::RequestOp { request: (!self.mix.one_in(60)).then_some(request) }
            })
            .collect()
    }

    fn txn(&mut self, depth: u32) -> pb::TxnRequest {
        let compare = (0..self.mix.below(3)).map(|_| self.compare()).collect();
        pb::TxnRequest { compare, success: self.ops(depth), failure: self.ops(depth) }
    }

    fn ask(&mut self) -> Ask {
        match self.mix.below(40) {
            0..=11 => Ask::Range(self.range(false)),
            12..=19 => Ask::Put(self.put()),
            20..=23 => Ask::Delete(self.delete()),
            24..=34 => Ask::Txn(self.txn(0)),
            35 => Ask::Compact(pb::CompactionRequest { revision: self.near().max(0), physical: true }),
            36 | 37 => Ask::Grant(pb::LeaseGrantRequest { ttl: self.mix.of(&[1000, 500, 9_000_000_001]), id: self.mix.of(LEASES) }),
            38 => Ask::Revoke(pb::LeaseRevokeRequest { id: self.mix.of(LEASES) }),
            _ => Ask::TimeToLive(pb::LeaseTimeToLiveRequest { id: self.mix.of(LEASES), keys: true }),
        }
    }
}

struct Side {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
}

fn only_revision(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
    }
}

impl Side {
    async fn connect(endpoint: &str) -> Self {
        let channel = Endpoint::try_from(format!("http://{endpoint}")).unwrap().connect().await.unwrap();
        Self { kv: KvClient::new(channel.clone()), lease: LeaseClient::new(channel.clone()), watch: WatchClient::new(channel) }
    }

    async fn answer(&mut self, ask: Ask) -> Answer {
        self.try_answer(ask).await.unwrap_or_else(|status| Answer::Failed(status.code(), status.message().to_owned()))
    }

    async fn try_answer(&mut self, ask: Ask) -> Result<Answer, Status> {
        let revision = |header: Option<pb::ResponseHeader>| header.map_or(-1, |h| h.revision);
        Ok(match ask {
            Ask::Range(req) => {
                let mut res = self.kv.range(req).await?.into_inner();
                only_revision(&mut res.header);
                Answer::Range(res)
            }
            Ask::Put(req) => {
                let mut res = self.kv.put(req).await?.into_inner();
                only_revision(&mut res.header);
                Answer::Put(res)
            }
            Ask::Delete(req) => {
                let mut res = self.kv.delete_range(req).await?.into_inner();
                only_revision(&mut res.header);
                Answer::Delete(res)
            }
            Ask::Txn(req) => {
                let mut res = self.kv.txn(req).await?.into_inner();
                only_revision(&mut res.header);
                Answer::Txn(res)
            }
            Ask::Compact(req) => Answer::Compact(revision(self.kv.compact(req).await?.into_inner().header)),
            Ask::Grant(req) => {
                let res = self.lease.lease_grant(req).await?.into_inner();
                Answer::Grant(res.id, res.ttl)
            }
            Ask::Revoke(req) => Answer::Revoke(revision(self.lease.lease_revoke(req).await?.into_inner().header)),
            Ask::TimeToLive(req) => {
                let mut res = self.lease.lease_time_to_live(req).await?.into_inner();
                res.keys.sort();
                Answer::TimeToLive(res.granted_ttl, res.ttl >= 0, res.keys)
            }
        })
    }

    /// All events of the whole keyspace between two revisions.
    async fn history(&mut self, from: i64, until: i64) -> Vec<mvccpb::Event> {
        let create =
            pb::WatchCreateRequest { key: bytes("\0"), range_end: bytes("\0"), start_revision: from, prev_kv: true, ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        tx.send(request).await.unwrap();
        let mut stream = self.watch.watch(tokio_stream::wrappers::ReceiverStream::new(rx)).await.unwrap().into_inner();
        let mut events: Vec<mvccpb::Event> = Vec::new();
        while events.last().and_then(|e| e.kv.as_ref()).is_none_or(|kv| kv.mod_revision < until) {
            let next = tokio::time::timeout(std::time::Duration::from_secs(10), stream.message()).await;
            let message = next.expect("events in time").unwrap().expect("the stream goes on");
            assert!(!message.canceled, "{message:?}");
            events.extend(message.events);
        }
        events
    }
}

/// etcd 3.4 and 3.5 look through a transaction twice, for bad puts and then for bad revisions; later ones, and we, look through it once. With
/// two errors in one transaction, the first of the one is not the first of the other. Nothing is written either way.
fn in_another_order(ask: &Ask, etcd: &Answer, ours: &Answer) -> bool {
    let bad_put = |text: &str| text.ends_with("lease not found") || text.ends_with("key not found");
    match (ask, etcd, ours) {
        (Ask::Txn(_), Answer::Failed(_, theirs), Answer::Failed(_, ours)) => bad_put(theirs) && ours.contains("required revision"),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_requests_have_the_same_answers() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path()).await;
    let mut theirs = Side::connect(&etcd.endpoint).await;
    let mut ours = Side::connect(&endpoint(&store)).await;
    let mut world = World { mix: Mix(20_260_101), revision: 1 };
    let mut compacted = 1;
    for round in 0..6_000 {
        let ask = world.ask();
        let expected = theirs.answer(ask.clone()).await;
        let given = ours.answer(ask.clone()).await;
        let same = given == expected || in_another_order(&ask, &expected, &given);
        assert!(same, "request {round}: {ask:#?}\netcd: {expected:#?}\nours: {given:#?}");
        match (&ask, &given) {
            (Ask::Compact(req), Answer::Compact(_)) => compacted = req.revision.max(1),
            (_, Answer::Range(pb::RangeResponse { header: Some(h), .. }) | Answer::Txn(pb::TxnResponse { header: Some(h), .. })) => {
                world.revision = h.revision;
            }
            _ => {}
        }
    }
    let last = pb::PutRequest { key: bytes("last"), ..Default::default() };
    let expected = theirs.answer(Ask::Put(last.clone())).await;
    assert_eq!(ours.answer(Ask::Put(last)).await, expected);
    let Answer::Put(put) = expected else { panic!("a put") };
    let until = put.header.unwrap().revision;
    assert!(until > 500, "the requests did write");
    let history = ours.history(compacted, until).await;
    assert_eq!(history, theirs.history(compacted, until).await, "what the watchers of both see");
    store.shutdown().await;
}
