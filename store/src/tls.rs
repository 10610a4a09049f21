//! Certificates of ports: where they come from, and how they are read anew while the member runs.
//!
//! Files are looked at when a connection is made: if one of them has changed, it is read again, and the new connection sees the new
//! certificate. Connections that are there live on. Files that make no sense (a certificate that was written before its key, say) are
//! said to be so once, and what was there before is kept until they do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::error::StoreError;

/// Something in PEM.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// Stays as it is.
    Given(Vec<u8>),
    /// Is read anew when the file changes.
    File(PathBuf),
}

impl From<Vec<u8>> for Pem {
    fn from(pem: Vec<u8>) -> Self {
        Self::Given(pem)
    }
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(pem) => write!(f, "{} bytes of PEM", pem.len()),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Pem {
    fn read(&self, what: &str) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Given(pem) => Ok(pem.clone()),
            Self::File(path) => std::fs::read(path).map_err(|e| StoreError::Tls(format!("{what}: {}: {e}", path.display()))),
        }
    }

    fn file(&self) -> Option<&Path> {
        match self {
            Self::Given(_) => None,
            Self::File(path) => Some(path),
        }
    }
}

/// The versions of TLS that a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Tls12AndUp,
    /// 1.3 alone.
    Tls13Only,
}

impl TlsVersions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
        static LATEST: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        match self {
            Self::Tls12AndUp => BOTH,
            Self::Tls13Only => LATEST,
        }
    }
}

/// Certificates of a port.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// The server's certificate, and what it needs to be traced to a root.
    pub cert: Pem,
    /// Its private key.
    pub key: Pem,
    /// If given, clients must show a certificate that these authorities issued.
    pub client_ca: Option<Pem>,
    /// What it speaks.
    pub versions: TlsVersions,
    /// The cipher suites that it speaks, by their IANA names; empty for all that are safe. Those of TLS 1.3 cannot be left out.
    pub ciphers: Vec<String>,
}

impl TlsOptions {
    /// A port with a certificate.
    pub fn new(cert: impl Into<Pem>, key: impl Into<Pem>) -> Self {
        Self { cert: cert.into(), key: key.into(), client_ca: None, versions: TlsVersions::default(), ciphers: Vec::new() }
    }

    /// A port that lets in those alone whom these authorities know.
    #[must_use]
    pub fn for_clients_of(self, authorities: impl Into<Pem>) -> Self {
        Self { client_ca: Some(authorities.into()), ..self }
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        all.into_iter().flatten().filter_map(Pem::file).map(Path::to_path_buf).collect()
    }
}

/// Certificates for mutual TLS between members.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// Authority that signed every member's certificate.
    pub ca: Pem,
    /// This member's certificate.
    pub cert: Pem,
    /// Its private key.
    pub key: Pem,
}

impl PeerTls {
    /// As the port for other members has it.
    pub fn server(&self) -> TlsOptions {
        TlsOptions::new(self.cert.clone(), self.key.clone()).for_clients_of(self.ca.clone())
    }

    fn files(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key, &self.ca].into_iter().filter_map(Pem::file).map(Path::to_path_buf).collect()
    }
}

/// What a file was when it was read: enough to see that it is another one, also behind a link.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let seen = std::fs::metadata(path).ok()?;
    Some((seen.modified().ok()?, seen.len(), seen.ino()))
}

struct Known<T> {
    value: Arc<T>,
    /// What the files were when they were last read, whether that came to something or not.
    stamps: Vec<Stamp>,
}

type Load<T> = Box<dyn Fn() -> Result<T, StoreError> + Send + Sync>;

/// Something made of files, made anew when they change.
pub(crate) struct Reloading<T> {
    files: Vec<PathBuf>,
    load: Load<T>,
    known: Mutex<Known<T>>,
}

impl<T> std::fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Reloading<T> {
    fn new(files: Vec<PathBuf>, load: Load<T>) -> Result<Arc<Self>, StoreError> {
        let stamps = files.iter().map(|file| stamp(file)).collect();
        let value = Arc::new(load()?);
        Ok(Arc::new(Self { files, load, known: Mutex::new(Known { value, stamps }) }))
    }

    /// The latest that can be used.
    pub(crate) fn current(&self) -> Arc<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Vec<Stamp> = self.files.iter().map(|file| stamp(file)).collect();
        if stamps != known.stamps {
            known.stamps = stamps;
            match (self.load)() {
                Ok(value) => {
                    tracing::info!(files = ?self.files, "certificates have changed: new connections see the new ones");
                    known.value = Arc::new(value);
                }
                Err(error) => tracing::warn!(%error, "certificates have changed and cannot be used: the ones before stay"),
            }
        }
        Arc::clone(&known.value)
    }

    /// Reads the files now, whether they look changed or not.
    ///
    /// # Errors
    /// [`StoreError::Tls`]; what was there before stays.
    pub(crate) fn reload(&self) -> Result<(), StoreError> {
        let value = Arc::new((self.load)()?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.stamps = self.files.iter().map(|file| stamp(file)).collect();
        known.value = value;
        Ok(())
    }
}

/// What a port serves with.
pub(crate) type ServerTls = Reloading<ServerConfig>;

/// What a member calls the others with.
pub(crate) type CallerTls = Reloading<ClientConfig>;

/// Certificates of a port that speaks the given protocols.
pub(crate) fn serving(options: &TlsOptions, alpn: &'static [&'static [u8]]) -> Result<Arc<ServerTls>, StoreError> {
    let options = options.clone();
    Reloading::new(options.files(), Box::new(move || server_config(&options, alpn)))
}

