//! The frames of a connection: which are of short calls, and what becomes of the others. Bytes go in and come out; who moves them is not
//! its business.
//!
//! What the client and the server behind share is kept straight like this:
//! - The server behind is sent header blocks without references to the client's table, of which it sees only a part. Answers to short calls
//!   touch no table at all, so that the server's own answers can be passed on as they are.
//! - Its goodbye names the last stream that it has seen; the client is told the last one that anybody has, or it would make calls again
//!   that have been carried out.
//! - Bytes of short calls are acknowledged here. Room that the client makes for bytes that were sent here is not told to it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;

use super::super::Peer;
use super::super::authority::{
    BLOCK_BYTES, CONTINUATION, END_HEADERS, END_STREAM, FRAME_BYTES, HEAD, HEADERS, PADDED, PREFACE, broken, fragment, put_string, rewrite,
};
use super::super::hpack::Decoder;
use super::outlet::{DEFAULT_WINDOW, Outlet};
use crate::grpc::short::{Answer, Calls, Head, PREFIX};

/// Kinds of frames that matter here, beside those of headers.
pub(super) const DATA: u8 = 0;
const PRIORITY_FRAME: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// The flag of an answer to settings.
const ACK: u8 = 0x1;

/// The number of a setting.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// In a goodbye: "I shall say later which was the last".
const NOT_YET: u32 = 0x7fff_ffff;

/// The client may send so much more when it has sent so much.
const REPLENISH: u32 = 256 << 10;

/// Header blocks of short calls that are known by heart.
const KNOWN_BLOCKS: usize = 32;

/// A header block without a reference to any table: `:status: 200`, `content-type: application/grpc`.
const HEADERS_OK: &[u8] = b"\x88\x0f\x10\x10application/grpc";

/// The same of trailers: `grpc-status: 0`.
const TRAILERS_OK: &[u8] = b"\x00\x0bgrpc-status\x010";

/// A frame that lies somewhere.
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) head: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// A stream of a short call.
pub(super) struct Stream {
    /// What the client takes on it.
    pub(super) window: i64,
    /// What came of the call, until all of it has.
    coming: Option<Coming>,
}

/// A call that has not come in whole.
struct Coming {
    head: Arc<Head>,
    body: Bytes,
    /// Bytes that were not acknowledged on the stream.
    received: u32,
}

/// Streams of short calls, by number.
pub(super) type Streams = BTreeMap<u32, Stream>;

/// A call that has come in.
pub(super) struct Asked {
    pub(super) stream: u32,
    pub(super) head: Arc<Head>,
    pub(super) body: Bytes,
}

/// What speaks.
enum Mode {
    /// Nobody knows.
    Unknown,
    /// HTTP/2.
    Frames,
    /// Something else: nothing is looked at.
    Through,
}

/// A header block under way.
struct Block {
    stream: u32,
    flags: u8,
    bytes: BytesMut,
}

/// One connection's state.
pub(super) struct Wire {
    calls: Arc<Calls>,
    peer: Peer,
    mode: Mode,
    decoder: Decoder,
    /// Header blocks that mean a short call as long as the client's table stays as it is, and which version of it that is.
    known: BTreeMap<Bytes, Arc<Head>>,
    known_version: u64,
    block: Option<Block>,
    streams: Streams,
    /// The highest number of a stream that was begun, and the highest that the server behind has seen.
    highest: u32,
    passed: u32,
    /// What the client takes on a stream that begins.
    stream_window: i64,
    /// Bytes of short calls that were not acknowledged on the connection.
    received: u32,
    /// So many short calls may be under way; and are, as far as the last look said.
    most: usize,
    pub(super) running: usize,
    /// No short calls are begun any more.
    closing: bool,
    /// What the server behind has begun to write.
    partial: BytesMut,
    /// What the server behind has not read.
    pub(super) to_server: BytesMut,
    pub(super) asked: Vec<Asked>,
    pub(super) outlet: Outlet,
}

impl Wire {
    pub(super) fn new(calls: Arc<Calls>, peer: Peer, most: usize) -> Self {
        Self {
            calls,
            peer,
            mode: Mode::Unknown,
            decoder: Decoder::new(),
            known: BTreeMap::new(),
            known_version: 0,
            block: None,
            streams: BTreeMap::new(),
            highest: 0,
            passed: 0,
            stream_window: DEFAULT_WINDOW,
            received: 0,
            most,
            running: 0,
            closing: false,
            partial: BytesMut::new(),
            to_server: BytesMut::new(),
            asked: Vec::new(),
            outlet: Outlet::new(),
        }
    }

    /// Whether this is no HTTP/2, and nobody looks at it.
    pub(super) const fn is_through(&self) -> bool {
        matches!(self.mode, Mode::Through)
    }

