//! Reads a file, page by page, without ever holding more than one path of the tree. The file may be anybody's: everything is checked.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::{Buf, Bytes};

use super::{BRANCH, BUCKET_HEAD, BoltError, ELEMENT, Head, IS_BUCKET, LEAF, META, Meta, PAGE_HEAD, corrupt};

/// Page sizes that operating systems have.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 512..=(1 << 20);

/// Deeper than any tree of 2^64 records.
const MAX_DEPTH: usize = 64;

/// A file that is open for reading.
pub struct Db {
    file: File,
    bytes: u64,
    meta: Meta,
}

/// Where a bucket is.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: Bytes,
    root: Root,
}

#[derive(Clone, Debug)]
enum Root {
    Page(u64),
    Inline { at: u64, node: Bytes },
}

/// A node of a tree.
#[derive(Clone)]
struct Node {
    /// Where it begins in the file.
    at: u64,
    is_leaf: bool,
    count: usize,
    bytes: Bytes,
}

impl Db {
    /// Opens a file of which the first `bytes` are the database.
    ///
    /// # Errors
    /// It cannot be read; no meta page is whole; it is shorter than its meta page says.
    pub fn open(path: &Path, bytes: u64) -> Result<Self, BoltError> {
        let file = File::open(path)?;
        let meta = newest_meta(&file, bytes)?;
        if meta.pages.checked_mul(meta.page_size.into()).is_none_or(|size| size > bytes) {
            return Err(corrupt(bytes, format!("the file ends here, but has {} pages of {} bytes", meta.pages, meta.page_size)));
        }
        Ok(Self { file, bytes, meta })
    }

    /// Bytes that its pages take: what bbolt calls the size of the database.
    pub fn size(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_size)
    }

    /// All buckets, in the order of their names.
    ///
    /// # Errors
    /// As [`Cursor::next`].
    pub fn buckets(&self) -> Result<Vec<Bucket>, BoltError> {
        let mut all = Vec::new();
        let mut cursor = Cursor::new(self, &Root::Page(self.meta.root))?;
        while let Some((flags, name, value, at)) = cursor.element()? {
            if flags & IS_BUCKET == 0 || value.len() < BUCKET_HEAD {
                return Err(corrupt(at, "an entry of the root is no bucket"));
            }
            let root = match (&value[..]).get_u64_le() {
                0 => Root::Inline { at, node: value.slice(BUCKET_HEAD..) },
                page => Root::Page(page),
            };
            all.push(Bucket { name, root });
        }
        Ok(all)
    }

    /// A cursor before the first record of a bucket.
    ///
    /// # Errors
    /// The bucket's root cannot be read.
    pub fn cursor(&self, bucket: &Bucket) -> Result<Cursor<'_>, BoltError> {
        Cursor::new(self, &bucket.root)
    }

    fn node(&self, id: u64) -> Result<Node, BoltError> {
        let page = u64::from(self.meta.page_size);
        if id < 2 || id >= self.meta.pages {
            return Err(corrupt(0, format!("page {id} is asked for, of {}", self.meta.pages)));
        }
        let at = id * page;
        let mut bytes = vec![0; page as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        let head = Head::get(&bytes);
        if head.id != id {
            return Err(corrupt(at, format!("page {id} says that it is page {}", head.id)));
        }
        let whole = (u64::from(head.overflow) + 1) * page;
        if at + whole > self.size().min(self.bytes) {
            return Err(corrupt(at, format!("page {id} goes on beyond the end of the file")));
        }
        if head.overflow > 0 {
            bytes.resize(usize::try_from(whole).map_err(|_| corrupt(at, "a page is larger than memory"))?, 0);
            self.file.read_exact_at(&mut bytes[page as usize..], at + page)?;
        }
        Node::new(at, bytes.into())
    }
}

fn newest_meta(file: &File, bytes: u64) -> Result<Meta, BoltError> {
    let read = |at: u64| -> Result<Option<Meta>, BoltError> {
        let mut record = [0; META];
        let at = at + PAGE_HEAD as u64;
        if at + META as u64 > bytes {
            return Ok(None);
        }
        file.read_exact_at(&mut record, at)?;
        Ok(Meta::get(&record).filter(|meta| PAGE_SIZES.contains(&meta.page_size) && meta.page_size.is_power_of_two()))
    };
    let first = read(0)?;
    let second = match first {
        Some(meta) => read(meta.page_size.into())?,
        // The first meta page says where the second is; without it every page size has to be tried.
        None => {
            let mut found = None;
            for shift in PAGE_SIZES.start().ilog2()..=PAGE_SIZES.end().ilog2() {
                found = found.or(read(1 << shift)?.filter(|meta| meta.page_size == 1 << shift));
            }
            found
        }
    };
    let newest = first.into_iter().chain(second).max_by_key(|meta| meta.transaction);
    newest.ok_or_else(|| corrupt(0, "neither meta page is whole: this is no bbolt file of version 2, or its beginning is damaged"))
}

