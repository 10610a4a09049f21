//! Saves the snapshot of a running member: ours or etcd's.
//!
//! The file gets its name when all of it is there, its hash fits and it is on the disk. An endpoint that fails in the middle is
//! replaced by the next, from the beginning: no two members have the same bytes.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::env::Env;
use kontiki_proto::client::{ClientTls, endpoint};
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::maintenance_client::MaintenanceClient;
use sha2::{Digest as _, Sha256};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::file::HASH;
use super::{OnProgress, Progress, SnapshotError, io};
use crate::log::disk::sync_dir;

/// A member that is silent for so long is given up. It may first have to read its whole state.
const SILENCE: Duration = Duration::from_secs(300);

/// Which store, and how it is reached.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// `http(s)://host:port`; tried in order.
    pub endpoints: Vec<String>,
    /// Certificates, for https.
    pub tls: Option<ClientTls>,
    /// Name and password, if the store wants to know.
    pub user: Option<(String, String)>,
}

/// What was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Who gave it.
    pub endpoint: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// The storage version that the member said it has; empty for an old etcd.
    pub version: String,
}

/// Saves a snapshot. What is at `path` is replaced, when there is something to replace it with.
///
/// # Errors
/// [`SnapshotError::Unavailable`] with what each endpoint said; the disk's own errors.
pub async fn save(remote: &Remote, path: &Path, env: &dyn Env, progress: OnProgress<'_>) -> Result<Saved, SnapshotError> {
    let mut said = Vec::new();
    for url in &remote.endpoints {
        let mut part = Part::create(path)?;
        match fetch(remote, url, &mut part, env, progress).await {
            Ok(version) => {
                let bytes = part.commit(path)?;
                return Ok(Saved { endpoint: url.clone(), bytes, version });
            }
            Err(Failed::Remote(why)) => said.push(format!("{url}: {why}")),
            Err(Failed::Here(error)) => return Err(error),
        }
    }
    Err(SnapshotError::Unavailable(if said.is_empty() { "none was named".into() } else { said.join("; ") }))
}

/// Who failed: with another endpoint it may go better, or not.
enum Failed {
    Remote(String),
    Here(SnapshotError),
}

impl From<SnapshotError> for Failed {
    fn from(error: SnapshotError) -> Self {
        Self::Here(error)
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Remote(format!("{:?}: {}", status.code(), status.message()))
    }
}

/// A file that has no name yet.
struct Part {
    path: PathBuf,
    out: BufWriter<std::fs::File>,
    sha: Sha256,
    /// What came last: the hash, if nothing follows.
    last: Option<Bytes>,
    bytes: u64,
    finished: bool,
}

impl Part {
    fn create(path: &Path) -> Result<Self, SnapshotError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&part).map_err(io("create", &part))?;
        // Two that save the same file would mix their bytes.
        file.try_lock().map_err(|_| SnapshotError::Refused(format!("{} is being written by another process", part.display())))?;
        file.set_len(0).map_err(io("empty", &part))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: part, out, sha: Sha256::new(), last: None, bytes: 0, finished: false })
    }

    fn add(&mut self, blob: Bytes) -> Result<(), SnapshotError> {
        if let Some(before) = self.last.replace(blob) {
            self.sha.update(&before);
            self.put(&before)?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(io("write", &self.path))
    }

    /// Nothing follows: what came last must be the hash of everything before it.
    fn end(&mut self) -> Result<(), Failed> {
        let hash = self.last.take().filter(|last| last.len() as u64 == HASH);
        let hash = hash.ok_or_else(|| Failed::Remote("the snapshot was cut off".into()))?;
        if self.sha.finalize_reset()[..] != hash[..] {
            return Err(Failed::Remote("the snapshot does not have the hash that was sent with it".into()));
        }
        self.put(&hash)?;
        Ok(())
    }

    fn commit(mut self, path: &Path) -> Result<u64, SnapshotError> {
        self.out.flush().map_err(io("write", &self.path))?;
        self.out.get_ref().sync_all().map_err(io("sync", &self.path))?;
        std::fs::rename(&self.path, path).map_err(io("rename the finished file to", path))?;
        self.finished = true;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent).map_err(io("sync", parent))?;
        Ok(self.bytes)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(file = %self.path.display(), %error, "an unfinished snapshot was not removed");
        }
    }
}

async fn fetch(remote: &Remote, url: &str, part: &mut Part, env: &dyn Env, progress: OnProgress<'_>) -> Result<String, Failed> {
    let unreachable = |e: &dyn std::fmt::Display| Failed::Remote(e.to_string());
    let endpoint = endpoint(url, remote.tls.as_ref()).map_err(|e| unreachable(&e))?;
    let channel = endpoint.connect().await.map_err(|e| Failed::Remote(with_causes(&e)))?;
    let mut request = Request::new(pb::SnapshotRequest {});
    remote.sign(&channel, &mut request).await?;
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.snapshot(request).await?.into_inner();
    let mut version = String::new();
    loop {
        let next = tokio::select! {
            biased;
            next = stream.message() => next?,
            () = env.sleep(SILENCE) => return Err(Failed::Remote("it has been silent for too long".into())),
        };
        let Some(message) = next else { break };
        version = message.version;
        part.add(message.blob)?;
        progress(Progress { what: "saving", done: part.bytes, total: part.bytes + message.remaining_bytes });
    }
    part.end()?;
    Ok(version)
}

impl Remote {
    /// Logs in, if the store was said to want it, and puts what proves it on a request.
    ///
    /// # Errors
    /// The store knows no such user, or not by this password, or does not answer.
    pub async fn sign<T>(&self, channel: &Channel, request: &mut Request<T>) -> Result<(), Status> {
        let Some((name, password)) = self.user.clone() else { return Ok(()) };
        let login = pb::AuthenticateRequest { name, password };
        let token = AuthClient::new(channel.clone()).authenticate(login).await?.into_inner().token;
        let token = token.parse().map_err(|_| Status::internal("the token cannot be sent back"))?;
        request.metadata_mut().insert("token", token);
        Ok(())
    }
}

/// An error with what caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
