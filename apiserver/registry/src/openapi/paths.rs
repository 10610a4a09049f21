//! The paths of a document: what can be done where.

use serde_json::{Map, Value, json};

use super::{reference, schema_name};
use crate::row::{Row, Sub, Verb};
use crate::schema;

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Adds the paths of a kind.
pub(super) fn add(all: &mut Map<String, Value>, row: &Row) {
    let root = if row.group.is_empty() { format!("/api/{}", row.version) } else { format!("/apis/{}/{}", row.group, row.version) };
    let collection =
        if row.namespaced { format!("{root}/namespaces/{{namespace}}/{}", row.plural) } else { format!("{root}/{}", row.plural) };
    let object = format!("{collection}/{{name}}");
    put(all, &collection, collection_item(row));
    put(all, &object, object_item(row));
    if row.namespaced && row.has_verb(Verb::List) {
        let mut item = Map::new();
        item.insert("get".into(), operation(row, "list", &gvk_of(row), LIST, None, &format!("{}List", schema_name(row))));
        item.insert("parameters".into(), json!([query("pretty", "string")]));
        put(all, &format!("{root}/{}", row.plural), item);
    }
    for sub in &row.subresources {
        put(all, &format!("{object}/{}", sub.name), sub_item(row, sub));
    }
}

fn put(all: &mut Map<String, Value>, path: &str, item: Map<String, Value>) {
    if item.keys().any(|k| k != "parameters") {
        all.insert(path.into(), Value::Object(item));
    }
}

fn gvk_of(row: &Row) -> Value {
    json!({"group": row.group, "version": row.version, "kind": row.kind})
}

/// Query parameters of each action: name and type.
const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const NONE: &[(&str, &str)] = &[];

fn query(name: &str, kind: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn path_parameters(row: &Row, named: bool) -> Value {
    let mut out = Vec::new();
    let at = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    if named {
        out.push(at("name"));
    }
    if row.namespaced {
        out.push(at("namespace"));
    }
    out.push(query("pretty", "string"));
    Value::Array(out)
}

fn operation(row: &Row, action: &str, gvk: &Value, queries: &[(&str, &str)], body: Option<Value>, answer: &str) -> Value {
    let group = row.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    let parameters: Vec<Value> = queries.iter().map(|(name, kind)| query(name, kind)).collect();
    let content = json!({"application/json": {"schema": reference(answer)}});
    let ok = |text: &str| json!({"description": text, "content": content});
    let mut responses = Map::new();
    responses.insert("200".into(), ok("OK"));
    match action {
        "post" | "put" | "patch" => {
            responses.insert("201".into(), ok("Created"));
        }
        "delete" => {
            responses.insert("202".into(), ok("Accepted"));
        }
        _ => {}
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    let mut op = json!({
        "tags": [format!("{group}_{}", row.version)],
        "description": format!("{action} {}", row.kind),
        "parameters": parameters,
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    });
    if let Some(body) = body {
        op["requestBody"] = body;
    }
    op
}

fn body(schema: &str, types: &[&str], required: bool) -> Value {
    let content: Map<String, Value> = types.iter().map(|t| ((*t).to_string(), json!({"schema": reference(schema)}))).collect();
    json!({"content": content, "required": required})
}

/// A patch is any JSON: what it must look like depends on its type.
fn patch_body() -> Value {
    let content: Map<String, Value> = PATCHES.iter().map(|t| ((*t).to_string(), json!({"schema": {"type": "object"}}))).collect();
    json!({"content": content, "required": true})
}

fn collection_item(row: &Row) -> Map<String, Value> {
    let (name, gvk) = (schema_name(row), gvk_of(row));
    let mut item = Map::new();
    if row.has_verb(Verb::List) {
        item.insert("get".into(), operation(row, "list", &gvk, LIST, None, &format!("{name}List")));
    }
    if row.has_verb(Verb::Create) {
        item.insert("post".into(), operation(row, "post", &gvk, WRITE, Some(body(&name, &["application/json"], true)), &name));
    }
    if row.has_verb(Verb::DeleteCollection) {
        let options = body(DELETE_OPTIONS, &["application/json"], false);
        let queries: Vec<(&str, &str)> = DELETE.iter().chain(LIST).copied().collect();
        item.insert("delete".into(), operation(row, "deletecollection", &gvk, &queries, Some(options), STATUS));
    }
    item.insert("parameters".into(), path_parameters(row, false));
    item
}

fn object_item(row: &Row) -> Map<String, Value> {
    let (name, gvk) = (schema_name(row), gvk_of(row));
    let mut item = Map::new();
    if row.has_verb(Verb::Get) {
        item.insert("get".into(), operation(row, "get", &gvk, NONE, None, &name));
    }
    if row.has_verb(Verb::Update) {
        item.insert("put".into(), operation(row, "put", &gvk, WRITE, Some(body(&name, &["application/json"], true)), &name));
    }
    if row.has_verb(Verb::Patch) {
        item.insert("patch".into(), operation(row, "patch", &gvk, PATCH, Some(patch_body()), &name));
    }
    if row.has_verb(Verb::Delete) {
        let options = body(DELETE_OPTIONS, &["application/json"], false);
        let answer = if row.rules.delete_returns_object { name.as_str() } else { STATUS };
        item.insert("delete".into(), operation(row, "delete", &gvk, DELETE, Some(options), answer));
    }
    item.insert("parameters".into(), path_parameters(row, true));
    item
}

fn sub_item(row: &Row, sub: &Sub) -> Map<String, Value> {
    let own = sub.gvk == row.gvk();
    let name = if own { schema_name(row) } else { schema::schema_name(&sub.gvk).unwrap_or_default().to_string() };
    let gvk = json!({"group": sub.gvk.group, "version": sub.gvk.version, "kind": sub.gvk.kind});
    let mut item = Map::new();
    for verb in sub.verbs.iter() {
        // Streams have no bodies that a schema could describe.
        if name.is_empty() || sub.name == "log" {
            let mut op = operation(row, "connect", &gvk, NONE, None, STATUS);
            op["responses"] = json!({"200": {"description": "OK"}});
            item.insert(method(verb).into(), op);
            continue;
        }
        let op = match verb {
            Verb::Get => operation(row, "get", &gvk, NONE, None, &name),
            Verb::Create => operation(row, "post", &gvk, WRITE, Some(body(&name, &["application/json"], true)), &name),
            Verb::Update => operation(row, "put", &gvk, WRITE, Some(body(&name, &["application/json"], true)), &name),
            Verb::Patch => operation(row, "patch", &gvk, PATCH, Some(patch_body()), &name),
            _ => operation(row, "delete", &gvk, DELETE, None, STATUS),
        };
        item.insert(method(verb).into(), op);
    }
    item.insert("parameters".into(), path_parameters(row, true));
    item
}

const fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::List | Verb::Watch => "get",
        Verb::Create => "post",
        Verb::Update => "put",
        Verb::Patch => "patch",
        Verb::Delete | Verb::DeleteCollection => "delete",
    }
}
