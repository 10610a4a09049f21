//! A cluster as its kubeconfig shows it, over the gRPC API.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use bytes::Bytes;
use kontiki_proto::api::resources_client::ResourcesClient;
use kontiki_proto::api::{
    CreateRequest, DeleteRequest, GetRequest, ListRequest, Object, ObjectRef, PatchRequest, PatchType, Resource, UpdateRequest,
};
use serde_json::{Value, json};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

/// A request that takes longer has an unknown outcome.
const LIMIT: Duration = Duration::from_secs(5);

/// A silent server is asked so often whether it is there.
const PING: Duration = Duration::from_secs(1);

/// All API endpoints of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    endpoints: Vec<(String, Endpoint)>,
}

/// A resource of a group in version 1.
pub(super) fn resource(group: &str, plural: &str) -> Option<Resource> {
    Some(Resource { group: group.into(), version: "v1".into(), resource: plural.into() })
}

fn reference(plural: &str, namespace: &str, name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { resource: resource("", plural), namespace: namespace.into(), name: name.into(), subresource: String::new() })
}

fn object(value: &Value) -> Result<Option<Object>, Status> {
    let raw = serde_json::to_vec(value).map_err(|e| Status::internal(e.to_string()))?;
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    Ok(Some(Object { api_version: text("apiVersion"), kind: text("kind"), raw: Bytes::from(raw), ..Object::default() }))
}

fn entry<'a>(config: &'a Value, list: &str, name: &Value) -> Result<&'a Value> {
    let found = config[list].as_array().into_iter().flatten().find(|item| &item["name"] == name);
    found.with_context(|| format!("the kubeconfig has no entry {name} among its {list}"))
}

/// A certificate or key: inline, or in a file beside the kubeconfig.
fn pem(section: &Value, field: &str, dir: &Path) -> Result<Vec<u8>> {
    if let Some(data) = section[format!("{field}-data")].as_str() {
        return base64::engine::general_purpose::STANDARD.decode(data).with_context(|| format!("{field}-data is not base64"));
    }
    let path = section[field].as_str().with_context(|| format!("the kubeconfig has neither {field} nor {field}-data"))?;
    std::fs::read(dir.join(path)).with_context(|| format!("cannot read {path}"))
}

impl Cluster {
    /// All clusters of a kubeconfig that the current user reaches: one endpoint for each context of that user.
    ///
    /// # Errors
    /// The file cannot be read, or is no kubeconfig with client certificates.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let current = &entry(&config, "contexts", &config["current-context"])?["context"];
        let user = &entry(&config, "users", &current["user"])?["user"];
        let identity = Identity::from_pem(pem(user, "client-certificate", dir)?, pem(user, "client-key", dir)?);
        let mut endpoints = Vec::new();
        let contexts: Vec<&Value> = config["contexts"].as_array().into_iter().flatten().collect();
        for context in contexts.iter().filter(|c| c["context"]["user"] == current["user"]) {
            let cluster = &entry(&config, "clusters", &context["context"]["cluster"])?["cluster"];
            let url = cluster["server"].as_str().context("a cluster of the kubeconfig has no server")?;
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(pem(cluster, "certificate-authority", dir)?))
                .identity(identity.clone());
            let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(PING).timeout(LIMIT).tcp_nodelay(true);
            let endpoint = endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PING).keep_alive_while_idle(true);
            endpoints.push((url.to_owned(), endpoint.tls_config(tls)?));
        }
        if endpoints.is_empty() {
            bail!("{} names no cluster", path.display());
        }
        Ok(Self { endpoints })
    }

    /// How many endpoints.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Their URLs.
    pub(crate) fn names(&self) -> Vec<String> {
        self.endpoints.iter().map(|(url, _)| url.clone()).collect()
    }

    /// A channel to any of them.
    ///
    /// # Errors
    /// Never now; kept for what an endpoint may refuse.
    pub(crate) fn any(&self) -> Result<Channel> {
        Ok(Channel::balance_list(self.endpoints.iter().map(|(_, e)| e.clone())))
    }

    /// A client of one of them, connected when first used.
    pub(super) fn one(&self, index: usize) -> ResourcesClient<Channel> {
        ResourcesClient::new(self.endpoints[index % self.endpoints.len()].1.connect_lazy())
    }

    fn client(&self) -> Result<ResourcesClient<Channel>> {
        Ok(ResourcesClient::new(self.any()?))
    }

    /// Names of all nodes.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn nodes(&self) -> Result<Vec<String>> {
        let list = ListRequest { resource: resource("", "nodes"), ..ListRequest::default() };
        let mut stream = self.client()?.list(list).await?.into_inner();
        let mut names = Vec::new();
        while let Some(page) = stream.message().await? {
            for item in page.items {
                let node: Value = serde_json::from_slice(&item.raw)?;
                names.extend(node["metadata"]["name"].as_str().map(str::to_owned));
            }
        }
        Ok(names)
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// Nobody answers, or it is refused.
    pub(crate) async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let request = CreateRequest { resource: resource("", "namespaces"), object: object(&namespace)?, ..CreateRequest::default() };
        self.client()?.create(request).await.with_context(|| format!("cannot create the namespace {name}"))?;
        Ok(())
    }

    /// Deletes a namespace with everything in it. Fine if it is not there.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn delete_namespace(&self, name: &str) -> Result<()> {
        let request = DeleteRequest { r#ref: reference("namespaces", "", name), ..DeleteRequest::default() };
        match self.client()?.delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status.into()),
        }
    }

    /// Closes a node for new pods, or opens it.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn cordon(&self, node: &str, closed: bool) -> Result<()> {
        let patch = json!({ "spec": { "unschedulable": closed } });
        let request = PatchRequest {
            r#ref: reference("nodes", "", node),
            r#type: PatchType::MergePatch.into(),
            patch: Bytes::from(serde_json::to_vec(&patch)?),
            options: None,
        };
        self.client()?.patch(request).await?;
        Ok(())
    }

    /// Whether a node is closed for new pods, and whether it is Ready.
    ///
    /// # Errors
    /// Nobody answers.
    pub(super) async fn node_state(&self, node: &str) -> Result<(bool, bool)> {
        let got = self.client()?.get(GetRequest { r#ref: reference("nodes", "", node), revision: 0 }).await?.into_inner();
        let value: Value = serde_json::from_slice(&got.raw)?;
        let ready = value["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        Ok((value["spec"]["unschedulable"] == true, ready))
    }

    /// Asks for a pod of ours to be evicted: a budget may refuse that, as it should.
    ///
    /// # Errors
    /// It is refused, or nobody answers.
    pub(super) async fn evict(&self, namespace: &str, pod: &str) -> Result<(), Status> {
        let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod, "namespace": namespace } });
        let request = CreateRequest {
            resource: resource("", "pods"),
            namespace: namespace.into(),
            object: object(&eviction)?,
            subresource: "eviction".into(),
            name: pod.into(),
            ..CreateRequest::default()
        };
        self.client().map_err(|e| Status::unavailable(e.to_string()))?.create(request).await.map(drop)
    }

    /// The store's revision now, by a list of our namespace.
    ///
    /// # Errors
    /// Nobody answers.
    pub(super) async fn revision(&self, namespace: &str) -> Result<i64> {
        let list = ListRequest { resource: resource("", "configmaps"), namespace: namespace.into(), ..ListRequest::default() };
        let mut stream = self.client()?.list(list).await?.into_inner();
        Ok(stream.message().await?.context("a list has a page")?.revision)
    }
}

