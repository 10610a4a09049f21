//! The agent's own port: logs for the API server, health, pods, usage. TLS; only clients with a certificate of the cluster's authority.
//!
//! Streams into containers (`exec`, `attach`, `port-forward`) are passed through: after the upgrade the agent only copies bytes between
//! the API server and the runtime's streaming port.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kontiki_base::limits;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use super::lifecycle::seen::PodSeen;
use super::logs::{self, LogOptions};
use super::runtime::{label, wire};
use super::stream;
use super::work::Workshop;
use crate::config::ApiConfig;
use crate::error::ConfigError;

pub(super) type Body = BoxBody<Bytes, Infallible>;

/// Pods by uid, each with what the runtime shows of it.
type Shown = BTreeMap<String, (Arc<Pod>, Arc<PodSeen>)>;

/// The node's pods as the port shows them; the loop writes, the port reads.
#[derive(Default)]
pub struct Board {
    pods: Mutex<Shown>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        // A map of plain values: a panic elsewhere cannot have left it half-changed.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, uid: &str, pod: &Arc<Pod>, seen: &Arc<PodSeen>) {
        self.lock().insert(uid.to_owned(), (Arc::clone(pod), Arc::clone(seen)));
    }

    pub(super) fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// A pod by name; of two with the same name the one that is not being deleted.
    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<(Arc<Pod>, Arc<PodSeen>)> {
        let pods = self.lock();
        let named = |pod: &Pod| pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name);
        pods.values().filter(|(pod, _)| named(pod)).min_by_key(|(pod, _)| pod.metadata.deletion_timestamp.is_some()).cloned()
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn all(&self) -> Vec<Value> {
        let pods: Vec<Arc<Pod>> = self.lock().values().map(|(pod, _)| Arc::clone(pod)).collect();
        pods.iter().filter_map(|pod| serde_json::to_value(pod.as_ref()).ok()).collect()
    }
}

/// What requests share.
pub(super) struct Shared {
    pub(super) shop: Arc<Workshop>,
    pub(super) board: Arc<Board>,
    streams: Semaphore,
}

fn acceptor(api: &ApiConfig) -> Result<TlsAcceptor, ConfigError> {
    let bad = |e: &dyn std::fmt::Display| ConfigError::BadCredentials(e.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&api.ca_pem) {
        roots.add(cert.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&api.cert_pem).collect::<Result<_, _>>().map_err(|e| bad(&e))?;
    let key = PrivateKeyDer::from_pem_slice(&api.key_pem).map_err(|e| bad(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().map_err(|e| bad(&e))?;
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| bad(&e))?;
    let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(|e| bad(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until the future is dropped.
///
/// # Errors
/// If the credentials cannot be used.
pub(super) fn serve(
    listener: TcpListener,
    api: &ApiConfig,
    shop: Arc<Workshop>,
    board: Arc<Board>,
) -> Result<impl Future<Output = ()> + Send + use<>, ConfigError> {
    let acceptor = acceptor(api)?;
    let env = Arc::clone(&shop.env);
    let shared = Arc::new(Shared { shop, board, streams: Semaphore::new(limits::LOG_STREAMS) });
    Ok(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: not in a tight circle.
                    tracing::warn!(%error, "a connection to the node's port was not accepted");
                    env.sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
            env.spawn(
                "node connection",
                Box::pin(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| answer(Arc::clone(&shared), request));
                    // A client that goes away in the middle is its own affair.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).with_upgrades().await;
                }),
            );
        }
    })
}

pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text.into())).boxed());
    *response.status_mut() = status;
    response
}

