//! kube-apiserver's own requests, in the shapes that it sends: reads, pages and counts; create, update and delete as transactions; watches from
//! the revision of a list; leases on events; the compactor's lock. Demanded of a member of three that does not lead, and of etcd itself.

use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb as pb;
use kontiki_proto::etcd::mvccpb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request;
use pb::response_op::Response;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::cluster::{leader, start_three};
use super::etcd::Etcd;
use super::member::endpoint;

/// Somebody waits for an answer that must come; a busy machine is slow, a hung one is noticed.
const PATIENCE: Duration = Duration::from_secs(30);

/// One API server, at one member.
struct Server {
    channel: Channel,
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn read(key: &str) -> Request {
    Request::RequestRange(pb::RangeRequest { key: key.to_owned().into(), ..Default::default() })
}

fn write(key: &str, value: &str, lease: i64) -> Request {
    Request::RequestPut(pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, ..Default::default() })
}

fn delete(key: &str) -> Request {
    Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() })
}

/// The one condition of all its transactions.
fn at(key: &str, mod_revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    }
}

/// What came of a transaction: the revision of what was written, or what is there instead.
#[derive(Debug, PartialEq)]
enum Came {
    Done(i64),
    Other(Option<mvccpb::KeyValue>),
}

impl Server {
    async fn at(endpoint: &str) -> Self {
        Self { channel: Endpoint::try_from(format!("http://{endpoint}")).unwrap().connect().await.unwrap() }
    }

    async fn range(&self, req: pb::RangeRequest) -> Result<pb::RangeResponse, tonic::Status> {
        Ok(KvClient::new(self.channel.clone()).range(req).await?.into_inner())
    }

    /// A page of a list: the prefix from a key on, at a revision.
    async fn page(&self, from: &str, limit: i64, revision: i64) -> Result<pb::RangeResponse, tonic::Status> {
        let range =
            pb::RangeRequest { key: from.to_owned().into(), range_end: "/registry/pods0".into(), limit, revision, ..Default::default() };
        self.range(range).await
    }

    /// if mod(key) = revision then `then` else get key.
    async fn cas(&self, key: &str, revision: i64, then: Request) -> Came {
        let txn = pb::TxnRequest { compare: vec![at(key, revision)], success: vec![op(then)], failure: vec![op(read(key))] };
        let res = KvClient::new(self.channel.clone()).txn(txn).await.unwrap().into_inner();
        let outer = res.header.unwrap().revision;
        match res.responses.into_iter().next().unwrap().response.unwrap() {
            Response::ResponseRange(range) => Came::Other(range.kvs.into_iter().next()),
            Response::ResponsePut(put) => {
                // Older API servers read the one, newer ones the other.
                assert_eq!(put.header.map(|header| header.revision), Some(outer), "both headers tell the revision");
                Came::Done(outer)
            }
            Response::ResponseDeleteRange(gone) => {
                assert_eq!((gone.deleted, gone.header.map(|header| header.revision)), (1, Some(outer)));
                Came::Done(outer)
            }
            Response::ResponseTxn(_) => panic!("it asked for none"),
        }
    }

