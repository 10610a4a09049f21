//! The Kubernetes `Status` object: what a request that failed is answered with, with kube-apiserver's own texts.

use kontiki_base::{Code, KvError};
use serde_json::{Map, Value, json};

use crate::field::Errors;
use crate::row::Row;
use crate::val::go_quote;

/// One cause of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason.
    pub reason: String,
    /// Text.
    pub message: String,
    /// Field path; may be empty.
    pub field: String,
}

/// What the failure is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// API group.
    pub group: String,
    /// Plural resource for what the storage says, kind for what validation says.
    pub kind: String,
    /// Uid of the object.
    pub uid: String,
    /// Causes.
    pub causes: Vec<Cause>,
    /// When to try again, in seconds; 0 is not sent. Also the `Retry-After` header.
    pub retry_after_seconds: u32,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// Outcome, for gRPC and for retries.
    pub code: Code,
    /// HTTP status and the object's `code`.
    pub http: u16,
    /// `reason`; empty is not sent.
    pub reason: String,
    /// Text.
    pub message: String,
    /// Details; `Some` of nothing prints `{}`.
    pub details: Option<Box<Details>>,
    /// `metadata.continue`, for expired lists.
    pub continue_token: String,
}

/// The texts of missing routes and methods (apiserver `pkg/endpoints`).
const NO_RESOURCE: &str = "the server could not find the requested resource";
const NO_METHOD: &str = "the server does not allow this method on the requested resource";
const MODIFIED: &str = "the object has been modified; please apply your changes to the latest version and try again";

impl Status {
    /// A status with the code's own HTTP status and reason, and no details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            http: code.http(),
            reason: code.reason().into(),
            message: message.into(),
            details: None,
            continue_token: String::new(),
        }
    }

    /// With details.
    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    fn about(code: Code, message: String, name: &str, group: &str, kind: &str) -> Self {
        Self::new(code, message).with_details(Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() })
    }

    /// 404: no such object.
    pub fn not_found(row: &Row, name: &str) -> Self {
        Self::about(Code::NotFound, format!("{} {} not found", row.group_resource(), go_quote(name)), name, &row.group, &row.plural)
    }

    /// 404: no such resource or subresource in a group that exists.
    pub fn no_such_resource() -> Self {
        Self::new(Code::NotFound, NO_RESOURCE).with_details(Details::default())
    }

    /// 404: no such namespace.
    pub fn no_such_namespace(ns: &str) -> Self {
        Self::about(Code::NotFound, format!("namespaces {} not found", go_quote(ns)), ns, "", "namespaces")
    }

    /// 405: the path exists, the method does not.
    pub fn method_not_allowed() -> Self {
        Self::new(Code::MethodNotAllowed, NO_METHOD).with_details(Details::default())
    }

    /// 409: there is one already; `terminating` when that one is being deleted.
    pub fn already_exists(row: &Row, name: &str, terminating: bool) -> Self {
        let prefix = if terminating { "object is being deleted: " } else { "" };
        let message = format!("{prefix}{} {} already exists", row.group_resource(), go_quote(name));
        Self::about(Code::AlreadyExists, message, name, &row.group, &row.plural)
    }

    /// 409: eight generated names were all taken.
    pub fn generate_name_exhausted(row: &Row, name: &str) -> Self {
        let mut s = Self::already_exists(row, name, false);
        s.message.push_str(", the server was not able to generate a unique name for the object");
        if let Some(d) = &mut s.details {
            d.retry_after_seconds = 1;
        }
        s
    }

    /// 409 with any text after `Operation cannot be fulfilled on pods "x": `.
    pub fn conflict(row: &Row, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", row.group_resource(), go_quote(name));
        Self::about(Code::Conflict, message, name, &row.group, &row.plural)
    }

    /// 409: the resource version is no longer the one that was given.
    pub fn modified(row: &Row, name: &str) -> Self {
        Self::conflict(row, name, MODIFIED)
    }

    /// 409 of a deletion whose preconditions do not hold: it names the kind, not the resource.
    pub fn delete_precondition(row: &Row, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", row.group_kind(), go_quote(name));
        Self::about(Code::Conflict, message, name, &row.group, &row.kind)
    }

    /// 422 on an object of a kind.
    pub fn invalid(row: &Row, name: &str, errors: &Errors) -> Self {
        Self::invalid_kind(&row.group, &row.kind, name, errors)
    }

    /// 422 that names any group and kind, such as `DeleteOptions.meta.k8s.io`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &Errors) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for e in &errors.0 {
            let text = e.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let all = if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) };
        let group_kind = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let causes = errors.0.iter().map(|e| Cause { reason: e.reason.cause().into(), message: e.body(), field: e.path.to_string() });
        let mut s = Self::about(Code::Invalid, format!("{group_kind} {} is invalid: {all}", go_quote(name)), name, group, kind);
        if let Some(d) = &mut s.details {
            d.causes = causes.collect();
        }
        s
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(Code::Unauthenticated, "Unauthorized")
    }

    /// 403 of admission: `pods "x" is forbidden: why`.
    pub fn forbidden(row: &Row, name: &str, why: &str) -> Self {
        let what = if name.is_empty() { row.group_resource() } else { format!("{} {}", row.group_resource(), go_quote(name)) };
        Self::about(Code::Forbidden, format!("{what} is forbidden: {why}"), name, &row.group, &row.plural)
    }

    /// 410: the history that was asked for is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Code::Compacted, message)
    }

    /// 410 of a list whose snapshot was compacted; `token` continues at the latest state.
    pub fn continue_expired(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
                       continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with \
                       the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time \
                       the first chunk was returned and now may show up in the list.";
        let mut s = Self::expired(message);
        s.continue_token = token;
        s
    }

    /// 504: the resource version lies in the future.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let cause = Cause { reason: "ResourceVersionTooLarge".into(), message: "Too large resource version".into(), field: String::new() };
        Self::new(Code::FutureRevision, format!("Timeout: Too large resource version: {asked}, current: {current}")).with_details(Details {
            causes: vec![cause],
            retry_after_seconds: 1,
            ..Details::default()
        })
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(Code::TooLarge, format!("Request entity too large: limit is {limit}"))
    }

    /// 415 of bodies, with the types that would do.
    pub fn unsupported_media(accepted: &[&str]) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", "));
        Self::new(Code::UnsupportedMedia, message)
    }

    /// 406, with the types that we can answer in.
    pub fn not_acceptable(offered: &[&str]) -> Self {
        Self::new(Code::NotAcceptable, format!("only the following media types are accepted: {}", offered.join(", ")))
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(Code::TooManyRequests, message).with_details(Details { retry_after_seconds, ..Details::default() })
    }

    /// 500 as upstream answers it when an error is not a status: no reason, no details.
    pub fn bare_error(message: impl Into<String>) -> Self {
        Self { reason: String::new(), ..Self::new(Code::Internal, message) }
    }

    /// 500: `Internal error occurred: why`.
    pub fn internal(why: &str) -> Self {
        let cause = Cause { reason: String::new(), message: why.into(), field: String::new() };
        Self::new(Code::Internal, format!("Internal error occurred: {why}"))
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 501: it is not built. Says so instead of pretending.
    pub fn unimplemented(what: &str) -> Self {
        Self::new(Code::Unimplemented, format!("not implemented: {what}"))
    }

    /// Seconds for the `Retry-After` header, if one is due.
    pub fn retry_after(&self) -> Option<u32> {
        self.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
    }

    /// The object that is sent.
    pub fn to_json(&self) -> Value {
        let mut v = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": self.http});
        if !self.continue_token.is_empty() {
            v["metadata"] = json!({"continue": self.continue_token});
        }
        for (key, text) in [("message", &self.message), ("reason", &self.reason)] {
            if !text.is_empty() {
                v[key] = json!(text);
            }
        }
        if let Some(d) = &self.details {
            v["details"] = details_json(d);
        }
        v
    }
}

