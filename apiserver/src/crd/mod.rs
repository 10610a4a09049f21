//! Custom resources: a CustomResourceDefinition puts rows into the table, and from there on they take the path of every other kind.

mod lifecycle;
pub(crate) mod structural;

use std::collections::BTreeMap;
use std::sync::Arc;

use kontiki_base::object::Gvk;
use kontiki_registry::columns::custom::CustomColumns;
use kontiki_registry::field::{Errors, Path};
use kontiki_registry::row::{Row, Stage, Sub, Verb, VerbSet};
use kontiki_registry::rules::CUSTOM_RULES;
use kontiki_registry::schema::decode::FieldValidation;
use kontiki_registry::status::Status;
use kontiki_registry::table::Registry;
use kontiki_registry::val::str_at;
use serde_json::{Map, Value, json};

use crate::error::Result;

pub(crate) use lifecycle::run;

/// What one version of a custom resource brings along besides its row.
#[derive(Debug)]
pub(crate) struct Custom {
    /// Its columns.
    pub(crate) columns: CustomColumns,
    /// Its OpenAPI schema.
    pub(crate) schema: Value,
    /// Where its scale is: replicas wanted, replicas there, selector. `None` without that subresource.
    pub(crate) scale: Option<[String; 3]>,
    /// Said to everybody who uses the version.
    pub(crate) deprecation: Option<String>,
    /// Its definition is being deleted: nothing new is created.
    pub(crate) terminating: bool,
}

impl Custom {
    /// Prunes and defaults an object; the paths of unknown fields are returned.
    pub(crate) fn shape(&self, object: &mut Value) -> Vec<String> {
        let unknown = structural::prune(object, &self.schema);
        structural::default(object, &self.schema);
        unknown
    }

    /// Takes out an empty status: the rules of all kinds may have put one in, and nobody set it.
    #[allow(clippy::unused_self, reason = "it is about custom resources only")]
    pub(crate) fn settle(&self, object: &mut Value) {
        if object["status"].as_object().is_some_and(Map::is_empty) {
            kontiki_registry::val::take(object, &["status"]);
        }
    }

    /// Checks an object against the schema.
    pub(crate) fn validate(&self, row: &Row, object: &Value) -> Result<()> {
        let mut errors = Errors::default();
        structural::validate(object, &self.schema, &mut errors);
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(row, str_at(object, &["metadata", "name"]), &errors)) }
    }

    /// What is said about unknown fields of an object that a client sent.
    pub(crate) fn check_fields(&self, row: &Row, object: &mut Value, mode: FieldValidation, warnings: &mut Vec<String>) -> Result<()> {
        let unknown: Vec<String> = self.shape(object).iter().map(|path| format!("unknown field {path:?}")).collect();
        if mode == FieldValidation::Strict && !unknown.is_empty() {
            let what = format!("{} in version {:?} cannot be handled as a {}", row.kind, row.version, row.kind);
            return Err(Status::bad_request(format!("{what}: strict decoding error: {}", unknown.join(", "))));
        }
        if mode == FieldValidation::Warn {
            warnings.extend(unknown);
        }
        warnings.extend(self.deprecation.clone());
        Ok(())
    }
}

/// The kinds that are served: the built-in ones and those that definitions add.
#[derive(Debug)]
pub(crate) struct Kinds {
    /// Their rows.
    pub(crate) registry: Arc<Registry>,
    customs: BTreeMap<Gvk, Arc<Custom>>,
}

impl Kinds {
    /// Only the built-in kinds.
    pub(crate) fn builtin() -> Self {
        Self { registry: Arc::new(Registry::builtin()), customs: BTreeMap::new() }
    }

    /// The built-in kinds and those of these definitions. A name that is taken is passed over: [`conflict`] says why.
    pub(crate) fn with(definitions: &[Value]) -> Self {
        let mut registry = Registry::builtin();
        let mut customs = BTreeMap::new();
        for definition in definitions {
            if conflict(&registry, definition).is_some() {
                continue;
            }
            for (row, custom) in rows(definition) {
                let gvk = row.gvk();
                if registry.add(row).is_ok() {
                    customs.insert(gvk, Arc::new(custom));
                }
            }
        }
        Self { registry: Arc::new(registry), customs }
    }

    /// What a custom resource brings along; `None` for a built-in kind.
    pub(crate) fn custom(&self, row: &Row) -> Option<Arc<Custom>> {
        if self.customs.is_empty() { None } else { self.customs.get(&row.gvk()).cloned() }
    }
}

/// Refuses a definition whose schemas are not structural. Other kinds pass.
pub(crate) fn check_definition(row: &Row, object: &Value) -> Result<()> {
    if row.group != "apiextensions.k8s.io" || row.kind != "CustomResourceDefinition" {
        return Ok(());
    }
    let mut errors = Errors::default();
    let versions = object["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (i, version) in versions.iter().enumerate() {
        // A definition of one version is checked in the form that it had when it could have no other.
        let at = if versions.len() == 1 { Path::new("spec.validation") } else { Path::new("spec.versions").index(i).child("schema") };
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            structural::check(schema, &at.child("openAPIV3Schema"), &mut errors);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(row, str_at(object, &["metadata", "name"]), &errors)) }
}

/// Why the names of a definition cannot be had: `PluralConflict` or `KindConflict`, and a text.
fn conflict(registry: &Registry, definition: &Value) -> Option<(&'static str, String)> {
    let spec = |field: &str| str_at(definition, &["spec", field]).to_owned();
    let names = |field: &str| str_at(definition, &["spec", "names", field]).to_owned();
    let (group, plural, kind) = (spec("group"), names("plural"), names("kind"));
    let mut same_group = registry.rows().filter(|row| row.group == group);
    let found = same_group.find(|row| row.plural == plural || row.kind == kind)?;
    if found.plural == plural {
        return Some(("PluralConflict", format!("{plural:?} is already in use")));
    }
    Some(("KindConflict", format!("{kind:?} is already in use")))
}

