//! JSON messages from a body, and gRPC's frames: a flag, four bytes of length, a message.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::Stream;
use http_body::Body as _;
use prost_reflect::MessageDescriptor;
use tonic::Status;

use super::json;

/// A message in its frame.
pub(super) fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// The JSON messages of a body, one after the other, as frames. Ends with the body.
pub(super) struct Requests {
    body: BodyDataStream,
    descriptor: MessageDescriptor,
    buffer: BytesMut,
    limit: usize,
    ended: bool,
}

impl Requests {
    pub(super) fn new(body: Body, descriptor: MessageDescriptor, limit: usize) -> Self {
        Self { body: body.into_data_stream(), descriptor, buffer: BytesMut::new(), limit, ended: false }
    }

    /// The next message in the buffer, if it is whole.
    fn parse(&mut self) -> Result<Option<Bytes>, Status> {
        let mut values = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<serde_json::Value>();
        match values.next() {
            None => Ok(None),
            Some(Ok(value)) => {
                let read = values.byte_offset();
                let message = json::encode(value, &self.descriptor)?;
                self.buffer.advance(read);
                Ok(Some(frame(&message)))
            }
            Some(Err(error)) if error.is_eof() && !self.ended => Ok(None),
            Some(Err(error)) => Err(json::unreadable(error)),
        }
    }
}

impl Stream for Requests {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.parse() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.ended => return Poll::Ready(None),
                Ok(None) => {}
                Err(status) => {
                    self.ended = true;
                    self.buffer.clear();
                    return Poll::Ready(Some(Err(status)));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(Ok(more)) if self.buffer.len() + more.len() > self.limit => {
                    self.ended = true;
                    self.buffer.clear();
                    return Poll::Ready(Some(Err(json::too_large(self.limit))));
                }
                Some(Ok(more)) => self.buffer.extend_from_slice(&more),
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }
}

/// The messages of a gRPC answer, and how it ended.
pub(super) struct Replies {
    body: Body,
    buffer: BytesMut,
    status: Option<Status>,
}

impl Replies {
    /// `status` is what the answer's headers said already, if they did.
    pub(super) fn new(body: Body, status: Option<Status>) -> Self {
        Self { body, buffer: BytesMut::new(), status }
    }

    /// The next message; `None` at a good end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.whole() {
                return Ok(Some(message));
            }
            if let Some(status) = &self.status {
                return if status.code() == tonic::Code::Ok { Ok(None) } else { Err(status.clone()) };
            }
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                Some(Ok(Ok(data))) => self.buffer.extend_from_slice(&data),
                Some(Ok(Err(other))) => {
                    self.status = other.trailers_ref().and_then(Status::from_header_map);
                }
                Some(Err(error)) => return Err(Status::internal(error.to_string())),
                None => return Err(Status::internal("the answer ended without a status")),
            }
        }
    }

    fn whole(&mut self) -> Option<Bytes> {
        let length = self.buffer.get(1..5)?;
        let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
        if self.buffer.len() < 5 + length {
            return None;
        }
        self.buffer.advance(5);
        Some(self.buffer.split_to(length).freeze())
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn put() -> MessageDescriptor {
        kontiki_proto::pool().get_message_by_name("etcdserverpb.PutRequest").unwrap()
    }

    #[tokio::test]
    async fn messages_are_found_wherever_a_body_is_cut() {
        let text = "{\"key\":\"YQ==\"} {\"key\":\"Yg==\",\n\"value\":\"Yw==\"}\n";
        for cut in 0..text.len() {
            let (head, tail) = text.split_at(cut);
            let body = Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(head.to_owned()), Ok(tail.to_owned())]));
            let frames: Vec<_> = Requests::new(body, put(), 1000).map(Result::unwrap).collect().await;
            assert_eq!(frames.iter().map(|f| f.slice(5..)).collect::<Vec<_>>(), ["\n\x01a", "\n\x01b\x12\x01c"], "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream() {
        for (text, says) in
            [("{\"key\":\"YQ==\"} {", "EOF"), ("{\"key\":\"YQ==\"} nonsense", "expected"), ("{\"key\":\"YQ==\"} {\"key\":7}", "base64")]
        {
            let got: Vec<_> = Requests::new(Body::from(text), put(), 1000).collect().await;
            assert!(got.len() == 2 && got[0].is_ok(), "{text}");
            let status = got[1].as_ref().unwrap_err();
            assert!(status.code() == tonic::Code::InvalidArgument && status.message().contains(says), "{status:?}");
        }
        let long: Vec<_> = Requests::new(Body::from("[".repeat(200)), put(), 100).collect().await;
        assert_eq!(long[0].as_ref().unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