    /// A watch of all pods as the watch cache opens it.
    async fn watch(&self, start_revision: i64) -> Watch {
        let (ask, asked) = mpsc::channel(4);
        let create = pb::WatchCreateRequest {
            key: "/registry/pods/".into(),
            range_end: "/registry/pods0".into(),
            start_revision,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        ask.send(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(asked));
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let answers = WatchClient::new(self.channel.clone()).watch(request).await.unwrap().into_inner();
        let mut watch = Watch { ask, answers };
        assert!(watch.next().await.created);
        watch
    }

    async fn grant(&self, ttl: i64) -> i64 {
        LeaseClient::new(self.channel.clone()).lease_grant(pb::LeaseGrantRequest { ttl, id: 0 }).await.unwrap().into_inner().id
    }

    async fn compact(&self, revision: i64) -> Result<(), tonic::Status> {
        KvClient::new(self.channel.clone()).compact(pb::CompactionRequest { revision, physical: false }).await.map(drop)
    }
}

struct Watch {
    ask: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watch {
    async fn next(&mut self) -> pb::WatchResponse {
        tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time").unwrap().expect("the stream goes on")
    }

    /// So many events; each with its revision, and the value before, if there was one.
    async fn events(&mut self, count: usize) -> Vec<(i64, bool, Option<String>)> {
        let mut events = Vec::new();
        while events.len() < count {
            for event in self.next().await.events {
                let before = event.prev_kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap());
                events.push((event.kv.unwrap().mod_revision, event.r#type == mvccpb::event::EventType::Delete as i32, before));
            }
        }
        events
    }

    /// Asks how far the stream is, as a list from the cache does, until that is so far.
    async fn reaches(&mut self, revision: i64) {
        loop {
            let ask = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
            self.ask.send(pb::WatchRequest { request_union: Some(ask) }).await.unwrap();
            let answer = self.next().await;
            assert!(answer.events.is_empty(), "all events were read");
            if answer.watch_id == -1 && answer.header.unwrap().revision >= revision {
                return;
            }
        }
    }
}

/// Objects come, change and go; every answer names the revision under which watchers see it.
async fn objects(server: &Server) {
    let pod = "/registry/pods/default/a";
    let list = server.page("/registry/pods/", 500, 0).await.unwrap();
    let mut watch = server.watch(list.header.unwrap().revision + 1).await;
    let Came::Done(created) = server.cas(pod, 0, write(pod, "1", 0)).await else { panic!("nothing is there") };
    let Came::Other(Some(there)) = server.cas(pod, 0, write(pod, "x", 0)).await else { panic!("it is there") };
    assert_eq!((there.mod_revision, there.create_revision, there.version), (created, created, 1));
    let Came::Done(updated) = server.cas(pod, created, write(pod, "2", 0)).await else { panic!("nobody changed it") };
    let Came::Other(Some(newer)) = server.cas(pod, created, write(pod, "3", 0)).await else { panic!("it has changed") };
    assert_eq!((newer.mod_revision, newer.value), (updated, "2".into()));
    assert!(matches!(server.cas(pod, created, delete(pod)).await, Came::Other(Some(_))), "deleting, too, is conditional");
    let Came::Done(deleted) = server.cas(pod, updated, delete(pod)).await else { panic!("nobody changed it") };
    assert_eq!(server.cas(pod, updated, delete(pod)).await, Came::Other(None));
    let expected = [(created, false, None), (updated, false, Some("1".to_owned())), (deleted, true, Some("2".to_owned()))];
    assert_eq!(watch.events(3).await, expected);

    // A list from the cache: the store's revision, then a watch that says it has come so far.
    let other = "/registry/services/default/b";
    let Came::Done(elsewhere) = server.cas(other, 0, write(other, "1", 0)).await else { panic!("nothing is there") };
    let now = server.page("/registry/pods/", 1, 0).await.unwrap().header.unwrap().revision;
    assert!(now >= elsewhere, "the current revision is that of the whole store");
    watch.reaches(now).await;
}

/// Lists in pages of one revision, whatever is written meanwhile; counts; keys alone.
async fn lists(server: &Server) {
    for n in 0..7 {
        let pod = format!("/registry/pods/list/{n}");
        assert!(matches!(server.cas(&pod, 0, write(&pod, "v", 0)).await, Came::Done(_)));
    }
    let first = server.page("/registry/pods/list/", 3, 0).await.unwrap();
    let revision = first.header.unwrap().revision;
    assert_eq!((first.kvs.len(), first.count, first.more), (3, 7, true), "the count is that of all pages");
    let pod = "/registry/pods/list/5";
    assert!(matches!(server.cas(pod, first.kvs[0].mod_revision + 5, delete(pod)).await, Came::Done(_)));
    let rest = server.page("/registry/pods/list/3", 10, revision).await.unwrap();
    assert_eq!((rest.kvs.len(), rest.more), (4, false), "the page is of the list's revision");
    assert!(rest.header.unwrap().revision > revision, "the header is of now");
    let count = pb::RangeRequest {
        key: "/registry/pods/list/".into(),
        range_end: "/registry/pods/list0".into(),
        count_only: true,
        ..Default::default()
    };
    let counted = server.range(count.clone()).await.unwrap();
    assert_eq!((counted.count, counted.kvs.len()), (6, 0));
    let keys = server.range(pb::RangeRequest { keys_only: true, count_only: false, ..count }).await.unwrap();
    assert!(keys.kvs.len() == 6 && keys.kvs.iter().all(|kv| kv.value.is_empty() && !kv.key.is_empty()));
    for health in ["/registry/health", "health"] {
        assert_eq!(server.range(pb::RangeRequest { key: health.into(), ..Default::default() }).await.unwrap().count, 0);
    }
}

/// Two compactors, of which one wins; then old pages and old watches are told so in the words that make an API server list anew.
async fn compaction(server: &Server) {
    let compact_at = server.page("/registry/pods/", 1, 0).await.unwrap().header.unwrap().revision;
    let lock = |seen: i64| pb::TxnRequest {
        compare: vec![pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Version.into(),
            key: "compact_rev_key".into(),
            target_union: Some(TargetUnion::Version(seen)),
            ..Default::default()
        }],
        success: vec![op(write("compact_rev_key", &compact_at.to_string(), 0))],
        failure: vec![op(read("compact_rev_key"))],
    };
    let mut kv = KvClient::new(server.channel.clone());
    assert!(kv.txn(lock(0)).await.unwrap().into_inner().succeeded);
    let lost = kv.txn(lock(0)).await.unwrap().into_inner();
    let Some(Response::ResponseRange(winner)) = &lost.responses[0].response else { panic!("it reads who won") };
    assert_eq!((lost.succeeded, &winner.kvs[0].value[..], winner.kvs[0].version), (false, compact_at.to_string().as_bytes(), 1));
    server.compact(compact_at).await.unwrap();
    let again = server.compact(compact_at).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"));
    let page = server.page("/registry/pods/", 3, compact_at - 1).await.unwrap_err();
    assert_eq!((page.code(), page.message()), (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"));
    assert!(server.page("/registry/pods/", 3, compact_at).await.is_ok(), "the compact revision itself can be read");
    let mut watch = server.watch(compact_at - 1).await;
    let end = watch.next().await;
    assert_eq!((end.canceled, end.compact_revision, end.events.len()), (true, compact_at, 0));
    let list = server.page("/registry/pods/", 500, 0).await.unwrap();
    let mut watch = server.watch(list.header.unwrap().revision + 1).await;
    let pod = "/registry/pods/after/compaction";
    let Came::Done(revision) = server.cas(pod, 0, write(pod, "1", 0)).await else { panic!("nothing is there") };
    assert_eq!(watch.events(1).await, [(revision, false, None)], "listing anew goes on without a gap");
}

/// Events of Kubernetes hang on leases that nobody keeps alive: all keys of one go at one revision.
async fn leases(server: &Server) {
    let lease = server.grant(2).await;
    let list = server.page("/registry/pods/", 1, 0).await.unwrap();
    let mut watch = server.watch(list.header.unwrap().revision + 1).await;
    for n in 0..3 {
        let key = format!("/registry/pods/leased/{n}");
        assert!(matches!(server.cas(&key, 0, write(&key, "event", lease)).await, Came::Done(_)));
    }
    let events = watch.events(6).await;
    let gone: Vec<_> =
        events.iter().filter(|(_, deleted, _)| *deleted).map(|(revision, _, before)| (*revision, before.as_deref())).collect();
    assert_eq!(gone, vec![(gone[0].0, Some("event")); 3], "in one revision, each with what was there");
    let key = "/registry/pods/leased/9";
    let put = pb::TxnRequest { compare: vec![at(key, 0)], success: vec![op(write(key, "late", lease))], failure: vec![] };
    let late = KvClient::new(server.channel.clone()).txn(put).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::NotFound, "etcdserver: requested lease not found"));
}

async fn everything(endpoint: &str) {
    let server = Server::at(endpoint).await;
    objects(&server).await;
    lists(&server).await;
    compaction(&server).await;
    leases(&server).await;
}

/// Whether lists from the cache are switched on: by the version of every endpoint, read as a number of three parts.
fn has_progress_requests(version: &str) -> bool {
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap_or(u32::MAX)).collect();
    parts.len() == 3 && parts[..] >= [3, 4, 31][..] && !(parts[..] >= [3, 5, 0][..] && parts[..] < [3, 5, 13][..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_is_served_through_a_follower() {
    let dir = tempfile::tempdir().unwrap();
    let stores = start_three(dir.path()).await;
    let follower = (leader(&stores).await + 1) % 3;
    everything(&endpoint(&stores[follower])).await;
    for store in &stores {
        let server = Server::at(&endpoint(store)).await;
        let status = MaintenanceClient::new(server.channel.clone()).status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert!(status.db_size > 0 && has_progress_requests(&status.version), "{}", status.version);
    }
    for store in stores {
        store.shutdown().await;
    }
}

/// What is demanded here of our members is what etcd does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_itself_serves_an_api_server_so() {
    if let Some(etcd) = Etcd::start().await {
        everything(&etcd.endpoint).await;
    }
}
