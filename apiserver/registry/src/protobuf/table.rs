//! The message table of Kubernetes' built-in kinds: which fields a message has, their JSON names and how Go treats their zero value.
//!
//! Three text tables are parsed once: `protobuf-fields.tsv` (the published `.proto` files), `protobuf-quirks.tsv` (JSON names that differ, fields whose
//! message is merged into its parent) and `protobuf-presence.tsv` (pointer or value, `omitempty` or not: reflection data of the Go types).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use kontiki_base::object::Gvk;

/// Index of a message in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId(u16);

impl MessageId {
    /// Position in the table, from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Str,
    /// A boolean.
    Bool,
    /// A 32-bit integer.
    I32,
    /// A 64-bit integer.
    I64,
    /// A floating point number.
    F64,
    /// Bytes, base64 in JSON.
    Bytes,
    /// Another message.
    Msg(MessageId),
}

/// How often a field may occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// At most once.
    One,
    /// A list.
    Many,
    /// A map from strings.
    Map,
}

/// One field of a message.
#[derive(Debug)]
pub struct Field {
    /// Number on the wire.
    pub number: u32,
    /// Name in JSON.
    pub json: &'static str,
    /// How often.
    pub label: Label,
    /// What.
    pub kind: Kind,
    /// Go holds a pointer: a zero value that was sent is a value, not an absence.
    pub pointer: bool,
    /// No `omitempty`: the zero value is printed.
    pub keep: bool,
    /// The message's fields stand in the parent's JSON object.
    pub inline: bool,
}

/// Messages whose JSON is not an object of their fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An object with the message's fields.
    Plain,
    /// Seconds as RFC 3339.
    Time,
    /// Microseconds as RFC 3339.
    MicroTime,
    /// Nanoseconds in Go's notation.
    Duration,
    /// Text of a quantity.
    Quantity,
    /// A number or text.
    IntOrString,
    /// Any JSON, carried as bytes in field 1.
    RawJson,
    /// A list in field 1.
    Items,
    /// A schema or a boolean.
    SchemaOrBool,
    /// A schema or a list of schemas.
    SchemaOrArray,
    /// A schema or a list of strings.
    SchemaOrStrings,
}

/// One message type.
#[derive(Debug)]
pub struct Message {
    /// Package, such as `k8s.io.api.core.v1`.
    pub package: &'static str,
    /// Name within the package.
    pub name: &'static str,
    /// How it looks in JSON.
    pub shape: Shape,
    /// Fields, by number.
    pub fields: Vec<Field>,
}

impl Message {
    /// The field with a number.
    pub fn field(&self, number: u32) -> Option<&Field> {
        self.fields.binary_search_by_key(&number, |f| f.number).ok().map(|i| &self.fields[i])
    }
}

/// All messages.
#[derive(Debug)]
pub struct Table {
    messages: Vec<Message>,
    index: BTreeMap<(&'static str, &'static str), MessageId>,
}

const META: &str = "k8s.io.apimachinery.pkg.apis.meta.v1";

/// Kinds of `meta.k8s.io/v1` that are registered in every group and version.
const META_KINDS: &[&str] = &[
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "ListOptions",
    "PartialObjectMetadata",
    "PartialObjectMetadataList",
    "PatchOptions",
    "Status",
    "UpdateOptions",
    "WatchEvent",
];

impl Table {
    /// The table, parsed at first use.
    pub fn get() -> &'static Self {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| {
            parse(
                include_str!("../../data/protobuf-fields.tsv"),
                include_str!("../../data/protobuf-quirks.tsv"),
                include_str!("../../data/protobuf-presence.tsv"),
            )
        })
    }

    /// A message by its index.
    pub fn message(&self, id: MessageId) -> &Message {
        &self.messages[usize::from(id.0)]
    }

    /// A message by package and name.
    pub fn named(&self, package: &str, name: &str) -> Option<MessageId> {
        self.index.get(&(package, name)).copied()
    }

    /// Every message, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (MessageId, &Message)> {
        self.messages.iter().enumerate().map(|(i, m)| (MessageId(i as u16), m))
    }

    /// The message of a kind.
    pub fn of_kind(&self, gvk: &Gvk) -> Option<MessageId> {
        let own = self.named(&package_of(&gvk.group, &gvk.version), &gvk.kind);
        own.or_else(|| META_KINDS.contains(&gvk.kind.as_str()).then(|| self.named(META, &gvk.kind)).flatten())
    }
}

/// The protobuf package of a group and version.
pub fn package_of(group: &str, version: &str) -> String {
    match group {
        "" => format!("k8s.io.api.core.{version}"),
        "meta.k8s.io" => format!("k8s.io.apimachinery.pkg.apis.meta.{version}"),
        "apiextensions.k8s.io" => format!("k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.{version}"),
        "apiregistration.k8s.io" => format!("k8s.io.kube_aggregator.pkg.apis.apiregistration.{version}"),
        "metrics.k8s.io" => format!("k8s.io.metrics.pkg.apis.metrics.{version}"),
        _ => format!("k8s.io.api.{}.{version}", group.split('.').next().unwrap_or_default()),
    }
}

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().skip(1).filter(|l| !l.is_empty()).map(|l| l.split('\t').collect())
}