/// Certificates with which the other members are called.
pub(crate) fn calling(tls: &PeerTls) -> Result<Arc<CallerTls>, StoreError> {
    let tls = tls.clone();
    Reloading::new(tls.files(), Box::new(move || client_config(&tls)))
}

fn fail(what: &'static str) -> impl Fn(String) -> StoreError {
    move |why| StoreError::Tls(format!("{what}: {why}"))
}

fn certs(pem: &Pem, what: &'static str) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let pem = pem.read(what)?;
    let certs = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| fail(what)(e.to_string()))?;
    if certs.is_empty() { Err(fail(what)("there is no certificate in it".into())) } else { Ok(certs) }
}

fn key(pem: &Pem) -> Result<PrivateKeyDer<'static>, StoreError> {
    PrivateKeyDer::from_pem_slice(&pem.read("key")?).map_err(|e| fail("key")(e.to_string()))
}

fn roots(pem: &Pem) -> Result<RootCertStore, StoreError> {
    const WHAT: &str = "trusted authority";
    let mut roots = RootCertStore::empty();
    for cert in certs(pem, WHAT)? {
        roots.add(cert).map_err(|e| fail(WHAT)(e.to_string()))?;
    }
    Ok(roots)
}

/// The common name of a certificate's subject, if it has one.
pub(crate) fn common_name(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// The name that Go and IANA have for a cipher suite.
fn iana_name(suite: &rustls::SupportedCipherSuite) -> String {
    let name = format!("{:?}", suite.suite());
    name.replace("TLS13_", "TLS_")
}

/// The names of the cipher suites that can be chosen from.
pub fn cipher_suites() -> Vec<String> {
    rustls::crypto::ring::ALL_CIPHER_SUITES.iter().map(iana_name).collect()
}

/// Go has a shorter name for two of them.
fn short(name: &str) -> &str {
    name.strip_suffix("_SHA256").filter(|rest| rest.ends_with("_POLY1305")).unwrap_or(name)
}

fn provider(ciphers: &[String]) -> Result<Arc<CryptoProvider>, StoreError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !ciphers.is_empty() {
        let known = cipher_suites();
        if let Some(stranger) = ciphers.iter().find(|name| !known.iter().any(|k| short(k) == short(name))) {
            return Err(StoreError::Tls(format!("cipher suite {stranger:?} is unknown or not safe; there are {}", known.join(", "))));
        }
        let wanted = |suite: &rustls::SupportedCipherSuite| ciphers.iter().any(|name| short(name) == short(&iana_name(suite)));
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted(suite));
    }
    Ok(Arc::new(provider))
}

fn server_config(options: &TlsOptions, alpn: &[&[u8]]) -> Result<ServerConfig, StoreError> {
    let (certs, key) = (certs(&options.cert, "certificate")?, key(&options.key)?);
    let provider = provider(&options.ciphers)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(options.versions.list())
        .map_err(|e| fail("protocol")(e.to_string()))?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|e| fail("trusted authority")(e.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(certs, key).map_err(|e| fail("certificate and key")(e.to_string()))?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn client_config(tls: &PeerTls) -> Result<ClientConfig, StoreError> {
    let (certs, key) = (certs(&tls.cert, "peer certificate")?, key(&tls.key)?);
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| fail("protocol")(e.to_string()))?
        .with_root_certificates(roots(&tls.ca)?)
        .with_client_auth_cert(certs, key)
        .map_err(|e| fail("peer certificate and key")(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issue() -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
        (cert.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    #[test]
    fn changed_files_are_read_anew_and_nonsense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (cert_file, key_file) = (dir.path().join("cert"), dir.path().join("key"));
        let write = |(cert, key): &(Vec<u8>, Vec<u8>)| {
            std::fs::write(&cert_file, cert).unwrap();
            std::fs::write(&key_file, key).unwrap();
        };
        write(&issue());
        let tls = serving(&TlsOptions::new(Pem::File(cert_file.clone()), Pem::File(key_file.clone())), &[b"h2"]).unwrap();
        let first = tls.current();
        assert!(Arc::ptr_eq(&first, &tls.current()), "nothing has changed");
        let second = issue();
        std::fs::write(&cert_file, &second.0).unwrap();
        std::fs::write(dir.path().join("moved"), &second.0).unwrap();
        std::fs::rename(dir.path().join("moved"), &cert_file).unwrap();
        assert!(Arc::ptr_eq(&first, &tls.current()), "a new certificate with the old key cannot be used");
        assert!(tls.reload().is_err());
        std::fs::write(dir.path().join("moved"), &second.1).unwrap();
        std::fs::rename(dir.path().join("moved"), &key_file).unwrap();
        let now = tls.current();
        assert!(!Arc::ptr_eq(&first, &now), "certificate and key fit again");
        std::fs::remove_file(&cert_file).unwrap();
        assert!(Arc::ptr_eq(&now, &tls.current()), "files that are gone change nothing");
    }

    #[test]
    fn cipher_suites_are_chosen_by_name() {
        let suites = cipher_suites();
        assert!(suites.contains(&"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned()), "{suites:?}");
        let few = provider(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into(), "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305".into()]).unwrap();
        assert_eq!(few.cipher_suites.iter().filter(|s| s.tls13().is_none()).count(), 2);
        assert!(provider(&["TLS_RSA_WITH_RC4_128_SHA".into()]).unwrap_err().to_string().contains("not safe"));
    }
}
