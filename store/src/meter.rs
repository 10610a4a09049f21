//! Disks, engines and networks that are measured as they are used.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::env::Env;
use kontiki_base::ids::{LogPos, MemberId};
use kontiki_base::net::{Halves, NetError, PeerNet, PeerReceiver, PeerRpc, PeerSender, PeerStream};
use kontiki_mvcc::Batch;

use crate::engine::{AppliedMark, BoxView, Engine, EngineError};
use crate::log::{LogDisk, LogFile};
use crate::metrics::{From, Metrics, To};

/// What measures: a clock, and where it goes.
#[derive(Clone)]
pub struct Meter {
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
}

impl Meter {
    /// A meter with this clock.
    pub fn new(env: Arc<dyn Env>, metrics: Arc<Metrics>) -> Self {
        Self { env, metrics }
    }

    /// The disk, its syncs measured.
    pub fn disk(&self, inner: Arc<dyn LogDisk>) -> Arc<dyn LogDisk> {
        Arc::new(Metered { inner, meter: self.clone() })
    }

    /// The engine, its commits measured.
    pub fn engine(&self, inner: Arc<dyn Engine>) -> Arc<dyn Engine> {
        Arc::new(Metered { inner, meter: self.clone() })
    }

    /// The network, its bytes and round trips measured.
    pub fn net(&self, inner: Arc<dyn PeerNet>) -> Arc<dyn PeerNet> {
        Arc::new(Metered { inner, meter: self.clone() })
    }

    /// A stream of another member, measured.
    pub(crate) fn stream(&self, to: MemberId, inner: Box<dyn PeerStream>) -> Box<dyn PeerStream> {
        let (sender, receiver) = inner.split();
        let sender = Half { to, meter: self.clone(), inner: sender };
        Box::new(Halves { sender, receiver: Half { to, meter: self.clone(), inner: receiver } })
    }

    /// Counts what another member has sent without being asked.
    pub(crate) fn heard(&self, from: MemberId, bytes: usize) {
        self.metrics.peer_received.get_or_create(&From(from.get())).inc_by(long(bytes));
    }

    fn told(&self, to: MemberId, bytes: usize) {
        self.metrics.peer_sent.get_or_create(&To(to.get())).inc_by(long(bytes));
    }

    fn failed(&self, to: MemberId) {
        self.metrics.peer_failures.get_or_create(&To(to.get())).inc();
    }
}

fn long(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

struct Metered<T: ?Sized> {
    meter: Meter,
    inner: Arc<T>,
}

impl LogDisk for Metered<dyn LogDisk> {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.inner.create(name, len)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let inner = self.inner.open(name)?;
        Ok(Arc::new(Metered { inner, meter: self.meter.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
}

impl LogFile for Metered<dyn LogFile> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, data)
    }

    fn sync(&self) -> io::Result<()> {
        let begun = self.meter.env.now_mono();
        let synced = self.inner.sync();
        self.meter.metrics.fsync.observe(self.meter.env.now_mono().since(begun).as_secs_f64());
        synced
    }
}

impl Engine for Metered<dyn Engine> {
    fn snapshot(&self) -> BoxView {
        self.inner.snapshot()
    }

    fn commit(&self, batch: Batch, applied: AppliedMark) -> Result<(), EngineError> {
        let begun = self.meter.env.now_mono();
        let committed = self.inner.commit(batch, applied);
        self.meter.metrics.commit.observe(self.meter.env.now_mono().since(begun).as_secs_f64());
        committed
    }

    fn applied(&self) -> AppliedMark {
        self.inner.applied()
    }

    fn flushed(&self) -> LogPos {
        self.inner.flushed()
    }

    fn flush(&self) -> Result<LogPos, EngineError> {
        self.inner.flush()
    }

    fn checkpoint(&self, dir: &Path) -> Result<AppliedMark, EngineError> {
        self.inner.checkpoint(dir)
    }

    fn replace_from(&self, dir: &Path) -> Result<AppliedMark, EngineError> {
        self.inner.replace_from(dir)
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn reclaim(&self) -> Result<(), EngineError> {
        self.inner.reclaim()
    }
}

impl PeerNet for Metered<dyn PeerNet> {
    fn call(&self, to: MemberId, addr: &str, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, NetError>> {
        let (meter, begun, sent) = (self.meter.clone(), self.meter.env.now_mono(), body.len());
        let calling = self.inner.call(to, addr, rpc, body);
        Box::pin(async move {
            let answer = calling.await;
            match &answer {
                Ok(body) => {
                    meter.told(to, sent);
                    meter.heard(to, body.len());
                    if rpc == PeerRpc::Heartbeat {
                        let took = meter.env.now_mono().since(begun).as_secs_f64();
                        meter.metrics.round_trip.get_or_create(&To(to.get())).observe(took);
                    }
                }
                // It got through, and the other member does not want it.
                Err(NetError::Refused { .. }) => meter.told(to, sent),
                Err(_) => {
                    meter.failed(to);
                    if rpc == PeerRpc::Heartbeat {
                        meter.metrics.heartbeat_failures.inc();
                    }
                }
            }
            answer
        })
    }

    fn open(&self, to: MemberId, addr: &str, rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>> {
        let (meter, opening) = (self.meter.clone(), self.inner.open(to, addr, rpc));
        Box::pin(async move {
            match opening.await {
                Ok(inner) => Ok(meter.stream(to, inner)),
                Err(error) => {
                    meter.failed(to);
                    Err(error)
                }
            }
        })
    }
}

/// Half of a measured stream.
struct Half<T: ?Sized> {
    to: MemberId,
    meter: Meter,
    inner: Box<T>,
}

impl PeerSender for Half<dyn PeerSender> {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        Box::pin(async move {
            let bytes = body.len();
            let sent = self.inner.send(body).await;
            if sent.is_ok() {
                self.meter.told(self.to, bytes);
            } else {
                self.meter.failed(self.to);
            }
            sent
        })
    }
}

impl PeerReceiver for Half<dyn PeerReceiver> {
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        Box::pin(async move {
            let message = self.inner.recv().await;
            if let Some(Ok(body)) = &message {
                self.meter.heard(self.to, body.len());
            }
            message
        })
    }
}
