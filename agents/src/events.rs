//! Events for people. The same event again raises a count; many similar ones become one; an object that causes too many is cut off
//! (Kubernetes `client-go/tools/record`). Writing events never delays or fails anything else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kontiki_base::Code;
use kontiki_base::env::{Env, Mono, WallMs};
use kontiki_base::limits;
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use kontiki_control::meta::rfc3339;
use kontiki_control::name::fnv64;
use kontiki_control::plan::{EventType, PatchType, Regarding};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::Client;
use crate::metrics::Metrics;

/// Similar events in [`SIMILAR_WINDOW`] beyond which they become one.
const SIMILAR_MAX: u32 = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// An object may cause so many events at once…
const BURST: u32 = 25;
/// …and then one in this time.
const REFILL: Duration = Duration::from_secs(300);

/// One thing to tell.
#[derive(Clone, Debug)]
struct Told {
    source: &'static str,
    regarding: Regarding,
    event_type: EventType,
    reason: String,
    message: String,
    at: WallMs,
}

/// Takes events and never waits.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// A recorder, and the task that writes what it takes for as long as it is polled.
    pub fn new(client: Client, env: Arc<dyn Env>, metrics: Arc<Metrics>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, inbox) = mpsc::channel(limits::EVENTS_QUEUED);
        let recorder = Self { queue, env: env.clone(), metrics };
        (recorder, write(client, env, inbox))
    }

    /// Tells. Dropped and counted when too much is waiting.
    pub fn record(&self, source: &'static str, regarding: Regarding, event_type: EventType, reason: &str, message: String) {
        let told = Told { source, regarding, event_type, reason: reason.to_owned(), message, at: self.env.now_wall() };
        if self.queue.try_send(told).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

/// What tells two events apart.
type Key = (&'static str, Regarding, EventType, String, String);

struct Row {
    name: String,
    count: i64,
    first: WallMs,
    used: Mono,
}

struct Similar {
    seen: u32,
    since: Mono,
}

struct Budget {
    tokens: u32,
    filled: Mono,
}

/// What has been told already.
#[derive(Default)]
struct Memory {
    rows: BTreeMap<Key, Row>,
    similar: BTreeMap<Key, Similar>,
    budgets: BTreeMap<(&'static str, Regarding), Budget>,
}

/// What to do with an event.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Drop,
    Create(String, String),
    Count { name: String, count: i64, message: String },
}

impl Memory {
    fn judge(&mut self, told: &Told, now: Mono) -> Verdict {
        if !self.may_tell(told, now) {
            return Verdict::Drop;
        }
        let message = self.message(told, now);
        let key = (told.source, told.regarding.clone(), told.event_type, told.reason.clone(), message.clone());
        bound(&mut self.rows, |row| row.used);
        if let Some(row) = self.rows.get_mut(&key) {
            row.count += 1;
            row.used = now;
            return Verdict::Count { name: row.name.clone(), count: row.count, message };
        }
        let hash = fnv64(format!("{key:?}{}", told.at.0).as_bytes());
        let name = format!("{}.{hash:016x}", told.regarding.key.name);
        self.rows.insert(key, Row { name: name.clone(), count: 1, first: told.at, used: now });
        Verdict::Create(name, message)
    }

    fn may_tell(&mut self, told: &Told, now: Mono) -> bool {
        bound(&mut self.budgets, |b| b.filled);
        let budget = self.budgets.entry((told.source, told.regarding.clone())).or_insert(Budget { tokens: BURST, filled: now });
        let earned = now.since(budget.filled).as_secs() / REFILL.as_secs();
        if earned > 0 {
            budget.tokens = budget.tokens.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            budget.filled = now;
        }
        let may = budget.tokens > 0;
        budget.tokens = budget.tokens.saturating_sub(1);
        may
    }

    fn message(&mut self, told: &Told, now: Mono) -> String {
        bound(&mut self.similar, |s| s.since);
        let key = (told.source, told.regarding.clone(), told.event_type, told.reason.clone(), String::new());
        let similar = self.similar.entry(key).or_insert(Similar { seen: 0, since: now });
        if now.since(similar.since) > SIMILAR_WINDOW {
            *similar = Similar { seen: 0, since: now };
        }
        similar.seen = similar.seen.saturating_add(1);
        if similar.seen > SIMILAR_MAX { format!("(combined from similar events): {}", told.message) } else { told.message.clone() }
    }

    fn first(&self, told: &Told, message: &str) -> WallMs {
        let key = (told.source, told.regarding.clone(), told.event_type, told.reason.clone(), message.to_owned());
        self.rows.get(&key).map_or(told.at, |row| row.first)
    }

    fn forget(&mut self, name: &str) {
        self.rows.retain(|_, row| row.name != name);
    }
}

/// Keeps a map within [`limits::EVENT_ROWS`] by forgetting its oldest quarter.
fn bound<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, age: impl Fn(&V) -> Mono) {
    if map.len() < limits::EVENT_ROWS {
        return;
    }
    let mut ages: Vec<Mono> = map.values().map(&age).collect();
    ages.sort_unstable();
    let cut = ages[ages.len() / 4];
    map.retain(|_, v| age(v) > cut);
}

fn namespace_of(told: &Told) -> String {
    let namespace = &told.regarding.key.namespace;
    if namespace.is_empty() { "default".into() } else { namespace.clone() }
}

fn body(told: &Told, name: &str, message: &str) -> Value {
    let at = rfc3339(told.at);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace_of(told) },
        "involvedObject": {
            "apiVersion": told.regarding.kind.api_version(),
            "kind": told.regarding.kind.word(),
            "namespace": told.regarding.key.namespace,
            "name": told.regarding.key.name,
            "uid": told.regarding.uid.0,
        },
        "type": told.event_type.word(),
        "reason": told.reason,
        "message": message,
        "source": { "component": told.source },
        "reportingComponent": told.source,
        "reportingInstance": "",
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
    })
}

