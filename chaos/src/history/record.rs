//! The records of a run that are not operations of clients.

use serde::{Deserialize, Serialize};

use super::ops::{Answer, Ask, Change, Seen};
use super::{At, Op};

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Which run this is: the first record.
    Header(Header),
    /// A client asked for something.
    Invoke {
        /// Ties the answer to it.
        id: u64,
        /// Who asked.
        client: u16,
        /// Which member.
        member: usize,
        /// When.
        at: At,
        /// What.
        ask: Ask,
    },
    /// The client was answered, or gave up.
    Return {
        /// Which operation.
        id: u64,
        /// When.
        at: At,
        /// What.
        answer: Answer,
    },
    /// An operation, whole: where nothing can crash between question and answer.
    Op(Op),
    /// The observer saw a change.
    Change(Change),
    /// A frame of a watch.
    Watch(Watch),
    /// A member said something of itself.
    Sample(Sample),
    /// A fault was tried.
    Fault(Fault),
    /// A fault ended.
    Heal(Heal),
    /// What a member has at the end.
    Final(Final),
    /// A node did something.
    Node(NodeRecord),
    /// A frame of a list or watch of the Kubernetes API.
    Api(ApiWatch),
    /// The world itself saw something that must not happen.
    Alarm {
        /// The check that it violates.
        check: String,
        /// What was seen.
        detail: String,
    },
    /// The run ended in good order.
    End {
        /// When.
        at: At,
    },
}

/// Which run it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// `sim` or `real`.
    pub world: String,
    /// The plan's name.
    pub plan: String,
    /// The seed from which everything follows (sim), or the choices of clients and faults (real).
    pub seed: u64,
    /// The commit that was run.
    pub commit: String,
    /// The command that runs it again.
    pub replay: String,
    /// The members' names, in order of their numbers.
    pub members: Vec<String>,
    /// The planted bug, if one was.
    pub mutant: String,
    /// Whether the observer watched every key, from the empty store on: then its changes have no gap in their revisions.
    pub observes_all: bool,
    /// Wall-clock time of the start, in milliseconds since the Unix epoch; 0 in a simulation.
    pub started_ms: i64,
}

/// A frame of a watch of the store, or the request for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Which watch: unique in the run. A watch that is resumed elsewhere is a new one.
    pub watch: u64,
    /// Whose.
    pub client: u16,
    /// At which member.
    pub member: usize,
    /// When it was sent or came.
    pub at: At,
    /// What.
    pub frame: Frame,
}

/// What a watch can say. The first record of a watch is [`Frame::Asked`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frame {
    /// The client asked for it.
    Asked(WatchAsk),
    /// It is in place.
    Created {
        /// The header's revision.
        revision: i64,
    },
    /// Changes.
    Events {
        /// The header's revision.
        revision: i64,
        /// What happened.
        events: Vec<SeenEvent>,
        /// Whether the rest of this response follows in the next frame (only if asked for with `fragment`).
        #[serde(default)]
        fragment: bool,
    },
    /// All matching changes up to here have been delivered.
    Progress {
        /// The header's revision.
        revision: i64,
    },
    /// The server ended it.
    Cancelled {
        /// Not 0: the start lies before this compact revision.
        #[serde(default)]
        compact: i64,
        /// What the client was told.
        #[serde(default)]
        why: String,
    },
    /// The connection broke, or the client ended it. Nothing follows.
    Closed,
}

/// What a watch was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchAsk {
    /// First key.
    pub key: String,
    /// End, as on the wire: empty is one key, "\0" is no end.
    pub end: String,
    /// First revision to deliver; 0: from now on.
    pub start: i64,
    /// Deliver what was there before, too.
    pub prev: bool,
    /// Leave out writes.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
    /// Big responses may be split.
    pub fragment: bool,
}

/// An event as a watcher saw it. A deletion has no value, and its `kv` only key and `modified`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeenEvent {
    /// Whether it is a deletion.
    pub delete: bool,
    /// The key after it.
    pub kv: Seen,
    /// The key before it, if asked for and there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<Seen>,
}

/// A member's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It does not run, or does not answer.
    #[default]
    Down,
    /// It follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
    /// It follows without a vote.
    Learner,
}