/// Reads a ConfigMap by a list of one, which says at which revision it was read.
pub(super) async fn read(
    client: &mut ResourcesClient<Channel>,
    namespace: &str,
    name: &str,
) -> Result<(i64, Option<(String, i64)>), Status> {
    let list = ListRequest {
        resource: resource("", "configmaps"),
        namespace: namespace.into(),
        field_selector: format!("metadata.name={name}"),
        ..ListRequest::default()
    };
    let mut stream = client.list(list).await?.into_inner();
    let (mut revision, mut found) = (0, None);
    // The first page may be empty, and only say at which revision the list is.
    while let Some(page) = stream.message().await? {
        revision = revision.max(page.revision);
        found = page.items.first().map(|item| (value_of(&item.raw), item.revision)).or(found);
    }
    Ok((revision, found))
}

/// Writes a ConfigMap; with `expect` only if it is at that revision (0: not there).
pub(super) async fn write(
    client: &mut ResourcesClient<Channel>,
    namespace: &str,
    name: &str,
    value: &str,
    expect: Option<i64>,
) -> Result<i64, Status> {
    let mut map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": namespace }, "data": { "value": value } });
    if expect == Some(0) {
        let request = CreateRequest {
            resource: resource("", "configmaps"),
            namespace: namespace.into(),
            object: object(&map)?,
            ..CreateRequest::default()
        };
        return Ok(client.create(request).await?.into_inner().revision);
    }
    if let Some(at) = expect {
        map["metadata"]["resourceVersion"] = json!(at.to_string());
    }
    let request = UpdateRequest { r#ref: reference("configmaps", namespace, name), object: object(&map)?, options: None };
    Ok(client.update(request).await?.into_inner().revision)
}

/// The value in a ConfigMap of ours.
pub(super) fn value_of(raw: &[u8]) -> String {
    let map: Value = serde_json::from_slice(raw).unwrap_or_default();
    map["data"]["value"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_without_certificates_is_refused_with_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let config = json!({
            "current-context": "c",
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
            "clusters": [{ "name": "k", "cluster": { "server": "https://127.0.0.1:1" } }],
            "users": [{ "name": "u", "user": { "token": "t" } }],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        let error = format!("{:#}", Cluster::open(&path).unwrap_err());
        assert!(error.contains("client-certificate"), "{error}");
        std::fs::write(&path, "{}").unwrap();
        assert!(format!("{:#}", Cluster::open(&path).unwrap_err()).contains("contexts"));
    }
}
