//! When each node was last heard of, in memory only. Every server has such a table; the leader's is the one that counts. A new
//! leader starts with what it has heard itself and gives every node a full grace period from the moment it took over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kontiki_base::env::{Env, Mono};
use kontiki_base::limits;
use kontiki_proto::node::NodeUsage;

/// What is known of one node's heartbeats.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// The agent's incarnation.
    pub boot: u64,
    /// When the last heartbeat arrived at the first server that heard it.
    pub at: Mono,
    /// The usage it carried.
    pub usage: Option<NodeUsage>,
}

/// The table.
pub struct Liveness {
    env: Arc<dyn Env>,
    nodes: Mutex<BTreeMap<String, Heard>>,
}

impl std::fmt::Debug for Liveness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Liveness").field("nodes", &self.lock().len()).finish_non_exhaustive()
    }
}

impl Liveness {
    /// An empty table.
    pub fn new(env: Arc<dyn Env>) -> Self {
        Self { env, nodes: Mutex::new(BTreeMap::new()) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Heard>> {
        // The table is a map of plain values: a panic elsewhere cannot have left it half-changed.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a heartbeat that arrived `age` ago. False: the table is full and the node is not in it.
    pub fn record(&self, node: &str, boot: u64, age: Duration, usage: Option<NodeUsage>) -> bool {
        let at = Mono(self.env.now_mono().0.saturating_sub(age));
        let mut nodes = self.lock();
        let full = nodes.len() >= limits::LIVENESS_NODES;
        match nodes.get_mut(node) {
            // A relayed beat may be older than one that was heard here.
            Some(heard) if heard.at >= at => true,
            Some(heard) => {
                *heard = Heard { boot, at, usage: usage.or_else(|| heard.usage.take()) };
                true
            }
            None if full => false,
            None => {
                nodes.insert(node.to_owned(), Heard { boot, at, usage });
                true
            }
        }
    }

    /// What is known of a node.
    pub fn get(&self, node: &str) -> Option<Heard> {
        self.lock().get(node).cloned()
    }

    /// How long ago a node was heard of.
    pub fn age(&self, node: &str) -> Option<Duration> {
        let now = self.env.now_mono();
        self.lock().get(node).map(|heard| now.since(heard.at))
    }

    /// The age of every node's last beat.
    pub fn ages(&self) -> BTreeMap<String, Duration> {
        let now = self.env.now_mono();
        self.lock().iter().map(|(name, heard)| (name.clone(), now.since(heard.at))).collect()
    }

    /// Forgets nodes that are not `known` and have been silent for longer than `silent`.
    pub fn prune(&self, silent: Duration, known: impl Fn(&str) -> bool) {
        let now = self.env.now_mono();
        self.lock().retain(|name, heard| known(name) || now.since(heard.at) <= silent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_proto::env::SystemEnv;

    #[test]
    fn older_news_does_not_replace_newer() {
        let table = Liveness::new(Arc::new(SystemEnv::new()));
        assert_eq!(table.age("n1"), None);
        assert!(table.record("n1", 1, Duration::ZERO, None));
        let first = table.get("n1").unwrap();
        assert!(table.record("n1", 1, Duration::from_secs(60), None));
        assert_eq!(table.get("n1").unwrap(), first);
        table.prune(Duration::ZERO, |name| name == "n1");
        assert!(table.get("n1").is_some());
        table.prune(Duration::ZERO, |_| false);
        assert!(table.age("n1").is_none_or(|age| age.is_zero()));
    }
}
