//! `etcdserverpb.Auth`: not built. The store has no users and no roles, and says exactly that: what asks for one is told that it does not
//! exist, what would make one is told that this is not implemented, and auth is reported as disabled.

use kontiki_proto::convert::error::EtcdError;
use kontiki_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::Api;

/// The revision of users and roles where none was ever made.
const AUTH_REVISION: u64 = 1;

fn not_built() -> Status {
    Status::unimplemented("kontiki: users and roles are not built yet")
}

#[tonic::async_trait]
impl pb::auth_server::Auth for Api {
    async fn auth_enable(&self, _req: Request<pb::AuthEnableRequest>) -> Result<Response<pb::AuthEnableResponse>, Status> {
        Err(EtcdError::RootUserAbsent.status())
    }

    async fn auth_disable(&self, _req: Request<pb::AuthDisableRequest>) -> Result<Response<pb::AuthDisableResponse>, Status> {
        Ok(Response::new(pb::AuthDisableResponse { header: self.header_now() }))
    }

    async fn auth_status(&self, _req: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
        Ok(Response::new(pb::AuthStatusResponse { header: self.header_now(), enabled: false, auth_revision: AUTH_REVISION }))
    }

    async fn authenticate(&self, _req: Request<pb::AuthenticateRequest>) -> Result<Response<pb::AuthenticateResponse>, Status> {
        Err(EtcdError::AuthNotEnabled.status())
    }

    async fn user_add(&self, _req: Request<pb::AuthUserAddRequest>) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        Err(not_built())
    }

    async fn user_get(&self, _req: Request<pb::AuthUserGetRequest>) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        Err(EtcdError::UserNotFound.status())
    }

    async fn user_list(&self, _req: Request<pb::AuthUserListRequest>) -> Result<Response<pb::AuthUserListResponse>, Status> {
        Ok(Response::new(pb::AuthUserListResponse { header: self.header_now(), users: Vec::new() }))
    }

    async fn user_delete(&self, _req: Request<pb::AuthUserDeleteRequest>) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        Err(EtcdError::UserNotFound.status())
    }

    async fn user_change_password(
        &self,
        _req: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        Err(EtcdError::UserNotFound.status())
    }

    async fn user_grant_role(
        &self,
        _req: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        Err(EtcdError::UserNotFound.status())
    }

    async fn user_revoke_role(
        &self,
        _req: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        Err(EtcdError::UserNotFound.status())
    }

    async fn role_add(&self, _req: Request<pb::AuthRoleAddRequest>) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        Err(not_built())
    }

    async fn role_get(&self, _req: Request<pb::AuthRoleGetRequest>) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        Err(EtcdError::RoleNotFound.status())
    }

    async fn role_list(&self, _req: Request<pb::AuthRoleListRequest>) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header_now(), roles: Vec::new() }))
    }

    async fn role_delete(&self, _req: Request<pb::AuthRoleDeleteRequest>) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        Err(EtcdError::RoleNotFound.status())
    }

    async fn role_grant_permission(
        &self,
        _req: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        Err(EtcdError::RoleNotFound.status())
    }

    async fn role_revoke_permission(
        &self,
        _req: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        Err(EtcdError::RoleNotFound.status())
    }
}