    /// No short calls are begun from now on.
    pub(super) const fn close(&mut self) {
        self.closing = true;
    }

    /// Takes what the client has sent, as far as it is complete.
    ///
    /// # Errors
    /// What came makes no sense: the connection is of no use any more.
    pub(super) fn feed(&mut self, input: &mut BytesMut) -> io::Result<()> {
        loop {
            match self.mode {
                Mode::Through => {
                    self.to_server.unsplit(input.split());
                    return Ok(());
                }
                Mode::Unknown => {
                    let seen = input.len().min(PREFACE.len());
                    if input[..seen] != PREFACE[..seen] {
                        self.mode = Mode::Through;
                    } else if seen == PREFACE.len() {
                        self.to_server.put_slice(&input.split_to(seen));
                        self.mode = Mode::Frames;
                    } else {
                        return Ok(());
                    }
                }
                Mode::Frames => {
                    let Some(length) = length_of(input) else { return Ok(()) };
                    if length > crate::http::serve::FRAME as usize {
                        // The server behind says what is wrong with that.
                        self.mode = Mode::Through;
                    } else if input.len() < HEAD + length {
                        return Ok(());
                    } else {
                        let frame = input.split_to(HEAD + length).freeze();
                        self.frame(&frame)?;
                    }
                }
            }
        }
    }

    fn frame(&mut self, frame: &Bytes) -> io::Result<()> {
        let (kind, flags, stream) = (frame[3], frame[4], stream_of(frame));
        if self.block.is_some() && kind != CONTINUATION {
            return Err(broken("a header block is interrupted"));
        }
        let ours = self.streams.contains_key(&stream);
        match kind {
            HEADERS => {
                let bytes = fragment(flags, &frame[HEAD..])?;
                if flags & END_HEADERS != 0 && bytes.len() + HEAD == frame.len() {
                    return self.begin(stream, flags, &frame.slice(HEAD..));
                }
                self.block = Some(Block { stream, flags, bytes: bytes.into() });
                self.end_of_block(flags)
            }
            CONTINUATION => {
                let block = self.block.as_mut().ok_or_else(|| broken("a header block goes on that has not begun"))?;
                block.bytes.put_slice(&frame[HEAD..]);
                if block.stream != stream || block.bytes.len() > BLOCK_BYTES {
                    return Err(broken("a header block is of two streams, or too large"));
                }
                self.end_of_block(flags)
            }
            DATA if ours => self.data(stream, flags, frame),
            RST_STREAM if ours => {
                // The call goes on if it has begun; nobody is told.
                self.streams.remove(&stream);
                self.outlet.forget(stream);
                Ok(())
            }
            WINDOW_UPDATE if stream == 0 || ours => self.widen(stream, &frame[HEAD..]),
            // Of a stream of ours that has ended.
            DATA if stream > self.passed => {
                self.acknowledge(frame.len() - HEAD);
                Ok(())
            }
            RST_STREAM | WINDOW_UPDATE | PRIORITY_FRAME if ours || stream > self.passed => Ok(()),
            _ => {
                if kind == SETTINGS && flags & ACK == 0 {
                    self.settings(&frame[HEAD..]);
                }
                self.to_server.put_slice(frame);
                Ok(())
            }
        }
    }

    fn end_of_block(&mut self, flags: u8) -> io::Result<()> {
        if flags & END_HEADERS == 0 {
            return Ok(());
        }
        let Some(block) = self.block.take() else { return Ok(()) };
        self.begin(block.stream, block.flags, &block.bytes.freeze())
    }

    /// A header block is complete: a stream begins with it, or is ended by it.
    fn begin(&mut self, number: u32, flags: u8, block: &Bytes) -> io::Result<()> {
        let before = self.decoder.version();
        let known = if before == self.known_version { self.known.get(block).cloned() } else { None };
        let (head, fields) = match known {
            Some(head) => (Some(head), Vec::new()),
            None => {
                let fields = self.decoder.decode(block).ok_or_else(|| broken("a header block cannot be decoded"))?;
                (self.calls.head(&fields, &self.peer), fields)
            }
        };
        if self.streams.contains_key(&number) {
            // Trailers.
            return if flags & END_STREAM != 0 { self.whole(number) } else { Ok(()) };
        }
        let short = head.filter(|_| {
            let free = self.streams.len().max(self.running) < self.most;
            free && !self.closing && flags & END_STREAM == 0 && number > self.highest && number % 2 == 1
        });
        let Some(head) = short else {
            // Only now, because a header that is known by heart was not decoded. That does not change the table, either.
            let fields = if fields.is_empty() { self.decoder.decode(block).unwrap_or_default() } else { fields };
            self.highest = self.highest.max(number);
            self.passed = self.passed.max(number);
            rewrite(&fields, number.to_be_bytes(), flags & END_STREAM, &mut self.to_server);
            return Ok(());
        };
        self.remember(before, block, &head);
        self.highest = number;
        let coming = Some(Coming { head, body: Bytes::new(), received: 0 });
        self.streams.insert(number, Stream { window: self.stream_window, coming });
        Ok(())
    }

