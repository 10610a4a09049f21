//! HTTP between simulated processes: a request goes in as `http::Request`, a streaming response comes out, and in between is the simulated
//! network. A client of tonic's stands on it as on any channel; the server is the real router. Only HTTP/2's frames are left out.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::net::{Gone, KEEPALIVE, Net, Site};
use super::pipe::{Broken, In, Item, Line, Way, pipe};
use super::rt::Proc;
use super::trace::{Event, Node};

/// How a process reaches another one by HTTP. As a client with a connection that is made when needed.
#[derive(Clone)]
pub struct Channel {
    process: Arc<Proc>,
    net: Arc<Net>,
    to: Node,
    door: Door,
    /// The time after which a request to a silent server fails.
    patience: Duration,
}

/// A port of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The store's.
    Store,
    /// The API server's.
    Api,
}

impl Channel {
    /// From a process to the store on a node.
    pub const fn new(process: Arc<Proc>, net: Arc<Net>, to: Node, patience: Duration) -> Self {
        Self { process, net, to, door: Door::Store, patience }
    }

    /// The same to another port.
    #[must_use]
    pub fn to(self, door: Door) -> Self {
        Self { door, ..self }
    }
}

fn unavailable(gone: Gone) -> tonic::Status {
    tonic::Status::unavailable(match gone {
        Gone::Silent => "the server does not answer",
        Gone::Reset => "connection reset by peer",
        Gone::Refused => "connection refused",
    })
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Pieces>;
    type Error = tonic::Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.clone();
        let (tx, rx) = oneshot::channel();
        Box::pin(async move {
            // The network's own task: it goes on while the client is paused.
            tokio::spawn(async move { drop(tx.send(channel.exchange(request).await)) });
            rx.await.unwrap_or_else(|_| Err(unavailable(Gone::Reset)))
        })
    }
}

/// A piece of a body. An error ends it.
type Piece = Result<Frame<Bytes>, String>;

/// A body whose pieces come over the network.
pub struct Pieces {
    ready: std::vec::IntoIter<Frame<Bytes>>,
    rest: Option<mpsc::Receiver<Item<Piece>>>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if let Some(frame) = self.ready.next() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        rest.poll_recv(cx).map(|item| match item? {
            Ok(Ok(frame)) => Some(Ok(frame)),
            Ok(Err(why)) => Some(Err(tonic::Status::unavailable(why))),
            Err(Broken) => Some(Err(unavailable(Gone::Reset))),
        })
    }
}

/// What a sender has of a body at once, and the rest of it, if there is more to come.
struct Split<B> {
    ready: Vec<Frame<Bytes>>,
    rest: Option<Pin<Box<B>>>,
}

/// Takes from a body what is there without waiting.
async fn take_ready<B>(body: B) -> Result<Split<B>, String>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (mut body, mut ready) = (Box::pin(body), Vec::new());
    loop {
        match futures::poll!(std::future::poll_fn(|cx| body.as_mut().poll_frame(cx))) {
            Poll::Ready(Some(Ok(frame))) => ready.push(frame),
            Poll::Ready(Some(Err(why))) => return Err(why.to_string()),
            Poll::Ready(None) => return Ok(Split { ready, rest: None }),
            Poll::Pending => return Ok(Split { ready, rest: Some(body) }),
        }
    }
}

/// Sends the rest of a body as it comes.
async fn send_rest<B>(mut body: Pin<Box<B>>, mut into: In<Piece>)
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|why| why.to_string());
        let last = frame.is_err();
        if into.send(frame).await.is_err() || last {
            return;
        }
    }
}

impl Channel {
    async fn exchange(self, request: Request<Body>) -> Result<Response<Pieces>, tonic::Status> {
        let Self { process, net, to, door, patience } = self;
        let (me, life) = (process.node(), net.life(process.node()));
        let (head, body) = request.into_parts();
        net.trace().say(me, Event::Send, u64::from(to), 3, format_args!("{} to n{to}", head.uri.path()));
        let split = process.run(take_ready(body)).await.map_err(|_| unavailable(Gone::Reset))?.map_err(tonic::Status::internal)?;
        let site = net.carry(me, to, patience.min(KEEPALIVE)).await.map_err(unavailable)?;
        let Site { process: server, router, api, .. } = site;
        let Some(router) = (if door == Door::Store { router } else { api }) else { return Err(unavailable(Gone::Refused)) };
        let line = Line::new(&net, me, to);
        let rest = split.rest.map(|body| {
            let (into, out) = pipe(&net, Way::There, me, to, &line);
            process.run(send_rest(body, into));
            out
        });
        let pieces = Pieces { ready: split.ready.into_iter(), rest };
        let request = Request::from_parts(head, axum::body::Body::new(pieces));
        net.trace().add(to, Event::Arrive, u64::from(me), 3);
        let target = net.life(to);
        let answered = server.run(async move {
            let response = router.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {});
            let (head, body) = response.into_parts();
            take_ready(body).await.map(|split| (head, split))
        });
        let mut epoch = net.epoch();
        let died = async {
            while net.life(to) == target && net.life(me) == life {
                if epoch.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let (head, split) = tokio::select! {
            biased;
            answer = answered => answer.map_err(|_| unavailable(Gone::Reset))?.map_err(tonic::Status::internal)?,
            () = died => {
                tokio::time::sleep(if net.answers_pings(me, to) { net.transit(to, me) } else { KEEPALIVE }).await;
                return Err(unavailable(Gone::Reset));
            }
        };
        let rest = split.rest.map(|body| {
            let (into, out) = pipe(&net, Way::Back, to, me, &line);
            server.run(send_rest(body, into));
            out
        });
        net.carry(to, me, KEEPALIVE).await.map_err(unavailable)?;
        net.trace().add(me, Event::Arrive, u64::from(to), 4);
        Ok(Response::from_parts(head, Pieces { ready: split.ready.into_iter(), rest }))
    }
}