async fn write(client: Client, env: Arc<dyn Env>, mut inbox: mpsc::Receiver<Told>) {
    let mut memory = Memory::default();
    while let Some(told) = inbox.recv().await {
        let result = match memory.judge(&told, env.now_mono()) {
            Verdict::Drop => continue,
            Verdict::Create(name, message) => client.create(Kind::Event, &body(&told, &name, &message)).await.map_err(|e| (name, e)),
            Verdict::Count { name, count, message } => {
                let patch = json!({ "count": count, "lastTimestamp": rfc3339(told.at), "message": message });
                let key = ObjectKey::new(namespace_of(&told), name.clone());
                let patched = client.patch(Kind::Event, &key, "", PatchType::Merge, &patch).await;
                match patched {
                    // Events expire: told anew, with the count that it has.
                    Err(e) if e.code == Code::NotFound => {
                        let mut object = body(&told, &name, &message);
                        object["count"] = json!(count);
                        object["firstTimestamp"] = json!(rfc3339(memory.first(&told, &message)));
                        client.create(Kind::Event, &object).await.map_err(|e| (name, e))
                    }
                    other => other.map_err(|e| (name, e)),
                }
            }
        };
        if let Err((name, error)) = result {
            memory.forget(&name);
            tracing::debug!(%error, "event is lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_base::Uid;

    fn told(object: &str, message: &str) -> Told {
        let regarding = Regarding { kind: Kind::Pod, key: ObjectKey::new("d", object), uid: Uid("u".into()) };
        Told { source: "s", regarding, event_type: EventType::Normal, reason: "R".into(), message: message.into(), at: WallMs(1) }
    }

    #[test]
    fn the_same_counts_the_similar_combine_and_the_flood_is_cut() {
        let mut memory = Memory::default();
        let Verdict::Create(name, _) = memory.judge(&told("p", "a"), Mono::default()) else { panic!() };
        let count = Verdict::Count { name, count: 2, message: "a".into() };
        assert_eq!(memory.judge(&told("p", "a"), Mono::default()), count);
        let mut combined = 0;
        let mut dropped = 0;
        for i in 0..40 {
            match memory.judge(&told("p", &format!("m{i}")), Mono::default()) {
                Verdict::Create(_, m) | Verdict::Count { message: m, .. } => combined += i32::from(m.starts_with("(combined")),
                Verdict::Drop => dropped += 1,
            }
        }
        // 25 in all: 2 + 8 by themselves, 15 combined, 17 dropped.
        assert_eq!((combined, dropped), (15, 17));
        assert_ne!(memory.judge(&told("p", "late"), Mono(REFILL)), Verdict::Drop, "the budget fills again");
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::default();
        for i in 0..3 * limits::EVENT_ROWS {
            let at = Mono(Duration::from_millis(u64::try_from(i).unwrap()));
            memory.judge(&told(&format!("p{i}"), "a"), at);
        }
        assert!(memory.rows.len() <= limits::EVENT_ROWS && memory.budgets.len() <= limits::EVENT_ROWS);
    }
}
