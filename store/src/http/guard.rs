//! Who may use HTTP: pages of other origins (CORS), and names under which a plaintext port is addressed. gRPC is not concerned: browsers
//! cannot speak it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::config::HttpGuard;

/// A guard for ports with TLS, or without.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) rules: HttpGuard,
    pub(crate) tls: bool,
}

/// Headers that a page may read and send; those of etcd.
const ALLOWED: &[(HeaderName, &str)] = &[
    (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
];

/// Lets a request through, or not.
pub(crate) async fn around(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if super::is_grpc(request.headers()) {
        return next.run(request).await;
    }
    if !guard.tls && !known_host(&guard.rules.hosts, request.headers(), request.uri()) {
        return (StatusCode::MISDIRECTED_REQUEST, "this name is not in --host-whitelist\n").into_response();
    }
    let Some(origin) = trusted(&guard.rules.cors, request.headers()) else { return next.run(request).await };
    let mut response = if request.method() == Method::OPTIONS { StatusCode::OK.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    for (name, value) in ALLOWED {
        headers.insert(name.clone(), HeaderValue::from_static(value));
    }
    response
}

/// The origin to name to a browser, if it is trusted.
fn trusted(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    if origins.iter().any(|origin| origin == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    let asking = headers.get(header::ORIGIN)?;
    origins.iter().any(|origin| origin.as_bytes() == asking.as_bytes()).then(|| asking.clone())
}

/// Whether the port may be addressed like this: by an IP address, as localhost, or by a name of the list.
fn known_host(hosts: &[String], headers: &HeaderMap, uri: &http::Uri) -> bool {
    if hosts.is_empty() {
        return true;
    }
    let named =
        headers.get(header::HOST).and_then(|value| value.to_str().ok()).or_else(|| uri.authority().map(http::uri::Authority::as_str));
    let authority: Option<http::uri::Authority> = named.and_then(|named| named.parse().ok());
    let Some(host) = authority.as_ref().map(http::uri::Authority::host) else { return false };
    let plain = host.trim_matches(['[', ']']);
    plain == "localhost" || plain.parse::<std::net::IpAddr>().is_ok() || hosts.iter().any(|known| known == plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_plaintext_port_is_addressed_by_known_names() {
        let hosts = ["etcd.example".to_owned()];
        let uri = http::Uri::from_static("/health");
        for (host, ok) in
            [("etcd.example:2379", true), ("localhost", true), ("127.0.0.1:2379", true), ("[::1]:2379", true), ("evil.example", false)]
        {
            assert_eq!(known_host(&hosts, &headers(header::HOST, host), &uri), ok, "{host}");
        }
        assert!(!known_host(&hosts, &HeaderMap::new(), &uri), "nobody is addressed");
        assert!(known_host(&[], &headers(header::HOST, "evil.example"), &uri), "any name will do");
    }

    #[test]
    fn origins_are_trusted_by_name() {
        let ours = ["https://a.example".to_owned()];
        assert_eq!(trusted(&ours, &headers(header::ORIGIN, "https://a.example")).unwrap(), "https://a.example");
        assert_eq!(trusted(&ours, &headers(header::ORIGIN, "https://b.example")), None);
        assert_eq!(trusted(&ours, &HeaderMap::new()), None);
        assert_eq!(trusted(&["*".to_owned()], &HeaderMap::new()).unwrap(), "*");
    }
}
