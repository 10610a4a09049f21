//! `metadata.managedFields`: reading and writing its entries, and what writes other than apply do to ownership.

use std::collections::BTreeMap;

use kontiki_base::object::Gvk;
use serde_json::{Map, Value, json};

use super::fields::{Element, Set};
use super::keys::{self, Type};
use super::typed::{self, Comparison};

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Everything else.
    Update,
}

impl Operation {
    const fn text(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who writes what kind of object where.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Kind of the object, in the version of the request.
    pub gvk: &'a Gvk,
    /// Schema of the object: [`keys::of_kind`] or a custom resource's own.
    pub schema: Type<'a>,
    /// The field manager.
    pub manager: &'a str,
    /// The subresource that is written through; empty for the object itself.
    pub subresource: &'a str,
    /// RFC 3339 seconds.
    pub now: &'a str,
    /// Top-level fields that this endpoint never changes, such as `status` for the object itself.
    pub ignored: &'a [&'a str],
}

impl<'a> Writer<'a> {
    /// A writer of a built-in kind. The object's endpoint does not own `status`, the status endpoint owns nothing else.
    pub fn new(gvk: &'a Gvk, manager: &'a str, subresource: &'a str, now: &'a str) -> Self {
        let ignored: &[&str] = if subresource == "status" { &["spec"] } else { &["status"] };
        Self { gvk, schema: keys::of_kind(gvk), manager, subresource, now, ignored }
    }

    /// The same writer of a custom resource with this OpenAPI schema.
    #[must_use]
    pub fn with_schema(self, schema: &'a Value) -> Self {
        Self { schema: Type::Crd(schema), ..self }
    }

    pub(super) fn id(&self, op: Operation) -> Id {
        Id {
            operation: op,
            manager: self.manager.to_owned(),
            // An applier is the same one in every version.
            api_version: if op == Operation::Apply { String::new() } else { self.gvk.api_version() },
            subresource: self.subresource.to_owned(),
        }
    }

    pub(super) fn ignored_set(&self) -> Set {
        let mut set = Set::default();
        for name in self.ignored {
            set.insert(&[Element::Field((*name).to_owned())]);
        }
        set
    }
}

/// What tells managers apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub operation: Operation,
    pub manager: String,
    pub api_version: String,
    pub subresource: String,
}

/// What a manager owns.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub api_version: String,
    pub set: Set,
    pub time: Option<String>,
}

/// All managers of an object.
pub(super) type Managers = BTreeMap<Id, Entry>;

/// More managers than this that are no appliers, and the oldest become one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Reads `metadata.managedFields`. `None` if it is not well formed: then nothing is known.
pub(super) fn decode(object: &Value) -> Option<Managers> {
    let mut managers = Managers::new();
    let Some(list) = object.pointer("/metadata/managedFields").filter(|v| !v.is_null()) else { return Some(managers) };
    for entry in list.as_array()? {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let api_version = text("apiVersion");
        if text("fieldsType") != "FieldsV1" || api_version.is_empty() {
            return None;
        }
        let set = Set::from_json(entry.get("fieldsV1").unwrap_or(&Value::Object(Map::new())))?;
        let id_version = if operation == Operation::Apply { String::new() } else { api_version.clone() };
        let id = Id { operation, manager: text("manager"), api_version: id_version, subresource: text("subresource") };
        managers.insert(id, Entry { api_version, set, time: Some(text("time")).filter(|t| !t.is_empty()) });
    }
    Some(managers)
}

/// Writes `metadata.managedFields`; without managers there is none.
pub(super) fn encode(object: &mut Value, managers: &Managers) {
    let mut sorted: Vec<_> = managers.iter().filter(|(_, e)| !e.set.is_empty()).collect();
    sorted.sort_by(|(a, x), (b, y)| (a.operation, &x.time, *a).cmp(&(b.operation, &y.time, *b)));
    let list: Vec<Value> = sorted.into_iter().map(|(id, entry)| entry_json(id, entry)).collect();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if !list.is_empty() {
            metadata.insert("managedFields".into(), Value::Array(list));
        }
    }
}

fn entry_json(id: &Id, entry: &Entry) -> Value {
    let mut json = json!({
        "manager": id.manager,
        "operation": id.operation.text(),
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.set.to_json(),
    });
    if let Some(time) = &entry.time {
        json["time"] = time.as_str().into();
    }
    if !id.subresource.is_empty() {
        json["subresource"] = id.subresource.as_str().into();
    }
    json
}

