//! `v3electionpb.Election`: one leader at a time, and a value that it proclaims.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use kontiki_base::ids::{LeaseId, Revision};
use kontiki_base::key::KeyRange;
use kontiki_base::kv::{DeleteReq, KeyValue, Op, PutReq, Txn, TxnRes};
use kontiki_base::limits;
use kontiki_proto::convert::error::{EtcdError, kv_status};
use kontiki_proto::convert::kv_to_wire;
use kontiki_proto::etcd::v3electionpb as pb;
use tonic::{Request, Response, Status};

use super::Api;
use super::turn::{Turn, oldest, prefix_of, still};
use crate::auth::Caller;
use crate::watch::{Out, Pace, Session, WatchSpec};

impl Api {
    /// Does something as the leader that `leader` names, if it still is.
    async fn as_leader(&self, caller: &Caller, leader: &pb::LeaderKey, op: Op) -> Result<Option<TxnRes>, Status> {
        let txn = Txn { compare: vec![still(&leader.key, Revision::new(leader.rev))], success: vec![op], failure: Vec::new() };
        let res = self.service.by(caller).txn(txn, limits::TXN_OPS).await.map_err(|e| kv_status(&e))?;
        Ok(res.succeeded.then_some(res))
    }

    async fn leader_of(&self, caller: &Caller, name: &[u8]) -> Result<(Option<KeyValue>, Revision), Status> {
        let res = self.service.by(caller).range(oldest(&prefix_of(name))).await.map_err(|e| kv_status(&e))?;
        Ok((res.kvs.into_iter().next(), res.revision))
    }
}

#[tonic::async_trait]
impl pb::election_server::Election for Api {
    async fn campaign(&self, req: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let pb::CampaignRequest { name, lease, value } = req.into_inner();
        let turn = Turn::take(&self.service, caller.clone(), &name, LeaseId::new(lease), value.clone()).await.map_err(|e| kv_status(&e))?;
        if turn.found.as_ref().is_some_and(|kv| kv.value != value) {
            let again = pb::LeaderKey { name: name.clone(), key: turn.key.clone(), rev: turn.revision.get(), lease: turn.lease.get() };
            let put = PutReq { key: turn.key.clone(), value, lease: turn.lease, ..PutReq::default() };
            self.as_leader(&caller, &again, Op::Put(put)).await?.ok_or(EtcdError::ElectionNotLeader)?;
        }
        let revision = turn.wait().await.map_err(|e| kv_status(&e))?.ok_or(EtcdError::LeaseNotFound)?.max(turn.taken_at);
        let (key, rev, lease) = turn.keep();
        let leader = pb::LeaderKey { name, key, rev: rev.get(), lease: lease.get() };
        Ok(Response::new(pb::CampaignResponse { header: self.header(revision), leader: Some(leader) }))
    }

    async fn proclaim(&self, req: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let pb::ProclaimRequest { leader, value } = req.into_inner();
        let leader = leader.ok_or(EtcdError::MissingLeaderKey)?;
        let put = PutReq { key: leader.key.clone(), value, lease: LeaseId::new(leader.lease), ..PutReq::default() };
        let res = self.as_leader(&caller, &leader, Op::Put(put)).await?.ok_or(EtcdError::ElectionNotLeader)?;
        Ok(Response::new(pb::ProclaimResponse { header: self.header(res.revision) }))
    }

    async fn leader(&self, req: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let (leader, revision) = self.leader_of(&caller, &req.into_inner().name).await?;
        let leader = leader.ok_or(EtcdError::ElectionNoLeader)?;
        Ok(Response::new(pb::LeaderResponse { header: self.header(revision), kv: Some(kv_to_wire(leader)) }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn observe(&self, req: Request<pb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        self.not_learner()?;
        let observer = Observer { api: self.clone(), caller: Caller::of(&req), name: req.into_inner().name, told: None, session: None };
        Ok(Response::new(Box::pin(futures::stream::unfold(Some(observer), |observer| async move {
            let mut observer = observer?;
            match observer.next().await {
                Ok(response) => Some((Ok(response), Some(observer))),
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }

    async fn resign(&self, req: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let leader = req.into_inner().leader.ok_or(EtcdError::MissingLeaderKey)?;
        let delete = DeleteReq { range: KeyRange::single(leader.key.clone()), prev_kv: false };
        // Whoever does not lead any more has nothing to resign from: that is no error.
        let res = self.as_leader(&caller, &leader, Op::Delete(delete)).await?;
        Ok(Response::new(pb::ResignResponse { header: self.header(res.map_or(self.service.revision(), |r| r.revision)) }))
    }
}

/// Tells who leads, as it changes.
struct Observer {
    api: Api,
    caller: Caller,
    name: Bytes,
    /// Whom and what was told last: when the key was created, and when it was last written.
    told: Option<(Revision, Revision)>,
    session: Option<Session>,
}

impl Observer {
    async fn next(&mut self) -> Result<pb::LeaderResponse, Status> {
        loop {
            let (leader, revision) = self.api.leader_of(&self.caller, &self.name).await?;
            self.watch_from(revision.next());
            let now = leader.as_ref().map(|kv| (kv.create_revision, kv.mod_revision));
            if now.is_some() && now != self.told {
                self.told = now;
                return Ok(pb::LeaderResponse { header: self.api.header(revision), kv: leader.map(kv_to_wire) });
            }
            self.change().await?;
        }
    }

    /// A watch that was there before has seen everything since then, too.
    fn watch_from(&mut self, from: Revision) {
        if self.session.is_some() {
            return;
        }
        let mut session = self.api.service.watch(Pace::Every(Duration::from_secs(3600)));
        session.create(WatchSpec {
            id: None,
            range: KeyRange::prefix(prefix_of(&self.name)),
            from,
            prev_kv: false,
            no_put: false,
            no_delete: false,
            progress: false,
            fragment: false,
        });
        self.session = Some(session);
    }

    /// Waits until something happens in the queue.
    async fn change(&mut self) -> Result<(), Status> {
        let Some(session) = &mut self.session else { return Ok(()) };
        loop {
            match session.next().await.map_err(|e| kv_status(&e))? {
                Some(Out::Events { .. }) => return Ok(()),
                Some(Out::Canceled { .. }) => {
                    self.session = None;
                    return Ok(());
                }
                Some(_) => {}
                None => return Err(EtcdError::Stopped.status()),
            }
        }
    }
}
