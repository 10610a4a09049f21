//! Beats on their way from the server that heard them to the leader. Nobody is told who leads: the server that answered last as the
//! leader is asked first, then the others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kontiki_base::Term;
use kontiki_base::env::{Env, Mono};
use kontiki_proto::node::node_session_client::NodeSessionClient;
use kontiki_proto::node::{Beat, RelayRequest};
use tokio::sync::watch;

use super::{HEARTBEAT, Liveness, SessionConfig};
use crate::error::ConfigError;
use crate::transport::{Channel, channels};

/// Beats travel together for this long.
const GATHER: Duration = Duration::from_millis(300);
/// A peer that does not answer within this is not the leader.
const PATIENCE: Duration = Duration::from_millis(800);

/// The relay of one server.
pub(super) struct Relay {
    server: String,
    env: Arc<dyn Env>,
    leadership: watch::Receiver<Option<Term>>,
    liveness: Arc<Liveness>,
    peers: Vec<(String, NodeSessionClient<Channel>)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Nodes that were heard since the last relay.
    heard: BTreeSet<String>,
    /// Index of the peer that led when it was last asked.
    leader: usize,
    /// When a leader last took beats.
    delivered: Option<Mono>,
}

impl Relay {
    pub(super) fn new(config: &SessionConfig) -> Result<Self, ConfigError> {
        let peers = if config.peers.endpoints.is_empty() { Vec::new() } else { channels(&config.peers)? };
        Ok(Self {
            server: config.server.clone(),
            env: config.caches.env.clone(),
            leadership: config.leadership.clone(),
            liveness: config.liveness.clone(),
            peers: peers.into_iter().map(|(url, channel)| (url, NodeSessionClient::new(channel))).collect(),
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node was heard here. The set is bounded by the table of heartbeats.
    pub(super) fn heard(&self, node: &str) {
        self.lock().heard.insert(node.to_owned());
    }

    fn leads(&self) -> bool {
        self.leadership.borrow().is_some()
    }

    /// Whether what was heard here a moment ago is known to a leader.
    pub(super) fn leader_knows(&self) -> bool {
        let recent = |at: Mono| self.env.now_mono().since(at) < HEARTBEAT * 3;
        self.leads() || self.lock().delivered.is_some_and(recent)
    }

    /// Relays for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.env.sleep(GATHER).await;
            let heard = std::mem::take(&mut self.lock().heard);
            if heard.is_empty() || self.leads() || self.peers.is_empty() {
                continue;
            }
            if self.deliver(&heard).await {
                self.lock().delivered = Some(self.env.now_mono());
            } else {
                // Their age grows; the next round tells of them again.
                self.lock().heard.extend(heard);
            }
        }
    }

    async fn deliver(&self, heard: &BTreeSet<String>) -> bool {
        let first = self.lock().leader;
        for offset in 0..self.peers.len() {
            let index = (first + offset) % self.peers.len();
            let (url, client) = &self.peers[index];
            let request = RelayRequest { from: self.server.clone(), beats: self.beats(heard) };
            let mut client = client.clone();
            let answer = tokio::select! {
                answer = client.relay(request) => answer,
                () = self.env.sleep(PATIENCE) => Err(tonic::Status::deadline_exceeded("relay")),
            };
            match answer {
                Ok(answer) if answer.get_ref().leader => {
                    self.lock().leader = index;
                    return true;
                }
                Ok(_) => {}
                Err(status) => tracing::debug!(peer = url, %status, "relay failed"),
            }
        }
        false
    }

    fn beats(&self, heard: &BTreeSet<String>) -> Vec<Beat> {
        let now = self.env.now_mono();
        heard
            .iter()
            .filter_map(|node| {
                let known = self.liveness.get(node)?;
                let age_ms = u64::try_from(now.since(known.at).as_millis()).unwrap_or(u64::MAX);
                Some(Beat { node_name: node.clone(), boot: known.boot, age_ms, usage: known.usage })
            })
            .collect()
    }
}
