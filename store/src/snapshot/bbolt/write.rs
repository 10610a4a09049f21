//! Writes a file in one pass, in bounded memory: a node is written as soon as it is full, children before their parents.
//!
//! The meta pages stand first and name the root, which is written last. So the same records are given twice: first to a writer that only
//! counts pages, whose [`Layout`] then begins the real one. Nothing has to be stored in between, and the size of the file is known
//! before its first byte.

use std::io::Write;

use bytes::{BufMut, Bytes};

use super::{BRANCH, BUCKET_HEAD, BoltError, ELEMENT, FREELIST, Head, IS_BUCKET, LEAF, META_FLAG, Meta, PAGE, PAGE_HEAD};

/// The first page behind the meta pages and the list of free pages.
const FIRST: u64 = 3;

/// The transaction that the file seems to be of: the higher of the two meta pages.
const TRANSACTION: u64 = 1;

/// What has to be known of a file before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Bytes of the file.
    pub const fn bytes(self) -> u64 {
        self.pages * PAGE as u64
    }
}

/// Writes pages, each once, in order.
struct Pages<W> {
    out: W,
    next: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Pages<W> {
    /// Writes a node whose body (everything after its head) is in `buffer` from `PAGE_HEAD` on; its id.
    fn put(&mut self, flags: u16, count: usize) -> Result<u64, BoltError> {
        let pages = self.buffer.len().div_ceil(PAGE);
        let id = self.next;
        let too_large = |_| BoltError::Refused("a node has more elements than the format can count".into());
        let head =
            Head { id, flags, count: u16::try_from(count).map_err(too_large)?, overflow: u32::try_from(pages - 1).map_err(too_large)? };
        let mut encoded = Vec::with_capacity(PAGE_HEAD);
        head.put(&mut encoded);
        self.buffer[..PAGE_HEAD].copy_from_slice(&encoded);
        self.buffer.resize(pages * PAGE, 0);
        self.out.write_all(&self.buffer)?;
        self.next += pages as u64;
        self.begin();
        Ok(id)
    }

    /// Makes the buffer ready for the body of the next node.
    fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.resize(PAGE_HEAD, 0);
    }
}

/// Writes a file.
pub struct Writer<W> {
    pages: Pages<W>,
    /// The buckets so far: name and root.
    buckets: Vec<(Bytes, u64)>,
    layout: Option<Layout>,
}

impl Writer<std::io::Sink> {
    /// A writer that only counts.
    pub fn counting() -> Self {
        let mut pages = Pages { out: std::io::sink(), next: FIRST, buffer: Vec::new() };
        pages.begin();
        Self { pages, buckets: Vec::new(), layout: None }
    }
}

impl<W: Write> Writer<W> {
    /// Begins a file that a counting writer was given before.
    pub fn begin(out: W, layout: Layout) -> Result<Self, BoltError> {
        let mut pages = Pages { out, next: 0, buffer: Vec::new() };
        for transaction in [TRANSACTION - 1, TRANSACTION] {
            pages.begin();
            let meta = Meta { page_size: PAGE as u32, root: layout.root, freelist: 2, pages: layout.pages, transaction };
            meta.put(&mut pages.buffer);
            pages.put(META_FLAG, 0)?;
        }
        pages.begin();
        pages.put(FREELIST, 0)?;
        Ok(Self { pages, buckets: Vec::new(), layout: Some(layout) })
    }

    /// Writes a bucket. Buckets must come in the order of their names.
    ///
    /// # Errors
    /// Those of `fill`; a name out of order; what the output says.
    pub fn bucket<E: From<BoltError>>(&mut self, name: &[u8], fill: impl FnOnce(&mut Tree<'_, W>) -> Result<(), E>) -> Result<(), E> {
        if self.buckets.last().is_some_and(|(last, _)| last.as_ref() >= name) {
            return Err(BoltError::Refused(format!("bucket {:?} is out of order", String::from_utf8_lossy(name))).into());
        }
        let mut tree = Tree { pages: &mut self.pages, leaf: Node::default(), branches: Vec::new(), last: None };
        fill(&mut tree)?;
        let root = tree.finish()?;
        self.buckets.push((Bytes::copy_from_slice(name), root));
        Ok(())
    }

    /// Writes the tree of buckets, which ends the file.
    ///
    /// # Errors
    /// What the output says; that the file became another than the one that was counted.
    pub fn finish(mut self) -> Result<(Layout, W), BoltError> {
        let mut leaf = Node::default();
        for (name, root) in std::mem::take(&mut self.buckets) {
            let mut value = Vec::with_capacity(BUCKET_HEAD);
            value.put_u64_le(root);
            value.put_u64_le(0);
            leaf.push(name, Tail::Leaf { flags: IS_BUCKET, value: value.into() });
        }
        let root = leaf.write(&mut self.pages, LEAF)?;
        let layout = Layout { root, pages: self.pages.next };
        if self.layout.is_some_and(|counted| counted != layout) {
            return Err(BoltError::Refused("the records changed while they were written".into()));
        }
        self.pages.out.flush()?;
        Ok((layout, self.pages.out))
    }
}

/// What an element has besides its key.
enum Tail {
    Leaf { flags: u32, value: Bytes },
    Branch { child: u64 },
}

impl Tail {
    fn value(&self) -> &[u8] {
        match self {
            Self::Leaf { value, .. } => value,
            Self::Branch { .. } => &[],
        }
    }
}

/// A node that is being filled.
#[derive(Default)]
struct Node {
    elements: Vec<(Bytes, Tail)>,
    bytes: usize,
}

impl Node {
    fn push(&mut self, key: Bytes, tail: Tail) {
        self.bytes += ELEMENT + key.len() + tail.value().len();
        self.elements.push((key, tail));
    }

