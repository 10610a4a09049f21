//! A store whose watch streams break and whose history goes away: the caches go on, and no watcher sees a hole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kontiki_base::kv::{Kv, KvError, KvStatus, RangeReq, RangeRes, Txn, TxnRes, WatchMsg, WatchReq, WatchStream};
use kontiki_base::{BoxFuture, Revision, Term};
use kontiki_mvcc::LocalKv;
use serde_json::{Value, json};

use crate::common::{Pki, Server, config, rv};

/// A store that ends every watch stream after a few messages, and can refuse to resume.
struct Flaky {
    kv: LocalKv,
    streams: AtomicUsize,
    forgets: AtomicBool,
}

struct Breaks {
    inner: Box<dyn WatchStream>,
    left: usize,
}

impl WatchStream for Breaks {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<WatchMsg, KvError>>> {
        if self.left == 0 {
            return Box::pin(std::future::ready(Some(Err(KvError::Unavailable("the stream broke".into())))));
        }
        self.left -= 1;
        self.inner.next()
    }
}

impl Kv for Flaky {
    fn range(&self, req: RangeReq) -> BoxFuture<'_, Result<RangeRes, KvError>> {
        self.kv.range(req)
    }

    fn txn(&self, txn: Txn, fence: Option<Term>) -> BoxFuture<'_, Result<TxnRes, KvError>> {
        self.kv.txn(txn, fence)
    }

    fn watch(&self, req: WatchReq) -> BoxFuture<'_, Result<Box<dyn WatchStream>, KvError>> {
        Box::pin(async move {
            self.streams.fetch_add(1, Ordering::SeqCst);
            if req.from > Revision::ZERO && self.forgets.swap(false, Ordering::SeqCst) {
                return Err(KvError::Compacted { compact: req.from.next() });
            }
            let inner = self.kv.watch(req).await?;
            Ok(Box::new(Breaks { inner, left: 5 }) as Box<dyn WatchStream>)
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        self.kv.compact(revision)
    }

    fn status(&self) -> KvStatus {
        self.kv.status()
    }

    fn status_changed(&self, seen: KvStatus) -> BoxFuture<'_, ()> {
        self.kv.status_changed(seen)
    }
}

const CM: &str = "/api/v1/namespaces/default/configmaps";

async fn start() -> (Server, Arc<Flaky>) {
    let (pki, kv) = (Pki::new(), LocalKv::new());
    let flaky = Arc::new(Flaky { kv: kv.clone(), streams: AtomicUsize::new(0), forgets: AtomicBool::new(false) });
    let mut config = config(&pki, &kv);
    config.kv = flaky.clone();
    (Server::start_with(pki, kv, config).await, flaky)
}

#[tokio::test]
async fn a_broken_stream_is_resumed_without_a_hole() {
    let (s, flaky) = start().await;
    let (_, list) = s.get(CM).await;
    let mut watch = s.watch(&format!("{CM}?watch=1&resourceVersion={}", rv(&list))).await;
    let (mut made, mut seen) = (Vec::new(), Vec::new());
    for i in 0..30 {
        let (code, object) = s.post(CM, &json!({"metadata": {"name": format!("c{i:02}")}})).await;
        assert_eq!(code, 201);
        made.push(("ADDED".to_owned(), format!("c{i:02}"), rv(&object)));
        // Two by two: some writes meet a stream that is broken, and no stream gets all of them in one message.
        if i % 2 == 1 {
            seen.push(watch.event().await);
            seen.push(watch.event().await);
        }
    }
    assert_eq!(seen, made);
    assert!(flaky.streams.load(Ordering::SeqCst) > 2, "streams did break");
    let (_, list) = s.get(CM).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 30);
}

#[tokio::test]
async fn lost_history_ends_watches_and_lists_stay_right() {
    let (s, flaky) = start().await;
    let (_, list) = s.get(CM).await;
    let mut watch = s.watch(&format!("{CM}?watch=1&resourceVersion={}", rv(&list))).await;
    flaky.forgets.store(true, Ordering::SeqCst);
    for i in 0..12 {
        assert_eq!(s.post(CM, &json!({"metadata": {"name": format!("c{i:02}")}})).await.0, 201);
    }
    while watch.next().await.is_some() {}
    assert!(!flaky.forgets.load(Ordering::SeqCst), "history was asked for, and was gone");
    s.delete(&format!("{CM}/c03"), &Value::Null).await;
    let (_, list) = s.get(CM).await;
    let names: Vec<&str> = list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), names.contains(&"c03")), (11, false));
    let mut again = s.watch(&format!("{CM}?watch=1&resourceVersion={}", rv(&list))).await;
    s.post(CM, &json!({"metadata": {"name": "late"}})).await;
    assert_eq!(again.event().await.1, "late");
}
