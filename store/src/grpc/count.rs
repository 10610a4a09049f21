//! Counts what passes a call: bytes, and messages, which begin with a flag and four bytes of length.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;

use crate::metrics::{Metrics, Rpc};

/// Bytes before each message.
const HEAD: usize = 5;

/// Finds where messages begin, however the bytes come.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// How much of a head has come, and the length in it.
    head: usize,
    length: usize,
    /// Bytes of the message under way that have not come.
    left: usize,
}

impl Messages {
    /// Takes the next bytes; says how many messages began in them.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                (self.left, bytes) = (self.left - passed, &bytes[passed..]);
                continue;
            }
            let byte = usize::from(bytes[0]);
            bytes = &bytes[1..];
            if self.head > 0 {
                self.length = (self.length << 8) | byte;
            }
            self.head += 1;
            if self.head == HEAD {
                begun += 1;
                (self.head, self.left, self.length) = (0, self.length, 0);
            }
        }
        begun
    }
}

/// Messages of one direction of a call.
pub(super) struct Tally {
    messages: Messages,
    counter: Counter,
    bytes: Counter,
}

impl Tally {
    /// What the server receives.
    pub(super) fn received(metrics: &Arc<Metrics>, rpc: &Rpc) -> Self {
        let counter = metrics.received.get_or_create(rpc).clone();
        Self { messages: Messages::default(), counter, bytes: metrics.client_received_bytes.clone() }
    }

    /// What the server sends.
    pub(super) fn sent(metrics: &Arc<Metrics>, rpc: &Rpc) -> Self {
        let counter = metrics.sent.get_or_create(rpc).clone();
        Self { messages: Messages::default(), counter, bytes: metrics.client_sent_bytes.clone() }
    }

    pub(super) fn see(&mut self, bytes: &[u8]) {
        self.bytes.inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let begun = self.messages.see(bytes);
        if begun > 0 {
            self.counter.inc_by(begun);
        }
    }
}

/// A request's body, counted as it passes.
pub(super) struct Inbound {
    pub(super) inner: Body,
    pub(super) tally: Tally,
}

impl HttpBody for Inbound {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.tally.see(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut bytes = Vec::new();
        for length in [0_u32, 3, 300] {
            bytes.push(0);
            bytes.extend(length.to_be_bytes());
            bytes.extend(std::iter::repeat_n(7, usize::try_from(length).unwrap()));
        }
        for step in [1, 2, 3, 5, 7, 1000] {
            let mut messages = Messages::default();
            assert_eq!(bytes.chunks(step).map(|piece| messages.see(piece)).sum::<u64>(), 3, "in pieces of {step}");
        }
    }
}
