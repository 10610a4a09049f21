//! What a run recorded: one clock, one stream of records, one file.
//!
//! Everything that can be judged later is a [`Record`]: what clients asked and were answered, every frame of every watch, what members
//! said of themselves, which faults were installed, what the nodes really ran. Both worlds write the same records, and the checkers read
//! nothing else, so that a run can be judged again from its file (`kontiki chaos check`).
//!
//! The file is one record a line, in JSON: it can be cut off anywhere and the lines before are still good.

pub mod file;
pub mod ops;
pub mod record;

pub use file::{FileError, Recorder};
pub use ops::{Answer, Ask, Change, Compare, CompareOp, CompareTarget, LeaseAsk, Op, RangeAsk, Seen, Step, StepAnswer};
pub use record::{
    ApiFrame, ApiWatch, Fault, FaultOutcome, Final, Frame, Header, Heal, NodeFact, NodeRecord, Record, Role, Sample, SeenEvent, Watch,
    WatchAsk,
};

/// Nanoseconds on one monotonic clock since the run began: the same clock for all clients, members and faults.
pub type At = u64;

/// Keys of Kubernetes objects. All other keys belong to the store's own workload.
pub const REGISTRY: &str = "/registry/";

/// Everything that a run recorded, sorted by kind. Within a kind records are in the order of their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Which run it was.
    pub header: Header,
    /// All operations on the store, in any order.
    pub ops: Vec<Op>,
    /// All changes of the store, in order of revision, as an observer that missed nothing saw them: the authority on order.
    pub changes: Vec<Change>,
    /// All frames of all watches of clients.
    pub watches: Vec<Watch>,
    /// What members said of themselves.
    pub samples: Vec<Sample>,
    /// Faults that were tried.
    pub faults: Vec<Fault>,
    /// Ends of faults.
    pub heals: Vec<Heal>,
    /// What members have at the end.
    pub finals: Vec<Final>,
    /// What nodes really ran.
    pub nodes: Vec<NodeRecord>,
    /// Lists and watches of clients of the Kubernetes API.
    pub api: Vec<ApiWatch>,
    /// Things that the world itself saw go wrong, by the name of the check: a panic, an invariant, a cluster that does not come back.
    pub alarms: Vec<(String, String)>,
    /// When the run ended; `None`: the harness was killed before.
    pub ended: Option<At>,
}

impl History {
    /// Sorts a stream of records. Operations whose answer is missing have an unknown outcome.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Self {
        let mut gather = file::Gather::default();
        for record in records {
            gather.take(record);
        }
        gather.finish()
    }

    /// The largest time in it.
    pub fn end(&self) -> At {
        let ops = self.ops.iter().map(|op| op.ret);
        let rest = self.watches.iter().map(|w| w.at).chain(self.samples.iter().map(|s| s.at));
        ops.chain(rest).chain(self.heals.iter().map(|h| h.at)).chain(self.faults.iter().map(|f| f.at)).chain(self.ended).max().unwrap_or(0)
    }

    /// When a fault ended; the end of the run if it never did.
    pub fn healed(&self, fault: &Fault) -> At {
        self.heals.iter().filter(|heal| heal.id == fault.id && heal.at >= fault.at).map(|heal| heal.at).min().unwrap_or_else(|| self.end())
    }

    /// When the last fault had ended; 0 without faults.
    pub fn calm_from(&self) -> At {
        self.faults.iter().filter(|f| matches!(f.outcome, FaultOutcome::Installed { .. })).map(|f| self.healed(f)).max().unwrap_or(0)
    }
}