    /// Learns a header block by heart, if it means the same the next time.
    fn remember(&mut self, before: u64, block: &Bytes, head: &Arc<Head>) {
        let now = self.decoder.version();
        if now != self.known_version || self.known.len() >= KNOWN_BLOCKS {
            self.known.clear();
            self.known_version = now;
        }
        if before == now && !self.known.contains_key(block) {
            self.known.insert(Bytes::copy_from_slice(block), Arc::clone(head));
        }
    }

    fn data(&mut self, number: u32, flags: u8, frame: &Bytes) -> io::Result<()> {
        self.acknowledge(frame.len() - HEAD);
        let Some(Stream { coming: Some(coming), .. }) = self.streams.get_mut(&number) else {
            return Err(broken("a stream goes on that was ended"));
        };
        let mut piece = frame.slice(HEAD..);
        if flags & PADDED != 0 {
            let plain = fragment(PADDED, &piece)?;
            piece = piece.slice_ref(plain);
        }
        // What is too long is refused as soon as the head of the message is seen: the rest is not kept.
        piece.truncate((self.calls.longest() + 1).saturating_sub(coming.body.len()));
        if coming.body.is_empty() {
            coming.body = piece;
        } else if !piece.is_empty() {
            let mut body = coming.body.split_to(coming.body.len()).try_into_mut().unwrap_or_else(|body| BytesMut::from(&*body));
            body.put_slice(&piece);
            coming.body = body.freeze();
        }
        coming.received += u32::try_from(frame.len() - HEAD).unwrap_or(u32::MAX);
        let last = flags & END_STREAM != 0;
        if coming.received >= REPLENISH && !last {
            let more = std::mem::take(&mut coming.received);
            put_update(&mut self.outlet.ready, number, more);
        }
        if last { self.whole(number) } else { Ok(()) }
    }

    /// A call has come in whole.
    fn whole(&mut self, number: u32) -> io::Result<()> {
        let coming = self.streams.get_mut(&number).and_then(|stream| stream.coming.take());
        let Coming { head, body, .. } = coming.ok_or_else(|| broken("a stream is ended twice"))?;
        self.asked.push(Asked { stream: number, head, body });
        Ok(())
    }

    /// The client may send so much again.
    fn acknowledge(&mut self, bytes: usize) {
        self.received += u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.received >= REPLENISH {
            let more = std::mem::take(&mut self.received);
            put_update(&mut self.outlet.ready, 0, more);
        }
    }

