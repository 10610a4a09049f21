//! What `apply` sees of a disk ([`View`]) and what it leaves behind ([`Batch`]).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

macro_rules! spaces {
    ($($(#[$doc:meta])* $name:ident = $byte:literal, $text:literal;)*) => {
        /// A kind of record; one column family of the engine each. Bytes and names are on disk: they are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Space { $($(#[$doc])* $name = $byte,)* }

        impl Space {
            /// All of them, in the order of their bytes.
            pub const ALL: &'static [Space] = &[$(Space::$name,)*];

            /// The name on disk.
            pub const fn name(self) -> &'static str {
                match self { $(Space::$name => $text,)* }
            }
        }
    };
}

spaces! {
    /// Versions of keys: (key, newest revision first) to value.
    Kv = 1, "kv";
    /// Revisions in order: (main, sub) to key.
    Rev = 2, "rev";
    /// The present life of a key, without its value.
    Meta = 3, "meta";
    /// Leases, and the keys attached to them.
    Lease = 4, "lease";
    /// Users and roles.
    Auth = 5, "auth";
    /// Members of the cluster.
    Member = 6, "member";
    /// Single facts: revision, compact revision, applied position, alarms.
    Sys = 7, "sys";
}

/// The disk could not be read. Always fatal for the member: it stops, and says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {space:?}: {why}")]
pub struct ViewError {
    /// Where.
    pub space: Space,
    /// What the engine said.
    pub why: String,
}

/// An iterator over records.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), ViewError>> + 'a>;

/// A consistent state to read from.
pub trait View {
    /// One record.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ViewError>;

    /// The records between two bounds, in key order, or backwards.
    fn scan<'a>(&'a self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'a>;
}

/// Changes that are committed together. Later changes of one record replace earlier ones. `None` deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub writes: BTreeMap<(Space, Bytes), Option<Bytes>>,
}

impl Batch {
    /// Writes a record.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.insert((space, key.into()), Some(value.into()));
    }

    /// Deletes a record.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.writes.insert((space, key.into()), None);
    }
}