/// What a member said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// When.
    pub at: At,
    /// Which member.
    pub member: usize,
    /// Counts its lives: one more for each start.
    pub life: u32,
    /// Who it says it is, in the cluster's own words; another one after it was replaced. 0: not told.
    pub id: u64,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Log index up to which it has applied.
    pub applied: u64,
    /// Log index up to which it knows entries to be committed; 0: not told.
    pub committed: u64,
    /// The store's revision at this member.
    pub revision: i64,
    /// Hash of its state as of `hash_revision`, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<u64>,
    /// The revision of the hash.
    pub hash_revision: i64,
    /// The compact revision of the hash: hashes are equal only between members that have compacted the same.
    pub hash_compact: i64,
}

/// A fault that was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Ties its end to it.
    pub id: u32,
    /// When.
    pub at: At,
    /// Which: a name of the catalogue of faults.
    pub kind: String,
    /// The members that it hits.
    pub members: Vec<usize>,
    /// The nodes that it hits.
    pub nodes: Vec<String>,
    /// More about it.
    pub detail: String,
    /// Whether it took effect.
    pub outcome: FaultOutcome,
}

/// Whether a fault took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultOutcome {
    /// It did.
    Installed {
        /// How that is known.
        proof: String,
    },
    /// It did not, and that is no harm: there was nobody to hit.
    Skipped {
        /// Why.
        why: String,
    },
    /// Nobody knows: the run proves nothing about it.
    Indeterminate {
        /// What is known.
        why: String,
    },
}

impl Default for FaultOutcome {
    fn default() -> Self {
        Self::Indeterminate { why: String::new() }
    }
}

/// A fault ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heal {
    /// Which.
    pub id: u32,
    /// When.
    pub at: At,
    /// More about it.
    pub detail: String,
}

impl Fault {
    /// Whether it took effect.
    pub const fn installed(&self) -> bool {
        matches!(self.outcome, FaultOutcome::Installed { .. })
    }

    fn is(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.kind.contains(word))
    }

    /// Whether the processes that it hits begin a new life.
    pub fn restarts(&self) -> bool {
        self.is(&["kill", "crash", "power", "stop", "restart", "disk", "wipe", "upgrade", "downgrade", "replace"])
    }

    /// Whether the disks that it hits lose everything.
    pub fn wipes(&self) -> bool {
        self.is(&["wipe", "replace", "empty"])
    }
}

/// What a member has at the end, after everything was healed: all its keys, read from itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Final {
    /// Which member.
    pub member: usize,
    /// The revision of the read.
    pub revision: i64,
    /// The keys of the store's own workload, in order.
    pub kvs: Vec<Seen>,
}

/// Something that a node did: ground truth, not what the API says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// When.
    pub at: At,
    /// Which node.
    pub node: String,
    /// What.
    pub fact: NodeFact,
}

/// What a node did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeFact {
    /// A container runs.
    Start {
        /// The pod's uid.
        uid: String,
        /// The pod: namespace and name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// A container runs no more.
    Exit {
        /// The pod's uid.
        uid: String,
        /// The container's name.
        container: String,
    },
    /// The machine runs.
    Up,
    /// The machine is gone, with everything on it.
    Down,
    /// What it routes for a service: addresses of endpoints.
    Route {
        /// The service: namespace and name.
        service: String,
        /// The pod addresses.
        endpoints: Vec<String>,
    },
}

/// A frame of a list, or of the watch that follows it, on the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiWatch {
    /// Which session: one informer of one client, across reconnects.
    pub session: u64,
    /// At which server.
    pub member: usize,
    /// When it came.
    pub at: At,
    /// What.
    pub frame: ApiFrame,
}

/// What a list or watch of the Kubernetes API said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiFrame {
    /// A whole list.
    List {
        /// The prefix of the store's keys that it lists: `/registry/pods/`.
        prefix: String,
        /// The list's resource version.
        revision: i64,
        /// The store's keys of its objects, each with its resource version.
        items: Vec<(String, i64)>,
    },
    /// An object was added or changed.
    Put {
        /// The store's key.
        key: String,
        /// The object's resource version.
        revision: i64,
    },
    /// An object was deleted.
    Delete {
        /// The store's key.
        key: String,
        /// The resource version of the deletion.
        revision: i64,
    },
    /// Nothing is missing up to here.
    Bookmark {
        /// The resource version.
        revision: i64,
    },
    /// The history is gone: the client must list again.
    Gone,
    /// The connection broke: the client resumes from what it saw.
    Closed,
}
