//! `etcdserverpb.Cluster`: who belongs to it. Headers have no revision here.

use std::collections::BTreeSet;
use std::time::Duration;

use kontiki_base::ids::{MemberId, Revision};
use kontiki_base::kv::KvError;
use kontiki_proto::convert::error::{EtcdError, kv_status};
use kontiki_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::Api;
use crate::raft::{Member, RaftStatus};

/// So many members without a vote at once, as in etcd.
const MAX_LEARNERS: usize = 1;

/// A member that is to be the second voter has a vote as soon as it is there; this is how often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn to_wire(member: &Member) -> pb::Member {
    pb::Member {
        id: member.id.get(),
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.learner,
    }
}

/// Whether a peer URL can be used: `http` or `https`, a host, a port, nothing else.
fn usable(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/") && !url.ends_with('/');
    scheme && bare && uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some()
}

/// Whether the voters that have started make a quorum of `voters`.
fn enough_started(raft: &RaftStatus, voters: &BTreeSet<MemberId>) -> bool {
    let started = raft.members.iter().filter(|m| voters.contains(&m.id) && !m.name.is_empty()).count();
    started > voters.len() / 2
}

fn voters(raft: &RaftStatus) -> BTreeSet<MemberId> {
    raft.members.iter().filter(|m| !m.learner).map(|m| m.id).collect()
}

impl Api {
    fn header_of_cluster(&self) -> Option<pb::ResponseHeader> {
        self.header(Revision::ZERO)
    }

    fn members(&self) -> Vec<pb::Member> {
        self.service.status.borrow().members.iter().map(to_wire).collect()
    }

    /// The members after a change that has been decided: this member hears of it a moment later.
    async fn members_when(&self, changed: impl FnMut(&RaftStatus) -> bool) -> Vec<pb::Member> {
        let mut status = self.service.status.clone();
        tokio::select! {
            biased;
            _ = status.wait_for(changed) => {}
            () = self.service.env.sleep(self.service.election) => tracing::warn!("a change of members is slow to arrive here"),
        }
        self.members()
    }

    /// Refuses a new voter that the cluster is in no state to have: first, as in etcd, whoever it is.
    async fn ready_for_voter(&self, raft: &RaftStatus) -> Result<(), Status> {
        let voters = voters(raft);
        let started = raft.members.iter().filter(|m| !m.learner && !m.name.is_empty()).count();
        // From one voter to two is allowed, since there is no other way to grow.
        if started <= voters.len().div_ceil(2) && voters.len() != 1 {
            return Err(EtcdError::NotEnoughStarted.status());
        }
        self.healthy(raft, Change::Add).await
    }

    fn check_new(raft: &RaftStatus, urls: &[String], learner: bool) -> Result<(), EtcdError> {
        if raft.members.iter().any(|m| m.peer_urls.iter().any(|url| urls.contains(url))) {
            return Err(EtcdError::PeerUrlExists);
        }
        let learners = raft.members.iter().filter(|m| m.learner).count();
        if learner && learners >= MAX_LEARNERS { Err(EtcdError::TooManyLearners) } else { Ok(()) }
    }

    /// Refuses a change that needs more members than answer. etcd counts them as if the change had been made.
    async fn healthy(&self, raft: &RaftStatus, change: Change) -> Result<(), Status> {
        let answering = self.service.roster.reachable().await;
        if allows(&voters(raft), &answering, change) { Ok(()) } else { Err(EtcdError::Unhealthy.status()) }
    }

    async fn promote(&self, id: MemberId, ready: bool) -> Result<(), Status> {
        self.service.roster.promote(id, ready).await.map_err(|e| member_status(&e))?;
        self.service.metrics.promote_successes.inc();
        Ok(())
    }

    /// The second voter: both must agree from then on, so the first would wait for one that has not started yet, and serve nobody meanwhile.
    fn promote_when_there(&self, id: MemberId) {
        let api = self.clone();
        let waiting = async move {
            loop {
                api.service.env.sleep(LOOK_EVERY).await;
                let learner = api.service.raft().members.iter().find(|m| m.id == id).map(|m| m.learner && !m.name.is_empty());
                match learner {
                    None => return,
                    Some(false) if api.service.raft().members.iter().any(|m| m.id == id && !m.learner) => return,
                    Some(false) => {}
                    Some(true) => {
                        if api.promote(id, true).await.is_ok() {
                            tracing::info!(member = %id, "the second member has started, and votes from now on");
                            return;
                        }
                    }
                }
            }
        };
        self.service.env.spawn("cluster.promote", Box::pin(waiting));
    }
}

