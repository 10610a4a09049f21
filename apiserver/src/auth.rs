//! Who asks: the client certificate, or a bearer token, or nobody in particular.

use std::collections::BTreeMap;

use http::HeaderMap;
use kontiki_registry::rbac::User;
use kontiki_registry::status::Status;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::StaticToken;
use crate::error::Result;

/// Who made a request: an extension of every request, REST and gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub User);

/// The group of everybody who is known.
const AUTHENTICATED: &str = "system:authenticated";

/// Bearer tokens that are known from the start.
#[derive(Default)]
pub(crate) struct Tokens(BTreeMap<String, User>);

impl Tokens {
    pub(crate) fn new(tokens: Vec<StaticToken>) -> Self {
        Self(tokens.into_iter().map(|t| (t.token, known(t.user, t.groups))).collect())
    }
}

fn known(name: String, mut groups: Vec<String>) -> User {
    if !groups.iter().any(|g| g == AUTHENTICATED) {
        groups.push(AUTHENTICATED.into());
    }
    User { name, groups, uid: String::new() }
}

/// The user that a verified client certificate stands for: CN is the name, every O a group. `None` if there is no CN.
pub(crate) fn from_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    (!name.is_empty()).then(|| known(name, groups))
}

/// Who makes this request. A token that is present and wrong is refused, even where nobody would be let in.
pub(crate) fn identify(certificate: Option<&User>, headers: &HeaderMap, tokens: &Tokens) -> Result<User> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let Some(header) = headers.get(http::header::AUTHORIZATION) else { return Ok(User::anonymous()) };
    let text = header.to_str().map_err(|_| Status::unauthorized())?;
    let Some(token) = text.strip_prefix("Bearer ").or_else(|| text.strip_prefix("bearer ")) else { return Ok(User::anonymous()) };
    tokens.0.get(token.trim()).cloned().ok_or_else(Status::unauthorized)
}

/// The user that the caller wants to act as, if it asks for that.
pub(crate) fn impersonated(headers: &HeaderMap) -> Result<Option<User>> {
    let all = |name: &str| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect::<Vec<_>>();
    let groups = all("impersonate-group");
    let Some(name) = all("impersonate-user").into_iter().next().filter(|n| !n.is_empty()) else {
        if groups.is_empty() && !headers.contains_key("impersonate-uid") {
            return Ok(None);
        }
        return Err(Status::bad_request("requested impersonation of groups or uid without impersonating a user"));
    };
    Ok(Some(known(name, groups)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(vec![StaticToken { token: "t".into(), user: "u".into(), groups: vec!["g".into()] }])
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (http::HeaderName::from_static(k), http::HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn first_success_wins_and_wrong_tokens_are_refused() {
        let alice = known("alice".into(), vec![]);
        let with = |h: &[_]| identify(None, &headers(h), &tokens());
        assert_eq!(with(&[]).unwrap().name, "system:anonymous");
        assert_eq!(with(&[("authorization", "Bearer t")]).unwrap().groups, ["g", AUTHENTICATED]);
        assert_eq!(with(&[("authorization", "Bearer x")]).unwrap_err().http, 401);
        assert_eq!(with(&[("authorization", "Basic x")]).unwrap().name, "system:anonymous");
        assert_eq!(identify(Some(&alice), &headers(&[("authorization", "Bearer x")]), &tokens()).unwrap(), alice);
    }

    #[test]
    fn certificates_name_users_and_groups() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let user = from_certificate(cert.der()).unwrap();
        assert_eq!((user.name.as_str(), user.node()), ("system:node:n1", Some("n1")));
        assert_eq!(from_certificate(b"junk"), None);
    }

    #[test]
    fn groups_without_a_user_cannot_be_impersonated() {
        assert_eq!(impersonated(&headers(&[])).unwrap(), None);
        assert_eq!(impersonated(&headers(&[("impersonate-group", "g")])).unwrap_err().http, 400);
        assert_eq!(impersonated(&headers(&[("impersonate-user", "carol")])).unwrap().unwrap().groups, [AUTHENTICATED]);
    }
}
