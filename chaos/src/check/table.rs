//! The table of checks: name, exact predicate, who judges.

use super::{Outcome, backwards, durable, hashes, kube, lease, linear, raft, serial, watch};
use crate::history::History;

/// A check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What must hold.
    pub predicate: &'static str,
    /// Who judges it.
    pub judge: Judge,
}

/// Who judges a check.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// A function of the history.
    History(fn(&History) -> Outcome),
    /// The world in which the plan runs sees it, and raises an alarm.
    World,
    /// Nobody: why.
    NotYet(&'static str),
}

/// Every check, in the order in which they are reported.
pub const CHECKS: &[Check] = &[
    Check {
        name: "linearizable",
        predicate: "there is one order of all operations on keys that explains every answer and contradicts no real time; it is the order \
                    of the revisions that the answers themselves name",
        judge: Judge::History(linear::judge),
    },
    Check {
        name: "serializable",
        predicate: "a serializable read, and a read as of an old revision, shows exactly the state of the revision it names, which some \
                    write had made before the read ended",
        judge: Judge::History(serial::judge),
    },
    Check {
        name: "durable",
        predicate: "a write that was acknowledged before members lost power, were killed or lost their disk is in the store at the end",
        judge: Judge::History(durable::judge),
    },
    Check {
        name: "read-your-writes",
        predicate: "after a client's write at revision r, that client's linearizable reads, and its serializable ones at a member that has \
                    already shown it r, are of r or later",
        judge: Judge::History(backwards::read_your_writes),
    },
    Check {
        name: "revisions-forward",
        predicate: "the revisions in a member's answers never go back while it lives",
        judge: Judge::History(backwards::judge),
    },
    Check {
        name: "watch",
        predicate: "each watch, against the list of changes: ordered, unique, atomic, reliable, resumable, bookmarkable; every event \
                    matches its range and filters; what was before is the state one revision earlier; a compacted start is refused",
        judge: Judge::History(watch::judge),
    },
    Check {
        name: "lease",
        predicate: "a granted TTL is at least what was asked for; no lease ends before its last acknowledged renewal was sent plus its TTL; \
                    all its keys go at one revision; it never lives again; its remaining time does not grow by itself",
        judge: Judge::History(lease::judge),
    },
    Check {
        name: "equal-hashes",
        predicate: "members' states at the same revision and compact revision have the same hash",
        judge: Judge::History(hashes::judge),
    },
    Check {
        name: "raft",
        predicate: "at most one member leads in a term; a member's term never goes back, not even across power loss; its applied index and \
                    revision never go back while it lives; it applies nothing that is not committed",
        judge: Judge::History(raft::judge),
    },
    Check {
        name: "K1",
        predicate: "bind once: a pod's node name goes from empty to a node at most once, and its containers run there only",
        judge: Judge::History(kube::bind::judge),
    },
    Check {
        name: "K2",
        predicate: "capacity: at each revision the requests of the living pods on a node fit what it offers, and no two share a host port",
        judge: Judge::History(kube::capacity::judge),
    },
    Check {
        name: "K3",
        predicate: "at most one identity: containers of two pods with the name of one StatefulSet's ordinal never run at the same time",
        judge: Judge::History(kube::identity::judge),
    },
    Check {
        name: "K4",
        predicate: "convergence: at the end of the run each controller has observed the last generation and has exactly the replicas it wants",
        judge: Judge::History(kube::converge::judge),
    },
    Check {
        name: "K5",
        predicate: "no orphans: at the end each controlling owner exists with that uid, and every container belongs to a pod",
        judge: Judge::History(kube::orphan::judge),
    },
    Check {
        name: "K6",
        predicate: "no wrongful delete: nothing that a living controller wants is collected as garbage: a pod whose owners are all gone may \
                    be, a ReplicaSet's pod beyond its wish, one that is finished, or one that somebody asked to delete",
        judge: Judge::NotYet("needs the writer of each change: the product has no audit log"),
    },
    Check {
        name: "K7",
        predicate: "disruption budgets: an eviction leaves enough healthy pods, as history counts them",
        judge: Judge::NotYet("needs evictions to be told from other deletions: the product has no audit log"),
    },
    Check {
        name: "K8",
        predicate: "endpoint truth: a ready endpoint is a pod that ran and was ready within the last 2 s, 8 s if its node died",
        judge: Judge::History(kube::endpoints::judge),
    },
    Check {
        name: "K9",
        predicate: "no lost update: each object's changes form a chain; within a life uid and creation time stay, and no old copy comes back",
        judge: Judge::History(kube::chain::judge),
    },
    Check {
        name: "K10",
        predicate: "generation: spec changes if and only if the generation grows, by one; observedGeneration never exceeds it or goes back",
        judge: Judge::History(kube::generation::judge),
    },
    Check {
        name: "K11",
        predicate: "informer equivalence: a client's list with the watch events that follow equals the store's objects at every resource \
                    version that it is told, and never goes back",
        judge: Judge::History(kube::informer::judge),
    },
    Check {
        name: "K12",
        predicate: "fencing: no controller writes under an earlier term than one that wrote before it",
        judge: Judge::NotYet("needs the term of each write: it is checked in the store's transaction and not recorded in the object"),
    },
    Check {
        name: "K13",
        predicate: "rollout: a Deployment has at most replicas + maxSurge living pods, counted at the revision of each creation",
        judge: Judge::History(kube::rollout::judge),
    },
    Check {
        name: "K14",
        predicate: "node lifecycle: a node is tainted only after it was silent for its grace, and nothing is evicted before its toleration ends",
        judge: Judge::NotYet("heartbeats are not in the store, and node records have none"),
    },
    Check {
        name: "K15",
        predicate: "uniqueness: at each revision no two living pods share an address (unless their machine came back empty in between), no two \
                    services a cluster address or node port, no two objects a uid",
        judge: Judge::History(kube::unique::judge),
    },
    Check {
        name: "K16",
        predicate: "quota: at each revision what is used is within what is allowed",
        judge: Judge::NotYet("the product has no quota controller"),
    },
    Check {
        name: "K17",
        predicate: "teardown: a pod's containers have stopped when its object goes, unless its node was gone or it was deleted by force",
        judge: Judge::History(kube::teardown::judge),
    },
    Check { name: "K18", predicate: "every revision has one audit record", judge: Judge::NotYet("the product has no audit log") },
    Check {
        name: "panic",
        predicate: "no part of the product panics, and no member stops for good, while the faults are those it promises to survive",
        judge: Judge::World,
    },
    Check { name: "invariant", predicate: "no invariant of `base::invariant` is broken inside a member", judge: Judge::World },
    Check {
        name: "converge",
        predicate: "after the faults the cluster serves again within its bound, and every member has the same state",
        judge: Judge::World,
    },
    Check {
        name: "availability",
        predicate: "while no more is broken than the cluster survives, writes are acknowledged again within 10 s of any fault, and within what \
                    the plan allows",
        judge: Judge::World,
    },
    Check {
        name: "coverage",
        predicate: "the run did what its plan claims: faults took effect, operations succeeded between them",
        judge: Judge::World,
    },
];