/// Fields that the server keeps and nobody owns.
pub(super) fn unowned() -> Set {
    let mut set = Set::default();
    for name in ["apiVersion", "kind", "metadata"] {
        set.insert(&[Element::Field(name.into())]);
    }
    let metadata =
        ["name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion"];
    for name in metadata {
        set.insert(&[Element::Field("metadata".into()), Element::Field(name.into())]);
    }
    set
}

/// An object without its managed fields.
pub(super) fn without_managed(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// Takes what changed away from everybody but `writer`.
pub(super) fn take_away(managers: &mut Managers, change: &Comparison, writer: Option<&Id>) {
    let taken = change.modified.union(&change.added).union(&change.removed);
    managers.retain(|id, entry| {
        if Some(id) != writer {
            entry.set = entry.set.difference(&taken);
        }
        !entry.set.is_empty()
    });
}

/// Gives the fields that a plain write changed to its manager.
pub(super) fn record_update(managers: &mut Managers, old: &Value, new: &Value, writer: &Writer<'_>) {
    let change = typed::compare(writer.schema, old, new);
    take_away(managers, &change, None);
    let taken = change.modified.union(&change.added).recursive_difference(&writer.ignored_set()).difference(&unowned());
    if taken.is_empty() {
        return;
    }
    let id = writer.id(Operation::Update);
    let owned = managers.get(&id).map_or_else(|| taken.clone(), |e| e.set.union(&taken));
    managers.insert(id, Entry { api_version: writer.gvk.api_version(), set: owned, time: Some(writer.now.to_owned()) });
}

/// Makes one entry per version of the oldest updaters when there are too many.
pub(super) fn cap(managers: &mut Managers) {
    let mut updaters: Vec<Id> = managers.keys().filter(|id| id.operation == Operation::Update).cloned().collect();
    let mut count = updaters.len();
    updaters.sort_by(|a, b| (&managers[a].time, a).cmp(&(&managers[b].time, b)));
    let mut first: BTreeMap<String, Id> = BTreeMap::new();
    for id in updaters {
        if count <= MAX_UPDATERS {
            return;
        }
        let Some(older) = first.get(&id.api_version).cloned() else {
            first.insert(id.api_version.clone(), id);
            continue;
        };
        let bucket =
            Id { operation: Operation::Update, manager: ANCIENT.into(), api_version: id.api_version.clone(), subresource: String::new() };
        let base = managers.remove(&bucket).or_else(|| managers.remove(&older));
        if let (Some(base), Some(entry)) = (base, managers.remove(&id)) {
            let merged = Entry { api_version: entry.api_version, set: base.set.union(&entry.set), time: entry.time };
            managers.insert(bucket, merged);
            count -= 1;
        }
    }
}

/// Notes in `new` who owns what after a write by `manager` that led from `old` to `new`; `old` is `None` when the object is created.
///
/// Call it with the object as the client wants it, defaults included, before admission and before the kind's own rules change it: what those add is
/// nobody's. A write to `scale` is one of the parent, with subresource `scale`. [`Operation::Apply`] changes nothing here: [`super::apply()`] has already
/// written down what it took.
///
/// Entries that the request carries count, unless it came through a subresource; `[]` or `[{}]` forgets all of them. An object that nobody tracks stays
/// untracked. What cannot be read is forgotten: bookkeeping never fails a write.
pub fn update_managed(old: Option<&Value>, new: &mut Value, gvk: &Gvk, manager: &str, op: Operation, subresource: &str, now: &str) {
    let writer = Writer::new(gvk, manager, subresource, now);
    if op == Operation::Update {
        update(old, new, &writer);
    }
}

/// [`update_managed`] for any writer.
pub fn update(old: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let given = new.pointer("/metadata/managedFields").and_then(Value::as_array);
    let reset = writer.subresource.is_empty()
        && given.is_some_and(|list| list.is_empty() || matches!(list.as_slice(), [Value::Object(only)] if only.is_empty()));
    let live = || old.and_then(decode).unwrap_or_default();
    let mut managers = match () {
        () if reset => Managers::new(),
        () if writer.subresource.is_empty() => decode(new).filter(|m| !m.is_empty()).unwrap_or_else(live),
        () => live(),
    };
    if old.is_some() && managers.is_empty() {
        encode(new, &managers);
        return;
    }
    let nothing = json!({});
    let (before, after) = (without_managed(old.unwrap_or(&nothing)), without_managed(new));
    record_update(&mut managers, &writer.schema.normalized(&before), &writer.schema.normalized(&after), writer);
    cap(&mut managers);
    encode(new, &managers);
}
