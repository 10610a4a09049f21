//! Structural schemas of custom resources: pruning, defaults, validation. The texts are those of kube-apiserver.
//!
//! Not checked: `pattern`, `format` and CEL rules. Everything else of a structural schema is.

use kontiki_registry::field::{Errors, Path, Reason};
use serde_json::{Map, Value};

/// Fields that every object has, whatever its schema says.
const OBJECT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata"];

fn keeps_unknown(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// Takes out what the schema does not know, and nulls that mean "not set"; the paths of the unknown fields are returned.
pub(crate) fn prune(object: &mut Value, schema: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_at(object, schema, true, "", &mut unknown);
    unknown
}

fn prune_at(value: &mut Value, schema: &Value, is_object: bool, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let embedded = is_object || schema["x-kubernetes-embedded-resource"] == true;
            map.retain(|key, child| {
                let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if embedded && OBJECT_FIELDS.contains(&key.as_str()) {
                    return true;
                }
                let Some(known) = child_schema(schema, key) else {
                    let keep = keeps_unknown(schema) || schema["additionalProperties"] == true;
                    if !keep {
                        unknown.push(here);
                    }
                    return keep;
                };
                if child.is_null() && known["nullable"] != true {
                    return known.get("default").is_some();
                }
                prune_at(child, known, false, &here, unknown);
                true
            });
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                prune_at(item, &schema["items"], false, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}

fn child_schema<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema["properties"].get(key).or_else(|| Some(&schema["additionalProperties"]).filter(|a| a.is_object()))
}

/// Fills in defaults, below whatever is there.
pub(crate) fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            for (key, child) in schema["properties"].as_object().into_iter().flatten() {
                let missing = map.get(key).is_none_or(|v| v.is_null() && child["nullable"] != true);
                if let (true, Some(fill)) = (missing, child.get("default")) {
                    map.insert(key.clone(), fill.clone());
                }
            }
            for (key, child) in map.iter_mut() {
                if let Some(known) = child_schema(schema, key) {
                    default(child, known);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| default(item, &schema["items"])),
        _ => {}
    }
}

/// Checks an object.
pub(crate) fn validate(object: &Value, schema: &Value, errors: &mut Errors) {
    validate_at(object, schema, "", errors);
}

fn path(text: &str) -> Path {
    if text.is_empty() { Path::root() } else { Path::new(text) }
}

fn validate_at(value: &Value, schema: &Value, at: &str, errors: &mut Errors) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if !has_type(value, schema) {
        let (is, want) = (type_of(value), schema["type"].as_str().unwrap_or("integer or string"));
        return errors.push(Reason::TypeInvalid, &path(at), is, format!("{at} in body must be of type {want}: {is:?}"));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed.iter().map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errors.unsupported(&path(at), value.clone(), &names);
    }
    match value {
        Value::Object(map) => validate_map(map, schema, at, errors),
        Value::Array(items) => validate_list(items, schema, at, errors),
        Value::String(text) => {
            let count = text.chars().count();
            bound(schema, "maxLength", |max| count as f64 > max, at, value, "should be at most {} chars long", errors);
            bound(schema, "minLength", |min| (count as f64) < min, at, value, "should be at least {} chars long", errors);
        }
        Value::Number(number) => validate_number(number.as_f64().unwrap_or(0.0), value, schema, at, errors),
        Value::Bool(_) | Value::Null => {}
    }
    validate_logic(value, schema, at, errors);
}

fn validate_map(map: &Map<String, Value>, schema: &Value, at: &str, errors: &mut Errors) {
    let child_path = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(required) {
            errors.required(&path(&child_path(required)), "");
        }
    }
    for (key, child) in map {
        if at.is_empty() && OBJECT_FIELDS.contains(&key.as_str()) {
            continue;
        }
        if let Some(known) = child_schema(schema, key) {
            validate_at(child, known, &child_path(key), errors);
        }
    }
    let count = map.len() as f64;
    let whole = Value::Object(map.clone());
    bound(schema, "maxProperties", |max| count > max, at, &whole, "should have at most {} properties", errors);
    bound(schema, "minProperties", |min| count < min, at, &whole, "should have at least {} properties", errors);
}

