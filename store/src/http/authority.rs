//! Clients of etcd 3.4 (its command line, and every kube-apiserver built with it) write a whole URL where HTTP/2 has `:authority`, for calls to
//! one given endpoint: `http://127.0.0.1:2379`. Go's servers take that; ours would reset the stream. So the first request of each connection
//! is looked at: if its authority is sound, as nearly always, the connection is left alone from there on. If not, its header blocks are
//! decoded and written anew with an authority that can be read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hpack::{Decoder, Field};

/// What an HTTP/2 connection begins with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Size of a frame's head.
pub(super) const HEAD: usize = 9;

/// Types and flags of frames that matter here.
pub(super) const HEADERS: u8 = 1;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

/// A header block may take so much; a client that sends more is cut off. Above what the server itself accepts.
pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// Payload of the frames that are written anew: what every peer must take.
pub(super) const FRAME_BYTES: usize = 16_384;

/// What stands in for an authority that cannot be read at all.
const NOWHERE: &[u8] = b"localhost";

enum Mode {
    /// So many bytes of the preface have been seen.
    Preface(usize),
    /// The first header block decides.
    Undecided,
    /// Every header block is written anew.
    Mending,
    /// Nothing more is looked at.
    Transparent,
}

/// Looks at what a client sends, and mends what has to be mended.
struct Mender {
    mode: Mode,
    decoder: Decoder,
    /// The frame head under way.
    head: Vec<u8>,
    /// Bytes of a frame that are passed on unread.
    passing: usize,
    /// A header frame under way, head included, and how much of it is missing.
    frame: Vec<u8>,
    missing: usize,
    /// The block under way: its first frame's head, its fragments without padding, its frames as they came.
    start: [u8; HEAD],
    block: Vec<u8>,
    raw: Vec<u8>,
}

pub(super) fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Mender {
    fn new() -> Self {
        Self {
            mode: Mode::Preface(0),
            decoder: Decoder::new(),
            head: Vec::with_capacity(HEAD),
            passing: 0,
            frame: Vec::new(),
            missing: 0,
            start: [0; HEAD],
            block: Vec::new(),
            raw: Vec::new(),
        }
    }

    const fn is_transparent(&self) -> bool {
        matches!(self.mode, Mode::Transparent)
    }

    /// Takes what came, and appends to `out` what the server shall see.
    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while let Some(first) = input.first().copied() {
            match self.mode {
                Mode::Transparent => {
                    out.extend_from_slice(input);
                    return Ok(());
                }
                Mode::Preface(seen) => {
                    out.push(first);
                    input = &input[1..];
                    self.mode = match PREFACE.get(seen) {
                        Some(byte) if *byte == first && seen + 1 == PREFACE.len() => Mode::Undecided,
                        Some(byte) if *byte == first => Mode::Preface(seen + 1),
                        // HTTP/1.
                        _ => Mode::Transparent,
                    };
                }
                Mode::Undecided | Mode::Mending => input = self.frames(input, out)?,
            }
        }
        Ok(())
    }

    /// Takes a part of a frame; what is left of the input.
    fn frames<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> io::Result<&'a [u8]> {
        if self.passing > 0 {
            let (now, rest) = input.split_at(self.passing.min(input.len()));
            out.extend_from_slice(now);
            self.passing -= now.len();
            return Ok(rest);
        }
        if self.missing > 0 {
            let (now, rest) = input.split_at(self.missing.min(input.len()));
            self.frame.extend_from_slice(now);
            self.missing -= now.len();
            if self.missing == 0 {
                self.header_frame(out)?;
            }
            return Ok(rest);
        }
        let (now, rest) = input.split_at((HEAD - self.head.len()).min(input.len()));
        self.head.extend_from_slice(now);
        let Ok(head) = <[u8; HEAD]>::try_from(self.head.as_slice()) else { return Ok(rest) };
        self.head.clear();
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if matches!(head[3], HEADERS | CONTINUATION) {
            if self.raw.len() + length > BLOCK_BYTES {
                return Err(broken("a header block is too large"));
            }
            self.frame = head.to_vec();
            self.missing = length;
            if length == 0 {
                self.header_frame(out)?;
            }
        } else {
            out.extend_from_slice(&head);
            self.passing = length;
        }
        Ok(rest)
    }

    /// A header frame is complete.
    fn header_frame(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let frame = std::mem::take(&mut self.frame);
        let (head, mut payload) = frame.split_at(HEAD);
        let (kind, flags) = (head[3], head[4]);
        if kind == HEADERS {
            self.start.copy_from_slice(head);
            self.block.clear();
            self.raw.clear();
            payload = fragment(flags, payload)?;
        }
        self.block.extend_from_slice(payload);
        self.raw.extend_from_slice(&frame);
        if flags & END_HEADERS != 0 {
            self.end_of_block(out)?;
        }
        Ok(())
    }

    fn end_of_block(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let fields = self.decoder.decode(&self.block).ok_or_else(|| broken("a header block cannot be decoded"))?;
        self.block.clear();
        if matches!(self.mode, Mode::Undecided) {
            if fields.iter().all(|(name, value)| &**name != b":authority" || is_sound(value)) {
                self.mode = Mode::Transparent;
                out.append(&mut self.raw);
                return Ok(());
            }
            self.mode = Mode::Mending;
        }
        self.raw.clear();
        rewrite(&fields, [self.start[5], self.start[6], self.start[7], self.start[8]], self.start[4] & END_STREAM, out);
        Ok(())
    }
}

