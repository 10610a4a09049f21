//! The wire against itself: calls, refusals, streams both ways, and a peer that comes back.

use std::sync::Arc;

use bytes::Bytes;
use kontiki_base::BoxFuture;
use kontiki_base::ids::MemberId;
use kontiki_base::net::{NetError, PeerHandler, PeerNet as _, PeerRpc, PeerStream};

use super::{RPCS, TonicPeerNet, row, rpc_of, serve};

struct Echo;

impl PeerHandler for Echo {
    fn handle(&self, rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async move {
            match rpc {
                PeerRpc::Vote => Err("I have voted".into()),
                _ => Ok([b"re: ", body.as_ref()].concat().into()),
            }
        })
    }

    fn serve(&self, _rpc: PeerRpc, mut stream: Box<dyn PeerStream>) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            while let Some(Ok(body)) = stream.recv().await {
                if body.as_ref() == b"refuse" {
                    return Err("no more".into());
                }
                stream.send(body).await.map_err(|e| e.to_string())?;
            }
            Ok(())
        })
    }
}

const PEER: MemberId = MemberId::new(7);

#[test]
fn every_kind_of_message_has_one_row() {
    use PeerRpc::{Append, Ask, Fetch, Heartbeat, PreVote, Propose, ReadIndex, Snapshot, TransferLeader, Vote};
    for rpc in [Vote, PreVote, Append, Heartbeat, Snapshot, TransferLeader, ReadIndex, Propose, Ask, Fetch] {
        assert_eq!(rpc_of(row(rpc).0), Some(rpc));
    }
    assert_eq!(RPCS.len(), 10);
    assert_eq!(rpc_of(0), None);
}

#[tokio::test]
async fn calls_and_refusals() {
    let server = serve("127.0.0.1:0".parse().unwrap(), None, Arc::new(Echo), None).await.unwrap();
    let (net, addr) = (TonicPeerNet::new(None), format!("http://{}", server.addr));
    assert_eq!(net.call(PEER, &addr, PeerRpc::Ask, "x".into()).await.unwrap(), "re: x");
    let refused = net.call(PEER, &addr, PeerRpc::Vote, Bytes::new()).await;
    assert_eq!(refused, Err(NetError::Refused { to: PEER, why: "I have voted".into() }));
    server.stop().await;
}

/// One that took the address of a member that was removed.
struct Another;

impl PeerHandler for Another {
    fn is(&self, to: MemberId) -> bool {
        to == MemberId::new(8)
    }

    fn handle(&self, _rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async move { Ok(body) })
    }

    fn serve(&self, rpc: PeerRpc, stream: Box<dyn PeerStream>) -> BoxFuture<'static, Result<(), String>> {
        Echo.serve(rpc, stream)
    }
}

#[tokio::test]
async fn what_is_meant_for_another_member_is_refused() {
    let server = serve("127.0.0.1:0".parse().unwrap(), None, Arc::new(Another), None).await.unwrap();
    let (net, addr) = (TonicPeerNet::new(None), format!("http://{}", server.addr));
    for rpc in [PeerRpc::Vote, PeerRpc::PreVote, PeerRpc::Heartbeat, PeerRpc::TransferLeader] {
        let refused = net.call(PEER, &addr, rpc, Bytes::new()).await.unwrap_err();
        assert!(matches!(&refused, NetError::Refused { why, .. } if why.contains("is not here any more")), "{refused}");
        net.call(MemberId::new(8), &addr, rpc, Bytes::new()).await.unwrap();
    }
    for rpc in [PeerRpc::Append, PeerRpc::Snapshot, PeerRpc::Fetch] {
        let refused = net.open(PEER, &addr, rpc).await.err().unwrap();
        assert!(matches!(&refused, NetError::Refused { .. }), "{refused}");
        net.open(MemberId::new(8), &addr, rpc).await.map(drop).unwrap();
    }
    // Who does not know yet who is there may ask.
    net.call(PEER, &addr, PeerRpc::Ask, Bytes::new()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn streams_both_ways_until_refused() {
    let server = serve("127.0.0.1:0".parse().unwrap(), None, Arc::new(Echo), None).await.unwrap();
    let (net, addr) = (TonicPeerNet::new(None), format!("http://{}", server.addr));
    let stream = net.open(PEER, &addr, PeerRpc::Append).await.unwrap();
    let (mut sender, mut receiver) = stream.split();
    let large = Bytes::from(vec![7; 5 << 20]);
    for body in [Bytes::from("a"), large, Bytes::from("c")] {
        sender.send(body.clone()).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), body);
    }
    sender.send("refuse".into()).await.unwrap();
    let end = receiver.recv().await.unwrap();
    assert_eq!(end, Err(NetError::Refused { to: PEER, why: "no more".into() }));
    server.stop().await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_reached_again() {
    let server = serve("127.0.0.1:0".parse().unwrap(), None, Arc::new(Echo), None).await.unwrap();
    let (net, listen) = (TonicPeerNet::new(None), server.addr);
    let addr = format!("http://{listen}");
    net.call(PEER, &addr, PeerRpc::Ask, Bytes::new()).await.unwrap();
    server.stop().await;
    let gone = loop {
        match net.call(PEER, &addr, PeerRpc::Ask, Bytes::new()).await {
            // A call on the connection that breaks says so first.
            Ok(_) | Err(NetError::Unreachable { .. }) => tokio::task::yield_now().await,
            Err(e) => break e,
        }
    };
    assert_eq!(gone, NetError::Closed { to: PEER });
    let server = loop {
        match serve(listen, None, Arc::new(Echo), None).await {
            Ok(server) => break server,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    assert_eq!(net.call(PEER, &addr, PeerRpc::Ask, "y".into()).await.unwrap(), "re: y");
    server.stop().await;
}

/// Answers after a moment.
struct Slow;

impl PeerHandler for Slow {
    fn handle(&self, _rpc: PeerRpc, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async move {
            tokio::time::sleep(std::time::Duration::from_millis(if body.is_empty() { 5 } else { 2_000 })).await;
            Ok(body)
        })
    }

    fn serve(&self, _rpc: PeerRpc, _stream: Box<dyn PeerStream>) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Err("no streams".into()) })
    }
}

/// Followers give calls up all the time: what they proposed was applied before its answer came. It must not cost those that still wait.
#[tokio::test]
async fn calls_that_nobody_waits_for_do_not_end_the_connection() {
    let server = serve("127.0.0.1:0".parse().unwrap(), None, Arc::new(Slow), None).await.unwrap();
    let (net, addr) = (TonicPeerNet::new(None), format!("http://{}", server.addr));
    net.call(PEER, &addr, PeerRpc::Propose, Bytes::new()).await.unwrap();
    let waited_for = tokio::spawn(net.call(PEER, &addr, PeerRpc::Propose, "long".into()));
    for _ in 0..30 {
        let given_up = (0..100)
            .map(|_| tokio::time::timeout(std::time::Duration::from_millis(1), net.call(PEER, &addr, PeerRpc::Propose, Bytes::new())));
        futures::future::join_all(given_up).await;
        tokio::time::sleep(std::time::Duration::from_millis(8)).await;
    }
    assert_eq!(waited_for.await.unwrap(), Ok("long".into()));
    server.stop().await;
}
