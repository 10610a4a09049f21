//! HTTP/2 and gRPC as far as many closed loops on one connection need them: requests out, messages in, nothing decoded that nobody looks at.
//!
//! What generates the load shares the machine with what is measured. A general client costs 20 to 30 µs for a call, as much as the
//! servers; this one costs about 2. It is a real client all the same: it respects the server's windows, answers pings and settings, and
//! indexes its headers as every gRPC library does. Header blocks that come in are not decoded: a unary call went well if and only if
//! it brought a message.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's head.
const HEAD: usize = 9;

/// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// Flags of frames.
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Numbers of settings.
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;

/// What the server may send ahead, and how much of it is taken before it is told to go on.
const WINDOW: u32 = 1 << 30;
const REPLENISH: u32 = 1 << 27;

/// What HTTP/2 begins with.
const DEFAULT_WINDOW: i64 = 65_535;
const DEFAULT_FRAME: usize = 16_384;
const DEFAULT_TABLE: u32 = 4_096;

/// The longest message that is taken.
const MESSAGE_BYTES: usize = 1 << 30;

/// Something that came in.
#[derive(Debug)]
pub(super) enum Event {
    /// A whole message for a caller. Empty if its stream was opened to skip bodies.
    Message {
        /// Whose.
        caller: u32,
        /// What.
        body: Bytes,
    },
    /// A stream has ended.
    Ended {
        /// Whose.
        caller: u32,
        /// Messages that it had brought.
        messages: u64,
    },
}

/// A request header: its name, by its number in HPACK's static table if it is there, and its value.
#[derive(Clone, PartialEq, Eq)]
struct Field {
    name: Result<u8, &'static str>,
    value: Cow<'static, str>,
}

/// A stream that is open.
struct Stream {
    caller: u32,
    /// What may be sent on it.
    window: i64,
    /// What came since the last update of its window.
    received: u32,
    messages: u64,
    /// Bytes of messages that are not complete; or, if bodies are skipped, only the head of the next one.
    partial: BytesMut,
    /// Bytes of the present message that are still to be skipped.
    skip: usize,
    keep: bool,
}

/// What waits for a window.
struct Blocked {
    stream: u32,
    body: Bytes,
    end: bool,
}

/// One connection's state. Bytes go in and out through [`Wire::feed`] and [`Wire::out`]; who moves them is not its business.
pub(super) struct Wire {
    out: BytesMut,
    /// Fields in the order in which they entered the dynamic table.
    indexed: Vec<Field>,
    /// What every request has beside its path.
    fixed: [Field; 4],
    /// Open streams: the first is number `base`, then every second number.
    streams: VecDeque<Option<Stream>>,
    base: u32,
    open: usize,
    window: i64,
    stream_window: i64,
    frame: usize,
    received: u32,
    blocked: VecDeque<Blocked>,
}

