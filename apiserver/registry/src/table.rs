//! The table of kinds. Built-in rows come from `data/resources.tsv`; rows of custom resources are added and removed at run time.

use std::collections::BTreeMap;
use std::sync::Arc;

use kontiki_base::object::Gvk;

use crate::row::{Row, Stage, Sub, VerbSet};
use crate::rules;

/// One line per resource: names, scope, verbs, subresources, storage key, as kube-apiserver 1.36 serves them.
const RESOURCES: &str = include_str!("../data/resources.tsv");

/// Groups in the order in which discovery lists them (kube-aggregator priorities); others follow by name.
pub const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// A group with its versions, the preferred one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name; empty for the core group.
    pub name: String,
    /// Versions, the preferred one first.
    pub versions: Vec<String>,
}

/// A row cannot be added because its group, version and plural or its kind are taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{gvk} ({plural}) is already served")]
pub struct Taken {
    /// What was to be added.
    pub gvk: Gvk,
    /// Under this name.
    pub plural: String,
}

/// All kinds that are served. Cheap to clone: a server that changes it replaces the whole.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// By group, version, plural; iteration order is that of discovery once groups are ordered.
    by_name: BTreeMap<(String, String, String), Arc<Row>>,
    by_kind: BTreeMap<Gvk, Arc<Row>>,
}

impl Registry {
    /// The built-in kinds.
    pub fn builtin() -> Self {
        let mut registry = Self::default();
        for line in RESOURCES.lines().skip(1).filter(|l| !l.is_empty()) {
            if let Some(row) = parse_line(line) {
                registry.add(row).expect("the table of built-in kinds has no row twice");
            }
        }
        registry
    }

    /// Adds a kind, such as one version of a custom resource.
    pub fn add(&mut self, row: Row) -> Result<Arc<Row>, Taken> {
        let name = (row.group.clone(), row.version.clone(), row.plural.clone());
        let gvk = row.gvk();
        if self.by_name.contains_key(&name) || self.by_kind.contains_key(&gvk) {
            return Err(Taken { gvk, plural: row.plural });
        }
        let row = Arc::new(row);
        self.by_name.insert(name, row.clone());
        self.by_kind.insert(gvk, row.clone());
        Ok(row)
    }

    /// Removes a kind.
    pub fn remove(&mut self, gvk: &Gvk) -> Option<Arc<Row>> {
        let row = self.by_kind.remove(gvk)?;
        self.by_name.remove(&(row.group.clone(), row.version.clone(), row.plural.clone()));
        Some(row)
    }

    /// The kind behind a path.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Row>> {
        self.by_name.get(&(group.into(), version.into(), plural.into())).cloned()
    }

    /// The row of a kind.
    pub fn kind(&self, gvk: &Gvk) -> Option<Arc<Row>> {
        self.by_kind.get(gvk).cloned()
    }

    /// Every row, by group, version and plural name.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.by_name.values()
    }

    /// The rows of one group version, by plural name.
    pub fn rows_of<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Row>> {
        self.rows().filter(move |r| r.group == group && r.version == version)
    }

    /// One row per kind of storage: what a server that reads the whole store has to know. Where versions share storage, it is
    /// the row of the version that is stored.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows().filter(|r| r.is_stored() && r.gvk() == r.stored_as)
    }

    /// The row whose storage a key belongs to.
    pub fn row_of_key(&self, key: &[u8]) -> Option<&Arc<Row>> {
        self.stored().find(|r| r.key_of(key).is_some())
    }

    /// Groups in the order of discovery, the core group first.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: BTreeMap<(usize, &str), Vec<&str>> = BTreeMap::new();
        for row in self.rows() {
            let place = GROUP_ORDER.iter().position(|g| *g == row.group).unwrap_or(GROUP_ORDER.len());
            let versions = groups.entry((place, &row.group)).or_default();
            if !versions.contains(&row.version.as_str()) {
                versions.push(&row.version);
            }
        }
        let finish = |((_, name), mut versions): ((usize, &str), Vec<&str>)| {
            versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
            Group { name: name.into(), versions: versions.into_iter().map(Into::into).collect() }
        };
        groups.into_iter().map(finish).collect()
    }

    /// Whether any kind of the group is served.
    pub fn has_group(&self, group: &str) -> bool {
        self.rows().any(|r| r.group == group)
    }

    /// Whether any kind of the group version is served.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.rows_of(group, version).next().is_some()
    }
}

/// Order of versions (apimachinery `version.CompareKubeAwareVersionStrings`): stable before beta before alpha, higher first.
pub fn version_rank(v: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = v.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (3, 0),
            s if s.starts_with("beta") => (2, s[4..].parse().ok()?),
            s if s.starts_with("alpha") => (1, s[5..].parse().ok()?),
            _ => return None,
        };
        Some((stage, major, minor))
    };
    parse().unwrap_or((0, 0, 0))
}

/// Parses a line of the table; `None` for what is not served: beta and alpha versions, and APIs of other servers.
fn parse_line(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.split('\t').collect();
    let [group, version, kind, plural, singular, short, namespaced, verbs, subs, categories, key, stage, hash] = cells[..] else {
        panic!("a line of resources.tsv has 13 cells: {line}");
    };
    let stage = match stage {
        "GA" => Stage::Stable,
        "GA,virtual" => Stage::Virtual,
        _ => return None,
    };
    let list = |s: &str| s.split(',').filter(|t| !t.is_empty()).map(String::from).collect();
    let gvk = Gvk { group: group.into(), version: version.into(), kind: kind.into() };
    Some(Row {
        list_kind: format!("{kind}List"),
        plural: plural.into(),
        singular: singular.into(),
        short: list(short),
        namespaced: namespaced == "true",
        verbs: VerbSet::parse(verbs, ',').expect("resources.tsv names only known verbs"),
        subresources: subs.split(';').filter(|s| !s.is_empty()).map(|s| parse_sub(s, &gvk)).collect(),
        categories: list(categories),
        storage: match stage {
            Stage::Stable => key.trim_end_matches("/{name}").trim_end_matches("/{ns}").into(),
            Stage::Virtual => String::new(),
        },
        storage_version_hash: hash.into(),
        stage,
        stored_as: rules::table::stored_as(&gvk),
        rules: rules::table::rules_of(&gvk),
        selectable: None,
        schema: crate::schema::schema_name(&gvk).unwrap_or_default().into(),
        group: gvk.group,
        version: gvk.version,
        kind: gvk.kind,
    })
}

/// `scale(Scale.v1.autoscaling:get+patch+update)`
fn parse_sub(text: &str, parent: &Gvk) -> Sub {
    let parts = || {
        let (name, rest) = text.strip_suffix(')')?.split_once('(')?;
        let (kind, verbs) = rest.split_once(':')?;
        Some((name, kind, VerbSet::parse(verbs, '+')?))
    };
    let (name, kind, verbs) = parts().expect("resources.tsv writes subresources as name(Kind:verb+verb)");
    let mut of = kind.splitn(3, '.');
    let kind = of.next().expect("splitn yields at least one part").to_string();
    let gvk = match (of.next(), of.next()) {
        (Some(version), Some(group)) => Gvk { group: group.into(), version: version.into(), kind },
        _ => Gvk { kind, ..parent.clone() },
    };
    Sub { name: name.into(), gvk, verbs }
}
