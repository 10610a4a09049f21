//! What goes out on a connection: whole frames of two senders, within the windows that the client has opened.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::wire::{DATA, Frame, Streams, put_head};
use crate::http::authority::{FRAME_BYTES, HEAD};

/// What every connection begins with.
pub(super) const DEFAULT_WINDOW: i64 = 65_535;

/// An answer that waits for its window.
struct Waiting {
    stream: u32,
    body: Bytes,
    /// The frame after it.
    trailers: Bytes,
}

/// The way out.
pub(super) struct Outlet {
    /// Whole frames, to be sent in this order.
    pub(super) ready: BytesMut,
    /// What the client still takes on the whole connection. The server behind believes that it may send [`owed`](Self::owed) more.
    window: i64,
    /// Bytes of ours that the client has not made room for again.
    owed: i64,
    /// Frames of the server behind that wait for the connection's window, and all that came after them.
    held: VecDeque<Bytes>,
    held_bytes: usize,
    waiting: VecDeque<Waiting>,
}

impl Outlet {
    pub(super) fn new() -> Self {
        Self { ready: BytesMut::new(), window: DEFAULT_WINDOW, owed: 0, held: VecDeque::new(), held_bytes: 0, waiting: VecDeque::new() }
    }

    /// Bytes on their way that the server behind has given.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.held_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.held.is_empty() && self.waiting.is_empty()
    }

    /// A whole frame of the server behind.
    pub(super) fn pass(&mut self, frame: &Frame<'_>) {
        if self.held.is_empty() && self.fits(frame.kind, frame.payload.len()) {
            self.ready.put_slice(frame.head);
            self.ready.put_slice(frame.payload);
            return;
        }
        self.held_bytes += HEAD + frame.payload.len();
        self.held.push_back([frame.head, frame.payload].concat().into());
    }

    /// Takes a frame's share of the window, if it fits.
    fn fits(&mut self, kind: u8, payload: usize) -> bool {
        if kind != DATA {
            return true;
        }
        let bytes = signed(payload);
        let fits = bytes <= self.window;
        if fits {
            self.window -= bytes;
        }
        fits
    }

    /// Takes the share of an answer of ours that fits one frame, if it may go out now.
    pub(super) fn take(&mut self, bytes: usize, window: i64) -> bool {
        let fits = bytes <= FRAME_BYTES && self.held.is_empty() && signed(bytes) <= self.window.min(window);
        if fits {
            self.window -= signed(bytes);
            self.owed += signed(bytes);
        }
        fits
    }

    /// An answer of ours that does not go out at once; its header has.
    pub(super) fn wait(&mut self, stream: u32, body: Bytes, trailers: Bytes) {
        self.waiting.push_back(Waiting { stream, body, trailers });
    }

    /// The client takes so much more on the whole connection; what of it the server behind is to know.
    pub(super) fn widen(&mut self, more: u32) -> u32 {
        let more = i64::from(more);
        self.window += more;
        let ours = more.min(self.owed);
        self.owed -= ours;
        u32::try_from(more - ours).unwrap_or(0)
    }

    /// A stream of ours has ended, or never will.
    pub(super) fn forget(&mut self, stream: u32) {
        self.waiting.retain(|waiting| waiting.stream != stream);
    }

    /// Lets out what fits by now. Streams of ours that end with it are removed.
    pub(super) fn drain(&mut self, streams: &mut Streams) {
        while let Some(frame) = self.held.front().cloned() {
            if !self.fits(frame[3], frame.len() - HEAD) {
                return;
            }
            self.ready.put_slice(&frame);
            self.held_bytes -= frame.len();
            self.held.pop_front();
        }
        for _ in 0..self.waiting.len() {
            let Some(mut waiting) = self.waiting.pop_front() else { return };
            let Some(stream) = streams.get_mut(&waiting.stream) else { continue };
            loop {
                let room = usize::try_from(self.window.min(stream.window)).unwrap_or(0).min(FRAME_BYTES);
                let piece = waiting.body.split_to(room.min(waiting.body.len()));
                if piece.is_empty() {
                    break;
                }
                put_head(&mut self.ready, piece.len(), DATA, 0, waiting.stream);
                self.ready.put_slice(&piece);
                let bytes = signed(piece.len());
                (self.window, self.owed, stream.window) = (self.window - bytes, self.owed + bytes, stream.window - bytes);
            }
            if waiting.body.is_empty() {
                self.ready.put_slice(&waiting.trailers);
                streams.remove(&waiting.stream);
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
