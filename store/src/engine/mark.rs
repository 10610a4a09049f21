//! The applied mark: which log position a state is the result of, stored in the same batch as the state itself.

use bytes::{Buf, BufMut, Bytes};
use kontiki_base::ids::{LogIndex, LogPos, Term};

/// Key of the mark in [`Space::Sys`](kontiki_mvcc::Space::Sys).
pub(crate) const MARK_KEY: &[u8] = &[super::RESERVED, b'm'];
const VERSION: u8 = 1;

/// Which log position a state is the result of, and the membership that was in force there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedMark {
    /// The last entry that the state contains; zero for none.
    pub pos: LogPos,
    /// The membership as of `pos`, in consensus' own encoding; empty for none.
    pub membership: Bytes,
}

impl AppliedMark {
    /// The mark as bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(17 + self.membership.len());
        out.put_u8(VERSION);
        out.put_u64(self.pos.term.get());
        out.put_u64(self.pos.index.get());
        out.put_slice(&self.membership);
        out.into()
    }

    /// From bytes; `None` if they are not a mark.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 17 || bytes.get_u8() != VERSION {
            return None;
        }
        let pos = LogPos { term: Term::new(bytes.get_u64()), index: LogIndex::new(bytes.get_u64()) };
        Some(Self { pos, membership: bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_encoding() {
        let mark = AppliedMark { pos: LogPos { term: Term::new(3), index: LogIndex::new(99) }, membership: Bytes::from_static(b"members") };
        assert_eq!(AppliedMark::decode(mark.encode()), Some(mark.clone()));
        assert_eq!(AppliedMark::decode(mark.encode().slice(..10)), None);
        assert_eq!(AppliedMark::decode(Bytes::from_static(&[9; 40])), None);
    }
}
