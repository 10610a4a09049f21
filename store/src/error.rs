//! What can go wrong with a member as a whole. Errors of single requests are [`KvError`](kontiki_base::kv::KvError).

use kontiki_base::Code;

/// Why a store does not start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {why}")]
    Listen {
        /// Which.
        addr: String,
        /// What the operating system said.
        why: String,
    },
    /// A certificate or key cannot be used.
    #[error("tls: {0}")]
    Tls(String),
    /// Consensus does not start.
    #[error(transparent)]
    Raft(#[from] crate::raft::node::StartError),
    /// The state cannot be read.
    #[error("state: {0}")]
    State(String),
}

impl StoreError {
    /// The outcome code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Config(_) | Self::Tls(_) => Code::BadRequest,
            Self::Listen { .. } | Self::Raft(_) => Code::Unavailable,
            Self::State(_) => Code::DataLoss,
        }
    }
}
