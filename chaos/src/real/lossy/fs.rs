//! What the kernel asks of the lossy file system.
//!
//! Nothing is cached by the kernel (direct I/O, no lifetimes of entries): after a loss of power it must see the platter, not its memory.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::Shared;
use super::platter::{Bytes, Kind, Names, Node, Platter};

/// The kernel asks anew every time.
const NO_TIME: Duration = Duration::ZERO;

/// Bytes that a file system of this size would have.
const CAPACITY: u64 = 8 << 30;
const BLOCK: u32 = 4096;

pub(super) struct Fs {
    pub(super) shared: Arc<Shared>,
}

impl Fs {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.shared.platter.lock().expect("no holder of this lock panics")
    }

    fn attr(platter: &Platter, ino: u64) -> Result<FileAttr, Errno> {
        let node = platter.nodes.get(&ino).ok_or(Errno::ENOENT)?;
        let (kind, size) = match &node.kind {
            Kind::File(bytes) => (FileType::RegularFile, bytes.data.len() as u64),
            Kind::Dir { .. } => (FileType::Directory, u64::from(BLOCK)),
            Kind::Link(to) => (FileType::Symlink, to.len() as u64),
        };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: node.mode,
            nlink: 1,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, kind: Kind) -> Result<FileAttr, Errno> {
        let mut platter = self.platter();
        if platter.find(parent.0, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let mode = u16::try_from(mode & 0o7777).unwrap_or(0o644);
        let node = Node { mode, uid: req.uid(), gid: req.gid(), kind };
        let ino = platter.add(parent.0, name, node).ok_or(Errno::ENOTDIR)?;
        Self::attr(&platter, ino)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, dir: bool) -> Result<(), Errno> {
        let mut platter = self.platter();
        let ino = platter.find(parent.0, name).ok_or(Errno::ENOENT)?;
        match platter.names(ino) {
            Some(_) if !dir => return Err(Errno::EISDIR),
            Some(names) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            None if dir => return Err(Errno::ENOTDIR),
            _ => {}
        }
        // The node stays: who has it open goes on, and on the platter the name may still lead to it.
        platter.names_mut(parent.0).ok_or(Errno::ENOTDIR)?.remove(name);
        Ok(())
    }

    fn rename_in(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr), flags: RenameFlags) -> Result<(), Errno> {
        let mut platter = self.platter();
        let ino = platter.find(from.0.0, from.1).ok_or(Errno::ENOENT)?;
        if !flags.is_empty() && flags != RenameFlags::RENAME_NOREPLACE {
            return Err(Errno::EINVAL);
        }
        if let Some(there) = platter.find(to.0.0, to.1) {
            if flags == RenameFlags::RENAME_NOREPLACE {
                return Err(Errno::EEXIST);
            }
            if platter.names(there).is_some_and(|names| !names.is_empty()) {
                return Err(Errno::ENOTEMPTY);
            }
        }
        platter.names_mut(from.0.0).ok_or(Errno::ENOTDIR)?.remove(from.1);
        platter.names_mut(to.0.0).ok_or(Errno::ENOTDIR)?.insert(to.1.to_owned(), ino);
        Ok(())
    }

    /// Syncs, with whatever is wrong with the disk now.
    fn sync(&self, ino: u64) -> Result<(), Errno> {
        self.shared.wait();
        let now = self.shared.now();
        let bites = &self.shared.bites;
        if !now.slow.is_zero() {
            bites.slow.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(now.slow);
        }
        if now.fsync_eio {
            bites.fsync_eio.fetch_add(1, Ordering::Relaxed);
            self.platter().fail_sync(ino);
            return Err(Errno::EIO);
        }
        if now.lie {
            bites.lies.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.platter().sync(ino);
        Ok(())
    }

    /// Whether a file may become this long.
    fn room(&self, ino: u64, len: usize) -> Result<(), Errno> {
        self.shared.wait();
        let grows = self.platter().file_mut(ino).is_some_and(|bytes| bytes.data.len() < len);
        if grows && self.shared.now().full {
            self.shared.bites.full.fetch_add(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    fn write_at(&self, ino: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        self.room(ino, offset + data.len())?;
        self.platter().file_mut(ino).ok_or(Errno::ENOENT)?.write(offset, data);
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    fn resize(&self, ino: u64, size: u64) -> Result<(), Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        self.room(ino, size)?;
        self.platter().file_mut(ino).ok_or(Errno::EISDIR)?.resize(size);
        Ok(())
    }
}

macro_rules! answer {
    ($reply:expr, $outcome:expr, $value:pat => $good:expr) => {
        match $outcome {
            Ok($value) => $good,
            Err(e) => $reply.error(e),
        }
    };
}

impl Filesystem for Fs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let platter = self.platter();
        let found = platter.find(parent.0, name).ok_or(Errno::ENOENT).and_then(|ino| Self::attr(&platter, ino));
        answer!(reply, found, attr => reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = Self::attr(&self.platter(), ino.0);
        answer!(reply, attr, attr => reply.attr(&NO_TIME, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size
            && let Err(e) = self.resize(ino.0, size)
        {
            return reply.error(e);
        }
        let mut platter = self.platter();
        if let Some(node) = platter.nodes.get_mut(&ino.0) {
            node.mode = mode.and_then(|m| u16::try_from(m & 0o7777).ok()).unwrap_or(node.mode);
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
        }
        let attr = Self::attr(&platter, ino.0);
        answer!(reply, attr, attr => reply.attr(&NO_TIME, &attr));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let platter = self.platter();
        match platter.nodes.get(&ino.0).map(|n| &n.kind) {
            Some(Kind::Link(to)) => reply.data(to.as_encoded_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let kind = Kind::Dir { names: Names::new(), synced: Names::new() };
        let made = self.make(req, parent, name, mode & !umask, kind);
        answer!(reply, made, attr => reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.make(req, parent, name, 0o777, Kind::Link(target.as_os_str().to_owned()));
        answer!(reply, made, attr => reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name, false), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name, true), () => reply.ok());
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let mut platter = self.platter();
        if platter.find(newparent.0, newname).is_some() {
            return reply.error(Errno::EEXIST);
        }
        let Some(names) = platter.names_mut(newparent.0) else { return reply.error(Errno::ENOTDIR) };
        names.insert(newname.to_owned(), ino.0);
        let attr = Self::attr(&platter, ino.0);
        answer!(reply, attr, attr => reply.entry(&NO_TIME, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.rename_in((parent, name), (newparent, newname), flags), () => reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let made = self.make(req, parent, name, mode & !umask, Kind::File(Bytes::default()));
        answer!(reply, made, attr => reply.created(&NO_TIME, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn read(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        let mut platter = self.platter();
        match platter.file_mut(ino.0) {
            Some(bytes) => reply.data(bytes.read(usize::try_from(offset).unwrap_or(usize::MAX), size as usize)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.write_at(ino.0, offset, data), n => reply.written(n));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(ino.0), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(ino.0), () => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let platter = self.platter();
        let Some(names) = platter.names(ino.0) else { return reply.error(Errno::ENOTDIR) };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ino.0)];
        let all = dots.into_iter().chain(names.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (index, (name, ino)) in all.enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = Self::attr(&platter, ino).map_or(FileType::RegularFile, |attr| attr.kind);
            if reply.add(INodeNo(ino), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let used = if self.shared.now().full { CAPACITY } else { self.platter().used().min(CAPACITY) };
        let (all, free) = (CAPACITY / u64::from(BLOCK), (CAPACITY - used) / u64::from(BLOCK));
        reply.statfs(all, free, free, 1 << 20, 1 << 20, BLOCK, 255, BLOCK);
    }
}
