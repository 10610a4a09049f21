//! The agent's port over real TLS, with simulated pods behind it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;

use super::runtime::hollow::{HollowOptions, HollowRuntime};
use super::testing::FakeServer;
use super::{NodeAgent, NodeConfig};
use crate::config::ApiConfig;

struct Authority {
    cert: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        Self { cert, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Certificate and key, PEM.
    fn issue(&self) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// GET over TLS; status and body. `Err` if the handshake or the connection failed.
async fn get(port: u16, path: &str, trusted: &Authority, own: Option<&Authority>) -> Result<(u16, String), Box<dyn std::error::Error>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.cert.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_root_certificates(roots);
    let config = match own {
        Some(own) => {
            let (cert, key) = own.issue();
            builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes())?],
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?
        }
        None => builder.with_no_client_auth(),
    };
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = connector.connect(ServerName::try_from("127.0.0.1")?, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header("Host", "node").body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let body = answer.collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn config(
    url: String,
    runtime: Arc<HollowRuntime>,
    port: u16,
    authority: &Authority,
    dir: &std::path::Path,
    env: Arc<dyn Env>,
) -> NodeConfig {
    let (cert, key) = authority.issue();
    NodeConfig {
        name: "n1".into(),
        api: ApiConfig {
            endpoints: vec![url],
            ca_pem: authority.cert.pem().into(),
            cert_pem: cert.into(),
            key_pem: key.into(),
            transport: None,
        },
        runtime,
        listen: Some(([127, 0, 0, 1], port).into()),
        node_ip: [127, 0, 0, 1].into(),
        data_dir: dir.to_owned(),
        cgroup_parent: "/k".into(),
        cluster_cidr: "10.3.0.0/16".into(),
        cluster_dns: None,
        labels: Default::default(),
        capacity: None,
        env,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_served_to_the_clusters_own_only() {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let runtime = Arc::new(HollowRuntime::new(Arc::clone(&env), HollowOptions::default()));
    let server = FakeServer::new("10.3.0.0/24");
    let (url, _) = server.serve("127.0.0.1:0".parse().unwrap()).await;
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let agent = config(url, Arc::clone(&runtime), port, &authority, dir.path(), env);
    let agent = tokio::spawn(NodeAgent::run(agent, std::future::pending()));
    let pod = json!({"metadata": {"name": "web", "namespace": "d", "uid": "u"}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    server.change(|s| _ = s.pods.insert("u".into(), pod));
    for attempt in 0.. {
        if server.state().pods["u"]["status"]["phase"] == "Running" {
            break;
        }
        assert!(attempt < 500, "it does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ask = async |path: &str| get(port, path, &authority, Some(&authority)).await.unwrap();
    let (status, text) = ask("/containerLogs/d/web/c").await;
    assert_eq!((status, text.trim_end()), (200, "hollow container c started"));
    let (_, text) = ask("/containerLogs/d/web/c?timestamps=true&tailLines=1").await;
    assert!(text.contains("Z hollow container c started"), "{text}");
    for (path, expected) in [
        ("/containerLogs/d/web/none", 404),
        ("/containerLogs/d/none/c", 404),
        ("/containerLogs/d/web/c?tailLines=x", 400),
        ("/containerLogs/d/web/c?previous=true", 400),
        ("/exec/d/web/c?command=sh", 400),
        ("/nowhere", 404),
        ("/healthz", 200),
    ] {
        assert_eq!(ask(path).await.0, expected, "{path}");
    }
    let pods: serde_json::Value = serde_json::from_str(&ask("/pods").await.1).unwrap();
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    let summary: serde_json::Value = serde_json::from_str(&ask("/stats/summary").await.1).unwrap();
    assert_eq!(summary["pods"][0]["podRef"]["uid"], "u");
    assert!(ask("/metrics").await.1.contains("kubelet_running_pods 1"));
    let endpoint = server.state().hellos[0].agent_address.clone();
    assert_eq!(endpoint, format!("127.0.0.1:{port}"));

    assert!(get(port, "/healthz", &authority, None).await.is_err(), "no certificate, no answer");
    assert!(get(port, "/healthz", &authority, Some(&Authority::new())).await.is_err(), "nor for a stranger's");
    agent.abort();
}
