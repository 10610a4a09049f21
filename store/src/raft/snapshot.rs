//! Snapshots between members: the files of an engine's checkpoint, in chunks.
//!
//! The sender says what comes (its vote, which state, which files), then sends every file in order in checksummed chunks; the receiver
//! answers once, when the state is installed. A transfer that breaks is started again from the beginning with a newer state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::ids::MemberId;
use kontiki_base::limits;
use kontiki_base::net::{NetError, PeerRpc, PeerStream};
use openraft::errors::{NetworkError, StreamingError};
use openraft::raft::SnapshotResponse;
use openraft::storage::SnapshotMeta as Meta;

use super::machine::{Snapshot, SnapshotData, blocking, membership_of};
use super::network::{Network, rpc_error, within};
use super::types::{self, SnapshotMeta, TypeConfig, Vote};
use super::wire;
use crate::engine::Engine;

type C = TypeConfig;

/// How long the receiver may take to install what it has received.
const INSTALL_PATIENCE: Duration = Duration::from_secs(120);

struct Offer {
    vote: Vote,
    meta: SnapshotMeta,
    files: Vec<(String, u64)>,
}

impl Offer {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        wire::put_vote(&mut out, &self.vote);
        wire::put_meta(&mut out, &self.meta);
        out.put_u32(u32::try_from(self.files.len()).expect("a checkpoint has fewer than 2^32 files"));
        for (name, size) in &self.files {
            wire::put_bytes(&mut out, name.as_bytes());
            out.put_u64(*size);
        }
        out.freeze()
    }

    fn get(from: &mut Bytes) -> Option<Self> {
        let (vote, meta) = (wire::get_vote(from)?, wire::get_meta(from)?);
        let count = from.try_get_u32().ok()?;
        let mut files = Vec::new();
        for _ in 0..count {
            let (name, size) = (wire::get_string(from)?, wire::get_u64(from)?);
            files.push((name, size));
        }
        Some(Self { vote, meta, files })
    }
}

/// Removes a directory when it is no longer needed, whatever happens.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!(dir = %self.0.display(), %error, "a snapshot's directory was not removed; the next start does it");
        }
    }
}

/// Sends the engine's state as of now to a member, and waits until it is installed there.
pub(super) async fn send(
    network: &Network,
    to: MemberId,
    addr: &str,
    vote: Vote,
    engine: Arc<dyn Engine>,
) -> Result<SnapshotResponse<C>, StreamingError<C>> {
    let (scratch, offer) = prepare(network, vote, engine).await?;
    tracing::info!(%to, at = ?offer.meta.last_log_id, files = offer.files.len(), "sending a snapshot");
    let mut stream = network.net.open(to, addr, PeerRpc::Snapshot).await.map_err(|e| broken(&e))?;
    stream.send(offer.encode()).await.map_err(|e| broken(&e))?;
    for (name, size) in &offer.files {
        send_file(network, &mut *stream, scratch.0.join(name), *size).await?;
    }
    let reply = within(&*network.env, INSTALL_PATIENCE, stream.recv()).await;
    match reply.unwrap_or(Some(Err(NetError::Timeout { to }))) {
        Some(Ok(body)) => {
            let vote = wire::decode(body, wire::get_vote).map_err(|why| StreamingError::from(NetworkError::from_string(why)))?;
            Ok(SnapshotResponse::new(vote))
        }
        Some(Err(error)) => Err(broken(&error)),
        None => Err(NetworkError::from_string("the peer ended the snapshot stream without an answer").into()),
    }
}

/// Makes a checkpoint, and says what is in it.
async fn prepare(network: &Network, vote: Vote, engine: Arc<dyn Engine>) -> Result<(Arc<Scratch>, Offer), StreamingError<C>> {
    let scratch = Arc::new(Scratch(network.scratch.join(format!("out-{:016x}", network.env.random_u64()))));
    let dir = scratch.clone();
    let made = blocking(network.inline, move || engine.checkpoint(&dir.0).map_err(|e| e.to_string())).await;
    let local = |why: String| StreamingError::from(NetworkError::from_string(format!("cannot make a checkpoint: {why}")));
    let mark = made.map_err(|e| local(e.to_string()))?.map_err(local)?;
    let meta = Meta { last_log_id: types::log_id(mark.pos), last_membership: membership_of(&mark).map_err(|e| local(e.to_string()))? };
    let files = list(&scratch.0).map_err(|e| local(e.to_string()))?;
    Ok((scratch, Offer { vote, meta, files }))
}

