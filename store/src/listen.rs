//! Addresses to listen on, as URLs: `http://ip:port`, `https://ip:port`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listen {
    /// Where. Port 0 takes a free one.
    pub addr: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

impl Listen {
    /// Without TLS.
    pub const fn plain(addr: SocketAddr) -> Self {
        Self { addr, tls: false }
    }

    /// With TLS.
    pub const fn secure(addr: SocketAddr) -> Self {
        Self { addr, tls: true }
    }

    /// `http` or `https`.
    pub const fn scheme(self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.addr)
    }
}

/// Why text is not an address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// No scheme, or another one.
    #[error("{0:?} is not a URL to listen on: write http://ip:port or https://ip:port")]
    Scheme(String),
    /// Sockets of the file system.
    #[error("{0:?}: sockets of the file system are not built; listen on a loopback address instead")]
    Unix(String),
    /// The rest is not an address and a port.
    #[error("{0:?}: a listening URL has an IP address (or localhost) and a port, and no path")]
    Address(String),
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(("unix" | "unixs", _)) => return Err(ListenError::Unix(text.into())),
            _ => return Err(ListenError::Scheme(text.into())),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let local = |port: &str| port.parse().ok().map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        let addr = match rest.strip_prefix("localhost:") {
            Some(port) => local(port),
            None => rest.parse().ok(),
        };
        addr.map(|addr| Self { addr, tls }).ok_or_else(|| ListenError::Address(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_to_listen_on() {
        for (text, shown) in [
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("https://0.0.0.0:1/", "https://0.0.0.0:1"),
            ("http://localhost:7", "http://127.0.0.1:7"),
            ("http://[::1]:2379", "http://[::1]:2379"),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), shown);
        }
        for (text, why) in [
            ("127.0.0.1:2379", "write http://"),
            ("ftp://127.0.0.1:1", "write http://"),
            ("unix://localhost:m0", "not built"),
            ("http://example.com:1", "IP address"),
            ("http://127.0.0.1", "port"),
            ("http://127.0.0.1:1/x", "no path"),
        ] {
            assert!(text.parse::<Listen>().unwrap_err().to_string().contains(why), "{text}");
        }
    }
}
