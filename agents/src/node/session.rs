//! The agent's end of the node session: one stream to any server. Pods come down; heartbeats and statuses go up.
//!
//! When the stream breaks the agent goes to the next server and shows itself there; pods run on meanwhile. A status counts as delivered
//! when the server has acknowledged it, and only the newest status of a pod is kept, so nothing piles up while there is no server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::env::Env;
use kontiki_base::limits;
use kontiki_proto::node as pb;
use kontiki_proto::node::agent_message::Message as Up;
use kontiki_proto::node::node_session_client::NodeSessionClient;
use kontiki_proto::node::server_message::Message as Down;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::StreamExt as _;

use super::sync::Input;
use crate::api::jittered;
use crate::transport::Channel;

/// Time for a server to say Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeats that may stay unanswered before the server is given up.
const SILENT_BEATS: u32 = 5;
/// Beats in a row that may go without the leader hearing of them, before another server is tried: this one may be cut off.
const UNHEARD_BEATS: u32 = 10;
/// How often to beat until a server says otherwise, and the bounds of what it may say.
const BEAT: Duration = Duration::from_secs(1);
const BEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A full set of pods is one message.
const MAX_MESSAGE: usize = 64 << 20;

/// Statuses that wait for a server; the newest of each pod.
#[derive(Default)]
pub struct Outbox {
    waiting: Mutex<BTreeMap<String, pb::PodStatus>>,
    filled: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, pb::PodStatus>> {
        // A map of plain values: a panic elsewhere cannot have left it half-changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a status, in place of an older one of the same pod.
    pub fn put(&self, status: pb::PodStatus) {
        self.lock().insert(status.uid.clone(), status);
        self.filled.notify_one();
    }

    /// Takes the next batch.
    fn take(&self) -> Vec<pb::PodStatus> {
        let mut waiting = self.lock();
        let mut batch = Vec::new();
        while batch.len() < limits::STATUS_BATCH {
            match waiting.pop_first() {
                Some((_, status)) => batch.push(status),
                None => break,
            }
        }
        batch
    }

    /// Gives back a batch that was not acknowledged; newer statuses stay.
    fn put_back(&self, batch: Vec<pb::PodStatus>) {
        let mut waiting = self.lock();
        for status in batch {
            waiting.entry(status.uid.clone()).or_insert(status);
        }
        drop(waiting);
        self.filled.notify_one();
    }
}

/// What goes into heartbeats.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// Usage of the node.
    pub usage: pb::NodeUsage,
    /// Conditions of the node, JSON.
    pub conditions: Vec<u8>,
}

/// The agent's end of the session.
pub struct Session {
    /// The node.
    pub name: String,
    /// This incarnation of the agent.
    pub boot: u64,
    /// Where servers reach the agent; empty if it has no port.
    pub address: String,
    /// All servers.
    pub servers: Vec<(String, Channel)>,
    /// The Node object, JSON.
    pub node_json: watch::Receiver<Vec<u8>>,
    /// What goes into heartbeats.
    pub pulse: watch::Receiver<Pulse>,
    /// Statuses to deliver.
    pub outbox: Arc<Outbox>,
    /// Clock and randomness.
    pub env: Arc<dyn Env>,
    /// The loop.
    pub inputs: mpsc::Sender<Input>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("the server ended the session")]
    Closed,
    #[error("no welcome within {WELCOME_TIMEOUT:?}")]
    NoWelcome,
    #[error("{SILENT_BEATS} heartbeats were not answered")]
    Silent,
    #[error("the leader has not heard of the node for {UNHEARD_BEATS} heartbeats")]
    Unheard,
    #[error("the server takes nothing more")]
    Stuck,
}