fn validate_list(items: &[Value], schema: &Value, at: &str, errors: &mut Errors) {
    for (i, item) in items.iter().enumerate() {
        validate_at(item, &schema["items"], &format!("{at}[{i}]"), errors);
    }
    let count = items.len() as f64;
    let whole = Value::Array(items.to_vec());
    bound(schema, "maxItems", |max| count > max, at, &whole, "should have at most {} items", errors);
    bound(schema, "minItems", |min| count < min, at, &whole, "should have at least {} items", errors);
    let identity: fn(&Value, &Value) -> Value = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => |item, _| item.clone(),
        Some("map") => |item, keys| {
            let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
            keys.filter(|k| !item[*k].is_null()).map(|k| (k.to_owned(), item[k].clone())).collect::<Map<_, _>>().into()
        },
        _ => return,
    };
    let mut seen = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let id = identity(item, &schema["x-kubernetes-list-map-keys"]);
        if seen.contains(&id) {
            errors.duplicate(&path(&format!("{at}[{i}]")), id);
        } else {
            seen.push(id);
        }
    }
}

fn validate_number(number: f64, value: &Value, schema: &Value, at: &str, errors: &mut Errors) {
    let (less, more) = (schema["exclusiveMaximum"] == true, schema["exclusiveMinimum"] == true);
    let (upper, lower) = (
        if less { "should be less than {}" } else { "should be less than or equal to {}" },
        if more { "should be greater than {}" } else { "should be greater than or equal to {}" },
    );
    bound(schema, "maximum", |max| if less { number >= max } else { number > max }, at, value, upper, errors);
    bound(schema, "minimum", |min| if more { number <= min } else { number < min }, at, value, lower, errors);
    let uneven = |of: f64| of != 0.0 && ((number / of) - (number / of).round()).abs() > 1e-9;
    bound(schema, "multipleOf", uneven, at, value, "should be a multiple of {}", errors);
}

fn bound(schema: &Value, key: &str, broken: impl Fn(f64) -> bool, at: &str, value: &Value, text: &str, errors: &mut Errors) {
    let limit = &schema[key];
    if limit.as_f64().is_some_and(broken) {
        let detail = format!("{at} in body {}", text.replace("{}", &limit.to_string()));
        errors.invalid(&path(at), value.clone(), detail);
    }
}

fn validate_logic(value: &Value, schema: &Value, at: &str, errors: &mut Errors) {
    let fits = |schema: &Value| {
        let mut found = Errors::default();
        validate_at(value, schema, at, &mut found);
        found.is_empty()
    };
    let branches = |key: &str| schema[key].as_array().map(Vec::as_slice).unwrap_or_default();
    branches("allOf").iter().for_each(|branch| validate_at(value, branch, at, errors));
    let mut refuse = |how: &str| errors.invalid(&path(at), value.clone(), format!("{at} in body must validate {how}"));
    if !branches("anyOf").is_empty() && !branches("anyOf").iter().any(fits) {
        refuse("at least one schema (anyOf)");
    }
    if !branches("oneOf").is_empty() && branches("oneOf").iter().filter(|b| fits(b)).count() != 1 {
        refuse("one and only one schema (oneOf)");
    }
    if schema["not"].is_object() && fits(&schema["not"]) {
        refuse("as not to match the schema (not)");
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(value: &Value, schema: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return matches!(type_of(value), "integer" | "string");
    }
    match schema["type"].as_str() {
        None | Some("") => true,
        Some("number") => value.is_number(),
        Some("integer") => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0),
        Some(want) => type_of(value) == want,
    }
}

/// Checks that a schema is structural: every node says its type, or says that it has none.
pub(crate) fn check(schema: &Value, at: &Path, errors: &mut Errors) {
    check_node(schema, at, "at the root", errors);
}

