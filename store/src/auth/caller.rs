//! What a request says of who sends it: a token in its metadata, or the certificate of its connection.

use std::sync::Arc;

use http::HeaderMap;
use tonic::Request;

use crate::http::Peer;

/// What a request says of who sends it. Believed only after [`Auth::who`](super::Auth::who) has looked at it.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    /// The token, if there is one: then the certificate does not count.
    pub(crate) token: Option<String>,
    /// The common name of the client's certificate, which the connection has verified.
    pub(crate) common_name: Option<Arc<str>>,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A token is as good as a password for as long as it lives.
        f.debug_struct("Caller").field("token", &self.token.is_some()).field("common_name", &self.common_name).finish()
    }
}

impl Caller {
    /// Whether it says nothing.
    pub(crate) const fn is_nobody(&self) -> bool {
        self.token.is_none() && self.common_name.is_none()
    }

    /// Who sends a call.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        Self::new(|name| metadata.get(name).and_then(|value| value.to_str().ok()), request.extensions().get::<Peer>())
    }

    /// Who sends a call, as HTTP has it.
    pub(crate) fn of_http(headers: &HeaderMap, peer: Option<&Peer>) -> Self {
        Self::new(|name| headers.get(name).and_then(|value| value.to_str().ok()), peer)
    }

    fn new<'a>(text: impl Fn(&str) -> Option<&'a str>, peer: Option<&Peer>) -> Self {
        let token = text("token").or_else(|| text("authorization"));
        let token = token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token).to_owned());
        // A gateway's certificate says who the gateway is, not who is behind it.
        let through_gateway = text("grpcgateway-accept").is_some();
        Self { token, common_name: peer.filter(|_| !through_gateway).and_then(|peer| peer.common_name.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(headers: &[(&'static str, &'static str)], common_name: Option<&str>) -> (Option<String>, Option<String>) {
        let map = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>();
        let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), common_name: common_name.map(Into::into) };
        let caller = Caller::of_http(&map, Some(&peer));
        (caller.token, caller.common_name.map(|name| name.to_string()))
    }

    #[test]
    fn tokens_come_in_two_headers_and_names_in_certificates() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(caller(&[], None), (None, None));
        assert_eq!(caller(&[("token", "a.1"), ("authorization", "b.2")], None), (some("a.1"), None));
        assert_eq!(caller(&[("authorization", "b.2")], None), (some("b.2"), None));
        assert_eq!(caller(&[("authorization", "Bearer b.2")], None), (some("b.2"), None));
        assert_eq!(caller(&[], Some("alice")), (None, some("alice")));
        assert_eq!(caller(&[("grpcgateway-accept", "application/json")], Some("gateway")), (None, None));
        let secret = Caller { token: some("secret"), common_name: None };
        assert!(!format!("{secret:?}").contains("secret"));
    }
}
