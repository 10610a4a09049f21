//! TLS on both sides: towards clients, whose certificates are asked for but not required, and towards node agents.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::{ClientIdentity, TlsConfig};
use crate::error::StartError;

fn bad(what: &str, why: impl std::fmt::Display) -> StartError {
    StartError::Tls(format!("{what}: {why}"))
}

fn chain(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| bad(what, e))?;
    if chain.is_empty() { Err(bad(what, "no certificate in it")) } else { Ok(chain) }
}

fn key(pem: &[u8], what: &str) -> Result<PrivateKeyDer<'static>, StartError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| bad(what, e))
}

fn roots(pem: &[u8], what: &str) -> Result<RootCertStore, StartError> {
    let mut store = RootCertStore::empty();
    for certificate in chain(pem, what)? {
        store.add(certificate).map_err(|e| bad(what, e))?;
    }
    Ok(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The server's side. HTTP/2 and HTTP/1.1 by ALPN.
pub(crate) fn server(tls: &TlsConfig) -> Result<Arc<ServerConfig>, StartError> {
    let trusted = Arc::new(roots(&tls.client_ca_pem, "client CA")?);
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("client CA", e))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(&tls.cert_pem, "server certificate")?, key(&tls.key_pem, "server key")?)
        .map_err(|e| bad("server certificate", e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The side towards node agents: HTTP/1.1, with our own certificate.
pub(crate) fn client(identity: &ClientIdentity) -> Result<tokio_rustls::TlsConnector, StartError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", e))?
        .with_root_certificates(roots(&identity.ca_pem, "node CA")?)
        .with_client_auth_cert(chain(&identity.cert_pem, "node client certificate")?, key(&identity.key_pem, "node client key")?)
        .map_err(|e| bad("node client certificate", e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}
