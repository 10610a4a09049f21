//! The seam to what runs pods: verbs in the shape of the Container Runtime Interface, so that one sync loop drives every runtime.
//!
//! [`cri`] speaks to containerd or CRI-O over a unix socket; [`hollow`] simulates pods for thousands of nodes in one process. The laws
//! that both keep are in `suite` (with the feature of that name).

pub mod cri;
pub mod hollow;
#[cfg(any(test, feature = "suite"))]
pub mod suite;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use kontiki_base::{BoxFuture, Code};
pub use kontiki_proto::cri as wire;

/// Labels and annotations that the agent puts on sandboxes and containers; the same as the kubelet's, so that `crictl` understands them.
pub mod label {
    /// Name of the pod.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Namespace of the pod.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Uid of the pod.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Name of the container.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Annotation: hash of the container's specification, to see that it changed.
    pub const HASH: &str = "io.kubernetes.container.hash";
    /// Annotation: how often the container was started again.
    pub const RESTARTS: &str = "io.kubernetes.container.restartCount";
    /// Annotation: file on the node that holds the termination message.
    pub const MESSAGE_FILE: &str = "kontiki.dev/termination-message-file";
    /// Annotation: how the termination message is taken: `File` or `FallbackToLogsOnError`.
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Annotation: seconds of grace that the pod had when the container was made; used for orphans, whose object is gone.
    pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// What a runtime answered instead of success.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no such sandbox, container or image.
    #[error("not found: {0}")]
    NotFound(String),
    /// The object exists already; the text names it.
    #[error("already exists: {0}")]
    AlreadyExists(String),
    /// The runtime refuses the request as it is.
    #[error("invalid: {0}")]
    Invalid(String),
    /// Time ran out.
    #[error("timed out: {0}")]
    Timeout(String),
    /// The runtime cannot be reached.
    #[error("runtime is not reachable: {0}")]
    Unreachable(String),
    /// The runtime does not have this verb.
    #[error("the runtime does not implement this: {0}")]
    Unimplemented(String),
    /// Anything else; the runtime's own words.
    #[error("{0}")]
    Other(String),
}

impl RuntimeError {
    /// The outcome table's word for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::Invalid(_) => Code::BadRequest,
            Self::Timeout(_) => Code::Timeout,
            Self::Unreachable(_) => Code::Unavailable,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Other(_) => Code::Internal,
        }
    }

    /// Whether the thing that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// What a verb gives back.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

/// Whether a runtime can run pods now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The runtime itself answers and is well.
    pub runtime: bool,
    /// Pods would get a network.
    pub network: bool,
    /// Why not, in the runtime's words; empty if all is well.
    pub message: String,
}

/// Output of a command that ran in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote to its standard output.
    pub stdout: Bytes,
    /// What it wrote to its standard error.
    pub stderr: Bytes,
    /// Its exit code.
    pub exit_code: i32,
}

/// Where the log of a container is.
#[derive(Clone, Debug)]
pub enum LogSource {
    /// A file in the CRI format, which the runtime goes on writing.
    File(PathBuf),
    /// The whole log so far, in the CRI format.
    Memory(Bytes),
}

/// A probe over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetProbe {
    /// Connect, then close.
    Tcp {
        /// Address of the pod.
        host: String,
        /// Port.
        port: u16,
    },
    /// A GET that answers 200 to 399.
    Http {
        /// Address to connect to.
        host: String,
        /// Port.
        port: u16,
        /// Path and query.
        path: String,
        /// Extra headers.
        headers: Vec<(String, String)>,
        /// Speak TLS, without verification of the certificate.
        tls: bool,
    },
}