impl Session {
    /// Holds a session with some server, for ever.
    pub async fn run(self) {
        let mut pause = Duration::from_millis(100);
        let mut index = usize::try_from(self.env.random_u64() % self.servers.len().max(1) as u64).unwrap_or(0);
        while !self.inputs.is_closed() {
            let (url, channel) = &self.servers[index % self.servers.len()];
            let started = self.env.now_mono();
            let ended = self.hold(channel.clone()).await;
            if let Err(error) = ended {
                tracing::info!(node = %self.name, server = %url, %error, "session ended");
            }
            index = index.wrapping_add(1);
            if self.env.now_mono().since(started) > Duration::from_secs(10) {
                pause = Duration::from_millis(100);
            }
            self.env.sleep(jittered(pause, self.env.random_u64())).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// One session, until it breaks.
    async fn hold(&self, channel: Channel) -> Result<(), Ended> {
        let (up, rx) = mpsc::channel(limits::NODE_SESSION_QUEUE);
        let hello = pb::Hello {
            node_name: self.name.clone(),
            boot: self.boot,
            node_json: self.node_json.borrow().clone().into(),
            agent_address: self.address.clone(),
        };
        send(&up, Up::Hello(hello))?;
        let mut client = NodeSessionClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
        let greeting = async {
            let mut down = client.session(stream).await?.into_inner();
            match down.message().await? {
                Some(pb::ServerMessage { message: Some(Down::Welcome(welcome)) }) => Ok((down, welcome)),
                _ => Err(Ended::Closed),
            }
        };
        let (down, welcome) = tokio::select! {
            greeted = greeting => greeted?,
            () = self.env.sleep(WELCOME_TIMEOUT) => return Err(Ended::NoWelcome),
        };
        tracing::info!(node = %self.name, server = %welcome.server, "session begins");
        let told = Duration::from_millis(u64::from(welcome.heartbeat_ms));
        let beat = if told.is_zero() { BEAT } else { told.clamp(BEAT_BOUNDS.0, BEAT_BOUNDS.1) };
        if self.inputs.send(Input::Welcome { pod_cidr: welcome.pod_cidr }).await.is_err() {
            return Ok(());
        }
        let mut unsettled: Option<(u64, Vec<pb::PodStatus>)> = None;
        let outcome = self.converse(&up, down, beat, &mut unsettled).await;
        if let Some((_, batch)) = unsettled {
            self.outbox.put_back(batch);
        }
        outcome
    }

    async fn converse(
        &self,
        up: &mpsc::Sender<pb::AgentMessage>,
        mut down: tonic::Streaming<pb::ServerMessage>,
        beat: Duration,
        unsettled: &mut Option<(u64, Vec<pb::PodStatus>)>,
    ) -> Result<(), Ended> {
        let (mut seq, mut batch_seq) = (0_u64, 0_u64);
        let (mut unanswered, mut unheard) = (0_u32, 0_u32);
        let mut shown: Option<Vec<u8>> = None;
        let mut timer = Box::pin(self.env.sleep(Duration::ZERO));
        loop {
            tokio::select! {
                message = down.next() => match message {
                    None => return Err(Ended::Closed),
                    Some(message) => {
                        let Some(message) = message?.message else { continue };
                        match message {
                            Down::Ack(ack) => {
                                unanswered = 0;
                                unheard = if ack.leader_knows { 0 } else { unheard + 1 };
                                if unheard >= UNHEARD_BEATS {
                                    return Err(Ended::Unheard);
                                }
                            }
                            Down::StatusAck(ack) => if unsettled.as_ref().is_some_and(|(sent, _)| *sent == ack.seq) {
                                *unsettled = None;
                            },
                            Down::Pods(set) => if self.inputs.send(Input::Pods(set)).await.is_err() { return Ok(()) },
                            // A second welcome says that the pod range has been assigned since.
                            Down::Welcome(w) => if self.inputs.send(Input::Welcome { pod_cidr: w.pod_cidr }).await.is_err() { return Ok(()) },
                        }
                    }
                },
                () = &mut timer => {
                    if unanswered >= SILENT_BEATS {
                        return Err(Ended::Silent);
                    }
                    let pulse = self.pulse.borrow().clone();
                    let fresh = shown.as_ref() != Some(&pulse.conditions);
                    let conditions_json = if fresh { pulse.conditions.clone().into() } else { Default::default() };
                    shown = Some(pulse.conditions);
                    seq += 1;
                    unanswered += 1;
                    send(up, Up::Heartbeat(pb::Heartbeat { seq, conditions_json, usage: Some(pulse.usage) }))?;
                    timer = Box::pin(self.env.sleep(beat));
                }
                () = self.outbox.filled.notified(), if unsettled.is_none() => {}
            }
            // One batch at a time: while it travels, the next one gathers.
            if unsettled.is_none() {
                let batch = self.outbox.take();
                if !batch.is_empty() {
                    batch_seq += 1;
                    *unsettled = Some((batch_seq, batch.clone()));
                    send(up, Up::Statuses(pb::PodStatusBatch { seq: batch_seq, statuses: batch }))?;
                }
            }
        }
    }
}

fn send(up: &mpsc::Sender<pb::AgentMessage>, message: Up) -> Result<(), Ended> {
    up.try_send(pb::AgentMessage { message: Some(message) }).map_err(|_| Ended::Stuck)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: &str, text: &str) -> pb::PodStatus {
        pb::PodStatus { uid: uid.into(), status_json: text.to_owned().into(), ..Default::default() }
    }

    #[test]
    fn the_newest_status_wins_also_over_one_that_comes_back() {
        let outbox = Outbox::default();
        outbox.put(status("a", "1"));
        outbox.put(status("a", "2"));
        outbox.put(status("b", "1"));
        let batch = outbox.take();
        assert_eq!(batch.iter().map(|s| s.status_json.as_ref()).collect::<Vec<_>>(), [b"2".as_slice(), b"1"]);
        outbox.put(status("a", "3"));
        outbox.put_back(batch);
        assert_eq!(outbox.take().iter().map(|s| s.status_json.as_ref()).collect::<Vec<_>>(), [b"3".as_slice(), b"1"]);
        assert!(outbox.take().is_empty());
    }
}
