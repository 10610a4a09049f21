//! A state as a file in etcd's format: what `Maintenance.Snapshot` streams.
//!
//! The state is read twice, first to count pages: so nothing is written to the member's disk, which may be full, and the size is
//! known from the beginning. Memory is bounded by a path of the tree. Versions that a compaction has made unreadable and that are not
//! removed yet go along; whoever reads the file is told to which revision it is compacted, and removes them.

use std::io::Write;
use std::ops::Bound;

use bytes::{Bytes, BytesMut};
use kontiki_base::ids::Revision;
use kontiki_mvcc::keys::{self, Stamp, Version};
use kontiki_mvcc::{Space, View, ViewError};
use kontiki_proto::etcd::mvccpb::KeyValue;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::SnapshotError;
use super::bbolt::{BoltError, Layout, Tree, Writer};
use super::records::{self, bucket, meta, stamp_key};
use super::users::Users;
use crate::engine::AppliedMark;
use crate::engine::mark::MARK_KEY;
use crate::raft::Member;

/// Bytes of one part of the stream. etcd's are as large.
const PART: usize = 32 << 10;

/// What a file is made of.
pub struct Source {
    /// The state. It must not change.
    pub view: Box<dyn View + Send>,
    /// The members of the cluster.
    pub members: Vec<Member>,
}

impl Source {
    /// How large the file will be. Reads the whole state.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn layout(&self) -> Result<Layout, SnapshotError> {
        let mut writer = Writer::counting();
        self.fill(&mut writer)?;
        Ok(writer.finish()?.0)
    }

    /// Writes the file: the database and the SHA-256 of it. Its size is a multiple of 512, and 32.
    ///
    /// # Errors
    /// The state cannot be read; the output refuses.
    pub fn write(&self, layout: Layout, out: impl FnMut(Bytes) -> std::io::Result<()>) -> Result<(), SnapshotError> {
        let mut writer = Writer::begin(Parts { out, part: BytesMut::new(), sha: Sha256::new() }, layout)?;
        self.fill(&mut writer)?;
        let (_, mut parts) = writer.finish()?;
        let hash = Bytes::copy_from_slice(&parts.sha.finalize_reset());
        (parts.out)(hash).map_err(BoltError::from)?;
        Ok(())
    }

    fn fill<W: Write>(&self, to: &mut Writer<W>) -> Result<(), SnapshotError> {
        let view = &*self.view;
        let empty = |_: &mut Tree<'_, W>| Ok::<_, SnapshotError>(());
        to.bucket(b"alarm", empty)?;
        Users::of(view)?.write(to)?;
        to.bucket(b"cluster", empty)?;
        to.bucket(bucket::KEY.as_bytes(), |tree| versions(view, tree))?;
        to.bucket(bucket::LEASE.as_bytes(), |tree| leases(view, tree))?;
        to.bucket(bucket::MEMBERS.as_bytes(), |tree| self.members(tree))?;
        to.bucket(b"members_removed", empty)?;
        to.bucket(bucket::META.as_bytes(), |tree| self.facts(tree))
    }

    fn members<W: Write>(&self, tree: &mut Tree<'_, W>) -> Result<(), SnapshotError> {
        let mut rows: Vec<(String, String)> = self.members.iter().map(|m| (format!("{:x}", m.id.get()), member_json(m))).collect();
        rows.sort();
        Ok(rows.into_iter().try_for_each(|(key, value)| tree.put(key, value))?)
    }

    fn facts<W: Write>(&self, tree: &mut Tree<'_, W>) -> Result<(), SnapshotError> {
        let mark = self.view.get(Space::Sys, MARK_KEY)?.and_then(AppliedMark::decode).unwrap_or_default();
        let voters: Vec<String> = self.members.iter().filter(|m| !m.learner).map(|m| m.id.get().to_string()).collect();
        tree.put(meta::CONF_STATE, format!("{{\"voters\":[{}],\"auto_leave\":false}}", voters.join(",")))?;
        tree.put(meta::CONSISTENT_INDEX, mark.pos.index.get().to_be_bytes().to_vec())?;
        let compact = kontiki_mvcc::current(&*self.view)?.compact;
        if compact > Revision::ZERO {
            // Not "finished": whoever opens the file removes what is left to remove.
            tree.put(meta::SCHEDULED_COMPACT, stamp_key(Stamp::first(compact), false))?;
        }
        Ok(tree.put(meta::TERM, mark.pos.term.get().to_be_bytes().to_vec())?)
    }
}