/// A change of the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// One more.
    Add,
    /// This one less.
    Remove(MemberId),
}

/// Whether enough of the voters answer for a change. A voter that does not answer may always go; from one to two is allowed, since there
/// is no other way to grow.
fn allows(voters: &BTreeSet<MemberId>, answering: &[MemberId], change: Change) -> bool {
    let active = answering.iter().filter(|id| voters.contains(id)).count();
    match change {
        Change::Add => voters.len() == 1 || active > voters.len().div_ceil(2),
        Change::Remove(id) => !answering.contains(&id) || active > 1 + (voters.len() - 1) / 2,
    }
}

/// A refusal of the leader keeps its row of etcd's table.
fn member_status(error: &KvError) -> Status {
    match error {
        KvError::Unavailable(text) => EtcdError::from_text(text).map_or_else(|| kv_status(error), EtcdError::status),
        other => kv_status(other),
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Api {
    async fn member_add(&self, req: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        let req = req.into_inner();
        if req.peer_ur_ls.is_empty() || !req.peer_ur_ls.iter().all(|url| usable(url)) {
            return Err(EtcdError::BadMemberUrls.status());
        }
        let first = self.service.raft();
        if !req.is_learner {
            self.ready_for_voter(&first).await?;
        }
        Self::check_new(&self.service.raft(), &req.peer_ur_ls, req.is_learner).map_err(EtcdError::status)?;
        let urls = req.peer_ur_ls;
        let member = Member { id: MemberId::ZERO, name: String::new(), peer_urls: urls.clone(), client_urls: Vec::new(), learner: true };
        self.service.consensus.add_learner(member).await.map_err(|e| member_status(&e))?;
        self.members_when(|raft| raft.members.iter().any(|m| m.peer_urls == urls)).await;
        let raft = self.service.raft();
        let Some(added) = raft.members.iter().find(|m| m.peer_urls == urls).map(|m| m.id) else {
            return Err(EtcdError::Timeout.status());
        };
        let alone = voters(&first).len() == 1;
        let learner = req.is_learner || alone;
        if !req.is_learner && alone {
            self.promote_when_there(added);
        } else if !req.is_learner {
            self.promote(added, false).await?;
        }
        let members = self.members_when(|raft| raft.members.iter().any(|m| m.id == added && m.learner == learner)).await;
        let member = members.iter().find(|m| m.peer_ur_ls == urls).cloned();
        Ok(Response::new(pb::MemberAddResponse { header: self.header_of_cluster(), member, members }))
    }

    async fn member_remove(&self, req: Request<pb::MemberRemoveRequest>) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let id = MemberId::new(req.into_inner().id);
        let raft = self.service.raft();
        let Some(member) = raft.members.iter().find(|m| m.id == id) else { return Err(EtcdError::MemberNotFound.status()) };
        if member.learner {
            self.service.roster.remove_learner(id).await.map_err(|e| kv_status(&e))?;
            let members = self.members_when(|raft| raft.members.iter().all(|m| m.id != id)).await;
            return Ok(Response::new(pb::MemberRemoveResponse { header: self.header_of_cluster(), members }));
        }
        let mut left = voters(&raft);
        left.remove(&id);
        if left.is_empty() || !enough_started(&raft, &left) {
            return Err(EtcdError::NotEnoughStarted.status());
        }
        self.healthy(&raft, Change::Remove(id)).await?;
        self.service.roster.remove_voter(id).await.map_err(|e| member_status(&e))?;
        let members = self.members_when(|raft| raft.members.iter().all(|m| m.id != id)).await;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header_of_cluster(), members }))
    }

    async fn member_update(&self, req: Request<pb::MemberUpdateRequest>) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let req = req.into_inner();
        let raft = self.service.raft();
        let Some(member) = raft.members.iter().find(|m| m.id.get() == req.id) else {
            return Err(EtcdError::MemberNotFound.status());
        };
        // etcd takes anything here, and then cannot be reached.
        if req.peer_ur_ls.is_empty() || !req.peer_ur_ls.iter().all(|url| usable(url)) {
            return Err(EtcdError::BadMemberUrls.status());
        }
        if raft.members.iter().any(|m| m.id.get() != req.id && m.peer_urls.iter().any(|url| req.peer_ur_ls.contains(url))) {
            return Err(EtcdError::PeerUrlExists.status());
        }
        let changed = Member { peer_urls: req.peer_ur_ls, ..member.clone() };
        self.service.roster.update(changed.clone()).await.map_err(|e| kv_status(&e))?;
        let members = self.members_when(|raft| raft.members.iter().any(|m| m.peer_urls == changed.peer_urls)).await;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header_of_cluster(), members }))
    }

    async fn member_list(&self, req: Request<pb::MemberListRequest>) -> Result<Response<pb::MemberListResponse>, Status> {
        if req.into_inner().linearizable {
            self.service.reader.barrier().await.map_err(|e| kv_status(&e))?;
        }
        Ok(Response::new(pb::MemberListResponse { header: self.header_of_cluster(), members: self.members() }))
    }

    async fn member_promote(&self, req: Request<pb::MemberPromoteRequest>) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let id = MemberId::new(req.into_inner().id);
        let raft = self.service.raft();
        let Some(member) = raft.members.iter().find(|m| m.id == id) else { return Err(EtcdError::MemberNotFound.status()) };
        if !member.learner {
            return Err(EtcdError::NotLearner.status());
        }
        self.healthy(&raft, Change::Add).await?;
        // Only the leader knows how far the others are.
        self.promote(id, true).await?;
        let members = self.members_when(|raft| raft.members.iter().any(|m| m.id == id && !m.learner)).await;
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header_of_cluster(), members }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_scheme_host_and_port() {
        for good in ["http://127.0.0.1:2380", "https://a.example:1"] {
            assert!(usable(good), "{good}");
        }
        for bad in ["", "127.0.0.1:2380", "http://", "http://host", "ftp://a:1", "http://a:1/x", "not a url", "http://a:1/"] {
            assert!(!usable(bad), "{bad}");
        }
    }

    #[test]
    fn a_change_needs_a_quorum_that_answers() {
        let ids = |ids: &[u64]| ids.iter().map(|n| MemberId::new(*n)).collect::<Vec<_>>();
        let remove = |id| Change::Remove(MemberId::new(id));
        for (voters, answering, change, allowed) in [
            (&[1][..], &[1][..], Change::Add, true),
            (&[1, 2], &[1, 2], Change::Add, true),
            (&[1, 2], &[1], Change::Add, false),
            (&[1, 2, 3], &[1, 2, 3], Change::Add, true),
            (&[1, 2, 3], &[1, 2], Change::Add, false),
            (&[1, 2, 3], &[1, 2, 9], Change::Add, false),
            (&[1, 2, 3, 4], &[1, 2, 3], Change::Add, true),
            (&[1, 2, 3], &[1, 2], remove(3), true),
            (&[1, 2, 3], &[1, 2], remove(2), false),
            (&[1, 2, 3], &[1, 2, 3], remove(2), true),
            (&[1, 2], &[1, 2], remove(2), true),
        ] {
            let set = ids(voters).into_iter().collect();
            assert_eq!(allows(&set, &ids(answering), change), allowed, "{change:?} of {voters:?} while {answering:?} answer");
        }
    }

    #[test]
    fn a_removal_needs_a_started_quorum_of_what_is_left() {
        let member =
            |n: u64, name: &str| Member { id: MemberId::new(n), name: name.into(), peer_urls: vec![], client_urls: vec![], learner: false };
        let raft = RaftStatus { members: vec![member(1, "a"), member(2, "b"), member(3, "")], ..RaftStatus::default() };
        let set = |ids: &[u64]| ids.iter().map(|n| MemberId::new(*n)).collect::<BTreeSet<_>>();
        assert!(enough_started(&raft, &set(&[1, 2, 3])));
        assert!(enough_started(&raft, &set(&[1, 2])));
        assert!(!enough_started(&raft, &set(&[1, 3])), "one of two has not started");
    }
}
