//! What stands in a segment: a header, then records. Layout, checksums, and the scan that tells a torn tail from a damaged log.
//!
//! A record is `length u32 | crc32c u32 | epoch u64 | kind u8 | 7 zero bytes | payload | padding to 8`. Numbers are little-endian. The
//! checksum starts from a seed that is drawn anew whenever a file becomes a segment, so that records which a recycled file still
//! holds from an earlier life, or which somebody stored as a value, are never taken for records of this one.
//!
//! Records are written in batches; a batch ends with [`Record::End`] and is synced before the next is written. All records of a batch
//! carry the same epoch, and epochs count up by one. So when a record is bad, whatever belongs to the same batch may be torn, but a good
//! record of any later batch proves that the bad one had been synced: then the medium has failed, and cutting the log would lose
//! acknowledged writes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kontiki_base::ids::{LogIndex, LogPos, MemberId, Term};
use kontiki_base::mutant;

/// Where records begin in a segment.
pub(super) const RECORDS_AT: u64 = 4096;
/// Bytes before a record's payload.
pub(super) const FRAME: usize = 24;
const MAGIC: &[u8; 8] = b"KTKRAFT1";

/// For whom the member has voted, or whom it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    /// In which term.
    pub term: Term,
    /// For whom.
    pub member: MemberId,
    /// Whether a quorum has granted it: then `member` is the leader.
    pub committed: bool,
}

/// An entry of the log. What `kind` and `body` mean is not the log's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position; indexes start at 1.
    pub pos: LogPos,
    /// What `body` is.
    pub kind: u8,
    /// The payload.
    pub body: Bytes,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// An entry was appended.
    Entry(LogEntry),
    /// The member has voted.
    Vote(Vote),
    /// Entries after this one were removed.
    Truncate(LogPos),
    /// Entries up to here were given up; the state machine has them.
    Purge(LogPos),
    /// The end of a batch, with what was known to be committed.
    End(LogPos),
    /// The segment is full; the next one is in order.
    Seal,
}

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const END: u8 = 5;
const SEAL: u8 = 6;

fn pos_put(out: &mut BytesMut, pos: LogPos) {
    out.put_u64_le(pos.term.get());
    out.put_u64_le(pos.index.get());
}

fn pos_get(from: &mut impl Buf) -> Option<LogPos> {
    let term = from.try_get_u64_le().ok()?;
    let index = from.try_get_u64_le().ok()?;
    Some(LogPos { term: Term::new(term), index: LogIndex::new(index) })
}

fn vote_put(out: &mut BytesMut, vote: Vote) {
    out.put_u64_le(vote.term.get());
    out.put_u64_le(vote.member.get());
    out.put_u8(u8::from(vote.committed));
}

fn vote_get(from: &mut impl Buf) -> Option<Vote> {
    let term = from.try_get_u64_le().ok()?;
    let member = from.try_get_u64_le().ok()?;
    let committed = from.try_get_u8().ok()?;
    Some(Vote { term: Term::new(term), member: MemberId::new(member), committed: committed == 1 })
}

impl Record {
    /// Bytes that the record takes in a segment.
    pub(super) fn size(&self) -> usize {
        let payload = match self {
            Self::Entry(e) => 17 + e.body.len(),
            Self::Vote(_) => 17,
            Self::Truncate(_) | Self::Purge(_) | Self::End(_) => 16,
            Self::Seal => 0,
        };
        FRAME + payload.next_multiple_of(8)
    }