fn json_body(value: &Value) -> Response<Body> {
    let mut response = plain(StatusCode::OK, value.to_string());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    Ok(match parts.as_slice() {
        ["healthz"] => plain(StatusCode::OK, "ok"),
        ["pods"] => json_body(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": shared.board.all()})),
        ["metrics"] => plain(StatusCode::OK, metrics(&shared).await),
        ["stats", "summary"] => json_body(&summary(&shared).await),
        ["containerLogs", namespace, pod, container] => {
            let query = request.uri().query().unwrap_or_default();
            container_logs(&shared, namespace, pod, container, query).await
        }
        ["exec" | "attach" | "portForward", namespace, pod, rest @ ..] => {
            let target = stream::Target {
                verb: parts[0].to_owned(),
                namespace: (*namespace).to_owned(),
                pod: (*pod).to_owned(),
                container: rest.last().copied().unwrap_or_default().to_owned(),
            };
            stream::proxy(&shared, target, request).await
        }
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    })
}

async fn container_logs(shared: &Arc<Shared>, namespace: &str, pod: &str, container: &str, query: &str) -> Response<Body> {
    let options = match LogOptions::parse(query, shared.shop.env.now_wall().0) {
        Ok(options) => options,
        Err(name) => return plain(StatusCode::BAD_REQUEST, format!("the value of {name} cannot be read")),
    };
    let Some((object, seen)) = shared.board.find(namespace, pod) else {
        return plain(StatusCode::NOT_FOUND, format!("pod \"{pod}_{namespace}\" does not exist"));
    };
    if super::lifecycle::container(&object, container).is_none() {
        return plain(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod \"{pod}_{namespace}\""));
    }
    let chosen = if options.previous {
        seen.previous(container).or_else(|| seen.latest(container).filter(|c| c.is_exited()))
    } else {
        seen.latest(container)
    };
    let Some(chosen) = chosen else {
        let which = if options.previous { "previous terminated container" } else { "container" };
        let why = if options.previous { "not found" } else { "is waiting to start" };
        return plain(StatusCode::BAD_REQUEST, format!("{which} {container:?} in pod {pod:?} {why}"));
    };
    let id = chosen.id.clone();
    let source = match shared.shop.runtime.log_source(&id).await {
        Ok(source) => source,
        Err(e) => return plain(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    };
    let shared = Arc::clone(shared);
    if shared.streams.available_permits() == 0 {
        return plain(StatusCode::TOO_MANY_REQUESTS, "too many logs are being read");
    }
    let (tx, rx) = mpsc::channel::<Bytes>(16);
    let env = Arc::clone(&shared.shop.env);
    env.spawn(
        "container log",
        Box::pin(async move {
            let Ok(_permit) = shared.streams.try_acquire() else { return };
            if let Err(error) = logs::stream(&shared.shop, &id, source, options, tx).await {
                tracing::info!(%error, container = %id, "a log cannot be read");
            }
        }),
    );
    let frames = tokio_stream::wrappers::ReceiverStream::new(rx).map(|bytes| Ok(Frame::data(bytes)));
    let mut response = Response::new(BoxBody::new(StreamBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

fn value(v: Option<&wire::UInt64Value>) -> u64 {
    v.map_or(0, |v| v.value)
}

/// Usage in the kubelet's summary form: node, then pods with their containers.
async fn summary(shared: &Shared) -> Value {
    let stats = shared.shop.runtime.list_stats().await.unwrap_or_default();
    let mut pods: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    let (mut node_cpu, mut node_memory) = (0, 0);
    for s in &stats {
        let Some(attributes) = &s.attributes else { continue };
        let word = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let (cpu, memory) = (s.cpu.as_ref(), s.memory.as_ref());
        let total = value(cpu.and_then(|c| c.usage_core_nano_seconds.as_ref()));
        let working = value(memory.and_then(|m| m.working_set_bytes.as_ref()));
        (node_cpu, node_memory) = (node_cpu + total, node_memory + working);
        let reference = json!({"name": word(label::POD_NAME), "namespace": word(label::POD_NAMESPACE), "uid": word(label::POD_UID)});
        let container = json!({
            "name": word(label::CONTAINER_NAME),
            "cpu": {"usageCoreNanoSeconds": total, "usageNanoCores": value(cpu.and_then(|c| c.usage_nano_cores.as_ref()))},
            "memory": {"workingSetBytes": working, "usageBytes": value(memory.and_then(|m| m.usage_bytes.as_ref()))},
        });
        pods.entry(word(label::POD_UID)).or_insert_with(|| (reference, Vec::new())).1.push(container);
    }
    let pods: Vec<Value> =
        pods.into_values().map(|(reference, containers)| json!({"podRef": reference, "containers": containers})).collect();
    let node = json!({
        "nodeName": shared.shop.node.node_name, "cpu": {"usageCoreNanoSeconds": node_cpu}, "memory": {"workingSetBytes": node_memory},
    });
    json!({"node": node, "pods": pods})
}

/// Usage in Prometheus' text form, under the names of the kubelet's resource metrics.
async fn metrics(shared: &Shared) -> String {
    let stats = shared.shop.runtime.list_stats().await.unwrap_or_default();
    let mut text = String::from("# TYPE container_cpu_usage_seconds_total counter\n# TYPE container_memory_working_set_bytes gauge\n");
    for s in &stats {
        let Some(attributes) = &s.attributes else { continue };
        let word = |key: &str| attributes.labels.get(key).map(String::as_str).unwrap_or_default();
        let labels = format!(
            "{{container={:?},namespace={:?},pod={:?}}}",
            word(label::CONTAINER_NAME),
            word(label::POD_NAMESPACE),
            word(label::POD_NAME)
        );
        let nanos = value(s.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()));
        let memory = value(s.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()));
        text.push_str(&format!("container_cpu_usage_seconds_total{labels} {}.{:09}\n", nanos / 1_000_000_000, nanos % 1_000_000_000));
        text.push_str(&format!("container_memory_working_set_bytes{labels} {memory}\n"));
    }
    text.push_str(&format!("# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n", shared.board.len()));
    text
}