fn broken(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl Wire {
    /// A new connection to `authority`.
    pub(super) fn new(authority: &str) -> Self {
        let mut out = BytesMut::with_capacity(64 << 10);
        out.put_slice(PREFACE);
        put_head(&mut out, 18, SETTINGS, 0, 0);
        for (number, value) in [(ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW), (MAX_FRAME_SIZE, 1 << 20)] {
            out.put_u16(number);
            out.put_u32(value);
        }
        put_head(&mut out, 4, WINDOW_UPDATE, 0, 0);
        out.put_u32(WINDOW);
        let fixed = [
            Field { name: Ok(1), value: authority.to_owned().into() },
            Field { name: Ok(31), value: "application/grpc".into() },
            Field { name: Err("te"), value: "trailers".into() },
            Field { name: Ok(58), value: concat!("kontiki-bench/", env!("CARGO_PKG_VERSION")).into() },
        ];
        Self {
            out,
            indexed: Vec::new(),
            fixed,
            streams: VecDeque::new(),
            base: 1,
            open: 0,
            window: DEFAULT_WINDOW,
            stream_window: DEFAULT_WINDOW,
            frame: DEFAULT_FRAME,
            received: 0,
            blocked: VecDeque::new(),
        }
    }

    /// What is to be sent.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Streams that are open.
    pub(super) const fn open_streams(&self) -> usize {
        self.open
    }

    /// Calls `path` for a caller with a message. `last`: nothing follows. `keep`: hand out what comes back, too.
    pub(super) fn call(&mut self, caller: u32, path: &'static str, message: &[u8], last: bool, keep: bool) -> u32 {
        let number = self.base + 2 * u32::try_from(self.streams.len()).expect("a connection has fewer than 2^31 streams");
        let window = self.stream_window;
        self.streams.push_back(Some(Stream { caller, window, received: 0, messages: 0, partial: BytesMut::new(), skip: 0, keep }));
        self.open += 1;
        let at = self.out.len();
        put_head(&mut self.out, 0, HEADERS, END_HEADERS, number);
        self.put_headers(path);
        let len = self.out.len() - at - HEAD;
        self.out[at..at + 3].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()[1..]);
        self.send(number, message, last);
        number
    }

    /// Sends a message on a stream.
    pub(super) fn send(&mut self, stream: u32, message: &[u8], last: bool) {
        let len = message.len() + 5;
        let room = self.stream(stream).map_or(0, |s| s.window).min(self.window);
        let fits = len <= self.frame && i64::try_from(len).is_ok_and(|len| len <= room) && self.blocked.is_empty();
        if fits {
            self.put_data(stream, len, last);
            put_prefix(&mut self.out, message.len());
            self.out.put_slice(message);
            return;
        }
        let mut body = BytesMut::with_capacity(len);
        put_prefix(&mut body, message.len());
        body.put_slice(message);
        self.blocked.push_back(Blocked { stream, body: body.freeze(), end: last });
        self.unblock();
    }

    /// Takes what came in, as far as it is complete, and tells what happened.
    pub(super) fn feed(&mut self, input: &mut BytesMut, events: &mut Vec<Event>) -> io::Result<()> {
        while input.len() >= HEAD {
            let len = usize::from(input[0]) << 16 | usize::from(input[1]) << 8 | usize::from(input[2]);
            if input.len() < HEAD + len {
                break;
            }
            let (kind, flags) = (input[3], input[4]);
            let stream = u32::from_be_bytes([input[5], input[6], input[7], input[8]]) & 0x7fff_ffff;
            let frame = input.split_to(HEAD + len).freeze().slice(HEAD..);
            self.take(kind, flags, stream, frame, events)?;
        }
        Ok(())
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, mut frame: Bytes, events: &mut Vec<Event>) -> io::Result<()> {
        match kind {
            DATA => {
                self.received(stream, frame.len());
                if flags & PADDED != 0 {
                    let pad = usize::from(frame.try_get_u8().map_err(|_| broken("an empty padded frame"))?);
                    frame.truncate(frame.len().checked_sub(pad).ok_or_else(|| broken("more padding than frame"))?);
                }
                self.data(stream, frame, events)?;
                if flags & END_STREAM != 0 {
                    self.ended(stream, events);
                }
            }
            HEADERS if flags & END_STREAM != 0 => self.ended(stream, events),
            RST_STREAM => self.ended(stream, events),
            SETTINGS if flags & ACK == 0 => self.settings(frame)?,
            PING if flags & ACK == 0 => {
                put_head(&mut self.out, frame.len(), PING, ACK, 0);
                self.out.put_slice(&frame);
            }
            GOAWAY if frame.len() >= 8 && frame[4..8] != [0; 4] => {
                return Err(broken(format!("the server ends the connection: {}", String::from_utf8_lossy(&frame[8..]))));
            }
            GOAWAY => return Err(broken("the server shuts down")),
            WINDOW_UPDATE if frame.len() == 4 => {
                let more = i64::from(frame.get_u32() & 0x7fff_ffff);
                if stream == 0 {
                    self.window += more;
                } else if let Some(stream) = self.stream(stream) {
                    stream.window += more;
                }
                self.unblock();
            }
            // The rest of a header block, a priority: nothing to do.
            _ => {}
        }
        Ok(())
    }

    fn settings(&mut self, mut frame: Bytes) -> io::Result<()> {
        while frame.remaining() >= 6 {
            let (number, value) = (frame.get_u16(), frame.get_u32());
            match number {
                HEADER_TABLE_SIZE if value < DEFAULT_TABLE => return Err(broken("the server has no room to index headers")),
                MAX_CONCURRENT_STREAMS if (value as usize) < self.open => {
                    return Err(broken(format!("the server takes only {value} streams on a connection: use more --connections")));
                }
                INITIAL_WINDOW_SIZE => {
                    let more = i64::from(value) - self.stream_window;
                    self.stream_window = i64::from(value);
                    self.streams.iter_mut().flatten().for_each(|stream| stream.window += more);
                }
                MAX_FRAME_SIZE => self.frame = value as usize,
                _ => {}
            }
        }
        put_head(&mut self.out, 0, SETTINGS, ACK, 0);
        self.unblock();
        Ok(())
    }

    fn stream(&mut self, number: u32) -> Option<&mut Stream> {
        let place = number.checked_sub(self.base)? / 2;
        self.streams.get_mut(place as usize)?.as_mut()
    }

    /// Widens the windows again when enough has come.
    fn received(&mut self, number: u32, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.received += len;
        if self.received >= REPLENISH {
            let more = std::mem::take(&mut self.received);
            self.put_update(0, more);
        }
        let Some(stream) = self.stream(number) else { return };
        stream.received += len;
        if stream.received >= REPLENISH {
            let more = std::mem::take(&mut stream.received);
            self.put_update(number, more);
        }
    }

    fn put_update(&mut self, number: u32, more: u32) {
        put_head(&mut self.out, 4, WINDOW_UPDATE, 0, number);
        self.out.put_u32(more);
    }

    fn data(&mut self, number: u32, mut frame: Bytes, events: &mut Vec<Event>) -> io::Result<()> {
        let Some(stream) = self.stream(number) else { return Ok(()) };
        while !frame.is_empty() {
            if stream.skip > 0 {
                let skipped = stream.skip.min(frame.len());
                frame.advance(skipped);
                stream.skip -= skipped;
                if stream.skip == 0 {
                    stream.messages += 1;
                    events.push(Event::Message { caller: stream.caller, body: Bytes::new() });
                }
                continue;
            }
            let len = match prefix(&stream.partial, &frame)? {
                Some(len) => len,
                None => {
                    stream.partial.put_slice(&frame);
                    return Ok(());
                }
            };
            let have = stream.partial.len();
            if stream.keep {
                let take = (len + 5 - have).min(frame.len());
                let part = frame.split_to(take);
                if have + take < len + 5 {
                    stream.partial.put_slice(&part);
                    return Ok(());
                }
                let body = if have == 0 {
                    part.slice(5..)
                } else {
                    stream.partial.put_slice(&part);
                    stream.partial.split().freeze().slice(5..)
                };
                stream.messages += 1;
                events.push(Event::Message { caller: stream.caller, body });
            } else {
                frame.advance(5 - have);
                stream.partial.clear();
                stream.skip = len;
                if len == 0 {
                    stream.messages += 1;
                    events.push(Event::Message { caller: stream.caller, body: Bytes::new() });
                }
            }
        }
        Ok(())
    }

    fn ended(&mut self, number: u32, events: &mut Vec<Event>) {
        let Some(place) = number.checked_sub(self.base) else { return };
        if let Some(stream) = self.streams.get_mut(place as usize / 2).and_then(Option::take) {
            self.open -= 1;
            events.push(Event::Ended { caller: stream.caller, messages: stream.messages });
        }
        while self.streams.front().is_some_and(Option::is_none) {
            self.streams.pop_front();
            self.base += 2;
        }
    }

    /// Sends what waits, as far as the windows reach.
    fn unblock(&mut self) {
        while let Some(mut first) = self.blocked.pop_front() {
            let Some(room) = self.stream(first.stream).map(|s| s.window) else { continue };
            let room = usize::try_from(room.min(self.window)).unwrap_or(0).min(self.frame);
            let part = first.body.split_to(room.min(first.body.len()));
            let done = first.body.is_empty();
            if !part.is_empty() {
                self.put_data(first.stream, part.len(), first.end && done);
                self.out.put_slice(&part);
            }
            if !done {
                let stuck = part.is_empty();
                self.blocked.push_front(first);
                if stuck {
                    return;
                }
            }
        }
    }

    fn put_data(&mut self, number: u32, len: usize, last: bool) {
        put_head(&mut self.out, len, DATA, if last { END_STREAM } else { 0 }, number);
        let spent = i64::try_from(len).expect("a frame is small");
        self.window -= spent;
        if let Some(stream) = self.stream(number) {
            stream.window -= spent;
        }
    }

    fn put_headers(&mut self, path: &'static str) {
        // The static table has POST and http. What begins with a colon comes first.
        self.out.put_slice(&[0x80 | 3, 0x80 | 6]);
        self.put_field(Field { name: Ok(4), value: path.into() });
        for place in 0..self.fixed.len() {
            self.put_field(self.fixed[place].clone());
        }
    }

    /// Writes a header as its place in the dynamic table, in which it is put the first time.
    fn put_field(&mut self, field: Field) {
        if let Some(place) = self.indexed.iter().position(|known| *known == field) {
            // Entries are numbered from the newest, which is 62.
            let number = 62 + self.indexed.len() - 1 - place;
            return self.out.put_u8(0x80 | u8::try_from(number).expect("there are few headers"));
        }
        match field.name {
            Ok(number) => self.out.put_u8(0x40 | number),
            Err(name) => {
                self.out.put_slice(&[0x40, u8::try_from(name.len()).expect("names are short")]);
                self.out.put_slice(name.as_bytes());
            }
        }
        self.out.put_u8(u8::try_from(field.value.len()).ok().filter(|len| *len < 127).expect("values are short"));
        self.out.put_slice(field.value.as_bytes());
        self.indexed.push(field);
    }
}