    /// Appends the record to `out`.
    pub(super) fn put(&self, out: &mut BytesMut, seed: u32, epoch: u64) {
        let start = out.len();
        out.put_bytes(0, FRAME);
        let kind = match self {
            Self::Entry(entry) => {
                pos_put(out, entry.pos);
                out.put_u8(entry.kind);
                out.put_slice(&entry.body);
                ENTRY
            }
            Self::Vote(vote) => {
                vote_put(out, *vote);
                VOTE
            }
            Self::Truncate(after) => {
                pos_put(out, *after);
                TRUNCATE
            }
            Self::Purge(pos) => {
                pos_put(out, *pos);
                PURGE
            }
            Self::End(pos) => {
                pos_put(out, *pos);
                END
            }
            Self::Seal => SEAL,
        };
        let payload = out.len() - start - FRAME;
        out.put_bytes(0, payload.next_multiple_of(8) - payload);
        let length = u32::try_from(payload).expect("a record fits a segment, which is smaller than 4 GiB");
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 8..start + 16].copy_from_slice(&epoch.to_le_bytes());
        out[start + 16] = kind;
        let crc = checksum(seed, &out[start..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    fn parse(kind: u8, mut payload: Bytes) -> Option<Self> {
        let record = match kind {
            ENTRY => {
                let pos = pos_get(&mut payload)?;
                let kind = payload.try_get_u8().ok()?;
                return Some(Self::Entry(LogEntry { pos, kind, body: payload }));
            }
            VOTE => Self::Vote(vote_get(&mut payload)?),
            TRUNCATE => Self::Truncate(pos_get(&mut payload)?),
            PURGE => Self::Purge(pos_get(&mut payload)?),
            END => Self::End(pos_get(&mut payload)?),
            SEAL => Self::Seal,
            _ => return None,
        };
        payload.is_empty().then_some(record)
    }
}

/// The checksum of a framed record: everything but the field that holds it.
fn checksum(seed: u32, framed: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(seed, &framed[..4]);
    crc32c::crc32c_append(crc, &framed[8..])
}

/// A record that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) record: Record,
    pub(super) epoch: u64,
    /// Bytes that it takes.
    pub(super) size: usize,
}

/// The record at `at`, if there is a good one.
pub(super) fn read(segment: &Bytes, at: usize, seed: u32) -> Option<Read> {
    let frame = segment.get(at..at + FRAME)?;
    let length = u32::from_le_bytes(frame[..4].try_into().ok()?) as usize;
    let size = FRAME + length.next_multiple_of(8);
    let framed = segment.get(at..at.checked_add(size)?)?;
    let stored = u32::from_le_bytes(framed[4..8].try_into().ok()?);
    let kind = framed[16];
    if kind == 0 || mutant!("M29", checksum(seed, framed) != stored, false) {
        return None;
    }
    let epoch = u64::from_le_bytes(framed[8..16].try_into().ok()?);
    let record = Record::parse(kind, segment.slice(at + FRAME..at + FRAME + length))?;
    Some(Read { record, epoch, size })
}

/// Bytes of an entry's record when its body has `body` bytes.
pub(super) fn entry_size(body: usize) -> usize {
    FRAME + (17 + body).next_multiple_of(8)
}

/// What the head of a segment says: everything that earlier segments said and that still counts, so that they can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u64,
    pub(super) seed: u32,
    /// The epoch of the last batch before this segment.
    pub(super) epoch: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: LogPos,
    pub(super) purged: LogPos,
    /// The last entry before this segment.
    pub(super) last: LogPos,
}

impl Header {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(RECORDS_AT as usize);
        out.put_slice(MAGIC);
        out.put_u32_le(0);
        out.put_u32_le(self.seed);
        out.put_u64_le(self.number);
        out.put_u64_le(self.epoch);
        out.put_u8(u8::from(self.vote.is_some()));
        vote_put(&mut out, self.vote.unwrap_or_default());
        pos_put(&mut out, self.committed);
        pos_put(&mut out, self.purged);
        pos_put(&mut out, self.last);
        out.put_bytes(0, RECORDS_AT as usize - out.len());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    pub(super) fn decode(mut from: &[u8]) -> Option<Self> {
        if from.len() < RECORDS_AT as usize {
            return None;
        }
        from = &from[..RECORDS_AT as usize];
        if &from[..8] != MAGIC || u32::from_le_bytes(from[8..12].try_into().ok()?) != crc32c::crc32c(&from[12..]) {
            return None;
        }
        from.advance(12);
        let seed = from.get_u32_le();
        let number = from.get_u64_le();
        let epoch = from.get_u64_le();
        let voted = from.get_u8() == 1;
        let vote = vote_get(&mut from)?;
        let (committed, purged, last) = (pos_get(&mut from)?, pos_get(&mut from)?, pos_get(&mut from)?);
        Some(Self { number, seed, epoch, vote: voted.then_some(vote), committed, purged, last })
    }
}

/// How the records of a segment end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// With a seal: the next segment is in order.
    Sealed,
    /// After the last whole batch; from there up to the given offset there is the rest of a torn batch, which must be wiped.
    Open {
        /// Where the remains end; the same as the end of the last batch if there are none.
        wipe_to: usize,
    },
    /// Something that had been synced is damaged.
    Damaged(String),
}

/// Goes through the batches of a segment. `each` is called for every record of every whole batch, with its offset.
/// Gives the end of the last whole batch, its epoch, and what follows it.
pub(super) fn scan(segment: &Bytes, header: &Header, mut each: impl FnMut(usize, Record)) -> (usize, u64, Tail) {
    let (mut end, mut epoch) = (RECORDS_AT as usize, header.epoch);
    let mut at = end;
    let mut batch = Vec::new();
    while let Some(found) = read(segment, at, header.seed) {
        if found.epoch != epoch + 1 {
            break;
        }
        let done = matches!(found.record, Record::End(_));
        batch.push((at, found.record));
        at += found.size;
        if done {
            end = at;
            epoch += 1;
            let sealed = batch.iter().any(|(_, r)| *r == Record::Seal);
            batch.drain(..).for_each(|(at, record)| each(at, record));
            if sealed {
                return (end, epoch, Tail::Sealed);
            }
        }
    }
    (end, epoch, tail(segment, header.seed, end, epoch))
}

