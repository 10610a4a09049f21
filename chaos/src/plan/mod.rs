//! A plan: what runs, who uses it, what breaks when and where, and what must hold.
//!
//! A plan comes from a file (YAML), from the table of built-in plans ([`builtin`]), or from a seed ([`seed`]). It runs on real
//! processes, and in the simulation as far as that has its faults ([`crate::sim::plan`]). `kontiki chaos schema` prints the JSON schema of
//! the file.
//!
//! ```yaml
//! name: leader-cut-off
//! seed: 7
//! topology: { servers: 3, nodes: 2, disk: ext4 }
//! workload:
//!   kv: { clients: 12, keys: 8 }
//!   watches: 4
//!   leases: 2
//!   deployment: { replicas: 20, disturb: 2 }
//! schedule:
//!   - id: cut
//!     when: { every: 8s }
//!     where: leader
//!     fault: { partition: { direction: out, plane: peers } }
//!     for: 3s..5s
//! duration: 60s
//! budget: { impaired: 1, mode: within-model }
//! expect:
//!   availability: { write-gap-p99: 2s }
//!   coverage: { writes: 1000, faults: 3 }
//! ```

pub mod builtin;
pub mod dice;
pub mod schedule;
pub mod seed;
mod span;
mod validate;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use dice::Dice;
pub use schedule::Injection;
pub use span::{BadSpan, Span, Spread};

use crate::fault::Fault;

/// The whole of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// Lower-case words joined by dashes.
    pub name: String,
    /// What it is for, in a line.
    #[serde(default)]
    pub about: String,
    /// Decides everything that the plan leaves open: what clients do, lengths from ranges, random targets.
    #[serde(default = "one")]
    pub seed: u64,
    /// What runs.
    #[serde(default)]
    pub topology: Topology,
    /// Who uses it.
    #[serde(default)]
    pub workload: Workload,
    /// What breaks. Empty: nothing does.
    #[serde(default)]
    pub schedule: Vec<Entry>,
    /// How long faults are injected. Afterwards everything heals, and must serve.
    #[serde(default = "default_duration")]
    pub duration: Span,
    /// How much may be broken at once.
    #[serde(default)]
    pub budget: Budget,
    /// What must hold.
    #[serde(default)]
    pub expect: Expect,
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Topology {
    /// Control-plane members, each a store, an API server and controllers.
    #[schemars(range(min = 1, max = 9))]
    pub servers: u8,
    /// Nodes. Their pods are simulated.
    #[schemars(range(min = 0, max = 50))]
    pub nodes: u8,
    /// What lies under the servers' data folders. The simulated world has a disk of its own, which can do everything.
    pub disk: Disk,
}

/// What lies under a server's data folder in the real world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    /// What the faults of the plan need: `fuse` for disk faults, `ext4` for loss of power, else `plain`.
    #[default]
    Auto,
    /// A folder.
    Plain,
    /// An image, loop-mounted: it can lose power.
    Ext4,
    /// A file system of the harness: it can do everything that disks do in bad moments.
    Fuse,
}

/// Who uses the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Workload {
    /// Clients that read and write keys of the store.
    pub kv: KvLoad,
    /// Watches over all those keys, spread over the members, resumed where they broke off.
    pub watches: u16,
    /// Clients that hold a lease each, keep it alive, and now and then let it expire.
    pub leases: u16,
    /// A Deployment that is disturbed, and must be complete in the end. Not there: no Kubernetes object is used.
    pub deployment: Option<Deployment>,
}

/// Clients of the store.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct KvLoad {
    /// How many, spread over the members; one whose member fails goes to the next.
    #[schemars(range(min = 0, max = 512))]
    pub clients: u16,
    /// On how many keys: few, so that clients meet.
    #[schemars(range(min = 1, max = 100_000))]
    pub keys: u32,
    /// Operations a second of all clients together; 0: each asks again as soon as it is answered.
    pub rate: u32,
    /// How often each operation is chosen, relative to the others.
    pub mix: Mix,
}