fn check_node(schema: &Value, at: &Path, place: &str, errors: &mut Errors) {
    for (key, child) in schema["properties"].as_object().into_iter().flatten() {
        check_node(child, &at.child("properties").key(key), "for specified object fields", errors);
    }
    if schema["additionalProperties"].is_object() {
        check_node(&schema["additionalProperties"], &at.child("additionalProperties"), "for specified object fields", errors);
    }
    if schema["items"].is_object() {
        check_node(&schema["items"], &at.child("items"), "for specified array items", errors);
    }
    let untyped = schema["x-kubernetes-int-or-string"] == true || keeps_unknown(schema);
    match schema["type"].as_str().unwrap_or_default() {
        "" if !untyped || place == "at the root" => errors.required(&at.child("type"), &format!("must not be empty {place}")),
        "object" | "" => {}
        other if place == "at the root" => errors.invalid(&at.child("type"), other, "must be object at the root"),
        "array" if schema["items"].is_null() => errors.required(&at.child("items"), "must be specified"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["replicas"], "properties": {
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
            "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "ios": {"x-kubernetes-int-or-string": true},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                      "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 3, "items": {"type": "string"}},
        }}}})
    }

    #[test]
    fn unknown_fields_leave_and_defaults_come() {
        let mut object = json!({"apiVersion": "x/v1", "kind": "F", "metadata": {"name": "f"}, "extra": 1,
            "spec": {"replicas": 2, "mode": null, "unknown": 1, "any": {"x": [1]}, "map": {"k": 1}, "items": [{"name": "a", "v": 1}]}});
        assert_eq!(prune(&mut object, &schema()), ["extra", "spec.items[0].v", "spec.unknown"]);
        default(&mut object, &schema());
        let spec = json!({"replicas": 2, "mode": "a", "any": {"x": [1]}, "map": {"k": 1}, "items": [{"name": "a"}]});
        assert_eq!(object, json!({"apiVersion": "x/v1", "kind": "F", "metadata": {"name": "f"}, "spec": spec}));
    }

    #[test]
    fn every_node_says_its_type() {
        let texts = |schema: Value| {
            let mut errors = Errors::default();
            check(&schema, &Path::new("s"), &mut errors);
            errors.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(schema()), Vec::<String>::new());
        let expected = [
            "s.properties[a].type: Required value: must not be empty for specified object fields",
            "s.type: Required value: must not be empty at the root",
        ];
        assert_eq!(texts(json!({"properties": {"a": {}}})), expected);
        assert_eq!(texts(json!({"type": "string"})), ["s.type: Invalid value: \"string\": must be object at the root"]);
        assert_eq!(
            texts(json!({"type": "object", "properties": {"l": {"type": "array"}}})),
            ["s.properties[l].items: Required value: must be specified"]
        );
    }

    #[test]
    fn violations_are_told_in_kubernetes_words() {
        let texts = |spec: Value| {
            let mut errors = Errors::default();
            validate(&json!({"metadata": {}, "spec": spec}), &schema(), &mut errors);
            errors.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let table = [
            (json!({"replicas": 3, "ios": "50%", "map": {"k": 1}}), vec![]),
            (json!({}), vec!["spec.replicas: Required value"]),
            (json!({"replicas": 11}), vec!["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"]),
            (json!({"replicas": 1, "mode": "z"}), vec!["spec.mode: Unsupported value: \"z\": supported values: \"a\", \"b\""]),
            (
                json!({"replicas": "2"}),
                vec!["spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""],
            ),
            (
                json!({"replicas": 1, "items": [{"name": "a"}, {"name": "a"}], "tags": ["x", "x"]}),
                vec!["spec.items[1]: Duplicate value: {\"name\":\"a\"}", "spec.tags[1]: Duplicate value: \"x\""],
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(texts(spec.clone()), expected, "{spec}");
        }
        assert_eq!(texts(json!({"replicas": 1, "tags": ["a", "b", "c", "d"], "ios": true, "map": {"k": "v"}})).len(), 3);
    }
}