fn shape_of(package: &str, name: &str) -> Shape {
    match (package.rsplit('.').nth(1).unwrap_or_default(), name) {
        ("meta", "Time") => Shape::Time,
        ("meta", "MicroTime") => Shape::MicroTime,
        ("meta", "Duration") => Shape::Duration,
        ("meta", "FieldsV1") | ("apiextensions", "JSON") => Shape::RawJson,
        ("meta", "Verbs") | (_, "ExtraValue") => Shape::Items,
        ("api", "Quantity" | "QuantityValue") => Shape::Quantity,
        ("util", "IntOrString") => Shape::IntOrString,
        ("pkg", "RawExtension") => Shape::RawJson,
        ("apiextensions", "JSONSchemaPropsOrBool") => Shape::SchemaOrBool,
        ("apiextensions", "JSONSchemaPropsOrArray") => Shape::SchemaOrArray,
        ("apiextensions", "JSONSchemaPropsOrStringArray") => Shape::SchemaOrStrings,
        _ => Shape::Plain,
    }
}

/// Parses the three texts. They are part of the program, so a malformed row is a bug, found by every test that touches the table.
fn parse(fields: &'static str, quirks: &'static str, presence: &'static str) -> Table {
    let mut messages: Vec<Message> = Vec::new();
    let mut index = BTreeMap::new();
    // A message without fields has no row of its own; it is named by the fields that hold it.
    let named = rows(fields).map(|r| (r[0], r[1]));
    let held = rows(fields).map(|r| type_name(r[0], r[4], r[5]).1).filter(|(_, name)| scalar_kind(name).is_none());
    for key in named.chain(held) {
        index.entry(key).or_insert_with(|| {
            messages.push(Message { package: key.0, name: key.1, shape: shape_of(key.0, key.1), fields: Vec::new() });
            MessageId(u16::try_from(messages.len() - 1).expect("a few hundred messages"))
        });
    }
    let go: BTreeMap<_, _> = rows(presence).map(|r| ((r[0], r[1], r[2]), r[4])).collect();
    let odd: BTreeMap<_, _> = rows(quirks).filter(|r| r[3] != "-").map(|r| ((package_of_path(r[1]), r[2], r[3]), (r[0], r[5]))).collect();
    for row in rows(fields) {
        let (package, message, number, name) = (row[0], row[1], row[2], row[3]);
        let (label, kind) = type_of(&index, package, row[4], row[5]);
        let is_message = label == Label::One && matches!(kind, Kind::Msg(_));
        let words = go.get(&(package, message, number)).copied().unwrap_or("");
        // A list that is a message of its own can be nil, whatever holds it.
        let list = matches!(kind, Kind::Msg(id) if messages[id.index()].shape == Shape::Items);
        let pointer = words.contains("ptr") || (is_message && !words.contains("val")) || (label == Label::One && list);
        let quirk = odd.get(&(package.to_owned(), message, name)).copied();
        let field = Field {
            number: number.parse().expect("field numbers are numbers"),
            json: quirk.filter(|q| q.0 == "renamed" && q.1 != "-").map_or(name, |q| q.1),
            label,
            kind,
            pointer,
            keep: words.contains("keep"),
            inline: quirk.is_some_and(|q| q.0 == "inline"),
        };
        messages[usize::from(index[&(package, message)].0)].fields.push(field);
    }
    for message in &mut messages {
        message.fields.sort_by_key(|f| f.number);
    }
    Table { messages, index }
}

/// `api/core/v1` as the quirks table names `k8s.io.api.core.v1`.
fn package_of_path(path: &str) -> String {
    format!("k8s.io.{}", path.replace('-', "_").replace('/', "."))
}

fn scalar_kind(name: &str) -> Option<Kind> {
    Some(match name {
        "string" => Kind::Str,
        "bool" => Kind::Bool,
        "int32" => Kind::I32,
        "int64" => Kind::I64,
        "double" => Kind::F64,
        "bytes" => Kind::Bytes,
        _ => return None,
    })
}

/// Label, and package and name of the type. A name without a package is of the package that it stands in.
fn type_name(package: &'static str, label: &str, text: &'static str) -> (Label, (&'static str, &'static str)) {
    let (label, name) = match label {
        "map" => {
            let value = text.strip_prefix("map<string, ").and_then(|t| t.strip_suffix('>')).expect("maps are from strings");
            (Label::Map, value.trim_start_matches('.'))
        }
        "repeated" => (Label::Many, text),
        _ => (Label::One, text),
    };
    (label, name.rsplit_once('.').unwrap_or((package, name)))
}

fn type_of(
    index: &BTreeMap<(&'static str, &'static str), MessageId>,
    package: &'static str,
    label: &str,
    text: &'static str,
) -> (Label, Kind) {
    let (label, key) = type_name(package, label, text);
    (label, scalar_kind(key.1).unwrap_or_else(|| Kind::Msg(index[&key])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_every_group_are_found() {
        let table = Table::get();
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("apps", "v1", "Deployment"),
            ("rbac.authorization.k8s.io", "v1", "Role"),
            ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            ("apiregistration.k8s.io", "v1", "APIService"),
            ("metrics.k8s.io", "v1beta1", "PodMetrics"),
            ("policy", "v1", "DeleteOptions"),
            ("anything", "v7", "Status"),
        ] {
            let gvk = Gvk { group: group.into(), version: version.into(), kind: kind.into() };
            assert!(table.of_kind(&gvk).is_some(), "{gvk}");
        }
        assert_eq!(table.of_kind(&Gvk::from_api_version("v1", "Deployment")), None);
    }

    #[test]
    fn every_field_number_is_used_once() {
        for (_, m) in Table::get().iter() {
            assert!(m.fields.windows(2).all(|w| w[0].number < w[1].number), "{}.{}", m.package, m.name);
            assert!(m.fields.iter().all(|f| !f.inline || f.label == Label::One), "{}.{}", m.package, m.name);
        }
    }
}
