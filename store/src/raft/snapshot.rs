//! Snapshots between members: the files of an engine's checkpoint, in chunks.
//!
//! The sender says what comes (its vote, which state, which files); the receiver says from where on it needs them; then come the files in order, in
//! checksummed chunks; and the receiver answers once, when the state is installed. Both keep what they have of a transfer that broke for a while
//! ([`Transfers`]), so that it goes on where it ended.

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
use super::transfers::{Incoming, Outgoing, Place, Scratch};
use super::types::{self, LogId, SnapshotMeta, TypeConfig, Vote};
use super::wire;
use crate::engine::Engine;

type C = TypeConfig;

/// How long the receiver may take to install what it has received.
const INSTALL_PATIENCE: Duration = Duration::from_secs(120);

struct Offer {
    /// Which transfer this is, or goes on with.
    transfer: u64,
    vote: Vote,
    meta: SnapshotMeta,
    files: Vec<(String, u64)>,
}

impl Offer {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(self.transfer);
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
        let transfer = wire::get_u64(from)?;
        let (vote, meta) = (wire::get_vote(from)?, wire::get_meta(from)?);
        let count = from.try_get_u32().ok()?;
        let mut files = Vec::new();
        for _ in 0..count {
            let (name, size) = (wire::get_string(from)?, wire::get_u64(from)?);
            files.push((name, size));
        }
        Some(Self { transfer, vote, meta, files })
    }
}

/// Sends the engine's state to a member, and waits until it is installed there. It is the state as of now, or, if a transfer to that member broke
/// a while ago, that of then, unless it would lack what consensus takes the receiver to have afterwards (`at_least`).
pub(super) async fn send(
    network: &Network,
    to: MemberId,
    addr: &str,
    (vote, at_least): (Vote, Option<LogId>),
    engine: Arc<dyn Engine>,
) -> Result<SnapshotResponse<C>, StreamingError<C>> {
    // First, so that nothing is made, and kept, for a member that is not there.
    let mut stream = network.net.open(to, addr, PeerRpc::Snapshot).await.map_err(|e| broken(&e))?;
    let out = match network.transfers.outgoing(to, at_least) {
        Some(kept) => kept,
        None => {
            let out = prepare(network, engine).await?;
            network.transfers.keep(to, out.clone(), network.env.now_mono());
            out
        }
    };
    transmit(network, &mut *stream, vote, &out, &format!("member {to}")).await.map_err(|why| why.into_streaming())?;
    let reply = within(&*network.env, INSTALL_PATIENCE, stream.recv()).await;
    match reply.unwrap_or(Some(Err(NetError::Timeout { to }))) {
        Some(Ok(body)) => {
            network.transfers.done(to);
            let vote = wire::decode(body, wire::get_vote).map_err(|why| StreamingError::from(NetworkError::from_string(why)))?;
            Ok(SnapshotResponse::new(vote))
        }
        Some(Err(error)) => Err(broken(&error)),
        None => Err(NetworkError::from_string("the peer ended the snapshot stream without an answer").into()),
    }
}

/// Why a transfer ended.
enum Broken {
    Net(NetError),
    Other(String),
}

