//! The invariants of consensus, seen from inside: checked at every step, not only when a client notices.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::Hasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kontiki_base::ids::{LogIndex, MemberId, Revision, Term};
use kontiki_base::kv::{Event as KvEvent, EventKind};
use kontiki_store::inside::Member;
use kontiki_store::raft::{AppliedBatch, ApplySink};
use tokio::sync::mpsc;

use super::trace::{Event, Node, Trace};
use super::world::Cue;
use crate::check::Violation;
use crate::history::Change;

/// Violations that are kept: the first ones say it all.
const KEEP: usize = 20;

/// An entry that some member knew to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    term: Term,
    sum: u32,
    /// The term of the member that was first seen to know.
    known_in: Term,
}

/// What is known of one process of a member.
#[derive(Default)]
struct Life {
    term: Term,
    applied: LogIndex,
    /// The log was compared up to here, committed.
    compared: LogIndex,
    revision: Revision,
    led: Option<Term>,
}

#[derive(Default)]
struct State {
    ids: BTreeMap<Node, MemberId>,
    lives: BTreeMap<Node, Life>,
    leaders: BTreeMap<Term, Node>,
    votes: BTreeMap<(MemberId, u64), u64>,
    entries: BTreeMap<(LogIndex, Term), u32>,
    committed: BTreeMap<LogIndex, Committed>,
    /// What every revision did: its checksum, and who said so first.
    revisions: BTreeMap<Revision, (u64, Node)>,
    changes: Vec<Change>,
    violations: Vec<Violation>,
    steps: u64,
}

/// Watches all members of a world.
pub struct Oracle {
    state: Mutex<State>,
    trace: Arc<Trace>,
    cues: mpsc::Sender<Cue>,
}

/// What the oracle has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Looks at a member.
    pub steps: u64,
    /// Terms that had a leader.
    pub elections: usize,
    /// Votes that were granted.
    pub votes: usize,
    /// Entries that were committed.
    pub committed: usize,
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub fn new(trace: Arc<Trace>, cues: mpsc::Sender<Cue>) -> Self {
        Self { state: Mutex::default(), trace, cues }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells which member is on a node.
    pub fn knows(&self, node: Node, id: MemberId) {
        self.lock().ids.insert(node, id);
    }

    /// A process of a member begins.
    pub fn begins(&self, node: Node) {
        self.lock().lives.insert(node, Life::default());
    }

    /// A process of a member has ended.
    pub fn ends(&self, node: Node) {
        self.lock().lives.remove(&node);
    }

    /// Something must not have happened.
    pub fn fail(&self, check: &'static str, detail: impl Into<String>) {
        self.lock().fail(check, detail.into(), &self.trace);
    }

    /// Everything that must not have happened, and did.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// All changes of the store so far, by the members' own account.
    pub fn changes(&self) -> Vec<Change> {
        self.lock().changes.clone()
    }

    /// How much was looked at.
    pub fn seen(&self) -> Seen {
        let state = self.lock();
        Seen { steps: state.steps, elections: state.leaders.len(), votes: state.votes.len(), committed: state.committed.len() }
    }

    /// A voter has answered a candidate.
    pub fn voted(&self, voter: Node, term: u64, candidate: u64, granted: bool) {
        let mut state = self.lock();
        self.trace.say(voter, Event::Note, term, candidate, format_args!("votes in term {term} for {candidate:x}: {granted}"));
        // A candidate has given itself its vote before it asks.
        let own = (MemberId::new(candidate), term);
        let ballots = [Some((own, candidate)), granted.then(|| ((state.ids[&voter], term), candidate))];
        for (ballot, for_whom) in ballots.into_iter().flatten() {
            let before = *state.votes.entry(ballot).or_insert(for_whom);
            if before != for_whom {
                let detail = format!("member {} voted for {before:x} and for {for_whom:x} in term {term}", ballot.0);
                state.fail("double-vote", detail, &self.trace);
            }
        }
    }

    /// Looks at a member now.
    pub fn look(&self, node: Node, member: &Member) {
        let probe = member.probe();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.steps += 1;
        let Some(life) = state.lives.get_mut(&node) else { return };
        let compared = life.compared;
        let mut broken = Vec::new();
        if probe.term < life.term {
            broken.push(("term-forward", format!("n{node} went from term {} back to {}", life.term, probe.term)));
        }
        if probe.applied.index < life.applied {
            broken.push(("applied-forward", format!("n{node} went from {} back to {}", life.applied, probe.applied.index)));
        }
        if probe.log.purged.index > probe.applied.index {
            broken.push(("applied-forward", format!("n{node} purged up to {:?}, applied {:?}", probe.log.purged, probe.applied)));
        }
        life.term = probe.term;
        life.applied = probe.applied.index;
        let elected = probe.leads && life.led != Some(probe.term);
        if elected {
            life.led = Some(probe.term);
        }
        life.compared = compared.max(probe.committed.index.min(probe.log.last.index));
        let entries = match member.probe_log(compared.next()) {
            Ok(entries) => entries,
            // A member that stops, by itself or because it is told to, closes its log first.
            Err(_) if member.probe().stopping => Vec::new(),
            Err(error) => {
                broken.push(("log-matching", format!("n{node}'s log cannot be read: {error}")));
                Vec::new()
            }
        };
        for entry in &entries {
            let (index, term) = (entry.pos.index, entry.pos.term);
            let known = *state.entries.entry((index, term)).or_insert(entry.sum);
            if known != entry.sum {
                broken.push(("log-matching", format!("n{node}'s entry {index} of term {term} differs from another member's")));
            }
            if index <= probe.committed.index {
                let this = Committed { term, sum: entry.sum, known_in: probe.term };
                let first = *state.committed.entry(index).or_insert(this);
                if (first.term, first.sum) != (this.term, this.sum) {
                    let detail = format!("entry {index} was committed in term {}, and n{node} has one of term {term} there", first.term);
                    broken.push(("committed-stays", detail));
                }
            }
        }
        if elected {
            broken.extend(state.elected(node, probe.term, member));
            self.trace.say(node, Event::Note, probe.term.get(), 1, format_args!("leads in term {}", probe.term));
            // A nemesis that does not listen has missed it.
            let _ = self.cues.try_send(Cue::Elected(node));
        }
        broken.into_iter().for_each(|(check, detail)| state.fail(check, detail, &self.trace));
    }

    /// Who tells the oracle what the member on a node applies.
    pub fn observer(self: &Arc<Self>, node: Node) -> Arc<dyn ApplySink> {
        Arc::new(Observer { oracle: Arc::clone(self), node })
    }
}

