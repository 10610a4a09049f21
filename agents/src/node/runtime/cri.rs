//! [`PodRuntime`] over a CRI socket: containerd, CRI-O.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kontiki_proto::cri as wire;
use kontiki_proto::cri::image_service_client::ImageServiceClient;
use kontiki_proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use super::{Answer, ExecOutput, LogSource, PodRuntime, Readiness, RuntimeError, label};

/// Verbs that only look. A runtime that does not answer within this is taken for hung.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Verbs that change something: network set-up and first start on a busy machine take seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(240);
/// A pull moves an image over the network.
const PULL_TIMEOUT: Duration = Duration::from_secs(1_800);
/// A list of some thousand containers with labels is larger than gRPC's usual 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// A CRI v1 runtime behind a unix socket. Cheap to clone; the connection is made on first use and again after a loss.
#[derive(Clone, Debug)]
pub struct CriRuntime {
    channel: Channel,
    socket: PathBuf,
}

impl CriRuntime {
    /// A runtime at this socket. Does not connect yet, so it never fails for a socket that is not there.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        let socket = socket.as_ref().to_path_buf();
        let path = socket.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        // The authority is not used: the connector knows where to go.
        let channel = Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(connector);
        Self { channel, socket }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// A request with a deadline, which the runtime sees too.
fn timed<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Maps a status. containerd reports most failures as UNKNOWN, so a few are recognised by their words.
fn error(status: tonic::Status) -> RuntimeError {
    let text = status.message().to_owned();
    match status.code() {
        tonic::Code::NotFound => RuntimeError::NotFound(text),
        tonic::Code::AlreadyExists => RuntimeError::AlreadyExists(text),
        tonic::Code::InvalidArgument => RuntimeError::Invalid(text),
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => RuntimeError::Timeout(text),
        tonic::Code::Unavailable => RuntimeError::Unreachable(text),
        tonic::Code::Unimplemented => RuntimeError::Unimplemented(text),
        _ if text.contains("is reserved for") => RuntimeError::AlreadyExists(text),
        _ => RuntimeError::Other(text),
    }
}

fn pod_selector(uid: Option<&str>) -> std::collections::HashMap<String, String> {
    uid.map(|uid| (label::POD_UID.to_owned(), uid.to_owned())).into_iter().collect()
}

fn image_spec(image: &str) -> Option<wire::ImageSpec> {
    Some(wire::ImageSpec { image: image.to_owned(), ..Default::default() })
}

fn seconds(d: Duration) -> i64 {
    i64::try_from(d.as_secs()).unwrap_or(i64::MAX)
}

fn absent(what: &str) -> RuntimeError {
    RuntimeError::Other(format!("the runtime's answer has no {what}"))
}

impl PodRuntime for CriRuntime {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn version(&self) -> Answer<'_, wire::VersionResponse> {
        Box::pin(async move {
            let request = timed(wire::VersionRequest { version: "v1".to_owned() }, READ_TIMEOUT);
            Ok(self.runtime().version(request).await.map_err(error)?.into_inner())
        })
    }

