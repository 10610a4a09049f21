//! The client port under TLS: with the right authority, without, and with clients that must show who they are.

use std::sync::Arc;
use std::time::Duration;

use kontiki_base::key::KeyRange;
use kontiki_base::kv::{Kv as _, KvError, RangeReq, RangeRes};
use kontiki_proto::client::{ClientTls, EtcdKv};
use kontiki_proto::env::SystemEnv;
use kontiki_store::config::{StoreConfig, TlsOptions};
use kontiki_store::error::StoreError;
use kontiki_store::server::Store;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority that can issue certificates for 127.0.0.1.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, PEM.
    pub(crate) fn issue(&self) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem().into_bytes(), key.serialize_pem().into_bytes())
    }
}

/// How long a request may take that must succeed, and one that must not.
const PATIENT: Duration = Duration::from_secs(30);
const IMPATIENT: Duration = Duration::from_secs(2);

async fn read(endpoint: &str, tls: ClientTls, timeout: Duration) -> Result<RangeRes, KvError> {
    let kv = EtcdKv::new(&[endpoint.to_owned()], Some(&tls), Arc::new(SystemEnv::new()), timeout).unwrap();
    kv.range(RangeReq::new(KeyRange::single("k"))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_who_are_trusted_get_in() {
    let (ours, strangers) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = ours.issue();
    let mut config = StoreConfig::single("solo", dir.path().join("data"), Arc::new(SystemEnv::new()));
    config.client_tls = Some(TlsOptions::new(cert, key).for_clients_of(ours.pem.clone()));
    config.listen_clients[0].tls = true;
    let store = Store::start(config).await.unwrap();
    let mut status = store.status();
    status.wait_for(|raft| raft.leader.is_some()).await.unwrap();
    let endpoint = format!("https://{}", store.client_addr().unwrap());

    let known = ClientTls { ca_pem: ours.pem.clone(), identity: Some(ours.issue()) };
    assert_eq!(read(&endpoint, known, PATIENT).await.unwrap().count, 0);
    for (who, tls) in [
        ("a client without a certificate", ClientTls { ca_pem: ours.pem.clone(), identity: None }),
        ("a client of another authority", ClientTls { ca_pem: ours.pem.clone(), identity: Some(strangers.issue()) }),
        ("a client that does not trust the server", ClientTls { ca_pem: strangers.pem.clone(), identity: Some(ours.issue()) }),
    ] {
        let refused = read(&endpoint, tls, IMPATIENT).await;
        assert!(matches!(refused, Err(KvError::Unavailable(_) | KvError::Timeout)), "{who}: {refused:?}");
    }
    store.shutdown().await;
}

#[tokio::test]
async fn a_bad_certificate_is_found_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut config = StoreConfig::single("solo", data.clone(), Arc::new(SystemEnv::new()));
    config.client_tls = Some(TlsOptions::new(b"nonsense".to_vec(), b"nonsense".to_vec()));
    assert!(matches!(Store::start(config).await.err(), Some(StoreError::Tls(_))));
    assert!(!data.exists());
}
