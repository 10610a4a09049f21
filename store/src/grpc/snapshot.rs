//! `Maintenance.Snapshot`: the state as a stream of parts, as fast as the client takes them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kontiki_base::env::Env;
use kontiki_base::limits;
use kontiki_proto::etcd::etcdserverpb as pb;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Api;
use crate::read::Workers;
use crate::snapshot::export::Source;
use crate::snapshot::records::STORAGE_VERSION;
use crate::snapshot::{BoltError, SnapshotError};

/// What the client is sent.
pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

/// A client that takes nothing for so long is given up: what it holds keeps deleted data on the disk.
const STALLED: Duration = Duration::from_secs(120);

/// Snapshots of all members of this process that are under way.
static UNDER_WAY: Semaphore = Semaphore::const_new(limits::SNAPSHOTS_AT_ONCE);

impl Api {
    /// A snapshot of this member's state. It holds everything that was acknowledged before the call if there is a quorum, and what
    /// this member knows if there is none: that is when a snapshot is needed most.
    pub(super) async fn snapshot_parts(&self) -> Result<Parts, Status> {
        let permit = UNDER_WAY.try_acquire().map_err(|_| Status::resource_exhausted("kontiki: too many snapshots at once"))?;
        if let Err(error) = self.service.reader.barrier().await {
            tracing::warn!(%error, "a snapshot is taken of what this member has");
        }
        let source = Source { view: self.service.reader.view(), members: self.service.raft().members };
        let header = self.header_now();
        let wrap = move |remaining: u64, blob: Bytes| pb::SnapshotResponse {
            header,
            remaining_bytes: remaining,
            blob,
            version: STORAGE_VERSION.into(),
        };
        if matches!(self.service.reader.workers(), Workers::Inline) {
            let mut parts = Vec::new();
            give(&source, |remaining, blob| {
                parts.push(Ok(wrap(remaining, blob)));
                Ok(())
            })
            .map_err(|e| failed(&e))?;
            return Ok(futures::stream::iter(parts).boxed());
        }
        let (parts, queue) = mpsc::channel(limits::SNAPSHOT_PARTS_QUEUED);
        let env = Arc::clone(&self.service.env);
        let runtime = tokio::runtime::Handle::current();
        drop(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let given = give(&source, |remaining, blob| runtime.block_on(hand_over(&parts, &*env, wrap(remaining, blob))));
            // A client that has gone does not want to hear of it.
            if let Err(error) = given
                && !parts.is_closed()
            {
                tracing::warn!(%error, "a snapshot was not finished");
                drop(parts.blocking_send(Err(failed(&error))));
            }
        }));
        Ok(ReceiverStream::new(queue).boxed())
    }
}

/// Waits until the client has room for a part.
async fn hand_over(
    parts: &mpsc::Sender<Result<pb::SnapshotResponse, Status>>,
    env: &dyn Env,
    part: pb::SnapshotResponse,
) -> io::Result<()> {
    tokio::select! {
        biased;
        sent = parts.send(Ok(part)) => sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone")),
        () = env.sleep(STALLED) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client took nothing for too long")),
    }
}

/// Gives all parts, each with the bytes that are left after it; the hash is not counted.
fn give(source: &Source, mut part: impl FnMut(u64, Bytes) -> io::Result<()>) -> Result<(), SnapshotError> {
    let layout = source.layout()?;
    let mut left = layout.bytes();
    source.write(layout, |blob| {
        left = left.saturating_sub(blob.len() as u64);
        part(left, blob)
    })
}

fn failed(error: &SnapshotError) -> Status {
    match error {
        SnapshotError::Bolt(BoltError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
            Status::deadline_exceeded(error.to_string())
        }
        other => Status::internal(format!("kontiki: snapshot: {other}")),
    }
}
