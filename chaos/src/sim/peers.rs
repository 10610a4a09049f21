//! The members' network among themselves: the store's `PeerNet` on the simulated network.

use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::ids::MemberId;
use kontiki_base::net::{Halves, NetError, PeerHandler, PeerNet, PeerReceiver, PeerRpc, PeerSender, PeerStream};
use kontiki_store::net::{CONNECT, limit};
use tokio::sync::{mpsc, oneshot};

use super::net::{Gone, KEEPALIVE, Net, Site};
use super::pipe::{In, Item, Line, Way, pipe};
use super::trace::{Event, Node};

/// Is told of every vote that was answered: (voter, term, candidate, granted).
pub type VoteSink = Arc<dyn Fn(Node, u64, u64, bool) + Send + Sync>;

/// The network as one member has it.
pub struct SimPeers {
    me: Node,
    net: Arc<Net>,
    nodes: Arc<dyn Fn(MemberId) -> Option<Node> + Send + Sync>,
    votes: VoteSink,
}

impl SimPeers {
    /// The network of the member on node `me`; `nodes` says where a member is.
    pub fn new(me: Node, net: Arc<Net>, nodes: Arc<dyn Fn(MemberId) -> Option<Node> + Send + Sync>, votes: VoteSink) -> Self {
        Self { me, net, nodes, votes }
    }
}

fn failed(to: MemberId, gone: Gone) -> NetError {
    match gone {
        Gone::Silent => NetError::Timeout { to },
        Gone::Reset => NetError::Unreachable { to, why: "connection reset by peer".into() },
        Gone::Refused => NetError::Closed { to },
    }
}

fn nobody(to: MemberId) -> NetError {
    NetError::Unreachable { to, why: "no such host".into() }
}

/// Calls that a transport may repeat without asking: carrying them out twice must do no harm.
const fn may_come_twice(rpc: PeerRpc) -> bool {
    matches!(rpc, PeerRpc::Vote | PeerRpc::PreVote | PeerRpc::Heartbeat | PeerRpc::ReadIndex)
}

