//! An API server over memory, for trying clients on: `cargo run -p kontiki-apiserver --example memory -- DIRECTORY [PORT]`.
//! Writes `DIRECTORY/kubeconfig`, knows the bearer tokens `admintoken` and `bobtoken`, and forgets everything at its end.

use std::sync::Arc;

use kontiki_apiserver::{ApiConfig, ApiServer, ServiceCidr, StaticToken, TlsConfig};
use kontiki_mvcc::LocalKv;
use kontiki_proto::env::SystemEnv;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

type Error = Box<dyn std::error::Error>;

fn token(token: &str, user: &str, group: &str) -> StaticToken {
    StaticToken { token: token.into(), user: user.into(), groups: vec![group.into()] }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let directory = std::path::PathBuf::from(args.next().ok_or("a directory is needed")?);
    let port = args.next().map_or(Ok(0), |p| p.parse::<u16>())?;

    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "memory-ca");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?.signed_by(&key, &ca)?;

    let handle = ApiServer::start(ApiConfig {
        kv: Arc::new(LocalKv::new()),
        env: Arc::new(SystemEnv::new()),
        listen: ([127, 0, 0, 1], port).into(),
        tls: TlsConfig { cert_pem: cert.pem().into(), key_pem: key.serialize_pem().into(), client_ca_pem: ca.pem().into() },
        node_client: None,
        service_cidr: ServiceCidr::default(),
        advertise: Vec::new(),
        tokens: vec![token("admintoken", "admin", "system:masters"), token("bobtoken", "bob", "devs")],
        extra_routes: None,
        extra_metrics: None,
        server_name: "memory".into(),
    })
    .await?;

    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("ca.crt"), ca.pem())?;
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "memory",
        "contexts": [{"name": "memory", "context": {"cluster": "memory", "user": "admin"}}],
        "clusters": [{"name": "memory", "cluster": {"server": format!("https://{}", handle.addr()), "certificate-authority": "ca.crt"}}],
        "users": [{"name": "admin", "user": {"token": "admintoken"}}],
    });
    std::fs::write(directory.join("kubeconfig"), kubeconfig.to_string())?;
    println!("https://{}", handle.addr());
    tokio::signal::ctrl_c().await?;
    handle.shutdown().await;
    Ok(())
}
