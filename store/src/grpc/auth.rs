//! `etcdserverpb.Auth`: users, roles, permissions, tokens.

use kontiki_base::key::KeyRange;
use kontiki_mvcc::auth::{Access, AuthCommand, Permission, ROOT};
use kontiki_proto::convert::error::{EtcdError, kv_status};
use kontiki_proto::etcd::authpb;
use kontiki_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::Api;
use crate::auth::{Caller, access_of, permission_to};

/// What the role root is shown to allow: everything.
fn everything() -> authpb::Permission {
    let perm_type = authpb::permission::Type::Readwrite.into();
    authpb::Permission { perm_type, key: bytes::Bytes::new(), range_end: bytes::Bytes::from_static(&[0]) }
}

impl Api {
    async fn change<T>(&self, req: &Request<T>, command: AuthCommand) -> Result<(), Status> {
        self.not_learner()?;
        self.service.by(&Caller::of(req)).change(command).await.map_err(|e| kv_status(&e))
    }
}

/// Answers that are a header and nothing else.
macro_rules! done {
    ($api:ident, $answer:ident) => {
        Ok(Response::new(pb::$answer { header: $api.header_now() }))
    };
}

#[tonic::async_trait]
impl pb::auth_server::Auth for Api {
    async fn auth_enable(&self, req: Request<pb::AuthEnableRequest>) -> Result<Response<pb::AuthEnableResponse>, Status> {
        self.change(&req, AuthCommand::Enable).await?;
        done!(self, AuthEnableResponse)
    }

    async fn auth_disable(&self, req: Request<pb::AuthDisableRequest>) -> Result<Response<pb::AuthDisableResponse>, Status> {
        self.change(&req, AuthCommand::Disable).await?;
        done!(self, AuthDisableResponse)
    }

    async fn auth_status(&self, req: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
        self.not_learner()?;
        let facts = self.service.by(&Caller::of(&req)).status().await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::AuthStatusResponse { header: self.header_now(), enabled: facts.enabled, auth_revision: facts.revision }))
    }

    async fn authenticate(&self, req: Request<pb::AuthenticateRequest>) -> Result<Response<pb::AuthenticateResponse>, Status> {
        self.not_learner()?;
        let caller = Caller::of(&req);
        let pb::AuthenticateRequest { name, password } = req.into_inner();
        let token = self.service.by(&caller).log_in(name, password).await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.header_now(), token }))
    }

    async fn user_add(&self, req: Request<pb::AuthUserAddRequest>) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        self.not_learner()?;
        let asked = req.get_ref().clone();
        let hash = if asked.options.is_some_and(|options| options.no_password) {
            None
        } else {
            // A hash that the client brings is not looked at, as in etcd: the cost is the members' to choose.
            Some(self.service.by(&Caller::of(&req)).hash(asked.password).await.map_err(|e| kv_status(&e))?)
        };
        self.change(&req, AuthCommand::UserAdd { name: asked.name, hash }).await?;
        done!(self, AuthUserAddResponse)
    }

    async fn user_get(&self, req: Request<pb::AuthUserGetRequest>) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        self.not_learner()?;
        let user = self.service.by(&Caller::of(&req)).user(&req.get_ref().name).await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::AuthUserGetResponse { header: self.header_now(), roles: user.roles }))
    }

    async fn user_list(&self, req: Request<pb::AuthUserListRequest>) -> Result<Response<pb::AuthUserListResponse>, Status> {
        self.not_learner()?;
        let users = self.service.by(&Caller::of(&req)).users().await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::AuthUserListResponse { header: self.header_now(), users }))
    }

    async fn user_delete(&self, req: Request<pb::AuthUserDeleteRequest>) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let name = req.get_ref().name.clone();
        self.change(&req, AuthCommand::UserDelete { name }).await?;
        done!(self, AuthUserDeleteResponse)
    }

    async fn user_change_password(
        &self,
        req: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        self.not_learner()?;
        let pb::AuthUserChangePasswordRequest { name, password, .. } = req.get_ref().clone();
        let hash = self.service.by(&Caller::of(&req)).hash(password).await.map_err(|e| kv_status(&e))?;
        self.change(&req, AuthCommand::UserPassword { name, hash }).await?;
        done!(self, AuthUserChangePasswordResponse)
    }

    async fn user_grant_role(&self, req: Request<pb::AuthUserGrantRoleRequest>) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let pb::AuthUserGrantRoleRequest { user, role } = req.get_ref().clone();
        self.change(&req, AuthCommand::UserGrant { name: user, role }).await?;
        done!(self, AuthUserGrantRoleResponse)
    }

    async fn user_revoke_role(
        &self,
        req: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let pb::AuthUserRevokeRoleRequest { name, role } = req.get_ref().clone();
        self.change(&req, AuthCommand::UserRevoke { name, role }).await?;
        done!(self, AuthUserRevokeRoleResponse)
    }

    async fn role_add(&self, req: Request<pb::AuthRoleAddRequest>) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let name = req.get_ref().name.clone();
        self.change(&req, AuthCommand::RoleAdd { name }).await?;
        done!(self, AuthRoleAddResponse)
    }

    async fn role_get(&self, req: Request<pb::AuthRoleGetRequest>) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        self.not_learner()?;
        let name = &req.get_ref().role;
        let role = self.service.by(&Caller::of(&req)).role(name).await.map_err(|e| kv_status(&e))?;
        let perm = if name == ROOT { vec![everything()] } else { role.permissions.iter().map(permission_to).collect() };
        Ok(Response::new(pb::AuthRoleGetResponse { header: self.header_now(), perm }))
    }

    async fn role_list(&self, req: Request<pb::AuthRoleListRequest>) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        self.not_learner()?;
        let roles = self.service.by(&Caller::of(&req)).roles().await.map_err(|e| kv_status(&e))?;
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header_now(), roles }))
    }

    async fn role_delete(&self, req: Request<pb::AuthRoleDeleteRequest>) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let name = req.get_ref().role.clone();
        self.change(&req, AuthCommand::RoleDelete { name }).await?;
        done!(self, AuthRoleDeleteResponse)
    }

    async fn role_grant_permission(
        &self,
        req: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let pb::AuthRoleGrantPermissionRequest { name, perm } = req.get_ref().clone();
        let Some(perm) = perm else {
            // Said to those only who could have given one.
            self.service.by(&Caller::of(&req)).must_be_admin().await.map_err(|e| kv_status(&e))?;
            return Err(EtcdError::PermissionNotGiven.status());
        };
        // An unknown kind allows as little as there is.
        let access = access_of(perm.perm_type).unwrap_or(Access::Read);
        let permission = Permission { access, range: KeyRange::from_wire(perm.key, perm.range_end) };
        self.change(&req, AuthCommand::RoleGrant { name, permission }).await?;
        done!(self, AuthRoleGrantPermissionResponse)
    }

    async fn role_revoke_permission(
        &self,
        req: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let pb::AuthRoleRevokePermissionRequest { role, key, range_end } = req.get_ref().clone();
        self.change(&req, AuthCommand::RoleRevoke { name: role, range: KeyRange::from_wire(key, range_end) }).await?;
        done!(self, AuthRoleRevokePermissionResponse)
    }
}