impl State {
    fn fail(&mut self, check: &'static str, detail: String, trace: &Trace) {
        trace.say(super::trace::WORLD, Event::Note, 66, 0, format_args!("VIOLATION {check}: {detail}"));
        if self.violations.len() < KEEP {
            self.violations.push(Violation::new(check, detail));
        }
    }

    /// Election safety, and leader completeness: whoever leads has everything that was known to be committed in earlier terms.
    fn elected(&mut self, node: Node, term: Term, member: &Member) -> Vec<(&'static str, String)> {
        let mut broken = Vec::new();
        let first = *self.leaders.entry(term).or_insert(node);
        if first != node {
            broken.push(("election-safety", format!("n{first} and n{node} both lead in term {term}")));
        }
        let log = member.probe().log;
        let has: BTreeMap<LogIndex, Term> =
            member.probe_log(log.purged.index.next()).unwrap_or_default().iter().map(|e| (e.pos.index, e.pos.term)).collect();
        let before = self.committed.iter().filter(|(index, entry)| entry.known_in < term && **index > log.purged.index);
        if let Some((index, entry)) = before.into_iter().find(|(index, entry)| has.get(index) != Some(&entry.term)) {
            broken.push(("leader-completeness", format!("n{node} leads in term {term} without entry {index} of term {}", entry.term)));
        }
        broken
    }
}

struct Observer {
    oracle: Arc<Oracle>,
    node: Node,
}

/// FNV-1a over everything that an event says.
fn sum(events: &[&KvEvent]) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    for event in events {
        hasher.write_u8(u8::from(event.kind == EventKind::Put));
        hasher.write(&event.kv.key);
        hasher.write(&event.kv.value);
        for number in [event.kv.create_revision.get(), event.kv.mod_revision.get(), event.kv.version, event.kv.lease.get()] {
            hasher.write_i64(number);
        }
    }
    hasher.finish()
}

struct Fnv(u64);

impl std::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn change(event: &KvEvent) -> Change {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let value = (event.kind == EventKind::Put).then(|| text(&event.kv.value));
    let (create, version, lease) = match event.kind {
        EventKind::Put => (event.kv.create_revision.get(), event.kv.version, event.kv.lease.get()),
        EventKind::Delete => (0, 0, 0),
    };
    Change { revision: event.kv.mod_revision.get(), key: text(&event.kv.key), value, create, version, lease }
}

impl ApplySink for Observer {
    fn applied(&self, batch: AppliedBatch) {
        let Self { oracle, node } = self;
        oracle.trace.say(
            *node,
            Event::Apply,
            batch.index.get(),
            u64::try_from(batch.revision.get()).unwrap_or(0),
            format_args!("entry {} revision {}", batch.index, batch.revision),
        );
        let mut state = oracle.lock();
        let mut by_revision: BTreeMap<Revision, Vec<&KvEvent>> = BTreeMap::new();
        batch.events.iter().for_each(|event| by_revision.entry(event.kv.mod_revision).or_default().push(event));
        for (revision, events) in by_revision {
            let sum = sum(&events);
            match state.revisions.entry(revision) {
                Entry::Vacant(vacant) => {
                    vacant.insert((sum, *node));
                    state.changes.extend(events.iter().map(|event| change(event)));
                }
                Entry::Occupied(first) if first.get().0 != sum => {
                    let detail = format!("n{node} makes something else of revision {revision} than n{}", first.get().1);
                    state.fail("replicas-equal", detail, &oracle.trace);
                }
                Entry::Occupied(_) => {}
            }
        }
        let Some(life) = state.lives.get_mut(node) else { return };
        let before = std::mem::replace(&mut life.revision, batch.revision);
        if batch.revision < before {
            let detail = format!("n{node} went from revision {before} back to {}", batch.revision);
            state.fail("applied-forward", detail, &oracle.trace);
        }
    }

    fn replaced(&self, revision: Revision, _compact: Revision) {
        let mut state = self.oracle.lock();
        let number = u64::try_from(revision.get()).unwrap_or(0);
        self.oracle.trace.say(self.node, Event::Install, number, 0, format_args!("a snapshot of revision {revision}"));
        if let Some(life) = state.lives.get_mut(&self.node) {
            life.revision = revision;
        }
    }
}
