//! A Deployment on simulated nodes: created before the faults, disturbed during them, counted after them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use kontiki_base::env::Env;
use kontiki_proto::api::resources_client::ResourcesClient;
use kontiki_proto::api::{CreateRequest, DeleteRequest, GetRequest, ListRequest, Object, ObjectRef, Resource};
use serde_json::{Value, json};
use tonic::transport::Channel;

const NAME: &str = "chaos";

/// A client of the Kubernetes API with a Deployment to look after.
#[derive(Clone, Debug)]
pub struct Pods {
    client: ResourcesClient<Channel>,
    namespace: String,
    replicas: u32,
}

fn resource(group: &str, resource: &str) -> Option<Resource> {
    Some(Resource { group: group.into(), version: "v1".into(), resource: resource.into() })
}

fn reference(group: &str, plural: &str, namespace: &str, name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { resource: resource(group, plural), namespace: namespace.into(), name: name.into(), subresource: String::new() })
}

impl Pods {
    /// Creates the Deployment, and a Service in front of it.
    ///
    /// # Errors
    /// The API server refuses, or does not answer.
    pub async fn create(channel: Channel, namespace: &str, replicas: u32) -> Result<Self> {
        let mut client = ResourcesClient::new(channel);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": NAME, "namespace": namespace },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": NAME } },
                "template": {
                    "metadata": { "labels": { "app": NAME } },
                    "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "main", "image": "kontiki.dev/demo:1" }] },
                },
            },
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": NAME, "namespace": namespace },
            "spec": { "selector": { "app": NAME }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        });
        for (group, plural, object) in [("", "services", &service), ("apps", "deployments", &deployment)] {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
            let raw = Bytes::from(serde_json::to_vec(object)?);
            let object = Some(Object { api_version, kind, raw, ..Object::default() });
            let request = CreateRequest { resource: resource(group, plural), namespace: namespace.into(), object, ..Default::default() };
            match client.create(request).await {
                // An earlier attempt, of which only the answer was lost, or that got no further.
                Err(status) if status.code() == tonic::Code::AlreadyExists => {}
                answer => drop(answer.with_context(|| format!("cannot create one of the {plural}"))?),
            }
        }
        Ok(Self { client, namespace: namespace.to_owned(), replicas })
    }

    /// Ready replicas, by the Deployment's own status.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn ready(&mut self) -> Result<u32> {
        let object =
            self.client.get(GetRequest { r#ref: reference("apps", "deployments", &self.namespace, NAME), revision: 0 }).await?.into_inner();
        let deployment: Value = serde_json::from_slice(&object.raw)?;
        Ok(deployment["status"]["readyReplicas"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0))
    }

    /// The Deployment's pods that are Ready and not being deleted, counted one by one.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn running(&mut self) -> Result<Vec<String>> {
        Ok(self.placed().await?.into_iter().map(|(name, _)| name).collect())
    }

    /// Those of them that are on this node.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn on_node(&mut self, node: &str) -> Result<Vec<String>> {
        Ok(self.placed().await?.into_iter().filter(|(_, on)| on == node).map(|(name, _)| name).collect())
    }

    async fn placed(&mut self) -> Result<Vec<(String, String)>> {
        let request = ListRequest {
            resource: resource("", "pods"),
            namespace: self.namespace.clone(),
            label_selector: format!("app={NAME}"),
            ..ListRequest::default()
        };
        let mut stream = self.client.list(request).await?.into_inner();
        let mut names = Vec::new();
        while let Some(message) = stream.message().await? {
            for item in message.items {
                let pod: Value = serde_json::from_slice(&item.raw)?;
                let ready = pod["status"]["conditions"].as_array();
                let ready = ready.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
                if ready && pod["metadata"]["deletionTimestamp"].is_null() {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    names.push((text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"])));
                }
            }
        }
        Ok(names)
    }

    /// Deletes a pod or two, so that there is something to make complete again. What cannot be deleted now is left alone.
    pub async fn disturb(&mut self, count: usize) -> usize {
        let Ok(names) = self.running().await else { return 0 };
        let mut deleted = 0;
        for name in names.iter().take(count) {
            let request = DeleteRequest { r#ref: reference("", "pods", &self.namespace, name), ..DeleteRequest::default() };
            deleted += usize::from(self.client.delete(request).await.is_ok());
        }
        deleted
    }

    /// Waits until the Deployment is complete; says how long it took.
    ///
    /// # Errors
    /// It is not complete within `limit`.
    pub async fn complete(&mut self, env: &dyn Env, limit: Duration) -> Result<Duration> {
        let start = env.now_mono();
        loop {
            let last = match (self.ready().await, self.running().await) {
                (Ok(ready), Ok(running)) if ready == self.replicas && running.len() == self.replicas as usize => {
                    return Ok(env.now_mono().since(start));
                }
                (Ok(ready), Ok(running)) => format!("status says {ready} ready, {} pods are", running.len()),
                (Err(e), _) | (_, Err(e)) => format!("{e:#}"),
            };
            if env.now_mono().since(start) > limit {
                bail!("the Deployment is not complete after {} s: {last}, of {}", limit.as_secs(), self.replicas);
            }
            env.sleep(Duration::from_millis(100)).await;
        }
    }
}