    fn widen(&mut self, number: u32, payload: &[u8]) -> io::Result<()> {
        let more: [u8; 4] = payload.try_into().map_err(|_| broken("a window's update is not four bytes"))?;
        let more = u32::from_be_bytes(more) & NOT_YET;
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.window += i64::from(more);
        } else {
            let rest = self.outlet.widen(more);
            // An update by nothing is an error, and whose it is must come out.
            if rest > 0 || more == 0 {
                put_update(&mut self.to_server, 0, rest);
            }
        }
        self.outlet.drain(&mut self.streams);
        Ok(())
    }

    fn settings(&mut self, mut payload: &[u8]) {
        while payload.len() >= 6 {
            let (number, value) = (payload.get_u16(), payload.get_u32());
            if number == INITIAL_WINDOW_SIZE {
                let more = i64::from(value) - self.stream_window;
                self.stream_window = i64::from(value);
                self.streams.values_mut().for_each(|stream| stream.window += more);
            }
        }
        self.outlet.drain(&mut self.streams);
    }

    /// Takes what the server behind writes.
    pub(super) fn written_behind(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.partial.is_empty()
                && let Some(length) = length_of(bytes)
                && bytes.len() >= HEAD + length
            {
                let (frame, rest) = bytes.split_at(HEAD + length);
                bytes = rest;
                self.pass(frame);
                continue;
            }
            let missing = length_of(&self.partial).map_or(HEAD, |length| HEAD + length) - self.partial.len();
            let (now, rest) = bytes.split_at(missing.min(bytes.len()));
            bytes = rest;
            self.partial.put_slice(now);
            if length_of(&self.partial).is_some_and(|length| self.partial.len() == HEAD + length) {
                let frame = self.partial.split();
                self.pass(&frame);
            }
        }
    }

    /// A whole frame of the server behind.
    fn pass(&mut self, frame: &[u8]) {
        let (head, payload) = frame.split_at(HEAD);
        let last = payload.first_chunk().map(|last| u32::from_be_bytes(*last) & NOT_YET);
        if let (GOAWAY, Some(last)) = (head[3], last.filter(|last| *last != NOT_YET)) {
            self.closing = true;
            let payload = [&last.max(self.highest).to_be_bytes(), &payload[4..]].concat();
            return self.outlet.pass(&Frame { kind: GOAWAY, head, payload: &payload });
        }
        self.outlet.pass(&Frame { kind: head[3], head, payload });
    }

    /// Answers a call. If its client has given it up, nobody hears.
    pub(super) fn answer(&mut self, number: u32, answer: &Answer) {
        let Some(stream) = self.streams.get(&number) else { return };
        let (headers, body, trailers) = match answer {
            Answer::Refused(status) => (Some(status.clone().into_http::<()>().into_parts().0.headers), Bytes::new(), None),
            Answer::Whole(whole) => (Some(whole.0.clone()), whole.1.clone(), whole.2.clone()),
            message => {
                let bytes = PREFIX + message.message_bytes().unwrap_or(0);
                if self.outlet.take(bytes, stream.window) {
                    self.streams.remove(&number);
                    put_message(&mut self.outlet.ready, number, bytes, message);
                    return;
                }
                let mut body = BytesMut::with_capacity(bytes);
                put_prefixed(&mut body, bytes, message);
                (None, body.freeze(), None)
            }
        };
        let mut block = BytesMut::new();
        match headers {
            None => block.put_slice(HEADERS_OK),
            Some(headers) => {
                block.put_u8(HEADERS_OK[0]);
                put_fields(&mut block, &headers);
            }
        }
        let only = body.is_empty() && trailers.is_none();
        put_headers(&mut self.outlet.ready, number, only, &block);
        if only {
            self.streams.remove(&number);
            return;
        }
        let mut block = BytesMut::new();
        match trailers {
            None => block.put_slice(TRAILERS_OK),
            Some(trailers) => put_fields(&mut block, &trailers),
        }
        let mut last = BytesMut::new();
        put_headers(&mut last, number, true, &block);
        self.outlet.wait(number, body, last.freeze());
        self.outlet.drain(&mut self.streams);
    }
}

/// Bytes of the payload of the frame that begins here, if its head is there.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    Some(usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]))
}

fn stream_of(head: &[u8]) -> u32 {
    u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & NOT_YET
}

/// Writes a frame's head.
pub(super) fn put_head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).expect("frames are shorter than 16 MiB").to_be_bytes();
    let stream = stream.to_be_bytes();
    out.put_slice(&[length[1], length[2], length[3], kind, flags, stream[0], stream[1], stream[2], stream[3]]);
}

fn put_update(out: &mut BytesMut, stream: u32, more: u32) {
    put_head(out, 4, WINDOW_UPDATE, 0, stream);
    out.put_u32(more);
}

/// A message with what goes before it, `bytes` in all.
fn put_prefixed(out: &mut BytesMut, bytes: usize, message: &Answer) {
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes - PREFIX).expect("an answer is smaller than 4 GiB"));
    message.write(out);
}

/// A whole answer: headers, message, trailers.
fn put_message(out: &mut BytesMut, stream: u32, bytes: usize, message: &Answer) {
    out.reserve(3 * HEAD + HEADERS_OK.len() + TRAILERS_OK.len() + bytes);
    put_head(out, HEADERS_OK.len(), HEADERS, END_HEADERS, stream);
    out.put_slice(HEADERS_OK);
    put_head(out, bytes, DATA, 0, stream);
    put_prefixed(out, bytes, message);
    put_head(out, TRAILERS_OK.len(), HEADERS, END_HEADERS | END_STREAM, stream);
    out.put_slice(TRAILERS_OK);
}

/// A header block of any length.
fn put_headers(out: &mut BytesMut, stream: u32, last: bool, block: &[u8]) {
    let (mut kind, mut flags) = (HEADERS, if last { END_STREAM } else { 0 });
    let mut pieces = block.chunks(FRAME_BYTES).peekable();
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        put_head(out, piece.len(), kind, flags | end, stream);
        out.put_slice(piece);
        (kind, flags) = (CONTINUATION, 0);
    }
}

/// Fields as literals that are not indexed.
fn put_fields(out: &mut BytesMut, fields: &HeaderMap) {
    let mut text = Vec::new();
    for (name, value) in fields {
        text.push(0);
        put_string(&mut text, name.as_str().as_bytes());
        put_string(&mut text, value.as_bytes());
    }
    out.put_slice(&text);
}