fn sum(body: &Bytes) -> u64 {
    body.iter().fold(body.len() as u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// One call, from when it is sent to when its answer is there. Belongs to the network, not to the caller: it goes on while that is paused.
struct Call {
    net: Arc<Net>,
    me: Node,
    node: Node,
    to: MemberId,
    rpc: PeerRpc,
    body: Bytes,
    votes: VoteSink,
}

impl Call {
    async fn run(self) -> Result<Bytes, NetError> {
        let Self { net, me, node, to, rpc, body, votes } = self;
        let life = net.life(me);
        net.trace().add(me, Event::Send, u64::from(node), sum(&body) ^ rpc as u64);
        let site = net.carry(me, node, limit(rpc)).await.map_err(|gone| failed(to, gone))?;
        let Site { process, peers: Some(handler), .. } = site else { return Err(failed(to, Gone::Refused)) };
        net.trace().say(node, Event::Arrive, u64::from(me), rpc as u64, format_args!("{rpc:?} from n{me}, {} bytes", body.len()));
        let target = net.life(node);
        if may_come_twice(rpc) && net.comes_twice(me, node) {
            let (again, net, body, process) = (Arc::clone(&handler), Arc::clone(&net), body.clone(), Arc::clone(&process));
            tokio::spawn(async move {
                tokio::time::sleep(net.transit(me, node)).await;
                process.run(async move { drop(again.handle(rpc, body).await) });
            });
        }
        let question = body.clone();
        let handled = process.run(async move { handler.handle(rpc, body).await });
        let mut epoch = net.epoch();
        // The connection breaks when either end dies.
        let died = async {
            while net.life(node) == target && net.life(me) == life {
                if epoch.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let reply = tokio::select! {
            biased;
            reply = handled => reply.map_err(|_| failed(to, Gone::Reset))?,
            () = died => {
                tokio::time::sleep(if net.answers_pings(me, node) { net.transit(node, me) } else { KEEPALIVE }).await;
                return Err(failed(to, Gone::Reset));
            }
        };
        if let (PeerRpc::Vote, Ok(answer)) = (rpc, &reply)
            && let Some((term, candidate, granted)) = kontiki_store::inside::granted_vote(&question, answer)
        {
            votes(node, term, candidate, granted);
        }
        back(&net, node, me, to, rpc).await?;
        net.trace().add(me, Event::Arrive, u64::from(node), reply.as_ref().map_or(1, sum));
        reply.map_err(|why| NetError::Refused { to, why })
    }
}

/// The way back of an answer: as the way there, and the connection must live so long.
async fn back(net: &Net, from: Node, to: Node, member: MemberId, rpc: PeerRpc) -> Result<(), NetError> {
    net.carry(from, to, limit(rpc).min(KEEPALIVE)).await.map(drop).map_err(|gone| failed(member, gone))
}

/// Starts something of the network's own, and waits for what comes of it.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, NetError>> + Send + 'static,
    to: MemberId,
) -> Result<T, NetError> {
    let (tx, rx) = oneshot::channel();
    tokio::spawn(async move { drop(tx.send(work.await)) });
    rx.await.unwrap_or(Err(NetError::Timeout { to }))
}

impl PeerNet for SimPeers {
    fn call(&self, to: MemberId, _addr: &str, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, NetError>> {
        let Some(node) = (self.nodes)(to) else { return Box::pin(async move { Err(nobody(to)) }) };
        let call = Call { net: Arc::clone(&self.net), me: self.me, node, to, rpc, body, votes: Arc::clone(&self.votes) };
        Box::pin(async move {
            let limited = async move { tokio::time::timeout(limit(rpc), call.run()).await.unwrap_or(Err(NetError::Timeout { to })) };
            detached(limited, to).await
        })
    }

    fn open(&self, to: MemberId, _addr: &str, rpc: PeerRpc) -> BoxFuture<'static, Result<Box<dyn PeerStream>, NetError>> {
        let Some(node) = (self.nodes)(to) else { return Box::pin(async move { Err(nobody(to)) }) };
        let (me, net) = (self.me, Arc::clone(&self.net));
        Box::pin(async move {
            let opening = async move {
                let life = net.life(me);
                let site = net.carry(me, node, CONNECT).await.map_err(|gone| failed(to, gone))?;
                let Site { process, peers: Some(handler), .. } = site else { return Err(failed(to, Gone::Refused)) };
                let line = Line::new(&net, me, node);
                back(&net, node, me, to, rpc).await?;
                if net.life(me) != life {
                    return Err(failed(to, Gone::Reset));
                }
                Ok(connect(&net, (me, node), to, &line, rpc, &process, handler))
            };
            detached(opening, to).await
        })
    }
}

fn connect(
    net: &Arc<Net>,
    (me, node): (Node, Node),
    to: MemberId,
    line: &Line,
    rpc: PeerRpc,
    process: &Arc<super::rt::Proc>,
    handler: Arc<dyn PeerHandler>,
) -> Box<dyn PeerStream> {
    let (near_tx, far_rx) = pipe(net, Way::There, me, node, line);
    let (far_tx, near_rx) = pipe(net, Way::Back, node, me, line);
    net.trace().say(node, Event::Arrive, u64::from(me), rpc as u64, format_args!("stream {rpc:?} from n{me}"));
    // What a member calls the other end of a stream that came in does not matter to anybody.
    let far = Halves { sender: Sender(to, far_tx), receiver: Receiver(to, far_rx) };
    process.run(async move { drop(handler.serve(rpc, Box::new(far)).await) });
    Box::new(Halves { sender: Sender(to, near_tx), receiver: Receiver(to, near_rx) })
}

struct Sender(MemberId, In<Bytes>);
struct Receiver(MemberId, mpsc::Receiver<Item<Bytes>>);

impl PeerSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), NetError>> {
        let to = self.0;
        Box::pin(async move { self.1.send(body).await.map_err(|_| NetError::Unreachable { to, why: "the stream has ended".into() }) })
    }
}

impl PeerReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Option<Result<Bytes, NetError>>> {
        let to = self.0;
        Box::pin(async move {
            let item = self.1.recv().await;
            item.map(|item| item.map_err(|_| NetError::Unreachable { to, why: "the connection broke".into() }))
        })
    }
}
