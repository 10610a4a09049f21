//! Kinds that are asked, not stored: access reviews, token reviews, and bindings in their collection form.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, header};
use kontiki_registry::field::{Errors, Path};
use kontiki_registry::rbac::{self, Decision, User};
use kontiki_registry::status::Status;
use serde_json::{Value, json};

use crate::error::Result;
use crate::rest::{Call, success};
use crate::{auth, body, negotiate};

/// POST to the collection of a kind that is not stored.
pub(crate) async fn create(call: &mut Call) -> Result<Response<Body>> {
    let options = call.write_options("CreateOptions")?;
    let media = negotiate::content(call.header("content-type"))?;
    let bytes = call.read_body().await?;
    let row = call.row.clone();
    let mut object = body::object(&row, media, &bytes, options.validation, &mut call.warnings)?;
    let status = match row.kind.as_str() {
        "Binding" => {
            let pod = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let update = super::binding::bind(&call.core, call.path.object_namespace(), &pod, &object)?;
            call.core.update(&call.user, &update, &options).await?;
            return call.answer_tree(201, &success());
        }
        "SelfSubjectAccessReview" => access(&call.user, &object["spec"]),
        "SubjectAccessReview" => access(&subject(&object["spec"]), &object["spec"]),
        "LocalSubjectAccessReview" => {
            check_local(call.path.object_namespace(), &object)?;
            access(&subject(&object["spec"]), &object["spec"])
        }
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        "SelfSubjectRulesReview" => rules(&call.user),
        "TokenReview" => token(call, &object["spec"]),
        kind => return Err(Status::unimplemented(&format!("creation of {kind}"))),
    };
    object["status"] = status;
    call.answer_object(201, &row, &object)
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    info
}

fn subject(spec: &Value) -> User {
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    User { name: text("user"), groups, uid: text("uid") }
}

fn access(user: &User, spec: &Value) -> Value {
    let resource = &spec["resourceAttributes"];
    let text = |v: &'_ Value, field: &str| v[field].as_str().unwrap_or_default().to_owned();
    let decision = if resource.is_object() {
        let [group, plural, sub, namespace, name] = ["group", "resource", "subresource", "namespace", "name"].map(|f| text(resource, f));
        let target = rbac::Target::Resource { group: &group, resource: &plural, subresource: &sub, namespace: &namespace, name: &name };
        rbac::authorize(user, &text(resource, "verb"), target)
    } else {
        let path = &spec["nonResourceAttributes"];
        rbac::authorize(user, &text(path, "verb"), rbac::Target::Path(&text(path, "path")))
    };
    match decision {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(why) if why.is_empty() => json!({"allowed": false}),
        Decision::Deny(why) => json!({"allowed": false, "reason": why}),
    }
}

fn check_local(namespace: &str, object: &Value) -> Result<()> {
    let asked = object["spec"]["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
    if asked == namespace {
        return Ok(());
    }
    let mut errors = Errors::default();
    errors.invalid(&Path::new("spec.resourceAttributes.namespace"), asked, "must match metadata.namespace");
    Err(Status::invalid_kind("authorization.k8s.io", "", "", &errors))
}

/// Rules are wired in for now; only the one that can be stated without a namespace is stated.
fn rules(user: &User) -> Value {
    if user.in_group("system:masters") {
        let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
        return json!({"resourceRules": all, "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}], "incomplete": false});
    }
    let own = json!([{"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}]);
    json!({"resourceRules": own, "nonResourceRules": [], "incomplete": true})
}

fn token(call: &Call, spec: &Value) -> Value {
    let bearer = format!("Bearer {}", spec["token"].as_str().unwrap_or_default());
    let headers: HeaderMap = HeaderValue::from_str(&bearer).map(|v| (header::AUTHORIZATION, v)).into_iter().collect();
    match auth::identify(None, &headers, &call.core.tokens) {
        Ok(user) if user != User::anonymous() => json!({"authenticated": true, "user": user_info(&user)}),
        _ => json!({"user": {}, "error": "invalid bearer token"}),
    }
}
