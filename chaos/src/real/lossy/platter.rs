//! Two versions of a file system: what was told, and what is on the platter.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::fault::Unsynced;
use crate::plan::Dice;

/// The root's number.
pub(super) const ROOT: u64 = 1;

/// Bytes that reach the platter together or not at all.
const SECTOR: usize = 512;

/// A file or directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) kind: Kind,
}

/// What it holds.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Bytes, and the bytes on the platter.
    File(Bytes),
    /// Names, and the names on the platter.
    Dir { names: Names, synced: Names },
    /// A symbolic link; on the platter as soon as its name is.
    Link(OsString),
}

pub(super) type Names = BTreeMap<OsString, u64>;

/// A file's bytes. Ranges that were written and not synced are remembered, with what the platter has there.
#[derive(Clone, Debug, Default)]
pub(super) struct Bytes {
    pub(super) data: Vec<u8>,
    /// Sectors that differ from the platter: number to what the platter holds.
    before: BTreeMap<usize, Vec<u8>>,
    synced_len: usize,
}

impl Bytes {
    /// Remembers what the platter has in this range before it is overwritten.
    fn remember(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.synced_len));
            let here = self.data.get(start..end.min(self.data.len())).unwrap_or_default();
            self.before.entry(sector).or_insert_with(|| here.to_vec());
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.remember(offset.min(self.data.len()), end);
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
    }

    pub(super) fn resize(&mut self, len: usize) {
        self.remember(len.min(self.data.len()), len.max(self.data.len()));
        self.data.resize(len, 0);
    }

    pub(super) fn read(&self, offset: usize, size: usize) -> &[u8] {
        let start = offset.min(self.data.len());
        &self.data[start..(start + size).min(self.data.len())]
    }

    fn sync(&mut self) {
        self.before.clear();
        self.synced_len = self.data.len();
    }

    fn dirty(&self) -> usize {
        self.before.len()
    }

    /// Back to the platter; with `torn`, each sector survives with even odds. Bytes lost, and unsynced bytes kept.
    fn lose(&mut self, torn: Option<&mut Dice>) -> (u64, u64) {
        let unsynced = self.data.len().saturating_sub(self.synced_len);
        let mut kept = 0;
        let mut lost = 0;
        let old = std::mem::take(&mut self.before);
        let mut longest = self.synced_len;
        let mut fates = Vec::new();
        if let Some(dice) = torn {
            fates = old.keys().map(|_| dice.chance(0.5)).collect();
        }
        self.data.resize(self.data.len().max(self.synced_len), 0);
        for (index, (sector, bytes)) in old.into_iter().enumerate() {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.data.len());
            if start >= end {
                continue;
            }
            if fates.get(index).copied().unwrap_or(false) {
                kept += (end - start) as u64;
                longest = longest.max(end);
                continue;
            }
            lost += changed(&self.data[start..end], &bytes);
            let mut whole = bytes;
            whole.resize(end - start, 0);
            self.data[start..end].copy_from_slice(&whole);
        }
        self.data.truncate(longest);
        self.synced_len = self.data.len();
        (lost.max(if kept == 0 { unsynced as u64 } else { 0 }), kept)
    }
}

/// How many bytes differ from what the platter had.
fn changed(now: &[u8], before: &[u8]) -> u64 {
    let longer = now.len().saturating_sub(before.len());
    (now.iter().zip(before).filter(|(a, b)| a != b).count() + longer) as u64
}

/// The file system.
#[derive(Debug)]
pub(super) struct Platter {
    pub(super) nodes: BTreeMap<u64, Node>,
    next: u64,
}