impl Broken {
    fn into_streaming(self) -> StreamingError<C> {
        match self {
            Self::Net(error) => broken(&error),
            Self::Other(why) => NetworkError::from_string(why).into(),
        }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Net(error) => error.fmt(f),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Makes a checkpoint, and says what is in it.
async fn prepare(network: &Network, engine: Arc<dyn Engine>) -> Result<Outgoing, StreamingError<C>> {
    let transfer = network.env.random_u64();
    let scratch = Arc::new(Scratch(network.scratch.join(format!("out-{transfer:016x}"))));
    let dir = scratch.clone();
    let made = blocking(network.inline, move || engine.checkpoint(&dir.0).map_err(|e| e.to_string())).await;
    let local = |why: String| StreamingError::from(NetworkError::from_string(format!("cannot make a checkpoint: {why}")));
    let mark = made.map_err(|e| local(e.to_string()))?.map_err(local)?;
    let meta = Meta { last_log_id: types::log_id(mark.pos), last_membership: membership_of(&mark).map_err(|e| local(e.to_string()))? };
    let files = list(&scratch.0).map_err(|e| local(e.to_string()))?;
    Ok(Outgoing { transfer, scratch, meta, files: files.into() })
}

/// Says what comes, hears from where on, and sends it.
async fn transmit(network: &Network, stream: &mut dyn PeerStream, vote: Vote, out: &Outgoing, to: &str) -> Result<(), Broken> {
    let offer = Offer { transfer: out.transfer, vote, meta: out.meta.clone(), files: out.files.to_vec() };
    stream.send(offer.encode()).await.map_err(Broken::Net)?;
    let from = within(&*network.env, INSTALL_PATIENCE, stream.recv()).await.flatten();
    let from =
        from.ok_or_else(|| Broken::Other("the peer did not say from where on it needs the snapshot".into()))?.map_err(Broken::Net)?;
    let from = wire::decode(from, Place::get).map_err(Broken::Other)?;
    let (at, files, skipped) = (out.meta.last_log_id, out.files.len(), from.file);
    tracing::info!(to, ?at, files, skipped, offset = from.offset, "sending a snapshot");
    for (n, (name, size)) in out.files.iter().enumerate().skip(usize::try_from(from.file).unwrap_or(usize::MAX)) {
        let offset = if n as u64 == from.file { from.offset } else { 0 };
        send_file(network, stream, out.scratch.0.join(name), offset..*size).await?;
    }
    Ok(())
}

/// Sends the state as of now on a stream that the receiver has opened. It ends with the stream; consensus is not concerned.
pub(super) async fn send_state(network: &Network, stream: &mut dyn PeerStream, engine: Arc<dyn Engine>) -> Result<(), String> {
    let out = prepare(network, engine).await.map_err(|e| e.to_string())?;
    transmit(network, stream, Vote::new(0, network.me.get()), &out, "a member that is rebuilt").await.map_err(|e| e.to_string())?;
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

async fn send_file(network: &Network, stream: &mut dyn PeerStream, path: PathBuf, part: std::ops::Range<u64>) -> Result<(), Broken> {
    use std::os::unix::fs::FileExt as _;
    let local = |e: std::io::Error| Broken::Other(format!("cannot read a checkpoint: {e}"));
    let file = Arc::new(std::fs::File::open(path).map_err(local)?);
    let mut at = part.start;
    while at < part.end {
        let length = (part.end - at).min(limits::SNAPSHOT_CHUNK_BYTES as u64) as usize;
        let from = file.clone();
        let read = move || {
            let mut chunk = vec![0; 4 + length];
            from.read_exact_at(&mut chunk[4..], at)?;
            let crc = crc32c::crc32c(&chunk[4..]);
            chunk[..4].copy_from_slice(&crc.to_be_bytes());
            Ok(chunk)
        };
        let chunk = blocking(network.inline, read).await.and_then(|r| r).map_err(local)?;
        stream.send(chunk.into()).await.map_err(Broken::Net)?;
        at += length as u64;
    }
    Ok(())
}

/// Receives a snapshot. Gives the sender's vote and the snapshot, whose files are in a directory of their own under `scratch`.
pub(super) async fn receive(network: &Network, stream: &mut dyn PeerStream) -> Result<(Vote, Snapshot), String> {
    let first = stream.recv().await.ok_or("the snapshot stream ended at once")?.map_err(|e| e.to_string())?;
    let offer = wire::decode(first, Offer::get)?;
    if let Some((name, _)) =
        offer.files.iter().find(|(name, _)| name.is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.'))
    {
        return Err(format!("a snapshot cannot contain a file named {name:?}"));
    }
    let mut incoming = network.transfers.incoming(network, offer.transfer, &offer.files)?;
    stream.send(incoming.place().encode()).await.map_err(|e| e.to_string())?;
    while let Some((name, size)) = offer.files.get(incoming.file()) {
        receive_file(network, stream, name, *size, &mut incoming).await?;
    }
    // From here on the state machine consumes the directory.
    Ok((offer.vote, Snapshot { meta: offer.meta, snapshot: SnapshotData::Files(incoming.finish()) }))
}

/// Receives a file, or what is missing of it. What is damaged breaks the transfer; what came before it is sound.
async fn receive_file(
    network: &Network,
    stream: &mut dyn PeerStream,
    name: &str,
    size: u64,
    incoming: &mut Incoming,
) -> Result<(), String> {
    use std::os::unix::fs::FileExt as _;
    let failed = |e: std::io::Error| format!("cannot store a snapshot: {e}");
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(incoming.dir().join(name)).map_err(failed)?;
    // Beyond it there may be a part of a chunk that did not come to its end.
    file.set_len(incoming.place().offset).map_err(failed)?;
    let file = Arc::new(file);
    while incoming.place().offset < size {
        let at = incoming.place().offset;
        let mut chunk = stream.recv().await.ok_or("the snapshot stream ended early")?.map_err(|e| e.to_string())?;
        let crc = chunk.try_get_u32().map_err(|_| "a snapshot chunk is too short")?;
        let length = chunk.len() as u64;
        if crc32c::crc32c(&chunk) != crc || chunk.is_empty() || length > size - at {
            return Err("a snapshot chunk is damaged".into());
        }
        let to = file.clone();
        blocking(network.inline, move || to.write_all_at(&chunk, at)).await.and_then(|r| r).map_err(failed)?;
        incoming.wrote(length);
    }
    incoming.next_file();
    Ok(())
}

/// The answer to a snapshot.
pub(super) fn answer(response: &SnapshotResponse<C>) -> Bytes {
    let mut out = BytesMut::new();
    wire::put_vote(&mut out, &response.vote);
    out.freeze()
}