/// A member as etcd keeps it.
fn member_json(member: &Member) -> String {
    let list = |urls: &[String]| urls.iter().map(|url| json_text(url)).collect::<Vec<_>>().join(",");
    let learner = if member.learner { ",\"isLearner\":true" } else { "" };
    format!(
        "{{\"id\":{},\"peerURLs\":[{}]{learner},\"name\":{},\"clientURLs\":[{}]}}",
        member.id.get(),
        list(&member.peer_urls),
        json_text(&member.name),
        list(&member.client_urls)
    )
}

/// A text in JSON.
fn json_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The bucket `key`: every version, in the order in which they were written.
fn versions<W: Write>(view: &dyn View, tree: &mut Tree<'_, W>) -> Result<(), SnapshotError> {
    let mut last = kontiki_mvcc::EMPTY;
    for record in view.scan(Space::Rev, Bound::Unbounded, Bound::Unbounded, false) {
        let (stamp, value) = record?;
        let at = Stamp::decode(Space::Rev, &stamp)?;
        let (deleted, key) = keys::decode_rev(&value)?;
        let encoded =
            if deleted { KeyValue { key, ..KeyValue::default() }.encode_to_vec() } else { key_value(view, key, at)?.encode_to_vec() };
        tree.put(stamp_key(at, deleted), encoded)?;
        last = at.main;
    }
    let revision = kontiki_mvcc::current(view)?.revision;
    if last < revision {
        // The store's revision was raised without a write, as restoring does. etcd knows its revision by the last record alone.
        tree.put(stamp_key(Stamp::first(revision), true), KeyValue::default().encode_to_vec())?;
    }
    Ok(())
}

fn key_value(view: &dyn View, key: Bytes, at: Stamp) -> Result<KeyValue, ViewError> {
    let missing = || keys::bad(Space::Kv, "history: a revision's write is missing");
    let record = view.get(Space::Kv, &keys::version_key(&key, at))?.ok_or_else(missing)?;
    match Version::decode(&record)? {
        Version::Put { create, version, lease, value } => {
            Ok(KeyValue { key, create_revision: create.get(), mod_revision: at.main.get(), version, value, lease: lease.get() })
        }
        Version::Tombstone => Err(missing()),
    }
}

/// The bucket `lease`. Ids have the order of unsigned numbers there.
fn leases<W: Write>(view: &dyn View, tree: &mut Tree<'_, W>) -> Result<(), SnapshotError> {
    let mut all = kontiki_mvcc::lease::list(view)?;
    all.sort_unstable_by_key(|lease| lease.id.get().cast_unsigned());
    for lease in all {
        let record = records::Lease { id: lease.id.get(), ttl: lease.ttl, remaining: 0 };
        tree.put(lease.id.get().to_be_bytes().to_vec(), record.encode_to_vec())?;
    }
    Ok(())
}

/// Cuts what is written into parts, and hashes it.
struct Parts<F> {
    out: F,
    part: BytesMut,
    sha: Sha256,
}

impl<F: FnMut(Bytes) -> std::io::Result<()>> Parts<F> {
    fn give(&mut self, len: usize) -> std::io::Result<()> {
        let part = self.part.split_to(len).freeze();
        self.sha.update(&part);
        (self.out)(part)
    }
}

impl<F: FnMut(Bytes) -> std::io::Result<()>> Write for Parts<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.part.extend_from_slice(bytes);
        while self.part.len() >= PART {
            self.give(PART)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.part.is_empty() { Ok(()) } else { self.give(self.part.len()) }
    }
}
