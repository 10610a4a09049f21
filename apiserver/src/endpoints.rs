//! Paths that are no resources: discovery, OpenAPI, version, health, metrics.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use kontiki_registry::status::Status;
use kontiki_registry::{discovery, openapi};
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::Result;
use crate::query::Query;
use crate::rest::respond::respond;
use crate::{health, metrics, negotiate};

/// Content type of aggregated discovery: clients compare its parameters.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const JSON: &str = "application/json";

/// Text of a path that leads nowhere.
pub(crate) fn page_not_found() -> Response<Body> {
    respond(404, "text/plain; charset=utf-8", "404 page not found\n")
}

/// Answers a path that is no resource.
pub(crate) fn serve(core: &Core, method: &http::Method, path: &str, query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    if let Some(answer) = health::serve(core, path, query.has("verbose")) {
        return Ok(answer);
    }
    if method != http::Method::GET && method != http::Method::HEAD {
        return Err(Status::method_not_allowed());
    }
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let registry = core.registry();
    let document = |value: Option<Value>| match value {
        Some(value) => Ok(json_answer(&value)),
        None => Ok(page_not_found()),
    };
    match segments.as_slice() {
        [] => Ok(json_answer(&root(&registry))),
        ["api"] => discover(headers, accept, || discovery::aggregated(&registry, true), || discovery::api_versions(&address(core))),
        ["apis"] => discover(headers, accept, || discovery::aggregated(&registry, false), || discovery::api_groups(&registry)),
        ["api", version] => version_of(&registry, "", version),
        ["apis", group] => document(discovery::api_group(&registry, group)),
        ["apis", group, version] => version_of(&registry, group, version),
        ["version"] => Ok(json_answer(&version())),
        ["metrics"] => Ok(respond(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics::text(core))),
        ["openapi", "v3"] => Ok(json_answer(&openapi::index(&registry))),
        ["openapi", "v3", "api", version] => document(openapi::document(&registry, "", version)),
        ["openapi", "v3", "apis", group, version] => document(openapi::document(&registry, group, version)),
        _ => Ok(page_not_found()),
    }
}

fn version_of(registry: &kontiki_registry::table::Registry, group: &str, version: &str) -> Result<Response<Body>> {
    match discovery::resource_list(registry, group, version) {
        Some(list) => Ok(json_answer(&list)),
        None if registry.has_group(group) => Err(Status::no_such_resource()),
        None => Ok(page_not_found()),
    }
}

fn address(core: &Core) -> String {
    core.advertise.first().map(ToString::to_string).unwrap_or_default()
}

fn json_answer(value: &Value) -> Response<Body> {
    respond(200, JSON, value.to_string())
}

/// Both forms of discovery. The aggregated one has an entity tag: clients ask again with it, and mostly nothing has changed.
fn discover(
    headers: &HeaderMap,
    accept: &str,
    aggregated: impl FnOnce() -> Value,
    legacy: impl FnOnce() -> Value,
) -> Result<Response<Body>> {
    match negotiate::wants_aggregated(accept) {
        Some(true) => {
            let body = aggregated().to_string();
            let tag = format!("\"{:016X}\"", fnv(body.as_bytes()));
            let same = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(tag.as_str());
            let mut response = respond(if same { 304 } else { 200 }, AGGREGATED, if same { String::new() } else { body });
            let tag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""));
            response.headers_mut().insert(header::ETAG, tag);
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
            debug_assert!(response.status() == StatusCode::OK || same);
            Ok(response)
        }
        Some(false) | None => {
            let mut response = json_answer(&legacy());
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            Ok(response)
        }
    }
}

/// FNV-1a, 64 bits: a name for a document's content.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn root(registry: &kontiki_registry::table::Registry) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into(), "/apis/".into()];
    for group in registry.groups().iter().filter(|g| !g.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    let fixed = ["/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"];
    paths.extend(fixed.iter().map(|p| (*p).to_owned()));
    paths.sort();
    json!({"paths": paths})
}

/// `/version`: a Kubernetes version, so that clients compare it, with our own name in its build part.
fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.2+kontiki-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" }),
    })
}
