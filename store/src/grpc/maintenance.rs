//! `etcdserverpb.Maintenance`.

use kontiki_base::ids::{MemberId, Revision};
use kontiki_base::kv::KvError;
use kontiki_mvcc::hash::{KvHash, hash_kv};
use kontiki_mvcc::{Alarm, AlarmKind};
use kontiki_proto::convert::error::{EtcdError, kv_status};
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;
use tonic::{Request, Response, Status};

use super::Api;
use crate::auth::Caller;
use crate::config::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::raft::Role;

/// What a downgrade could go to: the minor version before the cluster's.
const DOWNGRADE_TARGET: (u32, u32) = (3, 5);

/// Major and minor of "x.y" or "x.y.z".
fn version_of(text: &str) -> Option<(u32, u32)> {
    let parts: Vec<u32> = text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [major, minor] | [major, minor, _] => Some((major, minor)),
        _ => None,
    }
}

impl Api {
    async fn hash_at(&self, at: Revision) -> Result<KvHash, Status> {
        let view = self.service.reader.view();
        let read = move || hash_kv(&*view, at).map_err(KvError::from);
        self.service.reader.workers().run(read).await.map_err(|e| kv_status(&e))
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Api {
    async fn alarm(&self, req: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let req = req.into_inner();
        let acting = self.service.by(&caller);
        let allowed = if req.action == i32::from(AlarmAction::Get) { acting.must_be_known().await } else { acting.must_be_admin().await };
        allowed.map_err(|e| kv_status(&e))?;
        let kind = AlarmKind::ALL.iter().copied().find(|kind| i32::from(*kind as u8) == req.alarm);
        let change = |raise| async move {
            // No kind, or one that we do not know: nothing to do, as in etcd.
            let Some(kind) = kind else { return Ok(Vec::new()) };
            let alarm = Alarm { kind, member: MemberId::new(req.member_id), automatic: false };
            let changed = self.service.alarm(raise, alarm).await.map_err(|e| kv_status(&e))?;
            Ok::<_, Status>(changed.into_iter().collect())
        };
        let alarms: Vec<Alarm> = match AlarmAction::try_from(req.action) {
            Ok(AlarmAction::Get) => {
                // What all have agreed on, not what this member happens to have heard.
                self.service.reader.barrier().await.map_err(|e| kv_status(&e))?;
                let all = self.service.room.alarms();
                all.iter().copied().filter(|alarm| req.alarm == 0 || Some(alarm.kind) == kind).collect()
            }
            Ok(AlarmAction::Activate) => change(true).await?,
            Ok(AlarmAction::Deactivate) => change(false).await?,
            Err(_) => Vec::new(),
        };
        let wire = |alarm: Alarm| pb::AlarmMember { member_id: alarm.member.get(), alarm: i32::from(alarm.kind as u8) };
        Ok(Response::new(pb::AlarmResponse { header: self.header_now(), alarms: alarms.into_iter().map(wire).collect() }))
    }

    async fn status(&self, _req: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let raft = self.service.raft();
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (size, in_use) = (self.service.views.size(), self.service.views.in_use());
        let mut errors: Vec<String> = raft.fatal.iter().cloned().collect();
        if raft.leader.is_none() {
            errors.push(EtcdError::NoLeader.text().into());
        }
        errors.extend(self.service.room.alarms().iter().map(ToString::to_string));
        Ok(Response::new(pb::StatusResponse {
            header: self.header_now(),
            version: ETCD_VERSION.into(),
            db_size: bytes(size),
            leader: raft.leader.map_or(0, MemberId::get),
            // The two are told by different threads: what is applied is committed, whoever said so first.
            raft_index: raft.committed.max(raft.applied).get(),
            raft_term: raft.term.get(),
            raft_applied_index: raft.applied.get(),
            errors,
            db_size_in_use: bytes(in_use),
            is_learner: raft.role == Role::Learner,
            storage_version: ETCD_CLUSTER_VERSION.into(),
            // 0 says that the disk is the limit.
            db_size_quota: bytes(self.service.room.quota()),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(&self, _req: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        // Space returns by itself; this makes it return sooner, in the background, and nobody is held up. etcd leaves this header unset.
        self.service.views.reclaim();
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, _req: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let hash = self.hash_at(Revision::ZERO).await?;
        Ok(Response::new(pb::HashResponse { header: self.header_now(), hash: hash.hash }))
    }

    async fn hash_kv(&self, req: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let hash = self.hash_at(Revision::new(req.into_inner().revision)).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.header_now(),
            hash: hash.hash,
            compact_revision: hash.compact.get(),
            hash_revision: hash.revision.get(),
        }))
    }

    type SnapshotStream = super::snapshot::Parts;

    async fn snapshot(&self, _req: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Ok(Response::new(self.snapshot_parts().await?))
    }

    async fn move_leader(&self, req: Request<pb::MoveLeaderRequest>) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let target = MemberId::new(req.into_inner().target_id);
        let raft = self.service.raft();
        if raft.role != Role::Leader {
            return Err(EtcdError::NotLeader.status());
        }
        if !raft.members.iter().any(|m| m.id == target && !m.learner) {
            return Err(EtcdError::BadTransferee.status());
        }
        if target != raft.id {
            self.service.consensus.transfer_leader(target).await.map_err(|e| kv_status(&e))?;
            let mut status = self.service.status.clone();
            let moved = status.wait_for(|now| now.leader == Some(target));
            tokio::select! {
                biased;
                _ = moved => {}
                () = self.service.env.sleep(self.service.election * 3) => return Err(EtcdError::TimeoutLeaderFail.status()),
            }
        }
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, req: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        let req = req.into_inner();
        match DowngradeAction::try_from(req.action) {
            Ok(DowngradeAction::Cancel) => return Err(EtcdError::NoDowngrade.status()),
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {}
            Err(_) => return Err(Status::invalid_argument("kontiki: unknown downgrade action")),
        }
        let target = version_of(&req.version).ok_or(EtcdError::WrongDowngradeFormat)?;
        if target != DOWNGRADE_TARGET {
            return Err(EtcdError::BadDowngradeTarget.status());
        }
        if req.action == DowngradeAction::Enable as i32 {
            return Err(Status::unimplemented("kontiki: the cluster cannot be downgraded"));
        }
        Ok(Response::new(pb::DowngradeResponse { header: self.header_now(), version: ETCD_CLUSTER_VERSION.into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_two_or_three_numbers() {
        assert_eq!(version_of("3.5"), Some((3, 5)));
        assert_eq!(version_of("3.5.21"), Some((3, 5)));
        for bad in ["", "3", "3.", "a.b", "3.5.1.1", "-3.5"] {
            assert_eq!(version_of(bad), None, "{bad}");
        }
    }
}
