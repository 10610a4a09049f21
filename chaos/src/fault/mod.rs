//! What can be broken: the vocabulary that both worlds share.
//!
//! A [`Fault`] says what and how hard. When, where and for how long is the plan's business; how it is done is the world's. Everything that
//! is known of a fault apart from its parameters is one row of [`table`].

pub mod table;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::Span;

/// Something that breaks. In a plan: its name alone (`pause`), or its name with parameters (`{loss: {percent: 20}}`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// The process is killed (SIGKILL) and stays away for the fault's time; then it is started again.
    Crash {},
    /// The process is stopped (SIGSTOP) and continued: a long garbage collection, a suspended machine.
    Pause {},
    /// The process is asked to end (SIGTERM), stays away, and is started again.
    Stop {},
    /// The targets are stopped and started one after another, as an upgrade does it.
    RollingRestart {},
    /// Messages do not arrive.
    #[serde(rename_all = "kebab-case")]
    Partition {
        /// Who is cut from whom.
        #[serde(default)]
        shape: Shape,
        /// Which way messages are lost, seen from the target.
        #[serde(default)]
        direction: Direction,
        /// Which conversations are cut.
        #[serde(default)]
        plane: Plane,
    },
    /// A share of the target's packets is lost.
    Loss {
        /// Of a hundred packets, so many.
        #[serde(default = "default_percent")]
        percent: u8,
    },
    /// The target's packets arrive later; with jitter they also overtake each other.
    Delay {
        /// Every packet that the target sends, at least this much.
        #[serde(default = "default_delay")]
        by: Span,
        /// And up to this much more, drawn anew for each.
        #[serde(default)]
        jitter: Span,
    },
    /// Some of the target's messages arrive twice.
    Duplicate {
        /// Of a hundred messages, so many.
        #[serde(default = "default_percent")]
        percent: u8,
    },
    /// The target's link carries no more than this.
    Bandwidth {
        /// Kilobytes a second.
        #[serde(default = "default_kbytes")]
        kbytes: u32,
    },
    /// The target loses power: everything that it had not synced is gone.
    #[serde(rename_all = "kebab-case")]
    PowerLoss {
        /// What becomes of bytes that were written and not synced.
        #[serde(default)]
        unsynced: Unsynced,
    },
    /// Syncing the target's disk fails with an I/O error.
    FsyncEio {},
    /// The target's disk says that it synced, and did not; the fault ends with a loss of power.
    LyingFsync {},
    /// Writing to the target's disk fails: no space is left.
    DiskFull {},
    /// Every sync of the target's disk takes this much longer.
    DiskSlow {
        /// How much.
        #[serde(default = "default_sync")]
        by: Span,
    },
    /// The target's disk answers nothing at all until the fault is over.
    DiskStall {},
    /// A bit of the target's files flips while it is down.
    BitRot {},
    /// The target's wall clock jumps, and jumps back when the fault is over. Its timers are not touched.
    ClockJump {
        /// Milliseconds, negative for the past.
        #[serde(default = "default_jump")]
        ms: i64,
    },
    /// The target's clocks, the monotonic one included, run at another speed.
    ClockDrift {
        /// Parts in a million, negative for slower.
        #[serde(default = "default_ppm")]
        ppm: i32,
    },
    /// Many more clients than usual, all at once.
    Overload {
        /// How many.
        #[serde(default = "default_overload")]
        clients: u16,
        /// Size of each value that they write, in bytes.
        #[serde(default = "default_size")]
        bytes: u32,
    },
    /// The target is removed from the cluster, its disk is wiped, and it joins again as a new member.
    ReplaceMember {},
    /// Everything on the node stops, pods included, and goes on later: the node that was thought dead and comes back.
    NodeFreeze {},
    /// The node's agent is killed (SIGKILL), stays away, and is started again. Its pods go on where the runtime keeps them.
    AgentCrash {},
}

/// Who is cut from whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// The targets from all others.
    #[default]
    Isolate,
    /// Two sides: the target's, which is the smaller one, and the rest.
    Halves,
    /// Two sides that both still see the target, and not each other.
    Bridge,
}

