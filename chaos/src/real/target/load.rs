//! Clients of the Kubernetes API: registers in ConfigMaps, read and written through all endpoints, judged as the keys of the store are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_proto::api::{EventType, WatchRequest};
use tonic::{Code, Status};

use super::api::{self, Cluster, resource, value_of};
use crate::check::{Outcome, linear};
use crate::history::{Answer, Ask, Change, History, Record};
use crate::load::kv::Run;
use crate::plan::Dice;

/// After a failure a client waits up to so long.
const RETRY: Duration = Duration::from_millis(50);

/// Pause between two requests of a client: the cluster is not ours.
const PAUSE: Duration = Duration::from_millis(20);

/// A watch that is behind says so within this.
const SILENCE: Duration = Duration::from_secs(30);

fn name(slot: u64) -> String {
    format!("register-{slot}")
}

/// Works until told to stop.
pub(super) async fn client(run: Arc<Run>, cluster: Cluster, namespace: String, id: u16) {
    let mut dice = Dice::new(run.seed, &format!("target/{id}"));
    let mut known: BTreeMap<u64, i64> = BTreeMap::new();
    let mut member = usize::from(id) % cluster.endpoints();
    let mut link = cluster.one(member);
    let mut asked = 0_u64;
    while !run.stop.load(Ordering::Relaxed) {
        let slot = dice.below(u64::from(run.load.keys));
        let (key, value) = (name(slot), format!("c{id}-{asked}"));
        asked += 1;
        let ask = match dice.below(100) {
            0..50 => Ask::Get { key: key.clone() },
            _ => Ask::Cas { key: key.clone(), expect: known.get(&slot).copied().unwrap_or(0), value: value.clone() },
        };
        let op = run.recorder.invoke(id, member, run.now(), ask.clone());
        let outcome = match &ask {
            Ask::Cas { expect, .. } => {
                api::write(&mut link, &namespace, &key, &value, Some(*expect)).await.map(|revision| Answer::Written { revision })
            }
            _ => api::read(&mut link, &namespace, &key).await.map(|(revision, found)| Answer::Read { revision, found }),
        };
        let answer = outcome.unwrap_or_else(|status| failed(&ask, &status));
        match &answer {
            Answer::Written { revision } => drop(known.insert(slot, *revision)),
            Answer::Read { found, .. } => drop(known.insert(slot, found.as_ref().map_or(0, |(_, at)| *at))),
            _ => {}
        }
        let conflict = matches!(&answer, Answer::Refused { why } if why.starts_with("conflict"));
        let broken = !conflict && matches!(answer, Answer::Unknown { .. } | Answer::Refused { .. });
        run.recorder.answer(op, run.now(), answer);
        if broken || dice.below(100) == 0 {
            member = (member + 1) % cluster.endpoints();
            link = cluster.one(member);
        }
        run.env.sleep(if broken { dice.between(RETRY / 5, RETRY) } else { dice.between(Duration::ZERO, PAUSE * 2) }).await;
    }
}

/// A conflict is a definite no; it says nothing of the revision at which it was one.
fn failed(ask: &Ask, status: &Status) -> Answer {
    let why = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition | Code::NotFound => {
            Answer::Refused { why: format!("conflict: {why}") }
        }
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted => Answer::Refused { why },
        _ if ask.is_read_only() => Answer::Refused { why },
        _ => Answer::Unknown { why },
    }
}

/// Records all changes of our ConfigMaps since a revision, by a watch.
///
/// # Errors
/// Nobody answers, or the history is gone.
pub(super) async fn changes(run: &Run, cluster: &Cluster, namespace: &str, begin: i64) -> Result<()> {
    let until = cluster.revision(namespace).await?;
    let watch = WatchRequest {
        resource: resource("", "configmaps"),
        namespace: namespace.to_owned(),
        after_revision: begin,
        bookmarks: true,
        ..WatchRequest::default()
    };
    let last = run.now();
    let mut stream = cluster.one(0).watch(watch).await?.into_inner();
    let mut seen = begin;
    while seen < until {
        // A watch that has nothing more to say is at its end when everything that clients were told is there.
        let next = tokio::time::timeout(SILENCE.min(Duration::from_secs(3)), stream.message()).await;
        let Ok(message) = next else { break };
        let message = message?.with_context(|| format!("the watch ended at {} s", last / 1_000_000_000))?;
        seen = seen.max(message.revision);
        let Some(object) = &message.object else { continue };
        let map: serde_json::Value = serde_json::from_slice(&object.raw).unwrap_or_default();
        let key = map["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if !key.starts_with("register-") {
            continue;
        }
        let revision = if object.revision > 0 { object.revision } else { message.revision };
        match message.r#type() {
            EventType::Added | EventType::Modified => {
                run.recorder.record(Record::Change(Change::put(revision, key, value_of(&object.raw))))
            }
            EventType::Deleted => run.recorder.record(Record::Change(Change::delete(revision, key))),
            _ => {}
        }
    }
    Ok(())
}

/// What the checks find.
pub(super) fn judge(history: &History) -> Vec<Outcome> {
    vec![linear::judge(history)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_did_not_happen_is_refused() {
        let write = Ask::Cas { key: "k".into(), expect: 1, value: "v".into() };
        let read = Ask::Get { key: "k".into() };
        assert!(matches!(failed(&write, &Status::aborted("x")), Answer::Refused { .. }));
        assert!(matches!(failed(&write, &Status::unavailable("x")), Answer::Unknown { .. }));
        assert!(matches!(failed(&write, &Status::deadline_exceeded("x")), Answer::Unknown { .. }));
        assert!(matches!(failed(&read, &Status::unavailable("x")), Answer::Refused { .. }));
    }
}