/// The length that a message's prefix tells, if enough of it is there.
fn prefix(partial: &[u8], frame: &[u8]) -> io::Result<Option<usize>> {
    let mut bytes = partial.iter().chain(frame).copied();
    let (Some(compressed), Some(a), Some(b), Some(c), Some(d)) = (bytes.next(), bytes.next(), bytes.next(), bytes.next(), bytes.next())
    else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 || len > MESSAGE_BYTES {
        return Err(broken("a message that was not asked for: compressed, or beyond 1 GiB"));
    }
    Ok(Some(len))
}

fn put_head(out: &mut BytesMut, len: usize, kind: u8, flags: u8, stream: u32) {
    let len = u32::try_from(len).expect("a frame is smaller than 16 MiB");
    out.put_uint(len.into(), 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

fn put_prefix(out: &mut BytesMut, len: usize) {
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a message is smaller than 4 GiB"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames in what was sent: kind, flags, stream, length.
    fn sent(wire: &mut Wire) -> Vec<(u8, u8, u32, usize)> {
        let mut out = wire.out().split().freeze();
        if out.starts_with(PREFACE) {
            out.advance(PREFACE.len());
        }
        let mut frames = Vec::new();
        while out.len() >= HEAD {
            let len = out.get_uint(3) as usize;
            frames.push((out.get_u8(), out.get_u8(), out.get_u32(), len));
            out.advance(len);
        }
        frames
    }

    fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put_head(&mut out, body.len(), kind, flags, stream);
        out.put_slice(body);
        out
    }

    fn fed(wire: &mut Wire, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        wire.feed(&mut BytesMut::from(bytes), &mut events).unwrap();
        events
    }

    #[test]
    fn a_second_request_names_its_headers_by_number() {
        let mut wire = Wire::new("127.0.0.1:2379");
        wire.call(0, "/a", b"x", true, false);
        let first = sent(&mut wire);
        assert_eq!(first.iter().map(|f| (f.0, f.2)).collect::<Vec<_>>(), [(SETTINGS, 0), (WINDOW_UPDATE, 0), (HEADERS, 1), (DATA, 1)]);
        wire.call(0, "/a", b"x", true, false);
        wire.call(0, "/b", b"x", false, false);
        wire.call(0, "/a", b"x", true, false);
        let lengths: Vec<_> = sent(&mut wire).into_iter().filter(|f| f.0 == HEADERS).map(|f| (f.2, f.3)).collect();
        assert_eq!(lengths, [(3, 7), (5, 10), (7, 7)]);
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let message = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 2], b"de"].concat();
        for cut in 0..=message.len() {
            for keep in [true, false] {
                let mut wire = Wire::new("h");
                wire.call(9, "/a", b"", true, keep);
                let mut events = fed(&mut wire, &frame(HEADERS, END_HEADERS, 1, b"??"));
                events.extend(fed(&mut wire, &frame(DATA, 0, 1, &message[..cut])));
                events.extend(fed(&mut wire, &frame(DATA, 0, 1, &message[cut..])));
                events.extend(fed(&mut wire, &frame(HEADERS, END_HEADERS | END_STREAM, 1, b"??")));
                let bodies: Vec<_> =
                    events.iter().filter_map(|e| if let Event::Message { body, .. } = e { Some(&body[..]) } else { None }).collect();
                assert_eq!(bodies, if keep { [&b"abc"[..], b"", b"de"] } else { [&b""[..]; 3] }, "cut at {cut}");
                assert!(matches!(events.last(), Some(Event::Ended { caller: 9, messages: 3 })));
                assert_eq!(wire.open_streams(), 0);
            }
        }
    }

    #[test]
    fn nothing_is_sent_beyond_the_servers_windows() {
        let mut wire = Wire::new("h");
        let stream = wire.call(0, "/a", &[7; 100_000], true, false);
        let data = |wire: &mut Wire| sent(wire).into_iter().filter(|f| f.0 == DATA).map(|f| (f.1, f.3)).collect::<Vec<_>>();
        let first = data(&mut wire);
        assert_eq!(first.iter().map(|(_, len)| len).sum::<usize>(), 65_535);
        assert!(first.iter().all(|(flags, len)| *flags == 0 && *len <= DEFAULT_FRAME));
        fed(&mut wire, &frame(WINDOW_UPDATE, 0, stream, &50_000_u32.to_be_bytes()));
        assert_eq!(data(&mut wire), [], "the connection's window is closed");
        fed(&mut wire, &frame(WINDOW_UPDATE, 0, 0, &50_000_u32.to_be_bytes()));
        let rest = data(&mut wire);
        assert_eq!((rest.iter().map(|(_, len)| len).sum::<usize>(), rest.last().unwrap().0), (100_005 - 65_535, END_STREAM));
    }

    #[test]
    fn pings_and_settings_are_answered_and_a_farewell_is_an_error() {
        let mut wire = Wire::new("h");
        sent(&mut wire);
        fed(&mut wire, &frame(PING, 0, 0, &[1; 8]));
        fed(&mut wire, &frame(SETTINGS, 0, 0, &[]));
        assert_eq!(sent(&mut wire), [(PING, ACK, 0, 8), (SETTINGS, ACK, 0, 0)]);
        let mut events = Vec::new();
        let goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11, b'c', b'a', b'l', b'm']);
        let error = wire.feed(&mut goaway.clone(), &mut events).unwrap_err();
        assert!(error.to_string().ends_with("calm"), "{error}");
    }
}
