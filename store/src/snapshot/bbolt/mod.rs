//! The file format of bbolt, version 2, which etcd keeps its data in: enough of it to write a file in one pass, and to read any.
//!
//! A file is an array of pages of equal size. Pages 0 and 1 are *meta* pages, of which the one with the higher transaction number counts;
//! one page lists the pages that are free. The rest are nodes of B+ trees: a tree of buckets, whose leaves hold, by name, the root of each
//! bucket's own tree. A node that does not fit a page goes on in the pages after it (its *overflow*). All numbers are little-endian.
//!
//! | page | bytes |
//! |---|---|
//! | head | id u64, flags u16, count u16, overflow u32 |
//! | meta | magic u32, version u32, page size u32, flags u32, root u64, sequence u64, freelist u64, pages u64, transaction u64, FNV-1a u64 |
//! | leaf element | flags u32 (1: a bucket), position u32 (from the element), key length u32, value length u32 |
//! | branch element | position u32, key length u32, child u64 |
//! | bucket | root u64, sequence u64; if the root is 0 the bucket's only leaf follows (an *inline* bucket) |
//!
//! Source: go.etcd.io/bbolt, `page.go`, `db.go`, `node.go`, `bucket.go`.

mod read;
#[cfg(test)]
mod tests;
mod write;

use bytes::{Buf, BufMut};

pub use read::{Bucket, Cursor, Db};
pub use write::{Layout, Tree, Writer};

/// Bytes of a page in files that are written here. Files that are read say it themselves.
pub const PAGE: usize = 4096;

const PAGE_HEAD: usize = 16;
const ELEMENT: usize = 16;
const BUCKET_HEAD: usize = 16;
const META: usize = 64;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META_FLAG: u16 = 0x04;
const FREELIST: u16 = 0x10;
const IS_BUCKET: u32 = 1;

/// What can go wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The operating system failed, or the reader of what is written has gone.
    #[error("bbolt file: {0}")]
    Io(#[from] std::io::Error),
    /// What is in the file makes no sense.
    #[error("bbolt file is corrupt at byte {at}: {why}")]
    Corrupt {
        /// Where.
        at: u64,
        /// What was found.
        why: String,
    },
    /// Something cannot be written in this format.
    #[error("bbolt file: {0}")]
    Refused(String),
}

fn corrupt(at: u64, why: impl Into<String>) -> BoltError {
    BoltError::Corrupt { at, why: why.into() }
}

/// The head of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    id: u64,
    flags: u16,
    count: u16,
    overflow: u32,
}

impl Head {
    fn put(self, out: &mut Vec<u8>) {
        out.put_u64_le(self.id);
        out.put_u16_le(self.flags);
        out.put_u16_le(self.count);
        out.put_u32_le(self.overflow);
    }

    /// `from` must hold a head.
    fn get(mut from: &[u8]) -> Self {
        Self { id: from.get_u64_le(), flags: from.get_u16_le(), count: from.get_u16_le(), overflow: from.get_u32_le() }
    }
}

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meta {
    page_size: u32,
    root: u64,
    freelist: u64,
    /// All pages; the number of the first that is not there.
    pages: u64,
    transaction: u64,
}

impl Meta {
    fn put(self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u32_le(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(self.page_size);
        out.put_u32_le(0);
        out.put_u64_le(self.root);
        out.put_u64_le(0);
        out.put_u64_le(self.freelist);
        out.put_u64_le(self.pages);
        out.put_u64_le(self.transaction);
        let sum = fnv1a(&out[start..]);
        out.put_u64_le(sum);
    }

    /// `None` if this is no meta record of version 2, or it is damaged.
    fn get(from: &[u8]) -> Option<Self> {
        let mut fields = from.get(..META)?;
        let sum = fnv1a(&fields[..META - 8]);
        if fields.get_u32_le() != MAGIC || fields.get_u32_le() != VERSION {
            return None;
        }
        let page_size = fields.get_u32_le();
        fields.advance(4);
        let root = fields.get_u64_le();
        fields.advance(8);
        let meta = Self { page_size, root, freelist: fields.get_u64_le(), pages: fields.get_u64_le(), transaction: fields.get_u64_le() };
        (fields.get_u64_le() == sum).then_some(meta)
    }
}

/// The checksum of meta pages.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