impl Node {
    fn new(at: u64, bytes: Bytes) -> Result<Self, BoltError> {
        if bytes.len() < PAGE_HEAD {
            return Err(corrupt(at, "a page has no head"));
        }
        let head = Head::get(&bytes);
        let is_leaf = match head.flags {
            LEAF => true,
            BRANCH => false,
            other => return Err(corrupt(at, format!("a page of kind {other:#x} stands where a node belongs"))),
        };
        let count = usize::from(head.count);
        if PAGE_HEAD + count * ELEMENT > bytes.len() || !is_leaf && count == 0 {
            return Err(corrupt(at, format!("a node cannot have {count} elements")));
        }
        Ok(Self { at, is_leaf, count, bytes })
    }

    /// Bytes from a position on that counts from the element.
    fn slice(&self, element: usize, position: u32, skip: u32, len: u32) -> Result<Bytes, BoltError> {
        let from = element + position as usize + skip as usize;
        let to = from + len as usize;
        if to > self.bytes.len() || from < PAGE_HEAD + self.count * ELEMENT {
            return Err(corrupt(self.at + element as u64, "an element points out of its page"));
        }
        Ok(self.bytes.slice(from..to))
    }

    fn leaf(&self, index: usize) -> Result<(u32, Bytes, Bytes, u64), BoltError> {
        let element = PAGE_HEAD + index * ELEMENT;
        let mut fields = &self.bytes[element..element + ELEMENT];
        let (flags, position) = (fields.get_u32_le(), fields.get_u32_le());
        let (key, value) = (fields.get_u32_le(), fields.get_u32_le());
        let (key, value) = (self.slice(element, position, 0, key)?, self.slice(element, position, key, value)?);
        Ok((flags, key, value, self.at + element as u64))
    }

    fn child(&self, index: usize) -> u64 {
        let element = PAGE_HEAD + index * ELEMENT;
        (&self.bytes[element + 8..]).get_u64_le()
    }
}

/// Goes through the records of a bucket in order.
pub struct Cursor<'d> {
    db: &'d Db,
    /// The path to the next element: each node with the index of what is next in it.
    path: Vec<(Node, usize)>,
    last: Option<Bytes>,
    /// Pages that may still be read. A file whose pages point in circles has an end all the same.
    left: u64,
}

impl<'d> Cursor<'d> {
    fn new(db: &'d Db, root: &Root) -> Result<Self, BoltError> {
        let node = match root {
            Root::Page(id) => db.node(*id)?,
            Root::Inline { at, node } => Node::new(*at, node.clone())?,
        };
        Ok(Self { db, path: vec![(node, 0)], last: None, left: db.meta.pages })
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged: everything before the damage has been given.
    #[allow(clippy::should_implement_trait, reason = "an iterator would not be told that an error is the end")]
    pub fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, BoltError> {
        match self.element()? {
            Some((flags, _, _, at)) if flags & IS_BUCKET != 0 => Err(corrupt(at, "a bucket stands within a bucket")),
            Some((_, key, value, _)) => Ok(Some((key, value))),
            None => Ok(None),
        }
    }

    fn element(&mut self) -> Result<Option<(u32, Bytes, Bytes, u64)>, BoltError> {
        while let Some((node, next)) = self.path.last_mut() {
            if *next == node.count {
                self.path.pop();
                continue;
            }
            let index = *next;
            *next += 1;
            if !node.is_leaf {
                let (child, at) = (node.child(index), node.at);
                self.left = self.left.checked_sub(1).ok_or_else(|| corrupt(at, "pages point in circles"))?;
                if self.path.len() >= MAX_DEPTH {
                    return Err(corrupt(at, "the tree is too deep"));
                }
                self.path.push((self.db.node(child)?, 0));
                continue;
            }
            let (flags, key, value, at) = node.leaf(index)?;
            if key.is_empty() || self.last.as_ref().is_some_and(|last| *last >= key) {
                return Err(corrupt(at, "keys are out of order"));
            }
            self.last = Some(key.clone());
            return Ok(Some((flags, key, value, at)));
        }
        Ok(None)
    }
}