/// Relative frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Mix {
    /// Linearizable read of a key.
    pub get: u32,
    /// Write of a key.
    pub put: u32,
    /// Write of a key if it is unchanged.
    pub cas: u32,
    /// Deletion of a key.
    pub delete: u32,
}

/// A Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Deployment {
    /// Its replicas.
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: u32,
    /// So many of its pods are deleted with every fault.
    pub disturb: u32,
}

/// One line of the schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// Its name in reports; by default the fault's name.
    #[serde(default)]
    pub id: String,
    /// When.
    pub when: When,
    /// To whom.
    #[serde(default, rename = "where")]
    pub target: Target,
    /// What. A name alone stands for the fault with its default parameters.
    #[schemars(schema_with = "fault_schema")]
    pub fault: Fault,
    /// For how long.
    #[serde(default = "default_hold", rename = "for")]
    pub hold: Spread,
}

/// When a fault comes: exactly one of `at`, `every` and `event`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct When {
    /// Once, so long after the clients began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Spread>,
    /// Again and again, with these pauses from one beginning to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Spread>,
    /// With `every`: the first time, if not after the first pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Span>,
    /// Whenever this happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// With `event`: so long after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Spread>,
    /// With `event`: in this share of cases, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
}

/// What can be waited for. The simulated world sees all of them, the real one what its clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A server became the leader.
    Elected,
    /// A server granted its vote.
    VoteGranted,
    /// A snapshot was sent to a server.
    SnapshotSent,
    /// The list of members changed.
    MembershipChanged,
    /// A lease was granted.
    LeaseGranted,
    /// A pod was bound to a node.
    PodBound,
    /// A watch was opened, or resumed.
    WatchOpened,
}

impl Event {
    /// Whether the real world sees it.
    pub const fn in_real(self) -> bool {
        matches!(self, Self::Elected | Self::LeaseGranted | Self::WatchOpened)
    }
}

/// To whom it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The server that leads, at that moment.
    Leader,
    /// A server that does not lead, drawn anew each time.
    Follower,
    /// Any server, drawn anew each time.
    #[default]
    AnyServer,
    /// So many servers, drawn anew each time.
    Servers(u8),
    /// The server of this number, from 1 on.
    Server(u8),
    /// All servers.
    AllServers,
    /// Any node, drawn anew each time.
    AnyNode,
    /// The node of this number, from 1 on.
    Node(u8),
    /// The cluster as a whole.
    Cluster,
}

/// How much may be broken at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Budget {
    /// Servers that are impaired at once, at most; by default as many as the cluster survives: (servers - 1) / 2.
    pub impaired: Option<u8>,
    /// What is asserted.
    pub mode: Mode,
}

/// What is asserted while faults last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Never more than the cluster survives is broken: it must serve during faults. A fault that would break more is skipped.
    #[default]
    WithinModel,
    /// More may be broken: only safety holds during faults, and service must come back after them.
    BeyondModel,
}

/// What must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Expect {
    /// Checks by name, as `kontiki chaos list` prints them; empty: all.
    pub checks: Vec<String>,
    /// Checks that may fail, because the faults take away what they rest on: what they find is shown, and does not decide. Only where the
    /// budget's mode is `beyond-model`.
    pub may_break: Vec<String>,
    /// How soon it must serve.
    pub availability: Availability,
    /// How much must have happened, so that passing means something.
    pub coverage: Coverage,
}

/// How soon it must serve; what is not given is measured and not judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Availability {
    /// The longest time without an acknowledged write around a fault, in 99 of 100 cases.
    pub write_gap_p99: Option<Span>,
    /// The same, in half of the cases.
    pub write_gap_p50: Option<Span>,
    /// From the fault until another server leads, in 99 of 100 cases.
    pub leader_p99: Option<Span>,
    /// After the last fault, until everything is whole again.
    pub converge: Option<Span>,
}

/// How much must have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Coverage {
    /// Acknowledged writes, at least.
    pub writes: u64,
    /// Reads that were answered, at least.
    pub reads: u64,
    /// Faults that provably took effect, at least; a plan without a schedule needs none.
    pub faults: u32,
    /// Changes of leader, at least.
    pub elections: u32,
}