/// One row for every version that is served.
fn rows(definition: &Value) -> Vec<(Row, Custom)> {
    let versions = definition["spec"]["versions"].as_array().cloned().unwrap_or_default();
    let Some(storage) = versions.iter().find(|v| v["storage"] == true).and_then(|v| v["name"].as_str()) else { return Vec::new() };
    let served = versions.iter().filter(|v| v["served"] == true);
    served.map(|version| (row(definition, version, storage), custom(definition, version))).collect()
}

fn row(definition: &Value, version: &Value, storage: &str) -> Row {
    let spec = &definition["spec"];
    let name = |field: &str| str_at(spec, &["names", field]).to_owned();
    let list = |field: &str| {
        let values = spec["names"][field].as_array().into_iter().flatten().filter_map(Value::as_str);
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    let group = str_at(spec, &["group"]).to_owned();
    let gvk = |version: &str| Gvk { group: group.clone(), version: version.into(), kind: name("kind") };
    let own = gvk(str_at(version, &["name"]));
    let verbs = Verb::ALL.iter().fold(VerbSet::default(), |set, verb| set.with(*verb));
    let sub_verbs = VerbSet::default().with(Verb::Get).with(Verb::Patch).with(Verb::Update);
    let scale = Gvk { group: "autoscaling".into(), version: "v1".into(), kind: "Scale".into() };
    let subs = [("status", own.clone()), ("scale", scale)];
    let offered = |name: &str| version["subresources"][name].is_object();
    let subresources = subs.into_iter().filter(|(n, _)| offered(n)).map(|(n, gvk)| Sub { name: n.into(), gvk, verbs: sub_verbs }).collect();
    let or = |text: String, other: String| if text.is_empty() { other } else { text };
    let selectable = version["selectableFields"].as_array().into_iter().flatten().filter_map(|f| f["jsonPath"].as_str());
    Row {
        group: group.clone(),
        version: own.version.clone(),
        kind: own.kind.clone(),
        list_kind: or(name("listKind"), format!("{}List", own.kind)),
        plural: name("plural"),
        singular: or(name("singular"), own.kind.to_lowercase()),
        short: list("shortNames"),
        namespaced: spec["scope"] == "Namespaced",
        verbs,
        subresources,
        categories: list("categories"),
        storage: format!("/registry/{group}/{}", name("plural")),
        storage_version_hash: String::new(),
        stage: Stage::Stable,
        stored_as: gvk(storage),
        rules: &CUSTOM_RULES,
        schema: String::new(),
        selectable: Some(selectable.map(str::to_owned).collect()),
    }
}

fn custom(definition: &Value, version: &Value) -> Custom {
    let scale = &version["subresources"]["scale"];
    let path = |field: &str| str_at(scale, &[field]).trim_start_matches('.').to_owned();
    let paths = || ["specReplicasPath", "statusReplicasPath", "labelSelectorPath"].map(path);
    let named = format!(
        "{}/{} {}",
        str_at(definition, &["spec", "group"]),
        str_at(version, &["name"]),
        str_at(definition, &["spec", "names", "kind"])
    );
    let deprecation = (version["deprecated"] == true)
        .then(|| version["deprecationWarning"].as_str().map_or_else(|| format!("{named} is deprecated"), str::to_owned));
    Custom {
        columns: CustomColumns::of_version(version),
        schema: schema(version),
        scale: scale.is_object().then(paths),
        deprecation,
        terminating: definition["metadata"]["deletionTimestamp"].is_string(),
    }
}

/// The schema with the fields that every object has, whether the definition names them or not.
fn schema(version: &Value) -> Value {
    let mut schema = version["schema"]["openAPIV3Schema"].clone();
    if schema["properties"].is_object() {
        for (field, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
            if schema["properties"][field].is_null() {
                schema["properties"][field] = json!({"type": kind});
            }
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str) -> Value {
        let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object"}}});
        json!({"spec": {"group": "ex.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind}, "versions": [version("v1", true), version("v2", false)]}})
    }

    #[test]
    fn a_definition_is_a_row_per_version() {
        let kinds = Kinds::with(&[definition("foos", "Foo")]);
        for version in ["v1", "v2"] {
            let row = kinds.registry.resource("ex.com", version, "foos").unwrap();
            assert_eq!((row.list_kind.as_str(), row.singular.as_str(), row.storage.as_str()), ("FooList", "foo", "/registry/ex.com/foos"));
            assert_eq!(row.stored_as.version, "v1");
            assert!(row.has_status() && row.subresource("scale").is_none());
            assert!(kinds.custom(&row).is_some());
        }
        let pods = kinds.registry.resource("", "v1", "pods").unwrap();
        assert!(kinds.custom(&pods).is_none());
    }

    #[test]
    fn names_are_given_once() {
        let registry = Kinds::with(&[definition("foos", "Foo")]).registry;
        assert_eq!(conflict(&registry, &definition("foos", "Bar")).unwrap().0, "PluralConflict");
        assert_eq!(conflict(&registry, &definition("bars", "Foo")).unwrap().0, "KindConflict");
        assert_eq!(conflict(&registry, &definition("bars", "Bar")), None);
        let both = Kinds::with(&[definition("foos", "Foo"), definition("foos", "Bar")]);
        assert!(both.registry.kind(&Gvk { group: "ex.com".into(), version: "v1".into(), kind: "Bar".into() }).is_none());
    }
}
