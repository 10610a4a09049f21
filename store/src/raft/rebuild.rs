//! A member whose data is corrupt gets the state anew from the leader, while it goes on as a member: its log and its vote are sound, and
//! count.
//!
//! The apply thread holds still; the leader, once it has applied as much, sends a checkpoint; that replaces the state; and the apply
//! thread goes on behind it, leaving out the entries that the new state contains. Then the member takes its alarm back.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kontiki_base::ids::{LogIndex, MemberId};
use kontiki_base::net::{PeerRpc, PeerStream};
use kontiki_mvcc::{Alarm, AlarmKind, Command};
use kontiki_proto::store::HandOver;

use super::machine::SnapshotData;
use super::network::{Network, within};
use super::node::Inner;
use super::{admin, snapshot, types};

/// A pause before trying again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the state may take to come.
const PATIENCE: Duration = Duration::from_secs(600);

/// Rebuilds the member whenever there is an alarm that says so.
pub(super) async fn run(inner: Arc<Inner>, network: Network) {
    let mut alarms = inner.alarms.clone();
    let alarm = Alarm { kind: AlarmKind::Corrupt, member: inner.id, automatic: true };
    loop {
        if alarms.wait_for(|alarms| alarms.contains(&alarm)).await.is_err() || inner.stopped() {
            return;
        }
        tracing::error!("this member's data is corrupt: it serves nobody until it has been rebuilt from the others");
        match rebuild(&inner, &network).await {
            Ok(at) => tracing::info!(%at, "this member has been rebuilt"),
            Err(why) => {
                tracing::warn!(%why, "this member could not be rebuilt yet");
                inner.env.sleep(RETRY).await;
                continue;
            }
        }
        while inner.propose(vec![Command::Alarm { raise: false, alarm }], None).await.is_err() {
            inner.env.sleep(RETRY).await;
            if inner.stopped() {
                return;
            }
        }
        // The alarm is seen to be gone here before the next one is waited for.
        let gone = alarms.wait_for(|alarms| !alarms.contains(&alarm));
        if within(&*inner.env, RETRY, gone).await.is_some_and(|seen| seen.is_err()) {
            return;
        }
    }
}

async fn rebuild(inner: &Arc<Inner>, network: &Network) -> Result<LogIndex, String> {
    let lead = inner.wait_lead(inner.deadline()).await.map_err(|e| e.to_string())?;
    if lead.id == inner.id {
        admin::leave_leadership_to(inner, HandOver::Corrupt, |id| id != inner.id).await;
        return Err("it leads, and has to hand that over first".into());
    }
    let at = inner.hands.freeze().await.map_err(|e| e.to_string())?;
    let replaced = within(&*inner.env, PATIENCE, fetch(inner, network, lead.id, &lead.addr, at)).await;
    let replaced = replaced.unwrap_or_else(|| Err("the leader does not send its state".into()));
    inner.hands.thaw().await.map_err(|e| e.to_string())?;
    replaced
}

async fn fetch(inner: &Arc<Inner>, network: &Network, leader: MemberId, addr: &str, at: LogIndex) -> Result<LogIndex, String> {
    let mut stream = inner.net.open(leader, addr, PeerRpc::Fetch).await.map_err(|e| e.to_string())?;
    stream.send(Bytes::copy_from_slice(&at.get().to_be_bytes())).await.map_err(|e| e.to_string())?;
    let (_, received) = snapshot::receive(network, &mut *stream).await?;
    let SnapshotData::Files(dir) = received.snapshot else { return Err("a state without files came in".into()) };
    let contains = types::pos_or_zero(received.meta.last_log_id).index;
    if contains < at {
        drop(std::fs::remove_dir_all(&dir));
        return Err(format!("the leader sent its state as of entry {contains}, and this member has applied {at}"));
    }
    let new = inner.hands.replace(dir).await.map_err(|e| e.to_string())?;
    // The state may be ahead of this member's log: consensus is not to see a state that the log does not reach yet.
    let deadline = inner.deadline();
    while inner.log.status().last.index < new && inner.left(deadline).is_some() && !inner.stopped() {
        inner.env.sleep(inner.timings.heartbeat / 4).await;
    }
    Ok(new)
}

/// The leader's side: sends its state once it contains as much as the other member's did.
pub(super) async fn serve(inner: &Arc<Inner>, network: &Network, mut stream: Box<dyn PeerStream>) -> Result<(), String> {
    let mut first = stream.recv().await.ok_or("a request for the state ended early")?.map_err(|e| e.to_string())?;
    let at = LogIndex::new(first.try_get_u64().map_err(|e| e.to_string())?);
    if inner.lead().is_none_or(|lead| lead.id != inner.id) {
        return Err("this member does not lead".into());
    }
    let corrupt = |alarm: &Alarm| alarm.kind == AlarmKind::Corrupt && alarm.member == inner.id;
    if inner.alarms.borrow().iter().any(corrupt) {
        return Err("this member's own state is corrupt".into());
    }
    inner.wait_applied(at, inner.deadline()).await.map_err(|e| e.to_string())?;
    snapshot::send_state(network, &mut *stream, inner.engine.clone()).await
}
