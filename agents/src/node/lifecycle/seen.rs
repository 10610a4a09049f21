//! What the runtime shows of one pod.

/// A sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxSeen {
    /// The runtime's id.
    pub id: String,
    /// Which attempt of the pod it is, from 0.
    pub attempt: u32,
    /// Whether its network namespace stands.
    pub ready: bool,
    /// When it was made; milliseconds since the epoch.
    pub created_ms: i64,
    /// Its addresses, the first one first. Empty on the host's network.
    pub ips: Vec<String>,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenState {
    /// Made, not started: the agent died in between, or is at it.
    Created,
    /// Running.
    Running {
        /// Since when.
        started_ms: i64,
    },
    /// Ended.
    Exited {
        /// Exit code.
        code: i32,
        /// `Completed`, `Error`, `OOMKilled`, `StartError`…
        reason: String,
        /// Termination message.
        message: String,
        /// When it was started; 0 if it never was.
        started_ms: i64,
        /// When it ended.
        finished_ms: i64,
    },
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSeen {
    /// The runtime's id.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox: String,
    /// Its name in the pod.
    pub name: String,
    /// Which attempt it is, from 0; also how often it was started again.
    pub attempt: u32,
    /// What it does.
    pub state: SeenState,
    /// The image as the pod names it.
    pub image: String,
    /// The image as the runtime names it.
    pub image_id: String,
    /// [`super::container_hash`] when it was made.
    pub hash: String,
    /// When it was made.
    pub created_ms: i64,
}

impl ContainerSeen {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, SeenState::Running { .. })
    }

    /// Whether it has ended.
    pub fn is_exited(&self) -> bool {
        matches!(self.state, SeenState::Exited { .. })
    }

    /// The exit code, once it has ended.
    pub fn exit_code(&self) -> Option<i32> {
        match &self.state {
            SeenState::Exited { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Everything that the runtime shows of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// The newest first.
    pub sandboxes: Vec<SandboxSeen>,
    /// The newest first.
    pub containers: Vec<ContainerSeen>,
}

impl PodSeen {
    /// Puts the newest first; to be called once after filling.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_ms)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_ms)));
    }

    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&SandboxSeen> {
        self.sandboxes.first()
    }

    /// The sandbox that containers can be started in.
    pub fn live_sandbox(&self) -> Option<&SandboxSeen> {
        self.sandbox().filter(|s| s.ready)
    }

    /// The newest container of this name, in whatever sandbox.
    pub fn latest(&self, name: &str) -> Option<&ContainerSeen> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The container of this name that ended before the newest.
    pub fn previous(&self, name: &str) -> Option<&ContainerSeen> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// The newest container of this name in the newest sandbox.
    pub fn current(&self, name: &str) -> Option<&ContainerSeen> {
        let sandbox = self.sandbox()?;
        self.latest(name).filter(|c| c.sandbox == sandbox.id)
    }

    /// All that run.
    pub fn running(&self) -> impl Iterator<Item = &ContainerSeen> {
        self.containers.iter().filter(|c| c.is_running())
    }
}