/// What a header frame's payload has beside padding and priority.
pub(super) fn fragment(flags: u8, mut payload: &[u8]) -> io::Result<&[u8]> {
    if flags & PADDED != 0 {
        let (pad, rest) = payload.split_first().ok_or_else(|| broken("padding without a length"))?;
        let keep = rest.len().checked_sub(usize::from(*pad)).ok_or_else(|| broken("more padding than frame"))?;
        payload = &rest[..keep];
    }
    if flags & PRIORITY != 0 {
        payload = payload.get(5..).ok_or_else(|| broken("a priority is cut off"))?;
    }
    Ok(payload)
}

/// Writes a header block anew, with an authority that can be read. `end` is the flag of a stream's end, or nothing.
pub(super) fn rewrite(fields: &[Field], stream: [u8; 4], end: u8, out: &mut impl BufMut) {
    let mut anew = Vec::new();
    for (name, value) in fields {
        // A literal that is never indexed: the server's table stays empty, whatever the client's holds.
        anew.push(0x10);
        put_string(&mut anew, name);
        put_string(&mut anew, if &**name == b":authority" { mended(value) } else { value });
    }
    let mut pieces = anew.chunks(FRAME_BYTES).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { end | last } else { last };
        let length = u32::try_from(piece.len()).unwrap_or(0).to_be_bytes();
        out.put_slice(&[length[1], length[2], length[3], kind, flags]);
        out.put_slice(&stream);
        out.put_slice(piece);
        kind = CONTINUATION;
    }
}

fn is_sound(authority: &[u8]) -> bool {
    http::uri::Authority::try_from(authority).is_ok()
}

/// The part of an authority that can be read.
fn mended(authority: &[u8]) -> &[u8] {
    let start = authority.windows(3).position(|three| three == b"://").map_or(0, |place| place + 3);
    let rest = authority.get(start..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let host = &rest[..end];
    if is_sound(host) { host } else { NOWHERE }
}

/// A string as HPACK has it, without Huffman's code.
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    const MOST: usize = 0x7f;
    if text.len() < MOST {
        out.push(u8::try_from(text.len()).unwrap_or(0));
    } else {
        out.push(0x7f);
        let mut left = text.len() - MOST;
        while left >= 0x80 {
            out.push(u8::try_from(left & 0x7f).unwrap_or(0) | 0x80);
            left >>= 7;
        }
        out.push(u8::try_from(left).unwrap_or(0));
    }
    out.extend_from_slice(text);
}

/// A connection whose client may write its authority as it likes.
pub(super) struct Lenient<S> {
    inner: S,
    mender: Mender,
    /// What the server has not read yet.
    out: Vec<u8>,
    read: usize,
}