/// Which way messages are lost, seen from the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Both ways.
    #[default]
    Both,
    /// The target hears nothing, but is heard.
    In,
    /// The target is not heard, but hears.
    Out,
}

/// Which conversations are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Plane {
    /// All: peers, clients and nodes.
    #[default]
    All,
    /// Between members only: clients still reach the target, which is the trap for stale reads.
    Peers,
    /// Between clients (nodes are clients) and the target only.
    Clients,
}

/// What becomes of bytes that were written and not synced when the power goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unsynced {
    /// All are lost.
    #[default]
    Drop,
    /// A random part survives, torn at 512 bytes, out of order across files.
    Torn,
}

fn default_percent() -> u8 {
    20
}

fn default_delay() -> Span {
    Span::millis(50)
}

fn default_kbytes() -> u32 {
    64
}

fn default_sync() -> Span {
    Span::millis(500)
}

fn default_jump() -> i64 {
    -30_000
}

fn default_ppm() -> i32 {
    500
}

fn default_overload() -> u16 {
    200
}

fn default_size() -> u32 {
    16 * 1024
}

impl Fault {
    /// Its name: the key of its row in [`table::FAULTS`].
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Crash {} => "crash",
            Self::Pause {} => "pause",
            Self::Stop {} => "stop",
            Self::RollingRestart {} => "rolling-restart",
            Self::Partition { .. } => "partition",
            Self::Loss { .. } => "loss",
            Self::Delay { .. } => "delay",
            Self::Duplicate { .. } => "duplicate",
            Self::Bandwidth { .. } => "bandwidth",
            Self::PowerLoss { .. } => "power-loss",
            Self::FsyncEio {} => "fsync-eio",
            Self::LyingFsync {} => "lying-fsync",
            Self::DiskFull {} => "disk-full",
            Self::DiskSlow { .. } => "disk-slow",
            Self::DiskStall {} => "disk-stall",
            Self::BitRot {} => "bit-rot",
            Self::ClockJump { .. } => "clock-jump",
            Self::ClockDrift { .. } => "clock-drift",
            Self::Overload { .. } => "overload",
            Self::ReplaceMember {} => "replace-member",
            Self::NodeFreeze {} => "node-freeze",
            Self::AgentCrash {} => "agent-crash",
        }
    }

    /// The fault of this name with its default parameters.
    pub fn named(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::json!({ name: {} })).ok()
    }

    /// What it is done to.
    pub const fn site(&self) -> Site {
        match self {
            Self::NodeFreeze {} | Self::AgentCrash {} => Site::Node,
            Self::Overload { .. } => Site::Cluster,
            _ => Site::Server,
        }
    }

    /// Whether a server that suffers it may be unable to vote or to answer in time: it then counts against the budget.
    pub const fn impairs(&self) -> bool {
        match self {
            // A shifted wall clock must not matter at all; overload is what every member must bear.
            Self::ClockJump { .. }
            | Self::ClockDrift { .. }
            | Self::Overload { .. }
            | Self::Duplicate { .. }
            | Self::NodeFreeze {}
            | Self::AgentCrash {} => false,
            _ => true,
        }
    }

    /// Whether the fault breaks what every consensus protocol must assume of a disk: then only `beyond-model` plans may have it.
    pub const fn breaks_the_model(&self) -> bool {
        matches!(self, Self::LyingFsync {})
    }
}

/// What a fault is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Servers.
    Server,
    /// Nodes.
    Node,
    /// The whole.
    Cluster,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_defaults_agree() {
        for row in table::FAULTS {
            let fault = Fault::named(row.name).unwrap_or_else(|| panic!("{} has defaults for all parameters", row.name));
            assert_eq!(fault.name(), row.name);
            let text = serde_json::to_value(&fault).unwrap();
            assert_eq!(serde_json::from_value::<Fault>(text).unwrap(), fault);
        }
        assert_eq!(Fault::named("nonsense"), None);
    }
}
