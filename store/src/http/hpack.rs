//! Decodes HPACK header blocks (RFC 7541). Input is a stranger's: whatever it is, the worst is `None`.

use std::collections::VecDeque;

use bytes::Bytes;
use httlib_huffman::{DecoderSpeed, decode as huffman};

/// Bytes of the dynamic table: the protocol's default, which this server does not change.
const TABLE_BYTES: usize = 4_096;

/// What an entry costs beside its strings.
const ENTRY_BYTES: usize = 32;

/// All fields of a block together may take so much.
const FIELDS_BYTES: usize = 1 << 20;

/// A name and a value.
pub(super) type Field = (Bytes, Bytes);

/// The table that every connection begins with: RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// One connection's decoder.
pub(super) struct Decoder {
    /// Newest first.
    entries: VecDeque<Field>,
    bytes: usize,
    most: usize,
    /// Counts the changes of the table.
    version: u64,
}

impl Decoder {
    pub(super) const fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, most: TABLE_BYTES, version: 0 }
    }

    /// A number that changes whenever the table does: while it stays, the same block means the same.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// The fields of a block; `None` if it is not one.
    pub(super) fn decode(&mut self, block: &[u8]) -> Option<Vec<Field>> {
        let mut input = Input(block);
        let mut fields: Vec<Field> = Vec::new();
        let mut bytes = 0;
        while let Some(first) = input.0.first().copied() {
            let field = if first & 0x80 != 0 {
                self.entry(input.integer(7)?)?
            } else if first & 0x40 != 0 {
                let field = self.literal(&mut input, 6)?;
                self.insert(field.clone());
                field
            } else if first & 0x20 != 0 {
                self.resize(input.integer(5)?)?;
                continue;
            } else {
                self.literal(&mut input, 4)?
            };
            bytes += field.0.len() + field.1.len() + ENTRY_BYTES;
            if bytes > FIELDS_BYTES {
                return None;
            }
            fields.push(field);
        }
        Some(fields)
    }

    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Option<Field> {
        let name = match input.integer(prefix)? {
            0 => input.string()?,
            place => self.entry(place)?.0,
        };
        Some((name, input.string()?))
    }

    fn entry(&self, place: usize) -> Option<Field> {
        let place = place.checked_sub(1)?;
        match STATIC.get(place) {
            Some((name, value)) => Some((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()))),
            None => self.entries.get(place - STATIC.len()).cloned(),
        }
    }

    fn insert(&mut self, field: Field) {
        self.version += 1;
        self.bytes += cost(&field);
        self.entries.push_front(field);
        self.evict();
    }

    fn resize(&mut self, most: usize) -> Option<()> {
        if most > TABLE_BYTES {
            return None;
        }
        self.version += 1;
        self.most = most;
        self.evict();
        Some(())
    }

    fn evict(&mut self) {
        while self.bytes > self.most {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.bytes -= cost(&oldest);
        }
    }
}

fn cost(field: &Field) -> usize {
    field.0.len() + field.1.len() + ENTRY_BYTES
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// An integer whose first byte shares its upper bits with something else.
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Some(value);
        }
        // Five bytes hold everything that could be meant.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn string(&mut self) -> Option<Bytes> {
        let coded = self.0.first()? & 0x80 != 0;
        let length = self.integer(7)?;
        if length > self.0.len() {
            return None;
        }
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        if !coded {
            return Some(Bytes::copy_from_slice(text));
        }
        let mut plain = Vec::new();
        huffman(text, &mut plain, DecoderSpeed::FourBits).ok()?;
        Some(plain.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(fields: Option<Vec<Field>>) -> Vec<(String, String)> {
        let plain = |bytes: Bytes| String::from_utf8(bytes.into()).unwrap();
        fields.unwrap().into_iter().map(|(name, value)| (plain(name), plain(value))).collect()
    }

    /// The examples of RFC 7541, appendix C.4: three requests on one connection, in Huffman's code.
    #[test]
    fn the_examples_of_the_standard() {
        let mut decoder = Decoder::new();
        let base = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        let own = |list: &[(&str, &str)]| list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        assert_eq!(text(decoder.decode(first)), own(&base));
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        assert_eq!(text(decoder.decode(second)), own(&[&base[..], &[("cache-control", "no-cache")]].concat()));
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let expected = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        assert_eq!(text(decoder.decode(third)), own(&expected));
        assert_eq!(decoder.bytes, 164, "as the standard counts");
    }

    #[test]
    fn the_table_forgets_its_oldest() {
        let mut decoder = Decoder::new();
        decoder.insert((vec![b'a'; 10].into(), Bytes::new()));
        decoder.insert((vec![b'b'; 10].into(), Bytes::new()));
        assert_eq!(decoder.resize(50), Some(()));
        assert_eq!(decoder.entry(62).unwrap().0[0], b'b');
        assert_eq!(decoder.entry(63), None);
        assert_eq!(decoder.resize(TABLE_BYTES + 1), None);
        assert_eq!(decoder.entry(0), None);
    }

    proptest! {
        #[test]
        fn nonsense_is_none(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6)) {
            let mut decoder = Decoder::new();
            for block in blocks {
                decoder.decode(&block);
                prop_assert!(decoder.bytes <= TABLE_BYTES);
            }
        }
    }
}