    fn readiness(&self) -> Answer<'_, Readiness> {
        Box::pin(async move {
            let reply =
                self.runtime().status(timed(wire::StatusRequest { verbose: false }, READ_TIMEOUT)).await.map_err(error)?.into_inner();
            let mut ready = Readiness::default();
            for condition in reply.status.map(|s| s.conditions).unwrap_or_default() {
                match condition.r#type.as_str() {
                    "RuntimeReady" => ready.runtime = condition.status,
                    "NetworkReady" => ready.network = condition.status,
                    _ => continue,
                }
                if !condition.status {
                    ready.message = format!("{}: {}", condition.reason, condition.message);
                }
            }
            Ok(ready)
        })
    }

    fn set_pod_cidr<'a>(&'a self, cidr: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let config = wire::RuntimeConfig { network_config: Some(wire::NetworkConfig { pod_cidr: cidr.to_owned() }) };
            let request = timed(wire::UpdateRuntimeConfigRequest { runtime_config: Some(config) }, READ_TIMEOUT);
            self.runtime().update_runtime_config(request).await.map(drop).map_err(error)
        })
    }

    fn network_config_dir(&self) -> Answer<'_, Option<PathBuf>> {
        Box::pin(async move {
            let reply =
                self.runtime().status(timed(wire::StatusRequest { verbose: true }, READ_TIMEOUT)).await.map_err(error)?.into_inner();
            // containerd shows its configuration, as JSON inside the map; other runtimes keep their directory to themselves.
            let config = reply.info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
            Ok(config.and_then(|c| c["cni"]["confDir"].as_str().map(PathBuf::from)))
        })
    }

    fn list_sandboxes<'a>(&'a self, pod_uid: Option<&'a str>) -> Answer<'a, Vec<wire::PodSandbox>> {
        Box::pin(async move {
            let filter = wire::PodSandboxFilter { label_selector: pod_selector(pod_uid), ..Default::default() };
            let request = timed(wire::ListPodSandboxRequest { filter: Some(filter) }, READ_TIMEOUT);
            Ok(self.runtime().list_pod_sandbox(request).await.map_err(error)?.into_inner().items)
        })
    }

    fn sandbox_status<'a>(&'a self, id: &'a str) -> Answer<'a, wire::PodSandboxStatus> {
        Box::pin(async move {
            let request = timed(wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false }, READ_TIMEOUT);
            self.runtime().pod_sandbox_status(request).await.map_err(error)?.into_inner().status.ok_or_else(|| absent("status"))
        })
    }

    fn run_sandbox(&self, config: wire::PodSandboxConfig, handler: String) -> Answer<'_, String> {
        Box::pin(async move {
            let request = timed(wire::RunPodSandboxRequest { config: Some(config), runtime_handler: handler }, WRITE_TIMEOUT);
            Ok(self.runtime().run_pod_sandbox(request).await.map_err(error)?.into_inner().pod_sandbox_id)
        })
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = timed(wire::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }, WRITE_TIMEOUT);
            self.runtime().stop_pod_sandbox(request).await.map(drop).or_else(unless_absent)
        })
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = timed(wire::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }, WRITE_TIMEOUT);
            self.runtime().remove_pod_sandbox(request).await.map(drop).or_else(unless_absent)
        })
    }

    fn list_containers<'a>(&'a self, pod_uid: Option<&'a str>) -> Answer<'a, Vec<wire::Container>> {
        Box::pin(async move {
            let filter = wire::ContainerFilter { label_selector: pod_selector(pod_uid), ..Default::default() };
            let request = timed(wire::ListContainersRequest { filter: Some(filter) }, READ_TIMEOUT);
            Ok(self.runtime().list_containers(request).await.map_err(error)?.into_inner().containers)
        })
    }

    fn container_status<'a>(&'a self, id: &'a str) -> Answer<'a, wire::ContainerStatus> {
        Box::pin(async move {
            let request = timed(wire::ContainerStatusRequest { container_id: id.to_owned(), verbose: false }, READ_TIMEOUT);
            self.runtime().container_status(request).await.map_err(error)?.into_inner().status.ok_or_else(|| absent("status"))
        })
    }

    fn create_container<'a>(
        &'a self,
        sandbox: &'a str,
        config: wire::ContainerConfig,
        sandbox_config: wire::PodSandboxConfig,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            let message = wire::CreateContainerRequest {
                pod_sandbox_id: sandbox.to_owned(),
                config: Some(config),
                sandbox_config: Some(sandbox_config),
            };
            Ok(self.runtime().create_container(timed(message, WRITE_TIMEOUT)).await.map_err(error)?.into_inner().container_id)
        })
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = timed(wire::StartContainerRequest { container_id: id.to_owned() }, WRITE_TIMEOUT);
            self.runtime().start_container(request).await.map(drop).map_err(error)
        })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()> {
        Box::pin(async move {
            let message = wire::StopContainerRequest { container_id: id.to_owned(), timeout: seconds(grace) };
            // The runtime answers when the container has ended, which is after the grace at the latest.
            self.runtime().stop_container(timed(message, grace + READ_TIMEOUT * 3)).await.map(drop).or_else(unless_absent)
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = timed(wire::RemoveContainerRequest { container_id: id.to_owned() }, WRITE_TIMEOUT);
            self.runtime().remove_container(request).await.map(drop).or_else(unless_absent)
        })
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: Vec<String>, timeout: Duration) -> Answer<'a, ExecOutput> {
        Box::pin(async move {
            // The runtime counts in whole seconds, and 0 would mean "no limit".
            let message = wire::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds(timeout).max(1) };
            let reply = self.runtime().exec_sync(timed(message, timeout + READ_TIMEOUT)).await.map_err(error)?.into_inner();
            Ok(ExecOutput { stdout: reply.stdout, stderr: reply.stderr, exit_code: reply.exit_code })
        })
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = timed(wire::ReopenContainerLogRequest { container_id: id.to_owned() }, READ_TIMEOUT);
            self.runtime().reopen_container_log(request).await.map(drop).map_err(error)
        })
    }

    fn log_source<'a>(&'a self, id: &'a str) -> Answer<'a, LogSource> {
        Box::pin(async move { Ok(LogSource::File(PathBuf::from(self.container_status(id).await?.log_path))) })
    }

    fn exec_url(&self, request: wire::ExecRequest) -> Answer<'_, String> {
        Box::pin(async move { Ok(self.runtime().exec(timed(request, READ_TIMEOUT)).await.map_err(error)?.into_inner().url) })
    }

    fn attach_url(&self, request: wire::AttachRequest) -> Answer<'_, String> {
        Box::pin(async move { Ok(self.runtime().attach(timed(request, READ_TIMEOUT)).await.map_err(error)?.into_inner().url) })
    }

    fn port_forward_url(&self, request: wire::PortForwardRequest) -> Answer<'_, String> {
        Box::pin(async move { Ok(self.runtime().port_forward(timed(request, READ_TIMEOUT)).await.map_err(error)?.into_inner().url) })
    }

    fn image_status<'a>(&'a self, image: &'a str) -> Answer<'a, Option<wire::Image>> {
        Box::pin(async move {
            let request = timed(wire::ImageStatusRequest { image: image_spec(image), verbose: false }, READ_TIMEOUT);
            Ok(self.images().image_status(request).await.map_err(error)?.into_inner().image)
        })
    }

    fn pull_image<'a>(&'a self, image: &'a str, auth: Option<wire::AuthConfig>) -> Answer<'a, String> {
        Box::pin(async move {
            let message = wire::PullImageRequest { image: image_spec(image), auth, sandbox_config: None };
            Ok(self.images().pull_image(timed(message, PULL_TIMEOUT)).await.map_err(error)?.into_inner().image_ref)
        })
    }

    fn list_images(&self) -> Answer<'_, Vec<wire::Image>> {
        Box::pin(async move {
            let request = timed(wire::ListImagesRequest { filter: None }, READ_TIMEOUT);
            Ok(self.images().list_images(request).await.map_err(error)?.into_inner().images)
        })
    }

    fn remove_image<'a>(&'a self, image: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = timed(wire::RemoveImageRequest { image: image_spec(image) }, WRITE_TIMEOUT);
            self.images().remove_image(request).await.map(drop).or_else(unless_absent)
        })
    }

    fn list_stats(&self) -> Answer<'_, Vec<wire::ContainerStats>> {
        Box::pin(async move {
            let request = timed(wire::ListContainerStatsRequest { filter: None }, READ_TIMEOUT);
            Ok(self.runtime().list_container_stats(request).await.map_err(error)?.into_inner().stats)
        })
    }
}

/// For idempotent verbs: what is not there is gone already.
fn unless_absent(status: tonic::Status) -> Result<(), RuntimeError> {
    match error(status) {
        RuntimeError::NotFound(_) => Ok(()),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_containerd_become_codes() {
        let reserved = tonic::Status::unknown("failed to reserve sandbox name \"a\": name \"a\" is reserved for \"b\"");
        assert!(matches!(error(reserved), RuntimeError::AlreadyExists(_)));
        assert!(matches!(error(tonic::Status::unknown("boom")), RuntimeError::Other(_)));
        assert!(unless_absent(tonic::Status::not_found("x")).is_ok() && unless_absent(tonic::Status::unavailable("x")).is_err());
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_unreachable() {
        let runtime = CriRuntime::new("/nonexistent/cri.sock");
        assert!(matches!(runtime.version().await, Err(RuntimeError::Unreachable(_))));
    }
}