fn details_json(d: &Details) -> Value {
    let mut m = Map::new();
    for (key, text) in [("name", &d.name), ("group", &d.group), ("kind", &d.kind), ("uid", &d.uid)] {
        if !text.is_empty() {
            m.insert(key.into(), json!(text));
        }
    }
    if !d.causes.is_empty() {
        let causes = d.causes.iter().map(|c| {
            let mut m = Map::new();
            for (key, text) in [("reason", &c.reason), ("message", &c.message), ("field", &c.field)] {
                if !text.is_empty() {
                    m.insert(key.into(), json!(text));
                }
            }
            Value::Object(m)
        });
        m.insert("causes".into(), causes.collect());
    }
    if d.retry_after_seconds > 0 {
        m.insert("retryAfterSeconds".into(), json!(d.retry_after_seconds));
    }
    Value::Object(m)
}

/// The success status of a deletion that removed the object.
pub fn deleted(row: &Row, name: &str, uid: &str) -> Value {
    let details = Details { name: name.into(), group: row.group.clone(), kind: row.plural.clone(), uid: uid.into(), ..Details::default() };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details_json(&details)})
}

/// The success status of a POST to a subresource such as `binding` or `eviction`.
pub fn created() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

impl From<KvError> for Status {
    /// What a failure of the store is to a client. Conflicts and missing keys are known to the verbs, which say more.
    fn from(e: KvError) -> Self {
        match &e {
            KvError::Compacted { .. } => Self::expired(e.to_string()),
            KvError::TooLarge => Self::bare_error(e.to_string()),
            KvError::TooManyRequests => Self::too_many_requests("Too many requests, please try again later.", 1),
            KvError::Timeout => {
                Self::new(Code::Timeout, format!("Timeout: {e}")).with_details(Details { retry_after_seconds: 1, ..Details::default() })
            }
            KvError::NoLeader | KvError::LeaderChanged | KvError::Stopped | KvError::Unavailable(_) => {
                Self::new(e.code(), e.to_string()).with_details(Details { retry_after_seconds: 1, ..Details::default() })
            }
            KvError::Internal(why) => Self::internal(why),
            _ => Self::new(e.code(), e.to_string()),
        }
    }
}