/// A thing that runs pods. All verbs are idempotent where the interface says so, and none of them blocks a thread.
pub trait PodRuntime: Send + Sync + 'static {
    /// Prefix of container ids in a pod's status: `containerd` gives `containerd://ID`.
    fn name(&self) -> &str;

    /// Whether pods are simulated: then the agent prepares no volumes, no cgroups and no files.
    fn simulated(&self) -> bool {
        false
    }

    /// Name and version of the runtime.
    fn version(&self) -> Answer<'_, wire::VersionResponse>;

    /// Whether runtime and network are ready.
    fn readiness(&self) -> Answer<'_, Readiness>;

    /// The range that pod addresses come from. Runtimes with a network configuration of their own ignore it.
    fn set_pod_cidr<'a>(&'a self, cidr: &'a str) -> Answer<'a, ()>;

    /// Where the runtime reads its network configuration, if the agent is to write one.
    fn network_config_dir(&self) -> Answer<'_, Option<PathBuf>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// All sandboxes, stopped ones too; with a uid, those of one pod.
    fn list_sandboxes<'a>(&'a self, pod_uid: Option<&'a str>) -> Answer<'a, Vec<wire::PodSandbox>>;

    /// State and addresses of a sandbox.
    fn sandbox_status<'a>(&'a self, id: &'a str) -> Answer<'a, wire::PodSandboxStatus>;

    /// Makes and starts a sandbox; gives its id. If one of the same name exists, gives [`RuntimeError::AlreadyExists`].
    fn run_sandbox(&self, config: wire::PodSandboxConfig, handler: String) -> Answer<'_, String>;

    /// Stops all containers of a sandbox and gives back its network. Idempotent.
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Removes a sandbox with all its containers. Idempotent.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// All containers, exited ones too; with a uid, those of one pod.
    fn list_containers<'a>(&'a self, pod_uid: Option<&'a str>) -> Answer<'a, Vec<wire::Container>>;

    /// State of a container.
    fn container_status<'a>(&'a self, id: &'a str) -> Answer<'a, wire::ContainerStatus>;

    /// Makes a container; the image must be present. Gives its id.
    fn create_container<'a>(
        &'a self,
        sandbox: &'a str,
        config: wire::ContainerConfig,
        sandbox_config: wire::PodSandboxConfig,
    ) -> Answer<'a, String>;

    /// Starts a container that was made.
    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Stop signal, then after `grace` SIGKILL. Comes back when the container has ended. A second call may shorten the grace. Idempotent.
    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()>;

    /// Removes a container. Idempotent.
    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Runs a command in a container. [`RuntimeError::Timeout`] when it takes longer than `timeout`; the command is killed then.
    fn exec_sync<'a>(&'a self, id: &'a str, command: Vec<String>, timeout: Duration) -> Answer<'a, ExecOutput>;

    /// The runtime opens the log file again, after a rename.
    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Where the log of a container is.
    fn log_source<'a>(&'a self, id: &'a str) -> Answer<'a, LogSource>;

    /// A URL, good for one request, that streams a command's input and output.
    fn exec_url(&self, request: wire::ExecRequest) -> Answer<'_, String>;

    /// A URL, good for one request, that streams the container's own input and output.
    fn attach_url(&self, request: wire::AttachRequest) -> Answer<'_, String>;

    /// A URL, good for one request, that forwards ports of a sandbox.
    fn port_forward_url(&self, request: wire::PortForwardRequest) -> Answer<'_, String>;

    /// The image, if it is present.
    fn image_status<'a>(&'a self, image: &'a str) -> Answer<'a, Option<wire::Image>>;

    /// Fetches an image; gives its reference.
    fn pull_image<'a>(&'a self, image: &'a str, auth: Option<wire::AuthConfig>) -> Answer<'a, String>;

    /// All images.
    fn list_images(&self) -> Answer<'_, Vec<wire::Image>>;

    /// Removes an image with all its tags. Idempotent.
    fn remove_image<'a>(&'a self, image: &'a str) -> Answer<'a, ()>;

    /// Usage of every running container.
    fn list_stats(&self) -> Answer<'_, Vec<wire::ContainerStats>>;

    /// Answers a network probe itself. `None`: the agent is to go over the network.
    fn probe<'a>(&'a self, _sandbox: &'a str, _probe: &'a NetProbe) -> BoxFuture<'a, Option<Result<(), String>>> {
        Box::pin(std::future::ready(None))
    }
}
