//! Kubernetes events about pods: `Pulled`, `Started`, `BackOff`… Best effort: they are for people, and nothing depends on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kontiki_base::env::{Env, Mono};
use kontiki_base::limits;
use kontiki_control::Kind;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::time::to_time;
use crate::api::Client;

/// The same thing about the same object is not said again within this time.
const QUIET: Duration = Duration::from_secs(60);

/// Sends events.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Value>,
    env: Arc<dyn Env>,
    node: String,
}

impl Events {
    /// Starts the task that writes them.
    pub fn start(client: Client, env: Arc<dyn Env>, node: &str) -> Self {
        let (queue, rx) = mpsc::channel(limits::NODE_EVENTS);
        let writer = Arc::clone(&env);
        // The task ends when the last sender is gone.
        env.spawn("node events", Box::pin(write(client, writer, rx)));
        Self { queue, env, node: node.to_owned() }
    }

    /// Says something about a pod, or about one of its containers.
    pub fn about(&self, pod: &Pod, container: Option<&str>, kind: &str, reason: &str, message: &str) {
        let meta = &pod.metadata;
        let (Some(name), Some(namespace)) = (&meta.name, &meta.namespace) else { return };
        let now = to_time(self.env.now_wall().0);
        let path = container.map(|c| format!("spec.containers{{{c}}}"));
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{name}.{:016x}", self.env.random_u64())},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": meta.uid,
                "resourceVersion": meta.resource_version, "fieldPath": path,
            },
            "type": kind, "reason": reason, "message": message,
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet", "reportingInstance": self.node,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        // Full: dropped, as the limit says.
        let _ = self.queue.try_send(event);
    }
}

async fn write(client: Client, env: Arc<dyn Env>, mut queue: mpsc::Receiver<Value>) {
    let mut said: BTreeMap<String, Mono> = BTreeMap::new();
    while let Some(event) = queue.recv().await {
        let now = env.now_mono();
        said.retain(|_, at| now.since(*at) < QUIET);
        let what = format!("{}{}{}", event["involvedObject"], event["reason"], event["message"]);
        if said.insert(what, now).is_some() {
            continue;
        }
        if let Err(error) = client.create(Kind::Event, &event).await {
            tracing::debug!(%error, reason = %event["reason"], "event was not written");
        }
    }
}