/// Why a plan is not one.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML.
    #[error("the plan is not YAML: {0}")]
    Yaml(String),
    /// A field holds what it must not.
    #[error("{field}: {why}")]
    Field {
        /// Where: `schedule[2].for`.
        field: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is no built-in plan of this name.
    #[error("there is no plan {0:?}: name a file, or one of {1}")]
    Unknown(String, String),
}

impl PlanError {
    /// A bad field.
    pub fn field(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Field { field: field.into(), why: why.into() }
    }
}

fn one() -> u64 {
    1
}

fn default_duration() -> Span {
    Span::secs(60)
}

fn default_hold() -> Spread {
    Spread::secs(2)
}

fn fault_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let full = generator.subschema_for::<Fault>();
    let names: Vec<&str> = crate::fault::table::FAULTS.iter().map(|row| row.name).collect();
    schemars::json_schema!({ "anyOf": [{ "type": "string", "enum": names }, full] })
}

impl Default for Topology {
    fn default() -> Self {
        Self { servers: 3, nodes: 2, disk: Disk::Auto }
    }
}

impl Default for KvLoad {
    fn default() -> Self {
        Self { clients: 12, keys: 8, rate: 0, mix: Mix::default() }
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self { get: 40, put: 30, cas: 25, delete: 5 }
    }
}

impl Default for Deployment {
    fn default() -> Self {
        Self { replicas: 20, disturb: 2 }
    }
}

impl Default for Coverage {
    fn default() -> Self {
        Self { writes: 100, reads: 100, faults: 1, elections: 0 }
    }
}

impl Plan {
    /// Reads a plan, and checks it.
    ///
    /// # Errors
    /// It is not YAML, or a field is wrong: the error names it.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let mut value: serde_json::Value = serde_yaml_ng::from_str(text).map_err(|e| PlanError::Yaml(e.to_string()))?;
        // A fault's bare name stands for the fault with its default parameters.
        for entry in value.get_mut("schedule").and_then(|s| s.as_array_mut()).into_iter().flatten() {
            if let Some(fault) = entry.get_mut("fault")
                && let Some(name) = fault.as_str()
            {
                *fault = serde_json::json!({ name: {} });
            }
        }
        let plan: Self = serde_path_to_error::deserialize(value).map_err(|e| {
            let path = e.path().to_string();
            PlanError::field(if path == "." { "the plan".into() } else { path }, e.inner().to_string())
        })?;
        plan.validate()?;
        Ok(plan)
    }

    /// The plan in a file.
    ///
    /// # Errors
    /// As [`Plan::parse`]; or the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::File { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// The built-in plan of this name, or else the file.
    ///
    /// # Errors
    /// As [`Plan::load`]; or it is neither.
    pub fn find(name: &str) -> Result<Self, PlanError> {
        if let Some(plan) = builtin::plan(name) {
            return Ok(plan);
        }
        if Path::new(name).exists() || name.ends_with(".yaml") || name.ends_with(".yml") {
            return Self::load(Path::new(name));
        }
        Err(PlanError::Unknown(name.to_owned(), builtin::names().join(", ")))
    }

    /// How many servers the cluster can lose and go on.
    pub fn survives(&self) -> u8 {
        self.topology.servers.saturating_sub(1) / 2
    }

    /// How many servers may be impaired at once.
    pub fn allowance(&self) -> u8 {
        self.budget.impaired.unwrap_or_else(|| self.survives())
    }

    /// The plan as YAML: what [`Plan::parse`] reads.
    pub fn to_yaml(&self) -> String {
        // By way of JSON's tree: YAML's own notation for enums is a tag, which nobody would write by hand.
        let tree = serde_json::to_value(self).unwrap_or_default();
        serde_yaml_ng::to_string(&tree).unwrap_or_default()
    }

    /// The JSON schema of plan files.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Plan).to_value()
    }
}

impl Entry {
    /// Its name in reports.
    pub fn label(&self) -> &str {
        if self.id.is_empty() { self.fault.name() } else { &self.id }
    }
}

#[cfg(test)]
mod tests;
