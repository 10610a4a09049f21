//! Certificates of a cluster: one authority, and what it signs.
//!
//! A client certificate is an identity: its common name is the user, its organizations are the groups, as in Kubernetes.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

/// Who a certificate is for.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// Common name: the user.
    pub(crate) user: String,
    /// Organizations: the groups.
    pub(crate) groups: Vec<String>,
    /// Names and addresses under which it serves; empty for a mere client.
    pub(crate) names: Vec<String>,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// PEM certificate.
    pub(crate) cert: PathBuf,
    /// PEM key.
    pub(crate) key: PathBuf,
}

/// The cluster's certificate authority, in a folder.
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in `dir`, or makes a new one there.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !key_path.exists() || !cert_path.exists() {
            let key = KeyPair::generate()?;
            let cert = ca_params()?.self_signed(&key)?;
            write_private(&key_path, &key.serialize_pem())?;
            write(&cert_path, &cert.pem())?;
        }
        let key = KeyPair::from_pem(&fs::read_to_string(&key_path)?).with_context(|| format!("{} is not a key", key_path.display()))?;
        let pem = fs::read_to_string(&cert_path)?;
        let issuer =
            Issuer::from_ca_cert_pem(&pem, key).with_context(|| format!("{} is not a certificate authority", cert_path.display()))?;
        Ok(Self { dir: dir.to_path_buf(), issuer })
    }

    /// The authority's own certificate.
    pub(crate) fn ca_cert(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The certificate called `name`: made now if there is none yet. What was made before is kept, so that kubeconfigs stay valid.
    pub(crate) fn issue(&self, name: &str, subject: &Subject) -> Result<Files> {
        let files = Files { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) };
        if files.cert.exists() && files.key.exists() {
            return Ok(files);
        }
        let key = KeyPair::generate()?;
        let cert = leaf_params(subject)?.signed_by(&key, &self.issuer)?;
        write_private(&files.key, &key.serialize_pem())?;
        write(&files.cert, &cert.pem())?;
        Ok(files)
    }
}

fn ca_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "kontiki-ca");
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2054, 1, 1);
    Ok(params)
}

fn leaf_params(subject: &Subject) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, subject.user.as_str());
    // One organization per certificate is what the builder can hold; our identities need no more.
    for group in &subject.groups {
        params.distinguished_name.push(DnType::OrganizationName, group.as_str());
    }
    for name in &subject.names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().with_context(|| format!("{name:?} is not a DNS name"))?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.names.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2054, 1, 1);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
