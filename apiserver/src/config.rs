//! What an API server is started with. Composed by the binary; nothing here reads the environment.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use kontiki_base::env::Env;
use kontiki_base::kv::Kv;

/// Everything that [`crate::ApiServer::start`] needs.
pub struct ApiConfig {
    /// The store.
    pub kv: Arc<dyn Kv>,
    /// Clock, tasks and randomness.
    pub env: Arc<dyn Env>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The server's certificate and whom it trusts.
    pub tls: TlsConfig,
    /// How the server introduces itself to node agents; without it `pods/log` answers 501.
    pub node_client: Option<ClientIdentity>,
    /// Where cluster addresses of Services come from.
    pub service_cidr: ServiceCidr,
    /// The API servers' addresses as clients in the cluster reach them: what the Service `kubernetes` stands for.
    pub advertise: Vec<SocketAddr>,
    /// Bearer tokens with the users that they stand for.
    pub tokens: Vec<StaticToken>,
    /// More gRPC services for the same port, such as the node session. They see the caller as
    /// [`crate::Caller`] in the request's extensions, and authorize on their own.
    pub extra_routes: Option<axum::Router>,
    /// Appends what other parts of the process count to `/metrics`.
    pub extra_metrics: Option<ExtraMetrics>,
    /// Name of this server, in spans, audit ids and leases.
    pub server_name: String,
}

impl fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiConfig")
            .field("listen", &self.listen)
            .field("service_cidr", &self.service_cidr)
            .field("advertise", &self.advertise)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// Appends metrics to a text in the OpenMetrics format, without its `# EOF`. Their names must not be those of the API server's own.
pub type ExtraMetrics = Arc<dyn Fn(&mut String) + Send + Sync>;

/// Certificates in PEM.
#[derive(Clone, Default)]
pub struct TlsConfig {
    /// The server's certificate chain.
    pub cert_pem: Vec<u8>,
    /// Its private key.
    pub key_pem: Vec<u8>,
    /// Authorities whose client certificates are believed. A client without a certificate is anonymous or has a token.
    pub client_ca_pem: Vec<u8>,
}

/// A client certificate in PEM.
#[derive(Clone, Default)]
pub struct ClientIdentity {
    /// The certificate chain.
    pub cert_pem: Vec<u8>,
    /// Its private key.
    pub key_pem: Vec<u8>,
    /// Authorities that sign the node agents' serving certificates.
    pub ca_pem: Vec<u8>,
}

/// A bearer token and the user that it stands for.
#[derive(Clone)]
pub struct StaticToken {
    /// The token.
    pub token: String,
    /// User name.
    pub user: String,
    /// Groups, without `system:authenticated`, which every known user has.
    pub groups: Vec<String>,
}

/// A range of IPv4 addresses: `10.96.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    base: u32,
    prefix: u8,
}

/// A service range that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid service range {0:?}: an IPv4 network of 12 to 30 bits such as 10.96.0.0/16 is needed")]
pub struct BadCidr(pub String);

impl Default for ServiceCidr {
    fn default() -> Self {
        Self { base: u32::from(std::net::Ipv4Addr::new(10, 96, 0, 0)), prefix: 16 }
    }
}

impl std::str::FromStr for ServiceCidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let bad = || BadCidr(text.into());
        let (addr, prefix) = text.split_once('/').ok_or_else(bad)?;
        let addr: std::net::Ipv4Addr = addr.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(12..=30).contains(&prefix) {
            return Err(bad());
        }
        let mask = u32::MAX << (32 - prefix);
        Ok(Self { base: u32::from(addr) & mask, prefix })
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", std::net::Ipv4Addr::from(self.base), self.prefix)
    }
}

impl ServiceCidr {
    /// How many addresses there are for Services: all but the network's and the broadcast address.
    pub fn size(self) -> u32 {
        (1u32 << (32 - self.prefix)) - 2
    }

    /// The address number `n`, from 0. The first one belongs to the Service `kubernetes`.
    pub fn nth(self, n: u32) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::from(self.base + 1 + n % self.size())
    }

    /// Whether the range holds an address that a Service can have.
    pub fn contains(self, addr: std::net::Ipv4Addr) -> bool {
        let n = u32::from(addr);
        n > self.base && n - self.base <= self.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_ranges_are_read_and_bounded() {
        let cidr: ServiceCidr = "10.96.7.0/16".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.96.0.0/16");
        assert_eq!(cidr, ServiceCidr::default());
        assert_eq!(cidr.nth(0).to_string(), "10.96.0.1");
        assert_eq!(cidr.nth(cidr.size() - 1).to_string(), "10.96.255.254");
        assert_eq!(cidr.nth(cidr.size()), cidr.nth(0));
        for (addr, inside) in
            [("10.96.0.0", false), ("10.96.0.1", true), ("10.96.255.254", true), ("10.96.255.255", false), ("10.97.0.1", false)]
        {
            assert_eq!(cidr.contains(addr.parse().unwrap()), inside, "{addr}");
        }
        for bad in ["", "10.96.0.0", "10.96.0.0/8", "10.96.0.0/31", "fd00::/112", "x/16"] {
            assert_eq!(bad.parse::<ServiceCidr>(), Err(BadCidr(bad.into())));
        }
    }
}