/// The rules of the checks that have several.
pub(super) const RULES: &[(&str, &str)] = &[
    ("lost-write", "a write acknowledged at revision r is what the store has at r"),
    ("phantom", "every change was asked for by an operation that may have happened, and is all that it asked for"),
    ("twice", "an operation happens at most once, also if its outcome is unknown"),
    ("stale-read", "an answer at revision R shows the state after the changes up to R, no more and no less"),
    ("wrong-compare", "a compare succeeds if and only if it holds in the state before it"),
    ("wrong-refusal", "what is refused as compacted was compacted"),
    ("real-time", "an operation that began after another had ended stands after it in the order of revisions"),
    ("revision-order", "revisions of changes only grow, and one changes a key once"),
    ("revision-gap", "every revision from the first to the last changed something"),
    ("wrong-version", "create revision and version of a key follow from its changes"),
    ("ordered", "revisions of a watch's events never decrease"),
    ("unique", "no watch delivers a change twice"),
    ("atomic", "all events of a revision come in one response"),
    ("reliable", "between the first and the last event of a watch none is missing, and none is invented"),
    ("resumable", "a watch's first event is the first matching change at or after its start"),
    ("bookmarkable", "progress at r: all matching changes up to r were delivered, none of them comes later, and r exists"),
    ("filter", "an event lies in the watch's range and passes its filters"),
    ("prev", "what was before an event is the state one revision earlier"),
    ("compacted", "a watch is refused as compacted only if what it needs next is, and somebody asked for that compaction"),
    ("election-safety", "a term has one leader at most"),
    ("double-vote", "a member gives its vote to one candidate in a term, whatever happens to it"),
    ("leader-completeness", "a new leader has every entry that was known to be committed in earlier terms"),
    ("log-matching", "entries of the same index and term are the same at all members"),
    ("committed-stays", "what a member knew to be committed is what every member has there"),
    ("term-forward", "a member's term only grows"),
    ("applied-forward", "what a member has applied only grows, and it purges nothing beyond it"),
    ("replicas-equal", "every revision does the same at every member, and equal positions are equal states"),
    ("same-seed", "the same seed gives the same run, event by event"),
    ("sim", "the simulation itself is sound: a process that was killed leaves nothing behind"),
    ("delivered", "in the end an open watch has everything that is 5 s old"),
];
