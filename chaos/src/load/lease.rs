//! Clients that hold a lease each, with a key on it: they keep it alive, and now and then stop doing so and watch it die.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use kontiki_proto::etcd::etcdserverpb::kv_client::KvClient;
use kontiki_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use kontiki_proto::etcd::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest};
use tonic::Status;
use tonic::transport::Channel;

use super::kv::{PREFIX, Run, channel};
use crate::history::{Answer, Ask, LeaseAsk, Step, StepAnswer};
use crate::plan::Dice;

/// Clients of leases have ids from here on, so that they differ from those of keys.
pub const FIRST_ID: u16 = 10_000;

/// Seconds that a lease lives without a keepalive.
const TTL: i64 = 3;

/// Pause between keepalives.
const KEEPALIVE: Duration = Duration::from_millis(700);

/// An operation that takes longer has an unknown outcome.
const LIMIT: Duration = Duration::from_secs(3);

/// A client of leases.
struct Holder {
    run: Arc<Run>,
    id: u16,
    member: usize,
    links: Vec<Channel>,
    asked: u64,
}

/// Works until told to stop. `granted` is called for every lease that was granted.
///
/// # Errors
/// A member's URL is not one.
pub async fn client(run: Arc<Run>, number: u16, granted: Arc<dyn Fn() + Send + Sync>) -> Result<()> {
    let links = run.members.iter().map(|url| channel(url)).collect::<Result<Vec<_>>>()?;
    let member = usize::from(number) % links.len();
    let mut dice = Dice::new(run.seed, &format!("lease/{number}"));
    let mut holder = Holder { run: run.clone(), id: FIRST_ID + number, member, links, asked: 0 };
    while !run.stop.load(Ordering::Relaxed) {
        // Positive, and unlike any other of the run.
        let lease = i64::try_from(dice.next_u64() >> 16).unwrap_or(1) << 8 | i64::from(number & 0xff);
        let answer = holder.ask(Ask::Lease(LeaseAsk::Grant { id: lease, ttl: TTL })).await;
        if !matches!(answer, Answer::Lease { .. }) {
            holder.next_member().await;
            continue;
        }
        granted();
        holder.live(lease, &mut dice).await;
    }
    Ok(())
}

impl Holder {
    /// A lease's life: a key on it, some keepalives, and an end by revocation or by silence.
    async fn live(&mut self, lease: i64, dice: &mut Dice) {
        let key = format!("{PREFIX}lease-{}", self.id);
        let value = format!("l{}-{}", self.id, self.asked);
        self.ask(Ask::Do(Step::Put { key, value, lease, prev: false })).await;
        for _ in 0..dice.below(12) {
            self.run.env.sleep(KEEPALIVE).await;
            if self.run.stop.load(Ordering::Relaxed) {
                return;
            }
            match self.ask(Ask::Lease(LeaseAsk::KeepAlive { id: lease })).await {
                Answer::Lease { ttl, .. } if ttl <= 0 => return,
                Answer::Lease { .. } => {}
                _ => self.next_member().await,
            }
        }
        if dice.chance(0.5) {
            self.ask(Ask::Lease(LeaseAsk::Revoke { id: lease })).await;
            return;
        }
        // It dies of silence: how long it has left is asked without keeping it alive.
        for _ in 0..2 * TTL + 2 {
            self.run.env.sleep(KEEPALIVE).await;
            match self.ask(Ask::Lease(LeaseAsk::Remaining { id: lease })).await {
                Answer::Lease { ttl, .. } if ttl <= 0 => return,
                Answer::Lease { .. } => {}
                _ => self.next_member().await,
            }
            if self.run.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    async fn next_member(&mut self) {
        self.member = (self.member + 1) % self.links.len();
        self.run.env.sleep(Duration::from_millis(50)).await;
    }

    async fn ask(&mut self, ask: Ask) -> Answer {
        self.asked += 1;
        let id = self.run.recorder.invoke(self.id, self.member, self.run.now(), ask.clone());
        let outcome = tokio::time::timeout(LIMIT, perform(self.links[self.member].clone(), &ask)).await;
        let answer = match outcome {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => failed(&ask, &status),
            Err(_) => Answer::Unknown { why: "the client gave up".into() },
        };
        self.run.recorder.answer(id, self.run.now(), answer.clone());
        answer
    }
}

/// A lease that is not there is an answer: it has no time left.
fn failed(ask: &Ask, status: &Status) -> Answer {
    let why = format!("{:?}: {}", status.code(), status.message());
    let gone = status.code() == tonic::Code::NotFound;
    match ask {
        _ if gone => Answer::Refused { why },
        Ask::Lease(LeaseAsk::Remaining { .. }) => Answer::Refused { why },
        _ => Answer::Unknown { why },
    }
}

async fn perform(link: Channel, ask: &Ask) -> Result<Answer, Status> {
    let revision = |header: Option<kontiki_proto::etcd::etcdserverpb::ResponseHeader>| header.map_or(0, |h| h.revision);
    match ask {
        Ask::Lease(LeaseAsk::Grant { id, ttl }) => {
            let answer = LeaseClient::new(link).lease_grant(LeaseGrantRequest { id: *id, ttl: *ttl }).await?.into_inner();
            Ok(Answer::Lease { revision: revision(answer.header), ttl: answer.ttl })
        }
        Ask::Lease(LeaseAsk::KeepAlive { id }) => {
            let once = tokio_stream::once(LeaseKeepAliveRequest { id: *id });
            let mut stream = LeaseClient::new(link).lease_keep_alive(once).await?.into_inner();
            let answer = stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended without an answer"))?;
            Ok(Answer::Lease { revision: revision(answer.header), ttl: answer.ttl })
        }
        Ask::Lease(LeaseAsk::Revoke { id }) => {
            let answer = LeaseClient::new(link).lease_revoke(LeaseRevokeRequest { id: *id }).await?.into_inner();
            Ok(Answer::Lease { revision: revision(answer.header), ttl: 0 })
        }
        Ask::Lease(LeaseAsk::Remaining { id }) => {
            let answer = LeaseClient::new(link).lease_time_to_live(LeaseTimeToLiveRequest { id: *id, keys: false }).await?.into_inner();
            Ok(Answer::Lease { revision: revision(answer.header), ttl: answer.ttl })
        }
        Ask::Do(Step::Put { key, value, lease, .. }) => {
            let put = PutRequest { key: key.clone().into(), value: value.clone().into(), lease: *lease, ..PutRequest::default() };
            let answer = KvClient::new(link).put(put).await?.into_inner();
            Ok(Answer::Did { revision: revision(answer.header), step: StepAnswer::Put { prev: None } })
        }
        other => Ok(Answer::Refused { why: format!("this client does not ask {other:?}") }),
    }
}
