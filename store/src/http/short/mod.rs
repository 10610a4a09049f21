//! A client's connection on which the calls of [`short`](crate::grpc::short) are served where they come in.
//!
//! A general HTTP/2 server makes a request of every call, with a map of headers, a task, a body to be polled, and a response with trailers
//! of its own; measured, that is most of what a small call costs. Between the socket and that server stands this: it reads the frames
//! of a connection, keeps the streams of short calls for itself, and passes everything else on, in both directions. Neither the client nor the
//! server behind sees anything of it: what the two share (the connection's window, the table of headers, the numbers of streams) is kept
//! straight in [`wire`].
//!
//! | file | what |
//! |---|---|
//! | `wire` | frames and what they mean, without input or output |
//! | `outlet` | what goes out, in whole frames, within the client's windows |

mod outlet;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kontiki_base::{BoxFuture, limits};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::Peer;
use crate::grpc::short::{Answer, Calls};
use wire::Wire;

/// Bytes that are read at once, and how small the room for them may become before there is new room: small calls share it.
const READ: usize = 64 << 10;
const READ_LEAST: usize = 4 << 10;

/// Bytes that are kept for a server behind that cannot read because it waits to write: twice what it lets its clients send ahead.
const UNREAD: usize = 16 << 20;

/// A connection with a short way.
pub(super) struct Shortcut<S> {
    inner: S,
    calls: Arc<Calls>,
    wire: Wire,
    /// What was read, and is not a whole frame.
    input: BytesMut,
    /// Calls that are carried out, with their streams.
    running: FuturesUnordered<BoxFuture<'static, (u32, Answer)>>,
    /// The client has said all it will.
    over: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shortcut<S> {
    /// A new connection. `streams`: so many short calls may be under way.
    pub(super) fn new(inner: S, calls: Arc<Calls>, peer: Peer, streams: u32) -> Self {
        let wire = Wire::new(Arc::clone(&calls), peer, streams as usize);
        Self { inner, calls, wire, input: BytesMut::new(), running: FuturesUnordered::new(), over: false }
    }

    /// Carries on with everything that is under way, until there is nothing to do but wait, or `unread` bytes wait for the server behind.
    /// Whoever calls is woken then.
    fn pump(&mut self, cx: &mut Context<'_>, unread: usize) -> io::Result<()> {
        loop {
            while let Poll::Ready(Some((stream, answer))) = self.running.poll_next_unpin(cx) {
                self.wire.answer(stream, &answer);
            }
            let clogged = self.write(cx)?.is_pending() && self.wire.outlet.ready.len() >= limits::SHORT_OUT_BYTES;
            // A client that does not read is not read from; and the server behind takes what it has before there is more.
            if self.over || clogged || self.wire.to_server.len() >= unread {
                return Ok(());
            }
            if self.input.capacity() - self.input.len() < READ_LEAST {
                self.input.reserve(READ);
            }
            let mut reading = std::pin::pin!(self.inner.read_buf(&mut self.input));
            match reading.as_mut().poll(cx)? {
                Poll::Pending => return Ok(()),
                Poll::Ready(0) => self.over = true,
                Poll::Ready(_) => self.wire.feed(&mut self.input)?,
            }
            for asked in self.wire.asked.drain(..) {
                let (stream, call) = (asked.stream, self.calls.call(asked.head, asked.body));
                self.running.push(Box::pin(async move { (stream, call.await) }));
            }
            self.wire.running = self.running.len();
        }
    }

    /// Sends what is ready.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let ready = &mut self.wire.outlet.ready;
        while !ready.is_empty() {
            match Pin::new(&mut self.inner).poll_write(cx, ready)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(sent) => ready.advance(sent),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Shortcut<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.wire.to_server.is_empty() && this.wire.is_through() && !this.over {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        this.pump(cx, READ)?;
        let passed = &mut this.wire.to_server;
        if passed.is_empty() {
            return if this.over { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let now = passed.len().min(buf.remaining());
        buf.put_slice(&passed[..now]);
        passed.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Shortcut<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.wire.is_through() {
            ready!(this.write(cx)?);
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        }
        if this.wire.outlet.len() >= limits::SHORT_OUT_BYTES {
            // What makes room may be something that the client sends: the server behind does not read while it waits to write.
            this.pump(cx, UNREAD)?;
            if this.wire.to_server.len() >= UNREAD {
                return Poll::Ready(Err(super::authority::broken("the client sends without end, and does not take what it asked for")));
            }
            if this.wire.outlet.len() >= limits::SHORT_OUT_BYTES {
                return Poll::Pending;
            }
        }
        this.wire.written_behind(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.write(cx)?);
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The server behind has nothing left to do. Calls that were begun here are carried through.
        this.wire.close();
        loop {
            if this.over || (this.running.is_empty() && this.wire.outlet.is_empty()) {
                return Pin::new(&mut this.inner).poll_shutdown(cx);
            }
            let before = (this.running.len(), this.wire.outlet.len(), this.over);
            this.pump(cx, READ)?;
            this.wire.to_server.clear();
            if before == (this.running.len(), this.wire.outlet.len(), this.over) {
                return Poll::Pending;
            }
        }
    }
}