/// Judges what stands behind the last whole batch, which was of `epoch`.
fn tail(segment: &Bytes, seed: u32, end: usize, epoch: u64) -> Tail {
    let mut wipe_to = end;
    let mut at = end;
    while at + FRAME <= segment.len() {
        let Some(found) = read(segment, at, seed) else {
            at += 8;
            continue;
        };
        if mutant!("M30", found.epoch > epoch + 1, false) {
            return Tail::Damaged(format!(
                "batch {} is unreadable at byte {end}, but byte {at} holds a record of batch {}, which was written after it had been synced",
                epoch + 1,
                found.epoch
            ));
        }
        at += found.size;
        wipe_to = at;
    }
    Tail::Open { wipe_to }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pos(term: u64, index: u64) -> LogPos {
        LogPos { term: Term::new(term), index: LogIndex::new(index) }
    }

    fn samples() -> Vec<Record> {
        vec![
            Record::Entry(LogEntry { pos: pos(3, 7), kind: 2, body: Bytes::from_static(b"hello") }),
            Record::Entry(LogEntry { pos: pos(3, 8), kind: 0, body: Bytes::new() }),
            Record::Vote(Vote { term: Term::new(4), member: MemberId::new(9), committed: true }),
            Record::Truncate(pos(2, 6)),
            Record::Purge(pos(1, 2)),
            Record::End(pos(2, 5)),
            Record::Seal,
        ]
    }

    #[test]
    fn every_record_reads_back_and_takes_its_size() {
        for record in samples() {
            let mut out = BytesMut::new();
            record.put(&mut out, 77, 5);
            assert_eq!(out.len(), record.size());
            let bytes = out.freeze();
            assert_eq!(read(&bytes, 0, 77), Some(Read { record: record.clone(), epoch: 5, size: bytes.len() }));
            assert_eq!(read(&bytes, 0, 78), None, "another segment's seed");
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&Bytes::from(bad), 0, 77), None, "bit {bit} of {record:?}");
            }
        }
    }

    #[test]
    fn a_header_survives_its_encoding() {
        let header = Header {
            number: 12,
            seed: 99,
            epoch: 1000,
            vote: Some(Vote { term: Term::new(4), member: MemberId::new(9), committed: false }),
            committed: pos(2, 5),
            purged: pos(1, 2),
            last: pos(3, 8),
        };
        assert_eq!(Header::decode(&header.encode()), Some(header.clone()));
        let mut bad = header.encode().to_vec();
        bad[40] ^= 1;
        assert_eq!(Header::decode(&bad), None);
        assert_eq!(Header::decode(&[0; 4096]), None);
    }

    /// Three batches of two entries each, and where each batch ends.
    fn segment() -> (Header, Vec<u8>, Vec<usize>) {
        let header = Header { seed: 5, epoch: 10, ..Header::default() };
        let mut out = BytesMut::from(&header.encode()[..]);
        let mut ends = Vec::new();
        for batch in 0..3 {
            for i in 0..2 {
                let body = Bytes::from(vec![7; 100]);
                Record::Entry(LogEntry { pos: pos(1, batch * 2 + i + 1), kind: 1, body }).put(&mut out, 5, 11 + batch);
            }
            Record::End(LogPos::default()).put(&mut out, 5, 11 + batch);
            ends.push(out.len());
        }
        out.put_bytes(0, 8192);
        (header, out.to_vec(), ends)
    }

    fn scan_all(header: &Header, bytes: Vec<u8>) -> (usize, usize, Tail) {
        let mut entries = 0;
        let (end, _, tail) = scan(&bytes.into(), header, |_, r| entries += usize::from(matches!(r, Record::Entry(_))));
        (end, entries, tail)
    }

    #[test]
    fn damage_in_the_last_batch_is_a_torn_tail_and_before_it_is_refused() {
        let (header, bytes, ends) = segment();
        assert_eq!(scan_all(&header, bytes.clone()), (ends[2], 6, Tail::Open { wipe_to: ends[2] }));
        for at in RECORDS_AT as usize..ends[2] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let (end, entries, tail) = scan_all(&header, bad);
            if at >= ends[1] {
                assert_eq!((end, entries), (ends[1], 4), "byte {at}");
                assert!(matches!(tail, Tail::Open { .. }), "byte {at}: {tail:?}");
            } else {
                assert!(matches!(tail, Tail::Damaged(_)), "byte {at}: {tail:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_scanned_without_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..2000), seed in any::<u32>()) {
            let header = Header { seed, ..Header::default() };
            let bytes: Vec<u8> = header.encode().iter().copied().chain(junk).collect();
            scan_all(&header, bytes);
        }
    }
}