impl<S> Lenient<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, mender: Mender::new(), out: Vec::new(), read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.read < this.out.len() {
                let now = (this.out.len() - this.read).min(buf.remaining());
                buf.put_slice(&this.out[this.read..this.read + now]);
                this.read += now;
                return Poll::Ready(Ok(()));
            }
            this.out.clear();
            this.read = 0;
            if this.mender.is_transparent() {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut chunk = [0; 8192];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.mender.feed(chunk.filled(), &mut this.out)?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[length[1], length[2], length[3], kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    fn fields(list: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in list {
            // With indexing: the next block may refer to it.
            out.push(0x40);
            put_string(&mut out, name.as_bytes());
            put_string(&mut out, value.as_bytes());
        }
        out
    }

    /// What the server sees, however the bytes are cut.
    fn through(bytes: &[u8], step: usize) -> Vec<u8> {
        let mut mender = Mender::new();
        let mut out = Vec::new();
        bytes.chunks(step).for_each(|chunk| mender.feed(chunk, &mut out).unwrap());
        out
    }

    #[test]
    fn sound_connections_pass_untouched() {
        let block = fields(&[(":path", "/x"), (":authority", "127.0.0.1:2379")]);
        let (first, second) = block.split_at(5);
        let bytes = [
            PREFACE.to_vec(),
            frame(4, 0, &[0; 6]),
            frame(HEADERS, END_STREAM, first),
            frame(CONTINUATION, END_HEADERS, second),
            frame(0, 1, b"data"),
            frame(HEADERS, END_HEADERS, b"whatever this is"),
        ]
        .concat();
        for step in [1, 3, 10_000] {
            assert_eq!(through(&bytes, step), bytes);
        }
        let http1 = b"GET /health HTTP/1.1\r\nhost: PRI\r\n\r\n";
        assert_eq!(through(http1, 2), http1);
    }

    #[test]
    fn a_url_becomes_its_host_and_later_blocks_are_written_anew() {
        let long = "x".repeat(300);
        let first = fields(&[(":authority", "http://127.0.0.1:2379"), ("long", &long)]);
        // Priority and padding go; the second block is two references into the client's table.
        let padded = [&[2, 0, 0, 0, 0, 9][..], &first, &[0, 0]].concat();
        let bytes = [
            PREFACE.to_vec(),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
            frame(0, END_STREAM, b"data"),
            frame(HEADERS, END_HEADERS | END_STREAM, &[0x80 | 63, 0x80 | 62]),
        ]
        .concat();
        let mut plain = Vec::new();
        for (name, value) in [(":authority", "127.0.0.1:2379"), ("long", long.as_str())] {
            plain.push(0x10);
            put_string(&mut plain, name.as_bytes());
            put_string(&mut plain, value.as_bytes());
        }
        let expected = [
            PREFACE.to_vec(),
            frame(HEADERS, END_HEADERS, &plain),
            frame(0, END_STREAM, b"data"),
            frame(HEADERS, END_HEADERS | END_STREAM, &plain),
        ]
        .concat();
        for step in [1, 7, 10_000] {
            assert_eq!(through(&bytes, step), expected);
        }
    }

    #[test]
    fn what_cannot_be_read_becomes_localhost() {
        for (given, host) in
            [("http://a:1", "a:1"), ("https://a:1/x", "a:1"), ("a:1/", "a:1"), ("", "localhost"), ("/run/x.sock", "localhost")]
        {
            assert_eq!(mended(given.as_bytes()), host.as_bytes(), "{given}");
        }
    }

    proptest! {
        /// Whatever is sent, the worst is an error.
        #[test]
        fn nonsense_is_survived(
            frames in prop::collection::vec((prop::sample::select(vec![0u8, 1, 4, 9]), any::<u8>(), prop::collection::vec(any::<u8>(), 0..80)), 0..8),
            step in 1usize..40,
        ) {
            let bytes = frames.iter().fold(PREFACE.to_vec(), |mut bytes, (kind, flags, payload)| {
                bytes.extend(frame(*kind, *flags, payload));
                bytes
            });
            let mut mender = Mender::new();
            let mut out = Vec::new();
            for chunk in bytes.chunks(step) {
                if mender.feed(chunk, &mut out).is_err() {
                    break;
                }
            }
        }
    }
}
