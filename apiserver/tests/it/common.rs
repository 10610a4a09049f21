//! A server over memory on a port of its own, certificates for it, and small clients for both doors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kontiki_apiserver::{ApiConfig, ApiHandle, ApiServer, StaticToken, TlsConfig};
use kontiki_mvcc::LocalKv;
use kontiki_proto::env::SystemEnv;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;

/// The token of a member of `system:masters`.
pub(crate) const ADMIN: &str = "admintoken";
/// The token of a user without rights.
pub(crate) const BOB: &str = "bobtoken";

/// Certificates of one cluster.
pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A certificate and its key.
    pub(crate) fn issue(&self, cn: &str, groups: &[&str]) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, cn);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.ca).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) handle: ApiHandle,
    pub(crate) kv: LocalKv,
    pub(crate) pki: Pki,
}

impl Server {
    /// Starts one and waits until it is ready and its bootstrap objects are there.
    pub(crate) async fn start() -> Self {
        let (pki, kv) = (Pki::new(), LocalKv::new());
        let config = config(&pki, &kv);
        Self::start_with(pki, kv, config).await
    }

    /// Starts one with a configuration of its own.
    pub(crate) async fn start_with(pki: Pki, kv: LocalKv, config: ApiConfig) -> Self {
        let handle = ApiServer::start(config).await.unwrap();
        let server = Self { handle, kv, pki };
        for _ in 0..200 {
            let ready = server.get("/readyz").await.0 == 200;
            if ready && server.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.0 == 200 {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server did not become ready");
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.handle.addr()
    }

    fn tls(&self, alpn: &[u8], identity: Option<(String, String)>) -> tokio_rustls::TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        tokio_rustls::TlsConnector::from(Arc::new(config))
    }

    /// Sends a request over HTTP/2 and returns the answer with its body still open.
    pub(crate) async fn open(
        &self,
        request: Request<Full<Bytes>>,
        identity: Option<(String, String)>,
    ) -> http::Response<hyper::body::Incoming> {
        let tcp = TcpStream::connect(self.addr()).await.unwrap();
        let tls = self.tls(b"h2", identity).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        sender.send_request(request).await.unwrap()
    }

    /// A request in full.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, HeaderMap, Bytes) {
        let uri = format!("https://localhost:{}{path}", self.addr().port());
        let mut request = Request::builder().method(method).uri(uri);
        if !headers.iter().any(|(k, _)| *k == "authorization") {
            request = request.header("authorization", format!("Bearer {ADMIN}"));
        }
        for (key, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
            request = request.header(*key, *value);
        }
        let answer = self.open(request.body(Full::new(body.into())).unwrap(), None).await;
        let (parts, body) = answer.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn json(&self, method: Method, path: &str, content: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let (code, _, bytes) = self.send(method, path, &[("content-type", content)], body).await;
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.json(Method::GET, path, "", "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.json(Method::POST, path, "application/json", body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.json(Method::PUT, path, "application/json", body.to_string()).await
    }

    pub(crate) async fn merge(&self, path: &str, body: &Value) -> (u16, Value) {
        self.json(Method::PATCH, path, "application/merge-patch+json", body.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, content: &str, body: &Value) -> (u16, Value) {
        self.json(Method::PATCH, path, content, body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.json(Method::DELETE, path, "application/json", body).await
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, path: &str) -> Lines {
        let uri = format!("https://localhost:{}{path}", self.addr().port());
        let request = Request::get(uri).header("authorization", format!("Bearer {ADMIN}")).body(Full::default()).unwrap();
        let answer = self.open(request, None).await;
        Lines { code: answer.status().as_u16(), body: answer.into_body(), buffer: Vec::new() }
    }

    /// A channel for gRPC.
    pub(crate) async fn channel(&self, identity: Option<(String, String)>) -> tonic::transport::Channel {
        let mut tls = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(self.pki.ca_pem()))
            .domain_name("localhost");
        if let Some((cert, key)) = identity {
            tls = tls.identity(tonic::transport::Identity::from_pem(cert, key));
        }
        let endpoint = tonic::transport::Endpoint::from_shared(format!("https://127.0.0.1:{}", self.addr().port())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    /// The identity of an administrator.
    pub(crate) fn admin(&self) -> Option<(String, String)> {
        Some(self.pki.issue("admin", &["system:masters"]))
    }
}

/// The lines of a watch.
pub(crate) struct Lines {
    pub(crate) code: u16,
    body: hyper::body::Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("an event in time")?;
            if let Ok(data) = frame.unwrap().into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// The next event as type, name, revision.
    pub(crate) async fn event(&mut self) -> (String, String, i64) {
        let event = self.next().await.expect("an event");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let meta = &event["object"]["metadata"];
        (text(&event["type"]), text(&meta["name"]), text(&meta["resourceVersion"]).parse().unwrap_or(0))
    }
}

/// The configuration of a server over memory.
pub(crate) fn config(pki: &Pki, kv: &LocalKv) -> ApiConfig {
    let (cert, key) = pki.issue("kontiki-apiserver", &[]);
    let token = |token: &str, user: &str, group: &str| StaticToken { token: token.into(), user: user.into(), groups: vec![group.into()] };
    ApiConfig {
        kv: Arc::new(kv.clone()),
        env: Arc::new(SystemEnv::new()),
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: TlsConfig { cert_pem: cert.into_bytes(), key_pem: key.into_bytes(), client_ca_pem: pki.ca_pem().into_bytes() },
        node_client: None,
        service_cidr: Default::default(),
        advertise: Vec::new(),
        tokens: vec![token(ADMIN, "admin", "system:masters"), token(BOB, "bob", "devs")],
        extra_routes: None,
        extra_metrics: None,
        server_name: "test".into(),
    }
}

/// The resource version of an object or a list.
pub(crate) fn rv(value: &Value) -> i64 {
    value["metadata"]["resourceVersion"].as_str().and_then(|t| t.parse().ok()).unwrap_or(0)
}