impl Platter {
    pub(super) fn new() -> Self {
        let kind = Kind::Dir { names: Names::new(), synced: Names::new() };
        let root = Node { mode: 0o755, uid: 0, gid: 0, kind };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1 }
    }

    pub(super) fn names(&self, dir: u64) -> Option<&Names> {
        match &self.nodes.get(&dir)?.kind {
            Kind::Dir { names, .. } => Some(names),
            _ => None,
        }
    }

    pub(super) fn names_mut(&mut self, dir: u64) -> Option<&mut Names> {
        match &mut self.nodes.get_mut(&dir)?.kind {
            Kind::Dir { names, .. } => Some(names),
            _ => None,
        }
    }

    pub(super) fn find(&self, dir: u64, name: &OsStr) -> Option<u64> {
        self.names(dir)?.get(name).copied()
    }

    /// A new node under a name; `None` if the parent is not a directory.
    pub(super) fn add(&mut self, dir: u64, name: &OsStr, node: Node) -> Option<u64> {
        let ino = self.next;
        self.names_mut(dir)?.insert(name.to_owned(), ino);
        self.next += 1;
        self.nodes.insert(ino, node);
        Some(ino)
    }

    pub(super) fn file_mut(&mut self, ino: u64) -> Option<&mut Bytes> {
        match &mut self.nodes.get_mut(&ino)?.kind {
            Kind::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Puts a file's bytes, or a directory's names, onto the platter.
    pub(super) fn sync(&mut self, ino: u64) {
        match self.nodes.get_mut(&ino).map(|n| &mut n.kind) {
            Some(Kind::File(bytes)) => bytes.sync(),
            Some(Kind::Dir { names, synced }) => synced.clone_from(names),
            Some(Kind::Link(_)) | None => {}
        }
    }

    /// What Linux does when a sync has failed: the pages are marked clean and the platter keeps what it had.
    pub(super) fn fail_sync(&mut self, ino: u64) {
        if let Some(bytes) = self.file_mut(ino) {
            bytes.lose(None);
        }
    }

    /// Bytes in files.
    pub(super) fn used(&self) -> u64 {
        self.nodes.values().map(|n| if let Kind::File(b) = &n.kind { b.data.len() as u64 } else { 0 }).sum()
    }

    pub(super) fn lose_power(&mut self, unsynced: Unsynced, dice: &mut Dice) -> (u64, u64) {
        let (mut lost, mut kept) = (0, 0);
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(bytes) if bytes.dirty() > 0 => {
                    let torn = (unsynced == Unsynced::Torn).then_some(&mut *dice);
                    let (l, k) = bytes.lose(torn);
                    lost += l;
                    kept += k;
                }
                Kind::Dir { names, synced } => names.clone_from(synced),
                _ => {}
            }
        }
        self.sweep();
        (lost, kept)
    }

    /// Forgets what no name leads to. Only while nobody has files open.
    fn sweep(&mut self) {
        let mut reached = std::collections::BTreeSet::from([ROOT]);
        let mut left = vec![ROOT];
        while let Some(dir) = left.pop() {
            for ino in self.names(dir).into_iter().flat_map(BTreeMap::values) {
                if reached.insert(*ino) {
                    left.push(*ino);
                }
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_back_to_the_platter() {
        let mut bytes = Bytes::default();
        bytes.write(0, &[1; 2_000]);
        bytes.sync();
        bytes.write(600, &[2; 100]);
        bytes.write(1_990, &[3; 1_000]);
        bytes.resize(2_500);
        bytes.lose(None);
        assert_eq!(bytes.data, [1; 2_000]);
        bytes.resize(10);
        bytes.lose(None);
        assert_eq!(bytes.data, [1; 2_000]);
    }

    #[test]
    fn torn_bytes_are_whole_sectors_of_before_or_after() {
        let mut seen = [false; 2];
        for seed in 0..20 {
            let mut bytes = Bytes::default();
            bytes.write(0, &[1; 4_096]);
            bytes.sync();
            bytes.write(0, &[2; 4_096]);
            bytes.lose(Some(&mut Dice::new(seed, "torn")));
            for sector in bytes.data.chunks(SECTOR) {
                assert!(sector.iter().all(|b| *b == sector[0]), "a sector is old or new");
                seen[usize::from(sector[0] == 2)] = true;
            }
        }
        assert_eq!(seen, [true; 2]);
    }
}