/// Sends the state as of now on a stream that the receiver has opened. It ends with the stream; consensus is not concerned.
pub(super) async fn send_state(network: &Network, stream: &mut dyn PeerStream, engine: Arc<dyn Engine>) -> Result<(), String> {
    let (scratch, offer) = prepare(network, Vote::new(0, network.me.get()), engine).await.map_err(|e| e.to_string())?;
    tracing::info!(at = ?offer.meta.last_log_id, files = offer.files.len(), "sending the state to a member that is rebuilt");
    stream.send(offer.encode()).await.map_err(|e| e.to_string())?;
    for (name, size) in &offer.files {
        send_file(network, stream, scratch.0.join(name), *size).await.map_err(|e| e.to_string())?;
    }
    // The receiver ends the stream when it has everything: leaving before would break it under what is still on its way.
    drop(within(&*network.env, INSTALL_PATIENCE, stream.recv()).await);
    Ok(())
}

fn broken(error: &NetError) -> StreamingError<C> {
    rpc_error(error).into()
}

fn list(dir: &Path) -> std::io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| std::io::Error::other("a file of the checkpoint has no name in UTF-8"))?;
        files.push((name, entry.metadata()?.len()));
    }
    files.sort();
    Ok(files)
}

async fn send_file(network: &Network, stream: &mut dyn PeerStream, path: PathBuf, size: u64) -> Result<(), StreamingError<C>> {
    use std::os::unix::fs::FileExt as _;
    let local = |e: std::io::Error| StreamingError::from(NetworkError::from_string(format!("cannot read a checkpoint: {e}")));
    let file = Arc::new(std::fs::File::open(path).map_err(local)?);
    let mut at = 0;
    while at < size {
        let length = (size - at).min(limits::SNAPSHOT_CHUNK_BYTES as u64) as usize;
        let from = file.clone();
        let read = move || {
            let mut chunk = vec![0; 4 + length];
            from.read_exact_at(&mut chunk[4..], at)?;
            let crc = crc32c::crc32c(&chunk[4..]);
            chunk[..4].copy_from_slice(&crc.to_be_bytes());
            Ok(chunk)
        };
        let chunk = blocking(network.inline, read).await.and_then(|r| r).map_err(local)?;
        stream.send(chunk.into()).await.map_err(|e| broken(&e))?;
        at += length as u64;
    }
    Ok(())
}

/// Receives a snapshot. Gives the sender's vote and the snapshot, whose files are in a directory of their own under `scratch`.
pub(super) async fn receive(network: &Network, stream: &mut dyn PeerStream) -> Result<(Vote, Snapshot), String> {
    let first = stream.recv().await.ok_or("the snapshot stream ended at once")?.map_err(|e| e.to_string())?;
    let offer = wire::decode(first, Offer::get)?;
    let mut dir = Scratch(network.scratch.join(format!("in-{:016x}", network.env.random_u64())));
    std::fs::create_dir(&dir.0).map_err(|e| format!("cannot make room for a snapshot: {e}"))?;
    for (name, size) in &offer.files {
        if name.is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.') {
            return Err(format!("a snapshot cannot contain a file named {name:?}"));
        }
        receive_file(network, stream, dir.0.join(name), *size).await?;
    }
    // From here on the state machine consumes the directory.
    let path = std::mem::take(&mut dir.0);
    Ok((offer.vote, Snapshot { meta: offer.meta, snapshot: SnapshotData::Files(path) }))
}

async fn receive_file(network: &Network, stream: &mut dyn PeerStream, path: PathBuf, size: u64) -> Result<(), String> {
    use std::io::Write as _;
    let failed = |e: std::io::Error| format!("cannot store a snapshot: {e}");
    let file = Arc::new(std::fs::File::create(path).map_err(failed)?);
    let mut left = size;
    while left > 0 {
        let mut chunk = stream.recv().await.ok_or("the snapshot stream ended early")?.map_err(|e| e.to_string())?;
        let crc = chunk.try_get_u32().map_err(|_| "a snapshot chunk is too short")?;
        if crc32c::crc32c(&chunk) != crc || chunk.is_empty() || chunk.len() as u64 > left {
            return Err("a snapshot chunk is damaged".into());
        }
        left -= chunk.len() as u64;
        let to = file.clone();
        blocking(network.inline, move || (&*to).write_all(&chunk)).await.and_then(|r| r).map_err(failed)?;
    }
    Ok(())
}

/// The answer to a snapshot.
pub(super) fn answer(response: &SnapshotResponse<C>) -> Bytes {
    let mut out = BytesMut::new();
    wire::put_vote(&mut out, &response.vote);
    out.freeze()
}