    /// Whether another element of so many bytes would make it larger than a page, and it has `least` already.
    fn is_full(&self, more: usize, least: usize) -> bool {
        self.elements.len() >= least && PAGE_HEAD + self.bytes + ELEMENT + more > PAGE
    }

    /// Writes the node and empties it.
    fn write<W: Write>(&mut self, pages: &mut Pages<W>, flags: u16) -> Result<u64, BoltError> {
        let count = self.elements.len();
        let mut data = count * ELEMENT;
        for (at, (key, tail)) in self.elements.iter().enumerate() {
            let too_large = |_| BoltError::Refused("a node is larger than 4 GiB".into());
            let position = u32::try_from(data - at * ELEMENT).map_err(too_large)?;
            let key_len = u32::try_from(key.len()).map_err(too_large)?;
            let out = &mut pages.buffer;
            match tail {
                Tail::Leaf { flags, value } => {
                    out.put_u32_le(*flags);
                    out.put_u32_le(position);
                    out.put_u32_le(key_len);
                    out.put_u32_le(u32::try_from(value.len()).map_err(too_large)?);
                }
                Tail::Branch { child } => {
                    out.put_u32_le(position);
                    out.put_u32_le(key_len);
                    out.put_u64_le(*child);
                }
            }
            data += key.len() + tail.value().len();
        }
        for (key, tail) in self.elements.drain(..) {
            pages.buffer.put_slice(&key);
            pages.buffer.put_slice(tail.value());
        }
        self.bytes = 0;
        pages.put(flags, count)
    }
}

/// The tree of a bucket that is being written. Keys must be given in order.
pub struct Tree<'w, W> {
    pages: &'w mut Pages<W>,
    leaf: Node,
    /// The unfinished branch of each level, the lowest first.
    branches: Vec<Node>,
    last: Option<Bytes>,
}

impl<W: Write> Tree<'_, W> {
    /// Adds a record.
    ///
    /// # Errors
    /// A key that is empty or not behind the last one; what the output says.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), BoltError> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() || self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(BoltError::Refused(format!("key {key:?} is out of order")));
        }
        if self.leaf.is_full(key.len() + value.len(), 1) {
            self.end_leaf()?;
        }
        self.last = Some(key.clone());
        self.leaf.push(key, Tail::Leaf { flags: 0, value });
        Ok(())
    }

    fn end_leaf(&mut self) -> Result<(), BoltError> {
        let first = self.leaf.elements.first().map(|(key, _)| key.clone()).unwrap_or_default();
        let child = self.leaf.write(self.pages, LEAF)?;
        self.add(0, first, child)
    }

    /// Makes a written node a child of the branch on a level, which is written first if it is full.
    fn add(&mut self, level: usize, first: Bytes, child: u64) -> Result<(), BoltError> {
        if self.branches.len() == level {
            self.branches.push(Node::default());
        }
        // A branch with a single child would be legal and useless.
        if self.branches[level].is_full(first.len(), 2) {
            self.end_branch(level)?;
        }
        self.branches[level].push(first, Tail::Branch { child });
        Ok(())
    }

    fn end_branch(&mut self, level: usize) -> Result<(), BoltError> {
        let first = self.branches[level].elements.first().map(|(key, _)| key.clone()).unwrap_or_default();
        let child = self.branches[level].write(self.pages, BRANCH)?;
        self.add(level + 1, first, child)
    }

    /// Writes what is unfinished; the root.
    fn finish(mut self) -> Result<u64, BoltError> {
        if self.branches.is_empty() {
            return self.leaf.write(self.pages, LEAF);
        }
        self.end_leaf()?;
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.branches.len();
            if is_top {
                return self.branches[level].write(self.pages, BRANCH);
            }
            self.end_branch(level)?;
            level += 1;
        }
    }
}
